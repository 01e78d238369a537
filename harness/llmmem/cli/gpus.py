"""``llmmem gpus``."""

from __future__ import annotations

from dataclasses import asdict

import click

from llmmem.cli.json_output import print_json
from llmmem.cli.options import json_option

__all__ = ["gpus"]


@click.command()
@json_option
def gpus(as_json: bool) -> None:
    """List the GPUs that can be simulated, or assumed by an estimate."""
    from llmmem.catalogue.gpus import gpus as entries

    if as_json:
        print_json([asdict(gpu) for gpu in entries()])
    else:
        from llmmem.cli.show import show_gpus

        show_gpus(entries())
