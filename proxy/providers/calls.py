"""Tool calls, as far as every API has them alike: their arguments are text with OpenAI, and an object elsewhere."""

from __future__ import annotations

from typing import Any

import msgspec

from proxy.errors import CallerError
from proxy.providers import Json


def read_arguments(text: Any, param: str) -> Json:
    """The object in `arguments`; no text is none. Raises CallerError with `param`."""
    if not isinstance(text, str) or not text.strip():
        return {}
    try:
        arguments = msgspec.json.decode(text)
    except (msgspec.DecodeError, ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise CallerError(f"{param} must be a JSON object in a string.", param=param)
    return arguments
