"""The command of a checkout: `python main.py --help`, the same as `score-sde --help`."""

from score_sde.cli import end_with_main

if __name__ == "__main__":
    end_with_main()
