"""The engine as a process: its server, its client, the in-flight log and the watchdog."""
