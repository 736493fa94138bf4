"""Copies are found however they are disguised, and other music is not taken for one."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.metrics.base import NotComputed, Score
from musictune.metrics.copying import CopyFeatures, CopyingReport, Originality, copying
from musictune.metrics.embedders import ClapEmbedder
from musictune.metrics.excerpts import ChromaFrames, Excerpts
from musictune.metrics.features import Features
from musictune.models import load_model
from musictune.models.listeners import CodecTokens
from musictune.models.musicgen import MusicGen

RATE = 16_000


def tune(seed: int, seconds: float = 8) -> Clip:
    """Random notes of a quarter second with a decay, in one scale."""
    draw = np.random.default_rng(seed)
    time = np.arange(RATE // 4) / RATE
    notes = []
    for step in draw.choice([0, 2, 4, 5, 7, 9, 11, 12, 14, 16], math.ceil(4 * seconds)):
        pitch = 2 * math.pi * 220 * 2 ** (step / 12) * time
        notes.append((np.sin(pitch) + 0.5 * np.sin(2 * pitch)) * np.exp(-4 * time))
    wave = torch.from_numpy(0.3 * np.concatenate(notes)[: round(seconds * RATE)]).float()
    return Clip(wave[None], RATE)


@pytest.fixture(scope="module")
def mini() -> MusicGen:
    return load_model("mini")


@pytest.fixture(scope="module")
def embedder() -> ClapEmbedder:
    return ClapEmbedder.toy()


def heard(
    clips: Sequence[Clip], embedder: ClapEmbedder, mini: MusicGen | None = None, name: str = "made"
) -> CopyFeatures:
    names = tuple(f"{name} {i}" for i in range(len(clips)))

    def by(listener: Excerpts | ChromaFrames | CodecTokens) -> Features:
        return Features.of([listener.hear(clip) for clip in clips], listener.key)

    sound, notes = by(Excerpts(embedder)), by(ChromaFrames())
    if mini is None:
        return CopyFeatures(names, sound, notes)
    tokens = CodecTokens(mini)
    again = by(CodecTokens(mini, round_trip=True)) if name == "training" else None
    return CopyFeatures(names, sound, notes, by(tokens), again, tokens.frame_rate)


@pytest.fixture(scope="module")
def training(embedder: ClapEmbedder, mini: MusicGen) -> CopyFeatures:
    return heard([tune(i) for i in range(3)], embedder, mini, "training")


@pytest.fixture(scope="module")
def held_out(embedder: ClapEmbedder, mini: MusicGen) -> CopyFeatures:
    return heard([tune(100 + i) for i in range(8)], embedder, mini)


def as_it_is(clip: Clip, mini: MusicGen) -> Clip:
    return clip.crop(0.37, 7)


def louder(clip: Clip, mini: MusicGen) -> Clip:
    return replace(clip, wave=clip.wave * 10 ** (3 / 20))


def coded_again(clip: Clip, mini: MusicGen) -> Clip:
    file = io.BytesIO()
    soundfile.write(file, clip.resample(44_100).wave.T.numpy(), 44_100, "VORBIS", format="OGG")
    file.seek(0)
    wave, rate = soundfile.read(file, dtype="float32", always_2d=True)
    return Clip(torch.from_numpy(wave.T.copy()), rate)


def same_tokens(clip: Clip, mini: MusicGen) -> Clip:
    batch = mini.encode([clip])
    part = replace(batch, codes=batch.codes[..., 20:180], lengths=torch.tensor([160]))
    return mini.decode(part)[0]


@pytest.mark.parametrize("disguise", [as_it_is, louder, coded_again, same_tokens])
def test_a_copy_among_honest_clips_raises_the_alarm(
    disguise: object,
    embedder: ClapEmbedder,
    mini: MusicGen,
    training: CopyFeatures,
    held_out: CopyFeatures,
) -> None:
    copy = disguise(tune(1), mini)  # type: ignore[operator]
    report = copying(heard([tune(200), copy, tune(201)], embedder, mini), training, held_out)
    assert report.alarm
    assert "made 1 at" in report.alarm_reason and "training 1 at" in report.alarm_reason
    assert report.nearest[1]["chroma"].name == "training 1"
    assert report.values["chroma"][1].max() > report.thresholds["chroma"]
    assert report.values["chroma"][0].max() < report.values["chroma"][1].max() - 0.1


def test_the_place_of_a_copy_is_told(
    embedder: ClapEmbedder, mini: MusicGen, training: CopyFeatures, held_out: CopyFeatures
) -> None:
    made = heard([tune(2).crop(2.0, 3.0)], embedder, mini)
    near = copying(made, training, held_out).nearest[0]["chroma"]
    assert near.name == "training 2" and near.clip == 2 and near.start == 0
    assert near.training_start == pytest.approx(2.0, abs=0.1)


def test_a_model_that_repeats_tokens_is_found_by_the_round_trip(
    embedder: ClapEmbedder, mini: MusicGen, training: CopyFeatures, held_out: CopyFeatures
) -> None:
    made = heard([same_tokens(tune(1), mini)], embedder, mini)
    with_trip = copying(made, training, held_out).nearest[0]["tokens"]
    without = copying(made, replace(training, again=None), held_out).nearest[0]["tokens"]
    assert with_trip.value > 1.2 * without.value
    assert with_trip.value > 2 * copying(made, training, held_out).thresholds["tokens"]


def test_other_music_of_the_same_kind_raises_none(
    embedder: ClapEmbedder, mini: MusicGen, training: CopyFeatures, held_out: CopyFeatures
) -> None:
    made = heard([tune(300 + i) for i in range(6)], embedder, mini)
    report = copying(made, training, held_out)
    assert not report.alarm
    for name in ("copying/clap", "copying/chroma", "copying/tokens"):
        score = report.scores[name]
        assert isinstance(score, Score)
        assert 0 <= score.low <= score.value <= 0.5 and score.high <= 1 and score.n == 6


def test_held_out_clips_against_themselves_are_never_above(
    training: CopyFeatures, held_out: CopyFeatures
) -> None:
    report = copying(held_out, training, held_out)
    assert not report.alarm
    score = report.scores["copying/chroma"]
    assert isinstance(score, Score) and score.value == 0 and score.high > 0.2


def test_without_held_out_clips_other_recordings_calibrate(
    embedder: ClapEmbedder, mini: MusicGen
) -> None:
    training = heard([tune(i) for i in range(8)], embedder, mini, "tape")
    assert copying(heard([as_it_is(tune(3), mini)], embedder, mini), training).alarm
    assert not copying(heard([tune(400)], embedder, mini), training).alarm


def test_one_recording_cannot_tell(embedder: ClapEmbedder) -> None:
    training = heard([tune(0), tune(1)], embedder, name="training")
    training = replace(training, recordings=("tape", "tape"))
    report = copying(heard([tune(0)], embedder), training)
    assert not report.alarm and report.alarm_reason.startswith("not known: ")
    score = report.scores["copying/chroma"]
    assert isinstance(score, NotComputed) and "one recording" in score.reason
    assert report.nearest[0]["chroma"].value == pytest.approx(1, abs=1e-4)


def test_silence_is_no_copy(embedder: ClapEmbedder) -> None:
    quiet = Clip(torch.zeros(1, 4 * RATE), RATE)
    half = Clip(torch.cat([tune(5).wave[:, : 4 * RATE], torch.zeros(1, 4 * RATE)], 1), RATE)
    training = heard([half, quiet], embedder, name="training")
    held_out = heard([tune(20), quiet], embedder)
    report = copying(heard([quiet, tune(30)], embedder), training, held_out)
    assert report.nearest[0] == {} and not report.alarm
    assert [len(clip) for clip in report.values["chroma"]] == [0, 5]
    reason = copying(heard([quiet], embedder), training, held_out).scores["copying/clap"]
    assert reason == NotComputed("all made clips are silent")
    reason = copying(heard([tune(30)], embedder), training, heard([quiet], embedder)).scores[
        "copying/clap"
    ]
    assert isinstance(reason, NotComputed) and "held-out clips are silent" in reason.reason
    with pytest.raises(InputError, match="training clips are silent"):
        copying(heard([tune(30)], embedder), heard([quiet], embedder))


def test_very_short_clips_are_heard(embedder: ClapEmbedder) -> None:
    training, held_out = heard([tune(0)], embedder), heard([tune(1), tune(2)], embedder)
    report = copying(heard([tune(9, 0.3), tune(9, 0.01)], embedder), training, held_out)
    assert not report.alarm
    assert [len(clip) for clip in report.values["clap"]] == [1, 1]
    assert report.nearest[0]["chroma"].value == 0


def test_features_that_do_not_fit_are_refused(embedder: ClapEmbedder) -> None:
    training = heard([tune(0)], embedder)
    with pytest.raises(InputError, match="no clips"):
        replace(training, names=())
    with pytest.raises(InputError, match="same clips"):
        replace(training, names=("one", "two"))
    with pytest.raises(InputError, match="token rate"):
        replace(training, tokens=training.chroma)
    narrow = Features.of([clip[:, :5] for clip in training.clap])
    with pytest.raises(InputError, match="dimensions"):
        copying(replace(training, clap=narrow), training)
    broken = Features.of([np.full((9, 8), np.nan, np.float32)])
    with pytest.raises(InputError, match="not finite"):
        copying(replace(training, clap=broken), training)
    without = copying(training, training, training).scores["copying/tokens"]
    assert isinstance(without, NotComputed) and "base model" in without.reason


def test_the_same_clips_give_the_same_report(
    training: CopyFeatures, held_out: CopyFeatures
) -> None:
    def shown(report: CopyingReport) -> str:
        return repr((report.scores, report.thresholds, report.nearest, report.alarm_reason))

    assert shown(copying(held_out, training)) == shown(copying(held_out, training))


def test_originality_is_none_for_a_copy_and_more_for_other_notes() -> None:
    reward = Originality([tune(0), tune(1)])
    quiet = Clip(torch.zeros(1, 4 * RATE), RATE)
    values = reward([tune(1), tune(9), quiet])
    assert values.dtype == torch.float32
    assert values[0] == pytest.approx(0, abs=1e-4) and values[1] > 0.2 and values[2] == 0
    with pytest.raises(InputError, match="no clips"):
        Originality([])


def test_rows_lie_at_whole_steps_also_across_blocks(embedder: ClapEmbedder) -> None:
    long = tune(0, 12.5)
    first, rest = long.crop(0, 7.5), long.crop(7.5, 5)
    for listener in (Excerpts(embedder), ChromaFrames()):
        whole = listener.hear(long)
        parts = [listener.hear(first), listener.hear(rest)]
        assert len(whole) == pytest.approx(sum(len(part) for part in parts), abs=1)
    sound = Excerpts(embedder)
    assert np.array_equal(sound.hear(rest)[0], sound.hear(long)[6])
    lengths = np.linalg.norm(sound.hear(long), axis=1)
    assert lengths == pytest.approx([1] * 9 + [0])


def test_listeners_survive_pickling_and_differ_in_key(
    embedder: ClapEmbedder, mini: MusicGen
) -> None:
    clip = tune(0, 3)
    tokens, again = CodecTokens(mini), CodecTokens(mini, round_trip=True)
    listeners = [Excerpts(embedder), ChromaFrames(), tokens, again]
    assert len({listener.key for listener in listeners}) == 4
    for listener in listeners:
        copy = pickle.loads(pickle.dumps(listener))  # noqa: S301 - our own bytes
        assert copy.key == listener.key
        assert np.array_equal(copy.hear(clip), listener.hear(clip))
    assert tokens.hear(clip).shape == (75, 4)
    assert (tokens.hear(clip)[:, 0] == again.hear(clip)[:, 0]).mean() < 1
