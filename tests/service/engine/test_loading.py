"""Models that come and go while the engine runs."""

import gc
import weakref
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from diffusion.model import DiffusionModel
from diffusion.samplers import Ancestral, sample
from service.engine import Engine
from service.engine.scheduling.batch import ModelVersion
from service.errors import Draining, ModelFailed, ModelRetired, UnknownModel
from tests.service.engine.jobs import chains, terms

NEW = ModelVersion("g", 1)


def shifted(model: DiffusionModel) -> DiffusionModel:
    """The same model with other weights."""
    other = deepcopy(model)
    with torch.no_grad():
        dict(other.network.named_buffers())["means"].add_(0.5)
    return other


def test_a_model_that_comes_later_gives_the_answers_of_one_that_was_there(
    gaussian: DiffusionModel, bits: DiffusionModel, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(g=gaussian)
    with pytest.raises(UnknownModel):
        engine.submit(chains(bits, 2, name="b"))
    engine.load(ModelVersion("b"), bits).result(120)
    job = chains(bits, 5, name="b")
    found = engine.submit(job).result(120)
    assert torch.equal(found.samples, make_engine(b=bits).submit(job).result(120).samples)


def test_jobs_end_on_the_version_that_accepted_them(
    faulty: DiffusionModel,
    gaussian: DiffusionModel,
    mischief: SimpleNamespace,
    make_engine: Callable[..., Engine],
) -> None:
    """Running, waiting, and new ones; the old version is then forgotten."""
    engine, new = make_engine(g=faulty), shifted(gaussian)
    mischief.gate.clear()
    mischief.entered.clear()
    running = engine.submit(chains(faulty, 8))
    assert mischief.entered.wait(120)
    waiting = (
        engine.submit(chains(faulty, 3, seed=11)),
        engine.submit(terms(faulty, torch.zeros(2, 2))),
    )
    loaded = engine.load(NEW, new)
    mischief.gate.set()
    loaded.result(120)
    closed = engine.retire(ModelVersion("g"))
    with pytest.raises(ModelRetired):
        engine.submit(chains(faulty, 1))
    latest = engine.submit(replace(chains(new, 3, seed=11), version=1)).result(120)
    old = waiting[0].result(120).samples
    assert running.result(120).samples.isfinite().all()
    assert waiting[1].result(120).bound.bound.isfinite().all()
    closed.result(120)
    for model, found in ((gaussian, old), (new, latest.samples)):
        torch.testing.assert_close(found, sample(model, 3, seed=11), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(old, latest.samples)
    assert engine._models.names == ["g"]
    assert {lane.version for lane in engine._models.runners} == {1}
    assert {lane.version for lane in engine._throughput} == {1}


def test_nothing_of_a_closed_version_is_kept(
    gaussian: DiffusionModel, make_engine: Callable[..., Engine]
) -> None:
    engine, gone = make_engine(g=gaussian), []
    for version in range(1, 4):
        model = shifted(gaussian)
        gone.append(weakref.ref(model.network))
        engine.load(ModelVersion("g", version), model).result(120)
        engine.retire(ModelVersion("g", version - 1)).result(120)
        engine.submit(replace(chains(model, 2), version=version)).result(120)
        del model
    engine.retire(ModelVersion("g", 3)).result(120)
    gc.collect()
    assert [ref() for ref in gone] == [None, None, None]
    with pytest.raises(UnknownModel):
        engine.submit(replace(chains(gaussian, 1), version=4))


def test_others_are_served_while_a_model_is_warmed_up(
    gaussian: DiffusionModel,
    faulty: DiffusionModel,
    mischief: SimpleNamespace,
    make_engine: Callable[..., Engine],
) -> None:
    """Requests of every moment of it are answered before it is over, for batches have turns."""
    engine = make_engine(g=gaussian)
    mischief.sizes.clear()
    loading = engine.load(ModelVersion("f"), faulty)
    answered = 0
    while not loading.done():
        engine.submit(chains(gaussian, 1, sampler=Ancestral(steps=2))).result(120)
        answered += not loading.done()
    assert answered >= 5
    assert loading.result(120) is None
    assert len(mischief.sizes) > 10


def test_one_that_fails_leaves_the_others(
    gaussian: DiffusionModel,
    faulty: DiffusionModel,
    mischief: SimpleNamespace,
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine(g=gaussian)
    mischief.most_rows = 0
    with pytest.raises(ModelFailed, match="first network call"):
        engine.load(NEW, faulty).result(120)
    assert engine.submit(chains(gaussian, 2)).result(120).samples.isfinite().all()
    with pytest.raises(ModelRetired):  # never served: its caller prepares the request anew
        engine.submit(replace(chains(faulty, 1), version=1))
    mischief.most_rows = None
    engine.load(ModelVersion("g", 2), faulty).result(120)
    engine.submit(replace(chains(faulty, 1), version=2)).result(120)


def test_an_engine_that_ends_tells_those_who_wait_for_a_model(
    faulty: DiffusionModel, mischief: SimpleNamespace, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(g=faulty)
    mischief.gate.clear()
    mischief.entered.clear()
    engine.submit(chains(faulty, 1))
    assert mischief.entered.wait(120)
    waiting = engine.load(NEW, faulty), engine.load(ModelVersion("g", 2), faulty)
    closing = engine.retire(ModelVersion("g"))
    engine.stop(0.0)
    mischief.gate.set()
    for future in (*waiting, closing):
        with pytest.raises(Draining):
            future.result(120)
    with pytest.raises(Draining):
        engine.load(NEW, faulty)
