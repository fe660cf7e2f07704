"""Export: from a fit's checkpoint, or an oracle's configuration, to a folder that can be served.

models/NAME/model.safetensors   the artefact: averaged weights and every fact
models/NAME/README.md           the card: the facts for people
models/NAME/samples.png         a sheet of its samples
models/NAME/entropy.png, .csv   its report
"""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from diffusion.checkpoint import Evaluation, Metadata, Provenance, load, read_metadata, save
from diffusion.model import DiffusionModel
from diffusion.networks import BitPatterns, GaussianMixture
from diffusion.sampling import sample
from training import config as configs
from training import data, oracle, report, state
from training.card import card
from training.evaluate import evaluate
from training.fit import averaged_tensors, build_model
from training.progress import progress_bar
from training.provenance import commit, versions
from training.sheet import sheet

SHEET_ROWS = {"image": 64, "vector": 2000, "bits": 40}


def artefact_path(models: Path, name: str) -> Path:
    """Where the artefact of a model is."""
    return models / name / "model.safetensors"


def from_checkpoint(
    out: Path, device: torch.device
) -> tuple[DiffusionModel, Metadata, data.Dataset]:
    """The averaged model of a run folder, its document, and its data.

    Raises:
        CheckpointError: no checkpoint there, or of other data.
    """
    document = state.read_state(out)
    config = configs.FitConfig.model_validate(document.config)
    dataset = data.load(config.data)
    if dataset.checksum != document.checksum:
        raise state.CheckpointError(
            f"{out} was fitted to data with checksum {document.checksum}, these have "
            f"{dataset.checksum}; fit again"
        )
    model = build_model(config, dataset)
    model.network.load_state_dict(averaged_tensors(state.read_tensors(out)))
    training = Provenance(
        data=config.data.kind,
        checksum=document.checksum,
        steps=document.step,
        seed=config.seed,
        commit=document.commit,
        versions=document.versions,
        seconds=document.seconds,
        device=document.device,
        config=document.config,
    )
    metadata = Metadata(
        name=config.name,
        process=config.process,
        network=config.network,
        prediction=config.prediction,
        variance=config.variance,
        space=dataset.space,
        training=training,
    )
    return model.to(device).eval().requires_grad_(False), metadata, dataset


def from_oracle(name: str, device: torch.device) -> tuple[DiffusionModel, Metadata, data.Dataset]:
    """The model of an oracle's configuration, its document, and exact draws from it."""
    config = oracle.load(name)
    model = oracle.build(config)
    assert isinstance(model.network, GaussianMixture | BitPatterns)  # `oracle.build` makes no other
    dataset = oracle.dataset(config, model)
    training = Provenance(
        data="exact draws of its own",
        checksum=dataset.checksum,
        steps=0,
        seed=config.seed,
        commit=commit(),
        versions=versions(),
        config=config.model_dump(mode="json"),
    )
    metadata = Metadata(
        name=config.name,
        process=config.process,
        network=model.network.config,
        prediction=model.prediction,
        variance=model.variance,
        space=model.space,
        training=training,
    )
    return model.to(device).eval().requires_grad_(False), metadata, dataset


def export(
    name: str,
    *,
    out: Path | None,
    models: Path,
    device: torch.device,
    measure: bool = True,
    quiet: bool = False,
) -> Path:
    """Write models/NAME from a fit or an oracle; returns the artefact's path.

    Args:
        name: of the configuration, or its path.
        out: the run folder; runs/NAME if None.
        models: the folder of models.
        device: to evaluate and to sample on.
        measure: evaluate as the configuration says, and report; otherwise the card has no table.
        quiet: draw no progress bar.
    """
    title: str
    if oracle.is_oracle(name):
        oracle_config = oracle.load(name)
        model, metadata, dataset = from_oracle(name, device)
        title, plan = oracle_config.title, oracle_config.evaluation
    else:
        folder = out or Path("runs") / configs.load(name).name
        model, metadata, dataset = from_checkpoint(folder, device)
        config = configs.load(name)  # what is measured is today's wish, not the fit's
        title, plan = config.title, config.evaluation
    evaluations: list[Evaluation] = []
    if measure:
        evaluations = evaluate(
            model,
            dataset,
            plan.conventions,
            count=plan.data,
            terms=plan.terms,
            seed=plan.seed,
            quiet=quiet,
        )
    metadata = metadata.model_copy(update={"evaluation": tuple(evaluations)})
    path = artefact_path(models, metadata.name)
    save(path, model, metadata)
    path.chmod(0o644)  # safetensors writes for the owner alone; a server runs as another user
    report.remove(path)  # that of the artefact before
    if measure and model.T > 1:
        report.write(path, model, dataset)
    write_companions(path, title, model=model, quiet=quiet)
    return path


def write_companions(
    path: Path, title: str, *, model: DiffusionModel | None = None, quiet: bool = False
) -> None:
    """Write the card and the sheet of samples beside an artefact."""
    if model is None:
        model, _ = load(path)
    rows = SHEET_ROWS[model.space.kind]
    with progress_bar(model.T, "step", "samples", disable=quiet) as bar:
        drawn = sample(model, rows, seed=0, progress=lambda done, _: _move(bar, done))
    picture = sheet(model.space, model.space.to_data(drawn.cpu()))
    Image.fromarray(picture).save(path.with_name("samples.png"), optimize=True)
    write_card(path, title, model)


def write_card(path: Path, title: str, model: DiffusionModel) -> None:
    """Write the card beside an artefact, of what is there."""
    reported = all(file.exists() for file in report.files(path))
    text = card(read_metadata(path), title, parameters(model), reported=reported)
    path.with_name("README.md").write_text(text)


def _move(bar: "tqdm[Any]", done: int) -> None:
    bar.update(done - bar.n)


def parameters(model: DiffusionModel) -> int:
    """The number of fitted weights."""
    return sum(p.numel() for p in model.network.parameters())
