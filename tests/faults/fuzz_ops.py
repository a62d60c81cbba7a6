"""Calls the ops with random arguments, right and wrong, for a while: every call gives what the reference gives, or one
error that names the op and the argument.

    python tests/faults/fuzz_ops.py --minutes 60          make fuzz MINUTES=60
    python tests/faults/fuzz_ops.py --seed 1234 --calls 1  one call again

The calls run in a process of their own, so that a crash is found, named and gone past.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from support.op_bounds import check, compare, results
from support.op_draws import draw_call
from support.op_spoils import plain, spoiled

from tempflow_fast.ops import native

ISAS = ("baseline", "avx2", "avx512")


def one_call(seed: int) -> str:
    """Makes the call of a seed.

    Returns:
        What happened: `equal`, `refused` or `accepted`.

    Raises:
        AssertionError: a wrong result, or an error that does not name the op and an argument.
    """
    rng = Random(seed)
    native.force_cpu_isa(rng.choice(ISAS))
    torch.set_num_threads(rng.choice((1, 2, 3)))
    call = draw_call(rng)
    if rng.random() < 0.5:
        check(call)
        return "equal"
    call, what = spoiled(rng, call)
    try:
        got = results(call)
    except ValueError as error:
        names = "|".join([*call.arguments, "step"])
        if re.match(rf"{call.op}: ({names}) must be ", str(error)):
            return "refused"
        raise AssertionError(f"{what}: {error}") from error
    except Exception as error:
        raise AssertionError(f"{call.op} {what}: {type(error).__name__}: {str(error)[:300]}") from error
    copy = plain(call)
    if all(value.is_meta for value in got.values()):
        return "accepted"
    if copy is None:
        raise AssertionError(f"{call.op} {what}: accepted")
    compare(copy, got)
    return "accepted"


def work(first: int, calls: int, until: float, place: Path) -> None:
    """Calls from seed `first` on, until the time is over; `place` always holds the current seed. Prints the outcome."""
    warnings.simplefilter("ignore")  # torch's, about the odd tensors
    outcomes: Counter[str] = Counter()
    faults: list[str] = []
    with place.open("w", buffering=1) as file:
        for seed in range(first, first + calls):
            if time.time() > until:
                break
            file.seek(0)
            file.write(f"{seed:20}\n")
            try:
                outcomes[one_call(seed)] += 1
            except Exception as error:
                faults.append(f"seed {seed}: {error}")
    print(json.dumps({"outcomes": outcomes, "faults": faults}))


def main() -> None:
    """Runs the calls in a process; where it dies, the seed is a fault and the next one continues."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0, help="the first call's seed")
    parser.add_argument("--calls", type=int, default=2**62, help="the most calls to make")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    began = time.time()
    until = began + 60 * options.minutes
    if options.worker:
        work(options.seed, options.calls, until, options.worker)
        return
    found: dict[str, Any] = {"outcomes": Counter(), "faults": []}
    seed, last = options.seed, options.seed + options.calls
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "seed"
        while time.time() < until and seed < last:
            minutes, calls = (until - time.time()) / 60, min(last - seed, 20_000)
            command = [
                sys.executable,
                __file__,
                "--worker",
                place,
                "--seed",
                seed,
                "--calls",
                calls,
                "--minutes",
                minutes,
            ]
            done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                seed = int(place.read_text())
                found["faults"].append(f"seed {seed}: the process died with status {done.returncode}")
                seed += 1
                continue
            result = json.loads(done.stdout)
            found["outcomes"].update(result["outcomes"])
            found["faults"] += result["faults"]
            seed += sum(result["outcomes"].values()) + len(result["faults"])
    for fault in found["faults"][:50]:
        print(fault)
    counts = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(found["outcomes"].items()))
    minutes = (time.time() - began) / 60
    print(f"{seed - options.seed:,} calls in {minutes:.1f} minutes: {counts}; {len(found['faults'])} faults")
    sys.exit(bool(found["faults"]))


if __name__ == "__main__":
    main()
