"""Train on answers that were liked or not, and see what that does to TruthfulQA."""

from __future__ import annotations

import forty2
from forty2.benchmark.compare import Comparison


def main(
    thumbs: str = "thumbs.jsonl",
    model: str = "smollm2",
    steps: int = 60,
    questions: int | None = None,
) -> Comparison:
    kto = {"objective": "kto", "data": thumbs, "steps": steps, "lr": 5e-6, "beta": 0.1}
    recipe = forty2.load_recipe(
        {
            "version": 1,
            "name": "thumbs",
            "model": model,
            "phases": {"kto": kto},
            "benchmark": None,  # measured below
        }
    )
    result = forty2.run(recipe)

    before = forty2.truthfulqa(model, questions="probe", n=questions)
    after = forty2.truthfulqa(result.path, questions="probe", n=questions)
    comparison = forty2.compare(before, after)
    print(comparison)
    return comparison


if __name__ == "__main__":
    main()
