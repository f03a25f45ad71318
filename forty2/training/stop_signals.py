"""SIGINT and SIGTERM while a phase trains: the first one lets the step under way finish."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def stop_signals() -> Iterator[list[signal.Signals]]:
    """Collect the first SIGINT or SIGTERM in a list; a second one raises KeyboardInterrupt.

    Python allows handlers in the main thread only: in another thread signals keep their effect.
    """
    received: list[signal.Signals] = []

    def receive(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(signal.Signals(number))

    with contextlib.ExitStack() as restored:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                before = signal.getsignal(number)
                # A signal that is ignored (nohup, a job in the background) stays so, and a handler
                # that is not Python's (None) could not be put back.
                if before not in (signal.SIG_IGN, None):
                    signal.signal(number, receive)
                    restored.callback(signal.signal, number, before)
        yield received
