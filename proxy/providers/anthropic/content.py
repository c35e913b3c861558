"""
The parts of a message as Anthropic's content blocks: text, images, documents.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import NoReturn, Protocol

from proxy.errors import CallerError
from proxy.providers import Json


class Note(Protocol):
    """Takes the parameter and what became of it; `lost` as in `Notice`."""

    def __call__(self, param: str, message: str, *, lost: bool = True) -> None: ...


IMAGES = {
    "image/png": "image/png",
    "image/jpeg": "image/jpeg",
    "image/jpg": "image/jpeg",
    "image/gif": "image/gif",
    "image/webp": "image/webp",
}

_DATA_URL = re.compile(
    r"data:(?P<type>[^;,]*)(?P<base64>(?:;[^;,]*)*?;base64)?,(?P<data>.*)", re.DOTALL | re.IGNORECASE
)


def content_blocks(message: Json, param: str, note: Note, *, only_text: bool = False) -> list[Json]:
    """The blocks of a message's `content`; none where it says nothing. A mark on the message is on its last block."""
    content = message.get("content")
    param = f"{param}.content"
    blocks: list[Json] = []
    if isinstance(content, str):
        blocks += [{"type": "text", "text": content}] if content.strip() else []
    else:
        for number, part in enumerate(content or ()):
            block = _block(part, f"{param}[{number}]", note)
            if block is None:
                continue
            if only_text and block["type"] != "text":
                _refuse(f"{param}[{number}]", f"{part['type']} cannot stand in an instruction, only text")
            if isinstance(part.get("cache_control"), dict):
                block["cache_control"] = part["cache_control"]
            blocks.append(block)
    mark = message.get("cache_control")
    if blocks and isinstance(mark, dict):
        blocks[-1]["cache_control"] = mark
    return blocks


def _block(part: Json, param: str, note: Note) -> Json | None:
    match part["type"]:
        case "text" | "refusal" as kind:
            text = part.get(kind) or ""
            if text and not text.strip():
                note(param, "Anthropic takes no text of white space alone; it was left out.", lost=False)
            return {"type": "text", "text": text} if text.strip() else None
        case "image_url":
            return _image(part.get("image_url") or {}, f"{param}.image_url", note)
        case "file":
            return _cited(_document(part.get("file") or {}, f"{param}.file"), part)
        case "thinking" | "redacted_thinking":
            return None  # `reasoning` puts them first in their turn
        case "input_audio":
            _refuse(param, "Anthropic takes no audio: send a transcript")
        case kind:
            _refuse(param, f"Anthropic takes no content of type {kind!r:.60}: text, image_url and file are possible")


def _image(image: Json, param: str, note: Note) -> Json:
    param = f"{param}.url"
    if image.get("detail") not in (None, "auto"):
        note("image_url.detail", "Anthropic has no image detail; it was left out.")
    url = image.get("url") or ""
    if url.startswith("https://"):
        return {"type": "image", "source": {"type": "url", "url": url}}
    found = _DATA_URL.fullmatch(url)
    if not found or not found["base64"]:
        _refuse(param, "an image is a data: URL in base64 or an https: URL")
    media_type = IMAGES.get(found["type"].lower())
    if media_type is None:
        _refuse(param, f"Anthropic takes png, jpeg, gif and webp images, not {found['type']!r:.60}")
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": found["data"]}}


def _document(file: Json, param: str) -> Json:
    data = file.get("file_data")
    if not data:
        _refuse(
            param, "files are sent to Anthropic as file_data (a data: URL), for ids of uploaded files are not shared"
        )
    param = f"{param}.file_data"
    name = file.get("filename")
    titled = {"title": name} if name else {}
    if data.startswith("https://"):
        return {"type": "document", "source": {"type": "url", "url": data}, **titled}
    found = _DATA_URL.fullmatch(data)
    if found and not found["base64"]:
        _refuse(param, "a file is a data: URL in base64")
    media_type, data = (found["type"].lower(), found["data"]) if found else ("application/pdf", data)
    if media_type == "application/pdf":
        return {"type": "document", "source": {"type": "base64", "media_type": media_type, "data": data}, **titled}
    if media_type in IMAGES:
        return {"type": "image", "source": {"type": "base64", "media_type": IMAGES[media_type], "data": data}}
    if media_type.startswith("text/") or media_type == "application/json":
        source = {"type": "text", "media_type": "text/plain", "data": _text(data, param)}
        return {"type": "document", "source": source, **titled}
    _refuse(param, f"Anthropic takes PDF and text files, not {media_type!r:.60}")


def _cited(block: Json, part: Json) -> Json:
    """Anthropic cites a document if asked: `citations: {"enabled": true}` beside the file, with `context` about it."""
    if block["type"] != "document":
        return block
    return block | {name: part[name] for name in ("citations", "context") if part.get(name)}


def _text(data: str, param: str) -> str:
    """Some clients call plain text base64; what cannot be base64 is taken as it is."""
    try:
        raw = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return data
    try:
        return raw.decode()
    except ValueError:
        _refuse(param, "a text file is UTF-8 in base64")


def _refuse(param: str, reason: str) -> NoReturn:
    raise CallerError(f"{param}: {reason}.", param=param)
