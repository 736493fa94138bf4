"""The bundled codec: tokens carry the magnitude spectrum, Griffin-Lim finds a phase for it.

A frame-level codec in the manner of Vocos (arXiv 2306.00814), except that only magnitudes are
coded: at a few minutes of training on two cores, magnitude alone keeps pitch where magnitude and
phase together lose it. Two spectral frames make one token frame; a residual vector quantiser
(arXiv 2107.03312) gives each ``num_quantizers`` tokens. Latents are principal components of the
spectrum plus what a network adds to them, and back the same way: the linear part carries the fine
structure that a small network alone would blur.

It answers ``encode`` and ``decode`` with the output types of transformers' EnCodec, so that
``MusicgenForConditionalGeneration`` can use either.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.models.encodec.modeling_encodec import (
    EncodecDecoderOutput,
    EncodecEncoderOutput,
    EncodecOutput,
)


class SpectralCodecConfig(PretrainedConfig):
    """Shape of a :class:`SpectralCodec`; the defaults are the bundled one's."""

    model_type = "musictune_spectral_codec"

    def __init__(
        self,
        sampling_rate: int = 32000,
        audio_channels: int = 1,
        window_length: int = 2048,
        hop_length: int = 640,
        stride: int = 2,
        hidden_size: int = 256,
        encoder_layers: tuple[int, int] | list[int] = (1, 3),
        decoder_layers: tuple[int, int] | list[int] = (4, 2),
        expansion: int = 3,
        latent_size: int = 128,
        num_quantizers: int = 4,
        codebook_size: int = 1024,
        compression: float = 0.3,
        griffin_lim_iterations: int = 32,
        **kwargs: object,
    ) -> None:
        self.sampling_rate = sampling_rate
        self.audio_channels = audio_channels
        self.window_length = window_length
        self.hop_length = hop_length
        self.stride = stride
        self.hidden_size = hidden_size
        self.encoder_layers = list(encoder_layers)
        self.decoder_layers = list(decoder_layers)
        self.expansion = expansion
        self.latent_size = latent_size
        self.num_quantizers = num_quantizers
        self.codebook_size = codebook_size
        self.compression = compression
        self.griffin_lim_iterations = griffin_lim_iterations
        super().__init__(**kwargs)

    @property
    def frame_rate(self) -> float:
        """Token frames per second, as MusicGen's generation asks for it."""
        return self.sampling_rate / self.samples_per_token

    @property
    def samples_per_token(self) -> int:
        """Audio samples behind one token frame."""
        return self.hop_length * self.stride

    @property
    def bins(self) -> int:
        """Frequency bins of the spectrum."""
        return self.window_length // 2 + 1


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution over time, then a per-frame bottleneck (arXiv 2201.03545)."""

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, kernel_size=7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, width * expansion)
        self.project = nn.Linear(width * expansion, width)
        self.scale = nn.Parameter(torch.full((width,), 0.2))

    def forward(self, x: Tensor) -> Tensor:
        """``(clips, frames, width)`` to the same."""
        y = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        return x + self.scale * self.project(F.gelu(self.expand(self.norm(y))))


class SpectralCodec(PreTrainedModel):
    """Audio to tokens and back."""

    config_class = SpectralCodecConfig
    base_model_prefix = "spectral_codec"
    main_input_name = "input_values"

    def __init__(self, config: SpectralCodecConfig) -> None:
        super().__init__(config)
        width, stride = config.hidden_size, config.stride

        def blocks(count: int) -> nn.Sequential:
            return nn.Sequential(*(ConvNeXtBlock(width, config.expansion) for _ in range(count)))

        self.analyse = nn.Linear(config.bins * stride, config.latent_size)
        self.read = nn.Linear(config.bins, width)
        self.encode_fine = blocks(config.encoder_layers[0])
        self.gather = nn.Linear(width * stride, width)
        self.encode_coarse = blocks(config.encoder_layers[1])
        self.to_latent = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, config.latent_size))
        self.codebooks = nn.Parameter(
            torch.randn(config.num_quantizers, config.codebook_size, config.latent_size)
        )
        self.synthesise = nn.Linear(config.latent_size, config.bins * stride)
        self.from_latent = nn.Linear(config.latent_size, width)
        self.decode_coarse = blocks(config.decoder_layers[0])
        self.spread = nn.Linear(width, width * stride)
        self.decode_fine = blocks(config.decoder_layers[1])
        self.write = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, config.bins))
        self.post_init()

    # --- the three stages, each usable alone (training uses them apart) ---

    def spectrum(self, wave: Tensor) -> Tensor:
        """``(clips, samples)`` to compressed magnitudes ``(clips, frames, bins)``.

        ``frames`` is ``stride`` times the token frames; a partial last one is padded with silence.
        """
        samples = self.config.samples_per_token
        wave = F.pad(wave.float(), (0, -wave.shape[-1] % samples))
        frames = wave.shape[-1] // self.config.hop_length
        stft = torch.stft(
            wave,
            self.config.window_length,
            self.config.hop_length,
            window=self._window(wave.device),
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        return stft.abs().transpose(1, 2)[:, :frames] ** self.config.compression

    def latents(self, spectrum: Tensor) -> Tensor:
        """Compressed magnitudes to latents ``(clips, token frames, latent_size)``."""
        x = self.encode_fine(self.read(spectrum))
        x = self.gather(x.unflatten(1, (-1, self.config.stride)).flatten(2))
        linear = self.analyse(spectrum.unflatten(1, (-1, self.config.stride)).flatten(2))
        return linear + self.to_latent(self.encode_coarse(x))

    def reconstruct(self, latents: Tensor) -> Tensor:
        """Latents to compressed magnitudes ``(clips, frames, bins)``, at least 0."""
        x = self.spread(self.decode_coarse(self.from_latent(latents)))
        x = x.unflatten(2, (self.config.stride, -1)).flatten(1, 2)
        linear = self.synthesise(latents).unflatten(2, (self.config.stride, -1)).flatten(1, 2)
        return F.relu(linear + self.write(self.decode_fine(x)))

    def quantise(self, latents: Tensor) -> Tensor:
        """Latents to codes ``(clips, codebooks, token frames)``, each level coding the rest."""
        codes = []
        for book in self.codebooks.to(latents.dtype):
            # |r - b|^2 without the term that all entries share.
            nearest = (latents @ book.T - book.square().sum(-1) / 2).argmax(-1)
            latents = latents - book[nearest]
            codes.append(nearest)
        return torch.stack(codes, 1)

    def dequantise(self, codes: Tensor) -> Tensor:
        """Codes to latents."""
        return sum(book[level] for book, level in zip(self.codebooks, codes.unbind(1), strict=True))

    def waveform(self, spectrum: Tensor, begun: Tensor | None = None, held: int = 0) -> Tensor:
        """Compressed magnitudes to audio ``(clips, samples)`` by fast Griffin-Lim.

        Perraudin et al. 2013 with momentum 0.99. The start phase is that of a fixed seed: the same
        tokens always give the same bytes.

        Args:
            spectrum: ``(clips, frames, bins)``.
            begun: ``(clips, samples)`` audio of the beginning; its frames start from its phase.
            held: of its first samples, how many stay as they are, so that what follows continues
                them. The few just after them may still step: fade there.
        """
        magnitude = spectrum.float().transpose(1, 2) ** (1 / self.config.compression)
        # The frame at the very end, which `spectrum` drops, is silence.
        magnitude = F.pad(magnitude, (0, 1))
        samples = (magnitude.shape[-1] - 1) * self.config.hop_length
        settings = {
            "n_fft": self.config.window_length,
            "hop_length": self.config.hop_length,
            "window": self._window(spectrum.device),
            "center": True,
        }
        generator = torch.Generator().manual_seed(0)
        angle = torch.rand(magnitude.shape[1:], generator=generator) * (2 * torch.pi)
        phase = torch.polar(torch.ones_like(angle), angle).to(spectrum.device)

        def analyse(wave: Tensor) -> Tensor:
            return torch.stft(wave, pad_mode="constant", return_complex=True, **settings)

        def synthesise(phase: Tensor) -> Tensor:
            wave = torch.istft(magnitude * phase, length=samples, **settings)
            if begun is None or not held:
                return wave
            return torch.cat([begun[..., :held].to(wave), wave[..., held:]], -1)

        if begun is not None:
            heard = analyse(F.pad(begun.to(magnitude), (0, samples - begun.shape[-1])))
            heard = heard[..., : begun.shape[-1] // self.config.hop_length]
            unheard = phase[..., heard.shape[-1] :].expand(len(heard), -1, -1)
            phase = torch.cat([_unit(heard), unheard], -1)
        previous = torch.zeros((), device=spectrum.device)
        for _ in range(self.config.griffin_lim_iterations):
            rebuilt = analyse(synthesise(phase))
            phase = _unit(rebuilt + 0.99 * (rebuilt - previous))
            previous = rebuilt
        return synthesise(phase)

    # --- the interface of transformers' EnCodec ---

    @torch.no_grad()
    def encode(
        self,
        input_values: Tensor,
        padding_mask: Tensor | None = None,
        bandwidth: float | None = None,
        return_dict: bool | None = None,
        **kwargs: object,
    ) -> EncodecEncoderOutput:
        """``(clips, 1, samples)`` to codes ``(1, clips, codebooks, token frames)``.

        ``bandwidth`` is accepted for the interface; this codec has one.
        """
        if padding_mask is not None:
            input_values = input_values * padding_mask.view_as(input_values)
        spectrum = self.spectrum(input_values[:, 0]).to(self.dtype)
        codes = self.quantise(self.latents(spectrum))
        return EncodecEncoderOutput(audio_codes=codes[None], audio_scales=[None])

    @torch.no_grad()
    def decode(
        self,
        audio_codes: Tensor,
        audio_scales: object = None,
        padding_mask: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: object,
    ) -> EncodecDecoderOutput:
        """Codes ``(1, clips, codebooks, token frames)`` to audio ``(clips, 1, samples)``."""
        wave = self.waveform(self.reconstruct(self.dequantise(audio_codes[0])))
        return EncodecDecoderOutput(audio_values=wave[:, None].clamp(-1, 1).to(self.dtype))

    def forward(
        self, input_values: Tensor, padding_mask: Tensor | None = None, **kwargs: object
    ) -> EncodecOutput:
        """A round trip through the tokens."""
        codes = self.encode(input_values, padding_mask).audio_codes
        wave = self.decode(codes).audio_values[..., : input_values.shape[-1]]
        return EncodecOutput(audio_codes=codes, audio_values=wave)

    def _window(self, device: torch.device) -> Tensor:
        return torch.hann_window(self.config.window_length, device=device)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Conv1d):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _unit(spectrum: Tensor) -> Tensor:
    """The phase of complex numbers."""
    return spectrum / spectrum.abs().clamp_min(1e-8)


AutoConfig.register(SpectralCodecConfig.model_type, SpectralCodecConfig, exist_ok=True)
AutoModel.register(SpectralCodecConfig, SpectralCodec, exist_ok=True)
