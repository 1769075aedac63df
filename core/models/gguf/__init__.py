"""Headers of GGUF files, read without llama.cpp."""
