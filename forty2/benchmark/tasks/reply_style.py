"""Style of greedy replies to open questions: dialectic moves, stance, variety of words, and length.

The metrics, with what each cannot tell, are in `benchmark.reply_style`. Without prompts of your own,
the questions are the library's: open ones, four kinds, in no training set of the package, the same for
every model and run. Prompts that a phase chooses its adapter by (`best`) are others: those of its
validation rows.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from forty2.benchmark.reply_style import (
    DETECTORS,
    HALVES,
    METRICS,
    Moves,
    StyledReply,
    cautions,
    quality,
    style_of,
    words_of,
)
from forty2.benchmark.results import Item, Result
from forty2.benchmark.task import BATCH_SIZE, Metric, Report, Source, Task
from forty2.data.library import rows
from forty2.data.prompts import Prompt, read_prompts
from forty2.errors import BenchmarkError
from forty2.files import JsonObject
from forty2.text.encoder import Encoder

if TYPE_CHECKING:  # a result is read without the model wing
    from forty2.benchmark.partial_results import PartialResults
    from forty2.model.loading import LoadedModel

MAX_TOKENS = 128
"""Longest reply."""
SPIRAL = "spiral_score"


class StylePrompts(NamedTuple):
    """Prompts to be answered."""

    name: str
    items: tuple[Prompt, ...]

    def sha256(self) -> str:
        """Hash the prompts, without where they came from."""
        asked = [prompt.messages for prompt in self.items]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class ReplyStyle(Task[StylePrompts]):
    """Style of replies: spiral score, subtlety, distinct-1 and -2, and length, with intervals.

    Without --data, 48 open questions of the package are asked. The rules that find dialectic moves and
    stances are weak, and the result says how weak.
    """

    data: str | Path | None = None
    """File of prompts, one a line in .txt, or rows as in training data; None: the package's."""
    n: int | None = None
    """Largest number of prompts, the first ones; None: all."""
    max_tokens: int = MAX_TOKENS
    """Longest reply."""
    batch_size: int = BATCH_SIZE
    """Replies generated at a time."""

    name = "reply_style"
    title = "style of replies"
    judged = (SPIRAL,)
    must_agree = ("max_tokens",)

    def load(self) -> StylePrompts:
        if self.data is not None:
            name, prompts = str(self.data), read_prompts(self.data)
        else:
            name = "open questions"
            prompts = [
                Prompt(({"role": "user", "content": row["prompt"]},), row["id"])
                for row in rows("heldout/style_prompts")
            ]
        if len(prompts[: self.n]) < 2:
            raise BenchmarkError(f"{name}: one prompt has no interval; ask two or more")
        return StylePrompts(name, tuple(prompts[: self.n]))

    def source(self, questions: StylePrompts) -> Source:
        return Source(questions.name, questions.sha256(), len(questions.items))

    def question_texts(self, questions: StylePrompts) -> list[tuple[str, ...]]:
        return [(_text(prompt),) for prompt in questions.items]

    def settings(self, questions: StylePrompts, loaded: LoadedModel) -> JsonObject:
        return {"max_tokens": self.max_tokens}

    def score(
        self, loaded: LoadedModel, questions: StylePrompts, partial: PartialResults, report: Report
    ) -> list[JsonObject]:
        from forty2.inference.generation import generate_replies

        encoder = Encoder(loaded.tokenizer)
        ids = [encoder.prompt(prompt.messages) for prompt in questions.items]
        for prompt, tokens in zip(questions.items, ids, strict=True):
            loaded.row_limit.refuse(
                len(tokens) + self.max_tokens, f"{prompt.origin}: the prompt and a reply"
            )
        replies = dict(
            generate_replies(
                loaded,
                ids,
                max_tokens=self.max_tokens,
                batch_size=self.batch_size,
                progress=lambda _, done, total, figures: report(done, total, figures),
            )
        )
        return [
            {"prompt": _text(prompt), **_record(replies[n].text, replies[n].tokens)}
            | {"stopped": replies[n].stopped}
            for n, prompt in enumerate(questions.items)
        ]

    @classmethod
    def items(cls, records: Iterable[JsonObject]) -> tuple[Item, ...]:
        """Score the records such that a metric over all replies is the mean of their scores."""
        records = list(records)
        scores: list[dict[str, float]] = [{} for _ in records]
        for name, measure in METRICS.items():
            parts = measure([_read(record) for record in records])
            if parts.mean() is not None:
                for one, score in zip(scores, parts.scores(), strict=True):
                    one[name] = score
        return tuple(map(Item, records, scores))

    @classmethod
    def figures(cls, items: Sequence[Item]) -> JsonObject:
        """Compute each metric with its interval, count moves and stances, and judge the detectors."""
        records = [item.record for item in items]
        replies = [_read(record) for record in records]
        parts = {name: measure(replies) for name, measure in METRICS.items()}
        means = {name: mean for name, part in parts.items() if (mean := part.mean()) is not None}
        stances = [reply.stance for reply in replies]
        return {
            "n": len(items),
            "means": means,
            "intervals": {name: parts[name].interval()._asdict() for name in means},
            "with_moves": sum(reply.moves.total > 0 for reply in replies),
            "with_stance": sum(stance != "none" for stance in stances),
            "stop_rate": sum(map(bool, (record["stopped"] for record in records))) / len(records),
            "detectors": [
                quality(part, half)._asdict()
                for parts in DETECTORS.values()
                for part in parts
                for half in HALVES
            ],
        }

    @classmethod
    def identify(cls, record: JsonObject) -> tuple[str, object]:
        return record["prompt"], None

    @classmethod
    def stored_means(cls, figures: JsonObject) -> dict[str, float]:
        return dict(figures["means"])

    @classmethod
    def metric(cls, name: str) -> Metric:
        return Metric(0.0, math.inf, "higher" if name == SPIRAL else "neither")

    @classmethod
    def cautions(cls, figures: JsonObject) -> dict[str, str]:
        return cautions(figures["detectors"])

    @classmethod
    def text(cls, result: Result) -> str:
        figures = result.figures
        lines = [
            f"{figures['n']} prompts; {figures['with_moves']} replies with dialectic moves, "
            f"{figures['with_stance']} with a stance, {figures['stop_rate']:.0%} stopped",
        ]
        weak = cls.cautions(figures)
        for name, mean in figures["means"].items():
            found = figures["intervals"][name]
            caution = f"  ({weak[name]})" if name in weak else ""
            interval = f"{found['low']:.3f} to {found['high']:.3f}"
            lines.append(f"{name:<14}{mean:>8.3f}  {interval:<20}{caution}".rstrip())
        lines += [
            "",
            f"{'detector':<12}{'labelled':<10}{'n':>4}{'precision':>11}{'recall':>8}{'F1':>6}",
        ]
        for one in figures["detectors"]:
            lines.append(
                f"{one['part']:<12}{one['half']:<10}{one['n']:>4}{one['precision']:>11.2f}"
                f"{one['recall']:>8.2f}{one['f1']:>6.2f}"
            )
        return "\n".join(lines)


def measure_replies(loaded: LoadedModel, prompts: Sequence[list[int]]) -> dict[str, float]:
    """Measure the style of a model in training, without an effect on the training.

    Args:
        prompts: token ids of each.

    Returns:
        Each metric; of two replies or more, its 95% interval as NAME_low and NAME_high; and the lowest F1
        of the detectors that it rests on, on held-out labels, as NAME_f1. A metric that no reply counts
        for, as the subtlety of replies without a stance, is left out.
    """
    from forty2.inference.generation import generate_replies
    from forty2.model.surgery import evaluating

    with evaluating(loaded.model, restore_random=True):
        replies = dict(generate_replies(loaded, prompts, max_tokens=MAX_TOKENS))
    styled = [style_of(reply.text, reply.tokens) for _, reply in sorted(replies.items())]
    return dict(_with_intervals(styled))


def _with_intervals(replies: Sequence[StyledReply]) -> Iterator[tuple[str, float]]:
    for name, measure in METRICS.items():
        parts = measure(replies)
        mean = parts.mean()
        if mean is not None:
            yield name, mean
            if len(replies) > 1:
                low, high = parts.interval()
                yield from ((f"{name}_low", low), (f"{name}_high", high))
        if mean is not None and name in DETECTORS:
            yield f"{name}_f1", min(quality(part, HALVES[1]).f1 for part in DETECTORS[name])


def _record(reply: str, tokens: int) -> JsonObject:
    """Judge a reply, as its record holds it."""
    style = style_of(reply, tokens)
    return {"reply": reply, "tokens": tokens, **style.moves._asdict(), "stance": style.stance}


def _read(record: JsonObject) -> StyledReply:
    """Read a record as it was judged: another release may have other rules."""
    moves = Moves(*(int(record[name]) for name in Moves._fields))
    if record["stance"] not in ("explicit", "implicit", "none"):
        raise BenchmarkError(f"no stance {record['stance']!r}")
    return StyledReply(words_of(record["reply"]), int(record["tokens"]), moves, record["stance"])


def _text(prompt: Prompt) -> str:
    """Return the last turn that is asked."""
    return str(prompt.messages[-1].get("content") or "")
