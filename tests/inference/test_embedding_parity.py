"""Embeddings beside those of transformers with torch. `make parity` installs torch and runs these."""

from __future__ import annotations

import numpy as np
import pytest
from support.minilm import TEXTS

from forty2.inference.embedding import fetch_minilm, load_embedder

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

MOST = 1e-5
"""Largest difference of a number of an embedding."""


def test_embeddings_are_those_of_transformers() -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModel, AutoTokenizer

    folder = fetch_minilm()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    texts = [text.strip() for text in TEXTS]
    batch = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    mask = batch["attention_mask"][:, :, None].float()
    wanted = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1).numpy()
    assert np.abs(load_embedder().embed(TEXTS) - wanted).max() < MOST
