"""The engine: it batches the rows of all requests.

`Engine` takes jobs; tickets bring their answers.
"""

from service.engine.engine import Engine
from service.engine.jobs import BoundJob, Job, SampleJob, SMCJob
from service.engine.results import LoglikResult, PosteriorResult, SampleResult, Ticket

__all__ = [
    "BoundJob",
    "Engine",
    "Job",
    "LoglikResult",
    "PosteriorResult",
    "SMCJob",
    "SampleJob",
    "SampleResult",
    "Ticket",
]
