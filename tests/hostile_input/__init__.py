"""Bad input: each row of the matrix of bad inputs, and a fuzzer.

The id or docstring of a test begins with the row it proves (`B17-…`); `matrix.py` says where the other rows are proved.
"""
