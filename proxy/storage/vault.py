"""
The master key, and what is derived from it: one key a purpose (HKDF-SHA256), so that no two uses share bytes.

From STRATA_MASTER_KEY, or from `master.key` in the data folder, made on the first start. Whoever loses it loses every
virtual key and every sealed provider key; nothing here ever shows it.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from proxy.errors import GatewayFault

VARIABLE = "STRATA_MASTER_KEY"
FILE_NAME = "master.key"

_MIN_CHARACTERS = 32
_MIN_DISTINCT = 6
_EXAMPLES = (
    "changeme",
    "change-me",
    "change_me",
    "example",
    "your-master-key",
    "your_master_key",
    "yourmasterkey",
    "0123456789",
    "abcdefghij",
    "sk-1234",
    "password",
    "secretsecret",
)
_SALT = b"strata-gateway/v1"

log = logging.getLogger("strata.storage")


class Vault:
    """Keys derived from the master key. `derive` gives 32 bytes, the same for the same purpose on every start."""

    __slots__ = ("_root", "pepper", "pepper_id")

    def __init__(self, master_key: bytes) -> None:
        self._root = hmac.digest(_SALT, master_key, "sha256")
        self.pepper = self.derive("virtual-keys/pepper")
        self.pepper_id = hashlib.sha256(b"pepper-id:" + self.pepper).hexdigest()[:8]
        """Stored beside each key, so that a wrong master key is recognised and named."""

    @classmethod
    def open(cls, home: Path, environ: Mapping[str, str]) -> Vault:
        """
        The master key from the environment, else from `home`, where it is made if it is not there yet. Several
        processes may start at once: they agree on one. Raises GatewayFault (`gateway_config`) with the fix.
        """
        given = environ.get(VARIABLE)
        if given is not None and given.strip():
            return cls(_checked(given.strip(), VARIABLE))
        path = home / FILE_NAME
        try:
            if not path.exists():
                _create(path)
            _warn_if_open(path)
            text = path.read_text("ascii", "replace")
        except OSError as error:
            raise _misconfigured(
                f"The master key {path} cannot be read or made ({error.strerror}). "
                f"Make the folder writable, or set {VARIABLE}."
            ) from error
        return cls(_checked(text.strip(), str(path)))

    def derive(self, purpose: str) -> bytes:
        """32 bytes for one purpose: HKDF-SHA256 with the purpose as its info."""
        return hmac.digest(self._root, purpose.encode() + b"\x01", "sha256")

    def __repr__(self) -> str:
        return f"Vault({self.pepper_id})"


def _checked(key: str, where: str) -> bytes:
    weak = None
    if len(key) < _MIN_CHARACTERS:
        weak = f"shorter than {_MIN_CHARACTERS} characters"
    elif len(set(key)) < _MIN_DISTINCT:
        weak = "almost all the same character"
    elif any(example in key.lower() for example in _EXAMPLES):
        weak = "a known example"
    if weak:
        raise _misconfigured(
            f"The master key in {where} is {weak}. Make one with: openssl rand -base64 32; "
            "if this gateway already has keys, restore the one that it had."
        )
    return key.encode()


def _create(path: Path) -> None:
    """
    The whole file appears under its name at once or not at all: written under another name, then linked, which fails
    if a second process was quicker. That one's key is then the key.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _warn_if_open(path: Path) -> None:
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        log.warning("The master key %s can be read by other users. Close it with: chmod 600 %s", path, path)


def _misconfigured(message: str) -> GatewayFault:
    return GatewayFault(message, status=500, code="gateway_config", error_type="gateway_config")
