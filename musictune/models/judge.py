"""A small listener that names families, drums and keys: what generated music is judged by.

It shares nothing with the music model or CLAP: its own network, trained apart. Two towers hear a
clip. One reads log-mel images for who plays; the other reads semitone energies for the key, with
convolutions that wrap around the octave, so that transposing the music shifts its answer by
construction (as in arXiv 1706.02921, without learning each key apart).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.files import system_errors

BUNDLED = Path(__file__).resolve().parent.parent / "bundled" / "judge"
DRUMS = "drums"
_TONICS = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
KEYS = tuple(f"{tonic} {mode}" for mode in ("major", "minor") for tonic in _TONICS)
"""The 24 keys in the order of the judge's answer, spelt as the composer spells them."""

_MEL_WINDOW, _MEL_HOP = 2048, 1280
_PITCH_WINDOW, _PITCH_HOP = 16384, 8192
_LOWEST, _OCTAVES = 36, 6  # MIDI C2; below, semitones are closer than the window resolves
_SHORTEST = 1.0  # seconds; a shorter clip is repeated


@dataclass(frozen=True)
class JudgeConfig:
    """Shape of a :class:`Judge`; the defaults are the bundled one's.

    Attributes:
        families: what may lead or be present, ``drums`` among them.
        sample_rate: Hz of what it hears.
        mels: bands of the log-mel image, in frames of 40 ms.
        range_db: what lies further below the loudest point is not heard.
        channels: of the four stages over the image.
        width: of what is known of a moment, in both towers.
    """

    families: tuple[str, ...]
    sample_rate: int = 32_000
    mels: int = 96
    range_db: float = 80.0
    channels: tuple[int, int, int, int] = (24, 48, 96, 128)
    width: int = 128


@dataclass(frozen=True)
class Heard:
    """What the judge says of a clip.

    Attributes:
        lead: the family that leads, the likeliest.
        leads: probability of each family to lead.
        present: probability of each family to be heard at all.
        key: the likeliest, such as ``A minor``.
        keys: probability of each of `KEYS`.
    """

    lead: str
    leads: dict[str, float]
    present: dict[str, float]
    key: str
    keys: tuple[float, ...]

    @property
    def drums(self) -> bool:
        """Whether drums are more likely there than not."""
        return self.present.get(DRUMS, 0.0) > 0.5


class Judge(nn.Module):
    """Waves to the logits of lead, presence and key."""

    mel_filters: Tensor
    pitch_filters: Tensor

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = config
        first, second, third, fourth = config.channels
        height = -(-config.mels // 16)
        self.image = nn.Sequential(
            _stage(1, first, (2, 1)),
            _stage(first, second, (2, 2)),
            _stage(second, third, (2, 2)),
            _stage(third, fourth, (2, 1)),
            nn.Conv2d(fourth, config.width, (height, 1)),
            nn.ReLU(),
        )
        self.lead = nn.Linear(2 * config.width, len(config.families))
        self.presence = nn.Linear(2 * config.width, len(config.families))
        self.moment = nn.Conv1d(_OCTAVES, 32, 12)
        self.whole = nn.Conv1d(64, 32, 12)
        self.key = nn.Conv1d(32, 2, 12)
        self.register_buffer("mel_filters", _mel_filters(config), persistent=False)
        self.register_buffer("pitch_filters", _pitch_filters(config), persistent=False)

    def features(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """The two inputs in decibels: ``(clips, frames, mels)`` and ``(clips, moments, pitches)``.

        Args:
            wave: ``(clips, samples)`` at the config's rate, a second or longer.
        """
        images = _power(wave, _MEL_WINDOW, _MEL_HOP) @ self.mel_filters
        pitches = _power(wave, _PITCH_WINDOW, _PITCH_HOP) @ self.pitch_filters
        return 10 * images.clamp_min(1e-10).log10(), 10 * pitches.clamp_min(1e-10).log10()

    def forward(self, images: Tensor, pitches: Tensor) -> dict[str, Tensor]:
        """Logits ``lead`` and ``present`` of ``(clips, families)`` and ``key`` of ``(clips, 24)``.

        Args:
            images, pitches: what :meth:`features` gives; levels do not matter, only differences.
        """
        moments = self.image(self._scaled(images).transpose(1, 2)[:, None])[:, :, 0]
        known = torch.cat([moments.mean(-1), moments.amax(-1)], -1)
        return {
            "lead": self.lead(known),
            "present": self.presence(known),
            "key": self._keys(self._scaled(pitches)),
        }

    @torch.inference_mode()
    def hear(self, clips: Sequence[Clip]) -> list[Heard]:
        """What it says of clips of any rate, layout and length, one by one."""
        return [self._hear(clip) for clip in clips]

    def save(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` in half precision."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(self.config), indent=2)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")
        weights = {name: value.half().contiguous() for name, value in self.state_dict().items()}
        with system_errors():
            save_file(weights, folder / "model.safetensors")

    @classmethod
    def load(cls, folder: Path | str | None = None) -> Self:
        """The judge of a folder, the bundled one by default, ready to hear.

        Raises:
            InputError: a file is missing, damaged or does not fit the other.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = BUNDLED if folder is None else Path(folder)
        try:
            fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            judge = cls(_config(fields))
            weights = load_file(folder / "model.safetensors")
            judge.load_state_dict({name: value.float() for name, value in weights.items()})
        except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"judge {folder} cannot be loaded: {reason}; make one: musictune pretrain "
                "--config configs/pretrain_judge.yaml"
            ) from error
        return judge.eval()

    def _hear(self, clip: Clip) -> Heard:
        wave = clip.mono().resample(self.config.sample_rate).wave
        shortest = round(_SHORTEST * self.config.sample_rate)
        if wave.shape[1] < shortest:
            wave = wave.repeat(1, -(-shortest // wave.shape[1]))
        answer = self(*self.features(wave))
        leads, keys = answer["lead"][0].softmax(-1), answer["key"][0].softmax(-1)
        names = self.config.families
        return Heard(
            lead=names[int(leads.argmax())],
            leads=dict(zip(names, leads.tolist(), strict=True)),
            present=dict(zip(names, answer["present"][0].sigmoid().tolist(), strict=True)),
            key=KEYS[int(keys.argmax())],
            keys=tuple(keys.tolist()),
        )

    def _scaled(self, decibels: Tensor) -> Tensor:
        """0 to 1 over the range below the loudest point of each clip."""
        loudest = decibels.amax((1, 2), keepdim=True)
        return ((decibels - loudest) / self.config.range_db + 1).clamp_min(0)

    def _keys(self, pitches: Tensor) -> Tensor:
        clips, count, _ = pitches.shape
        classes = pitches.reshape(clips * count, _OCTAVES, 12)
        moments = F.relu(self.moment(_wrapped(classes))).unflatten(0, (clips, count))
        known = torch.cat([moments.mean(1), moments.amax(1)], 1)
        return self.key(_wrapped(F.relu(self.whole(_wrapped(known))))).flatten(1)


def _config(fields: dict[str, Any]) -> JudgeConfig:
    families, channels = tuple(fields.pop("families")), tuple(fields.pop("channels"))
    return JudgeConfig(families=families, channels=channels, **fields)


def _stage(inside: int, outside: int, stride: tuple[int, int]) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outside),
        nn.ReLU(),
    )


def _wrapped(classes: Tensor) -> Tensor:
    """Pitch classes followed by all but the last once more: a convolution of 12 sees a circle."""
    return torch.cat([classes, classes[..., :11]], -1)


def _power(wave: Tensor, window: int, hop: int) -> Tensor:
    """``(clips, frames, bins)``."""
    shape = torch.hann_window(window, device=wave.device)
    spectrum = torch.stft(wave, window, hop, window=shape, return_complex=True)
    return (spectrum.abs() / (window / 4)).square().transpose(1, 2)


def _mel_filters(config: JudgeConfig) -> Tensor:
    """``(bins, mels)`` triangles on the scale of O'Shaughnessy (1987), each of height 1."""
    hertz = torch.linspace(0, config.sample_rate / 2, _MEL_WINDOW // 2 + 1)

    def mel(frequency: Tensor) -> Tensor:
        return 2595 * torch.log10(1 + frequency / 700)

    ends = mel(torch.tensor([30.0, min(14_000.0, config.sample_rate / 2)]))
    edges = torch.linspace(float(ends[0]), float(ends[1]), config.mels + 2)
    edges = 700 * (10 ** (edges / 2595) - 1)
    # Where mels are narrower than bins, a triangle must still reach one.
    least = config.sample_rate / _MEL_WINDOW
    rise = (hertz[:, None] - edges[1:-1]) / (edges[1:-1] - edges[:-2]).clamp_min(least)
    fall = (edges[1:-1] - hertz[:, None]) / (edges[2:] - edges[1:-1]).clamp_min(least)
    return (1 + torch.minimum(rise, fall).clamp(max=0)).clamp_min(0)


def _pitch_filters(config: JudgeConfig) -> Tensor:
    """``(bins, pitches)`` triangles a semitone wide to either side, or as wide as two bins."""
    spacing = config.sample_rate / _PITCH_WINDOW
    hertz = torch.arange(_PITCH_WINDOW // 2 + 1) * spacing
    centres = 440 * 2 ** ((torch.arange(_LOWEST, _LOWEST + 12 * _OCTAVES) - 69) / 12)
    reach = (centres * (2 ** (1 / 12) - 1)).clamp_min(2 * spacing)
    return (1 - (hertz[:, None] - centres).abs() / reach).clamp_min(0)
