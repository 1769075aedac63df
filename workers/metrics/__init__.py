"""Metrics of workers and clerks: their address, what their processes hand over, and the families of Prometheus."""
