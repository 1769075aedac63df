"""The file store: the interface, a directory, object storage, and the choice between them."""
