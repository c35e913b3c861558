"""One request explained: through the API and on a terminal, from its limits to the last digit of its cost."""

from __future__ import annotations

import http.client
import json
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import asyncpg
import pytest

from proxy.commands.request import told
from proxy.edge.requests import PARAMETERS
from proxy.metering.explanation import explain
from proxy.metering.history import AttemptDetail, Detail
from proxy.storage.embedded import find_running
from tests.gateway import Gateway, OracleProcess
from tests.oracle import marker

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
MASTER = "q7Zt2mVx9Lk4Wn8Rb3Hd6Jc5Pf1Ys0Ga"
RATES = {"input": 250_000, "cache_read": 25_000, "output": 2_000_000, "reasoning": 2_000_000, "request": 0}


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OracleProcess]:
    running = OracleProcess(tmp_path_factory.mktemp("oracle"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def gateway(oracle: OracleProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    made = Gateway(tmp_path_factory.mktemp("requests") / "home", oracle=oracle.url)
    made.config.write_text(f"{made.config.read_text()}auth: {{master_key: {MASTER}}}\n")
    yield made.start()
    made.stop()


@pytest.fixture(scope="module")
def limited(gateway: Gateway) -> str:
    return gateway.create_key("limited", "--budget", "5/1d", "--rpm", "5")


def ask(gateway: Gateway, key: str, name: str, model: str = "sim/chat", **fields: Any) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json", "x-request-id": name}
    body = {"model": model, "messages": HELLO, **fields}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def explained(gateway: Gateway, name: str, key: str = MASTER, *, priced: bool = False) -> dict[str, Any]:
    """As soon as it is recorded and complete; `priced`: and its price lines are there too."""
    deadline = time.monotonic() + 20
    while True:
        status, body = gateway.get(f"/api/requests/{name}", key)
        said: dict[str, Any] = json.loads(body)
        if status == 200 and said["recorded"] and said["complete"] and (said["agrees"] is not None or not priced):
            return said
        assert time.monotonic() < deadline, (said, gateway.tail())
        time.sleep(0.1)


async def owner(gateway: Gateway) -> asyncpg.Connection[asyncpg.Record]:
    dsn = find_running(gateway.home)
    assert dsn is not None
    return await asyncpg.connect(dsn, timeout=10)


def test_limits_plan_attempts_and_notices_are_said(gateway: Gateway, limited: str) -> None:
    for number in range(3):
        assert ask(gateway, limited, f"flaky-{number}", "sim/flaky") == 200
    assert ask(gateway, limited, "claude-1", "claude", frequency_penalty=1) == 200
    said = [explained(gateway, f"flaky-{number}", limited) for number in range(3)]
    [retried] = [one for one in said if len(one["attempts"]) == 2]
    failed, served = retried["attempts"]
    assert (failed["status"], failed["outcome"], failed["bill"]["source"]) == (503, "provider_overloaded", "none")
    assert "503" in failed["error"]
    assert (served["status"], served["outcome"], served["bill"]["source"]) == (200, "ok", "provider")
    assert sorted(one["rate"]["remaining"] for one in said) == [2, 3, 4]
    assert said[0]["plan"] == [{"deployment": "sim/flaky", "model": "sim/flaky"}]
    assert (said[0]["budgets"][0]["scope"], said[0]["budgets"][0]["limit_nano_usd"]) == ("key", 5_000_000_000)
    changed = explained(gateway, "claude-1", limited)
    assert "frequency_penalty" in {notice["param"] for notice in changed["notices"]}
    assert changed["attempts"][0]["held_nano_usd"] > changed["cost_nano_usd"] > 0


def test_a_request_that_was_refused_is_there_with_its_reason(gateway: Gateway) -> None:
    key = gateway.create_key("one", "--rpm", "1")
    assert [ask(gateway, key, f"one-{number}") for number in range(2)] == [200, 429]
    said = explained(gateway, "one-1", key)
    assert (said["status"], said["attempts"], said["cost_nano_usd"], said["agrees"]) == (429, [], 0, None)
    assert said["rate"] == {"limit": 1, "refused": True}
    assert said["error"]["code"] == "rate_limit_exceeded"
    assert ask(gateway, key, "one-unknown", "nothing") == 404
    assert explained(gateway, "one-unknown")["rate"] == {"limit": 1}
    assert ask(gateway, "sk-strata-nobody", "nobody") == 401
    assert gateway.get("/api/requests/nobody", MASTER)[0] == 404


def test_a_key_sees_its_own_requests_and_no_sign_of_others(gateway: Gateway, limited: str) -> None:
    ask(gateway, gateway.key, "private")
    explained(gateway, "private")
    mine, theirs = gateway.get("/api/requests/private", gateway.key), gateway.get("/api/requests/private", limited)
    nothing = gateway.get("/api/requests/never-was", limited)
    assert (mine[0], theirs[0], nothing[0]) == (200, 404, 404)
    assert json.loads(theirs[1])["error"]["message"] == json.loads(nothing[1])["error"]["message"]
    assert gateway.get("/api/requests/private")[0] == 401
    assert gateway.get(f"/api/requests/{'a' * 301}", MASTER)[0] == 404
    listed = json.loads(gateway.get("/api/requests", limited)[1])["data"]
    assert "private" not in {row["request_id"] for row in listed}
    assert "private" in {row["request_id"] for row in json.loads(gateway.get("/api/requests", MASTER)[1])["data"]}


def test_a_list_is_read_page_by_page(gateway: Gateway) -> None:
    key = gateway.create_key("pages")
    for number in range(7):
        ask(gateway, key, f"page-{number}", "sim/echo" if number % 2 else "sim/chat")
    explained(gateway, "page-6")
    seen: list[str] = []
    query = "limit=3"
    while True:
        page = json.loads(gateway.get(f"/api/requests?{query}", key)[1])
        seen += [row["request_id"] for row in page["data"]]
        if not page["has_more"]:
            break
        query = f"limit=3&cursor={quote(page['next_cursor'])}"
    assert sorted(seen) == [f"page-{number}" for number in range(7)]
    echo = json.loads(gateway.get("/api/requests?model=sim/echo&status=200&key=pages", MASTER)[1])
    assert {row["request_id"] for row in echo["data"]} == {"page-1", "page-3", "page-5"}
    now = quote(datetime.now(UTC).isoformat())
    assert json.loads(gateway.get(f"/api/requests?since={now}", key)[1])["data"] == []
    assert len(json.loads(gateway.get(f"/api/requests?until={now}&since=2024-01-01", key)[1])["data"]) == 7


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=999", "limit=x", "page=2", "cursor=bad", "cursor=AAAA", "since=monday", "status=1000",
     "key=", "model=a&model=b", f"model={'a' * 301}", "cursor=f_________8AAAAAAAAAAAAAAAAAAAAA"],
)  # fmt: skip
def test_a_list_that_is_asked_for_wrongly_says_what_is_wrong(gateway: Gateway, query: str) -> None:
    status, body = gateway.get(f"/api/requests?{query}", MASTER)
    error = json.loads(body)["error"]
    assert (status, error["code"]) == (400, "invalid_value")
    assert error["param"] in query
    assert len(PARAMETERS) == 9


async def test_the_command_shows_each_product_of_the_bill_and_finds_a_wrong_sum(gateway: Gateway) -> None:
    prompt: list[Any] = [{"role": "user", "content": f"nonce=cmd {marker(cache_read=40)} and some words"}]
    assert ask(gateway, gateway.key, "cmd", "gpt", messages=prompt) == 200
    said = explained(gateway, "cmd", priced=True)
    connection = await owner(gateway)
    [bill] = [one["bill"] for one in said["attempts"]]
    assert (bill["agrees"], said["agrees"]) == (True, True)
    assert sum(line["pico_usd"] for line in bill["lines"]) == bill["cost_nano_usd"] * 1000
    assert {line["bucket"] for line in bill["lines"]} == {"input", "cache_read", "output"}
    shown = gateway.strata("request", "show", "cmd")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "cache_read" in shown.stdout and "x $0.025/M" in shown.stdout
    assert "every row agrees with its price lines" in shown.stdout
    as_json = json.loads(gateway.strata("request", "show", said["id"], "--json").stdout)
    assert as_json == said
    await connection.execute("SET session_replication_role = replica")
    await connection.execute("UPDATE strata.usage SET cost_nano_usd = cost_nano_usd + 1 WHERE public_id = 'cmd'")
    await connection.close()
    shown = gateway.strata("request", "show", "cmd")
    assert "BUT THE LEDGER SAYS" in shown.stdout
    assert "THE NUMBERS DO NOT AGREE" in shown.stdout
    assert explained(gateway, "cmd")["agrees"] is False


def test_the_command_tells_of_refusals_retries_and_gaps(gateway: Gateway, limited: str) -> None:
    key = gateway.create_key("told", "--rpm", "2", "--budget", "1")
    assert ask(gateway, key, "told-1", "claude", stream=True, frequency_penalty=1) == 200
    assert ask(gateway, key, "told-2", "sim/limited") == 429
    assert ask(gateway, key, "told-3") == 429
    for number in (1, 2, 3):
        explained(gateway, f"told-{number}")
    first, second, third = (gateway.strata("request", "show", f"told-{number}").stdout for number in (1, 2, 3))
    assert "2 requests a minute, 1 left after this one" in first
    assert "budget of the key: $1.00 in all, $" in first
    assert "first token after" in first and "frequency_penalty: " in first
    assert "provider_rate_limited" in second and "refused before any work, so not billed" in second
    assert "2 requests a minute, and they were used up" in third
    assert 'The key "told" is limited to 2 requests a minute.' in third
    gone = gateway.strata("request", "show", "never-was")
    assert (gone.returncode, gone.stdout) == (1, "")
    assert gone.stderr.startswith('No request is known as "never-was".\nFix: ')


def test_what_was_admitted_is_settled_or_open_and_all_of_it_is_counted(gateway: Gateway) -> None:
    ask(gateway, gateway.key, "counted")
    explained(gateway, "counted")
    time.sleep(1.1)
    dispatched, settled = gateway.gauge("strata_ledger_dispatched_total"), gateway.gauge("strata_ledger_settled_total")
    assert dispatched == settled + gateway.gauge("strata_ledger_open_attempts") > 0
    assert settled == gateway.gauge("strata_ledger_shipped_total")
    assert gateway.gauge("strata_history_written_total") > 0
    assert gateway.gauge("strata_history_dropped_total") == gateway.gauge("strata_ledger_orphans_total") == 0


def ledger(**fields: Any) -> dict[str, Any]:
    tokens = dict.fromkeys(
        ["input_tokens", "cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "audio_input_tokens",
         "output_tokens", "reasoning_tokens", "audio_output_tokens", "image_input_tokens", "image_output_tokens",
         "searches"], 0,
    )  # fmt: skip
    return {
        "request_id": str(uuid.UUID(int=1)), "attempt": 1, "started_at": datetime.now(UTC), "public_id": "r",
        "key_id": None, "key_name": "", "user_id": None, "team_id": None, "endpoint": "chat", "model": "m",
        "deployment": "p/m", "provider": "p", "stream": False, "status": 200, "outcome": "ok", "source": "provider",
        **tokens, "input_tokens": 10, "output_tokens": 3, "service_tier": "", "cost_nano_usd": 8_500,
        "price_state": "priced", "price_source": "list", "usage_raw": "", "usage_suspect": False, "duration_ms": 5,
        "first_token_ms": None, "lines": json.dumps(RATES), **fields,
    }  # fmt: skip


def history(*attempts: AttemptDetail, **fields: Any) -> dict[str, Any]:
    detail = json.dumps({"attempts": [_plain(one) for one in attempts]})
    row = {name: value for name, value in ledger().items() if name != "request_id"}
    recorded = {"id": str(uuid.UUID(int=1)), "notices": "[]", "detail": detail, "cost_nano_usd": 8_500}
    return {**row, **recorded, **fields}


def _plain(one: AttemptDetail) -> dict[str, Any]:
    return {name: getattr(one, name) for name in AttemptDetail.__struct_fields__}


SENT = AttemptDetail(1, "p/m", "p", 200, "ok", dispatched=True, ended_ms=5)


@pytest.mark.parametrize(
    ("rows", "agrees", "cost"),
    [
        pytest.param([ledger()], True, 8_500, id="right"),
        pytest.param([ledger(cost_nano_usd=8_501)], False, 8_501, id="wrong"),
        pytest.param([ledger(lines=None)], None, 8_500, id="line not stored"),
        pytest.param([ledger(), ledger(attempt=2, cost_nano_usd=1)], False, 8_501, id="one of two wrong"),
        pytest.param([ledger(lines=None), ledger(attempt=2, cost_nano_usd=1)], False, 8_501, id="wrong wins"),
        pytest.param([ledger(source="none", cost_nano_usd=0)], True, 0, id="refused costs nothing"),
        pytest.param([ledger(source="orphan", cost_nano_usd=99)], None, 99, id="an upper bound is no product"),
        pytest.param([ledger(), ledger(attempt=-1, source="adjustment", cost_nano_usd=-500)], True, 8_000, id="less"),
        pytest.param([ledger(lines='{"input": 250000, "request": 1000}', cost_nano_usd=2_501)], True, 2_501, id="some"),
        pytest.param([ledger(lines='{"input": 150, "request": 0}', cost_nano_usd=2)], True, 2, id="half up"),
        pytest.param([ledger(input_tokens=10**15, cost_nano_usd=10**15)], True, 10**15, id="bounded"),
    ],
)
def test_the_ledger_alone_explains_the_cost(rows: list[dict[str, Any]], agrees: bool | None, cost: int) -> None:
    said = explain(None, rows)
    assert (said.recorded, said.agrees, said.cost_nano_usd) == (False, agrees, cost)


def test_an_attempt_without_its_row_is_on_its_way_or_was_never_sent() -> None:
    said = explain(history(SENT), [])
    assert (said.complete, said.agrees, said.attempts[0].bill) == (False, None, None)
    said = explain(history(AttemptDetail(1, "p/m", "p"), cost_nano_usd=None), [])
    assert (said.complete, said.agrees, said.attempts[0].duration_ms) == (True, None, None)


def test_what_was_said_at_the_time_must_be_what_the_ledger_says_now() -> None:
    assert explain(history(SENT), [ledger()]).agrees
    assert explain(history(SENT, cost_nano_usd=1), [ledger()]).agrees is False
    unknown = explain(history(SENT, cost_nano_usd=None), [ledger(price_state="unknown", lines=None)])
    assert (unknown.agrees, unknown.unpriced) == (None, True)
    assert Detail().attempts == ()


def test_what_was_priced_later_is_no_lower_bound_any_more() -> None:
    rows = [ledger(attempt=number, price_state="unknown", lines=None, cost_nano_usd=0) for number in (1, 2)]
    later = [ledger(attempt=number, source="adjustment", cost_nano_usd=8_500) for number in (-2, -102, -1)]
    assert [explain(None, [*rows, *later[:count]]).unpriced for count in range(4)] == [True, True, True, False]


@pytest.mark.parametrize(
    ("row", "rows", "lines"),
    [
        (None, [ledger(usage_suspect=True)], ["not in the history; what follows", "its numbers do not add up"]),
        (None, [ledger(lines="{}", price_state="unknown", cost_nano_usd=0)], ["10 has no price", "at least: a part"]),
        (None, [ledger(lines=None, service_tier="flex")], ["price: list (priced, flex)", "line not stored"]),
        (None, [ledger(lines='{"request": 5000000}', cost_nano_usd=5_000)], ["1 x $5.00/M", "$0.000005   as in"]),
        (history(SENT), [], ["its ledger row is on", "so far: a row is on its way", "none: the key has"]),
        (history(AttemptDetail(1, "p/m\x1b[2J", "p", error="a\nb")), [], ["nothing was sent", "p/m�[2J", "a�b"]),
        (history(duration_ms=1_500, detail='{"client_left":true}'), [], ["1.50 s, 0 ms", "the client left"]),
    ],
)  # fmt: skip
def test_what_is_told_is_plain_and_leaves_nothing_out(
    row: dict[str, Any] | None, rows: list[dict[str, Any]], lines: list[str]
) -> None:
    text = "\n".join(told(explain(row, rows)))
    assert [line for line in lines if line not in text] == []


@pytest.mark.parametrize(
    ("budget", "line"),
    [
        ({"scope": "team", "calendar": "month"}, "budget of the team: $1.00 a month, nothing set aside"),
        ({"scope": "global"}, "budget of everybody: $1.00 in all, nothing set aside"),
        ({"scope": "provider", "subject": "gpu", "window_seconds": 3600}, "the provider gpu: $1.00 every 3,600 s"),
    ],
)
def test_each_kind_of_budget_has_its_words(budget: dict[str, Any], line: str) -> None:
    whole = {"id": "b", "subject": "", "limit_nano_usd": 10**9, **budget}
    plan = [{"deployment": "p/m"}, {"deployment": "q/n", "model": "other", "fallback": True, "resting": True}]
    detail = json.dumps({"budgets": [whole], "plan": plan, "max_attempts": 2})
    text = "\n".join(told(explain(history(detail=detail, cost_nano_usd=None), [])))
    assert line in text
    assert "2  q/n (fallback to other, resting)" in text
