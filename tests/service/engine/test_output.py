"""Results that take their time to the host: handed out beside the next batch, and none is lost."""

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from diffusion.likelihood.bound import bound
from diffusion.model import DiffusionModel
from diffusion.samplers import DDIM, sample
from service.engine import Engine
from service.engine.device.runner import ChainRunner
from service.engine.device.transfer import HostCopies
from service.errors import NumericalFailure
from tests.service.engine.jobs import chains, terms


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What comes when: a batch, results sent, results waited for; a step per batch."""
    found: list[str] = []
    run = ChainRunner.run

    def send(_: HostCopies, tensors: Sequence[Tensor]) -> tuple[list[Tensor], Callable[[], None]]:
        found.append("sent")
        there = [torch.full_like(tensor, 1) for tensor in tensors]
        taken = [tensor.clone() for tensor in tensors]

        def arrive() -> None:
            found.append("waited")
            for place, tensor in zip(there, taken, strict=True):
                place.copy_(tensor)

        return there, arrive

    def noted(runner: ChainRunner, *given: object, **named: object) -> None:
        found.append("batch")
        run(runner, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr("service.engine.scheduling.scheduler.MULTI_STEP_SECONDS", 0.0)
    monkeypatch.setattr(HostCopies, "send", send)
    monkeypatch.setattr(ChainRunner, "run", noted)
    return found


def test_a_batches_results_travel_while_the_next_one_runs(
    log: list[str], gaussian: DiffusionModel, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(g=gaussian)
    log.clear()
    job = chains(gaussian, 2, sampler=DDIM(steps=4))
    found = engine.submit(job).result(120)
    assert_close(found.samples, sample(gaussian, 2, seed=7, sampler=DDIM(steps=4)))
    engine.stop()
    assert log == ["batch", "sent", *["batch", "sent", "waited"] * 3, "waited"]


def test_every_answer_is_the_one_asked_for(
    log: list[str],
    gaussian: DiffusionModel,
    bits: DiffusionModel,
    make_engine: Callable[..., Engine],
) -> None:
    """Of two models in turn, of both kinds, of more rows than slots; some are given up."""
    engine = make_engine(g=gaussian, b=bits, limits={"slots": 12})
    x_0 = torch.randn(5, 2)
    drawn = [engine.submit(chains(gaussian, 3 + i, seed=i)) for i in range(6)]
    flags = engine.submit(chains(bits, 20, name="b"))
    given_up = [engine.submit(chains(gaussian, 4, seed=99)) for _ in range(3)]
    told = engine.submit(terms(gaussian, x_0))
    for ticket in given_up:
        ticket.cancel()
    for i, ticket in enumerate(drawn):
        wanted = sample(gaussian, 3 + i, seed=i)
        assert_close(ticket.result(120).samples, wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(flags.result(120).samples, sample(bits, 20, seed=7))
    wanted = bound(gaussian, x_0, seed=7, convention="density").bound
    assert_close(told.result(120).bound.bound, wanted, rtol=1e-4, atol=1e-4)
    assert engine.drain(60)
    assert engine.pending == 0
    assert log.count("sent") == log.count("waited")


def test_a_sample_that_is_not_finite_ends_its_job_alone(
    log: list[str],
    faulty: DiffusionModel,
    mischief: SimpleNamespace,
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine(f=faulty)
    mischief.on_marked = lambda out, marked: out.masked_fill(marked[:, None], math.nan)
    marked = chains(faulty, 2, name="f", first=16, start=torch.tensor([[0.0, 0.0], [99.0, 0.0]]))
    bad, good = engine.submit(marked), engine.submit(chains(faulty, 3, name="f"))
    assert isinstance(bad.future.exception(120), NumericalFailure)
    assert bool(good.result(120).samples.isfinite().all())
    assert log


def test_a_look_waits_for_what_is_on_its_way(
    log: list[str], gaussian: DiffusionModel, make_engine: Callable[..., Engine]
) -> None:
    """A row that has ended is seen as it ended, though its results were still travelling."""
    engine = make_engine(g=gaussian, limits={"batch_size": 1, "slots": 4})
    ticket = engine.submit(chains(gaussian, 400))
    wanted = sample(gaussian, 400, seed=7)
    while (seen := ticket.preview(1).result(120)) is not None and not seen.finished[0]:
        pass
    assert seen is not None
    assert_close(seen.x_0()[0], wanted[0], rtol=1e-4, atol=1e-5)
    ticket.cancel()
    assert "waited" in log
