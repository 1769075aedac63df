"""Endpoint adapters: how each endpoint's body becomes engine requests, and its results a response."""
