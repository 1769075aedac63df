"""Access of a key: scopes, rights that it may give, admission of new work, quotas."""
