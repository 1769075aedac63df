"""Writes that are made once: idempotency keys, and commits whose reply was lost."""
