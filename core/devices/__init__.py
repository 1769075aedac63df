"""Devices of this machine: their names, memory and drivers, and which of them a worker uses."""
