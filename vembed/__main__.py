"""`python -m vembed` is `vembed`."""

from vembed.cli import main

main()
