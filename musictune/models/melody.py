"""MusicGen that follows a melody (Copet et al. 2023, arXiv 2306.05284), over transformers.

Such a decoder has no cross-attention: chroma of the melody and states of the text stand before the
codec tokens in one sequence. Each clip's prefix is what transformers builds for that clip alone:
where texts of a batch differ in length, the padding is neither attended to nor counted as
positions (transformers does both), so a clip does not depend on its neighbours.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.files import system_errors
from musictune.models import checkpoint
from musictune.models.base import Batch
from musictune.models.chroma import ChromaSettings, check_melody, extract_chroma
from musictune.models.musicgen import MusicGen

Melodies = Sequence[Clip | None]
"""One melody per text; None where there is none to follow."""


class MusicGenMelody(MusicGen):
    """A MusicGen whose decoder reads melody and text as the beginning of its sequence.

    Attributes:
        chroma: how it listens.
        chroma_length: frames of chroma in each prefix; shorter melodies are repeated, longer cut.
    """

    kind: ClassVar[str] = "musicgen_melody"

    def __init__(
        self,
        network: Any,
        tokenizer: Any,
        base: str,
        chroma: ChromaSettings = ChromaSettings(),
    ) -> None:
        super().__init__(network, tokenizer, base)
        self.chroma = chroma
        self.chroma_length: int = network.config.chroma_length
        _let_mask_count(self.backbone.model.decoder)

    @classmethod
    def load(cls, base: str | Path, device: str = "cpu", dtype: torch.dtype | None = None) -> Self:
        """As :meth:`MusicGen.load`, with how it listens."""
        model = super().load(base, device, dtype)
        model.chroma = ChromaSettings.from_transformers(checkpoint.read_preprocessor(str(base)))
        bins = model.network.config.num_chroma
        if model.chroma.bins != bins:
            raise InputError(
                f"base {base}: {bins} pitch classes in config.json, {model.chroma.bins} in "
                "preprocessor_config.json; they must be equal"
            )
        return model

    @classmethod
    def toy(cls, channels: int = 1) -> Self:
        """About 27k random weights, always the same ones: 16 kHz, 50 frames per second."""
        from musictune.models.toy import toy_melody_network, toy_tokenizer

        tokenizer = toy_tokenizer()
        network = toy_melody_network(len(tokenizer), channels)
        listening = ChromaSettings(sample_rate=16_000, window=4_096, hop=2_048, seconds=2)
        return cls(network, tokenizer, "toy", listening)

    def save(self, folder: Path | str) -> None:
        """Write a folder that plain transformers loads (safetensors)."""
        super().save(folder)
        with system_errors():
            self.chroma.save(Path(folder))

    # --- what the decoder reads first ---

    def condition(
        self, texts: Sequence[str], melodies: Melodies | None = None
    ) -> tuple[Tensor, Tensor]:
        """What stands before the codec tokens: ``(texts, prefix, width)`` and its mask.

        ``prefix`` is ``chroma_length`` frames of melody and then the tokens of the longest text.
        An empty text is zero states of as many tokens as an empty text has; without a melody, each
        frame is a C, as transformers and audiocraft have it. The mask is 0 on padding only.

        Raises:
            InputError: a melody that is silent or too short.
        """
        states, said = super().condition(texts)
        empty = len(self.tokenizer("").input_ids)
        length = said.sum(1, keepdim=True).clamp_min(empty)
        present = torch.arange(said.shape[1], device=said.device) < length
        heard = self._heard(_one_each(texts, melodies), states.dtype)
        mask = F.pad(present.to(said.dtype), (self.chroma_length, 0), value=1)
        return torch.cat([heard, states], 1), mask

    def prefix(
        self, texts: Sequence[str], melodies: Melodies | None = None, guided: bool = True
    ) -> tuple[Tensor, Tensor]:
        """The rows to put before the codec tokens of each clip, and their mask.

        The null half of guidance has no text (zeros of the same length) and no melody (each frame
        a C). It is attended to like any other prefix, so its mask is that of the prompted half.

        Args:
            texts: one prompt per clip.
            melodies: one per clip; None is none for all.
            guided: add the null half behind the prompted one.

        Returns:
            ``(rows, prefix, width)`` and ``(rows, prefix)``, where ``rows`` is the number of clips,
            twice if ``guided``. Row ``r`` has ``n = mask[r].sum()`` real positions, the first ones;
            they are numbered 0 to n - 1 and the first codec column (the start) is number n.

        Raises:
            InputError: as :meth:`condition`.
        """
        states, mask = self.condition(texts, melodies)
        if not guided:
            return states, mask
        null = torch.zeros_like(states)
        null[:, : self.chroma_length] = self._heard([None], states.dtype)
        return torch.cat([states, null]), torch.cat([mask, mask])

    def _heard(self, melodies: Melodies, dtype: torch.dtype) -> Tensor:
        """States of the melodies, ``(melodies, chroma_length, width)``."""
        rows = self._features(melodies).to(dtype)
        project = getattr(self.network, "audio_enc_to_dec_proj", None)
        return project(rows) if project is not None else rows

    def _features(self, melodies: Melodies) -> Tensor:
        """Chroma ``(melodies, chroma_length, bins)`` on the model's device."""
        rows = []
        for melody in melodies:
            if melody is None:
                row = F.one_hot(torch.zeros(1, dtype=torch.int64), self.chroma.bins).float()
            else:
                check_melody(melody, self.chroma)
                row = extract_chroma(melody, self.chroma)
            times = math.ceil(self.chroma_length / len(row))
            rows.append(row.repeat(times, 1)[: self.chroma_length])
        return torch.stack(rows).to(self.device)

    # --- sampling, the plain path ---

    def rollout(
        self,
        prompts: Sequence[str],
        seconds: float,
        seed: int,
        melodies: Melodies | None = None,
    ) -> tuple[Batch, list[Clip]]:
        """Sample with transformers' ``generate``, one clip after the other: top-k 250, guidance 3.

        Raises:
            InputError: a melody that is silent or too short.
        """
        inputs, prefixes = [], []
        for prompt, melody in zip(prompts, _one_each(prompts, melodies), strict=True):
            ids, mask = self.tokens([prompt])
            features = self._features([melody]).to(self.network.dtype)
            inputs.append({"input_ids": ids, "attention_mask": mask, "input_features": features})
            with torch.no_grad():
                prefixes.append(self.prefix([prompt], [melody])[0])
        with _heeded(self.backbone, iter(prefixes)):
            return self._generated(prompts, seconds, seed, inputs)


def _one_each(texts: Sequence[str], melodies: Melodies | None) -> Melodies:
    if melodies is None:
        return [None] * len(texts)
    if len(melodies) != len(texts):
        raise InputError(f"{len(melodies)} melodies for {len(texts)} texts; give one each")
    return melodies


@contextlib.contextmanager
def _heeded(backbone: nn.Module, prefixes: Iterator[Tensor]) -> Iterator[None]:
    """Give each new sequence its prefix where ``generate`` drops it, as transformers 5.17 does."""

    def begin(
        decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        cache = kwargs.get("past_key_values")
        if cache is None or cache.get_seq_length() == 0:
            own = next(prefixes).to(decoder.dtype)
            if kwargs.get("encoder_hidden_states") is None:
                kwargs["encoder_hidden_states"] = own
        return args, kwargs

    handle = backbone.register_forward_pre_hook(begin, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _let_mask_count(decoder: nn.Module) -> None:
    """Number positions by what a given mask lets through, as if there were no padding.

    Without a mask nothing changes. Positions are sinusoids of the place in the sequence, and
    transformers counts padding.
    """
    if _note_mask in decoder._forward_pre_hooks.values():
        return  # a copy of a decoder brings its hooks along
    decoder.register_forward_pre_hook(_note_mask, with_kwargs=True)
    decoder.embed_positions.register_forward_hook(_place)


def _note_mask(decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    ids, prefix = kwargs.get("input_ids"), kwargs.get("encoder_hidden_states")
    columns = kwargs["inputs_embeds"].shape[1] if ids is None else ids.shape[-1]
    mask = kwargs.get("attention_mask")
    if prefix is not None:
        before = kwargs.get("encoder_attention_mask")
        if before is None and mask is None:
            return
        if before is None:
            before = prefix.new_ones(prefix.shape[:2])
        if mask is None:
            mask = before.new_ones(len(before), columns)
        mask = torch.cat([before, mask.to(before.dtype)], 1)
        columns += prefix.shape[1]
    if mask is not None:
        places = (mask.long().cumsum(1) - 1).clamp_min(0)
        decoder.embed_positions.places = places[:, -columns:]


def _place(positions: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
    places = positions.__dict__.pop("places", None)
    return output if places is None else positions.weights[places]
