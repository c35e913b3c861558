"""
Conversations, as far as every API has them alike: arguments of calls are text with OpenAI, and an object elsewhere; and
a last word that says nothing would leave the assistant with the last word.
"""

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


def refuse_unsaid(messages: list[Json], last_role: str, api: str) -> None:
    """
    Raises CallerError where the last message is a user's that is blank, so that what is left ends with an answer: the
    API would go on with that one, as if it had been begun by the caller.
    """
    last = messages[-1]
    if last["role"] == "user" and last_role != "user":
        param = f"messages[{len(messages) - 1}].content"
        raise CallerError(f"{param} is blank, and {api} takes no blank message: say something in it.", param=param)
