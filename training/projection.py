"""The readouts that suit given basis functions best, in closed form: where a fit of an RBF begins.

    W_t = argmin_W E |W phi(x_t) - x_0|^2
    z_t,j = log(E phi_j (W_t phi - x_0)^2 / E phi_j) - log(1 - alpha_bar_t)

of the prediction "x_0" with the variance "moment". Gradients alone are slow to find them: the terms
of small t weigh a readout that is not there yet by 1 / (1 - alpha_bar_t), and drown all others.
Source: the linear part of variable projection (Golub and Pereyra 1973).
"""

import torch
from torch import Tensor

from diffusion.model import DiffusionModel
from diffusion.networks import RBF
from diffusion.noise import Stream, counter_noise

#: Keeps the weights of functions that hardly differ within float32's reach.
RIDGE = 1e-7


@torch.no_grad()
def project(model: DiffusionModel, x_0: Tensor, seed: int) -> None:
    """Put every step's readout where least squares has it, on one draw of x_t a row and step.

    Args:
        model: of prediction "x_0" and variance "moment", with an RBF.
        x_0: data, [N, D], model units.
        seed: of the draws.
    """
    network = model.network
    assert isinstance(network, RBF)  # the caller's to see to
    rows, units = torch.arange(len(x_0)), network.config.units
    x = x_0.double()
    for t in range(1, model.T + 1):
        at = torch.full_like(rows, t)
        noise = counter_noise(seed, rows, t, Stream.DATA)
        phi = network.basis(model.process.marginal(x_0, at).sample(noise)).double()
        gram = phi.mT @ phi + RIDGE * len(x) * torch.eye(units, dtype=torch.float64)
        weight = torch.linalg.solve(gram, phi.mT @ x)
        square = (phi @ weight - x).square()
        local = (phi.mT @ square) / phi.sum(0)[:, None]
        spread = (local / (1 - model.process.alpha_bar[t])).log()
        network.readout.weight[t - 1] = torch.cat((weight, spread), 1).mT
        network.readout.bias[t - 1] = 0.0
