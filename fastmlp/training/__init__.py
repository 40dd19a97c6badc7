"""Training: plans, runs, and the loops that follow them.  It knows no target and no estimator."""
