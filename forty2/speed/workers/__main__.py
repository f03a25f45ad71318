"""One measurement, a process of its own: python FOLDER WORKER JOB.json

Reads the job, does one epoch of it, and prints a line of JSON: seconds a unit, tokens a second, peak
memory as mlx counts it and as the operating system does, and the versions that ran.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PACKAGES = ("mlx", "mlx-lm", "mlx-lm-lora", "mlx-optiq", "unsloth_zoo", "lm_eval", "transformers")


@dataclass(frozen=True)
class Job:
    """What there is to do, the same for all."""

    model: str
    """A folder."""
    dtype: str
    """Of the weights: float32 on the CPU, where 16-bit products are slow, bfloat16 on a GPU."""
    rows: list[Any]
    """Pairs [prompt, chosen, rejected] or chats [ids, first supervised], as token ids; or whatever
    else the worker says that it takes."""
    units: int
    """What the time is divided by: batches, questions."""
    counted: int = 0
    """What a second's worth is told of: tokens, each once and padding not at all; operations."""
    batch_size: int = 4
    lora: dict[str, Any] = field(default_factory=lambda: {"rank": 8, "scale": 2.0, "dropout": 0.0})
    layers: int = 16
    """Blocks with adapters, counted from the last."""
    lr: float = 1e-5
    beta: float = 0.1

    @property
    def steps(self) -> int:
        return len(self.rows) // self.batch_size

    def loaded(self) -> Any:
        """The model, frozen, by mlx-lm."""
        import mlx.core as mx
        from mlx_lm.utils import load_model

        model, _ = load_model(Path(self.model))
        model.set_dtype(getattr(mx, self.dtype))
        model.freeze()
        mx.eval(model.parameters())
        return model

    def adapted(self) -> Any:
        """The model with fresh LoRA layers, by mlx-lm."""
        import mlx.core as mx
        from mlx_lm.tuner.utils import linear_to_lora_layers

        model = self.loaded()
        linear_to_lora_layers(model, min(self.layers, len(model.layers)), self.lora)
        mx.eval(model.parameters())
        return model

    def text(self, ids: list[int]) -> str:
        """Ids as words, for peers that take text; `tokenizer` reads exactly these ids again."""
        return "".join(f" <{i}>" for i in ids)

    def tokenizer(self) -> Any:
        """A Hugging Face tokenizer of one word for each id."""
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        size = json.loads((Path(self.model) / "config.json").read_text())["vocab_size"]
        words = models.WordLevel({f"<{i}>": i for i in range(size)}, unk_token="<0>")
        tokenizer = Tokenizer(words)
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<0>", pad_token="<0>")


def main() -> None:
    worker, path = sys.argv[1:]
    blas = load_blas()
    import mlx.core as mx

    if not mx.metal.is_available():  # what some peers ask of Metal without asking for Metal
        mx.set_wired_limit = lambda *_: 0
        mx.device_info = lambda *_: {"max_recommended_working_set_size": 0}
    job = Job(**json.loads(Path(path).read_text()))
    epoch = importlib.import_module(worker).prepare(job)
    print(json.dumps({"figures": measured(epoch, job), "versions": versions(), "blas": blas}))


def measured(epoch: Callable[[], object], job: Job) -> dict[str, float]:
    """Run it once.

    Seconds are the processor's on a CPU, which other programs disturb less, and the clock's on a
    GPU. Compilers that `mx.compile` starts are processes of their own and not counted.
    """
    import mlx.core as mx

    mx.reset_peak_memory()
    wall, cpu = time.perf_counter(), time.process_time()
    epoch()
    mx.synchronize()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    seconds = cpu if mx.default_device() == mx.Device(mx.cpu) else wall
    return {
        "seconds": seconds / job.units,
        "wall_s": wall / job.units,
        "per_s": job.counted / seconds,
        "mlx_gb": mx.get_peak_memory() / 1e9,
        "process_gb": process_peak() / 1e9,
    }


def process_peak() -> int:
    """Bytes that this process had resident at most, as the operating system counts.

    Linux's `ru_maxrss` begins with what the parent had when it started this one, so there the
    process's own high-water mark is read.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def versions() -> dict[str, str]:
    """Of what is installed here."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def load_blas() -> str:
    """forty2's BLAS for mlx, the same for all: its module is loaded by path, as nothing else of it."""
    file = Path(__file__).parents[2] / "machine.py"
    spec = importlib.util.spec_from_file_location("forty2_platform", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.load_fast_blas()
    return str(module.blas())


if __name__ == "__main__":
    main()
