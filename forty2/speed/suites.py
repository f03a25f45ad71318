"""Suites: the work to measure, the workers that do it, and its rows.

Rows are real text of seeded lengths, as token ids, so that every trainer sees the same ids, however
it would tokenize the text.
"""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from forty2.benchmark.tasks.truthfulqa import PRIMER
from forty2.benchmark.truthfulqa_questions import Question, load_questions, sample
from forty2.data.library import neutral_texts
from forty2.data.library import rows as library_rows
from forty2.model.loading import load_tokenizer
from forty2.speed.operation_count import (
    NO_WORK,
    Shapes,
    Work,
    conversation_work,
    dpo_operations,
    responses_work,
    scoring_operations,
    sft_operations,
)
from forty2.speed.workers.__main__ import Inputs, ScoredQuestion

BATCH_SIZE = 4
"""Rows of a batch, the same for every trainer."""
LONGEST = 4096
"""Largest number of tokens in one part of a row."""
_DPO = {
    "mlx-lm-lora": "mlx_lm_lora_dpo",
    "mlx-optiq": "optiq_dpo",
    "unsloth": "unsloth_train",
}


@dataclass(frozen=True)
class Suite:
    """Work that forty2 and other trainers can do."""

    ours: str
    """Name of our worker."""
    peers: Mapping[str, str]
    """The workers of other trainers, by the trainer's name in `PEERS`."""
    count_operations: Callable[[Shapes, Work], int]
    pair_lengths: tuple[int, int, int] | None = None
    """Tokens of prompt, chosen and rejected response; each varies by a quarter. None: no pairs."""
    unit: str = "batch"


SUITES = {
    "dpo-short": Suite("ours_dpo", _DPO, dpo_operations, (64, 48, 48)),
    "dpo-long": Suite("ours_dpo", _DPO, dpo_operations, (384, 64, 64)),
    "sft-tail": Suite(
        "ours_sft", {"mlx-lm": "mlx_lm_sft", "unsloth": "unsloth_train"}, sft_operations
    ),
    "truthfulqa": Suite(
        "ours_truthfulqa", {"mlx-lm": "mlx_lm_truthfulqa"}, scoring_operations, unit="question"
    ),
    "vocabulary": Suite(
        "ours_dpo", {"mlx-lm-lora": "mlx_lm_lora_dpo"}, dpo_operations, (64, 48, 48)
    ),
}
WIDTH, INNER_WIDTH, BLOCKS, HEADS, KEY_VALUE_HEADS, VOCABULARY = 64, 192, 4, 4, 2, 200_064
LARGE_VOCABULARY = {
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": INNER_WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEY_VALUE_HEADS,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": True,
}
"""Configuration of a model that is nearly all vocabulary; the vocabulary is as large as Phi-4's."""


@dataclass(frozen=True)
class Rows:
    """A suite's rows and their size."""

    inputs: Inputs
    count: int
    tokens: int
    """Tokens in the rows, each counted once."""
    work: Work
    source: str = "the package's own texts"


def compose_rows(name: str, count: int, model: Path) -> Rows:
    """Compose a suite's rows, the same every time."""
    if name == "truthfulqa":
        return sample_questions(count, model)
    lengths = SUITES[name].pair_lengths
    tokens = random_tokens(model) if name == "vocabulary" else english_tokens(model)
    if lengths is None:
        return compose_chats(count, tokens, name)
    return compose_pairs(count, lengths, tokens, name)


def compose_pairs(
    count: int, lengths: Sequence[int], tokens: Sequence[int], seed: str, *, spread: float = 0.25
) -> Rows:
    """Compose preference pairs.

    Args:
        lengths: tokens of prompt, chosen and rejected response, on average.
        tokens: token ids of the text to cut them from.
        spread: largest share by which a length varies.
    """
    generator = random.Random(seed)
    pairs = [
        [
            _excerpt(tokens, n * generator.uniform(1 - spread, 1 + spread), generator)
            for n in lengths
        ]
        for _ in range(count)
    ]
    work = [responses_work(len(prompt), [len(c), len(r)]) for prompt, c, r in pairs]
    size = sum(len(part) for pair in pairs for part in pair)
    return Rows(Inputs(pairs=pairs), count, size, sum(work, NO_WORK))


def compose_chats(count: int, tokens: Sequence[int], seed: str) -> Rows:
    """Compose conversations, most of them short, with a long tail to 500 tokens."""
    generator = random.Random(seed)
    lengths = [min(500.0, 40 * math.exp(generator.expovariate(1.0))) for _ in range(count)]
    texts = [_excerpt(tokens, length, generator) for length in lengths]
    chats = [(ids, len(ids) // 3) for ids in texts]
    work = [conversation_work(len(ids), start) for ids, start in chats]
    return Rows(Inputs(chats=chats), count, sum(map(len, texts)), sum(work, NO_WORK))


def sample_questions(count: int, model: Path) -> Rows:
    """Sample questions of TruthfulQA.

    They come from `FORTY2_BENCH_DATA`, else from the hub, else from our own probe; `source` of the
    rows says which.
    """
    folder = os.environ.get("FORTY2_BENCH_DATA")
    source = Path(folder) / "truthfulqa" / "mc_task_v0_817.json" if folder else None
    available = load_questions(source)
    sampled = sample(available, min(count, len(available.items)), seed=42)
    encode = load_tokenizer(str(model)).encode

    def length(text: str) -> int:
        return len(encode(text))

    primer = length(PRIMER)
    questions: list[ScoredQuestion] = []
    work, tokens = responses_work(primer + 1, []), 0
    for item in sampled.items:
        context = f"{PRIMER}Q: {item.question}\nA:"
        options = [length(f" {text}") for text in _distinct_options(item)]
        context_length = length(context)
        work += responses_work(context_length, options, cached=primer)
        tokens += context_length - primer + sum(options)
        mc1, mc2 = list(item.mc1.choices), list(item.mc2.choices)
        questions.append({"question": item.question, "context": context, "mc1": mc1, "mc2": mc2})
    return Rows(Inputs(questions=questions), len(questions), tokens, work, available.name)


def english_tokens(model: Path) -> list[int]:
    """Encode the package's English text with a model's tokenizer."""
    encode = load_tokenizer(str(model)).encode
    texts = [*neutral_texts().values(), *(t for r in library_rows("myths_a") for t in r["true"])]
    return [i for text in texts for i in encode(f" {text}")]


def random_tokens(model: Path) -> list[int]:
    """Draw tokens from a model's whole vocabulary."""
    size = json.loads((model / "config.json").read_text())["vocab_size"]
    return random.Random(size).choices(range(size), k=2 * LONGEST)


def write_large_vocabulary_model(folder: Path) -> Path:
    """Write a model of `LARGE_VOCABULARY` with random weights.

    Its tokenizer names the rows by their numbers: rows for the model are drawn as ids.
    """
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LARGE_VOCABULARY))
    names = {f"<{row}>": row for row in range(VOCABULARY)}
    words = Tokenizer(models.WordLevel(names, unk_token="<0>"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<0>").save_pretrained(folder)
    mx.random.seed(0)
    weights = {
        name: mx.random.normal(shape) / math.sqrt(WIDTH) if len(shape) > 1 else mx.ones(shape)
        for name, shape in _large_vocabulary_weights()
    }
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    return folder


def _large_vocabulary_weights() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and the shape of each weight, as in Llama's checkpoints."""
    key_value_width = WIDTH * KEY_VALUE_HEADS // HEADS
    yield "model.embed_tokens.weight", (VOCABULARY, WIDTH)
    yield "model.norm.weight", (WIDTH,)
    for block in range(BLOCKS):
        for name, shape in {
            "input_layernorm": (WIDTH,),
            "post_attention_layernorm": (WIDTH,),
            "self_attn.q_proj": (WIDTH, WIDTH),
            "self_attn.k_proj": (key_value_width, WIDTH),
            "self_attn.v_proj": (key_value_width, WIDTH),
            "self_attn.o_proj": (WIDTH, WIDTH),
            "mlp.gate_proj": (INNER_WIDTH, WIDTH),
            "mlp.up_proj": (INNER_WIDTH, WIDTH),
            "mlp.down_proj": (WIDTH, INNER_WIDTH),
        }.items():
            yield f"model.layers.{block}.{name}.weight", shape


def _distinct_options(item: Question) -> list[str]:
    """List the options of MC1 and MC2 once each: most of MC1's are among MC2's."""
    return list(dict.fromkeys((*item.mc1.choices, *item.mc2.choices)))


def _excerpt(tokens: Sequence[int], length: float, generator: random.Random) -> list[int]:
    """Cut an excerpt of a length from a random place."""
    start = generator.randrange(len(tokens) - LONGEST)
    return list(tokens[start : start + max(2, round(length))])
