"""What benchmarks share: where they ran, time and memory in a process of its own, tables, JSON.

A benchmark is a module with ``measure() -> dict``, made by :func:`result`, and ends with
``if __name__ == "__main__": main(measure)``. It asserts no time: numbers go beside those of the peer or
the limit that was measured in the same run, on the same machine.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar

from cryoray.formats.files import replacing

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("cryoray", "numpy", "pyarrow", "torch", "ray", "mrcfile", "starfile")

Row = dict[str, Any]
T = TypeVar("T")


class Cost(NamedTuple):
    """What something took: seconds by the clock and of processors, peak memory beyond the start, MiB."""

    seconds: float
    cpu_seconds: float
    mib: float


def environment() -> dict[str, Any]:
    """The machine and the versions that numbers were measured with; no names, no paths."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "memory_gib": round(int((_field("/proc/meminfo", "MemTotal") or "0").split()[0]) / 2**20),
        "system": platform.system() + " " + platform.release().split("-")[0],
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
        "versions": versions,
    }


def _field(file: str, name: str) -> str:
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "")


def result(
    question: str,
    rows: Sequence[Row],
    *,
    ratios: Sequence[str] = ("seconds",),
    among: str | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The answer of a benchmark, ready for JSON.

    Args:
        question: what was asked, in words.
        rows: one for each thing that was measured, all with the same keys; the first key names it.
        ratios: keys of numbers beside which their ratio to that of an earlier row is printed: the
            first row of all, or the first with the same value of ``among``.
        among: that key.
        notes: what a reader has to know beside the numbers.
    """
    compared = []
    for row in rows:
        first = next(other for other in rows if among is None or other[among] == row[among])
        line: Row = {}
        for key, value in row.items():
            line[key] = value
            if key in ratios:
                limit = first[key]
                line[f"{key} ×"] = value / limit if value is not None and limit else None
        compared.append(line)
    return {
        "question": question,
        "rows": compared,
        "notes": list(notes),
        "environment": environment(),
    }


def table(rows: Sequence[Row]) -> str:
    """Rows as a table of markdown, which a terminal shows as well."""
    keys = list(rows[0])
    cells = [keys, *([_text(row[key]) for key in keys] for row in rows)]
    widths = [max(len(line[at]) for line in cells) for at in range(len(keys))]
    lines = [
        "| "
        + " | ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in cells
    ]
    rule = (
        "|"
        + "|".join(
            "-" * (width + 2) if at == 0 else "-" * (width + 1) + ":"
            for at, width in enumerate(widths)
        )
        + "|"
    )
    return "\n".join([lines[0], rule, *lines[1:]])


def _text(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return (
            f"{value:,.0f}"
            if abs(value) >= 100
            else f"{value:.2g}"
            if abs(value) < 1
            else f"{value:.3g}"
        )
    return f"{value:,}" if isinstance(value, int) else str(value)


def main(measure: Callable[[], dict[str, Any]]) -> None:
    """Measure, print the table, write ``results/NAME.json``."""
    name = Path(sys.modules[measure.__module__].__file__ or measure.__module__).stem
    answer = measure()
    print(f"{answer['question']}\n\n{table(answer['rows'])}\n")
    for note in answer["notes"]:
        print(f"- {note}")
    with replacing(RESULTS / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(answer, indent=2, ensure_ascii=False) + "\n")


def in_process(work: Callable[..., T], *arguments: object) -> tuple[Cost, T]:
    """Run a function of a module in a fresh process, and say what it took there.

    Imports that come with the function's module are not counted; what it imports itself is.
    """
    context = multiprocessing.get_context("spawn")
    mine, other = context.Pipe(duplex=False)
    process = context.Process(target=_measured, args=(other, work, arguments))
    process.start()
    other.close()
    try:
        cost, made = mine.recv()
    except EOFError:
        raise RuntimeError(f"{work.__qualname__} failed; what it said is above") from None
    finally:
        process.join()
    return Cost(*cost), made


def _measured(answer: Any, work: Callable[..., object], arguments: tuple[object, ...]) -> None:
    before, begun, used = _memory("VmRSS"), time.perf_counter(), time.process_time()
    made = work(*arguments)
    cost = (
        time.perf_counter() - begun,
        time.process_time() - used,
        (_memory("VmHWM") - before) / 1024,
    )
    answer.send((cost, made))


def command(*words: str | Path, cwd: Path | None = None) -> Cost:
    """Run a program to its end, and say what it took, its start included."""
    # The peak is asked of the process while it lives: what the kernel reports at its end counts the
    # memory of whoever started it.
    begun, used, peak = time.perf_counter(), _children(), 0
    with subprocess.Popen(
        [str(word) for word in words],
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while process.poll() is None:
            peak = max(peak, _memory("VmHWM", process.pid))
            time.sleep(0.005)
        said = process.stderr.read() if process.stderr else ""
    if process.returncode:
        raise RuntimeError(f"{words[0]} ended with {process.returncode}: {said[-500:]}")
    return Cost(time.perf_counter() - begun, _children() - used, peak / 1024)


def _children() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _memory(name: str, process: int | str = "self") -> int:
    """KiB of a process, 0 where the system does not say."""
    return int((_field(f"/proc/{process}/status", name) or "0").split()[0])


def typical(costs: Sequence[Cost]) -> Cost:
    """The median of each number over repeats."""
    return Cost(*(median(values) for values in zip(*costs, strict=True)))
