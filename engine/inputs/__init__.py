"""From a request to token ids: chat template, prompt encoding, constraint compilation, dry runs."""
