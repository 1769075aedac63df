"""The `millrace` command: a client of the HTTP API, plus the launcher of the single-machine stack. Never an engine."""
