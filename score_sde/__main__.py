"""`python -m score_sde`: the command line."""

from score_sde.cli import end_with_main

if __name__ == "__main__":
    end_with_main()
