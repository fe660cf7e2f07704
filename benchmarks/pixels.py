"""azula's posterior methods on images, with our network untold, for `benchmarks.digits`.

    pip install -c constraints.txt '.[bench]'
    pip install -c constraints.txt --no-deps azula  # its dependencies would bring torchvision

Each is run with about as many network calls a completion as `learned` (40), and with many more. A
product with the Jacobian counts as a call. Exact pixels are given a noise of .01, half of what one
level of 255 is in model units, for these methods divide by it.

Sources: Chung et al. 2023 (DPS); Zhu et al. 2023 (DiffPIR); Rozet et al. 2024 (MMPS); Boys et al.
2024 (TMPD); Wu et al. 2023 (TDS).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from azula.denoise import Denoiser
from azula.guidance import DiffPIRDenoiser, DPSSampler, MMPSDenoiser, TDSSampler, TMPDenoiser
from azula.linalg.covariance import IsotropicCovariance
from azula.sample import DDPMSampler
from torch import Tensor

from benchmarks.peers import AzulaDenoiser
from diffusion.model import DiffusionModel
from diffusion.observation import Observation

_EXACT = 0.01  # model units
Kind = Literal["DPS", "DiffPIR", "MMPS", "TMPD", "TDS"]


@dataclass(frozen=True)
class Peer:
    """One of azula's methods.

    Attributes:
        kind: which.
        steps: of the chain.
        calls: network calls a completion.
        setting: DPS's step size, DiffPIR's lambda, MMPS's solver iterations, TDS's particles.
        draws: completions a digit.
    """

    kind: Kind
    steps: int
    calls: int
    setting: float
    draws: int = 2

    def __call__(
        self, model: DiffusionModel, seen: Observation, std: float, draws: int, seed: int
    ) -> Tensor:
        """Draw completions of N digits, [N, draws, 1, 28, 28]."""
        found = []
        with torch.random.fork_rng():  # azula draws from torch's global generator
            torch.manual_seed(seed)
            for y, known in zip(seen.values, seen.known, strict=True):
                where = known.flatten()
                found.append(
                    self._one(AzulaDenoiser(model), y.flatten()[where], where, std or _EXACT, draws)
                )
        drawn: Tensor = torch.stack(found).unflatten(2, model.event).clamp(-1, 1)
        return drawn

    def _one(self, denoiser: Denoiser, y: Tensor, where: Tensor, std: float, draws: int) -> Tensor:
        def forward(x: Tensor) -> Tensor:
            return x[..., where]

        def residual(x: Tensor) -> Tensor:
            # Summing the norms gives each sample the gradient of its own norm.
            each: Tensor = torch.linalg.vector_norm(y - forward(x), dim=1)
            return -each.sum()[None]

        def twist(x: Tensor, ratio: Tensor) -> Tensor:
            var = std**2 + ratio**2 / (1 + ratio**2)
            each: Tensor = (y - forward(x)).square().sum(-1)
            return -0.5 * (each / var + len(y) * torch.log(var))

        rows, many, var = draws, y.expand(draws, -1), std**2
        match self.kind:
            case "DPS":
                made = DPSSampler(
                    denoiser,
                    torch.zeros(1),
                    residual,
                    zeta=self.setting,
                    steps=self.steps,
                    silent=True,
                )
            case "TDS":
                rows = int(self.setting)
                made = TDSSampler(denoiser, twist, steps=self.steps, silent=True)
            case "DiffPIR":
                guided = DiffPIRDenoiser(denoiser, many, forward, var, lmbda=self.setting)
                made = DDPMSampler(guided, steps=self.steps, silent=True)
            case "TMPD":
                guided = TMPDenoiser(denoiser, many, forward, var)
                made = DDPMSampler(guided, steps=self.steps, silent=True)
            case "MMPS":
                noise, iterations = IsotropicCovariance(torch.tensor(var)), int(self.setting)
                guided = MMPSDenoiser(denoiser, many, forward, noise, iterations=iterations)
                made = DDPMSampler(guided, steps=self.steps, silent=True)
        sampler: Callable[[Tensor], Tensor] = made
        return sampler(torch.randn(rows, len(where)))[:draws]


def _name(peer: Peer) -> str:
    settings = {"DPS": "step", "DiffPIR": "lambda", "MMPS": "iterations", "TDS": "particles"}
    setting = f", {settings[peer.kind]} {peer.setting:g}" if peer.kind in settings else ""
    return f"{peer.kind}{setting}, {peer.calls} (azula)"


_ALL = (
    Peer("DPS", 20, 40, 1.0),
    Peer("DiffPIR", 40, 40, 1.0),
    Peer("DiffPIR", 40, 40, 10.0),
    Peer("TMPD", 20, 40, 0.0),
    Peer("MMPS", 13, 39, 1.0),
    Peer("TDS", 20, 80, 4.0),
    Peer("DPS", 250, 500, 1.0),
    Peer("DPS", 250, 500, 0.3),
    Peer("DiffPIR", 250, 250, 1.0),
    Peer("TMPD", 250, 500, 0.0),
    Peer("MMPS", 100, 700, 5.0),
    Peer("TDS", 50, 800, 16.0),
)

#: The peers by name; the number behind a name is the network calls of a completion.
PEERS: dict[str, Peer] = {_name(peer): peer for peer in _ALL}
