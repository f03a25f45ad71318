"""A model in parts computes what the whole model does, and is left as it was."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from support.models import ARCHITECTURES, tiny_model

from forty2.model.surgery import (
    BlockInput,
    blocks,
    body,
    can_split,
    compute_block_input,
    evaluating,
    frozen_depth,
    has_tied_head,
    head,
    scores_agree,
    trained_outside_blocks,
)

IDS = mx.array([[5, 7, 200, 31, 9, 120], [64, 3, 8, 250, 17, 2]])


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lower_blocks_upper_blocks_and_head_are_the_whole_model(
    architecture: str, depth: int
) -> None:
    model = tiny_model(architecture)
    before = list(blocks(model))
    whole = np.asarray(model(IDS))
    block_input = BlockInput(compute_block_input(model, IDS, depth), depth)
    for states in (body(model, IDS), body(model, IDS, block_input=block_input)):
        np.testing.assert_allclose(np.asarray(head(model, states)), whole, atol=1e-5)
    assert can_split(model)
    assert all(one is other for one, other in zip(blocks(model), before, strict=True))
    np.testing.assert_array_equal(np.asarray(model(IDS)), whole)


def test_a_model_is_left_as_it_was_when_a_block_fails() -> None:
    model = tiny_model()
    before = list(blocks(model))
    with pytest.raises(ValueError):
        compute_block_input(model, mx.zeros((1, 2, 3, 4), mx.int32), 1)
    assert all(one is other for one, other in zip(blocks(model), before, strict=True))


def test_a_model_that_reads_an_outer_block_again_cannot_be_split() -> None:
    """Its upper blocks do not start from the states at their entry alone."""
    model = tiny_model(num_hidden_layers=4)
    assert can_split(model)

    class Residual(type(model.model)):  # type: ignore[misc]
        def __call__(self, ids: mx.array, *_: object, cache: object = None) -> mx.array:
            outputs = [self.embed_tokens(ids)]
            for block in self.layers:
                outputs.append(block(outputs[-1], "causal"))
            states: mx.array = self.norm(outputs[-1] + outputs[1])
            return states

    model.model.__class__ = Residual
    assert not can_split(model)


def test_the_body_is_found_among_other_parts() -> None:
    model = tiny_model()
    inner = dict.pop(model, "model")
    model.adapters = [nn.Linear(2, 2)]
    model.model = inner
    assert [*model].index("adapters") < [*model].index("model")
    assert can_split(model)


def test_scores_agree_within_the_rounding_of_their_precision() -> None:
    model = tiny_model()
    scores = mx.random.normal((2, 5, 40), key=mx.random.key(3))
    off = mx.random.normal(scores.shape, key=mx.random.key(4))
    assert scores_agree(model, scores * 1.01, scores)
    assert not scores_agree(model, scores * 1.1, scores)
    model.set_dtype(mx.bfloat16)
    for size in (0.1, 10.0):
        assert scores_agree(model, size * (scores + 0.05 * off), size * scores)
        assert not scores_agree(model, size * (scores + 0.2 * off), size * scores)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "nested"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_is_told_from_one_of_its_own(architecture: str, tied: bool) -> None:
    assert has_tied_head(tiny_model(architecture, tie_word_embeddings=tied)) == tied


def test_a_block_as_wide_as_the_vocabulary_is_no_head() -> None:
    assert has_tied_head(tiny_model(tie_word_embeddings=True, intermediate_size=300))


def test_blocks_without_trainable_parameters_are_frozen() -> None:
    model = tiny_model()
    assert frozen_depth(model) == 0
    model.freeze()
    assert frozen_depth(model) == 3
    blocks(model)[2].unfreeze()
    assert frozen_depth(model) == 2


def test_no_block_is_frozen_where_something_outside_the_blocks_is_trained() -> None:
    model = tiny_model(tie_word_embeddings=False)
    for part in (model.model.embed_tokens, model.lm_head, model.model.norm):
        model.freeze()
        blocks(model)[2].unfreeze()
        assert not trained_outside_blocks(model) and frozen_depth(model) == 2
        part.unfreeze()
        assert trained_outside_blocks(model) and frozen_depth(model) == 0


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_switches_training_off_and_back(training: bool) -> None:
    model = tiny_model()
    model.train(training)
    with pytest.raises(KeyError), evaluating(model):
        assert not model.training
        raise KeyError
    assert model.training is training


@pytest.mark.parametrize("restored", [True, False])
def test_evaluating_restores_the_random_state_where_it_is_told_to(restored: bool) -> None:
    model = tiny_model()
    mx.random.seed(7)
    expected = mx.random.uniform(shape=(4,)).tolist()
    mx.random.seed(7)
    with evaluating(model, restore_random=restored):
        mx.eval(mx.random.uniform(shape=(3,)))
    assert (mx.random.uniform(shape=(4,)).tolist() == expected) is restored
