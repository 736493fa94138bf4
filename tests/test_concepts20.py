"""datasets/concepts20: twenty concepts the base never hears, with prompts it can read."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest

from musictune.audio import Clip
from musictune.bench import concept_audio
from musictune.bench.concept_audio import CLIPS, Plan, compositions, read_plans, render_set
from musictune.bench.concept_set import PLACEHOLDER, read_concept_set
from musictune.compose.instruments import HELD_OUT, INSTRUMENTS
from musictune.compose.notes import Score
from musictune.compose.render import SOUNDFONTS
from musictune.compose.score import write_score
from musictune.compose.styles import HELD_OUT_STYLES, STYLES
from musictune.data.clips import read_clips
from musictune.data.concepts import Concept, captions_for, plain
from musictune.errors import InputError
from musictune.files import sha256

FOLDER = Path(__file__).resolve().parents[1] / "datasets" / "concepts20"
CONCEPTS = FOLDER / "concepts.json"
PLANS = read_plans(CONCEPTS, Path("set"))
BY_NAME = {plan.concept.name: plan for plan in PLANS}

playable = pytest.mark.skipif(
    not any(path.is_file() for path in SOUNDFONTS), reason="no General MIDI SoundFont installed"
)
every = pytest.mark.parametrize("plan", PLANS, ids=list(BY_NAME))


@pytest.fixture(scope="module")
def words() -> set[str]:
    """Every word of the captions that a base model is trained on."""
    return {
        word
        for seed in range(2500)
        for caption in write_score(seed, seconds=2.0).truth.captions
        for word in re.findall(r"[A-Za-z#-]+", caption)
    }


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prepare", FOLDER / "prepare.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ten_instruments_and_ten_styles_all_held_out() -> None:
    programs = [plan.choices["program"] for plan in PLANS if plan.concept.kind == "instrument"]
    styles = [plan.choices["style"] for plan in PLANS if plan.concept.kind == "style"]
    assert sorted(programs) == sorted(HELD_OUT) and len(programs) == 10
    assert sorted(styles) == sorted(HELD_OUT_STYLES) and len(styles) == 10


@every
def test_prompts_can_be_read_by_the_base(plan: Plan, words: set[str]) -> None:
    concept = plan.concept
    assert len(concept.keep) == len(concept.move) == 10
    assert len({*concept.keep, *concept.move}) == 20
    assert set(concept.class_word.split()) <= words
    known = {name for item in INSTRUMENTS.values() for name in item.names}
    known |= {name for style in STYLES.values() for name in style.names}
    assert concept.class_word in known
    for prompt in (*concept.keep, *concept.move):
        assert prompt.count(PLACEHOLDER) == 1
        rest = prompt.replace(PLACEHOLDER, "")
        assert set(re.findall(r"[A-Za-z#-]+", rest)) <= words, prompt
        assert concept.class_word not in rest, prompt
        read = prompt.replace(PLACEHOLDER, concept.class_word)
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", read), read
        assert plain(prompt.replace(PLACEHOLDER, f"<{concept.name}>"), [_trigger(plan)]) == read


def _trigger(plan: Plan) -> Concept:
    return Concept(plan.concept.name, plan.concept.class_word)


def test_recordings_have_prompts_too() -> None:
    prompts = json.loads(CONCEPTS.read_text(encoding="utf-8"))["recordings"]
    assert [len(set(prompts[key])) for key in ("keep", "move")] == [10, 10]
    assert all(prompt.count(PLACEHOLDER) == 1 for key in prompts for prompt in prompts[key])


def _scores(plan: Plan) -> Iterator[tuple[int, Score]]:
    yield from compositions(plan)
    yield from compositions(plan, heldout=True)


@every
def test_clips_differ_in_all_but_the_concept(plan: Plan) -> None:
    made = list(_scores(plan))
    truths = [score.truth for _, score in made]
    assert len(made) == 2 * CLIPS and len({seed for seed, _ in made}) == len(made)
    assert all(plan.seed <= seed < plan.seed + 10_000 for seed, _ in made)
    assert len({score.parts for _, score in made}) == len(made)
    for half in (truths[:CLIPS], truths[CLIPS:]):
        assert len({truth.key for truth in half}) >= 6
        assert len({truth.tempo for truth in half}) >= 6
    used = {part.program for _, score in made for part in score.parts if part.role != "drums"}
    if plan.concept.kind == "style":
        assert {truth.style for truth in truths} == {plan.choices["style"]}
        assert len({truth.lead for truth in truths}) == len(made)
        assert not used & set(HELD_OUT)
    else:
        assert used & set(HELD_OUT) == {plan.choices["program"]}
        assert {truth.lead for truth in truths} == {HELD_OUT[plan.choices["program"]].name}
        assert {truth.texture for truth in truths} == {"solo", "duo", "band"}
        assert not {truth.style for truth in truths} & set(HELD_OUT_STYLES)


def test_seeds_lie_far_from_those_of_training() -> None:
    seeds = sorted(plan.seed for plan in PLANS)
    assert seeds[0] >= 50_000_000
    assert all(b - a >= 10_000 for a, b in pairwise(seeds))


@every
def test_captions_say_the_class_word_where_the_trigger_goes(plan: Plan) -> None:
    names = (
        HELD_OUT_STYLES[plan.choices["style"]].names
        if plan.concept.kind == "style"
        else HELD_OUT[plan.choices["program"]].names
    )
    for _, score in _scores(plan):
        captions = concept_audio._captions(score.truth, plan)
        assert len(captions) == len(score.truth.captions)
        for caption in captions:
            assert plan.concept.class_word in caption
            for name in names:
                if name not in plan.concept.class_word:
                    assert not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", caption)
        trained = captions_for(captions[0], _trigger(plan), 1, 0)[0]
        assert trained.count(f"<{plan.concept.name}> {plan.concept.class_word}") == 1
        assert plain(trained, [_trigger(plan)]) == captions[0]


def test_checksums_cover_the_whole_set() -> None:
    lines = (FOLDER / "checksums.txt").read_text(encoding="utf-8").splitlines()
    assert all(re.fullmatch(r"[0-9a-f]{64}  \S+", line) for line in lines)
    wanted = {f"{name}/{part}" for name in BY_NAME for part in ("reference", "heldout")}
    assert {line.split()[1] for line in lines} == wanted | {"soundfont"}
    assert len(lines) == 41


def test_unknown_names_and_broken_lists_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'lute' is not known; choose of koto"):
        read_plans(CONCEPTS, tmp_path, ["lute"])
    for text in ("{", "[]", '{"concepts": [3]}', '{"concepts": [{"name": "koto"}]}'):
        (tmp_path / "broken.json").write_text(text)
        with pytest.raises(InputError, match=r"broken\.json"):
            read_plans(tmp_path / "broken.json", tmp_path)


@playable
def test_prepare_writes_a_set_that_is_read_and_always_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tinysoundfont", reason="the extra 'compose' is not installed")
    monkeypatch.setattr(concept_audio, "CLIPS", 2)
    monkeypatch.setattr(concept_audio, "SECONDS", 2.0)
    prepare = _module().prepare
    out = tmp_path / "set"
    prepare(out=out, only=["music_box", "ragtime"])
    assert "warning: music_box/heldout" in capsys.readouterr().err  # shortened, so it differs
    concepts = read_concept_set(out)
    assert [concept.name for concept in concepts] == ["music_box", "ragtime"]
    for concept in concepts:
        for part in (concept.reference, concept.heldout):
            clips: list[Clip] = read_clips(part)
            assert [clip.seconds for clip in clips] == [2.0, 2.0]
            assert all(concept.class_word in clip.caption for clip in clips)
            rows = [json.loads(line) for line in (part / "metadata.jsonl").open()]
            assert {"key", "tempo", "beats", "lead", "style", "seed"} <= set(rows[0])
    for line in (out / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert sha256(out / name) == digest
    assert len((out / "SHA256SUMS").read_text().splitlines()) == 2 * (2 * 3 + 1)
    again = render_set(read_plans(CONCEPTS, tmp_path / "again", ["ragtime"]))
    assert again["ragtime/reference"] == concept_audio.pcm_sha256(out / "ragtime" / "reference")
    with pytest.raises(InputError, match="already exists"):
        prepare(out=out, only=["koto", "ragtime"])
    assert not (out / "koto").exists()
    prepare(out=out, only=["koto"])
    assert len(read_concept_set(out)) == 3


def test_prepare_refuses_options_that_do_not_fit(tmp_path: Path) -> None:
    prepare = _module().prepare
    for wishes in (
        {"name": "mybox"},
        {"recordings": tmp_path},
        {"recordings": tmp_path, "name": "mybox", "class_word": "music box", "only": ["koto"]},
        {"publish": True, "only": ["koto"]},
    ):
        with pytest.raises(InputError):
            prepare(out=tmp_path / "set", **wishes)
    assert not (tmp_path / "set").exists()


@playable
@pytest.mark.slow
def test_the_published_audio_is_rendered_again_to_the_sample(tmp_path: Path) -> None:
    published = (FOLDER / "checksums.txt").read_text(encoding="utf-8").split()
    if sha256(next(path for path in SOUNDFONTS if path.is_file())) not in published:
        pytest.skip("another SoundFont than the published one")
    made = render_set(read_plans(CONCEPTS, tmp_path, ["koto", "reggae"]))
    assert set(made.values()) <= set(published)
