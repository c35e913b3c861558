"""Every way to get config.yaml wrong, and the exact words of each refusal and warning."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.config.presets import PRESETS
from tests.configs import KEY, OWN, STRONG, look, said


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


NAMES = list(PRESETS)
BAD: dict[str, tuple[str, list[str]]] = {
    "unknown key, at the top": ("provders: {}", ['1:1 error unknown key "provders". Did you mean "providers"?']),
    "unknown key, inside": (
        "providers:\n  gpu:\n    type: openai_compatible\n    api_bse: http://x/v1",
        ['4:5 error unknown key "api_bse" in providers.gpu. Did you mean "api_base"?'],
    ),
    "unknown key, nothing near": (
        "logging: {zzz: 1}",
        ['1:11 error unknown key "zzz" in logging. Known: level, format, bodies.'],
    ),
    "unknown key, in defaults": (
        "defaults: {zzz: 1}",
        [
            '1:12 error unknown key "zzz" in defaults. Known: connect_timeout, timeout, stream_timeout, '
            "idle_timeout, num_retries, allowed_fails, cooldown_time."
        ],
    ),
    "another gateway's section": (
        "model_list: []",
        [
            '1:1 error unknown key "model_list". That is LiteLLM\'s; '
            "here models go under models, as name: provider/model."
        ],
    ),
    "the key twice": (
        "server: {port: 1}\nserver: {}",
        ['2:1 error the key "server" stands here twice; first on line 1.'],
    ),
    "reference in flow style": (
        "providers:\n  openai: {api_key: ${OPENAI_API_KEY}}",
        [
            "2:21 error {api_key: ${OPENAI_API_KEY}} is not valid YAML: "
            'inside { } put quotes around "${OPENAI_API_KEY}".'
        ],
    ),
    "reference in a flow list": (
        "keys: {defaults: {models: [${A}]}}",
        ['1:28 error [${A}] is not valid YAML: inside [ ] put quotes around "${A}".'],
    ),
    "not YAML": (
        "server: a: b",
        ["1:10 error this is not valid YAML: mapping values are not allowed in this context."],
    ),
    "a second document": ("server: {}\n---\nserver: {}", ["2:1 error there is a second document; the file holds one."]),
    "a tag": (
        "server: !!python/object:os.system {}",
        ["1:9 error the tag tag:yaml.org,2002:python/object:os.system means nothing here; leave it out."],
    ),
    "a list as the file": ("- a", ["1:1 error the file must be a map of key: value, not a list."]),
    "a list as a section": ("server: [1]", ["1:9 error server must be a map of key: value, not a list."]),
    "a map as a key": ("{a: 1}: 2", ["1:1 error a key is text, not a map."]),
    "an anchor in itself": ("a: &a [*a]", ['1:8 error there is no finished anchor "&a" above this "*a".']),
    "a bad merge": ("server: {<<: 1}", ['1:14 error "<<" takes a map or a list of maps, not "1".']),
    "a port too high": (
        "server:\n  port: 99999",
        ['2:9 error server.port must be a whole number from 1 to 65535, not "99999".'],
    ),
    "a port in quotes": (
        'server: {port: "4000"}',
        ['1:16 error server.port must be a whole number from 1 to 65535, not "4000" in quotes.'],
    ),
    "a host that is a number": (
        "server: {host: 12}",
        ['1:16 error server.host must be text, not "12": put quotes around it, "12".'],
    ),
    "a duration": (
        "server: {keepalive: 15sec}",
        [
            "1:21 error server.keepalive must be a duration like 30s, 5m, 2h or 30d, "
            'or a number of seconds, not "15sec".'
        ],
    ),
    "a duration too long": (
        "server: {keepalive: 2h}",
        ['1:21 error server.keepalive must be from 0s to 1h, not "2h".'],
    ),
    "a duration below zero": (
        "defaults: {timeout: -1s}",
        ['1:21 error defaults.timeout must be a duration like 30s, 5m, 2h or 30d, or a number of seconds, not "-1s".'],
    ),
    "a size": (
        "server: {max_body: 20 megabytes}",
        ['1:20 error server.max_body must be a size like 10MB or 64KiB, or a number of bytes, not "20 megabytes".'],
    ),
    "yes is not true": (
        "database: {auto_migrate: yes}",
        ['1:26 error database.auto_migrate must be true or false, not "yes".'],
    ),
    "a choice": (
        "logging: {level: verbose}",
        ['1:18 error logging.level must be debug or info or warning or error, not "verbose".'],
    ),
    "a password that ends the address": (
        "database: {url: 'postgresql://me:p#w@h/db'}",
        [
            "1:17 error database.url has no number where its port should be. In a password write : / ? # [ ] @ % as "
            "%3A %2F %3F %23 %5B %5D %40 %25."
        ],
    ),
    "a database that is not Postgres": (
        "database: {url: 'sqlite:///x.db'}",
        [
            "1:17 error database.url must begin with postgresql://; "
            "leave it out for the database that comes with Strata."
        ],
    ),
    "a missing variable outside providers": (
        "telemetry: {metrics: {token: '${METRICS_TOKEN}'}}",
        ["1:30 error METRICS_TOKEN is not set. Set it, or write a fallback: ${NAME:-fallback}."],
    ),
    "a missing file": (
        "telemetry: {metrics: {token: '${file:none.txt}'}}",
        ["1:30 error the file none.txt cannot be read (No such file or directory). Put it there, or correct its path."],
    ),
    "a reference that is not closed": (
        "server: {host: '${HOST'}",
        ['1:16 error a "${" is not closed by "}". A literal "$" before "{" is written "$$".'],
    ),
    "a reference of another tool": (
        "server: {host: '${env:HOST}'}",
        ["1:16 error there is a reference of a form that is not known. Write ${HOST}."],
    ),
    "a weak master key": (
        "auth: {master_key: sk-1234}",
        [
            "1:20 error auth.master_key is too weak: it has 7 characters. "
            "Use this one: STRATA_MASTER_KEY=sk-strata-admin-NEW"
        ],
    ),
    "a master key of one letter": (
        f"auth: {{master_key: {'a' * 40}}}",
        [
            "1:20 error auth.master_key is too weak: it repeats itself. "
            "Use this one: STRATA_MASTER_KEY=sk-strata-admin-NEW"
        ],
    ),
    "a provider without a type": (
        "providers:\n  opnai: {}",
        [
            "2:3 error providers.opnai needs a type, for example openai_compatible: "
            'this name is not a known one. Did you mean "openai"?'
        ],
    ),
    "a provider of no known type": (
        "providers:\n  x: {type: Open-AI, api_base: 'https://x/v1'}",
        [f'2:3 error providers.x.type "Open-AI" is not known. Known: openai_compatible, {", ".join(NAMES[:19])} ….'],
    ),
    "a provider without an address": (
        "providers:\n  gpu: {type: openai_compatible}",
        ["2:3 error providers.gpu needs an api_base, for example http://127.0.0.1:8000/v1."],
    ),
    "a provider that is built in": (
        "providers: {sim: {}}",
        ["1:13 error providers.sim is built in and has no settings; leave it out."],
    ),
    "a provider as text": (
        "providers: {openai: sk-proj-abcdefghijkl}",
        ["1:21 error providers.openai must be a map of key: value, not a value that looks like a key (not shown)."],
    ),
    "a provider's name": (
        "providers: {'a/b': {}}",
        ['1:13 error "a/b" cannot name a provider: letters, digits, dots, - and _ only.'],
    ),
    "a password in an address": (
        "providers:\n  x: {type: openai_compatible, api_base: 'https://me:secret@h/v1'}",
        ["2:42 error providers.x.api_base must not hold a user name or password; put the key under api_key."],
    ),
    "a query in an address": (
        "providers:\n  x: {type: openai_compatible, api_base: 'https://h/v1?key=1'}",
        ["2:42 error providers.x.api_base must end with its path: no ? and no #."],
    ),
    "an address that is none": (
        "providers:\n  x: {type: openai_compatible, api_base: 'h/v1'}",
        ["2:42 error providers.x.api_base must be an address like https://api.example.com/v1."],
    ),
    "an address without encryption": (
        "providers:\n  x: {type: anthropic, api_base: 'http://h.example.com', api_key: y}",
        [
            "2:34 error providers.x.api_base must begin with https://: "
            "the key would travel unencrypted to h.example.com."
        ],
    ),
    "a key in a header": (
        "providers:\n  openai: {api_key: x, headers: {Authorization: y}}",
        ["2:33 error providers.openai.headers: Authorization would hold a secret; put the key under api_key."],
    ),
    "a header that is ours": (
        "providers:\n  openai: {api_key: x, headers: {Host: y}}",
        ["2:33 error providers.openai.headers: Host belongs to the connection and cannot be set."],
    ),
    "a model without a provider": (
        "models:\n  fast: gpt-5",
        ['2:9 error models.fast: "gpt-5" names no provider. Write provider/model, for example openai/gpt-5.'],
    ),
    "a model of an unknown provider": (
        "models:\n  fast: opnai/gpt-5",
        ['2:9 error models.fast: no provider is called "opnai". Did you mean "openai"?'],
    ),
    "a model without deployments": (
        "models: {fast: }",
        ["1:10 error models.fast has no deployments. Write provider/model, for example models.fast: openai/gpt-5."],
    ),
    "a deployment without a model": (
        OWN + "models: {a: {deployments: [{weight: 1}]}}",
        ["2:28 error models.a: a deployment needs a model, for example {model: openai/gpt-5}."],
    ),
    "a weight of nothing": (
        OWN + "models: {a: {deployments: [{model: gpu/x, weight: 0}]}}",
        ['2:51 error models.a.deployments.weight must be a whole number from 1 to 1000000, not "0".'],
    ),
    "a star in a plain name": (
        OWN + "models: {a: gpu/*}",
        ['2:13 error models.a: "gpu/*" has a *, which needs a name that ends in one: "gpu/*": gpu/*.'],
    ),
    "a star in the middle": (
        OWN + "models: {'a*b': gpu/x}",
        ['2:10 error "a*b" cannot name a model: printable, at most 256 characters, * at its end.'],
    ),
    "a fallback that is no model": (
        OWN + "models:\n  fast: gpu/a\n  b: {deployments: gpu/b, fallbacks: [fsat]}",
        ['4:38 error models.b.fallbacks: no model is called "fsat". Did you mean "fast"?'],
    ),
    "a loop of two": (
        OWN + "models:\n  a: {deployments: gpu/a, fallbacks: [b]}\n  b: {deployments: gpu/b, fallbacks: [a]}",
        ["3:38 error fallback loop: a → b → a."],
    ),
    "a loop of one": (
        OWN + "models:\n  a: {deployments: gpu/a, fallbacks: [a]}",
        ["3:38 error fallback loop: a → a."],
    ),
    "a loop through a pattern": (
        OWN + "models:\n  a: {deployments: gpu/a, fallbacks: [gpu/x]}\n"
        "  'gpu/*': {deployments: 'gpu/*', fallbacks: [a]}",
        ["3:38 error fallback loop: a → gpu/* → a."],
    ),
    "money with words": (
        "keys: {defaults: {max_budget: five}}",
        ['1:31 error keys.defaults.max_budget must be dollars like 5 or 0.25, not "five".'],
    ),
    "money below zero": (
        "keys: {defaults: {max_budget: -5}}",
        ['1:31 error keys.defaults.max_budget must be dollars like 5 or 0.25, not "-5".'],
    ),
    "money too fine": (
        "keys: {defaults: {max_budget: 0.0000000001}}",
        ['1:31 error keys.defaults.max_budget must be dollars with at most nine decimal places, not "0.0000000001".'],
    ),
    "a period without a budget": (
        "keys: {defaults: {budget_duration: 1d}}",
        ["1:18 error keys.defaults.budget_duration says how often max_budget starts again; there is no max_budget."],
    ),
    "a price too fine": (
        "prices: {models: {openai/x: {input: 0.00000375}}}",
        [
            "1:37 error prices.models.openai/x.input must be dollars per million tokens in steps of 0.000001, "
            'not "0.00000375".'
        ],
    ),
    "a price of no deployment": (
        "prices: {models: {fast: {input: 1}}}",
        ['1:19 error prices.models: "fast" is no deployment. Write provider/model or provider/*.'],
    ),
    "a price of an unknown provider": (
        "prices: {models: {opnai/x: {input: 1}}}",
        ['1:19 error prices.models: no provider is called "opnai". Did you mean "openai"?'],
    ),
    "a static key without its key": ("keys: {static: [{name: ci}]}", ["1:17 error keys.static[0] needs a key."]),
    "static keys as a map": (
        "keys: {static: {ci: x}}",
        ["1:16 error keys.static must be a list of {name, key, …}, not a map."],
    ),
    "a prefix": (
        "keys: {prefix: sk}",
        ['1:16 error keys.prefix must be letters and digits that end in - or _, like sk-strata-, not "sk".'],
    ),
    "the path of the metrics": (
        "telemetry: {metrics: {path: metrics}}",
        ['1:29 error telemetry.metrics.path must be a path like /metrics, not "metrics".'],
    ),
    "a number that JSON does not know": (
        OWN + "models: {a: {deployments: gpu/x, params: {t: .nan}}}",
        ['2:42 error models.a.params must hold only numbers that JSON knows, not ".nan".'],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_each_mistake_is_named_with_its_place_and_its_fix(name: str) -> None:
    text, expected = BAD[name]
    examined = look(text)
    assert [line for line in said(examined) if " error " in line] == expected
    assert examined.config is None


BAD |= {
    "budgets that are none": (
        "budgets:\n  - {scope: planet, max_budget: 1}\n  - {scope: global, name: x, max_budget: 1}\n"
        "  - {scope: provider, name: opnai, max_budget: 1}\n  - {scope: team}\n"
        "  - {scope: global, max_budget: 1, budget_duration: year}\n  - {scope: global, max_budget: 2}\n"
        "  - {scope: global, max_budget: 3}",
        [
            '2:13 error budgets[0].scope must be global or provider or team or user, not "planet".',
            "3:5 error budgets[1] is for everybody and has no name.",
            '4:5 error budgets[2].name: no provider is called "opnai". Did you mean "openai"?',
            "5:5 error budgets[3] needs a max_budget.",
            "6:53 error budgets[4].budget_duration must be a duration like 30s, 5m, 2h or 30d, or a number of seconds, "
            'not "year". For the calendar\'s write day, week or month.',
            "7:5 error budgets[5]: another budget of this file is for the same and as long.",
            "8:5 error budgets[6]: another budget of this file is for the same and as long.",
        ],
    ),
    "budgets that are no list": (
        "budgets: {scope: global}",
        ["1:10 error budgets must be a list of {scope, max_budget, …}, not a map."],
    ),
}

WARNED: dict[str, tuple[str, list[str]]] = {
    "a provider without its key": (
        "models:\n  smart: [anthropic/a, sim/chat]\n  slow: anthropic/b",
        [
            "2:11 warning providers.anthropic is off: ANTHROPIC_API_KEY is not set. "
            "models.smart keeps 1 of 2 deployments.",
            "3:3 warning models.slow is off: anthropic is off.",
        ],
    ),
    "a key in the file": (
        f"providers: {{openai: {{api_key: {KEY}}}}}",
        ["1:31 warning providers.openai.api_key: this looks like a key; use ${OPENAI_API_KEY}."],
    ),
    "a master key in the file": (
        f"auth: {{master_key: {STRONG}}}",
        ["1:20 warning auth.master_key: this looks like a key; use ${STRATA_MASTER_KEY}."],
    ),
    "a password in the file": (
        "database: {url: 'postgresql://me:pw@h/db'}",
        ["1:17 warning database.url: this looks like a key; use ${DATABASE_URL}."],
    ),
    "a short static key": (
        "keys: {static: [{name: ci, key: '${X:-short}'}]}",
        ["1:33 warning keys.static[0].key is short and can be guessed: use 32 random characters or more."],
    ),
    "a key for no model": (
        "keys: {defaults: {models: [fsat]}}",
        ['1:27 warning keys.defaults.models: no model is called "fsat".'],
    ),
    "plain http over the internet": (
        "providers: {x: {type: openai_compatible, api_base: 'http://h.example.com/v1'}}",
        [
            "1:52 warning providers.x.api_base is not https: "
            "the key and every prompt travel unencrypted to h.example.com."
        ],
    ),
    "a shell's references": (
        "providers: {openai: {api_key: $OPENAI_API_KEY}}",
        ["1:31 warning this stands for itself here; what a variable holds is written ${NAME}."],
    ),
    "LiteLLM's references": (
        "logging: {level: os.environ/LEVEL}",
        ["1:18 note os.environ/LEVEL works; the form used here is ${LEVEL}."],
    ),
}


@pytest.mark.parametrize("name", WARNED)
def test_what_is_worth_saying_stops_nothing(name: str) -> None:
    text, expected = WARNED[name]
    examined = look(text, {"LEVEL": "debug"})
    assert said(examined) == expected
    assert examined.config is not None
    assert len(examined.config.warnings) == sum(" warning " in line for line in expected)
