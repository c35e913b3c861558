"""
`python -m bench.timing`: whether the time of a refusal tells how near a guess came to a key, in this process alone.

Guesses of each kind go through `Gate.admit`, all mixed in random order, over a real database whose answers are
remembered. Kinds are compared by Welch's t over the means of their guesses (one guess differs from another of its kind
by where it lies in memory), without the slowest samples, which are the machine's noise. Beyond 4.5 there is a
difference; between two kinds that are the same there must be none.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import statistics
import sys
import tempfile
import time
from array import array
from pathlib import Path
from typing import NamedTuple

from proxy.admission import keys
from proxy.admission.gate import Gate
from proxy.admission.keyring import Keyring
from proxy.admission.limits import Limits
from proxy.config import Secret
from proxy.errors import GatewayError
from proxy.storage.embedded import EmbeddedPostgres
from proxy.storage.keys import insert_key, revoke_key
from proxy.storage.migrations import migrate
from proxy.storage.postgres import Database

EACH = 2000
"""Different guesses of each kind."""
PEPPER = b"p" * 32
MASTER = "q7Zt2mVx9Lk4Wn8Rb3Hd6Jc5Pf1Ys0Ga"
DIFFERENT = 4.5
FASTER_PART = 0.90

PAIRS = (
    ("unknown", "unknown again", "the same twice: the method itself"),
    ("unknown", "first character off", "an unknown key, and one near a real key"),
    ("unknown", "last character off", "an unknown key, and one near a real key"),
    ("first character off", "last character off", "how much of a real key is right"),
    ("mistyped", "real but mistyped", "a wrong checksum, and one of a real key"),
    ("junk", "master: first half", "junk, and what begins as the master key does"),
    ("master: first half", "master: second half", "what of the master key is right"),
    ("revoked", "revoked again", "the same twice"),
)
OPEN = (
    ("unknown", "mistyped", "said in the answer: a checksum that is wrong is no key"),
    ("unknown", "revoked", "said in the answer: it was revoked"),
    ("unknown", "real", "said in the answer: it is let in"),
)


def altered(text: str, place: int) -> str:
    """Another character of the alphabet at this place."""
    place %= len(text)
    other = keys.ALPHABET[(keys.ALPHABET.find(text[place]) + 7) % len(keys.ALPHABET)]
    return text[:place] + other + text[place + 1 :]


def near(key: str, place: int) -> str:
    """The key with one character off and a checksum that is right: what somebody who guesses would send."""
    body = altered(key[: -keys.CHECKSUM_CHARACTERS], place)
    return body + keys.checksum(body.encode())


async def guesses(database: Database, dice: random.Random) -> dict[str, list[bytes]]:
    """By kind; the real keys among them are in the database."""
    real, gone = ([keys.new_key() for _ in range(EACH)] for _ in range(2))
    for number, key in enumerate([*real, *gone]):
        row = await insert_key(
            database,
            name=f"key {number}",
            digest=keys.digest(key, PEPPER),
            pepper_id="",
            display=keys.display(key),
            models=["*"],
            rpm=None,
            expires_at=None,
            budget_limit_nano_usd=None,
            budget_window_seconds=None,
        )
        if key in gone:
            await revoke_key(database, row.id)
    start, half = len(keys.PREFIX), len(MASTER) // 2
    junks = [["".join(dice.choices(keys.ALPHABET, k=len(MASTER))) for _ in range(EACH)] for _ in range(3)]
    found = {
        "real": real,
        "revoked": gone,
        "revoked again": gone,
        "unknown": [keys.new_key() for _ in range(EACH)],
        "unknown again": [keys.new_key() for _ in range(EACH)],
        "first character off": [near(key, start) for key in real],
        "last character off": [near(key, -1) for key in real],
        "mistyped": [altered(keys.new_key(), -1) for _ in range(EACH)],
        "real but mistyped": [altered(key, -1) for key in real],
        "junk": junks[2],
        "master: first half": [MASTER[:half] + junk[half:] for junk in junks[0]],
        "master: second half": [junk[:half] + MASTER[half:] for junk in junks[1]],
    }
    return {kind: [text.encode() for text in texts] for kind, texts in found.items()}


class Taken(NamedTuple):
    """Samples of one kind: which guess it was, and its nanoseconds."""

    guess: array[int]
    nanoseconds: array[int]


def sample(gate: Gate, by_kind: dict[str, list[bytes]], count: int, dice: random.Random) -> dict[str, Taken]:
    """So many of each kind."""
    kinds = list(by_kind)
    order = array("b", [number for number in range(len(kinds)) for _ in range(count)])
    dice.shuffle(order)
    sent = [by_kind[kind] for kind in kinds]
    taken = [Taken(array("i"), array("q")) for _ in kinds]
    clock = time.perf_counter_ns
    gc.disable()
    try:
        for number in order:
            guess = dice.randrange(EACH)
            # fresh, as from a socket: what was made long ago lies in slower memory, and tells kinds apart by their age
            call = gate.admit([(b"authorization", b"Bearer " + sent[number][guess])])
            began = clock()
            try:
                call.send(None)
            except (StopIteration, GatewayError):
                taken[number].nanoseconds.append(clock() - began)
                taken[number].guess.append(guess)
            else:
                raise RuntimeError(f"{kinds[number]}: the answer was not at hand")
    finally:
        gc.enable()
    return dict(zip(kinds, taken, strict=True))


class Compared(NamedTuple):
    apart_ns: float
    """By how much the first is slower."""
    error_ns: float
    """The standard error of that."""

    @property
    def t(self) -> float:
        """Welch's."""
        return self.apart_ns / self.error_ns

    @property
    def differs(self) -> bool:
        return abs(self.t) > DIFFERENT


def compared(one: Taken, other: Taken) -> Compared:
    both = sorted([*one.nanoseconds, *other.nanoseconds])
    limit = both[int(FASTER_PART * len(both))]
    means = [_means(taken, limit) for taken in (one, other)]
    error = sum(statistics.variance(of_kind) / len(of_kind) for of_kind in means) ** 0.5
    return Compared(statistics.fmean(means[0]) - statistics.fmean(means[1]), error)


def _means(taken: Taken, limit: int) -> list[float]:
    """Of each guess, over what was faster than the limit."""
    by_guess: dict[int, list[int]] = {}
    for guess, nanoseconds in zip(taken.guess, taken.nanoseconds, strict=True):
        if nanoseconds < limit:
            by_guess.setdefault(guess, []).append(nanoseconds)
    return [statistics.fmean(samples) for samples in by_guess.values()]


async def measure(dsn: str, count: int, seed: int) -> dict[str, Taken]:
    await migrate(dsn)
    database = Database(dsn)
    await database.open()
    # A clock that stands: what is unknown stays known to be so, and nobody asks the database while we measure
    keyring = Keyring(database, PEPPER, clock=lambda: 0.0, poll_seconds=3600)
    try:
        dice = random.Random(seed)
        by_kind = await guesses(database, dice)
        await keyring.start()
        gate = Gate(keyring, Limits(), PEPPER, master_key=Secret(MASTER))
        texts = [text for of_kind in by_kind.values() for text in of_kind]
        dice.shuffle(texts)  # what is remembered of them lies in memory in this order
        for text in texts:
            try:
                await gate.admit([(b"authorization", b"Bearer " + text)])
            except GatewayError as error:
                if error.status != 401:
                    raise
        sample(gate, by_kind, max(1, count // 20), dice)
        return sample(gate, by_kind, count, dice)
    finally:
        await keyring.close()
        await database.close()


def report(taken: dict[str, Taken], count: int) -> bool:
    """Prints what differs; true if no pair differs that must not."""
    print(f"{count} samples of each kind, mixed; medians in nanoseconds:")
    print(", ".join(f"{kind} {statistics.median(one.nanoseconds):.0f}" for kind, one in taken.items()))
    print(f"\n{'':>42}{'apart ns':>10}{'would show':>12}{'t':>9}")
    alike = True
    for pairs, must_not in ((PAIRS, True), (OPEN, False)):
        for one, other, why in pairs:
            found = compared(taken[one], taken[other])
            alike = alike and not (found.differs and must_not)
            word = "no difference" if not found.differs else "A DIFFERENCE" if must_not else "different"
            figures = f"{found.apart_ns:>10.1f}{found.error_ns * DIFFERENT:>12.1f}{found.t:>9.2f}"
            print(f"{one + ' / ' + other:>42}{figures}  {word}: {why}")
    print("\nno guess takes longer for being nearer" if alike else "\nTHE TIME OF A REFUSAL TELLS SOMETHING")
    return alike


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.timing", description=__doc__)
    parser.add_argument("--samples", type=int, default=100_000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="timing-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)  # the embedded database server may run as another user
        server = EmbeddedPostgres(Path(name) / "home")
        dsn = server.start()
        try:
            taken = asyncio.run(measure(dsn, options.samples, options.seed))
        finally:
            server.stop()
    return 0 if report(taken, options.samples) else 1


if __name__ == "__main__":
    sys.exit(main())
