"""Schemas of objects that only the api sends or accepts."""
