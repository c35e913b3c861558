"""What translation changed or left out of a request: told to the caller, or, if the request is strict, refused."""

from __future__ import annotations

from collections.abc import Sequence

from proxy.config import Model
from proxy.errors import CallerError
from proxy.exchange import Exchange
from proxy.providers import Notice


def take_notices(exchange: Exchange, model: Model, notices: Sequence[Notice]) -> None:
    """Raises CallerError 400 `unsupported_parameter` for the first loss that a strict request would suffer."""
    strict = model.strict if exchange.strict is None else exchange.strict
    known = set(exchange.notices)
    for notice in notices:
        if strict and notice.lost:
            raise CallerError(
                f"{notice.message} This request is strict, so it was not sent: leave {notice.param} out, choose "
                "another model, or send strata.strict false.",
                code="unsupported_parameter",
                param=notice.param,
            )
        if notice not in known:
            known.add(notice)
            exchange.notices.append(notice)
