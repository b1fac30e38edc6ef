"""`python -m loadtest`: the load generator without the gateway beside it."""

import sys

from loadtest.cli import main
from loadtest.session import INTERRUPTED

if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
