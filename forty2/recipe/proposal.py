"""A first recipe for data of one's own: settings chosen from counts, lengths and memory, with reasons."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from forty2.recipe.document import yaml_type

BY_INIT = "# Written by forty2 init"
"""Beginning of a recipe that `forty2 init` wrote."""
_OBJECTIVES = {"chats": "sft", "pairs": "dpo", "thumbs": "kto"}
_FEW, _MANY = 500, 5000
"""Training rows below which a set is small, and above which it is large."""
_LR = {"sft": "2.0e-4", "dpo": "2.0e-5", "kto": "2.0e-5"}
_STEPS = {"sft": 100, "dpo": 30, "kto": 30}
"""Steps that a small set should come to, and the most passes that may take: fewer steps change little,
more passes are learned by heart."""
_MOST_PASSES = 10
_LONGEST = 2048
"""Largest `max_length` proposed, in tokens."""
_STEP_OF_LENGTH = 64
_SMALL_MACHINE = 16e9
"""Bytes of memory below which one row in a batch is expensive."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """Rows of one kind, counted."""

    kind: str
    """chats, pairs or thumbs."""
    training: int
    held_out: int
    median: int
    """Tokens of the median row."""
    longest: int
    """Tokens of the longest sequence."""

    @property
    def objective(self) -> str:
        return _OBJECTIVES[self.kind]


@dataclass(frozen=True, kw_only=True)
class Situation:
    """Data, model and machine for which a recipe is proposed."""

    name: str
    model: str
    """As the recipe names it."""
    sources: Sequence[str]
    """Names of the files that the rows come from."""
    materials: Sequence[Material]
    counted: bool
    """True if the model's tokenizer counted the tokens; else they are estimated from characters."""
    blocks: int | None
    """Transformer blocks of the model; None: not known."""
    memory_bytes: int
    eval_prompts: int
    """Number of eval prompts proposed."""
    checkpoint_reason: str | None = None
    """Why blocks must be computed again to save memory; None: they need not."""

    @property
    def longest(self) -> int:
        return max(material.longest for material in self.materials)

    @property
    def max_length(self) -> int:
        """Longest row, a multiple of 64, between 128 and 2,048."""
        rounded = -(-self.longest // _STEP_OF_LENGTH) * _STEP_OF_LENGTH
        return min(max(rounded, 2 * _STEP_OF_LENGTH), _LONGEST)


def propose(situation: Situation) -> str:
    """Write a recipe as commented YAML: phases in the order SFT, DPO, KTO of the kinds that are there."""
    lines = [
        f"{BY_INIT} from {', '.join(map(_on_one_line, situation.sources))}. Every value may be changed; all keys:",
        "# forty2 recipe keys. Paths are relative to this file.",
        "version: 1",
        f"name: {_quoted(situation.name)}",
        f"model: {_quoted(situation.model)}",
        f"max_length: {situation.max_length}  # {_why_length(situation)}",
        *_adapter(situation),
        "phases:",
    ]
    for material in situation.materials:
        lines += _phase(material, situation)
    lines += [
        "fuse: {}  # one model without an adapter, in fused_models/",
        "benchmark:  # beside the held-out rows; plain facts and neutral text show what training cost",
        "  tasks: []  # none; add truthfulqa, or {task: mmlu, data: DIR}",
    ]
    return "\n".join(lines) + "\n"


def _adapter(situation: Situation) -> list[str]:
    rows = sum(material.training for material in situation.materials)
    rank = 8 if rows < _FEW else 16
    many = "few rows need few parameters" if rank == 8 else "enough rows for more parameters"
    lines = [
        "adapter:",
        f"  rank: {rank}  # {rows:,} training rows: {many}",
        "  scale: 2.0  # alpha / rank, the usual value",
    ]
    if situation.blocks is not None:
        layers = min(situation.blocks, 16)
        all_of = "all" if layers == situation.blocks else f"the last of {situation.blocks}"
        lines.append(f"  layers: {layers}  # {all_of} blocks; fewer are faster")
    return lines


def _phase(material: Material, situation: Situation) -> list[str]:
    objective, rows = material.objective, material.training
    batch, why_batch = _batch(material, situation)
    epochs = _epochs(objective, rows, batch)
    steps = -(-rows // batch) * epochs
    passes = f"{epochs} times" if epochs > 1 else "once"
    first = situation.materials[0] is material
    lines = [
        f"  {objective}:  # {_purpose(material, first)}",
        f"    objective: {objective}",
        f"    data: data/{material.kind}.train.jsonl  # {rows:,} rows",
        f"    valid: data/{material.kind}.held_out.jsonl  # {material.held_out:,} rows, never trained on",
        f"    epochs: {epochs}  # {rows:,} rows are "
        f"{'few' if rows < _FEW else 'enough' if rows < _MANY else 'many'}: each is seen {passes}, "
        f"about {steps:,} steps",
        f"    batch_size: {batch}  # {why_batch}",
        f"    lr: {_LR[objective]}  # {_why_lr(objective)}",
        f"    warmup_steps: {min(steps, max(1, steps // 10))}  # a tenth of the steps, against a rough start",
    ]
    if objective != "sft":
        lines.append("    beta: 0.1  # the usual pull towards the model before this phase")
    if objective == "dpo":
        lines.append(
            "    sft_weight: 1.0  # imitates the better answers, too: else both become less likely"
        )
    if situation.eval_prompts:
        lines.append(
            f"    eval_prompts: eval_prompts.json  # {situation.eval_prompts} held-out prompts, answered "
            "at every evaluation"
        )
    lines += [
        f"    eval_every_steps: {max(1, steps // 5)}  # a fifth of the steps; a number, so that the phase can "
        "go on to more",
        "    best: {metric: loss, direction: min}  # keep the step that is best on held-out rows",
    ]
    if situation.checkpoint_reason is not None:
        lines.append(f"    grad_checkpoint: true  # {situation.checkpoint_reason}")
    return lines


def _epochs(objective: str, rows: int, batch: int) -> int:
    usual = 3 if rows < _FEW else 2 if rows < _MANY else 1
    enough = round(_STEPS[objective] * batch / rows)
    return max(usual, min(enough, _MOST_PASSES))


def _batch(material: Material, situation: Situation) -> tuple[int, str]:
    small = situation.memory_bytes < _SMALL_MACHINE and material.median > 256
    if material.training < 200:
        return 4, "a small batch, so that few rows still make enough steps"
    if small or material.median > 512:
        return 4, f"rows of {material.median:,} tokens are long for this machine's memory"
    return 8, f"rows are short ({material.median:,} tokens) and there are enough of them"


def _purpose(material: Material, first: bool) -> str:
    if material.kind == "chats":
        return "imitates your conversations"
    after = "" if first else ", from the model that the phase before made"
    verdicts = "pairs" if material.kind == "pairs" else "thumbs"
    return f"prefers the better answers of your {verdicts}{after}"


def _why_lr(objective: str) -> str:
    if objective == "sft":
        return "usual for LoRA; if the model forgets what it knew, halve it"
    return "less than imitation takes: preferences distort a model sooner"


def _on_one_line(name: str) -> str:
    return name if name.isprintable() else ascii(name)


def _why_length(situation: Situation) -> str:
    unit = "tokens" if situation.counted else "tokens, estimated from characters"
    if situation.longest > situation.max_length:
        return (
            f"the longest row has {situation.longest:,} {unit}; longer prompts lose their beginning, and "
            "rows whose answer does not fit are dropped"
        )
    return f"the longest row has {situation.longest:,} {unit}"


def _quoted(text: str) -> str:
    """Write a text as YAML, in quotes where it would be read as something else."""
    plain = re.fullmatch(r"[A-Za-z0-9/~][\w./-]*", text, re.ASCII) and yaml_type(text) == "str"
    return text if plain else json.dumps(text)
