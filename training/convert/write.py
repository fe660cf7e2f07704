"""Convert a source of either library to models/NAME: the artefact, its card and its bound."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import ValidationError

from diffusion.checkpoint import Provenance, save
from diffusion.likelihood import reference
from diffusion.process import VarianceKind
from diffusion.profile import ProfileConfig
from diffusion.samplers import DDIM
from training.config import ConvertedConfig, EvaluationConfig
from training.convert.diffusers import read_diffusers
from training.convert.files import only_tensors, read_pickled, read_tensors
from training.convert.found import ConvertError, Found, named
from training.convert.openai import read_openai
from training.evaluate import entropy as report
from training.evaluate.bound import as_planned
from training.export.export import with_profile, write_companions
from training.provenance import commit, versions
from training.user_data import data_for


@dataclass(frozen=True)
class Options:
    """Options of a conversion.

    Attributes:
        flags: flags of OpenAI's libraries, as text.
        size: height and width, if a folder does not give them.
        levels: number of levels of the training images.
        title: title of the card; None for the source's own.
        data: the data to evaluate the bound on: a folder of pictures, a table, or a configuration
            (for its [data]).
        rows, terms: number of rows, and network evaluations per row (None: all steps).
        variance: a new variance for the model, measured on the data; None keeps the source's.
        points: number of steps at which it is measured; None for all.
        samples: number of samples on the sheet, drawn by DDIM; 0 for no sheet.
        steps: number of DDIM steps.
    """

    flags: Mapping[str, str] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    levels: int = 256
    title: str | None = None
    data: str | None = None
    rows: int = 100
    terms: int | None = 32
    variance: VarianceKind | None = None
    points: int | None = None
    samples: int = 16
    steps: int = 50


def convert(source: Path, out: Path, options: Options, device: torch.device) -> Path:
    """Convert a source into the folder `out` (models/NAME), and return the artefact's path.

    Raises:
        ConvertError: the source cannot be converted; the message says why.
    """
    if options.variance is not None and options.data is None:
        raise ConvertError(f"--variance {options.variance} is measured on data: say --data too")
    found = read(source, flags=options.flags, size=options.size, levels=options.levels)
    config, dataset = None, None
    if options.data is not None:
        config, dataset = data_for(options.data, found.space)
    record = ConvertedConfig(
        title=options.title or found.title,
        library=found.library,
        command=_command(source, out, options),
        files=found.files,
        documents=found.documents,
        notes=found.notes,
        data=config,
        evaluation=EvaluationConfig(
            data=options.rows, terms=options.terms if (options.terms or 0) < found.T else None
        ),
        profile=ProfileConfig(points=options.points),
    )
    training = Provenance(
        data=f"elsewhere: {found.title}",
        commit=commit(),
        versions=versions(),
        config=record.model_dump(mode="json"),
    )
    try:
        model, metadata = found.build(out.name, training)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConvertError(f"{source} as {out}: {where}: {first['msg']}") from error
    except ValueError as error:
        raise ConvertError(f"{source}: {error}") from error
    model = model.to(device)
    if dataset is not None:
        if options.variance is not None:
            model, metadata = with_profile(
                model, metadata, dataset, record.profile, options.variance
            )
        measured = as_planned(model, dataset, record.evaluation, batch=64)
        metadata = metadata.model_copy(update={"evaluation": tuple(measured)})
    path = out / "model.safetensors"
    save(path, model, metadata)
    report.remove(path)  # from a previous artefact
    path.with_name(reference.FILE).unlink(missing_ok=True)
    sampler = DDIM(steps=min(options.steps, model.T))
    write_companions(path, record.title, model, rows=options.samples, sampler=sampler)
    return path


def _command(source: Path, out: Path, options: Options) -> str:
    """The command that repeats the conversion, with paths reduced to names."""
    words = ["python", "-m", "training", "convert", source.name, "-o", f"models/{out.name}"]
    if options.size is not None:
        words += ["--size", *map(str, options.size)]
    if options.levels != Options.levels:
        words += ["--levels", str(options.levels)]
    if options.data is not None:  # a configuration, or the path of a file or folder
        words += ["--data", Path(options.data).name]
    if options.variance is not None:
        words += ["--variance", options.variance]
    if options.points is not None:
        words += ["--points", str(options.points)]
    for flag, value in options.flags.items():
        words += [f"--{flag}", value]
    return shlex.join(words)


def read(
    source: Path,
    *,
    flags: Mapping[str, str],
    size: tuple[int, int] | None = None,
    levels: int = 256,
) -> Found:
    """Read a diffusers folder or an OpenAI checkpoint.

    Args:
        source: the folder or the file.
        flags: the flags that the checkpoint was trained with, as text.
        size: height and width, if a folder does not give them.
        levels: number of levels of the training images.

    Raises:
        ConvertError: the source cannot be converted; the message says why.
    """
    if source.is_dir():
        if flags:
            raise ConvertError(
                f"{source}: a folder takes no flags: leave out --{', --'.join(flags)}"
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
        raise ConvertError(f"{source}: leave out --size and give --image_size as in training")
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
    """Raise ConvertError for a denoising-diffusion-pytorch checkpoint, whose U-Net is not ours.

    It has RMSNorm, linear attention and memory keys at every level, a 7 x 7 first convolution and
    pixels folded into channels.
    """
    parts = [found, found.get("model"), found.get("ema")] if isinstance(found, dict) else []
    names = [str(name) for part in parts if isinstance(part, dict) for name in part]
    if any(name.endswith("init_conv.weight") for name in names):
        raise ConvertError(
            f"{source}: a checkpoint of lucidrains' denoising-diffusion-pytorch (init_conv, "
            "RMSNorm, linear attention): its U-Net differs from ours in every layer and is not "
            "converted; add a network kind for it (docs/networks.md)"
        )
