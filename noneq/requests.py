"""Builds the requests: checks the arguments of each call and packs them into a `Request`.

A request is a value: `Client().sample(16)` is `Client().send(requests.sample(16))`, and
`Client().stream(requests.sample(16))` yields its progress too. Every call takes `model`, `seed`,
`deadline` and `progress` (`CallOptions`), and any other field of the service's request by its name.
"""

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypedDict, TypeVar, Unpack, final
from urllib.parse import quote

import numpy as np

from noneq import codec
from noneq.codec import BINARY, EVENTS, JSON, Array, Body, Data, Timing, packed
from noneq.models import ModelChange, ModelFacts, Models, read_change, read_model, read_models
from noneq.responses import Likelihoods, Posterior, Samples
from noneq.retries import Patience
from noneq.sse import Listener

__all__ = [
    "denoise",
    "examples",
    "inpaint",
    "load",
    "loglik",
    "model",
    "models",
    "posterior",
    "sample",
    "unload",
]

T = TypeVar("T")
Label = str | int
Rows = Sequence[Mapping[str, Any]]
SamplerName = str | Mapping[str, Any]


@final
@dataclass(frozen=True)
class Request(Generic[T]):
    """One call of the service.

    Attributes:
        path: the route's path.
        read: makes the response from a body and its timing.
        from_json: makes a body from a JSON document.
        body: the body to send; None without one.
        deadline: seconds after which the service drops the request.
        listener: called with the progress while the call waits.
        previews: how many of the first samples the progress shows.
        streamed: whether the response is an event stream; always with a listener.
        method: of HTTP.
        accept: the form of a response that is no stream.
        extra: further HTTP headers.
        patience: the limits on retries; None for the client's.
    """

    path: str
    read: Callable[[Body, Timing], T]
    from_json: Callable[[Mapping[str, Any]], Body] = Body
    body: Body | None = None
    deadline: float | None = None
    listener: Listener | None = None
    previews: int = 0
    streamed: bool = False
    method: str = "GET"
    accept: str = JSON
    extra: Mapping[str, str] = field(default_factory=dict)
    patience: Patience | None = None

    @cached_property
    def content(self) -> tuple[bytes, str] | None:
        """The body's bytes and content type, encoded once for all attempts."""
        return None if self.body is None else codec.encode(self.body)

    @property
    def headers(self) -> dict[str, str]:
        """The HTTP headers."""
        found = {"accept": self._accept(), **self.extra}
        if self.content is not None:
            found["content-type"] = self.content[1]
        if self.deadline is not None:
            found["x-deadline"] = f"{self.deadline:.6f}"
        return found

    def _accept(self) -> str:
        if self.listener is None and not self.streamed:
            return self.accept
        return f"{EVENTS}; previews={self.previews}" if self.previews else EVENTS


class CallOptions(TypedDict, total=False):
    """Options of every call.

    Attributes:
        model: the model's name; not needed if one model is served, or a default is set.
        seed: seed of the noise. If None, one is drawn and sent, so a repeated request gives the
            same answer.
        deadline: seconds after which the service drops the request.
        progress: called with each `Progress` and `Preview` on the way to the answer.
    """

    model: str | None
    seed: int | None
    deadline: float | None
    progress: Listener | None


class SampleOptions(CallOptions, total=False):
    """Options of every call that draws samples.

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
        num_samples: number of samples.
        sampler: "ancestral", "ddim" or "dpmpp_2m", or an object with its settings:
            {"name": "ddim", "steps": 50, "eta": 0}.
        steps: the sampler's steps; None for all T (dpmpp_2m and ddim: the service's default).
        frames: how many intermediate states to return after the first, as `trajectory`.
        options: previews, and the options of every call.
    """
    fields = {
        "num_samples": num_samples,
        "sampler": _sampler(sampler, steps),
        "frames": frames,
        **options,
    }
    return _post("/sample", Samples, codec.samples_from_json, fields)


class LoglikOptions(CallOptions, total=False):
    """Options of `loglik`, which by default uses all T terms of the bound.

    Attributes:
        convention: "discretised", "density" or "paper"; None for the default of the data.
        terms: network evaluations per example.
        strata: the strata from which the terms are drawn: "even", or of even "importance" by the
            model's profile.
        target_error: the wanted standard error, nats; replaces `terms`.
        trajectories: bound by the mean weight of this many whole trajectories.
        steps: bound by a shorter chain of this many steps.
        spacing: spacing of those steps: "optimal" by the model's profile, or "even".
    """

    convention: str | None
    terms: int | None
    strata: str | None
    target_error: float | None
    trajectories: int | None
    steps: int | None
    spacing: str | None


def loglik(
    data: Data,
    known: Data | None = None,
    *,
    per_step: bool = False,
    **options: Unpack[LoglikOptions],
) -> Request[Likelihoods]:
    """Bound log p(x_0), or log p(some elements | the others), from below: POST /loglik.

    Args:
        data: [N, *shape] in data units; an array, or a list of arrays.
        known: 1 or True where an element is given, as in `inpaint`; None for none.
        per_step: also return every evaluated term.
        options: terms, trajectories, ... (`LoglikOptions`), and the options of every call.
    """
    array = packed(data)
    dims = math.prod(array.shape[1:])

    def read(body: Body, timing: Timing) -> Likelihoods:
        return Likelihoods(Body({**body.fields, "dims": dims}, body.tensors), timing)

    fields = {"per_step": per_step or None, **options}
    given = {} if known is None else {"known": packed(known)}
    return _post("/loglik", read, codec.likelihoods_from_json, fields, data=array, **given)


def rate(data: Rows, **options: Unpack[LoglikOptions]) -> Request[Likelihoods]:
    """Bound log p of rows of a table, gaps left out: POST /loglik.

    Args:
        data: rows as objects by column name.
        options: as of `loglik`.
    """
    return _post(
        "/loglik", read_likelihoods, codec.likelihoods_from_json, {"data": data, **options}
    )


def read_likelihoods(body: Body, timing: Timing) -> Likelihoods:
    """Read bounds where only the response says of how many elements."""
    columns, elements = body.fields["columns"], body.tensors.get("elements")
    dims = len(columns) if columns or elements is None else int(elements.max())
    return Likelihoods(Body({**body.fields, "dims": dims}, body.tensors), timing)


class PosteriorOptions(SampleOptions, total=False):
    """Options of `posterior`, `inpaint` and `denoise`.

    Attributes:
        noise_std: the observation's noise, data units: one number, or an array shaped like
            `observed`; None for no noise.
        flip_probability: for bits, instead of `noise_std`: the probability that each was flipped.
        num_samples: samples per example; 1 by default.
        quantiles: quantiles of the samples to return as well.
        method: a method's name, "learned", "twisted", ..., or its fields: {"name": "twisted",
            "particles": 16, "systems": "joint"}; None for the service's choice.
        steps: steps of the ancestral sampler; None for the service's choice.
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
            pixels [H, W] or [N, H, W] applies to all channels.
        options: noise_std, num_samples, method, ... (`PosteriorOptions`), and the options of every
            call.
    """
    return _posterior("/inpaint", dict(options), observed=observed, known=known)


def fill(observed: Rows, **options: Unpack[PosteriorOptions]) -> Request[Posterior]:
    """Draw the gaps of rows of a table: POST /inpaint.

    Args:
        observed: rows as objects by column name; what is not there is a gap.
        options: num_samples, method, ... (`PosteriorOptions`), and the options of every call.
    """
    return _posterior("/inpaint", {"observed": observed, **options})


def denoise(observed: Data, **options: Unpack[PosteriorOptions]) -> Request[Posterior]:
    """Draw the data behind noisy observations of all their values: POST /denoise.

    Args:
        observed: [N, *shape] in data units.
        options: noise_std, num_samples, method, ... (`PosteriorOptions`), and the options of every
            call.
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
        known: 1 or True where a value was observed, as in `inpaint`; None for everything.
        operator: the observation's operator: {"kind": "average-pooling", "size": 4}, {"kind":
            "blur", "kernel": rows}, {"kind": "dense", "rows": rows}; None for the elements
            themselves.
        label: the label that the data should have, by name or index: one for all, or one each.
            `models()` lists each model's labels.
        classifier: the classifier for `label`; not needed if only one fits the model.
        expert: another served model of the same data, whose density multiplies p(x_0).
        label_probabilities: also return each label's probability, averaged over the samples.
        options: noise_std, num_samples, method, ... (`PosteriorOptions`), and the options of every
            call.
    """
    fields = {
        "operator": operator, "label": label, "classifier": classifier, "expert": expert,
        "label_probabilities": label_probabilities or None, **options,
    }  # fmt: skip
    return _posterior("/posterior", fields, observed=observed, known=known)


def models() -> Request[Models]:
    """List the served models: GET /models."""
    return Request("/models", lambda body, _: read_models(body.fields))


def model(name: str) -> Request[ModelFacts]:
    """Describe a model by its artefact: GET /models/NAME."""
    return Request(f"/models/{quote(name, safe='')}", lambda body, _: read_model(body.fields))


def load(name: str) -> Request[ModelChange]:
    """Have a model loaded, or what its file holds now: POST /models/NAME/load.

    It returns once the new version is served; requests that wait keep the old one. Who may is told
    in docs/operate.md.
    """
    return _change(name, "load")


def unload(name: str) -> Request[ModelChange]:
    """Have a model served no longer: POST /models/NAME/unload; accepted requests are finished."""
    return _change(name, "unload")


def _change(name: str, what: str) -> Request[ModelChange]:
    path = f"/models/{quote(name, safe='')}/{what}"
    return Request(path, lambda body, _: read_change(body.fields), body=Body({}), method="POST")


def examples(name: str, count: int = 16) -> Request[Array]:
    """Get held-out data to try a model on: GET /models/NAME/examples; [n, *shape], data units.

    Args:
        name: the model's name.
        count: the most examples to return; a model may have none.
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
    """Make a POST request of all fields that are not None; `tensors` are its arrays."""
    fields = {name: x for name, x in options.items() if x is not None}
    listener, previews = fields.pop("progress", None), fields.pop("previews", 0)
    deadline = fields.pop("deadline", None)
    fields.setdefault("seed", secrets.randbelow(2**32))  # JSON represents it exactly
    body = Body(fields, tensors)
    return Request(
        path, read, from_json, body, deadline, listener, previews, method="POST", accept=BINARY
    )


def _sampler(sampler: SamplerName, steps: int | None) -> dict[str, Any]:
    found = {"name": sampler} if isinstance(sampler, str) else dict(sampler)
    return found if steps is None else {**found, "steps": steps}
