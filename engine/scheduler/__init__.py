"""Scheduling: which sequences run in the next step, in which slots, on which KV cells. Pure Python over token ids."""
