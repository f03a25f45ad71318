"""Which part of the package may import which: the wings and the rules between them.

A wing is a folder of `forty2/`; the ground floor is the modules beside the wings. `objectives`, a
folder of `training`, is a wing of its own: recipes are read by it, so it needs no mlx.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import forty2

ROOT = Path(forty2.__file__).parent
GROUND = {"errors", "files", "machine", "progress"}
MAY_IMPORT: dict[str, set[str]] = {
    "training.objectives": {"data", "text"},
    "recipe": {"training.objectives"},
    "data": set(),
    "text": {"data"},
    "model": {"recipe"},
    "inference": {"model", "text"},
    "training": {"training.objectives", "recipe", "data", "text", "model", "inference"},
    "benchmark": {"recipe", "data", "text", "model", "inference"},
    "export": {"recipe", "data", "model", "inference"},
    "report": set(),
    "runs": {
        "training.objectives",
        "recipe",
        "data",
        "text",
        "model",
        "inference",
        "training",
        "benchmark",
        "export",
        "report",
    },
    "speed": {
        "training.objectives",
        "recipe",
        "data",
        "text",
        "model",
        "inference",
        "training",
        "benchmark",
        "report",
    },
    "cli": {
        "training.objectives",
        "recipe",
        "data",
        "text",
        "model",
        "inference",
        "training",
        "benchmark",
        "export",
        "report",
        "runs",
        "speed",
    },
}
"""By wing, the other wings that it may import; the ground floor is open to all."""
MLX = {"model", "inference", "training", "benchmark", "export", "runs", "speed"}
"""Wings that may import mlx. The others read, write and check without it."""
MLX_LM = {"model", "inference"}
"""Wings that may import mlx_lm; `speed` times it in processes of its own."""


def wing_of(module: str) -> str:
    """The wing of a module named from below `forty2`, e.g. training.loop."""
    for wing in sorted(MAY_IMPORT, key=len, reverse=True):
        if module == wing or module.startswith(f"{wing}."):
            return wing
    return module.split(".")[0]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every module that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the import out in full"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def files() -> Iterator[tuple[str, Path]]:
    """Wing and path of every file that belongs to one; the ground floor under its own names."""
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts not in (("__init__",), ("__main__",)):
            yield wing_of(".".join(parts)), path


def found(rule: str) -> list[str]:
    """Imports that break a rule, as file:line and what is imported."""
    wrong = []
    for wing, path in files():
        workers = wing == "speed" and "workers" in path.parts
        for line, name in imports(path):
            top, _, rest = name.partition(".")
            target = wing_of(rest)
            breaks = {
                "wings": top == "forty2"
                and target not in GROUND | {wing}
                and rest not in {"__version__"}
                and target not in MAY_IMPORT.get(wing, set()),
                "mlx": top == "mlx" and wing not in MLX | {"machine"},
                "mlx_lm": top == "mlx_lm" and wing not in MLX_LM and not workers,
            }[rule]
            if breaks:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    return wrong


@pytest.mark.parametrize("rule", ["wings", "mlx", "mlx_lm"])
def test_imports_keep_to_the_rules(rule: str) -> None:
    assert not found(rule)


def test_every_file_is_in_a_wing_or_on_the_ground_floor() -> None:
    assert {wing for wing, _ in files()} <= MAY_IMPORT.keys() | GROUND
