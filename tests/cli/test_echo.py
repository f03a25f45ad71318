"""What commands say fits a narrow terminal, with the same words as in a pipe."""

from __future__ import annotations

import re
import sys
import warnings
from collections import Counter
from pathlib import Path

import pytest
from support.archive import make_run, measured_stage
from support.cli import forty2
from support.small_run import make_inputs
from support.terminal import on_terminal

from forty2.benchmark.stage_tables import table
from forty2.cli.echo import echo
from forty2.cli.errors import plain_warnings, warn
from forty2.report.outcome import outcome_table
from forty2.runs.pipeline import RunResult
from forty2.text_layout import width_of

SENTENCE = (
    "Better on your held-out rows: the better answer of 12 held-out pairs 50% → 92% (+42 points, 95% "
    "interval +8 to +75); no measurable cost on neutral text and plain facts."
)
COMMANDS = [
    ["plan", "inputs/recipe.yaml", "--quick"],
    ["runs"],
    ["runs", "show", "second"],
    ["runs", "compare", "first", "second"],
    ["compare", "adapters/first/benchmarks/base.json", "adapters/second/benchmarks/fused.json"],
    ["runs", "show", "none"],
]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs that ended, and the inputs of a third."""
    work = tmp_path_factory.mktemp("work")
    make_inputs(work / "inputs")
    for name, mc1 in (("first", 0.3), ("second", 0.6)):
        make_run(work / "adapters" / name, mc1=mc1, verdict=SENTENCE)
    return work


def summary(run: Path) -> str:
    stages = [measured_stage(name, share) for name, share in (("base", 0.3), ("fused", 0.6))]
    return str(
        RunResult(
            path=run,
            adapter=Path("adapters/second/phase2_dpo"),
            fused=None,
            stages=stages,
            table=table(stages),
            changes="",
            verdict="gain",
            sentence=SENTENCE,
            next_steps=[],
            verdicts={"truthfulqa": "gain"},
            outcome=outcome_table(run),
            report=Path("adapters/second/report.html"),
            contamination=[],
            warnings=[],
        )
    )


def assert_fits(shown: str, piped: str, width: int) -> None:
    assert all(width_of(line) <= width or len(line.split()) == 1 for line in shown.splitlines())
    lost = words(piped) - words(shown)
    assert not lost, "a table may name its columns again, but nothing is lost"


def words(text: str) -> Counter[str]:
    return Counter(word for word in text.split() if not re.fullmatch("-{8,}", word))


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_fits_and_says_the_same(
    command: list[str], width: int, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(work)
    monkeypatch.setenv("FORTY2_CACHE", str(work / "cache"))
    monkeypatch.delenv("COLUMNS", raising=False)
    result = forty2(*command)
    assert result.exit_code == (2 if "none" in command else 0)
    piped = result.output
    monkeypatch.setenv("COLUMNS", str(width))
    shown = forty2(*command).output
    if command == ["runs"]:  # leaves columns out
        assert max(map(width_of, shown.splitlines())) <= width
    else:
        assert_fits(shown, piped, width)


@pytest.mark.parametrize("width", [60, 80])
def test_the_summary_of_a_run_fits_and_says_the_same(
    width: int, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = summary(work / "adapters" / "second")
    monkeypatch.delenv("COLUMNS", raising=False)
    echo(text)
    assert capsys.readouterr().out == f"{text}\n"
    monkeypatch.setenv("COLUMNS", str(width))
    echo(text)
    assert_fits(capsys.readouterr().out, text, width)


def test_warnings_fit_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    warn(SENTENCE)
    with plain_warnings():
        line = warnings.formatwarning(UserWarning(SENTENCE), UserWarning, "", 0)
    assert capsys.readouterr().err == line
    assert_fits(line, f"warning: {SENTENCE}", 60)


def test_rows_are_coloured_on_a_terminal_and_marked_where_colour_is_not_wanted(work: Path) -> None:
    inputs = work / "inputs"
    rows = sorted(inputs.rglob("*.jsonl"))[0]
    command = [sys.executable, "-m", "forty2", "data", "show", str(rows), "--model"]
    command += [str(inputs / "model"), "--rows", "1"]
    coloured, plain = (on_terminal(command, 80, NO_COLOR=value) for value in ("", "1"))
    assert "\x1b[32m" in coloured and "«" not in coloured
    assert "\x1b[" not in plain and "«" in plain
