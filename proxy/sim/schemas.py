"""
A plausible instance of a JSON schema: what `sim/tools` calls a tool with and `sim/json` answers. Schemas come from
strangers: references may circle, patterns are never run, and size and depth are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any]

MAX_DEPTH = 12
MAX_NODES = 2_000
MAX_TEXT = 1_000
MAX_SAID = 4_000

_FORMATS = {
    "date": "2026-03-14",
    "date-time": "2026-03-14T09:26:53Z",
    "time": "09:26:53Z",
    "duration": "PT15M",
    "email": "ada@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/",
    "uuid": "6f1c2b3a-4d5e-4f60-8a7b-9c0d1e2f3a4b",
}

_WORDS = {
    "city": ("Paris", "Lima", "Osaka", "Nairobi"),
    "location": ("Paris", "Lima", "Osaka", "Nairobi"),
    "country": ("France", "Peru", "Japan", "Kenya"),
    "name": ("Ada", "Grace", "Emmy", "Mary"),
    "email": ("ada@example.com", "grace@example.com"),
    "unit": ("celsius", "fahrenheit"),
    "query": ("weather tomorrow", "nearest station", "latest invoice"),
    "date": ("2026-03-14", "2026-06-21"),
    "url": ("https://example.com/",),
    "currency": ("EUR", "USD", "JPY"),
    "language": ("en", "fr", "ja"),
}

_ANY_WORD = ("granite", "basalt", "quartz", "slate", "marble")


_QUOTED = re.compile("'([^']{1,200})'|\"([^\"]{1,200})\"|“([^”]{1,200})”|`([^`]{1,200})`")
_NUMBER = re.compile(r"(?<![\w.])-?\d{1,15}(?![\w.]|\.\d)")


def quotations(said: str) -> list[str]:
    """What stands in quotation marks, in its order."""
    return ["".join(found) for found in _QUOTED.findall(said[:MAX_SAID])]


class _Growth:
    """
    How much has been made so far, so that a schema that multiplies itself comes to an end; and what the prompt `said`:
    its quotations and whole numbers are used up in order, as a model would take them over.
    """

    def __init__(self, root: Schema, seed: bytes, said: str) -> None:
        self.root = root
        self.seed = seed
        self.nodes = 0
        self.said = said[:MAX_SAID]
        self.quoted = quotations(self.said)
        self.numbers = [int(found) for found in _NUMBER.findall(self.said)]

    def pick(self, count: int) -> int:
        return self.seed[self.nodes % len(self.seed)] % count if count else 0


def instance(schema: object, seed: bytes, said: str = "") -> Any:
    """A JSON value that the schema accepts, as far as it asks for types, enums, bounds and required members."""
    root: Schema = schema if isinstance(schema, Mapping) else {}
    return _value(root, _Growth(root, seed or b"\0", said), "", 0)


def _value(schema: object, growth: _Growth, name: str, depth: int) -> Any:
    growth.nodes += 1
    if not isinstance(schema, Mapping):
        return _text({}, growth, name)
    schema = _resolve(schema, growth.root)
    for fixed in ("const", "default"):
        if fixed in schema:
            return schema[fixed]
    for several in ("enum", "examples"):
        if isinstance(schema.get(several), list) and schema[several]:
            named = [one for one in schema[several] if isinstance(one, str) and one and one in growth.said]
            return named[0] if named else schema[several][growth.pick(len(schema[several]))]
    match _type(schema):
        case "object":
            return _object(schema, growth, depth)
        case "array":
            return _array(schema, growth, name, depth)
        case "integer" | "number" as kind:
            return _number(schema, growth, whole=kind == "integer")
        case "boolean":
            return bool(growth.pick(2))
        case "null":
            return None
        case _:
            return _text(schema, growth, name)


def _resolve(schema: Schema, root: Schema) -> Schema:
    """Follows local references and takes the first branch of a choice; at most 32 steps, because they may circle."""
    for _ in range(32):
        if isinstance(schema.get("$ref"), str):
            schema = _referred(schema["$ref"], root)
            continue
        for choice in ("anyOf", "oneOf"):
            branches = [branch for branch in _list(schema.get(choice)) if isinstance(branch, Mapping)]
            if branches:
                concrete = [branch for branch in branches if branch.get("type") != "null"]
                schema = {**_without(schema, choice), **(concrete or branches)[0]}
                break
        else:
            if not _list(schema.get("allOf")):
                return schema
            schema = _all_of(schema, root)
    return {}


def _all_of(schema: Schema, root: Schema) -> Schema:
    merged = dict(_without(schema, "allOf"))
    for part in _list(schema["allOf"])[:32]:
        if not isinstance(part, Mapping):
            continue
        if isinstance(part.get("$ref"), str):
            part = _referred(part["$ref"], root)
        merged["properties"] = {**_mapping(merged.get("properties")), **_mapping(part.get("properties"))}
        merged["required"] = [*_list(merged.get("required")), *_list(part.get("required"))]
        merged |= {key: value for key, value in part.items() if key not in ("properties", "required", "allOf")}
    return {key: value for key, value in merged.items() if value not in ({}, [])}


def _referred(pointer: str, root: Schema) -> Schema:
    found: object = root
    for step in pointer.removeprefix("#").strip("/").split("/") if pointer.startswith("#/") else ():
        found = _mapping(found).get(step.replace("~1", "/").replace("~0", "~"))
    return found if isinstance(found, Mapping) else {}


def _type(schema: Schema) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((one for one in kind if one != "null"), "null")
    if isinstance(kind, str):
        return kind
    if "properties" in schema:
        return "object"
    return "array" if "items" in schema or "prefixItems" in schema else "string"


def _object(schema: Schema, growth: _Growth, depth: int) -> dict[str, Any]:
    members = _mapping(schema.get("properties"))
    required = [key for key in _list(schema.get("required")) if isinstance(key, str)]
    if depth >= MAX_DEPTH or growth.nodes >= MAX_NODES:
        return {}
    # the optional members make an answer look real, but a schema that contains itself grows only by what it demands
    names = required if depth >= 3 else [*members, *(key for key in required if key not in members)]
    return {key: _value(members.get(key, {}), growth, key, depth + 1) for key in names[:200]}


def _array(schema: Schema, growth: _Growth, name: str, depth: int) -> list[Any]:
    if depth >= MAX_DEPTH or growth.nodes >= MAX_NODES:
        return []
    leading = [_value(item, growth, name, depth + 1) for item in _list(schema.get("prefixItems"))[:50]]
    least = _bound(schema.get("minItems"), 0)
    most = _bound(schema.get("maxItems"), max(least, 2))
    wanted = min(max(least, 1), most, 50)
    rest: list[Any] = []
    while len(leading) + len(rest) < wanted and growth.nodes < MAX_NODES:
        rest.append(_value(schema.get("items", {}), growth, name.removesuffix("s"), depth + 1))
    return leading + rest


def _number(schema: Schema, growth: _Growth, *, whole: bool) -> int | float:
    margin = 1 if whole else 0.5
    low, high = _real(schema.get("minimum")), _real(schema.get("maximum"))
    above, below = _real(schema.get("exclusiveMinimum")), _real(schema.get("exclusiveMaximum"))
    low = low if above is None else above + margin
    high = high if below is None else below - margin
    value: float = growth.numbers.pop(0) if growth.numbers else 1 + growth.pick(20)
    value = value if high is None else min(value, high)
    value = value if low is None else max(value, low)
    step = _real(schema.get("multipleOf"))
    if step is not None and step > 0:
        value = -(-value // step) * step
    return int(value) if whole else value


def _text(schema: Schema, growth: _Growth, name: str) -> str:
    known = _FORMATS.get(str(schema.get("format")))
    if known is not None:
        return known
    if growth.quoted and len(growth.quoted[0]) >= _bound(schema.get("minLength"), 0):
        return growth.quoted.pop(0)[: max(_bound(schema.get("maxLength"), MAX_TEXT), 1)]
    words = next((words for key, words in _WORDS.items() if key in name.lower()), _ANY_WORD)
    text = words[growth.pick(len(words))]
    least = min(_bound(schema.get("minLength"), 0), MAX_TEXT)
    most = _bound(schema.get("maxLength"), MAX_TEXT)
    while len(text) < least:
        text = f"{text} {text}"
    return text[: max(most, least)] if len(text) > most else text


def _real(value: object) -> float | None:
    """A number a float can hold, or None; schemas may carry integers of any size."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not -1e15 <= value <= 1e15:
        return None
    return value


def _bound(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else otherwise


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _without(schema: Schema, key: str) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if name != key}
