"""Training, offline: fit a model, measure it, export it for serving, look at it.

    python -m training fit swissroll          into runs/swissroll, as training/configs says
    python -m training train photographs/     fit to pictures or a table of your own, and export
    python -m training classifier mnist-classifier        fit, measure and export p(y | x_t)
    python -m training export swissroll       into models/swissroll: artefact, card, samples
    python -m training convert FOLDER -o models/NAME      a model of diffusers or of OpenAI's
    python -m training export mnist --to diffusers        an artefact for diffusers
    python -m training profile swissroll      measure its errors step by step, of training data
    python -m training evaluate swissroll     measure an exported artefact
    python -m training calibrate mnist        rank held-out data among draws of their posteriors
    python -m training quantiles swissroll    add the spread over data to what was measured
    python -m training heldout swissroll      write a few test data beside an artefact
    python -m training reference swissroll    write the terms of test data beside an artefact
    python -m training report swissroll       entropies of its reverse steps, plotted, into its card
    python -m training inspect swissroll      print an exported artefact's facts
    python -m training peer deadleaves        Gaussian mixtures of the same data, measured
    python -m training parzen mnist           the Parzen-window score of an exported artefact
    python -m training paper                  the paper's experiments, all of them, into docs/
    python -m training figures                remake the documentation's pictures
    python -m training schedules              fit one network under every schedule, and compare
    python -m training examples               remake the request bodies of README's commands

Several processes: torchrun --nproc-per-node 2 -m training fit mnist
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from diffusion.checkpoint import ArtefactError
from training.cli import making, measuring, publishing
from training.config import ConfigError
from training.data import DataError
from training.fit.checkpoint import CheckpointError
from training.fit.loop import FitError

EXPECTED = (ArtefactError, ConfigError, DataError, CheckpointError, FitError, ValueError)


def parser() -> argparse.ArgumentParser:
    """Build the command-line parser."""
    top = argparse.ArgumentParser(
        prog="python -m training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True)
    models = argparse.ArgumentParser(add_help=False)
    models.add_argument("--models", type=Path, default=Path("models"), help="folder of models")
    device = argparse.ArgumentParser(add_help=False)
    device.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    device.add_argument("--threads", type=int, help="CPU threads of each process")

    def command(
        name: str, run: Callable[[argparse.Namespace], int], *parents: argparse.ArgumentParser
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=run.__doc__, parents=list(parents))
        made.set_defaults(run=run)
        return made

    for group in (making, measuring, publishing):
        group.add_commands(command, device, models)
    return top


def main(words: list[str] | None = None) -> int:
    """Run one command; report errors the user can fix in one line, without a traceback."""
    arguments = parser().parse_args(words)
    if getattr(arguments, "threads", None):
        torch.set_num_threads(arguments.threads)
    try:
        run: Callable[[argparse.Namespace], int] = arguments.run
        return run(arguments)
    except EXPECTED as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
