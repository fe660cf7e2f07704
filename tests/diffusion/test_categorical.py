"""The categorical process: sums over states, Bayes, mixtures, bounds and posteriors."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from diffusion.categorical import Blocks, Categorical, of_codes
from diffusion.noise import counter_noise
from diffusion.observation import Observation
from diffusion.process.categorical import CategoricalProcess
from diffusion.schedule import InverseTimeSchedule

T = 6
BASE = ((0.2, 0.5, 0.3), (0.6, 0.4))
BLOCKS = Blocks((3, 2))
PAIRS = [(t, s) for t in range(1, T + 1) for s in range(t)]


@pytest.fixture
def process() -> CategoricalProcess:
    return CategoricalProcess(InverseTimeSchedule().beta(T), BASE)


def states() -> Tensor:
    """Every row, float64 [6, 5]."""
    codes = torch.tensor(list(itertools.product(range(3), range(2))))
    return BLOCKS.one_hot(codes).double()


def matrix(process: CategoricalProcess, t: int, s: int) -> Tensor:
    """q(x_t = j | x_s = i), float64 [6, 6]."""
    x = states()
    found = process.forward_kernel(x, torch.tensor([t]), torch.tensor([s]))
    return torch.stack([found.log_prob(y.expand(6, -1)).exp() for y in x], 1)


@pytest.mark.parametrize(("t", "s"), PAIRS)
def test_steps_compose_and_keep_the_base(process: CategoricalProcess, t: int, s: int) -> None:
    whole = matrix(process, t, 0)
    assert_close(whole.sum(1), torch.ones(6).double())
    assert_close(
        matrix(process, s, 0) @ matrix(process, t, s) if s else matrix(process, t, 0), whole
    )
    pi = process.prior((5,), 6).log_prob(states()).double().exp()
    assert_close(pi @ whole, pi, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("t", "s"), [pair for pair in PAIRS if pair[1]])
def test_bridge_is_bayes_rule(process: CategoricalProcess, t: int, s: int) -> None:
    x = states()
    forward, first = matrix(process, t, s), matrix(process, s, 0)
    for i, j in itertools.product(range(6), repeat=2):
        wanted = first[i] * forward[:, j]
        row = x[i : i + 1], x[j : j + 1], torch.tensor([t]), torch.tensor([s])
        found = process.posterior(*row)
        each = torch.stack([found.log_prob(y[None])[0].exp() for y in x])
        assert_close(each, wanted / wanted.sum())


@pytest.mark.parametrize(("t", "s"), PAIRS)
def test_mix_sums_over_x_0(process: CategoricalProcess, t: int, s: int) -> None:
    x, step = states(), (torch.tensor([t]), torch.tensor([s]))
    p = torch.tensor([0.1, 0.2, 0.7, 0.9, 0.1], dtype=torch.float64)
    log_p = p.log()[None]
    of_x_0 = Categorical(log_p, BLOCKS).log_prob(x).exp()
    for x_t in x:
        found = process.mix(log_p, x_t[None], *step)
        # Columns are independent given x_t, so one column's marginal decides.
        wanted = torch.zeros(5).double()
        for x_0, weight in zip(x, of_x_0, strict=True):
            wanted += weight * process.posterior(x_0[None], x_t[None], *step).mean[0].double()
        assert_close(found.mean[0], wanted)


def test_divergences_and_products_are_sums() -> None:
    a = Categorical(torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).double(), BLOCKS)
    b = Categorical(torch.randn(4, 5, generator=torch.Generator().manual_seed(1)).double(), BLOCKS)
    log_a, log_b = (torch.stack([d.log_prob(x.expand(4, -1)) for x in states()], 1) for d in (a, b))
    assert_close(a.kl(b), (log_a.exp() * (log_a - log_b)).sum(1))
    assert_close(a.entropy(), -(log_a.exp() * log_a).sum(1))
    product, log_z = a.multiply(Categorical(b.log_p, BLOCKS))
    joint = log_a + log_b
    assert_close(log_z, joint.logsumexp(1))
    found = torch.stack([product.log_prob(x.expand(4, -1)) for x in states()], 1)
    assert_close(found, joint.log_softmax(1))


def test_draws_have_the_probabilities() -> None:
    count = 40_000
    one = Categorical(torch.tensor([[0.1, 0.2, 0.7, 0.9, 0.1]]).log(), BLOCKS)
    many = Categorical(one.logits.expand(count, -1), BLOCKS)
    found = many.sample(counter_noise(3, torch.arange(count), 0))
    assert_close(BLOCKS.total(found), torch.ones(count, 2))
    error = (one.mean * (1 - one.mean) / count).sqrt()
    assert bool(((found.mean(0) - one.mean).abs() < 4 * error).all())


def test_what_was_seen() -> None:
    codes, known = torch.tensor([[2, 0], [1, 1]]), torch.tensor([[True, False], [True, True]])
    exact = Observation(of_codes(BLOCKS, codes, known))
    assert exact.known.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert exact.factor.exact.tolist() == exact.known.tolist()
    assert not exact.factor.noisy
    noisy = of_codes(BLOCKS, codes, known, 0.2)
    assert_close(noisy.noise[1], torch.full((5,), 0.2))
    assert noisy.noisy
    assert not bool(noisy.exact.any())
    assert_close(noisy.values[1], torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0]))
    told = noisy.told()
    assert told.shape == (2, 15)
    assert not bool(told[0, [3, 4, 8, 9, 13, 14]].any())  # nothing of the column not seen


def test_nothing_is_lost_of_a_certain_x_0(process: CategoricalProcess) -> None:
    """Infinite log-probabilities make kernels without NaN, at both ends."""
    x = states().float()
    log_p = x.log()
    for t, s in PAIRS:
        found = process.mix(log_p, x, torch.full((6,), t), torch.full((6,), s))
        assert not bool(found.mean.isnan().any())
        wanted = process.posterior(x, x, torch.full((6,), t), torch.full((6,), s))
        assert_close(found.mean, wanted.mean, rtol=1e-5, atol=1e-6)
