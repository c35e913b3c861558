"""
Who a Postgres of ours runs as, and how a child process becomes that user between fork and exec.

Postgres refuses to run as root, and initdb as a user without a name. Nothing here touches the system's users or the
permissions of any folder.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from proxy.errors import GatewayFault

CLONE_NEWUSER = 0x10000000
PR_SET_PDEATHSIG = 1


class Account(NamedTuple):
    """Who the server runs as. `inside`: the uid and gid it believes to have, in a user namespace of its own."""

    uid: int
    gid: int
    inside: tuple[int, int] | None = None


def choose_account(home: Path, binaries: Path, owner: int | None) -> Account:
    """
    Root becomes the owner of the data, `postgres` or `nobody`: the first who can get at binaries and data folder. If
    none can (a venv below /root), it is root under another name in a user namespace, which needs nobody's permission.
    """
    uid, gid = os.geteuid(), os.getegid()
    named = [entry for entry in pwd.getpwall() if entry.pw_uid != 0]
    if uid != 0 and any(entry.pw_uid == uid for entry in named):
        return Account(uid, gid)
    if uid == 0:
        wanted = [entry for entry in named if entry.pw_uid == owner]
        wanted += [entry for name in ("postgres", "nobody") for entry in named if entry.pw_name == name]
        for entry in wanted:
            if all(_may_pass(path, entry.pw_uid, entry.pw_gid) for path in (home.parent, binaries)):
                return Account(entry.pw_uid, entry.pw_gid)
    if sys.platform != "linux" or not named:
        raise GatewayFault(
            "Postgres does not run as root. Start Strata as an ordinary user, or set DATABASE_URL.",
            code="gateway_config",
            error_type="gateway_config",
        )
    mask = next((entry for entry in named if entry.pw_name == "nobody"), named[0])
    return Account(uid, gid, inside=(mask.pw_uid, mask.pw_gid))


def _may_pass(path: Path, uid: int, gid: int) -> bool:
    for folder in (path, *path.parents):
        status = folder.stat()
        shift = 6 if status.st_uid == uid else 3 if status.st_gid == gid else 0
        if not (status.st_mode >> shift) & 0o1:
            return False
    return True


def become(account: Account) -> Callable[[], None]:
    """What the child does between fork and exec: becomes the account, and asks to be ended with its parent."""
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    parent = os.getpid()
    drop = account.uid != os.geteuid()

    def descend() -> None:
        if account.inside is not None and libc is not None:
            if libc.unshare(CLONE_NEWUSER) != 0:
                raise OSError(ctypes.get_errno(), "unshare")
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{account.inside[0]} {account.uid} 1")
            Path("/proc/self/gid_map").write_text(f"{account.inside[1]} {account.gid} 1")
        elif drop:
            os.setgroups([])
            os.setgid(account.gid)
            os.setuid(account.uid)
        if libc is not None:
            # After the change of identity, which clears it.
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGINT)
            if os.getppid() != parent:
                os._exit(1)

    return descend
