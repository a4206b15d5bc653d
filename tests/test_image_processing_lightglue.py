"""Pixels in, keypoints back: what transformers gives, what it cannot read, and the way back to the photo."""

import base64
import io
import json
import logging
import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import PretrainedConfig
from transformers.image_utils import ChannelDimension

from lightglue_hf.image_processing_lightglue import (
    LightGlueImageProcessor,
    load_image,
    scale_keypoints,
    to_pixels,
)
from lightglue_hf.registration import register_image_processor

try:
    from transformers.models.lightglue.image_processing_pil_lightglue import LightGlueImageProcessorPil as Stock
except ImportError:
    from transformers.models.lightglue.image_processing_lightglue import LightGlueImageProcessor as Stock

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (61, 83, 3), dtype=np.uint8)
OTHER = RNG.integers(0, 256, (47, 40, 3), dtype=np.uint8)
SMALL = {"height": 32, "width": 48}


@pytest.fixture
def processor():
    return LightGlueImageProcessor(size=SMALL)


def pixel_values(processor, images, **kwargs):
    return processor(images, return_tensors="pt", **kwargs).pixel_values


# ---- the same as transformers' own


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"do_grayscale": False},
        {"resample": 3},
        {"rescale_factor": 0.1},
        {"size": {"height": 481, "width": 97}},
        {"do_resize": False},
        {"do_rescale": False},
    ],
)
@pytest.mark.parametrize("kind", [Image.fromarray, np.asarray, lambda a: torch.from_numpy(a).permute(2, 0, 1)])
def test_pixels_equal_those_of_transformers(settings, kind):
    pair = [kind(PHOTO), kind(PHOTO[::-1].copy())]
    pairs = [pair, pair[::-1]]
    ours = LightGlueImageProcessor()(pairs, return_tensors="pt", **settings)
    stock = Stock()(pairs, return_tensors="pt", **settings)
    assert set(ours) == set(stock) == {"pixel_values"}
    assert ours.pixel_values.dtype == torch.float32
    torch.testing.assert_close(ours.pixel_values, stock.pixel_values.float(), rtol=0, atol=0)


def test_whole_floats_and_grey_photos_equal_those_of_transformers(processor):
    grey = np.repeat(PHOTO[..., :1], 3, axis=-1)
    for image in (grey, PHOTO.astype(np.float32), PHOTO.astype(np.int64)):
        ours, stock = (pixel_values(p, [image, image]) for p in (processor, Stock(size=SMALL)))
        torch.testing.assert_close(ours, stock, rtol=0, atol=0)


def test_fractions_agree_up_to_the_8_bits_of_transformers(processor):
    image = PHOTO / 257
    ours = pixel_values(processor, [image, image], do_rescale=False)
    stock = pixel_values(Stock(size=SMALL), [image, image], do_rescale=False)
    torch.testing.assert_close(ours, stock, rtol=0, atol=2 / 255)


def test_defaults_are_those_of_transformers():
    ours, stock = json.loads(LightGlueImageProcessor().to_json_string()), json.loads(Stock().to_json_string())
    assert ours["image_processor_type"] == "LightGlueImageProcessor"
    keys = {"do_resize", "size", "resample", "do_rescale", "rescale_factor", "do_grayscale", "image_processor_type"}
    assert {key: ours[key] for key in keys} == {key: stock[key] for key in keys}
    assert set(ours) - keys == {"size_divisor"}


# ---- forms of input


def test_every_form_of_a_pair_gives_the_same_pixels(processor, tmp_path):
    paths = []
    for index, array in enumerate((PHOTO, OTHER)):
        paths.append(tmp_path / f"photo {index}.png")
        Image.fromarray(array).save(paths[-1])
    data_urls = ["data:image/png;base64," + base64.b64encode(path.read_bytes()).decode() for path in paths]
    expected = pixel_values(processor, [PHOTO, OTHER])
    assert expected.shape == (1, 2, 3, 32, 48)
    for pair in (
        (PHOTO, OTHER),
        [Image.fromarray(PHOTO), torch.from_numpy(OTHER)],
        (PHOTO.transpose(2, 0, 1), torch.from_numpy(OTHER).permute(2, 0, 1)),
        paths,
        [str(path) for path in paths],
        data_urls,
    ):
        assert torch.equal(pixel_values(processor, pair), expected)
        for pairs in ([pair, pair], (tuple(pair), list(pair))):
            assert torch.equal(pixel_values(processor, pairs), expected.repeat(2, 1, 1, 1, 1))


def test_urls_are_fetched_once_online_and_refused_offline(processor, monkeypatch):
    stream = io.BytesIO()
    Image.fromarray(PHOTO).save(stream, "png")
    asked = []

    def urlopen(request, timeout):
        asked.append((request.full_url, timeout))
        return io.BytesIO(stream.getvalue())

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    found = pixel_values(processor, ["https://a.test/b.png", PHOTO], timeout=3)
    assert torch.equal(found[0, 0], found[0, 1])
    assert asked == [("https://a.test/b.png", 3)]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"https://a\.test/b\.png.*offline"):
        processor(["https://a.test/b.png", PHOTO])
    assert len(asked) == 1


@pytest.mark.parametrize(
    "images",
    [
        PHOTO,
        Image.fromarray(PHOTO),
        [PHOTO],
        [PHOTO] * 3,
        [PHOTO] * 4,
        [[PHOTO] * 3],
        [[PHOTO] * 2, PHOTO],
        np.stack([PHOTO] * 2),
        np.stack([PHOTO] * 4).reshape(2, 2, *PHOTO.shape),
        torch.zeros(1, 2, 3, 8, 8),
        [torch.zeros(2, 3, 8, 8)] * 2,
        [],
        [None, None],
    ],
)
def test_anything_but_pairs_is_refused(processor, images):
    with pytest.raises(ValueError, match="pair of images"):
        processor(images)


@pytest.mark.parametrize("shape", [(3, 9, 3), (4, 9, 3), (1, 1, 3), (5, 9, 7), (9, 7, 2)])
def test_unclear_channels_are_refused_unless_named(processor, shape):
    image = np.zeros(shape, np.uint8)
    with pytest.raises(ValueError, match=r"channel axis of image 1 of pair 0"):
        processor([PHOTO, image])
    if shape[0] in (1, 3, 4):
        first, _ = to_pixels(image, input_data_format="channels_first")
        last, _ = to_pixels(image, input_data_format="channels_last")
        assert (first.shape[1:], last.shape[1:]) == (shape[1:], shape[:2])


@pytest.mark.parametrize("name", ["data_format", "input_data_format"])
@pytest.mark.parametrize("image", [Image.fromarray(PHOTO), np.zeros((9, 7, 3), np.uint8)])
def test_the_channel_axis_has_two_names(processor, name, image):
    for value in ("HWC", "none", 3):
        with pytest.raises(ValueError, match=f"{name} must be one of channels_first, channels_last, got '{value}'"):
            processor([image, image], **{name: value})
    for last in (ChannelDimension.LAST, "channels_last"):
        assert processor([image, image], data_format=last)["pixel_values"].shape[-1] == 3
    expected = processor([image, image])["pixel_values"]
    for first in (None, ChannelDimension.FIRST, "channels_first"):
        assert np.array_equal(processor([image, image], data_format=first)["pixel_values"], expected)


# ---- colour modes, value ranges and faulty files


def test_alpha_is_composited_over_white():
    rgba = Image.fromarray(RNG.integers(0, 256, (9, 11, 4), dtype=np.uint8), "RGBA")
    expected = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    for image in (rgba, np.asarray(rgba)):
        pixels, white = to_pixels(image)
        assert white == 255
        np.testing.assert_allclose(pixels.transpose(1, 2, 0).astype(int), np.asarray(expected).astype(int), atol=1)
    clear = Image.new("LA", (4, 4), (7, 0))
    assert (to_pixels(clear)[0] == 255).all()


@pytest.mark.parametrize("mode", ["P", "CMYK", "1", "L", "YCbCr", "HSV"])
def test_other_modes_are_what_pillow_makes_of_them(mode):
    image = Image.fromarray(PHOTO).convert(mode)
    pixels, white = to_pixels(image)
    assert white == 255
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(np.broadcast_to(pixels, expected.shape), expected)


def test_one_photo_in_every_range_gives_the_same_pixels(processor, tmp_path):
    grey = PHOTO[..., 0]
    deep = grey.astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    exact, resized = (pixel_values(processor, [grey, grey], do_resize=resize)[0, 0] for resize in (False, True))
    for image in (deep, deep.astype(">u2"), tmp_path / "deep.png", Image.fromarray(deep.astype(np.int32)),
                  grey / 255, torch.from_numpy(grey / 255), torch.from_numpy(grey / 255).half(),
                  Image.fromarray((grey / 255).astype(np.float32)), Image.fromarray(grey)):  # fmt: skip
        atol = 3e-4 if getattr(image, "dtype", None) == torch.half else 1e-6
        found = pixel_values(processor, [image, image], do_resize=False)[0, 0]
        torch.testing.assert_close(found, exact, rtol=0, atol=atol)
        found = pixel_values(processor, [image, image])[0, 0]
        torch.testing.assert_close(found, resized, rtol=0, atol=1.1 / 255)  # 8-bit photos are resized in 8 bits
    bits = grey > 127
    assert torch.equal(*pixel_values(processor, [bits, bits * np.uint8(255)], do_resize=False)[0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.5, 1.5])
def test_values_out_of_range_are_refused_and_the_image_named(processor, value):
    image = np.full((8, 8, 3), 0.5)
    image[3, 4, 1] = value
    match = r"image 0 of pair 1.*NaN" if not np.isfinite(value) else r"image 0 of pair 1"
    with pytest.raises(ValueError, match=match):
        processor([[PHOTO, PHOTO], [image, PHOTO]])


def test_integers_out_of_range_and_empty_arrays_are_refused(processor):
    for image in (np.full((8, 8), 256), np.full((8, 8), -1), np.zeros((0, 8), np.uint8)):
        with pytest.raises(ValueError, match="image 1 of pair 0"):
            processor([PHOTO, image])


def test_decompression_bombs_are_refused(processor, tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    Image.fromarray(PHOTO).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", PHOTO.shape[0] * PHOTO.shape[1] // 2 - 1)
    with pytest.raises(Image.DecompressionBombError, match=r"bomb\.png"):
        processor([path, path])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", PHOTO.shape[0] * PHOTO.shape[1] - 1)
    with pytest.warns(Image.DecompressionBombWarning):
        processor([path, path])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(Image.DecompressionBombError, match=r"bomb\.png"):
            processor([[path, path], [path, path]])


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"no image" * 99, b"\xff\xd8\xff"])
def test_what_is_no_image_is_refused_by_name(processor, tmp_path, data):
    path = tmp_path / "bad.jpg"
    path.write_bytes(data)
    with pytest.raises(OSError, match=r"bad\.jpg"):
        processor([PHOTO, path])


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "gif", "webp"])
def test_broken_files_are_refused_by_name_or_read(tmp_path, suffix):
    path = tmp_path / f"broken.{suffix}"
    stream = io.BytesIO()
    Image.fromarray(PHOTO).save(stream, {"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix))
    data = stream.getvalue()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(OSError, match=rf"broken\.{suffix}"):
        load_image(path)
    named = 0
    for _ in range(60):
        broken = bytearray(data)
        for position in RNG.integers(0, len(data), 3):
            broken[position] = RNG.integers(256)
        path.write_bytes(bytes(broken))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                load_image(path)
        except (OSError, Image.DecompressionBombError) as error:
            named += str(path) in str(error)
        else:
            named += 1
    assert named == 60


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        load_image("nowhere.png")


def test_files_are_turned_upright_and_pil_images_taken_as_they_are(processor, tmp_path):
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    Image.fromarray(PHOTO).save(path, exif=exif)
    upright = np.rot90(PHOTO, -1)
    image = load_image(path)
    assert image.size == (61, 83)
    assert np.array_equal(np.asarray(image), upright)
    assert torch.equal(*pixel_values(processor, [path, upright])[0])
    with Image.open(path) as opened:
        assert torch.equal(*pixel_values(processor, [opened, PHOTO])[0])


def test_animations_give_their_first_frame_with_a_warning(processor, tmp_path):
    path = tmp_path / "moving.gif"
    frames = [Image.new("L", (9, 7), value) for value in (255, 0, 90)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match=r"moving\.gif has 3 frames, only frame 0"):
        assert (pixel_values(processor, [path, path]) == 1).all()


# ---- sizes


@pytest.mark.parametrize(("shape", "expected"), [((1, 1), (64, 64)), ((7, 5), (64, 46)), ((3, 2000), (1, 64))])
def test_extreme_shapes_keep_at_least_a_pixel(processor, shape, expected):
    image = np.full(shape, 255, np.uint8)
    assert pixel_values(processor, [image, image]).shape == (1, 2, 3, 32, 48)
    inputs = processor([image, image], size=64, return_tensors="pt")
    assert inputs.image_sizes.tolist() == [[list(expected)] * 2]
    height, width = expected
    assert (inputs.pixel_values[..., :height, :width] == 1).all()
    assert inputs.pixel_values.sum() == 2 * 3 * height * width


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=2, max_size=6).filter(
        lambda sizes: len(sizes) % 2 == 0
    ),
    longest=st.integers(1, 70),
)
def test_the_longest_edge_keeps_the_aspect_and_pads_to_multiples_of_8(sizes, longest):
    images = [np.full(size, 255, np.uint8) for size in sizes]
    pairs = list(zip(images[::2], images[1::2]))
    inputs = LightGlueImageProcessor(size={"longest_edge": longest})(pairs, return_tensors="pt")
    assert inputs.image_sizes.dtype == torch.int64
    assert inputs.image_sizes.shape == (len(pairs), 2, 2)
    for (height, width), (new_height, new_width) in zip(sizes, inputs.image_sizes.flatten(0, 1).tolist()):
        assert max(new_height, new_width) == longest
        scale = longest / max(height, width)
        assert abs(new_height - height * scale) <= 1
        assert abs(new_width - width * scale) <= 1
    padded = inputs.pixel_values.shape[-2:]
    for side, largest in zip(padded, inputs.image_sizes.flatten(0, 1).amax(0).tolist()):
        assert side % 8 == 0
        assert 0 <= side - largest < 8
    for pixels, (height, width) in zip(inputs.pixel_values.flatten(0, 1), inputs.image_sizes.flatten(0, 1).tolist()):
        assert (pixels[:, :height, :width] == 1).all()
        assert pixels.sum() == 3 * height * width


def test_unresized_photos_are_padded_only_if_they_differ(processor):
    inputs = processor([PHOTO, OTHER], do_resize=False, return_tensors="pt")
    assert inputs.pixel_values.shape == (1, 2, 3, 64, 88)
    assert inputs.image_sizes.tolist() == [[[61, 83], [47, 40]]]
    assert torch.equal(inputs.pixel_values[0, 1, :, :47, :40], processor([OTHER] * 2, do_resize=False, return_tensors="pt").pixel_values[0, 0])  # fmt: skip  # noqa: E501
    assert inputs.pixel_values[0, 1, :, 47:].abs().sum() == inputs.pixel_values[0, 1, :, :, 40:].abs().sum() == 0


def test_a_batch_holds_the_pixels_of_its_singles():
    processor = LightGlueImageProcessor(size=56)
    pairs = [[PHOTO, OTHER], [OTHER[:20], PHOTO[:, :30]]]
    batch = processor(pairs, return_tensors="pt")
    for index, pair in enumerate(pairs):
        single = processor(pair, return_tensors="pt")
        assert torch.equal(single.image_sizes[0], batch.image_sizes[index])
        for image, (height, width) in enumerate(single.image_sizes[0].tolist()):
            left, right = (v[image, :, :height, :width] for v in (single.pixel_values[0], batch.pixel_values[index]))
            assert torch.equal(left, right)


@pytest.mark.parametrize("size", [0, {"longest_edge": -1}, {"shortest_edge": 9}, {"height": 9}, (0, 4), {}])
def test_other_sizes_are_refused(size):
    with pytest.raises(ValueError, match=r"longest_edge|size: height"):
        LightGlueImageProcessor(size=size)


def test_settings_of_a_call_leave_those_of_the_class(processor):
    before = processor.to_json_string()
    assert pixel_values(processor, [PHOTO] * 2, size=(8, 16)).shape[-2:] == (8, 16)
    channels_last = processor([PHOTO] * 2, return_tensors="pt", data_format="channels_last").pixel_values
    assert torch.equal(channels_last.movedim(-1, 2), pixel_values(processor, [PHOTO] * 2))
    assert processor([PHOTO] * 2)["pixel_values"].shape == (1, 2, 3, 32, 48)
    assert processor.to_json_string() == before


# ---- coordinates

side = st.integers(1, 8192)


@settings(max_examples=300, deadline=None)
@given(st.tuples(side, side), st.tuples(side, side), st.floats(0, 1), st.floats(0, 1))
def test_keypoints_return_from_a_resize(photo, network, x, y):
    points = torch.tensor([[x * (photo[1] - 1), y * (photo[0] - 1)]])
    moved = scale_keypoints(points, photo, network)
    back = scale_keypoints(moved, network, photo)
    assert back.dtype == torch.float32
    assert (back - points).abs().max() < 1e-3
    edges = scale_keypoints(torch.tensor([[-0.5, -0.5], [photo[1] - 0.5, photo[0] - 0.5]]), photo, network)
    expected = torch.tensor([[-0.5, -0.5], [network[1] - 0.5, network[0] - 0.5]])
    torch.testing.assert_close(edges, expected, rtol=1e-6, atol=1e-3)


def test_keypoints_stay_on_what_they_marked():
    """A bright square in a photo is where its moved centre says, after a resize by Pillow."""
    photo = np.zeros((90, 120), np.uint8)
    photo[30:42, 60:84] = 255
    centre = torch.tensor([[71.5, 35.5]])
    inputs = LightGlueImageProcessor(size={"height": 45, "width": 40})([photo, photo], return_tensors="pt")
    pixels = inputs.pixel_values[0, 0, 0]
    ys, xs = torch.meshgrid(torch.arange(45.0), torch.arange(40.0), indexing="ij")
    found = torch.stack([(pixels * xs).sum(), (pixels * ys).sum()]) / pixels.sum()
    torch.testing.assert_close(found, scale_keypoints(centre, (90, 120), (45, 40))[0], rtol=0, atol=0.02)


def outputs_of(points, image_sizes, matches, scores, mask=None):
    """The output of a model that found `points` in pixels of the network's images."""
    sizes = torch.as_tensor(image_sizes)
    return SimpleNamespace(
        keypoints=points / sizes.flip(-1).unsqueeze(-2),
        matches=matches,
        matching_scores=scores,
        mask=torch.ones(points.shape[:-1], dtype=torch.int32) if mask is None else mask,
        image_sizes=sizes,
    )


def random_outputs(batch=2, count=5):
    image_sizes = [[[480, 640], [100, 200]], [[333, 77], [640, 480]]][:batch]
    sizes = torch.tensor(image_sizes)
    points = torch.rand(batch, 2, count, 2) * (sizes.flip(-1).unsqueeze(-2) - 1)
    matches = torch.stack([torch.stack([torch.randperm(count)] * 2) for _ in range(batch)])
    return points, outputs_of(points, image_sizes, matches, torch.rand(batch, 2, count))


def test_matches_return_to_the_photos(processor):
    points, outputs = random_outputs()
    target_sizes = [((960, 1280), (50, 400)), ((333, 77), (2160, 3840))]
    for sizes in (target_sizes, torch.tensor(target_sizes), np.array(target_sizes)):
        results = processor.post_process_keypoint_matching(outputs, sizes)
        for pair, result in enumerate(results):
            partners = outputs.matches[pair, 0]
            for key, index, order in (("keypoints0", 0, slice(None)), ("keypoints1", 1, partners)):
                expected = scale_keypoints(points[pair, index, order], outputs.image_sizes[pair, index], target_sizes[pair][index])  # fmt: skip  # noqa: E501
                assert result[key].dtype == torch.float32
                torch.testing.assert_close(result[key], expected, rtol=0, atol=1e-3)
            assert torch.equal(result["matching_scores"], outputs.matching_scores[pair, 0])


def test_the_last_pixel_of_the_network_is_near_the_last_of_the_photo(processor):
    points = torch.tensor([[[[639.0, 479.0]], [[0.0, 0.0]]]])
    outputs = outputs_of(points, [[[480, 640]] * 2], torch.zeros(1, 2, 1, dtype=torch.int64), torch.ones(1, 2, 1))
    (result,) = processor.post_process_keypoint_matching(outputs, [((2160, 3840), (2160, 3840))])
    torch.testing.assert_close(result["keypoints0"], torch.tensor([[3836.5, 2157.25]]))
    torch.testing.assert_close(result["keypoints1"], torch.tensor([[2.5, 1.75]]))


def test_without_the_networks_sizes_relative_points_are_multiplied(processor):
    _, outputs = random_outputs()
    outputs.image_sizes = None
    target_sizes = torch.tensor([[[90, 70], [50, 40]], [[33, 77], [21, 38]]])
    ours = processor.post_process_keypoint_matching(outputs, target_sizes)
    stock = Stock().post_process_keypoint_matching(outputs, target_sizes)
    for mine, theirs in zip(ours, stock):
        for key in ("keypoints0", "keypoints1"):
            assert torch.equal(mine[key].int(), theirs[key])
        assert torch.equal(mine["matching_scores"], theirs["matching_scores"])


def test_only_valid_matches_above_the_threshold_are_kept(processor):
    _, outputs = random_outputs(batch=1, count=6)
    outputs.matches[0, 0] = torch.tensor([3, -1, 1, 0, 5, 4])
    outputs.matching_scores[0, 0] = torch.tensor([0.5, 0.9, 0.25, 0.0, 0.9, 0.9])
    outputs.mask[0] = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0]])
    scores = [
        processor.post_process_keypoint_matching(outputs, [((9, 9), (9, 9))], t)[0]["matching_scores"].tolist()
        for t in (-1, 0.0, 0.25, 0.9)
    ]
    assert scores == [[0.5, 0.25, 0.0], [0.5, 0.25], [0.5], []]


def test_no_keypoints_give_no_matches(processor):
    points, empty = torch.zeros(2, 2, 0, 2), torch.zeros(2, 2, 0)
    outputs = outputs_of(points, torch.full((2, 2, 2), 8), empty.long(), empty)
    results = processor.post_process_keypoint_matching(outputs, [((9, 9), (9, 9))] * 2)
    assert [[tuple(value.shape) for value in result.values()] for result in results] == [[(0, 2), (0, 2), (0,)]] * 2


@pytest.mark.parametrize(
    "target_sizes",
    [
        [(9, 9)],
        [((9, 9), (9, 9))],
        [((9, 9), (9, 9)), ((9, 9),)],
        [((9, 9), (9, 9, 3))] * 2,
        [((9, 9), (0, 9))] * 2,
        torch.ones(2, 2),
        torch.ones(2, 2, 3),
        None,
        [None, None],
    ],
)
def test_target_sizes_of_the_wrong_shape_are_refused(processor, target_sizes):
    _, outputs = random_outputs()
    with pytest.raises(ValueError, match=r"\(height, width\)"):
        processor.post_process_keypoint_matching(outputs, target_sizes)


def test_half_precision_leaves_coordinates_alone(processor):
    points, outputs = random_outputs()
    outputs.matching_scores = outputs.matching_scores.to(torch.bfloat16)
    sizes = outputs.image_sizes
    for pair, result in enumerate(processor.post_process_keypoint_matching(outputs, sizes)):
        torch.testing.assert_close(result["keypoints0"], points[pair, 0], rtol=0, atol=1e-3)
        assert result["matching_scores"].dtype == torch.float32


def test_pairs_are_drawn_side_by_side(processor):
    _, outputs = random_outputs()
    pairs = [[PHOTO, OTHER], [OTHER, PHOTO[..., 0]]]
    sizes = [((61, 83), (47, 40)), ((47, 40), (61, 83))]
    results = processor.post_process_keypoint_matching(outputs, sizes)
    drawn = processor.visualize_keypoint_matching(pairs, results)
    assert [image.size for image in drawn] == [(123, 61)] * 2
    assert len(processor.visualize_keypoint_matching(pairs[0], results[:1])) == 1
    with pytest.raises(ValueError, match="1 pairs, but 2 results"):
        processor.visualize_keypoint_matching(pairs[0], results)


# ---- saving, loading and registering

FAST_JSON = {
    "crop_size": None, "data_format": "channels_first", "device": None, "disable_grouping": None,
    "do_center_crop": None, "do_convert_rgb": None, "do_grayscale": True, "do_normalize": None, "do_rescale": True,
    "do_resize": True, "image_mean": None, "image_std": None, "input_data_format": None, "resample": 2,
    "return_tensors": None, "rescale_factor": 0.00392156862745098, "size": {"height": 31, "width": 17},
}  # fmt: skip


def test_settings_survive_saving(tmp_path):
    processor = LightGlueImageProcessor(size=1024, do_grayscale=False, resample=Image.Resampling.BICUBIC)
    processor.save_pretrained(tmp_path)
    loaded = LightGlueImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["longest_edge"] == 1024
    assert saved["size"] == {"height": 480, "width": 640}  # which transformers' own class can use
    assert LightGlueImageProcessor.from_pretrained(tmp_path, size={"height": 48, "width": 64}).size["height"] == 48
    assert LightGlueImageProcessor.from_dict({"size": {"longest_edge": 640}}).size == {"longest_edge": 640}
    changed = LightGlueImageProcessor.from_pretrained(tmp_path, size={"longest_edge": 9}, do_grayscale=True)
    assert (changed.size, changed.do_grayscale) == ({"longest_edge": 9}, True)


@pytest.mark.parametrize("name", LightGlueImageProcessor.checks)
def test_a_setting_is_checked_whenever_it_is_set(name, tmp_path):
    processor = LightGlueImageProcessor(size=64)
    before = processor.to_json_string()
    processor.save_pretrained(tmp_path)
    for wrong in ("no", 0.5 if name == "size_divisor" else -1):
        with pytest.raises(ValueError, match=name):
            setattr(processor, name, wrong)
        with pytest.raises(ValueError, match=name):
            LightGlueImageProcessor.from_pretrained(tmp_path, **{name: wrong})
    setattr(processor, name, getattr(processor, name))
    assert processor.to_json_string() == before


def test_a_size_that_is_set_is_the_longest_edge():
    processor = LightGlueImageProcessor()
    processor.size = 1024
    assert processor.size == {"longest_edge": 1024}
    assert '"longest_edge": 1024' in repr(processor)


class Registered(PretrainedConfig):
    model_type = "lightglue"


@pytest.fixture
def registered(monkeypatch):
    """Register for a stand-in, and leave transformers as it was."""
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING, IMAGE_PROCESSOR_MAPPING_NAMES

    names, extra = dict(IMAGE_PROCESSOR_MAPPING_NAMES), dict(IMAGE_PROCESSOR_MAPPING._extra_content)
    monkeypatch.setattr("lightglue_hf.configuration_lightglue.LightGlueConfig", Registered)
    register_image_processor()
    register_image_processor()
    yield
    IMAGE_PROCESSOR_MAPPING_NAMES.update(names)
    IMAGE_PROCESSOR_MAPPING._extra_content.clear()
    IMAGE_PROCESSOR_MAPPING._extra_content.update(extra)


@pytest.fixture
def capture():
    """What transformers logs as a warning."""
    records = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: records.append(record.getMessage())
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


@pytest.mark.parametrize("suffix", ["", "Fast", "Pil"])
def test_auto_finds_ours_by_every_name_of_transformers(registered, tmp_path, suffix):
    if suffix == "Pil" and Stock.__name__ == "LightGlueImageProcessor":
        pytest.skip("transformers 4 has no such name")
    content = {**FAST_JSON, "image_processor_type": f"LightGlueImageProcessor{suffix}"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    from transformers import AutoImageProcessor  # after registering, which transformers 5.5 needs

    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(processor) is LightGlueImageProcessor
    assert processor([PHOTO, PHOTO], return_tensors="pt").pixel_values.shape == (1, 2, 3, 31, 17)


def test_auto_finds_ours_after_saving_either_and_has_nothing_to_say(registered, tmp_path, capture):
    from transformers import AutoImageProcessor

    for index, processor in enumerate((LightGlueImageProcessor(), Stock())):
        processor.save_pretrained(tmp_path / str(index))
        assert type(AutoImageProcessor.from_pretrained(tmp_path / str(index))) is LightGlueImageProcessor
    # transformers 4 says this of every class that is not "Fast", before it looks for the class
    assert [text for text in capture if not text.startswith("Using a slow image processor as `use_fast`")] == []


def test_transformers_alone_reads_what_ours_saves(tmp_path):
    LightGlueImageProcessor(size=SMALL).save_pretrained(tmp_path)
    code = (
        "import sys; from transformers.models.auto.image_processing_auto import AutoImageProcessor; "
        f"p = AutoImageProcessor.from_pretrained({str(tmp_path)!r}); "
        "assert 'lightglue_hf' not in sys.modules; print(type(p).__module__, p.size['height'], p.size['width'])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    module, height, width = run.stdout.split()
    assert module.startswith("transformers.models.lightglue")
    assert (int(height), int(width)) == (32, 48)


# -- keywords that transformers' processors take


def test_from_dict_keeps_a_keyword_that_changes_nothing(processor):
    for value in (False, True):
        read = LightGlueImageProcessor.from_dict(processor.to_dict(), do_convert_rgb=value)
        assert read.do_convert_rgb is value
        assert LightGlueImageProcessor.from_dict(read.to_dict()).do_convert_rgb is value


def test_calls_written_for_transformers_own_processor_work(processor):
    pair = [np.full((20, 30, 3), value, np.uint8) for value in (9, 99)]
    expected = processor(pair, return_tensors="pt")["pixel_values"]
    keywords = {"do_convert_rgb": True, "disable_grouping": True, "do_normalize": False, "image_mean": None}
    features = processor(pair, return_tensors="pt", device="cpu", do_pad=None, **keywords)
    assert torch.equal(features["pixel_values"], expected)
    assert features["pixel_values"].device == torch.device("cpu")
    assert processor(pair, return_tensors="pt", device="meta")["pixel_values"].device.type == "meta"


def test_keywords_that_would_change_the_pixels_or_are_none_are_refused(processor):
    pair = [np.zeros((20, 30), np.uint8)] * 2
    with pytest.raises(ValueError, match="do_normalize=True"):
        processor(pair, do_normalize=True)
    with pytest.raises(ValueError, match="device='cpu'"):
        processor(pair, device="cpu")
    with pytest.raises(TypeError, match="do_gray_scale"):
        processor(pair, do_gray_scale=True)


def test_twelve_bits_in_a_16_bit_photo_are_scaled_by_the_factor(processor):
    pair = [np.full((20, 30), 4095, np.uint16)] * 2
    assert processor(pair)["pixel_values"].max() < 0.1
    white = processor(pair, rescale_factor=65535 / 4095 / 255)["pixel_values"]
    np.testing.assert_allclose(white, 1, atol=1e-6)
    np.testing.assert_allclose(processor(pair, rescale_factor=16 / 255)["pixel_values"], 1, atol=3e-4)


def test_post_processing_names_what_is_missing(processor):
    outputs = SimpleNamespace(keypoints=None, matches=torch.zeros(1, 2, 3), matching_scores=torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="no keypoints"):
        processor.post_process_keypoint_matching(outputs, [((9, 9), (9, 9))])
    outputs.keypoints = torch.zeros(1, 2, 3, 2)
    with pytest.raises(ValueError, match="threshold"):
        processor.post_process_keypoint_matching(outputs, [((9, 9), (9, 9))], threshold=None)
    outputs.matches = outputs.matching_scores = None
    with pytest.raises(ValueError, match="no matches: a call of the model with labels"):
        processor.post_process_keypoint_matching(outputs, [((9, 9), (9, 9))])
