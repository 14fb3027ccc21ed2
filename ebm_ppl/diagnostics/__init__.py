"""Whether to believe the draws: ArviZ-native conversion, checks and verdicts."""
