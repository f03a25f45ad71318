"""Align a model on files of your own, and ask the result a question."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import forty2
from forty2.runs.new_recipe import Files, start


def main(
    chats: str = "chats.json",
    pairs: str = "pairs.jsonl",
    model: str = "smollm2",
    overrides: Sequence[str] = (),
) -> forty2.RunResult:
    started = start(Path("shop"), Files(chats=(chats,), pairs=(pairs,)), model=model)
    for note in started.notes:
        print("note:", note)

    recipe = forty2.load_recipe("shop", overrides)
    print(forty2.plan(recipe))
    result = forty2.run(recipe)
    print(result)

    question = "Can I come on the weekend?"
    print("before:", forty2.generate(model, question, max_tokens=64))
    print("after: ", forty2.generate(result.path, question, max_tokens=64))
    return result


if __name__ == "__main__":
    main()
