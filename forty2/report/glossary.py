"""The words of a report that a reader may not know, each explained in a sentence."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from forty2.report.run_types import Run

TITLE = "Words on this page"
BUCKETS = {
    "common": "prompts whose expected reply is an answer that several training rows have, such as a "
    "refusal",
    "number": "prompts whose reply must hold the first number of the held-out answer",
    "short": "prompts whose reply must hold the whole held-out answer, which is short",
}
"""The meaning of each bucket of proposed prompts, as `data/eval_proposals.py` makes them."""


class Entry(NamedTuple):
    """A word and its meaning."""

    word: str
    meaning: str


_WORDS: tuple[tuple[str, str, str], ...] = (
    (
        "tax",
        r"\btax\b",
        "a loss in something that the model could do before training, by more than chance explains and "
        "perhaps by the margin or more; no tax: no such loss.",
    ),
    (
        "margin of a change",
        r"\| Margin \| p \||\bthe margin\b",
        "the largest loss that still counts as none; the recipe sets it before the run.",
    ),
    (
        "margin of pairs",
        r"Margin: (how|by how) much|reward of the chosen response minus",
        "how much more training raised the chosen answer's probability than the rejected one's.",
    ),
    (
        "95% interval",
        r"95% interval",
        "the range in which the true change lies, as far as the questions asked can tell.",
    ),
    (
        "nats",
        r"\bnats\b",
        "the unit of a logarithm of probabilities to the base e: 0.69 nats less loss make a text twice "
        "as likely.",
    ),
    (
        "KL",
        r"\bKL\b",
        "Kullback-Leibler divergence: how far one model's probabilities of the next token are from "
        "another's; 0 if they are the same.",
    ),
    (
        "perplexity",
        r"\b[Pp]erplexity\b",
        "e to the mean loss of a token: a perplexity of 40 is as uncertain as a choice among 40 equally "
        "likely tokens.",
    ),
    (
        "leaks, hedges",
        r"\bLeaks\b|\bhedges:",
        "answers to plain factual questions that hedge for no reason (“it may be that …”), a habit that "
        "leaked in from training data.",
    ),
    (
        "stopped",
        r"\bStopped\b",
        "the model ended its reply by itself, and was not cut off at the longest reply allowed.",
    ),
    (
        "rewards",
        r"\bRewards\b|\bhigher reward\b",
        "how much more likely an answer is than under the model that the phase began with: β times the "
        "difference of the log-probabilities.",
    ),
    (
        "β",
        r"\bβ|\.beta\b",
        "the recipe's beta: how strongly preference training holds the model to where it began.",
    ),
    (
        "held-out rows",
        r"\b[Hh]eld-out (rows|prompts)\b",
        "rows of your data that were not trained on, so that they can show what was learned.",
    ),
    (
        "eval prompts",
        r"\b[Ee]val prompts\b",
        "prompts with a check of what the reply must hold, asked during training and at each stage.",
    ),
    (
        "fused",
        r"\bfused\b",
        "base model and adapter added up to one model, which needs no adapter any more.",
    ),
)
"""Words, patterns of the text in which they occur, and their meanings."""


def entries(run: Run, texts: Iterable[str]) -> list[Entry]:
    """List the words that occur in a report, with the buckets of its proposed eval prompts.

    Args:
        texts: what the report says, without the recipe.
    """
    text = "\n".join(texts)
    found = [Entry(word, meaning) for word, pattern, meaning in _WORDS if re.search(pattern, text)]
    buckets = run.summary.buckets if run.summary is not None else []
    return found + [
        Entry(
            f"{one.name} (bucket)", f"of the eval prompts that init proposes, {BUCKETS[one.name]}."
        )
        for one in buckets
        if one.name in BUCKETS
    ]
