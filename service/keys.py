"""API keys: whose they are, what their holders may do, and how much of it.

A key file is TOML, a table for each holder, and is read again when it changes::

    [alice]
    key = "..."
    budget = 60000  # network evaluations a minute
    admin = true    # may load and unload models

Keys themselves are kept as digests and never logged; logs and metrics have the holders' names.
"""

import hashlib
import hmac
import logging
import threading
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from pydantic import BaseModel, ConfigDict, Field, SecretStr, TypeAdapter, ValidationError

from service.errors import BudgetExceeded
from service.metrics import Metrics
from service.settings import Settings

_log = logging.getLogger(__name__)

_MINUTE = 60.0
_LOOK = 1.0  # seconds between looks at the file


class _Entry(BaseModel):
    """A holder's table in the key file."""

    model_config = ConfigDict(extra="forbid")

    key: SecretStr = Field(min_length=1)
    budget: float | None = Field(None, gt=0)
    admin: bool = False


_File = TypeAdapter(dict[str, _Entry])


@final
class Budget:
    """A holder's network evaluations: a bucket that holds a minute's worth and fills within one.

        level(t) = min(M, level(s) + M (t - s) / 60)

    A request needs its cost in the bucket and takes it. One that costs more than M needs a full
    bucket and leaves a debt, so that on average it is M a minute whatever is asked.

    Args:
        per_minute: M.
    """

    def __init__(self, per_minute: float) -> None:
        self.per_minute = self._level = per_minute
        self._at = time.monotonic()
        self._lock = threading.Lock()

    def resize(self, per_minute: float) -> None:
        """Change M; what has been spent stays spent."""
        with self._lock:
            self._fill()
            self._level += per_minute - self.per_minute
            self.per_minute = per_minute

    @property
    def left(self) -> float:
        """Evaluations in the bucket; below 0 a debt."""
        with self._lock:
            self._fill()
            return self._level

    def take(self, cost: int) -> None:
        """Take a request's evaluations.

        Raises:
            BudgetExceeded: there are not enough; it says when there will be.
        """
        with self._lock:
            self._fill()
            lacking = min(cost, self.per_minute) - self._level
            if lacking <= 0:
                self._level -= cost
                return
            level = self._level
        raise BudgetExceeded(
            f"The key has {max(0, int(level))} network evaluations left, the request needs {cost}.",
            received=cost,
            expected=f"at most {self.per_minute:g} network evaluations a minute",
            retry_after=lacking / self.per_minute * _MINUTE,
            fix="Send the same request again after `retry_after` seconds, or ask for less.",
        )

    def give_back(self, cost: int) -> None:
        """Return evaluations that were not made."""
        with self._lock:
            self._level += cost

    def _fill(self) -> None:
        now = time.monotonic()
        self._level = min(
            self.per_minute, self._level + self.per_minute * (now - self._at) / _MINUTE
        )
        self._at = now


@dataclass(frozen=True)
class Holder:
    """Whose key it is.

    Attributes:
        name: for logs and metrics.
        admin: whether it may load and unload models.
        budget: its network evaluations; None without a limit.
        owner: whose jobs are its own, the same after a restart: the name in the key file, or the
            digest of a key that has no name.
    """

    name: str
    admin: bool = False
    budget: Budget | None = None
    owner: str = ""


@final
class Keys:
    """The accepted keys: of the settings, and of the key file as it is now.

    Args:
        settings: `api_keys`, `admin_keys`, `api_key_file`.
        metrics: has the budgets.

    Raises:
        ValueError: the key file cannot be read, or two holders have the same key.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._file, self._metrics = settings.api_key_file, metrics
        self.required = settings.key_required
        self._fixed: dict[bytes, Holder] = {}
        for kind, keys, admin in (
            ("key", settings.accepted_keys, False),
            ("admin", settings.accepted_admin_keys, True),
        ):
            for number, key in enumerate(keys, 1):
                digest = _digest(key)
                self._fixed[digest] = Holder(f"{kind}-{number}", admin, owner=digest.hex())
        self._budgets: dict[str, Budget] = {}
        self._lock = threading.Lock()
        self._looked, self._stamp = time.monotonic(), self._stamp_now()
        self._holders: Mapping[bytes, Holder] = self._read()

    @property
    def has_admin(self) -> bool:
        """Whether a key may load and unload models."""
        self._refresh()
        return any(holder.admin for holder in self._holders.values())

    def find(self, key: str) -> Holder | None:
        """Whose key it is; None if it is not accepted."""
        self._refresh()
        digest, found = _digest(key), None
        # Every key is compared, in constant time, so that timing reveals nothing.
        for known, holder in self._holders.items():
            if hmac.compare_digest(digest, known):
                found = holder
        return found

    def owner(self, owner: str) -> Holder | None:
        """Who the owner of a job is; None where there are no keys, or the key is gone."""
        self._refresh()
        return next((one for one in self._holders.values() if one.owner == owner), None)

    def _refresh(self) -> None:
        """Read the file again if it has changed; one that cannot be read changes nothing."""
        if self._file is None or time.monotonic() - self._looked < _LOOK:
            return
        with self._lock:
            self._looked = time.monotonic()
            stamp = self._stamp_now()
            if stamp == self._stamp:
                return
            self._stamp = stamp
            try:
                self._holders = self._read()
            except ValueError as error:
                _log.error("the keys stay as they were: %s", error)
            else:
                _log.info("read %s: %d keys", self._file, len(self._holders))

    def _stamp_now(self) -> tuple[int, int, int] | None:
        if self._file is None:
            return None
        try:
            found = self._file.stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    def _read(self) -> Mapping[bytes, Holder]:
        holders = dict(self._fixed)
        entries = {} if self._file is None else _entries(self._file)
        for name, entry in entries.items():
            digest = _digest(entry.key.get_secret_value())
            if digest in holders:
                raise ValueError(
                    f"{self._file}: {name} has the same key as {holders[digest].name}: "
                    "give each its own"
                )
            budget = self._budget(name, entry.budget)
            holders[digest] = Holder(name, entry.admin, budget, owner=name)
        self._metrics.budgets(
            {
                holder.name: holder.budget.per_minute
                for holder in holders.values()
                if holder.budget is not None
            }
        )
        return holders

    def _budget(self, name: str, per_minute: float | None) -> Budget | None:
        """The holder's bucket, which stays the same when the file is read again."""
        if per_minute is None:
            self._budgets.pop(name, None)
            return None
        budget = self._budgets.setdefault(name, Budget(per_minute))
        budget.resize(per_minute)
        return budget


def _entries(path: Path) -> dict[str, _Entry]:
    """Read a key file; a message has places and reasons in it, and never a key."""
    where = f"{path} (NONEQ_API_KEY_FILE)"
    try:
        return _File.validate_python(tomllib.loads(path.read_text()))
    except OSError as error:
        raise ValueError(f"{where}: it cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{where}: it is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{where}: it is not TOML: {error}") from None
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, fault["loc"]))
        raise ValueError(f"{where}: {place}: {fault['msg']}") from None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
