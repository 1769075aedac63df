"""Workers: claim work, drive an engine, record the outcome. Know Celery, leases and rows; the engine is behind its client."""
