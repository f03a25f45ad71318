"""Inputs of a small run: a random model with a tokenizer, data, questions, and two recipes."""

from __future__ import annotations

import json
from pathlib import Path

from mlx_lm.models import llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
RECIPE = """
version: 1
name: chaos
model: {inputs}/model
max_length: 96
adapter: {{rank: 2, scale: 4.0, dropout: 0.1, layers: 2}}
phases:
  sft: {{objective: sft, data: {inputs}/sft.jsonl, valid: {inputs}/sft.jsonl, steps: 5, lr: 1.0e-2,
    batch_size: 3, save_every_steps: 2, eval_every_steps: 2, lint: false,
    eval_prompts: {inputs}/prompts.json}}
  dpo: {{objective: dpo, data: {inputs}/dpo.jsonl, valid: {inputs}/dpo.jsonl, steps: 5, lr: 1.0e-2,
    batch_size: 3, save_every_steps: 2, eval_every_steps: 1, lint: false, beta: 0.1,
    loss: sigmoid, kl: {{weight: 0.1}}, best: {{metric: loss, direction: min}}}}
fuse: {{out: fused}}
benchmark: {{tasks: [], held_out: false}}
"""
"""Two phases with everything that training offers."""
MEASURED = """
version: 1
name: measured
model: {inputs}/model
max_length: 96
adapter: {{rank: 2, layers: 2}}
phases:
  sft: {{objective: sft, data: {inputs}/sft.jsonl, steps: 1, lr: 1.0e-2, lint: false}}
fuse: {{out: fused, quantize: 8}}
benchmark: {{questions: {inputs}/questions.json, n: 2}}
"""
"""One step, then everything that is measured, fused and reported."""
RECIPES = {"recipe": RECIPE, "measured": MEASURED}


def make_inputs(folder: Path) -> Path:
    """Write the inputs of a small run into a folder, the same files every time but for the weights.

    Returns:
        The folder: model/, sft.jsonl, dpo.jsonl, prompts.json, questions.json, and the recipes.
    """
    (folder / "model").mkdir(parents=True)
    _write_data(folder)
    _write_model(folder / "model")
    for name, recipe in RECIPES.items():
        (folder / f"{name}.yaml").write_text(recipe.format(inputs=folder))
    return folder


def _write_data(folder: Path) -> None:
    chats, pairs = [], []
    for n in range(6):
        ask = {"role": "user", "content": f"Count to {n}, please."}
        say = " ".join(str(i) for i in range(n + 1))
        chats.append({"messages": [ask, {"role": "assistant", "content": say}]})
        pairs.append({"prompt": ask["content"], "chosen": say, "rejected": "No." + "!" * n})
    for name, rows in (("sft", chats), ("dpo", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = {f"count_{n}": pair["prompt"] for n, pair in enumerate(pairs)}
    expected = {f"count_{n}": pair["chosen"] for n, pair in enumerate(pairs)}
    (folder / "prompts.json").write_text(
        json.dumps({"prompts": asked, "expected_outputs": expected})
    )
    options = {"A number.": 1, "A dog.": 0}
    questions = [
        {"question": f"What is {n}?", "mc1_targets": options, "mc2_targets": options}
        for n in range(2)
    ]
    (folder / "questions.json").write_text(json.dumps(questions))


def _write_model(folder: Path) -> None:
    """Write a random model of three small blocks, and a tokenizer of one token for each byte."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        [],
        trainers.BpeTrainer(
            special_tokens=["<|im_start|>", "<|im_end|>"],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    config = {
        "model_type": "llama",
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 512,
        "eos_token_id": tokenizer.eos_token_id,
    }
    (folder / "config.json").write_text(json.dumps(config))
    model = llama.Model(llama.ModelArgs.from_dict(config))
    model.save_weights(str(folder / "model.safetensors"))
