"""Scores for made music: alignment, Fréchet distance, similarity. Sees only ``musictune.audio``."""
