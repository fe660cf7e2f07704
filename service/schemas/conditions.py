"""Requests for a posterior: /posterior, and /inpaint and /denoise, which have fewer fields.

Old spellings of their fields are accepted for one release:

    request   `times` -> `expert`, `read` -> `label_probabilities`, `particles` -> into `method`
    method    `resample` -> `repaint`, and its `times` -> `repeats`
"""

import inspect
from collections.abc import Container, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Final, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from typing_extensions import override

from diffusion.operators import LinearOperator, Mask, Operator
from diffusion.posterior.methods import METHODS, Auto, Method
from diffusion.samplers import Ancestral
from service.errors import InvalidRequest
from service.schemas import examples
from service.schemas.requests import BaseRequest, DataIn, MaskIn, NoiseIn

#: The `Deprecation` header (RFC 9745) of an answer to an old spelling: the date it was deprecated.
DEPRECATED_SINCE: Final = f"@{datetime(2026, 11, 29, tzinfo=UTC).timestamp():.0f}"

_RENAMED: Final = {"times": "expert", "read": "label_probabilities"}


class _MethodSchema:
    """Describes a method in the OpenAPI document: an object of its fields, or its name alone."""

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [{"type": "string", "enum": list(METHODS)}, handler(schema)]}


def _from_name(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


def _about_methods() -> str:
    """Join the first sentence of each method's docstring."""
    first = {n: (inspect.getdoc(k) or "").partition("\n\n")[0] for n, k in METHODS.items()}
    return " ".join(f"`{name}`: {sentence}" for name, sentence in first.items())


def _about_steps() -> str:
    """Describe how many steps a chain has by default."""
    most = {name: kind.default_steps for name, kind in METHODS.items() if kind.default_steps}
    return ", ".join(f"at most {steps} with `{name}`" for name, steps in most.items())


MethodIn = Annotated[Method, BeforeValidator(_from_name), _MethodSchema()]
LabelIn = Annotated[str | int, Field(description="A label's name, or its position in the list.")]


class ConditionalRequest(BaseRequest):
    """The fields that all requests for a posterior share.

    Attributes:
        whole: whether everything counts as observed by default.
        noisy: whether the request has to give the noise.
    """

    rows: ClassVar[str | None] = "observed"
    whole: ClassVar[bool] = False
    noisy: ClassVar[bool] = False

    observed: DataIn = Field(
        description="What was observed, in data units: arrays or PNGs. Of a table rows, as objects "
        "by column name or as lists: a column that is left out, null or empty is a gap. A number "
        'may have limits in place of a value: `"<0.01"`, `{"below": 0.01}`, `{"above": 5}` or '
        '`{"between": [1, 2]}`; draws outside are left out, so 16 are made for each sample.'
    )
    noise_std: NoiseIn = Field(
        None,
        description="Real data: the noise's standard deviation in data units, one number, an array "
        "in the shape of one observation, or one array each; 0 or absent: observed exactly.",
    )
    flip_probability: float | None = Field(
        None, ge=0, lt=0.5, description="Bits: the probability that an observed bit was flipped."
    )
    num_samples: int = Field(1, ge=1, description="Samples for each observation.")
    quantiles: list[Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]] | None = Field(
        None,
        min_length=1,
        max_length=99,
        description="Also return these quantiles of the samples, for each element.",
    )
    method: MethodIn = Field(
        default=Auto(name="auto"),
        description=f"A method's name, or an object with its fields. {_about_methods()}",
    )
    sampler: Ancestral = Field(
        Ancestral(),
        description="The chain's steps; a posterior needs the model's own kernel. Without `steps` "
        f"it has all T, but {_about_steps()}.",
    )

    @model_validator(mode="wrap")
    @classmethod
    def _rename(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:  # noqa: ANN401
        if not isinstance(value, dict):
            return handler(value)
        fields, notes = _rename(value, cls.model_fields)
        request = handler(fields)
        request._deprecation = tuple(notes)
        return request

    @property
    def count(self) -> int:
        """The number of requested posteriors."""
        return len(self.observed)

    @property
    def mask(self) -> Any:  # noqa: ANN401 - read by codecs/arrays.py
        """The mask of observed elements; None if the request has none."""
        return None

    @property
    def through(self) -> LinearOperator:
        """The operator of the observation."""
        return Mask()


class PosteriorRequest(ConditionalRequest):
    """Draw from p(x_0) r(x_0), with r the observation's likelihood, and estimate the evidence.

    The observation is y = A x_0 + noise, or bits that may be flipped. A label or another model may
    be a factor too, with or without an observation: p(x_0) r(x_0) p(label | x_0) p_2(x_0).
    """

    model_config = ConfigDict(json_schema_extra={"examples": examples.POSTERIOR})

    whole: ClassVar[bool] = True

    observed: DataIn | None = Field(
        None,
        description="What was observed, in data units: arrays, PNGs or a table's rows. May be "
        "absent with `label` "
        "or `expert`: then there is one posterior for each label given, or one.",
    )
    label: LabelIn | Annotated[list[LabelIn], Field(min_length=1)] | None = Field(
        None,
        description="Multiply by p(label | x_0), from a classifier: one label for all, or a list "
        "with one each. GET /models lists a model's labels.",
    )
    classifier: str | None = Field(
        None, description="Which classifier; optional if only one fits the model."
    )
    expert: str | None = Field(
        None,
        description="Multiply by p_2(x_0) of another served model of the same data and process (a "
        "product of experts). Elements may be observed as well, with covariance `diagonal` or "
        "`independent`.",
    )
    label_probabilities: bool = Field(
        False,
        description="Also return the mean of p(label | x_0) over each posterior's samples, for "
        "every label. For samples drawn without a label it is p(label | observation).",
    )
    known: MaskIn = Field(
        None,
        description="One mask for all, or one each: 1 or white where a value was observed. If "
        "absent, everything that a PNG does not leave transparent. Not with an operator.",
    )
    operator: Operator = Field(
        Mask(),
        description="A, which maps an example in data units to what was observed: its elements "
        "(`mask`), `average-pooling`, `blur` with a kernel, or a `dense` matrix over the flattened "
        "example.",
    )

    @property
    @override
    def count(self) -> int:
        if self.observed is not None:
            return len(self.observed)
        return len(self.label) if isinstance(self.label, list) else 1

    @property
    @override
    def mask(self) -> Any:
        return self.known

    @property
    @override
    def through(self) -> LinearOperator:
        return self.operator


class InpaintRequest(ConditionalRequest):
    """Draw the unobserved values given the observed ones, which may be noisy: p(x_0) r(x_0)."""

    model_config = ConfigDict(json_schema_extra={"examples": examples.INPAINT})

    known: MaskIn = Field(
        None,
        description="One mask for all, or one each: 1 or white where a value was observed. A mask "
        "of pixels [H, W] holds for all channels; what is not opaque in a PNG mask is unknown. Not "
        "needed with transparent PNGs, or for a table, whose gaps are unknown.",
    )

    @property
    @override
    def mask(self) -> Any:
        return self.known


class DenoiseRequest(ConditionalRequest):
    """Draw the data behind noisy observations of all their values."""

    model_config = ConfigDict(json_schema_extra={"examples": examples.DENOISE})

    whole: ClassVar[bool] = True
    noisy: ClassVar[bool] = True


def _rename(given: Mapping[str, Any], known: Container[str]) -> tuple[dict[str, Any], list[str]]:
    """Rename a request's old fields, and return a note on each renamed field.

    Args:
        given: the fields as received, not validated.
        known: the names of the request's fields.

    Raises:
        InvalidRequest: both spellings were sent, or particles for a method without them.
    """
    fields, notes = dict(given), []
    for old, new in _RENAMED.items():
        if old in fields and new in known:
            fields[new] = _moved(fields, old, new, old)
            notes.append(f"`{old}` is now `{new}`.")
    method = fields.get("method", "auto")
    method = dict(method) if isinstance(method, dict) else {"name": method}
    if method.get("name") == "resample":
        method["name"] = "repaint"
        notes.append("method `resample` is now `repaint`.")
        if "times" in method:
            method["repeats"] = _moved(method, "times", "repeats", "method")
            notes.append("`times` of method `repaint` is now `repeats`.")
    if "particles" in fields:
        notes.append("`particles` is now a field of `method`.")
        _move_particles(fields.pop("particles"), method)
    if notes and isinstance(method.get("name"), str):
        fields["method"] = method
    return fields, notes


def _moved(fields: dict[str, Any], old: str, new: str, location: str) -> object:
    if new in fields:
        raise InvalidRequest(
            f"`{old}` is the old name of `{new}`, and both were sent.",
            location=location,
            fix=f"Send only `{new}`.",
        )
    return fields.pop(old)


def _move_particles(particles: object, method: dict[str, Any]) -> None:
    """Move the request's `particles` into the method's fields."""
    kind = METHODS.get(str(method.get("name")))
    weighted = kind is not None and "particles" in kind.model_fields
    if particles is None or (particles == 1 and not weighted):
        return
    if kind is not None and not weighted:
        raise InvalidRequest(
            f"Method '{method['name']}' has no particles.",
            location="method",
            received=f"particles {particles}"[:100],
            fix="Use a method that has them, or ask for more samples with `num_samples`.",
        )
    if method.get("particles", particles) != particles:
        raise InvalidRequest(
            "`particles` of the request and of its method differ.",
            location="method",
            received=f"{particles} and {method['particles']}"[:100],
            fix="Send only the method's field.",
        )
    method["particles"] = particles
