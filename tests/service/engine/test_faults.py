"""Each fault, injected: it fails alone, nothing else is lost, and nobody hangs."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from diffusion.likelihood.bound import bound
from diffusion.likelihood.estimator import choose_steps
from diffusion.model import DiffusionModel
from diffusion.networks import BitPatterns
from diffusion.samplers import Ancestral, sample
from service.engine import BoundJob, Engine, SampleJob, Ticket
from service.engine.faults import describe, fatal, out_of_memory, problem_unless_fatal
from service.errors import (
    EngineDead,
    InternalError,
    NumericalFailure,
    OutOfMemory,
    UnknownModel,
)


def healthy(model: DiffusionModel, rows: int = 6, seed: int = 7) -> SampleJob:
    return SampleJob("g", rows, seed, Ancestral().plan(model))


def marked(model: DiffusionModel, rows: int = 3) -> SampleJob:
    """Chains whose first row carries the mark that the network's mischief answers to."""
    start = torch.zeros(rows, 2)
    start[0, 0] = 1000.0
    return SampleJob("g", rows, 1, Ancestral().plan(model, 9), start=start)


def scored(model: DiffusionModel, x_0: Tensor, seed: int = 3) -> BoundJob:
    steps = choose_steps(model.T, torch.arange(len(x_0)), seed, "density")
    return BoundJob("g", x_0, seed, steps, "density")


def raising(error: BaseException) -> Callable[[Tensor, Tensor], Tensor]:
    def act(_out: Tensor, _marked: Tensor) -> Tensor:
        raise error

    return act


def spoiling(value: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda out, rows: out.masked_fill(rows[:, None], value)


def among_others(
    engine: Engine, model: DiffusionModel, mischief: SimpleNamespace, job: SampleJob | BoundJob
) -> Ticket[Any]:
    """The job's ticket, once the healthy jobs in its batches have given the right answers."""
    mischief.gate.clear()
    x_0 = torch.linspace(-1, 1, 6).view(3, 2)
    before = engine.submit(healthy(model))
    bad = engine.submit(job)
    after = engine.submit(healthy(model, seed=8)), engine.submit(scored(model, x_0))
    mischief.gate.set()
    close = partial(assert_close, rtol=1e-4, atol=1e-5)
    close(before.result(120).samples, sample(model, 6, seed=7))
    close(after[0].result(120).samples, sample(model, 6, seed=8))
    expected = bound(model, x_0, seed=3, convention="density")
    close(after[1].result(120).bound.bound, expected.bound)
    assert engine.alive
    return bad


def test_a_row_that_is_not_finite_fails_its_request_only(
    faulty: DiffusionModel,
    mischief: SimpleNamespace,
    make_engine: Callable[..., Engine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # On a fast machine a burst would hold the whole job.
    monkeypatch.setattr("service.engine.scheduling.scheduler.MULTI_STEP_SECONDS", 0.0)
    engine = make_engine(g=faulty)
    mischief.on_marked = spoiling(torch.nan)  # infinities are kept within limits by the model
    bad = among_others(engine, faulty, mischief, marked(faulty))
    with pytest.raises(NumericalFailure, match="sample 0 became NaN"):
        bad.result(120)
    assert bad.done < bad.cost  # it did not run to its end
    assert engine.drain(120)
    assert engine.pending == 0


def test_a_term_that_is_not_finite_is_that_examples_answer(
    faulty: DiffusionModel, mischief: SimpleNamespace, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(g=faulty)
    mischief.on_marked = spoiling(torch.nan)
    x_0 = torch.tensor([[0.0, 0.0], [1000.0, 0.0]])
    found = among_others(engine, faulty, mischief, scored(faulty, x_0)).result(120).bound.bound
    expected = bound(faulty, x_0, seed=3, convention="density").bound
    assert_close(found[0], expected[0], rtol=1e-4, atol=1e-5)
    assert bool(found[1].isnan())
    assert engine.drain(120)


def test_bits_of_a_network_that_is_not_finite(
    bits: DiffusionModel, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(g=bits)
    assert isinstance(bits.network, BitPatterns)
    bits.network.weights.fill_(torch.nan)
    with pytest.raises(NumericalFailure):
        engine.submit(healthy(bits)).result(120)


def test_an_exception_fails_the_request_that_raises_it(
    faulty: DiffusionModel, mischief: SimpleNamespace, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(g=faulty)
    mischief.on_marked = raising(RuntimeError("a broken kernel"))
    bad = among_others(engine, faulty, mischief, marked(faulty))
    with pytest.raises(InternalError, match="a broken kernel"):
        bad.result(120)
    assert engine.drain(120)
    assert engine.pending == 0


def test_out_of_memory_halves_the_batch_and_loses_nothing(
    faulty: DiffusionModel, mischief: SimpleNamespace, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(g=faulty)
    mischief.most_rows = 3
    mischief.sizes.clear()
    result = engine.submit(healthy(faulty, rows=10)).result(120)
    assert [size for size in mischief.sizes if size > 3] == [8, 4, 4]  # and never tried again
    mischief.most_rows = None
    assert_close(result.samples, sample(faulty, 10, seed=7), rtol=1e-4, atol=1e-5)
    assert engine.alive


def test_where_memory_lasts_again_batches_grow_back(
    faulty: DiffusionModel, mischief: SimpleNamespace, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(g=faulty)  # 8 rows per batch
    mischief.most_rows = 3
    engine.submit(healthy(faulty, rows=8)).result(120)
    mischief.most_rows = None
    mischief.sizes.clear()
    engine.submit(healthy(faulty, rows=8 * 16)).result(120)
    assert mischief.sizes[0] == 2
    assert mischief.sizes.index(2) < mischief.sizes.index(4) < mischief.sizes.index(8)


def test_a_row_without_room_by_itself_leaves_the_others_their_company(
    faulty: DiffusionModel, mischief: SimpleNamespace, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(g=faulty)
    mischief.on_marked = raising(torch.OutOfMemoryError("no room"))
    with pytest.raises(OutOfMemory):
        among_others(engine, faulty, mischief, marked(faulty)).result(120)
    mischief.sizes.clear()
    engine.submit(healthy(faulty, rows=8)).result(120)
    assert max(mischief.sizes) >= 3


def test_out_of_memory_at_one_row_fails_that_request(
    faulty: DiffusionModel, mischief: SimpleNamespace, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(g=faulty)
    mischief.on_marked = raising(torch.OutOfMemoryError("no room"))
    bad = among_others(engine, faulty, mischief, marked(faulty))
    with pytest.raises(OutOfMemory):
        bad.result(120)
    assert engine.drain(120)


def test_out_of_memory_at_warm_up_finds_a_batch_that_fits(
    faulty: DiffusionModel, mischief: SimpleNamespace, make_engine: Callable[..., Engine]
) -> None:
    mischief.most_rows = 3
    engine = make_engine(g=faulty)
    assert not engine.refused
    mischief.sizes.clear()
    engine.submit(healthy(faulty)).result(120)
    assert max(mischief.sizes) == 2


def test_a_model_that_fails_its_warm_up_is_refused_and_others_served(
    faulty: DiffusionModel,
    gaussian: DiffusionModel,
    mischief: SimpleNamespace,
    make_engine: Callable[..., Engine],
) -> None:
    mischief.most_rows = 0
    engine = make_engine(bad=faulty, g=gaussian)
    assert list(engine.refused) == ["bad"]
    assert engine.ready
    engine.submit(healthy(gaussian)).result(120)
    job = SampleJob("bad", 1, 0, Ancestral().plan(faulty))
    with pytest.raises(UnknownModel, match="failed its first network call"):
        engine.submit(job)


@pytest.mark.parametrize("error", [SystemExit("gone"), torch.AcceleratorError("device lost")])
def test_when_the_thread_dies_everything_pending_fails(
    faulty: DiffusionModel,
    mischief: SimpleNamespace,
    make_engine: Callable[..., Engine],
    error: BaseException,
) -> None:
    engine = make_engine(g=faulty)
    mischief.on_marked = raising(error)
    mischief.gate.clear()
    tickets = [engine.submit(job) for job in (healthy(faulty), marked(faulty), healthy(faulty))]
    cancelled = engine.submit(healthy(faulty))
    cancelled.cancel()
    mischief.gate.set()
    for ticket in tickets:
        with pytest.raises(EngineDead, match=r"gone|device lost"):
            ticket.result(120)
    assert not engine.alive
    assert not engine.ready
    with pytest.raises(EngineDead):
        engine.submit(healthy(faulty))
    with pytest.raises(EngineDead):
        engine.warm()
    assert not engine.drain(1)


def test_what_an_exception_is_called() -> None:
    assert describe(ValueError("one\ntwo")) == "ValueError: one"
    assert describe(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert fatal(torch.AcceleratorError("x"))
    assert not fatal(RuntimeError("x"))
    assert out_of_memory(MemoryError())
    assert out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))
    assert isinstance(problem_unless_fatal(MemoryError(), "a batch"), OutOfMemory)
    problem = EngineDead("gone")
    assert problem_unless_fatal(problem, "a batch") is problem
    with pytest.raises(torch.AcceleratorError):
        problem_unless_fatal(torch.AcceleratorError("device lost"), "a batch")
