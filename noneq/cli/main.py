"""noneq: call a service of diffusion models; start a service; train models.

    noneq models                                   what is served; --load NAME after a change
    noneq sample -m mnist -n 16                    draw; in the terminal, or -o digits.png
    noneq loglik digits/ -m mnist -o scores.csv    score a folder; repeat it to continue
    noneq inpaint torn.png -m mnist -n 4           draw what is transparent
    noneq denoise noisy.png -m mnist --noise-std 64
    noneq posterior -m mnist --label 3 -n 8        draw data with this label
    noneq posterior small.npy -m mnist --pooling 4 --noise-std 8
    noneq impute gaps.csv -o filled.csv            fill the gaps of a table
    noneq score table.csv -o scores.csv            find its strange rows, and why
    noneq sample -m mnist -n 4096 --submit         leave it to the service, as a job
    noneq jobs                                     list jobs; and jobs get, wait, cancel ID
    noneq serve --models models                    start a service
    noneq train photographs/ --name photographs    fit a model to your own data
    noneq convert ddpm-church -o models/church     import a model trained elsewhere

Data come as pictures, .csv, .tsv and .npy, and folders of these; answers go to .png, .csv, .npy,
.npz, .json, .safetensors. "-" is stdin as data, and stdout as a table. The service is at NONEQ_URL
(http://localhost:8000), the key is NONEQ_API_KEY.

Exit status: 0 done; 1 data not scored, or a model not ready; 2 the command or the request is wrong;
3 no service was reached, or the connection broke; 4 the service is busy, or the deadline passed:
try later; 5 the API key is missing or wrong; 6 the service failed; 7 something is not installed;
130 interrupted.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from noneq import errors
from noneq.cli import commands, jobs, local
from noneq.cli import tabular as tables
from noneq.cli.outputs import Target
from noneq.version import __version__

USAGE, UNREACHED, LATER, KEY, FAULT, MISSING, INTERRUPTED = 2, 3, 4, 5, 6, 7, 130

#: The first class that fits decides.
STATUS: tuple[tuple[type[errors.NoneqError], int], ...] = (
    (errors.BadRequest, USAGE),
    (errors.FileError, USAGE),
    (errors.NotPictured, USAGE),
    (errors.Unauthorized, KEY),
    (errors.Busy, LATER),
    (errors.DeadlineMissed, LATER),
    (errors.ConnectionFailed, UNREACHED),
    (errors.UnreadableAnswer, UNREACHED),
    (errors.MissingExtra, MISSING),
    (errors.NoneqError, FAULT),
)

Run = Callable[[argparse.Namespace], int]


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    top = argparse.ArgumentParser(
        prog="noneq", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("--version", action="version", version=f"noneq {__version__}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    service = _service()
    request = argparse.ArgumentParser(add_help=False, parents=[service])
    request.add_argument("-m", "--model", help="its name; not needed if one is served")
    draws = argparse.ArgumentParser(add_help=False, parents=[request])
    draws.add_argument("-n", "--num-samples", type=int, default=1, help="how many (default 1)")
    draws.add_argument("--steps", type=int, help="of the sampler (default: all there are)")
    draws.add_argument(
        "--seed", type=int, help="of the noise (default: a random one, which is printed)"
    )
    to = "a file, in the format of its ending, a folder/, which is made, or - for a table"
    draws.add_argument("-o", "--out", type=Target.for_response, help=to)
    about = "leave it to the service as a job, and print the job's id"
    draws.add_argument("--submit", action="store_true", help=about)

    def verb(name: str, run: Run, parent: argparse.ArgumentParser) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=run.__doc__, parents=[parent])
        made.set_defaults(run=run)
        return made

    one = verb("models", commands.do_models, service)
    one.add_argument("name", nargs="?", help="of a model, for its facts and card")
    change = one.add_mutually_exclusive_group()
    about = "have the service load this model, or what its file holds now"
    change.add_argument("--load", metavar="NAME", help=about)
    change.add_argument("--unload", metavar="NAME", help="have it serve this model no longer")

    one = verb("sample", commands.do_sample, draws)
    about = "one that the model has, as `noneq models NAME --json` lists (default ancestral)"
    one.add_argument("--sampler", default="ancestral", metavar="NAME", help=about)

    one = verb("loglik", commands.do_loglik, request)
    one.add_argument("files", nargs="+", help="pictures, folders, .npy, .csv")
    about = "a table (.csv), which is continued if it exists; - for stdout (default)"
    one.add_argument("-o", "--out", type=Target.for_table, help=about)
    one.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    one.add_argument(
        "--terms", type=int, help="network evaluations per example (default: all steps)"
    )
    one.add_argument("--trajectories", type=int, help="bound by this many whole trajectories")
    one.add_argument("--steps", type=int, help="of a shorter chain, to bound with that")
    one.add_argument("--strata", choices=("even", "importance"), help="of the terms")
    one.add_argument("--target-error", type=float, help="nats per example, instead of --terms")
    one.add_argument("--convention", choices=("discretised", "density", "paper"))
    one.add_argument("--parallel", type=int, default=8, help="requests at a time (default 8)")

    tabular = argparse.ArgumentParser(add_help=False, parents=[request])
    tabular.add_argument("file", help="a table (.csv); - for stdin")
    about = "a table (.csv); - for stdout (default)"
    tabular.add_argument("-o", "--out", type=Target.for_table, help=about)
    tabular.add_argument("--seed", type=int, help="of the noise (default: a random one)")

    one = verb("impute", tables.do_impute, tabular)
    one.add_argument("-n", "--draws", type=int, default=20, help="of each gap (default 20)")
    about = "what stands in a gap: the draws' median (default) or mean, or each draw's own value"
    one.add_argument("--fill", choices=tables.FILLS, default="median", help=about)
    about = "of each gap, in columns of their own"
    one.add_argument("--quantiles", type=float, nargs="+", metavar="Q", help=about)
    one.add_argument("--steps", type=int, help="of the chain (default: the service's choice)")
    one.add_argument("--method", help="one of the service's (default: its choice)")

    one = verb("score", tables.do_score, tabular)
    one.add_argument("--terms", type=int, help="network evaluations per row (default: all steps)")

    observed = argparse.ArgumentParser(add_help=False, parents=[draws])
    observed.add_argument("--noise-std", type=float, help="of the observation, data units")
    observed.add_argument("--flip-probability", type=float, help="of the observation, for bits")
    observed.add_argument(
        "--quantiles", type=float, nargs="+", metavar="Q", help="of the samples, to return as well"
    )
    observed.add_argument("--method", help="one of the service's (default: its choice)")
    observed.add_argument(
        "--particles", type=int, help="of the method; short for --set particles=N"
    )
    observed.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a further field of the method, as systems=joint or covariance=diagonal",
    )
    masked = argparse.ArgumentParser(add_help=False, parents=[observed])
    masked.add_argument("--known", help="a mask: a picture, white where observed, or .npy")

    for name, run, parent in (
        ("inpaint", commands.do_inpaint, masked),
        ("denoise", commands.do_denoise, observed),
    ):
        one = verb(name, run, parent)
        one.add_argument("files", nargs="+", help="pictures, folders, .npy, .csv")

    one = verb("posterior", commands.do_posterior, masked)
    one.add_argument("files", nargs="*", help="the observations; none if only a label is given")
    through = one.add_mutually_exclusive_group()
    through.add_argument("--pooling", type=int, metavar="SIZE", help="observed as means of blocks")
    through.add_argument("--blur", metavar="FILE", help="observed through this kernel (.npy, .csv)")
    through.add_argument(
        "--matrix", metavar="FILE", help="observed through this matrix (.npy, .csv)"
    )
    one.add_argument("--label", nargs="+", help="of the data: one for all, or one each")
    one.add_argument("--classifier", help="that reads labels; not needed if only one fits")
    one.add_argument(
        "--expert", "--times", metavar="MODEL", help="multiply by the density of this model too"
    )
    one.add_argument(
        "--label-probabilities",
        "--read",
        action="store_true",
        help="also print the probability of each label",
    )

    one = verb("jobs", jobs.do_list, service)
    listing = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    listing.add_argument("--state", choices=jobs.STATES, help="only those")
    listing.add_argument("--limit", type=int, help="how many, at most (default 100)")
    one.set_defaults(state=None, limit=100, out=None, timeout=None)
    deeds = one.add_subparsers(metavar="list|get|wait|cancel")
    again = _service(argument_default=argparse.SUPPRESS)  # what stands before the deed holds too
    one = deeds.add_parser("list", help=jobs.do_list.__doc__, parents=[again, listing])
    one.set_defaults(run=jobs.do_list)
    for name, run, about in (
        ("get", jobs.do_get, "of the job"),
        ("wait", jobs.do_wait, "of the job"),
        ("cancel", jobs.do_cancel, "of the jobs"),
    ):
        one = deeds.add_parser(name, help=run.__doc__, parents=[again])
        one.set_defaults(run=run)
        one.add_argument("id", nargs="+" if run is jobs.do_cancel else None, help=about)
        if run is not jobs.do_cancel:
            one.add_argument("-o", "--out", type=Target.for_response, help=to)
        if run is jobs.do_wait:
            about = "seconds after which to give up; the job goes on"
            one.add_argument("--timeout", type=float, help=about)

    for name, program in local.PROGRAMS.items():
        verbs.add_parser(name, help=program.about, add_help=False)
    return top


def _service(**settings: Any) -> argparse.ArgumentParser:  # noqa: ANN401  (argparse's)
    """Build the options that say which service is called."""
    found = argparse.ArgumentParser(add_help=False, **settings)
    found.add_argument(
        "--url", help="of the service, or host:port (default NONEQ_URL, localhost:8000)"
    )
    found.add_argument(
        "--local",
        nargs="?",
        const="models",
        metavar="FOLDER",
        help="start a service of the models in FOLDER for this command",
    )
    found.add_argument("--json", action="store_true", help="print JSON, for machines")
    return found


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; print an error as one line, and return the exit status."""
    words = sys.argv[1:] if words is None else list(words)
    try:
        if words and words[0] in local.PROGRAMS:
            return local.run(words[0], words[1:])
        given = parser().parse_args(words)
    except errors.MissingExtra as error:
        return _fail(error, MISSING, as_json=False)
    try:
        run: Run = given.run
        target: Target | None = getattr(given, "out", None)
        if target is not None:
            target.check()
        status = run(given)
        sys.stdout.flush()
        return status
    except errors.NoneqError as error:
        status = next(status for kind, status in STATUS if isinstance(error, kind))
        return _fail(error, status, as_json=given.json)
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # as `noneq ... | head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        return _fail(error, USAGE, as_json=given.json)
    except KeyboardInterrupt:
        print("noneq: interrupted", file=sys.stderr)
        return INTERRUPTED


def _fail(error: Exception, status: int, *, as_json: bool) -> int:
    print(f"noneq: {error}", file=sys.stderr)
    if as_json:
        document = {"error": type(error).__name__, "message": str(error), "status": status}
        if isinstance(error, errors.Refused):
            document["problem"] = dict(error.problem)
        print(json.dumps(document))
    return status
