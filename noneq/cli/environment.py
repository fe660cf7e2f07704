"""The environment variables that the command reads."""

import os

from noneq.client import URL


def url() -> str:
    """NONEQ_URL, or the address that `noneq serve` takes by itself."""
    return os.environ.get("NONEQ_URL") or URL


def api_key() -> str | None:
    """NONEQ_API_KEY: in the environment, since every user of a machine sees its command lines."""
    return os.environ.get("NONEQ_API_KEY") or None


def true_colour() -> bool:
    """Whether the terminal shows 24 bits of colour, by its own account."""
    return os.environ.get("COLORTERM", "").lower() in ("truecolor", "24bit")
