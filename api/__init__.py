"""HTTP in, HTTP out (FastAPI): requests, rows and events."""
