"""
What may stand behind the question mark of a page that lists: each name once, nothing unknown, nothing endless; and
where its list goes on.
"""

from __future__ import annotations

import base64
import binascii
import struct
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from starlette.requests import Request

from proxy.errors import CallerError

MAX_VALUE_CHARS = 300

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CURSOR = struct.Struct(">q16s")


class Parameters:
    """The parameters of a request. Every mistake is a CallerError 400 that names its parameter."""

    def __init__(self, request: Request, known: Sequence[str], *, max_chars: int = MAX_VALUE_CHARS) -> None:
        self._said: dict[str, str] = {}
        for name, value in request.query_params.multi_items():
            if name not in known:
                raise wrong(name[:64], f"is not known here; there are {', '.join(known)}")
            if name in self._said:
                raise wrong(name, "is given twice")
            if not value or "\0" in value or len(value) > max_chars:
                raise wrong(name, f"must have 1 to {max_chars} characters, none of them NUL")
            self._said[name] = value

    def text(self, name: str) -> str | None:
        return self._said.get(name)

    def whole(self, name: str, low: int, high: int) -> int | None:
        text = self._said.get(name)
        if text is None:
            return None
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise wrong(name, f"must be a whole number from {low} to {high}")
        return int(text)

    def moment(self, name: str) -> datetime | None:
        """In UTC unless it says otherwise."""
        text = self._said.get(name)
        if text is None:
            return None
        try:
            moment = datetime.fromisoformat(text)
            # In UTC here and not at the database: one near the ends of the calendar may have no such time.
            return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        except (ValueError, OverflowError):
            raise wrong(name, "must be a time like 2026-11-23T14:00:00Z") from None


def wrong(name: str, why: str) -> CallerError:
    shown = name.encode("unicode_escape").decode()
    return CallerError(f"The parameter {shown} {why}.", code="invalid_value", param=name)


def cursor_after(moment: datetime, id: str) -> str:
    microseconds = (moment - _EPOCH) // timedelta(microseconds=1)
    return base64.urlsafe_b64encode(_CURSOR.pack(microseconds, uuid.UUID(id).bytes)).decode()


def read_cursor(text: str | None) -> tuple[datetime, str] | None:
    if text is None:
        return None
    try:
        microseconds, id = _CURSOR.unpack(base64.urlsafe_b64decode(text.encode()))
        return _EPOCH + timedelta(microseconds=microseconds), str(uuid.UUID(bytes=id))
    except (binascii.Error, struct.error, OverflowError, ValueError):
        raise wrong("cursor", "must be next_cursor of the page before, unchanged") from None
