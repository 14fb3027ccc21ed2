"""What is modelled: energies of one event."""

from ebm_ppl.energies._base import AbstractEnergy as AbstractEnergy
from ebm_ppl.energies._base import AbstractReferenceEnergy as AbstractReferenceEnergy
