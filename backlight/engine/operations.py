"""Operations: the names under which rules answer torch functions, however a network spells them.

`F.relu`, `torch.relu` and `Tensor.relu_` are all `relu`; `x + y`, `torch.add` and `x += y` are all `add`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

# Other spellings of an operation. A function not named here goes by its own name, without underscores.
_SPELLINGS = {
    "max_pool": "max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices "
    "max_pool3d_with_indices",
    "adaptive_max_pool": "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
    "adaptive_max_pool1d_with_indices adaptive_max_pool2d_with_indices adaptive_max_pool3d_with_indices",
    "fractional_max_pool": "fractional_max_pool2d fractional_max_pool3d fractional_max_pool2d_with_indices "
    "fractional_max_pool3d_with_indices",
    "avg_pool": "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d",
    "conv": "conv1d conv2d conv3d convolution",
    "conv_transpose": "conv_transpose1d conv_transpose2d conv_transpose3d",
    "logsigmoid": "log_sigmoid",
    "clamp": "clip clamp_min clamp_max",
    "attention": "scaled_dot_product_attention",
    "multihead_attention": "multi_head_attention_forward",
    "matmul": "mm bmm mv dot inner rmatmul imatmul",
    "addmm": "addbmm baddbmm addmv",
    "mul": "multiply rmul imul",
    "div": "divide true_divide truediv rtruediv itruediv rdiv idiv",
    "add": "radd iadd",
    "sub": "subtract rsub isub",
    "neg": "negative",
    "pow": "rpow ipow float_power",
    "cat": "concat concatenate",
    "dropout": "dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout feature_dropout",
    "to": "float double half bfloat16 type type_as cuda cpu",
}
_ALIASES = {spelling: name for name, spellings in _SPELLINGS.items() for spelling in spellings.split()}

# The ordinary vector-Jacobian product is the adjoint: affine in what is differentiated.
AFFINE = frozenset(
    "linear conv conv_transpose avg_pool add sub rsub neg sum mean nanmean nansum cumsum interpolate upsample diff "
    "trace fft_rfft fft_fft fft_irfft fft_ifft fft_rfft2 fft_fft2 fft_irfft2 fft_ifft2 fft_fftn fft_ifftn fft_rfftn "
    "fft_irfftn real imag view_as_real view_as_complex complex affine_grid embedding embedding_bag".split()
)
# Affine while one operand is constant; a product of two signals otherwise, which a rule must answer for.
PRODUCTS = frozenset("mul matmul addmm einsum tensordot outer ger kron addcmul bilinear lerp".split())
# Numbers are moved or selected, at most with another sign.
STRUCTURAL = frozenset(
    "view view_as reshape reshape_as flatten unflatten ravel permute transpose t T mT H mH swapaxes swapdims movedim "
    "moveaxis squeeze unsqueeze expand expand_as broadcast_to broadcast_tensors repeat repeat_interleave tile "
    "contiguous clone to cat stack hstack vstack dstack column_stack split split_with_sizes tensor_split chunk unbind "
    "narrow select index_select gather getitem take take_along_dim masked_select masked_fill where roll flip fliplr "
    "flipud rot90 pad constant_pad_nd dropout detach alias as_strided unfold fold tril triu diagonal diag diag_embed "
    "index_add index_copy index_put index_fill scatter scatter_add setitem copy data atleast_1d atleast_2d atleast_3d "
    "pixel_shuffle pixel_unshuffle channel_shuffle requires_grad retain_grad set "
    "max_pool adaptive_max_pool fractional_max_pool maximum minimum fmax fmin max min amax amin aminmax topk sort "
    "kthvalue median abs".split()
)
# Whose results are feature maps, where they have positions: activations, sums, concatenations. Gates are none.
MAPS = frozenset(
    "relu relu6 leaky_relu prelu rrelu elu selu celu silu gelu hardswish mish softplus hardtanh tanh softsign "
    "logsigmoid tanhshrink hardshrink softshrink threshold clamp maximum fmax add cat".split()
)
# Called for what they say; nothing that could be differentiated passes.
_METADATA = frozenset(
    "shape size dim ndim ndimension numel stride dtype device layout grad grad_fn "
    "data_ptr storage untyped_storage storage_offset element_size itemsize nbytes item "
    "tolist numpy __len__ __bool__ __repr__ __format__ __hash__ __index__ __int__ __float__ __contains__ __array__ "
    "get_device "
    "has_names names _version _base eq ne lt le gt ge __eq__ __ne__ __lt__ __le__ __gt__ __ge__ __invert__ logical_and "
    "logical_or logical_not bitwise_not isnan isinf isfinite isclose allclose equal argmax argmin argsort any all "
    "result_type can_cast zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_empty "
    "new_full new_tensor bucketize searchsorted unique nonzero _assert arange".split()
)


def is_metadata(function: Callable[..., Any]) -> bool:
    """Whether the function passes on nothing that could be differentiated (shapes, comparisons, constants)."""
    name = operation_name(function)
    return name in _METADATA or name.startswith("is_")


@cache
def operation_name(function: Callable[..., Any]) -> str:
    """The operation that a torch function spells: `torch.Tensor.relu_` is `relu`, `operator +=` is `add`."""
    name = getattr(function, "__name__", str(function))
    owner = getattr(function, "__self__", None)
    if name in ("__get__", "__set__") and owner is not None:  # a property: Tensor.T, Tensor.shape
        name = getattr(owner, "__name__", name)
    if isinstance(function, torch._ops.OpOverload):
        name = function._schema.name.split("::")[-1]
    if name in _METADATA:
        return name
    name = name.strip("_")
    return _ALIASES.get(name, name)


@cache
def is_in_place(function: Callable[..., Any]) -> bool:
    """Whether the function writes to its first argument."""
    name = getattr(function, "__name__", "")
    if name.startswith("__"):
        return name == "__setitem__" or (name.startswith("__i") and out_of_place(function) is not None)
    return name.endswith("_") and name not in ("requires_grad_", "detach_", "rename_", "share_memory_")


@cache
def out_of_place(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """The function whose result an in-place one writes, or None: `Tensor.add_` gives `Tensor.add`."""
    name = getattr(function, "__name__", "")
    if name.startswith("__i") and name.endswith("__") and name not in ("__index__", "__int__", "__invert__"):
        return getattr(torch.Tensor, "__" + name[3:], None)
    if not name.endswith("_") or name.endswith("__"):
        return None
    for owner in (torch.Tensor, torch.nn.functional):
        if hasattr(owner, name[:-1]):
            return getattr(owner, name[:-1])
    return None
