"""`python -m unimodal` is the console command `unimodal`."""

import sys

from unimodal.command import main

if __name__ == "__main__":
    sys.exit(main())
