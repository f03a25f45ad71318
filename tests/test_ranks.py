"""A module imports only from lower ranks; files in one folder may cooperate."""

from __future__ import annotations

import ast
from pathlib import Path

import forty2

ROOT = Path(forty2.__file__).parent
RANKS = [
    ["errors", "platform", "progress"],
    ["recipe", "rundir", "watch", "group"],
    ["data"],
    ["words"],
    ["skeletons"],
    ["tokens"],
    ["batches", "kernels", "show"],
    ["parts"],
    ["logprobs", "losses"],
    ["model"],
    ["replay"],
    ["objectives", "prepare", "checkpoints"],
    ["phase_data", "train", "fusing"],
    ["benchmark", "failures", "report"],
    ["pipeline", "bench"],
    ["planning", "ablation"],
    ["cli"],
]
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}


def imports(path: Path) -> set[str]:
    """Top-level forty2 modules that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("forty2"):
            parts = (node.module or "").split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("forty2.")}
    return found


def test_imports_go_down_the_ranks() -> None:
    wrong = []
    for path in ROOT.rglob("*.py"):
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if own in ("__init__", "__main__"):
            continue
        assert own in RANK, f"{path.name} has no rank: place it in RANKS"
        wrong += [f"{own} -> {t}" for t in imports(path) if t != own and RANK[t] >= RANK[own]]
    assert not wrong
