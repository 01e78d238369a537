"""``llmmem estimate``."""

from __future__ import annotations

from typing import Any

import click

from llmmem.cli.exit_codes import DONE, NOT_OK
from llmmem.cli.json_output import print_json
from llmmem.cli.options import host_memory_option, json_option, timeout_option
from llmmem.cli.setup_options import read_setup, setup_options

__all__ = ["estimate"]


@click.command()
@setup_options
@click.option("--gpu", metavar="GPU", help="Card of the catalogue to assume; see llmmem gpus.")
@timeout_option
@host_memory_option
@json_option
def estimate(
    source: str,
    gpu: str | None,
    timeout: float,
    host_memory: int | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Estimate the memory of a step without running it.

    Closed-form rules and a trace on the meta device are shown side by side.

    MODEL is a hub id, an id of llmmem models, a directory or a config.json. It can also be a
    .toml or .json file of setup keys; options take precedence over its keys.
    """
    setup = read_setup(source, options)
    if gpu is not None:
        from llmmem.catalogue.gpus import find_gpu

        gpu = find_gpu(gpu).name
    from llmmem.execution.runner import estimate_in_fork

    result = estimate_in_fork(setup, gpu, timeout=timeout, host_memory=host_memory)
    if as_json:
        print_json(result.to_dict())
    else:
        from llmmem.cli.show import show_estimate

        show_estimate(result)
    return DONE if result.trace.outcome == "ok" else NOT_OK
