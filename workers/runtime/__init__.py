"""Shared by every consumer: leases, the publisher, counters, retries of the database."""
