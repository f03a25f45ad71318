"""Compare exported GGUF files with the models they were made from, in llama.cpp, and write the matrix.

    python tests/export_matrix.py [--part sizes architectures tokens replies truthfulqa] [--type f16 q8_0 …]

Every figure is of llama.cpp (through xllamacpp) against forty2, on the starter model or on tiny random
ones. Results are kept in build/export_matrix.json, so that parts may be run one after another;
docs/export.md shows all that are there.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import forty2  # isort: skip

import mlx.core as mx
import numpy as np
from support.llama_cpp import LlamaCpp
from support.many_scripts import strings
from support.tiny_families import (
    CONFIGS,
    CONTROL,
    TAGS,
    byte_level,
    save_family,
    sentence_piece,
    with_tokens,
)

from forty2.benchmark.scoring import Scorer
from forty2.benchmark.tasks.truthfulqa import TruthfulQA, _Contexts
from forty2.data.library import isotopes
from forty2.export.gguf.exporting import TYPES, export_gguf
from forty2.inference.generation import generate_replies
from forty2.model.loading import LoadedModel, load
from forty2.progress import silent
from forty2.text.encoder import Encoder

ROOT = Path(forty2.__file__).parents[1]
RESULTS = ROOT / "build" / "export_matrix.json"
PAGE = ROOT / "docs" / "export.md"
BEGIN, END = "<!-- matrix: make export-matrix writes it -->\n", "<!-- end of the matrix -->\n"
STRINGS, REPLIES, TOKENS, QUESTIONS = 10_000, 200, 24, 100
Results = dict[str, dict[str, Any]]


def exported(model: Path | str, folder: Path, type: str) -> Path:
    """Export a model into a folder."""
    out = folder / f"{Path(model).name}-{type}.gguf"
    return export_gguf(str(model), out, type=type, replace=True, progress=silent).path


def save(results: Results) -> None:
    """Keep what is known: the whole takes an hour on one core."""
    RESULTS.write_text(json.dumps(results, indent=1))


# --- parts ---


def architectures(folder: Path, results: Results, _: Sequence[str]) -> None:
    """Compare the log-probabilities of every architecture, on a random model in F32."""
    ids = np.random.default_rng(0).integers(0, 420, 40).tolist()
    for kind in CONFIGS:
        path = save_family(folder / kind, kind)
        loaded, llama = load(str(path)), LlamaCpp(exported(path, folder, "f32"))
        logits = loaded.model(mx.array([ids]))[0, -1]
        ours = np.array(logits - mx.logsumexp(logits))
        worst = float(np.abs(ours - llama.logprobs(ids, len(ours))).max())
        results.setdefault("architectures", {})[kind] = worst


def tokens(folder: Path, results: Results, _: Sequence[str]) -> None:
    """Count strings of many scripts that become the same tokens."""
    families = {
        "smollm2 (the starter's)": load("smollm2", lazy=True),
        **{f"byte-level, {rule}": with_tokens(byte_level(rule)) for rule in _RULES},
        **{
            f"SentencePiece, {name}": with_tokens(
                sentence_piece(scheme), bos="<s>", unk_token="<unk>"
            )
            for scheme, name in _SCHEMES.items()
        },
    }
    for n, (name, family) in enumerate(families.items()):
        loaded = isinstance(family, LoadedModel)
        path = family.path if loaded else save_family(folder / f"t{n}", "llama", family)
        tokenizer = family.tokenizer if loaded else family
        mixed = ("<|im_start|>", "<|im_end|>") if loaded else (*CONTROL, *TAGS)
        llama, alike = LlamaCpp(exported(path, folder, "f16")), 0
        for text in strings(STRINGS, mixed):
            expected = list(tokenizer.encode(text, add_special_tokens=False))
            alike += llama.tokenize(text) == expected
        results.setdefault("tokens", {})[name] = {"alike": alike, "of": STRINGS}
        save(results)
        print(name, alike, flush=True)


_RULES = ("qwen2", "llama-bpe", "gpt-2", "smollm")
_SCHEMES = {"prepend": "as Llama 2", "never": "as Gemma"}


def replies(folder: Path, results: Results, types: Sequence[str]) -> None:
    """Compare every token of greedy replies with llama.cpp's choice after the same tokens."""
    loaded = load("smollm2")
    encoder = Encoder(loaded.tokenizer)
    asked = [row["messages"][0] for row in isotopes()[::2][:REPLIES]]
    prompts = [encoder.prompt([message]) for message in asked]
    ours = dict(generate_replies(loaded, prompts, max_tokens=TOKENS))
    del loaded
    for type in types:
        llama = LlamaCpp(exported("smollm2", folder, type), context=1024)
        same = total = whole = 0
        for n, prompt in enumerate(prompts):
            missed, given, left = 0, list(prompt), list(ours[n].ids)
            while True:  # after a token that differs, llama.cpp goes on from ours
                found = llama.greedy(given, len(left) + ours[n].stopped)
                pairs = enumerate(zip(left, found, strict=False))
                agreed = next((i for i, (a, b) in pairs if a != b), min(len(left), len(found)))
                if agreed == len(left):
                    missed += len(found) > len(left)  # where ours ends
                    break
                missed += 1
                given, left = given + left[: agreed + 1], left[agreed + 1 :]
            total += len(ours[n].ids) + ours[n].stopped
            same += len(ours[n].ids) + ours[n].stopped - missed
            whole += not missed
            if n % 20 == 19:
                print(type, n + 1, same, total, whole, flush=True)
        results.setdefault("replies", {})[type] = {
            **{"tokens_alike": same, "tokens": total, "replies_alike": whole},
            "replies": len(prompts),
        }


def truthfulqa(folder: Path, results: Results, types: Sequence[str]) -> None:
    """Compare the first choices of TruthfulQA's MC1."""
    data = Path(os.environ.get("FORTY2_BENCH_DATA", ROOT.parent / "shared" / "data"))
    task = TruthfulQA(data=data / "truthfulqa" / "mc_task_v0_817.json", n=QUESTIONS)
    questions = task.load()
    loaded = load("smollm2")
    contexts = _Contexts(loaded.tokenizer, False)
    scorer = Scorer(loaded.model).after(contexts.beginning())
    vocabulary = loaded.config["vocab_size"]
    llamas = {t: LlamaCpp(exported("smollm2", folder, t), context=1024) for t in types}
    found: Results = {t: {"alike": 0, "of": 0, "margins": [], "differences": []} for t in types}
    for item in questions.items:
        rows = contexts.rows(item, item.mc1.choices)
        (ours,) = scorer.score([rows])
        best = int(np.argmax(ours))
        for type, one in found.items():
            theirs = [llamas[type].score(row.given, row.scored, vocabulary) for row in rows]
            other = int(np.argmax(theirs))
            one["of"] += 1
            one["alike"] += other == best
            one["margins"] += [ours[best] - ours[other]] * (other != best)
            one["differences"] += [abs(a - b) for a, b in zip(theirs, ours, strict=True)]
            results.setdefault("truthfulqa", {})[type] = one
        save(results)
        print(*(f"{t} {one['alike']} of {one['of']}" for t, one in found.items()), flush=True)


def sizes(folder: Path, results: Results, _: Sequence[str]) -> None:
    """Measure the size of the starter in every type, in MB."""
    for type in TYPES:
        path = exported("smollm2", folder, type)
        results.setdefault("sizes", {})[type] = path.stat().st_size / 1e6
        path.unlink()


PARTS = {
    "sizes": sizes,
    "architectures": architectures,
    "tokens": tokens,
    "replies": replies,
    "truthfulqa": truthfulqa,
}


# --- the page ---


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Write the matrix as Markdown."""
    lines = [
        f"Measured with xllamacpp {version('xllamacpp')}. The starter is smollm2, 135M parameters.",
        "",
        "| starter as | size, MB | tokens of greedy replies alike | replies alike to the end | "
        "TruthfulQA: first choice alike | log-likelihood differs by, nats |",
        "|---|---|---|---|---|---|",
    ]
    for type, size in results.get("sizes", {}).items():
        reply = results.get("replies", {}).get(type)
        choice = results.get("truthfulqa", {}).get(type)
        cells = [type, f"{size:.0f}", "not measured", "", "not measured", ""]
        if reply:
            share = reply["tokens_alike"] / reply["tokens"]
            cells[2] = f"{share:.2%} of {reply['tokens']:,}"
            cells[3] = f"{reply['replies_alike']} of {reply['replies']}"
        if choice:
            cells[4] = f"{choice['alike']} of {choice['of']}"
            if choice["margins"]:
                cells[4] += f" (others within {max(choice['margins']):.3f} nats)"
            cells[5] = f"{np.mean(choice['differences']):.4f}"
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| tokenizer | strings alike |", "|---|---|"]
    for name, found in results.get("tokens", {}).items():
        lines.append(f"| {name} | {found['alike']:,} of {found['of']:,} |")
    lines += ["", "| architecture, F32 | log-probabilities differ at most by, nats |", "|---|---|"]
    for name, worst in results.get("architectures", {}).items():
        lines.append(f"| {name} | {worst:.0e} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the parts, and write what is known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--type", nargs="*", choices=list(TYPES), default=["f16", "q8_0", "q4_0"])
    options = parser.parse_args()
    results: Results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in options.part:
            PARTS[part](folder, results, options.type)
            save(results)
    page = PAGE.read_text("utf-8")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(before + BEGIN + table(results) + END + after, "utf-8")


if __name__ == "__main__":
    main()
