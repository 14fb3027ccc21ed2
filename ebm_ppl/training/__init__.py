"""`fit`: one compiled optimisation loop for every objective."""
