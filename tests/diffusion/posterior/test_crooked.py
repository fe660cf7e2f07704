"""Networks whose value is right and whose Jacobian is no covariance, as a trained one's may be:
posteriors stay exact, and nothing is singular."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from typing_extensions import override

from diffusion.model import DiffusionModel
from diffusion.networks import GaussianMixture
from diffusion.networks.base import Network
from diffusion.noise import counter_noise
from diffusion.observation import Observation
from diffusion.operators import Dense, Mask
from diffusion.posterior import Twisted, sample_posterior
from diffusion.posterior.twist import Twist, covariance, evaluate_twist
from diffusion.process import GaussianPrediction
from diffusion.samplers import Ancestral
from tests.diffusion.models import gaussian

#: What the Jacobian of x_0hat becomes.
CROOKED = {
    "negative": -0.3 * torch.eye(2),
    "skew": torch.tensor([[0.1, 5.0], [-5.0, 0.1]]),
    "indefinite": torch.tensor([[1.0, 0.0], [0.0, -1.0]]),
    "huge": 1e7 * torch.eye(2),
    "infinite": 1e38 * torch.ones(2, 2),
    "none": torch.zeros(2, 2),
}
crooked = pytest.mark.parametrize("kind", CROOKED)


class Crooked(Network):
    """An oracle's values under another slope."""

    clock = "log_snr"

    def __init__(self, inner: GaussianMixture, slope: Tensor) -> None:
        super().__init__()
        self.inner, self.slope = inner, slope

    @override
    def condition(self, time: Tensor) -> tuple[Tensor, ...]:
        return self.inner.condition(time)

    @override
    def given(self, x_t: Tensor, *condition: Tensor) -> Tensor:
        with torch.no_grad():
            value = self.inner.given(x_t.detach(), *condition)
        still = x_t - x_t.detach()
        return value + torch.cat((still @ self.slope.to(x_t).mT, 0 * still), 1)


def model_of(mixture: GaussianMixture, kind: str, T: int = 20) -> DiffusionModel:
    model = gaussian(mixture, T)
    parts = model.process, Crooked(mixture, CROOKED[kind]), model.space
    return DiffusionModel(*parts, "x_0", "moment").eval()


STDS = (0.0, 1e-6, 0.1, 100.0)


def seen_of(*stds: float) -> list[Observation]:
    """One element, another, both, a line, two lines; of two data each, by each of the noises."""
    std = torch.tensor(stds).repeat_interleave(2)[:, None]
    y = torch.tensor([[0.3, -0.4], [8.0, 0.1]]).repeat(len(stds), 1)
    masks = [torch.tensor([[1, 0]]), torch.tensor([[0, 1]]), torch.tensor([[1, 1], [0, 1]])]
    found = [
        Observation.of_reals(y, mask.bool().repeat(len(y) // len(mask), 1), std) for mask in masks
    ]
    for rows in ([[1.0, 0.5]], [[1.0, 0.5], [-0.2, 1.0]]):
        through = y @ torch.tensor(rows).mT
        found.append(Observation.of_linear(Dense(rows=rows), through, (2,), std))
    return found


@crooked
def test_every_observation_is_answered(kind: str, mixture: GaussianMixture) -> None:
    model = model_of(mixture, kind)
    for twist in (Twist(), Twist(covariance="full", products=1), Twist(covariance="diagonal")):
        for seen in seen_of(*STDS):
            method = Twisted(particles=4, **twist.model_dump())
            found = sample_posterior(
                model, seen, 2, seed=0, method=method, sampler=Ancestral(steps=5)
            )
            assert bool(found.samples.isfinite().all())
            if twist == Twist():
                for told in found.diagnostics:
                    assert told.log_evidence is not None
                    assert -1e4 < told.log_evidence < 100


@pytest.mark.parametrize("kind", ["negative", "skew", "indefinite", "huge", "infinite"])
@pytest.mark.parametrize("place", range(4))
def test_what_is_no_covariance_is_the_independent_twist(
    kind: str, place: int, mixture: GaussianMixture
) -> None:
    """Rows of it, and they alone: r_t is that of no Jacobian, x_s has its mean and its variance."""
    seen = seen_of(0.2)[place].rows(torch.zeros(6).long())
    if (kind, place) in {("indefinite", 0), ("indefinite", 3)} or (kind == "skew" and place != 2):
        return  # one number has a positive variance by them
    x_t, t, s = torch.randn(6, 2), torch.tensor([14]), torch.tensor([9])
    model = model_of(mixture, kind)
    found = evaluate_twist(model, x_t, t, s, seen, Twist(covariance="full"))
    wanted = evaluate_twist(model, x_t, t, s, seen, Twist(covariance="independent"))
    assert_close(found.log_r, wanted.log_r)
    noise = counter_noise(0, torch.arange(6), 0)
    if isinstance(seen.operator, Mask):
        rows, other = found.proposal.sample(noise), wanted.proposal.sample(noise)
        assert_close(rows, other, rtol=1e-4, atol=1e-4)
        assert_close(found.proposal.log_ratio(rows), wanted.proposal.log_ratio(rows))
    good = evaluate_twist(gaussian(mixture), x_t, t, s, seen, Twist(covariance="full"))
    assert bool((good.log_r - wanted.log_r).abs().max() > 1e-3)


def test_a_covariance_is_taken_as_it_is(mixture: GaussianMixture) -> None:
    """To rounding, and each row by itself: of five that are none, none is."""
    model, t = gaussian(mixture), torch.tensor([10])
    prediction = model.predict(torch.zeros(6, 2), t)
    assert isinstance(prediction, GaussianPrediction)
    good = torch.tensor([[0.5, 0.2], [0.2, 0.3]]).double()
    rows = [
        good,
        good - 0.7 * torch.eye(2).double(),
        good * torch.tensor([[1.0, 20.0], [-20.0, 1.0]]).double(),
        good * torch.nan,
        good * 1e9,
        0 * good,
    ]
    found, taken = covariance(torch.stack(rows), torch.eye(2).double()[None], prediction)
    assert taken.tolist() == [True, False, False, False, False, False]
    assert_close(found[0], good)


@pytest.mark.parametrize("kind", ["negative", "indefinite", "huge"])
def test_posteriors_are_exact_without_a_covariance(kind: str, mixture: GaussianMixture) -> None:
    """Mean, and log p(y), of the second element seen exactly: within 4 standard errors of 200."""
    y, systems = torch.tensor([[0.0, 0.4]]), 200
    seen = Observation.of_reals(y, torch.tensor([[False, True]]), 1e-4)
    exact, log_evidence = mixture.posterior(
        torch.tensor([[0.0, 1.0]]), torch.tensor([0.4]), torch.tensor([1e-8])
    )
    found = sample_posterior(
        model_of(mixture, kind, 40), seen, systems, seed=3, method=Twisted(particles=8)
    )
    x = found.samples[0, :, 0].double()
    mean, std = float(exact.mean()[0]), float(exact.covariance()[0, 0].sqrt())
    weighed = float((found.weights[0] * x).sum())
    count = 1 / float(found.weights[0].square().sum())
    assert abs(weighed - mean) < 4 * std / count**0.5
    told = found.diagnostics[0]
    assert told.log_evidence is not None
    assert told.log_evidence_error is not None
    assert abs(told.log_evidence - log_evidence) < 4 * told.log_evidence_error
