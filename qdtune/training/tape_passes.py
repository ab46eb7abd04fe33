"""Passes over the calls of a tape, after which it makes the same numbers in less time."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qdtune.training.taped_calls import Layout, Slot, TapedCall, aten, map_leaves, rename_slots

# The result of each has the elements of its first argument, in their order, if it has its layout too.
SAME_ELEMENTS = (aten.alias, aten.clone, aten.detach, aten.expand, aten.permute, aten.view, aten._unsafe_view)
# The results of these do not depend on the order in memory. Those of other operations, such as a power, may.
EXACT: tuple[Any, ...] = (aten.add, aten.sub, aten.mul, aten.div, aten.where, aten.clamp, aten.maximum, aten.minimum)
EXACT += (aten.eq, aten.ne, aten.ge, aten.gt, aten.le, aten.lt)
LONG_ROW = 512  # numbers; the start of a row then takes little of its time
FEW_COPIES = 16  # a tensor is written out if the largest beside it has as many times its numbers, or more


def _find_owners(calls: Sequence[TapedCall]) -> dict[Slot, Slot]:
    """For each view: the tensor that owns its memory."""
    owners: dict[Slot, Slot] = {}
    for call in calls:
        if (base := call.viewed()) is not None:
            owners |= {view: owners.get(base, base) for view in call.makes() if view != base}
    return owners


def _find_owners_and_changed(calls: Sequence[TapedCall]) -> tuple[dict[Slot, Slot], set[Slot]]:
    """As `_find_owners`, and the tensors whose memory some call changes."""
    owners = _find_owners(calls)
    return owners, {owners.get(slot, slot) for call in calls for slot in call.writes()}


def drop_vain_copies(calls: Sequence[TapedCall]) -> list[TapedCall]:
    """The calls without copies that nothing changes before they are written back.

    A forward pass gets copies of all buffers, because it may change some, but it changes few.
    """
    owners = _find_owners(calls)
    sources = {call.makes()[0]: call.reads()[0] for call in calls if call.function is aten.clone.default}

    def is_written_back(call: TapedCall) -> bool:
        return call.function is aten.copy_.default and sources.get(call.args[1]) == call.args[0]

    changed = {owners.get(slot, slot) for call in calls if not is_written_back(call) for slot in call.writes()}
    back = [call.args[1] for call in calls if is_written_back(call)]
    vain = {copy: sources[copy] for copy in back if not changed & {copy, owners.get(sources[copy], sources[copy])}}
    left = [call for call in calls if not (is_written_back(call) and call.args[1] in vain)]
    return [call.renamed(vain) for call in left if not vain.keys() & set(call.makes())]


def change_in_place(
    calls: Sequence[TapedCall], layouts: dict[Slot, Layout], returned: Collection[Slot]
) -> list[TapedCall]:
    """The calls without copies that are changed and then written back, where nothing uses the original meanwhile.

    Such as of the statistics of a normalisation. The original is changed instead.

    Args:
        calls: in their order.
        layouts: of each slot.
        returned: the slots that the function returns.
    """
    owners = _find_owners(calls)
    users: dict[Slot, list[int]] = {}  # of each memory, the places of the calls that read or change it
    for place, call in enumerate(calls):
        for slot in {owners.get(slot, slot) for slot in call.reads()}:
            users.setdefault(slot, []).append(place)
    names: dict[Slot, Slot] = {}
    dropped: set[int] = set()
    for place, call in enumerate(calls):
        if call.function is not aten.clone.default:
            continue
        copy, source = call.makes()[0], call.args[0]
        last = users.get(copy, [place])[-1]
        is_back = calls[last].function is aten.copy_.default and calls[last].args[:2] == (source, copy)
        is_used = any(place < other < last for other in users[owners.get(source, source)])
        is_returned = any(owners.get(slot, slot) == copy for slot in returned)
        if is_back and not is_used and not is_returned and layouts[copy] == layouts[source]:
            names[copy] = source
            dropped |= {place, last}
    return [call.renamed(names) for place, call in enumerate(calls) if place not in dropped]


def drop_repeated(
    calls: Sequence[TapedCall], layouts: dict[Slot, Layout]
) -> tuple[list[TapedCall], dict[Slot, Slot]]:
    """The calls without those that only repeat what is there; and the slots of the same numbers for their results.

    Calls without arguments go, too, because the tape has kept what they returned.
    """
    owners, changed = _find_owners_and_changed(calls)

    def owner(slot: Slot) -> Slot:
        return owners.get(slot, slot)

    changes: dict[Slot, int] = {}  # how often the memory of a tensor was changed so far
    names: dict[Slot, Slot] = {}
    found: dict[str, tuple[Slot | None, ...]] = {}
    left = []
    for recorded in calls:
        call = recorded.renamed(names)
        for slot in recorded.writes():
            changes[owner(slot)] = changes.get(owner(slot), 0) + 1
        if recorded.writes() or changed.intersection(call.results):
            left.append(call)
        elif call.reads():
            if (source := _find_same(call, layouts)) and (call.viewed() or owner(source) not in changed):
                names[call.makes()[0]] = source
                continue
            read = [(slot, changes.get(owner(slot), 0)) for slot in call.reads()]
            first = found.setdefault(repr((call.function, call.args, call.kwargs, read)), call.results)
            if first is call.results:
                left.append(call)
            names |= {one: other for one, other in zip(call.results, first, strict=True) if one and other}
    return left, names


def _find_same(call: TapedCall, layouts: dict[Slot, Layout]) -> Slot | None:
    """The slot of the first argument, if the result has its elements and its layout."""
    if call.function.overloadpacket not in SAME_ELEMENTS or len(call.reads()) != 1:
        return None
    (source,) = call.reads()
    return source if layouts[source] == layouts[call.makes()[0]] else None


def write_out(calls: Sequence[TapedCall], layouts: dict[Slot, Layout]) -> list[TapedCall]:
    """The calls with small tensors written out where they are spread over large ones, if that gives the same numbers.

    A kernel goes along a row of memory in which all its tensors advance evenly. One number for each replica is the
    same along a row of pixels, but images of which all channels of all replicas lie side by side have rows of a few
    numbers then (see `gradients`). Written out for one image, they have rows as long as an image.

    Args:
        calls: in their order.
        layouts: the layout of each slot. The layouts of new slots are added.
    """
    owners, changed = _find_owners_and_changed(calls)
    written: dict[tuple[Any, ...], Slot] = {}
    left: list[TapedCall] = []
    for call in calls:
        if call.function.overloadpacket not in EXACT or call.kwargs:
            left.append(call)
            continue
        names = {}
        for slot in {arg for arg in call.args if isinstance(arg, Slot)} - {*call.writes()}:
            sizes = _sizes_written_out(layouts[slot], layouts[call.makes()[0]])
            if sizes is None or owners.get(slot, slot) in changed:
                continue
            key = (slot, *sizes)
            if key not in written:
                new, written[key] = _list_copying(slot, *sizes, layouts)
                left += new
            names[slot] = written[key]
        left.append(replace(call, args=rename_slots(call.args, names)) if names else call)
    return left


def _sizes_written_out(layout: Layout, made: Layout) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """To what sizes a tensor is best written out beside a result, and their order in memory from the slowest.

    None if it need not be: its rows are long, or it is not much smaller.
    """
    shape, strides = made[:2]
    own = (*[1] * (len(shape) - len(layout[0])), *layout[0])
    own_strides = (*[0] * (len(shape) - len(layout[0])), *layout[1])
    order = sorted((axis for axis in range(len(shape)) if shape[axis] > 1), key=lambda axis: -strides[axis])
    if not order or strides[order[-1]] != 1 or len(layout[0]) == 0:
        return None
    moves = [own_strides[axis] if own[axis] > 1 else 0 for axis in order]
    row = shape[order[-1]]
    for outer in range(len(order) - 2, -1, -1):  # as the iterator of torch joins axes
        inner_size, inner_move = shape[order[outer + 1]], moves[outer + 1]
        if moves[outer] != inner_size * inner_move or strides[order[outer]] != inner_size * strides[order[outer + 1]]:
            break
        row *= shape[order[outer]]
    if row >= LONG_ROW:
        return None
    sizes, inner = [*own], 1
    for axis in reversed(order):
        if inner >= LONG_ROW:
            break
        sizes[axis] = shape[axis]
        inner *= shape[axis]
    if math.prod(sizes) * FEW_COPIES > math.prod(shape) or math.prod(sizes) == math.prod(own):
        return None
    return tuple(sizes), tuple(sorted(range(len(shape)), key=lambda axis: -strides[axis]))


def _list_copying(
    slot: Slot, sizes: tuple[int, ...], order: tuple[int, ...], layouts: dict[Slot, Layout]
) -> tuple[list[TapedCall], Slot]:
    """The calls that write a tensor out to these sizes, in this order in memory; and the slot of what they make."""
    expanded, turned, copied, made = slots = [Slot(len(layouts) + k) for k in range(4)]
    back = [order.index(axis) for axis in range(len(order))]
    strides = {axis: math.prod(sizes[a] for a in order[place + 1 :]) for place, axis in enumerate(order)}
    layout = (sizes, tuple(strides[axis] for axis in range(len(order))), 0, layouts[slot][-1])
    layouts |= dict.fromkeys(slots, layout)
    dense = {"memory_format": torch.contiguous_format}
    return [
        TapedCall(aten.expand.default, (slot, list(sizes)), {}, (expanded,), False),
        TapedCall(aten.permute.default, (expanded, list(order)), {}, (turned,), False),
        TapedCall(aten.clone.default, (turned,), dense, (copied,), False),
        TapedCall(aten.permute.default, (copied, back), {}, (made,), False),
    ], made


def compute_constants(
    calls: Sequence[TapedCall], constants: dict[Slot, Tensor]
) -> tuple[list[TapedCall], dict[Slot, Tensor]]:
    """The calls without those that read nothing but constants, and the constants with what these make."""
    owners, changed = _find_owners_and_changed(calls)
    found = {slot: tensor for slot, tensor in constants.items() if slot not in changed}
    kept, left = dict(constants), []

    def value_of(leaf: Any) -> Any:
        return found[leaf] if isinstance(leaf, Slot) else leaf

    for call in calls:
        lasts = all(owners.get(slot, slot) not in changed for slot in call.makes())
        if call.writes() or not lasts or not found.keys() >= set(call.reads()):
            left.append(call)
            continue
        args, kwargs = map_leaves(value_of, (call.args, call.kwargs))
        made = call.function(*args, **kwargs)
        results = zip(call.results, made if call.is_tuple else [made], strict=True)
        found.update({slot: one for slot, one in results if slot is not None})
    return left, kept | found


def drop_settled(
    calls: Sequence[TapedCall], constants: dict[Slot, Tensor], layouts: dict[Slot, Layout]
) -> tuple[list[TapedCall], dict[Slot, Slot]]:
    """The calls without choices by a constant mask that is true, or false, everywhere; and the slots chosen.

    A grid is binary or not for a whole training, so one of its two ways of rounding is never taken.
    """
    owners, changed = _find_owners_and_changed(calls)
    names: dict[Slot, Slot] = {}
    left = []
    for recorded in calls:
        call = recorded.renamed(names)
        mask = constants.get(call.args[0]) if call.function is aten.where.self else None
        if mask is not None and bool(mask.all()) == bool(mask.any()):
            made, chosen = call.makes()[0], call.args[1 if bool(mask.all()) else 2]
            if layouts[made] == layouts[chosen] and not changed & {made, owners.get(chosen, chosen)}:
                names[made] = chosen
                continue
        left.append(call)
    return left, names


def find_lasting_views(
    calls: Sequence[TapedCall], lasting: Collection[Slot]
) -> tuple[list[TapedCall], list[TapedCall]]:
    """The calls that only view tensors which are the same in each play, whatever their numbers; and the others."""
    known = set(lasting)
    views: list[TapedCall] = []
    left: list[TapedCall] = []
    for call in calls:
        is_view = call.viewed() is not None and not call.writes() and known >= set(call.reads())
        (views if is_view else left).append(call)
        if is_view:
            known.update(call.makes())
    return views, left


def drop_unread(calls: Sequence[TapedCall], returned: Sequence[Slot]) -> list[TapedCall]:
    """The calls without those whose results nothing needs."""
    read = set(returned)
    left = []
    for call in reversed(calls):
        if call.writes() or read.intersection(call.makes()):
            read.update(call.reads())
            left.append(call)
    return left[::-1]
