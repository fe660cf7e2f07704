"""What the command reads of its environment: where the service is, and what a terminal can show."""

import os

from noneq.line import URL


def url() -> str:
    """NONEQ_URL, or the address that `noneq serve` takes by itself."""
    return os.environ.get("NONEQ_URL") or URL


def api_key() -> str | None:
    """NONEQ_API_KEY: in the environment, for a command line is seen by every user of a machine."""
    return os.environ.get("NONEQ_API_KEY") or None


def true_colour() -> bool:
    """Whether the terminal says that it has 24 bits of colour."""
    return os.environ.get("COLORTERM", "").lower() in ("truecolor", "24bit")
