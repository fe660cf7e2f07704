"""A served folder of tiny models: a Gaussian mixture, bit patterns, untrained images."""

import base64
import struct
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from fastapi import FastAPI
from numpy.typing import ArrayLike
from PIL import Image
from safetensors.torch import save_file

from diffusion.calibration import Calibration, Coverage, Ranks
from diffusion.checkpoint import Metadata, Provenance, save
from diffusion.classifier import ClassifierMetadata
from diffusion.classifier import save as save_classifier
from diffusion.families import Exact, Noisy
from diffusion.model import DiffusionModel
from diffusion.networks import BitPatterns, GaussianMixture, TableMixture, UNetConfig, build
from diffusion.networks.encoder import EncoderConfig
from diffusion.process import BinomialConfig, GaussianConfig, MixedConfig
from diffusion.profile import ProfileConfig, even, pack
from diffusion.schedule import LogSnrSchedule
from diffusion.space import DataSpace
from diffusion.table import Category, Number, TableSpace
from service.api import streams
from service.settings import Settings
from tests.service.http.caller import connect, starting

SHIFT, SCALE = (1.0, -2.0), 2.0  # of the Gaussian mixture: data units are not its model units
PROVENANCE = Provenance(data="closed form")


def gaussian_mixture() -> tuple[DiffusionModel, Metadata]:
    means = torch.tensor([[-1.0, -0.6], [0.9, -0.2], [0.1, 1.1]], dtype=torch.float64)
    covariances = torch.tensor(
        [[[0.10, 0.04], [0.04, 0.08]], [[0.06, -0.03], [-0.03, 0.12]], [[0.15, 0.0], [0.0, 0.05]]],
        dtype=torch.float64,
    )
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    network = GaussianMixture.from_values(weights, means, covariances)
    process = GaussianConfig(T=100, schedule=LogSnrSchedule(first=8.0, last=-8.0))
    space = DataSpace(kind="vector", shape=(2,), shift=SHIFT, scale=SCALE)
    profiled = ProfileConfig(longest=30)
    profile = profiled.build(process.T)
    t = torch.arange(1, process.T + 1)
    profile.error[1:] = profile.last[1:] = t / process.T
    profile.mean[1:], profile.spread[1:] = -2 / t, 2 / t
    lengths = range(1, profile.longest + 1)
    profile.paths.copy_(pack([process.T - even(process.T, n).flip(0) for n in lengths]))
    profile.strata.copy_(pack([even(process.T - 1, n) for n in lengths]))
    model = DiffusionModel(process.build(), network, space, "x_0", "moment", profile)
    metadata = Metadata(
        name="gaussian-mixture",
        process=process,
        network=network.config,
        prediction="x_0",
        variance="moment",
        space=space,
        training=PROVENANCE,
        profile=profiled,
    )
    return model, metadata


PATTERNS = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 1], [1, 1, 1, 0], [0, 0, 1, 1]])
WEIGHTS = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)


def bit_patterns() -> tuple[DiffusionModel, Metadata]:
    network = BitPatterns.from_values(WEIGHTS, PATTERNS.double())
    process = BinomialConfig(T=200)
    space = DataSpace(kind="bits", shape=(4,))
    model = DiffusionModel(process.build(), network, space, "x_0", None)
    metadata = Metadata(
        name="bit-patterns",
        process=process,
        network=network.config,
        prediction="x_0",
        space=space,
        training=PROVENANCE,
    )
    return model, metadata


def grey_images() -> tuple[DiffusionModel, Metadata]:
    torch.manual_seed(3)
    config = UNetConfig(
        in_channels=1, outputs=1, channels=(8,), blocks=1, attention=(False,), norm_groups=4
    )
    process = GaussianConfig(T=8, schedule=LogSnrSchedule(first=8.0, last=-6.0))
    space = DataSpace(kind="image", shape=(1, 6, 8), shift=127.5, scale=127.5, levels=256)
    model = DiffusionModel(process.build(), build(config), space, "v", "lower")
    metadata = Metadata(
        name="grey",
        process=process,
        network=config,
        prediction="v",
        variance="lower",
        space=space,
        training=PROVENANCE,
    )
    return model, metadata


KINDS = ((0.3, 0.3, 0.4), (0.5, 0.5))  # what a table's categories decay to


def table() -> tuple[DiffusionModel, Metadata]:
    """Penguins, or so: a mass, a kind, a number of eggs and an answer, of three components."""
    columns = (
        Number(name="mass", knots=(3000.0, 4000.0, 6000.0), scores=(-1.5, 0.0, 1.5), low=0.0),
        Category(name="kind", labels=("Adelie", "Chinstrap", "Gentoo")),
        Number(name="eggs", knots=(0.0, 8.0), scores=(-2.0, 2.0), step=1.0, low=0.0),
        Category(name="ringed", labels=("no", "yes")),
    )
    network = TableMixture.from_values(
        KINDS,
        torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
        torch.tensor([[-1.2, 0.5], [0.8, -0.9], [0.3, 1.4]], dtype=torch.float64),
        torch.eye(2, dtype=torch.float64).mul(0.1).expand(3, 2, 2),
        torch.tensor(
            [[0.7, 0.2, 0.1, 0.9, 0.1], [0.1, 0.3, 0.6, 0.3, 0.7], [0.2, 0.6, 0.2, 0.5, 0.5]]
        ),
    )
    space = TableSpace(columns=columns)
    process = MixedConfig.of_table(space, 100, LogSnrSchedule(first=9.0, last=-9.0), KINDS)
    metadata = Metadata(
        name="table",
        process=process,
        network=network.config,
        prediction="x_0",
        variance="moment",
        space=space,
        training=PROVENANCE,
    )
    return DiffusionModel(process.build(), network, space, "x_0", "moment"), metadata


def calibration(family: Exact | Noisy, *, passed: bool = True) -> Calibration:
    counts = (100,) * 10 if passed else tuple(range(55, 155, 10))
    return Calibration(
        family=family,
        case="elements at random",
        count=1000,
        draws=19,
        steps=40,
        ranks=(Ranks(scalar="sum", counts=counts),),
        coverage=(Coverage(level=0.95, share=0.948, standard_error=0.003),),
        crps=1.0,
        crps_error=0.1,
    )


def told_images() -> tuple[DiffusionModel, Metadata]:
    torch.manual_seed(4)
    config = UNetConfig(
        channels=(8,), blocks=1, attention=(False,), norm_groups=4, conditional=True
    )
    process = GaussianConfig(T=50, schedule=LogSnrSchedule(first=8.0, last=-6.0))
    space = DataSpace(kind="image", shape=(1, 6, 8), shift=127.5, scale=127.5, levels=256)
    family = Exact(patterns=("half",))
    metadata = Metadata(
        name="told",
        process=process,
        network=config,
        prediction="v",
        variance="lower",
        space=space,
        training=PROVENANCE,
        told=(family, Noisy()),
        calibration=(calibration(family), calibration(Noisy(), passed=False)),
    )
    model = DiffusionModel(process.build(), build(config), space, "v", "lower")
    return model, metadata


def save_models(folder: Path) -> None:
    """A Gaussian mixture, bit patterns, untrained grey images."""
    for make in (gaussian_mixture, bit_patterns, grey_images):
        model, metadata = make()
        save(folder / metadata.name / "model.safetensors", model, metadata)


def save_animals(folder: Path) -> None:
    """An untrained classifier of the grey images: animals."""
    grey = grey_images()[1]
    document = ClassifierMetadata(
        name="animals",
        process=grey.process,
        network=EncoderConfig(labels=3, channels=(8,), patch=2),
        space=grey.space,
        labels=("cat", "dog", "crow"),
        training=PROVENANCE,
    )
    torch.manual_seed(0)
    save_classifier(folder / "animals" / "model.safetensors", document.build().eval(), document)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three good models, a card, a corrupt file and a foreign one."""
    found = tmp_path_factory.mktemp("models")
    save_models(found)
    (found / "gaussian-mixture" / "README.md").write_text("# A mixture\n", encoding="utf-8")
    whole = (found / "grey" / "model.safetensors").read_bytes()
    (found / "torn").mkdir()
    (found / "torn" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    (found / "foreign").mkdir()
    save_file({"weight": torch.zeros(2)}, found / "foreign" / "model.safetensors")
    (found / "empty").mkdir()
    return found


@pytest.fixture(scope="session")
def single(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Gaussian mixture alone, which is served within a moment."""
    found = tmp_path_factory.mktemp("single")
    (found / "gaussian-mixture").symlink_to(folder / "gaussian-mixture")
    return found


@asynccontextmanager
async def serving(settings: Settings, ready: bool = True) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the app in this process."""
    async with starting(settings, ready) as app, connect(app) as client:
        yield client


@pytest.fixture(scope="session")
async def client(folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(Settings(models=folder, device="cpu", batch_size=256, slots=4096)) as found:
        yield found


@pytest.fixture(scope="session")
def serve() -> Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]:
    """For tests with settings of their own."""
    return serving


@pytest.fixture(scope="session")
def png() -> Callable[..., str]:
    """A base64 PNG of an array [H, W] or [H, W, channels]."""

    def encode(pixels: ArrayLike) -> str:
        out = BytesIO()
        Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(out, format="PNG")
        return base64.b64encode(out.getvalue()).decode()

    return encode


@pytest.fixture(scope="session")
def bomb() -> str:
    """A small PNG whose header promises, and whose stream would unfold to, gigabytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(10_000_000), 9)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + chunks).decode()


@pytest.fixture(scope="session")
def mixture() -> DiffusionModel:
    """The Gaussian mixture that is served, in this process: what the answers are held against."""
    return gaussian_mixture()[0]


@pytest.fixture(scope="session")
def patterns() -> DiffusionModel:
    """The bit patterns that are served."""
    return bit_patterns()[0]


@pytest.fixture(scope="module")
async def app(folder: Path) -> AsyncIterator[FastAPI]:
    async with starting(Settings(models=folder, device="cpu", batch_size=4, slots=6)) as found:
        yield found


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks at the job all the time."""
    monkeypatch.setattr(streams, "CADENCE", 0.002)
