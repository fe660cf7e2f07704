"""The artefact: what was saved is what is served, and nothing else is let in."""

import json
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffusion.checkpoint import (
    KEY,
    ArtefactError,
    Evaluation,
    Metadata,
    Provenance,
    load,
    read_metadata,
    rewrite,
    save,
)
from diffusion.distributions import Bernoulli, Normal
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
from diffusion.prediction import PredictionKind, VarianceKind
from diffusion.process import BinomialConfig, GaussianConfig, ProcessConfig
from diffusion.schedule import CosineSchedule, LogSnrSchedule, TableSchedule
from diffusion.space import DataSpace

T = 12
FIX = r"(export|copy|check|give)"


def described(
    network: NetworkConfig,
    process: ProcessConfig,
    space: DataSpace,
    prediction: PredictionKind,
    variance: VarianceKind | None,
) -> Metadata:
    return Metadata(
        name="some-model",
        process=process,
        network=network,
        prediction=prediction,
        variance=variance,
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
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter)
    return model


@torch.no_grad()
def answers(model: DiffusionModel) -> list[Tensor]:
    """What it says at several steps and strides."""
    t, s = torch.tensor([1, 3, 7, T]), torch.tensor([0, 2, 1, 5])
    x_t = torch.randn(4, *model.event, generator=torch.Generator().manual_seed(2))
    if model.space.kind == "bits":
        x_t = (x_t > 0).float()
    found = model.predict(x_t, t)
    kernel = found.kernel(s)
    if isinstance(kernel, Normal):
        return [found.x_0, kernel.mean, kernel.var]
    assert isinstance(kernel, Bernoulli)
    return [found.x_0, kernel.logits]


@pytest.mark.parametrize("metadata", KINDS, ids=lambda m: f"{m.network.kind}-{m.process.kind}")
def test_an_artefact_survives_its_round_trip(metadata: Metadata, tmp_path: Path) -> None:
    model, path = fresh(metadata), tmp_path / "some-model" / "model.safetensors"
    save(path, model, metadata)
    again, document = load(path)
    assert document == metadata == read_metadata(path)
    for found, wanted in zip(answers(again), answers(model), strict=True):
        assert torch.equal(found, wanted)
        assert bool(wanted.any())
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]
    assert path.stat().st_mode & 0o777 == 0o644
    first = path.read_bytes()
    save(path, again, document)
    assert path.read_bytes() == first


def test_a_learned_table_is_a_tensor_of_the_artefact(tmp_path: Path) -> None:
    metadata = small(process=GaussianConfig(T=T, schedule=TableSchedule()))
    model, path = fresh(metadata), tmp_path / "model.safetensors"
    model.process.beta[1:] = torch.linspace(0.01, 0.6, T)
    model.process.refresh()
    save(path, model, metadata)
    again, _ = load(path)
    assert torch.equal(again.process.beta, model.process.beta)
    assert torch.equal(again.process.alpha_bar, model.process.alpha_bar)
    assert again.process.beta.dtype == torch.float64


def test_weights_in_half_precision_are_served_in_single(tmp_path: Path) -> None:
    path = saved(tmp_path)
    tensors = load_file(path)
    halves = {n: t if n == "process.beta" else t.bfloat16() for n, t in tensors.items()}
    save_file(halves, path, {KEY: small().model_dump_json()})
    model, _ = load(path)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    for name, tensor in model.named_parameters():
        assert torch.equal(tensor, halves[name].float())


def test_a_new_document_keeps_the_tensors(tmp_path: Path) -> None:
    path = saved(tmp_path)
    before = load_file(path)
    measured = Evaluation(
        convention="density", split="test", count=100, bound=-1.5, standard_error=0.1,
        bits=-2.2, bits_per_dim=1.1, null=-3.0,
    )  # fmt: skip
    rewrite(path, small().model_copy(update={"evaluation": (measured,)}))
    assert read_metadata(path).evaluation == (measured,)
    after = load_file(path)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


# ---- what is refused ----


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


def refused(path: Path) -> str:
    """The message, which names the file and the fix."""
    with pytest.raises(ArtefactError) as caught:
        load(path)
    message = str(caught.value)
    assert str(path) in message
    assert re.search(FIX, message), message
    return message


def test_no_file(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "model.safetensors")


def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    refused(tmp_path / "model.safetensors")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"{}", bytes(1000), b"\xff" * 64])
def test_foreign_bytes(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert "not a readable .safetensors file" in refused(path)


@pytest.mark.parametrize("kept", [4, 100, -1])
def test_a_file_cut_short(kept: int, tmp_path: Path) -> None:
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:kept])
    assert "not a readable .safetensors file" in refused(path)


class Trap:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    path, trace = tmp_path / "model.safetensors", tmp_path / "trace"
    path.write_bytes(pickle.dumps(Trap(trace)))
    refused(path)
    torch.save({"network": Trap(trace)}, path)
    refused(path)
    assert not trace.exists()


def test_another_programs_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for metadata in (None, {"format": "pt"}):
        save_file({"weight": torch.zeros(3)}, path, metadata)
        assert "no noneq artefact" in refused(path)


@pytest.mark.parametrize("text", ["", "no JSON", "{"])
def test_a_document_that_is_no_json(text: str, tmp_path: Path) -> None:
    path = saved(tmp_path)
    save_file(load_file(path), path, {KEY: text})
    assert "no JSON" in refused(path)


@pytest.mark.parametrize("text", ["[1]", "null", "3", "{}"])
def test_a_document_without_a_version(text: str, tmp_path: Path) -> None:
    path = saved(tmp_path)
    save_file(load_file(path), path, {KEY: text})
    assert "format None, this version reads format 1" in refused(path)


@pytest.mark.parametrize("version", [0, 2, "1"])
def test_another_version(version: object, tmp_path: Path) -> None:
    path = saved(tmp_path)
    document(path, lambda d: d.update(format=version))
    assert f"format {version!r}, this version reads format 1" in refused(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.update(colour="red"), "colour"),
        (lambda d: d["process"].update(colour="red"), "process.gaussian.colour"),
        (lambda d: d["process"]["schedule"].update(colour="red"), "colour"),
        (lambda d: d["network"].update(colour="red"), "network.mlp.colour"),
        (lambda d: d["space"].update(colour="red"), "space.colour"),
        (lambda d: d["training"].update(colour="red"), "training.colour"),
        (lambda d: d.pop("network"), "network"),
        (lambda d: d.pop("training"), "training"),
        (lambda d: d.update(name="../../etc"), "name"),
        (lambda d: d.update(prediction="epsilon"), "prediction"),
        (lambda d: d["network"].update(kind="transformer"), "network"),
        (lambda d: d["process"].update(T=0), "process.gaussian.T"),
        (lambda d: d["process"]["schedule"].update(first=-9.0), "came values from"),
        (lambda d: d["space"].update(scale=0.0), "scale"),
        (lambda d: d.update(variance="moment"), "2 outputs an element, this one has 1"),
        (lambda d: d.update(variance=None), "variance"),
        (lambda d: d["space"].update(kind="bits", shift=0.0, scale=1.0), "binomial process"),
        (lambda d: d["space"].update(shift=math.nan), "space.shift"),
    ],
)
def test_a_document_that_does_not_hold(
    change: Callable[[dict[str, Any]], None], says: str, tmp_path: Path
) -> None:
    path = saved(tmp_path)
    document(path, change)
    assert says in refused(path)


MISFITS: dict[str, tuple[Metadata, dict[str, object]]] = {
    "features": (KINDS[0], {"space": DataSpace(kind="vector", shape=(3,))}),
    "dense-for-images": (KINDS[0], {"space": DataSpace(kind="image", shape=(2, 1, 1))}),
    "unet-for-vectors": (KINDS[5], {"space": DataSpace(kind="vector", shape=(1,))}),
    "channels": (KINDS[5], {"space": DataSpace(kind="image", shape=(3, 4, 4))}),
    "patches": (
        KINDS[5],
        {"network": KINDS[5].network.model_copy(update={"patch": 3, "channels": (16,)})},
    ),
    "readouts": (
        KINDS[0],
        {"network": MLPConfig(features=2, width=8, embedding=0, readout_steps=T - 1)},
    ),
    "rbf-readouts": (KINDS[1], {"network": RBFConfig(features=2, outputs=2, T=T - 1)}),
    "base-rate": (
        KINDS[4],
        {"network": BitPatternsConfig(components=2, features=3, base_rate=0.5)},
    ),
    "mixture-as-v": (KINDS[2], {"prediction": "v"}),
    "mixture-as-interpolated": (KINDS[2], {"variance": "interpolated"}),
    "patterns-as-f_b": (KINDS[4], {"prediction": "perturbation"}),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_parts_that_do_not_fit(misfit: str, tmp_path: Path) -> None:
    """Whole and consistent files, refused when they are loaded and not by the first request."""
    metadata, wrong = MISFITS[misfit]
    refused(saved(tmp_path, metadata.model_copy(update=wrong)))


def test_a_network_larger_than_any_machine(tmp_path: Path) -> None:
    path = saved(tmp_path)
    document(path, lambda d: d["network"].update(width=10**17))
    refused(path)


def set_nan(found: dict[str, Tensor]) -> None:
    found["network.first.weight"][0, 0] = math.nan


def set_infinite(found: dict[str, Tensor]) -> None:
    found["network.first.weight"][0, 0] = math.inf


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f.pop("network.first.weight"), "missing ['network.first.weight']"),
        (lambda f: f.pop("process.beta"), "missing ['process.beta']"),
        (lambda f: f.update(extra=torch.zeros(2)), "unknown ['extra']"),
        (
            lambda f: f.update({"network.first.weight": torch.zeros(8, 3)}),
            "network.first.weight has shape [8, 3], its network needs [8, 2]",
        ),
        (lambda f: f.update({"process.beta": torch.zeros(T)}), "process.beta has shape"),
        (set_nan, "network.first.weight holds NaN or infinity"),
        (set_infinite, "network.first.weight holds NaN or infinity"),
        (lambda f: f["process.beta"].neg_(), "beta"),
        (lambda f: f["process.beta"].fill_(0.5), "beta"),
    ],
)
def test_tensors_that_do_not_fit(
    change: Callable[[dict[str, Tensor]], None], says: str, tmp_path: Path
) -> None:
    path = saved(tmp_path)
    tensors(path, change)
    assert says in refused(path)


def test_a_schedule_and_its_table_agree(tmp_path: Path) -> None:
    """A named schedule's table is not another: only a "table" may hold values of its own."""
    path = saved(tmp_path)
    tensors(path, lambda f: f.update({"process.beta": 0.5 * f["process.beta"]}))
    assert "beta" in refused(path)


def test_metadata_alone_is_read_without_the_tensors(tmp_path: Path) -> None:
    path = saved(tmp_path)
    tensors(path, set_nan)
    assert read_metadata(path) == small()
    refused(path)


def test_what_cannot_be_read_back_is_not_written(tmp_path: Path) -> None:
    """JSON has no NaN and no infinity: either such a figure is refused, or it survives."""
    figures: dict[str, Any] = {
        "convention": "density", "split": "test", "count": 1, "bound": -math.inf,
        "standard_error": math.nan, "bits": 0.0, "bits_per_dim": 0.0, "null": 0.0,
    }  # fmt: skip
    try:
        measured = Evaluation(**figures)
    except ValidationError:
        return
    path = tmp_path / "model.safetensors"
    save(path, fresh(small()), small().model_copy(update={"evaluation": (measured,)}))
    assert read_metadata(path).evaluation[0].bound == -math.inf


def test_a_failed_save_leaves_the_artefact_as_it_was(tmp_path: Path) -> None:
    path = saved(tmp_path)
    before = path.read_bytes()
    model = fresh(small())
    model.register_buffer("shared", model.process.beta)  # safetensors refuses shared memory
    with pytest.raises(RuntimeError):
        save(path, model, small())
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["", "A", "a b", "-a", "a/b", "a" * 65])
def test_a_name_is_one_that_a_url_can_hold(name: str) -> None:
    with pytest.raises(ValidationError, match="name"):
        Metadata.model_validate(small().model_dump() | {"name": name})
