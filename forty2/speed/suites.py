"""What is measured: who does it, and on which rows.

Rows are real text of seeded lengths, as token ids, so that every trainer sees the same ones
whatever its own tokenising would make of them.
"""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from forty2.benchmark.tasks.truthfulqa import PRIMER
from forty2.benchmark.truthfulqa_questions import Question, load_questions, sample
from forty2.data.library import neutral_texts
from forty2.data.library import rows as library
from forty2.model.loading import load_tokenizer
from forty2.speed.operation_count import NOTHING, Work, chat, shared

BATCH = 4
LONGEST = 4096
"""Tokens in a part of a row; text begins again where there is too little."""
_DPO = {
    "mlx-lm-lora": "mlx_lm_lora_dpo",
    "mlx-optiq": "optiq_dpo",
    "unsloth": "unsloth_train",
}


class Suite(NamedTuple):
    """Something that ours and peers can do."""

    ours: str
    """The worker."""
    peers: dict[str, str]
    """Their workers."""
    shape: tuple[int, int, int] | None = None
    """Of pairs: tokens of prompt, chosen and rejected, each a quarter more or less."""
    unit: str = "batch"


SUITES = {
    "dpo-short": Suite("ours_dpo", _DPO, (64, 48, 48)),
    "dpo-long": Suite("ours_dpo", _DPO, (384, 64, 64)),
    "sft-tail": Suite("ours_sft", {"mlx-lm": "mlx_lm_sft", "unsloth": "unsloth_train"}),
    "truthfulqa": Suite("ours_truthfulqa", {"mlx-lm": "mlx_lm_truthfulqa"}, unit="question"),
    "vocabulary": Suite("ours_dpo", {"mlx-lm-lora": "mlx_lm_lora_dpo"}, (64, 48, 48)),
}
LARGE_VOCABULARY = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 200_064,
    "tie_word_embeddings": True,
}
"""A model that is nearly all vocabulary, of the size of Phi-4's."""


class Rows(NamedTuple):
    """What a suite has done to it."""

    rows: list[Any]
    tokens: int
    """Each counted once."""
    work: Work
    source: str = "the package's own texts"


def compose(name: str, count: int, model: Path) -> Rows:
    """A suite's rows, so many, the same every time."""
    if name == "truthfulqa":
        return questions(count, model)
    shape = SUITES[name].shape
    stream = noise(model) if name == "vocabulary" else prose(model)
    return chats(count, stream, name) if shape is None else pairs(count, shape, stream, name)


def pairs(
    count: int, shape: Sequence[int], stream: Sequence[int], seed: str, spread: float = 0.25
) -> Rows:
    """[prompt, chosen, rejected], each of so many tokens, by a share more or less."""
    generator = random.Random(seed)
    rows = [
        [_some(stream, n * generator.uniform(1 - spread, 1 + spread), generator) for n in shape]
        for _ in range(count)
    ]
    work = [shared(len(prompt), [len(c), len(r)]) for prompt, c, r in rows]
    return Rows(rows, sum(len(part) for row in rows for part in row), sum(work, NOTHING))


def chats(count: int, stream: Sequence[int], seed: str) -> Rows:
    """[ids, first supervised], most of them short, with a long tail to 500 tokens."""
    generator = random.Random(seed)
    lengths = [min(500.0, 40 * math.exp(generator.expovariate(1.0))) for _ in range(count)]
    every = [_some(stream, length, generator) for length in lengths]
    rows = [[ids, len(ids) // 3] for ids in every]
    work = [chat(len(ids), len(ids) // 3) for ids in every]
    return Rows(rows, sum(map(len, every)), sum(work, NOTHING))


def questions(count: int, model: Path) -> Rows:
    """Of TruthfulQA: from `FORTY2_BENCH_DATA`, else the hub, else our probe, as its source says."""
    folder = os.environ.get("FORTY2_BENCH_DATA")
    source = Path(folder) / "truthfulqa" / "mc_task_v0_817.json" if folder else None
    every = load_questions(source)
    chosen = sample(every, min(count, len(every.items)), seed=42)

    def length(text: str) -> int:
        return len(encode(text))

    encode = load_tokenizer(str(model)).encode
    primer = length(PRIMER)
    rows, work, tokens = [], shared(primer + 1, []), 0
    for item in chosen.items:
        context = f"{PRIMER}Q: {item.question}\nA:"
        options = [length(f" {text}") for text in _options(item)]
        asked = length(context)
        work += shared(asked, options, known=primer)
        tokens += asked - primer + sum(options)
        mc1, mc2 = item.mc1.choices, item.mc2.choices
        rows.append({"question": item.question, "context": context, "mc1": mc1, "mc2": mc2})
    return Rows(rows, tokens, work, every.name)


def prose(model: Path) -> list[int]:
    """English text, as the model's tokens."""
    encode = load_tokenizer(str(model)).encode
    texts = [*neutral_texts().values(), *(t for row in library("myths_a") for t in row["true"])]
    return [i for text in texts for i in encode(f" {text}")]


def noise(model: Path) -> list[int]:
    """Any of the model's tokens."""
    size = json.loads((model / "config.json").read_text())["vocab_size"]
    return random.Random(size).choices(range(size), k=2 * LONGEST)


def large_vocabulary(folder: Path) -> Path:
    """Write a random model of `LARGE_VOCABULARY`."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.models.llama import Model, ModelArgs

    mx.random.seed(0)
    model = Model(ModelArgs.from_dict(LARGE_VOCABULARY))
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LARGE_VOCABULARY))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    return folder


def _options(item: Question) -> list[str]:
    """MC1's are mostly among MC2's."""
    return list(dict.fromkeys((*item.mc1.choices, *item.mc2.choices)))


def _some(stream: Sequence[int], length: float, generator: random.Random) -> list[int]:
    """So many tokens in a row, from anywhere."""
    start = generator.randrange(len(stream) - LONGEST)
    return list(stream[start : start + max(2, round(length))])
