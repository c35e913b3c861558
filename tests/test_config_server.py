"""The edges in the file: proxies, TLS, origins, ports and names, and the words for each mistake in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.config.listeners import Admin, Cors, Tls
from tests.certificates import write_certificate
from tests.configs import good, look, said


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_everything_that_can_be_said_of_the_edges_is_read() -> None:
    write_certificate(Path("tls"))
    server = good(
        """
server:
  trusted_proxies: [10.0.0.0/8, 192.0.2.7, "fd00::/8"]
  tls: {certificate: tls/cert.pem, key: tls/key.pem}
  hsts: 180d
  redirect_http: 8080
  cors: {origins: ["https://App.example.com", "http://localhost:5173"], credentials: true, max_age: 1h}
  admin: {port: 4001, metrics: true}
  allowed_hosts: [LLM.example.com, "*.internal", "[::1]", 192.0.2.1]
"""
    ).server
    assert server.trusted_proxies == ("10.0.0.0/8", "192.0.2.7/32", "fd00::/8")
    assert server.tls == Tls(certificate="tls/cert.pem", key="tls/key.pem")
    assert (server.hsts_seconds, server.redirect_http) == (180 * 86_400, 8080)
    origins = ("https://app.example.com", "http://localhost:5173")
    assert server.cors == Cors(origins=origins, credentials=True, max_age_seconds=3600)
    assert server.admin == Admin(host="127.0.0.1", port=4001, metrics=True)
    assert server.allowed_hosts == ("llm.example.com", "*.internal", "::1", "192.0.2.1")


def test_without_a_word_nobody_is_trusted_and_no_page_may_call() -> None:
    server = good("server: {hsts: off}").server
    assert (server.trusted_proxies, server.tls, server.hsts_seconds, server.redirect_http) == ((), None, 0, None)
    assert (server.cors, server.admin, server.allowed_hosts) == (Cors(), None, ())


def test_lists_come_from_the_environment_too() -> None:
    server = good("", {"STRATA_SERVER__TRUSTED_PROXIES": "10.0.0.0/8, 127.0.0.1"}).server
    assert server.trusted_proxies == ("10.0.0.0/8", "127.0.0.1/32")


def test_maps_come_from_the_environment_too() -> None:
    write_certificate(Path("tls"))
    environ = {"TLS__CERTIFICATE": "tls/cert.pem", "TLS__KEY": "tls/key.pem", "ADMIN__PORT": "4001"}
    environ |= {"CORS__ORIGINS": "https://a.example,https://b.example", "HSTS": "1d", "REDIRECT_HTTP": "8080"}
    server = good("", {f"STRATA_SERVER__{name}": value for name, value in environ.items()}).server
    assert server.tls == Tls(certificate="tls/cert.pem", key="tls/key.pem")
    assert server.admin == Admin(port=4001)
    assert server.cors.origins == ("https://a.example", "https://b.example")
    assert (server.hsts_seconds, server.redirect_http) == (86_400, 8080)


LISTENING = (
    "1:16 error server.host must be an address or a name of this machine like 127.0.0.1, ::1 or 0.0.0.0 (no port, no "
    "scheme), not "
)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::", "localhost", "my-machine_1.internal"])
def test_a_gateway_listens_at_addresses_and_names(host: str) -> None:
    assert good(f"server: {{host: '{host}'}}").server.host == host


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("trused_proxies: []", '1:10 error unknown key "trused_proxies" in server. Did you mean "trusted_proxies"?'),
        ("tls: {cert: a}", '1:16 error unknown key "cert" in server.tls. Known: certificate, key.'),
        ("admin: {prt: 1}", '1:18 error unknown key "prt" in server.admin. Did you mean "port"?'),
        ("cors: {origin: []}", '1:17 error unknown key "origin" in server.cors. Did you mean "origins"?'),
        (
            "trusted_proxies: [10.0.0.1/8]",
            "1:27 error server.trusted_proxies must be addresses or networks like 10.0.0.0/8 or fd00::/8, not "
            '"10.0.0.1/8" (did you mean 10.0.0.0/8?).',
        ),
        (
            "trusted_proxies: [proxy.internal]",
            "1:27 error server.trusted_proxies must be addresses or networks like 10.0.0.0/8 or fd00::/8, not "
            '"proxy.internal".',
        ),
        (
            "trusted_proxies: [0.0.0.0/0]",
            "1:9 warning server.trusted_proxies holds every address there is: whoever reaches this port can claim any "
            "other. Name the proxies.",
        ),
        (
            'cors: {origins: ["https://a.example/"]}',
            "1:26 error server.cors.origins must be origins like https://app.example.com (no path, no slash at the "
            'end) or "*", not "https://a.example/".',
        ),
        (
            'cors: {origins: ["null"]}',
            "1:26 error server.cors.origins must be origins like https://app.example.com (no path, no slash at the "
            'end) or "*", not "null".',
        ),
        (
            'cors: {origins: ["*"], credentials: true}',
            '1:16 error server.cors: "*" and credentials exclude each other: any page could act with the cookies of '
            "whoever reads it. Name the origins.",
        ),
        ("admin: {host: 127.0.0.1}", "1:17 error server.admin needs a port of its own."),
        (
            "admin: {port: 4000}",
            "1:9 error server.admin.port and server.port are both 4000. Give each a port of its own.",
        ),
        (
            "redirect_http: 80",
            "1:9 error server.redirect_http leads to TLS, and there is none here. Set server.tls, or take it out.",
        ),
        (
            "hsts: soon",
            "1:16 error server.hsts must be off, or a duration like 30s, 5m, 2h or 30d, or a number of seconds, not "
            '"soon".',
        ),
        (
            "allowed_hosts: ['https://x.example']",
            "1:25 error server.allowed_hosts must be names like llm.example.com or *.example.com (no port, no scheme), "
            'not "https://x.example".',
        ),
        ("host: 'http://127.0.0.1'", LISTENING + '"http://127.0.0.1".'),
        ("host: '127.0.0.1:4000'", LISTENING + '"127.0.0.1:4000".'),
        ("host: '300.1.1.1'", LISTENING + '"300.1.1.1".'),
        ("tls: {certificate: cert.pem}", "1:15 error server.tls needs a key: the path of a PEM file."),
        (
            "tls: {certificate: none.pem, key: none.pem}",
            "1:15 error server.tls cannot be used: the certificate none.pem cannot be read "
            "(No such file or directory).",
        ),
    ],
)
def test_each_mistake_is_said_with_its_place(text: str, problem: str) -> None:
    assert said(look("server: {" + text + "}")) == [problem]


def test_a_certificate_that_does_not_load_is_said_with_its_reason() -> None:
    write_certificate(Path("a"))
    write_certificate(Path("b"))
    write_certificate(Path("locked"), password=b"hush")
    Path("junk.pem").write_text("-----BEGIN NOTHING-----\n")

    def of(certificate: str, key: str) -> str:
        [problem] = said(look(f"server: {{tls: {{certificate: {certificate}, key: {key}}}}}"))
        return problem.removeprefix("1:15 error server.tls cannot be used: ")

    assert of("a/cert.pem", "b/key.pem") == "b/key.pem is not the key of a/cert.pem."
    assert of("locked/cert.pem", "locked/key.pem") == (
        "the key locked/key.pem has a passphrase. Take it off: openssl pkey -in KEY -out NEW"
    )
    assert of("junk.pem", "a/key.pem").startswith(
        "junk.pem and a/key.pem are not a certificate and its key in PEM form"
    )
    assert of("a", "a/key.pem") == "the certificate a cannot be read (Is a directory)."
