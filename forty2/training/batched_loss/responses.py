"""The base of losses of responses to prompts: batches, log-probabilities, the reference."""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from forty2.errors import TrainingError
from forty2.inference.logprobs import (
    NO_SHORTCUTS,
    PairArrays,
    PairBlockInput,
    Shortcuts,
    at_responses,
    at_tokens,
    pair_arrays,
    run_on_responses,
    target_logps,
)
from forty2.inference.padding import PairBatch
from forty2.model.phase_attention import recorded_order
from forty2.text.rows import AnyPair
from forty2.training.batched_loss.base import BatchedLoss
from forty2.training.batches import BOTH, Batch, pair_batch
from forty2.training.frozen_states import FrozenStates
from forty2.training.kl_divergence import supervised_logps_and_kl
from forty2.training.objectives.kl_term import KlTerm
from forty2.training.processes import ALONE, Group
from forty2.training.reference import TokenLogps
from forty2.training.reference_states import ReferenceStates

START_TOLERANCE = 0.1
"""Nats per token by which a 16-bit policy may differ from itself, computed in another order."""

KL_TERM = "kl_term"
"""Metric of a loss with a term λ·KL: the divergence before it is weighted, nats a token."""
TIE = 1e-5
"""Largest margin of rewards that is rounding."""


class KlPenalty(NamedTuple):
    """The term λ·KL of a loss."""

    term: KlTerm
    reference: ReferenceStates
    """States of the rows that come in a batch."""


class ResponseLogps(NamedTuple):
    """Log-probabilities of k responses to each of B prompts."""

    policy: mx.array
    """(kB, T), in nats, 0 where nothing is supervised."""
    reference: mx.array
    """(kB, T)"""
    mask: mx.array
    """Supervised tokens, (kB, T)."""
    kl: mx.array | None
    """Divergence of the term λ·KL, (kB,), nats a token; None: there is no such term."""
    order: mx.array | None
    """Mean order parameter of phase attention over each response, (kB,); None: there is none."""


class ResponseLoss(BatchedLoss):
    """A loss of responses to prompts, of which each row has two."""

    name: str
    """The loss's name in messages."""
    start_slack = 1.0
    """Factor by which the loss at the start magnifies rounding errors of the log-probabilities."""
    sides: Sequence[int] = BOTH
    """Which of a row's two responses the loss reads."""

    def __init__(
        self,
        rows: Sequence[AnyPair],
        reference: TokenLogps | None,
        shortcuts: Shortcuts = NO_SHORTCUTS,
        frozen: FrozenStates | None = None,
        kl: KlPenalty | None = None,
    ) -> None:
        """Take the rows of a phase, and what its loss compares them with.

        Args:
            reference: log-probabilities of the rows that come in a batch; None: the loss needs none.
            kl: the term λ·KL; None: the loss has none.
        """
        super().__init__(rows, shortcuts, frozen)
        self.rows, self.reference, self._kl = rows, reference, kl

    @abstractmethod
    def loss_at_start(self, batch: PairBatch) -> float:
        """Compute the mean loss while the policy is the reference."""

    @abstractmethod
    def pulls(self, index: int) -> tuple[float, ...]:
        """Return how strongly, and which way, the loss pulls each of a row's responses at the start."""

    def reaches_all(self, indices: Sequence[int]) -> bool:
        net: defaultdict[tuple[tuple[int, ...], ...], float] = defaultdict(float)
        for index in indices:
            row = self.rows[index]
            for side, pull in enumerate(self.pulls(index)):
                response = row.responses[side]
                if len(row.prompt) + len(response) > 2:
                    net[tuple(row.prompt), tuple(response)] += pull
        return any(net.values())

    def batch(self, indices: Sequence[int]) -> PairBatch:
        return self.batch_of_sides(indices, self.sides)

    def batch_of_sides(self, indices: Sequence[int], sides: Sequence[int]) -> PairBatch:
        """Pad some of these rows' responses into one batch."""
        return pair_batch([self.rows[i] for i in indices], indices, sides)

    def arrays(self, batch: Batch) -> list[mx.array]:
        assert isinstance(batch, PairBatch)
        return self.arrays_of_sides(batch, self.sides)

    def arrays_of_sides(self, batch: PairBatch, sides: Sequence[int]) -> list[mx.array]:
        """Convert a batch to the arrays that `logps` reads.

        Returns:
            The five of `PairArrays`, the mask (kB, T), the reference (kB, T), zero without one,
            the reference's states (kB, T, D) if there is a term λ·KL, and the stored states if there
            are any.
        """
        reference = np.zeros(batch.targets.shape, np.float32)
        if self.reference is not None:
            for n, index in enumerate(batch.rows):
                responses = np.split(self.reference[index], [len(self.rows[index].responses[0])])
                for k, side in enumerate(sides):
                    logps = responses[side]
                    reference[n + k * batch.weight, : len(logps)] = logps
        states = [self._kl.reference.of_pairs(batch, sides)] if self._kl is not None else []
        states += self._frozen.of_pairs(batch, sides) if self._frozen is not None else []
        return [*pair_arrays(batch), mx.array(batch.mask), mx.array(reference), *states]

    def step_arrays(
        self, model: nn.Module, batches: Iterable[Batch], group: Group, progress: float = 1.0
    ) -> list[mx.array]:
        return self.kl_weight(progress)

    def kl_weight(self, progress: float) -> list[mx.array]:
        """Return the weight of the term λ·KL at this share of the phase; []: there is no such term."""
        return [mx.array(self._kl.term.at(progress))] if self._kl is not None else []

    def logps(self, model: nn.Module, arrays: Sequence[mx.array]) -> ResponseLogps:
        """Compute the log-probabilities of response tokens.

        Args:
            arrays: from `arrays_of_sides`; `step_arrays` may follow.
        """
        pairs, (mask, reference), states = PairArrays(*arrays[:5]), arrays[5:7], [*arrays[7:]]
        of_reference = states.pop(0) if self._kl is not None else None
        block_input = (
            PairBlockInput(states[0], states[1], self._frozen.depth)
            if self._frozen is not None
            else None
        )
        with recorded_order(model) as orders:
            output = run_on_responses(model, pairs, self._shortcuts, block_input)
        order = self._mean_order(pairs, orders[-1], mask) if orders else None
        kl = None
        if of_reference is None:
            logps = target_logps(model, output, pairs.targets, pairs.where, self._shortcuts)
        else:
            assert self._kl is not None
            logps, kl = supervised_logps_and_kl(
                model, output, of_reference, pairs.targets, pairs.where, self._kl.term.kind
            )
            kl = at_tokens(pairs, kl).sum(axis=-1) / mask.sum(axis=-1)
        return ResponseLogps(at_tokens(pairs, logps), reference, mask, kl, order)

    def _mean_order(self, pairs: PairArrays, order: mx.array, mask: mx.array) -> mx.array:
        """Average the order parameter over each response: (kB, T), or of whole rows, to (kB,)."""
        if not self._shortcuts.shared_prompts:
            order = at_responses(pairs, order[..., None]).squeeze(-1)
        return mx.where(mask, order, 0.0).sum(axis=-1) / mask.sum(axis=-1)

    def check_start(self, model: nn.Module, batch: Batch, *, tolerance: float | None) -> None:
        """Refuse a reference that is not the policy: the loss must be the one at zero margin.

        Args:
            tolerance: largest relative error of the loss. None, for weights in 16 bits or fewer,
                whose rounding adds up over a response: then the tokens' log-probabilities are
                compared.

        Raises:
            TrainingError: the loss has another value (for DPO's sigmoid: not ln 2).
        """
        assert isinstance(batch, PairBatch)
        if tolerance is None:
            policy, reference, mask, *_ = self.logps(model, self.arrays_of_sides(batch, self.sides))
            difference = float(mx.abs(policy - reference).sum() / mask.sum())
            good = difference <= START_TOLERANCE
            found = f"tokens differ by {difference:.3f} nats from the reference"
        else:
            arrays = [*self.arrays(batch), *self.step_arrays(model, [batch], ALONE)]
            loss = float(self.loss(model, arrays).total) / batch.weight
            expected = self.loss_at_start(batch)
            good = abs(loss / expected - 1) <= tolerance * self.start_slack
            found = f"the {self.name} loss is {loss:.6f}, not {expected:.6f}"
        if not good:
            raise TrainingError(
                f"before the first step {found}: the stored reference is not this policy; delete "
                "the reference cache and start again"
            )


def won(margin: mx.array) -> mx.array:
    """Return 1 for a positive margin of rewards, 0 for a negative one, and 0.5 for a tie; same shape.

    So a policy that has not moved has an accuracy of one half.
    """
    return mx.where(mx.abs(margin) <= TIE, 0.5, (margin > 0).astype(mx.float32))


def kl_per_token(policy: mx.array, reference: mx.array, mask: mx.array) -> mx.array:
    """Estimate KL(policy‖reference) per token on the data's tokens, in nats: (kB, T) to (kB,).

    To second order, ½ E[(log ratio)²]: estimator k2 of Schulman 2020, "Approximating KL divergence".
    """
    squares = mx.where(mask, mx.square(policy - reference), 0.0).sum(axis=-1)
    return 0.5 * squares / mask.sum(axis=-1)
