"""Several hosts on one machine: each has a network namespace, a name and a clock of its own, and no folder is shared."""
