"""``llmmem doctor``."""

from __future__ import annotations

import click

from llmmem.cli.exit_codes import DONE, NOT_OK
from llmmem.cli.json_output import print_json
from llmmem.cli.options import json_option

__all__ = ["doctor"]


@click.command()
@json_option
def doctor(as_json: bool) -> int:
    """Say what this machine can do, and what is missing."""
    from llmmem.cli.diagnosis import examine

    diagnosis = examine()
    if as_json:
        print_json(diagnosis.to_dict())
    else:
        from llmmem.cli.show import show_diagnosis

        show_diagnosis(diagnosis)
    return DONE if diagnosis.estimated.works else NOT_OK
