"""Eval prompts: prompts with expected outputs, answered greedily and scored, during training too.

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
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, NoReturn, cast, get_args

from forty2.benchmark.prompts import context_length
from forty2.benchmark.question_files import read_question_file
from forty2.benchmark.replies import SEVERAL, Tags, collapsed, resembles
from forty2.benchmark.results import Item, Result
from forty2.benchmark.stats import stderr
from forty2.benchmark.task import BATCH_SIZE, Report, Source, Task, as_share, with_error
from forty2.data.sources import unique_keys
from forty2.errors import BenchmarkError, DataError
from forty2.files import JsonObject
from forty2.text.encoder import Encoder

if TYPE_CHECKING:  # a result is read without the model wing
    from forty2.benchmark.partial_results import PartialResults
    from forty2.model.loading import LoadedModel

Match = Literal["exact", "contains", "regex"]
Form = Literal["user", "full"]

MAX_TOKENS = 64
SPOT_TOKENS = 16
LEAST_SOUND = 0.1
"""Share of replies with something of the expected text, up to which replies are garbage."""
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


@dataclass(frozen=True, kw_only=True)
class EvalPromptsTask(Task[EvalPrompts]):
    """Prompts of your own with expected outputs: exact, contained or by pattern."""

    prompts: str | Path
    """The JSON file."""
    max_tokens: int = MAX_TOKENS
    """Longest reply."""
    batch_size: int = BATCH_SIZE
    """Replies generated at a time."""

    name = "eval_prompts"
    data_key = "prompts"
    judged = ("passed",)
    must_agree = ("form", "max_tokens")
    category_key = "bucket"

    def load(self) -> EvalPrompts:
        return load_eval_prompts(self.prompts)

    def source(self, questions: EvalPrompts) -> Source:
        return Source(questions.file, questions.sha256, len(questions.items))

    def question_texts(self, questions: EvalPrompts) -> list[tuple[str, ...]]:
        return [
            (prompt.text, *([] if prompt.match == "regex" else [prompt.expected]))
            for prompt in questions.items
        ]

    def settings(self, questions: EvalPrompts, loaded: LoadedModel) -> JsonObject:
        form = questions.form or _form(questions, Tags(loaded.tokenizer).spelled)
        return {"form": form, "max_tokens": self.max_tokens}

    def notes(self, questions: EvalPrompts, items: Sequence[Item]) -> JsonObject:
        return {"gates": gates_of(items, questions.gates)}

    def score(
        self, loaded: LoadedModel, questions: EvalPrompts, partial: PartialResults, report: Report
    ) -> list[JsonObject]:
        """Answer the prompts greedily, without an effect on training that goes on afterwards.

        Raises:
            BenchmarkError: a prompt does not fit the model, or its scores are not finite.
        """
        from forty2.inference.generation import generate_replies
        from forty2.model.surgery import evaluating

        encoded = Asked(loaded, questions, self.max_tokens)
        with evaluating(loaded.model, restore_random=True):
            replies = dict(
                generate_replies(
                    loaded,
                    encoded.ids,
                    max_tokens=self.max_tokens,
                    batch_size=self.batch_size,
                    progress=lambda _, done, total, figures: report(done, total, figures),
                )
            )
        records: list[JsonObject] = []
        for n, (prompt, ids) in enumerate(zip(questions.items, encoded.ids, strict=True)):
            turn = encoded.tags.turn(ids, replies[n].ids, stopped=replies[n].stopped)
            # decoded with control tokens: a reply that holds one is not the expected text
            reply = str(loaded.tokenizer.decode(list(replies[n].ids[: turn.length])))
            records.append(
                {
                    "id": prompt.id,
                    "prompt": prompt.text,
                    "expected": prompt.expected,
                    "match": prompt.match,
                    "reply": reply,
                    "passed": prompt.passes(reply),
                    "stopped": replies[n].stopped,
                    "broken": turn.broken,
                    "bucket": prompt.bucket,
                }
            )
        return records

    @classmethod
    def figures(cls, items: Sequence[Item]) -> JsonObject:
        """Compute the shares of replies that passed and that ended by themselves; list faults."""
        buckets: dict[str, list[float]] = {}
        for item in items:
            buckets.setdefault(str(item.category), []).append(item.scores["passed"])
        passed = [item.scores["passed"] for item in items]
        records = [item.record for item in items]
        return {
            "n": len(items),
            "passed": _share(passed),
            "stderr": stderr(passed) if len(passed) > 1 else None,
            "buckets": {
                name: {"n": len(values), "passed": _share(values)}
                for name, values in buckets.items()
            },
            "stop_rate": _share([float(record["stopped"]) for record in records]),
            "distinct": len({record["reply"] for record in records}),
            "faults": list(_faults(records)),
        }

    @classmethod
    def scores(cls, record: JsonObject) -> dict[str, float]:
        passed = as_share(record["passed"])
        return {"passed": passed, f"passed: {record['bucket']}": passed}

    @classmethod
    def identify(cls, record: JsonObject) -> tuple[str, object]:
        return record["id"], record["prompt"]

    @classmethod
    def stored_means(cls, figures: JsonObject) -> dict[str, float]:
        buckets = {f"passed: {name}": part["passed"] for name, part in figures["buckets"].items()}
        return {"passed": figures["passed"], **buckets}

    @classmethod
    def text(cls, result: Result) -> str:
        figures = result.figures
        lines = [
            f"{figures['n']} prompts, read as {result.settings['form']}; {figures['distinct']} "
            "replies",
            f"{'passed':<18}{with_error(figures['passed'], figures['stderr'])}",
        ]
        for name, bucket in figures["buckets"].items():
            lines.append(f"  {name:<16}{bucket['passed']:.4f}  {bucket['n']:>6} prompts")
        lines.append(
            f"{'stopped':<18}{figures['stop_rate']:.1%} of replies, the others cut at the limit"
        )
        for name, gate in figures["gates"].items():
            verdict = "passed" if gate["passed"] else "FAILED"
            share, least = gate["share"], gate["least"]
            lines.append(f"gate {name:<13}{share:.1%}, at least {least:.0%}: {verdict}")
        return "\n".join(lines)


class Probed(NamedTuple):
    """Replies of a model in training to a file of eval prompts."""

    metrics: dict[str, float]
    """Shares by name, as an evaluation logs them; `passed_say` is the share of the bucket say."""
    faults: list[str]
    """Faults of the model that the replies show, in words."""
    garbage: str
    """Sentence about replies that have nothing of what is expected; "": they are no garbage."""


def probe(loaded: LoadedModel, prompts: EvalPrompts, *, max_tokens: int = MAX_TOKENS) -> Probed:
    """Ask a model that is in training, without an effect on the training.

    Raises:
        BenchmarkError: a prompt does not fit the model, or its scores are not finite.
    """
    from forty2.benchmark.partial_results import PartialResults

    task = EvalPromptsTask(prompts=prompts.file, max_tokens=max_tokens)
    records = task.score(loaded, prompts, PartialResults.in_memory(), lambda *_: None)
    figures = task.figures(task.items(records))
    buckets = {f"passed_{name}": part["passed"] for name, part in figures["buckets"].items()}
    shares = {"passed": figures["passed"], **buckets, "stopped": figures["stop_rate"]}
    return Probed(shares, figures["faults"], garbage(records))


def check_replies(loaded: LoadedModel, prompts: Sequence[list[int]]) -> list[str]:
    """List the faults, in words, that greedy replies to a few prompts (token ids) show."""
    from forty2.inference.generation import generate_replies
    from forty2.model.surgery import evaluating

    tags = Tags(loaded.tokenizer)
    with evaluating(loaded.model, restore_random=True):
        replies = dict(generate_replies(loaded, prompts, max_tokens=SPOT_TOKENS))
    records: list[JsonObject] = [
        {
            "id": f"prompt {n + 1}",
            "prompt": loaded.tokenizer.decode(ids),
            "reply": replies[n].text,
            "passed": False,
            "broken": tags.turn(ids, replies[n].ids, stopped=replies[n].stopped).broken,
        }
        for n, ids in enumerate(prompts)
    ]
    return list(_faults(records))


def gates_of(items: Sequence[Item], gates: Mapping[str, float]) -> JsonObject:
    """Return for each gate the share required, the share that passed, and whether that is enough."""
    passed: dict[str, list[float]] = {ALL: [item.scores["passed"] for item in items]}
    for item in items:
        passed.setdefault(str(item.category), []).append(item.scores["passed"])
    shares = {name: _share(passed[name]) for name in gates}
    return {
        name: {"least": least, "share": shares[name], "passed": shares[name] >= least}
        for name, least in gates.items()
    }


def _share(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _faults(records: Sequence[JsonObject]) -> Iterable[str]:
    """Yield the faults that replies show, in words."""
    prompts, replies = ([str(record[key]) for record in records] for key in ("prompt", "reply"))
    # if every prompt expects the same reply, the same reply is right
    if collapsed(prompts, replies) and not all(record["passed"] for record in records):
        yield f"all {len(records)} prompts get the reply {replies[0].strip()[:60]!r}"
    broken = [str(record["id"]) for record in records if record["broken"]]
    if broken:
        first = ", ".join(broken[:3]) + (" …" if len(broken) > 3 else "")
        yield f"broken tags in {len(broken)} of {len(records)} replies ({first})"


def garbage(records: Sequence[JsonObject]) -> str:
    """Say that hardly a reply has anything of its expected text; "": enough have, or few are asked.

    A reply that passes is none, nor is one that differs in case or wording alone. What a pattern expects
    cannot be compared with a reply that it does not match.
    """
    texts = [one for one in records if one["match"] != "regex" or one["passed"]]
    sound = sum(one["passed"] or resembles(one["reply"], one["expected"]) for one in texts)
    if len(texts) < SEVERAL or sound > LEAST_SOUND * len(texts):
        return ""
    first = str(texts[0]["reply"]).strip()[:60]
    return (
        f"{len(texts) - sound} of {len(texts)} replies have nothing of what is expected ({first!r})"
    )


class Asked:
    """Eval prompts as token ids, for one model.

    Raises:
        BenchmarkError: the form of the prompts is unclear, the chat template refuses one, or a reply
            or the expected text does not fit.
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
    """Decide the form of prompts that do not state it: whole strings hold control tokens."""
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
        BenchmarkError: the file has another shape, prompts and expected outputs do not correspond, a
            pattern is not in RE2's syntax, or a prompt cannot fail; names file and id.
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
