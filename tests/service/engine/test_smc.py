"""Systems of particles in the engine: the offline answer, whatever else runs and goes wrong."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from diffusion.model import DiffusionModel
from diffusion.networks import MLPConfig, build
from diffusion.observation import Observation
from diffusion.operators import Dense
from diffusion.posterior.baselines import ProductKernel, RepaintKernel
from diffusion.posterior.factors import Expert
from diffusion.posterior.particle_filter import ParticleFilter
from diffusion.posterior.smc import SMCKernel, SMCResult, run
from diffusion.posterior.twist import Twist
from diffusion.process import GaussianConfig
from diffusion.samplers import Ancestral, sample
from diffusion.space import DataSpace
from service.engine import Engine, PosteriorResult, SMCJob, Ticket
from service.engine.device.smc import SMCRunner
from service.engine.scheduling.batch import Batch, Entry
from service.errors import InternalError, NumericalFailure, OutOfMemory
from service.metrics import Metrics
from tests.service.engine.jobs import STATS, chains, terms

Y = torch.tensor([[0.4, 0.0], [-0.9, 0.3], [0.0, -1.2]])
KNOWN = torch.tensor([[True, False], [True, True], [False, True]])
LINE = Dense(rows=((1.0, 0.5),))
CALLS = {"batch_size": 8, "slots": 32, "threads": 1}


def seen_by(kind: str) -> Observation:
    if kind == "bits":
        bits = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
        known = torch.tensor([[True, True, False, False]]).expand(3, 4)
        return Observation.of_bits(bits, known)
    if kind == "line":
        return Observation.of_linear(LINE, Y[:, :1], (2,), 0.2)
    return Observation.of_reals(Y, KNOWN, 0.3 if kind == "noisy" else 0.0)


def kernel_by(name: str, model: DiffusionModel) -> SMCKernel:
    plan = Ancestral(steps=7).plan(model)
    if name == "repaint":
        return RepaintKernel(plan, jump=2, times=2)
    if name == "product":
        return ProductKernel(plan)
    covariance = "diagonal" if name == "diagonal" else "full"
    twist = Twist.model_validate({"covariance": covariance, "products": 1})
    # More particles than a batch has rows, or a few systems together.
    return ParticleFilter(plan, 12 if name == "wide" else 3, 2, twist=twist)


def job(model: DiffusionModel, kernel: str, seen: str, each: int = 3, seed: int = 5) -> SMCJob:
    return SMCJob.of("g", model, seed, kernel_by(kernel, model), seen_by(seen), each)


def offline(model: DiffusionModel, asked: SMCJob) -> SMCResult:
    number = torch.arange(asked.rows)
    example = number // asked.repeats
    factors = [factor.rows(example) for factor in asked.factors]
    seen = asked.observation.rows(example)
    return run(model, asked.kernel, seen, asked.seed, number, factors)


def broken(*_: Tensor) -> Tensor:
    raise RuntimeError("a broken kernel")


def assert_offline(model: DiffusionModel, asked: SMCJob, found: PosteriorResult) -> None:
    expected = offline(model, asked)
    for ours, theirs in zip(found.result.tensors(), expected.tensors(), strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert found.samples.shape == (asked.samples, *model.event)
    assert found.stats.network_evaluations == asked.cost == int(expected.evaluations.sum())


@pytest.mark.parametrize(
    ("kind", "kernel", "seen"),
    [
        ("gaussian", "mixed", "noisy"),  # of one example the covariance is exact, of the others not
        ("gaussian", "wide", "exact"),
        ("gaussian", "diagonal", "line"),
        ("gaussian", "repaint", "exact"),
        ("gaussian", "product", "line"),
        ("pixels", "mixed", "noisy"),
        ("bits", "mixed", "bits"),
        ("bits", "repaint", "bits"),
    ],
)
def test_the_answer_is_the_offline_one_alone_and_among_others(
    kind: str, kernel: str, seen: str, make_engine: Callable[..., Engine],
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    model: DiffusionModel = request.getfixturevalue(kind)
    engine, asked = make_engine(g=model), job(model, kernel, seen)
    alone = engine.submit(asked)
    assert_offline(model, asked, alone.result(120))
    assert alone.done == alone.cost
    other = job(model, kernel, seen, each=1, seed=6)
    x_0 = (torch.rand(3, *model.event) < 0.5).float()
    beside: list[Ticket[Any]] = [
        engine.submit(each)
        for each in (other, chains(model, 5), asked, terms(model, x_0), chains(model, 2))
    ]
    found = [ticket.result(120) for ticket in beside]
    assert_offline(model, other, found[0])
    # A wave is the same in any company, and so are its bits.
    again, first = found[2].result.tensors(), alone.result().result.tensors()
    assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))
    assert_close(found[1].samples, sample(model, 5, seed=7), rtol=1e-4, atol=1e-4)
    assert engine.pending == 0


def test_a_product_with_another_model_counts_its_calls_too(
    gaussian: DiffusionModel, make_engine: Callable[..., Engine]
) -> None:
    """Each of 7 steps of 9 systems of 3 particles calls both networks once."""
    seen, kernel = seen_by("noisy"), kernel_by("diagonal", gaussian)
    assert isinstance(kernel, ParticleFilter)
    kernel = replace(kernel, twist=Twist(covariance="independent"))
    factors = [Expert(gaussian)]
    asked = SMCJob.of("g", gaussian, 5, kernel, seen, 3, factors)
    ticket = make_engine(g=gaussian).submit(asked)
    assert_offline(gaussian, asked, ticket.result(120))
    assert ticket.done == ticket.cost == 9 * 3 * 7 * 2


def test_exact_is_said_of_the_deterministic_mode_alone(
    gaussian: DiffusionModel, make_engine: Callable[..., Engine]
) -> None:
    asked = job(gaussian, "mixed", "noisy")
    told = [
        make_engine(limits=CALLS | {"deterministic": mode}, g=gaussian).submit(asked).result(120)
        for mode in (True, False)
    ]
    assert [result.stats.batch_invariant for result in told] == [True, False]


def test_progress_and_evaluations_are_counted(
    gaussian: DiffusionModel, make_engine: Callable[..., Engine]
) -> None:
    metrics = Metrics()
    engine = make_engine(metrics, g=gaussian)
    asked = job(gaussian, "mixed", "noisy")
    # 3 particles by 6 steps of two evaluations and a last one of one, 9 systems.
    assert asked.cost == 9 * 3 * (6 * 2 + 1)
    assert engine.submit(asked).result(120).stats.network_evaluations == asked.cost
    value = metrics.registry.get_sample_value
    assert value("noneq_network_evaluations_total", {"model": "g"}) == asked.cost
    assert value("noneq_system_evaluations_total", {"model": "g"}) == asked.cost
    engine.submit(chains(gaussian, 2)).result(120)
    assert value("noneq_system_evaluations_total", {"model": "g"}) == asked.cost


def test_a_system_wider_than_a_batch_takes_several(
    faulty: DiffusionModel, mischief: SimpleNamespace, make_engine: Callable[..., Engine]
) -> None:
    """7 steps of one system of 12 particles by 8 rows: who comes waits for 8 rows at most."""
    engine, asked = make_engine(g=faulty), job(faulty, "wide", "noisy", each=1)
    mischief.sizes.clear()
    ticket = engine.submit(asked)
    found = ticket.result(120)
    assert ticket.done == ticket.cost
    assert set(mischief.sizes) == {8, 4}
    assert_offline(faulty, asked, found)


@pytest.mark.parametrize("most", [5, 1])
def test_where_memory_ends_fewer_rows_go_at_once(
    most: int,
    faulty: DiffusionModel,
    mischief: SimpleNamespace,
    make_engine: Callable[..., Engine],
) -> None:
    engine, asked = make_engine(g=faulty), job(faulty, "wide", "noisy", each=1)
    ticket = engine.submit(asked)
    mischief.most_rows = most
    result = ticket.result(120)
    mischief.most_rows = None
    assert max(mischief.sizes[-20:]) <= most
    assert_offline(faulty, asked, result)
    assert_close(engine.submit(chains(faulty, 3)).result(120).samples, sample(faulty, 3, seed=7))


def test_where_one_row_is_too_much_its_job_fails_and_no_other(
    faulty: DiffusionModel, mischief: SimpleNamespace, make_engine: Callable[..., Engine]
) -> None:
    engine, asked = make_engine(g=faulty), job(faulty, "mixed", "noisy")
    mischief.most_rows = 0
    with pytest.raises(OutOfMemory):
        engine.submit(asked).result(120)
    mischief.most_rows = None
    assert_offline(faulty, asked, engine.submit(asked).result(120))
    assert engine.pending == 0


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        (lambda out, rows: out.masked_fill(rows[:, None], torch.nan), NumericalFailure),
        (broken, InternalError),
    ],
)
def test_a_fault_ends_the_job_that_has_it_and_no_other(
    fault: Callable[..., Any],
    problem: type[Exception],
    faulty: DiffusionModel,
    mischief: SimpleNamespace,
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine(g=faulty)
    good = job(faulty, "mixed", "noisy")
    # Seen exactly, x_T is there already: where the network answers to it.
    far = Observation.of_reals(torch.tensor([[1000.0, 0.0]]), torch.tensor([[True, False]]))
    bad = SMCJob.of("g", faulty, 1, kernel_by("product", faulty), far, 2)
    mischief.on_marked = fault
    tickets = [engine.submit(each) for each in (good, bad, good)]
    with pytest.raises(problem):
        tickets[1].result(120)
    for ticket in (tickets[0], tickets[2]):
        assert_offline(faulty, good, ticket.result(120))
    assert engine.pending == 0


def test_who_leaves_frees_his_systems_at_the_next_step(
    faulty: DiffusionModel, mischief: SimpleNamespace, make_engine: Callable[..., Engine]
) -> None:
    metrics = Metrics()
    engine = make_engine(metrics, g=faulty)
    mischief.entered.clear()
    mischief.gate.clear()
    long = engine.submit(job(faulty, "wide", "noisy", each=50))
    assert mischief.entered.wait(60)
    other = engine.submit(job(faulty, "mixed", "noisy", each=1))
    assert long.cancel()
    mischief.gate.set()
    other.result(120)
    assert engine.drain(60)
    assert long.done < long.cost / 10
    assert engine.pending == 0
    for name in ("rows_running", "rows_waiting", "queue_bytes"):
        assert metrics.registry.get_sample_value(f"noneq_{name}") == 0


def test_a_look_shows_the_first_particles_of_each_system(
    gaussian: DiffusionModel, make_engine: Callable[..., Engine]
) -> None:
    """One system done, one on its way, one behind: two samples each."""
    engine, asked = make_engine(g=gaussian), job(gaussian, "wide", "exact", each=1)
    values = []
    ticket = engine.submit(asked)
    while not ticket.future.done():
        values.append(ticket.preview(5).result(60))
    seen = [look for look in values if look is not None]
    expected = ticket.result().samples
    for look in seen:
        x_0 = look.x_0()
        assert len(x_0) == len(look.finished) <= 5
        ended = torch.tensor(look.finished, dtype=torch.bool)
        assert torch.equal(x_0[ended], expected[: len(x_0)][ended])
        assert bool(x_0.isfinite().all())
        assert look.done <= ticket.cost


def test_a_compiled_network_is_called_as_it_was_written() -> None:
    """What is compiled keeps no graph to go back through twice."""
    space = DataSpace(kind="vector", shape=(2,))
    network = build(MLPConfig(features=2, outputs=1, width=8, depth=1))
    parts = network, space, "x_0", "upper"
    model = DiffusionModel(GaussianConfig(T=9).build(), *parts).eval()  # type: ignore[arg-type]
    asked = job(model, "mixed", "noisy")
    runner = SMCRunner(model, 32, compiled=True)
    expected = offline(model, asked)
    network.compile(backend="aot_eager", dynamic=True)
    runner.open(0, asked)
    entries = [Entry(0, row, 0, 0) for row in range(asked.rows)]
    batch = Batch(asked.lane, entries, ends=entries, num_steps=asked.positions)
    runner.run(batch)
    runner.receive(runner.collect(batch))
    assert_close(runner.result(0, STATS).result.samples, expected.samples, rtol=1e-4, atol=1e-4)


def test_parts_that_do_not_fit_are_refused(gaussian: DiffusionModel) -> None:
    kernel = kernel_by("mixed", gaussian)
    seen = Observation.of_reals(torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool), 1.0)
    with pytest.raises(ValueError, match=r"`observation` has shape \[1, 2\], came \[1, 3\]"):
        SMCJob("g", 0, kernel, seen, 1, (3,)).check(gaussian)
    with pytest.raises(ValueError, match="`costs` are of 6 systems, came 1"):
        SMCJob("g", 0, kernel, seen_by("noisy"), 2, (3,)).check(gaussian)
