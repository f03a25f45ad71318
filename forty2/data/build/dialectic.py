"""Answers that hold two sides in tension, over ones that push, flatten or miss it.

Every pair has a domain, a complexity (how many considerations meet) and a subtlety (whether the
tension is named or only shown): 36 strata, sampled evenly, each on both sides of the split.
"""

from __future__ import annotations

from forty2.data.build.splitting import Split, shuffled, split_by
from forty2.data.library import rows
from forty2.data.strata import stratify

STRATA = ("domain", "complexity", "subtlety")


def dialectic(seed: int, size: int | None) -> Split:
    """Pairs drawn evenly over the strata, easiest first: `order` runs from 0 to 1.

    Validation has the same keys, in no order.
    """
    split = split_by(rows("dialectic"), seed, lambda row: "/".join(row[key] for key in STRATA))
    pairs = [{"pair_type": "dialectic", **row} for row in split.train]
    most = len(pairs) if size is None else min(size, len(pairs))
    valid = [{"pair_type": "dialectic", **row} for row in split.valid]
    return Split(
        [dict(row) for row in stratify(pairs, STRATA, most, seed).rows], shuffled(valid, seed)
    )
