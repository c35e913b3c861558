"""
`python -m grafana.preview --prometheus URL --out FOLDER`: each board as a page, with `--pictures` as a picture too.

It reads the dashboards as they are on disk: build them first.
"""

from __future__ import annotations

import argparse
import asyncio
import html
import json
import shutil
import subprocess
import time
from pathlib import Path

from grafana.build import BOARDS, FOLDER
from grafana.panels import Json
from grafana.preview.asking import Sources, ask, ask_ledger, panels_of
from grafana.preview.drawing import draw

WIDTH, LINE, GAP, HEAD = 1_560, 38, 8, 64
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
STYLE = """
body { margin: 0; background: #111217; color: #ccccdc; font: 13px/1.35 Inter, "DejaVu Sans", Arial, sans-serif; }
h1 { font-size: 20px; font-weight: 500; margin: 16px 16px 0; } h1 small { color: #8e8e9e; font-size: 13px; }
main { position: relative; } section, h2 { position: absolute; box-sizing: border-box; overflow: hidden; }
h2 { font-size: 15px; font-weight: 500; margin: 0; padding: 8px 4px; }
section { background: #181b1f; border: 1px solid #24262c; border-radius: 3px; padding: 6px 8px; }
h3 { font-size: 13px; font-weight: 500; margin: 0 0 4px; white-space: nowrap; }
.stat { font-size: 28px; text-align: center; margin: 22px 0; } .none { text-align: center; color: #6e7080; }
svg text { fill: #8e8e9e; font-size: 11px; } .grid { stroke: #24262c; } polyline { fill: none; stroke-width: 1.5; }
.limit { stroke-dasharray: 6 5; } .legend { font-size: 11px; } .legend span { margin-right: 10px; white-space: nowrap; }
.legend i { display: inline-block; width: 12px; height: 3px; margin: 0 5px 3px 0; }
.bar { display: flex; gap: 10px; margin: 7px 0; align-items: center; } .bar span { width: 38%; text-align: right; }
.bar b { flex: 1; background: #24262c; } .bar b i { display: block; height: 20px; } .bar em { width: 76px; }
table { border-collapse: collapse; width: 100%; } th { text-align: left; color: #6e9fff; font-weight: 500; }
td, th { border-bottom: 1px solid #24262c; padding: 4px 8px; white-space: nowrap; }
"""


def page(board: Json, sources: Sources) -> tuple[str, int]:
    """The board as HTML, and its height in pixels."""
    made, bottom = [], 0
    span = sources.from_seconds, sources.to_seconds
    heads = [panel for panel in board["panels"] if panel["type"] == "row"]
    for panel in (*heads, *panels_of(board)):
        place = panel["gridPos"]
        left, top = GAP + place["x"] * (WIDTH - 2 * GAP) / 24, place["y"] * LINE
        wide, tall = place["w"] * (WIDTH - 2 * GAP) / 24 - GAP, place["h"] * LINE - GAP
        style = f"left:{left:.0f}px;top:{top}px;width:{wide:.0f}px;height:{tall}px"
        bottom = max(bottom, top + tall)
        title = html.escape(panel["title"])
        if panel["type"] == "row":
            made.append(f'<h2 style="{style}">{title}</h2>')
            continue
        of_ledger = "rawSql" in panel["targets"][0]
        rows = asyncio.run(ask_ledger(panel, sources)) if of_ledger else []
        drawn = draw(panel, [] if of_ledger else ask(panel, sources), rows, (wide - 18, tall - 36), span)
        says = html.escape(panel["description"])
        made.append(f'<section style="{style}" title="{says}"><h3>{title}</h3>{drawn}</section>')
    title = f"<h1>{html.escape(board['title'])} <small>{html.escape(board['description'])}</small></h1>"
    text = f"<!doctype html><meta charset=utf-8><style>{STYLE}</style>{title}<main>{''.join(made)}</main>"
    return text, bottom + HEAD


def photograph(file: Path, height: int) -> None:
    program = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    if program is None:
        raise SystemExit("chromium takes the pictures, and is not installed")
    command = [program, "--headless", "--no-sandbox", "--hide-scrollbars", "--disable-gpu"]
    command += [f"--window-size={WIDTH},{height}", f"--screenshot={file.with_suffix('.png')}", file.absolute().as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m grafana.preview", description=__doc__)
    parser.add_argument("--prometheus", required=True, metavar="URL")
    parser.add_argument("--ledger", default="", metavar="DSN", help="a login that may become strata_grafana")
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--interval", default="1m", help="the window of rates")
    parser.add_argument("--pictures", action="store_true", help="PNG beside the HTML; needs chromium")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    given = parser.parse_args()
    now = time.time()
    values = dict.fromkeys(("job", "instance", "provider", "model", "key"), ".*")
    values |= {"interval": given.interval, "__range": f"{given.minutes}m"}
    sources = Sources(given.prometheus.rstrip("/"), given.ledger, now - given.minutes * 60, now, values)
    given.out.mkdir(parents=True, exist_ok=True)
    for name in BOARDS:
        text, height = page(json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")), sources)
        file = given.out / f"{name}.html"
        file.write_text(text, encoding="utf-8")
        if given.pictures:
            photograph(file, height)


if __name__ == "__main__":
    main()
