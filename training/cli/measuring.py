"""Commands that measure an artefact, or baselines to compare it with."""

import argparse
import json
from argparse import ArgumentParser
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from pydantic import TypeAdapter

from diffusion.checkpoint import Metadata, load, read_metadata, rewrite, save
from diffusion.likelihood.estimator import Choice, Spacing, StrataKind
from diffusion.model import DiffusionModel
from diffusion.posterior import Learned
from diffusion.profile import ProfileConfig
from diffusion.samplers import SAMPLERS, Sampler, SamplerConfig
from training import config as configs
from training import data, provenance
from training import user_data as own
from training.config import ConvertedConfig, artefact_path, find_artefact
from training.evaluate import entropy as report
from training.evaluate import parzen
from training.evaluate import patches as peer
from training.evaluate.bound import evaluate, measured_again, table
from training.evaluate.calibration import by_column, calibrate
from training.evaluate.calibration import table as calibration_table
from training.evaluate.profile import CLOSED
from training.evaluate.profile import table as profile_table
from training.export import export
from training.export.card import describe
from training.fit.parallel import pick_device


def _opened(arguments: argparse.Namespace) -> tuple[Path, DiffusionModel, Metadata]:
    """Load the named artefact: its path, model and metadata."""
    path = find_artefact(arguments.name, arguments.models)
    return path, *load(path, pick_device(arguments.device))


def _source(
    model: DiffusionModel, metadata: Metadata, given: str | None
) -> tuple[export.Source, Metadata, data.Dataset]:
    """The artefact's configuration and data; data `given` are recorded in the metadata."""
    if given is not None:
        return export.source_with(model, metadata, given)
    config, dataset = export.source(model, metadata)
    return config, metadata, dataset


def do_evaluate(arguments: argparse.Namespace) -> int:
    """Measure an artefact; with --write, into its document and card."""
    path, model, metadata = _opened(arguments)
    config, metadata, dataset = _source(model, metadata, arguments.data)
    found = []
    for steps in arguments.steps or (None,):
        asked = {"terms": arguments.terms, "strata": arguments.strata, "steps": steps}
        asked |= {"spacing": arguments.spacing, "target_error": arguments.target_error}
        found += evaluate(
            model,
            dataset,
            arguments.convention or (),
            split=arguments.split,
            count=arguments.rows,
            choice=Choice.model_validate(asked),
            trajectories=arguments.trajectories,
            seed=arguments.seed,
            batch=arguments.batch,
        )
    print(table(found))
    if arguments.json:
        print(json.dumps([e.model_dump(mode="json") for e in found], indent=2))
    if arguments.write:
        measured = {e.of for e in found}
        kept = [e for e in metadata.evaluation if e.of not in measured]
        rewrite(path, metadata.model_copy(update={"evaluation": (*kept, *found)}))
        export.write_card(path, config.title, model)
    return 0


def do_calibrate(arguments: argparse.Namespace) -> int:
    """Rank held-out data among draws of their posteriors; with --write, into artefact and card."""
    path, model, metadata = _opened(arguments)
    config, dataset = export.source(model, metadata)
    if not metadata.told:
        raise ValueError(
            f"{path} was told of no observations in training: fit it with conditional = true and "
            "[observations]; method 'twisted' needs no calibration"
        )
    found = calibrate(
        model,
        metadata.told,
        dataset.test,
        arguments.out or Path("runs") / "calibrate",
        count=arguments.data,
        draws=arguments.draws,
        steps=arguments.steps,
        seed=arguments.seed,
        batch=arguments.batch,
    )
    print("\n\n".join(filter(None, (calibration_table(found), by_column(found)))))
    if arguments.json:
        print(json.dumps([each.model_dump(mode="json") for each in found], indent=2))
    if arguments.write:
        rewrite(path, metadata.model_copy(update={"calibration": found}))
        export.write_card(path, config.title, model)
    return 0


def do_quantiles(arguments: argparse.Namespace) -> int:
    """Measure the bounds of an artefact again, as they were, and write their quantiles into it."""
    path, model, metadata = _opened(arguments)
    _, dataset = export.source(model, metadata)
    options = {"data": arguments.data, "batch": arguments.batch}
    again = measured_again(model, dataset, metadata.evaluation, **options)
    if not again:
        raise ValueError(f"{path} has no bound of the whole chain: evaluate it with --write")
    found = {e.of: e for e in again}
    kept = tuple(found.get(e.of, e) for e in metadata.evaluation)
    rewrite(path, metadata.model_copy(update={"evaluation": kept}))
    for e in again:
        least, median, most = (e.quantiles[i] for i in (0, 50, 100)) if e.quantiles else (None,) * 3
        count = e.quantiles_count or e.count
        print(f"{e.convention}: {count} data, {least} to {most}, median {median} nats")
    return 0


def do_heldout(arguments: argparse.Namespace) -> int:
    """Write some of the test split beside an artefact, to try things on."""
    path = find_artefact(arguments.name, arguments.models)
    model, metadata = load(path)
    _, dataset = export.source(model, metadata)
    print(export.write_examples(path, dataset))
    return 0


def do_reference(arguments: argparse.Namespace) -> int:
    """Measure the terms of held-out data, that others are compared with, beside an artefact."""
    path, model, metadata = _opened(arguments)
    config, _, dataset = _source(model, metadata, arguments.data)
    print(export.write_reference(path, model, dataset, count=arguments.rows, batch=arguments.batch))
    export.write_card(path, config.title, model)
    return 0


def do_profile(arguments: argparse.Namespace) -> int:
    """Measure an artefact's errors step by step; with --write, into it and its card."""
    path, model, metadata = _opened(arguments)
    config, metadata, dataset = _source(model, metadata, arguments.data)
    given = {"rows": arguments.rows, "points": arguments.points, "seed": arguments.seed}
    keys = config.profile.model_dump() | {k: v for k, v in given.items() if v is not None}
    profile = ProfileConfig.model_validate(keys)
    if arguments.terms:
        document = export.with_terms(model, metadata, dataset, profile)
        print(profile_table(model))
        if arguments.write:
            save(path, model, document)
        return 0
    variance = arguments.variance or metadata.variance
    found, document = export.with_profile(model, metadata, dataset, profile, variance)
    print(profile_table(found))
    if arguments.write:
        save(path, found, document)
        # Another variance changes the samples too, except those drawn by DDIM.
        if document.variance == metadata.variance or isinstance(config, ConvertedConfig):
            export.write_card(path, config.title, found)
        else:
            export.write_companions(path, config.title, found)
    return 0


def do_report(arguments: argparse.Namespace) -> int:
    """Write the report of an artefact, and show it in its card."""
    path, model, metadata = _opened(arguments)
    config, dataset = export.source(model, metadata)
    print("\n".join(str(file) for file in report.write(path, model, dataset)))
    export.write_card(path, config.title, model)
    return 0


def do_inspect(arguments: argparse.Namespace) -> int:
    """Print an artefact's facts."""
    path = find_artefact(arguments.name, arguments.models)
    metadata = read_metadata(path)
    print(metadata.model_dump_json(indent=2) if arguments.json else describe(path))
    return 0


def do_parzen(arguments: argparse.Namespace) -> int:
    """The Parzen-window score of an artefact, or with --data of the training data themselves."""
    count, device = arguments.samples, pick_device(arguments.device)
    words = f"python -m training parzen {arguments.name} --samples {count}"
    make: Callable[[], parzen.ParzenScore]
    if arguments.data:
        config = configs.load(arguments.name)
        words, device = f"{words} --data", torch.device("cpu")
        folder = arguments.out or Path("runs") / "parzen" / config.name
        out, make = folder / "data.json", partial(parzen.of_data, data.load(config.data), count)
    else:
        _, model, metadata = _opened(arguments)
        _, dataset = export.source(model, metadata)
        keys = {"name": arguments.sampler, "steps": arguments.steps}
        sampler: Sampler = TypeAdapter(SamplerConfig).validate_python(keys)
        words += f" --sampler {sampler.name} --steps {arguments.steps} --seed {arguments.seed}"
        words += f" --stop {arguments.stop}" if arguments.stop else ""
        folder = arguments.out or Path("runs") / "parzen" / metadata.name
        kept = parzen.run_folder(folder, model, sampler, arguments.seed, arguments.stop)
        keys = {"sampler": sampler, "seed": arguments.seed, "folder": kept, "stop": arguments.stop}
        out = folder / f"{kept.name}.json"
        make = partial(parzen.of_model, model, dataset, count, **keys)
    found = provenance.measure(words, device, make)
    provenance.write(out, found)
    s: parzen.ParzenScore = found.found
    print(
        f"{s.nats:.1f} ± {s.error:.1f} nats, {s.bits:.1f} ± {s.bits_error:.1f} bits on {s.data} "
        f"test data; sigma {s.bandwidth:.3f}, {s.centres} centres"
    )
    return 0


def do_peer(arguments: argparse.Namespace) -> int:
    """Fit Gaussian mixtures to a data set of grey images, and measure them beside the artefact."""
    sizes = {size: getattr(arguments, size) for size in peer.PeerConfig.model_fields}
    config = configs.load(arguments.name)
    dataset = data.load(config.data)
    command = " ".join(f"--{size} {number}" for size, number in sizes.items())
    made = provenance.measure(
        f"python -m training peer {arguments.name} --data {arguments.data} {command}",
        torch.device("cpu"),
        partial(peer.compare, dataset, peer.PeerConfig(**sizes), arguments.data),
    )
    provenance.write(Path("runs") / "peer" / f"{config.name}.json", made)
    path, found = artefact_path(arguments.models, config.name), made.found
    ours = peer.diffusion(read_metadata(path), dataset) if path.exists() else None
    print(peer.table([*found, ours] if ours else found))
    return 0


def add_commands(
    command: Callable[..., ArgumentParser], device: ArgumentParser, models: ArgumentParser
) -> None:
    """Add these commands and their arguments; `device` and `models` hold shared arguments."""
    one = command("evaluate", do_evaluate, device, models)
    one.add_argument("name", help="of a model, or a path ending in .safetensors")
    one.add_argument("--split", choices=data.SPLITS, default="test")
    one.add_argument("--data", help=f"in the place of its own: {own.NAMED}")
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

    one = command("calibrate", do_calibrate, device, models)
    one.add_argument("name", help="of a model, or a path ending in .safetensors")
    one.add_argument("--data", type=int, default=1000, help="held-out data a case, at most")
    one.add_argument("--draws", type=int, default=19, help="from each posterior")
    one.add_argument("--steps", type=int, default=Learned.default_steps, help="of each chain")
    one.add_argument("--seed", type=int, default=1)
    one.add_argument("--batch", type=int, default=128, help="rows a network call; more on a GPU")
    one.add_argument(
        "--out", type=Path, help="folder of finished cases, to go on from (default runs/calibrate)"
    )
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
    one.add_argument("--data", help=f"in the place of its own: {own.NAMED}")
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
    one.add_argument("--data", help=f"in the place of its own: {own.NAMED}")
    one.add_argument("--rows", type=int, help="at each step that is measured")
    one.add_argument("--points", type=int, help="steps that are measured, the others interpolated")
    one.add_argument("--seed", type=int, help="of the noise")
    one.add_argument(
        "--variance",
        choices=CLOSED,
        help="of the model from now on (default as it was; these need no other network)",
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
