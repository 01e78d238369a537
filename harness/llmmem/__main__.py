"""`python -m llmmem`: the same as the command `llmmem`."""

from __future__ import annotations

import sys

from llmmem.cli import main

if __name__ == "__main__":
    sys.exit(main())
