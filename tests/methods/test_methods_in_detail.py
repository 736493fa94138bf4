"""What is particular to one method: choices, formats, words, and peft's own reader."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, MusicgenForConditionalGeneration

from musictune.data.concepts import Concept
from musictune.errors import InputError
from musictune.methods import attach_adapter, find, load_adapter, save_adapter
from musictune.methods.base import trained_parameters
from musictune.methods.combined import Combined
from musictune.methods.concept_tokens import ConceptTokens
from musictune.methods.full import Full
from musictune.methods.peft import Peft, kinds
from musictune.methods.pivotal import Pivotal
from musictune.methods.storage import load_tensors
from musictune.models.base import Batch
from musictune.models.musicgen import MusicGen
from tests.methods.toys import toy


def batch(*texts: str) -> Batch:
    codes = torch.randint(0, 64, (len(texts), 4, 10), generator=torch.Generator().manual_seed(1))
    return Batch(codes, torch.full((len(texts),), 10), texts)


def perturb(model: MusicGen) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in trained_parameters(model).values():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))


def saved(method: Pivotal | Peft | ConceptTokens | Combined, folder: Path) -> MusicGen:
    model = toy()
    method.prepare(model, itertools.repeat(batch("piano", "guitar")))
    method.attach(model)
    perturb(model)
    save_adapter(model, method, folder)
    return model


def test_pivotal_trains_the_entries_that_the_data_moves() -> None:
    """Only one layer is let near the loss, so all the choice must fall on it."""
    model, method = toy(), Pivotal(fraction=0.05, rounds=2, probe_steps=2)
    last = "model.decoder.layers.1"
    original = model.nll

    def nll(given: Batch) -> torch.Tensor:
        loss = original(given)
        for name, p in model.backbone.named_parameters():
            if p.requires_grad and last not in name:
                p.register_hook(torch.zeros_like)
        return loss

    model.nll = nll  # type: ignore[method-assign]
    method.prepare(model, itertools.repeat(batch("piano", "guitar")))
    method.attach(model)
    assert all(last in name for name in trained_parameters(model))


def test_pivotal_trains_the_share_that_was_asked_for_and_saves_it_sparse(tmp_path: Path) -> None:
    method = Pivotal(fraction=0.1, rounds=2, probe_steps=2)
    saved(method, tmp_path)
    total = 8 * 16 * 16
    assert method.describe()["trained_parameters"] == round(0.1 * total)
    tensors = load_tensors(tmp_path / "pivotal" / "pivotal.safetensors")
    indices = [t for name, t in tensors.items() if name.endswith(".indices")]
    assert all(t.dtype == torch.int32 for t in indices)
    assert sum(len(t) for t in indices) == round(0.1 * total)


def test_two_adapters_add_up(tmp_path: Path) -> None:
    base = dict(toy().named_parameters())
    for name, seed in (("one", 0), ("two", 1)):
        torch.manual_seed(seed)
        saved(Pivotal.toy() if name == "one" else Peft.toy(), tmp_path / name)
    states = {}
    for loaded in (("one",), ("two",), ("one", "two")):
        model = toy()
        for name in loaded:
            load_adapter(model, tmp_path / name, 0.5)
        states[loaded] = dict(model.named_parameters())
    for name in base:
        change = sum(states[(one,)][name] - base[name] for one in ("one", "two"))
        assert torch.allclose(states[("one", "two")][name], base[name] + change, atol=1e-5)


def test_plain_peft_loads_what_is_saved(tmp_path: Path) -> None:
    from peft import PeftModel

    model = saved(Peft("dora", {"r": 2}), tmp_path)
    plain = toy()
    plain.network.decoder = PeftModel.from_pretrained(
        plain.network.decoder, str(tmp_path / "peft")
    ).eval()
    given = batch("slow piano")
    with torch.no_grad():
        assert torch.allclose(plain.nll(given), model.nll(given), atol=1e-6)


@pytest.mark.parametrize("kind", ["boft", "hra", "vera", "loha", "randlora", "shira", "miss"])
def test_more_kinds_of_peft_attach_train_and_merge(kind: str, tmp_path: Path) -> None:
    options = {"boft": {"boft_block_size": 4}, "vera": {"r": 4}}.get(kind, {"r": 2})
    method = Peft(kind, options)
    model = saved(method, tmp_path)
    expected = model.nll(batch("piano")).detach()
    fresh = toy()
    load_adapter(fresh, tmp_path)
    assert torch.allclose(fresh.nll(batch("piano")), expected, atol=1e-4)
    assert not torch.allclose(toy().nll(batch("piano")), expected, atol=1e-4)


def test_unknown_names_say_what_is_allowed() -> None:
    with pytest.raises(InputError, match="lora"):
        Peft("loar")
    with pytest.raises(InputError, match="pivotal"):
        find("magic")
    assert {"lora", "dora", "ia3", "oft", "lokr", "vera"} <= set(kinds())
    assert "prefix_tuning" not in kinds()


@pytest.mark.parametrize(
    "wrong", [{"fraction": 0.0}, {"fraction": 1.5}, {"rounds": 0}, {"probe_lr": -1.0}]
)
def test_options_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Pivotal(**wrong)  # type: ignore[arg-type]


def test_peft_refuses_a_bad_option_in_one_line() -> None:
    with pytest.raises(InputError, match="no_such_option"):
        Peft("lora", {"no_such_option": 1}).attach(toy())


@pytest.mark.parametrize("name", ["piano", "drums"])
def test_a_word_that_the_model_knows_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="already in the model's vocabulary"):
        ConceptTokens([Concept(name, "sound")]).attach(toy())


def test_a_concept_cannot_be_loaded_twice(tmp_path: Path) -> None:
    saved(ConceptTokens.toy(), tmp_path)
    model = toy()
    load_adapter(model, tmp_path)
    with pytest.raises(InputError, match="is given twice"):
        load_adapter(model, tmp_path)


def test_new_words_begin_as_their_class_word_and_then_part() -> None:
    model = toy()
    ids = model.tokenizer("soft guitar", add_special_tokens=False)["input_ids"]
    mean = model.text_encoder.get_input_embeddings().weight[ids].mean(0)
    ConceptTokens([Concept("zorblax", "soft guitar", tokens=3)]).attach(model)
    (rows,) = trained_parameters(model).values()
    assert torch.allclose(rows[0], mean)
    assert not torch.allclose(rows[1], mean)
    assert torch.allclose(rows[1], mean, atol=1.0)
    _, heard = model.tokens(["zorblax", "guitar"])
    assert heard.sum(1).tolist() == [4, 2]  # three tokens or one, and the end


def test_known_words_and_spare_rows_are_left_alone() -> None:
    model = toy()
    table = model.text_encoder.get_input_embeddings()
    model.text_encoder.resize_token_embeddings(table.num_embeddings + 5, mean_resizing=False)
    before = model.nll(batch("soft guitar")).detach()
    method = ConceptTokens.toy()
    method.attach(model)
    perturb(model)
    assert torch.allclose(model.nll(batch("soft guitar")), before, atol=1e-6)
    expected = model.nll(batch("zorblax guitar")).detach()
    rows = model.text_encoder.get_input_embeddings().base.num_embeddings
    method.merge(model)
    assert model.text_encoder.get_input_embeddings().num_embeddings == rows
    assert torch.allclose(model.nll(batch("zorblax guitar")), expected, atol=1e-6)


def test_a_merged_folder_is_read_by_plain_transformers(tmp_path: Path) -> None:
    model = saved(Combined.toy(), tmp_path / "adapter")
    merged = toy()
    concepts = load_adapter(merged, tmp_path / "adapter")
    assert concepts == [Concept("zorblax", "piano", 2)]
    merged.save(tmp_path / "merged")
    network = MusicgenForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    table = network.text_encoder.get_input_embeddings()
    assert network.config.text_encoder.vocab_size == table.num_embeddings
    ids = tokenizer(concepts[0].tokens_text, return_tensors="pt")
    states = network.text_encoder(**ids).last_hidden_state
    ours = model.text_encoder(input_ids=model.tokens(["<zorblax>"])[0]).last_hidden_state
    assert ids["input_ids"].shape[1] == 3
    assert torch.allclose(states, ours, atol=1e-6)


def damage_truncate(folder: Path) -> None:
    path = folder / "pivotal" / "pivotal.safetensors"
    path.write_bytes(path.read_bytes()[:-20])


def damage_remove(folder: Path) -> None:
    (folder / "pivotal" / "pivotal.safetensors").unlink()


def edit(folder: Path, **changes: object) -> None:
    path = folder / "adapter.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def damage_name(folder: Path) -> None:
    edit(folder, methods=[{"name": "os.system", "folder": "pivotal"}])


def damage_path(folder: Path) -> None:
    edit(folder, methods=[{"name": "pivotal", "folder": "../../secret"}])


def damage_base(folder: Path) -> None:
    edit(folder, fingerprint="0" * 32, base="other")


def damage_json(folder: Path) -> None:
    (folder / "adapter.json").write_text("{")


def damage_schema(folder: Path) -> None:
    edit(folder, schema=99)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (damage_truncate, "damaged"),
        (damage_remove, "missing"),
        (damage_name, "unknown"),
        (damage_path, "bad method folders"),
        (damage_base, "made for base 'other'"),
        (damage_json, "damaged"),
        (damage_schema, "schema"),
    ],
)
def test_a_damaged_or_foreign_adapter_is_one_clear_line(
    damage: object, says: str, tmp_path: Path
) -> None:
    saved(Pivotal.toy(), tmp_path)
    damage(tmp_path)  # type: ignore[operator]
    model = toy()
    with pytest.raises(InputError, match=says) as caught:
        attach_adapter(model, tmp_path)
    assert "\n" not in str(caught.value)
    assert torch.equal(model.nll(batch("piano")), toy().nll(batch("piano")))


@pytest.mark.parametrize("method", [Pivotal.toy(), Peft.toy(), ConceptTokens.toy()])
def test_an_adapter_for_other_shapes_is_refused(
    method: Pivotal | Peft | ConceptTokens, tmp_path: Path
) -> None:
    """A stereo toy has the same text encoder; its decoder has other heads but equal layers."""
    saved(method, tmp_path)
    part = tmp_path / method.name
    other = toy()
    if isinstance(method, ConceptTokens):
        tensors = load_tensors(part / "concept_tokens.safetensors")
        assert tensors["rows"].shape[1] == 12
        from musictune.methods.storage import save_tensors

        save_tensors({"rows": torch.zeros(2, 13)}, part / "concept_tokens.safetensors")
    else:
        layers = other.backbone.get_submodule("model.decoder.layers")
        for layer in layers:
            layer.self_attn.q_proj = torch.nn.Linear(24, 24, bias=False)
    with pytest.raises(InputError, match="base"):
        attach_adapter(other, tmp_path)


def test_a_peft_folder_cannot_name_code_to_import(tmp_path: Path) -> None:
    saved(Peft.toy(), tmp_path)
    path = tmp_path / "peft" / "adapter_config.json"
    named = {"megatron_config": {"a": 1}, "megatron_core": "antigravity"}
    path.write_text(json.dumps(json.loads(path.read_text()) | named))
    with pytest.raises(InputError, match="Megatron"):
        attach_adapter(toy(), tmp_path)


def test_a_combination_trains_at_the_rate_of_what_it_combines() -> None:
    full, tokens = Full(), ConceptTokens.toy()
    assert Combined([tokens, full]).learning_rate == full.learning_rate == 1e-4
    assert Combined([tokens]).learning_rate == tokens.learning_rate
