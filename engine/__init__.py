"""The inference engine: continuous batching on llama.cpp in its own process.

Of the other rooms it imports only failpoints and engine options.
"""
