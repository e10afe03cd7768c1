"""Small files that tests of the readers share: stacks and STAR files as programs write them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cryoray.formats.mrc import StackWriter

OPTICS = """
# version 30001

data_optics

loop_
_rlnOpticsGroupName #1
_rlnOpticsGroup #2
_rlnImagePixelSize #3
_rlnVoltage #4
first 1 1.500000 300.000000
'second group' 2 2.500000 200.000000

"""


def write_stack(path: Path, count: int, side: int = 8, pixel_size: float | None = 1.5) -> Path:
    """A float32 stack in which every pixel of image i is i."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with StackWriter(path, side, side, "float32", pixel_size) as writer:
        writer.append(np.repeat(np.arange(count), side * side).reshape(count, side, side))
    return path


def write_particles(
    path: Path, names: Sequence[str], groups: Sequence[int] | None = None, end: str = "\n"
) -> Path:
    """A RELION 3.1 particles STAR file of image names, with micrographs, classes and a defocus."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        f"{1000 + i:12.3f} {name} {group} mic{i % 2}.mrc {i % 3 + 1} "
        for i, (name, group) in enumerate(zip(names, groups or [1] * len(names), strict=True))
    ]
    columns = ["DefocusU", "ImageName", "OpticsGroup", "MicrographName", "ClassNumber"]
    head = [f"_rln{name} #{i}" for i, name in enumerate(columns, 1)]
    text = OPTICS + "\n".join(
        ["", "# version 30001", "", "data_particles", "", "loop_", *head, *rows, " ", ""]
    )
    path.write_bytes(text.replace("\n", end).encode())
    return path


#: Fields of a job's own table and of what it passed through, as cryoSPARC 4 has them.
CS_FIELDS = [
    ("uid", "<u8"),
    ("blob/path", "S64"),
    ("blob/idx", "<u4"),
    ("blob/shape", "<u4", (2,)),
    ("blob/psize_A", "<f4"),
    ("blob/sign", "<f4"),
    ("alignments2D/split", "<u4"),
    ("alignments2D/shift", "<f4", (2,)),
    ("alignments2D/pose", "<f4"),
    ("alignments2D/psize_A", "<f4"),
    ("alignments2D/error", "<f4"),
    ("alignments2D/class", "<u4"),
]
PASSTHROUGH_FIELDS = [
    ("uid", "<u8"),
    ("ctf/type", "S9"),
    ("ctf/exp_group_id", "<u4"),
    ("ctf/accel_kv", "<f4"),
    ("ctf/cs_mm", "<f4"),
    ("ctf/amp_contrast", "<f4"),
    ("ctf/df1_A", "<f4"),
    ("ctf/df2_A", "<f4"),
    ("ctf/df_angle_rad", "<f4"),
    ("ctf/phase_shift_rad", "<f4"),
    ("ctf/scale", "<f4"),
    ("ctf/tilt_A", "<f4", (2,)),
    ("ctf/trefoil_A", "<f4", (2,)),
    ("ctf/bfactor", "<f4"),
    ("location/micrograph_uid", "<u8"),
    ("location/micrograph_path", "S40"),
    ("location/micrograph_shape", "<u4", (2,)),
    ("location/micrograph_psize_A", "<f4"),
    ("location/center_x_frac", "<f4"),
    ("location/center_y_frac", "<f4"),
    ("pick_stats/ncc_score", "<f4"),
]


def cs_particles(n: int, path: str = "J19/extract/a.mrc") -> tuple[np.ndarray, np.ndarray]:
    """A table of particles and what was passed through with it, in another order."""
    main = np.zeros(n, CS_FIELDS)
    i = np.arange(n)
    main["uid"] = np.random.default_rng(0).integers(1 << 63, 1 << 64, n, np.uint64)
    main["blob/path"], main["blob/idx"], main["blob/shape"] = path.encode(), i, (8, 8)
    main["blob/psize_A"], main["blob/sign"] = 1.5, -1
    main["alignments2D/class"], main["alignments2D/error"] = i % 3, 10 + i
    main["alignments2D/pose"], main["alignments2D/psize_A"] = np.pi / 2, 3
    main["alignments2D/shift"] = (1, -2)
    passed = np.zeros(n, PASSTHROUGH_FIELDS)
    passed["uid"], passed["ctf/type"] = main["uid"], b"patch_ctf"
    passed["ctf/exp_group_id"] = 23 + i % 2
    passed["ctf/accel_kv"], passed["ctf/cs_mm"], passed["ctf/amp_contrast"] = 300, 2.7, 0.1
    passed["ctf/df1_A"], passed["ctf/df2_A"] = 15000 + i, 14000 + i
    passed["ctf/df_angle_rad"], passed["ctf/phase_shift_rad"] = -np.pi / 4, np.pi / 3
    passed["ctf/scale"] = 1
    passed["location/micrograph_uid"] = 2**63 + 1
    passed["location/micrograph_path"] = [f">J2/m{k % 2}.mrc".encode() for k in range(n)]
    passed["location/micrograph_shape"], passed["location/micrograph_psize_A"] = (4000, 6000), 0.75
    passed["location/center_x_frac"], passed["location/center_y_frac"] = 0.25, 0.1
    passed["pick_stats/ncc_score"] = i / 10
    return main, passed[::-1].copy()


def write_cs(path: Path, table: np.ndarray) -> Path:
    """A .cs table as numpy writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.save(file, table, allow_pickle=False)
    return path


def write_cs_job(project: Path, n: int = 6) -> Path:
    """A 2D classification J26 of ``n`` particles in a project with their stack; its last particles."""
    main, passed = cs_particles(n)
    write_stack(project / "J19/extract/a.mrc", n)
    (project / "project.json").write_text("{}")
    write_cs(project / "J26/J26_passthrough_particles.cs", passed)
    write_cs(project / "J26/J26_000_particles.cs", main)
    classes = np.zeros(3, [*CS_FIELDS[:5], ("blob/res_A", "<f4")])
    classes["uid"], classes["blob/idx"] = (11, 12, 13), (0, 1, 2)
    classes["blob/path"], classes["blob/psize_A"] = b"J26/J26_020_class_averages.mrc", 3
    classes["blob/shape"], classes["blob/res_A"] = (8, 8), (8, 9, 30)
    write_cs(project / "J26/J26_020_class_averages.cs", classes)
    write_stack(project / "J26/J26_020_class_averages.mrc", 3)
    return write_cs(project / "J26/J26_020_particles.cs", main)
