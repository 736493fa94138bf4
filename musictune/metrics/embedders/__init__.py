"""Models that turn audio into points: one file per family."""

from musictune.metrics.embedders.base import Embedder, TextReader
from musictune.metrics.embedders.clap import ClapEmbedder
from musictune.metrics.embedders.loading import load_embedder

__all__ = ["ClapEmbedder", "Embedder", "TextReader", "load_embedder"]
