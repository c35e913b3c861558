"""
`${NAME}`, `${NAME:-fallback}`, `${file:/path}`, `$$` and LiteLLM's `os.environ/NAME`, in values only and after YAML is
parsed: what a secret contains can never change the meaning of the file. What comes out is not looked through again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from proxy.config.problems import Mark, Report
from proxy.config.yaml import Entry, MappingNode, Node, ScalarNode, SequenceNode

MAX_FILE_BYTES = 65_536

_REFERENCE = re.compile(r"\$\$|\$\{(?P<inner>[^}]*)\}?")
_NAME = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<fallback>.*))?", re.DOTALL)
_SHELL = re.compile(r"\$[A-Z_][A-Z0-9_]*|%[A-Z_][A-Z0-9_]*%")
_LITELLM = re.compile(r"os\.environ/(?P<name>[A-Za-z_][A-Za-z0-9_]*)")

OnMissing = Callable[[Mark, str], None]
"""Called with the place and the reason: `OPENAI_API_KEY is not set`."""


class Resolver:
    """Resolves the references below a node. A variable that is empty counts as not set."""

    def __init__(self, environ: Mapping[str, str], folder: Path, report: Report) -> None:
        self._environ = environ
        self.folder = folder
        self._report = report

    def resolve(self, node: Node, on_missing: OnMissing) -> Node:
        if isinstance(node, MappingNode):
            entries = {
                name: Entry(entry.key, self.resolve(entry.value, on_missing)) for name, entry in node.entries.items()
            }
            return MappingNode(node.at, entries)
        if isinstance(node, SequenceNode):
            return SequenceNode(node.at, [self.resolve(item, on_missing) for item in node.items])
        return self._scalar(node, on_missing)

    def _scalar(self, node: ScalarNode, on_missing: OnMissing) -> ScalarNode:
        litellm = _LITELLM.fullmatch(node.text)
        if litellm:
            name = litellm["name"]
            self._report.note(node.at, f"os.environ/{name} works; the form used here is ${{{name}}}.")
            value = self._environ.get(name, "")
            if not value:
                on_missing(node.at, f"{name} is not set")
            return ScalarNode(node.at, value, "any", f"${{{name}}}")
        if _SHELL.fullmatch(node.text):
            self._report.warning(node.at, "this stands for itself here; what a variable holds is written ${NAME}.")
        if "$" not in node.text:
            return node
        origin: list[str] = []

        def replace(match: re.Match[str]) -> str:
            if match[0] == "$$":
                return "$"
            value, shown_as = self._value(match, node.at, on_missing)
            origin.append(shown_as)
            return value

        text = _REFERENCE.sub(replace, node.text)
        if not origin:
            return ScalarNode(node.at, text, node.kind, node.origin)
        return ScalarNode(node.at, text, "any", " and ".join(origin))

    def _value(self, match: re.Match[str], at: Mark, on_missing: OnMissing) -> tuple[str, str]:
        inner: str = match["inner"]
        if not match[0].endswith("}"):
            self._report.error(at, 'a "${" is not closed by "}". A literal "$" before "{" is written "$$".')
            return "", "${…}"
        if inner.startswith("file:"):
            return self._file(inner.removeprefix("file:"), at, on_missing), f"${{{inner}}}"
        parts = _NAME.fullmatch(inner)
        if parts is None:
            fixed = f" Write ${{{inner[4:]}}}." if _NAME.fullmatch(inner[4:]) and inner.startswith("env:") else ""
            known = "${NAME}, ${NAME:-fallback}, ${file:/path} and $$"
            self._report.error(at, f"there is a reference of a form that is not known.{fixed or f' Known: {known}.'}")
            return "", "${…}"
        name: str = parts["name"]
        value = self._environ.get(name, "")
        if not value and parts["fallback"] is not None:
            return parts["fallback"], f"${{{name}}}"
        if not value:
            on_missing(at, f"{name} is not set")
        return value, f"${{{name}}}"

    def _file(self, name: str, at: Mark, on_missing: OnMissing) -> str:
        """The file's text without its last line end. A relative path counts from the configuration's folder."""
        try:
            with (self.folder / name).open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            on_missing(at, f"the file {name} cannot be read ({error.strerror or 'error'})")
            return ""
        except ValueError:
            self._report.error(at, "the path in ${file:…} is not one.")
            return ""
        if len(data) > MAX_FILE_BYTES:
            self._report.error(at, f"the file {name} has more than {MAX_FILE_BYTES} bytes.")
            return ""
        try:
            text = data.decode().removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError:
            self._report.error(at, f"the file {name} is not UTF-8 text.")
            return ""
        if not text:
            on_missing(at, f"the file {name} is empty")
        return text
