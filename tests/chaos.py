"""Kill small runs at every step that they write or compute, resume them, compare all they leave.

    python tests/chaos.py [--every K]

A run is a forked child; its K-th, 2K-th, ... event ends it with SIGKILL. Events are put around
the standard library's and mlx's own calls, from outside: the product knows nothing of them. Then
the run is resumed and must end with the files of a run that was never stopped, bit for bit.
"""

from __future__ import annotations

import argparse
import builtins
import io
import json
import os
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import forty2  # isort: skip

import mlx.core as mx
from mlx_lm.models import llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import forty2.runs.pipeline
import forty2.training.batched_loss
import forty2.training.evaluation
import forty2.training.reference
import forty2.training.step
from forty2.errors import Forty2Error
from forty2.recipe.reading import load_recipe

VARYING = ("tokens_per_s", "peak_memory_gb")
"""Figures of the machine, not of the training."""
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
RECIPE = """
version: 1
name: chaos
model: {inputs}/model
max_length: 96
adapter: {{rank: 2, scale: 4.0, dropout: 0.1, layers: 2}}
phases:
  sft: {{objective: sft, data: {inputs}/sft.jsonl, valid: {inputs}/sft.jsonl, steps: 5, lr: 1.0e-2,
    batch_size: 3, save_every_steps: 2, eval_every_steps: 2, lint: false,
    eval_prompts: {inputs}/prompts.json}}
  dpo: {{objective: dpo, data: {inputs}/dpo.jsonl, valid: {inputs}/dpo.jsonl, steps: 5, lr: 1.0e-2,
    batch_size: 3, save_every_steps: 2, eval_every_steps: 1, lint: false, beta: 0.1,
    loss: sigmoid, best: {{metric: loss, direction: min}}}}
fuse: {{out: fused}}
benchmark: null
"""
"""Two phases with all that training has."""
MEASURED = """
version: 1
name: measured
model: {inputs}/model
max_length: 96
adapter: {{rank: 2, layers: 2}}
phases:
  sft: {{objective: sft, data: {inputs}/sft.jsonl, steps: 1, lr: 1.0e-2, lint: false}}
fuse: {{out: fused, quantize: 8}}
benchmark: {{questions: {inputs}/questions.json, n: 2}}
"""
"""One step, and all that is measured, fused and reported."""
RECIPES = {"recipe": RECIPE, "measured": MEASURED}


def make_inputs(folder: Path) -> Path:
    """A random model of three small blocks with a tokenizer of its own, data, and the recipes."""
    model = folder / "model"
    model.mkdir(parents=True)
    chats, pairs = [], []
    for n in range(6):
        ask = {"role": "user", "content": f"Count to {n}, please."}
        say = " ".join(str(i) for i in range(n + 1))
        chats.append({"messages": [ask, {"role": "assistant", "content": say}]})
        pairs.append({"prompt": ask["content"], "chosen": say, "rejected": "No." + "!" * n})
    for name, rows in (("sft", chats), ("dpo", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = {f"count_{n}": pair["prompt"] for n, pair in enumerate(pairs)}
    expected = {f"count_{n}": pair["chosen"] for n, pair in enumerate(pairs)}
    (folder / "prompts.json").write_text(
        json.dumps({"prompts": asked, "expected_outputs": expected})
    )
    options = {"A number.": 1, "A dog.": 0}
    questions = [
        {"question": f"What is {n}?", "mc1_targets": options, "mc2_targets": options}
        for n in range(2)
    ]
    (folder / "questions.json").write_text(json.dumps(questions))
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        [],
        trainers.BpeTrainer(
            special_tokens=["<|im_start|>", "<|im_end|>"],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(model)
    config = {
        "model_type": "llama",
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 512,
        "eos_token_id": tokenizer.eos_token_id,
    }
    (model / "config.json").write_text(json.dumps(config))
    built = llama.Model(llama.ModelArgs.from_dict(config))
    built.save_weights(str(model / "model.safetensors"))
    for name, recipe in RECIPES.items():
        (folder / f"{name}.yaml").write_text(recipe.format(inputs=folder))
    return folder


class Killer:
    """Counts events; the one of number `at` is the last thing that its process does."""

    def __init__(self, at: int | None, then: Callable[[], None] | None = None) -> None:
        self.at, self.labels = at, list[str]()
        self._then = then or (lambda: os.kill(os.getpid(), signal.SIGKILL))

    def event(self, label: str, torn: Callable[[], Any] | None = None) -> None:
        """One more event; `torn` leaves half of what is being written, if this is the end."""
        self.labels.append(label)
        if len(self.labels) == self.at:
            if torn is not None:
                torn()
            self._then()

    def around(self, owner: Any, name: str, label: str) -> None:
        """Make an event before and after every call of `owner.name`."""
        inner = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.event(f"before {label}")
            result = inner(*args, **kwargs)
            self.event(f"after {label}")
            return result

        setattr(owner, name, call)

    def install(self) -> None:
        """Put events around everything that writes or computes, in this process."""
        for name in ("replace", "rename", "fsync", "unlink", "rmdir", "mkdir"):
            self.around(os, name, name)
        for kind in (
            forty2.training.batched_loss.ConversationLoss,
            forty2.training.batched_loss.PairLoss,
        ):
            self.around(kind, "batch", "batch")
        self.around(forty2.training.reference, "response_logps", "reference batch")
        self.around(forty2.training.step.Stepper, "step", "step")
        self.around(forty2.training.evaluation, "evaluate", "evaluation")
        opened, saved = io.open, mx.save_safetensors

        def open_(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if not set(mode) & set("wax+"):
                return opened(file, mode, *args, **kwargs)
            self.event("before open")
            return _File(opened(file, mode, *args, **kwargs), self)

        def save(path: str, *args: Any, **kwargs: Any) -> None:
            self.event("before safetensors")
            saved(path, *args, **kwargs)
            self.event(
                "half safetensors", lambda: os.truncate(path, Path(path).stat().st_size // 2)
            )
            self.event("after safetensors")

        io.open = builtins.open = open_
        vars(mx)["save_safetensors"] = save


class _File:
    """A file open for writing, with an event in the middle of and after every write."""

    def __init__(self, file: Any, killer: Killer) -> None:
        self._file, self._killer = file, killer

    def write(self, data: Any) -> Any:
        def half() -> None:
            self._file.write(data[: len(data) // 2])
            self._file.flush()

        self._killer.event("half write", half)
        written = self._file.write(data)
        self._killer.event("after write", self._file.flush)
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class Ended(NamedTuple):
    """How a child ended."""

    code: int
    """Negative: the signal that killed it."""
    said: str
    labels: list[str]
    """Of its events, if it came to its end."""


def run_child(
    inputs: Path, folder: Path, killer: Killer, *, resume: bool, recipe: str = "recipe"
) -> Ended:
    """Run a recipe in a forked child whose working directory and cache are `folder`."""
    folder.mkdir(exist_ok=True)
    said, events = folder / "said.txt", folder / "events.json"
    for file in (said, events):
        file.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.chdir(folder)
            os.environ["FORTY2_CACHE"] = str(folder / "cache")
            loaded = load_recipe(inputs / f"{recipe}.yaml")
            killer.install()
            try:
                forty2.runs.pipeline.run(loaded, run_dir="run", resume=resume)
                code = 0
            except Forty2Error as error:
                said.write_text(str(error))
                code = error.exit_code
            killer.at = None
            events.write_text(json.dumps(killer.labels))
        except BaseException:
            said.write_text(traceback.format_exc())
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return Ended(
        code,
        said.read_text() if said.exists() else "",
        json.loads(events.read_text()) if events.exists() else [],
    )


def results(folder: Path) -> dict[str, Any]:
    """What a run leaves, by name: bytes, and JSON without times."""
    found: dict[str, Any] = {}
    started = json.loads((folder / "run" / "run.json").read_text())["started"].encode()
    for path in sorted((*(folder / "run").rglob("*"), *folder.glob("fused*/*"))):
        name = str(path.relative_to(folder))
        if path.is_dir() or path.name == "run.lock":
            continue
        found[name] = path.read_bytes().replace(started, b"")
        if path.name == "run.json":
            found[name] = {k: v for k, v in json.loads(found[name]).items() if k != "started"}
        elif path.name == "metrics.jsonl":
            found[name] = [
                {k: v for k, v in json.loads(line).items() if k not in VARYING}
                for line in found[name].decode().splitlines()
            ]
    return found


def torn_files(folder: Path) -> list[str]:
    """Files that are damaged under their own name; a part written aside under another is not."""
    torn = []
    for path in (folder / "run").rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or not path.is_file():
            continue
        data = path.read_bytes()
        try:
            if path.suffix == ".json":
                json.loads(data)
            elif path.suffix == ".safetensors":
                header = struct.unpack("<Q", data[:8])[0]
                tensors = json.loads(data[8 : 8 + header])
                ends = [t["data_offsets"][1] for n, t in tensors.items() if n != "__metadata__"]
                assert len(data) == 8 + header + max(ends)
        except (ValueError, AssertionError, struct.error):
            torn.append(str(path.relative_to(folder)))
    return torn


class Outcome(NamedTuple):
    """What became of a run that was killed at one event."""

    at: int
    survived: bool
    differ: list[str]
    torn: list[str]
    litter: list[str]
    said: str


def try_fault(inputs: Path, folder: Path, recipe: str, at: int, wanted: dict[str, Any]) -> Outcome:
    """Kill a run at an event, resume it, compare."""
    shutil.rmtree(folder, ignore_errors=True)
    killed = run_child(inputs, folder, Killer(at), resume=False, recipe=recipe)
    if killed.code != -signal.SIGKILL:
        return Outcome(at, False, [], [], [], f"not killed: {killed.code} {killed.said}")
    torn = torn_files(folder)
    again = run_child(inputs, folder, Killer(None), resume=True, recipe=recipe)
    if again.code != 0:
        return Outcome(at, False, [], torn, [], again.said)
    got = results(folder)
    differ = [name for name in {**wanted, **got} if wanted.get(name) != got.get(name)]
    litter = [str(p.relative_to(folder)) for p in folder.rglob(".*")]
    return Outcome(at, True, differ, torn, litter, "")


def main() -> int:
    """Print one line per fault that did harm, then the table. Returns 1 if any did."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--every", type=int, default=1, metavar="K", help="try every K-th event")
    arguments.add_argument("--points", type=int, help="try so many events of each run")
    asked = arguments.parse_args()
    started = time.monotonic()
    outcomes: list[Outcome] = []
    kinds: Counter[str] = Counter()
    events = files = 0
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        place = Path(name).resolve()
        inputs = make_inputs_in_child(place / "inputs")
        for recipe in RECIPES:
            whole = run_child(inputs, place / recipe, Killer(None), resume=False, recipe=recipe)
            if whole.code != 0:
                print(whole.said)
                return 1
            wanted, labels = results(place / recipe), whole.labels
            events, files = events + len(labels), files + len(wanted)
            every = max(1, len(labels) // asked.points) if asked.points else asked.every
            for at in range(every, len(labels) + 1, every):
                outcome = try_fault(inputs, place / "fault", recipe, at, wanted)
                outcomes.append(outcome)
                kinds[labels[at - 1].removeprefix("before ")] += 1
                if not outcome.survived or outcome.differ or outcome.torn or outcome.litter:
                    what = (outcome.said.strip().splitlines() or [""])[-1]
                    print(
                        f"{recipe}, event {at}, {labels[at - 1]}: {what} {outcome[2:5]}", flush=True
                    )
    figures = {
        "events in the runs": events,
        "kinds of events tried": len(kinds),
        "faults tried": len(outcomes),
        "survived": sum(o.survived for o in outcomes),
        "files compared": files,
        "files whose bytes differ": sum(len(o.differ) for o in outcomes),
        "torn files seen": sum(len(o.torn) for o in outcomes),
        "leftovers after resuming": sum(len(o.litter) for o in outcomes),
        "seconds": round(time.monotonic() - started),
    }
    for key, value in figures.items():
        print(f"{key:<26}{value:>8}")
    return int(any(not o.survived or o.differ or o.torn or o.litter for o in outcomes))


def make_inputs_in_child(folder: Path) -> Path:
    """`make_inputs`, leaving this process without mlx's threads, so that it may go on forking."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            make_inputs(folder)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if os.waitpid(child, 0)[1] != 0:
        raise SystemExit("the inputs could not be made")
    return folder


if __name__ == "__main__":
    sys.exit(main())
