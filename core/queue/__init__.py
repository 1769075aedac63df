"""Celery: the app, its Redis transport, queue names, tickets and events."""
