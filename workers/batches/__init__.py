"""Preparing and finalizing batches: reading lines, checking them, planning shards, writing result files."""
