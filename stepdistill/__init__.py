"""stepdistill: distil many-step diffusion models into one- and few-step students."""

from .config import ConfigError, Run, read
from .run import Result, distill

__all__ = ["ConfigError", "Result", "Run", "distill", "read"]
