"""Pydantic models of the requests, which /docs shows.

Arrays stay nested lists here: their shapes and values depend on the model and are checked when they
are read (codecs/arrays.py).
"""

import math
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    WithJsonSchema,
)
from torch import Tensor

from diffusion.likelihood.estimator import Spacing, StrataKind
from diffusion.samplers import SAMPLERS, Ancestral, SamplerConfig
from diffusion.space import Convention
from service.schemas import examples

MAX_SEED: Final = 2**63 - 1

_ARRAY = {
    "description": "Nested lists of numbers, or a base64 PNG of an image; of a table a row, as an "
    "object by column name or a list in which null is a gap."
}


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


def _or_null(*types: dict[str, Any]) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [*types, {"type": "null"}]})


def _with_name(value: object) -> object:
    return {"name": "ancestral", **value} if isinstance(value, dict) else value


DataIn = Annotated[
    Any,
    AfterValidator(_is_list),
    WithJsonSchema({"type": "array", "minItems": 1, "items": _ARRAY}),
]
MaskIn = Annotated[
    Any, AfterValidator(_is_mask), _or_null({"type": "array", "items": {}}, {"type": "string"})
]
NoiseIn = Annotated[
    Any,
    AfterValidator(_is_noise),
    _or_null({"type": "number", "minimum": 0}, {"type": "array", "items": {}}),
]
SamplerIn = Annotated[SamplerConfig, BeforeValidator(_with_name)]


class BaseRequest(BaseModel):
    """The fields of every request.

    Attributes:
        rows: the field that a CSV body fills; None if it has no rows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    rows: ClassVar[str | None] = None

    model: str | None = Field(
        None,
        description="The model's name; optional if only one is served or a default is set.",
    )
    seed: int | None = Field(
        None,
        ge=0,
        le=MAX_SEED,
        description="Seed of the noise. If absent, one is drawn and returned.",
    )
    _deprecation: tuple[str, ...] = PrivateAttr(())

    @property
    def deprecation(self) -> tuple[str, ...]:
        """A note on each field that was sent under an old name."""
        return self._deprecation


class SampleRequest(BaseRequest):
    """Draw from p(x_0)."""

    model_config = ConfigDict(json_schema_extra={"examples": examples.SAMPLE})

    num_samples: int = Field(1, ge=1, description="How many.")
    sampler: SamplerIn = Field(
        Ancestral(),
        description="The sampler: `ancestral` (all steps, or `steps`; the default); for real "
        f"data also {', '.join(f'`{name}`' for name, kind in SAMPLERS.items() if not kind.bits)}.",
    )
    frames: int = Field(
        0,
        ge=0,
        le=100,
        description="Also return the `trajectory`: the states of every sample at this many steps, "
        "evenly spread from noise to data, and at the start; no more than there are steps. It "
        "costs no network evaluation, and the samples are the same.",
    )


class LoglikRequest(BaseRequest):
    """Bound log p(x_0) of given data from below, with the estimate's standard error."""

    model_config = ConfigDict(json_schema_extra={"examples": examples.LOGLIK})

    rows: ClassVar[str | None] = "data"

    data: DataIn = Field(
        description="The data, in data units; images may be base64 PNGs. Of a table rows, as "
        "objects by column name or as lists; gaps are left out of the bound."
    )
    known: MaskIn = Field(
        None,
        description="Bound log p(the other elements | these) instead: 1 or white where an element "
        "is given, one mask for all, or one each. For models whose network can be told what was "
        "seen (`conditional` in GET /models). With the same seed, this and the bound of the whole "
        "take the same noise, and their difference estimates log p(these) with less.",
    )
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
        description="Network evaluations per example: n of the T steps, drawn without bias.",
    )
    trajectories: int | None = Field(
        None,
        ge=2,
        description="Take the log of the mean weight p(x_0..T) / q(x_1..T | x_0) of this many "
        "whole forward trajectories (Equation 9 of Sohl-Dickstein et al. 2015; Burda et al. 2016): "
        "a bound that tightens with their number, at T network evaluations each. Excludes the "
        "other choices of terms.",
    )
    strata: StrataKind = Field(
        "even",
        description="One of the `terms` is drawn from each stratum of 1..T. Strata have even "
        "width, or even `importance` by the model's profile: less error at the same cost.",
    )
    target_error: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Nats. Instead of `terms`: as many as give this standard error for an example "
        "like the training data, by the model's profile.",
    )
    steps: int | None = Field(
        None,
        ge=1,
        description="The bound of the chain of n steps instead of T: a different, lower bound, at "
        "n evaluations and a few more of its last step.",
    )
    spacing: Spacing = Field(
        "optimal", description="Which n steps: the best by the model's profile, or `even`."
    )
    per_step: bool = Field(
        False,
        description="Also return every term that was evaluated; for trajectories one trajectory "
        "after the other, t = 1..T each.",
    )
