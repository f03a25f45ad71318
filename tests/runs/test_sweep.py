"""Sweeps: shared work is done once, a stop changes nothing, and a winner is a claim."""

from __future__ import annotations

import dataclasses
import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chaos import make_inputs, results
from support.cli import forty2, refused

from forty2.benchmark.tasks import behaviour, held_out, perplexity
from forty2.errors import RecipeError, RunError
from forty2.files import read_json, write_json
from forty2.progress import silent
from forty2.recipe.grid import read_grid
from forty2.recipe.reading import load_recipe
from forty2.runs import pipeline
from forty2.runs.archive.finding import find_runs
from forty2.runs.folder import try_lock
from forty2.runs.seed_statistics import mean_over_seeds
from forty2.runs.sweep.configurations import (
    Configuration,
    RecipeSource,
    check_ranges,
    configuration_name,
    configurations,
)
from forty2.runs.sweep.confirming import confirm
from forty2.runs.sweep.folder import ConfigurationFolder, SweepRecord, configuration_folders
from forty2.runs.sweep.metrics import Objective, measured_by, measurements, objective_of
from forty2.runs.sweep.results import (
    SweepResult,
    show_sweep,
)
from forty2.runs.sweep.running import _Sweep, stops, sweep
from forty2.runs.sweep.shared_work import _measured_alike, shared_lengths, untouched_length
from forty2.runs.sweep.study import Study

SMALL = [
    "benchmark.n=6",
    "phases.sft.steps=1",
    "phases.dpo.steps=1",
    "phases.sft.valid=null",
    "phases.dpo.best=null",
    "phases.dpo.data=builtin:spark-dpo",
    "phases.dpo.valid=null",
    "phases.sft.eval_prompts=null",
    *(f"phases.{p}.{k}_every_steps=null" for p in ("sft", "dpo") for k in ("save", "eval")),
]
METRIC = "metric: {name: pair_margin, goal: maximize}\n"
OBJECTIVE = Objective("mc2", "mc2", 1.0)
UNTRAINED = {
    "version": 1,
    "name": "r",
    "model": "none",
    "phases": {
        "dpo": {
            "objective": "dpo",
            "data": "builtin:spark-dpo",
            "steps": 1,
            "lr": 1e-4,
            "beta": 0.1,
        }
    },
}
"""A recipe that is only read."""
GRID = f"{METRIC}phases.dpo.lr: [1.0e-2, 1.0e-3]\n"


@pytest.fixture(scope="module", autouse=True)
def shorter_runs() -> Any:
    """Runs whose own reports are empty files, and which answer and read little."""
    from forty2.data.library import rows

    def write(folder: Path) -> Path:
        for name in ("report.md", "report.html"):
            (folder / name).touch()
        return folder / "report.html"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "write_report", write)
        facts = [row for row in rows("heldout/behaviour") if row["gate"] == "leak"][:6]
        patch.setattr(behaviour, "rows", lambda _: facts)
        patch.setattr(held_out, "MAX_TOKENS", 4)
        patch.setattr(perplexity, "WINDOW", 32)
        yield


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_inputs(tmp_path_factory.mktemp("sweep") / "inputs")
    text = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(text.replace("{tasks: [], held_out: false}", "{tasks: []}"))
    (folder / "grid.yaml").write_text(GRID)
    return folder


def test_rows_of_every_configuration_are_checked_before_the_first_run(
    inputs: Path, tmp_path: Path
) -> None:
    (tmp_path / "grid.yaml").write_text(f"{METRIC}phases.dpo.stratify: [null, [colour]]\n")
    wrong = r"grid.yaml: with phases.dpo.stratify=\[colour\]: .*: no row has 'colour', by which"
    with pytest.raises(RecipeError, match=wrong):
        swept(inputs, tmp_path / "out", grid=tmp_path / "grid.yaml")
    assert not (tmp_path / "out").exists()


def test_a_metric_of_too_few_held_out_rows_is_refused_before_the_first_run(
    inputs: Path, tmp_path: Path
) -> None:
    rows = (inputs / "dpo.jsonl").read_text("utf-8").splitlines()
    (tmp_path / "one.jsonl").write_text(f"{rows[0]}\n", "utf-8")
    overrides = [f"phases.dpo.data={inputs}/dpo.jsonl", f"phases.dpo.valid={tmp_path}/one.jsonl"]
    wrong = "grid.yaml:1: metric.name: pair margin has 1 held-out row, and an interval needs two"
    with pytest.raises(RecipeError, match=wrong):
        swept(inputs, tmp_path / "out", overrides=overrides)
    assert not (tmp_path / "out").exists()


def test_what_the_model_does_not_allow_names_the_line_of_the_grid(
    inputs: Path, tmp_path: Path
) -> None:
    (tmp_path / "grid.yaml").write_text(f"{METRIC}adapter.layers: [1, 99]\n")
    wrong = r"grid\.yaml:\d+: adapter\.layers: 99 are more than the \d+ blocks of the model"
    with pytest.raises(RecipeError, match=wrong):
        swept(inputs, tmp_path / "out", grid=tmp_path / "grid.yaml")


def test_every_configuration_has_to_measure_the_metric(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(f"{METRIC}phases.dpo.objective: [dpo, kto]\n")
    wrong = "grid.yaml: with phases.dpo.objective=kto: .* r does not measure it"
    with pytest.raises(RecipeError, match=wrong):
        sweep(UNTRAINED, tmp_path / "grid.yaml", [1, 2], out=tmp_path / "out", progress=silent)


def test_a_problem_beside_the_keys_of_the_grid_names_the_settings(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(f"{METRIC}phases.dpo.loss: [sigmoid, robust]\n")
    wrong = "grid.yaml: with phases.dpo.loss=robust: .*label_smoothing: robust needs the share"
    with pytest.raises(RecipeError, match=wrong):
        configurations(read_grid(tmp_path / "grid.yaml", UNTRAINED), RecipeSource(UNTRAINED))


class Stopped(Exception):
    """What stands for a kill."""


class Watch:
    """Progress that counts what is done, and stops at a stage."""

    def __init__(self, stop: str | None = None) -> None:
        self.stop = stop
        self.steps: Counter[str] = Counter()

    def __call__(self, stage: str, done: int, total: int, info: Mapping[str, Any]) -> None:
        if self.stop is not None and stage.startswith(self.stop):
            raise Stopped
        if "loss" in info or stage.endswith(("base: behaviour", "reference")):
            self.steps[f"{stage} {done}"] += 1


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


@pytest.fixture(scope="module")
def found(inputs: Path, watch: Watch, tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    """A sweep of two configurations and two seeds, never stopped."""
    out = tmp_path_factory.mktemp("whole") / "sweep"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORTY2_CACHE", str(out.parent / "cache"))
        patch.chdir(out.parent)
        result = swept(inputs, Path(out.name), watch)
    return dataclasses.replace(result, path=out)


def swept(inputs: Path, out: Path, progress: Any = silent, **options: Any) -> SweepResult:
    grid = options.pop("grid", inputs / "grid.yaml")
    seeds = options.pop("seeds", [1, 2])
    more = options.pop("overrides", [])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sweep(
            inputs / "recipe.yaml",
            grid,
            seeds,
            overrides=[*SMALL, *more],
            out=out,
            progress=progress,
            **options,
        )


def contents(out: Path) -> dict[str, Any]:
    """Everything that a sweep wrote, without times."""
    files: dict[str, Any] = {}
    for run in sorted(path.parent for path in out.rglob("run.json")):
        link = out.parent / "one"
        shutil.rmtree(link, ignore_errors=True)
        shutil.copytree(run, link / "run")
        for name, data in results(link).items():
            text = json.dumps(data, default=lambda one: one.decode("latin-1"))
            files[f"{run.relative_to(out)}/{name}"] = text.replace(str(out), "OUT")
        shutil.rmtree(link)
    for path in sorted(out.glob("*.json")):
        files[path.name] = re.sub(r'"\w*seconds": [\d.e-]+', "", path.read_text())
    for name in ("sweep.md", "sweep.html"):
        files[name] = re.sub(r"[\d.]+ (s|min)\b", "", (out / name).read_text()).replace(
            str(out), ""
        )
    return files


def test_shared_work_is_done_once(found: SweepResult, watch: Watch) -> None:
    """One measurement of the base, one SFT a seed, and a base for each seed's rows that is one file."""
    assert sum("base: behaviour" in stage and stage.endswith(" 1") for stage in watch.steps) <= 1
    trained = Counter(stage.split(":")[0] for stage in watch.steps if "phase1_sft" in stage)
    assert trained == {f"sft for several, seed {seed}": 1 for seed in (1, 2)}
    for seed in (1, 2):
        bases = {p.read_bytes() for p in found.path.glob(f"c*/seed{seed}/benchmarks/base.json")}
        assert len(bases) == 1
    for seed in (1, 2):
        adapters = [
            (one / f"seed{seed}" / "phase1_sft" / "adapters.safetensors").read_bytes()
            for one in (*found.path.glob("c*"), *found.path.glob("shared/*"))
        ]
        assert len(adapters) == 3 and len({*adapters}) == 1
    assert not (found.path / "states").exists()
    listed = find_runs([found.path]).entries
    assert len(listed) == 6 and {one.state for one in listed} == {"finished"}
    reference = [stage for stage in watch.steps if stage.split(" ")[-2].endswith("reference")]
    assert {stage.split(" ")[0] for stage in reference} == {"c001"}


@pytest.mark.parametrize(
    ("objective", "shared"),
    [("orpo, beta: 0.1", True), ("dpo, beta: 0.5", True), ("kto, beta: 0.1", False)],
)
def test_objectives_over_the_same_rows_share_the_base(
    inputs: Path, objective: str, shared: bool
) -> None:
    rows = f"data: {inputs}/dpo.jsonl, steps: 1, lr: 1.0e-3"
    first, other = (
        _measured_alike(
            load_recipe(inputs / "recipe.yaml", [f"phases={{dpo: {{objective: {one}, {rows}}}}}"]),
            inputs,
        )
        for one in ("dpo, beta: 0.1", objective)
    )
    assert (first == other) == shared


def test_a_configuration_is_what_a_run_of_its_own_is(
    found: SweepResult, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORTY2_CACHE", str(tmp_path / "cache"))
    source = RecipeSource(inputs / "recipe.yaml", [*SMALL, "seed=2"])
    pipeline.run(source.load({"phases.dpo.lr": 1e-3}), run_dir=tmp_path / "run", progress=silent)
    for file in ("phase1_sft/adapters.safetensors", "phase2_dpo/adapters.safetensors"):
        ours = found.path / "c002" / "seed2" / file
        assert ours.read_bytes() == (tmp_path / "run" / file).read_bytes()
    stage = "benchmarks/phase2_dpo.json"
    ours, plain = (
        read_json(folder / stage)["held_out"]["means"]
        for folder in (found.path / "c002" / "seed2", tmp_path / "run")
    )
    assert ours == plain


@pytest.mark.parametrize(
    "stop",
    [
        "c001 seed 2: phase2_dpo",
        pytest.param("sft for several, seed 1: phase1_sft", marks=pytest.mark.slow),
        pytest.param("c001 seed 1: base", marks=pytest.mark.slow),
        pytest.param("c002 seed 1: phase2_dpo", marks=pytest.mark.slow),
    ],
)
def test_a_sweep_that_was_stopped_ends_with_the_same_bytes(
    stop: str,
    found: SweepResult,
    inputs: Path,
    watch: Watch,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORTY2_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    out = Path("sweep")
    first, second = Watch(stop), Watch()
    with pytest.raises(Stopped):
        swept(inputs, out, first)
    again = swept(inputs, out, second, resume=True)
    assert again.winner == found.winner and again.table.count("\n") == found.table.count("\n")
    assert contents(tmp_path / out) == contents(found.path)
    trained = {stage: n for stage, n in (first.steps + second.steps).items() if "loss" not in stage}
    assert set(trained) == set(watch.steps)
    assert max(n for stage, n in trained.items() if "phase" in stage) == 1


def test_a_sweep_in_a_place_that_is_taken_is_refused(
    found: SweepResult, inputs: Path, tmp_path: Path
) -> None:
    refusals: dict[str, dict[str, Any]] = {
        "holds a sweep already; go on with `resume=True`": {},
        "another grid": {"resume": True, "grid": tmp_path / "grid.yaml"},
        "another recipe": {"resume": True, "overrides": ["max_length=95"]},
        "another `early_stop`": {"resume": True, "early_stop": True},
        "was started with seeds 1, 2; go on with these": {"resume": True, "seeds": [2, 3]},
    }
    for said, options in refusals.items():
        (tmp_path / "grid.yaml").write_text(f"{METRIC}phases.dpo.lr: [1.0e-2, 2.0e-3]\n")
        with pytest.raises(RunError, match=re.escape(said)):
            swept(inputs, found.path, **options)
    with pytest.raises(RunError, match="no sweep to resume"):
        swept(inputs, tmp_path / "new", resume=True)
    with pytest.raises(RunError, match="is not an empty folder"):
        swept(inputs, tmp_path)
    assert read_json(found.path / "sweep.json")["seeds"] == [1, 2]


def test_a_locked_configuration_is_left_to_its_process(
    found: SweepResult, inputs: Path, tmp_path: Path
) -> None:
    shutil.copytree(found.path, tmp_path / "sweep")
    folders = configuration_folders(tmp_path / "sweep")
    (folders[0].path / "seed1.json").unlink()
    lock = try_lock(folders[0].path / "lock")
    assert lock is not None
    with lock:
        shown = swept(inputs, tmp_path / "sweep", resume=True)
    assert shown.left == 1 and shown.winner is None and "not finished" in shown.sentence


def test_the_listed_metrics_are_those_that_a_run_measures(found: SweepResult, inputs: Path) -> None:
    """A new metric of held-out rows or behaviour belongs into `metrics.measured_by`."""
    from forty2.benchmark.stages import read_stage

    recipe = load_recipe(inputs / "recipe.yaml", SMALL)
    stage = read_stage(found.path / "c001" / "seed1" / "benchmarks" / "phase2_dpo.json")
    listed = {*measured_by(recipe)}
    items = {name for one in stage.results.values() for item in one.items for name in item.scores}
    assert items == listed
    assert measurements(stage).keys() <= listed


def test_the_report_has_every_setting_metric_and_chart(found: SweepResult) -> None:
    markdown, page = ((found.path / f"sweep.{kind}").read_text() for kind in ("md", "html"))
    for text in (markdown, page):
        for word in ("dpo.lr", "pair margin", "leaks", "KL from base", "c002", "finished", "cost"):
            assert word in text
    assert page.count("<svg") == 2  # margin against KL (one text has no perplexity), parallel
    assert found.sentence in html.unescape(page) and "| c001 | 0.01 | " in markdown
    assert read_json(found.path / "results.json")["winner"] == found.winner
    assert show_sweep(found.path).record == found.record


def test_confirmation_takes_fresh_seeds_and_says_how_much_stays(
    found: SweepResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORTY2_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "sweep"
    shutil.copytree(found.path, out)
    with pytest.raises(RunError, match="seeds 2: the sweep has used them"):
        confirm(out, [2, 3])
    with pytest.raises(RunError, match="two or more"):
        confirm(out, [3])
    assert not (out / "confirm").exists()
    best = found.record["best"]
    (out / "states" / "key").mkdir(parents=True)  # as a confirmation that was stopped leaves it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shown = confirm(out, [3, 4], progress=silent)
    assert not (out / "states").exists()
    record = shown.record["confirmed"]
    assert record["configuration"] == best
    values = read_json(out / "results.json")["items"][best]["pair margin"]
    values = np.array(values, float)  # null: the seed did not have the row
    fresh = [
        read_json(out / "confirm" / best / f"seed{s}" / "benchmarks" / "phase2_dpo.json")
        for s in (3, 4)
    ]
    after = np.mean([one["held_out"]["means"]["pair margin"] for one in fresh])
    assert record["shrinkage"]["value"] == pytest.approx(mean_over_seeds(values) - after)
    assert record["shrinkage"]["low"] < record["shrinkage"]["value"] < record["shrinkage"]["high"]
    page = (out / "sweep.html").read_text()
    assert "Confirmation" in page and "Shrinkage" in page
    if best == "c001":  # the recipe as it is
        assert list(record["scores"]) == ["c001"] and "nothing to gain" in record["sentence"]
    else:
        assert list(record["scores"]) == [best, "default"] and record["gain"] is not None
    with pytest.raises(RunError, match="was confirmed with seeds 3, 4 already"):
        confirm(out, [5, 6])
    assert confirm(out, [4, 3], progress=silent).record["confirmed"]["configuration"] == best


def test_a_confirmed_sweep_gets_no_more_seeds(
    found: SweepResult, inputs: Path, tmp_path: Path
) -> None:
    """They could be the seeds of the confirmation, which would then not be fresh."""
    shutil.copytree(found.path, tmp_path / "sweep")
    begun = {"configuration": found.record["best"], "seeds": [3, 4]}
    write_json(tmp_path / "sweep" / "confirm" / "begun.json", begun)
    with pytest.raises(RunError, match=r"is confirmed.*go on with seeds 1, 2"):
        swept(inputs, tmp_path / "sweep", resume=True, seeds=[1, 2, 3])
    assert read_json(tmp_path / "sweep" / "sweep.json")["seeds"] == [1, 2]
    shown = swept(inputs, tmp_path / "sweep", resume=True, seeds=None)  # its own
    assert shown.record["seeds"] == [1, 2]


@pytest.mark.parametrize("file", ["sweep.json", "c001/configuration.json", "confirm/begun.json"])
@pytest.mark.parametrize("content", ["[]", '{"version": 1}', "{"])
def test_a_damaged_record_of_a_sweep_is_named(
    file: str, content: str, found: SweepResult, tmp_path: Path
) -> None:
    shutil.copytree(found.path, tmp_path / "sweep")
    (tmp_path / "sweep" / file).parent.mkdir(exist_ok=True)
    (tmp_path / "sweep" / file).write_text(content)
    with pytest.raises(RunError, match=rf"{file}: (damaged, since it has no|not readable as JSON)"):
        confirm(tmp_path / "sweep", [3, 4])


# --- refusals, before anything runs ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        ("phases.dpo.betta: [1]", "grid.yaml:2: phases.dpo.betta: unknown key; did you mean beta?"),
        ("phases.dp.beta: [1]", "grid.yaml:2: phases.dp: no such phase"),
        ("phases.dpo.beta: [0.1, -1]", "grid.yaml:2: phases.dpo.beta: should be greater than 0"),
        ("phases.dpo.beta: [0.1, high]", "should be a number, not 'high'"),
        ("model.path: [a]", "grid.yaml:2: "),
        ("phases.sft.data: [nowhere.jsonl]", "grid.yaml:2: phases.sft.data: "),
        ("phases.dpo.beta: [0.1, 0.10]", "is there twice"),
        (
            "phases.dpo: [{objective: dpo, steps: 1, lr: 1.0e-3, beta: 0.1, loss: sigmoid}]",
            "grid.yaml:2: phases.dpo.data: missing",
        ),
        ("adapter.rank: [0, 4]", "grid.yaml:2: adapter.rank: should be"),
        (
            "method: tpe\nrun_cap: 2\nphases.dpo.beta: {min: -1, max: 1}",
            "grid.yaml:4: phases.dpo.beta: should be",
        ),
        (
            "method: random\nrun_cap: 2\nphases.dpo.bet: {min: 1, max: 2}",
            "grid.yaml:4: phases.dpo.bet",
        ),
    ],
)
def test_a_grid_that_the_recipe_refuses_is_one_line(
    grid: str, says: str, inputs: Path, tmp_path: Path
) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(METRIC + grid)
    with pytest.raises(RecipeError) as error:
        swept(inputs, tmp_path / "out", grid=file)
    (line,) = str(error.value).replace(f"{tmp_path}/", "").splitlines()
    assert says in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mc2", "grid.yaml:1: metric.name: mc2: chaos does not measure it"),
        ("pair margins", "did you mean pair margin?"),
        ("nothing", "it measures chat loss, pairs right, pair margin, "),
    ],
)
def test_a_metric_that_nothing_measures_is_refused(
    name: str, says: str, inputs: Path, tmp_path: Path
) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(f"metric: {{name: {name}, goal: maximize}}\nphases.dpo.lr: [1.0e-3]\n")
    more = ["phases.sft.valid=" + str(inputs / "sft.jsonl")]
    with pytest.raises(RecipeError) as error:
        swept(inputs, tmp_path / "out", grid=file, overrides=more)
    assert says in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(RecipeError, match="chaos measures nothing"):
        swept(
            inputs,
            tmp_path / "out",
            grid=file,
            overrides=["benchmark.held_out=false"],
        )


def test_names_of_metrics_are_those_of_the_table(inputs: Path) -> None:
    recipe = RecipeSource(inputs / "recipe.yaml", SMALL).load()
    for name, goal, wanted in (
        ("leaks", "minimize", ("no leak", 1.0)),
        ("Perplexity", "minimize", ("log p of texts", 1.0)),
        ("pair_margin", "maximize", ("pair margin", 1.0)),
        ("kl", "minimize", ("KL", -1.0)),
    ):
        (inputs / "named.yaml").write_text(
            f"metric: {{name: {name}, goal: {goal}}}\nphases.dpo.lr: [1.0e-3]\n"
        )
        objective = objective_of(read_grid(inputs / "named.yaml", "demo"), recipe)
        assert objective[1:] == wanted


def test_the_command_line_refuses_in_one_line(inputs: Path, tmp_path: Path) -> None:
    recipe, grid = inputs / "recipe.yaml", inputs / "grid.yaml"
    assert "no grid beside it; name one with --grid" in refused("sweep", recipe)
    assert "two or more" in refused("sweep", recipe, "--grid", grid, "--seeds", "1")
    assert "1,2,3" in refused("sweep", recipe, "--grid", grid, "--seeds", "a")
    assert "no such recipe" in refused("sweep", "nowhere.yaml", "--grid", grid)
    assert "there is no sweep" in refused("sweep", "show", tmp_path)
    assert "there is no sweep" in refused("sweep", "confirm", tmp_path, "--seeds", "1,2")
    seeded = tmp_path / "grid.yaml"
    seeded.write_text(f"{METRIC}seed: [1, 2]\n")
    assert "give --seeds" in refused("sweep", recipe, "--grid", seeded)
    assert "sweep RECIPE --grid" in forty2("sweep", "--help").output


def test_a_model_that_is_not_there_is_found_before_the_first_run(
    inputs: Path, tmp_path: Path
) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(f"{METRIC}model: [{inputs / 'model'}, {tmp_path / 'none'}]\n")
    output = refused("sweep", inputs / "recipe.yaml", "--grid", file, "--out", tmp_path / "out")
    assert "none" in output and not (tmp_path / "out").exists()


THEIRS = {
    "model": {"base_model": "none", "use_phase_attention": False},
    "training": {"method": "kto", "preference_dataset": "builtin:dialectic"},
}
"""A recipe in the schema of PhaseGPT v1.4."""


@pytest.mark.parametrize(
    ("key", "values", "says"),
    [
        ("experiment.seed", [1, 2], "seed: seeds are replicates, never searched; remove it"),
        ("experiment.name", ["a", "b"], "name: is the same for all; remove it"),
        (
            "evaluation.metrics",
            [["loss"], ["subtlety"]],
            "benchmark: every configuration is measured",
        ),
    ],
)
def test_what_a_sweep_leaves_alone_has_other_names_in_another_schema(
    key: str, values: list[object], says: str, tmp_path: Path
) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(f"{METRIC}{key}: {values}\n", "utf-8")
    with warnings.catch_warnings(), pytest.raises(RecipeError) as error:
        warnings.simplefilter("ignore")
        configurations(read_grid(file, THEIRS), RecipeSource(THEIRS))
    (line,) = str(error.value).splitlines()
    assert f"grid.yaml: with {key}=" in line and says in line


# --- configurations and what they share -----------------------------------------------------------


@pytest.mark.parametrize(("recipe", "count"), [("spark", 9), ("dialectic", 6)])
def test_the_grids_of_the_benchmarks_are_valid(recipe: str, count: int) -> None:
    folder = Path(__file__).parents[2] / "benchmarks" / "objectives"
    source = RecipeSource(str(folder / f"{recipe}.yaml"))
    found = configurations(read_grid(folder / f"{recipe}.sweep.yaml", source.recipe), source)
    assert len(found) == count


def listed(inputs: Path, text: str) -> list[Any]:
    (inputs / "listed.yaml").write_text(METRIC + text)
    source = RecipeSource(inputs / "recipe.yaml", SMALL)
    return configurations(read_grid(inputs / "listed.yaml", "demo"), source)


def test_a_grid_is_every_combination_once_and_run_cap_takes_the_first(inputs: Path) -> None:
    text = "phases.dpo.lr: [1.0e-3, 1.0e-2]\nphases.dpo.beta: [0.1, 0.2, 0.3]\n"
    found = listed(inputs, text)
    assert [one.name for one in found] == [f"c00{n}" for n in range(1, 7)]
    assert len({tuple(one.settings.values()) for one in found}) == 6
    assert all(one.recipe.fuse is None and not one.recipe.benchmark.each_phase for one in found)
    assert [one.settings for one in listed(inputs, f"run_cap: 2\n{text}")] == [
        one.settings for one in found[:2]
    ]


def test_random_search_draws_the_same_each_time_within_its_ranges(inputs: Path) -> None:
    text = (
        "method: random\nrun_cap: 8\nparameters:\n"
        "  phases.dpo.lr: {min: 1.0e-5, max: 1.0e-3, distribution: log_uniform_values}\n"
        "  phases.dpo.batch_size: {min: 2, max: 6, q: 2}\n"
        "  phases.dpo.loss: {values: [sigmoid, ipo], probabilities: [0, 1]}\n"
    )
    found, again = listed(inputs, text), listed(inputs, text)
    assert found == again and len(found) == 8
    for one in found:
        assert 1e-5 <= one.settings["phases.dpo.lr"] <= 1e-3
        assert one.settings["phases.dpo.batch_size"] in (2, 4, 6)
        assert one.settings["phases.dpo.loss"] == "ipo"
    few = "method: random\nrun_cap: 9\nphases.dpo.loss: [sigmoid, ipo]\n"
    assert len(listed(inputs, few)) == 2  # there are no more


def test_phases_are_shared_up_to_the_first_that_differs(inputs: Path) -> None:
    dpo = [one.recipe for one in listed(inputs, "phases.dpo.beta: [0.1, 0.2]")]
    sft = [one.recipe for one in listed(inputs, "phases.sft.lr: [1.0e-3, 1.0e-2]")]
    rank = [one.recipe for one in listed(inputs, "adapter.rank: [2, 4]")]
    both = [
        one.recipe
        for one in listed(inputs, "phases.sft.lr: [1.0e-3, 1.0e-2]\nphases.dpo.beta: [0.1, 0.2]")
    ]
    for recipes, wanted in ((dpo, [1]), (sft, []), (rank, []), (both, [1])):
        assert shared_lengths(recipes, inputs) == [wanted] * len(recipes)
    assert untouched_length(dpo[0], ["phases.dpo.beta"]) == [1]
    for key in ("phases.sft.lr", "phases", "adapter.rank"):
        assert untouched_length(dpo[0], [key, "phases.dpo.beta"]) == []


# --- search ---------------------------------------------------------------------------------------


def test_every_combination_of_a_small_search_is_checked_before_it_begins(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(
        f"method: tpe\nrun_cap: 4\n{METRIC}phases.dpo.loss: [sigmoid, hinge, exo_pair]\n"
        "phases.dpo.label_smoothing: [0.0, 0.1, 0.0001]\n"
    )
    with pytest.raises(RecipeError, match="label_smoothing: only sigmoid, robust and exo_pair"):
        check_ranges(read_grid(file, UNTRAINED), RecipeSource(UNTRAINED))
    file.write_text(file.read_text().replace("hinge, ", ""))
    assert len(check_ranges(read_grid(file, UNTRAINED), RecipeSource(UNTRAINED))) == 6


def test_a_search_leaves_out_a_proposal_that_the_recipe_refuses(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(
        f"method: tpe\nrun_cap: 8\n{METRIC}phases.dpo.loss: [sigmoid, hinge]\n"
        "phases.dpo.label_smoothing: [0.0, 0.1]\n"
    )
    source, grid = RecipeSource(UNTRAINED), read_grid(file, UNTRAINED)
    out = tmp_path / "out"
    out.mkdir()
    record = SweepRecord(grid.text, "tpe", (), OBJECTIVE, "maximize", (1, 2), False, "", None)
    going = _Sweep(out, record, source.load(), grid, source, None)  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match=r"c00\d is left out: .*label_smoothing: only sigmoid"):
        opened = [folder.read() for folder in going._open()]
    proposed = Study(out / "study.db", grid, source.load().seed).proposals()
    refused = {"phases.dpo.loss": "hinge", "phases.dpo.label_smoothing": 0.1}
    assert len(proposed) == 8 and any(one.settings == refused for one in proposed)
    kept = [configuration_name(one.number) for one in proposed if one.settings != refused]
    assert [one.name for one in opened] == kept


def test_a_search_without_optuna_says_what_to_install(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    (tmp_path / "grid.yaml").write_text(f"method: bayes\nrun_cap: 2\n{GRID}")
    with pytest.raises(RunError, match="pip install optuna"):
        swept(inputs, tmp_path / "out", grid=tmp_path / "grid.yaml")
    assert not (tmp_path / "out").exists()


# --- ends ----------------------------------------------------------------------------------------


def test_the_median_rule_stops_what_is_behind_and_records_it(inputs: Path, tmp_path: Path) -> None:
    recipe = RecipeSource(inputs / "recipe.yaml", SMALL).load()
    means = {"c001": 0.5, "c002": 0.6, "c003": 0.7, "c004": 0.55, "c005": 0.65}
    for name, mean in means.items():
        folder = ConfigurationFolder(tmp_path / name)
        folder.begin(Configuration(name, {}, recipe))
        for seed in (1, 2) if name < "c004" else (1,):
            folder.set_done(seed, {"mc2": mean})
    record = SweepRecord(
        grid="",
        method="grid",
        parameters=(),
        objective=OBJECTIVE,
        goal="maximize",
        seeds=(1, 2),
        early_stop=True,
        day="2026-01-01",
        questions=None,
    )
    assert stops(tmp_path, record, ConfigurationFolder(tmp_path / "c004"))
    assert not stops(tmp_path, record, ConfigurationFolder(tmp_path / "c005"))
    stopped = ConfigurationFolder(tmp_path / "c004")
    assert stopped.is_finished((1, 2)) and not ConfigurationFolder(tmp_path / "c005").is_finished(
        (1, 2)
    )
    assert stopped.ended("stopped") == {"after": [1], "mean": 0.55, "median": 0.6}
    (tmp_path / "c003" / "seed2.json").unlink()  # two that are finished have no median
    (tmp_path / "c004" / "stopped.json").unlink()
    assert not stops(tmp_path, record, stopped)


@pytest.mark.slow
def test_training_that_breaks_off_ends_its_configuration_alone(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORTY2_CACHE", str(tmp_path / "cache"))
    (tmp_path / "grid.yaml").write_text(f"{METRIC}adapter.scale: [1.0e+38, 4.0]\n")
    more = ["phases.dpo.steps=3", "phases.dpo.clip_norm=null"]
    found = swept(
        inputs, tmp_path / "out", grid=tmp_path / "grid.yaml", seeds=[1, 2], overrides=more
    )
    states = [one["state"] for one in found.record["configurations"]]
    assert states[0].startswith("failed with seed 1: ") and states[1] == "finished"
    assert found.left == 0 and found.winner is None and found.record["best"] == "c002"


@pytest.mark.slow
def test_twelve_configurations_cost_at_most_six_tenths_of_single_runs(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In processor time, so that other work on the machine does not count."""
    betas = [0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 2.0]
    (tmp_path / "grid.yaml").write_text(f"{METRIC}phases.dpo.beta: {betas}\n")
    more = ["phases.sft.steps=20", "phases.dpo.steps=20"]
    monkeypatch.setenv("FORTY2_CACHE", str(tmp_path / "cache"))
    began = time.process_time()
    found = swept(inputs, tmp_path / "out", grid=tmp_path / "grid.yaml", overrides=more)
    whole = time.process_time() - began
    assert len(found.record["configurations"]) == 12
    single = 0.0
    for n, beta in enumerate(betas[::4]):
        monkeypatch.setenv("FORTY2_CACHE", str(tmp_path / f"cache{n}"))
        recipe = load_recipe(
            inputs / "recipe.yaml", [*SMALL, *more, f"phases.dpo.beta={beta}", "fuse=null"]
        )
        began = time.process_time()
        pipeline.run(recipe, run_dir=tmp_path / f"single{n}", progress=silent)
        single += (time.process_time() - began) / 3
    assert whole <= 0.6 * 24 * single, f"{whole / (24 * single):.0%} of single runs"


# --- whole processes ------------------------------------------------------------------------------


def started(inputs: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    settings = [part for setting in SMALL for part in ("--set", setting)]
    command = [
        sys.executable,
        "-m",
        "forty2",
        "sweep",
        str(inputs / "recipe.yaml"),
        "--seeds",
        "1,2",
    ]
    command += ["--grid", str(inputs / "grid.yaml"), "--out", out.name, *settings, *more]
    environment = {**os.environ, "FORTY2_CACHE": str(out.parent / "cache")}
    return subprocess.Popen(
        command, cwd=out.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.mark.slow
def test_a_sweep_killed_again_and_again_ends_with_the_same_bytes(
    inputs: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole" / "sweep"
    whole.parent.mkdir()
    process = started(inputs, whole)
    output, _ = process.communicate()
    assert process.returncode == 0, output.decode()
    killed = tmp_path / "often" / "sweep"
    killed.parent.mkdir()
    for seconds in range(4, 40):
        more = ["--resume"] if (killed / "sweep.json").exists() else []
        process = started(inputs, killed, *more)
        try:
            output, _ = process.communicate(timeout=seconds * 0.75)
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
    assert process.returncode == 0, output.decode()
    assert contents(killed) == contents(whole)


@pytest.mark.slow
def test_two_processes_share_the_configurations_of_a_sweep(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    first = started(inputs, out)
    while not (out / "c002" / "configuration.json").exists():
        time.sleep(0.1)
        assert first.poll() is None
    second = started(inputs, out, "--resume")
    outputs = [process.communicate()[0].decode() for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), outputs
    ran = [{name for name in ("c001", "c002") if f"{name} seed" in output} for output in outputs]
    assert ran[0] | ran[1] == {"c001", "c002"} and not ran[0] & ran[1]
    shown = show_sweep(out)
    assert shown.left == 0
