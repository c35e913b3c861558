"""
An OpenAI chat request as a Messages request. Every parameter is mapped, refused, or left out with a notice; a parameter
that nobody here knows is left out with a notice too, because Anthropic refuses what it does not know.
"""

from __future__ import annotations

import re
from typing import Any

from proxy.errors import CallerError
from proxy.providers import ChatRequest, Json, Target, UpstreamRequest, quirks
from proxy.providers.anthropic.content import Note
from proxy.providers.anthropic.formats import encode_format, force_answer
from proxy.providers.anthropic.messages import Conversation, encode_messages
from proxy.providers.anthropic.reasoning import Version, encode_reasoning, version_of
from proxy.providers.anthropic.tools import encode_tools

API_VERSION = "2023-06-01"
MAX_CACHE_MARKS = 4
MAX_USER_ID_CHARACTERS = 256

NATIVE = ("container", "context_management", "mcp_servers")
"""Anthropic's own parameters that go through as they are."""
PRICED_APART = frozenset({"fallbacks", "inference_geo", "speed"})
"""Those that change the price of the answer's tokens: nothing could be reserved for them, nor said what they cost."""

MEANT = frozenset(
    {"model", "messages", "stream", "stream_options", "strata", "max_tokens", "max_completion_tokens", "temperature",
     "top_p", "top_k", "stop", "n", "tools", "tool_choice", "parallel_tool_calls", "response_format",
     "reasoning_effort", "thinking", "user", "safety_identifier", "service_tier", "modalities", "cache_control",
     "functions", "function_call", "web_search_options", "metadata", "betas", *NATIVE}
)  # fmt: skip
"""Parameters that have code here."""

HARMLESS: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,), "presence_penalty": (0,), "logprobs": (False,), "logit_bias": ({},), "store": (False,),
    "top_logprobs": (0,), "verbosity": ("medium",),
}  # fmt: skip
"""Values of parameters without a counterpart that change nothing, and so need no notice. Null never does."""

_BETA = re.compile(r"[A-Za-z0-9._-]{1,100}")

SERVICE_TIERS = {"auto": "auto", "priority": "auto", "default": "standard_only", "standard_only": "standard_only"}


def encode_chat(chat: ChatRequest, target: Target) -> UpstreamRequest:
    """Raises CallerError, with the path of the parameter, for what Anthropic cannot do and no notice could excuse."""
    _refuse_impossible(chat)
    talk = encode_messages(chat["messages"])
    note = talk.notice
    version = version_of(target.model)
    body: Json = {"model": target.model, "max_tokens": _max_tokens(chat, target, version, note)}
    if chat.get("stream"):
        body["stream"] = True
    schema = encode_format(body, chat, version, talk)
    if talk.system:
        marked = any("cache_control" in block for block in talk.system)
        body["system"] = talk.system if marked else "\n".join(block["text"] for block in talk.system)
    body["messages"] = talk.turns
    encode_tools(body, chat, version, note)
    if schema is not None:
        force_answer(body, chat, schema)
    _encode_sampling(body, chat, version, note)
    _encode_account(body, chat, note)
    encode_reasoning(body, chat, version, note)
    if isinstance(chat.get("cache_control"), dict):
        body["cache_control"] = chat["cache_control"]
    _limit_marks(body, talk)
    body |= {name: chat[name] for name in NATIVE if chat.get(name) is not None}
    for name, value in chat.items():
        if name in PRICED_APART:
            note(name, f"With {name} the tokens would have another price than the gateway knows; it was left out.")
        elif name not in MEANT and value is not None and value not in HARMLESS.get(name, ()):
            note(name, f"Anthropic has no {name}; it was left out.")
    body, more = quirks.apply(body, target.quirks)
    headers = {"anthropic-version": API_VERSION}
    if chat.get("betas"):
        headers["anthropic-beta"] = _betas(chat["betas"])
    return UpstreamRequest("/v1/messages", body, headers, (*talk.notices, *more))


def _refuse_impossible(chat: ChatRequest) -> None:
    if (chat.get("n") or 1) > 1:
        raise CallerError("Anthropic gives one answer to a request: leave n out, or send it n times.", param="n")
    if any(kind != "text" for kind in chat.get("modalities") or ()):
        raise CallerError("Anthropic answers in text only; leave modalities out.", param="modalities")
    for name in ("functions", "function_call"):
        if chat.get(name):
            raise CallerError(f"{name} is the old form of tools; use tools and tool_choice.", param=name)


def _max_tokens(chat: ChatRequest, target: Target, version: Version | None, note: Note) -> int:
    """Anthropic demands a limit. Without one from the caller it is the model's own maximum, so that nothing is cut."""
    sent = chat.get("max_completion_tokens") or chat.get("max_tokens")
    if sent:
        return int(sent)
    if target.max_output_tokens:
        return target.max_output_tokens
    limit = default_max_tokens(version)
    note("max_tokens", f"Anthropic demands a limit and none was sent; {limit} was used.", lost=False)
    return limit


def default_max_tokens(version: Version | None) -> int:
    """The limit when neither the caller nor the price table knows one: what every model of that age can write."""
    if version is not None and version < (3, 7):
        return 8192 if version == (3, 5) else 4096
    return 32_000


def _encode_sampling(body: Json, chat: ChatRequest, version: Version | None, note: Note) -> None:
    sampling = {name: chat[name] for name in ("temperature", "top_p", "top_k") if chat.get(name) is not None}
    if version is not None and version >= (4, 7):
        for name in sampling:
            note(name, f"This model takes no {name}; it was left out.")
        sampling = {}
    elif version is not None and version >= (4, 1) and {"temperature", "top_p"} <= sampling.keys():
        del sampling["top_p"]
        note("top_p", "This model takes temperature or top_p, not both; top_p was left out.")
    if sampling.get("temperature", 0) > 1:
        sampling["temperature"] = 1
        note("temperature", "Anthropic's temperature ends at 1; it was set to 1.")
    body |= sampling
    stop = chat.get("stop")
    sequences = [stop] if isinstance(stop, str) else list(stop or ())
    for number, sequence in enumerate(sequences):
        if not sequence.strip():
            raise CallerError(
                "Anthropic takes no stop sequence of white space alone; leave it out.",
                param="stop" if isinstance(stop, str) else f"stop[{number}]",
            )
    if sequences:
        body["stop_sequences"] = sequences


def _encode_account(body: Json, chat: ChatRequest, note: Note) -> None:
    metadata = dict(chat.get("metadata") or {})
    user = chat.get("user") or chat.get("safety_identifier") or metadata.pop("user_id", None)
    if chat.get("safety_identifier") not in (None, "", user):
        note("safety_identifier", "Anthropic takes one name for who asks, and user is it; the other was left out.")
    if user and len(user) <= MAX_USER_ID_CHARACTERS:
        body["metadata"] = {"user_id": user}
    elif user:
        note("user", f"Anthropic takes at most {MAX_USER_ID_CHARACTERS} characters; it was left out.")
    if metadata:
        note("metadata", "Anthropic has no metadata but user_id; the rest was left out.")
    tier = chat.get("service_tier")
    if tier in SERVICE_TIERS:
        body["service_tier"] = SERVICE_TIERS[tier]
    elif tier is not None:
        note("service_tier", f"Anthropic has no service tier {tier!r:.60}; it was left out.")


def _betas(names: Any) -> str:
    if not isinstance(names, list) or not all(isinstance(name, str) and _BETA.fullmatch(name) for name in names):
        raise CallerError('betas is a list of names such as "context-management-2025-06-27".', param="betas")
    return ",".join(names)


def _limit_marks(body: Json, talk: Conversation) -> None:
    """At most four cache marks: the last ones stay, for each covers all that stands before it."""
    blocks = [*body.get("tools", ()), *talk.system, *(block for turn in talk.turns for block in turn["content"])]
    marked = [block for block in blocks if "cache_control" in block]
    room = MAX_CACHE_MARKS - ("cache_control" in body)
    if len(marked) > room:
        for block in marked[: len(marked) - room]:
            del block["cache_control"]
        message = f"Anthropic takes {MAX_CACHE_MARKS} cache marks; the last {room} were kept."
        talk.notice("cache_control", message, lost=False)
