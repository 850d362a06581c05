"""`python -m vembed` is `vembed`. The current folder, which Python puts first on the path for modules, is taken out."""

import os
import sys
from pathlib import Path

import vembed

# A folder that is looked at may hold a yaml.py. A checkout that is not installed is found by the current folder alone.
if sys.path[:1] == [os.getcwd()] and not Path(vembed.__file__).is_relative_to(sys.path[0]):  # noqa: PTH109 (as Python)
    del sys.path[0]

from vembed.cli import main

main()
