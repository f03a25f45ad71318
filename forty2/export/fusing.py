"""Merging of an adapter into its base, in full precision and checked before writing.

A quantized base is dequantized first, because in 4-bit weights an update as small as DPO's would
vanish in the rounding. Quantizing again is a separate, last step, which reports how much of the
adapter was lost.

Axes: T tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from forty2.data.library import neutral_texts
from forty2.errors import ModelError
from forty2.export.card import is_owners, write_card
from forty2.export.origin import origin_of_record
from forty2.export.record import RECORD, adapter_of
from forty2.files import CARD, JsonObject, staged_folder, write_bytes, write_json
from forty2.inference.logprobs import logsumexp
from forty2.model.adapter import CONFIG, adapter_dir
from forty2.model.adapter_files import phase_settings, read_adapter_config, recorded_tags
from forty2.model.loading import LoadedModel, load, save_model
from forty2.model.merging import Update, merge_adapter, replaced_weights
from forty2.model.quantization import (
    dense_weight,
    dequantize,
    is_quantized_layer,
    quantize_and_back,
)
from forty2.model.quantization import quantize as quantize_weights
from forty2.model.replaced import replaced_names
from forty2.model.surgery import in_fp32
from forty2.progress import Progress, bars, draws_bars

CHANGE_LOST = 0.05
"""Largest share of the adapter's effect (in KL) that fusing may change."""
ROUNDING, ROUNDING_16 = 1e-7, 1e-2
"""Largest KL a token, in nats, that rounding alone may cause: in fp32, and with 16-bit weights."""
NO_EFFECT = 1e-6
"""KL a token, in nats, below which an adapter changes nearly nothing."""
MOST_NOISE = 0.25
"""Largest share of the adapter's effect (in KL) that quantizing may cause without a warning. KL grows
with the square of a change, so at a quarter the noise is half as large as the adapter's change."""
PARITY_TOKENS = 96
"""Tokens of each text on which models are compared."""
_STEPS = 4
_QUANTIZED_PROBES = 2  # a quantized model is slow on a CPU


@dataclass(frozen=True, slots=True)
class Quantized:
    """A quantized copy of a fused model, and how much of the adapter is left in it."""

    path: Path
    bits: int
    cosine: float | None
    """Cosine between the intended and the applied change of the adapted weights; 1: nothing is lost;
    None: no weight matrix is changed."""
    kl: float
    """Mean KL(fused ‖ quantized) a token, in nats."""

    def to_json(self) -> JsonObject:
        """Convert to JSON."""
        return {**asdict(self), "path": str(self.path)}

    @classmethod
    def from_json(cls, record: Mapping[str, object]) -> Quantized:
        """Read what `to_json` made."""
        return cls(**{**record, "path": Path(str(record["path"]))})  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Fused:
    """A fused model, and how close it is to base + adapter."""

    path: Path
    adapter_kl: float
    """Mean KL(base + adapter ‖ base) a token, in nats: how much the adapter changes."""
    parity_kl: float
    """Mean KL(base + adapter ‖ fused) a token, in nats: how much fusing changed."""
    max_logit_difference: float
    """Largest difference of a log-probability between base + adapter and fused, in nats."""
    quantized: Quantized | None
    warnings: tuple[str, ...]

    def to_json(self) -> JsonObject:
        """Convert to JSON, in the form of a run's fused.json."""
        return {
            "path": str(self.path),
            "adapter_kl": self.adapter_kl,
            "parity_kl": self.parity_kl,
            "max_logit_difference": self.max_logit_difference,
            "quantised": None if self.quantized is None else self.quantized.to_json(),
            "warnings": list(self.warnings),
        }

    @classmethod
    def from_json(cls, record: JsonObject) -> Fused:
        """Read what `to_json` made."""
        quantized = record["quantised"]
        return cls(
            Path(record["path"]),
            record["adapter_kl"],
            record["parity_kl"],
            record["max_logit_difference"],
            None if quantized is None else Quantized.from_json(quantized),
            tuple(record["warnings"]),
        )


@draws_bars
def fuse(
    model: str,
    adapter: str | Path,
    out: str | Path,
    *,
    quantize: int | None = None,
    replace: bool = False,
    trust_remote_code: bool = False,
    progress: Progress = bars,
) -> Fused:
    """Merge an adapter, check the result and write it; with `quantize`, also write OUT-4bit or OUT-8bit.

    Args:
        model: the base, as `load` takes it.
        adapter: adapter folder or run folder.
        out: folder to write; replaced if it holds the model fused from this adapter.
        quantize: bits per weight of a quantized copy, 4 or 8; None: no copy.
        replace: write over a model that was fused from another adapter, too.

    Raises:
        ModelError: the fused model differs from base + adapter (then nothing is written), or a
            folder to write holds something else.
    """
    out, folder = Path(out), adapter_dir(adapter)
    if phase_settings(folder / CONFIG, read_adapter_config(folder)) is not None:
        raise ModelError(
            f"{folder}: has phase attention, which is no change of the base's weights; use the adapter "
            "with its base, or train one without adapter.phase_attention"
        )
    for target in (out, *([quantized_path(out, quantize)] if quantize is not None else [])):
        _check_target(target, folder, replace)
    added = recorded_tags(folder)
    tags = added.settings if added is not None else None
    base = load(model, tags=tags, trust_remote_code=trust_remote_code)
    probes = _probes(base)
    progress("fuse", 0, _STEPS, {})
    before = _log_probabilities(base.model, probes)
    del base
    adapted = load(model, folder, trust_remote_code=trust_remote_code)
    wanted = _log_probabilities(adapted.model, probes)
    progress("fuse", 1, _STEPS, {})
    replaces = bool(replaced_names(adapted.model))
    updates: Mapping[str, Update] = merge_adapter(adapted.model)
    if adapted.quantized:
        dense, config = dequantize(adapted.model, adapted.config)
        adapted = dataclasses.replace(adapted, model=dense, config=config)
    mx.eval(adapted.model.parameters())
    got = _log_probabilities(adapted.model, probes)
    progress("fuse", 2, _STEPS, {})
    parity, exact = _compare(before, wanted, got), in_fp32(adapted.model)
    _check_parity(folder, parity, exact)
    record = {"base": model, "adapter": str(folder), **parity._asdict()}
    _write(adapted, out, record)
    progress("fuse", 3, _STEPS, {})
    warnings, quantized = _warnings(parity, exact), None
    if quantize is not None:
        if replaces or not updates:  # weights, or the adapter is of an architecture's own kind
            before_it = load(model, tags=tags, trust_remote_code=trust_remote_code, lazy=True)
            updates = replaced_weights(before_it.model)
        quantized = _quantize(adapted, updates, out, quantize, probes, got)
        few = _QUANTIZED_PROBES
        warnings += _quantized_warnings(quantized, _kl(wanted[:few], before[:few]))
    progress("fuse", 4, _STEPS, {})
    return Fused(out, **parity._asdict(), quantized=quantized, warnings=tuple(warnings))


def quantized_path(out: Path, bits: int) -> Path:
    """Return the folder of a fused model's quantized copy."""
    return out.with_name(f"{out.name}-{bits}bit")


# --- checks ---


class _Parity(NamedTuple):
    """Differences between base, base + adapter and fused model, in nats, under the names of `Fused`."""

    adapter_kl: float
    parity_kl: float
    max_logit_difference: float


def _compare(
    base: Sequence[mx.array], adapted: Sequence[mx.array], fused: Sequence[mx.array]
) -> _Parity:
    """Compare the log-probabilities of three models, (1, T, V) for each text."""
    pairs = zip(adapted, fused, strict=True)
    difference = max(float(mx.abs(a - b).max()) for a, b in pairs)
    return _Parity(_kl(adapted, base), _kl(adapted, fused), difference)


def _check_parity(adapter: Path, parity: _Parity, exact: bool) -> None:
    """Refuse a fused model that differs from base + adapter by more than rounding does."""
    rounding = ROUNDING if exact else ROUNDING_16
    if not parity.parity_kl <= rounding + CHANGE_LOST * parity.adapter_kl:
        raise ModelError(
            f"{adapter}: the fused model differs from base + adapter by KL {parity.parity_kl:.2e} "
            f"a token, and the adapter's whole effect is {parity.adapter_kl:.2e}; nothing was written"
        )


def _check_target(out: Path, adapter: Path, replace: bool) -> None:
    """Refuse to write over a folder that fusing did not write, or over another adapter's model."""
    if out.exists() and not (out / RECORD).exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"{out}: exists and is not a fused model; name another `out`")
    if replace or not (out / RECORD).exists():
        return
    before = adapter_of(out)
    if before is None or Path(before).resolve() != adapter.resolve():
        raise ModelError(
            f"{out}: holds the model fused with {before or 'an adapter that it does not name'}; name "
            "another `out`, or replace it with `replace=True`"
        )


def _warnings(parity: _Parity, exact: bool) -> list[str]:
    warnings = []
    if not exact and parity.parity_kl > CHANGE_LOST * parity.adapter_kl:
        warnings.append(
            f"rounding to 16 bits moves the model by KL {parity.parity_kl:.1e} a token, and the "
            f"adapter by {parity.adapter_kl:.1e}: measure the fused model before you trust it"
        )
    if parity.adapter_kl < NO_EFFECT:
        warnings.append(
            f"the adapter changes next to nothing (KL {parity.adapter_kl:.1e} a token from base)"
        )
    return warnings


def _quantized_warnings(quantized: Quantized, effect: float) -> list[str]:
    """Warn if quantizing changes the model's predictions nearly as much as the adapter does.

    The cosine of the weights is no reason to warn: a small change in many weights can lose much of
    its direction and still move the predictions as intended.

    Args:
        effect: mean KL(base + adapter ‖ base) a token on the texts of `quantized.kl`, in nats.
    """
    bits, kl = quantized.bits, quantized.kl
    if kl <= MOST_NOISE * effect:
        return []
    share = "more than" if kl > effect else f"{kl / effect:.0%} of what"
    remedy = "use 8 bits, or measure before you trust it" if bits < 8 else "measure it"
    return [
        f"{bits} bits move the model by KL {kl:.1e} a token, {share} the adapter does "
        f"({effect:.1e}): its effect may be lost in the rounding; {remedy}"
    ]


# --- steps ---


def _quantize(
    fused: LoadedModel,
    updates: Mapping[str, Update],
    out: Path,
    bits: int,
    probes: Sequence[mx.array],
    wanted: Sequence[mx.array],
) -> Quantized:
    """Quantize the fused model in place, measure how much is left of the adapter, and write it.

    Args:
        updates: the adapter's intended change of each weight, by layer name.
        bits: bits per weight, 4 or 8.
        probes: ids of the texts to compare on, (1, T) each.
        wanted: the fused model's log-probabilities of the probes, (1, T, V) each.
    """
    modules = dict(fused.model.named_modules())
    weights = {name: modules[name].weight for name in updates}
    model, config = quantize_weights(fused.model, fused.config, bits)
    quantized = dataclasses.replace(fused, model=model, config=config)
    cosine = _survival(dict(model.named_modules()), weights, updates)
    few = _QUANTIZED_PROBES
    kl = _kl(wanted[:few], _log_probabilities(model, probes[:few]))
    target = quantized_path(out, bits)
    record = {"fused": str(out), "adapter": adapter_of(out), "bits": bits}
    _write(quantized, target, {**record, "cosine": cosine, "kl": kl})
    return Quantized(target, bits, cosine, kl)


def _survival(
    modules: Mapping[str, nn.Module],
    weights: dict[str, mx.array],
    updates: Mapping[str, Update],
) -> float | None:
    """Compute the cosine between the intended and the applied change of the adapted weights.

    A layer that is not quantized keeps its change whole.

    Args:
        modules: modules of the quantized model, by name.
        weights: weights before quantizing, by layer name; emptied, so that they can be freed.

    Returns:
        The cosine; None if no change is intended.
    """
    dot = intended = applied = 0.0
    for name, update in updates.items():
        layer, weight = modules[name], weights.pop(name).astype(mx.float32)
        delta = change = update.delta(weight)
        if is_quantized_layer(layer):
            # The applied change is the difference from the base rounded in the same way.
            original = quantize_and_back(weight - delta, layer)
            change = dense_weight(layer)[0].astype(mx.float32) - original
        dot += float((change * delta).sum())
        intended += float(mx.square(delta).sum())
        applied += float(mx.square(change).sum())
    if not 0 < intended < math.inf:
        return None
    return dot / (intended * applied) ** 0.5 if applied else 0.0


def _write(loaded: LoadedModel, folder: Path, record: JsonObject) -> None:
    """Write a model with its card and a record of how it was made.

    The folder appears complete or not at all. A card that its owner wrote stays.
    """
    own = (folder / CARD).read_bytes() if is_owners(folder) else None
    with staged_folder(folder) as unfinished:
        save_model(loaded, unfinished)
        write_json(unfinished / RECORD, record)
        if own is None:
            origin = origin_of_record(record, Path(str(record["adapter"])))
            write_card(unfinished, origin, name=folder.name)
        else:
            write_bytes(unfinished / CARD, own)


def _probes(loaded: LoadedModel) -> list[mx.array]:
    """Encode the texts that models are compared on, each (1, T)."""
    encode = loaded.tokenizer.encode
    return [mx.array([encode(text)[:PARITY_TOKENS]]) for text in neutral_texts().values()]


def _log_probabilities(model: nn.Module, probes: Sequence[mx.array]) -> list[mx.array]:
    """Compute the log-probabilities (1, T, V) of each probe, fp32."""
    result = []
    for ids in probes:
        logits = model(ids).astype(mx.float32)
        result.append(logits - logsumexp(logits)[..., None])
        mx.eval(result[-1])
    return result


def _kl(p: Sequence[mx.array], q: Sequence[mx.array]) -> float:
    """Compute the mean KL(p ‖ q) over all positions, in nats."""
    sums = [float((mx.exp(a) * (a - b)).sum()) for a, b in zip(p, q, strict=True)]
    return max(0.0, sum(sums)) / sum(a.shape[1] for a in p)
