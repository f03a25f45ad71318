"""Progress bars: the command line's side of `forty2.progress`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import NoReturn

from tqdm import tqdm


class ProgressBars:
    """A `Progress` that draws one bar per stage on standard error."""

    def __init__(self) -> None:
        self._stage = ""
        self._bar: tqdm[NoReturn] | None = None

    def __call__(self, stage: str, done: int, total: int, info: Mapping[str, str | float]) -> None:
        if "warning" in info:  # a line of its own, which no bar overwrites
            tqdm.write(f"warning: {info['warning']}", file=sys.stderr)
            return
        if stage != self._stage:
            self.close()
            self._stage = stage
            self._bar = tqdm(
                total=total,
                desc=stage,
                file=sys.stderr,
                initial=max(0, done - 1),
                dynamic_ncols=True,
                mininterval=0.5,
            )
        bar = self._bar
        if bar is None:
            return
        if info:
            bar.set_postfix(info, refresh=False)
        bar.update(done - bar.n)
        if done >= total:
            self.close()

    def close(self) -> None:
        """End the open bar, if any."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> ProgressBars:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
