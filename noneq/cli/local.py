"""Runs other parts of noneq from the command: `python -m service` and `python -m training`.

`python -m noneq.cli.local MODULE ...` runs a module that ends when its parent process does. Its
stdin is an unused pipe from the parent, which closes when the parent ends, even if it is killed.
Then this process sends itself SIGTERM, and exits if that does not work.
"""

import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from noneq.errors import ConnectionFailed, FileError, MissingExtra

_BAD_SETTING = 2  # exit status of the service: a setting is wrong, or there are no models
_SECONDS = 5.0  # from SIGTERM to the end


@dataclass(frozen=True)
class Program:
    """A command of another part of noneq.

    Attributes:
        words: the arguments of `python -m`.
        extra: the extra that installs it: `pip install 'noneq[extra]'`.
        needs: modules that the extra installs.
        about: the help text.
    """

    words: tuple[str, ...]
    extra: str
    needs: tuple[str, ...]
    about: str

    def check(self) -> None:
        """Raise MissingExtra if the program is not installed."""
        missing = [name for name in (self.words[0], *self.needs) if find_spec(name) is None]
        if missing:
            raise MissingExtra(
                f"this needs {', '.join(missing)}: pip install 'noneq[{self.extra}]'"
            )


_TRAIN = ("torch", "matplotlib", "sklearn", "tqdm")
PROGRAMS = {
    "serve": Program(("service",), "serve", ("torch", "uvicorn"), "start the service"),
    "train": Program(("training", "train"), "train", _TRAIN, "fit a model to your own data"),
    "convert": Program(("training", "convert"), "train", _TRAIN, "import a model from elsewhere"),
    "evaluate": Program(("training", "evaluate"), "train", _TRAIN, "measure a model"),
    "export": Program(("training", "export"), "train", _TRAIN, "make a model of a fit"),
}


def run(verb: str, words: Sequence[str]) -> int:
    """Replace this process by the program, which gets its signals and sets its exit status.

    Raises:
        MissingExtra: the program is not installed.
    """
    program = PROGRAMS[verb]
    program.check()
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", *program.words, *words])


@contextmanager
def local_service(models: str) -> Iterator[str]:
    """Start a service that runs until the block or this process ends; yield its URL.

    Args:
        models: the folder to serve.

    Raises:
        MissingExtra: the service is not installed.
        FileError: there are no models in the folder, or a setting is wrong.
        ConnectionFailed: the service did not start.
    """
    PROGRAMS["serve"].check()
    if not any(Path(models).glob("*/model.safetensors")):  # fail before starting the service
        raise FileError(f"no models in {models}: each is a folder in it with a model.safetensors")
    command = [sys.executable, "-m", "noneq.cli.local", "service", "--port", "0"]
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
                text = f"a service of {models} did not start: see above"
                raise FileError(text) if process.wait() == _BAD_SETTING else ConnectionFailed(text)
            yield found[0]
        finally:
            process.terminate()


def _end_with(pipe: int) -> None:
    """End this process when the pipe closes."""
    while os.read(pipe, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_SECONDS)
    os._exit(1)


def main() -> None:
    """Run the module that the command line names, with the remaining arguments."""
    pipe = os.dup(sys.stdin.fileno())
    threading.Thread(target=_end_with, args=(pipe,), name="noneq-parent", daemon=True).start()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
