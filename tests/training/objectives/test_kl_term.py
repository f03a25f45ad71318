"""The term λ·KL: exact over the vocabulary, zero at the start, of the stated weight at every step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from support.models import ARCHITECTURES, tiny_model
from support.training import ALL, PAIRS, SPEC, ListLog, adapted, dpo, run

from forty2.errors import ModelError
from forty2.inference import logprobs
from forty2.inference.logprobs import (
    supported_shortcuts,
)
from forty2.model.adapter import attach_adapter
from forty2.model.initial_adapter import attach_initial_adapter
from forty2.model.surgery import body, head
from forty2.recipe.reading import load_recipe
from forty2.text.rows import RatedRow
from forty2.training.batched_loss import KlPenalty, PairLoss, RatedLoss, batched_loss
from forty2.training.batches import pair_batch
from forty2.training.evaluation import evaluate
from forty2.training.frozen_states import FrozenStates, frozen_states_size, store_states
from forty2.training.kl_divergence import supervised_logps_and_kl
from forty2.training.objectives.dpo import DpoPhase
from forty2.training.objectives.kl_term import KlKind, KlTerm
from forty2.training.objectives.kto import KtoPhase
from forty2.training.optimizers import make_optimizer
from forty2.training.reference import reference_logps
from forty2.training.reference_states import store_reference_states
from forty2.training.step import Stepper

Array = npt.NDArray[np.float64]
KINDS: tuple[KlKind, ...] = get_args(KlKind)


def log_softmax(logits: Any) -> Array:
    wide = np.asarray(logits.astype(mx.float32)).astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(-1, keepdims=True)))


def divergence(log_p: Array, log_q: Array, kind: KlKind) -> Array:
    if kind == "reverse":
        return np.asarray((np.exp(log_p) * (log_p - log_q)).sum(-1))
    if kind == "forward":
        return divergence(log_q, log_p, "reverse")
    middle = np.logaddexp(log_p, log_q) - math.log(2)
    halves = (divergence(one, middle, "reverse") for one in (log_p, log_q))
    return np.asarray(0.5 * sum(halves))


def moved(model: Any, by: float = 0.3) -> Any:
    model.model.layers[1].self_attn.q_proj.lora_b += by
    return model


def pair_loss(model: Any, folder: Path, term: KlTerm | None, frozen: Any = None) -> PairLoss:
    shortcuts = supported_shortcuts(model)
    reference = reference_logps(model, PAIRS, ALL, folder / "reference.npz", shortcuts=shortcuts)
    kl = None
    if term is not None:
        path = folder / "reference.states"
        states = store_reference_states(model, PAIRS, ALL, path, shortcuts=shortcuts, frozen=frozen)
        kl = KlPenalty(term, states)
    return PairLoss(PAIRS, reference, dpo(kl=term), shortcuts, frozen, kl)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_value_and_gradient_are_those_of_the_full_logits_in_float64(
    architecture: str, kind: KlKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(architecture)
    model.train()
    ids = mx.array([[5, 6, 7, 8, 9, 11, 2], [3, 1, 4, 1, 5, 9, 2]])
    targets, where = ids[:, 1:], mx.array([0, 3, 4, 7, 11, -1])
    states = body(model, ids[:, :-1])
    reference = states + 0.3 * mx.random.normal(states.shape)
    weights = mx.array([1.0, -2.0, 0.5, 3.0, 1.5, 7.0])

    def weighted(states: mx.array, of_logps: float, of_kl: float) -> mx.array:
        logps, kl = supervised_logps_and_kl(model, states, reference, targets, where, kind)
        return (weights * (of_logps * logps + of_kl * kl)).sum()

    monkeypatch.setattr(logprobs, "HEAD_CPU", 300 * 4)  # two positions at once
    logps, kl = supervised_logps_and_kl(model, states, reference, targets, where, kind)
    at = np.asarray(where)[:-1]
    log_p, log_q = (log_softmax(head(model, s)).reshape(12, -1)[at] for s in (states, reference))
    np.testing.assert_allclose(np.asarray(kl)[:-1], divergence(log_p, log_q, kind), atol=1e-5)
    np.testing.assert_allclose(
        np.asarray(logps)[:-1], log_p[range(5), np.asarray(targets).reshape(-1)[at]], atol=1e-5
    )
    assert float(kl[-1]) == float(logps[-1]) == 0

    found = np.asarray(mx.grad(lambda s: weighted(s, 0.7, 2.0))(states))
    # mlx differentiates the plain formula through the whole head
    plain = np.asarray(
        mx.grad(lambda s: plain_weighted(model, s, reference, kind, 0.7, 2.0))(states)
    )
    assert np.abs(plain).max() > 1e-2
    np.testing.assert_allclose(found, plain, rtol=1e-3, atol=1e-5)


def plain_weighted(
    model: Any, states: mx.array, reference: mx.array, kind: KlKind, of_logps: float, of_kl: float
) -> mx.array:
    """The same sum from all logits, as the formulas read."""
    targets, at = mx.array([6, 9, 11, 4, 2]), mx.array([0, 3, 4, 7, 11])
    weights = mx.array([1.0, -2.0, 0.5, 3.0, 1.5])
    log_p, log_q = (
        logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        for logits in (head(model, s).reshape(12, -1)[at] for s in (states, reference))
    )
    middle = mx.logaddexp(log_p, log_q) - math.log(2)

    def kl(one: mx.array, other: mx.array) -> mx.array:
        return (mx.exp(one) * (one - other)).sum(axis=-1)

    found = {
        "reverse": lambda: kl(log_p, log_q),
        "forward": lambda: kl(log_q, log_p),
        "js": lambda: 0.5 * (kl(log_p, middle) + kl(log_q, middle)),
    }[kind]()
    logps = mx.take_along_axis(log_p, targets[:, None], axis=-1).squeeze(-1)
    return (weights * (of_logps * logps + of_kl * found)).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_that_is_its_reference_pays_nothing(kind: KlKind, tmp_path: Path) -> None:
    model = adapted()
    loss = pair_loss(model, tmp_path, KlTerm(weight=50.0, kind=kind))
    loss.check_start(model, loss.batch(ALL), tolerance=1e-4)
    assert evaluate(model, loss)["kl_term"] == pytest.approx(0.0, abs=1e-6)
    assert evaluate(moved(model), loss)["kl_term"] > 1e-3


def test_the_loss_is_dpo_plus_weighted_nats_a_token(tmp_path: Path) -> None:
    model = adapted()
    plain = pair_loss(model, tmp_path, None)
    with_kl = pair_loss(model, tmp_path, KlTerm(weight=3.0))
    reference = {}
    for side in (0, 1):
        for n, row in enumerate(PAIRS):
            reference[n, side] = log_softmax(
                model(mx.array([[*row.prompt, *row.responses[side]]]))[0, len(row.prompt) - 1 : -1]
            )
    moved(model)
    expected = 0.0
    for (n, side), log_q in reference.items():
        row = PAIRS[n]
        ids = mx.array([[*row.prompt, *row.responses[side]]])
        log_p = log_softmax(model(ids)[0, len(row.prompt) - 1 : -1])
        expected += 0.5 * divergence(log_p, log_q, "reverse").mean() / len(PAIRS)
    one, other = evaluate(model, plain), evaluate(model, with_kl)
    assert other["kl_term"] == pytest.approx(expected, rel=1e-4)
    assert other["loss"] - one["loss"] == pytest.approx(3 * expected, rel=1e-4)


def test_stored_states_of_frozen_blocks_change_nothing(tmp_path: Path) -> None:
    model = adapted()
    size = frozen_states_size(model, PAIRS, ALL)
    frozen = store_states(model, PAIRS, ALL, size, tmp_path / "frozen.states")
    term = KlTerm(weight=3.0)
    losses = []
    for name, states in (("without", None), ("with", frozen)):
        folder = tmp_path / name
        folder.mkdir()
        losses.append(pair_loss(model, folder, term, states))
    moved(model)
    one, other = (evaluate(model, loss) for loss in losses)
    assert one == pytest.approx(other, rel=1e-4)


def test_the_reference_is_computed_from_stored_states_of_frozen_blocks(tmp_path: Path) -> None:
    """So what is below them, here without any effect left, is not run again."""
    model, shortcuts = adapted(), supported_shortcuts(adapted())
    frozen = store_states(
        model, PAIRS, ALL, frozen_states_size(model, PAIRS, ALL), tmp_path / "frozen"
    )
    told: list[tuple[str, int, int]] = []

    def stored(name: str, states: FrozenStates | None) -> Any:
        store_reference_states(
            model,
            PAIRS,
            ALL,
            tmp_path / name,
            shortcuts=shortcuts,
            frozen=states,
            progress=lambda *said: told.append(said[:3]),
        )
        return np.fromfile(tmp_path / name, np.float32)

    whole = stored("whole", None)
    model.model.embed_tokens.weight *= 0
    np.testing.assert_allclose(stored("replayed", frozen), whole, atol=1e-4)
    assert np.abs(stored("broken", None) - whole).max() > 0.1
    assert told[-1] == ("reference states", len(PAIRS), len(PAIRS))
    assert all(0 < done <= total for _, done, total in told)


def test_rated_responses_pay_for_their_own_response_alone(tmp_path: Path) -> None:
    model, term = adapted(), KlTerm(weight=2.0)
    rows = [
        RatedRow(row.prompt, row.chosen, row.rejected, n % 2 > 0, row.origin)
        for n, row in enumerate(PAIRS)
    ]
    shortcuts = supported_shortcuts(model)
    reference = reference_logps(model, rows, ALL, tmp_path / "reference.npz")
    states = store_reference_states(model, rows, ALL, tmp_path / "states", shortcuts=shortcuts)
    phase = KtoPhase(objective="kto", data="x", steps=6, lr=1e-2, beta=0.3)
    plain = RatedLoss(rows, reference, phase, shortcuts)
    with_kl = RatedLoss(rows, reference, phase, shortcuts, None, KlPenalty(term, states))
    pairs = PairLoss(PAIRS, reference, dpo(), shortcuts, None, KlPenalty(term, states))
    moved(model)
    one, other = evaluate(model, plain), evaluate(model, with_kl)
    assert other["loss"] - one["loss"] == pytest.approx(2 * other["kl_term"], rel=1e-4)
    batch = pairs.batch(ALL)
    kl = pairs.logps(model, pairs.arrays(batch)).kl
    assert kl is not None
    assert other["kl_term"] == pytest.approx(float(kl[: len(PAIRS)].mean()), rel=1e-4)


@pytest.mark.parametrize(
    ("schedule", "half"), [("linear", 0.1), ("cosine", 0.1), ("constant", 0.05)]
)
def test_the_weight_goes_from_its_first_value_to_its_last(schedule: Any, half: float) -> None:
    to = None if schedule == "constant" else 0.15
    term = KlTerm(weight=0.05, schedule=schedule, to=to)
    assert [term.at(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.05, half, to or 0.05])
    assert (term.at(0.25) < 0.075) == (schedule != "linear")


@pytest.mark.parametrize("rated", [False, True])
def test_evaluations_are_judged_by_the_last_weight(rated: bool, tmp_path: Path) -> None:
    """And so is a step that is not told how much of the phase is done."""
    model, term = adapted(), KlTerm(weight=0.0, schedule="linear", to=10.0)
    shortcuts = supported_shortcuts(model)
    rows: Any = PAIRS
    phase: DpoPhase | KtoPhase = dpo(kl=term)
    if rated:
        rows = [
            RatedRow(row.prompt, row.chosen, row.rejected, n % 2 > 0, row.origin)
            for n, row in enumerate(PAIRS)
        ]
        phase = KtoPhase(objective="kto", data="x", steps=6, lr=1e-2, beta=0.3, kl=term)
    reference = reference_logps(model, rows, ALL, tmp_path / "reference.npz")
    states = store_reference_states(model, rows, ALL, tmp_path / "states", shortcuts=shortcuts)
    plain, loss = (
        batched_loss(phase, rows, reference, shortcuts, None, kl)
        for kl in (None, KlPenalty(term, states))
    )
    moved(model)
    before, found = evaluate(model, plain)["loss"], evaluate(model, loss)
    assert found["loss"] - before == pytest.approx(10 * found["kl_term"], rel=1e-3)
    stepper = Stepper(model, make_optimizer(phase), loss, phase)
    batch = [loss.batch(ALL)]
    assert stepper.step(batch, 0.0).loss == pytest.approx(found["loss"], rel=1e-4)
    half = stepper.step(batch, 0.0, progress=0.5).loss
    assert half - before == pytest.approx(5 * found["kl_term"], rel=1e-3)


@pytest.mark.slow
def test_a_compiled_step_reads_the_weight_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "forty2.training.step._compiled",
        lambda f, state: mx.compile(f, inputs=state, outputs=state),
    )
    model = adapted()
    term = KlTerm(weight=0.0, schedule="linear", to=10.0)
    loss = pair_loss(model, tmp_path, term)
    moved(model)
    stepper = Stepper(model, make_optimizer(loss.phase), loss, loss.phase)
    first, last = (
        stepper.step([loss.batch(ALL)], 0.0, progress=progress) for progress in (0.0, 1.0)
    )
    kl = first.metrics["kl_term"]
    assert kl > 1e-3 and last.loss - first.loss == pytest.approx(10 * kl, rel=1e-3)


def test_a_larger_weight_keeps_the_policy_closer(tmp_path: Path) -> None:
    ends = []
    for n, weight in enumerate((0.0, 20.0)):
        model, folder = adapted(), tmp_path / str(n)
        folder.mkdir()
        term = KlTerm(weight=weight)
        loss = pair_loss(model, folder, term)
        log = ListLog()
        run(model, loss, dpo(kl=term, steps=12, batch_size=12), folder / "work", log)
        ends.append(log.records[-1]["kl_term"])
    assert ends[1] < 0.5 * ends[0]


def test_states_that_are_stored_whole_are_read_and_not_computed(tmp_path: Path) -> None:
    model, shortcuts = adapted(), supported_shortcuts(adapted())
    path = tmp_path / "states"
    calls: list[Any] = []
    store_reference_states(
        model, PAIRS, ALL, path, shortcuts=shortcuts, progress=lambda *call: calls.append(call)
    )
    assert calls[-1] == ("reference states", len(PAIRS), len(PAIRS), {})
    before = path.read_bytes()
    moved(model)
    store_reference_states(model, PAIRS, ALL, path, shortcuts=shortcuts)
    assert path.read_bytes() == before
    path.write_bytes(before[:-1])
    states = store_reference_states(adapted(), PAIRS, ALL, path, shortcuts=shortcuts)
    assert path.read_bytes() == before
    batch = pair_batch(PAIRS[2:5], range(2, 5))
    assert states.of_pairs(batch, (1,)).shape == (6, *batch.targets.shape[1:], 32)


def test_a_head_that_is_trained_is_refused_before_anything_runs() -> None:
    recipe = load_recipe(
        {
            "version": 1,
            "name": "x",
            "model": "smollm2",
            "adapter": {"keys": ["self_attn.q_proj", "model.embed_tokens"]},
            "phases": {
                "dpo": {
                    "objective": "dpo",
                    "data": "builtin:spark",
                    "steps": 1,
                    "lr": 1e-4,
                    "beta": 0.1,
                    "kl": {"weight": 0.1},
                }
            },
        }
    )
    with pytest.raises(ModelError, match=r"phases\.dpo\.kl: .* name only layers of the blocks"):
        attach_initial_adapter(tiny_model(), recipe, seed=0)


@pytest.mark.slow
def test_a_vocabulary_of_200064_takes_little_more_memory_than_dpo(tmp_path: Path) -> None:
    from support.processes import run_function

    without, with_kl = (
        int(run_function(_peak_of_a_step, tmp_path / name, weight).split()[-1])
        for name, weight in (("dpo", 0), ("kl", 1))
    )
    assert with_kl < 1.2 * without, (without, with_kl)


def _peak_of_a_step(folder: str, weight: int) -> None:
    """Print the peak memory of one step, in bytes, with or without the term."""
    import mlx.core as mx

    Path(folder).mkdir()
    model = tiny_model(vocab_size=200_064, hidden_size=256)
    attach_adapter(model, SPEC, seed=1)
    term = KlTerm(weight=0.1) if weight else None
    loss = pair_loss(model, Path(folder), term)
    model.train()
    stepper = Stepper(model, make_optimizer(loss.phase), loss, loss.phase)
    mx.reset_peak_memory()
    stepper.step([loss.batch(ALL)], 1e-3)
    print(mx.get_peak_memory())
