"""The `millrace` command: a client of the HTTP API, and the launcher of the single-machine stack. Imports no engine."""
