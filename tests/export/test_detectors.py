"""Every detector of the table that can be exported: one photo has one answer, however it is padded."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForKeypointDetection

from lightglue_hf import LightGlueConfig, LightGlueForKeypointMatching, LightGlueImageProcessor
from lightglue_hf.detectors import DETECTORS, configuration_class
from lightglue_hf.export.check import LIMITS, Example, check, photos
from lightglue_hf.export.exporter import FILES, FORMATS, Exportable, ExportOptions, export

from .test_exporter import needs

EXPORTABLE = [name for name in DETECTORS if configuration_class(name).exportable]
CLASSES = {"onnx": "ORTModelForKeypointMatching", "openvino": "OVModelForKeypointMatching"}
OTHERS = [name for name in DETECTORS if name not in EXPORTABLE]


@pytest.fixture(scope="module", params=["onnx", "openvino"])
def backend(request):
    needs(request.param)
    return request.param


@pytest.fixture(scope="module", params=EXPORTABLE)
def model(request):
    """Random weights; thresholds such that the best keypoints are as many as there may be."""
    torch.manual_seed(0)
    detector = configuration_class(request.param)(max_keypoints=64, keypoint_threshold=0.0)
    config = LightGlueConfig(
        detector,
        descriptor_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.3,
        filter_threshold=0.0,
        depth_confidence=0.9,
        width_confidence=-1.0,
    )
    return LightGlueForKeypointMatching(config).eval()


def exportable(model, **options):
    processor = LightGlueImageProcessor(**model.config.keypoint_detector_config.processor_settings)
    return Exportable(model, processor, ExportOptions(**options))


@torch.no_grad()
@pytest.mark.parametrize(("part", "adaptive"), [("detector", False), ("pipeline", True)])
def test_one_photo_one_answer(backend, model, part, adaptive, tmp_path):
    source = exportable(model, parts=(part,), adaptive=adaptive)
    file = tmp_path / FILES[backend][part]
    written = FORMATS[backend](source.graph(part), 18)
    written.save(file, "fp32")
    height, width = 90, 117
    pictures = torch.from_numpy(photos(1, height, width, seed=3))
    if part == "detector":
        pictures = pictures[0, :1]
        wanted = dict(source.model.extract_features(pictures))
    else:
        features = source.model.extract_features(pictures)
        wanted = {**features, **source.model.match_features(features)}
    wanted = {name: value.numpy() for name, value in wanted.items() if isinstance(value, torch.Tensor)}
    sizes = np.tile([height, width], (*pictures.shape[:-3], 1))
    examples = []
    for canvas in ((height, width), (96, 120), (128, 200)):
        pixels = np.full((*pictures.shape[:-2], *canvas), 0.7, np.float32)
        pixels[..., :height, :width] = pictures
        examples.append(Example({"pixel_values": pixels, "image_sizes": sizes}, wanted))
    # With random weights some scores at the end of the list are all but equal: a keypoint may be another one, which
    # every match sees.
    limits = LIMITS["fp32"]._replace(keypoints=0.95, matches=0.7, median=0.01, tail=0.1)
    result = check(part, written.run(file), examples, "fp32", limits)
    assert result.compared > 3


@torch.no_grad()
def test_a_detector_of_one_size_names_its_outputs(backend, model, tmp_path):
    """What OpenVINO compiles has further names for outputs, of operations that were merged into one."""
    from lightglue_hf import runtime

    model.save_pretrained(tmp_path / "model")
    processor = LightGlueImageProcessor(**model.config.keypoint_detector_config.processor_settings)
    processor.save_pretrained(tmp_path / "model")
    options = ExportOptions(("detector",), batch_size=1, height=96, width=128, num_keypoints=64, validate=False)
    export(tmp_path / "model", tmp_path / "graphs", backend, options)
    graph = getattr(runtime, CLASSES[backend]).from_pretrained(tmp_path / "graphs")
    features = graph.extract_features(torch.rand(1, 3, 96, 128))
    assert set(features) == {"keypoints", "scores", "descriptors", "mask", "image_sizes"}


def test_what_is_computed_in_float32_is_marked(model):
    """The names of modules that a configuration declares are found in OpenVINO's graph."""
    needs("openvino")
    from lightglue_hf.export.formats import openvino_graph

    graph = exportable(model, parts=("detector",)).graph("detector")
    assert graph.float32_modules
    for name in graph.float32_modules:
        graph.float32_modules = (name,)
        marked = [op for op in openvino_graph(graph).get_ops() if "precise_0" in op.get_rt_info()]
        assert any(op.get_type_name() == "Convolution" for op in marked), name


def test_batches_of_images_of_one_size(model):
    """Where images fill pixel_values any batch goes; otherwise detectors without padding see images one by one."""
    detector = model.config.keypoint_detector_config.model_type
    assert exportable(model, height=96, width=128).graph("pipeline").inputs["pixel_values"].axes[0] == "batch"
    source = exportable(model)
    one = source.one_by_one
    assert one == (detector != "superpoint")
    assert source.graph("pipeline").inputs["pixel_values"].axes[0] == (1 if one else "batch")
    assert source.graph("detector").inputs["image_sizes"].axes[0] == (1 if one else "images")
    assert source.graph("matcher").inputs["mask"].axes[0] == "batch"
    if one:
        with pytest.raises(ValueError, match="where sizes differ"):
            exportable(model, batch_size=2)


@pytest.mark.parametrize("name", OTHERS)
def test_detectors_that_are_no_networks(name):
    detector = configuration_class(name)()
    assert AutoModelForKeypointDetection._model_mapping.get(type(detector), None) is not None
    sizes = {"descriptor_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LightGlueForKeypointMatching(LightGlueConfig(detector, add_scale_ori=True, **sizes))
    with pytest.raises(ValueError, match=rf"{name} is no network .* export the .matcher. alone"):
        exportable(model)
    graph = exportable(model, parts=("matcher",)).graph("matcher")
    assert {"scales", "orientations"} <= set(graph.inputs)
