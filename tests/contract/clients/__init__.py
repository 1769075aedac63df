"""Programs of other people's clients. Each runs in an environment of its own with the server's address as its argument, and ends
with 0 if all it was answered was what its library expects. `install.py` makes the environments.
"""
