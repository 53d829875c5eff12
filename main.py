"""`python main.py` is `fdql train`: see fdql.cli."""

import sys

from fdql.cli import main

if __name__ == "__main__":
    sys.exit(main())
