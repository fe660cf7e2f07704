"""Six simulators of the benchmark of simulation-based inference `sbibm`, and its files.

    theta ~ p(theta),    x ~ p(x | theta)

Lueckmann, Boelts, Greenberg, Goncalves and Macke, "Benchmarking Simulation-Based Inference"
(AISTATS 2021), appendix T. Its wheel holds, for ten observations of each task, x and 10,000 draws
from the exact posterior, and for most the theta that x was simulated from:

    pip download --no-deps sbibm==1.1.0

The wheel is read as a zip file: installing it would bring packages that pin old versions of others.
"""

import argparse
import bz2
import io
import zipfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from typing_extensions import override

Rows = NDArray[Any]

OBSERVATIONS = range(1, 11)


class Simulator(ABC):
    """A task: a prior and a simulator.

    Attributes:
        name: as `sbibm` has it.
        size: the number of parameters.
        seen: the number of data.
        limits: of a uniform prior, the same for each parameter; None if it has none.
    """

    name: ClassVar[str]
    size: ClassVar[int]
    seen: ClassVar[int]
    limits: ClassVar[tuple[float, float] | None] = None

    @property
    def covariance(self) -> Rows:
        """That of a Gaussian prior around 0, [size, size]."""
        raise TypeError(f"the prior of {self.name} is uniform")

    def prior(self, n: int, dice: Generator) -> Rows:
        """Draw parameters, [n, size]: uniform between the limits, or else Gaussian."""
        if self.limits is not None:
            return dice.uniform(*self.limits, size=(n, self.size))
        return dice.normal(size=(n, self.size)) @ np.linalg.cholesky(self.covariance).T

    @abstractmethod
    def simulate(self, theta: Rows, dice: Generator) -> Rows:
        """Draw data [n, seen] for parameters [n, size]."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the parameters."""
        return tuple(f"theta{i}" for i in range(1, self.size + 1))

    @property
    def data(self) -> tuple[str, ...]:
        """The names of the data."""
        return tuple(f"x{i}" for i in range(1, self.seen + 1))


@final
class TwoMoons(Simulator):
    """A crescent of radius .1, moved by -|theta_1 + theta_2| and theta_2 - theta_1."""

    name, size, seen, limits = "two_moons", 2, 2, (-1.0, 1.0)

    @override
    def simulate(self, theta: Rows, dice: Generator) -> Rows:
        angle = dice.uniform(-np.pi / 2, np.pi / 2, len(theta))
        radius = dice.normal(0.1, 0.01, len(theta))
        crescent = np.stack([radius * np.cos(angle) + 0.25, radius * np.sin(angle)], 1)
        first, second = theta.T
        moved = np.stack([-np.abs(first + second), second - first], 1) / np.sqrt(2)
        found: Rows = crescent + moved
        return found


@final
class SLCP(Simulator):
    """Simple likelihood, complex posterior: four draws from a Gaussian in the plane.

    Its mean is theta_1, theta_2, its deviations theta_3^2 and theta_4^2, its correlation tanh
    theta_5; 1e-6 is added to the variances.
    """

    name, size, seen, limits = "slcp", 5, 8, (-3.0, 3.0)

    @override
    def simulate(self, theta: Rows, dice: Generator) -> Rows:
        mean, (one, two), rho = theta[:, :2], theta[:, 2:4].T ** 2, np.tanh(theta[:, 4])
        covariance = np.empty((len(theta), 2, 2))
        covariance[:, 0, 0], covariance[:, 1, 1] = one**2 + 1e-6, two**2 + 1e-6
        covariance[:, 0, 1] = covariance[:, 1, 0] = rho * one * two
        root = np.linalg.cholesky(covariance)
        four = mean[:, None] + dice.normal(size=(len(theta), 4, 2)) @ root.mT
        return four.reshape(len(theta), 8)


@final
class GaussianMixture(Simulator):
    """x ~ (N(theta, 1) + N(theta, .1^2)) / 2 in the plane."""

    name, size, seen, limits = "gaussian_mixture", 2, 2, (-10.0, 10.0)

    @override
    def simulate(self, theta: Rows, dice: Generator) -> Rows:
        deviation = dice.choice([1.0, 0.1], size=(len(theta), 1))
        return theta + deviation * dice.normal(size=theta.shape)


@final
class GaussianLinear(Simulator):
    """x ~ N(theta, .1 I), theta ~ N(0, .1 I), in ten dimensions."""

    name, size, seen = "gaussian_linear", 10, 10

    @property
    @override
    def covariance(self) -> Rows:
        return 0.1 * np.eye(self.size)

    @override
    def simulate(self, theta: Rows, dice: Generator) -> Rows:
        return dice.normal(theta, np.sqrt(0.1))


@final
class GaussianLinearUniform(Simulator):
    """x ~ N(theta, .1 I), theta uniform, in ten dimensions."""

    name, size, seen, limits = "gaussian_linear_uniform", 10, 10, (-1.0, 1.0)

    @override
    def simulate(self, theta: Rows, dice: Generator) -> Rows:
        return dice.normal(theta, np.sqrt(0.1))


@final
class BernoulliGLM(Simulator):
    """A neuron's spikes y_i ~ Bernoulli(sigmoid(V theta)_i), of which x = V^T y is told.

    V has a column of ones and nine delays of white noise, which drove the neuron for 100 steps. The
    filter theta_2..10 has a smooth Gaussian prior, and the offset theta_1 a variance of 2.
    """

    name, size, seen = "bernoulli_glm", 10, 10

    @cached_property
    def design(self) -> Rows:
        """V, [100, 10]."""
        stimulus = np.random.RandomState(42).randn(100).astype(np.float32)
        delayed = [np.concatenate([np.zeros(j), stimulus[: 100 - j]]) for j in range(9)]
        return np.stack([np.ones(100), *delayed], 1)

    @cached_property
    @override
    def covariance(self) -> Rows:
        M = self.size - 1
        slope = np.eye(M) - np.eye(M, k=-1)
        smooth = slope @ slope + np.diag(np.sqrt(np.arange(M) / M))
        precision = np.zeros((M + 1, M + 1))
        precision[0, 0], precision[1:, 1:] = 0.5, smooth.T @ smooth
        return np.linalg.inv(precision)

    @override
    def simulate(self, theta: Rows, dice: Generator) -> Rows:
        chance = 1 / (1 + np.exp(-theta @ self.design.T))
        spikes = dice.uniform(size=chance.shape) < chance
        found: Rows = spikes @ self.design
        return found


TASKS: dict[str, Simulator] = {
    each.name: each
    for each in (
        TwoMoons(),
        GaussianMixture(),
        SLCP(),
        GaussianLinear(),
        GaussianLinearUniform(),
        BernoulliGLM(),
    )
}


@dataclass(frozen=True)
class Published:
    """One of a task's ten observations, as `sbibm` publishes it.

    Attributes:
        x: the data seen, [seen].
        theta: what they were simulated from, [size]; None where that is not told.
        posterior: exact draws, [10000, size].
    """

    x: Rows
    theta: Rows | None
    posterior: Rows


def published(wheel: Path, task: Simulator, number: int) -> Published:
    """Read observation `number`, 1 to 10, from the wheel of `sbibm`.

    Raises:
        FileNotFoundError: there is no wheel.
    """
    if not wheel.is_file():
        raise FileNotFoundError(
            f"no wheel {wheel}: `pip download --no-deps sbibm==1.1.0` writes it, and --sbibm says "
            "where it is"
        )
    folder = f"sbibm/tasks/{task.name}/files/num_observation_{number}"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        theta = f"{folder}/true_parameters.csv"
        return Published(
            x=_table(archive.read(f"{folder}/observation.csv"))[0],
            theta=_table(archive.read(theta))[0] if theta in names else None,
            posterior=_table(
                bz2.decompress(archive.read(f"{folder}/reference_posterior_samples.csv.bz2"))
            ),
        )


def _table(text: bytes) -> Rows:
    return np.asarray(np.loadtxt(io.BytesIO(text), delimiter=",", skiprows=1, ndmin=2))


def ranks(wheel: Path, task: Simulator, dice: Generator, draws: int = 999) -> Rows:
    """Rank each number of the published x among simulations of the theta it is from, 0 to 1.

    Uniform if the simulator is the published one; empty if no theta is told.
    """
    found = []
    for number in OBSERVATIONS:
        seen = published(wheel, task, number)
        if seen.theta is not None:
            again = task.simulate(np.repeat(seen.theta[None], draws, 0), dice)
            found.append(((again < seen.x).sum(0) + dice.uniform(size=task.seen)) / (draws + 1))
    return np.array(found).flatten()


def score(task: BernoulliGLM, seen: Published) -> Rows:
    """Return the mean slope of the log-posterior over its published draws, in standard errors.

    E d log p(theta | x) / d theta = 0, with d = x - V^T sigmoid(V theta) - C^-1 theta for prior C.
    """
    theta, V = seen.posterior, task.design
    slope = seen.x - (1 / (1 + np.exp(-theta @ V.T))) @ V - theta @ np.linalg.inv(task.covariance)
    found: Rows = slope.mean(0) / slope.std(0) * np.sqrt(len(slope))
    return found


def main() -> None:
    """Check the simulators against what is published."""
    parser = argparse.ArgumentParser(description="check the simulators against sbibm's files")
    parser.add_argument("wheel", type=Path)
    wheel, dice = parser.parse_args().wheel, np.random.default_rng(0)
    for task in TASKS.values():
        place = ranks(wheel, task, dice)
        if len(place):
            steps = np.arange(len(place)) / len(place)
            off = np.abs(np.sort(place) - steps).max() * np.sqrt(len(place))
            print(f"{task.name}: ranks of x given theta: Kolmogorov {off:.2f}, 5% line 1.36")
    spikes, exact = BernoulliGLM(), TASKS["gaussian_linear"]
    each = [score(spikes, published(wheel, spikes, number)) for number in OBSERVATIONS]
    print(f"{spikes.name}: the score is 0, the furthest of 100 {np.abs(each).max():.1f} errors off")
    drawn = [published(wheel, exact, number) for number in OBSERVATIONS]
    apart = [(seen.posterior.mean(0) - seen.x / 2) / np.sqrt(0.05 / 10_000) for seen in drawn]
    spread = np.mean([seen.posterior.var(0) for seen in drawn])
    print(
        f"{exact.name}: N(x / 2, .05), variance {spread:.5f}, "
        f"the furthest of 100 means {np.abs(apart).max():.1f} errors off"
    )


if __name__ == "__main__":
    main()
