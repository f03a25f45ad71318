"""Overrides: values are YAML, reach any depth, and a shorter phase brings its step counts along."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import yaml
from support.recipes import GOOD, problems, write

from forty2.errors import RecipeError
from forty2.recipe.reading import load_recipe, to_yaml


def test_overrides_take_yaml_values_and_reach_any_depth(tmp_path: Path) -> None:
    recipe = load_recipe(
        write(tmp_path, GOOD),
        ["phases.dpo.lr=2e-6", "adapter.keys=[self_attn.q_proj]", "fuse.quantize=4", "seed=7"],
    )
    assert recipe.phases["dpo"].lr == 2e-6
    assert recipe.adapter.keys == ["self_attn.q_proj"]
    assert recipe.fuse is not None and recipe.fuse.quantize == 4
    assert recipe.seed == 7


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("phases.dpo.lr", "write it as key.subkey=value"),
        ("phases.dpo.lr=fast", "`overrides`: phases.dpo.lr: should be a number, not 'fast'"),
        ("phases.dpo.bete=0.2", "`overrides`: phases.dpo.bete: unknown key; did you mean beta?"),
        ("dpo.lr=1e-6", "`overrides` dpo.lr=1e-6: unknown key; did you mean phases.dpo.lr?"),
        ("dpo={lr: 1}", "unknown key; did you mean phases.dpo?"),
        ("model.x=1", "model is a value"),
        ("seed=[", "not valid YAML"),
    ],
)
def test_bad_overrides_are_named(tmp_path: Path, override: str, complaint: str) -> None:
    assert any(complaint in line for line in problems(tmp_path, GOOD, override))


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("phases.dop.lr=1e-6", "dop: no such phase; the recipe has sft, dpo; did you mean dpo?"),
        ("phases.dop={lr: 1e-6}", "dop: no such phase; the recipe has sft, dpo; did you mean dpo?"),
        (
            "phases.x.lr=1e-6",
            "x: no such phase; the recipe has sft, dpo; a new one needs an objective",
        ),
        (
            "phases.dpo={lr: 1e-6}",
            "dpo.objective: missing; use one of cpo, dpo, kto, orpo, sft, simpo",
        ),
        (
            "phases={dop: {lr: 1e-6}}",
            "dop.objective: missing; use one of cpo, dpo, kto, orpo, sft, simpo",
        ),
    ],
)
def test_an_override_of_no_phase_says_which_there_are(
    tmp_path: Path, override: str, hint: str
) -> None:
    (problem,) = problems(tmp_path, GOOD, override)
    assert problem.endswith(f": phases.{hint}")


def test_a_text_in_place_of_a_list_is_refused_as_a_whole() -> None:
    with pytest.raises(RecipeError, match=r"`overrides`: should be a list: \['seed=1'\]"):
        load_recipe("forty2-spark", "seed=1")


def test_overrides_can_add_a_whole_phase(tmp_path: Path) -> None:
    fields = ("data=builtin:spark-dpo", "steps=5", "lr=1e-6", "beta=0.1", "objective=dpo")
    recipe = load_recipe(write(tmp_path, GOOD), [f"phases.boost.{field}" for field in fields])
    assert list(recipe.phases) == ["sft", "dpo", "boost"]


STEPS = GOOD.replace(
    "epochs: 1.5",
    "steps: 100\n    eval_every_steps: 50\n    warmup_steps: 9\n    save_every_steps: 3",
)


def test_a_phase_made_shorter_lowers_the_counts_that_it_would_never_reach(tmp_path: Path) -> None:
    with pytest.warns(UserWarning) as found:
        recipe = load_recipe(write(tmp_path, STEPS), ["phases.dpo.steps=4"])
    phase = recipe.phases["dpo"]
    assert (phase.steps, phase.eval_every_steps, phase.warmup_steps) == (4, 4, 4)
    assert phase.save_every_steps == 3
    (warning,) = found
    assert str(warning.message).splitlines() == [
        "phases.dpo: eval_every_steps is 4, not 50: the phase now ends at step 4",
        "phases.dpo: warmup_steps is 4, not 9: the phase now ends at step 4",
    ]
    stored = yaml.safe_load(to_yaml(recipe))["phases"]["dpo"]  # as a run writes it down
    assert (stored["steps"], stored["eval_every_steps"], stored["warmup_steps"]) == (4, 4, 4)


@pytest.mark.parametrize("name", ["demo", "forty2-spark", "forty2-spark-smollm2"])
def test_a_packaged_recipe_is_tried_with_one_override_a_phase(name: str) -> None:
    phases = load_recipe(name).phases
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recipe = load_recipe(name, [f"phases.{phase}.steps=2" for phase in phases])
    assert [phase.steps for phase in recipe.phases.values()] == [2] * len(phases)


def test_steps_in_place_of_epochs_lower_the_counts_too(tmp_path: Path) -> None:
    text = GOOD.replace("beta: 0.1", "beta: 0.1\n    eval_every_steps: 50")
    with pytest.warns(UserWarning, match="eval_every_steps is 5, not 50"):
        load_recipe(write(tmp_path, text), ["phases.dpo.epochs=null", "phases.dpo.steps=5"])


def test_an_override_of_one_length_replaces_the_other_and_says_so(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="phases.dpo: steps 5 takes the place of epochs 1.5"):
        phase = load_recipe(write(tmp_path, GOOD), ["phases.dpo.steps=5"]).phases["dpo"]
    assert (phase.steps, phase.epochs) == (5, None)
    with pytest.warns(UserWarning, match="phases.dpo: epochs 2 takes the place of steps 100"):
        phase = load_recipe(write(tmp_path, STEPS), ["phases.dpo.epochs=2"]).phases["dpo"]
    assert (phase.steps, phase.epochs) == (None, 2)
    (problem,) = problems(tmp_path, GOOD, "phases.dpo.steps=5", "phases.dpo.epochs=2")
    assert "give steps or epochs, one of the two" in problem


def test_a_count_that_an_override_gives_is_not_lowered(tmp_path: Path) -> None:
    overrides = ["phases.dpo.steps=4", "phases.dpo.eval_every_steps=10"]
    (problem,) = problems(tmp_path, STEPS, *overrides)
    assert problem == (
        "`overrides`: phases.dpo.eval_every_steps: 10 is beyond the last step (4): never reached"
    )


def test_counts_of_a_phase_given_whole_are_not_lowered(tmp_path: Path) -> None:
    fields = "objective: dpo, data: 'builtin:spark-dpo', lr: 1e-5, beta: 1, warmup_steps: 9"
    (problem,) = problems(tmp_path, STEPS, f"phases.dpo={{{fields}, steps: 4}}")
    assert (
        problem
        == "`overrides`: phases.dpo.warmup_steps: 9 is beyond the last step (4): never reached"
    )


def test_a_file_that_contradicts_itself_stays_an_error(tmp_path: Path) -> None:
    wrong = STEPS.replace("steps: 100", "steps: 4")
    complaint = "recipe.yaml:10: phases.dpo.eval_every_steps: 50 is beyond the last step (4)"
    assert any(line.startswith(complaint) for line in problems(tmp_path, wrong))
    longer = problems(tmp_path, wrong, "phases.dpo.steps=8")
    assert any("50 is beyond the last step (8)" in line for line in longer)


def test_an_override_that_lengthens_a_phase_changes_nothing_else(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, STEPS), ["phases.dpo.steps=500"])
    assert recipe.phases["dpo"].eval_every_steps == 50
