"""Red lines: seen when they are crossed, silent when they are not, and what a recipe does of them."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from support.training import ROWS, adapted, run, sft

from forty2.errors import TrainingError
from forty2.inference.logprobs import Shortcuts
from forty2.model.adapter import adapter_weights
from forty2.training.batched_loss import ConversationLoss
from forty2.training.checkpoints import checkpoints
from forty2.training.loop import ReplyCheck, Stepper, make_optimizer
from forty2.training.objectives.phase import Best, Goal, RedLines
from forty2.training.red_lines import IDLE, WINDOW, Red, RedLineMonitor

RNG = np.random.default_rng(5)


def watch(*losses: float) -> RedLineMonitor:
    watch = RedLineMonitor()
    for loss in losses:
        watch.taken(loss, 1.0, uninformed_loss=math.inf)
    return watch


# --- what is red, and what is not -----------------------------------------------------------------


@pytest.mark.parametrize("loss, norm", [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan)])
def test_a_figure_that_is_no_number_is_red(loss: float, norm: float) -> None:
    red = RedLineMonitor().step(loss, norm, math.inf)
    assert red is not None and red.line == "not_finite"


def test_a_leap_is_red_once_there_is_something_to_compare_with() -> None:
    assert watch(2.0).limit() == math.inf
    smooth = watch(*RNG.normal(2.0, 0.01, WINDOW))
    assert 2.9 < smooth.limit() < 3.1 and 2.4 < smooth.limit(0.5) < 2.6
    rough = watch(*RNG.normal(2.0, 0.3, WINDOW)).limit()
    assert 3.3 < rough < 4.5
    red = smooth.step(rough + 0.1, 1.0, rough)
    assert red is not None and red.line == "spike" and "beyond" in red.what
    assert smooth.step(rough, 1.0, rough) is None


def test_the_losses_of_healthy_runs_are_silent() -> None:
    steps = np.arange(2000)
    for curve in (
        3.0 * np.exp(-steps / 300) + 1.0 + RNG.gamma(4.0, 0.1, 2000),  # falling, a long tail
        2.0 + RNG.normal(0, 0.5, 2000),  # slow: it learns nothing to speak of
        np.abs(RNG.normal(0, 0.02, 2000)),  # saturated preferences
        0.69 + RNG.normal(0, 1e-4, 2000),  # a tiny rate
    ):
        healthy = RedLineMonitor()
        for loss in curve:
            assert healthy.step(loss, 0.1, healthy.limit()) is None
            assert healthy.taken(loss, 0.1, uninformed_loss=10.0) is None


def test_nothing_learned_is_red_once() -> None:
    idle = RedLineMonitor()
    reds = [idle.taken(2.0, 0.0, uninformed_loss=10.0) for _ in range(3 * IDLE)]
    assert [n for n, red in enumerate(reds) if red is not None] == [IDLE - 1]
    satisfied = RedLineMonitor()  # every pair beyond a hinge: no gradient, and none needed
    assert not any(satisfied.taken(0.0, 0.0, uninformed_loss=10.0) for _ in range(3 * IDLE))


def test_a_loss_as_of_a_guess_is_red_once() -> None:
    lost = RedLineMonitor()
    reds = [lost.taken(10.4, 1.0, uninformed_loss=10.0) for _ in range(2 * WINDOW)]
    assert [n for n, red in enumerate(reds) if red is not None] == [WINDOW - 1]


@pytest.mark.parametrize(
    "losses, red",
    [
        ([1.0, 1.1, 1.2], True),
        ([1.0, 0.9, 0.95, 1.0], True),
        ([1.0, 1.1, 1.05, 1.1], False),  # not in a row
        ([0.690, 0.691, 0.692], False),  # noise
        ([1.0, 0.9, 0.8], False),
    ],
)
def test_two_rises_of_the_validation_loss_are_red(losses: list[float], red: bool) -> None:
    judged = watch(1.0)
    reds = [judged.evaluation(loss) for loss in losses]
    assert bool(reds[-1]) is red
    assert not any(reds[:-1])


def test_a_validation_loss_far_above_the_training_loss_is_red() -> None:
    (red,) = watch(*[0.2] * 30).evaluation(1.3)
    assert red == Red("validation", "validation loss is 1.3, training loss 0.2: it memorises")
    assert not watch(*[0.2] * 30).evaluation(0.9)
    assert not watch(*[0.001] * 30).evaluation(0.2)  # five times nothing is nothing
    assert not RedLineMonitor().evaluation(9.0)  # nothing trained yet


# --- what is done -----------------------------------------------------------------------------------


def poisoned(at: int, value: float = math.nan, times: int = 1) -> Any:
    """An objective whose batches give this loss, from the `at`-th on, so many times."""

    class Poisoned(ConversationLoss):
        drawn = 0

        def loss(self, model: Any, arrays: Any) -> Any:
            plain = super().loss(model, arrays)
            if model.training:
                self.drawn += 1
                if at <= self.drawn < at + times:
                    return plain._replace(
                        total=plain.total * value, metrics={"loss": plain.total * value}
                    )
            return plain

    return Poisoned(ROWS, Shortcuts(split_head=True))


def red_lines(**actions: str) -> Any:
    return RedLines(**actions)  # type: ignore[arg-type]


def values(model: Any) -> list[np.ndarray]:
    return [np.asarray(value) for value in adapter_weights(model).values()]


@pytest.mark.parametrize("value", [math.nan, math.inf, 9.0])
def test_a_step_beyond_the_limit_changes_nothing(value: float) -> None:
    model, objective = adapted(), poisoned(2, value)
    phase = sft(optimizer="adamw")
    optimizer = make_optimizer(phase)
    model.train()
    stepper = Stepper(model, optimizer, objective, phase)
    batch = [objective.batch(range(12))]
    stepper.step(batch, 1e-2)
    moments = optimizer.state["model"]["layers"][1]["self_attn"]["q_proj"]["lora_a"]
    before = [*values(model), np.asarray(moments["m"]), np.asarray(optimizer.state["step"])]
    stepper.step(batch, 1e-2, limit=20.0)
    after = [*values(model), np.asarray(moments["m"]), np.asarray(optimizer.state["step"])]
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)
    stepper.step(batch, 1e-2, limit=20.0)
    assert int(optimizer.state["step"]) == 2


@pytest.mark.skipif(not shutil.which("c++"), reason="mlx compiles for the CPU with a C++ compiler")
def test_a_compiled_step_is_the_plain_one_even_when_it_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on Metal, where every step is compiled."""

    def losses(device: mx.Device) -> list[Any]:
        model, objective, phase = (
            adapted(0.1),
            ConversationLoss(ROWS, Shortcuts(split_head=True)),
            sft(),
        )
        model.train()
        optimizer = make_optimizer(phase)
        with monkeypatch.context() as patch:
            patch.setattr(mx, "default_device", lambda: device)
            stepper = Stepper(model, optimizer, objective, phase)
        seen = []
        for step, limit in enumerate((math.inf, math.inf, 0.1, math.inf)):
            mx.random.seed(step)
            taken = stepper.step([objective.batch(range(12))], 1e-2, limit)
            seen.append((taken.loss, taken.norm, int(optimizer.state["step"])))
        return [*seen, *values(model)]

    plain, compiled = losses(mx.Device(mx.cpu)), losses(mx.Device(mx.gpu))
    assert [step for _, _, step in plain[:4]] == [1, 2, 2, 3]
    for one, other in zip(plain, compiled, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_stop_names_step_and_rows_and_saves_what_was_good(tmp_path: Path) -> None:
    model, clean = adapted(), adapted()
    with pytest.raises(
        TrainingError,
        match=r"p, step 5: the loss is not finite on rows sft\.jsonl:\d+, .*"
        r"; step 4 is saved in .*; in another --run-dir, lower phases.p.lr",
    ) as error:
        run(model, poisoned(5), sft(steps=9), tmp_path / "red", [])
    assert "\n" not in str(error.value)
    newest = checkpoints(tmp_path / "red")[0]
    assert json.loads((newest / "state.json").read_text())["step"] == 4
    run(clean, poisoned(99), sft(steps=4), tmp_path / "clean", [])
    for a, b in zip(values(model), values(clean), strict=True):
        np.testing.assert_array_equal(a, b)


def test_skip_leaves_the_step_out_and_says_so(tmp_path: Path) -> None:
    log: list[Any] = []
    phase = sft(steps=8, red_lines=red_lines(not_finite="skip"))
    trained = run(adapted(), poisoned(3, times=2), phase, tmp_path, log)
    assert trained.steps == 8 and math.isfinite(trained.metrics["loss"])
    told = [(r["step"], r["red_line"]) for r in log if "warning" in r]
    assert told == [(3, "not_finite"), (4, "not_finite")]
    assert [r["step"] for r in log if "loss" in r] == [1, 2, 5, 6, 7, 8]
    assert all("sft.jsonl" in r["warning"] for r in log if "warning" in r)


def test_skipping_everything_ends_the_phase(tmp_path: Path) -> None:
    phase = sft(steps=90, red_lines=red_lines(not_finite="skip"))
    with pytest.raises(TrainingError, match=f"{IDLE} steps in a row are left out"):
        run(adapted(), poisoned(3, times=99), phase, tmp_path, [])


def test_a_spike_that_is_told_of_is_taken_and_one_that_is_skipped_is_not(tmp_path: Path) -> None:
    ends = {}
    for action in ("warn", "skip"):
        log: list[Any] = []
        model = adapted()
        phase = sft(steps=WINDOW // 4 + 3, lr=1e-3, red_lines=red_lines(spike=action))
        run(model, poisoned(WINDOW // 4 + 2, 9.0), phase, tmp_path / action, log)
        (told,) = [r for r in log if "warning" in r]
        assert told["red_line"] == "spike" and told["step"] == WINDOW // 4 + 2
        ends[action] = values(model)
    assert any((a != b).any() for a, b in zip(ends["warn"], ends["skip"], strict=True))


def test_back_goes_on_from_the_last_checkpoint_at_half_the_rate(tmp_path: Path) -> None:
    log: list[Any] = []
    rewound: list[int] = []

    def rewind(step: int) -> None:
        rewound.append(step)
        log[:] = [r for r in log if r["step"] <= step]

    phase = sft(steps=8, lr=1e-2, save_every_steps=3, red_lines=red_lines(not_finite="back"))
    run(adapted(), poisoned(5), phase, tmp_path, log, rewind=rewind)
    assert rewound == [-1, 3]
    rates = {r["step"]: r["lr"] for r in log if "lr" in r}
    assert [rates[n] for n in range(1, 9)] == [1e-2] * 3 + [5e-3] * 5
    (told,) = [r for r in log if "warning" in r]
    assert told["step"] == 4
    assert "step 5: the loss is not finite" in told["warning"]
    assert "went back to the checkpoint of step 3, now at 0.5 lr" in told["warning"]


def test_back_before_the_first_checkpoint_goes_to_the_start(tmp_path: Path) -> None:
    rewound: list[int] = []
    phase = sft(steps=4, save_every_steps=4, red_lines=red_lines(not_finite="back"))
    run(adapted(), poisoned(2), phase, tmp_path, [], rewind=rewound.append)
    assert rewound == [-1, 0]


def test_going_back_ends_after_three_times(tmp_path: Path) -> None:
    class Broken(ConversationLoss):
        def loss(self, model: Any, arrays: Any) -> Any:
            plain = super().loss(model, arrays)
            return plain._replace(total=plain.total * math.nan)

    rewound: list[int] = []
    phase = sft(steps=4, red_lines=red_lines(not_finite="back"))
    broken = Broken(ROWS, Shortcuts(split_head=True))
    with pytest.raises(TrainingError, match="the loss is not finite"):
        run(adapted(), broken, phase, tmp_path, [], rewind=rewound.append)
    assert rewound == [-1, 0, 0, 0]


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

        log: list[Any] = []

        def rewind(step: int) -> None:
            log[:] = [r for r in log if r["step"] <= step]

        seen = 0

        def progress(_: str, done: int, total: int, info: Any) -> None:
            nonlocal seen
            seen += 1
            if seen == stop_at:
                raise Stop

        model = adapted(moved=False)
        try:
            run(
                model,
                Cliff(ROWS, Shortcuts(split_head=True)),
                phase,
                work,
                log,
                rewind=rewind,
                progress=progress,
            )
        except Stop:
            model = adapted(moved=False)
            run(model, Cliff(ROWS, Shortcuts(split_head=True)), phase, work, log, rewind=rewind)
        timed = ("tokens_per_s", "peak_memory_gb")
        return values(model), [{k: v for k, v in r.items() if k not in timed} for r in log]

    wanted, told = go(tmp_path / "whole", None)
    backs = [r for r in told if "warning" in r]
    assert backs, "the cliff was never reached"
    for stop_at in range(2, 14):
        got, log = go(tmp_path / str(stop_at), stop_at)
        assert log == told, stop_at
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
    with pytest.raises(TrainingError, match=r"p, step \d+: validation loss.*; --resume goes on"):
        run(
            adapted(),
            objective,
            phase,
            tmp_path,
            [],
            valid=ConversationLoss(others, Shortcuts(split_head=True)),
        )
    assert checkpoints(tmp_path)


def test_faulty_replies_are_told_of_and_only_those_after_training_are_acted_upon(
    tmp_path: Path,
) -> None:
    answers = iter([ReplyCheck({"passed": 0.5}, ["the same reply"])] * 9)
    log: list[Any] = []
    phase = sft(steps=4, eval_every_steps=2, red_lines=red_lines(replies="stop"))
    with pytest.raises(TrainingError, match="p, step 2: the same reply"):
        run(
            adapted(),
            ConversationLoss(ROWS, Shortcuts(split_head=True)),
            phase,
            tmp_path,
            log,
            ask=lambda: next(answers),
        )
    assert log[0] == {"phase": "p", "step": 0, "valid_passed": 0.5}
    assert (log[1]["red_line"], log[1]["warning"]) == (
        "replies",
        "p, before training: the same reply",
    )


def test_a_phase_ends_when_its_goal_is_reached(tmp_path: Path) -> None:
    objective = ConversationLoss(ROWS, Shortcuts(split_head=True))
    log: list[Any] = []
    phase = sft(steps=60, lr=3e-2, eval_every_steps=2, until=Goal(metric="loss", at_most=5.0))
    trained = run(adapted(), objective, phase, tmp_path, log, valid=objective)
    losses = [(r["step"], r["valid_loss"]) for r in log if "valid_loss" in r]
    assert losses[0][1] > 5.0 and all(loss > 5.0 for _, loss in losses[:-1])
    assert losses[-1][1] <= 5.0 and trained.steps == losses[-1][0] < 60


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
    trained = run(whole, objective, phase, tmp_path, [], valid=objective)
    assert run(again, objective, phase, tmp_path, [], valid=objective) == trained
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
        [],
        ask=lambda: ReplyCheck({"passed": next(shares)}, []),
    )
    assert (trained.kept_step, trained.valid) == (4, {"passed": 0.9})
    assert sorted(p.name for p in tmp_path.glob("best*")) == ["best4"]
