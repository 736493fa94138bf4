"""The methods of the study (Cappellazzo et al. 2023, arXiv 2312.03694) as our own are called."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Arm:
    """A row of the table.

    Attributes:
        method: on the command line.
        options: of the method.
        paper: mean accuracy in the paper's table over its four sets, in percent; None if the
            method is not in it.
        rates: peak learning rates tried.
    """

    method: str
    options: dict[str, object] = field(default_factory=dict)
    paper: float | None = None
    rates: tuple[float, ...] = (2e-3, 5e-3, 1.5e-2)


ARMS: dict[str, Arm] = {
    "full": Arm("full", {}, 90.60, (3e-4, 1e-3, 3e-3)),
    "linear": Arm("linear_probe", {}, 55.77, (5e-3,)),
    "bitfit": Arm("bitfit", {}, 79.40),
    "shallow prompt": Arm("shallow_prompt", {"length": 50}, 70.04, (1e-2, 3e-2, 1e-1)),
    "deep prompt": Arm("deep_prompt", {"length": 13}, 81.99, (1e-2, 3e-2, 1e-1)),
    "prefix": Arm("prefix", {"length": 6}, 75.88, (1e-2, 3e-2, 1e-1)),
    "lora": Arm("lora", {"options": {"r": 3, "lora_alpha": 6}, "targets": "query,value"}, 84.97),
    "bottleneck": Arm("bottleneck", {"width": 6}, 84.09),
    "bottleneck houlsby": Arm("bottleneck", {"width": 6, "configuration": "houlsby"}, 85.32),
    "convolution": Arm("convolution", {"width": 4}, 91.16),
    "convolution houlsby": Arm("convolution", {"width": 4, "configuration": "houlsby"}, 90.51),
    "soft moa": Arm("soft_moa"),
    "ssf": Arm("ssf"),
    "compacter": Arm("compacter"),
    "pivotal": Arm(
        "pivotal", {"count": 6500, "rounds": 2, "probe_steps": 10}, None, (1e-3, 3e-3, 1e-2)
    ),
}
"""Sizes keep the paper's share of the residual width where that is possible: width 12 of 768 would
be 2 of 128, where a method has hardly a form, so that narrow ones are about three times that."""

PLACES: dict[str, Arm] = {
    f"bottleneck, {form}{position and ' ' + position}, {block}": Arm(
        "bottleneck",
        {"width": 6, "configuration": "pfeiffer", "form": form, "block": block}
        | ({"position": position} if position else {}),
    )
    for form, position in (("parallel", ""), ("series", "after"), ("series", "before"))
    for block in ("attention", "feed_forward")
}
"""The same adapter in each of its places."""


def changes(options: Mapping[str, object]) -> list[str]:
    """A method's options as a recipe takes them."""
    written = {k: v if isinstance(v, str) else json.dumps(v) for k, v in options.items()}
    return [f"method.{key}={value}" for key, value in written.items()]
