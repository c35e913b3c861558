"""
The content of Mistral's answers, which is text or a list of chunks: thinking, text, references into what was given.
docs.mistral.ai/capabilities/reasoning and …/capabilities/citations
"""

from __future__ import annotations

from typing import Any

from proxy.providers import Json

REASONING_FORMAT = "mistral-v1"
"""Marks thoughts that may go back to Mistral, in OpenRouter's `reasoning_details`."""


class ContentReader:
    """Reads the content of a message, or piece by piece of its deltas: it numbers the thoughts."""

    def __init__(self) -> None:
        self._thoughts = 0
        self._thinking = False

    def read(self, message: Json) -> Json:
        """The message or delta with text for content, and thoughts and references beside it."""
        content = message.get("content")
        if not isinstance(content, list):
            if content:
                self._thinking = False
            return message
        text, thoughts = "", ""
        details: list[Json] = []
        references: list[Json] = []
        for chunk in content:
            match chunk.get("type"):
                case "text":
                    self._thinking = False
                    text += chunk.get("text") or ""
                case "thinking":
                    thought = _text(chunk.get("thinking"))
                    thoughts += thought
                    details.append(self._detail(thought, chunk.get("signature")))
                case "reference":
                    references.append(chunk)
        extras = {"reasoning_content": thoughts, "reasoning_details": details, "citations": references}
        return {**message, "content": text or None, **{name: value for name, value in extras.items() if value}}

    def _detail(self, text: str, signature: Any) -> Json:
        """Fragments of one thought share its number."""
        if not self._thinking:
            self._thinking = True
            self._thoughts += 1
        detail: Json = {"type": "reasoning.text", "text": text}
        if signature:
            detail["signature"] = signature
        return {**detail, "format": REASONING_FORMAT, "index": self._thoughts - 1}


def _text(parts: Any) -> str:
    if isinstance(parts, str):
        return parts
    return "".join(part.get("text") or "" for part in parts or () if isinstance(part, dict))
