"""The fake backend: decodes deterministically from the prompt, without a model, with a configurable step time."""
