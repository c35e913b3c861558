"""
The certificate that the gateway shows, as a TLS context. What does not load is said before anything listens, with the
file that is wrong; OpenSSL itself names none.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from proxy.config.listeners import Tls
from proxy.config.problems import Wrong


class _Locked(Exception):
    """OpenSSL asks for a passphrase; by itself it would ask whoever sits at the terminal."""


def tls_context(tls: Tls) -> ssl.SSLContext:
    """For a server: TLS 1.2 or newer. Wrong if the files are not a certificate and its key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    load_certificate(context, tls)
    return context


def load_certificate(context: ssl.SSLContext, tls: Tls) -> None:
    """Gives the context the files as they are now; connections from now on are shown them."""
    for name, path in (("certificate", tls.certificate), ("key", tls.key)):
        try:
            with Path(path).open("rb") as file:
                file.read(1)
        except OSError as error:
            raise Wrong(f"cannot be used: the {name} {path} cannot be read ({error.strerror}).") from None
    try:
        context.load_cert_chain(tls.certificate, tls.key, password=_refuse)
    except _Locked:
        raise Wrong(
            f"cannot be used: the key {tls.key} has a passphrase. Take it off: openssl pkey -in KEY -out NEW"
        ) from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise Wrong(f"cannot be used: {tls.key} is not the key of {tls.certificate}.") from None
        raise Wrong(
            f"cannot be used: {tls.certificate} and {tls.key} are not a certificate and its key in PEM form "
            f"({(error.reason or 'unreadable').replace('_', ' ').lower()})."
        ) from None


def reload_certificate(context: ssl.SSLContext, tls: Tls) -> None:
    """
    Like `load_certificate`, for a context in use: it keeps what it has unless the new files fit. On the event loop, for
    OpenSSL lets nobody begin a connection meanwhile.
    """
    tls_context(tls)
    load_certificate(context, tls)


def _refuse() -> str:
    raise _Locked
