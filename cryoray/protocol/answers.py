"""Verdicts on the wire: JSON in the words of the contract, or Arrow for whoever asks for it."""

from __future__ import annotations

import json

import pyarrow as pa

from cryoray.errors import CryorayError
from cryoray.records import JUDGED_SCHEMA, VERDICTS_SCHEMA, Verdicts

JSON_TYPE, ARROW_TYPE = "application/json", "application/vnd.apache.arrow.stream"


def to_json(verdicts: Verdicts) -> bytes:
    """The body of an answer in JSON (`messages.JudgeAnswer`).

    Args:
        verdicts: by row, with the column `image`.
    """
    columns = ("row", *VERDICTS_SCHEMA.names)
    answer = {
        "ensemble": verdicts.ensemble,
        "verdicts": verdicts.judged.select(columns).to_pylist(),
        "quarantined": [{"row": row, "reason": why} for row, why in verdicts.quarantined],
    }
    return json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode()


def to_arrow(verdicts: Verdicts) -> bytes:
    """The body of an answer as a stream of Arrow record batches: `JUDGED_SCHEMA` and `image`."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, verdicts.table.schema) as stream:
        stream.write_table(verdicts.table)
    return sink.getvalue().to_pybytes()


def read(body: bytes, content_type: str) -> Verdicts:
    """What a service answered, with the column `image`.

    Args:
        body: of the answer.
        content_type: of its header.

    Raises:
        CryorayError: it is no answer of a service.
    """
    try:
        if content_type.startswith(ARROW_TYPE):
            return _of_arrow(body)
        return _of_json(body)
    except (ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        raise CryorayError(f"The service's answer cannot be read: {error!r}.") from error


def _of_arrow(body: bytes) -> Verdicts:
    with pa.ipc.open_stream(body) as stream:
        table = stream.read_all()
    if missing := {*JUDGED_SCHEMA.names, "image"} - {*table.column_names}:
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    return Verdicts(table)


def _of_json(body: bytes) -> Verdicts:
    answer = json.loads(body)
    judged = pa.Table.from_pylist(
        answer["verdicts"], pa.schema([JUDGED_SCHEMA.field("row"), *VERDICTS_SCHEMA])
    )
    lost = pa.table(
        {
            "row": pa.array([one["row"] for one in answer["quarantined"]], pa.int64()),
            "quarantined": pa.array([one["reason"] for one in answer["quarantined"]], pa.string()),
        }
    )
    table = pa.concat_tables([judged, lost], promote_options="default").sort_by("row")
    table = table.select([*JUDGED_SCHEMA.names, "image"])
    return Verdicts(table.replace_schema_metadata({"ensemble": str(answer["ensemble"])}))
