"""Export a fit's checkpoint, or an oracle, to a folder that the service can load.

models/NAME/model.safetensors   the artefact: averaged weights and all metadata
models/NAME/README.md           the model card
models/NAME/samples.png         a sheet of samples
models/NAME/entropy.png, .csv   the entropy report
models/NAME/examples.safetensors   held-out data to try requests on
models/NAME/reference.safetensors  the terms of held-out data, for comparing other data with
"""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from diffusion import heldout
from diffusion.calibration import LEAST_DATA
from diffusion.checkpoint import (
    Baseline,
    Evaluation,
    Metadata,
    Provenance,
    load,
    read_metadata,
    rewrite,
    save,
)
from diffusion.families import Exact, Noisy
from diffusion.likelihood import reference
from diffusion.model import DiffusionModel
from diffusion.networks import BitPatterns, GaussianMixture
from diffusion.observation import Observation
from diffusion.process import MEASURED, VarianceKind
from diffusion.profile import ProfileConfig
from diffusion.samplers import DDIM, Ancestral, sample
from diffusion.schedule import TableSchedule
from diffusion.space import Convention
from training import config as configs
from training import data
from training.config import ConvertedConfig, artefact_path, is_converted
from training.evaluate import baselines
from training.evaluate import entropy as report
from training.evaluate.bound import as_planned
from training.evaluate.calibration import LEAST_ROWS, by_column, calibrate
from training.evaluate.profile import measure_terms, measured_points, profiled
from training.export import oracle
from training.export.card import card
from training.fit import checkpoint as state
from training.fit.initial import build_model
from training.fit.schedule import averaged_table
from training.progress import progress_bar, rows_done, steps_made
from training.provenance import commit, versions
from training.sheet import SHEET_ROWS, sheet
from training.user_data import data_for

Source = configs.FitConfig | oracle.OracleConfig | ConvertedConfig


def from_checkpoint(
    out: Path, device: torch.device
) -> tuple[DiffusionModel, Metadata, data.Dataset]:
    """Load the averaged model of a run folder, its metadata and its data.

    Raises:
        CheckpointError: there is no checkpoint, or it was fitted to other data.
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
    tensors = state.read_tensors(out)
    model.network.load_state_dict(state.averaged_tensors(tensors))
    process, table = config.process, averaged_table(config, tensors)
    if table is not None:
        model.process.take(table)
        process = process.model_copy(update={"schedule": TableSchedule()})
    training = Provenance(
        data=config.data.kind,
        checksum=document.checksum,
        steps=document.step,
        kept=document.best.step if document.best else None,
        seed=config.seed,
        commit=document.commit,
        versions=document.versions,
        seconds=document.seconds,
        device=document.device,
        config=document.config,
    )
    metadata = Metadata(
        name=config.name,
        process=process,
        network=config.network,
        prediction=config.prediction,
        variance=config.fitted_variance,
        space=dataset.space,
        training=training,
        told=config.observations.families if config.observations else (),
    )
    return model.to(device).eval().requires_grad_(False), metadata, dataset


def from_oracle(name: str, device: torch.device) -> tuple[DiffusionModel, Metadata, data.Dataset]:
    """Build an oracle from its configuration, with its metadata and exact draws from it."""
    config = oracle.load(name)
    model = oracle.build(config)
    assert isinstance(model.network, GaussianMixture | BitPatterns)  # all that `oracle.build` makes
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
        told=(Exact(), Noisy()),  # its closed form knows any
    )
    return model.to(device).eval().requires_grad_(False), metadata, dataset


def source(model: DiffusionModel, metadata: Metadata) -> tuple[Source, data.Dataset]:
    """Load the configuration and the data that an artefact was made from.

    Raises:
        ConfigError: the artefact was converted and has no data.
    """
    document = metadata.training.config
    if is_converted(document):
        converted = ConvertedConfig.model_validate(document)
        if converted.data is None:
            raise configs.ConfigError(
                f"{metadata.name} was converted without data: measure it with --data, a folder of "
                "pictures, say; with --write they are remembered"
            )
        return converted, data.load(converted.data)
    if not metadata.training.steps:
        of_oracle = oracle.OracleConfig.model_validate(document)
        return of_oracle, oracle.dataset(of_oracle, model)
    config = configs.FitConfig.model_validate(document)
    return config, data.load(config.data)


def source_with(
    model: DiffusionModel, metadata: Metadata, name: str
) -> tuple[ConvertedConfig, Metadata, data.Dataset]:
    """Like `source`, but with the data that `name` refers to, and metadata that record them.

    The metadata drop evaluations on other data.

    Raises:
        ConfigError: the artefact was not converted, or the data are of another kind.
    """
    document = metadata.training.config
    if not is_converted(document):
        raise configs.ConfigError(
            f"{metadata.name} is measured on the data that it was made with: leave out --data; "
            "`noneq loglik` scores any others"
        )
    before = ConvertedConfig.model_validate(document)
    config, dataset = data_for(name, model.space)
    now = before.model_copy(update={"data": config})
    training = metadata.training.model_copy(update={"config": now.model_dump(mode="json")})
    kept = metadata.evaluation if config == before.data else ()
    return now, metadata.model_copy(update={"training": training, "evaluation": kept}), dataset


def export(
    name: str,
    *,
    out: Path | None,
    models: Path,
    device: torch.device,
    measure: bool = True,
    beside: bool = False,
) -> Path:
    """Write models/NAME from a fit or an oracle; return the artefact's path.

    Args:
        name: of the configuration, or its path.
        out: the run folder; None for the configuration's folder in runs/.
        models: the folder of models.
        device: to evaluate and sample on.
        measure: profile, evaluate as configured, and report; otherwise the card has no table, and
            there is a profile only if the variance needs it.
        beside: compare a fit with simple densities (`training.evaluate.baselines`).
    """
    config: configs.FitConfig | oracle.OracleConfig
    if oracle.is_oracle(name):
        config = oracle.load(name)
        model, metadata, dataset = from_oracle(name, device)
        variance = metadata.variance
    else:
        folder = out or Path("runs") / configs.load(name).called
        model, metadata, dataset = from_checkpoint(folder, device)
        config = configs.load(name)  # evaluation settings may have changed since the fit
        variance = config.variance if config.variance in MEASURED else metadata.variance
    if measure or variance in MEASURED:
        model, metadata = with_profile(model, metadata, dataset, config.profile, variance)
    evaluations: list[Evaluation] = []
    found: list[Baseline] = []
    if measure:
        each: dict[Convention, Tensor] = {}
        evaluations = as_planned(model, dataset, config.evaluation, keep=each)
        values = each.get(model.space.default_convention)
        if beside and values is not None and isinstance(config, configs.FitConfig):
            found = baselines.compare(config, dataset, dataset.test[: len(values)], values)
    changes = {"evaluation": tuple(evaluations), "baselines": tuple(found)}
    metadata = metadata.model_copy(update=changes)
    path = artefact_path(models, metadata.name)
    save(path, model, metadata)
    path.chmod(0o644)  # safetensors makes it private to the owner; a server runs as another user
    write_examples(path, dataset)
    report.remove(path)  # the report of the previous artefact
    path.with_name(reference.FILE).unlink(missing_ok=True)
    if measure:
        write_reference(path, model, dataset)
    if measure and model.T > 1 and model.space.kind in report.ROWS:
        report.write(path, model, dataset)
    steps = config.evaluation.sampler_steps
    sampler = None if steps is None else Ancestral(steps=min(steps, model.T))
    write_companions(path, config.title, model, sampler=sampler)
    return path


def certify(path: Path, title: str, dataset: data.Dataset, folder: Path, **settings: int) -> str:
    """Calibrate the posteriors of a table's model, write that beside it, and say the verdict.

    Pictures take too long to do it unasked.

    Args:
        path: of the artefact.
        title: of the card.
        dataset: its data, of which `test` is observed.
        folder: where finished cases are kept.
        settings: of `calibration.measure`.
    """
    model, metadata = load(path)
    if not model.process.by_particles:
        return _certify_table(path, title, dataset, folder, **settings)
    again = f"`python -m training calibrate {metadata.name} --write`"
    if not metadata.told:
        return "posteriors are drawn by particles: the network is not told what was seen"
    if dataset.space.kind == "image":
        return f"posteriors are drawn by particles until {again} certifies the cheaper ones"
    if len(dataset.test) < LEAST_DATA:
        return (
            f"posteriors are drawn by particles: {len(dataset.test)} are too few rows to report on "
            f"to certify the cheaper ones (it takes {LEAST_DATA})"
        )
    found = calibrate(model, metadata.told, dataset.test, folder, **settings)
    rewrite(path, metadata.model_copy(update={"calibration": found}))
    write_card(path, title, model)
    few = [f"{each.case}: {each.count}" for each in found if each.count < LEAST_DATA]
    failed = [each.case for each in found if each.count >= LEAST_DATA and not each.passed]
    if few or failed:
        why = []
        if few:
            why.append(f"too few rows to report on ({'; '.join(few)}; it takes {LEAST_DATA})")
        if failed:
            why.append(f"held-out rows refute it ({'; '.join(failed)})")
        return (
            "posteriors by a plain chain of the network are not certified for all that it was "
            f"told: {'; '.join(why)}. Particles draw the others"
        )
    return f"posteriors at the price of a sample, certified on held-out rows: {found[0]}"


def _certify_table(
    path: Path, title: str, dataset: data.Dataset, folder: Path, **settings: int
) -> str:
    """Calibrate a table's posteriors, which only the network draws, and say how they fare."""
    model, metadata = load(path)
    if len(dataset.test) < LEAST_ROWS:
        return (
            f"how well gaps are filled is not known: {len(dataset.test)} rows are held out, it "
            f"takes {LEAST_ROWS}"
        )
    found = calibrate(model, metadata.told, dataset.test, folder, **settings)
    rewrite(path, metadata.model_copy(update={"calibration": found}))
    write_card(path, title, model)
    said = [
        f"{one}: {'REFUTED by these data' if one.refuted else 'they hold'}"
        + ("" if one.count >= LEAST_DATA else f", as far as so few tell ({LEAST_DATA} certify)")
        for one in found
    ]
    return "\n".join(["how well gaps are filled:", *said, "", by_column(found)])


def with_profile(
    model: DiffusionModel,
    metadata: Metadata,
    dataset: data.Dataset,
    profile: ProfileConfig,
    variance: VarianceKind | None,
) -> tuple[DiffusionModel, Metadata]:
    """Profile the model on training data with this variance; return it and its metadata.

    A change of variance drops the earlier evaluations; a new table of a measured one changes
    posteriors, so that drops the calibration too.
    """
    x_0, gaps = _measured(model, dataset, profile)
    work = len(measured_points(model.T, profile.points)) * 2 * len(x_0)
    with progress_bar(work, "row", "profile", unit_scale=True) as bar:
        found = profiled(model, x_0, profile, variance, progress=rows_done(bar), gaps=gaps)
    same = variance == metadata.variance
    kept = metadata.evaluation if same else ()
    held = metadata.calibration if same and variance not in MEASURED else ()
    assert found.profile is not None
    table = found.profile.contrast is not None
    made = profile.model_copy(update={"longest": found.profile.longest, "contrast": table})
    changes = {"profile": made, "variance": variance, "evaluation": kept, "calibration": held}
    # `model_copy` would skip validation.
    document = metadata.model_dump() | changes
    return found, Metadata.model_validate(document)


def with_terms(
    model: DiffusionModel, metadata: Metadata, dataset: data.Dataset, profile: ProfileConfig
) -> Metadata:
    """Measure the terms of the model's profile again, in place; return the new metadata.

    The model's samples and evaluations stay the same.
    """
    if metadata.profile is None:
        raise ValueError("the model has no profile whose terms could be measured: make one first")
    x_0, gaps = _measured(model, dataset, profile)
    work = len(measured_points(model.T, profile.points)) * 2 * len(x_0)
    with progress_bar(work, "row", "terms", unit_scale=True) as bar:
        measure_terms(model, x_0, profile, progress=rows_done(bar), gaps=gaps)
    made = profile.model_copy(update={"longest": metadata.profile.longest})
    return metadata.model_copy(update={"profile": made})


def _measured(
    model: DiffusionModel, dataset: data.Dataset, profile: ProfileConfig
) -> tuple[Tensor, Observation | None]:
    """The training data that a profile is measured on, model units, and their gaps."""
    rows = dataset.train[: profile.rows // 2]
    return model.space.to_model(rows), model.left_out(rows)


def write_examples(path: Path, dataset: data.Dataset) -> Path:
    """Write some rows of the test split beside an artefact (see `diffusion.heldout`)."""
    rows = heldout.choose(dataset.test, dataset.space)
    return heldout.write(path.parent, rows, dataset.space)


def write_reference(
    path: Path,
    model: DiffusionModel,
    dataset: data.Dataset,
    *,
    count: int | None = None,
    batch: int = 256,
) -> Path:
    """Write the terms of held-out data beside an artefact (see `likelihood.reference`)."""
    rows = reference.pick(dataset.test, count or reference.MOST)
    x_0 = model.space.to_model(rows).to(model.device)
    place = torch.zeros(1, dtype=torch.int64)
    one = reference.choice(model).resolve(model, place, 0, model.space.default_convention)
    work = one.count * len(x_0)
    with progress_bar(work, "term", "held-out", unit_scale=True) as bar:
        found = reference.measure(
            model, x_0, gaps=model.left_out(rows), batch=batch, progress=rows_done(bar)
        )
    return reference.write(path.parent, model, found)


def write_companions(
    path: Path,
    title: str,
    model: DiffusionModel,
    *,
    rows: int | None = None,
    sampler: Ancestral | DDIM | None = None,
) -> None:
    """Write the card and the sheet of samples beside an artefact.

    Args:
        path: of the artefact.
        title: of the card.
        model: the artefact's.
        rows: samples on the sheet, 0 for no sheet; None for the default of the kind of data.
        sampler: None for ancestral sampling at all T steps.
    """
    rows = SHEET_ROWS[model.space.kind] if rows is None else rows
    picture = path.with_name("samples.png")
    picture.unlink(missing_ok=True)  # the sheet of the previous artefact
    if rows:
        steps = len((sampler or Ancestral()).plan(model))
        with progress_bar(steps, "step", "samples") as bar:
            drawn = sample(model, rows, seed=0, sampler=sampler, progress=steps_made(bar))
        shown = sheet(model.space, model.space.to_data(drawn.cpu()))
        Image.fromarray(shown).save(picture, optimize=True)
    write_card(path, title, model)


def write_card(path: Path, title: str, model: DiffusionModel) -> None:
    """Write the card beside an artefact, from its metadata and the files beside it."""
    reported = all(file.exists() for file in report.files(path))
    pictured = path.with_name("samples.png").exists()
    compared = path.with_name(reference.FILE).exists()
    beside = {"reported": reported, "pictured": pictured, "compared": compared}
    text = card(read_metadata(path), title, parameters(model), **beside)
    path.with_name("README.md").write_text(text)


def parameters(model: DiffusionModel) -> int:
    """Count the fitted weights."""
    return sum(p.numel() for p in model.network.parameters())
