"""Commands that make artefacts: fit, train, classifier, export, convert."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

from diffusion.checkpoint import load, read_metadata
from training import classifier, inspect
from training import config as configs
from training import user_data as own
from training.config import find_artefact
from training.convert import Options, convert, write_diffusers
from training.convert.openai import Flags
from training.evaluate.verdict import verdict
from training.export import export, oracle
from training.fit import estimate
from training.fit.loop import Fit, RunOptions
from training.fit.parallel import pick_device, ranks
from training.fit.signals import INTERRUPTED, interrupted


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
    given = {"steps": arguments.steps, "seed": arguments.seed, "precision": arguments.precision}
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
    )
    if not arguments.threads and own.one_thread(config):
        torch.set_num_threads(1)  # more of them wait for each other longer than they work
    options = RunOptions(
        out=written.parent / config.name, restart=arguments.restart, save_every=200
    )
    with ranks(arguments.device) as place:
        tried = Fit(config, replace(options, restart=True), place, dataset)
        print(own.expectations(config, dataset, export.parameters(tried.model)))
        print(f"{estimate.measure(tried, evaluate=not arguments.no_evaluation)}, on this machine")
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
        beside=True,
    )
    print(inspect.describe(path))
    found = verdict(read_metadata(path))
    if found is not None and not found.ready:
        print(f"\n{found}", file=sys.stderr)
        return 1
    print("" if found is None else f"\n{found}")
    print(f"serve it: noneq serve --models {arguments.models}")
    return 0


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
    print(inspect.describe(path))
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
    print(inspect.describe(path))
    return 0
