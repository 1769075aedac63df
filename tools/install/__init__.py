"""Installation by the Makefile and the Dockerfile. Imports the standard library only, since nothing else is installed yet."""
