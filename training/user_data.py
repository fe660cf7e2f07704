"""Make a configuration for a user's own data: a folder of pictures or a table of numbers.

The defaults suit a CPU: at most a million weights, and about half an hour of training. The
configuration is written to a file, where they can be changed.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from diffusion.families import Given
from diffusion.networks import CorrectedConfig
from diffusion.process import MixedConfig
from diffusion.schedule import LogSnrSchedule
from diffusion.space import Space
from diffusion.table import TableSpace
from training import config as configs
from training import densities, mixture
from training.data import SPLITS, AnyConfig, Dataset, load, table
from training.data.columns import Maps

STEPS = {"image": 3000, "vector": 6000, "bits": 6000, "table": 6000}
PASSES = 3000
"""The most epochs, beyond the first 300 steps: a small data set needs no more."""
NAMED = "a folder of pictures, a table, or a configuration for its [data]"
VALID = {"image": 10, "vector": 100, "bits": 100, "table": 100}
"""Rows needed to tell whether the held-out bound has stopped rising."""
SHARE = 0.4
"""Rows of a batch whose network is told what was seen of them."""
GAPS = 0.2
"""Rows of a table of which some cells are taken for gaps."""
COSTLY = 1_000_000
"""Components times numbers cubed, from which a table's steps take fewer rows."""
T = {"image": 1000, "vector": 500, "bits": 500, "table": 500}

_OPTIMISER = {"lr": 2e-3, "betas": [0.9, 0.99], "warmup": 100, "clip": 1.0}


def settings(dataset: Dataset) -> dict[str, Any]:
    """Choose all settings except name, data and steps, by the kind of data."""
    made = {"image": _images, "vector": _vectors, "bits": _bits, "table": _tables}
    return made[dataset.space.kind](dataset)


def settings_given(dataset: Dataset, columns: tuple[int, ...]) -> dict[str, Any]:
    """Choose them for a table of which some columns will be known and the others asked for."""
    return {
        "prediction": "v",
        "variance": "upper",  # at few steps "lower" is too narrow
        "batch": 256,
        "process": {"kind": "gaussian", "T": T["vector"], "schedule": _log_snr(12.0, -7.0)},
        "network": {
            "kind": "mlp",
            "features": dataset.space.dims,
            "width": 128,
            "depth": 4,
            "conditional": True,
            "clock": "log_snr",
        },
        # The bound's last term, of noise that no posterior resolves, would drown the others.
        "objective": {"bound": 0.0, "simple": 1.0, "bias": 6.0},
        "observations": {"share": 0.95, "families": [{"kind": "given", "columns": list(columns)}]},
        "optimiser": _OPTIMISER | {"warmup": 200},
        "average": {"decay": 0.998},
        "stopping": {"patience": 15},
        "watch": _WATCH | {"every": 250, "sheets": 3000, "data": 256, "terms": 16},
        "evaluation": {"data": 2000, "sampler_steps": 100},
        "profile": {"points": 100, "rows": 400},
    }


def _columns(dataset: Dataset, given: Sequence[str]) -> tuple[int, ...]:
    """Find the given columns by name, or by number in a table without names.

    Raises:
        ConfigError: there is no such column, or no other is left to ask for, or the data are no
            table of reals.
    """
    if dataset.space.kind != "vector":
        raise configs.ConfigError(
            f"--given is of a table's columns of numbers, these data are of kind "
            f"{dataset.space.kind!r}: leave it out"
        )
    names = dataset.space.names or tuple(map(str, range(dataset.space.dims)))
    unknown = [name for name in given if name not in names]
    if unknown or len(set(given)) == len(names):
        came = f"--given {','.join(given)}"
        wrong = f"no column {', '.join(unknown)}" if unknown else "no column is left to ask for"
        raise configs.ConfigError(f"{came}: {wrong}; the table has {', '.join(names)}")
    return tuple(sorted({names.index(name) for name in given}))


def _images(dataset: Dataset) -> dict[str, Any]:
    channels, side, _ = dataset.space.shape
    patch = 2 if side % 4 == 0 else 1
    return {
        "prediction": "v",
        "variance": "contrast",
        "batch": 64,
        "process": {"kind": "gaussian", "T": T["image"], "schedule": _log_snr(13.3, -5.0)},
        "network": {
            "kind": "unet",
            "in_channels": channels,
            "channels": [32, 64] if side % (2 * patch) == 0 else [64],
            "blocks": 1,
            "patch": patch,
            "fourier": [6, 7, 8],
            "gates": True,
            "clock": "log_snr",
            "conditional": True,
        },
        "observations": _told(["scattered", "half", "box", "blobs"]),
        "optimiser": _OPTIMISER,
        "average": {"decay": 0.998},
        "stopping": {"patience": 5},
        "watch": {
            "every": 100,
            "sheets": 500,
            "data": 64,
            "terms": 8,
            "samples": 16,
            "sampler_steps": 20,
        },
        "evaluation": {"data": 500, "terms": 20, "sampler_steps": 100},
        "profile": {"points": 50, "rows": 64},
    }


def _vectors(dataset: Dataset) -> dict[str, Any]:
    dims = dataset.space.dims
    choice = densities.choose(dataset.space.to_model(densities.known(dataset)), bits=False)
    base = {
        "kind": "gaussian-mixture",
        "components": choice.components * choice.starts,
        "features": dims,
    }
    return {
        "prediction": "x_0",
        "variance": "moment",
        "batch": 256,
        "process": {"kind": "gaussian", "T": T["vector"], "schedule": _log_snr(12.0, -7.0)},
        "network": {
            "kind": "corrected",
            "base": base,
            "correction": _mlp(len(dataset.train), dims),
        },
        "base": {"starts": choice.starts, "shrunk": choice.shrunk},
        "observations": _told(["scattered"]),
        "optimiser": _OPTIMISER | {"lr": 1e-3, "weight_decay": 0.01, "warmup": 500},
        "average": {"decay": 0.998},
        "stopping": {"patience": 15},
        "watch": _WATCH,
        "evaluation": {"data": 2000, "sampler_steps": 100},
        "profile": {"points": 100, "rows": 400},
    }


def _bits(dataset: Dataset) -> dict[str, Any]:
    dims, rate = dataset.space.dims, round(min(0.95, max(0.05, float(dataset.train.mean()))), 3)
    choice = densities.choose(dataset.space.to_model(densities.known(dataset)), bits=True)
    base = {"kind": "bernoulli-mixture", "components": choice.components, "features": dims}
    return {
        "prediction": "x_0",
        "batch": 256,
        "process": {"kind": "binomial", "T": T["bits"], "base_rate": rate},
        "network": {
            "kind": "corrected",
            "base": base | {"base_rate": rate},
            "correction": _mlp(len(dataset.train), dims),
        },
        "observations": _told(["scattered"]),
        "optimiser": _OPTIMISER | {"lr": 5e-4, "weight_decay": 0.01},
        "average": {"decay": 0.995},
        "stopping": {"patience": 8},
        "watch": _WATCH,
        "evaluation": {"data": 1000, "sampler_steps": 100},
        "profile": {"points": 100, "rows": 200},
    }


def _tables(dataset: Dataset) -> dict[str, Any]:
    space = dataset.space
    assert isinstance(space, TableSpace)  # as its kind says
    rows = densities.known(dataset)
    base = shares(space, dataset.train)
    choice = mixture.choose(mixture.Cells.of(space, rows, base, dataset.groups))
    components = choice.components * choice.starts
    schedule = LogSnrSchedule(first=12.0, last=-7.0)
    process = MixedConfig.of_table(space, T["table"], schedule, base)
    return {
        "prediction": "x_0",
        "variance": "moment" if space.numbers else None,
        "batch": 256 if components * len(space.numbers) ** 3 < COSTLY else 64,
        "process": process.model_dump(mode="json"),
        "network": {
            "kind": "table",
            "base": {
                "kind": "table-mixture",
                "components": components,
                "numbers": len(space.numbers),
                "base": base,
            },
            "correction": _mlp(len(dataset.train), space.event[0]),
        },
        "base": {"starts": choice.starts, "shrinkage": choice.shrinkage, "spread": choice.spread},
        "observations": {
            "share": SHARE,
            "gaps": GAPS,
            "families": [{"kind": "exact", "patterns": ["scattered"]}],
        },
        "optimiser": _OPTIMISER | {"lr": 1e-3, "weight_decay": 0.01, "warmup": 200},
        "average": {"decay": 0.998},
        # Few rows seldom tell a network anything that the mixture does not know.
        "stopping": {"patience": 5 if len(dataset.train) < 1000 else 10},
        "watch": _WATCH,
        "evaluation": {"data": 2000, "sampler_steps": 100},
        "profile": {"points": 50, "rows": 400},
    }


def shares(space: TableSpace, rows: Tensor) -> list[list[float]]:
    """The share of each category of rows, half of it evenly, which the process decays to."""
    hot = space.to_model(rows)[:, len(space.numbers) :].double().sum(0)
    parts = hot.split(list(space.blocks.sizes)) if space.categories else ()
    mixed = [(part / part.sum().clamp_min(1) + 1 / len(part)) / 2 for part in parts]
    return [[round(p, 6) for p in (part / part.sum()).tolist()] for part in mixed]


_WATCH = {"every": 100, "sheets": 500, "data": 250, "terms": 64, "samples": 500}


def _valid(rows: int, wanted: int) -> float:
    """The fraction of rows to monitor: 5%, or up to 15% to reach `wanted` rows."""
    return round(min(0.15, max(0.05, wanted / rows)), 3)


def _mlp(rows: int, dims: int) -> dict[str, Any]:
    """An MLP, larger where there are more rows."""
    width = 64 if rows < 1000 else 128
    size = {"width": width, "depth": 3 if rows < 1000 else 4}
    return {"kind": "mlp", "features": dims, **size, "clock": "log_snr", "conditional": True}


def _told(patterns: list[str]) -> dict[str, Any]:
    """What the network is told in training: values without noise or with it, by these patterns."""
    families = [{"kind": kind, "patterns": patterns} for kind in ("exact", "noisy")]
    return {"share": SHARE, "families": families}


def _log_snr(first: float, last: float) -> dict[str, Any]:
    return {"kind": "linear-log-snr", "first": first, "last": last}


def model_name(path: Path, name: str | None) -> str:
    """Return `name`, or a name made from the path; raises ConfigError if it is not valid."""
    name = name or re.sub(r"[^a-z0-9]+", "-", path.resolve().stem.lower()).strip("-")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise configs.ConfigError(
            f"{name!r} cannot be the name of a model: use letters, digits, '-', '_', '.' (--name)"
        )
    return name


def configure(
    path: Path,
    name: str | None,
    *,
    side: int = 32,
    grey: bool = False,
    steps: int | None = None,
    given: Sequence[str] = (),
    limits: Mapping[str, tuple[float, float]] | None = None,
    columns: Mapping[str, str] | None = None,
    reals: bool = False,
) -> tuple[dict[str, Any], Dataset]:
    """Make the keys of a configuration for the data at a path, and load the data.

    Args:
        path: a folder of pictures, or a .csv or .npy.
        name: of the model; None to derive it from the path.
        side: side in pixels that pictures are scaled to.
        grey: convert pictures to grey.
        steps: of the fit; None for a number that suits a CPU.
        given: a table's columns that will be known where the others are asked for.
        limits: the least and greatest value of a table's columns that have any.
        columns: what a table's columns hold, where that is not to be inferred.
        reals: take them all as real numbers, a vector.

    Raises:
        ConfigError, DataError: no model can be fitted to the data.
    """
    name = model_name(path, name)
    keys: dict[str, Any] = {
        "name": name,
        "title": path.name,
        "data": data_of(path, side, grey, limits, columns, reals=reals or bool(given)),
    }
    dataset = load(configs.read_data(keys["data"]))
    total = sum(len(dataset.split(name)) for name in SPLITS)
    share = _valid(total, VALID[dataset.space.kind])
    # A stretch of a series is hardly more than one row.
    keys["data"]["valid"] = share if dataset.groups is None else max(share, 0.1)
    keys["data"] |= _mapped(keys["data"])
    dataset = load(configs.read_data(keys["data"]))
    made = settings_given(dataset, _columns(dataset, given)) if given else settings(dataset)
    most = max(300, PASSES * len(dataset.train) // made["batch"])
    keys |= {"steps": steps or min(STEPS[dataset.space.kind], most), **made}
    return keys, dataset


def _mapped(data: dict[str, Any]) -> dict[str, str]:
    """Choose which numbers of a table go along their quantiles, by cross-validation."""
    found: dict[str, float] = {}
    for maps in get_args(Maps):
        own = {"maps": maps} if data["kind"] == "table" else {}
        dataset = load(configs.read_data(data | own))
        if not isinstance(dataset.space, TableSpace):
            return {}
        base = shares(dataset.space, dataset.train)
        found[maps] = mixture.suited(dataset.space, densities.known(dataset), base, dataset.groups)
    return {"maps": max(found, key=lambda maps: found[maps])}


def prepare(
    path: Path,
    name: str | None,
    runs: Path,
    *,
    side: int | None = None,
    grey: bool | None = None,
    steps: int | None = None,
    given: Sequence[str] = (),
    limits: Mapping[str, tuple[float, float]] | None = None,
    columns: Mapping[str, str] | None = None,
    reals: bool = False,
) -> tuple[Path, configs.FitConfig, Dataset]:
    """Write or reuse the settings file for the data at a path, and load both.

    In an existing file only `steps` is changed, so that a longer fit continues a shorter one.

    Args:
        path: as in `configure`.
        name: of the model; None to derive it from the path.
        runs: the folder of run folders, where the file is.
        side: side in pixels that pictures are scaled to; None for the file's, or 32.
        grey: convert pictures to grey; None for the file's choice, or colour.
        steps: of the fit; None for the file's, or a number that suits a CPU.
        given: as in `configure`; none for the file's.
        limits: as in `configure`; None for the file's.
        columns: likewise.
        reals: as in `configure`; False for the file's.

    Raises:
        ConfigError, DataError: no model can be fitted to the data, or the file is for other data.
    """
    name = model_name(path, name)
    written = runs / f"{name}.toml"
    if not written.exists():
        keys, dataset = configure(
            path,
            name,
            side=side or 32,
            grey=bool(grey),
            steps=steps,
            given=given,
            limits=limits,
            columns=columns,
            reals=reals,
        )
        runs.mkdir(exist_ok=True)
        written.write_text(f"# Made by `noneq train {path}`.\n{to_toml(keys)}")
        return written, configs.load(str(written)), dataset
    text = written.read_text()
    if steps is not None:
        # Top-level keys come before the first table.
        head, table, rest = text.partition("\n[")
        found, changed = re.subn(r"(?m)^steps\s*=.*$", f"steps = {steps}", head)
        text = (found if changed else f"steps = {steps}\n{head}") + table + rest
        configs.parse(text, str(written))
        written.write_text(text)
    config = configs.load(str(written))
    side = side or int(getattr(config.data, "side", 32))
    wanted = data_of(path, side, bool(grey), limits, columns, reals=reals)
    if grey is None and wanted["kind"] == "pictures":
        wanted["colour"] = getattr(config.data, "colour", True)
    there = {key: getattr(config.data, key, None) for key in wanted}
    if there != wanted:
        raise configs.ConfigError(
            f"{written} is of other data ({there}) than these ({wanted}): delete it, or give this "
            "model another --name"
        )
    dataset = load(config.data)
    if given and not _tells(config, _columns(dataset, given)):
        raise configs.ConfigError(
            f"{written} is not of a model that is told of {', '.join(given)}: delete it, or give "
            "this model another --name"
        )
    print(f"using {written} as it stands; delete it for the defaults")
    return written, config, dataset


def asks(config: configs.FitConfig) -> bool:
    """Whether a model is for one question, the same columns given: no density is beside it."""
    families = config.observations.families if config.observations else ()
    return any(isinstance(family, Given) for family in families)


def _tells(config: configs.FitConfig, columns: tuple[int, ...]) -> bool:
    """Whether a configuration's network is told of these columns."""
    families = config.observations.families if config.observations else ()
    return Given(columns=columns) in families


def data_of(
    path: Path,
    side: int,
    grey: bool,
    limits: Mapping[str, tuple[float, float]] | None = None,
    columns: Mapping[str, str] | None = None,
    *,
    reals: bool = False,
) -> dict[str, Any]:
    """Make the [data] table of a configuration for the data at a path.

    Raises:
        ConfigError: the path is neither a folder nor a table, or limits are of pictures.
    """
    for option, of in (("limits", limits), ("columns", columns)):
        if path.is_dir() and of:
            raise configs.ConfigError(
                f"--{option} are of a table's columns: leave it out for pictures"
            )
    if path.is_dir():
        return {"kind": "pictures", "folder": str(path), "side": side, "colour": not grey}
    if path.is_file() and path.suffix.lower() in table.ENDINGS:
        keys: dict[str, Any] = {"kind": "table", "file": str(path)}
        keys |= {"reals": True} if reals else {}
        keys |= {} if limits is None else {"limits": dict(limits)}
        return keys if columns is None else {**keys, "columns": dict(columns)}
    raise configs.ConfigError(
        f"{path} is neither a folder of pictures nor a table ({', '.join(table.ENDINGS)})"
    )


def data_for(name: str, space: Space) -> tuple[AnyConfig, Dataset]:
    """Load the data that `name` refers to, for a model with this data space.

    Args:
        name: a configuration (its name or path), a folder of pictures, which are scaled to the
            model's side, or a table.
        space: of the model.

    Raises:
        ConfigError: there are no such data, or they differ in kind or shape.
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


def _kind(space: Space) -> str:
    levels = f" with {space.levels} levels" if space.levels else ""
    return f"{space.kind} {list(space.shape)}{levels}"


def _network(config: configs.FitConfig) -> str:
    """Describe the network in words."""
    network = config.network
    if not isinstance(network, CorrectedConfig):
        return f"a {network.kind}"
    count = network.base.components
    one, more = {
        "gaussian-mixture": ("one Gaussian", "Gaussians"),
        "bernoulli-mixture": ("independent bits", "classes of bits"),
    }[network.base.kind]
    return f"{one if count == 1 else f'{count} {more}'}, corrected by a network"


def one_thread(config: configs.FitConfig) -> bool:
    """Whether a network is so small that one thread is faster than several."""
    return config.network.kind in ("mlp", "rbf", "corrected", "table")


def to_toml(keys: Mapping[str, Any], of: str = "") -> str:
    """Format a configuration as TOML: plain keys first, then a table for each mapping."""
    plain = [f"{_key(k)} = {_value(v)}" for k, v in keys.items() if not isinstance(v, Mapping)]
    head = [f"[{of}]"] if of else []
    tables = [
        to_toml(v, f"{of}.{k}" if of else k) for k, v in keys.items() if isinstance(v, Mapping)
    ]
    return "\n".join([*head, *plain, ""]) + "".join(f"\n{one}" for one in tables)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)


def _value(value: object) -> str:
    """Format a number, string or boolean, which JSON and TOML write alike, or a list or table."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value, ensure_ascii=False)


def expectations(config: configs.FitConfig, dataset: Dataset, weights: int) -> str:
    """Summarise the planned fit in a few lines."""
    size = " x ".join(map(str, dataset.space.shape))
    kinds = {
        "image": "pictures",
        "vector": "rows of numbers",
        "bits": "rows of bits",
        "table": "rows of columns",
    }
    notes = "".join(f"\n{note}" for note in dataset.notes)
    epochs = config.steps * config.batch / len(dataset.train)
    stop = " at most, fewer where the held-out bound turns" if config.stopping else ""
    return (
        f"{config.name}: {kinds[dataset.space.kind]} of {size}: {len(dataset.train)} to fit, "
        f"{len(dataset.valid)} to look at meanwhile, {len(dataset.test)} to report\n"
        f"{_network(config)} of {weights:,} weights, T = {config.process.T}; {config.steps} "
        f"steps of {config.batch}{stop}: {epochs:.3g} times through the data\n"
        f"Ctrl-C saves; the same command goes on{notes}"
    )
