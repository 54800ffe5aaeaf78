"""A method some of whose steps are not finite, as a run names it: `method: unsteady`."""

from dataclasses import dataclass

import torch

from stepdistill.method import Batch, Loss, Players
from stepdistill.methods.dmd2 import Dmd2


@dataclass(frozen=True)
class Unsteady(Dmd2):
    """DMD2 with student turns whose loss is not a number, some with a sample that is none.

    The batch's own stream decides, so on several processes it hits one of them alone.
    """

    rate: float = 0.2

    def student_loss(self, p: Players, batch: Batch) -> Loss:
        loss = super().student_loss(p, batch)
        bad = torch.rand(2, generator=batch.local) < self.rate
        factors = torch.where(bad, torch.nan, 1.0)
        terms = {name: term * factors.prod() for name, term in loss.terms.items()}
        return loss._replace(terms=terms, carry=loss.carry._replace(x=loss.carry.x * factors[0]))
