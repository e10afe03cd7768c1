"""The programs that RELION runs: how they end, what they leave, and what they refuse."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cryoray.boosting import within_job
from cryoray.cli import class_ranker, relion, relion_job
from cryoray.errors import FormatError
from cryoray.formats.class_selection import read_optimiser
from cryoray.formats.source import open_source
from cryoray.formats.star import parse
from cryoray.models import registry
from cryoray.records import Event
from cryoray.settings import ClassifySettings, RuntimeSettings, Settings, load
from cryoray.verbs.classify import classify
from cryoray.verbs.rank import rank
from tests.classes import COUNTS, write_class_job
from tests.examples import save_ensemble
from tests.formats.relion_rules import Version, violations
from tests.volumes import COUNTS as COUNTS_OF_VOLUMES
from tests.volumes import write_volume_job

Run = Callable[..., tuple[int, set[str]]]


@pytest.fixture(autouse=True)
def interrupts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Interrupts as they were, since a program that ends changes them; no ensemble from outside."""
    for name in [name for name in os.environ if name.startswith("CRYORAY_")]:
        monkeypatch.delenv(name)
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run a program in the project ``tmp_path``; its exit code and the exit files that it left."""

    def started(program: Callable[[], object], *arguments: str | Path) -> tuple[int, set[str]]:
        monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as left:
            program()
        code = left.value.code
        assert isinstance(code, int)
        return code, {path.name for path in tmp_path.rglob("RELION_JOB_*")}

    return started


def job(work: Callable[[Sequence[str]], None]) -> Callable[[], object]:
    return lambda: relion.run(work, control=("--pipeline_control", "--o"))


def test_success_leaves_its_file_alone(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "External/job001"
    folder.mkdir(parents=True)
    for name in ("SUCCESS", "FAILURE", "ABORTED"):
        (folder / f"RELION_JOB_EXIT_{name}").touch()
    seen: list[set[str]] = []

    def work(_: Sequence[str]) -> None:
        seen.append({path.name for path in folder.iterdir()})

    assert run(job(work), "--o", "External/job001/") == (0, {"RELION_JOB_EXIT_SUCCESS"})
    assert seen == [set()]


def test_failure_is_one_sentence_and_its_file(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    def work(_: Sequence[str]) -> None:
        raise FormatError("is not a STAR file", file="x.star", remedy="give one")

    assert run(job(work), "--o", "External/job001") == (1, {"RELION_JOB_EXIT_FAILURE"})
    assert capsys.readouterr().err == "x.star: is not a STAR file; give one.\n"


@pytest.mark.long
def test_an_abort_is_obeyed_while_working_and_removed(run: Run, tmp_path: Path) -> None:
    asked = tmp_path / "External/job001/RELION_JOB_ABORT_NOW"
    cleaned: list[str] = []

    def work(_: Sequence[str]) -> None:
        threading.Timer(0.2, asked.touch).start()
        try:
            time.sleep(60)
        finally:
            cleaned.append("up")

    began = time.monotonic()
    assert run(job(work), "--o", "External/job001/") == (2, {"RELION_JOB_EXIT_ABORTED"})
    assert time.monotonic() - began < 10
    assert cleaned == ["up"]


@pytest.mark.long
def test_an_abort_is_obeyed_where_interrupts_were_ignored(run: Run, tmp_path: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for what it starts with &
    test_an_abort_is_obeyed_while_working_and_removed(run, tmp_path)


def test_what_fails_because_it_was_interrupted_was_aborted(run: Run, tmp_path: Path) -> None:
    def work(_: Sequence[str]) -> None:
        (tmp_path / "External/job001/RELION_JOB_ABORT_NOW").touch()
        raise RuntimeError("the workers are gone")

    assert run(job(work), "--o", "External/job001/") == (2, {"RELION_JOB_EXIT_ABORTED"})


def test_exit_files_stand_where_pipeline_control_says(run: Run, tmp_path: Path) -> None:
    arguments = ("--o", "elsewhere", "--pipeline_control", "External/job001/")
    assert run(job(lambda _: None), *arguments) == (0, {"RELION_JOB_EXIT_SUCCESS"})
    assert (tmp_path / "External/job001/RELION_JOB_EXIT_SUCCESS").exists()


PIPELINES = {
    "3.1": ("_rlnPipeLineProcessType #2", ("_rlnPipeLineNodeType", "3", "5")),
    "4": (
        "_rlnPipeLineProcessTypeLabel #2",
        (
            "_rlnPipeLineNodeTypeLabel",
            "ParticlesData.star.relion",
            "ImagesData.star.relion.classaverages",
        ),
    ),
    "5": (
        "_rlnPipeLineProcessTypeLabel #2",
        (
            "_rlnPipeLineNodeTypeLabel",
            "ParticleGroupMetadata.star.relion",
            "Image2DGroupMetadata.star.relion.classaverages",
        ),
    ),
}


@pytest.mark.parametrize("version", PIPELINES)
def test_nodes_are_in_the_dialect_of_the_projects_pipeline(
    version: Version, tmp_path: Path
) -> None:
    column, (kind, particles, classes) = PIPELINES[version]
    (tmp_path / "default_pipeline.star").write_text(
        "data_pipeline_general\n\n_rlnPipeLineJobCounter 2\n\ndata_pipeline_processes\n\nloop_\n"
        f"_rlnPipeLineProcessName #1\n{column}\nImport/job001/ 0\n\ndata_pipeline_nodes\n\nloop_\n"
        f"_rlnPipeLineNodeName #1\n{kind} #2\nImport/job001/particles.star {particles}\n"
    )
    out = tmp_path / "External/job002"
    out.mkdir(parents=True)
    files = [("particles.star", "particles"), ("classes/class_averages.star", "classes")]
    relion.write_nodes(out, "External/job002/", files)
    nodes = parse(out / "RELION_OUTPUT_NODES.star")["output_nodes"]
    assert nodes.columns == ("rlnPipeLineNodeName", kind.removeprefix("_"))
    assert [nodes.fields(row) for row in range(2)] == [
        ["External/job002/particles.star", particles],
        ["External/job002/classes/class_averages.star", classes],
    ]
    assert violations(out / "RELION_OUTPUT_NODES.star", version, "nodes") == []


@pytest.mark.real
def test_nodes_of_a_real_relion_5_project_have_its_labels(real_data: Path) -> None:
    pipeline = parse(real_data / "relion5-project/default_pipeline.star")
    labels = set(pipeline["pipeline_nodes"].column("rlnPipeLineNodeTypeLabel"))
    assert PIPELINES["5"][1][1] in labels


@pytest.mark.long
def test_help_is_quick_and_leaves_no_file(tmp_path: Path) -> None:
    for module in ("class_ranker", "relion_job"):
        code = (
            f"import sys; sys.argv = ['x', '--o', 'out/', '--help']\n"
            f"from cryoray.cli import {module}\n"
            f"try: {module}.main()\n"
            "finally: print(sorted({'torch', 'ray', 'numpy', 'pydantic'} & set(sys.modules)))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
        )
        assert "--pipeline_control" in done.stdout
        assert done.stdout.endswith("[]\n")
    assert not (tmp_path / "out").exists()


#: As RELION 4 and 5 (pipeline_jobs.cpp) and facilities' automation call the original.
AS_RELION = (
    *("--opt", "Class2D/job002/run_it025_optimiser.star", "--o", "Select/job003/"),
    *("--fn_sel_parts", "particles.star", "--fn_sel_classavgs", "class_averages.star"),
    *("--python", "python", "--fn_root", "rank", "--do_granularity_features", "--auto_select"),
    *("--min_score", "0", "--pipeline_control", "Select/job003/"),
)


def test_class_ranker_takes_the_call_of_the_original(
    run: Run,
    tmp_path: Path,
    class_ensemble: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_class_job(tmp_path)
    monkeypatch.setenv("CRYORAY_RANK__ENSEMBLE", str(class_ensemble))
    assert run(class_ranker.main, *AS_RELION) == (0, {"RELION_JOB_EXIT_SUCCESS"})
    out = tmp_path / "Select/job003"
    assert len(parse(out / "particles.star")["particles"]) == sum(COUNTS)
    assert "rlnPredictedClassScore" in parse(out / "class_averages.star")[""].columns
    ranked = read_optimiser(out / "rank_optimiser.star")
    assert ranked.model == out / "rank_model.star"
    said = capsys.readouterr().out
    assert "Written 22 selected particles to: Select/job003/particles.star" in said
    assert "5 rows in = 4 out + 1 quarantined" in said


@pytest.mark.parametrize("given", [(), ("--min_score", "ensemble")])
def test_class_ranker_and_classify_keep_the_same_classes_of_one_job(
    run: Run, tmp_path: Path, given: tuple[str, ...]
) -> None:
    job = write_class_job(tmp_path, (7, 4, 0, 9, 2, 5, 3, 8, 6, 1, 4, 7))
    ensemble = tmp_path / "ensemble"
    save_ensemble(ensemble, "class2d", threshold=1e-6)
    chosen = ClassifySettings(ensemble=str(ensemble), review=False)
    kept = classify(job, tmp_path / "verdicts", Settings(classify=chosen))
    optimiser = "Class2D/job002/run_it025_optimiser.star"
    arguments = ("--opt", optimiser, "--o", "Select/job003/", "--auto_select", *given)
    assert run(class_ranker.main, *arguments, "--ensemble", ensemble)[0] == 0
    ours, theirs = (
        parse(folder / "backup_selection.star")[""].column("rlnSelected").tolist()
        for folder in (tmp_path / "Select/job003", kept)
    )
    assert ours == theirs
    assert {"0", "1"} == set(ours)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--ensemble", "nowhere"), "there is no such ensemble"),
        (("--train",), "--train is not done here: it trains RELION's own network"),
        (("--min_score", "high"), "--min_score is 'high', neither a number nor `ensemble`"),
        (("--min_score", "ensemble", "--relative_thresholds"), "ensemble is not relative"),
        (("--min_scoer", "0.5"), "unrecognized arguments: --min_scoer 0.5"),
    ],
)
def test_class_ranker_refuses_in_one_sentence(
    run: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    says: str,
) -> None:
    write_class_job(tmp_path)
    code, files = run(class_ranker.main, *AS_RELION, *arguments)
    assert (code, files) == (1, {"RELION_JOB_EXIT_FAILURE"})
    complaint = capsys.readouterr().err
    assert says in complaint
    assert complaint.count("\n") == 1


def test_class_ranker_takes_what_is_promoted_for_2d_classes_where_no_ensemble_is_named(
    run: Run, tmp_path: Path, class_ensemble: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_class_job(tmp_path)
    monkeypatch.setenv("CRYORAY_REGISTRY", str(tmp_path / "registry"))
    digest = registry.promote(class_ensemble, tmp_path / "registry", "class2d").digest
    events: list[Event] = []
    rank(
        tmp_path / "Class2D/job002/run_it025_optimiser.star",
        tmp_path / "Select/job004",
        load(),
        None,
        on_event=events.append,
    )
    assert events[-1].data["ensemble"] == digest
    assert run(class_ranker.main, *AS_RELION) == (0, {"RELION_JOB_EXIT_SUCCESS"})


def test_options_of_relions_own_network_are_taken_and_said_to_be_idle(
    run: Run, tmp_path: Path, class_ensemble: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_class_job(tmp_path)
    idle = (
        "--fn_pytorch_model",
        "x.pt",
        "--save_masks",
        "--radius_ratio",
        "0.9",
        "--ext",
        "ranked",
    )
    code, _ = run(class_ranker.main, *AS_RELION, *idle, "--ensemble", class_ensemble)
    assert code == 0
    said = capsys.readouterr().out
    assert re.search(r"not used: --fn_pytorch_model --radius_ratio --save_masks$", said, re.M)


@pytest.mark.ray
def test_a_job_judges_particles_and_their_classes(
    run: Run,
    tmp_path: Path,
    ray_cluster: RuntimeSettings,
    tiny_ensemble: Path,
    class_ensemble: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = write_class_job(tmp_path, (30, 12, 0, 20)) / "run_it025_data.star"
    name = data.relative_to(tmp_path)
    arguments = (
        *("--o", "External/job003/", "--in_parts", name, "--in_3dref", "ref.mrc", "--j", "2"),
        *("--ensemble", tiny_ensemble, "--class_ensemble", class_ensemble),
    )
    assert run(relion_job.main, *arguments) == (0, {"RELION_JOB_EXIT_SUCCESS"})
    assert "--in_3dref is ignored" in capsys.readouterr().out
    out = tmp_path / "External/job003"
    sides = ("particles", "discarded", "review", "quarantined")
    rows = {
        side: parse(out / f"{side}.star")["particles"].column("rlnImageName").tolist()
        for side in sides
    }
    assert sorted(itertools.chain(*rows.values())) == sorted(open_source(data).images)
    nodes = parse(out / "RELION_OUTPUT_NODES.star")["output_nodes"]
    assert nodes.column("rlnPipeLineNodeName").tolist() == [
        *(f"External/job003/{side}.star" for side in sides[:3] if rows[side]),
        "External/job003/classes/class_averages.star",
    ]
    assert not (out / "cryoray").exists()

    classes = pq.read_table(out / "classes/verdicts.parquet")
    selected = parse(out / "classes/backup_selection.star")[""].numbers("rlnSelected") == 1
    assert selected[[0, 1, 3]].tolist() == [v == "keep" for v in classes["verdict"].to_pylist()]
    kept = parse(out / "particles.star")["particles"].numbers("rlnClassNumber").astype(int)
    assert selected[kept[kept > 0] - 1].all()
    table = pq.read_table(out / "verdicts.parquet")
    scores = np.array(
        [classes["score"][i].as_py() for i in (0, 1)] + [0, classes["score"][2].as_py()]
    )
    numbers = open_source(data).metadata["rlnClassNumber"].astype(int)
    assert [s.as_py() for s in table["class_score"]] == [
        pytest.approx(scores[n - 1]) if n else None for n in numbers
    ]


@pytest.mark.long
def test_a_job_judges_3d_classes_and_gives_their_particles(
    run: Run, tmp_path: Path, class_ensemble: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_volume_job(tmp_path) / "run_it025_data.star"
    name = data.relative_to(tmp_path)
    arguments = ("--o", "External/job005/", "--in_parts", name, "--kind", "class3d")
    code, _ = run(relion_job.main, *arguments, "--ensemble", class_ensemble)
    assert code == 0, capsys.readouterr().err
    out = tmp_path / "External/job005"
    sides = ("particles", "particles_discarded", "particles_review", "particles_quarantined")
    counts = {side: len(parse(out / f"{side}.star")["particles"]) for side in sides}
    assert sum(counts.values()) == len(open_source(data))
    nodes = parse(out / "RELION_OUTPUT_NODES.star")["output_nodes"]
    assert nodes.column("rlnPipeLineNodeName").tolist() == [
        f"External/job005/{side}.star" for side in sides[:3] if counts[side]
    ]
    assert (out / "report.html").is_file()


@pytest.mark.long
def test_a_job_may_leave_nothing_under_review(
    run: Run, tmp_path: Path, class_ensemble: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_volume_job(tmp_path) / "run_it025_data.star"
    monkeypatch.setattr(within_job, "_DOUBTFUL", (-20.0, 20.0))
    arguments = ("--o", "External/job005/", "--in_parts", data.relative_to(tmp_path))
    for review, reviewed in (("Yes", sum(COUNTS_OF_VOLUMES)), ("No", 0)):
        wanted = ("--kind", "class3d", "--ensemble", class_ensemble, "--review", review)
        assert run(relion_job.main, *arguments, *wanted)[0] == 0
        star = parse(tmp_path / "External/job005/particles_review.star")
        assert len(star["particles"]) == reviewed


def test_results_of_a_job_give_way_to_newer_ones(tmp_path: Path) -> None:
    out = tmp_path / "External/job003"
    for run in ("older", "newer"):
        (out / "cryoray/classes").mkdir(parents=True)
        for name in ("kept.star", "review.star", f"classes/{run}.star"):
            (out / "cryoray" / name).write_text(run)
        relion_job._move(out / "cryoray", out)
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.star")} == {
        *("particles.star", "review.star", "classes/newer.star")
    }
    assert (out / "particles.star").read_text() == "newer"


def test_a_job_without_particles_says_what_to_fill_in(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = (1, {"RELION_JOB_EXIT_FAILURE"})
    assert run(relion_job.main, "--o", "External/job001/", "--in_mics", "m.star") == failed
    assert "fill in Input particles (--in_parts)" in capsys.readouterr().err
