"""The Space: `lightglue-hf app`, for everybody."""

import sys

from lightglue_hf.cli import main

sys.exit(main(["app", "--host", "0.0.0.0", "--port", "7860", "--max-megapixels", "25", *sys.argv[1:]]))
