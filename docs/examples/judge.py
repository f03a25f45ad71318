"""Have a judge model on a server of yours compare a run's replies with those of its base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import forty2
from forty2.benchmark.judge import format_judged, judge
from forty2.inference.chat_endpoint import ChatEndpoint

PROMPTS = [
    "Can I come on the weekend?",
    "Do you repair e-bikes?",
    "What does a new chain cost?",
]


def replies(model: str | Path) -> dict[str, Any]:
    """Answer the prompts, in the form in which a judge reads them."""
    answers = forty2.generate(model, PROMPTS, max_tokens=64)
    asked = enumerate(zip(PROMPTS, answers, strict=True))
    return {"items": [{"id": n, "prompt": p, "answer": reply.text} for n, (p, reply) in asked]}


def main(
    base: str = "smollm2",
    tuned: str | Path = "adapters/shop",
    server: str = "http://127.0.0.1:8080/v1",
    judge_model: str = "judge",
) -> Mapping[str, Any]:
    judged = judge(
        replies(tuned),
        ChatEndpoint(server, judge_model),
        before=replies(base),
        out=Path("judged.json"),
    )
    print(format_judged(judged))
    return judged


if __name__ == "__main__":
    main()
