"""
The header `traceparent` of W3C Trace Context, in and out, and the ids behind it.

What does not read as the standard says counts as if it were not there. `tracestate` is not read, and not sent:
it is other systems' private word to each other, and a provider is none of them.
"""

from __future__ import annotations

import random
import re
from typing import NamedTuple

from proxy.exchange import Trace

SAMPLED = 1
SPAN_ID_BITS = 63
"""Of a request's own: one bit less than there are, so that those counted on from it need no more than there are."""

_HEADER = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[!-~]*)?[ \t]*")


class Parent(NamedTuple):
    trace_id: int
    span_id: int
    sampled: bool


def read(header: bytes) -> Parent | None:
    found = _HEADER.fullmatch(header)
    if found is None or found[1] == b"ff" or (found[1] == b"00" and found[5] is not None):
        return None
    trace_id, span_id = int(found[2], 16), int(found[3], 16)
    return Parent(trace_id, span_id, bool(int(found[4], 16) & SAMPLED)) if trace_id and span_id else None


def new_id(bits: int) -> int:
    """Never zero, which the standard calls invalid."""
    return random.getrandbits(bits) or 1


def child_id(trace: Trace, number: int) -> int:
    """
    The id of one of the request's own spans. They are counted on from the request's, which is random: the same id is
    sent to a provider while the attempt runs and given to its span when all is over, and nobody has to keep it.
    """
    return trace.span_id + number


def header_line(trace: Trace, number: int) -> bytes:
    """What the provider is sent with the request's attempt `number`."""
    if trace.passed_on:
        return trace.passed_on
    return b"traceparent: 00-%032x-%016x-%02x\r\n" % (trace.trace_id, child_id(trace, number), trace.sampled)
