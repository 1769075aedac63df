"""HTTP itself: JSON bodies, errors, pagination, ranges, server-sent events, connection limits."""
