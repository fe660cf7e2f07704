"""Posteriors held against the exact ones, method by method, at equal cost.

    python -m benchmarks.posterior [--problems 3] [--samples 100] [--json docs/posteriors.json]

Mixtures of 25 Gaussians seen through one or two random numbers, by sliced Wasserstein distance in
data units; bits, by total variation; a correlated Gaussian, denoised and half hidden, by its means
and standard deviations. Of the first two all methods have about `--calls` network evaluations a
sample.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import problems
from benchmarks.measure import machine, table
from diffusion.distributions import Normal
from diffusion.model import DiffusionModel
from diffusion.noise import counter_noise
from diffusion.observation import Observation
from diffusion.plan import Ancestral
from diffusion.posterior import Auto, Method, Posterior, Product, Resample, Twisted, draw
from diffusion.twist import Twist

Row = dict[str, float | str]

DIAGONAL = "twisted, diagonal V, 8 particles"
METHODS: dict[str, tuple[Method, Callable[[int, int], float]]] = {
    # name: (method, network evaluations of a step given the numbers seen and what bits are)
    "product, the 2015 paper's": (Product(), lambda _seen, _bits: 1),
    "resample, RePaint": (Resample(), lambda _seen, _bits: 10),
    DIAGONAL: (
        Twisted(twist=Twist(covariance="diagonal")),
        lambda _seen, _bits: 16,
    ),
    "twisted, full V, 8 particles": (
        Twisted(),
        lambda seen, bits: 8 if bits else 8 * (1 + seen),
    ),
}


def posterior(
    name: str, model: DiffusionModel, seen: Observation, samples: int, calls: int, bits: bool
) -> Posterior:
    """Samples by a method, with as many steps as the calls allow."""
    method, each = METHODS[name]
    steps = min(model.T, math.ceil(calls / each(int(seen.known.sum()), int(bits))))
    return draw(model, seen, samples, seed=0, method=method, sampler=Ancestral(steps=steps))


def sliced(a: Tensor, b: Tensor, directions: int = 2000) -> float:
    """The sliced Wasserstein distance, order 2, of as many samples each, [n, D]."""
    rows = torch.arange(directions)
    onto = counter_noise(7, rows, 0).normal(a.shape[1:]).double()
    onto = (onto / onto.norm(dim=1, keepdim=True)).mT
    apart = (a.double() @ onto).sort(0).values - (b.double() @ onto).sort(0).values
    return float(apart.square().mean().sqrt())


def mixtures(seen: int, count: int, samples: int, calls: int, names: Sequence[str]) -> list[Row]:
    """Mean sliced Wasserstein distance over problems, with its standard error."""
    found: dict[str, list[float]] = {}
    evidence: dict[str, list[float]] = {}
    cost: dict[str, float] = {}
    for seed in range(count):
        problem = problems.mixture(8, seen, 100 * seen + seed)
        rows = torch.arange(2 * samples)
        exact, again = problem.posterior.sample(counter_noise(seed, rows, 0)).split(samples)
        found.setdefault("exact samples (floor)", []).append(problem.scale * sliced(exact, again))
        for name in names:
            answer = posterior(name, problem.model, problem.observation, samples, calls, False)
            distance = problem.scale * sliced(exact, answer.samples[0])
            found.setdefault(name, []).append(distance)
            cost[name] = answer.network_evaluations / samples
            told = answer.diagnostics[0].log_evidence
            if told is not None:
                evidence.setdefault(name, []).append(abs(told - problem.log_evidence))
            print(f"  {seen} seen, problem {seed}, {name}: {distance:.2f}", flush=True)
    return [
        {
            "method": name,
            "distance": statistics.mean(values),
            "standard_error": statistics.stdev(values) / math.sqrt(count) if count > 1 else 0.0,
            "evidence_error": statistics.mean(evidence.get(name, [math.nan])),
            "evaluations": cost.get(name, 0.0),
        }
        for name, values in found.items()
    ]


def bit_rows(samples: int, calls: int, names: Sequence[str]) -> list[Row]:
    """Total variation to the exact posterior."""
    cases = {f"heartbeat, phase {k}": problems.heartbeat(k) for k in (0, 4)}
    cases["Markov chain"] = problems.markov_chain()
    rows: list[Row] = []
    for name in names:
        if name == DIAGONAL:  # bits have no covariance
            continue
        row: Row = {"method": name, **dict.fromkeys(cases, 0.0)}
        for case, problem in cases.items():
            answer = posterior(name, problem.model, problem.observation, samples, calls, True)
            row[case] = problem.distance(answer.samples[0])
            row["evaluations"] = answer.network_evaluations / samples
        print(f"  {row}", flush=True)
        rows.append(row)
    return rows


def correlated_rows(samples: int) -> list[Row]:
    """Posterior means, in posterior standard deviations, and standard deviations, as ratios."""
    network = problems.correlated()
    model, matrix = problems.real_model(network), torch.eye(8, dtype=torch.float64)
    x_0 = network.sample(counter_noise(3, torch.arange(1), 0))
    n = counter_noise(4, torch.arange(1), 0).normal((8,))
    everything = torch.ones(1, 8, dtype=torch.bool)
    half = torch.arange(8)[None] % 2 == 0
    cases = {
        "denoise, sigma .5": Observation.of_reals(x_0 + 0.5 * n, everything, 0.5),
        "every second seen, sigma .1": Observation.of_reals(x_0 + 0.1 * n, half, 0.1),
    }
    rows: list[Row] = []
    for case, seen in cases.items():
        factor = seen.factor
        assert isinstance(factor, Normal)
        known = seen.known[0]
        exact, _ = network.posterior(matrix[known], factor.mean[0, known], factor.var[0, known])
        mean, std = exact.mean(), exact.covariance().diagonal().sqrt()
        for method, steps in ((Product(), 1000), (Auto(), 200 if bool(known.all()) else 100)):
            answer = draw(
                model, seen, samples, seed=5, method=method, sampler=Ancestral(steps=steps)
            )
            x = answer.samples[0].double()
            rows.append(
                {
                    "case": case,
                    "method": f"{method.name} ({answer.method.name})",
                    "mean_off": float(((x.mean(0) - mean) / std).square().mean().sqrt()),
                    "std_ratio": float((x.std(0) / std).mean()),
                    "evaluations": answer.network_evaluations / samples,
                }
            )
            print(f"  {rows[-1]}", flush=True)
    return rows


def _mixtures(seen: int, asked: argparse.Namespace) -> list[Row]:
    return mixtures(seen, asked.problems, asked.samples, asked.calls, asked.methods)


TABLES: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "correlated": lambda asked: correlated_rows(5 * asked.samples),
    "bits": lambda asked: bit_rows(3 * asked.samples, asked.calls, asked.methods),
    "mixture, 1 seen": partial(_mixtures, 1),
    "mixture, 2 seen": partial(_mixtures, 2),
}


def show(rows: list[Row]) -> str:
    """A Markdown table."""
    head = list(rows[0])
    cells = [
        [v if isinstance(v, str) else "" if math.isnan(v) else f"{v:.3g}" for v in row.values()]
        for row in rows
    ]
    return table(head, cells)


def main() -> None:
    """Measure, print tables, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--problems", type=int, default=3)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="+", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    asked = parser.parse_args()
    begun = time.perf_counter()
    print(machine())
    results = {title: TABLES[title](asked) for title in asked.only}
    for title, rows in results.items():
        print(f"\n{title}\n\n{show(rows)}")
    print(f"\n{time.perf_counter() - begun:.0f} s")
    if asked.json is not None:
        kept = json.loads(asked.json.read_text()) if asked.json.exists() else {}
        settings = {name: vars(asked)[name] for name in ("problems", "samples", "calls")}
        told = {title: {**settings, "rows": rows} for title, rows in results.items()}
        asked.json.write_text(json.dumps({**kept, **told}, indent=1) + "\n")


if __name__ == "__main__":
    main()
