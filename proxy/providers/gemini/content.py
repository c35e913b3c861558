"""
The parts of a message as Gemini's: text, media inline, media by address.
"""

from __future__ import annotations

import re
from typing import NoReturn, Protocol

from proxy.errors import CallerError
from proxy.providers import Json
from proxy.providers.gemini.models import Model


class Note(Protocol):
    """Takes the parameter and what became of it; `lost` as in `Notice`."""

    def __call__(self, param: str, message: str, *, lost: bool = True) -> None: ...


FILES = "https://generativelanguage.googleapis.com/v1beta/"
"""Where the Gemini API keeps uploaded files; their type is known there."""

TYPES = {
    "png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg", "webp": "image/webp", "gif": "image/gif",
    "heic": "image/heic", "heif": "image/heif", "bmp": "image/bmp", "pdf": "application/pdf", "txt": "text/plain",
    "md": "text/markdown", "html": "text/html", "csv": "text/csv", "json": "application/json", "xml": "text/xml",
    "mp3": "audio/mp3", "wav": "audio/wav", "flac": "audio/flac", "ogg": "audio/ogg", "m4a": "audio/m4a",
    "aac": "audio/aac", "mp4": "video/mp4", "mov": "video/mov", "webm": "video/webm", "mpeg": "video/mpeg",
    "mpg": "video/mpg", "avi": "video/avi", "wmv": "video/wmv",
}  # fmt: skip
"""By the ending of an address: Google wants to be told."""

_DATA_URL = re.compile(
    r"data:(?P<type>[^;,]*)(?P<base64>(?:;[^;,]*)*?;base64)?,(?P<data>.*)", re.DOTALL | re.IGNORECASE
)
_YOUTUBE = re.compile(r"https://(?:www\.|m\.)?(?:youtube\.com/|youtu\.be/)", re.IGNORECASE)


def content_parts(message: Json, param: str, model: Model, note: Note, *, only_text: bool = False) -> list[Json]:
    """The parts of a message's `content`; none where it says nothing, for Gemini refuses empty text."""
    content = message.get("content")
    param = f"{param}.content"
    if isinstance(content, str):
        return [{"text": content}] if content else []
    parts = []
    for number, part in enumerate(content or ()):
        native = _part(part, f"{param}[{number}]", model)
        if native is None:
            continue
        if only_text and "text" not in native:
            _refuse(f"{param}[{number}]", f"{part['type']} cannot stand in an instruction, only text")
        if part.get("cache_control"):
            note("cache_control", "Gemini caches by itself, or by cached_content; the mark was left out.")
        parts.append(native)
    return parts


def details_of(messages: list[Json]) -> set[str]:
    """The `detail` that images are asked for with, where it is more than auto."""
    parts = [part for message in messages if isinstance(message.get("content"), list) for part in message["content"]]
    images = [part.get("image_url") or {} for part in parts if part.get("type") == "image_url"]
    found = {image.get("detail") or "auto" for image in images}
    return set() if found == {"auto"} else found


def _part(part: Json, param: str, model: Model) -> Json | None:
    match part["type"]:
        case "text" | "refusal" as kind:
            return {"text": part[kind]} if part.get(kind) else None
        case "image_url" | "video_url" as kind:
            media = part.get(kind) or {}
            return _media(media.get("url") or "", f"{param}.{kind}.url", model)
        case "input_audio":
            audio = part.get("input_audio") or {}
            return {"inlineData": {"mimeType": f"audio/{audio.get('format') or 'wav'}", "data": audio.get("data")}}
        case "file":
            return _file(part.get("file") or {}, f"{param}.file", model)
        case "thinking" | "redacted_thinking":
            return None  # another provider's; `reasoning` says so
        case kind:
            _refuse(param, f"Gemini takes no content of type {kind!r:.60}: only text, images, audio and files")


def _file(file: Json, param: str, model: Model) -> Json:
    data, id = file.get("file_data"), file.get("file_id")
    if data:
        if not re.match(r"(?:data|https?|gs):", data, re.IGNORECASE):
            data = f"data:application/pdf;base64,{data}"
        return _media(data, f"{param}.file_data", model)
    if isinstance(id, str) and id.startswith("files/") and not model.cloud:
        id = FILES + id
    if isinstance(id, str) and id.startswith((FILES, "gs://")):
        return _media(id, f"{param}.file_id", model)
    _refuse(
        param,
        "Gemini takes file_data (a data: URL), or a file_id that is Google's own (files/…, gs://…): ids of files "
        "uploaded elsewhere mean nothing there",
    )


def _media(url: str, param: str, model: Model) -> Json:
    found = _DATA_URL.fullmatch(url)
    if found:
        if not found["base64"]:
            _refuse(param, "a data: URL is in base64")
        media_type = found["type"].lower() or "application/octet-stream"
        media_type = "image/jpeg" if media_type == "image/jpg" else media_type
        return {"inlineData": {"mimeType": media_type, "data": found["data"]}}
    if url.startswith(FILES) and not model.cloud:
        return {"fileData": {"fileUri": url}}
    if _YOUTUBE.match(url):
        return {"fileData": {"fileUri": url, "mimeType": "video/*"}}
    if url.startswith("gs://") or (url.startswith("https://") and model.fetches_links):
        return _by_address(url, param, model)
    if url.startswith("https://"):
        _refuse(param, "this model does not fetch addresses: send the content as a data: URL in base64")
    _refuse(param, "media is a data: URL in base64, an https: address or a gs:// one")


def takes_url(url: str, model: Model) -> bool:
    """Whether Google follows this link itself."""
    return model.fetches_links or url.startswith(FILES) or _YOUTUBE.match(url) is not None


def _by_address(url: str, param: str, model: Model) -> Json:
    """Google fetches it; the type is read from its ending. Only the Gemini API finds it out by itself."""
    path = url.partition("?")[0].partition("#")[0]
    media_type = TYPES.get(path.rpartition("/")[2].rpartition(".")[2].lower())
    if media_type:
        return {"fileData": {"fileUri": url, "mimeType": media_type}}
    if model.cloud or url.startswith("gs://"):
        _refuse(
            param,
            "Google must be told the type of what is at this address, and its ending says none: use an address that "
            "ends in .png, .jpg, .pdf …, or send the content as a data: URL in base64",
        )
    return {"fileData": {"fileUri": url}}


def _refuse(param: str, reason: str) -> NoReturn:
    raise CallerError(f"{param}: {reason}.", param=param)
