"""The chain driver: warm-up, preconditioning, chunks, and the draws it returns."""
