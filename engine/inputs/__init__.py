"""Inputs: convert a request to sequences of token ids with chat templates, prompt encoding and constraint compilation."""
