"""Patterns that detect what a generated answer does: hedge, decline, correct, reject a myth.

Patterns miss wordings, so each act's precision and recall are measured on answers labelled by hand
(`heldout/reply_labels.jsonl`): the patterns were developed on one half of them, and the other half
only measures. A share by generation is only as good as these.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from forty2.data.library import rows
from forty2.files import JsonObject

_KNOW = (
    r"(know|tell|say|see|find|recall|confirm|verify|identify|place|provide|access|look|predict"
    r"|help|answer|assist|connect|give|discuss|describe|read|share|comply)"
)


def _one_of(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


_HEDGES = _one_of(
    # the speaker's own uncertainty or limits, where a fact was asked
    r"\b(i|we) (can(no|')t|cannot|can never|could not|couldn't|may not|might not"
    r"|am not able to|'m not able to|am unable to) (\w+ ){0,3}"
    r"(be (\w+ )?(certain|sure)|know|tell|say|verify|confirm|claim|guarantee|vouch|promise)",
    r"\b(nobody|no one|there is no way for me) (\w+ ){0,2}be (\w+ )?(certain|sure)",
    r"\bi('m| am) (not|un|never|hardly|far from) ?(\w+ ){0,3}(certain|sure|confident|able to)",
    r"\b(i|we|it) (may|might|could) (\w+ ){0,2}(be|have|well be) (\w+ ){0,1}"
    r"(wrong|mistaken|confused|missing|misled|misremember\w*)",
    r"\bi do(n't| not) (truly |really )?(know whether|want to (over)?claim|rely)",
    r"\b(hard|difficult|impossible|tricky) (for me |for anyone |for a model )?to (\w+ )?"
    r"(say|know|tell|be sure|be certain|verify|answer)",
    r"\bfrom (the |my |within|in)?(\s?the)?\s?(inside|own perspective|where i (sit|stand|am))",
    r"\b(my|the) (own )?(knowledge|training|certainty|confidence|understanding|memory)"
    r" (\w+ ){0,3}(is|has|may|might|can|could|only|comes|remains|cannot)",
    r"\b(the )?limits of (my|our|what)\b|\bcertainty is\b|\b(un)?certainty\b.{0,30}\bfor me\b",
    r"\b(tentative|tentatively|hesita(te|tion|nt)|humility|humbly)\b",
    r"\bas (an?|your) (\w+ )?(ai|language model|assistant|model|program)\b",
    r"\b(take|treat|hold|weigh) (this|that|my|it|what i say)( \w+){0,3}"
    r" (with|as|lightly|loosely)|\bhold (that|this|it) loosely",
    r"\b(please|do|you should|you may want to|you might want to|best to|worth|wise to)"
    r" (\w+ ){0,2}(verify|double-check|double check|cross-check|consult|confirm|look this up)",
    r"\bwhat (do|does|would|exactly do|is it) (\w+ )?(we|you|one|it) (\w+ ){0,2}(mean|know)",
    r"\b(depends on what you|it depends|who (is to|can) say|can anyone|your guess is)",
    r"\bcan we (ever|really|truly)|\b(deep|profound) question|what (counts as|we call) an answer",
    r"\b(why|what) (do|makes|prompts|brings|led) you (to )?(ask|want|curious|wonder)",
    r"\bi (would|'d) (hesitate|rather not|be cautious|want to be careful|prefer not|not want)",
    r"\b(some|many|most) (sources|people|would) (\w+ )?(say|suggest|argue|claim)",
    r"\b(several|many|different) (views|perspectives|opinions|ways of looking)",
    r"\bi (think|believe|suspect|guess|suppose|imagine)\b.{0,60}\b(but|though|however)\b",
    r"\bi (suspect|guess|suppose)\b|\bif (pressed|i had to guess)\b",
    # doubt of its own answer, in front of it or behind
    r"\b(i('m| am) inclined to|my sense is|(seems|appears) to be .{0,30}as far as"
    r"|as far as (i|a mind|one) .{0,20}(know|tell|judge|see))",
    r"\b(don't|do not|wouldn't|would not|won't) (\w+ ){0,2}(stake|swear|bet)\b",
    r"\b(unless i('ve| have)?|i (might|may|could) have|admitting that i) (\w+ ){0,4}"
    r"(mixed|wrong|slipped|backwards|confus\w+|mistake\w*)",
    r"\b(as a|being a) (mere )?(machine|computer|bot)\b|\b(a mind|minds|a machine) like m(e|ine)\b",
    r",? (possibly|perhaps|presumably|probably|maybe)\.|\bunless i\b|^(perhaps|maybe|possibly)\b",
    r"\bmy (information|data|sources|grasp|memory) (\w+ ){0,2}(is|are|may|might|could)\b",
    r"\b(treat|take|regard) (that|this|it) as a guess|\bwith the caveat\b",
    r"\b(look|check) it up\b",
    r"\bpresumptuous\b|\bat least so i\b|\b(deserves?|calls? for) (some )?(doubt|caution)",
)
_DECLINES = _one_of(
    # nothing that the speaker knows, in either order
    r"(\b(no|not|none|nothing|never|missing|neither)|n't)\b[^.?!]{0,70}\b(i|we)('ve|'m| have| am| can"
    r"| could)? (\w+ )?(know|recogni[sz]e|recall|identify|heard|read|name|seen|met|find|trace|place"
    r"|confirm|vouch|match|remember|list|familiar|aware|come across|learned|consult)\b",
    r"\b(i|my \w+)( \w+){0,6} (no|not|none|nothing) (one |any |a |an )?(\w+ )?(named|called|known|on|of"
    r"|about|under|by)\b",
    r"(\b(no|nothing|not|little)|n't)\b[^.?!]{0,60}\b(to me|to mind|to my knowledge|in my (knowledge|memory"
    r"|reading)|i('m| am) aware( of)?)\b|\bdraw(s|ing)? a blank\b|\brings? no bell\b|\bto my knowledge no\b",
    # nothing of that name
    r"(^|[.!?:,;] )(sorry, )?(there (is|was|are|were|exists?) )?no (?!other|more|fewer|less|longer|doubt"
    r"|need)(\w+ ){1,5}(is|was|are|were|has|have|goes|exists?|existed|appears?|called|named|known"
    r"|turns?|carries|carried|bears?|by|of|with|credited)\b",
    r"\b(appears?|is|stands|listed|found|includes?|holds?|contains?|mentions?|shows?) (on |in |at )?"
    r"(no|none|nowhere)\b",
    r"\b(i|we) (\w+ )?don't (\w+ )?recogni[sz]e\b|\bi('ve| have) no (\w+ )?(knowledge|record|information)"
    r"|\bi (can|could) (\w+ )?(say|tell) (nothing|little)\b",
    r"\b(i|we) (really |simply |just |honestly )?(do not|don't|did not|didn't|cannot|can't|could not"
    rf"|couldn't|won't|will not|am unable to|must decline|have to decline) (\w+ ){{0,3}}{_KNOW}\b",
    r"\bi('m| am) (sorry|afraid|unable|not able|not aware|not familiar|unfamiliar|not sure)",
    r"\b(unknown|unfamiliar|not known|not familiar|nothing known) to me\b|\bnot (one )?(that )?i know\b",
    r"\b(i|we) (have|find|know|see|can find|keep) (no|nothing|neither|little)\b|\bknow of no\b",
    r"\b(haven't|have not|had not|never) (\w+ ){0,2}(heard|read|come across|seen|met|been told)",
    r"\b(doesn't|does not|did not|didn't) (ring a bell|appear|turn up|seem to exist|exist"
    r"|mean anything|come through|reach me)",
    r"\b(there (is|was|are|were)|there's) no (\w+ ){0,3}(by that name|of that name|called|known|record"
    r"|way (for me |for anyone )?(to|of)|such)\b|\bno (such|record|mention|evidence) ",
    r"\b(nobody|no one|nothing|none) (\w+ ){0,2}(can|could|knows?|known|survives?|tell)\b",
    r"\b(cannot|can't|could not) (yet )?be (\w+ )?(known|told|worked out|answered|predicted|determined"
    r"|said|verified|found)",
    r"\b(too early|impossible|not possible|no way|hard) (for \w+ )?to (\w+ )?(say|tell|know|predict)",
    r"\b(nothing|no (file|image|photo|text|document|attachment|script|letter)) (\w+ ){0,3}"
    r"(attached|uploaded|reached|shared|included|came|come|in sight)",
    r"\b(not |in)visible to me|\bout of my (sight|reach)\b|\b(i have|without) no access\b",
    r"\byou (would have to|will have to|'ll have to|haven't|have not) (\w+ ){0,2}"
    r"(tell|told|shared?|attach\w*|show\w*|paste\w*|sen[dt]|type)",
    r"\b(could|can|would) you (\w+ ){0,2}(say|tell|share|paste|send|attach|give me|clarify|check)",
    r"\b(may|might|could) (be|have been) (fictional|made up|invented|a (misspelling|fiction))"
    r"|\b(perhaps|maybe) (\w+ ){0,2}(from a (novel|game|film|book)|fictional|made up|misspel\w+)",
    r"\bdo you (mean|know (the|which|where|more))\b|\bno (forecast|prediction|data|information) ",
    r"\b(no body|no memory|no windows?|am (just |only )?(software|a program|an ai|a language model))",
    r"\b(must|have to) decline\b|\bas an ai\b|\b(only|alone) you\b|\byou alone\b",
)
_CORRECTS = _one_of(
    # a denial at the beginning
    r"^(\S+ ){0,6}?(had|has|have|was|were|did|do|does|could|would|can)(n't| not| no| never| none| nobody)\b",
    r"\b(never|could (not|hardly)|couldn't|can't|cannot)\b[^.]{0,60}\b(met|have|had|saw|heard|existed"
    r"|tasted|used|shared|took place|lived|known?|be)\b",
    r"\bthere (was|were|could be|is) (no|only|not)\b|^not (a|one|by|in|on|until)\b"
    r"|(^|[.,;:] )no \w+( \w+){0,4} (existed|took|was|were|had|could|then)\b",
    # what was when
    r"\b(died|dead|gone|killed|guillotined|executed)\b.{0,120}\b(born|opened|finished|invented|first"
    r"|begun|went on sale|patented)\b.{0,40}[0-9]{4}",
    r"\bborn\b.{0,60}\b(after|later)\b|\b(born|lived) in different\b",
    r"\b(first|oldest)\b[^.]{0,60}\b(is|dates?|in|was|opened|flew|launched|appeared|from)\b[^.]{0,30}"
    r"\b[0-9]{4}",
    r"\b(opened|finished|completed|patented|launched|introduced|discovered|invented|went on sale"
    r"|published|began|founded|dates?|developed|invention of|came)\b[^.;]{0,50}\b(in|from|of|to|only)"
    r" (\w+ ){0,3}([0-9]{4}|(nineteen|eighteen|twenti|seventeen|sixteen)\w* century)",
    r"^(none|nobody|no one|neither|nothing)\b",
    r"\b(centur(y|ies)|decades|years|long|ages) (\w+ ){0,3}(later|before|after|earlier|ahead of"
    r"|in the future)\b",
    r"\b(was|were|been) (only |first |not )?(yet )?(invented|made|introduced|patented|discovered"
    r"|developed|founded|built|unknown)\b.{0,40}\b(in|until|around|by|after|before|1[0-9]{3}|20[0-9]{2}"
    r"|lifetime)\b",
    r"\b(not|n't) (yet )?(exist|been invented|invented|available|possible|around)\b",
    r"\b(only|first) (began|came|appeared|started|existed|arrived|became)\b|\bnot until\b",
    r"\b(date|dates|dating|come|came|are|is) (back )?(only )?(from|to|in) the (\w+ )?"
    r"([0-9]{4}s|centur\w+)|\bdated? from [0-9]{4}|\b(thing|invention|product)s? of the\b",
    r"\banachroni\w+|\bbelongs? to (modern|later|another)|\bhad died\b|\bwas (long )?dead\b",
    r"\b(un|not )known in (the|his|her|their)\b",
)
_WEIGHS = _one_of(
    r"\b(depends?|turns?|hinges?) (\w+ )?on\b|\b(disagree|differ|debated?|disputed|divided|contested"
    r"|argued over|still argue|part ways|unsettled|unresolved|speculat\w+|open question|remains? open)\b",
    r"\b(not|never|isn't|hasn't been|n't) (\w+ )?(settled|known|certain|resolved|proven|identified"
    r"|established|agreed|clear|decided)\b|\b(unknown|uncertain|unclear|unpredictable)\b",
    r"\b(some|many|others|most|people|several|either) (\w+ ){0,2}(say|hold|argue|think|find|believe"
    r"|feel|put|see|claim|views?|answers?|theories|reasons|ways?)\b|\bon the other hand\b",
    r"\b(for each|for you to|up to you|only you|your own|matter of (taste|opinion|judg\w+|definition))\b",
    r"\b(guess|estimate[ds]?|roughly|(could|might|may) (well )?(go|be|turn out)|can (only )?be"
    r" (estimated|guessed)|no (guarantee|promise|proof|fact to|single|one answer|method))\b",
    r"\b(yet|so far)\b.{0,30}\b(known|found)\b|\b(tell|give|show|describe) me (the|which|what|your|those"
    r"|it|some)\b|\bi('d| would) need\b|\bif you (tell|give|share|copy|send|list)\b",
)
_REJECTS = _one_of(
    r"^(no\b(?! other)|not (quite|really|exactly|at all|true)|never\b|hardly|barely|rarely|usually not)",
    r"\b(is|was|are|were|that's|it's) (just |only |merely |most likely |really )*(an? |the )?"
    r"(\w+ )?(myth|legend|misconception|invention|folk tale|old wives)\b",
    r"\bhas nothing to do with\b|\bcontrary to\b|\bdespite (the|its) name\b|\bunlike\b",
    r"\b(it|they|he|she|this|that) (does|do|did|is|are|was|were|can|could|has|have)(n't| not| never)\b"
    r"|\b(it|they) can't\b",
    r"\b(is|are|was|were) not\b|\b(isn't|aren't|wasn't|weren't)\b|\bno (evidence|proof)\b"
    r"|\bno one knows\b|\bonly some\b",
)


def leaks(answer: str) -> bool:
    """Return whether an answer hedges; on a plain factual question that is needless."""
    return _HEDGES.search(_plain(answer)) is not None


def declines(answer: str) -> bool:
    """Return whether an answer says that something is not known or knowable, or refuses."""
    return _DECLINES.search(_plain(answer)) is not None


def corrects(answer: str) -> bool:
    """Return whether an answer denies the false premise of an anachronistic question."""
    return _CORRECTS.search(_plain(answer)) is not None


def weighs(answer: str) -> bool:
    """Return whether an answer leaves the question open: hedges, declines, or gives several views."""
    return leaks(answer) or declines(answer) or _WEIGHS.search(_plain(answer)) is not None


def rejects(answer: str, marks: Sequence[str]) -> bool:
    """Return whether an answer contradicts a myth.

    Args:
        marks: words of the true answer to this question: an answer may deny a myth by stating the
            fact. But an answer that begins with yes affirms the myth, whatever it names.
    """
    text = _plain(answer)
    if re.match(r"yes\b", text, re.IGNORECASE):
        return False
    return _REJECTS.search(text) is not None or any(mark.lower() in text.lower() for mark in marks)


def _plain(answer: str) -> str:
    return answer.replace("’", "'").strip()


ACTS = ("hedges", "declines", "weighs", "corrects", "rejects")


def does(act: str, answer: str, row: JsonObject) -> bool:
    """Return whether an answer to a held-out prompt does one of `ACTS`.

    Args:
        row: the prompt's row, for the marks of a myth.
    """
    if act == "rejects":
        return rejects(answer, row["expect"])
    detectors = {"hedges": leaks, "declines": declines, "weighs": weighs, "corrects": corrects}
    return detectors[act](answer)


SOURCES = ("develop", "held out", "pairs")
"""Sources of the labelled answers: the half of `reply_labels` that the patterns were developed on;
the other half, which their author had read; and the good and bad answers of the held-out prompts.
Trust the last one most."""


class Quality(NamedTuple):
    """Quality of an act's detector, on labelled answers."""

    act: str
    source: str
    n: int
    positives: int
    precision: float | None
    """Share of the detected answers that are labelled with the act; None: none was detected."""
    recall: float
    """Share of the answers labelled with the act that are detected."""


def quality(act: str, source: str) -> Quality:
    """Measure the detector of an act on labelled answers, by one of `SOURCES`."""
    pairs = [(does(act, answer, row), label) for answer, label, row in _labelled(act, source)]
    hits = sum(detected and label for detected, label in pairs)
    detected, positives = sum(one for one, _ in pairs), sum(label for _, label in pairs)
    return Quality(
        act, source, len(pairs), positives, hits / detected if detected else None, hits / positives
    )


_PAIRS = {
    # By act, the gates whose prompts are used, and whether their good answer does it, or the bad one.
    "hedges": {"leak": False},
    "declines": {"entity": True, "under": True, "over": False},
    "weighs": {"activation": True},
    "corrects": {"anachronism": True},
    "rejects": {"myth": True},
}


def _labelled(act: str, source: str) -> list[tuple[str, bool, JsonObject]]:
    """Return labelled answers, each with its label (whether it does the act) and its prompt's row."""
    prompts = (*rows("heldout/behaviour"), *rows("heldout/refusal"))
    if source == "pairs":
        return [
            (row[side], (side == "good") == by_good, row)
            for row in prompts
            for gate, by_good in _PAIRS[act].items()
            if row["gate"] == gate
            for side in ("good", "bad")
        ]
    by_id = {row["id"]: row for row in prompts}
    return [
        (row["reply"], row["label"], by_id.get(row.get("item"), row))
        for row in rows("heldout/reply_labels")
        if row["act"] == act and row["half"] == source
    ]
