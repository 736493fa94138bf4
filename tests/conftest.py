"""For every test: no network, kernels interpreted unless there is a GPU, one seed, few threads."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")
# A few words are tokenised at a time: waking threads for them takes longer.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# numba keeps what it compiles beside librosa; of two workers that do so at once one may crash.
os.environ["NUMBA_CACHE_DIR"] = str(
    Path(__file__).parents[1]
    / ".pytest_cache"
    / "numba"
    / os.environ.get("PYTEST_XDIST_WORKER", "")
)

import pytest
import torch

from musictune import console

# Before anything imports Triton. Where there is a GPU its kernels are compiled and run there.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")
# A shell that starts this in the background has Ctrl-C ignored, and what is started here as well.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # two threads on two busy cores can be ten times slower than one


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any connection that leaves this machine fails the test."""
    real = socket.socket.connect

    def connect(self: socket.socket, address: object) -> None:
        local = self.family == socket.AF_UNIX or str(address[0]) in ("127.0.0.1", "::1")  # type: ignore[index]
        if not local:
            raise AssertionError(f"a test tried to reach {address}")
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is heard is kept apart from the user's own cache, also by processes that tests start."""
    os.environ["MUSICTUNE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def unpainted() -> Iterator[None]:
    """Pictures are laid out but not painted, which takes longer than all else of a short run."""
    from matplotlib.figure import Figure

    def savefig(self: Figure, file: Path | BinaryIO, **_: object) -> None:
        if isinstance(file, Path):
            file.write_bytes(b"not painted")
        else:
            file.write(b"not painted")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", savefig)
        yield


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
    console.set_quiet(False)
