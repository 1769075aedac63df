"""Models of the models folder, for `millrace models`."""
