"""Tuning: finds the fastest settings of a model on its device by measuring, beside the work that the engine does."""
