"""Objects that only the api sends or takes."""
