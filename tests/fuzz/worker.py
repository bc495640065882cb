"""A process that makes calls: ``python -m fuzz.worker SEED FIRST LAST PLACE ONLY``."""

import faulthandler
import json
import mmap
import os
import resource
import sys
import traceback
import warnings
from collections import Counter

import numpy as np

from fuzz import hostile, maps, others, retrieval, scenarios
from fuzz.calls import new_memory, pick

HANG = 120  # seconds in which a call must end; it is only there to end a hang
MEMORY = 6 << 30  # bytes that a process may take; wrong sizes are to fail, not to fill the machine

# Every public function, some of them more often.
CALLS = [
    *[maps.region_pool] * 4,
    maps.region_pool_list,
    *[maps.rmac_] * 3,
    maps.rmac_list,
    maps.rmac_whitened,
    *[maps.roi_pool] * 2,
    maps.rmac_regions,
    others.region_grid,
    others.sequence_grid,
    others.to_image,
    others.merge_scales,
    others.branch_pool,
    others.whitening_fit,
    others.whitening_parts,
    others.whitening_apply,
    others.whitening_from_projection,
    others.whitening_merge,
    others.whitening_load,
    retrieval.expand,
    retrieval.rerank,
    *[retrieval.localize] * 2,
    retrieval.average_precision,
    retrieval.evaluate,
    others.run_on_device,
    others.operator_object,
    scenarios.changed_option,
    scenarios.changed_grid,
    scenarios.huge_maps,
    scenarios.flushed_subnormals,
    scenarios.written_boxes,
    scenarios.refitted_whitening,
    scenarios.added_vectors,
]


def main():
    seed, first, last = map(int, sys.argv[1:4])
    faulthandler.enable()
    if not os.environ.get("RMAC_FUZZ_SANITIZED"):
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    warnings.simplefilter("error")
    for documented in ("are in no R-MAC region", "variances are zero to rounding"):
        warnings.filterwarnings("ignore", f".*{documented}", UserWarning)
    counts = Counter()
    with open(sys.argv[4], "r+b") as file:
        place = mmap.mmap(file.fileno(), mmap.PAGESIZE)
    for number in range(first, last):
        place[:8] = number.to_bytes(8, "little")
        faulthandler.dump_traceback_later(HANG, exit=True)
        error = one_call(seed, number, counts)
        if error:
            print(json.dumps({"call": number, "error": error}), flush=True)
    print(json.dumps({"counts": counts}), flush=True)


def one_call(seed, number, counts):
    """Make a call that the two numbers decide; return what was wrong with it, or None."""
    rng = np.random.default_rng([seed, number])
    only = sys.argv[5]
    draw = pick(rng, [draw for draw in CALLS if only in draw.__name__])
    wrong = number % 2 == 1
    counts["calls"] += 1
    counts[f"{draw.__name__}, {'hostile' if wrong else 'valid'}"] += 1
    memory, call = new_memory(rng), None
    try:
        call = draw(rng, memory)
        memory.freeze()
        if wrong and call.first is not None:
            hostile.check(rng, call, counts)
        else:
            result = call.run()
            assert call.output is None or result is call.output, "the result is not `out`"
            call.check(result)
        memory.check()
    except Exception:
        told = f"{describe(call)} {'; '.join(call.notes)}" if call else "could not be drawn"
        return f"{draw.__name__} {told}\n{traceback.format_exc(limit=-6)}"
    return None


def describe(call):
    """Return a call's arguments, arrays as dtype, shape and strides."""
    return ", ".join(map(short, ({call.name: call.first} | call.options).items()))


def short(item):
    name, value = item
    if type(value) is np.ndarray:
        return f"{name}=array({value.dtype}, {value.shape}, strides {value.strides})"
    try:
        return f"{name}={str(value)[:80] if type(value) in (list, tuple) else repr(value)[:80]}"
    except Exception as error:
        return f"{name}={type(value)} without a repr ({type(error).__name__})"


if __name__ == "__main__":
    main()
