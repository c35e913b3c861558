"""`python -m proxy` is `strata`."""

from __future__ import annotations

import sys


def run() -> int:
    """The exit code. Ctrl-C ends it without a trace from the first moment on."""
    try:
        from proxy.cli import main  # noqa: PLC0415  (it is most of a short command's time)

        return main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(run())
