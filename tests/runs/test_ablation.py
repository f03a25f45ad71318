"""What each phase gained and cost: the runs, and intervals over seeds and items."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos import make_inputs, results
from click.testing import CliRunner
from support.runs import short_checks

import forty2.runs.pipeline
from forty2.benchmark.recipe_tasks import load_tasks
from forty2.benchmark.tasks import held_out
from forty2.cli import main
from forty2.data.build import build
from forty2.errors import RecipeError, RunError
from forty2.files import read_json, read_sealed
from forty2.recipe.reading import load_recipe, to_yaml
from forty2.recipe.schema import Recipe
from forty2.report.ablation import write_ablation
from forty2.runs.ablation import Ablation, ablate
from forty2.runs.ablation_variants import comparisons_of, variants_of
from forty2.training.objectives.simpo import SimpoPhase

SMALL = [
    "benchmark.n=9",
    "phases.sft.steps=1",
    "phases.dpo.steps=1",
    "phases.sft.valid=null",
    "phases.dpo.best=null",
    *(f"phases.{p}.{k}_every_steps=null" for p in ("sft", "dpo") for k in ("save", "eval")),
]


@pytest.fixture(scope="module", autouse=True)
def short() -> Iterator[None]:
    """Replies of a few tokens: they take most of a small run."""
    with short_checks(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(held_out, "MAX_TOKENS", 4)
        yield


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    inputs = make_inputs(tmp_path_factory.mktemp("ablate") / "inputs")
    text = (inputs / "recipe.yaml").read_text().replace("{tasks: [], held_out: false}", "{}")
    (inputs / "recipe.yaml").write_text(text)
    asked = [
        {
            "question": f"{n}+1?",
            "mc1_targets": (options := {str(n + 1): 1, str(n): 0}),
            "mc2_targets": options,
        }
        for n in range(12)
    ]
    (inputs / "asked.json").write_text(json.dumps(asked))
    return load_recipe(
        inputs / "recipe.yaml", [*SMALL, f"benchmark.questions={inputs / 'asked.json'}"]
    )


class Stopped(Exception):
    """What stands for a kill between two runs."""


@pytest.fixture(scope="module")
def found(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Ablation:
    """An ablation that was stopped before its third run and gone on with."""
    out = tmp_path_factory.mktemp("ablation") / "out"
    seen: list[str] = []

    def stop(stage: str, done: int, total: int, info: Any) -> None:
        seen.append(stage)
        if stage.startswith("seed 2 "):
            raise Stopped

    with pytest.raises(Stopped):
        ablate(recipe, [1, 2], out=out, progress=stop)
    assert not (out / "ablation.json").exists()
    assert sum(stage == "seed 1 full: base: truthfulqa" for stage in seen) == 9
    return ablate(recipe, [1, 2], out=out, resume=True)


def test_it_has_every_variant_and_what_each_phase_bought(found: Ablation) -> None:
    record = read_json(found.path / "ablation.json")
    assert list(record["variants"]) == ["base", "sft", "sft+dpo", "dpo only"]
    assert [(one["variant"], one["against"]) for one in record["changes"]] == [
        ("sft", "base"),
        ("sft+dpo", "base"),
        ("dpo only", "base"),
        ("sft+dpo", "sft"),
        ("sft+dpo", "dpo only"),
    ]
    assert record["variants"]["base"]["KL"]["value"] == 0
    assert record["variants"]["sft"]["KL"]["value"] > 1e-4
    assert {len(scores) for scores in record["items"]["sft"].values()} == {2}


def test_every_variant_is_judged_by_benefit_and_cost(found: Ablation) -> None:
    """A phase alone is judged on the held-out rows that it has: not on those of other phases."""
    record = read_json(found.path / "ablation.json")
    assert {"pairs right", "prompts passed"} <= record["variants"]["sft+dpo"].keys()
    assert "prompts passed" not in record["variants"]["dpo only"]
    assert record["variants"]["base"]["pairs right"]["value"] == 0.5
    text = " ".join((found.path / "ablation.md").read_text().split())
    for one, line in zip(record["changes"], [*found.verdicts, *[None] * 2], strict=True):
        assert one["verdict"] in ("gain", "no tax", "tax", "inconclusive")
        costs = {cost["where"] for cost in one["costs"]}
        assert costs == {"TruthfulQA", "plain facts", "neutral text"}
        assert "6 held-out pairs" in one["sentence"] and one["sentence"] in text
        assert line in (None, f"{one['variant']}: {one['verdict']}. {one['sentence']}")


def test_a_run_begun_with_the_base_s_measurement_equals_a_plain_one(
    found: Ablation, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the byte, but for where they are and the seed that drew no questions."""
    assert recipe.benchmark is not None
    asked = dataclasses.replace(
        recipe.benchmark, questions=str(found.path.resolve() / "questions.json")
    )
    phases = {"dpo": recipe.phases["dpo"]}
    plain = dataclasses.replace(recipe, seed=2, fuse=None, phases=phases, benchmark=asked)
    monkeypatch.setenv("FORTY2_CACHE", str(tmp_path / "cache"))
    forty2.runs.pipeline.run(plain, run_dir=tmp_path / "plain" / "run")
    shutil.copytree(found.path / "seed2" / "dpo-only", tmp_path / "ours" / "run")
    runs = {"plain": tmp_path / "plain" / "run", "ours": found.path / "seed2" / "dpo-only"}
    left = {}
    for name, run in runs.items():
        left[name] = results(tmp_path / name)
        for file, data in left[name].items():
            if file.endswith(".json") and isinstance(data, bytes):
                read = json.loads(data.replace(str(run).encode(), b"RUN"))
                read.pop("sha256", None)
                for task in ("truthfulqa", "behaviour", "perplexity", "divergence"):
                    read.get(task, {}).pop("seed", None)
                left[name][file] = read
        del left[name]["run/run.json"]["model_from_run"]
    assert left["ours"] == left["plain"]


def test_seeds_share_their_questions_and_the_base_but_not_their_training(
    found: Ablation, recipe: Recipe
) -> None:
    def files(name: str) -> set[bytes]:
        return {path.read_bytes() for path in found.path.glob(f"seed*/*/{name}")}

    assert len(list(found.path.glob("seed*/*"))) == 4
    bases = {
        json.dumps({key: one for key, one in read_sealed(path).items() if key != "held_out"})
        for path in found.path.glob("seed*/*/benchmarks/base.json")
    }
    assert len(bases) == 1  # a phase alone has its own held-out rows
    assert len(files("phase1_sft/adapters.safetensors")) == 2
    assert len(files("phase1_dpo/adapters.safetensors")) == 2
    drawn = {item["question"] for item in json.loads((found.path / "questions.json").read_text())}
    other = dataclasses.replace(recipe, seed=1)
    assert recipe.benchmark is not None
    own, others = (
        {item.question for item in load_tasks(recipe.benchmark, seed)["truthfulqa"].questions.items}
        for seed in (recipe.seed, other.seed)
    )
    assert drawn == own != others


def test_another_ablation_in_the_same_place_is_refused(
    found: Ablation, recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="`resume=True`"):
        ablate(recipe, [1, 2], out=found.path)
    with pytest.raises(RunError, match="another `out`"):
        ablate(recipe, [1, 2], out=found.report, resume=True)
    with pytest.raises(RunError, match="other questions"):
        ablate(dataclasses.replace(recipe, seed=3), [1, 2], out=found.path, resume=True)
    other = dataclasses.replace(recipe, max_length=95)
    with pytest.raises(RunError, match="another recipe"):
        ablate(other, [1, 2], out=found.path, resume=True)


def test_the_report_has_every_variant_and_metric(found: Ablation) -> None:
    markdown, page = ((found.path / f"ablation.{kind}").read_text() for kind in ("md", "html"))
    for text in (markdown, page):
        for word in ("sft+dpo", "dpo only", "MC2", "leaks", "perplexity", "gate myth, generation"):
            assert word in text
        assert found.insight is not None and found.insight.says in text
    bought = markdown.split("## What each phase gained and cost")[1].splitlines()[2]
    assert bought == (
        "| Metric | sft against base | sft+dpo against sft | sft+dpo against dpo only |"
    )
    assert page.count("<svg") == 17  # KL has no change from base
    assert "MC1" in found.table and found.table.count("\n") == 5


def test_what_a_record_says_is_text_in_its_report(found: Ablation, tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script> [x](http://x)|`\u202e"
    run = {**found.record["run"], "model": hostile}
    questions = {**found.record["questions"], "name": hostile}
    page = write_ablation({**found.record, "run": run, "questions": questions}, tmp_path)
    assert "<script" not in page.read_text() and "&lt;script&gt;" in page.read_text()
    for text in (page.read_text(), (tmp_path / "ablation.md").read_text()):
        assert "\u202e" not in text
    assert f"`` {hostile[:-1]}\\u202e ``" in (tmp_path / "ablation.md").read_text()


def test_a_recipe_without_anything_before_the_preference_phase_has_no_phase_alone(
    recipe: Recipe,
) -> None:
    sft, dpo = recipe.phases["sft"], recipe.phases["dpo"]
    for phases, wanted in [
        ({"dpo": dpo}, ["dpo"]),
        ({"sft": sft}, ["sft"]),
        ({"dpo": dpo, "boost": dpo}, ["dpo", "dpo+boost"]),
    ]:
        parts = variants_of(dataclasses.replace(recipe, phases=phases))
        assert [part.stages for part in parts] == [wanted]
    phases = {"sft": sft, "more": sft, "dpo": dpo, "boost": dpo}
    full, alone = variants_of(dataclasses.replace(recipe, phases=phases))
    assert alone.stages == ["dpo only"] and list(alone.phases) == ["dpo"]
    assert comparisons_of([full, alone])[-1] == ("sft+more+dpo", "dpo only")
    simpo: Any = SimpoPhase(objective="simpo", data="builtin:spark-dpo", steps=1, lr=1e-4, beta=2.0)
    full, alone = variants_of(dataclasses.replace(recipe, phases={"sft": sft, "simpo": simpo}))
    assert alone.stages == ["simpo only"]  # it needs no reference, and is a preference phase


@pytest.mark.parametrize("seeds", [[1], [1, 1], [], [1, -1], [1, 2**31]])
def test_seeds_that_tell_nothing_are_refused(
    recipe: Recipe, seeds: list[int], tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="two or more"):
        ablate(recipe, seeds, out=tmp_path)


def test_the_command_line_refuses_in_one_line(recipe: Recipe, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    nothing = load_recipe(_with(tmp_path, recipe), ["benchmark={tasks: [], held_out: false}"])
    file.write_text(to_yaml(nothing))
    done = CliRunner().invoke(main, ["ablate", str(file), "--out", str(tmp_path / "out")])
    assert done.exit_code == 2 and "measures nothing" in done.output, done.output
    done = CliRunner().invoke(main, ["ablate", str(file), "--seeds", "1,two"])
    assert done.exit_code == 2 and "1,2,3" in done.output


def _with(folder: Path, recipe: Recipe) -> Path:
    file = folder / "whole.yaml"
    file.write_text(to_yaml(recipe, folder))
    return file


def test_questions_that_each_seed_would_draw_anew_are_refused_before_anything_runs(
    recipe: Recipe, tmp_path: Path
) -> None:
    rows = [{"question": f"{n}+1?", "answer": f"#### {n + 1}"} for n in range(9)]
    for name in ("test", "train"):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    sums = f"{{task: gsm8k, data: {tmp_path}, n: 4}}"
    drawn = load_recipe(_with(tmp_path, recipe), [f"benchmark.tasks=[truthfulqa, {sums}]"])
    with pytest.raises(RecipeError, match="gsm8k: each seed draws other questions; leave out n"):
        ablate(drawn, [1, 5], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- the statistics -------------------------------------------------------------------------------


@pytest.mark.slow
def test_on_the_starter_model_from_the_command_line(tmp_path: Path) -> None:
    command = ["ablate", "demo", "--seeds", "1,2", "--out", str(tmp_path / "out")]
    settings = ["benchmark.n=9", "adapter.layers=4"]
    for name, data in (("sft", "spark-sft"), ("dpo", "spark-dpo")):
        rows = "".join(json.dumps(row) + "\n" for row in list(build(data).valid)[:3])
        (tmp_path / f"{name}.jsonl").write_text(rows)
    for phase, valid in (("sft", "sft"), ("dpo", "dpo"), ("boost", "dpo")):
        settings.append(f"phases.{phase}.valid={tmp_path / valid}.jsonl")
        settings += [
            f"phases.{phase}.{setting}"
            for setting in (
                "steps=2",
                "batch_size=2",
                "warmup_steps=0",
                "eval_every_steps=2",
                "lint=false",
            )
        ]
    for setting in settings:
        command += ["--set", setting]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    record = read_json(tmp_path / "out" / "ablation.json")
    assert list(record["variants"]) == ["base", "sft", "sft+dpo", "sft+dpo+boost", "dpo only"]
    assert record["insight"]["sentence"] in done.output
    assert record["variants"]["base"]["pairs right"]["value"] == 0.5
