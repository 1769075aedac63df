"""Residency: which models are in the memory of a launcher's device."""
