"""
What somebody wants to know of usage, read from words: of a query string, or of a command line. Pure but for its errors.

A question is answered in whole hours, since that is what is kept. Its cursor carries its hours, so that "the last 30
days" are the same days on every page.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Annotated

import msgspec

from proxy.metering.periods import DAY, GRANULARITIES, HOUR, Granularity, full_hour, midnight, starts, zone
from proxy.storage.usage_reports import After, Narrowed

DIMENSIONS = ("model", "provider", "deployment", "key", "user", "team", "tag")
WORDS = ("since", "until", "granularity", "by", "tz", *DIMENSIONS, "limit", "cursor")
DEFAULT_SINCE = "30d"
MAX_LIMIT = 1_000
MAX_PERIODS = 1_000
MAX_DAYS = 1_100

_AGO = re.compile(r"([0-9]{1,4})([hdw])")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST, _LAST = date(2000, 1, 1), date(2100, 1, 1)
_Hours = Annotated[int, msgspec.Meta(ge=0, le=1_200_000)]
_Bigint = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class Unanswerable(Exception):
    """`word` is the one that is wrong; the text goes on after its name."""

    def __init__(self, word: str, why: str) -> None:
        super().__init__(why)
        self.word = word
        self.why = why


class Question(msgspec.Struct, frozen=True, kw_only=True):
    since: datetime
    """On full hours in UTC, as `until`, which is not in it."""
    until: datetime
    granularity: Granularity | None
    """None: no line is of a time, and the dearest come first."""
    tz: str
    where: tzinfo
    by: tuple[str, ...]
    narrowed: Narrowed
    limit: int
    after: After
    mark: str
    """What a cursor remembers of the question, to be refused at another."""

    def periods(self) -> list[datetime]:
        """The start of each, as the calendar has it; without a granularity one from `since`."""
        if self.granularity is None:
            return [self.since]
        return list(starts(self.since, self.until, self.granularity, self.where))


class _Cursor(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    mark: str
    since: _Hours
    until: _Hours
    period: Annotated[int, msgspec.Meta(ge=0, lt=MAX_PERIODS)]
    descending: _Bigint
    label: Annotated[tuple[str, ...], msgspec.Meta(min_length=7, max_length=7)]


_decode_cursor = msgspec.json.Decoder(_Cursor).decode


def read_question(said: Callable[[str], str | None], now: datetime, default_limit: int) -> Question:
    """`said` gives what was said for a word of WORDS. Raises Unanswerable."""
    words = {word: said(word) for word in WORDS if word not in ("limit", "cursor")}
    for word, text in words.items():
        if text is not None and any(0xD800 <= ord(char) < 0xE000 or char == "\0" for char in text):
            raise Unanswerable(word, "must be text in UTF-8")
    tz = said("tz") or "UTC"
    where = _zone(tz)
    granularity = _granularity(said("granularity"))
    by = _by(said("by"))
    mark = hashlib.sha256(msgspec.json.encode(words)).hexdigest()[:16]
    cursor = _read_cursor(said("cursor"), mark)
    if cursor is None:
        since, until = _span(said("since") or DEFAULT_SINCE, said("until"), where, now)
        after = After()
    else:
        since, until = _EPOCH + cursor.since * HOUR, _EPOCH + cursor.until * HOUR
        after = After(cursor.period, cursor.descending, cursor.label)
    question = Question(
        since=since,
        until=until,
        granularity=granularity,
        tz=tz,
        where=where,
        by=by,
        narrowed=Narrowed(**{name: said(name) for name in DIMENSIONS}),
        limit=_limit(said("limit"), default_limit),
        after=after,
        mark=mark,
    )
    _check_length(question)
    return question


def cursor_after(question: Question, after: After) -> str:
    """For the page that begins there."""
    hours = (question.since - _EPOCH) // HOUR, (question.until - _EPOCH) // HOUR
    cursor = _Cursor(question.mark, *hours, after.period, after.descending, after.label)
    return base64.urlsafe_b64encode(msgspec.json.encode(cursor)).decode().rstrip("=")


def _read_cursor(text: str | None, mark: str) -> _Cursor | None:
    if text is None:
        return None
    try:
        cursor = _decode_cursor(base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True))
    except (binascii.Error, ValueError, msgspec.DecodeError):
        raise Unanswerable("cursor", "is none of ours: take next_cursor of the page before") from None
    if cursor.mark != mark:
        raise Unanswerable("cursor", "belongs to another question: ask the same one again, with the cursor")
    if cursor.since >= cursor.until or any("\0" in part for part in cursor.label):
        raise Unanswerable("cursor", "is none of ours: take next_cursor of the page before")
    return cursor


def _zone(name: str) -> tzinfo:
    try:
        return zone(name)
    except KeyError:
        raise Unanswerable("tz", "must be a time zone that this machine knows, such as Europe/Berlin or UTC") from None


def _granularity(text: str | None) -> Granularity | None:
    for granularity in GRANULARITIES:
        if text == granularity:
            return granularity
    if text is None:
        return None
    raise Unanswerable("granularity", f"must be one of {', '.join(GRANULARITIES)}")


def _by(text: str | None) -> tuple[str, ...]:
    by = tuple(part.strip() for part in text.split(",")) if text else ()
    for part in by:
        if part not in DIMENSIONS:
            raise Unanswerable("by", f"must be of {', '.join(DIMENSIONS)}, with commas between them")
    if len(set(by)) < len(by):
        raise Unanswerable("by", "names one thing twice")
    return by


def _limit(text: str | None, default: int) -> int:
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 1 <= int(text) <= MAX_LIMIT:
        raise Unanswerable("limit", f"must be a whole number from 1 to {MAX_LIMIT}")
    return int(text)


def _span(since: str, until: str | None, where: tzinfo, now: datetime) -> tuple[datetime, datetime]:
    """An hour is in it if it begins in it. Days ago are counted from the beginning of that day."""
    end = full_hour(_moment("until", until, where) if until else now)
    ago = _AGO.fullmatch(since)
    if ago is None:
        start = full_hour(_moment("since", since, where))
    elif ago[2] == "h":
        start = end - int(ago[1]) * HOUR
    else:
        days = int(ago[1]) * (7 if ago[2] == "w" else 1)
        last = (end - timedelta(microseconds=1)).astimezone(where).date()
        start = full_hour(midnight(last - timedelta(days), where))
    if start >= end:
        raise Unanswerable("since", "must be before until")
    return start, end


def _moment(word: str, text: str, where: tzinfo) -> datetime:
    """A day is its beginning; a time without a zone is of the question's."""
    try:
        said = datetime.fromisoformat(text)
        if said.tzinfo is None:
            whole_day = said.time() == time()
            moment = midnight(said.date(), where) if whole_day else said.replace(tzinfo=where).astimezone(UTC)
        else:
            moment = said.astimezone(UTC)
    except (ValueError, OverflowError):
        also = ", or so long ago: 24h, 30d, 12w" if word == "since" else ""
        raise Unanswerable(word, f"must be a day or a time like 2026-11-23 or 2026-11-23T14:00:00Z{also}") from None
    if not _FIRST <= moment.date() < _LAST:
        raise Unanswerable(word, "must be between the years 2000 and 2100")
    return moment


def _check_length(question: Question) -> None:
    if question.until - question.since > timedelta(days=MAX_DAYS):
        raise Unanswerable("since", f"goes back further than {MAX_DAYS} days before until")
    granularity = question.granularity
    if granularity in ("hour", "day"):
        each = HOUR if granularity == "hour" else DAY
        if (question.until - question.since) / each > MAX_PERIODS - 2:
            coarser = "day" if granularity == "hour" else "week"
            raise Unanswerable(
                "granularity", f"makes more than {MAX_PERIODS} lines of time: ask by the {coarser}, or for less time"
            )
