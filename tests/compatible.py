"""
`python -m tests.compatible`: every recorded chat answer of every provider that speaks OpenAI's API, or nearly, both
ways through the gateway. Each must be billed what the provider's own total says, alike on both ways, and be readable
with the types of OpenAI's SDK.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from pydantic import ValidationError

from proxy.config.presets import PRESETS
from proxy.errors import GatewayError
from proxy.providers import Json, load
from tests.answers import Outcome, check_for_clients, streamed, total_of, whole

RECORDINGS = Path(__file__).parents[2] / "shared" / "fidelity" / "recorded.jsonl.gz"
NOT_CHAT = {"other:unknown"}
"""Recorded at this path, but in Anthropic's dialect."""
PRESET_OF = {"azure": "azure", "local": "vllm"}
"""The preset a recorded provider goes by, where the names differ; one without any is a custom name."""


def rows(path: Path = RECORDINGS) -> Iterator[Json]:
    with gzip.open(path) as lines:
        for line in lines:
            row: Json = msgspec.json.decode(line)
            fine = row["response"]["status"] < 300 and not row["problems"] and row["provider"] not in NOT_CHAT
            if row["api"] == "chat" and fine and (row["response"].get("json") or row["response"].get("sse")):
                yield row


def provider_of(row: Json) -> str:
    """Databricks is recorded as Azure, for that is where its machines are."""
    name = "databricks" if "databricks" in row["url"] else row["provider"]
    return str(PRESET_OF.get(name, name))


def native_usage(row: Json) -> Json | None:
    """The provider's last word on usage."""
    if row["response"].get("json"):
        usage: Json | None = row["response"]["json"].get("usage")
        return usage
    usage = None
    for line in row["response"]["sse"].splitlines():
        if line.startswith("data:") and line[5:].strip() not in ("", "[DONE]"):
            chunk = msgspec.json.decode(line[5:])
            usage = chunk.get("usage") or (chunk.get("x_groq") or {}).get("usage") or usage
    return usage


def told_error(row: Json) -> bool:
    """An error in place of an answer, or in the middle of one: it must fail, and alike on both ways."""
    if row["response"].get("json"):
        return bool(row["response"]["json"].get("error"))
    return any(line.startswith("data:") and '"error":' in line for line in row["response"]["sse"].splitlines())


def check(row: Json) -> str:
    """What is wrong with it; "" if nothing is. `error`: it is a failed answer, and fails both ways."""
    name = provider_of(row)
    preset = PRESETS.get(name)
    translator = load(preset.api if preset else "openai")
    body = row["response"].get("json")
    data = msgspec.json.encode(body) if body else row["response"]["sse"].encode()
    ways: dict[bool, Outcome] = {}
    failures: dict[bool, str] = {}
    for passes in (True, False) if translator.same_dialect else (False,):
        try:
            ways[passes] = (whole if body else streamed)(translator, data, passes=passes)
        except GatewayError as error:
            failures[passes] = error.error_type
    if failures:
        return "error" if len(set(failures.values())) == 1 and not ways and told_error(row) else f"fails: {failures}"
    return _alike(ways) or _billed(ways[False], native_usage(row)) or _readable(ways, preset is None or _passes(preset))


def _passes(preset: Any) -> bool:
    return load(preset.api).same_dialect and not preset.quirks.get("normalise")


def _alike(ways: dict[bool, Outcome]) -> str:
    bills = {(way.usage, way.suspect, way.tier) for way in ways.values()}
    return "" if len(bills) == 1 else f"two bills: {bills}"


def _billed(way: Outcome, native: Json | None) -> str:
    if not native:
        return "" if way.usage is None else "a bill out of nothing"
    if way.usage is None:
        return "no bill"
    counted = way.usage.prompt + way.usage.completion
    return "" if counted == total_of(native) else f"{counted} billed, {total_of(native)} said"


def _readable(ways: dict[bool, Outcome], passes: bool) -> str:
    """As the provider is configured; and translated in any case."""
    for way in {False, passes and True in ways}:
        try:
            check_for_clients(ways[way].shown)
        except (AssertionError, ValidationError) as error:
            return f"{'passed through' if way else 'translated'}: {error}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.compatible", description=__doc__)
    parser.add_argument("--data", type=Path, default=RECORDINGS)
    parser.add_argument("--show", action="store_true", help="print what is wrong with each that does not pass")
    options = parser.parse_args()
    seen, passed, errors = Counter[str](), Counter[str](), Counter[str]()
    for row in rows(options.data):
        name, wrong = provider_of(row), check(row)
        seen[name] += 1
        passed[name] += not wrong
        errors[name] += wrong == "error"
        if wrong not in ("", "error") and options.show:
            print(row["id"], name, wrong[:600])
    for name in sorted(seen):
        failed = f", {errors[name]} are errors and fail as such" if errors[name] else ""
        print(f"{name:28} {passed[name]:4} of {seen[name]:4} pass{failed}")
    good = sum(passed.values()) + sum(errors.values())
    print(f"{good} of {sum(seen.values())}")
    return int(good < sum(seen.values()))


if __name__ == "__main__":
    sys.exit(main())
