"""The lint is silent about sound data, and its command, fix and refusal name every fault."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.lint_rows import Row, chat, chats, found, pairs, sentence

from forty2.cli import main
from forty2.data.build import NAMES, build, write_built
from forty2.data.checks.contamination import benchmark_of
from forty2.data.checks.lint import Linter, fixed, lint
from forty2.data.sets import write_file
from forty2.data.sources import dumps, read_rows
from forty2.errors import DataError


@pytest.mark.parametrize("command", ["data lint", "data stats", "data lint --fix out.jsonl"])
def test_an_empty_file_is_said_to_be_empty(command: str, tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.touch()
    verb, *options = command.split()[1:]
    result = CliRunner().invoke(main, ["data", verb, str(source), *options])
    assert result.exit_code and f"{source}: is empty" in result.output


def test_sound_data_is_passed_over_in_silence() -> None:
    assert found(chats(200), chats(40, seed=1)) == []
    assert found(pairs(200)) == []


@pytest.mark.parametrize("name", NAMES)
def test_the_built_in_sets_have_no_error(name: str, tmp_path: Path, bench_data: Path) -> None:
    folder = tmp_path / name
    manifest = write_built(build(name), folder)
    assert not manifest["lint"]["error"]
    files = sorted(p for p in bench_data.rglob("*") if p.suffix in (".json", ".csv"))
    against = [benchmark_of(p) for p in files if "truthfulqa" in str(p)]
    findings = lint(folder, folder / "valid.jsonl", benchmarks=against)
    assert not [f for f in findings if f.level == "error"], findings


def test_a_published_set_with_degenerate_rows(bench_data: Path, tmp_path: Path) -> None:
    path = bench_data / "preference" / "ultrafeedback_binarized_sample_train_1000.jsonl"
    findings = lint(path)
    unreadable = [f for f in findings if f.check == "row"]
    equal = [
        n
        for n, line in enumerate(path.read_text("utf-8").split("\n")[:-1], 1)
        if degenerate(json.loads(line))
    ]
    assert len({finding.message for finding in unreadable}) == len(unreadable) > 1
    assert sum(finding.count for finding in unreadable) == len(equal)
    named = {origin for finding in unreadable for origin in finding.origins}
    assert named <= {f"{path}:{n}" for n in equal}
    counts: dict[str, int] = {}
    manifest = write_file(tmp_path / "fixed.jsonl", fixed(path, counts), {})
    assert counts["kept"] == manifest["written"]["fixed"] > 0
    left = {f.check for f in lint(tmp_path / "fixed.jsonl") if f.level == "error"}
    assert left <= {"special"}  # which tokens those are, only the model's tokenizer can tell


def degenerate(row: Row) -> bool:
    chosen, rejected = row["chosen"], row["rejected"]
    return chosen == rejected or not chosen.strip() or not rejected.strip()


def test_fix_keeps_what_is_sound_as_it_is(tmp_path: Path) -> None:
    rows = [*chats(20), chat("Which?", "This\u200b one."), {"messages": []}]
    source = tmp_path / "rows.jsonl"
    source.write_text(dumps([*rows, rows[4]]), "utf-8")
    counts: dict[str, int] = {}
    assert list(fixed(source, counts)) == [*rows[:20], chat("Which?", "This one.")]
    assert counts == {"kept": 21, "unreadable": 1, "duplicate": 1, "mended": 1}


def run_lint(*args: object) -> Result:
    return CliRunner().invoke(main, ["data", "lint", *map(str, args)])


def test_a_fix_can_be_repeated_and_replaces_nothing_else(tmp_path: Path) -> None:
    rows = chats(20)
    source, out = tmp_path / "rows.jsonl", tmp_path / "fixed.jsonl"
    source.write_text(dumps([*rows, rows[4]]))
    for _ in range(2):
        result = run_lint(source, "--fix", out)
        assert result.exit_code == 1, result.output  # of the source, which is as it was
        assert "20 kept, 0 unreadable, 1 duplicate, 0 mended" in result.output
        assert [row for _, row in read_rows(out)] == rows
    assert run_lint(out).exit_code == 0
    manifest = json.loads((tmp_path / "fixed.manifest.json").read_text())
    assert manifest["fixed"]["duplicate"] == 1 and manifest["written"] == {"fixed": 20}
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "valid.jsonl").write_text(dumps(chats(2, seed=1)))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for name in ("rows.jsonl", "notes.txt", "valid.jsonl"):
        result = run_lint(source, "--valid", tmp_path / "valid.jsonl", "--fix", tmp_path / name)
        assert result.exit_code == 2 and f"{tmp_path / name}: " in result.output
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_nothing_to_keep_is_an_error_and_no_empty_file(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text("{broken\n[1]\n")
    result = run_lint(source, "--fix", tmp_path / "fixed.jsonl")
    assert result.exit_code == 2 and f"{source}: holds no row that can be kept" in result.output
    assert list(tmp_path.iterdir()) == [source]


def test_a_source_that_cannot_be_read_is_no_finding(tmp_path: Path) -> None:
    source, gone = tmp_path / "rows.jsonl", tmp_path / "nope.jsonl"
    source.write_text(dumps(chats(5)))
    for args in ((gone,), (source, "--valid", gone), (source, "--against", gone)):
        result = run_lint(*args, "--fix", tmp_path / "fixed.jsonl")
        assert result.exit_code == 2
        said = f"Error: {gone}: cannot be read: No such file or directory; did you mean {source}?\n"
        assert result.output == said
    assert list(tmp_path.iterdir()) == [source]
    with pytest.raises(DataError, match="holds no data file"):
        (tmp_path / "empty").mkdir()
        lint(tmp_path / "empty")


def test_the_command_fails_on_errors_and_says_where(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(dumps(chats(30)))
    result = CliRunner().invoke(main, ["data", "lint", str(source)])
    assert result.exit_code == 0 and "nothing found" in result.output
    rows = dumps([*chats(30), chats(30)[2]])
    source.write_text(rows.replace("\n", "\n{broken\n", 1) + "[1]\n" + dumps(chats(2, seed=9)))
    result = CliRunner().invoke(main, ["data", "lint", str(source)])
    assert result.exit_code == 1
    for line in (2, 33):  # every bad line, not the first alone
        assert f"not readable: {source}:{line}: not a JSON object" in result.output
    assert "duplicate" in result.output and f"{source}:32" in result.output


def refuse_errors(source: Path) -> None:
    linter = Linter()
    linter.read(source, "train")
    linter.refuse_errors(str(source))


def test_a_run_refuses_faults_and_says_how_to_go_on(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(dumps(chats(30)))
    refuse_errors(source)
    source.write_text(dumps([*chats(30), chats(30)[2], chat("What?", "A \x07 bell.")]))
    with pytest.raises(DataError) as error:
        refuse_errors(source)
    message = str(error.value)
    assert f"{source}:31" in message and f"{source}:32" in message and "\n" not in message
    assert "lint: false" in message
    source.write_text('{"broken')
    with pytest.raises(DataError, match=r"rows.jsonl:1: not a JSON object"):
        refuse_errors(source)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Rows leave hashes behind: linting 200 MB takes much less than 200 MB more."""
    generator = random.Random(1)
    path = tmp_path / "large.jsonl"
    with path.open("w") as file:
        for _ in range(100_000):
            row = chat(sentence(generator, 9), sentence(generator, 260))
            file.write(dumps([row]))
    measured = "import sys, forty2.data.checks.lint as l; l.lint(sys.argv[1]); "
    measured += "from forty2.speed.workers.__main__ import process_peak; print(process_peak())"
    done = subprocess.run(
        [sys.executable, "-c", measured, str(path)], capture_output=True, text=True, check=True
    )
    assert path.stat().st_size > 190e6
    assert int(done.stdout) < 350e6
