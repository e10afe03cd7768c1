"""Features: what the source says, transformed; what it does not say is missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cryoray.errors import SettingsError
from cryoray.formats.source import Source, open_source
from cryoray.preparation.features import FEATURES, feature_names, source_features
from tests.preparation.sources import particles, write_source


def made_of(kind: str = "particle", **metadata: Sequence[float] | np.ndarray) -> Source:
    n = len(next(iter(metadata.values())))
    empty = np.full(n, "", object)
    return Source(
        path=Path("x.star"),
        kind=kind,  # type: ignore[arg-type]
        images=empty,
        stacks=(),
        stack=np.full(n, -1, np.int32),
        frame=np.full(n, -1),
        micrograph=empty,
        pixel_size=np.full(n, np.nan, np.float32),
        metadata={name: np.array(values) for name, values in metadata.items()},
    )


def test_values_are_transformed_and_what_is_not_known_is_missing() -> None:
    source = made_of(rlnCtfMaxResolution=[np.e, 999.0, np.inf, 0.0], rlnPhaseShift=[0, 0, 90, -999])
    values = source_features(source, ["ctf_max_resolution", "phase_shift", "norm_correction"])
    nan = np.nan
    np.testing.assert_allclose(
        values, [[1, 0, nan], [nan, 0, nan], [nan, 90, nan], [nan, nan, nan]], rtol=1e-6
    )
    assert values.dtype == np.float32


def test_defocus_and_astigmatism_are_made_of_two_columns() -> None:
    source = made_of(rlnDefocusU=[12000.0], rlnDefocusV=[11000.0])
    np.testing.assert_allclose(
        source_features(source, ["defocus", "astigmatism"]), [[1.15, np.log(1001)]], rtol=1e-6
    )


def test_a_row_has_the_same_features_whatever_rows_are_beside_it(tmp_path: Path) -> None:
    source = write_source(tmp_path, [particles(5)])
    whole = source_features(source, None, diameter=100)
    some = source_features(source, None, rows=np.array([3, 1]), diameter=100)
    np.testing.assert_array_equal(some, whole[[3, 1]])


def test_an_unknown_feature_is_refused_with_the_known_ones_named() -> None:
    with pytest.raises(SettingsError, match=r"no feature 'beauty'.*ctf_max_resolution"):
        source_features(made_of(rlnPhaseShift=[0]), ["beauty"])
    with pytest.raises(SettingsError, match="class2d"):
        source_features(made_of("class2d", rlnPhaseShift=[0]), ["phase_shift"])


def test_names_do_not_collide_with_the_table_s_own_columns() -> None:
    assert not {"image", "project", "micrograph", "label", "pixel_size", "diameter"} & {
        feature.name for feature in FEATURES
    }


CS = "formats/cryosparc/cryosparc_J2_particles_exported.cs"


@pytest.mark.real
def test_cryosparc_s_columns_add_up_as_the_features_take_them_to(real_data: Path) -> None:
    table = np.load(real_data / CS)
    known = {name: table[name] for name in table.dtype.names if name.startswith("alignments2D/")}
    power, cross, model = (
        known[f"alignments2D/{name}"] for name in ("image_pow", "cross_cor", "slice_pow")
    )
    np.testing.assert_allclose(power - cross + model, known["alignments2D/error"], rtol=1e-5)
    source = made_of(**known)
    names = (
        "class_correlation",
        "class_scale",
        "alignment_error",
        "residual_power",
        "class_posterior",
    )
    found = dict(zip(names, source_features(source, names).T, strict=True))
    np.testing.assert_allclose(
        np.sinh(found["class_scale"]), known["alignments2D/alpha_min"], rtol=1e-5
    )
    # What the best scale leaves unexplained is one less the squared correlation.
    scale = known["alignments2D/alpha_min"]
    left = (power - scale * cross + scale**2 * model) / power
    np.testing.assert_allclose(1 - found["class_correlation"] ** 2, left, rtol=1e-5)
    np.testing.assert_allclose(
        found["alignment_error"], known["alignments2D/error"] / power, rtol=1e-6
    )
    assert np.isnan(found["residual_power"]).all()  # 0 in this file: not computed
    np.testing.assert_allclose(found["class_posterior"], known["alignments2D/class_posterior"])


@pytest.mark.real
def test_real_classes_with_inf_nan_and_999_have_missing_features(real_data: Path) -> None:
    source = open_source(real_data / "relion5-project/Class2D/job010", "class2d")
    values = source_features(source, None)
    columns = dict(zip(feature_names("class2d"), values.T, strict=True))
    assert np.isfinite(columns["class_distribution"]).all()
    assert 0 < np.isnan(columns["estimated_resolution"]).sum() < 10
    assert np.isnan(columns["accuracy_rotations"]).sum() > 20
    assert np.nanmax(columns["accuracy_rotations"]) < np.log(20)
