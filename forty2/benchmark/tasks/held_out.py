"""The run's own held-out rows: what a user wants the model to do, measured on rows not trained on.

    chats     loss of the supervised tokens, in nats a token
    pairs     share whose chosen answer gained more probability, against the base, than the rejected
              one; a tie counts half, so the base has 0.5. Their margin is the difference of the gains
    ratings   share of good answers that gained probability and of bad ones that lost it; a tie half
    replies   greedy replies to some of the prompts, kept to be read, their length, and the share
              that stopped
    prompts   share of the phases' eval prompts that were answered as expected

Rows that a recipe holds out by their keys (`hold_out`) have metrics of their own, with the values in
brackets, as in "pairs right (arts)"; no verdict is over them.

The gains are against the base model of the run, whose log-probabilities stand in every record.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from forty2.benchmark.eval_prompt_files import EvalPrompts
from forty2.benchmark.results import Item, Result
from forty2.benchmark.task import SHARE, Metric, Report, Source, Task, as_share
from forty2.benchmark.tasks.eval_prompts import EvalPromptsTask
from forty2.errors import BenchmarkError
from forty2.files import JsonObject

if TYPE_CHECKING:  # a result is read without the model wing
    from forty2.benchmark.partial_results import PartialResults
    from forty2.model.loading import LoadedModel

Kind = Literal["chat", "pair", "rating"]
CHAT_LOSS = "chat loss"
PAIRS = "pairs right"
PAIR_MARGIN = "pair margin"
RATINGS = "ratings right"
PASSED = "prompts passed"
STOPS = "replies stopped"
LENGTH = "reply tokens"
MAX_TOKENS = 96
"""Longest reply."""
TIE = 1e-3
"""Largest gain, in nats, that is rounding and no gain."""
_METRICS = {
    CHAT_LOSS: Metric(0.0, math.inf, "lower"),
    PAIR_MARGIN: Metric(-math.inf, math.inf),
    LENGTH: Metric(0.0, math.inf, "neither"),
}


class Side(NamedTuple):
    """One answer with its prompt, as tokens."""

    ids: list[int]
    mask: list[bool]
    """Which tokens are scored."""


class HeldOutRow(NamedTuple):
    """A row to score."""

    kind: Kind
    phase: str
    origin: str
    sides: tuple[Side, ...]
    """The chosen and the rejected answer of a pair; else one."""
    desirable: bool = True
    """Verdict on a rated answer: True if it is good."""
    apart: str = ""
    """Values by which the row is held out, if it is scored apart from the validation rows."""

    def sha256(self) -> str:
        """Hash what is scored, without phase and file: the same row in another run has the same hash."""
        scored = [self.kind, self.sides, self.desirable, self.apart]
        return hashlib.sha256(json.dumps(scored).encode()).hexdigest()[:16]


class HeldOutPrompt(NamedTuple):
    """A prompt to answer."""

    phase: str
    text: str
    """The user's last turn, for a reader."""
    ids: list[int]
    expected: str = ""
    """The answer that the row has, the chosen one of a pair; "": the row has no good answer."""


class HeldOutRows(NamedTuple):
    """Everything that is measured on the held-out rows of a run's phases."""

    rows: tuple[HeldOutRow, ...]
    prompts: tuple[HeldOutPrompt, ...]
    eval_prompts: tuple[EvalPrompts, ...] = ()
    """The phases' files of eval prompts."""

    def sha256(self) -> str:
        """Hash what is asked and scored, without where it came from."""
        scored = [
            [row.kind, row.phase, row.sides, row.desirable, *([row.apart] if row.apart else [])]
            for row in self.rows
        ]
        asked = [prompt.ids for prompt in self.prompts]
        files = [prompts.sha256 for prompts in self.eval_prompts]
        return hashlib.sha256(json.dumps([scored, asked, files]).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class HeldOut(Task[HeldOutRows]):
    """The run's own held-out rows, prompts and eval prompts."""

    rows: HeldOutRows
    base: Mapping[int, Sequence[float]] | None = None
    """The base's log-probability of each side, in nats, by the row's index; None: the measured model
    is the base."""

    name = "held_out"
    title = "your held-out rows"
    judged = (PAIRS, RATINGS, CHAT_LOSS, PASSED)
    place_keys = frozenset({"phase", "row", "file"})

    def load(self) -> HeldOutRows:
        return self.rows

    def source(self, questions: HeldOutRows) -> Source:
        n = len(questions.rows) + len(questions.prompts)
        return Source(self.title, questions.sha256(), n + _asked(questions))

    def score(
        self, loaded: LoadedModel, questions: HeldOutRows, partial: PartialResults, report: Report
    ) -> list[JsonObject]:
        total = len(questions.rows) + len(questions.prompts) + _asked(questions)
        records = self._score_rows(loaded, questions.rows, partial, report, total)
        records += self._reply(loaded, questions.prompts, report, len(records), total)
        for prompts in questions.eval_prompts:
            records += _ask(loaded, prompts, partial, _after(report, len(records), total))
        return records

    def _score_rows(
        self,
        loaded: LoadedModel,
        rows: Sequence[HeldOutRow],
        partial: PartialResults,
        report: Report,
        total: int,
    ) -> list[JsonObject]:
        from forty2.inference.supervised import supervised_sums

        sides = [(n, side) for n, row in enumerate(rows) for side in row.sides]
        todo = [(n, side) for n, side in sides if f"row {n}" not in partial]
        logps: dict[int, dict[int, float]] = {}
        for scored in supervised_sums(loaded.model, [side for _, side in todo]):
            for place, logp in scored.items():
                n, _ = todo[place]
                if not math.isfinite(logp):
                    raise BenchmarkError(
                        f"{rows[n].origin}: the score is not finite; the model is broken"
                    )
                logps.setdefault(n, {})[place] = logp
                if len(logps[n]) == len(rows[n].sides):
                    partial.add(f"row {n}", {"logps": [v for _, v in sorted(logps[n].items())]})
            report(sum(f"row {n}" in partial for n in range(len(rows))), total, {})
        return [self._record(n, row, partial[f"row {n}"]["logps"]) for n, row in enumerate(rows)]

    def _record(self, n: int, row: HeldOutRow, logps: Sequence[float]) -> JsonObject:
        base = logps if self.base is None else self.base[n]
        record: JsonObject = {
            "kind": row.kind,
            "phase": row.phase,
            "row": row.origin,
            "sha256": row.sha256(),
            "tokens": [sum(side.mask) for side in row.sides],
            "logps": list(logps),
            "base_logps": list(base),
        }
        record |= {"apart": row.apart} if row.apart else {}
        return record | ({"desirable": row.desirable} if row.kind == "rating" else {})

    def _reply(
        self,
        loaded: LoadedModel,
        prompts: Sequence[HeldOutPrompt],
        report: Report,
        done: int,
        total: int,
    ) -> list[JsonObject]:
        from forty2.inference.generation import generate_replies

        said = _after(report, done, total)
        replies = dict(
            generate_replies(
                loaded,
                [prompt.ids for prompt in prompts],
                max_tokens=MAX_TOKENS,
                progress=lambda _, n, of, figures: said(n, of, figures),
            )
        )
        return [
            {
                "kind": "reply",
                "phase": prompt.phase,
                "prompt": prompt.text,
                "expected": prompt.expected,
                "reply": replies[n].text,
                "tokens": replies[n].tokens,
                "stopped": replies[n].stopped,
            }
            for n, prompt in enumerate(prompts)
        ]

    @classmethod
    def items(cls, records: Iterable[JsonObject]) -> tuple[Item, ...]:
        """Score the records; chats are weighted by their tokens, so the mean is the loss a token."""
        records = list(records)
        tokens: dict[str, list[int]] = {}
        for record in records:
            if record["kind"] == "chat":
                tokens.setdefault(record.get("apart", ""), []).append(record["tokens"][0])
        means = {apart: sum(each) / len(each) for apart, each in tokens.items()}
        items = []
        for record in records:
            apart = record.get("apart", "")
            scores = _scores(record, means.get(apart, 0.0))
            named = {f"{name} ({apart})" if apart else name: one for name, one in scores.items()}
            items.append(Item(record, named))
        return tuple(items)

    @classmethod
    def figures(cls, items: Sequence[Item]) -> JsonObject:
        """Compute the mean of each metric, and count its items."""
        values: dict[str, list[float]] = {}
        for item in items:
            for name, score in item.scores.items():
                values.setdefault(name, []).append(score)
        means = {name: math.fsum(scores) / len(scores) for name, scores in values.items()}
        return {
            "n": len(items),
            "means": means,
            "counts": {name: len(scores) for name, scores in values.items()},
        }

    @classmethod
    def identify(cls, record: JsonObject) -> tuple[str, object]:
        match record["kind"]:
            case "reply":
                return f"reply: {record['prompt']}", record["phase"]
            case "prompt":
                return f"prompt {record['id']}", record["prompt"]
            case kind:
                # Earlier releases know rows by file and line alone.
                which = record["sha256"] if "sha256" in record else record["row"]
                return f"{kind} {which}", [record["phase"], record["tokens"]]

    @classmethod
    def match_key(cls, record: JsonObject) -> str | None:
        match record["kind"]:
            case "reply" | "prompt":
                keys = ("kind", "id", "prompt", "expected")
                return json.dumps([record.get(key) for key in keys])
            case kind:
                return f"{kind} {record['sha256']}" if "sha256" in record else None

    @classmethod
    def stored_means(cls, figures: JsonObject) -> dict[str, float]:
        return dict(figures["means"])

    @classmethod
    def metric(cls, name: str) -> Metric:
        return _METRICS.get(name.partition(" (")[0], SHARE)

    @classmethod
    def text(cls, result: Result) -> str:
        means, counts = result.figures["means"], result.figures["counts"]
        return "\n".join(f"{name:<18}{mean:.4f}  ({counts[name]})" for name, mean in means.items())


def _ask(
    loaded: LoadedModel, prompts: EvalPrompts, partial: PartialResults, report: Report
) -> list[JsonObject]:
    """Answer a file of eval prompts."""
    answered = EvalPromptsTask(prompts=prompts.file).score(loaded, prompts, partial, report)
    kept = ("id", "prompt", "expected", "match", "reply", "passed", "broken", "tags")
    return [
        {"kind": "prompt", "file": prompts.file, **{key: record[key] for key in kept}}
        for record in answered
    ]


def _after(report: Report, done: int, total: int) -> Report:
    """Report a part of the items that comes after `done` others."""
    return lambda n, _, figures: report(done + n, total, figures)


def base_logps(result: Result) -> dict[int, list[float]]:
    """Return the log-probabilities of each side, by the row's index, from the base's result."""
    rows = [item.record for item in result.items if "logps" in item.record]
    return {n: list(record["logps"]) for n, record in enumerate(rows)}


def _scores(record: JsonObject, mean_tokens: float) -> dict[str, float]:
    match record["kind"]:
        case "reply":
            return {STOPS: as_share(record["stopped"]), LENGTH: float(record["tokens"])}
        case "prompt":
            return {PASSED: as_share(record["passed"])}
    gains = [
        float(logp) - float(base)
        for logp, base in zip(record["logps"], record["base_logps"], strict=True)
    ]
    match record["kind"]:
        case "chat":
            return {CHAT_LOSS: -float(record["logps"][0]) / mean_tokens}
        case "pair":
            margin = gains[0] - gains[1]
            return {PAIRS: _share_of(margin), PAIR_MARGIN: margin}
        case "rating":
            gain = gains[0] if record["desirable"] else -gains[0]
            return {RATINGS: _share_of(gain)}
        case kind:
            raise ValueError(f"no item of kind {kind!r}")


def _share_of(gain: float) -> float:
    """Return 1 for a gain, 0 for a loss, and 0.5 for neither."""
    return 0.5 if abs(gain) <= TIE else float(gain > 0)


def _asked(questions: HeldOutRows) -> int:
    return sum(len(prompts.items) for prompts in questions.eval_prompts)
