"""A server for one other process: it answers until its standard input is closed, as when that ends.

It says on one line of its standard output, as JSON, either `url` and `model`, or `error`.
"""

from __future__ import annotations

import json
import os
import sys
import threading

from forty2.errors import Forty2Error
from forty2.serve.http_server import ModelServer
from forty2.serve.sources import find_sources


def main(target: str) -> None:
    """Serve a run or a model on the loopback, at any free port."""
    answer = os.dup(1)
    os.dup2(2, 1)  # what else is printed must not fill a pipe that nobody reads
    try:
        sources = find_sources(target)
        server = ModelServer(sources, port=0)
    except Forty2Error as error:
        _say(answer, {"error": str(error)})
        return
    threading.Thread(target=_end_with_input, daemon=True).start()
    _say(answer, {"url": f"{server.url}v1", "model": sources.ids[-1]})
    server.serve_forever(0.1)


def _say(file: int, value: dict[str, str]) -> None:
    with open(file, "w", encoding="utf-8") as stream:
        print(json.dumps(value), file=stream)


def _end_with_input() -> None:
    """Wait until the input is closed, then end without cleaning up, as `forty2 serve` does."""
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
