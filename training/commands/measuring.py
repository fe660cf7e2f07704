"""Commands that measure an artefact, or what stands beside it."""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from pydantic import TypeAdapter

from diffusion.checkpoint import Metadata, load, read_metadata, rewrite, save
from diffusion.likelihood.estimator import Choice
from diffusion.model import DiffusionModel
from diffusion.profile import ProfileConfig
from diffusion.samplers import Sampler, SamplerConfig
from training import config as configs
from training import data, inspect
from training.config import ConvertedConfig, artefact_path, find_artefact
from training.evaluate import entropy as report
from training.evaluate import parzen
from training.evaluate import patches as peer
from training.evaluate.bound import evaluate, measured_again, table
from training.export import export
from training.fit.parallel import pick_device
from training.study import record


def _opened(arguments: argparse.Namespace) -> tuple[Path, DiffusionModel, Metadata]:
    """The artefact that is named: where it is, its model and its document."""
    path = find_artefact(arguments.name, arguments.models)
    return path, *load(path, pick_device(arguments.device))


def _source(
    model: DiffusionModel, metadata: Metadata, given: str | None
) -> tuple[export.Source, Metadata, data.Dataset]:
    """Its configuration and its data, or those that are given and then remembered."""
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
        print(inspect.steps_table(model))
        if arguments.write:
            save(path, model, document)
        return 0
    variance = arguments.variance or metadata.variance
    found, document = export.with_profile(model, metadata, dataset, profile, variance)
    print(inspect.steps_table(found))
    if arguments.write:
        save(path, found, document)
        # With another variance samples are others too, but for those that DDIM drew.
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
    print(inspect.as_json(path) if arguments.json else inspect.describe(path))
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
    found = record.measure(words, device, make)
    record.write(out, found)
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
    made = record.measure(
        f"python -m training peer {arguments.name} --data {arguments.data} {command}",
        torch.device("cpu"),
        partial(peer.compare, dataset, peer.PeerConfig(**sizes), arguments.data),
    )
    record.write(Path("runs") / "peer" / f"{config.name}.json", made)
    path, found = artefact_path(arguments.models, config.name), made.found
    ours = peer.diffusion(read_metadata(path), dataset) if path.exists() else None
    print(peer.table([*found, ours] if ours else found))
    return 0
