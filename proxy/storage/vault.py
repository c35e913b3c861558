"""
The master key, and what is derived from it: one key a purpose (HKDF-SHA256), so that no two uses share bytes.

From STRATA_MASTER_KEY, or from `master.key` in the data folder, made on the first start. Whoever loses it loses every
virtual key and every sealed provider key; nothing here ever shows it.

For a rotation there may be several, the newest first, with commas between them. Each seals with a key of its own (its
KEK); only the newest seals anew. All else (`derive`, the pepper) comes from one root that a rotation does not change:
it is kept in the database, sealed like the provider keys are (`proxy.storage.root`).
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

MAX_KEYS = 8

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
    """
    What the master keys give: a KEK each, by its id, the newest first; and from the root, `derive` with 32 bytes, the
    same for the same purpose on every start. Until the database has said what the root is, it is the oldest key's.
    """

    __slots__ = ("_root", "keks", "pepper", "pepper_id", "roots")

    def __init__(self, master_key: bytes, *older: bytes) -> None:
        self.roots = tuple(hmac.digest(_SALT, key, "sha256") for key in (master_key, *older))
        """The root that each of them would make, the newest first."""
        keks = [_expand(root, "kek") for root in self.roots]
        self.keks = {fingerprint(b"kek-id:", kek): kek for kek in keks}
        self.adopt(self.roots[-1])

    @classmethod
    def open(cls, home: Path, environ: Mapping[str, str]) -> Vault:
        """
        The master keys from the environment, else from `home`, where one is made if there is none yet. Several
        processes may start at once: they agree on one. Raises GatewayFault (`gateway_config`) with the fix.
        """
        given = environ.get(VARIABLE)
        if given is not None and given.strip():
            return cls(*_keys_in(given, VARIABLE))
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
        return cls(*_keys_in(text, str(path)))

    @property
    def kek_id(self) -> str:
        """Of the newest, under which everything is sealed from now on."""
        return next(iter(self.keks))

    @property
    def root(self) -> bytes:
        return self._root

    def adopt(self, root: bytes) -> None:
        """From now on everything is derived from this root."""
        self._root = root
        self.pepper = self.derive("virtual-keys/pepper")
        self.pepper_id = pepper_id_of(root)
        """Stored beside each key, so that a wrong master key is recognised and named."""

    def derive(self, purpose: str) -> bytes:
        """32 bytes for one purpose: HKDF-SHA256 with the purpose as its info."""
        return _expand(self._root, purpose)

    def __repr__(self) -> str:
        return f"Vault({self.pepper_id})"


def pepper_id_of(root: bytes) -> str:
    return fingerprint(b"pepper-id:", _expand(root, "virtual-keys/pepper"))


def fingerprint(what: bytes, key: bytes) -> str:
    """Enough to tell keys apart, and nothing of them."""
    return hashlib.sha256(what + key).hexdigest()[:8]


def _expand(root: bytes, purpose: str) -> bytes:
    return hmac.digest(root, purpose.encode() + b"\x01", "sha256")


def split_keys(text: str) -> list[str]:
    """
    The keys, the newest first. A comma stands between two of them; in a text whose parts are not all long enough it is
    part of a single key, as it always was.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if len(parts) < 2 or any(len(part) < _MIN_CHARACTERS for part in parts):
        return [text.strip()]
    return parts


def _keys_in(text: str, where: str) -> list[bytes]:
    parts = split_keys(text)
    if len(parts) > MAX_KEYS:
        raise _misconfigured(
            f"There are more than {MAX_KEYS} master keys in {where}. Take out those not in use any more."
        )
    if len(set(parts)) < len(parts):
        raise _misconfigured(f"A master key stands twice in {where}. Leave it once: the newest first, then the older.")
    return [_checked(part, where) for part in parts]


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
