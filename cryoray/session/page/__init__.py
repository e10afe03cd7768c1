"""The session page: what an operator has open on the second screen, and where people's labels come from."""

from cryoray.session.page.router import router

__all__ = ["router"]
