"""The verbs that other parts of the house answer: `python -m service` and `python -m training`."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from noneq.errors import ConnectionFailed, FileError, MissingExtra

_MISTAKE = 2  # exit status of the service: a setting is wrong, or there are no models


@dataclass(frozen=True)
class Door:
    """Where a verb leads.

    Attributes:
        words: `python -m` what.
        extra: that brings it, by `pip install 'noneq[extra]'`.
        needs: modules that the extra brings.
        about: what it does.
    """

    words: tuple[str, ...]
    extra: str
    needs: tuple[str, ...]
    about: str

    def check(self) -> None:
        """Raise MissingExtra where it is not installed."""
        missing = [name for name in (self.words[0], *self.needs) if find_spec(name) is None]
        if missing:
            raise MissingExtra(
                f"this needs {', '.join(missing)}: pip install 'noneq[{self.extra}]'"
            )


_TRAIN = ("torch", "matplotlib", "sklearn", "tqdm")
DOORS = {
    "serve": Door(("service",), "serve", ("torch", "uvicorn"), "start the service"),
    "train": Door(("training", "train"), "train", _TRAIN, "fit a model to your own data"),
    "convert": Door(("training", "convert"), "train", _TRAIN, "take in a model trained elsewhere"),
    "evaluate": Door(("training", "evaluate"), "train", _TRAIN, "measure a model"),
    "export": Door(("training", "export"), "train", _TRAIN, "make a model of a fit"),
}


def enter(verb: str, words: Sequence[str]) -> int:
    """Become that command; signals and exit status are its own.

    Raises:
        MissingExtra: it is not installed.
    """
    door = DOORS[verb]
    door.check()
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", *door.words, *words])


@contextmanager
def local_service(models: str) -> Iterator[str]:
    """The URL of a service of one's own, for as long as the block takes, or this process lives.

    Args:
        models: the folder that it serves.

    Raises:
        MissingExtra: the service is not installed.
        FileError: there are no models in the folder, or a setting is wrong.
        ConnectionFailed: it did not start.
    """
    DOORS["serve"].check()
    if not any(Path(models).glob("*/model.safetensors")):  # known at once, without its start
        raise FileError(f"no models in {models}: each is a folder in it with a model.safetensors")
    command = [sys.executable, "-m", "noneq.cli.tethered", "service", "--port", "0"]
    with subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--models", models, "--log-level", "error"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"http://\S+", line)
            if found is None:
                said = f"a service of {models} did not start: see above"
                raise FileError(said) if process.wait() == _MISTAKE else ConnectionFailed(said)
            yield found[0]
        finally:
            process.terminate()
