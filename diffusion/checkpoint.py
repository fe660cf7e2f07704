"""The artefact: one .safetensors file that holds weights and every fact needed to use them.

Tensors are the model's state (`network.*`, `process.beta`, `profile.*` if one was made); the
header's metadata holds one JSON document under the key `noneq`. Nothing is ever unpickled.
"""

import json
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffusion.choice import Spacing, StrataKind
from diffusion.model import DiffusionModel, check_signal, outputs
from diffusion.networks import BitPatternsConfig, NetworkConfig, build
from diffusion.prediction import PredictionKind, VarianceKind
from diffusion.process import BinomialConfig, ProcessConfig
from diffusion.profile import ProfileConfig
from diffusion.schedule import check_beta
from diffusion.space import Convention, DataSpace

FORMAT = 1
KEY = "noneq"


class ArtefactError(ValueError):
    """A file is no artefact that this version can use; the message names the file and the fix."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Provenance(_Frozen):
    """Where the weights came from.

    Attributes:
        data: the data set's name.
        checksum: of the data, "algorithm:hex"; of generated data, of the generator's settings.
        steps: of training; 0 for a closed form.
        seed: of training.
        commit: of the code that trained; "-dirty" where it had changes.
        versions: of the libraries.
        seconds: of training, wall time.
        device: that trained.
        config: the whole configuration, as it was.
    """

    data: str
    checksum: str | None = None
    steps: int = Field(0, ge=0)
    seed: int = 0
    commit: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    seconds: float | None = None
    device: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)


class Evaluation(_Frozen):
    """A measured bound on held-out data.

    Attributes:
        convention: of the bound.
        split: of the data.
        count: data evaluated.
        terms: network evaluations a datum; None for all steps.
        trajectories: whose weights were averaged (`trajectory.trajectory_bound`); None for the
            ordinary bound.
        gain: the part of the bound that exceeds the trajectories' average, nats.
        steps: of the chain whose bound it is; None for all T.
        spacing: of those steps.
        strata: of which the terms were drawn.
        seed: of the noise.
        bound: mean over data, nats.
        standard_error: of that mean, over data and noise, nats.
        bits: mean bound in bits a datum.
        bits_per_dim: negative mean bound, bits an element.
        null: mean L_null in the same convention, nats.
        entropy: the data's own, nats, where it is known.
        machine: that evaluated.
    """

    convention: Convention
    split: str
    count: int = Field(ge=1)
    terms: int | None = None
    trajectories: int | None = None
    gain: float | None = None
    steps: int | None = None
    spacing: Spacing | None = None
    strata: StrataKind = "even"
    seed: int = 0
    bound: float
    standard_error: float
    bits: float
    bits_per_dim: float
    null: float
    entropy: float | None = None
    machine: str | None = None

    @property
    def of(self) -> tuple[object, ...]:
        """What was measured: of two evaluations of the same the later one holds."""
        return self.convention, self.split, self.steps, self.spacing, self.trajectories


class Metadata(_Frozen):
    """The JSON document of an artefact."""

    format: Literal[1] = 1
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    process: ProcessConfig
    network: NetworkConfig
    prediction: PredictionKind
    variance: VarianceKind | None = None
    space: DataSpace
    training: Provenance
    evaluation: tuple[Evaluation, ...] = ()
    profile: ProfileConfig | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        wanted = outputs(self.process.build(), self.prediction, self.variance)
        if self.network.outputs != wanted:
            raise ValueError(
                f"prediction {self.prediction!r} with variance {self.variance!r} needs a network "
                f"with {wanted} outputs an element, this one has {self.network.outputs}"
            )
        reads = self.network.reads
        if reads is not None and reads != (self.prediction, self.variance):
            raise ValueError(
                f"a network of kind {self.network.kind!r} gives prediction {reads[0]!r} with "
                f"variance {reads[1]!r}, came {self.prediction!r} with {self.variance!r}"
            )
        self.network.check(self.space.shape, self.process.T)
        if isinstance(self.network, BitPatternsConfig) and not (
            isinstance(self.process, BinomialConfig)
            and self.process.base_rate == self.network.base_rate
        ):
            raise ValueError(
                "bit patterns need a binomial process of their own base rate "
                f"{self.network.base_rate:g}, the process is {self.process.kind} with "
                f"{getattr(self.process, 'base_rate', 'none')}"
            )
        return self

    def build(self) -> DiffusionModel:
        """The model that the document describes, with fresh weights."""
        return DiffusionModel(
            self.process.build(),
            build(self.network),
            self.space,
            self.prediction,
            self.variance,
            None if self.profile is None else self.profile.build(self.process.T),
        )


def save(path: Path, model: DiffusionModel, metadata: Metadata) -> None:
    """Write an artefact; the file appears whole or not at all."""
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, {KEY: metadata.model_dump_json()})
    partial.chmod(0o644)  # the server may be another user; save_file writes for the owner alone
    partial.replace(path)


def rewrite(path: Path, metadata: Metadata) -> None:
    """Replace an artefact's document and keep its tensors."""
    model, _ = load(path)
    save(path, model, metadata)


def read_metadata(path: Path) -> Metadata:
    """The document of an artefact, checked, without its tensors.

    Raises:
        ArtefactError: not an artefact, or not one of this version.
    """
    try:
        with path.open("rb"):  # safe_open calls a file that may not be read one that is not there
            pass
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except FileNotFoundError:
        raise ArtefactError(f"{path}: there is no such file: check its name") from None
    except PermissionError:
        raise ArtefactError(f"{path}: it may not be read: give it mode 644") from None
    except (SafetensorError, OSError) as error:
        raise ArtefactError(
            f"{path}: not a readable .safetensors file ({error}): copy it again or export it anew"
        ) from error
    if KEY not in header:
        raise ArtefactError(
            f"{path}: a .safetensors file, but no noneq artefact (no metadata under {KEY!r}): "
            "export one with `python -m training export`"
        )
    try:
        document = json.loads(header[KEY])
    except json.JSONDecodeError as error:
        raise ArtefactError(f"{path}: its metadata is no JSON ({error}): export it anew") from error
    version = document.get("format") if isinstance(document, dict) else None
    if version != FORMAT:
        raise ArtefactError(
            f"{path}: format {version!r}, this version reads format {FORMAT}: export it anew "
            "with the version of noneq that serves it"
        )
    try:
        return Metadata.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "as a whole"
        # A kind that an installed package would bring says itself what to do.
        fix = "" if where == "network.installed" else ": export it anew"
        raise ArtefactError(
            f"{path}: its metadata does not hold: {where}: {first['msg']}{fix}"
        ) from error


def load(path: Path, device: str | torch.device = "cpu") -> tuple[DiffusionModel, Metadata]:
    """The model, in evaluation mode, and its document.

    Raises:
        ArtefactError: not an artefact, not one of this version, or tensors that do not fit it.
    """
    metadata = read_metadata(path)
    try:
        with torch.device("meta"):  # shapes alone: a document may ask for more than there is
            wanted = build(metadata.network).state_dict(prefix="network.")
        process = metadata.process.build()
        wanted |= process.state_dict(prefix="process.")
        if metadata.profile is not None:
            wanted |= metadata.profile.build(process.T).state_dict(prefix="profile.")
        found = _read_tensors(path, wanted)
        _check_table(path, metadata, process.beta, found["process.beta"])
        model = metadata.build()
    except ArtefactError:
        raise
    except (ValueError, RuntimeError) as error:
        raise ArtefactError(f"{path}: its parts do not fit: {error}: export it anew") from error
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(found[name])
    model.process.refresh()
    try:
        check_signal(model.process, model.prediction)
        if model.profile is not None:
            model.profile.check()
    except ValueError as error:
        raise ArtefactError(f"{path}: {error}: export it anew") from error
    return model.to(device).eval().requires_grad_(False), metadata


def _read_tensors(path: Path, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors, of the wanted names and shapes; none is read before all of them fit."""
    with safe_open(path, framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118, it is no dict
        missing, foreign = (
            sorted(wanted.keys() - shapes.keys()),
            sorted(shapes.keys() - wanted.keys()),
        )
        if missing or foreign:
            raise ArtefactError(
                f"{path}: its tensors do not fit its network: missing {missing[:3] or 'none'}, "
                f"unknown {foreign[:3] or 'none'}: export it anew"
            )
        for name, tensor in wanted.items():
            if list(tensor.shape) != shapes[name]:
                raise ArtefactError(
                    f"{path}: tensor {name} has shape {shapes[name]}, its network needs "
                    f"{list(tensor.shape)}: export it anew"
                )
        found = {name: file.get_tensor(name) for name in wanted}
    for name, tensor in found.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ArtefactError(f"{path}: tensor {name} holds NaN or infinity: export it anew")
    return found


def _check_table(path: Path, metadata: Metadata, beta: Tensor, found: Tensor) -> None:
    """A named schedule's table is its own; only a "table" may hold other values."""
    try:
        check_beta(found)
    except ValueError as error:
        raise ArtefactError(f"{path}: process.beta: {error}: export it anew") from error
    kind = metadata.process.schedule.kind
    if kind != "table" and not torch.allclose(found.double(), beta, rtol=1e-6, atol=0):
        raise ArtefactError(
            f"{path}: process.beta holds other values than its schedule {kind!r} gives: export it "
            "anew, with schedule kind 'table' if the values were learned"
        )
