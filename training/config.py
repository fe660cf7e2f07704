"""The configuration of each model: `training/configs/NAME.toml`, frozen once read.

It holds everything that decides the weights. Device, threads and compilation are command-line
options.
"""

import math
import tomllib
from bisect import bisect_right
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from diffusion.families import AnyFamily, Exact
from diffusion.likelihood.estimator import Choice, StrataKind
from diffusion.networks import CorrectedConfig, NetworkConfig, TableNetworkConfig
from diffusion.process import MEASURED, ProcessConfig, VarianceKind
from diffusion.profile import ProfileConfig
from diffusion.space import Convention
from training.data import AnyConfig, DataConfig

FOLDER = Path(__file__).parent / "configs"
_DATA: TypeAdapter[AnyConfig] = TypeAdapter(DataConfig)

#: The network, prediction and variance whose best readouts have a closed form.
PROJECTED = ("rbf", "x_0", "moment")


class ConfigError(ValueError):
    """Raised for a missing or wrong configuration; the message names the file and the fix."""


class Frozen(BaseModel):
    """The base of frozen configurations that reject unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ObjectiveConfig(Frozen):
    """The training loss: a weighted sum of the bound and the simple loss.

        loss = bound * (-K / dims) + simple * (square error of eps_hat; bits: cross-entropy of x_0)

    With `bias` the second part is weighted by sigmoid(bias - log SNR_t), so that it counts where
    noise dominates. With `target` "v" it is the square error of v_hat, which is larger by 1 + 1 /
    SNR_t: it counts most where next to no signal is left. `convention` applies to the last step
    only (the terms t >= 2 do not depend on it); None means the data's own. `steps` says how t is
    drawn: independently ("uniform"), evenly spread over the batch ("stratified", Kingma et al.
    2021), or evenly spread under p(t) proportional to sqrt(E[term_t^2]) ("importance", Nichol and
    Dhariwal 2021, Section 3.3).
    """

    bound: float = Field(default=1.0, ge=0)
    simple: float = Field(default=0.0, ge=0)
    bias: float | None = None
    target: Literal["eps", "v"] = "eps"
    convention: Convention | None = None
    steps: Literal["uniform", "stratified", "importance"] = "stratified"

    @model_validator(mode="after")
    def _some_weight(self) -> "ObjectiveConfig":
        if self.bound == 0 and self.simple == 0:
            raise ValueError("objective: bound and simple are both 0; give one of them a weight")
        return self


class OptimiserConfig(Frozen):
    """AdamW (Loshchilov and Hutter 2019): linear warm-up, then cosine decay to `final` * `lr`.

    The decay starts again at each step of `restarts`, from half the previous starting rate (warm
    restarts, Loshchilov and Hutter 2017), so that a longer fit can continue a shorter one.
    """

    lr: float = Field(default=1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup: int = Field(default=100, ge=0)
    restarts: tuple[int, ...] = ()
    final: float = Field(default=0.0, ge=0, le=1)
    clip: float | None = Field(default=1.0, gt=0)

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate at optimiser step `step` (0, 1, ...) of `steps`."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        ends = [*self.restarts, steps]
        cycle = min(bisect_right(ends, step), len(ends) - 1)
        begin = ends[cycle - 1] if cycle else self.warmup
        done = (step - begin) / max(1, ends[cycle] - begin)
        cosine = 0.5 * (1.0 + math.cos(math.pi * done))
        return self.lr * 0.5**cycle * (self.final + (1.0 - self.final) * cosine)

    @model_validator(mode="after")
    def _ascend(self) -> "OptimiserConfig":
        if any(a >= b for a, b in pairwise((self.warmup, *self.restarts))):
            raise ValueError(
                f"restarts must be ascending steps after the warm-up, not {list(self.restarts)}"
            )
        return self


class ScheduleConfig(Frozen):
    """A schedule learned with the network, starting from the process's own.

    `learn` is "beta" for beta_2..T with beta_1 fixed (Sohl-Dickstein et al. 2015, Section 2.4.1),
    or "log_snr" for a decreasing table of log SNR (Kingma et al. 2021) whose `ends` are fixed or
    learned too. `rate` is its learning rate as a multiple of the network's.
    """

    learn: Literal["beta", "log_snr"]
    ends: Literal["fixed", "learned"] = "fixed"
    rate: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _fits(self) -> "ScheduleConfig":
        if self.learn == "beta" and self.ends != "fixed":
            raise ValueError(
                "schedule: beta_1 is fixed with learn = 'beta': leave out ends = 'learned', or "
                "write learn = 'log_snr'"
            )
        return self


class ProjectionConfig(Frozen):
    """A fit by variable projection instead of AdamW (`training.fit.projection`).

    All `steps` of the search use the same `batch` rows; the readouts are solved on `rows` rows.
    """

    rows: int = Field(default=20_000, gt=0)


class AverageConfig(Frozen):
    """Moving average of the weights, with decay min(`decay`, (1 + n) / (10 + n)) at update n."""

    decay: float = Field(default=0.999, ge=0, lt=1)


class StoppingConfig(Frozen):
    """Early stopping: keep the averaged weights with the best held-out bound.

    The fit ends after `patience` evaluations (`watch`) without a better bound.
    """

    patience: int = Field(default=10, gt=0)


class BaseConfig(Frozen):
    """How the base of a "corrected" network is fitted (see `densities.Choice`), or of a "table".

    The base is the mean of `starts` mixtures with equal numbers of components. `shrinkage` and
    `spread` are of a table's (`mixture.Choice`).
    """

    starts: int = Field(default=1, gt=0)
    shrunk: bool = False
    shrinkage: float = Field(default=0.0, ge=0, le=1)
    spread: float = Field(default=1.0, gt=0)


class ObservationsConfig(Frozen):
    """What a conditional network is told in training: a `share` of rows, by one of the families.

    In a share `gaps` of a table's rows some cells are taken for gaps, beside those that are, so
    that rows with gaps can be scored. Nothing is told in the first `after` steps. A fit with an
    `initial` artefact that cannot be told yet takes its weights for those of step `after`, and
    begins there.
    """

    share: float = Field(default=0.6, gt=0, lt=1)
    after: int = Field(default=0, ge=0)
    gaps: float = Field(default=0.0, ge=0, lt=1)
    families: tuple[AnyFamily, ...] = Field(default=(Exact(),), min_length=1)


class WatchConfig(Frozen):
    """Monitoring during a fit: every `every` steps, the bound of `data` rows of `valid`.

    Each row uses `terms` terms. A sheet of `samples` is drawn each time, or every `sheets` steps, a
    multiple of `every`.
    """

    every: int = Field(default=500, gt=0)
    sheets: int | None = Field(default=None, gt=0)
    data: int = Field(default=256, gt=0)
    terms: int = Field(default=16, gt=0)
    samples: int = Field(default=64, gt=0)
    sampler_steps: int = Field(default=50, gt=0)


class EvaluationConfig(Frozen):
    """The held-out evaluation that the model card reports.

    The bound uses `terms` terms per example (None for all), in even strata or by importance.
    `sampler_steps` is for the sheet of samples (None for all T).
    """

    conventions: tuple[Convention, ...] = ()
    data: int | None = Field(default=None, gt=0)
    terms: int | None = Field(default=None, gt=0)
    strata: StrataKind = "even"
    sampler_steps: int | None = Field(default=None, gt=0)
    seed: int = Field(default=1, ge=0)

    @property
    def choice(self) -> Choice:
        """The choice of terms, as an argument of `bound`."""
        return Choice(terms=self.terms, strata=self.strata)


class FitConfig(Frozen):
    """Everything that decides the weights of one model, and how it is measured.

    `batch` counts rows over all ranks. With variance "optimal" or "contrast" the fit uses "lower",
    and export reads the variance from the profile it makes. `file` is the name that commands use:
    "gpu/mnist" for training/configs/gpu/mnist.toml, whose `name` is "mnist". `initial` names the
    artefact whose weights the fit starts from, a folder of models/ or a file.
    """

    name: str
    file: str | None = None
    title: str
    data: DataConfig
    process: ProcessConfig
    network: NetworkConfig
    prediction: Literal["eps", "x_0", "v", "perturbation"]
    variance: VarianceKind | None = None
    initial: str | None = None
    schedule: ScheduleConfig | None = None
    projection: ProjectionConfig | None = None
    base: BaseConfig = BaseConfig()
    observations: ObservationsConfig | None = None
    objective: ObjectiveConfig = ObjectiveConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    average: AverageConfig = AverageConfig()
    batch: int = Field(gt=0)
    steps: int = Field(gt=0)
    seed: int = Field(default=0, ge=0)
    precision: Literal["float32", "bfloat16"] = "float32"
    stopping: StoppingConfig | None = None
    watch: WatchConfig = WatchConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    profile: ProfileConfig = ProfileConfig()

    @property
    def called(self) -> str:
        """The name for `python -m training fit`, and of the run folder in runs/."""
        return self.file or self.name

    @property
    def fitted_variance(self) -> VarianceKind | None:
        """The variance used while fitting."""
        return "lower" if self.variance in MEASURED else self.variance

    @model_validator(mode="after")
    def _projects_what_can_be(self) -> "FitConfig":
        kinds = (self.network.kind, self.prediction, self.variance)
        if self.projection is not None and kinds != PROJECTED:
            raise ValueError(
                f"[projection] supports only network, prediction and variance {PROJECTED}, not "
                f"{kinds}: leave out [projection]"
            )
        if self.projection is not None and self.schedule is not None:
            raise ValueError(
                "[projection] keeps the schedule fixed: leave out [projection] or [schedule]"
            )
        return self

    @model_validator(mode="after")
    def _starts_fit(self) -> "FitConfig":
        network, starts = self.network, self.base.starts
        if not isinstance(network, CorrectedConfig | TableNetworkConfig):
            return self
        if network.base.components % starts:
            raise ValueError(
                f"the components of a base must be a multiple of its starts ({starts}), not "
                f"{network.base.components}"
            )
        return self

    @model_validator(mode="after")
    def _stops_what_it_can(self) -> "FitConfig":
        if self.stopping is not None and (self.schedule or self.projection):
            raise ValueError(
                "early stopping keeps the network's best weights only: leave out [stopping], or "
                "[schedule] and [projection]"
            )
        return self

    @model_validator(mode="after")
    def _tells_what_it_can(self) -> "FitConfig":
        conditional = bool(getattr(self.network, "conditional", False))
        if conditional != (self.observations is not None):
            raise ValueError(
                "a network that is told what was seen (conditional = true) needs [observations] to "
                f"learn from, and only it: came conditional = {str(conditional).lower()} and "
                f"{'no ' if self.observations is None else ''}[observations]"
            )
        return self

    @model_validator(mode="after")
    def _tells_before_the_end(self) -> "FitConfig":
        if self.observations is not None and self.observations.after >= self.steps:
            raise ValueError(
                f"observations: nothing is told in the first {self.observations.after} steps "
                f"(after) of {self.steps}: write a smaller after, or more steps"
            )
        return self

    @model_validator(mode="after")
    def _learns_what_can_be(self) -> "FitConfig":
        if self.schedule is None:
            return self
        if self.process.kind != "gaussian":
            raise ValueError(
                "a schedule is learned through x_t, and bits have no gradient: leave out "
                f"[schedule] with a process of kind {self.process.kind!r}"
            )
        if self.objective.simple:
            raise ValueError(
                "a schedule is learned on the bound: the simple error of a step can always be made "
                f"small by the step, so write objective.simple = 0, not {self.objective.simple:g}"
            )
        return self


class ConvertedConfig(Frozen):
    """The source of a converted artefact, stored in place of a fit's configuration.

    Attributes:
        title: title of the card.
        library: the library that trained the model.
        command: the command that repeats the conversion.
        files: sha256 of each file that was read, by its name within the source.
        documents: the source's own settings by file, or the flags that were given.
        notes: the source's sampler settings that this artefact does not keep.
        data: the data to measure it on, if any.
        evaluation: how to evaluate it.
        profile: how `python -m training profile` measures it.
    """

    kind: Literal["converted"] = "converted"
    title: str
    library: Literal["diffusers", "openai"]
    command: str
    files: dict[str, str]
    documents: dict[str, dict[str, Any]]
    notes: tuple[str, ...] = ()
    data: DataConfig | None = None
    evaluation: EvaluationConfig = EvaluationConfig()
    profile: ProfileConfig = ProfileConfig()


def is_converted(config: Mapping[str, Any]) -> bool:
    """Whether an artefact's configuration describes a conversion."""
    return config.get("kind") == "converted"


def artefact_path(models: Path, name: str) -> Path:
    """Return the path of a model's artefact: models/NAME/model.safetensors."""
    return models / name / "model.safetensors"


def find_artefact(name: str, models: Path) -> Path:
    """Resolve `name`, a path or the name of a folder of `models`, to an artefact's path."""
    return Path(name) if name.endswith(".safetensors") else artefact_path(models, name)


def path_of(name: str) -> Path:
    """Resolve `name`, a path or a name in training/configs, to a configuration file."""
    return Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"


def read(name: str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read the keys of a configuration, given its name in training/configs or its path."""
    path = path_of(name)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.toml")))
        raise ConfigError(
            f"no configuration {path}; give one of {known}, or the path of a .toml file"
        )
    keys = parse(path.read_text(), str(path))
    return {"name": path.stem, **keys, **(overrides or {})}


def parse(text: str, where: str) -> dict[str, Any]:
    """Parse TOML text; raises ConfigError naming the source `where`."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where} is no TOML: {error}") from error


def read_data(keys: Mapping[str, Any]) -> AnyConfig:
    """Validate the [data] table of a configuration; raises ConfigError if its keys do not fit."""
    try:
        return _DATA.validate_python(keys)
    except ValidationError as error:
        raise ConfigError(f"[data]: {error}") from error


def completed(keys: dict[str, Any]) -> dict[str, Any]:
    """Fill in the keys that a configuration written by an older version lacks."""
    try:
        return FitConfig.model_validate(keys).model_dump(mode="json")
    except ValidationError:
        return keys  # it has keys or values that this version does not know


def load(name: str, overrides: Mapping[str, Any] | None = None) -> FitConfig:
    """Load the configuration of a fit.

    Args:
        name: `mnist` for training/configs/mnist.toml, or the path of a .toml file.
        overrides: top-level keys that replace the file's.

    Raises:
        ConfigError: no such file, invalid TOML, or keys and values that do not fit.
    """
    path, keys = path_of(name), read(name, overrides)
    if path.parent.parent == FOLDER:  # a subfolder, such as gpu/; elsewhere the name is enough
        keys["file"] = f"{path.parent.name}/{path.stem}"
    try:
        return FitConfig.model_validate(keys)
    except ValidationError as error:
        raise ConfigError(f"configuration {name}: {error}") from error
