"""Decides whether to try again after a failure, and when.

Every request carries its seed, so a repeated request gives the same answer. The client retries
after the `Retry-After` of a busy service, and 1/2, 1, 2, ... seconds after a broken connection; any
other failure, as where no service listens, would only repeat itself.
"""

from dataclasses import dataclass
from typing import final

from noneq.errors import Busy, ConnectionFailed, ConnectionLost, NoneqError, TimedOut

_FIRST, _LONGEST = 0.5, 30.0  # seconds; twice as many each time


@dataclass(frozen=True)
class Patience:
    """How often and how long a client tries again.

    Attributes:
        retries: the most attempts after the first.
        seconds: the longest total wait between the attempts of one call.
        restarts: whether to try again where no service is reached, as while one restarts.
    """

    retries: int = 4
    seconds: float = 60.0
    restarts: bool = False


@final
class Attempts:
    """Counts the attempts at one call."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._passing = (Busy, ConnectionFailed if patience.restarts else ConnectionLost)
        self._failed = 0
        self._waited = 0.0

    def after(self, error: NoneqError) -> float:
        """Return the seconds until the next attempt, or raise `error` to give up."""
        pause = min(_LONGEST, float(_FIRST * 2 ** min(self._failed, 10)))
        if isinstance(error, Busy) and error.retry_after is not None:
            pause = error.retry_after
        elif isinstance(error, TimedOut) or not isinstance(error, self._passing):
            raise error
        self._failed += 1
        self._waited += pause
        if self._failed > self._patience.retries or self._waited > self._patience.seconds:
            raise error
        return pause
