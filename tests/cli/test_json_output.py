"""`--json`: one line of strict JSON in the form that the manual describes."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from support.cli import forty2

from forty2.cli import main
from forty2.cli.json_output import SCHEMAS, as_markdown, echo_json, plain, schema_id
from forty2.failures import clustering, labels
from forty2.runs import ablation
from forty2.runs.sweep import results

COMMANDS = {
    "benchmark": "benchmark truthfulqa -m tiny -q questions.json",
    "compare": "compare before.json after.json",
    "data.lint": "data lint chats.jsonl",
    "data.stats": "data stats chats.jsonl -m tiny",
    "failures.find": "failures find {out} -m tiny --max-tokens 2",
    "failures.testset": "failures testset --out {out} --strata mathematics=4",
    "generate": "generate -m tiny -p Hi. --max-tokens 3",
    "logprobs": "logprobs -m tiny -d pairs.jsonl -o {out}",
    "model.info": "model info tiny",
    "plan": "plan recipe.yaml --quick",
    "recipe.list": "recipe list",
    "run": "run recipe.yaml --run-dir {out}",
    "runs.compare": "runs compare done {out}",
    "runs.list": "runs list .",
    "runs.show": "runs show done",
}
ELSEWHERE = {
    "ablate": ablation,
    "benchmark.base": None,
    "benchmark.judge": None,
    "failures.cluster": clustering,
    "failures.generate": None,
    "failures.label": labels,
    "failures.recover": None,
    "failures.run": None,
    "failures.score": None,
    "sweep": results,
}
"""Schemas whose commands take long, download a model or need others before them; the keys are looked up in
the module's source, or tested with the command (None)."""
PRINTS_NO_RESULT = {
    *("chat", "clean", "fuse", "init", "report", "speed", "runs.note", "runs.tag", "runs.remove"),
    *("recipe.show", "recipe.keys", "recipe.copy", "recipe.convert", "recipe.check", "runs.export"),
    *("runs.page", "model.fetch", "model.import", "model.memory", "export.gguf", "export.peft"),
    *("export.mlx", "export.results", "data.build", "data.format-lock", "data.echo", "data.mix"),
    *("data.operators", "data.show", "data.decontaminate", "data.split", "data.stratify"),
    *("data.convert", "data.prepare", "completion", "serve", "failures.report", "push", "pull"),
}
"""Commands that write files, talk, or print a text to read; `speed` writes its figures with --out."""


def leaves(command: click.Command, name: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command that is no group, as `data.lint`."""
    if not isinstance(command, click.Group):
        yield name, command
        return
    context = click.Context(command)
    for below in command.list_commands(context):
        found = command.get_command(context, below)
        assert found is not None
        yield from leaves(found, f"{name}.{below}".strip("."))


def strict(text: str) -> Any:
    """Parse JSON without NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_prints_one_line_in_its_schema(
    name: str, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(good)
    out = tmp_path / "out"
    if name == "runs.compare":
        assert forty2("run", "recipe.yaml", "--run-dir", str(out)).exit_code == 0
    if name == "failures.find":
        made = COMMANDS["failures.testset"].format(out=out).split()
        assert forty2(*made).exit_code == 0
    result = forty2(*COMMANDS[name].format(out=out).split(), "--json")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("\n") == 1
    found = strict(result.stdout)
    assert found["schema"] == schema_id(name)
    assert found.keys() == {"schema", *SCHEMAS[name].keys}


def test_every_schema_is_tested_and_every_command_has_one() -> None:
    assert COMMANDS.keys() | ELSEWHERE.keys() == SCHEMAS.keys()
    with_json = {
        name
        for name, command in leaves(main)
        if any("--json" in parameter.opts for parameter in command.params)
    }
    without = {name for name, _ in leaves(main)} - with_json
    assert without == PRINTS_NO_RESULT


@pytest.mark.parametrize(("name", "module"), [(n, m) for n, m in ELSEWHERE.items() if m])
def test_described_keys_are_those_that_the_record_gets(name: str, module: Any) -> None:
    source = inspect.getsource(module)
    for key in SCHEMAS[name].keys:
        assert re.search(rf'"{key}"(:|\] =)', source), key


def test_keys_that_are_not_described_stop_the_command() -> None:
    with pytest.raises(TypeError, match=r"\['more'\] are not described"):
        echo_json("recipe.list", {"recipes": {}, "more": 1})
    with pytest.raises(TypeError, match="no form in JSON"):
        plain({1, 2})


def test_what_is_not_finite_is_null_and_paths_are_text() -> None:
    assert plain({"a": (math.nan, math.inf, 1.5), "b": Path("x")}) == {
        "a": [None, None, 1.5],
        "b": "x",
    }


def test_an_error_leaves_standard_output_empty(tmp_path: Path) -> None:
    result = forty2("compare", tmp_path / "none.json", tmp_path / "none.json", "--json")
    assert (result.exit_code, result.stdout) == (2, "") and result.stderr.count("\n") == 1


def test_the_manual_describes_every_key() -> None:
    text = as_markdown()
    for name, schema in SCHEMAS.items():
        section = text.partition(f"## {schema_id(name)}\n")[2].partition("\n## ")[0]
        assert all(f"| `{key}` | " in section for key in schema.keys)
