"""MusicGen (Copet et al. 2023, arXiv 2306.05284) over transformers, mono and stereo.

The network is transformers' own. What it lacks for tuning is here: the delay pattern of the
codebooks with its mask, and a loss per clip.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import MusicgenForConditionalGeneration

from musictune.audio import Clip
from musictune.console import quiet_transformers
from musictune.data.concepts import Concept, expand
from musictune.errors import InputError
from musictune.files import system_errors
from musictune.kernels.codebook_loss import codebook_loss
from musictune.models import checkpoint
from musictune.models.base import Batch, MusicModel
from musictune.models.devices import find_device
from musictune.models.heads import plain_heads


class MusicGen(MusicModel):
    """A text encoder, a neural codec and a decoder over the codec's tokens.

    Attributes:
        network: transformers' model, whole.
        tokenizer: the text encoder's tokenizer.
        concepts: concepts whose identifier tokens the tokenizer knows; prompts that name one are
            rewritten to those tokens.
        frame_rate: codec frames per second.
        codebooks: rows of ``Batch.codes``; a stereo decoder has left and right interleaved.
        channels: 1 or 2.
    """

    kind: ClassVar[str] = "musicgen"
    """``model_type`` in the ``config.json`` of the bases that this class loads."""

    targets = r"self_attn\.(q|k|v|out)_proj$"

    def __init__(
        self, network: MusicgenForConditionalGeneration, tokenizer: Any, base: str
    ) -> None:
        super().__init__()
        codec, decoder = network.config.audio_encoder, network.config.decoder
        if getattr(codec, "chunk_length_s", None) or getattr(codec, "normalize", False):
            raise InputError(
                f"base {base}: its codec cuts or normalises audio by itself, which MusicGen's "
                "decoder cannot follow; use a base with a plain codec such as encodec_32khz"
            )
        self.network = network
        self.tokenizer = tokenizer
        self.base = base
        self.concepts: list[Concept] = []
        self.sample_rate: int = codec.sampling_rate
        self.frame_rate: float = float(codec.frame_rate)
        self.codebooks: int = decoder.num_codebooks
        self.channels: int = decoder.audio_channels
        self.vocabulary: int = decoder.vocab_size
        self.pad: int = decoder.pad_token_id
        self.max_seconds: float = (
            network.generation_config.max_length or decoder.max_position_embeddings
        ) / self.frame_rate
        self.train(False)

    @classmethod
    def load(cls, base: str | Path, device: str = "cpu", dtype: torch.dtype | None = None) -> Self:
        """Load a base from safetensors; nothing is unpickled and no code of the base is run.

        Args:
            base: ``mini``, a local transformers folder, or a Hugging Face id.
            device: ``cpu``, ``cuda``, or ``auto``: CUDA where there is one.
            dtype: of the weights; float32 if None, whatever the files hold.

        Raises:
            InputError: unknown base or device, or files that are missing, corrupt or incomplete.
        """
        target = find_device(device)
        network, tokenizer = checkpoint.read(str(base), dtype or torch.float32, cls.kind)
        model = cls(network, tokenizer, str(base))
        model.concepts = checkpoint.read_concepts(str(base))
        return model.to(target)

    @classmethod
    def toy(cls, channels: int = 1) -> Self:
        """About 20k random weights, always the same ones: 16 kHz, 50 frames per second."""
        from musictune.models.toy import toy_network, toy_tokenizer

        tokenizer = toy_tokenizer()
        return cls(toy_network(len(tokenizer), channels), tokenizer, "toy")

    def save(self, folder: Path | str) -> None:
        """Write a folder that plain transformers loads (safetensors)."""
        with quiet_transformers(), system_errors():
            self.network.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if self.concepts:
            checkpoint.write_concepts(self.concepts, Path(folder))

    @property
    def backbone(self) -> nn.Module:
        """The decoder over codec tokens, with its heads."""
        return self.network.decoder

    @property
    def text_encoder(self) -> nn.Module:
        """The T5 encoder."""
        return self.network.text_encoder

    def half_backbone(self) -> None:
        """As in the base class; text states follow on every way into the decoder."""
        super().half_backbone()
        if _half_states not in self.backbone._forward_pre_hooks.values():
            self.backbone.register_forward_pre_hook(_half_states, with_kwargs=True)

    @property
    def device(self) -> torch.device:
        """Where the decoder's weights are."""
        return next(self.network.decoder.parameters()).device

    @functools.cached_property
    def codec_key(self) -> str:
        """Short hash of the codec's configuration and weights: tokens of equal keys are equal."""
        config = self.network.config.audio_encoder.to_dict()
        for incidental in ("transformers_version", "_name_or_path", "dtype", "architectures"):
            config.pop(incidental, None)
        digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
        for name, weight in sorted(self.network.audio_encoder.state_dict().items()):
            digest.update(name.encode())
            digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def train(self, mode: bool = True) -> Self:
        """Set the decoder's mode. Dropout in the text encoder and codec would only be noise."""
        super().train(mode)
        self.network.text_encoder.eval()
        self.network.audio_encoder.eval()
        return self

    def frames(self, seconds: float) -> int:
        """Codec frames of ``seconds`` of music, at least 1."""
        return max(1, round(seconds * self.frame_rate))

    # --- audio to tokens and back ---

    @torch.no_grad()
    def encode(self, clips: Sequence[Clip]) -> Batch:
        """Clips of any rate, length and channel count to codes, padded at the end to the longest.

        Each clip is coded alone, so its codes depend on nothing else.
        """
        rows = [self._encode_one(clip) for clip in clips]
        lengths = torch.tensor([row.shape[-1] for row in rows])
        longest = int(lengths.max())
        codes = torch.stack([F.pad(row, (0, longest - row.shape[-1])) for row in rows])
        return Batch(codes, lengths.to(codes.device), tuple(clip.caption for clip in clips))

    def _encode_one(self, clip: Clip) -> Tensor:
        clip = clip.resample(self.sample_rate)
        if clip.channels != self.channels:
            clip = clip.mono()
        wave = clip.wave.to(self.device, self.network.audio_encoder.dtype)
        sides = wave.expand(self.channels, -1)[:, None]
        codes = [self.network.audio_encoder.encode(side[None]).audio_codes[0, 0] for side in sides]
        # (channels, codebooks, frames) interleaved to L1 R1 L2 R2 ...
        return torch.stack(codes, 1).flatten(0, 1)

    @torch.no_grad()
    def decode(self, batch: Batch) -> list[Clip]:
        """Codes to clips of their own lengths, with the batch's texts as captions."""
        clips = []
        codes = batch.codes.to(self.device)
        for row, length, text in zip(codes, batch.lengths.tolist(), batch.texts, strict=True):
            sides = row[:, :length].unflatten(0, (-1, self.channels)).transpose(0, 1)
            waves = [
                self.network.audio_encoder.decode(side[None, None], [None]).audio_values[0, 0]
                for side in sides
            ]
            clips.append(self._clip(torch.stack(waves), text))
        return clips

    def _clip(self, wave: Tensor, text: str) -> Clip:
        # A codec may overshoot full scale; Clip then turns all of it down, without distortion.
        return Clip(wave, self.sample_rate, caption=text, source=f"{self.base}: {text}")

    # --- the loss ---

    def delay(self, codes: Tensor, lengths: Tensor, pad: int) -> tuple[Tensor, Tensor, Tensor]:
        """MusicGen's delay pattern: codebook k is shifted k frames later, behind a start column.

        The two sides of a stereo pair share their delay.

        Args:
            codes: ``(clips, codebooks, frames)``.
            lengths: ``(clips,)`` valid frames.
            pad: the id that stands for start and padding.

        Returns:
            Inputs, targets and the mask of valid targets, each ``(clips, codebooks, steps)`` with
            ``steps = frames + codebooks / channels - 1``.
        """
        delays = torch.arange(self.codebooks, device=codes.device) // self.channels
        steps = codes.shape[-1] + self.codebooks // self.channels - 1
        frame = torch.arange(steps, device=codes.device) - delays[:, None]
        mask = (frame >= 0) & (frame < lengths[:, None, None])
        index = frame.clamp(0, codes.shape[-1] - 1).expand(len(codes), -1, -1)
        targets = codes.gather(-1, index).masked_fill(~mask, pad)
        return F.pad(targets, (1, 0), value=pad)[..., :-1], targets, mask

    def nll(self, batch: Batch) -> Tensor:
        """Cross-entropy ``(clips,)`` in nats per token: mean over frames, then over codebooks.

        Equals transformers' own loss on delayed labels where all clips are equally long.
        """
        batch = batch.to(self.device)
        inputs, targets, mask = self.delay(batch.codes, batch.lengths, self.pad)
        states, heard = self.condition(batch.texts)
        given = {
            "input_ids": inputs.flatten(0, 1),
            "encoder_hidden_states": states,
            "encoder_attention_mask": heard,
            "use_cache": False,
        }
        steps = inputs.shape[-1]  # what stands before the codes has no targets
        if (heads := plain_heads(self.backbone, _half_states)) is not None:
            if _half_states in self.backbone._forward_pre_hooks.values():
                _half_states(self.backbone, (), given)
            hidden = self.network.decoder.model(**given).last_hidden_state
            return codebook_loss(hidden[:, -steps:], heads, targets, mask)
        logits = self.backbone(**given).logits[:, -steps:]
        # Half precision would lose the small differences that tuning makes.
        each = F.cross_entropy(
            logits.float().transpose(1, 2),
            targets.masked_fill(~mask, 0).flatten(0, 1),
            reduction="none",
        ).view_as(targets)
        total = torch.where(mask, each, 0.0).sum((1, 2))
        return total / (batch.lengths * self.codebooks)

    # --- the text ---

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask, ``(texts, tokens)``; the mask of an empty text is all zero."""
        expanded = [expand(text, self.concepts) for text in texts]
        ids = self.tokenizer(expanded, padding=True, truncation=True, return_tensors="pt")
        said = torch.tensor([bool(text.strip()) for text in texts])
        mask = ids["attention_mask"] * said[:, None]
        return ids["input_ids"].to(self.device), mask.to(self.device)

    def condition(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """What the decoder attends to: states ``(texts, tokens, width)`` and their mask.

        An empty text gives zero states and a zero mask, the null condition of classifier-free
        guidance. Gradients reach the text encoder only if something in it is trained.
        """
        ids, mask = self.tokens(texts)
        encoder = self.network.text_encoder
        trained = any(weight.requires_grad for weight in encoder.parameters())
        with contextlib.nullcontext() if trained else torch.no_grad():
            states = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        if hasattr(self.network, "enc_to_dec_proj"):
            states = self.network.enc_to_dec_proj(states)
        return states * mask[..., None], mask

    # --- sampling, the plain path ---

    def rollout(
        self, prompts: Sequence[str], seconds: float, seed: int
    ) -> tuple[Batch, list[Clip]]:
        """Sample with transformers' ``generate``: top-k 250, guidance 3.

        :class:`musictune.generation.Engine` does the same with a seed per clip and all options.
        """
        ids, mask = self.tokens(prompts)
        return self._generated(prompts, seconds, seed, [{"input_ids": ids, "attention_mask": mask}])

    def _generated(
        self,
        prompts: Sequence[str],
        seconds: float,
        seed: int,
        inputs: Iterable[dict[str, Tensor]],
    ) -> tuple[Batch, list[Clip]]:
        """What ``generate`` makes of each of ``inputs``, which together are all the prompts."""
        frames, delay = self.frames(seconds), self.codebooks // self.channels
        # generate() drops its delay pattern for music shorter than the delays: make more and cut.
        steps = max(frames, delay) + delay - 1
        cuda = [self.device] if self.device.type == "cuda" else []
        was_training = self.training
        rows: list[Tensor] = []
        waves: list[Tensor] = []
        with torch.random.fork_rng(cuda):
            torch.manual_seed(seed)
            self.eval()
            try:
                for part in inputs:
                    with _spied(self.network.audio_encoder) as decoded:
                        waves += self.network.generate(
                            **part,
                            do_sample=True,
                            temperature=1.0,
                            top_k=250,
                            guidance_scale=3.0,
                            max_new_tokens=steps,
                        )
                    rows.append(torch.stack(decoded, 2).flatten(1, 2))
            finally:
                self.train(was_training)
        codes = torch.cat(rows)[..., :frames]
        samples = math.ceil(frames / self.frame_rate * self.sample_rate)
        lengths = torch.full((len(prompts),), frames, device=codes.device)
        clips = [
            self._clip(wave[:, :samples], text) for wave, text in zip(waves, prompts, strict=True)
        ]
        return Batch(codes, lengths, tuple(prompts)), clips


def _half_states(
    decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Text states in the dtype of the decoder's own weights."""
    states = kwargs.get("encoder_hidden_states")
    if states is not None:
        kwargs["encoder_hidden_states"] = states.to(decoder.dtype)
    return args, kwargs


@contextlib.contextmanager
def _spied(codec: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the codes ``(clips, codebooks, frames)`` of every call of ``codec.decode``."""
    calls: list[Tensor] = []
    original: Callable[..., Any] = codec.decode

    def decode(audio_codes: Tensor, *rest: Any, **options: Any) -> Any:
        calls.append(audio_codes[0])
        return original(audio_codes, *rest, **options)

    codec.decode = decode  # type: ignore[assignment]
    try:
        yield calls
    finally:
        del codec.decode
