"""Feed the readers input that nobody would write, guided by the code that it reaches.

    python tests/fuzz.py [TARGET ...] [--seconds 60] [--findings DIR]

An input must be read, or refused by one of our errors with a line for each problem that names the
file, within two seconds and 300 MB, and no file may stay behind. Anything else is a finding: the
input is written to DIR, and the exit code is 1. Findings that are mended become cases in
tests/cli/test_bad_*.py.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gzip
import hashlib
import io
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

try:
    import atheris
except ImportError:
    sys.exit("fuzzing needs atheris: python -m pip install --group fuzz")

with (
    contextlib.redirect_stderr(io.StringIO()),  # a line for each module
    atheris.instrument_imports(include=["forty2", "yaml"]),
):
    import forty2  # isort: skip  # noqa: F401  # before mlx
    import yaml
    from support.gguf_files import write_gguf
    from support.models import tiny_model

    from forty2.benchmark.compare import compare
    from forty2.benchmark.metrics import METRICS, item_metrics
    from forty2.benchmark.results import read_measured
    from forty2.benchmark.tasks import gsm8k, humaneval, mmlu
    from forty2.benchmark.truthfulqa_questions import load_questions
    from forty2.data.formats import read_chats, read_pairs, read_records, to_row
    from forty2.data.records import Chat, Text
    from forty2.data.sources import dumps, read_rows
    from forty2.errors import Forty2Error
    from forty2.files import find_damage, read_json, seal
    from forty2.model import adapter, adapter_files
    from forty2.model.gguf.file import GgufFile
    from forty2.model.loading import load
    from forty2.recipe.reading import load_recipe, to_yaml
    from forty2.recipe.schema import Adapter
    from forty2.text.encoder import Encoder

from support import bad_input as good

SECONDS, BYTES = 2.0, 300_000_000
MAXRSS = 1024 if sys.platform == "linux" else 1
ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    2**63,
    10**400,
    1.5,
    1e308,
    "",
    " ",
    "\0",
    "\ud800",
    "é\u0301",
    "x" * 3000,
    "{{ 1/0 }}",
    "<|im_end|>",
    "\ue0f00\ue0f1",
    "../x",
    [],
    {},
    [[]],
    {"a": {}},
    [None],
    ["x"] * 50,
    {"role": "user"},
    {"role": "tool", "content": "x"},
    {"role": "assistant", "content": None},
]
WORDS = [
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    '"',
    "\\",
    "\\ud800",
    "&a ",
    "*a",
    "~",
    "!!int ",
    "!!python/name:os.system",
    "<<: ",
    "- ",
    "? ",
    "\n",
    "\t",
    "\r",
    "1e999",
    "-1",
    "NaN",
    "null",
    "true",
    "''",
    "|\n",
    ">\n",
    "%YAML 1.1\n",
    "---\n",
    "...\n",
    "2026-01-01",
    "1:30",
    ".inf",
    "0x1f",
    "\u2028",
    "\ufeff",
    "\x85",
]


class Target(NamedTuple):
    """A reader, and valid files to start from."""

    read: Callable[[Path], object]
    seeds: dict[str, list[bytes]]
    """Contents by file name; a file whose name ends in .gz is written compressed."""
    beside: Callable[[Path], object] = lambda folder: None
    """Writes the other files that the reader expects in the folder."""
    nameless: tuple[str, ...] = ()
    """Texts that a message may hold in place of the file's name."""


def text(*rows: Any) -> bytes:
    return good.lines(*rows).encode()


# --- targets --------------------------------------------------------------------------------------


def recipe(path: Path) -> None:
    """Read a recipe, and overrides after each NUL; write it, and read it again."""
    data, *overrides = path.read_bytes().split(b"\0")
    path.write_bytes(data)
    read = load_recipe(path, [override.decode(errors="replace") for override in overrides])
    path.write_text(to_yaml(read), "utf-8")
    assert load_recipe(path) == read, "written and read again, the recipe differs"


def data(path: Path) -> None:
    """Read rows, write them, and read them again."""
    for reader in (read_chats, read_pairs):
        with contextlib.suppress(Forty2Error):
            reader(path)
    told: list[str] = []
    for _ in read_rows(path, told.append):
        pass
    records = read_records(path)
    again = path.with_name("again.jsonl")
    again.write_bytes(dumps(map(to_row, records)).encode())
    try:
        found = [to_row(record) for record in read_records(again)]
        assert found == [to_row(record) for record in records], (
            "written and read again, the rows differ"
        )
    except Forty2Error as error:
        raise AssertionError(f"the rows that were written are refused: {error}") from error
    finally:
        again.unlink()


class Templates:
    """Encodes rows by a chat template, each alone and all at once."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            good.write_tiny(Path(folder) / "tiny")
            self.encoder = Encoder(load(str(Path(folder) / "tiny")).tokenizer)

    def __call__(self, path: Path) -> None:
        records = read_records(path)
        for record in records:
            self.encoder.measure(record)
        chats = [record for record in records if isinstance(record, Chat | Text)]
        alone = [row for record in chats for row in self.encoder.encode_sft_record(record)]
        assert self.encoder.encode_sft(chats) == alone, (
            "encoding all rows at once gives another result"
        )


def damaged(path: Path) -> None:
    reason = find_damage(path.parent)
    assert reason is None or str(path.parent) in reason


class Adapters:
    def __init__(self) -> None:
        self.model = tiny_model()
        adapter.attach_adapter(self.model, SPEC, seed=1)

    def beside(self, folder: Path) -> None:
        adapter.save_adapter(self.model, SPEC, folder)

    def __call__(self, path: Path) -> None:
        adapter.load_adapter(tiny_model(), adapter.adapter_dir(path.parent))


SPEC = Adapter(rank=2, scale=1.0)


def result() -> bytes:
    """Return a TruthfulQA result of two questions."""
    part = {"choices": ["Yes.", "No."], "labels": [1, 0], "loglik": [-1.0, -2.0]}
    item = {"question": "Is it?", "category": "Law", "mc1": part, "mc2": part}
    whole = {
        "benchmark": "truthfulqa",
        "questions": "q.json",
        "questions_sha256": "0",
        "model": "m",
        "chat_template": False,
        "items": [item, {**item, "question": "Is it not?"}],
    }
    return json.dumps({**whole, **{name: item_metrics(item)[name] for name in METRICS}}).encode()


def written(write: Callable[[Path], object], name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        return (Path(folder) / name).read_bytes()


def checkpoint(folder: Path) -> None:
    for name in ("adapters.safetensors", "state.json"):
        (folder / name).write_bytes(name.encode())


def targets() -> dict[str, Callable[[], Target]]:
    """Return all targets; each is made when it is needed, because some load a model."""
    chats = text(good.CHAT, good.said(("system", "s"), ("user", "q"), ("assistant", "a")))
    more = text({"instruction": "q", "input": "i", "output": "a", "history": [["a", "b"]]})
    transcript = "\n\nHuman: q\n\nAssistant: "
    pairs = text(good.PAIR, {"chosen": f"{transcript}a", "rejected": f"{transcript}b"})
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    rated = text({**good.CHAT, "label": True}, {"conversations": turns})
    call = {"function": {"name": "f", "arguments": '{"a": 1}'}}
    parts = [{"type": "text", "text": "q"}]
    calls = [
        {"role": "developer", "content": parts, "weight": 0},
        {"role": "assistant", "content": None, "tool_calls": [call], "thinking": "since"},
        {"role": "tool", "content": "1", "name": "f"},
        {"role": "assistant", "content": "a", "train": False},
    ]
    sides = {"preferred_output": [calls[1]], "non_preferred_output": calls[1:]}
    preference = text({"input": {"messages": calls[:1], "tools": [{"name": "f"}]}, **sides})
    strange = text({"messages": calls, "tools": '[{"name": "f"}]', "system_prompt": "s"})
    rows = [chats, more, pairs, rated, text({"text": "One."}), preference, strange]
    arrays = [json.dumps(list(map(json.loads, r.splitlines()))).encode() for r in rows]
    table = b'prompt,completion,label\nq,a,\n"x\ny","[{""role"": ""assistant"", ""content"": ""a""}]",x\n'
    wraps = [b'{"version": 1, "data": ' + array + b"}" for array in arrays]
    kinds = {
        "rows.jsonl": [*rows, *wraps],
        "rows.json": [*arrays, *wraps, *rows],
        "rows.csv": [table, b"\xff\xfe" + table.decode().encode("utf-16-le")],
        "rows.tsv": [table.replace(b",", b"\t"), table.replace(b",", b";")],
        "rows.txt": [b"one\n\ntwo\n"],
        "rows.jsonl.gz": rows,
        "rows.json.gz": arrays,
        "rows.csv.gz": [table],
    }
    questions = [
        json.dumps([good.QUESTION]).encode(),
        good.options('{"choices": ["a", "b"], "labels": [1, 0]}').encode(),
    ]
    choices = b"question,choice0,choice1,choice2,choice3,answer\nIs it?,a,b,c,d,2\n"
    problem = {"task_id": "T/0", "prompt": "def f():\n", "test": "x", "entry_point": "f"}
    return {
        "recipe": lambda: Target(
            recipe,
            {
                "recipe.yaml": [
                    good.RECIPE.encode(),
                    good.RECIPE.encode() + b"\0adapter.rank=4\0phases.dpo.loss=ipo",
                    b'{"version": 1, "name": "a", "model": "m", "phases": {"a": {"objective": "sft"}}}',
                ]
            },
            good_data,
            nameless=("`overrides`",),
        ),
        "data": lambda: Target(data, kinds),
        "templates": lambda: Target(Templates(), {"rows.jsonl": rows[:5]}),
        "questions": lambda: Target(
            load_questions, {"q.json": questions, "q.csv": [good.CSV.encode()]}
        ),
        "mmlu": lambda: Target(
            lambda p: mmlu.load_subjects(p, shots=0), {"law_test.csv": [choices]}
        ),
        "gsm8k": lambda: Target(
            lambda p: gsm8k.load_problems(p, shots=0),
            {"test.jsonl": [text({"question": "1+1?", "answer": "It is #### 2"})]},
        ),
        "humaneval": lambda: Target(
            humaneval.load_problems,
            {"HumanEval.jsonl": [text(problem)], "HumanEval.jsonl.gz": [text(problem)]},
        ),
        "compare": lambda: Target(
            lambda p: compare(
                read_measured(json.loads(result()), "before"),
                read_measured(read_json(p), str(p)),
                resamples=10,
            ),
            {"after.json": [result()]},
            nameless=("the result ", "not comparable: "),
        ),
        "adapter": adapters,
        "gguf": lambda: Target(GgufFile, {"m.gguf": [small_gguf()]}),
        "checkpoint": lambda: Target(damaged, {"SHA256SUMS": [sums()]}, checkpoint),
    }


def adapters() -> Target:
    read = Adapters()
    config = written(read.beside, adapter_files.CONFIG)
    return Target(read, {adapter_files.CONFIG: [config]}, read.beside)


def good_data(folder: Path) -> None:
    for name in ("chats.jsonl", "pairs.jsonl"):
        (folder / name).touch()


def small_gguf() -> bytes:
    """Return the head of a GGUF file: its names, its values and some of its tensors."""
    return written(lambda folder: write_gguf(folder / "m.gguf"), "m.gguf")[:4096]


def sums() -> bytes:
    def make(folder: Path) -> None:
        checkpoint(folder)
        seal(folder)

    return written(make, "SHA256SUMS")


# --- mutation -------------------------------------------------------------------------------------


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container within a value with each of its keys."""
    if isinstance(tree, dict | list):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from places(tree[key])


def changed(tree: Any, rng: random.Random) -> Any:
    """Return a copy of a value with one place in it removed, moved or replaced."""
    tree = [copy.deepcopy(tree)]
    found = list(places(tree))
    where, key = rng.choice(found)
    other, other_key = rng.choice(found)
    match rng.randrange(6):
        case 0:
            del where[key]
        case 1:
            where[key] = copy.deepcopy(other[other_key])
        case 2:
            where[key] = (
                {rng.choice(list(where)): where[key]} if isinstance(where, dict) else [where[key]]
            )
        case 3 if isinstance(where, dict):
            where[str(rng.choice(ODD))[:9]] = where.pop(key)
        case 4 if isinstance(where, list):
            where.insert(key, copy.deepcopy(other[other_key]))
        case _:
            where[key] = copy.deepcopy(rng.choice(ODD))
    return tree[0] if tree else None


def mutate(content: bytes, size: int, seed: int) -> bytes:
    """Mutate an input: half of the time within its grammar, else byte by byte."""
    rng = random.Random(seed)
    kind, body = content[:1], content[1:]
    if rng.random() < 0.5:
        with contextlib.suppress(ValueError, TypeError, yaml.YAMLError, RecursionError, IndexError):
            return (kind + structured(body, rng))[:size]
    return bytes(atheris.Mutate(content, size))


def structured(body: bytes, rng: random.Random) -> bytes:
    try:
        return json.dumps(changed(json.loads(body), rng)).encode()
    except ValueError:
        lines = body.split(b"\n")
        n = rng.randrange(len(lines))
        try:
            lines[n] = json.dumps(changed(json.loads(lines[n]), rng)).encode()
            return b"\n".join(lines)
        except ValueError:
            tree, *rest = body.split(b"\0")
            new = yaml.safe_dump(changed(yaml.safe_load(tree), rng), sort_keys=False)
            return b"\0".join([new.encode(), *rest])


# --- one target, in a process of its own ----------------------------------------------------------


class Fuzz:
    """Receives each input of libFuzzer: a byte that chooses the file's name, then its content."""

    def __init__(self, name: str, target: Target, findings: Path, scratch: Path) -> None:
        self.name, self.target, self.findings, self.scratch = name, target, findings, scratch
        self.names = sorted(target.seeds)
        self.known: set[str] = set()
        target.beside(scratch)
        self.around = set(scratch.rglob("*"))

    def seeds(self) -> Iterator[bytes]:
        for number, name in enumerate(self.names):
            for seed in self.target.seeds[name]:
                yield bytes([number]) + seed

    def __call__(self, given: bytes) -> None:
        path = self.scratch / self.names[(given or b"\0")[0] % len(self.names)]
        content = gzip.compress(given[1:], 1) if path.suffix == ".gz" else given[1:]
        path.write_bytes(content)
        memory, start = peak(), time.process_time()
        try:
            self.target.read(path)
        except Forty2Error as error:
            names = (str(path), str(path.parent), *self.target.nameless)
            for line in str(error).split("\n"):
                if not any(name in line for name in names) or not line.isprintable():
                    self.found(path, content, f"message from {_raised(error)}", line)
        except Exception as error:
            kind = f"{type(error).__name__} at {_raised(error)}"
            self.found(path, content, kind, traceback.format_exc())
        if time.process_time() - start > SECONDS:
            self.found(path, content, "slow", f"{time.process_time() - start:.1f} s")
        if peak() - memory > BYTES:
            self.found(path, content, "large", f"{(peak() - memory) / 1e6:.0f} MB more")
        if left := set(self.scratch.rglob("*")) - self.around - {path}:
            self.found(path, content, "files", f"left behind: {left}")
        path.unlink()
        if path in self.around:
            self.target.beside(self.scratch)

    def found(self, path: Path, content: bytes, kind: str, reason: str) -> None:
        if kind in self.known:
            return
        self.known.add(kind)
        folder = self.findings / f"{self.name}-{hashlib.sha256(content).hexdigest()[:8]}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).write_bytes(content)
        (folder / "why.txt").write_text(f"{kind}\n{reason}\n", "utf-8", "backslashreplace")
        print(f"FINDING {folder}: {kind}", flush=True)


def _raised(error: BaseException) -> str:
    at = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(at.filename).name}:{at.lineno}"


def peak() -> int:
    """Return the most memory that this process had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS


def fuzz(name: str, seconds: int, findings: Path) -> None:
    """Fuzz a target in this process. Does not return: libFuzzer ends the process."""
    with tempfile.TemporaryDirectory() as folder:
        corpus, scratch = Path(folder) / "corpus", Path(folder) / "scratch"
        findings.mkdir(parents=True, exist_ok=True)
        corpus.mkdir()
        scratch.mkdir()
        one = Fuzz(name, targets()[name](), findings, scratch)
        for number, seed in enumerate(one.seeds()):
            one(seed)
            (corpus / str(number)).write_bytes(seed)
        escaped = ["".join(f"\\x{byte:02x}" for byte in word.encode()) for word in WORDS]
        words = Path(folder) / "words"
        words.write_text("".join(f'"{word}"\n' for word in escaped))
        options = [
            f"-max_total_time={seconds}",
            f"-dict={words}",
            f"-artifact_prefix={findings}/",
            "-max_len=8192",
            "-len_control=0",
            "-timeout=20",
            "-rss_limit_mb=0",
        ]
        atheris.Setup([sys.argv[0], *options, str(corpus)], one, custom_mutator=mutate)
        atheris.Fuzz()


def run(name: str, seconds: int, findings: Path) -> int:
    """Fuzz a target in a process of its own, print a line about it, and count its findings."""
    command = [sys.executable, __file__, name, "--here"]
    command += ["--seconds", str(seconds), "--findings", str(findings)]
    said = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    lines = said.stdout.decode(errors="replace").splitlines()
    found = [line for line in lines if line.startswith("FINDING ")]
    runs, edges = (
        next((int(m[1]) for line in reversed(lines) if (m := re.search(pattern, line))), 0)
        for pattern in (r"Done (\d+) runs", r"cov: (\d+)")
    )
    print(f"{name:<12}{runs:>9,} executions{edges:>7,} edges{len(found):>4} findings", flush=True)
    print("".join(f"  {line}\n" for line in found), end="")
    if said.returncode or not runs:  # libFuzzer stopped: a crash, or an input that took 20 s
        print("\n".join(f"  {line}" for line in lines[-12:]), flush=True)
        return len(found) + 1
    return len(found)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(targets()))
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default 60)")
    parser.add_argument("--findings", type=Path, default=Path("findings"), help="folder")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.targets or list(targets())
    if unknown := set(names) - set(targets()):
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(targets())}")
    if options.here:
        fuzz(names[0], options.seconds, options.findings)
    return int(sum([run(name, options.seconds, options.findings) for name in names]) > 0)


if __name__ == "__main__":
    sys.exit(main())
