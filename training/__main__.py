"""Training, offline: fit a model, measure it, export it for serving, look at it.

    python -m training fit swissroll          into runs/swissroll, as training/configs says
    python -m training export swissroll       into models/swissroll: artefact, card, samples
    python -m training evaluate swissroll     measure an exported artefact
    python -m training inspect swissroll      print an exported artefact's facts
    python -m training figures                remake the documentation's pictures
    python -m training schedules              fit one network under every schedule, and compare
    python -m training examples               remake the request bodies of README's commands

Several processes: torchrun --nproc-per-node 2 -m training fit mnist
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from diffusion.checkpoint import ArtefactError, load, rewrite
from training import compare, data, examples, export, inspect, oracle, state
from training import config as configs
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
    document = metadata.training.config
    if metadata.training.steps:
        config = configs.FitConfig.model_validate(document)
        dataset, title = data.load(config.data), config.title
    else:
        oracle_config = oracle.OracleConfig.model_validate(document)
        dataset, title = oracle.dataset(oracle_config, model), oracle_config.title
    found = evaluate(
        model,
        dataset,
        arguments.convention or (),
        split=arguments.split,
        count=arguments.data,
        terms=arguments.terms,
        seed=arguments.seed,
        batch=arguments.batch,
    )
    print(table(found))
    if arguments.json:
        print(json.dumps([e.model_dump(mode="json") for e in found], indent=2))
    if arguments.write:
        measured = {(e.convention, e.split) for e in found}
        kept = [e for e in metadata.evaluation if (e.convention, e.split) not in measured]
        rewrite(path, metadata.model_copy(update={"evaluation": (*kept, *found)}))
        path.chmod(0o644)
        export.write_companions(path, title)
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
        raise ValueError(f"{arguments.models} has none of {', '.join(figures.DRAWN)} to draw")
    print("\n".join(str(path) for path in made))
    return 0


def do_schedules(arguments: argparse.Namespace) -> int:
    """Compare schedules, fixed and learned."""
    with ranks(arguments.device) as place:
        made = compare.make(arguments.name, arguments.folder, arguments.out, place)
    print(made[-1].read_text())
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
        "--convention",
        action="append",
        choices=("discretised", "density", "paper"),
        help="may be repeated (default the data's own)",
    )
    one.add_argument("--seed", type=int, default=1)
    one.add_argument("--batch", type=int, default=512, help="rows a network call")
    one.add_argument("--write", action="store_true", help="into the artefact and its card")
    one.add_argument("--json", action="store_true")

    one = command("inspect", do_inspect, models)
    one.add_argument("name", help="of a model, or a path ending in .safetensors")
    one.add_argument("--json", action="store_true", help="the whole document")

    one = command("figures", do_figures, models)
    one.add_argument("--folder", type=Path, default=Path("docs/figures"))

    one = command("schedules", do_schedules, device)
    one.add_argument("name", nargs="?", default="schedules", help="of the configuration")
    one.add_argument("--folder", type=Path, default=Path("docs/measured"))
    one.add_argument("--out", type=Path, default=Path("runs/schedules"), help="run folders")

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
