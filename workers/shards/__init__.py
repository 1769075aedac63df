"""Running shards: claims, progress of lines, poison tracking, isolation."""
