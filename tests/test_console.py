"""Progress as it reads where no terminal is."""

from __future__ import annotations

import pytest

from musictune import console


def test_plain_progress_ends_with_everything_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(console.track(range(3), "counting")) == [0, 1, 2]
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == "counting: 3/3, 0 s left"


def test_time_left_counts_only_what_was_done_now(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 20.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.progress("resumed", 110, done=90) as advance:
        advance(10, "loss 1")
    assert capsys.readouterr().err == "resumed: 100/110, 20 s left loss 1\n"


def test_quiet_silences_results_remarks_and_progress(capsys: pytest.CaptureFixture[str]) -> None:
    console.set_quiet(True)
    try:
        console.say("result")
        console.note("remark")
        list(console.track(range(2), "counting"))
    finally:
        console.set_quiet(False)
    assert capsys.readouterr() == ("", "")
