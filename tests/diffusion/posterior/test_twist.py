"""Twists: exact where the answer is known, normalised proposals, and a cost that is the cost."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

from diffusion.model import DiffusionModel
from diffusion.networks import BitPatterns, GaussianMixture
from diffusion.noise import counter_noise
from diffusion.observation import Observation
from diffusion.operators import Dense
from diffusion.posterior.twist import Twist, evaluate_last_twist, evaluate_twist
from diffusion.process import GaussianProcess
from diffusion.schedule import InverseTimeSchedule
from diffusion.space import DataSpace
from tests.diffusion.models import binomial, gaussian

D = 4
TWISTS = [
    Twist(),
    Twist(covariance="full", products=1),
    Twist(covariance="diagonal"),
    Twist(covariance="independent"),
]
MATRIX = torch.tensor([[1.0, 0.5, 0.0, -0.3], [0.0, 1.0, 0.7, 0.2]]).double()


def chain() -> GaussianMixture:
    """One Gaussian, correlated: x_0 given x_t is Gaussian, so full V is exact."""
    place = torch.arange(D)
    covariance = 0.8 ** (place[:, None] - place).abs().double()
    mean = torch.tensor([[0.3, -0.2, 0.1, 0.5]]).double()
    return GaussianMixture.from_values(torch.ones(1), mean, covariance[None])


def seen(rows: int, std: float = 0.3) -> Observation:
    y = torch.tensor([[0.4, -0.6]]).expand(rows, 2)
    return Observation.of_linear(Dense(rows=MATRIX.tolist()), y, (D,), std)


def exact(network: GaussianMixture, at: float, x_t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """E and Cov of x_0 given x_t, and log p(y | x_t) of `seen`."""
    covariance, mean = network.covariances[0], network.means[0]
    total = at * covariance + (1 - at) * torch.eye(D).double()
    gain = at**0.5 * covariance @ torch.linalg.inv(total)
    centre = mean + (x_t.double() - at**0.5 * mean) @ gain.mT
    left = covariance - at**0.5 * gain @ covariance
    spread = MATRIX @ left @ MATRIX.mT + 0.09 * torch.eye(2).double()
    y = torch.tensor([0.4, -0.6]).double()
    return centre, left, MultivariateNormal(centre @ MATRIX.mT, spread).log_prob(y)


@pytest.mark.parametrize("t", [2, 8, 14, 20])
def test_of_one_gaussian_the_full_twist_is_exact(t: int) -> None:
    """r_t(x_t) = p(y | x_t), to the floor under V_t and float32's rounding."""
    network = chain()
    model = gaussian(network)
    x_t, at = torch.randn(6, D), float(model.process.alpha_bar[t])
    here = torch.tensor([t])
    found = evaluate_twist(model, x_t, here, here - 1, seen(6), Twist())
    _, _, wanted = exact(network, at, x_t)
    assert_close(found.log_r, wanted, rtol=2e-3, atol=2e-3)


def test_conjugate_gradients_solve_what_the_matrix_does() -> None:
    """With as many products as numbers seen, log r differs from row to row as it does exactly: only
    the determinant, here the same for all rows, is an estimate."""
    model, x_t, t = gaussian(chain()), torch.randn(6, D), torch.tensor([9])
    each = torch.eye(D).tolist()
    observed = Observation.of_linear(Dense(rows=each), torch.zeros(6, D), (D,), 0.4)
    exact = evaluate_twist(
        model, x_t, t, t - 1, observed, Twist(covariance="full", products=D)
    ).log_r
    # A row of zeros makes one number more than there are products, and says nothing.
    one_more = Dense(rows=[*each, [0.0] * D])
    extra = Observation.of_linear(one_more, torch.zeros(6, D + 1), (D,), 0.4)
    iterated = evaluate_twist(
        model, x_t, t, t - 1, extra, Twist(covariance="full", products=D)
    ).log_r
    assert_close(iterated.diff(), exact.diff(), rtol=1e-3, atol=1e-3)
    hasty = evaluate_twist(model, x_t, t, t - 1, extra, Twist(covariance="full", products=1)).log_r
    assert (hasty.diff() - exact.diff()).abs().max() > 1e-2


@pytest.mark.parametrize("twist", TWISTS)
def test_a_proposal_moves_towards_the_posterior_mean(twist: Twist) -> None:
    """x_s is drawn about c_0 E[x_0 | x_t, y] + c_t x_t, with noise that does not move what is seen
    by E[x_0 | x_t] alone."""
    network = chain()
    model, t, s = gaussian(network), torch.tensor([9]), torch.tensor([8])
    x_t = torch.randn(1, D).expand(4000, D)
    found = evaluate_twist(model, x_t, t, s, seen(4000), twist)
    x_s = found.proposal.sample(counter_noise(0, torch.arange(4000), 0)).double()
    centre, left, _ = exact(network, float(model.process.alpha_bar[9]), x_t[:1])
    spread = MATRIX @ left @ MATRIX.mT + 0.09 * torch.eye(2).double()
    off = torch.tensor([0.4, -0.6]).double() - (centre @ MATRIX.mT)[0]
    process = model.process
    assert isinstance(process, GaussianProcess)
    to_x_0, to_x_t, _ = process.posterior_coefficients(t, s)
    plain = to_x_0 * centre[0] + to_x_t * x_t[0].double()
    pull = to_x_0 * (left @ MATRIX.mT @ torch.linalg.solve(spread, off))
    moved = x_s.mean(0) - plain
    error = 5 * x_s.std(0) / 4000**0.5
    if twist == Twist():
        assert bool(((moved - pull).abs() < error).all())
    # Without a Jacobian r_t is wider than it need be, and its pull the weaker.
    share = 0.25 if twist.covariance == "independent" else 0.5
    assert float(moved @ pull) > share * float(pull @ pull)


@pytest.mark.parametrize("twist", TWISTS)
def test_proposals_are_normalised(twist: Twist) -> None:
    """E_q[p / q] = 1, within 5 standard errors of 4,000 draws."""
    model, t, s, n = gaussian(chain()), torch.tensor([9]), torch.tensor([8]), 4000
    x_t = torch.randn(1, D).expand(n, D)
    y = torch.tensor([[0.4, 0.0, -0.6, 0.0]]).expand(n, D)
    known = torch.tensor([[True, False, True, False]]).expand(n, D)
    for observed in (seen(n), Observation.of_reals(y, known), Observation.of_reals(y, known, 0.2)):
        found = evaluate_twist(model, x_t, t, s, observed, twist)
        x_s = found.proposal.sample(counter_noise(0, torch.arange(n), 0))
        ratio = (-found.proposal.log_ratio(x_s)).exp()
        assert abs(float(ratio.mean()) - 1) < 5 * float(ratio.std()) / n**0.5


def test_of_bits_by_the_definition(heartbeat: BitPatterns) -> None:
    model, t = binomial(heartbeat), torch.tensor([9])
    x_t = (torch.rand(5, 20) < 0.3).float()
    y, known = (torch.rand(5, 20) < 0.5).float(), torch.rand(5, 20) < 0.4
    pi = model.predict(x_t, t).x_0.double()
    pi_y = torch.where(y > 0.5, pi, 1 - pi)
    for eps in (0.0, 0.1):
        found = evaluate_twist(model, x_t, t, t - 1, Observation.of_bits(y, known, eps), Twist())
        wanted = torch.where(known, (1 - eps) * pi_y + eps * (1 - pi_y), 1.0).log().sum(1)
        assert_close(found.log_r, wanted, rtol=1e-3, atol=1e-3)


def test_the_last_look_is_the_papers_product(line: GaussianMixture) -> None:
    """r_1 = Z~_1 = N(y; mean, var + noise)."""
    model, t = gaussian(line), torch.tensor([1])
    x_t, y = torch.randn(5, 3), torch.randn(5, 3)
    observed = Observation.of_reals(y, torch.ones(5, 3, dtype=torch.bool), 0.3)
    kernel = model.predict(x_t, t).kernel(t - 1)
    wanted = MultivariateNormal(kernel.mean, torch.diag_embed(kernel.var + 0.09)).log_prob(y)  # type: ignore[attr-defined]
    assert_close(evaluate_last_twist(model, x_t, t, observed).log_r.float(), wanted)


def test_a_step_costs_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Network calls and products with its Jacobian, counted."""
    model, x_t, t = gaussian(chain()), torch.randn(3, D), torch.tensor([9])
    made = [0]
    call, gradient = model.network.forward, torch.autograd.grad

    def counted(act: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*args: object, **named: object) -> object:
            made[0] += 1
            return act(*args, **named)

        return wrapped

    monkeypatch.setattr(model.network, "forward", counted(call))
    monkeypatch.setattr(torch.autograd, "grad", counted(gradient))
    for twist in TWISTS:
        made[0] = 0
        evaluate_twist(model, x_t, t, t - 1, seen(3), twist)
        assert made[0] == int(twist.evaluations(model, torch.tensor([2])))
    made[0] = 0
    evaluate_last_twist(model, x_t, torch.tensor([1]), seen(3))
    assert made[0] == 1


@pytest.mark.parametrize("twist", TWISTS)
def test_a_start_without_signal_and_inference_mode_are_no_trouble(twist: Twist) -> None:
    process = GaussianProcess(InverseTimeSchedule().beta(20))
    model = DiffusionModel(process, chain(), DataSpace(kind="vector", shape=(D,)), "x_0", "moment")
    with torch.inference_mode():
        t, x_t = torch.tensor([20]), torch.randn(3, D)
        found = evaluate_twist(model, x_t, t, t - 1, seen(3), twist)
        x_s = found.proposal.sample(counter_noise(0, torch.arange(3), 0))
        assert bool((found.log_r + found.proposal.log_ratio(x_s) + x_s.sum(1)).isfinite().all())


def test_every_prediction_and_variance_has_a_twist(mixture: GaussianMixture) -> None:
    """A model without a variance of x_0 of its own takes 1 - alpha_bar for the diagonal."""
    model = gaussian(mixture)
    lower = DiffusionModel(model.process, _First(mixture), model.space, "x_0", "lower").eval()
    t, x_t = torch.tensor([9]), torch.randn(3, 2)
    observed = Observation.of_reals(torch.zeros(3, 2), torch.tensor([[True, False]]).expand(3, 2))
    found = evaluate_twist(lower, x_t, t, t - 1, observed, Twist(covariance="diagonal"))
    x_0 = lower.predict(x_t, t).x_0[:, :1]
    var = float(1 - model.process.alpha_bar[9])
    wanted = MultivariateNormal(x_0, torch.tensor([[var]])).log_prob(torch.zeros(3, 1))
    assert_close(found.log_r.float(), wanted, rtol=1e-4, atol=1e-4)


class _First(torch.nn.Module):
    """A network's mean alone."""

    clock = "log_snr"

    def __init__(self, network: GaussianMixture) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_t: Tensor, time: Tensor) -> Tensor:
        found: Tensor = self.network(x_t, time)
        return found[:, : x_t.shape[1]]
