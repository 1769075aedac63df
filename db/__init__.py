"""Tables and statements. Functions return statements to execute, so that async and sync callers share one text."""
