"""Whether a client still reads what it was sent: by what has not left for it yet, here and in the kernel."""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios


class Unread:
    """Of one connection. Look now and then; progress, however slow, is progress."""

    __slots__ = ("_bytes", "_since")

    def __init__(self) -> None:
        self._bytes = 0
        self._since = 0.0
        """Since when it has not become less; 0: nobody waits for it."""

    def stands_still(self, transport: asyncio.Transport, now: float, most_seconds: float) -> bool:
        """Whether it has not become less for longer than that. Look only while nothing is added to it."""
        size = transport.get_write_buffer_size()
        if not size:
            self._since = 0.0
            return False
        size += _in_kernel(transport)
        if not self._since or size < self._bytes:
            self._bytes, self._since = size, now
        return now - self._since > most_seconds

    def is_read(self) -> None:
        self._since = 0.0


def _in_kernel(transport: asyncio.Transport) -> int:
    """It takes more only when a good part of what it has was read: megabytes, which may last."""
    try:
        told = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    except OSError:
        return 0
    size: int = struct.unpack("i", told)[0]
    return size
