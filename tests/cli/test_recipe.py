"""`forty2 recipe`: list, show, copy, check and keys."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.cli import forty2, refused

from forty2.recipe.keys import as_text
from forty2.recipe.schema import SECTIONS


def test_recipes_are_listed_shown_copied_and_checked(tmp_path: Path) -> None:
    assert "forty2-spark-smollm2" in forty2("recipe", "list").output
    copy = tmp_path / "mine.yaml"
    assert forty2("recipe", "copy", "demo", copy).exit_code == 0
    assert forty2("recipe", "show", "demo").output == copy.read_text("utf-8")
    assert forty2("recipe", "check", copy).exit_code == 0
    assert "already exists" in refused("recipe", "copy", "demo", copy)
    assert "paths are relative to it" in refused("recipe", "copy", copy, tmp_path / "other.yaml")
    copy.write_text(copy.read_text("utf-8").replace("beta:", "bete:", 1))
    assert "unknown key; did you mean beta?" in refused("recipe", "check", copy)


def test_a_check_says_what_it_checked_and_what_it_did_not() -> None:
    lines = forty2("recipe", "check", "demo").output.splitlines()
    assert lines == [
        "demo: every key and value is valid, and every file it names exists (phases: sft, dpo, boost)",
        "Neither data nor model was read. To check them too: forty2 plan demo",
    ]


@pytest.mark.parametrize("command", ["recipe check", "plan"])
@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("mmul", "there are gsm8k, humaneval, mmlu, reply_style, truthfulqa, truthfulqa_binary"),
        ("gsm8k", "needs its data"),
    ],
)
def test_a_task_that_no_run_measures_is_refused_before_the_run(
    command: str, task: str, message: str
) -> None:
    tasks = f"benchmark.tasks=[truthfulqa, {task}]"
    assert message in refused(*command.split(), "demo", "--set", tasks)


@pytest.mark.parametrize("bad", ["truthfulqa", "gsm8k"])
def test_a_plan_reads_the_questions_of_every_task(bad: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{}")
    tasks = f"benchmark.tasks=[{{task: {bad}, data: '{tmp_path / 'bad.json'}'}}]"
    line = ["plan", "demo", "--set", "benchmark.questions=null", "--set", tasks]
    assert f"benchmark.tasks: {bad}: " in refused(*line)


@pytest.mark.parametrize("section", SECTIONS)
def test_keys_prints_a_section(section: str) -> None:
    assert forty2("recipe", "keys", section).output == as_text(section) + "\n"


def test_keys_prints_all_sections_by_default() -> None:
    assert forty2("recipe", "keys").output == as_text() + "\n"


def test_help_names_every_section_that_keys_takes() -> None:
    text = forty2("recipe", "keys", "--help").output
    assert [section for section in SECTIONS if section not in text] == []


def test_a_section_may_be_named_as_it_stands_in_a_recipe() -> None:
    whole, last = (forty2("recipe", "keys", name).output for name in ("phases.dpo", "dpo"))
    assert whole == last and "beta" in whole


def test_keys_of_no_section_are_refused() -> None:
    assert "adaptor: no such section or key; sections are recipe, " in refused(
        "recipe", "keys", "adaptor"
    )


def test_what_an_override_changes_along_with_it_is_a_line_of_warning() -> None:
    with pytest.warns(UserWarning) as warnings:
        result = forty2("recipe", "check", "demo", "--set", "phases.dpo.steps=4")
    assert result.exit_code == 0
    assert [str(warning.message) for warning in warnings] == [
        "phases.dpo: eval_every_steps is 4, not 24: the phase now ends at step 4"
    ]
