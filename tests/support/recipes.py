"""A recipe in which everything is right, and the problems of a spoilt one."""

from __future__ import annotations

from pathlib import Path

import pytest

from forty2.errors import RecipeError
from forty2.recipe.reading import load_recipe

GOOD = """\
version: 1
name: mine
model: smollm2
phases:
  sft: {objective: sft, data: "builtin:spark-sft", steps: 10, lr: 1e-4}
  dpo:
    objective: dpo
    data: builtin:spark-dpo
    epochs: 1.5
    lr: 5e-5
    beta: 0.1
"""


def write(folder: Path, text: str) -> str:
    path = folder / "recipe.yaml"
    path.write_text(text, "utf-8")
    return str(path)


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as error:
        load_recipe(write(folder, text), overrides)
    return [line.replace(f"{folder}/", "") for line in str(error.value).splitlines()]
