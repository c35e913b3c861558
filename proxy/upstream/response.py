"""
An answer of a provider: the head is here, the body may still be on its way. The connection writes it, a caller reads.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from proxy.errors import UpstreamError

if TYPE_CHECKING:
    from proxy.upstream.wire import Connection


class Response:
    """
    An answer whose head has arrived. `headers` have lowercase names, and the last of a repeated one. `delimited` is
    False when only the end of the connection marks the end of the body: then that end proves nothing. `reused`: the
    connection had served before. Times are values of the pool's clock.
    """

    __slots__ = (
        "complete",
        "connection",
        "delimited",
        "error",
        "fields",
        "parts",
        "reused",
        "size",
        "stale",
        "status",
        "unread",
        "whole",
    )

    def __init__(self, connection: Connection, reused: bool) -> None:
        self.status = 0
        self.fields: dict[bytes, bytes] = {}
        """The head as it came. Only failures are asked for their `headers`."""
        self.delimited = True
        self.reused = reused
        self.stale = False
        """The reused connection was already dead: not a byte came back."""
        self.connection: Connection | None = connection
        self.error: UpstreamError | None = None
        self.parts: list[bytes] = []
        self.size = 0
        self.unread = 0
        self.whole = False
        self.complete = False

    @property
    def headers(self) -> dict[str, str]:
        return {
            name.decode("latin-1").lower(): value.decode("latin-1").rstrip(" \t") for name, value in self.fields.items()
        }

    async def read(self, deadline: float) -> bytes:
        """
        What has arrived, or the next bytes that do; `b""` when the body is complete. Raises UpstreamError: a timeout,
        a cut body (StreamTruncated), a body that is too large or not what its head says.
        """
        parts = self.parts
        while not parts:
            if self.error is not None:
                raise self.error
            if self.connection is None:
                return b""
            try:
                await self.connection.wait(deadline)
            except asyncio.CancelledError:
                self.close()
                raise
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self.unread = 0
        if self.connection is not None:
            self.connection.resume()
        return data

    async def read_all(self, deadline: float) -> bytes:
        """The rest of the body. `deadline` bounds the whole of it. Raises as `read` does."""
        if self.connection is not None:
            self.whole = True
            self.connection.resume()
            try:
                while self.connection is not None:
                    await self.connection.wait(deadline)
            except asyncio.CancelledError:
                self.close()
                raise
        if self.error is not None:
            raise self.error
        parts = self.parts
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        return data

    def hasten(self, deadline: float) -> None:
        """Brings the deadline of a `read` that is waiting forward."""
        if self.connection is not None:
            self.connection.deadline = min(self.connection.deadline, deadline)

    def release(self) -> None:
        """The caller has all it wants. If the body ends within a moment the connection is kept, else it is closed."""
        if self.connection is not None:
            if self.delimited:
                self.connection.release()
            else:
                self.close()

    def close(self) -> None:
        """Ends it here. A body that has not arrived in full closes its connection; a waiting `read` fails."""
        if self.connection is not None:
            self.connection.hang_up()
