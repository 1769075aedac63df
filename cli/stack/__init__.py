"""The single-machine stack: bundled Postgres and Valkey, api, clerk and workers under one launcher."""
