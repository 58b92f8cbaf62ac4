"""The commands that do something, wired with cyclopts; flags of a stage come from its settings model."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter
from pydantic import ValidationError
from rich.console import Console

from . import __version__
from . import recipe as models
from .arguments import one_set_each, overrides_of, refuse_undecodable, show_any_text
from .errors import ConfigError, PairmillError
from .folders import Place, Where, unlock
from .listings import recipes, rules, systems
from .looking import diff, explain, try_decide, verify
from .model_commands import export, import_
from .redact import redact
from .shards.store_path import open_path, reach
from .train_ranks import as_ranks, engine_of_ranks

if TYPE_CHECKING:
    from .pipeline import Summary

app = App(
    name="pairmill",
    version=__version__,
    help_format="plaintext",  # others take the <name> in a help text for markup
    help_on_error=False,
    result_action="return_value",  # and the commands' own is the exit code
    suppress_keyboard_interrupt=False,  # it would leave without a word
    default_parameter=Parameter(consume_multiple=True),  # --input A B, as a shell makes of a glob
)

Sets = Annotated[
    tuple[str, ...],
    Parameter(
        name="--set",
        negative=(),
        consume_multiple=False,
        help="settings, as in fetch.retries=3 run.max_failed=0",
    ),
]
EngineName = Annotated[
    str | None, Parameter(name="--engine", help="ray (a local one, or run.address) or here")
]


def start(arguments: Sequence[str]) -> int:
    """Run one command line. Returns the exit code; an expected failure is one line on stderr."""
    stops = [signal.SIGINT]

    def terminate(*_: object) -> None:
        stops.append(signal.SIGTERM)  # Ray passes on that there was an interrupt, and no more
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminate)
    show_any_text()
    try:
        code = app(one_set_each(arguments), exit_on_error=False, print_error=False)
    except MissingArgumentError as error:
        return _say(f"error: {error} It stands before flags that take several values.", 2)
    except CycloptsError as error:
        wrong = error.__cause__
        said = models.say_wrong(wrong) if isinstance(wrong, ValidationError) else str(error)
        return _say(f"error: {said}", 2)
    except PairmillError as error:
        return _say(f"error: {error}", error.exit_code)
    except KeyboardInterrupt:
        return _say("stopped; the same command goes on from here", 128 + stops[-1])
    except BrokenPipeError:
        return 1
    except OSError as error:
        return _say(f"error: {error.filename or ''}: {error.strerror or error}", 1)
    return int(code or 0)


def _say(text: str, code: int) -> int:
    print(" ".join(text.split("\n")) if code == 2 else text, file=sys.stderr, flush=True)
    return code


@app.command
def run(
    recipe: str,
    *,
    input: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    out: Place | None = None,
    engine: EngineName = None,
    retry_failed: Annotated[bool, Parameter(negative=())] = False,
    set: Sets = (),
) -> int:
    """Do the whole of RECIPE (a YAML file, or the name of one that ships); run again, it goes on.

    Parameters
    ----------
    recipe
        a recipe file, or a name that `pairmill recipes` shows
    input
        lists of URLs with captions: paths, globs, folders or fsspec URLs
    out
        the output folder, local or at s3://, gs:// or az://; by default named after the recipe
    retry_failed
        ask again for pictures that failed for a passing cause
    """
    overrides = overrides_of(set, engine)
    if input:
        overrides["ingest.input"] = list(input)
    made = models.load_recipe(recipe, overrides)
    if not made.ingest.input:
        raise ConfigError(f"{recipe}: no list to read: give --input with a file, a folder or a glob")
    folder = out or Path(f"{made.name or Path(recipe).stem}-out")
    return _work(made, folder, retry_failed=retry_failed)


def _work(recipe: models.Recipe, folder: Path, **how: Any) -> int:
    """Run the recipe, however far it comes; the funnel goes to stderr, the summary to stdout."""
    from . import pipeline

    refuse_undecodable(folder)
    reach(folder)
    try:
        summary = pipeline.run(recipe, folder, **how)
    except pipeline.StoppedError as error:
        _show(error.summary)
        raise
    _show(summary)
    for stage, report in summary.stages.items():
        for task, error in report.failed.items():
            print(f"{stage} {task} failed: {error}", file=sys.stderr)
    return summary.exit_code


def _show(summary: Summary) -> None:
    from .pipeline import dump_summary
    from .stats.funnel import render_funnel

    console = Console(stderr=True)
    if summary.funnel:
        console.print(render_funnel(summary.funnel))
    page = open_path(summary.out) / "report" / "index.html"
    if page.exists():
        console.print(f"Report: {page}", markup=False)
    print(dump_summary(summary))


def _stage(
    command: str,
    folder: Path,
    flags: models.Settings | None,
    *,
    sets: Sequence[str],
    engine: str | None,
    retry_failed: bool = False,
) -> int:
    """Run one command's stages over a folder, with the folder's own recipe and the flags given on top."""
    from .pins import command_recipe

    reach(folder)
    made = command_recipe(folder, command, _overrides(command, flags, sets, engine))
    return as_ranks(command, partial(_work, made, folder, command=command, retry_failed=retry_failed))


def _overrides(
    command: str, flags: models.Settings | None, sets: Sequence[str], engine: str | None
) -> dict[str, Any]:
    """What one command's flags say, as dotted keys."""
    overrides = overrides_of(sets, engine) | engine_of_ranks()
    if flags is not None:
        given = flags.model_dump(mode="json", include=flags.model_fields_set)
        overrides |= {f"{command}.{key}": value for key, value in given.items()}
    return overrides


# command -> its settings model and its help: each runs its stages over the folder of a run
STAGE_COMMANDS: dict[str, tuple[type[models.Settings], str]] = {
    "ingest": (models.Ingest, "Lists to pairs: columns found, URLs canonical, captions normalised."),
    "dedup": (models.Dedup, "Count the copies of each URL, caption and pair."),
    "language": (models.Language, "Identify languages and apply the rules that need no picture."),
    "near": (models.Near, "Group near-copies of pictures by perceptual hash."),
    "bootstrap": (models.Bootstrap, "Train the scorer on the cleanest part of the crawl, cross-fitted."),
    "embed": (models.Embed, "Embed every fetched pair with a model that has not seen it."),
    "noise": (models.Noise, "Calibrate the scores, per language, to the share of noise among those kept."),
    "decontaminate": (models.Decontaminate, "Find what is of an evaluation set, or on a list of hashes."),
    "write": (models.Write, "Write the selection as shuffled shards with manifest and data card."),
    "train": (models.Train, "Train the model on the dataset, or on raw shards with a selection."),
    "evaluate": (models.Evaluate, "Zero-shot classification and retrieval of the trained models."),
    "report": (models.Report, "Write the page report/index.html."),
}


def _stage_command(name: str, model: type[models.Settings], text: str) -> Callable[..., int]:
    """The function behind one stage's command: cyclopts reads its flags from the annotations."""

    def command(folder: Where, *, flags: Any = None, engine: EngineName = None, set: Sets = ()) -> int:
        return _stage(name, folder, flags, sets=set, engine=engine)

    command.__name__, command.__doc__ = name, text
    command.__annotations__ = {
        **command.__annotations__,
        "folder": Where,
        "flags": Annotated[model | None, Parameter(name="*")],
        "engine": EngineName,
        "set": Sets,
        "return": int,
    }
    return command


for _name, (_model, _text) in STAGE_COMMANDS.items():
    app.command(_stage_command(_name, _model, _text), name=_name)


@app.command
def fetch(
    folder: Where,
    *,
    flags: Annotated[models.Fetch | None, Parameter(name="*")] = None,
    retry_failed: Annotated[bool, Parameter(negative=())] = False,
    engine: EngineName = None,
    set: Sets = (),
) -> int:
    """Fetch the pictures that are worth it into raw shards; each URL ends with its outcome.

    Parameters
    ----------
    retry_failed
        ask again for pictures that failed for a passing cause
    """
    return _stage("fetch", folder, flags, sets=set, engine=engine, retry_failed=retry_failed)


@app.command
def decide(
    folder: Where,
    *,
    flags: Annotated[models.Decide | None, Parameter(name="*")] = None,
    try_rules: Annotated[bool, Parameter(name="--try", negative=())] = False,
    engine: EngineName = None,
    set: Sets = (),
) -> int:
    """Decide which pairs stay; another threshold is another --name, and one query.

    Parameters
    ----------
    try_rules
        show what the rules would keep, on report/try.html, and decide nothing
    """
    if try_rules:
        return try_decide(folder, _overrides("decide", flags, set, engine))
    return _stage("decide", folder, flags, sets=set, engine=engine)


@app.command
def demo(
    *, out: Place = Path("demo-out"), engine: EngineName = None, pictures: int | None = None, set: Sets = ()
) -> int:
    """Make a small web, run the whole job over it on loopback, and compare what was found with the truth.

    Parameters
    ----------
    out
        the output folder
    pictures
        how many different pictures the small web holds
    """
    from .demo.run import run_demo

    return run_demo(out, overrides=overrides_of(set, engine), pictures=pictures)


for _listing in (recipes, rules, systems, explain, verify, diff, redact, unlock, export):
    app.command(_listing)
app.command(import_, name="import")
