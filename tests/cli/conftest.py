"""A tiny random model stands in for a trained one, and pictures with corners in them for photos."""

import numpy as np
import pytest
import torch
from PIL import Image

from lightglue_hf import cli


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A directory with a small untrained model that finds keypoints, and a processor."""
    from lightglue_hf.configuration_lightglue import LightGlueConfig
    from lightglue_hf.detectors.superpoint import SuperPointConfig
    from lightglue_hf.image_processing_lightglue import LightGlueImageProcessor
    from lightglue_hf.modeling_lightglue import LightGlueForKeypointMatching

    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("model")
    detector = SuperPointConfig(
        encoder_hidden_sizes=[8, 8, 8, 8],
        decoder_hidden_size=16,
        descriptor_decoder_dim=16,
        keypoint_threshold=0.0,
        max_keypoints=64,
        initializer_range=0.2,
    )
    config = LightGlueConfig(
        keypoint_detector_config=detector,
        descriptor_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        filter_threshold=0.0,
        depth_confidence=-1,
        width_confidence=-1,
        initializer_range=0.2,
    )
    LightGlueForKeypointMatching(config).save_pretrained(directory)
    LightGlueImageProcessor(size={"height": 96, "width": 128}).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Two pictures with corners in them, of different sizes."""
    directory = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    paths = []
    for name, size in (("a.png", (160, 120)), ("b.jpg", (90, 140))):
        cells = Image.fromarray(generator.integers(0, 255, (9, 12, 3), np.uint8))
        paths.append(str(directory / name))
        cells.resize(size, Image.Resampling.NEAREST).save(paths[-1])
    return paths


@pytest.fixture
def error(capsys):
    """Run the command, which must fail by an error of input, and return the line it printed."""

    def error(*arguments):
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
        printed = capsys.readouterr()
        assert status == 2
        assert printed.err.count("\n") == 1
        assert printed.err.endswith("\n")
        assert "error: " in printed.err
        return printed.err

    return error
