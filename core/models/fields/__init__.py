"""Keys of model files by subject, and the spellings of other servers that mean the same."""
