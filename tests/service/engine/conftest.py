"""Oracles small enough for a batch of a millisecond, and a network that misbehaves on demand."""

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from diffusion.model import DiffusionModel
from diffusion.networks import BitPatterns, GaussianMixture
from diffusion.process import BinomialConfig, GaussianConfig
from diffusion.space import DataSpace
from service.engine import Engine
from service.metrics import Metrics
from service.settings import Settings

T = 16


def mixture() -> GaussianMixture:
    covariances = torch.tensor([[[0.2, 0.0], [0.0, 0.2]], [[0.5, 0.2], [0.2, 0.3]]])
    means = torch.tensor([[1.0, -1.0], [-1.0, 0.5]])
    return GaussianMixture.from_values(torch.tensor([0.3, 0.7]), means, covariances)


class Mischievous(nn.Module):
    """The mixture, behind a gate, with faults. A row is marked by a first element above 50."""

    clock = "log_snr"

    def __init__(self) -> None:
        super().__init__()
        self.inner = mixture()
        self.mischief = SimpleNamespace(
            gate=threading.Event(),  # closed while cleared
            entered=threading.Event(),  # set when a call is at the gate
            on_marked=None,  # (output, marked rows) -> output, where there are any
            most_rows=None,  # beyond it memory runs out
            sizes=[],  # rows of each call
        )
        self.mischief.gate.set()

    def forward(self, x_t: Tensor, time: Tensor) -> Tensor:
        mischief = self.mischief
        mischief.entered.set()
        assert mischief.gate.wait(120)
        mischief.sizes.append(len(x_t))
        if mischief.most_rows is not None and len(x_t) > mischief.most_rows:
            raise torch.OutOfMemoryError("no room")
        marked = x_t[:, 0] > 50
        out: Tensor = self.inner(x_t.where(~marked[:, None], torch.zeros_like(x_t)), time)
        if mischief.on_marked is not None and bool(marked.any()):
            spoilt: Tensor = mischief.on_marked(out, marked)
            return spoilt
        return out


@pytest.fixture
def gaussian() -> DiffusionModel:
    space = DataSpace(kind="vector", shape=(2,))
    return DiffusionModel(GaussianConfig(T=T).build(), mixture(), space, "x_0", "moment").eval()


@pytest.fixture
def pixels() -> DiffusionModel:
    """Two 8-bit values, so that clipping and the discretised convention are met."""
    space = DataSpace(kind="vector", shape=(2,), shift=127.5, scale=64.0, levels=256)
    return DiffusionModel(GaussianConfig(T=T).build(), mixture(), space, "x_0", "lower").eval()


@pytest.fixture
def bits() -> DiffusionModel:
    patterns = torch.tensor([[1.0, 0, 0, 1], [0, 1, 1, 0], [1, 1, 0, 0]])
    network = BitPatterns.from_values(torch.tensor([0.5, 0.3, 0.2]), patterns)
    space = DataSpace(kind="bits", shape=(4,))
    return DiffusionModel(BinomialConfig(T=T).build(), network, space, "x_0", None).eval()


@pytest.fixture
def faulty() -> DiffusionModel:
    space = DataSpace(kind="vector", shape=(2,))
    process = GaussianConfig(T=T).build()
    return DiffusionModel(process, Mischievous(), space, "x_0", "moment").eval()


@pytest.fixture
def mischief(faulty: DiffusionModel) -> Iterator[SimpleNamespace]:
    network = faulty.network
    assert isinstance(network, Mischievous)
    yield network.mischief
    network.mischief.gate.set()  # let a waiting engine go


@pytest.fixture
def make_engine() -> Iterator[Callable[..., Engine]]:
    """Engines of some models, by keyword: warm, and stopped when the test is over."""
    made: list[Engine] = []

    def make(
        metrics: Metrics | None = None,
        limits: dict[str, int] | None = None,
        **models: DiffusionModel,
    ) -> Engine:
        given = {"batch_size": 8, "slots": 32, "threads": 1} | (limits or {})
        engine = Engine(models, Settings.model_validate(given), metrics)
        made.append(engine)
        engine.warm()
        return engine

    yield make
    for engine in made:
        engine.stop()
