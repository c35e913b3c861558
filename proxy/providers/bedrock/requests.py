"""
An OpenAI chat request as a Converse request. Every parameter is mapped, refused, or left out with a notice; so is one
that nobody here knows, because Converse refuses what it does not know. Its own fields may be sent by their own names.
"""

from __future__ import annotations

import re
from typing import Any

from proxy.errors import CallerError
from proxy.providers import ChatRequest, Json, Target, UpstreamRequest, quirks
from proxy.providers.bedrock.content import Note, Piece
from proxy.providers.bedrock.formats import encode_format
from proxy.providers.bedrock.messages import Conversation, encode_messages
from proxy.providers.bedrock.models import Model, model_of
from proxy.providers.bedrock.reasoning import encode_reasoning
from proxy.providers.bedrock.tools import encode_tools

MAX_CACHE_POINTS = 4
MAX_METADATA = 16

OWN = frozenset(
    {"guardrailConfig", "performanceConfig", "serviceTier", "requestMetadata", "additionalModelRequestFields"}
)
"""Converse's own fields that are objects, and go through as they are."""
OWN_LISTS = frozenset({"additionalModelResponseFieldPaths"})

MEANT = OWN | OWN_LISTS | {
    "model", "messages", "stream", "stream_options", "strata", "max_tokens", "max_completion_tokens", "temperature",
    "top_p", "top_k", "stop", "n", "tools", "tool_choice", "parallel_tool_calls", "response_format",
    "reasoning_effort", "thinking", "user", "safety_identifier", "metadata", "service_tier", "modalities",
    "cache_control", "functions", "function_call",
}  # fmt: skip
"""Parameters that have code here."""

HARMLESS: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,), "presence_penalty": (0,), "logprobs": (False,), "logit_bias": ({},), "store": (False,),
    "top_logprobs": (0,), "verbosity": ("medium",),
}  # fmt: skip
"""Values of parameters without a counterpart that change nothing, and so need no notice. Null never does."""

LIMITS = frozenset(
    {"max_tokens", "maxTokens", "max_tokens_to_sample", "max_new_tokens", "max_gen_len", "maxTokenCount"}
)
"""What families call the limit of an answer. It is sent as max_tokens alone, for a budget is reserved by it."""

STANDARD_TIERS = ("auto", "default")
SERVICE_TIERS = ("priority", "flex", "reserved")

_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:/_-]{0,2047}")
_METADATA = re.compile(r"[a-zA-Z0-9\s:_@$#=/+,.-]{0,256}")


def encode_chat(chat: ChatRequest, target: Target) -> UpstreamRequest:
    """Raises CallerError, with the path of the parameter, for what Bedrock cannot do and no notice could excuse."""
    chat, changed = quirks.apply(chat, target.quirks)  # before it is translated: Converse has no flat names to drop
    _refuse_impossible(chat)
    refuse_unsafe(target.model)
    model = model_behind(target)
    buckets: Any = target.quirks.get("s3")
    talk = encode_messages(chat["messages"], model, buckets if isinstance(buckets, list) else ())
    note = talk.notice
    body: Json = {"messages": talk.native()}
    more: Json = {}
    _encode_sampling(body, more, chat, model, note)
    encode_tools(body, more, chat, model, talk)
    encode_format(body, more, chat, model, talk)
    if talk.system:
        body["system"] = [block for piece in talk.system for block in piece]
    _encode_account(body, chat, note)
    encode_reasoning(body, more, chat, model, target.max_output_tokens, note)
    for name in sorted(OWN | OWN_LISTS):
        _add_own(body, more, chat, name)
    if more:
        body["additionalModelRequestFields"] = more
    _limit_cache_points(body, chat, model, talk)
    if not body.get("inferenceConfig", True):
        del body["inferenceConfig"]
    for name, value in chat.items():
        if name not in MEANT and value is not None and value not in HARMLESS.get(name, ()):
            note(name, f"Bedrock has no {name}; it was left out.")
    operation = "converse-stream" if chat.get("stream") else "converse"
    path = f"/model/{escaped(target.model)}/{operation}"
    tier = (body.get("serviceTier") or {}).get("type")
    named = tier if isinstance(tier, str) else ""
    return UpstreamRequest(path, body, notices=(*changed, *talk.notices), service_tier=named)


def refuse_unsafe(model: str) -> None:
    """CallerError for what is no id: it becomes part of an address."""
    if not _ID.fullmatch(model):
        raise CallerError(f"Bedrock has no model {model!r:.100}: ids are letters, digits, . : / _ -", param="model")


def escaped(model: str) -> str:
    """An id as one segment of a path: ARNs have slashes and colons."""
    return "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in model.encode())


def model_behind(target: Target) -> Model:
    """An application inference profile's id says nothing of its model; `quirks: {models: {<id>: <model>}}` does."""
    named: Any = target.quirks.get("models")
    known = named.get(target.model) if isinstance(named, dict) else None
    return model_of(known if isinstance(known, str) else target.model)


def _refuse_impossible(chat: ChatRequest) -> None:
    if (chat.get("n") or 1) > 1:
        raise CallerError("Bedrock gives one answer to a request: leave n out, or send it n times.", param="n")
    if any(kind != "text" for kind in chat.get("modalities") or ()):
        raise CallerError("Converse answers in text only; leave modalities out.", param="modalities")
    for name in ("functions", "function_call"):
        if chat.get(name):
            raise CallerError(f"{name} is the old form of tools; use tools and tool_choice.", param=name)


def _encode_sampling(body: Json, more: Json, chat: ChatRequest, model: Model, note: Note) -> None:
    config: Json = {}
    limit = chat.get("max_completion_tokens") or chat.get("max_tokens")
    if limit:  # without one the model's own maximum holds
        config["maxTokens"] = int(limit)
    sampling = {name: chat[name] for name in ("temperature", "top_p", "top_k") if chat.get(name) is not None}
    if model.version is not None and model.since(4, 7):
        for name in sampling:
            note(name, f"This model takes no {name}; it was left out.")
        sampling = {}
    elif model.version is not None and model.since(4, 1) and {"temperature", "top_p"} <= sampling.keys():
        del sampling["top_p"]
        note("top_p", "This model takes temperature or top_p, not both; top_p was left out.")
    if sampling.get("temperature", 0) > 1:
        sampling["temperature"] = 1
        note("temperature", "Bedrock's temperature ends at 1; it was set to 1.")
    config |= {ours: sampling[name] for name, ours in (("temperature", "temperature"), ("top_p", "topP"))
               if name in sampling}  # fmt: skip
    if "top_k" in sampling:
        _encode_top_k(more, sampling["top_k"], model, note)
    stop = chat.get("stop")
    sequences = [stop] if isinstance(stop, str) else list(stop or ())
    for number, sequence in enumerate(sequences):
        if not sequence or (model.claude and not sequence.strip()):
            raise CallerError(
                "This model takes no stop sequence of white space alone; leave it out.",
                param="stop" if isinstance(stop, str) else f"stop[{number}]",
            )
    if sequences:
        config["stopSequences"] = sequences
    if config:
        body["inferenceConfig"] = config


def _encode_top_k(more: Json, value: Any, model: Model, note: Note) -> None:
    """Converse has no word for it, so each family gets it in its own."""
    if model.claude or model.id.startswith("mistral."):
        more["top_k"] = value
    elif model.nova:
        more["inferenceConfig"] = {"topK": value}
    elif model.id.startswith("cohere."):
        more["k"] = value
    else:
        note("top_k", "This model takes no top_k on Bedrock; it was left out.")


def _encode_account(body: Json, chat: ChatRequest, note: Note) -> None:
    said = {name: chat[name] for name in ("user", "safety_identifier") if chat.get(name)}
    kept: Json = {}
    for param, key, value in (
        *(("metadata", key, value) for key, value in (chat.get("metadata") or {}).items()),
        *((name, name, value) for name, value in said.items()),
    ):
        if len(kept) < MAX_METADATA and key and _METADATA.fullmatch(key) and _METADATA.fullmatch(value):
            kept[key] = value
        else:
            limits = f"{MAX_METADATA} entries of 256 letters, digits, spaces and :_@$#=/+,.-"
            note(param, f"Bedrock takes {limits} as metadata; what does not fit was left out.")
    if kept:
        body["requestMetadata"] = kept
    tier = chat.get("service_tier")
    if tier in SERVICE_TIERS:
        body["serviceTier"] = {"type": tier}
    elif tier is not None and tier not in STANDARD_TIERS:
        note("service_tier", f"Bedrock has no service tier {tier!r:.60}; it was left out.")


def _add_own(body: Json, more: Json, chat: ChatRequest, name: str) -> None:
    value = chat.get(name)
    if value is None:
        return
    if not isinstance(value, list if name in OWN_LISTS else dict):
        form = "a list" if name in OWN_LISTS else "an object"
        raise CallerError(f"{name} is {form} of Converse's own.", param=name)
    if name == "additionalModelRequestFields":
        _add_more(more, dict(value))
    elif name == "requestMetadata":
        body.setdefault(name, {}).update(value)
    else:
        body[name] = value


def _add_more(more: Json, fields: Json) -> None:
    name = "additionalModelRequestFields"
    for inner in (fields, fields.get("inferenceConfig"), fields.get("textGenerationConfig")):
        if isinstance(inner, dict) and LIMITS & inner.keys():
            raise CallerError(f"{name}: the limit of an answer is sent as max_tokens.", param=name)
    more |= fields


def _limit_cache_points(body: Json, chat: ChatRequest, model: Model, talk: Conversation) -> None:
    """At most four: the last ones stay, for each covers all that stands before it."""
    whole = chat.get("cache_control")
    if isinstance(whole, dict):
        if model.caches:
            body["messages"][-1]["content"].append({"cachePoint": {"type": "default"}})
        else:
            talk.notice("cache_control", "This model has no prompt cache to mark; the mark was left out.", lost=False)
    lists: list[Piece] = [body.get("toolConfig", {}).get("tools", []), body.get("system", [])]
    lists += (turn["content"] for turn in body["messages"])
    surplus = sum("cachePoint" in block for blocks in lists for block in blocks) - MAX_CACHE_POINTS
    if surplus <= 0:
        return
    for blocks in lists:
        kept = list[Json]()
        for block in blocks:
            if surplus and "cachePoint" in block:
                surplus -= 1
            else:
                kept.append(block)
        blocks[:] = kept
    message = f"Bedrock takes {MAX_CACHE_POINTS} cache points; the last ones were kept."
    talk.notice("cache_control", message, lost=False)
