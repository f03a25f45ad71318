"""Recipes: what is packaged loads, and what is no recipe is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from support.recipes import GOOD, problems, write

from forty2.errors import RecipeError
from forty2.recipe.reading import load_recipe, packaged_recipes, to_yaml
from forty2.recipe.schema import PhaseAttention
from forty2.training.objectives.dpo import DpoPhase


@pytest.mark.parametrize("name", packaged_recipes())
def test_packaged_recipes_load_and_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert load_recipe(write(tmp_path, to_yaml(recipe))) == recipe


def test_the_published_recipe_is_as_published() -> None:
    recipe = load_recipe("forty2-spark")
    sft, dpo, boost = recipe.phases.values()
    assert [(p.steps, p.lr) for p in (sft, dpo, boost)] == [(50, 5e-6), (200, 1e-6), (100, 5e-7)]
    assert isinstance(dpo, DpoPhase) and dpo.beta == 0.1 and dpo.loss == "sigmoid"
    assert (recipe.adapter.rank, recipe.adapter.scale, recipe.adapter.layers) == (8, 10.0, 8)


@pytest.mark.parametrize(
    ("section", "tasks"),
    [
        ("", []),
        ("benchmark: {}", []),
        ("benchmark: {n: 300, margin: 0.02}", []),
        ("benchmark: {tasks: null}", []),
        ("benchmark: {questions: probe}", ["truthfulqa"]),
        ("benchmark: {questions: probe, tasks: [truthfulqa, {task: mmlu, data: d}]}", None),
    ],
)
def test_benchmarks_are_measured_only_if_asked_for(
    tmp_path: Path, section: str, tasks: list[str] | None
) -> None:
    (tmp_path / "d").mkdir()
    recipe = load_recipe(write(tmp_path, f"{GOOD}{section}\n"))
    assert recipe.benchmark is not None
    found = [entry.task for entry in recipe.benchmark.tasks]
    assert found == (["truthfulqa", "mmlu"] if tasks is None else tasks)
    assert load_recipe(write(tmp_path, to_yaml(recipe))) == recipe


@pytest.mark.parametrize("tasks", ["[]", "[{task: gsm8k, data: .}]"])
def test_questions_that_no_task_reads_are_refused(tmp_path: Path, tasks: str) -> None:
    (line,) = problems(tmp_path, f"{GOOD}benchmark: {{questions: probe, tasks: {tasks}}}\n")
    assert "benchmark.tasks: nothing reads benchmark.questions without truthfulqa" in line


def test_phase_attention_is_not_to_be_fused(tmp_path: Path) -> None:
    section = "adapter: {phase_attention: {block: 7}}\n"
    (found,) = problems(tmp_path, GOOD + section + "fuse: {}\n")
    assert found.startswith(
        "recipe.yaml:13: fuse: an adapter with phase_attention cannot be merged"
    )
    assert "remove fuse, or adapter.phase_attention" in found
    recipe = load_recipe(write(tmp_path, GOOD + section))
    assert recipe.adapter.phase_attention == PhaseAttention(block=7)
    (found,) = problems(tmp_path, GOOD + section, "adapter.phase_attention.oscillator=3")
    assert "oscillator: unknown key; did you mean oscillators?" in found


def test_aliases_cannot_blow_up(tmp_path: Path) -> None:
    bomb = GOOD + "adapter: &a {rank: 8}\nfuse: *a\n"
    assert any("aliases (*name) are not allowed" in line for line in problems(tmp_path, bomb))


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just text", "\x00"])
def test_what_is_no_mapping_is_no_recipe(tmp_path: Path, text: str) -> None:
    assert len(problems(tmp_path, text)) == 1


def test_bytes_that_are_no_text_and_files_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="not UTF-8"):
        load_recipe(tmp_path / "r.yaml")
    with pytest.raises(RecipeError, match="did you mean forty2-spark"):
        load_recipe("forty2-sparc")


def test_a_mapping_is_a_recipe_as_its_yaml_is(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "a"}\n', "utf-8")
    phase = {"objective": "sft", "data": data, "steps": 2, "lr": 5e-6}
    mapping = {"version": 1, "name": "x", "model": "smollm2", "phases": {"a": phase, "b": phase}}
    written = {**mapping, "phases": {name: {**phase, "data": str(data)} for name in ("a", "b")}}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(written, sort_keys=False), "utf-8")
    assert load_recipe(mapping) == load_recipe(tmp_path / "x.yaml")
    with pytest.raises(RecipeError, match=r"^the mapping: stepz: unknown key"):
        load_recipe({**mapping, "stepz": 3})
    with pytest.raises(RecipeError, match="the mapping: is no recipe"):
        load_recipe({**mapping, "name": object()})
