"""The log: as text, or as a JSON object a line, with the ids of the request that wrote it.

    {"time": "2026-11-29T17:04:05.123456Z", "level": "INFO", "logger": "service.request",
     "message": "POST /sample 200", "request_id": "...", "trace_id": "...", ...}

The ids are in a context variable, which follows a request into worker threads.
"""

import json
import logging
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Final

from typing_extensions import override

from service.settings import Settings

#: What identifies the request that is being served: `request_id`, and with a trace `trace_id` and
#: `span_id`.
REQUEST: ContextVar[Mapping[str, str]] = ContextVar("request", default={})  # noqa: B039  (never changed)

#: Under this name a log record carries further members of its JSON object.
FIELDS: Final = "fields"

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class JsonFormatter(logging.Formatter):
    """Writes a record as a JSON object on one line."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds")
        found: dict[str, object] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **REQUEST.get(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            found["exception"] = self.formatException(record.exc_info)
        return json.dumps(found, ensure_ascii=False, default=str)


def configure(settings: Settings) -> None:
    """Set up the root logger as the settings say."""
    level = settings.log_level.upper()
    logging.basicConfig(level=level, format=_TEXT)
    if settings.log_format == "json":
        for handler in logging.root.handlers:
            handler.setFormatter(JsonFormatter())
    # Of each request there is one line: the server's own, or as JSON ours, with its ids.
    logging.getLogger("uvicorn.access").disabled = settings.log_format == "json"
    logging.getLogger("service.request").disabled = settings.log_format == "text"
    if settings.log_level != "debug":  # its messages at start would hide the line of readiness
        logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, logging.root.level))
