"""The engine's answers: those of the offline loops, whatever else is in the batch."""

from collections.abc import Callable

import pytest
import torch
from torch.testing import assert_close

from diffusion.likelihood.bound import bound
from diffusion.likelihood.iwae import trajectory_bound
from diffusion.model import DiffusionModel
from diffusion.posterior import Observation
from diffusion.samplers import DDIM, Ancestral, DPMSolver, sample
from diffusion.space import Convention
from service.engine import BoundJob, Engine, SampleJob
from tests.service.engine.jobs import chains, terms, trajectories

SAMPLERS = [Ancestral(), Ancestral(steps=5), DDIM(steps=6, eta=0.5), DPMSolver(steps=7)]


def company(model: DiffusionModel) -> list[SampleJob | BoundJob]:
    """Jobs of every kind to stand beside."""
    x_0 = torch.linspace(-1, 1, 6).view(3, 2)
    known = torch.tensor([[True, False]]).expand(9, 2)
    seen = Observation.of_reals(torch.full((9, 2), 0.3), known)
    return [
        chains(model, 20, seed=1),
        chains(model, 9, seed=2, observation=seen),
        chains(model, 5, seed=3, sampler=DPMSolver(steps=4)),
        terms(model, x_0, seed=4),
        terms(model, x_0, seed=5, convention="paper"),
        trajectories(model, x_0, seed=6),
    ]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: f"{s.name}-{s.steps}")
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside others"])
def test_samples_are_those_of_the_offline_loop(
    gaussian: DiffusionModel,
    make_engine: Callable[..., Engine],
    sampler: Ancestral | DDIM | DPMSolver,
    beside: bool,
) -> None:
    engine = make_engine(g=gaussian)
    others = [engine.submit(job) for job in company(gaussian)] if beside else []
    ticket = engine.submit(chains(gaussian, 11, sampler=sampler))
    result = ticket.result(120)
    expected = sample(gaussian, 11, seed=7, sampler=sampler)
    assert_close(result.samples, expected, rtol=1e-4, atol=1e-5)
    assert result.stats.network_evaluations == ticket.cost == ticket.done
    for other in others:
        other.result(120)


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside others"])
def test_observed_samples_are_those_of_the_offline_loop(
    gaussian: DiffusionModel, make_engine: Callable[..., Engine], beside: bool
) -> None:
    engine = make_engine(g=gaussian)
    known = torch.tensor([[True, False], [False, True], [True, True], [False, False]])
    y = torch.tensor([[0.1, 0.0], [0.0, -0.2], [0.7, -0.7], [0.0, 0.0]])
    seen = Observation.of_reals(y, known)
    others = [engine.submit(job) for job in company(gaussian)] if beside else []
    result = engine.submit(chains(gaussian, 4, observation=seen)).result(120)
    expected = sample(gaussian, 4, seed=7, observation=seen)
    assert_close(result.samples, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(result.samples[known], y[known])
    # A slot that held an observation forgets it with its next chain.
    again = engine.submit(chains(gaussian, 32)).result(120)
    assert_close(again.samples, sample(gaussian, 32, seed=7), rtol=1e-4, atol=1e-5)
    for other in others:
        other.result(120)


@pytest.mark.parametrize("convention", ["density", "paper"])
@pytest.mark.parametrize("count", [None, 6])
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside others"])
def test_bounds_are_those_of_the_offline_loop(
    gaussian: DiffusionModel,
    make_engine: Callable[..., Engine],
    convention: Convention,
    count: int | None,
    beside: bool,
) -> None:
    engine = make_engine(g=gaussian)
    others = [engine.submit(job) for job in company(gaussian)] if beside else []
    x_0 = torch.linspace(-1.5, 1.2, 10).view(5, 2)
    job = terms(gaussian, x_0, count=count, convention=convention)
    result = engine.submit(job).result(120)
    expected = bound(gaussian, x_0, seed=7, convention=convention, terms=count)
    for name in ("bound", "standard_error", "prior", "steps", "last"):
        ours, theirs = getattr(result.bound, name), getattr(expected, name)
        assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=name)
    assert result.values.shape == (job.rows, job.positions)
    for other in others:
        other.result(120)


@pytest.mark.parametrize("convention", ["density", "paper"])
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside others"])
def test_bounds_of_trajectories_are_those_of_the_offline_loop(
    gaussian: DiffusionModel,
    make_engine: Callable[..., Engine],
    convention: Convention,
    beside: bool,
) -> None:
    engine = make_engine(g=gaussian, limits={"batch_size": 16, "slots": 16})
    others = [engine.submit(job) for job in company(gaussian)] if beside else []
    x_0 = torch.linspace(-1.5, 1.2, 10).view(5, 2)
    ticket = engine.submit(trajectories(gaussian, x_0, 4, convention=convention))
    result = ticket.result(120)
    expected = trajectory_bound(gaussian, x_0, seed=7, convention=convention, trajectories=4)
    for name in ("bound", "standard_error", "prior", "steps", "last", "gain"):
        ours, theirs = getattr(result.bound, name), getattr(expected, name)
        assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=name)
    assert result.stats.network_evaluations == ticket.cost == 5 * 4 * gaussian.T
    for other in others:
        other.result(120)


def test_a_chain_goes_on_from_where_it_is_told(
    gaussian: DiffusionModel, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(g=gaussian)
    start = torch.linspace(-1, 1, 12).view(6, 2)
    result = engine.submit(chains(gaussian, 6, first=9, start=start)).result(120)
    expected = sample(gaussian, 6, seed=7, start=(9, start))
    assert_close(result.samples, expected, rtol=1e-4, atol=1e-5)


def test_levels_are_scored_by_the_discretised_convention(
    pixels: DiffusionModel, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(g=pixels)
    x_0 = pixels.space.to_model(torch.tensor([[0.0, 255.0], [180.0, 70.0], [64.0, 160.0]]))
    other = engine.submit(terms(pixels, x_0, convention="density"))
    result = engine.submit(terms(pixels, x_0)).result(120)
    expected = bound(pixels, x_0, seed=7, convention="discretised")
    assert_close(result.bound.bound, expected.bound, rtol=1e-4, atol=1e-5)
    samples = engine.submit(chains(pixels, 9)).result(120).samples
    assert_close(samples, sample(pixels, 9, seed=7), rtol=1e-4, atol=1e-5)
    other.result(120)


def test_bits_beside_reals(
    bits: DiffusionModel, gaussian: DiffusionModel, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(b=bits, g=gaussian)
    others = [engine.submit(job) for job in company(gaussian)]
    y = torch.tensor([[1.0, 0, 0, 0]]).expand(9, 4)
    known = torch.tensor([[True, True, False, False]]).expand(9, 4)
    seen = Observation.of_bits(y, known)
    x_0 = torch.tensor([[1.0, 0, 0, 1], [0, 1, 1, 0]])
    drawn = engine.submit(chains(bits, 9, name="b"))
    observed = engine.submit(chains(bits, 9, name="b", observation=seen))
    scored = engine.submit(terms(bits, x_0, name="b"))
    weighed = engine.submit(trajectories(bits, x_0, name="b"))
    assert torch.equal(drawn.result(120).samples, sample(bits, 9, seed=7))
    assert torch.equal(observed.result(120).samples, sample(bits, 9, seed=7, observation=seen))
    expected = bound(bits, x_0, seed=7, convention="discretised")
    assert_close(scored.result(120).bound.bound, expected.bound, rtol=1e-4, atol=1e-5)
    expected = trajectory_bound(bits, x_0, seed=7, convention="discretised", trajectories=3)
    assert_close(weighed.result(120).bound.bound, expected.bound, rtol=1e-4, atol=1e-5)
    for other in others:
        other.result(120)


def test_more_rows_than_slots(gaussian: DiffusionModel, make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(g=gaussian, limits={"batch_size": 4, "slots": 4})
    tickets = [engine.submit(chains(gaussian, 30, seed)) for seed in (1, 2)]
    for seed, ticket in zip((1, 2), tickets, strict=True):
        expected = sample(gaussian, 30, seed=seed)
        assert_close(ticket.result(120).samples, expected, rtol=1e-4, atol=1e-5)


def test_answers_are_ordinary_tensors(
    gaussian: DiffusionModel, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(g=gaussian)
    samples = engine.submit(chains(gaussian, 2)).result(120).samples
    result = engine.submit(terms(gaussian, torch.zeros(1, 2))).result(120)
    for tensor in (samples, result.values, result.bound.bound):
        assert not tensor.is_inference()
        assert tensor.device.type == "cpu"
        tensor += 1


def test_a_seed_of_63_bits(gaussian: DiffusionModel, make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(g=gaussian)
    seed = 2**63 - 1
    result = engine.submit(chains(gaussian, 3, seed=seed)).result(120)
    assert_close(result.samples, sample(gaussian, 3, seed=seed), rtol=1e-4, atol=1e-5)
