"""`python -m policy_decorator.cli`."""

import sys

from policy_decorator.cli import main

sys.exit(main())
