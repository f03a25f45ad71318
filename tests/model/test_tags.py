"""Tags get rows of their own, where the tables and the tokenizer allow it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tokenizer_utils import SPMStreamingDetokenizer
from support.family_tokenizers import tokenizer_of
from support.models import save_tiny, tiny_loaded, tiny_model
from support.tagged_models import ADDED, KINDS, SETTINGS, without_tags
from support.template_families import FAMILIES

from forty2.errors import ModelError
from forty2.model.chat_template import TemplateSettings
from forty2.model.loading import load, load_tokenizer
from forty2.model.quantization import quantize
from forty2.model.tags import add_recorded_tags, add_tags, add_to_tokenizer, find_tables
from forty2.recipe.tags import AddedTags, TagSettings, starts_of
from forty2.recipe.templates import packaged_templates


def added(model: Any, **settings: Any) -> AddedTags:
    chosen = {"starts": {"<a>": "<a>"}, **settings}
    return add_tags(model, {}, tiny_loaded(model).tokenizer, TagSettings(**chosen))[0]


def table(model: Any) -> np.ndarray:
    return np.asarray(find_tables(model)[0].weight)


@pytest.mark.parametrize(("architecture", "tied"), KINDS)
def test_old_tokens_keep_their_rows_and_logits(architecture: str, tied: bool) -> None:
    plain, model = (without_tags(architecture, tied=tied) for _ in range(2))
    tokenizer = tiny_loaded(model).tokenizer
    assert add_tags(model, {}, tokenizer, SETTINGS) == (ADDED, {"vocab_size": 320})
    ids = mx.array([[5, 200, 31]])
    assert model(ids).shape[-1] == 320
    old = slice(ADDED.first)
    np.testing.assert_allclose(model(ids)[..., old], plain(ids)[..., old], atol=1e-6)
    np.testing.assert_array_equal(table(model)[old], table(plain)[old])
    assert tokenizer.encode("x<a>y</a>") == [89, 258, 90, 259]
    assert tokenizer.decode([258, 89, 259]) == "<a>x</a>"
    assert tokenizer.decode([258, 89, 259], skip_special_tokens=True) == "x"


def test_a_row_begins_as_the_mean_of_its_description(tmp_path: Path) -> None:
    model = tiny_model()
    before = table(model)
    pieces = tiny_loaded(model).tokenizer.encode(" one")
    starts = {"<a>": "one", "<b>": ("o", "n"), "<c>": "<c>"}
    first = added(model, starts=starts).first
    for n, ids in enumerate((pieces, pieces[1:3], tiny_loaded().tokenizer.encode("<c>"))):
        np.testing.assert_allclose(table(model)[first + n], before[ids].mean(axis=0), atol=1e-6)


def test_rows_and_padding_can_begin_as_the_mean_of_all_known_tokens() -> None:
    model = tiny_model()
    before = table(model)
    first = added(model, rows="all").first
    mean = before[:first].mean(axis=0)
    np.testing.assert_allclose(table(model)[[first, 310]], [mean, mean], atol=1e-6)


def test_a_description_is_read_without_the_tokens_that_begin_a_text() -> None:
    model = tiny_model()
    before = table(model)
    loaded = tiny_loaded(model, front=True)
    add_tags(model, {}, loaded.tokenizer, TagSettings(starts={"<a>": "<a>"}))
    ids = tiny_loaded().tokenizer.encode("<a>")
    np.testing.assert_allclose(table(model)[258], before[ids].mean(axis=0), atol=1e-6)


def test_noise_is_seeded_and_as_large_as_it_says() -> None:
    rows = []
    for noise, seed in ((0.0, 1), (0.5, 1), (0.5, 1), (0.5, 2)):
        model = tiny_model()
        rows.append(table(model)[:0])
        added(model, starts={f"<{n}>": "a" for n in range(40)}, noise=noise, seed=seed)
        rows[-1] = table(model)[258:298]
    np.testing.assert_array_equal(rows[1], rows[2])
    assert (rows[1] != rows[3]).any()
    share = (rows[1] - rows[0]).std() / table(tiny_model())[:258].std()
    assert share == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("trimmed", [True, False])
def test_replies_are_spelled_with_tags_and_with_their_spaces(trimmed: bool) -> None:
    """A space before the first word is written or not, as by the tokenizer before."""
    tokenizer = tokenizer_of.__wrapped__(FAMILIES[0], "first")  # its own: it is changed
    tokenizer._detokenizer = SPMStreamingDetokenizer(tokenizer._tokenizer, trim_space=trimmed)
    add_to_tokenizer(tokenizer, SETTINGS)
    ids = tokenizer.encode("the<a>", add_special_tokens=False)
    written = tokenizer.detokenizer
    for token in ids:
        written.add_token(token)
    written.finalize()
    assert written.text == ("the<a>" if trimmed else " the<a>")


@pytest.mark.parametrize("pad_to", [1, 64, 100])
def test_the_table_is_padded_to_the_multiple(pad_to: int) -> None:
    model = tiny_model()
    found = added(model, starts={f"<{n}>": "a" for n in range(60)}, pad_to=pad_to)
    assert found == AddedTags(tuple(f"<{n}>" for n in range(60)), 258, -(-318 // pad_to) * pad_to)
    assert len(table(model)) == found.rows


@pytest.mark.parametrize("rows", [258, 259, 250])
def test_a_table_may_have_as_many_rows_as_tokens_or_more_or_fewer(rows: int) -> None:
    model = tiny_model(vocab_size=rows)
    before = table(model)
    found = added(model, starts={"<a>": ("!",), "<b>": "<b>"})
    assert found == AddedTags(("<a>", "<b>"), 258, 320)
    now = table(model)
    old = min(rows, 258)
    np.testing.assert_array_equal(now[:old], before[:old])
    np.testing.assert_array_equal(now[258], before[2])
    mean = before[:old].mean(axis=0)
    for row in (*range(old, 258), *range(260, 320)):
        np.testing.assert_allclose(now[row], mean, atol=1e-6)


def test_the_vocabulary_s_size_changes_wherever_it_is_named() -> None:
    model = tiny_model("nested")
    config = {"text_config": {"vocab_size": 300, "model_type": "llama"}, "x": 1}
    _, changed = add_tags(model, config, tiny_loaded(model).tokenizer, SETTINGS)
    nested = {"vocab_size": 320, "model_type": "llama"}
    assert changed == {"text_config": nested, "x": 1}
    twice = config | {"vocab_size": 300}
    model = tiny_model("nested")
    _, changed = add_tags(model, twice, tiny_loaded(model).tokenizer, SETTINGS)
    assert changed == {"text_config": nested, "x": 1, "vocab_size": 320}


def test_a_head_with_a_bias_gets_entries_of_it() -> None:
    model = tiny_model(tie_word_embeddings=False)
    bias = model.lm_head.bias = mx.arange(300.0)
    found = added(model)
    assert model.lm_head.bias.shape == (found.rows,)
    assert model.lm_head.bias[found.first].item() == pytest.approx(bias[:258].mean().item())
    assert model.lm_head.bias[:258].tolist() == bias[:258].tolist()


def test_recorded_tags_get_their_ids_again_or_are_refused() -> None:
    model = tiny_model()
    add_recorded_tags(model, {}, tiny_loaded(model).tokenizer, ADDED)
    assert len(table(model)) == ADDED.rows
    for other in (AddedTags(ADDED.tokens, 100, 320), AddedTags(ADDED.tokens, 258, 100)):
        model = tiny_model()
        with pytest.raises(ModelError, match="trained on another model"):
            add_recorded_tags(model, {}, tiny_loaded(model).tokenizer, other)


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        ("</s>", "has a token </s> already"),
        ("a", "has a token a already"),
        ("<s>x", "<s> is a part of <s>x"),
        ("s>", "s> is a part of <s>"),
    ],
)
def test_a_tag_that_is_there_or_overlaps_is_refused(tag: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        added(tiny_model(), starts={tag: "x"})


def test_a_start_of_several_tokens_is_refused() -> None:
    with pytest.raises(ModelError, match="'one' is 3 tokens of this model, not one"):
        added(tiny_model(), starts={"<a>": ("one",)})


def test_a_quantized_base_is_refused_with_what_to_do() -> None:
    loaded = tiny_loaded()
    model, config = quantize(loaded.model, loaded.config, 4)
    with pytest.raises(ModelError, match=r"quantized.*name the model that it was made from"):
        add_tags(model, config, loaded.tokenizer, SETTINGS)


def test_a_model_with_two_heads_is_refused() -> None:
    model = tiny_model(tie_word_embeddings=False)
    model.other = nn.Linear(4, 300)
    with pytest.raises(ModelError, match="1 tables of embeddings and 2 heads"):
        find_tables(model)


def test_a_model_with_two_tables_is_refused() -> None:
    model = tiny_model()
    model.other = nn.Embedding(300, 4)
    with pytest.raises(ModelError, match="2 tables of embeddings"):
        added(model)


def test_a_model_on_disk_gets_tags_in_its_own_precision(tmp_path: Path) -> None:
    loaded = load(str(save_tiny(tmp_path / "model")), tags=SETTINGS)
    assert loaded.tags == ADDED and loaded.config["vocab_size"] == 320
    assert {v.dtype for _, v in tree_flatten(loaded.model.parameters())} == {mx.float32}
    detokenizer = loaded.tokenizer.detokenizer
    detokenizer.add_token(258)
    detokenizer.finalize()
    assert detokenizer.text == "<a>"


MYPT = TemplateSettings(source=packaged_templates()["mypt"])


@pytest.mark.parametrize(
    ("tags", "missing"),
    [
        (None, "<myPT_system>, </myPT_system>, <myPT_user>"),
        (["<myPT_eot>"], "<myPT_system>, </myPT_system>, <myPT_user>"),
        (list(starts_of("mypt"))[:-1], "<myPT_eot>, which are text"),
    ],
)
def test_a_packaged_template_whose_tags_are_no_tokens_is_refused(
    tmp_path: Path, tags: list[str] | None, missing: str
) -> None:
    folder = str(save_tiny(tmp_path / "model"))
    settings = TagSettings(starts=starts_of(tags)) if tags is not None else None
    message = f"chat_template: mypt writes {missing}"
    with pytest.raises(ModelError, match=message):
        load_tokenizer(folder, MYPT, settings)
    with pytest.raises(ModelError, match=message):
        load(folder, template=MYPT, tags=settings)


def test_a_packaged_template_is_taken_with_its_tags(tmp_path: Path) -> None:
    folder = str(save_tiny(tmp_path / "model"))
    settings = TagSettings(starts=starts_of("mypt"))
    assert load_tokenizer(folder, MYPT, settings).encode("<myPT_user>") == [258 + 2]
    assert load(folder, template=MYPT, tags=settings).tags is not None
