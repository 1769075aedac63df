"""From token ids to output: detokenizer, reasoning and tool parsers, stop strings, deltas."""
