"""The command line as a person meets it, in real processes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from musictune.__main__ import main


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "musictune", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help_names_every_verb_without_importing_torch() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['musictune', '--help']\n"
        "import musictune.__main__ as m\n"
        "try: m.main()\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    for verb in ("demo", "prepare", "tune", "generate", "evaluate", "merge", "doctor", "pretrain"):
        assert verb in result.stdout
    assert result.stdout.strip().endswith("False False")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["trian"], "No such command"),
        (["generate", "x", "--guidence", "2"], "--guidance"),
        (["tune"], "CLIPS"),
        (["generate", "x", "--count", "many"], "--count"),
    ],
)
def test_a_mistyped_command_is_one_line_and_exit_2(
    arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.startswith("musictune: error: ")
    assert len(said.strip().splitlines()) == 1
    assert hint.lower() in said.lower()
    assert "Traceback" not in said


def test_debug_shows_the_traceback() -> None:
    result = run("evaluate", "nowhere", "--reference", "nowhere", "--out", "out", "--debug")
    assert result.returncode == 2
    assert "Traceback" in result.stderr


def test_version() -> None:
    result = run("--version")
    assert result.returncode == 0
    assert result.stdout.startswith("musictune 0.")


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (KeyError("surprise"), 2, "unforeseen KeyError: 'surprise'; run it again with --debug"),
        (PermissionError(13, "no", "/locked"), 2, "no permission for /locked"),
        (OSError(28, "full", "/out/x"), 2, "disk full while writing /out/x"),
        (RuntimeError("you tried to allocate 80 bytes"), 2, "not enough memory for 80 bytes"),
        (MemoryError(), 2, "not enough memory; use fewer"),
        (KeyboardInterrupt("stopped at step 3; --resume"), 130, "stopped at step 3; --resume"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_every_error_is_one_line(
    error: BaseException,
    code: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("musictune.files.check_target", failing)
    with pytest.raises(SystemExit) as end:
        main(["evaluate", "made", "--reference", "made", "--out", "out", "--quiet"])
    assert end.value.code == code
    said = capsys.readouterr().err
    assert said.startswith(f"musictune: error: {says}")
    assert len(said.splitlines()) == 1
