"""Batches over HTTP: look-ups, throughput, estimates, reproducibility records."""
