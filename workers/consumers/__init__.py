"""Celery consumers of three kinds: chat, batch, clerk."""
