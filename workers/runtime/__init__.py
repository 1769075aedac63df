"""Parts that all consumers use: leases, the publisher, counters, retries of database writes."""
