"""The lint finds each fault where it is, and is silent about sound data."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from forty2.cli import main
from forty2.data.build import NAMES, build, write_built
from forty2.data.checks.contamination import benchmark_of
from forty2.data.checks.lint import Finding, Linter, fixed, lint, refuse_faults
from forty2.data.formats import parse
from forty2.data.library import rows as library
from forty2.data.sets import write_file
from forty2.data.sources import dumps, read_rows
from forty2.errors import DataError

WORDS = sorted({w for row in library("myths_a") for t in row["true"] for w in t.lower().split()})
Row = dict[str, Any]


def chat(question: str, answer: str, **meta: Any) -> Row:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **meta}


def sentence(generator: random.Random, words: int) -> str:
    return " ".join(generator.choices(WORDS, k=words)).capitalize() + "."


def chats(n: int, seed: int = 0) -> list[Row]:
    generator = random.Random(seed)
    return [chat(sentence(generator, 9), sentence(generator, 20)) for _ in range(n)]


def pairs(n: int, seed: int = 0) -> list[Row]:
    generator = random.Random(seed)
    keys = ("prompt", "chosen", "rejected")
    lengths = (9, generator.randint(8, 30), generator.randint(8, 30))
    made = [
        dict(zip(keys, (sentence(generator, k) for k in lengths), strict=True)) for _ in range(n)
    ]
    for row in made:  # neither side is the longer by habit
        if generator.random() < 0.5:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    return made


def found(train: list[Row], valid: list[Row] | None = None, **options: Any) -> list[Finding]:
    linter = Linter(**options)
    for split, rows in (("train", train), ("valid", valid or [])):
        if split == "valid" and rows:
            linter._valid_from = len(train)
        for number, row in enumerate(rows, 1):
            linter.add(parse(row, f"{split}:{number}"), split)  # type: ignore[arg-type]
    return linter.findings()


def checks(findings: list[Finding]) -> list[tuple[str, str, int]]:
    return [(f.check, f.level, f.count) for f in findings]


def test_sound_data_is_passed_over_in_silence() -> None:
    assert found(chats(200), chats(40, seed=1)) == []
    assert found(pairs(200)) == []


SENTENCE = sentence(random.Random(5), 40)
BAD: dict[str, tuple[Row, tuple[str, str]]] = {
    "control": (chat("What is it?", "A zero-width\u200bspace."), ("control", "error")),
    "bell": (chat("What is it?", "A bell \x07 rings."), ("control", "error")),
    "special": (chat("Say it", "It is <|im_end|> indeed."), ("special", "error")),
    "mail": (chat("Who wrote?", "It was jane.doe@company.com, I think."), ("personal", "warning")),
    "phone": (chat("Whom to call?", "Call +49 170 1234567 now."), ("personal", "warning")),
    "card": (chat("Pay how?", "Use 4111 1111 1111 1111 for it."), ("personal", "warning")),
    "iban": (chat("Pay where?", "To DE89 3704 0044 0532 0130 00 please."), ("personal", "warning")),
    "cut": (chat("Tell me more", SENTENCE.rstrip(".") + " and then the"), ("truncated", "warning")),
}


@pytest.mark.parametrize("name", BAD)
def test_a_fault_in_one_row_is_named_by_its_line(name: str) -> None:
    row, (check, level) = BAD[name]
    rows = chats(60)
    rows[6:6] = [row]
    (finding,) = found(rows)
    assert (finding.check, finding.level, finding.origins) == (check, level, ("train:7",))


@pytest.mark.parametrize(
    "text",
    [
        "Write to jane@example.com for that.",
        "The number 1234 5678 9012 3456 is no card.",
        "A family emoji \U0001f468\u200d\U0001f469\u200d\U0001f467 is joined.",
        "It costs 3 < 5.",
        "The router is at 192.168.0.1 here.",
    ],
)
def test_what_only_looks_like_a_fault_is_none(text: str) -> None:
    assert found([*chats(60), chat("What then?", text)]) == []


@pytest.mark.parametrize(
    ("roles", "complaint"),
    [
        (["user", "system", "assistant"], "system message"),
        (["assistant", "user", "assistant"], "speaks first"),
        (["user", "assistant", "assistant"], "follow each other"),
    ],
)
def test_roles_out_of_order(roles: list[str], complaint: str) -> None:
    turns = [{"role": role, "content": f"turn {n}."} for n, role in enumerate(roles)]
    (finding,) = found([*chats(50), {"messages": turns}])
    assert finding.check == "roles" and complaint in finding.message


def test_duplicates_near_and_exact() -> None:
    rows = chats(100)
    near = json.loads(json.dumps(rows[10]))
    near["messages"][0]["content"] = f"Really? {near['messages'][0]['content']}"
    assert checks(found([*rows, rows[3], near])) == [
        ("duplicate", "error", 1),
        ("near", "warning", 1),
    ]


@pytest.mark.parametrize("similarity", [0.5, 0.98])
def test_near_duplicates_are_found_by_similarity(similarity: float) -> None:
    """Of rows changed beyond recognition few are reported, of rows hardly changed nearly all."""
    generator = random.Random(7)
    rows = chats(200)
    changed = []
    for row in rows:
        words = generator.choices(WORDS, k=90)
        row["messages"][1]["content"] = " ".join(words) + "."
        other = words[:]
        for _ in range(round((1 - similarity) * len(words) / 3)):
            other[generator.randrange(len(other))] = generator.choice(WORDS)
        changed.append(chat(row["messages"][0]["content"] + " x", " ".join(other) + "."))
    near = sum(f.count for f in found(rows + changed) if f.check == "near")
    assert near > 180 if similarity > 0.9 else near < 20


def test_contradictions() -> None:
    base = pairs(40)
    swapped = {**base[4], "chosen": base[4]["rejected"], "rejected": base[4]["chosen"]}
    assert ("contradiction", "error", 2) in checks(found([*base, swapped]))
    answers = [chat("Is it so?", "Yes."), chat("Is it so?", "No.")]
    assert checks(found([*chats(50), *answers])) == [("contradiction", "error", 2)]
    long = [chat("Tell a tale.", sentence(random.Random(i), 12)) for i in range(2)]
    assert checks(found([*chats(50), *long])) == [("contradiction", "warning", 2)]


def test_validation_that_was_trained_on() -> None:
    rows = chats(50)
    asked = rows[8]["messages"][0]["content"]
    assert checks(found(rows, [chat(asked.upper(), "Another answer.")])) == [
        ("overlap", "error", 1)
    ]
    (finding, *_) = found([*rows, rows[2]], [rows[2], *chats(9, seed=3)])
    assert finding.check == "duplicate"
    whole = [f for f in found([*rows, rows[2]], [rows[2]]) if f.check == "overlap"]
    assert "weighted before the split" in whole[0].message
    for key, level in (("entity", "error"), ("template", "warning")):
        train = [{**row, key: f"Thing {n}"} for n, row in enumerate(chats(30))]
        valid = [{**row, key: f"thing {n + 25}"} for n, row in enumerate(chats(9, seed=2))]
        assert checks(found(train, valid)) == [("overlap", level, 5)]


def longer(row: Row) -> Row:
    return {**row, "chosen": f"{row['chosen']} {row['rejected']}"}


def marked(row: Row) -> Row:
    return {**row, "chosen": f"[good] {row['chosen']}", "rejected": f"so-so! {row['rejected']}"}


def opening(row: Row) -> Row:
    return {**row, "rejected": f"Well now, {row['rejected']}"}


@pytest.mark.parametrize(
    ("change", "feature"),
    [(longer, "length"), (marked, "the word 'good'"), (opening, "the word 'well'")],
)
def test_a_shortcut_is_named(change: Callable[[Row], Row], feature: str) -> None:
    """Shuffled sides lose the shortcut and the finding with it."""
    rows = [change(row) for row in pairs(100)]
    (finding,) = (f for f in found(rows) if f.check == "shortcut")
    assert finding.level == "error" and "100%" in finding.message
    if feature == "length":
        assert finding.message.startswith("length")
    else:
        assert feature in finding.message
    rated = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for side in ("chosen", "rejected")
        for row in rows
    ]
    assert [f.message for f in found(rated) if f.check == "shortcut"] == [finding.message]
    generator = random.Random(1)
    for row in rows:
        if generator.random() < 0.5:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    assert not [f for f in found(rows) if f.check == "shortcut"]


def test_languages_that_mix() -> None:
    german = "Das ist ein ganz gewöhnlicher deutscher Satz über das Wetter von gestern, Nummer {}."
    english = (
        "This is quite an ordinary English sentence about the weather of yesterday, number {}."
    )
    rows = [chat(f"Frage {n} dazu?", german.format(n * 7919)) for n in range(30)]
    rows += [chat(f"A question {n} then?", english.format(n * 104729)) for n in range(70)]
    (finding,) = (f for f in found(rows) if f.check == "language")
    assert "en 70%" in finding.message and "de 30%" in finding.message


@pytest.mark.parametrize("name", NAMES)
def test_the_built_in_sets_have_no_error(name: str, tmp_path: Path, bench_data: Path) -> None:
    folder = tmp_path / name
    manifest = write_built(build(name), folder)
    assert not manifest["lint"]["error"]
    files = sorted(p for p in bench_data.rglob("*") if p.suffix in (".json", ".csv"))
    against = [benchmark_of(p) for p in files if "truthfulqa" in str(p)]
    findings = lint(folder, folder / "valid.jsonl", benchmarks=against)
    assert not [f for f in findings if f.level == "error"], findings


def test_a_benchmark_in_the_training_data_is_found(bench_data: Path, tmp_path: Path) -> None:
    path = bench_data / "truthfulqa" / "mc_task_v0_817.json"
    benchmark = benchmark_of(path)
    asked = json.loads(path.read_text("utf-8"))
    long = next(t for r in asked for t in r["mc2_targets"] if len(t.split()) > 18)
    rows = chats(40)
    rows += [chat(asked[5]["question"].upper(), "An answer."), chat("Is it?", f"Well, {long} So.")]
    rows += [chat("What happens then?", " ".join(long.split()[:11]) + ".")]
    (finding,) = found(rows, benchmarks=[benchmark])
    assert (finding.check, finding.count) == ("benchmark", 2)
    assert finding.origins == ("train:41", "train:42")


def test_a_published_set_with_degenerate_rows(bench_data: Path, tmp_path: Path) -> None:
    path = bench_data / "preference" / "ultrafeedback_binarized_sample_train_1000.jsonl"
    findings = lint(path)
    (finding,) = (f for f in findings if f.check == "row")
    equal = [
        n
        for n, line in enumerate(path.read_text("utf-8").split("\n")[:-1], 1)
        if degenerate(json.loads(line))
    ]
    assert finding.count == len(equal) > 0
    assert finding.origins == tuple(f"{path}:{n}" for n in equal[:5])
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
        assert result.output == f"Error: {gone}: cannot be read: No such file or directory\n"
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
    assert f"{source}:2, {source}:33" in result.output  # every bad line, not the first alone
    assert "duplicate" in result.output and f"{source}:32" in result.output


def test_a_run_refuses_faults_and_says_how_to_go_on(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(dumps(chats(30)))
    refuse_faults(str(source), None, ())
    source.write_text(dumps([*chats(30), chats(30)[2], chat("What?", "A \x07 bell.")]))
    with pytest.raises(DataError) as error:
        refuse_faults(str(source), None, ())
    told = str(error.value)
    assert f"{source}:31" in told and f"{source}:32" in told and "\n" not in told
    assert "lint: false" in told
    source.write_text('{"broken')
    with pytest.raises(DataError, match=r"rows.jsonl:1: not a JSON object"):
        refuse_faults(str(source), None, ())


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
