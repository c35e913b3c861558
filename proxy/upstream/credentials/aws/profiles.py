"""
The files of the AWS command line: `~/.aws/config` and `~/.aws/credentials`. What needs a program of its own to run, or
somebody to sign in, is refused by name, because a server has neither.
"""

from __future__ import annotations

import configparser
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from proxy.upstream.credentials.renewal import unauthorised

UNSUPPORTED = {
    "credential_process": "runs a program",
    "sso_session": "needs a sign-in (SSO)",
    "sso_start_url": "needs a sign-in (SSO)",
    "login_session": "needs a sign-in",
    "source_profile": "assumes a role by another profile",
    "credential_source": "assumes a role by another source",
}


class Profile(NamedTuple):
    name: str
    settings: Mapping[str, str]

    def refusal(self) -> str:
        """Why there are no keys in it, and what to do."""
        why = next((reason for name, reason in UNSUPPORTED.items() if self.settings.get(name)), "")
        if not why:
            return f'The AWS profile "{self.name}" holds no access key: put aws_access_key_id into it.'
        return (
            f'The AWS profile "{self.name}" {why}, which this gateway does not: give it access_key_id and '
            "secret_access_key, a bearer key (AWS_BEARER_TOKEN_BEDROCK), or a role by web identity or instance."
        )


def read_profile(name: str, environ: Mapping[str, str]) -> Profile | None:
    """None where neither file knows it. Raises UpstreamError for a file that cannot be read."""
    home = Path(environ.get("HOME") or Path.home()) / ".aws"
    config = Path(environ.get("AWS_CONFIG_FILE") or home / "config").expanduser()
    credentials = Path(environ.get("AWS_SHARED_CREDENTIALS_FILE") or home / "credentials").expanduser()
    section = name if name == "default" else f"profile {name}"
    settings = _read(config, section) | _read(credentials, name)
    return Profile(name, settings) if settings else None


def _read(path: Path, section: str) -> dict[str, str]:
    # without a default section: in these files `default` is a profile like any other
    parser = configparser.RawConfigParser(default_section="", strict=False)
    try:
        parser.read_string(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, configparser.Error) as error:
        raise unauthorised(f"{path} cannot be read ({type(error).__name__}): mend it, or its permissions.") from None
    return dict(parser[section]) if parser.has_section(section) else {}
