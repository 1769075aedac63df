"""A table mapped to answers: requests that were asked before, batches side by side, and the file with the answers."""
