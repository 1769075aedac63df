"""Validation of a batch file before it is sent: report, dry run, task."""
