"""The way back: an artefact as a folder that diffusers loads, with the same tensors to the bit."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from diffusion.checkpoint import Metadata
from diffusion.model import DiffusionModel
from diffusion.networks import UNetConfig
from diffusion.process import GaussianConfig
from training.convert.found import ConvertError
from training.convert.scheduler import PREDICTIONS, VARIANCES, scheduler_settings
from training.convert.unet import diffusers_key, unet_problems, unet_settings

#: The oldest that is known to read what is written here.
DIFFUSERS = "0.36.0"


def write_diffusers(model: DiffusionModel, metadata: Metadata, folder: Path) -> Path:
    """Write an artefact as a DDPMPipeline of diffusers; returns its folder.

    Args:
        model: as `checkpoint.load` gives it.
        metadata: its document.
        folder: to be made, or empty.

    Raises:
        ConvertError: diffusers has no such network or process; what it lacks is named.
    """
    network, process = metadata.network, metadata.process
    problems = _problems(metadata)
    if problems:
        raise ConvertError(
            f"{metadata.name} cannot be a pipeline of diffusers: {'; '.join(problems)}"
        )
    assert isinstance(network, UNetConfig)  # `_problems` sees to it
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
    """What diffusers has no word for."""
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
        problems.append(
            "its model units are not levels from -1 to 1 "
            f"({space.kind}, levels {space.levels}, shift {space.shift}, scale {space.scale})"
        )
    if not isinstance(metadata.network, UNetConfig):
        problems.append(f"its network is of kind {metadata.network.kind!r}, no U-Net")
    elif len(space.shape) == 3:
        problems += unet_problems(metadata.network, (space.shape[1], space.shape[2]))
    return problems


def _write_json(path: Path, settings: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    said = {"_class_name": settings["_class_name"], "_diffusers_version": DIFFUSERS}
    path.write_text(json.dumps(said | settings, indent=2, sort_keys=True) + "\n")
