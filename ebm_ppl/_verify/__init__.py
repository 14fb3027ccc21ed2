"""Checks of the installed package on the user's own machine: `python -m ebm_ppl verify`."""
