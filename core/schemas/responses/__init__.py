"""The Responses API on the wire: requests, items, objects, events."""
