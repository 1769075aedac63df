"""`python -m workers`: see `workers.launcher.launcher`."""

from workers.launcher.launcher import main

main()
