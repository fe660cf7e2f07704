"""Oracles small enough for a tick in about a millisecond, and a network that misbehaves on demand."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

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


@dataclass
class Mischief:
    """What a network does to its rows. A row is marked by a first element above 50."""

    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    on_marked: Callable[[Tensor, Tensor], Tensor] | None = None
    most_rows: int | None = None
    sizes: list[int] = field(default_factory=list)


class Mischievous(nn.Module):
    """The mixture, behind a gate, with faults."""

    clock = "log_snr"

    def __init__(self) -> None:
        super().__init__()
        self.inner = mixture()
        self.mischief = Mischief()
        self.mischief.gate.set()

    def forward(self, x_t: Tensor, time: Tensor) -> Tensor:
        mischief = self.mischief
        mischief.entered.set()
        assert mischief.gate.wait(30)
        mischief.sizes.append(len(x_t))
        if mischief.most_rows is not None and len(x_t) > mischief.most_rows:
            raise torch.OutOfMemoryError("no room")
        marked = x_t[:, 0] > 50
        out = self.inner(x_t.where(~marked[:, None], torch.zeros_like(x_t)), time)
        if mischief.on_marked is not None and bool(marked.any()):
            return mischief.on_marked(out, marked)
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
def mischief(faulty: DiffusionModel) -> Iterator[Mischief]:
    network = faulty.network
    assert isinstance(network, Mischievous)
    yield network.mischief
    network.mischief.gate.set()  # let a waiting engine go


MakeEngine = Callable[..., Engine]


@pytest.fixture
def make_engine() -> Iterator[MakeEngine]:
    """Engines that are warm, and stopped when the test is over."""
    made: list[Engine] = []

    def make(metrics: Metrics | None = None, **models_and_settings: Any) -> Engine:
        given = models_and_settings
        models = {k: v for k, v in given.items() if isinstance(v, DiffusionModel)}
        limits = {"batch_size": 8, "slots": 32, "threads": 1}
        limits |= {k: v for k, v in given.items() if k not in models}
        engine = Engine(models, Settings(**limits), metrics)
        made.append(engine)
        engine.warm()
        return engine

    yield make
    for engine in made:
        engine.stop()
