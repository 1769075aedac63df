"""The seam between the scheduler and a model, and the backends behind it."""
