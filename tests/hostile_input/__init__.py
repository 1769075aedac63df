"""Bad input: tests for each row of the matrix of bad inputs, and a fuzzer.

The id or docstring of a test begins with the row that it proves (`B17-…`); `matrix.py` names the tests of other rows.
"""
