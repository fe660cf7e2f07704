"""Compare methods on models with exact posteriors: enumerated bits, and one Gaussian."""

import torch

from benchmarks import problems
from benchmarks.methods import METHODS, posterior
from diffusion.distributions import Normal
from diffusion.noise import counter_noise
from diffusion.observation import Observation
from diffusion.posterior import Auto, Product, sample_posterior
from diffusion.samplers import Ancestral

Row = dict[str, float | str]

EXACT = "exact samples (floor)"


def bits(case: str, samples: int, calls: int, start: str = "") -> list[Row]:
    """Tabulate total variation to the exact posterior for methods that begin with `start`."""
    problem = problems.CASES[case]()
    uniform = counter_noise(1, torch.arange(samples), 0).uniform((1,))[:, 0].double()
    which = torch.searchsorted(problem.posterior.cumsum(0)[:-1], uniform, right=True)
    floor: Row = {
        "method": EXACT,
        "distance": problem.distance(problem.patterns[which]),
        "calls": 0.0,
    }
    rows = [floor] if EXACT.startswith(start) else []
    for name in METHODS:
        if "diagonal" in name or not name.startswith(start):  # bits have no covariance
            continue
        answer = posterior(name, problem.model, problem.observation, samples, calls)
        rows.append(
            {
                "method": name,
                "distance": problem.distance(answer.samples[0]),
                "calls": answer.network_evaluations / samples,
            }
        )
    return rows


def correlated(samples: int) -> list[Row]:
    """Tabulate errors of posterior means, in posterior deviations, and ratios of deviations."""
    network = problems.correlated()
    model, matrix = problems.real_model(network, 8), torch.eye(8, dtype=torch.float64)
    x_0 = network.sample(counter_noise(3, torch.arange(1), 0))
    n = counter_noise(4, torch.arange(1), 0).normal((8,))
    everything = torch.ones(1, 8, dtype=torch.bool)
    half = torch.arange(8)[None] % 2 == 0
    cases = {
        "all, noise .5": Observation.of_reals(x_0 + 0.5 * n, everything, 0.5),
        "every second, noise .1": Observation.of_reals(x_0 + 0.1 * n, half, 0.1),
    }
    rows: list[Row] = []
    for case, seen in cases.items():
        factor = seen.factor
        assert isinstance(factor, Normal)
        known = seen.known[0]
        exact, _ = network.posterior(matrix[known], factor.mean[0, known], factor.var[0, known])
        mean, std = exact.mean(), exact.covariance().diagonal().sqrt()
        for method, steps in ((Product(), 1000), (Auto(), 200 if bool(known.all()) else 100)):
            answer = sample_posterior(
                model, seen, samples, seed=5, method=method, sampler=Ancestral(steps=steps)
            )
            x = answer.samples[0].double()
            rows.append(
                {
                    "case": case,
                    "method": f"{method.name} ({answer.method.name})",
                    "mean_off": float(((x.mean(0) - mean) / std).square().mean().sqrt()),
                    "std_ratio": float((x.std(0) / std).mean()),
                    "calls": answer.network_evaluations / samples,
                }
            )
    return rows
