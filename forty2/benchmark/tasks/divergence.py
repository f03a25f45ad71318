"""How far a model has moved from its base: KL(model ‖ base) a token, exactly over the vocabulary.

    KL(p ‖ q) = Σ_v p log p/q = Σ_v (p log p/q - p + q)        nats

Both sums are the same where p and q add up to 1. In the second no term is below 0, and rounding
enters it squared (Schulman 2020, "Approximating KL divergence", whose k3 it is, here not sampled
but summed over all tokens): it is 0 where nothing changed, and right down to 1e-11.

Measured at places in held-out material, the same for every stage of a run: in neutral prose, and in
good answers to the behaviour prompts. The text up to a place is given, the token after it is what
both models foresee. So it is the KL on this material, not on what the model itself would write.

The base's log-probabilities at these places are computed once for a base and kept in the cache:
places · V numbers, 50 MB for a vocabulary of 49k and 200 MB for one of 200k. So they are there when
the base itself is no more (fused, quantised), and no second model is in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from forty2 import machine
from forty2.data.library import neutral_texts, rows
from forty2.errors import BenchmarkError
from forty2.files import find_damage, seal, staged_folder
from forty2.inference.logprobs import Shortcuts, logsumexp, run_model
from forty2.model.loading import LoadedModel
from forty2.model.surgery import can_split, head
from forty2.text.encoder import Encoder

TEXT_TOKENS = 64  # of each neutral text
TEXT_PLACES = 16
ANSWERS = 16
ANSWER_PLACES = 8  # from the first token of an answer on
_LOGPS = "logps.f32"

T = TypeVar("T")


class Probe(NamedTuple):
    """Token ids, and the places in them after which the next token is foreseen."""

    material: str
    ids: list[int]
    places: list[int]


class Base(NamedTuple):
    """A base model's log-probabilities of every next token at the probes' places, on disk."""

    probes: list[Probe]
    folder: Path


def probes(loaded: LoadedModel, n: int | None = None) -> list[Probe]:
    """Where models are held against each other.

    Args:
        n: at most so many neutral texts, and so many answers.
    """
    encoder = Encoder(loaded.tokenizer)
    found = []
    for text in list(neutral_texts().values())[:n]:
        ids = loaded.tokenizer.encode(text)[:TEXT_TOKENS]
        found.append(Probe("neutral texts", ids, _spread(range(len(ids)), TEXT_PLACES)))
    for row in _spread(rows("heldout/behaviour"), min(ANSWERS, n or ANSWERS)):
        turn = {"role": "user", "content": row["prompt"]}
        prompt, answer = encoder.response([turn], row["good"])
        ids = [*prompt, *answer[:-1]]
        places = _spread(range(len(prompt) - 1, len(ids)), ANSWER_PLACES)
        found.append(Probe("held-out answers", ids, places))
    return found


def base_of(loaded: LoadedModel, fingerprint: str, n: int | None = None) -> Base:
    """The log-probabilities of a bare base model: those in the cache, or computed now.

    Args:
        fingerprint: of the model's weights.
        n: as in `probes`.
    """
    found = probes(loaded, n)
    key = json.dumps([fingerprint, machine.facts(), found])
    folder = machine.cache_dir() / "base" / hashlib.sha256(key.encode()).hexdigest()[:32]
    if find_damage(folder) is not None:
        with staged_folder(folder) as aside:
            with (aside / _LOGPS).open("wb") as file:
                for logps in _foreseen(loaded.model, found):
                    file.write(logps.tobytes())
            seal(aside)
    return Base(found, folder)


def divergence(loaded: LoadedModel, base: Base) -> dict[str, Any]:
    """KL(model ‖ base) a token, in nats.

    Returns:
        `kl`, the mean over all places; `by`, over those of each material; `n`, how many places;
        `items`, material and the KL at each place of every probe.

    Raises:
        BenchmarkError: a log-probability is not finite, or the model has another vocabulary.
    """
    items = []
    with (base.folder / _LOGPS).open("rb") as file:
        for probe, logps in zip(base.probes, _foreseen(loaded.model, base.probes), strict=True):
            was = np.fromfile(file, np.float32, logps.size)
            if was.size != logps.size:
                raise BenchmarkError(f"{loaded.name}: has another vocabulary than its base")
            kl = kl_of(logps, was.reshape(logps.shape))
            if not np.isfinite(kl).all():
                raise BenchmarkError(
                    f"{loaded.name}: its KL from the base is not finite; the model is broken "
                    "(weights, adapter or precision)"
                )
            items.append({"material": probe.material, "kl": kl.tolist()})
    by = {
        material: [kl for item in items if item["material"] == material for kl in item["kl"]]
        for material in dict.fromkeys(probe.material for probe in base.probes)
    }
    every = [kl for values in by.values() for kl in values]
    return {
        "kl": float(np.mean(every)),
        "by": {material: float(np.mean(values)) for material, values in by.items()},
        "n": len(every),
        "items": items,
    }


def kl_of(logps: npt.NDArray[np.float32], base: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """KL(p ‖ q) of each row: log p and log q, (N, V) -> (N,), in float64."""
    p, q = logps.astype(np.float64), base.astype(np.float64)
    ratio = q - p
    terms = np.exp(p) * (np.expm1(np.minimum(ratio, 1.0)) - ratio)
    # where q is far above p, exp(ratio) would overflow
    terms = np.where(ratio > 1.0, np.exp(q) - np.exp(p) * (1.0 + ratio), terms)
    return np.asarray(terms.sum(axis=-1))


def _foreseen(model: nn.Module, found: Sequence[Probe]) -> Iterator[npt.NDArray[np.float32]]:
    """Log-probabilities of every next token at a probe's places, (places, V), probe by probe."""
    shortcuts = Shortcuts(split_head=can_split(model))
    for probe in found:
        output = run_model(model, mx.array([probe.ids]), shortcuts)[0, mx.array(probe.places)]
        logits = (head(model, output) if shortcuts.split_head else output).astype(mx.float32)
        yield np.asarray(logits - logsumexp(logits)[:, None])


def _spread(values: Sequence[T], n: int) -> list[T]:
    """So many of the values, from the first on, evenly spread."""
    n = min(n, len(values))
    return [values[i * len(values) // n] for i in range(n)]
