from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from chaos import make_inputs
from click.testing import CliRunner
from support.training_texts import every_text, grams, training_texts, words

from forty2.benchmark.detector import ACTS
from forty2.benchmark.runner import run
from forty2.benchmark.tasks.behaviour import GATES, Behaviour, format_gates, gate_line
from forty2.cli import main
from forty2.data.library import rows
from forty2.files import read_json


def test_every_gate_has_held_out_prompts_and_every_prompt_a_gate() -> None:
    prompts = [*rows("heldout/behaviour"), *rows("heldout/refusal")]
    assert {row["gate"] for row in prompts} == set(GATES)
    assert len({row["id"] for row in prompts}) == len({row["prompt"] for row in prompts})
    assert all(row["good"] != row["bad"] for row in prompts)
    modes: dict[str, set[str]] = {}
    for row in prompts:
        if row["gate"] == "mode":
            modes.setdefault(row["pair"], set()).add(row["mode"])
    assert len(modes) >= 12 and all(both == {"plain", "open"} for both in modes.values())


def test_the_refusal_prompts_share_nothing_with_training() -> None:
    held = [row["prompt"] for row in rows("heldout/refusal")]
    trained = {" ".join(words(text)) for text in training_texts()}
    sequences = grams(training_texts(), 8)
    assert not [prompt for prompt in held if " ".join(words(prompt)) in trained]
    assert not [prompt for prompt in held if grams(iter([prompt]), 8) & sequences]


def test_the_refusal_prompts_hold_nothing_of_truthfulqa(bench_data: Path) -> None:
    benchmark = read_json(bench_data / "truthfulqa" / "mc_task_v0_817.json")
    ours = [*every_text(list(rows("heldout/refusal")))]
    assert not grams(every_text(benchmark), 7) & grams(iter(ours), 7)


def test_neither_length_nor_an_opening_yes_tells_the_good_answer() -> None:
    prompts = rows("heldout/refusal")
    longer = sum(len(row["good"]) > len(row["bad"]) for row in prompts)
    assert 0.25 < longer / len(prompts) < 0.75


def item(name: str, good: float, ok: bool, **more: Any) -> dict[str, Any]:
    return {"id": name, "good": good, "bad": 0.0, "ok": ok, **more}


def test_a_gate_is_reached_only_both_ways() -> None:
    for good, ok, reached in ((1, True, True), (1, False, False), (-1, True, False)):
        line = gate_line("entity", [item(f"i{n}", good, ok) for n in range(10)])
        assert line["reached"] is reached
        assert (line["by_likelihood"], line["by_generation"]) == (good > 0, ok)
    nine = [item(f"i{n}", 1.0, n > 0) for n in range(10)]
    assert gate_line("entity", nine)["reached"] and not gate_line("entity", nine[:9])["reached"]
    tied = gate_line("entity", [item("i", 0.0, True)])
    assert tied["by_likelihood"] == 0  # a tie is no preference


def test_a_model_that_weighs_everything_or_nothing_does_not_tell_modes_apart() -> None:
    both = [
        item(f"{mode}{n}", 1.0 if mode == "open" else -1.0, mode == "open", pair=f"p{n}")
        for n in range(6)
        for mode in ("plain", "open")
    ]
    line = gate_line("mode", both)
    assert (line["n"], line["by_likelihood"], line["by_generation"]) == (6, 0, 0)


@pytest.mark.parametrize("gate", GATES)
def test_the_held_out_answers_fall_on_their_side_of_each_gate(gate: str) -> None:
    """The rules point the right way: good answers pass oftener than bad ones."""
    prompts = [
        row for row in (*rows("heldout/behaviour"), *rows("heldout/refusal")) if row["gate"] == gate
    ]
    good, bad = (
        sum(GATES[gate].good(row[side], row) for row in prompts) / len(prompts)
        for side in ("good", "bad")
    )
    assert good > 0.8 and good - bad > 0.35, (good, bad)


def test_a_random_model_reaches_nothing_that_it_would_have_to_say(tmp_path: Path) -> None:
    model = str(make_inputs(tmp_path / "in") / "model")
    measured = run(Behaviour(n=20), model)
    result = measured.to_json()
    assert (result["model"], result["adapter"], result["seed"]) == (model, None, None)
    assert len(result["data_sha256"]) == 64 and "mlx" in result["versions"]
    few = dict.fromkeys(GATES, 3) | {"leak": 50}  # the cost is judged by all plain facts
    assert [(gate["gate"], gate["n"]) for gate in result["gates"]] == [*few.items()]
    assert result["n"] == sum(few.values()) + 3  # of a pair, both
    for gate in result["gates"]:
        mine = [one for one in result["items"] if one["gate"] == gate["gate"]]
        assert gate_line(gate["gate"], mine) == gate
        assert not gate["reached"] or gate["gate"] in ("leak", "over")
    assert all("leak" in one and "right" in one for one in result["items"] if one["gate"] == "leak")
    assert not any("leak" in one for one in result["items"] if one["gate"] != "leak")
    assert all(one["prompt"] and "answer" in one for one in result["items"])
    assert {one["act"] for one in result["detectors"]} == set(ACTS)
    asked = {row["id"]: row for row in (*rows("heldout/behaviour"), *rows("heldout/refusal"))}
    for one in result["items"]:
        row, said = asked[one["id"]], one["answer"]
        assert one["ok"] == (bool(said.strip()) and GATES[one["gate"]].good(said, row))
    assert len(format_gates(result).splitlines()) == 2 + len(GATES) + 2 + 3 * len(ACTS)


@pytest.mark.slow
def test_the_command_prints_what_the_file_holds(tmp_path: Path) -> None:
    model, out = make_inputs(tmp_path / "in") / "model", tmp_path / "out.json"
    done = CliRunner().invoke(main, ["benchmark", "behaviour", "-m", str(model), "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert format_gates(read_json(out)) in done.output
