"""Whatever t is drawn by, the weighted mean of the terms has the right expectation."""

import pytest
import torch

from training.fit.batches import HISTORY, Batches, Steps

T = 20
TERMS = torch.linspace(-3.0, 0.0, T).exp().double()  # a term for each t, very unequal


def warm(kind: str) -> Steps:
    """A sampler that has seen enough of every t."""
    steps = Steps(T, kind, seed=5)
    for _ in range(HISTORY):
        steps.record(torch.arange(1, T + 1), TERMS.float())
    return steps


@pytest.mark.parametrize("kind", ["uniform", "stratified", "importance"])
def test_estimates_of_the_sum_are_unbiased(kind: str) -> None:
    steps = warm(kind)
    estimates = []
    for step in range(400):
        t, weight = steps.draw(step, 16)
        assert int(t.min()) >= 1
        assert int(t.max()) <= T
        estimates.append(T * float((weight.double() * TERMS[t - 1]).mean()))
    found = torch.tensor(estimates, dtype=torch.float64)
    error = float(found.std()) / len(found) ** 0.5
    assert abs(float(found.mean() - TERMS.sum())) < 4 * error + 1e-5


def test_stratified_beats_uniform_and_importance_beats_both() -> None:
    spread = {}
    for kind in ("uniform", "stratified", "importance"):
        steps = warm(kind)
        draws = [steps.draw(step, 16) for step in range(200)]
        values = [T * float((w.double() * TERMS[t - 1]).mean()) for t, w in draws]
        spread[kind] = float(torch.tensor(values).std())
    assert spread["stratified"] < 0.5 * spread["uniform"]
    assert spread["importance"] < spread["stratified"]


def test_importance_is_uniform_until_every_t_was_seen() -> None:
    steps = Steps(T, "importance", seed=0)
    steps.record(torch.ones(HISTORY, dtype=torch.int64), torch.ones(HISTORY))
    assert torch.allclose(steps.probabilities(), torch.full((T,), 1 / T, dtype=torch.float64))


def test_importance_follows_the_root_mean_square() -> None:
    p = warm("importance").probabilities()
    assert torch.allclose(p / p.sum(), TERMS / TERMS.sum(), rtol=2e-2, atol=1e-4)


def test_draws_are_a_function_of_seed_and_step() -> None:
    one, two = Steps(T, "uniform", seed=1), Steps(T, "uniform", seed=1)
    two.draw(0, 8)  # what was drawn before does not matter
    assert torch.equal(one.draw(7, 8)[0], two.draw(7, 8)[0])
    assert not torch.equal(one.draw(7, 64)[0], one.draw(8, 64)[0])


def test_an_epoch_shows_every_row_once_and_orders_differ() -> None:
    batches = Batches(rows=10, batch=4, seed=0)
    rows = torch.cat([batches.at(step) for step in range(5)])
    first, second = rows[:10], rows[10:]
    assert torch.equal(first.sort().values, torch.arange(10))
    assert torch.equal(second.sort().values, torch.arange(10))
    assert not torch.equal(first, second)
    assert torch.equal(Batches(rows=10, batch=4, seed=0).at(3), batches.at(3))


def test_a_batch_may_be_larger_than_the_data() -> None:
    assert len(Batches(rows=3, batch=8, seed=0).at(1)) == 8
