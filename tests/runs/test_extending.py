"""Runs that go on to more steps end as if they had been so long from the start."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from click.testing import CliRunner
from support.small_run import make_inputs

from forty2.benchmark.replies import Faults
from forty2.cli import main
from forty2.errors import Interrupted, RunError
from forty2.files import read_json, write_json
from forty2.recipe.reading import load_recipe
from forty2.runs import extending, pipeline
from forty2.runs import inputs as runs_inputs
from forty2.runs.extending import BEGUN_WITH, JOURNAL, complete_extension
from forty2.runs.folder import read_times
from forty2.runs.pipeline import run, train_phase

VARYING = ("tokens_per_s", "peak_memory_gb")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mx.random.seed(0)
    return make_inputs(tmp_path_factory.mktemp("inputs") / "inputs")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with two recipes, of runs without checks of replies, which take most of the time."""
    for name in ("recipe.yaml", "measured.yaml"):
        text = (inputs / name).read_text()
        text = text.replace(f"eval_prompts: {inputs}/prompts.json", "eval_prompts: null")
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORTY2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(runs_inputs, "check_replies", lambda *_: Faults())


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs whose report is an empty file."""

    def write(folder: Path) -> Path:
        for name in ("report.md", "report.html"):
            (folder / name).touch()
        return folder / "report.html"

    monkeypatch.setattr(pipeline, "write_report", write)


def go(
    name: str,
    *overrides: str,
    resume: bool = False,
    reuse: str | None = None,
    recipe: str = "recipe.yaml",
    stop: tuple[str, int] | None = None,
    steps: list[int] | None = None,
) -> list[str]:
    """Run a recipe into the folder `name`, without fusing unless it is measured.

    Args:
        stop: interrupt this stage after this step.
        steps: takes the steps of training.

    Returns:
        The warnings on the way, and what was said about the run as a whole.
    """
    said: list[str] = []

    def progress(stage: str, done: int, total: int, info: Mapping[str, Any]) -> None:
        if "warning" in info or stage == "run":
            said.extend(str(info[key]) for key in ("warning", "notice") if key in info)
        if "loss" in info:
            if steps is not None:
                steps.append(done)
            if (stage, done) == stop:
                os.kill(os.getpid(), signal.SIGTERM)

    fuse = f"fuse.out={name}-fused" if recipe == "measured.yaml" else "fuse=null"
    changed = load_recipe(recipe, [fuse, *overrides])
    run(changed, run_dir=name, resume=resume, reuse=reuse, progress=progress)
    return said


def metrics(name: str) -> list[dict[str, Any]]:
    lines = Path(name, "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in VARYING} for line in lines]


def results(name: str) -> dict[str, Any]:
    """Return all files of a run's phases by name, and its metrics."""
    files = sorted(Path(name).glob("phase*/*"))
    found = {str(path.relative_to(name)): path.read_bytes() for path in files}
    return {**found, "metrics": metrics(name)}


def of(phase: str, *settings: str) -> list[str]:
    """Return overrides of a phase."""
    return [f"phases.{phase}.{setting}" for setting in settings]


RARE = "eval_every_steps=3", "save_every_steps=2"
CUT = "batch_size=4", "accumulate=3", "steps=null", "warmup_steps=2"
KINDS = {
    "the first phase": ("sft", (), "steps=4", "steps=7"),
    "the last phase": ("dpo", (), "steps=4", "steps=7"),
    "an evaluation at the end alone chooses the adapter": ("dpo", RARE, "steps=5", "steps=8"),
    "a last step that is cut": ("sft", CUT, "epochs=1", "epochs=3"),
    "more rows are read": ("dpo", ("batch_size=1",), "steps=3", "steps=9"),
    "nothing is replayed": ("dpo", ("replay_gb=0", "accumulate=2"), "steps=3", "steps=6"),
    "a goal is reached": ("dpo", ("until={metric: loss, at_most: 9}",), "steps=4", "steps=7"),
}
"""Phase, settings of both runs, and the shorter and the longer length."""


@pytest.mark.parametrize(("phase", "common", "short", "long"), KINDS.values(), ids=KINDS)
@pytest.mark.usefixtures("brief")
def test_an_extended_run_is_one_that_began_so_long(
    phase: str, common: tuple[str, ...], short: str, long: str
) -> None:
    """Adapters, records and metrics, bit for bit, of the phase and of those after it."""
    settings = of(phase, *common)
    go("long", *settings, *of(phase, long))
    go("run", *settings, *of(phase, short))
    assert len(go("run", *settings, *of(phase, long), resume=True)) >= 1
    assert results("run") == results("long")
    # Nothing is left to be extended, and the run's own recipe is the longer one.
    assert go("run", *settings, *of(phase, long), resume=True) == []


@pytest.mark.usefixtures("brief")
def test_evaluations_a_fifth_of_the_steps_apart_come_elsewhere_in_a_longer_phase() -> None:
    """Where they have no say, the adapter is the same; where they have one, the phase begins again."""
    each = "eval_every_steps=null", "save_every_steps=null"
    common = of("sft", *each) + of("dpo", *each)
    long = of("sft", "steps=10") + of("dpo", "steps=10")
    go("long", *common, *long)
    go("run", *common)
    steps: list[int] = []
    said = go("run", *common, *long, resume=True, steps=steps)
    assert steps == [6, 7, 8, 9, 10, *range(1, 11)]
    one, other = results("run"), results("long")
    del one["metrics"], other["metrics"]
    assert one == other
    assert said[0].startswith("run: phases.sft has 10 steps now, not 5 steps; phases.dpo has 10")


@pytest.mark.usefixtures("brief")
def test_a_phase_that_kept_no_checkpoint_says_that_it_begins_again() -> None:
    """As one does whose adapter is chosen at evaluations a fifth of its steps apart."""
    chosen = of("dpo", "eval_every_steps=null", "best={metric: loss, direction: min}")
    go("run", *chosen)
    assert not [*Path("run").glob("work/phase2_dpo/step*")]
    steps: list[int] = []
    said = go("run", *chosen, "phases.dpo.steps=9", resume=True, steps=steps)
    assert steps == [*range(1, 10)]
    assert any("phases.dpo begins again at its first step" in line for line in said)


@pytest.mark.usefixtures("brief")
def test_only_what_is_not_done_again_is_headed_done_before() -> None:
    headings: list[str] = []

    def progress(stage: str, done: int, total: int, info: Mapping[str, Any]) -> None:
        headings.extend(str(info[key]) for key in ("heading",) if key in info)

    recipe = load_recipe("recipe.yaml", ["fuse=null"])
    run(recipe, run_dir="run", progress=progress)
    longer = load_recipe("recipe.yaml", ["fuse=null", "phases.dpo.steps=8"])
    headings.clear()
    run(longer, run_dir="run", resume=True, progress=progress)
    assert any("training sft, done before" in heading for heading in headings)
    assert not any("training dpo, done before" in heading for heading in headings)
    headings.clear()
    run(recipe, run_dir="other", reuse="run", progress=progress)
    assert any("training sft, done before" in heading for heading in headings)


@pytest.mark.usefixtures("brief")
def test_it_goes_on_from_the_steps_that_are_done() -> None:
    steps: list[int] = []
    go("run")
    go("run", "phases.dpo.steps=8", resume=True, steps=steps)
    assert steps == [6, 7, 8]


@pytest.mark.parametrize("steps", [9, 4])
@pytest.mark.usefixtures("brief")
def test_a_stopped_phase_takes_any_number_of_steps_from_those_done_on(steps: int) -> None:
    go("long", f"phases.dpo.steps={steps}")
    with pytest.raises(Interrupted):
        go("run", stop=("phase2_dpo", 3))
    with pytest.raises(RunError, match=r"phases.dpo.steps: 2 is fewer than the 3 that are done"):
        go("run", "phases.dpo.steps=2", resume=True)
    said = go("run", f"phases.dpo.steps={steps}", resume=True)
    assert said == [f"run: phases.dpo has {steps} steps now, not 5 steps; kept: sft"]
    assert results("run") == results("long")


@pytest.mark.usefixtures("brief")
def test_steps_go_on_as_epochs_that_are_more_of_them() -> None:
    epochs = of("dpo", "steps=null", "epochs=3")
    go("long", *epochs)
    go("run", "phases.dpo.steps=2")
    said = go("run", *epochs, resume=True)
    assert said[0].startswith("run: phases.dpo has 3 epochs now, not 2 steps; kept: sft")
    assert results("run") == results("long")


@pytest.mark.usefixtures("brief")
def test_a_phase_that_has_not_begun_takes_any_number_of_steps() -> None:
    falling = of("dpo", "schedule=cosine", "save_every_steps=2")
    go("other", *falling, "phases.dpo.steps=2")
    with pytest.raises(Interrupted):
        go("run", *falling, stop=("phase1_sft", 3))
    go("run", *falling, "phases.dpo.steps=2", resume=True)
    assert results("run") == results("other")


@pytest.mark.usefixtures("brief")
def test_a_phase_that_has_not_begun_may_change_in_everything() -> None:
    """In its settings, its rows and its name; phases may be added; what is finished is kept."""
    rows = Path("pairs.jsonl")
    rows.write_text('{"prompt": "Hi", "chosen": "Hello.", "rejected": "No."}\n' * 3)
    changed = of(
        "dpo", "lr=0.02", f"data={rows}", "valid=null", "best=null", "eval_every_steps=null"
    )
    with pytest.raises(Interrupted):
        go("run", stop=("phase1_sft", 5))
    go("other", *changed)
    steps: list[int] = []
    said = go("run", *changed, resume=True, steps=steps)
    assert results("run") == results("other") and steps == [1, 2, 3, 4, 5]
    assert "run: phases.dpo is taken as it is now, since it had not begun; kept: sft" in said


@pytest.mark.usefixtures("brief")
def test_phases_are_added_to_a_finished_run_and_the_fused_model_is_made_again() -> None:
    text = Path("recipe.yaml").read_text()
    line = next(line for line in text.splitlines() if line.startswith("  dpo:"))
    later = text[text.index(line) : text.index("fuse:")].replace("  dpo:", "  again:")
    Path("more.yaml").write_text(text.replace("fuse:", later + "fuse:"))
    go("run")
    before = results("run")
    said = go("run", resume=True, recipe="more.yaml")
    assert "run: phases.again is taken as it is now, since it had not begun; kept: sft, dpo" in said
    after = results("run")
    assert {name: after[name] for name in before if name != "metrics"} == {
        name: before[name] for name in before if name != "metrics"
    }
    assert Path("run/phase3_again/phase.json").exists()
    with pytest.raises(RunError, match="began with the phases sft, dpo, again, not sft, dpo"):
        go("run", resume=True)


@pytest.mark.usefixtures("brief")
def test_a_run_takes_over_the_phases_that_it_would_train_alike() -> None:
    changed = of("dpo", "lr=0.02")
    go("first")
    go("alone", *changed)
    steps: list[int] = []
    said = go("run", *changed, reuse="first", steps=steps)
    assert "taken over from first: sft" in said and steps == [1, 2, 3, 4, 5]
    assert results("run") == results("alone")
    assert json.loads(Path("run/run.json").read_text())["reused"] == {
        "run": "first",
        "phases": ["sft"],
    }
    steps.clear()
    go("run", *changed, "phases.sft.steps=7", resume=True, steps=steps)
    assert steps == [6, 7, 1, 2, 3, 4, 5], "a phase that was taken over can be extended"
    go("longer", *changed, "phases.sft.steps=7")
    for name in ("phase1_sft", "phase2_dpo"):
        file = f"{name}/adapters.safetensors"
        assert Path("run", file).read_bytes() == Path("longer", file).read_bytes()


@pytest.mark.usefixtures("brief")
def test_phases_of_another_kind_of_run_are_not_taken_over() -> None:
    go("first")
    refused = {
        "adapter.rank=4": "adapter.rank: 2 → 4",
        "phases.sft.lr=0.5": "phases.sft.lr: 0.01 → 0.5",
        "phases.sft.data=sft.jsonl": "the rows of sft differ",
    }
    lines = Path("recipe.yaml").parent.joinpath("sft.jsonl")
    lines.write_text('{"prompt": "Hi", "completion": "Hello."}\n' * 4)
    for setting, says in refused.items():
        with pytest.raises(RunError, match="first: no phase of it can be taken over") as error:
            go("run", setting, reuse="first")
        assert says in str(error.value)
        # The rows alone are read in the run's own folder.
        assert Path("run").exists() is setting.startswith("phases.sft.data")
    shutil.rmtree("run")
    shutil.copytree("first", "stopped")
    Path("stopped/phase1_sft/phase.json").unlink()
    for source, says in {"nowhere": "no run here", "stopped": "not finished"}.items():
        with pytest.raises(RunError, match=f"^{source}: .*{says}"):
            go("run", reuse=source)
        assert not Path("run").exists()
    shutil.copytree("first", "adapters/named")
    with pytest.raises(RunError, match="adapters/named: no phase of it can be taken over"):
        go("run", "adapter.rank=4", reuse="named")
    adapter = Path("first/phase1_sft/adapters.safetensors")
    adapter.write_bytes(adapter.read_bytes()[:-1] + b"x")
    with pytest.raises(RunError, match=r"adapters\.safetensors"):
        go("run", reuse="first")
    with pytest.raises(RunError, match="goes on with its own phases"):
        go("first", reuse="nowhere", resume=True)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.usefixtures("brief")
def test_a_falling_learning_rate_is_refused_with_what_to_do(schedule: str) -> None:
    setting = f"phases.dpo.schedule={schedule}"
    go("run", setting)
    before = results("run")
    with pytest.raises(RunError) as error:
        go("run", setting, "phases.dpo.steps=8", resume=True)
    assert str(error.value) == (
        "run: phases.dpo.steps: its learning rate falls to zero over all steps (schedule: "
        f"{schedule}), so the 5 steps that are done do not begin a phase of another length; start "
        "the longer one with another `run_dir`, or go on from this one's adapter in a recipe with "
        "init_from: run/phase2_dpo"
    )
    assert results("run") == before and not Path("run/work/phase2_dpo").exists()


@pytest.mark.usefixtures("brief")
def test_a_weight_of_kl_that_changes_over_all_steps_is_refused_likewise() -> None:
    setting = "phases.dpo.kl={weight: 0.1, schedule: linear, to: 0.3}"
    go("run", setting)
    with pytest.raises(RunError, match=r"phases\.dpo\.steps: the weight of its term kl changes"):
        go("run", setting, "phases.dpo.steps=8", resume=True)
    assert not Path("run/work/phase2_dpo").exists()


@pytest.mark.usefixtures("brief")
def test_what_is_no_extension_is_refused_and_changes_nothing() -> None:
    go("run")
    before = results("run")
    refused = {
        "phases.dpo.steps=4": "run: phases.dpo.steps: 4 is fewer than the 5 that are done",
        "phases.dpo.steps=8 phases.dpo.lr=0.02": (
            "run: was started with another recipe (phases.dpo.lr: 0.01 → 0.02). A run"
        ),
        "phases.sft.steps=8 adapter.rank=4 seed=7": (
            "run: was started with another recipe (seed: 42 → 7; adapter.rank: 2 → 4). A run"
        ),
        "phases.dpo.steps=null phases.dpo.epochs=0.1": (
            "run: phases.dpo.epochs: 0.1 epochs would be 1 of the 5 steps that are done"
        ),
    }
    for settings, says in refused.items():
        line = ["run", "recipe.yaml", "--run-dir", "run", "--resume", "--set", "fuse=null"]
        for setting in settings.split():
            line += ["--set", setting]
        result = CliRunner().invoke(main, line)
        assert result.exit_code == 2 and says in result.output and result.output.count("\n") == 1
    recipe = load_recipe("recipe.yaml", ["fuse=null", "phases.sft.steps=9"])
    with pytest.raises(RunError, match="another recipe"):  # it would remove the phase after it
        train_phase(recipe, "sft", run_dir="run")
    assert results("run") == before


def test_what_is_measured_and_reported_comes_again() -> None:
    """All but the base's measurement, and the command says so."""
    go("long", "phases.sft.steps=3", recipe="measured.yaml")
    go("run", recipe="measured.yaml")
    base = Path("run/benchmarks/base.json")
    before = base.stat().st_mtime_ns
    said = go("run", "phases.sft.steps=3", resume=True, recipe="measured.yaml")
    assert said[0] == (
        "run: phases.sft has 3 steps now, not 1 step; redone, because they come after it: the "
        "measurements from sft on, the fused model, the report"
    )
    assert base.stat().st_mtime_ns == before
    for file in ("summary.json", "fused.json", "report.md", *(f"benchmarks/{n}" for n in MEASURED)):
        one, other = Path("run", file).read_text(), Path("long", file).read_text()
        if file.endswith(".json"):
            one, other = (json.dumps(without_times(json.loads(text))) for text in (one, other))
            assert one.replace("run", "long") == other.replace("run", "long"), file
    assert "| sft | sft | 3 |" in Path("run/report.md").read_text()
    fused = [Path(f"{name}-fused/model.safetensors").read_bytes() for name in ("run", "long")]
    assert fused[0] == fused[1]


MEASURED = "base.json", "phase1_sft.json", "fused.json", "fused-8-bit.json"


def without_times(record: Any) -> Any:
    """Return a record without times, and without checksums of what holds them."""
    if isinstance(record, dict):
        return {
            k: without_times(v)
            for k, v in record.items()
            if k not in ("sha256", "seconds", "started", "created", "time")
        }
    return [*map(without_times, record)] if isinstance(record, list) else record


@pytest.mark.parametrize("killed_at", ["_remove_folder", "_remove_results", "write_text"])
@pytest.mark.usefixtures("brief")
def test_an_extension_that_is_killed_is_completed(
    killed_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the phases after it is left, whenever the run goes on."""

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    go("run")
    with monkeypatch.context() as patched:
        patched.setattr(extending, killed_at, kill)
        with pytest.raises(KeyboardInterrupt):
            go("run", "phases.sft.steps=7", resume=True)
    assert Path("run", JOURNAL).exists()
    with pytest.raises(RunError, match="holds a run already"):
        go("run", "phases.sft.steps=7")
    complete_extension(Path("run"))
    assert not list(Path("run").glob("phase*")) and not Path("run/report.md").exists()
    assert not Path("run/work/phase2_dpo").exists() and not Path("run", JOURNAL).exists()
    assert {line["phase"] for line in metrics("run")} == {"sft"}
    steps: list[int] = []
    go("run", "phases.sft.steps=7", resume=True, steps=steps)
    assert steps == [6, 7, *range(1, 6)]


@pytest.mark.usefixtures("brief")
def test_a_run_whose_checkpoint_is_gone_begins_the_phase_again() -> None:
    """As those of releases that kept none."""
    steps: list[int] = []
    go("run")
    shutil.rmtree("run/work")
    go("run", "phases.dpo.steps=7", resume=True, steps=steps)
    assert steps == list(range(1, 8))


@pytest.mark.usefixtures("brief")
def test_a_second_extension_knows_what_the_checkpoint_was_written_under() -> None:
    go("run", "phases.dpo.eval_every_steps=2")
    with pytest.raises(RunError, match="another recipe"):
        go("run", resume=True)
    stored = Path("run/recipe.yaml").read_text()
    head, _, tail = stored.rpartition("steps: 5")  # the last phase's
    for steps in (7, 9):
        found = extending.find_extension(Path("run"), stored, f"{head}steps: {steps}{tail}")
        assert found is not None
        extending.extend(Path("run"), found)
        assert read_json(Path("run/work/phase2_dpo", BEGUN_WITH)) == {"steps": 5, "epochs": None}


@pytest.mark.usefixtures("brief")
def test_an_old_run_keeps_its_number_of_steps() -> None:
    """Early releases rounded epochs to steps: 6 rows in batches of 4, 3 epochs, were 4 steps."""
    settings = of("sft", "batch_size=4", "steps=null", "epochs=3")
    with pytest.raises(Interrupted):
        go("old", *settings, stop=("phase1_sft", 2))
    record = read_json(Path("old/run.json"))
    assert record.pop("whole_epochs") is True
    write_json(Path("old/run.json"), record)
    go("old", *settings, resume=True)
    go("new", *settings)
    one, other = (read_json(Path(name, "phase1_sft/phase.json")) for name in ("old", "new"))
    assert (one["steps"], other["steps"], other["exposures"]) == (4, 6, 3.0)
    shared = [m for m in metrics("old") if m["phase"] == "sft" and "loss" in m]
    assert shared == [m for m in metrics("new") if m["phase"] == "sft" and "loss" in m][:4]


def test_the_plan_and_the_report_show_the_counted_exposures() -> None:
    settings = of("sft", "batch_size=4", "steps=null", "epochs=3")
    sets = [part for setting in settings for part in ("--set", setting)]
    planned = CliRunner().invoke(main, ["plan", "--quick", "recipe.yaml", *sets]).output
    assert "3.00x" in next(line for line in planned.splitlines() if line.startswith("sft "))
    go("run", *settings, "phases.dpo.steps=1", "phases.dpo.save_every_steps=1")
    assert "| sft | sft | 6 | 6 | 3.00 |" in Path("run/report.md").read_text()
    assert read_json(Path("run/phase2_dpo/phase.json"))["exposures"] == 0.5


@pytest.mark.usefixtures("brief")
def test_a_phases_time_is_kept_by_a_resumed_run_and_goes_with_its_adapter() -> None:
    def entries(name: str, phase: str) -> list[float]:
        return [r["seconds"] for r in read_times(Path(name)) if r.get("phase") == phase]

    with pytest.raises(Interrupted):
        go("run", stop=("phase1_sft", 2))
    before = entries("run", "sft")
    go("run", resume=True)
    assert len(before) == 1 and entries("run", "sft")[:1] == before
    assert len(entries("run", "sft")) == 2 and len(entries("run", "dpo")) == 1
    go("run", "phases.sft.steps=7", resume=True)
    assert len(entries("run", "sft")) == 3
    assert len(entries("run", "dpo")) == 1  # of the phase that is there now
    go("other", "phases.sft.steps=7", "phases.dpo.lr=0.02", reuse="run")
    assert entries("other", "sft")[:3] == entries("run", "sft")
