"""forty2: align a language model on your own laptop, and believe the result.

The Python interface mirrors the command line, which only calls it:

    import forty2
    recipe = forty2.load_recipe("forty2-spark-smollm2", ["phases.dpo.lr=1e-5"])
    result = forty2.run(recipe)
    forty2.fuse(model=recipe.model, adapter=result.adapter, out="fused_models/mine")
    forty2.truthfulqa(model="fused_models/mine", n=300)

A run, a measurement and other long work draw progress bars on a terminal and in a notebook;
`progress=forty2.silent` leaves them out.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from forty2 import blas

blas.load_before_mlx()

if TYPE_CHECKING:
    from forty2.benchmark.tasks.truthfulqa import truthfulqa as truthfulqa
    from forty2.errors import Forty2Error as Forty2Error
    from forty2.export.fusing import fuse as fuse
    from forty2.inference.chat import ChatSession as ChatSession
    from forty2.inference.chat import chat as chat
    from forty2.inference.generation import generate as generate
    from forty2.progress import silent as silent
    from forty2.recipe.reading import load_recipe as load_recipe
    from forty2.recipe.schema import Recipe as Recipe
    from forty2.runs.ablation import ablate as ablate
    from forty2.runs.archive.comparison import compare as compare
    from forty2.runs.archive.finding import list_runs as list_runs
    from forty2.runs.pipeline import RunResult as RunResult
    from forty2.runs.pipeline import run as run
    from forty2.runs.pipeline import train_phase as train_phase
    from forty2.runs.planning import plan as plan
    from forty2.runs.sweep.running import sweep as sweep

# No submodule may share one of these names: importing it would replace the function.
_MODULES = {
    "ChatSession": "forty2.inference.chat",
    "Forty2Error": "forty2.errors",
    "Recipe": "forty2.recipe.schema",
    "RunResult": "forty2.runs.pipeline",
    "ablate": "forty2.runs.ablation",
    "chat": "forty2.inference.chat",
    "compare": "forty2.runs.archive.comparison",
    "fuse": "forty2.export.fusing",
    "generate": "forty2.inference.generation",
    "list_runs": "forty2.runs.archive.finding",
    "load_recipe": "forty2.recipe.reading",
    "plan": "forty2.runs.planning",
    "run": "forty2.runs.pipeline",
    "silent": "forty2.progress",
    "sweep": "forty2.runs.sweep.running",
    "train_phase": "forty2.runs.pipeline",
    "truthfulqa": "forty2.benchmark.tasks.truthfulqa",
}
"""The module of each public name."""
__all__ = [
    "ChatSession",
    "Forty2Error",
    "Recipe",
    "RunResult",
    "ablate",
    "chat",
    "compare",
    "fuse",
    "generate",
    "list_runs",
    "load_recipe",
    "plan",
    "run",
    "silent",
    "sweep",
    "train_phase",
    "truthfulqa",
]


def __getattr__(name: str) -> object:
    """Import a public name on first use: `forty2 --help` must not pay for mlx."""
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'forty2' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names, for completion in a Python shell."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
