"""One linear layer, forward and backward: our trained entries beside what others do.

    python benchmarks/sparse_delta.py [--tokens 512] [--rounds 15] [--json FILE]

Each row trains about as many weights as LoRA of the named rank. The sides take turns in one process
on one thread, and medians of the time of the processor are compared. ``kept`` is what autograd
keeps for backward besides parameters. SHiRA trains the very entries that ours does; the masked side
lets autograd form the whole gradient and then zeroes what is not chosen. peft is as it comes.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, ShiraConfig, get_peft_model
from torch import Tensor, nn

from musictune.methods.sparse import Chosen, Kind, SelectedLinear

RANKS = {256: 8, 1024: 16}
PEERS = ("masked dense gradient", "peft SHiRA, same entries", "peft LoRA")


class Net(nn.Module):
    """A layer with a name, for peft to find."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Masked(nn.Module):
    """All weights have a gradient; a hook zeroes it where nothing is trained."""

    def __init__(self, linear: nn.Linear, chosen: Chosen) -> None:
        super().__init__()
        self.linear = linear
        mask = torch.zeros_like(linear.weight)
        mask.view(-1)[chosen.indices] = 1
        linear.weight.register_hook(lambda gradient: gradient * mask)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for width, rank in RANKS.items():
            rows += measured(width, rank, dtype, options.tokens, options.rounds)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


def measured(width: int, rank: int, dtype: torch.dtype, tokens: int, rounds: int) -> list[dict]:
    """One row per side: median milliseconds, kept bytes, and how it compares."""
    torch.manual_seed(0)
    linear = nn.Linear(width, width, bias=False).to(dtype)
    sides = build(linear, rank)
    x = torch.randn(tokens, width).to(dtype).requires_grad_()
    dy = torch.randn(tokens, width).to(dtype)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 2):
        for name, side in sides.items():
            spent = once(side, x, dy)
            if turn >= 2:
                times[name].append(spent)
    rows = []
    print(f"{width} x {width}, {tokens} tokens, {str(dtype).removeprefix('torch.')}, LoRA r={rank}")
    for name, side in sides.items():
        row = {
            "side": name,
            "width": width,
            "tokens": tokens,
            "dtype": str(dtype).removeprefix("torch."),
            "trained": sum(p.numel() for p in side.parameters() if p.requires_grad),
            "ms": 1e3 * statistics.median(times[name]),
            "kept_kib": kept(side, x) / 1024,
        }
        rows.append(row)
        faster = "  ".join(
            f"{statistics.median(times[peer]) / statistics.median(times[name]):5.2f}x"
            for peer in PEERS
        )
        print(
            f"  {name:28}{row['trained']:>9} trained {row['ms']:8.2f} ms"
            f"{row['kept_kib']:9.0f} KiB kept   {faster}"
        )
    print(f"  (times faster than: {'; '.join(PEERS)})\n", flush=True)
    return rows


def build(linear: nn.Linear, rank: int) -> dict[str, nn.Module]:
    """The sides, each with its own copy of ``linear``."""
    width = linear.in_features
    shira = get_peft_model(
        Net(copy.deepcopy(linear)), ShiraConfig(r=rank, target_modules=["linear"], random_seed=0)
    )
    lora = get_peft_model(Net(copy.deepcopy(linear)), LoraConfig(r=rank, target_modules=["linear"]))
    where = shira.base_model.model.linear.shira_indices["default"]
    entries = Chosen("elements", (where[0].long() * width + where[1].long()).sort().values)
    structured = torch.randperm(width)[: 2 * rank].sort().values

    def ours(kind: Kind, indices: Tensor) -> SelectedLinear:
        return SelectedLinear(copy.deepcopy(linear), Chosen(kind, indices))

    masked = Masked(copy.deepcopy(linear), entries)
    return {
        "ours, elements": ours("elements", entries.indices),
        "ours, rows": ours("rows", structured),
        "ours, columns": ours("columns", structured),
        PEERS[0]: masked,
        PEERS[1]: shira,
        PEERS[2]: lora,
    }


def once(side: Callable[[Tensor], Tensor], x: Tensor, dy: Tensor) -> float:
    """Processor seconds of a forward and a backward, as in the middle of a network."""
    for leaf in (x, *side.parameters()):  # type: ignore[attr-defined]
        leaf.grad = None
    began = time.process_time()
    side(x).backward(dy)
    return time.process_time() - began


def kept(side: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps, each storage once, without those of parameters and buffers."""
    own = {t.untyped_storage().data_ptr() for t in (*side.parameters(), *side.buffers())}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not tensor.is_sparse and tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = side(x)
    del result
    return sum(size for place, size in found.items() if place not in own)


if __name__ == "__main__":
    main()
