"""What may be asked about observations: the requests of /posterior, /inpaint and /denoise.

The last two are the first with fewer fields: elements seen as they are, and all of them with noise.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field
from typing_extensions import override

from diffusion.operators import LinearOperator, Mask, Operator
from diffusion.posterior.methods import Auto, Twisted
from diffusion.samplers import Ancestral
from service.schemas import examples
from service.schemas.methods import MethodIn
from service.schemas.requests import Asked, DataIn, MaskIn, NoiseIn

LabelIn = Annotated[str | int, Field(description="By its name, or its place among the names.")]


@dataclass(frozen=True)
class AskedBeside:
    """What else p(x_0) is multiplied by, as it was asked: the fields of `PosteriorRequest`."""

    label: str | int | list[str | int] | None = None
    classifier: str | None = None
    expert: str | None = None
    label_probabilities: bool = False


class Conditions(Asked):
    """What requests about observations have in common.

    Attributes:
        whole: whether everything was seen where nothing else is said.
        noisy: whether there has to be noise.
    """

    whole: ClassVar[bool] = False
    noisy: ClassVar[bool] = False

    observed: DataIn = Field(description="What was seen, in data units: arrays or PNGs.")
    noise_std: NoiseIn = Field(
        None,
        description="Reals: the noise's standard deviation in data units, one number, an array in "
        "the shape of what was seen, or one each; 0 or absent: seen exactly.",
    )
    flip_probability: float | None = Field(
        None, ge=0, lt=0.5, description="Bits: each one seen was flipped with this probability."
    )
    num_samples: int = Field(1, ge=1, description="Samples for each example observed.")
    quantiles: list[Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]] | None = Field(
        None,
        min_length=1,
        max_length=99,
        description="Also answer these quantiles of the samples, element by element.",
    )
    method: MethodIn = Field(
        default=Auto(name="auto"),
        description="How, by its name or with its fields. `auto`: `matched` where everything was "
        "seen with the same independent noise and some step has it within 2%, else `twisted`. "
        "`twisted`: weighted particles, the exact posterior as they grow. `matched`: the plain "
        "chain from the step whose noise is nearest: refused where no step has so much or so "
        "little, with a warning where it differs. `product`, the 2015 paper's kernels times r, and "
        "`repaint`, RePaint: biased.",
    )
    sampler: Ancestral = Field(
        Ancestral(),
        description="The chain's steps; a posterior needs the model's own kernel. Where `steps` "
        f"is absent: all T, of `twisted` and `repaint`, whose steps are dear, at most "
        f"{Twisted.default_steps}.",
    )

    @property
    def count(self) -> int:
        """Of how many data there is a posterior."""
        return len(self.observed)

    @property
    def beside(self) -> AskedBeside:
        """What else p(x_0) is multiplied by."""
        return AskedBeside()

    @property
    def mask(self) -> Any:  # noqa: ANN401 - read by service.arrays
        """Which elements were seen; None where nothing says so."""
        return None

    @property
    def through(self) -> LinearOperator:
        """The operator through which they were seen."""
        return Mask()


class PosteriorRequest(Conditions):
    """Draw from p(x_0) r(x_0), r what was observed: y = A x_0 + noise, or bits that may flip.

    A label, or another model, multiplies it: p(x_0) r(x_0) p(label | x_0) p_2(x_0).
    """

    model_config = ConfigDict(json_schema_extra={"examples": examples.POSTERIOR})

    whole: ClassVar[bool] = True

    observed: DataIn | None = Field(
        None,
        description="What was seen, in data units: arrays or PNGs. With `label` or `expert` it "
        "may be absent: then nothing was, and there is one posterior for each label given, or one.",
    )
    label: LabelIn | Annotated[list[LabelIn], Field(min_length=1)] | None = Field(
        None,
        description="What x_0 is to be, p(label | x_0), by a classifier: one label for all data, "
        "or a list with one each. GET /models says which labels a model has.",
    )
    classifier: str | None = Field(
        None, description="Who reads labels; may be left out where only one fits the model."
    )
    expert: str | None = Field(
        None,
        description="Another served model of the same data and process, a product of experts: "
        "p(x_0) p_2(x_0). Elements may be observed beside it, with covariance `diagonal` or "
        "`independent`.",
    )
    label_probabilities: bool = Field(
        False,
        description="Also answer the mean of p(label | x_0) over each example's samples, for every "
        "label: of samples without a label, p(label | what was seen).",
    )
    known: MaskIn = Field(
        None,
        description="One mask for all, or one each: 1 or white where a value was observed, not "
        "what a PNG leaves transparent; everything where it is absent. Not with an operator.",
    )
    operator: Operator = Field(
        Mask(),
        description="A, through which data in data units were seen: elements as they are (`mask`), "
        "`average-pooling`, `blur` with a kernel, or a `dense` matrix over the flattened example.",
    )

    @property
    @override
    def count(self) -> int:
        if self.observed is not None:
            return len(self.observed)
        return len(self.label) if isinstance(self.label, list) else 1

    @property
    @override
    def beside(self) -> AskedBeside:
        return AskedBeside(self.label, self.classifier, self.expert, self.label_probabilities)

    @property
    @override
    def mask(self) -> Any:
        return self.known

    @property
    @override
    def through(self) -> LinearOperator:
        return self.operator


class InpaintRequest(Conditions):
    """Draw from p(x_0) r(x_0), r what was observed, exactly or with noise."""

    model_config = ConfigDict(json_schema_extra={"examples": examples.INPAINT})

    known: MaskIn = Field(
        None,
        description="One mask for all, or one each: 1 or white where a value was observed. A mask "
        "of pixels [H, W] holds for all channels; of a PNG, what is not opaque is unknown too. Not "
        "needed with transparent PNGs.",
    )

    @property
    @override
    def mask(self) -> Any:
        return self.known


class DenoiseRequest(Conditions):
    """Draw from p(x_0) r(x_0) with everything observed, with independent noise."""

    model_config = ConfigDict(json_schema_extra={"examples": examples.DENOISE})

    whole: ClassVar[bool] = True
    noisy: ClassVar[bool] = True
