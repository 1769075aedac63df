"""What clients and the published description hold us to."""
