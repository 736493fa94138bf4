"""Classifiers by name: a base with its own labels, or what a tuning run learned."""

from __future__ import annotations

from pathlib import Path

from musictune.errors import InputError
from musictune.methods.adapter import adapter_folder, attach_adapter, method_names
from musictune.methods.linear_probe import LinearProbe
from musictune.methods.storage import load_json
from musictune.models.classifier import Classifier

OWN_BASE = "base"
"""A run that changed its base before tuning keeps it in a folder of this name."""


def load_classifier(name: str | Path, device: str = "cpu", base: str = "") -> Classifier:
    """A classifier that is ready to hear.

    Args:
        name: the folder of a run of ``tune --task classify``, or a base: ``mini``, a transformers
            folder, or a Hugging Face id with labels of its own.
        device: ``cpu``, ``cuda`` or ``auto``.
        base: of a run, where the one that it was made for now lies elsewhere.

    Raises:
        InputError: neither a run nor a base, or a damaged one.
    """
    folder = Path(name)
    if not any((place / "adapter.json").is_file() for place in (folder, folder / "adapter")):
        return Classifier.load(name, device)
    folder = adapter_folder(folder)
    if LinearProbe.name not in method_names(folder):
        raise InputError(
            f"adapter {folder} was made for music, not for classifying; give a run of "
            "tune --task classify"
        )
    seconds = float(load_json(folder / LinearProbe.name / f"{LinearProbe.name}.json")["seconds"])
    own = folder.parent / OWN_BASE
    place = base or (str(own) if own.is_dir() else str(load_json(folder / "adapter.json")["base"]))
    model = Classifier.load(place, device, seconds)
    attach_adapter(model, folder)
    model.requires_grad_(False)
    return model.eval()
