"""The engine: every request's rows in every network call.

`Engine` takes jobs; tickets bring their answers.
"""

from service.engine.engine import Engine
from service.engine.jobs import ChainJob, ChainResult, Job, TermJob, TermResult, Ticket

__all__ = ["ChainJob", "ChainResult", "Engine", "Job", "TermJob", "TermResult", "Ticket"]
