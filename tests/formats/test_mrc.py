"""MRC stacks: what mrcfile says they hold, and refusals of what is none."""

from __future__ import annotations

import bz2
import gzip
import io
import os
import re
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import mrcfile
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from mrcfile.dtypes import get_ext_header_dtype

from cryoray.errors import FormatError, InternalError
from cryoray.formats import compressed
from cryoray.formats.mrc import (
    StackWriter,
    absence,
    promised,
    read_frames,
    read_header,
    read_map,
)
from cryoray.formats.source import open_source
from cryoray.formats.volume import read_volume
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


def spider(order: str) -> bytes:
    """A SPIDER image of 64 × 64: a header of four records, then the image."""
    words = np.zeros(64 * 68, f"{order}f4")
    words[[0, 1, 4, 11, 12, 21, 22]] = 1, 64, 1, 64, 4, 4 * 256, 256
    return words.tobytes()


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
    images: np.ndarray,
    dtype: Literal["float16", "float32"],
    cut: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("mrc") / "stack.mrcs"
    height, width = images.shape[1:]
    with StackWriter(path, height, width, dtype, 1.25) as writer:
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


@settings(max_examples=100, deadline=None)
@given(
    pixels=st.sampled_from(["i1", "i2", "f4", "u2", "f2"]).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=3, max_dims=3, max_side=5))
    ),
    order=st.sampled_from(["<", ">"]),
    extended=st.integers(0, 3000),
    stamp=st.booleans(),
    how=st.sampled_from([bytes, gzip.compress, bz2.compress]),
    data=st.data(),
)
@pytest.mark.long
def test_generated_stacks_are_read_exactly_and_written_again(
    pixels: np.ndarray,
    order: str,
    extended: int,
    stamp: bool,
    how: Callable[[bytes], bytes],
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    mode = {"i1": 0, "i2": 1, "f4": 2, "u2": 6, "f2": 12}[pixels.dtype.str[1:]]
    count, height, width = pixels.shape
    head = header(width, height, count, mode, order=order, extended=extended, stamp=stamp)
    path = tmp_path_factory.getbasetemp() / "generated.mrcs"
    path.write_bytes(
        how(head + bytes(extended) + pixels.astype(order + pixels.dtype.str[1:]).tobytes())
    )
    stack = read_header(path)
    frames = np.array(data.draw(st.lists(st.integers(0, count - 1), max_size=6)), np.int64)
    read = read_frames(stack, frames)
    np.testing.assert_array_equal(read, pixels[frames].astype(np.float32))
    if len(frames) and np.isfinite(read).all():
        with StackWriter(path, height, width, "float32", stack.pixel_size) as writer:
            writer.append(read)
        np.testing.assert_array_equal(everything(read_header(path)), read)


def test_four_bit_images(tmp_path: Path) -> None:
    path = tmp_path / "stack.mrcs"
    path.write_bytes(header(4, 1, 2, 101) + bytes([0x21, 0x43, 0x65, 0x87]))
    stack = read_header(path)
    assert stack.dtype == NIBBLES
    np.testing.assert_array_equal(everything(stack), [[[1, 2, 3, 4]], [[5, 6, 7, 8]]])


def test_four_bit_lines_of_odd_width_begin_with_a_byte_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "stack.mrcs"
    path.write_bytes(header(3, 2, 2, 101) + bytes([0x21, 0x03, 0x54, 0x06, 0x87, 0x09, 0xBA, 0x0C]))
    stack = read_header(path)
    assert (stack.count, stack.image_bytes) == (2, 4)
    np.testing.assert_array_equal(
        everything(stack), [[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [10, 11, 12]]]
    )


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("stamped", "flags", "extremes", "expected"),
    [
        (False, 0, (-128, 127), [-128, -1, 0, 127]),
        (False, 0, (0, 255), [128, 255, 0, 127]),
        (False, 0, (0, 127), [-128, -1, 0, 127]),
        (False, 0, (0, -1), [-128, -1, 0, 127]),  # as programs write who know no extremes
        (True, 0, (0, 100), [128, 255, 0, 127]),
        (True, 1, (0, 255), [-128, -1, 0, 127]),
    ],
)
def test_bytes_are_signed_unless_imod_or_the_extremes_say_otherwise(
    tmp_path: Path,
    order: str,
    stamped: bool,
    flags: int,
    extremes: tuple[float, float],
    expected: list[int],
) -> None:
    raw = bytearray(header(4, 1, 1, 0, order=order))
    struct.pack_into(f"{order}2f", raw, 76, *extremes)
    struct.pack_into(f"{order}2i", raw, 152, 0x444F4D49 if stamped else 0, flags)
    path = tmp_path / "stack.mrcs"
    path.write_bytes(bytes(raw) + bytes([128, 255, 0, 127]))
    assert everything(read_header(path)).ravel().tolist() == expected


def extended(kind: bytes, order: str) -> bytes:
    """An extended header of one section that carries 2.5 Å/px, where its kind has a place for that."""
    if kind in (b"FEI1", b"FEI2"):
        fei = np.zeros(1, get_ext_header_dtype(kind, order))
        fei["Pixel size X"] = fei["Pixel size Y"] = 2.5e-10
        return fei.tobytes()
    if kind == b"AGAR":
        return np.array([0] * 11 + [2.5e-10] + [0] * 20, f"{order}f4").tobytes()
    return b"SYMMETRY OPERATORS  ".ljust(160)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("own", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("kind", [b"FEI1", b"FEI2", b"AGAR", b"SERI", b"CCP4", b"MRCO"])
def test_extended_headers_are_skipped_and_tell_the_pixel_size_that_the_header_lacks(
    tmp_path: Path, kind: bytes, own: float, order: str
) -> None:
    more = extended(kind, order)
    raw = bytearray(header(4, 2, 3, 2, order=order, extended=len(more)))
    struct.pack_into(f"{order}3f", raw, 40, own * 4, own * 2, own * 3)
    raw[104:108] = kind
    struct.pack_into(f"{order}2h", raw, 128, 0, 32)
    images = np.arange(24, dtype=f"{order}f4").reshape(3, 2, 4)
    path = tmp_path / "stack.mrcs"
    path.write_bytes(bytes(raw) + more + images.tobytes())
    stack = read_header(path)
    np.testing.assert_array_equal(everything(stack), images)
    known = {3.0: 3.0}.get(own, 2.5 if kind in (b"FEI1", b"FEI2", b"AGAR") else None)
    assert stack.pixel_size == (None if known is None else pytest.approx(known))


def test_an_extended_header_that_is_too_short_or_senseless_tells_nothing(tmp_path: Path) -> None:
    for kind, counts, more in (
        (b"FEI1", (0, 0), bytes(100)),
        (b"FEI2", (0, 0), b"\xff" * 888),
        (b"AGAR", (-7, 32), bytes(128)),
        (b"AGAR", (0, 5), np.full(32, 2.5e-10, "<f4").tobytes()),
        (b"AGAR", (32000, 32000), bytes(128)),
    ):
        raw = bytearray(header(4, 2, 1, 2, extended=len(more)))
        struct.pack_into("<3f", raw, 40, 0, 0, 0)
        raw[104:108] = kind
        struct.pack_into("<2h", raw, 128, *counts)
        path = tmp_path / "stack.mrcs"
        path.write_bytes(bytes(raw) + more + bytes(32))
        assert read_header(path).pixel_size is None
        assert everything(read_header(path)).shape == (1, 2, 4)


@pytest.mark.parametrize("ispg", [0, 1, 401])
@pytest.mark.parametrize("sections", [1, 5])
def test_a_section_is_an_image_whatever_the_space_group_declares(
    tmp_path: Path, ispg: int, sections: int
) -> None:
    images = np.random.default_rng(1).normal(size=(5, 7, 9)).astype(np.float32)
    path = tmp_path / "stack.mrcs"
    with mrcfile.new(path, images) as peer:
        peer.header.ispg, peer.header.mz = ispg, sections
    np.testing.assert_array_equal(everything(read_header(path)), images)


def test_a_stack_behind_a_link(tmp_path: Path) -> None:
    original = write_stack(tmp_path / "elsewhere" / "s.mrcs", 3)
    (tmp_path / "link.mrcs").symlink_to("second.mrcs")
    (tmp_path / "second.mrcs").symlink_to(original)
    np.testing.assert_array_equal(
        everything(read_header(tmp_path / "link.mrcs"))[:, 0, 0], [0, 1, 2]
    )
    original.unlink()
    with pytest.raises(FormatError, match=r"link\.mrcs: there is no such stack"):
        read_header(tmp_path / "link.mrcs")


def test_images_beyond_two_and_four_gib(tmp_path: Path) -> None:
    path = tmp_path / "s.mrcs"
    side, count = 512, 5000  # 1 MiB each
    marked = {0: 1.0, 2047: 2.0, 2048: 3.0, 4095: 4.0, 4096: 5.0, 4999: 6.0}
    with path.open("wb") as file:  # holes take no room on disk
        file.write(header(side, side, count, 2))
        for frame, value in marked.items():
            file.seek(1024 + frame * side * side * 4)
            file.write(np.float32(value).tobytes())
        file.truncate(1024 + count * side * side * 4)
    stack = read_header(path)
    assert stack.size > 5_000 << 20
    assert stack.count == count
    images = read_frames(stack, np.array(list(marked)))
    assert images[:, 0, 0].tolist() == list(marked.values())
    assert not images[:, 1:].any()


def packed(path: Path, content: bytes) -> Path:
    path.write_bytes(
        gzip.compress(content, 1) if path.suffix == ".gz" else bz2.compress(content, 1)
    )
    return path


@pytest.mark.parametrize("suffix", [".gz", ".bz2"])
def test_compressed_stacks_are_read_in_one_pass_and_it_is_said_once_that_they_are_slower(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compressed._mention.cache_clear()
    said: list[str] = []
    # Not caplog: Prefect, which other tests start, keeps our records from the root logger.
    monkeypatch.setattr(compressed._log, "warning", lambda text, *how: said.append(text % how))
    images = np.random.default_rng(0).normal(size=(300, 16, 16)).astype(np.float32)
    content = header(16, 16, 300, 2) + images.tobytes()
    path = packed(tmp_path / f"s.mrcs{suffix}", content)
    other = packed(tmp_path / f"t.mrcs{suffix}", header(2, 2, 1, 2) + bytes(16))
    stack = read_header(path)
    assert (stack.count, promised(stack), read_header(other).count) == (300, 300, 1)
    assert stack.pixel_size == pytest.approx(2.0)
    unpacked = 0
    parts = compressed.CompressedFile._parts

    def counted(self: compressed.CompressedFile, at: int, size: int) -> Iterator[bytes]:
        nonlocal unpacked
        unpacked += at - (self._opened().tell() if self._opened().tell() <= at else 0) + size
        return parts(self, at, size)

    monkeypatch.setattr(compressed.CompressedFile, "_parts", counted)
    for some in (np.arange(0, 100), np.arange(100, 250, 3), np.arange(260, 300)):
        np.testing.assert_array_equal(read_frames(stack, some), images[some])
    assert unpacked <= len(content)
    np.testing.assert_array_equal(read_frames(stack, np.array([7, 3])), images[[7, 3]])
    assert [sentence.split(" files")[0] for sentence in said] == [
        {".gz": "gzip", ".bz2": "bzip2"}[suffix]
    ]


@pytest.mark.parametrize("suffix", [".gz", ".bz2"])
def test_a_compressed_stack_is_never_held_whole(tmp_path: Path, suffix: str) -> None:
    path = packed(tmp_path / f"s.mrcs{suffix}", header(512, 512, 16, 2) + bytes(16 << 20))
    tracemalloc.start()
    try:
        stack = read_header(path)
        assert stack.count == 16
        read_frames(stack, np.array([15]))
        assert tracemalloc.get_traced_memory()[1] < 6 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", [".gz", ".bz2"])
def test_a_compressed_stack_cut_short_keeps_its_whole_images(tmp_path: Path, suffix: str) -> None:
    images = np.random.default_rng(0).normal(size=(400, 16, 16)).astype(np.float32)
    path = packed(tmp_path / f"s.mrcs{suffix}", header(16, 16, 400, 2) + images.tobytes())
    os.truncate(path, path.stat().st_size // 2)
    stack = read_header(path)
    assert 100 < stack.count < 300
    assert promised(stack) == 400
    np.testing.assert_array_equal(everything(stack), images[: stack.count])
    assert re.match(
        r"s\.mrcs\.\w+ unpacks to less than its header says: [\d,]+ bytes, 410,624 expected",
        absence(stack),
    )


def test_compressed_data_that_lie_or_are_damaged_or_changed(tmp_path: Path) -> None:
    path = packed(tmp_path / "s.mrcs.gz", header(100_000, 100_000, 2**31 - 1, 2) + bytes(5000))
    with pytest.raises(FormatError, match="unpacks to less than its header says: 6,024 bytes"):
        read_header(path)
    path = packed(tmp_path / "s.mrcs.gz", header(16, 16, 9, 2) + os.urandom(9 * 1024))
    content = bytearray(path.read_bytes())
    content[-8] ^= 1  # the checksum
    path.write_bytes(content)
    with pytest.raises(FormatError, match="is damaged: its gzip data do not unpack"):
        read_header(path)
    stack = read_header(packed(tmp_path / "s.mrcs.gz", header(16, 16, 9, 2) + bytes(9 * 1024)))
    packed(path, header(16, 16, 8, 2) + bytes(8 * 1024))
    with pytest.raises(FormatError, match="changed while it was being read"):
        read_frames(stack, np.array([0]))
    path.unlink()
    with pytest.raises(FormatError, match="cannot be read: No such file"):
        read_frames(stack, np.array([0]))


def test_a_compressed_stack_is_a_source(tmp_path: Path) -> None:
    for name in ("a.mrcs", "b.mrcs"):
        plain = write_stack(tmp_path / name, 3)
        packed(tmp_path / f"{name}.gz", plain.read_bytes())
        plain.unlink()
    folder = open_source(tmp_path)
    assert folder.images[[0, 3]].tolist() == ["000001@a.mrcs.gz", "000001@b.mrcs.gz"]
    single = open_source(tmp_path / "a.mrcs.gz")
    assert (len(single), single.name) == (3, tmp_path.name)


def test_frames_come_in_the_order_asked_for(tmp_path: Path) -> None:
    stack = read_header(write_stack(tmp_path / "s.mrcs", 9))
    frames = np.array([3, 4, 5, 8, 0, 0, 2, 1])
    np.testing.assert_array_equal(read_frames(stack, frames)[:, 0, 0], frames)
    assert read_frames(stack, np.empty(0, np.int64)).shape == (0, 8, 8)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("axes", [(1, 2, 3), (0, 0, 0)])
def test_a_truncated_stack_of_an_old_program_keeps_its_whole_images_too(
    tmp_path: Path, order: str, axes: tuple[int, int, int]
) -> None:
    images = np.arange(3 * 256 * 256).reshape(3, 256, 256).astype("i1")
    raw = bytearray(header(256, 256, 3, 0, order=order, stamp=False))
    struct.pack_into(f"{order}3i", raw, 64, *axes)
    path = tmp_path / "s.mrcs"
    path.write_bytes(bytes(raw) + images.tobytes()[:-100])
    stack = read_header(path)
    assert (stack.count, promised(stack)) == (2, 3)
    np.testing.assert_array_equal(everything(stack), images[:2])
    assert absence(stack).startswith("s.mrcs is shorter than its header says")


def axes_permuted(volume: np.ndarray, axes: tuple[int, int, int], path: Path) -> Path:
    """A map [z, y, x] in a file whose columns, rows and sections are these axes (1 is x)."""
    stored = volume.transpose([3 - axis for axis in axes[::-1]])
    with mrcfile.new(path, np.ascontiguousarray(stored)) as file:
        file.header.mapc, file.header.mapr, file.header.maps = axes
        file.header.mx, file.header.my, file.header.mz = volume.shape[::-1]
        file.header.cella = tuple(1.5 * side for side in volume.shape[::-1])
    return path


@pytest.mark.parametrize("axes", [(1, 2, 3), (1, 3, 2), (2, 1, 3), (2, 3, 1), (3, 1, 2), (3, 2, 1)])
def test_a_map_is_the_same_whatever_the_order_of_its_axes(
    tmp_path: Path, axes: tuple[int, int, int]
) -> None:
    volume = np.random.default_rng(0).normal(size=(5, 5, 5)).astype(np.float32)
    path = axes_permuted(volume, axes, tmp_path / "m.map")
    again, pixel = read_volume(path)
    np.testing.assert_array_equal(again, volume)
    assert pixel == pytest.approx(1.5)
    uneven = volume[:4, :3]
    again, _ = read_map(axes_permuted(uneven, axes, tmp_path / "u.map"))
    np.testing.assert_array_equal(again, uneven)


def test_what_is_wrong_with_a_map_is_told_of_a_map(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="there is no such map"):
        read_volume(tmp_path / "absent.mrc")
    path = axes_permuted(np.ones((4, 4, 4), np.float32), (3, 2, 1), tmp_path / "m.map")
    os.truncate(path, path.stat().st_size - 8)
    with pytest.raises(FormatError, match=r"is shorter than its header says.*; copy the map again"):
        read_volume(path)
    raw = bytearray(path.read_bytes())
    struct.pack_into("<3i", raw, 64, 1, 1, 3)
    path.write_bytes(raw)
    with pytest.raises(FormatError, match="has its axes numbered 1, 1 and 3, which are not x, y"):
        read_volume(path)


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
        (b"../x/y.mrcs", "is not an MRC file: 11 bytes"),
        (b"only words and words " * 100, "is not an MRC file: its header makes no sense"),
        (b"\x1f\x8b" + bytes(2000), "is damaged: its gzip data do not unpack; copy the file again"),
        (b"BZh9" + bytes(2000), "is damaged: its bzip2 data do not unpack; copy the file again"),
        (gzip.compress(b"words", mtime=0), "is not an MRC file: 5 bytes"),
        (b"\xfd7zXZ" + bytes(2000), "is compressed; unpack it with `unxz`"),
        (
            spider("<"),
            "is a SPIDER file, which cryoray does not read; convert it with `relion_image_handler",
        ),
        (
            spider(">"),
            "is a SPIDER file, which cryoray does not read; convert it with `relion_image_handler",
        ),
        (b"", "is not an MRC file: 0 bytes"),
        (bytes(4096), "is not an MRC file: its header makes no sense"),
        (header(4, 4, 4, 4) + bytes(512), "has MRC mode 4, which is not one of real images"),
        (header(5, 4, 4, 101) + bytes(40), "holds 4-bit images of odd width 5 whose lines do not"),
        (
            header(4, 4, 4, 2, stamp=False) + bytes(8),
            "is not an MRC file: its header makes no sense",
        ),
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


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_a_bomb_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: Callable[[bytes], bytes]
) -> None:
    monkeypatch.setattr(compressed, "_SMALL", 1 << 20)
    with StackWriter(tmp_path / "a.mrcs", 64, 64) as writer:
        writer.append(np.zeros((1, 64, 64), np.float32))
    head = bytearray((tmp_path / "a.mrcs").read_bytes()[:1024])
    struct.pack_into("<i", head, 8, 8192)
    bomb = tmp_path / "bomb.mrcs.gz"
    bomb.write_bytes(pack(bytes(head) + bytes(8192 * 64 * 64 * 2)))
    with pytest.raises(FormatError, match="unpacks to more than 100 times its size"):
        read_header(bomb)
