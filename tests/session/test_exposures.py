"""The list of exposures and the micrograph around an image: what is shown of them, and to whom."""

from __future__ import annotations

import csv
import io
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from cryoray.errors import InputError
from cryoray.formats.mrc import StackWriter
from cryoray.formats.opening import Scope
from cryoray.session.ledger import Ledger
from cryoray.session.ledger_records import Happened, Micrograph, Outcome, Seen, stack_id
from cryoray.session.page.exposures import PAGE, Exposures, Limit, Query
from cryoray.session.page.micrographs import Micrographs
from cryoray.session.page.pictures import Pictures
from cryoray.session.watcher import Watcher
from cryoray.settings import WatchSettings
from cryoray.web.looks import Look
from tests import examples
from tests.session.service import Service, running

pytestmark = pytest.mark.long

IMAGES, SIDE = 10, (300, 240)
_HEAD = """
data_particles

loop_
_rlnImageName #1
_rlnMicrographName #2
_rlnDefocusU #3
_rlnDefocusV #4
_rlnCtfMaxResolution #5
_rlnCoordinateX #6
_rlnCoordinateY #7
"""


@pytest.fixture(scope="module")
def session(
    tiny_ensemble: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, Ledger, Path, str]]:
    """A judged session: two stacks with micrographs, one whose micrograph is elsewhere, one bare."""
    root = tmp_path_factory.mktemp("data")
    outside = tmp_path_factory.mktemp("outside")
    rng = np.random.default_rng(0)
    (root / "MotionCorr").mkdir()
    for number, name in enumerate(("a", "b", "elsewhere", "bare")):
        examples.write_stack(root / f"{name}.mrcs", examples.particles(IMAGES, seed=number))
        if name == "bare":
            continue
        rows = [
            f"{i:06d}@{name}.mrcs MotionCorr/{name}.mrc {9000 + 5000 * number} 9000 {4 + number}"
            f" {20 * i} {15 * i}"
            for i in range(1, IMAGES + 1)
        ]
        (root / f"{name}_extract.star").write_text(_HEAD + "\n".join(rows) + "\n")
        folder = outside if name == "elsewhere" else root / "MotionCorr"
        with StackWriter(folder / f"{name}.mrc", *SIDE, dtype="float32", pixel_size=4.0) as stack:
            stack.append(rng.normal(size=(1, *SIDE)).astype(np.float32))
    (root / "MotionCorr/elsewhere.mrc").symlink_to(outside / "elsewhere.mrc")
    url = str(root / "cryoray/ledger.sqlite")
    ledger = Ledger(url)
    with running([root], {"tiny": tiny_ensemble}, ledger=url) as service:
        settings = WatchSettings(poll=0.05, settle=0.05, audit=3)
        watcher = Watcher(root, "s", settings, service.client())
        watcher.run(threading.Event(), once=True)
        watcher.close()
        yield service, ledger, root, watcher.token_file.read_text().strip()
    ledger.close()


@contextmanager
def browsing(session: tuple[Service, Ledger, Path, str]) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=session[0].url, timeout=30, follow_redirects=True, headers={"Accept": "text/html"}
    ) as client:
        client.post("/login", data={"token": session[3], "who": "Ada"})
        yield client


def key(session: tuple[Service, Ledger, Path, str], name: str) -> str:
    return stack_id("s", str(session[2] / f"{name}.mrcs"))


def words(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def test_what_is_not_known_of_any_exposure_has_no_column(
    session: tuple[Service, Ledger, Path, str],
) -> None:
    with browsing(session) as browser:
        page = browser.get("/sessions/s/exposures").text
        titles = re.findall(r'<th scope="col".*?>([^<>↓↑]+?) *<', page)
        assert [one for one in titles if one.strip()] == [
            *("exposure", "picks", "kept", "mean score", "defocus", "CTF resolution", "judged")
        ]
        assert page.count("not known") == 2, "defocus and CTF resolution of the bare stack"
        rows = list(csv.DictReader(io.StringIO(browser.get("/v1/sessions/s/exposures.csv").text)))
    assert len(rows) == 4
    assert {row["exposure"]: row["defocus µm"] for row in rows}["MotionCorr/b.mrc"] == "1.15"
    assert "grid square" not in rows[0]


def test_limits_mark_exposures_for_all_who_look_and_never_what_is_not_known(
    session: tuple[Service, Ledger, Path, str],
) -> None:
    with browsing(session) as browser:
        page = browser.get("/sessions/s/exposures").text
        csrf = re.search(r'data-csrf="([^"]+)"', page)
        assert csrf is not None
        fields = {"csrf": csrf[1], "ctf-high": "4.5", "defocus-low": "0.5", "sort": "ctf"}
        assert browser.post("/sessions/s/limits", data={**fields, "csrf": ""}).status_code == 403
        wrong = browser.post("/sessions/s/limits", data={**fields, "ctf-low": "5"})
        assert (wrong.status_code, "lower limit is above" in wrong.text) == (422, True)
        assert (
            browser.post("/sessions/s/limits", data={**fields, "ctf-low": "x"}).status_code == 422
        )
        answer = browser.post("/sessions/s/limits", data=fields)
        assert answer.url.params["sort"] == "ctf"
    with browsing(session) as another:
        page = another.get("/sessions/s/exposures?marked=1").text
        assert "2 of 4 exposures; 2 of the session are outside the limits" in words(page)
        assert words(page).count("CTF resolution above 4.5 Å") == 2
        assert "Ada" in page
        assert "2 outside the limits" in words(another.get("/sessions/s").text)
        table = another.get("/v1/sessions/s/exposures.csv").text
        assert [row["outside limits of"] for row in csv.DictReader(io.StringIO(table))].count(
            "CTF resolution"
        ) == 2
        (csrf,) = re.findall(r'data-csrf="([^"]+)"', page)
        another.post("/sessions/s/limits", data={"csrf": csrf})
        assert "outside the limits" not in words(another.get("/sessions/s/exposures/list").text)


def test_thousands_of_exposures_are_sorted_searched_and_paged(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.open_session("s", root=tmp_path, folder=tmp_path / "out")
    n = 5000
    ledger.expect("s", [Seen("/d/all.star", None, "particle", "x", 1, 1, 0.0)])
    one = {"square": None, "hole": None, "discarded": 5, "review": 0, "quarantined": 1}
    micrographs = tuple(
        Micrograph(
            name=f"m/{i:05d}%.mrc",
            kept=i % 7,
            score=None,
            defocus=None if i % 10 == 0 else i / n,
            ctf_resolution=None,
            **one,  # type: ignore[arg-type]
        )
        for i in range(n)
    )
    outcome = Outcome("x", "judged", n, n, 0, 0, 0, None, None, 1.0, micrographs=micrographs)
    happened: list[Happened] = []
    assert ledger.commit("s", stack_id("s", "/d/all.star"), outcome, happened)
    exposures = Exposures(ledger)
    listing = exposures.list("s", Query(sort="defocus", down=True))
    assert (listing.total, listing.found, listing.pages, len(listing.rows)) == (n, n, 100, PAGE)
    assert listing.rows[0].name == "m/04999%.mrc"
    assert set(listing.columns) == {"name", "time", "picks", "rate", "defocus"}
    last = exposures.list("s", Query(sort="defocus", down=True, page=10**6))
    assert (last.query.page, last.rows[-1].values["defocus"]) == (99, None), (
        "unknown ones come last"
    )
    assert exposures.list("s", Query(sort="defocus", down=False)).rows[0].values["defocus"] == 1 / n
    assert exposures.list("s", Query(find="%0499")).found == 0, "a % is a %"
    assert exposures.list("s", Query(find="M/0499")).found == 10
    exposures.set_limits("s", {"rate": Limit(50.0, None), "defocus": Limit(None, 0.5)}, "Ada")
    listing = exposures.list("s", Query(marked=True))
    expected = [i for i in range(n) if i % 7 / (i % 7 + 5) < 0.5 or (i % 10 and i / n > 0.5)]
    assert listing.found == listing.marked == len(expected)
    assert all(one.outside for one in listing.rows)
    ledger.close()


def test_an_image_is_found_in_its_micrograph_among_all_picks(
    session: tuple[Service, Ledger, Path, str],
) -> None:
    _, ledger, _, _ = session
    stack = key(session, "a")
    blind = {(row.stack, row.row) for row in ledger.audit_sample("s")}
    row = next(row for row in range(IMAGES) if (stack, row) not in blind)
    with browsing(session) as browser:
        answer = browser.get(f"/sessions/s/around/{stack}/{row}")
        assert answer.url.path == f"/sessions/s/micrograph/{stack}/0"
        page = answer.text
        assert "The micrograph is shown in its file's own contrast" in page
        assert '<label>Its images <select id="view">' in page
        picks = re.findall(r'<g class="(\w+)[^"]*" data-row="(\d+)">', page)
        assert [int(number) for _, number in picks] == list(range(IMAGES))
        for fate, number in picks:
            assert (fate == "blind") == ((stack, int(number)) in blind)
        assert {fate for fate, _ in picks} <= {"keep", "discard", "review", "blind"}
        ring = re.search(
            rf'data-row="{row}"><circle class="ring" cx="([\d.]+)" cy="([\d.]+)"', page
        )
        assert ring is not None
        assert [float(one) for one in ring.groups()] == [20 * (row + 1), 15 * (row + 1)]
        for number in (number for key_, number in blind if key_ == stack):
            assert f'id="micrograph-{stack}-{number}"' not in page, "blind images have no tile"
        form = re.search(rf'<form class="tile (\w+)[^>]*id="micrograph-{stack}-{row}"', page)
        csrf = re.search(r'data-csrf="([^"]+)"', page)
        assert form is not None
        assert csrf is not None
        other = "discard" if form[1] == "keep" else "keep"
        said = {
            "csrf": csrf[1],
            "stack": stack,
            "row": str(row),
            "from": "micrograph",
            "say": other,
        }
        answer = browser.post("/sessions/s/say", data=said)
        assert answer.url.path == f"/sessions/s/micrograph/{stack}/0"
        assert f'<g class="{other} decided asked" data-row="{row}">' in answer.text


def test_the_micrograph_is_drawn_from_its_file_in_its_own_proportions(
    session: tuple[Service, Ledger, Path, str],
) -> None:
    path = f"/sessions/s/micrograph/{key(session, 'a')}/0.png"
    with browsing(session) as browser:
        large = np.asarray(Image.open(io.BytesIO(browser.get(path, params={"side": 1024}).content)))
        small = np.asarray(Image.open(io.BytesIO(browser.get(path).content)))
        raw = browser.get(path, params={"side": 1024, "low": 0, "cut": 0}).content
        assert browser.get(path, params={"side": 5000}).status_code == 422
        assert browser.get(path, params={"low": -1}).status_code == 422
    assert (large.shape, small.shape) == (SIDE, (128, 102))
    assert large.std() > 10
    rough = np.asarray(Image.open(io.BytesIO(raw)), float)
    neighbours = [
        np.corrcoef(one[:, 1:].ravel(), one[:, :-1].ravel())[0, 1] for one in (rough, large)
    ]
    assert neighbours[0] < 0.1
    assert neighbours[1] > 0.5


def test_a_micrograph_outside_of_the_sessions_folders_is_not_read_and_the_page_says_so(
    session: tuple[Service, Ledger, Path, str],
) -> None:
    with browsing(session) as browser:
        at = f"/sessions/s/micrograph/{key(session, 'elsewhere')}/0"
        assert browser.get(f"{at}.png").status_code == 422
        page = browser.get(at)
        assert page.status_code == 200
        assert "file is not in the session" in page.text
        assert "<img data-micrograph" not in page.text
        bare = browser.get(f"/sessions/s/micrograph/{key(session, 'bare')}/0")
        assert bare.status_code == 200
        assert "Not shown:" in bare.text
        listing = browser.get("/sessions/s/exposures").text
        shown = re.findall(r'<img src="/sessions/s/micrograph/(\w+)/0.png"', listing)
        assert sorted(shown) == sorted(key(session, name) for name in ("a", "b"))
        assert browser.get(f"/sessions/s/micrograph/{key(session, 'a')}/7").status_code == 404
        assert browser.get(f"/sessions/other/micrograph/{key(session, 'a')}/0").status_code == 404


def test_a_micrographs_name_leads_nowhere_else(session: tuple[Service, Ledger, Path, str]) -> None:

    _, ledger, root, _ = session
    row, stack = ledger.session("s"), ledger.stack(key(session, "a"))
    found = Micrographs(Pictures(Scope((root,))))
    assert found.is_there(row, stack, "MotionCorr/a.mrc")
    assert found.is_there(row, stack, str(root / "MotionCorr/a.mrc"))
    for name in (
        "../outside0/elsewhere.mrc",
        "/etc/passwd",
        "MotionCorr/elsewhere.mrc",
        "a\0.mrc",
        "",
    ):
        assert not found.is_there(row, stack, name), name


def test_an_image_is_shown_as_the_networks_saw_it_only_where_that_is_known(
    session: tuple[Service, Ledger, Path, str],
) -> None:

    _, ledger, root, _ = session
    row, stack = ledger.session("s"), ledger.stack(key(session, "a"))
    path = f"/sessions/s/image/{key(session, 'a')}/0.png"
    with browsing(session) as browser:
        views = [browser.get(path, params={"view": view}) for view in ("clear", "network", "file")]
    assert [one.status_code for one in views] == [200] * 3
    assert len({one.content for one in views}) == 3
    with pytest.raises(InputError, match="not served now"):
        Pictures(Scope((root,))).png(row, stack, 0, Look("network"))
