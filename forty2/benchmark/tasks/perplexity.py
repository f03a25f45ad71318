"""Perplexity on neutral prose, to show what alignment cost the model's language."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from forty2.benchmark.results import Item, Result
from forty2.benchmark.stats import bootstrap_ratio
from forty2.benchmark.task import Metric, Report, Source, Task
from forty2.data.library import neutral_texts
from forty2.errors import BenchmarkError
from forty2.files import JsonObject
from forty2.metric_names import TEXTS

if TYPE_CHECKING:  # a result is read without mlx
    from forty2.benchmark.partial_results import PartialResults
    from forty2.model.loading import LoadedModel

WINDOW = 256
"""Most tokens of a text that are read at once."""


@dataclass(frozen=True, kw_only=True)
class Perplexity(Task[Mapping[str, str]]):
    """Perplexity of neutral text: exp of the mean negative log-likelihood per token, all texts together.

    It shows what a model lost, or gained, in plain prose; not whether its replies are fluent, and its
    tokens are the model's own, so models with different tokenizers do not compare. The interval is by
    resampling the texts, which are few.

    Each text is cut into windows of `WINDOW` tokens; a window's first token is given, not scored.
    """

    texts: Mapping[str, str] | None = None
    """Texts by title; None: the package's neutral prose."""
    n: int | None = None
    """Largest number of windows; None: all."""

    name = "perplexity"
    title = "texts"
    judged = (TEXTS,)

    def load(self) -> Mapping[str, str]:
        return self.texts or neutral_texts()

    def source(self, questions: Mapping[str, str]) -> Source:
        name = ", ".join(self.texts) if self.texts else "neutral texts"
        sha256 = hashlib.sha256(json.dumps(dict(questions)).encode()).hexdigest()
        return Source(name, sha256, len(questions))

    def score(
        self,
        loaded: LoadedModel,
        questions: Mapping[str, str],
        partial: PartialResults,
        report: Report,
    ) -> list[JsonObject]:
        from forty2.inference.shared_prefix import score_rows
        from forty2.model.surgery import can_split

        records: list[JsonObject] = []
        split_head = can_split(loaded.model)
        left = self.n if self.n is not None else math.inf
        for done, (title, text) in enumerate(questions.items(), 1):
            ids = loaded.tokenizer.encode(text)
            total, count = 0.0, 0
            for start in range(0, len(ids) - 1, WINDOW):
                if left <= 0:
                    break
                left -= 1
                window = ids[start : start + WINDOW + 1]
                row = (window[:1], window[1:])
                total += score_rows(loaded.model, [row], split_head=split_head)[0]
                count += len(window) - 1
            if count:
                records.append({"title": title, "logp": total, "tokens": count})
            report(done, len(questions), {})
        if not records:
            raise BenchmarkError(
                f"{', '.join(questions)}: no text of two tokens or more; the first is given, not "
                "scored"
            )
        mean = _mean(records)
        if not math.isfinite(mean):
            raise BenchmarkError(f"the texts score {mean} a token; the model is broken")
        return records

    @classmethod
    def figures(cls, items: Sequence[Item]) -> JsonObject:
        records = [item.record for item in items]
        logps, tokens = ([float(one[key]) for one in records] for key in ("logp", "tokens"))
        interval = {}
        if len(items) > 1:
            low, high = bootstrap_ratio([-logp for logp in logps], tokens)
            interval["interval"] = {"low": math.exp(low), "high": math.exp(high)}
        return {
            "perplexity": math.exp(-_mean(records)),
            **interval,
            "tokens": sum(record["tokens"] for record in records),
            "n": len(items),
        }

    @classmethod
    def items(cls, records: Iterable[JsonObject]) -> tuple[Item, ...]:
        records = list(records)
        tokens = sum(record["tokens"] for record in records) / len(records)
        return tuple(Item(record, {TEXTS: float(record["logp"]) / tokens}) for record in records)

    @classmethod
    def items_to_json(cls, items: Sequence[Item]) -> JsonObject:
        """Return the texts by title, as in every release."""
        by_title = {item.record["title"]: item.to_json() for item in items}
        return {
            title: {key: value for key, value in item.items() if key != "title"}
            for title, item in by_title.items()
        }

    @classmethod
    def items_from_json(cls, found: object) -> list[tuple[JsonObject, dict[str, float] | None]]:
        texts = cast(Mapping[str, JsonObject], found)
        return [cls._split({"title": title, **item}) for title, item in texts.items()]

    @classmethod
    def identify(cls, record: JsonObject) -> tuple[str, object]:
        return record["title"], record["tokens"]

    @classmethod
    def stored_means(cls, figures: JsonObject) -> dict[str, float]:
        return {TEXTS: -math.log(figures["perplexity"])}

    @classmethod
    def metric(cls, name: str) -> Metric:
        return Metric(-math.inf, 0.0)

    @classmethod
    def text(cls, result: Result) -> str:
        figures = result.figures
        text = f"perplexity {figures['perplexity']:.3f} over {figures['tokens']} tokens"
        found = figures.get("interval")  # one text has none
        if found is None:
            return text
        return f"{text}; 95% interval over texts {found['low']:.3f} to {found['high']:.3f}"


def _mean(records: Sequence[JsonObject]) -> float:
    """Compute the log-probability per token over all texts together, in nats."""
    return float(sum(r["logp"] for r in records) / sum(r["tokens"] for r in records))
