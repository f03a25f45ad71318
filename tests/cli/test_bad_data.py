"""Data files, rows and prepared folders that must be refused."""

from __future__ import annotations

import contextlib
import gzip
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.bad_input import (
    CHAT,
    FEW,
    PAIR,
    Case,
    Cases,
    Content,
    Maker,
    check_process,
    check_refused,
    cut,
    edit,
    empty_folder,
    lines,
    link,
    mutated,
    pipe,
    said,
    sparse,
)

from forty2.data.formats import parse, to_row
from forty2.data.sources import dumps, read_rows
from forty2.errors import DataError

CASES = Cases()
case = CASES.add

# Files. Each is read by `data convert`.


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


def repeated_views(path: Path) -> None:
    """2 GB of text in an Arrow file of 1 MB, whose views all lead to the same text."""
    import pyarrow as pa

    text = b"x" * 10**6
    views = struct.pack("<i4sii", len(text), text[:4], 0, 0) * 2_000
    column = pa.Array.from_buffers(
        pa.string_view(), 2_000, [None, pa.py_buffer(views), pa.py_buffer(text)]
    )
    turns = pa.ListArray.from_arrays(pa.array([0, 2_000]), column)
    table = pa.table({"prompt": ["q"], "completion": ["a"], "turns": turns})
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


def bomb(block: bytes, before: bytes = b"") -> Maker:
    """A gigabyte in a megabyte."""
    again = gzip.compress(block * (10_000_000 // len(block))) * 100
    return lambda path: path.write_bytes(gzip.compress(before) + again)


data("missing", None, "rows.jsonl: cannot be read: No such file")
data("empty", "", "rows.jsonl: is empty")
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
data("a kind unknown", "a", "rows of kind .xlsx are not read; use .jsonl", file="rows.xlsx")
data("not JSON", lines(CHAT) + "prompt: q\n", "rows.jsonl:2: not a JSON object")
data("a line cut off", lines(CHAT) + '{"prompt": "q", "comp', ":2: not a JSON object", "is cut off")
data("two rows on a line", lines(CHAT).strip() * 2 + "\n", "put each object on a line of its own")
data("a number", "42\n", "rows.jsonl:1: not a JSON object but int")
data("null", "null\n", "rows.jsonl:1: not a JSON object but NoneType")
data("a list on a line", "[1]\n", "rows.jsonl:1: not a JSON object but list")
data(
    "not UTF-8",
    b'{"prompt": "\xff"}\n',
    "rows.jsonl:1: not UTF-8 (byte 13",
    "save the file as UTF-8",
)
data("UTF-16 cut off", lines(CHAT).encode("utf-16")[:-1], "begins as UTF-16 but is damaged")
data("UTF-16 without a mark, cut off", lines(CHAT).encode("utf-16-le")[:-1], "UTF-16-LE but")
data(
    "UTF-32 damaged", lines(CHAT).encode("utf-32") + b"\xff" * 4, "begins as UTF-32 but is damaged"
)
data(
    "Windows-1252",
    '{"prompt": "ä"}\n'.encode("cp1252"),
    ":1: not UTF-8",
    "0xE4 is ä in Windows-1252",
)
data("NUL bytes", "\0\0\0\n", "rows.jsonl:1: not a JSON object")
data(
    "NaN", '{"prompt": "q", "completion": "a", "x": NaN}\n', "rows.jsonl:1: ", "NaN is not a number"
)
data(
    "infinity",
    '{"prompt": "q", "completion": "a", "x": [-Infinity]}\n',
    ":1: ",
    "-Infinity is not a number",
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
data("an Arrow bomb of views", repeated_views, ":row 1: a row longer", file="rows.arrow")
data("no JSON", "q,a\n", "rows.json:1: not a JSON object", file="rows.json")
data(
    "wrapped rows without an end",
    '{"data": [\n{"text": "a"}\n]\n',
    "rows.json:4: the object does not end after its rows",
    file="rows.json",
)
data(
    "two wrapped lists",
    '{"train": [{"text": "a"}],\n "test": [{"text": "b"}]}',
    "rows.json:2: train and test both hold rows",
    file="rows.json",
)
data("more after wrapped rows", '{"data": [\n{"text": "a"}]}\n{}', ":3: the array ends before this")
data("wrapped rows, one bad", '{"data": [\n{"text": "a"},\n{"text": 3}]}', ":3: text must be text")
data("a wrapped message", '{"data": [{"role": "user", "content": "q"}]}', ":1: needs messages")
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
data(
    "NaN in an array",
    '[{"x": NaN}]',
    "rows.json:1: not JSON: NaN is not a number",
    file="rows.json",
)
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
data("CSV, Latin 1", "prompt,completion\nq,ä\n".encode("latin-1"), ":2: not UTF-8", file="rows.csv")
data("CSV, JSON cut off", 'messages\n"[{"\n', "rows.csv:2: messages: not a JSON", file="rows.csv")
data(
    "CSV, messages of Python",
    "prompt,completion\n\"[{'role': 'user', 'content': 'q'}]\",a\n",
    "rows.csv:2: prompt holds messages as Python prints them",
    "to_json",
    file="rows.csv",
)
data(
    "CSV, semicolons and a cell more",
    "prompt;completion\nq;a;b\n",
    "rows.csv:2: has another number of cells than the header (3, not 2; separated by semicolons)",
    file="rows.csv",
)
data("TSV, a cell less", "prompt\tcompletion\nq\n", "separated by tabs", file="rows.tsv")
data("Arrow that is none", lines(CHAT), "rows.arrow: not an Arrow file", file="rows.arrow")
data("Arrow, magic alone", b"ARROW1\0\0" + b"\xff" * 40, "rows.arrow", file="rows.arrow")
data("Arrow, empty", "", "rows.arrow: is empty", file="rows.arrow")
data("Parquet that is none", lines(CHAT), "rows.parquet: not a Parquet file", file="rows.parquet")
data("Parquet, empty", "", "rows.parquet: is empty", file="rows.parquet")
data("CSV, empty", "", "rows.csv: is empty", file="rows.csv")
data("a text, empty", "", "rows.txt: is empty", file="rows.txt")
data("Parquet, magic alone", b"PAR1" + b"\xff" * 40 + b"PAR1", "rows.parquet", file="rows.parquet")
data(
    "Parquet, numbers",
    parquet(completion=[1]),
    ":row 1: completion must be text",
    file="rows.parquet",
)
for name, column, reason in (
    (
        "bytes",
        [b"a"],
        "x' holds a value of type bytes, which JSON cannot hold; leave the column out",
    ),
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
    "d: exists and is not a data set of forty2; name another --output-dir",
)
case("data: no built-in set", {}, "data build spark --output-dir out", "no built-in data set")

# Data: rows. The second line is bad.


def row(name: str, bad: Mapping[str, Any], *says: str) -> None:
    file = {"rows.jsonl": lines(CHAT, bad)}
    case(f"row: {name}", file, "data convert -i rows.jsonl -o out.jsonl", "rows.jsonl:2: ", *says)


row("nothing in it", {}, "needs messages, prompt and completion", "has no keys")
row("no shape known", {"title": "q", "body": "a"}, "needs messages", "has title, body")
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
row("messages of text", {"messages": ["q", "a"]}, "messages is a list of texts, not of messages")
row("prompt of texts", {"prompt": ["q"], "completion": ["a"]}, "prompt is a list of texts")
row("label a class", {"text": "q", "label": "sport"}, "the model should answer, rename label to")
row(
    "a picture's path",
    {"prompt": "q", "completion": "a", "image_path": "x.png"},
    "image_path is not",
)
row("sound", {"prompt": "q", "completion": "a", "audio_url": "x"}, "audio_url is not used")
row("role unknown", said(("user", "q"), ("owl", "a")), "messages[1].role must be one of", "'owl'")
row("role missing", {"messages": [{"content": "q"}]}, "messages[0] has no role; has content")
row("role a list", said((["user"], "q")), "messages[0].role must be one of")
row("role an object", said(({"a": 1}, "q")), "messages[0].role must be one of")
row("from a list", {"messages": [{"from": ["human"], "value": "q"}]}, "messages[0].from must be")
row("content null", said(("user", None), ("assistant", "a")), "messages[0].content must be text")
row("content a number", said(("user", 7), ("assistant", "a")), "messages[0].content must be text")
row(
    "content a list", said(("user", [{"type": "text"}])), "messages[0].content[0].text must be text"
)
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
row("label a number", {**CHAT, "label": 2}, "label must be true or false, not 2")
row(
    "rated, no answer", {**said(("user", "q")), "label": True}, "must end with the assistant's turn"
)


def weighed(weight: Any) -> None:
    file = {"rows.jsonl": lines(PAIR, {**PAIR, "weight": weight})}
    command = "logprobs -m tiny -d rows.jsonl -o out.json"
    says = ("rows.jsonl:2: weight must be a number above 0, at most 100",)
    case(f"row: weight {weight!r}", file, command, *says)


for weight in (-1, "2", True, 1e9, [1]):
    weighed(weight)
row(
    "weight 0", {"prompt": "q", "completion": "a", "weight": 0}, "weight is 0: a row that is not to"
)
case(
    "file: a pointer of Git LFS",
    {"rows.jsonl": b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n"},
    "data convert --input rows.jsonl -o out.jsonl",
    "rows.jsonl: is a pointer of Git LFS, not the rows; run `git lfs pull`",
)
case(
    "file: rows named as a text",
    {"rows.txt": lines(CHAT)},
    "data convert --input rows.txt -o out.jsonl",
    "rows.txt: holds rows in JSON, not plain text; name it rows.jsonl",
)
for name, content in {
    "an array on one line": f"[{lines(CHAT).strip()}]",
    "an array": f"[\n{lines(CHAT).strip()}\n]\n",
    "wrapped rows": f'{{"data": [\n{lines(CHAT)}]}}',
    "rows over several lines": json.dumps(CHAT, indent=1),
}.items():
    data(f"{name}, named as a text", content, "name it rows.json to train on", file="rows.txt")
case(
    "file: almost the name",
    {"chats.jsonl": lines(CHAT)},
    "data convert --input chat.jsonl -o out.jsonl",
    "chat.jsonl: cannot be read: No such file or directory; did you mean chats.jsonl?",
)
case(
    "mix: kinds that no phase takes together",
    {"chats.jsonl": lines(CHAT), "pairs.jsonl": lines(PAIR)},
    "data mix --inputs chats.jsonl pairs.jsonl -o mixed.jsonl",
    "conversations (chats.jsonl) with preference pairs (pairs.jsonl): no phase takes these",
)
case(
    "row: weight NaN",
    {"pairs.jsonl": edit(b'"prompt"', b'"weight": NaN, "prompt"')},
    "logprobs -m tiny -d pairs.jsonl -o out.json",
    "pairs.jsonl:1: ",
    "NaN is not a number",
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


@pytest.mark.parametrize("one", CASES, ids=lambda one: one.name)
def test_bad_data_are_refused(
    one: Case, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_time: None
) -> None:
    check_refused(one, good, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "name",
    [
        "data: a line of 50 MB",
        "data: a gzip bomb",
        "data: a gzip bomb, a CSV cell",
        "data: a gzip bomb, a text in JSON",
        "data: a pipe",
        "data: 8 GB of JSON",
        "data: a Parquet bomb",
        "data: a Parquet bomb in a row",
        "data: recursion",
    ],
)
def test_a_process_stays_small_and_ends(name: str, good: Path, tmp_path: Path) -> None:
    check_process(CASES.named(name), good, tmp_path)


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
                st.sampled_from(
                    [
                        "role",
                        "content",
                        "from",
                        "value",
                        "tool_calls",
                        "function_call",
                        "name",
                        "arguments",
                        "args",
                        "function",
                        "weight",
                    ]
                ),
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
                "tools",
                "response",
                "context",
                "reasoning",
                "answer",
                "rationale",
                "desirable",
                "preferred_output",
                "non_preferred_output",
                "rejected_response",
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
