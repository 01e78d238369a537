"""Notes about what a figure leaves out, in the same words for runs and estimates."""

from __future__ import annotations

from llmmem.units import format_size

__all__ = ["cudnn_attention"]


def cudnn_attention(unknown: int) -> str:
    """What attention by cuDNN leaves unknown.

    Args:
        unknown: Bytes that one backward pass of an attention may take beyond what is counted: the
            gradients of keys and values before they are summed over the query heads that share
            them; 0 where none are shared.
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
