"""Whatever bytes a file holds, a reader answers or refuses in words: no other error, no hang, no greed.

A few hundred inputs for each reader; ten thousand with ``make test-slow``. They are raw bytes, and
files of each format, made here or real, with bytes changed, cut out, doubled and put in.
"""

from __future__ import annotations

import bz2
import gzip
import io
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cryoray.errors import CryorayError, FormatError, SelectionError
from cryoray.formats import star
from cryoray.formats.mrc import absence, promised, read_frames, read_header
from cryoray.formats.selection import read_selection
from cryoray.formats.source import Source, open_source
from cryoray.formats.star import parse
from tests.conftest import REAL_DATA
from tests.formats.files import write_particles, write_stack

pytestmark = pytest.mark.long

#: Bytes that a reader may hold beyond what it was given, whatever the file says of itself.
_GREED = 8 << 20
#: Of a real file, no more than this is damaged: what follows is more of the same.
_LONGEST = 12_000

Reader = Callable[[Path], object]


def read_mrc(path: Path) -> None:
    stack = read_header(path)
    assert stack.count > 0
    assert promised(stack) >= stack.count
    images = read_frames(stack, np.array([0, stack.count - 1]))
    assert images.shape == (2, stack.height, stack.width)
    assert images.dtype == np.float32
    assert absence(stack).startswith(path.name)


def read_star(path: Path) -> None:
    file = parse(path)
    for block in file.blocks:
        read = block.read(block.columns[:3], block.columns)
        assert {len(column) for column in read.strings.values()} <= {len(block)}
        assert {len(column) for column in read.numbers.values()} <= {len(block)}
        rows = np.arange(len(block))
        if len(block):
            assert len(block.fields(len(block) - 1)) >= bool(block.columns)
        out = io.BytesIO()
        block.copy(out)
        if block.is_loop:
            again = io.BytesIO()
            block.copy_rows(rows, again)
            assert out.getvalue().endswith(again.getvalue())
            assert again.getvalue().count(b"\n") == len(rows)
    for kind in ("particle", "class2d"):
        try:
            source = open_source(path, kind)  # type: ignore[arg-type]
        except FormatError:
            continue
        assert len(source.stack) == len(source.frame) == len(source.pixel_size) == len(source)
        assert (source.stack < len(source.stacks)).all()
        assert (source.stack[source.frame < 0] < 0).all()


def read_labels(path: Path, source: Source) -> None:
    labels = read_selection(path, source)
    assert labels.shape == (len(source),)
    assert set(labels.tolist()) <= {-1, 0, 1}


def head(nz: int, mode: int, extended: int, order: str) -> bytes:
    raw = bytearray(1024)
    struct.pack_into(f"{order}4i", raw, 0, 5, 4, nz, mode)
    struct.pack_into(f"{order}3i3f", raw, 28, 5, 4, nz, 10, 8, nz)
    struct.pack_into(f"{order}3i", raw, 64, 1, 2, 3)
    struct.pack_into(f"{order}i", raw, 92, extended)
    raw[104:108] = b"AGAR"
    struct.pack_into(f"{order}2h", raw, 128, 0, 32)
    raw[208:214] = b"MAP DD" if order == "<" else b"MAP \x11\x11"
    return bytes(raw) + bytes(extended)


def stacks() -> list[bytes]:
    """Small stacks of every mode, in either byte order, compressed and not; the heads of real ones."""
    bits = {0: 8, 1: 16, 2: 32, 6: 16, 12: 16, 101: 6}
    pixels = np.random.default_rng(0).bytes(4 * 20 * 3)
    made = [
        head(3, mode, extended, order) + pixels[: 3 * 20 * width // 8 + 8]
        for mode, width in bits.items()
        for extended in (0, 160)
        for order in "<>"
    ]
    packed = [pack(each) for each in made[::5] for pack in (gzip.compress, bz2.compress)]
    return made + packed + real("formats/mrc/*", "formats/malformed/*", "formats/small-stacks/*")


def tables() -> list[bytes]:
    """STAR files as programs write them, with what is rare in each; real ones."""
    made = [
        "\n# version 30001\n\ndata_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnImagePixelSize #2\n1 1.5\n2 nan\n"
        "\n\n# version 30001\n\ndata_particles\n\nloop_\n_rlnImageName #1\n_rlnOpticsGroup #2\n"
        "_rlnMicrographName #3\n_rlnDefocusU #4\n"
        + "".join(f"{i:06d}@a/b.mrcs {i % 3} 'mic {i}.mrc' {i * 1e3:12.6f} \n" for i in range(1, 9))
        + " \n",
        "data_model_general\n_rlnPixelSize 3.5\n_rlnNrClasses 3\n\ndata_model_classes\n\nloop_\n"
        "_rlnReferenceImage #1\n_rlnEstimatedResolution #2\n1@c.mrcs inf\n2@c.mrcs -nan\n3@c.mrcs 999\n"
        "\ndata_model_class_1\n\nloop_\n_rlnSpectralIndex\n0\n1\n",
        "data_\r\n\r\nloop_\r\n_rlnImageName\r\n_rlnMagnification\r\n_rlnDetectorPixelSize\r\n"
        '1@x.mrcs\t5e4 5.0\r\n# words\r\n\r\n"2@x y.mrcs" 0 5.0\r\n',
    ]
    found = real(
        "formats/star/**/*.star", "formats/malformed/*.star", "relion5-project/Class2D/*/*.star"
    )
    return [text.encode() for text in made] + found


def lists() -> list[bytes]:
    """Selections as CSV files, in the ways that people write them."""
    made = [
        "index,label\n1,1\n2,0\n3,1\n4,\n",
        "stack,index,selected\na.mrcs,1,true\na.mrcs,2,false\nAb/a.mrcs,3,keep\n",
        '"index","label","note"\n"1","discard","two\nlines"\n2.0,kept,"a ""b"""\n',
        "\ufeffindex;label\r\n1;1\r\n",
    ]
    return [text.encode() for text in made] + real("*/labels.csv", "*/*.csv")


def real(*patterns: str) -> list[bytes]:
    """The beginnings of real files, where there are any."""
    paths = sorted({path for pattern in patterns for path in REAL_DATA.glob(pattern)})
    return [beginning(path) for path in paths if path.is_file()]


def beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_LONGEST)


#: What a damaged place is often replaced with: extremes, and bytes that mean something to a reader.
_TELLING = st.sampled_from(
    [
        *(struct.pack("<i", value) for value in (-1, 0, 1, 2**31 - 1, -(2**31), 65536)),
        *(struct.pack(">i", value) for value in (1, 2**31 - 1, 4)),
        *(
            b"\n",
            b"\r\n",
            b" ",
            b"\t",
            b"#",
            b"'",
            b'"',
            b",",
            b"@",
            b"_",
            b"\0",
            b"\xff",
            b"\xc3\x28",
        ),
        *(
            b"data_",
            b"loop_",
            b"loop_\n_x\n",
            b"data_\n",
            b"nan",
            b"1e999",
            b"99999999999999999999@",
        ),
    ]
)


@st.composite
def damaged(draw: st.DrawFn, whole: list[bytes]) -> bytes:
    """One of these files after some accidents."""
    content = bytearray(draw(st.sampled_from(whole)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(content)))
        size = draw(st.one_of(st.integers(0, 8), st.integers(0, len(content))))
        accident = draw(st.sampled_from(["replace", "insert", "cut", "end", "double", "bit"]))
        if accident == "end":
            del content[at:]
        elif accident == "cut":
            del content[at : at + size]
        elif accident == "double":
            content[at:at] = content[at : at + min(size, 512)]
        elif accident == "bit" and at < len(content):
            content[at] ^= 1 << draw(st.integers(0, 7))
        else:
            with_what = draw(st.one_of(_TELLING, st.binary(max_size=16)))
            content[at : at + (len(with_what) if accident == "replace" else 0)] = with_what
    return bytes(content)


def inputs(whole: list[bytes]) -> st.SearchStrategy[bytes]:
    starts = st.sampled_from([b"", b"\x1f\x8b\x08", b"BZh91AY&SY", b"data_", b"index,label\n"])
    raw = st.builds(lambda start, rest: start + rest, starts, st.binary(max_size=3000))
    return st.one_of(raw, damaged(whole), damaged(whole), damaged(whole))


def answer_or_refuse(read: Reader, path: Path, content: bytes, *errors: type[CryorayError]) -> None:
    """Only errors of ours, that name the file; and no more memory than the content warrants."""
    path.write_bytes(content)
    said = f"{path}: nothing."
    tracemalloc.start()
    try:
        read(path)
    except errors as error:
        said = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert said.startswith(f"{path}")
    assert "\n" not in said
    assert peak < _GREED + 50 * len(content)


def many(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        phases=[phase for phase in Phase if phase is not Phase.explain],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where files are damaged; what readers import at first use is imported, and counts as no greed."""
    made = tmp_path_factory.mktemp("damaged")
    (made / "first.star").write_bytes(tables()[0])
    read_star(made / "first.star")
    return made


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Source:
    made = tmp_path_factory.mktemp("labelled")
    write_stack(made / "a.mrcs", 4)
    return open_source(
        write_particles(made / "particles.star", [f"{i}@a.mrcs" for i in range(1, 5)])
    )


FEW, MANY = many(300), many(10_000)


@FEW
@given(content=inputs(stacks()))
def test_any_bytes_as_a_stack(folder: Path, content: bytes) -> None:
    answer_or_refuse(read_mrc, folder / "s.mrcs", content, FormatError)


@FEW
@given(content=inputs(tables()), piece=st.sampled_from([64, 1 << 20]))
def test_any_bytes_as_a_star_file(folder: Path, content: bytes, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(star, "_PIECE", piece)
        answer_or_refuse(read_star, folder / "t.star", content, FormatError)


@FEW
@given(content=inputs(lists()))
def test_any_bytes_as_a_selection(folder: Path, labelled: Source, content: bytes) -> None:
    answer_or_refuse(
        lambda path: read_labels(path, labelled),
        folder / "labels.csv",
        content,
        FormatError,
        SelectionError,
    )


@pytest.mark.slow
@MANY
@given(content=inputs(stacks()))
def test_ten_thousand_damaged_stacks(folder: Path, content: bytes) -> None:
    answer_or_refuse(read_mrc, folder / "many.mrcs", content, FormatError)


@pytest.mark.slow
@MANY
@given(content=inputs(tables()), piece=st.sampled_from([64, 1 << 20]))
def test_ten_thousand_damaged_star_files(folder: Path, content: bytes, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(star, "_PIECE", piece)
        answer_or_refuse(read_star, folder / "many.star", content, FormatError)


@pytest.mark.slow
@MANY
@given(content=inputs(lists()))
def test_ten_thousand_damaged_selections(folder: Path, labelled: Source, content: bytes) -> None:
    answer_or_refuse(
        lambda path: read_labels(path, labelled),
        folder / "many.csv",
        content,
        FormatError,
        SelectionError,
    )
