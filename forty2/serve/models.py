"""The served models in memory: one base, whose weights all phases share, and which of them answers now.

Each phase is a model of its own, made of the base's arrays and of its adapter's, so switching between
them changes no weight. mlx-lm's server asks for a model by its id, and keys its prompt cache by it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from mlx_lm.server import ModelProvider

from forty2.inference.generation import supports_batches
from forty2.model.configuration import RowLimit, text_config
from forty2.model.loading import LoadedModel, load
from forty2.serve.sources import Source, Sources
from forty2.text.encoder import Encoder

DEFAULT_TOKENS = 512
"""Longest reply where a request does not say, in tokens; mlx-lm's own."""
AT_ONCE = 16
"""Replies that are written in one batch."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model in memory, and what answering with it takes."""

    loaded: LoadedModel
    encoder: Encoder | None
    """Encoder of chats; None: the tokenizer has no chat template."""
    limit: RowLimit
    in_batches: bool
    """Whether several prompts can run together."""

    @property
    def vocabulary(self) -> int:
        """Number of logits."""
        return int(text_config(self.loaded.config)["vocab_size"])


class ServedModels(ModelProvider):  # type: ignore[misc]  # mlx-lm has no types
    """The models by their ids, in the form in which mlx-lm's server asks for them.

    A fused model, whose weights are its own, is loaded when it is first asked for; the others here.
    """

    def __init__(
        self, sources: Sources, *, trust_remote_code: bool = False, most_tokens: int
    ) -> None:
        """Load the models.

        Args:
            most_tokens: largest number of tokens of a reply.

        Raises:
            ModelError: one is missing or damaged, or an adapter does not fit the base.
        """
        super().__init__(_arguments(trust_remote_code, min(DEFAULT_TOKENS, most_tokens)))
        self.sources = sources
        self._trust_remote_code = trust_remote_code
        self._served: dict[str, ServedModel] = {}
        self._current: ServedModel | None = None
        for source in sources.models:
            if source.shares_base:
                self._fetch(source.id)

    @property
    def current(self) -> ServedModel:
        """The model that was asked for last."""
        assert self._current is not None
        return self._current

    def load(
        self, model_path: str, adapter_path: None = None, draft_model_path: object = None
    ) -> tuple[object, object]:
        """Return the model of an id and its tokenizer, for the requests that follow."""
        self._current = served = self._fetch(model_path)
        self.model_key = (model_path, None, None)
        self.model, self.tokenizer = served.loaded.model, served.loaded.tokenizer
        self.is_batchable = served.in_batches
        return self.model, self.tokenizer

    def reset(self) -> None:
        """Let go of the models; mlx-lm's server calls this last, in its thread."""
        super().reset()
        self._served.clear()
        self._current = None

    def _fetch(self, name: str) -> ServedModel:
        if name not in self._served:
            source = next(source for source in self.sources.models if source.id == name)
            self._served[name] = self._read(source)
        return self._served[name]

    def _read(self, source: Source) -> ServedModel:
        first = self._served.get(self.sources.models[0].id)
        loaded = load(
            source.model,
            source.adapter,
            template=source.template,
            trust_remote_code=self._trust_remote_code,
            share=first.loaded if first is not None and source.shares_base else None,
        )
        return ServedModel(
            loaded,
            Encoder(loaded.tokenizer) if loaded.tokenizer.has_chat_template else None,
            loaded.row_limit,
            supports_batches(loaded.model),
        )


def _arguments(trust_remote_code: bool, default_tokens: int) -> argparse.Namespace:
    """Return the settings of mlx-lm's server: its defaults, without a model of its own."""
    return argparse.Namespace(
        model=None,
        adapter_path=None,
        draft_model=None,
        num_draft_tokens=3,
        trust_remote_code=trust_remote_code,
        chat_template="",
        use_default_chat_template=False,
        chat_template_args={},
        temp=0.0,
        top_p=1.0,
        top_k=0,
        min_p=0.0,
        max_tokens=default_tokens,
        decode_concurrency=AT_ONCE,
        prompt_concurrency=8,
        prefill_step_size=2048,
        prompt_cache_size=10,
        prompt_cache_bytes=None,
        kv_bits=None,
        kv_group_size=64,
        quantized_kv_start=5000,
        pipeline=False,
        allowed_origins=[],
    )
