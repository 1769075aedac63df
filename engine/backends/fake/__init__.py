"""A deterministic backend without a model: decodes from the prompt, with a configurable step time."""
