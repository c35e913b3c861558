"""
How a provider differs from OpenAI's API, as data. What the caller loses by it is a notice; what would be another answer
is a refusal.

    rename           {old: new}; messages[].x renames within every message
    drop             [name, …]: not taken; messages[].x and tools[].function.x are fields inside
    set              {name: value}: forced
    only             {name: [value, …]}: any other value is refused
    values           {name: {value: its value there, or {field: value, …} in its place}}
    roles            {role: role there}
    thoughts         the field of a message in which it wants its earlier thoughts back, as plain text
    response_format  [type, …]: those taken; for another the model is told what to write
    stream_options   false: not taken, and usage comes all the same
    normalise        true: its answers are translated, for they would mean something else to a client of OpenAI's
    forward          [header, …] of the client's that it may see
    key_check        the path that answers only to a key, where its list of models answers to anybody
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from proxy.errors import CallerError
from proxy.providers import Json, Notice
from proxy.providers.schemas import described

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,), "logprobs": (False,), "top_logprobs": (0,), "logit_bias": ({},), "tool_choice": ("auto",),
    "parallel_tool_calls": (True,), "store": (False,), "metadata": ({},), "frequency_penalty": (0,),
    "presence_penalty": (0,), "service_tier": ("auto", "default"), "tools[].function.strict": (False,),
    "response_format": ({"type": "text"},),
}  # fmt: skip
"""Values that say what is so anyhow: nothing is lost with them. Null never says anything."""

_THOUGHTS = frozenset({"reasoning_content", "reasoning", "reasoning_details"})

UNSIGNED = "unsigned"
"""The format of thoughts, in `reasoning_details`, that are text alone: kept for those who want that back."""

JSON_HINT = "Answer with one JSON object and nothing else: no prose around it, no code fence."
SCHEMA_HINT = "Answer with one JSON value and nothing else, without a code fence. It must fit this JSON schema: "


def apply(body: Json, quirks: Mapping[str, Any]) -> tuple[Json, list[Notice]]:
    """
    The body as this provider wants it; `body` stays as it is. Renames come first, then what is refused, values, drops
    and values set. Raises CallerError.
    """
    if not quirks:
        return body, []
    body, notices = dict(body), list[Notice]()
    for old, new in quirks.get("rename", {}).items():
        _rename(body, old, new)
    if roles := quirks.get("roles"):
        body["messages"] = [_in_role(message, roles) for message in body.get("messages") or ()]
    if field := quirks.get("thoughts"):
        body["messages"] = [_with_thoughts(message, field) for message in body.get("messages") or ()]
    for name, allowed in quirks.get("only", {}).items():
        if body.get(name) is not None and body[name] not in allowed:
            raise CallerError(f"This provider takes {name} only as {_shown(allowed)}.", param=name)
    for name, values in quirks.get("values", {}).items():
        _replace(body, name, values, notices)
    if "response_format" in quirks:
        _ask_in_words(body, quirks["response_format"], notices)
    for name in quirks.get("drop", ()):
        if _drop(body, name):
            notices.append(Notice(name, f"This provider does not take {name}; it was left out."))
    for name, value in quirks.get("set", {}).items():
        if body.get(name) not in (None, value):
            notices.append(Notice(name, f"The operator has set {name} for this provider; the value sent was not used."))
        body[name] = value
    return body, notices


def _rename(body: Json, old: str, new: str) -> None:
    list_name, _, inner = old.rpartition("[].")
    if not list_name:
        if old in body:
            body[new] = body.pop(old)
    elif any(inner in item for item in _items(body, list_name)):
        name = new.rpartition("[].")[2]
        body[list_name] = [
            {name if key == inner else key: value for key, value in item.items()} for item in body[list_name]
        ]


def _in_role(message: Json, roles: Mapping[str, str]) -> Json:
    role = roles.get(message.get("role") or "")
    return {**message, "role": role} if role else message


def _with_thoughts(message: Json, field: str) -> Json:
    """By whichever of three names a client, or our own memory, has kept them."""
    if not _THOUGHTS & message.keys():
        return message
    details = message.get("reasoning_details")
    texts = [one.get("text") or "" for one in details if isinstance(one, dict)] if isinstance(details, list) else []
    text = message.get("reasoning_content") or message.get("reasoning") or "".join(texts)
    others = {name: value for name, value in message.items() if name not in _THOUGHTS}
    return {**others, field: text} if text else others


def _replace(body: Json, name: str, values: Mapping[str, Any], notices: list[Notice]) -> None:
    sent = body.get(name)
    if not isinstance(sent, str) or sent not in values:
        return
    there = values[sent]
    if isinstance(there, Mapping):
        del body[name]
        body.update(there)
    else:
        body[name] = there
    notices.append(Notice(name, f"This provider has no {name} {sent!r:.40}; {_shown(there)} was used.", lost=False))


def _ask_in_words(body: Json, taken: list[str], notices: list[Notice]) -> None:
    wanted = body.get("response_format")
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if not isinstance(wanted, dict) or kind in (None, "text") or kind in taken:
        return
    form = wanted.get("json_schema") or {}
    hint = SCHEMA_HINT + msgspec.json.encode(described(form)).decode() if form.get("schema") else JSON_HINT
    body["messages"] = [{"role": "system", "content": hint}, *(body.get("messages") or ())]
    if "json_object" in taken:
        body["response_format"] = {"type": "json_object"}
    else:
        del body["response_format"]
    message = f"This provider cannot be held to {kind}; the model was told what to write."
    notices.append(Notice("response_format", message, lost=kind == "json_schema"))


def _drop(body: Json, name: str) -> bool:
    """Whether anything was lost."""
    neutral = (None, *NEUTRAL.get(name, ()))
    list_name, _, path = name.rpartition("[].")
    if not list_name:
        return body.pop(name, None) not in neutral
    found = [value for item in _items(body, list_name) for value in _at(item, path.split("."))]
    if found:
        body[list_name] = [_without(item, path.split(".")) for item in body[list_name]]
    return any(value not in neutral for value in found)


def _items(body: Json, name: str) -> list[Json]:
    return [item for item in body.get(name) or () if isinstance(item, dict)]


def _at(item: Any, path: list[str]) -> Iterator[Any]:
    if isinstance(item, dict) and path[0] in item:
        yield from _at(item[path[0]], path[1:]) if path[1:] else (item[path[0]],)


def _without(item: Any, path: list[str]) -> Any:
    if not isinstance(item, dict) or path[0] not in item:
        return item
    if not path[1:]:
        return {key: value for key, value in item.items() if key != path[0]}
    return {**item, path[0]: _without(item[path[0]], path[1:])}


def _shown(value: Any) -> str:
    return msgspec.json.encode(value).decode()
