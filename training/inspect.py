"""An artefact's facts, printed: one line a fact, then what was measured."""

import json
from pathlib import Path

from diffusion.checkpoint import Metadata, read_metadata
from training.evaluate import table
from training.export import artefact_path


def find(name: str, models: Path) -> Path:
    """The artefact that `name` means: a path, or the name of a folder of `models`."""
    if name.endswith(".safetensors"):
        return Path(name)
    return artefact_path(models, name)


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


def as_json(path: Path) -> str:
    """The whole document, as it is in the file."""
    metadata: Metadata = read_metadata(path)
    return json.dumps(metadata.model_dump(mode="json"), indent=2)


def _words(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
