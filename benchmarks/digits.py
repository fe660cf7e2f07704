"""Complete held-out digits by every method: kept labels, errors, calibration and cost.

    python -m benchmarks.digits [--only learned product ...] [--cases "right half" ...] [--again]

Each digit of MNIST's test set is observed in part, or with noise, and completed a few times.
`models/mnist-classifier`, which no method uses, reads the completions. By digit: whether they keep
the label, the error of their mean and the CRPS over hidden pixels (levels of 255), and the ranks of
six scalars of the hidden pixels among the completions': total ink and five random projections.
Ranks are uniform if the completions are draws from the data's posterior; a histogram's distance
from uniform is chi-square, sum (count - expected)^2 / expected.

A cell (case, method, part) is written to `docs/digits.json` when it is done, and measured again
only with `--again`. All methods use the same network; a product with its Jacobian counts as a call.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import figures
from benchmarks.measure import machine, table
from benchmarks.pixels import PEERS
from diffusion.checkpoint import load
from diffusion.classifier import Classifier
from diffusion.classifier import load as load_classifier
from diffusion.model import DiffusionModel
from diffusion.noise import counter_noise
from diffusion.observation import Observation
from diffusion.posterior import (
    Learned,
    Matched,
    Method,
    Product,
    Repaint,
    Twisted,
    sample_posterior,
)
from diffusion.samplers import Ancestral
from training.data import MnistConfig, mnist

Row = dict[str, float | str]

CASES = ("right half", "central box", "90% of pixels", "noise 64")
NOISE = 64.0  # levels
DIGITS = 25  # in a part
SCALARS = ("ink", *(f"projection {i}" for i in range(1, 6)))
_EVENT = (1, 28, 28)

LEARNED = "learned, 40"
#: Our methods: configuration, steps, completions a digit, parts.
OURS: dict[str, tuple[Method, int, int, int]] = {
    LEARNED: (Learned(), 40, 7, 12),
    "matched": (Matched(), 100, 7, 4),
    "product, 40": (Product(), 40, 2, 1),
    "product, 250": (Product(), 250, 2, 1),
    "repaint, 40": (Repaint(jump=5, repeats=2), 20, 2, 1),
    "repaint, 250": (Repaint(jump=5, repeats=5), 50, 2, 1),
    "twisted, 8 particles, 400": (Twisted(particles=8), 50, 2, 1),
    "twisted, 64 particles, 3200": (Twisted(particles=64), 50, 2, 1),
}


@cache
def model() -> DiffusionModel:
    """Load models/mnist with its time conditions precomputed."""
    found, _ = load(Path("models/mnist/model.safetensors"))
    found.eval().requires_grad_(False).tabulate()
    found.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as served
    return found


@cache
def reader() -> Classifier:
    """Load models/mnist-classifier."""
    found, _ = load_classifier(Path("models/mnist-classifier/model.safetensors"))
    return found


def known(case: str) -> Tensor:
    """Return which pixels are seen, bool [1, 28, 28]."""
    seen = torch.ones(_EVENT, dtype=torch.bool)
    if case == "right half":
        seen[:, :, 14:] = False
    elif case == "central box":
        seen[:, 8:20, 8:20] = False
    elif case == "90% of pixels":
        seen = counter_noise(11, torch.arange(1), 0).uniform(_EVENT)[0] < 0.1
    return seen


def hidden(x: Tensor, case: str) -> Tensor:
    """Return the pixels that are to be completed, [..., hidden]."""
    flat = known(case).flatten()
    return x.flatten(-3) if bool(flat.all()) else x.flatten(-3)[..., ~flat]


def observe(x_0: Tensor, case: str, part: int) -> tuple[Observation, float]:
    """Observe digits in model units; returns the noise's standard deviation too."""
    if not case.startswith("noise"):
        return Observation.of_reals(x_0, known(case).expand_as(x_0)), 0.0
    std = NOISE / float(model().space.affine[1])  # one scale for all pixels
    n = counter_noise(12 + part, torch.arange(len(x_0)), 0).normal(_EVENT)
    return Observation.of_reals(x_0 + std * n, known(case).expand_as(x_0), std), std


def applies(name: str, case: str) -> bool:
    """Whether a method can answer a case: a matched start needs noise, RePaint a mask."""
    noisy = case.startswith("noise")
    return noisy if name == "matched" else not (noisy and name.startswith("repaint"))


def measured(name: str, case: str, part: int) -> list[Row]:
    """Complete one part of the test digits; a row each."""
    space = model().space
    which = slice(part * DIGITS, (part + 1) * DIGITS)
    x, labels = MnistConfig().load().split("test")[which], mnist.labels()[1][which].long()
    x_0 = space.to_model(x)
    seen, std = observe(x_0, case, part)
    begun = time.perf_counter()
    if name in OURS:
        method, steps, draws, _ = OURS[name]
        found = sample_posterior(
            model(), seen, draws, seed=7 + part, method=method, sampler=Ancestral(steps=steps)
        )
        samples, calls = found.samples, found.network_evaluations / (len(x) * draws)
    else:
        peer, calls, draws = PEERS[name], float(PEERS[name].calls), PEERS[name].draws
        samples = peer(model(), seen, std, draws, 7 + part)
    spent = time.perf_counter() - begun
    read = reader().log_prob(samples.flatten(0, 1), torch.zeros(1, dtype=torch.int64))
    right = read.argmax(1).unflatten(0, (len(x), draws)) == labels[:, None]
    drawn = hidden(space.to_data(samples.flatten(0, 1)).unflatten(0, (-1, draws)).float(), case)
    truth = hidden(x.float(), case)
    error = (drawn.mean(1) - truth).square().mean(1).sqrt()
    apart = (drawn[:, :, None] - drawn[:, None]).abs().sum((1, 2)) / (2 * draws * (draws - 1))
    crps = ((drawn - truth[:, None]).abs().mean(1) - apart).mean(1)
    ranks = _ranks(truth, drawn, part)
    return [
        {
            "digit": float(which.start + i),
            "kept": float(right[i].float().mean()),
            "rmse": float(error[i]),
            "crps": float(crps[i]),
            "ranks": " ".join(map(str, ranks[i].tolist())),
            "calls": calls,
            "seconds": spent / (len(x) * draws),
        }
        for i in range(len(x))
    ]


def _ranks(truth: Tensor, drawn: Tensor, part: int) -> Tensor:
    """Rank the scalars of each digit among the draws', ties at random, int64 [B, 6]."""
    size = truth.shape[1]
    onto = counter_noise(5, torch.arange(5), 0).normal((size,)) / math.sqrt(size)
    onto = torch.cat((torch.ones(1, size), onto)).T
    one, many = truth @ onto, drawn @ onto
    # A digit whose hidden half is blank ties with completions that are blank.
    coin = counter_noise(99 + part, torch.arange(len(one)), 0).uniform(
        (drawn.shape[1], len(SCALARS))
    )
    below = (many < one[:, None]) | ((many == one[:, None]) & (coin < 0.5))
    return below.sum(1)


def cells() -> Iterator[tuple[str, str, int]]:
    """Every (case, method, part), the cheap ones first."""
    for case in CASES:
        for name, (_, _, _, parts) in OURS.items():
            if applies(name, case):
                yield from ((case, name, part) for part in range(parts))
    for case in CASES:
        yield from ((case, name, 0) for name in PEERS)


def report(kept: dict[str, list[Row]]) -> str:
    """Format the measured cells: a row a case and method, with standard errors over digits."""
    lines = []
    for case in CASES:
        for name in (*OURS, *PEERS):
            rows = _rows(kept, case, name)
            if not rows:
                continue
            ranks = _all_ranks(rows)
            draws = OURS[name][2] if name in OURS else PEERS[name].draws
            lines.append(
                [
                    case,
                    name,
                    f"{rows[0]['calls']:.0f}",
                    str(len(rows)),
                    f"{_mean(rows, 'kept', 100)}%",
                    _mean(rows, "rmse"),
                    _mean(rows, "crps"),
                    " ".join(f"{c:.1f}" for c in chi_squares(ranks, draws)) if draws > 2 else "",
                    f"{statistics.median(float(r['seconds']) for r in rows):.3f}",
                ]
            )
    head = ["seen", "method", "evaluations", "digits", "label kept", "RMSE", "CRPS", "ranks", "s"]
    return table(head, lines)


def chi_squares(ranks: Tensor, draws: int) -> list[float]:
    """The distance of each scalar's rank histogram from uniform, `draws` degrees of freedom."""
    counts = torch.stack([column.bincount(minlength=draws + 1) for column in ranks.T]).double()
    expected = len(ranks) / (draws + 1)
    return list(((counts - expected).square() / expected).sum(1).tolist())


def _mean(rows: list[Row], key: str, times: float = 1.0) -> str:
    values = [times * float(row[key]) for row in rows]
    error = statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.3g} +- {error:.2g}"


def main() -> None:
    """Measure the cells that are missing, write them, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, default=Path("docs/digits.json"))
    parser.add_argument("--only", nargs="*", default=[""], metavar="METHOD", help="that begin so")
    parser.add_argument("--cases", nargs="*", default=CASES, choices=CASES)
    parser.add_argument("--parts", type=int, help="at most so many of a method")
    parser.add_argument("--again", action="store_true", help="what has been measured too")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(machine(), flush=True)
    for case, name, part in cells():
        if case not in asked.cases or not any(name.startswith(start) for start in asked.only):
            continue
        if asked.parts is not None and part >= asked.parts:
            continue
        title = f"{case}, {name}, part {part}"
        if title in _read(asked.json) and not asked.again:
            continue
        begun = time.perf_counter()
        rows = measured(name, case, part)
        print(f"{title}: {time.perf_counter() - begun:.0f} s", flush=True)
        kept = _read(asked.json) | {title: rows}  # another process may have written meanwhile
        asked.json.write_text(json.dumps(kept) + "\n")
    kept = _read(asked.json)
    print(report(kept))
    counts = {case: _counts(kept, case) for case in CASES}
    if all(len(each) for each in counts.values()):
        figures.histograms(counts, SCALARS, asked.json.parent / "figures")


def _counts(kept: dict[str, list[Row]], case: str) -> Tensor:
    """The learned method's counts of each rank, int64 [scalars, ranks]; empty if not measured."""
    ranks = _all_ranks(_rows(kept, case, LEARNED))
    draws = OURS[LEARNED][2]
    return torch.stack([c.bincount(minlength=draws + 1) for c in ranks.T]) if len(ranks) else ranks


def _rows(kept: dict[str, list[Row]], case: str, name: str) -> list[Row]:
    start = f"{case}, {name}, part"
    return [row for title, part in kept.items() if title.startswith(start) for row in part]


def _all_ranks(rows: list[Row]) -> Tensor:
    return torch.tensor([[int(n) for n in str(row["ranks"]).split()] for row in rows])


def _read(path: Path) -> dict[str, list[Row]]:
    return json.loads(path.read_text()) if path.exists() else {}


if __name__ == "__main__":
    main()
