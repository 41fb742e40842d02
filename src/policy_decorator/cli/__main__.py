"""`python -m policy_decorator.cli`."""

import sys

from policy_decorator.cli import main

if __name__ == "__main__":
    sys.exit(main())
