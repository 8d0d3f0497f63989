"""``python tests/standin`` and ``python3 -m standin``."""

import sys
from pathlib import Path

if not __package__:  # run as a folder: the package's parent is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from standin.server import main

if __name__ == "__main__":
    sys.exit(main())
