"""What is exported is what plain peft loads."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from musictune.data.concepts import Concept
from musictune.errors import InputError
from musictune.methods import load_adapter, save_adapter
from musictune.methods.base import TuningMethod, trained_parameters
from musictune.methods.combined import Combined
from musictune.methods.concept_tokens import ConceptTokens
from musictune.methods.export import export_peft
from musictune.methods.full import Full
from musictune.methods.peft import Peft
from musictune.methods.pivotal import Pivotal
from musictune.methods.registry import methods
from musictune.models.base import Batch
from tests.methods.toys import base, toy


def batch(text: str = "slow piano") -> Batch:
    codes = torch.randint(0, 64, (1, 4, 10), generator=torch.Generator().manual_seed(1))
    return Batch(codes, torch.tensor([10]), (text,))


def saved(method: TuningMethod, folder: Path) -> Path:
    model = toy()
    method.prepare(model, itertools.repeat(batch()))
    method.attach(model)
    with torch.no_grad():
        for p in trained_parameters(model).values():
            p.add_(0.1 * torch.randn(p.shape))
    save_adapter(model, method, folder)
    return folder


CASES: dict[str, tuple[TuningMethod, str]] = {
    "element": (Pivotal(fraction=0.1, selection="random"), "SUPERTUNING"),
    "few": (Pivotal(count=3, selection="random"), "SUPERTUNING"),
    "uneven": (Pivotal(count=200, selection="magnitude"), "SUPERTUNING"),
    "row": (Pivotal(fraction=0.2, selection="random", granularity="row"), "LORA"),
    "column": (Pivotal(fraction=0.2, selection="random", granularity="column"), "LORA"),
    "head": (Pivotal(fraction=0.3, selection="random", granularity="head"), "LORA"),
    "channel": (
        Pivotal(fraction=0.2, selection="random", granularity="channel", targets="feed_forward"),
        "LORA",
    ),
    "lora": (Peft("lora", {"r": 2}), "LORA"),
    "oft": (Peft("oft", {"oft_block_size": 4}), "OFT"),
}


@pytest.mark.parametrize("case", CASES)
def test_plain_peft_computes_the_same(case: str, tmp_path: Path) -> None:
    from peft import PeftModel

    method, kind = CASES[case]
    folder, out = saved(method, tmp_path / "run"), tmp_path / "out"
    out.mkdir()
    exported = export_peft(folder, out)
    assert exported.kind == kind and exported.left_out == ()
    assert {p.name for p in out.iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    plain, ours = toy(), toy()
    load_adapter(ours, folder)
    plain.network.decoder = PeftModel.from_pretrained(plain.network.decoder, str(out)).eval()
    with torch.no_grad():
        expected = ours.nll(batch())
        assert torch.allclose(plain.nll(batch()), expected, atol=1e-6)
    assert not torch.allclose(expected, base().nll(batch()), atol=1e-4)
    assert "from_pretrained" in (out / "README.md").read_text()


def test_words_are_said_to_be_left_out(tmp_path: Path) -> None:
    words = ConceptTokens([Concept("zorblax", "piano")])
    folder = saved(Combined([words, Pivotal.toy()]), tmp_path / "run")
    (tmp_path / "out").mkdir()
    exported = export_peft(folder, tmp_path / "out")
    (sentence,) = exported.left_out
    assert "<zorblax>" in sentence and sentence in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("name", ["full", "concept_tokens", "bottleneck", "prefix"])
def test_what_peft_has_no_place_for_is_refused(name: str, tmp_path: Path) -> None:
    method = Full(targets=r"fc1$") if name == "full" else methods()[name].toy()
    folder = saved(method, tmp_path / "run")
    with pytest.raises(InputError, match="cannot be exported to peft") as caught:
        export_peft(folder, tmp_path)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_an_old_peft_is_told_to_be_updated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import peft

    folder = saved(Pivotal(fraction=0.1, selection="random"), tmp_path / "run")
    monkeypatch.delattr(peft, "SupertuningConfig")
    with pytest.raises(InputError, match=r"update it to 0\.21"):
        export_peft(folder, tmp_path)
