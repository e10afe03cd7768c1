"""Proteins to simulate from: random ones of many shapes, or a map or atomic model that a person gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

import mrcfile
import numpy as np
from scipy import ndimage
from scipy.cluster.vq import kmeans2
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from cryoray.errors import FormatError
from cryoray.formats.opening import way_out

#: Å³ that one residue fills in a folded protein (Harpaz, Gerstein and Chothia, Structure 1994).
_RESIDUE_VOLUME = 135.0
#: Å along the axis of a helix or strand, per residue.
_HELIX_RISE, _STRAND_RISE = 1.5, 3.3
#: A chain longer than this is thinned out and weighs more; nobody sees it in a single image.
_MOST_RESIDUES = 6000
#: Directions tried for each helix or strand.
_CANDIDATES = 24
#: Å, standard deviation of the Gaussian that stands for an atom or a residue.
_ATOM_BLUR = 1.2
#: How far an unfolded chain fluctuates, over the diameter.
_LOOSE = 0.07
#: Domains that a structure is taken to have that somebody gave.
_DOMAINS = 6

_ELECTRONS = {"H": 0.3, "C": 1.0, "N": 1.1, "O": 1.2, "P": 2.0, "S": 2.1}


@dataclass(frozen=True, slots=True, eq=False)
class Structure:
    """A protein as weighted points, centred; a sum of Gaussians is its density.

    Attributes:
        name: what to call it.
        points: float32 [n, 3], x, y, z in Å.
        weights: float32 [n], scattering of each.
        domains: int32 [n], which domain each belongs to: what falls off together when it breaks.
        blur: Å, standard deviation of the Gaussians.
    """

    name: str
    points: np.ndarray
    weights: np.ndarray
    domains: np.ndarray
    blur: float = _ATOM_BLUR

    @property
    def diameter(self) -> float:
        """Å, of the sphere round the centre that holds nearly all of it."""
        return 2 * float(np.quantile(np.linalg.norm(self.points, axis=1), 0.995)) + 2 * self.blur


def random_structure(rng: np.random.Generator, diameter: float, family: str) -> Structure:
    """A protein-like structure that never was.

    Domains are ellipsoids filled at the density of proteins with a chain of helices and strands
    that avoids itself; the subunit that they make is repeated with Cn or Dn symmetry.

    Args:
        rng: of which alone the structure is a function.
        diameter: Å.
        family: one of `FAMILIES`.

    Returns:
        the structure; its own diameter is about the one asked for.
    """
    centres, radii, axes, operators = FAMILIES[family](rng)
    surface = rng.normal(size=(400, 3))
    surface /= np.linalg.norm(surface, axis=1, keepdims=True)
    shell = np.concatenate(
        [c + (surface * r) @ a.T for c, r, a in zip(centres, radii, axes, strict=True)]
    )
    middle = (operators @ shell.mean(0)).mean(0)
    scale = (
        diameter / 2 / max(np.linalg.norm(shell @ o.T - middle, axis=1).max() for o in operators)
    )
    chains = [
        _domain(rng, c * scale, r * scale, a) for c, r, a in zip(centres, radii, axes, strict=True)
    ]
    points = np.concatenate([points for points, _ in chains])
    weights = np.concatenate([weights for _, weights in chains])
    domains = np.repeat(np.arange(len(chains)), [len(points) for points, _ in chains])
    return _centred(
        family,
        np.concatenate([points @ operator.T for operator in operators]),
        np.tile(weights, len(operators)),
        np.concatenate([domains + len(chains) * k for k in range(len(operators))]),
    )


_Shape = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _blob(rng: np.random.Generator, domains: int, bend: float) -> _Shape:
    """Touching ellipsoids, each grown from an earlier one: in a row where ``bend`` is small."""
    radii = rng.uniform(0.7, 1.3, (domains, 3))
    axes = Rotation.random(domains, rng=rng).as_matrix()
    centres = np.zeros((domains, 3))
    direction = _unit(rng.normal(size=3))
    for i in range(1, domains):
        direction = _unit(direction + bend * rng.normal(size=3))
        parent = i - 1 if bend < 1 else rng.integers(i)
        centres[i] = centres[parent] + direction * 0.8 * (radii[parent].mean() + radii[i].mean())
    return centres - centres.mean(0), radii, axes, np.eye(3)[None]


def _symmetric(rng: np.random.Generator, fold: int, dihedral: bool, stretch: float) -> _Shape:
    """Subunits of a few domains round the z axis, and for Dn a second ring upside down."""
    centres, radii, axes, _ = _blob(rng, int(rng.integers(1, 4)), 0.8)
    extent = np.abs(centres) + radii.max(1, keepdims=True)
    reach = 0.72 * float(extent[:, :2].max(0).mean())
    out = reach / np.sin(np.pi / fold) * stretch if fold > 2 else reach
    centres += np.array([out, 0.0, 0.75 * extent[:, 2].max() if dihedral else 0.0])
    turns = Rotation.from_rotvec(
        np.outer(2 * np.pi * np.arange(fold) / fold, [0, 0, 1])
    ).as_matrix()
    if dihedral:
        flip = Rotation.from_euler("zx", [rng.uniform(0, 2 * np.pi / fold), np.pi]).as_matrix()
        turns = np.concatenate([turns, turns @ flip])
    return centres, radii, axes, turns


#: The shapes that random proteins have. Each gives, in arbitrary units, the centres [d, 3], radii
#: [d, 3] and axes [d, 3, 3] of one subunit's ellipsoids, and the symmetry operators [k, 3, 3].
FAMILIES: dict[str, Callable[[np.random.Generator], _Shape]] = {
    "dihedral": lambda rng: _symmetric(rng, int(rng.integers(2, 5)), True, 1.0),
    "multi-domain": lambda rng: _blob(rng, int(rng.integers(4, 8)), 1.5),
    "ring": lambda rng: _symmetric(rng, int(rng.integers(5, 10)), False, rng.uniform(0.9, 1.1)),
    "globular": lambda rng: _blob(rng, int(rng.integers(1, 4)), 1.5),
    "cyclic": lambda rng: _symmetric(rng, int(rng.integers(2, 5)), False, 1.0),
    "elongated": lambda rng: _blob(rng, int(rng.integers(3, 6)), 0.35),
    "barrel": lambda rng: _symmetric(rng, int(rng.integers(6, 9)), True, 1.0),
}


def families(seed: int) -> Iterator[str]:
    """The shapes of successive projects: all of them, in an order of the seed's, again and again."""
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    return cycle([str(name) for name in rng.permutation(list(FAMILIES))])


def _domain(
    rng: np.random.Generator, centre: np.ndarray, radii: np.ndarray, axes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fill an ellipsoid with a chain; backbone atoms weigh 1, the side chains around them less.

    Greedy: of some directions, the next helix or strand takes the one that is least crowded.
    """
    volume = 4 / 3 * np.pi * radii.prod() / _RESIDUE_VOLUME
    residues = int(np.clip(volume, 20, _MOST_RESIDUES))
    helical = rng.uniform(0.2, 0.9)
    atoms: list[np.ndarray] = []
    middles = np.zeros((residues // 5 + 1, 3))
    start, placed, made = rng.normal(size=3) * radii / 4, 0, 0
    while placed < residues:
        helix = rng.random() < helical
        count = int(rng.integers(8, 22) if helix else rng.integers(5, 9))
        rise = _HELIX_RISE if helix else _STRAND_RISE
        way = rng.normal(size=(_CANDIDATES, 3))
        way /= np.linalg.norm(way, axis=1, keepdims=True)
        ends = start + way * count * rise
        halves = (start + ends) / 2
        outside = np.clip(np.linalg.norm(ends / radii, axis=1) - 0.95, 0, None)
        near = ((halves[:, None] - middles[None, :made]) ** 2).sum(-1)
        crowd = np.exp(-near / 120).sum(1) + 20 * outside
        best = int(crowd.argmin())
        middles[made] = halves[best]
        atoms.append(_segment(rng, start, way[best], count, rise, 2.3 if helix else 0.9))
        start = ends[best] + 5 * _unit(rng.normal(size=3) - ends[best] / radii.mean())
        placed, made = placed + count, made + 1
    backbone = np.concatenate(atoms)
    side = backbone + rng.normal(scale=2.6, size=backbone.shape)
    points = np.concatenate([backbone, side]) @ axes.T + centre
    return points, np.repeat([1.0, 0.8], len(backbone)) * volume / len(backbone)


def _segment(
    rng: np.random.Generator,
    start: np.ndarray,
    way: np.ndarray,
    count: int,
    rise: float,
    radius: float,
) -> np.ndarray:
    """Residues of a helix or, where the radius is small, a strand: [count, 3]."""
    across = _unit(np.cross(way, rng.normal(size=3)))
    angle = np.radians(100) * np.arange(count) + rng.uniform(0, 2 * np.pi)
    ring = np.cos(angle)[:, None] * across + np.sin(angle)[:, None] * np.cross(way, across)
    return start + rise * np.arange(count)[:, None] * way + radius * ring


def damaged(structure: Structure, rng: np.random.Generator) -> Structure:
    """The structure with a part of it gone and some of what is gone unfolded beside it.

    Whole domains go where there are enough of them, else what lies on one side of a plane.
    """
    lost = rng.uniform(0.45, 0.7)
    direction = _unit(rng.normal(size=3))
    height = structure.points @ direction
    if len(np.unique(structure.domains)) >= 4:
        height = ndimage.mean(height, structure.domains, np.arange(structure.domains.max() + 1))[
            structure.domains
        ]
    order = np.argsort(height, kind="stable")
    share = np.cumsum(structure.weights[order]) / structure.weights.sum()
    edge = height[order][np.searchsorted(share, 1 - lost)]
    stay = height <= edge if (height <= edge).mean() < 0.85 else height < edge
    gone = structure.weights[~stay].sum()
    walk = _coil(rng, max(60, int(gone / structure.weights.mean())))
    walk *= structure.diameter / 2 * rng.uniform(0.5, 0.8) / np.linalg.norm(walk, axis=1).max()
    walk += rng.normal(scale=_LOOSE * structure.diameter, size=walk.shape)
    walk += structure.points[~stay].mean(0) * rng.uniform(0.6, 1.1)
    smear = np.full(len(walk), gone * rng.uniform(0.2, 0.8) / len(walk))
    return replace(
        structure,
        name=f"broken {structure.name}",
        points=np.concatenate([structure.points[stay], walk]).astype(np.float32),
        weights=np.concatenate([structure.weights[stay], smear]).astype(np.float32),
        domains=np.concatenate([structure.domains[stay], np.full(len(walk), -1)]).astype(np.int32),
    )


def denatured(structure: Structure, rng: np.random.Generator) -> Structure:
    """The whole chain unfolded into a loose, irregular blob of about the structure's size."""
    walk = _coil(rng, 400)
    walk *= structure.diameter / 2 * rng.uniform(0.6, 1.1) / np.linalg.norm(walk, axis=1).max()
    points = np.repeat(walk, 4, 0)
    points += rng.normal(scale=_LOOSE * structure.diameter, size=points.shape)
    weights = np.full(len(points), structure.weights.sum() * rng.uniform(0.3, 0.9) / len(points))
    domains = np.full(len(points), -1)
    return _centred(f"denatured {structure.name}", points, weights, domains, structure.blur)


def occupied_volume(structure: Structure) -> float:
    """Å³ that the structure fills, by counting the cubes of 4 Å that hold any of its points."""
    cubes = np.unique(np.floor(structure.points / 4).astype(np.int64), axis=0)
    return 64.0 * len(cubes)


def in_micelle(structure: Structure, rng: np.random.Generator) -> Structure:
    """The structure with a belt of detergent round its middle, as membrane proteins have it.

    A flattened ellipsoid of 30 to 45 Å thickness where the protein is not: head groups denser than
    water, tails about as dense as it.
    """
    axis = _unit(rng.normal(size=3))
    height = structure.points @ axis
    middle = rng.uniform(-0.25, 0.25) * np.ptp(height)
    half = rng.uniform(15, 22)
    inside = np.abs(height - middle) < half
    across = np.linalg.norm(structure.points - np.outer(height, axis), axis=1)
    girth = float(np.quantile(across[inside], 0.95)) if inside.any() else 10.0
    shell = _micelle_points(rng, girth + rng.uniform(18, 28), half + 4)
    basis = np.linalg.qr(np.stack([axis, *rng.normal(size=(2, 3))], 1))[0]
    shell = shell @ basis[:, [1, 2, 0]].T + axis * middle
    free = cKDTree(structure.points).query(shell)[0] > 5
    return _with_detergent(structure, shell[free], rng)


def empty_micelle(structure: Structure, rng: np.random.Generator) -> Structure:
    """A micelle without protein, in the units of the structure that it swims beside."""
    shell = _micelle_points(rng, rng.uniform(26, 42), rng.uniform(20, 32))
    nothing = replace(structure, points=structure.points[:0], weights=structure.weights[:0])
    nothing = replace(nothing, domains=structure.domains[:0], name="micelle")
    unit = float(structure.weights.sum()) / occupied_volume(structure)
    return _with_detergent(nothing, shell, rng, unit)


def _micelle_points(rng: np.random.Generator, radius: float, half: float) -> np.ndarray:
    """Points in the shell of head groups, some 9 Å thick, of an ellipsoid flat along z: [n, 3]."""
    size = np.array([radius, radius, half])
    points = rng.uniform(-1, 1, (12000, 3)) * (size + 5)
    return points[
        (np.linalg.norm(points / (size + 4), axis=1) < 1)
        & (np.linalg.norm(points / (size - 5), axis=1) > 1)
    ]


def _with_detergent(
    structure: Structure, shell: np.ndarray, rng: np.random.Generator, unit: float = 0.0
) -> Structure:
    unit = unit or float(structure.weights.sum()) / occupied_volume(structure)
    dense = rng.uniform(0.6, 1.1) * occupied_volume(replace(structure, points=shell)) * unit
    return _centred(
        structure.name,
        np.concatenate([structure.points, shell]),
        np.concatenate([structure.weights, np.full(len(shell), dense / max(1, len(shell)))]),
        np.concatenate([structure.domains, np.full(len(shell), -2)]),
        structure.blur,
    )


def _coil(rng: np.random.Generator, steps: int) -> np.ndarray:
    """A random walk that keeps its way for a few steps, [steps, 3], centred."""
    walk = np.cumsum(ndimage.gaussian_filter1d(rng.normal(size=(steps, 3)), 2, axis=0), axis=0)
    return walk - walk.mean(0)


def read_structure(path: Path) -> Structure:
    """A map (MRC, CCP4) or an atomic model (PDB, mmCIF) as a structure.

    A map is taken above three standard deviations, without specks. Of a model, the first is taken,
    water left out.

    Args:
        path: ``.mrc`` ``.map`` ``.ccp4`` for maps, ``.pdb`` ``.ent`` ``.cif`` ``.mmcif`` for models.

    Raises:
        FormatError: missing, of another kind, damaged, or with nothing in it.
    """
    readers = dict.fromkeys((".mrc", ".map", ".ccp4"), _from_map)
    readers |= dict.fromkeys((".pdb", ".ent"), _from_pdb)
    readers |= dict.fromkeys((".cif", ".mmcif"), _from_cif)
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise FormatError(
            "is not a structure", file=path, remedy="give a map (.mrc) or a model (.pdb, .cif)"
        )
    if not path.is_file():
        raise FormatError("there is no such structure", file=path, remedy=way_out(path))
    points, weights, blur = reader(path)
    _, domains = kmeans2(points, min(_DOMAINS, len(points)), seed=0, minit="++")
    return _centred(path.stem, points, weights, domains, blur)


def _from_map(path: Path) -> tuple[np.ndarray, np.ndarray, float]:
    try:
        with mrcfile.open(path, permissive=False) as file:
            density = np.asarray(file.data, np.float32)
            voxel = float(file.voxel_size.x)
    except (ValueError, OSError) as error:
        raise FormatError(
            f"is not a readable MRC map: {str(error).splitlines()[0].rstrip('.')}",
            file=path,
            remedy="check it with `header`, or fetch it again",
        ) from error
    if density.ndim != 3 or min(density.shape) < 8:
        raise FormatError(f"is not a map: its shape is {density.shape}", file=path)
    if not voxel > 0:
        raise FormatError("gives no voxel size", file=path, remedy="set it with `alterheader`")
    if not np.isfinite(density).all():
        raise FormatError("has voxels that are not numbers", file=path, remedy="fetch it again")
    labels, count = ndimage.label(density > density.mean() + 3 * density.std())
    if not count:
        raise FormatError("is empty: no voxel stands out", file=path)
    sizes = np.bincount(labels.ravel())[1:]
    z, y, x = np.nonzero(np.isin(labels, 1 + np.flatnonzero(sizes >= 0.05 * sizes.max())))
    return np.stack([x, y, z], 1) * voxel, density[z, y, x], max(_ATOM_BLUR, 0.6 * voxel)


def _from_pdb(path: Path) -> tuple[np.ndarray, np.ndarray, float]:
    """ATOM and HETATM records by column (wwPDB format 3.3)."""
    found = []
    with path.open(encoding="latin-1") as file:
        for number, line in enumerate(file, 1):
            if line.startswith("ENDMDL"):
                break
            if line.startswith(("ATOM  ", "HETATM")) and line[17:20] != "HOH":
                element = line[76:78].strip() or line[12:14].strip(" 0123456789")
                found.append((number, (line[30:38], line[38:46], line[46:54]), element))
    return _from_atoms(path, found)


def _from_cif(path: Path) -> tuple[np.ndarray, np.ndarray, float]:
    """The loop ``_atom_site`` (PDBx/mmCIF dictionary); its values hold no blanks that matter here."""
    columns: list[str] = []
    found = []
    with path.open(encoding="latin-1") as file:
        for number, line in enumerate(file, 1):
            if line.startswith("_atom_site."):
                columns.append(line.split()[0].removeprefix("_atom_site."))
            elif columns and line.startswith(("ATOM", "HETATM")):
                # Only an atom's name is ever quoted, and a quote in it is never a blank.
                atom = dict(zip(columns, line.split(), strict=False))
                if atom.get("pdbx_PDB_model_num", "1") != "1":
                    break
                if atom.get("label_comp_id") != "HOH":
                    where = tuple(atom.get(f"Cartn_{axis}", "") for axis in "xyz")
                    found.append((number, where, atom.get("type_symbol", "C")))
            elif columns and line.startswith("#"):
                break
    return _from_atoms(path, found)


def _from_atoms(
    path: Path, found: Sequence[tuple[int, tuple[str, ...], str]]
) -> tuple[np.ndarray, np.ndarray, float]:
    points = np.empty((len(found), 3))
    for i, (number, where, _) in enumerate(found):
        try:
            points[i] = [float(value) for value in where]
        except ValueError:
            raise FormatError(
                f"has an atom at {' '.join(where).strip() or 'no place'}",
                file=path,
                row=number,
                remedy="fetch it again",
            ) from None
    if not np.isfinite(points).all():
        raise FormatError("has atoms whose positions are not numbers", file=path)
    weights = np.array([_ELECTRONS.get(element.upper(), 1.2) for _, _, element in found])
    if len(found) < 20 or not np.ptp(points, axis=0).max() > 10:
        raise FormatError(
            f"has {len(found)} atoms, which are too few for a protein",
            file=path,
            remedy="give a model with ATOM records",
        )
    return points, weights, _ATOM_BLUR


def density(structure: Structure, side: int, pixel_size: float) -> np.ndarray:
    """The structure's density on a grid, its centre at voxel ``side // 2``.

    Args:
        structure: what is drawn; what reaches out of the grid is left out.
        side: of the cube, px.
        pixel_size: Å/px.

    Returns:
        float32 [side, side, side], z, y, x, without the Gaussians' blur, which the projection
        applies in Fourier space.
    """
    place = structure.points / pixel_size + side // 2
    corner = np.floor(place).astype(np.int64)
    inside = ((corner >= 0) & (corner < side - 1)).all(1)
    corner, part = corner[inside], (place - corner)[inside]
    grid = np.zeros(side**3)
    for step in np.ndindex(2, 2, 2):
        share = np.where(step, part, 1 - part).prod(1)
        index = ((corner + step) @ [1, side, side * side]).astype(np.int64)
        grid += np.bincount(index, share * structure.weights[inside], side**3)
    return grid.reshape(side, side, side).astype(np.float32)


def blurred_density(structure: Structure, side: int, pixel_size: float) -> np.ndarray:
    """`density` with the Gaussians' blur: the map that particles of the structure are images of."""
    transform = np.fft.rfftn(density(structure, side, pixel_size))
    blurred = ndimage.fourier_gaussian(transform, structure.blur / pixel_size, n=side)
    return np.fft.irfftn(blurred, s=(side,) * 3, axes=(0, 1, 2)).astype(np.float32)


def _centred(
    name: str,
    points: np.ndarray,
    weights: np.ndarray,
    domains: np.ndarray,
    blur: float = _ATOM_BLUR,
) -> Structure:
    middle = np.average(points, axis=0, weights=weights)
    return Structure(
        name,
        (points - middle).astype(np.float32),
        weights.astype(np.float32),
        domains.astype(np.int32),
        blur,
    )


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)
