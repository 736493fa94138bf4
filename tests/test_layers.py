"""The shape of the package: files stay small and imports run one way."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "musictune"
MODULES = sorted(PACKAGE.rglob("*.py"))

BOTTOM = {"errors", "files", "console"}
# Which rooms each room may look into, besides the bottom layer and itself.
CHAIN = ["audio", "data", "models", "methods", "generation", "training"]
CHAIN += ["evaluation", "bench", "verbs", "__main__"]
ALLOWED = {room: set(CHAIN[:i]) | {"kernels"} for i, room in enumerate(CHAIN)}
ALLOWED |= {
    "audio": {"decoding"},
    "decoding": set(),
    "kernels": set(),
    "compose": {"audio"},
    "metrics": {"audio"},
    "web": set(CHAIN[:6]) | {"metrics", "serving"},
    "serving": set(CHAIN[:5]),
    "errors": set(),
    "files": set(),
    "console": set(),
}
ALLOWED["data"] |= {"metrics.base"}
ALLOWED["models"] |= {"metrics.base", "metrics.features"}
ALLOWED["generation"] |= {"metrics.base"}
ALLOWED["training"] |= {"metrics.base", "metrics.combined", "compose"}
ALLOWED["training"] |= {"metrics.classification", "metrics.confusion_plot", "metrics.retrieval"}
ALLOWED["evaluation"] |= {"metrics"}
ALLOWED["bench"] |= {"metrics", "compose"}
ALLOWED["verbs"] |= {"metrics", "compose", "web", "serving"}


def room(module: Path) -> str:
    parts = module.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imported(module: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{module}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {n.removeprefix("musictune.") for n in names if n.startswith("musictune.")}


@pytest.mark.parametrize("module", MODULES, ids=lambda m: str(m.relative_to(PACKAGE)))
def test_imports_run_one_way(module: Path) -> None:
    own = room(module)
    if own == "__init__":
        return
    allowed = ALLOWED[own] | BOTTOM | {own}
    for name in imported(module):
        target = name.split(".")[0]
        if not (PACKAGE / target).exists() and not (PACKAGE / f"{target}.py").exists():
            continue  # a name from musictune/__init__.py
        two = ".".join(name.split(".")[:2])
        assert target in allowed or two in allowed, f"{own} may not import musictune.{name}"


@pytest.mark.parametrize(
    "module",
    [
        m
        for part in ("musictune", "tests", "benchmarks")
        for m in sorted((ROOT / part).rglob("*.py"))
    ],
    ids=lambda m: str(m.relative_to(ROOT)),
)
def test_files_stay_under_400_lines(module: Path) -> None:
    assert len(module.read_text(encoding="utf-8").splitlines()) < 400


def test_the_data_folder_does_not_shadow_hugging_face_datasets() -> None:
    assert not list((ROOT / "datasets").rglob("__init__.py"))


def test_nothing_is_unpickled_and_no_remote_code_is_trusted() -> None:
    for module in MODULES:
        tree = ast.parse(module.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if not isinstance(node, ast.keyword) or not isinstance(node.value, ast.Constant):
                continue
            assert (node.arg, node.value.value) not in {
                ("weights_only", False),
                ("trust_remote_code", True),
                ("use_safetensors", False),
            }, f"{module}:{node.value.lineno}"
