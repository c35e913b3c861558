"""What Google itself refuses of a generateContent request, at AI Studio and at Vertex: status and message. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

Json = dict[str, Any]
Refusal = tuple[int, str]

_VERSION = re.compile(r"gemini-(\d)(?:\.(\d))?(?=[-@]|$)")
_MODEL = re.compile(r"/([^/:]+):")

SHARED = frozenset(
    ("contents", "tools", "toolConfig", "safetySettings", "systemInstruction", "generationConfig", "cachedContent")
)
STUDIO = SHARED | {"serviceTier", "store"}
VERTEX = SHARED | {"labels", "modelArmorConfig"}
CONFIG = frozenset(
    (
        *("stopSequences", "responseMimeType", "responseSchema", "responseJsonSchema", "responseModalities"),
        *("candidateCount", "maxOutputTokens", "temperature", "topP", "topK", "seed", "presencePenalty"),
        *("frequencyPenalty", "responseLogprobs", "logprobs", "speechConfig", "thinkingConfig", "imageConfig"),
        *("mediaResolution", "audioTimestamp", "enableEnhancedCivicAnswers"),
    )
)
FUNCTION = frozenset(
    ("name", "description", "behavior", "parameters", "parametersJsonSchema", "response", "responseJsonSchema")
)
SCHEMA = frozenset(
    (
        *("type", "format", "title", "description", "nullable", "enum", "maxItems", "minItems", "properties"),
        *("required", "minProperties", "maxProperties", "minLength", "maxLength", "pattern", "example", "anyOf"),
        *("propertyOrdering", "default", "items", "minimum", "maximum"),
    )
)
DATA = frozenset(
    ("text", "inlineData", "functionCall", "functionResponse", "fileData", "executableCode", "codeExecutionResult")
)
PART = DATA | {"thought", "thoughtSignature", "partMetadata", "mediaResolution", "videoMetadata"}


def version(model: str) -> tuple[int, int]:
    """A name that does not tell is a model of today's that asks for nothing in return."""
    found = _VERSION.search(model)
    return (int(found[1]), int(found[2] or 0)) if found else (2, 5)


def signs(model: str) -> bool:
    return version(model) >= (3, 0)


def refuse(body: Json, headers: dict[str, str]) -> Refusal | None:
    path = headers.get(":path", "")
    vertex = "/projects/" in path
    if vertex and not headers.get("authorization", "").startswith("Bearer "):
        return 401, "Request is missing required authentication credential. Expected OAuth 2 access token."
    if not vertex and not headers.get("x-goog-api-key"):
        return 403, "Method doesn't allow unregistered callers. Please use API Key or other form of API consumer."
    if ":stream" in path and not path.endswith("?alt=sse"):
        return 400, "The oracle streams server-sent events only: ask for alt=sse."
    found = _MODEL.search(path)
    model = found[1] if found else ""
    reasons = (
        *(_unknown(body, VERTEX if vertex else STUDIO, ""), *_config(body, model), *_tools(body, model)),
        *_contents(body.get("contents") or [], model),
    )
    wrong = next((reason for reason in reasons if reason), None)
    return (400, wrong) if wrong else None


def _unknown(given: Json, known: frozenset[str], place: str) -> str | None:
    strange = sorted(given.keys() - known)
    at = f" at '{place}'" if place else ""
    return f'Invalid JSON payload received. Unknown name "{strange[0]}"{at}: Cannot find field.' if strange else None


def _config(body: Json, model: str) -> Iterator[str | None]:
    config = body.get("generationConfig", {})
    yield _unknown(config, CONFIG, "generation_config")
    json = config.get("responseMimeType") == "application/json"
    schemas = [name for name in ("responseSchema", "responseJsonSchema") if name in config]
    if schemas and not json:
        yield f"* GenerateContentRequest.generation_config.{schemas[0]}: only allowed for application/json"
    if len(schemas) > 1:
        yield "responseSchema and responseJsonSchema exclude each other."
    if "responseSchema" in config:
        yield _not_googles(config["responseSchema"], "generation_config.response_schema")
    if "responseJsonSchema" in config:
        yield _not_json_schema(config["responseJsonSchema"], model)
    if json and body.get("tools") and not signs(model):
        yield "Function calling with a response mime type: 'application/json' is unsupported"
    if config.get("thinkingConfig") and version(model) < (2, 5):
        yield "Thinking is not enabled for this model."


def _tools(body: Json, model: str) -> Iterator[str | None]:
    functions = [function for tool in body.get("tools") or [] for function in tool.get("functionDeclarations", [])]
    names = [function.get("name") for function in functions]
    for number, function in enumerate(functions):
        place = f"tools[0].function_declarations[{number}]"
        yield _unknown(function, FUNCTION, place)
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.:-]{0,127}", function.get("name", "")):
            yield f"* GenerateContentRequest.{place}.name: Invalid function name."
        if "parameters" in function and "parametersJsonSchema" in function:
            yield f"{place}: parameters and parametersJsonSchema exclude each other."
        if "parameters" in function:
            yield _not_googles(function["parameters"], f"{place}.parameters")
            if not function["parameters"].get("properties"):
                yield f"* GenerateContentRequest.{place}.parameters.properties: should be non-empty for OBJECT type"
        if "parametersJsonSchema" in function:
            yield _not_json_schema(function["parametersJsonSchema"], model)
    if len(set(names)) < len(names):
        yield "Duplicate function declaration found."
    calling = body.get("toolConfig", {}).get("functionCallingConfig")
    if calling is None:
        return
    if not functions:
        yield "Function calling config is set without function_declarations."
    if calling.get("mode") not in ("AUTO", "ANY", "NONE", "VALIDATED"):
        yield "Invalid value at 'tool_config.function_calling_config.mode'."
    allowed = calling.get("allowedFunctionNames") or []
    if allowed and calling.get("mode") not in ("ANY", "VALIDATED"):
        yield "`allowed_function_names` should only be set when the function calling mode is ANY."
    if set(allowed) - set(names):
        yield "`allowed_function_names` contains function names that are not declared."


def _not_googles(schema: Json, place: str) -> str | None:
    if wrong := _unknown(schema, SCHEMA, place):
        return wrong
    if isinstance(schema.get("type"), list):
        return f"Invalid JSON payload received. Unknown name \"type\" at '{place}': Proto field is not repeating."
    if wrong := _incomplete(schema):
        return f"* GenerateContentRequest.{place}.{wrong}"
    inner = [(f"{place}.properties[{name}]", one) for name, one in schema.get("properties", {}).items()]
    inner += [(f"{place}.any_of", one) for one in schema.get("anyOf", [])]
    inner += [(f"{place}.items", schema["items"])] if "items" in schema else []
    return next((wrong for at, one in inner if (wrong := _not_googles(one, at))), None)


def _incomplete(schema: Json) -> str | None:
    if "type" not in schema and "anyOf" not in schema:
        return "type: must be specified when not using one_of, any_of or all_of fields"
    if str(schema.get("type")).upper() == "ARRAY" and "items" not in schema:
        return "items: missing field."
    if any(not isinstance(value, str) or not value for value in schema.get("enum", [])):
        return "enum[0]: cannot be empty"
    if "enum" in schema and str(schema.get("type")).upper() != "STRING":
        return "enum: only allowed for STRING type"
    if set(schema.get("required", [])) - schema.get("properties", {}).keys():
        return "required[0]: property is not defined"
    return None


def _not_json_schema(schema: Any, model: str) -> str | None:
    """Where `$ref` stands nothing else may, but for other names with a `$`."""
    if version(model) < (2, 5):
        return "JSON schemas are not supported by this model."
    if isinstance(schema, list):
        return next((wrong for one in schema if (wrong := _not_json_schema(one, model))), None)
    if not isinstance(schema, dict):
        return None
    if isinstance(schema.get("$ref"), str) and any(not name.startswith("$") for name in schema):
        return "If `$ref` is set on a sub-schema, no other properties may be set."
    return next((wrong for one in schema.values() if (wrong := _not_json_schema(one, model))), None)


def _contents(turns: list[Json], model: str) -> Iterator[str | None]:
    if not turns:
        yield "* GenerateContentRequest.contents: contents is not specified"
    for number, turn in enumerate(turns):
        place = f"contents[{number}]"
        yield _unknown(turn, frozenset(("role", "parts")), place)
        if turn.get("role") not in ("user", "model"):
            yield "Please use a valid role: user, model."
        if not turn.get("parts"):
            yield f"* GenerateContentRequest.{place}.parts: contents.parts must not be empty."
        for place_of_part, part in enumerate(turn.get("parts") or []):
            yield _part(part, f"{place}.parts[{place_of_part}]")
        calls = [part for part in turn.get("parts") or [] if "functionCall" in part]
        if calls and signs(model) and not calls[0].get("thoughtSignature"):
            yield "Function call is missing a thought_signature in functionCall parts."
    yield _unanswered(turns)


def _part(part: Json, place: str) -> str | None:
    if wrong := _unknown(part, PART, place):
        return wrong
    if len(part.keys() & DATA) != 1 or (part.get("text") == "" and "thoughtSignature" not in part):
        return f"* GenerateContentRequest.{place}.data: required oneof field 'data' must have one initialized field"
    blob = part.get("inlineData")
    if blob is not None and not (blob.get("mimeType") and blob.get("data")):
        return f"* GenerateContentRequest.{place}.inline_data: mime_type and data are required"
    result = part.get("functionResponse")
    if result is not None and not result.get("name"):
        return f"* GenerateContentRequest.{place}.function_response.name: Name cannot be empty."
    if result is not None and not isinstance(result.get("response"), dict):
        return f"Invalid value at '{place}.function_response.response' (type.googleapis.com/google.protobuf.Struct)"
    return None


def _unanswered(turns: list[Json]) -> str | None:
    if turns and any("functionCall" in part for part in turns[0].get("parts") or []):
        return "Please ensure that function call turn comes immediately after a user turn or a function response turn."
    for turn, following in pairwise([{}, *turns, {}]):
        called = [part["functionCall"]["name"] for part in turn.get("parts") or [] if "functionCall" in part]
        given = [
            part["functionResponse"].get("name") for part in following.get("parts") or [] if "functionResponse" in part
        ]
        if sorted(called) != sorted(given):
            return (
                "Please ensure that the number of function response parts is equal to the number of function call "
                "parts of the function call turn."
            )
    return None
