"""Which terms of a bound are evaluated, as it is asked for: settled once, before any network call.

Of the chain of all T steps, all terms or some; or of the chain of N steps, whose bound is another,
lower one, at N evaluations.
"""

from typing import Literal, final

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from diffusion.likelihood.estimator import (
    Steps,
    Strata,
    choose_steps,
    even_strata,
    important_strata,
    strata_for,
)
from diffusion.model import DiffusionModel
from diffusion.paths import even
from diffusion.profile import Profile
from diffusion.space import Convention

StrataKind = Literal["even", "importance"]
Spacing = Literal["even", "optimal"]


@final
class Choice(BaseModel):
    """What is asked of the terms.

    Attributes:
        terms: network evaluations a datum; None for all of the chain's steps.
        strata: of even width, or of even importance: then the same number of terms leaves less
            error.
        target_error: nats; in place of `terms`, as many as leave this standard error to the bound
            of a datum like those of the training data.
        steps: of the chain; None for all T.
        spacing: of those steps: the profile's best, or even.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    terms: int | None = Field(None, ge=1)
    strata: StrataKind = "even"
    target_error: float | None = Field(None, gt=0)
    steps: int | None = Field(None, ge=1)
    spacing: Spacing = "optimal"

    def settle(
        self, model: DiffusionModel, rows: Tensor, seed: int, convention: Convention
    ) -> Steps:
        """The terms of data `rows` (int64 [N], the noise's rows).

        Raises:
            ValueError: what cannot be had together, or not of this model.
        """
        T = model.T
        if self.steps is not None:
            if self.strata != "even" or self.target_error is not None:
                raise ValueError(
                    "importance and errors are known of the chain of all steps: ask for `steps`, "
                    "or for `target_error` or importance"
                )
            path = self.path(model)
            return choose_steps(T, rows, seed, convention, self.terms, path=path)
        strata = self._strata(model, convention)
        return choose_steps(
            T,
            rows,
            seed,
            convention,
            self.terms,
            strata=strata,
            profile=model.profile,
            own=convention == model.space.default_convention,
            bits=model.space.kind == "bits",
        )

    def path(self, model: DiffusionModel) -> Tensor:
        """The chain's places 0 = t_0 < ... < t_N = T, int64 [N + 1]."""
        steps = model.T if self.steps is None else self.steps
        if steps > model.T:
            raise ValueError(f"this model has {model.T} steps, came {steps}: ask for fewer")
        if self.spacing == "even" or steps == model.T:
            return even(model.T, steps)
        return _profile(model).path(steps)

    def _strata(self, model: DiffusionModel, convention: Convention) -> Strata | None:
        important = self.strata == "importance"
        if self.target_error is None:
            if (
                not important
                or self.terms is None
                or self.terms >= even_strata(model.T, convention).count
            ):
                return None
            return important_strata(_profile(model), convention, self.terms)
        if self.terms is not None:
            raise ValueError("`terms` and `target_error` exclude each other: ask for one of them")
        if convention not in (model.space.default_convention, "paper"):
            raise ValueError(
                f"errors are known in convention {model.space.default_convention!r} and 'paper', "
                f"came {convention!r}: ask for `terms`"
            )
        profile = _profile(model)

        def choose(terms: int) -> Strata:
            if important:
                return important_strata(profile, convention, terms)
            return even_strata(model.T, convention, terms)

        return strata_for(profile, convention, self.target_error, choose)


def _profile(model: DiffusionModel) -> Profile:
    if model.profile is None:
        raise ValueError(
            "importance, errors and the best spacing are read from the model's profile, and there "
            "is none: measure it with `python -m training profile NAME --write`, or ask for "
            "`terms` of even strata, or for even `spacing`"
        )
    return model.profile
