"""
Which limits bind whom, and how they stand. Pure.

A key brings limits of its own; the configuration adds some for each key, user and team, for those it names, for a model
and for everybody. Who is named is known by id once Postgres has been asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from proxy.config import SharedLimit
from proxy.exchange import Limit

Who = tuple[str, str]
"""A scope and a name: `("user", "ann@example.com")`."""


class Standing(msgspec.Struct, frozen=True):
    """How the tightest limits stand after a request has taken its turn; None where there is none."""

    limit: int | None = None
    """Requests a minute."""
    remaining: int = 0
    """How many would pass right now."""
    reset_seconds: float = 0.0
    """Until all of them would."""
    token_limit: int | None = None
    tokens_remaining: int = 0
    tokens_reset_seconds: float = 0.0


class Limits:
    """
    `by_model` binds whoever asks for the model. Of two for the same (each user, and this user) the named one holds.
    """

    def __init__(self, configured: Sequence[SharedLimit] = ()) -> None:
        self._configured = configured
        self._ids: Mapping[Who, str] = {}
        self.by_model: dict[str, tuple[Limit, ...]] = {
            shared.model: (_limit(shared, f"model:{shared.model}"),) for shared in configured if shared.scope == "model"
        }
        self.everybody = tuple([_limit(shared, "global") for shared in configured if shared.scope == "global"])
        self.named = tuple(
            sorted(
                {
                    (shared.scope, shared.name)
                    for shared in configured
                    if shared.scope in ("user", "team") and shared.name
                }
            )
        )
        """Users and teams whose ids must be found."""

    def learn(self, ids: Mapping[Who, str]) -> bool:
        """Who is behind the names; whether that is news."""
        changed = ids != self._ids
        self._ids = ids
        return changed

    def of(
        self,
        key_id: str,
        name: str,
        user_id: str | None,
        team_id: str | None,
        *,
        rpm: int | None,
        tpm: int | None,
        max_parallel: int | None,
    ) -> tuple[Limit, ...]:
        """
        What binds a key: its own numbers and what the configuration says of it, the lower of each; what that says of
        its user and team; and of everybody.
        """
        found: dict[str, Limit] = {}
        for shared in self._configured:
            subject = {"key": key_id, "user": user_id, "team": team_id}.get(shared.scope)
            if subject is None or not self._means(shared, subject, name):
                continue
            id = f"{shared.scope}:{subject}" + (f"/{shared.model}" if shared.model else "")
            if id not in found or shared.name:
                found[id] = _limit(shared, id)
        if (rpm, tpm, max_parallel) != (None, None, None):
            id = f"key:{key_id}"
            of_file = found.get(id) or Limit(id, "key")
            found[id] = Limit(
                id,
                "key",
                _lower(of_file.rpm, rpm),
                _lower(of_file.tpm, tpm),
                _lower(of_file.max_parallel, max_parallel),
                of_file.burst_seconds,
            )
        return (*found.values(), *self.everybody)

    def _means(self, shared: SharedLimit, subject: str, key_name: str) -> bool:
        if not shared.name:
            return True
        known = key_name if shared.scope == "key" else self._ids.get((shared.scope, shared.name))
        return (shared.name if shared.scope == "key" else subject) == known


def _lower(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else min(one, other)


def _limit(shared: SharedLimit, id: str) -> Limit:
    return Limit(id, shared.scope, shared.rpm, shared.tpm, shared.max_parallel, shared.burst_seconds, shared.model)


def limit_headers(standing: Standing) -> dict[str, str]:
    """OpenAI's six, or the three of the limit that there is."""
    headers = {}
    if standing.limit is not None:
        headers["x-ratelimit-limit-requests"] = str(standing.limit)
        headers["x-ratelimit-remaining-requests"] = str(standing.remaining)
        headers["x-ratelimit-reset-requests"] = format_reset(standing.reset_seconds)
    if standing.token_limit is not None:
        headers["x-ratelimit-limit-tokens"] = str(standing.token_limit)
        headers["x-ratelimit-remaining-tokens"] = str(standing.tokens_remaining)
        headers["x-ratelimit-reset-tokens"] = format_reset(standing.tokens_reset_seconds)
    return headers


def format_reset(seconds: float) -> str:
    """A duration as OpenAI's `x-ratelimit-reset-…` headers write it: `12ms`, `1.5s`, `6m0s`, `1h0m0s`."""
    milliseconds = max(0, round(seconds * 1000))
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    minutes, rest = divmod(milliseconds, 60_000)
    tail = f"{rest / 1000:g}s"
    if not minutes:
        return tail
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{tail}" if hours else f"{minutes}m{tail}"
