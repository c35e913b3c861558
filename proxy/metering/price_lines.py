"""
Lines of a price list, and the arithmetic over them. All of it is integers.

A line has a rate for each bucket of `Usage`, in pico-dollars, and a name of its own (`source`) that ledger rows carry:
with the line and the row anybody can calculate the cost again. A cost is summed exactly and rounded half up to
nano-dollars once.

A bucket without a rate of its own is unknown, but for these rules, which are how those providers bill that list no
such rate: cached input as input (no discount; https://docs.together.ai/docs/inference-models), cache writes as input
(no surcharge; https://platform.openai.com/docs/guides/prompt-caching), reasoning as output
(https://platform.openai.com/docs/guides/reasoning), images that are read as input
(https://platform.openai.com/docs/guides/images-vision#calculating-costs). An hour's cache write is never taken for a
short one, audio never for text, an image that is made never for text. A model that is free is free in all its tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from proxy.exchange import PriceState, Usage
from proxy.storage.ledger import LedgerRow

BUCKETS: tuple[str, ...] = Usage.__struct_fields__
REQUEST = "request"
"""Stands beside the buckets in the lines of the database."""
COLUMNS = {bucket: bucket if bucket == "searches" else f"{bucket}_tokens" for bucket in BUCKETS}
"""The ledger's names of the buckets."""
PICO_PER_NANO = 1000
DAY_MS = 86_400_000
MAX_SOURCE_CHARS = 300
MAX_NAME_CHARS = 200

Rates = tuple[int | None, ...]
"""Pico-dollars of a token (of a search) for each bucket, in the order of `Usage`; None: not listed."""

_HALF_NANO = PICO_PER_NANO // 2
_INPUTS = tuple(BUCKETS.index(name) for name in ("input", "cache_read", "cache_write_5m", "cache_write_1h"))
_OTHER_INPUTS = tuple(BUCKETS.index(name) for name in ("audio_input", "image_input"))
_OUTPUTS = tuple(BUCKETS.index(name) for name in ("output", "reasoning", "audio_output", "image_output"))


class Price(NamedTuple):
    """
    Where the state is `unknown`, `nano_usd` is what could be priced: the buckets that have a rate, or all of them at
    the standard rate where only the service tier has none.
    """

    state: PriceState
    nano_usd: int
    source: str


class Condition(msgspec.Struct, frozen=True, array_like=True):
    """`from`: since that millisecond of time. `daily`: between those milliseconds of the UTC day."""

    kind: str
    start: int
    end: int = 0

    def holds(self, at_ms: int) -> bool:
        if self.kind == "from":
            return at_ms >= self.start
        now = at_ms % DAY_MS
        if self.end < self.start:
            return now >= self.start or now < self.end
        return self.start <= now < self.end

    def __str__(self) -> str:
        start = datetime.fromtimestamp(self.start / 1000, UTC)
        if self.kind == "from":
            return f"from {start:%Y-%m-%d}"
        return f"daily {start:%H:%M:%S}-{datetime.fromtimestamp(self.end / 1000, UTC):%H:%M:%S}"


class Line(msgspec.Struct, frozen=True):
    """Holds for the whole request when it has more prompt tokens than `above`. Made by `make_line` alone."""

    source: str
    above: int
    rates: Rates
    request: int
    state: PriceState
    """`free` or `priced`: what it says where it has a rate for everything."""
    plain: tuple[int, int, int, int, int] | None
    """The rates of input, cache_read, cache_write_5m, output and reasoning, if all are known: almost every answer."""
    dearest_input: int | None
    """Of any prompt token, however it is cached; None: text has no rate."""
    dearest_output: int | None


class Entry(msgspec.Struct, frozen=True):
    """Lines by length, shortest first, and when they hold. Without lines the price is unknown for that time."""

    condition: Condition | None
    lines: tuple[Line, ...]


Entries = tuple[Entry, ...]
"""The last one whose condition holds counts; the first, if none does."""


def make_line(source: str, above: int, listed: Rates, request: int = 0) -> Line:
    rates = _resolved(listed)
    into, output = rates[_INPUTS[0]], rates[_OUTPUTS[0]]
    free = request == 0 and into == 0 and not any(rates)
    plain = (into, rates[1], rates[2], output, rates[6])
    return Line(
        source=source,
        above=above,
        rates=rates,
        request=request,
        state="free" if free else "priced",
        plain=None if None in plain else plain,  # type: ignore[arg-type]  # mypy does not follow `in` into a tuple
        dearest_input=None if into is None else max(rates[at] or 0 for at in (*_INPUTS, *_OTHER_INPUTS)),
        dearest_output=None if output is None else max(rates[at] or 0 for at in _OUTPUTS),
    )


def _resolved(listed: Rates) -> Rates:
    """By the rules above."""
    into, read, write_5m, write_1h, audio_in, output, reasoning, audio_out, image_in, image_out, search = listed
    if write_5m is None and write_1h is None:
        write_1h = into
    if into == output == 0 and not any(listed):
        audio_in = audio_out = image_out = write_1h = 0
    return (
        into,
        into if read is None else read,
        into if write_5m is None else write_5m,
        write_1h,
        audio_in,
        output,
        output if reasoning is None else reasoning,
        audio_out,
        into if image_in is None else image_in,
        image_out,
        search,
    )


def source_of(book: str, name: str, above: int, service_tier: str, condition: Condition | None) -> str:
    """`genai-prices 0.2.3 (2026-11-22) openai/gpt-5.4 >272000 priority from 2026-10-12`"""
    parts = [book, name[:MAX_NAME_CHARS]]
    if above:
        parts.append(f">{above}")
    if service_tier:
        parts.append(service_tier)
    if condition is not None:
        parts.append(str(condition))
    return " ".join(parts)[:MAX_SOURCE_CHARS]


def entry_at(entries: Entries, at_ms: int) -> Entry:
    for entry in reversed(entries):
        if entry.condition is None or entry.condition.holds(at_ms):
            return entry
    return entries[0]


def line_for(entry: Entry, prompt_tokens: int) -> Line | None:
    """None: nothing is known of that time."""
    for line in reversed(entry.lines):
        if prompt_tokens > line.above:
            return line
    return entry.lines[0] if entry.lines else None


def price_of(line: Line, usage: Usage) -> Price:
    plain = line.plain
    if plain is None or (
        usage.searches
        or usage.audio_input
        or usage.image_input
        or usage.cache_write_1h
        or usage.audio_output
        or usage.image_output
    ):
        return _price_of_any(line, usage)
    # Written out, and for the five buckets of almost every answer, this takes half a microsecond.
    into, read, write_5m, output, reasoning = plain
    pico = (
        usage.input * into
        + usage.cache_read * read
        + usage.cache_write_5m * write_5m
        + usage.output * output
        + usage.reasoning * reasoning
        + line.request
    )
    return Price(line.state, (pico + _HALF_NANO) // PICO_PER_NANO, line.source)


def _price_of_any(line: Line, usage: Usage) -> Price:
    state: PriceState = line.state
    pico = line.request
    for count, rate in zip(msgspec.structs.astuple(usage), line.rates, strict=True):
        if count:
            if rate is None:
                state = "unknown"
            else:
                pico += count * rate
    return Price(state, _rounded(pico), line.source)


def ceiling_of(lines: Sequence[Line], input_tokens: int, output_tokens: int) -> Price:
    """
    The dearest of these lines, whatever the tokens are; of no lines, unknown. One for longer prompts does not count.
    Searches are not in it: nobody knows how many a model will run.
    """
    most, source = -1, ""
    state: PriceState = "unknown"
    for line in lines:
        if line.above and line.above >= input_tokens:
            continue
        into, output = line.dearest_input, line.dearest_output
        if into is None or (output is None and output_tokens):
            return Price("unknown", 0, line.source)
        pico = input_tokens * into + output_tokens * (output or 0) + line.request
        if pico > most:
            most, source, state = pico, line.source, line.state
    return Price(state, -(-max(most, 0) // PICO_PER_NANO), source)


def described(line: Line) -> dict[str, int]:
    """A line as the database has it: pico-dollars by bucket, and of a request; what is unknown is left out."""
    known = {bucket: rate for bucket, rate in zip(BUCKETS, line.rates, strict=True) if rate is not None}
    return {**known, REQUEST: line.request}


def usage_in(row: LedgerRow) -> Usage:
    return Usage(*(getattr(row, column) for column in COLUMNS.values()))


def recalculate(row: LedgerRow, lines: Mapping[str, int]) -> int:
    """
    What a row costs by its own line (`strata.price_lines`), in nano-dollars: what it says itself, unless its source is
    `orphan`, which is charged with what was held, or `adjustment`, which is the difference of two prices.
    """
    if row.source == "none":
        return 0
    pico = sum(getattr(row, column) * lines.get(bucket, 0) for bucket, column in COLUMNS.items())
    return _rounded(pico + lines[REQUEST])


def _rounded(pico: int) -> int:
    return (pico + _HALF_NANO) // PICO_PER_NANO
