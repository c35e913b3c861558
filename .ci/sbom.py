"""
Prints a bill of materials of the Python it runs in: CycloneDX 1.6, each distribution with its version and licence.

What the system installed is not in it: `docker buildx build --sbom=true` adds that.
"""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import Distribution, distributions
from typing import Any


def component(distribution: Distribution) -> dict[str, Any]:
    about = distribution.metadata
    name = re.sub(r"[-_.]+", "-", about["Name"]).lower()
    licence = about.get("License-Expression") or next(
        (line.rpartition(" :: ")[2] for line in about.get_all("Classifier") or [] if line.startswith("License :: ")),
        (about.get("License") or "not stated").splitlines()[0],
    )
    return {
        "type": "library",
        "bom-ref": f"pkg:pypi/{name}@{distribution.version}",
        "name": name,
        "version": distribution.version,
        "purl": f"pkg:pypi/{name}@{distribution.version}",
        "licenses": [{"license": {"name": licence}}],
    }


def bill() -> dict[str, Any]:
    found = sorted((component(one) for one in distributions()), key=lambda one: str(one["name"]))
    subject = next(one for one in found if one["name"] == "strata-gateway")
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {**subject, "type": "application"}},
        "components": [one for one in found if one is not subject],
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(bill(), indent=1) + "\n")
