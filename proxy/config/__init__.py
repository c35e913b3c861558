"""
What the operator wrote, as frozen structs. `load` reads YAML; nothing else in the house parses it.

Names of the fields are the keys of config.yaml. Durations are seconds, sizes bytes, money nano-dollars: the unit is in
the name of every derived field. A `Secret` never shows itself.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from proxy.config.listeners import Server as Server
from proxy.config.secret import Secret as Secret


class Struct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Frozen, keyword only, and an unknown key is an error."""


class Database(Struct, frozen=True, kw_only=True):
    url: Secret | None = None
    """None: the embedded server in the data folder."""
    listen_url: Secret | None = None
    """Where notices are heard if `url` is a pooler that hands each transaction to another session."""
    auto_migrate: bool = True
    pool: int = 4


class Issuer(Struct, frozen=True, kw_only=True):
    """Somebody whose tokens say who people are: a Supabase project, or any OpenID Connect issuer."""

    issuer: str
    audience: str
    jwks_url: str = ""
    jwt_secret: Secret | None = None
    """Signs in place of published keys (HS256): projects that have not moved on."""
    supabase: bool = False
    email_claim: str = "email"
    role_claim: str = ""
    """Where in a token these two stand, with dots between the levels; "": they are set here."""
    team_claim: str = ""


class Auth(Struct, frozen=True, kw_only=True):
    mode: Literal["local", "supabase", "jwt"] = "local"
    master_key: Secret | None = None
    registration: Literal["first", "invite", "open", "closed"] = "invite"
    session_ttl_seconds: float = 43_200.0
    issuer: Issuer | None = None
    """None: people have a password here."""


class Timeouts(Struct, frozen=True, kw_only=True):
    """How long each part of one attempt may take, in seconds."""

    connect_seconds: float = 5.0
    first_byte_seconds: float = 60.0
    """Streams: until the first event. Not streamed: `total_seconds` counts alone."""
    idle_seconds: float = 60.0
    """Between two events that mean something; comments do not count."""
    total_seconds: float = 600.0


class Provider(Struct, frozen=True, kw_only=True):
    """An account somewhere: where, with which credential, which api it speaks. Data."""

    name: str
    api: str = "openai"
    """The module in `proxy.providers` that speaks it."""
    api_base: str
    api_key: Secret | None = None
    headers: dict[str, str] = {}
    options: dict[str, str] = {}
    """What else its API wants to know: project, region, api_version … Which they are says its preset."""
    secrets: dict[str, Secret] = {}
    """What else authorises: secret_access_key, client_secret … Never in an address, a message or a log line."""
    quirks: dict[str, object] = {}
    """Small differences as data: {"rename": {…}, "drop": […], "set": {…}}."""
    max_connections: int = 256
    max_response_bytes: int = 64_000_000
    bills_after_abort: bool = True
    """Whether it goes on billing when we hang up. True: an abandoned answer is read to its end."""


class Deployment(Struct, frozen=True, kw_only=True):
    """One concrete thing that can serve a model."""

    provider: Provider
    model: str
    """The name the provider knows."""
    base_model: str = ""
    """The model behind it, where that name does not tell, as on Azure: its price and limits are looked up by this."""
    weight: int = 1
    order: int = 1
    rpm: int | None = None
    tpm: int | None = None
    """What it is good for in a minute: beyond that others are asked first."""

    name: str = ""
    """`provider/model`; always derived."""

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "name", f"{self.provider.name}/{self.model}")


class Model(Struct, frozen=True, kw_only=True):
    """A name that clients may ask for, and who can serve it. `*` in `name` matches any tail (a whole provider)."""

    name: str
    deployments: tuple[Deployment, ...]
    """Lower `order` first; within one order, load is shared by `weight`."""
    fallbacks: tuple[str, ...] = ()
    timeouts: Timeouts = Timeouts()
    num_retries: int = 2
    """Attempts beyond the first, over all deployments, only before the first content event."""
    params: dict[str, object] = {}
    """Used where the client sends none."""
    strict: bool = False
    """Refuse a request of which a parameter would be lost in translation, instead of saying so."""


class Rest(Struct, frozen=True, kw_only=True):
    """When a failing deployment rests."""

    allowed_fails: int = 3
    """Within a minute; then it rests."""
    cooldown_seconds: float = 30.0


class KeyDefaults(Struct, frozen=True, kw_only=True):
    models: tuple[str, ...] = ("*",)
    rpm: int | None = None
    tpm: int | None = None
    max_parallel: int | None = None
    budget_nano_usd: int | None = None
    budget_seconds: int | None = None
    budget_calendar: Literal["day", "week", "month"] | None = None
    expires_seconds: int | None = None


class StaticKey(Struct, frozen=True, kw_only=True):
    """A key that the file owns."""

    name: str
    key: Secret
    models: tuple[str, ...] = ("*",)
    rpm: int | None = None
    tpm: int | None = None
    max_parallel: int | None = None
    budget_nano_usd: int | None = None
    budget_seconds: int | None = None
    budget_calendar: Literal["day", "week", "month"] | None = None


class SharedBudget(Struct, frozen=True, kw_only=True):
    """A limit on money that is not one key's. Neither window nor calendar: one period for ever."""

    scope: Literal["global", "provider", "team", "user"]
    name: str = ""
    """Of the provider or team, or the user's e-mail; "" for everybody."""
    limit_nano_usd: int
    window_seconds: int | None = None
    calendar: Literal["day", "week", "month"] | None = None


class SharedLimit(Struct, frozen=True, kw_only=True):
    """How fast whoever it is for may ask, beside what their keys say. Without a name: each key, user or team."""

    scope: Literal["global", "model", "team", "user", "key"]
    name: str = ""
    model: str = ""
    """Only what asks for this model counts."""
    rpm: int | None = None
    tpm: int | None = None
    max_parallel: int | None = None
    burst_seconds: int = 60
    """What so many seconds allow may come at once."""


class Redis(Struct, frozen=True, kw_only=True):
    url: Secret | None = None
    """None: every process counts for itself."""
    limits: Literal["shares", "strict"] = "shares"
    """Shares are leased behind the requests; strict asks Redis for each of them."""
    sentinel_master: str = ""
    """The url is a sentinel's (or several, with commas), and this is whom it watches."""
    cluster: bool = False
    prefix: str = "strata"
    """Begins every key."""


class Keys(Struct, frozen=True, kw_only=True):
    prefix: str = "sk-strata-"
    defaults: KeyDefaults = KeyDefaults()
    static: tuple[StaticKey, ...] = ()


class PriceRates(Struct, frozen=True, kw_only=True):
    """
    Pico-dollars a token, which are dollars per million tokens times a million; `search`: of one search. Zero is free;
    None is not said, and unknown unless a rule of `proxy.metering.price_lines` says what it is billed as.
    """

    input_pico_usd: int | None = None
    output_pico_usd: int | None = None
    cached_input_pico_usd: int | None = None
    cache_write_pico_usd: int | None = None
    cache_write_1h_pico_usd: int | None = None
    reasoning_pico_usd: int | None = None
    audio_input_pico_usd: int | None = None
    audio_output_pico_usd: int | None = None
    image_input_pico_usd: int | None = None
    image_output_pico_usd: int | None = None
    search_pico_usd: int | None = None


class PriceTier(PriceRates, frozen=True, kw_only=True):
    """Holds for the whole request when its prompt has more tokens than that. What it does not say stays as below."""

    above_tokens: int


class PriceList(PriceRates, frozen=True, kw_only=True):
    request_nano_usd: int = 0
    tiers: tuple[PriceTier, ...] = ()
    """Lower `above_tokens` first."""


class PriceOverride(PriceList, frozen=True, kw_only=True):
    service_tiers: dict[str, PriceList] = {}
    """By the provider's word (priority, flex, batch …). Each is a list of its own and takes nothing from this one."""
    from_ms: int | None = None
    """Holds since that moment (Unix milliseconds); before it, the table's prices. None: always."""


class Prices(Struct, frozen=True, kw_only=True):
    on_missing: Literal["warn", "block"] = "warn"
    """`block` is always in force for keys with a budget."""
    models: dict[str, PriceOverride] = {}
    """By deployment name; `gpu/*` covers a provider."""


class Webhook(Struct, frozen=True, kw_only=True, tag="webhook"):
    name: str
    url: Secret
    """Secret, since many services put a token into it."""
    secret: Secret | None = None
    """Signs the body: HMAC-SHA-256."""


class Slack(Struct, frozen=True, kw_only=True, tag="slack"):
    """Anything that takes Slack's incoming webhooks: Mattermost, Discord under /slack, Rocket.Chat."""

    name: str
    url: Secret


class Email(Struct, frozen=True, kw_only=True, tag="email"):
    name: str
    to: tuple[str, ...]


Channel = Webhook | Slack | Email


class Smtp(Struct, frozen=True, kw_only=True):
    host: str
    sender: str
    port: int = 587
    user: str = ""
    password: Secret | None = None
    security: Literal["starttls", "tls", "none"] = "starttls"


class AlertRule(Struct, frozen=True, kw_only=True):
    """`above`: parts of a budget in thousandths, or nano-dollars of spend, or a number of requests."""

    name: str
    when: Literal["budget_used", "budget_forecast", "spend", "unpriced_requests"]
    above: tuple[int, ...] = ()
    per: Literal["all", "key", "user", "team", "provider", "model"] = "all"
    """What a spend is summed by. A budget's alerts are always by budget, unpriced requests by model."""
    notify: tuple[str, ...] = ()
    """Names of channels; none: all of them."""


class Alerts(Struct, frozen=True, kw_only=True):
    channels: tuple[Channel, ...] = ()
    smtp: Smtp | None = None
    rules: tuple[AlertRule, ...] = ()


class Metrics(Struct, frozen=True, kw_only=True):
    enabled: bool = True
    path: str = "/metrics"
    token: Secret | None = None
    max_keys: int = 200


class Traces(Struct, frozen=True, kw_only=True):
    """Spans of requests, by OTLP over HTTP."""

    endpoint: str = ""
    """The whole address, its path included; "": no traces."""
    sample: float = 0.1
    """Which part of the requests that bring no `traceparent` of their own."""
    secret_headers: dict[str, Secret] = {}
    """What the collector wants to see; in the file `headers`."""
    content: bool = False
    """Whether spans hold what is asked and answered."""
    pass_on: bool = False
    """Without an endpoint: whether providers get the client's `traceparent` as it came."""


class Logging(Struct, frozen=True, kw_only=True):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "pretty"] = "auto"
    bodies: Literal["none", "errors", "redacted", "full"] = "none"
    """What is asked and answered: of nobody, of what failed, of all without its text, of all."""


class Ledger(Struct, frozen=True, kw_only=True):
    """The journal of money rows (docs: how the bill stays right)."""

    fsync_interval_seconds: float = 0.005
    segment_bytes: int = 64_000_000
    retention_seconds: float = 86_400.0
    ship_interval_seconds: float = 0.25
    batch_rows: int = 200


class History(Struct, frozen=True, kw_only=True):
    """The request history: what explains a request later. A log, not money."""

    enabled: bool = True
    retention_seconds: float = 2_592_000.0


class RemoteFiles(Struct, frozen=True, kw_only=True):
    """Links in requests, followed for providers that take files as bytes only."""

    enabled: bool = False
    http: bool = False
    """Links without TLS too."""
    hosts: tuple[str, ...] = ()
    """Only these, and `*.` what is below them; none: the whole public internet."""
    max_files: int = 8
    max_bytes: int = 10_000_000
    """Of all files of one request together."""
    timeout_seconds: float = 10.0
    """For all of them together."""


class Config(Struct, frozen=True, kw_only=True):
    server: Server = Server()
    database: Database = Database()
    auth: Auth = Auth()
    providers: dict[str, Provider] = {}
    models: dict[str, Model] = {}
    """By name; patterns (`openai/*`) too."""
    rest: Rest = Rest()
    keys: Keys = Keys()
    budgets: tuple[SharedBudget, ...] = ()
    limits: tuple[SharedLimit, ...] = ()
    redis: Redis = Redis()
    prices: Prices = Prices()
    alerts: Alerts = Alerts()
    metrics: Metrics = Metrics()
    traces: Traces = Traces()
    logging: Logging = Logging()
    ledger: Ledger = Ledger()
    history: History = History()
    remote_files: RemoteFiles = RemoteFiles()
    warnings: tuple[str, ...] = ()
    """What is worth saying and stops nothing: a provider without its variable, a model without a price."""
    off: dict[str, str] = {}
    """Providers that are off, and why: `OPENAI_API_KEY is not set`."""
    source: str | None = None
    """The file it came from; None: defaults and the environment."""
    hash: str = ""
