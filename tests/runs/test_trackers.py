"""Metrics of a run in trackers: all of them, each once, however the run stopped and went on."""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from click.testing import CliRunner
from support.small_run import make_inputs
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from forty2.cli import main
from forty2.errors import RecipeError, RunError
from forty2.files import JsonObject
from forty2.recipe.reading import load_recipe
from forty2.runs import trackers
from forty2.runs.folder import read_metrics
from forty2.runs.pipeline import run
from forty2.runs.trackers import export_to_tracker

Point = tuple[str, int, float]
SHORT = ["fuse=null", "phases.sft.eval_prompts=null", "benchmark=null", "phases.sft.valid=null"]


@pytest.fixture(autouse=True)
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORTY2_CACHE", str(tmp_path / "cache"))
    return make_inputs(tmp_path / "inputs")


def events(folder: Path) -> list[Point]:
    """Every number in the event files of a folder, read without the writer's package."""
    found = []
    for file in sorted(folder.glob("events.out.tfevents.*")):
        data = file.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            assert masked_crc32c(data[:8]) == int.from_bytes(data[8:12], "little")
            event = Event.FromString(data[12 : 12 + length])
            found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
            data = data[16 + length :]
    return found


def logged(folder: Path) -> list[Point]:
    """Every number in a run's metrics, by the tags of its trackers."""
    return [
        (f"{record['phase']}/{name}", record["step"], value)
        for record in read_metrics(folder / "metrics.jsonl")
        for name, value in record.items()
        if name not in ("phase", "step", "warning", "red_line")
    ]


def assert_same(found: list[Point], expected: list[Point]) -> None:
    assert Counter(point[:2] for point in found) == Counter(point[:2] for point in expected)
    values = {point[:2]: point[2] for point in found}
    for tag, step, value in expected:
        assert values[tag, step] == pytest.approx(value, rel=1e-6)


def write_run(folder: Path, records: list[JsonObject]) -> Path:
    folder.mkdir()
    (folder / "run.json").write_text('{"version": 2}')
    (folder / "recipe.yaml").write_text("phases: {sft: {objective: sft}}\nproject: null\n")
    write_metrics(folder, records)
    return folder


def write_metrics(folder: Path, records: list[JsonObject]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))


def steps(*losses: float) -> list[JsonObject]:
    return [{"phase": "sft", "step": n, "loss": loss} for n, loss in enumerate(losses, 1)]


# --- TensorBoard ----------------------------------------------------------------------------------


def test_a_run_reports_while_it_goes_on_and_where_to_may_change_when_it_is_resumed(
    inputs: Path,
) -> None:
    recipe = load_recipe(str(inputs / "recipe.yaml"), [*SHORT, "report_to=[tensorboard]"])
    run(recipe, run_dir="r", only="sft")
    assert_same(events(Path("r/tensorboard")), logged(Path("r")))
    finished = Path("r/phase1_sft/phase.json").stat().st_mtime_ns
    changed = load_recipe(
        str(inputs / "recipe.yaml"), [*SHORT, "report_to=[tensorboard]", "project=p"]
    )
    run(changed, run_dir="r", resume=True)
    assert Path("r/phase1_sft/phase.json").stat().st_mtime_ns == finished
    assert "project: p" in Path("r/recipe.yaml").read_text()
    assert {point[0].split("/")[0] for point in events(Path("r/tensorboard"))} == {"sft", "dpo"}
    assert_same(events(Path("r/tensorboard")), logged(Path("r")))


def test_a_run_that_ended_is_replayed_any_number_of_times(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", steps(3.0, 2.0, 1.0))
    for _ in range(2):
        printed = CliRunner().invoke(main, ["runs", "export", str(folder), "--to", "tensorboard"])
        assert printed.exit_code == 0, printed.output
        assert f"3 records sent; tensorboard --logdir {folder / 'tensorboard'}" in printed.output
        assert_same(events(folder / "tensorboard"), logged(folder))


def test_steps_that_are_taken_again_replace_those_before(tmp_path: Path) -> None:
    """A phase that goes back to its checkpoint rewrites the file under the exporter's eyes."""
    folder = write_run(tmp_path / "r", steps(3.0, 2.0, 9.0))
    exporter = trackers._Exporter(folder, "tensorboard", None)
    for losses in [(3.0, 2.0, 9.0), (3.0,), (3.0, 2.0), (3.0, 2.0, 1.0), (3.0, 2.0, 1.0, 0.5)]:
        other = folder / "other"
        other.write_text("".join(json.dumps(one) + "\n" for one in steps(*losses)))
        other.replace(folder / "metrics.jsonl")
        exporter.follow()
    exporter.close()
    assert_same(events(folder / "tensorboard"), logged(folder))


def test_steps_that_differ_in_their_timings_alone_are_the_same(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", [])
    exporter = trackers._Exporter(folder, "tensorboard", None)
    for speed, losses in enumerate([(3.0, 2.0), (3.0, 2.0, 1.0), (3.0, 1.5)]):
        write_metrics(folder, [{**one, "tokens_per_s": speed} for one in steps(*losses)])
        exporter._inode = 0  # as if it were another file
        exporter.follow()
    exporter.close()
    assert exporter.number_sent == 2 + 1 + 2


def test_a_line_under_way_waits_for_its_end(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", steps(3.0))
    exporter = trackers._Exporter(folder, "tensorboard", None)
    whole = json.dumps(steps(3.0, 2.0)[1]) + "\n"
    for part in (whole[:9], whole[9:]):
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(part)
        exporter.follow()
    exporter.close()
    assert_same(events(folder / "tensorboard"), logged(folder))


# --- what can go wrong ----------------------------------------------------------------------------


def test_a_missing_package_is_one_line_before_anything_runs(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    recipe = load_recipe(str(inputs / "recipe.yaml"), ["report_to=[wandb]"])
    with pytest.raises(RecipeError, match=r"needs the package wandb.*pip install wandb"):
        run(recipe, run_dir="r")
    assert not Path("r").exists()
    with pytest.raises(RecipeError, match=r"pip install tensorboardX"):
        export_to_tracker(write_run(Path("s"), []), "tensorboard")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("r --to tensorboard r.zip", "for a zip file, without --to"),
        ("r --to tensorboard --adapters all", "for a zip file, without --to"),
        ("r --to tensorboard --project p", "--project is for --to wandb"),
        ("r", "name the zip file to write, or a tracker with --to"),
        ("r --to comet", "'comet' is not one of 'tensorboard', 'wandb'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words: str, says: str) -> None:
    printed = CliRunner().invoke(main, ["runs", "export", *words.split()])
    assert printed.exit_code == 2 and says in printed.output


def test_a_tracker_that_fails_does_not_end_the_run(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(trackers._TensorBoard, "send", full)
    told: list[str] = []
    short = [*SHORT, "report_to=[tensorboard]", "phases.sft.steps=2"]
    recipe = load_recipe(str(inputs / "recipe.yaml"), short)
    run(
        recipe,
        run_dir="r",
        only="sft",
        progress=lambda *args: told.append(str(args[3].get("warning", ""))),
    )
    assert len([text for text in told if "tensorboard is left out" in text]) == 1
    with pytest.raises(RunError, match="report_to: tensorboard: the disk is full"):
        export_to_tracker(Path("r"), "tensorboard")


# --- Weights & Biases -----------------------------------------------------------------------------


@pytest.mark.slow
def test_wandb_offline_has_every_record_once(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="make trackers installs it")
    folder = write_run(tmp_path / "r", steps(3.0, 2.0))
    environment = {**os.environ, "WANDB_MODE": "offline", "HOME": str(tmp_path)}
    words = ["-m", "forty2", "runs", "export", str(folder), "--to", "wandb"]
    for losses, sent in [((3.0, 2.0), 2), ((3.0, 2.0), 0), ((3.0, 2.0, 1.0), 1), ((3.0, 1.5), 2)]:
        write_metrics(folder, steps(*losses))
        done = subprocess.run(
            [sys.executable, *words],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert (
            f"{sent} records sent; offline; send it with: wandb sync {tmp_path}/wandb/offline-run"
            in done.stdout
        )
    assert len(wandb_runs(tmp_path)) == 2  # the third time went on, the last one begins anew
    assert [sorted(points) for points in wandb_runs(tmp_path).values()] == [
        [("sft/loss", 1, 3.0), ("sft/loss", 2, 2.0), ("sft/loss", 3, 1.0)],
        [("sft/loss", 1, 3.0), ("sft/loss", 2, 1.5)],
    ]
    other = subprocess.run(
        [sys.executable, *words, "--project", "else"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert other.returncode == 2 and "was sent to project forty2; delete" in other.stderr


def test_a_record_that_a_kill_cut_off_is_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without W&B itself, which only gets what is new in RUN/wandb/sent.jsonl."""
    monkeypatch.setattr(trackers._WandB, "_start", lambda _: MagicMock())
    folder = write_run(tmp_path / "r", steps(3.0, 2.0, 1.0))
    trackers._Exporter(folder, "wandb", None).follow()
    sent = folder / "wandb" / "sent.jsonl"
    whole = sent.read_bytes()
    sent.write_bytes(whole[:-9])
    for number in (1, 0):
        exporter = trackers._Exporter(folder, "wandb", None)
        exporter.follow()
        assert exporter.number_sent == number and sent.read_bytes() == whole


@pytest.mark.parametrize("line", ["{", "[]", '{"loss": 1.0}'])
def test_a_damaged_line_is_named(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers._WandB, "_start", lambda _: MagicMock())
    folder = write_run(tmp_path / "r", steps(3.0, 2.0))
    trackers._Exporter(folder, "wandb", None).follow()
    whole = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(f"{whole}{line}\n")
    with pytest.raises(RunError, match=r"metrics\.jsonl:3: damaged; delete this line"):
        export_to_tracker(folder, "tensorboard")
    (folder / "wandb" / "sent.jsonl").write_text(f"{line}\n")
    with pytest.raises(RunError, match=r"sent\.jsonl: damaged; delete .*/wandb to send everything"):
        trackers._Exporter(folder, "wandb", None)


def entries(data: bytes) -> Iterator[bytes]:
    """The entries of a LevelDB log, which W&B's offline files are, after 7 bytes of their own."""
    block, at, parts = 32_768, 7, b""
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole entry, or the last part of one
            yield parts
            parts = b""


def wandb_runs(folder: Path) -> dict[str, list[Point]]:
    """Every number of each offline run, by the run's id."""
    from wandb.proto.wandb_internal_pb2 import Record

    found: dict[str, list[Point]] = {}
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda f: f.stat().st_mtime):
        points = found.setdefault(file.stem.removeprefix("run-"), [])
        for data in entries(file.read_bytes()):
            record = Record.FromString(data)
            if record.WhichOneof("record_type") == "history":
                values = {
                    "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                    for item in record.history.item
                }
                points.append(("sft/loss", values["sft/step"], values["sft/loss"]))
    return found


def test_a_project_has_a_name_and_a_tracker_is_named_once(inputs: Path) -> None:
    for change, says in [
        ("project=a/b", "project: should be 1 to 64 letters"),
        ("report_to=[wandb, wandb]", "report_to: wandb is there twice; remove one"),
        ("report_to=[comet]", "should be 'tensorboard' or 'wandb'"),
    ]:
        with pytest.raises(RecipeError, match=says):
            load_recipe(str(inputs / "recipe.yaml"), [change])


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        export_to_tracker(tmp_path, "tensorboard")


def test_a_run_without_metrics_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", [])
    before = {*folder.rglob("*")}
    with pytest.raises(RunError, match="has no metrics yet"):
        export_to_tracker(folder, "tensorboard")
    assert {*folder.rglob("*")} == before


def test_a_run_under_way_is_not_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(tmp_path / "r", steps(1.0))
    monkeypatch.setattr(trackers, "is_running", lambda _: True)
    with pytest.raises(RunError, match="is running; export it when it has ended"):
        export_to_tracker(folder, "tensorboard")
