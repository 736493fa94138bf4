"""Recipes: what can be written, what is refused, and that every shipped one runs."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
import yaml

from musictune.data.tokens import TokenDataset
from musictune.errors import InputError
from musictune.methods.combined import Combined
from musictune.methods.concept_tokens import ConceptTokens
from musictune.methods.full import Full
from musictune.methods.peft import Peft
from musictune.methods.pivotal import Pivotal
from musictune.models.musicgen import MusicGen
from musictune.training.loop import fit
from musictune.training.mezo import GradientFree
from musictune.training.recipe import load_recipe
from musictune.training.settings import TrainingSettings
from musictune.training.stream import BatchStream
from musictune.training.tuning import Tuning

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = ["pivotal", "lora", "dora", "pissa", "full", "concept_tokens", "concepts", "mezo"]
RECIPES += ["pivotal_columns", "bottleneck", "ssf", "prefix", "prompt_tuning"]
CONCEPT = {"run.concept": "zorblax", "run.class_word": "piano"}


def dataset() -> TokenDataset:
    codes = [torch.randint(0, 64, (4, 30)) for _ in range(3)]
    return TokenDataset(codes, [["<zorblax> piano", "slow <zorblax>"]] * 3, 10, seed=1)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_finishes_two_steps(name: str, tmp_path: Path) -> None:
    path = CONFIGS / f"{name}.yaml"
    text = path.read_text()
    assert len(text.splitlines()) < 40
    assert text.startswith("# musictune tune ")
    overrides = {**CONCEPT, "training.steps": 2}
    recipe = load_recipe([path], [], overrides)
    model, data = MusicGen.toy(), dataset()
    stream = BatchStream(data, 2, 0)
    for part in recipe.method.methods if isinstance(recipe.method, Combined) else []:
        if isinstance(part, Pivotal):
            part.probe_steps = 1
    recipe.method.prepare(model, stream.batches())
    recipe.method.attach(model)
    before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    kind = GradientFree if recipe.training.optimizer == "mezo" else Tuning
    fit(kind(model, recipe.method, recipe.training), stream, tmp_path, torch.device("cpu"))
    after = [p for p in model.parameters() if p.requires_grad]
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 4
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_later_sources_win_and_the_text_gives_the_recipe_again(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("method:\n  init_args:\n    fraction: 0.2\ntraining:\n  lr: 0.5\n  batch: 7\n")
    recipe = load_recipe(
        [CONFIGS / "pivotal.yaml", mine], ["training.lr=0.25"], {"training.steps": 9, **CONCEPT}
    )
    assert (recipe.training.steps, recipe.training.lr, recipe.training.batch) == (9, 0.25, 7)
    assert isinstance(recipe.method, Combined)
    tokens, pivotal = recipe.method.methods
    assert isinstance(tokens, ConceptTokens)
    assert isinstance(pivotal, Pivotal)
    assert pivotal.fraction == 0.2
    saved = tmp_path / "config.yaml"
    saved.write_text(recipe.text)
    assert load_recipe([saved]).text == recipe.text
    assert yaml.safe_load(recipe.text)["run"]["concept"] == "zorblax"


@pytest.mark.parametrize(
    ("name", "kind"),
    [("pivotal", Pivotal), ("full", Full), ("lora", Peft), ("peft:oft", Peft), ("peft", Peft)],
)
def test_short_names_of_methods(name: str, kind: type) -> None:
    assert isinstance(load_recipe(method=name).method, kind)


def test_concept_tokens_alone_are_not_doubled() -> None:
    recipe = load_recipe(method="concept_tokens", overrides={**CONCEPT, "run.tokens": 3})
    assert isinstance(recipe.method, ConceptTokens)
    assert [c.tokens for c in recipe.method.concepts] == [3]
    assert isinstance(load_recipe().method, Pivotal)


def test_an_outsiders_class_works_by_its_full_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "somebody.py").write_text(
        "from musictune.methods.full import Full\nclass Mine(Full):\n    name = 'mine'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    recipe = tmp_path / "r.yaml"
    recipe.write_text("method:\n  class_path: somebody.Mine\n")
    assert type(load_recipe([recipe]).method).__name__ == "Mine"


@pytest.mark.parametrize(
    ("sets", "overrides", "says"),
    [
        (["training.stepz=3"], {}, "stepz"),
        (["training.lr=fast"], {}, r"training.lr: .*fast"),
        (["method.no=1"], {}, "'no' is not accepted; pivotal has fraction, .*exchange$"),
        (["method.scope=galaxy"], {}, r"method\.scope: Expected one of 'global', 'matrix'"),
        (["method.seed=9999999999999999999"], {}, "seed 9999999999999999999 must be"),
        ([], {"training.seed": 10**19}, "seed 10000000000000000000 must be at most"),
        (["training.prior=100000000000"], {}, "prior 100000000000 must be at most 100000"),
        (["fraction"], {}, "key=value"),
        (["method.fraction=2.0"], {}, "fraction"),
        *(
            ([f"method.selection={rule}"], {"training.optimizer": "mezo"}, "has no gradients")
            for rule in ("half", "layers", "grow")
        ),
        ([], {"training.steps": 0}, "steps 0 must be at least 1"),
        ([], {"training.lr": ".nan"}, "lr nan"),
        ([], {"run.concept": "zorblax"}, "class word"),
        ([], {"run.concept": "9!", "run.class_word": "piano"}, "concept name"),
    ],
)
def test_what_does_not_fit_is_one_line(
    sets: list[str], overrides: dict[str, object], says: str
) -> None:
    with pytest.raises(InputError, match=says) as caught:
        load_recipe((), sets, overrides)
    assert "\n" not in str(caught.value)


def test_unknown_methods_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'magic' is unknown; choose from .*pivotal"):
        load_recipe(method="magic")
    with pytest.raises(InputError, match="does not exist"):
        load_recipe([tmp_path / "no.yaml"])
    (tmp_path / "bad.yaml").write_text("method: [")
    with pytest.raises(InputError, match=r"bad.yaml is no YAML: .*line 1") as caught:
        load_recipe([tmp_path / "bad.yaml"])
    assert "\n" not in str(caught.value)
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    with pytest.raises(InputError, match=r"empty.yaml holds no settings"):
        load_recipe([tmp_path / "empty.yaml"])
    (tmp_path / "typing.yaml").write_text("run:\n  bsae: mini\n")
    with pytest.raises(InputError, match="option 'bsae'; run has base, clips, "):
        load_recipe([tmp_path / "typing.yaml"])
    with pytest.raises(InputError, match="--concept"):
        load_recipe(method="concept_tokens")


def test_the_rate_rises_then_falls_to_nothing() -> None:
    settings = TrainingSettings(steps=100, warmup=10)
    rates = [settings.rate_at(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[10] == 1.0
    assert rates[100] == pytest.approx(0)
    assert all(a <= b for a, b in itertools.pairwise(rates[:11]))
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert max(TrainingSettings(steps=8, warmup=100).rate_at(s) for s in range(8)) == 1.0


def test_a_stream_begun_later_goes_on_as_the_first_would() -> None:
    data = dataset()
    first = iter(BatchStream(data, 2, seed=4))
    for _ in range(3):
        next(first)
    later = iter(BatchStream(data, 2, seed=4, start=3))
    for _ in range(4):
        ours, theirs = next(first), next(later)
        assert torch.equal(ours["codes"], theirs["codes"])
        assert ours["texts"] == theirs["texts"]
