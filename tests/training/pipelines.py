"""Small pipelines of diffusers with random weights, as its own `save_pretrained` writes them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

diffusers = pytest.importorskip("diffusers")
Peer = Any  # an object of diffusers

SIDE = 8
T = 8

#: Every form of UNet2DModel that is converted, by what is special of it.
UNETS: dict[str, dict[str, Any]] = {
    "ddpm": {  # as google/ddpm-cifar10-32, narrower
        "block_out_channels": (16, 32, 32),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": None,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
    },
    "heads": {
        "block_out_channels": (16, 32),
        "down_block_types": ("AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D"),
        "attention_head_dim": 8,
    },
    "plain": {
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "add_attention": False,
        "dropout": 0.1,
    },
    "scale-shift": {
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 8,
    },
    "residual": {
        "block_out_channels": (16, 32, 32),
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 8,
    },
    "tiny": {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4,
    },
    "grey-wide": {
        "sample_size": (4, 8),
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (16,),
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
    },
}


def unet(name: str = "ddpm", **changes: object) -> Peer:
    """A UNet2DModel whose every tensor differs from its start."""
    torch.manual_seed(0)
    sizes = {"sample_size": SIDE, "layers_per_block": 1, "norm_num_groups": 8, **UNETS[name]}
    made = diffusers.UNet2DModel(**(sizes | changes)).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.1)
    return made


def ddpm(**changes: object) -> Peer:
    """A DDPMScheduler of few steps."""
    return diffusers.DDPMScheduler(**({"num_train_timesteps": T, "beta_end": 0.3} | changes))


def ddim(**changes: object) -> Peer:
    """A DDIMScheduler of few steps, from x_T down to x_0 as ours."""
    sizes = {"num_train_timesteps": T, "beta_end": 0.3, "timestep_spacing": "trailing"}
    return diffusers.DDIMScheduler(**(sizes | changes))


def saved(folder: Path, net: Peer, scheduler: Peer, *, safe: bool = True) -> Path:
    """The pipeline's folder."""
    kind = scheduler.__class__.__name__.removesuffix("Scheduler") + "Pipeline"
    getattr(diffusers, kind)(net, scheduler).save_pretrained(folder, safe_serialization=safe)
    return folder
