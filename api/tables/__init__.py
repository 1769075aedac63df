"""Tables over HTTP: the child processes that map rows to requests, and join answers to rows."""
