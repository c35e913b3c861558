"""
The one mutable thing on the path: a request, its answer, and everything learnt on the way.

The edge creates it, admission sets the caller, the relay adds an `Attempt` for each provider it tries, metering closes
it. It has no behaviour beyond derived numbers. Times ending in `_ns` are `time.monotonic_ns`; `started_at_ms` is the
wall clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec

if TYPE_CHECKING:
    from proxy.admission.limits import Standing
    from proxy.admission.turns import Turn
    from proxy.config import Deployment, Model
    from proxy.errors import GatewayError
    from proxy.metering.price_lines import Price
    from proxy.providers import Notice
    from proxy.routing.plan import Plan


class Usage(msgspec.Struct, frozen=True):
    """
    Tokens of one attempt in disjoint buckets: every token is in exactly one, so their sum is prompt + completion.
    """

    input: int = 0
    """Prompt tokens that were neither read from nor written to a prompt cache, audio and images left out."""
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    audio_input: int = 0
    output: int = 0
    """Completion tokens that are neither reasoning nor audio nor images."""
    reasoning: int = 0
    audio_output: int = 0
    image_input: int = 0
    image_output: int = 0
    searches: int = 0
    """Searches that the provider ran and bills one by one: no tokens, and in neither sum."""

    @property
    def prompt(self) -> int:
        cached = self.cache_read + self.cache_write_5m + self.cache_write_1h
        return self.input + cached + self.audio_input + self.image_input

    @property
    def completion(self) -> int:
        return self.output + self.reasoning + self.audio_output + self.image_output


UsageSource = Literal["provider", "drained", "counted", "ambiguous", "orphan", "none"]
"""Where an attempt's usage comes from; only the first two and the last are exact."""

PriceState = Literal["priced", "free", "unknown"]


class Budget(msgspec.Struct, frozen=True):
    """A limit on money: so much in each window. Neither a window nor a calendar: one period for ever."""

    id: str
    scope: Literal["key", "user", "team", "provider", "global"]
    subject: str
    limit_nano_usd: int
    window_seconds: int | None = None
    calendar: Literal["day", "week", "month"] | None = None


class Limit(msgspec.Struct, frozen=True):
    """
    How fast somebody may ask: so many requests and tokens a minute, so many requests at once. None: not limited.
    """

    id: str
    """Whom it is for: `key:<id>`, `team:<id>/smart`. The same on every worker."""
    scope: Literal["key", "user", "team", "model", "global"]
    rpm: int | None = None
    tpm: int | None = None
    max_parallel: int | None = None
    burst_seconds: int = 60
    """What this many seconds allow may come all at once."""
    model: str = ""
    """Only requests for it count; "" for all."""


class Caller(msgspec.Struct, frozen=True):
    """Who is behind a request: a virtual key or a person, and the user and team behind it."""

    key_id: str
    name: str
    display: str
    """`sk-strata-Jm3v…f9Tc`: enough to recognise, too little to use."""
    models: tuple[str, ...] = ("*",)
    limits: tuple[Limit, ...] = ()
    budgets: tuple[Budget, ...] = ()
    user_id: str | None = None
    team_id: str | None = None
    role: Literal["key", "viewer", "member", "admin"] = "key"
    """`key`: a virtual key. The others are people; the master key is an admin."""

    @property
    def admin(self) -> bool:
        return self.role == "admin"


class Hold(msgspec.Struct):
    """
    Money set aside for one attempt, at every budget that applies at once. Resolved exactly once, with what it really
    cost; the two tuples run in parallel and say which period of which budget the row will count against.
    """

    nano_usd: int
    budget_ids: tuple[str, ...] = ()
    period_starts_ms: tuple[int, ...] = ()
    resolved: bool = False


class OwnKey(msgspec.Struct, frozen=True):
    """A provider key that is not the operator's: an attempt with it is paid by somebody else."""

    id: str
    name: str
    scope: Literal["user", "team", "global"]
    last_four: str
    elsewhere: bool = False
    """It goes to an address of its own, and not to the operator's provider."""


class Trace(msgspec.Struct):
    """
    Where a request stands in a trace, which may have begun before it and goes on behind it. Its spans are made when it
    is over; until then it only notes what the exchange would not know by itself.
    """

    trace_id: int
    span_id: int
    """Of the request itself."""
    parent_id: int = 0
    sampled: bool = False
    content: bool = False
    """The operator wants what is asked and answered in its spans."""
    passed_on: bytes = b""
    """The client's own header line, where it is only handed on."""
    admitted_ns: int = 0
    limited_ns: int = 0
    """When it had been let in, and let pass by its limits, if there are any."""


class Attempt(msgspec.Struct):
    """One provider tried. It has exactly one ledger row once a request byte may have left."""

    number: int
    deployment: Deployment
    started_ns: int
    dispatched: bool = False
    """The dispatch record is in the journal."""
    settled: bool = False
    ended_ns: int = 0
    first_event_ns: int = 0
    status: int = 0
    """The provider's HTTP status; 0 if none came."""
    head: dict[bytes, bytes] = {}
    """The head of the provider's answer, as it came."""
    outcome: str = ""
    """`ok` or an error_type."""
    usage: Usage | None = None
    usage_raw: bytes = b""
    """The provider's own usage object, as it came."""
    source: UsageSource = "none"
    delivered_text: list[str] = msgspec.field(default_factory=list)
    """Text of the answer so far, bounded; counted when the provider reports no usage."""
    delivered_events: int = 0
    noted_parts: int = 0
    """How many of `delivered_text` the last progress record has counted …"""
    noted_tokens: int = 0
    """… and the tokens in them."""
    input_tokens_bound: int = 0
    output_tokens_bound: int = 0
    hold: Hold | None = None
    ceiling: Price | None = None
    """The most that it can cost, once somebody has asked."""
    asked_service_tier: str = ""
    """What it was asked for; a provider may serve at another."""
    service_tier: str = ""
    """What the provider says it served at (`priority`, `flex`, `batch` …); "" for the standard one."""
    price_state: PriceState = "unknown"
    price_source: str = ""
    cost_nano_usd: int = 0
    usage_suspect: bool = False
    error: str = ""
    """Why it failed, in the words of its error."""
    own_key: OwnKey | None = None
    """What it was sent with; None: the operator's key."""
    row_begins: bytes = b""
    """The columns of its ledger rows that are settled when it is sent, once they have been encoded."""


class Exchange(msgspec.Struct):
    """One client request. `id` is a UUIDv7 (16 bytes); clients see `request_id` (`req_…`, or the one they sent)."""

    id: bytes
    request_id: str
    endpoint: str
    started_at_ms: int
    started_ns: int
    client: str = ""
    """Its address."""
    stream: bool = False
    model: str = ""
    """The name the client asked for, as configured; "" until it is known to be one of ours."""
    caller: Caller | None = None
    resolved: Model | None = None
    attempts: list[Attempt] = msgspec.field(default_factory=list)
    provider_budgets: tuple[Budget, ...] = ()
    """Of the providers that were asked, or were not because these are spent; in force besides the caller's own."""
    notices: list[Notice] = msgspec.field(default_factory=list)
    error: GatewayError | None = None
    status: int = 0
    files: dict[str, str] = msgspec.field(default_factory=dict)
    """What was fetched for links of this request: link -> `data:` URL."""
    hints: dict[str, str] = msgspec.field(default_factory=dict)
    """The client's own `x-strata-…` headers, lower case."""
    strict: bool | None = None
    """Whether the client wants a refusal rather than a loss; None: as the model is configured."""
    wants_notices: bool = False
    """The client wants what was changed in the answer's body too, and not only in a header."""
    client_left: bool = False
    upstream_wait_ns: int = 0
    """Time spent waiting for providers; the rest of the duration is our overhead."""
    finish_reason: str = ""
    closed: bool = False
    turn: Turn | None = None
    """What it has taken of the limits that bind it."""
    rate: Standing | None = None
    """How these limits stood when they let it pass."""
    plan: Plan | None = None
    trace: Trace | None = None
    """None: there are no traces here."""
    asked: dict[str, Any] | None = None
    """The body of the request, if the operator wants it in spans or in the log; …"""
    answered: Sequence[dict[str, Any]] = ()
    """… and then the messages of the answer. A stream is one, with all its text as it came, and as far as it came."""

    @property
    def served(self) -> Attempt | None:
        """The attempt whose answer the client got: the last one, if it did not fail before its first event."""
        return self.attempts[-1] if self.attempts and self.attempts[-1].outcome != "" else None
