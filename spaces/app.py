"""The Space: `lightglue-hf app`, for everybody."""

import sys

from lightglue_hf.cli import main

limits = ["--max-megapixels", "25", "--max-tiled-megapixels", "50"]
sys.exit(main(["app", "--host", "0.0.0.0", "--port", "7860", *limits, *sys.argv[1:]]))
