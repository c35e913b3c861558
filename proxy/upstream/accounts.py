"""
A provider as this process reaches it: its translator, its own pool of connections, and the request head, made once.

One pool a provider, so that a bad one cannot starve the others. A key is bound to its host here and goes nowhere else.
Accounts with the keys of users share their provider's pool: a connection knows no key, each request brings its own.
"""

from __future__ import annotations

import copy
import re
import ssl
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import urlsplit

from proxy import __version__
from proxy.config import Provider
from proxy.errors import GatewayFault, UpstreamError
from proxy.exchange import OwnKey
from proxy.hiding import Hiding, secrets_of
from proxy.providers import UpstreamRequest, load
from proxy.providers.embeddings import embedder
from proxy.upstream.connections import Origin, Pool, Response
from proxy.upstream.credentials import Credential, Outgoing, Surroundings, authorise

MAX_HEADS = 64
HOPS = "x-strata-hops"
"""Through how many gateways a request has been. The edge has read it and knows it for a small number."""

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e\x80-\xff]*")


class Account:
    embeds = False
    """It is asked for embeddings: see `for_embeddings`."""

    def __init__(
        self,
        provider: Provider,
        *,
        ssl_context: ssl.SSLContext | None = None,
        surroundings: Surroundings | None = None,
        pool: Pool | None = None,
        own_key: OwnKey | None = None,
    ) -> None:
        self.provider = provider
        self.own_key = own_key
        """Whose it is, if not the operator's."""
        self.translator = load(provider.api)
        self.takes_url: Callable[[str, str], bool] | None = getattr(self.translator, "takes_url", None)
        """Whether its API follows a link to a file, for a model; None: it follows all. What it does not, we fetch."""
        self.forwards: tuple[str, ...] = tuple(provider.quirks.get("forward", ()))  # type: ignore[arg-type]
        """Headers of the client that this provider may see."""
        self.passes_through = self.translator.same_dialect and not provider.quirks.get("normalise")
        """Its answers go to the client as they came. Not so where a provider speaks our dialect with an accent."""
        self.hide = Hiding(secrets_of(provider))
        self._first_hop = f"{HOPS}: 1\r\n".encode() if self.translator.same_dialect else b""
        """Only where another gateway may stand, which would speak our dialect."""
        url = urlsplit(provider.api_base)
        port = url.port or (443 if url.scheme == "https" else 80)
        self._origin = Origin(url.scheme, url.hostname or "", port)
        self._host = url.netloc
        self._path = url.path.rstrip("/")
        self._credential: Credential | None = None
        """Signs each request, where a header made once is not enough."""
        authority = authorise(self.translator.auth, provider, surroundings or Surroundings())
        if isinstance(authority, Mapping):
            self._head = self._fixed_head(authority)
        else:
            self._head, self._credential = self._fixed_head({}), authority
        self._heads: dict[str, bytes] = {}
        self._is_guest = pool is not None
        self._twin: Account | None = None
        """Made when embeddings are first asked for."""
        self.pool = pool or Pool(
            max_connections=provider.max_connections,
            max_response_bytes=provider.max_response_bytes,
            ssl_context=ssl_context,
        )

    def for_embeddings(self) -> Account | None:
        """The same account, with the same pool and credential, where embeddings are asked; None: its API has none."""
        translator = embedder(self.translator) if self._twin is None else None
        if translator is not None:
            self._twin = twin = copy.copy(self)
            twin.translator, twin.takes_url, twin.passes_through = translator, None, False
            twin.embeds, twin._heads, twin._is_guest = True, {}, True
        return self._twin

    def send(
        self,
        request: UpstreamRequest,
        body: bytes,
        hints: Mapping[str, str],
        *,
        connect_seconds: float,
        deadline: float,
        trace: bytes = b"",
    ) -> Awaitable[Response]:
        """
        Sends, and waits for the answer's head. Raises UpstreamError; its `sent` says whether bytes may have left.
        `trace`: a header line that says which trace this is part of.
        """
        fixed = self._heads.get(request.path) or self._remember_head(request)
        more = self._first_hop if not hints else self._forwarded(hints)
        head = b"%b%b%bcontent-length: %d\r\n" % (fixed, more, trace, len(body))
        if self._credential is not None:
            return self._send_signed(self._credential, request, head, body, connect_seconds, deadline)
        return self.pool.send(self._origin, head + b"\r\n", body, connect_seconds=connect_seconds, deadline=deadline)

    @property
    def signs(self) -> bool:
        """Whether each request is signed, or fetches a token: a plain key is not what authorises here."""
        return self._credential is not None

    def get(self, request: UpstreamRequest, *, with_key: bool, deadline: float) -> Awaitable[Response]:
        """Like `send`, for a question without a body. `with_key` False: as anybody might ask it."""
        fixed = self._head if with_key else self._fixed_head({})
        lines = "".join(_header(name, value) for name, value in request.headers.items())
        head = f"GET {self._target(request.path)} HTTP/1.1\r\n{fixed}{lines}\r\n".encode("latin-1")
        return self.pool.send(self._origin, head, b"", connect_seconds=deadline, deadline=deadline)

    def censor(self, error: UpstreamError) -> None:
        """Providers quote in their errors what they were sent."""
        error.message = self.hide(error.message)
        error.args = (error.message,)
        for name in ("code", "param"):
            said = getattr(error, name)
            if said is not None and self.hide(said) != said:
                setattr(error, name, None)
        error.__notes__ = [self.hide(note) for note in getattr(error, "__notes__", ())]

    async def close(self) -> None:
        if not self._is_guest:
            await self.pool.close()
        if self._credential is not None:
            await self._credential.close()

    async def _send_signed(
        self,
        credential: Credential,
        request: UpstreamRequest,
        head: bytes,
        body: bytes,
        connect_seconds: float,
        deadline: float,
    ) -> Response:
        named = {name.lower(): value for name, value in request.headers.items()}
        signed = await credential.headers(Outgoing("POST", self._host, self._target(request.path), named, body))
        lines = "".join(_header(name, value) for name, value in signed.items()).encode("latin-1")
        head = b"%b%b\r\n" % (head, lines)
        return await self.pool.send(self._origin, head, body, connect_seconds=connect_seconds, deadline=deadline)

    def _target(self, path: str) -> str:
        """
        The path on the wire: that of the address, and the API's own, whose beginning may stand in both: `/v1`,
        `/openai/v1`.
        """
        shared = max((n for n, mark in enumerate(path) if mark == "/" and self._path.endswith(path[:n])), default=0)
        return self._path + path[shared:]

    def _remember_head(self, request: UpstreamRequest) -> bytes:
        """Made once for a path, unless the translator adds headers of its own."""
        lines = "".join(_header(name, value) for name, value in request.headers.items())
        head = f"POST {self._target(request.path)} HTTP/1.1\r\n{self._head}{lines}".encode("latin-1")
        if not request.headers and len(self._heads) < MAX_HEADS:
            self._heads[request.path] = head
        return head

    def _forwarded(self, hints: Mapping[str, str]) -> bytes:
        lines = "".join(_header(name, hints[name]) for name in self.forwards if name in hints).encode("latin-1")
        if HOPS not in hints or not self._first_hop:
            return self._first_hop + lines
        return b"%b: %d\r\n%b" % (HOPS.encode(), int(hints[HOPS]) + 1, lines)

    def _fixed_head(self, authority: Mapping[str, str]) -> str:
        lines = [
            _header("host", self._host),
            _header("user-agent", f"strata/{__version__}"),
            _header("accept", "*/*"),
            _header("accept-encoding", "identity"),
            _header("content-type", "application/json"),
        ]
        lines += (_header(name, value) for name, value in {**authority, **self.provider.headers}.items())
        return "".join(lines)


def _header(name: str, value: str) -> str:
    """One header line. A value that could end its line early never gets into a head."""
    if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
        raise GatewayFault(
            f"The header {name[:64]!r} of this provider has characters that HTTP does not allow: "
            "mend it in config.yaml.",
            status=502,
            code="gateway_config",
            error_type="gateway_config",
        )
    return f"{name}: {value}\r\n"
