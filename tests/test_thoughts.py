"""Signed reasoning comes back with its tool calls, also through a client that has never heard of it."""

from __future__ import annotations

from typing import Any

from proxy.config import Deployment, Provider
from proxy.upstream.thoughts import KEPT_SECONDS, Thoughts

CLAUDE = Deployment(provider=Provider(name="a", api="anthropic", api_base="http://127.0.0.1:9"), model="claude-x")
GEMINI = Deployment(provider=Provider(name="g", api="gemini", api_base="http://127.0.0.1:9"), model="gemini-x")
DETAILS = [{"type": "reasoning.text", "text": "so", "signature": "c2ln", "index": 0}]
CALL: dict[str, Any] = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
SIGNED = {**CALL, "id": "call_2", "extra_content": {"google": {"thought_signature": "c2ln"}}}


def chat(*calls: dict[str, Any], **fields: Any) -> dict[str, Any]:
    said = {"role": "assistant", "content": None, "tool_calls": list(calls), **fields}
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "ok"} for call in calls]
    return {"model": "m", "messages": [{"role": "user", "content": "hi"}, said, *results]}


def test_what_a_client_dropped_is_put_back_for_its_owner_alone() -> None:
    thoughts = Thoughts()
    thoughts.keep("k1", CLAUDE, DETAILS, [CALL])
    sent = chat(CALL)
    restored, notices = thoughts.restore("k1", CLAUDE, sent)
    assert restored["messages"][1]["reasoning_details"] == DETAILS
    assert notices == []
    assert "reasoning_details" not in sent["messages"][1]
    assert thoughts.restore("k2", CLAUDE, sent) == (sent, [])
    assert thoughts.restore("k1", CLAUDE, chat({**CALL, "id": "other"}))[0] == chat({**CALL, "id": "other"})


def test_what_a_client_kept_is_its_own() -> None:
    thoughts = Thoughts()
    thoughts.keep("k1", CLAUDE, DETAILS, [CALL])
    own = chat(CALL, reasoning_details=[{"type": "reasoning.text", "text": "mine"}])
    assert thoughts.restore("k1", CLAUDE, own) == (own, [])
    native = chat(CALL, thinking_blocks=[{"type": "thinking"}])
    assert thoughts.restore("k1", CLAUDE, native) == (native, [])


def test_a_signature_on_a_call_goes_back_to_that_call() -> None:
    thoughts = Thoughts()
    thoughts.keep("k1", GEMINI, [], [CALL, SIGNED])
    restored, _ = thoughts.restore("k1", GEMINI, chat(CALL, {**CALL, "id": "call_2"}))
    assert restored["messages"][1]["tool_calls"] == [CALL, SIGNED]
    assert "reasoning_details" not in restored["messages"][1]


def test_another_api_does_not_see_them_and_the_caller_is_told() -> None:
    thoughts = Thoughts()
    thoughts.keep("k1", CLAUDE, DETAILS, [CALL])
    restored, (notice,) = thoughts.restore("k1", GEMINI, chat(CALL))
    assert restored == chat(CALL)
    assert (notice.param, notice.lost) == ("messages[].reasoning_details", False)


def test_unsigned_thoughts_come_back_to_those_who_want_them() -> None:
    plain = [{"type": "reasoning.text", "text": "so", "format": "unsigned"}]
    wants = Provider(name="d", api_base="http://127.0.0.1:9", quirks={"thoughts": "reasoning_content"})
    for quirky, expected in ((wants, plain), (Provider(name="o", api_base="http://127.0.0.1:9"), None)):
        thoughts, deployment = Thoughts(), Deployment(provider=quirky, model="m")
        thoughts.keep("k1", deployment, plain, [CALL])
        restored, notices = thoughts.restore("k1", deployment, chat(CALL))
        assert restored["messages"][1].get("reasoning_details") == expected
        assert notices == []
    thoughts.keep("k1", Deployment(provider=wants, model="m"), plain, [CALL])
    assert thoughts.restore("k1", deployment, chat(CALL)) == (chat(CALL), []), "and to nobody else of that API"


def test_they_are_kept_for_an_hour_and_within_their_bytes() -> None:
    now = [0.0]
    thoughts = Thoughts(clock=lambda: now[0], max_bytes=1_000)
    for number in range(100):
        thoughts.keep("k1", CLAUDE, DETAILS, [{**CALL, "id": f"call_{number}"}])
    assert 0 < len(thoughts) < 20
    assert thoughts.restore("k1", CLAUDE, chat({**CALL, "id": "call_99"}))[0] != chat({**CALL, "id": "call_99"})
    assert thoughts.restore("k1", CLAUDE, chat({**CALL, "id": "call_0"}))[0] == chat({**CALL, "id": "call_0"})
    now[0] = KEPT_SECONDS
    assert thoughts.restore("k1", CLAUDE, chat({**CALL, "id": "call_99"}))[0] == chat({**CALL, "id": "call_99"})
    thoughts.keep("k1", CLAUDE, DETAILS, [CALL])
    assert len(thoughts) == 1
    thoughts.keep("k1", CLAUDE, [{"text": "x" * 2_000}], [{**CALL, "id": "too much"}])
    thoughts.keep("k1", CLAUDE, DETAILS, [])
    thoughts.keep("k1", CLAUDE, [], [CALL])
    assert len(thoughts) == 1
    thoughts.keep("k1", CLAUDE, DETAILS, [CALL])
    assert len(thoughts) == 1
