"""Files of eval prompts: prompts with expected outputs, and when a reply passes.

A JSON file in MyPT's shape, and three keys more (match, form, gates):

    {"description":      "what this asks",
     "system_prompt":    "You are brief.",              or for each prompt: {"say_1": "...", ...}
     "prompts":          {"say_1": "Say hello.", ...},
     "expected_outputs": {"say_1": "hello.", ...},
     "match":            "exact",                       or for some prompts: {"say_1": "regex"}
     "form":             "user",
     "gates":            {"say": 0.8, "all": 0.75}}

match says when a reply passes. White space around the reply and the expected text never counts;
everything else does, case and the full stop at the end included: such prompts test them.
    exact     the reply is the expected text (the default)
    contains  the expected text is somewhere in the reply
    regex     the expected text is a pattern in RE2's syntax, found somewhere in the reply; RE2 takes
              time linear in the reply whatever the pattern, and so has no lookaround and no \\1
form says what the prompts are. Without it, a file is "full" if all its prompts hold control tokens
of the tokenizer, and "user" if none does; anything else is an error.
    user      a user's turn, which goes through the chat template, after the system prompt
    full      whole strings with control tokens and system prompt, tokenized unchanged
A prompt's bucket is its id before the last "_". A gate is the smallest share of a bucket that must
pass; "all" is every prompt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn, cast, get_args

from forty2.benchmark.question_files import read_question_file
from forty2.data.build.curriculum import STAGES, stage_prompts
from forty2.data.sources import BUILTIN, unique_keys
from forty2.errors import BenchmarkError
from forty2.files import JsonObject

Match = Literal["exact", "contains", "regex"]
Form = Literal["user", "full"]

ALL = "all"
_KEYS = (
    "description",
    "system_prompt",
    "prompts",
    "expected_outputs",
    "match",
    "form",
    "gates",
)


@dataclass(frozen=True, slots=True)
class EvalPrompt:
    """One prompt, and the replies to it that pass."""

    id: str
    text: str
    expected: str
    match: Match
    system: str

    @property
    def bucket(self) -> str:
        """Group of the prompt: its id before the last "_"."""
        return bucket_of(self.id)

    def passes(self, reply: str) -> bool:
        """Return whether a reply is as expected."""
        text, expected = reply.strip(), self.expected.strip()
        match self.match:
            case "exact":
                return text == expected
            case "contains":
                return expected in text
            case "regex":
                return _matches(expected, text)


def bucket_of(prompt_id: str) -> str:
    """Return the bucket of a prompt: its id before the last "_"."""
    return prompt_id.rpartition("_")[0] or prompt_id


@dataclass(frozen=True, slots=True)
class EvalPrompts:
    """A file of eval prompts."""

    file: str
    items: tuple[EvalPrompt, ...]
    form: Form | None
    """Form of the prompts; None: the tokenizer's control tokens decide."""
    gates: dict[str, float]
    sha256: str


def load_eval_prompts(file: str | Path) -> EvalPrompts:
    """Read a file of prompts.

    Raises:
        BenchmarkError: the file has another shape, prompts and expected outputs do not correspond, a
            pattern is not in RE2's syntax, or a prompt cannot fail; names file and id.
    """
    path = Path(file).expanduser()
    data, found = _built_in(str(file)) if str(file).startswith(BUILTIN) else _read(path)
    if unknown := [key for key in found if key not in _KEYS]:
        _fail(path, unknown[0], f"unknown key; there are {', '.join(_KEYS)}")
    prompts, expected = (_texts(path, found, key) for key in ("prompts", "expected_outputs"))
    for key in prompts:
        if key not in expected:
            _fail(path, f"prompts.{key}", "has no expected output")
    systems = _each(path, found, "system_prompt", prompts, "")
    matches = _each(path, found, "match", prompts, "exact")
    form = found.get("form")
    if form is not None and form not in get_args(Form):
        _fail(path, "form", f"must be one of {', '.join(get_args(Form))}")
    for key in expected:
        if key not in prompts:
            _fail(path, f"expected_outputs.{key}", "there is no such prompt")
        _check(path, key, matches[key], expected[key].strip())
    items = tuple(
        EvalPrompt(key, text, expected[key], cast(Match, matches[key]), systems[key])
        for key, text in prompts.items()
    )
    gates = _gates(path, found.get("gates", {}), {item.bucket for item in items})
    return EvalPrompts(str(file), items, form, gates, hashlib.sha256(data).hexdigest())


def _built_in(source: str) -> tuple[bytes, JsonObject]:
    name = source.removeprefix(BUILTIN)
    if name not in STAGES:
        raise BenchmarkError(
            f"{source}: there are no such eval prompts; there are {', '.join(STAGES)}"
        )
    found = stage_prompts(name)
    return json.dumps(found).encode(), found


def _read(path: Path) -> tuple[bytes, JsonObject]:
    data = read_question_file(path)
    if not data.strip():
        raise BenchmarkError(f"{path}: is empty")
    try:
        found = json.loads(data.decode("utf-8-sig"), object_pairs_hook=unique_keys)
        json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise BenchmarkError(f"{path}: not JSON: {reason}") from error
    if not isinstance(found, dict):
        raise BenchmarkError(f"{path}: not a JSON object but {type(found).__name__}")
    return data, found


def _texts(path: Path, found: JsonObject, key: str) -> dict[str, str]:
    texts = found.get(key)
    if not isinstance(texts, dict) or not texts:
        _fail(path, key, "must be an object of ids and texts, one at least")
    for name, text in texts.items():
        if isinstance(text, int | float):
            quoted = json.dumps(json.dumps(text))
            _fail(path, f"{key}.{name}", f"must be a text: write {quoted}, with the quotes")
        if not isinstance(text, str) or not text.strip():
            _fail(path, f"{key}.{name}", "must be a text, and not an empty one")
    return texts


def _each(
    path: Path, found: JsonObject, key: str, prompts: Iterable[str], default: str
) -> dict[str, str]:
    """Return a text for each prompt: one for all, or for some by their ids."""
    value = found.get(key, default)
    given = dict.fromkeys(prompts, value) if isinstance(value, str) else value
    if not isinstance(given, dict):
        _fail(path, key, "must be a text, or an object of ids and texts")
    for name, text in given.items():
        if name not in prompts:
            _fail(path, f"{key}.{name}", "there is no such prompt")
        if not isinstance(text, str):
            _fail(path, f"{key}.{name}", "must be a text")
    return {name: given.get(name, default) for name in prompts}


def _check(path: Path, key: str, match: str, expected: str) -> None:
    """Refuse an unknown kind of match, and a pattern that is invalid or matches everything."""
    if match not in get_args(Match):
        _fail(path, f"match.{key}", f"{match!r}: must be one of {', '.join(get_args(Match))}")
    if match == "regex":
        where = f"expected_outputs.{key}"
        try:
            if _matches(expected, ""):
                _fail(path, where, "the pattern is found in an empty reply, so every reply passes")
        except ValueError as error:  # Arrow's, with RE2's reason
            reason = str(error).removeprefix("Invalid regular expression: ")
            _fail(path, where, f"not a pattern in RE2's syntax: {reason}")


def _gates(path: Path, gates: object, buckets: set[str]) -> dict[str, float]:
    if not isinstance(gates, dict):
        _fail(path, "gates", "must be an object of buckets and shares")
    if ALL in buckets:
        _fail(path, f"prompts.{ALL}", f"the bucket {ALL!r} is that of every prompt; rename it")
    for name, least in gates.items():
        if name not in buckets and name != ALL:
            _fail(path, f"gates.{name}", f"no such bucket; there are {', '.join(sorted(buckets))}")
        number = isinstance(least, int | float) and not isinstance(least, bool)
        if not number or not 0 < least <= 1:
            _fail(path, f"gates.{name}", "must be a share above 0, at most 1")
    return gates


def _matches(pattern: str, text: str) -> bool:
    """Return whether RE2 finds a pattern in a text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return bool(pc.match_substring_regex(pa.scalar(text), pattern=pattern).as_py())


def _fail(path: Path, where: str, what: str) -> NoReturn:
    raise BenchmarkError(f"{path}: {where}: {what}")
