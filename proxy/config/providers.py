"""
The `providers` section. A known name needs nothing but its usual variable, and then it need not even be listed; a name
of one's own needs a type and an address. A provider whose variable is missing is off, which stops nothing else.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

from proxy.config import Provider, Secret
from proxy.config.presets import PRESETS, SIM, SIM_API_BASE, SIM_QUIRKS, Preset
from proxy.config.problems import Mark, Report, shown, suggestion
from proxy.config.quantities import boolean, integer, secret, secret_document, size, text, text_map
from proxy.config.quirks import QUIRKS
from proxy.config.reading import Key, child, entries_of, flag_inline_secret, read_map
from proxy.config.references import Resolver
from proxy.config.yaml import Node, ScalarNode

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
COMPATIBLE = "openai_compatible"

_KEYS = {
    "type": Key("type", text),
    "api_base": Key("api_base", text),
    "api_key": Key("api_key", secret),
    "headers": Key("headers", text_map),
    "max_connections": Key("max_connections", integer(1, 65_536)),
    "max_response": Key("max_response_bytes", size(1_000, 10**10)),
    "bills_after_abort": Key("bills_after_abort", boolean),
}
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_OWN_HEADERS = frozenset({"host", "content-length", "transfer-encoding", "connection", "upgrade", "expect", "te"})
_KEY_HEADERS = frozenset({"authorization", "x-api-key", "api-key", "proxy-authorization", "cookie"})
_PRIVATE_ENDINGS = (".internal", ".local", ".lan", ".home.arpa", ".svc", ".cluster.local", ".localhost")


class Off(NamedTuple):
    at: Mark
    reason: str


class Providers:
    """Those that are on, those that are off and why, and those that come into being when a model names them."""

    def __init__(self, environ: Mapping[str, str], report: Report) -> None:
        self._environ = environ
        self._report = report
        self.on: dict[str, Provider] = {}
        self.off: dict[str, Off] = {}
        self._refused: set[str] = set()

    def read(self, node: Node | None, resolver: Resolver) -> None:
        for name, entry in entries_of(node, "providers", self._report):
            at = entry.key.at
            if name == SIM:
                self._report.error(at, "providers.sim is built in and has no settings; leave it out.")
            elif not NAME.fullmatch(name):
                self._report.error(at, f"{shown(name)} cannot name a provider: letters, digits, dots, - and _ only.")
            else:
                before = len(self._report.problems)
                missing: dict[str, None] = {}
                value = resolver.resolve(entry.value, lambda _, reason, seen=missing: seen.setdefault(reason))  # type: ignore[misc]
                self._read_one(name, at, value, list(missing), before)
        for name, preset in PRESETS.items():
            if any(self._environ.get(variable) for variable in preset.variables):
                self.find(name, Mark("environment"))
        self.on[SIM] = Provider(name=SIM, api="openai", api_base=SIM_API_BASE, quirks=SIM_QUIRKS)

    def known(self) -> list[str]:
        return list(dict.fromkeys([*self.on, *self.off, *self._refused, *PRESETS]))

    def find(self, name: str, at: Mark) -> Provider | None:
        """A provider that is on; a known one that the file does not list is made from its variable, or is off."""
        if name not in self.on and name not in self.off and name not in self._refused and name in PRESETS:
            self._add(name, at, {}, PRESETS[name])
        return self.on.get(name)

    def _read_one(self, name: str, at: Mark, node: Node, missing: list[str], before: int) -> None:
        """`before`: how many problems there were before this provider's."""
        report, path = self._report, f"providers.{name}"
        kind_node = child(node, "type")
        preset = PRESETS.get(kind_node.text if isinstance(kind_node, ScalarNode) else name)
        fields = read_map(node, path, {**_KEYS, **_own_keys(preset)}, report, besides=("quirks",))
        if (differences := child(node, "quirks")) is not None:
            fields["quirks"] = read_map(differences, f"{path}.quirks", QUIRKS, report)
        kind = fields.pop("type", None)
        if preset is not None:
            _gather(fields, "options", preset.options)
            _gather(fields, "secrets", preset.secrets)
        if kind and kind != COMPATIBLE and preset is None and not (kind.isidentifier() and kind.islower()):
            report.error(at, f"{path}.type {shown(kind)} is not known.{suggestion(kind, [COMPATIBLE, *PRESETS])}")
        complete = not missing and not _errors(report, before)
        if complete and kind is None and preset is None:
            close = suggestion(name, PRESETS) if "Did you" in suggestion(name, PRESETS) else ""
            report.error(at, f"{path} needs a type, for example {COMPATIBLE}: this name is not a known one.{close}")
        elif complete and "api_base" not in fields and (preset is None or not preset.api_base):
            report.error(at, f"{path} needs an api_base, for example http://127.0.0.1:8000/v1.")
        if kind and preset is None:
            fields["api"] = "openai" if kind == COMPATIBLE else kind
        variable = next(iter(preset.variables if preset else ()), f"{re.sub('[^A-Z0-9]', '_', name.upper())}_API_KEY")
        for field, usual in {"api_key": variable, **(preset.secrets if preset else {})}.items():
            flag_inline_secret(child(node, field), f"{path}.{field}", usual or variable, report)
        self._check_headers(child(node, "headers"), path, fields)
        address = child(node, "api_base")
        if address is not None and "api_base" in fields:
            api = fields.get("api") or (preset.api if preset else "openai")
            fields["api_base"] = self._address(fields["api_base"], address.at, f"{path}.api_base", api)
        if _errors(report, before):
            self._refused.add(name)
        elif missing:
            self.off[name] = Off(at, " and ".join(missing))
        else:
            self._add(name, at, fields, preset)

    def _add(self, name: str, at: Mark, fields: dict[str, Any], preset: Preset | None) -> None:
        reason = ""
        if preset is not None:
            fields, reason = self._complete(name, fields, preset)
        if reason:
            self.off[name] = Off(at, reason)
        else:
            self.on[name] = Provider(name=name, **fields)

    def _complete(self, name: str, fields: dict[str, Any], preset: Preset) -> tuple[dict[str, Any], str]:
        """What the file does not say, from the preset and the environment; and what is missing then, or ""."""

        def found(variables: str) -> str:
            values = (self._environ.get(variable, "").strip() for variable in variables.split())
            return next(filter(None, values), "")

        fields = {"api": preset.api, "bills_after_abort": preset.bills_after_abort, "quirks": {}, **fields}
        usual = {option: found(variable) for option, variable in preset.options.items()}
        options = fields["options"] = {n: v for n, v in usual.items() if v} | fields.get("options", {})
        # secrets belong together: those of the file are not mixed with others that the environment happens to hold
        usual = {} if fields.get("secrets") else {secret: found(names) for secret, names in preset.secrets.items()}
        secrets = fields["secrets"] = {n: Secret(v) for n, v in usual.items() if v} | fields.get("secrets", {})
        fields["quirks"] = {**preset.quirks, **fields["quirks"]}
        addressed = [] if "api_base" in fields else re.findall(r"{(\w+)}", preset.api_base)
        for needed in (*preset.needs, *addressed):
            if not options.get(needed) and not secrets.get(needed):
                variables = preset.options.get(needed) or preset.secrets.get(needed) or ""
                return fields, _unset(variables) if variables else f"it needs {needed}"
        if "api_base" not in fields:
            template = preset.regions.get(options.get("region", ""), preset.api_base)
            fields["api_base"] = self._filled(template, options, name, fields["api"]) if options else template
        if "api_key" not in fields and preset.variable:
            if found(preset.variable):
                fields["api_key"] = Secret(found(preset.variable))
            elif preset.needs_key:
                return fields, _unset(preset.variable)
        return fields, ""

    def _filled(self, template: str, options: Mapping[str, str], name: str, api: str) -> str:
        """An address with options in it, which may be a host or an address of their own."""
        url = template.format_map({option: value.rstrip("/") for option, value in options.items()})
        url = url if "://" in url else f"https://{url}"
        return self._address(url, Mark("environment"), f"providers.{name}.api_base", api)

    def _check_headers(self, node: Node | None, path: str, fields: dict[str, Any]) -> None:
        for header in fields.get("headers", {}):
            at = node.at if node is not None else Mark("environment")
            if not _HEADER.fullmatch(header):
                self._report.error(at, f"{path}.headers: {shown(header)} cannot be the name of a header.")
            elif header.lower() in _KEY_HEADERS:
                self._report.error(at, f"{path}.headers: {header} would hold a secret; put the key under api_key.")
            elif header.lower() in _OWN_HEADERS:
                self._report.error(at, f"{path}.headers: {header} belongs to the connection and cannot be set.")

    def _address(self, url: str, at: Mark, path: str, api: str) -> str:
        """The address without its last slash. What is wrong with it is reported, never shown: it may hold a key."""
        report = self._report
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port, parts = None, None, SplitResult("", "", "", "", "")
        if parts.scheme not in ("http", "https") or not host or port == 0 or not _plain(url):
            report.error(at, f"{path} must be an address like https://api.example.com/v1.")
        elif "@" in parts.netloc:
            report.error(at, f"{path} must not hold a user name or password; put the key under api_key.")
        elif "?" in url or "#" in url:
            report.error(at, f"{path} must end with its path: no ? and no #.")
        elif parts.scheme == "http" and not is_loopback(host):
            if api != "openai":
                report.error(at, f"{path} must begin with https://: the key would travel unencrypted to {host}.")
            elif not _is_private(host):
                report.warning(at, f"{path} is not https: the key and every prompt travel unencrypted to {host}.")
        return url.rstrip("/")


def _unset(variables: str) -> str:
    return f"{' or '.join(variables.split())} is not set"


def _own_keys(preset: Preset | None) -> dict[str, Key]:
    """The settings that only this kind of provider has."""
    if preset is None:
        return {}
    options = {name: Key(name, text) for name in preset.options}
    return options | {
        name: Key(name, secret_document if name in preset.documents else secret) for name in preset.secrets
    }


def _gather(fields: dict[str, Any], into: str, names: Mapping[str, str]) -> None:
    found = {name: fields.pop(name) for name in names if name in fields}
    if found:
        fields[into] = found


def _errors(report: Report, before: int) -> bool:
    return any(problem.severity == "error" for problem in report.problems[before:])


def is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_private(host: str) -> bool:
    """An address or a name that only exists inside somebody's network."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith(_PRIVATE_ENDINGS)


def _plain(url: str) -> bool:
    return url.isascii() and url.isprintable() and not any(mark in url for mark in ' "<>\\^`{|}*')
