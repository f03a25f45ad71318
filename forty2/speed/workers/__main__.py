"""One measurement in a process of its own: python FOLDER WORKER JOB.json

Reads the job, does one epoch of it, and prints a line of JSON, a `Measurement`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    import mlx.nn as nn
    from transformers import PreTrainedTokenizerFast

PACKAGES = ("mlx", "mlx-lm", "mlx-lm-lora", "mlx-optiq", "unsloth_zoo", "lm_eval", "transformers")
"""Packages whose versions a measurement names, if they are installed."""

Pair = Sequence[list[int]]
"""Prompt, chosen and rejected response, as token ids."""
Chat = tuple[list[int], int]
"""Token ids, and the position of the first supervised one."""


class ScoredQuestion(TypedDict):
    """A question of TruthfulQA."""

    question: str
    context: str
    """The question within its prompt, as the model reads it."""
    mc1: list[str]
    mc2: list[str]


@dataclass(frozen=True)
class Inputs:
    """The inputs of a job. A worker's own docstring names the field that it reads, if in doubt."""

    pairs: Sequence[Pair] = ()
    chats: Sequence[Chat] = ()
    questions: Sequence[ScoredQuestion] = ()
    data_file: str = ""
    """Path of a file of conversations."""
    products: Sequence[tuple[int, int, int]] = ()
    """Inputs and outputs of linear layers, and the number of layers of that size."""
    product_tokens: int = 0
    """Tokens that these layers are applied to."""


@dataclass(frozen=True)
class Job:
    """A measurement to make; the same job goes to every trainer."""

    model: str
    """Path of the model's folder."""
    dtype: str
    """Precision of the weights, as mlx names it."""
    inputs: Inputs
    units: int
    """Batches or questions in the inputs; times are divided by it."""
    counted: int = 0
    """Tokens in the inputs, each once and without padding, or operations; `per_s` counts these per
    second."""
    batch_size: int = 4
    rank: int = 8
    scale: float = 2.0
    layers: int = 16
    """Blocks with adapters, counted from the last."""
    lr: float = 1e-5
    beta: float = 0.1

    @classmethod
    def read(cls, path: Path) -> Job:
        """Read a job that `write` wrote."""
        value = json.loads(path.read_text())
        return cls(**{**value, "inputs": Inputs(**value["inputs"])})

    def write(self, path: Path) -> None:
        """Write the job as JSON."""
        path.write_text(json.dumps(asdict(self)))

    @property
    def steps(self) -> int:
        """Optimizer steps in an epoch."""
        return (len(self.inputs.pairs) or len(self.inputs.chats)) // self.batch_size

    def load_model(self) -> nn.Module:
        """Load the model with mlx-lm, frozen, in the job's precision."""
        import mlx.core as mx
        from mlx_lm.utils import load_model

        model: nn.Module = load_model(Path(self.model))[0]
        model.set_dtype(getattr(mx, self.dtype))
        model.freeze()
        mx.eval(model.parameters())
        return model

    def load_model_with_lora(self) -> nn.Module:
        """Load the model and add new LoRA layers with mlx-lm."""
        import mlx.core as mx
        from mlx_lm.tuner.utils import linear_to_lora_layers

        model = self.load_model()
        lora = {"rank": self.rank, "scale": self.scale, "dropout": 0.0}
        linear_to_lora_layers(model, min(self.layers, len(model.layers)), lora)
        mx.eval(model.parameters())
        return model

    def as_words(self, ids: Sequence[int]) -> str:
        """Spell token ids as text, for trainers that take text."""
        return "".join(f" <{i}>" for i in ids)

    def word_tokenizer(self) -> PreTrainedTokenizerFast:
        """Make a Hugging Face tokenizer that reads the ids that `as_words` spelled."""
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        size = json.loads((Path(self.model) / "config.json").read_text())["vocab_size"]
        words = models.WordLevel({f"<{i}>": i for i in range(size)}, unk_token="<0>")
        tokenizer = Tokenizer(words)
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<0>", pad_token="<0>")


@dataclass(frozen=True)
class Figures:
    """Time and memory of one measurement, or the ratios of two measurements' figures."""

    seconds: float
    """Seconds per unit: processor time on a CPU, wall-clock time on a GPU."""
    wall_s: float
    """Wall-clock seconds per unit."""
    per_s: float
    """Tokens or operations per second."""
    mlx_gb: float
    """Peak of mlx's memory."""
    process_gb: float
    """Peak of the process's resident memory."""


@dataclass(frozen=True)
class Measurement:
    """A worker's figures, and the versions and the BLAS that they were measured on."""

    figures: Figures
    versions: dict[str, str]
    blas: str

    @classmethod
    def from_json(cls, text: str) -> Measurement:
        """Read the line that a worker printed."""
        value = json.loads(text)
        figures = Figures(**{each.name: value["figures"][each.name] for each in fields(Figures)})
        return cls(figures, value["versions"], value["blas"])


# --- measuring ------------------------------------------------------------------------------------


def main() -> None:
    worker, path = sys.argv[1:]
    blas = load_blas()
    import mlx.core as mx

    if not mx.metal.is_available():  # some trainers ask for Metal's limits without checking for it
        mx.set_wired_limit = lambda *_: 0
        mx.device_info = lambda *_: {"max_recommended_working_set_size": 0}
    job = Job.read(Path(path))
    epoch = importlib.import_module(worker).prepare(job)
    print(json.dumps(asdict(Measurement(measure_epoch(epoch, job), versions(), blas))))


def measure_epoch(epoch: Callable[[], object], job: Job) -> Figures:
    """Run an epoch once and measure it.

    On a CPU the seconds are processor time, which other programs disturb less; on a GPU they are
    wall-clock time. Compilers that `mx.compile` starts are processes of their own and not counted.
    """
    import mlx.core as mx

    mx.reset_peak_memory()
    wall, cpu = time.perf_counter(), time.process_time()
    epoch()
    mx.synchronize()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    seconds = cpu if mx.default_device() == mx.Device(mx.cpu) else wall
    return Figures(
        seconds=seconds / job.units,
        wall_s=wall / job.units,
        per_s=job.counted / seconds,
        mlx_gb=mx.get_peak_memory() / 1e9,
        process_gb=process_peak() / 1e9,
    )


def process_peak() -> int:
    """Return the peak of this process's resident memory, in bytes.

    On Linux `ru_maxrss` starts at the parent's peak, so there the process's own high-water mark is
    read.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def versions() -> dict[str, str]:
    """List the versions of `PACKAGES` that are installed here."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def load_blas() -> str:
    """Load forty2's BLAS, the same for every trainer, and name it.

    `forty2/blas.py` is loaded by its path, because other trainers' environments lack forty2.
    """
    file = Path(__file__).parents[2] / "blas.py"
    spec = importlib.util.spec_from_file_location("forty2_blas", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.load().name)


if __name__ == "__main__":
    main()
