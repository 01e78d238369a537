"""Call a program, or estimate it: ``call.py MODULE.py FUNCTION [--estimate GPU]``.

An estimate is printed as JSON on the last line of standard output.
"""

import importlib.util
import json
import random
import sys
from pathlib import Path

import numpy


def load(path):
    """The module, under a name that no library has."""
    spec = importlib.util.spec_from_file_location(f"program_{Path(path).stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def main():
    """Call or estimate, as the command line says."""
    path, name, *estimate_on = sys.argv[1:]
    program = getattr(load(path), name)
    # What decides sizes on the host is the same in the run and in the estimate.
    random.seed(0)
    numpy.random.seed(0)
    if not estimate_on:
        program()
        return
    import llmmem

    trace = llmmem.estimate(program, estimate_on[-1])
    print()
    print(
        json.dumps(
            {
                "outcome": trace.outcome,
                "message": trace.message,
                "allocated": trace.peaks.allocated,
                "reserved": trace.peaks.reserved,
                "assumptions": trace.assumptions,
            }
        )
    )


if __name__ == "__main__":
    main()
