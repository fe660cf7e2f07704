"""Rows whose network is told what was seen share batches with all others, and are as alone."""

from collections.abc import Callable
from concurrent.futures import CancelledError

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from diffusion.likelihood.bound import bound
from diffusion.model import DiffusionModel
from diffusion.networks import MLP, MLPConfig
from diffusion.observation import Observation
from diffusion.process import GaussianConfig
from diffusion.samplers import Ancestral, DPMSolver, sample
from diffusion.space import DataSpace
from service.engine import BoundJob, Engine, SampleJob
from service.engine.results import Frames
from tests.service.engine.conftest import T
from tests.service.engine.jobs import chains, terms


@pytest.fixture
def dense() -> DiffusionModel:
    """A network with weights, of 8-bit values."""
    torch.manual_seed(0)
    network = MLP(MLPConfig(features=3, width=32, zero_out=False, conditional=True))
    space = DataSpace(kind="vector", shape=(3,), shift=127.5, scale=64.0, levels=256)
    return DiffusionModel(GaussianConfig(T=T).build(), network, space, "v", "lower").eval()


def seen_of(model: DiffusionModel, rows: int, noise: float = 0.0) -> Observation:
    """Every other element, of values that differ between rows."""
    x = torch.arange(rows * model.space.dims).view(rows, *model.event)
    values = (x % 2).float() if model.space.flips else (x % 5 - 2) / 4
    known = x % 2 == 0 if noise == 0 else torch.ones_like(x, dtype=torch.bool)
    return model.process.saw(values, known, torch.full_like(values, noise))


@pytest.mark.parametrize("kind", ["gaussian", "bits", "dense"])
@pytest.mark.parametrize("pad", [False, True])
def test_every_kind_of_row_in_one_batch(
    kind: str, pad: bool, request: pytest.FixtureRequest, make_engine: Callable[..., Engine]
) -> None:
    """Samples, told rows, products and bounds: each what the library makes of it."""
    model: DiffusionModel = request.getfixturevalue(kind)
    engine = make_engine(g=model, limits={"deterministic": pad})
    exactly, noisily = seen_of(model, 3), seen_of(model, 3, 0.3)
    known, rows = exactly.to_network(), torch.arange(2)
    asked = {
        "free": chains(model, 3, seed=1),
        "told": chains(model, 3, seed=2, observation=known),
        "noise": chains(model, 3, seed=3, observation=noisily.to_network()),
        "product": chains(model, 3, seed=4, observation=exactly),
        "few": chains(model, 3, seed=5, sampler=Ancestral(steps=5), observation=known),
    }
    x_0 = exactly.values[:2]
    plain = terms(model, x_0, seed=6)
    given = BoundJob("g", x_0, 6, plain.steps, plain.convention, known.rows(rows))
    tickets = {name: engine.submit(job) for name, job in asked.items()}
    bounds = engine.submit(plain), engine.submit(given)
    for name, job in asked.items():
        found = tickets[name].result(120).samples
        sampler = Ancestral(steps=5) if name == "few" else None
        alone = sample(model, 3, seed=job.seed, sampler=sampler, observation=job.observation)
        assert_close(found, alone, rtol=1e-4, atol=1e-5)
        if name in ("told", "product", "few"):
            assert torch.equal(found[exactly.known], exactly.values[exactly.known])
    for ticket, seen in zip(bounds, (None, known.rows(rows)), strict=True):
        result = ticket.result(120).bound
        alone = bound(model, x_0, seed=6, convention=plain.convention, observation=seen)
        for part in ("bound", "prior", "standard_error"):
            assert_close(getattr(result, part), getattr(alone, part), rtol=1e-4, atol=1e-4)


def test_a_burst_and_single_steps_are_the_same(
    dense: DiffusionModel, make_engine: Callable[..., Engine]
) -> None:
    """Alone, rows advance many steps a batch; beside terms, one."""
    seen = seen_of(dense, 4).to_network()
    engine = make_engine(g=dense)
    alone = engine.submit(chains(dense, 4, observation=seen)).result(120).samples
    beside = engine.submit(terms(dense, torch.zeros(8, 3), count=14))
    found = engine.submit(chains(dense, 4, observation=seen)).result(120).samples
    beside.result(120)
    assert_close(found, alone, rtol=1e-4, atol=1e-5)


def test_frames_have_what_was_seen(
    dense: DiffusionModel, make_engine: Callable[..., Engine]
) -> None:
    """The network's estimate is y itself where y is exact, at every step."""
    seen, engine = seen_of(dense, 2).to_network(), make_engine(g=dense)
    plan = Ancestral().plan(dense)
    frames = Frames.spread(3, len(plan))
    job = SampleJob("g", 2, 7, plan, observation=seen, frames=frames)
    states = engine.submit(job).result(120).frame_states
    assert states is not None
    for estimate in states.x_0[:-1]:
        assert torch.equal(estimate[seen.known], seen.values[seen.known])


def test_a_cancelled_job_leaves_nothing_told(
    gaussian: DiffusionModel, make_engine: Callable[..., Engine]
) -> None:
    """Its slots are another's, who is told nothing."""
    engine = make_engine(g=gaussian, limits={"slots": 8})
    before = engine.submit(chains(gaussian, 8)).result(120).samples
    gone = engine.submit(chains(gaussian, 8, observation=seen_of(gaussian, 8).to_network()))
    gone.cancel()
    after = engine.submit(chains(gaussian, 8)).result(120).samples
    assert_close(after, before, rtol=1e-4, atol=1e-5)
    if gone.future.cancelled():
        with pytest.raises(CancelledError):
            gone.result(1)


def test_what_does_not_fit_is_refused(dense: DiffusionModel) -> None:
    seen = seen_of(dense, 2)
    plain = MLP(MLPConfig(features=3, width=8))
    deaf = DiffusionModel(dense.process, plain, dense.space, "v", "lower").eval()
    with pytest.raises(ValueError, match="cannot be told"):
        chains(deaf, 2, observation=seen.to_network()).check(deaf)
    job = terms(dense, torch.zeros(2, 3))
    for wrong, message in (
        (seen.rows(slice(1)).to_network(), "shape"),
        (seen, "to_network"),
    ):
        with pytest.raises(ValueError, match=message):
            BoundJob("g", job.x_0, 7, job.steps, job.convention, wrong).check(dense)


def test_its_bytes_count(gaussian: DiffusionModel) -> None:
    """A mean, a variance and a flag: 4 + 4 bytes an element and one a row."""
    seen = seen_of(gaussian, 3)
    sizes = [
        chains(gaussian, 3, observation=each).size(gaussian)
        for each in (None, seen, seen.to_network())
    ]
    assert [sizes[1] - sizes[0], sizes[2] - sizes[1]] == [8 * 3 * 2, 3]
    bounds = [terms(gaussian, torch.zeros(3, 2))]
    bounds.append(BoundJob("g", bounds[0].x_0, 7, bounds[0].steps, "density", seen.to_network()))
    assert bounds[1].size(gaussian) - bounds[0].size(gaussian) == 8 * 3 * 2 + 3


def test_noise_free_steps_follow_what_the_network_is_told(dense: DiffusionModel) -> None:
    """With noise in the observation as well: the network is told of it, kernels are not moved."""
    seen, sampler = seen_of(dense, 2, 0.3), DPMSolver(steps=5)
    with pytest.raises(ValueError, match="without noise"):
        sample(dense, 2, seed=1, sampler=sampler, observation=seen)
    found: Tensor = sample(dense, 2, seed=1, sampler=sampler, observation=seen.to_network())
    assert bool(found.isfinite().all())
