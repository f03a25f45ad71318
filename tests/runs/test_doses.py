"""Dose and response: the runs of each dose, what a shorter one shares, and the sentence."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos import VARYING, make_inputs
from click.testing import CliRunner
from support.runs import short_checks

import forty2.runs.pipeline
from forty2.benchmark.tasks import held_out
from forty2.cli import main
from forty2.cli.json_output import SCHEMAS
from forty2.errors import RecipeError, RunError
from forty2.files import read_json
from forty2.recipe.reading import load_recipe, to_yaml
from forty2.recipe.schema import Recipe
from forty2.runs.ablation import Ablation, ablate
from forty2.runs.doses import (
    DosePlan,
    DosePoint,
    Harm,
    check_doses,
    comparisons_of_doses,
    plan_doses,
    sentence,
)

DOSES = [2, 0, 1]


@pytest.fixture(scope="module", autouse=True)
def short() -> Iterator[None]:
    """Replies of a few tokens: they take most of a small run."""
    with short_checks(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(held_out, "MAX_TOKENS", 4)
        yield


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_inputs(tmp_path_factory.mktemp("doses") / "inputs")
    text = (folder / "recipe.yaml").read_text().replace("{tasks: [], held_out: false}", "{n: 2}")
    (folder / "recipe.yaml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def recipe(inputs: Path) -> Recipe:
    alone = [f"phases.{name}.{key}=null" for name in ("sft", "dpo") for key in ("valid",)]
    every = [f"phases.{name}.save_every_steps=1" for name in ("sft", "dpo")]
    return load_recipe(
        inputs / "recipe.yaml",
        [
            *alone,
            *every,
            "phases.sft.eval_every_steps=1",
            "phases.sft.eval_prompts=null",
            "phases.dpo.steps=1",
            "phases.dpo.best=null",
            f"benchmark.questions={inputs / 'questions.json'}",
        ],
    )


class Stopped(Exception):
    """What stands for a kill between two runs."""


@pytest.fixture(scope="module")
def found(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Ablation:
    """Doses that were stopped before the longer one and gone on with."""
    out = tmp_path_factory.mktemp("doses") / "out"

    def stop(stage: str, done: int, total: int, info: Any) -> None:
        if stage == "seed 2 sft-2: phase1_sft":
            raise Stopped

    with pytest.raises(Stopped):
        ablate(recipe, [1, 2], doses=DOSES, out=out, progress=stop)
    return ablate(recipe, [1, 2], doses=DOSES, out=out, resume=True)


def test_each_dose_is_measured_without_and_with_the_preference_phase(found: Ablation) -> None:
    record = read_json(found.path / "ablation.json")
    assert list(record["variants"]) == [
        *("base", "sft 1", "sft 1+dpo", "sft 2", "sft 2+dpo", "dpo only")
    ]
    assert [(one["variant"], one["against"]) for one in record["changes"]] == [
        *((name, "base") for name in ("dpo only", "sft 1", "sft 1+dpo", "sft 2", "sft 2+dpo")),
        ("sft 1+dpo", "sft 1"),
        ("sft 2+dpo", "sft 2"),
    ]
    dose = record["dose"]
    assert dose["points"] == [
        {"dose": 0, "variant": "base", "after_preference": "dpo only"},
        {"dose": 1, "variant": "sft 1", "after_preference": "sft 1+dpo"},
        {"dose": 2, "variant": "sft 2", "after_preference": "sft 2+dpo"},
    ]
    assert (
        dose["sentence"] == found.sentence and "2 seeds, doses of 0, 1, 2 steps" in found.sentence
    )
    assert found.insight is None and record["insight"] is None
    assert record.keys() == SCHEMAS["ablate"].keys.keys()


def test_a_dose_that_begins_with_a_shorter_one_equals_one_trained_by_itself(
    found: Ablation, tmp_path: Path
) -> None:
    ours = found.path / "seed2" / "sft-2"
    asked = load_recipe(ours / "recipe.yaml")
    forty2.runs.pipeline.run(asked, run_dir=tmp_path / "plain")
    for file in (
        *("phase1_sft/adapters.safetensors", "phase2_dpo/adapters.safetensors"),
        *("metrics.jsonl", "benchmarks/phase1_sft.json", "benchmarks/phase2_dpo.json"),
    ):
        one, two = (_without_place(run, run / file) for run in (ours, tmp_path / "plain"))
        assert one == two, file


def _without_place(folder: Path, file: Path) -> object:
    """Return what a file says, without its folder, times and speeds."""
    data = file.read_bytes().replace(str(folder).encode(), b"RUN")
    if file.suffix == ".safetensors":
        return data
    lines = data.splitlines() if file.suffix == ".jsonl" else [data]
    varying = ("sha256", "seconds", *VARYING)
    return [
        {key: value for key, value in json.loads(line).items() if key not in varying}
        for line in lines
    ]


def test_a_stop_leaves_no_trace_in_the_record(
    found: Ablation, recipe: Recipe, tmp_path: Path
) -> None:
    trained = set()

    def note(stage: str, done: int, total: int, info: Any) -> None:
        if stage.endswith("phase1_sft") and "loss" in info:
            trained.add((stage, done))

    never = ablate(recipe, [1, 2], doses=DOSES, out=tmp_path / "out", progress=note)
    assert trained == {  # the second step goes on from the first
        (f"seed {seed} sft-{dose}: phase1_sft", dose) for seed in (1, 2) for dose in (1, 2)
    }
    for kind in ("json", "md", "html"):
        one, two = (
            (run.path / f"ablation.{kind}").read_text().replace(str(run.path), "OUT")
            for run in (found, never)
        )
        assert one == two, kind


def test_the_report_has_a_table_and_charts_by_dose(found: Ablation) -> None:
    markdown, page = ((found.path / f"ablation.{kind}").read_text() for kind in ("md", "html"))
    assert all(found.sentence in text for text in (markdown, page))
    table = markdown.split("## Change from base by dose")[1].split("##")[0].splitlines()
    head, rows = table[2], table[4:9]
    assert head.startswith("| sft steps | MC1 | MC2 | leaks (points) |") and "KL from base" in head
    labels = [row.split("|")[1].strip() for row in rows]
    assert labels == ["0", "0, then dpo", "1", "1, then dpo", "2"]
    assert page.count("<svg") == 6 and "then dpo" in page
    assert "1, then dpo" in found.table and "leaks (points)" in found.table


# --- the plan -------------------------------------------------------------------------------------


def test_a_dose_begins_the_next_one_only_where_all_else_is_alike(recipe: Recipe) -> None:
    plan = plan_doses(recipe, [4, 1, 2, 0])
    assert [(one.folder, one.longer_than) for one in plan.variants] == [
        ("sft-1", None),
        ("sft-2", "sft-1"),
        ("sft-4", "sft-2"),
        ("dpo-only", None),
    ]
    assert [one.phases["sft"].steps for one in plan.variants[:3]] == [1, 2, 4]
    assert not plan.notes
    falling = _with(recipe, "sft", schedule="linear")
    plan = plan_doses(falling, [1, 2])
    assert [one.longer_than for one in plan.variants] == [None, None]
    assert "each dose is trained by itself" in plan.notes[0]
    warm = _with(recipe, "sft", warmup_steps=2)
    plan = plan_doses(warm, [1, 2, 4])
    assert [one.longer_than for one in plan.variants] == [None, None, "sft-2"]
    assert "doses below the 2 warmup_steps of sft warm up to their end: 1" in plan.notes


def test_what_would_end_a_dose_early_is_left_out_and_said(recipe: Recipe) -> None:
    sft, dpo = recipe.phases["sft"], recipe.phases["dpo"]
    kept = dataclasses.replace(sft, until=_goal(), epochs=None)
    phases = {"first": dpo, "sft": kept, "more": sft, "dpo": dpo, "boost": dpo}
    plan = plan_doses(dataclasses.replace(recipe, phases=phases), [0, 3])
    assert (plan.phase, plan.preference) == ("sft", "dpo")
    assert all(one.phases.keys() <= {"sft", "dpo"} for one in plan.variants)
    assert plan.variants[0].phases["sft"].until is None
    assert plan.notes == [
        "left out: first, more, boost; a dose is sft and what follows it",
        "sft is without until: each dose takes all its steps",
    ]


def test_without_a_preference_phase_there_is_one_line_and_a_note(recipe: Recipe) -> None:
    alone = dataclasses.replace(recipe, phases={"sft": recipe.phases["sft"]})
    plan = plan_doses(alone, [0, 1, 2])
    assert [one.folder for one in plan.variants] == ["sft-1", "sft-2"]
    assert plan.notes == ["one line of doses: the recipe has no preference phase after sft"]
    assert comparisons_of_doses(plan) == [("sft 1", "base"), ("sft 2", "base")]


@pytest.mark.parametrize("doses", [[], [1], [1, 1, 2], [0, -1], [1, 2**31]])
def test_doses_that_give_no_curve_are_refused(recipe: Recipe, doses: list[int]) -> None:
    with pytest.raises(RunError, match="two or more that differ, from 0 on"):
        check_doses(recipe, doses)


def test_the_command_line_refuses_in_one_line_before_anything_runs(
    recipe: Recipe, tmp_path: Path
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(to_yaml(recipe, tmp_path))
    out = tmp_path / "out"
    for doses, complaint in (
        ("1,two", "whole numbers"),
        ("1.5,2", "whole numbers"),
        ("4,4", "--dose 4,4: give two or more"),
        ("0,-1", "--dose 0,-1: give two or more"),
    ):
        command = ["ablate", str(file), f"--dose={doses}", "--out", str(out)]
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 2 and complaint in done.output, done.output
        assert done.output.count("\n") == 1 and not out.exists()
    no_sft = dataclasses.replace(recipe, phases={"dpo": recipe.phases["dpo"]})
    with pytest.raises(RecipeError, match="has no SFT phase"):
        ablate(no_sft, [1, 2], doses=[1, 2], out=out)
    assert not out.exists()


def _with(recipe: Recipe, phase: str, **settings: object) -> Recipe:
    changed = dataclasses.replace(recipe.phases[phase], **settings)  # type: ignore[arg-type]
    return dataclasses.replace(recipe, phases={**recipe.phases, phase: changed})


def _goal() -> Any:
    from forty2.training.objectives.phase import Goal

    return Goal(metric="loss", at_most=0.1)


# --- the sentence ---------------------------------------------------------------------------------

POINTS = [
    DosePoint(0, "base", "dpo only"),
    *(DosePoint(n, f"sft {n}", f"sft {n}+dpo") for n in (40, 100, 200)),
]
PLAN = DosePlan("sft", "dpo", POINTS, [], [])
FACTS = Harm("plain facts", False, 100, "42%", "18%", [], "no")
LEAK = Harm("leaks by generation", True, 200, "2%", "12%", [], "yes")


def test_the_sentence_says_from_which_dose_on_what_it_costs_and_what_comes_back() -> None:
    assert sentence(PLAN, [FACTS, LEAK], ["neutral text perplexity"], 3) == (
        "sft leaks and costs from 100 steps on: plain facts 42% → 18% at 100, leaks by generation 2% → "
        "12% at 200; too few items to tell at every dose: neutral text perplexity; dpo after it brings "
        "back leaks by generation, does not bring back plain facts (3 seeds, doses of 0, 40, 100, 200 "
        "steps)."
    )
    once = FACTS._replace(not_at=[200], restored="cannot be told")
    text = sentence(PLAN, [once], [], 2)
    assert text.startswith(
        "sft costs from 100 steps on: plain facts 42% → 18% at 100, but not at 200;"
    )
    assert "may or may not bring back plain facts" in text
    alone = PLAN._replace(preference=None)
    assert "no preference phase comes after it" in sentence(
        alone, [LEAK._replace(restored=None)], [], 2
    )


def test_no_harm_is_said_with_what_could_not_be_told() -> None:
    text = sentence(PLAN, [], ["plain facts"], 3)
    assert text.startswith("sft neither leaks nor costs more than its margin up to 200 steps")
    assert "too few items to tell at every dose: plain facts" in text
