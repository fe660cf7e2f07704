"""What a caller imports, as `noneq`: a service's models as numpy in, numpy out. No torch.

from noneq import Client

with Client() as client:
    digits = client.sample(16, model="mnist")
    digits.save("digits.png")
"""

from client.answers import Likelihoods, Posterior, Samples, Trajectory, load
from client.asynchronous import AsyncClient
from client.client import Client
from client.errors import (
    BadRequest,
    Busy,
    ConnectionFailed,
    ConnectionLost,
    DeadlineMissed,
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
from client.events import Preview, Progress
from client.models import Model, ModelFacts, Models
from client.retries import Patience

__all__ = [
    "AsyncClient",
    "BadRequest",
    "Busy",
    "Client",
    "ConnectionFailed",
    "ConnectionLost",
    "DeadlineMissed",
    "Likelihoods",
    "MissingExtra",
    "Model",
    "ModelFacts",
    "Models",
    "NoneqError",
    "NotPictured",
    "Patience",
    "Posterior",
    "Preview",
    "Progress",
    "Refused",
    "Samples",
    "ServerFault",
    "TimedOut",
    "TooLarge",
    "Trajectory",
    "Unauthorized",
    "UnknownModel",
    "UnreadableAnswer",
    "load",
]
