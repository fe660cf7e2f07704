"""Write one U-Net both as a diffusers pipeline folder and as a noneq artefact.

It has DDPM's form (Ho et al. 2020) at 16 x 16 pixels with attention at the lowest level, T = 1000
linear betas, eps, x_0hat clipped to the data's range, and the lower variance. The weights are
random, since only the speed is compared.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from diffusion.checkpoint import Metadata, Provenance, load, save
from diffusion.networks import UNetConfig
from diffusion.process import GaussianConfig
from diffusion.schedule import LinearSchedule
from diffusion.space import DataSpace
from training.convert.unet import diffusers_key

T: Final = 1000
SIDE: Final = 16
MODEL: Final = "unet"  # its name at noneq
PIPELINE, MODELS = "pipeline", "models"  # the two folders


def write(folder: Path, channels: Sequence[int]) -> None:
    """Write both forms of the network with these channels per level under `folder`."""
    torch.manual_seed(0)
    lower = len(channels) - 1
    peer = UNet2DModel(
        sample_size=SIDE,
        in_channels=1,
        out_channels=1,
        block_out_channels=tuple(channels),
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * lower + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * lower,
        attention_head_dim=None,
        norm_num_groups=8,
    )
    scheduler = DDPMScheduler(num_train_timesteps=T, variance_type="fixed_small", clip_sample=True)
    DDPMPipeline(peer, scheduler).save_pretrained(folder / PIPELINE)
    metadata = Metadata(
        name=MODEL,
        process=GaussianConfig(T=T, schedule=LinearSchedule()),
        network=UNetConfig(
            channels=tuple(channels),
            blocks=1,
            attention=(False,) * lower + (True,),
            mid_attention=True,
        ),
        prediction="eps",
        variance="lower",
        space=DataSpace(kind="image", shape=(1, SIDE, SIDE), shift=127.5, scale=127.5, levels=256),
        training=Provenance(data="none, the weights are random"),
    )
    model = metadata.build()
    theirs = peer.state_dict()
    ours = {name: theirs[diffusers_key(name)] for name in model.network.state_dict()}
    model.network.load_state_dict(ours)
    save(folder / MODELS / MODEL / "model.safetensors", model, metadata)


@torch.inference_mode()
def difference(folder: Path) -> float:
    """Return the largest difference between the outputs of the two networks as stored.

    Raises:
        ValueError: it is above 1e-4 or the outputs are zero, so the servers are not comparable.
    """
    peer = UNet2DModel.from_pretrained(
        folder / PIPELINE, subfolder="unet", low_cpu_mem_usage=False
    ).eval()
    model, _ = load(folder / MODELS / MODEL / "model.safetensors")
    x_t, t = torch.randn(8, *model.event), torch.randint(0, T, (8,))
    theirs, ours = peer(x_t, t).sample, model.network(x_t, t.float())
    found = float((theirs - ours).abs().max())
    if not found < 1e-4 or not float(theirs.std()) > 1e-2:
        raise ValueError(
            f"the networks differ by {found:.2g} where their outputs have deviation "
            f"{float(theirs.std()):.2g}: the two forms are not of the same weights"
        )
    return found
