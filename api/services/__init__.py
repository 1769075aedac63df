"""Services that an api process builds once: relay, rate limiter, key ring, Redis client, metrics."""
