"""`python -m tetherflow` is the `tetherflow` command."""

from tetherflow.cli import main

if __name__ == "__main__":  # spawned processes import this module again
    main()
