"""llama.cpp itself, through xllamacpp, for what it makes of a GGUF file.

xllamacpp's server often hangs when it is dropped. So one process of this file loads all models and drops
none; it ends with the process that asks.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class LlamaCpp:
    """A GGUF file, loaded by llama.cpp on one thread."""

    def __init__(self, path: Path, *, context: int = 512) -> None:
        process = _process()
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps({"path": str(path), "context": context}) + "\n")
        process.stdin.flush()
        self._address = process.stdout.readline().strip()
        assert self._address.startswith("http"), f"llama.cpp does not load {path}: {self._address}"

    def tokenize(self, text: str, *, framed: bool = False) -> list[int]:
        """Return a text's ids; control tokens are read as such.

        Args:
            framed: with the tokens that go before or after every text.
        """
        request = {"content": text, "add_special": framed, "parse_special": True}
        return list(self._post("/tokenize", request)["tokens"])

    def chat(self, messages: Sequence[dict[str, str]]) -> str:
        """Return a conversation as the file's chat template writes it before a reply."""
        return str(self._post("/apply-template", {"messages": messages})["prompt"])

    def logprobs(self, ids: Sequence[int], vocabulary: int) -> NDArray[np.float64]:
        """Return the log-probability of every token after some ids, (V,)."""
        found = np.full(vocabulary, -np.inf)
        chosen = self.tokenize("a")[-1]  # whole text: the server keeps parts of a character back
        for one in self._next(ids, chosen, n_probs=vocabulary)[0]["top_logprobs"]:
            found[one["id"]] = one["logprob"]
        return found

    def score(self, prompt: Sequence[int], reply: Sequence[int], vocabulary: int) -> float:
        """Return the summed log-probability of a reply after a prompt, in nats."""
        total = 0.0
        for n, token in enumerate(reply):
            ids = [*prompt, *reply[:n]]
            answer = self._next(ids, token, n_probs=1)
            if answer:
                assert answer[0]["id"] == token
                total += answer[0]["logprob"]
            else:  # the token is a part of a character
                total += float(self.logprobs(ids, vocabulary)[token])
        return total

    def greedy(self, prompt: Sequence[int], most: int) -> list[int]:
        """Return the ids of the likeliest reply, without the token that ends it."""
        request = {"prompt": list(prompt), "n_predict": most, "temperature": 0}
        answer = self._post("/completion", request | {"return_tokens": True, "cache_prompt": True})
        return list(answer["tokens"])

    def stops_at(self, token: int) -> bool:
        """Return whether a reply ends where the model chooses a token."""
        request = {"prompt": self.tokenize("a"), "n_predict": 2, "logit_bias": [[token, 1000.0]]}
        return bool(self._post("/completion", request)["stop_type"] == "eos")

    def _next(self, ids: Sequence[int], chosen: int, **options: Any) -> Any:
        """Run the model on some ids and have it choose a token; its probability is not changed by that."""
        request = {"prompt": list(ids), "n_predict": 1, "temperature": 0, "cache_prompt": True}
        answer = self._post("/completion", request | {"logit_bias": [[chosen, 1000.0]]} | options)
        return answer.get("completion_probabilities")

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            self._address + path,
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)


@functools.cache
def _process() -> subprocess.Popen[str]:
    """Start the process that loads models; it ends when its standard input does."""
    process = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(process.communicate)
    return process


def _serve() -> None:
    """Load the models that standard input names, and print their addresses."""
    import xllamacpp

    servers = []
    for line in sys.stdin:
        wanted = json.loads(line)
        params = xllamacpp.CommonParams()
        params.model.path = wanted["path"]
        params.n_ctx = wanted["context"]
        params.n_parallel = 1
        params.n_gpu_layers = 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.warmup = False
        params.verbosity = -1
        try:
            servers.append(xllamacpp.Server(params))
        except Exception as error:
            print(f"failed: {error}".replace("\n", " "), flush=True)
        else:
            print(servers[-1].listening_address, flush=True)
    os._exit(0)


if __name__ == "__main__":
    _serve()
