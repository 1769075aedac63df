"""From a job to an engine request, and from its result to a stored answer and a stream."""
