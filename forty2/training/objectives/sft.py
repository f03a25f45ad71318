"""Supervised fine-tuning: imitate conversations and texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from forty2.text.encoder import Encoder, TrainOn
from forty2.text.row_kinds import CONVERSATIONS, RowKind
from forty2.training.objectives.phase import STRICT, Direction, Phase


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SftPhase(Phase):
    """Imitate conversations: cross-entropy on assistant turns."""

    row_kind: ClassVar[RowKind] = CONVERSATIONS
    needs_reference: ClassVar[bool] = False
    sorts_batches: ClassVar[bool] = True
    metrics: ClassVar[dict[str, Direction | None]] = {"loss": "min"}
    uninformed_loss: ClassVar[float] = 10.0  # nats a token: a guess among 22,000

    objective: Literal["sft"]
    train_on: TrainOn = "all"
    """Assistant turns of a conversation that are learned: all (but those marked `train: false`), or
    the last alone."""
    token_weights: dict[str, Annotated[float, Field(gt=0, le=100)]] = Field(default_factory=dict)
    """Weights of supervised tokens in the loss, by token, e.g. {</myPT_assistant>: 2, <myPT_eot>: 2}; all
    others have 1. The loss is the weighted mean over all supervised tokens of a step."""

    @property
    def supervision_weights(self) -> Mapping[str, float]:
        return self.token_weights

    def encoder(self, encoder: Encoder) -> Encoder:
        return encoder.training_on(self.train_on)
