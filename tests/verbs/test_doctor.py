"""`doctor` on this machine, and on one with a package that takes transformers down."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from musictune.__main__ import main


@pytest.fixture
def broken_torchaudio(tmp_path: Path) -> dict[str, str]:
    """An environment in which torchaudio is there and fails as a CUDA build does without CUDA."""
    package = tmp_path / "torchaudio"
    package.mkdir()
    (package / "__init__.py").write_text(
        "raise OSError('libcudart.so.13: cannot open shared object file')\n"
    )
    # transformers asks for the version before it imports.
    facts = tmp_path / "torchaudio-2.11.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: torchaudio\nVersion: 2.11.0\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path}


def run(
    *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "musictune", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_a_healthy_machine_passes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    said = capsys.readouterr()
    assert ended.value.code == 0, said.out + said.err
    assert "BAD" not in said.out
    assert "base mini" in said.out
    assert "music is made in" in said.out


def test_doctor_finds_a_broken_torchaudio(broken_torchaudio: dict[str, str]) -> None:
    result = run("doctor", environment=broken_torchaudio)
    assert result.returncode == 1
    assert "BAD  torchaudio is installed but does not load" in result.stdout
    assert "pip uninstall torchaudio" in result.stdout


@pytest.mark.slow
def test_any_verb_names_the_remedy_in_one_line(
    broken_torchaudio: dict[str, str], tmp_path: Path
) -> None:
    result = run("generate", "piano", "--out", str(tmp_path / "o"), environment=broken_torchaudio)
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "pip uninstall torchaudio" in result.stderr
    assert not (tmp_path / "o").exists()
