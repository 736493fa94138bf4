"""A learned reward that hears clips: frozen features under an ensemble of Bradley-Terry scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.methods.storage import load_json, load_tensors, save_json, save_tensors
from musictune.metrics.base import Listener
from musictune.models.base import MusicModel
from musictune.training.feature_reward import (
    FeatureReward,
    RewardReport,
    RewardSettings,
    train_reward,
)
from musictune.training.reward_features import ClipFeatures, build_features

__all__ = ["FeatureReward", "LearnedReward", "RewardReport", "RewardSettings", "train_reward"]

SCHEMA = 1
_CONFIG, _WEIGHTS = "reward.json", "model.safetensors"


@dataclass(frozen=True)
class LearnedReward:
    """Reward: what listeners of past comparisons would prefer.

    Attributes:
        features: how clips become rows.
        head: how rows become values.
        about: what else ``reward.json`` says, such as the ``embedder`` and ``base`` to load.
    """

    features: ClipFeatures
    head: FeatureReward
    about: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, clips: Sequence[Clip]) -> Tensor:
        """``(clips,)`` float32, in standard deviations of the clips learned from.

        A clip's caption is taken for the prompt it was made for.
        """
        return self.each(clips)["reward"]

    def each(self, clips: Sequence[Clip]) -> dict[str, Tensor]:
        """``reward``, and the ``mean`` and ``spread`` of the members behind it, ``(clips,)``."""
        if not clips:
            return {name: torch.empty(0) for name in ("reward", "mean", "spread")}
        return self.head.each(torch.stack([self.features.hear(clip) for clip in clips]))

    def save(self, folder: Path) -> None:
        """Write ``reward.json`` and ``model.safetensors`` into an existing folder.

        Raises:
            OSError: it cannot be written.
        """
        head = self.head
        content = {
            **self.about,
            "schema": SCHEMA,
            "features": self.features.kind,
            "keys": self.features.keys,
            "numbers": {
                "caution": head.caution, "mean": head.mean, "deviation": head.deviation,
            },
        }  # fmt: skip
        kept = {f"head.{name}": value for name, value in head.tensors().items()}
        kept |= {f"features.{name}": value for name, value in self.features.tensors().items()}
        save_tensors(kept, folder / _WEIGHTS)
        save_json(content, folder / _CONFIG)

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        embedder: Listener | None = None,
        model: MusicModel | None = None,
    ) -> Self:
        """Read what `save` wrote; nothing is unpickled.

        Args:
            folder: of `musictune reward`.
            embedder: needed by features ``clap`` and ``both``; see :func:`reward_needs`.
            model: needed by all features but ``clap``; ``states`` and ``both`` must have one of
                their own, untouched by what is being tuned.

        Raises:
            InputError: no such folder, a damaged or newer one, or an embedder or codec other than
                the one it has learned with.
        """
        config = _config(folder)
        tensors = load_tensors(folder / _WEIGHTS)
        features = build_features(
            config["features"], embedder, model, tensors.get("features.tables")
        )
        for part, key in config["keys"].items():
            if features.keys.get(part) != key:
                option = {"codec": "base", "language": "base"}.get(part, part)
                raise InputError(
                    f"reward {folder} has learned with the {part} {key} "
                    f"({config.get(option, 'unnamed')}), not {features.keys.get(part)}; give it "
                    "that one or learn it again"
                )
        head = {
            name.removeprefix("head."): value
            for name, value in tensors.items()
            if name.startswith("head.")
        }
        try:
            built = FeatureReward.of(head, config["numbers"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"reward {folder} is damaged ({error}); learn it again") from error
        own = ("schema", "features", "keys", "numbers")
        about = {name: value for name, value in config.items() if name not in own}
        return cls(features, built, about)


def reward_needs(folder: Path) -> tuple[str | None, str | None]:
    """The embedder and the base, as named when it learned, that a saved reward hears with.

    None for what it does not need; an empty name stands for the bundled embedder.

    Raises:
        InputError: no such folder, or a damaged or newer one.
    """
    config = _config(folder)
    keys = config["keys"]
    embedder = str(config.get("embedder") or "") if "embedder" in keys else None
    return embedder, str(config.get("base") or "mini") if "codec" in keys else None


def _config(folder: Path) -> dict[str, Any]:
    if not (folder / _CONFIG).is_file():
        raise InputError(
            f"reward {folder} has no {_CONFIG}; name a folder made by `musictune reward`"
        )
    config = load_json(folder / _CONFIG)
    if config.get("schema") != SCHEMA:
        raise InputError(
            f"reward {folder} has schema {config.get('schema')!r}, not {SCHEMA}; learn it again"
        )
    shapes = {"features": str, "keys": dict, "numbers": dict}
    if wrong := [name for name, kind in shapes.items() if not isinstance(config.get(name), kind)]:
        raise InputError(f"reward {folder} is damaged (no {wrong[0]}); learn it again")
    return config
