"""Recipes: every problem at once, with its line; overrides; what is packaged loads."""

from __future__ import annotations

from pathlib import Path

import pytest

from forty2.errors import RecipeError
from forty2.recipe.reading import load_recipe, packaged_recipes, to_yaml
from forty2.training.objectives.dpo import DpoPhase

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


def test_every_problem_is_reported_at_once_with_its_line(tmp_path: Path) -> None:
    bad = """\
version: 1
name: my run
model: smollm2
adaptor: {rank: 8}
adapter: {rank: -1}
phases:
  sft: {objective: sft, data: nowhere.jsonl, steps: 50, lr: -5e-6}
  dpo:
    objective: dpo
    data: builtin:spark-dpo
    steps: 200
    learning_rate: 1e-6
    loss: sigmoidd
  kto: {objective: ktoo, data: builtin:spark-dpo}
  boost: {objective: dpo, data: builtin:x, lr: 1e-6, beta: 0.1, steps: 10, save_every_steps: 20}
"""
    assert problems(tmp_path, bad) == [
        "recipe.yaml:2: name: string should match pattern '^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$', not 'my run'",
        "recipe.yaml:4: adaptor: unknown key; did you mean adapter?",
        "recipe.yaml:5: adapter.rank: should be greater than 0, not -1",
        "recipe.yaml:7: phases.sft.lr: should be greater than 0, not -5e-06",
        "recipe.yaml:7: phases.sft.data: nowhere.jsonl: no such file or folder",
        "recipe.yaml:8: phases.dpo.lr: missing",
        "recipe.yaml:8: phases.dpo.beta: missing",
        "recipe.yaml:12: phases.dpo.learning_rate: unknown key; did you mean lr?",
        "recipe.yaml:13: phases.dpo.loss: should be 'sigmoid', 'hinge', 'ipo' or 'dpop', not 'sigmoidd'",
        "recipe.yaml:14: phases.kto.objective: 'ktoo' is none of dpo, kto, sft",
        "recipe.yaml:15: phases.boost.save_every_steps: 20 is beyond the last step (10): never reached",
    ]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("steps: 10", "steps: 10, epochs: 2"), "steps: give steps or epochs"),
        (("steps: 10", "steps: 1.5"), "should be a valid integer, not 1.5"),
        (("steps: 10", "steps: true"), "should be a valid integer, not True"),
        (("steps: 10", "steps: '10'"), "should be a valid integer, not '10'"),
        (("lr: 1e-4", "lr: .nan"), "phases.sft.lr"),
        (
            ("lr: 1e-4", "lr: 1e-4, eval_every_steps: 11"),
            "eval_every_steps: 11 is beyond the last step",
        ),
        (("lr: 1e-4", "lr: 1e-4, warmup_steps: 11"), "warmup_steps: 11 is beyond the last step"),
        (
            ("beta: 0.1", "beta: 0.1\n    loss: ipo\n    label_smoothing: 0.1"),
            "label_smoothing: only",
        ),
        (("beta: 0.1", "beta: 0.1\n    beta: 0.2"), "phases.dpo.beta is given twice"),
        (("version: 1", "version: 2"), "version: should be 1, not 2"),
        (("name: mine", "name: ../up"), "name: string should match"),
        (("name: mine", "name: &a mine\nbenchmark: *a"), "benchmark"),
        (("phases:", "phases: &p"), ""),
        (("model: smollm2", "model: [a"), "not valid YAML"),
        (("model: smollm2", "model: !!python/object/apply:os.system [ls]"), "model: should be"),
        (("model: smollm2", "model: !!python/name:os.system x"), "not valid YAML"),
        (("objective: sft, ", ""), "phases.sft.objective: missing: say one of dpo, kto, sft"),
    ],
)
def test_each_mistake_is_named(tmp_path: Path, change: tuple[str, str], complaint: str) -> None:
    text = GOOD.replace(*change)
    assert text != GOOD
    if not complaint:
        load_recipe(write(tmp_path, text))  # an anchor that nothing refers to harms nobody
        return
    assert any(complaint in line for line in problems(tmp_path, text))


def test_aliases_cannot_blow_up(tmp_path: Path) -> None:
    bomb = GOOD + "adapter: &a {rank: 8}\nfuse: *a\n"
    assert any("aliases (*name) are not taken" in line for line in problems(tmp_path, bomb))


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just text", "\x00"])
def test_what_is_no_mapping_is_no_recipe(tmp_path: Path, text: str) -> None:
    assert len(problems(tmp_path, text)) == 1


def test_bytes_that_are_no_text_and_files_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="not UTF-8"):
        load_recipe(tmp_path / "r.yaml")
    with pytest.raises(RecipeError, match="did you mean forty2-spark"):
        load_recipe("forty2-sparc")


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
        ("phases.dpo.lr=fast", "--set: phases.dpo.lr: should be a valid number, not 'fast'"),
        ("phases.dpo.bete=0.2", "--set: phases.dpo.bete: unknown key; did you mean beta?"),
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
        ("phases.dpo={lr: 1e-6}", "dpo.objective: missing: say one of dpo, kto, sft"),
        ("phases={dop: {lr: 1e-6}}", "dop.objective: missing: say one of dpo, kto, sft"),
    ],
)
def test_an_override_of_no_phase_says_which_there_are(
    tmp_path: Path, override: str, hint: str
) -> None:
    (problem,) = problems(tmp_path, GOOD, override)
    assert problem.endswith(f": phases.{hint}")


def test_overrides_can_add_a_whole_phase(tmp_path: Path) -> None:
    fields = ("data=builtin:spark-dpo", "steps=5", "lr=1e-6", "beta=0.1", "objective=dpo")
    recipe = load_recipe(write(tmp_path, GOOD), [f"phases.boost.{field}" for field in fields])
    assert list(recipe.phases) == ["sft", "dpo", "boost"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("lr: 1e-4", "lr: 1e-4, beta: 1"), "5: phases.sft.beta: is of dpo and kto, not of sft"),
        (
            ("beta: 0.1", "beta: 0.1\n    desirable_weight: 2"),
            "12: phases.dpo.desirable_weight: is of kto, not of dpo",
        ),
        (("lr: 1e-4", "lr: 1e-4, rank: 8"), "5: phases.sft.rank: is of adapter, not of sft"),
        (
            ("name: mine", "name: mine\nlr: 1e-4"),
            "3: lr: is of sft, dpo and kto, not of the recipe",
        ),
    ],
)
def test_a_key_of_another_section_says_of_which(
    tmp_path: Path, change: tuple[str, str], complaint: str
) -> None:
    assert problems(tmp_path, GOOD.replace(*change)) == [
        f"recipe.yaml:{complaint}; move it or take it out"
    ]


def test_a_suggested_key_is_of_the_same_section(tmp_path: Path) -> None:
    bad = GOOD.replace("lr: 1e-4", "lr: 1e-4, label_smoothin: 0") + "    label_smoothin: 0\n"
    assert problems(tmp_path, bad) == [
        "recipe.yaml:5: phases.sft.label_smoothin: unknown key",
        "recipe.yaml:12: phases.dpo.label_smoothin: unknown key; did you mean label_smoothing?",
    ]


def test_rules_between_fields_are_told_with_other_mistakes(tmp_path: Path) -> None:
    bad = GOOD.replace(
        "lr: 1e-4", "lr: fast, epochs: 2, warmup_steps: 11, eval_every_steps: 0, x: 1"
    )
    bad += "    loss: ipo\n    label_smoothing: 0.1\n    best: {metric: passed, direction: max}\n"
    bad += "    until: {metric: los, at_least: 1, at_most: 2}\n    optimizer: adamx\n"
    assert [line.partition(": ")[2] for line in problems(tmp_path, bad)] == [
        "phases.sft.steps: give steps or epochs, one of the two",
        "phases.sft.lr: should be a valid number, not 'fast'",
        "phases.sft.warmup_steps: 11 is beyond the last step (10): never reached",
        "phases.sft.eval_every_steps: should be greater than 0, not 0",
        "phases.sft.x: unknown key",
        "phases.dpo.label_smoothing: only the sigmoid loss has it, not ipo",
        "phases.dpo.best: passed is the share of eval_prompts, and there are none",
        "phases.dpo.until.metric: should be 'loss', 'accuracy', 'margin' or 'passed', not 'los'",
        "phases.dpo.until.at_least: give at_least or at_most, one of the two",
        "phases.dpo.optimizer: should be 'adamw', 'adam', 'lion', 'sgd' or 'adafactor', not 'adamx'",
    ]


@pytest.mark.parametrize(
    "change",
    [
        ("steps: 10", "steps: ten"),
        ("steps: 10", "epochs: many"),
        ("lr: 1e-4", "lr: 1e-4, eval_prompts: 7, best: {metric: passed, direction: max}"),
        ("beta: 0.1", "beta: 0.1\n    loss: ipoo\n    label_smoothing: 0.1"),
    ],
)
def test_rules_are_silent_about_fields_that_are_not_valid(
    tmp_path: Path, change: tuple[str, str]
) -> None:
    assert len(problems(tmp_path, GOOD.replace(*change))) == 1


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("lr: 1e-4", 'lr: "5e-6"'), "phases.sft.lr: should be a valid number, not '5e-6'"),
        (("lr: 5e-5", "lr: '1'"), "phases.dpo.lr: should be a valid number, not '1'"),
        (("steps: 10", "steps: '10'"), "phases.sft.steps: should be a valid integer, not '10'"),
        (
            ("lr: 1e-4", "lr: 1e-4, lint: 'no'"),
            "phases.sft.lint: should be a valid boolean, not 'no'",
        ),
        (("version: 1", "version: '1'"), "version: should be 1, not '1'"),
    ],
)
def test_quotes_around_a_number_are_to_be_removed(
    tmp_path: Path, change: tuple[str, str], complaint: str
) -> None:
    (problem,) = problems(tmp_path, GOOD.replace(*change))
    assert problem.endswith(f"{complaint}; remove the quotes")


@pytest.mark.parametrize("lr", ["fast", "'5e-6 or so'", "'true'", "''"])
def test_quotes_around_a_text_may_stay(tmp_path: Path, lr: str) -> None:
    (problem,) = problems(tmp_path, GOOD.replace("1e-4", lr))
    assert "quotes" not in problem
