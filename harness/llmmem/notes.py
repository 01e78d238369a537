"""Notes about what figures leave out, worded the same for runs and estimates."""

from __future__ import annotations

from llmmem.units import format_size

__all__ = ["cudnn_attention"]


def cudnn_attention(unknown: int) -> str:
    """The note about cuDNN attention, whose workspace is partly unknown.

    Args:
        unknown: The bytes that the backward pass of one attention layer may take beyond what is counted:
            gradients of keys and values before they are summed over the query heads that share them.
            0 if no heads share them.
    """
    said = (
        "attention by cuDNN, as PyTorch chooses on this card: its workspace is counted as far as "
        "PyTorch asks for it (exact); what the plans of cuDNN add is not known and not counted"
    )
    if not unknown:
        return said
    return (
        f"{said}: up to {format_size(unknown)} in the backward pass of one attention, if cuDNN "
        "keeps gradients of keys and values for every query head as flash attention does"
    )
