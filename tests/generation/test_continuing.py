"""Music that goes on from a recording, or fills a gap in one."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from musictune.__main__ import main
from musictune.audio import Clip, read, write
from musictune.errors import InputError
from musictune.generation import Engine, Request
from musictune.generation.continuing import continued, encode_long, infill, parse_span, steps
from musictune.generation.likelihood import frame_nll
from musictune.generation.longform import luck
from musictune.models.musicgen import MusicGen

TOY = MusicGen.toy()
ENGINE = Engine(TOY, "float32")


def recording(seconds: float, rate: int = 16_000, channels: int = 1, seed: int = 0) -> Clip:
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(round(seconds * rate)) / rate
    tones = 0.3 * torch.sin(2 * torch.pi * (220 + 40 * time) * time)
    return Clip(tones + 0.1 * torch.randn(channels, len(time), generator=generator), rate)


@pytest.mark.parametrize(
    ("text", "span"),
    [("2.5:6", (2.5, 6.0)), (":8", (0.0, 8.0)), ("5:", (5.0, None)), (":", (0.0, None))],
)
def test_spans(text: str, span: tuple[float, float | None]) -> None:
    assert parse_span(text, "from") == span


@pytest.mark.parametrize("text", ["", "5", "a:b", "1:2:3", "nan:2", "0:inf", "-1:2", "3:3", "4:2"])
def test_spans_that_cannot_be(text: str) -> None:
    with pytest.raises(InputError, match=r"gap .*must"):
        parse_span(text, "gap")


# --- going on ---


@settings(deadline=None, max_examples=15)
@given(st.floats(0.02, 3.0), st.sampled_from([8_000, 16_000, 44_100]), st.integers(1, 2))
def test_codes_of_whole_frames(seconds: float, rate: int, channels: int) -> None:
    clip = recording(seconds, rate, channels)
    samples = clip.resample(16_000).samples
    if samples < 320:
        return
    codes = encode_long(TOY, clip)
    assert codes.shape == (4, samples // 320)
    whole = TOY.encode([clip]).codes[0]
    kept = max(codes.shape[1] - 2, 0)
    assert torch.equal(codes[:, :kept], whole[:, :kept])


def test_less_than_a_frame_cannot_be_continued() -> None:
    with pytest.raises(InputError, match=r"has 0.010 s; give at least 0.02 s"):
        encode_long(TOY, recording(0.01))


def test_long_recordings_are_coded_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MusicGen.toy()
    clip, seen = recording(23.0), []
    whole = model.encode([clip]).codes[0]
    real = MusicGen.encode

    def encode(self: MusicGen, clips: list[Clip]) -> object:
        seen.append(clips[0].seconds)
        return real(self, clips)

    monkeypatch.setattr(MusicGen, "encode", encode)
    codes = encode_long(model, clip)
    assert seen == [11.0, 12.0, 4.0] and codes.shape == whole.shape
    assert float((codes == whole).float().mean()) > 0.99


def test_a_continuation_asks_for_the_new_music_on_top() -> None:
    codes = torch.zeros(4, 37, dtype=torch.int64)
    asked = continued(TOY, codes, Request("flute", 1.5, seed=4))
    assert TOY.frames(asked.seconds) == 37 + 75 and asked.seed == 4
    ((_, made),) = ENGINE.play([asked])
    assert torch.equal(made[:, :37], codes) and made.shape == (4, 112)


# --- filling ---


@settings(deadline=None, max_examples=12)
@given(
    st.floats(0.0, 1.4),
    st.floats(0.05, 1.0),
    st.sampled_from([8_000, 22_050, 44_100]),
    st.integers(1, 2),
)
def test_outside_of_the_gap_the_recording_stays_to_the_sample(
    start: float, length: float, rate: int, channels: int
) -> None:
    clip = recording(3.0, rate, channels)
    gap = (start, start + length)
    filled = infill(ENGINE, clip, gap, Request("flute", 1.0, seed=1), candidates=2)
    first, last = (round(second * rate) for second in gap)
    assert filled.clip.wave.shape == clip.wave.shape and filled.clip.sample_rate == rate
    assert torch.equal(filled.clip.wave[:, :first], clip.wave[:, :first])
    assert torch.equal(filled.clip.wave[:, last:], clip.wave[:, last:])
    inside = slice(first + (last - first) // 4, last - (last - first) // 4)
    assert not torch.isclose(filled.clip.wave[:, inside], clip.wave[:, inside]).all(1).any()
    frames = filled.codes.shape[1]
    assert frames - 1 < length * 50 + 1e-6 <= frames + 1e-4
    assert len(filled.nll) == 2 and all(map(math.isfinite, filled.nll))


def test_the_candidate_that_the_rest_fits_best_is_kept() -> None:
    clip = recording(4.0)
    request = Request("flute", 0.0, seed=7)
    filled = infill(ENGINE, clip, (1.5, 2.1), request, candidates=5)
    before = TOY.encode([clip.crop(0.0, 1.5)]).codes[0]
    after = TOY.encode([clip.crop(2.1, 1.9)]).codes[0]
    nll = []
    for draw in range(5):
        asked = Request("flute", 2.1, luck(7, 0, draw), given=before)
        ((_, codes),) = ENGINE.play([asked])
        joined = torch.cat([codes, after], 1)
        nll.append(float(frame_nll(TOY, joined, "flute")[-95:].mean()))
        if draw == filled.chosen:
            assert torch.equal(codes[:, 75:], filled.codes)
    assert filled.nll == pytest.approx(nll, abs=1e-3)
    assert filled.chosen == min(range(5), key=filled.nll.__getitem__)


def test_candidates_do_not_depend_on_the_batch() -> None:
    clip, request = recording(3.0), Request("flute", 1.0, seed=1)
    one = infill(ENGINE, clip, (1.0, 1.5), request, candidates=4, batch=1)
    two = infill(ENGINE, clip, (1.0, 1.5), request, candidates=4, batch=3)
    assert torch.equal(one.clip.wave, two.clip.wave) and one.nll == two.nll


def test_what_was_in_the_gap_is_not_known() -> None:
    """But for the fades of 20 ms at its edges."""
    one = recording(3.0)
    wave = one.wave.clone()
    wave[:, 16_000:24_000] = 0.9 * torch.rand(1, 8_000)
    two = Clip(wave, 16_000)
    made = [
        infill(ENGINE, clip, (1.0, 1.5), Request("flute", 1.0, seed=1), candidates=2)
        for clip in (one, two)
    ]
    assert made[0].nll == made[1].nll and torch.equal(made[0].codes, made[1].codes)
    inside = slice(16_320, 23_680)
    assert torch.equal(made[0].clip.wave[:, inside], made[1].clip.wave[:, inside])


def test_a_gap_deep_in_a_long_recording_hears_what_is_near() -> None:
    model = MusicGen.toy()
    model.max_seconds = 2.0
    engine, clip = Engine(model, "float32"), recording(9.0)
    request = Request("flute", 1.0, seed=1)
    whole = infill(engine, clip, (5.0, 5.6), request, candidates=2)
    # 100 frames, of which 30 are the gap: 35 on each side.
    near = Clip(clip.wave[:, 68_800 : 89_600 + 11_200], 16_000)
    part = infill(engine, near, (0.7, 1.3), request, candidates=2)
    assert whole.nll == part.nll and torch.equal(whole.codes, part.codes)


def test_steps_are_what_a_bar_needs() -> None:
    stepped: list[int] = []
    request = Request("flute", 1.0, seed=1)
    infill(ENGINE, recording(3.0), (1.0, 1.5), request, candidates=3, on_step=stepped.append)
    assert sum(stepped) == steps(ENGINE, (1.0, 1.5), 3)


@pytest.mark.parametrize(
    ("gap", "says"),
    [
        ((1.0, 1.0), "must begin at 0 or later"),
        ((-1.0, 1.0), "must begin at 0 or later"),
        ((1.0, math.nan), "must begin at 0 or later"),
        ((1.0, 3.5), "0.5 s of music behind it, and there are 3.00 s in all"),
        ((1.0, 2.7), "to play on from the end, use --continue"),
    ],
)
def test_gaps_that_cannot_be_filled(gap: tuple[float, float], says: str) -> None:
    with pytest.raises(InputError, match=says):
        infill(ENGINE, recording(3.0), gap, Request("a", 1.0))
    with pytest.raises(InputError, match="candidates 0"):
        infill(ENGINE, recording(3.0), (1.0, 2.0), Request("a", 1.0), candidates=0)
    with pytest.raises(InputError, match=r"is 8.5 s long; this base can fill up to 8 s"):
        infill(ENGINE, recording(12.0), (1.0, 9.5), Request("a", 1.0))


# --- the command line ---


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "toy"
    TOY.save(folder)
    return folder


@pytest.fixture(scope="module")
def take(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("take") / "take.wav"
    write(recording(3.0, 22_050, 2), path)
    return path


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["generate", *map(str, arguments)])
    return int(stop.value.code or 0)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def test_continue(base: Path, take: Path, tmp_path: Path) -> None:
    common = ["flute", "--base", base, "--seconds", 0.8, "--continue", take, "--from", ":2"]
    assert run(*common, "--count", 2, "--out", tmp_path / "a") == 0
    for line in lines(tmp_path / "a"):
        assert line["given_seconds"] == 2.0 and line["seconds"] == pytest.approx(2.8)
        assert line["recording"] == str(take)
        (seam,) = line["seams"]
        assert seam["second"] == 2.0 and seam["drawn"] in (1, 2, 3)
        assert seam["figures"].keys() == {"level", "flux", "mel", "nll"}
    assert run(*common, "--only-new", "--out", tmp_path / "b") == 0
    (line,) = lines(tmp_path / "b")
    assert line["only_new"] and line["seconds"] == pytest.approx(0.8)
    new, whole = (read(next((tmp_path / each).glob("000*.wav"))) for each in "ba")
    assert torch.equal(new.wave, whole.wave[:, 32_000:])


def test_infill(base: Path, take: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--infill", take, "--gap", "1:1.4", "--candidates", 3, "--seed", 5, "--count", 2]
    assert run("flute", "--base", base, *options, "--out", out) == 0
    original = read(take)
    for line in lines(out):
        assert line["gap"] == [1.0, 1.4] and line["sample_rate"] == 22_050
        each = [candidate["nll_after"] for candidate in line["candidates"]]
        assert len(each) == 3 and each[line["chosen"]] == min(each)
        assert line["candidates"][0]["seed"] == line["seed"]
        made = read(out / line["file"])
        assert torch.equal(made.wave[:, :22_050], original.wave[:, :22_050])
        assert torch.equal(made.wave[:, 30_870:], original.wave[:, 30_870:])
        assert not torch.equal(made.wave, original.wave)


def test_longer_than_the_base_knows(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("flute", "--base", base, "--seconds", 11, "--out", tmp_path / "out") == 0
    assert "2 windows, each hearing the last 3.34 s" in capsys.readouterr().err
    (line,) = lines(tmp_path / "out")
    assert line["seconds"] == 11 and [seam["second"] for seam in line["seams"]] == [10.0]
    assert line["seams"][0]["deviations"] and line["precision"]


def test_silence_is_remarked(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = recording(1.0)
    write(Clip(torch.cat([clip.wave, torch.zeros(1, 20_000)], 1), 16_000), tmp_path / "a.wav")
    options = ["--continue", tmp_path / "a.wav", "--seconds", 0.2, "--out", tmp_path / "out"]
    assert run("flute", "--base", base, *options) == 0
    assert "ends in silence" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--continue", "no/file.wav"], "no/file.wav does not exist"),
        (["--infill", "no/file.wav", "--gap", "1:2"], "no/file.wav does not exist"),
        (["--infill", "TAKE"], "--infill FILE and --gap START:END need each other"),
        (["--gap", "1:2"], "need each other"),
        (["--infill", "TAKE", "--gap", "1:9"], "within the 3.00 s"),
        (["--infill", "TAKE", "--gap", "1:"], "within the 3.00 s"),
        (["--infill", "TAKE", "--gap", "2:1"], "gap 2:1 must"),
        (["--infill", "TAKE", "--gap", "1:2", "--candidates", "0"], "candidates 0"),
        (["--infill", "TAKE", "--gap", "1:2", "--continue", "TAKE"], "give one of them"),
        (["--from", "1:2"], "need --continue"),
        (["--only-new"], "need --continue"),
        (["--continue", "TAKE", "--from", "two"], "from 'two' must be START:END"),
        (["--continue", "TAKE", "--from", "8:9"], "no samples at 8 s"),
        (["--seconds", "4000"], "4000 seconds is too long"),
        (["--seconds", "20", "--overlap", "9.5"], "overlap 9.5 must be from 0 to 9 seconds"),
    ],
)
def test_bad_usage_is_one_line_and_writes_nothing(
    base: Path,
    take: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    given = [str(take) if each == "TAKE" else each for each in arguments]
    assert run("flute", "--base", base, "--out", tmp_path / "out", *given) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert says in error
    assert list(tmp_path.iterdir()) == []
