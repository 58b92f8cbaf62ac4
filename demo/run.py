"""`pairmill demo`: make the small web, run the recipe over it, compare the result with the truth."""

from __future__ import annotations

import json
import os
import sys
import time
import webbrowser
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from .. import pipeline
from ..recipe import load_recipe
from ..shards.commit import write_json
from ..shards.store_path import StorePath
from .screen import WIDTH, render
from .server import serving
from .truth import compare, within
from .web import Web, make_web

PICTURES, SEED = 4_500, 7
WEB = Path("demo-web")  # where the output folder is in an object store, from which no server serves


def run_demo(out: Path, *, overrides: Mapping[str, Any] | None = None, pictures: int | None = None) -> int:
    """Run the demo in the folder `out`, going on where it was stopped. Returns the exit code.

    overrides: of recipe `demo`, by dotted key. The screen goes to stdout, all else to stderr.
    Returns 1 where a task failed or a figure missed its bar. Raises what `pipeline.run` raises.
    """
    begun = time.perf_counter()
    web = ready_web(WEB if isinstance(out, StorePath) else out / "web", pictures or PICTURES, SEED)
    paths = {
        "ingest.input": [str(web.lists)],
        "evaluate.retrieval": str(web.folder / "holdout"),
        "evaluate.classification": str(web.folder / "classes"),
    }
    with serving(web.folder) as resolve:
        recipe = load_recipe("demo", {**paths, "run.resolve": resolve, **(overrides or {})})
        summary = pipeline.run(recipe, out)
    name = recipe.decide.name
    figures = compare(out, web.folder, name)
    problems = within(figures, name)
    write_json({**figures, "problems": problems}, out / "report" / "truth.json")
    page = out / "report" / "index.html"
    Console(width=WIDTH).print(render(figures, page, time.perf_counter() - begun, name))
    _show(page)
    return 1 if problems else summary.exit_code


def ready_web(folder: Path, pictures: int, seed: int) -> Web:
    """The made web in `folder`; made now, unless it is there already and is the same."""
    mark, wanted = folder / "web.json", {"pictures": pictures, "seed": seed}
    if mark.exists() and json.loads(mark.read_text(encoding="utf-8")) == wanted:
        return Web(folder)
    print(
        f"painting {pictures:,} pictures, their copies and what goes wrong ...", file=sys.stderr, flush=True
    )
    mark.unlink(missing_ok=True)
    web = make_web(folder, pictures=pictures, seed=seed)
    write_json(wanted, mark)
    return web


def _show(page: Path) -> None:
    """Open the report where somebody sits in front of a screen."""
    has_screen = sys.platform == "darwin" or any(
        name in os.environ for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
    on_disk = not isinstance(page, StorePath)
    if sys.stdout.isatty() and has_screen and on_disk and page.exists():
        webbrowser.open(page.resolve().as_uri())
