"""Translate the settings of diffusers' `UNet2DModel` to our equivalent U-Net, and back.

Both are DDPM's, layer by layer (Ho, Jain and Abbeel 2020, appendix B); `diffusers_key` names the
diffusers parameter each of ours corresponds to.
"""

from typing import Any, Literal

from pydantic import ConfigDict, Field, PositiveInt, ValidationError

from diffusion.networks import UNetConfig
from training.config import Frozen
from training.convert.found import ConvertError

#: One part of a parameter's dotted name -> diffusers' part; parts not listed are the same in both.
_DIFFUSERS = {
    "time_in": "time_embedding.linear_1",
    "time_out": "time_embedding.linear_2",
    "norm_out": "conv_norm_out",
    "down": "down_blocks",
    "mid": "mid_block",
    "up": "up_blocks",
    "res": "resnets",
    "time": "time_emb_proj",
    "shortcut": "conv_shortcut",
    "attn": "attentions",
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "out": "to_out.0",
}


class UNetDocument(Frozen):
    """The supported part of a UNet2DModel's `unet/config.json`, with diffusers' defaults."""

    model_config = ConfigDict(populate_by_name=True)
    class_name: Literal["UNet2DModel"] = Field(alias="_class_name")
    diffusers_version: str | None = Field(None, alias="_diffusers_version")
    name_or_path: str | None = Field(None, alias="_name_or_path")
    sample_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    in_channels: PositiveInt = 3
    out_channels: PositiveInt = 3
    center_input_sample: Literal[False] = False
    time_embedding_type: Literal["positional"] = "positional"
    time_embedding_dim: PositiveInt | None = None
    freq_shift: float = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[
        Literal["DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"], ...
    ] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    mid_block_type: Literal["UNetMidBlock2D"] = "UNetMidBlock2D"
    up_block_types: tuple[Literal["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"], ...] = (
        "AttnUpBlock2D",
        "AttnUpBlock2D",
        "AttnUpBlock2D",
        "UpBlock2D",
    )
    block_out_channels: tuple[PositiveInt, ...] = (224, 448, 672, 896)
    layers_per_block: PositiveInt = 2
    mid_block_scale_factor: Literal[1] = 1
    downsample_padding: Literal[0, 1] = 1
    downsample_type: Literal["conv", "resnet"] = "conv"
    upsample_type: Literal["conv", "resnet"] = "conv"
    dropout: float = 0.0
    act_fn: Literal["silu", "swish"] = "silu"
    attention_head_dim: PositiveInt | None = 8
    norm_num_groups: PositiveInt = 32
    attn_norm_num_groups: PositiveInt | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    add_attention: bool = True
    class_embed_type: None = None
    num_class_embeds: None = None
    num_train_timesteps: int | None = None  # only for a learned time embedding

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width, or None if not given."""
        said = self.sample_size
        return (said, said) if isinstance(said, int) else said

    def network(self) -> UNetConfig:
        """Our network that computes the same function of the same tensors.

        Raises:
            ConvertError: we have no such network.
        """
        self._check()
        scale_shift = self.resnet_time_scale_shift == "scale_shift"
        try:
            return UNetConfig(
                in_channels=self.in_channels,
                outputs=self._outputs(),
                channels=self.block_out_channels,
                blocks=self.layers_per_block,
                attention=tuple(kind.startswith("Attn") for kind in self.down_block_types),
                mid_attention=self.add_attention,
                head_dim=self.attention_head_dim,
                scale_shift=scale_shift,
                resample="residual" if self._resamples() == {"resnet"} else "conv",
                dropout=self.dropout,
                norm_groups=self.norm_num_groups,
                norm_eps=self.norm_eps,
                downsample_padding=self.downsample_padding,
                flip_sin_to_cos=self.flip_sin_to_cos,
                freq_shift=self.freq_shift,
                zero_out=False,
            )
        except ValidationError as error:
            raise ConvertError(f"its sizes do not fit: {error.errors()[0]['msg']}") from error

    def _check(self) -> None:
        """Raise ConvertError if our U-Net cannot express these settings."""
        levels = len(self.block_out_channels)
        if not levels == len(self.down_block_types) == len(self.up_block_types):
            raise ConvertError(
                f"block_out_channels has {levels} levels, down_block_types "
                f"{len(self.down_block_types)} and up_block_types {len(self.up_block_types)}"
            )
        down, up = (
            [kind.startswith("Attn") for kind in kinds]
            for kinds in (self.down_block_types, self.up_block_types[::-1])
        )
        if down != up:
            raise ConvertError(
                f"down_block_types attend at levels {_levels(down)}, up_block_types at "
                f"{_levels(up)}: our levels have attention both down and up or not at all"
            )
        if len(self._resamples()) > 1:
            raise ConvertError(
                "some levels are resampled by a convolution and some by a residual block "
                f"(down_block_types = {list(self.down_block_types)}, up_block_types = "
                f"{list(self.up_block_types)}, downsample_type = {self.downsample_type!r}, "
                f"upsample_type = {self.upsample_type!r}): ours resamples all levels alike"
            )
        wide = 4 * self.block_out_channels[0]
        if self.time_embedding_dim not in (None, wide):
            raise ConvertError(f"time_embedding_dim = {self.time_embedding_dim}: ours is {wide}")
        plain = self.resnet_time_scale_shift == "default"
        groups = self.attn_norm_num_groups or (self.norm_num_groups if plain else None)
        if self.add_attention and groups != self.norm_num_groups:
            raise ConvertError(
                f"the middle attention's GroupNorm has attn_norm_num_groups = {groups} groups "
                f"(None with scale_shift: there is none), ours has {self.norm_num_groups}"
            )

    def _outputs(self) -> Literal[1, 2]:
        if self.out_channels == self.in_channels:
            return 1
        if self.out_channels == 2 * self.in_channels:
            return 2
        raise ConvertError(
            f"out_channels = {self.out_channels} for in_channels = {self.in_channels}: an "
            "unconditional model has equally many, or twice as many with a learned variance"
        )

    def _resamples(self) -> set[str]:
        """The kinds of resampling used between levels."""
        kinds = {"DownBlock2D": "conv", "UpBlock2D": "conv"}
        kinds |= {"ResnetDownsampleBlock2D": "resnet", "ResnetUpsampleBlock2D": "resnet"}
        kinds |= {"AttnDownBlock2D": self.downsample_type, "AttnUpBlock2D": self.upsample_type}
        return {kinds[name] for name in (*self.down_block_types[:-1], *self.up_block_types[:-1])}


def _levels(attended: list[bool]) -> list[int]:
    return [i for i, attends in enumerate(attended) if attends]


def diffusers_key(name: str) -> str:
    """The name in diffusers' `UNet2DModel` of a parameter of ours; shapes are equal.

    Args:
        name: a key of `UNet.state_dict()`, such as "down.0.res.1.conv1.weight".

    Returns:
        diffusers' key, such as "down_blocks.0.resnets.1.conv1.weight".
    """
    parts = name.split(".")
    resample = {"resample": f"{parts[0]}samplers.0"}  # downsamplers.0, upsamplers.0
    return ".".join((_DIFFUSERS | resample).get(part, part) for part in parts)


def unet_settings(config: UNetConfig, size: tuple[int, int]) -> dict[str, Any]:
    """The `unet/config.json` of the UNet2DModel that takes our tensors.

    Args:
        config: our network, without `unet_problems`.
        size: height and width of the images.
    """
    residual, levels = config.resample == "residual", len(config.channels)
    attention = config.attention or (False,) * levels
    down = "ResnetDownsampleBlock2D" if residual else "DownBlock2D"
    up = "ResnetUpsampleBlock2D" if residual else "UpBlock2D"
    kind = "resnet" if residual else "conv"
    return {
        "_class_name": "UNet2DModel",
        "sample_size": size[0] if size[0] == size[1] else list(size),
        "in_channels": config.in_channels,
        "out_channels": config.in_channels * config.outputs,
        "freq_shift": config.freq_shift,
        "flip_sin_to_cos": config.flip_sin_to_cos,
        "down_block_types": ["AttnDownBlock2D" if a else down for a in attention],
        "up_block_types": ["AttnUpBlock2D" if a else up for a in reversed(attention)],
        "block_out_channels": list(config.channels),
        "layers_per_block": config.blocks,
        "downsample_padding": config.downsample_padding,
        "downsample_type": kind,
        "upsample_type": kind,
        "dropout": config.dropout,
        "attention_head_dim": _head_dim(config),
        "norm_num_groups": config.norm_groups,
        "attn_norm_num_groups": config.norm_groups if config.scale_shift else None,
        "norm_eps": config.norm_eps,
        "resnet_time_scale_shift": "scale_shift" if config.scale_shift else "default",
        "add_attention": config.mid_attention,
    }


def unet_problems(config: UNetConfig, size: tuple[int, int]) -> list[str]:
    """List what a UNet2DModel cannot do of our network, for images of this size."""
    halves = 2 ** (len(config.channels) - 1)
    attended = [c for c, a in zip(config.channels, config.attention, strict=False) if a]
    attended += [config.channels[-1]] * config.mid_attention
    uneven = config.head_dim is None and config.heads > 1 and len(set(attended)) > 1
    found = {
        f"its clock is {config.clock!r}, theirs counts steps": config.clock != "step",
        f"it folds patches of {config.patch} pixels": config.patch != 1,
        "it reads Fourier features of its input": bool(config.fourier),
        f"it scales its steps by {config.time_scale:g}": config.time_scale != 1,
        f"it has {config.heads} heads on each of several widths": uneven,
        f"height and width {list(size)} are no multiples of {halves}": any(
            side % halves for side in size
        ),
    }
    return [problem for problem, true in found.items() if true]


def _head_dim(config: UNetConfig) -> int | None:
    """Channels per head; with several heads, all levels with attention have the same width."""
    if config.head_dim is not None or config.heads == 1:
        return config.head_dim
    attended = [c for c, a in zip(config.channels, config.attention, strict=False) if a]
    return (attended or [config.channels[-1]])[0] // config.heads
