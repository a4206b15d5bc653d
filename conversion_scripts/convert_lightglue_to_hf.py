"""`lightglue-hf convert`, from a source tree: python conversion_scripts/convert_lightglue_to_hf.py --help"""

import sys

from lightglue_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
