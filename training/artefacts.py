"""Where artefacts are: models/NAME/model.safetensors."""

from pathlib import Path


def artefact_path(models: Path, name: str) -> Path:
    """Where the artefact of a model is."""
    return models / name / "model.safetensors"


def find(name: str, models: Path) -> Path:
    """The artefact that `name` means: a path, or the name of a folder of `models`."""
    return Path(name) if name.endswith(".safetensors") else artefact_path(models, name)
