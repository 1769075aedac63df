"""HTTP in, HTTP out. Knows requests, rows and events; never a token id or a model's inside."""
