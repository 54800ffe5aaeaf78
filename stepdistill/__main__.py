"""`python -m stepdistill` is the command `stepdistill`."""

from .cli import main

if __name__ == "__main__":
    main()
