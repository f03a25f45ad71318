"""Dates and times of day: days before and after, days between, weekdays, hours added."""

from __future__ import annotations

from datetime import date, timedelta
from random import Random

from forty2.failures.builtin.made import Made, number_question, text_question

_MONTHS = "January February March April May June July August September October November December"
MONTHS = tuple(_MONTHS.split())
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_FIRST, _LAST = date(1950, 1, 1).toordinal(), date(2060, 12, 31).toordinal()


def dates(rng: Random) -> Made:
    """Make a question about dates or times."""
    form, make = rng.choice(
        (("after", _after), ("between", _between), ("weekday", _weekday), ("clock", _clock))
    )
    return make(rng)._replace(form=form)


def _day(rng: Random) -> date:
    return date.fromordinal(rng.randint(_FIRST, _LAST))


def _written(day: date) -> str:
    return f"{day.day} {MONTHS[day.month - 1]} {day.year}"


def _after(rng: Random) -> Made:
    day, level = _day(rng), rng.randint(1, 3)
    n = rng.randint(2, (20, 100, 900)[level - 1])
    back = rng.random() < 0.5
    result = day - timedelta(n) if back else day + timedelta(n)
    prompt = (
        f"Which date is {n} days {'before' if back else 'after'} {_written(day)}? "
        "Reply in the form YYYY-MM-DD only."
    )
    return text_question(prompt, result.isoformat(), level)


def _between(rng: Random) -> Made:
    day, level = _day(rng), rng.randint(1, 3)
    n = rng.randint(2, (28, 120, 900)[level - 1])
    end = day + timedelta(n)
    prompt = rng.choice(
        (
            "How many days after {} is {}?",
            "From {} to {}, how many days pass?",
            "{} was day zero. Which day number is {}?",
        )
    ).format(_written(day), _written(end))
    return number_question(prompt, n, f"From {day} to {end} it is {n} days.", level)


def _weekday(rng: Random) -> Made:
    day, level = _day(rng), rng.randint(1, 2)
    n = rng.randint(2, (6, 400)[level - 1])
    end = day + timedelta(n)
    prompt = (
        f"{_written(day)} is a {DAYS[day.weekday()]}. Which day of the week is it {n} days later? "
        "Reply with the day only."
    )
    made = text_question(prompt, DAYS[end.weekday()], level)
    return made._replace(verifier={**made.verifier, "ignore_case": True})


def _clock(rng: Random) -> Made:
    start, n = rng.randrange(1440), rng.randint(5, 1400)
    end = (start + n) % 1440
    hours, minutes = divmod(n, 60)
    passed = f"{hours} hours and {minutes} minutes" if hours else f"{minutes} minutes"
    what = rng.choice(
        ("A train", "A film", "A shift", "A flight", "A concert", "A lesson", "A walk")
    )
    prompt = (
        f"{what} begins at {start // 60:02}:{start % 60:02} and takes {passed}. At what time does it "
        "end? Reply in the form HH:MM only."
    )
    return text_question(prompt, f"{end // 60:02}:{end % 60:02}", 1 if n < 60 else 2)
