"""Held-out behaviour gates: does the model hedge where it should not, and correct where it should?

Judged two ways, reported side by side:
  - by likelihood: on each held-out prompt, is the good answer likelier than the bad one? No text is
    generated and no pattern matched.
  - by generation, for leaks: plain factual prompts are answered greedily, and a detector looks for
    needless hedging. On 257 labelled answers (`heldout/leak_labels.jsonl`) its precision is 1.00
    and its recall 0.49, and part of those it was widened on: the leak rate is a floor, good for
    comparing two models, and the likelihood judgement stands beside it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from forty2.data.library import rows
from forty2.errors import BenchmarkError
from forty2.logprobs import SharedPrefix, can_share, score_rows
from forty2.model.door import LoadedModel, generate
from forty2.progress import Progress, silent
from forty2.tokens import Encoder

MAX_TOKENS = 64
Row = Mapping[str, Any]

_HEDGES = re.compile(
    "|".join(
        (
            # the speaker's own uncertainty or limits, where a fact was asked
            r"\b(i|we) (can(no|')t|cannot|can never|could not|couldn't|may not|might not"
            r"|am not able to|'m not able to|am unable to) (\w+ ){0,3}"
            r"(be (\w+ )?(certain|sure)|know|tell|say|verify|confirm|claim|guarantee|vouch|promise)",
            r"\b(nobody|no one|there is no way for me) (\w+ ){0,2}be (\w+ )?(certain|sure)",
            r"\bi('m| am) (not|un|never|hardly|far from) ?(\w+ ){0,3}(certain|sure|confident|able to)",
            r"\b(i|we|it) (may|might|could) (\w+ ){0,2}(be|have|well be) (\w+ ){0,1}"
            r"(wrong|mistaken|confused|missing|misled|misremember\w*)",
            r"\bi do(n't| not) (truly |really )?(know whether|want to (over)?claim|rely)",
            r"\b(hard|difficult|impossible|tricky) (for me |for anyone |for a model )?to (\w+ )?"
            r"(say|know|tell|be sure|be certain|verify|answer)",
            r"\bfrom (the |my |within|in)?(\s?the)?\s?(inside|own perspective|where i (sit|stand|am))",
            r"\b(my|the) (own )?(knowledge|training|certainty|confidence|understanding|memory)"
            r" (\w+ ){0,3}(is|has|may|might|can|could|only|comes|remains|cannot)",
            r"\b(the )?limits of (my|our|what)\b|\bcertainty is\b|\b(un)?certainty\b.{0,30}\bfor me\b",
            r"\b(tentative|tentatively|hesita(te|tion|nt)|humility|humbly)\b",
            r"\bas (an?|your) (\w+ )?(ai|language model|assistant|model|program)\b",
            r"\b(take|treat|hold|weigh) (this|that|my|it|what i say)( \w+){0,3}"
            r" (with|as|lightly|loosely)|\bhold (that|this|it) loosely",
            r"\b(please|do|you should|you may want to|you might want to|best to|worth|wise to)"
            r" (\w+ ){0,2}(verify|double-check|double check|cross-check|consult|confirm|look this up)",
            r"\bwhat (do|does|would|exactly do|is it) (\w+ )?(we|you|one|it) (\w+ ){0,2}(mean|know)",
            r"\b(depends on what you|it depends|who (is to|can) say|can anyone|your guess is)",
            r"\bcan we (ever|really|truly)|\b(deep|profound) question|what (counts as|we call) an answer",
            r"\b(why|what) (do|makes|prompts|brings|led) you (to )?(ask|want|curious|wonder)",
            r"\bi (would|'d) (hesitate|rather not|be cautious|want to be careful|prefer not|not want)",
            r"\b(some|many|most) (sources|people|would) (\w+ )?(say|suggest|argue|claim)",
            r"\b(several|many|different) (views|perspectives|opinions|ways of looking)",
            r"\bi (think|believe|suspect|guess|suppose|imagine)\b.{0,60}\b(but|though|however)\b",
            r"\bi (suspect|guess|suppose)\b|\bif (pressed|i had to guess)\b",
        )
    ),
    re.IGNORECASE,
)


def leaks(answer: str) -> bool:
    """Whether an answer to a plain factual question hedges without need."""
    return _HEDGES.search(answer.replace("’", "'")) is not None


def behaviour(
    loaded: LoadedModel,
    n: int | None = None,
    *,
    progress: Progress = silent,
    stage: str = "behaviour",
) -> dict[str, Any]:
    """Measure all gates, on `n` held-out prompts spread evenly over them, or on all.

    Returns:
        `leak_rate` and `right_rate` over generated answers; `preference`, the share of prompts on
        which the good answer is the likelier one, and `margin`, the mean difference of their
        log-probabilities a token, both by gate and over all; `items`.
    """
    prompts = _spread(rows("heldout/behaviour"), n)
    encoder = Encoder(loaded.tokenizer)
    scorer = _Scorer(loaded, encoder, prompts)
    items: list[dict[str, Any]] = []
    for done, row in enumerate(prompts, 1):
        good, bad = scorer(row)
        items.append({"id": row["id"], "gate": row["gate"], "good": good, "bad": bad})
        progress(stage, done, len(prompts) + 1, {})
    leak_rows = [row for row in prompts if row["gate"] == "leak"]
    answers = generate(
        loaded,
        [encoder.prompt([_turn(row)]) for row in leak_rows],
        max_tokens=MAX_TOKENS,
    )
    progress(stage, len(prompts) + 1, len(prompts) + 1, {})
    by_id = {item["id"]: item for item in items}
    for row, answer in zip(leak_rows, answers, strict=True):
        right = any(mark.lower() in answer.lower() for mark in row["expect"])
        by_id[row["id"]].update(answer=answer, leak=leaks(answer), right=right)
    generated = [by_id[row["id"]] for row in leak_rows]
    gates = sorted({item["gate"] for item in items})
    return {
        "leak_rate": float(np.mean([item["leak"] for item in generated])),
        "right_rate": float(np.mean([item["right"] for item in generated])),
        "preference": {gate: _preference(items, gate) for gate in gates}
        | {"all": _preference(items)},
        "margin": {gate: _margin(items, gate) for gate in gates} | {"all": _margin(items)},
        "n": len(items),
        "items": items,
    }


def _spread(prompts: Sequence[dict[str, Any]], n: int | None) -> list[dict[str, Any]]:
    """The first prompts of each gate, as many of each, at least `n` in all; None: all."""
    if n is None or n >= len(prompts):
        return list(prompts)
    each = -(-n // len({row["gate"] for row in prompts}))
    taken: Counter[str] = Counter()
    result = []
    for row in prompts:
        taken[row["gate"]] += 1
        if taken[row["gate"]] <= each:
            result.append(row)
    return result


class _Scorer:
    """Log-probability a token of a prompt's good and of its bad answer."""

    def __init__(self, loaded: LoadedModel, encoder: Encoder, prompts: Sequence[Row]) -> None:
        self._model, self._encoder = loaded.model, encoder
        self._share = can_share(loaded.model)
        # The template's header is the same for all prompts: it runs once.
        first, *others = [encoder.prompt([_turn(row)])[:-1] for row in prompts]
        length = len(first)
        for ids in others:
            same = (n for n, (a, b) in enumerate(zip(first, ids, strict=False)) if a != b)
            length = min(next(same, len(ids)), length)
        self._header = length
        self._prefix = SharedPrefix(self._model).extend(first[:length]) if self._share else None

    def __call__(self, row: Row) -> tuple[float, float]:
        (prompt, good), (_, bad) = (
            self._encoder.response([_turn(row)], row[side]) for side in ("good", "bad")
        )
        if self._prefix is not None:
            prefix = self._prefix.extend(prompt[self._header : -1])
            scored = prefix.score([(prompt[-1:], good), (prompt[-1:], bad)])
        else:
            scored = score_rows(self._model, [(prompt, good), (prompt, bad)])
        values = [s / len(ids) for s, ids in zip(scored, (good, bad), strict=True)]
        if not np.isfinite(values).all():
            raise BenchmarkError(
                f"behaviour {row['id']}: the score is not finite; the model is broken"
            )
        return values[0], values[1]


def _turn(row: Row) -> dict[str, str]:
    return {"role": "user", "content": row["prompt"]}


def _of(items: Sequence[Mapping[str, Any]], gate: str | None) -> Sequence[Mapping[str, Any]]:
    return [item for item in items if gate is None or item["gate"] == gate]


def _preference(items: Sequence[Mapping[str, Any]], gate: str | None = None) -> float:
    return float(np.mean([item["good"] > item["bad"] for item in _of(items, gate)]))


def _margin(items: Sequence[Mapping[str, Any]], gate: str | None = None) -> float:
    return float(np.mean([item["good"] - item["bad"] for item in _of(items, gate)]))
