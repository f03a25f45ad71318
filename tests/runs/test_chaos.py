"""Runs that are killed, interrupted, or find a full disk or a damaged checkpoint, and go on."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.processes import run_function, run_python
from support.training import ROWS, ListLog, adapted, run, sft

from forty2.errors import RunError
from forty2.inference.logprobs import Shortcuts
from forty2.model.adapter import adapter_weights
from forty2.training.batched_loss import ConversationLoss
from forty2.training.checkpoints import find_checkpoints

FILES = (
    "SHA256SUMS",
    "adapter_config.json",
    "adapters.safetensors",
    "optimizer.safetensors",
    "state.json",
)


def test_a_run_killed_anywhere_resumes_to_the_same_bytes() -> None:
    """A sample; `make chaos` tries every event."""
    lines = run_python("chaos.py", "--points", "6").splitlines()
    figures = dict(line.rsplit(maxsplit=1) for line in lines)
    assert int(figures["survived"]) == int(figures["faults tried"]) >= 12


@pytest.mark.parametrize(
    "scene",
    ["interrupted", "full_disk", pytest.param("out_of_memory", marks=pytest.mark.slow), "harmed"],
)
def test_a_run_that_is_stopped_says_so_and_resumes_to_the_same_bytes(
    scene: str, tmp_path: Path
) -> None:
    run_function(globals()[scene], tmp_path)


def interrupted(place: str) -> None:
    """One signal ends the step and saves it; two end the process at once."""
    from chaos import Killer, make_inputs_in_child, results, run_child

    # Started in the background of a shell, this process ignores SIGINT, and so would a run.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    inputs = make_inputs_in_child(Path(place, "inputs"))
    whole = run_child(inputs, Path(place, "whole"), Killer(None), resume=False)
    wanted = results(Path(place, "whole"))
    steps = [n for n, label in enumerate(whole.labels, 1) if label == "before step"]
    for number, times in [(n, t) for n in (signal.SIGINT, signal.SIGTERM) for t in (1, 2)]:

        def ask(number: signal.Signals = number, times: int = times) -> None:
            for _ in range(times):
                os.kill(os.getpid(), number)

        folder = Path(place, f"{number.name}{times}")
        ended = run_child(inputs, folder, Killer(steps[7], ask), resume=False)
        newest = find_checkpoints(folder / "run" / "work" / "phase2_dpo")[0].name
        if times == 1:
            assert (ended.code, newest) == (128 + number, "step3"), ended
            assert ended.message.startswith(f"dpo: stopped by {number.name} after step 3 of 5"), (
                ended
            )
            assert ended.message.endswith("to go on: `resume=True`"), ended
            assert "\n" not in ended.message, ended
        else:
            assert (ended.code, newest) == (1, "step2"), ended
            assert ended.message.strip().endswith("KeyboardInterrupt"), ended
        again = run_child(inputs, folder, Killer(None), resume=True)
        assert again.code == 0, again.message
        assert results(folder) == wanted


def full_disk(place: str) -> None:
    """Whatever is being written, one line says so, and the run goes on when there is room."""
    from chaos import Killer, make_inputs_in_child, results, run_child

    def refuse() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def refuse_as_mlx() -> None:
        raise RuntimeError("[write] Unable to write 8 bytes to file.")

    inputs = make_inputs_in_child(Path(place, "inputs"))
    whole = run_child(inputs, Path(place, "whole"), Killer(None), resume=False)
    wanted = results(Path(place, "whole"))
    for label, how, some in (("half write", refuse, 3), ("before safetensors", refuse_as_mlx, 3)):
        places = [n for n, found in enumerate(whole.labels, 1) if found == label]
        for at in places[:: max(1, len(places) // some)]:
            folder = Path(place, str(at))
            ended = run_child(inputs, folder, Killer(at, how), resume=False)
            assert ended.code == 2, (at, ended.message)
            assert "\n" not in ended.message and "make room" in ended.message, (at, ended.message)
            again = run_child(inputs, folder, Killer(None), resume=True)
            assert again.code == 0, (at, again.message)
            assert results(folder) == wanted, at


def out_of_memory(place: str) -> None:
    """What mlx and Python say when memory runs out, injected: a real one ends mlx's CPU backend."""
    from chaos import Killer, make_inputs_in_child, results, run_child

    inputs = make_inputs_in_child(Path(place, "inputs"))
    whole = run_child(inputs, Path(place, "whole"), Killer(None), resume=False)
    wanted = results(Path(place, "whole"))
    faults = {
        "before step": (
            RuntimeError("[malloc] Unable to allocate 8 bytes."),
            "phase1_sft, after 3 of 5",
        ),
        "before evaluation": (MemoryError(), "phase2_dpo"),
        "before reference batch": (RuntimeError("[METAL] Insufficient Memory"), "phase2_dpo"),
    }
    for number, (label, (error, at)) in enumerate(faults.items()):

        def refuse(error: Exception = error) -> None:
            raise error

        events = [n for n, found in enumerate(whole.labels, 1) if found == label]
        event = events[3] if label == "before step" else events[0]
        if label == "before evaluation":  # the second phase's
            event = next(n for n in events if n > whole.labels.index("before reference batch"))
        folder = Path(place, str(number))
        ended = run_child(inputs, folder, Killer(event, refuse), resume=False)
        assert ended.code == 2 and "\n" not in ended.message, ended.message
        said = str(error) or "MemoryError"
        assert ended.message.startswith(at) and f": memory ran out ({said}); " in ended.message, (
            ended.message
        )
        assert "`resume=True`" in ended.message and "max_length" in ended.message
        again = run_child(inputs, folder, Killer(None), resume=True)
        assert again.code == 0, again.message
        assert results(folder) == wanted


def harmed(place: str) -> None:
    """A finished run is looked over before it is relied on; what is deleted is made anew."""
    from chaos import Killer, make_inputs_in_child, results, run_child

    inputs, folder = make_inputs_in_child(Path(place, "inputs")), Path(place, "run")
    whole = run_child(inputs, folder, Killer(None), resume=False)
    assert whole.code == 0, whole.message

    def found() -> dict[str, Any]:
        """With the metrics by phase: a phase that is trained anew logs behind the later ones."""
        left = results(folder)
        left["run/metrics.jsonl"].sort(key=lambda record: record["phase"])
        return left

    wanted = found()
    for name, then in (
        ("run/phase1_sft/adapters.safetensors", "the phase is trained anew"),
        ("run/phase2_dpo/phase.json", "the phase is trained anew"),
        ("fused/model.safetensors", "the model is fused anew"),
    ):
        file = folder / name
        flip(file)
        told = run_child(inputs, folder, Killer(None), resume=True)
        at = file.relative_to(folder)
        assert told.code == 2
        assert (
            told.message
            == f"{at} is damaged; delete {at.parent}, then go on with `resume=True`: {then}"
        )
        shutil.rmtree(file.parent)
        again = run_child(inputs, folder, Killer(None), resume=True)
        assert again.code == 0, again.message
        assert found() == wanted
    rows = inputs / "dpo.jsonl"
    rows.write_text(rows.read_text().replace("No.", "Yes.", 1))
    told = run_child(inputs, folder, Killer(None), resume=True)
    assert told.code == 2
    assert told.message == (
        "phases.dpo: its train rows are not those that run began with; put the data back, or name "
        "another `run_dir`"
    )


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


PHASE = sft(steps=8, save_every_steps=3)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The work folder of a phase that stopped with two checkpoints, and how it ends."""

    class Stop(Exception):
        pass

    def stop(stage: str, done: int, total: int, info: Any) -> None:
        if done == 7:
            raise Stop

    work = tmp_path_factory.mktemp("stopped")
    whole, model = adapted(0.2), adapted(0.2)
    run(whole, ConversationLoss(ROWS, Shortcuts(split_head=True)), PHASE, work / "whole")
    with pytest.raises(Stop):
        run(
            model,
            ConversationLoss(ROWS, Shortcuts(split_head=True)),
            PHASE,
            work / "stopped",
            progress=stop,
        )
    assert [p.name for p in find_checkpoints(work / "stopped")] == ["step6", "step3"]
    return work / "stopped", adapter_weights(whole)


@pytest.mark.parametrize("harm", [flip, cut, Path.unlink])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    file: str, harm: Callable[[Path], None], stopped: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    work, wanted = tmp_path / "work", stopped[1]
    shutil.copytree(stopped[0], work)
    assert sorted(p.name for p in (work / "step6").iterdir()) == list(FILES)
    harm(work / "step6" / file)
    model, log, told = adapted(0.2), ListLog(), list[Any]()
    run(
        model,
        ConversationLoss(ROWS, Shortcuts(split_head=True)),
        PHASE,
        work,
        log,
        progress=lambda _, done, total, info: told.append(info),
    )
    assert log.went_on_from == [3]
    warning = log.records[0]["warning"]
    assert "went back to the checkpoint of step 3" in warning
    assert str(work / "step6") in warning and told[0]["warning"] == warning
    for name, value in adapter_weights(model).items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(wanted[name]))
    assert [p.name for p in find_checkpoints(work)] == ["step8", "step6"]


def test_with_both_checkpoints_damaged_one_line_says_what_to_do(
    stopped: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    shutil.copytree(stopped[0], work)
    for step in ("step3", "step6"):
        flip(work / step / "optimizer.safetensors")
    with pytest.raises(RunError, match=r"no checkpoint is whole; delete .* `resume=True`") as error:
        run(adapted(0.2), ConversationLoss(ROWS, Shortcuts(split_head=True)), PHASE, work)
    assert "\n" not in str(error.value)
    assert len(find_checkpoints(work)) == 2
