"""`python -m workers`: see `workers.launcher`."""

from workers.launcher import main

main()
