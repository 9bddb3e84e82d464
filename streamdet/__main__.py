"""`python -m streamdet`: the command line, where a bench starts a daemon of its own by it."""

from streamdet.cli import main

if __name__ == "__main__":
    main()
