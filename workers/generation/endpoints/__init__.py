"""Endpoint adapters: turn the body of each endpoint into engine requests, and their results into a response."""
