"""What RELION 3.1, 4 and 5 ask of the files that they read, to hold every file that is written against it.

After RELION's metadata_table.cpp and strings.cpp (how a STAR file is taken apart), metadata_label.h (types),
obs_model.cpp (optics), pipeline_jobs.h and pipeline_jobs.cpp (nodes, jobs and their options), displayer.cpp
and class_ranker.cpp (selections), ml_optimiser.cpp (optimisers). Options of 3.1 are those that RELION 3.1.3
itself writes for each type of job; of 5, those of ``job.star`` files that RELION 5 wrote.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

Version = Literal["3.1", "4", "5"]
VERSIONS: tuple[Version, ...] = ("3.1", "4", "5")
What = Literal[
    "particles", "classes", "selection", "nodes", "job", "optimiser", "pipeline", "table"
]

#: The newest version of STAR files that each can convert (metadata_table.h: CURRENT_MDT_VERSION).
_NEWEST: Mapping[Version, int] = {"3.1": 30001, "4": 30001, "5": 50001}
#: Longer names do not fit into a file system.
_LONGEST_NAME, _LONGEST_PATH = 255, 4095
_INT = {
    "rlnClassNumber",
    "rlnCtfDataAreCtfPremultiplied",
    "rlnGroupNumber",
    "rlnImageDimensionality",
    "rlnImageSize",
    "rlnJobIsContinue",
    "rlnJobIsTomo",
    "rlnJobType",
    "rlnNrOfSignificantSamples",
    "rlnOpticsGroup",
    "rlnPipeLineJobCounter",
    "rlnPipeLineNodeType",
    "rlnRandomSubset",
    "rlnSelected",
}
_TEXT = re.compile(r"(Name|Image|File|Label|Variable|Value|Mask\w*)$")
_NECESSARY = (
    ("rlnOpticsGroup",),
    ("rlnVoltage",),
    ("rlnSphericalAberration",),
    ("rlnImagePixelSize", "rlnMicrographPixelSize", "rlnMicrographOriginalPixelSize"),
)
_IMAGE = re.compile(r"(\d+)@(.+?)(:mrcs)?")
#: Numbers of 3.1; labels of 4 in its two dialects, and of 5.
_NODES: Mapping[Version, re.Pattern[str]] = {
    "3.1": re.compile(r"\d|1[0-5]"),
    "4": re.compile(
        r"(ParticleGroupMetadata|ParticlesData)\.star\.relion(\.\w+)*"
        r"|(Image2DGroupMetadata|ImagesData)\.star\.relion\.classaverages"
    ),
    "5": re.compile(
        r"ParticleGroupMetadata\.star\.relion(\.\w+)*|Image2DGroupMetadata\.star\.relion\.classaverages"
    ),
}
_QUEUE = "do_queue min_dedicated other_args qsub qsubscript queuename"
_HELIX = "do_helix helical_tube_outer_diameter helical_rise"
_REFINES = (
    "ctf_intact_first_peak do_apply_helical_symmetry do_combine_thru_disc do_ctf_correction"
    " do_helix do_local_search_helical_symmetry do_pad1 do_parallel_discio do_preread_images"
    " do_zero_mask fn_cont fn_img fn_mask fn_ref gpu_ids ini_high nr_mpi nr_pool nr_threads"
    " offset_range offset_step particle_diameter ref_correct_greyscale relax_sym sampling"
    " scratch_dir sym_name use_gpu"
)
_CLASSIFIES_2D = (
    "allow_coarser ctf_intact_first_peak do_bimodal_psi do_combine_thru_disc do_ctf_correction"
    " do_parallel_discio do_preread_images do_restrict_xoff do_zero_mask dont_skip_align fn_cont"
    " fn_img gpu_ids highres_limit nr_classes nr_mpi nr_pool nr_threads offset_range offset_step"
    f" particle_diameter psi_sampling range_psi scratch_dir tau_fudge use_gpu {_HELIX}"
)
_EXTRACTS = (
    "bg_diameter black_dust coords_suffix do_cut_into_segments do_extract_helical_tubes"
    " do_extract_helix do_invert do_norm do_recenter do_reextract do_rescale do_reset_offsets"
    " extract_size fndata_reextract nr_mpi recenter_x recenter_y recenter_z rescale star_mics"
    " white_dust"
)
_MODELS = (
    "ctf_intact_first_peak do_combine_thru_disc do_ctf_correction do_parallel_discio"
    " do_preread_images do_solvent fn_cont fn_img gpu_ids nr_classes nr_mpi nr_pool nr_threads"
    " particle_diameter scratch_dir sym_name use_gpu"
)
_PROCESSES = (
    "adhoc_bfac angpix autob_lowres do_adhoc_bfac do_auto_bfac do_skip_fsc_weighting fn_in"
    " fn_mask fn_mtf low_pass mtf_angpix"
)
_IMPORTS = (
    "Cs Q0 angpix beamtilt_x beamtilt_y do_other do_raw fn_in_other fn_in_raw fn_mtf"
    " is_multiframe kV node_type optics_group_name optics_group_particles"
)
_MASKS = (
    "angpix do_helix extend_inimask fn_in helical_z_percentage inimask_threshold lowpass_filter"
    " nr_threads width_mask_edge"
)
_EXTERNAL = "fn_exe in_3dref in_coords in_mask in_mic in_mov in_part nr_threads " + " ".join(
    f"param{n}_label param{n}_value" for n in range(1, 11)
)
_SGD = (
    "do_pad1 offset_range offset_step sampling sgd_fin_iter sgd_fin_resol sgd_fin_subset_size"
    " sgd_inbetween_iter sgd_ini_iter sgd_ini_resol sgd_ini_subset_size sgd_sigma2fudge_halflife"
    " sgd_write_iter skip_gridding"
)


def _options(since_3: str, only_3: str = "", since_4: str = "") -> Mapping[Version, frozenset[str]]:
    every = f"{since_3} {_QUEUE}".split()
    later = frozenset([*every, *since_4.split()])
    return {"3.1": frozenset([*every, *only_3.split()]), "4": later, "5": later}


#: Options of the types of job that are driven here, by the name of the job's folder.
OPTIONS: Mapping[str, Mapping[Version, frozenset[str]]] = {
    "Import": _options(_IMPORTS),
    "Extract": _options(_EXTRACTS, since_4="do_float16 do_fom_threshold minimum_pick_fom"),
    "Class2D": _options(
        _CLASSIFIES_2D,
        "nr_iter do_fast_subsets",
        "do_em do_grad nr_iter_em nr_iter_grad do_center",
    ),
    "Class3D": _options(
        f"{_REFINES} nr_classes nr_iter tau_fudge highres_limit dont_skip_align allow_coarser"
        " do_local_ang_searches sigma_angles do_fast_subsets",
        "ctf_corrected_ref skip_gridding",
        "trust_ref_size do_blush",
    ),
    "Refine3D": _options(
        f"{_REFINES} auto_faster auto_local_sampling do_solvent_fsc",
        "ctf_corrected_ref skip_gridding",
        "trust_ref_size do_blush",
    ),
    "MaskCreate": _options(_MASKS),
    "PostProcess": _options(_PROCESSES),
    "InitialModel": _options(_MODELS, _SGD, "nr_iter tau_fudge do_run_C1"),
    "External": _options(_EXTERNAL),
}


class Table(NamedTuple):
    """A table as RELION takes it apart."""

    name: str
    loop: bool
    labels: list[str]
    rows: list[list[str]]

    def column(self, label: str) -> list[str]:
        """The texts of a column, none where there is no such label."""
        if label not in self.labels:
            return []
        at = self.labels.index(label)
        return [row[at] for row in self.rows if at < len(row)]


def violations(path: Path, version: Version, what: What = "table") -> list[str]:
    """What RELION of this version would stop at, or misread, in a file; empty where all is well."""
    raw = path.read_bytes()
    found = [f"{len(path.name)} characters in its name"] * (len(path.name) > _LONGEST_NAME)
    found += ["a byte order mark"] * raw.startswith(b"\xef\xbb\xbf") + ["CR in a line end"] * (
        b"\r" in raw
    )
    found += ["no LF at its end"] * (not raw.endswith(b"\n"))
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return [*found, "bytes that are not UTF-8"]
    for number in re.findall(r"^# version (\d+)", text, re.MULTILINE):
        if int(number) > _NEWEST[version]:
            found.append(f"version {number}, newer than RELION {version}")
    tables, odd = _tables(text)
    found += odd
    for table in tables:
        found += _of_types(table)
    checks = {
        "particles": _of_particles,
        "classes": _of_classes,
        "selection": _of_selection,
        "nodes": lambda each: _of_nodes(each, version),
        "job": lambda each: _of_job(each, version),
        "optimiser": _of_optimiser,
        "pipeline": _of_pipeline,
        "table": lambda each: [],
    }
    return [*found, *checks[what]({table.name: table for table in tables})]


def _tables(text: str) -> tuple[list[Table], list[str]]:
    tables: list[Table] = []
    odd: list[str] = []
    reading = ended = False
    for line in text.split("\n"):
        words, quotes = _tokens(line)
        odd += quotes
        if line.startswith("data_"):
            tables.append(Table(line[5:].strip(), False, [], []))
            reading = ended = False
        elif not tables or line.strip().startswith("#"):
            continue
        elif line.strip() == "loop_":
            tables[-1] = tables[-1]._replace(loop=True)
        elif not line.strip():
            ended = ended or reading
        elif line.lstrip().startswith("_") and not reading:
            label, *values = words
            tables[-1].labels.append(label[1:])
            if not tables[-1].loop:
                odd += [f"{len(values)} values of {label}"] * (len(values) != 1)
                tables[-1].rows[:] = [[*(tables[-1].rows or [[]])[0], *values[:1]]]
        else:
            reading = True
            tables[-1].rows.append(words)
            odd += [
                f"a row of data_{tables[-1].name} after a blank line, where RELION stops"
            ] * ended
            if len(words) != len(tables[-1].labels):
                odd.append(f"{len(words)} fields for {len(tables[-1].labels)} labels: {line}")
    for table in tables:
        twice = {label for label in table.labels if table.labels.count(label) > 1}
        odd += [f"{label} twice in data_{table.name}" for label in sorted(twice)]
        odd += [f"label {label!r}" for label in table.labels if not re.fullmatch(r"rln\w+", label)]
    return tables, odd


def _tokens(line: str) -> tuple[list[str], list[str]]:
    """The fields of a line; a quote ends one where a blank or the line's end follows."""
    words: list[str] = []
    rest = line.strip(" \t")
    while rest and not rest.startswith("#"):
        if rest[0] in "'\"":
            end = re.search(rf"{rest[0]}(?=[ \t]|$)", rest[1:])
            if end is None:
                return words, [f"a quote that does not end: {line}"]
            word, rest = rest[1 : 1 + end.start()], rest[1 + end.end() :]
            if re.search(r"[ \t]{2}", word):
                return words, [f"two blanks in a name, of which RELION reads one: {line}"]
        else:
            word = re.split(r"[ \t]", rest, maxsplit=1)[0]
            rest = rest[len(word) :]
        words.append(word)
        rest = rest.lstrip(" \t")
    return words, []


def _of_types(table: Table) -> Iterator[str]:
    for at, label in enumerate(table.labels):
        for row in table.rows:
            if at >= len(row) or _TEXT.search(label):
                continue
            try:
                (int if label in _INT else float)(row[at])
            except ValueError:
                yield f"{label} is {row[at]!r}"


def _of_particles(tables: Mapping[str, Table]) -> list[str]:
    if "optics" not in tables:
        return ["no table data_optics"]
    optics, images = tables["optics"], tables.get("particles")
    found = [
        f"no {' or '.join(names)} in data_optics"
        for names in _NECESSARY
        if not any(name in optics.labels for name in names)
    ]
    found += ["no rlnImageSize in data_optics"] * ("rlnImageSize" not in optics.labels)
    names = optics.column("rlnOpticsGroupName")
    found += ["two optics groups of one name"] * (len(set(names)) < len(names))
    groups = optics.column("rlnOpticsGroup")
    found += [f"optics groups {groups}"] * (len(set(groups)) < len(groups) or not groups)
    if images is None:
        return [*found, "no table data_particles"]
    if "rlnOpticsGroup" not in images.labels or "rlnImageName" not in images.labels:
        return [*found, f"labels {images.labels}"]
    missing = set(images.column("rlnOpticsGroup")) - set(groups)
    found += [f"groups {sorted(missing)} that are not in data_optics"] * bool(missing)
    found += [word for name in images.column("rlnImageName") for word in _of_image(name)]
    halves = set(images.column("rlnRandomSubset"))
    return [*found, *[f"rlnRandomSubset is {halves}"] * (not halves <= {"1", "2"})]


def _of_image(name: str) -> Iterator[str]:
    match = _IMAGE.fullmatch(name)
    if match is None or int(match[1]) < 1:
        yield f"image {name!r}"
    elif len(match[2]) > _LONGEST_PATH or any(
        len(part) > _LONGEST_NAME for part in match[2].split("/")
    ):
        yield f"a path of {len(match[2])} characters"
    elif not match[3] and not match[2].endswith(".mrcs"):
        yield f"{match[2]} is no stack to RELION without :mrcs"


def _of_classes(tables: Mapping[str, Table]) -> list[str]:
    if list(tables) != [""] or "rlnReferenceImage" not in tables[""].labels:
        return [f"tables {list(tables)}, and RELION shows a single one of no name"]
    return [word for name in tables[""].column("rlnReferenceImage") for word in _of_image(name)]


def _of_selection(tables: Mapping[str, Table]) -> list[str]:
    if list(tables) != [""] or tables[""].labels != ["rlnSelected"] or not tables[""].loop:
        return ["no unnamed loop of rlnSelected"]
    wrong = set(tables[""].column("rlnSelected")) - set("0123456")
    return [f"rlnSelected is {sorted(wrong)}"] * bool(wrong)


def _of_nodes(tables: Mapping[str, Table], version: Version) -> list[str]:
    column = "rlnPipeLineNodeType" if version == "3.1" else "rlnPipeLineNodeTypeLabel"
    nodes = tables.get("output_nodes")
    if nodes is None or nodes.labels[:2] != ["rlnPipeLineNodeName", column]:
        return [f"no table output_nodes with {column}"]
    return [
        f"a node of type {kind}"
        for kind in nodes.column(column)
        if not _NODES[version].fullmatch(kind)
    ]


def _of_job(tables: Mapping[str, Table], version: Version) -> list[str]:
    kinds = ["rlnJobType"] if version == "3.1" else ["rlnJobTypeLabel", "rlnJobIsTomo"]
    job, values = tables.get("job"), tables.get("joboptions_values")
    if job is None or values is None:
        return [f"tables {list(tables)}"]
    found = [f"no {label}" for label in [*kinds, "rlnJobIsContinue"] if label not in job.labels]
    found += [f"{job.labels}"] * (version == "3.1" and "rlnJobTypeLabel" in job.labels)
    wanted = ["rlnJobOptionVariable", "rlnJobOptionValue"]
    return [*found, *[f"labels {values.labels}"] * (values.labels != wanted)]


def unknown_options(kind: str, version: Version, given: Sequence[str]) -> list[str]:
    """Options that RELION of this version would drop from a job of this type."""
    return sorted(set(given) - OPTIONS[kind][version])


def _of_optimiser(tables: Mapping[str, Table]) -> list[str]:
    general = tables.get("optimiser_general")
    needed = ("rlnModelStarFile", "rlnExperimentalDataStarFile")
    if general is None or general.loop:
        return ["no single values optimiser_general"]
    return [f"no {label}" for label in needed if not general.column(label)]


def _of_pipeline(tables: Mapping[str, Table]) -> list[str]:
    general = tables.get("pipeline_general")
    if general is None or general.loop or not general.column("rlnPipeLineJobCounter"):
        return ["no rlnPipeLineJobCounter in data_pipeline_general"]
    return []
