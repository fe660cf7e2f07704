"""What each call sends: its arguments, checked and packed into a `Request`.

A request is a value: `Client().sample(16)` is `Client().send(requests.sample(16))`, and
`Client().stream(requests.sample(16))` yields its progress too. Every call takes `model`, `seed`,
`deadline` and `progress` (`CallOptions`), and any other field of the service's request by its name.
"""

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypedDict, TypeVar, Unpack, final
from urllib.parse import quote

import numpy as np

from noneq import codec
from noneq.codec import BINARY, EVENTS, JSON, Array, Body, Data, Timing, packed
from noneq.models import ModelFacts, Models, read_model, read_models
from noneq.responses import Likelihoods, Posterior, Samples
from noneq.sse import Listener

__all__ = ["denoise", "examples", "inpaint", "loglik", "model", "models", "posterior", "sample"]

T = TypeVar("T")
Label = str | int
SamplerName = str | Mapping[str, Any]


@final
@dataclass(frozen=True)
class Request(Generic[T]):
    """One call of the service.

    Attributes:
        path: of the route.
        read: makes the response from a body and its timing.
        from_json: makes a body from a JSON document.
        body: what is sent; None for GET.
        deadline: seconds after which the service drops the request.
        listener: called with the progress while the call waits.
        previews: how many of the first samples the progress shows.
        streamed: whether the response comes as an event stream; it does if there is a listener.
    """

    path: str
    read: Callable[[Body, Timing], T]
    from_json: Callable[[Mapping[str, Any]], Body] = Body
    body: Body | None = None
    deadline: float | None = None
    listener: Listener | None = None
    previews: int = 0
    streamed: bool = False

    @property
    def method(self) -> str:
        """GET or POST."""
        return "GET" if self.body is None else "POST"

    @cached_property
    def content(self) -> tuple[bytes, str] | None:
        """The body's bytes and their content type, made once for all attempts."""
        return None if self.body is None else codec.encode(self.body)

    @property
    def headers(self) -> dict[str, str]:
        """The HTTP headers."""
        found = {"accept": self._accept()}
        if self.content is not None:
            found["content-type"] = self.content[1]
        if self.deadline is not None:
            found["x-deadline"] = f"{self.deadline:.6f}"
        return found

    def _accept(self) -> str:
        if self.body is None:
            return JSON
        if self.listener is None and not self.streamed:
            return BINARY
        return f"{EVENTS}; previews={self.previews}" if self.previews else EVENTS


class CallOptions(TypedDict, total=False):
    """What every call takes.

    Attributes:
        model: its name; not needed if one model is served, or a default is set.
        seed: of the noise. If None, one is drawn and sent, so a repeated request gives the same
            answer.
        deadline: seconds after which the service drops the request.
        progress: called with each `Progress` and `Preview` on the way to the answer.
    """

    model: str | None
    seed: int | None
    deadline: float | None
    progress: Listener | None


class SampleOptions(CallOptions, total=False):
    """What every call that draws samples takes.

    Attributes:
        previews: how many of the first samples the progress shows.
    """

    previews: int


def sample(
    num_samples: int = 1,
    *,
    sampler: SamplerName = "ancestral",
    steps: int | None = None,
    frames: int | None = None,
    **options: Unpack[SampleOptions],
) -> Request[Samples]:
    """Draw from p(x_0): POST /sample.

    Args:
        num_samples: how many.
        sampler: "ancestral", "ddim" or "dpmpp_2m", or with its settings as the service takes them:
            {"name": "ddim", "steps": 50, "eta": 0}.
        steps: of the sampler; None for all T (dpmpp_2m and ddim: the service's default).
        frames: how many intermediate states to return after the first, as `trajectory`.
        options: previews, and what every call takes.
    """
    fields = {
        "num_samples": num_samples,
        "sampler": _sampler(sampler, steps),
        "frames": frames,
        **options,
    }
    return _post("/sample", Samples, codec.samples_from_json, fields)


class LoglikOptions(CallOptions, total=False):
    """How `loglik` estimates a bound; by default from all of its T terms.

    Attributes:
        convention: "discretised", "density" or "paper"; None for the default of the data.
        terms: network evaluations an example.
        strata: from which the terms are drawn: "even", or of even "importance" by the model's
            profile.
        target_error: nats; in place of `terms`, as many as leave this standard error.
        trajectories: bound by the mean weight of this many whole trajectories.
        steps: of a shorter chain, whose bound is returned.
        spacing: of those steps: "optimal" by the model's profile, or "even".
    """

    convention: str | None
    terms: int | None
    strata: str | None
    target_error: float | None
    trajectories: int | None
    steps: int | None
    spacing: str | None


def loglik(
    data: Data, *, per_step: bool = False, **options: Unpack[LoglikOptions]
) -> Request[Likelihoods]:
    """Bound log p(x_0) from below: POST /loglik.

    Args:
        data: [N, *shape] in data units; an array, or a list of arrays.
        per_step: also return every evaluated term.
        options: terms, trajectories, ... (`LoglikOptions`), and what every call takes.
    """
    array = packed(data)
    dims = math.prod(array.shape[1:])

    def read(body: Body, timing: Timing) -> Likelihoods:
        return Likelihoods(Body({**body.fields, "dims": dims}, body.tensors), timing)

    fields = {"per_step": per_step or None, **options}
    return _post("/loglik", read, codec.likelihoods_from_json, fields, data=array)


class PosteriorOptions(SampleOptions, total=False):
    """What `posterior`, `inpaint` and `denoise` have in common.

    Attributes:
        noise_std: of the observation, data units: one number, or an array as `observed`; None for
            no noise.
        flip_probability: in place of `noise_std` for bits: the probability that each was flipped.
        num_samples: for each example; 1 by default.
        quantiles: of the samples, to return as well.
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


def inpaint(observed: Data, known: Data, **options: Unpack[PosteriorOptions]) -> Request[Posterior]:
    """Draw the unobserved values given the observed ones: POST /inpaint.

    Args:
        observed: [N, *shape] in data units; unobserved values may be anything.
        known: 1 or True where a value was observed: [*shape] for all data or [N, *shape]; a mask of
            pixels [H, W] or [N, H, W] holds for all channels.
        options: noise_std, num_samples, method, ... (`PosteriorOptions`), and what every call
            takes.
    """
    return _posterior("/inpaint", dict(options), observed=observed, known=known)


def denoise(observed: Data, **options: Unpack[PosteriorOptions]) -> Request[Posterior]:
    """Draw the data behind noisy observations of all their values: POST /denoise.

    Args:
        observed: [N, *shape] in data units.
        options: noise_std, num_samples, method, ... (`PosteriorOptions`), and what every call
            takes.
    """
    return _posterior("/denoise", dict(options), observed=observed)


def posterior(
    observed: Data | None = None,
    known: Data | None = None,
    *,
    operator: Mapping[str, object] | None = None,
    label: Label | Sequence[Label] | None = None,
    classifier: str | None = None,
    expert: str | None = None,
    label_probabilities: bool = False,
    **options: Unpack[PosteriorOptions],
) -> Request[Posterior]:
    """Draw data given a linear observation, a label, or both: POST /posterior.

    Args:
        observed: y, [N, *observed shape] in data units; None if only a label or `expert` is given.
        known: 1 or True where a value was observed, as `inpaint` has it; None for everything.
        operator: of the observation: {"kind": "average-pooling", "size": 4}, {"kind": "blur",
            "kernel": rows}, {"kind": "dense", "rows": rows}; None for the elements themselves.
        label: that the data should have, by name or index: one for all, or one each. `models()`
            lists each model's labels.
        classifier: that reads labels; not needed if only one fits the model.
        expert: another served model of the same data, by whose density p(x_0) is multiplied.
        label_probabilities: also return each label's probability, the mean over the samples.
        options: noise_std, num_samples, method, ... (`PosteriorOptions`), and what every call
            takes.
    """
    fields = {
        "operator": operator, "label": label, "classifier": classifier, "expert": expert,
        "label_probabilities": label_probabilities or None, **options,
    }  # fmt: skip
    return _posterior("/posterior", fields, observed=observed, known=known)


def models() -> Request[Models]:
    """What is served: GET /models."""
    return Request("/models", lambda body, _: read_models(body.fields))


def model(name: str) -> Request[ModelFacts]:
    """What a model's artefact says: GET /models/NAME."""
    return Request(f"/models/{quote(name, safe='')}", lambda body, _: read_model(body.fields))


def examples(name: str, count: int = 16) -> Request[Array]:
    """Held-out data to try a model on: GET /models/NAME/examples; [n, *shape], data units.

    Args:
        name: of the model.
        count: at most this many; a model may come with none.
    """
    path = f"/models/{quote(name, safe='')}/examples?count={count:d}"
    return Request(path, lambda body, _: np.asarray(body.fields["data"], np.float32))


def _posterior(path: str, fields: dict[str, Any], **arrays: Data | None) -> Request[Posterior]:
    noise = fields.get("noise_std")
    if noise is not None and np.ndim(noise):
        arrays["noise_std"] = fields.pop("noise_std")
    steps = fields.pop("steps", None)
    if steps is not None:
        fields["sampler"] = _sampler("ancestral", steps)
    tensors = {name: packed(x) for name, x in arrays.items() if x is not None}
    return _post(path, Posterior, codec.posterior_from_json, fields, **tensors)


def _post(
    path: str,
    read: Callable[[Body, Timing], T],
    from_json: Callable[[Mapping[str, Any]], Body],
    options: Mapping[str, Any],
    **tensors: Array,
) -> Request[T]:
    """A POST request of all fields that are not None; `tensors` are those that are arrays."""
    fields = {name: x for name, x in options.items() if x is not None}
    listener, previews = fields.pop("progress", None), fields.pop("previews", 0)
    deadline = fields.pop("deadline", None)
    fields.setdefault("seed", secrets.randbelow(2**32))  # which JSON holds exactly
    return Request(path, read, from_json, Body(fields, tensors), deadline, listener, previews)


def _sampler(sampler: SamplerName, steps: int | None) -> dict[str, Any]:
    found = {"name": sampler} if isinstance(sampler, str) else dict(sampler)
    return found if steps is None else {**found, "steps": steps}
