"""
Where an answer has it from: Google's grounding and citations as OpenAI's `annotations`.

A segment's place is in bytes of the text, OpenAI's in characters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proxy.providers import Json
from proxy.providers.gemini.models import version_of


def annotations_of(grounding: Mapping[str, Any], citations: list[Any], text: str) -> list[Json]:
    """One for each source of each segment."""
    chunks = grounding.get("groundingChunks") or ()
    annotations = []
    for support in grounding.get("groundingSupports") or ():
        start, end = _place(support.get("segment") or {}, text)
        for number in support.get("groundingChunkIndices") or ():
            source = _source(chunks[number]) if number < len(chunks) else {}
            if source.get("uri"):
                annotations.append(_annotation(source["uri"], source.get("title"), start, end))
    for citation in citations:
        if citation.get("uri"):
            start, end = _place(citation, text)
            annotations.append(_annotation(citation["uri"], citation.get("title"), start, end))
    return annotations


def searches_of(grounding: Mapping[str, Any], model: str | None) -> int:
    """
    The searches that are billed: from Gemini 3 on each query, before it each answer that rests on any.
    https://ai.google.dev/gemini-api/docs/google-search#pricing
    """
    queries = [query for query in grounding.get("webSearchQueries") or () if query]
    version = version_of(model) if model else None
    return len(queries) if version is not None and version >= (3, 0) else min(len(queries), 1)


def _source(chunk: Mapping[str, Any]) -> Mapping[str, Any]:
    for kind in ("web", "retrievedContext", "maps"):
        found = chunk.get(kind)
        if isinstance(found, dict):
            return found
    return {}


def _annotation(url: str, title: Any, start: int, end: int) -> Json:
    cited = {"url": url, "title": title or "", "start_index": start, "end_index": end}
    return {"type": "url_citation", "url_citation": cited}


def _place(segment: Mapping[str, Any], text: str) -> tuple[int, int]:
    raw = text.encode()
    start = len(raw[: segment.get("startIndex") or 0].decode(errors="ignore"))
    end = len(raw[: segment.get("endIndex") or 0].decode(errors="ignore"))
    said = segment.get("text")
    if said and text[start:end] != said:
        # the place is in one part of several; the words say which
        found = text.find(said)
        return (found, found + len(said)) if found >= 0 else (start, end)
    return start, end
