"""Structured output: schemas and grammars compiled by llguidance, and the token masks they give."""
