"""What config.yaml and the environment mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.config import PriceOverride, Secret, SharedBudget, Timeouts
from proxy.config.load import examine, find, load
from proxy.config.presets import PRESETS, SIM_MODELS
from proxy.config.problems import ConfigError, text_of
from proxy.sim.faults import MODELS
from tests.configs import KEY, OWN, STRONG, good, look, said

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_text_of_a_refusal_is_aligned_and_names_the_file() -> None:
    Path("config.yaml").write_text("server:\n  port: 0\nlogging: {lvel: info}\n")
    with pytest.raises(ConfigError) as raised:
        load(Path("config.yaml"), {})
    assert str(raised.value).splitlines() == [
        'config.yaml:2:9  error    server.port must be a whole number from 1 to 65535, not "0".',
        'config.yaml:3:11 error    unknown key "lvel" in logging. Did you mean "level"?',
    ]


def test_the_five_line_form_is_enough() -> None:
    text = """
providers:
  openai: {api_key: "${OPENAI_API_KEY}"}
models:
  fast: openai/gpt-5-mini
  smart: [anthropic/claude-sonnet-5, openai/gpt-5]
"""
    config = good(text, {"OPENAI_API_KEY": KEY, "ANTHROPIC_API_KEY": KEY[::-1]})
    assert list(config.models)[:2] == ["fast", "smart"] and "sim/chat" in config.models
    assert [(one.name, one.order) for one in config.models["smart"].deployments] == [
        ("anthropic/claude-sonnet-5", 1),
        ("openai/gpt-5", 2),
    ]
    assert config.providers["openai"].api_key == Secret(KEY)
    assert config.providers["anthropic"].api == "anthropic"
    assert config.warnings == ()


def test_with_no_file_the_environment_is_the_configuration() -> None:
    config = load(None, {"GROQ_API_KEY": KEY, "STRATA_SERVER__PORT": "4001", "STRATA_LOGGING__LEVEL": "debug"})
    assert [name for name in config.models if not name.startswith("sim/")] == ["groq/*"]
    assert (config.server.port, config.logging.level, config.source, config.hash) == (4001, "debug", None, "")
    assert load(None, {}).models.keys() == {f"sim/{name}" for name in SIM_MODELS}


def test_every_known_provider_comes_into_being_by_its_variable() -> None:
    environ = {preset.variables[0]: KEY for preset in PRESETS.values() if preset.variable}
    hosts = {"AZURE_OPENAI_ENDPOINT": "https://eu.azure.example/", "DATABRICKS_HOST": "dbx.example"}
    config = load(None, environ | hosts | {"SNOWFLAKE_ACCOUNT": "acme-eu"})
    own = {
        "azure": "https://eu.azure.example",
        "databricks": "https://dbx.example/serving-endpoints",
        "snowflake": "https://acme-eu.snowflakecomputing.com/api/v2/cortex/v1",
    }
    for name, preset in PRESETS.items():
        if preset.variable:
            provider = config.providers[name]
            assert (provider.api, provider.api_base) == (preset.api, own.get(name, preset.api_base))
            assert provider.bills_after_abort is preset.bills_after_abort
            assert config.models[f"{name}/*"].deployments[0].model == "*"
    assert "ollama" not in config.providers
    assert good("models: {a: ollama/llama3}").models["a"].deployments[0].provider.api_key is None


def test_a_provider_without_its_address_is_off_and_says_what_is_missing() -> None:
    examined = look("models: {a: databricks/x, b: sim/chat}", {"DATABRICKS_TOKEN": KEY})
    assert "providers.databricks is off: DATABRICKS_HOST is not set" in "\n".join(said(examined))


def test_an_address_from_the_environment_is_looked_at_too() -> None:
    examined = look("models: {a: snowflake/x}", {"SNOWFLAKE_PAT": KEY, "SNOWFLAKE_ACCOUNT": "ac me"})
    assert "providers.snowflake.api_base must be an address" in "\n".join(said(examined))


def test_azure_needs_no_key_where_a_token_does() -> None:
    environ = {
        "AZURE_TENANT_ID": "t",
        "AZURE_CLIENT_ID": "c",
        "AZURE_CLIENT_SECRET": KEY,
        "OPENAI_API_VERSION": "preview",
    }
    text = "providers: {azure: {api_base: 'https://eu.azure.example'}}\nmodels: {a: azure/ours}"
    provider = good(text, environ).providers["azure"]
    assert provider.api_key is None and provider.secrets == {"client_secret": Secret(KEY)}
    assert provider.options == {"tenant_id": "t", "client_id": "c", "api_version": "preview"}
    assert good(text).providers["azure"].secrets == {}, "the machine's own identity"


def test_a_deployment_says_which_model_is_behind_it() -> None:
    text = """
providers: {azure-eu: {type: azure, api_base: https://eu.azure.example, api_version: 2024-10-21, api_key: "${K}"}}
models: {a: {deployments: [{model: azure-eu/ours, base_model: gpt-5-mini}]}}
"""
    (deployment,) = good(text, {"K": KEY}).models["a"].deployments
    assert (deployment.name, deployment.base_model) == ("azure-eu/ours", "gpt-5-mini")
    assert deployment.provider.options == {"api_version": "2024-10-21"}


def test_the_environment_wins_over_the_file() -> None:
    text = "server: {port: 1}\ndatabase: {url: 'postgresql://a/b'}\nkeys: {defaults: {models: ['sim/*']}}"
    environ = {
        "STRATA_SERVER__PORT": "2",
        "DATABASE_URL": "postgresql://c/d",
        "STRATA_KEYS__DEFAULTS__MODELS": "sim/chat, sim/echo",
        "STRATA_KEYS__PREFIX": "",
    }
    examined = look(text, environ)
    assert examined.config is not None
    assert examined.config.server.port == 2
    assert examined.config.database.url == Secret("postgresql://c/d")
    assert examined.config.keys.defaults.models == ("sim/chat", "sim/echo")
    assert said(examined) == ["2:17 warning database.url is not used: DATABASE_URL is set, and the environment wins."]


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"STRATA_SEVER__PORT": "1"}, 'STRATA_SEVER__PORT: there is no section "sever". Did you mean "server"?'),
        ({"STRATA_SERVER__PROT": "1"}, 'unknown key "prot" in server. Did you mean "port"?'),
        (
            {"STRATA_SERVER__PORT": KEY},
            "server.port must be a whole number from 1 to 65535, not what ${STRATA_SERVER__PORT} holds.",
        ),
        (
            {"STRATA_MASTER_KEY": "short"},
            "auth.master_key is too weak: it has 5 characters. Use this one: STRATA_MASTER_KEY=sk-strata-admin-NEW",
        ),
    ],
)
def test_mistakes_in_the_environment_name_their_variable(environ: dict[str, str], message: str) -> None:
    examined = examine(None, environ, new_secret=lambda: "NEW")
    assert [one.message for one in examined.problems] == [message]
    assert "environment" in str(examined.problems[0].at)


def test_what_a_variable_holds_is_never_looked_through_again() -> None:
    tricky = "a # b: ${OTHER} $$ 'x"
    config = good(
        OWN + "models: {a: {deployments: gpu/x, params: {p: '${T}', q: $$5, r: '${N:-7}', s: '${D:-a$b}'}}}",
        {"T": tricky},
    )
    assert config.models["a"].params == {"p": tricky, "q": "$5", "r": 7, "s": "a$b"}
    environ = {"STRATA_TELEMETRY__METRICS__TOKEN": "a$${b}"}
    assert load(None, environ).metrics.token == Secret("a$${b}")


def test_a_secret_can_come_from_a_file_beside_the_configuration() -> None:
    Path("key.txt").write_text(KEY + "\n")
    assert good("providers: {openai: {api_key: '${file:key.txt}'}}").providers["openai"].api_key == Secret(KEY)
    Path("key.txt").write_text("")
    assert said(look("providers: {openai: {api_key: '${file:key.txt}'}}")) == [
        "1:13 warning providers.openai is off: the file key.txt is empty."
    ]
    Path("key.txt").write_bytes(b"x" * 70_000)
    assert said(look("providers: {openai: {api_key: '${file:key.txt}'}}"))[0] == (
        "1:31 error the file key.txt has more than 65536 bytes."
    )


def test_a_missing_variable_switches_its_provider_off_and_nothing_else() -> None:
    text = """
providers:
  far: {type: openai_compatible, api_base: "${FAR_URL}", api_key: "${FAR_KEY}"}
  near: {type: openai_compatible, api_base: http://localhost:8000/v1/}
models:
  both: [far/x, near/x]
"""
    config = good(text)
    assert config.off == {"far": "FAR_URL is not set and FAR_KEY is not set"}
    assert [one.name for one in config.models["both"].deployments] == ["near/x"]
    assert config.providers["near"].api_base == "http://localhost:8000/v1"


def test_weights_share_and_orders_queue() -> None:
    text = (
        OWN
        + """
models:
  queued: {deployments: [gpu/a, gpu/b]}
  shared: {deployments: [{model: gpu/a, weight: 3}, gpu/b, {model: gpu/c, order: 2}]}
  "gpu-*": gpu/llama-*
  "all/*": {deployments: gpu/a, timeout: 1m, stream_timeout: 2s, idle_timeout: 500ms, connect_timeout: 1,
    num_retries: 0}
"""
    )
    models = good(text).models

    def shape(name: str) -> list[tuple[str, int, int]]:
        return [(one.model, one.weight, one.order) for one in models[name].deployments]

    assert shape("queued") == [("a", 1, 1), ("b", 1, 2)]
    assert shape("shared") == [("a", 3, 1), ("b", 1, 1), ("c", 1, 2)]
    assert shape("gpu-*") == [("llama-*", 1, 1)]
    assert models["all/*"].timeouts == Timeouts(
        connect_seconds=1.0, first_byte_seconds=2.0, idle_seconds=0.5, total_seconds=60.0
    )
    assert models["all/*"].num_retries == 0


def test_static_keys_inherit_the_defaults_unless_they_say_otherwise() -> None:
    text = """
keys:
  defaults: {models: ["sim/*"], max_budget: 0.1, budget_duration: 30d, rpm: 60, expires: 90d}
  static:
    - {name: a, key: "${A}"}
    - {name: b, key: "${B}", max_budget: 5, models: [sim/chat]}
"""
    keys = good(text, {"A": STRONG, "B": STRONG[::-1]}).keys
    first, second = keys.static
    assert (first.models, first.rpm, first.budget_nano_usd, first.budget_seconds) == (("sim/*",), 60, 10**8, 2_592_000)
    assert (second.models, second.rpm, second.budget_nano_usd, second.budget_seconds) == (
        ("sim/chat",),
        60,
        5 * 10**9,
        None,
    )
    assert keys.defaults.expires_seconds == 90 * 86_400


def test_budgets_of_more_than_one_key_and_their_windows() -> None:
    text = """
budgets:
  - {scope: global, max_budget: 500, budget_duration: month}
  - {scope: provider, name: openai, max_budget: 0.5, budget_duration: 30d}
  - {scope: team, name: research, max_budget: 200}
keys: {defaults: {max_budget: 5, budget_duration: week}}
"""
    config = good(text, {"OPENAI_API_KEY": KEY})
    assert config.budgets == (
        SharedBudget(scope="global", limit_nano_usd=500 * 10**9, calendar="month"),
        SharedBudget(scope="provider", name="openai", limit_nano_usd=5 * 10**8, window_seconds=2_592_000),
        SharedBudget(scope="team", name="research", limit_nano_usd=200 * 10**9),
    )
    assert (config.keys.defaults.budget_seconds, config.keys.defaults.budget_calendar) == (None, "week")


def test_prices_are_exact_and_the_simulated_provider_may_have_some() -> None:
    config = good(
        "prices: {on_missing: block, models: {openai/x: {input: 0.25, cached_input: 0.025, "
        "output: 2.00, request: 0.01}}}"
    )
    assert config.prices.on_missing == "block"
    assert config.prices.models["openai/x"] == PriceOverride(
        input_pico_usd=250_000, output_pico_usd=2_000_000, cached_input_pico_usd=25_000, request_nano_usd=10_000_000
    )
    assert "sim/*" not in config.prices.models
    assert good("prices: {models: {sim/*: {input: 1}}}").prices.models["sim/*"].input_pico_usd == 1_000_000


def test_the_annotated_example_loads_with_nothing_set() -> None:
    examined = examine(ROOT / "config.yaml", {})
    assert examined.config is not None, text_of(examined.problems)
    assert all(one.severity == "warning" and " is off: " in one.message for one in examined.problems)
    environ = {"OPENAI_API_KEY": KEY, "ANTHROPIC_API_KEY": KEY, "GEMINI_API_KEY": KEY}
    environ |= {"STRATA_MASTER_KEY": STRONG, "METRICS_TOKEN": STRONG}
    examined = examine(ROOT / "config.yaml", environ)
    assert examined.problems == [] and examined.config is not None
    # the README says so of whoever follows it in this folder
    assert {"openai/*", "anthropic/*", "gemini/*"} <= set(examined.config.models)


def test_the_examples_defaults_are_the_defaults() -> None:
    config, plain = load(ROOT / "config.yaml", {}), load(None, {})
    for section in ("server", "database", "auth", "rest", "metrics", "logging", "ledger"):
        assert getattr(config, section) == getattr(plain, section)
    assert config.models["fast"].timeouts == Timeouts()
    assert config.hash != plain.hash and len(config.hash) == 12


def test_octal_looking_numbers_are_decimal() -> None:
    assert good("server: {port: 0100}").server.port == 100
    assert good("server: {port: 0x64}").server.port == 100


def test_anchors_and_merges_work() -> None:
    text = (
        OWN
        + """
models:
  a: &a {deployments: gpu/a, timeout: 5s}
  b: {<<: *a, num_retries: 0}
  c: *a
"""
    )
    models = good(text).models
    assert models["b"].timeouts.total_seconds == models["c"].timeouts.total_seconds == 5.0
    assert (models["b"].num_retries, models["c"].num_retries) == (0, 2)


def test_the_file_is_found_by_name_variable_or_place() -> None:
    assert find({}, Path()) is None
    Path("config.yaml").write_text("")
    assert find({}, Path()) == Path("config.yaml")
    assert find({"STRATA_CONFIG": "other.yaml"}, Path()) == Path("other.yaml")
    assert [one.message for one in examine(Path("other.yaml"), {}).problems] == [
        "the file cannot be read: no such file or directory."
    ]


def test_every_simulated_model_is_served_under_its_own_name() -> None:
    assert set(SIM_MODELS) == set(MODELS)
