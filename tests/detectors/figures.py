"""Figures of the authors' code with published weights, in tests/fixtures, and how they are compared.

photo__*.npz: `image`, uint8 (height, width, 3). DETECTOR__*.npz: for each case keypoints, scores and descriptors of
every `step`-th keypoint in the order of the reference; of the cases a and c also each module's mean and standard
deviation by channel, and excerpts of the maps.
"""

from pathlib import Path

import numpy as np
import torch

FIXTURES = Path(__file__).parents[1] / "fixtures"


def figures(detector, case):
    """The figures of a case, by name, and its image `(1, 3, height, width)` in [0, 1]."""
    with np.load(FIXTURES / f"{detector}__figures.npz") as file:
        prefix = f"{case}_"
        found = {name.removeprefix(prefix): file[name] for name in file.files if name.startswith(prefix)}
    with np.load(FIXTURES / f"photo__{case[0]}.npz") as file:
        image = torch.tensor(file["image"]).permute(2, 0, 1)[None] / 255
    return found, image


def assert_figures(features, expected, score, descriptor=1e-4, share=0.995):
    """Keypoints within 0.05 pixels, `share` of them either way; their scores and descriptors within tolerances."""
    valid = features.mask[0].bool()
    ours, theirs = features.keypoints[0][valid], torch.tensor(expected["keypoints"]).float()
    distances = torch.cdist(theirs, ours, compute_mode="donot_use_mm_for_euclid_dist")
    found = distances.amin(1) < 0.05
    assert found.float().mean() >= share
    assert (distances.amin(0) < 0.05).float().mean() >= share
    row = distances.argmin(1)
    scores = torch.tensor(expected["scores"])
    torch.testing.assert_close(features.scores[0][valid][row][found], scores[found], atol=score, rtol=0)
    step = int(expected["step"])
    descriptors = features.descriptors[0][valid][row][::step][found[::step]]
    wanted = torch.tensor(expected["descriptors"])[found[::step]]
    torch.testing.assert_close(descriptors, wanted, atol=descriptor, rtol=0)
    return ours, theirs


def assert_stages(run, modules, expected):
    """Mean and deviation by channel of what modules put out while `run` runs, and of the maps that it returns."""
    maps, handles = {}, []
    for name, module in modules.items():
        handles.append(module.register_forward_hook(lambda _, __, output, name=name: maps.update({name: output})))
    maps |= run()
    for handle in handles:
        handle.remove()
    stages = {name.removeprefix("stage_").rsplit("_", 1)[0] for name in expected if name.startswith("stage_")}
    assert stages <= set(maps), f"{stages - set(maps)} not compared"
    for name in stages:
        deviation, mean = torch.std_mean(maps[name].float(), (0, 2, 3), correction=0)
        for ours, kind in ((mean, "mean"), (deviation, "std")):
            theirs = torch.tensor(expected[f"stage_{name}_{kind}"])
            scale = float(theirs.abs().max()) + float(deviation.max())
            torch.testing.assert_close(ours, theirs, atol=2e-5 * scale, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    return maps
