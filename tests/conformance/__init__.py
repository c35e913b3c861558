"""
Other people's clients against a running gateway, with each API behind it: whatever speaks there, a client that knows
only OpenAI's API finds what it expects.
"""

from __future__ import annotations

MODELS = {
    "sim": "sim/tools",
    "openai": "gpt-clever",
    "anthropic": "claude-clever",
    "anthropic, before it knew schemas": "claude-3-5-clever",
    "bedrock": "us.anthropic.claude-haiku-4-5-20251001-v1:0",
    "bedrock, before it knew schemas": "anthropic.claude-3-5-sonnet-20240620-v1:0",
    "cohere": "command-clever",
    "mistral": "mistral-clever",
    "gemini": "gemini-clever",
    "gemini, with signatures": "gemini-3-clever",
    "gemini, before it knew schemas": "gemini-2.0-clever",
    "vertex": "vertex-gemini-3-clever",
    "vertex, claude": "vertex-claude-clever",
}
"""What speaks, and a model of the test gateway's that makes sense of tools and schemas there."""

CLEVER = [name for name in MODELS.values() if not name.startswith("sim/")]

_ALL_LIMITS = ("remaining-requests", "reset-requests", "remaining-tokens")
UNTOLD_LIMITS = {
    MODELS["sim"]: _ALL_LIMITS,
    MODELS["bedrock"]: _ALL_LIMITS,
    MODELS["bedrock, before it knew schemas"]: _ALL_LIMITS,
    MODELS["cohere"]: _ALL_LIMITS,
    MODELS["mistral"]: ("reset-requests",),
    MODELS["gemini"]: _ALL_LIMITS,
    MODELS["gemini, with signatures"]: _ALL_LIMITS,
    MODELS["gemini, before it knew schemas"]: _ALL_LIMITS,
    MODELS["vertex"]: _ALL_LIMITS,
}
"""By model: the rate-limit headers without a counterpart in what its provider tells."""

REFUSED = {
    MODELS["cohere"]: {
        # docs.cohere.com/v2/reference/chat: a user says text and image_url, a tool says text and documents of text
        "test_pdf_inputs": "Cohere takes no content of type 'file' here: text and image_url do",
        "test_image_tool_message": "Cohere takes no content of type 'image_url' here: only text does",
    },
}
"""By model: LangChain's tests of what its provider cannot do, and the words in which the gateway says so."""
