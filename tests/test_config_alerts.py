"""The `alerts` section: what it means, and what is said of each mistake in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.cli import main
from proxy.config import AlertRule, Email, Slack, Smtp, Webhook
from proxy.config.alerts import USUAL
from tests.configs import good, look, said

CHANNELS = """
alerts:
  channels:
    ops: {type: slack, url: "${SLACK}"}
    pager: {type: webhook, url: https://hooks.example.com/strata, secret: "${SIGNING}"}
    finance: {type: email, to: [finance@example.com, boss@example.com]}
  smtp: {host: smtp.example.com, from: strata@example.com, user: strata, password: "${SMTP}", security: tls, port: 465}
"""
ENVIRON = {"SLACK": "https://slack.example.com/x", "SIGNING": "a-secret-to-sign-with", "SMTP": "hidden-password"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_channels_without_rules_get_the_usual_ones_and_hide_their_secrets() -> None:
    alerts = good(CHANNELS, ENVIRON).alerts
    assert [type(channel) for channel in alerts.channels] == [Slack, Webhook, Email]
    assert alerts.rules == USUAL
    assert isinstance(alerts.smtp, Smtp) and (alerts.smtp.port, alerts.smtp.security) == (465, "tls")
    for hidden in ENVIRON.values():
        assert hidden not in repr(alerts)
    assert good("server: {port: 4000}").alerts.rules == ()


def test_rules_say_parts_dollars_and_numbers() -> None:
    text = (
        CHANNELS
        + """
  rules:
    - {name: budgets, when: budget_used, above: [0.5, 90%, 1]}
    - {name: soon, when: budget_forecast, notify: [ops]}
    - {name: daily, when: spend, above: 50, per: team}
    - {name: unpriced, when: unpriced_requests}
"""
    )
    assert good(text, ENVIRON).alerts.rules == (
        AlertRule(name="budgets", when="budget_used", above=(500, 900, 1000)),
        AlertRule(name="soon", when="budget_forecast", notify=("ops",)),
        AlertRule(name="daily", when="spend", above=(50 * 10**9,), per="team"),
        AlertRule(name="unpriced", when="unpriced_requests", above=(0,)),
    )
    assert good(CHANNELS + "  rules: []\n", ENVIRON).alerts.rules == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("alerts: {chanels: {}}", 'unknown key "chanels" in alerts. Did you mean "channels"?'),
        ("alerts: {channels: {a: {type: slak, url: https://x.example}}}", "webhook, slack, email. Did you mean"),
        ("alerts: {channels: {a: {url: https://x.example}}}", "alerts.channels.a needs a type: webhook, slack, email."),
        ("alerts: {channels: {a: {type: slack}}}", "alerts.channels.a needs url."),
        ("alerts: {channels: {a: {type: slack, url: nowhere}}}", "must be an address like https://"),
        ("alerts: {channels: {a: {type: email, to: [nobody]}}}", "must be mail addresses like ops@example.com"),
        ("alerts: {channels: {a: {type: email, to: [a@b.example]}}}", "alerts.smtp is missing"),
        ("alerts: {smtp: {host: h}}", "alerts.smtp needs from."),
        ("alerts: {rules: {}}", "alerts.rules must be a list"),
        ("alerts: {rules: [{when: spend, above: 1}]}", "alerts.rules[0] needs name."),
        ("alerts: {rules: [{name: a, when: spend}]}", "alerts.rules[0].above is missing: a spend needs an amount"),
        ("alerts: {rules: [{name: a, when: budget_forecast, above: 1}]}", "has no meaning for budget_forecast"),
        ("alerts: {rules: [{name: a, when: budget_used, above: [80]}]}", "must be a part of the budget like 0.8"),
        ("alerts: {rules: [{name: a, when: budget_used, above: x}]}", "must be a part of the budget like 0.8"),
        ("alerts: {rules: [{name: a, when: budget_used, notify: [ops]}]}", 'no channel is called "ops".'),
        (
            "alerts: {rules: [{name: a, when: budget_used}, {name: a, when: budget_used}]}",
            'alerts.rules[1]: another rule is called "a".',
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_fix(text: str, expected: str) -> None:
    examined = look(text)
    assert examined.config is None
    assert any(expected in line for line in said(examined)), said(examined)


def test_the_channels_can_be_tried_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["alerts", "test"], {}) == 2
    assert "alerts.channels in config.yaml is empty" in capsys.readouterr().err
    Path("config.yaml").write_text("alerts: {channels: {ops: {type: webhook, url: 'http://127.0.0.1:9/hidden'}}}")
    assert main(["alerts", "test", "opps"], {}) == 2
    assert 'Did you mean "ops"?' in capsys.readouterr().err
    assert main(["alerts", "test"], {}) == 1
    assert capsys.readouterr().out == "ops: not sent: it could not be reached (ConnectError)\n"
    assert main(["alerts", "test", "ops", "--json"], {}) == 1
    assert '"ops":"not sent' in capsys.readouterr().out
