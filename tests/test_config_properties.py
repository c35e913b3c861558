"""What holds for every configuration: it comes back as meant, hides its secrets, and breaks nothing."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.config import Deployment, Model, Provider, Secret, Timeouts
from proxy.config.presets import PRESETS
from proxy.config.problems import text_of
from tests.configs import good, look


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def paths_of_values() -> list[str]:
    """A file for each place where a value can stand, with a reference there."""
    return [
        "server: {" + key + ": '${X}'}"
        for key in ("host", "port", "max_body", "keepalive", "response_headers", "unknown")
    ] + [
        "server: '${X}'",
        "providers: '${X}'",
        "models: '${X}'",
        "providers: {openai: '${X}'}",
        "providers: {openai: {api_key: '${X}', api_base: '${X}', headers: '${X}', type: '${X}'}}",
        "providers: {openai: {max_connections: '${X}', quirks: '${X}'}}",
        "providers: {openai: {api_key: '${X}'}}",
        "models: {a: '${X}'}",
        "models: {a: ['${X}', {model: '${X}', weight: '${X}'}]}",
        "models: {a: {deployments: sim/x, fallbacks: ['${X}'], timeout: '${X}', params: '${X}'}}",
        "auth: {master_key: '${X}'}",
        "database: {url: '${X}', pool: '${X}'}",
        "keys: {prefix: '${X}', defaults: {max_budget: '${X}', budget_duration: '${X}', expires: '${X}'}}",
        "keys: {static: [{name: ci, key: '${X}'}]}",
        "keys: {static: '${X}'}",
        "prices: {on_missing: '${X}', models: {openai/x: {input: '${X}'}}}",
        "telemetry: {metrics: {token: '${X}', path: '${X}', enabled: '${X}'}}",
        "logging: {level: '${X}'}",
        "ledger: {segment_size: '${X}', batch_rows: '${X}'}",
    ]


SECRETS = st.text("ABCDEFGHabcdefgh0123456789_-", min_size=28, max_size=60)
SECRET_PLACES = [
    "providers: {openai: {api_key: '${X}'}}",
    "auth: {master_key: '${X}'}",
    "telemetry: {metrics: {token: '${X}'}}",
    "keys: {static: [{name: ci, key: '${X}'}]}",
    "database: {url: 'postgresql://me:${X}@h/db'}",
]


@settings(max_examples=25)
@given(secret=SECRETS, prefix=st.sampled_from(["", "sk-", "sk-proj-"]))
def test_no_secret_appears_in_a_problem_wherever_it_was_put(secret: str, prefix: str) -> None:
    value = prefix + secret
    for text in paths_of_values():
        for written, environ in ((text, {"X": value}), (text.replace("${X}", value), dict[str, str]())):
            examined = look(written, environ)
            assert secret not in text_of(examined.problems), text
            assert examined.config is None or secret not in "".join(examined.config.warnings)


@settings(max_examples=25)
@given(secret=SECRETS, inline=st.booleans())
def test_no_secret_appears_in_a_printed_configuration(secret: str, inline: bool) -> None:
    for text in SECRET_PLACES:
        config, problems = look(text.replace("${X}", secret) if inline else text, {"X": secret})
        assert config is not None or "auth.master_key is too weak" in text_of(problems)
        assert secret not in repr(config) + str(config) + text_of(problems)


@settings(max_examples=150)
@given(st.one_of(st.binary(max_size=200), st.text("abc:{}[]$&*!'\"|>-#,% \n\t~?<.0", max_size=80).map(str.encode)))
def test_no_file_whatever_breaks_the_reader(data: bytes) -> None:
    examined = look(data)
    assert (examined.config is None) == any(one.severity == "error" for one in examined.problems)


NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=8).filter(lambda name: name[0] != "-")
TEXTS = st.text(st.characters(exclude_categories=("C", "Zl", "Zp", "Zs")), min_size=1, max_size=12)
HOSTS = st.sampled_from(["127.0.0.1", "gpu.internal", "10.0.0.8", "[::1]"])
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(-1e9, 1e9), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)
QUIRKS: st.SearchStrategy[dict[str, object]] = st.fixed_dictionaries(
    {},
    optional={
        "drop": st.lists(TEXTS, max_size=3),
        "rename": st.dictionaries(TEXTS, TEXTS, max_size=2),
        "set": st.dictionaries(TEXTS, JSON, max_size=2),
    },
)


class Wanted(msgspec.Struct):
    """A configuration as a document, and as the structs it must become."""

    document: dict[str, Any]
    providers: dict[str, Provider]
    models: dict[str, Model]


@st.composite
def wanted_configs(draw: st.DrawFn) -> Wanted:
    providers: dict[str, Provider] = {}
    listed: dict[str, Any] = {}
    for name in draw(st.sets(NAMES.filter(lambda name: name not in PRESETS and name != "sim"), min_size=1, max_size=4)):
        key = draw(st.none() | st.text("abcXYZ$-_09", min_size=1, max_size=50))
        provider = Provider(
            name=name,
            api_base=f"http://{draw(HOSTS)}:{draw(st.integers(1, 65535))}/v1",
            api_key=Secret(key) if key else None,
            headers=draw(st.dictionaries(st.sampled_from(["X-Team", "X-Org"]), TEXTS, max_size=2)),
            quirks=draw(QUIRKS),
            max_connections=draw(st.integers(1, 500)),
            bills_after_abort=draw(st.booleans()),
        )
        providers[name] = provider
        listed[name] = {
            "type": "openai_compatible",
            "api_base": provider.api_base,
            "api_key": key,
            "headers": provider.headers,
            "quirks": provider.quirks,
            "max_connections": provider.max_connections,
            "bills_after_abort": provider.bills_after_abort,
        }
    models: dict[str, Model] = {}
    served: dict[str, Any] = {}
    for name in draw(st.lists(NAMES, min_size=1, max_size=5, unique=True)):
        deployments = [
            Deployment(
                provider=draw(st.sampled_from(list(providers.values()))),
                model=draw(TEXTS.filter(lambda text: "*" not in text)),
                weight=draw(st.integers(1, 100)),
                order=draw(st.integers(1, 9)),
            )
            for _ in range(draw(st.integers(1, 3)))
        ]
        total = draw(st.integers(1, 10_000))
        model = Model(
            name=name,
            deployments=tuple(deployments),
            fallbacks=tuple(draw(st.lists(st.sampled_from(list(models)), max_size=2))) if models else (),
            timeouts=Timeouts(total_seconds=float(total)),
            num_retries=draw(st.integers(0, 20)),
            params=draw(st.dictionaries(TEXTS, JSON, max_size=3)),
        )
        models[name] = model
        served[name] = {
            "deployments": [{"model": one.name, "weight": one.weight, "order": one.order} for one in deployments],
            "fallbacks": list(model.fallbacks),
            "timeout": draw(st.sampled_from([total, f"{total}s", f"{total * 1000}ms"])),
            "num_retries": model.num_retries,
            "params": model.params,
        }
    return Wanted({"providers": listed, "models": served}, providers, models)


def written(value: Any, depth: int = 0) -> str:
    """YAML in block style with every text in quotes; a literal $ doubled where a reference could stand."""
    pad = "\n" + "  " * depth
    if isinstance(value, dict) and value:
        return "".join(
            f"{pad}{msgspec.json.encode(key).decode()}: {written(inner, depth + 1)}" for key, inner in value.items()
        )
    if isinstance(value, list) and value:
        return "".join(f"{pad}- {written(inner, depth + 1)}" for inner in value)
    text = msgspec.json.encode(value).decode()
    return text.replace("$", "$$") if isinstance(value, str) else text


@settings(max_examples=60)
@given(wanted_configs())
def test_any_valid_configuration_comes_back_as_it_was_meant(wanted: Wanted) -> None:
    config = good(written(wanted.document))
    providers = {name: one for name, one in config.providers.items() if name != "sim"}
    models = {name: one for name, one in config.models.items() if not name.startswith("sim/")}
    assert providers == wanted.providers
    assert models == wanted.models


@given(st.ip_addresses(), st.sampled_from(["http", "https"]))
def test_plain_http_to_an_address_is_quiet_only_inside(address: Any, scheme: str) -> None:
    host = f"[{address}]" if address.version == 6 else str(address)
    examined = look(f"providers: {{x: {{type: openai_compatible, api_base: '{scheme}://{host}/v1'}}}}")
    outside = scheme == "http" and not ipaddress.ip_address(str(address)).is_private
    assert examined.config is not None
    assert bool(examined.problems) == (outside and not address.is_loopback)
