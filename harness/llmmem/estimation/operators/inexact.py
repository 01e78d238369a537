"""Operators whose workspace is not known: a trace runs them and names them in its assumptions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmmem.estimation.operators.common import Arguments, Entry, Keywords, is_on_device

if TYPE_CHECKING:
    from llmmem.estimation.tracing.tracer import Tracer

__all__ = ["ENTRIES", "run_inexact"]


def run_inexact(tracer: Tracer, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Run an operator whose kernel allocates an unknown workspace, which the trace then reports."""
    out = tracer.run(func, args, kwargs)
    if any(map(is_on_device, out if isinstance(out, tuple | list) else (out,))):
        tracer.inexact.add(func._schema.name.replace("aten::", "torch.ops.aten."))
    return out


ENTRIES = (
    Entry(
        "_cdist_forward _cdist_backward _euclidean_dist _pdist_forward _pdist_backward "
        "cholesky_inverse cholesky_solve linalg_cholesky_ex linalg_lu linalg_lu_factor_ex "
        "linalg_lu_solve linalg_matrix_exp lu_unpack _linalg_det _linalg_slogdet _linalg_eigh "
        "linalg_eig linalg_inv_ex _linalg_solve_ex linalg_solve_triangular triangular_solve "
        "linalg_householder_product linalg_ldl_factor_ex linalg_ldl_solve ormqr geqrf "
        "isin median nanmedian mode kthvalue cummax cummin multinomial renorm count_nonzero "
        "segment_reduce _embedding_bag _embedding_bag_dense_backward native_batch_norm_backward "
        "cudnn_batch_norm_backward batch_norm_backward grid_sampler_3d_backward "
        "unfold_backward special_i1e _chunk_cat take _unsafe_masked_index "
        "_unsafe_masked_index_put_accumulate linalg_vander",
        run_inexact,
    ),
)
