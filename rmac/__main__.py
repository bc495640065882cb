"""Run rmac from the command line: ``python -m rmac``."""

from rmac.cli import program

if __name__ == "__main__":
    program()
