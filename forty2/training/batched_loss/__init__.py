"""Losses over batches: a model and a batch in, a summed loss and summed metrics out.

One module for each kind of rows. The training step divides the sums by the batches' weight
(supervised tokens for conversations, or the sum of their weights; rows for the others), so that
accumulated batches weigh exactly as much as one large batch would.
"""

from __future__ import annotations

from collections.abc import Callable

from forty2.inference.logprobs import NO_SHORTCUTS, Shortcuts
from forty2.text.row_kinds import CONVERSATIONS, PAIRS, RATED, RowKind
from forty2.text.token_weights import NO_WEIGHTS, TokenWeights
from forty2.training.batched_loss.base import BatchedLoss, LossSums, micro_batches
from forty2.training.batched_loss.conversations import ConversationLoss
from forty2.training.batched_loss.pairs import PairLoss
from forty2.training.batched_loss.rated import RatedLoss
from forty2.training.batched_loss.responses import KlPenalty, ResponseLoss
from forty2.training.frozen_states import FrozenStates
from forty2.training.objectives.phase import Phase
from forty2.training.reference import TokenLogps
from forty2.training.stored_states import Rows

__all__ = [
    "BatchedLoss",
    "ConversationLoss",
    "KlPenalty",
    "LossSums",
    "PairLoss",
    "RatedLoss",
    "ResponseLoss",
    "batched_loss",
    "micro_batches",
]

_LOSSES: dict[RowKind, Callable[..., BatchedLoss]] = {
    CONVERSATIONS: ConversationLoss,
    PAIRS: PairLoss,
    RATED: RatedLoss,
}


def batched_loss(
    phase: Phase,
    rows: Rows,
    reference: TokenLogps | None,
    shortcuts: Shortcuts = NO_SHORTCUTS,
    frozen: FrozenStates | None = None,
    kl: KlPenalty | None = None,
    token_weights: TokenWeights = NO_WEIGHTS,
) -> BatchedLoss:
    """Make the loss of a phase over its rows.

    Args:
        rows: of the phase's `row_kind`.
        reference: log-probabilities of the rows that come in a batch; None where the phase needs
            none.
        shortcuts: optimisations that the model supports.
        frozen: stored states of the rows that come in a batch.
        kl: the term λ·KL; None: the loss has none.
        token_weights: weights of supervised tokens of conversations.
    """
    make = _LOSSES[phase.row_kind]
    if phase.row_kind is CONVERSATIONS:
        return make(rows, shortcuts, frozen, token_weights)
    return make(rows, reference, phase, shortcuts, frozen, kl)
