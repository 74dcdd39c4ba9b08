"""`python -m curate`, and what torchrun starts."""

from curate.app import main

if __name__ == "__main__":
    main()
