"""`lightglue-hf convert`."""

from __future__ import annotations

import argparse

from ..utils.errors import InputError
from .arguments import add_former_name, progress
from .errors import reading
from .models import quiet_libraries

HELP = "convert a checkpoint of another project to a directory for from_pretrained, or back"
EPILOG = "docs/checkpoints.md says which file is which, and under what licence."


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="file, URL, directory or name; with --to a directory")
    parser.add_argument("out", metavar="OUT", help="directory, or .pth or .safetensors file, to write")
    help_detector = "the detector of a matcher: file, URL, directory or name; with --to cvg the file to write it to"
    parser.add_argument("--detector", metavar="FILE", help=help_detector)
    add_former_name(parser, "--superpoint", "detector", str)
    help_verify = "replay the original's mathematics on random features and print the largest difference"
    parser.add_argument("--verify", action="store_true", help=help_verify)
    parser.add_argument("--to", choices=("cvg", "transformers"), help="convert back to that project's form")
    parser.add_argument("--push-to-hub", metavar="REPO", help="upload the directory to the Hub")
    parser.add_argument("--private", action="store_true", help="create a private repository")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Convert a checkpoint of another project to a directory, or a directory back."""
    from ..convert import directories as checkpoint_files

    quiet_libraries(args)
    if args.private and not args.push_to_hub:
        raise InputError("--private needs --push-to-hub")
    if args.to and (args.verify or args.push_to_hub):
        raise InputError("--verify and --push-to-hub are for the way there, not for --to")
    if "://" in args.source:
        progress(args, f"downloading {args.source} ...")
    if args.to:
        checkpoint_files.convert_back(args.source, args.out, args.to, args.detector)
    else:
        checkpoint_files.convert(args.source, args.out, args.detector, args.verify)
    if args.push_to_hub:
        with reading(f"--push-to-hub {args.push_to_hub}"):
            checkpoint_files.push_to_hub(args.out, args.push_to_hub, args.private)
