"""Adapters that come and go on a loaded model."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import musictune
from musictune.data.concepts import Concept
from musictune.errors import InputError
from musictune.methods import load_adapter, methods, save_adapter
from musictune.methods.base import TuningMethod, trained_parameters
from musictune.methods.combined import Combined
from musictune.methods.composition import Depth
from musictune.methods.concept_tokens import ConceptTokens
from musictune.methods.full import Full
from musictune.methods.peft import Peft
from musictune.methods.pivotal import Pivotal
from musictune.methods.switching import Adapters
from musictune.models.base import Batch
from musictune.models.musicgen import MusicGen
from tests.methods.toys import LIVE, base, toy

TEXT = "a koto, a reggae and a banjo"


def batch(text: str = TEXT) -> Batch:
    codes = torch.randint(0, 64, (1, 4, 10), generator=torch.Generator().manual_seed(1))
    return Batch(codes, torch.tensor([10]), (text,))


def output(model: MusicGen, text: str = TEXT) -> torch.Tensor:
    with torch.no_grad():
        return model.nll(batch(text))


def saved(word: str, method: TuningMethod, folder: Path) -> Path:
    model = toy()
    whole = Combined([ConceptTokens([Concept(word, "piano", tokens=2)]), method])
    torch.manual_seed(len(word))
    whole.prepare(model, itertools.repeat(batch()))
    whole.attach(model)
    with torch.no_grad():
        for p in trained_parameters(model).values():
            p.add_(0.1 * torch.randn(p.shape))
    save_adapter(model, whole, folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    made: dict[str, TuningMethod] = {
        "koto": Pivotal(fraction=0.3, selection="random"),
        "reggae": Pivotal(fraction=0.2, selection="random", granularity="column"),
        "banjo": Peft("dora", {"r": 2}),
        "gamelan": Full(targets=r"fc1$|layer_norm$"),
    }
    return {word: saved(word, method, root / word) for word, method in made.items()}


def loaded(folders: dict[str, Path]) -> Adapters:
    adapters = Adapters(toy())
    for name, folder in folders.items():
        adapters.add(name, folder)
    return adapters


def test_adapters_are_a_public_name() -> None:
    assert musictune.Adapters is Adapters


def test_one_adapter_is_what_loading_it_gives(folders: dict[str, Path]) -> None:
    adapters = loaded(folders)
    for name, folder in folders.items():
        adapters.use({name: 0.7})
        fresh = toy()
        load_adapter(fresh, folder, 0.7)
        text = f"a {name} piano"
        assert torch.allclose(output(adapters.model, text), output(fresh, text), atol=2e-6), name
        assert adapters.active == {name: 0.7}


_shared: dict[str, Adapters] = {}


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["koto", "reggae", "banjo", "gamelan"]),
            st.floats(-1, 2, allow_nan=False, width=16),
        ),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_was_used_before_leaves_no_trace(
    folders: dict[str, Path], uses: list[dict[str, float]]
) -> None:
    """Any way through mixtures ends at the weights of the last, and the base is the base."""
    adapters = _shared.setdefault("all", loaded(folders))
    backbone = adapters.model.backbone
    for mixture in uses:
        adapters.use(mixture)
    after = {n: p.detach().clone() for n, p in backbone.named_parameters()}
    adapters.use()
    for name, parameter in base().backbone.named_parameters():
        assert torch.equal(backbone.get_parameter(name), parameter), name
    adapters.use(uses[-1])
    for name, parameter in backbone.named_parameters():
        assert torch.equal(after[name], parameter), name


def test_without_any_it_is_the_base_to_the_bit_even_in_words(folders: dict[str, Path]) -> None:
    adapters = loaded(folders)
    assert torch.equal(output(adapters.model), output(base()))
    adapters.use({"koto": 1.0, "reggae": 0.5})
    assert not torch.equal(output(adapters.model), output(base()))
    assert [c.name for c in adapters.model.concepts] == list(folders)
    adapters.use()
    assert adapters.model.concepts == [] and torch.equal(output(adapters.model), output(base()))


def test_a_mixture_is_the_sum_and_depth_scales_it(folders: dict[str, Path]) -> None:
    adapters = loaded({name: folders[name] for name in ("koto", "reggae")})
    depth = Depth(0.2, 1.0)
    adapters.use({"reggae": 0.5, "koto": 1.0}, depth)
    fresh = toy()
    load_adapter(fresh, folders["koto"], 1.0, depth)
    load_adapter(fresh, folders["reggae"], 0.5, depth)
    assert torch.allclose(output(adapters.model), output(fresh), atol=2e-6)


def test_adding_leaves_what_is_in_use(folders: dict[str, Path]) -> None:
    adapters = loaded({"koto": folders["koto"]})
    adapters.use({"koto": 1.0})
    before = output(adapters.model, "a koto")
    adapters.add("banjo", folders["banjo"])
    assert torch.equal(output(adapters.model, "a koto"), before)
    assert adapters.active == {"koto": 1.0} and adapters.names == ["koto", "banjo"]


def test_a_base_in_half_precision_comes_back_to_the_bit(folders: dict[str, Path]) -> None:
    model = toy()
    model.backbone.to(torch.bfloat16)
    before = {n: p.detach().clone() for n, p in model.backbone.named_parameters()}
    adapters = Adapters(model)
    for name in ("koto", "banjo"):
        adapters.add(name, folders[name])
    adapters.use({"koto": 1.0, "banjo": 0.5})
    changed = [n for n, p in model.backbone.named_parameters() if not torch.equal(before[n], p)]
    adapters.use()
    assert changed
    assert all(torch.equal(before[n], p) for n, p in model.backbone.named_parameters())


def test_sparse_adapters_wait_in_little_memory(folders: dict[str, Path]) -> None:
    adapters = loaded({"koto": folders["koto"]})
    entries = round(0.3 * 8 * 16 * 16)
    assert adapters.nbytes == pytest.approx(entries * (8 + 4 + 4), rel=0.01)


def test_mistakes_are_one_line_and_change_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    adapters = loaded({"koto": folders["koto"]})
    adapters.use({"koto": 1.0})
    before = output(adapters.model, "a koto")
    with pytest.raises(InputError, match="'nobody'; known are: koto"):
        adapters.use({"nobody": 1.0})
    with pytest.raises(InputError, match="must be a number"):
        adapters.use({"koto": float("nan")})
    with pytest.raises(InputError, match="is taken by"):
        adapters.add("koto", folders["reggae"])
    with pytest.raises(InputError, match="is given twice"):
        adapters.add("again", folders["koto"])
    with pytest.raises(InputError, match="does not exist"):
        adapters.add("none", tmp_path / "none")
    assert torch.equal(output(adapters.model, "a koto"), before)
    assert adapters.names == ["koto"] and adapters.active == {"koto": 1.0}


@pytest.mark.parametrize("name", LIVE)
def test_what_cannot_be_merged_cannot_be_switched(name: str, tmp_path: Path) -> None:
    model, method = toy(), methods()[name].toy()
    method.prepare(model, itertools.repeat(batch()))
    method.attach(model)
    save_adapter(model, method, tmp_path)
    with pytest.raises(InputError, match=f"cannot be switched: {name}"):
        Adapters(toy()).add("x", tmp_path)
