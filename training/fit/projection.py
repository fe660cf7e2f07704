"""Fit a basis-function network by variable projection, with its readouts solved in closed form.

With x_0hat = W_t phi(x_t) and the variance u of x_0, elementwise, a step costs (nats)

    E KL_t = 1/2 E[(tau_t + r^2) / (tau_t + u) - 1 + log((tau_t + u) / tau_t)],
    r = x_0 - W_t phi(x_t),    tau_t = 1 / (SNR_{t-1} - SNR_t),

so only centres and widths theta = (c, log w) need a search: with u constant the best readouts W_t
are the least-squares ones, and

    J(theta) = sum_{t=2..T} 1/2 log(1 + min_W E r^2 / tau_t)

is minimised by Levenberg-Marquardt. The Jacobian of r is the one for fixed W, minus its projection
on phi (Kaufman 1975). At the end u_t(x_t) = exp(z_t phi(x_t)) and W_t are fitted together by Fisher
scoring. Gradient descent hardly moves such a network: its functions overlap so much that good
readouts are large and cancel.
Source: Golub and Pereyra 1973; Kaufman 1975; Jennrich and Sampson 1976 (scoring).
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.model import DiffusionModel
from diffusion.networks import RBF
from diffusion.noise import Stream, counter_noise
from training.config import FitConfig

#: Ridge of the Gram matrix of nearly equal functions, as a share of the rows.
RIDGE = 1e-12
#: Largest step of a centre (model units) or of a log width.
REACH = 0.5
#: Least damping: with less, steps are long and end in poor minima.
DAMPING = 1e-4
#: Fisher-scoring steps, and the most that one step changes a log variance.
SCORINGS, STRIDE = 8, 1.5


Progress = Callable[[int], object]


@dataclass(frozen=True)
class Draws:
    """The rows of a search: x_0 [N, D], and for t = 2..T, x_t [T - 1, N, D] and tau [T - 1]."""

    x_0: Tensor
    x_t: Tensor
    tau: Tensor


@dataclass(frozen=True)
class Projected:
    """One point of a search: the basis functions, their best readouts and the residuals.

    Attributes:
        network: the functions, in float64.
        phi: [T - 1, N, units].
        factor: Cholesky factors of phi's Gram matrices, [T - 1, units, units].
        weight: W transposed, [T - 1, units, D].
        left: r, [T - 1, N, D].
        share: E r^2 / tau, [T - 1, 1, D].
        cost: J, nats.
    """

    network: RBF
    phi: Tensor
    factor: Tensor
    weight: Tensor
    left: Tensor
    share: Tensor
    cost: float


@torch.no_grad()
def project(
    model: DiffusionModel, x_0: Tensor, config: FitConfig, progress: Progress | None = None
) -> None:
    """Fit centres, widths and readouts, on one draw of x_t per row and step.

    The search takes `steps` steps on the first `batch` rows; the readouts are fitted to
    `projection.rows` rows.

    Args:
        model: an RBF model with prediction "x_0" and variance "moment"; its network is changed.
        x_0: data, [N, D], model units.
        config: the fit's configuration, with a projection.
        progress: called with the number of steps just done.
    """
    network, settings = model.network, config.projection
    assert isinstance(network, RBF)  # the configuration ensures both
    assert settings is not None
    draws = draw(model, x_0[: config.batch], config.seed)
    found = search(start(network, config.seed), draws, config.steps, progress).network
    readouts(model, found, x_0[: settings.rows], config.seed + 1)
    network.load_state_dict(found.state_dict())


def draw(model: DiffusionModel, x_0: Tensor, seed: int) -> Draws:
    """Draw one x_t for each row and t = 2..T, float64."""
    x, t = x_0.double(), torch.arange(1, model.T + 1)
    snr = model.process.log_snr(t).exp()
    x_t = torch.stack([_noised(model, x, int(at), seed) for at in t[1:]])
    return Draws(x, x_t, 1 / (snr[:-1] - snr[1:]))


def start(network: RBF, seed: int) -> RBF:
    """A float64 copy of the network with centres c ~ N(0, I) and widths (1 + |c|) / 2.

    The data have unit variance. A search that starts from equal widths seldom ends well.
    """
    begin = copy.deepcopy(network).double()
    noise = counter_noise(seed, torch.arange(len(begin.centres)), 0, Stream.DATA)
    begin.centres.copy_(noise.normal((begin.config.features,)))
    begin.log_widths.copy_(((1 + begin.centres.norm(dim=1)) / 2).log())
    return begin


def search(network: RBF, draws: Draws, steps: int, progress: Progress | None = None) -> Projected:
    """Minimise J by at most `steps` Levenberg-Marquardt steps; stop early without progress."""
    now, damping = projected(network, draws), 1e-2
    for _ in range(steps):
        gradient, curvature = slopes(now, draws)
        scale = curvature.diagonal() + 1e-9 * curvature.diagonal().max()
        while damping < 1e6:
            step = torch.linalg.solve(curvature + damping * scale.diag(), gradient)
            step = step * (REACH / step.abs().max()).clamp(max=1)
            then = projected(_moved(now.network, step), draws)
            if then.cost < now.cost:
                break
            damping *= 3
        else:
            break
        now, damping = then, max(damping / 4, DAMPING)
        if progress is not None:
            progress(1)
    return now


def projected(network: RBF, draws: Draws) -> Projected:
    """Evaluate J at one choice of functions; inf if the Gram matrix is singular."""
    steps, rows, _ = draws.x_t.shape
    phi = network.basis(draws.x_t.flatten(0, 1)).unflatten(0, (steps, rows))
    ridge = RIDGE * rows * torch.eye(phi.shape[-1], dtype=phi.dtype)
    factor, failed = torch.linalg.cholesky_ex(phi.mT @ phi + ridge)
    weight = torch.cholesky_solve(phi.mT @ draws.x_0, factor)
    left = draws.x_0 - phi @ weight
    # J includes the ridge, so that its gradient is the one `slopes` computes.
    square = left.square().mean(1, keepdim=True) + RIDGE * weight.square().sum(1, keepdim=True)
    share = square / draws.tau[:, None, None]
    cost = float(0.5 * torch.log1p(share).sum())
    if bool(failed.any()) or not math.isfinite(cost):
        cost = math.inf
    return Projected(network, phi, factor, weight, left, share, cost)


def slopes(now: Projected, draws: Draws) -> tuple[Tensor, Tensor]:
    """Minus the gradient of N J in theta, [P], and its Gauss-Newton curvature, [P, P].

    P runs over units, each with D centre coordinates and a log width. d(W phi) / d l_j =
    phi_j (W_j - W phi) for the exponent l_j = -|x - c_j|^2 / (2 w_j^2) of unit j.
    """
    narrow = (-2 * now.network.log_widths).exp()[:, None]
    off = draws.x_t[:, :, None] - now.network.centres  # [T - 1, N, units, D]
    inner = torch.cat((off, off.square().sum(-1, keepdim=True)), -1) * narrow
    weight = (1 / (draws.tau[:, None, None] * (1 + now.share))).sqrt()
    estimate = now.phi @ now.weight
    size = inner.shape[2] * inner.shape[3]
    gradient, curvature = inner.new_zeros(size), inner.new_zeros(size, size)
    for i in range(draws.x_0.shape[1]):
        outer = now.phi * (now.weight[:, None, :, i] - estimate[..., i, None])
        jacobian = (outer[..., None] * inner).flatten(2) * weight[..., i, None]
        back = now.phi.mT @ jacobian
        flat = jacobian.flatten(0, 1)
        taken = back.mT @ torch.cholesky_solve(back, now.factor)
        gradient += flat.mT @ (now.left[..., i, None] * weight[..., i, None]).flatten()
        curvature += flat.mT @ flat - taken.sum(0)
    return gradient, curvature


def readouts(model: DiffusionModel, network: RBF, x_0: Tensor, seed: int) -> None:
    """Set the float64 network's readouts W_t and z_t to minimise E KL_t for t = 1..T."""
    process, x = model.process, x_0.double()
    snr = process.log_snr(torch.arange(model.T + 1)).exp()  # infinite at t = 0
    for t in range(1, model.T + 1):
        phi = network.basis(_noised(model, x, t, seed))
        weight, spread = readout(phi, x, float(1 / (snr[t - 1] - snr[t])))
        # The variance is in units of 1 - alpha_bar_t, and the functions sum to one.
        spread -= (1 - process.alpha_bar[t]).log()
        network.readout.weight[t - 1] = torch.cat((weight, spread), 1).mT
        network.readout.bias[t - 1] = 0.0


def readout(phi: Tensor, x_0: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """The W and z that minimise E KL with u = exp(z phi), float64 [units, D] each.

    Alternates least squares for W, weighted by 1 / (tau + u), and a Fisher-scoring step for z, with
    information E s^2 phi phi^T / 2, s = u / (tau + u).

    Args:
        phi: [N, units].
        x_0: [N, D].
        tau: 1 / (SNR_{t-1} - SNR_t); 0 at t = 1.
    """
    rows, units = phi.shape
    eye = rows * torch.eye(units, dtype=phi.dtype)
    weight = torch.linalg.solve(phi.mT @ phi + RIDGE * eye, phi.mT @ x_0)
    square = (x_0 - phi @ weight).square()
    spread = ((phi.mT @ square) / (phi.sum(0)[:, None] + RIDGE)).clamp_min(RIDGE).log()
    for i in range(x_0.shape[1]):
        w, z, x = weight[:, i], spread[:, i], x_0[:, i]
        for _ in range(SCORINGS):
            precision = 1 / (tau + (phi @ z).exp())
            precise = phi * (precision / precision.mean())[:, None]
            w = torch.linalg.solve(precise.mT @ phi + RIDGE * eye, precise.mT @ x)
            share = (phi @ z).exp() * precision
            slope = phi.mT @ (share * (1 - (tau + (x - phi @ w).square()) * precision))
            # Keep the coefficients of functions that hardly affect the variance.
            held = (1e-6 * share.square().mean() + RIDGE) * eye
            step = torch.linalg.solve((phi * share.square()[:, None]).mT @ phi + held, slope)
            z = z - step * (STRIDE / (phi @ step).abs().max()).clamp(max=1)
        weight[:, i], spread[:, i] = w, z
    return weight, spread


def _moved(network: RBF, step: Tensor) -> RBF:
    moved, by = copy.deepcopy(network), step.view(len(network.centres), -1)
    moved.centres.add_(by[:, :-1])
    moved.log_widths.add_(by[:, -1])
    return moved


def _noised(model: DiffusionModel, x_0: Tensor, t: int, seed: int) -> Tensor:
    rows = torch.arange(len(x_0))
    noise = counter_noise(seed, rows, t, Stream.DATA)
    return model.process.marginal(x_0, torch.full_like(rows, t)).sample(noise)
