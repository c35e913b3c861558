"""
The shape of an OpenAI chat completion request, for refusing what is not one before anything is spent.

Only types and ranges that hold for every provider are here; what a model cannot do is the translator's business. A
field that is not listed passes untouched: a new parameter works on its first day. Source:
https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

Choices = Annotated[int, Meta(ge=1, le=128)]
Tokens = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]


class ImageURL(Struct):
    url: str
    detail: str | None = None


class File(Struct):
    file_data: str | None = None
    file_id: str | None = None
    filename: str | None = None


class VideoURL(Struct):
    url: str


class InputAudio(Struct):
    data: str
    format: str


class Part(Struct):
    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: ImageURL | None = None
    input_audio: InputAudio | None = None
    file: File | None = None
    video_url: VideoURL | None = None
    cache_control: dict[str, Any] | None = None


class FunctionCall(Struct):
    name: str
    arguments: str = ""


class CustomCall(Struct):
    name: str
    input: str = ""


class ToolCall(Struct):
    id: str
    type: str = "function"
    function: FunctionCall | None = None
    custom: CustomCall | None = None
    extra_content: dict[str, Any] | None = None


class Thought(Struct):
    """A piece of `reasoning_details`; whose it is and what it is, its translator finds out."""

    type: str | None = None
    format: str | None = None
    index: float | str | None = None
    id: str | None = None
    text: str | None = None
    signature: str | None = None
    data: str | None = None


class NativeBlock(Struct):
    """A block of Anthropic's own, which comes back as it was given out."""

    type: str
    id: str | None = None
    tool_use_id: str | None = None


class Message(Struct):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    function_call: FunctionCall | None = None
    audio: dict[str, Any] | None = None
    reasoning_content: str | None = None
    reasoning_details: list[Thought] | None = None
    native_blocks: list[NativeBlock] | None = None


class Function(Struct):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct):
    type: str
    function: Function | None = None
    custom: dict[str, Any] | None = None


class Named(Struct):
    name: str | None = None


class Chosen(Struct):
    """A tool by its name: of a function, of a custom tool, or flat, as in OpenAI's other API."""

    type: str | None = None
    name: str | None = None
    function: Named | None = None
    custom: Named | None = None


class AllowedTools(Struct):
    tools: list[Chosen]
    mode: str | None = None


class ToolChoice(Chosen):
    allowed_tools: AllowedTools | None = None


class Place(Struct):
    approximate: dict[str, Any] | None = None


class WebSearch(Struct):
    user_location: Place | None = None


class JSONSchema(Struct):
    name: Name
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Struct):
    type: str
    json_schema: JSONSchema | None = None


class StreamOptions(Struct):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Strata(Struct):
    """What a request says to the gateway itself."""

    strict: bool | None = None
    notices: bool | None = None


class ChatShape(Struct):
    model: Annotated[str, Meta(min_length=1)]
    messages: Annotated[list[Message], Meta(min_length=1, max_length=20_000)]
    audio: dict[str, Any] | None = None
    best_of: Choices | None = None
    frequency_penalty: Penalty | None = None
    function_call: str | dict[str, Any] | None = None
    functions: Annotated[list[Function], Meta(max_length=2_048)] | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    max_completion_tokens: Tokens | None = None
    max_tokens: Tokens | None = None
    metadata: Annotated[dict[str, str], Meta(max_length=64)] | None = None
    modalities: list[str] | None = None
    moderation: dict[str, Any] | None = None
    n: Choices | None = None
    parallel_tool_calls: bool | None = None
    prediction: dict[str, Any] | None = None
    presence_penalty: Penalty | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    reasoning_effort: str | None = None
    response_format: ResponseFormat | None = None
    safety_identifier: str | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    service_tier: str | None = None
    strata: Strata | None = None
    stop: str | Annotated[list[str], Meta(max_length=2_500)] | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    tool_choice: str | ToolChoice | None = None
    tools: Annotated[list[Tool], Meta(max_length=2_048)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    user: str | None = None
    verbosity: str | None = None
    web_search_options: WebSearch | None = None
