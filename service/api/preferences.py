"""Reads the headers of a request that may be answered later: Prefer and Idempotency-Key."""

import re
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request

from service.errors import InvalidRequest

PREFER: Final = "prefer"
KEY: Final = "idempotency-key"
LONGEST_WAIT: Final = 60.0  # seconds, which proxies tolerate

_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_WAIT = re.compile(r"\d{1,9}")


@dataclass(frozen=True)
class Preferences:
    """What `Prefer` says (RFC 7240).

    Attributes:
        later: `respond-async`: make it a job.
        wait: `wait=N`: for how many seconds to wait for its end; at most `LONGEST_WAIT`.
    """

    later: bool = False
    wait: float = 0.0

    @classmethod
    def of(cls, request: Request) -> "Preferences":
        """Read a request's; what is not known is ignored, as preferences are."""
        found: dict[str, str] = {}
        for item in ",".join(request.headers.getlist(PREFER)).split(","):
            name, _, value = item.split(";")[0].partition("=")
            found.setdefault(name.strip().lower(), value.strip().strip('"'))
        wait = found.get("wait", "")
        seconds = min(LONGEST_WAIT, float(wait)) if _WAIT.fullmatch(wait) else 0.0
        return cls("respond-async" in found, seconds)


def idempotency_key(request: Request) -> str | None:
    """Read the Idempotency-Key, quoted or not; None without one.

    Raises:
        InvalidRequest: it is none, or there are two.
    """
    given = request.headers.getlist(KEY)
    if not given:
        return None
    key = given[0].strip()
    key = key[1:-1] if len(key) > 1 and key[0] == key[-1] == '"' else key
    if len(given) > 1 or not _KEY.fullmatch(key):
        raise InvalidRequest(
            "The header Idempotency-Key is not a key.",
            location=KEY,
            received=", ".join(given)[:100],
            expected="1 to 255 visible ASCII characters, such as a UUID",
            fix="Send one such key for each new request, and the same one when you repeat it.",
        )
    return key
