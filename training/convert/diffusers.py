"""Read and write diffusers folders of pixel-space DDPM or DDIM pipelines with a UNet2DModel.

model_index.json    unet/config.json    unet/diffusion_pytorch_model.safetensors (or .bin)
scheduler/scheduler_config.json         (or all in one folder, as in early versions)

Writing keeps the tensors bit for bit.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from diffusion.checkpoint import Metadata
from diffusion.model import DiffusionModel
from diffusion.networks import UNetConfig, build
from diffusion.process import GaussianConfig
from training.convert.files import as_float32, checked, read_json, read_tensors, sha256, shards
from training.convert.found import ConvertError, Found, named, pixels, take
from training.convert.scheduler import PREDICTIONS, VARIANCES, SchedulerDocument, scheduler_settings
from training.convert.unet import UNetDocument, diffusers_key, unet_problems, unet_settings

PIPELINES = ("DDPMPipeline", "DDIMPipeline")
WEIGHTS = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.bin.index.json",
)

#: Names of attention layers before diffusers 0.15 -> today's.
_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def our_tensors(tensors: Mapping[str, Tensor], config: UNetConfig, where: str) -> dict[str, Tensor]:
    """Rename all of diffusers' tensors to our names.

    Raises:
        ConvertError: a tensor is missing, unexpected or of another shape.
    """
    renamed = {
        ".".join(_OLD.get(part, part) for part in name.split(".")): tensor
        for name, tensor in tensors.items()
    }
    if len(renamed) < len(tensors):
        raise ConvertError(f"{where}: an attention is present twice, by its old and its new names")
    with torch.device("meta"):
        wanted = build(config).state_dict()
    take(renamed, {diffusers_key(name): tensor for name, tensor in wanted.items()}, where)
    return {name: renamed[diffusers_key(name)] for name in wanted}


def read_diffusers(folder: Path, size: tuple[int, int] | None, levels: int) -> Found:
    """Read a pipeline's folder.

    Args:
        folder: the folder with model_index.json.
        size: height and width, if the folder does not give them.
        levels: number of levels of the training images.

    Raises:
        ConvertError: something cannot be converted; the message names it.
    """
    index = read_json(folder / "model_index.json")
    check_index(index, folder)
    unet, scheduler = (_part(folder, name) for name in ("unet", "scheduler"))
    paths = [folder / "model_index.json", unet / "config.json"]
    paths.append(scheduler / "scheduler_config.json")
    settings = [index, *(read_json(path) for path in paths[1:])]
    document = checked(settings[1], UNetDocument, str(paths[1]))
    process = checked(settings[2], SchedulerDocument, str(paths[2]))
    try:
        network = document.network()
        variance = process.variance(network.outputs)
        schedule, table = process.schedule()
    except (ConvertError, ValidationError) as error:
        raise ConvertError(f"{folder}: {error}") from error
    weights = next((unet / name for name in WEIGHTS if (unet / name).exists()), None)
    if weights is None:
        raise ConvertError(f"{unet}: no weights found: expected one of {', '.join(WEIGHTS)}")
    size = size or document.size
    if size is None:
        raise ConvertError(f"{paths[1]}: sample_size is not said: give --size HEIGHT WIDTH")
    tensors = our_tensors(as_float32(read_tensors(weights), weights), network, str(weights))
    files = [*paths, weights, *shards(weights)]
    return Found(
        library="diffusers",
        title=f"diffusers' {index['_class_name']}, converted",
        network=network,
        schedule=schedule,
        T=process.T,
        table=table,
        prediction=PREDICTIONS[process.prediction_type],
        variance=variance,
        space=pixels(document.in_channels, size, levels),
        tensors=tensors,
        files={str(path.relative_to(folder)): sha256(path) for path in files},
        documents={
            str(path.relative_to(folder)): said for path, said in zip(paths, settings, strict=True)
        },
        notes=process.notes(),
    )


def check_index(index: Mapping[str, Any], folder: Path) -> None:
    """Raise ConvertError unless it is an unconditional pixel-space pipeline."""
    kind = index.get("_class_name")
    parts = {name: value for name, value in index.items() if isinstance(value, list) and any(value)}
    others = {name: value for name, value in parts.items() if name not in ("unet", "scheduler")}
    held = ", ".join(f"{name} ({value[-1]})" for name, value in sorted(others.items()))
    if kind not in PIPELINES or others:
        latent = {"vae", "vqvae", "text_encoder", "tokenizer"} & others.keys()
        why = (
            f"a pipeline of latents or of text, with {held}"
            if latent
            else f"a pipeline of kind {kind!r}" + (f" with {held}" if held else "")
        )
        raise ConvertError(
            f"{folder}: {why}: only unconditional pipelines of pixels are converted, "
            f"{' or '.join(PIPELINES)} of one unet and one scheduler"
        )
    missing = {"unet", "scheduler"} - parts.keys()
    if missing:
        raise ConvertError(f"{folder}: model_index.json names no {named(missing)}")


def _part(folder: Path, name: str) -> Path:
    """The folder of a part's files: its own, or the index's, as in early versions."""
    return folder / name if (folder / name).is_dir() else folder


#: The oldest diffusers version known to read what is written here.
DIFFUSERS = "0.36.0"


def write_diffusers(model: DiffusionModel, metadata: Metadata, folder: Path) -> Path:
    """Write an artefact as a diffusers DDPMPipeline, and return its folder.

    Args:
        model: the model, as `checkpoint.load` returns it.
        metadata: its metadata, likewise.
        folder: a new or empty folder.

    Raises:
        ConvertError: diffusers has no such network or process; the message says what it lacks.
    """
    network, process = metadata.network, metadata.process
    problems = _problems(metadata)
    if problems:
        raise ConvertError(
            f"{metadata.name} cannot be a pipeline of diffusers: {'; '.join(problems)}"
        )
    assert isinstance(network, UNetConfig)  # `_problems` ensures these
    assert isinstance(process, GaussianConfig)
    assert metadata.variance is not None
    if folder.exists() and any(folder.iterdir()):
        raise ConvertError(f"{folder} holds files already: name an empty folder, or remove them")
    _, height, width = metadata.space.shape
    beta = model.process.beta.cpu()
    scheduler = scheduler_settings(process, beta, metadata.prediction, metadata.variance)
    index: dict[str, Any] = {
        "_class_name": "DDPMPipeline",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    _write_json(folder / "model_index.json", index)
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    _write_json(folder / "unet" / "config.json", unet_settings(network, (height, width)))
    tensors = {
        diffusers_key(name): tensor.detach().cpu().contiguous()
        for name, tensor in model.network.state_dict().items()
    }
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(tensors, weights, {"format": "pt"})
    weights.chmod(0o644)
    return folder


def _problems(metadata: Metadata) -> list[str]:
    """List the properties of an artefact that diffusers cannot express."""
    problems = []
    if not isinstance(metadata.process, GaussianConfig):
        problems.append(f"its process is {metadata.process.kind}, theirs are Gaussian")
    if metadata.prediction not in PREDICTIONS.values():
        problems.append(f"it predicts {metadata.prediction!r}")
    if metadata.variance not in VARIANCES.values():
        problems.append(f"its reverse kernel has variance {metadata.variance!r}")
    space = metadata.space
    ends = None if space.bounds is None else torch.stack(space.bounds).abs()
    if len(space.shape) != 3 or ends is None or not bool((ends == 1).all()):
        problems.append(f"its model units are not levels from -1 to 1 ({space})")
    if not isinstance(metadata.network, UNetConfig):
        problems.append(f"its network is of kind {metadata.network.kind!r}, no U-Net")
    elif len(space.shape) == 3:
        problems += unet_problems(metadata.network, (space.shape[1], space.shape[2]))
    return problems


def _write_json(path: Path, settings: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    said = {"_class_name": settings["_class_name"], "_diffusers_version": DIFFUSERS}
    path.write_text(json.dumps(said | settings, indent=2, sort_keys=True) + "\n")
