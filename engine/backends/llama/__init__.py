"""The llama.cpp backend, on the low-level API of llama-cpp-python. No other package of the product imports llama_cpp."""
