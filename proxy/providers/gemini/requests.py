"""
An OpenAI chat request as a GenerateContentRequest. Every parameter is mapped, refused, or left out with a notice; one
that nobody here knows is left out with a notice too, because Google refuses what it does not know.

Google's own parameters may come under their own names, in `google`, or in `extra_body.google`, as Google's OpenAI layer
has them: https://ai.google.dev/gemini-api/docs/openai
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from proxy.errors import CallerError
from proxy.providers import ChatRequest, Json, Target, UpstreamRequest, quirks
from proxy.providers.gemini.content import Note, details_of
from proxy.providers.gemini.messages import Conversation, encode_messages
from proxy.providers.gemini.models import Model
from proxy.providers.gemini.reasoning import encode_thinking
from proxy.providers.gemini.schemas import inlined, is_googles, subset
from proxy.providers.gemini.tools import encode_tools
from proxy.providers.schemas import described

MAX_STOP_SEQUENCES = 5

SAMPLING = {
    "temperature": "temperature", "top_p": "topP", "top_k": "topK", "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty", "n": "candidateCount",
}  # fmt: skip
OF_REQUEST = frozenset({"safetySettings", "cachedContent", "labels", "modelArmorConfig"})
OF_CONFIG = frozenset(
    {"thinkingConfig", "mediaResolution", "responseModalities", "imageConfig", "speechConfig", "audioTimestamp",
     "enableEnhancedCivicAnswers"}
)  # fmt: skip
"""Google's own parameters: of the request, and of its generationConfig."""

MEANT = frozenset(
    {"model", "messages", "stream", "stream_options", "strata", "max_tokens", "max_completion_tokens", "stop", "seed",
     "logprobs", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls", "response_format", "reasoning_effort",
     "thinking", "service_tier", "modalities", "metadata", "web_search_options", "functions", "function_call",
     "google", "extra_body", *SAMPLING}
)  # fmt: skip
"""Parameters that have code here, beside Google's own."""

HARMLESS: dict[str, tuple[Any, ...]] = {
    "logit_bias": ({},), "store": (False,), "metadata": ({},), "verbosity": ("medium",),
}  # fmt: skip
"""Values of parameters without a counterpart that change nothing, and so need no notice. Null never does."""

TIERS = {"default": "standard", "standard": "standard", "flex": "flex", "priority": "priority"}
"""`auto` is what happens when nothing is said."""

TIER_HEADER = "x-vertex-ai-llm-shared-request-type"
"""Google Cloud asks for the tier here: https://cloud.google.com/vertex-ai/generative-ai/docs/priority-paygo"""

_LABEL = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_LABEL_VALUE = re.compile(r"[a-z0-9_-]{0,63}")

JSON_HINT = "Answer with one JSON object and nothing else: no prose around it, no code fence."
SCHEMA_HINT = "Answer with one JSON value and nothing else, without a code fence. It must fit this JSON schema: "


def encode_chat(chat: ChatRequest, target: Target, model: Model) -> UpstreamRequest:
    """Raises CallerError, with the path of the parameter, for what Gemini cannot do and no notice could excuse."""
    _refuse_impossible(chat)
    talk = encode_messages(chat["messages"], model)
    note = talk.notice
    body: Json = {"contents": talk.turns}
    config = _sampling(chat, note)
    for name, value in _own(chat, note).items():
        (body if name in OF_REQUEST else config)[name] = value
    encode_tools(body, chat, model, note)
    _encode_format(config, chat, body, talk)
    _encode_media(config, chat, note)
    encode_thinking(config, chat, model, note)
    if talk.system:
        body["systemInstruction"] = {"parts": talk.system}
    _encode_metadata(body, chat, model, note)
    tier = _tier(chat, note)
    headers = {TIER_HEADER: tier} if tier and model.cloud else {}
    if tier and not model.cloud:
        body["serviceTier"] = tier
    if config:
        body["generationConfig"] = config
    for name, value in chat.items():
        known = name in MEANT or _camel(name) in OF_REQUEST | OF_CONFIG
        if not known and value is not None and value not in HARMLESS.get(name, ()):
            note(name, f"Gemini has no {name}; it was left out.")
    body, more = quirks.apply(body, target.quirks)
    return UpstreamRequest(_path(model, chat), body, headers, (*talk.notices, *more), service_tier=tier)


def _path(model: Model, chat: ChatRequest) -> str:
    name = model.name if "/" in model.name else f"models/{model.name}"
    return f"/{name}:" + ("streamGenerateContent?alt=sse" if chat.get("stream") else "generateContent")


def _refuse_impossible(chat: ChatRequest) -> None:
    if "audio" in (chat.get("modalities") or ()):
        raise CallerError("Gemini's audio cannot be told in OpenAI's form: ask for text.", param="modalities")
    for name in ("functions", "function_call"):
        if chat.get(name):
            raise CallerError(f"{name} is the old form of tools; use tools and tool_choice.", param=name)


def _sampling(chat: ChatRequest, note: Note) -> Json:
    config = {native: chat[name] for name, native in SAMPLING.items() if chat.get(name) is not None}
    if config.get("candidateCount") == 1:
        del config["candidateCount"]
    limit = chat.get("max_completion_tokens") or chat.get("max_tokens")
    if limit:
        config["maxOutputTokens"] = limit
    seed = chat.get("seed")
    if seed is not None and -(2**31) <= seed < 2**31:
        config["seed"] = seed
    elif seed is not None:
        note("seed", "Gemini's seeds have 32 bits; it was left out.")
    if chat.get("logprobs"):
        config["responseLogprobs"] = True
        if chat.get("top_logprobs"):
            config["logprobs"] = chat["top_logprobs"]
    elif chat.get("top_logprobs"):
        raise CallerError("top_logprobs needs logprobs: true.", param="top_logprobs")
    stop = chat.get("stop")
    sequences = [stop] if isinstance(stop, str) else list(stop or ())
    if len(sequences) > MAX_STOP_SEQUENCES or "" in sequences:
        raise CallerError(f"Gemini takes {MAX_STOP_SEQUENCES} stop sequences, none of them empty.", param="stop")
    if sequences:
        config["stopSequences"] = sequences
    return config


def _own(chat: ChatRequest, note: Note) -> Json:
    """Google's own parameters, from wherever they stand; the more explicit place wins."""
    found = {_camel(name): value for name, value in chat.items() if _camel(name) in OF_REQUEST | OF_CONFIG}
    wrapped = chat.get("extra_body")
    wrapped = wrapped if isinstance(wrapped, dict) else {}
    for place, given in (("google", chat.get("google")), ("extra_body.google", wrapped.get("google"))):
        for name, value in given.items() if isinstance(given, dict) else ():
            if _camel(name) in OF_REQUEST | OF_CONFIG:
                found[_camel(name)] = value
            else:
                note(f"{place}.{name}", f"Gemini has no {name}; it was left out.")
    for name in wrapped:
        if name != "google":
            note(f"extra_body.{name}", "Only extra_body.google is read here; it was left out.")
    if not isinstance(found.get("labels") or {}, dict):
        raise CallerError("labels are an object of Google's own.", param="labels")
    return {name: value for name, value in found.items() if value is not None}


def _camel(name: str) -> str:
    return re.sub(r"_([a-z])", lambda found: found[1].upper(), name)


def _encode_format(config: Json, chat: ChatRequest, body: Json, talk: Conversation) -> None:
    wanted = chat.get("response_format") or {}
    kind = wanted.get("type", "text")
    if kind == "text":
        return
    if kind not in ("json_object", "json_schema"):
        raise CallerError(
            f"response_format.type is {kind!r:.60}; it can be text, json_object or json_schema.",
            param="response_format.type",
        )
    told = wanted.get("json_schema") or {}
    schema: Any = told.get("schema") if kind == "json_schema" else {}
    if not isinstance(schema, dict):
        raise CallerError("json_schema has no schema.", param="response_format.json_schema.schema")
    if schema:
        schema = described({**told, "schema": schema})
    if body.get("tools") and not talk.model.formats_beside_tools:
        hint = JSON_HINT if kind == "json_object" else SCHEMA_HINT + msgspec.json.encode(schema).decode()
        talk.system.append({"text": hint})
        message = "This model cannot be held to JSON while it has tools; it was told to follow it."
        talk.notice("response_format", message, lost=kind == "json_schema")
        return
    config["responseMimeType"] = "application/json"
    if kind == "json_schema":
        _put_schema(config, inlined(schema), talk)


def _put_schema(config: Json, schema: Json, talk: Conversation) -> None:
    if is_googles(schema):
        config["responseSchema"] = schema
        return
    if talk.model.takes_json_schema:
        config["responseJsonSchema"] = schema
        return

    def lost(keyword: str) -> None:
        talk.notice("response_format", f"This model's schemas have no {keyword}; it was left out.")

    config["responseSchema"] = subset(schema, lost)


def _encode_media(config: Json, chat: ChatRequest, note: Note) -> None:
    """Images out, and how closely images are looked at: one setting for the whole request."""
    kinds = chat.get("modalities") or ()
    if any(kind != "text" for kind in kinds):
        config.setdefault("responseModalities", [kind.upper() for kind in kinds])
    details = details_of(chat["messages"])
    if details in ({"low"}, {"high"}):
        config.setdefault("mediaResolution", f"MEDIA_RESOLUTION_{details.pop().upper()}")
    elif details:
        note("image_url.detail", "Gemini has one detail for all images of a request, low or high; it was left out.")


def _encode_metadata(body: Json, chat: ChatRequest, model: Model, note: Note) -> None:
    """Google Cloud's labels are OpenAI's metadata in fewer characters, and are on its bill."""
    metadata = chat.get("metadata")
    if not metadata:
        return
    if model.cloud and all(_LABEL.fullmatch(name) and _LABEL_VALUE.fullmatch(metadata[name]) for name in metadata):
        body["labels"] = {**metadata, **body.get("labels", {})}
    elif model.cloud:
        note("metadata", "Google's labels have only lower case letters, digits, _ and -; it was left out.")
    else:
        note("metadata", "Gemini has no metadata; it was left out.")


def _tier(chat: ChatRequest, note: Note) -> str:
    """The service tier in Google's words; "" where nothing needs to be said."""
    asked = chat.get("service_tier")
    if asked in (None, "auto"):
        return ""
    if asked not in TIERS:
        note("service_tier", f"Gemini has no service tier {asked!r:.60}; it was left out.")
        return ""
    return TIERS[asked]
