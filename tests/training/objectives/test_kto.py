"""KTO: the paper's loss, its drift known before the first gradient, and what training with it does."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from chaos import make_inputs
from click.testing import CliRunner
from mlx.utils import tree_flatten
from support.models import ARCHITECTURES, tiny_model
from support.runs import short_checks
from support.training import run

from forty2.cli import main
from forty2.data.build import build
from forty2.data.checks.lint import lint
from forty2.data.formats import read_rated
from forty2.data.record_texts import text_of
from forty2.errors import DataError, RecipeError, TrainingError
from forty2.inference.logprobs import (
    NO_SHORTCUTS,
    Shortcuts,
    pair_arrays,
    response_logps,
    supported_shortcuts,
)
from forty2.model.adapter import attach_adapter
from forty2.model.gradient_checkpointing import checkpoint_gradients
from forty2.recipe.reading import load_recipe
from forty2.recipe.schema import Adapter
from forty2.text.rows import PairRow, RatedRow, add_mismatched_responses, fit_rows
from forty2.training.batched_loss import RatedLoss, micro_batches
from forty2.training.batches import BOTH, lengths_of, parts_of
from forty2.training.evaluation import evaluate
from forty2.training.frozen_states import FrozenStates, frozen_states_size, store_states
from forty2.training.losses import kto_loss
from forty2.training.objectives.kto import KtoPhase
from forty2.training.optimizers import make_optimizer
from forty2.training.processes import ALONE
from forty2.training.reference import reference_logps
from forty2.training.step import Stepper

RNG = np.random.default_rng(7)
SPEC = Adapter(rank=4, scale=4.0, layers=2)


def ids(length: int) -> list[int]:
    return [int(i) for i in RNG.integers(1, 300, length)]


ROWS = add_mismatched_responses(
    [
        RatedRow(ids(1 + n % 7), ids(1 + n * 5 % 11), [], n % 3 > 0, f"rated.jsonl:{n + 1}")
        for n in range(12)
    ],
    64,
)
ALL = range(len(ROWS))


def kto(**changes: Any) -> KtoPhase:
    settings = {"objective": "kto", "data": "x", "steps": 6, "lr": 1e-2, "beta": 0.3, **changes}
    return KtoPhase(**settings)


PHASE = kto(desirable_weight=1.5, undesirable_weight=0.75, clip_norm=None)


def adapted(architecture: str = "llama", dropout: float = 0.0) -> Any:
    model = tiny_model(architecture)
    attach_adapter(model, replace(SPEC, dropout=dropout), seed=1)
    return model


def move(model: Any) -> None:
    """Away from the reference."""
    mx.random.seed(5)
    for name, value in tree_flatten(model.trainable_parameters()):
        if name.endswith("lora_b"):
            model.load_weights([(name, mx.random.normal(value.shape) * 0.1)], strict=False)


def objective_of(
    model: Any, tmp_path: Path, *, by: Shortcuts | None = None, replay: FrozenStates | None = None
) -> RatedLoss:
    """Against the model as it stands."""
    model.eval()
    allowed = by or supported_shortcuts(model)
    logps = reference_logps(
        model, ROWS, ALL, tmp_path / "ref.npz", shortcuts=allowed, frozen=replay
    )
    return RatedLoss(ROWS, logps, PHASE, allowed, replay)


def drifted(objective: RatedLoss) -> RatedLoss:
    """As if every token had become likelier by a nat."""
    objective.reference = {i: logps - 1 for i, logps in (objective.reference or {}).items()}
    return objective


def plain_logp(model: Any, prompt: list[int], response: list[int]) -> float:
    """One unpadded row, log-softmax in float64."""
    whole = [*prompt, *response]
    logits = np.array(model(mx.array([whole[:-1]]))[0], np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    logps = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return math.fsum(logps[at - 1, whole[at]] for at in range(len(prompt), len(whole)))


def learned(model: Any, objective: RatedLoss, *parts: Any) -> tuple[float, dict[str, Any]]:
    """Mean loss and its gradient, through the stepper's own accumulation."""
    caught: dict[str, Any] = {}
    optimizer: Any = make_optimizer(PHASE)
    optimizer.update = lambda _, g: caught.update({k: np.asarray(v) for k, v in tree_flatten(g)})
    model.train()
    batches: list[Any] = [objective.batch(part) for part in parts]
    step = Stepper(model, optimizer, objective, PHASE).step(batches, 1e-3)
    return step.loss, caught


def assert_same(one: tuple[float, Any], other: tuple[float, Any]) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    assert other[1]
    for name, value in other[1].items():
        close = 1e-4 * np.abs(value).max()
        np.testing.assert_allclose(one[1][name], value, rtol=1e-4, atol=close, err_msg=name)


# --- the loss ---


def test_the_loss_is_the_papers_value_function() -> None:
    """λ_y - v: v = λ_D σ(β (r - z0)) where desirable, λ_U σ(β (z0 - r)) where not (eq. 8)."""
    policy, reference = np.array([-3.0, -8.0, -3.0, -8.0]), np.array([-5.0, -5.0, -5.0, -5.0])
    desirable, beta, z0 = np.array([True, True, False, False]), 0.4, 0.7
    sigmoid = 1 / (1 + np.exp(-beta * (policy - reference - z0) * np.where(desirable, 1, -1)))
    weight = np.where(desirable, 2.0, 0.5)
    found = kto_loss(
        mx.array(policy),
        mx.array(reference),
        mx.array(desirable),
        mx.array(z0),
        beta=beta,
        desirable_weight=2.0,
        undesirable_weight=0.5,
    )
    np.testing.assert_allclose(np.asarray(found), weight * (1 - sigmoid), rtol=1e-6)


def test_losses_far_out_are_finite_and_so_are_their_slopes() -> None:
    far = mx.array([1e4, -1e4, 1e4, -1e4])
    verdicts = mx.array([True, True, False, False])

    def total(policy: mx.array) -> mx.array:
        zero = mx.zeros(4)
        return kto_loss(policy, zero, verdicts, mx.array(0.0), beta=0.5).sum()

    value, slopes = mx.value_and_grad(total)(far)
    assert float(value) == 2.0 and mx.isfinite(slopes).all()


# --- rows ---


def test_each_response_has_one_to_another_prompt_beside_it() -> None:
    prompts = [[1], [1], [1], [2], [2], [3], [1]]
    rows = [RatedRow(p, [10 + n] * (1 + n), [], True, str(n)) for n, p in enumerate(prompts)]
    found = add_mismatched_responses(rows, 5)
    assert found == add_mismatched_responses(rows, 5)
    for row, before in zip(found, rows, strict=True):
        assert row._replace(mismatched_response=[]) == before
        other = next(r for r in rows if r.response[0] == row.mismatched_response[0])
        assert other.prompt != row.prompt
        assert row.mismatched_response == other.response[: 5 - len(row.prompt)]
    with pytest.raises(DataError, match=r"^a:1: all rows that fit have this one prompt"):
        add_mismatched_responses(
            [RatedRow([1], [2], [], True, "a:1"), RatedRow([1], [3], [], False, "a:2")], 9
        )


def test_a_prompt_that_was_cut_is_no_other_prompt() -> None:
    """Of two answers to a long prompt the longer one leaves it less room."""
    long, short = list(range(100, 120)), [7, 8]
    rows = [
        RatedRow(long, [1] * 5, [], True, "a:1"),
        RatedRow(long, [2] * 12, [], False, "a:1"),
        RatedRow(short, [3] * 6, [], True, "a:2"),
    ]
    fitted = fit_rows(rows, 24).rows
    assert [len(row.prompt) for row in fitted] == [19, 12, 2]
    first, second, third = add_mismatched_responses(fitted, 24)
    assert set(first.mismatched_response) == set(second.mismatched_response) == {3}
    assert set(third.mismatched_response) < {1, 2}
    with pytest.raises(DataError, match="all rows that fit have this one prompt"):
        add_mismatched_responses(fitted[:2], 24)


def test_a_batch_counts_what_is_learned_from_and_groups_what_is_computed() -> None:
    row = RatedRow([1] * 4, [2] * 6, [3] * 9, True, "a:1")
    assert lengths_of([row]) == [10]
    assert lengths_of([PairRow([1] * 4, [2] * 6, [3] * 9, "a:1")]) == [19]
    assert parts_of([row]).tolist() == [[4, 9]]
    assert parts_of([row], both_responses=True).tolist() == [[4, 18]]


def test_a_pair_is_two_rated_responses(tmp_path: Path) -> None:
    file = tmp_path / "mixed.jsonl"
    rows = [
        {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
        {"prompt": "3 + 3?", "completion": "6", "label": True},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [(text_of(r.response), r.desirable, r.origin.rsplit(":")[-1]) for r in read_rated(file)]
    assert found == [("4", True, "1"), ("5", False, "1"), ("6", True, "2")]
    file.write_text('{"prompt": "Hi", "completion": "Hello"}\n')
    with pytest.raises(DataError, match=r"mixed\.jsonl:1: needs a label .* has prompt, completion"):
        read_rated(file)


# --- the objective ---


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_and_drift_are_those_of_whole_rows_alone(architecture: str, tmp_path: Path) -> None:
    model = adapted(architecture)
    objective = drifted(objective_of(model, tmp_path))
    before = [[plain_logp(model, r.prompt, s) for s in r.responses] for r in ROWS]
    move(model)
    after = [[plain_logp(model, r.prompt, s) for s in r.responses] for r in ROWS]
    tokens = np.array([[*map(len, r.responses)] for r in ROWS])
    ratios, drifts = (np.array(after) - np.array(before) + tokens).T
    z0 = drifts.mean()
    assert z0 > 0
    gain = PHASE.beta * (ratios - z0)
    desirable = np.array([row.desirable for row in ROWS])
    expected = np.where(desirable, 1.5 / (1 + np.exp(gain)), 0.75 / (1 + np.exp(-gain)))
    measured = evaluate(model, objective)
    assert measured["loss"] == pytest.approx(expected.mean(), rel=1e-5)
    assert measured["baseline"] == pytest.approx(z0, abs=1e-5)
    signed = np.where(desirable, gain, -gain)
    assert measured["accuracy"] == (signed > 0).mean()
    assert measured["margin"] == pytest.approx(signed.mean(), abs=1e-5)


def test_drift_below_zero_counts_as_none(tmp_path: Path) -> None:
    model = adapted()
    objective = objective_of(model, tmp_path)
    for by, expected in ((1.0, 0.0), (-1.0, 1.0)):
        objective.reference = {
            i: np.concatenate([logps[: len(ROWS[i].response)], others + by / len(others)])
            for i, logps in (objective.reference or {}).items()
            for others in [logps[len(ROWS[i].response) :]]
        }
        (z0,) = objective.step_arrays(model, [objective.batch(ALL)], ALONE)
        assert float(z0) == pytest.approx(expected, abs=1e-4)
        objective = objective_of(model, tmp_path)


@pytest.mark.parametrize("liked", [2, 8])
def test_ties_are_not_right_and_drift_alone_is_no_margin(liked: int, tmp_path: Path) -> None:
    """However rare a verdict is: a phase may choose its adapter by these."""
    model = adapted()
    rows = [RatedRow([n], ids(5), [], n <= liked, f"r:{n}") for n in range(1, 11)]
    rows = add_mismatched_responses(rows, 64)
    logps = reference_logps(model, rows, range(10), tmp_path / "ref.npz")
    objective = RatedLoss(rows, logps, PHASE)
    # The policy's own log-probabilities to the last bit, so computed in the same batches.
    objective.reference = {}
    for batch in micro_batches(objective, range(10)):
        indices = batch.rows.tolist()
        one, other = (
            np.asarray(
                response_logps(
                    model, pair_arrays(objective.batch_of_sides(indices, [side])), NO_SHORTCUTS
                )
            )
            for side in BOTH
        )
        rows_logps = np.concatenate([one, other], axis=1)
        objective.reference.update(zip(indices, rows_logps, strict=True))
    tied = evaluate(model, objective)
    assert tied["accuracy"] == 0.5 and tied["margin"] == tied["baseline"] == 0
    moved = evaluate(model, drifted(objective))
    assert moved["baseline"] == pytest.approx(5, abs=1e-4)
    assert moved["margin"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("checkpointed", [False, True])
def test_whatever_is_spared_the_gradients_are_the_same(
    architecture: str, checkpointed: bool, tmp_path: Path
) -> None:
    model = adapted(architecture)
    allowed = supported_shortcuts(model)
    (tmp_path / "plain").mkdir()
    plain = drifted(objective_of(model, tmp_path / "plain", by=Shortcuts()))
    spared = drifted(objective_of(model, tmp_path, by=allowed))
    replay = None
    if allowed.shared_prompts:
        replay = store_states(
            model, ROWS, ALL, frozen_states_size(model, ROWS, ALL), tmp_path / "states"
        )
    move(model)
    expected = learned(model, plain, ALL)
    checkpoint_gradients(model, checkpointed)
    assert_same(learned(model, spared, ALL), expected)
    if replay is not None:
        replayed = RatedLoss(ROWS, spared.reference, PHASE, allowed, replay)
        assert_same(learned(model, replayed, ALL), expected)


def test_parts_of_a_step_share_one_drift(tmp_path: Path) -> None:
    """However a step's rows are cut into batches, it is the step of one batch."""
    model = adapted()
    objective = drifted(objective_of(model, tmp_path))
    move(model)
    expected = learned(model, objective, ALL)
    assert_same(learned(model, objective, [0, 1], [2], range(3, 9), [9, 10, 11]), expected)
    assert_same(learned(model, objective, *([n] for n in ALL)), expected)


def test_drift_is_measured_without_dropout(tmp_path: Path) -> None:
    model = adapted(dropout=0.5)
    objective = drifted(objective_of(model, tmp_path))
    move(model)
    batch = objective.batch(ALL)
    (still,) = objective.step_arrays(model, [batch], ALONE)
    model.train()
    (training,) = objective.step_arrays(model, [batch], ALONE)
    assert model.training and float(training) == float(still) != 0


def test_a_reference_that_is_not_the_policy_is_refused(tmp_path: Path) -> None:
    model = adapted()
    objective = objective_of(model, tmp_path)
    batch = next(micro_batches(objective, ALL))
    objective.check_start(model, batch, tolerance=1e-4)
    drifted(objective)
    with pytest.raises(TrainingError, match=r"before the first step the kto loss is .*not this"):
        objective.check_start(model, batch, tolerance=1e-4)


# --- training ---


def test_training_tells_desirable_responses_from_others(tmp_path: Path) -> None:
    model = adapted()
    objective = objective_of(model, tmp_path)
    before = evaluate(model, objective)
    phase = kto(steps=40, batch_size=6, beta=0.1)
    run(model, objective, phase, tmp_path / "work", valid=objective)
    after = evaluate(model, objective)
    assert before["margin"] == 0 and after["margin"] > 0.5
    assert after["accuracy"] == 1 and after["loss"] < before["loss"] / 1.5


RECIPE = """
version: 1
name: rated
model: model
max_length: 96
adapter: {rank: 2, scale: 4.0, layers: 2}
phases:
  kto: {objective: kto, data: rated.jsonl, valid: dpo.jsonl, steps: 5, lr: 1.0e-2, batch_size: 4,
    accumulate: 2, beta: 0.1, save_every_steps: 2, best: {metric: accuracy, direction: max}}
fuse: null
benchmark: {tasks: [], held_out: false}
"""


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, pairs (`dpo.jsonl`), their sides as rated rows, and the recipe."""
    mx.random.seed(0)
    folder = make_inputs(tmp_path / "inputs")
    pairs = [json.loads(line) for line in (folder / "dpo.jsonl").read_text().splitlines()]
    rated = [
        {"prompt": pair["prompt"] + " Now.", "completion": pair[side], "label": side == "chosen"}
        for pair in pairs
        for side in ("chosen", "rejected")
    ]
    (folder / "rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rated))
    (folder / "rated.yaml").write_text(RECIPE)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FORTY2_CACHE", str(tmp_path / "cache"))
    return folder


def forty2(*arguments: str) -> Any:
    return CliRunner().invoke(main, arguments)


def test_a_recipe_trains_on_rated_rows_and_on_pairs(inputs: Path) -> None:
    planned = forty2("plan", "--quick", "rated.yaml")
    assert planned.exit_code == 0, planned.output
    assert ["kto", "kto", "12", "12"] in [line.split()[:4] for line in planned.output.splitlines()]
    ran = forty2("run", "rated.yaml", "--run-dir", "run")
    assert ran.exit_code == 0, ran.output
    lines = (inputs / "run" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    steps = [record for record in records if "grad_norm" in record]
    valid = [record for record in records if "valid_loss" in record]
    assert [record["step"] for record in steps] == [1, 2, 3, 4, 5]
    assert steps[0]["loss"] == pytest.approx(0.5, abs=1e-5) and steps[0]["baseline"] < 1e-3
    assert valid[0]["valid_loss"] == pytest.approx(0.5, abs=1e-5)
    assert steps[-1]["loss"] < 0.499 and steps[-1]["margin"] > 0
    assert (inputs / "run" / "phase1_kto" / "adapters.safetensors").exists()


def test_a_table_may_hold_verdicts_and_weights(tmp_path: Path) -> None:
    file = tmp_path / "rated.csv"
    file.write_text("prompt,completion,label,weight\nIs it?,true,TRUE,2\nWas it?,3,false,0.5\n")
    first, second = read_rated(file)
    assert (text_of(first.response), first.desirable, first.meta) == ("true", True, {"weight": 2})
    assert (text_of(second.response), second.desirable, second.meta) == (
        "3",
        False,
        {"weight": 0.5},
    )


def test_rare_verdicts_are_told_and_missing_ones_refused(inputs: Path) -> None:
    def planned(*shares: bool, more: str = "") -> Any:
        rows = [
            {"prompt": f"{n} + {n}?", "completion": f"{2 * n + k}, I say.", "label": label}
            for n in range(8)
            for k, label in enumerate(shares)
        ]
        (inputs / "rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (inputs / "rated.yaml").write_text(RECIPE.replace("beta: 0.1", f"beta: 0.1{more}"))
        return forty2("plan", "--quick", "rated.yaml")

    assert "desirable rows weigh" not in planned(True, False).output
    assert "desirable rows weigh 2.00 times" in planned(True, True, False).output
    assert "weigh" not in planned(True, True, False, more=", undesirable_weight: 1.6").output
    found = planned(True)
    assert found.exit_code == 2
    assert "8 × every training answer has the verdict true" in found.output


@pytest.mark.parametrize(
    ("desirable", "others", "said"),
    [
        (1.0, 1.0, None),
        (0.996, 1.0, None),
        (0.98, 1.0, "0.98"),
        (1.34, 1.0, None),
        (4.0, 3.0, None),
        (1.344, 1.0, None),
        (1.346, 1.0, "1.35"),
        (3.0, 1.0, "3.00"),
        (1.0, 0.0, "inf"),
    ],
)
def test_verdicts_may_outweigh_each_other_as_far_as_the_paper_advises(
    desirable: float, others: float, said: str | None
) -> None:
    """The weights of the rows times those of the phase, which are 2 and 1/2 here."""
    rows = [RatedRow([1], [2], [], True, "a", weight=desirable / 2)]
    rows += [RatedRow([1], [2], [], False, "b", weight=others * 2)] * (others > 0)
    phase = kto(desirable_weight=2.0, undesirable_weight=0.5)
    warning = (
        f"desirable rows weigh {said} times what others do; 1 to 4/3 is best "
        "(desirable_weight, undesirable_weight)"
    )
    assert phase.data_warnings(rows) == ([] if said is None else [warning])


def test_several_answers_to_a_prompt_may_be_liked(inputs: Path) -> None:
    def levels(*labels: bool) -> list[str]:
        answers = ("Hello.", "Hi there.", "Go away.")
        rows = [
            {"prompt": "Hi", "completion": answer, "label": label}
            for answer, label in zip(answers, labels, strict=True)
        ]
        Path("few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return [finding.check for finding in lint("few.jsonl")]

    assert levels(True, True, False) == []
    assert levels(True, True, True) == ["verdicts"]


def test_mistakes_are_told_by_line(inputs: Path) -> None:
    (inputs / "rated.yaml").write_text(RECIPE.replace("beta: 0.1", "beta: 0.1, desirable_wait: 2"))
    found = forty2("plan", "--quick", "rated.yaml")
    assert found.exit_code == 2
    assert "phases.kto.desirable_wait: unknown key; did you mean desirable_weight?" in found.output
    (inputs / "rated.yaml").write_text(RECIPE.replace("objective: kto", "objective: ktoo"))
    assert (
        "'ktoo' is not an objective; use one of cpo, dpo, kto, orpo, sft, simpo"
        in forty2("plan", "--quick", "rated.yaml").output
    )
    (inputs / "rated.yaml").write_text(RECIPE.replace("rated.jsonl, valid: dpo", "sft"))
    found = forty2("plan", "--quick", "rated.yaml")
    assert found.exit_code == 2 and "sft.jsonl:1: needs a label (true or false)" in found.output
    (inputs / "rated.yaml").write_text(RECIPE.replace("beta: 0.1, ", ""))
    with pytest.raises(RecipeError, match=r"phases\.kto\.beta: missing"):
        load_recipe("rated.yaml")


def test_real_answers_on_the_starter_model(
    starter_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [dict(row) for row in build("spark-dpo").valid[:4]]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    phase = "steps: 3, lr: 1.0e-3, batch_size: 8, beta: 0.1, eval_every_steps: 3, lint: false"
    Path("real.yaml").write_text(
        f"version: 1\nname: real\nmodel: {starter_path}\nfuse: null\nbenchmark: {{tasks: [], held_out: false}}\n"
        "adapter: {rank: 8, scale: 4.0, layers: 4}\nphases:\n"
        f"  kto: {{objective: kto, data: pairs.jsonl, {phase}}}\n"
    )
    with short_checks():
        ran = forty2("run", "real.yaml", "--run-dir", "run")
    assert ran.exit_code == 0, ran.output
    records = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    first, _, last = (record for record in records if "grad_norm" in record)  # all rows each time
    assert first["loss"] == pytest.approx(0.5, abs=1e-4) and abs(first["margin"]) < 1e-5
    assert last["loss"] < 0.45 and last["margin"] > 0.3 and last["accuracy"] > 0.7
