"""
What a model's name says: its generation, and what that generation takes. The sources are the pages thinking,
structured-output, function-calling and file-input-methods under https://ai.google.dev/gemini-api/docs.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from proxy.errors import CallerError

Version = tuple[int, int]

NEWEST: Version = (9, 9)
"""What `gemini-flash-latest` and its like are taken for."""

_NAME = re.compile(r"(?:models/|tunedModels/|endpoints/)?[A-Za-z0-9][A-Za-z0-9._@-]{0,127}")
_VERSION = re.compile(r"gemini-(?:live-)?(\d)(?:\.(\d))?(?=[-@]|$)")


class Model(NamedTuple):
    name: str
    version: Version | None
    """None for names that do not tell, which get what current models take."""
    cloud: bool = False
    """On Google Cloud (Vertex), whose fields differ in places."""

    @property
    def takes_json_schema(self) -> bool:
        """Before 2.5 only a subset of OpenAPI's schemas."""
        return self.version is None or self.version >= (2, 5)

    @property
    def formats_beside_tools(self) -> bool:
        """Before Gemini 3, function calling and a JSON answer exclude each other."""
        return self.version is not None and self.version >= (3, 0)

    @property
    def signs_calls(self) -> bool:
        """From Gemini 3 on a call comes back with its signature, or the request is refused."""
        return self.version is not None and self.version >= (3, 0)

    @property
    def fetches_links(self) -> bool:
        """Whether Google itself fetches an https address that is named in a message."""
        return self.cloud or self.version is None or self.version >= (2, 5)

    @property
    def levels(self) -> tuple[str, ...]:
        """The thinking levels it has, least first; none where thinking has a budget in tokens."""
        if self.version is None or self.version < (3, 0):
            return ()
        if "flash" in self.name:
            return ("minimal", "low", "medium", "high") if self.version < (3, 7) else ("low", "medium", "high")
        return ("low", "high") if self.version < (3, 1) else ("low", "medium", "high")


def read_model(name: str, *, cloud: bool = False) -> Model:
    """Raises CallerError for a name that could lead anywhere but to a model, for it stands in the address."""
    if not _NAME.fullmatch(name):
        raise CallerError(
            f"{name!r:.80} cannot be the name of a Gemini model: letters, digits, dots and dashes only.",
            status=404,
            code="model_not_found",
            error_type="caller_model_not_found",
            param="model",
        )
    return Model(name, version_of(name), cloud)


def version_of(name: str) -> Version | None:
    """(2, 5) for gemini-2.5-flash; None for names that do not tell."""
    found = _VERSION.search(name)
    if found:
        return int(found[1]), int(found[2] or 0)
    return NEWEST if re.search(r"gemini-.*latest$", name) else None
