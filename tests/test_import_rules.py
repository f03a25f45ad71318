"""Which part of the package may import which: the wings and the rules between them.

A wing is a folder of `forty2/`; the ground floor is the modules beside the wings. `objectives`, a
folder of `training`, is a wing of its own: recipes are read by it, so it needs no mlx.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import forty2

ROOT = Path(forty2.__file__).parent
GROUND = {
    "blas",
    "errors",
    "files",
    "machine",
    "metric_names",
    "notebook",
    "progress",
    "progress_bars",
    "run_paths",
    "text_layout",
}
_BELOW_BENCHMARK = {"data", "text", "recipe", "model", "inference"}
_BELOW_RUNS = _BELOW_BENCHMARK | {"training.objectives", "training", "benchmark", "report"}
MAY_IMPORT: dict[str, set[str]] = {
    "data": set(),
    "text": {"data"},
    "training.objectives": {"data", "text"},
    "recipe": {"data", "training.objectives"},
    "model": {"recipe"},
    "inference": {"model", "text"},
    "training": {"training.objectives", "recipe", "data", "text", "model", "inference"},
    "benchmark": _BELOW_BENCHMARK,
    "failures": _BELOW_RUNS | {"runs"},
    "export": {"recipe", "data", "model", "inference", "report"},
    "report": {"recipe"},
    "runs": _BELOW_RUNS | {"export"},
    "speed": _BELOW_RUNS,
    "serve": {"recipe", "text", "model", "inference", "export"},
    "cli": _BELOW_RUNS | {"export", "failures", "runs", "speed", "serve"},
}
"""The other wings that each may import; the ground floor is open to all."""
WHEN_CALLED = {("training.objectives", "training")}
"""Allowed inside functions alone: an objective imports its equation when a loss is computed."""
MLX = {
    "blas",
    "machine",
    "model",
    "inference",
    "training",
    "benchmark",
    "export",
    "runs",
    "speed",
    "serve",
}
"""Where mlx may be imported. The others read, write and check without it."""
MLX_LM = {"model", "inference", "serve"}
"""Where mlx_lm may be imported, beside the workers of `speed`, which time it. `serve` wraps its server."""


class Import(NamedTuple):
    """One name that a file imports."""

    wing: str
    """The wing of the file."""
    place: str
    """File and line."""
    name: str
    """In full, e.g. forty2.training.loop."""
    in_function: bool


def wing_of(module: str) -> str:
    """The wing of a module named from below `forty2`, e.g. training.loop."""
    for wing in sorted(MAY_IMPORT, key=len, reverse=True):
        if module == wing or module.startswith(f"{wing}."):
            return wing
    return module.split(".")[0]


def modules() -> Iterator[tuple[str, Path]]:
    """Wing and path of every module that belongs to one; the ground floor under its own names."""
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts not in (("__init__",), ("__main__",)):
            yield wing_of(".".join(parts)), path


@functools.cache
def imports() -> list[Import]:
    """Every import of the package, but for those that types alone need."""
    found: list[Import] = []
    for wing, path in modules():
        tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                node.body = []
        functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
        inside = {id(n) for function in functions for n in ast.walk(function)}
        for node in ast.walk(tree):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno}: write the import out in full"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            if names:
                place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
                found += [Import(wing, place, name, id(node) in inside) for name in names]
    return found


def breaks_wings(one: Import) -> bool:
    """Whether it reaches into a wing that its own may not import."""
    top, _, rest = one.name.partition(".")
    target = wing_of(rest)
    allowed = MAY_IMPORT.get(one.wing, set()) | GROUND | {one.wing}
    if one.in_function and (one.wing, target) in WHEN_CALLED:
        return False
    return top == "forty2" and rest != "" and target not in allowed


def breaks_mlx(one: Import) -> bool:
    """Whether it imports mlx where nothing may."""
    return one.name.startswith("mlx.") and one.wing not in MLX


def breaks_mlx_lm(one: Import) -> bool:
    """Whether it imports mlx_lm where nothing may."""
    worker = one.place.startswith("speed/workers/")
    return one.name.startswith("mlx_lm") and one.wing not in MLX_LM and not worker


@pytest.mark.parametrize("broken", [breaks_wings, breaks_mlx, breaks_mlx_lm])
def test_imports_keep_to_the_rules(broken: object) -> None:
    assert callable(broken)
    assert not [f"{one.place} imports {one.name}" for one in imports() if broken(one)]


def test_a_broken_rule_is_found() -> None:
    assert breaks_wings(Import("data", "", "forty2.runs.pipeline.run", True))
    assert breaks_wings(Import("training.objectives", "", "forty2.training.losses", False))
    assert breaks_mlx(Import("report", "", "mlx.core", True))
    assert breaks_mlx_lm(Import("benchmark", "", "mlx_lm.generate", False))


def test_every_module_is_in_a_wing_or_on_the_ground_floor() -> None:
    assert {wing for wing, _ in modules()} <= MAY_IMPORT.keys() | GROUND


def test_no_wings_import_each_other() -> None:
    """A wing that may import another is never imported by it, nor by what that imports."""
    order: list[str] = []
    while len(order) < len(MAY_IMPORT):
        ready = [w for w, below in MAY_IMPORT.items() if w not in order and below <= {*order}]
        assert ready, f"in a circle: {MAY_IMPORT.keys() - {*order}}"
        order += ready
