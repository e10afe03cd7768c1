"""MRC stacks: what mrcfile says they hold, and refusals of what is none."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import warnings
from pathlib import Path
from typing import Literal

import mrcfile
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cryoray.errors import FormatError, InternalError
from cryoray.formats.mrc import StackWriter, absence, promised, read_frames, read_header
from cryoray.records import NIBBLES, Stack
from tests.formats.files import write_stack


def header(
    nx: int, ny: int, nz: int, mode: int, *, order: str = "<", extended: int = 0, stamp: bool = True
) -> bytes:
    raw = bytearray(1024)
    struct.pack_into(f"{order}4i", raw, 0, nx, ny, nz, mode)
    struct.pack_into(f"{order}3i", raw, 28, nx, ny, nz)
    struct.pack_into(f"{order}3f", raw, 40, 2.0 * nx, 2.0 * ny, 2.0 * nz)
    struct.pack_into(f"{order}3i", raw, 64, 1, 2, 3)
    struct.pack_into(f"{order}2i", raw, 88, 0, extended)
    if stamp:
        raw[208:212] = b"MAP "
        raw[212:214] = b"DD" if order == "<" else b"\x11\x11"
    return bytes(raw)


def everything(stack: Stack) -> np.ndarray:
    return read_frames(stack, np.arange(stack.count))


@settings(max_examples=20, deadline=None)
@given(
    images=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=3, max_dims=3, max_side=6),
        elements=st.floats(-6e4, 6e4, width=16),
    ),
    dtype=st.sampled_from(["float16", "float32"]),
    cut=st.integers(0, 6),
)
def test_what_is_written_is_read_and_is_valid_to_mrcfile(
    images: np.ndarray, dtype: str, cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("mrc") / "stack.mrcs"
    with StackWriter(path, *images.shape[1:], dtype, 1.25) as writer:  # type: ignore[arg-type]
        writer.append(images[:cut])
        writer.append(images[cut:])
    stack = read_header(path)
    assert (stack.count, stack.height, stack.width) == images.shape
    assert stack.pixel_size == pytest.approx(1.25)
    np.testing.assert_array_equal(everything(stack), images)
    with mrcfile.open(path) as peer:
        np.testing.assert_array_equal(peer.data.reshape(images.shape), images)
        assert peer.is_image_stack() == (len(images) > 1)
        assert peer.header.dmax == images.max()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("count", [1, 50])
def test_mrcfile_finds_nothing_wrong_with_what_is_written(
    tmp_path: Path, dtype: Literal["float16", "float32"], count: int
) -> None:
    images = np.random.default_rng(0).normal(1, 2, (count, 9, 7))
    with StackWriter(tmp_path / "s.mrcs", 9, 7, dtype) as writer:
        writer.append(images)
    report = io.StringIO()
    assert mrcfile.validate(tmp_path / "s.mrcs", print_file=report), report.getvalue()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("mode", "dtype"), [(0, "i1"), (1, "i2"), (2, "f4"), (6, "u2"), (12, "f2")]
)
@pytest.mark.parametrize("stamp", [True, False])
def test_modes_in_either_byte_order_with_and_without_a_stamp(
    tmp_path: Path, order: str, mode: int, dtype: str, stamp: bool
) -> None:
    images = np.arange(24).reshape(3, 2, 4).astype(order + dtype)
    path = tmp_path / "stack.mrcs"
    path.write_bytes(
        header(4, 2, 3, mode, order=order, extended=80, stamp=stamp) + bytes(80) + images.tobytes()
    )
    stack = read_header(path)
    assert stack.offset == 1104
    assert stack.pixel_size == pytest.approx(2.0)
    result = read_frames(stack, np.array([2, 0]))
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, images[[2, 0]].astype(np.float32))


def test_four_bit_images(tmp_path: Path) -> None:
    path = tmp_path / "stack.mrcs"
    path.write_bytes(header(4, 1, 2, 101) + bytes([0x21, 0x43, 0x65, 0x87]))
    stack = read_header(path)
    assert stack.dtype == NIBBLES
    np.testing.assert_array_equal(everything(stack), [[[1, 2, 3, 4]], [[5, 6, 7, 8]]])


def test_frames_come_in_the_order_asked_for(tmp_path: Path) -> None:
    stack = read_header(write_stack(tmp_path / "s.mrcs", 9))
    frames = np.array([3, 4, 5, 8, 0, 0, 2, 1])
    np.testing.assert_array_equal(read_frames(stack, frames)[:, 0, 0], frames)
    assert read_frames(stack, np.empty(0, np.int64)).shape == (0, 8, 8)


def test_a_truncated_stack_keeps_its_whole_images_and_says_what_is_missing(tmp_path: Path) -> None:
    path = write_stack(tmp_path / "s.mrcs", 5)
    whole = path.stat().st_size
    os.truncate(path, whole - 300)
    stack = read_header(path)
    assert (stack.count, promised(stack)) == (3, 5)
    np.testing.assert_array_equal(everything(stack)[:, 0, 0], [0, 1, 2])
    assert absence(stack) == (
        f"s.mrcs is shorter than its header says: {whole - 300:,} bytes, {whole:,} expected"
    )
    with pytest.raises(FormatError, match=r"s\.mrcs: has no image 4: it holds 3"):
        read_frames(stack, np.array([0, 3]))


def test_a_whole_stack_just_does_not_have_the_image(tmp_path: Path) -> None:
    assert absence(read_header(write_stack(tmp_path / "s.mrcs", 5))) == "s.mrcs holds 5 images"


def test_a_header_that_lies_about_size_allocates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s.mrcs"
    path.write_bytes(header(100_000, 100_000, 2**31 - 1, 2) + bytes(5000))
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="is shorter than its header says: 6,024 bytes"):
            read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_stack_that_changed_is_not_read(tmp_path: Path) -> None:
    path = write_stack(tmp_path / "s.mrcs", 3)
    stack = read_header(path)
    write_stack(path, 4)
    with pytest.raises(FormatError, match="changed while it was being read; wait"):
        read_frames(stack, np.array([0]))
    path.unlink()
    with pytest.raises(FormatError, match="cannot be read: No such file"):
        read_frames(stack, np.array([0]))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid",
            "is a Git LFS pointer.*`git lfs pull`",
        ),
        (b"../x/y.mrcs", "is no MRC file: 11 bytes"),
        (b"only words and words " * 100, "is no MRC file: its header makes no sense"),
        (b"\x1f\x8b" + bytes(2000), "is compressed; unpack it with `gunzip`"),
        (b"", "is no MRC file: 0 bytes"),
        (bytes(4096), "is no MRC file: its header makes no sense"),
        (header(4, 4, 4, 4) + bytes(512), "has MRC mode 4, which is not one of real images"),
        (header(5, 4, 4, 101) + bytes(512), "holds 4-bit images of odd width 5"),
        (header(4, 4, 4, 2, stamp=False) + bytes(8), "is no MRC file: its header makes no sense"),
        (header(4, 4, 4, 2, extended=2**31 - 1) + bytes(512), "is shorter than its header says"),
    ],
)
def test_what_is_no_stack_is_told_in_one_sentence(
    tmp_path: Path, content: bytes, sentence: str
) -> None:
    path = tmp_path / "s.mrcs"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=f"^{path}: {sentence}"):
        read_header(path)


@settings(max_examples=100, deadline=None)
@given(
    words=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=24, max_size=24),
    stamp=st.booleans(),
    rest=st.integers(0, 400),
)
def test_any_header_is_a_stack_or_a_sentence(
    words: list[int], stamp: bool, rest: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.mrcs"
    small = [abs(word) % 5 if i < 4 else word for i, word in enumerate(words)]
    raw = bytearray(struct.pack("<24i", *small)) + bytes(1024 - 96)
    raw[64:76] = struct.pack("<3i", 1, 2, 3)
    if stamp:
        raw[208:214] = b"MAP DD"
    path.write_bytes(raw + bytes(rest))
    try:
        stack = read_header(path)
    except FormatError:
        return
    assert everything(stack).shape == (stack.count, stack.height, stack.width)


def test_there_is_no_such_stack(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="there is no such stack"):
        read_header(tmp_path / "absent.mrcs")
    with pytest.raises(FormatError, match="cannot be read: Is a directory"):
        read_header(tmp_path)


def test_a_writer_that_fails_or_writes_nothing_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "s.mrcs"

    def interrupted() -> None:
        with StackWriter(path, 4, 4) as writer:
            writer.append(np.zeros((1, 4, 4)))
            assert not path.exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with (
        pytest.raises(InternalError, match="no image was written"),
        StackWriter(path, 4, 4) as writer,
    ):
        writer.append(np.zeros((0, 4, 4)))
    with pytest.raises(InternalError, match="do not fit"), StackWriter(path, 4, 4) as writer:
        writer.append(np.zeros((1, 4, 5)))
    assert not list(tmp_path.iterdir())


@pytest.mark.real
def test_real_files_read_as_mrcfile_reads_them(real_data: Path) -> None:
    refused, read = set(), 0
    folders = ("formats/mrc", "formats/malformed", "formats/small-stacks", "class-averages-human")
    for path in sorted(file for folder in folders for file in (real_data / folder).iterdir()):
        if path.suffix in (".star", ".csv"):
            continue
        try:
            stack = read_header(path)
        except FormatError:
            refused.add(path.name)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mrcfile warns of stamps that are missing
            with mrcfile.open(path, permissive=True) as peer:
                expected = peer.data.astype(np.float32).reshape(-1, *peer.data.shape[-2:])
        np.testing.assert_array_equal(everything(stack), expected)
        read += 1
    assert refused == {
        *(f"{name}.bz2" for name in ("EMD-3001.map", "EMD-3197.map")),
        *(f"{name}.gz" for name in ("emd_3001.map", "emd_3197.map")),
        *("EMD-3001.map", "3pqr-mode0.ccp4", "test.spi", "xmipp_smallStack.stk"),
        *("epu2.9_example.TRUNCATED_1.5MB.mrc", "fei-extended.TRUNCATED_1.5MB.mrc"),
        *("git_lfs_pointer.mrc", "not_an_mrc_symlink_text_41bytes.mrc"),
    }
    assert read == 20
