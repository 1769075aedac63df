"""List of the GPUs that llama.cpp finds: `python -m engine.process.list_gpus` prints a JSON list of `Gpu`."""

from __future__ import annotations

import sys

import msgspec

from engine.backends.llama.gpus import list_gpus


def main() -> None:
    """Print the list."""
    sys.stdout.buffer.write(msgspec.json.encode(list_gpus()))


if __name__ == "__main__":
    main()
