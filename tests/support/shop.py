"""Mara's bicycle shop: the files of a user, as chats, pairs and thumbs, and as tables."""

from __future__ import annotations

from pathlib import Path

SHOP = Path(__file__).parents[1] / "examples" / "shop"
CHATS, PAIRS, THUMBS = (str(SHOP / name) for name in ("chats.json", "pairs.jsonl", "thumbs.jsonl"))
TABLES = tuple(str(SHOP / f"{kind}.csv") for kind in ("chats", "pairs", "thumbs"))
