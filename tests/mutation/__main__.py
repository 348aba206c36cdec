"""`python -m tests.mutation`: see score.py."""

import sys

from tests.mutation.score import main

if __name__ == "__main__":
    sys.exit(main())
