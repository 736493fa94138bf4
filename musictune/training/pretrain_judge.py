"""Training the judge: who plays and in which key, on composed music made worse in many ways.

What it will hear has gone through a codec, so the training clips are blurred in time and
frequency, equalised, and drowned in noise; a share of them can also be sent through a codec.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from musictune import audio, console
from musictune.errors import InputError
from musictune.files import publish_file
from musictune.models.judge import DRUMS, KEYS, Judge, JudgeConfig
from musictune.models.loading import load_model
from musictune.models.musicgen import MusicGen
from musictune.training.pretrain import Corpus, Pretraining, PretrainSettings

Drawn = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
_NO_KEY = -100  # what cross_entropy leaves out
_COMPRESSION = 0.07  # nepers for a decibel: the magnitude to the power 0.6
_BLURRED = 3  # how often a clip that went through the codec is drawn, others once


class JudgePretraining(Pretraining):
    """Learn a :class:`Judge` from the composer's truth.

    Args:
        settings: how long and how fast.
        shape: fields of :class:`JudgeConfig` other than the families.
        batch_size: clips per step.
        seconds: length of a crop; the judge itself hears clips of any length.
        codec: a MusicGen folder (or ``mini``) whose codec blurs a share of the clips.
        codec_share: how many of the clips are also heard through it, and then drawn thrice as
            often as others, as making them is what takes time.
    """

    def __init__(
        self,
        settings: PretrainSettings,
        shape: dict[str, Any] | None = None,
        batch_size: int = 64,
        seconds: float = 6.0,
        codec: str | None = None,
        codec_share: float = 0.1,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.shape = shape or {}
        self.batch_size = batch_size
        self.seconds = seconds
        self.blur = codec
        self.codec_share = codec_share

    def open(self, corpus: Corpus) -> None:
        """Build the judge and hold the features of the whole corpus, in half precision.

        Raises:
            InputError: a clip's truth is missing, or the clips are of different lengths.
        """
        families = sorted({row.get("lead_family", "") for row in corpus.rows} | {DRUMS})
        if "" in families:
            raise InputError(
                f"corpus {corpus.folder} has clips without lead_family; make one: musictune compose"
            )
        torch.manual_seed(self.settings.seed)  # the weights it starts from are part of the recipe
        self.judge = Judge(JudgeConfig(families=tuple(families), **self.shape))
        self._hear(corpus)
        rows = [corpus.rows[i] for i in self.owners]
        self.leads = torch.tensor([families.index(row["lead_family"]) for row in rows])
        present = [{*row["families"], *([DRUMS] if row.get("has_drums") else [])} for row in rows]
        self.present = torch.tensor([[float(f in known) for f in families] for known in present])
        keys = {name: number for number, name in enumerate(KEYS)}
        self.keys = torch.tensor([keys.get(row.get("key", ""), _NO_KEY) for row in rows])

    def batch(self, rng: np.random.Generator) -> Drawn:
        """Crops ``(clips, frames, mels)`` and ``(clips, moments, pitches)``, made worse, and truth.

        The truth is the leading family, the families present and the key.
        """
        chosen = self.drawn[torch.from_numpy(rng.integers(len(self.drawn), size=self.batch_size))]
        images = _crops(self.images, chosen, self.share, rng).float()
        pitches = _crops(self.pitches, chosen, self.share, rng).float()
        images, pitches = _worse(images, rng), _worse(pitches, rng)
        return images, pitches, self.leads[chosen], self.present[chosen], self.keys[chosen]

    def loss(self, batch: Drawn) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy of lead and key, and of each family's presence."""
        images, pitches, leads, present, keys = batch
        answer = {name: value.float() for name, value in self.judge(images, pitches).items()}
        lead = F.cross_entropy(answer["lead"], leads, label_smoothing=0.05)
        there = F.binary_cross_entropy_with_logits(answer["present"], present)
        loss = lead + 4 * there
        figures = {"lead": float((answer["lead"].argmax(-1) == leads).float().mean())}
        known = keys != _NO_KEY
        if known.any():
            loss = loss + 0.5 * F.cross_entropy(answer["key"], keys, ignore_index=_NO_KEY)
            right = answer["key"].argmax(-1) == keys
            figures["key"] = float(right[known].float().mean())
        return loss, figures

    def export(self, folder: Path) -> None:
        """A folder that :meth:`Judge.load` reads."""
        self.judge.save(folder)

    def _hear(self, corpus: Corpus) -> None:
        """Features of every clip, then of those that go through the codec; kept beside it."""
        from safetensors.torch import load_file, save_file

        count = round(self.codec_share * len(corpus.rows)) if self.blur is not None else 0
        rng = np.random.default_rng((self.settings.seed, 1))
        blurred = rng.choice(len(corpus.rows), count, replace=False).tolist()
        model = load_model(self.blur) if self.blur is not None and blurred else None
        cache = corpus.folder / f"judge-{self._cache_key(corpus, blurred, model)}.safetensors"
        if cache.is_file():
            kept = load_file(cache)
            self.images, self.pitches = kept["images"], kept["pitches"]
        else:
            clips = (self._read(corpus, index) for index in range(len(corpus.rows)))
            features = self._features(clips, "listening", len(corpus.rows))
            if model is not None:
                clips = (self._through(model, self._read(corpus, index)) for index in blurred)
                features += self._features(clips, "through the codec", count)
            if len({image.shape for image, _ in features}) > 1:
                raise InputError(
                    f"corpus {corpus.folder} has clips of different lengths; compose one with "
                    "--seconds"
                )
            self.images = torch.stack([image for image, _ in features])
            self.pitches = torch.stack([pitches for _, pitches in features])
            with publish_file(cache) as temporary:
                save_file({"images": self.images, "pitches": self.pitches}, temporary)
        self.owners = [*range(len(corpus.rows)), *blurred]
        places = torch.arange(len(self.owners))
        self.drawn = torch.cat([places, places[len(corpus.rows) :].repeat(_BLURRED - 1)])
        length = float(corpus.rows[0].get("seconds", 0)) or self.seconds
        self.share = min(1.0, self.seconds / length)

    def _cache_key(self, corpus: Corpus, blurred: list[int], model: MusicGen | None) -> str:
        config = self.judge.config
        clips = [(row["file_name"], row.get("seed")) for row in corpus.rows]
        codec = model.codec_key if model is not None else ""
        known = (clips, blurred, codec, config.sample_rate, config.mels)
        return hashlib.sha256(repr(known).encode()).hexdigest()[:16]

    @torch.inference_mode()
    def _features(
        self, clips: Iterator[audio.Clip], what: str, count: int
    ) -> list[tuple[Tensor, Tensor]]:
        made = []
        for clip in console.track(clips, what, count):
            image, pitches = self.judge.features(clip.wave)
            made.append((image[0].half(), pitches[0].half()))
        return made

    def _read(self, corpus: Corpus, index: int) -> audio.Clip:
        return audio.read(corpus.path(index)).mono().resample(self.judge.config.sample_rate)

    def _through(self, model: MusicGen, clip: audio.Clip) -> audio.Clip:
        (made,) = model.decode(model.encode([clip]))
        wave = made.mono().resample(clip.sample_rate).wave
        wave = F.pad(wave, (0, max(clip.samples - wave.shape[1], 0)))
        return audio.Clip(wave[:, : clip.samples], clip.sample_rate)


def _crops(features: Tensor, chosen: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """A stretch of each chosen clip, ``share`` of its length."""
    total = features.shape[1]
    count = max(1, round(share * total))
    starts = rng.integers(total - count + 1, size=len(chosen))
    return torch.stack(
        [features[i, s : s + count] for i, s in zip(chosen.tolist(), starts.tolist(), strict=True)]
    )


def _worse(decibels: Tensor, rng: np.random.Generator) -> Tensor:
    """Each clip equalised, blurred, over a noise floor, or left as it is, by chance.

    Args:
        decibels: ``(clips, frames, bands)``.
    """
    clips, frames, bands = decibels.shape

    def drawn(low: float, high: float, share: float) -> Tensor:
        """A number for each clip, 0 for those spared."""
        values = rng.uniform(low, high, (clips, 1, 1)) * (rng.random((clips, 1, 1)) < share)
        return torch.from_numpy(values.astype(np.float32))

    knots = torch.from_numpy(rng.normal(0, 5, (clips, 1, 6)).astype(np.float32))
    curve = F.interpolate(knots * drawn(1, 1, 0.6), bands, mode="linear", align_corners=True)
    # Magnitudes compressed as a codec's loss hears them: what it blurs, it averages there.
    level = ((decibels + curve) * _COMPRESSION).exp()
    for axis in (1, 2):
        smooth = (level + level.roll(1, axis) + level.roll(-1, axis)) / 3
        level = torch.lerp(level, smooth, drawn(0, 1, 0.5))
    rough = torch.from_numpy(rng.standard_normal((clips, frames, bands), dtype=np.float32))
    under = drawn(25, 75, 1) + drawn(30, 30, 0.4)
    floor = level.amax((1, 2), keepdim=True) * (-under * _COMPRESSION).exp()
    level = level * (1 + drawn(0, 0.2, 0.5) * rough).clamp_min(0.1)
    return (level + floor * (1 + 0.2 * rough).clamp_min(0.1)).log() / _COMPRESSION
