"""What is wrong with a recipe: every problem at once, in plain words, with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.recipes import GOOD, problems, write

from forty2.data.sources import BUILTIN, HUB
from forty2.errors import RecipeError
from forty2.recipe.paths import NO_FILES
from forty2.recipe.reading import load_recipe


def test_every_problem_is_reported_at_once_with_its_line(tmp_path: Path) -> None:
    bad = """\
version: 1
name: my run
model: smollm2
adaptor: {rank: 8}
adapter: {rank: -1}
phases:
  sft: {objective: sft, data: nowhere.jsonl, steps: 50, lr: -5e-6}
  dpo:
    objective: dpo
    data: builtin:spark-dpo
    steps: 200
    learning_rate: 1e-6
    loss: sigmoidd
  kto: {objective: ktoo, data: builtin:spark-dpo}
  boost: {objective: dpo, data: builtin:x, lr: 1e-6, beta: 0.1, steps: 10, save_every_steps: 20}
"""
    assert problems(tmp_path, bad) == [
        "recipe.yaml:2: name: should be 1 to 64 letters, digits, '_', '-' or '.', the first a letter "
        "or digit, not 'my run'",
        "recipe.yaml:4: adaptor: unknown key; did you mean adapter?",
        "recipe.yaml:5: adapter.rank: should be greater than 0, not -1",
        "recipe.yaml:7: phases.sft.lr: should be greater than 0, not -5e-06",
        "recipe.yaml:7: phases.sft.data: nowhere.jsonl: no such file or folder",
        "recipe.yaml:8: phases.dpo.lr: missing",
        "recipe.yaml:8: phases.dpo.beta: missing",
        "recipe.yaml:12: phases.dpo.learning_rate: unknown key; did you mean lr?",
        "recipe.yaml:13: phases.dpo.loss: should be 'sigmoid', 'robust', 'hinge', 'ipo', 'dpop', "
        "'sigmoid_norm', 'exo_pair', 'nca_pair', 'bco_pair', 'sppo_hard', 'apo_zero', 'apo_down' or "
        "'discopop', not 'sigmoidd'",
        "recipe.yaml:14: phases.kto.objective: 'ktoo' is not an objective; use one of cpo, dpo, kto, orpo, sft, simpo",
        "recipe.yaml:15: phases.boost.save_every_steps: 20 is beyond the last step (10): never reached",
    ]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("steps: 10", "steps: 10, epochs: 2"), "steps: give steps or epochs"),
        (("steps: 10", "steps: 1.5"), "should be a whole number, not 1.5"),
        (("steps: 10", "steps: true"), "should be a whole number, not True"),
        (("steps: 10", "steps: '10'"), "should be a whole number, not '10'"),
        (("lr: 1e-4", "lr: .nan"), "phases.sft.lr"),
        (
            ("lr: 1e-4", "lr: 1e-4, eval_every_steps: 11"),
            "eval_every_steps: 11 is beyond the last step",
        ),
        (("lr: 1e-4", "lr: 1e-4, warmup_steps: 11"), "warmup_steps: 11 is beyond the last step"),
        (
            ("beta: 0.1", "beta: 0.1\n    loss: ipo\n    label_smoothing: 0.1"),
            "label_smoothing: only",
        ),
        (("beta: 0.1", "beta: 0.1\n    beta: 0.2"), "phases.dpo.beta is given twice"),
        (("version: 1", "version: 2"), "version: should be 1, not 2"),
        (("name: mine", "name: ../up"), "name: should be 1 to 64 letters"),
        (("name: mine", "name: &a mine\nbenchmark: *a"), "benchmark"),
        (("phases:", "phases: &p"), ""),
        (("model: smollm2", "model: [a"), "not valid YAML"),
        (("model: smollm2", "model: !!python/object/apply:os.system [ls]"), "model: should be"),
        (("model: smollm2", "model: !!python/name:os.system x"), "not valid YAML"),
        (
            ("objective: sft, ", ""),
            "phases.sft.objective: missing; use one of cpo, dpo, kto, orpo, sft, simpo",
        ),
    ],
)
def test_each_mistake_is_named(tmp_path: Path, change: tuple[str, str], complaint: str) -> None:
    text = GOOD.replace(*change)
    assert text != GOOD
    if not complaint:
        load_recipe(write(tmp_path, text))  # an anchor that nothing refers to harms nobody
        return
    assert any(complaint in line for line in problems(tmp_path, text))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            ("lr: 1e-4", "lr: 1e-4, beta: 1"),
            "5: phases.sft.beta: belongs to cpo, dpo, kto, orpo and simpo, not to sft",
        ),
        (
            ("beta: 0.1", "beta: 0.1\n    desirable_weight: 2"),
            "12: phases.dpo.desirable_weight: belongs to kto, not to dpo",
        ),
        (("lr: 1e-4", "lr: 1e-4, rank: 8"), "5: phases.sft.rank: belongs to adapter, not to sft"),
        (
            ("name: mine", "name: mine\nlr: 1e-4"),
            "3: lr: is a key of phases, phases.NAME.lr",
        ),
    ],
)
def test_a_key_of_another_section_says_of_which(
    tmp_path: Path, change: tuple[str, str], complaint: str
) -> None:
    assert problems(tmp_path, GOOD.replace(*change)) == [
        f"recipe.yaml:{complaint}; move it or remove it"
    ]


def test_a_suggested_key_is_of_the_same_section(tmp_path: Path) -> None:
    bad = GOOD.replace("lr: 1e-4", "lr: 1e-4, label_smoothin: 0") + "    label_smoothin: 0\n"
    assert problems(tmp_path, bad) == [
        "recipe.yaml:5: phases.sft.label_smoothin: unknown key",
        "recipe.yaml:12: phases.dpo.label_smoothin: unknown key; did you mean label_smoothing?",
    ]


def test_rules_between_fields_are_told_with_other_mistakes(tmp_path: Path) -> None:
    bad = GOOD.replace(
        "lr: 1e-4", "lr: fast, epochs: 2, warmup_steps: 11, eval_every_steps: 0, x: 1"
    )
    bad += "    loss: ipo\n    label_smoothing: 0.1\n    best: {metric: passed, direction: max}\n"
    bad += "    until: {metric: los, at_least: 1, at_most: 2}\n    optimizer: adamx\n"
    assert [line.partition(": ")[2] for line in problems(tmp_path, bad)] == [
        "phases.sft.steps: give steps or epochs, one of the two",
        "phases.sft.lr: should be a number, not 'fast'",
        "phases.sft.warmup_steps: 11 is beyond the last step (10): never reached",
        "phases.sft.eval_every_steps: should be greater than 0, not 0",
        "phases.sft.x: unknown key",
        "phases.dpo.label_smoothing: only sigmoid, robust and exo_pair have it, not ipo",
        "phases.dpo.best: passed is the share of eval_prompts, and there are none",
        "phases.dpo.until.metric: should be 'loss', 'accuracy', 'margin', 'passed', 'perplexity', "
        "'spiral_score', 'subtlety', 'distinct_1', 'distinct_2' or 'reply_length', not 'los'",
        "phases.dpo.until.at_least: give at_least or at_most, one of the two",
        "phases.dpo.optimizer: should be 'adamw', 'adam', 'lion', 'sgd' or 'adafactor', not 'adamx'",
    ]


@pytest.mark.parametrize(
    "change",
    [
        ("steps: 10", "steps: ten"),
        ("steps: 10", "epochs: many"),
        ("lr: 1e-4", "lr: 1e-4, eval_prompts: 7, best: {metric: passed, direction: max}"),
        ("beta: 0.1", "beta: 0.1\n    loss: ipoo\n    label_smoothing: 0.1"),
    ],
)
def test_rules_are_silent_about_fields_that_are_not_valid(
    tmp_path: Path, change: tuple[str, str]
) -> None:
    assert len(problems(tmp_path, GOOD.replace(*change))) == 1


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("lr: 1e-4", 'lr: "5e-6"'), "phases.sft.lr: should be a number, not '5e-6'"),
        (("lr: 5e-5", "lr: '1'"), "phases.dpo.lr: should be a number, not '1'"),
        (("steps: 10", "steps: '10'"), "phases.sft.steps: should be a whole number, not '10'"),
        (
            ("lr: 1e-4", "lr: 1e-4, lint: 'no'"),
            "phases.sft.lint: should be true or false, not 'no'",
        ),
        (("version: 1", "version: '1'"), "version: should be 1, not '1'"),
    ],
)
def test_quotes_around_a_number_are_to_be_removed(
    tmp_path: Path, change: tuple[str, str], complaint: str
) -> None:
    (problem,) = problems(tmp_path, GOOD.replace(*change))
    assert problem.endswith(f"{complaint}; remove the quotes")


@pytest.mark.parametrize("lr", ["fast", "'5e-6 or so'", "'true'", "''"])
def test_quotes_around_a_text_may_stay(tmp_path: Path, lr: str) -> None:
    (problem,) = problems(tmp_path, GOOD.replace("1e-4", lr))
    assert "quotes" not in problem


def test_sources_that_are_no_files_are_those_that_data_reads() -> None:
    assert set(NO_FILES) == {BUILTIN, HUB}


@pytest.mark.parametrize(
    ("section", "theirs", "ours"),
    [
        ("adapter", "r", "rank"),
        ("adapter", "target_modules", "keys"),
        ("adapter", "lora_dropout", "dropout"),
        ("phases.sft", "num_train_epochs", "epochs"),
        ("phases.sft", "per_device_train_batch_size", "batch_size"),
        ("phases.sft", "gradient_accumulation_steps", "accumulate"),
    ],
)
def test_the_name_of_another_package_s_key_leads_to_ours(
    section: str, theirs: str, ours: str
) -> None:
    with pytest.raises(RecipeError, match=f"{theirs}: unknown key; did you mean {ours}"):
        load_recipe("demo", [f"{section}.{theirs}=1"])


@pytest.mark.parametrize(
    "entry, message",
    [
        ("{from: kto, share: 0.1}", "kto is not trained before dpo; a phase replays earlier ones"),
        ("{from: dpo, share: 0.1}", "dpo is not trained before dpo; a phase replays earlier ones"),
        ("{from: sft, share: 0.1}", "sft has conversations, and dpo learns from pairs"),
        (
            "{from: alpha, share: 0.1}",
            "alpha: no such file or folder, and no phase; before dpo there is sft",
        ),
    ],
)
def test_what_cannot_be_replayed_is_named(tmp_path: Path, entry: str, message: str) -> None:
    recipe = GOOD.replace("    beta: 0.1\n", f"    beta: 0.1\n    replay: [{entry}]\n")
    recipe += "  kto: {objective: kto, data: builtin:spark-dpo, steps: 9, lr: 1e-4, beta: 0.1}\n"
    found = problems(tmp_path, recipe)
    assert found == [f"recipe.yaml:12: phases.dpo.replay.0.from: {message}"]


def test_ratings_may_replay_pairs_and_shares_leave_room_for_own_rows(tmp_path: Path) -> None:
    kto = "  kto: {objective: kto, data: builtin:spark-dpo, steps: 9, lr: 1e-4, beta: 0.1, "
    load_recipe(write(tmp_path, GOOD + kto + "replay: [{from: dpo, share: 0.1}]}\n"))
    for replay, message in (
        ("[{from: dpo, share: 0.6}, {from: builtin:spark-dpo, share: 0.4}]", "leave none"),
        ("[{from: dpo, share: 0.1}, {from: dpo, share: 0.1}]", "dpo stands there twice"),
        ("null, replay_by: tokens", "replay_by: there is no replay"),
    ):
        (found,) = problems(tmp_path, GOOD + kto + f"replay: {replay}}}\n")
        assert message in found


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            "hold_out: {domain: null}",
            "hold_out.domain: should be text, a whole number, a number, true or false or a list, "
            "not None",
        ),
        (
            "hold_out: {domain: [arts, null]}",
            "hold_out.domain.1: should be text, a whole number, a number or true or false, not None",
        ),
        ("hold_out: {domain: []}", "hold_out.domain: should have at least one entry"),
        ("grad_checkpoint: -1", "grad_checkpoint: should be greater than 0, not -1"),
        ("grad_checkpoint: [1]", "grad_checkpoint: should be true or false or a whole number"),
    ],
)
def test_a_value_of_several_types_is_one_problem(
    change: str, complaint: str, tmp_path: Path
) -> None:
    (line,) = problems(tmp_path, GOOD.replace("steps: 10", f"steps: 10, {change}"))
    assert line.endswith(f"phases.sft.{complaint}")
