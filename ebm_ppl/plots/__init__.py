"""Pictures of energies, chains, ladders and training, as ArviZ-plots' `PlotCollection`."""

from ebm_ppl.plots._plot_detailed_balance import plot_detailed_balance as plot_detailed_balance
from ebm_ppl.plots._plot_energy import plot_energy as plot_energy
from ebm_ppl.plots._plot_log_normalizer import plot_log_normalizer as plot_log_normalizer
from ebm_ppl.plots._plot_mixing import plot_mixing as plot_mixing
from ebm_ppl.plots._plot_tempering import plot_tempering as plot_tempering
from ebm_ppl.plots._plot_training import plot_training as plot_training
