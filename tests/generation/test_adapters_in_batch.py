"""Several adapters in one batch: each clip is as it would be with its adapter alone."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from musictune.data.concepts import Concept
from musictune.errors import InputError
from musictune.generation import Engine, Request, Sampling
from musictune.generation.adapters import AdapterSet
from musictune.generation.precision import PRECISIONS
from musictune.methods import load_adapter, methods, save_adapter
from musictune.methods.base import TuningMethod, trained_parameters
from musictune.methods.combined import Combined
from musictune.methods.concept_tokens import ConceptTokens
from musictune.methods.full import Full
from musictune.methods.peft import Peft
from musictune.methods.pivotal import Pivotal
from musictune.methods.relative_bias import RelativeBias
from musictune.models.base import Batch
from musictune.models.melody import MusicGenMelody
from musictune.models.musicgen import MusicGen
from tests.methods.toys import LIVE, base, toy

GREEDY = Sampling(top_k=1)
PROMPT = "a slow koto piano"  # one word is nobody's, or an adapter's own

SMALL: dict[str, TuningMethod] = {
    "elements": Pivotal(fraction=0.2, selection="random"),
    "rows": Pivotal(fraction=0.2, selection="random", granularity="row"),
    "columns": Pivotal(fraction=0.2, selection="random", granularity="column"),
    "everywhere": Pivotal(fraction=0.2, selection="random", targets="all"),
    "cross": Pivotal(
        fraction=0.3, selection="random", granularity="column", targets="cross_attention"
    ),
    "lora": Peft("lora", {"r": 2}, targets="all"),
    "rslora": Peft("rslora", {"r": 3}),
    "pissa": Peft("pissa", {"r": 2}),
    "shira": Peft("shira", {"r": 2}),
}


def saved(method: TuningMethod, folder: Path, word: str | None = None) -> Path:
    """An adapter that says something else than the base at once."""
    model = toy()
    if word is not None:
        method = Combined([ConceptTokens([Concept(word, "piano", tokens=2)]), method])
    codes = torch.randint(0, 64, (1, 4, 10), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(len(folder.name))
    method.prepare(model, itertools.repeat(Batch(codes, torch.tensor([10]), ("piano",))))
    method.attach(model)
    with torch.no_grad():
        for parameter in trained_parameters(model).values():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    save_adapter(model, method, folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    words = {"elements": "koto", "lora": "koto", "rows": "banjo"}
    return {name: saved(each, root / name, words.get(name)) for name, each in SMALL.items()}


@pytest.fixture(scope="module")
def mixed(folders: dict[str, Path]) -> Engine:
    engine = Engine(toy(), "float32")
    for name, folder in folders.items():
        engine.adapters.add(name, folder)
    return engine


def merged(folder: Path | None, weight: float = 1.0) -> Engine:
    model = toy()
    if folder is not None:
        load_adapter(model, folder, weight)
    return Engine(model, "float32")


def alone(engine: Engine, request: Request, adapter: str | None = None) -> torch.Tensor:
    """With guidance's second row, as in any batch that has it."""
    asked = Request(
        request.prompt, request.seconds, request.seed, request.sampling, adapter=adapter
    )
    return dict(engine.play([asked]))[0]


@pytest.mark.parametrize(
    ("names", "sampling", "seconds"),
    [(["everywhere", None, "lora"], GREEDY, 4.0), ([*SMALL, None], Sampling(), 0.6)],
    ids=["greedy", "sampled"],
)
def test_each_clip_is_as_with_its_adapter_alone(
    mixed: Engine,
    folders: dict[str, Path],
    names: list[str | None],
    sampling: Sampling,
    seconds: float,
) -> None:
    asked = [Request(PROMPT, seconds, 5, sampling, adapter=name) for name in names]
    together = dict(mixed.play(asked, batch=len(asked)))
    for index, request in enumerate(asked):
        name = request.adapter
        expected = alone(merged(folders[name] if name else None), request)
        assert torch.equal(together[index], expected), name
    different = {tuple(codes.flatten().tolist()) for codes in together.values()}
    assert len(different) == len(names)


_heard: dict[tuple[str | None, float], torch.Tensor] = {}


@given(st.permutations([*SMALL, "rows", None, None]), st.integers(1, 12))
@settings(max_examples=4, deadline=None)
def test_order_and_batch_are_not_heard(mixed: Engine, order: list[str | None], batch: int) -> None:
    """Clips of one adapter also stand apart, and move when others leave."""
    lengths = [0.1 + 0.06 * (i % 3) for i in range(len(order))]
    asked = [Request(PROMPT, lengths[i], 3, adapter=name) for i, name in enumerate(order)]
    for index, codes in mixed.play(asked, batch=batch):
        name, seconds = order[index], lengths[index]
        if (name, seconds) not in _heard:
            _heard[name, seconds] = alone(mixed, asked[index], name)
        assert torch.equal(codes, _heard[name, seconds])


@pytest.mark.parametrize("precision", [p for p in PRECISIONS if p != "float32"])
def test_packed_weights_keep_the_law_of_batches(folders: dict[str, Path], precision: str) -> None:
    engine = Engine(toy(), precision)
    for name in ("elements", "columns", "lora"):
        engine.adapters.add(name, folders[name])
    names = ["lora", None, "elements", "columns", "lora"]
    asked = [Request(PROMPT, 0.4, 3, adapter=name) for name in names]
    together = dict(engine.play(asked))
    assert torch.equal(together[0], together[4])
    for index, request in enumerate(asked):
        assert torch.equal(together[index], alone(engine, request, request.adapter))
    assert len({tuple(codes.flatten().tolist()) for codes in together.values()}) == 4


def test_large_changes_are_multiplied_in_other_ways(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows and columns as dense matrices, adapters one after another, to the same music."""
    monkeypatch.setattr("musictune.generation.deltas._SMALL", 0)
    engine = Engine(toy(), "float32")
    names = ["rows", "elements", "cross", "lora", "columns", "pissa", "rows", "lora"]
    for name in set(names):
        engine.adapters.add(name, folders[name])
    asked = [Request(PROMPT, 0.6, 3, adapter=name) for name in names]
    for index, codes in engine.play(asked):
        assert torch.equal(codes, alone(engine, asked[index], names[index]))
        assert torch.equal(codes, alone(merged(folders[names[index]]), asked[index]))


def test_what_was_played_goes_on_the_same_when_given(mixed: Engine) -> None:
    for name in SMALL:
        request = Request(PROMPT, 0.4, 3, adapter=name)
        ((_, whole),) = mixed.play([request])
        again = Request(PROMPT, 0.4, 3, given=whole[:, :11], adapter=name)
        ((_, continued),) = mixed.play([again])
        assert torch.equal(continued, whole), name


def test_the_model_stays_as_it_is_to_the_bit(folders: dict[str, Path]) -> None:
    model = toy()
    before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    kinds = {type(module) for module in model.modules()}
    engine = Engine(model, "float32")
    for name, folder in folders.items():
        engine.adapters.add(name, folder)
    list(engine.play([Request(PROMPT, 0.2, adapter=name) for name in [*folders, None]]))
    after = model.state_dict()
    assert list(after) == list(before) and kinds == {type(module) for module in model.modules()}
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert model.concepts == [] and len(model.tokenizer) == len(base().tokenizer)


def test_a_weight_is_that_of_load_adapter(folders: dict[str, Path]) -> None:
    engine = Engine(toy(), "float32")
    for name in ("elements", "lora"):
        engine.adapters.add(name, folders[name], 0.5)
        request = Request(PROMPT, 1.0, 3, GREEDY)
        half = alone(engine, request, name)
        assert torch.equal(half, alone(merged(folders[name], 0.5), request))
        assert not torch.equal(half, alone(merged(folders[name]), request))


def test_words_are_known_to_the_adapters_own_clips_only(mixed: Engine) -> None:
    """Two of these teach the same word, and prompts name words of others."""
    assert mixed.adapters.concepts("elements") == mixed.adapters.concepts("lora")
    model = mixed.model
    for name, word in (("elements", "koto"), ("rows", "banjo")):
        with mixed.adapters.speaking(name):
            assert [concept.name for concept in model.concepts] == [word]
            assert len(set(model.tokens([word])[0][0].tolist())) == 3
        unknown = model.tokens([word])[0]
        assert torch.equal(unknown, base().tokens(["nonsense"])[0])


def test_blocks_that_do_not_fold_their_scale(folders: dict[str, Path]) -> None:
    """A live method in the base keeps queries unscaled; changes of them are, too."""
    asked = [Request(PROMPT, 1.0, 3, GREEDY, adapter=name) for name in ("everywhere", "lora")]

    def with_bias(model: MusicGen) -> Engine:
        method = RelativeBias.toy()
        method.attach(model)
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in trained_parameters(model).values():
                parameter.add_(0.5 * torch.randn(parameter.shape))
        return Engine(model, "float32")

    model = toy()
    adapters = AdapterSet(model)
    for name in ("everywhere", "lora"):
        adapters.add(name, folders[name])
    engine = with_bias(model)
    together = dict(Engine(model, "float32", adapters).play(asked))
    for index, name in enumerate(("everywhere", "lora")):
        expected = alone(with_bias(merged(folders[name]).model), asked[index])
        assert torch.equal(together[index], expected), name
    assert not torch.equal(together[0], alone(engine, asked[0]))


def test_bases_that_read_their_conditions_first(tmp_path: Path) -> None:
    model = MusicGenMelody.toy()
    method = Combined([ConceptTokens.toy(), Pivotal(0.2, selection="random")])
    method.prepare(model, iter(()))
    method.attach(model)
    with torch.no_grad():
        for parameter in trained_parameters(model).values():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    save_adapter(model, method, tmp_path)
    fresh = MusicGenMelody.toy()
    load_adapter(fresh, tmp_path)
    engine = Engine(MusicGenMelody.toy(), "float32")
    engine.adapters.add("a", tmp_path)
    asked = [Request("zorblax drums", 1.0, 3, adapter=name) for name in ("a", None)]
    together = dict(engine.play(asked))
    assert torch.equal(together[0], alone(Engine(fresh, "float32"), asked[0]))
    assert torch.equal(together[1], alone(Engine(MusicGenMelody.toy(), "float32"), asked[1]))
    assert not torch.equal(together[0], together[1])


def test_changes_take_a_few_bytes_per_weight(folders: dict[str, Path]) -> None:
    adapters = AdapterSet(toy())
    adapters.add("a", folders["shira"])
    before = adapters.nbytes
    adapters.add("b", folders["elements"])
    entries, starts = round(0.2 * 8 * 16 * 16), 4 * (2 * (3 * 16 + 1) + 2 * (16 + 1))
    assert adapters.nbytes - before == 8 * entries + starts


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (Full(targets="fc1$"), "layers.0.fc1.weight as a whole"),
        (Full(targets="layer_norm$"), "norm"),
        (Peft("dora", {"r": 2}), "as a whole"),
        *((methods()[name].toy(), "no change of weights") for name in LIVE),
    ],
    ids=lambda value: value.name if isinstance(value, TuningMethod) else "",
)
def test_what_cannot_play_beside_others_is_refused(
    method: TuningMethod, reason: str, tmp_path: Path
) -> None:
    saved(method, tmp_path / "x", "zorblax")
    model = toy()
    adapters = AdapterSet(model)
    with pytest.raises(InputError, match=f"cannot play beside others: .*{reason}") as caught:
        adapters.add("x", tmp_path / "x")
    assert "\n" not in str(caught.value) and adapters.names == []
    ours, theirs = dict(model.named_parameters()), dict(base().named_parameters())
    assert list(ours) == list(theirs) and model.concepts == []
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_mistakes_are_one_line(mixed: Engine, folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'nobody'; known are: elements, rows"):
        mixed.check(Request("piano", 1.0, adapter="nobody"))
    with pytest.raises(InputError, match="'nobody'; known are: none"):
        list(Engine(toy()).play([Request("piano", 1.0, adapter="nobody")]))
    with pytest.raises(InputError, match="is taken by"):
        mixed.adapters.add("rows", folders["lora"])
    with pytest.raises(InputError, match="must be a number"):
        mixed.adapters.add("new", folders["lora"], float("nan"))
    with pytest.raises(InputError, match="does not exist"):
        mixed.adapters.add("new", tmp_path / "none")
    with pytest.raises(InputError, match="made for base"):
        AdapterSet(MusicGen.toy(2)).add("new", folders["rows"])
