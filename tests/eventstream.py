"""AWS event streams as a server writes them: our own encoder, which shares nothing with the decoder that it tests."""

from __future__ import annotations

import binascii
from typing import Any

import msgspec

Json = dict[str, Any]
CONTENT_TYPE = "application/json"


def message(headers: dict[str, str | bytes], payload: bytes) -> bytes:
    """One message. A value that is `bytes` is written as it is: its type, and whatever belongs to it."""
    block = b""
    for name, value in headers.items():
        raw = value if isinstance(value, bytes) else b"\x07" + len(value.encode()).to_bytes(2, "big") + value.encode()
        block += bytes([len(name)]) + name.encode() + raw
    prelude = (16 + len(block) + len(payload)).to_bytes(4, "big") + len(block).to_bytes(4, "big")
    prelude += binascii.crc32(prelude).to_bytes(4, "big")
    whole = prelude + block + payload
    return whole + binascii.crc32(whole).to_bytes(4, "big")


def event(name: str, data: Any) -> bytes:
    headers: dict[str, str | bytes] = {":event-type": name, ":content-type": CONTENT_TYPE, ":message-type": "event"}
    return message(headers, msgspec.json.encode(data))


def exception(name: str, data: Any) -> bytes:
    """A failure that the service models."""
    headers: dict[str, str | bytes] = {":exception-type": name, ":content-type": CONTENT_TYPE}
    return message({**headers, ":message-type": "exception"}, msgspec.json.encode(data))


def error(code: str, text: str) -> bytes:
    """A failure that it does not: there is no payload."""
    return message({":error-code": code, ":error-message": text, ":message-type": "error"}, b"")


def framed(line: Json) -> bytes:
    """A line of a golden file."""
    match line:
        case {"event": str(name), "data": data}:
            return event(name, data)
        case {"exception": str(name), "data": data}:
            return exception(name, data)
        case {"error": str(code), "data": str(text)}:
            return error(code, text)
    raise ValueError(f"no event: {line}")
