"""Read checkpoints of openai/improved-diffusion and openai/guided-diffusion: a `.pt` and its flags.

Their `UNetModel` (Nichol and Dhariwal 2021, appendix A; Dhariwal and Nichol 2021) is ours under
other names, with an attention's queries, keys and values in one tensor.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field, PositiveInt, ValidationError, model_validator
from torch import Tensor

from diffusion.networks import UNetConfig, build
from diffusion.process import VarianceKind
from diffusion.schedule import CosineSchedule, LinearSchedule, Schedule
from training.config import Frozen
from training.convert.files import as_float32, checked, sha256
from training.convert.found import ConvertError, Found, pixels, take

#: The channel_mult that their code uses for each image_size if the flag is empty.
MULTIPLES = {
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}
GROUPS = 32

#: Our layer -> theirs, within a residual block, an attention or a resampling layer.
_LAYERS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "shortcut": "skip_connection",
    "norm": "norm",
    "q": "qkv",
    "k": "qkv",
    "v": "qkv",
    "out": "proj_out",
}


class Flags(Frozen):
    """Their command-line flags for the model and the diffusion, with their defaults.

    `rescale_timesteps` is on by default in improved-diffusion and off in guided-diffusion, and must
    be given unless there are 1000 steps, where it has no effect. `use_kl`,
    `rescale_learned_sigmas`, `use_checkpoint` and `use_fp16` affect only training and speed.
    """

    image_size: PositiveInt = 64
    num_channels: PositiveInt = 128
    num_res_blocks: PositiveInt = 2
    num_heads: PositiveInt = 4
    num_heads_upsample: int = -1
    num_head_channels: int = -1
    attention_resolutions: str = Field("16,8", pattern=r"^[1-9]\d*(,[1-9]\d*)*$")
    channel_mult: str = Field("", pattern=r"^([1-9]\d*(,[1-9]\d*)*)?$")
    dropout: float = 0.0
    learn_sigma: bool = False
    sigma_small: bool = False
    class_cond: bool = False
    diffusion_steps: PositiveInt = 1000
    noise_schedule: Literal["linear", "cosine"] = "linear"
    timestep_respacing: str = ""
    predict_xstart: bool = False
    rescale_timesteps: bool | None = None
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    use_kl: bool = False
    rescale_learned_sigmas: bool = False
    use_checkpoint: bool = False
    use_fp16: bool = False

    @model_validator(mode="after")
    def _can_be_converted(self) -> Self:
        if self.class_cond:
            raise ValueError("class_cond: only unconditional models are converted")
        if self.timestep_respacing:
            raise ValueError(
                "timestep_respacing is an option of their sampler: leave it out, and choose the "
                "number of steps when you sample"
            )
        if self.num_heads_upsample not in (-1, self.num_heads):
            raise ValueError(
                f"num_heads_upsample = {self.num_heads_upsample} with num_heads = "
                f"{self.num_heads}: our levels have the same number of heads down and up"
            )
        if self.rescale_timesteps is None and self.diffusion_steps != 1000:
            raise ValueError(
                f"with diffusion_steps = {self.diffusion_steps} say --rescale_timesteps: True is "
                "improved-diffusion's default, False guided-diffusion's"
            )
        multiples = self.multiples
        if multiples[0] != 1:
            raise ValueError(
                f"channel_mult begins with {multiples[0]}: only 1 is converted, where the time "
                "embedding is as wide as the first level"
            )
        return self

    @property
    def multiples(self) -> tuple[int, ...]:
        """The width of each level as a multiple of num_channels."""
        if self.channel_mult:
            return tuple(int(part) for part in self.channel_mult.split(","))
        if self.image_size not in MULTIPLES:
            raise ValueError(
                f"image_size = {self.image_size}: channel_mult follows from it for "
                f"{', '.join(map(str, MULTIPLES))}: say --channel_mult"
            )
        return MULTIPLES[self.image_size]

    @property
    def variance(self) -> VarianceKind:
        """The reverse kernel's variance."""
        if self.learn_sigma:
            return "interpolated"
        return "lower" if self.sigma_small else "upper"

    def network(self) -> UNetConfig:
        """Our equivalent network."""
        sides = {self.image_size // int(side) for side in self.attention_resolutions.split(",")}
        each_head = self.num_head_channels
        return UNetConfig(
            in_channels=3,
            outputs=2 if self.learn_sigma else 1,
            channels=tuple(self.num_channels * multiple for multiple in self.multiples),
            blocks=self.num_res_blocks,
            attention=tuple(2**level in sides for level in range(len(self.multiples))),
            mid_attention=True,
            head_dim=None if each_head == -1 else each_head,
            heads=self.num_heads,
            scale_shift=self.use_scale_shift_norm,
            resample="residual" if self.resblock_updown else "conv",
            dropout=self.dropout,
            norm_groups=GROUPS,
            norm_eps=1e-5,
            time_scale=1000 / self.diffusion_steps if self.rescale_timesteps else 1.0,
            zero_out=False,
        )

    def schedule(self) -> Schedule:
        """DDPM's linear beta, scaled by 1000 / T, or the cosine schedule."""
        if self.noise_schedule == "cosine":
            return CosineSchedule()
        scale = 1000 / self.diffusion_steps
        return LinearSchedule(first=scale * 1e-4, last=scale * 0.02)


def places(config: UNetConfig) -> dict[str, str]:
    """Map our blocks' names to theirs, such as "down.1.attn.0" to "input_blocks.5.1"."""
    found = {"conv_in": "input_blocks.0.0", "time_in": "time_embed.0", "time_out": "time_embed.2"}
    found |= {"norm_out": "out.0", "conv_out": "out.2"}
    found |= {"mid.res.0": "middle_block.0", "mid.attn.0": "middle_block.1"}
    found |= {"mid.res.1": "middle_block.2"}
    attention = config.attention or (False,) * len(config.channels)
    last, at = len(config.channels) - 1, 1
    for level in range(last + 1):
        for block in range(config.blocks):
            found[f"down.{level}.res.{block}"] = f"input_blocks.{at}.0"
            found[f"down.{level}.attn.{block}"] = f"input_blocks.{at}.1"
            at += 1
        if level < last:
            found[f"down.{level}.resample"] = f"input_blocks.{at}.0"
            at += 1
    at = 0
    for way_up, level in enumerate(reversed(range(last + 1))):
        for block in range(config.blocks + 1):
            found[f"up.{way_up}.res.{block}"] = f"output_blocks.{at}.0"
            found[f"up.{way_up}.attn.{block}"] = f"output_blocks.{at}.1"
            if block == config.blocks:
                found[f"up.{way_up}.resample"] = f"output_blocks.{at}.{1 + attention[level]}"
            at += 1
    return found


def openai_key(name: str, where: Mapping[str, str]) -> str:
    """Their name of the parameter that holds one of ours.

    Args:
        name: a key of `UNet.state_dict()`.
        where: the result of `places` for its configuration.
    """
    block = next(place for place in where if name.startswith(f"{place}."))
    layer, _, kind = name.removeprefix(f"{block}.").rpartition(".")
    if layer == "conv":  # resampling layer; theirs is "op" on the way down
        layer = "op" if block.startswith("down") else "conv"
    return ".".join(part for part in (where[block], _LAYERS.get(layer, layer), kind) if part)


def our_tensors(
    tensors: Mapping[str, Tensor], config: UNetConfig, *, split_first: bool, where: str
) -> dict[str, Tensor]:
    """Rename all of their tensors to our names.

    Args:
        tensors: their tensors.
        config: our network's configuration.
        split_first: whether an attention tensor holds all queries, then keys, then values
            (use_new_attention_order), rather than head by head.
        where: the file, for the message.

    Raises:
        ConvertError: a tensor is missing, unexpected or of another shape.
    """
    with torch.device("meta"):
        ours = build(config).state_dict()
    named, keys = places(config), {}
    wanted: dict[str, Tensor] = {}
    for name, tensor in ours.items():
        key = keys[name] = openai_key(name, named)
        flat = ".attn." in name and tensor.ndim == 2  # theirs is a 1-D convolution
        tensor = tensor[..., None] if flat else tensor
        wanted[key] = torch.cat((wanted[key], tensor)) if key in wanted else tensor
    take(tensors, wanted, where)
    found: dict[str, Tensor] = {}
    for name, tensor in ours.items():
        theirs, part = tensors[keys[name]], name.split(".")[-2]
        if part in ("q", "k", "v") and ".attn." in name:
            heads = len(tensor) // config.head_dim if config.head_dim else config.heads
            of_heads = theirs.unflatten(0, (3, heads, -1) if split_first else (heads, 3, -1))
            theirs = of_heads.select(0 if split_first else 1, "qkv".index(part)).flatten(0, 1)
        found[name] = theirs.reshape(tensor.shape).contiguous()
    return found


def read_openai(
    path: Path, tensors: Mapping[str, Tensor], given: Mapping[str, str], levels: int
) -> Found:
    """Interpret a checkpoint by its flags.

    Args:
        path: the file.
        tensors: the tensors read from it.
        given: flags by name, as text.
        levels: number of levels of the training images.

    Raises:
        ConvertError: something cannot be converted; the message names it.
    """
    if "label_emb.weight" in tensors:
        raise ConvertError(f"{path}: class-conditional (label_emb): only unconditional models are")
    flags = checked(given, Flags, f"{path} with its flags")
    try:
        network, schedule = flags.network(), flags.schedule()
    except ValidationError as error:
        raise ConvertError(f"{path}: its flags do not fit: {error.errors()[0]['msg']}") from error
    found = our_tensors(
        as_float32(tensors, path),
        network,
        split_first=flags.use_new_attention_order,
        where=str(path),
    )
    return Found(
        library="openai",
        title="an improved-diffusion or guided-diffusion checkpoint, converted",
        network=network,
        schedule=schedule,
        T=flags.diffusion_steps,
        table=None,
        prediction="x_0" if flags.predict_xstart else "eps",
        variance=flags.variance,
        space=pixels(3, (flags.image_size, flags.image_size), levels),
        tensors=found,
        files={path.name: sha256(path)},
        documents={"flags": flags.model_dump(mode="json")},
    )
