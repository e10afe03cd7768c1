"""A folder of results gives way to the same results anew, and never unasked to results on something else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cryoray.cli import relion_job
from cryoray.errors import InputError
from cryoray.formats.mrc import StackWriter
from cryoray.settings import ClassifySettings, Settings
from cryoray.verbs.classify import classify
from cryoray.verbs.evaluate import evaluate
from cryoray.verbs.ingest import ingest
from cryoray.verbs.validate_fsc import validate_fsc
from tests.classes import write_class_job
from tests.examples import save_ensemble, write_project
from tests.verbs.untrained import make_ensemble, make_set


@pytest.fixture
def settings(tiny_ensemble: Path) -> Settings:
    return Settings(classify=ClassifySettings(ensemble=str(tiny_ensemble)))


def with_(settings: Settings, **classify: object) -> Settings:
    return settings.model_copy(update={"classify": settings.classify.model_copy(update=classify)})


def images_in(verdicts: Path) -> int:
    return int(pq.read_metadata(verdicts / "verdicts.parquet").num_rows)


def test_verdicts_on_another_source_are_not_lost(settings: Settings, tmp_path: Path) -> None:
    one = write_project(tmp_path / "one", (12,))
    two = write_project(tmp_path / "two", (9,))
    out = classify(one, tmp_path / "out", settings)
    with pytest.raises(InputError) as refused:
        classify(two, out, settings)
    assert str(refused.value) == (
        f"{out}: is a folder of verdicts of another source ({one}), and it would be replaced; choose"
        " another folder, or add --replace if it is no longer needed."
    )
    assert images_in(out) == 12
    assert images_in(classify(two, out, with_(settings, replace=True))) == 9


def test_another_ensemble_judges_the_same_source_again(settings: Settings, tmp_path: Path) -> None:
    """As after an upgrade, or when one was promoted: the command is the same."""
    star = write_project(tmp_path / "one", (12,))
    out = classify(star, tmp_path / "out", settings)
    other = save_ensemble(tmp_path / "other", seed=7)
    classify(star, out, with_(settings, ensemble=str(other.path)))
    about = pq.read_schema(out / "verdicts.parquet").metadata
    assert other.digest.encode() in about.values()


def test_verdicts_on_classes_beside_those_on_particles_are_not_lost(
    settings: Settings, class_ensemble: Path, tmp_path: Path
) -> None:
    data = next(write_class_job(tmp_path).glob("*_data.star"))
    both = with_(settings, class_ensemble=str(class_ensemble))
    out = classify(data, tmp_path / "out", both)
    with pytest.raises(InputError, match=r"verdicts of another kind \(class2d\)"):
        classify(data, out, settings)
    assert (classify(data, out, both) / "classes" / "verdicts.parquet").is_file()


def test_the_same_source_again_or_grown_replaces_its_verdicts(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    star = write_project(tmp_path / "day" / "one", (12,))
    out = tmp_path / "out"
    assert images_in(classify(star, out, settings)) == 12
    monkeypatch.chdir(star.parent)
    write_project(star.parent, (12, 9))
    assert images_in(classify(Path("../one") / star.name, out, settings)) == 21
    assert images_in(classify(star, out, with_(settings, policy="share=0.3"))) == 21
    write_project(tmp_path / "day" / "two", (9,))
    classify(tmp_path / "day", out, settings)
    assert {name: images_in(out / name) for name in ("one", "two")} == {"one": 21, "two": 9}
    with pytest.raises(InputError, match=r"another source \(.*two/particles.star\)"):
        classify(star, out, settings)


def test_relions_job_does_not_replace_verdicts_on_other_particles(
    settings: Settings, tiny_ensemble: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (write_project(tmp_path / name, (n,)) for name, n in (("one", 12), ("two", 9)))
    monkeypatch.chdir(tmp_path)
    job = ["--o", "External/job001/", "--ensemble", str(tiny_ensemble), "--in_parts"]
    relion_job._work([*job, str(one)])
    relion_job._work([*job, str(one)])
    with pytest.raises(
        InputError, match=r"External/job001: is a folder of verdicts of another source"
    ):
        relion_job._work([*job, str(two)])
    assert images_in(tmp_path / "External/job001") == 12
    relion_job._work([*job, str(two), "--replace", "Yes"])
    assert images_in(tmp_path / "External/job001") == 9


def test_an_evaluation_replaces_neither_verdicts_nor_another_evaluation(
    settings: Settings, tmp_path: Path
) -> None:
    examples = make_set(tmp_path / "set")
    judge, other = (make_ensemble(tmp_path / f"e{n}", seed=n) for n in (0, 9))
    verdicts = classify(write_project(tmp_path / "one", (12,)), tmp_path / "verdicts", settings)
    with pytest.raises(InputError, match="exists and is not an evaluation"):
        evaluate(judge.path, examples.path, verdicts, Settings())
    out = tmp_path / "out"
    evaluate(judge.path, examples.path, out, Settings())
    evaluate(judge.path, examples.path, out, Settings())
    with pytest.raises(InputError, match=f"an evaluation of another ensemble .{judge.digest[:12]}"):
        evaluate(other.path, examples.path, out, Settings())
    evaluate(
        other.path, examples.path, out, Settings.model_validate({"evaluate": {"replace": True}})
    )
    made_of = json.loads((out / "made_of.json").read_text())
    assert made_of == {"ensemble": [other.digest], "prepared set": [str(examples.path)]}


def test_a_validation_replaces_neither_verdicts_nor_another_validation(
    settings: Settings, tmp_path: Path
) -> None:
    maps: list[Path] = []
    for name in ("a1", "a2", "b1"):
        with StackWriter(tmp_path / f"{name}.mrc", 16, 16, "float32", 2.0) as writer:
            writer.append(np.random.default_rng(len(maps)).normal(size=(16, 16, 16)).astype("f4"))
        maps.append(tmp_path / f"{name}.mrc")
    verdicts = classify(write_project(tmp_path / "one", (12,)), tmp_path / "verdicts", settings)
    with pytest.raises(InputError, match="exists and is not a validation"):
        validate_fsc(maps[0], maps[1], verdicts, Settings())
    out = tmp_path / "out"
    validate_fsc(maps[0], maps[1], out, Settings())
    validate_fsc(maps[0], maps[1], out, Settings())
    with pytest.raises(InputError, match=r"another half-map \(.*a2\.mrc\)"):
        validate_fsc(maps[0], maps[2], out, Settings())


def test_a_set_of_other_sources_is_not_lost(tmp_path: Path) -> None:
    one, two = (write_project(tmp_path / name, (12,)) for name in ("one", "two"))
    box: dict[str, dict[str, object]] = {"ingest": {"preparation": {"box": 32}}}
    out = ingest([one], tmp_path / "set", Settings.model_validate(box))
    with pytest.raises(InputError, match=r"a prepared set of another source .*one/.*--add to keep"):
        ingest([two], out, Settings.model_validate(box))
    ingest([one, two], out, Settings.model_validate(box))
    box["ingest"]["replace"] = True
    made = ingest([two], out, Settings.model_validate(box))
    assert [part["project"] for part in json.loads((made / "set.json").read_text())["parts"]] == [
        "two"
    ]
