"""`strata alerts`: what was said, and a word to try the channels with."""

from __future__ import annotations

import argparse
import asyncio
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import msgspec

from proxy.commands import data
from proxy.commands.flags import Commands, Parser, Shared, config_of, home_of
from proxy.config import Alerts, Channel
from proxy.config.problems import Wrong, suggestion
from proxy.metering.alerts.channels import Message, NotSent, send
from proxy.metering.alerts.watch import client
from proxy.storage.alerts import last_alerts


def add_parser(commands: Commands[Parser], flags: Shared) -> None:
    group = commands.add_parser("alerts", help="what was said, and whether the channels work")
    actions = group.add_subparsers(metavar="ACTION", required=True, parser_class=Parser)
    listing = actions.add_parser("list", help="the last alerts, and who got them", parents=[*flags])
    listing.add_argument("--last", type=int, default=20, metavar="N", help="default: 20")
    listing.set_defaults(run=_list)
    testing = actions.add_parser("test", help="send a word to every channel, or to one", parents=[*flags])
    testing.add_argument("channel", metavar="CHANNEL", nargs="?")
    testing.set_defaults(run=_test)


def _list(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    wanted = min(max(args.last, 1), 1_000)
    rows = data.run(config_of(args, environ), home_of(args, environ), lambda db: last_alerts(db, wanted))
    told = [{**dict(row), "deliveries": msgspec.json.decode(row["deliveries"])} for row in rows]
    if args.json:
        print(msgspec.json.encode(told).decode())
        return 0
    for one in told:
        print(f"{one['at']:%Y-%m-%d %H:%M} UTC  {one['title']}")
        for delivery in one["deliveries"]:
            state = (
                "sent" if delivery["sent_at"] else f"not sent after {delivery['tries']}: {delivery['error'] or 'due'}"
            )
            print(f"                      {delivery['channel']}: {state}")
    if not told:
        print("Nothing has been said yet.")
    return 0


def _test(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    config = config_of(args, environ).alerts
    names = [channel.name for channel in config.channels]
    if not names:
        raise Wrong("alerts.channels in config.yaml is empty: there is nobody to send to.")
    if args.channel and args.channel not in names:
        raise Wrong(f'no channel is called "{args.channel}".{suggestion(args.channel, names)}')
    chosen = [channel for channel in config.channels if args.channel in (None, channel.name)]
    results = asyncio.run(_send_all(config, chosen))
    if args.json:
        print(msgspec.json.encode(results).decode())
    else:
        print("\n".join(f"{name}: {error or 'sent'}" for name, error in results.items()))
    return 1 if any(results.values()) else 0


async def _send_all(config: Alerts, channels: Sequence[Channel]) -> dict[str, str]:
    """By channel: why it was not sent, or nothing."""
    results = {}
    message = Message(
        id=str(uuid.uuid4()),
        rule="test",
        title="This is a test of an alert channel of Strata. Nothing is wrong.",
        subject="test",
        period="",
        threshold=0,
        at=datetime.now(UTC).isoformat(),
        detail={},
    )
    async with client() as http:
        for channel in channels:
            try:
                await send(channel, config.smtp, message, http)
                results[channel.name] = ""
            except NotSent as reason:
                results[channel.name] = f"not sent: {reason}"
    return results
