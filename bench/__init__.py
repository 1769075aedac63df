"""How fast, how much memory: measured against the limit, never asserted in a test."""
