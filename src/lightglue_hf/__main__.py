"""`python -m lightglue_hf`: the command `lightglue-hf`."""

import sys

from .cli import main

sys.exit(main())
