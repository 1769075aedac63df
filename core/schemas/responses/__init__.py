"""Schemas of the Responses API: requests, items, objects, and the translation to chats."""
