"""The engine: every request's rows in every network call.

`Engine` takes jobs; tickets bring their answers.
"""

from service.engine.engine import Engine
from service.engine.jobs import ChainJob, Job, SystemJob, TermJob
from service.engine.results import ChainResult, SystemResult, TermResult, Ticket

__all__ = [
    "ChainJob",
    "ChainResult",
    "Engine",
    "Job",
    "SystemJob",
    "SystemResult",
    "TermJob",
    "TermResult",
    "Ticket",
]
