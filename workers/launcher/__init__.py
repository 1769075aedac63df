"""The process that starts, watches and restarts the engines and consumers of one device."""
