"""The commands. No logic here: a command loads a recipe, calls one function, prints one JSON object.

Progress and errors go to stderr. Exit: 0 all done, 1 finished with failed tasks, 2 bad recipe or flags
with nothing started, 130 stopped by Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import sys

HELP = """\
pairmill {version}: image-text datasets from lists of URLs, and contrastive models from the datasets

Usage: pairmill COMMAND ...

The whole job
  run RECIPE        lists in, dataset out, model trained, report written; go on where it was stopped
  demo              the same on a small web made on the spot, compared with the truth
  systems [NAME]    the published systems that models are trained by; of one, its parameters
  recipes           the recipes that ship with pairmill
  rules [NAME]      the rule sets of published corpora; of one, its rules, values, source

One stage of it, over the output folder of a run: local, or s3://, gs://, az://BUCKET/PREFIX
  ingest DIR        lists to pairs: columns found, URLs canonical, captions normalised
  dedup DIR         copies of a URL, of a caption, of a pair, counted
  language DIR      languages, text rules: what is worth fetching
  fetch DIR         pictures from the web into raw shards; --retry-failed for passing causes
  near DIR          near-copies of pictures
  decontaminate DIR pictures and captions of evaluation sets; hashes that must not be kept
  bootstrap DIR     the scorer, trained on the cleanest part of the crawl, cross-fitted
  embed DIR         embeddings and the score of every fetched pair
  noise DIR         scores calibrated to a share of noise, per language
  decide DIR        the selection, and one reason for every other pair
  write DIR         the dataset: shuffled, hashed shards with manifest and data card
  train DIR         the model, on the dataset or on raw shards with a selection
  evaluate DIR      zero-shot classification and retrieval of the trained models
  report DIR        the page: report/index.html

Models elsewhere
  export MODEL OUT  a model as open_clip.create_model loads it
  import FILE DIR   a model that was exported, or a safetensors file, as --name NAME

To look into it
  explain DIR WHAT  the whole story of one pair, by uid or URL
  decide DIR --try  what rules would keep: funnel, overlap, pictures on a page; decides nothing
  diff DIR A B      what one selection keeps and the other drops, and why
  redact DIR LIST   take URLs, uids or hashes out of a dataset, with a proof; later runs remember
  verify DIR        re-hash and cross-check everything that was written
  unlock DIR        free a folder in an object store that a dead run still holds

pairmill COMMAND --help tells a command's flags. Every setting of a recipe can be given
with --set, as in: pairmill run laion --input list.parquet --set decide.max_noise=0.1
"""


def main() -> None:
    """The entry point: answers --help without importing anything heavy."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help", "help"):
        from . import __version__

        print(HELP.format(version=__version__), end="")
        raise SystemExit(0 if len(sys.argv) > 1 else 2)
    from .commands import start

    raise SystemExit(start(sys.argv[1:]))
