"""Results: their JSON round trip, files of earlier releases, and files that were changed."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from forty2.benchmark.results import Item, Result, Stage, read_measured
from forty2.benchmark.tasks import task_class
from forty2.errors import BenchmarkError

OPTIONS = {"loglik": [-1.0, -2.0], "labels": [1, 0]}
RECORDS: dict[str, list[dict[str, Any]]] = {
    "truthfulqa": [
        {"question": f"{n}?", "category": "Law", "mc1": OPTIONS, "mc2": OPTIONS} for n in range(2)
    ],
    "mmlu": [
        {
            "subject": subject,
            "number": 1,
            "logps": [-1.0, -2.0, -3.0, -4.0],
            "choice": 0,
            "answer": answer,
            "right": answer == 0,
        }
        for subject, answer in (("anatomy", 0), ("cooking", 1))
    ],
    "gsm8k": [
        {
            "question": f"{n}?",
            "answer": "1",
            "reply": "1",
            "stopped": True,
            "strict_match": n == 0,
            "flexible_extract": True,
        }
        for n in range(2)
    ],
    "humaneval": [
        {"task_id": f"H/{n}", "samples": [{"passed": n == 0, "stopped": True, "why": ""}] * 2}
        for n in range(2)
    ],
    "behaviour": [
        {
            "id": f"i{n}",
            "gate": "leak",
            "prompt": "?",
            "good": -1.0,
            "bad": -2.0,
            "answer": "x",
            "ok": True,
            "leak": n == 0,
            "right": True,
        }
        for n in range(2)
    ],
    "eval_prompts": [
        {
            "id": f"say_{n}",
            "prompt": f"{n}?",
            "expected": "x",
            "reply": "x" * n,
            "passed": n == 1,
            "stopped": True,
            "broken": False,
            "bucket": "say",
        }
        for n in range(2)
    ],
    "perplexity": [
        {"title": "a", "logp": -3.0, "tokens": 1},
        {"title": "b", "logp": -1.0, "tokens": 2},
    ],
    "divergence": [{"material": "a", "kl": [0.1, 0.3]}, {"material": "b", "kl": [0.2]}],
}
"""Two items of each benchmark, as every release wrote them."""


def result(name: str) -> Result:
    task = task_class(name)
    items = task.items(RECORDS[name])
    return Result(
        benchmark=name,
        model="m",
        adapter="a",
        seed=3,
        data="d",
        data_sha256="0" * 64,
        versions={"mlx": "1"},
        settings=dict.fromkeys((*task.must_agree, *task.may_differ), 1),
        figures=task.figures(items),
        items=items,
    )


def earlier(found: Any) -> Any:
    """A result's JSON as an earlier release had it: no scores, no categories added to items."""
    old = copy.deepcopy(found)
    for item in old["items"].values() if isinstance(old["items"], dict) else old["items"]:
        del item["scores"]
        if old["benchmark"] != "truthfulqa":
            item.pop("category", None)
    return old


@pytest.mark.parametrize("name", RECORDS)
def test_a_result_is_read_as_it_was_written(name: str) -> None:
    written = json.loads(json.dumps(result(name).to_json()))
    assert read_measured(written, "it") == result(name)


@pytest.mark.parametrize("name", RECORDS)
def test_every_result_records_what_it_takes_to_believe_it(name: str) -> None:
    written = result(name).to_json()
    key = task_class(name).data_key
    for wanted in ("benchmark", "model", "adapter", "seed", "versions", f"{key}_sha256"):
        assert written[wanted] is not None
    items = written["items"]
    for item in items.values() if isinstance(items, dict) else items:
        assert item["scores"]


@pytest.mark.parametrize("name", RECORDS)
def test_a_result_of_an_earlier_release_gets_its_scores(name: str) -> None:
    assert read_measured(earlier(result(name).to_json()), "it") == result(name)


def test_gates_of_the_first_releases_do_not_say_what_they_are() -> None:
    written = earlier(result("behaviour").to_json())
    for key in ("benchmark", "model", "adapter", "seed", "versions", "data", "data_sha256"):
        del written[key]
    found = read_measured(written, "it")
    assert isinstance(found, Result)
    assert (found.benchmark, found.model, found.data_sha256) == ("behaviour", "not recorded", None)
    assert found.items == result("behaviour").items


@pytest.mark.parametrize("name", RECORDS)
def test_scores_that_are_not_the_items_own_are_refused(name: str) -> None:
    written = result(name).to_json()
    items = written["items"]
    second = list(items.values() if isinstance(items, dict) else items)[1]
    second["scores"][next(iter(second["scores"]))] += 0.5
    with pytest.raises(BenchmarkError, match=r"it, item 2 \(.*: its scores do not follow from"):
        read_measured(written, "it")


def test_a_stage_is_read_as_it_was_written() -> None:
    names = ("truthfulqa", "mmlu", "behaviour", "perplexity", "divergence")
    stage = Stage("base", {name: result(name) for name in names})
    written = stage.to_json()
    assert list(written) == ["stage", *names]
    assert read_measured(json.loads(json.dumps(written)), "it") == stage
    old = {name: part if name == "stage" else earlier(part) for name, part in written.items()}
    del old["divergence"]["benchmark"]
    assert read_measured(old, "it") == stage


def test_a_stage_without_measurements_is_damaged() -> None:
    with pytest.raises(BenchmarkError, match="it is damaged"):
        read_measured({"stage": "base"}, "it")
    with pytest.raises(BenchmarkError, match="it, mmlu is damaged"):
        read_measured({"stage": "base", "mmlu": {}}, "it")
    with pytest.raises(BenchmarkError, match="it is damaged"):
        read_measured({"stage": "base", "truthfulqa": 3}, "it")


def test_an_item_has_its_category_beside_its_scores() -> None:
    item = Item({"subject": "law"}, {"mmlu": 1.0}, "law")
    assert item.to_json() == {"subject": "law", "category": "law", "scores": {"mmlu": 1.0}}
