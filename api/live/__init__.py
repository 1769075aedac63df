"""Responses while their jobs run: submission, follower, streams, waits, shutdown."""
