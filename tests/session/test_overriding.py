"""What a person says of an image moves that image in the merged files, whatever named it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import starfile

from cryoray.session.ledger import Ledger
from cryoray.session.watcher import Watcher
from cryoray.settings import WatchSettings
from tests import examples
from tests.formats.files import write_cs_job
from tests.session.service import Service, running

pytestmark = pytest.mark.long

QUICK = WatchSettings(poll=0.05, settle=0.1, rescan=0.3, merge_every=0.0, patience=0.3, audit=0)
STACKS, IMAGES = 2, 9


def bare(root: Path) -> None:
    for number in range(STACKS):
        examples.write_stack(root / f"mic_{number}.mrcs", examples.particles(IMAGES, seed=number))


def described(root: Path) -> None:
    bare(root)
    for number in range(STACKS):
        rows = [
            f"{i:06d}@mic_{number}.mrcs mic_{number}.mrc 1 9000 8800 4.5"
            for i in range(IMAGES, 0, -1)
        ]
        examples.write_star(root / f"mic_{number}_extract.star", rows)


def shared(root: Path) -> None:
    bare(root)
    rows = [
        f"{i:06d}@mic_{number}.mrcs mic_{number}.mrc 1 9000 8800 4.5"
        for i in range(IMAGES, 0, -1)
        for number in range(STACKS)
    ]
    examples.write_star(root / "particles.star", rows)


def elsewhere(root: Path) -> None:
    """A STAR file whose stacks are not in the watched folder."""
    away = root.parent / "elsewhere"
    away.mkdir()
    bare(away)
    rows = [
        f"{i:06d}@{away}/mic_{number}.mrcs mic_{number}.mrc 1 9000 8800 4.5"
        for i in range(1, IMAGES + 1)
        for number in range(STACKS)
    ]
    examples.write_star(root / "joined.star", rows)


def cryosparc(root: Path) -> None:
    write_cs_job(root, STACKS * IMAGES)
    examples.write_stack(
        root / "J19/extract/a.mrc", examples.particles(STACKS * IMAGES, box=8, seed=1)
    )


@pytest.fixture(scope="module")
def service(tiny_ensemble: Path) -> Iterator[Service]:
    with running([Path("/")], {"tiny": tiny_ensemble}) as made:
        yield made


def merge(root: Path, service: Service) -> Counter[str]:
    """Watch until all is judged and merged; the fate of each image by an independent reader."""
    settings = QUICK.model_copy(update={"roots": (root.parent / "elsewhere",)})
    watcher = Watcher(root, "s", settings, service.client())
    watcher.run(threading.Event(), once=True)
    watcher.close()
    fates: Counter[str] = Counter()
    for side in ("kept", "discarded", "review"):
        for star in watcher.places.folder.glob(f"{side}*.star"):
            table = starfile.read(star, always_dict=True)["particles"]
            for name in table["rlnImageName"] if len(table) else []:
                number, _, stack = name.partition("@")
                name = Path(stack).name.removesuffix(":mrcs")
                fates[f"{side} {int(number)}@{name}"] += 1
    return fates


@pytest.mark.parametrize("write", [bare, described, shared, elsewhere, cryosparc])
def test_an_override_moves_its_image_whatever_described_it(
    service: Service, tmp_path: Path, write: Callable[[Path], None]
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    write(root)
    before = merge(root, service)
    assert sum(before.values()) == STACKS * IMAGES
    ledger = Ledger(root / "cryoray/ledger.sqlite")
    turned: Counter[str] = Counter()
    for stack in ledger.stacks("s", "judged"):
        verdicts = root / "cryoray/s/verdicts" / Path(stack.path).relative_to(root)
        table = pq.read_table(verdicts / "verdicts.parquet").to_pylist()
        # Every second image, whatever it was, becomes what it was not.
        for row in range(0, len(table), 2):
            keep = table[row]["verdict"] != "keep"
            number, _, file = table[row]["image"].partition("@")
            name = f"{int(number)}@{Path(file).name}"
            was = {"keep": "kept", "discard": "discarded"}.get(table[row]["verdict"], "review")
            turned[f"{was} {name}"] -= 1
            turned[f"{'kept' if keep else 'discarded'} {name}"] += 1
            ledger.override(
                "s", stack.id, row, keep, image=table[row]["image"], who="Ada",
                before=table[row]["verdict"], score=0.5, digest=stack.digest,
            )  # fmt: skip
    ledger.close()
    after = merge(root, service)
    assert sum(abs(change) for change in turned.values()) >= STACKS * IMAGES - STACKS
    before.update(turned)
    assert after == +before
