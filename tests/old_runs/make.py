"""Make an old run: a release's own code starts a small run here and is stopped in its second phase.

    git worktree add /tmp/old COMMIT
    PYTHONPATH=/tmp/old python tests/old_runs/make.py NAME

The model, the data and the recipe in `inputs/` are shared by all; NAME/ is the run as it stopped.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import forty2.runs.pipeline
from forty2.recipe.reading import load_recipe

HERE = Path(__file__).parent


def stop(stage: str, done: int, total: int, info: Any) -> None:
    """Raise at the step after the second checkpoint of the second phase."""
    if stage == "phase2_dpo" and done == 5:
        raise KeyboardInterrupt


if __name__ == "__main__":
    os.environ["FORTY2_CACHE"] = str(HERE / "cache")  # deleted afterwards
    os.chdir(HERE / "inputs")
    try:
        forty2.runs.pipeline.run(
            load_recipe("recipe.yaml"), run_dir=HERE / sys.argv[1], progress=stop
        )
    except KeyboardInterrupt:
        print("stopped in", forty2.__file__)
