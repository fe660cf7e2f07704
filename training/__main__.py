"""`python -m training`: fit, evaluate, export, inspect, figures."""

import argparse
import sys
from pathlib import Path

import torch

from training import config as configs
from training.fit import Fit, RunOptions
from training.parallel import ranks


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    fit = commands.add_parser("fit")
    fit.add_argument("name")
    fit.add_argument("--device", default="auto")
    fit.add_argument("--out", type=Path)
    fit.add_argument("--steps", type=int)
    fit.add_argument("--stop-at", type=int)
    fit.add_argument("--save-every", type=int, default=200)
    fit.add_argument("--threads", type=int)
    fit.add_argument("--compile", action="store_true")
    fit.add_argument("--restart", action="store_true")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    overrides = {} if arguments.steps is None else {"steps": arguments.steps}
    config = configs.load(arguments.name, overrides)
    with ranks(arguments.device) as place:
        options = RunOptions(
            out=arguments.out or Path("runs") / config.name,
            restart=arguments.restart,
            compile=arguments.compile,
            save_every=arguments.save_every,
            stop_at=arguments.stop_at,
        )
        done = Fit(config, options, place).run()
    return 0 if done else 130


if __name__ == "__main__":
    sys.exit(main())
