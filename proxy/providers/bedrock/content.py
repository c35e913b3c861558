"""
The parts of a message as Converse's content blocks: text, images, documents, video, audio.

A cache mark is a block of its own here, which stands behind the block it marks; so a part becomes a `Piece`: a block
and perhaps its cache point, which stay together however a turn is put in order.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Collection
from typing import NoReturn, Protocol

from proxy.errors import CallerError
from proxy.providers import Json

Piece = list[Json]


class Note(Protocol):
    """Takes the parameter and what became of it; `lost` as in `Notice`."""

    def __call__(self, param: str, message: str, *, lost: bool = True) -> None: ...


IMAGES = {"image/png": "png", "image/jpeg": "jpeg", "image/jpg": "jpeg", "image/gif": "gif", "image/webp": "webp"}
DOCUMENTS = {
    "application/pdf": "pdf", "text/csv": "csv", "text/html": "html", "text/markdown": "md", "text/x-markdown": "md",
    "application/msword": "doc", "application/vnd.ms-excel": "xls", "application/json": "txt",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
}  # fmt: skip
"""All other kinds of text are `txt`."""
UNKNOWN = ("", "application/octet-stream")
"""Media types that say nothing: then the ending of the file's name counts."""
VIDEOS = {
    "video/x-matroska": "mkv", "video/matroska": "mkv", "video/quicktime": "mov", "video/mp4": "mp4",
    "video/webm": "webm", "video/x-flv": "flv", "video/mpeg": "mpeg", "video/x-ms-wmv": "wmv", "video/3gpp": "three_gp",
}  # fmt: skip
AUDIO = frozenset({"mp3", "opus", "wav", "aac", "flac", "mp4", "ogg", "mkv", "m4a", "mpeg", "pcm", "webm"})
ENDINGS = {"jpg": "jpeg", "3gp": "three_gp", "htm": "html", "markdown": "md"}
"""Endings of names in S3 that are not the format's own name."""

MAX_NAME_CHARACTERS = 200
FILLER = {"text": "."}
"""Said where the API wants some text and the caller has none: it refuses blank text."""

_DATA_URL = re.compile(
    r"data:(?P<type>[^;,]*)(?P<base64>(?:;[^;,]*)*?;base64)?,(?P<data>.*)", re.DOTALL | re.IGNORECASE
)


class Parts:
    """
    The parts of one request: documents in it must not share a name. `buckets` are those of S3 that callers may name,
    for Bedrock reads them with the gateway's own rights.
    """

    def __init__(self, note: Note, *, caches: bool, buckets: Collection[str] = ()) -> None:
        self.note = note
        self._caches = caches
        self._buckets = buckets
        self._names: dict[str, int] = {}
        """Of documents, with the last number that was put behind each."""

    def pieces(self, message: Json, param: str, *, only_text: bool = False) -> list[Piece]:
        """A message's `content`; none where it says nothing. A mark on the message is on its last block."""
        content = message.get("content")
        param = f"{param}.content"
        pieces: list[Piece] = []
        if isinstance(content, str):
            pieces += [[{"text": content}]] if content.strip() else []
        else:
            for number, part in enumerate(content or ()):
                block = self._block(part, f"{param}[{number}]")
                if block is None:
                    continue
                if only_text and "text" not in block:
                    refuse(f"{param}[{number}]", f"{part['type']} cannot stand in an instruction, only text")
                pieces.append([block, *self.mark(part.get("cache_control"))])
        mark = self.mark(message.get("cache_control"))
        if pieces and mark:
            pieces[-1] = [pieces[-1][0], *mark]
        return pieces

    def mark(self, control: object) -> list[Json]:
        """A `cache_control` as a cache point. Five minutes are the default and need no saying."""
        if not isinstance(control, dict):
            return []
        if not self._caches:
            self.note("cache_control", "This model has no prompt cache to mark; the mark was left out.", lost=False)
            return []
        ttl = control.get("ttl")
        return [{"cachePoint": {"type": "default", "ttl": ttl} if ttl == "1h" else {"type": "default"}}]

    def _block(self, part: Json, param: str) -> Json | None:
        match part["type"]:
            case "text" | "refusal" as kind:
                text = part.get(kind) or ""
                if text and not text.strip():
                    self.note(param, "Bedrock takes no text of white space alone; it was left out.", lost=False)
                return {"text": text} if text.strip() else None
            case "image_url":
                return self._image(part.get("image_url") or {}, f"{param}.image_url")
            case "file":
                return self._file(part, f"{param}.file")
            case "video_url":
                url = (part.get("video_url") or {}).get("url") or ""
                return {"video": self._media(url, VIDEOS, "a video", f"{param}.video_url.url")}
            case "input_audio":
                return _audio(part.get("input_audio") or {}, f"{param}.input_audio")
            case "thinking" | "redacted_thinking":
                return None  # `reasoning` puts them first in their turn
            case kind:
                known = "text, image_url, file, video_url and input_audio"
                refuse(param, f"Bedrock takes no content of type {kind!r:.60}: {known} are possible")

    def _image(self, image: Json, param: str) -> Json:
        if image.get("detail") not in (None, "auto"):
            self.note("image_url.detail", "Bedrock has no image detail; it was left out.")
        return {"image": self._media(image.get("url") or "", IMAGES, "an image", f"{param}.url")}

    def _file(self, part: Json, param: str) -> Json:
        file = part.get("file") or {}
        data = file.get("file_data")
        if not data:
            refuse(param, "files are sent to Bedrock as file_data (a data: URL), "
                   "for ids of uploaded files are not shared")  # fmt: skip
        name = file.get("filename") or ""
        kind, source = self._source(data, "a file", f"{param}.file_data")
        if kind in UNKNOWN:
            kind = _ending(name) or "pdf"
        for block, formats in (("image", IMAGES), ("video", VIDEOS)):
            if form := _format(kind, formats):
                return {block: {"format": form, "source": source}}
        form = _format(kind, DOCUMENTS) or ("txt" if kind.startswith("text/") or kind == "txt" else "")
        if not form:
            takes = "PDF, Word, Excel, CSV, HTML, Markdown and text"
            refuse(f"{param}.file_data", f"Bedrock takes {takes}, not {kind!r:.60}")
        document: Json = {"format": form, "name": self._name(name), "source": source}
        if isinstance(part.get("citations"), dict):
            document["citations"] = part["citations"]
        return {"document": document}

    def _name(self, filename: str) -> str:
        """Letters, digits, single spaces, hyphens, brackets; and no name twice in one request."""
        stem = filename.rpartition(".")[0] or filename
        plain = " ".join(re.sub(r"[^a-zA-Z0-9\s()\[\]-]", " ", stem).split())[: MAX_NAME_CHARACTERS - 8].strip()
        plain = plain or "document"
        name = plain
        while name in self._names:
            self._names[plain] += 1
            name = f"{plain} {self._names[plain]}"
        self._names[name] = 1
        return name

    def _media(self, url: str, formats: dict[str, str], what: str, param: str) -> Json:
        """`format` and `source` of an image or a video."""
        kind, source = self._source(url, what, param)
        form = _format(kind, formats)
        if not form:
            refuse(param, f"Bedrock takes {', '.join(dict.fromkeys(formats.values()))} here, not {kind!r:.60}")
        return {"format": form, "source": source}

    def _source(self, url: str, what: str, param: str) -> tuple[str, Json]:
        """The kind, as a media type or a format or "" for unknown, and the `source`."""
        if url.startswith("s3://"):
            bucket = url.removeprefix("s3://").partition("/")[0]
            if bucket not in self._buckets:
                refuse(param, "Bedrock would read S3 with this gateway's own rights, so the operator has to allow the "
                       f"bucket first: quirks: {{s3: [{bucket:.63}]}}")  # fmt: skip
            return _ending(url), {"s3Location": {"uri": url}}
        if url.startswith(("https://", "http://")):
            refuse(param, f"Bedrock fetches nothing from the web: send {what} as a data: URL in base64")
        found = _DATA_URL.fullmatch(url)
        if found is None:
            if what == "a file" and url:
                return "", {"bytes": url}
            refuse(param, f"{what} is a data: URL in base64")
        if found["base64"]:
            return found["type"].lower(), {"bytes": found["data"]}
        if not found["type"].lower().startswith("text/"):
            refuse(param, f"{what} is a data: URL in base64")
        return found["type"].lower(), {"bytes": base64.b64encode(found["data"].encode()).decode()}


def _format(kind: str, formats: dict[str, str]) -> str:
    """By media type, or as an ending that is the format's own name; "" if it is neither."""
    return formats.get(kind) or (kind if kind in formats.values() else "")


def _ending(name: str) -> str:
    ending = name.rpartition(".")[2].lower() if "." in name else ""
    return ENDINGS.get(ending, ending)


def _audio(audio: Json, param: str) -> Json:
    form = audio.get("format") or ""
    if form not in AUDIO or not audio.get("data"):
        refuse(param, f"Bedrock takes audio as data in base64 with one of the formats {', '.join(sorted(AUDIO))}")
    return {"audio": {"format": form, "source": {"bytes": audio["data"]}}}


def refuse(param: str, reason: str) -> NoReturn:
    raise CallerError(f"{param}: {reason}.", param=param)
