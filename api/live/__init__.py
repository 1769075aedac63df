"""Answers while they are generated: submission, following, streams, shutdown."""
