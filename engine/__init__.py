"""Continuous batching on llama.cpp, in a process of its own. Imports nothing of the other rooms but failpoints."""
