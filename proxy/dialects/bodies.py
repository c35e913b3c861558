"""
Reading a JSON body from a stranger: bytes in, a dict out, or a 400 that says what is wrong.

Two parsers that disagree are how a check is passed and something else is sent, so nothing ambiguous gets through:
duplicate keys, NaN, lone surrogates, bad UTF-8, and nesting deeper than providers take are refused here, once.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from proxy.errors import CallerError

MAX_DEPTH = 64

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def decode_object(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`. Raises CallerError: invalid_json, invalid_unicode, duplicate_key, json_too_deep."""
    try:
        value = _decode(body)
    except UnicodeDecodeError:
        raise CallerError("The body is not valid UTF-8.", code="invalid_unicode") from None
    except RecursionError:
        raise _too_deep() from None
    except msgspec.DecodeError as error:
        raise _invalid(body, error) from None
    if not isinstance(value, dict):
        raise CallerError(
            f"The body must be a JSON object, not {_kind(value)}. Send {{...}} with Content-Type: application/json.",
            code="invalid_json",
        )
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise _too_deep()
    # What the SDKs send is compact, so re-encoding gives the same bytes, and then no key can have been there twice.
    if _encode(value) != body:
        json.loads(body, object_pairs_hook=_refuse_duplicates)
    return value


def _invalid(body: bytes, error: msgspec.DecodeError) -> CallerError:
    if not body.strip():
        return CallerError("The body is empty: send a JSON object.", code="invalid_json")
    # msgspec reports a surrogate without its partner as truncation; the standard parser reads it as it stands
    try:
        json.dumps(json.loads(body, parse_constant=_refuse_constant), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return CallerError("A string holds half of a surrogate pair (\\ud800 … \\udfff).", code="invalid_unicode")
    except (ValueError, RecursionError):
        pass
    return CallerError(f"The body is not valid JSON: {error}.", code="invalid_json")


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise CallerError(f'The key "{name[:64]}" appears twice in one object.', code="duplicate_key")
            seen.add(name)
    return found


def _too_deep() -> CallerError:
    return CallerError(f"The body is nested deeper than {MAX_DEPTH} levels.", code="json_too_deep")


def _depth(value: object) -> int:
    deepest = 0
    rest: list[tuple[object, int]] = [(value, 1)]
    while rest:
        node, depth = rest.pop()
        deepest = max(deepest, depth)
        if depth > MAX_DEPTH:
            break
        children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        rest.extend((child, depth + 1) for child in children if isinstance(child, dict | list))
    return deepest


def _kind(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
