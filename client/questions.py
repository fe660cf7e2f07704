"""The calls: what each takes, checked and packed into a question. Both clients have them all.

Every call takes `model` (may be left out where one is served), `seed` (drawn where it is None, and
sent, so that asking again gives the same answer), `progress` (told how far it is, see events.py),
`deadline` (seconds after which the answer is of no use), and any other field of the service's
request by its name.
"""

import math
import secrets
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from client.answer import Timing
from client.answers import Likelihoods, Posterior, Samples
from client.events import Listener
from client.models import ModelFacts, Models, read_model, read_models
from client.question import Question
from client.wire import Array, Body, Data, packed

SamplerName = str | Mapping[str, Any]


def sample(
    num_samples: int = 1,
    *,
    model: str | None = None,
    seed: int | None = None,
    sampler: SamplerName = "ancestral",
    steps: int | None = None,
    frames: int = 0,
    progress: Listener | None = None,
    previews: int = 0,
    deadline: float | None = None,
    **more: object,
) -> Question[Samples]:
    """Draw from p(x_0): POST /sample.

    Args:
        num_samples: how many.
        model: which; see above for this, `seed`, `progress` and `deadline`.
        seed: of the noise.
        sampler: "ancestral", "ddim" or "dpmpp_2m", or with its settings as the service takes them:
            {"name": "ddim", "steps": 50, "eta": 0}.
        steps: of the sampler; None for all T (dpmpp_2m and ddim: the service's default).
        frames: how many states on the way are answered beside the first, as `trajectory`.
        progress: called with each `Progress`, and `Preview`.
        previews: how many samples are shown on their way.
        deadline: seconds.
        more: further fields of the request.
    """
    fields = {"num_samples": num_samples, "sampler": _sampler(sampler, steps), **more}
    if frames:
        fields["frames"] = frames
    return Question(
        "/sample",
        Samples,
        Samples.lift,
        _body(model, seed, fields),
        deadline,
        progress,
        previews,
    )


def loglik(
    data: Data,
    *,
    model: str | None = None,
    seed: int | None = None,
    convention: str | None = None,
    terms: int | None = None,
    trajectories: int | None = None,
    steps: int | None = None,
    per_step: bool = False,
    progress: Listener | None = None,
    deadline: float | None = None,
    **more: object,
) -> Question[Likelihoods]:
    """Bound log p(x_0) from below: POST /loglik.

    Args:
        data: [N, *shape] in data units; an array, or a list of arrays.
        model: which; see above for this, `seed`, `progress` and `deadline`.
        seed: of the noise.
        convention: "discretised", "density" or "paper"; None for the data's own.
        terms: network evaluations a datum; None for all T.
        trajectories: bound by the mean weight of so many whole trajectories.
        steps: of a shorter chain whose bound it is.
        per_step: also answer every term that was evaluated.
        progress: called with each `Progress`.
        deadline: seconds.
        more: further fields of the request, such as strata="importance" or target_error=20.
    """
    asked = {
        "convention": convention, "terms": terms, "trajectories": trajectories, "steps": steps,
        "per_step": per_step or None, **more,
    }  # fmt: skip
    array = packed(data)
    dims = math.prod(array.shape[1:])

    def read(body: Body, timing: Timing) -> Likelihoods:
        return Likelihoods(Body({**body.fields, "dims": dims}, body.tensors), timing)

    body = _body(model, seed, asked, data=array)
    return Question("/loglik", read, Likelihoods.lift, body, deadline, progress)


def inpaint(
    observed: Data,
    known: Data,
    *,
    num_samples: int = 1,
    noise_std: float | None = None,
    flip_probability: float | None = None,
    method: str | None = None,
    particles: int | None = None,
    steps: int | None = None,
    model: str | None = None,
    seed: int | None = None,
    progress: Listener | None = None,
    previews: int = 0,
    deadline: float | None = None,
    **more: object,
) -> Question[Posterior]:
    """Draw what was not observed, given what was: POST /inpaint.

    Args:
        observed: [N, *shape] in data units; what was not seen may be anything.
        known: 1 or True where a value was observed: [*shape] for all data or [N, *shape]; a mask of
            pixels [H, W] or [N, H, W] holds for all channels.
        num_samples: for each datum.
        noise_std: of the observation, data units; None for none.
        flip_probability: bits: each one seen was flipped with this probability.
        method: as the service has them; None for its choice.
        particles: for methods that carry some.
        steps: of the ancestral sampler; None for all T.
        model: which; see above for this, `seed`, `progress` and `deadline`.
        seed: of the noise.
        progress: called with each `Progress`, and `Preview`.
        previews: how many samples are shown on their way.
        deadline: seconds.
        more: further fields of the request.
    """
    asked = _posterior(num_samples, noise_std, flip_probability, method, particles, steps) | more
    body = _body(model, seed, asked, observed=packed(observed), known=packed(known))
    return Question("/inpaint", Posterior, Posterior.lift, body, deadline, progress, previews)


def denoise(
    observed: Data,
    *,
    noise_std: float | None = None,
    flip_probability: float | None = None,
    num_samples: int = 1,
    method: str | None = None,
    particles: int | None = None,
    steps: int | None = None,
    model: str | None = None,
    seed: int | None = None,
    progress: Listener | None = None,
    previews: int = 0,
    deadline: float | None = None,
    **more: object,
) -> Question[Posterior]:
    """Draw the data behind noisy observations of all their values: POST /denoise.

    Args:
        observed: [N, *shape] in data units.
        noise_std: the noise's deviation, data units.
        flip_probability: bits, in its place.
        num_samples: for each datum.
        method: as the service has them; None for its choice.
        particles: for methods that carry some.
        steps: of the ancestral sampler; None for all T.
        model: which; see above for this, `seed`, `progress` and `deadline`.
        seed: of the noise.
        progress: called with each `Progress`, and `Preview`.
        previews: how many samples are shown on their way.
        deadline: seconds.
        more: further fields of the request.
    """
    asked = _posterior(num_samples, noise_std, flip_probability, method, particles, steps) | more
    body = _body(model, seed, asked, observed=packed(observed))
    return Question("/denoise", Posterior, Posterior.lift, body, deadline, progress, previews)


def posterior(
    observed: Data | None = None,
    known: Data | None = None,
    *,
    operator: Mapping[str, object] | None = None,
    noise_std: float | Array | None = None,
    flip_probability: float | None = None,
    num_samples: int = 1,
    quantiles: Sequence[float] | None = None,
    method: str | Mapping[str, object] | None = None,
    particles: int | None = None,
    steps: int | None = None,
    model: str | None = None,
    seed: int | None = None,
    progress: Listener | None = None,
    previews: int = 0,
    deadline: float | None = None,
    **more: object,
) -> Question[Posterior]:
    """Draw data given anything linear that was seen of them: POST /posterior.

    Args:
        observed: y, [N, *seen] in data units; None where only other fields say something.
        known: 1 or True where a value was observed, as `inpaint` has it; None for everything.
        operator: through which it was seen: {"kind": "average-pooling", "size": 4}, {"kind":
            "blur", "kernel": rows}, {"kind": "dense", "rows": rows}; None for elements as they are.
        noise_std: of the observation, data units: one number, or an array as `observed`.
        flip_probability: bits: each one seen was flipped with this probability.
        num_samples: for each datum.
        quantiles: also answer these of the samples.
        method: its name, or its fields: {"name": "twisted", "particles": 16, "systems": "joint"}.
        particles: for methods that carry some.
        steps: of the ancestral sampler; None for the service's choice.
        model: which; see above for this, `seed`, `progress` and `deadline`.
        seed: of the noise.
        progress: called with each `Progress`, and `Preview`.
        previews: how many samples are shown on their way.
        deadline: seconds.
        more: further fields of the request.
    """
    given: dict[str, Data | None] = {"observed": observed, "known": known}
    number = noise_std if isinstance(noise_std, int | float) else None
    if not isinstance(noise_std, int | float):
        given["noise_std"] = noise_std
    arrays = {name: packed(x) for name, x in given.items() if x is not None}
    asked = _posterior(num_samples, number, flip_probability, method, particles, steps) | more
    asked |= {"operator": operator, "quantiles": quantiles}
    body = _body(model, seed, asked, **arrays)
    return Question("/posterior", Posterior, Posterior.lift, body, deadline, progress, previews)


def models() -> Question[Models]:
    """What is served: GET /models."""
    return Question("/models", lambda body, _: read_models(body.fields))


def model(name: str) -> Question[ModelFacts]:
    """Everything that a model's artefact says: GET /models/NAME."""
    return Question(f"/models/{quote(name, safe='')}", lambda body, _: read_model(body.fields))


def draw_seed() -> int:
    """A fresh seed, that every reader of JSON holds exactly."""
    return secrets.randbelow(2**32)


def _body(
    model: str | None, seed: int | None, fields: Mapping[str, object], **tensors: Array
) -> Body:
    asked = {"model": model, **fields, "seed": draw_seed() if seed is None else seed}
    return Body({name: x for name, x in asked.items() if x is not None}, tensors)


def _sampler(sampler: SamplerName, steps: int | None) -> dict[str, Any]:
    found = {"name": sampler} if isinstance(sampler, str) else dict(sampler)
    return found if steps is None else {**found, "steps": steps}


def _posterior(
    num_samples: int,
    noise_std: float | None,
    flip_probability: float | None,
    method: str | Mapping[str, object] | None,
    particles: int | None,
    steps: int | None,
) -> dict[str, object]:
    return {
        "num_samples": num_samples,
        "noise_std": noise_std,
        "flip_probability": flip_probability,
        "method": method,
        "particles": particles,
        "sampler": None if steps is None else _sampler("ancestral", steps),
    }
