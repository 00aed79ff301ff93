"""State that DeepSpeed's ZeRO-3 keeps in files (offload to `nvme`), for the time of a checkpoint.

DeepSpeed 0.19.8 copies its swap files beside a checkpoint and reads them back, but not what it
never swapped (step counters, groups below 1 MiB), not for another number of ranks, and no weights
that stay in files. With all state in memory it saves and loads it as if none was offloaded.
"""

# ruff: noqa: SLF001 -- DeepSpeed has no public way to its swapped state.

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


def read_each_once(module: nn.Module) -> None:
    """Have weights that are used twice in a row (forward, then backward) read ahead once.

    DeepSpeed asks for both uses in one call, of which its swapper then refuses the second.
    """
    swappers: set[Any] = {getattr(one, "nvme_swapper", None) for one in module.parameters()}
    for swapper in swappers - {None}:
        swap_in = swapper.swap_in

        def once(
            parameters: list[Any], *args: Any, swap_in: Any = swap_in, **settings: Any
        ) -> None:
            swap_in(list({one.ds_id: one for one in parameters}.values()), *args, **settings)

        swapper.swap_in = once


@contextmanager
def all_in_memory(optimizer: Any, *, changes: bool) -> Iterator[None]:
    """A rank's whole optimizer state in memory inside, in its files again behind.

    Args:
        optimizer: DeepSpeed's, of any stage; nothing is done where it keeps nothing in files.
        changes: whether the state is changed inside, by a load, and must be written back.
    """
    with (
        _states_in_memory(optimizer, changes=changes),
        # A save takes the weights from the optimizer's copy; a load fills them.
        _room_for_weights(optimizer) if changes else nullcontext(),
    ):
        yield


@contextmanager
def _states_in_memory(optimizer: Any, *, changes: bool) -> Iterator[None]:
    if not getattr(optimizer, "swap_optimizer", False):
        yield
        return
    groups = [
        _SwappedGroup(optimizer, group)
        for group in range(len(optimizer.fp32_partitioned_groups_flat))
        if optimizer._swappable_optimizer_subgroup(group)
    ]
    for group in groups:
        group.read()
    optimizer.swap_optimizer = False
    try:
        yield
    finally:
        optimizer.swap_optimizer = True
    if changes:
        optimizer.optimizer_swapper.purge_state()
    for group in groups:
        if changes:
            group.write()
        else:
            group.drop()


class _SwappedGroup:
    """One of ZeRO's flat parameters with its states, which the swapper reads and writes at once."""

    def __init__(self, optimizer: Any, group: int) -> None:
        self._optimizer, self._group = optimizer, group
        self._master: Any = optimizer.fp32_partitioned_groups_flat[group]
        self._tensors: list[Tensor] = []

    def read(self) -> None:
        """Give each tensor memory of its own: the swapper has buffers for one group only."""
        self._optimizer._optimizer_states_and_gradient_swap_in(self._group)
        swapped = self._optimizer.optimizer_swapper.swap_params_info[self._master.ds_id]
        self._tensors = swapped.get_compute_tensors()
        copies = [tensor.data.clone() for tensor in self._tensors]
        self._optimizer._release_swap_buffers(self._group)
        for tensor, copy in zip(self._tensors, copies, strict=True):
            tensor.data = copy

    def write(self) -> None:
        """Write what was loaded, whose states are new tensors: the swapper has forgotten the old.

        While it reads there must be no states: they need not have files yet.
        """
        state, loaded = self._optimizer.state.pop(self._master), self._master.data
        self._optimizer._optimizer_states_and_gradient_swap_in(self._group)
        self._master.data.copy_(loaded)
        self._optimizer.state[self._master] = state
        self._optimizer._optimizer_states_and_gradient_swap_out(self._group)

    def drop(self) -> None:
        """Free the memory: the files hold the same."""
        for tensor in self._tensors:
            tensor.data = torch.Tensor()


@contextmanager
def _room_for_weights(optimizer: Any) -> Iterator[None]:
    """Memory for the weights that stay in files, which go back there."""
    flats: list[Tensor | None] = getattr(optimizer, "fp16_partitioned_groups_flat", [])
    groups = [group for group, flat in enumerate(flats) if flat is None]
    if not groups:
        yield
        return
    optimizer.empty_partition_cache()
    in_files = [
        parameter
        for group in groups
        for parameter in optimizer.fp16_groups[group]
        if parameter.ds_tensor.status.name == "NOT_AVAILABLE"
    ]
    for parameter in in_files:
        share = parameter.ds_tensor
        share.data = torch.empty(share.ds_numel, dtype=optimizer.dtype)
    for group in groups:
        length = optimizer.fp16_partitioned_groups_flat_numel[group]
        flats[group] = torch.empty(length, dtype=optimizer.dtype)
    yield
    for parameter in in_files:
        parameter.ds_tensor.data = parameter.nvme_swapper.invalid_buffer.data
    for group in groups:
        flats[group] = None
        optimizer._partitioned_params_swap_out(group)
