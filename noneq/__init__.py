"""The client of a noneq service: numpy arrays in, numpy arrays out. Needs no torch.

from noneq import Client

with Client() as client:
    digits = client.sample(16, model="mnist")
    digits.save("digits.png")
"""

from noneq import requests
from noneq.client import AsyncClient, Client
from noneq.errors import (
    BadRequest,
    Busy,
    ConnectionFailed,
    ConnectionLost,
    DeadlineMissed,
    FileError,
    MissingExtra,
    NoneqError,
    NotPictured,
    Refused,
    ServerFault,
    TimedOut,
    TooLarge,
    Unauthorized,
    UnknownModel,
    UnreadableAnswer,
)
from noneq.jobs import AsyncJob, Job, JobStatus
from noneq.models import Classifier, Column, Model, ModelChange, ModelFacts, Models
from noneq.reading import read_all as read
from noneq.responses import Likelihoods, Posterior, Samples, Trajectory, load
from noneq.retries import Patience
from noneq.rubin import Pooled, pool
from noneq.sse import Preview, Progress
from noneq.tables import Estimate, Imputed, Scores
from noneq.version import __version__

questions = requests  # its name before 0.2.0, until 0.3.0

__all__ = [
    "AsyncClient",
    "AsyncJob",
    "BadRequest",
    "Busy",
    "Classifier",
    "Client",
    "Column",
    "ConnectionFailed",
    "ConnectionLost",
    "DeadlineMissed",
    "Estimate",
    "FileError",
    "Imputed",
    "Job",
    "JobStatus",
    "Likelihoods",
    "MissingExtra",
    "Model",
    "ModelChange",
    "ModelFacts",
    "Models",
    "NoneqError",
    "NotPictured",
    "Patience",
    "Pooled",
    "Posterior",
    "Preview",
    "Progress",
    "Refused",
    "Samples",
    "Scores",
    "ServerFault",
    "TimedOut",
    "TooLarge",
    "Trajectory",
    "Unauthorized",
    "UnknownModel",
    "UnreadableAnswer",
    "__version__",
    "load",
    "pool",
    "read",
    "requests",
]
