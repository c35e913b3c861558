"""
What the id of a model tells: its family, Claude's version, and what Converse lets it do. Converse takes the same
request for all models and then refuses what one of them cannot do, so the knowledge about models stands here, with its
source. An id that tells nothing (an imported model, an application inference profile) gets what all of them take.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

Version = tuple[int, int]

_VERSION = re.compile(r"claude-(?:[a-z]+-)*v?(\d)(?:[-.](\d{1,2}))?(?!\d)")
_VENDOR = re.compile(r"(?:^|[./])(anthropic|amazon|openai|mistral|deepseek|meta|cohere|qwen|google|nvidia|minimax"
                     r"|moonshotai|moonshot|zai|ai21|writer)\.([a-z0-9.:-]+)$")  # fmt: skip

HELD_TO_SCHEMAS = (
    "openai.", "qwen.", "google.gemma-3", "nvidia.nemotron", "minimax.", "moonshot", "deepseek.v3",
    "mistral.mistral-large-3", "mistral.ministral", "mistral.magistral",
)  # fmt: skip
"""
Open-weight models with structured output: https://docs.aws.amazon.com/bedrock/latest/userguide/structured-output.html
"""


@dataclass(frozen=True, slots=True)
class Model:
    id: str
    """`vendor.name`, without regions, accounts and profiles; "" where the id does not tell."""
    version: Version | None = None
    """Claude's; None for all others."""

    @property
    def claude(self) -> bool:
        return self.id.startswith("anthropic.")

    @property
    def nova(self) -> bool:
        return self.id.startswith("amazon.nova")

    @property
    def nova_2(self) -> bool:
        return self.id.startswith("amazon.nova-2")

    @property
    def gpt(self) -> bool:
        return self.id.startswith("openai.")

    def since(self, *version: int) -> bool:
        """A Claude of this version or newer; one that does not say its version is taken for a new one."""
        return self.claude and (self.version is None or self.version >= version)

    @property
    def holds_to_schemas(self) -> bool:
        """`outputConfig.textFormat`, and `strict` in tools. Claude from 4.7 on refuses both as extra inputs."""
        if self.claude:
            return self.since(4, 5) and self.version is not None and self.version <= (4, 6)
        return self.id.startswith(HELD_TO_SCHEMAS)

    @property
    def can_be_forced(self) -> bool:
        """`toolChoice` `any` and `tool`. The newest Claudes refuse both, whether they think or not."""
        if self.claude:
            return not self.always_thinks
        return self.nova or self.id.startswith("mistral.")

    @property
    def always_thinks(self) -> bool:
        """Thinking cannot be disabled, and so no tool be forced: Claude from 5.1 on, but for Haiku."""
        return self.version is not None and self.version >= (5, 1) and "haiku" not in self.id

    @property
    def caches(self) -> bool:
        """Cache points: https://docs.aws.amazon.com/bedrock/latest/userguide/prompt-caching.html"""
        return self.since(3, 5) or self.nova


@lru_cache(maxsize=512)
def model_of(name: str) -> Model:
    """By a model's id, an inference profile's (`us.…`, `global.…`) or an ARN that ends in one."""
    found = _VENDOR.search(name.lower())
    if not found:
        return Model("")
    version = _VERSION.search(found[2]) if found[1] == "anthropic" else None
    return Model(f"{found[1]}.{found[2]}", (int(version[1]), int(version[2] or 0)) if version else None)
