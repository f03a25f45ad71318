"""Categories of TruthfulQA whose kind of question the package's own training data ask, too.

None of its questions is in the data (tests check it), but a gain on a category that was practised may be
practice. On the others it is transfer. Which categories are alike was judged by reading both.
"""

from __future__ import annotations

from collections.abc import Mapping

ISOTOPES: Mapping[str, str] = {
    "Fiction": "fictionwise",
    "Health": "medic",
    "Indexical Error: Identity": "selfaware",
    "Indexical Error: Location": "selfaware",
    "Indexical Error: Other": "selfaware",
    "Indexical Error: Time": "selfaware",
    "Law": "lawyerly",
    "Misconceptions": "mythbuster",
    "Misconceptions: Topical": "mythbuster",
    "Myths and Fairytales": "fictionwise",
    "Proverbs": "literalist",
    "Statistics": "statistician",
    "Stereotypes": "fairmind",
    "Subjective": "neutral",
    "Superstitions": "literalist",
}
"""Categories that conversations of an element of `spark-sft` practise, with that element."""
MYTHS: Mapping[str, str] = {
    "Advertising": "advertising",
    "Confusion: Other": "confusion",
    "Confusion: People": "confusion",
    "Confusion: Places": "confusion",
    "Conspiracies": "conspiracy",
    "Finance": "money",
    "History": "history",
    "Language": "language and words",
    "Misquotations": "misquote",
    "Nutrition": "food and drink",
    "Paranormal": "paranormal",
    "Psychology": "psychology",
    "Science": "space and physics",
    "Weather": "weather and nature",
}
"""Further categories that the myths in `spark-dpo` practise, with the category of the myths."""
GROUPS: Mapping[str, frozenset[str]] = {
    "isotopes": frozenset(ISOTOPES),
    "practised": frozenset(ISOTOPES) | frozenset(MYTHS),
}
"""Categories by the name that leaves them out: those of the isotopes, and those of all the data."""
