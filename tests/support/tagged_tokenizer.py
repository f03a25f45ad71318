"""A tokenizer of bytes with tags as control tokens, and a chat template that writes them."""

from __future__ import annotations

from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CONTROL = ["<s>", "<end>", "<user>", "</user>", "<bot>", "</bot>", "<tool>", "</tool>"]
THINK = ["<think>", "</think>"]
TEMPLATE = (
    "<s>{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}<user>{{ m.content }}</user>"
    "{% else %}<bot>{{ m.content }}</bot><end>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)


def tokenizer() -> Any:
    """Bytes, tags as control tokens, and a pair of tags that are none."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*CONTROL, *THINK, *alphabet]
    bytewise = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    bytewise.add_special_tokens([AddedToken(word, special=True) for word in CONTROL])
    bytewise.add_tokens([AddedToken(word, special=False) for word in THINK])
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    bytewise.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", CONTROL.index("<s>"))]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bytewise, bos_token="<s>", eos_token="<end>", chat_template=TEMPLATE
    )
    return TokenizerWrapper(fast, eos_token_ids=[CONTROL.index("<end>")])


TOKENIZER = tokenizer()


def ids(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False))
