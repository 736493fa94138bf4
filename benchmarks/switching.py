"""Switching between two adapters on a loaded model: ours beside peft's, and beside loading anew.

    OMP_NUM_THREADS=1 python benchmarks/switching.py            # mini
    OMP_NUM_THREADS=1 python benchmarks/switching.py --small    # MusicGen-small's decoder, random

Two pivotal adapters of 5 % of the self-attention projections at random places, with random values:
time does not depend on what they say. peft: two LoRA adapters of about as many weights on the same
layers, "set_adapter" (both stay unmerged, so each later step computes the low-rank product too)
and "unmerge, merge" (as ours, nothing is left to compute at each step). "from disk" is
load_adapter on a base: read, check, attach, merge. Medians of rounds that take turns, in
milliseconds of processor time on one thread, which other work on the machine does not stretch.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from musictune.methods import load_adapter, save_adapter
from musictune.methods.adapter import read_sparse
from musictune.methods.pivotal import Pivotal
from musictune.methods.switching import Adapters
from musictune.models.musicgen import MusicGen
from musictune.models.toy import toy_network, toy_tokenizer

FRACTION = 0.05


def small() -> MusicGen:
    """MusicGen-small's decoder, 24 layers of 1024 with random weights, behind toy ends."""
    from transformers.models.musicgen.configuration_musicgen import MusicgenDecoderConfig
    from transformers.models.musicgen.modeling_musicgen import MusicgenForCausalLM

    tokenizer = toy_tokenizer()
    network = toy_network(len(tokenizer), 1)
    config = MusicgenDecoderConfig()
    network.decoder = MusicgenForCausalLM(config)
    network.config.decoder = config
    text = network.config.text_encoder.d_model
    network.enc_to_dec_proj = torch.nn.Linear(text, config.hidden_size)
    return MusicGen(network.eval(), tokenizer, "small (random)")


def write_adapter(model: MusicGen, folder: Path, seed: int) -> int:
    """A pivotal adapter of random places and values; returns its number of weights."""
    method = Pivotal(fraction=FRACTION, selection="random", seed=seed)
    method.prepare(model, iter(()))
    method.attach(model)
    torch.manual_seed(seed)
    with torch.no_grad():
        for layer in method.layers.values():
            layer.values.normal_(0, 1e-3)
    save_adapter(model, method, folder)
    method.detach(model)
    return sum(change.values.numel() for change in read_sparse(folder).values())


def with_peft(model: MusicGen, trained: int) -> tuple[Any, int]:
    """peft's model with the LoRA adapters "a" and "b" of about ``trained`` weights each."""
    from peft import LoraConfig, PeftModel

    from musictune.methods.base import matched_modules

    layers = matched_modules(model.backbone, model.targets)
    per_rank = sum(sum(layer.weight.shape) for layer in layers.values())
    rank = max(1, round(trained / per_rank))
    config = LoraConfig(r=rank, target_modules=rf".*(?:{model.targets})", init_lora_weights=False)
    wrapped = PeftModel(model.backbone, config, adapter_name="a")
    wrapped.add_adapter("b", config)
    return wrapped, rank


def interleaved(cases: dict[str, Callable[[int], None]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each case; the rounds take turns."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name, case in cases.items():
            start = time.process_time()
            case(turn)
            times[name].append(1e3 * (time.process_time() - start))
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def main() -> None:
    """Print, and write if asked, the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model = small() if given.small else MusicGen.load("mini")
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / name for name in ("a", "b")]
        trained = [write_adapter(model, folder, seed) for seed, folder in enumerate(folders)]
        adapters = Adapters(model)
        for folder in folders:
            adapters.add(folder.name, folder)
        codec = model.network.audio_encoder
        twin = copy.deepcopy(model, {id(codec): codec})
        wrapped, rank = with_peft(twin, trained[0])
        tuner = wrapped.base_model

        def again(turn: int) -> None:
            tuner.unmerge_adapter()
            wrapped.set_adapter("ab"[turn % 2])
            tuner.merge_adapter()

        def from_disk(turn: int) -> None:
            load_adapter(model, folders[turn % 2])

        switching = interleaved(
            {
                "ours: use one": lambda turn: adapters.use({"ab"[turn % 2]: 1.0}),
                "ours: use two": lambda turn: adapters.use({"a": 1.0, "b": 0.5 + turn % 2}),
                "ours: back to the base": lambda turn: adapters.use(),
                "peft: set_adapter": lambda turn: wrapped.set_adapter("ab"[turn % 2]),
            },
            given.rounds,
        )
        switching |= interleaved({"peft: unmerge, merge": again}, max(3, given.rounds // 3))
        tuner.unmerge_adapter()
        adapters.use()
        loading = interleaved(
            {"from disk": from_disk},
            max(3, given.rounds // 3),
        )
    print(f"{model.base}: {trained[0]:,} trained weights per adapter, LoRA rank {rank}; ms")
    rows = switching | loading
    for name, value in rows.items():
        print(f"  {name:24} {value:9.2f}")
    print(f"  waiting adapters take {adapters.nbytes / len(folders) / 1e6:.1f} MB each")
    if given.json:
        given.json.write_text(json.dumps({"base": model.base, "milliseconds": rows}, indent=1))


if __name__ == "__main__":
    main()
