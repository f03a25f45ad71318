"""JSON objects read out of sentences, and calls of tools that a system message describes."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random

from forty2.failures.builtin.made import PEOPLE, THINGS, WORDS, Made
from forty2.files import JsonObject

_PLACES = (
    "Oslo Lima Cairo Hanoi Quito Dakar Perth Turin Porto Lyon Basel Ghent Delhi Kyoto Busan Tunis Accra "
    "Bogota Denver Austin Leeds Cork Malmo Riga Vilnius Sofia Split Graz Bern Nantes Seville Naples"
)
CITIES = tuple(_PLACES.split())
_CALL = (
    "You can call these tools:\n{}\nReply with one call and nothing else, as JSON: "
    '{{"name": …, "arguments": {{…}}}}. Leave out arguments that the user does not give.'
)
_TYPES: dict[type, str] = {str: "string", int: "integer", bool: "boolean", list: "array"}


def json_objects(rng: Random) -> Made:
    """Make a sentence whose facts are to be given as a JSON object with named keys."""
    values = _facts(rng)
    level = len(values) - 1
    keys = ", ".join(f"{key} ({_TYPES[type(value)]})" for key, value in values.items())
    prompt = f"{_sentence(values)} Give this as one JSON object with the keys {keys}."
    schema = {
        "type": "object",
        "properties": {key: {"type": _TYPES[type(value)]} for key, value in values.items()},
        "required": list(values),
        "additionalProperties": False,
    }
    verifier = {"kind": "json_schema", "schema": schema, "answer": values}
    return Made(prompt, verifier, json.dumps(values), level)


def _facts(rng: Random) -> JsonObject:
    person = rng.choice(PEOPLE)
    values: JsonObject = {"name": person, "city": rng.choice(CITIES)}
    more: JsonObject = {
        "age": rng.randint(18, 90),
        "member": rng.random() < 0.5,
        "likes": rng.sample(THINGS, rng.randint(1, 3)),
        "code": f"{rng.choice(WORDS)}-{rng.randint(10, 999)}",
        "visits": rng.randint(1, 400),
    }
    for key in rng.sample(sorted(more), rng.randint(1, 4)):
        values[key] = more[key]
    return values


def _sentence(values: JsonObject) -> str:
    name = values["name"]
    says: dict[str, Callable[[object], str]] = {
        "age": lambda v: f"is {v} years old",
        "member": lambda v: "is a member" if v else "is not a member",
        "likes": lambda v: f"likes {' and '.join(v)}" if isinstance(v, list) else "",
        "code": lambda v: f"has the code {v}",
        "visits": lambda v: f"came {v} times",
    }
    parts = [f"lives in {values['city']}", *(says[k](v) for k, v in values.items() if k in says)]
    return f"{name} {', '.join(parts)}."


# --- calls ----------------------------------------------------------------------------------------


def tool_calls(rng: Random) -> Made:
    """Make a wish that one of several tools fulfils."""
    tools = rng.sample(sorted(_TOOLS), rng.randint(1, 4))
    name = rng.choice(tools)
    prompt, arguments = _TOOLS[name][1](rng)
    described = "\n".join(json.dumps({"name": tool, **_TOOLS[tool][0]}) for tool in tools)
    call = {"name": name, "arguments": arguments}
    verifier = {"kind": "tool_call", **call}
    system = _CALL.format(described)
    return Made(prompt, verifier, json.dumps(call), len(tools), system, form=name)


def _tool(about: str, **types: str) -> JsonObject:
    return {"description": about, "parameters": types}


Wish = Callable[[Random], tuple[str, JsonObject]]


def _weather(rng: Random) -> tuple[str, JsonObject]:
    city, days = rng.choice(CITIES), rng.randint(2, 14)
    if rng.random() < 0.4:
        asks = ("What is the weather in {} like?", "Is it raining in {}?", "How warm is {} today?")
        return rng.choice(asks).format(city), {"city": city}
    forecast = (
        "What will the weather in {} be for {} days?",
        "{}: I need the forecast for {} days.",
    )
    return rng.choice(forecast).format(city, days), {"city": city, "days": days}


def _message(rng: Random) -> tuple[str, JsonObject]:
    person, text = rng.choice(PEOPLE), " ".join(rng.sample(WORDS, rng.randint(2, 4)))
    asks = ("Send {} the message “{}”.", "Write to {}: “{}”", "Tell {} this, word for word: “{}”")
    return rng.choice(asks).format(person, text), {"to": person, "text": text}


def _convert(rng: Random) -> tuple[str, JsonObject]:
    amount, (one, other) = (
        rng.randint(2, 9999),
        rng.sample(("EUR", "USD", "JPY", "GBP", "CHF", "SEK"), 2),
    )
    asks = ("How much are {} {} in {}?", "Change {} {} into {}.", "I have {} {}; what is it in {}?")
    arguments = {"amount": amount, "from": one, "to": other}
    return rng.choice(asks).format(amount, one, other), arguments


def _timer(rng: Random) -> tuple[str, JsonObject]:
    minutes, label = rng.randint(2, 180), rng.choice(WORDS)
    asks = (
        "Set a timer of {} minutes called {}.",
        "Start a {} minute timer, name it {}.",
        "In {} minutes, remind me of {}.",
    )
    return rng.choice(asks).format(minutes, label), {"minutes": minutes, "label": label}


def _order(rng: Random) -> tuple[str, JsonObject]:
    count, thing, city = rng.randint(2, 500), rng.choice(THINGS), rng.choice(CITIES)
    asks = ("Order {} {} for the shop in {}.", "We need {} {} in {}; order them.")
    arguments = {"item": thing, "count": count, "city": city}
    return rng.choice(asks).format(count, thing, city), arguments


def _search(rng: Random) -> tuple[str, JsonObject]:
    query, limit = " ".join(rng.sample(WORDS, rng.randint(1, 3))), rng.randint(2, 50)
    asks = ("Search for “{}”, at most {} results.", "Find “{}” for me and show {} results.")
    return rng.choice(asks).format(query, limit), {"query": query, "limit": limit}


_TOOLS: dict[str, tuple[JsonObject, Wish]] = {
    "get_weather": (_tool("Weather of a city.", city="string", days="integer, optional"), _weather),
    "send_message": (_tool("Send a text to a person.", to="string", text="string"), _message),
    "convert_currency": (
        _tool("Convert an amount.", **{"amount": "integer", "from": "string", "to": "string"}),
        _convert,
    ),
    "set_timer": (_tool("Start a timer.", minutes="integer", label="string"), _timer),
    "place_order": (
        _tool("Order goods.", item="string", count="integer", city="string"),
        _order,
    ),
    "search": (_tool("Search the web.", query="string", limit="integer"), _search),
}
