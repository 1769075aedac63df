"""Sources of models: files, addresses and the hub, the choice of a quantisation, and downloads."""
