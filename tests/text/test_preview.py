"""What `data stats` and `data show` say of a file is so."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from forty2.cli import main
from forty2.data.formats import parse
from forty2.data.library import isotopes
from forty2.data.sources import dumps
from forty2.model.loading import LoadedModel
from forty2.text.encoder import Encoder
from forty2.text.preview import spans, stats


def test_counts_are_the_encoders(starter: LoadedModel, tmp_path: Path) -> None:
    encoder = Encoder(starter.tokenizer)
    rows = [{"messages": row["messages"], "element": row["element"]} for row in isotopes()[:30]]
    pair = {"prompt": "q", "chosen": "a one", "rejected": "b"}
    source = tmp_path / "rows.jsonl"
    source.write_text(dumps([*rows, pair, {"text": "prose"}, {"messages": []}, rows[3]]))
    found = stats(source, encoder)
    measured = [
        encoder.measure(parse(row, "f")) for row in (*rows, pair, {"text": "prose"}, rows[3])
    ]
    assert found["rows"] == 33 and found["unreadable"] == 1
    assert found["tokens"] == sum(tokens for tokens, _ in measured)
    assert found["supervised"] == sum(learned for _, learned in measured) / found["tokens"]
    assert found["near_duplicates"] == 1 / 33
    assert sum(n for _, n in found["histogram"]) == 33
    assert sum(found["strata"]["element"].values()) == 31


def test_rows_that_are_not_counted_are_named_with_the_reason(
    starter: LoadedModel, tmp_path: Path
) -> None:
    source = tmp_path / "rows.jsonl"
    good = {"prompt": "q", "completion": "a", "id": 1}
    images = [{**good, "images": ["x"]}] * 7
    source.write_text(f"{dumps([good, *images])}no JSON\n{dumps([good])}")
    found = stats(source, Encoder(starter.tokenizer))
    assert (found["rows"], found["unreadable"], found["ignored"]) == (2, 8, "id (2 rows)")
    reasons = [(one["reason"].split(" ")[0], one["rows"]) for one in found["unreadable_because"]]
    assert reasons == [("images", 7), ("not", 1)]
    assert found["unreadable_because"][0]["first"] == [f"{source}:{n}" for n in range(2, 7)]
    said = CliRunner().invoke(main, ["data", "stats", str(source)]).output
    assert "7 × images is not used" in said and f"{source}:2" in said
    assert "ignored: id (2 rows)" in said


def test_what_is_cut_off_is_struck_through(starter: LoadedModel, tmp_path: Path) -> None:
    encoder = Encoder(starter.tokenizer)
    row = {"prompt": "one two three four five six seven", "completion": "An answer."}
    record = parse(row, "f:1")
    whole = encoder.measure(record)[0]
    for room, roles in (
        (whole, ["prompt", "supervised"]),
        (whole - 9, ["cut", "prompt", "supervised"]),
        (3, ["cut"]),
    ):
        ((_, parts),) = spans(record, encoder, starter.tokenizer, room)
        assert [role for _, role in parts] == roles
        text = starter.tokenizer.decode(encoder.encode_sft_record(record)[0].ids)  # type: ignore[arg-type]
        assert "".join(part for part, _ in parts) == text
    source, page = tmp_path / "rows.jsonl", tmp_path / "page.html"
    source.write_text(dumps([{**row, "completion": "<b>An answer.</b>"}]))
    result = CliRunner().invoke(main, ["data", "show", str(source), "--html", str(page)])
    assert result.exit_code == 0, result.output
    assert '<span class="supervised">&lt;b&gt;An answer.' in page.read_text("utf-8")


def test_a_long_text_is_shown_in_the_parts_that_are_trained_on(starter: LoadedModel) -> None:
    encoder = Encoder(starter.tokenizer)
    record = parse({"text": "one two three four five six seven"}, "f:1")
    length = encoder.measure(record)[0]
    sections = spans(record, encoder, starter.tokenizer, length - 2)
    assert [title for title, _ in sections] == ["1 of 2", "2 of 2"]
    assert all([role for _, role in parts] == ["prompt", "supervised"] for _, parts in sections)


def test_a_row_that_is_refused_does_not_hide_the_others(starter_path: Path, tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text('{"prompt": "q", "completion": "a"}\n{"note": 1}\n{"text": "b c"}\n{\n')
    result = CliRunner().invoke(
        main, ["data", "show", str(source), "-m", str(starter_path), "--rows", "9"]
    )
    assert result.exit_code == 2
    assert "«a<|im_end|>»" in result.output and f"── {source}:3" in result.output
    assert f"{source}:2: needs messages" in result.output
    assert f"{source}:4: not a JSON object" in result.output


def test_rows_that_are_not_there_are_an_error(starter_path: Path, tmp_path: Path) -> None:
    source = tmp_path / "empty.jsonl"
    source.write_text("")
    result = CliRunner().invoke(main, ["data", "show", str(source), "-m", str(starter_path)])
    assert result.exit_code == 2
    assert result.output == f"Error: {source}: is empty\n"


def test_a_page_replaces_nothing_but_a_page(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(dumps([{"prompt": "q", "completion": "a"}]))
    before = source.read_bytes()
    result = CliRunner().invoke(main, ["data", "show", str(source), "--html", str(source)])
    assert result.exit_code == 2 and f"{source}: the output is a web page" in result.output
    assert source.read_bytes() == before
