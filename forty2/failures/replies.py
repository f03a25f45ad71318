"""Greedy replies of a model to the questions of a test set, in batches, resumable to the byte.

Rounding in a batch depends on which rows are in it, and a near tie between two tokens may go either
way. So that a stopped measurement ends with the same bytes as one that never stopped, questions are
answered in fixed groups: of a group that was not finished, all are answered again, in the same batches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from forty2.errors import DataError
from forty2.failures.folder import Item, StoredReply
from forty2.progress import Progress

if TYPE_CHECKING:
    from forty2.benchmark.partial_results import PartialResults
    from forty2.model.loading import LoadedModel

GROUP = 512
"""Questions answered together; a stopped command loses at most these."""
_KEY = "reply/"


def answer_items(
    loaded: LoadedModel,
    items: Sequence[Item],
    partial: PartialResults,
    *,
    max_tokens: int,
    batch_size: int,
    progress: Progress,
) -> dict[str, StoredReply | str]:
    """Answer every item that has no stored reply yet; each reply is stored when it is there.

    Items with the same system message are answered together, so that it runs through the model once.

    Returns:
        By id, in the order of the items: the reply; or the reason why there is none.
    """
    from forty2.inference.generation import generate_replies
    from forty2.text.encoder import Encoder

    encoder = Encoder(loaded.tokenizer)
    prompts, refused = dict[str, list[int]](), dict[str, str]()
    for item in items:
        try:
            ids = encoder.prompt(item.messages)
        except DataError as error:
            refused[item.id] = f"the chat template refuses the prompt: {error}"
            continue
        if len(ids) + max_tokens > loaded.row_limit.tokens:
            limit = f"the model's {loaded.row_limit.tokens:,} tokens"
            refused[item.id] = f"a prompt of {len(ids):,} tokens leaves too little of {limit}"
            continue
        prompts[item.id] = ids
    done = 0
    for group in _groups([item for item in items if item.id in prompts], prompts):
        if all(f"{_KEY}{key}" in partial for key in group):
            done += len(group)
            continue
        replies = generate_replies(
            loaded, [prompts[key] for key in group], max_tokens=max_tokens, batch_size=batch_size
        )
        for place, reply in replies:
            stored = {"reply": reply.text, "stopped": reply.stopped, "tokens": reply.tokens}
            partial.add(f"{_KEY}{group[place]}", stored)
            done += 1
            progress("replies", done, len(prompts), {})
    return {
        item.id: refused.get(item.id) or StoredReply(item.id, **partial[f"{_KEY}{item.id}"])
        for item in items
    }


def _groups(items: Sequence[Item], prompts: Mapping[str, list[int]]) -> Iterator[list[str]]:
    """Divide items into groups of the same system message, and the rarer messages' into mixed ones.

    Within a message, the longest prompts come first, so that those of one group are of similar length.
    """
    systems = {item.id: _system(item) for item in items}
    common = {text for text, times in Counter(systems.values()).items() if times >= GROUP}
    by_system: dict[str | None, list[str]] = {}
    for item in items:
        text = systems[item.id]
        by_system.setdefault(text if text in common else None, []).append(item.id)
    for key in sorted(by_system, key=lambda text: (text is not None, text or "")):
        order = sorted(by_system[key], key=lambda name: (-len(prompts[name]), name))
        yield from (order[start : start + GROUP] for start in range(0, len(order), GROUP))


def _system(item: Item) -> str:
    first = item.messages[0]
    return str(first.get("content")) if first["role"] == "system" else ""
