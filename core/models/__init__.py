"""Served models as files describe them: YAML files, engine options, sampling parameters."""
