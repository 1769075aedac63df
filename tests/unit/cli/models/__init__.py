"""Tests of `millrace models add`."""
