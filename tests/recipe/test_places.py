"""Messages that need the model, the data or the prompts name the line of their key."""

from __future__ import annotations

from pathlib import Path

import pytest

from forty2.errors import BenchmarkError, DataError, Forty2Error, ModelError, RecipeError
from forty2.recipe.places import changed, with_places
from forty2.recipe.reading import load_recipe, to_yaml
from forty2.recipe.schema import Recipe

TEXT = """version: 1
name: x
model: smollm2
tags: [<a>]
phases:
  sft:
    objective: sft
    data: "builtin:spark-sft"
    steps: 5
    lr: 1e-4
    token_weights: {<a>: 2.0}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(TEXT)
    return load_recipe("x.yaml", ["phases.sft.lr=1e-5"])


def told(recipe: Recipe, error: Forty2Error) -> str:
    with pytest.raises(type(error)) as caught, with_places(recipe):
        raise error
    return str(caught.value)


def test_a_message_about_a_key_begins_with_its_line(recipe: Recipe) -> None:
    weights = "phases.sft.token_weights: 'x y' is 2 tokens"
    assert told(recipe, RecipeError(weights)) == f"x.yaml:11: {weights}"
    assert told(recipe, ModelError("tags: <a> is there")) == "x.yaml:4: tags: <a> is there"
    # a key that is left out stands in its section; one of the command line stands there
    assert told(recipe, DataError("phases.sft.gate: a")) == "x.yaml:6: phases.sft.gate: a"
    assert told(recipe, RecipeError("phases.sft.lr: a")) == "`overrides`: phases.sft.lr: a"
    two = told(recipe, RecipeError("tags: a\nmax_length: b"))
    assert two == "x.yaml:4: tags: a\nmax_length: b"


@pytest.mark.parametrize(
    "error",
    [
        DataError("model.jsonl:3: not JSON"),
        DataError("tags.json: is empty"),
        ModelError("smollm2: cannot keep packed rows apart"),
        ModelError("phases.dpo.gate: there is no such phase"),
        RecipeError("x.yaml:4: tags: has a place"),
        BenchmarkError("tags: of a file of questions"),
    ],
)
def test_other_messages_stay_as_they_are(recipe: Recipe, error: Forty2Error) -> None:
    assert told(recipe, error) == str(error)


def test_a_recipe_with_other_values_stands_in_the_same_file(recipe: Recipe) -> None:
    other = changed(recipe, seed=7)
    assert other.seed == 7 and told(other, ModelError("tags: a")) == "x.yaml:4: tags: a"
    assert changed(other, seed=recipe.seed) == recipe and "written" not in to_yaml(recipe)


def test_a_recipe_of_python_has_no_line(recipe: Recipe) -> None:
    mapping = load_recipe({"version": 1, "name": "x", "model": "smollm2", "tags": ["<a>"]} | PHASES)
    assert told(mapping, ModelError("tags: a")) == "the mapping: tags: a"
    made = Recipe(version=1, name="x", model="smollm2", phases=dict(recipe.phases))
    assert told(made, ModelError("tags: a")) == "tags: a"


PHASES = {
    "phases": {"sft": {"objective": "sft", "data": "builtin:spark-sft", "steps": 1, "lr": 0.1}}
}
