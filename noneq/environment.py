"""Reads what the environment says of the service: NONEQ_URL and NONEQ_API_KEY."""

import os

URL = "http://localhost:8000"  # of `noneq serve`


def address(given: str | None) -> str:
    """Return the service's address: the given one, or NONEQ_URL, or `URL`; host:port is HTTP."""
    found = given or os.environ.get("NONEQ_URL") or URL
    return found if "://" in found else f"http://{found}"


def api_key(given: str | None) -> str | None:
    """Return the given key, or NONEQ_API_KEY; "" is none.

    It is a variable because all users of a machine see its command lines.
    """
    return (os.environ.get("NONEQ_API_KEY") if given is None else given) or None
