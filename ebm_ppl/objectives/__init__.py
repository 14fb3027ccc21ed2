"""Estimators: objectives that learn an energy from data, one file each."""
