"""Training, offline: fit a model, measure it, export it for serving, look at it.

    python -m training fit swissroll          into runs/swissroll, as training/configs says
    python -m training export swissroll       into models/swissroll: artefact, card, samples
    python -m training profile swissroll      measure its errors step by step, of training data
    python -m training evaluate swissroll     measure an exported artefact
    python -m training inspect swissroll      print an exported artefact's facts
    python -m training figures                remake the documentation's pictures
    python -m training examples               remake the request bodies of README's commands

Several processes: torchrun --nproc-per-node 2 -m training fit mnist
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import torch

from diffusion.checkpoint import ArtefactError, load, rewrite, save
from diffusion.choice import Choice, Spacing, StrataKind
from diffusion.profile import ProfileConfig
from training import config as configs
from training import data, examples, export, inspect, oracle, state
from training.evaluate import evaluate, table
from training.fit import Fit, FitError, RunOptions
from training.parallel import pick_device, ranks

INTERRUPTED = 130
EXPECTED = (
    ArtefactError,
    configs.ConfigError,
    data.DataError,
    state.CheckpointError,
    FitError,
    ValueError,
)


def fit(arguments: argparse.Namespace) -> int:
    """Fit, or go on with a fit; 130 if it was interrupted."""
    if oracle.is_oracle(arguments.name):
        raise configs.ConfigError(
            f"{arguments.name} is an oracle, there is nothing to fit; "
            f"write `python -m training export {arguments.name}`"
        )
    given = {"steps": arguments.steps, "seed": arguments.seed, "precision": arguments.precision}
    config = configs.load(arguments.name, {k: v for k, v in given.items() if v is not None})
    options = RunOptions(
        out=arguments.out or Path("runs") / config.name,
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


def do_export(arguments: argparse.Namespace) -> int:
    """Export a fit or an oracle."""
    path = export.export(
        arguments.name,
        out=arguments.out,
        models=arguments.models,
        device=pick_device(arguments.device),
        measure=not arguments.no_evaluation,
    )
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
        if document.variance == metadata.variance:
            export.write_card(path, config.title, found)
        else:  # then samples are others too
            export.write_companions(path, config.title, found)
    return 0


def do_inspect(arguments: argparse.Namespace) -> int:
    """Print an artefact's facts."""
    path = inspect.find(arguments.name, arguments.models)
    print(inspect.as_json(path) if arguments.json else inspect.describe(path))
    return 0


def do_figures(arguments: argparse.Namespace) -> int:
    """Remake the pictures."""
    from training import figures  # matplotlib takes a second to import, and nothing else needs it

    made = figures.make(arguments.models, arguments.folder)
    if not made:
        raise ValueError(f"{arguments.models} has none of swissroll, mnist and heartbeat to draw")
    print("\n".join(str(path) for path in made))
    return 0


def do_examples(arguments: argparse.Namespace) -> int:
    """Remake the request bodies of README's commands."""
    print("\n".join(str(path) for path in examples.make(arguments.folder)))
    return 0


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

    one = command("fit", fit, device)
    one.add_argument("name", help="of a file in training/configs, or a path ending in .toml")
    one.add_argument("--out", type=Path, help="run folder (default runs/NAME)")
    one.add_argument("--steps", type=int, help="in place of the configuration's")
    one.add_argument("--seed", type=int, help="in place of the configuration's")
    one.add_argument("--precision", choices=("float32", "bfloat16"), help="likewise")
    one.add_argument("--stop-at", type=int, help="save and end after this step")
    one.add_argument("--save-every", type=int, default=200, help="steps between checkpoints")
    one.add_argument("--restart", action="store_true", help="begin anew over an old run")
    one.add_argument("--compile", action="store_true", help="torch.compile the network")

    one = command("export", do_export, device, models)
    one.add_argument("name", help="of a file in training/configs, or a path ending in .toml")
    one.add_argument("--out", type=Path, help="run folder (default runs/NAME)")
    one.add_argument("--no-evaluation", action="store_true", help="write the card without numbers")

    one = command("evaluate", do_evaluate, device, models)
    one.add_argument("name", help="of a model, or a path ending in .safetensors")
    one.add_argument("--split", choices=data.SPLITS, default="test")
    one.add_argument("--data", type=int, help="how many rows (default all)")
    one.add_argument("--terms", type=int, help="network evaluations a datum (default all steps)")
    one.add_argument(
        "--strata",
        choices=get_args(StrataKind),
        default="even",
        help="that the terms are drawn from; by importance needs a profile, and leaves less error",
    )
    one.add_argument(
        "--target-error", type=float, help="nats a datum: as many terms as leave it, by the profile"
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

    one = command("profile", do_profile, device, models)
    one.add_argument("name", help="of a model, or a path ending in .safetensors")
    one.add_argument("--rows", type=int, help="at each step that is measured")
    one.add_argument("--points", type=int, help="steps that are measured, the others interpolated")
    one.add_argument("--seed", type=int, help="of the noise")
    one.add_argument(
        "--variance",
        choices=("lower", "upper", "optimal"),
        help="of the model from now on (default as it was; these three need no other network)",
    )
    one.add_argument("--write", action="store_true", help="into the artefact and its card")

    one = command("inspect", do_inspect, models)
    one.add_argument("name", help="of a model, or a path ending in .safetensors")
    one.add_argument("--json", action="store_true", help="the whole document")

    one = command("figures", do_figures, models)
    one.add_argument("--folder", type=Path, default=Path("docs/figures"))

    one = command("examples", do_examples)
    one.add_argument("--folder", type=Path, default=Path("examples"))
    return top


def main(words: list[str] | None = None) -> int:
    """Run one command; what the user can mend is said in a line, without a traceback."""
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
