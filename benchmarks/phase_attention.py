"""Phase attention beside the same number of parameters without it. Run: python benchmarks/phase_attention.py

Trains a small character model from scratch on the prose of the package's library, in three ways with
each of five seeds: with coupled phases in one block; with the same phases and no coupling; and without
phases, with wider feed-forward layers. A seed has the same batches in all three. Prints the validation
losses in nats a character, and the differences with their 95% intervals over seeds and texts.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import forty2  # isort: skip  # noqa: F401  # before mlx
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import numpy.typing as npt

from forty2.data.library import isotopes
from forty2.data.library import rows as library_rows
from forty2.inference.logprobs import token_logps
from forty2.model import cpu_kernels
from forty2.model.loading import build_unloaded, parameter_count
from forty2.model.phase_attention import attach_phase_attention, recorded_order
from forty2.recipe.schema import PhaseAttention
from forty2.runs.seed_statistics import interval

WIDTH, BLOCKS, FEED_FORWARD, HEADS = 64, 3, 168, 4
PHASES = PhaseAttention(block=1)
"""The block in the middle, and the published value of every other key."""
WIDER = 11
"""Columns more in each block's feed-forward layer that have as many parameters as the phases."""
LENGTH, ROWS = 128, 6
"""Characters of a row, and rows of a batch."""
STEPS, WARMUP = 300, 30
RATE, DECAY = 4e-3, 0.1
HELD_OUT = 0.1
"""Share of the texts that is measured."""
ARMS: Mapping[str, tuple[int, PhaseAttention | None]] = {
    "phases": (FEED_FORWARD, PHASES),
    "no coupling": (FEED_FORWARD, dataclasses.replace(PHASES, coupling=0.0)),
    "wider": (FEED_FORWARD + WIDER, None),
}
"""Width of the feed-forward layers and the phases of each way."""

Ids = npt.NDArray[np.int32]


class Corpus(NamedTuple):
    """Texts as ids of characters."""

    train: Ids
    valid: Ids
    """(windows, LENGTH + 1)"""
    characters: int


class Trained(NamedTuple):
    """The outcome of one training."""

    losses: npt.NDArray[np.float64]
    """Mean loss of each validation window, nats a character."""
    parameters: int
    seconds: float
    """Processor seconds of a step."""
    order: float | None
    """Mean order parameter R on the validation windows; None: no phases."""


def read_corpus() -> Corpus:
    """Read the library's chats and dialectic answers, and hold out a tenth of them."""
    texts = ["\n".join(message["content"] for message in one["messages"]) for one in isotopes()]
    for row in library_rows("dialectic"):
        texts += [f"{row['prompt']}\n{row[side]}" for side in ("chosen", "rejected")]
    random.Random(0).shuffle(texts)
    cut = round(len(texts) * HELD_OUT)
    known = {character: n for n, character in enumerate(sorted(set("".join(texts)) | {"\n"}))}

    def encode(part: Sequence[str]) -> Ids:
        return np.array([known[c] for c in "\n\n".join(part)], np.int32)

    valid = encode(texts[:cut])
    windows = len(valid) // (LENGTH + 1)
    return Corpus(
        encode(texts[cut:]), valid[: windows * (LENGTH + 1)].reshape(windows, -1), len(known)
    )


def build(arm: str, characters: int, seed: int) -> nn.Module:
    """Build a model whose weights are random."""
    wide, phases = ARMS[arm]
    mx.random.seed(seed)
    config = {
        "model_type": "llama",
        "hidden_size": WIDTH,
        "num_hidden_layers": BLOCKS,
        "intermediate_size": wide,
        "num_attention_heads": HEADS,
        "rms_norm_eps": 1e-5,
        "vocab_size": characters,
        "tie_word_embeddings": True,
    }
    model = build_unloaded(config)
    if phases is not None:
        attach_phase_attention(model, phases)
    mx.eval(model.parameters())
    return model


def batches(train: Ids, seed: int) -> Iterator[mx.array]:
    """Draw rows from the training text, (ROWS, LENGTH + 1)."""
    rng = np.random.default_rng(seed)
    while True:
        starts = rng.integers(len(train) - LENGTH, size=(ROWS, 1))
        yield mx.array(train[starts + np.arange(LENGTH + 1)])


def losses(model: nn.Module, rows: mx.array) -> mx.array:
    """Compute the mean loss of each row, in nats a character."""
    return -token_logps(model(rows[:, :-1]), rows[:, 1:]).mean(axis=-1)


def train(arm: str, corpus: Corpus, seed: int) -> Trained:
    """Train a model and measure it."""
    model = build(arm, corpus.characters, seed)
    rise = optim.linear_schedule(0, RATE, WARMUP)
    fall = optim.cosine_decay(RATE, STEPS - WARMUP)
    rate = optim.join_schedules([rise, fall], [WARMUP])
    optimizer = optim.AdamW(rate, betas=[0.9, 0.99], weight_decay=DECAY)
    step = nn.value_and_grad(model, lambda model, rows: losses(model, rows).mean())
    began = time.process_time()
    for _, rows in zip(range(STEPS), batches(corpus.train, seed), strict=False):
        _, gradients = step(model, rows)
        gradients, _ = optim.clip_grad_norm(gradients, 1.0)
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
    seconds = (time.process_time() - began) / STEPS
    found: list[float] = []
    orders: list[float] = []
    for start in range(0, len(corpus.valid), ROWS):
        with recorded_order(model) as recorded:
            found += np.asarray(
                losses(model, mx.array(corpus.valid[start : start + ROWS]))
            ).tolist()
        orders += [float(order.mean()) for order in recorded]
    order = float(np.mean(orders)) if orders else None
    return Trained(np.array(found), parameter_count(model), seconds, order)


def summarize(by_arm: Mapping[str, Sequence[Trained]]) -> dict[str, Any]:
    """Print the losses and their differences, and return them."""
    figures: dict[str, Any] = {}
    for arm, runs in by_arm.items():
        means = [float(run.losses.mean()) for run in runs]
        figures[arm] = {
            "parameters": runs[0].parameters,
            "losses": [round(mean, 4) for mean in means],
            "loss": round(float(np.mean(means)), 4),
            "ms_per_step": round(1000 * float(np.median([run.seconds for run in runs])), 1),
        }
        if runs[0].order is not None:
            figures[arm]["order_parameter"] = round(float(np.mean([r.order for r in runs])), 3)
        print(arm, json.dumps(figures[arm]))
    for other in ("wider", "no coupling"):
        pairs = zip(by_arm["phases"], by_arm[other], strict=True)
        differences = np.stack([one.losses - two.losses for one, two in pairs])
        low, high = interval(differences)
        mean = float(differences.mean())
        figures[f"phases - {other}"] = [round(value, 4) for value in (mean, low, high)]
        print(f"phases - {other}: {mean:+.4f} [{low:+.4f}, {high:+.4f}] nats a character")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="1,2,3,4,5")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    given = parser.parse_args()
    cpu_kernels.install()
    corpus, began = read_corpus(), time.perf_counter()
    print(f"{len(corpus.train):,} characters, {len(corpus.valid)} windows of {LENGTH} held out")
    by_arm: dict[str, list[Trained]] = {arm: [] for arm in ARMS}
    for seed in map(int, given.seeds.split(",")):
        for arm, runs in by_arm.items():
            runs.append(train(arm, corpus, seed))
            print(f"seed {seed}, {arm}: {runs[-1].losses.mean():.4f}", flush=True)
    figures = summarize(by_arm)
    if given.out:
        given.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(
        f"in {(time.perf_counter() - began) / 60:.1f} minutes; ln {corpus.characters} = "
        f"{math.log(corpus.characters):.2f}"
    )


if __name__ == "__main__":
    main()
