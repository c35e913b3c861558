"""Word before the money is gone: said once, however many replicas look, and brought to where somebody reads it."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest

from proxy.config import AlertRule, Alerts, Channel, Email, Secret, Slack, Smtp, Webhook
from proxy.metering.alerts import rules
from proxy.metering.alerts.channels import Message, NotSent, send
from proxy.metering.alerts.rules import Spent, Sum
from proxy.metering.alerts.watch import Watch, client
from proxy.storage.alerts import MAX_TRIES, claim_deliveries, last_alerts
from proxy.storage.budgets import take_lease
from proxy.storage.ledger import ship
from proxy.storage.postgres import Database
from tests.test_storage_sql import a_budget, ledger_row

DOLLAR = 10**9
USED = AlertRule(name="budgets", when="budget_used", above=(500, 800, 1000))
FORECAST = AlertRule(name="forecast", when="budget_forecast")
MONDAY = datetime(2026, 11, 23, tzinfo=UTC)
MESSAGE = Message("id-1", "budgets", "Less than <half> & so", "b1", "p", 500, "2026-11-23T00:00:00+00:00", {"left": 1})


def spent(nano_usd: int, **fields: Any) -> Spent:
    given = {"scope": "key", "name": "ci", "limit_nano_usd": 10 * DOLLAR, "starts_at": MONDAY}
    return Spent(
        **{"budget_id": "b1", "spent_nano_usd": nano_usd, "ends_at": MONDAY + timedelta(days=7), **given, **fields}
    )


@pytest.mark.parametrize(
    ("nano_usd", "said", "silent"),
    [
        (5 * DOLLAR - 1, [], []),
        (5 * DOLLAR, [500], []),
        (8 * DOLLAR + 1, [800], [500]),
        (12 * DOLLAR, [1000], [500, 800]),
    ],
)
def test_only_the_highest_threshold_passed_is_said(nano_usd: int, said: list[int], silent: list[int]) -> None:
    due = list(rules.budget_used(USED, [spent(nano_usd)]))
    assert [alert.threshold for alert in due if not alert.silent] == said
    assert [alert.threshold for alert in due if alert.silent] == silent


def test_a_title_says_who_how_much_and_until_when() -> None:
    (alert,) = rules.budget_used(USED, [spent(5 * DOLLAR + 20_000_000)])
    assert alert.title == (
        'The budget of the key "ci" has passed 50 %: $5.02 of $10.00 spent, '
        "and it must last until Monday, 30 November 00:00 UTC."
    )
    (*_, alert) = rules.budget_used(USED, [spent(10 * DOLLAR, scope="global", name="", ends_at=None)])
    assert alert.title == "The budget of all has passed 100 %: $10.00 of $10.00 spent."


@pytest.mark.parametrize(
    ("nano_usd", "after", "expected"),
    [
        pytest.param(5 * DOLLAR, timedelta(days=2), MONDAY + timedelta(days=4), id="twice as fast"),
        pytest.param(2 * DOLLAR, timedelta(days=2), None, id="lasts"),
        pytest.param(5 * DOLLAR, timedelta(minutes=5), None, id="too early to say"),
        pytest.param(DOLLAR - 1, timedelta(hours=9), None, id="too little to say"),
        pytest.param(10 * DOLLAR, timedelta(days=2), None, id="gone already"),
        pytest.param(0, timedelta(days=2), None, id="nothing spent"),
    ],
)
def test_a_forecast_goes_on_as_the_period_has_begun(nano_usd: int, after: timedelta, expected: datetime | None) -> None:
    assert rules.will_be_spent(spent(nano_usd), MONDAY + after) == expected


def test_a_forecast_names_the_day_and_a_budget_without_end_has_none() -> None:
    (alert,) = rules.budget_forecast(FORECAST, [spent(5 * DOLLAR)], MONDAY + timedelta(days=1.5))
    assert 'The budget of the key "ci" will be spent on Thursday, 26 November 00:00 UTC: ' in alert.title
    assert not list(rules.budget_forecast(FORECAST, [spent(5 * DOLLAR, ends_at=None)], MONDAY + timedelta(days=2)))


def test_spend_and_unpriced_requests_are_said_by_the_day() -> None:
    everybody = AlertRule(name="daily", when="spend", above=(DOLLAR, 5 * DOLLAR))
    (first, second) = rules.spend(everybody, [Sum("", "", 6 * DOLLAR)], "2026-11-23")
    assert (first.silent, second.silent, second.threshold) == (True, False, 5 * DOLLAR)
    assert second.title == "Everybody together has spent $6.00 today (2026-11-23, UTC), more than $5.00."
    team = AlertRule(name="teams", when="spend", above=(DOLLAR,), per="team")
    (alert,) = rules.spend(team, [Sum("t1", "research", 2 * DOLLAR), Sum("t2", "ops", 1)], "2026-11-23")
    assert alert.title.startswith("The team research has spent $2.00")
    unpriced = AlertRule(name="unpriced", when="unpriced_requests", above=(0,))
    (alert,) = rules.unpriced_requests(unpriced, [Sum("gpu/m", "gpu/m", 1)], "2026-11-23")
    assert alert.title.startswith("gpu/m has no price: one request today")


@pytest.mark.parametrize(
    ("nano_usd", "shown"), [(0, "$0.00"), (150_000, "$0.0001"), (9_999_999, "$0.0099"), (10**13 + 10**7, "$10000.01")]
)
def test_dollars_hide_no_small_amount(nano_usd: int, shown: str) -> None:
    assert rules.dollars(nano_usd) == shown


class Receiver:
    """Somebody else's web server: keeps what it gets, and answers what it is told to."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.status = 200
        self.url = ""
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/hook"

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head.splitlines()[1:])
        }
        body = await reader.readexactly(int(headers["content-length"]))
        self.got.append((headers, body))
        moved = "location: http://127.0.0.1:9/\r\n" if self.status == 302 else ""
        writer.write(f"HTTP/1.1 {self.status} Is\r\n{moved}content-length: 0\r\nconnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    running = Receiver()
    await running.start()
    yield running
    await running.stop()


async def deliver(channel: Channel, smtp: Smtp | None = None) -> None:
    async with client() as http:
        await send(channel, smtp, MESSAGE, http, clock=lambda: 1_790_000_000.5)


async def test_a_webhook_is_signed_over_its_time_and_body(receiver: Receiver) -> None:
    await deliver(Webhook(name="w", url=Secret(receiver.url), secret=Secret("s3cret")))
    ((headers, body),) = receiver.got
    said = dict(part.split("=") for part in headers["x-strata-signature"].split(","))
    assert said["t"] == "1790000000"
    assert said["v1"] == hmac.new(b"s3cret", b"1790000000." + body, "sha256").hexdigest()
    assert json.loads(body)["title"] == MESSAGE.title
    assert json.loads(body)["id"] == "id-1"


async def test_slack_gets_text_without_markup_and_no_signature(receiver: Receiver) -> None:
    await deliver(Slack(name="s", url=Secret(receiver.url)))
    ((headers, body),) = receiver.got
    assert json.loads(body) == {"text": "Less than &lt;half&gt; &amp; so"}
    assert "x-strata-signature" not in headers


@pytest.mark.parametrize("status", [302, 404, 500])
async def test_an_answer_that_is_no_success_is_not_sent_and_names_no_address(receiver: Receiver, status: int) -> None:
    receiver.status = status
    with pytest.raises(NotSent) as failed:
        await deliver(Webhook(name="w", url=Secret(receiver.url + "?token=hidden")))
    assert str(failed.value) == f"it answered with HTTP {status}"
    assert len(receiver.got) == 1


async def test_a_channel_that_is_away_is_not_sent() -> None:
    with pytest.raises(NotSent, match="could not be reached") as failed:
        await deliver(Webhook(name="w", url=Secret("http://127.0.0.1:9/hidden")))
    assert "hidden" not in str(failed.value)


async def test_a_channel_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.metering.alerts.channels.SEND_SECONDS", 0.05)

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        left.set()

    left = asyncio.Event()
    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    with pytest.raises(NotSent, match=r"no answer within 0\.05 s"):
        await deliver(Webhook(name="w", url=Secret(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook")))
    server.close()
    await left.wait()


async def mail_server(got: list[str], *, takes: bool = True) -> tuple[asyncio.Server, int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 here\r\n")
        while line := await reader.readline():
            word = line.split()[0].upper() if line.split() else b""
            if word == b"EHLO":
                writer.write(b"250-here\r\n250 AUTH PLAIN\r\n")
            elif word == b"AUTH":
                got.append(line.decode().strip())
                writer.write(b"235 welcome\r\n")
            elif word == b"DATA":
                writer.write(b"354 go on\r\n")
                got.append((await reader.readuntil(b"\r\n.\r\n")).decode())
                writer.write(b"250 taken\r\n" if takes else b"554 no\r\n")
            elif word == b"QUIT":
                writer.write(b"221 bye\r\n")
                break
            else:
                writer.write(b"250 fine\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


async def test_mail_goes_to_everybody_named_with_the_title_as_its_subject() -> None:
    got: list[str] = []
    server, port = await mail_server(got)
    smtp = Smtp(
        host="127.0.0.1", port=port, sender="strata@example.com", user="u", password=Secret("p"), security="none"
    )
    await deliver(Email(name="m", to=("a@example.com", "b@example.com")), smtp)
    server.close()
    assert got[0].startswith("AUTH PLAIN ")
    assert "Subject: [Strata] Less than <half> & so" in got[1]
    assert "To: a@example.com, b@example.com" in got[1]
    assert "left: 1" in got[1]


async def test_mail_that_is_refused_and_mail_without_a_server_are_not_sent() -> None:
    server, port = await mail_server([], takes=False)
    smtp = Smtp(host="127.0.0.1", port=port, sender="strata@example.com", security="none")
    with pytest.raises(NotSent, match="did not take it"):
        await deliver(Email(name="m", to=("a@example.com",)), smtp)
    server.close()
    with pytest.raises(NotSent, match=r"alerts\.smtp"):
        await deliver(Email(name="m", to=("a@example.com",)))
    for security in ("starttls", "tls"):
        with pytest.raises(NotSent, match="did not take it"):
            wrong = Smtp(host="127.0.0.1", port=9, sender="strata@example.com", security=security)
            await deliver(Email(name="m", to=("a@example.com",)), wrong)


async def test_mail_is_not_sent_in_the_open_by_a_server_that_should_encrypt() -> None:
    got: list[str] = []
    server, port = await mail_server(got)
    smtp = Smtp(host="127.0.0.1", port=port, sender="strata@example.com", user="u", password=Secret("p"))
    assert smtp.security == "starttls"
    with pytest.raises(NotSent, match=r"did not take it \(SMTPNotSupportedError\)"):
        await deliver(Email(name="m", to=("a@example.com",)), smtp)
    server.close()
    assert got == []


def watch(db: Database, receiver: Receiver, told: list[tuple[str, bool]], **fields: Any) -> Watch:
    given: dict[str, Any] = {
        "channels": (Webhook(name="hook", url=Secret(receiver.url)), Slack(name="chat", url=Secret(receiver.url))),
        "rules": (USED, FORECAST, AlertRule(name="daily", when="spend", above=(4000,), notify=("chat",)),
                  AlertRule(name="unpriced", when="unpriced_requests", above=(0,), notify=("chat",))),
    }  # fmt: skip
    return Watch(Alerts(**{**given, **fields}), db, sent=lambda name, ok: told.append((name, ok)))


async def spend_half(db: Database) -> None:
    """A budget of 10,000 of which 5,000 are spent, and one request without a price."""
    budget = a_budget(10_000)
    lease = await take_lease(db, budget, str(ledger_row().worker_id.hex()), 10_000, 1)
    now_ms = int(time.time() * 1000)
    charged = {"budget_ids": (budget.id,), "budget_starts_ms": (lease.starts_at_ms,), "started_at_ms": now_ms}
    await ship(db, [ledger_row(**charged) for _ in range(5)])
    await ship(db, [ledger_row(price_state="unknown", cost_nano_usd=0, deployment="gpu/m", started_at_ms=now_ms)])


async def test_two_replicas_say_each_alert_once_and_to_those_it_is_for(db: Database, receiver: Receiver) -> None:
    await spend_half(db)
    told: list[tuple[str, bool]] = []
    first, second = watch(db, receiver, told), watch(db, receiver, told)
    assert sum(await asyncio.gather(first.look(), second.look())) == 3
    assert (await first.look(), await second.look()) == (0, 0)
    async with client() as http:
        counts = await asyncio.gather(first.deliver(http), second.deliver(http))
    assert sum(counts) == 4
    titles = sorted(json.loads(body).get("title") or json.loads(body)["text"] for _, body in receiver.got)
    assert [title.partition(" has ")[0] for title in titles][:1] == ["Everybody together"]
    assert sum("has passed 50 %" in title for title in titles) == 2
    assert sum("gpu/m has no price" in title for title in titles) == 1
    assert sorted(told) == [("chat", True)] * 3 + [("hook", True)]
    said = await last_alerts(db)
    assert len(said) == 3
    assert all(delivery["sent_at"] for row in said for delivery in json.loads(row["deliveries"]))


async def test_what_could_not_be_sent_is_tried_again_later_and_not_for_ever(db: Database, receiver: Receiver) -> None:
    await spend_half(db)
    receiver.status = 503
    told: list[tuple[str, bool]] = []
    one = watch(db, receiver, told, rules=(USED,), channels=(Webhook(name="hook", url=Secret(receiver.url)),))
    await one.look()
    async with client() as http:
        for _ in range(MAX_TRIES + 2):
            await one.deliver(http)
            await db.execute("UPDATE strata.alert_deliveries SET next_at = now() WHERE sent_at IS NULL")
    assert told == [("hook", False)] * MAX_TRIES
    (row,) = await last_alerts(db)
    assert json.loads(row["deliveries"])[0]["error"] == "it answered with HTTP 503"


async def test_a_watch_of_unpriced_requests_alone_needs_no_budget(db: Database, receiver: Receiver) -> None:
    await spend_half(db)
    unpriced = AlertRule(name="unpriced", when="unpriced_requests", above=(0,), notify=("chat",))
    assert await watch(db, receiver, [], rules=(unpriced,)).look() == 1


async def test_a_claim_that_nobody_finished_is_taken_over(db: Database, receiver: Receiver) -> None:
    await spend_half(db)
    one = watch(db, receiver, [], rules=(USED,))
    await one.look()
    assert len(await claim_deliveries(db, ["hook"])) == 1
    assert await claim_deliveries(db, ["hook"]) == []
    await db.execute("UPDATE strata.alert_deliveries SET next_at = now() - interval '1 second'")
    assert len(await claim_deliveries(db, ["hook"])) == 1
    assert await claim_deliveries(db, ["renamed since"]) == []


async def test_the_watch_goes_on_while_postgres_is_away_and_ends_when_told(db: Database, receiver: Receiver) -> None:
    await spend_half(db)
    told: list[tuple[str, bool]] = []
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 1:
            await db.close()
        elif len(pauses) == 3:
            raise asyncio.CancelledError

    one = watch(db, receiver, told, rules=(USED,))
    one._sleep = sleep
    with pytest.raises(asyncio.CancelledError):
        await one.run()
    assert told == [("hook", True), ("chat", True)] or told == [("chat", True), ("hook", True)]
    await watch(db, receiver, told, rules=()).run()
    await db.open()


async def test_what_is_remembered_is_bounded(db: Database, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    await spend_half(db)
    monkeypatch.setattr("proxy.metering.alerts.watch.MAX_REMEMBERED", 1)
    one = watch(db, receiver, [])
    assert await one.look() == 3
    await one.look()
    assert len(one._entered) <= 3


def test_the_client_follows_nothing_and_reads_no_environment() -> None:
    made = client()
    assert isinstance(made, httpx2.AsyncClient)
    assert (made.follow_redirects, made.trust_env) == (False, False)
