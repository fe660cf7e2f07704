"""Peers run on our denoiser: azula's DPS, MMPS and TDS, and diffusers' RePaint if A is a mask.

Each gets the same network and about the same number of calls per sample; a product with the
Jacobian counts as a call, as in `posterior.twist`. Open choices are made in the peer's favour: DPS
guides every sample by its own residual (azula takes the norm of a whole batch), MMPS solves with as
many GMRES iterations as observed values, and TDS runs all samples in one system, larger than any of
ours, with the twist variance of an example of unit variance.

    pip install -c constraints.txt '.[bench]'
    pip install -c constraints.txt --no-deps azula  # its dependencies would bring torchvision

Sources: Chung et al. 2023 (DPS); Rozet et al. 2024 (MMPS); Wu et al. 2023 (TDS); Lugmayr et al.
2022 (RePaint).
"""

from collections.abc import Callable
from functools import partial

import torch
from azula.denoise import Denoiser, DiracPosterior
from azula.guidance import DPSSampler, MMPSDenoiser, TDSSampler
from azula.linalg.covariance import IsotropicCovariance
from azula.noise import Schedule
from azula.sample import DDPMSampler
from diffusers import RePaintScheduler
from torch import Tensor

from benchmarks.mixtures import Problem
from diffusion.model import DiffusionModel
from diffusion.process import GaussianProcess


class _Schedule(Schedule):  # type: ignore[misc]
    """Our alpha_bar, at t / T for t = 0..T."""

    def __init__(self, alpha_bar: Tensor) -> None:
        self.alpha_bar = alpha_bar

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        at = self.alpha_bar[self.step(t)]
        return at.sqrt().float(), (1 - at).sqrt().float()

    def step(self, t: Tensor) -> Tensor:
        """t, int64."""
        return (t * (len(self.alpha_bar) - 1)).round().long()


class AzulaDenoiser(Denoiser):  # type: ignore[misc]
    """Our E[x_0 | x_t], told nothing; x_t may be flat, [B, D]."""

    def __init__(self, model: DiffusionModel) -> None:
        super().__init__()
        assert isinstance(model.process, GaussianProcess)  # the only kind in azula
        self.model, self.schedule = model, _Schedule(model.process.alpha_bar)

    def forward(self, x_t: Tensor, t: Tensor) -> DiracPosterior:
        """Return the estimate at time t, 0 to 1."""
        step = self.schedule.step(t).reshape(1).clamp(min=1)
        found = self.model.predict(x_t.reshape(-1, *self.model.event), step).x_0
        return DiracPosterior(mean=found.reshape(x_t.shape))


def dps(zeta: float, problem: Problem, samples: int, calls: int, seed: int) -> Tensor:
    """Run DPS, with a call and a gradient per step."""
    matrix, y = problem.matrix.float(), problem.y.float()

    def residuals(x: Tensor) -> Tensor:
        # Summing the norms gives each sample the gradient of its own norm.
        each: Tensor = torch.linalg.vector_norm(y - x @ matrix.mT, dim=1)
        return -each.sum()[None]

    denoiser = AzulaDenoiser(problem.model)
    made = DPSSampler(denoiser, torch.zeros(1), residuals, zeta=zeta, steps=calls // 2, silent=True)
    return _start(made, problem, samples, seed)


def mmps(problem: Problem, samples: int, calls: int, seed: int) -> Tensor:
    """Run MMPS, with a call, a product for each iteration and a last gradient per step."""
    matrix, seen = problem.matrix.float(), len(problem.y)
    guided = MMPSDenoiser(
        AzulaDenoiser(problem.model),
        problem.y.float().expand(samples, -1),
        lambda x: x @ matrix.mT,
        IsotropicCovariance(torch.tensor(problem.std**2)),
        iterations=seen,
    )
    steps = calls // (2 + seen)
    return _start(DDPMSampler(guided, steps=steps, silent=True), problem, samples, seed)


def tds(problem: Problem, samples: int, calls: int, seed: int) -> Tensor:
    """Run TDS with a call and a gradient per step; all samples are particles of one system."""
    matrix, y = problem.matrix.float(), problem.y.float()
    own = problem.std**2 * torch.eye(len(y)) + 1e-6 * torch.eye(len(y))

    def twist(x: Tensor, ratio: Tensor) -> Tensor:
        var = ratio**2 / (1 + ratio**2)
        normal = torch.distributions.MultivariateNormal(
            torch.zeros_like(y), own + var * matrix @ matrix.mT
        )
        found: Tensor = normal.log_prob(y - x @ matrix.mT)
        return found

    made = TDSSampler(AzulaDenoiser(problem.model), twist, steps=calls // 2, silent=True)
    return _start(made, problem, samples, seed)


def repaint(problem: Problem, samples: int, calls: int, seed: int) -> Tensor:
    """Run RePaint by diffusers' scheduler, with 10 jumps of length 10, for noiseless masks."""
    model, process = problem.model, problem.model.process
    assert isinstance(process, GaussianProcess)
    scheduler = RePaintScheduler(
        num_train_timesteps=model.T,
        trained_betas=process.beta[1:].float().numpy(),
        clip_sample=False,
    )
    scheduler.set_timesteps(calls // 10, jump_length=10, jump_n_sample=10)
    known = problem.matrix.sum(0).bool()
    seen = (problem.y @ problem.matrix).float().expand(samples, -1)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, *model.event, generator=generator)
    before = model.T
    for time in scheduler.timesteps.tolist():
        if time > before:  # a jump back
            x = scheduler.undo_step(x, before, generator)
        else:
            step = torch.tensor([time + 1])
            at = float(process.alpha_bar[step])
            with torch.no_grad():
                x_0 = model.predict(x, step).x_0
            eps = (x - at**0.5 * x_0) / (1 - at) ** 0.5
            x = scheduler.step(
                eps, time, x, seen, known.float().expand_as(x), generator
            ).prev_sample
        before = time
    return x


Peer = Callable[[Problem, int, int, int], Tensor]

#: Functions from a problem, a number of samples, calls per sample and a seed to samples [n, D].
PEERS: dict[str, Peer] = {
    "DPS, step 0.1 (azula)": partial(dps, 0.1),
    "DPS, step 0.3 (azula)": partial(dps, 0.3),
    "DPS, step 1 (azula)": partial(dps, 1.0),
    "MMPS (azula)": mmps,
    "TDS, one large system (azula)": tds,
}
MASKS: dict[str, Peer] = {"RePaint (diffusers)": repaint}


def _start(
    sampler: Callable[[Tensor], Tensor], problem: Problem, samples: int, seed: int
) -> Tensor:
    """Run a sampler from standard normal x_T; azula draws from torch's global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return sampler(torch.randn(samples, *problem.model.event))
