"""
Secrets that occur nowhere else, and the search for them: as they are, and in every form in which something may
have written them down. They look like words on purpose: no pattern would take them for keys.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import quote

CANARIES = {
    "master key": "kingfisher/Lapwing+Osprey=Dunlin.Wigeon~Garganey",
    "old master key": "bullfinch/Siskin+Brambling=Redpoll.Hawfinch~Twite",
    "operator's key": "pelican-swordfish-operators",
    "operator's key of the environment": "heron:stickleback:environment",
    "header of a provider": "gannet mackerel header",
    "key in a query": "avocet-lugworm-query",
    "saved provider key": "bittern-eel-saved-by-somebody",
    "refused provider key": "grebe-minnow-refused-once",
    "password of the database": "cormorant&herring!database",
    "password of redis": "puffin_sandeel_redis",
    "aws secret": "merganser/trout+awssecretkey",
    "aws session token": "goosander/grayling+awssession",
    "client secret of entra": "smew~roach~entraclient",
    "secret of the webhook": "tern.sprat.webhooksecret",
    "address of slack": "skua-capelin-slackaddress",
    "password of smtp": "petrel-krill-smtppassword",
    "token of the metrics": "dipper-caddis-metricstoken",
    "key of the collector": "ouzel-mayfly-collectorkey",
    "key of the file": "sk-strata-curlew-ragworm-static",
    "junk credential": "jackdaw-worm-junkcredential",
    "junk cookie": "magpie-beetle-junkcookie",
    "prompt": "nightjar moth prompt of somebody",
    "answer": "swift gnat answer of a model",
}


class Hit(NamedTuple):
    canary: str
    form: str
    place: str


def forms(value: str) -> dict[str, bytes]:
    raw = value.encode()
    found = {
        "as it is": raw,
        "the other case": value.swapcase().encode(),
        "upper case": value.upper().encode(),
        "lower case": value.lower().encode(),
        "backwards": raw[::-1],
        "quoted": quote(value, safe="").encode(),
        "quoted, lower": quote(value, safe="").lower().encode(),
        "hex": raw.hex().encode(),
        "HEX": raw.hex().upper().encode(),
        "UTF-16": value.encode("utf-16-le"),
        "escaped": value.replace("/", "\\/").encode(),
        "half": raw[: len(raw) // 2 + 2],
        "other half": raw[len(raw) // 2 - 2 :],
    }
    for shift in range(3):  # what stands before it in the encoded text moves it by up to two bytes
        encoded = base64.b64encode(bytes(shift) + raw)
        inside = encoded[4 if shift else 0 : -4]
        found[f"base64, {shift}"] = inside
        found[f"base64 for URLs, {shift}"] = inside.translate(bytes.maketrans(b"+/", b"-_"))
    return found


def hits(places: Mapping[str, bytes], canaries: Mapping[str, str] = CANARIES) -> list[Hit]:
    """Every canary that is in one of these places, in every form in which it is there."""
    return [
        Hit(name, form, place)
        for name, value in canaries.items()
        for form, needle in forms(value).items()
        for place, data in places.items()
        if needle in data
    ]
