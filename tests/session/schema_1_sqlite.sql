-- The tables of a ledger as commit 0956c88 made them.
CREATE TABLE audit (
    stack VARCHAR(24) NOT NULL,
    "row" INTEGER NOT NULL,
    session VARCHAR(80) NOT NULL,
    digest VARCHAR(32) NOT NULL,
    image TEXT NOT NULL,
    draw FLOAT NOT NULL,
    keep BOOLEAN,
    who VARCHAR(80),
    at FLOAT,
    PRIMARY KEY (stack, "row")
);
CREATE INDEX audit_by_draw ON audit (session, draw);
CREATE TABLE candidates (
    stack VARCHAR(24) NOT NULL,
    "row" INTEGER NOT NULL,
    session VARCHAR(80) NOT NULL,
    teaches FLOAT NOT NULL,
    PRIMARY KEY (stack, "row")
);
CREATE INDEX candidates_by_worth ON candidates (session, teaches);
CREATE TABLE events (
    number INTEGER NOT NULL,
    id VARCHAR(80) NOT NULL,
    session VARCHAR(80) NOT NULL,
    name VARCHAR(40) NOT NULL,
    at FLOAT NOT NULL,
    data JSON NOT NULL,
    written BOOLEAN NOT NULL,
    posted BOOLEAN NOT NULL,
    PRIMARY KEY (number),
    UNIQUE (id)
);
CREATE INDEX events_by_name ON events (session, name, number);
CREATE INDEX events_unposted ON events (session, posted, number);
CREATE INDEX events_unwritten ON events (session, written, number);
CREATE TABLE micrographs (
    stack VARCHAR(24) NOT NULL,
    ordinal INTEGER NOT NULL,
    session VARCHAR(80) NOT NULL,
    name TEXT NOT NULL,
    square VARCHAR(80),
    hole VARCHAR(80),
    kept INTEGER NOT NULL,
    discarded INTEGER NOT NULL,
    review INTEGER NOT NULL,
    quarantined INTEGER NOT NULL,
    score FLOAT,
    defocus FLOAT,
    ctf_resolution FLOAT,
    judged FLOAT NOT NULL,
    PRIMARY KEY (stack, ordinal)
);
CREATE INDEX micrographs_by_square ON micrographs (session, square);
CREATE INDEX micrographs_by_time ON micrographs (session, judged);
CREATE TABLE overrides (
    stack VARCHAR(24) NOT NULL,
    "row" INTEGER NOT NULL,
    session VARCHAR(80) NOT NULL,
    digest VARCHAR(32) NOT NULL,
    image TEXT NOT NULL,
    keep BOOLEAN NOT NULL,
    "before" VARCHAR(10) NOT NULL,
    score FLOAT NOT NULL,
    who VARCHAR(80) NOT NULL,
    at FLOAT NOT NULL,
    PRIMARY KEY (stack, "row")
);
CREATE INDEX ix_overrides_session ON overrides (session);
CREATE TABLE sessions (
    name VARCHAR(80) NOT NULL,
    root TEXT NOT NULL,
    folder TEXT NOT NULL,
    state VARCHAR(10) NOT NULL,
    trainable BOOLEAN NOT NULL,
    token_hash VARCHAR(64) NOT NULL,
    salt VARCHAR(32) NOT NULL,
    host VARCHAR(255) NOT NULL,
    opened FLOAT NOT NULL,
    closed FLOAT,
    seen FLOAT NOT NULL,
    merged FLOAT,
    merge_wanted FLOAT,
    audit INTEGER NOT NULL,
    baseline JSON NOT NULL,
    PRIMARY KEY (name)
);
CREATE TABLE stacks (
    id VARCHAR(24) NOT NULL,
    session VARCHAR(80) NOT NULL,
    path TEXT NOT NULL,
    described_by TEXT,
    kind VARCHAR(10) NOT NULL,
    state VARCHAR(10) NOT NULL,
    digest VARCHAR(32) NOT NULL,
    size BIGINT NOT NULL,
    mtime_ns BIGINT NOT NULL,
    rows INTEGER NOT NULL,
    kept INTEGER NOT NULL,
    discarded INTEGER NOT NULL,
    review INTEGER NOT NULL,
    quarantined INTEGER NOT NULL,
    score FLOAT,
    ensemble VARCHAR(64),
    attempts INTEGER NOT NULL,
    reason TEXT,
    settled FLOAT NOT NULL,
    judged FLOAT,
    PRIMARY KEY (id)
);
CREATE INDEX stacks_by_state ON stacks (session, state);
CREATE INDEX stacks_by_time ON stacks (session, judged);
