"""Whose address counts: the peer's, unless a trusted proxy names another; and nobody else can claim one."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.edge.addresses import MAX_HOPS, TrustedProxies, client_address, read_address
from tests.gateway import Gateway

PROXIES = TrustedProxies(["10.0.0.0/8", "fd00::/8"])


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "client"),
    [
        ("10.0.0.1", b"203.0.113.7", "203.0.113.7"),
        ("10.0.0.1", b"198.51.100.1, 203.0.113.7", "203.0.113.7"),  # the first the client made up
        ("10.0.0.1", b"198.51.100.1,203.0.113.7 , 10.2.3.4", "203.0.113.7"),
        ("10.0.0.1", b"10.9.9.9, 10.2.3.4", "10.9.9.9"),
        ("203.0.113.9", b"198.51.100.1", "203.0.113.9"),  # nobody's proxy
        ("127.0.0.1", b"198.51.100.1", "127.0.0.1"),
        ("10.0.0.1", b"", "10.0.0.1"),
        ("10.0.0.1", b"unknown", "10.0.0.1"),
        ("10.0.0.1", b"203.0.113.7, <script>", "10.0.0.1"),
        ("10.0.0.1", b"junk, 203.0.113.7", "203.0.113.7"),
        ("10.0.0.1", b"junk, 10.2.3.4", "10.2.3.4"),
        ("10.0.0.1", b"203.0.113.7:5123", "203.0.113.7"),
        ("10.0.0.1", b"[2001:db8::7]:5123", "2001:db8::7"),
        ("fd00::1", b"2001:DB8:0::7", "2001:db8::7"),
        ("::ffff:10.0.0.1", b"::ffff:203.0.113.7", "203.0.113.7"),
        ("", b"203.0.113.7", ""),
    ],
)
def test_the_client_is_the_nearest_stranger(peer: str, forwarded_for: bytes, client: str) -> None:
    assert PROXIES.client_behind(peer, forwarded_for) == client


@given(
    made_up=st.binary(max_size=60),
    client=st.ip_addresses().filter(lambda one: not PROXIES.trust(str(read_address(str(one))))),
    hops=st.lists(st.integers(1, 254).map(lambda last: f"10.1.2.{last}"), max_size=4),
)
def test_nothing_that_a_client_sends_changes_whom_it_is_taken_for(
    made_up: bytes, client: ipaddress.IPv4Address, hops: list[str]
) -> None:
    chain = b", ".join([made_up, str(client).encode(), *(hop.encode() for hop in hops)])
    assert PROXIES.client_behind("10.0.0.1", chain) == str(read_address(str(client)))


@given(st.binary(max_size=200))
def test_whatever_a_proxy_says_is_an_address_or_nothing(forwarded_for: bytes) -> None:
    assert read_address(PROXIES.client_behind("10.0.0.1", forwarded_for)) is not None


def test_a_chain_is_not_followed_for_ever() -> None:
    chain = b"203.0.113.7" + b",10.0.0.2" * (MAX_HOPS + 5)
    assert PROXIES.client_behind("10.0.0.1", chain) == "10.0.0.2"


@pytest.mark.parametrize(
    ("peer", "headers", "client", "scheme"),
    [
        ("10.0.0.1", [(b"x-forwarded-for", b"203.0.113.7"), (b"x-forwarded-proto", b"https")], "203.0.113.7", "https"),
        ("10.0.0.1", [(b"x-forwarded-for", b"203.0.113.7"), (b"x-forwarded-for", b"10.5.5.5")], "203.0.113.7", "http"),
        ("10.0.0.1", [(b"x-forwarded-proto", b"HTTPS")], "10.0.0.1", "https"),
        ("10.0.0.1", [(b"x-forwarded-proto", b"https"), (b"x-forwarded-proto", b"http")], "10.0.0.1", "http"),
        ("10.0.0.1", [(b"x-forwarded-proto", b"gopher")], "10.0.0.1", "http"),
        ("10.0.0.1", [(b"forwarded", b"for=203.0.113.7;proto=https")], "10.0.0.1", "http"),
        ("192.0.2.1", [(b"x-forwarded-for", b"1.2.3.4"), (b"x-forwarded-proto", b"https")], "192.0.2.1", "http"),
    ],
)
def test_a_scope_is_corrected_by_trusted_peers_alone(
    peer: str, headers: list[tuple[bytes, bytes]], client: str, scheme: str
) -> None:
    scope: dict[str, Any] = {"client": (peer, 5123), "scheme": "http", "headers": headers}
    PROXIES.correct(scope)
    assert (client_address(scope), scope["scheme"]) == (client, scheme)


def test_a_request_of_a_socket_without_addresses_has_none() -> None:
    scope: dict[str, Any] = {"client": None, "scheme": "http", "headers": [(b"x-forwarded-for", b"1.2.3.4")]}
    PROXIES.correct(scope)
    assert client_address(scope) == ""


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    running = Gateway(
        tmp_path_factory.mktemp("behind") / "home", server="trusted_proxies: [127.0.0.0/8], hsts: 180d"
    ).start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    running = Gateway(tmp_path_factory.mktemp("alone") / "home").start()
    yield running
    running.stop()


def clients_logged(gateway: Gateway) -> dict[str, str]:
    """By the request's id, of all that have ended; read once the gateway has stopped."""
    gateway.stop()
    lines = [json.loads(line) for line in gateway.log.read_text().splitlines()]
    return {line["request_id"]: line["client"] for line in lines if line["logger"] == "strata.access"}


def chat(gateway: Gateway, id: str, **headers: str) -> int:
    sent = {"authorization": f"Bearer {gateway.key}", "content-type": "application/json", "x-request-id": id}
    body = b'{"model":"sim/chat","messages":[{"role":"user","content":"hi"}]}'
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    return gateway.ask("POST", "/v1/chat/completions", sent | told, body).status


def test_a_log_line_names_the_client_behind_a_trusted_proxy(behind: Gateway, alone: Gateway) -> None:
    for gateway in (behind, alone):
        assert chat(gateway, "plain") == 200
        assert chat(gateway, "forwarded", x_forwarded_for="6.6.6.6, 203.0.113.7") == 200
        assert chat(gateway, "nonsense", x_forwarded_for=", ,;\\x00 for=<x>") == 200
        assert chat(gateway, "refused", x_forwarded_for="203.0.113.8", authorization="Bearer sk-strata-nobody") == 401
        # whether TLS ends before us, only a trusted proxy can tell
        told = gateway.ask("GET", "/healthz", {"x-forwarded-proto": "https"}).headers
        assert told.get("strict-transport-security") == ("max-age=15552000" if gateway is behind else None)
        assert "strict-transport-security" not in gateway.ask("GET", "/healthz").headers
    assert clients_logged(behind) == {
        "plain": "127.0.0.1",
        "forwarded": "203.0.113.7",
        "nonsense": "127.0.0.1",
        "refused": "203.0.113.8",
    }
    assert set(clients_logged(alone).values()) == {"127.0.0.1"}
