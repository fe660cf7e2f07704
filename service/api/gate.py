"""Which requests are looked at, by their headers alone: by how many, from where, under what name.

A page of another site can have a browser on this machine ask a service that has no keys: by a form
or a "simple" request (https://fetch.spec.whatwg.org/#cors-safelisted-method), whose answer it does
not see but whose work is done; or under a name of its own that it then lets mean this machine (DNS
rebinding), and then it sees the answers too. Against the first stand `Sec-Fetch-Site` and
`Origin`, which a page cannot choose; against the second `Host`, for such a name has a domain.
"""

import asyncio
import socket
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.connection import CROWDED
from service.api.middleware import path_of, problem_response
from service.errors import (
    ForeignOrigin,
    HeadersTooLarge,
    Problem,
    TooManyConnections,
    UnknownHost,
)
from service.settings import Settings

MOST_HEADERS: Final = 100

_SAFE = ("GET", "HEAD", "OPTIONS")
_OWN_SITE = ("same-origin", "none")  # none: typed, or a bookmark
#: Nobody can register a name below these (RFC 6761, 6762, 8375; ICANN's .internal).
_LOCAL = (".localhost", ".local", ".internal", ".home.arpa")


class Gate:
    """Refuses what does not come from where requests may come from; the health routes are open.

    Args:
        app: behind it.
        settings: `allowed_hosts`, `allow_origins`, `root_path`, whether there are keys.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self._prefix, self._origins = settings.prefix, settings.origins
        own = {settings.host.lower(), socket.gethostname().lower()}
        self._hosts = settings.hosts | {name for name in own if name}
        self._turn = asyncio.Lock()
        # A foreign page has no key, whatever name it asks under.
        self._any_host = "*" in self._hosts or (bool(settings.accepted_keys) and not settings.hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        problem = None
        if scope["type"] == "http":
            self._place(scope)
            problem = self._fault(scope)
            if problem is None and not path_of(scope).startswith("/health/"):
                # One request a round of the event loop: of a thousand that come at once each is
                # parsed and checked in a round of its own, and health is answered in between.
                async with self._turn:
                    await asyncio.sleep(0)
        if problem is None:
            await self.app(scope, receive, send)
        else:
            await problem_response(problem, scope)(scope, receive, send)

    def _place(self, scope: Scope) -> None:
        """Tell the routes below which path they lie, whether the proxy left it there or not."""
        if self._prefix:
            scope["root_path"] = self._prefix
            if not f"{scope['path']}/".startswith(f"{self._prefix}/"):
                scope["path"] = self._prefix + scope["path"]

    def _fault(self, scope: Scope) -> Problem | None:
        if len(scope["headers"]) > MOST_HEADERS:
            return HeadersTooLarge(
                "The request has too many headers.",
                received=len(scope["headers"]),
                expected=f"at most {MOST_HEADERS}",
                fix="Send fewer.",
            )
        headers = Headers(scope=scope)
        if path_of(scope).startswith("/health/"):
            return None
        if scope.get("state", {}).get(CROWDED, False):
            return TooManyConnections(
                "As many connections as may be have requests.",
                retry_after=1,
                fix="Try again; the operator sets NONEQ_MAX_CONNECTIONS.",
            )
        host = headers.get("host", "")
        if not (self._any_host or knows(host, self._hosts)):
            return UnknownHost(
                "The service does not go by the name that the request asks for.",
                received=host[:100],
                expected="localhost, an IP address, a name of the local network, or an allowed one",
                fix="The operator allows a name with NONEQ_ALLOWED_HOSTS.",
            )
        if scope["method"] in _SAFE or self._of_this_site(headers, host):
            return None
        return ForeignOrigin(
            "The request comes from a page of another site.",
            received=headers.get("origin", "")[:100],
            fix="The operator allows a site with NONEQ_ALLOW_ORIGINS.",
        )

    def _of_this_site(self, headers: Headers, host: str) -> bool:
        """Whether no browser sent it, or one that shows a page of ours or of an allowed site."""
        origin, site = headers.get("origin", "").lower(), headers.get("sec-fetch-site")
        if site in _OWN_SITE or (origin and (origin in self._origins or "*" in self._origins)):
            return True
        if site is not None:
            return False
        # Over plain HTTP, but for localhost, browsers do not say what a site is to another.
        names = host.lower(), headers.get("x-forwarded-host", "").lower()
        return not origin or (origin != "null" and urlsplit(origin).netloc in names)


def knows(host: str, names: Iterable[str]) -> bool:
    """Whether a header Host is one that no foreign page could have given: a name, with its port."""
    name = host.lower().strip()
    name = name[1 : name.find("]")] if name.startswith("[") else name.partition(":")[0]
    name = name.rstrip(".")
    if "." not in name and ":" not in name:  # localhost, a container's name, or none at all
        return True
    try:
        ip_address(name)
    except ValueError:
        pass
    else:
        return True
    if name.endswith(_LOCAL):
        return True
    return any(name == one or (one.startswith(".") and name.endswith(one)) for one in names)
