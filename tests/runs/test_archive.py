"""The archive of runs: which are found, what is shown of them, and what is never lost."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from support.archive import OLD, finish_run, make_run

from forty2.errors import RunError
from forty2.files import find_damage, read_json, read_sealed, write_json
from forty2.recipe.differences import ABSENT
from forty2.run_paths import run_folder
from forty2.runs.archive.comparison import compare_runs
from forty2.runs.archive.differing_settings import find_differences
from forty2.runs.archive.entry import Entry, read_entry
from forty2.runs.archive.export import Adapters, export_run
from forty2.runs.archive.finding import Selection, find_runs, list_runs, sort_runs
from forty2.runs.archive.index import index_path, known_paths, stored_entries
from forty2.runs.archive.notes import NOTES, add_note, change_tags, read_notes
from forty2.runs.archive.removal import plan_removal, remove


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FORTY2_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def runs(here: Path) -> Path:
    """Three runs: one that ended, one that stopped, and one in a folder below."""
    home = here / "adapters"
    make_run(home / "good", mc1=0.5, started="2026-11-23T10:00:00+00:00", model="Qwen/small")
    make_run(home / "half", started="2026-11-22T10:00:00+00:00")
    make_run(home / "more" / "deep", mc1=0.4, started="2026-11-21T10:00:00+00:00")
    return home


@pytest.fixture
def running(runs: Path) -> Iterator[Path]:
    """A run that another process holds."""
    run = runs / "half"
    with (run / "run.lock").open("w") as lock:
        lock.write(f"process {os.getpid()} since now")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield run


def listed(*folders: Path) -> dict[str, Entry]:
    return {Path(entry.path).name: entry for entry in find_runs(folders).entries}


# --- finding --------------------------------------------------------------------------------------


def test_runs_of_every_release_are_listed_with_what_is_recorded(runs: Path) -> None:
    for kind in ("sealed", "unsealed"):
        shutil.copytree(OLD.parent / kind, runs / kind)
    found = listed(runs)
    assert list(found) == ["good", "half", "sealed", "unsealed", "deep"]  # the newest first
    for name in ("sealed", "unsealed"):
        assert found[name].state == "stopped" and found[name].problem is None
        assert (
            found[name].phases == {"sft": "sft", "dpo": "dpo"} and found[name].finished_phases == 1
        )
        assert found[name].metrics["valid_loss"] == pytest.approx(4.8604, abs=1e-4)
    good = found["good"]
    assert (good.state, good.verdict, good.finished_phases) == ("finished", "gain", 2)
    assert (good.base_metrics["mc1"], good.metrics["mc1"], good.metrics["sums"]) == (0.3, 0.5, 0.5)
    assert good.size == sum(f.stat().st_size for f in (runs / "good").rglob("*") if f.is_file())
    assert good.fused == [str(runs / "fused_models" / "good")]


def test_several_folders_are_searched_and_a_run_is_listed_once(runs: Path, here: Path) -> None:
    other = make_run(here / "elsewhere" / "x")
    (here / "elsewhere" / "link").symlink_to(runs / "good")
    (here / "elsewhere" / "circle").symlink_to(here / "elsewhere")
    found = find_runs([runs, other.parent, runs / "more"]).entries
    assert sorted(Path(entry.path).name for entry in found) == ["deep", "good", "half", "x"]
    with pytest.raises(RunError, match="no such folder"):
        find_runs([here / "nothing"])


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("run.json", "{"),
        ("run.json", "[]"),
        ("run.json", '{"name": "x"}'),
        ("summary.json", "7"),
        ("summary.json", '{"stages": 7}'),
        ("summary.json", '{"stages": [{"mc1": 1%s}]}' % ("0" * 400)),
        ("phase2_dpo/phase.json", ""),
        ("notes.json", '{"notes": [{}]}'),
        ("fused.json", "null"),
        ("recipe.yaml", None),
    ],
)
def test_a_run_with_a_damaged_record_is_listed_as_damaged_and_hides_no_other(
    file: str, text: str | None, runs: Path
) -> None:
    path = runs / "good" / file
    path.unlink(missing_ok=True)
    if text is not None:
        path.write_text(text)
    found = listed(runs)
    assert found["good"].state == "damaged"
    assert found["good"].problem is not None and str(runs / "good") in found["good"].problem
    assert "\n" not in found["good"].problem
    assert found["half"].state == "stopped" and found["deep"].state == "finished"


@pytest.mark.parametrize("file", ["run.json", "recipe.yaml", "notes.json", "run.lock"])
def test_a_pipe_in_a_record_s_place_does_not_hang_the_listing(file: str, runs: Path) -> None:
    (runs / "half" / file).unlink(missing_ok=True)
    os.mkfifo(runs / "half" / file)
    assert listed(runs)["half"].state == ("stopped" if file == "run.lock" else "damaged")


def test_states_are_told_apart(runs: Path, running: Path) -> None:
    assert listed(runs)["half"].state == "running"
    write_json(runs / "more" / "failed" / "run.json", read_json(OLD / "run.json"))
    shutil.copy(OLD / "recipe.yaml", runs / "more" / "failed")
    write_json(runs / "more" / "failed" / "failed.json", {"error": "TrainingError: not finite"})
    found = listed(runs)["failed"]
    assert (found.state, found.problem) == ("failed", "TrainingError: not finite")
    assert listed(runs)["good"].state == "finished"


def test_a_lock_whose_process_has_ended_is_of_no_running_run(runs: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    (runs / "half" / "run.lock").write_text(f"process {ended.pid} since now")
    assert listed(runs)["half"].state == "stopped"


@pytest.mark.parametrize("part", ["summary.json", "fused.json", "phase2_dpo"])
def test_a_run_that_lacks_a_result_of_its_recipe_is_not_finished(part: str, runs: Path) -> None:
    path = runs / "good" / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert listed(runs)["good"].state == "stopped"


def test_a_run_that_wants_nothing_measured_is_finished_without_measurements(runs: Path) -> None:
    for wish, state in (("[]\n  held_out: false", "finished"), ("[]\n  held_out: true", "stopped")):
        recipe = runs / "good" / "recipe.yaml"
        text = recipe.read_text().partition("benchmark:")[0]
        recipe.write_text(f"{text}benchmark:\n  n: 40\n  tasks: {wish}\n")
        (runs / "good" / "summary.json").unlink(missing_ok=True)
        assert listed(runs)["good"].state == state


def test_a_run_without_a_benchmark_section_is_measured_if_its_base_was(runs: Path) -> None:
    recipe = runs / "good" / "recipe.yaml"
    recipe.write_text(recipe.read_text().partition("benchmark:")[0] + "benchmark: null\n")
    (runs / "good" / "summary.json").unlink()
    assert listed(runs)["good"].state == "stopped"
    shutil.rmtree(runs / "good" / "benchmarks")
    assert listed(runs)["good"].state == "finished"


def test_the_minutes_of_a_run_are_those_at_work_over_all_starts(runs: Path) -> None:
    """A pause of a night between a kill and a resume is no work."""
    run = runs / "good"
    night = time.time() + 8 * 3600
    os.utime(run / "summary.json", (night, night))
    assert listed(runs)["good"].metrics["minutes"] > 400  # an earlier release recorded no times
    work = [("training sft", 240.0), ("training sft", 120.0), ("fusing", 30.0)]
    lines = [{"stage": stage, "kind": "train", "seconds": seconds} for stage, seconds in work]
    (run / "times.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert listed(runs)["good"].metrics["minutes"] == 6.5


def test_every_condition_selects(runs: Path) -> None:
    change_tags(runs / "good", ["keep", "shop"])
    entries = find_runs([runs]).entries

    def names(selection: Selection) -> list[str]:
        return [Path(entry.path).name for entry in entries if selection.takes(entry)]

    assert names(Selection(tags=["keep"])) == ["good"]
    assert names(Selection(tags=["keep", "other"])) == []
    assert names(Selection(model="QWEN")) == ["good"]
    assert names(Selection(phase="dpo")) == ["good", "half", "deep"]
    assert names(Selection(phase="kto")) == []
    assert names(Selection(state="stopped")) == ["half"]
    assert names(Selection(since=datetime(2026, 11, 22, tzinfo=UTC))) == ["good", "half"]


def test_any_metric_sorts_with_the_best_first_and_runs_without_it_last(runs: Path) -> None:
    entries = find_runs([runs]).entries

    def order(by: str, *, reverse: bool = False) -> list[str]:
        return [Path(entry.path).name for entry in sort_runs(entries, by, reverse=reverse)]

    assert order("MC1") == ["good", "deep", "half"]
    assert order("mc1", reverse=True) == ["deep", "good", "half"]
    assert order("perplexity") == ["good", "deep", "half"]  # 20 before 25
    assert order("sums")[-1] == "half"
    assert order("name") == ["deep", "good", "half"]
    assert order("size")[-1] == "half"
    assert order("valid loss")[0] in ("good", "half", "deep")
    with pytest.raises(RunError, match="no run has this metric; did you mean perplexity"):
        order("perplexit")


def test_a_name_leads_to_its_run_or_to_close_ones(runs: Path) -> None:
    assert run_folder("good") == run_folder("adapters/good") == Path("adapters/good")
    assert run_folder("deep") == run_folder("more/deep") == Path("adapters/more/deep")
    with pytest.raises(RunError, match=r"did you mean adapters/good\?"):
        run_folder("god")
    make_run(runs / "other" / "deep")
    with pytest.raises(RunError, match="several runs have this name"):
        run_folder("deep")


# --- the index ------------------------------------------------------------------------------------


def test_no_change_of_a_run_is_hidden_by_the_index(runs: Path) -> None:
    assert listed(runs)["good"].metrics["mc1"] == 0.5
    summary = runs / "good" / "summary.json"
    text = summary.read_text()
    about = summary.stat()
    write_json(summary, json.loads(text.replace("0.5", "0.6")))
    os.utime(summary, ns=(about.st_atime_ns, about.st_mtime_ns))  # same size and time
    assert listed(runs)["good"].metrics["mc1"] == 0.6
    change_tags(runs / "good", ["new"])
    assert listed(runs)["good"].tags == ["new"]
    shutil.rmtree(runs / "half")
    assert "half" not in listed(runs)


def test_what_is_read_from_the_index_is_what_is_read_from_the_folders(runs: Path) -> None:
    add_note(runs / "good", "one, with “quotes”")
    cold = find_runs([runs]).entries
    assert index_path().exists()
    assert find_runs([runs]).entries == cold
    assert {path.name for path in known_paths()} == {"good", "half", "deep"}


@pytest.mark.parametrize("damage", ["garbage", "cut", "other table", "other version", "folder"])
def test_a_damaged_index_is_made_again_and_loses_no_word(damage: str, runs: Path) -> None:
    add_note(runs / "good", "a thought")
    change_tags(runs / "good", ["keep"])
    before = find_runs([runs]).entries
    file = index_path()
    if damage == "garbage":
        file.write_bytes(b"no database at all " * 100)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:5000])
    elif damage == "folder":
        file.unlink()
        file.mkdir()
    else:
        with sqlite3.connect(file) as index:
            index.execute("DROP TABLE runs")
            if damage == "other version":
                index.execute("PRAGMA user_version = 99")
    assert find_runs([runs]).entries == before == find_runs([runs]).entries
    if damage != "folder":
        keys = dict(sqlite3.connect(file).execute("SELECT path, key FROM runs"))
        assert len(stored_entries(keys)) == 3


def test_two_hundred_runs_are_listed_in_half_a_second_cold_and_warm(here: Path) -> None:
    first = make_run(here / "many" / "run0", mc1=0.5)
    for n in range(1, 200):
        shutil.copytree(first, here / "many" / f"run{n}")
    script = (
        "import sys; from forty2.cli import main\n"
        "try: main(['runs', 'many'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'mlx.core', 'yaml', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    )
    best = {"cold": 9.0, "warm": 9.0}
    start_up = 9.0
    for _ in range(3):  # the machine may be busy: the best of three
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import forty2.cli, sqlite3"], check=True)
        start_up = min(start_up, time.perf_counter() - start)
        index_path().unlink(missing_ok=True)
        for kind in best:
            start = time.perf_counter()
            done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
            best[kind] = min(best[kind], time.perf_counter() - start)
            assert "200 runs" in done.stdout and done.stderr == "[]\n"
    # Starting alone takes a twentieth of a second on an idle machine, and a tenth on a slow one.
    assert max(best.values()) < max(0.5, 10 * start_up), (best, start_up)


# --- notes and tags -------------------------------------------------------------------------------


def test_notes_are_added_not_overwritten_and_tags_are_words(runs: Path) -> None:
    run = runs / "half"
    add_note(run, "first")
    change_tags(run, ["a", "b"])
    add_note(run, " second ")
    change_tags(run, ["b", "c"], ["a"])
    found = read_notes(run)
    assert [note.text for note in found.notes] == ["first", "second"] and found.tags == ["b", "c"]
    assert [note.text for note in add_note(run, "only", replace=True).notes] == ["only"]
    for bad in ("two words", "", "a,b", "x" * 65):
        with pytest.raises(RunError, match="not a tag"):
            change_tags(run, [bad])
    with pytest.raises(RunError, match="has no tag 'z'; its tags: b, c"):
        change_tags(run, [], ["z"])
    with pytest.raises(RunError, match="the note is empty"):
        add_note(run, "  ")


def test_damaged_notes_are_not_written_over(runs: Path) -> None:
    (runs / "half" / NOTES).write_text('{"notes": [ my thoughts')
    with pytest.raises(RunError, match="not readable"):
        add_note(runs / "half", "more")
    assert "my thoughts" in (runs / "half" / NOTES).read_text()


# --- comparing ------------------------------------------------------------------------------------


def test_runs_are_compared_by_settings_by_items_and_by_replies(runs: Path, here: Path) -> None:
    recipe = runs / "more" / "deep" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("rank: 2", "rank: 8"))
    found = compare_runs([runs / "good", runs / "more" / "deep", runs / "half"])
    differences = {one.key: one.values for one in found.differences}
    assert differences["adapter.rank"] == ["2", "8", "2"]
    assert "model_sha256" not in differences and "phases.sft.steps" not in differences
    assert differences["benchmark.n"] == ["40", "40", ABSENT]
    deep, half = found.measured
    assert deep.comparison is not None and deep.comparison.metrics["mc1"].after == 0.4
    assert deep.before.endswith("good, fused") and deep.comparison.metrics["mc1"].worse == 4
    assert half.comparison is None and half.reason is not None and "measured nothing" in half.reason
    assert found.replies == []  # not all runs replied
    pair = compare_runs([runs / "good", runs / "more" / "deep"])
    assert len(pair.replies) == 40 and pair.replies[0].replies == ["It is 16.", "It is -1."]
    json.dumps(pair.to_json())


def test_short_settings_leave_out_what_follows_from_others(runs: Path) -> None:
    """A section of few keys is written out; one that two of three runs have shows where they differ."""
    names = ["a", "b", "c"]
    sft = {"phases.sft.lr": "1"}
    phase = sft | {f"phases.dpo.k{n}": "1" for n in range(5)}
    one = {"model": "m", "model_sha256": "1", "fuse.out": "x", **phase}
    other = {"model": "n", "model_sha256": "2", "fuse": "null", **phase, "phases.dpo.k1": "2"}
    third = {**sft, "model": "m", "model_sha256": "1", "fuse": "null", "init_from_sha256": "9"}
    found = find_differences(names, [one, other, third])
    assert {one.key: one.values for one in found.short} == {
        "model": ["m", "n", "m"],
        "fuse": ["{out: x}", "null", "null"],
        "phases.dpo.k1": ["1", "2", ABSENT],
    }
    assert found.remarks == [
        "phases.dpo: only in a, b",
        "init_from: the same name, but other contents",
    ]
    assert len(found.every) == 10


def test_a_printed_list_of_runs_is_a_table(runs: Path, here: Path) -> None:
    text = str(list_runs(runs))
    head, _, *rows = text.splitlines()
    assert head.split()[:2] == ["run", "state"] and len(rows) == 3
    assert rows[0].startswith("good") and "MC1 0.300 → 0.500" in rows[0]
    assert str(list_runs(runs, model="none")) == "no runs"


def test_measurements_that_differ_in_kind_are_not_compared(runs: Path) -> None:
    file = runs / "good" / "benchmarks" / "fused.json"
    record = read_json(file)
    record["truthfulqa"]["questions_sha256"] = "other"
    other = read_json(runs / "more" / "deep" / "benchmarks" / "fused.json")
    other["truthfulqa"]["questions_sha256"] = "one"
    write_json(file, record)
    write_json(runs / "more" / "deep" / "benchmarks" / "fused.json", other)
    (found,) = compare_runs([runs / "good", runs / "more" / "deep"]).measured
    assert found.comparison is None and "not comparable" in str(found.reason)


def test_a_run_is_not_compared_with_itself(runs: Path) -> None:
    with pytest.raises(RunError, match="two or more different runs"):
        compare_runs([runs / "good", runs / "more" / ".." / "good"])


# --- removing -------------------------------------------------------------------------------------


def test_a_removal_says_what_it_frees_and_leaves_the_fused_model(runs: Path) -> None:
    (found,) = plan_removal([runs / "good"])
    assert found.frees == found.size == read_entry(runs / "good", found.size).size > 0
    assert list(found.staying) == [runs / "fused_models" / "good"] and not found.losses
    remove([found])
    assert not (runs / "good").exists() and (runs / "fused_models" / "good").exists()
    assert not [path for path in runs.iterdir() if path.name.startswith(".")]
    assert {path.name for path in known_paths()} <= {"half", "deep"}


def test_the_only_copy_of_a_fused_model_goes_by_force_alone(runs: Path) -> None:
    plan = plan_removal([runs / "good"], fused=True)
    with pytest.raises(RunError, match=r"only copy of the fused model.*`force=True`"):
        remove(plan)
    assert (runs / "good").exists()
    remove(plan, force=True)
    assert not (runs / "good").exists() and not (runs / "fused_models" / "good").exists()
    inside = runs / "more" / "deep" / "fused"
    shutil.move(runs / "more" / "fused_models" / "deep", inside)
    record = read_json(runs / "more" / "deep" / "fused.json")
    write_json(runs / "more" / "deep" / "fused.json", {**record, "path": str(inside)})
    with pytest.raises(RunError, match="only copy"):
        remove(plan_removal([runs / "more" / "deep"]))


def test_a_fused_model_that_another_run_put_in_its_place_stays(runs: Path) -> None:
    place = runs / "fused_models" / "good" / "fused.json"
    write_json(place, {"adapter": str(runs / "half" / "phase2_dpo")})
    remove(plan_removal([runs / "good"], fused=True))
    assert place.exists() and not (runs / "good").exists()


@pytest.mark.parametrize("place", ["adapters/next", "elsewhere/next"])
@pytest.mark.parametrize("key", ["init_from", "model_path"])
def test_what_another_run_goes_on_from_is_not_removed_without_force(
    key: str, place: str, runs: Path, here: Path
) -> None:
    used = runs / ("good/phase2_dpo" if key == "init_from" else "fused_models/good")
    changes: dict[str, Any] = {key: str(used)}
    make_run(here / place, **changes)
    find_runs([here / place])  # known to the index, wherever it is
    plan = plan_removal([runs / "good"], fused=True)
    with pytest.raises(RunError, match="next goes on from"):
        remove(plan)
    both = plan_removal([runs / "good", here / place], fused=True)
    assert not [loss for one in both for loss in one.losses if "goes on" in loss]


def test_nothing_is_removed_if_one_cannot_be(
    runs: Path, running: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunError, match="is running"):
        plan_removal([runs / "good", running])
    plan = plan_removal([runs / "good", runs / "more" / "deep"])
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.name == "deep":
            raise PermissionError(13, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(RunError, match="cannot be written"):
        remove(plan)
    assert listed(runs)["good"].state == "finished" and (runs / "more" / "deep").exists()


def test_a_run_that_began_to_work_since_is_not_removed(runs: Path) -> None:
    plan = plan_removal([runs / "good"])
    with (runs / "good" / "run.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="is running"):
            remove(plan)
    assert (runs / "good").exists()


def test_a_link_to_a_run_is_not_removed(runs: Path) -> None:
    (runs / "link").symlink_to(runs / "good")
    with pytest.raises(RunError, match="is a link"):
        plan_removal([runs / "link"])
    with pytest.raises(RunError, match="named twice"):
        plan_removal([runs / "good", runs / "more" / ".." / "good"])


# --- exporting ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("adapters", "there"), [("last", ["2_dpo"]), ("all", ["1_sft", "2_dpo"]), ("none", [])]
)
def test_an_exported_run_names_no_path_of_this_machine_and_is_a_run_again(
    adapters: Adapters, there: list[str], runs: Path, here: Path
) -> None:
    run = runs / "good"
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace("data: sft", "data: /secret/place/sft"))
    about = read_json(run / "run.json")
    write_json(run / "run.json", {**about, "model_path": f"{Path.home()}/models/m"})
    phase = read_json(run / "phase2_dpo" / "phase.json")
    write_json(run / "phase2_dpo" / "phase.json", {**phase, "dropped": [f"{here}/rows.jsonl:3"]})
    names = export_run(run, here / "good.zip", adapters=adapters)
    assert all(name.startswith("good/") and ".." not in name for name in names)
    unpacked = here / "colleague"
    with zipfile.ZipFile(here / "good.zip") as archive:
        archive.extractall(unpacked)
    for file in unpacked.rglob("*"):
        if file.is_file() and file.suffix != ".safetensors":
            text = file.read_text("utf-8")
            for path in (str(here), str(Path.home()) + "/", "/secret"):
                assert path not in text, file
    weights = [f"phase{name}/adapters.safetensors" for name in there]
    found = [str(p.relative_to(unpacked / "good")) for p in unpacked.rglob("*.safetensors")]
    assert sorted(found) == weights
    for name in there:
        assert find_damage(unpacked / "good" / f"phase{name}") is None
    assert read_sealed(unpacked / "good" / "benchmarks" / "base.json")
    assert read_json(unpacked / "good/phase2_dpo/phase.json")["dropped"] == ["./rows.jsonl:3"]
    entry = listed(unpacked)["good"]
    assert (entry.state, entry.metrics["mc1"]) == ("finished", 0.5)
    assert not list(unpacked.rglob("run.lock")) and not list(unpacked.rglob("work"))


def test_an_export_overwrites_nothing_and_takes_no_running_or_damaged_run(
    runs: Path, running: Path, here: Path
) -> None:
    (here / "x.zip").write_text("mine")
    with pytest.raises(RunError, match="exists; name another file"):
        export_run(runs / "good", here / "x.zip")
    assert (here / "x.zip").read_text() == "mine"
    export_run(runs / "good", here / "x.zip", replace=True)
    with pytest.raises(RunError, match="is running"):
        export_run(running, here / "y.zip")
    (runs / "more" / "deep" / "summary.json").write_text("{")
    with pytest.raises(RunError, match="more/deep"):
        export_run(runs / "more" / "deep", here / "y.zip")
    assert not (here / "y.zip").exists()


def test_a_finished_run_is_seen_as_such_by_the_package_s_own_reader(here: Path) -> None:
    """The runs that these tests write are not of their own invention."""
    from forty2.report.records import read_run

    run = make_run(here / "one")
    finish_run(run, 0.5)
    read = read_run(run)
    assert read.summary is not None and read.summary.stages[-1].mc1 == 0.5
    assert [phase.name for phase in read.phases] == ["sft", "sft"] and read.fused is not None
