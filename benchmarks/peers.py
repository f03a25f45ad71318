"""Ours beside the peers: same model, rows, LoRA, dtype and BLAS. Run: make bench

Each measurement is a process of its own in an environment of its own, on one thread, in turn:
ours, theirs, ours, theirs. Rows are real text of seeded lengths. Only the ratios carry over to
another machine. The reference pass counts: an epoch is all it takes.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

from forty2 import platform
from forty2.data.library import neutral_texts
from forty2.data.library import rows as library

HERE = Path(__file__).parent
PEERS = {"mlx-lm-lora": "mlx-lm-lora==5.10.2"}
"""What is installed into an environment of its own; mlx-lm is in ours."""
SUITES = {
    "dpo-short": ("ours_dpo.py", "mlx_lm_lora_dpo.py", "mlx-lm-lora"),
    "dpo-long": ("ours_dpo.py", "mlx_lm_lora_dpo.py", "mlx-lm-lora"),
    "sft-tail": ("ours_sft.py", "mlx_lm_sft.py", "mlx-lm"),
}
BATCH = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suites", nargs="*", choices=[*SUITES, []], help="default: all")
    parser.add_argument("--rows", type=int, default=32, help="of each suite; a multiple of 4")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    from forty2.model.starter import fetch_starter

    model = fetch_starter()
    results: dict[str, Any] = {"machine": platform.facts(), "rows": arguments.rows, "suites": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.suites or SUITES:
            ours, theirs, peer = SUITES[name]
            job = Path(folder) / f"{name}.json"
            rows = compose(name, arguments.rows, model)
            job.write_text(json.dumps({"model": str(model), "rows": rows, "batch_size": BATCH}))
            runs: dict[str, list[dict[str, float]]] = {"forty2": [], peer: []}
            for _ in range(arguments.rounds):
                runs["forty2"].append(run(sys.executable, ours, job))
                runs[peer].append(run(python_of(peer), theirs, job))
            results["suites"][name] = suite = {
                who: {key: statistics.median(r[key] for r in each) for key in each[0]}
                for who, each in runs.items()
            }
            suite["ratio"] = {key: suite["forty2"][key] / suite[peer][key] for key in suite[peer]}
            print(table(name, suite), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")


def compose(name: str, count: int, model: Path) -> list[Any]:
    """Rows of token ids, of seeded lengths."""
    from forty2.model.door import load_tokenizer

    texts = [*neutral_texts().values(), *(t for row in library("myths_a") for t in row["true"])]
    tokenizer = load_tokenizer(str(model))
    stream = [i for text in texts for i in tokenizer.encode(f" {text}")]
    generator = random.Random(name)

    def some(length: float) -> list[int]:
        start = generator.randrange(len(stream) - 1024)
        return list(stream[start : start + max(2, round(length))])

    if name == "sft-tail":
        lengths = [min(500.0, 40 * math.exp(generator.expovariate(1.0))) for _ in range(count)]
        return [[some(length), round(length) // 3] for length in lengths]
    shape = {"dpo-short": (64, 48, 48), "dpo-long": (384, 64, 64)}[name]
    return [[some(n * generator.uniform(0.75, 1.25)) for n in shape] for _ in range(count)]


def python_of(peer: str) -> str:
    """The interpreter of a peer's environment, made on first use."""
    if peer not in PEERS:
        return sys.executable
    folder = platform.cache_dir() / "bench" / PEERS[peer].replace("==", "-")
    python = folder / "bin" / "python"
    if not (folder / "done").exists():
        venv.create(folder, with_pip=True, clear=True)
        versions = [f"{name}=={importlib.metadata.version(name)}" for name in ("mlx", "mlx-lm")]
        if sys.platform == "linux":
            versions += [versions[0].replace("mlx==", "mlx[cpu]=="), "cmeel-openblas"]
        install = [str(python), "-m", "pip", "install", "-q", PEERS[peer], *versions]
        subprocess.run(install, check=True)
        (folder / "done").touch()
    return str(python)


def run(python: str, worker: str, job: Path) -> dict[str, float]:
    """One measurement."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, str(HERE / "peers" / worker), str(job)],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{worker} failed:\n{done.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def table(name: str, suite: dict[str, dict[str, float]]) -> str:
    """A suite's medians and ratios."""
    lines = [f"{name:<14}{'cpu s/batch':>12}{'tokens/cpu s':>14}{'peak GB':>9}"]
    for who, figures in suite.items():
        values = figures["cpu_s_per_batch"], figures["tokens_per_cpu_s"], figures["peak_gb"]
        lines.append(f"  {who:<12}{values[0]:>12.2f}{values[1]:>14.1f}{values[2]:>9.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
