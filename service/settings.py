"""The service's settings: environment variables `NONEQ_*`, and flags of `python -m service`.

Only this module reads the environment. `Settings.from_command_line()` reads flags first, then the
environment, then the defaults below; `Settings(...)` in a test takes values as given.

Work is counted in network evaluations: a request of 16 samples by 1000 steps costs 16 000.
"""

import os
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict

LogLevel = Literal["debug", "info", "warning", "error", "critical"]

PREFIX = "NONEQ_"
#: Variables of the client and of `python -m training`, and those that Kubernetes sets for a service
#: named "noneq".
_OTHERS = re.compile(r"NONEQ_(URL|API_KEY|DATA|SERVICE_(HOST|PORT)(_\w+)?|PORT_\d+_\w+)")


class Settings(BaseSettings):
    """The operator's settings. Frozen; the descriptions are the flags' help."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        cli_prog_name="python -m service",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_implicit_flags=True,
        protected_namespaces=(),
    )

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for every interface.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 for any free one.")
    models: Path = Field(
        Path("models"), description="Folder of artefacts, each NAME/model.safetensors."
    )
    default_model: str | None = Field(
        None, description="Model for requests that name none; not needed if only one is served."
    )
    watch: float = Field(
        0.0,
        ge=0,
        description="Seconds between looks at the models folder: what is new, changed or gone "
        "there is loaded, reloaded or unloaded. 0: never.",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu(,cpu)*|cuda(:\d+)?(,cuda:\d+)*)$",
        description="cpu, cuda, cuda:N, or auto: CUDA where there is one. Several, separated by "
        "commas, get an engine each: cuda:0,cuda:1.",
    )
    threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="CPU threads of one network call; 0 for PyTorch's choice, at most the "
        "container's share of CPUs.",
    )
    api_keys: SecretStr = Field(
        SecretStr(""),
        description="Accepted API keys, separated by commas; empty: open to everybody.",
    )
    admin_keys: SecretStr = Field(
        SecretStr(""),
        description="API keys that may also load and unload models, separated by commas; without "
        "any, also in the key file, only callers on the same machine by the same user may.",
    )
    api_key_file: Path | None = Field(
        None,
        description="TOML file of API keys with names and budgets, read again when it changes; a "
        "table for each holder, with `key`, and perhaps `budget` (network evaluations a minute) "
        "and `admin = true`.",
    )
    allowed_hosts: str = Field(
        "",
        description="Host names that callers may use, separated by commas; `.example.org` for all "
        "below it, `*` for any. Always allowed: localhost, IP addresses, names of local"
        " networks; with API keys any name.",
    )
    allow_origins: str = Field(
        "",
        description="Other sites whose pages may use the service in a browser, as "
        "https://example.org, separated by commas.",
    )
    root_path: str = Field(
        "",
        pattern=r"^(/[A-Za-z0-9._~-]+)*/?$",
        description="Path below which a proxy shows the service, for example /noneq.",
    )
    max_connections: int = Field(
        1000,
        ge=8,
        description="Most connections at once. Beyond it idle ones are closed, and if all have a "
        "request a new one gets 503, except for /health/. Lower if the limit of open "
        "files requires it.",
    )
    header_seconds: float = Field(
        10.0, gt=0, description="Longest wait for a request's complete headers, in seconds."
    )
    idle_seconds: float = Field(
        75.0,
        gt=0,
        description="How long a connection may wait for its next request, in seconds; keep a "
        "proxy's own limit below it.",
    )

    max_body_bytes: int = Field(
        32 * 2**20, ge=1024, description="Largest request body, in bytes; beyond it 413."
    )
    max_json_bytes: int = Field(
        4 * 2**20,
        ge=1024,
        description="Largest JSON body, or JSON within a safetensors body, in bytes; beyond it 413."
        " Nothing else runs while JSON is decoded.",
    )
    max_samples: int = Field(
        4096, ge=1, description="Most samples a request may ask for, over all its examples."
    )
    max_data: int = Field(
        4096, ge=1, description="Most examples (images, vectors, bit strings) a request may carry."
    )
    max_particles: int = Field(
        256,
        ge=1,
        description="Most particles of a system; all are held at once. A step of more than "
        "`batch_size` is made in pieces.",
    )
    max_request_cost: int = Field(
        2_000_000, ge=1, description="Most network evaluations one request may need; beyond it 422."
    )
    max_queue_cost: int = Field(
        8_000_000,
        ge=1,
        description="Network evaluations accepted and not yet done at which the queue is full and "
        "answers 503. Below it the next request is accepted, however long.",
    )
    max_queue_bytes: int = Field(
        2 * 2**30,
        ge=2**20,
        description="Most bytes of bodies being read, and of accepted requests' data and answers "
        "until these are sent; beyond it 503. Unless set, at most a quarter of the "
        "container's memory.",
    )
    max_device_bytes: int = Field(
        0,
        ge=0,
        description="Most bytes of device memory (on a CPU, of the process's) with which a further "
        "model is loaded; beyond it 507. 0: all that the device, the container or the machine has.",
    )
    body_seconds: float = Field(
        60.0, gt=0, description="Longest wait for a request's body, in seconds; beyond it 408."
    )
    write_seconds: float = Field(
        30.0,
        gt=0,
        description="Longest wait for a client to take a piece of its answer (64 KiB), in seconds; "
        "beyond it the connection is closed and the answer's memory freed.",
    )
    deadline_seconds: float = Field(
        0.0,
        ge=0,
        description="Longest a request may take, in seconds; the header x-deadline may ask for "
        "less. 0: no deadline but the header's.",
    )

    jobs: Path | None = Field(
        None,
        description="Folder of the jobs that are answered later (Prefer: respond-async), so that "
        "they survive a restart; one for each service. Empty: a temporary folder, which does not.",
    )
    max_jobs: int = Field(
        1000,
        ge=0,
        description="Most jobs that are kept, waiting, running and ended; beyond it 503. 0: none, "
        "and every request is answered at once.",
    )
    max_jobs_bytes: int = Field(
        2**30,
        ge=2**20,
        description="Most bytes of all jobs: requests, answers, and what answers to come are "
        "expected to take; beyond it 503. Unless set, at most an eighth of the container's memory "
        "where the folder is temporary, as it may be in memory.",
    )
    jobs_seconds: float = Field(
        86400.0, gt=0, description="How long an ended job and its answer are kept, in seconds."
    )

    batch_size: int = Field(
        0,
        ge=0,
        le=65536,
        description="Most rows of one network call; 0: measured for each model at start (32 with "
        "deterministic).",
    )
    precision: Literal["float32", "tf32", "bfloat16"] = Field(
        "float32",
        description="Precision of the network in sampling; likelihoods and particles are always "
        "float32. tf32 is for NVIDIA GPUs from Ampere on (float32 elsewhere); bfloat16 "
        "for GPUs, and CPUs with AVX-512 or AMX: others get slower.",
    )
    compile: bool = Field(
        False,
        description="Put networks through torch.compile: a longer start, and needs a C compiler on "
        "the server.",
    )
    graphs: bool = Field(
        True,
        description="On a CUDA device, record sampling steps as CUDA graphs at start.",
    )
    deterministic: bool = Field(
        False,
        description="Pad every network call to batch_size rows, so that a request gives the same "
        "bits under any load; answers say whether that holds.",
    )
    slots: int = Field(
        0,
        ge=0,
        description="Most chains, examples and particles of one model held at once; at least "
        "batch_size. Further jobs wait. 0: enough for every request that can be "
        "accepted, as far as memory allows.",
    )
    term_share: float = Field(
        0.125,
        gt=0,
        lt=1,
        description="Share of a batch kept for likelihood terms while chains could fill it.",
    )

    drain_seconds: float = Field(
        60.0, ge=0, description="On SIGTERM, the longest wait for accepted work to finish."
    )
    log_level: LogLevel = Field("info", description="Least severe message that is logged.")
    log_format: Literal["text", "json"] = Field(
        "text",
        description="json: an object a line, with request and trace ids, and a line for each "
        "request.",
    )
    otlp_endpoint: str = Field(
        "",
        pattern=r"^(https?://.+)?$",
        description="Where traces are sent, OTLP over HTTP, for example http://localhost:4318; "
        "empty: no tracing. Needs the extra `otel`; OpenTelemetry's own `OTEL_*` variables set the "
        "sampler, the service's name, headers and more.",
    )

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if 0 < self.slots < self.batch_size:
            raise ValueError(
                f"slots={self.slots} cannot fill a batch of {self.batch_size} rows: "
                f"set NONEQ_SLOTS to at least {self.batch_size}, or NONEQ_BATCH_SIZE lower"
            )
        if self.max_body_bytes > self.max_queue_bytes // 2:
            raise ValueError(
                f"max_body_bytes={self.max_body_bytes} exceeds half of max_queue_bytes="
                f"{self.max_queue_bytes}, which has to hold a body and what is made of it: "
                f"set NONEQ_MAX_QUEUE_BYTES to at least {2 * self.max_body_bytes}"
            )
        return self

    @classmethod
    def from_command_line(cls, arguments: Sequence[str] | None = None) -> "Settings":
        """Read flags, then the environment; `None` reads `sys.argv`. `--help` lists them all.

        Raises:
            ValueError: a value is not valid, or a variable NONEQ_* is not a setting.
        """
        check_names(name for name, value in os.environ.items() if value)
        return CliApp.run(cls, cli_args=None if arguments is None else list(arguments))

    @property
    def accepted_keys(self) -> list[str]:
        """The keys in `api_keys`."""
        return _parts(self.api_keys.get_secret_value())

    @property
    def accepted_admin_keys(self) -> list[str]:
        """The keys in `admin_keys`."""
        return _parts(self.admin_keys.get_secret_value())

    @property
    def key_required(self) -> bool:
        """Whether every caller needs a key; else the service is open to all."""
        return bool(self.accepted_keys) or self.api_key_file is not None

    @property
    def traced(self) -> bool:
        """Whether requests are traced."""
        return bool(self.otlp_endpoint)

    @property
    def hosts(self) -> frozenset[str]:
        """The names in `allowed_hosts`, in lower case."""
        return frozenset(name.lower() for name in _parts(self.allowed_hosts))

    @property
    def origins(self) -> frozenset[str]:
        """The sites in `allow_origins`, written as in the Origin header."""
        return frozenset(site.lower().rstrip("/") for site in _parts(self.allow_origins))

    @property
    def prefix(self) -> str:
        """`root_path` without a trailing slash."""
        return self.root_path.rstrip("/")

    def resolve_devices(self) -> list[str]:
        """Return the names in `device`, with "auto" resolved.

        Raises:
            ValueError: a CUDA device was requested that PyTorch does not find, or one twice.
        """
        import torch  # here, so that reading settings (or their --help) costs no torch import

        if self.device == "auto":
            return ["cuda" if torch.cuda.is_available() else "cpu"]
        names = self.device.split(",")
        if names[0] == "cpu":
            return names
        indices = [int(name.partition(":")[2] or 0) for name in names]
        count = torch.cuda.device_count()
        if max(indices) >= count:
            raise ValueError(
                f"NONEQ_DEVICE={self.device}, but PyTorch sees {count} CUDA devices: "
                "use cpu or auto, or install a CUDA build of PyTorch and its driver"
            )
        if len(set(indices)) < len(indices):
            raise ValueError(f"NONEQ_DEVICE={self.device} names a device twice: name each once")
        return names


def check_names(names: Iterable[str]) -> None:
    """Refuse environment variables that look like settings but are not.

    Raises:
        ValueError: each such name, with the setting of the nearest name.
    """
    help_ = "`python -m service --help` lists them"
    known = [field.upper() for field in Settings.model_fields]
    faults = []
    for name in sorted(names):
        upper = name.upper()
        if not upper.startswith(PREFIX) or _OTHERS.fullmatch(upper):
            continue
        if (given := upper.removeprefix(PREFIX)) in known:
            continue
        near = get_close_matches(given, known, 1)
        meant = f"did you mean {PREFIX}{near[0]}?" if near else help_
        faults.append(f"{name}: there is no such setting; {meant}")
    if faults:
        raise ValueError("\n".join(faults))


def _parts(text: str) -> list[str]:
    return [part for piece in text.split(",") if (part := piece.strip())]
