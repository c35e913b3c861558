"""What is known to be secret is taken out of texts, in whatever form somebody has put it there."""

from __future__ import annotations

import base64
from urllib.parse import quote

import pytest

from proxy.config import Auth, Provider, Secret
from proxy.hiding import SHORTEST, Hiding, secrets_of

KEY = "my own/words+for a key"


@pytest.mark.parametrize(
    "shape",
    [KEY, quote(KEY), quote(KEY, safe=""), base64.b64encode(KEY.encode()).decode(), KEY + KEY],
)
def test_a_secret_is_hidden_as_it_is_quoted_and_encoded(shape: str) -> None:
    hidden = Hiding([KEY])(f"The key {shape} is wrong.")
    assert KEY[:6] not in hidden
    assert hidden.startswith("The key …")
    assert hidden.endswith(" is wrong.")
    assert Hiding([KEY]).in_bytes(shape.encode()).startswith("…".encode())


def test_a_secret_that_a_cut_left_half_of_is_hidden_too() -> None:
    hide = Hiding([KEY])
    for length in range(6, len(KEY)):
        assert hide(f"It was {KEY[:length]}…") == "It was …"
    assert hide("It was my own…") == "It was …"
    assert hide("It was my…") == "It was my…"
    assert hide(f"It was {KEY[:9]} or so") == f"It was {KEY[:9]} or so"


def test_of_two_secrets_the_longer_is_hidden_whole() -> None:
    assert Hiding([KEY, KEY + "-and-more"])(f"<{KEY}-and-more>") == "<…>"


def test_words_that_are_used_as_keys_stay_words() -> None:
    assert Hiding(["none", "x" * (SHORTEST - 1), ""])("none of it is xxxxxxx") == "none of it is xxxxxxx"
    assert Hiding([])("anything") == "anything"
    assert Hiding([]).in_bytes(b"anything") == b"anything"


def test_secrets_are_found_wherever_a_configuration_has_them() -> None:
    provider = Provider(
        name="one",
        api_base="https://one.example",
        api_key=Secret("the-key-of-one"),
        headers={"X-Team-Token": "the-token-of-a-team", "X-Team": "platform"},
        secrets={"client_secret": Secret("the-client-secret")},
    )
    found = secrets_of([provider, Auth(master_key=Secret("the-new-one,the-old-one")), {"a": (Secret("in-a-map"),)}])
    assert {"the-key-of-one", "the-token-of-a-team", "the-client-secret", "the-new-one", "the-old-one"} <= found
    assert "in-a-map" in found
    assert "platform" not in found


@pytest.mark.parametrize(
    ("address", "part"),
    [
        ("postgresql://u:pass%20word@db.example/x", "pass word"),
        ("redis://:the-password@db.example:6379/0", "the-password"),
        ("https://hooks.example/services/T0/B0/the-token", "/services/T0/B0/the-token"),
    ],
)
def test_of_an_address_what_is_secret_is_a_secret_of_its_own(address: str, part: str) -> None:
    assert {address, part} <= secrets_of(Secret(address))


def test_long_lines_of_a_secret_count_alone() -> None:
    line = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcw"
    for ending in ("\n", "\\n"):
        assert line in secrets_of(Secret(f"-----BEGIN-----{ending}{line}{ending}-----END-----"))
