"""What is answered, as pydantic models; /docs shows them.

Array fields hold numpy arrays until they are written, terms are columns;
`bound` = `prior` + `steps` + `last` + `gain`.
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
from diffusion.space import Convention
from service.codecs.json import Columns

ColumnsOut = Annotated[
    tuple[str, ...] | None,
    Field(description="Names of the elements, from the table that was fitted; null of other data."),
]
ArrayOut = Annotated[Any, WithJsonSchema({"type": "array", "items": {}})]


class _Answer(BaseModel):
    model: str = Field(description="Which model answered.")
    seed: int = Field(description="With the same request it gives the same answer.")
    exact: bool = Field(
        description="Whether the same request gives the same bits, alone and under any load "
        "(NONEQ_DETERMINISTIC, as tested when the model was loaded); else to float32 rounding."
    )


class Trajectory(BaseModel):
    """The states of samples on their way, k + 1 of them, data units: not rounded, not clipped."""

    t: list[int] = Field(description="The time of each, from T down to 0.")
    x: ArrayOut = Field(description="[k + 1, num_samples, *shape]; the last are the samples.")
    x_0: ArrayOut = Field(
        description="What the network takes x_0 to be at each, [k + 1, num_samples, *shape]; of "
        "bits p(x_0 = 1). The last equals the last of `x`."
    )


class SampleAnswer(_Answer):
    """Samples of p(x_0)."""

    sampler: SamplerConfig
    shape: list[int] = Field(description="Of one sample.")
    columns: ColumnsOut = None
    samples: ArrayOut = Field(description="[num_samples, *shape], data units.")
    trajectory: Trajectory | None = Field(None, description="Where `frames` were asked for.")
    network_evaluations: int = Field(description="Rows put through the network.")


class Parts(BaseModel):
    """bound = prior + steps + last + gain, nats."""

    prior: float | None = Field(description="What needs no network, at t = T.")
    steps: float | None = Field(description="The terms of t = 2..T.")
    last: float | None = Field(description="The step to x_0.")
    gain: float | None = Field(
        description="Of trajectories, what their mean weight tells beyond their mean log-weight, "
        "whose parts the others are; else 0."
    )


class Term(BaseModel):
    """One evaluated piece of the bound."""

    t: int
    weight: float = Field(
        description="In the bound: the closed parts plus the sum of weight * value; of "
        "trajectories, plus what they gain."
    )
    value: float | None = Field(description="Nats; at the least t a draw of the last step's part.")


def _written(_: object, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
    return handler(TypeAdapter(list[Term]).core_schema)


# A list of Term, held as columns until it is written.
Terms = Annotated[
    Columns,
    GetPydanticSchema(lambda *_: is_instance_schema(Columns), _written),
]


class Band(BaseModel):
    """A part of the bound, among held-out data."""

    part: Literal["prior", "last", "steps"]
    first: int = Field(description="The least t of it.")
    final: int = Field(description="The greatest.")
    nats: float | None
    rarer_than: float | None = Field(
        description="The share of held-out data in which it is larger: near 1 there is more of it "
        "than in them at this level of noise, near 0 less."
    )


class Loglik(BaseModel):
    """An example's bound. Null stands for minus infinity, or no number: `reason` says which."""

    bound: float | None = Field(description="Nats; at most log p(x_0), but for its standard error.")
    standard_error: float | None = Field(
        description="Of this estimate, nats, from its own terms and the model's profile; of "
        "trajectories the jackknife's over them, likewise."
    )
    degrees_of_freedom: float | None = Field(
        description="Of the standard error, which of few terms is itself uncertain."
    )
    interval: tuple[float, float] | None = Field(
        description="In which the bound without the noise of this estimate lies, 95%, nats: by "
        "Student's t with those degrees of freedom."
    )
    bits: float | None = Field(description="The bound in bits.")
    bits_per_dim: float | None = Field(
        description="-bits an element of the example: lower is better."
    )
    relative_to_prior: float | None = Field(description="K - L_null, nats: gained over pi.")
    rarer_than: float | None = Field(
        None,
        description="The share of held-out data with a larger bound, each estimated with the noise "
        "of this request: uniform on new held-out data. Null where that is not known; "
        "`uncompared` says why. Likely is not typical: see `typicality`.",
    )
    typicality: float | None = Field(
        None,
        description="A p-value, uniform on held-out data: the share of them that are as far out as "
        "this example, to whichever side, in their bound and its parts by noise level (`bands`). "
        "Near 0 the example is unlike them, though it may be likelier: an empty picture. Null as "
        "`rarer_than`.",
    )
    bands: list[Band] | None = Field(None, description="What `typicality` is made of.")
    reason: str | None = Field(
        None, description="Why there is no finite bound, where there is none."
    )
    parts: Parts
    per_step: Terms | None = Field(None, description="Where it was asked for.")


class LoglikAnswer(_Answer):
    """Bounds on log p(x_0)."""

    estimator: Literal["bound"]
    convention: Convention
    terms: int = Field(description="Network evaluations made for each example.")
    trajectories: int | None = Field(None, description="As asked.")
    steps: int = Field(description="Of the chain whose bound it is.")
    uncompared: str | None = Field(
        None, description="Why `rarer_than` or `typicality` is null, where one is for all data."
    )
    reasons: dict[str, str] = Field(
        default_factory=dict, description="Each `reason`, by the example's place in `data`."
    )
    results: list[Loglik]
    network_evaluations: int


class Diagnostics(BaseModel):
    """How far the samples can be trusted as posterior samples."""

    particles: int = Field(description="Of each system; 1 without weights.")
    systems: int = Field(description="Independent ones.")
    ess: float = Field(description="Effective sample size of the particles, at its least.")
    ess_by_step: list[float] = Field(
        description="The same before each step, the mean over systems; empty without weights."
    )
    ancestors: int = Field(
        description="First particles from which a system's last ones descend, the median."
    )
    log_evidence: float | None = Field(
        None,
        description="log p(y), nats, by methods with weights: of bits a log-probability, of reals "
        "the log-density of the numbers seen, in data units. With a label it is of what was seen "
        "and the label, p(y, label), of a label alone p(label); with `expert` the integral of p "
        "p_2 and whatever else was asked.",
    )
    log_evidence_error: float | None = Field(
        None,
        description="Its standard error: by what each system's weights and ancestors say of it, by "
        "how far independent systems are apart, and by the chain's steps; null of one particle.",
    )
    warning: str | None = Field(
        None,
        description="That the samples may be off by half a posterior standard deviation or more, "
        "and how to come closer; null where nothing says so.",
    )
    start: int | None = Field(
        None, description="The step of a matched start, its noise nearest to the observation's."
    )
    start_noise: float | None = Field(
        None,
        description="That step's noise, which the answer is of: a deviation in data units, null "
        "where elements differ in scale, or a flip probability.",
    )


class Posterior(BaseModel):
    """Samples for one example observed."""

    samples: ArrayOut = Field(description="[num_samples, *shape], data units.")
    weights: list[float] = Field(
        description="What each sample counts below; they sum to 1. Samples of `independent` "
        "systems count as their evidence, as long as that leaves more than half of them; else, and "
        "of all other methods, all alike."
    )
    mean: ArrayOut = Field(description="Over the samples, [*shape].")
    std: ArrayOut | None = Field(description="Over the samples, [*shape]; null where there is one.")
    quantiles: ArrayOut | None = Field(
        None,
        description="Of the samples, [quantiles asked, *shape], where they were asked: of each "
        "element the least sample with so much weight at or below it.",
    )
    label: str | None = Field(None, description="What it was asked to be, by name.")
    labels: dict[str, float] | None = Field(
        None,
        description="By `label_probabilities`: the mean of p(label | x_0) over the samples, of "
        "every label. Of samples that follow no label it is p(label | what was seen), where ratios "
        "of evidences of many numbers are too uncertain.",
    )
    diagnostics: Diagnostics


class PosteriorAnswer(_Answer):
    """Samples of p(x_0) r(x_0)."""

    method: str = Field(description="The method that answered; for `auto` the one it chose.")
    biased: bool = Field(description="Whether the method misses the posterior even with all steps.")
    sampler: Ancestral
    shape: list[int]
    columns: ColumnsOut = None
    results: list[Posterior]
    network_evaluations: int
    deprecation: list[str] | None = Field(
        None,
        description="Which fields of the request have new names; the old go with the next release.",
    )


class Progress(BaseModel):
    """A `progress` event of a stream. The last has `step` = `total` and the final timings."""

    state: Literal["waiting", "running", "done"] = Field(
        description="waiting: none of its rows has been through the network."
    )
    step: int = Field(description="Network evaluations done, all rows together.")
    total: int = Field(description="Network evaluations needed: `network_evaluations`.")
    seconds_left: float | None = Field(
        description="An estimate; null until there is one. Running, at the request's own pace of "
        "the last seconds; waiting, the time of everything the service has accepted."
    )
    queue_seconds: float = Field(description="Waited until its first network call, so far.")
    compute_seconds: float = Field(description="Since then, so far.")


RowState = Literal["finished", "running", "waiting"]


class Preview(BaseModel):
    """A `preview` event of a stream: the request's first rows on their way.

    Row i n + j of a posterior is sample j of example i; while it runs, of a system's first
    particles.
    """

    step: int = Field(description="Network evaluations done when it was taken.")
    rows: list[RowState] = Field(description="How each row stands.")
    estimates: list[Any] = Field(
        description="Of each row, data units: finished, its sample; running, x_0hat, what the "
        "network takes x_0 to be; waiting, null. Images are base64 PNGs, all else arrays."
    )


class ClassifierSummary(BaseModel):
    """A classifier that goes with a model."""

    name: str
    labels: list[str] = Field(description="What it tells apart, in order.")


class ModelSummary(BaseModel):
    """A served model at a glance."""

    name: str
    kind: str = Field(description="image, vector or bits.")
    shape: list[int]
    process: str
    steps: int = Field(description="T.")
    samplers: list[str] = Field(description="Those that /sample takes for it.")
    network: str
    parameters: int
    classifiers: list[ClassifierSummary] = Field(
        description="Those that read its data: whose labels /posterior may ask for."
    )
    columns: ColumnsOut = None


class RefusedFile(BaseModel):
    """A file of the models folder that is not served."""

    file: str
    reason: str
    fix: str


class ModelsAnswer(BaseModel):
    """What is served."""

    models: list[ModelSummary]
    default: str | None = Field(description="Serves requests that name none.")
    refused: list[RefusedFile]


class ModelAnswer(ModelSummary):
    """Everything an artefact says of its model, and its card."""

    default_convention: Convention
    artefact: dict[str, Any] = Field(
        description="The artefact's document: process, network, space, training."
    )
    checksum: str = Field(description="Of the artefact's file: sha256, in hexadecimal.")
    evaluation: list[dict[str, Any]] = Field(
        description="Measured bounds, with split and error; `quantiles` are the 101 percentiles of "
        "the estimated bound of one example, nats, over `quantiles_count` of the data, or over all."
    )
    card: str | None = Field(description="The model's card, Markdown.")


class ExamplesAnswer(BaseModel):
    """Held-out data of a model, to try things on."""

    model: str
    split: Literal["test"] = Field("test", description="Of the data; none of it was fitted to.")
    data: ArrayOut = Field(
        description="[n, *shape], data units; empty where the model ships without examples."
    )


class Health(BaseModel):
    """Alive, or ready."""

    status: str
    models: list[str] | None = None


class ProblemDocument(BaseModel):
    """RFC 9457: what came, what was expected, how to fix it."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    expected: Any | None = None
    received: Any | None = None
    fix: str | None = None
    request_id: str | None = None
