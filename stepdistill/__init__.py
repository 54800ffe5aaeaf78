"""stepdistill: distil many-step diffusion models into one- and few-step students."""

from .jobs.distill import Result, distill
from .jobs.evaluate import Incomplete, evaluate
from .runs.config import RunConfig, read
from .schema import ConfigError

__all__ = [
    "ConfigError",
    "Incomplete",
    "Result",
    "RunConfig",
    "distill",
    "evaluate",
    "read",
]
