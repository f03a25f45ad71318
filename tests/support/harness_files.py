"""Files in the form of lm-evaluation-harness."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "examples" / "lm_eval"
"""What the harness itself wrote, for two models on six sums."""
DATE = "2026-01-02T03-04-05.678901"


def line(doc_id: int, **changes: Any) -> dict[str, Any]:
    """A line as the harness writes it; what is given beside its own keys are the scores."""
    scores = {
        key: value for key, value in changes.items() if key not in ("filter", "doc", "target")
    }
    return {
        "doc_id": doc_id,
        "doc": {"text": f"document {doc_id}"},
        "target": "0",
        "arguments": {"gen_args_0": {"arg_0": f"prompt {doc_id}", "arg_1": " a"}},
        "resps": [[["-1.0", "False"]]],
        "filtered_resps": [["-1.0", "False"]],
        "filter": "none",
        "metrics": list(scores),
        "doc_hash": f"hash {doc_id}",
        "prompt_hash": f"prompt {doc_id}",
        "target_hash": "t",
        **changes,
    }


def write(folder: Path, task: str, lines: list[dict[str, Any]], date: str = DATE) -> Path:
    """Write a task's file of samples."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"samples_{task}_{date}.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in lines), "utf-8")
    return file
