"""Schemas of OpenAI's API: models that parse and check requests, and models of responses."""
