"""Batches at a terminal: their run from file to file, their progress, their results, and their text."""
