"""Outputs: convert the tokens of an answer to text, reasoning and tool calls."""
