"""Mixtures have the shares asked for, and commands write over nothing but their own output."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from forty2.cli import main
from forty2.data.mixing import mix
from forty2.data.sources import dumps, read_rows
from forty2.errors import DataError


def write(path: Path, prefix: str, n: int, words: int = 4) -> Path:
    rows = [
        {"prompt": f"{prefix} {i}?", "completion": " ".join([prefix] * words)} for i in range(n)
    ]
    path.write_text(dumps(rows))
    return path


def length(row: Any) -> int:
    return len(str(row["messages"][1]["content"]).split())


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 99), st.integers(20, 200), st.integers(20, 200), st.integers(0, 5))
def test_weights_are_shares_of_the_output(
    tmp_path_factory: pytest.TempPathFactory, percent: int, a: int, b: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("mix")
    inputs = [write(folder / "a.jsonl", "a", a), write(folder / "b.jsonl", "b", b)]
    mixed = mix(inputs, [percent, 100 - percent], seed=seed)
    share = sum(row["source"] == "a.jsonl" for row in mixed.rows) / len(mixed.rows)
    assert abs(share - percent / 100) <= 1 / len(mixed.rows)
    assert mixed.shares[str(inputs[0])] == pytest.approx(share, abs=1e-4)
    assert len({json.dumps(row) for row in mixed.rows}) == len(mixed.rows)  # none twice
    assert mix(inputs, [percent, 100 - percent], seed=seed) == mixed


def test_shares_by_length_are_not_shares_by_rows(tmp_path: Path) -> None:
    inputs = [
        write(tmp_path / "a.jsonl", "a", 400),
        write(tmp_path / "b.jsonl", "b", 400, words=40),
    ]
    mixed = mix(inputs, [1, 1], measure=length)
    words = Counter[str]()
    for row in mixed.rows:
        words[row["source"]] += length(row)
    assert words["a.jsonl"] == words["b.jsonl"] == 1600
    assert Counter(row["source"] for row in mixed.rows)["b.jsonl"] == 40


def test_too_little_is_an_error_that_says_what_would_do(tmp_path: Path) -> None:
    inputs = [write(tmp_path / "a.jsonl", "a", 30), write(tmp_path / "b.jsonl", "b", 300)]
    with pytest.raises(DataError, match=r"a.jsonl: holds 30, but 50% of 100 .* `size` 60 or less"):
        mix(inputs, [1, 1], size=100)
    mixed = mix(inputs, [1, 1], size=100, repeat=True)
    assert len(mixed.rows) == 100 and mixed.repeats == {str(inputs[0]): 1.67}
    assert mix(inputs).shares == {str(inputs[0]): 0.0909, str(inputs[1]): 0.9091}
    with pytest.raises(DataError, match="2 inputs but 3 weights"):
        mix(inputs, [1, 1, 1])


def test_the_seed_documents_spelling_works(tmp_path: Path) -> None:
    """Flags as the curriculum's own commands write them, several files after --inputs."""
    a, b = write(tmp_path / "a.jsonl", "a", 200), write(tmp_path / "b.jsonl", "b", 200)
    out = tmp_path / "mixed.jsonl"
    args = ["data", "mix", "--inputs", str(a), str(b), "--weights", "85", "15", "--shuffle"]
    result = CliRunner().invoke(main, [*args, "--seed", "7", "--output", str(out)])
    assert result.exit_code == 0, result.output
    assert "85.1% " in result.output and "14.9% " in result.output
    manifest = json.loads((tmp_path / "mixed.manifest.json").read_text())
    assert manifest["written"] == {"mixed": len(list(read_rows(out)))} == {"mixed": 235}
    assert manifest["seed"] == 7 and manifest["strata"]["source"] == {"a.jsonl": 200, "b.jsonl": 35}
    folder = tmp_path / "ready"
    args = ["data", "split", "--input", str(out), "--output_dir", str(folder)]
    result = CliRunner().invoke(main, [*args, "--val_split", "0.1"])
    assert result.exit_code == 0, result.output
    assert json.loads((folder / "manifest.json").read_text())["written"] == {
        "train": 211,
        "valid": 24,
    }


def test_a_stage_of_the_curriculum_by_command(tmp_path: Path) -> None:
    """Generate, mix in 15% replay, prepare: the counts that the manifests state are the files'."""

    def run(*args: str) -> str:
        result = CliRunner().invoke(main, ["data", *args])
        assert result.exit_code == 0, result.output
        return result.output

    alpha, beta = tmp_path / "alpha", tmp_path / "beta"
    run("format-lock", "--mode", "minimal", "--math", "exclude", "--output_dir", str(alpha))
    run("echo", "--gibberish", "exclude", "--max_examples", "850", "--output_dir", str(beta))
    mixed = tmp_path / "mixed.jsonl"
    files = ["--inputs", str(beta / "train.jsonl"), str(alpha / "train.jsonl")]
    said = run("mix", *files, "--weights", "85", "15", "--shuffle", "--output", str(mixed))
    assert "85.0%" in said and "15.0%" in said
    ready = tmp_path / "ready"
    args = ["--input", str(mixed), "--output_dir", str(ready), "--val_split", "0.1"]
    run("prepare", *args, "--pack", "256")
    manifest = json.loads((ready / "manifest.json").read_text())
    assert sum(manifest["written"].values()) == len(list(read_rows(mixed))) == 1000
    for folder, rows in ((alpha, 1000), (beta, 850)):
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["written"]["train"] == rows and not manifest["lint"]["error"]
        assert {"en", "de"} == set(manifest["strata"]["language"])


def test_other_formats_become_ours(tmp_path: Path, bench_data: Path) -> None:
    source = bench_data / "preference" / "llamafactory_dpo_en_demo.json"
    out = tmp_path / "out.jsonl"
    result = CliRunner().invoke(main, ["data", "convert", "-i", str(source), "-o", str(out)])
    assert result.exit_code == 0, result.output
    rows = [row for _, row in read_rows(out)]
    assert len(rows) == 300 and all({"prompt", "chosen", "rejected"} <= set(row) for row in rows)


def test_decontaminating_drops_and_names_rows(tmp_path: Path, bench_data: Path) -> None:
    benchmark = bench_data / "truthfulqa" / "mc_task_v0_817.json"
    asked = json.loads(benchmark.read_text("utf-8"))[7]["question"]
    source = write(tmp_path / "a.jsonl", "a", 20)
    rows = [row for _, row in read_rows(source)]
    source.write_text(dumps([*rows, {"prompt": asked, "completion": "Well."}]))
    out = tmp_path / "out.jsonl"
    args = ["data", "decontaminate", "-i", str(source), "--against", str(benchmark)]
    result = CliRunner().invoke(main, [*args, "-o", str(out)])
    assert result.exit_code == 0, result.output
    assert f"{source}:21: overlaps with {benchmark.name}" in result.output
    assert len(list(read_rows(out))) == 20


# --- what is not written over ---------------------------------------------------------------------


def run(*args: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["data", *map(str, args)])
    return result.exit_code, result.output


def held(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


WRITERS: list[list[str]] = [
    ["mix", "--inputs"],
    ["stratify", "--by-keys", "kind", "-i"],
    ["convert", "-i"],
    ["decontaminate", "--against", "benchmark.json", "-i"],
]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with rows in it, and with files that nobody wants to lose."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"q {n}?", "completion": "a", "kind": "xy"[n % 2]} for n in range(8)]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "rows.jsonl").write_text(dumps(rows))
    (tmp_path / "mine.jsonl").write_text(dumps(rows[:1]))
    (tmp_path / "recipe.yaml").write_text("mine")
    (tmp_path / "noted.manifest.json").write_text('{"sha256": 7}')
    (tmp_path / "benchmark.json").write_text('[{"question": "What is it that nobody asks?"}]')
    (tmp_path / "linked.jsonl").symlink_to(tmp_path / "in" / "rows.jsonl")
    (tmp_path / "hard.jsonl").hardlink_to(tmp_path / "in" / "rows.jsonl")
    (tmp_path / "nowhere.jsonl").symlink_to("nothing.jsonl")
    return tmp_path


@pytest.mark.parametrize("writer", WRITERS, ids=lambda words: words[0])
@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("in/rows.jsonl", "in/rows.jsonl is read from there"),
        ("in/../in/rows.jsonl", "is read from there"),
        ("linked.jsonl", "is read from there"),
        ("hard.jsonl", "is read from there"),
        ("recipe.yaml", "name a file that ends in .jsonl or .ndjson"),
        ("new.jsonl.gz", "name a file that ends in"),
        ("new", "name a file that ends in"),
        ("mine.jsonl", "exists and was not written by forty2"),
        ("nowhere.jsonl", "exists and was not written by forty2"),
        ("noted.jsonl", "noted.manifest.json: exists and was not written by forty2"),
    ],
)
def test_no_command_writes_over_what_is_not_its_own(
    writer: list[str], out: str, reason: str, desk: Path
) -> None:
    before = held(desk)
    code, said = run(*writer, "in/rows.jsonl", "-o", out)
    assert code == 2 and said.startswith("Error: ") and reason in said, said
    assert said.count("\n") == 1
    assert held(desk) == before


@pytest.mark.parametrize("writer", WRITERS, ids=lambda words: words[0])
@pytest.mark.parametrize("name", ["new.jsonl", "deeper/new.ndjson"])
def test_a_command_can_be_repeated(writer: list[str], name: str, desk: Path) -> None:
    outputs = []
    for _ in range(2):
        code, said = run(*writer, "in/rows.jsonl", "-o", name)
        assert code == 0, said
        outputs.append(held(desk))
    assert outputs[0] == outputs[1]
    other = "new.ndjson" if name == "new.jsonl" else "deeper/new.jsonl"
    code, said = run(*writer, "in/rows.jsonl", "-o", other)  # its manifest would take the place
    assert code == 2 and "new.manifest.json: exists" in said


def test_what_is_read_stays_what_it_was(desk: Path) -> None:
    """A folder's rows do not grow by what is made of them, and a benchmark is a source as well."""
    assert run("convert", "-i", "in", "-o", "in/new.jsonl")[1].startswith(
        "Error: in/new.jsonl: lies"
    )
    args = ["decontaminate", "-i", "in", "--against", "mine.jsonl", "-o", "mine.jsonl"]
    assert "mine.jsonl is read from there" in run(*args)[1]
    assert run("convert", "-i", "in", "-o", "new.jsonl")[0] == 0


@pytest.mark.parametrize("command", ["split", "prepare"])
@pytest.mark.parametrize("source", ["set", "set/train.jsonl"])
def test_a_set_does_not_replace_what_it_is_made_of(command: str, source: str, desk: Path) -> None:
    assert run("split", "-i", "in", "--val-split", "0.3", "--output-dir", "set")[0] == 0
    before = held(desk)
    code, said = run(command, "-i", source, "--output-dir", "set")
    assert (
        code == 2 and said == f"Error: set: {source} is read from there; write to another place\n"
    )
    assert held(desk) == before


def test_options_that_are_needed_are_called_required() -> None:
    for command in ("split", "prepare", "format-lock", "echo", "operators"):
        assert re.search(r"--output-dir[^-]*-*[^-]*\[required\]", run(command, "--help")[1]), (
            command
        )
    assert re.search(r"--against[^-]*\[required\]", run("decontaminate", "--help")[1])
    assert "[required]" not in run("lint", "--help")[1]
