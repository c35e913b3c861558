"""
Files behind links, for APIs that take bytes only: fetched before the request is translated, and so before anything is
spent or set aside; a link then is a `data:` URL like any other.

A link comes from a stranger. It is followed only to public addresses (`addresses`), checked after the name was
resolved; the connection goes to the very address that was checked, so a name that changes its mind gains nothing. A
redirect is a link like the first. How much, how long, how many and what kind is bounded. Off unless configured.
"""

from __future__ import annotations

import base64
import re
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from proxy import __version__, config
from proxy.errors import CallerError, UpstreamError
from proxy.providers import ChatRequest, Json
from proxy.upstream.addresses import is_public
from proxy.upstream.connections import Origin, Pool, Response
from proxy.upstream.resolver import Resolver, system_lookup

MAX_REDIRECTS = 3
MAX_URL_CHARACTERS = 4_096
MAX_CONNECTIONS = 32
PORTS = {"https": 443, "http": 80}

_LINK = re.compile(r"https?://", re.IGNORECASE)
_HOST = re.compile(r"[A-Za-z0-9._:-]{1,253}")
_AS_IT_IS = "/%:@!$&'()*+,;=~-._?"
_KINDS = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png"),
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"GIF8[79]a"), "image/gif"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "image/webp"),
    (re.compile(rb"%PDF-"), "application/pdf"),
)
"""By their first bytes: what a server calls them is its own affair."""

Lookup = Callable[[str], Awaitable[list[str]]]


class Forbidden(OSError):
    """The name leads to an address where no link may lead."""


class Link(NamedTuple):
    """A place in a request where a link stands."""

    param: str
    url: str
    part: Json
    field: str
    key: str


class _Address(NamedTuple):
    """A link taken apart, once: what is checked is what is asked for."""

    origin: Origin
    host: str
    target: str


class RemoteFiles:
    """`public` says which addresses are allowed and `ports` which ports; tests have servers of their own."""

    def __init__(
        self,
        settings: config.RemoteFiles,
        *,
        lookup: Lookup = system_lookup,
        public: Callable[[str], bool] = is_public,
        ports: tuple[int, ...] = tuple(PORTS.values()),
        ssl_context: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._lookup = lookup
        self._public = public
        self._ports = ports
        self._clock = clock
        self._pool = Pool(
            max_connections=MAX_CONNECTIONS,
            max_response_bytes=settings.max_bytes,
            ssl_context=ssl_context,
            idle_seconds=0.0,
            clock=clock,
            resolver=Resolver(clock, self._resolve),
        )

    async def inline(
        self, chat: ChatRequest, api: str, known: MutableMapping[str, str], follows: Callable[[str], bool]
    ) -> ChatRequest:
        """
        The request with a `data:` URL for every link but those that the API `follows` itself; `known` holds those of
        earlier attempts, and gets the new ones. Raises CallerError with the link's `param`.
        """
        links = [link for link in links_of(chat) if not follows(link.url)]
        if not links:
            return chat
        if not self._settings.enabled:
            raise CallerError(
                f"{links[0].param} is a link, and the API behind this model ({api}) takes files as bytes only. Send a "
                "data: URL in base64, or have the operator set remote_files.enabled.",
                param=links[0].param,
                code="remote_files_off",
            )
        if len(links) > self._settings.max_files:
            raise _refusal(
                links[0], f"{len(links)} links are more than the {self._settings.max_files} of remote_files.max_files"
            )
        room = self._settings.max_bytes
        deadline = self._clock() + self._settings.timeout_seconds
        for link in links:
            if link.url not in known:
                data = await self._fetch(link, room, deadline)
                room -= len(data)
                known[link.url] = f"data:{_kind(link, data)};base64,{base64.b64encode(data).decode('ascii')}"
        return _replaced(chat, links, known)

    async def close(self) -> None:
        await self._pool.close()

    async def _fetch(self, link: Link, room: int, deadline: float) -> bytes:
        url = link.url
        for _ in range(MAX_REDIRECTS + 1):
            response = await self._get(link, self._taken_apart(link, url), deadline)
            try:
                if response.status in (301, 302, 303, 307, 308):
                    url = urljoin(url, response.headers.get("location", ""))
                    continue
                if response.status != 200:
                    raise _refusal(link, f"the server answered {response.status}")
                return await self._read(link, response, room, deadline)
            finally:
                response.close()
        raise _refusal(link, f"the server redirects more than {MAX_REDIRECTS} times")

    async def _get(self, link: Link, address: _Address, deadline: float) -> Response:
        head = (
            f"GET {address.target} HTTP/1.1\r\nhost: {address.host}\r\nuser-agent: strata-gateway/{__version__}\r\n"
            "accept: image/*, application/pdf\r\naccept-encoding: identity\r\nconnection: close\r\n\r\n"
        )
        wait = max(0.0, deadline - self._clock())
        try:
            return await self._pool.send(
                address.origin, head.encode("ascii"), b"", connect_seconds=wait, deadline=deadline
            )
        except UpstreamError as error:
            if isinstance(error.__cause__, Forbidden):
                raise _refusal(link, "it leads to an address that is not public", "remote_file_forbidden") from None
            raise _refusal(link, self._why(error)) from None

    async def _read(self, link: Link, response: Response, room: int, deadline: float) -> bytes:
        data = bytearray()
        try:
            while piece := await response.read(deadline):
                data += piece
                if len(data) > room:
                    raise self._too_large(link)
                _kind(link, data, early=True)
        except UpstreamError as error:
            if error.code == "upstream_response_too_large":
                raise self._too_large(link) from None
            raise _refusal(link, self._why(error)) from None
        return bytes(data)

    def _too_large(self, link: Link) -> CallerError:
        return _refusal(link, f"the files are larger than {self._settings.max_bytes} bytes (remote_files.max_size)")

    def _why(self, error: UpstreamError) -> str:
        if error.error_type == "provider_timeout":
            return f"it did not come within {self._settings.timeout_seconds:g} s (remote_files.timeout)"
        return "it could not be fetched"

    async def _resolve(self, host: str) -> list[str]:
        """All its addresses, if all are public: one that is not is no accident."""
        addresses = await self._lookup(host)
        if not all(self._public(address) for address in addresses):
            raise Forbidden(f"{host} is not public")
        return addresses

    def _taken_apart(self, link: Link, url: str) -> _Address:
        if len(url) > MAX_URL_CHARACTERS or any(not c.isprintable() or c in " \\" for c in url):
            raise _refusal(link, "it is no plain address", "remote_file_forbidden")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise _refusal(link, "it is no plain address", "remote_file_forbidden") from None
        host = (parts.hostname or "").rstrip(".")
        if parts.scheme not in ("https", "http") or (parts.scheme == "http" and not self._settings.http):
            raise _refusal(link, "it must begin with https://", "remote_file_forbidden")
        if "@" in parts.netloc or not _HOST.fullmatch(host):
            raise _refusal(link, "it must name a host, without a user", "remote_file_forbidden")
        port = port or PORTS[parts.scheme]
        if port not in self._ports:
            raise _refusal(link, f"port {port} is not one of the web's", "remote_file_forbidden")
        if self._settings.hosts and not any(_covers(allowed, host) for allowed in self._settings.hosts):
            raise _refusal(link, f"{host} is not in remote_files.hosts", "remote_file_forbidden")
        named = f"[{host}]" if ":" in host else host
        target = quote(parts.path or "/", safe=_AS_IT_IS) + (
            f"?{quote(parts.query, safe=_AS_IT_IS)}" if parts.query else ""
        )
        shown = named if port == PORTS[parts.scheme] else f"{named}:{port}"
        return _Address(Origin(parts.scheme, host, port), shown, target)


def links_of(chat: ChatRequest) -> Iterator[Link]:
    """The images and files of a request that are links."""
    for number, message in enumerate(chat["messages"]):
        content = message.get("content")
        for place, part in enumerate(content if isinstance(content, list) else ()):
            for field, key in (("image_url", "url"), ("file", "file_data")):
                url = (part.get(field) or {}).get(key) if part["type"] == field else None
                if isinstance(url, str) and _LINK.match(url):
                    yield Link(f"messages[{number}].content[{place}].{field}.{key}", url, part, field, key)


def _replaced(chat: ChatRequest, links: list[Link], known: MutableMapping[str, str]) -> ChatRequest:
    """Nothing of the request that was sent is changed."""
    parts = {
        id(link.part): {**link.part, link.field: {**link.part[link.field], link.key: known[link.url]}} for link in links
    }
    messages = [
        {**message, "content": [parts.get(id(part), part) for part in message["content"]]}
        if isinstance(message.get("content"), list)
        else message
        for message in chat["messages"]
    ]
    return {**chat, "messages": messages}


def _kind(link: Link, data: bytes | bytearray, *, early: bool = False) -> str:
    """What it is. `early`: as far as the first bytes have come."""
    found = next((kind for pattern, kind in _KINDS if pattern.match(data)), None)
    if found is None and not (early and len(data) < 12):
        raise _refusal(link, "it is no png, jpeg, gif, webp or PDF")
    return found or ""


def _covers(allowed: str, host: str) -> bool:
    """`*.example.com` covers every name below it, and not itself."""
    host, allowed = host.lower(), allowed.lower()
    return host == allowed or (allowed.startswith("*.") and host.endswith(allowed[1:]))


def _refusal(link: Link, why: str, code: str = "remote_file_failed") -> CallerError:
    return CallerError(f"{link.param}: {why}.", param=link.param, code=code)
