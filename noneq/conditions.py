"""The calls that draw data given what was observed of them: /posterior and its special cases."""

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np

from noneq.answers import Posterior
from noneq.question import Question
from noneq.request import Drawn, question, sampler_of
from noneq.wire import Data, packed

Label = str | int


class Conditions(Drawn, total=False):
    """What `posterior`, `inpaint` and `denoise` take alike.

    Attributes:
        noise_std: of what was observed, data units: one number, or an array as `observed`; None
            for none.
        flip_probability: bits, in its place: each one seen was flipped with this probability.
        num_samples: for each datum; 1 where it is left out.
        quantiles: of the samples, also answered.
        method: its name, or its fields: {"name": "twisted", "particles": 16, "systems": "joint"};
            None for the service's choice.
        steps: of the ancestral sampler; None for the service's choice.
    """

    noise_std: Data | None
    flip_probability: float | None
    num_samples: int
    quantiles: Sequence[float] | None
    method: str | Mapping[str, object] | None
    steps: int | None


def inpaint(observed: Data, known: Data, **asked: Unpack[Conditions]) -> Question[Posterior]:
    """Draw what was not observed, given what was: POST /inpaint.

    Args:
        observed: [N, *shape] in data units; what was not seen may be anything.
        known: 1 or True where a value was observed: [*shape] for all data or [N, *shape]; a mask of
            pixels [H, W] or [N, H, W] holds for all channels.
        asked: noise_std, num_samples, method, ... as `Conditions` has them, and what every call
            takes.
    """
    return _posterior("/inpaint", dict(asked), observed=observed, known=known)


def denoise(observed: Data, **asked: Unpack[Conditions]) -> Question[Posterior]:
    """Draw the data behind noisy observations of all their values: POST /denoise.

    Args:
        observed: [N, *shape] in data units.
        asked: noise_std, num_samples, method, ... as `Conditions` has them, and what every call
            takes.
    """
    return _posterior("/denoise", dict(asked), observed=observed)


def posterior(
    observed: Data | None = None,
    known: Data | None = None,
    *,
    operator: Mapping[str, object] | None = None,
    label: Label | Sequence[Label] | None = None,
    classifier: str | None = None,
    expert: str | None = None,
    label_probabilities: bool = False,
    **asked: Unpack[Conditions],
) -> Question[Posterior]:
    """Draw data given anything linear that was seen of them, or what they show: POST /posterior.

    Args:
        observed: y, [N, *seen] in data units; None where only a label or `expert` says something.
        known: 1 or True where a value was observed, as `inpaint` has it; None for everything.
        operator: through which it was seen: {"kind": "average-pooling", "size": 4}, {"kind":
            "blur", "kernel": rows}, {"kind": "dense", "rows": rows}; None for elements as they are.
        label: what the data are to show, by name or place: one for all, or one each. `models()`
            tells each model's labels.
        classifier: that reads labels; not needed where one fits the model.
        expert: another served model of the same data, by whose density p(x_0) is multiplied.
        label_probabilities: also answer how likely each label is, in the mean over the samples.
        asked: noise_std, num_samples, method, ... as `Conditions` has them, and what every call
            takes.
    """
    fields = {
        "operator": operator, "label": label, "classifier": classifier, "expert": expert,
        "label_probabilities": label_probabilities or None, **asked,
    }  # fmt: skip
    return _posterior("/posterior", fields, observed=observed, known=known)


def _posterior(path: str, asked: dict[str, Any], **given: Data | None) -> Question[Posterior]:
    noise = asked.get("noise_std")
    if noise is not None and np.ndim(noise):
        given["noise_std"] = asked.pop("noise_std")
    steps = asked.pop("steps", None)
    if steps is not None:
        asked["sampler"] = sampler_of("ancestral", steps)
    arrays = {name: packed(x) for name, x in given.items() if x is not None}
    return question(path, Posterior, Posterior.lift, asked, **arrays)
