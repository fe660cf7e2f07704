"""Loading and unloading models: /models/NAME/load and /unload, and Triton's repository routes.

Both are the same work (`service.repository`). Who may: the holder of an admin key; where there is
no such key, a caller on the service's machine by the user that runs it, who may write to the
models folder just as well.
"""

import asyncio
import os
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Final, TypeVar

from anyio import to_thread
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.datastructures import Headers
from starlette.types import Scope

from service.api.body import read_body
from service.api.openapi import problems
from service.codecs.json import JSON, to_json
from service.errors import BodyTooLarge, Forbidden, InvalidRequest
from service.keys import Keys
from service.repository import Change
from service.schemas.responses import ModelChange
from service.state import Backend, backend_of

router = APIRouter()

Options = TypeVar("Options", bound=BaseModel)
_LONGEST: Final = 2**16  # bytes of a body

_FORWARDED: Final = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
_SOCKETS: Final = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LOOPBACK: Final = (  # 127.0.0.1, ::1 and ::ffff:127.0.0.1 as these tables write them
    "0100007F",
    "00000000000000000000000001000000",
    "0000000000000000FFFF00000100007F",
)


@router.post(
    "/models/{name}/load",
    tags=["models"],
    response_model=ModelChange,
    responses=problems(403, 404, 422, 503, 507),
)
async def load_model(request: Request, name: str) -> Response:
    """Load a model, or what its file holds now, while others are served; answers once it is.

    The new version is warmed up before the switch; accepted requests end on the version that
    accepted them. If it fails, what was served before still is.
    """
    return _json(await _change(request, lambda backend: backend.repository.load(name)))


@router.post(
    "/models/{name}/unload",
    tags=["models"],
    response_model=ModelChange,
    responses=problems(403, 404, 503),
)
async def unload_model(request: Request, name: str) -> Response:
    """Serve a model no longer; accepted requests are finished."""
    return _json(await _change(request, lambda backend: backend.repository.unload(name)))


# --------------------------------------------------------- Triton's model repository extension (v2)


class _Parameters(BaseModel):
    """What Triton's clients send along; a model cannot come with the request."""

    model_config = ConfigDict(extra="forbid")

    unload_dependents: bool = False


class RepositoryRequest(BaseModel):
    """The body of Triton's load and unload."""

    parameters: _Parameters = _Parameters()


class IndexRequest(BaseModel):
    """The body of Triton's index."""

    ready: bool = False


class IndexEntry(BaseModel):
    """A model in Triton's index."""

    name: str
    version: str
    state: str
    reason: str


@router.post("/v2/repository/index", response_model=list[IndexEntry], include_in_schema=False)
async def repository_index(request: Request) -> list[IndexEntry]:
    """List the models of the folder with their state, in Triton's form."""
    asked = await _options(request, IndexRequest)
    catalogue = backend_of(request).catalogue
    names = await to_thread.run_sync(backend_of(request).repository.files)
    refused = {each.name: each.reason for each in catalogue.refused}
    entries = []
    for name in sorted({*names, *catalogue.served, *catalogue.classifiers}):
        ready = catalogue.find(name) is not None
        entry = IndexEntry(
            name=name,
            version="1",
            state="READY" if ready else "UNAVAILABLE",
            reason=refused.get(name, "" if ready else "unloaded"),
        )
        if ready or not asked.ready:
            entries.append(entry)
    return entries


@router.post("/v2/repository/models/{name}/load", include_in_schema=False)
async def repository_load(request: Request, name: str) -> Response:
    """Load a model as POST /models/NAME/load does, in Triton's form."""
    await _change(request, lambda backend: backend.repository.load(name), RepositoryRequest)
    return Response(status_code=200)


@router.post("/v2/repository/models/{name}/unload", include_in_schema=False)
async def repository_unload(request: Request, name: str) -> Response:
    """Unload a model as POST /models/NAME/unload does, in Triton's form."""
    await _change(request, lambda backend: backend.repository.unload(name), RepositoryRequest)
    return Response(status_code=200)


async def _options(request: Request, schema: type[Options]) -> Options:
    """Read a short body as JSON, whatever its content type: Triton's clients send none.

    Raises:
        BodyTooLarge, BodyTimeout: it is no such body.
        InvalidRequest: it is not as the schema says.
    """
    try:
        raw = await read_body(request, backend_of(request).settings, _LONGEST, None)
    except BodyTooLarge:
        raise BodyTooLarge(
            f"The body is larger than {_LONGEST} bytes.",
            expected=f"at most {_LONGEST} bytes",
            fix="Models are read from the service's own folder; send no parameters.",
        ) from None
    try:
        return schema.model_validate_json(raw or b"{}")
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, fault["loc"]))
        raise InvalidRequest(
            f"{place or 'The body'}: {fault['msg']}",
            location=place,
            fix="Models are read from the service's own folder; send no parameters.",
        ) from None


async def _change(
    request: Request,
    act: Callable[[Backend], Change],
    schema: type[BaseModel] | None = None,
) -> Change:
    """Do it if the caller may; one at a time, so that those that wait hold no threads.

    Args:
        request: whose.
        act: what to do.
        schema: of a body that it may have.
    """
    await to_thread.run_sync(_check_allowed, request)
    if schema is not None:
        await _options(request, schema)
    backend = backend_of(request)
    problem = backend.ended()
    if problem is not None:
        raise problem
    async with backend.changing:
        # Not given up when the client leaves: half of it cannot be left undone.
        return await asyncio.shield(to_thread.run_sync(act, backend))


def _check_allowed(request: Request) -> None:
    keys: Keys = request.app.state.keys
    holder = getattr(request.state, "holder", None)
    if holder is not None and holder.admin:
        return
    if not keys.has_admin and is_local(request.scope):
        return
    raise Forbidden(
        "The caller may not load or unload models.",
        expected="an admin key"
        if keys.has_admin
        else "a caller on the service's machine, by the user that runs it, not through a proxy",
        fix="Send an admin key; the operator sets NONEQ_ADMIN_KEYS, or `admin = true` in the key "
        "file.",
    )


def is_local(scope: Scope) -> bool:
    """Whether the caller is on this machine, not through a proxy, and is the service's own user."""
    client, server = scope.get("client"), scope.get("server")
    headers = Headers(scope=scope)
    if client is None or server is None or any(name in headers for name in _FORWARDED):
        return False
    try:
        address = ip_address(client[0])
    except ValueError:
        return False
    # A server that listens on :: sees 127.0.0.1 as ::ffff:127.0.0.1.
    if not (getattr(address, "ipv4_mapped", None) or address).is_loopback:
        return False
    # A proxy on this machine that adds no header connects from here too, but as another user.
    owner = _owner(client[1], server[1])
    return owner is None or owner == os.geteuid()


def _owner(port: int, server: int) -> int | None:
    """The user id of the loopback socket at `port` that is connected to `server`.

    None where the system does not tell; -1 where there is no such socket.
    """
    found = None
    for table in _SOCKETS:
        try:
            lines = table.read_text().splitlines()[1:]
        except OSError:
            continue
        found = -1 if found is None else found
        for line in lines:
            _, local, remote, *rest = line.split()
            address, _, number = local.partition(":")
            if (
                address in _LOOPBACK
                and int(number, 16) == port
                and int(remote.partition(":")[2], 16) == server
            ):
                return int(rest[4])
    return found


def _json(change: Change) -> Response:
    return Response(to_json(ModelChange(**vars(change)).model_dump()), media_type=JSON)
