"""Replays a migration: every state on the way is one that may run, and the last one is the plan."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from itertools import pairwise

from moe_placer.instance import Instance
from moe_placer.placement import Placement
from moe_placer.verifier.capacity import GB, fits_memory, sizes
from moe_placer.verifier.links import Network
from moe_placer.verifier.loads import read_network
from moe_placer.verifier.transfer_file import TransferRecord, Transfers
from moe_placer.verifier.verification import Violation

__all__ = ["check_migration", "held_by", "routes_of_pairs"]

Key = tuple[int, int, int]  # layer, expert, GPU

ROUNDING = 4e-9  # relative, of times and shares: far above what double precision loses, far below any overlap


def check_migration(
    instance: Instance, current: Placement, placement: Placement, transfers: Transfers
) -> list[Violation]:
    """Replay transfers from one placement to another, and list what is not so.

    Every sender holds what it sends and nobody receives what it has; no GPU sends or receives two experts at once over
    the network, or over NVLink; no link carries more than its bandwidth; memory holds; every expert has a replica at
    every moment; the end is the plan; and times, bytes and the bound are as stated.

    Parameters
    ----------
    instance : Instance
    current, placement : Placement
        Before and after; both are of the instance's shape.
    transfers : Transfers
        As read from a file that nobody vouches for.
    """
    found = [*_check_names(instance, current, placement, transfers)]
    if found:
        return found
    replay = _Replay(instance, transfers)
    found += replay.check_transfers()
    lost = {*transfers.lost_gpus, *_dead(instance)}
    found += replay.check_states(held_by(instance, current, lost), held_by(instance, placement))
    found += replay.check_ends()
    found += replay.check_links()
    return [*found, *replay.check_figures()]


def _check_names(
    instance: Instance, current: Placement, placement: Placement, transfers: Transfers
) -> Iterator[Violation]:
    if transfers.current_sha256 != current.gpu_sha256:
        yield _wrong(f"begins at a placement with SHA-256 {transfers.current_sha256[:64]!r}, not at the current one")
    if transfers.placement_sha256 != placement.gpu_sha256:
        yield _wrong(f"ends in a placement with SHA-256 {transfers.placement_sha256[:64]!r}, not in this one")
    layers, experts = set(instance.moe_layers), instance.model.experts
    for one in transfers.transfers:
        if one.layer not in layers or one.expert >= experts or max(one.source, one.target) >= instance.gpus:
            yield _wrong(f"a transfer of expert {one.expert} from GPU {one.source} to {one.target}, which is not there")
        elif one.source == one.target or not one.end_us > one.start_us:
            yield _wrong(f"a transfer from GPU {one.source} to {one.target} that takes no time", one.layer, one.expert)
    for drop in transfers.drops:
        if drop.layer not in layers or drop.expert >= experts or drop.gpu >= instance.gpus:
            yield _wrong(f"expert {drop.expert} is dropped on GPU {drop.gpu}, which is not there")
    yield from _check_losses(instance, transfers)


def _check_losses(instance: Instance, transfers: Transfers) -> Iterator[Violation]:
    """Only GPUs that failed lost what they held, only GPUs that work read what is gone, or receive; none dead sends."""
    layers, experts = set(instance.moe_layers), instance.model.experts
    working = set(range(instance.gpus)) - set(instance.placement.failed_gpus)
    for reload in transfers.reloads:
        if reload.layer not in layers or reload.expert >= experts or reload.gpu not in working:
            yield _wrong(f"expert {reload.expert} is read by GPU {reload.gpu}, which is not there")
    for one in transfers.transfers:
        if one.target not in working and one.target < instance.gpus:
            yield _wrong(f"sent to GPU {one.target}, which is out of service", one.layer, one.expert)
    dead = _dead(instance)
    for one in transfers.transfers:
        if one.source in dead:
            yield _wrong(f"sent from GPU {one.source}, which failed and is not drained", one.layer, one.expert)
    for gpu in sorted(set(transfers.lost_gpus) & working):
        yield _wrong("it works, and is said to have lost what it held", gpu=gpu)


def _dead(instance: Instance) -> set[int]:
    """GPUs that failed, and cannot send what they held as drained ones do."""
    return set(instance.placement.failed_gpus) - set(instance.placement.drained_gpus)


def _wrong(message: str, layer: int | None = None, expert: int | None = None, gpu: int | None = None) -> Violation:
    return Violation("migration", message, layer, expert, gpu=gpu)


def held_by(instance: Instance, placement: Placement, lost: Collection[int] = ()) -> set[Key]:
    """Return what GPUs hold: (layer, expert, GPU), without those GPUs that lost what they held."""
    return {
        (layer, expert, gpu)
        for row, layer in enumerate(instance.moe_layers)
        for expert in range(len(placement.gpu[row]))
        for replica in placement.shards(row, expert)
        for gpu in replica
        if gpu not in lost
    }


class _States:
    """What GPUs hold, one event after the other."""

    def __init__(self, before: set[Key]) -> None:
        self.holds, self.live = set(before), Counter((layer, expert) for layer, expert, _ in before)
        self.used = Counter(gpu for _, _, gpu in before)
        self.most = Counter(self.used)
        self.sending: Counter[Key] = Counter()
        self.coming: set[Key] = set()

    def drop(self, key: Key) -> Iterator[Violation]:
        """Forget a replica that another one stands in for, and that is not sent."""
        self.live[key[:2]] -= key in self.holds
        if key not in self.holds or self.sending[key] or self.live[key[:2]] < 1:
            yield _wrong("dropped where it is not, while it is sent, or as the last replica", *key)
        self.used[key[2]] -= key in self.holds
        self.holds.discard(key)

    def reload(self, key: Key) -> Iterator[Violation]:
        """Read an expert that no GPU has."""
        if self.live[key[:2]] > 0:
            yield _wrong("read from where the model is stored, although a GPU has it", *key)
        self.holds.add(key)
        self.live[key[:2]] += 1
        self._take(key[2])

    def start(self, source: Key, target: Key) -> Iterator[Violation]:
        """Begin to send; the memory of the target is taken from now on."""
        if source not in self.holds or target in self.holds or target in self.coming:
            yield _wrong(f"sent from GPU {source[2]}, which has it not, or to one that has it", *target)
        self.sending[source] += 1
        self.coming.add(target)
        self._take(target[2])

    def end(self, source: Key, target: Key) -> Iterator[Violation]:
        """Arrive."""
        self.sending[source] -= 1
        self.coming.discard(target)
        self.holds.add(target)
        self.live[target[:2]] += 1
        yield from ()

    def _take(self, gpu: int) -> None:
        self.used[gpu] += 1
        self.most[gpu] = max(self.most[gpu], self.used[gpu])


def _in_order(events: list[tuple[float, int, int]], slack: float) -> list[tuple[int, int]]:
    """Sort events (moment, kind, index) by moment, and those of one moment, up to rounding, by kind."""
    ordered, first, moment = [], -math.inf, 0
    for at, kind, i in sorted(events):
        if at - first > slack:
            first, moment = at, moment + 1
        ordered.append((moment, kind, i))
    return [(kind, i) for _, kind, i in sorted(ordered)]


class _Replay:
    """The transfers, what they use, and how fast they can be."""

    def __init__(self, instance: Instance, transfers: Transfers) -> None:
        self.instance, self.file = instance, transfers
        cluster, fabric = instance.cluster, instance.cluster.fabric
        self.per_node = cluster.gpus_per_node
        _, self.bytes = sizes(instance)
        self.network = read_network(instance)
        self.own = fabric.node_gb_per_s / cluster.gpus_per_node
        self.network_us = 1e6 * self.bytes / (self.own * GB * fabric.link_utilization)
        self.node_us = 1e6 * self.bytes / (cluster.nvlink_gb_per_s * GB * fabric.link_utilization)
        self.routes = routes_of_pairs(self.network)
        # Not of a duration that a file draws out at will: one after the other they need no longer than `serial`.
        serial = sum(map(self._least, transfers.transfers))
        self.slack = ROUNDING * max(self.network_us, min(transfers.us, serial))

    def _use(self, one: TransferRecord) -> dict[int, float]:
        """Share of each link's bandwidth that a transfer uses at the speed of its GPU's part of the NICs."""
        pair = (one.source // self.per_node, one.target // self.per_node)
        return {link: share * self.own / self.network.bandwidth[link] for link, share in self.routes[pair].items()}

    def _inside(self, one: TransferRecord) -> bool:
        return one.source // self.per_node == one.target // self.per_node

    def _least(self, one: TransferRecord) -> float:
        if self._inside(one):
            return self.node_us
        return self.network_us * max(1.0, max(self._use(one).values(), default=0.0))

    def check_transfers(self) -> Iterator[Violation]:
        """No transfer is faster than its wires."""
        for one in self.file.transfers:
            if one.end_us - one.start_us < self._least(one) - self.slack:
                took, least = one.end_us - one.start_us, self._least(one)
                yield _wrong(f"sent in {took:.6g} us, required are {least:.6g}", one.layer, one.expert, one.target)

    def check_states(self, before: set[Key], after: set[Key]) -> Iterator[Violation]:
        """Go through all moments: who holds what, who has memory for what comes, and what the end is."""
        states = _States(before)
        events = [(drop.at_us, 1, i) for i, drop in enumerate(self.file.drops)]
        events += [(one.end_us, 0, i) for i, one in enumerate(self.file.transfers)]
        events += [(0.0, 2, i) for i in range(len(self.file.reloads))]
        events += [(one.start_us, 3, i) for i, one in enumerate(self.file.transfers)]
        for kind, i in _in_order(events, self.slack):
            if kind == 1:
                drop = self.file.drops[i]
                yield from states.drop((drop.layer, drop.expert, drop.gpu))
            elif kind == 2:
                reload = self.file.reloads[i]
                yield from states.reload((reload.layer, reload.expert, reload.gpu))
            else:
                one = self.file.transfers[i]
                source, target = (one.layer, one.expert, one.source), (one.layer, one.expert, one.target)
                yield from states.end(source, target) if kind == 0 else states.start(source, target)
        most = states.most
        yield from self._check_memory(most, Counter(gpu for _, _, gpu in before), Counter(gpu for _, _, gpu in after))
        for layer, expert, gpu in sorted(states.holds ^ after):
            yield _wrong("at the end it is not as in the plan", layer, expert, gpu)

    def _check_memory(self, most: Counter[int], before: Counter[int], after: Counter[int]) -> Iterator[Violation]:
        resident, expert = sizes(self.instance)
        for gpu, held in sorted(most.items()):
            if not fits_memory(self.instance, gpu, resident + held * expert):
                yield _wrong(f"holds {held} experts on the way, more than its memory takes", gpu=gpu)
        extra = {str(gpu): held - max(before[gpu], after[gpu]) for gpu, held in most.items()}
        needed = {gpu: held for gpu, held in extra.items() if held > 0}
        if needed != {gpu: held for gpu, held in self.file.extra_experts.items() if held > 0}:
            yield _wrong("states another number of extra experts on some GPU than the transfers need")

    def check_ends(self) -> Iterator[Violation]:
        """No GPU sends two experts at once over one medium, or receives two."""
        at: dict[tuple[bool, bool, int], list[TransferRecord]] = defaultdict(list)
        for one in self.file.transfers:
            at[self._inside(one), True, one.source].append(one)
            at[self._inside(one), False, one.target].append(one)
        for (_, sends, gpu), some in sorted(at.items()):
            some.sort(key=lambda one: one.start_us)
            for first, second in pairwise(some):
                if second.start_us < first.end_us - self.slack:
                    word = "sends" if sends else "receives"
                    yield _wrong(f"{word} two experts at once", second.layer, second.expert, gpu)

    def check_links(self) -> Iterator[Violation]:
        """No link carries more than its bandwidth at any moment."""
        steps: dict[int, list[tuple[float, float]]] = defaultdict(list)
        for one in self.file.transfers:
            if not self._inside(one):
                speed = self.network_us / (one.end_us - one.start_us)
                for link, use in self._use(one).items():
                    steps[link] += [(one.start_us, use * speed), (one.end_us, -use * speed)]
        for link, changes in sorted(steps.items()):
            load, events = 0.0, [(at, int(change > 0), i) for i, (at, change) in enumerate(changes)]
            for _, i in _in_order(events, self.slack):
                load += changes[i][1]
                if load > 1 + ROUNDING:
                    yield _wrong(f"link {self.network.links[link]} carries {load:.4g} times its bandwidth at once")
                    break

    def check_figures(self) -> Iterator[Violation]:
        """Duration, bound and bytes are as stated."""
        file = self.file
        last = max((one.end_us for one in file.transfers), default=0.0)
        if not math.isclose(file.us, last, rel_tol=ROUNDING, abs_tol=self.slack):
            yield _wrong(f"states {file.us:.9g} us, the last transfer ends after {last:.9g}")
        rows = [[one for one in file.transfers if one.layer == layer] for layer in self.instance.moe_layers]
        groups = rows if file.by_layer else [list(file.transfers)]
        bound = sum(map(self._bound, groups))
        if file.bound_us > bound + self.slack:
            yield _wrong(f"states a bound of {file.bound_us:.9g} us, the busiest end or link gives {bound:.9g}")
        if not math.isclose(file.expert_bytes, self.bytes, rel_tol=ROUNDING):
            yield _wrong(f"states {file.expert_bytes:.9g} bytes for an expert, it has {self.bytes:.9g}")
        stated, carried = {link: count for link, count in file.link_bytes.items() if count > 0}, self._carried()
        alike = (math.isclose(stated.get(link, 0.0), count, rel_tol=ROUNDING) for link, count in carried.items())
        if stated.keys() != carried.keys() or not all(alike):
            yield _wrong("states other bytes on links than the transfers put there")
        if file.by_layer:
            yield from self._check_layers(rows)

    def _check_layers(self, rows: list[list[TransferRecord]]) -> Iterator[Violation]:
        """Layers come one after the other, and the longest takes as long as stated."""
        spans = sorted((min(o.start_us for o in row), max(o.end_us for o in row)) for row in rows if row)
        if any(later[0] < first[1] - self.slack for first, later in pairwise(spans)):
            yield _wrong("states that layers come one after the other, and two overlap")
        longest = max((end - start for start, end in spans), default=0.0)
        if not math.isclose(self.file.longest_layer_us or 0.0, longest, rel_tol=ROUNDING, abs_tol=self.slack):
            yield _wrong(f"states {self.file.longest_layer_us} us for the longest layer, it is {longest:.9g}")

    def _bound(self, transfers: list[TransferRecord]) -> float:
        """Microseconds of the busiest end or link."""
        busy: dict[tuple[object, ...], float] = defaultdict(float)
        for one in transfers:
            inside = self._inside(one)
            busy[inside, True, one.source] += self._least(one)
            busy[inside, False, one.target] += self._least(one)
            for link, use in self._use(one).items() if not inside else ():
                busy["link", link] += use * self.network_us
        return max(busy.values(), default=0.0)

    def _carried(self) -> dict[str, float]:
        """Bytes on each link between nodes that carries any."""
        carried: dict[str, float] = defaultdict(float)
        for one in self.file.transfers:
            pair = (one.source // self.per_node, one.target // self.per_node)
            for link, share in self.routes[pair].items() if not self._inside(one) else ():
                carried[self.network.links[link]] += share * self.bytes
        return carried


def routes_of_pairs(network: Network) -> dict[tuple[int, int], dict[int, float]]:
    """Share of the traffic between two nodes on each link of the fabric; NICs of single GPUs are its ends."""
    first = {int(node): place for place, node in reversed(list(enumerate(network.home.tolist())))}
    wanted = {place: node for node, place in first.items()}
    routes: dict[tuple[int, int], dict[int, float]] = defaultdict(dict)
    whole = network.whole
    columns = (whole.link, whole.source, whole.target, whole.share)
    for link, source, target, share in zip(*(column.tolist() for column in columns), strict=True):
        if target in wanted and "/nic" not in network.links[link]:
            routes[source, wanted[target]][link] = share
    return routes
