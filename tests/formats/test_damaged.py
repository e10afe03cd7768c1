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
from cryoray.formats.class_volumes import TABLE, open_volumes
from cryoray.formats.fsc_curve import read_curve
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
            source = open_source(path, kind)
        except FormatError:
            continue
        assert len(source.stack) == len(source.frame) == len(source.pixel_size) == len(source)
        assert (source.stack < len(source.stacks)).all()
        assert (source.stack[source.frame < 0] < 0).all()


def read_a_curve(path: Path) -> None:
    curve = read_curve(path, 200.0)
    assert len(curve.frequency) >= 2
    assert {len(values) for values in curve.curves.values()} == {len(curve.frequency)}


def read_classes(path: Path) -> None:
    found = open_volumes(path.parent)
    assert len(found.volumes) == len(found) == len(found.share)


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


def curves() -> list[bytes]:
    """FSC curves as programs write them."""
    made = [
        "data_fsc\nloop_\n_rlnSpectralIndex\n_rlnResolution\n_rlnFourierShellCorrelationCorrected\n"
        "0 0.001001 1\n1 0.05 0.9\n2 0.1 0.1\n",
        '<fsc xaxis="Resolution (A-1)"><coordinate><x>0.05</x><y>0.9</y></coordinate>\n'
        "<coordinate><x>0.1</x><y>0.1</y></coordinate>\n</fsc>\n",
        "wave_number\tfsc_nomask\tfsc_noisesub\n0\t1\t1\n1\t0.9\t0.8\n2\t0.1\t0.1\n",
        "curve,resolution,value\na,0.05,0.9\na,0.1,0.1\nb,0.05,0.8\nb,0.1,0.2\n",
        "0.0 1.0\n0.1 0.8\n0.2 0.1\n",
    ]
    return [text.encode() for text in made]


def classes() -> list[bytes]:
    """Tables of 3D classes."""
    made = [
        "volume,particles,resolution\na.mrc,100,8.5\nb.mrc,,\n",
        '"volume"\r\n"a, b.mrc"\r\n',
    ]
    return [text.encode() for text in made]


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


#: What stands in a field by mistake: names that no program should give, words for missing numbers, numbers
#: as they are written elsewhere, and what means something to a reader.
_FIELDS = st.sampled_from(
    [
        b"\xe9.mrcs",
        b"000001@\xfc/a.mrcs",
        b"My Grid/a.mrcs",
        b"'My Grid/a.mrcs'",
        b"it's",
        b"'it's \"x\" '",
        b"000000@a.mrcs",
        b"1@",
        b"@a.mrcs",
        b"a.mrc",
        b"=1+1",
        b"<NA>",
        b'""',
        b"''",
        b"1,5",
        b"1e999",
        b"_x",
        b"data_x",
        b"loop_",
        b"#",
        b"\\\\server\\a.mrcs",
        b"1@" + b"x" * 300 + b".mrcs",
    ]
)
_ENDS = st.sampled_from(
    [b"\r", b"\r\n", b"\r\r\n", b"\n\n", b" \n", b"\n\xef\xbb\xbf", b"\x0b", b""]
)


@st.composite
def rewritten(draw: st.DrawFn, whole: list[bytes]) -> bytes:
    """One of these files with other line ends, fields too many or too few, and odd names."""
    lines = draw(st.sampled_from(whole)).split(b"\n")
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        fields = lines[at].split()
        place = draw(st.integers(0, len(fields)))
        accident = draw(st.sampled_from(["add", "drop", "replace", "row", "lose"]))
        if accident == "row":
            lines.insert(at, draw(_FIELDS))
        elif accident == "lose":
            lines[at] = b""
        else:
            fields[place : place + (accident != "add")] = (
                [] if accident == "drop" else [draw(_FIELDS)]
            )
            lines[at] = draw(st.sampled_from([b" ", b"\t", b"  ", b","])).join(fields)
    first = draw(st.sampled_from([b"", b"", b"\xef\xbb\xbf"]))
    if draw(st.booleans()):
        return first + draw(_ENDS).join(lines)
    ends = draw(st.lists(st.one_of(st.just(b"\n"), _ENDS), min_size=1, max_size=5))
    made = (line + ends[at % len(ends)] for at, line in enumerate(lines))
    return first + b"".join(made)


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


def texts(whole: list[bytes]) -> st.SearchStrategy[bytes]:
    """Damaged as bytes, and as the text that they are."""
    return st.one_of(inputs(whole), rewritten(whole), rewritten(whole))


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
@given(content=texts(tables()), piece=st.sampled_from([64, 1 << 20]))
def test_any_bytes_as_a_star_file(folder: Path, content: bytes, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(star, "_PIECE", piece)
        answer_or_refuse(read_star, folder / "t.star", content, FormatError)


@FEW
@given(content=texts(lists()))
def test_any_bytes_as_a_selection(folder: Path, labelled: Source, content: bytes) -> None:
    answer_or_refuse(
        lambda path: read_labels(path, labelled),
        folder / "labels.csv",
        content,
        FormatError,
        SelectionError,
    )


@pytest.mark.parametrize("suffix", [".txt", ".star", ".xml"])
@FEW
@given(content=texts(curves()))
def test_any_bytes_as_a_curve(folder: Path, content: bytes, suffix: str) -> None:
    answer_or_refuse(read_a_curve, folder / f"c{suffix}", content, FormatError)


@FEW
@given(content=texts(classes()))
def test_any_bytes_as_a_table_of_classes(folder: Path, content: bytes) -> None:
    (folder / "classes").mkdir(exist_ok=True)
    answer_or_refuse(read_classes, folder / "classes" / TABLE, content, FormatError)


@pytest.mark.slow
@MANY
@given(content=inputs(stacks()))
def test_ten_thousand_damaged_stacks(folder: Path, content: bytes) -> None:
    answer_or_refuse(read_mrc, folder / "many.mrcs", content, FormatError)


@pytest.mark.slow
@MANY
@given(content=texts(tables()), piece=st.sampled_from([64, 1 << 20]))
def test_ten_thousand_damaged_star_files(folder: Path, content: bytes, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(star, "_PIECE", piece)
        answer_or_refuse(read_star, folder / "many.star", content, FormatError)


@pytest.mark.slow
@MANY
@given(content=texts(lists()))
def test_ten_thousand_damaged_selections(folder: Path, labelled: Source, content: bytes) -> None:
    answer_or_refuse(
        lambda path: read_labels(path, labelled),
        folder / "many.csv",
        content,
        FormatError,
        SelectionError,
    )


@pytest.mark.slow
@MANY
@given(content=texts(curves()), suffix=st.sampled_from([".txt", ".star", ".xml"]))
def test_ten_thousand_damaged_curves(folder: Path, content: bytes, suffix: str) -> None:
    answer_or_refuse(read_a_curve, folder / f"many{suffix}", content, FormatError)


@pytest.mark.slow
@MANY
@given(content=texts(classes()))
def test_ten_thousand_damaged_tables_of_classes(folder: Path, content: bytes) -> None:
    (folder / "many").mkdir(exist_ok=True)
    answer_or_refuse(read_classes, folder / "many" / TABLE, content, FormatError)
