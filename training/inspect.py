"""An artefact's facts, printed: one line a fact, then what was measured."""

import json
from pathlib import Path

from diffusion.checkpoint import Metadata, read_metadata
from diffusion.model import DiffusionModel
from training.evaluate.bound import table


def describe(path: Path) -> str:
    """The facts of an artefact as text.

    Raises:
        ArtefactError: no artefact there.
    """
    metadata = read_metadata(path)
    lines = [f"{metadata.name}  ({path}, {path.stat().st_size:,} bytes)"]
    document = metadata.model_dump(mode="json", exclude={"name", "evaluation", "training"})
    document |= {
        f"training.{key}": value
        for key, value in metadata.training.model_dump(mode="json", exclude={"config"}).items()
    }
    width = max(len(key) for key in document)
    lines += [f"  {key:<{width}}  {_words(value)}" for key, value in document.items()]
    lines += ["", table(metadata.evaluation) if metadata.evaluation else "  not evaluated"]
    return "\n".join(lines)


def steps_table(model: DiffusionModel) -> str:
    """What the profile says of some of the steps, as text."""
    profile = model.profile
    if profile is None:
        return "not profiled"
    T = model.T
    lines = ["     t   sqrt(error)   sqrt(last)   mean term (nats)   spread (nats)"]
    for t in sorted({1, 2, *(max(1, round(T * i / 10)) for i in range(11))}):
        root, last = profile.error[t].sqrt(), profile.last[t].sqrt()
        lines.append(
            f"{t:6}   {root:11.4g}  {last:11.4g}   {profile.mean[t]:16.4f}   "
            f"{profile.spread[t]:13.4f}"
        )
    return "\n".join(lines)


def as_json(path: Path) -> str:
    """The whole document, as it is in the file."""
    metadata: Metadata = read_metadata(path)
    return json.dumps(metadata.model_dump(mode="json"), indent=2)


def _words(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
