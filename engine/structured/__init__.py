"""Structured output: compile schemas and grammars with llguidance, and mask the logits by them."""
