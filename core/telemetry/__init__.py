"""Traces by OpenTelemetry, and the ids that relate log lines of several processes."""
