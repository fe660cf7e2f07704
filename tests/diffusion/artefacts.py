"""Artefacts of every kind, and how to spoil them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffusion.checkpoint import (
    KEY,
    Metadata,
    Provenance,
    save,
)
from diffusion.model import DiffusionModel
from diffusion.networks import (
    BitPatterns,
    BitPatternsConfig,
    GaussianMixture,
    GaussianMixtureConfig,
    MLPConfig,
    NetworkConfig,
    RBFConfig,
    UNetConfig,
)
from diffusion.process import (
    BinomialConfig,
    GaussianConfig,
    PredictionKind,
    ProcessConfig,
    VarianceKind,
)
from diffusion.profile import ProfileConfig, even, pack
from diffusion.schedule import CosineSchedule, LogSnrSchedule, TableSchedule
from diffusion.space import DataSpace

T = 12


def described(
    network: NetworkConfig,
    process: ProcessConfig,
    space: DataSpace,
    prediction: PredictionKind,
    variance: VarianceKind | None,
    profile: ProfileConfig | None = None,
) -> Metadata:
    return Metadata(
        name="some-model",
        process=process,
        network=network,
        prediction=prediction,
        variance=variance,
        profile=profile,
        space=space,
        training=Provenance(
            data="roll", checksum="sha256:00", steps=7, seed=3, config={"batch": 64, "betas": [0.9]}
        ),
    )


def small(**changes: object) -> Metadata:
    """A dense network for two real numbers."""
    parts: dict[str, Any] = {
        "network": MLPConfig(features=2, width=8, depth=2, zero_out=False),
        "process": GaussianConfig(T=T, schedule=LogSnrSchedule()),
        "space": DataSpace(kind="vector", shape=(2,), shift=(1.0, 0.1), scale=3.0),
        "prediction": "v",
        "variance": "lower",
    }
    parts.update(changes)
    return described(**parts)


KINDS = [
    small(),
    small(
        network=RBFConfig(features=2, outputs=2, T=T, zero_out=False),
        prediction="perturbation",
        variance=None,
        process=GaussianConfig(T=T, schedule=CosineSchedule(offset=0.02)),
    ),
    small(
        network=GaussianMixtureConfig(components=2, features=2),
        prediction="x_0",
        variance="moment",
    ),
    small(
        network=MLPConfig(features=3, width=8, depth=2, zero_out=False),
        process=BinomialConfig(T=T, base_rate=0.3),
        space=DataSpace(kind="bits", shape=(3,)),
        prediction="perturbation",
        variance=None,
    ),
    small(
        network=BitPatternsConfig(components=2, features=3, base_rate=0.3),
        process=BinomialConfig(T=T, base_rate=0.3),
        space=DataSpace(kind="bits", shape=(3,)),
        prediction="x_0",
        variance=None,
    ),
    small(
        network=UNetConfig(
            in_channels=1, channels=(8,), attention=(False,), blocks=1, norm_groups=4
        ),
        space=DataSpace(kind="image", shape=(1, 4, 4), shift=127.5, scale=127.5, levels=256),
    ),
    small(variance="optimal", profile=ProfileConfig(longest=3)),
    small(prediction="eps", process=GaussianConfig(T=T, schedule=TableSchedule())),
]


def fresh(metadata: Metadata) -> DiffusionModel:
    """The model with random weights; an oracle with values of its own."""
    torch.manual_seed(1)
    model = metadata.build().eval()
    if isinstance(model.network, GaussianMixture):
        means = torch.tensor([[1.0, 2.0], [-1.0, 0.0]])
        covariances = torch.tensor([[[0.5, 0.1], [0.1, 0.4]]]).repeat(2, 1, 1)
        model.network = GaussianMixture.from_values(torch.tensor([0.3, 0.7]), means, covariances)
    if isinstance(model.network, BitPatterns):
        patterns = torch.tensor([[1.0, 0, 1], [0, 1, 1]])
        model.network = BitPatterns.from_values(torch.tensor([0.3, 0.7]), patterns, 0.3)
    if model.profile is not None:
        for table in (model.profile.error, model.profile.last, model.profile.spread):
            table[1:] = torch.linspace(0.01, 0.9, T)
        lengths = range(1, model.profile.longest + 1)
        model.profile.paths.copy_(pack([even(T, steps) for steps in lengths]))
        model.profile.strata.copy_(pack([even(T - 1, steps) for steps in lengths]))
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter)
    return model


def saved(folder: Path, metadata: Metadata | None = None) -> Path:
    path = folder / "model.safetensors"
    metadata = metadata or small()
    save(path, fresh(metadata), metadata)
    return path


def document(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite the JSON of an artefact."""
    with safe_open(path, framework="pt") as file:
        found = json.loads(file.metadata()[KEY])
    change(found)
    save_file(load_file(path), path, {KEY: json.dumps(found)})


def tensors(path: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Rewrite the tensors of an artefact."""
    found = load_file(path)
    change(found)
    save_file(found, path, {KEY: small().model_dump_json()})
