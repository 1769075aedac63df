"""Engines of a launcher: loads of models, each a process that is watched, reported and stopped."""
