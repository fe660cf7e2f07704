"""What each command of `python -m training` does: its arguments in, an exit status out."""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from pydantic import TypeAdapter

from diffusion.checkpoint import load, read_metadata, rewrite, save
from diffusion.choice import Choice
from diffusion.plan import Sampler
from diffusion.profile import ProfileConfig
from training import (
    classifier,
    compare,
    data,
    examples,
    export,
    inspect,
    oracle,
    own,
    parzen,
    peer,
    record,
    report,
)
from training import config as configs
from training.convert import Options, convert, write_diffusers
from training.convert.openai import Flags
from training.converted import ConvertedConfig
from training.evaluate import evaluate, measured_again, table
from training.export import artefact_path
from training.fit import Fit, RunOptions, build_model
from training.parallel import pick_device, ranks

INTERRUPTED = 130


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
    """From data of one's own to a model that can be served; 130 if it was interrupted."""
    keys, dataset = own.configure(
        arguments.data,
        arguments.name,
        side=arguments.side,
        grey=arguments.grey,
        steps=arguments.steps,
    )
    runs = Path("runs")
    written = runs / f"{keys['name']}.toml"
    runs.mkdir(exist_ok=True)
    written.write_text(f"# Made by `noneq train {arguments.data}`.\n{own.to_toml(keys)}")
    config = configs.load(str(written))
    weights = export.parameters(build_model(config, dataset))
    print(f"{own.expectations(config, dataset, weights)}\n{written} has all the settings")
    if arguments.plan:
        return 0
    options = RunOptions(out=runs / config.name, restart=arguments.restart, save_every=200)
    with ranks(arguments.device) as place:
        if not Fit(config, options, place).run():
            print("interrupted and saved; the same command goes on", file=sys.stderr)
            return INTERRUPTED
    path = export.export(
        str(written),
        out=options.out,
        models=arguments.models,
        device=pick_device(arguments.device),
        measure=not arguments.no_evaluation,
    )
    print(inspect.describe(path))
    print(f"\nserve it: noneq serve --models {arguments.models}")
    return 0


def do_classifier(arguments: argparse.Namespace) -> int:
    """Fit, measure and export a classifier of noisy data."""
    path = classifier.make(arguments.name, arguments.models)
    print(path.with_name("README.md").read_text())
    return 0


def do_export(arguments: argparse.Namespace) -> int:
    """Export a fit or an oracle; with --to, an artefact for another library."""
    if arguments.to:
        found = inspect.find(arguments.name, arguments.models)
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
        samples=arguments.samples,
        steps=arguments.steps,
    )
    path = convert(arguments.source, arguments.out, options, pick_device(arguments.device))
    print(inspect.describe(path))
    return 0


def do_evaluate(arguments: argparse.Namespace) -> int:
    """Measure an artefact; with --write, into its document and card."""
    path = inspect.find(arguments.name, arguments.models)
    model, metadata = load(path, pick_device(arguments.device))
    config, dataset = export.source(model, metadata)
    found = []
    for steps in arguments.steps or (None,):
        asked = {"terms": arguments.terms, "strata": arguments.strata, "steps": steps}
        asked |= {"spacing": arguments.spacing, "target_error": arguments.target_error}
        found += evaluate(
            model,
            dataset,
            arguments.convention or (),
            split=arguments.split,
            count=arguments.data,
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
    path = inspect.find(arguments.name, arguments.models)
    model, metadata = load(path, pick_device(arguments.device))
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
    path = inspect.find(arguments.name, arguments.models)
    model, metadata = load(path)
    _, dataset = export.source(model, metadata)
    print(export.write_examples(path, dataset))
    return 0


def do_profile(arguments: argparse.Namespace) -> int:
    """Measure an artefact's errors step by step; with --write, into it and its card."""
    path = inspect.find(arguments.name, arguments.models)
    model, metadata = load(path, pick_device(arguments.device))
    config, dataset = export.source(model, metadata)
    given = {"rows": arguments.rows, "points": arguments.points, "seed": arguments.seed}
    keys = config.profile.model_dump() | {k: v for k, v in given.items() if v is not None}
    profile = ProfileConfig.model_validate(keys)
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
    path = inspect.find(arguments.name, arguments.models)
    model, metadata = load(path, pick_device(arguments.device))
    config, dataset = export.source(model, metadata)
    print("\n".join(str(file) for file in report.write(path, model, dataset)))
    export.write_card(path, config.title, model)
    return 0


def do_inspect(arguments: argparse.Namespace) -> int:
    """Print an artefact's facts."""
    path = inspect.find(arguments.name, arguments.models)
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
        model, metadata = load(inspect.find(arguments.name, arguments.models), device)
        _, dataset = export.source(model, metadata)
        keys = {"name": arguments.sampler, "steps": arguments.steps}
        sampler: Sampler = TypeAdapter(Sampler).validate_python(keys)
        words += f" --sampler {sampler.name} --steps {arguments.steps} --seed {arguments.seed}"
        folder = arguments.out or Path("runs") / "parzen" / metadata.name
        kept = parzen.run_folder(folder, model, sampler, arguments.seed)
        keys = {"sampler": sampler, "seed": arguments.seed, "folder": kept}
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


def do_figures(arguments: argparse.Namespace) -> int:
    """Remake the pictures."""
    from training import figures, labels  # matplotlib takes a second, and nothing else needs it

    made = figures.make(arguments.models, arguments.folder)
    made += labels.make(arguments.models, arguments.folder)
    if not made:
        raise ValueError(f"{arguments.models} has none of {', '.join(figures.DRAWN)} to draw")
    print("\n".join(str(path) for path in made))
    return 0


def do_paper(arguments: argparse.Namespace) -> int:
    """Fit, measure and draw what is not done yet of the paper's experiments; docs/results.md."""
    from training import paper  # matplotlib takes a second to import

    places = paper.Places(models=arguments.models, runs=arguments.runs, docs=arguments.docs)
    names = arguments.names or paper.EXPERIMENTS
    written = paper.run(
        names, places, arguments.device, large=arguments.large, compiled=arguments.compile
    )
    if written is None:
        return interrupted()
    print("\n".join(str(path) for path in written))
    return 0


def interrupted() -> int:
    """Say that the work is saved; the exit status."""
    print("interrupted and saved; the same command goes on", file=sys.stderr)
    return INTERRUPTED


def do_schedules(arguments: argparse.Namespace) -> int:
    """Compare schedules, fixed and learned."""
    with ranks(arguments.device) as place:
        make = partial(compare.compare, arguments.name, arguments.out, place)
        words = f"python -m training schedules {arguments.name}"
        found = record.measure(words, place.device, make)
    if found.found is None:
        return interrupted()
    if place.first:
        record.write(arguments.folder / "schedules.json", found)
        print("\n".join(compare.lines(found.found)))
    return 0


def do_examples(arguments: argparse.Namespace) -> int:
    """Remake the request bodies of README's commands."""
    print("\n".join(str(path) for path in examples.make(arguments.folder)))
    return 0
