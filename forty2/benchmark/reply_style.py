"""Metrics of the style of replies: dialectic moves, stance, variety of words, and length.

Moves and stances are found by rules over sentences. Rules miss wordings and take others for what they
are not, so their precision and recall are measured on replies labelled by hand
(`heldout/style_labels.jsonl`): the rules were developed on one half of them, and the other half only
measures. 240 replies were written for it, half of them adversarial: words of contrast without dialectic,
and dialectic without such words. 24 more are the starter model's own. One author wrote replies, labels
and rules, so expect less on other models' replies. Within each source and kind, the replies are taken by
turns into the halves, in the order of their sha256.

A position is a claim that a reasonable reader may contest; facts and instructions are none. The labels
count, in each reply,
    thesis      1 if it puts or reports a position
    antithesis  considerations or positions that pull against one put before in the same reply
    synthesis   statements that hold both: a condition, a distinction, a compromise
and name its stance: explicit (a sentence says what the speaker judges or advises), implicit (a leaning
is shown, by an example, an image or the choice of details, but not said), or none.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from forty2.benchmark.stats import Interval, bootstrap, bootstrap_ratio
from forty2.data.library import rows
from forty2.files import JsonObject

Stance = Literal["explicit", "implicit", "none"]
HALVES = ("develop", "held out")
"""Halves of the labelled replies: the rules were developed on the first one alone."""
GOOD_F1 = 0.8
"""Smallest F1 on held-out labels at which a figure is shown without a caution."""


class Moves(NamedTuple):
    """Dialectic moves of a reply."""

    thesis: int
    antithesis: int
    synthesis: int

    @property
    def total(self) -> int:
        """Number of moves; 0 without an antithesis: one position alone is no dialectic."""
        return sum(self) if self.antithesis else 0


class StyledReply(NamedTuple):
    """A reply, and what the rules found in it."""

    words: tuple[str, ...]
    tokens: int
    moves: Moves
    stance: Stance


class Parts(NamedTuple):
    """A metric over replies as a ratio of two sums, with each reply's share of both."""

    values: list[float]
    weights: list[float]
    most: float = math.inf
    """Largest ratio of one reply; the least is 0."""
    influences: list[float] | None = None
    """Effect of each reply on the metric, (replies,), by leaving it out; None: given by both sums."""

    def mean(self) -> float | None:
        """Return the metric; None: no reply counts."""
        total = sum(self.weights)
        return sum(self.values) / total if total else None

    def interval(self) -> Interval:
        """Compute the 95% interval, by resampling replies."""
        if self.influences is not None:
            middle = sum(self.values) / sum(self.weights)
            low, high = bootstrap(np.array(self.influences) - np.mean(self.influences))
            return Interval(max(0.0, middle + low), min(self.most, middle + high))
        return bootstrap_ratio(self.values, self.weights, least=0.0, most=self.most)

    def scores(self) -> list[float]:
        """Return a score for each reply, such that their mean is the metric."""
        mean = sum(self.weights) / len(self.weights)
        return [value / mean for value in self.values]


# --- the metrics ----------------------------------------------------------------------------------


def spiral_score(replies: Sequence[StyledReply]) -> Parts:
    """Dialectic moves per 100 tokens: thesis, antithesis and synthesis of replies that have both sides.

    All moves over all tokens, so that a short reply does not count more than a long one. It counts that
    positions are set against each other, not whether they are true, to the point or well argued; a
    reply of "yes, but no" scores high. Tokens are the model's, so models with different tokenizers do
    not compare. The moves are found by rules (`find_moves`); see their F1. An empty reply counts as one
    token without a move.
    """
    tokens = [float(max(1, reply.tokens)) for reply in replies]
    return Parts([100.0 * reply.moves.total for reply in replies], tokens)


def subtlety(replies: Sequence[StyledReply]) -> Parts:
    """Share of implicit stances among the replies that have a stance.

    It tells whether a leaning is shown or said, not whether it is a good one, nor whether a reader
    would notice it. A model that says nothing has no stance and is not counted, so read it beside the
    number of replies with a stance. The stances are found by rules (`find_stance`); see their F1.
    """
    stances = [reply.stance for reply in replies]
    implicit = [float(stance == "implicit") for stance in stances]
    return Parts(implicit, [float(stance != "none") for stance in stances], most=1.0)


def distinct_1(replies: Sequence[StyledReply]) -> Parts:
    """Different words over all words, all replies taken together; words have no case or punctuation.

    Distinct-n of Li et al. 2016 (arXiv:1510.03055). It falls as replies get longer, so compare only
    replies to the same prompts and of similar length. It tells repetition from variety, not sense from
    nonsense: random words score best.
    """
    return _distinct(replies, 1)


def distinct_2(replies: Sequence[StyledReply]) -> Parts:
    """Different pairs of neighbouring words over all such pairs, all replies taken together.

    As `distinct_1`, with the same limits; a pair never spans two replies.
    """
    return _distinct(replies, 2)


def reply_length(replies: Sequence[StyledReply]) -> Parts:
    """Mean length of a reply in the model's tokens.

    Neither direction is better. Replies that were cut at the limit of tokens count with that limit, so
    read it beside the share that stopped.
    """
    return Parts([float(reply.tokens) for reply in replies], [1.0] * len(replies))


METRICS: Mapping[str, Callable[[Sequence[StyledReply]], Parts]] = {
    "spiral_score": spiral_score,
    "subtlety": subtlety,
    "distinct_1": distinct_1,
    "distinct_2": distinct_2,
    "reply_length": reply_length,
}
"""The metrics, by name; a phase can choose by them under the same names."""


def style_of(text: str, tokens: int) -> StyledReply:
    """Judge a reply.

    Args:
        tokens: its length in the model's tokens.
    """
    return StyledReply(words_of(text), tokens, find_moves(text), find_stance(text))


def _distinct(replies: Sequence[StyledReply], n: int) -> Parts:
    """Count different n-grams; an n-gram that occurs k times counts 1/k wherever it occurs.

    A reply that is drawn twice would seem to repeat itself, so replies are not drawn but their
    influences: what the metric loses if one of them is left out, times the number of others (the
    jackknife of Tukey 1958, Ann. Math. Stat. 29:614).
    """
    grams = [
        list(zip(*(reply.words[start:] for start in range(n)), strict=False)) for reply in replies
    ]
    times = Counter(gram for of_reply in grams for gram in of_reply)
    values = [sum(1.0 / times[gram] for gram in of_reply) for of_reply in grams]
    total, different = sum(map(len, grams)), len(times)
    influences = []
    for of_reply in grams:
        alone = sum(count == times[gram] for gram, count in Counter(of_reply).items())
        others = total - len(of_reply)
        without = (different - alone) / others if others else 0.0
        influences.append((len(grams) - 1) * (different / max(1, total) - without))
    return Parts(
        values, [float(len(of_reply)) for of_reply in grams], most=1.0, influences=influences
    )


# --- the rules ------------------------------------------------------------------------------------


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


_SENTENCE = re.compile(r"[^.!?]+[.!?]*")
_QUOTED = re.compile(r"['\"](\w+ ?){1,2}['\"]")
"""One or two words in quotation marks: a word that is mentioned, as in: 'although' is a conjunction."""
_CONTRAST = _any(
    r"^(but|yet|and yet|still|or|even so|however|nevertheless|unfortunately|equally)\b",
    r"\b(however|then again|that said|nevertheless|whereas|although|though|conversely|also)\b",
    r"\bon the (one|other) (hand|side)\b|\b(by|in) contrast\b|\bon the contrary\b|\bat the same time\b",
    r"[,;:] (and )?(but|yet|still)\b|^while\b.*, |\bwhile (it|that|some|he|she|they)\b|\bor it is\b",
    r"\bothers (reply|hold|say|argue|think)\b",
)
"""Words that set a statement against another."""
_AT_ONCE = _any(r"\bat the same time\b")
"""Words that set two sides against each other, whatever the sides are."""
_VALUES = _any(
    r"\b(should|ought|must|need(s|ed)?|wants?|duty|owe[sd]?|deserves?|right|wrong|fair|unfair|just)\b",
    r"\b(good|better|best|worse|worst|worth|bad|kind(er|ness)?|cruel\w*|safe(r|ty)?|dangers?|risk\w*"
    r"|free(dom|ly)?|honest\w*|truth|true|lies?|trust\w*|promis\w+|loyal\w*|generous|virtues?|vices?"
    r"|happy|careless|brutal|illusion|wisdom|consent)\b",
    r"\b(teach(es)?|learn(s|ed|ing)?|protects?|saves?|saved|costs?|los(e|es|t|ing)|win(s|ning)?|fails?"
    r"|control|punish\w*|forgiv\w*|apolog\w*|admit|confront|judges?|blame|hurts?|steal|resent|feel)\b",
    r"\b(poor|rich|tax(es)?|laws?|vot(e|ing|ed)|workers?|wages?|schools?|pupils?|child(ren)?|parents?"
    r"|famil(y|ies)|friends?|mothers?|art|beauty|meaning|memory|grief|guilty|everybody|every)\b",
)
"""Words of value and of human affairs: with one of them, a statement may be a position."""
_OPINION = _any(
    r"\b(i|we) (would|think|believe|favou?r|support|prefer|feel|doubt)\b|\bi'd\b|\bmy (advice|view)\b",
    r"\b(some|critics|others|people|formalists|opponents) (say|argue|reply|hold|claim|settle)\b",
    r"\bsay (the|some)\b|\bcalls? (it|the)\b|\b(seems?|looks like|may be|perhaps|maybe)\b",
    r"\bis (simply )?(a|the) (fraud|future|myth|only)\b",
    r"\b(never|always|nothing|only|every(body|one)?|nobody|no one)\b",
)
"""Words by which a statement shows itself to be an opinion."""
_FACTUAL = _any(
    r"\d|\b(is|are) (called|spelled|written)\b|\bcomes? from\b|\bexplains? the name\b",
    r"^(first|use|put|apply|let it|if you turn|then) ",
    r"\b(minutes|platform|button|label|index|file|settings|typing|scored|formula|software)\b",
)
"""Signs of a fact or of an instruction."""
_EMPTY = _any(
    r"\b(pros and cons|advantages and disadvantages|different perspectives|both views|up to you"
    r"|two sides to every|everyone is different|important to (consider|respect)|the choice is yours"
    r"|i (cannot|can't) open|happy to help|language model|chatbot|(i'm|so) sorry|i hope this)\b",
)
"""Formulas of balance or politeness that name no position."""
_DISMISSAL = _any(
    r"\b(simply mistaken|they are wrong|no debate|happens to be correct|no need to weigh)\b",
)
"""An objection that is named only to be brushed aside."""
_SAYS = _any(
    r"\b(i|we)('d| would| think| favou?r| support| believe| prefer|'m happy)\b",
    r"\b(should|ought to|must|my advice|deserves?)\b|\bthat seems right\b",
    r"\b(is|are|make|makes) (always |simply |just |only )?(better|best|wrong|right|a fraud|wordplay"
    r"|the future|the only|mistaken|nothing)\b|\bthe only fair\b|\bnothing matters\b|\bexists\.",
    r"(^|[.!?;,] )(please )?(tell|buy|keep|stay|go|quit|give|get|say|leave|punish|let|don't|never|cut|write)\b"
    r"(?! (the cream|me)\b)",
    r"\b(can't|cannot) be good\b|\bthere('s| is) no (need|debate)\b",
)
"""The speaker's own judgement, or advice."""
_SHOWS = _any(
    r"\b(my|our) (uncle|aunt|mother|father|grand\w+|cousin|son|sister|landlord|neighbours?|village)\b",
    r"\b(i have kept|the best|ask the|and now there)\b",
    r"\b(village|hedge|bridge|garden|snow|robot|wolf|deer|monk|chairs)\b",
)
"""People and things of a story, which shows what it does not say."""
_COMMON = re.compile(
    "(a|about|after|an|and|before|first|from|have|he|her|his|i|if|in|it|my|of|on|or|our|she|some|than|that"
    "|the|their|them|then|there|these|they|this|to|was|water|we|were|when|where|which|who|with|you|your)"
)
"""Words that statements share by chance."""
_SHORT = 4
"""Length of a word, in letters, and of a sentence, in words, up to which it says too little."""
_ALIKE = 6
"""Largest difference in length, in words, of statements that are set side by side."""
_LONG = 14
"""Longest of such statements: of longer ones, neighbours share words because they go on, not because they
differ."""


def find_moves(reply: str) -> Moves:
    """Find the dialectic moves of a reply.

    An antithesis is a sentence with a word of contrast beside a position, or one that opens like the
    sentence before it, or shares a word with it, at a similar length. A synthesis is the reply's last
    sentence after an antithesis, if it is more than a few words and sets nothing against them.
    """
    sentences = _sentences(reply)
    if any(_DISMISSAL.search(one) for one in sentences):
        return Moves(int(any(map(_is_position, sentences))), 0, 0)
    thesis = antithesis = synthesis = 0
    for place, sentence in enumerate(sentences):
        against = _opposes(
            sentence, sentences[place - 1] if place else "", after_thesis=bool(thesis)
        )
        if antithesis and place == len(sentences) - 1 and not against:
            synthesis += len(words_of(sentence)) > _SHORT
        elif against and not _EMPTY.search(sentence):
            thesis, antithesis = 1, antithesis + 1
        elif _is_position(sentence):
            thesis = 1
    return Moves(thesis, antithesis, synthesis)


def find_stance(reply: str) -> Stance:
    """Find the stance of a reply: what it says outright goes before what it shows."""
    sentences = _sentences(reply)
    if any(_FACTUAL.match(one) or _EMPTY.search(one) for one in sentences):
        return "none"
    if any(_SAYS.search(one) for one in sentences):
        return "explicit"
    return "implicit" if any(_SHOWS.search(one) for one in sentences) else "none"


def _opposes(sentence: str, before: str, *, after_thesis: bool) -> bool:
    """Return whether a sentence sets something against the one before it, or within itself."""
    if _CONTRAST.search(sentence) and (
        _is_position(sentence)
        or (after_thesis and not _FACTUAL.search(sentence))
        or _AT_ONCE.search(sentence)
    ):
        return True
    stated = not (_FACTUAL.search(sentence) or _FACTUAL.search(before))
    if before and stated and _parallel(before, sentence):
        return True
    clauses = re.split(r"[;,:] ", sentence)
    return _is_position(sentence) and any(map(_parallel, clauses, clauses[1:]))


def _is_position(sentence: str) -> bool:
    if _FACTUAL.search(sentence) or _EMPTY.search(sentence):
        return False
    return _VALUES.search(sentence) is not None or _OPINION.search(sentence) is not None


def _parallel(sentence: str, other: str) -> bool:
    """Return whether two different statements of similar length open alike or share a longer word."""
    first, second = words_of(sentence), words_of(other)
    if not first or not second or {*first} == {*second}:
        return False
    if abs(len(first) - len(second)) > _ALIKE or max(len(first), len(second)) > _LONG:
        return False
    if first[0] == second[0] and (not _COMMON.fullmatch(first[0]) or first[1:2] == second[1:2]):
        return True
    return any(len(word) > _SHORT and not _COMMON.fullmatch(word) for word in {*first} & {*second})


def _sentences(reply: str) -> list[str]:
    text = _QUOTED.sub("that", reply.replace("’", "'"))
    return [sentence.strip() for sentence in _SENTENCE.findall(text) if sentence.strip(" .!?")]


def words_of(text: str) -> tuple[str, ...]:
    """Return the words of a text, without case and punctuation."""
    return tuple(re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower().replace("’", "'")))


# --- what the rules are worth ---------------------------------------------------------------------


class Quality(NamedTuple):
    """Quality of the rules for one part, on one half of the labelled replies."""

    part: str
    half: str
    n: int
    positives: int
    """Replies that are labelled with the part."""
    precision: float
    """Share of the replies in which the rules find the part that are labelled with it."""
    recall: float
    """Share of the replies labelled with the part in which the rules find it."""
    f1: float
    """Harmonic mean of the two."""


DETECTORS: Mapping[str, tuple[str, ...]] = {
    "spiral_score": ("thesis", "antithesis", "synthesis"),
    "subtlety": ("explicit", "implicit"),
}
"""The parts that a metric rests on; the other metrics count, and detect nothing."""


def quality(part: str, half: str) -> Quality:
    """Measure the rules for a part on a half of the labelled replies: is it there, or not?"""
    labelled = [row for row in rows("heldout/style_labels") if row["half"] == half]
    pairs = [(_found(part, row["reply"]), _labelled(part, row)) for row in labelled]
    hits = sum(found and label for found, label in pairs)
    found, positives = sum(one for one, _ in pairs), sum(label for _, label in pairs)
    return Quality(
        part,
        half,
        len(pairs),
        positives,
        precision=hits / max(1, found),
        recall=hits / max(1, positives),
        f1=2 * hits / max(1, found + positives),
    )


def cautions(detectors: Sequence[JsonObject]) -> dict[str, str]:
    """Write a caution for each metric that rests on a weak detector, by metric.

    Args:
        detectors: `Quality` of every part on the held-out labels, as JSON.
    """
    f1 = {
        detector["part"]: float(detector["f1"])
        for detector in detectors
        if detector["half"] == HALVES[1]
    }
    said = {}
    for metric, parts in DETECTORS.items():
        weak = [f"{part} {f1[part]:.2f}" for part in parts if f1.get(part, 0.0) < GOOD_F1]
        if weak:
            said[metric] = (
                f"weak detector: F1 under {GOOD_F1} on held-out labels, {', '.join(weak)}"
            )
    return said


def _found(part: str, reply: str) -> bool:
    if part in DETECTORS["subtlety"]:
        return find_stance(reply) == part
    return bool(getattr(find_moves(reply), part))


def _labelled(part: str, row: JsonObject) -> bool:
    return bool(row["stance"] == part if part in DETECTORS["subtlety"] else row[part])
