"""The twist without a Jacobian: exact where elements are independent, still where nothing can be
gained."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from diffusion.distributions import Normal
from diffusion.model import DiffusionModel
from diffusion.networks import GaussianMixture
from diffusion.noise import counter_noise
from diffusion.observation import Observation
from diffusion.operators import AveragePooling, Dense, Mask, Operator
from diffusion.posterior.proposal import Independent, TwistValue
from diffusion.posterior.twist import certain
from diffusion.posterior.twist import evaluate_elements as evaluate
from diffusion.process import GaussianPrediction, GaussianProcess
from diffusion.schedule import LogSnrSchedule
from diffusion.space import DataSpace
from tests.diffusion.models import gaussian

D = 4


def apart() -> DiffusionModel:
    """Independent elements of different variances: x_0hat(x_s) is linear, each in its own x_s."""
    covariance = torch.diag(torch.tensor([0.3, 1.0, 0.05, 2.0])).double()
    mean = torch.tensor([[0.3, -0.2, 0.1, 0.5]]).double()
    return gaussian(GaussianMixture.from_values(torch.ones(1), mean, covariance[None]))


def evaluate_elements(
    model: DiffusionModel, x_t: Tensor, t: Tensor, s: Tensor, seen: Observation
) -> TwistValue:
    prediction = model.predict(x_t, t)
    assert isinstance(prediction, GaussianPrediction)
    return evaluate(model, prediction, s, seen)


@pytest.mark.parametrize("operator", [Mask(), AveragePooling(size=2)])
@pytest.mark.parametrize(("t", "s"), [(18, 11), (9, 8)])
def test_of_independent_elements_the_step_is_the_kernel_times_r_s(
    operator: Mask | AveragePooling, t: int, s: int
) -> None:
    """log q(x_s) - log p(x_s) - log r_s(x_s) is one number, whatever x_s; with a pool, whose
    proposal keeps the kernel's variance, only the mean is that of the product."""
    model, at, then = apart(), torch.tensor([t]), torch.tensor([s])
    x_t = torch.randn(1, D).expand(200, D)
    y = torch.randn(1, *operator.seen((D,))).expand(200, -1)
    seen = Observation.of_linear(operator, y, (D,), 0.1)
    proposal = evaluate_elements(model, x_t, at, then, seen).proposal
    assert isinstance(proposal, Independent)
    x_s = proposal.sample(counter_noise(0, torch.arange(200), 0))
    value = evaluate_elements(model, x_s, then, then - 1, seen).log_r
    if isinstance(operator, Mask):
        left = proposal.log_ratio(x_s) - value
        assert value.std() > 0.1
        assert_close(left, left.mean().expand(200), rtol=1e-3, atol=1e-3)
        return
    # At the product's mode the slopes of log p and log r_s cancel.
    assert isinstance(proposal.drawn, Normal)
    mode = proposal.drawn.mean[:1].double()

    def log_product(x: Tensor) -> Tensor:
        rows = evaluate_elements(
            model, x.float(), then, then - 1, seen.rows(torch.zeros(len(x)).long())
        )
        assert isinstance(proposal.base, Normal)
        p = Normal(proposal.base.mean[:1].double(), proposal.base.var[:1].double())
        return p.log_prob(x) + rows.log_r

    step = 0.05 * torch.eye(D, dtype=torch.float64)
    up, down = log_product(mode + step), log_product(mode - step)
    kernel = (up + down - 2 * log_product(mode)).abs()
    assert bool(((up - down).abs() < 0.02 * kernel).all())


def images(shape: tuple[int, ...] = (1, 2, 2)) -> DiffusionModel:
    """A model of 8-bit images that says what it is told to, whatever x_t."""
    process = GaussianProcess(LogSnrSchedule(first=10.0, last=-5.0).beta(20))
    space = DataSpace(kind="image", shape=shape, levels=256, shift=127.5, scale=127.5)
    return DiffusionModel(process, _Said(), space, "x_0", "lower").eval()


class _Said(torch.nn.Module):
    clock = "log_snr"
    says = torch.tensor([[[[-1.0, 1.0], [0.0, 0.5]]]])

    def forward(self, x_t: Tensor, time: Tensor) -> Tensor:
        del time
        return self.says.expand(x_t.shape)


def prediction(model: DiffusionModel, t: int) -> GaussianPrediction:
    found = model.predict(torch.randn(1, *model.event), torch.tensor([t]))
    assert isinstance(found, GaussianPrediction)
    return found


@pytest.mark.parametrize("t", [1, 10, 20])
def test_a_variance_is_within_what_the_range_and_the_noise_allow(t: int) -> None:
    """V <= 1 / snr, and <= (high - x_0hat) (x_0hat - low): Bhatia and Davis; in the middle of the
    range 1 / (snr + 1)."""
    model = images()
    found = certain(model, prediction(model, t), torch.zeros(1, 1, 2, 2)).flatten()
    assert isinstance(model.process, GaussianProcess)
    at = float(model.process.alpha_bar[t])
    x_0 = _Said.says.double().flatten()
    assert bool((found <= (1 - at) / at).all())
    assert bool((found <= (1 - x_0) * (1 + x_0) + 1e-9).all())
    assert_close(float(found[2]), 1 - at, rtol=1e-6, atol=0.0)


def test_what_is_sure_and_right_is_left_alone_and_what_is_wrong_moves() -> None:
    """Pixels at the end of the range: with y there the proposal is the kernel; with y elsewhere it
    goes towards y."""
    model, t, s = images(), torch.tensor([10]), torch.tensor([8])
    x_t = torch.randn(1, 1, 2, 2)
    known = torch.tensor([[[[True, True], [False, False]]]])
    y = torch.tensor([[[[-1.0, -1.0], [0.0, 0.0]]]])
    found = evaluate_elements(model, x_t, t, s, Observation.of_reals(y, known)).proposal
    assert isinstance(found, Independent)
    kernel, proposal = found.base, found.drawn
    assert isinstance(kernel, Normal)
    assert isinstance(proposal, Normal)
    moved = ((proposal.mean - kernel.mean) / kernel.var.sqrt()).flatten()
    ratio = (proposal.var / kernel.var).flatten()
    assert_close(moved[[0, 2, 3]], torch.zeros(3), rtol=0.0, atol=1e-5)
    assert_close(ratio[[0, 2, 3]], torch.ones(3), rtol=0.0, atol=1e-5)
    assert moved[1] < -1
    assert ratio[1] < 0.9


@pytest.mark.parametrize(
    "operator", [Dense(rows=[[1.0, 0.5, 0.0, -0.3], [0.0, 1.0, 0.7, 0.2]]), AveragePooling(size=2)]
)
def test_r_is_the_density_of_y_about_the_estimate(operator: Operator) -> None:
    """r_t = N(y; A x_0hat, noise + V A A^T), V = 1 / (snr + 1 / 4), up to a factor that is the same
    for all x_t."""
    model, t, x_t = apart(), torch.tensor([9]), torch.randn(6, D)
    y = torch.randn(1, 2).expand(6, 2)
    seen = Observation.of_linear(operator, y, (D,), 0.3)
    found = evaluate_elements(model, x_t, t, t - 1, seen).log_r
    assert isinstance(model.process, GaussianProcess)
    at = model.process.alpha_bar[9]
    matrix = operator.matrix((D,), torch.device("cpu"))
    total = matrix @ matrix.mT / (at / (1 - at) + 0.25) + 0.09 * torch.eye(2)
    x_0 = model.predict(x_t, t).x_0.double()
    wanted = torch.distributions.MultivariateNormal(x_0 @ matrix.mT, total).log_prob(y.double())
    assert_close(found.diff(), wanted.diff(), rtol=1e-4, atol=1e-4)
