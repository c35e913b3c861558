"""
Providers known by name: data, so that `providers: {groq: }` is enough. A name that is not here needs `type` and
`api_base` in the file.

`bills_after_abort` follows OpenRouter's published table of which providers stop billing when a stream is aborted
(openrouter.ai/docs/api-reference/streaming, a stored copy looked up in November 2026). It is one third party's word,
not the providers' own; where it is silent the cautious answer is True, and the file can say otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

NONE: Mapping[str, str] = MappingProxyType({})


class Preset(NamedTuple):
    api_base: str
    """May name options in braces. "": the file has to say it."""
    variable: str | None
    """The environment variable that usually holds the key; None: it needs none, or its secrets say how."""
    api: str = "openai"
    bills_after_abort: bool = True
    options: Mapping[str, str] = NONE
    """Settings that it takes beside its address, each with the variables that usually hold it: "A", "A B" or ""."""
    secrets: Mapping[str, str] = NONE
    """The same for credentials that are not a plain key."""
    needs: tuple[str, ...] = ()
    """Options and secrets without which it is off."""
    quirks: Mapping[str, object] = NONE
    """How it differs from its API; see `proxy.providers.quirks`. The file's own come on top."""
    also: tuple[str, ...] = ()
    """Other variables that may hold the key."""
    regions: Mapping[str, str] = NONE
    """Regions whose address is not made like that of the others."""

    @property
    def variables(self) -> tuple[str, ...]:
        """Those that may hold the key, the usual one first."""
        return (self.variable, *self.also) if self.variable else ()


PRESETS: dict[str, Preset] = {
    "openai": Preset("https://api.openai.com/v1", "OPENAI_API_KEY", bills_after_abort=False),
    "anthropic": Preset("https://api.anthropic.com", "ANTHROPIC_API_KEY", api="anthropic", bills_after_abort=False),
    "gemini": Preset(
        "https://generativelanguage.googleapis.com/v1beta", "GEMINI_API_KEY", api="gemini", also=("GOOGLE_API_KEY",)
    ),
    "vertex": Preset(
        "https://{region}-aiplatform.googleapis.com",
        None,
        api="vertex",
        options={"project": "GOOGLE_CLOUD_PROJECT", "region": "GOOGLE_CLOUD_LOCATION"},
        secrets={"access_token": "", "credentials": "GOOGLE_APPLICATION_CREDENTIALS"},
        needs=("project", "region"),
        regions={
            "global": "https://aiplatform.googleapis.com",
            "us": "https://aiplatform.us.rep.googleapis.com",
            "eu": "https://aiplatform.eu.rep.googleapis.com",
        },
    ),
    "groq": Preset("https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    "deepseek": Preset("https://api.deepseek.com/v1", "DEEPSEEK_API_KEY", bills_after_abort=False),
    "xai": Preset("https://api.x.ai/v1", "XAI_API_KEY", bills_after_abort=False),
    "openrouter": Preset("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    "together": Preset("https://api.together.xyz/v1", "TOGETHER_API_KEY", bills_after_abort=False),
    "fireworks": Preset("https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY", bills_after_abort=False),
    "mistral": Preset("https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
    "cerebras": Preset("https://api.cerebras.ai/v1", "CEREBRAS_API_KEY"),
    "perplexity": Preset("https://api.perplexity.ai", "PERPLEXITY_API_KEY"),
    # A bearer key, or a key pair; without either, what the machine has: see `proxy.upstream.credentials.aws`.
    "bedrock": Preset(
        "https://bedrock-runtime.{region}.amazonaws.com",
        None,
        api="bedrock",
        options={"region": "AWS_REGION AWS_DEFAULT_REGION", "profile": ""},
        secrets={
            "api_key": "AWS_BEARER_TOKEN_BEDROCK",
            "access_key_id": "AWS_ACCESS_KEY_ID",
            "secret_access_key": "AWS_SECRET_ACCESS_KEY",
            "session_token": "AWS_SESSION_TOKEN",
        },
        needs=("region",),
    ),
    # On one's own machine nobody bills, and hanging up frees the processor.
    "ollama": Preset("http://127.0.0.1:11434/v1", None, bills_after_abort=False),
}

SIM = "sim"
SIM_API_BASE = "http://sim.invalid/v1"
"""The simulated provider is in this process; the app puts its real address here at the start."""
SIM_MODELS = ("chat", "echo", "tools", "json", "reasoning", "embed", "slow", "flaky", "limited", "cut", "long")
SIM_QUIRKS: dict[str, object] = {"forward": ("x-strata-sim",)}
"""A client may ask the simulated provider for a fault; no other provider sees the header."""
