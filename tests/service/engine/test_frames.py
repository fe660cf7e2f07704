"""Frames: states of the chain that is drawn anyway, at the steps that were asked for."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from diffusion.likelihood.estimator import choose_steps
from diffusion.model import DiffusionModel
from diffusion.networks import GaussianMixture
from diffusion.noise import Stream, counter_noise
from diffusion.samplers import DDIM, Ancestral, DPMSolver, Plan, Sampler, begin, step
from service.engine import BoundJob, Engine, SampleJob
from service.engine.device.frames import FrameRecorder
from service.engine.device.runner import ChainRunner
from service.engine.results import Frames, FrameStates, SampleResult
from service.engine.scheduling.batch import Batch, Entry, Lane
from tests.diffusion.models import gaussian as gaussian_model
from tests.service.engine.jobs import STATS
from tests.service.engine.test_exact import elementwise, flags, vectors

SEED, ROWS = 7, 11


def walk(model: DiffusionModel, plan: Plan) -> tuple[list[Tensor], list[Tensor]]:
    """x_t before each step and behind the last, and x_0hat from each state but the last."""
    row = torch.arange(ROWS)
    x = begin(model, counter_noise(SEED, row, model.T + 1, Stream.CHAIN), None, ROWS)
    states, estimates, previous = [x], [], torch.zeros_like(x)
    for i in range(len(plan)):
        update = plan.at(i, model.device)
        noise = counter_noise(SEED, row, int(update.t), Stream.CHAIN)
        x, previous = step(model, x, previous, update, noise)
        states.append(x)
        estimates.append(previous)
    return states, estimates


@given(count=st.integers(1, 100), steps=st.integers(1, 1000))
def test_frames_are_spread_from_the_start_to_the_end(count: int, steps: int) -> None:
    """As evenly as whole steps allow, and no state twice."""
    frames = Frames.spread(count, steps)
    gaps = [b - a for a, b in zip(frames.positions, frames.positions[1:], strict=False)]
    assert (frames.positions[0], frames.positions[-1]) == (0, steps)
    assert len(gaps) == min(count, steps)
    assert 1 <= min(gaps) <= max(gaps) <= min(gaps) + 1


@pytest.mark.parametrize("count", [1, 3, 16, 100])
@pytest.mark.parametrize("sampler", [Ancestral(), Ancestral(steps=7), DDIM(steps=5), DPMSolver()])
def test_the_states_are_those_of_the_recursion(
    sampler: Sampler,
    count: int,
    gaussian: DiffusionModel,
    bits: DiffusionModel,
    make_engine: Callable[..., Engine],
) -> None:
    """Of chains in bursts, more than fit a batch, beside others and beside terms."""
    T = gaussian.T
    sampler = sampler if sampler.steps is None else sampler.model_copy(update={"steps": 5})
    engine = make_engine(g=gaussian, b=bits)
    models = {"g": gaussian} if not isinstance(sampler, Ancestral) else {"g": gaussian, "b": bits}
    for name, model in models.items():
        plan = sampler.plan(model)
        job = SampleJob(name, ROWS, SEED, plan, frames=Frames.spread(count, len(plan)))
        convention = model.space.default_convention
        x_0 = torch.ones(3, *model.event)
        engine.submit(SampleJob(name, 4, 1, Ancestral().plan(model)))
        steps = choose_steps(T, torch.arange(3), 0, convention)
        engine.submit(BoundJob(name, x_0, 0, steps, convention))
        result = engine.submit(job).result(60)
        kept = result.frame_states
        assert kept is not None
        assert result.stats.network_evaluations == ROWS * len(plan)
        states, estimates = walk(model, plan)
        positions = kept.frames.positions
        assert kept.x.shape == kept.x_0.shape == (min(count, len(plan)) + 1, ROWS, *model.event)
        assert_close(kept.x, torch.stack([states[position] for position in positions]))
        assert_close(
            kept.x_0[:-1], torch.stack([estimates[position] for position in positions[:-1]])
        )
        assert torch.equal(kept.x[-1], result.samples)
        assert torch.equal(kept.x_0[-1], result.samples)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("num_steps", "recorded", "beside_terms"),
    [(1, False, False), (1, True, False), (1, False, True), (4, False, False), (4, True, False)],
)
def test_a_batch_that_fails_at_a_frame_may_be_run_again(
    num_steps: int,
    recorded: bool,
    beside_terms: bool,
    gaussian: DiffusionModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Out of memory there: nothing has changed, so the second try gives the first one's answer."""
    plan = Ancestral().plan(gaussian)
    frames = Frames.spread(len(plan), len(plan))
    steps = choose_steps(gaussian.T, torch.arange(ROWS), 0, "density")

    def out_of_memory(_: FrameRecorder, made: int, *_states: Tensor) -> None:
        if made == num_steps:
            raise torch.OutOfMemoryError("at a frame")

    entries = [Entry(0, row, row, 1) for row in range(ROWS)]
    terms = [Entry(1, row, row, 0) for row in range(ROWS)] if beside_terms else []
    states = []
    for fails in (False, True):
        runner = ChainRunner(gaussian, slots=32)
        runner.set_batch_size(16)
        if recorded:
            runner.record(lambda play: play)
        runner.open(0, SampleJob("g", ROWS, SEED, plan, frames=frames))
        runner.open(1, BoundJob("g", torch.ones(ROWS, *gaussian.event), 0, steps, "density"))
        runner.run(Batch(Lane("g"), [Entry(0, row, row, 0) for row in range(ROWS)]))
        batch = Batch(Lane("g"), entries, terms, num_steps=num_steps)
        if fails:
            with monkeypatch.context() as patched:
                patched.setattr(FrameRecorder, "__call__", out_of_memory)
                with pytest.raises(torch.OutOfMemoryError):
                    runner.run(batch)
        runner.run(batch)
        runner.receive(runner.collect(batch))
        kept = runner.chains.frames[0]
        states.append([runner.chains.x[:ROWS], runner.chains.previous[:ROWS], kept.x, kept.x_0])
    for first, second in zip(*states, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("lengths", [(16,), (1, 4, 11), (1,) * 16])
def test_a_recorded_batch_is_taken_between_its_steps(
    lengths: tuple[int, ...], gaussian: DiffusionModel
) -> None:
    """Chains that are not in step, by batches of a fixed size."""
    runner = ChainRunner(gaussian, slots=32)
    runner.set_batch_size(16)
    runner.record(lambda play: play)
    plan = Ancestral().plan(gaussian)
    job = SampleJob("g", ROWS, SEED, plan, frames=Frames.spread(5, len(plan)))
    runner.open(0, job)
    runner.open(1, SampleJob("g", 2, 1, plan))
    with torch.inference_mode():
        for rows in (range(4), range(4, ROWS)):
            position = 0
            for length in lengths:
                chains = [Entry(0, row, 20 - row, position) for row in rows]
                others = [Entry(1, row, row, position) for row in range(2)]
                runner.run(Batch(Lane("m"), chains + others, num_steps=length))
                position += length
                ends = chains if position == len(plan) else []
                assert not runner.receive(
                    runner.collect(Batch(Lane("m"), chains + others, [], ends, num_steps=length))
                )
    result = runner.result(0, STATS)
    assert isinstance(result, SampleResult)
    assert result.frame_states is not None
    states, estimates = walk(gaussian, plan)
    positions = result.frame_states.frames.positions
    assert_close(result.frame_states.x, torch.stack([states[position] for position in positions]))
    assert_close(
        result.frame_states.x_0[:-1],
        torch.stack([estimates[position] for position in positions[:-1]]),
    )


@pytest.mark.parametrize("make", [vectors, flags, elementwise])
def test_the_samples_are_bit_for_bit_those_without_frames(
    make: Callable[[], DiffusionModel], make_engine: Callable[..., Engine]
) -> None:
    torch.manual_seed(0)
    model = make()
    engine = make_engine(limits={"deterministic": True, "batch_size": 8}, m=model)
    plan = Ancestral().plan(model)
    plain = engine.submit(SampleJob("m", ROWS, SEED, plan)).result(60)
    assert plain.frame_states is None
    if not plain.stats.batch_invariant:
        pytest.skip("the rehearsal found that this machine's kernels look at a row's place")
    for count in (1, 5, 12):
        frames = Frames.spread(count, len(plan))
        found = engine.submit(SampleJob("m", ROWS, SEED, plan, frames=frames)).result(60)
        assert torch.equal(found.samples, plain.samples)


def test_each_frame_has_its_times_noise_and_the_best_estimate(
    make_engine: Callable[..., Engine],
) -> None:
    """Of independent Gaussians the moment-matched chain is exact, at every step.

    x_t ~ N(sqrt(a) m, a S + (1 - a) I) within 4.5 standard errors, and x_0hat is its regression:
    m + sqrt(a) S (a S + (1 - a) I)^-1 (x_t - sqrt(a) m).
    """
    mean = torch.tensor([1.0, -2.0], dtype=torch.float64)
    covariance = torch.tensor([[0.5, 0.0], [0.0, 0.3]], dtype=torch.float64)
    network = GaussianMixture.from_values(torch.ones(1), mean[None], covariance[None])
    model = gaussian_model(network)
    plan, rows = Ancestral(steps=10).plan(model), 4000
    frames = Frames.spread(5, 10)
    engine = make_engine(limits={"batch_size": 4096, "slots": 8192}, m=model)
    kept = engine.submit(SampleJob("m", rows, SEED, plan, frames=frames)).result(60).frame_states
    assert kept is not None
    for i, position in enumerate(frames.positions[:-1]):
        a = model.process.alpha_bar[plan.t[position]]
        noisy = a * covariance + (1 - a) * torch.eye(2)
        x, off = kept.x[i].double(), kept.x[i].double() - a.sqrt() * mean
        products = off[:, :, None] * off[:, None, :]
        for values, exact in ((x, a.sqrt() * mean), (products, noisy)):
            error = values.std(0) / math.sqrt(rows)
            assert bool(((values.mean(0) - exact).abs() < 4.5 * error).all()), (i, values.mean(0))
        best = mean + a.sqrt() * off @ torch.linalg.solve(noisy, covariance)
        assert_close(kept.x_0[i].double(), best, rtol=1e-3, atol=1e-3)


def test_frames_count_as_what_they_hold(gaussian: DiffusionModel) -> None:
    plan = Ancestral().plan(gaussian)
    frames = Frames.spread(4, len(plan))
    plain = SampleJob("g", ROWS, 0, plan).size(gaussian)
    kept = FrameStates.blank(frames, ROWS, gaussian.event)
    followed = SampleJob("g", ROWS, 0, plan, frames=frames, answer_bytes=1000)
    assert followed.size(gaussian) == plain + kept.x.nbytes + kept.x_0.nbytes + 1000


def test_frames_of_another_plan_are_refused(
    gaussian: DiffusionModel, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(g=gaussian)
    plan = Ancestral().plan(gaussian)
    with pytest.raises(ValueError, match="`frames` is behind step 16, came 3"):
        engine.submit(SampleJob("g", 1, 0, plan, frames=Frames.spread(3, 3)))
