"""Chat templates and tokenizers that carry them."""

from __future__ import annotations

import copy
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper

from forty2.model.loading import LoadedModel

BRACKETS = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ ' ' + m['content'] + '<|endoftext|>' }}{% else %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% endif %}{% endfor %}"
)
"""Like Mistral's: no header before the answer, a space around it, and </s> to end the turn."""
FORGETS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and not loop.last %}"
    "{{ m['content'].split('</think>')[-1] }}{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Like Qwen3's: drops the thinking of earlier turns, so that earlier text changes with each turn."""


def with_template(loaded: LoadedModel, template: str | None, eos: str = "<|im_end|>") -> Any:
    """Return a copy of a model's tokenizer with another chat template and end-of-text token."""
    whole = loaded.tokenizer._tokenizer
    vocabulary = whole._tokenizer  # shared: it takes most of the time, and neither change is in it
    inner = copy.deepcopy(whole, {id(vocabulary): vocabulary})
    inner.chat_template = template
    inner.eos_token = eos
    return TokenizerWrapper(inner, eos_token_ids=[inner.convert_tokens_to_ids(eos)])
