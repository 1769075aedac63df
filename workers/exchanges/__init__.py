"""What is particular to each endpoint: how its bodies are asked of an engine, and how its answers are written."""
