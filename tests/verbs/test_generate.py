"""``musictune generate`` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile
import torch

from musictune.__main__ import main
from musictune.data.concepts import Concept
from musictune.files import sha256
from musictune.generation.folder import write_music
from musictune.methods import save_adapter
from musictune.methods.concept_tokens import ConceptTokens
from musictune.models.musicgen import MusicGen


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "toy"
    MusicGen.toy().save(folder)
    return folder


@pytest.fixture(scope="module")
def run_folder(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter whose word sounds unlike anything."""
    folder = tmp_path_factory.mktemp("run")
    model = MusicGen.load(base)
    method = ConceptTokens([Concept("zorblax", "piano")])
    method.attach(model)
    with torch.no_grad():
        model.text_encoder.get_input_embeddings().rows.mul_(-30)
    save_adapter(model, method, folder / "adapter")
    return folder


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["generate", *map(str, arguments)])
    return int(stop.value.code or 0)


def manifest(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def test_writes_every_clip_and_says_how_it_was_made(base: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\ndark strings\n")
    out = tmp_path / "deep" / "out"
    options = ["--count", 2, "--seed", 5, "--seconds", 0.4, "--top-k", 20, "--prompts", prompts]
    assert run("Slow piano!", *options, "--base", base, "--out", out) == 0
    lines = manifest(out)
    assert [line["file"] for line in lines] == [
        "000-slow-piano.wav",
        "001-slow-piano.wav",
        "002-dark-strings.wav",
        "003-dark-strings.wav",
    ]
    assert [line["seed"] for line in lines] == [5, 6, 5, 6]
    assert [line["prompt"] for line in lines] == ["Slow piano!"] * 2 + ["dark strings"] * 2
    assert len({line["sha256"] for line in lines}) == 4
    for line in lines:
        assert sha256(out / line["file"]) == line["sha256"]
        assert line["base"] == str(base) and line["adapters"] == []
        assert line["sampling"]["top_k"] == 20
        sound, rate = soundfile.read(out / line["file"])
        assert rate == line["sample_rate"] == 16_000 and len(sound) == 6_400
        assert line["seconds"] == 0.4
        assert sound.std() > 0.001
    assert sorted(p.name for p in out.parent.iterdir()) == ["out"]


def test_same_command_same_bytes(base: Path, tmp_path: Path) -> None:
    arguments = ["slow piano", "--seconds", 0.3, "--base", base, "--out"]
    assert run(*arguments, tmp_path / "a") == run(*arguments, tmp_path / "b") == 0
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_flac(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert (
        run("slow piano", "--seconds", 0.3, "--format", "flac", "--base", base, "--out", out) == 0
    )
    assert soundfile.info(out / "000-slow-piano.flac").format == "FLAC"


def test_stereo_is_written_as_stereo(tmp_path: Path) -> None:
    files = write_music(MusicGen.toy(2), ["slow piano"], tmp_path / "out", seconds=0.3)
    sound, _ = soundfile.read(files[0])
    assert sound.shape == (4_800, 2)
    assert (sound[:, 0] != sound[:, 1]).any()


def test_adapter_changes_the_music_by_its_weight(
    base: Path, run_folder: Path, tmp_path: Path
) -> None:
    def made(name: str, *adapter: object) -> dict:
        out = tmp_path / name
        common = ["--seconds", 0.6, "--base", base, "--out", out]
        assert run("slow <zorblax>", *adapter, *common) == 0
        return manifest(out)[0]

    plain = made("plain")
    full = made("full", "--adapter", run_folder)
    half = made("half", "--adapter", f"{run_folder}=0.5")
    assert len({plain["sha256"], full["sha256"], half["sha256"]}) == 3
    assert (full["text"], plain["text"]) == ("slow piano", "slow <zorblax>")
    (facts,) = half["adapters"]
    assert facts["path"] == str(run_folder / "adapter") and facts["weight"] == 0.5
    assert facts["sha256"] == full["adapters"][0]["sha256"]


def test_an_adapter_that_is_never_called_is_remarked(
    base: Path, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--seconds", 0.1, "--base", base, "--adapter", run_folder, "--overwrite"]
    assert run("slow piano", *common, "--out", tmp_path / "out") == 0
    assert "no prompt says <zorblax>" in capsys.readouterr().err
    assert run("zorblax, slow", *common, "--out", tmp_path / "out") == 0
    assert "no prompt says" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no prompt given"),
        (["  "], 'prompt "" is empty'),
        (["a", "--seconds", "0"], "0 seconds"),
        (["a", "--seconds", "nan"], "nan seconds"),
        (["a", "--seconds", "4000"], "4000 seconds is too long"),
        (["a", "--count", "0"], "count 0"),
        (["a", "--batch", "0"], "batch 0"),
        (["a", "--seed", "-1"], "seed -1"),
        (["a", "--temperature", "nan"], "temperature nan"),
        (["a", "--guidance", "0"], "guidance 0"),
        (["a", "--base", "nonsense"], "unknown base"),
        (["a", "--device", "toaster"], "unknown device"),
        (["a", "--adapter", "no/such/run"], "adapter no/such/run does not exist"),
        (["a", "--adapter", "no/such/run=much"], "weight 'much'"),
        (["a", "--adapter", "no/such/run=nan"], "weight 'nan'"),
        (["a", "--prompts", "no/such/file"], "prompts no/such/file"),
        (["a", "--format", "mp3"], "mp3"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    own = [] if "--base" in arguments else ["--base", base]
    assert run(*arguments, *own, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err.strip()
    assert says in error and error.startswith("musictune: error: ") and "\n" not in error
    assert list(tmp_path.iterdir()) == []


def test_bad_prompt_files(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content, says in ((b"\n \n", "is empty"), (b"\xff\xfe\x00", "not UTF-8")):
        (tmp_path / "prompts").write_bytes(content)
        out = tmp_path / "out"
        assert run("--prompts", tmp_path / "prompts", "--base", base, "--out", out) == 2
        assert says in capsys.readouterr().err
        assert not out.exists()


def test_a_folder_with_music_is_kept_unless_asked(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    arguments = ["slow piano", "--seconds", 0.1, "--base", base, "--out", out]
    assert run(*arguments) == 2
    assert "already exists" in capsys.readouterr().err and (out / "mine.txt").exists()
    assert run(*arguments, "--overwrite") == 0
    assert sorted(p.name for p in out.iterdir()) == ["000-slow-piano.wav", "manifest.jsonl"]


@pytest.mark.parametrize("failing", [1, 40])
def test_a_full_disk_keeps_and_lists_what_was_done(
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    failing: int,
) -> None:
    import errno

    from musictune.generation import folder

    real, calls = folder.write, []

    def full(clip: object, path: Path) -> None:
        calls.append(path)
        if len(calls) == failing:
            path.write_bytes(b"RIFF half a file")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(clip, path)  # type: ignore[arg-type]

    monkeypatch.setattr(folder, "write", full)
    out = tmp_path / "out"
    arguments = ["slow piano", "--count", 64, "--seconds", 0.1, "--base", base, "--batch", 64]
    assert run(*arguments, "--out", out) == 2
    said = capsys.readouterr().err
    assert "disk full" in said and len(calls) == failing
    if failing == 1:
        assert list(tmp_path.iterdir()) == []
        return
    assert "39 of 64 clips are kept in" in said
    listed = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    there = sorted(path.name for path in out.glob("*.wav"))
    assert [line["file"] for line in listed] == there and len(there) == 39
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_interrupt_keeps_what_was_done(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from musictune.generation import folder

    real, calls = folder.write, []

    def stopped(clip: object, path: Path) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(clip, path)  # type: ignore[arg-type]

    monkeypatch.setattr(folder, "write", stopped)
    arguments = ["slow piano", "--count", 5, "--seconds", 0.1, "--base", base]
    assert run(*arguments, "--out", tmp_path / "out") == 130
    assert "2 of 5 clips are kept in" in capsys.readouterr().err
    assert len((tmp_path / "out" / "manifest.jsonl").read_text().splitlines()) == 2


def test_a_prompt_too_long_to_be_read_whole_is_remarked(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = "piano " * 1700  # 10,200 characters
    assert run(prompt, "--seconds", 0.1, "--base", base, "--out", tmp_path / "out") == 0
    assert "only the first 128 of 1701 tokens are read" in capsys.readouterr().err
    assert len(list((tmp_path / "out").glob("*.wav"))) == 1
