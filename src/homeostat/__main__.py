"""`python -m homeostat` and the `homeostat` command."""

from __future__ import annotations

from homeostat.cli import main

if __name__ == "__main__":
    main()
