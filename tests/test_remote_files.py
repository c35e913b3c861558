"""Links in requests: followed to public addresses and nowhere else, whatever a name, a server or a redirect tries."""

from __future__ import annotations

import asyncio
import base64
import copy
import datetime
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from proxy import config
from proxy.config import Provider, Secret
from proxy.errors import CallerError
from proxy.providers import load
from proxy.upstream.accounts import Account
from proxy.upstream.addresses import is_public
from proxy.upstream.answers import WholeAnswer
from proxy.upstream.remote_files import RemoteFiles
from tests.test_relay import ANSWER, BUDGET, House, reply

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(200))
PDF = b"%PDF-1.7\n" + bytes(100)
INSIDE = "127.0.0.9"
"""Where a server listens that no link may reach."""


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "93.184.216.34", "172.32.0.1", "192.0.1.1", "2606:4700:4700::1111", "2a00:1450:4001:82b::200e"],
)
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.255.0.1", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
        *("100.64.0.1", "100.100.100.200", "168.63.129.16", "192.0.0.192", "192.0.2.1", "198.18.0.1", "203.0.113.1"),
        *("224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "192.88.99.1"),
        *("::", "::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "::ffff:0:8.8.8.8", "64:ff9b::7f00:1"),
        *("64:ff9b::808:808", "64:ff9b:1::1", "2002:7f00:1::", "2002:808:808::1", "2001:0:53aa:64c:0:fffe:80ff:fffe"),
        *("fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "2001:db8::1", "3fff::1"),
        *("100::1", "5f00::1", "2606:4700::1%eth0", "", "localhost", "8.8.8", "08.8.8.8", "0x7f000001"),
    ],
)
def test_all_others_are_not(address: str) -> None:
    assert not is_public(address)


@given(st.ip_addresses(v=4))
def test_no_public_address_is_reached_through_another(inner: Any) -> None:
    """However an IPv4 address is put into an IPv6 one."""
    number = int(inner)
    high, low = number >> 16, number & 0xFFFF
    for carried in (
        f"::ffff:{inner}",
        f"64:ff9b::{high:x}:{low:x}",
        f"2002:{high:x}:{low:x}::1",
        f"2001:0:1:2:3:4:{high ^ 0xFFFF:x}:{low ^ 0xFFFF:x}",
    ):
        assert not is_public(carried)


def whole(body: bytes, *lines: str, status: str = "200 OK") -> bytes:
    more = "".join(f"{line}\r\n" for line in lines)
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n{more}\r\n".encode() + body


def away(to: str, status: int = 302) -> bytes:
    return whole(b"", f"location: {to}", status=f"{status} Elsewhere")


class Web:
    """A server on two addresses that answers by path, and names that lead to them."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes | Callable[[asyncio.StreamWriter], Any]] = {"/cat.png": whole(PNG)}
        self.names: dict[str, list[list[str]]] = {"pictures.test": [["127.0.0.1"]], "inside.test": [[INSIDE]]}
        self.asked: list[tuple[str, str, str]] = []
        """The address, the Host and the path of each request."""
        self.looked_up: list[str] = []
        self.now = 0.0
        self.port = 0
        self._servers: list[asyncio.Server] = []

    async def start(self, context: ssl.SSLContext | None = None) -> None:
        for address in ("127.0.0.1", INSIDE):
            server = await asyncio.start_server(self._serve, address, self.port, ssl=context)
            self.port = server.sockets[0].getsockname()[1]
            self._servers.append(server)

    async def stop(self) -> None:
        for server in self._servers:
            server.close()

    async def lookup(self, host: str) -> list[str]:
        self.looked_up.append(host)
        answers = self.names.get(host, [[host]])
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def url(self, path: str = "/cat.png", host: str = "pictures.test", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    def files(self, context: ssl.SSLContext | None = None, **settings: Any) -> RemoteFiles:
        loop = asyncio.get_running_loop()
        return RemoteFiles(
            config.RemoteFiles(**{"enabled": True, "http": True, "timeout_seconds": 5.0, **settings}),
            lookup=self.lookup,
            public=lambda address: address == "127.0.0.1",
            ports=(self.port,),
            ssl_context=context,
            clock=lambda: loop.time() + self.now,
        )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            path = head.split(" ")[1]
            host = head.lower().split("\r\nhost: ")[1].split("\r\n")[0]
            self.asked.append((writer.get_extra_info("sockname")[0], host, path))
            page = self.pages.get(path, whole(b"no", status="404 Not Found"))
            if callable(page):
                await page(writer)
            else:
                writer.write(page)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    made = Web()
    await made.start()
    yield made
    await made.stop()


def never(url: str) -> bool:
    return False


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, "detail": "low"}}


def chat(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "system", "content": "See"}, {"role": "user", "content": [*parts]}]}


async def inlined(files: RemoteFiles, *parts: dict[str, Any]) -> list[dict[str, Any]]:
    try:
        request = await files.inline(chat(*parts), "bytes", {}, never)
    finally:
        await files.close()
    found: list[dict[str, Any]] = request["messages"][1]["content"]
    return found


async def refused(files: RemoteFiles, *urls: str) -> CallerError:
    with pytest.raises(CallerError) as caught:
        await inlined(files, {"type": "text", "text": "hi"}, *map(image, urls))
    assert caught.value.status == 400
    assert caught.value.param is not None
    assert caught.value.param.startswith("messages[1].content[")
    assert "127." not in caught.value.message, "nobody learns where a name leads"
    return caught.value


def data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


async def test_links_become_their_bytes_and_the_request_stays_as_it_was(web: Web) -> None:
    web.pages["/a.pdf?x=1&y=%20"] = whole(PDF, "content-type: text/html")
    given = chat(
        {"type": "text", "text": web.url()},
        image(web.url()),
        image("data:image/png;base64,AAAA"),
        {"type": "file", "file": {"file_data": web.url("/a.pdf?x=1&y=%20#page=2"), "filename": "a.pdf"}},
        image(web.url()),
    )
    before = copy.deepcopy(given)
    files, known = web.files(), {}  # type: ignore[var-annotated]
    request = await files.inline(given, "bytes", known, never)
    again = await files.inline(given, "bytes", known, never)
    await files.close()
    assert given == before
    assert request["messages"][0] is given["messages"][0]
    content = request["messages"][1]["content"]
    assert content[0] == given["messages"][1]["content"][0], "text is text"
    assert content[1]["image_url"] == {"url": data_url("image/png", PNG), "detail": "low"}
    assert content[2]["image_url"]["url"] == "data:image/png;base64,AAAA"
    assert content[3]["file"] == {"file_data": data_url("application/pdf", PDF), "filename": "a.pdf"}
    assert again == request
    assert [path for *_, path in web.asked] == ["/cat.png", "/a.pdf?x=1&y=%20"], "each link once, for all attempts"
    assert web.asked[0][:2] == ("127.0.0.1", f"pictures.test:{web.port}")


async def test_a_request_without_links_needs_nothing(web: Web) -> None:
    given = chat({"type": "text", "text": "https://example.com/"})
    files = web.files(enabled=False)
    assert await files.inline(given, "bytes", {}, never) is given
    await files.close()


async def test_off_by_default_and_the_error_names_the_setting(web: Web) -> None:
    assert not config.RemoteFiles().enabled
    error = await refused(web.files(enabled=False), web.url())
    assert (error.code, error.param) == ("remote_files_off", "messages[1].content[1].image_url.url")
    assert "remote_files.enabled" in error.message
    assert web.looked_up == []


@pytest.mark.parametrize(
    "url",
    [
        *("http://localhost/", "http://127.0.0.1/", "http://127.1/", "http://0x7f.1/", "http://0177.0.0.1/"),
        *("http://2130706433/", "http://0/", "http://[::1]/", "http://[::]/", "http://[::ffff:127.0.0.1]/"),
        *("http://[64:ff9b::7f00:1]/", "http://169.254.169.254/latest/meta-data/", "https://127.0.0.1./"),
        *("http://[fe80::1%25lo]/", "http://LOCALHOST/"),
    ],
)
async def test_no_spelling_of_an_inner_address_is_followed(url: str) -> None:
    """With the machine's own resolver and the real rules."""
    error = await refused(RemoteFiles(config.RemoteFiles(enabled=True, http=True)), url)
    assert error.code == "remote_file_forbidden"


@pytest.mark.parametrize(
    "url",
    [
        *("http://user@pictures.test/", "http://pictures.test@inside.test/", "http://inside.test\\@pictures.test/"),
        *("http://pictures.test:22/", "http://pictures.test:6379/", "http://pictures.test:99999/", "http:///cat.png"),
        *("http://pictures.test/\r\nx: y", "http://pictures.test/ a", "http://pictures.test\t/", "http://[::1/"),
        *("http://pict%75res.test/", "http://bücher.test/", "http://pictures.test/" + "a" * 5000),
    ],
)
async def test_what_parsers_disagree_about_is_no_address(web: Web, url: str) -> None:
    error = await refused(web.files(), url)
    assert error.code == "remote_file_forbidden"
    assert web.looked_up == []


async def test_plain_http_only_if_allowed(web: Web) -> None:
    error = await refused(web.files(http=False), web.url())
    assert "https://" in error.message
    assert web.looked_up == []


async def test_a_name_that_changes_its_mind_gains_nothing(web: Web) -> None:
    """Rebinding: what is connected to is what was checked, and each new answer is checked anew."""
    web.names["pictures.test"] = [["127.0.0.1"], [INSIDE]]
    files = web.files()
    await files.inline(chat(image(web.url())), "bytes", {}, never)
    await files.inline(chat(image(web.url())), "bytes", {}, never)
    assert web.looked_up == ["pictures.test"]
    web.now += 60  # the answer has grown old
    # the new one is refused; the checked one still serves
    await files.inline(chat(image(web.url())), "bytes", {}, never)
    await files.close()
    assert web.looked_up == ["pictures.test"] * 2
    assert {address for address, *_ in web.asked} == {"127.0.0.1"}


async def test_one_inner_address_among_others_is_enough_to_refuse(web: Web) -> None:
    web.names["pictures.test"] = [["127.0.0.1", INSIDE]]
    assert (await refused(web.files(), web.url())).code == "remote_file_forbidden"
    assert web.asked == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_judged_like_the_first_link(web: Web, status: int) -> None:
    web.pages["/go"] = away(web.url(host="inside.test"), status)
    assert (await refused(web.files(), web.url("/go"))).code == "remote_file_forbidden"
    assert [path for *_, path in web.asked] == ["/go"]


@pytest.mark.parametrize(
    "to", ["file:///etc/passwd", "ftp://pictures.test/", "//inside.test/", "http://a@pictures.test/"]
)
async def test_a_redirect_leads_nowhere_else(web: Web, to: str) -> None:
    web.pages["/go"] = away(to)
    assert (await refused(web.files(), web.url("/go"))).code == "remote_file_forbidden"
    assert len(web.asked) == 1


async def test_three_redirects_are_followed_and_a_fourth_is_not(web: Web) -> None:
    web.pages |= {"/3": away("/2"), "/2": away("1"), "/1": away(web.url("/cat.png")), "/4": away("/3")}
    assert (await inlined(web.files(), image(web.url("/3"))))[0]["image_url"]["url"].startswith("data:image/png")
    assert "redirects" in (await refused(web.files(), web.url("/4"))).message


@pytest.mark.parametrize("page", [b"<html>hi</html>", b"<svg xmlns=''/>", b"", b"\x89PN", b"GIF90a" + bytes(20), b"{}"])
async def test_what_is_no_image_or_pdf_is_refused_whatever_it_is_called(web: Web, page: bytes) -> None:
    web.pages["/x"] = whole(page, "content-type: image/png")
    assert "png" in (await refused(web.files(), web.url("/x"))).message


@pytest.mark.parametrize(
    ("first", "kind"),
    [(b"\xff\xd8\xff\xe0", "image/jpeg"), (b"GIF89a", "image/gif"), (b"RIFF\0\0\0\nWEBPVP8 ", "image/webp")],
)
async def test_what_it_is_stands_in_its_first_bytes(web: Web, first: bytes, kind: str) -> None:
    web.pages["/x"] = whole(first + bytes(50), "content-type: application/octet-stream")
    (found,) = await inlined(web.files(), image(web.url("/x")))
    assert found["image_url"]["url"] == data_url(kind, first + bytes(50))


async def test_size_is_bounded_for_all_files_together(web: Web) -> None:
    web.pages |= {"/a": whole(PNG + bytes(600)), "/b": whole(PNG + bytes(600))}
    assert len(await inlined(web.files(max_bytes=2_000), image(web.url("/a")), image(web.url("/b")))) == 2
    for urls in (["/a", "/b"], ["/cat.png", "/a"]):
        error = await refused(web.files(max_bytes=1_000), *map(web.url, urls))
        assert "remote_files.max_size" in error.message
    error = await refused(web.files(max_bytes=700), web.url("/a"))
    assert "remote_files.max_size" in error.message


async def test_an_endless_body_is_left(web: Web) -> None:
    sent = 0

    async def pour(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n100c\r\n\x89PNG\r\n\x1a\n" + bytes(4100) + b"\r\n"
        )
        while True:
            writer.write(b"1000\r\n" + bytes(4096) + b"\r\n")
            sent += 4096
            await writer.drain()

    web.pages["/endless"] = pour
    error = await refused(web.files(max_bytes=100_000), web.url("/endless"))
    assert "remote_files.max_size" in error.message
    assert sent < 20_000_000


@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n\x89PNG\r\n\x1a\n"])
async def test_a_slow_server_is_left(web: Web, first: bytes) -> None:
    async def dawdle(writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        for _ in range(40):
            await asyncio.sleep(0.1)
            writer.write(b"\0" if first else b"")

    web.pages["/slow"] = dawdle
    began = asyncio.get_running_loop().time()
    error = await refused(web.files(timeout_seconds=0.4), web.url("/slow"))
    assert "remote_files.timeout" in error.message
    assert asyncio.get_running_loop().time() - began < 3


@pytest.mark.parametrize(
    "page",
    [
        whole(PNG)[:-9],
        b"this is no HTTP\r\n\r\n",
        b"",
        whole(b"no", status="404 Not Found"),
        whole(b"no", status="500 Oh"),
        whole(PNG, status="206 Partial Content"),
        whole(b"", status="204 No Content"),
    ],
)
async def test_half_an_answer_and_none_are_failures(web: Web, page: bytes) -> None:
    web.pages["/x"] = page
    assert (await refused(web.files(), web.url("/x"))).code == "remote_file_failed"


async def test_links_are_counted_before_any_is_followed(web: Web) -> None:
    error = await refused(web.files(max_files=2), *[web.url(f"/{n}") for n in range(3)])
    assert "remote_files.max_files" in error.message
    assert web.asked == []


@pytest.mark.parametrize(
    ("hosts", "allowed"),
    [
        (("pictures.test",), True),
        (("PICTURES.test",), True),
        (("*.test",), True),
        (("*.pictures.test",), False),
        (("tures.test",), False),
        (("other.test",), False),
    ],
)
async def test_hosts_can_be_named(web: Web, hosts: tuple[str, ...], allowed: bool) -> None:
    if allowed:
        assert len(await inlined(web.files(hosts=hosts), image(web.url()))) == 1
    else:
        assert "remote_files.hosts" in (await refused(web.files(hosts=hosts), web.url())).message
        assert web.looked_up == []


def certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context and a client's that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.pem").write_bytes(private + pem)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server.pem")
    return server, ssl.create_default_context(cadata=pem.decode())


@pytest.mark.parametrize(("name", "trusted"), [("pictures.test", True), ("other.test", False)])
async def test_a_certificate_must_be_the_names_and_not_the_addresses(tmp_path: Path, name: str, trusted: bool) -> None:
    server, client = certificate(tmp_path, name)
    web = Web()
    await web.start(server)
    url = web.url(scheme="https")
    if trusted:
        assert len(await inlined(web.files(client, http=False), image(url))) == 1
    else:
        assert (await refused(web.files(client, http=False), url)).code == "remote_file_failed"
    await web.stop()


@pytest.fixture
async def house(tmp_path: Path, web: Web) -> AsyncIterator[House]:
    made = House(tmp_path)
    await made.start()
    made.replies = {"one": [reply(200, ANSWER)]}
    made.accounts["one"].takes_url = lambda url, model: False
    made.relay._files = web.files()
    yield made
    await made.relay._files.close()
    await made.stop()


async def test_nothing_is_set_aside_or_sent_if_a_link_fails(house: House, web: Web) -> None:
    exchange = house.exchange(budgets=(BUDGET,))
    with pytest.raises(CallerError) as caught:
        await house.ask(house.plan("one"), exchange, messages=chat(image(web.url("/gone")))["messages"])
    assert caught.value.code == "remote_file_failed"
    assert (house.asked, house.holds, house.rows, exchange.attempts) == ([], [], [], [])


async def test_what_is_set_aside_covers_the_bytes_of_the_file(house: House, web: Web) -> None:
    web.pages["/big"] = whole(PNG + bytes(30_000))
    answer = await house.ask(
        house.plan("one"), house.exchange(budgets=(BUDGET,)), messages=chat(image(web.url("/big")))["messages"]
    )
    assert isinstance(answer, WholeAnswer)
    assert answer.attempt.input_tokens_bound > 30_000 * 4 // 3
    assert house.holds == [answer.attempt.input_tokens_bound + answer.attempt.output_tokens_bound]


@pytest.mark.parametrize("takes_url", [None, lambda url, model: model == "m"])
async def test_an_api_that_follows_links_itself_gets_them(
    house: House, web: Web, takes_url: Callable[[str, str], bool] | None
) -> None:
    house.accounts["one"].takes_url = takes_url
    await house.ask(house.plan("one"), house.exchange(), messages=chat(image(web.url()))["messages"])
    assert web.asked == []


@pytest.mark.parametrize(
    ("api", "model", "url", "follows"),
    [
        ("bedrock", "anthropic.claude-sonnet-4-5-20250929-v1:0", "https://example.com/a.png", False),
        ("gemini", "gemini-2.5-pro", "https://example.com/a.png", True),
        ("gemini", "gemini-1.5-pro", "https://example.com/a.png", False),
        ("gemini", "gemini-1.5-pro", "https://generativelanguage.googleapis.com/v1beta/files/x", True),
        ("gemini", "gemini-1.5-pro", "https://youtu.be/dQw4w9WgXcQ", True),
        ("vertex", "gemini-2.5-pro", "https://example.com/a.png", True),
        ("vertex", "claude-sonnet-4-5", "https://example.com/a.png", False),
    ],
)
def test_which_links_an_api_follows_itself(api: str, model: str, url: str, follows: bool) -> None:
    provider = Provider(name="p", api=api, api_base="http://127.0.0.1:9", secrets={"access_token": Secret("t")})
    takes_url = Account(provider).takes_url
    assert takes_url is not None
    assert takes_url(url, model) is follows


def test_apis_that_follow_every_link_say_nothing_of_it() -> None:
    for api in ("openai", "anthropic", "azure", "mistral", "cohere"):
        assert getattr(load(api), "takes_url", None) is None
