"""Run rmac from the command line: ``python -m rmac``."""

from rmac.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
