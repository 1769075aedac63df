"""Conformance: every backend behaves alike, seen through the client of a real engine process."""
