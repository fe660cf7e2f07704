"""Which library a source is of, told by what is in it."""

from collections.abc import Mapping
from pathlib import Path

from training.convert.diffusers import read_diffusers
from training.convert.files import only_tensors, read_pickled, read_tensors
from training.convert.found import ConvertError, Found, named
from training.convert.openai import read_openai


def read(
    source: Path,
    *,
    flags: Mapping[str, str],
    size: tuple[int, int] | None = None,
    levels: int = 256,
) -> Found:
    """What is in a folder of diffusers, or in a checkpoint of OpenAI's.

    Args:
        source: the folder or the file.
        flags: that the checkpoint was trained with, as text.
        size: height and width, where a folder does not say.
        levels: of the images that it was trained on, 0..levels - 1.

    Raises:
        ConvertError: what was found, and why it cannot be converted.
    """
    if source.is_dir():
        if flags:
            raise ConvertError(
                f"{source}: a folder says itself what it holds: leave out --{', --'.join(flags)}"
            )
        if not (source / "model_index.json").exists():
            held = named(path.name for path in source.iterdir()) or "nothing"
            raise ConvertError(
                f"{source}: no pipeline of diffusers (no model_index.json; there is {held})"
            )
        return read_diffusers(source, size, levels)
    if not source.exists():
        raise ConvertError(f"{source}: there is no such file or folder")
    if size is not None:
        raise ConvertError(f"{source}: leave out --size, say --image_size as it was trained")
    found = read_tensors(source) if source.suffix == ".safetensors" else read_pickled(source)
    _refuse_lucidrains(found, source)
    tensors = only_tensors(found, source)
    if not any(name.startswith("input_blocks.") for name in tensors):
        raise ConvertError(
            f"{source}: no checkpoint of improved-diffusion or guided-diffusion (their tensors are "
            f"named input_blocks.0.0.weight and so on, here are {named(tensors)})"
        )
    return read_openai(source, tensors, flags, levels)


def _refuse_lucidrains(found: object, source: Path) -> None:
    """Raise ConvertError for a checkpoint of denoising-diffusion-pytorch, whose U-Net is another.

    It has RMSNorm, linear attention and memory keys in every level, a first convolution of 7 x 7
    and pixels folded into channels: no layer of it is one of ours.
    """
    parts = [found, found.get("model"), found.get("ema")] if isinstance(found, dict) else []
    names = [str(name) for part in parts if isinstance(part, dict) for name in part]
    if any(name.endswith("init_conv.weight") for name in names):
        raise ConvertError(
            f"{source}: a checkpoint of lucidrains' denoising-diffusion-pytorch (init_conv, "
            "RMSNorm, linear attention): its U-Net is another one than ours, layer by layer, and "
            "is not converted; give it a network kind of its own (docs/networks.md)"
        )
