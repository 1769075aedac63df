"""Launcher: the process that starts, supervises and restarts the engines and consumers of one device."""
