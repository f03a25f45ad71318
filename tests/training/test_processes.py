"""Processes that train together on mlx's ring: the steps of one process, and the ways it can end.

Each process has a folder of its own, as it would have on a machine of its own.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from chaos import make_inputs
from support.runs import short_checks
from support.training import ROWS, adapted, sft
from support.training import run as train

from forty2.errors import RunError
from forty2.inference.logprobs import Shortcuts
from forty2.recipe.reading import load_recipe
from forty2.runs.ablation import ablate
from forty2.runs.pipeline import run
from forty2.training.batched_loss import ConversationLoss
from forty2.training.batches import Order, SftBatch
from forty2.training.evaluation import evaluate
from forty2.training.processes import Group, joined

TESTS = Path(__file__).parents[1]
RECIPE = """
version: 1
name: together
model: model
max_length: 96
adapter: {rank: 2, scale: 4.0, layers: 2}
phases:
  sft: {objective: sft, data: sft.jsonl, valid: sft.jsonl, steps: 6, lr: 1.0e-2, batch_size: 5,
    clip_norm: 0.5, save_every_steps: 4, eval_every_steps: 3, lint: false,
    eval_prompts: prompts.json, best: {metric: passed, direction: max}}
  dpo: {objective: dpo, data: dpo.jsonl, valid: dpo.jsonl, steps: 5, lr: 1.0e-2, batch_size: 1,
    accumulate: 3, clip_norm: 0.5, save_every_steps: 4, eval_every_steps: 3, lint: false,
    beta: 0.1, best: {metric: loss, direction: min}}
  kto: {objective: kto, data: dpo.jsonl, valid: dpo.jsonl, steps: 5, lr: 1.0e-2, batch_size: 5,
    eval_every_steps: 5, lint: false, beta: 0.1, undesirable_weight: 0.05}
fuse: null
benchmark: {tasks: [], held_out: false}
"""
"""Six rows: every other batch of the first phase has one, and every one of the second. In the third
the policy drifts, which each process sees in its own rows."""
MACHINE = f"""
import os, signal, sys
sys.path.append({str(TESTS)!r})
from pathlib import Path
place = Path(sys.argv.pop(1), "machine" + os.environ["MLX_RANK"])
os.chdir(place)
os.environ["FORTY2_CACHE"] = str(place / "cache")
Path("pid").write_text(str(os.getpid()))
signal.signal(signal.SIGTERM, signal.SIG_DFL)
from forty2.cli import main
from support.runs import short_checks
with short_checks():
    main()
"""
LAUNCH = "import sys; from mlx._distributed_utils.launch import main; sys.exit(main())"
RUN = ("run", "recipe.yaml", "--run-dir", "run")


class Machines:
    """So many folders, each with the inputs, and a process started in each of them."""

    def __init__(self, inputs: Path, place: Path, count: int = 2) -> None:
        self.place, self.count = place, count
        self.folders = [place / f"machine{number}" for number in range(count)]
        for folder in self.folders:
            shutil.copytree(inputs, folder)
        self.script = place / "machine.py"
        self.script.write_text(MACHINE)
        self.run = self.folders[0] / "run"

    def launch(self, *arguments: str) -> None:
        """By `mlx.launch`."""
        options = ("--backend", "ring", "-n", f"{self.count}", "--python", sys.executable)
        port = f"{free_ports(self.count)}"
        launcher = (sys.executable, "-c", LAUNCH, *options, "--starting-port", port, "--")
        self._begin([((*launcher, self.script, self.place, *arguments), {})])

    def start(self, *arguments: str) -> None:
        """With what `mlx.launch` puts into the environment: each process's exit code is seen."""
        port = free_ports(self.count)
        hosts = self.place / "hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{port + n}"] for n in range(self.count)]))
        command = (sys.executable, self.script, self.place, *arguments)
        ranks = [{"MLX_HOSTFILE": f"{hosts}", "MLX_RANK": f"{n}"} for n in range(self.count)]
        self._begin([(command, rank) for rank in ranks])

    def _begin(self, commands: list[tuple[tuple[Any, ...], dict[str, str]]]) -> None:
        for folder in self.folders:
            (folder / "pid").unlink(missing_ok=True)
        self._said = [(self.place / f"said{n}.txt") for n in range(len(commands))]
        self._processes = []
        for (command, more), path in zip(commands, self._said, strict=True):
            environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", **more}
            with path.open("wb") as said:
                self._processes.append(
                    subprocess.Popen(
                        command,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=said,
                        stderr=said,
                    )
                )

    def ended(self) -> tuple[list[int], list[str]]:
        """Exit codes, and what was said: by each process, or by all to the launcher."""
        try:
            codes = [process.wait(120) for process in self._processes]
        except subprocess.TimeoutExpired:
            pytest.fail("\n".join(path.read_text() for path in self._said))
        finally:
            for process in self._processes:
                process.kill()
        said = [path.read_text().replace("\r", "\n") for path in self._said]
        assert not any("Traceback" in one for one in said), said
        return codes, said

    def signal(self, number: int, what: signal.Signals, *, after: int) -> None:
        """Send a process a signal when the run's first phase has taken so many steps."""
        metrics = self.run / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not metrics.exists() or f'"step": {after},' not in metrics.read_text():
            assert time.monotonic() < deadline, [path.read_text() for path in self._said]
            time.sleep(0.005)
        os.kill(int((self.folders[number] / "pid").read_text()), what)

    def written(self, number: int) -> set[str]:
        """The files that a process left in its folder."""
        folder = self.folders[number]
        return {f"{p.relative_to(folder)}" for p in folder.rglob("*") if p.is_file()}


def free_ports(count: int) -> int:
    """The first of so many ports in a row that nobody listens on, below those that are given out."""
    while True:
        first = random.SystemRandom().randrange(10_000, 32_000)
        try:
            for port in range(first, first + count):
                with socket.socket() as trial:
                    trial.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first


def errors(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("Error: ")]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mx.random.seed(0)
    folder = make_inputs(tmp_path_factory.mktemp("inputs") / "inputs")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def alone(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What one process measures."""
    return run_alone(inputs, tmp_path_factory.mktemp("alone") / "run")


def run_alone(folder: Path, path: Path, *, resume: bool = False) -> list[dict[str, Any]]:
    with short_checks(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("FORTY2_CACHE", f"{path.parent / 'cache'}")
        run(load_recipe("recipe.yaml"), run_dir=path, resume=resume)
    return measured(path)


def measured(path: Path) -> list[dict[str, Any]]:
    """A run's metrics but for those of the machine, and those that rounding decides at a tie."""
    varying = ("tokens_per_s", "peak_memory_gb", "accuracy", "valid_accuracy")
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in varying} for record in records]


def same(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    """Equal to fp32 rounding, as sums in another order are."""
    assert [list(record) for record in found] == [list(record) for record in wanted]
    for one, other in zip(found, wanted, strict=True):
        for key, value in other.items():
            figure = isinstance(value, float)
            assert one[key] == (pytest.approx(value, rel=1e-5, abs=1e-5) if figure else value), one


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shares_are_a_batch_cut_in_pieces_that_go_round(size: int) -> None:
    rows = list(range(20, 25))
    for turn in range(4):
        shares = [Group(rank, size).shard(rows, turn) for rank in range(size)]
        assert sorted(row for share in shares for row in share) == rows
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert {tuple(Group(0, size).shard([5], turn)) for turn in range(size)} == (
        {(5,)} if size == 1 else {(5,), ()}
    )


def test_a_total_has_the_shape_and_types_of_what_is_summed() -> None:
    """One process that takes itself for one of two meets nobody: the sum is its own part."""
    one: dict[str, Any] = {
        "a": [{}, {"b": mx.arange(6.0).reshape(2, 3)}],
        "c": mx.array([1.5], mx.bfloat16),
    }
    two: Any = Group(0, 2).all_sum([one, 7, mx.array(0.25)])
    assert two[0]["a"][0] == {} and two[0]["c"].dtype == mx.bfloat16
    assert two[0]["a"][1]["b"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (two[0]["c"].item(), two[1].item(), two[2].item()) == (1.5, 7, 0.25)


def test_each_process_sees_its_share_under_a_key_of_its_own(tmp_path: Path) -> None:
    """Again of two that meet nobody."""
    seen: list[tuple[list[int], Any]] = []

    class Seen(ConversationLoss):
        def batch(self, indices: Sequence[int]) -> SftBatch:
            state: Any = mx.random.state
            seen.append((list(indices), state[0].tolist()))
            return super().batch(indices)

    phase = sft(steps=5, batch_size=5, accumulate=2)
    for rank in range(2):
        objective = Seen(ROWS, Shortcuts(split_head=True))
        train(adapted(), objective, phase, tmp_path / f"{rank}", group=Group(rank, 2))
    first, second = seen[:10], seen[10:]
    order = Order(objective.lengths, 5, seed=5)
    for index, (one, other) in enumerate(zip(first, second, strict=True)):
        assert sorted(one[0] + other[0]) == sorted(order.batch(index))
        assert one[1] != other[1]
    seen.clear()
    for rank in range(2):
        evaluate(adapted(), objective, Group(rank, 2))
    assert sorted(row for rows, _ in seen for row in rows) == list(range(len(ROWS)))


def test_what_cannot_be_met_and_what_one_process_does_are_refused(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_RANK", "1")
    with pytest.raises(RunError, match=r"cannot reach the other processes: .*check the hostfile"):
        joined.__wrapped__()
    with pytest.raises(RunError, match=r"start it without mlx\.launch"):
        ablate(load_recipe(inputs / "measured.yaml"), out=tmp_path / "out")


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_together_measure_what_one_does_and_only_the_first_writes(
    count: int, inputs: Path, alone: list[dict[str, Any]], tmp_path: Path
) -> None:
    machines = Machines(inputs, tmp_path, count)
    given = machines.written(1)
    machines.launch(*RUN)
    codes, (said,) = machines.ended()
    assert codes == [0]
    assert "WARN" not in said and "[ring]" not in said, said  # each ended well, none too early
    assert said.count("adapter   ") == said.count("report    ") == 1
    same(measured(machines.run), alone)
    for number in range(1, count):
        left = machines.written(number) - given - {"pid"}
        assert {name.split("/")[1] for name in left} <= {"reference", "lib"}, left


@pytest.mark.parametrize("killed", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_killed_process_ends_all_and_another_number_goes_on(
    killed: int, inputs: Path, alone: list[dict[str, Any]], tmp_path: Path
) -> None:
    machines = Machines(inputs, tmp_path)
    # Not by `mlx.launch`: when one has ended it ends the others too, perhaps before they notice.
    machines.start(*RUN)
    machines.signal(killed, signal.SIGKILL, after=2)
    codes, said = machines.ended()
    assert (codes[killed], codes[1 - killed]) == (-signal.SIGKILL, 2)
    (line,) = errors(said[1 - killed])
    assert line.startswith("Error: sft, after step ") and line.endswith("as you like"), said
    assert "another process ended" in line and "go on with --resume" in line
    assert {record["phase"] for record in measured(machines.run)} == {"sft"}
    if killed == 1:
        steps = [record["step"] for record in measured(machines.run)]
        assert (machines.run / "work/phase1_sft" / f"step{steps[-1]}").is_dir()
    same(run_alone(machines.folders[0], machines.run, resume=True), alone)


def test_a_signal_to_any_process_ends_the_step_of_all_and_they_go_on_from_what_the_first_has(
    inputs: Path, alone: list[dict[str, Any]], tmp_path: Path
) -> None:
    machines = Machines(inputs, tmp_path)
    machines.start(*RUN)
    machines.signal(1, signal.SIGTERM, after=2)
    codes, said = machines.ended()
    assert codes == [128 + signal.SIGTERM, 0]
    assert errors(said[0])[0].startswith("Error: sft: stopped by SIGTERM after step ")
    assert said[1] == ""
    shutil.rmtree(machines.folders[1] / "cache")
    machines.start(*RUN, "--resume")
    codes, said = machines.ended()
    assert codes == [0, 0] and said[1] == ""
    same(measured(machines.run), alone)


def change(path: Path, *, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("file", "old", "new", "wanted"),
    [
        ("dpo.jsonl", "No.!", "No?!", "the train data of dpo is not the same as on "),
        pytest.param(
            "recipe.yaml",
            "steps: 6",
            "steps: 7",
            "the recipe is not the same as on ",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "model/config.json",
            "512",
            "513",
            "the model is not the same as on ",
            marks=pytest.mark.slow,
        ),
        pytest.param("dpo.jsonl", '"chosen"', '"taken"', "dpo.jsonl:1: ", marks=pytest.mark.slow),
    ],
)
def test_what_is_not_the_same_on_all_machines_is_refused_by_the_first(
    file: str, old: str, new: str, wanted: str, inputs: Path, tmp_path: Path
) -> None:
    machines = Machines(inputs, tmp_path)
    change(machines.folders[1] / file, old=old, new=new)
    machines.start(*RUN)
    codes, said = machines.ended()
    assert codes == [2, 0]
    (line,) = errors(said[0])
    assert line.startswith(f"Error: on {socket.gethostname()}, process 2 of 2: {wanted}")
    assert said[1] == ""
