"""How much of the music survives the bundled codec, on any folder of recordings.

    python benchmarks/codec_roundtrip.py FOLDER [--codec FOLDER] [--limit N]

Prints, per file: chroma argmax agreement of the round trip with the original, the same for
Griffin-Lim on the true magnitudes (what no quantiser could beat), onset F-measure within 50 ms
(mir_eval) and the log-mel distance in decibels; last the medians.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import librosa
import mir_eval
import numpy as np
import torch

from musictune import audio
from musictune.models.codec import SpectralCodec

BUNDLED = Path(audio.__file__).parent / "bundled" / "mini" / "musicgen"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--codec", type=Path)
    parser.add_argument("--limit", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    codec = load(options.codec)
    paths = sorted(p for p in options.folder.rglob("*") if p.suffix in audio.AUDIO_SUFFIXES)
    rows = [measure(codec, path) for path in paths[: options.limit]]
    print("median".ljust(40), *(f"{x:8.3f}" for x in np.median(np.array(rows), 0)))


def load(folder: Path | None) -> SpectralCodec:
    if folder:
        return SpectralCodec.from_pretrained(folder, use_safetensors=True).eval().float()
    from musictune.models import load_model

    return load_model("mini", "cpu").network.audio_encoder


def measure(codec: SpectralCodec, path: Path) -> list[float]:
    rate = codec.config.sampling_rate
    clip = audio.read(path, seconds=10).mono().resample(rate)
    with torch.no_grad():
        again = codec(clip.wave[None]).audio_values[0, 0].numpy()
        ideal = codec.waveform(codec.spectrum(clip.wave))[0].numpy()[: clip.samples]
    wave = clip.wave[0].numpy()
    row = [
        chroma_agreement(wave, again, rate),
        chroma_agreement(wave, ideal, rate),
        onset_f(wave, again, rate),
        mel_distance(wave, again, rate),
    ]
    print(path.name[:40].ljust(40), *(f"{x:8.3f}" for x in row))
    return row


def chroma_agreement(a: np.ndarray, b: np.ndarray, rate: int) -> float:
    """Share of frames that are not silent whose strongest pitch class is the same."""
    chroma = [
        librosa.feature.chroma_stft(y=x, sr=rate, n_fft=4096, hop_length=1024) for x in (a, b)
    ]
    loud = librosa.feature.rms(y=a, frame_length=4096, hop_length=1024)[0] > 1e-3
    same = chroma[0].argmax(0) == chroma[1].argmax(0)
    return float(same[loud].mean()) if loud.any() else float("nan")


def onset_f(a: np.ndarray, b: np.ndarray, rate: int) -> float:
    times = [librosa.onset.onset_detect(y=x, sr=rate, units="time") for x in (a, b)]
    return float(mir_eval.onset.f_measure(*times, window=0.05)[0])


def mel_distance(a: np.ndarray, b: np.ndarray, rate: int) -> float:
    mels = [
        librosa.power_to_db(librosa.feature.melspectrogram(y=x, sr=rate), amin=1e-5) for x in (a, b)
    ]
    return float(np.abs(mels[0] - mels[1]).mean())


if __name__ == "__main__":
    main()
