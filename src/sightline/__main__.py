"""`python -m sightline` is the command line."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    if sys.path[:1] in ([""], [os.getcwd()]) and not sys.flags.safe_path:
        del sys.path[0]  # `python -m` puts the working folder first; `main` puts it last
    from sightline.cli import main

    sys.exit(main())
