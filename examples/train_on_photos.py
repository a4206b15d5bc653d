"""Train a matcher on a folder of your own photos, in both stages, and look at what it gained.

    python examples/train_on_photos.py PHOTOS runs/mine --pairs 20000
    python examples/train_on_photos.py PHOTOS runs/mine --pairs 20000 --push-to-hub NAME/lightglue-mine

Pairs are made by warping the photos at random, so the true matches are known exactly. It starts from the checkpoint in
the package; docs/training.md says what to expect, and how to train on photos with depth and poses instead.
"""

import argparse
from pathlib import Path

from lightglue_hf import LightGlueForKeypointMatching, LightGlueImageProcessor
from lightglue_hf.training import MatcherRecipe, train_matcher


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="a directory; those below it count, too")
    parser.add_argument("output", type=Path, help="directory of the two runs; a run that was interrupted goes on")
    parser.add_argument("--start", default="tiny", help='checkpoint to start from: "tiny" or a directory')
    parser.add_argument("--pairs", type=int, default=20_000, help="of stage 1; a tenth of them make stage 2")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--height", type=int, default=240)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--keypoints", type=int, default=384)
    parser.add_argument("--push-to-hub", metavar="REPO")
    args = parser.parse_args()

    shared = {
        "photos": str(args.photos),
        "detector": args.start,
        "batch_size": args.batch_size,
        "height": args.height,
        "width": args.width,
        "keypoints": args.keypoints,
        "multi_plane": 0.3,  # cut-outs of the photos in front of each other: parallax and occlusion
        "save_steps": 200,
    }
    stage1 = MatcherRecipe(
        str(args.output / "stage1"), initial_model=args.start, pairs=args.pairs, learning_rate=3e-4, **shared
    )
    train_matcher(stage1)
    stage2 = MatcherRecipe(
        str(args.output / "stage2"),
        initial_model=stage1.output_dir,
        stage=2,
        pairs=max(args.pairs // 10, args.batch_size),
        learning_rate=3e-3,
        warmup_steps=20,
        **shared,
    )
    train_matcher(stage2)
    print(f"lightglue-hf match --model {stage2.output_dir} PHOTO PHOTO -o matches.png")
    if args.push_to_hub:
        LightGlueForKeypointMatching.from_pretrained(stage2.output_dir).push_to_hub(args.push_to_hub)
        LightGlueImageProcessor.from_pretrained(stage2.output_dir).push_to_hub(args.push_to_hub)


if __name__ == "__main__":
    main()
