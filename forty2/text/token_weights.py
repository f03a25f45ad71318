"""Weights of supervised tokens, which a recipe gives by the tokens' spelling."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from forty2.errors import RecipeError
from forty2.text.tokenizer import Tokenizer

TokenWeights = Mapping[int, float]
"""Weights that are not 1, by token id."""
NO_WEIGHTS: TokenWeights = MappingProxyType({})
"""All tokens weigh 1."""


def weights_by_id(tokenizer: Tokenizer, weights: Mapping[str, float], where: str) -> TokenWeights:
    """Return weights by token id.

    Args:
        where: key or option that gives them, for messages.

    Raises:
        RecipeError: a text is not one token, or two texts are the same one.
    """
    vocabulary = tokenizer.get_vocab()
    found: dict[int, float] = {}
    for text, weight in weights.items():
        encoded = tokenizer.encode(text, add_special_tokens=False, verbose=False)
        ids = [vocabulary[text]] if text in vocabulary else list(encoded)
        if len(ids) != 1:
            raise RecipeError(
                f"{where}: {text!r} is {len(ids)} tokens of this model, not one; name one token, or "
                "add it to tags"
            )
        if ids[0] in found:
            raise RecipeError(
                f"{where}: {text!r} is a token that another spelling names already; remove one"
            )
        found[ids[0]] = weight
    return found
