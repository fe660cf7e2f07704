"""What every call takes, and the question that is made of it.

The names of the calls' arguments are those of the fields of the service's requests; what is not in
them is the call's own: `deadline`, `progress`, `previews`.
"""

import secrets
from collections.abc import Callable, Mapping
from typing import Any, TypedDict, TypeVar

from noneq.answer import Timing
from noneq.events import Listener
from noneq.question import Question
from noneq.wire import Array, Body

Found = TypeVar("Found")
SamplerName = str | Mapping[str, Any]


class Asked(TypedDict, total=False):
    """What every call takes.

    Attributes:
        model: which; may be left out where one is served, or a default is set.
        seed: of the noise. Where it is None one is drawn, and sent, so that asking again gives the
            same answer.
        deadline: seconds after which the answer is of no more use; the service then drops it.
        progress: called with each `Progress`, and `Preview`, on the way to the answer.
    """

    model: str | None
    seed: int | None
    deadline: float | None
    progress: Listener | None


class Drawn(Asked, total=False):
    """What every call takes whose answer are samples.

    Attributes:
        previews: how many of them are shown on their way.
    """

    previews: int


def question(
    path: str,
    read: Callable[[Body, Timing], Found],
    lift: Callable[[Mapping[str, Any]], Body],
    asked: Mapping[str, Any],
    **tensors: Array,
) -> Question[Found]:
    """The question that asks `path` what was `asked`: what is None is left out.

    Args:
        path: of the route.
        read: the answer, as `Question` has it.
        lift: its arrays, likewise.
        asked: fields of the request by name, and what is the call's own.
        tensors: the fields that are arrays.
    """
    fields = {name: x for name, x in asked.items() if x is not None}
    listener, previews = fields.pop("progress", None), fields.pop("previews", 0)
    deadline = fields.pop("deadline", None)
    fields.setdefault("seed", draw_seed())
    body = Body(fields, tensors)
    return Question(path, read, lift, body, deadline, listener, previews)


def draw_seed() -> int:
    """A fresh seed, that every reader of JSON holds exactly."""
    return secrets.randbelow(2**32)


def sampler_of(sampler: SamplerName, steps: int | None) -> dict[str, Any]:
    """A sampler with its settings, by its name alone or with them."""
    found = {"name": sampler} if isinstance(sampler, str) else dict(sampler)
    return found if steps is None else {**found, "steps": steps}
