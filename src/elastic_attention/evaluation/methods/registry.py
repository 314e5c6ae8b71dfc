"""All methods by name, and what is left out."""

from dataclasses import replace

from ...errors import ElasticAttentionError
from . import infllm, masks, moba, routed, simple, triangle_mix, xattention
from .base import Method, MethodKind

METHODS: dict[str, MethodKind] = {
    "dense": simple.DENSE,
    "all_sparse": simple.ALL_SPARSE,
    "random": simple.RANDOM,
    "routed": routed.ROUTED,
    "fa_ssa": routed.FA_SSA,
    "fa_xa": routed.FA_XA,
    "xa_ssa": routed.XA_SSA,
    "fa_ta": routed.FA_TA,
    "flux": routed.FLUX,
    "flux_ta": routed.FLUX_TA,
    "static": masks.STATIC,
    "prulong": masks.PRULONG,
    "duo_attention": masks.DUO_ATTENTION,
    "retrieval_heads": masks.RETRIEVAL_HEADS,
    "xattention": xattention.XATTENTION,
    "triangle_mix": triangle_mix.TRIANGLE_MIX,
    "moba": moba.MOBA,
    "infllm_v2": infllm.INFLLM,
}
LEFT_OUT = {
    "nsa": "its compression network, gates and separate keys and values are trained together with the model's own "
    "weights, and on a frozen model they have nothing to start from",
}


def find_method(method: Method) -> MethodKind:
    """What a method stands for.

    Raises:
        ElasticAttentionError: an unknown or left-out name, or a folder or target that is missing.
    """
    if method.name in LEFT_OUT:
        raise ElasticAttentionError(f"method {method.name!r} is left out: {LEFT_OUT[method.name]}.")
    if method.name not in METHODS:
        raise ElasticAttentionError(f"method {method.name!r} is unknown; choose one of {', '.join(METHODS)}.")
    kind = METHODS[method.name]
    if kind.needs in ("adapter", "mask") and not method.folder:
        raise ElasticAttentionError(
            f"method {method.name!r} needs the folder of its {kind.needs}: write {method.name}=FOLDER."
        )
    if kind.needs == "target" and method.target is None:
        raise ElasticAttentionError(f"method {method.name!r} needs a share of sparse heads: write {method.name}@0.7.")
    return kind


def settle_method(method: Method) -> Method:
    """The method with the decoding that it prescribes itself.

    Raises:
        ElasticAttentionError: as `find_method`, or a folder or target that the method has no use for.
    """
    kind = find_method(method)
    takes_folder = kind.needs in ("adapter", "mask") or method.name == "routed"
    if method.folder and not takes_folder:
        raise ElasticAttentionError(
            f"method {method.name!r} reads no folder, but {method.folder} is named; leave it out, or write "
            f"routed={method.folder} or static={method.folder}."
        )
    if method.target is not None and not (takes_folder or kind.needs == "target"):
        raise ElasticAttentionError(
            f"method {method.name!r} has no share of sparse heads to choose; leave @{method.target:g} out, or write "
            f"random@{method.target:g}."
        )
    return replace(method, decode=kind.decode or method.decode)
