"""Commands that remake the figures, results and examples in the documentation."""

import argparse
from argparse import ArgumentParser
from collections.abc import Callable
from functools import partial
from pathlib import Path

from training import provenance
from training.fit.parallel import interrupted, ranks
from training.study import examples
from training.study import schedules as compare


def do_figures(arguments: argparse.Namespace) -> int:
    """Remake the pictures."""
    from training.study import figures, labels

    made = figures.make(arguments.models, arguments.folder)
    made += labels.make(arguments.models, arguments.folder)
    if not made:
        raise ValueError(f"{arguments.models} has none of {', '.join(figures.DRAWN)} to draw")
    print("\n".join(str(path) for path in made))
    return 0


def do_paper(arguments: argparse.Namespace) -> int:
    """Fit, measure and draw what is not done yet of the paper's experiments; docs/results.md."""
    from training.study import paper

    places = paper.Places(models=arguments.models, runs=arguments.runs, docs=arguments.docs)
    names = arguments.names or paper.EXPERIMENTS
    written = paper.run(
        names, places, arguments.device, large=arguments.large, compiled=arguments.compile
    )
    if written is None:
        return interrupted()
    print("\n".join(str(path) for path in written))
    return 0


def do_schedules(arguments: argparse.Namespace) -> int:
    """Compare schedules, fixed and learned."""
    with ranks(arguments.device) as place:
        make = partial(compare.compare, arguments.name, arguments.out, place)
        words = f"python -m training schedules {arguments.name}"
        found = provenance.measure(words, place.device, make)
    if found.found is None:
        return interrupted()
    if place.first:
        provenance.write(arguments.folder / "schedules.json", found)
        print("\n".join(compare.lines(found.found)))
    return 0


def do_examples(arguments: argparse.Namespace) -> int:
    """Remake the request bodies of README's commands."""
    print("\n".join(str(path) for path in examples.make(arguments.folder)))
    return 0


def add_commands(
    command: Callable[..., ArgumentParser], device: ArgumentParser, models: ArgumentParser
) -> None:
    """Add these commands and their arguments; `device` and `models` hold shared arguments."""
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
