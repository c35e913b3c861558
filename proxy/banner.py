"""
What a person sees at the start: where everything is, what is on, and a request to paste. At most 24 lines. It holds a
key, so it is for terminals only; the app decides.
"""

from __future__ import annotations

from proxy import __version__
from proxy.config import Config, Model, Server
from proxy.config.presets import PRESETS, SIM
from proxy.config.providers import is_loopback

MAX_LINES = 24
MAX_MODELS = 6
WIDTH = 42


def banner(
    config: Config,
    *,
    ready_seconds: float,
    data: str,
    first_key: str | None,
    key_count: int | None,
    last_used: str | None,
) -> str:
    """
    `data`: where the data lives, in words. `first_key`: the whole key, if one was just made; without one, the banner
    says how many there are and when one was last used ("2 h ago"). `key_count` is None while nobody knows.
    """
    server = config.server
    everywhere = server.host in ("0.0.0.0", "::")
    address = address_of(server, "127.0.0.1" if everywhere else server.host, server.port)
    lines = ["", f"  {f'Strata {__version__}':<{WIDTH + 10}}ready in {ready_seconds:.1f} s", ""]
    lines.append(_line("API", f"{address}/v1"))
    admin = None if server.admin is None else address_of(server, server.admin.host, server.admin.port)
    if admin is not None:
        lines.append(_line("Admin", admin, "not on the port above"))
    if config.metrics.enabled:
        at = admin if admin is not None and server.admin is not None and server.admin.metrics else address
        lines.append(_line("Metrics", f"{at}{config.metrics.path}"))
    lines.append(_line("Data", data, "kept between runs"))
    lines.append(_line("Config", config.source or "none, defaults in force"))
    lines += ["", *_models(config), ""]
    if first_key is not None:
        lines.append(_line("Your key", first_key, "shown once"))
    elif key_count is None:
        lines.append(_line("Keys", "not known", "the database is not ready: see the log"))
    else:
        used = f", last used {last_used}" if last_used else ""
        keys = f"{key_count} key{'' if key_count == 1 else 's'}{used}"
        lines.append(_line("Keys", keys if key_count else "none", "make one: strata keys create NAME"))
    lines += ["", *_example(address, first_key or "$STRATA_KEY")]
    if is_loopback(server.host):
        lines += ["", "  Reachable from this machine only."]
    return "\n".join(lines[:MAX_LINES])


def address_of(server: Server, host: str, port: int) -> str:
    return f"http{'s' if server.tls else ''}://{f'[{host}]' if ':' in host else host}:{port}"


def _models(config: Config) -> list[str]:
    """At most seven lines: the models, then what is off and which variable turns it on."""
    off = [(f"{name:<14}off", reason) for name, reason in config.off.items()]
    off += [
        (f"{f'{name}/*':<14}off", f"set {preset.variables[0]}")
        for name, preset in PRESETS.items()
        if config.source is None and preset.variable and name not in config.providers
    ]
    off = off[:2]
    own = [_model_row(model) for name, model in config.models.items() if not name.startswith(f"{SIM}/")]
    room = MAX_MODELS - len(off)
    if len(own) > room:
        own = [*own[: room - 1], (f"and {len(own) - room + 1} more", "see GET /v1/models")]
    rows = [("sim/chat  sim/echo  sim/tools  sim/json", "simulated, free, always here"), *own, *off]
    return [_line("Models" if place == 0 else "", *row) for place, row in enumerate(rows)]


def _model_row(model: Model) -> tuple[str, str]:
    name = "".join(char if char.isprintable() else "�" for char in model.name)
    if not model.deployments:
        return f"{name[: WIDTH - 8]:<14}off", "its providers are off"
    first = model.deployments[0]
    more = f" and {len(model.deployments) - 1} more" if len(model.deployments) > 1 else ""
    preset = PRESETS.get(first.provider.name)
    if model.name == first.name and preset is not None and preset.variable:
        return name[:WIDTH], f"{preset.variables[0]} found"
    return name[:WIDTH], f"{first.name}{more}"[:60]


def _example(address: str, key: str) -> list[str]:
    """Four lines to paste whole."""
    return [
        _line("Try it", f"curl {address}/v1/chat/completions \\"),
        f'              -H "Authorization: Bearer {key}" \\',
        '              -H "Content-Type: application/json" \\',
        """              -d '{"model":"sim/chat","messages":[{"role":"user","content":"Hello"}]}'""",
    ]


def _line(label: str, text: str, remark: str = "") -> str:
    return f"  {label:<10}{f'{text:<{WIDTH - 2}}  {remark}' if remark else text}".rstrip()
