"""Calibration of multiple-choice answers: is a model right as often as it is sure?

A model's confidence is its first choice's share of the probability of all options.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from forty2.files import JsonObject

BINS = 10


def first_choice(logliks: Sequence[float], labels: Sequence[int]) -> tuple[float, bool]:
    """Return the confidence in the best option, and whether it is true; in a tie, a false one counts.

    Args:
        logliks: log-likelihood of each option, in nats.
        labels: 1 for true options, 0 for false ones.
    """
    values = np.asarray(logliks, np.float64)
    shares = np.exp(values - values.max())
    best = values == values.max()
    return float(shares.max() / shares.sum()), all(np.asarray(labels)[best] == 1)


def calibration(choices: Sequence[tuple[float, bool]]) -> JsonObject:
    """Compute the expected calibration error, and its bins.

    Σ n_b / n · |accuracy_b - confidence_b| over ten bins of confidence of equal width (Naeini et al.
    2015, "Obtaining well calibrated probabilities using Bayesian binning"; Guo et al. 2017,
    arXiv:1706.04599, eq. 3). A confidence on a border belongs to the bin below it, as in the paper.

    Args:
        choices: confidence and correctness of each item, from `first_choice`.
    """
    confidence = np.array([c for c, _ in choices])
    right = np.array([r for _, r in choices], float)
    places = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    bins = [
        {
            "n": int((places == b).sum()),
            "confidence": float(confidence[places == b].mean()),
            "accuracy": float(right[places == b].mean()),
        }
        for b in range(BINS)
        if (places == b).any()
    ]
    gaps = [bin["n"] * abs(bin["accuracy"] - bin["confidence"]) for bin in bins]
    return {"ece": float(sum(gaps) / len(choices)), "bins": bins}
