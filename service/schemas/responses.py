"""Pydantic models of the answers, which /docs shows.

Array fields hold numpy arrays until they are written; the bound's terms are held as columns.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    GetPydanticSchema,
    TypeAdapter,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core.core_schema import is_instance_schema

from diffusion.samplers import Ancestral, SamplerConfig
from diffusion.space import Convention, Space
from service.codecs.json import Columns

ColumnsOut = Annotated[
    tuple[str, ...] | None,
    Field(description="Names of the elements if the training data were a table, else null."),
]


class TableColumn(BaseModel):
    """A column of a table."""

    name: str
    kind: Literal["number", "category"]
    labels: list[str] | None = Field(None, description="The categories; null for numbers.")
    step: float | None = Field(
        None, description="The distance of neighbouring numbers, 1 for integers; null for reals."
    )
    low: float | None = Field(None, description="The least number; null for no limit.")
    high: float | None = Field(None, description="The greatest number; null for no limit.")

    @classmethod
    def all_of(cls, space: Space) -> "list[TableColumn] | None":
        """Describe the columns of a table; None for other data."""
        return None if space.table is None else [cls(**column) for column in space.table]


TableOut = Annotated[
    list[TableColumn] | None,
    Field(
        description="The columns of a table, else null. In safetensors a category is a number: its "
        "place among the `labels`."
    ),
]
ArrayOut = Annotated[Any, WithJsonSchema({"type": "array", "items": {}})]


class _Answer(BaseModel):
    model: str = Field(description="Which model answered.")
    seed: int = Field(description="The same request with this seed gives the same answer.")
    exact: bool = Field(
        description="Whether the same request gives the same bits alone and under any load "
        "(NONEQ_DETERMINISTIC, tested when the model was loaded); else equal to float32 rounding."
    )


ChecksumOut = Annotated[
    str, Field(description="SHA-256 of the file of the model's version that answered.")
]


class Trajectory(BaseModel):
    """k + 1 states of the samples from noise to data, in data units, not rounded or clipped."""

    t: list[int] = Field(description="The time of each state, from T down to 0.")
    x: ArrayOut = Field(description="[k + 1, num_samples, *shape]; the last are the samples.")
    x_0: ArrayOut = Field(
        description="The network's estimate of x_0 at each, [k + 1, num_samples, *shape]; for "
        "bits p(x_0 = 1). The last equals the last of `x`."
    )


class SampleAnswer(_Answer):
    """Samples of p(x_0)."""

    sampler: SamplerConfig
    shape: list[int] = Field(description="Of one sample.")
    columns: ColumnsOut = None
    table: TableOut = None
    samples: ArrayOut = Field(
        description="[num_samples, *shape], data units; of a table objects by column name."
    )
    trajectory: Trajectory | None = Field(None, description="Present if `frames` were requested.")
    network_evaluations: int = Field(description="Rows put through the network.")
    checksum: ChecksumOut


class Parts(BaseModel):
    """bound = prior + steps + last + gain, nats."""

    prior: float | None = Field(description="The term at t = T, which needs no network.")
    steps: float | None = Field(description="The terms of t = 2..T.")
    last: float | None = Field(description="The last step, to x_0.")
    gain: float | None = Field(
        description="With trajectories, the log of their mean weight minus their mean log-weight, "
        "which the other parts sum to; else 0."
    )


class Term(BaseModel):
    """One evaluated term of the bound."""

    t: int
    weight: float = Field(
        description="The bound is the sum of weight * value and the parts in closed form, with "
        "trajectories plus `gain`."
    )
    value: float | None = Field(
        description="Nats; at the smallest t a draw of the last step's part."
    )


def _written(_: object, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
    return handler(TypeAdapter(list[Term]).core_schema)


# A list of Term, held as columns until it is written.
Terms = Annotated[
    Columns,
    GetPydanticSchema(lambda *_: is_instance_schema(Columns), _written),
]


class Band(BaseModel):
    """A part of the bound, compared with held-out data."""

    part: Literal["prior", "last", "steps"]
    first: int = Field(description="Its smallest t.")
    final: int = Field(description="Its largest t.")
    nats: float | None
    rarer_than: float | None = Field(
        description="The share of held-out data in which this part is larger."
    )


class ColumnPart(BaseModel):
    """A column's part of the bound of a row."""

    name: str
    nats: float | None = Field(
        description="Its part: a log-density, or of integers and categories a log-probability; the "
        "parts of a row sum to its bound. Null for a gap."
    )
    rarer_than: float | None = Field(
        None,
        description="The share of held-out rows in which this part is larger, measured with all "
        "terms; near 1 the cell is unlike what the rest of the row lets expect.",
    )
    given: bool = Field(False, description="Whether the bound is not of it: a gap, or `known`.")


class Loglik(BaseModel):
    """An example's bound. Null means minus infinity or not a number; `reason` says which."""

    bound: float | None = Field(description="Nats; at most log p(x_0), up to its standard error.")
    standard_error: float | None = Field(
        description="The estimate's standard error, nats, from its own terms and the model's "
        "profile; with trajectories from the jackknife over them and the profile."
    )
    degrees_of_freedom: float | None = Field(
        description="Degrees of freedom of the standard error, which is uncertain itself with few "
        "terms."
    )
    interval: tuple[float, float] | None = Field(
        description="95% confidence interval of the exact bound, nats: Student's t with those "
        "degrees of freedom."
    )
    bits: float | None = Field(description="The bound in bits.")
    bits_per_dim: float | None = Field(
        description="Minus `bits` per element that it is of: lower is better."
    )
    relative_to_prior: float | None = Field(
        description="K - L_null, nats: the gain over the prior pi."
    )
    rarer_than: float | None = Field(
        None,
        description="The share of held-out data with a larger bound, estimated with the same "
        "noise as in this request: uniform on new held-out data. Null if not known; `uncompared` "
        "says why. Likely is not the same as typical: see `typicality`.",
    )
    typicality: float | None = Field(
        None,
        description="A p-value, uniform on held-out data: the share of them whose bound and parts "
        "by noise level (`bands`) deviate at least as much as this example's, to either side. Near "
        "0 the example is unlike them, even if it is likelier, as an empty picture is. Null like "
        "`rarer_than`.",
    )
    bands: list[Band] | None = Field(None, description="The parts that `typicality` compares.")
    columns: list[ColumnPart] | None = Field(
        None, description="Of a table: each column's part of the bound."
    )
    elements: int = Field(
        description="How many elements the bound is of: all, or those that are neither gaps nor "
        "`known`."
    )
    reason: str | None = Field(None, description="Why there is no finite bound, if there is none.")
    parts: Parts
    per_step: Terms | None = Field(None, description="Present if requested.")


class LoglikAnswer(_Answer):
    """Bounds on log p(x_0)."""

    estimator: Literal["bound"]
    convention: Convention
    terms: int = Field(description="Network evaluations made for each example.")
    trajectories: int | None = Field(None, description="As asked.")
    steps: int = Field(description="Number of steps of the chain whose bound it is.")
    columns: ColumnsOut = None
    table: TableOut = None
    uncompared: str | None = Field(
        None, description="Why `rarer_than` or `typicality` is null for all data, if one is."
    )
    reasons: dict[str, str] = Field(
        default_factory=dict, description="Each `reason`, by the example's index in `data`."
    )
    results: list[Loglik]
    network_evaluations: int
    checksum: ChecksumOut


class Diagnostics(BaseModel):
    """How far the samples can be trusted as draws from the posterior."""

    particles: int = Field(description="Particles of each system; 1 for methods without weights.")
    systems: int = Field(description="Independent systems of particles.")
    ess: float = Field(
        description="The smallest effective sample size of a system, over the steps."
    )
    ess_by_step: list[float] = Field(
        description="The effective sample size before each step, mean over systems; empty without "
        "weights."
    )
    ancestors: int = Field(
        description="How many initial particles a system's final ones descend from; the median."
    )
    log_evidence: float | None = Field(
        None,
        description="log p(y), nats, from methods with weights: a log-probability for bits, for "
        "reals the log-density of the observed numbers in data units. With a label it is log p(y, "
        "label), with a label alone log p(label); with `expert` the log of the integral of p p_2 "
        "and the other factors.",
    )
    log_evidence_error: float | None = Field(
        None,
        description="The standard error of `log_evidence`, from each system's weights and "
        "ancestors, the spread of independent systems, and the chain's steps; null with one "
        "particle.",
    )
    warning: str | None = Field(
        None,
        description="Set if the samples may be off by half a posterior standard deviation or "
        "more, or the units seem wrong: what is wrong and what to do.",
    )
    calibration: str | None = Field(
        None,
        description="For `learned`: how its posteriors of such observations fare on held-out data "
        "(`python -m training calibrate`); null if not measured.",
    )
    within: float | None = Field(
        None,
        description="Of a row with limits: the share of draws, given its other cells alone, that "
        "are within them. The samples are among these.",
    )
    start: int | None = Field(
        None,
        description="The step of a matched start, whose noise is nearest to the observation's.",
    )
    start_noise: float | None = Field(
        None,
        description="That step's noise, for which the answer holds: a standard deviation in data "
        "units, null if elements differ in scale, or a flip probability.",
    )


class Posterior(BaseModel):
    """Samples of one posterior."""

    samples: ArrayOut = Field(
        description="[num_samples, *shape], data units; of a table objects by column name. What "
        "was observed exactly is unchanged."
    )
    weights: list[float] = Field(
        description="The samples' weights in the summaries below; they sum to 1. Samples of "
        "`independent` systems are weighted by evidence, if that leaves an effective sample size "
        "above half their number; else, and with all other methods, they are equal."
    )
    mean: ArrayOut = Field(
        description="The mean over the samples, [*shape]; of a table an object with its columns of "
        "numbers, and so are the two below."
    )
    std: ArrayOut | None = Field(
        description="The standard deviation over the samples, [*shape]; null for one sample."
    )
    quantiles: ArrayOut | None = Field(
        None,
        description="Quantiles of the samples, [number of quantiles, *shape], if requested: for "
        "each element the smallest sample value with at least this weight at or below it.",
    )
    probabilities: dict[str, dict[str, float]] | None = Field(
        None,
        description="Of a table's categories: the share of the samples with each label, by column.",
    )
    label: str | None = Field(None, description="The requested label's name.")
    labels: dict[str, float] | None = Field(
        None,
        description="With `label_probabilities`: the mean of p(label | x_0) over the samples, for "
        "every label. For samples drawn without a label it is p(label | observation).",
    )
    diagnostics: Diagnostics


class PosteriorAnswer(_Answer):
    """Samples of p(x_0) r(x_0)."""

    method: str = Field(description="The method that answered; for `auto` the one it chose.")
    biased: bool = Field(
        description="Whether the method is biased even with all steps and a perfect model."
    )
    sampler: Ancestral
    shape: list[int]
    columns: ColumnsOut = None
    table: TableOut = None
    results: list[Posterior]
    network_evaluations: int
    checksum: ChecksumOut
    deprecation: list[str] | None = Field(
        None,
        description="Fields of the request that have new names; the next release drops the old.",
    )


class Progress(BaseModel):
    """A `progress` event of a stream; the last has `step` = `total` and the final timings."""

    state: Literal["waiting", "running", "done"] = Field(
        description="waiting: no row has been through the network yet."
    )
    step: int = Field(description="Network evaluations done, all rows together.")
    total: int = Field(description="Network evaluations needed: `network_evaluations`.")
    seconds_left: float | None = Field(
        description="An estimate; null until there is one. While running, from the request's pace "
        "in the last seconds; while waiting, the time for everything that was accepted."
    )
    queue_seconds: float = Field(description="Time until its first network call, so far.")
    compute_seconds: float = Field(description="Time since then, so far.")


RowState = Literal["finished", "running", "waiting"]


class Preview(BaseModel):
    """A `preview` event of a stream: the request's first rows as they are now.

    Row i n + j of n samples per posterior is sample j of posterior i; while a system of particles
    runs, its first particles.
    """

    step: int = Field(description="Network evaluations done at that time.")
    rows: list[RowState] = Field(description="The state of each row.")
    estimates: list[Any] = Field(
        description="For each row, in data units: its sample if finished, the network's estimate "
        "of x_0 if running, null if waiting. Images are base64 PNGs, other data arrays."
    )


class ClassifierSummary(BaseModel):
    """A classifier that fits a model."""

    name: str
    labels: list[str] = Field(description="Its classes, in order.")


class ModelSummary(BaseModel):
    """A summary of a served model."""

    name: str
    kind: str = Field(description="image, vector, bits or table.")
    shape: list[int]
    process: str
    steps: int = Field(description="T.")
    samplers: list[str] = Field(description="The samplers that /sample accepts for it.")
    network: str
    parameters: int
    classifiers: list[ClassifierSummary] = Field(
        description="The classifiers whose labels /posterior accepts for it."
    )
    conditional: bool = Field(
        description="Whether its network can be told what was seen: method `learned`."
    )
    columns: ColumnsOut = None
    table: TableOut = None


class RefusedFile(BaseModel):
    """A file in the models folder that is not served."""

    file: str
    reason: str
    fix: str


class ModelsAnswer(BaseModel):
    """The served models, and the files that are not served."""

    models: list[ModelSummary]
    default: str | None = Field(description="The model for requests that name none.")
    refused: list[RefusedFile]


class ModelAnswer(ModelSummary):
    """The contents of a model's artefact, and the model's card."""

    default_convention: Convention
    artefact: dict[str, Any] = Field(
        description="The artefact's document: process, network, space, training."
    )
    checksum: str = Field(description="SHA-256 of the artefact's file, in hexadecimal.")
    evaluation: list[dict[str, Any]] = Field(
        description="Measured bounds, with split and error; `quantiles` are the 101 percentiles "
        "of the estimated bound of an example, nats, over `quantiles_count` of the data, or all of "
        "them."
    )
    calibration: list[dict[str, Any]] = Field(
        description="For each kind of observation that the network was told of in training, how "
        "its posteriors fare on held-out data: histograms of ranks, coverage of intervals, CRPS."
    )
    certified: list[dict[str, Any]] = Field(
        description="The families of observations that `auto` answers by `learned`: those whose "
        "calibration passed."
    )
    card: str | None = Field(description="The model's card, Markdown.")


class ExamplesAnswer(BaseModel):
    """Held-out data of a model, to try requests with."""

    model: str
    split: Literal["test"] = Field(
        "test", description="The split of the data, which was not used for training."
    )
    data: ArrayOut = Field(
        description="[n, *shape], data units, of a table objects by column name; empty where the "
        "model ships without examples."
    )


class ModelChange(BaseModel):
    """What loading or unloading a model did."""

    name: str
    checksum: str | None = Field(
        description="SHA-256 of the file that is served now; null if none is."
    )
    replaced: str | None = Field(
        description="SHA-256 of the file that was served before; null if none was. Equal to "
        "`checksum` if the file had not changed, and nothing was done."
    )
    seconds: float = Field(description="How long it took.")


class Health(BaseModel):
    """The state of the service."""

    status: str
    models: list[str] | None = None


class ProblemDocument(BaseModel):
    """An error (RFC 9457): what was received, what was expected, how to fix it."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    expected: Any | None = None
    received: Any | None = None
    fix: str | None = None
    request_id: str | None = None
