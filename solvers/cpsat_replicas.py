"""The exact model where the number of replicas is free: CP-SAT chooses it together with the placement.

    minimise  z
    z >= base[k] + sum over experts e, numbers m, nodes n of c1[e, n, k] / m * x[e, m, n]      for every link k
    sum_m u[e, m] = 1                                                  expert e has m replicas where u[e, m] = 1
    sum_n x[e, m, n] = m * u[e, m]                                     so many of them are placed
    sum over e, m of m * u[e, m] = replicas of all experts               the budget
    sum over e, m of x[e, m, n] <= slots[n]                            slots
    sum_m x[e, m, n] <= together[n]                                    replicas apart
    sum_m x[e, m, n] >= 1                                              where a replica of e is pinned to n
    z + price * load[e] / m * u[e, m] <= time of the start             other replicas must pay

c1 is what a single replica of e would cost; the last rule is that of `moe_placer.search.replication`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from moe_placer.problem.layer import LayerProblem
from moe_placer.problem.replicas import count_replicas, fewest_replicas, hottest_that_pays, layer_time, placed
from moe_placer.problem.symmetry import SymmetryClasses
from moe_placer.solvers.cpsat import Model

__all__ = ["ReplicasModel"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def choices(layer: LayerProblem, z: float, lower: float) -> SymmetryClasses:
    """Return a class of items for every number of replicas that an expert may have in a placement better than z."""
    fewest = fewest_replicas(layer, hottest_that_pays(layer, z, lower))
    first = np.flatnonzero(layer.replica == 0)
    spare, places = layer.items - int(fewest.sum()), int(np.minimum(layer.together, layer.slots).sum())
    pairs = [(i, m) for i, few in zip(first, fewest.tolist(), strict=True) for m in range(few, few + spare + 1)]
    pairs = [(i, m) for i, m in pairs if m <= places]
    item, count = np.array(pairs, dtype=np.int64).T
    return SymmetryClasses(item, np.zeros(0, dtype=np.int64), count, np.zeros((len(item), layer.nodes), dtype=np.int64))


class ReplicasModel(Model):
    """The CP-SAT model that also chooses replicas; its own bound holds for every choice of replicas that pays."""

    chooses_replicas = True

    def __init__(self, layer: LayerProblem, classes: SymmetryClasses, lower: float, hint: Ints) -> None:
        self.choices = classes
        fewest = np.full(int(layer.expert.max()) + 1, layer.items)
        np.minimum.at(fewest, layer.expert[classes.item], classes.count)
        self.some_must_pay = bool(fewest.max() > layer.least_replicas)
        super().__init__(layer, lower, hint)

    @property
    def covers_choices(self) -> bool:
        """Whether its bound holds for whatever number of replicas is allowed, paying or not."""
        return not self.some_must_pay and not self.layer.shares_replicas

    def _classes(self) -> SymmetryClasses:
        return self.choices

    def _deltas(self) -> Floats:
        now = count_replicas(self.layer)[self.layer.expert[self.classes.item]]
        return self.layer.delta[self.classes.item] * (now / self.classes.count)[:, None, None]

    def _place_every_replica(self) -> None:
        """Choose a number of replicas for each expert, place so many, and keep to the budget; pins, and what pays."""
        layer, model, expert = self.layer, self.model, self.layer.expert[self.classes.item]
        self.u = [model.new_bool_var(f"u{j}") for j in range(len(self.x))]
        for u, row, count in zip(self.u, self.x, self.classes.count.tolist(), strict=True):
            model.add(sum(row) == count * u)
        model.add(sum(count * u for count, u in zip(self.classes.count.tolist(), self.u, strict=True)) == layer.items)
        for e in np.unique(expert):
            mine = np.flatnonzero(expert == e)
            model.add_exactly_one(self.u[j] for j in mine)
            pin = int(layer.pinned[np.flatnonzero(layer.expert == e)[0]])  # only replica 0 can be pinned
            if pin >= 0:
                model.add(sum(self.x[j][pin] for j in mine) >= 1)
        self._let_replicas_pay()

    def _all_but_one(self, classes: Ints) -> Any:
        return sum((int(self.classes.count[j]) - 1) * self.u[j] for j in classes)

    def _let_replicas_pay(self) -> None:
        """Keep z + price * load[e] / m * u[e, m] within the time of the start, where that is a new hottest replica."""
        layer, now = self.layer, count_replicas(self.layer)
        time = int(np.floor(layer_time(layer, self.start_z) * self.factor + self.slack))
        for j, (item, count) in enumerate(zip(self.classes.item.tolist(), self.classes.count.tolist(), strict=True)):
            load = float(layer.load[item]) * now[layer.expert[item]] / count
            if load > layer.load.max():
                self.some_must_pay = True
                self.model.add(self.z + int(np.ceil(layer.gpu_price * load * self.factor)) * self.u[j] <= time)

    def _hint(self, node: Ints) -> None:
        now, held = (
            count_replicas(self.layer),
            np.zeros((len(count_replicas(self.layer)), self.layer.nodes), dtype=np.int64),
        )
        np.add.at(held, (self.layer.expert, node), 1)
        for j, (item, count) in enumerate(zip(self.classes.item.tolist(), self.classes.count.tolist(), strict=True)):
            e = int(self.layer.expert[item])
            chosen = count == now[e]
            self.model.add_hint(self.u[j], chosen)
            for variable, value in zip(self.x[j], held[e].tolist(), strict=True):
                self.model.add_hint(variable, value if chosen else 0)

    def _read(self, solver: Any) -> tuple[LayerProblem, Ints]:
        """Return the layer with the replicas that were chosen, and the node of each item."""
        layer = self.layer
        of_expert: list[list[int]] = [[] for _ in count_replicas(layer)]
        for item, row in zip(self.classes.item.tolist(), self.x, strict=True):
            nodes = np.repeat(np.arange(layer.nodes), [solver.value(v) for v in row]).tolist()
            of_expert[int(layer.expert[item])] += nodes
        for item in np.flatnonzero(layer.pinned >= 0).tolist():
            mine, pin = of_expert[int(layer.expert[item])], int(layer.pinned[item])
            mine.remove(pin)
            mine.insert(0, pin)
        return placed(layer, of_expert)
