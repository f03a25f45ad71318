"""Files in which everything is right, ways to spoil them, and the check of what a command says.

Each case of tests/cli/test_bad_*.py spoils one thing and gives the command that meets it: exit code
2, one message that says where, and nothing written.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner, Result
from hypothesis import settings
from hypothesis import strategies as st

from forty2.cli import main
from support.models import TINY, tiny_model

Maker = Callable[[Path], object]
Content = str | bytes | None | Maker
"""Content of a file: text, bytes, None to remove it, or a function that makes it."""


class Case(NamedTuple):
    """One thing spoilt, the command that meets it, and what its message must say."""

    name: str
    files: Mapping[str, Content]
    command: str
    says: tuple[str, ...]
    environment: Mapping[str, str | None] = {}


class Cases(list[Case]):
    """Cases of one kind of input, each with a name of its own."""

    def add(
        self,
        name: str,
        files: Mapping[str, Content],
        command: str,
        *says: str,
        environment: Mapping[str, str | None] | None = None,
    ) -> None:
        assert all(one.name != name for one in self), name
        self.append(Case(name, files, command, says, environment or {}))

    def named(self, name: str) -> Case:
        return next(one for one in self if one.name == name)


# --- files in which everything is right ------------------------------------------------------------

RECIPE = """\
version: 1
name: mine
model: tiny
max_length: 64
phases:
  sft: {objective: sft, data: chats.jsonl, steps: 2, lr: 1e-4}
  dpo:
    objective: dpo
    data: pairs.jsonl
    steps: 2
    lr: 5e-5
    beta: 0.1
benchmark: null
"""
CHAT = {"prompt": "What is the capital of France?", "completion": "Paris."}
PAIR = {"prompt": "Is the sky blue?", "chosen": "Yes, by day.", "rejected": "No, never."}
QUESTION = {
    "question": "Is it?",
    "mc1_targets": {"Yes.": 1, "No.": 0},
    "mc2_targets": {"Yes.": 1, "Surely.": 1, "No.": 0},
}
CSV = "Question,Category,Best Answer,Correct Answers,Incorrect Answers\nIs it?,Law,Yes,Yes;So,No\n"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_tiny(folder: Path) -> None:
    """A model folder of 100 kB: random weights, a token for each byte."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    folder.mkdir()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: n for n, c in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken(t, special=True) for t in ("<|im_start|>", "<|im_end|>")])
    backend.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = {"model_type": "llama", "eos_token_id": 257, "tie_word_embeddings": True, **TINY}
    (folder / "config.json").write_text(json.dumps(config))
    weights = dict(tree_flatten(tiny_model().parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})


def said(*turns: tuple[Any, Any]) -> dict[str, Any]:
    """A row of messages, each a role and a content."""
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def options(pairs: str) -> str:
    """Two questions, the second with such single-true options."""
    mc2 = json.dumps(QUESTION["mc2_targets"])
    bad = f'{{"question": "Is it?", "mc1_targets": {pairs}, "mc2_targets": {mc2}}}'
    return f"[{json.dumps(QUESTION)}, {bad}]"


def write_good(folder: Path) -> None:
    """Write every file that a case may spoil."""
    import pyarrow.parquet  # noqa: F401  # so that no case is the one that imports it

    from forty2.model.adapter import attach_adapter, save_adapter
    from forty2.model.loading import load
    from forty2.recipe.schema import Adapter
    from support.gguf_files import write_gguf

    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "chats.jsonl").write_text(lines(CHAT, {**CHAT, "prompt": "And where is it?"}))
    (folder / "pairs.jsonl").write_text(lines(PAIR, {**PAIR, "prompt": "Is the sea blue?"}))
    more = [{**QUESTION, "question": f"Is it {n}?"} for n in range(3)]
    (folder / "questions.json").write_text(json.dumps([QUESTION, *more]))
    (folder / "questions.csv").write_text(f"{CSV}Is it not?,Law,Yes,Yes,No\n")
    write_tiny(folder / "tiny")
    loaded = load(str(folder / "tiny"))
    spec = Adapter(rank=2, scale=1.0)
    attach_adapter(loaded.model, spec, seed=1)
    (folder / "adapter").mkdir()
    save_adapter(loaded.model, spec, folder / "adapter")
    write_gguf(folder / "model.gguf")
    with contextlib.chdir(folder):  # so that what is written names files as the cases do
        for command in (
            "data prepare -i chats.jsonl --output-dir prepared -m tiny --max-length 64 --val-split 0",
            "benchmark truthfulqa -m tiny -q questions.json -o before.json",
            "benchmark truthfulqa -m tiny -q questions.json -o after.json",
            "run recipe.yaml --run-dir done",
        ):
            made = forty2(command)
            assert made.exit_code == 0, made.output


def forty2(command: str) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(main, shlex.split(command))


# --- ways to spoil a file ---------------------------------------------------------------------------


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def empty_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def link(target: str) -> Maker:
    def make(path: Path) -> None:
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    return make


def cut(share: float) -> Maker:
    """The file without its end."""
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def edit(find: bytes, put: bytes) -> Maker:
    def change(path: Path) -> None:
        data = path.read_bytes()
        assert find in data
        path.write_bytes(data.replace(find, put, 1))

    return change


def config(**changes: Any) -> Maker:
    """A JSON object with other values."""
    return lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def sparse(size: int, before: bytes = b"") -> Maker:
    """A file that seems to be so long; its NULs are on no disk."""

    def make(path: Path) -> None:
        path.write_bytes(before)
        os.truncate(path, size)

    return make


# --- what must come of it ---------------------------------------------------------------------------


def lay_out(one: Case, good: Path, folder: Path) -> None:
    """The good files that the command names, then the case's own."""
    spoilt = {name.split("/")[0] for name in one.files}
    named = one.command + (RECIPE if re.search("recipe.yaml|done", one.command) else "")
    for source in good.iterdir():
        if source.name in spoilt or source.name in named:
            copy = shutil.copytree if source.is_dir() else shutil.copyfile
            copy(source, folder / source.name)
    for name, content in one.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path)
            continue
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content.encode() if isinstance(content, str) else content)


def listing(folder: Path) -> dict[str, tuple[int, ...]]:
    """What a folder holds, and when each thing in it was last changed. Locks do not count."""
    paths = (path for path in folder.rglob("*") if path.name != "run.lock")
    found = {str(path.relative_to(folder)): path.lstat() for path in paths}
    return {name: (s.st_mode, s.st_size, s.st_mtime_ns) for name, s in found.items()}


def nothing_written(one: Case, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """But a new run's own folder, which says how it was started."""
    ours = re.compile("run(/|$)" if one.command.startswith("run ") else "(?!)")
    return before == {k: v for k, v in after.items() if k in before or not ours.match(k)}


def check_message(one: Case, message: str) -> None:
    """One message, which says what it must."""
    assert "Traceback" not in message
    beside = re.compile(r".*%\|")  # what progress bars print
    told = [line for line in message.splitlines() if line and not beside.match(line)]
    assert told and told[0].startswith("Error: "), message
    assert len(told) == 1 or all(re.match(r"(Error: )?\S+: ", line) for line in told), message
    assert max(map(len, told)) < 12_000
    for part in one.says:
        assert part in message, message


def check_refused(one: Case, good: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command ends with code 2 and a message, in two seconds, and writes nothing."""
    monkeypatch.chdir(folder)
    for name, value in one.environment.items():
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name)
    lay_out(one, good, folder)
    before = listing(folder)
    start = time.process_time()
    result = forty2(one.command)
    seconds = time.process_time() - start
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2, result.output
    check_message(one, result.output)
    assert nothing_written(one, before, listing(folder))
    assert seconds < 2


MEASURE = """
import json, resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=sys.stderr).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([code, used.ru_utime + used.ru_stime, used.ru_maxrss]))
"""
"""A small process between this one and the command: a peak of memory passes on through exec."""


def used_by(command: list[str], folder: Path, said: Path) -> tuple[int, float, int]:
    """Exit code, seconds of processor time and bytes of memory of a command; what it says."""
    measured = [sys.executable, "-c", MEASURE, *command]
    with said.open("w") as file:
        done = subprocess.run(
            measured, cwd=folder, stdout=subprocess.PIPE, stderr=file, timeout=600, check=True
        )
    code, seconds, memory = json.loads(done.stdout)
    return code, seconds, memory * (1024 if sys.platform == "linux" else 1)


def check_process(one: Case, good: Path, folder: Path) -> None:
    """The command, in a process of its own, stays within 500 MB and 15 seconds."""
    lay_out(one, good, folder)
    before = listing(folder)
    said = folder.parent / f"{folder.name}.said"
    command = [sys.executable, "-m", "forty2", *shlex.split(one.command)]
    code, seconds, memory = used_by(command, folder, said)
    check_message(one, said.read_text())
    assert code == 2
    assert nothing_written(one, before, listing(folder))
    assert memory < 500e6
    assert seconds < 15  # most of it imports


# --- input that nobody thought of -------------------------------------------------------------------

FEW = settings(max_examples=150, deadline=None, derandomize=True, database=None)
PIECES = st.sampled_from(
    [
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b",",
        b'"',
        b"\\",
        b"\\ud800",
        b"\0",
        b"\xff",
        b"&a ",
        b"*a",
        b"~",
        b"!!int ",
        b"<<: ",
        b"- ",
        b"? ",
        b"\n",
        b"\t",
        b"1e999",
        b"-1",
        b"NaN",
        b"null",
        b"true",
        b"''",
    ]
)


@st.composite
def mutated(draw: st.DrawFn, good: bytes) -> bytes:
    """Good bytes with a few places cut out, doubled or overwritten; at times noise alone."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(good)))
        end = min(len(good), start + draw(st.integers(0, 12)))
        good = good[:start] + draw(PIECES | st.just(good[start:end] * 2)) + good[end:]
    return good
