"""``llmmem run``."""

from __future__ import annotations

from typing import Any

import click

from llmmem.cli.exit_codes import DONE, NOT_OK
from llmmem.cli.json_output import print_json
from llmmem.cli.options import host_memory_option, json_option, timeout_option
from llmmem.cli.setup_options import read_setup, setup_options
from llmmem.errors import UnsupportedError

__all__ = ["run"]


@click.command()
@setup_options
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="DEVICE",
    help="auto, cuda, cuda:N, sim, sim:GPU or sim:GPUxN.",
)
@timeout_option
@host_memory_option
@click.option(
    "--estimate/--no-estimate", "beside", default=True, help="Estimate too.  [default: estimate]"
)
@json_option
def run(
    source: str,
    device: str,
    timeout: float,
    host_memory: int | None,
    beside: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Run a step and show the memory that it took.

    Shows peaks, components, phases and the largest allocations, next to the estimate.

    MODEL is a hub id, an id of llmmem models, a directory or a config.json. It can also be a
    .toml or .json file of setup keys; options take precedence over its keys.
    """
    from llmmem.execution.runner import Runner

    setup = read_setup(source, options)
    with Runner(device, host_memory=host_memory) as runner:
        if device == "auto" and runner.device.kind == "estimate":
            raise UnsupportedError(
                "there is no GPU, and none can be simulated: llmmem doctor shows what is missing, "
                "and llmmem estimate does not need one"
            )
        result = runner.run(setup, estimate=beside, timeout=timeout)
    if as_json:
        print_json(result.to_dict())
    else:
        from llmmem.cli.show import show_run

        show_run(result)
    return DONE if result.outcome == "ok" else NOT_OK
