"""Backends of the engine: the protocols, llama.cpp, and a fake."""
