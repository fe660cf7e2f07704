"""The service as a Ray Serve application: replicas of the whole server behind one address.

    serve run deploy.ray.app:app replicas=2 cpus=1
    serve deploy deploy/ray/config.yaml

A replica is the FastAPI app of `python -m service` with an engine of its own, on a GPU or so many
cores. Ray's proxy passes requests and answers on as they are (`router` says to which replica), and
a request that would keep one replica for long is split by rows over all of them (`remote`). The
settings are the NONEQ_* variables, read where the application is deployed.
"""

import asyncio
import time
from typing import Any, Self

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, model_validator
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.request_router import ReplicaID
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deploy.ray import remote, router, scaling
from service.app import create_app
from service.engine.jobs import Job
from service.engine.results import JobResult
from service.engine.router import Router
from service.errors import NotReady, Problem
from service.memory import keep_freed_memory
from service.settings import Settings
from service.state import Backend

#: Limits of a request, unless they are set: it may need many replicas.
LIMITS = {
    "max_samples": 65_536,
    "max_data": 65_536,
    "max_body_bytes": 256 * 2**20,
    "max_request_cost": 64_000_000,
}


class Arguments(BaseModel):
    """Arguments of the application: `serve run deploy.ray.app:app NAME=VALUE ...`."""

    model_config = ConfigDict(extra="forbid")

    replicas: int | None = Field(None, ge=1, description="How many; None to scale by the work.")
    min_replicas: int = Field(1, ge=1, description="The fewest, when scaled by the work.")
    max_replicas: int = Field(8, ge=1, description="The most, when scaled by the work.")
    upscale_delay: float = Field(10.0, ge=0, description="Seconds before replicas are added.")
    downscale_delay: float = Field(300.0, ge=0, description="Seconds before they are removed.")
    cpus: float = Field(1.0, gt=0, description="Cores of a replica, and threads of its network.")
    gpus: float = Field(0.0, ge=0, description="GPUs of a replica: 1, or a share of one.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas={self.min_replicas} exceeds max_replicas={self.max_replicas}"
            )
        return self


class OneRequestId:
    """Leaves `x-request-id` of the answer to Ray's proxy, which adds the same one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""

        async def send_without(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)["x-request-id"]
            await send(message)

        await self._app(scope, receive, send_without)


@serve.ingress()
class Replica:
    """One server of the deployment.

    Args:
        values: the settings that differ from their defaults.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        keep_freed_memory()
        context = serve.get_replica_context()
        self._others = remote.Replicas(
            context.replica_id,
            lambda: serve.get_deployment_handle(context.deployment, context.app_name),
        )
        self._app = create_app(Settings.model_validate(values), remote=self._others)
        self._app.add_middleware(OneRequestId)
        self._backend: Backend = self._app.state.backend
        self._measured = time.monotonic(), 0.0

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The app that Ray's proxy talks to; Ray runs its lifespan."""
        return self._app

    async def check_health(self) -> None:
        """Wait until /health/ready says yes; from then on raise what /health/live would say.

        Ray takes a new replica in, or restarts one, by this.
        """
        while isinstance(problem := self._backend.state(), NotReady):
            if problem.retry_after > 2:  # it cannot start
                raise RuntimeError(problem.detail)
            await asyncio.sleep(0.05)
        if (dead := self._backend.dead()) is not None:
            raise RuntimeError(dead.detail)
        self._others.owed = self._router.seconds_of
        self._others.connect()

    def record_routing_stats(self) -> dict[str, float]:
        """What this replica owes, for `router.OwedWork`."""
        if not isinstance(self._backend.state(), Problem):
            return {"owed": self._router.owed, "usual": self._router.usual, "time": time.time()}
        return {}

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What it owes, and how busy it has been since the last call, for `scaling.policy`."""
        if isinstance(self._backend.state(), Problem):
            return {"owed": 0.0, "busy": 0.0}
        now = time.monotonic(), self._router.busy_seconds
        (then, before), self._measured = self._measured, now
        busy = (now[1] - before) / max(1e-3, now[0] - then)
        return {"owed": self._router.owed, "busy": min(1.0, busy)}

    async def part(
        self,
        job: Job[Any],
        seconds: float | None,
        *,
        owed: float,  # noqa: ARG002
        sender: ReplicaID,  # noqa: ARG002
    ) -> JobResult | Problem:
        """Do a part of another replica's request; `owed` and `sender` are for the router."""
        return await remote.answer(self._router, job, seconds)

    @property
    def _router(self) -> Router:
        engine = self._backend.engine
        assert isinstance(engine, Router)  # as there is a Remote
        return engine


def app(arguments: Arguments) -> Application:
    """Build the application; Ray calls it where the application is deployed."""
    return build(arguments, Settings.from_command_line([]))


def build(arguments: Arguments, settings: Settings) -> Application:
    """Build the application with these settings, where they differ from their defaults."""
    values = settings.model_dump(mode="json", exclude_unset=True)
    values = {**LIMITS, "threads": max(1, int(arguments.cpus)), **values}
    if "api_keys" in values:
        values["api_keys"] = settings.api_keys.get_secret_value()
    scale: dict[str, Any] = {"num_replicas": arguments.replicas}
    if arguments.replicas is None:
        scale = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=arguments.min_replicas,
                max_replicas=arguments.max_replicas,
                upscale_delay_s=arguments.upscale_delay,
                downscale_delay_s=arguments.downscale_delay,
                look_back_period_s=15.0,
                policy=AutoscalingPolicy(policy_function=scaling.policy),
            )
        }
    deployment = serve.deployment(
        Replica,
        name="noneq",
        ray_actor_options={"num_cpus": arguments.cpus, "num_gpus": arguments.gpus},
        # The server's own limits refuse, with `Retry-After`; Ray only passes on.
        max_ongoing_requests=settings.max_connections,
        max_queued_requests=-1,
        health_check_period_s=5.0,
        graceful_shutdown_timeout_s=settings.drain_seconds + 10.0,
        request_router_config=router.config(),
        **scale,
    )
    return deployment.bind(values)
