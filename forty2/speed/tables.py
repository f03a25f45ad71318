"""What was measured, as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def suite_table(name: str, suite: Mapping[str, Any]) -> str:
    """Medians of all, and beside each peer's time and memory the ratio of ours to its."""
    head = f"s/{suite['unit']}", "ratio", "tokens/s", "mlx GB", "ratio", "RSS GB", "ratio"
    rows = [(name, *head)]
    for who, figures in suite["medians"].items():
        share = suite["ratios"].get(who)
        rows.append(
            (
                f"  {who}",
                f"{figures['seconds']:.3f}",
                _share(share, "seconds"),
                f"{figures['per_s']:.1f}",
                f"{figures['mlx_gb']:.2f}",
                _share(share, "mlx_gb"),
                f"{figures['process_gb']:.2f}",
                _share(share, "process_gb"),
            )
        )
    lines = [f"{row[0]:<16}" + "".join(f"{cell:>10}" for cell in row[1:]) for row in rows]
    if "floor" in suite:
        floor = suite["floor"]
        lines.append(
            f"  floor {floor['seconds']:.3f} s/{suite['unit']}: "
            f"{floor['operations'] / suite['units'] / 1e9:,.0f} billion operations at "
            f"{floor['operations_per_s'] / 1e9:,.0f} billion a second; ours takes "
            f"{floor['ratio']:.2f} times as long"
        )
    lines += [f"  {who} left out: {why}" for who, why in suite["left_out"].items()]
    return "\n".join(lines)


def growth_table(growth: Mapping[str, Any]) -> str:
    """Cost by size, with the exponent from the size before."""
    lines = []
    for what, grown in growth.items():
        head = "seconds", "exponent", "GB", "exponent"
        lines.append(f"{what:<16}" + "".join(f"{cell:>10}" for cell in head))
        for i, size in enumerate(grown["size"]):
            cells = [
                f"{grown['seconds'][i]:.3f}",
                _exponent(grown["seconds_exponents"], i),
                f"{grown['gb'][i]:.2f}",
                _exponent(grown["gb_exponents"], i),
            ]
            lines.append(f"{size:>16,}" + "".join(f"{cell:>10}" for cell in cells))
    return "\n".join(lines)


def _share(ratios: Mapping[str, float] | None, key: str) -> str:
    return "" if ratios is None else f"{ratios[key]:.2f}"


def _exponent(exponents: list[float], index: int) -> str:
    return "" if index == 0 else f"{exponents[index - 1]:.2f}"
