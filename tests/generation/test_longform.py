"""Music longer than a window: what it begins with, whom it depends on, and its seams."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.generation import Engine, Request, Sampling, seams
from musictune.generation.longform import Grown, LongForm, decode_long, luck
from musictune.generation.seams import Seam, SeamJudge
from musictune.generation.streaming import StreamDecoder
from musictune.models.base import Batch
from musictune.models.melody import MusicGenMelody
from musictune.models.musicgen import MusicGen

PROMPTS = ["slow piano", "", "fast drums, bright and loud"]


@pytest.fixture(scope="module")
def model() -> MusicGen:
    """A toy that knows one second: 50 frames, of which 17 are heard again."""
    model = MusicGen.toy()
    model.max_seconds = 1.0
    return model


@pytest.fixture(scope="module")
def engine(model: MusicGen) -> Engine:
    return Engine(model, "float32")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seams are taken as they are, for what does not depend on them."""
    script(monkeypatch, lambda second, draw: 0.0)


def script(monkeypatch: pytest.MonkeyPatch, worst: Callable[[float, int], float]) -> list[Tensor]:
    """Every draw of a seam gets the verdict ``worst(second, draw)``; what was judged is noted."""
    judged: list[Tensor] = []
    draws: dict[tuple[int, int], int] = {}

    def judge(self: SeamJudge, codes: Tensor, seam: int) -> tuple[Seam, list]:
        draw = draws.get((id(self), seam), 0)
        draws[id(self), seam] = draw + 1
        judged.append(codes)
        return Seam(seam / 50, {}, {"mel": worst(seam / 50, draw)}, 9), []

    monkeypatch.setattr(SeamJudge, "judge", judge)
    return judged


def made(long: LongForm, *requests: Request, batch: int = 8) -> list[Grown]:
    return sorted(long.finished(requests, batch), key=lambda grown: grown.index)


def alone(engine: Engine, request: Request) -> Tensor:
    ((_, codes),) = engine.play([request])
    return codes


@pytest.mark.usefixtures("quick")
def test_what_fits_into_a_window_is_what_the_engine_plays(engine: Engine) -> None:
    requests = [Request(PROMPTS[i % 3], 0.1 + 0.3 * i, seed=i) for i in range(4)]
    for request, grown in zip(requests, made(LongForm(engine), *requests), strict=True):
        assert torch.equal(grown.codes, alone(engine, request)) and grown.seams == ()


@pytest.mark.usefixtures("quick")
@settings(deadline=None, max_examples=4)
@given(st.floats(1.0, 3.2), st.floats(1.0, 3.2), st.integers(0, 2**62 - 1))
def test_longer_music_begins_with_shorter_music(one: float, two: float, seed: int) -> None:
    """That of one window alone too, as long as it fills the window."""
    model = TOY
    short, long = sorted([one, two])
    each = made(
        LongForm(Engine(model)), Request("flute", short, seed), Request("flute", long, seed)
    )
    frames = model.frames(short)
    assert each[0].codes.shape == (4, frames) and each[1].codes.shape == (4, model.frames(long))
    assert torch.equal(each[0].codes, each[1].codes[:, :frames])
    assert each[0].seams == each[1].seams[: len(each[0].seams)]


TOY = MusicGen.toy()
TOY.max_seconds = 1.0


def test_music_is_the_same_in_any_batch_with_seams_drawn_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real verdicts, with limits so low that most seams are drawn again."""
    for name, value in {"OUTLIER": 0.2, "_LEAST": 1, "_APART": 0.1, "_SPAN": 0.1}.items():
        monkeypatch.setattr(seams, name, value)
    long = LongForm(engine, redraws=1)
    requests = [Request(PROMPTS[i], 1.7 - 0.2 * i, seed=i) for i in range(3)]
    apart = [made(long, request)[0] for request in requests]
    together = made(long, *requests, batch=2)
    assert sum(seam.drawn for grown in apart for seam in grown.seams) > sum(
        len(grown.seams) for grown in apart
    )
    for one, two in zip(apart, together, strict=True):
        assert torch.equal(one.codes, two.codes) and one.seams == two.seams
    shorter = made(long, Request(PROMPTS[0], 1.4, seed=0))[0]
    assert torch.equal(shorter.codes, apart[0].codes[:, :70])


@pytest.mark.usefixtures("quick")
def test_a_window_plays_on_from_the_end_of_the_one_before(engine: Engine) -> None:
    request = Request("slow piano", 2.0, seed=3)
    (whole,) = made(LongForm(engine), request)
    first = alone(engine, Request("slow piano", 1.0, seed=3))
    assert torch.equal(whole.codes[:, :50], first)
    heard = first[:, 33:]
    again = Request("slow piano", 1.0, luck(3, 1, 0), given=heard)
    assert torch.equal(whole.codes[:, 33:83], alone(engine, again))
    assert [seam.second for seam in whole.seams] == [1.0, 1.66]


@pytest.mark.usefixtures("quick")
def test_without_overlap_windows_know_nothing_of_each_other(engine: Engine) -> None:
    (whole,) = made(LongForm(engine, overlap=0.0), Request("slow piano", 2.0, seed=3))
    fresh = alone(engine, Request("slow piano", 1.0, luck(3, 1, 0)))
    assert torch.equal(whole.codes[:, 50:], fresh)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("frames", [1, 17, 30, 50, 120])
def test_given_music_stands_at_the_beginning(engine: Engine, frames: int) -> None:
    given = torch.randint(64, (4, frames), generator=torch.Generator().manual_seed(1))
    request = Request("flute", (frames + 70) / 50, seed=2, given=given)
    (grown,) = made(LongForm(engine), request)
    assert grown.codes.shape == (4, frames + 70)
    assert torch.equal(grown.codes[:, :frames], given)
    assert grown.seams[0].second == frames / 50
    # Only the end that a window leaves room for is heard.
    tail = given[:, -17:]
    other = Request("flute", (len(tail[0]) + 70) / 50, seed=2, given=tail)
    (same,) = made(LongForm(engine), other)
    assert torch.equal(same.codes[:, len(tail[0]) :], grown.codes[:, frames:])


def test_given_music_that_fits_is_heard_whole(engine: Engine) -> None:
    given = torch.randint(64, (4, 30), generator=torch.Generator().manual_seed(1))
    request = Request("flute", 1.0, seed=2, given=given)
    (grown,) = made(LongForm(engine, redraws=0), request)
    assert torch.equal(grown.codes, alone(engine, request)) and len(grown.seams) == 1


@pytest.mark.usefixtures("quick")
def test_clips_grow_and_what_was_told_stays(engine: Engine) -> None:
    requests = [Request(PROMPTS[i % 3], 1.1 + 0.6 * i, seed=i) for i in range(3)]
    told: dict[int, Tensor] = {}
    done = []
    for grown in LongForm(engine).play(requests, batch=2):
        before = told.get(grown.index)
        if before is not None:
            assert grown.codes.shape[1] >= before.shape[1]
            assert torch.equal(grown.codes[:, : before.shape[1]], before)
        told[grown.index] = grown.codes
        done += [grown.index] * grown.done
    assert sorted(done) == [0, 1, 2]
    assert [told[i].shape[1] for i in range(3)] == [55, 85, 115]


@pytest.mark.usefixtures("quick")
def test_growing_clips_can_be_streamed(engine: Engine) -> None:
    decoder, pieces, codes = StreamDecoder(engine.model), [], None
    for grown in LongForm(engine).play([Request("flute", 2.5, seed=1)]):
        codes = grown.codes
        clip = decoder.push(codes, final=grown.done)
        pieces += [clip.wave] if clip else []
    assert len(pieces) > 3 and sum(piece.shape[1] for piece in pieces) == 2.5 * 16_000


def test_a_seam_that_stands_out_is_drawn_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = script(monkeypatch, lambda second, draw: 9.0 if draw == 0 and second == 1.0 else 0.0)
    (grown,) = made(LongForm(engine), Request("flute", 1.5, seed=1))
    assert [seam.drawn for seam in grown.seams] == [2] and len(judged) == 2
    assert not torch.equal(judged[0][:, 50:], judged[1][:, 50:])
    heard = grown.codes[:, 33:50]
    again = alone(engine, Request("flute", 1.0, luck(1, 1, 1), given=heard))
    assert torch.equal(grown.codes[:, 33:75], again[:, :42])


@pytest.mark.parametrize(("verdicts", "best"), [((9, 5, 7), 1), ((4, 5, 7), 0), ((9, 8, 7), 2)])
def test_the_best_draw_stays_if_all_stand_out(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, verdicts: tuple[int, ...], best: int
) -> None:
    script(monkeypatch, lambda second, draw: float(dict(enumerate(verdicts)).get(draw, 1)))
    (grown,) = made(LongForm(engine), Request("flute", 1.5, seed=1))
    assert [seam.drawn for seam in grown.seams] == [3]
    expected = alone(engine, Request("flute", 1.0, luck(1, 1, best), given=grown.codes[:, 33:50]))
    assert torch.equal(grown.codes[:, 33:75], expected[:, :42])


def test_nothing_is_drawn_again_if_so_wished(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, lambda second, draw: math.inf)
    (grown,) = made(LongForm(engine, redraws=0), Request("flute", 1.5, seed=1))
    assert [seam.drawn for seam in grown.seams] == [1] and grown.seams[0].stands_out


@pytest.mark.usefixtures("quick")
def test_windows_are_counted_and_steps_told(engine: Engine) -> None:
    long = LongForm(engine)
    stepped: list[int] = []
    (grown,) = [each for each in long.play([Request("", 2.0)], on_step=stepped.append) if each.done]
    assert long.windows(100) == len(grown.seams) + 1 == 3
    assert long.windows(50) == 1 and long.windows(51) == 2 and long.windows(84) == 3
    assert long.windows(100, given=60) == 2 and long.windows(40, given=39) == 1
    # The last window plays a little further than it must.
    assert stepped == [1] * (50 + 33 + 33 + 3 * 3)


@pytest.mark.usefixtures("quick")
def test_stereo() -> None:
    model = MusicGen.toy(2)
    model.max_seconds = 0.6
    (grown,) = made(LongForm(Engine(model)), Request("flute", 1.0, seed=1))
    assert grown.codes.shape == (8, 50)
    assert decode_long(model, grown.codes).wave.shape == (2, 16_000)


@pytest.mark.usefixtures("quick")
def test_a_melody_goes_on_through_the_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MusicGenMelody.toy()
    model.max_seconds = 0.6
    heard: list[Clip | None] = []
    real = LongForm._join

    def join(self: LongForm, session: object, playing: object, clip: object) -> None:
        heard.append(clip.judge.melody)  # type: ignore[attr-defined]
        real(self, session, playing, clip)  # type: ignore[arg-type]

    monkeypatch.setattr(LongForm, "_join", join)
    time = torch.arange(16_000) / 16_000
    tune = Clip(torch.sin(2 * torch.pi * (300 + 200 * time) * time)[None], 16_000)
    made(LongForm(Engine(model)), Request("flute", 0.9, seed=1, melody=tune))
    first, second = heard[:2]
    assert first is tune and second is not None
    start = round(0.6 * 16_000) - 10 * 320  # 30 frames of the first, of which 10 are heard again
    assert torch.equal(second.wave[0, :1000], tune.wave[0, start : start + 1000])
    rests = Clip(torch.cat([tune.wave, torch.zeros(1, 64_000)], 1), 16_000)
    heard.clear()
    made(LongForm(Engine(model)), Request("flute", 1.7, seed=1, melody=rests))
    assert heard[0] is rests and heard[-1] is None


def test_decoding_holds_a_piece_at_a_time() -> None:
    model = MusicGen.toy()
    codec, seen = model.network.audio_encoder, []
    real = codec.decode

    def decode(codes: Tensor, *rest: object) -> object:
        seen.append(codes.shape[-1])
        return real(codes, *rest)

    codes = torch.randint(64, (4, 1_230), generator=torch.Generator().manual_seed(1))
    whole = model.decode(Batch(codes[None], torch.tensor([1_230]), ("",)))[0]
    codec.decode = decode
    clip = decode_long(model, codes, "slow piano")
    assert max(seen) < 600 and len(seen) == 3
    assert clip.caption == "slow piano" and clip.samples == whole.samples == 1_230 * 320
    error = (clip.wave - whole.wave).square().mean() / whole.wave.square().mean()
    assert float(error) < 0.01
    seen.clear()
    short = decode_long(model, codes[:, :500])
    assert seen == [500] and short.samples == 500 * 320


@settings(max_examples=50)
@given(st.integers(0, 2**62 - 1), st.integers(0, 400), st.integers(0, 3))
def test_luck_is_a_seed(seed: int, window: int, draw: int) -> None:
    found = luck(seed, window, draw)
    assert 0 <= found < 2**62 and found == luck(seed, window, draw)
    assert (found == seed) is (window == draw == 0)
    assert found != luck(seed, window, draw + 1) and found != luck(seed, window + 1, draw)


@pytest.mark.parametrize("overlap", [-0.1, 0.95, 7.0, math.nan, math.inf])
def test_overlaps_that_cannot_be(engine: Engine, overlap: float) -> None:
    with pytest.raises(InputError, match=r"overlap .* from 0 to 0.9 seconds"):
        LongForm(engine, overlap)
    with pytest.raises(InputError, match="redraws -1"):
        LongForm(engine, redraws=-1)


def bad_requests() -> Iterator[tuple[Request, str]]:
    yield Request("a", 0.0), "0 seconds"
    yield Request("a", -3.0), "-3 seconds"
    yield Request("a", math.nan), "nan seconds"
    yield Request("a", 3600.5), "3600.5 seconds is too long.* windows.* MB .*at most 3600"
    yield Request("a", 1e300), "too long"
    yield Request("a", 2.0, given=torch.zeros(4, 100, dtype=torch.int64)), "nothing is left"
    yield Request("a", 2.0, given=torch.zeros(3, 60, dtype=torch.int64)), "must be \\(4, frames"
    yield Request("a", 2.0, given=torch.zeros(4, 60)), "int64"
    yield Request("a", 2.0, given=torch.full((4, 60), 64)), "0 to 63"


@pytest.mark.parametrize(("request_", "says"), list(bad_requests()))
def test_requests_that_cannot_be(engine: Engine, request_: Request, says: str) -> None:
    with pytest.raises(InputError, match=says):
        list(LongForm(engine).play([Request("", 0.1), request_]))
    with pytest.raises(InputError, match="batch 0"):
        list(LongForm(engine).play([Request("", 0.1)], batch=0))
    assert list(LongForm(engine).play([])) == []


def test_an_hour_is_described(engine: Engine) -> None:
    said = LongForm(engine).describe(3600)
    assert "5455 windows, each hearing the last 0.34 s; 230 MB" in said
    LongForm(engine).check(Request("a", 3600.0))


def test_damaged_weights_are_told() -> None:
    model = MusicGen.toy()
    model.max_seconds = 1.0
    with torch.no_grad():
        model.backbone.lm_heads[0].weight.fill_(math.nan)
    with pytest.raises(InputError, match="not finite"):
        list(LongForm(Engine(model)).play([Request("a", 2.0)]))


def test_greedy_needs_no_guidance_row(engine: Engine) -> None:
    plain = Request("flute", 1.2, sampling=Sampling(top_k=1, guidance=1.0))
    mixed = made(LongForm(engine, redraws=0), plain, Request("flute", 1.2))
    assert torch.equal(mixed[0].codes, made(LongForm(engine, redraws=0), plain)[0].codes)


@pytest.mark.slow
def test_three_minutes_of_the_bundled_model_in_bounded_memory() -> None:
    import resource

    model = MusicGen.load("mini")
    long = LongForm(Engine(model), redraws=0)
    list(long.finished([Request("slow piano", 20.0, seed=1)]))
    decode_long(model, torch.zeros(4, 750, dtype=torch.int64))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (grown,) = made(long, Request("slow piano", 180.0, seed=1))
    clip = decode_long(model, grown.codes)
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown.codes.shape == (4, 4_500) and len(grown.seams) == 26
    assert clip.seconds == 180 and float(clip.wave.std()) > 0.001
    assert more < 150  # MiB; the clip itself, and a copy of it, are 46
