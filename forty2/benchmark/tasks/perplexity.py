"""Perplexity on neutral prose: what alignment cost the model's language."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from forty2.data.library import neutral_texts
from forty2.errors import BenchmarkError
from forty2.inference.shared_prefix import score_rows
from forty2.model.loading import LoadedModel
from forty2.model.surgery import can_split

WINDOW = 256


def perplexity(
    loaded: LoadedModel, texts: Mapping[str, str] | None = None, n: int | None = None
) -> dict[str, Any]:
    """exp of the mean negative log-likelihood a token, over all texts together.

    Each text is cut into windows of `WINDOW` tokens; a window's first token is given, not scored.

    Args:
        texts: by title; default the project's neutral prose.
        n: windows to use at most.

    Raises:
        BenchmarkError: no text is long enough, or a score is not finite.
    """
    items: dict[str, dict[str, Any]] = {}
    split_head = can_split(loaded.model)
    left = n if n is not None else math.inf
    for title, text in (texts or neutral_texts()).items():
        ids = loaded.tokenizer.encode(text)
        total, count = 0.0, 0
        for start in range(0, len(ids) - 1, WINDOW):
            if left <= 0:
                break
            left -= 1
            window = ids[start : start + WINDOW + 1]
            total += score_rows(loaded.model, [(window[:1], window[1:])], split_head=split_head)[0]
            count += len(window) - 1
        if count:
            items[title] = {"logp": total, "tokens": count}
    tokens = sum(item["tokens"] for item in items.values())
    if not tokens:
        raise BenchmarkError(
            f"{', '.join(texts or ())}: no text of two tokens or more; the first is given, not scored"
        )
    mean = -sum(item["logp"] for item in items.values()) / tokens
    if not math.isfinite(mean):
        raise BenchmarkError(f"the texts score {-mean} a token; the model is broken")
    return {
        "benchmark": "perplexity",
        "perplexity": math.exp(mean),
        "tokens": tokens,
        "items": items,
    }
