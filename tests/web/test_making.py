"""Pairs that are made while one listens: same prompt, same seed, and never twice."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from musictune.audio import read
from musictune.data.concepts import Concept
from musictune.data.kept_tokens import kept_tokens
from musictune.data.preferences import read_pairs
from musictune.data.vote_types import Pair
from musictune.errors import InputError
from musictune.generation import Engine
from musictune.methods import save_adapter
from musictune.methods.concept_tokens import ConceptTokens
from musictune.models.musicgen import MusicGen
from musictune.web.making import BASE, PairMaker, Plan, load_systems

PROMPTS = ("slow zorblax", "fast drums", "slow zorblax")
SECONDS = 0.4


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "toy"
    MusicGen.toy().save(folder)
    return folder


@pytest.fixture(scope="module")
def run(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An adapter whose word sounds unlike anything."""
    folder = tmp_path_factory.mktemp("run")
    model = MusicGen.load(toy)
    method = ConceptTokens([Concept("zorblax", "piano")])
    method.attach(model)
    with torch.no_grad():
        model.text_encoder.get_input_embeddings().rows.mul_(-30)
    save_adapter(model, method, folder / "adapter")
    return str(folder)


@pytest.fixture
def plan(toy: Path, run: str) -> Plan:
    return Plan(str(toy), (run, BASE), PROMPTS, SECONDS, seed=3)


def until(met: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not met():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def test_pairs_are_made_as_generate_would(plan: Plan, tmp_path: Path) -> None:
    added: list[Pair] = []
    engines = load_systems(plan)
    maker = PairMaker(plan, engines, tmp_path / "audio", added.append)
    assert (maker.ready, maker.planned, maker.trouble) == (0, 3, "")
    maker.start()
    until(lambda: maker.ready == 3 or maker.trouble)
    maker.stop()
    assert maker.trouble == ""
    assert added == read_pairs(tmp_path / "audio")
    assert [pair.prompt for pair in added] == list(PROMPTS)
    assert {(pair.system_a, pair.system_b) for pair in added} == {plan.systems}
    # The same prompt again is another piece, and the two systems are two.
    assert len({path.read_bytes() for pair in added for path in (pair.a, pair.b)}) >= 5
    base = Engine(MusicGen.load(plan.base))
    asked = [("slow piano", 3), ("fast drums", 3), ("slow piano", 4)]
    for pair, (text, seed) in zip(added, asked, strict=True):
        made, clips = base.rollout([text], SECONDS, [seed])
        assert torch.allclose(read(pair.b).wave, clips[0].wave, atol=1e-4)
        kept = kept_tokens(pair.b, base.model.codec_key)
        assert kept is not None and torch.equal(kept, made.codes[0])
    tuned = engines[0].rollout(["slow zorblax"], SECONDS, [3])[0].codes[0]
    kept = kept_tokens(added[0].a, base.model.codec_key)
    assert kept is not None and torch.equal(kept, tuned)
    assert not torch.equal(kept, kept_tokens(added[0].b, base.model.codec_key))


def test_what_was_made_is_not_made_again(plan: Plan, tmp_path: Path) -> None:
    engines, folder = load_systems(plan), tmp_path / "audio"
    one = Plan(plan.base, plan.systems, PROMPTS[:1], SECONDS, plan.seed)
    maker = PairMaker(one, engines, folder, lambda pair: None)
    maker.start()
    until(lambda: maker.ready == 1)
    maker.stop()
    (first,) = read_pairs(folder)
    written = first.a.stat().st_mtime_ns
    added: list[Pair] = []
    more = PairMaker(plan, engines, folder, added.append)
    assert (more.ready, more.planned, added) == (1, 3, [first])
    more.start()
    until(lambda: more.ready == 3)
    more.stop()
    assert [pair.prompt for pair in read_pairs(folder)] == [PROMPTS[0], *PROMPTS[1:]]
    assert first.a.stat().st_mtime_ns == written


def test_pairs_of_another_plan_are_not_mixed_in(plan: Plan, toy: Path, tmp_path: Path) -> None:
    engines, folder = load_systems(plan), tmp_path / "audio"
    PairMaker(plan, engines, folder, lambda pair: None)
    other = Plan(plan.base, plan.systems, PROMPTS, SECONDS, seed=4)
    with pytest.raises(InputError, match="has pairs with other seed; use another --store"):
        PairMaker(other, engines, folder, lambda pair: None)
    (folder / "plan.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        PairMaker(plan, engines, folder, lambda pair: None)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "song.wav").write_text("")
    with pytest.raises(InputError, match="something else in it"):
        PairMaker(plan, engines, tmp_path / "mine", lambda pair: None)


def test_it_stops_in_the_middle_of_a_clip(plan: Plan, tmp_path: Path) -> None:
    long = Plan(plan.base, plan.systems, ("one",), 5.0)
    maker = PairMaker(long, load_systems(plan), tmp_path / "audio", lambda pair: None)
    maker.start()
    maker.stop()
    assert (maker.ready, maker.trouble) == (0, "")
    assert [path.name for path in (tmp_path / "audio").iterdir()] == ["plan.json"]
    assert json.loads((tmp_path / "audio" / "plan.json").read_text())["seconds"] == 5.0


def test_what_goes_wrong_is_told(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: Pair) -> None:
        raise InputError("disk full")

    maker = PairMaker(plan, load_systems(plan), tmp_path / "audio", full)
    maker.start()
    until(lambda: maker.trouble)
    maker.stop()
    assert (maker.ready, maker.trouble) == (0, "disk full")
    assert "no more pairs will be made: disk full" in capsys.readouterr().err


def test_plans_that_cannot_be(toy: Path, run: str) -> None:
    base = str(toy)
    for systems in ((run,), (run, run), (run, BASE, f"{run}=0.5"), ()):
        with pytest.raises(InputError, match="give two different ones"):
            Plan(base, systems, PROMPTS)
    with pytest.raises(InputError, match="does not exist"):
        Plan(base, ("nowhere", BASE), PROMPTS)
    with pytest.raises(InputError, match="no prompt"):
        Plan(base, (run, BASE), ())
    with pytest.raises(InputError, match="seed -1"):
        Plan(base, (run, BASE), PROMPTS, seed=-1)
    for seconds in (0.0, float("nan")):
        with pytest.raises(InputError, match="choose a length above 0"):
            Plan(base, (run, BASE), PROMPTS, seconds)
    with pytest.raises(InputError, match="too long"):
        load_systems(Plan(base, (run, BASE), PROMPTS, 1e6))
