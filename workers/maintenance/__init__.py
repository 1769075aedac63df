"""Periodic work of the clerk: sweeps, retention, webhook delivery."""
