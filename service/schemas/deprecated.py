"""Old spellings of a request's fields, accepted for one release.

    request   `times` -> `expert`, `read` -> `label_probabilities`, `particles` -> into `method`
    method    `resample` -> `repaint`, and its `times` -> `repeats`

A request with an old spelling is answered as the new one; its answer says so in `deprecation`, and
its response carries the header `Deprecation` (RFC 9745).
"""

from collections.abc import Container, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from service.errors import InvalidRequest

#: The header's value: since when.
SINCE: Final = f"@{datetime(2026, 11, 29, tzinfo=UTC).timestamp():.0f}"

_RENAMED: Final = {"times": "expert", "read": "label_probabilities"}
_WITH_PARTICLES: Final = ("auto", "twisted")


def rename(given: Mapping[str, Any], known: Container[str]) -> tuple[dict[str, Any], list[str]]:
    """A request's fields in the new spelling, and a note on each that was in an old one.

    Args:
        given: the fields as they came; they need not be valid.
        known: the names of the request's fields.

    Raises:
        InvalidRequest: the old and the new spelling came both, or particles of a method that has
            none.
    """
    fields, notes = dict(given), []
    for old, new in _RENAMED.items():
        if old in fields and new in known:
            fields[new] = _moved(fields, old, new, old)
            notes.append(f"`{old}` is now `{new}`.")
    if "method" not in known:
        return fields, notes
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
            f"`{old}` is the old name of `{new}`, and both came.",
            location=location,
            fix=f"Send `{new}` alone.",
        )
    return fields.pop(old)


def _move_particles(particles: object, method: dict[str, Any]) -> None:
    """Put the request's `particles` among the method's fields."""
    name = method.get("name")
    if particles is None or (particles == 1 and name not in _WITH_PARTICLES):
        return
    if name in ("repaint", "matched", "product"):
        raise InvalidRequest(
            f"Method '{name}' has no particles.",
            location="method",
            received=f"particles {particles}"[:100],
            fix="Ask for 'twisted', or for more samples with `num_samples`.",
        )
    if method.get("particles", particles) != particles:
        raise InvalidRequest(
            "`particles` of the request and of its method differ.",
            location="method",
            received=f"{particles} and {method['particles']}"[:100],
            fix="Send the method's field alone.",
        )
    method["particles"] = particles
