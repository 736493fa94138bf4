"""The kernels of attention become machine code for a Hopper GPU, also where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from musictune.kernels import runtime

PROGRAM = """
import sys
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from musictune.kernels import attention_backward_triton as back
from musictune.kernels import attention_decode_triton as decode
from musictune.kernels import attention_prefill_triton as prefill

name, dtype = sys.argv[1], getattr(torch, sys.argv[1])
data = {"float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16"}[name]
wide = {"sums", "products", "parts", "key_scales", "value_scales"}
numbers = {"scale": "fp32", "eps": "fp32", "positions": "*i64", "lengths": "*i64"}
pointers = (
    "x norm_weight norm_bias weight bias y query key value keys values new_key new_value out "
    "gradient dquery dkey dvalue"
).split()

def build(kernel, constants, changed={}, **options):
    kinds = {name: data for name in pointers} | {name: "*fp32" for name in wide} | numbers | changed
    signature = {
        name: "constexpr" if name in constants else kinds.get(name, "i32")
        for name in kernel.arg_names
    }
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    # As a launch finds them: pointers and strides are multiples of 16.
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind) in enumerate(signature.items())
        if kind[0] == "*" or name.endswith(("_row", "_head", "_place", "_batch", "width", "size"))
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=places, attrs=aligned)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert made.asm["cubin"], kernel.__name__
    assert made.metadata.shared <= 232448, (kernel.__name__, made.metadata.shared)
    print(kernel.__name__, made.metadata.shared, "wgmma" in made.asm["ptx"])

for rows in (2, 64):
    r, o, k, warps = decode.product_blocks(rows, 1024, dtype.itemsize)
    tile = dict(BIAS=rows == 2, BLOCK_R=r, BLOCK_O=o, BLOCK_K=k, FULL=False)
    build(decode._norm_linear, tile, num_warps=warps, num_stages=4)
d, n = decode.cache_blocks(64, 1503)
for eight, append, splits in ((False, True, 12), (True, True, 12), (False, False, 1)):
    tile = dict(APPEND=append, EIGHT_BIT=eight, SPLITS=splits, BLOCK_N=n, BLOCK_D=d)
    codes = dict(keys="*i8", values="*i8") if eight else {}
    build(decode._attend, tile, codes, num_warps=4)
build(decode._join, dict(SPLITS=12, BLOCK_S=16, BLOCK_D=64), num_warps=4)
long = torch.empty(1, 1, 1503, 64, dtype=dtype, device="meta")
for kernel, backward in (
    (prefill._forward, False), (back._queries_backward, True), (back._keys_backward, True)
):
    m, n, d, warps, stages = prefill.blocks(long, long, backward=backward)
    for causal in (True, False):
        tile = dict(CAUSAL=causal, LENGTHS=not causal, SIZE=64, FULL=False)
        tile |= dict(BLOCK_M=m, BLOCK_N=n, BLOCK_D=d)
        build(kernel, tile, dict(keys="i32"), num_warps=warps, num_stages=stages)
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_every_kernel_compiles_for_sm_90(dtype: str, tmp_path: Path) -> None:
    if not runtime.has_triton():
        pytest.skip("triton is not installed; pip install 'musictune[kernels]'")
    # Another process: in this one Triton may have been told to interpret.
    own = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, dtype],
        env=os.environ | own | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 12
    if dtype != "float32":  # whole sequences are for the tensor cores
        assert {line[0] for line in lines if line[2] == "True"} >= {
            "_forward",
            "_queries_backward",
            "_keys_backward",
        }
