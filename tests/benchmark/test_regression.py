"""The regression suite finds what a phase forgot, by bucket."""

from __future__ import annotations

from forty2.benchmark.regression import bucket_cells, buckets
from forty2.benchmark.results import Result, Stage
from forty2.benchmark.tasks.held_out import HeldOut
from forty2.files import JsonObject


def stage(name: str, **passed: str) -> Stage:
    """A stage whose prompts passed or not: `+` or `-` for each prompt of a bucket, in a.json or b.json."""
    records: list[JsonObject] = [
        {
            "kind": "prompt",
            "file": f"{bucket[0]}.json",
            "id": f"{bucket[2:]}_{n}",
            "prompt": "Say it.",
            "expected": "it",
            "reply": "it",
            "passed": one == "+",
        }
        for bucket, marks in passed.items()
        for n, one in enumerate(marks)
    ]
    items = HeldOut.items(records)
    result = Result(
        benchmark="held_out",
        model="m",
        adapter=None,
        seed=None,
        data="rows",
        data_sha256="0",
        versions={},
        settings={},
        figures=HeldOut.figures(items),
        items=items,
    )
    return Stage(name, {"held_out": result})


def test_forgetting_is_counted_prompt_by_prompt_against_the_best_stage() -> None:
    base = stage("base", a_format="----", a_echo="---")
    alpha = stage("phase1_alpha", a_format="+++-", a_echo="+--")
    beta = stage("phase2_beta", a_format="-+-+", a_echo="+++")
    fmt, echo = buckets([base, alpha, beta])
    assert fmt.shares == {"base": 0.0, "phase1_alpha": 0.75, "phase2_beta": 0.5}
    assert (fmt.name, fmt.n, fmt.best, fmt.forgotten) == ("format", 4, "phase1_alpha", 2)
    assert (echo.name, echo.best, echo.forgotten) == ("echo", "phase1_alpha", 0)
    assert bucket_cells([base, alpha, beta]) == [
        ["eval prompts", "n", "base", "phase1_alpha", "phase2_beta", "forgotten"],
        ["format", "4", "0%", "75%", "50%", "2 since phase1_alpha"],
        ["echo", "3", "0%", "33%", "100%", "0"],
    ]


def test_buckets_of_several_files_are_told_apart() -> None:
    names = [one.name for one in buckets([stage("base", a_say="+", b_say="-")] * 2)]
    assert names == ["a: say", "b: say"]


def test_there_is_nothing_to_compare_without_prompts_or_a_second_stage() -> None:
    assert buckets([stage("base", a_say="+")]) == []
    assert bucket_cells([stage("base"), stage("phase1_a")]) == []
    assert buckets([Stage("base", {}), Stage("phase1_a", {})]) == []
