"""`python -m workers`: see `workers.launcher.fleet`."""

from workers.launcher.fleet import main

main()
