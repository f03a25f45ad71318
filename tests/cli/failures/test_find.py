"""`forty2 failures find` at the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.cli import forty2, refused
from support.small_run import make_inputs


def test_pass_rates_are_printed_and_a_second_call_prints_the_same(tmp_path: Path) -> None:
    model = make_inputs(tmp_path / "inputs") / "model"
    folder = tmp_path / "F"
    assert forty2("failures", "testset", "--out", folder, "--strata", "other=6").exit_code == 0
    command: list[str | Path] = ["failures", "find", folder, "--model", model, "--max-tokens", "4"]
    first = forty2(*command)
    assert first.exit_code == 0, first.output
    assert "pass rate, 95% interval" in first.output and "tokens generated in" in first.output
    again = forty2(*command)
    assert again.exit_code == 0 and again.output.strip() in first.output


def test_what_is_missing_is_one_message(tmp_path: Path) -> None:
    model = make_inputs(tmp_path / "inputs") / "model"
    assert "failures testset" in refused("failures", "find", tmp_path, "--model", model)
    folder = tmp_path / "F"
    forty2("failures", "testset", "--out", folder, "--strata", "code=4")
    said = refused("failures", "find", folder, "--model", model)
    assert "--run-untrusted-code" in said


def test_after_a_signal_the_same_command_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("forty2.failures.find.find_failures", interrupted)
    result = forty2("failures", "find", tmp_path, "--model", "smollm2")
    assert result.exit_code == 130
    assert f"to go on: forty2 failures find {tmp_path} --model smollm2" in result.output
