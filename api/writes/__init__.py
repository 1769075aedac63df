"""Writes that happen once: idempotency keys, and commits that failed but may have happened."""
