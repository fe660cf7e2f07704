"""Several engines behind one door: a job is done where least is owed, or in parts by all."""

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from diffusion.model import DiffusionModel
from diffusion.observation import Observation
from diffusion.posterior.factors import Expert
from diffusion.posterior.particle_filter import ParticleFilter
from diffusion.posterior.twist import Twist
from diffusion.samplers import DDIM, Ancestral
from service.engine import Engine, SampleJob, SMCJob
from service.engine.jobs import Job
from service.engine.results import Frames, JobResult, LoglikResult, PosteriorResult, SampleResult
from service.engine.router import Router
from service.engine.scheduling.batch import ModelVersion
from service.errors import InternalError, ModelRetired, QueueFull
from tests.service.engine.jobs import chains, terms, trajectories

ROWS = 21
CPUS = ["cpu", "cpu"]
LIMITS = {"batch_size": 4, "slots": 16, "threads": 1}


@pytest.fixture
def splitting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even the shortest job is split."""
    monkeypatch.setattr("service.engine.router.MIN_SECONDS", 1e-9)


@pytest.fixture
def two(
    gaussian: DiffusionModel,
    make_engine: Callable[..., Engine],
    splitting: None,  # noqa: ARG001
) -> Router:
    return Router([make_engine(limits=LIMITS, g=deepcopy(gaussian)) for _ in range(2)], CPUS)


def data() -> Tensor:
    return torch.randn(ROWS, 2, generator=torch.Generator().manual_seed(1))


def seen() -> Observation:
    known = torch.rand(ROWS, 2, generator=torch.Generator().manual_seed(2)) < 0.5
    return Observation.of_reals(data(), known, 0.3)


def frames(model: DiffusionModel) -> SampleJob:
    plan = DDIM(steps=6).plan(model)
    return SampleJob("g", ROWS, 3, plan, frames=Frames.spread(3, len(plan)), answer_bytes=1000)


def systems(model: DiffusionModel) -> SMCJob:
    kernel = ParticleFilter(Ancestral(steps=5).plan(model), 3, 2)
    return SMCJob.of("g", model, 5, kernel, seen(), 2)


JOBS: dict[str, Callable[[DiffusionModel], Job[JobResult]]] = {
    "chains": lambda model: chains(model, ROWS),
    "observed": lambda model: chains(model, ROWS, observation=seen()),
    "started": lambda model: chains(model, ROWS, first=5, start=data()),
    "frames": frames,
    "terms": lambda model: terms(model, data(), count=6),
    "trajectories": lambda model: trajectories(model, data()),
    "systems": systems,
}  # type: ignore[dict-item]


def tensors(found: JobResult) -> list[Tensor]:
    if isinstance(found, SampleResult):
        kept = found.frame_states
        return [found.samples, *([] if kept is None else [kept.x, kept.x_0])]
    if isinstance(found, LoglikResult):
        return [found.values, *(x for x in vars(found.bound).values())]
    assert isinstance(found, PosteriorResult)
    return list(found.result.tensors())


@pytest.mark.parametrize("name", JOBS)
def test_a_split_job_gives_the_result_of_the_whole(
    name: str, gaussian: DiffusionModel, two: Router, make_engine: Callable[..., Engine]
) -> None:
    job = JOBS[name](gaussian)
    whole = make_engine(limits=LIMITS, g=gaussian).submit(job).result(60)
    split = two.submit(job)
    assert split.cost == job.cost
    found = split.result(60)
    assert two.accepted == 2
    assert split.done == found.stats.network_evaluations == job.cost
    assert all(engine.accepted == 1 for engine in two._engines)
    for ours, theirs in zip(tensors(found), tensors(whole), strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_parts_of_parts_are_parts(gaussian: DiffusionModel) -> None:
    for make in JOBS.values():
        job = make(gaussian)
        step = job.each
        part = job.part(3 * step, 9 * step).part(2 * step, 4 * step)
        again = job.part(5 * step, 7 * step)
        assert part.shape == again.shape
        assert part.first == again.first  # type: ignore[attr-defined]


@pytest.mark.usefixtures("splitting")
def test_in_deterministic_mode_the_bits_are_the_same(
    gaussian: DiffusionModel, make_engine: Callable[..., Engine]
) -> None:
    limits = {**LIMITS, "deterministic": True}
    engines = [make_engine(limits=limits, g=deepcopy(gaussian)) for _ in range(3)]
    job = chains(gaussian, ROWS)
    whole, split = (
        engines[2].submit(job).result(60),
        Router(engines[:2], CPUS).submit(job).result(60),
    )
    if not whole.stats.batch_invariant:
        pytest.skip("this machine's kernels look at a row's place")
    assert split.stats.batch_invariant
    assert torch.equal(whole.samples, split.samples)


def test_short_jobs_stay_whole_and_go_where_least_is_owed(
    faulty: DiffusionModel,
    gaussian: DiffusionModel,
    mischief: SimpleNamespace,
    make_engine: Callable[..., Engine],
) -> None:
    busy, idle = (make_engine(limits=LIMITS, g=model) for model in (faulty, gaussian))
    router = Router([busy, idle], CPUS)
    mischief.gate.clear()
    first = busy.submit(chains(faulty, 30))
    for _ in range(4):
        router.submit(chains(gaussian, 2)).result(60)
    assert (busy.accepted, idle.accepted) == (1, 4)
    mischief.gate.set()
    first.result(60)
    for _ in range(4):  # with nothing owed they take turns
        router.submit(chains(gaussian, 2)).result(60)
    assert idle.accepted == 6


@pytest.mark.usefixtures("splitting")
def test_a_part_that_fails_ends_the_whole(
    faulty: DiffusionModel, mischief: SimpleNamespace, make_engine: Callable[..., Engine]
) -> None:
    engines = [make_engine(limits=LIMITS, g=faulty) for _ in range(2)]

    def broken(*_: Tensor) -> Tensor:
        raise RuntimeError("a broken kernel")

    mischief.on_marked = broken
    start = torch.zeros(ROWS, 2)
    start[-1] = 100.0  # in the second part
    ticket = Router(engines, CPUS).submit(chains(faulty, ROWS, first=9, start=start))
    with pytest.raises(InternalError, match="broken kernel"):
        ticket.result(60)
    wait_until_idle(engines)


@pytest.mark.usefixtures("splitting")
def test_cancelling_the_whole_frees_every_part(
    faulty: DiffusionModel, mischief: SimpleNamespace, make_engine: Callable[..., Engine]
) -> None:
    engines = [make_engine(limits=LIMITS, g=faulty) for _ in range(2)]
    mischief.gate.clear()
    ticket = Router(engines, CPUS).submit(chains(faulty, ROWS))
    hold = ticket.hold_bytes()
    assert hold.size > 0
    assert sum(engine.pending for engine in engines) == ticket.cost
    assert ticket.cancel()
    mischief.gate.set()
    wait_until_idle(engines)
    hold.resize(10)
    assert sum(engine.held for engine in engines) == hold.size == 10
    hold.release()
    assert sum(engine.held for engine in engines) == 0


@pytest.mark.usefixtures("splitting")
def test_a_refused_part_refuses_the_whole(
    faulty: DiffusionModel,
    mischief: SimpleNamespace,
    make_engine: Callable[..., Engine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = make_engine(limits=LIMITS, g=faulty)
    full = make_engine(limits={**LIMITS, "max_queue_cost": 5}, g=faulty)
    mischief.gate.clear()
    full.submit(chains(faulty, 1))
    router = Router([free, full], CPUS)
    order = iter([free, full])
    monkeypatch.setattr(Router, "_least", lambda _: next(order))
    with pytest.raises(QueueFull):
        router.submit(chains(faulty, ROWS))
    mischief.gate.set()
    wait_until_idle([free, full])


def test_a_job_with_networks_of_its_own_stays_on_the_first_device(
    gaussian: DiffusionModel, two: Router
) -> None:
    twist = Twist.model_validate({"covariance": "diagonal"})
    kernel = ParticleFilter(Ancestral(steps=3).plan(gaussian), 3, 2, twist=twist)
    job = SMCJob.of("g", gaussian, 5, kernel, seen(), 1, [Expert(gaussian)])
    two.submit(job).result(60)
    assert [engine.accepted for engine in two._engines] == [1, 0]


def test_it_drains_and_stops_as_one(two: Router, gaussian: DiffusionModel) -> None:
    assert two.alive
    assert two.ready
    ticket = two.submit(chains(gaussian, ROWS))
    assert two.drain(60)
    assert ticket.future.done()
    assert not two.ready
    assert not two.alive


def test_models_come_and_go_on_every_device(two: Router, gaussian: DiffusionModel) -> None:
    key = ModelVersion("g", 1)
    two.load(key, gaussian).result(60)
    job = replace(chains(gaussian, ROWS), version=1)
    two.retire(ModelVersion("g", 0)).result(60)
    assert len(two.submit(job).result(60).samples) == ROWS
    with pytest.raises(ModelRetired):
        two.submit(chains(gaussian, ROWS))
    assert two.check(job) > 0


def test_background_work_stays_whole(two: Router, gaussian: DiffusionModel) -> None:
    two.submit(chains(gaussian, ROWS), background=True).result(60)
    assert two.accepted == 1


def wait_until_idle(engines: list[Engine]) -> None:
    end = time.monotonic() + 60
    while any(engine.pending for engine in engines):
        assert time.monotonic() < end
        time.sleep(0.005)
