"""Test whether a posterior's warnings tell good answers from bad and its stated errors hold.

    python -m benchmarks.warnings [--cases 120] [--systems 128] [--first 0] [--proposal learned]

Problems are random with exact posteriors: mixtures of Gaussians in 1 to 20 dimensions, mixtures of
bit patterns, and the two exact models of `models/`, with observations that are typical or 4 or 8
standard deviations out. Each is answered many times by the defaults (8 particles, 100 steps), with
one sample and with eight. A case is bad if, over all answers, some element's mean is off by more
than half a posterior standard deviation; a warning is right on a bad case's answer and wrong on a
good one's. A stated error is right if log p(y) is within 1.96 of it in 95% of answers. With a
proposal, only the cases that a network can be told of (elements seen), by particles drawn so.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measure import machine, table
from benchmarks.problems import real_model
from diffusion.checkpoint import load
from diffusion.model import DiffusionModel
from diffusion.networks import BitPatterns, GaussianMixture
from diffusion.noise import counter_noise
from diffusion.observation import Observation
from diffusion.operators import Dense, Mask
from diffusion.posterior import Diagnostics, Twisted
from diffusion.posterior.smc import SMCResult, run
from diffusion.process import BinomialProcess
from diffusion.samplers import Ancestral
from diffusion.schedule import InverseTimeSchedule
from diffusion.space import DataSpace

STEPS = 100
ANSWERS = (1, 8)
BAD = 0.5


@dataclass(frozen=True)
class Case:
    """An observation with its exact posterior means and deviations by element, and log p(y)."""

    kind: str
    model: DiffusionModel
    observation: Observation
    mean: Tensor
    std: Tensor
    log_evidence: float

    def off(self, samples: Tensor) -> float:
        """Return the largest error of samples' [n, D] means, in posterior standard deviations."""
        apart = (samples.double().mean(0) - self.mean) / self.std
        return float(apart[self.std > 1e-3 * self.std.max()].abs().max())


class Chance:
    """A source of random draws from one seed."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal numbers."""
        return torch.randn(*shape, generator=self._generator, dtype=torch.float64)

    def uniform(self, *shape: int) -> Tensor:
        """Draw uniform numbers from 0 to 1."""
        return torch.rand(*shape, generator=self._generator, dtype=torch.float64)

    def one(self, *of: float) -> float:
        """Draw one of these values."""
        return of[int(torch.randint(len(of), (1,), generator=self._generator))]

    def some(self, count: int, of: int) -> Tensor:
        """Draw `count` distinct numbers of 0..of - 1, in random order."""
        return torch.randperm(of, generator=self._generator)[:count]


def mixture(seed: int) -> Case:
    """Draw a random mixture of Gaussians of about unit size."""
    chance = Chance(seed)
    D, C = int(chance.one(1, 2, 3, 5, 8, 12, 20)), int(chance.one(1, 2, 3, 5, 10, 25))
    weights = chance.uniform(C) + 0.05
    weights = weights / weights.sum()
    means, factor = chance.normal(C, D), chance.normal(C, D, D) / D**0.5
    size = float(10 ** (2 * chance.uniform(1) - 2))  # scale of a component's variances
    covariances = size * (factor @ factor.mT + 0.2 * torch.eye(D))
    width = (1 + size) ** 0.5
    means, covariances = (means - weights @ means) / width, covariances / width**2
    network = GaussianMixture.from_values(weights, means, covariances)
    return seen(network, real_model(network, D), chance, seed)


def seen(
    network: GaussianMixture, model: DiffusionModel, chance: Chance, seed: int, kind: str = "reals"
) -> Case:
    """Observe some of the elements, or a few linear combinations of them, with noise."""
    D = network.config.features
    std, masked = chance.one(0.01, 0.1, 0.3, 1.0), bool(chance.one(0, 1))
    index = chance.some(int(chance.one(*range(1, D + 1))), D)
    rows = chance.normal(int(chance.one(*range(1, min(D, 4) + 1))), D) / D**0.5
    matrix = torch.eye(D, dtype=torch.float64)[index] if masked else rows
    M = len(matrix)
    x_0 = network.sample(counter_noise(seed, torch.arange(1), 0)).double()[0]
    y, out = matrix @ x_0 + std * chance.normal(M), chance.one(0, 0, 0, 4, 8)
    if out:
        noise = std**2 * torch.eye(M, dtype=torch.float64)
        total = matrix @ network.covariance() @ matrix.mT + noise
        way = chance.normal(M)
        y = matrix @ network.mean() + out * torch.linalg.cholesky(total) @ (way / way.norm())
    exact, log_evidence = network.posterior(matrix, y, torch.full((M,), std**2))
    if masked:
        values, known = torch.zeros(1, D), torch.zeros(1, D, dtype=torch.bool)
        values[0, index], known[0, index] = y.float(), True
        observation = Observation.of_reals(values, known, std)
    else:
        dense = Dense(rows=tuple(map(tuple, matrix.tolist())))
        observation = Observation.of_linear(dense, y[None].float(), (D,), std)
    deviation = exact.covariance().diagonal().sqrt()
    title = f"{kind}, {out:g} out" if out else f"{kind}, expected"
    return Case(title, model, observation, exact.mean(), deviation, log_evidence)


def bits(seed: int) -> Case:
    """Draw a random mixture of bit patterns, observed exactly or with one bit in ten flipped."""
    chance = Chance(seed)
    D, C = int(chance.one(3, 5, 8, 12)), int(chance.one(2, 4, 8, 16))
    patterns, weights = (chance.uniform(C, D) < 0.5).float(), chance.uniform(C) + 0.05
    patterns = patterns.unique(dim=0)
    weights = weights[: len(patterns)] / weights[: len(patterns)].sum()
    network = BitPatterns.from_values(weights, patterns, 0.5)
    process = BinomialProcess(InverseTimeSchedule().beta(1000), 0.5)
    space = DataSpace(kind="bits", shape=(D,))
    return told(network, DiffusionModel(process, network, space, "x_0", None).eval(), chance)


def told(network: BitPatterns, model: DiffusionModel, chance: Chance, kind: str = "bits") -> Case:
    """Observe some bits of one pattern."""
    patterns, D = network.patterns.float(), network.patterns.shape[1]
    known = torch.zeros(D, dtype=torch.bool)
    known[chance.some(int(chance.one(*range(1, D))), D)] = True
    flips = chance.one(0.0, 0.1)
    y = patterns[int(chance.one(*range(len(patterns))))]
    y = torch.where(known & (chance.uniform(D) < flips), 1 - y, y)
    agree = torch.where(patterns == y, 1 - flips, flips).double()
    joint = network.weights * torch.where(known, agree, 1.0).prod(1)
    chances = joint / joint.sum()
    mean = chances @ patterns.double()
    std = (mean * (1 - mean)).clamp_min(0.01).sqrt()  # above 0 for a certain bit too
    observation = Observation.of_bits(y[None], known[None], flips)
    return Case(kind, model, observation, mean, std, float(joint.sum().log()))


def cases(first: int, count: int) -> Iterator[Case]:
    """Yield cases: in five, three random Gaussians, one of random bits, one shipped exact model."""
    reals, _ = load(Path("models/gaussian-mixture/model.safetensors"))
    ones, _ = load(Path("models/bit-patterns/model.safetensors"))
    for seed in range(first, first + count):
        kind = seed % 10
        if kind in (3, 8):
            yield bits(seed)
        elif kind == 4 and isinstance(ones.network, BitPatterns):
            yield told(ones.network, ones, Chance(seed), "bits")
        elif kind == 9 and isinstance(reals.network, GaussianMixture):
            yield seen(reals.network, reals, Chance(seed), seed)
        else:
            yield mixture(seed)


def answers(case: Case, systems: int, method: Twisted) -> SMCResult:
    """Run `systems` systems with the default number of steps."""
    sampler = Ancestral(steps=min(STEPS, case.model.T))
    place = torch.zeros(systems, dtype=torch.long)
    kernel = method.kernel(case.model, case.observation, systems, sampler)
    return run(case.model, kernel, case.observation.rows(place), 5, torch.arange(systems))


def judged(case: Case, result: SMCResult, each: int) -> tuple[bool, float, float]:
    """Judge answers of `each` samples: whether bad, how many warn, how often the error holds."""
    count = len(result.log_evidence) // each
    samples, _ = Twisted().gather(result.rows(slice(count * each)), count, 5)
    bad = case.off(samples.flatten(0, 1)) > BAD
    warned, held = 0, 0
    for k in range(count):
        one = Diagnostics.of(result.rows(slice(k * each, (k + 1) * each)), case.model.T)
        assert one.log_evidence is not None  # from the weights
        assert one.log_evidence_error is not None  # from 8 particles
        warned += one.warning is not None
        held += abs(one.log_evidence - case.log_evidence) < 1.96 * one.log_evidence_error
    return bad, warned / count, held / count


def main() -> None:
    """Measure and print the confusion matrix by kind."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=120)
    parser.add_argument("--systems", type=int, default=128)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--proposal", choices=("twist", "learned"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(machine(), flush=True)
    found: dict[tuple[int, str, bool], list[tuple[float, float]]] = {}
    for number, case in enumerate(cases(asked.first, asked.cases), asked.first):
        if asked.proposal and not isinstance(case.observation.operator, Mask):
            continue
        result = answers(case, asked.systems, Twisted(proposal=asked.proposal or "twist"))
        line = f"{number} {case.kind}: off {case.off(result.samples[:, 0]):.2f}"
        error = float((result.log_evidence - case.log_evidence).square().mean().sqrt())
        line += f"; log p(y) off {error:.2f} (root mean square)"
        for each in ANSWERS:
            bad, warned, held = judged(case, result, each)
            found.setdefault((each, case.kind, bad), []).append((warned, held))
            line += f"; {each}: warned {warned:.2f}, error holds {held:.2f}"
        print(line, flush=True)
    rows = []
    for each in ANSWERS:
        kinds = sorted({kind for _, kind, _ in found})
        for kind in (*kinds, "all"):
            row = [str(each), kind]
            for bad in (False, True):
                part = [
                    one
                    for (n, of, is_bad), ones in found.items()
                    if n == each and is_bad == bad and kind in (of, "all")
                    for one in ones
                ]
                share = f"{sum(w for w, _ in part) / len(part):.2f}" if part else ""
                row += [str(len(part)), share]
            every = [
                held
                for (n, of, _), ones in found.items()
                if n == each and kind in (of, "all")
                for _, held in ones
            ]
            rows.append([*row, f"{sum(every) / len(every):.2f}"])
    heads = ["samples", "case", "good", "of these warned", "bad", "of these warned", "error holds"]
    print("\n" + table(heads, rows))


if __name__ == "__main__":
    main()
