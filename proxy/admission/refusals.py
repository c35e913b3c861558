"""
What a caller reads when money or a limit stands in the way: how much is spent, of how much, when that changes. Pure.
"""

from __future__ import annotations

import math

from proxy.admission.allowances import Short
from proxy.admission.limits import Standing, limit_headers
from proxy.errors import GatewayFault, PolicyError
from proxy.exchange import Budget, Caller, Limit

_CENT = 10_000_000
_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


def budget_exceeded(
    caller: Caller,
    budget: Budget,
    *,
    spent_nano_usd: int,
    asked_nano_usd: int,
    free_nano_usd: int = 0,
    resets_in_seconds: float | None,
) -> PolicyError:
    """
    429 `insufficient_quota`. `free_nano_usd`: neither spent nor set aside by others. `resets_in_seconds` None: the
    budget never starts anew by itself.
    """
    whom = _whom(caller, budget)
    spent = f"{whom} has spent {dollars(spent_nano_usd)} of {dollars(budget.limit_nano_usd)}"
    if budget.limit_nano_usd <= 0:
        message = f"{whom} has a budget of $0.00 and may send nothing. Its owner can raise it."
    else:
        short = spent_nano_usd < budget.limit_nano_usd
        why = f", and this request may cost {dollars(asked_nano_usd)} with others under way" if short else ""
        resets = "its owner can raise the budget." if resets_in_seconds is None else _resets(resets_in_seconds)
        message = f"{spent}{why}; {resets}"
    return PolicyError(
        message,
        status=429,
        code="insufficient_quota",
        error_type="policy_budget_exceeded",
        headers={"x-should-retry": "false"},
        details={
            "scope": budget.scope,
            "limit_nano_usd": budget.limit_nano_usd,
            "spent_nano_usd": spent_nano_usd,
            "asked_nano_usd": asked_nano_usd,
            "free_nano_usd": free_nano_usd,
            "resets_in_seconds": resets_in_seconds,
        },
    )


def budget_unavailable() -> GatewayFault:
    """503: what is left of a budget cannot be known while Postgres is away."""
    return GatewayFault(
        "The budget of this key cannot be checked just now: the gateway has lost its database. Try again shortly.",
        status=503,
        code="budget_unavailable",
        headers={"retry-after": "2", "retry-after-ms": "2000"},
    )


def too_fast(caller: Caller, short: Short, standing: Standing | None) -> PolicyError:
    """429 `rate_limit_exceeded`: which limit, whose, and when to come again."""
    limit, kind = short.limit, short.kind
    most = {"rpm": limit.rpm, "tpm": limit.tpm, "concurrency": limit.max_parallel}[kind] or 0
    what = {"rpm": "requests a minute", "tpm": "tokens a minute", "concurrency": "requests at once"}[kind]
    whom = _limited(caller, limit)
    wait_seconds = short.wait_ns / 1e9 if kind != "concurrency" else 1.0
    seconds = max(1, math.ceil(wait_seconds))
    if not most:
        unit = "tokens" if kind == "tpm" else "requests"
        message = f"{whom} may make no requests: its limit is 0 {unit}. Its owner can raise it."
    elif kind == "concurrency":
        message = f"{whom} is limited to {most} {what}, and they run. Try again when one has ended."
    else:
        message = f"{whom} is limited to {most} {what}. Try again in {seconds} s."
    headers = {"retry-after": str(seconds), "retry-after-ms": str(math.ceil(wait_seconds * 1000))}
    if standing is not None:
        headers |= limit_headers(standing)
    return PolicyError(
        message,
        status=429,
        code="rate_limit_exceeded",
        error_type="policy_rate_limited",
        headers=headers,
        details={"scope": limit.scope, "limit": kind},
    )


def dollars(nano_usd: int) -> str:
    """`$5.02`; two significant digits of what is less than a cent: `$0.00031`."""
    whole, fraction = divmod(nano_usd, 1_000_000_000)
    if nano_usd >= _CENT or nano_usd <= 0:
        return f"${whole:,}.{fraction // _CENT:02d}"
    digits = f"{fraction:09d}"
    first = len(digits) - len(digits.lstrip("0"))
    return "$0." + digits[: first + 2].rstrip("0")


def duration(seconds: float) -> str:
    """`3 h 12 min`: the two largest units."""
    left = max(1, round(seconds))
    parts: list[str] = []
    for name, size in _UNITS:
        count, left = divmod(left, size)
        if count or parts:
            parts.append(f"{count} {name}" if count else "")
    return " ".join(part for part in parts[:2] if part)


def _resets(seconds: float) -> str:
    return f"the budget resets in {duration(seconds)}."


def _whom(caller: Caller, budget: Budget) -> str:
    if budget.scope == "key":
        return f'The key "{caller.name}"'
    if budget.scope in ("user", "team"):
        return f'The {budget.scope} of the key "{caller.name}"'
    return "This gateway" if budget.scope == "global" else f'This gateway\'s budget for "{budget.subject}"'


def _limited(caller: Caller, limit: Limit) -> str:
    if limit.scope == "model":
        return f'The model "{limit.model}"'
    whom = {"key": f'The key "{caller.name}"', "global": "This gateway"}.get(
        limit.scope, f'The {limit.scope} of the key "{caller.name}"'
    )
    return f'{whom}, for "{limit.model}",' if limit.model else whom
