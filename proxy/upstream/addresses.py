"""
Which addresses a link of a client's may lead to: those of the public internet, and no others.

An address is judged after its name was resolved, so that no spelling of a number (`127.1`, `0x7f.1`) and no name that
points inward helps. What carries an IPv4 address inside an IPv6 one is refused whole: Python calls
`64:ff9b::7f00:1` global, and a network may have a way from there to 127.0.0.1.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

_PUBLIC_V6 = ip_network("2000::/3")
"""All that has been given out; `::ffff:0:0/96`, `64:ff9b::/96`, ULA, link-local and multicast lie outside it."""

_NEVER = tuple(
    ip_network(block)
    for block in (
        "0.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT, and a cloud's metadata at 100.100.100.200
        "168.63.129.16/32",  # Azure's host agent, at a public address
        "192.0.0.0/24",  # 192.0.0.192 is a cloud's metadata, and called global by older Pythons
        "192.88.99.0/24",  # 6to4 relays
        "198.18.0.0/15",
        "224.0.0.0/3",  # multicast, reserved, broadcast
        "2001::/23",  # Teredo (an IPv4 address inside), benchmarks, ORCHID
        "2001:db8::/32",
        "2002::/16",  # 6to4: an IPv4 address inside
        "3fff::/20",
    )
)


def is_public(address: str) -> bool:
    """Whether this is the address of somebody on the internet. Anything that is no address is not."""
    try:
        found: IPv4Address | IPv6Address = ip_address(address)
    except ValueError:
        return False  # with a zone (`fe80::1%eth0`) too
    if isinstance(found, IPv6Address) and (found.scope_id is not None or found not in _PUBLIC_V6):
        return False
    return found.is_global and not found.is_multicast and not any(found in block for block in _NEVER)
