"""A fleet in simulated time: batches of many tenants, claimed in the order of `db/shards.py` by devices under the real policy."""
