"""Samplers: orders of convergence, and samples that have the oracles' law."""

import itertools
import math
from typing import Literal

import pytest
import torch
from pydantic import Field
from torch import Tensor
from torch.testing import assert_close
from typing_extensions import override

from diffusion import samplers
from diffusion.distributions import Bernoulli
from diffusion.model import DiffusionModel
from diffusion.networks import BitPatterns, GaussianMixture
from diffusion.noise import CounterNoise, DrawnNoise, counter_noise
from diffusion.posterior import Observation
from diffusion.samplers import (
    DDIM,
    Ancestral,
    DPMSolver,
    Plan,
    Sampler,
    Update,
    advance,
    burst,
    sample,
    step,
)
from tests.diffusion.models import binomial, gaussian

Any_ = Ancestral | DDIM | DPMSolver
SAMPLERS: list[Any_] = [Ancestral(), Ancestral(steps=7), DDIM(steps=6, eta=0.5), DPMSolver(steps=7)]


# ---- orders of convergence ----


class Heun(Sampler):
    """Heun's second order (Karras et al. 2022, Algorithm 1): two positions a step but the last.

    With r = sigma / sqrt(alpha_bar), x' the step of DDIM and x_0hat' the network's estimate there:
    x_s = sqrt(alpha_bar_s) (x_t / sqrt(alpha_bar_t) + (r_s - r_t) (d_t + d_s) / 2), where
    d_t = (x_t / sqrt(alpha_bar_t) - x_0hat) / r_t, and d_s likewise of x' and x_0hat'.
    """

    name: Literal["heun"] = "heun"
    steps: int = Field(15, ge=1)

    @override
    def plan_of(self, model: DiffusionModel, t: Tensor, s: Tensor) -> Plan:
        at_t, at_s = model.process.alpha_bar[t], model.process.alpha_bar[s]
        a = ((1 - at_s) / (1 - at_t)).sqrt()
        b = at_s.sqrt() - a * at_t.sqrt()
        # x_t is (x' - b x_0hat) / a, so x_s is a combination of x', x_0hat' and the x_0hat before.
        ratio = at_s.sqrt() / (a * at_t.sqrt())  # r_t / r_s
        half = (1 - ratio) / 2
        of_x_t = (a + at_s.sqrt() / at_t.sqrt()) / 2
        of_x_0 = -half * at_s.sqrt() / ratio - of_x_t * b / a
        zero = torch.zeros_like(a)
        first = torch.stack((a, b, zero, zero, zero, zero), 1)
        second = torch.stack((of_x_t / a + half, -half * at_s.sqrt(), of_x_0, zero, zero, zero), 1)
        # At s = 0 there is no network: the last step is DDIM's.
        table = torch.stack((first, second), 1).flatten(0, 1)[:-1]
        places = torch.stack((t, s), 1).flatten()[:-1]
        return Plan(places, s.repeat_interleave(2)[:-1], table, own=False, points=True)


def test_a_plan_may_have_two_positions_a_step() -> None:
    network = GaussianMixture.from_values(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None])
    model = gaussian(network, 40)
    plan = Heun(steps=4).plan(model)
    assert plan.t.tolist() == [40, 30, 30, 20, 20, 10, 10]
    assert plan.s.tolist() == [30, 30, 20, 20, 10, 10, 0]


@pytest.mark.parametrize(("order", "kind"), [(1, DDIM), (2, DPMSolver), (2, Heun)])
def test_order_of_convergence(order: int, kind: type[DDIM | DPMSolver | Heun]) -> None:
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
    plans = [sampler.plan(model) for sampler in SAMPLERS]
    updates = [plan.at(i % len(plan), model.device) for i, plan in enumerate(plans * 3)]
    t, s, table = (
        torch.cat([getattr(update, name) for update in updates]) for name in ("t", "s", "table")
    )
    together = Update(t, s, table, torch.tensor([update.own for update in updates]))
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


def test_a_chain_that_stops_gives_the_mean_of_what_it_would_come_to(line: GaussianMixture) -> None:
    """E[x_0 | x_t] of a Gaussian has the covariance a C (a C + (1 - a) I)^-1 C, a = alpha_bar."""
    model, rows, told = gaussian(line, 40), 4000, list[Tensor]()
    x = sample(
        model,
        rows,
        seed=3,
        sampler=Ancestral(steps=20),
        stop=25,
        progress=lambda _, x_0: told.append(x_0),
    )
    assert torch.equal(x, told[-1])
    assert len(told) == 9  # t = 40, 38, .. 24
    a, C = model.process.alpha_bar[24], line.covariance()
    expected = a * C @ torch.linalg.inv(a * C + (1 - a) * torch.eye(3, dtype=torch.float64)) @ C
    values, vectors = torch.linalg.eigh(expected)
    z = (x.double() - line.mean()) @ (vectors / values.sqrt())
    assert z.mean(0).abs().max() < 5 / rows**0.5
    assert (z.T.cov() - torch.eye(3, dtype=torch.float64)).abs().max() < 5 * (2 / rows) ** 0.5


def test_a_stop_beyond_the_chain_is_refused(mixture: GaussianMixture) -> None:
    for stop in (-1, 21):
        with pytest.raises(ValueError, match="from 1 to 20"):
            sample(gaussian(mixture, 20), 1, seed=0, stop=stop)


def test_a_chain_goes_on_from_where_it_was(mixture: GaussianMixture) -> None:
    """Noise is numbered by t: the second half alone is the second half of the whole."""
    model = gaussian(mixture, 20)
    states: list[Tensor] = []
    plan = Ancestral().plan(model)
    row = torch.arange(3)
    nothing = model.process.nothing_seen(model.event, 3)
    x = previous = torch.randn(3, 2)
    with torch.inference_mode():
        for number in range(20):
            states.append(x)
            noise = counter_noise(5, row, int(plan.t[number]))
            update = plan.at(number, model.device)
            x, previous = step(model, x, previous, update, noise, nothing)
    assert torch.equal(sample(model, 3, seed=5, start=(20, states[0])), x)
    assert torch.equal(sample(model, 3, seed=5, start=(8, states[12])), x)


@torch.no_grad()
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("tabulated", [False, True])
def test_a_burst_is_its_steps_one_by_one(
    sampler: Any_, tabulated: bool, mixture: GaussianMixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with the noise drawn in several portions, and the times read from a table."""
    model = gaussian(mixture, 20)
    plan, row = sampler.plan(model), torch.arange(5)
    first = x = x_0 = torch.randn(5, 2)
    for number in range(len(plan)):
        noise = counter_noise(3, row, int(plan.t[number]))
        x, x_0 = step(model, x, x_0, plan.at(number, model.device), noise)
    if tabulated:
        model.tabulate()
    monkeypatch.setattr(samplers, "_NUMBERS", 30)  # three steps at a time
    whole = plan.whole(model.device)
    y, y_0 = burst(model, first, first, whole, torch.full_like(row, 3), row)
    assert_close(y, x, rtol=1e-5, atol=1e-6)
    assert_close(y_0, x_0, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("seen", [False, True])
def test_bits_are_drawn_by_the_models_own_kernel(seen: bool, heartbeat: BitPatterns) -> None:
    """At any stride and for any rows; with some of them seen, by its product with that."""
    model = binomial(heartbeat, 40)
    for steps in (40, 7, 1):
        plan = Ancestral(steps=steps).plan(model)
        assert not plan.own
        x_t, u = (torch.rand(steps, 20) < 0.4).float(), torch.rand(steps, 20)
        known = torch.rand(steps, 20) < 0.3
        found = Observation.of_bits(1 - x_t, known, flip_probability=0.2) if seen else None
        prediction = model.predict(x_t, plan.t)
        update = Update(plan.t, plan.s, plan.table, plan.own)
        x_s = advance(prediction, x_t, x_t, update, DrawnNoise(u), found)
        kernel = prediction.kernel(plan.s)
        wanted = kernel if found is None else found.multiply(kernel)[0]
        assert isinstance(wanted, Bernoulli)
        near = (u - wanted.mean).abs() < 1e-5
        assert torch.equal(x_s[~near], (u < wanted.mean).float()[~near])
        assert near.float().mean() < 0.01


@torch.no_grad()
@pytest.mark.parametrize("tabulated", [False, True])
def test_a_burst_of_bits_is_its_steps_one_by_one(tabulated: bool, heartbeat: BitPatterns) -> None:
    model = binomial(heartbeat, 40)
    plan, row = Ancestral().plan(model), torch.arange(50)
    first = x = x_0 = (torch.rand(50, 20) < 0.2).float()
    for number in range(len(plan)):
        noise = counter_noise(3, row, int(plan.t[number]))
        x, x_0 = step(model, x, x_0, plan.at(number, model.device), noise)
    if tabulated:
        model.tabulate()
    y, y_0 = burst(model, first, first, plan.whole(model.device), torch.full_like(row, 3), row)
    assert torch.equal(y, x)
    assert_close(y_0, x_0, rtol=1e-4, atol=1e-6)
