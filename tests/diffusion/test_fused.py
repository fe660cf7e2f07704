"""What was seen joins x_t: two noisy copies of x_0 are one, of the noise that both leave."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from diffusion.noise import Stream, counter_noise
from diffusion.observation import Observation
from diffusion.process import GaussianProcess
from diffusion.schedule import LogSnrSchedule

T = 20
PROCESS = GaussianProcess(LogSnrSchedule(first=8.0, last=-6.0).beta(T))


def seen(x_0: Tensor, known: Tensor, std: Tensor) -> Observation:
    return Observation.of_reals(x_0, known, std).to_network()


@pytest.mark.parametrize("prediction", ["v", "eps"])
def test_it_has_the_distribution_of_an_earlier_step(prediction: str) -> None:
    """Of 20,000 draws of x_t and y, mean and variance are those of q at alpha."""
    count, x_0, std = 20_000, 0.7, 0.4
    output = PROCESS.output(prediction, "lower")  # type: ignore[arg-type]
    noise = counter_noise(1, torch.arange(count), 0, Stream.DATA).normal((2,)).double()
    for t in (3, 10, 20):
        at = PROCESS.alpha_bar[t]
        x_t = at.sqrt() * x_0 + (1 - at).sqrt() * noise[:, :1]
        y = x_0 + std * noise[:, 1:]
        told = seen(y, torch.ones_like(y, dtype=torch.bool), torch.tensor(std))
        found = output.fused(x_t, torch.full((count,), t), told.telling)
        assert found is not None
        x, (p, q) = found
        precision = at / (1 - at) + 1 / std**2
        alpha = precision / (1 + precision)
        for part, wanted in zip(
            (p, q),
            (alpha.sqrt(), -(1 - alpha).sqrt())
            if prediction == "v"
            else (1 / alpha.sqrt(), -((1 - alpha) / alpha).sqrt()),
            strict=True,
        ):
            assert_close(part, wanted.expand_as(part))
        error = ((1 - alpha) / count).sqrt()
        assert abs(x.mean() - alpha.sqrt() * x_0) < 4 * error
        assert abs(x.var() / (1 - alpha) - 1) < 4 * (2 / count) ** 0.5
        # The true noise gives x_0 back.
        eps = (x - alpha.sqrt() * x_0) / (1 - alpha).sqrt()
        right = eps if prediction == "eps" else alpha.sqrt() * eps - (1 - alpha).sqrt() * x_0
        assert_close(p * x + q * right, torch.full_like(x, x_0))


def test_exact_values_replace_x_t_and_nothing_seen_leaves_its_bits() -> None:
    x_t = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    known = torch.tensor([[True, False, True]]).expand(4, 3)
    told = seen(torch.full((4, 3), 0.3), known, torch.tensor([0.0, 0.0, 1e-9]))
    t = torch.tensor([1, 7, 14, 20])
    output = PROCESS.output("v", "lower")
    found = output.fused(x_t, t, told.telling)
    assert found is not None
    x, (p, q) = found
    assert_close(x[:, [0, 2]], torch.full((4, 2), 0.3))
    assert torch.equal(x[:, 1], x_t[:, 1])
    assert not bool(q[:, 0].any())
    assert bool((p[:, 0] == 1).all())
    plain = output.affine(t)
    assert plain is not None
    assert torch.equal(torch.stack((p[:, 1], q[:, 1]), 1), plain.float())
    nobody = Observation.of_reals(x_t, known, 0.1).to_network(False)
    untold = output.fused(x_t, t, nobody.telling)
    assert untold is not None
    assert torch.equal(untold[0], x_t)


def test_estimates_of_x_0_need_no_fusing() -> None:
    x_t = torch.zeros(1, 2)
    told = seen(x_t, torch.ones(1, 2, dtype=torch.bool), torch.tensor(0.1))
    assert PROCESS.output("x_0", "moment").fused(x_t, torch.tensor([3]), told.telling) is None
