"""Data that are named on a command line: a folder of pictures, a table, or a configuration's."""

from pathlib import Path
from typing import Any

from diffusion.space import DataSpace
from training import config as configs
from training.data import AnyConfig, Dataset, load, table


def data_of(path: Path, side: int, grey: bool) -> dict[str, Any]:
    """The [data] of a configuration, by what there is at a path.

    Raises:
        ConfigError: neither a folder nor a table.
    """
    if path.is_dir():
        return {"kind": "pictures", "folder": str(path), "side": side, "colour": not grey}
    if path.is_file() and path.suffix.lower() in table.ENDINGS:
        return {"kind": "table", "file": str(path)}
    raise configs.ConfigError(
        f"{path} is neither a folder of pictures nor a table ({', '.join(table.ENDINGS)})"
    )


def data_for(name: str, space: DataSpace) -> tuple[AnyConfig, Dataset]:
    """The data that a name means, for a model of data of this kind.

    Args:
        name: of a configuration, whose [data] they are, or the path of one; of a folder of
            pictures, which are scaled to the model's side; of a table.
        space: of the model.

    Raises:
        ConfigError: there are none, or of another kind or shape.
        DataError: they cannot be read.
    """
    path = Path(name)
    if configs.path_of(name).is_file():
        keys = configs.read(name).get("data")
        if keys is None:
            raise configs.ConfigError(f"configuration {name} has no [data] to measure on")
    elif path.exists():
        keys = data_of(path, side=space.shape[-1], grey=space.shape[0] == 1)
    else:
        raise configs.ConfigError(
            f"--data {name}: there is no folder, table or configuration of that name (how many "
            "data are measured is said with --rows)"
        )
    config = configs.read_data(keys)
    dataset = load(config)
    theirs = dataset.space
    if (theirs.kind, theirs.shape, theirs.levels) != (space.kind, space.shape, space.levels):
        raise configs.ConfigError(f"--data {name}: {_kind(theirs)}; the model is of {_kind(space)}")
    return config, dataset


def _kind(space: DataSpace) -> str:
    levels = f" with {space.levels} levels" if space.levels else ""
    return f"{space.kind} {list(space.shape)}{levels}"
