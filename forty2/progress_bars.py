"""Progress on standard error: what `forty2.progress` receives, drawn.

On a terminal or in a notebook, a bar shows the work under way and goes when it is done; headings, evaluations and
warnings stay. In a pipe or a file there is no bar, but a line now and then where work takes long.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import NoReturn, Self

from tqdm import tqdm

from forty2.progress import is_watched
from forty2.text_layout import fit, may_colour, terminal_width

_SECONDS = 10.0
"""Seconds between the lines about a stage where no bar can be drawn."""

_WIDTH = 100
"""Width of a notebook's cell."""
_BESIDE = 46
"""Columns for a short bar, its counts and its times."""


class Bars:
    """A `Progress` that shows one stage at a time on standard error."""

    def __init__(self) -> None:
        self._stage = ""
        self._bar: tqdm[NoReturn] | None = None
        self._terminal = is_watched()
        self._printed = 0.0
        self._has_lines = False
        self._heading = ""
        """Heading that is written when anything is known of its stage: an error stays one line."""
        self._headed = False

    def __call__(self, stage: str, done: int, total: int, info: Mapping[str, str | float]) -> None:
        if "heading" in info:
            self._begin(str(info["heading"]))
        elif "warning" in info:
            self._write(f"warning: {info['warning']}")
        elif "notice" in info:
            self._write(f"{self._indent}{info['notice']}")
        elif self._terminal:
            self._draw(stage, done, total, info)
        else:
            self._flush_heading()
            self._print(stage, done, total, info)

    def _begin(self, heading: str) -> None:
        self.close()
        self._headed = True
        if self._terminal:
            tqdm.write(self._bold(fit(heading, self._width)), file=sys.stderr)
            return
        self._flush_heading()
        self._heading = heading

    def _flush_heading(self) -> None:
        if self._heading:
            tqdm.write(self._heading, file=sys.stderr)
        self._heading = ""

    def _draw(self, stage: str, done: int, total: int, info: Mapping[str, str | float]) -> None:
        if stage != self._stage:
            self.close()
            self._stage = stage
            self._bar = tqdm(
                total=total,
                desc=self._indent + stage,
                file=sys.stderr,
                initial=max(0, done - 1),
                dynamic_ncols=True,
                mininterval=0.5,
                leave=False,
            )
        bar = self._bar
        if bar is None:
            return
        if info:
            bar.set_postfix(self._that_fits(info), refresh=False)
        bar.update(done - bar.n)
        if done >= total:
            self.close()

    def _that_fits(self, info: Mapping[str, str | float]) -> Mapping[str, str | float]:
        """Leave out the last figures, if there is no room for them beside the bar."""
        room = (self._width or _WIDTH) - len(self._indent + self._stage) - _BESIDE
        shown = dict(info)
        while shown and sum(len(f", {name}={value}") for name, value in shown.items()) > room:
            shown.popitem()
        return shown

    @property
    def _width(self) -> int | None:
        return terminal_width(sys.stderr)

    def _print(self, stage: str, done: int, total: int, info: Mapping[str, str | float]) -> None:
        """Print a line about long work now and then, and at its end."""
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._printed, self._has_lines = stage, now, False
        ends = self._has_lines and done >= total
        if not ends and now < self._printed + _SECONDS:
            return
        self._printed, self._has_lines = now, True
        figures = "".join(f", {name} {value}" for name, value in info.items())
        self._write(f"{self._indent}{stage}: {done} of {total}{figures}")

    def close(self) -> None:
        """End the open bar, if any."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._stage = ""

    @property
    def _indent(self) -> str:
        return "  " if self._headed else ""

    def _bold(self, text: str) -> str:
        return f"\x1b[1m{text}\x1b[0m" if may_colour(sys.stderr) else text

    def _write(self, line: str) -> None:
        """Write a line that no bar overwrites."""
        self._flush_heading()
        tqdm.write(fit(line, self._width), file=sys.stderr)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
