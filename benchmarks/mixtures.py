"""The mixture of 25 Gaussians with random observations and exact posteriors.

    x_0 ~ sum_k w_k N(mu_k, 1),     y = A x_0 + sigma n

with mu_k = (-8 i, -8 j) repeated over the coordinates, i and j in -2..2, random weights w, A's
singular values uniform in [0, 1], and sigma uniform below the largest of them. All components have
the same covariance, so y moves a draw of each by the same gain (Matheron's rule), and no matrix is
larger than A.

Source: Cardoso, Janati El Idrissi, Le Corff and Moulines 2023 (MCGDiff), Section 4.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from benchmarks.known import Row
from benchmarks.problems import real_model
from diffusion.model import DiffusionModel
from diffusion.networks import Network
from diffusion.networks.embedding import Clock
from diffusion.networks.mixture import split_seen
from diffusion.noise import counter_noise
from diffusion.observation import Observation
from diffusion.operators import Dense, Mask

WIDTH = 8 * 2**0.5  # the standard deviation of the means: model units are about 1 wide
_VAR = 1 / WIDTH**2


@final
class UnitMixture(Network):
    """The exact network for a mixture of components with one common variance, in model units.

    x_t = sqrt(a) x_0 + sqrt(1 - a) n:  E[x_0 | x_t, k] = mu_k + g (x_t - sqrt(a) mu_k),
    g = sqrt(a) v / (a v + 1 - a)

    `diffusion.networks.GaussianMixture` stores full covariances [K, D, D], too large in 800
    dimensions.

    Args:
        weights: float64 [K].
        means: float64 [K, D].
    """

    clock: Clock = "log_snr"
    conditional = True
    weights: Tensor
    means: Tensor

    def __init__(self, weights: Tensor, means: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights)
        self.register_buffer("means", means)

    @override
    def condition(self, time: Tensor) -> tuple[Tensor, ...]:
        return (time,)

    @override
    def given(self, x_t: Tensor, *condition: Tensor) -> Tensor:
        """Return the mean, then log(Var / (1 - alpha_bar)), [B, 2 D]."""
        x_t, told = split_seen(x_t, self.means.shape[1])
        signal, noise = condition[0].double().sigmoid(), (-condition[0].double()).sigmoid()
        signal, noise = signal[:, None], noise[:, None]
        x, precision = x_t.double(), signal / noise  # of x_t / sqrt(signal)
        pulled = signal.sqrt() / noise * x
        if told is not None:  # y is one more observation of each element (`Normal.told`)
            share = told[1].double().clamp(max=1 - 1e-9)  # a variance of 1e-9 where y is exact
            seen = share / (1 - share)
            pulled, precision = pulled + told[0].double() * (1 + seen), precision + seen
        total = 1 + precision * _VAR
        # log p(k | x_t, y) up to a term shared by all components
        fit = (pulled / total) @ self.means.mT
        fit = fit - 0.5 * (precision / total).expand_as(x) @ self.means.square().mT
        chance = (self.weights.log() + fit).softmax(1)
        centre = chance @ self.means
        between = (chance @ self.means.square() - centre.square()).clamp_min(0)
        mean = (centre + _VAR * pulled) / total
        var = (_VAR / total + between / total.square()) / noise
        return torch.cat((mean, var.expand_as(x).log()), 1).to(x_t.dtype)


@final
@dataclass(frozen=True)
class Problem:
    """A mixture model and an observation of one example, in model units.

    Attributes:
        model: the mixture's model.
        observation: of one example.
        matrix: A, float64 [M, D].
        y: float64 [M].
        std: of y's noise.
        x_0: the example, float64 [D].
    """

    model: DiffusionModel
    observation: Observation
    matrix: Tensor
    y: Tensor
    std: float
    x_0: Tensor

    @property
    def log_evidence(self) -> float:
        """Return log p(y), nats."""
        return float(self._log_joint().logsumexp(0))

    def exact(self, count: int, seed: int) -> Tensor:
        """Draw from the exact posterior, float64 [count, D]."""
        x = draw(self.network, self._log_joint().softmax(0), count, seed)
        again = counter_noise(seed + 1, torch.arange(count), 1).normal(self.y.shape).double()
        off = self.y - x @ self.matrix.mT - self.std * again
        solved: Tensor = torch.linalg.solve(self._total, off.mT)
        return x + solved.mT @ (_VAR * self.matrix)

    @property
    def network(self) -> UnitMixture:
        """The mixture."""
        network = self.model.network
        assert isinstance(network, UnitMixture)  # `problem` makes it
        return network

    @property
    def _total(self) -> Tensor:
        """Return the covariance of y given a component."""
        noise = self.std**2 * torch.eye(len(self.y), dtype=torch.float64)
        return _VAR * self.matrix @ self.matrix.mT + noise

    def _log_joint(self) -> Tensor:
        """Return log p(k) p(y | k), [K]."""
        off = self.y - self.network.means @ self.matrix.mT
        normal = torch.distributions.MultivariateNormal(torch.zeros_like(off), self._total)
        given: Tensor = normal.log_prob(off)
        return self.network.weights.log() + given


def problem(features: int, seen: int, seed: int, mask: bool = False) -> Problem:
    """Draw a problem that observes `seen` values; with `mask`, coordinates without noise."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    network = _mixture(features, uniform(25))
    model = real_model(network, features)
    x_0 = draw(network, network.weights, 1, seed)[0]
    if mask:
        return _through(model, x_0, torch.arange(features) < seen)
    right, left = torch.linalg.qr(normal(features, seen))[0], torch.linalg.qr(normal(seen, seen))[0]
    values = uniform(seen)
    matrix = left @ (values[:, None] * right.mT)
    std = float(uniform(1) * values.max()) / WIDTH
    y = matrix @ x_0 + std * normal(seen)
    dense = Dense(rows=matrix.tolist())
    observation = Observation.of_linear(dense, y[None].float(), (features,), std)
    return Problem(model, observation, matrix, y, std, x_0)


def masked(features: int, seed: int) -> Problem:
    """Draw a problem that observes some coordinates at random, always of the same mixture."""
    weights, place, count = (
        torch.rand(n, generator=torch.Generator().manual_seed(at), dtype=torch.float64)
        for n, at in ((25, features), (features, 1000 + seed), (1, 2000 + seed))
    )
    network = _mixture(features, weights)
    x_0 = draw(network, network.weights, 1, seed)[0]
    seen = 1 + int(count * (features - 1))  # at least one, and not all
    return _through(real_model(network, features), x_0, place.argsort() < seen)


def _mixture(features: int, weights: Tensor) -> UnitMixture:
    place = torch.arange(-2, 3).double()
    means = -8 * torch.cartesian_prod(place, place).repeat(1, features // 2) / WIDTH
    return UnitMixture(weights / weights.sum(), means)


def _through(model: DiffusionModel, x_0: Tensor, known: Tensor) -> Problem:
    """Observe x_0 [D] without noise where `known`."""
    matrix = torch.eye(len(x_0), dtype=torch.float64)[known]
    observation = Observation.of_reals(x_0[None].float(), known[None])
    assert isinstance(observation.operator, Mask)
    return Problem(model, observation, matrix, matrix @ x_0, 0.0, x_0)


def draw(network: UnitMixture, chance: Tensor, count: int, seed: int) -> Tensor:
    """Draw from the mixture with weights `chance`, float64 [count, D]."""
    features = network.means.shape[1]
    # Two calls would return the same numbers, so make one; its last column picks the component.
    normal = counter_noise(seed, torch.arange(count), 0).normal((features + 1,)).double()
    edges = chance.cumsum(0)[:-1]
    which = torch.searchsorted(edges, torch.special.ndtr(normal[:, -1].contiguous()), right=True)
    return network.means[which] + normal[:, :-1] / WIDTH


def compared(method: str, samples: Tensor, exact: Tensor, calls: float) -> Row:
    """Return a method's distances of order 2 and 1 to exact samples, data units."""
    two, one = (WIDTH * sliced(samples, exact, order=order) for order in (2, 1))
    return {"method": method, "distance": two, "order 1": one, "calls": calls}


def sliced(a: Tensor, b: Tensor, directions: int = 1000, order: float = 2) -> float:
    """Compute the sliced Wasserstein distance of an order p between [n, D] and [k n, D].

    SW^p = mean over directions of W_p^p of the projections, by coupling quantiles. It agrees with
    POT's `ot.sliced.sliced_wasserstein_distance`, used with p = 2 in the literature on this
    mixture. With many more exact samples than a method's, only the latter's noise is left.
    """
    rows = torch.arange(directions)
    onto = counter_noise(7, rows, 0).normal(a.shape[1:])
    onto = (onto / onto.norm(dim=1, keepdim=True)).mT
    few, many = ((x.float() @ onto).sort(0).values for x in (a, b))
    apart = few.repeat_interleave(len(b) // len(a), 0) - many
    return float(apart.abs().pow(order).mean() ** (1 / order))
