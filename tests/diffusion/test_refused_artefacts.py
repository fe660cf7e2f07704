"""What is no artefact, or not a whole one, is refused on load with what to do; nothing runs."""

import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusion.checkpoint import (
    KEY,
    ArtefactError,
    Evaluation,
    Metadata,
    load,
    read_metadata,
    save,
)
from diffusion.networks import (
    BitPatternsConfig,
    MLPConfig,
    RBFConfig,
)
from diffusion.profile import ProfileConfig
from diffusion.space import DataSpace
from tests.diffusion.artefacts import KINDS, T, document, fresh, saved, small, tensors

FIX = r"(export|copy|check|give|install)"


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
        (lambda d: d["space"].update(colour="red"), "space.vector.colour"),
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
        (lambda d: d["space"].update(shift=math.nan), "space.vector.shift"),
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


@pytest.mark.parametrize("name", ["", "A", "a b", "-a", "a/b", "a" * 65])
def test_a_name_is_one_that_a_url_can_hold(name: str) -> None:
    with pytest.raises(ValidationError, match="name"):
        Metadata.model_validate(small().model_dump() | {"name": name})


def spoilt(path: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """The tensors of an artefact with a profile, rewritten."""
    metadata = small(variance="optimal", profile=ProfileConfig(longest=3))
    saved(path.parent, metadata)
    found = load_file(path)
    change(found)
    save_file(found, path, {KEY: metadata.model_dump_json()})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: x.pop("profile.error"), "missing ['profile.error']"),
        (lambda x: x.update({"profile.last": x["profile.last"][1:]}), "profile.last has shape"),
        (lambda x: x["profile.error"][3:5].zero_(), "errors, variances and contrasts are above 0"),
        (lambda x: x["profile.spread"][2:].neg_(), "spreads are not below 0"),
        (lambda x: x["profile.paths"][3:].fill_(T), "path of 3 steps ascends"),
        (lambda x: x["profile.strata"][3:].fill_(T), "path of 3 steps ascends"),
        (lambda x: x["profile.mean"].fill_(math.nan), "NaN"),
    ],
)
def test_a_profile_that_none_can_have_measured(
    change: Callable[[dict[str, Tensor]], None], says: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    spoilt(path, change)
    assert says in refused(path)


def test_an_optimal_variance_without_a_profile(tmp_path: Path) -> None:
    path = saved(tmp_path, small(variance="optimal", profile=ProfileConfig(longest=3)))
    document(path, lambda d: d.pop("profile"))
    assert "profile" in refused(path)


def test_noise_is_not_predicted_where_no_signal_is_left(tmp_path: Path) -> None:
    metadata = KINDS[7]
    path = saved(tmp_path, metadata)
    found = load_file(path)
    found["process.beta"][-1] = 1.0
    save_file(found, path, {KEY: metadata.model_dump_json()})
    assert "says nothing of x_0 at t = T" in refused(path)
