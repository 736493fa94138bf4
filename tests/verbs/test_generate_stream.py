"""``generate --stream``: sound to a pipe while it is made."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from musictune.__main__ import main
from musictune.models.musicgen import MusicGen


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "toy"
    MusicGen.toy().save(folder)
    return folder


def command(base: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "musictune", "generate", *arguments, "--base", str(base)]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["generate", *arguments])
    return int(exit_.value.code or 0)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", ["1.5", "12"])
def test_the_stream_is_the_music_of_the_file(base: Path, tmp_path: Path, seconds: str) -> None:
    """Of one window, and of more than the base has."""
    asked = ["slow piano", "--seconds", seconds, "--seed", "3"]
    streamed = subprocess.run(command(base, *asked, "--stream"), capture_output=True, check=True)
    subprocess.run(command(base, *asked, "--out", str(tmp_path / "out")), check=True)
    wave, rate = soundfile.read(io.BytesIO(streamed.stdout))
    (path,) = (tmp_path / "out").glob("*.wav")
    whole, same = soundfile.read(path)
    assert rate == same and wave.shape == whole.shape == (int(16_000 * float(seconds)),)
    # A file that overshoots is turned down whole, a stream from the piece on that does.
    assert np.corrcoef(wave[:rate], whole[:rate])[0, 1] > 0.999
    assert np.corrcoef(wave, whole)[0, 1] > 0.99


def test_who_stops_listening_is_no_error(base: Path) -> None:
    asked = command(base, "slow piano", "--seconds", "300", "--stream")
    with subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(4) == b"RIFF"
        process.stdout.close()
        said = process.stderr.read().decode()
        assert process.wait(60) == 0
    assert "Traceback" not in said and "error" not in said.lower().replace("errors", "")


@pytest.mark.parametrize(
    "arguments", [["one", "two"], ["one", "--count", "2"], ["one", "--continue", "x.wav"]]
)
def test_only_one_clip_is_streamed(
    base: Path, tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    take = tmp_path / "x.wav"
    soundfile.write(take, np.sin(np.arange(16_000) / 20) * 0.3, 16_000)
    arguments = [str(take) if each == "x.wav" else each for each in arguments]
    assert run(*arguments, "--stream", "--base", str(base)) == 2
    said = capsys.readouterr()
    assert "--stream plays one clip" in said.err and said.out == ""


@pytest.mark.parametrize("listens", [False, True])
def test_a_base_that_hears_no_melody_and_a_silent_one(
    base: Path, tmp_path: Path, listens: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    from musictune.models.melody import MusicGenMelody

    if listens:
        base = tmp_path / "melody-base"
        MusicGenMelody.toy().save(base)
    silent = tmp_path / "silent.wav"
    soundfile.write(silent, np.zeros(32_000), 16_000)
    out = tmp_path / "out"
    assert run("piano", "--melody", str(silent), "--base", str(base), "--out", str(out)) == 2
    said = capsys.readouterr().err
    assert ("is silent" if listens else "does not listen to melodies") in said
    assert len(said.strip().splitlines()) == 1 and not out.exists()
