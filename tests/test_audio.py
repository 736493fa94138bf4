"""Clips, and reading files that are broken or hostile."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from musictune import audio
from musictune.audio import Clip
from musictune.errors import AudioError, InputError

RATE = 16_000


def tone(seconds: float, rate: int = RATE, channels: int = 1, pitch: float = 440.0) -> np.ndarray:
    """``(frames, channels)`` float32 of a sine at half of full scale."""
    time = np.arange(round(seconds * rate)) / rate
    wave = 0.5 * np.sin(2 * np.pi * pitch * time)
    return np.repeat(wave[:, None], channels, 1).astype(np.float32)


def save(path: Path, data: np.ndarray, rate: int = RATE, **options: str) -> Path:
    soundfile.write(path, data, rate, **options)
    return path


def save_m4a(path: Path, data: np.ndarray, rate: int = RATE, container: str = "mp4") -> Path:
    import av

    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream("aac", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(data.T.copy(), format="fltp", layout="mono")
        frame.sample_rate = rate
        frame.time_base = Fraction(1, rate)
        frame.pts = 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            out.mux(packet)
    return path


def peak_pitch(clip: Clip) -> float:
    spectrum = np.abs(np.fft.rfft(clip.mono().wave[0].numpy() * np.hanning(clip.samples)))
    return float(spectrum.argmax() * clip.sample_rate / clip.samples)


class TestClip:
    def test_a_loud_peak_is_scaled_down(self) -> None:
        clip = Clip(torch.tensor([[0.5, -2.0, 1.0]], dtype=torch.float64), RATE)
        assert clip.wave.dtype == torch.float32
        assert clip.wave.tolist() == [[0.25, -1.0, 0.5]]

    @pytest.mark.parametrize(
        ("wave", "rate", "said"),
        [
            (torch.zeros(10), RATE, "shape"),
            (torch.zeros(1, 0), RATE, "empty"),
            (torch.zeros(9, 10), RATE, "9 channels"),
            (torch.zeros(1, 10), 500, "500 Hz"),
            (torch.zeros(1, 10), 400_000, "400000 Hz"),
            (torch.tensor([[0.0, float("nan")]]), RATE, "not finite"),
            (torch.tensor([[0.0, float("-inf")]]), RATE, "not finite"),
        ],
    )
    def test_what_cannot_be_used_is_refused(self, wave: torch.Tensor, rate: int, said: str) -> None:
        with pytest.raises(AudioError, match=said):
            Clip(wave, rate)

    def test_resampling_keeps_pitch_and_length(self) -> None:
        clip = Clip(torch.from_numpy(tone(1.0, 44_100, 2).T), 44_100, "a tone", "x")
        lower = clip.resample(RATE)
        assert (lower.sample_rate, lower.channels, lower.caption) == (RATE, 2, "a tone")
        assert abs(lower.samples - RATE) <= 1
        assert abs(peak_pitch(lower) - 440) < 2

    def test_crop_takes_what_there_is(self) -> None:
        clip = Clip(torch.arange(10).float()[None] / 10, 1_000)
        assert clip.crop(0.002, 0.003).wave.tolist() == clip.wave[:, 2:5].tolist()
        assert clip.crop(0.008, 1).samples == 2
        with pytest.raises(AudioError, match="nothing to cut"):
            clip.crop(0.010, 1)

    def test_level_reaches_the_loudness(self) -> None:
        import pyloudnorm

        noise = torch.from_numpy(np.random.default_rng(0).normal(0, 0.001, (2, 3 * RATE)))
        levelled = Clip(noise, RATE).level(-20)
        measured = pyloudnorm.Meter(RATE).integrated_loudness(levelled.wave.T.double().numpy())
        assert abs(measured + 20) < 0.1

    @pytest.mark.parametrize("seconds", [0.1, 2.0])
    def test_level_stops_at_the_peak_and_leaves_silence(self, seconds: float) -> None:
        clicks = torch.zeros(1, round(seconds * RATE))
        clicks[:, 500] = 0.1
        assert float(Clip(clicks, RATE).level().wave.abs().max()) <= 0.981
        silence = Clip(torch.zeros(1, round(seconds * RATE)), RATE)
        assert torch.equal(silence.level().wave, silence.wave)


class TestReading:
    @pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3", "aiff", "m4a", "aac"])
    def test_every_format_keeps_pitch_and_place(self, tmp_path: Path, kind: str) -> None:
        data = np.concatenate([tone(2.0), tone(2.0, pitch=880.0)])
        path = tmp_path / f"x.{kind}"
        if kind in ("m4a", "aac"):
            save_m4a(path, data, container="adts" if kind == "aac" else "mp4")
        else:
            save(path, data)
        assert abs(audio.info(path).seconds - 4) < 0.15
        assert abs(audio.read(path).seconds - 4) < 0.15
        assert abs(peak_pitch(audio.read(path, 0.2, 1.5)) - 440) < 5
        later = audio.read(path, 2.2, 1.0)
        assert later.samples == RATE
        assert abs(peak_pitch(later) - 880) < 5

    def test_the_content_counts_and_not_the_suffix(self, tmp_path: Path) -> None:
        path = save(tmp_path / "x.flac", tone(1.0))
        renamed = path.rename(tmp_path / "x.mp3")
        assert audio.read(renamed).samples == RATE

    def test_four_channels_are_fine_and_nine_are_not(self, tmp_path: Path) -> None:
        assert audio.read(save(tmp_path / "4.wav", tone(0.5, channels=4))).channels == 4
        with pytest.raises(AudioError, match="9 channels"):
            audio.read(save(tmp_path / "9.wav", tone(0.5, channels=9)))

    def test_float_files_above_full_scale_are_scaled_down(self, tmp_path: Path) -> None:
        path = save(tmp_path / "x.wav", 4 * tone(0.5), subtype="FLOAT")
        assert float(audio.read(path).wave.abs().max()) == pytest.approx(1.0)

    @given(samples=st.integers(1, 150_000), block=st.floats(0.01, 3.0))
    @settings(max_examples=20, deadline=None)
    def test_blocks_put_together_are_the_file(
        self, tmp_path_factory: pytest.TempPathFactory, samples: int, block: float
    ) -> None:
        path = tmp_path_factory.mktemp("blocks") / "x.wav"
        data = np.random.default_rng(samples).uniform(-0.9, 0.9, (samples, 1)).astype(np.float32)
        save(path, data, subtype="FLOAT")
        blocks = list(audio.stream(path, block))
        assert {b.samples for b in blocks[:-1]} <= {round(block * RATE)}
        assert np.array_equal(torch.cat([b.wave for b in blocks], 1)[0].numpy(), data[:, 0])


def bad_file(kind: str, folder: Path) -> Path:
    """A file of ``kind`` that must be refused."""
    path = folder / "bad.wav"
    if kind == "text":
        path.write_text("this is not music\n" * 100)
    elif kind == "empty":
        path.touch()
    elif kind == "no samples":
        save(path, np.zeros((0, 1), np.float32))
    elif kind == "nan":
        data = tone(1.0)
        data[100] = np.nan
        save(path, data, subtype="FLOAT")
    elif kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "playlist":
        save(folder / "secret.wav", tone(1.0))
        path = folder / "x.mp3"
        path.write_text(f"ffconcat version 1.0\nfile {folder / 'secret.wav'}\n")
    elif kind == "adpcm":
        save(path, tone(1.0), subtype="IMA_ADPCM")
    elif kind == "damaged m4a":
        path = save_m4a(folder / "x.m4a", tone(3.0))
        path.write_bytes(path.read_bytes()[:2_000])
    else:  # truncated, by kind of file
        path = save(folder / f"x.{kind}", tone(20.0) * 0.3 + noise(20.0))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def noise(seconds: float) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 0.05, (round(seconds * RATE), 1)).astype(np.float32)


BAD = {
    "text": "is not audio",
    "empty": "is empty",
    "no samples": "no samples",
    "nan": "not finite",
    "folder": "not a regular file",
    "fifo": "not a regular file",
    "device": "not a regular file",
    "playlist": "is not audio",
    "adpcm": "coded as format 0x11",
    "damaged m4a": "is not audio",
    "mp3": "truncated",
    "flac": "truncated",
    "wav": "truncated",
}


class TestBadFiles:
    @pytest.mark.parametrize(("kind", "said"), BAD.items())
    def test_each_is_one_clear_line(self, tmp_path: Path, kind: str, said: str) -> None:
        path = bad_file(kind, tmp_path)
        for use in (audio.read, lambda p: list(audio.stream(p, 3.0))):
            with pytest.raises(AudioError, match=said) as caught:
                use(path)
            assert "\n" not in str(caught.value)
            assert path.name in str(caught.value)

    @pytest.mark.parametrize("kind", ["mp3", "flac", "wav"])
    def test_a_file_that_lost_only_its_end_is_used(self, tmp_path: Path, kind: str) -> None:
        path = save(tmp_path / f"x.{kind}", tone(20.0) * 0.3 + noise(20.0))
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 96 // 100])
        assert 18 < audio.read(path).seconds < 20

    def test_a_missing_file_and_an_impossible_name(self, tmp_path: Path) -> None:
        for path in (tmp_path / "no.wav", "a\0b.wav"):
            with pytest.raises(AudioError):
                audio.read(path)

    def test_a_wav_of_unknown_length_is_read_to_its_end(self, tmp_path: Path) -> None:
        path = save(tmp_path / "x.wav", tone(1.0))
        data = bytearray(path.read_bytes())
        place = data.index(b"data") + 4
        data[place : place + 4] = struct.pack("<I", 0xFFFFFFFF)
        path.write_bytes(data)
        assert audio.read(path).samples == RATE

    @given(st.integers(0, 2**32 - 1))
    @settings(max_examples=60, deadline=None)
    def test_damaged_bytes_never_raise_anything_else(
        self, tmp_path_factory: pytest.TempPathFactory, seed: int
    ) -> None:
        random = np.random.default_rng(seed)
        folder = tmp_path_factory.mktemp("mutants")
        kind = ("wav", "flac", "ogg", "mp3", "m4a")[seed % 5]
        path = folder / f"x.{kind}"
        save_m4a(path, tone(0.5)) if kind == "m4a" else save(path, tone(0.5))
        data = np.frombuffer(path.read_bytes(), np.uint8).copy()
        places = random.integers(0, len(data), 20)
        data[places] = random.integers(0, 256, 20)
        path.write_bytes(data[: random.integers(1, len(data) + 1)].tobytes())
        try:
            clip = audio.read(path, seconds=5.0)
        except AudioError:
            return
        assert bool(torch.isfinite(clip.wave).all())

    def test_a_bomb_is_refused_whole_and_read_in_part(self, tmp_path: Path) -> None:
        path = tmp_path / "bomb.flac"
        with soundfile.SoundFile(path, "w", 48_000, 8) as file:
            for _ in range(400):
                file.write(np.zeros((48_000, 8), np.float32))
        assert path.stat().st_size < 1_000_000
        code = (
            "import resource, sys\n"
            "from musictune import audio\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "assert audio.read(sys.argv[1], 300.0, 10.0).seconds == 10\n"
            "assert sum(b.seconds for b in audio.stream(sys.argv[1], 5.0)) == 400\n"
            "grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
            "assert grown < 150_000, grown\n"
        )
        done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        with pytest.raises(AudioError, match="too long to read at once"):
            audio.read(path)


class TestWriting:
    @pytest.mark.parametrize("kind", ["wav", "flac"])
    def test_what_is_written_comes_back(self, tmp_path: Path, kind: str) -> None:
        clip = Clip(torch.from_numpy(tone(0.5, channels=2).T), RATE)
        audio.write(clip, tmp_path / f"x.{kind}")
        again = audio.read(tmp_path / f"x.{kind}")
        assert again.channels == 2
        assert float((again.wave - clip.wave).abs().max()) < 1e-4

    def test_another_suffix_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(AudioError, match=r"\.wav or \.flac"):
            audio.write(Clip(torch.zeros(1, 10), RATE), tmp_path / "x.mp3")

    def test_a_full_disk_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(self: Path, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(InputError, match="disk full"):
            audio.write(Clip(torch.zeros(1, 10), RATE), tmp_path / "x.wav")
        assert list(tmp_path.iterdir()) == []
