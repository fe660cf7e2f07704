"""Converted models: what an artefact remembers of the files that it was made from."""

from typing import Any, Literal

from diffusion.profile import ProfileConfig
from training.config import EvaluationConfig, Frozen
from training.data import DataConfig


class ConvertedConfig(Frozen):
    """The source of a converted artefact, in the place of a fit's configuration.

    Attributes:
        title: of the card.
        library: that trained it.
        command: that converts it again.
        files: sha256 of each file that was read, by its name within the source.
        documents: the source's own settings, by file, or the flags that were given.
        notes: what the source says of its sampler, and this artefact does not hold.
        data: what it is measured on; None where nothing was given.
        evaluation: how.
        profile: likewise, by `python -m training profile`.
    """

    kind: Literal["converted"] = "converted"
    title: str
    library: Literal["diffusers", "openai"]
    command: str
    files: dict[str, str]
    documents: dict[str, dict[str, Any]]
    notes: tuple[str, ...] = ()
    data: DataConfig | None = None
    evaluation: EvaluationConfig = EvaluationConfig()
    profile: ProfileConfig = ProfileConfig()


def is_converted(config: dict[str, Any]) -> bool:
    """Whether an artefact's configuration is that of a conversion."""
    return config.get("kind") == "converted"
