"""Benchmarks: speed and memory, measured against targets but never asserted in a test."""
