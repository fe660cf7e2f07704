"""The calls: what each takes, checked and packed into a question. Both clients have them all.

A question is a value: `Client().sample(16)` is `Client().ask(questions.sample(16))`, and `stream`
shows its progress. Every call takes `model`, `seed`, `deadline` and `progress` (`requests.Asked`),
and any other field of the service's request by its name.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Unpack
from urllib.parse import quote

import numpy as np

from noneq.answer import Timing
from noneq.answers import Likelihoods, Posterior, Samples
from noneq.codec import Array, Body, Data, packed
from noneq.models import ModelFacts, Models, read_model, read_models
from noneq.requests import Asked, Drawn, Question, SamplerName, question, sampler_of

__all__ = ["denoise", "examples", "inpaint", "loglik", "model", "models", "posterior", "sample"]

Label = str | int


def sample(
    num_samples: int = 1,
    *,
    sampler: SamplerName = "ancestral",
    steps: int | None = None,
    frames: int | None = None,
    **asked: Unpack[Drawn],
) -> Question[Samples]:
    """Draw from p(x_0): POST /sample.

    Args:
        num_samples: how many.
        sampler: "ancestral", "ddim" or "dpmpp_2m", or with its settings as the service takes them:
            {"name": "ddim", "steps": 50, "eta": 0}.
        steps: of the sampler; None for all T (dpmpp_2m and ddim: the service's default).
        frames: how many states on the way are answered beside the first, as `trajectory`.
        asked: previews, and what every call takes.
    """
    fields = {
        "num_samples": num_samples,
        "sampler": sampler_of(sampler, steps),
        "frames": frames,
        **asked,
    }
    return question("/sample", Samples, Samples.lift, fields)


class Terms(Asked, total=False):
    """How `loglik` estimates a bound; left out, all T terms of it.

    Attributes:
        convention: "discretised", "density" or "paper"; None for the data's own.
        terms: network evaluations an example.
        strata: that they are drawn from: "even", or of even "importance" by the model's profile.
        target_error: nats; in place of `terms`, as many as leave this standard error.
        trajectories: bound by the mean weight of so many whole trajectories.
        steps: of a shorter chain whose bound it is.
        spacing: of those steps: "optimal" by the model's profile, or "even".
    """

    convention: str | None
    terms: int | None
    strata: str | None
    target_error: float | None
    trajectories: int | None
    steps: int | None
    spacing: str | None


def loglik(data: Data, *, per_step: bool = False, **asked: Unpack[Terms]) -> Question[Likelihoods]:
    """Bound log p(x_0) from below: POST /loglik.

    Args:
        data: [N, *shape] in data units; an array, or a list of arrays.
        per_step: also answer every term that was evaluated.
        asked: terms, trajectories, ... as `Terms` has them, and what every call takes.
    """
    array = packed(data)
    dims = math.prod(array.shape[1:])

    def read(body: Body, timing: Timing) -> Likelihoods:
        return Likelihoods(Body({**body.fields, "dims": dims}, body.tensors), timing)

    fields = {"per_step": per_step or None, **asked}
    return question("/loglik", read, Likelihoods.lift, fields, data=array)


class Conditions(Drawn, total=False):
    """What `posterior`, `inpaint` and `denoise` take alike.

    Attributes:
        noise_std: of what was observed, data units: one number, or an array as `observed`; None
            for none.
        flip_probability: bits, in its place: each one seen was flipped with this probability.
        num_samples: for each example; 1 where it is left out.
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


def models() -> Question[Models]:
    """What is served: GET /models."""
    return Question("/models", lambda body, _: read_models(body.fields))


def model(name: str) -> Question[ModelFacts]:
    """Everything that a model's artefact says: GET /models/NAME."""
    return Question(f"/models/{quote(name, safe='')}", lambda body, _: read_model(body.fields))


def examples(name: str, count: int = 16) -> Question[Array]:
    """Held-out data to try a model on: GET /models/NAME/examples; [n, *shape], data units.

    Args:
        name: of the model.
        count: how many at most; a model that ships none has none.
    """
    path = f"/models/{quote(name, safe='')}/examples?count={count:d}"
    return Question(path, lambda body, _: np.asarray(body.fields["data"], np.float32))
