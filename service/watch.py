"""Watches the models folder: what is new there is loaded, what has changed reloaded, what is gone
unloaded.

A file counts once it has stayed the same from one look to the next, so that one that is being
copied is left alone. One that cannot be served is not tried again until it changes.
"""

import logging
import threading
from pathlib import Path

from diffusion import heldout
from diffusion.likelihood import reference
from service.catalogue import CARD, FILE
from service.errors import Problem
from service.repository import Repository

_log = logging.getLogger(__name__)

_READ = (FILE, CARD, heldout.FILE, reference.FILE)  # of a model's folder

Stamp = tuple[tuple[int, int, int] | None, ...]


class Watcher:
    """Compares the folder with what it was at the last look; what is there at first is loaded."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._seen = self._done = self._stamps()

    def watch(self, seconds: float, ended: threading.Event) -> None:
        """Look every `seconds` until `ended`."""
        while not ended.wait(seconds):
            try:
                self.look()
            except Exception:  # whatever the folder does, the next look may succeed
                _log.exception("looking at the models folder failed")

    def look(self) -> None:
        """Load, reload and unload what has changed, and has not since the look before."""
        if not self._repository.folder.is_dir():
            # A disk that is away for a moment; what is served does not need it.
            _log.warning("there is no folder %s", self._repository.folder)
            return
        before, self._seen = self._seen, self._stamps()
        for name, stamp in self._seen.items():
            if stamp != self._done.get(name) and stamp == before.get(name):
                self._done = {**self._done, name: stamp}
                try:
                    self._repository.load(name)
                except Problem as problem:
                    _log.error("%s is not loaded: %s", name, problem.detail)
        for name in self._done.keys() - self._seen.keys() - before.keys():
            self._done = {known: stamp for known, stamp in self._done.items() if known != name}
            self._repository.forget(name)

    def _stamps(self) -> dict[str, Stamp]:
        files = self._repository.files().items()
        return {name: tuple(_stamp(path.parent / each) for each in _READ) for name, path in files}


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
