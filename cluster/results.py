"""Names in what a slot and Ray Tune tell each other of an epoch."""

SCORE = "score"
EPOCH = "training_iteration"
FINISHED = "finished"
ERROR = "error"
POINT = "point"
"""The key of a trial's hyperparameters in Tune's configuration."""
# What the scheduler and searcher see instead of NaN: Tune's ASHA never stops a NaN trial.
WORST_SCORE = -1e9
