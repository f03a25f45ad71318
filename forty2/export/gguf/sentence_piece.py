"""BPE tokenizers in SentencePiece's manner, llama.cpp's `llama`: spaces as ▁, and bytes as a fallback.

Hugging Face's tokenizer merges pairs in the order of a list. llama.cpp has no such list: it joins any two
neighbours that together are a token, those of the token with the highest score first. The two agree if
every way of dividing a token into two tokens is in the list, and the ways of one token stand together:
then the place in the list is the score. The first is checked. Tokens whose ways are mingled get the same
score, and llama.cpp's merging is run on texts to see whether that is enough.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from gguf import TokenType
from tokenizers import Tokenizer

from forty2.errors import ModelError
from forty2.export.gguf.bpe import PROBE, WHOLE, Bpe, Part
from forty2.files import JsonObject
from forty2.model.gguf.file import Value

SPACE = "▁"
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_REPLACED = (({"String": " "}, SPACE), ({"Regex": rf"\A{SPACE}"}, SPACE * 2))
"""Replacements of normalizers that llama.cpp makes, too; transformers 5 converts Llama 2 by both."""
_LOWEST = -1e6
"""Score of a token that no merge makes."""
_MOST_RUNS = 200
"""Most tokens with equal scores that are tried in texts."""
_PREFIXED, _AS_GIVEN, _ONE_EACH = (1, 2), (0, 1), (1, 1)
"""Number of ▁ before the letter of "a" and of " a": llama.cpp's with a space before every text, and
without; and that of tokenizers which write a space unless there is one."""


def is_one(parts: JsonObject) -> bool:
    """Return whether a tokenizer writes spaces as ▁ and has tokens for bytes."""
    return bool(parts["model"].get("byte_fallback"))


def describe(tokenizer: Bpe) -> Part:
    """Find the scores of the tokens, and whether texts get a leading space.

    Raises:
        ModelError: llama.cpp would merge in another way.
    """
    backend, parts, tokens, kinds, chats, where = tokenizer
    model = parts["model"]
    _check_steps(parts, where)
    places = {token: n for n, token in enumerate(tokens) if token is not None}
    if lacking := [token for token in _BYTES if token not in places]:
        raise ModelError(f"{where}: the tokenizer lacks {lacking[0]}, which llama.cpp needs")
    special = {places[token]: TokenType.BYTE for token in _BYTES}
    if model.get("unk_token") in places:
        special[places[model["unk_token"]]] = TokenType.UNKNOWN
    scores = _scores(parts, tokens, [special.get(n, kind) for n, kind in enumerate(kinds)], where)
    _check_merging(backend, tokens, scores, where)
    special |= {n: kind for n, kind in enumerate(kinds) if kind in WHOLE}
    whole = [str(tokens[n]) for n in special if special[n] in WHOLE]
    bare, after = _leading_spaces(backend, tokens, whole)
    prefixed = _prefixed(after, chats, whole)
    if prefixed is None:
        raise ModelError(
            f"{where}: where the tokenizer writes a space before a text, llama.cpp writes none or two, so "
            "the model cannot be exported"
        )
    notes = []
    if bare != (_PREFIXED if prefixed else _AS_GIVEN):
        notes.append(
            "a text without a control token before it has a leading space more or less in llama.cpp than "
            "in the model's tokenizer; chats are the same"
        )
    values: dict[str, Value] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": [*scores],
        "tokenizer.ggml.add_space_prefix": prefixed,
    }
    return Part(values, "BPE as in SentencePiece", tuple(notes), special)


def _check_steps(parts: JsonObject, where: str) -> None:
    """Refuse normalizers and pre-tokenizers that do more than write spaces as ▁."""
    for key in ("normalizer", "pre_tokenizer"):
        step = parts.get(key)
        several = step.get("normalizers") or step.get("pretokenizers") if step else []
        for one in several or [step] * bool(step):
            kind, fine = one["type"], False
            if kind == "Prepend":
                fine = one["prepend"] == SPACE
            elif kind == "Replace":
                fine = (one["pattern"], one["content"]) in _REPLACED
            elif kind == "Metaspace":
                fine = one["replacement"] == SPACE and not one.get("split", True)
            elif kind == "Split":  # Gemma's, at spaces, of which the normalizer has left none
                fine = one["pattern"] == {"String": " "} and parts.get("normalizer") is not None
            if not fine:
                raise ModelError(
                    f"{where}: the tokenizer has the {key.replace('_', '-')} {kind}, which llama.cpp's "
                    "SentencePiece tokenizer does not"
                )


def _scores(
    parts: JsonObject, tokens: Sequence[str | None], kinds: Sequence[TokenType], where: str
) -> list[float]:
    """Return every token's score: minus the place of its first merge, so that the first is highest.

    Raises:
        ModelError: llama.cpp would merge two tokens that the tokenizer does not.
    """
    merges = [tuple(m.split(" ") if isinstance(m, str) else m) for m in parts["model"]["merges"]]
    known, listed = set(tokens), set(merges)
    for token, kind in zip(tokens, kinds, strict=True):
        if token is None or kind != TokenType.NORMAL or len(token) < 2:
            continue
        for left, right in ((token[:cut], token[cut:]) for cut in range(1, len(token))):
            if left in known and right in known and (left, right) not in listed:
                raise ModelError(
                    f"{where}: the tokenizer does not merge {left!r} and {right!r}, although {token!r} "
                    "is a token, so it is not SentencePiece's, and llama.cpp would merge in another way"
                )
    ends: dict[str, int] = {}
    starts: dict[str, int] = {}
    for place, pair in enumerate(merges):
        starts.setdefault("".join(pair), place)
        ends["".join(pair)] = place
    scores, group, end = {}, 0, -1
    for token, start in starts.items():  # in the order of their first merges
        if start > end:
            group = start
        end = max(end, ends[token])
        scores[token] = float(-group)
    return [scores.get(token or "", _LOWEST) for token in tokens]


def _check_merging(
    backend: Tokenizer,
    tokens: Sequence[str | None],
    scores: Sequence[float],
    where: str,
) -> None:
    """Refuse a tokenizer of which llama.cpp would merge a text into other tokens."""
    places = {token: n for n, token in enumerate(tokens) if token is not None}
    ranked = {token: scores[n] for token, n in places.items()}
    tied = Counter(scores)
    mingled = [t for t, n in places.items() if tied[scores[n]] > 1 and scores[n] > _LOWEST]
    runs = [f"x{token * times}x" for token in mingled[:_MOST_RUNS] for times in (1, 2, 3)]
    for text in (*PROBE.split("\n"), *(run.replace(SPACE, " ") for run in runs)):
        bare = text.strip(" ")
        shown = backend.encode(bare, add_special_tokens=False).tokens
        spaced = SPACE + bare if "".join(shown).startswith(SPACE) else bare
        symbols = merge_as_llama_cpp(spaced.replace(" ", SPACE), ranked)
        expected = [token for s in symbols for token in ([s] if s in places else _as_bytes(s))]
        if shown != expected:
            raise ModelError(
                f"{where}: llama.cpp would not cut {bare[:40]!r} into the tokens that the model's "
                "tokenizer does, so the model cannot be exported"
            )


def merge_as_llama_cpp(text: str, scores: Mapping[str, float]) -> list[str]:
    """Merge the characters of a text as llama.cpp does: the highest score first, then from the left."""
    symbols, following = list(text), [*range(1, len(text) + 1)]
    before = [*range(-1, len(text) - 1)]
    queue: list[tuple[float, int, int, str]] = []

    def consider(left: int, right: int) -> None:
        if left >= 0 and right < len(symbols):
            joint = symbols[left] + symbols[right]
            if joint in scores:
                heapq.heappush(queue, (-scores[joint], left, right, joint))

    for place in range(len(symbols) - 1):
        consider(place, place + 1)
    while queue:
        _, left, right, joint = heapq.heappop(queue)
        if not symbols[left] or not symbols[right] or symbols[left] + symbols[right] != joint:
            continue  # one of them has been merged since
        symbols[left], symbols[right] = joint, ""
        following[left] = following[right]
        if following[left] < len(symbols):
            before[following[left]] = left
        consider(before[left], left)
        consider(left, following[left])
    return [symbol for symbol in symbols if symbol]


def _as_bytes(symbol: str) -> list[str]:
    return [_BYTES[byte] for byte in symbol.encode()]


def _leading_spaces(
    backend: Tokenizer, tokens: Sequence[str | None], whole: Sequence[str]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Count the spaces before "a" and " a": at the beginning of a text, and after a control token."""
    control = whole[0] if whole else ""

    def spaces(text: str) -> int:
        ids = backend.encode(text, add_special_tokens=False).ids
        return "".join(str(tokens[n]) for n in ids).removeprefix(control).count(SPACE)

    bare = spaces("a"), spaces(" a")
    return bare, (spaces(f"{control}a"), spaces(f"{control} a")) if control else bare


def _prefixed(after: tuple[int, int], chats: Sequence[str], whole: Sequence[str]) -> bool | None:
    """Return whether llama.cpp should write a space before every text; None: neither is right.

    Args:
        after: spaces before "a" and " a" after a control token.
        chats: conversations as the chat template writes them.
        whole: tokens that are matched in the text as a whole.
    """
    if after == _ONE_EACH:  # right if all texts of a chat begin with a space, or none
        cut = re.compile("|".join(map(re.escape, sorted(whole, key=len, reverse=True))) or "(?!)")
        texts = [text for chat in chats for text in cut.split(chat) if text]
        spaced = {text.startswith(" ") for text in texts}
        return None if len(spaced) > 1 else spaced != {True}
    return {_PREFIXED: True, _AS_GIVEN: False}.get(after)
