"""Twists: r_t(x_t), an estimate of what an observation makes of x_t, E[r(x_0) | x_t].

    reals  r_t(x_t) = N(y; A x_0hat, sigma^2 + A V_t A^T),  V_t = (1 - alpha_bar) / sqrt(alpha_bar)
           d x_0hat / d x_t, the covariance of x_0 given x_t (Tweedie's formula, second order)
    bits   r_t(x_t) = prod over the known of (1 - eps) pi_y + eps (1 - pi_y), pi = P(x_0 | x_t)

A twist says how much a chain at x_t is worth, and where its next step goes: the same estimate,
taken one step further, multiplies p(x_s | x_t). Particles (`particle_filter`) correct what
either gets wrong, so any estimate is allowed, and a better one needs fewer of them.

Cost: one network evaluation for each call, and one for each product with the Jacobian, which takes
the gradient of x_t alone and so about as long as the call.

Sources: Wu, Trippe, Naesseth, Blei and Cunningham 2023 (twists, their proposals); Rozet, Andry,
Lanusse and Louppe 2024 (the covariance by Jacobian products and conjugate gradients); Boys,
Girolami, Pidstrigach, Reich, Mosca and Akyildiz 2023 (its formula).
"""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from diffusion.distributions import LOG_2PI, Normal
from diffusion.model import DiffusionModel
from diffusion.observation import Conditioned, Observation
from diffusion.operators import Mask
from diffusion.posterior.elements import (
    Elements,
    conjugate_gradients,
    evaluate_elements,
    own_variance,
    surprise_of,
)
from diffusion.posterior.proposal import Independent, TwistValue
from diffusion.process import GaussianPrediction, as_gaussian
from diffusion.rows import per_row, row_sum

#: V_t is at least so much of 1 - alpha_bar: a network's Jacobian is no perfect covariance.
_FLOOR = 1e-5
#: What of a covariance's size may be negative, and what is left of it then; and not symmetric.
_NEGATIVE, _LEAST, _SKEW = 1e-3, 1e-6, 0.5
#: A step fixes at most so much of what is seen, for r_s is an estimate: weights stay bounded.
_MOST = 0.95


Covariance = Literal["auto", "full", "diagonal", "independent"]


class Twist(BaseModel):
    """Which r_t.

    Attributes:
        covariance: of x_0 given x_t: "full", by products with the network's Jacobian; "diagonal",
            the model's own variances (1 - alpha_bar where it has none), which one product still
            carries to the other elements; "independent", without products: each element answers
            for itself; or "auto", full where no more than `products` numbers were seen and
            independent elsewhere.
        products: the most products of a step with "full". Where no more numbers were seen the
            covariance of y is exact, else conjugate gradients take as many steps.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    covariance: Covariance = "auto"
    products: int = Field(8, ge=1, le=256)

    def exact(self, count: Tensor) -> Tensor:
        """Whether y's covariance is worked out whole, of so many numbers seen; int64 [N]."""
        return (count <= self.products) & (self.covariance in ("auto", "full"))

    def ties(self, observation: Observation) -> bool:
        """Whether some proposal's elements come to depend on each other by what was seen."""
        if not observation.factor.continuous:
            return False
        count = observation.count
        through = not isinstance(observation.operator, Mask)
        return through or bool((self.exact(count) & (count > 0)).any())

    @property
    def independent(self) -> bool:
        """Whether what is not `exact` is done without a Jacobian."""
        return self.covariance in ("auto", "independent")

    def evaluations(self, model: DiffusionModel, count: Tensor) -> Tensor:
        """Network evaluations of one step but the last, which takes 1; count int64 [N]."""
        if not model.process.continuous:
            return torch.ones_like(count)
        if self.independent:
            return torch.where(self.exact(count), 1 + count, 1)
        most = 1 if self.covariance == "diagonal" else self.products
        return 1 + count.clamp(max=most)


@torch.no_grad()
def evaluate_last_twist(
    model: DiffusionModel, x_t: Tensor, t: Tensor, observation: Observation
) -> TwistValue:
    """At the last step p(x_0 | x_t) r(x_0) is known in closed form, and r_t = Z~_t.

    Args:
        model: the model.
        x_t: [B, *event].
        t: int64 [B], or [1] for all rows.
        observation: what was seen, [B, *seen].
    """
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
    """r_t(x_t), and the proposal of x_s for s above 0.

    Args:
        model: the model.
        x_t: [B, *event].
        t: int64 [B], or [1] for all rows.
        s: int64, likewise; s < t.
        observation: what was seen, [B, *seen]; either all rows have few enough numbers for
            `Twist.exact`, or none.
        twist: which r_t.
    """
    count = observation.count
    exact = bool(twist.exact(count).all())
    by_jacobian = model.process.continuous and bool(count.any())
    if not by_jacobian or (twist.independent and not exact):
        plain = model.predict(x_t, t)
        found = plain.given(observation, s)
        if found is None:
            return evaluate_elements(model, as_gaussian(plain), s, observation)
        return TwistValue(found[1], Independent(plain.kernel(s), found[0]), plain.x_0)
    with torch.inference_mode(False), torch.enable_grad():
        x = x_t.clone().requires_grad_()
        seen = model.predict(x, t, clip=False)
    # A clipped element has no gradient, so the Jacobian is of what the network said.
    prediction = as_gaussian(model.clip(seen))
    own = own_variance(prediction)
    at = model.process.alpha_bar[t]
    scale = per_row(torch.where(at > 0, (1 - at) / at.sqrt(), 0.0), x_t)
    blind = per_row(at == 0, x_t).bool()  # x_T without signal says nothing: the prior's variance
    floor = per_row(_FLOOR * (1 - at), x_t)

    def spread(u: Tensor) -> Tensor:
        """V_t u, [B, *event]; V_t is symmetric, so J^T does for J."""
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
    """With S = sigma^2 + A V A^T worked out: Cov(x_s, y | x_t) = c_0 V A^T.

    Rows whose A V A^T is no covariance take V element by element, as `elements` has it.
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
        """sigma^2 + A diag(v) A^T, [B, M, M]."""
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
    """A V A^T as a covariance, and whether it is one; float64 [B, M, M], bool [B].

    V comes of a network's Jacobian, which is symmetric and positive only as far as the network is
    right. It is taken for a covariance where it is finite, symmetric to half of its size, without
    an eigenvalue below -1e-3 of the greatest, and in no direction wider than what the process
    allows of Var(x_0 | x_t) (`prediction.most_variance`). Eigenvalues are then at least 1e-6 of the
    greatest.

    Args:
        own: A V A^T, float64 [B, M, M].
        matrix: A, [B or 1, M, D].
        prediction: of x_t.
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
    """With S u = y - A x_0hat solved for u only; the determinant is that of S's diagonal.

    Rows whose S turns out to be no covariance on the way take V element by element.
    """
    x_0, kernel = prediction.x_0, prediction.kernel(s)
    operator, factor, known = observation.operator, observation.factor, observation.known
    event = x_0.shape[1:]
    off = torch.where(known, (factor.mean - operator.forward(x_0)).double(), 0.0)
    noise = torch.where(known, factor.var.expand_as(factor.mean).double(), 1.0)
    diagonal = torch.where(known, noise + operator.variance(own), 1.0)
    positive = torch.ones(len(x_0), dtype=torch.bool, device=x_0.device)

    if twist.covariance == "diagonal":
        solved = off / diagonal
        pull = spread(operator.adjoint(solved, event))
    else:

        def seen(u: Tensor) -> tuple[Tensor, Tensor]:
            """S u and V A^T u."""
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
        # What is seen of an element narrows its step; with other operators the weights see to it.
        narrow = torch.where(known, gain.square() * own.square() / diagonal, 0.0) / var.double()
        var = (var.double() * (1 - narrow.clamp(max=_MOST))).to(x_0.dtype)
    found = TwistValue(log_r, Independent(kernel, Normal(mean, var)), x_0)
    # |V A^T u|^2 <= (the most of V) u^T A V A^T u of any covariance.
    good = positive & log_r.isfinite() & (row_sum(pull * pull) <= prediction.most_variance * fit)
    if bool(good.all()):
        return found
    return found.where(good, evaluate_elements(model, prediction, s, observation))
