"""The engine's entry point, answered by the stand-in."""

import sys

from standin.server import main

if __name__ == "__main__":
    sys.exit(main())
