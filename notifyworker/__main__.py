"""`python -m notifyworker` is the command `notifyworker`."""

from notifyworker.cli import main

if __name__ == "__main__":
    main()
