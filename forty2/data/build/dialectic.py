"""The dialectic set: answers that hold two sides in tension, preferred to one-sided ones.

Every pair has a domain, a complexity (how many considerations meet) and a subtlety (whether the
tension is named or only shown): 36 strata, sampled evenly, each in training and in validation.
"""

from __future__ import annotations

from forty2.data.library import rows
from forty2.data.splitting import Split, seeded_order, split_by_stratum
from forty2.data.strata import stratify
from forty2.files import JsonObject

STRATA = ("domain", "complexity", "subtlety")


def dialectic(seed: int, size: int | None) -> Split:
    """Draw pairs evenly over the strata, the easiest first: their `order` runs from 0 to 1.

    Validation rows have the same keys and come in random order.
    """
    split = split_by_stratum(
        rows("dialectic"), seed, lambda row: "/".join(row[key] for key in STRATA)
    )
    pairs = [{"pair_type": "dialectic", **row} for row in split.train]
    most = len(pairs) if size is None else min(size, len(pairs))
    valid = [{"pair_type": "dialectic", **row} for row in split.valid]
    return Split(stratify(pairs, STRATA, most, seed).rows, seeded_order(valid, seed))


def chosen_answers(seed: int, size: int | None) -> Split:
    """Return the chosen answers of the same pairs as chats, for supervised training before them.

    Training and validation rows are divided as the pairs are, so no validation prompt is trained on.
    """
    return Split(*(list(map(_chat, rows)) for rows in dialectic(seed, size)))


def _chat(pair: JsonObject) -> JsonObject:
    kept = {key: pair[key] for key in ("id", *STRATA, "order") if key in pair}
    return {"prompt": pair["prompt"], "completion": pair["chosen"], **kept}
