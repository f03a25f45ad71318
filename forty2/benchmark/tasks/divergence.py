"""Divergence of a model from its base: KL(model ‖ base) per token, exact over the vocabulary.

    KL(p ‖ q) = Σ_v p log p/q = Σ_v (p log p/q - p + q)        nats

Both sums are the same if p and q add up to 1. In the second one no term is below 0, and rounding
enters squared, so it is 0 if nothing changed, and accurate down to 1e-11. (It is Schulman's k3, from
"Approximating KL divergence", 2020, here summed over all tokens and not sampled.)

It is measured at places in held-out material, the same for every stage of a run: in neutral prose,
and in good answers to the behaviour prompts. Both models read the text up to a place and predict
the token after it. So it is the KL on this material, not on text that the model itself would write.

The base's log-probabilities at these places are computed once and stored in the cache: places · V
numbers, 50 MB for a vocabulary of 49k and 200 MB for one of 200k. So no second model is in memory
when a fused or quantized model is measured.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from forty2 import machine
from forty2.benchmark.results import Item
from forty2.benchmark.task import Metric, Report, Source, Task
from forty2.data.library import neutral_texts, rows
from forty2.errors import BenchmarkError
from forty2.files import JsonObject, find_damage, lock_folder, seal, staged_folder, write_errors
from forty2.progress import Progress, silent
from forty2.text.encoder import Encoder

if TYPE_CHECKING:  # a result is read without the model wing
    from forty2.benchmark.partial_results import PartialResults
    from forty2.model.loading import LoadedModel

KL = "KL"
TEXT_TOKENS = 64
"""Tokens of each neutral text."""
TEXT_PLACES = 16
ANSWERS = 16
ANSWER_PLACES = 8
"""Places in each answer, from its first token on."""
_LOGPS = "logps.f32"
_NEUTRAL = "neutral texts"

T = TypeVar("T")


class Probe(NamedTuple):
    """Token ids, and the places in them after which the next token is predicted."""

    material: str
    ids: list[int]
    places: list[int]


class Base(NamedTuple):
    """A base model's log-probabilities of every next token at the probes' places, on disk."""

    probes: list[Probe]
    folder: Path

    def open(self) -> BinaryIO:
        """Open the file of log-probabilities.

        Raises:
            BenchmarkError: it was removed since they were computed.
        """
        try:
            return (self.folder / _LOGPS).open("rb")
        except FileNotFoundError as error:
            raise BenchmarkError(
                f"{self.folder}: removed while it was needed, by `forty2 clean` perhaps; go on with "
                "`resume=True`"
            ) from error


@dataclass(frozen=True, kw_only=True)
class Divergence(Task[Base]):
    """KL from the base, in nats per token.

    A result's figures: `kl`, the mean over all places; `by`, the mean for each material; `n`, the
    number of places. An item is a probe, with the KL at each of its places.
    """

    base: Base

    name = "divergence"
    title = "neutral texts and held-out answers"
    judged = (KL,)

    def load(self) -> Base:
        return self.base

    def source(self, questions: Base) -> Source:
        sha256 = hashlib.sha256(json.dumps(questions.probes).encode()).hexdigest()
        return Source(self.title, sha256, len(questions.probes))

    def score(
        self, loaded: LoadedModel, questions: Base, partial: PartialResults, report: Report
    ) -> list[JsonObject]:
        """Compute the KL at each place of every probe.

        Raises:
            BenchmarkError: a log-probability is not finite, or the model has another vocabulary.
        """
        records: list[JsonObject] = []
        with questions.open() as file:
            predicted = _next_logps(loaded.model, questions.probes)
            for probe, logps in zip(questions.probes, predicted, strict=True):
                base = np.fromfile(file, np.float32, logps.size)
                if base.size != logps.size:
                    raise BenchmarkError(f"{loaded.name}: has another vocabulary than its base")
                kl = kl_of(logps, base.reshape(logps.shape))
                if not np.isfinite(kl).all():
                    raise BenchmarkError(
                        f"{loaded.name}: its KL from the base is not finite; the model is broken "
                        "(weights, adapter or precision)"
                    )
                records.append({"material": probe.material, "kl": kl.tolist()})
                report(len(records), len(questions.probes), {})
        return records

    @classmethod
    def figures(cls, items: Sequence[Item]) -> JsonObject:
        by: dict[str, list[float]] = {}
        for item in items:
            by.setdefault(item.record["material"], []).extend(item.record["kl"])
        every = [kl for values in by.values() for kl in values]
        return {
            "kl": float(np.mean(every)),
            "by": {material: float(np.mean(values)) for material, values in by.items()},
            "n": len(every),
        }

    @classmethod
    def items(cls, records: Iterable[JsonObject]) -> tuple[Item, ...]:
        """Make items whose mean is the mean over all places: each probe is weighted by its places."""
        records = list(records)
        places = sum(len(record["kl"]) for record in records) / len(records)
        return tuple(Item(record, {KL: math.fsum(record["kl"]) / places}) for record in records)

    @classmethod
    def identify(cls, record: JsonObject) -> tuple[str, object]:
        return record["material"], len(record["kl"])

    @classmethod
    def stored_means(cls, figures: JsonObject) -> dict[str, float]:
        return {KL: figures["kl"]}

    @classmethod
    def metric(cls, name: str) -> Metric:
        return Metric(0.0, math.inf, "neither")


def probes(loaded: LoadedModel, n: int | None = None) -> list[Probe]:
    """Choose the places at which models are compared.

    Args:
        n: largest number of neutral texts, and of answers; None: all.
    """
    encoder = Encoder(loaded.tokenizer)
    found = []
    for text in list(neutral_texts().values())[:n]:
        ids = loaded.tokenizer.encode(text)[:TEXT_TOKENS]
        found.append(Probe(_NEUTRAL, ids, spread(range(len(ids)), TEXT_PLACES)))
    for row in spread(rows("heldout/behaviour"), min(ANSWERS, n or ANSWERS)):
        turn = {"role": "user", "content": row["prompt"]}
        good = {"role": "assistant", "content": row["good"]}
        prompt, answer, _ = encoder.response([turn], [good])
        ids = [*prompt, *answer[:-1]]
        places = spread(range(len(prompt) - 1, len(ids)), ANSWER_PLACES)
        found.append(Probe("held-out answers", ids, places))
    return found


def base_of(
    loaded: LoadedModel, fingerprint: str, n: int | None = None, progress: Progress = silent
) -> Base:
    """Return the log-probabilities of a base model without adapter, from the cache or computed now.

    Args:
        fingerprint: hash of the model's weights.
        n: as in `probes`.
    """
    found = probes(loaded, n)
    # The base's log-probabilities do not change with each commit of ours.
    facts = {name: fact for name, fact in machine.facts().items() if name != "revision"}
    key = json.dumps([fingerprint, facts, found])
    folder = machine.cache_dir() / "base" / hashlib.sha256(key.encode()).hexdigest()[:32]
    if find_damage(folder) is not None:
        with write_errors(folder.parent), lock_folder(folder.parent):
            if find_damage(folder) is not None:  # else another process has computed them meanwhile
                _store_base(loaded, found, folder, progress)
    return Base(found, folder)


def _store_base(
    loaded: LoadedModel, probes: Sequence[Probe], folder: Path, progress: Progress
) -> None:
    with staged_folder(folder) as staged:
        with (staged / _LOGPS).open("wb") as file:
            for done, logps in enumerate(_next_logps(loaded.model, probes), 1):
                file.write(logps.tobytes())
                progress("log-probabilities of the base", done, len(probes), {})
        seal(staged)


def drift_from(loaded: LoadedModel, base: Base) -> tuple[float, float, float]:
    """Compare a model with its base on the neutral texts alone.

    Returns:
        The mean KL in nats a token, the ratio of the perplexity of the texts' own tokens to the
        base's, and that perplexity, all over the probes' places.
    """
    kl: list[float] = []
    lost: list[float] = []
    own: list[float] = []
    with base.open() as file:
        neutral = [probe for probe in base.probes if probe.material == _NEUTRAL]  # the first ones
        for probe, logps in zip(neutral, _next_logps(loaded.model, neutral), strict=True):
            before = np.fromfile(file, np.float32, logps.size).reshape(logps.shape)
            kl.extend(kl_of(logps, before).tolist())
            for row, place in enumerate(probe.places):
                if place + 1 < len(probe.ids):
                    token = probe.ids[place + 1]
                    lost.append(float(before[row, token] - logps[row, token]))
                    own.append(-float(logps[row, token]))
    ratio, perplexity = (float(np.exp(np.minimum(np.mean(x), 700.0))) for x in (lost, own))
    return float(np.mean(kl)), ratio, perplexity


def kl_of(logps: npt.NDArray[np.float32], base: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Compute KL(p ‖ q) of each row, in nats and float64: log p and log q (N, V) to (N,)."""
    p, q = logps.astype(np.float64), base.astype(np.float64)
    ratio = q - p
    terms = np.exp(p) * (np.expm1(np.minimum(ratio, 1.0)) - ratio)
    # where q is far above p, exp(ratio) would overflow
    terms = np.where(ratio > 1.0, np.exp(q) - np.exp(p) * (1.0 + ratio), terms)
    return np.asarray(terms.sum(axis=-1))


def _next_logps(model: nn.Module, found: Sequence[Probe]) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the log-probabilities of every next token at each probe's places, (places, V)."""
    from forty2.inference.logprobs import Shortcuts, logsumexp, run_model
    from forty2.model.surgery import can_split, head

    shortcuts = Shortcuts(split_head=can_split(model))
    for probe in found:
        output = run_model(model, mx.array([probe.ids]), shortcuts)[0, mx.array(probe.places)]
        logits = (head(model, output) if shortcuts.split_head else output).astype(mx.float32)
        yield np.asarray(logits - logsumexp(logits)[:, None])


def spread(values: Sequence[T], n: int) -> list[T]:
    """Choose `n` values, or all if there are fewer, evenly spread and with the first one."""
    n = min(n, len(values))
    return [values[i * len(values) // n] for i in range(n)]
