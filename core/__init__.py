"""What the processes agree on: settings, states, events, queue names, ids, errors, wire types, file store."""
