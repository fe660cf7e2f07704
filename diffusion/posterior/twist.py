"""Twists r_t(x_t): estimates of E[r(x_0) | x_t], or how well x_t agrees with an observation.

    reals  r_t(x_t) = N(y; A x_0hat, sigma^2 + A V_t A^T),  V_t = (1 - alpha_bar) / sqrt(alpha_bar)
           d x_0hat / d x_t, the covariance of x_0 given x_t (Tweedie's formula, second order)
    bits   r_t(x_t) = prod over known bits of (1 - eps) pi_y + eps (1 - pi_y), pi = P(x_0 | x_t)

A twist weighs a chain at x_t and steers its next step: the same estimate one step later multiplies
p(x_s | x_t). Particles (`particle_filter`) correct its errors, so any estimate is allowed, and a
better one needs fewer particles.

Cost: one network evaluation per call, plus one per product with the Jacobian, a gradient in x_t
alone that takes about as long as the call.

Sources: Wu, Trippe, Naesseth, Blei and Cunningham 2023 (twists, their proposals); Rozet, Andry,
Lanusse and Louppe 2024 (the covariance by Jacobian products and conjugate gradients); Boys,
Girolami, Pidstrigach, Reich, Mosca and Akyildiz 2023 (the formula).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, final

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from typing_extensions import override

from diffusion.distributions import LOG_2PI, Distribution, Normal
from diffusion.model import DiffusionModel
from diffusion.observation import Conditioned, Observation
from diffusion.operators import Mask
from diffusion.posterior.proposal import Independent, TwistValue
from diffusion.process import GaussianPrediction, Prediction, as_gaussian
from diffusion.process.base import Estimate
from diffusion.rows import per_row, row_sum

#: Lower limit of V_t / (1 - alpha_bar): a network's Jacobian is no perfect covariance.
_FLOOR = 1e-5
#: Tolerances relative to a covariance's size: negative eigenvalues, their floor, and asymmetry.
_NEGATIVE, _LEAST, _SKEW = 1e-3, 1e-6, 0.5
#: The largest share of a variance that a step may explain: bounds the weights, as r_s is estimated.
_MOST = 0.95
#: V_t at t = T for data of unit variance. Early errors of x_0hat are shared by many elements and
#: count for less than independent ones would (4 rather than 1 was measured on digits).
_SHARED = 4.0
#: Conjugate gradient steps without network evaluations.
_FREE = 32


Covariance = Literal["auto", "full", "diagonal", "independent"]


class Twist(BaseModel):
    """The settings of a twist r_t.

    Attributes:
        covariance: of x_0 given x_t: "full", by products with the network's Jacobian; "diagonal",
            the model's own variances (1 - alpha_bar where it has none), and one product;
            "independent" (`Elements`), no products; "auto", full if at most `products` numbers were
            seen, else independent.
        products: the most products per step with "full"; if more numbers were seen, the steps of
            conjugate gradients.
        trust: the power of r_t in the weights before the end (`particle_filter`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    trust: ClassVar[float] = 1.0
    covariance: Covariance = "auto"
    products: int = Field(8, ge=1, le=256)

    def exact(self, count: Tensor) -> Tensor:
        """Return whether to compute the whole covariance of `count` numbers seen, int64 [N]."""
        return (count <= self.products) & (self.covariance in ("auto", "full"))

    def ties(self, observation: Observation) -> bool:
        """Return whether the observation makes a proposal's elements depend on each other."""
        if not observation.factor.continuous:
            return False
        count = observation.count
        through = not isinstance(observation.operator, Mask)
        return through or bool((self.exact(count) & (count > 0)).any())

    @property
    def independent(self) -> bool:
        """Whether it does without a Jacobian where it is not `exact`."""
        return self.covariance in ("auto", "independent")

    def evaluations(self, model: DiffusionModel, count: Tensor) -> Tensor:
        """Count network evaluations per step for `count` int64 [N]; the last step takes 1."""
        if not model.process.continuous:
            return torch.ones_like(count)
        if self.independent:
            return torch.where(self.exact(count), 1 + count, 1)
        most = 1 if self.covariance == "diagonal" else self.products
        return 1 + count.clamp(max=most)

    def evaluate(
        self, model: DiffusionModel, x_t: Tensor, t: Tensor, s: Tensor, observation: Observation
    ) -> TwistValue:
        """Evaluate r_t(x_t) and the proposal for x_s; see `evaluate_twist`."""
        return evaluate_twist(model, x_t, t, s, observation, self)


class Told(Twist):
    """A proposal from a network that is told what was seen, q = p(x_s | x_t, y) as it has learned.

    If it is right, q(x_s | x_t, y) / p(x_s | x_t) = p(y | x_s) / p(y | x_t), and its product along
    a path is the best r_t there is. r_t of `Elements` (for bits, of each bit) is worse, and only
    has to find where the network is wrong; so `trust` is low.
    """

    trust: ClassVar[float] = 0.25

    @override
    def exact(self, count: Tensor) -> Tensor:
        return torch.zeros_like(count, dtype=torch.bool)

    @override
    def ties(self, observation: Observation) -> bool:
        return False

    @override
    def evaluations(self, model: DiffusionModel, count: Tensor) -> Tensor:
        """Two a step: of the network that is told, and of p(x_s | x_t)."""
        return torch.full_like(count, 2)

    @override
    def evaluate(
        self, model: DiffusionModel, x_t: Tensor, t: Tensor, s: Tensor, observation: Observation
    ) -> TwistValue:
        told = model.predict(x_t, t, observation=observation.to_network())
        plain = model.predict(x_t, t)
        _, log_r = plain.given(observation, s, by_elements(model))
        return TwistValue(log_r, Independent(plain.kernel(s), told.kernel(s)), told.x_0)


@torch.no_grad()
def evaluate_last_twist(
    model: DiffusionModel, x_t: Tensor, t: Tensor, observation: Observation
) -> TwistValue:
    """Evaluate the last step, where p(x_0 | x_t) r(x_0) has a closed form and r_t = Z~_t."""
    prediction = model.predict(x_t, t)
    kernel = prediction.kernel(torch.zeros_like(t))
    found, log_z = observation.multiply(kernel)
    proposal = found if isinstance(found, Conditioned) else Independent(kernel, found)
    return TwistValue(log_z, proposal, prediction.x_0)


@torch.no_grad()
def evaluate_twist(
    model: DiffusionModel,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    observation: Observation,
    twist: Twist,
) -> TwistValue:
    """Evaluate r_t(x_t) and the proposal for x_s, s above 0.

    Args:
        model: the model.
        x_t: [B, *event].
        t: int64 [B], or [1] for all rows.
        s: int64, likewise; s < t.
        observation: [B, *seen]; `Twist.exact` holds for all rows or for none.
        twist: the twist's settings.
    """
    count = observation.count
    exact = bool(twist.exact(count).all())
    by_jacobian = model.process.continuous and bool(count.any())
    if not by_jacobian or (twist.independent and not exact):
        plain = model.predict(x_t, t)
        found, log_r = plain.given(observation, s, by_elements(model))
        return TwistValue(log_r, Independent(plain.kernel(s), found), plain.x_0)
    with torch.inference_mode(False), torch.enable_grad():
        x = x_t.clone().requires_grad_()
        seen = model.predict(x, t, clip=False)
    # A clipped element has no gradient, so take the Jacobian of the unclipped estimate.
    prediction = as_gaussian(model.clip(seen))
    own = own_variance(prediction)
    at = model.process.alpha_bar[t]
    scale = per_row(torch.where(at > 0, (1 - at) / at.sqrt(), 0.0), x_t)
    blind = per_row(at == 0, x_t).bool()  # no signal in x_T: use the prior's variance
    floor = per_row(_FLOOR * (1 - at), x_t)

    def spread(u: Tensor) -> Tensor:
        """Return V_t u, [B, *event]; V_t is symmetric, so J^T stands in for J."""
        (found,) = torch.autograd.grad(seen.x_0, x, u.to(x_t), retain_graph=True)
        return (torch.where(blind, own * u, scale * found) + floor * u).double()

    to_x_0, _, _ = prediction.process.posterior_coefficients(t, s)
    gain = to_x_0.reshape(-1, *[1] * (x_t.ndim - 1))
    if exact:
        return _exact(model, prediction, s, gain, spread, observation)
    return _iterated(model, prediction, s, gain, spread, own.double(), observation, twist)


Spread = Callable[[Tensor], Tensor]


def _exact(
    model: DiffusionModel,
    prediction: GaussianPrediction,
    s: Tensor,
    gain: Tensor,
    spread: Spread,
    observation: Observation,
) -> TwistValue:
    """Evaluate with the whole S = sigma^2 + A V A^T, where Cov(x_s, y | x_t) = c_0 V A^T.

    Rows whose A V A^T is no covariance use the V of `Elements`.
    """
    x_0, kernel = prediction.x_0, prediction.kernel(s)
    matrix, off, noise = observation.linear(x_0)
    each = [spread(row.expand(len(x_0), -1).reshape(x_0.shape)) for row in matrix.unbind(1)]
    seen = torch.stack(each, 1).flatten(2)  # A V, [B, M, D]
    own, good = covariance(seen @ matrix.mT, matrix, prediction)
    slope = gain.flatten(1)[:, None] * seen / kernel.var.expand_as(x_0).double().flatten(1)[:, None]
    total = own + torch.diag_embed(noise)
    if bool(good.all()):
        proposal = Conditioned.on(kernel, slope, off, total, _MOST)
        return TwistValue(proposal.log_z, proposal, x_0)
    elements = Elements.of(model, prediction, s, surprise_of(observation, x_0))

    def through(v: Tensor) -> Tensor:
        """Return sigma^2 + A diag(v) A^T, [B, M, M]."""
        scaled = matrix * v.expand_as(x_0).flatten(1)[:, None]
        return scaled @ matrix.mT + torch.diag_embed(noise)

    pick = good[:, None, None]
    slope = torch.where(pick, slope, matrix * elements.slope.flatten(1)[:, None])
    proposal = Conditioned.on(
        kernel, slope, off, torch.where(pick, total, through(elements.seen)), _MOST
    )
    by_elements = Conditioned.on(kernel, slope, off, through(elements.now)).log_z
    return TwistValue(torch.where(good, proposal.log_z, by_elements), proposal, x_0)


def covariance(
    own: Tensor, matrix: Tensor, prediction: GaussianPrediction
) -> tuple[Tensor, Tensor]:
    """Make A V A^T a covariance, float64 [B, M, M]; also returns whether it was one, bool [B].

    V comes from a network's Jacobian, which is symmetric and positive only if the network is right.
    It counts as a covariance if it is finite, symmetric to half of its size, has no eigenvalue
    below -1e-3 of the greatest, and is nowhere wider than `most_variance`. Eigenvalues are raised
    to 1e-6 of the greatest. `own` is A V A^T and `matrix` is A.
    """
    finite = own.isfinite().flatten(1).all(1)
    own = torch.where(finite[:, None, None], own, 0.0)
    even = (own + own.mT) / 2
    values, axes = torch.linalg.eigh(even)
    size = values.abs().amax(1)
    skew = (own - even).flatten(1).norm(dim=1)
    width = matrix.square().sum(2).sum(1)  # at least the greatest eigenvalue of A A^T
    good = finite & (size > 0) & (skew <= _SKEW * even.flatten(1).norm(dim=1))
    good &= (values[:, 0] >= -_NEGATIVE * size) & (size <= width * prediction.most_variance)
    values = values.clamp_min(_LEAST * size[:, None])
    return (axes * values[:, None]) @ axes.mT, good


def _iterated(
    model: DiffusionModel,
    prediction: GaussianPrediction,
    s: Tensor,
    gain: Tensor,
    spread: Spread,
    own: Tensor,
    observation: Observation,
    twist: Twist,
) -> TwistValue:
    """Evaluate by solving S u = y - A x_0hat, with the determinant of S's diagonal only.

    Rows whose S turns out to be no covariance use the V of `Elements`.
    """
    x_0, kernel = prediction.x_0, prediction.kernel(s)
    operator, known, event = observation.operator, observation.known, x_0.shape[1:]
    off, noise = observation.residual(x_0)
    diagonal = torch.where(known, noise + operator.variance(own), 1.0)
    positive = torch.ones(len(x_0), dtype=torch.bool, device=x_0.device)

    if twist.covariance == "diagonal":
        solved = off / diagonal
        pull = spread(operator.adjoint(solved, event))
    else:

        def seen(u: Tensor) -> tuple[Tensor, Tensor]:
            """Return S u and V A^T u."""
            nonlocal positive
            pulled = spread(operator.adjoint(u, event))
            image = operator.forward(pulled)
            size = (row_sum(u * u) * row_sum(image * image)).sqrt()
            positive = positive & (row_sum(u * image) >= -_NEGATIVE * size)
            return torch.where(known, noise * u + image, 0.0), pulled

        solved, pull = conjugate_gradients(seen, off, torch.zeros_like(own), twist.products)
    log_det = torch.where(known, diagonal.log() + LOG_2PI, 0.0)
    fit = row_sum(off * solved).clamp_min(0)
    log_r = -0.5 * (fit + row_sum(log_det))
    mean = (kernel.mean + gain * pull).to(x_0.dtype)
    var = kernel.var.expand_as(x_0)
    if isinstance(operator, Mask):
        # An observed element narrows its step; with other operators the weights account for it.
        narrow = torch.where(known, gain.square() * own.square() / diagonal, 0.0) / var.double()
        var = (var.double() * (1 - narrow.clamp(max=_MOST))).to(x_0.dtype)
    found = TwistValue(log_r, Independent(kernel, Normal(mean, var)), x_0)
    # For any covariance |V A^T u|^2 <= max(V) u^T A V A^T u.
    good = positive & log_r.isfinite() & (row_sum(pull * pull) <= prediction.most_variance * fit)
    if bool(good.all()):
        return found
    return found.where(good, evaluate_elements(model, prediction, s, observation))


# -------------------------------------------------------------------------- without a Jacobian


@final
@dataclass(frozen=True)
class Elements:
    """The variances of x_s and x_0 given x_t without a Jacobian, each element on its own.

        V_t = 1 / (snr_t + 1 / 4),    snr_t = alpha_bar_t / (1 - alpha_bar_t)
        x_0hat(x_s) = x_0hat(x_t) + h (x_s - mean),    h = v_s snr_s / sqrt(alpha_bar_s)
        v_s = 1 / (1 / v_t + snr_s - snr_t)

    All elements and particles share V_t, so that particles differ only in how well they fit. The
    proposal is p(x_s | x_t) r_s(x_s) by a Kalman filter with v_t, each element's own variance
    (`certain`): where x_0hat is certain it does not follow x_s, and moving or narrowing x_s would
    cost every particle weight for nothing. For images whose background is mostly seen, nothing else
    keeps the weights of several particles alive.

    Attributes:
        var: the variance of x_s, float64 [B, *event].
        slope: h, by which x_0hat follows x_s, float64 [B, *event].
        now: V_t, float64, broadcastable to `var`.
        then: V_s, likewise.
    """

    var: Tensor
    slope: Tensor
    now: Tensor
    then: Tensor

    @classmethod
    def of(
        cls, model: DiffusionModel, prediction: GaussianPrediction, s: Tensor, surprise: Tensor
    ) -> Self:
        """Compute from a prediction; see `certain` for `surprise`."""
        x_t, process = prediction.x_t, prediction.process
        # In float64, because 1 - alpha_bar is tiny at the end.
        at, later = (per_row(process.alpha_bar[step], x_t.double()) for step in (prediction.t, s))
        snr, snr_s = at / (1 - at), later / (1 - later)

        def after(v: Tensor) -> Tensor:
            """Return the variance at s from the variance v at t."""
            return 1 / (1 / v + snr_s - snr)

        wide = 1 / (snr + 1 / _SHARED)
        slope = after(certain(model, prediction, surprise)) * snr_s / later.sqrt()
        var = prediction.kernel(s).var.expand_as(x_t).double()
        return cls(var, slope.expand_as(x_t), wide, after(wide))

    @property
    def seen(self) -> Tensor:
        """The variance of y without its noise: that of x_0hat(x_s) plus V_s."""
        return self.slope.square() * self.var + self.then


def surprise_of(observation: Observation, x_0: Tensor) -> Tensor:
    """Return |y - x_0hat| where elements are seen one by one, else 0; float64 [B, *event]."""
    if not isinstance(observation.operator, Mask):
        return torch.zeros_like(x_0, dtype=torch.float64)
    return observation.residual(x_0)[0].abs()


@torch.no_grad()
def evaluate_elements(
    model: DiffusionModel, prediction: GaussianPrediction, s: Tensor, observation: Observation
) -> TwistValue:
    """Run `evaluate_twist` with `Elements`."""
    x_t, x_0, kernel = prediction.x_t, prediction.x_0, prediction.kernel(s)
    operator, known = observation.operator, observation.known
    off, noise = observation.residual(x_0)
    elements = Elements.of(model, prediction, s, surprise_of(observation, x_0))
    var, slope = elements.var, elements.slope

    def solve(v: Tensor) -> tuple[Tensor, Tensor]:
        """Return (noise + A diag(v) A^T)^-1 off, and that matrix's diagonal."""
        v = v.expand_as(x_t)
        diagonal = torch.where(known, noise + operator.variance(v), 1.0)
        if isinstance(operator, Mask):
            return off / diagonal, diagonal

        def seen(u: Tensor) -> tuple[Tensor, Tensor]:
            image = operator.forward(v * operator.adjoint(u, x_t.shape[1:]))
            return torch.where(known, noise * u + image, 0.0), u

        return conjugate_gradients(seen, off, torch.zeros_like(off), _FREE)[0], diagonal

    solved, diagonal = solve(elements.now)
    log_det = torch.where(known, diagonal.log() + LOG_2PI, 0.0)
    log_r = -0.5 * row_sum(off * solved + log_det)
    moves, diagonal = solve(elements.seen)
    mean = kernel.mean + slope * var * operator.adjoint(moves, x_t.shape[1:])
    if isinstance(operator, Mask):
        # An observed element narrows its step; with other operators the weights account for it.
        var = var * (1 - torch.where(known, slope.square() * var / diagonal, 0.0))
    proposal = Normal(mean.to(x_t.dtype), var.to(x_t.dtype))
    return TwistValue(log_r, Independent(kernel, proposal), x_0)


def by_elements(model: DiffusionModel) -> Estimate:
    """Return the estimate by `Elements` for `Prediction.given`: of a row, or of its reals."""

    def estimate(
        prediction: Prediction, observation: Observation, s: Tensor
    ) -> tuple[Distribution, Tensor]:
        found = evaluate_elements(model, as_gaussian(prediction), s, observation)
        drawn = found.proposal.drawn
        assert not isinstance(drawn, Conditioned)  # its elements are independent
        return drawn, found.log_r

    return estimate


def certain(model: DiffusionModel, prediction: GaussianPrediction, surprise: Tensor) -> Tensor:
    """Return Var(x_0 | x_t), the model's own or else estimated from x_0hat, [B, *event].

    1 / V_t = snr_t + 1 / b^2,  b = (high - x_0hat) (x_0hat - low) / ((high - low) / 2)

    b bounds the variance of a variable between `low` and `high` with mean x_0hat (Bhatia and Davis
    2000), in units of half the range; a network's errors follow its square. It is at least the
    surprise |y - x_0hat|, so that a certain but wrong element moves. Without a range b = 1.
    """
    if prediction.variance == "moment" or prediction.own is not None:
        return own_variance(prediction).double()
    at = per_row(prediction.process.alpha_bar[prediction.t], prediction.x_0.double())
    bounds = model.space.bounds
    if bounds is None:
        return (1 - at).expand(prediction.x_0.shape)
    low, high = (bound.to(prediction.x_0.device) for bound in bounds)
    x_0 = prediction.x_0.double().clamp(low, high)
    b = torch.maximum((high - x_0) * (x_0 - low) * 2 / (high - low), surprise).clamp_min(1e-6)
    return 1 / (at / (1 - at) + 1 / b.square())


def own_variance(prediction: GaussianPrediction) -> Tensor:
    """Return Var(x_0 | x_t), [B, *event]: the model's own, or as for data of unit variance."""
    if prediction.variance == "moment" or prediction.own is not None:
        return prediction.kernel(torch.zeros_like(prediction.t)).var
    at = prediction.process.alpha_bar[prediction.t]
    return per_row(1 - at, prediction.x_0).expand_as(prediction.x_0)


def conjugate_gradients(
    apply: Callable[[Tensor], tuple[Tensor, Tensor]], off: Tensor, pull: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Solve S u = off row by row by `steps` steps from 0; returns u and V A^T u.

    A row stops if its S turns out not to be positive.
    """
    solved, left = torch.zeros_like(off), off
    towards, size = off, row_sum(off * off)
    for _ in range(steps):
        image, pulled = apply(towards)
        curve = row_sum(towards * image)
        good = (curve > 0) & (size > 1e-20)
        step = torch.where(good, size / torch.where(good, curve, 1.0), 0.0)
        solved = solved + per_row(step, off) * towards
        pull = pull + per_row(step, pull) * pulled
        left = left - per_row(step, off) * image
        before, size = size, row_sum(left * left)
        towards = left + per_row(size / before.clamp_min(1e-20), off) * towards
    return solved, pull
