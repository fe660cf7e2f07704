"""Training, offline: fit a model, measure it, export it for serving, look at it.

    python -m training fit swissroll          into runs/swissroll, as training/configs says
    python -m training train photographs/     fit to pictures or a table of your own, and export
    python -m training classifier mnist-classifier        fit, measure and export p(y | x_t)
    python -m training export swissroll       into models/swissroll: artefact, card, samples
    python -m training convert FOLDER -o models/NAME      a model of diffusers or of OpenAI's
    python -m training export mnist --to diffusers        an artefact for diffusers
    python -m training profile swissroll      measure its errors step by step, of training data
    python -m training evaluate swissroll     measure an exported artefact
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
from typing import get_args

import torch

from diffusion.checkpoint import ArtefactError
from diffusion.likelihood.estimator import Spacing, StrataKind
from diffusion.samplers import SAMPLERS
from training import config as configs
from training import data
from training.commands.making import do_classifier, do_convert, do_export, do_fit, do_train
from training.commands.measuring import (
    do_evaluate,
    do_heldout,
    do_inspect,
    do_parzen,
    do_peer,
    do_profile,
    do_quantiles,
    do_reference,
    do_report,
)
from training.commands.publishing import do_examples, do_figures, do_paper, do_schedules
from training.convert.openai import Flags
from training.evaluate import patches as peer
from training.fit import checkpoint as state
from training.fit.loop import FitError

NAMED = "a folder of pictures, a table, or a configuration for its [data]"
VARIANCES = ("lower", "upper", "optimal")
EXPECTED = (
    ArtefactError,
    configs.ConfigError,
    data.DataError,
    state.CheckpointError,
    FitError,
    ValueError,
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
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
    device.add_argument("--threads", type=int, help="of the CPU, for each process")

    def command(
        name: str, run: Callable[[argparse.Namespace], int], *parents: argparse.ArgumentParser
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=run.__doc__, parents=list(parents))
        made.set_defaults(run=run)
        return made

    one = command("fit", do_fit, device)
    one.add_argument("name", help="of a file in training/configs, or a path ending in .toml")
    one.add_argument("--out", type=Path, help="run folder (default runs/NAME)")
    one.add_argument("--steps", type=int, help="in place of the configuration's")
    one.add_argument("--seed", type=int, help="in place of the configuration's")
    one.add_argument("--precision", choices=("float32", "bfloat16"), help="likewise")
    one.add_argument("--stop-at", type=int, help="save and end after this step")
    one.add_argument("--save-every", type=int, default=200, help="steps between checkpoints")
    one.add_argument("--restart", action="store_true", help="begin anew over an old run")
    one.add_argument("--compile", action="store_true", help="torch.compile the network")

    one = command("train", do_train, device, models)
    one.add_argument("data", type=Path, help="a folder of pictures, or a table (.csv, .npy)")
    one.add_argument("--name", help="of the model (default the data's own)")
    one.add_argument("--side", type=int, help="pixels pictures are scaled to (32)")
    one.add_argument("--grey", action="store_true", help="pictures without their colours")
    one.add_argument(
        "--steps", type=int, help="of the fit, at most; more than before goes on from there"
    )
    one.add_argument("--plan", action="store_true", help="write the configuration and stop")
    one.add_argument("--restart", action="store_true", help="begin anew over an old run")
    one.add_argument("--no-evaluation", action="store_true", help="write the card without numbers")
    one = command("classifier", do_classifier, models)
    one.add_argument("name", help="of a file in training/configs, or a path ending in .toml")
    one.add_argument("--threads", type=int, help="of the CPU")

    one = command("export", do_export, device, models)
    one.add_argument("name", help="of a file in training/configs, or a path ending in .toml")
    one.add_argument("--out", type=Path, help="run folder (default runs/NAME)")
    one.add_argument("--no-evaluation", action="store_true", help="write the card without numbers")
    one.add_argument(
        "--to",
        choices=("diffusers",),
        help="write an artefact for another library, into --out (default models/NAME/diffusers)",
    )

    one = command("convert", do_convert, device)
    one.add_argument("source", type=Path, help="a folder of diffusers, or a .pt of OpenAI's")
    one.add_argument("-o", "--out", type=Path, required=True, help="models/NAME")
    one.add_argument("--title", help="of the card")
    one.add_argument("--size", type=int, nargs=2, help="height and width, where the source is mute")
    one.add_argument("--levels", type=int, default=256, help="of the images it was trained on")
    one.add_argument("--data", help=f"that the bound is evaluated on: {NAMED}")
    one.add_argument(
        "--variance",
        choices=VARIANCES,
        help="of the model from now on, measured on that data (default the source's)",
    )
    one.add_argument("--points", type=int, help="steps at which it is measured (default all)")
    one.add_argument("--rows", type=int, default=100, help="data of that evaluation")
    one.add_argument("--terms", type=int, default=32, help="network evaluations an example")
    one.add_argument("--samples", type=int, default=16, help="on the sheet; 0 for no sheet")
    one.add_argument("--steps", type=int, default=50, help="of DDIM, for the sheet")
    flags = one.add_argument_group("flags that a checkpoint of OpenAI's was trained with")
    for flag, known in Flags.model_fields.items():
        flags.add_argument(f"--{flag}", metavar="X", help=f"(default {known.default!r})")

    one = command("evaluate", do_evaluate, device, models)
    one.add_argument("name", help="of a model, or a path ending in .safetensors")
    one.add_argument("--split", choices=data.SPLITS, default="test")
    one.add_argument("--data", help=f"in the place of its own: {NAMED}")
    one.add_argument("--rows", type=int, help="how many of them (default all)")
    one.add_argument("--terms", type=int, help="network evaluations an example (default all steps)")
    one.add_argument(
        "--trajectories",
        type=int,
        help="bound by the mean weight of so many whole trajectories (2015, Equation 9)",
    )
    one.add_argument(
        "--strata",
        choices=get_args(StrataKind),
        default="even",
        help="that the terms are drawn from; by importance needs a profile, and leaves less error",
    )
    one.add_argument(
        "--target-error",
        type=float,
        help="nats an example: as many terms as leave it, by the profile",
    )
    one.add_argument(
        "--steps", type=int, nargs="+", help="of shorter chains whose bounds are measured"
    )
    one.add_argument("--spacing", choices=get_args(Spacing), default="optimal", help="of the steps")
    one.add_argument(
        "--convention",
        action="append",
        choices=("discretised", "density", "paper"),
        help="may be repeated (default the data's own)",
    )
    one.add_argument("--seed", type=int, default=1)
    one.add_argument("--batch", type=int, default=512, help="rows a network call")
    one.add_argument("--write", action="store_true", help="into the artefact and its card")
    one.add_argument("--json", action="store_true")

    one = command("quantiles", do_quantiles, device, models)
    one.add_argument("name", help="of a model, or a path ending in .safetensors")
    one.add_argument(
        "--data", type=int, help="so many rows only, from all over (default as it was)"
    )
    one.add_argument("--batch", type=int, default=512, help="rows a network call")

    one = command("heldout", do_heldout, models)
    one.add_argument("name", help="of a model, or a path ending in .safetensors")

    one = command("reference", do_reference, device, models)
    one.add_argument("name", help="of a model, or a path ending in .safetensors")
    one.add_argument("--rows", type=int, help="of test data (default 400)")
    one.add_argument("--data", help=f"in the place of its own: {NAMED}")
    one.add_argument("--batch", type=int, default=256, help="rows a network call")

    one = command("parzen", do_parzen, device, models)
    one.add_argument("name", help="of a model; with --data of a file in training/configs")
    one.add_argument("--data", action="store_true", help="training data in the samples' place")
    one.add_argument("--samples", type=int, default=10_000)
    one.add_argument("--sampler", choices=list(SAMPLERS), default="ancestral")
    one.add_argument("--steps", type=int, default=30, help="of the sampler")
    one.add_argument("--stop", type=int, default=0, help="stop at this t, and take x_0hat there")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--out", type=Path, help="folder of the samples (default runs/parzen/NAME)")

    one = command("peer", do_peer, models)
    one.add_argument("name", help="of a file in training/configs, or a path ending in .toml")
    one.add_argument("--data", type=int, default=2000, help="how many rows of test")
    for size, field in peer.PeerConfig.model_fields.items():
        about = f"{field.description} (default {field.default})"
        one.add_argument(f"--{size}", type=int, default=field.default, help=about)

    one = command("profile", do_profile, device, models)
    one.add_argument("name", help="of a model, or a path ending in .safetensors")
    one.add_argument("--data", help=f"in the place of its own: {NAMED}")
    one.add_argument("--rows", type=int, help="at each step that is measured")
    one.add_argument("--points", type=int, help="steps that are measured, the others interpolated")
    one.add_argument("--seed", type=int, help="of the noise")
    one.add_argument(
        "--variance",
        choices=VARIANCES,
        help="of the model from now on (default as it was; these three need no other network)",
    )
    one.add_argument(
        "--terms",
        action="store_true",
        help="of the bound alone: errors, variance and paths, and so the model, stay as they are",
    )
    one.add_argument("--write", action="store_true", help="into the artefact and its card")

    one = command("report", do_report, device, models)
    one.add_argument("name", help="of a model, or a path ending in .safetensors")

    one = command("inspect", do_inspect, models)
    one.add_argument("name", help="of a model, or a path ending in .safetensors")
    one.add_argument("--json", action="store_true", help="the whole document")

    one = command("figures", do_figures, models)
    one.add_argument("--folder", type=Path, default=Path("docs/figures"))

    one = command("paper", do_paper, device, models)
    one.add_argument("names", nargs="*", help="of experiments to fit (default all)")
    one.add_argument("--large", action="store_true", help="at a GPU's size (training/configs/gpu)")
    one.add_argument("--compile", action="store_true", help="torch.compile the networks")
    one.add_argument("--runs", type=Path, default=Path("runs"), help="folder of run folders")
    one.add_argument("--docs", type=Path, default=Path("docs"), help="where the page goes")

    one = command("schedules", do_schedules, device)
    one.add_argument("name", nargs="?", default="schedules", help="of the configuration")
    one.add_argument("--folder", type=Path, default=Path("docs/results"))
    one.add_argument("--out", type=Path, default=Path("runs/schedules"), help="run folders")

    one = command("examples", do_examples)
    one.add_argument("--folder", type=Path, default=Path("examples"))
    return top


def main(words: list[str] | None = None) -> int:
    """Run one command; what the user can fix is told in a line, without a traceback."""
    arguments = parser().parse_args(words)
    if getattr(arguments, "threads", None):
        torch.set_num_threads(arguments.threads)
    try:
        run: Callable[[argparse.Namespace], int] = arguments.run
        return run(arguments)
    except EXPECTED as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
