"""``llmmem compare``."""

from __future__ import annotations

from typing import Any

import click

from llmmem.cli.exit_codes import DONE, NOT_OK
from llmmem.cli.setup_options import read_setup, setup_options
from llmmem.errors import InputError

__all__ = ["compare"]


@click.command()
@setup_options
@click.option("--device", default="sim:h100", show_default=True, metavar="sim:GPU")
def compare(source: str, device: str, **options: Any) -> int:
    """Compare a trace with its run on the simulated GPU, allocation by allocation.

    Shows the first difference: the sizes, the module, the operator in the trace, and the line of the
    program in the run.

    MODEL is a hub id, an id of llmmem models, a directory or a config.json. It can also be a
    .toml or .json file of setup keys; options take precedence over its keys.
    """
    from llmmem import simgpu
    from llmmem.catalogue.gpus import find_gpu
    from llmmem.devices import parse_device
    from llmmem.validation import diff

    setup = read_setup(source, options)
    chosen = parse_device(device)
    if chosen.gpu is None:
        raise InputError(f"invalid device {device!r} (accepted: sim, sim:GPU)")
    simgpu.activate(chosen.gpu)
    found = diff.compare(setup, find_gpu(chosen.gpu))
    for line in diff.lines(found):
        click.echo(line)
    return DONE if found.difference is None else NOT_OK
