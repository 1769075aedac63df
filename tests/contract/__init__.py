"""The published OpenAPI document and third-party clients work with the service."""
