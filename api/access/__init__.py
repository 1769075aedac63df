"""Access of a key: scopes, admission of new work, quotas."""
