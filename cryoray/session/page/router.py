"""Pages at ``/`` and JSON under ``/v1/sessions``, for one ledger; what serving mounts.

Pages are made here from templates that escape everything, need nothing from other sites, and work
without scripts; the script only spares reloading. The page writes the ledger and nothing else.
"""

from __future__ import annotations

from fastapi import APIRouter

from cryoray.formats.opening import Scope
from cryoray.session.ledger import Ledger
from cryoray.session.page.actions import add_actions
from cryoray.session.page.entry import add_entry
from cryoray.session.page.exposure_pages import add_exposures
from cryoray.session.page.pages import add_pages
from cryoray.session.page.pictures import PreparationOf
from cryoray.session.page.programs import add_programs
from cryoray.session.page.site import PageRoute, Site


def router(
    ledger: Ledger,
    operator: str,
    scope: Scope,
    preparation_of: PreparationOf = lambda _: None,
) -> APIRouter:
    """The pages and the JSON of a ledger's sessions.

    Args:
        ledger: of the sessions.
        operator: the operator's token.
        scope: what the service may read; for a session, what of it lies in that session's folders.
        preparation_of: how an ensemble has its images prepared, by its digest; None where that is not
            known here.

    Raises:
        SettingsError: the ledger is an SQLite file that another machine writes.
    """
    ledger.check_host()
    made, site = APIRouter(route_class=PageRoute), Site(ledger, operator, scope, preparation_of)
    for add in (add_entry, add_pages, add_exposures, add_actions, add_programs):
        add(made, site)
    return made
