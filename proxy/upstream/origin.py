"""
Where a connection goes, and the ways in which it fails, as errors that name the host and never an address in full.
"""

from __future__ import annotations

from typing import NamedTuple

from proxy.errors import UpstreamError


class Origin(NamedTuple):
    """Where connections go. `scheme` is http or https, `host` without brackets."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def unreachable(origin: Origin, what: str, *, sent: bool) -> UpstreamError:
    return UpstreamError(f"{origin} {what}", code="upstream_unreachable", error_type="provider_unreachable", sent=sent)


def bad_response(origin: Origin, what: str, code: str = "upstream_bad_response") -> UpstreamError:
    return UpstreamError(f"{origin} {what}", code=code, error_type="provider_bad_response")


def timed_out(origin: Origin, what: str, *, sent: bool) -> UpstreamError:
    return UpstreamError(
        f"{origin} {what}", status=504, code="upstream_timeout", error_type="provider_timeout", sent=sent
    )
