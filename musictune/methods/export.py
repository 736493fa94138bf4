"""Adapters as folders that plain ``peft`` loads."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from musictune.errors import InputError
from musictune.methods.adapter import adapter_folder, live_methods, method_names, read_sparse
from musictune.methods.composition import concept_names
from musictune.methods.concept_tokens import ConceptTokens
from musictune.methods.peft import Peft
from musictune.methods.pivotal import Pivotal
from musictune.methods.sparse_change import SparseChange
from musictune.methods.storage import load_json, save_tensors

_PREFIX = "base_model.model."  # peft's, before the names of the network that it wraps
_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class Exported:
    """What became of an adapter.

    Attributes:
        kind: peft's name of it: ``LORA``, ``SUPERTUNING``, or whatever a peft adapter was.
        numbers: how many peft stores.
        trained: how many the adapter has trained; the rest are ones and zeros around them.
        left_out: what peft cannot carry, one sentence each.
    """

    kind: str
    numbers: int
    trained: int
    left_out: tuple[str, ...]


def export_peft(run: Path, out: Path) -> Exported:
    """Write an adapter into the folder ``out`` for ``PeftModel.from_pretrained``.

    Nothing is approximated. Rows, columns and with them heads and channels become a LoRA whose
    rank is their number: one factor has the values, the other says where, with ones and zeros.
    Single weights become peft's Super-Tuning, which stores positions with values (peft 0.21 on);
    SHiRA cannot, as it draws its positions from a seed. It wants the same share in each matrix, so
    that lists are filled up with weights whose change is zero.

    Args:
        run: an adapter folder, or a run with one in it.
        out: an existing folder.

    Raises:
        InputError: no adapter, a damaged one, or one of a kind that peft has no place for.
    """
    folder = adapter_folder(run)
    names = method_names(folder)
    base = str(load_json(folder / "adapter.json").get("base", ""))
    backbones = [name for name in names if name != ConceptTokens.name]
    if live := live_methods(folder):
        raise InputError(
            f"adapter {folder} cannot be exported to peft, which has no place for {live[0]}"
        )
    if backbones == [Peft.name]:
        exported = _copy(folder / Peft.name, out, folder)
    elif backbones == [Pivotal.name]:
        exported = _pivotal(read_sparse(folder), out, base)
    else:
        raise InputError(
            f"adapter {folder} ({' + '.join(names)}) cannot be exported to peft, which holds "
            "pivotal weights and its own kinds; use merge, which makes a plain model of it"
        )
    words = ", ".join(f"<{name}>" for name in concept_names(folder))
    left_out: tuple[str, ...] = ()
    if words:
        left_out = (
            f"the meaning of {words}: peft adapts the decoder and these are rows of the text "
            "encoder, so a prompt with them is read as unknown words (merge keeps them)",
        )
    exported = Exported(exported.kind, exported.numbers, exported.trained, left_out)
    (out / "README.md").write_text(_card(exported, base), encoding="utf-8")
    return exported


def _copy(folder: Path, out: Path, adapter: Path) -> Exported:
    """A peft adapter is a peft folder already."""
    from safetensors import safe_open

    for name in _FILES:
        if not (folder / name).is_file():
            raise InputError(f"adapter {adapter} is damaged: {name} is missing")
        shutil.copyfile(folder / name, out / name)
    kind = str(load_json(out / _FILES[0]).get("peft_type", ""))
    with safe_open(out / _FILES[1], "pt") as tensors:
        sizes = [tensors.get_slice(key).get_shape() for key in tensors.keys()]  # noqa: SIM118
    numbers = sum(int(torch.Size(size).numel()) for size in sizes)
    return Exported(kind, numbers, numbers, ())


def _pivotal(changes: Mapping[str, SparseChange], out: Path, base: str) -> Exported:
    structured = all(change.chosen.kind != "elements" for change in changes.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensors = _lora(changes, out, base) if structured else _super(changes, out, base)
    save_tensors({_PREFIX + name: t for name, t in tensors.items()}, out / _FILES[1])
    return Exported(
        "LORA" if structured else "SUPERTUNING",
        sum(t.numel() for t in tensors.values()),
        sum(change.values.numel() for change in changes.values()),
        (),
    )


def _lora(changes: Mapping[str, SparseChange], out: Path, base: str) -> dict[str, Tensor]:
    from peft import LoraConfig

    ranks = {name: len(change.chosen.indices) for name, change in changes.items()}
    config = LoraConfig(
        target_modules=sorted(changes),
        r=max(ranks.values()),
        lora_alpha=max(ranks.values()),
        rank_pattern=ranks,
        alpha_pattern=ranks,  # peft scales by alpha over rank
        bias="none",
        inference_mode=True,
        base_model_name_or_path=base,
    )
    config.save_pretrained(str(out))
    tensors = {}
    for name, change in changes.items():
        rank = ranks[name]
        rows, columns = change.shape
        place = torch.arange(rank), change.chosen.indices
        if change.chosen.kind == "columns":
            down, up = torch.zeros(rank, columns), change.values.view(rows, rank)
            down[place] = 1
        else:
            down, up = change.values.view(rank, columns), torch.zeros(rows, rank).t()
            up[place] = 1
            up = up.t()
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = down, up
    return tensors


def _super(changes: Mapping[str, SparseChange], out: Path, base: str) -> dict[str, Tensor]:
    try:
        from peft import SupertuningConfig
    except ImportError as error:
        raise InputError(
            "the installed peft cannot hold single weights; update it to 0.21 or later, or use "
            "merge"
        ) from error

    sizes = {name: change.shape[0] * change.shape[1] for name, change in changes.items()}
    sparsity = 1 - max(len(changes[name].positions) / sizes[name] for name in changes)
    # peft rounds the count down; a list must not come out one short of its entries.
    while any(_count(sizes[n], sparsity) < len(changes[n].positions) for n in changes):
        sparsity = max(0.0, sparsity - 1e-7)
    config = SupertuningConfig(
        target_modules=sorted(changes),
        sparsity=sparsity,
        inference_mode=True,
        base_model_name_or_path=base,
    )
    config.save_pretrained(str(out))
    tensors = {}
    for name, change in changes.items():
        wanted = _count(sizes[name], sparsity)
        free = torch.ones(sizes[name], dtype=torch.bool)
        free[change.positions] = False
        spare = free.nonzero()[:, 0][: wanted - len(change.positions)]
        indices = torch.cat([change.positions, spare])
        values = torch.cat([change.entries, torch.zeros(len(spare))])
        tensors[f"{name}.supertuning_indices"] = indices.to(torch.int32)
        tensors[f"{name}.supertuning_values"] = values
    return tensors


def _count(size: int, sparsity: float) -> int:
    """How many weights of a matrix Super-Tuning holds."""
    return int(size * (1 - sparsity))


def _card(exported: Exported, base: str) -> str:
    lines = [
        "---",
        "library_name: peft",
        "---",
        "",
        f"# A {exported.kind} adapter of the decoder of `{base}`",
        "",
        "Made with musictune from one of its own adapters; nothing was approximated.",
        "",
        "```python",
        "from peft import PeftModel",
        "",
        '# model: MusicgenForConditionalGeneration.from_pretrained("the base")',
        'model.decoder = PeftModel.from_pretrained(model.decoder, "this folder")',
        "```",
    ]
    if exported.left_out:
        lines += ["", "Left out, as peft has no place for it:", ""]
        lines += [f"- {sentence}" for sentence in exported.left_out]
    return "\n".join([*lines, ""])
