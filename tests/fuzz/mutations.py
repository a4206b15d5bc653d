"""Broken input, made from whole input by a few changes."""

import copy
import io
import json
import struct
import zipfile

from hypothesis import strategies as st

HOSTILE = (
    *(None, True, False, 0, 1, -1, 7, 999, 1024, 16384, 10**5, 2**31 - 1, 2**31, 2**63, -(2**63), 10**40),
    *(0.5, -0.0, 1e308, float("nan"), float("inf"), -float("inf")),
    *("", "a", "0", "-1", "true", "nan", "../..", "/dev/zero", "\0", "é", "x" * 5000, "superpoint", "bert"),
    *([], {}, [[]], [0], [1, 2], [None], {"a": 1}, {"height": 8}, [0] * 200, [[[[[]]]]]),
)
EXTREMES = (
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\0" * 8,
    b"\xff" * 8,
    b"\xff" * 7 + b"\x7f",
    b"\0\0\xc0\x7f",
    b"{",
    b'"',
)

NAMES = ("strange", "", "auto_map", "model_type", "dtype", "size", "device", "to_dict", "stride", "id2label")


def places(value, path=()):
    """Every path in a JSON value."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for i in range(len(value)):
            yield from places(value[i], (*path, i))


@st.composite
def changed_values(draw, value):
    """A JSON value with one to three entries replaced, taken away or added."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        paths = list(places(value))
        *way, last = draw(st.sampled_from(paths)) or (None,)
        hostile = copy.deepcopy(draw(st.sampled_from(HOSTILE)))
        if last is None:  # the whole, seldom
            if draw(st.integers(0, 9)) == 0:
                return hostile
            continue
        parent = value
        for step in way:
            parent = parent[step]
        action = draw(st.sampled_from(("replace", "replace", "replace", "delete", "add", "exchange")))
        if action == "replace":
            parent[last] = hostile
        elif action == "delete":
            del parent[last]
        elif action == "add" and isinstance(parent, dict):
            parent[draw(st.sampled_from(("strange", "", "auto_map", "model_type", "dtype", "size", "device")))] = (
                hostile
            )
        else:
            other = value
            for step in draw(st.sampled_from(paths)):
                try:
                    other = other[step]
                except (KeyError, IndexError, TypeError):  # deleted by now
                    break
            parent[last] = copy.deepcopy(other)
    return value


@st.composite
def changed_bytes(draw, data):
    """Bytes with one to four places overwritten, cut out, doubled, inserted, or the end cut off."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        # half of the changes near the start, where formats say what follows
        most = draw(st.sampled_from((64, 1024, len(data), len(data))))
        start = draw(st.integers(0, max(0, min(most, len(data)) - 1)))
        length = draw(st.sampled_from((1, 2, 4, 8, 100, 10_000)))
        action = draw(st.sampled_from(("flip", "overwrite", "overwrite", "cut", "double", "insert", "truncate")))
        if action == "flip" and data:
            data[start] ^= 1 << draw(st.integers(0, 7))
        elif action == "overwrite":
            new = draw(st.one_of(st.sampled_from(EXTREMES), st.binary(min_size=1, max_size=8)))
            data[start : start + len(new)] = new
        elif action == "cut":
            del data[start : start + length]
        elif action == "double":
            data[start:start] = data[start : start + length]
        elif action == "insert":
            data[start:start] = draw(st.binary(min_size=1, max_size=16))
        elif action == "truncate":
            del data[start:]
    return bytes(data)


def json_files(value):
    """JSON files of changed values, and of changed bytes."""
    text = json.dumps(value).encode()
    values = changed_values(value).map(lambda changed: json.dumps(changed).encode())
    return st.one_of(values, values, values, changed_bytes(text))


def safetensors_files(data):
    """Safetensors files with changed entries in the header, of the right or a wrong length, or with changed bytes."""
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]

    def built(changed):
        text = json.dumps(changed).encode()
        return struct.pack("<Q", len(text)) + text + body

    return st.one_of(changed_values(header).map(built), changed_bytes(data), changed_bytes(data))


def zip_files(data):
    """ZIP files with changed bytes in one member, whole otherwise, or with changed bytes anywhere."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}

    @st.composite
    def changed(draw):
        names = [name for name in members if members[name] and "/data/" not in name]  # numbers are as good as others
        chosen = draw(st.sampled_from(names))
        new = draw(changed_bytes(members[chosen]))
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, new if name == chosen else content)
        return buffer.getvalue()

    return st.one_of(changed(), changed(), changed_bytes(data))
