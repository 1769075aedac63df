"""Definitions that all processes share: settings, states, events, queue names, ids, errors, schemas, file store."""
