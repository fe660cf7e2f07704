"""The folder of models, and what is served of it: load, unload, reload one while others answer.

load NAME:  read the file -> warm it up beside the others -> switch -> retire the old version

Requests that were accepted before the switch end on the version that accepted them. What fails
before the switch changes nothing but the reason that `GET /models` shows.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import final

import torch

from diffusion.model import DiffusionModel
from service.catalogue import (
    Catalogue,
    Refused,
    Served,
    ServedClassifier,
    checksum_of,
    find_files,
    load_file,
    load_folder,
)
from service.engine.engine import Engine, RunLoop
from service.engine.router import Remote, Router
from service.errors import Draining, EngineDead, ModelFailed, NoDeviceMemory, NotReady, UnknownModel
from service.memory import DeviceMemory, give_back, memory_used
from service.metrics import Metrics
from service.settings import Settings

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Change:
    """What loading or unloading a model did.

    Attributes:
        name: of the model or classifier.
        checksum: of the file that is served now; None if none is.
        replaced: of the file that was served before; None if none was.
        seconds: how long it took.
    """

    name: str
    checksum: str | None
    replaced: str | None
    seconds: float


@final
class Repository:
    """The served models, and the engine that runs them.

    Args:
        settings: the folder, the device, the limits.
        metrics: counts loads, and what models take.
        run_loop: runs the engine's loop; see `Engine`.
        remote: engines of other processes, which take parts of large requests.

    Attributes:
        catalogue: what is served now; replaced as a whole, never changed.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        run_loop: RunLoop | None = None,
        remote: Remote | None = None,
    ) -> None:
        self._settings, self._metrics = settings, metrics
        self._run_loop, self._remote = run_loop, remote
        self.catalogue = Catalogue(wanted=settings.default_model)
        self._engine: Engine | Router | None = None
        self._changing = threading.Lock()
        self._versions: Counter[str] = Counter()  # how often each name has been loaded
        self._memories: list[DeviceMemory] = []

    @property
    def engine(self) -> Engine | Router | None:
        """The engine, once there was something to serve."""
        return self._engine

    def open(self) -> None:
        """Load the folder, start the engine and warm it up; blocks."""
        with self._changing:
            settings = self._settings
            devices = settings.resolve_devices()
            for device in dict.fromkeys(devices):
                memory = DeviceMemory(device, settings.max_device_bytes)
                self._memories.append(memory)
                self._metrics.watch_memory(device, partial(memory_used, device), memory.limit)
            catalogue = load_folder(
                settings.models, devices[0], settings.default_model, self._check_fits
            )
            self.catalogue = catalogue
            if not (catalogue.served or settings.watch):
                return
            models = {name: served.model for name, served in catalogue.served.items()}
            self._engine = self._engines(models, devices)
            self._versions.update(list(models))
            self._engine.warm()
            for name, reason in self._engine.refused.items():
                catalogue = catalogue.without(name).refusing(Refused.of(name, _failed(reason)))
            self._switch(catalogue)
            give_back()  # trials at start need more memory than serving

    @property
    def folder(self) -> Path:
        """Where the models are."""
        return self._settings.models

    def files(self) -> dict[str, Path]:
        """The folder's files that a model may be loaded from, by name."""
        return {path.parent.name: path for path in find_files(self.folder)}

    def load(self, name: str) -> Change:
        """Load a model or classifier, or what its file holds now; blocks until it is served.

        Raises:
            UnknownModel: the folder has no such file.
            ModelFailed, NoDeviceMemory: it cannot be served; what was served before still is.
            NotReady, Draining, EngineDead: the service is starting or ending.
        """
        with self._changing:
            begun = time.monotonic()
            try:
                checksum, replaced = self._load(name)
            except ModelFailed as failure:
                self._metrics.loads.labels("failed").inc()
                if name in self.files():
                    self.catalogue = self.catalogue.refusing(Refused.of(name, failure))
                raise
            self._metrics.loads.labels("unchanged" if checksum == replaced else "loaded").inc()
            return Change(name, checksum, replaced, time.monotonic() - begun)

    def unload(self, name: str) -> Change:
        """Serve a model or classifier no longer; accepted requests are finished.

        Raises:
            UnknownModel: none of that name is served.
        """
        with self._changing:
            begun = time.monotonic()
            found = self.catalogue.find(name)
            if found is None:
                raise UnknownModel(
                    "No model of that name is served.",
                    received=name[:200],
                    expected=_names(self.catalogue),
                    fix="GET /models lists the models.",
                )
            self._drop(name)
            return Change(name, None, found.checksum, time.monotonic() - begun)

    def forget(self, name: str) -> None:
        """Unload what has that name, if it is served, and list its file as refused no longer."""
        with self._changing:
            self._drop(name)

    def _drop(self, name: str) -> None:
        found = self.catalogue.find(name)
        self._switch(self.catalogue.without(name))
        if found is not None:
            self._retire(found)
            self._metrics.loads.labels("unloaded").inc()
            _log.info("unloaded %s", name)

    def _load(self, name: str) -> tuple[str, str | None]:
        """Returns the checksums of the file that is served now and of the one before."""
        engine = self._engine
        if engine is None:
            raise NotReady("There is no engine yet.", retry_after=2)
        files = self.files()
        path = files.get(name)
        if path is None:
            raise UnknownModel(
                "The models folder has no model of that name.",
                received=name[:200],
                expected=sorted(files),
                fix="A model is a folder there, with a file model.safetensors in it.",
            )
        old = self.catalogue.find(name)
        if old is not None and path.is_file() and checksum_of(path) == old.checksum:
            # The weights are those that are served; what lies beside them may be new.
            self._switch(self.catalogue.including(old.refreshed(path.parent)))
            return old.checksum, old.checksum
        found = load_file(path, self._memories[0].device, self._check_fits)
        if isinstance(found, Served):
            found = replace(found, version=self._versions[name])
            self._versions[name] += 1
            self._warm_up(found, engine)
        self._switch(self.catalogue.including(found))
        if old is not None:
            self._retire(old)
        _log.info("loaded %s, sha256 %s", name, found.checksum)
        return found.checksum, None if old is None else old.checksum

    def _check_fits(self, path: Path) -> None:
        for memory in self._memories:
            memory.check(path)

    def _warm_up(self, found: Served, engine: Engine | Router) -> None:
        for memory in self._memories:
            memory.begin()
        try:
            engine.load(found.key, found.model).result()
        except ModelFailed as failure:
            raise _failed(failure.detail) from failure
        try:
            for memory in self._memories:
                memory.check_peak(found.name)
        except NoDeviceMemory:
            engine.retire(found.key)
            raise

    def _engines(
        self, models: Mapping[str, DiffusionModel], devices: Sequence[str]
    ) -> Engine | Router:
        """The engine, or one for each device, which share the limits of memory and threads."""
        count, settings = len(devices), self._settings
        if count == 1 and self._remote is None:
            return Engine(models, settings, self._metrics, self._run_loop)
        threads = settings.threads or torch.get_num_threads()
        shares = {"max_queue_bytes": settings.max_queue_bytes // count}
        if devices[0] == "cpu":
            shares["threads"] = max(1, threads // count)
        share = settings.model_copy(update=shares)
        engines = [Engine(models, share, self._metrics, self._run_loop)]
        for device in devices[1:]:
            copies = {name: deepcopy(model).to(device) for name, model in models.items()}
            engines.append(Engine(copies, share, self._metrics))
        router = Router(engines, devices, self._remote)
        self._metrics.watch_queue(lambda: router.pending, count * settings.max_queue_cost)
        self._metrics.watch_room(lambda: router.held, count * share.max_queue_bytes)
        self._metrics.watch_owed(lambda: router.owed)
        return router

    def _retire(self, old: Served | ServedClassifier) -> None:
        if isinstance(old, Served) and self._engine is not None:
            try:
                self._engine.retire(old.key)
            except (Draining, EngineDead):  # it ends with all the others
                _log.debug("the engine ended before %s was retired", old.name)

    def _switch(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self._metrics.models(
            {name: served.weight_bytes for name, served in catalogue.served.items()}
        )


def _failed(reason: str) -> ModelFailed:
    return ModelFailed(
        reason,
        fix="See the log; export the artefact again, or choose another device (NONEQ_DEVICE).",
    )


def _names(catalogue: Catalogue) -> Sequence[str]:
    return sorted([*catalogue.served, *catalogue.classifiers])
