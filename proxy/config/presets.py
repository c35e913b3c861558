"""
Providers known by name: data, so that `providers: {groq: }` is enough. A name that is not here needs `type` and
`api_base` in the file. To add one: a line here, and its shape in tests/providers/test_presets.py.

What each does differently is its `quirks`, by its own documentation, which is linked, or as its recorded answers show.
Where nothing is said, a parameter goes through as it is and the provider's own refusal names it.

`bills_after_abort` follows OpenRouter's published table of which providers stop billing when a stream is aborted
(openrouter.ai/docs/api-reference/streaming, a stored copy looked up in November 2026). It is one third party's word,
not the providers' own; where it is silent the cautious answer is True, and the file can say otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from proxy.config import Provider

NONE: Mapping[str, str] = MappingProxyType({})


class Preset(NamedTuple):
    api_base: str
    """May name options in braces, and is off without them. "": the file has to say it."""
    variable: str | None
    """
    The environment variable that usually holds the key, or several with spaces between, of which the first that is set
    counts; None: it needs none, or its secrets say how.
    """
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
    documents: tuple[str, ...] = ()
    """Those of its secrets that are whole files, or the names of files."""
    regions: Mapping[str, str] = NONE
    """Regions whose address is not made like that of the others."""
    needs_key: bool = True
    """False: without a key something else may authorise, a token for instance."""

    @property
    def variables(self) -> tuple[str, ...]:
        """Those that may hold the key, the usual one first."""
        return tuple((self.variable or "").split())


ROLES = {"developer": "system"}
"""Only OpenAI's own models tell the two apart."""
OLD_LIMIT = {"max_completion_tokens": "max_tokens"}
"""For those that know the limit by its old name alone, and would not hold to the new one."""
OPEN = {"roles": ROLES, "rename": OLD_LIMIT, "normalise": True}
"""Servers and hosts of open models: what a client gets depends on the model behind, so it is put in order here."""
EFFORTS = {"minimal": "low", "xhigh": "high", "max": "high"}

PRESETS: dict[str, Preset] = {
    "openai": Preset("https://api.openai.com/v1", "OPENAI_API_KEY", bills_after_abort=False),
    "anthropic": Preset(
        "https://api.anthropic.com", "ANTHROPIC_API_KEY", api="anthropic", bills_after_abort=False,
        quirks={"forward": ("anthropic-beta",)},
    ),
    "gemini": Preset(
        "https://generativelanguage.googleapis.com/v1beta", "GEMINI_API_KEY GOOGLE_API_KEY", api="gemini"
    ),
    "azure": Preset(
        "{endpoint}", "AZURE_OPENAI_API_KEY", api="azure", needs_key=False,
        options={
            "endpoint": "AZURE_OPENAI_ENDPOINT", "api_version": "OPENAI_API_VERSION", "tenant_id": "AZURE_TENANT_ID",
            "client_id": "AZURE_CLIENT_ID", "federated_token_file": "AZURE_FEDERATED_TOKEN_FILE",
            "authority": "AZURE_AUTHORITY_HOST", "scope": "",
        },
        secrets={"client_secret": "AZURE_CLIENT_SECRET"},
    ),
    "vertex": Preset(
        "https://{region}-aiplatform.googleapis.com",
        None,
        api="vertex",
        options={"project": "GOOGLE_CLOUD_PROJECT", "region": "GOOGLE_CLOUD_LOCATION"},
        secrets={"access_token": "", "credentials": "GOOGLE_APPLICATION_CREDENTIALS"},
        documents=("credentials",),
        needs=("project", "region"),
        regions={
            "global": "https://aiplatform.googleapis.com",
            "us": "https://aiplatform.us.rep.googleapis.com",
            "eu": "https://aiplatform.eu.rep.googleapis.com",
        },
    ),
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
    # console.groq.com/docs/openai names what it refuses; `reasoning` is its word both ways.
    "groq": Preset("https://api.groq.com/openai/v1", "GROQ_API_KEY", quirks={
        "roles": ROLES, "normalise": True, "only": {"n": [1]}, "values": {"reasoning_effort": EFFORTS},
        "thoughts": "reasoning", "drop": ["logprobs", "top_logprobs", "logit_bias", "messages[].name"],
    }),
    # api-docs.deepseek.com: /guides/thinking_mode (a tool loop goes on only with the thoughts before it),
    # /guides/json_mode, /guides/tool_calls (strict only on its beta address), /api/create-chat-completion. Its cache is
    # counted in usage.prompt_cache_hit_tokens, and a finish reason insufficient_system_resource is its own.
    "deepseek": Preset("https://api.deepseek.com/v1", "DEEPSEEK_API_KEY", bills_after_abort=False, quirks={
        "roles": ROLES, "rename": OLD_LIMIT, "normalise": True, "only": {"n": [1]}, "thoughts": "reasoning_content",
        "values": {"reasoning_effort": {
            "none": {"thinking": {"type": "disabled"}}, "minimal": "low", "medium": "high", "xhigh": "max",
        }},
        "response_format": ["json_object"],
        "drop": ["tools[].function.strict", "parallel_tool_calls", "seed", "logit_bias", "service_tier", "metadata",
                 "store", "prediction", "verbosity", "web_search_options"],
    }),
    # docs.x.ai: usage leaves reasoning out of completion_tokens, which `openai_usage` finds by the total.
    "xai": Preset("https://api.x.ai/v1", "XAI_API_KEY", bills_after_abort=False, quirks={
        "roles": ROLES, "values": {"reasoning_effort": EFFORTS}, "drop": ["logit_bias"],
    }),
    # openrouter.ai/docs: role and finish reason come twice, reasoning is called `reasoning`.
    # Its list of models is public; openrouter.ai/docs/api/api-reference/api-keys/get-current-key asks for a key.
    "openrouter": Preset(
        "https://openrouter.ai/api/v1", "OPENROUTER_API_KEY", quirks={"normalise": True, "key_check": "/key"}
    ),
    "together": Preset("https://api.together.xyz/v1", "TOGETHER_API_KEY", bills_after_abort=False, quirks=OPEN),
    "fireworks": Preset(
        "https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY", bills_after_abort=False, quirks=OPEN
    ),
    "mistral": Preset("https://api.mistral.ai/v1", "MISTRAL_API_KEY", api="mistral"),
    "cohere": Preset("https://api.cohere.com", "COHERE_API_KEY", api="cohere"),
    # inference-docs.cerebras.ai/resources/openai names what it refuses. Some of its streams never say [DONE].
    "cerebras": Preset("https://api.cerebras.ai/v1", "CEREBRAS_API_KEY", quirks={
        "roles": ROLES, "normalise": True, "only": {"n": [1]}, "values": {"reasoning_effort": EFFORTS},
        "thoughts": "reasoning",
        "drop": ["frequency_penalty", "presence_penalty", "logit_bias", "parallel_tool_calls", "service_tier"],
    }),
    # docs.perplexity.ai: usage is cumulative on every chunk, the role and the citations are repeated, the last chunk's
    # object is chat.completion.done. It has no tools, and would pass over them in silence.
    "perplexity": Preset("https://api.perplexity.ai", "PERPLEXITY_API_KEY", quirks={
        "roles": ROLES, "rename": OLD_LIMIT, "normalise": True, "stream_options": False, "only": {"n": [1]},
        "response_format": ["json_schema", "regex"], "values": {"reasoning_effort": EFFORTS},
        "drop": ["tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "stop", "seed",
                 "logit_bias", "logprobs", "top_logprobs", "service_tier"],
    }),
    # docs.z.ai/api-reference/llm/chat-completion; finish reasons sensitive and network_error are its own.
    "zai": Preset("https://api.z.ai/api/paas/v4", "ZAI_API_KEY", quirks={
        "roles": ROLES, "rename": OLD_LIMIT, "normalise": True, "only": {"n": [1]}, "thoughts": "reasoning_content",
        "values": {"reasoning_effort": {"none": {"thinking": {"type": "disabled"}}, "minimal": "low", "xhigh": "max"}},
        "response_format": ["json_object"],
        "drop": ["frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "top_logprobs", "seed",
                 "messages[].name", "tools[].function.strict", "parallel_tool_calls"],
    }),
    # A router: usage, reasoning and the end of a stream are those of whoever serves the model.
    "huggingface": Preset("https://router.huggingface.co/v1", "HF_TOKEN", quirks=OPEN),
    "nvidia": Preset("https://integrate.api.nvidia.com/v1", "NVIDIA_API_KEY", quirks=OPEN),
    "nebius": Preset("https://api.tokenfactory.nebius.com/v1", "NEBIUS_API_KEY", quirks=OPEN),
    "sambanova": Preset("https://api.sambanova.ai/v1", "SAMBANOVA_API_KEY", quirks=OPEN),
    # docs.github.com/en/rest/models/inference; a token that may only read models, so not the usual GITHUB_TOKEN
    "github": Preset("https://models.github.ai/inference", "GITHUB_MODELS_TOKEN"),
    # docs.databricks.com/aws/en/machine-learning/model-serving/score-foundation-models
    "databricks": Preset(
        "{host}/serving-endpoints", "DATABRICKS_TOKEN", options={"host": "DATABRICKS_HOST"},
        quirks={"roles": ROLES, "rename": OLD_LIMIT, "normalise": True},
    ),
    # docs.snowflake.com/en/user-guide/snowflake-cortex/cortex-rest-api; the key is a programmatic access token
    "snowflake": Preset(
        "https://{account}.snowflakecomputing.com/api/v2/cortex/v1", "SNOWFLAKE_PAT",
        options={"account": "SNOWFLAKE_ACCOUNT"},
        quirks={"roles": ROLES, "rename": {"max_tokens": "max_completion_tokens"}, "normalise": True},
    ),
    # On one's own machine nobody bills, and hanging up frees the processor.
    # docs.ollama.com/api/openai-compatibility lists what it takes; the rest it would pass over in silence.
    "ollama": Preset("http://127.0.0.1:11434/v1", None, bills_after_abort=False, quirks={
        **OPEN, "only": {"n": [1]},
        "drop": ["logit_bias", "parallel_tool_calls", "tools[].function.strict"],
    }),
    # github.com/lmstudio-ai/lmstudio-bug-tracker/issues/189: json_object is refused
    "lm_studio": Preset("http://127.0.0.1:1234/v1", None, bills_after_abort=False, quirks={
        **OPEN, "response_format": ["json_schema"],
    }),
    "vllm": Preset("http://127.0.0.1:8000/v1", None, bills_after_abort=False, quirks={
        "roles": ROLES, "normalise": True,
    }),
    "llama_cpp": Preset("http://127.0.0.1:8080/v1", None, bills_after_abort=False, quirks=OPEN),
}  # fmt: skip

GENAI_NAMES = {
    "azure": "azure.ai.openai", "bedrock": "aws.bedrock", "gemini": "gcp.gemini", "mistral": "mistral_ai",
    "vertex": "gcp.vertex_ai", "xai": "x_ai",
}  # fmt: skip
"""What OpenTelemetry's conventions for generative AI call a provider, where they do not use its plain name."""


def genai_name(provider: Provider) -> str:
    """Its `gen_ai.provider.name`: by its API, or by its own name if it only speaks OpenAI's."""
    name = provider.name if provider.api == "openai" else provider.api
    return GENAI_NAMES.get(name, name)


SIM = "sim"
SIM_API_BASE = "http://sim.invalid/v1"
"""The simulated provider is in this process; the app puts its real address here at the start."""
SIM_MODELS = ("chat", "echo", "tools", "json", "reasoning", "embed", "slow", "flaky", "limited", "cut", "long")
SIM_QUIRKS: dict[str, object] = {"forward": ("x-strata-sim",)}
"""A client may ask the simulated provider for a fault; no other provider sees the header."""
