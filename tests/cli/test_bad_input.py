"""Bad input of every kind: exit code 2, one message that says where, and nothing written.

Each case begins with files in which everything is right (`good`), spoils one thing and gives the
command that meets it. `test_what_is_spoilt_below_works_unspoilt` runs them unspoilt.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import TINY, tiny_model

from forty2.cli import main
from forty2.data.formats import parse, to_row
from forty2.data.sources import dumps, read_rows
from forty2.errors import DataError, RecipeError
from forty2.recipe.reading import load_recipe

Content = str | bytes | None | Callable[[Path], object]
"""Of a file: text, bytes, None to take it away, or what makes it."""


class Case(NamedTuple):
    """One thing spoilt, the command that meets it, and what its message must say."""

    name: str
    files: Mapping[str, Content]
    command: str
    says: tuple[str, ...]
    environment: Mapping[str, str | None] = {}


# --- what is right --------------------------------------------------------------------------------

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


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files in which everything is right."""
    import pyarrow.parquet  # noqa: F401  # so that no case is the one that imports it
    from support.gguf_files import write_gguf

    from forty2.model.adapter import attach_adapter, save_adapter
    from forty2.model.loading import load
    from forty2.recipe.schema import Adapter

    folder = tmp_path_factory.mktemp("good")
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
    return folder


def forty2(command: str) -> Result:
    return CliRunner().invoke(main, shlex.split(command))


UNSPOILT = [
    "recipe check recipe.yaml",
    "plan recipe.yaml",
    "data convert -i chats.jsonl -o out.jsonl",
    "data lint chats.jsonl",
    "data show chats.jsonl -m tiny",
    "data prepare -i chats.jsonl --output-dir out -m tiny --val-split 0",
    "logprobs -m tiny -d pairs.jsonl -o out.json",
    "generate -m tiny -p hi --max-tokens 1",
    "generate -m tiny -a adapter -p hi --max-tokens 1",
    "model info tiny",
    "model import model.gguf --out out",
    "benchmark truthfulqa -m tiny -q questions.json",
    "benchmark truthfulqa -m tiny -q questions.csv",
    "compare before.json after.json",
    "report done",
    "fuse -m tiny -a adapter --out out",
    "run recipe.yaml --run-dir run",
    "run recipe.yaml --run-dir run --set phases.sft.data=prepared",
]


@pytest.mark.parametrize("command", UNSPOILT)
def test_what_is_spoilt_below_works_unspoilt(
    command: str, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lay_out(Case("", {}, command, ()), good, tmp_path)
    result = forty2(command)
    assert result.exit_code == 0, result.output


# --- the corpus -----------------------------------------------------------------------------------

CASES: list[Case] = []


Maker = Callable[[Path], object]


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


def case(name: str, files: Mapping[str, Content], command: str, *says: str) -> None:
    CASES.append(Case(name, files, command, says))


def recipe(name: str, content: Content, *says: str) -> None:
    case(f"recipe: {name}", {"recipe.yaml": content}, "recipe check recipe.yaml", *says)


def spoilt(name: str, find: str, put: str, *says: str) -> None:
    """The good recipe with one thing in it replaced."""
    assert find in RECIPE
    recipe(name, RECIPE.replace(find, put, 1), *says)


def override(name: str, value: str, *says: str) -> None:
    command = f"recipe check recipe.yaml --set {shlex.quote(value)}"
    case(f"--set: {name}", {}, command, "--set", *says)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)

recipe("missing", None, "recipe.yaml: no such recipe", "packaged ones: ")
recipe("a folder", empty_folder, "recipe.yaml: no such recipe")
recipe("a pipe", pipe, "recipe.yaml: no such recipe")
recipe("a device", link("/dev/zero"), "no such recipe")
recipe("a link to itself", link("recipe.yaml"), "no such recipe")
recipe(
    "a phase that is a list, of a bad name",
    "version: 1\nname: x\nmodel: tiny\nphases:\n  bad~:\n  - x\n",
    "recipe.yaml:5: phases.bad~: ",
)
recipe("empty", "", "recipe.yaml: a recipe is a mapping")
recipe("only a comment", "# nothing\n", "a recipe is a mapping")
recipe("a list", "- a\n- b\n", "a recipe is a mapping")
recipe("text", "train it, please", "a recipe is a mapping")
recipe("a number", "42", "a recipe is a mapping")
recipe("two documents", RECIPE + "---\n" + RECIPE, "recipe.yaml:14: not valid YAML")
recipe("not YAML", "version: 1\nname: [a\n", "recipe.yaml:3: not valid YAML")
recipe("JSON cut short", '{"version": 1, "name": ', "recipe.yaml:1: not valid YAML")
recipe("binary", bytes(range(256)), "recipe.yaml: not UTF-8", "save it as UTF-8")
recipe("NUL bytes", RECIPE.encode() + b"\0\0", "recipe.yaml: not valid YAML")
recipe("UTF-16", RECIPE.encode("utf-16"), "recipe.yaml: not UTF-8")
recipe("control characters", RECIPE.replace("mine", "mi\x07ne"), "recipe.yaml: not valid YAML")
spoilt("tabs", "    objective", "\tobjective", "recipe.yaml:8: not valid YAML")
recipe("10 MB", lambda path: path.write_bytes(b"# " * 5_000_000), "10,000,000 bytes is no recipe")
recipe("200 kB", lambda path: path.write_text("k: [" + "1," * 100_000), "bytes is no recipe")
recipe("nested 20,000 deep", "a: " + "[" * 20_000, "recipe.yaml: nested too deeply")
spoilt("nested 300 deep", "tiny", "[" * 300 + "]" * 300, "recipe.yaml")
recipe("billion laughs", BOMB, "recipe.yaml:2: aliases (*name) are not taken")
spoilt("an alias to itself", "tiny", "&a [*a]", "recipe.yaml:3: aliases (*name) are not taken")
spoilt("an unknown alias", "tiny", "*a", "recipe.yaml:3: not valid YAML: found undefined alias")
recipe(
    "merge keys",
    RECIPE + "adapter: &a {rank: 8}\nfuse: {<<: *a}\n",
    "recipe.yaml:15: not valid YAML",
)
recipe("a list as a key", RECIPE + "? [a, b]\n: 1\n", "recipe.yaml:14: a key must be text")
recipe("a laughing key", BOMB + "? *i\n: 1\n", "recipe.yaml:9: a key must be text")
recipe("a line break in a key", RECIPE + '"a\\nb\\x1b": 2\n', r":14: a\nb\x1b: unknown key")
recipe("a number as a key", RECIPE + "1: 2\n", "recipe.yaml:14: key 1 must be text")
recipe("null as a key", RECIPE + "~: 2\n", "recipe.yaml:14: key None must be text")
spoilt("runs a command", "tiny", "!!python/object/apply:os.system [id]", "recipe.yaml:3: model")
spoilt("makes an object", "tiny", "!!python/object:os.stat {}", "recipe.yaml:3: model")
spoilt("names a function", "tiny", "!!python/name:os.system", "recipe.yaml:3: not valid YAML")
spoilt("a tag unknown", "tiny", "!mine tiny", "recipe.yaml:3: not valid YAML")
spoilt("a tag unfit", "max_length: 64", "max_length: !!int many", "recipe.yaml: not valid YAML")
spoilt("a date that is none", "tiny", "2026-99-99", "recipe.yaml: not valid YAML")
spoilt("a key twice", "name: mine", "name: mine\nname: yours", "recipe.yaml:3: name is given twice")
spoilt("a phase twice", "  dpo:", "  sft:", "recipe.yaml:7: phases.sft is given twice")
spoilt(
    "a field twice", "beta: 0.1", "beta: 0.1\n    beta: 1", ":13: phases.dpo.beta is given twice"
)
spoilt("a key unknown", "max_length", "max_lenght", ":4: max_lenght: unknown key", "max_length?")
spoilt("a field unknown", "beta:", "betta:", ":12: phases.dpo.betta: unknown key", "beta?")
spoilt("a name of others", "lr: 5e-5", "learning_rate: 5e-5", "unknown key; did you mean lr?")
spoilt("no version", "version: 1\n", "", "recipe.yaml:1: version: missing")
spoilt("another version", "version: 1", "version: 2", "recipe.yaml:1: version: should be 1, not 2")
spoilt("version as text", "version: 1", "version: '1'", "recipe.yaml:1: version: should be 1")
spoilt("no model", "model: tiny\n", "", "model: missing")
spoilt("model a number", "tiny", "7", "recipe.yaml:3: model: should be a valid string, not 7")
spoilt("model null", "tiny", "", "recipe.yaml:3: model: should be a valid string, not None")
spoilt("name with a slash", "mine", "a/b", "recipe.yaml:2: name:", "not 'a/b'")
spoilt("name upwards", "mine", "..", "recipe.yaml:2: name:", "not '..'")
spoilt("name absolute", "mine", "/etc/passwd", "recipe.yaml:2: name:")
spoilt("name with control characters", "mine", '"a\\nb\\e[2J"', "recipe.yaml:2: name:", r"a\nb\x1b")
spoilt("name that ends a line", "mine", '"mine\\n"', "recipe.yaml:2: name:")
spoilt("name of 300 characters", "mine", "m" * 300, "recipe.yaml:2: name:")
spoilt("name in Unicode", "mine", "größe", "recipe.yaml:2: name:", "not 'größe'")
spoilt("name empty", "mine", "''", "recipe.yaml:2: name:")
spoilt("name a list", "mine", "[a]", "recipe.yaml:2: name: should be a valid string")
spoilt("phase with a slash", "  sft:", "  s/t:", "recipe.yaml:6: phases.s/t")
spoilt("phase upwards", "  sft:", "  ..:", "recipe.yaml:6: phases")
recipe("phases missing", RECIPE.split("phases")[0], "phases: missing")
recipe("phases empty", RECIPE.split("phases")[0] + "phases: {}\n", "recipe.yaml:5: phases:")
recipe("phases null", RECIPE.split("phases")[0] + "phases:\n", "recipe.yaml:5: phases:")
recipe("phases a list", RECIPE.split("phases")[0] + "phases: [sft]\n", "recipe.yaml:5: phases:")
recipe("a phase null", RECIPE.split("  sft")[0] + "  sft:\n", "recipe.yaml:6: phases.sft")
recipe("a phase text", RECIPE.split("  sft")[0] + "  sft: it\n", "recipe.yaml:6: phases.sft")
spoilt("objective unknown", "objective: sft", "objective: ppo", ":6: phases.sft.objective: 'ppo'")
spoilt(
    "objective missing", "objective: sft, ", "", ":6: phases.sft.objective: missing: say one of sft"
)
spoilt("objective a list", "objective: sft", "objective: [sft]", ":6: phases.sft.objective")
spoilt(
    "steps and epochs", "steps: 2, ", "steps: 2, epochs: 1, ", ":6: phases.sft.steps: give steps"
)
spoilt("neither steps nor epochs", "steps: 2, ", "", ":6: phases.sft.steps: give steps or epochs")
for name, value, says in (
    ("0", "0", "should be greater than 0"),
    ("below 0", "-2", "should be greater than 0"),
    ("in part", "2.5", "should be a valid integer, not 2.5"),
    ("true", "yes", "should be a valid integer, not True"),
    ("as text", "'2'", "should be a valid integer, not '2'"),
    ("huge", "1" + "0" * 30, "should be"),
    ("in base 60", "1:-1", "should be"),
):
    spoilt(f"steps {name}", "steps: 2", f"steps: {value}", f":6: phases.sft.steps: {says}")
spoilt("steps of 5,000 digits", "steps: 2", "steps: 1" + "0" * 5000, "not valid YAML")
spoilt(
    "epochs endless", "steps: 2, ", "epochs: .inf, ", ":6: phases.sft.epochs: should be a finite"
)
spoilt("epochs huge", "steps: 2, ", "epochs: 1e300, ", ":6: phases.sft.epochs")
for name, value, says in (
    ("not a number", ".nan", "should be"),
    ("infinite", ".inf", "should be"),
    ("below 0", "-1e-4", "should be greater than 0"),
    ("of 1", "1.0", "should be less than 1"),
    ("a word", "fast", "should be a valid number, not 'fast'"),
):
    spoilt(f"lr {name}", "lr: 1e-4", f"lr: {value}", f":6: phases.sft.lr: {says}")
spoilt(
    "beta infinite", "beta: 0.1", "beta: .inf", ":12: phases.dpo.beta: should be a finite number"
)
spoilt("beta missing", "    beta: 0.1\n", "", ":7: phases.dpo.beta: missing")
spoilt("loss unknown", "beta: 0.1", "beta: 0.1\n    loss: sigmoidd", ":13: phases.dpo.loss")
spoilt("loss of another phase", "lr: 1e-4", "lr: 1e-4, beta: 1", "sft.beta: is of dpo and kto, not")
for name, value, says in (
    ("rank: 0", "rank: 0", "rank: should be greater than 0"),
    ("rank huge", "rank: 1" + "0" * 20, "rank: should be"),
    ("scale infinite", "scale: .inf", "scale: should be"),
    ("dropout of 1", "dropout: 1.0", "dropout: should be less than 1"),
    ("keys a text", "keys: q_proj", "keys: should be"),
):
    put = f"adapter: {{{value}}}\nbenchmark:"
    spoilt(name, "benchmark:", put, f"recipe.yaml:13: adapter.{says}")
spoilt("seed below 0", "max_length: 64", "seed: -1", "recipe.yaml:4: seed: should be greater")
spoilt("seed huge", "max_length: 64", "seed: 4294967296", "recipe.yaml:4: seed: should be less")
spoilt("quantised to 3 bits", "benchmark:", "fuse: {quantize: 3}\nbenchmark:", ":13: fuse.quantize")
spoilt(
    "questions not there", "benchmark: null", "benchmark: {questions: q.json}", "q.json: no such"
)
spoilt("data not there", "chats.jsonl", "no.jsonl", ":6: phases.sft.data: no.jsonl: no such file")
spoilt("data of no user", "chats.jsonl", '"~nobody.here/x"', ":6: phases.sft.data", "no such file")
spoilt("data of 5,000 characters", "chats.jsonl", "x" * 5000, ":6: phases.sft.data", "no such file")
spoilt("data with a NUL", "chats.jsonl", '"a\\0b"', ":6: phases.sft.data", "no such file")
spoilt("data with half a surrogate", "chats.jsonl", '"\\ud800"', "recipe.yaml")
case("recipe: a name of 5,000 characters", {}, f"recipe check {'x' * 5000}", "no such recipe")
case("recipe: a near miss", {}, "recipe check forty2-sparc", "did you mean forty2-spark")
case(
    "recipe: a copy that exists", {}, "recipe copy demo recipe.yaml", "recipe.yaml: exists already"
)
case("recipe: a copy into a file", {}, "recipe copy demo recipe.yaml/x", "recipe.yaml/x: cannot be")
case("recipe: shown, but missing", {}, "recipe show nothing", "nothing: no such recipe")

override(
    "best of prompts that are not there",
    "phases.sft.best={metric: passed, direction: max}",
    "phases.sft.best: passed is the share of eval_prompts, and there are none",
)
override(
    "best of pairs where there are none",
    "phases.sft.best={metric: margin, direction: max}",
    "phases.sft.best: margin is of pairs; an sft phase has loss and passed",
)
override(
    "a goal on both sides",
    "phases.dpo.until={metric: loss, at_least: 1, at_most: 2}",
    "phases.dpo.until.at_least: give at_least or at_most, one of the two",
)
override("no such red line", "phases.dpo.red_lines.sipke=warn", "did you mean spike?")
override("no such action", "phases.dpo.red_lines.stuck=skip", "should be 'warn' or 'stop'")
override("eval prompts that are not there", "phases.sft.eval_prompts=no.json", "no such file")
case(
    "run: best of what nothing measures",
    {},
    "run recipe.yaml --run-dir run --set 'phases.sft.best={metric: loss, direction: min}'",
    "phases.sft.best: loss is measured on validation rows, and there are none; give",
)
case(
    "run: eval prompts without what is expected",
    {"evals.json": '{"prompts": {"a": "b"}, "expected_outputs": {}}'},
    "run recipe.yaml --run-dir run --set phases.sft.eval_prompts=evals.json",
    "evals.json: expected_outputs: ",
)
override("no value", "phases.dpo.lr", "phases.dpo.lr: write it as key.subkey=value")
override("no key", "=1", "write it as key.subkey=value")
override("an empty key", "phases..lr=1", "write it as key.subkey=value")
override("50,000 keys deep", "a" + ".a" * 50_000 + "=1", "write it as key.subkey=value")
override("a line break in a key", "phases.a\nb=1", r"phases.a\nb")
override("an unknown key", "adapter.rnak=2", "adapter.rnak: unknown key; did you mean rank?")
override("an unknown phase", "phases.kto.lr=1e-5", "phases.kto: no such phase; the recipe has sft")
override("a bad type", "phases.dpo.lr=fast", "phases.dpo.lr: should be a valid number")
override("below a value", "model.x=1", "model is a value, it has no keys below it")
override("below a list", "adapter.keys.0=1", "adapter.keys")
override("not YAML", "seed=[", "the value is not valid YAML")
override("a date that is none", "name=2026-99-99", "the value is not valid YAML")
override("5,000 digits", "seed=1" + "0" * 5000, "the value is not valid YAML")
override("nested deeply", "seed=" + "[" * 2000, "the value is not valid YAML")
override("an object", "name=!!python/object/apply:os.getcwd []", "name: ")
override("a list as a key", "adapter={[a]: 1}", "a key must be text")
override("laughs", "adapter={a: &a [x], b: &b [*a, *a], c: [*b, *b]}", "aliases (*name)")
override("itself", "adapter=&a [*a]", "aliases (*name)")


# Data: files. Each is read by `data convert`.


def data(name: str, content: Content, *says: str, file: str = "rows.jsonl") -> None:
    command = f"data convert -i {file} -o out.jsonl"
    case(f"data: {name}", {file: content}, command, file, *says)


def parquet(options: Mapping[str, Any] | None = None, **columns: Any) -> Maker:
    def make(path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        arrays = {name: made() if callable(made) else made for name, made in columns.items()}
        prompts = ["q"] * len(arrays["completion"])
        pq.write_table(pa.table({"prompt": prompts, **arrays}), path, **options or {})

    return make


def arrow(values: list[Any], kind: str) -> Callable[[], Any]:
    """A column of that kind, made when it is wanted: Arrow loads slowly."""

    def make() -> Any:
        import pyarrow as pa

        return pa.array(values, getattr(pa, kind)())

    return make


def repeated(turns: int | None = None) -> Any:
    """20 GB of text in 50 kB: a text of 1 MB, which 20,000 rows, or the turns of one, refer to."""
    import pyarrow as pa

    texts = pa.DictionaryArray.from_arrays(
        pa.array([0] * (turns or 20_000), pa.int32()), ["x" * 10**6]
    )
    return texts if turns is None else pa.ListArray.from_arrays(pa.array([0, turns]), texts)


def bomb(block: bytes, before: bytes = b"") -> Maker:
    """A gigabyte in a megabyte."""
    again = gzip.compress(block * (10_000_000 // len(block))) * 100
    return lambda path: path.write_bytes(gzip.compress(before) + again)


def sparse(size: int, before: bytes = b"") -> Maker:
    """A file that seems to be so long; its NULs are on no disk."""

    def make(path: Path) -> None:
        path.write_bytes(before)
        os.truncate(path, size)

    return make


data("missing", None, "rows.jsonl: cannot be read: No such file")
data("empty", "", "rows.jsonl: holds no rows")
data("blank lines alone", "\n\n \n", "rows.jsonl: holds no rows")
data("a link to itself", link("rows.jsonl"), "cannot be read: Too many levels")
data("a link to nowhere", link("nowhere"), "cannot be read: No such file")
data("a device", link("/dev/zero"), "rows.jsonl: is no file but a pipe or a device")
data("a pipe", pipe, "rows.jsonl: is no file but a pipe or a device")
data("a pipe, zipped", pipe, "is no file but a pipe or a device", file="rows.jsonl.gz")
data("a pipe, CSV", pipe, "is no file but a pipe or a device", file="rows.csv")
data("a pipe, Parquet", pipe, "is no file but a pipe or a device", file="rows.parquet")
case(
    "data: a device by its name",
    {},
    "data convert -i /dev/zero -o out.jsonl",
    "/dev/zero: rows of kind no suffix",
)
data("an empty folder", empty_folder, "rows: holds no data file", file="rows")
data("a kind unknown", "a\tb\n", "rows of kind .tsv are not read; use .jsonl", file="rows.tsv")
data("not JSON", lines(CHAT) + "prompt: q\n", "rows.jsonl:2: not a JSON object")
data("a line cut off", lines(CHAT) + '{"prompt": "q", "comp', ":2: not a JSON object", "is cut off")
data("two rows on a line", lines(CHAT).strip() * 2 + "\n", "rows.jsonl:1: not a JSON object: Extra")
data("a number", "42\n", "rows.jsonl:1: not a JSON object but int")
data("null", "null\n", "rows.jsonl:1: not a JSON object but NoneType")
data("a list on a line", "[1]\n", "rows.jsonl:1: not a JSON object but list")
data(
    "not UTF-8",
    b'{"prompt": "\xff"}\n',
    "rows.jsonl:1: not UTF-8 (byte 13",
    "save the file as UTF-8",
)
data("UTF-16", lines(CHAT).encode("utf-16"), "rows.jsonl:1: not UTF-8")
data("UTF-32", lines(CHAT).encode("utf-32"), "rows.jsonl:1: not UTF-8")
data("NUL bytes", "\0\0\0\n", "rows.jsonl:1: not a JSON object")
data("NaN", '{"prompt": "q", "completion": "a", "x": NaN}\n', "rows.jsonl:1: ", "NaN is no number")
data(
    "infinity",
    '{"prompt": "q", "completion": "a", "x": [-Infinity]}\n',
    ":1: ",
    "-Infinity is no number",
)
data(
    "a key twice",
    '{"prompt": "q", "prompt": "r", "completion": "a"}\n',
    ":1: ",
    "'prompt' is there twice",
)
data(
    "5,000 digits",
    f'{{"prompt": "q", "completion": "a", "x": {"1" * 5000}}}\n',
    ":1: ",
    "4300 digits",
)
data(
    "nested 200 deep",
    f'{{"text": "a", "x": {"[" * 200}{"]" * 200}}}\n',
    ":1: ",
    "nested too deeply",
)
data("a number too large", '{"text": "a", "x": 1e999}\n', ":1: ", "1e999 is too large a number")
data("a line break in a key", '{"a\\nb": 1}\n', r":1: needs messages", r"has 'a\nb'")
data(
    "100,000 keys, one twice",
    lines({"text": "a", **dict.fromkeys(map(str, range(10**5)))}).replace("99999", "99998"),
    "'99998' is there twice",
)
data("recursion", '{"a":' * 100_000 + "\n", "rows.jsonl:1: not a JSON object: nested too deeply")
data(
    "recursion in lists", "[" * 100_000 + "\n", "rows.jsonl:1: not a JSON object: nested too deeply"
)
data(
    "a line of 50 MB",
    lambda p: p.write_bytes(b'{"text": "' + b"x" * 50_000_000),
    ":1: a row longer than",
)
data(
    "a line of 50 MB, text",
    lambda p: p.write_bytes(b"x" * 50_000_000),
    ":1: a row longer",
    file="rows.txt",
)
data(
    "a line of 50 MB, CSV",
    lambda p: p.write_bytes(b"x" * 50_000_000),
    "rows.csv:1",
    file="rows.csv",
)
data("half a surrogate beside", lines({**CHAT, "id": "\ud800"}), ":1: ", "surrogate")
data(
    "half a surrogate in a message",
    lines(
        {
            "messages": [
                {"role": "user", "content": "q", "name": "\udfff"},
                {"role": "assistant", "content": "a"},
            ]
        }
    ),
    ":1: ",
    "surrogate",
)
data("not gzip", lines(CHAT), "cannot be read: Not a gzipped file", file="rows.jsonl.gz")
data(
    "gzip cut off",
    gzip.compress(lines(CHAT).encode() * 99)[:-20],
    "Compressed file ended",
    file="rows.jsonl.gz",
)
data(
    "gzip damaged",
    gzip.compress(lines(CHAT).encode())[:-8] + b"\0" * 8,
    "CRC check failed",
    file="rows.jsonl.gz",
)
data("a gzip bomb", bomb(b" "), "rows.jsonl.gz:1: a row longer than", file="rows.jsonl.gz")
data("a gzip bomb, blank lines", bomb(b"\n"), "nothing but blanks", file="rows.jsonl.gz")
data("a gzip bomb, JSON", bomb(b" ", b"["), "rows.json.gz:1: nothing but", file="rows.json.gz")
data(
    "a gzip bomb, a text in JSON",
    bomb(b"x", b'[{"text": "'),
    ":1: a row longer",
    file="rows.json.gz",
)
data("a gzip bomb, rows in JSON", bomb(b"{},", b"["), ":1: needs messages", file="rows.json.gz")
data("a gzip bomb, CSV", bomb(b" "), "rows.csv.gz:1", file="rows.csv.gz")
data(
    "a gzip bomb, a CSV cell",
    bomb(b"x\n", b'prompt,completion\nq,"'),
    ":2: not readable as CSV in UTF-8: ",
    "larger than field limit",
    file="rows.csv.gz",
)
data("a gzip bomb, text", bomb(b"x\n"), "rows.txt.gz:1: a row longer than", file="rows.txt.gz")
data("8 GB of JSON", sparse(2**33, b'[{"text": "a"},'), "rows.json:1: not JSON", file="rows.json")
data("a Parquet bomb", parquet(completion=repeated), "unpacks to more", file="rows.parquet")
data(
    "a Parquet bomb in a row",
    parquet(completion=["a"], turns=lambda: repeated(20_000)),
    "rows.parquet:row 1: a row longer",
    file="rows.parquet",
)
data(
    "a Parquet bomb in a page",
    parquet(
        {"use_dictionary": False, "compression": "zstd", "row_group_size": 8},
        completion=lambda: ["x" * 10**6] * 80,
    ),
    "unpacks to more",
    file="rows.parquet",
)
data("no array", lines(CHAT), "rows.json:1: not a JSON array", file="rows.json")
data("an empty array", "[]", "rows.json: holds no rows", file="rows.json")
data(
    "an array without its end", f"[\n{lines(CHAT)}", "rows.json:2: after this row", file="rows.json"
)
data("two arrays", "[]\n[]", "rows.json:2: the array ends before this", file="rows.json")
data("an array, not UTF-8", b'[{"text": "a"},\n"\xff"]', "rows.json:2: not UTF-8", file="rows.json")
data("no comma", f"[\n{lines(CHAT)}{lines(CHAT)}]", "rows.json:2: after this row", file="rows.json")
data("texts in an array", '["a"]', "rows.json:1: not a JSON object but str", file="rows.json")
data(
    "recursion in an array",
    "[" * 99_999,
    "rows.json:1: not JSON: nested too deeply",
    file="rows.json",
)
data("digits in an array", f'[{{"x": {"1" * 5000}}}]', "rows.json:1: not JSON", file="rows.json")
data("NaN in an array", '[{"x": NaN}]', "rows.json:1: not JSON: NaN is no number", file="rows.json")
data(
    "twice in an array",
    '[{"x": 1, "x": 2}]',
    "rows.json:1: ",
    "'x' is there twice",
    file="rows.json",
)
data("CSV, a header alone", "prompt,completion\n", "rows.csv: holds no rows", file="rows.csv")
data("CSV without columns", "a,b\n1,2\n", "rows.csv:2: needs messages", "has a, b", file="rows.csv")
data(
    "CSV, a cell more",
    "prompt,completion\nq,a,x\n",
    "rows.csv:2: has another number",
    file="rows.csv",
)
data(
    "CSV, a cell less", "prompt,completion\nq\n", "rows.csv:2: has another number", file="rows.csv"
)
data(
    "CSV, an open quote",
    'prompt,completion\n"q,a\n',
    "rows.csv:2: not readable as CSV",
    file="rows.csv",
)
data(
    "CSV, a column twice",
    "prompt,prompt,completion\nq,r,a\n",
    "rows.csv:1: ",
    "twice",
    file="rows.csv",
)
data(
    "CSV, 100,000 columns",
    f"{','.join(map(str, range(10**5)))},7\n",
    "'7' is there twice",
    file="rows.csv",
)
data("CSV, Latin 1", "prompt,completion\nq,ä\n".encode("latin-1"), "in UTF-8", file="rows.csv")
data("CSV, JSON cut off", 'prompt,completion\nq,"[{"\n', "rows.csv:2: not a JSON", file="rows.csv")
data("Parquet that is none", lines(CHAT), "rows.parquet: not a Parquet file", file="rows.parquet")
data("Parquet, empty", "", "rows.parquet: not a Parquet file", file="rows.parquet")
data("Parquet, magic alone", b"PAR1" + b"\xff" * 40 + b"PAR1", "rows.parquet", file="rows.parquet")
data(
    "Parquet, numbers",
    parquet(completion=[1]),
    ":row 1: completion must be text",
    file="rows.parquet",
)
for name, column, reason in (
    ("bytes", [b"a"], "x' holds a value of type bytes, which JSON cannot; leave the column out"),
    ("an infinity", [float("inf")], "x' holds inf, which JSON cannot"),
    ("a year beyond 9999", arrow([2**62], "date64"), "cannot be read: "),
):
    data(f"Parquet, {name}", parquet(completion=["a"], x=column), reason, file="rows.parquet")
data("text, not UTF-8", b"a\n\xff\n", "rows.txt:2: not UTF-8", file="rows.txt")
case(
    "data: of no user",
    {},
    "data convert -i ~nobody.here/x.jsonl -o out.jsonl",
    "x.jsonl: cannot be read",
)
case(
    "data: 5,000 characters",
    {},
    f"data convert -i {'x' * 5000}.jsonl -o out.jsonl",
    "File name too long",
)
case(
    "data: out into a file",
    {"f": ""},
    "data convert -i chats.jsonl -o f/out.jsonl",
    "f/out.jsonl: cannot",
)
case(
    "data: out into a data set",
    {"d/mine.txt": "x"},
    "data operators --output-dir d",
    "d: exists and is no data set of ours; name another --output-dir",
)
case("data: no built-in set", {}, "data build spark --output-dir out", "no built-in data set")


# Data: rows. The second line is bad.


def row(name: str, bad: Mapping[str, Any], *says: str) -> None:
    file = {"rows.jsonl": lines(CHAT, bad)}
    case(f"row: {name}", file, "data convert -i rows.jsonl -o out.jsonl", "rows.jsonl:2: ", *says)


def said(*turns: tuple[Any, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


row("nothing in it", {}, "needs messages, prompt and completion", "has no keys")
row("no shape known", {"question": "q", "answer": "a"}, "needs messages", "has question, answer")
row("no completion", {"prompt": "q"}, "needs messages", "has prompt")
row("prompt a number", {"prompt": 1, "completion": "a"}, "prompt must be a list of messages, not 1")
row("prompt empty", {"prompt": " ", "completion": "a"}, "prompt is empty")
row("completion null", {"prompt": "q", "completion": None}, "completion must be text, not None")
row("completion a number", {"prompt": "q", "completion": 1}, "completion must be text, not 1")
row("completion empty", {"prompt": "q", "completion": ""}, "completion is empty")
row("completion true", {"prompt": "q", "completion": True}, "completion must be text, not True")
row("half a surrogate", {"prompt": "q", "completion": "\ud83d"}, "surrogate")
row("text null", {"text": None}, "text must be text, not None")
row("text empty", {"text": ""}, "text is empty")
row("messages null", {"messages": None}, "messages must be a list of messages, not None")
row("messages empty", {"messages": []}, "messages must be a list of messages, not []")
row("messages an object", {"messages": {"role": "user"}}, "messages must be a list of messages")
row("messages of text", {"messages": ["q", "a"]}, "messages[0] must be an object with role")
row("role unknown", said(("user", "q"), ("bot", "a")), "messages[1].role must be one of", "'bot'")
row("role missing", {"messages": [{"content": "q"}]}, "messages[0].role must be one of", "None")
row("role a list", said((["user"], "q")), "messages[0].role must be one of")
row("role an object", said(({"a": 1}, "q")), "messages[0].role must be one of")
row("from a list", {"messages": [{"from": ["human"], "value": "q"}]}, "messages[0].role must be")
row("content null", said(("user", None), ("assistant", "a")), "messages[0].content must be text")
row("content a number", said(("user", 7), ("assistant", "a")), "messages[0].content must be text")
row("content a list", said(("user", [{"type": "text"}])), "messages[0].content must be text")
row("answer empty", said(("user", "q"), ("assistant", " ")), "the assistant's turn is empty")
row("no answer", said(("user", "q")), "messages: no assistant turn, so nothing to learn")
row("history no pairs", {"instruction": "q", "output": "a", "history": ["x"]}, "history[0] must be")
row("history a number", {"instruction": "q", "output": "a", "history": 3}, "history must be a list")
row(
    "history a text", {"instruction": "q", "output": "a", "history": "no"}, "history must be a list"
)
row(
    "history objects",
    {"instruction": "q", "output": "a", "history": [{"a": 1, "b": 2}]},
    "history[0]",
)
row("chosen alone", {"prompt": "q", "chosen": "a"}, "rejected is missing; has prompt, chosen")
row("chosen empty", {**PAIR, "chosen": ""}, "chosen is empty")
row("chosen null", {**PAIR, "chosen": None}, "chosen must be text, not None")
row("chosen a number", {**PAIR, "chosen": 1}, "chosen must be text, not 1")
row("chosen an empty list", {**PAIR, "chosen": []}, "chosen must be a list of messages, not []")
row("chosen equal to rejected", {**PAIR, "chosen": "a", "rejected": "a"}, "are equal; drop the row")
row(
    "chosen another prompt",
    {**PAIR, "chosen": said(("user", "?"), ("assistant", "a"))["messages"]},
    "chosen: its first turns are not the prompt",
)
row("no prompt", {"chosen": "a", "rejected": "b"}, "prompt is missing, and chosen is no transcript")
row(
    "prompt already answered",
    {**PAIR, "prompt": said(("assistant", "a"))["messages"]},
    "prompt ends with an assistant turn",
)
row("label as text", {**CHAT, "label": "yes"}, "label must be true or false, not 'yes'")
row("label a number", {**CHAT, "label": 1}, "label must be true or false, not 1")
row(
    "rated, no answer", {**said(("user", "q")), "label": True}, "must end with the assistant's turn"
)


def weighed(weight: Any) -> None:
    file = {"rows.jsonl": lines(PAIR, {**PAIR, "weight": weight})}
    command = "logprobs -m tiny -d rows.jsonl -o out.json"
    says = ("rows.jsonl:2: weight must be a number above 0, at most 100",)
    CASES.append(Case(f"row: weight {weight!r}", file, command, says))


for weight in (0, -1, "2", True, None, 1e9, [1]):
    weighed(weight)
case(
    "row: weight NaN",
    {"pairs.jsonl": edit(b'"prompt"', b'"weight": NaN, "prompt"')},
    "logprobs -m tiny -d pairs.jsonl -o out.json",
    "pairs.jsonl:1: ",
    "NaN is no number",
)
case(
    "row: a weight, prepared",
    {"rows.jsonl": lines({**CHAT, "weight": 2})},
    "data prepare -i rows.jsonl --output-dir out -m tiny --val-split 0",
    "rows.jsonl:1: has a weight",
)
case(
    "row: a pair, prepared",
    {},
    "data prepare -i pairs.jsonl --output-dir out -m tiny --val-split 0",
    "pairs.jsonl:1: only conversations and texts are prepared",
)
case(
    "row: chats where pairs are wanted",
    {},
    "logprobs -m tiny -d chats.jsonl -o out.json",
    "chats.jsonl:1: chosen is missing; has prompt, completion",
)


# Models, adapters, GGUF.

GENERATE = "generate -m tiny -p hi --max-tokens 1"


def model(name: str, file: str, content: Content, *says: str) -> None:
    case(f"model: {name}", {f"tiny/{file}": content}, GENERATE, *says)


def other_shape(path: Path) -> None:
    import mlx.core as mx

    weights = dict(mx.load(str(path)))  # type: ignore[arg-type]
    weights["model.norm.weight"] = mx.ones(7)
    path.unlink()
    mx.save_safetensors(str(path), weights)


def one_less(path: Path) -> None:
    import mlx.core as mx

    weights = dict(mx.load(str(path)))  # type: ignore[arg-type]
    del weights["model.norm.weight"]
    path.unlink()
    mx.save_safetensors(str(path), weights)


def header(size: int) -> bytes:
    """A safetensors file whose header claims to be so long."""
    return struct.pack("<Q", size) + b"{}"


case("model: missing", {}, "generate -m ./none -p hi", "./none: no such model; give a model folder")
case("model: a file", {}, "generate -m recipe.yaml -p hi", "recipe.yaml: no such model")
case("model: an empty folder", {"m": empty_folder}, "generate -m m -p hi", "m: no config.json")
case("model: of no user", {}, "generate -m ~nobody.here/m -p hi", "~nobody.here/m: no such model")
case("model: 5,000 characters", {}, f"generate -m {'x' * 5000} -p hi", "no such model")
case(
    "model: GGUF unconverted",
    {},
    "generate -m model.gguf -p hi",
    "convert it first: forty2 model import",
)
model("config empty", "config.json", "", "tiny/config.json: not readable")
model("config cut short", "config.json", cut(0.5), "tiny/config.json: not readable")
model("config a list", "config.json", "[]", "tiny/config.json: names no model_type")
model("config not UTF-8", "config.json", b"\xff\xfe{}", "tiny/config.json: not readable")
model("config recursive", "config.json", '{"a":' * 100_000, "tiny/config.json: nested too deeply")
model("config without a type", "config.json", "{}", "tiny/config.json: names no model_type")
model("type unknown", "config.json", config(model_type="gpt-9"), "Model type gpt-9 not supported")
model("type a path", "config.json", config(model_type="../../x"), "not supported")
model("type a number", "config.json", config(model_type=7), "tiny/config.json: names no model_type")
model("type no model", "config.json", config(model_type="base"), "tiny: cannot load the model")
model("size as text", "config.json", config(hidden_size="32"), "tiny: cannot load the model")
model("no heads", "config.json", config(num_attention_heads=0), "tiny: cannot load the model")
model("size below 0", "config.json", config(hidden_size=-32), "tiny: cannot load the model")
model("a size missing", "config.json", '{"model_type": "llama"}', "tiny: cannot load the model")
model("size huge", "config.json", config(hidden_size=10**12), "tiny: cannot load the model")
model(
    "layers huge",
    "config.json",
    config(num_hidden_layers=10**9),
    "tiny/config.json: 1,000,000,000 layers",
)
model(
    "one layer more", "config.json", config(num_hidden_layers=4), "cannot load the model", "Missing"
)
model(
    "one layer less",
    "config.json",
    config(num_hidden_layers=2),
    "cannot load the model",
    "parameters",
)
model("code of its own", "config.json", config(model_file="evil.py"), "--trust-remote-code")
model(
    "quantised, not said how", "config.json", config(quantization={}), "tiny: cannot load the model"
)
model("weights missing", "model.safetensors", None, "No safetensors found")
model("weights empty", "model.safetensors", "", "tiny: cannot load the model")
model("weights cut short", "model.safetensors", cut(0.5), "tiny: cannot load the model")
model("weights, a header cut short", "model.safetensors", cut(0.001), "tiny: cannot load the model")
model(
    "weights, a header too long", "model.safetensors", header(2**62), "tiny: cannot load the model"
)
model(
    "weights, no tensors", "model.safetensors", header(2), "tiny: cannot load the model", "Missing"
)
model("weights noise", "model.safetensors", bytes(range(256)) * 9, "tiny: cannot load the model")
model("weights of another shape", "model.safetensors", other_shape, "model.norm.weight")
model(
    "weights one less", "model.safetensors", one_less, "Missing 1 parameters", "model.norm.weight"
)
case(
    "model: a pickle",
    {"tiny/model.safetensors": None, "tiny/pytorch_model.bin": b"cos\nsystem\n"},
    GENERATE,
    "tiny: cannot load the model: No safetensors found",
)
model("tokenizer missing", "tokenizer.json", None, "tokenizer.json is missing")
model("tokenizer empty", "tokenizer.json", "", "tiny: cannot load the tokenizer")
model("tokenizer cut short", "tokenizer.json", cut(0.5), "tiny: cannot load the tokenizer")
model("tokenizer a list", "tokenizer.json", "[]", "tiny: cannot load the tokenizer")
model("tokenizer of nothing", "tokenizer.json", "{}", "tiny: cannot load the tokenizer")
model(
    "tokenizer settings cut short", "tokenizer_config.json", cut(0.5), "cannot load the tokenizer"
)
model("no chat template", "tokenizer_config.json", config(chat_template=None), "chat template")
model("a broken template", "tokenizer_config.json", config(chat_template="{% for"), "chat template")
model(
    "a failing template",
    "tokenizer_config.json",
    config(chat_template="{{ 1 / 0 }}"),
    "chat template",
)
model(
    "a template that opens files",
    "tokenizer_config.json",
    config(chat_template="{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "chat template",
)
case(
    "model: info of a broken one",
    {"tiny/config.json": "{"},
    "model info tiny",
    "config.json: not readable",
)

ADAPTER = f"{GENERATE} -a adapter"


def adapter(name: str, file: str, content: Content, *says: str) -> None:
    case(f"adapter: {name}", {f"adapter/{file}": content}, ADAPTER, "adapter", *says)


def rank(value: Any) -> Content:
    return config(lora_parameters={"rank": value, "scale": 1.0, "dropout": 0.0})


case("adapter: missing", {}, f"{GENERATE} -a none", "none: no adapter here (adapter_config.json")
case("adapter: a file", {}, f"{GENERATE} -a recipe.yaml", "recipe.yaml: no adapter here")
case("adapter: of no user", {}, f"{GENERATE} -a ~nobody.here/a", "no adapter here")
case(
    "adapter: a phase misnamed",
    {"r/phaseX/adapter_config.json": "{}"},
    f"{GENERATE} -a r",
    "r: no adapter here",
)
adapter("config missing", "adapter_config.json", None, "no adapter here")
adapter("config empty", "adapter_config.json", "", "does not fit this model")
adapter("config cut short", "adapter_config.json", cut(0.5), "does not fit this model")
adapter("config a list", "adapter_config.json", "[]", "does not fit this model")
adapter("config of nothing", "adapter_config.json", "{}", "does not fit this model")
adapter(
    "kind unknown", "adapter_config.json", config(fine_tune_type="ia3"), "unknown fine_tune_type"
)
adapter(
    "layers as text", "adapter_config.json", config(num_layers="all"), "does not fit this model"
)
adapter("another rank", "adapter_config.json", rank(4), "does not fit this model", "does not match")
adapter("rank as text", "adapter_config.json", rank("2"), "does not fit this model")
adapter("rank below 0", "adapter_config.json", rank(-2), "does not fit this model")
adapter("rank huge", "adapter_config.json", rank(10**12), "does not fit this model")
adapter("weights missing", "adapters.safetensors", None, "adapters.safetensors is missing")
adapter("weights empty", "adapters.safetensors", "", "does not fit this model")
adapter("weights cut short", "adapters.safetensors", cut(0.5), "does not fit this model")
adapter(
    "weights, a header too long", "adapters.safetensors", header(2**62), "does not fit this model"
)
adapter(
    "weights of a model",
    "adapters.safetensors",
    link("../tiny/model.safetensors"),
    "does not fit this model",
)


def gguf(name: str, content: Content, *says: str) -> None:
    case(
        f"GGUF: {name}",
        {"model.gguf": content},
        "model import model.gguf --out out",
        "model.gguf",
        *says,
    )


def counts(tensors: int, values: int) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", 3, tensors, values)


gguf("missing", None, "cannot be read: No such file")
gguf("a folder", empty_folder, "cannot be read: Is a directory")
gguf("a pipe", pipe, "this is a pipe or a device")
gguf("empty", "", "not a GGUF file")
gguf("bad magic", edit(b"GGUF", b"GGML"), "not a GGUF file", "check the path")
gguf("magic alone", b"GGUF", "damaged or cut short", "download the file again")
gguf("of version 9", edit(struct.pack("<I", 3), struct.pack("<I", 9)), "GGUF version 9 is unknown")
gguf("cut within the names", cut(0.0005), "damaged or cut short")
gguf("cut within the weights", cut(0.9), "damaged or cut short (it ends within")
gguf("tensors without number", counts(2**63, 0), "damaged or cut short")
gguf("values without number", counts(0, 2**63), "damaged or cut short")
gguf("a name of 2⁶³ bytes", counts(0, 1) + struct.pack("<Q", 2**63), "damaged or cut short")
gguf(
    "an array of 2⁶³", counts(0, 1) + struct.pack("<Q1sIIQ", 1, b"a", 9, 4, 2**63), "damaged or cut"
)
gguf(
    "a line break in a name",
    counts(1, 0) + struct.pack("<Q3sIQIQ", 3, b"a\nb", 1, 32, 99, 0),
    r"tensor 'a\nb' is of unknown type 99",
)
gguf("nothing in it", counts(0, 0), "general.architecture is missing")
gguf(
    "another architecture",
    edit(b"\5\0\0\0\0\0\0\0llama", b"\5\0\0\0\0\0\0\0mamba"),
    "architecture 'mamba'",
)
case(
    "GGUF: out exists",
    {"out/mine.txt": "x"},
    "model import model.gguf --out out",
    "out: already exists",
)
case(
    "GGUF: out into a file",
    {"f": ""},
    "model import model.gguf --out f/out",
    "f/out: cannot be written",
)


# Questions and results.


def questions(name: str, content: Content, *says: str, file: str = "questions.json") -> None:
    command = f"benchmark truthfulqa -m tiny -q {file} -o out.json"
    case(f"questions: {name}", {file: content}, command, file, *says)


def asked(**changes: Any) -> str:
    return json.dumps([QUESTION, {**QUESTION, **changes}])


def options(pairs: str) -> str:
    """Two questions, the second with such single-true options."""
    mc2 = json.dumps(QUESTION["mc2_targets"])
    bad = f'{{"question": "Is it?", "mc1_targets": {pairs}, "mc2_targets": {mc2}}}'
    return f"[{json.dumps(QUESTION)}, {bad}]"


questions("missing", None, "no such file; give mc_task.json")
questions("a folder", empty_folder, "cannot be read: Is a directory")
questions("a pipe", pipe, "is no file but a pipe or a device")
questions("a device", link("/dev/zero"), "is no file but a pipe")
questions("20 MB", sparse(20_000_000), "20,000,000 bytes are no file of questions")
questions("empty", "", "not JSON")
questions("cut short", cut(0.5), "not JSON")
questions("not UTF-8", b"\xff", "not JSON", "or the CSV with a name in .csv")
questions("UTF-16", asked().encode("utf-16"), "not JSON")
questions("recursive", "[" * 100_000, "not JSON (nested too deeply)")
questions("5,000 digits", "[" + "1" * 5000 + "]", "not JSON")
questions("an object", "{}", "not a list of questions")
questions("none", "[]", "holds no questions")
questions("of texts", '["Is it?"]', "item 1: not an object")
questions("other columns", '[{"q": 1}]', "item 1: question, mc1_targets, mc2_targets missing")
questions("one empty", asked(question=" "), "item 2: the question is empty")
questions("one a number", asked(question=7), "item 2: the question is empty or no text")
questions("one with half a surrogate", asked(question="\ud800"), "item 2", "surrogate")
questions("options a list", asked(mc1_targets=["Yes."]), "item 2, mc1_targets: not an object")
questions("no options", asked(mc1_targets={}), "item 2, mc1_targets: no true answer")
questions("none true", options('{"Yes.": 0, "No.": 0}'), "item 2, mc1_targets: no true answer")
questions("all true", options('{"Yes.": 1}'), "item 2, mc1_targets: no false answer")
questions(
    "two true", options('{"Yes.": 1, "So.": 1, "No.": 0}'), "item 2, mc1_targets: 2 true answers"
)
questions("an option twice", options('{"Yes.": 1, "No.": 0, "No.": 1}'), "'No.' is there twice")
questions(
    "labelled true", options('{"Yes.": true, "No.": 0}'), "'Yes.' is labelled True; use 1 or 0"
)
questions("labelled 2", options('{"Yes.": 2, "No.": 0}'), "'Yes.' is labelled 2; use 1 or 0")
questions("labelled NaN", options('{"Yes.": NaN, "No.": 0}'), "'Yes.' is labelled nan; use 1 or 0")
questions(
    "more options than labels",
    options('{"choices": ["a", "b"], "labels": [1]}'),
    "differ in number",
)
questions("labels a number", options('{"choices": ["a", "b"], "labels": 1}'), "item 2, mc1_targets")
questions(
    "an option a number", options('{"choices": [1, "b"], "labels": [1, 0]}'), "option 1 is no text"
)
questions("CSV empty", "", "holds no questions", file="questions.csv")
questions("CSV, other columns", "a,b\n1,2\n", "wrong columns, Question,", file="questions.csv")
questions("CSV, a cell less", f"{CSV}Is it?\n", "item 2", file="questions.csv")
questions("CSV, not UTF-8", b"\xff\n", "not readable as CSV", file="questions.csv")
questions(
    "CSV, no true answer", f"{CSV}Is it?,Law,,Yes,No\n", "no true answer", file="questions.csv"
)
case(
    "questions: more than there are",
    {},
    "benchmark truthfulqa -m tiny -q questions.json --n 9",
    "questions.json: cannot sample 9 of 4 questions",
)
case(
    "questions: out into a file",
    {"f": ""},
    "benchmark truthfulqa -m tiny -q questions.json -o f/out.json",
    "f/out.json: cannot",
)


def result(name: str, content: Content, *says: str) -> None:
    case(f"result: {name}", {"after.json": content}, "compare before.json after.json", *says)


def first(n: int) -> Content:
    """A result's first items alone."""
    return lambda path: config(items=json.loads(path.read_text())["items"][:n])(path)


def item(change: Callable[[dict[str, Any]], object]) -> Content:
    """A result whose second item is changed."""

    def rewrite(path: Path) -> None:
        found = json.loads(path.read_text())
        change(found["items"][1])
        path.write_text(json.dumps(found))

    return rewrite


result("missing", None, "after.json: no such file")
result("a folder", empty_folder, "after.json: not readable")
result("empty", "", "after.json: not readable as JSON")
result("cut short", cut(0.5), "after.json: not readable as JSON")
result("not UTF-8", b"\xff", "after.json: not readable as JSON")
result("a list", "[]", "the result after is no result of a benchmark; give a JSON file")
result("not ours", '{"mc1": 0.5}', "the result after is no result of a benchmark")
result("of another benchmark", config(benchmark="mmlu"), "the result after is damaged")
result("no items", config(items=[]), "the result after: mc2 is stored as")
result("items null", config(items=None), "the result after is damaged", "measure again")
result("one item", first(1), "the result after: mc2 is stored as")
result("of other questions", config(questions_sha256="0"), "not comparable: questions_sha256")
result("asked another way", config(chat_template=True), "not comparable: chat_template")
result("fewer questions", first(3), "the result after")
result("a mean changed", config(mc2=0.99), "mc2 is stored as 0.99", "the file was changed")
result("a mean as text", config(mc1="high"), "the result after")
result(
    "a question changed",
    item(lambda i: i.update(question="Is it?!")),
    "item 2 is 'Is it 0?' before",
)
result(
    "scores not finite", item(lambda i: i["mc1"].update(loglik=[float("nan"), 0])), "is not finite"
)
result(
    "scores of text",
    item(lambda i: i["mc1"].update(loglik=["a", "b"])),
    "the result after is damaged",
)
result("scores missing", item(lambda i: i.pop("mc1")), "the result after is damaged")
result("labels changed", item(lambda i: i["mc1"].update(labels=[0, 1])), "the result after")
case("result: margin 0", {}, "compare before.json after.json --margin 0", "--margin")


# Runs, reports, places to write.


def run(name: str, files: Mapping[str, Content], options: str, *says: str) -> None:
    case(f"run: {name}", files, f"run recipe.yaml {options}", *says)


run("folder a file", {"run": "x"}, "--run-dir run", "run: is a file; name another --run-dir")
run("folder below a file", {"run": "x"}, "--run-dir run/x", "run/x: cannot be written")
run("folder in use", {"run/mine.txt": "x"}, "--run-dir run", "run: is not empty and holds no run")
run("folder of another run", {}, "--run-dir done", "done: holds a run already; go on with --resume")
run("resumed, another recipe", {}, "--run-dir done --resume --set seed=1", "another recipe", "seed")
run(
    "resumed, run.json cut short",
    {"done/run.json": cut(0.5)},
    "--run-dir done --resume",
    "run.json: not",
)
run(
    "resumed, of another version",
    {"done/run.json": config(version=9)},
    "--run-dir done --resume",
    "written by another release (run format 9",
)
run("no such model", {}, "--run-dir run -m ./none", "./none: no such model")
case("run: no such phase", {}, "train recipe.yaml --phase kto --run-dir run", "no phase 'kto'")
case(
    "plan: data cut short",
    {"chats.jsonl": cut(0.9)},
    "plan recipe.yaml",
    "chats.jsonl:2: not a JSON",
)
case("report: no run", {"d": empty_folder}, "report d", "d: no run here (run.json is missing)")
case("report: not there", {}, "report none", "none")
case("report: a file", {}, "report recipe.yaml", "recipe.yaml")
case(
    "report: run.json cut short",
    {"done/run.json": cut(0.5)},
    "report done",
    "run.json: not readable",
)
case(
    "report: run.json a list",
    {"done/run.json": "[]"},
    "report done",
    "done: damaged, or written by another",
)
case("report: run.json of nothing", {"done/run.json": "{}"}, "report done", "done: damaged", "name")
case("report: metrics cut short", {"done/metrics.jsonl": "{\n"}, "report done", "done: damaged")
case(
    "report: no recipe", {"done/recipe.yaml": None}, "report done", "done: damaged", "No such file"
)
case(
    "report: phase damaged",
    {"done/phase1_sft/phase.json": "{"},
    "report done",
    "phase.json: not readable",
)
case("fuse: out exists", {"out/mine.txt": "x"}, "fuse -m tiny -a adapter --out out", "out")
case("fuse: out into a file", {"f": ""}, "fuse -m tiny -a adapter --out f/out", "f/out")
case(
    "logprobs: out into a file", {"f": ""}, "logprobs -m tiny -d pairs.jsonl -o f/x", "f/x: cannot"
)
case(
    "show: out into a file",
    {"f": ""},
    "data show chats.jsonl -m tiny --html f/x.html",
    "f/x.html: cannot",
)


# Prepared folders.


def prepared(name: str, file: str, content: Content, *says: str) -> None:
    command = "run recipe.yaml --run-dir run --set phases.sft.data=prepared"
    case(f"prepared: {name}", {f"prepared/{file}": content}, command, "prepared", *says)


prepared("no manifest", "manifest.json", None, "manifest.json: no such file")
prepared("manifest cut short", "manifest.json", cut(0.5), "manifest.json: not readable")
prepared("manifest of nothing", "manifest.json", "{}", "prepare it again")
prepared("tokens missing", "train/tokens.bin", None, "prepared/train: damaged; prepare it again")
prepared("tokens empty", "train/tokens.bin", "", "prepared/train: damaged; prepare it again")
prepared("tokens cut short", "train/tokens.bin", cut(0.7), "prepare it again")
prepared("mask cut short", "train/mask.bin", cut(0.7), "different lengths; prepare it again")
prepared("index cut short", "train/rows.idx", cut(0.7), "prepared/train: ", "prepare it again")


# The environment.


def environment(name: str, command: str, *says: str, **variables: str | None) -> None:
    CASES.append(Case(f"environment: {name}", {"f": ""}, command, says, variables))


environment("cache a file", "model fetch", "FORTY2_CACHE", FORTY2_CACHE="f")
environment("cache below a file", "generate -m smollm2 -p hi", "FORTY2_CACHE", FORTY2_CACHE="f/x")


# --- the test -------------------------------------------------------------------------------------


def lay_out(one: Case, good: Path, folder: Path) -> None:
    """The good files that the command names, then the case's own."""
    spoilt = {name.split("/")[0] for name in one.files}
    named = one.command + (RECIPE if "recipe.yaml" in one.command else "")
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


@pytest.fixture
def in_time() -> Iterator[None]:
    """A command that hangs fails."""

    def stop(*_: object) -> None:
        raise AssertionError("hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def check(one: Case, message: str) -> None:
    """One message, which says what it must."""
    assert "Traceback" not in message
    beside = re.compile(r"Usage:|Try '|.*%\|")  # what click and progress bars print
    told = [line for line in message.splitlines() if line and not beside.match(line)]
    assert told and told[0].startswith("Error: "), message
    assert len(told) == 1 or all(re.match(r"(Error: )?\S+: ", line) for line in told), message
    assert max(map(len, told)) < 12_000
    for part in one.says:
        assert part in message, message


@pytest.mark.parametrize("one", CASES, ids=lambda one: one.name)
def test_bad_input_is_refused(
    one: Case, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_time: None
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in one.environment.items():
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name)
    lay_out(one, good, tmp_path)
    before = listing(tmp_path)
    start = time.process_time()
    result = forty2(one.command)
    seconds = time.process_time() - start
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2, result.output
    check(one, result.output)
    assert nothing_written(one, before, listing(tmp_path))
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


@pytest.mark.parametrize(
    "name",
    [
        "recipe: billion laughs",
        "recipe: 10 MB",
        "data: a line of 50 MB",
        "data: a gzip bomb",
        "data: a gzip bomb, a CSV cell",
        "data: a gzip bomb, a text in JSON",
        "data: a pipe",
        "data: 8 GB of JSON",
        "data: a Parquet bomb",
        "data: a Parquet bomb in a row",
        "data: recursion",
        "model: size huge",
        "GGUF: an array of 2⁶³",
        "questions: a device",
    ],
)
def test_a_process_stays_small_and_ends(name: str, good: Path, tmp_path: Path) -> None:
    one = next(one for one in CASES if one.name == name)
    lay_out(one, good, tmp_path)
    before = listing(tmp_path)
    said = tmp_path.parent / f"{tmp_path.name}.said"
    command = [sys.executable, "-m", "forty2", *shlex.split(one.command)]
    code, seconds, memory = used_by(command, tmp_path, said)
    check(one, said.read_text())
    assert code == 2
    assert nothing_written(one, before, listing(tmp_path))
    assert memory < 500e6
    assert seconds < 15  # most of it imports


@pytest.mark.slow
def test_no_case_of_all_takes_a_process_beyond_500_mb(tmp_path: Path) -> None:
    """All of them in one process, one after another: its peak is beyond none of theirs.

    Each one's two seconds are asserted in there."""
    said = tmp_path / "said"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    command += ["-k", "test_bad_input_is_refused"]
    code, _, memory = used_by(command, Path(__file__).parent, said)
    assert code == 0, said.read_text()[-5000:]
    assert memory < 500e6


def test_names_are_unique() -> None:
    assert len({one.name for one in CASES}) == len(CASES) >= 150


# --- and whatever nobody thought of ---------------------------------------------------------------

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


@FEW
@given(text=mutated(RECIPE.encode()))
def test_any_recipe_is_read_or_refused(
    text: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(text)
    with contextlib.suppress(RecipeError):
        load_recipe(path)


@FEW
@given(key=st.sampled_from(["", "seed", "adapter.keys", "phases.dpo", "x.y"]), value=st.text())
def test_any_override_is_taken_or_refused(key: str, value: str) -> None:
    with contextlib.suppress(RecipeError):
        load_recipe("demo", [f"{key}={value}"])


@pytest.mark.parametrize(
    ("kind", "good"),
    [
        (".jsonl", lines(CHAT, said(("user", "q"), ("assistant", "a")))),
        (".jsonl", lines(PAIR, {**PAIR, "chosen": said(("assistant", "a"))["messages"]})),
        (".json", json.dumps([CHAT, {"instruction": "q", "output": "a", "history": [["a", "b"]]}])),
        (".csv", 'prompt,completion,label\nq,a,true\n"x\ny","[{""role"": ""user""}]",\n'),
        (".txt", "one\n\ntwo\n"),
    ],
    ids=["chats", "pairs", "json", "csv", "txt"],
)
def test_any_row_is_read_or_refused(kind: str, good: str, tmp_path: Path) -> None:
    path = tmp_path / f"fuzz{kind}"

    @FEW
    @given(text=mutated(good.encode()))
    def read(text: bytes) -> None:
        path.write_bytes(text)
        with contextlib.suppress(DataError):
            for origin, found in read_rows(path):
                dumps([to_row(parse(found, origin))]).encode()

    read()


@FEW
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["role", "content", "from", "value", "tool_calls"]),
                inner,
                max_size=3,
            )
        ),
        max_leaves=8,
    ),
    keys=st.sets(
        st.sampled_from(
            [
                "messages",
                "conversations",
                "prompt",
                "completion",
                "chosen",
                "rejected",
                "label",
                "text",
                "instruction",
                "output",
                "input",
                "history",
                "system",
            ]
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_any_value_is_parsed_or_refused(value: Any, keys: set[str]) -> None:
    with contextlib.suppress(DataError):
        to_row(parse({**CHAT, **dict.fromkeys(keys, value)}, "fuzz:1"))


# --- and large files that are right are read whole ------------------------------------------------


@pytest.mark.parametrize("kind", ["json", "json.gz", "jsonl.gz", "parquet"])
def test_a_large_file_is_read_row_for_row(kind: str, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"prompt": f"{n} é\n" * (n % 90), "completion": "same " * 20} for n in range(3000)]
    rows[7]["prompt"] = "x" * 300_000  # longer than what is read at a time
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=100)
    else:
        text = lines(*rows) if "jsonl" in kind else json.dumps(rows, indent=1, ensure_ascii=False)
        path.write_bytes(gzip.compress(text.encode()) if ".gz" in kind else text.encode())
    found = list(read_rows(path))
    assert [row for _, row in found] == rows
    number = {"json": 2 + 4 * 2999, "jsonl": 3000, "parquet": "row 3000"}[kind.split(".")[0]]
    assert found[-1][0] == f"{path}:{number}"
