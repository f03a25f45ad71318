"""Progress bars of the command line."""

from __future__ import annotations

from forty2.cli.flags import with_flags
from forty2.progress_bars import Bars


class ProgressBars(Bars):
    """Progress bars whose messages name options, not arguments."""

    def _write(self, line: str) -> None:
        super()._write(with_flags(line))
