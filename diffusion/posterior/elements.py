"""A twist without a Jacobian: V_t diagonal, each element answering for itself.

    r_t(x_t) = N(y; A x_0hat, sigma^2 + A V_t A^T),     V_t = 1 / (snr_t + 1 / 4),
    snr_t = alpha_bar_t / (1 - alpha_bar_t)

One V_t for all elements and particles, so that particles differ by how they fit and by nothing
else. The proposal is p(x_s | x_t) r_s(x_s) with x_0hat(x_s) linear in x_s, by Kalman's filter:

    x_0hat(x_s) = x_0hat(x_t) + h (x_s - mean),     h = v_s snr_s / sqrt(alpha_bar_s),
    v_s = 1 / (1 / v_t + snr_s - snr_t)

where v_t is each element's own variance (`certain`): where x_0hat is sure of itself it does not
heed x_s, and to move or narrow x_s there costs every particle weight for nothing. On images, whose
background is most of what is seen, that is what keeps weights alive: a network's Jacobian, or one
narrowing for all elements, leaves one particle of any number.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from diffusion.distributions import LOG_2PI, Normal
from diffusion.model import DiffusionModel
from diffusion.observation import Observation
from diffusion.operators import Mask
from diffusion.posterior.proposal import Independent, TwistValue
from diffusion.process import GaussianPrediction
from diffusion.rows import per_row, row_sum

#: V_t at t = T, of data of unit variance: early errors of x_0hat are shared by many elements, and
#: count for less than as many of their own (4 rather than 1 was measured on digits).
_SHARED = 4.0
#: Steps of conjugate gradients, which cost no network evaluation.
_FREE = 32


@final
@dataclass(frozen=True)
class Elements:
    """x_s and x_0 given x_t, element by element.

    Attributes:
        var: of x_s, float64 [B, *event].
        slope: h, by which x_0hat goes with x_s, float64 [B, *event].
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
        """From what the network says of x_t; `surprise` as `certain` takes it."""
        x_t, process = prediction.x_t, prediction.process
        # In float64: 1 - alpha_bar is all but nothing at the end.
        at, later = (per_row(process.alpha_bar[step], x_t.double()) for step in (prediction.t, s))
        snr, snr_s = at / (1 - at), later / (1 - later)

        def after(v: Tensor) -> Tensor:
            """Of x_s, from that of x_t."""
            return 1 / (1 / v + snr_s - snr)

        wide = 1 / (snr + 1 / _SHARED)
        slope = after(certain(model, prediction, surprise)) * snr_s / later.sqrt()
        var = prediction.kernel(s).var.expand_as(x_t).double()
        return cls(var, slope.expand_as(x_t), wide, after(wide))

    @property
    def seen(self) -> Tensor:
        """The variance of x_0hat(x_s) about x_0hat(x_t), and V_s: what y has but for its noise."""
        return self.slope.square() * self.var + self.then


def surprise_of(observation: Observation, x_0: Tensor) -> Tensor:
    """|y - x_0hat| of the elements that were seen for themselves, else 0; float64 [B, *event]."""
    factor = observation.factor
    if not isinstance(observation.operator, Mask):
        return torch.zeros_like(x_0, dtype=torch.float64)
    return torch.where(observation.known, (factor.mean - x_0).double().abs(), 0.0)


@torch.no_grad()
def evaluate_elements(
    model: DiffusionModel, prediction: GaussianPrediction, s: Tensor, observation: Observation
) -> TwistValue:
    """r_t(x_t) and the proposal of x_s, s above 0, as `twist.evaluate_twist`, of a prediction."""
    x_t, x_0, kernel = prediction.x_t, prediction.x_0, prediction.kernel(s)
    operator, factor, known = observation.operator, observation.factor, observation.known
    off = torch.where(known, (factor.mean - operator.forward(x_0)).double(), 0.0)
    elements = Elements.of(model, prediction, s, surprise_of(observation, x_0))
    var, slope = elements.var, elements.slope
    noise = torch.where(known, factor.var.expand_as(factor.mean).double(), 1.0)

    def solve(v: Tensor) -> tuple[Tensor, Tensor]:
        """(noise + A diag(v) A^T)^-1 off, and that matrix's diagonal."""
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
        # What is seen of an element narrows its step; with other operators the weights see to it.
        var = var * (1 - torch.where(known, slope.square() * var / diagonal, 0.0))
    proposal = Normal(mean.to(x_t.dtype), var.to(x_t.dtype))
    return TwistValue(log_r, Independent(kernel, proposal), x_0)


def certain(model: DiffusionModel, prediction: GaussianPrediction, surprise: Tensor) -> Tensor:
    """Var(x_0 | x_t) element by element, as the model has it, else as x_0hat tells it, [B, *event].

    1 / V_t = snr_t + 1 / b^2,  b = (high - x_0hat) (x_0hat - low) / ((high - low) / 2)

    b bounds the variance of what lies between `low` and `high` and is x_0hat on average (Bhatia and
    Davis 2000), in the range's half width; its square is what the errors of a network go with. It
    is at least the surprise |y - x_0hat|: what was sure and wrong must move. Without a range b = 1.
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
    """Var(x_0 | x_t) as the model has it, [B, *event]; that of unit variance where it does not."""
    if prediction.variance == "moment" or prediction.own is not None:
        return prediction.kernel(torch.zeros_like(prediction.t)).var
    at = prediction.process.alpha_bar[prediction.t]
    return per_row(1 - at, prediction.x_0).expand_as(prediction.x_0)


def conjugate_gradients(
    apply: Callable[[Tensor], tuple[Tensor, Tensor]], off: Tensor, pull: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """u of S u = off after so many steps from 0, each row on its own, and V A^T u.

    A row whose S turns out not to be positive stops where it is.
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
