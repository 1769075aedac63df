"""OpenAI's types on the wire: requests are parsed and checked here, responses are built here."""
