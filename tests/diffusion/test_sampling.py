"""Samplers: plans, orders of convergence, and samples that have the oracles' law."""

import itertools
import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.testing import assert_close

from diffusion.distributions import Normal
from diffusion.model import DiffusionModel
from diffusion.networks import BitPatterns, GaussianMixture
from diffusion.noise import CounterNoise, counter_noise
from diffusion.posterior import Observation
from diffusion.prediction import VarianceKind
from diffusion.process import BinomialProcess, GaussianProcess
from diffusion.sampling import DDIM, Ancestral, DPMSolver, Update, advance, sample, step
from diffusion.schedule import InverseTimeSchedule, LinearSchedule, LogSnrSchedule
from diffusion.space import DataSpace

Any_ = Ancestral | DDIM | DPMSolver
SAMPLERS: list[Any_] = [Ancestral(), Ancestral(steps=7), DDIM(steps=6, eta=0.5), DPMSolver(steps=7)]


def gaussian(
    network: GaussianMixture, T: int, variance: VarianceKind = "moment", first: float = 8.0
) -> DiffusionModel:
    process = GaussianProcess(LogSnrSchedule(first=first, last=-12.0).beta(T))
    space = DataSpace(kind="vector", shape=(network.config.features,))
    return DiffusionModel(process, network, space, "x_0", variance).eval()


def binomial(network: BitPatterns, T: int) -> DiffusionModel:
    process = BinomialProcess(InverseTimeSchedule().beta(T), network.config.base_rate)
    space = DataSpace(kind="bits", shape=(network.config.features,))
    return DiffusionModel(process, network, space, "x_0", None).eval()


# ---- plans ----


@pytest.mark.parametrize("T", [1, 2, 7, 40, 1000])
def test_plans_are_distinct_descending_steps_that_end_at_zero(T: int) -> None:
    process = GaussianProcess(LinearSchedule().beta(T))
    for steps in {1, 2, 3, T // 3, T - 1, T} & set(range(1, T + 1)):
        for start in {None, 1, 2, T // 2, T - 1, T} & {None, *range(1, T + 1)}:
            for sampler in (Ancestral(steps=steps), DDIM(steps=steps), DPMSolver(steps=steps)):
                plan = sampler.plan(process, start)
                assert plan.t[0] == (start or T)
                assert bool((plan.t.diff() < 0).all())
                assert torch.equal(plan.s[:-1], plan.t[1:])
                assert plan.s[-1] == 0
                assert bool((plan.s < plan.t).all())
                assert bool(torch.isfinite(plan.linear).all())
                assert plan.ancestral == isinstance(sampler, Ancestral)
                # A chain from the middle takes its share of the steps.
                assert len(plan) == max(1, round(steps * (start or T) / T))


def test_steps_are_evenly_spaced() -> None:
    process = GaussianProcess(LinearSchedule().beta(1000))
    for steps in (3, 7, 50, 999):
        gaps = -torch.cat((DDIM(steps=steps).plan(process).t, torch.zeros(1).long())).diff()
        assert gaps.max() - gaps.min() <= 1
    assert DDIM(steps=4).plan(process).t.tolist() == [1000, 750, 500, 250]
    assert Ancestral().plan(process).t.tolist() == list(range(1000, 0, -1))


@pytest.mark.parametrize("sampler", [Ancestral(steps=41), DDIM(steps=50), DPMSolver(steps=41)])
def test_more_steps_than_there_are_is_refused(sampler: Any_) -> None:
    process = GaussianProcess(LinearSchedule().beta(40))
    with pytest.raises(ValueError, match=r"has 40 steps, came \d+: ask for 40 or fewer"):
        sampler.plan(process)


@pytest.mark.parametrize("sampler", [DDIM(steps=5), DPMSolver(steps=5)])
def test_bits_have_no_deterministic_sampler(sampler: Any_) -> None:
    process = BinomialProcess(InverseTimeSchedule().beta(40))
    with pytest.raises(ValueError, match=f"'{sampler.name}' is for real data: bits have"):
        sampler.plan(process)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(Ancestral, {"steps": 0}), (DDIM, {"eta": 1.5}), (DDIM, {"eta": -0.1}), (DPMSolver, {"n": 2})],
)
def test_settings_are_checked(kind: type[Any_], settings: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(settings)


def test_ddim_with_eta_1_is_the_lower_kernel_at_every_stride(mixture: GaussianMixture) -> None:
    model = gaussian(mixture, 12, "lower")
    assert isinstance(model.process, GaussianProcess)
    x_t = torch.randn(12, 2, dtype=torch.float64)
    for steps in (12, 5, 2):
        plan = DDIM(steps=steps, eta=1.0).plan(model.process)
        inner = plan.s > 0  # at 0 DDIM takes x_0hat itself
        t, s, x = plan.t[inner], plan.s[inner], x_t[: int(inner.sum())]
        a, b, c, d = plan.linear[inner].unbind(1)
        prediction = model.predict(x, t)
        kernel = model.reverse_kernel(x, t, s)
        assert isinstance(kernel, Normal)
        assert_close(a[:, None] * x + b[:, None] * prediction.x_0, kernel.mean)
        assert not c.any()
        _, _, var = model.process.posterior_coefficients(t, s)
        assert_close(d.square(), var)
        assert plan.linear[-1].tolist() == [0.0, 1.0, 0.0, 0.0]


def test_ddim_keeps_the_marginal_of_the_true_x_0() -> None:
    """For any eta: given x_0, x_t ~ q(x_t | x_0) is taken to x_s ~ q(x_s | x_0)."""
    process = GaussianProcess(LinearSchedule(first=0.01, last=0.5).beta(20))
    for eta in (0.0, 0.3, 1.0):
        plan = DDIM(steps=6, eta=eta).plan(process)
        a, b, _, d = plan.linear.unbind(1)
        at_t, at_s = process.alpha_bar[plan.t], process.alpha_bar[plan.s]
        assert_close(a * at_t.sqrt() + b, at_s.sqrt())
        if eta < 1:
            assert_close(a.square() * (1 - at_t) + d.square(), 1 - at_s)


def test_dpm_solver_begins_and_ends_as_ddim_and_sums_to_it() -> None:
    """Where x_0hat does not change, the order does not matter: b + c = DDIM's b."""
    process = GaussianProcess(LogSnrSchedule().beta(100))
    second, first = DPMSolver(steps=9).plan(process), DDIM(steps=9).plan(process)
    assert_close(second.linear[[0, -1]], first.linear[[0, -1]])
    assert_close(second.linear[:, 0], first.linear[:, 0])
    assert_close(second.linear[:, 1] + second.linear[:, 2], first.linear[:, 1])
    assert bool((second.linear[1:-1, 2] < 0).all())


# ---- orders of convergence ----


@pytest.mark.parametrize(("order", "kind"), [(1, DDIM), (2, DPMSolver)])
def test_order_of_convergence(order: int, kind: type[DDIM | DPMSolver]) -> None:
    """On one Gaussian the probability flow keeps (x_t - mean_t) / std_t, so its end is known."""
    T = 4096
    mean, var = torch.tensor([0.3, -0.8]).double(), torch.tensor([0.5, 2.0]).double()
    network = GaussianMixture.from_values(torch.ones(1), mean[None], var.diag()[None])
    model = gaussian(network, T, first=14.0)
    at_T = model.process.alpha_bar[T]
    z = torch.tensor([[1.3, -0.7], [0.2, 1.9]], dtype=torch.float64)
    x_T = at_T.sqrt() * mean + (at_T * var + 1 - at_T).sqrt() * z
    wanted = mean + var.sqrt() * z
    errors = [
        float(
            (sample(model, 2, seed=0, sampler=kind(steps=n), start=(T, x_T)) - wanted).abs().max()
        )
        for n in (32, 64, 128)
    ]
    orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert all(abs(found - order) < 0.3 for found in orders), (errors, orders)


# ---- samples ----


@pytest.mark.parametrize("steps", [1, 2, 5, 40])
def test_one_gaussian_is_sampled_exactly_at_any_number_of_steps(
    steps: int, line: GaussianMixture
) -> None:
    """The moment kernel is exact: mean and variance within 5 standard errors of 4,000 rows."""
    x = sample(gaussian(line, 40), 4000, seed=1, sampler=Ancestral(steps=steps)).double()
    z = (x - line.mean()) / line.covariance().diag().sqrt()
    assert z.mean(0).abs().max() < 5 / 4000**0.5
    off = z.T.cov() - torch.eye(3, dtype=torch.float64)
    assert off.abs().max() < 5 * (2 / 4000) ** 0.5


@pytest.mark.parametrize(
    "sampler", [Ancestral(), DDIM(steps=60, eta=1.0), DDIM(steps=60), DPMSolver(steps=30)]
)
def test_samples_have_the_mixtures_moments(sampler: Any_, mixture: GaussianMixture) -> None:
    """Mean, covariance and the components' shares, within 5 standard errors of 1,500 rows."""
    rows = 1500
    x = sample(gaussian(mixture, 60), rows, seed=2, sampler=sampler).double()
    # In whitened coordinates; the fourth moment of a draw gives each covariance its error.
    L = torch.linalg.inv(torch.linalg.cholesky(mixture.covariance()))
    z = (x - mixture.mean()) @ L.T
    truth = (mixture.sample(counter_noise(9, torch.arange(20_000), 0)) - mixture.mean()) @ L.T
    for i in range(2):
        for j in range(i + 1):
            product = truth[:, i] * truth[:, j]
            error = 5 * float(product.std()) / rows**0.5
            assert abs(float((z[:, i] * z[:, j]).mean()) - (i == j)) < error
    assert z.mean(0).abs().max() < 5 / rows**0.5
    share = float((x[:, 0] > x[:, 1]).double().mean())
    assert abs(share - 0.4) < 5 * (0.4 * 0.6 / rows) ** 0.5


def test_heartbeats_are_heartbeats(heartbeat: BitPatterns) -> None:
    """A sample's bits agree on one phase, and phases come equally often (5 standard errors)."""
    x = sample(binomial(heartbeat, 150), 200, seed=3)
    distance = (x.double()[:, None] - heartbeat.patterns).abs().sum(2)
    assert not distance.min(1).values.any()
    counts = distance.argmin(1).bincount(minlength=5)
    assert (counts - 40).abs().max() < 5 * (200 * 0.2 * 0.8) ** 0.5


def test_heartbeats_of_one_step_have_independent_bits(heartbeat: BitPatterns) -> None:
    """One step from pure noise: each bit a one with probability 1/5, within 5 standard errors."""
    x = sample(binomial(heartbeat, 100), 2000, seed=3, sampler=Ancestral(steps=1)).double()
    assert (x.mean(0) - 0.2).abs().max() < 5 * (0.16 / 2000) ** 0.5
    off = x.T.corrcoef() - torch.eye(20, dtype=torch.float64)
    assert off.abs().max() < 5 / 2000**0.5


# ---- determinism, rows ----


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_seed_is_an_answer_and_rows_stand_alone(sampler: Any_, mixture: GaussianMixture) -> None:
    model = gaussian(mixture, 20)
    whole = sample(model, 9, seed=5, sampler=sampler)
    assert torch.equal(sample(model, 9, seed=5, sampler=sampler), whole)
    assert_close(sample(model, 4, seed=5, sampler=sampler), whole[:4], rtol=1e-5, atol=1e-5)
    assert (sample(model, 9, seed=6, sampler=sampler) - whole).abs().min() > 0
    assert len(whole.unique(dim=0)) == 9


def test_bits_of_a_seed_and_rows_that_stand_alone(heartbeat: BitPatterns) -> None:
    model = binomial(heartbeat, 30)
    whole = sample(model, 9, seed=5)
    assert torch.equal(sample(model, 9, seed=5), whole)
    assert torch.equal(sample(model, 4, seed=5), whole[:4])
    assert bool(((whole == 0) | (whole == 1)).all())


@torch.no_grad()
def test_one_update_serves_rows_of_any_plans(mixture: GaussianMixture) -> None:
    model = gaussian(mixture, 20)
    plans = [sampler.plan(model.process) for sampler in SAMPLERS]
    updates = [Update.of(plan, i % len(plan), 1, model.device) for i, plan in enumerate(plans * 3)]
    together = Update(
        *(
            torch.cat([getattr(update, name) for update in updates])
            for name in ("t", "s", "linear", "ancestral")
        )
    )
    n = len(updates)
    x_t, previous, row = torch.randn(n, 2), torch.randn(n, 2), torch.arange(n)
    seeds = 10 * row
    y, known = torch.randn(n, 2), torch.rand(n, 2) < 0.3
    noise = CounterNoise(seeds, row, together.t)
    seen = Observation.of_reals(y, known, 0.1)
    whole, whole_0 = step(model, x_t, previous, together, noise, seen)
    for i, update in enumerate(updates):
        one = slice(i, i + 1)
        noise = CounterNoise(seeds[one], row[one], update.t)
        part = Observation.of_reals(y[one], known[one], 0.1)
        alone, alone_0 = step(model, x_t[one], previous[one], update, noise, part)
        assert_close(alone, whole[one], rtol=1e-5, atol=1e-5)
        assert_close(alone_0, whole_0[one], rtol=1e-5, atol=1e-5)
        again = advance(
            model.predict(x_t[one], update.t), x_t[one], previous[one], update, noise, part
        )
        assert torch.equal(again, alone)


def test_progress_tells_each_step_and_its_estimate(mixture: GaussianMixture) -> None:
    told: list[tuple[int, Tensor]] = []
    x = sample(
        gaussian(mixture, 20),
        3,
        seed=5,
        sampler=DDIM(steps=6),
        progress=lambda n, x: told.append((n, x)),
    )
    assert [number for number, _ in told] == [1, 2, 3, 4, 5, 6]
    assert torch.equal(told[-1][1], x)  # DDIM ends at its last estimate
    assert (told[0][1] - x).abs().max() > (told[4][1] - x).abs().max()


def test_a_chain_goes_on_from_where_it_was(mixture: GaussianMixture) -> None:
    """Noise is numbered by t: the second half alone is the second half of the whole."""
    model = gaussian(mixture, 20)
    states: list[Tensor] = []
    plan = Ancestral().plan(model.process)
    row = torch.arange(3)
    nothing = Observation.nothing(model.process, model.event, 3)
    x = previous = torch.randn(3, 2)
    with torch.inference_mode():
        for number in range(20):
            states.append(x)
            noise = counter_noise(5, row, int(plan.t[number]))
            update = Update.of(plan, number, 3, model.device)
            x, previous = step(model, x, previous, update, noise, nothing)
    assert torch.equal(sample(model, 3, seed=5, start=(20, states[0])), x)
    assert torch.equal(sample(model, 3, seed=5, start=(8, states[12])), x)
