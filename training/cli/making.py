"""Commands that make artefacts: fit, train, classifier, export, convert."""

import argparse
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch

from diffusion.calibration import LEAST_DATA
from diffusion.checkpoint import load, read_metadata
from training import classifier
from training import config as configs
from training import user_data as own
from training.config import find_artefact
from training.convert import Options, convert, write_diffusers
from training.convert.openai import Flags
from training.data.columns import Kind
from training.evaluate.baselines import verdict
from training.evaluate.profile import CLOSED
from training.export import export, oracle
from training.export.card import describe
from training.fit import estimate
from training.fit.loop import Fit, RunOptions
from training.fit.parallel import INTERRUPTED, interrupted, pick_device, ranks


def do_fit(arguments: argparse.Namespace) -> int:
    """Fit, or go on with a fit; 130 if it was interrupted."""
    if oracle.is_oracle(arguments.name):
        raise configs.ConfigError(
            f"{arguments.name} is an oracle, there is nothing to fit; "
            f"write `python -m training export {arguments.name}`"
        )
    if classifier.is_classifier(arguments.name):
        raise configs.ConfigError(
            f"{arguments.name} is a classifier, fitted and exported at once; "
            f"write `python -m training classifier {arguments.name}`"
        )
    given = {key: getattr(arguments, key) for key in ("initial", "steps", "seed", "precision")}
    config = configs.load(arguments.name, {k: v for k, v in given.items() if v is not None})
    options = RunOptions(
        out=arguments.out or Path("runs") / config.called,
        restart=arguments.restart,
        compile=arguments.compile,
        save_every=arguments.save_every,
        stop_at=arguments.stop_at,
    )
    with ranks(arguments.device) as place:
        done = Fit(config, options, place).run()
        if place.first:
            again = "python -m training " + ("export" if done else "fit")
            verb = "fitted" if done else "interrupted and saved; go on with"
            print(f"{verb}: {options.out}  ({again} {arguments.name})", file=sys.stderr)
    return 0 if done or arguments.stop_at else INTERRUPTED


def do_train(arguments: argparse.Namespace) -> int:
    """From data of one's own to a model; 1 if it is not ready, 130 if it was interrupted."""
    written, config, dataset = own.prepare(
        arguments.data,
        arguments.name,
        Path("runs"),
        side=arguments.side,
        grey=arguments.grey or None,
        steps=arguments.steps,
        given=arguments.given.split(",") if arguments.given else (),
        limits=arguments.limits,
        columns=arguments.columns,
        reals=arguments.reals,
    )
    if not arguments.threads and own.one_thread(config):
        torch.set_num_threads(1)  # with more threads, most of the time goes to synchronisation
    options = RunOptions(
        out=written.parent / config.name, restart=arguments.restart, save_every=200
    )
    with ranks(arguments.device) as place:
        tried = Fit(config, replace(options, restart=True), place, dataset)
        print(own.expectations(config, dataset, export.parameters(tried.model)))
        took = estimate.measure(tried, evaluate=not arguments.no_evaluation)
        print(f"{took}, if this machine stays as busy as it is")
        print(f"{written} has all the settings; edit it and give the same command again")
        if arguments.plan:
            return 0
        if not Fit(config, options, place, dataset).run():
            return interrupted()
    path = export.export(
        str(written),
        out=options.out,
        models=arguments.models,
        device=pick_device(arguments.device),
        measure=not arguments.no_evaluation,
        beside=not own.asks(config),
    )
    if not arguments.no_evaluation:
        certificate = export.certify(path, config.title, dataset, options.out / "calibrate")
    print(describe(path))
    made = read_metadata(path)
    if not arguments.no_evaluation:
        print(f"\n{certificate}")
        if own.asks(config) and made.certified != made.told:
            print(
                "\nNOT READY: 'auto' does not use this network, as its posteriors do not hold on "
                f"held-out rows, or these are fewer than {LEAST_DATA}: give it more rows or more "
                "--steps, or ask for method 'learned' if they are near enough",
                file=sys.stderr,
            )
            return 1
    found = None if own.asks(config) else verdict(made)
    if found is not None and not found.ready:
        print(f"\n{found}", file=sys.stderr)
        return 1
    print("" if found is None else f"\n{found}")
    print(f"serve it: noneq serve --models {arguments.models}")
    return 0


def _columns(text: str) -> dict[str, str]:
    """Read COLUMN=KIND,..."""
    found = dict(one.rsplit("=", 1) for one in text.split(",") if "=" in one)
    kinds = get_args(Kind)
    if len(found) != text.count(",") + 1 or not set(found.values()) <= set(kinds):
        raise argparse.ArgumentTypeError(
            f"came {text!r}, wanted is COLUMN=KIND,... with a kind of {', '.join(kinds)}"
        )
    return found


def _limits(text: str) -> dict[str, tuple[float, float]]:
    """Read a:b for each column; argparse's own error where it cannot be."""
    found = {}
    for part in text.split(","):
        name, _, ends = part.rpartition("=")
        least, _, most = ends.partition(":")
        try:
            found[name] = float(least), float(most)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{part!r} is not of the form COLUMN=LEAST:MOST, theta=-1:1 say"
            ) from None
    return found


def do_classifier(arguments: argparse.Namespace) -> int:
    """Fit, measure and export a classifier of noisy data."""
    path = classifier.make(arguments.name, arguments.models)
    print(path.with_name("README.md").read_text())
    return 0


def do_export(arguments: argparse.Namespace) -> int:
    """Export a fit or an oracle; with --to, an artefact for another library."""
    if arguments.to:
        found = find_artefact(arguments.name, arguments.models)
        folder = arguments.out or found.parent / arguments.to
        print(write_diffusers(*load(found), folder))
        return 0
    path = export.export(
        arguments.name,
        out=arguments.out,
        models=arguments.models,
        device=pick_device(arguments.device),
        measure=not arguments.no_evaluation,
    )
    print(describe(path))
    return 0


def do_convert(arguments: argparse.Namespace) -> int:
    """Make an artefact of a model that another library trained."""
    given = {flag: getattr(arguments, flag) for flag in Flags.model_fields}
    options = Options(
        flags={flag: value for flag, value in given.items() if value is not None},
        size=None if arguments.size is None else (arguments.size[0], arguments.size[1]),
        levels=arguments.levels,
        title=arguments.title,
        data=arguments.data,
        rows=arguments.rows,
        terms=arguments.terms,
        variance=arguments.variance,
        points=arguments.points,
        samples=arguments.samples,
        steps=arguments.steps,
    )
    path = convert(arguments.source, arguments.out, options, pick_device(arguments.device))
    print(describe(path))
    return 0


def add_commands(
    command: Callable[..., ArgumentParser], device: ArgumentParser, models: ArgumentParser
) -> None:
    """Add these commands and their arguments; `device` and `models` hold shared arguments."""
    one = command("fit", do_fit, device)
    one.add_argument("name", help="of a file in training/configs, or a path ending in .toml")
    one.add_argument("--out", type=Path, help="run folder (default runs/NAME)")
    one.add_argument("--initial", help="the model whose weights it starts from")
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
    one.add_argument(
        "--given",
        metavar="COLUMNS",
        help="of a table, x1,x2: will be known when the others are asked for (docs/inference.md)",
    )
    one.add_argument(
        "--limits",
        type=_limits,
        metavar="COLUMN=LEAST:MOST,...",
        help="of a table's columns, which no sample then exceeds (a uniform prior's, say)",
    )
    one.add_argument(
        "--columns",
        type=_columns,
        metavar="COLUMN=KIND,...",
        help="what columns hold, if not what is inferred: real, integer, category, or out",
    )
    one.add_argument(
        "--reals",
        action="store_true",
        help="take all columns as real numbers, which can also be seen with noise or through A",
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
    one.add_argument("--data", help=f"that the bound is evaluated on: {own.NAMED}")
    one.add_argument(
        "--variance",
        choices=CLOSED,
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
