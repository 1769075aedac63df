"""Processes: children, supervision, hardening, runtime directories."""
