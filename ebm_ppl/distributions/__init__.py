"""Energies as NumPyro distributions and factors."""
