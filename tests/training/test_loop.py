"""The loop: resuming, what a recipe does about red lines, the best adapter, ending early."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from support.training import (
    ALL,
    PAIRS,
    ROWS,
    ListLog,
    adapted,
    dpo,
    poisoned,
    preference,
    run,
    sft,
    values,
)

from forty2.errors import TrainingError
from forty2.inference.logprobs import Shortcuts, supported_shortcuts
from forty2.model.adapter import adapter_weights
from forty2.text.rows import RatedRow
from forty2.training.batched_loss import ConversationLoss, RatedLoss
from forty2.training.checkpoints import find_checkpoints
from forty2.training.evaluation import ReplyCheck, evaluate
from forty2.training.objectives.kto import KtoPhase
from forty2.training.objectives.phase import Best, Goal, RedLines
from forty2.training.red_lines import PATIENCE, WINDOW
from forty2.training.reference import reference_logps


def red_lines(**actions: str) -> Any:
    return RedLines(**actions)  # type: ignore[arg-type]


@pytest.mark.parametrize("adapter", ["lora", "dora"])
@pytest.mark.parametrize("kind", ["sft", "dpo", "kto"])
def test_a_resumed_phase_ends_as_one_that_never_stopped(
    kind: str, adapter: Any, tmp_path: Path
) -> None:
    def fresh() -> tuple[Any, Any, Any]:
        model = adapted(0.2, type=adapter)
        if kind == "sft":
            return (
                model,
                ConversationLoss(ROWS, Shortcuts(split_head=True)),
                sft(steps=8, save_every_steps=3, schedule="cosine"),
            )
        best: Any = {
            "steps": 8,
            "save_every_steps": 3,
            "best": Best(metric="margin", direction="max"),
        }
        if kind == "dpo":
            phase = dpo(**best)
            return model, preference(model, phase, tmp_path), phase
        rated = KtoPhase(objective="kto", data="x", lr=1e-2, beta=0.1, **best)
        rows = [RatedRow(*pair[:3], n % 2 > 0, pair.origin) for n, pair in enumerate(PAIRS)]
        logps = reference_logps(model, rows, ALL, tmp_path / "reference.npz")
        return model, RatedLoss(rows, logps, rated, supported_shortcuts(model)), rated

    model, objective, phase = fresh()
    whole, parts = ListLog(), ListLog()
    run(model, objective, phase, tmp_path / "whole", whole, valid=objective)
    wanted = adapter_weights(model)

    class Stop(Exception):
        pass

    def stop(stage: str, done: int, total: int, info: Any) -> None:
        if done == 5:
            raise Stop

    model, objective, phase = fresh()
    with pytest.raises(Stop):
        run(model, objective, phase, tmp_path / "parts", parts, valid=objective, progress=stop)
    model, objective, phase = fresh()
    run(model, objective, phase, tmp_path / "parts", parts, valid=objective)
    assert parts.went_on_from == [-1, 3]
    for name, value in adapter_weights(model).items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(wanted[name]))
    timeless = [
        [
            {k: v for k, v in r.items() if k not in ("tokens_per_s", "peak_memory_gb")}
            for r in log.records
        ]
        for log in (whole, parts)
    ]
    assert timeless[0] == timeless[1]


def test_the_best_adapter_is_kept_when_asked_for(tmp_path: Path) -> None:
    model = adapted(moved=False)
    objective = ConversationLoss(ROWS, Shortcuts(split_head=True))
    phase = sft(
        steps=12,
        lr=0.3,
        eval_every_steps=1,
        clip_norm=None,
        optimizer="sgd",
        best=Best(metric="loss", direction="min"),
    )
    log = ListLog()
    trained = run(model, objective, phase, tmp_path, log, valid=objective)
    losses = {r["step"]: r["valid_loss"] for r in log.records if "valid_loss" in r}
    assert trained.kept_step == min(losses, key=lambda step: losses[step])
    assert evaluate(model, objective)["loss"] == pytest.approx(min(losses.values()), abs=1e-5)


def test_the_lowest_loss_of_a_model_that_memorizes_is_not_the_best(tmp_path: Path) -> None:
    """Its training loss is taken to be a fiftieth: every validation loss after it is many times that."""
    valid = ConversationLoss(ROWS, Shortcuts(split_head=True))
    phase = sft(steps=6, eval_every_steps=2, best=Best(metric="loss", direction="min"))
    log = ListLog()
    sound = run(adapted(moved=False), valid, phase, tmp_path / "sound", valid=valid)
    trained = run(
        adapted(moved=False), poisoned(1, 0.02, times=99), phase, tmp_path / "red", log, valid=valid
    )
    losses = [r["valid_loss"] for r in log.records if "valid_loss" in r]
    assert losses == sorted(losses, reverse=True) and sound.kept_step == 6
    assert trained.kept_step == 0
    assert {r["red_line"] for r in log.records if "red_line" in r} == {"validation"}


def test_garbage_is_red_in_the_second_half_of_a_phase_alone(tmp_path: Path) -> None:
    log = ListLog()
    run(
        adapted(),
        ConversationLoss(ROWS, Shortcuts(split_head=True)),
        sft(steps=4, eval_every_steps=1),
        tmp_path,
        log,
        check_replies=lambda _: ReplyCheck({}, [], "all replies are garbage"),
    )
    crossed = [r for r in log.records if "red_line" in r]
    assert [(r["step"], r["red_line"]) for r in crossed] == [(3, "replies"), (4, "replies")]
    assert crossed[0]["warning"] == "p, step 3: all replies are garbage"


def test_stop_names_step_and_rows_and_saves_what_was_good(tmp_path: Path) -> None:
    model, clean = adapted(), adapted()
    with pytest.raises(
        TrainingError,
        match=r"p, step 5: the loss is not finite on rows sft\.jsonl:\d+, .*"
        r"; step 4 is saved in .*; in another `run_dir`, lower phases.p.lr",
    ) as error:
        run(model, poisoned(5), sft(steps=9), tmp_path / "red")
    assert "\n" not in str(error.value)
    newest = find_checkpoints(tmp_path / "red")[0]
    assert json.loads((newest / "state.json").read_text())["step"] == 4
    run(clean, poisoned(99), sft(steps=4), tmp_path / "clean")
    for a, b in zip(values(model), values(clean), strict=True):
        np.testing.assert_array_equal(a, b)


def test_skip_leaves_the_step_out_and_says_so(tmp_path: Path) -> None:
    log = ListLog()
    phase = sft(steps=8, red_lines=red_lines(not_finite="skip"))
    trained = run(adapted(), poisoned(3, times=2), phase, tmp_path, log)
    assert trained.steps == 8 and math.isfinite(trained.metrics["loss"])
    warned = [(r["step"], r["red_line"]) for r in log.records if "warning" in r]
    assert warned == [(3, "not_finite"), (4, "not_finite")]
    assert [r["step"] for r in log.records if "loss" in r] == [1, 2, 5, 6, 7, 8]
    assert all("sft.jsonl" in r["warning"] for r in log.records if "warning" in r)


def test_skipping_everything_ends_the_phase(tmp_path: Path) -> None:
    phase = sft(steps=90, red_lines=red_lines(not_finite="skip"))
    with pytest.raises(TrainingError, match=f"{PATIENCE} steps in a row are skipped"):
        run(adapted(), poisoned(3, times=99), phase, tmp_path)


def test_a_spike_that_is_warned_of_is_taken_and_one_that_is_skipped_is_not(tmp_path: Path) -> None:
    ends = {}
    for action in ("warn", "skip"):
        log = ListLog()
        model = adapted()
        phase = sft(steps=WINDOW // 4 + 3, lr=1e-3, red_lines=red_lines(spike=action))
        run(model, poisoned(WINDOW // 4 + 2, 9.0), phase, tmp_path / action, log)
        (warned,) = [r for r in log.records if "warning" in r]
        assert warned["red_line"] == "spike" and warned["step"] == WINDOW // 4 + 2
        ends[action] = values(model)
    assert any((a != b).any() for a, b in zip(ends["warn"], ends["skip"], strict=True))


def test_back_goes_on_from_the_last_checkpoint_at_half_the_rate(tmp_path: Path) -> None:
    log = ListLog()
    phase = sft(steps=8, lr=1e-2, save_every_steps=3, red_lines=red_lines(not_finite="back"))
    run(adapted(), poisoned(5), phase, tmp_path, log)
    assert log.went_on_from == [-1, 3]
    rates = {r["step"]: r["lr"] for r in log.records if "lr" in r}
    assert [rates[n] for n in range(1, 9)] == [1e-2] * 3 + [5e-3] * 5
    (warned,) = [r for r in log.records if "warning" in r]
    assert warned["step"] == 4
    assert "step 5: the loss is not finite" in warned["warning"]
    assert "went back to the checkpoint of step 3, now at 0.5 lr" in warned["warning"]


def test_back_before_the_first_checkpoint_goes_to_the_start(tmp_path: Path) -> None:
    log = ListLog()
    phase = sft(steps=4, save_every_steps=4, red_lines=red_lines(not_finite="back"))
    run(adapted(), poisoned(2), phase, tmp_path, log)
    assert log.went_on_from == [-1, 0]


def test_going_back_ends_after_three_times(tmp_path: Path) -> None:
    class Broken(ConversationLoss):
        def loss(self, model: Any, arrays: Any) -> Any:
            plain = super().loss(model, arrays)
            return plain._replace(total=plain.total * math.nan)

    log = ListLog()
    phase = sft(steps=4, red_lines=red_lines(not_finite="back"))
    broken = Broken(ROWS, Shortcuts(split_head=True))
    with pytest.raises(TrainingError, match="the loss is not finite"):
        run(adapted(), broken, phase, tmp_path, log)
    assert log.went_on_from == [-1, 0, 0, 0]


def test_a_run_sent_back_and_killed_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    """A bad row is a function of the row, so that it comes again; half the rate gets over it."""
    limit = 0.075

    class Cliff(ConversationLoss):
        """Not finite once the adapter has moved far from where it began."""

        def loss(self, model: Any, arrays: Any) -> Any:
            plain = super().loss(model, arrays)
            far = mx.abs(model.model.layers[1].self_attn.q_proj.lora_b).max() > limit
            return plain._replace(total=mx.where(far, math.nan, plain.total))

    phase = sft(steps=9, lr=1e-2, save_every_steps=3, red_lines=red_lines(not_finite="back"))

    def go(work: Path, stop_at: int | None) -> tuple[list[np.ndarray], list[Any]]:
        class Stop(Exception):
            pass

        log = ListLog()
        calls = 0

        def progress(stage: str, done: int, total: int, info: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == stop_at:
                raise Stop

        def cliff() -> ConversationLoss:
            return Cliff(ROWS, Shortcuts(split_head=True))

        model = adapted(moved=False)
        try:
            run(model, cliff(), phase, work, log, progress=progress)
        except Stop:
            model = adapted(moved=False)
            run(model, cliff(), phase, work, log)
        timed = ("tokens_per_s", "peak_memory_gb")
        return values(model), [{k: v for k, v in r.items() if k not in timed} for r in log.records]

    wanted, wanted_records = go(tmp_path / "whole", None)
    assert any("warning" in r for r in wanted_records), "the cliff was never reached"
    for stop_at in range(2, 14):
        got, records = go(tmp_path / str(stop_at), stop_at)
        assert records == wanted_records, stop_at
        for a, b in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(a, b)


def test_validation_that_rises_is_acted_upon(tmp_path: Path) -> None:
    objective = ConversationLoss(ROWS, Shortcuts(split_head=True))
    phase = sft(
        steps=60,
        lr=1.0e-2,
        eval_every_steps=4,
        red_lines=red_lines(validation="stop"),
    )
    others = [  # other answers to the same prompts
        row._replace(ids=row.ids[:3] + [(7 * i + 5) % 300 for i in row.ids[3:]]) for row in ROWS
    ]
    with pytest.raises(
        TrainingError, match=r"p, step \d+: validation loss.*; `resume=True` goes on"
    ):
        run(
            adapted(),
            objective,
            phase,
            tmp_path,
            valid=ConversationLoss(others, Shortcuts(split_head=True)),
        )
    assert find_checkpoints(tmp_path)


def test_faulty_replies_are_warned_of_and_only_those_after_training_are_acted_upon(
    tmp_path: Path,
) -> None:
    answers = iter([ReplyCheck({"passed": 0.5}, ["the same reply"])] * 9)
    log = ListLog()
    phase = sft(steps=4, eval_every_steps=2, red_lines=red_lines(replies="stop"))
    with pytest.raises(TrainingError, match="p, step 2: the same reply"):
        run(
            adapted(),
            ConversationLoss(ROWS, Shortcuts(split_head=True)),
            phase,
            tmp_path,
            log,
            check_replies=lambda _: next(answers),
        )
    measured, warned = log.records[:2]
    assert measured == {"phase": "p", "step": 0, "valid_passed": 0.5}
    assert warned["red_line"] == "replies"
    assert warned["warning"] == "p, before training: the same reply"


def test_tags_have_a_line_of_their_own_and_missing_ones_none_before_the_first_step(
    tmp_path: Path,
) -> None:
    def warned(work: str, check: ReplyCheck) -> list[tuple[int, str]]:
        log = ListLog()
        run(
            adapted(),
            ConversationLoss(ROWS, Shortcuts(split_head=True)),
            sft(steps=2, eval_every_steps=1),
            tmp_path / work,
            log,
            check_replies=lambda _: check,
        )
        return [(r["step"], r["red_line"]) for r in log.records if "red_line" in r]

    broken = ReplyCheck({}, [], broken_tags=["broken tags in 2 of 4 replies"])
    missing = ReplyCheck({}, [], missing_tags=["<a> is in none of the 4 replies"])
    assert warned("broken", broken) == [(0, "tags"), (1, "tags"), (2, "tags")]
    assert warned("missing", missing) == [(1, "tags"), (2, "tags")]
    assert warned("sound", ReplyCheck({"passed": 0.0}, [])) == []
    stops = sft(steps=2, eval_every_steps=1, red_lines=red_lines(tags="stop"))
    with pytest.raises(TrainingError, match="p, step 1: <a> is in none of the 4 replies"):
        run(
            adapted(),
            ConversationLoss(ROWS, Shortcuts(split_head=True)),
            stops,
            tmp_path / "stops",
            check_replies=lambda _: missing,
        )


def test_a_phase_ends_when_its_goal_is_reached(tmp_path: Path) -> None:
    objective = ConversationLoss(ROWS, Shortcuts(split_head=True))
    log = ListLog()
    phase = sft(steps=60, lr=3e-2, eval_every_steps=2, until=Goal(metric="loss", at_most=5.0))
    trained = run(adapted(), objective, phase, tmp_path, log, valid=objective)
    losses = [(r["step"], r["valid_loss"]) for r in log.records if "valid_loss" in r]
    assert losses[0][1] > 5.0 and all(loss > 5.0 for _, loss in losses[:-1])
    assert losses[-1][1] <= 5.0 and trained.steps == losses[-1][0] < 60


@pytest.mark.parametrize(
    ("value", "above", "below"), [(1, False, True), (2, True, True), (3, True, False)]
)
def test_a_goal_is_reached_at_its_very_value(value: float, above: bool, below: bool) -> None:
    assert Goal(metric="margin", at_least=2.0).reached({"margin": value}) is above
    assert Goal(metric="margin", at_most=2.0).reached({"margin": value}) is below
    assert not Goal(metric="margin", at_most=2.0).reached({"loss": value})  # not measured


def test_a_phase_that_reached_its_goal_does_not_go_on_when_resumed(tmp_path: Path) -> None:
    """Killed between the checkpoint of its last step and the phase's own folder."""
    objective = ConversationLoss(ROWS, Shortcuts(split_head=True))
    phase = sft(
        steps=60,
        lr=3e-2,
        eval_every_steps=2,
        save_every_steps=2,
        until=Goal(metric="loss", at_most=5.0),
    )
    whole, again = adapted(), adapted()
    trained = run(whole, objective, phase, tmp_path, valid=objective)
    resumed = run(again, objective, phase, tmp_path, valid=objective)
    assert resumed[:-1] == trained[:-1]  # all but the optimizer
    for a, b in zip(values(whole), values(again), strict=True):
        np.testing.assert_array_equal(a, b)


def test_eval_prompts_can_choose_the_best_adapter(tmp_path: Path) -> None:
    shares = iter([0.1, 0.5, 0.9, 0.4])
    phase = sft(
        steps=6, eval_every_steps=2, eval_prompts="x", best=Best(metric="passed", direction="max")
    )
    trained = run(
        adapted(),
        ConversationLoss(ROWS, Shortcuts(split_head=True)),
        phase,
        tmp_path,
        check_replies=lambda _: ReplyCheck({"passed": next(shares)}, []),
    )
    assert (trained.kept_step, trained.valid) == (4, {"passed": 0.9})
    assert sorted(p.name for p in tmp_path.glob("best*")) == ["best4"]


def test_an_evaluation_without_the_metric_is_neither_the_best_nor_the_goal(tmp_path: Path) -> None:
    """No reply had a stance, so there is no subtlety: not a 0, nor an end of the run."""
    measured = iter([{}, {"subtlety": 0.2}, {}, {"subtlety": 0.1}])
    phase = sft(
        steps=6,
        eval_every_steps=2,
        best=Best(metric="subtlety", direction="max"),
        until=Goal(metric="subtlety", at_most=0.05),
    )
    trained = run(
        adapted(),
        ConversationLoss(ROWS, Shortcuts(split_head=True)),
        phase,
        tmp_path,
        check_replies=lambda _: ReplyCheck(next(measured), []),
    )
    assert (trained.steps, trained.kept_step, trained.valid) == (6, 2, {"subtlety": 0.2})
