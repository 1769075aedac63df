"""Jobs of a process of its own, for tables and templates of clients: `python -m mapping`."""
