"""Every tunable, in frozen models, one per verb; command line, flows and service share them.

Values come, strongest first, from the caller (command line, flow parameters), from ``CRYORAY_…``
variables (``CRYORAY_TRAIN__EPOCHS=20``), from a TOML file (``[train] epochs = 20``), from the defaults.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from cryoray.errors import SettingsError, nearby
from cryoray.policies import Policy, checked
from cryoray.records import Kind


def _absolute(value: object) -> object:
    """Ray workers have another working directory, so no relative path may reach one."""
    return Path(value).expanduser().absolute() if isinstance(value, str | Path) else value


def _place(value: object) -> object:
    """A file by its absolute path; a URL as it is."""
    given = isinstance(value, str | Path) and "://" not in str(value)
    return str(_absolute(value)) if given else value


AbsolutePath = Annotated[Path, BeforeValidator(_absolute)]
FileOrUrl = Annotated[str, BeforeValidator(_place)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


#: How much is done by threads of this process before Ray is started.
LocalMax: Any = Field(16384, ge=0, description="raw MiB up to which no Ray is started; 0: always")


#: One rule for all folders that are replaced (`formats.files.check_same`).
Replace: Any = Field(False, description="replace what OUT holds of another source, too")


def _by_new_names(given: Any, renamed: Mapping[str, str]) -> Any:
    """Values by the names that they have now; what is given by a former one gives way to the new one."""
    if not isinstance(given, Mapping) or renamed.keys().isdisjoint(given):
        return given
    known = {name: value for name, value in given.items() if name not in renamed}
    for old, new in renamed.items():
        if old not in given:
            continue
        before, after = given[old], known.setdefault(new, given[old])
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            known[new] = {**before, **after}
        warnings.warn(
            f"the setting {old} is now {new}; the old name goes with the next release",
            FutureWarning,
            stacklevel=2,
        )
    return known


class Section(BaseModel):
    """A frozen group of settings that knows all its keys, and for one release their former names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Former names, and what each is now.
    renamed: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _by_former_names(cls, given: Any) -> Any:
        return _by_new_names(given, cls.renamed)


class RuntimeSettings(Section):
    """How Ray is started or joined."""

    address: str | None = Field(
        None,
        description="Ray to join; None: a local one; http://…: flows submit jobs to its dashboard",
    )
    cpus: int | None = Field(
        None, ge=1, description="logical CPUs of a local Ray; None: at least 4"
    )
    gpus: int | None = Field(None, ge=0, description="GPUs of a local Ray; None: all that it finds")
    object_store_mib: int = Field(1024, ge=100, description="object store of a local Ray, MiB")
    dashboard: bool = Field(True, description="start Ray's dashboard with a local Ray")
    dashboard_port: int = Field(
        8265, ge=0, le=65535, description="first port tried by the dashboard"
    )


class PreparationSettings(Section):
    """How a raw image becomes a network's input; an ensemble carries these with it."""

    box: int = Field(64, ge=16, le=512, multiple_of=2, description="side of the prepared image, px")
    diameter: float | None = Field(
        None, gt=0, description="particle diameter, Å; None: the whole box"
    )
    window: float = Field(
        1.5, ge=1.0, le=4.0, description="window side as a multiple of the diameter"
    )
    # Left out where it is the whole box, so that digests of sets and ensembles without stay what they were.
    geometry: Literal["box", "job"] = Field(
        "box",
        exclude_if=lambda value: value == "box",
        description="2D classes: window of the whole box, or by the job's mask and extent of protein",
    )
    contrast: Literal["auto", "bright", "dark"] = Field("auto", description="protein in the source")
    features: tuple[str, ...] | None = Field(None, description="metadata used; None: all; (): none")
    clip: float = Field(
        6.0, gt=0, description="outliers beyond this many standard deviations are cut"
    )


class IngestSettings(Section):
    """Source files to a prepared set."""

    renamed: ClassVar[Mapping[str, str]] = {"alone_mib": "local_max_mib"}

    kind: Kind = "particle"
    group: str | None = Field(None, description="project name; None: the source's folder")
    selection: AbsolutePath | None = Field(
        None, description="None: the selection beside the source"
    )
    preparation: PreparationSettings = PreparationSettings()
    dtype: Literal["float16", "float32"] = "float16"
    range_mib: int = Field(64, ge=1, description="raw MiB that one task reads, up to twice as many")
    images_per_file: int = Field(65536, ge=1, description="images in one images-*.mrcs")
    max_quarantined: Fraction = 0.01
    add: bool = Field(False, description="keep the set, and ingest what it does not have yet")
    local_max_mib: int = LocalMax
    gpu: bool = Field(False, description="prepare on GPUs, shared by the workers of each")
    replace: bool = Replace


class SimulateSettings(Section):
    """A small facility day with known truth."""

    projects: int = Field(3, ge=1, description="collections, each of another protein")
    first: int = Field(
        1, ge=1, description="number of the first; a number and a seed make a project"
    )
    images: int = Field(1000, ge=10, description="images per collection")
    per_micrograph: int = Field(100, ge=1, description="images per micrograph")
    box: int = Field(128, ge=32, multiple_of=2, description="raw box, px")
    pixel_size: float | None = Field(
        None, gt=0, description="Å/px; None: chosen to suit the protein"
    )
    snr: float = Field(
        0.1, gt=0, description="CTF-filtered signal in the mask over noise, variances"
    )
    junk: Fraction = Field(0.4, description="fraction that is junk, its kinds in equal parts")
    human_error: Fraction = Field(0.01, description="rate at which the simulated person mislabels")
    micrographs: bool = Field(
        False,
        description="simulate whole micrographs, pick them as people do, and write them as well",
    )
    written: bool = Field(True, description="whether micrographs are written, or boxes alone")
    dose: float | None = Field(
        None,
        gt=0,
        description="electrons per Å² that count, which set the noise of micrographs; None: by snr",
    )
    version: Literal["raw", "denoised", "low-passed", "8-bit", "masked", "binned"] = Field(
        "raw", description="what became of the images of simulated micrographs"
    )
    backgrounds: AbsolutePath | None = Field(
        None, description="folder of real micrographs for particles to lie on; None: simulated ones"
    )
    structure: AbsolutePath | None = Field(
        None, description="map or PDB/mmCIF; None: random phantoms"
    )
    seed: int = 0


class AugmentSettings(Section):
    """What a training image may look like without changing what it is."""

    renamed: ClassVar[Mapping[str, str]] = {"rings": "ctf_modulation"}

    rotate: bool = Field(True, description="any in-plane angle, and mirrors")
    shift: float = Field(0.04, ge=0, le=0.5, description="standard deviation, fraction of the box")
    magnify: float = Field(
        0.06, ge=0, le=0.5, description="standard deviation of log magnification"
    )
    contrast: float = Field(0.15, ge=0, le=1, description="standard deviation of log contrast")
    filter: float = Field(0.2, ge=0, le=2, description="strength of smooth random Fourier filters")
    ctf_modulation: float = Field(
        0.15, ge=0, le=1, description="greatest depth of a CTF-like modulation of the spectrum"
    )
    noise: float = Field(
        0.15, ge=0, le=2, description="largest additive noise, white to 1/f, background deviations"
    )
    mask: Fraction = Field(0.05, description="of the images, those masked by a circle")
    smooth: Fraction = Field(
        0.0, description="of the images, those low-passed, as denoised ones are"
    )


class FitSettings(Section):
    """One network fitted."""

    renamed: ClassVar[Mapping[str, str]] = {"average": "ema_decay"}

    epochs: int = Field(60, ge=1)
    batch: int = Field(64, ge=2, description="images per step over all workers")
    learning_rate: float = Field(3e-3, gt=0)
    weight_decay: float = Field(2e-2, ge=0)
    warmup: Fraction = Field(0.1, description="fraction of steps in which the rate rises")
    label_smoothing: Fraction = 0.02
    metadata_dropout: Fraction = Field(
        0.3, description="how often all metadata of an image are hidden"
    )
    ema_decay: Fraction = Field(
        0.998, description="decay of the exponential moving average of the weights, which is kept"
    )
    augment: AugmentSettings = AugmentSettings()


class OperatingPointSettings(Section):
    """Where the line between keep and discard is drawn (design: the decision)."""

    policy: Policy = Field(
        "expected",
        description="bound the expected share of good images lost in a new project, or each project's",
    )
    bound: Fraction = Field(0.03, description="share of good images lost that must not be exceeded")
    confidence: Fraction = Field(
        0.95, description="of policy each: probability with which a new project stays within"
    )
    prefer: Literal["accuracy", "junk"] = Field("accuracy", description="among thresholds within")


class TrainSettings(Section):
    """A prepared set to an ensemble."""

    fit: FitSettings = FitSettings()
    operating_point: OperatingPointSettings = OperatingPointSettings()
    hold_out: str | None = Field(None, description="groups, comma separated, or a fraction")
    split_by: Literal["auto", "project", "micrograph"] = "auto"
    folds: int = Field(3, ge=2, description="cross-fitting folds over groups")
    workers: int | None = Field(
        None, ge=1, description="None: one per GPU or core, up to folds + 1"
    )
    gpu: bool = False
    seed: int = 0
    features: tuple[str, ...] | None = Field(None, description="None: all in the sets; (): none")
    reasons: bool = Field(
        True, description="learn to name reasons of discards, where sets have them"
    )
    context: bool | None = Field(
        None,
        description="learn to judge within a project by its profile; None: of at least 40 projects",
    )
    context_steps: int = Field(3000, ge=1, description="of each fit for that, 12 projects in each")


class TuneSettings(Section):
    """What a search tries."""

    samples: int = Field(24, ge=1, description="trials")
    depth: tuple[int, ...] = Field((1, 2, 3, 5, 7), min_length=1, description="residual blocks")
    width: tuple[int, ...] = Field((8, 16, 24, 32), min_length=1, description="channels")
    activation: tuple[Literal["relu", "silu", "gelu"], ...] = Field(
        ("relu", "silu", "gelu"), min_length=1
    )
    learning_rate: tuple[float, float] = Field((3e-4, 1e-2), description="least and most")
    augment: tuple[float, ...] = Field(
        (0.0, 0.5, 1.0, 1.5), min_length=1, description="factors of every strength of augmentation"
    )
    replace: bool = Replace


class EvaluateSettings(Section):
    """An ensemble's numbers on groups that it has not seen."""

    cross_validate: int | None = Field(
        None, ge=2, description="goes with the next release: `cross_validate.folds`"
    )
    repeats: int = Field(
        1, ge=1, description="goes with the next release: `cross_validate.repeats`"
    )
    ablate: bool = Field(False, description="what image and metadata are worth")
    shuffles: int = Field(5, ge=2, description="of each metadata column, for its importance")
    ablate_images: int = Field(
        20_000, ge=100, description="images that are looked at for it, at most"
    )
    local_max_mib: int = LocalMax
    replace: bool = Replace


class CrossValidateSettings(Section):
    """What a training is worth, by training anew without each fold of groups."""

    folds: int = Field(
        5, ge=2, description="over groups; each is left out once and the rest trained again"
    )
    repeats: int = Field(1, ge=1, description="cross-validations with other seeds")
    ablate: bool = Field(
        False, description="also trained again without metadata, and without images"
    )


class AdaptSettings(Section):
    """An ensemble set right for one project."""

    images: int = Field(
        10_000, ge=100, description="images of the project that are looked at, at most"
    )


class ClassifySettings(Section):
    """A source to verdicts."""

    ensemble: str | None = Field(
        None, description="folder, or name in the registry; None: the default of the kind"
    )
    class_ensemble: str | None = Field(
        None, description="judges the 2D classes of the particles as well; folder or name"
    )
    kind: Kind | Literal["class3d"] | None = Field(
        None, description="None: the ensemble's; class3d is judged with an ensemble of class2d"
    )
    policy: Annotated[str, AfterValidator(checked)] | None = Field(
        None,
        description="expected, each, threshold=X or share=X; None: the ensemble's own, `expected` where"
        " it has that",
    )
    review: bool = Field(
        True, description="False: nothing is left for a person to review; the threshold decides"
    )
    profile: str | None = Field(
        None,
        description="profile.json of the project, or none: judge without; None: one is made of the source",
    )
    review_at_most: Fraction = Field(
        0.05, description="share of a source's images that may be under review, rounded up"
    )
    score_column: bool = Field(False, description="rlnCryorayScore in the STAR files written")
    also_star: bool = Field(False, description="of a .cs source, STAR files for RELION too")
    range_mib: int = Field(64, ge=1)
    local_max_mib: int = LocalMax
    max_quarantined: Fraction = Field(
        0.01,
        description="of the rows, those that may be unreadable before the run counts as failed",
    )
    replace: bool = Replace


class ValidationSettings(Section):
    """What the choices did to the map and to 2D images."""

    pixel_size: float | None = Field(None, gt=0, description="Å/px of maps; None: their header's")
    mask_threshold: float | None = Field(None, description="density; None: Otsu's")
    mask_lowpass: float = Field(15.0, gt=0, description="Å, before the threshold")
    mask_extend: float = Field(3.0, ge=0, description="px by which the mask grows")
    mask_edge: float = Field(6.0, ge=0, description="px of the mask's soft edge")
    random_phases: int = Field(5, ge=1, description="draws of random phases, averaged")
    symmetry: str = Field("C1", description="point group: Cn, Dn, T, O or I, as RELION has it")
    random_subsets: int = Field(5, ge=0, description="random subsets as large as the kept")
    particles: int | None = Field(None, ge=2, description="particles per task; None: shared out")
    local_max_mib: int = Field(
        512, ge=0, description="of images that are worked on without Ray, at most; 0: always on Ray"
    )
    class_particles: int = Field(
        2000, ge=8, description="particles of a class that are averaged, at most"
    )
    diameter: float | None = Field(
        None, gt=0, description="Å, of the mask of 2D classes; None: 0.8 box"
    )
    seed: int = 0
    replace: bool = Replace


class WorkflowSettings(Section):
    """Particles to a refined map, in RELION's pipeline."""

    renamed: ClassVar[Mapping[str, str]] = {"look": "seconds_per_image"}

    judge: bool = Field(
        True, description="False: without cryoray, every particle and class is kept"
    )
    diameter: float | None = Field(None, gt=0, description="of the mask, Å; None: 0.8 box")
    symmetry: str = Field("C1", description="point group, as RELION has it")
    classes_2d: int = Field(50, ge=1)
    iterations_2d: int = Field(25, ge=1)
    classes_3d: int = Field(4, ge=1)
    iterations_3d: int = Field(25, ge=1)
    reextract: bool = Field(
        True, description="extract what is kept again, centred, where its micrographs are there"
    )
    micrographs: AbsolutePath | None = Field(
        None,
        description="STAR file of those; None: of the Extract job that the particles come from",
    )
    extract_box: int | None = Field(
        None,
        ge=16,
        multiple_of=2,
        description="of what is extracted again, px of the micrographs; None: as particles have it",
    )
    rescaled_box: int | None = Field(
        None,
        ge=16,
        multiple_of=2,
        description="px to which it is rescaled; None: that of particles, or with extract_box not at all",
    )
    initial_resolution: float = Field(
        60.0, gt=0, description="Å, to which references are filtered at first"
    )
    mpi: int = Field(1, ge=1, description="MPI processes; a refinement has three at least")
    threads: int = Field(1, ge=1, description="threads of each")
    gpu: str | None = Field(None, description="RELION's list of GPUs; '': all; None: none")
    preread: bool = Field(True, description="hold all images in memory")
    options: dict[str, dict[str, str]] = Field(
        {}, description="of RELION's job.star, by stage: over all others"
    )
    seconds_per_image: float = Field(
        2.0,
        gt=0,
        description="seconds a person takes for one image, for the report; assumed, not measured",
    )
    replace: bool = Field(False, description="replace the report on other particles of the project")

    @model_validator(mode="after")
    def _no_larger(self) -> Self:
        if self.extract_box and self.rescaled_box and self.rescaled_box > self.extract_box:
            raise ValueError(
                f"rescaled_box ({self.rescaled_box}) is larger than extract_box ({self.extract_box})"
            )
        return self


class RankSettings(Section):
    """Classes ranked in place of `relion_class_ranker`."""

    ensemble: str | None = Field(
        None,
        description="folder, or name in the registry; None: classify.ensemble, or class2d's default",
    )


class ServeSettings(Section):
    """The service."""

    ensembles: tuple[str, ...] = Field(
        (), description="folders, or names in the registry; (): the default of each kind"
    )
    shadow: str | None = Field(
        None,
        description="ensemble that judges the same images for comparison; its verdicts are not returned",
    )
    roots: tuple[AbsolutePath, ...] = Field((), description="sources lie under these; (): here")
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    token: str | None = Field(None, repr=False, description="None: CRYORAY_TOKEN or its file")
    judges: int | None = Field(
        None, ge=1, description="judge replicas; None: one per GPU, else per core up to 8"
    )
    preparers: int | None = Field(
        None, ge=1, description="preparer replicas; None: one per core up to 8"
    )
    batch: int = Field(512, ge=1, description="images judged together, across requests")
    batch_wait: float = Field(0.02, ge=0, description="seconds a batch waits to be filled")
    max_rows: int = Field(100_000, ge=1, description="rows in one request")
    max_upload_mib: int = Field(512, ge=1)
    ledger: FileOrUrl | None = Field(
        None, description="sessions to show: SQLite file or URL; None: no pages"
    )
    max_queued: int = Field(64, ge=1, description="requests in flight before 429")
    timeout: float = Field(600.0, gt=0, description="seconds for one request before 504")
    poll: float = Field(2.0, gt=0, description="seconds between looks for a promoted ensemble")
    probation: float = Field(
        600.0, ge=0, description="seconds in which a promoted ensemble that fails is rolled back"
    )
    gpus: float | None = Field(None, ge=0, description="GPUs of a judge; None: equal shares of all")


class WatchSettings(Section):
    """A session: what is watched, and how."""

    renamed: ClassVar[Mapping[str, str]] = {"at_once": "max_concurrent"}

    out: AbsolutePath | None = Field(
        None, description="folder of sessions; None: cryoray in the watched folder"
    )
    ledger: FileOrUrl | None = Field(
        None, description="SQLite file or postgresql:// URL; None: ledger.sqlite in that folder"
    )
    service: str | None = Field(
        None,
        description="URL of a service; start: one on Ray is started; None: this process judges",
    )
    ensemble: str | None = Field(None, description="of the service's; None: its first of particles")
    class_ensemble: str | None = Field(None, description="the same for 2D classes")
    poll: float = Field(2.0, gt=0, description="seconds between looks")
    settle: float = Field(15.0, ge=0, description="seconds without a change before a file is taken")
    rescan: float = Field(60.0, gt=0, description="seconds between looks at files that had settled")
    patience: float = Field(
        600.0,
        ge=0,
        description="seconds that a settled but incomplete stack is waited for, at most",
    )
    ignore: tuple[str, ...] = Field((), description="patterns of paths below the folder")
    roots: tuple[AbsolutePath, ...] = Field(
        (), description="further folders that links and STAR files in the watched one may lead to"
    )
    max_concurrent: int = Field(4, ge=1, description="stacks that are judged at the same time")
    # Other than in bulk (1 %, at least `records.QUARANTINE_FLOOR` rows): a session counts by the stack, often
    # of less than a hundred images, and one that was cut off or is still written must not pass.
    max_quarantined: Fraction = Field(0.1, description="of a stack; beyond it, it is rejected")
    merge_every: float = Field(
        300.0, ge=0, description="seconds between merged kept, discarded and review STAR files"
    )
    grid: str = Field(
        "auto",
        description="epu, serialem, auto, none, or a pattern with (?P<square>) and (?P<hole>)",
    )
    webhook: str | None = Field(None, description="URL that gets each event as JSON")
    micrographs_between_false_alarms: float = Field(
        20_000.0, gt=1, description="in the mean, at least"
    )
    audit: int = Field(50, ge=0, description="images of the blind sample")
    trainable: bool = Field(False, description="whether overrides may become training labels")


class SelectSettings(Section):
    """The page on which a selection is made."""

    port: int = Field(0, ge=0, le=65535, description="port on this machine; 0: a free one")
    low_pass: float = Field(20.0, ge=0, description="of particles at first, Å; 0: none")
    browser: bool = Field(True, description="open the page in the browser")
    replace: bool = Replace


class NightlySettings(Section):
    """What people said in sessions, to a challenger of the ensemble that is served."""

    judge_share: Fraction = Field(
        0.3, description="of the sessions, those that judge ensembles and never train one"
    )
    least: int = Field(20, ge=1, description="good and bad images each, of those labelled blind")
    confidence: Fraction = Field(0.95, description="with which a challenger must be better")
    resamples: int = Field(2000, ge=100, description="of the bootstrap")
    seed: int = 0


class _Variables(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="CRYORAY_", env_nested_delimiter="__")


class _FormerSections(_Variables):
    """Sections by their former names, as variables have them: ``CRYORAY_PROOF__SYMMETRY=D7``."""

    proof: dict[str, Any] = {}


class Settings(_Variables):
    """All sections, as a TOML file holds them."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid")

    #: Former names of sections, and what each is now.
    renamed: ClassVar[Mapping[str, str]] = {"proof": "validation"}

    registry: AbsolutePath = Field(
        Path("~/.local/share/cryoray/ensembles").expanduser(),
        description="folder of named ensembles",
    )
    runtime: RuntimeSettings = RuntimeSettings()
    simulate: SimulateSettings = SimulateSettings()
    ingest: IngestSettings = IngestSettings()
    train: TrainSettings = TrainSettings()
    tune: TuneSettings = TuneSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    cross_validate: CrossValidateSettings = CrossValidateSettings()
    adapt: AdaptSettings = AdaptSettings()
    classify: ClassifySettings = ClassifySettings()
    rank: RankSettings = RankSettings()
    workflow: WorkflowSettings = WorkflowSettings()
    validation: ValidationSettings = ValidationSettings()
    serve: ServeSettings = ServeSettings()
    watch: WatchSettings = WatchSettings()
    select: SelectSettings = SelectSettings()
    nightly: NightlySettings = NightlySettings()

    @model_validator(mode="before")
    @classmethod
    def _by_former_names(cls, given: Any) -> Any:
        return _by_new_names(given, cls.renamed)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Caller, then variables, then the TOML file."""
        file = cls.model_config.get("toml_file")
        toml = (TomlConfigSettingsSource(settings_cls),) if file else ()
        return (init_settings, env_settings, EnvSettingsSource(_FormerSections), *toml)


def load(file: Path | None = None, **overrides: Any) -> Settings:
    """Settings from the caller's nested ``overrides``, the environment, and the TOML ``file``.

    Raises:
        SettingsError: the file is missing or not TOML, or a value is unknown or out of range.
    """
    if file is not None and not Path(file).is_file():
        raise SettingsError("there is no such settings file", file=file, remedy=nearby(file))

    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=file)

    try:
        return FromFile(**overrides)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        wrong = first["msg"].removeprefix("Value error, ")
        wrong = wrong[0].lower() + wrong[1:]
        if not isinstance(
            first["input"], Mapping
        ):  # of a whole section the sentence names what is wrong
            wrong += f" (given: {first['input']!r})"
        raise SettingsError(
            f"{key}: {wrong}",
            file=file,
            remedy="see `cryoray VERB --help` and the page of settings in the documentation",
        ) from error
    except ValueError as error:  # tomllib.TOMLDecodeError is one
        raise SettingsError(f"not a TOML file: {error}", file=file) from error
