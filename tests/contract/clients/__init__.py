"""Programs that use third-party clients.

Each takes the server's address as its argument, runs in its own environment (made by `install.py`), and exits with 0
when every
response is what its library expects.
"""
