"""From a source to models/NAME: the artefact, its card, its bound where data are given."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError

from diffusion.checkpoint import Provenance, save
from diffusion.plan import DDIM
from diffusion.space import DataSpace
from training import config as configs
from training import data, report
from training.config import EvaluationConfig
from training.convert.found import ConvertError
from training.convert.source import read
from training.converted import ConvertedConfig
from training.evaluate import evaluate
from training.export import write_companions
from training.provenance import commit, versions


@dataclass(frozen=True)
class Options:
    """How a source is converted.

    Attributes:
        flags: of OpenAI's libraries, as text.
        size: height and width, where a folder does not say.
        levels: of the images that it was trained on.
        title: of the card; the source's own where it is not given.
        data: a configuration whose [data] the bound is evaluated on.
        rows, terms: how many data, and network evaluations each; None for all steps.
        samples: on the sheet, drawn by DDIM; 0 for no sheet.
        steps: of DDIM.
    """

    flags: Mapping[str, str] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    levels: int = 256
    title: str | None = None
    data: str | None = None
    rows: int = 100
    terms: int | None = 32
    samples: int = 16
    steps: int = 50


def convert(
    source: Path, out: Path, options: Options, device: torch.device, *, quiet: bool = False
) -> Path:
    """Write `out` (models/NAME) from a source; returns the artefact's path.

    Raises:
        ConvertError: what was found, and why it cannot be converted.
    """
    found = read(source, flags=options.flags, size=options.size, levels=options.levels)
    config, dataset = None, None
    if options.data is not None:
        config, dataset = _data(options.data, found.space)
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
        plan = record.evaluation
        measured = evaluate(
            model,
            dataset,
            plan.conventions,
            count=plan.data,
            choice=plan.choice,
            seed=plan.seed,
            batch=64,
            quiet=quiet,
        )
        metadata = metadata.model_copy(update={"evaluation": tuple(measured)})
    path = out / "model.safetensors"
    save(path, model, metadata)
    report.remove(path)  # that of the artefact before
    sampler = DDIM(steps=min(options.steps, model.T))
    write_companions(path, record.title, model, rows=options.samples, sampler=sampler, quiet=quiet)
    return path


def _data(name: str, space: DataSpace) -> tuple[data.DataConfig, data.Dataset]:
    """The data set of a configuration, if it is of the model's kind."""
    keys = configs.read(name)
    if "data" not in keys:
        raise configs.ConfigError(f"configuration {name} has no [data] to evaluate on")
    adapter: TypeAdapter[data.DataConfig] = TypeAdapter(data.DataConfig)
    config = adapter.validate_python(keys["data"])
    dataset = data.load(config)
    theirs = dataset.space
    if (theirs.kind, theirs.shape, theirs.levels) != (space.kind, space.shape, space.levels):
        raise ConvertError(
            f"--data {name}: {theirs.kind} {list(theirs.shape)} with {theirs.levels} levels, the "
            f"model is of {space.kind} {list(space.shape)} with {space.levels}"
        )
    return config, dataset


def _command(source: Path, out: Path, options: Options) -> str:
    """What converts the source again; not where the source lay."""
    words = ["python", "-m", "training", "convert", source.name, "-o", f"models/{out.name}"]
    if options.size is not None:
        words += ["--size", *map(str, options.size)]
    if options.levels != Options.levels:
        words += ["--levels", str(options.levels)]
    if options.data is not None:  # a name, or a file wherever it lay
        words += ["--data", Path(options.data).name]
    for flag, value in options.flags.items():
        words += [f"--{flag}", value]
    return shlex.join(words)
