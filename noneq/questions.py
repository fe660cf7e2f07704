"""The calls: what each takes, checked and packed into a question. Both clients have them all.

A question is a value: `Client().sample(16)` is `Client().ask(questions.sample(16))`, and `stream`
tells how it fares. Every call takes `model`, `seed`, `deadline` and `progress` (`request.Asked`),
and any other field of the service's request by its name.
"""

import math
from typing import Unpack
from urllib.parse import quote

import numpy as np

from noneq.answer import Timing
from noneq.answers import Likelihoods, Samples
from noneq.conditions import denoise, inpaint, posterior
from noneq.models import ModelFacts, Models, read_model, read_models
from noneq.question import Question
from noneq.request import Asked, Drawn, SamplerName, question, sampler_of
from noneq.wire import Array, Body, Data, packed

__all__ = ["denoise", "examples", "inpaint", "loglik", "model", "models", "posterior", "sample"]


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
        terms: network evaluations a datum.
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
