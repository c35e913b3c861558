"""
The oracle: a provider that fails on command and keeps its own bill. It shares no code with the gateway.

It speaks the APIs in `server.SHAPES`. What it does with a request stands in the prompt, in a marker
such as `@@{"status":529,"times":1}@@` (see `script.Script`), because a gateway forwards no headers of its clients; and
what the request cost stands in a JSONL file, one line a request, found again by the `nonce=<id>` of its prompt.
"""

from __future__ import annotations

from tests.oracle.bill import Item, Prices, read_bill
from tests.oracle.script import Script, marker
from tests.oracle.server import Oracle

__all__ = ["Item", "Oracle", "Prices", "Script", "marker", "read_bill"]
