"""Tables and statements. Statements are functions that return what is to be run, so async and sync callers share one text."""
