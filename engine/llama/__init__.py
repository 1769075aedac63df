"""llama.cpp behind the engine's seam: the only room that imports llama_cpp.

Knows llama.cpp's low-level API. Nothing is imported here, so that whoever needs no model loads no llama.cpp.
"""
