"""Workers: claim work under a lease, run it in an engine, record the outcome. They reach the engine only through its client."""
