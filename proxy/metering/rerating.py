"""
Prices the rows of the past again, by the price book of today. Rows never change: what differs becomes an adjustment,
a row of its own, in the same hour and against the same budgets, so that every sum moves with it.

It may run as often as one likes, and twice at once: an adjustment is the difference to what the row costs with all
adjustments before it, and its number is taken only once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from types import MappingProxyType

import msgspec

from proxy.config import Deployment, Provider
from proxy.exchange import Usage
from proxy.metering.meter import MAX_COST_NANO_USD
from proxy.metering.price_lines import COLUMNS, Price, usage_in
from proxy.metering.prices import PriceBook
from proxy.storage import prices as sql
from proxy.storage.audit import note
from proxy.storage.ledger import LedgerRow, ship
from proxy.storage.postgres import Database
from proxy.storage.prices import STRIDE, Billed, Place

BATCH_ROWS = 200
MAX_NUMBER = 32_767
"""What a smallint holds; a row that was corrected hundreds of times stays as it is."""

_encode = msgspec.json.Encoder().encode
_NO_TOKENS: Mapping[str, int] = dict.fromkeys(COLUMNS.values(), 0)


class Change(msgspec.Struct):
    """What became of one model's rows of one day."""

    day: str
    model: str
    rows: int = 0
    changed: int = 0
    unpriced: int = 0
    """Rows whose price is unknown today, too; they stay as they are."""
    before_nano_usd: int = 0
    after_nano_usd: int = 0


class Rerating:
    """
    One run. `providers` and `deployments` (by name) are those of the configuration; a row of another one is priced by
    its name alone.
    """

    def __init__(
        self,
        book: PriceBook,
        providers: Mapping[str, Provider],
        deployments: Mapping[str, Deployment] = MappingProxyType({}),
    ) -> None:
        self.changes: dict[tuple[str, str], Change] = {}
        self._book = book
        self._providers = providers
        self._deployments = dict(deployments)

    async def run(
        self,
        db: Database,
        since: datetime,
        until: datetime,
        models: Sequence[str] = (),
        *,
        dry_run: bool = False,
        actor: str = "gateway",
    ) -> list[Change]:
        """By day and model. Raises GatewayFault; what was written by then stays, and is right."""
        if not dry_run:
            span = {"since": since.isoformat(), "until": until.isoformat(), "models": list(models)}
            async with db.transaction() as connection:
                await note(connection, actor=actor, action="prices.rerate", object="usage", after=span)
        place: Place | None = Place(since)
        while place is not None:
            billed, place = await sql.rows_to_rerate(db, place, until, models, BATCH_ROWS)
            adjustments = [row for one in billed if (row := self._adjust(one)) is not None]
            if not dry_run:
                await self._book.write_new_lines(db)
                await ship(db, adjustments)
        return [self.changes[key] for key in sorted(self.changes)]

    def _adjust(self, billed: Billed) -> LedgerRow | None:
        row = billed.row
        price = self._price(row, usage_in(row))
        after = min(price.nano_usd, MAX_COST_NANO_USD)
        number = row.attempt + STRIDE * billed.corrections
        day = f"{billed.at:%Y-%m-%d}"
        change = self.changes.setdefault((day, row.model), Change(day, row.model))
        change.rows += 1
        change.before_nano_usd += billed.nano_usd
        if price.state == "unknown" or row.attempt >= STRIDE or number > MAX_NUMBER:
            change.unpriced += price.state == "unknown"
            after = billed.nano_usd
        change.after_nano_usd += after
        if after == billed.nano_usd:
            return None
        change.changed += 1
        note = {"adjusts": row.attempt, "cost_nano_usd": billed.nano_usd, "price_source": row.price_source}
        return msgspec.structs.replace(
            row,
            attempt=-number,
            source="adjustment",
            cost_nano_usd=after - billed.nano_usd,
            price_state=price.state,
            price_source=price.source,
            usage_raw=_encode(note).decode(),
            **_NO_TOKENS,
        )

    def _price(self, row: LedgerRow, usage: Usage) -> Price:
        deployment = self._deployments.get(row.deployment)
        if deployment is None:
            provider = self._providers.get(row.provider) or Provider(name=row.provider, api_base="")
            model = row.deployment.partition("/")[2]
            deployment = self._deployments[row.deployment] = Deployment(provider=provider, model=model)
        return self._book.cost(deployment, usage, row.started_at_ms, row.service_tier)
