"""Command: see the package."""

from benchmarks.tables import main

if __name__ == "__main__":
    main()
