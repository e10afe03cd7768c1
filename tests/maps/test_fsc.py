"""FSC against brute force, known analytic cases, and curves that others published."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from cryoray.errors import FormatError, InputError
from cryoray.formats.fsc_curve import read_curve
from cryoray.formats.volume import read_volume, write_volume
from cryoray.maps import fsc
from tests.half_maps import PIXEL, half_maps, phantom


def brute_force(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Component by component over the half transform that RELION sums over."""
    side = len(a)
    fa, fb = np.fft.rfftn(a), np.fft.rfftn(b)
    sums = np.zeros((3, side // 2 + 1))
    for place in np.ndindex(*fa.shape):
        signed = [p if p <= side // 2 else p - side for p in place[:-1]] + [place[-1]]
        shell = round(math.sqrt(sum(p * p for p in signed)))
        if shell <= side // 2:
            u, v = fa[place], fb[place]
            sums[:, shell] += (u * v.conjugate()).real, abs(u) ** 2, abs(v) ** 2
    return sums[0] / np.sqrt(sums[1] * sums[2])


@pytest.mark.parametrize("shape", [(12, 12, 12), (14, 14)])
def test_correlation_is_what_adding_up_component_by_component_gives(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, *shape))
    b += 0.7 * a
    ours = fsc.correlation(torch.from_numpy(a).float(), torch.from_numpy(b).float())
    assert ours == pytest.approx(brute_force(a, b), abs=1e-5)


def test_a_map_correlates_fully_with_itself_at_any_scale() -> None:
    volume = torch.randn(32, 32, 32, generator=torch.Generator().manual_seed(3))
    assert fsc.correlation(volume, 3 * volume) == pytest.approx(np.ones(17), abs=1e-5)
    assert fsc.correlation(volume, -volume) == pytest.approx(-np.ones(17), abs=1e-5)


def test_independent_noise_correlates_by_chance_alone() -> None:
    generator = torch.Generator().manual_seed(4)
    a, b = torch.randn(2, 48, 48, 48, generator=generator)
    curve = fsc.correlation(a, b)
    counts = np.bincount(fsc.shells((48,) * 3).numpy(), minlength=26)[:25]
    # the real part of n independent complex products over their power has variance 1 / 2n
    z = curve[5:] * np.sqrt(2 * counts[5:])
    assert np.abs(z).max() < 4
    assert 0.6 < z.std() < 1.5


def test_the_curve_is_snr_over_snr_plus_one() -> None:
    generator = torch.Generator().manual_seed(7)
    signal, first, second = torch.randn(3, 48, 48, 48, generator=generator)
    for snr in (0.25, 1.0, 4.0):
        a, b = (math.sqrt(snr) * signal + noise for noise in (first, second))
        assert fsc.correlation(a, b)[8:].mean() == pytest.approx(snr / (snr + 1), abs=0.01)


@pytest.mark.parametrize(
    ("curve", "last", "crossing"),
    [
        ([1, 1, 0.9, 0.143 - 0.1, 0.9], 2, 2 + (0.9 - 0.143) / (0.9 - 0.043)),
        ([1, 0.5, 0.143, 0.1, 0], 2, 2),
        ([-1, 0.9, 0.1, 0.1, 0.1], 1, 1 + (0.9 - 0.143) / 0.8),
    ],
)
def test_resolution_is_of_the_last_shell_and_of_the_crossing(
    curve: list[float], last: int, crossing: float
) -> None:
    frequency = np.arange(5) / 100
    found = fsc.resolution(frequency, np.array(curve, float), 0.143)
    assert found.last_shell == pytest.approx(100 / last)
    assert found.interpolated == pytest.approx(100 / crossing)
    assert not found.nyquist


def test_a_curve_that_never_falls_ends_at_nyquist_and_one_that_never_rises_has_none() -> None:
    frequency = np.arange(5) / 100
    assert fsc.resolution(frequency, np.ones(5), 0.5) == fsc.Resolution(25.0, 25.0, nyquist=True)
    assert fsc.resolution(frequency, np.zeros(5), 0.5) == fsc.Resolution(None, None)


def test_a_tight_mask_is_seen_through() -> None:
    """Pure noise in a tight mask seems to correlate; the corrected curve says that it does not."""
    volume = phantom(48)
    first, second = half_maps(volume, noise=3.0)
    mask = (fsc.low_passed(volume, PIXEL, 30) > 0.4).float()
    # what is common to both: the mask's sharp edge, on a common pedestal
    found = fsc.half_map_fsc(first + 2, second + 2, PIXEL, mask)
    assert found.masked is not None
    assert found.phase_randomised is not None
    assert found.corrected is not None
    assert found.randomised_from is not None
    start = round(48 * PIXEL / found.randomised_from)
    assert (found.corrected[: start + 2] == found.masked[: start + 2]).all()
    later = slice(start + 2, None)
    expected = (found.masked - found.phase_randomised) / (1 - found.phase_randomised)
    assert found.corrected[later] == pytest.approx(expected[later])
    assert found.phase_randomised[later].mean() > 0.02
    assert abs(found.corrected[-6:].mean()) < abs(found.masked[-6:].mean())


def cutting_mask(side: int = 48) -> torch.Tensor:
    """A mask with a sharp edge through the middle of the protein."""
    z, y, x = torch.meshgrid(*[torch.arange(side) - side // 2] * 3, indexing="ij")
    return ((x > 4) & (x**2 + y**2 + z**2 < 22**2)).float()


@pytest.mark.parametrize(
    ("noise", "taken", "forced"), [(1.0, 17, 11), (2.0, 14, 8), (3.0, 12, None)]
)
def test_a_mask_that_cuts_into_the_protein_is_not_used_unless_it_is_forced(
    noise: float, taken: int, forced: int | None
) -> None:
    """Shells are those of relion_postprocess 3.1.3 on these maps, without and with --force_mask."""
    first, second = half_maps(phantom(48), noise=noise)
    extent = 48 * PIXEL
    found = fsc.half_map_fsc(first, second, PIXEL, cutting_mask())
    assert found.corrected is not None
    assert found.masked is not None
    np.testing.assert_array_equal(found.corrected, found.unmasked)
    assert found.resolution().last_shell == pytest.approx(extent / taken)
    assert len(found.warnings) == 1
    assert "the mask cuts into the protein" in found.warnings[0]
    assert "the unmasked curve is taken as the true one" in found.warnings[0]
    kept = fsc.half_map_fsc(first, second, PIXEL, cutting_mask(), force_mask=True)
    assert kept.corrected is not None
    assert kept.phase_randomised is not None
    assert kept.corrected[-1] == pytest.approx(
        (kept.masked[-1] - kept.phase_randomised[-1]) / (1 - kept.phase_randomised[-1])  # type: ignore[index]
    )
    assert kept.resolution().last_shell == (
        None if forced is None else pytest.approx(extent / forced)
    )
    assert "the corrected curve is kept all the same" in kept.warnings[0]


def test_random_phases_keep_amplitudes_and_what_lies_below() -> None:
    volume = phantom()
    spectrum = torch.fft.rfftn(volume)
    made = fsc.randomise(spectrum, (32, 32, 32), 6, torch.Generator().manual_seed(0))
    curve = fsc.correlation(volume, made)
    assert curve[:6] == pytest.approx(np.ones(6), abs=1e-4)
    assert np.abs(curve[8:]).max() < 0.4
    inner = (fsc.radii((32, 32, 32))[:, :, 1:-1] >= 6).numpy()
    # the planes x = 0 and Nyquist hold both of a Hermitian pair, whose phases were drawn apart
    power = torch.fft.rfftn(made)[:, :, 1:-1].abs().numpy()[inner]
    assert power == pytest.approx(spectrum[:, :, 1:-1].abs().numpy()[inner], rel=1e-3, abs=0.05)


def test_halves_that_never_fall_below_are_not_corrected_and_it_is_said() -> None:
    volume = phantom()
    found = fsc.half_map_fsc(volume, volume, PIXEL, torch.ones_like(volume))
    assert found.corrected is None
    assert "never falls below" in found.warnings[0]
    assert found.resolution().nyquist


def test_the_automatic_mask_holds_the_protein_softly_and_little_else() -> None:
    volume = phantom(48)
    first, second = half_maps(volume, noise=0.7)
    mask, level = fsc.automatic_mask((first + second) / 2, PIXEL)
    dense = volume > 2
    assert mask[dense].min() > 0.5
    assert 0.03 < mask.mean() < 0.4
    assert ((mask > 0) & (mask < 1)).any()
    assert mask.max() == 1
    with pytest.raises(InputError, match="threshold"):
        fsc.automatic_mask(volume, PIXEL, threshold=1e6)
    again, same = fsc.automatic_mask((first + second) / 2, PIXEL, threshold=level)
    assert same == level
    assert (again >= mask).all()  # a threshold that is given keeps small pieces too


def test_low_pass_keeps_the_coarse_and_drops_the_fine() -> None:
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(32, 32, 32, generator=generator)
    smooth = fsc.low_passed(noise, 2.0, 64 / 8)  # shell 8 of 16
    gain = [
        float((torch.fft.rfftn(smooth).abs() / torch.fft.rfftn(noise).abs())[0, 0, k])
        for k in (0, 6, 8, 10)
    ]
    assert gain == pytest.approx([1, 1, 0.5, 0], abs=1e-4)


def test_a_cone_of_missing_views_lowers_that_direction_alone() -> None:
    volume = phantom(48, seed=4)
    first, second = half_maps(volume, noise=0.4)
    even = fsc.directional_fsc(first, second, PIXEL)
    spectra = [torch.fft.rfftn(half) for half in (first, second)]
    z, y, x = torch.meshgrid(
        torch.fft.fftfreq(48), torch.fft.fftfreq(48), torch.fft.rfftfreq(48), indexing="ij"
    )
    missing = z.abs() > 0.8 * torch.sqrt(x**2 + y**2 + z**2)  # round the z axis
    noise = torch.randn(2, 48, 48, 48, generator=torch.Generator().manual_seed(9))
    one, two = (
        torch.fft.irfftn(torch.where(missing, torch.fft.rfftn(other), spectrum), s=(48, 48, 48))
        for spectrum, other in zip(spectra, noise, strict=True)
    )
    cut = fsc.directional_fsc(one, two, PIXEL)
    assert even.area_ratio > 0.5
    assert cut.area_ratio < 0.5 * even.area_ratio
    assert abs(cut.worst[2]) > 0.8
    side = np.abs(cut.directions[:, 2]) < 0.4
    assert np.nanmax(np.abs(cut.resolution[side] - even.resolution[side])) < 4


def test_directions_are_spread_evenly() -> None:
    axes = fsc.half_sphere(60)
    assert np.linalg.norm(axes, axis=1) == pytest.approx(np.ones(60))
    closest = np.sort(np.abs(axes @ axes.T), axis=1)[:, -2]
    assert np.degrees(np.arccos(closest)).min() > 10


def test_maps_survive_a_round_trip_and_others_are_refused(tmp_path: Path) -> None:
    volume = phantom().numpy()
    path = write_volume(tmp_path / "map.mrc", volume, PIXEL)
    again, pixel = read_volume(path)
    assert pixel == pytest.approx(PIXEL)
    assert np.array_equal(again, volume)
    write_volume(tmp_path / "slab.mrc", volume[:8], PIXEL)
    with pytest.raises(FormatError, match="not a cubic map"):
        read_volume(tmp_path / "slab.mrc")


XML = """<?xml version="1.0"?>
<fsc title="FSC" xaxis="Resolution (A-1)" yaxis="Correlation Coefficient">
  <coordinate><x>0.0</x><y>1.0</y></coordinate>
  <coordinate><x>0.05</x><y>0.8</y></coordinate>
  <coordinate><x>0.1</x><y>0.1</y></coordinate>
</fsc>
"""


def test_emdbs_curves_are_read_and_entities_refused(tmp_path: Path) -> None:
    path = tmp_path / "emd_1_fsc.xml"
    path.write_text(XML)
    curve = read_curve(path)
    assert curve.frequency.tolist() == [0, 0.05, 0.1]
    assert curve.main.tolist() == [1, 0.8, 0.1]
    path.write_text(
        XML.replace("<fsc ", '<!DOCTYPE x [<!ENTITY a "aaaa">]><fsc ').replace("1.0</y>", "&a;</y>")
    )
    with pytest.raises(FormatError, match="not an FSC curve"):
        read_curve(path)
    path.write_text("<fsc><coordinate>")
    with pytest.raises(FormatError, match="not an FSC curve"):
        read_curve(path)


def test_cryosparcs_text_counts_shells(tmp_path: Path) -> None:
    path = tmp_path / "fsc.txt"
    path.write_text(
        "wave_number\tfsc_nomask\tfsc_tightmask\tfsc_noisesub\n"
        "0\t1\t1\t1\n1\t0.9\t0.95\t0.94\n2\t0.1\t0.3\t0.2\n"
    )
    curve = read_curve(path, extent=200.0)
    assert curve.frequency == pytest.approx([0, 0.005, 0.01])
    assert list(curve.curves) == ["corrected", "masked", "unmasked"]
    assert curve.main.tolist() == [1, 0.94, 0.2]
    with pytest.raises(FormatError, match="side of the box"):
        read_curve(path)
    path.write_text("0.0 1.0\n0.1 0.8\nx 0.2\n")
    with pytest.raises(FormatError, match="row 3: is not a row of numbers"):
        read_curve(path)


@pytest.mark.real
def test_published_curves_give_the_resolutions_that_were_published_with_them(
    real_data: Path,
) -> None:
    folder = real_data / "fsc-curves"
    relion = read_curve(folder / "relion_postprocess.star")
    assert list(relion.curves) == ["corrected", "masked", "unmasked", "phase_randomised"]
    assert fsc.resolution(relion.frequency, relion.main, 0.143).last_shell == pytest.approx(
        16.363636, rel=1e-4
    )
    table = (folder / "cryosparc_goldfsc" / "gold_standard_resolution.csv").read_text()
    for line in table.splitlines()[1:]:
        job, group, at_143, at_5, *_ = line.split(",")
        curve = read_curve(folder / "cryosparc_goldfsc" / f"goldfsc_{job}_{group}.csv")
        for threshold, published in ((0.143, at_143), (0.5, at_5)):
            found = fsc.resolution(curve.frequency, curve.main, threshold).interpolated
            assert found == pytest.approx(float(published), rel=0.01)
    tutorial = read_curve(folder / "relion4_tutorial" / "postprocess_job026.csv")
    assert next(iter(tutorial.curves)) == "corrected"
    last = fsc.resolution(tutorial.frequency, tutorial.main, 0.143).last_shell
    assert last is not None
    assert last < 4
