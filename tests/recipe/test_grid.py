"""Grids of sweeps: every form that is read, and one line for everything that is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from forty2.errors import RecipeError
from forty2.recipe import reading
from forty2.recipe.grid import Grid, read_grid

METRIC = "metric: {name: mc2, goal: maximize}\n"


def read(folder: Path, text: str, metric: str = METRIC) -> Grid:
    file = folder / "sweep.yaml"
    file.write_text(metric + text, "utf-8")
    return read_grid(file, "demo")


def problems(folder: Path, text: str, metric: str = METRIC) -> list[str]:
    with pytest.raises(RecipeError) as error:
        read(folder, text, metric)
    return [line.replace(f"{folder}/", "") for line in str(error.value).splitlines()]


def test_every_form_of_values_is_the_same_grid(tmp_path: Path) -> None:
    forms = (
        "parameters: {phases.dpo.beta: {values: [0.1, 0.3]}}",
        "parameters: {phases.dpo.beta: [0.1, 0.3]}",
        "phases.dpo.beta: [0.1, 0.3]",
        "parameters: {phases: {parameters: {dpo: {parameters: {beta: {values: [0.1, 0.3]}}}}}}",
        "parameters: {phases.dpo.beta: {distribution: categorical, values: [0.1, 0.3]}}",
    )
    for form in forms:
        grid = read(tmp_path, form)
        (one,) = grid.parameters
        assert (grid.method, one.key, one.values, one.line) == (
            "grid",
            "phases.dpo.beta",
            (0.1, 0.3),
            2,
        )
        assert grid.size == 2


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("{min: 1, max: 9}", (1, 9, False, 1, True)),
        ("{min: 1, max: 9.5}", (1, 9.5, False, None, False)),
        ("{min: 1, max: 9, q: 2}", (1, 9, False, 2, True)),
        (
            "{min: 1e-6, max: 1e-4, distribution: log_uniform_values}",
            (1e-6, 1e-4, True, None, False),
        ),
        ("{min: 0, max: 0.5, distribution: uniform}", (0, 0.5, False, None, False)),
        ("{min: 1, max: 1.5, q: 0.25, distribution: q_uniform}", (1, 1.5, False, 0.25, False)),
    ],
)
def test_ranges_are_read_as_wandb_reads_them(
    given: str, wanted: tuple[object, ...], tmp_path: Path
) -> None:
    grid = read(tmp_path, f"method: random\nrun_cap: 3\nparameters: {{phases.dpo.lr: {given}}}")
    (one,) = grid.parameters
    assert (one.low, one.high, one.log, one.step, one.whole) == wanted
    assert grid.size is None and grid.run_cap == 3


def test_the_ends_of_log_uniform_are_exponents(tmp_path: Path) -> None:
    given = "{min: 0, max: 1, distribution: log_uniform}"
    (one,) = read(tmp_path, f"method: bayes\nrun_cap: 1\nphases.dpo.lr: {given}").parameters
    assert (one.low, one.log) == (1.0, True) and one.high == pytest.approx(2.718281828)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("parameters: {}", "sweep.yaml:1: grid: empty"),
        ("", "sweep.yaml:1: grid: empty"),
        ("parameters: {phases.dpo.beta: []}", "sweep.yaml:2: parameters.phases.dpo.beta: empty"),
        ("parameters: {phases.dpo.beta: {values: []}}", "empty; give a list"),
        ("parameters: {phases.dpo.beta: 0.1}", "should be a list of values, or a mapping"),
        ("parameters: {phases.dpo.beta: {value: 0.1, values: [1]}}", "not a key of constant"),
        ("parameters: {phases.dpo.beta: {values: [1, 1]}}", "1 is there twice"),
        ("parameters: [1]", "should be a mapping of recipe keys"),
        ("parameters: {phases.dpo.beta: {valeus: [1]}}", "valeus: not a key of categorical"),
        ("parameters: {seed: [1, 2]}", "seeds are replicates, never searched"),
        ("parameters: {seed: {min: 1, max: 9}}", "give `seeds`"),
        ("seed: [1, 2]", "seeds are replicates"),
        ("parameters: {name: [a, b]}", "is the same for all"),
        ("parameters: {benchmark.n: [1, 2]}", "every configuration is measured alike"),
        ("parameters: {fuse.quantize: [4, 8]}", "nothing is fused in a sweep"),
        ("parameters: {phases.dpo: [{}], phases.dpo.beta: [1]}", "overlaps with phases.dpo"),
        ("parameters: {phases..beta: [1]}", "not a key"),
        ("parameters: {a.b: [1]}\nprogramme: x", "programme: unknown key of a grid"),
        ("parameters: {a.b: [1]}\nprogram: train.py", "a sweep runs the recipe that the command"),
        ("parameters: {a.b: [1]}\nearly_terminate: {type: hyperband}", "give `early_stop=True`"),
        ("_: [{a: 1}]\na.b: [1]", "write a whole section as a value"),
        ("method: hyperband\na.b: [1]", "should be grid, random or tpe (or bayes)"),
        ("method: grid\na.b: {min: 1, max: 2}", "a grid needs its values"),
        ("method: random\na.b: [1, 2]", "run_cap: missing; random search needs a number"),
        ("method: random\nrun_cap: 0\na.b: [1]", "run_cap: should be a whole number above 0"),
        ("method: random\nrun_cap: true\na.b: [1]", "not True"),
        (
            "a.b: {values: [1, 2], probabilities: [0.5, 0.5]}",
            "probabilities are for method: random",
        ),
        (
            "method: random\nrun_cap: 1\na.b: {values: [1, 2], probabilities: [0.5, 0.6]}",
            "a number for each value, in all 1",
        ),
        ("method: random\nrun_cap: 1\na.b: {min: 2, max: 1}", "min 2 should be below max 1"),
        ("method: random\nrun_cap: 1\na.b: {min: 1}", "max: missing"),
        ("method: random\nrun_cap: 1\na.b: {min: x, max: 1}", "should be a number, not 'x'"),
        (
            "method: random\nrun_cap: 1\na.b: {min: 0, max: 1, distribution: log_uniform_values}",
            "min 0 should be above 0",
        ),
        ("method: random\nrun_cap: 1\na.b: {mu: 0, distribution: normal}", "normal is not offered"),
        ("a.b: {values: [1], distribution: zipf}", "zipf: unknown; use uniform"),
        ("method: random\nrun_cap: 1\na.b: {min: 1, max: 2, q: 0}", "should be above 0"),
        ("name: 3\na.b: [1]", "name: should be text"),
        ("a: {parameters: {b: [1]}, values: [2]}", "cannot stand beside nested parameters"),
        ("a.b: [1]\na.b: [2]", "a.b is given twice"),
        ("- 1", "not valid YAML"),
        (
            "method: random\nrun_cap: 1\na.b: {min: 0, max: 900, distribution: log_uniform}",
            "exponents of e, from -700 to 700; for the values themselves use log_uniform_values",
        ),
        ("method: random\nrun_cap: 1\na.b: {min: 1.5, max: 2, q: 3}", "3 is more than max - min"),
        (
            "method: random\nrun_cap: 1\na.b: {values: [1, 2], probabilities: []}",
            "a number for each value, in all 1",
        ),
        ("paramters: {a.b: [1]}", "paramters: unknown key of a grid; did you mean parameters?"),
        ("metod: random\na.b: [1]", "metod: unknown key of a grid; did you mean method?"),
        ("a: {b: {values: [1]}}", "a.b: a parameter has values, value, min,"),
        ("a: {b: {values: [1]}}", "for a key below it, write a.b"),
        ("a: {parameters: {}}\nb.c: [1]", "a.parameters: empty; name a key"),
        ("a.b=1: [1, 2]", "not a key; write it as key.subkey"),
        ("report_to: [[], [wandb]]", "report_to: changes no result"),
    ],
)
def test_a_bad_grid_is_refused_in_one_line(text: str, says: str, tmp_path: Path) -> None:
    (line,) = problems(tmp_path, text)
    assert says in line and line.startswith("sweep.yaml:")


@pytest.mark.parametrize(
    ("metric", "says"),
    [
        ("", "metric: missing; write metric: {name: mc2, goal: maximize}"),
        ("metric: mc2\n", "should be a mapping, not 'mc2'"),
        ("metric: {name: mc2}\n", "goal: missing; write goal: maximize or goal: minimize"),
        ("metric: {name: mc2, goal: up}\n", "should be maximize or minimize, not 'up'"),
        ("metric: {goal: maximize}\n", "name: missing"),
        ("metric: {name: mc2, goal: maximize, target: 0.9}\n", "target: not used"),
    ],
)
def test_a_metric_without_name_or_direction_is_refused(
    metric: str, says: str, tmp_path: Path
) -> None:
    (line,) = problems(tmp_path, "a.b: [1]", metric)
    assert says in line


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    text = "method: random\nparameters:\n  seed: [1]\n  a.b: {min: 2, max: 1}\n"
    assert [line.split(": ")[0] for line in problems(tmp_path, text)] == [
        "sweep.yaml:1",
        "sweep.yaml:4",
        "sweep.yaml:5",
    ]


def test_a_grid_beside_the_recipe_is_found_and_is_no_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"{METRIC}phases.dpo.beta: [0.1, 0.3]\n"
    (tmp_path / "mine.yaml").write_text(reading.recipe_text("demo"))
    with pytest.raises(RecipeError, match="has no grid beside it; name one with `grid`"):
        read_grid(None, tmp_path / "mine.yaml")
    with pytest.raises(RecipeError, match="demo: has no grid beside it"):
        read_grid(None, "demo")
    with pytest.raises(RecipeError, match="no such grid"):
        read_grid(tmp_path / "nowhere.yaml", "demo")
    (tmp_path / "mine.sweep.yaml").write_text(text)
    assert read_grid(None, tmp_path / "mine.yaml").size == 2
    monkeypatch.setattr(reading, "_PACKAGED", tmp_path)
    assert reading.packaged_recipes() == ["mine"]
    assert read_grid(None, "mine").place == "mine.sweep.yaml"
