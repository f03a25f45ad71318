"""Merge an adapter into its base: W + scale · (AB)ᵀ in full precision, checked before it counts.

A quantised base is dequantised first: merged into 4-bit weights, an update as small as DPO's
vanishes in the rounding. Quantising again is a separate, last step, which reports how much of the
adapter it left over.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from mlx_lm.tuner.lora import LoRALinear
from mlx_lm.utils import dequantize_model, quantize_model

from forty2.data.library import neutral_texts
from forty2.errors import ModelError
from forty2.files import staged_folder, write_json
from forty2.inference.logprobs import logsumexp
from forty2.model.adapter import adapter_dir
from forty2.model.loading import LoadedModel, load, save
from forty2.model.surgery import in_fp32
from forty2.progress import Progress, silent

CHANGE_LOST = 0.05
"""Largest share of the adapter's effect (in KL) that fusing may change."""
ROUNDING, ROUNDING_16 = 1e-7, 1e-2
"""KL a token that rounding alone may make of it: in fp32, and where weights have 16 bits."""
PARITY_TOKENS = 96


class Quantised(NamedTuple):
    """What quantising left of the adapter."""

    path: Path
    bits: int
    cosine: float
    """Between intended and applied change of the adapted weights; 1 is all of it."""
    kl: float
    """Mean KL(fused ‖ quantised) a token."""


class Fused(NamedTuple):
    """What fusing did."""

    path: Path
    adapter_kl: float
    """Mean KL(base + adapter ‖ base) a token, in nats: how much the adapter changes."""
    parity_kl: float
    """Mean KL(base + adapter ‖ fused) a token: how much fusing changed."""
    max_logit_difference: float
    quantised: Quantised | None
    warnings: tuple[str, ...]


def fuse(
    model: str,
    adapter: str | Path,
    out: str | Path,
    *,
    quantize: int | None = None,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> Fused:
    """Merge, check and write; with `quantize`, also write `OUT-4bit` (or 8) beside it.

    Args:
        model: the base, as `load` takes it.
        adapter: adapter folder or run folder.
        out: folder to write; replaced if it is a fused model already.
        quantize: bits of the last step, 4 or 8; absent: none.

    Raises:
        ModelError: the fused model does not do what base + adapter do. Nothing is written.
    """
    out = Path(out)
    folder = adapter_dir(adapter)
    _check_target(out)
    base = load(model, trust_remote_code=trust_remote_code)
    probes = _probes(base)
    progress("fuse", 0, 4, {})
    before = _log_probabilities(base.model, probes)
    del base
    adapted = load(model, folder, trust_remote_code=trust_remote_code)
    wanted = _log_probabilities(adapted.model, probes)
    progress("fuse", 1, 4, {})
    updates = merge(adapted.model)
    if adapted.quantised:
        adapted.model = dequantize_model(adapted.model)
        for key in ("quantization", "quantization_config"):
            adapted.config.pop(key, None)
    mx.eval(adapted.model.parameters())
    got = _log_probabilities(adapted.model, probes)
    progress("fuse", 2, 4, {})
    adapter_kl, parity_kl = _kl(wanted, before), _kl(wanted, got)
    difference = max(float(mx.abs(a - b).max()) for a, b in zip(wanted, got, strict=True))
    exact = in_fp32(adapted.model)
    if not parity_kl <= (ROUNDING if exact else ROUNDING_16) + CHANGE_LOST * adapter_kl:
        raise ModelError(
            f"{folder}: fused, the model differs from base + adapter by KL {parity_kl:.2e} a token, "
            f"and the adapter's whole effect is {adapter_kl:.2e}; nothing was written"
        )
    record = {
        "base": model,
        "adapter": str(folder),
        "adapter_kl": adapter_kl,
        "parity_kl": parity_kl,
        "max_logit_difference": difference,
    }
    with staged_folder(out) as aside:
        save(adapted, aside)
        write_json(aside / "fused.json", record)
    progress("fuse", 3, 4, {})
    warnings = []
    if not exact and parity_kl > CHANGE_LOST * adapter_kl:
        warnings.append(
            f"rounding to 16 bits moves the model by KL {parity_kl:.1e} a token, and the adapter by "
            f"{adapter_kl:.1e}: measure the fused model before you trust it"
        )
    if adapter_kl < 1e-6:
        warnings.append(
            f"the adapter changes next to nothing (KL {adapter_kl:.1e} a token from base)"
        )
    quantised = None
    if quantize is not None:
        quantised = _quantise(adapted, updates, out, quantize, probes, got)
        if quantised.cosine < 0.9 or quantised.kl > adapter_kl:
            warnings.append(
                f"{quantize} bits keep little of the adapter: cosine {quantised.cosine:.2f} of the "
                f"intended change, and quantising moves the model by KL {quantised.kl:.1e} where the "
                f"adapter moved it by {adapter_kl:.1e}; use 8 bits, or measure before you trust it"
            )
    progress("fuse", 4, 4, {})
    return Fused(out, adapter_kl, parity_kl, difference, quantised, tuple(warnings))


class Update(NamedTuple):
    """What an adapter adds to a weight, by its factors: whole, all layers' take as much as a model."""

    lora_a: mx.array
    """(in, rank) fp32"""
    lora_b: mx.array
    """(rank, out) fp32, scaled."""

    def delta(self) -> mx.array:
        """(out, in) fp32"""
        return self.lora_b.T @ self.lora_a.T


def merge(model: nn.Module) -> dict[str, Update]:
    """Replace every adapter layer by a plain one, in place; the products are taken in fp32.

    Returns:
        The intended change of each weight, by layer name.
    """
    merged, updates = [], {}
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            scaled = module.scale * module.lora_b.astype(mx.float32)
            update = Update(module.lora_a.astype(mx.float32), scaled)
            weight, bias = _dense(module.linear)
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
            linear.weight = (weight.astype(mx.float32) + update.delta()).astype(weight.dtype)
            if bias is not None:
                linear.bias = bias
            merged.append((name, linear))
            updates[name] = update
        elif hasattr(module, "fuse") and "lora_a" in module:
            merged.append((name, module.fuse(dequantize=True)))
    model.update_modules(tree_unflatten(merged))
    return updates


def _dense(linear: Any) -> tuple[mx.array, mx.array | None]:
    weight = linear.weight
    if isinstance(linear, nn.QuantizedLinear):
        weight = mx.dequantize(
            weight,
            linear.scales,
            linear.get("biases"),
            group_size=linear.group_size,
            bits=linear.bits,
            mode=linear.mode,
        )
    return weight, linear.get("bias")


def _quantise(
    fused: LoadedModel,
    updates: dict[str, Update],
    out: Path,
    bits: int,
    probes: Sequence[mx.array],
    wanted: Sequence[mx.array],
) -> Quantised:
    modules = dict(fused.model.named_modules())
    weights = {name: modules[name].weight for name in updates}
    with contextlib.redirect_stdout(io.StringIO()):
        fused.model, fused.config = quantize_model(fused.model, fused.config, 64, bits)
    modules = dict(fused.model.named_modules())
    dot = intended = applied = 0.0
    for name, update in updates.items():
        layer, weight, delta = modules[name], weights.pop(name), update.delta()
        if not isinstance(layer, nn.QuantizedLinear):
            continue
        # What the same grid would have made of the base is what the change is measured from.
        original = mx.quantize(weight.astype(mx.float32) - delta, group_size=64, bits=bits)
        grid = mx.dequantize(*original, group_size=64, bits=bits)
        change = _dense(layer)[0].astype(mx.float32) - grid
        dot += float((change * delta).sum())
        intended += float(mx.square(delta).sum())
        applied += float(mx.square(change).sum())
    target = quantised_path(out, bits)
    _check_target(target)
    with staged_folder(target) as aside:
        save(fused, aside)
        cosine = dot / (intended * applied) ** 0.5 if dot else 0.0
        kl = _kl(wanted[:2], _log_probabilities(fused.model, probes[:2]))  # slow on a CPU
        write_json(
            aside / "fused.json", {"fused": str(out), "bits": bits, "cosine": cosine, "kl": kl}
        )
    return Quantised(target, bits, cosine, kl)


def quantised_path(out: Path, bits: int) -> Path:
    """Where the quantised copy of a fused model goes."""
    return out.with_name(f"{out.name}-{bits}bit")


def _check_target(out: Path) -> None:
    """Only a folder that fusing wrote may be replaced."""
    if (
        out.exists()
        and not (out / "fused.json").exists()
        and (not out.is_dir() or any(out.iterdir()))
    ):
        raise ModelError(f"{out}: exists and is no fused model; name another --out")


def _probes(loaded: LoadedModel) -> list[mx.array]:
    """Real text, as (1, T) ids."""
    encode = loaded.tokenizer.encode
    return [mx.array([encode(text)[:PARITY_TOKENS]]) for text in neutral_texts().values()]


def _log_probabilities(model: nn.Module, probes: Sequence[mx.array]) -> list[mx.array]:
    """(1, T, V) fp32 of each probe."""
    result = []
    for ids in probes:
        logits = model(ids).astype(mx.float32)
        result.append(logits - logsumexp(logits)[..., None])
        mx.eval(result[-1])
    return result


def _kl(p: Sequence[mx.array], q: Sequence[mx.array]) -> float:
    """Mean KL(p ‖ q) over all positions, nats."""
    sums = [float((mx.exp(a) * (a - b)).sum()) for a, b in zip(p, q, strict=True)]
    return max(0.0, sum(sums)) / sum(a.shape[1] for a in p)
