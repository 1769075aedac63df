"""Upstream: an engine process that forwards its requests to a server which speaks OpenAI's API."""
