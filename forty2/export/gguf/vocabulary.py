"""A Hugging Face tokenizer as the metadata of a GGUF file.

llama.cpp has code of its own for every kind of tokenizer, and a file names the code to run. A file that
names the wrong code is read without a complaint, and the model then gets other tokens than it was
trained on. So what the file will say is compared with what the tokenizer does, and a tokenizer for
which llama.cpp has no code is refused.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from gguf import TokenType
from tokenizers import Tokenizer

from forty2.errors import ModelError
from forty2.export.gguf import byte_level, sentence_piece
from forty2.export.gguf.bpe import Bpe
from forty2.export.gguf.modelfile import TRIED
from forty2.files import JsonObject
from forty2.model.gguf.file import Scalar, Value
from forty2.model.gguf.tokenizer import ROLES

KNOWN_STOPS = frozenset(
    (
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "</s>"),
        *("<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<eos>"),
        *("<end_of_utterance>", "<turn|>", "<｜end▁of▁sentence｜>"),
    )
)
"""Tokens at which llama.cpp stops because of their spelling."""
_STRIPPED_BY_NAME = ("phi-3", "phi3")
"""Words in a model's name for which llama.cpp removes white space after control tokens."""
_NEVER_STRIPPED = {"<unk>", "<s>", "<|endoftext|>"}


class Vocabulary(NamedTuple):
    """A tokenizer's part of a GGUF file."""

    values: Mapping[str, Value]
    """Metadata by key."""
    kind: str
    """Kind of the tokenizer and its pre-tokenizer, for people."""
    tokens: int
    """Number of tokens, without those that fill up the embeddings."""
    stops: tuple[str, ...]
    """Tokens that end a reply."""
    stripped: bool
    """Whether the model's name must be one of Phi-3, for white space after control tokens."""
    notes: tuple[str, ...]
    """Differences of llama.cpp that a user should know."""


def export_vocabulary(tokenizer: Any, rows: int, stops: Sequence[int], where: str) -> Vocabulary:
    """Convert a tokenizer to metadata.

    Args:
        tokenizer: a fast tokenizer of transformers, or mlx-lm's wrapper of one.
        rows: rows of the embeddings; ids without a token get a name and are never used.
        stops: ids that end a reply, the end of a text first.
        where: name of the model, for messages.

    Raises:
        ModelError: llama.cpp has no code that does what the tokenizer does.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise ModelError(
            f"{where}: the tokenizer is none of tokenizer.json, so it cannot be exported"
        )
    parts = json.loads(backend.to_str())
    model = parts["model"]
    if model["type"] != "BPE":
        raise ModelError(
            f"{where}: the tokenizer is of type {model['type']}; only BPE can be exported"
        )
    added = {token["id"]: token for token in parts["added_tokens"]}
    tokens = _tokens(model["vocab"], added, rows, where)
    kinds = _kinds(tokens, added)
    family = sentence_piece if sentence_piece.is_one(parts) else byte_level
    part = family.describe(Bpe(backend, parts, tokens, kinds, _chats(tokenizer), where))
    first, last = _framing(tokenizer, where)
    stripped, notes = _stripped(added.values())
    eos, *others = stops
    others.sort(key=lambda stop: tokens[stop] in KNOWN_STOPS)
    ids = {
        "bos": tokenizer.bos_token_id,
        "eos": eos,
        "unk": tokenizer.unk_token_id,
        "pad": tokenizer.pad_token_id,
        **dict(zip(("eot", "eom"), others, strict=False)),
    }
    for stop in others[2:]:
        if tokens[stop] not in KNOWN_STOPS:
            notes.append(
                f"a GGUF file names three stop tokens; {tokens[stop]} is one more: give it to the app "
                "as a stop string"
            )
    types: list[Scalar] = [int(part.kinds.get(n, kind)) for n, kind in enumerate(kinds)]
    values: dict[str, Value] = {
        **part.values,
        "tokenizer.ggml.tokens": [
            t if t is not None else f"[PAD{n}]" for n, t in enumerate(tokens)
        ],
        "tokenizer.ggml.token_type": types,
        **{f"tokenizer.ggml.{ROLES[k]}_token_id": n for k, n in ids.items() if n is not None},
        "tokenizer.ggml.add_bos_token": first,
        "tokenizer.ggml.add_eos_token": last,
    }
    return Vocabulary(
        values,
        part.kind,
        len(tokens) - tokens.count(None),
        tuple(str(tokens[stop]) for stop in stops),
        stripped,
        (*part.notes, *notes),
    )


def _tokens(
    vocabulary: Mapping[str, int], added: Mapping[int, JsonObject], rows: int, where: str
) -> list[str | None]:
    """List every token by its id; None: the id has no token."""
    listed = {n: token for token, n in vocabulary.items()}
    listed |= {n: token["content"] for n, token in added.items()}
    if max(listed) >= rows:
        raise ModelError(
            f"{where}: the token {listed[max(listed)]!r} has the id {max(listed)}, but there are "
            f"embeddings for {rows}; resize them first"
        )
    if len(set(listed.values())) != len(listed):
        raise ModelError(
            f"{where}: the tokenizer has two ids for one token; llama.cpp refuses that"
        )
    return [listed.get(n) for n in range(rows)]


def _kinds(tokens: Sequence[str | None], added: Mapping[int, JsonObject]) -> list[TokenType]:
    kinds = [TokenType.UNUSED if token is None else TokenType.NORMAL for token in tokens]
    for n, token in added.items():
        kinds[n] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    return kinds


def _chats(tokenizer: Any) -> list[str]:
    """Write a few conversations by the chat template, if there is one that takes them."""
    chats = []
    for turns in TRIED:
        messages = [{"role": role, "content": content} for role, content in turns]
        with contextlib.suppress(Exception):  # a template may refuse turns, by errors of any type
            chats.append(
                tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            )
    return chats


def _framing(tokenizer: Any, where: str) -> tuple[bool, bool]:
    """Return whether every text begins with the BOS token, and whether it ends with the EOS token."""
    body = tokenizer.encode("a", add_special_tokens=False)
    whole = tokenizer.encode("a")
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for first, last in ((False, False), (True, False), (False, True), (True, True)):
        if whole == [bos] * first + body + [eos] * last:
            return first, last
    raise ModelError(
        f"{where}: the tokenizer adds other tokens to a text than BOS and EOS, which llama.cpp does not"
    )


def _stripped(added: Collection[JsonObject]) -> tuple[bool, list[str]]:
    """Look at the added tokens that take in white space or match only whole words.

    Returns:
        Whether they are those of Phi-3, which llama.cpp knows by the model's name; and else notes.
    """
    odd = [t for t in added if t["lstrip"] or t["rstrip"] or t["single_word"]]
    plain = {token["content"] for token in added if token not in odd}
    right = all(
        token["rstrip"] and not token["lstrip"] and not token["single_word"] for token in odd
    )
    needed = {"</s>", *_NEVER_STRIPPED}
    if odd and right and plain == _NEVER_STRIPPED and needed <= {t["content"] for t in added}:
        return True, []
    if not odd:
        return False, []
    names = ", ".join(token["content"] for token in odd[:3]) + (", …" if len(odd) > 3 else "")
    return False, [
        f"white space beside {names} is part of the token for the model's tokenizer, and text for "
        "llama.cpp"
    ]


def model_name(name: str, stripped: bool) -> str:
    """Return a model's name for which llama.cpp treats white space as the tokenizer does."""
    named = any(word in name.lower() for word in _STRIPPED_BY_NAME)
    if named and not stripped:
        return name.lower().replace("phi-3", "phi 3").replace("phi3", "phi 3")
    return f"{name} (phi-3)" if stripped and not named else name
