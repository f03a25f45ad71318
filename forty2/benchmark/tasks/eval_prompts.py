"""Eval prompts: prompts with expected outputs, answered greedily and scored, during training too.

A JSON file in the shape that MyPT has, and three keys that it has not (match, form, gates):

    {"description":      "what this asks",
     "system_prompt":    "You are brief.",              or for each prompt: {"say_1": "...", ...}
     "prompts":          {"say_1": "Say hello.", ...},
     "expected_outputs": {"say_1": "hello.", ...},
     "match":            "exact",                       or for some prompts: {"say_1": "regex"}
     "form":             "user",
     "gates":            {"say": 0.8, "all": 0.75}}

match says when a reply passes. White space around the reply and the expected text never counts,
everything else does, case and the full stop at the end too: those are what such prompts test.
    exact     the reply is the expected text (the default)
    contains  the expected text is somewhere in the reply
    regex     the expected text is a pattern in RE2's syntax, found somewhere in the reply; RE2 takes
              time linear in the reply whatever the pattern, and so has no lookaround and no \\1
form says what the prompts are. Without it a file whose prompts all hold control tokens of the
tokenizer is "full", one of which none does is "user", and what could be either is an error.
    user      what a user says: it goes through the chat template, after the system prompt
    full      whole strings, control tokens and system prompt included, tokenised as they stand
A prompt's bucket is its id before the last "_". A gate is the least share of a bucket that must
pass; "all" is every prompt.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, cast, get_args

from forty2 import machine
from forty2.benchmark.prompts import context_length
from forty2.benchmark.questions import small_file
from forty2.benchmark.replies import Tags, collapsed
from forty2.benchmark.stats import stderr
from forty2.data.sources import unique_keys
from forty2.errors import BenchmarkError, DataError
from forty2.files import write_json
from forty2.inference.generation import BATCH_SIZE, generate_replies
from forty2.model.loading import LoadedModel
from forty2.model.surgery import evaluating
from forty2.progress import Progress, silent
from forty2.text.encoder import Encoder

Match = Literal["exact", "contains", "regex"]
Form = Literal["user", "full"]

MAX_TOKENS = 64
SPOT_TOKENS = 16
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
_TAGGED = re.compile(r"\s*<[^<>\s]+>")


@dataclass(frozen=True, slots=True)
class EvalPrompt:
    """One prompt and what passes as a reply to it."""

    id: str
    text: str
    expected: str
    match: Match
    system: str

    @property
    def bucket(self) -> str:
        return self.id.rpartition("_")[0] or self.id

    def passes(self, reply: str) -> bool:
        """Whether a reply is as expected."""
        said, expected = reply.strip(), self.expected.strip()
        match self.match:
            case "exact":
                return said == expected
            case "contains":
                return expected in said
            case "regex":
                return _found(expected, said)


@dataclass(frozen=True, slots=True)
class EvalPrompts:
    """A file of them."""

    file: str
    items: tuple[EvalPrompt, ...]
    form: Form | None
    """None: to be told from the tokenizer's control tokens."""
    gates: dict[str, float]
    sha256: str


def eval_prompts(
    model: str,
    adapter: str | None = None,
    *,
    prompts: str | Path,
    max_tokens: int = MAX_TOKENS,
    batch_size: int = BATCH_SIZE,
    out: str | Path | None = None,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measure a model, and write the result with every reply.

    Args:
        model: folder, hub name or `smollm2`.
        adapter: adapter folder, or a run folder.
        prompts: the JSON file.
        max_tokens: longest reply.
        batch_size: replies generated at a time.
        out: JSON file to write.

    Raises:
        BenchmarkError: the file is unusable, or does not fit the model.
        ModelError: the model or adapter cannot be loaded.
    """
    from forty2.model.loading import load

    asked = load_eval_prompts(prompts)
    loaded = load(model, adapter, trust_remote_code=trust_remote_code)
    measured = {
        "benchmark": "eval_prompts",
        "model": model,
        "adapter": adapter,
        "max_tokens": max_tokens,
        **probe(loaded, asked, max_tokens=max_tokens, batch_size=batch_size, progress=progress),
        "versions": machine.facts(),
    }
    if out is not None:
        write_json(Path(out), measured)
    return measured


def probe(
    loaded: LoadedModel,
    prompts: EvalPrompts,
    *,
    max_tokens: int = MAX_TOKENS,
    batch_size: int = BATCH_SIZE,
    progress: Progress = silent,
    stage: str = "eval prompts",
) -> dict[str, Any]:
    """Answer the prompts greedily and score the replies; training may go on as if nothing was.

    Returns:
        As JSON: `passed`, the share of all; `buckets`, that of each; `stop_rate`, the share that
        the model ended itself; `distinct` replies; `gates`; `faults`, what the replies show to be
        broken, in words; `items`; and what it takes to believe them.

    Raises:
        BenchmarkError: a prompt does not fit the model, or its scores are not finite.
    """
    asked = Asked(loaded, prompts, max_tokens)
    with evaluating(loaded.model, restore_random=True):
        replies = dict(
            generate_replies(
                loaded,
                asked.ids,
                max_tokens=max_tokens,
                batch_size=batch_size,
                progress=lambda _, done, total, info: progress(stage, done, total, info),
            )
        )
    items = []
    for n, (prompt, ids) in enumerate(zip(prompts.items, asked.ids, strict=True)):
        said = replies[n]
        turn = asked.tags.turn(ids, said.ids, stopped=said.stopped)
        # with control tokens: a reply that holds one is not the expected text
        reply = str(loaded.tokenizer.decode(list(said.ids[: turn.length])))
        items.append(
            {
                "id": prompt.id,
                "prompt": prompt.text,
                "expected": prompt.expected,
                "match": prompt.match,
                "reply": reply,
                "passed": prompt.passes(reply),
                "stopped": said.stopped,
                "broken": turn.broken,
                "bucket": prompt.bucket,
            }
        )
    return {
        "prompts": prompts.file,
        "prompts_sha256": prompts.sha256,
        "form": asked.form,
        **result(items, prompts.gates),
    }


def check_replies(loaded: LoadedModel, prompts: Sequence[list[int]]) -> list[str]:
    """What greedy replies to a few prompts (token ids) show to be broken, in words."""
    tags = Tags(loaded.tokenizer)
    with evaluating(loaded.model, restore_random=True):
        replies = dict(generate_replies(loaded, prompts, max_tokens=SPOT_TOKENS))
    items = [
        {
            "id": f"prompt {n + 1}",
            "prompt": loaded.tokenizer.decode(ids),
            "reply": replies[n].text,
            "passed": False,
            "broken": tags.turn(ids, replies[n].ids, stopped=replies[n].stopped).broken,
        }
        for n, ids in enumerate(prompts)
    ]
    return list(_faults(items))


def result(items: Sequence[Mapping[str, Any]], gates: Mapping[str, float]) -> dict[str, Any]:
    """What scored items amount to, as JSON."""
    buckets: dict[str, list[float]] = {}
    for item in items:
        buckets.setdefault(item["bucket"], []).append(float(item["passed"]))
    passed = [float(item["passed"]) for item in items]
    shares = {name: _share(values) for name, values in buckets.items()}
    reached = {ALL: _share(passed), **shares}
    replies = [item["reply"] for item in items]
    return {
        "n": len(items),
        "passed": reached[ALL],
        "stderr": stderr(passed) if len(passed) > 1 else None,
        "buckets": {
            name: {"n": len(values), "passed": shares[name]} for name, values in buckets.items()
        },
        "gates": {
            name: {"least": least, "share": reached[name], "passed": reached[name] >= least}
            for name, least in gates.items()
        },
        "stop_rate": _share([float(item["stopped"]) for item in items]),
        "distinct": len(set(replies)),
        "faults": list(_faults(items)),
        "items": [dict(item) for item in items],
    }


def metrics(measured: Mapping[str, Any]) -> dict[str, float]:
    """The shares of a result by name, as an evaluation logs them; `passed_say` is the bucket say's."""
    buckets = {f"passed_{name}": part["passed"] for name, part in measured["buckets"].items()}
    return {"passed": measured["passed"], **buckets, "stopped": measured["stop_rate"]}


def _share(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _faults(items: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    prompts, replies = ([str(item[key]) for item in items] for key in ("prompt", "reply"))
    # where every prompt expects the same, the same is right
    if collapsed(prompts, replies) and not all(item["passed"] for item in items):
        yield f"all {len(items)} prompts get the reply {replies[0].strip()[:60]!r}"
    broken = [str(item["id"]) for item in items if item["broken"]]
    if broken:
        some = ", ".join(broken[:3]) + (" …" if len(broken) > 3 else "")
        yield f"broken tags in {len(broken)} of {len(items)} replies ({some})"


class Asked:
    """Prompts as one model reads them.

    Raises:
        BenchmarkError: it cannot be told what form the prompts have, the chat template refuses one,
            or there is no room for a reply or for what it should be.
    """

    def __init__(
        self, loaded: LoadedModel, prompts: EvalPrompts, max_tokens: int = MAX_TOKENS
    ) -> None:
        self.tags = Tags(loaded.tokenizer)
        self.form = prompts.form or _form(prompts, self.tags.spelled)
        self.ids: list[list[int]] = []
        encoder = Encoder(loaded.tokenizer) if self.form == "user" else None
        length = context_length(loaded)
        for prompt in prompts.items:
            where = f"{prompts.file}: prompts.{prompt.id}"
            if encoder is None:
                ids = list(loaded.tokenizer.encode(prompt.text, add_special_tokens=False))
            else:
                ids = _templated(encoder, prompt, where)
            if len(ids) + max_tokens > length:
                raise BenchmarkError(
                    f"{where}: its {len(ids)} tokens and {max_tokens} of reply do not fit into a "
                    f"context of {length}; shorten it"
                )
            needed = len(loaded.tokenizer.encode(prompt.expected.strip(), add_special_tokens=False))
            if prompt.match != "regex" and needed > max_tokens:
                raise BenchmarkError(
                    f"{prompts.file}: expected_outputs.{prompt.id}: its {needed} tokens are beyond "
                    f"the longest reply, {max_tokens}; allow longer ones, or shorten it"
                )
            self.ids.append(ids)


def _form(prompts: EvalPrompts, control: Sequence[str]) -> Form:
    """What prompts are that do not say so: whole strings if they hold control tokens."""
    full = [prompt for prompt in prompts.items if any(token in prompt.text for token in control)]
    if len(full) == len(prompts.items):
        return "full"
    if full:
        other = next(prompt for prompt in prompts.items if prompt not in full)
        raise BenchmarkError(
            f"{prompts.file}: prompts.{full[0].id} holds control tokens of the tokenizer and "
            f'prompts.{other.id} none; say "form": "full" or "form": "user"'
        )
    for prompt in prompts.items:
        if found := _TAGGED.match(prompt.text):
            raise BenchmarkError(
                f"{prompts.file}: prompts.{prompt.id}: begins with {found[0].strip()}, which is no "
                'control token of this tokenizer; if that is text, say "form": "user"'
            )
    return "user"


def _templated(encoder: Encoder, prompt: EvalPrompt, where: str) -> list[int]:
    turns = [("system", prompt.system)] if prompt.system else []
    messages = [{"role": role, "content": text} for role, text in (*turns, ("user", prompt.text))]
    try:
        return encoder.prompt(messages)
    except DataError as error:
        raise BenchmarkError(f"{where}: {str(error).removeprefix(': ')}") from error


# --- the file -------------------------------------------------------------------------------------


def load_eval_prompts(file: str | Path) -> EvalPrompts:
    """Read a file of prompts.

    Raises:
        BenchmarkError: it is not as above, a prompt has no expected output or the other way round,
            a pattern is not RE2's, or a prompt cannot fail. Names file and id.
    """
    path = Path(file).expanduser()
    data, found = _read(path)
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


def _read(path: Path) -> tuple[bytes, dict[str, Any]]:
    data = small_file(path)
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


def _texts(path: Path, found: Mapping[str, Any], key: str) -> dict[str, str]:
    texts = found.get(key)
    if not isinstance(texts, dict) or not texts:
        _fail(path, key, "must be an object of ids and texts, one at least")
    for name, text in texts.items():
        if not isinstance(text, str) or not text.strip():
            _fail(path, f"{key}.{name}", "must be a text, and not an empty one")
    return texts


def _each(
    path: Path, found: Mapping[str, Any], key: str, prompts: Iterable[str], default: str
) -> dict[str, str]:
    """A text for each prompt: one for all, or for some by their ids."""
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
    """That a way to match is one, and its pattern can be searched for and can fail."""
    if match not in get_args(Match):
        _fail(path, f"match.{key}", f"{match!r}: must be one of {', '.join(get_args(Match))}")
    if match == "regex":
        where = f"expected_outputs.{key}"
        try:
            if _found(expected, ""):
                _fail(path, where, "the pattern is found in an empty reply, so every reply passes")
        except ValueError as error:  # Arrow's, with RE2's reason
            reason = str(error).removeprefix("Invalid regular expression: ")
            _fail(path, where, f"not a pattern in RE2's syntax: {reason}")


def _gates(path: Path, gates: Any, buckets: set[str]) -> dict[str, float]:
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


def _found(pattern: str, text: str) -> bool:
    """Whether RE2 finds a pattern in a text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return bool(pc.match_substring_regex(pa.scalar(text), pattern=pattern).as_py())


def _fail(path: Path, where: str, what: str) -> NoReturn:
    raise BenchmarkError(f"{path}: {where}: {what}")
