"""What may be asked, as pydantic models; /docs shows them.

Arrays stay nested lists here, unread: which shapes and values fit, the model says (arrays.py).
"""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    WithJsonSchema,
    model_validator,
)
from torch import Tensor

from diffusion.likelihood.estimator import Spacing, StrataKind
from diffusion.samplers import SAMPLERS, Ancestral, SamplerConfig
from diffusion.space import Convention
from service.schemas import examples
from service.schemas.deprecated import rename

MAX_SEED = 2**63 - 1

_ARRAY = {"description": "Nested lists of numbers, or a base64 PNG where an image is wanted."}


def _is_list(value: object) -> object:
    if isinstance(value, Tensor):
        if value.ndim and len(value):
            return value
    elif isinstance(value, list) and value:
        return value
    raise ValueError("a list of at least one array or base64 PNG is expected")


def _is_mask(value: object) -> object:
    if value is None or isinstance(value, Tensor | str) or (isinstance(value, list) and value):
        return value
    raise ValueError("an array, a base64 PNG, or a list of these is expected")


def _is_noise(value: object) -> object:
    if value is None or isinstance(value, list | Tensor):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        if 0 <= value < math.inf:
            return value
        raise ValueError("a finite number of at least 0 is expected")
    raise ValueError("a number, or an array of them, is expected")


def _named(value: object) -> object:
    """Of samplers the ancestral one where only its steps are said, as /posterior has it."""
    return {"name": "ancestral", **value} if isinstance(value, dict) else value


DataIn = Annotated[
    Any,
    AfterValidator(_is_list),
    WithJsonSchema({"type": "array", "minItems": 1, "items": _ARRAY}),
]
MaskIn = Annotated[
    Any,
    AfterValidator(_is_mask),
    WithJsonSchema(
        {"anyOf": [{"type": "array", "items": {}}, {"type": "string"}, {"type": "null"}]}
    ),
]
NoiseIn = Annotated[
    Any,
    AfterValidator(_is_noise),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0},
                {"type": "array", "items": {}},
                {"type": "null"},
            ]
        }
    ),
]


class Asked(BaseModel):
    """What every request may say."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    model: str | None = Field(
        None, description="Which model; may be left out where one is served or a default is set."
    )
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="Of the noise; where absent one is drawn and answered."
    )
    _deprecation: tuple[str, ...] = PrivateAttr(())

    @model_validator(mode="wrap")
    @classmethod
    def _rename(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:  # noqa: ANN401
        if not isinstance(value, dict):
            return handler(value)
        fields, notes = rename(value, cls.model_fields)
        request = handler(fields)
        request._deprecation = tuple(notes)
        return request

    @property
    def deprecation(self) -> tuple[str, ...]:
        """A note on each field that came in an old spelling."""
        return self._deprecation


class SampleRequest(Asked):
    """Draw from p(x_0)."""

    model_config = ConfigDict(json_schema_extra={"examples": examples.SAMPLE})

    num_samples: int = Field(1, ge=1, description="How many.")
    sampler: Annotated[SamplerConfig, BeforeValidator(_named)] = Field(
        Ancestral(),
        description="Which steps: `ancestral` (all, or `steps` of them; the default name); of real "
        f"data also {', '.join(f'`{name}`' for name, kind in SAMPLERS.items() if not kind.bits)}.",
    )
    frames: int = Field(
        0,
        ge=0,
        le=100,
        description="Also answer the `trajectory`: every sample's states on the way from noise to "
        "data, at so many steps and the start, evenly spread; no more than there are steps. It "
        "costs no network evaluation, and the samples are the same.",
    )


class LoglikRequest(Asked):
    """A lower bound on log p(x_0) for each example."""

    model_config = ConfigDict(json_schema_extra={"examples": examples.LOGLIK})

    data: DataIn = Field(description="The data, in data units; PNGs in base64 for images.")
    estimator: Literal["bound"] = Field("bound", description="The variational bound K.")
    convention: Convention | None = Field(
        None,
        description="`discretised` (default for images and bits): log-probability of the exact "
        "value; `density` (default for vectors): log-density in data units with the model's own "
        "last step; `paper`: Equation 14 of Sohl-Dickstein et al. 2015 with its fixed last step, "
        "model units.",
    )
    terms: int | None = Field(
        None,
        ge=1,
        description="Network evaluations an example: n of the T steps, drawn without bias.",
    )
    trajectories: int | None = Field(
        None,
        ge=2,
        description="Take the log of the mean weight p(x_0..T) / q(x_1..T | x_0) of so many whole "
        "forward trajectories (Equation 9 of Sohl-Dickstein et al. 2015; Burda et al. 2016): a "
        "bound that tightens as they grow, at T network evaluations each. Not with another choice "
        "of terms.",
    )
    strata: StrataKind = Field(
        "even",
        description="Of which the `terms` are drawn, one of each: of even width, or of even "
        "`importance`, as the model's profile knows it: less error at the same cost.",
    )
    target_error: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Nats; in place of `terms`, as many as leave this standard error to an example "
        "like those the model was trained on, by its profile.",
    )
    steps: int | None = Field(
        None,
        ge=1,
        description="The bound of the chain of n steps in place of T: another one, lower, at n "
        "evaluations and a few more of its last step.",
    )
    spacing: Spacing = Field(
        "optimal", description="Of those steps: the best by the model's profile, or `even`."
    )
    per_step: bool = Field(
        False,
        description="Also answer every term that was evaluated; of trajectories one after the "
        "other, t = 1..T each.",
    )
