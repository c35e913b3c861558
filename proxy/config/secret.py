"""A value of the configuration that must not be printed."""

from __future__ import annotations


class Secret:
    """It never shows itself. `reveal()` is called in the few places that put it on a wire."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return f"Secret(…{self._value[-4:]})" if len(self._value) >= 12 else "Secret(…)"

    __str__ = __repr__

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)
