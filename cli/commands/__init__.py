"""The verbs of the `millrace` command."""
