"""Run many random calls, and report each that crashes, hangs or is wrong."""

import argparse
import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

SPAN = 500  # calls of one process: a crash loses no more than the rest of them
MOST_CRASHES = 20  # after which no further process starts
MOST_SHOWN = 30


def main():
    options = _options()
    if options.call is not None:
        first, last = options.call, options.call + 1
    else:
        first, last = options.first, options.first + options.calls
    print(f"fuzz: seed {options.seed}, calls {first} to {last - 1}", flush=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        counts, failures = _run(options, first, last, folder)
    seconds = time.monotonic() - start
    for failure in failures[:MOST_SHOWN]:
        print(failure, flush=True)
    for name, count in sorted(counts.items()):
        print(f"  {name}: {count}")
    total = counts["calls"]
    print(f"fuzz: {total} calls, {len(failures)} failures, {seconds:.0f} seconds", flush=True)
    return 1 if failures else 0


def _options():
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("RMAC_FUZZ_SEED", "1")))
    calls = int(os.environ.get("RMAC_FUZZ_CALLS", "20000"))
    parser.add_argument("--calls", type=int, default=calls)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--call", type=int, help="the one call to repeat")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default="", help="calls with this in their name")
    return parser.parse_args()


class _Worker:
    """A process that does the calls first..last - 1, and tells in a file which one it is at."""

    def __init__(self, options, first, last, folder):
        self.options, self.last = options, last
        self._place, self._output, self._errors = (
            Path(folder, f"{first}.{what}") for what in ("place", "output", "errors")
        )
        self._place.write_bytes(bytes(mmap.PAGESIZE))
        command = [sys.executable, "-m", "fuzz.worker", str(options.seed), str(first), str(last)]
        with self._output.open("wb") as output, self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [*command, str(self._place), options.only],
                stdout=output,
                stderr=errors,
                stdin=subprocess.DEVNULL,
            )

    def result(self):
        """Return the counts and failures, and the call to go on from, or None."""
        counts, failures = Counter(), []
        for line in self._output.read_text().splitlines():
            found = json.loads(line)
            if "counts" in found:
                counts.update(found["counts"])
            else:
                failures.append(self._text(found["call"], found["error"]))
        if self.process.returncode == 0:
            return counts, failures, None
        at = int.from_bytes(self._place.read_bytes()[:8], "little")
        errors = self._errors.read_text(errors="replace")
        error = f"the process ended with {self.process.returncode}\n{errors[:6000]}"
        counts["crashes"] += 1
        return counts, [*failures, self._text(at, error)], at + 1

    def _text(self, call, error):
        repeat = f"python -m fuzz --seed {self.options.seed} --call {call}"
        return f"FAILED: {repeat}\n  {error}"


def _run(options, first, last, folder):
    spans = [(start, min(start + SPAN, last)) for start in range(first, last, SPAN)][::-1]
    workers, counts, failures = [], Counter(), []
    while spans or workers:
        if counts["crashes"] >= MOST_CRASHES:
            spans.clear()
        while spans and len(workers) < options.processes:
            workers.append(_Worker(options, *spans.pop(), folder))
        time.sleep(0.05)
        for worker in [one for one in workers if one.process.poll() is not None]:
            workers.remove(worker)
            more, wrong, at = worker.result()
            counts.update(more)
            failures += wrong
            if at is not None and at < worker.last:
                spans.append((at, worker.last))
    return counts, failures


if __name__ == "__main__":
    sys.exit(main())
