"""Safetensors files: what other readers make of them, damage, and interrupted writing."""

import hashlib
import json
import os
import re
import sys
import threading

import numpy as np
import pytest
from processes import run_python
from safetensors import numpy as library
from safetensors import safe_open

from fastmlp import _safetensors
from fastmlp._safetensors import read, replace, write

DTYPES = ("float64", "float32", "int64", "int32", "uint64", "uint32", "uint8")
rng = np.random.default_rng(0)


def some_arrays():
    arrays = {dtype: rng.integers(0, 9, (3, 5)).astype(dtype) for dtype in DTYPES}
    arrays |= {
        "scalar": np.array(1.5), "nothing": np.empty((0, 4)), "odd": np.arange(3, dtype=np.uint8),
        "strided": rng.normal(size=(6, 4))[::2, ::-1], "Fortran": np.asfortranarray(np.eye(3, 2)),
        "swapped": np.arange(4.0).astype(">f8"), "ünï": np.array([np.nan, np.inf, -0.0]),
    }  # fmt: skip
    return arrays


def require_equal(got, expected):
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name, strict=False)
        assert got[name].dtype == array.dtype.newbyteorder("="), name
        assert got[name].shape == array.shape


def test_arrays_and_texts_come_back(tmp_path):
    arrays, texts = some_arrays(), {"a": "x", "quote": '"\\\n', "ü": "€", "json": '{"a": [1]}'}
    write(tmp_path / "file", arrays, texts)
    got, got_texts = read(str(tmp_path / "file"))
    require_equal(got, arrays)
    assert got_texts == texts
    assert all(array.flags.writeable for array in got.values())


def test_the_library_reads_our_files(tmp_path):
    path, arrays = tmp_path / "file.safetensors", some_arrays()
    write(path, arrays, {"some": "text"})
    require_equal(library.load_file(path), arrays)
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    assert metadata.pop("sha256") != "0" * 64
    assert metadata == {"some": "text"}


def test_our_checksum_of_a_file_of_the_library(tmp_path):
    """Its writer keeps the metadata in front, so that a checksum can be put in."""
    arrays = {name: array for name, array in some_arrays().items() if name in DTYPES}
    data = bytearray(library.save(arrays, metadata={"sha256": "0" * 64}))
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="no checksum"):
        read(path)
    n_text = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n_text])
    text = json.dumps({"__metadata__": header.pop("__metadata__"), **header}).encode()
    head = len(text).to_bytes(8, "little") + text
    checksum = hashlib.sha256(head + data[8 + n_text :]).hexdigest().encode()
    path.write_bytes(head.replace(b"0" * 64, checksum) + data[8 + n_text :])
    require_equal(read(path)[0], arrays)


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "file"
    write(path, {"a": np.arange(3.0), "b": np.arange(2, dtype=np.uint8)}, {"key": "value"})
    return path


def refuses(path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is damaged or was not written by fastmlp"):
        read(path)


def test_every_flipped_bit_is_noticed(small):
    data = small.read_bytes()
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        refuses(small, changed)


def test_every_truncation_and_addition_is_noticed(small):
    data = small.read_bytes()
    for n in range(len(data)):
        refuses(small, data[:n])
    for more in (b"\0", b" ", b"\0" * 8, data):
        refuses(small, data + more)


def signed(header: dict, data: bytes = b"") -> bytes:
    """A file with a correct checksum."""
    text = json.dumps({"__metadata__": {"sha256": "0" * 64}} | header).encode()
    file = len(text).to_bytes(8, "little") + text + data
    return file.replace(b"0" * 64, hashlib.sha256(file).hexdigest().encode(), 1)


def entry(shape=(2,), offsets=(0, 16), dtype="F64"):
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    "header",
    [
        entry((3,)), entry((2,), (0, 8)), entry((2,), (8, 16)), entry((-2,), (0, -16)),
        entry((2.0,)), entry((True, 2)), entry("ab"), entry(7), entry(None),
        entry((1,) * 8 + (2,)), entry((2**62, 4), (0, 2**67)), entry((2**70, 0), (0, 0)),
        entry((0, 2**62, 9), (0, 0)), entry(dtype="F16"), entry(dtype=None), entry(dtype=[]),
        {"a": 1}, {"a": []}, {"a": {}}, {"__metadata__": {"sha256": "0" * 64, "n": 1}},
        entry() | {"b": entry()["a"]},
    ],
    ids=str,
)  # fmt: skip
def test_a_made_up_header_is_refused(tmp_path, header):
    path = tmp_path / "file"
    path.write_bytes(signed(entry(), bytes(16)))
    np.testing.assert_array_equal(read(path)[0]["a"], [0, 0])
    refuses(path, signed(header, bytes(16)))


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, '{"a": 1, "a": 1}', '"\xff"'], ids=len)
def test_made_up_json_is_refused(tmp_path, text):
    start = '{"__metadata__": {"sha256": "' + "0" * 64 + '"}, "x": ' + text + "}"
    head = start.encode("latin-1")
    file = len(head).to_bytes(8, "little") + head
    file = file.replace(b"0" * 64, hashlib.sha256(file).hexdigest().encode(), 1)
    refuses(tmp_path / "file", file)


def test_names_that_occur_twice_are_refused(tmp_path):
    file = signed(entry() | {"b": entry((0,), (16, 16))["a"]}, bytes(16)).replace(b'"b"', b'"a"')
    zeros = file[:37] + b"0" * 64 + file[101:]
    checksum = hashlib.sha256(zeros).hexdigest().encode()
    refuses(tmp_path / "file", zeros.replace(b"0" * 64, checksum, 1))


def test_a_size_is_not_believed_before_it_is_there(tmp_path):
    refuses(tmp_path / "file", (2**63).to_bytes(8, "little") + b"{}")
    refuses(tmp_path / "file", signed(entry((2**40,), (0, 2**43)), bytes(16)))


def test_what_is_no_file_is_no_damage(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none")
    with pytest.raises(OSError, match=r"directory|Permission"):
        read(tmp_path)
    with pytest.raises(TypeError):
        read(None)


def test_texts_too_long_for_the_format_are_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(_safetensors, "_MAX_HEADER", 1000)
    with pytest.raises(ValueError, match="room for 1000"):
        write(tmp_path / "file", {}, {"key": "x" * 1000})
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=repr)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(small, monkeypatch, failing, error):
    before = small.read_bytes()

    def fail(*_):
        raise error

    def chunks():
        yield b"new"
        if failing == "write":
            fail()

    if failing != "write":
        monkeypatch.setattr(os, failing, fail)
    with pytest.raises(type(error)):
        replace(small, chunks())
    assert os.listdir(small.parent) == [small.name]
    assert small.read_bytes() == before


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on a process's files")
def test_a_full_disk_leaves_the_old_file_and_nothing_else(small):
    code = (
        "import resource, sys, numpy as np; from fastmlp._safetensors import write\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try: write(sys.argv[1], {'a': np.zeros(10_000)}, {})\n"
        "except OSError: print('full')"
    )
    before = small.read_bytes()
    assert run_python(code, small).strip() == "full"
    assert os.listdir(small.parent) == [small.name]
    assert small.read_bytes() == before


def test_a_link_stays_a_link(small):
    link = small.with_name("link")
    link.symlink_to(small.name)
    write(link, {"new": np.zeros(1)}, {})
    assert link.is_symlink()
    assert read(small)[0].keys() == {"new"}


def test_two_writers_and_a_reader_never_see_half_a_file(tmp_path):
    path = tmp_path / "file"
    write(path, {"a": np.full(1000, 0.0)}, {})

    def write_often(value):
        for _ in range(50):
            write(path, {"a": np.full(1000 + 100 * value, float(value))}, {"n": str(value)})

    writers = [threading.Thread(target=write_often, args=(i,)) for i in range(2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert np.unique(read(path)[0]["a"]).size == 1
    for writer in writers:
        writer.join()
    assert os.listdir(tmp_path) == ["file"]


def test_errors_name_the_users_path(tmp_path):
    path = tmp_path / "no folder" / "model"
    with pytest.raises(FileNotFoundError, match=re.escape(f"No such file or directory: '{path}'")):
        _safetensors.write(path, {}, {})
