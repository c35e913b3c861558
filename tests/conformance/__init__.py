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
}
"""What speaks, and a model of the test gateway's that makes sense of tools and schemas there."""

CLEVER = [name for name in MODELS.values() if not name.startswith("sim/")]
