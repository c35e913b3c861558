"""What the file says of traces, and what is said of mistakes in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.config import Secret, Traces
from proxy.config import traces as reading
from proxy.hiding import Hiding, secrets_of
from tests.configs import good, look, said


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether OpenTelemetry is there; what is said of the rest does not depend on it."""
    answer = [True]
    monkeypatch.setattr(reading, "_installed", lambda: answer[0])
    return answer


def traces(text: str, **environ: str) -> Traces:
    return good(f"telemetry: {{traces: {{{text}}}}}", environ).traces


def complaint(text: str) -> str:
    examined = look(f"telemetry: {{traces: {{{text}}}}}")
    [problem] = said(examined)
    return problem.partition(" ")[2]


def test_there_are_none_unless_there_is_an_endpoint() -> None:
    assert good("").traces == Traces()
    assert traces('endpoint: "${OTEL_EXPORTER_OTLP_ENDPOINT:-}"') == Traces()
    set_outside = traces('endpoint: "${OTEL_EXPORTER_OTLP_ENDPOINT:-}"', OTEL_EXPORTER_OTLP_ENDPOINT="http://c:4318/")
    assert set_outside.endpoint == "http://c:4318/v1/traces"


def test_everything_can_be_said() -> None:
    read = traces(
        'endpoint: "https://c.example/otlp/v1/traces", sample: 0.25, content: true, pass_on: true, '
        'headers: {X-Key: "${KEY}", authorization: "Bearer ${KEY}"}',
        KEY="abcdefghijkl",
    )
    assert read == Traces(
        endpoint="https://c.example/otlp/v1/traces",
        sample=0.25,
        content=True,
        pass_on=True,
        secret_headers={"x-key": Secret("abcdefghijkl"), "authorization": Secret("Bearer abcdefghijkl")},
    )
    assert Hiding(secrets_of(read))("it was abcdefghijkl") == "it was …"
    assert "abcdefghijkl" not in repr(read)


@pytest.mark.parametrize(("written", "part"), [("0", 0), ("1", 1), ("1.0", 1), (".5", 0.5), ("1e-3", 0.001)])
def test_a_part_is_from_nothing_to_all(written: str, part: float) -> None:
    assert traces(f"sample: {written}").sample == part


@pytest.mark.parametrize("written", ["-0.1", "1.1", "2", "10%", "nan", "inf", "[1]", "half"])
def test_a_part_that_is_none_is_refused(written: str) -> None:
    assert complaint(f"sample: {written}").startswith(
        "error telemetry.traces.sample must be a part of all requests from 0 to 1, like 0.1, not "
    )


@pytest.mark.parametrize("url", ["c:4318", "grpc://c:4317", "http://", "http://c:x", "http://c/?key=1", "http://c/ x"])
def test_an_endpoint_that_is_none_is_refused(url: str) -> None:
    assert complaint(f'endpoint: "{url}"') == (
        "error telemetry.traces.endpoint must be the address of a collector that takes OTLP over HTTP, like "
        "http://127.0.0.1:4318."
    )


def test_a_secret_in_the_endpoint_is_refused_and_not_shown() -> None:
    refused = complaint('endpoint: "https://user:wagtail@c.example"')
    assert "put what authorises under headers" in refused
    assert "wagtail" not in refused


def test_headers_are_what_http_can_carry() -> None:
    assert "must be a map of headers" in complaint("headers: [x]")
    assert "cannot be the name of a header" in complaint('headers: {"a b": c}')
    assert "no header can have" in complaint("headers: {a: [b]}")
    assert "no header can have" in complaint("headers: {a: Straße}")


def test_an_unknown_key_is_refused() -> None:
    assert complaint("sampel: 0.1") == 'error unknown key "sampel" in telemetry.traces. Did you mean "sample"?'


def test_headers_that_travel_in_the_open_are_warned_of() -> None:
    travelling = complaint('endpoint: "http://collector.example", headers: {x-key: short}')
    assert travelling.startswith("warning telemetry.traces: its headers travel unencrypted to collector.example.")
    assert look('telemetry: {traces: {endpoint: "http://127.0.0.1:4318", headers: {a: b}}}').problems == []


def test_a_key_in_the_file_itself_is_warned_of() -> None:
    written = complaint('endpoint: "https://c.example", headers: {x-key: sk-proj-Zq8vT3nKx5Lw9Rb2Hd7Jc4Mf}')
    assert written.startswith("warning telemetry.traces.headers.x-key")
    assert "Zq8v" not in written


def test_an_endpoint_without_opentelemetry_is_refused_with_the_fix(installed: list[bool]) -> None:
    installed[0] = False
    assert "pip install 'strata-gateway[otel]'" in complaint('endpoint: "http://127.0.0.1:4318"')
    assert traces("pass_on: true, sample: 1").pass_on
