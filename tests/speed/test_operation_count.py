"""The floor: operations are those that a walk over the tokens and a hand calculation count."""

from __future__ import annotations

import mlx.nn as nn
import pytest
from support.models import TINY, tiny_model

from forty2.speed.operation_count import (
    NO_WORK,
    Shapes,
    Work,
    conversation_work,
    dpo_operations,
    linear_operations,
    linear_sizes,
    model_shapes,
    responses_work,
    scoring_operations,
    sft_operations,
)

PRIMES = Shapes(frozen=3, trained=5, adapters=7, frozen_width=11, trained_width=13, head=17)
"""Shapes in which a factor in the wrong place shows."""


def walked_work(prompt: int, responses: list[int], cached: int) -> Work:
    """Count position by position, as a model goes through a prompt and each response after it."""
    tokens = keys = supervised = 0
    for position in range(cached, prompt - 1):
        tokens, keys = tokens + 1, keys + position + 1
    for response in responses:
        for position in range(prompt - 1, prompt - 1 + response):
            tokens, keys, supervised = tokens + 1, keys + position + 1, supervised + 1
    return Work(tokens, keys, supervised)


@pytest.mark.parametrize(
    ("prompt", "responses", "cached"),
    [(1, [1], 0), (5, [3, 2], 0), (9, [4, 1, 6], 5), (7, [], 0), (7, [], 6)],
)
def test_work_is_what_a_walk_over_the_tokens_counts(
    prompt: int, responses: list[int], cached: int
) -> None:
    assert responses_work(prompt, responses, cached=cached) == walked_work(
        prompt, responses, cached
    )


def test_a_conversation_is_fed_all_but_its_last_token_and_scored_from_its_start() -> None:
    assert conversation_work(5, 2) == Work(tokens=4, attended=1 + 2 + 3 + 4, supervised=3)
    assert conversation_work(5, 0).supervised == 4  # nothing predicts the first token
    assert sum([conversation_work(5, 2), conversation_work(2, 1)], NO_WORK) == Work(5, 11, 4)


def test_operations_are_those_worked_out_by_hand() -> None:
    """Two tokens that attend to three keys, one of them supervised.

    Forward, two operations a multiplication: frozen 2·3·2 = 12, and 4·11·3 = 132 in attention;
    trained 2·5·2 = 20 and 4·13·3 = 156; head 2·17·1 = 34. Backward to inputs: trained 20 and
    8·13·3 = 312, head 34. Adapters forward, backward and their own gradients: 6·7·2 = 84.
    """
    work = Work(tokens=2, attended=3, supervised=1)
    frozen, trained, head = 12 + 132, 20 + 156, 34
    backward = 20 + 312 + head + 84
    assert scoring_operations(PRIMES, work) == frozen + trained + head
    assert sft_operations(PRIMES, work) == frozen + trained + head + backward
    assert dpo_operations(PRIMES, work) == frozen + 2 * (trained + head) + backward


def test_shapes_are_those_of_the_model() -> None:
    """TINY's blocks: q and o 32·32, k and v 32·16, three of 32·64; ranks of 4 on the last two."""
    model = tiny_model()
    block = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64
    adapters = 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))
    expected = Shapes(block, 2 * block, 2 * adapters, 32, 64, 32 * 300)
    assert model_shapes(model, TINY, layers=2, rank=4) == expected
    assert sum(a * b * times for a, b, times in linear_sizes(model)) == 3 * block
    assert linear_operations(linear_sizes(model), 10) == 2 * 10 * 3 * block
    nn.quantize(model, group_size=32, bits=4)
    assert model_shapes(model, TINY, layers=2, rank=4) == expected


def test_mixtures_of_experts_have_no_floor() -> None:
    assert model_shapes(tiny_model(), {**TINY, "num_local_experts": 8}) is None
