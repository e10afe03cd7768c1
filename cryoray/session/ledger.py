"""The ledger: what became of every stack of every session, and how people labelled its images.

A database through SQLAlchemy: SQLite beside the session, or PostgreSQL by URL. It holds a row for each
stack and for each micrograph, never one for each image: a session of 36 million images has some
100,000 rows here, and the verdicts lie in files beside it.

**The states of a stack.**

::

    pending ──► judged          verdict files with this digest are on disk, counts are here
       │  ▲ ╲
       │  │   ─► rejected       cannot be used: unreadable, or too much of it was quarantined
       ▼  └──── (rewritten: another digest)
    vanished ─► pending         its file is gone; it may come back

*Invariant.* A stack is ``judged`` or ``rejected`` under a digest only after the verdict files of that digest
were written, each by rename, with their record last; and one transaction then replaces all that this
ledger holds of the stack. So whoever is killed when: either the record is missing, and the stack is
judged anew into the same files; or it is there and the ledger does not know, and learns it again from
the record. Every id is derived from content or position, so what is done twice is done once.

*Profiles.* Where the ensemble judges within a project, the verdicts of a stack rest on a profile, whose
digest is beside them here and in the record. When the session has another one, the stack stays ``judged``,
and counts, until its new verdicts take the place of the old ones in the same way; when it was judged first
and what people said of its images are left as they were. Which stacks are left to be judged again is seen
from their profiles, so a watcher that is killed goes on with those.

Images are named by a stack and a ``row``: the 0-based row of the stack's `verdicts.parquet`.

The watcher alone writes stacks, micrographs and events; the page alone writes overrides, labels and
wishes (``trainable``, ``merge_wanted``).
"""

from __future__ import annotations

from cryoray.session import (
    ledger_events,
    ledger_labels,
    ledger_questions,
    ledger_sessions,
    ledger_stacks,
)
from cryoray.session.database import Database


class Ledger(Database):
    """A ledger's database, with the functions of the `ledger_*` modules as its methods.

    Each of them takes the database as its first argument and opens its own transaction. How a ledger is
    opened, and what any method raises, is said at `Database`.
    """

    # sessions and tokens
    open_session = ledger_sessions.open_session
    close_session = ledger_sessions.close_session
    alive = ledger_sessions.alive
    new_token = ledger_sessions.new_token
    scope = ledger_sessions.scope
    set_baseline = ledger_sessions.set_baseline
    set_trainable = ledger_sessions.set_trainable
    set_profile = ledger_sessions.set_profile
    want_merge = ledger_sessions.want_merge
    merged = ledger_sessions.merged
    session = ledger_sessions.find_session
    sessions = ledger_sessions.find_sessions
    check_host = ledger_sessions.check_host

    # stacks: the watcher's
    expect = ledger_stacks.expect
    attempt = ledger_stacks.attempt
    commit = ledger_stacks.commit
    vanish = ledger_stacks.vanish
    outdated = ledger_stacks.outdated

    # events: the watcher's
    note = ledger_events.note
    events = ledger_events.find_events
    mark = ledger_events.mark

    # questions
    stack = ledger_questions.find_stack
    stacks = ledger_questions.find_stacks
    totals = ledger_questions.totals
    micrographs = ledger_questions.find_micrographs
    square = ledger_questions.square
    candidates = ledger_questions.find_candidates
    under_review = ledger_questions.under_review

    # what people decided: the page's
    override = ledger_labels.override
    overrides = ledger_labels.find_overrides
    audit_sample = ledger_labels.audit_sample
    label_blind = ledger_labels.label_blind
    take_back_blind = ledger_labels.take_back_blind
