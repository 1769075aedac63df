"""Tables in and out: rows become the requests of a batch, and its answers become columns."""
