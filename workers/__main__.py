"""`python -m workers`: see `workers.launcher.fleet`."""

from workers.launcher.fleet import main

if __name__ == "__main__":
    main()
