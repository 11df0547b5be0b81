"""What the records of a placement prove, derived anew and held against what they state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from moe_placer.instance import Instance
from moe_placer.placement import AggregateRecord, LayerRecord, Placement
from moe_placer.traffic.recording import Traffic
from moe_placer.verifier import proofs, records, replanned
from moe_placer.verifier.best_split_anew import split_bound
from moe_placer.verifier.bounds_anew import (
    any_replicas_bound,
    dual_bound,
    hot_expert_bound,
    hot_replicas_bound,
    link_prices,
    memory_bound,
    threshold_bound,
)
from moe_placer.verifier.capacity import node_memory_slots
from moe_placer.verifier.companions_anew import Companions
from moe_placer.verifier.loads import Network
from moe_placer.verifier.mutual_anew import mutual_bound
from moe_placer.verifier.nics import place_slots
from moe_placer.verifier.placed_layers import PlacedLayer
from moe_placer.verifier.scenarios import count_scenarios, judged, lawful_weights
from moe_placer.verifier.verification import LayerCheck, Violation, sum_below

__all__ = ["Checker"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Checker:
    """Derives bounds for a placement, whose violations it collects.

    Attributes
    ----------
    valid : bool
        Whether the placement respects every constraint: then nothing that is proved can be above what it has.
    violations : list of Violation
        What was found so far.
    bounds : bool
        Whether to derive bounds anew.
    """

    instance: Instance
    network: Network
    traffic: Traffic
    layers: Sequence[PlacedLayer]
    valid: bool
    violations: list[Violation]
    bounds: bool = True

    @cached_property
    def _slots(self) -> Ints:
        return place_slots(self.instance)

    def _sent(self, *layers: PlacedLayer) -> float:
        """Return the most that traffic of these layers could cost on one link, by which rounding errors are scaled."""
        return sum(layer.tokens for layer in layers) * float(self.network.scale.max(initial=0.0))

    def _believed(self, derived: float, found: float, layers: Sequence[PlacedLayer], what: str) -> float:
        """Return a derived bound, or 0 where the placement contradicts it."""
        if not self.valid:
            return derived
        layer = layers[0].layer if len(layers) == 1 else None
        wrong = [*records.check_contradiction(derived, found, self._sent(*layers), layer, what)]
        self.violations.extend(wrong)
        return 0.0 if wrong else derived

    def check_layer(self, layer: PlacedLayer, record: LayerRecord | None) -> LayerCheck:
        """Recompute a layer's figures and compare them with its record; without its demand, only what needs none."""
        cost = layer.load * self.network.scale
        z = judged(self.instance, count_scenarios(self.instance, self.traffic), cost)
        largest = float(cost.max(initial=0.0))
        at = int(cost.argmax()) if largest > 0 else None
        worst = self.network.links[at] if at is not None else ""
        tokens = float(layer.load[at]) if at is not None else 0.0
        us = tokens * float(self.network.us_per_token[at]) if at is not None else 0.0
        if record is None:
            return LayerCheck(layer.layer, z, worst, 0.0, "", tokens, us, worst_link_cost=largest)
        replicas = None if layer.replicas is None else layer.replicas.tolist()
        lacking = [*proofs.check_proof(self.instance, record, layer.layer, self.network.links, replicas)]
        self.violations.extend([*records.check_order(record, layer.layer), *lacking])
        given, bound = None, 0.0
        derivable = self.bounds and not lacking and record.proof != "solver"
        if derivable:
            proved = self._believed(self._derive(layer, record), z, [layer], "its z")
            if proofs.replicas_are_free(self.instance) and not record.any_copies:
                given = proved
            else:
                bound = proved
        claimed = _claimed(record)
        check = LayerCheck(layer.layer, z, worst, bound, record.proof, tokens, us, given, claimed, largest)
        if layer.replicas is not None:
            sent, of_instance = self._sent(layer), derivable and given is None
            self.violations.extend(
                records.check_figures(record, check, self.network.links, cost, layer.load, of_instance, sent)
            )
            self.violations.extend(records.check_given_replicas(record, check, sent))
        return check

    def check_replan(self, placement: Placement, current: Placement, total_z: float) -> float:
        """Compare a placement with the one that ran before; return what none within the budget is below."""
        record = placement.replan
        wrong = [*replanned.check_current(self.instance, record, current)]
        self.violations.extend(wrong)
        whole = len(current.gpu) == len(placement.gpu)
        if record is None or wrong or not whole:
            return 0.0
        self.violations.extend(replanned.check_moves(self.instance, record, current, placement))
        lacking = [*replanned.check_budget_proof(self.instance, record, self.network.links)]
        self.violations.extend(lacking)
        if not self.bounds or record.bound is None or lacking or any(one.replicas is None for one in self.layers):
            return 0.0
        lawful = record.model_copy(update={"weights": tuple(self._lawful(own) for own in record.weights or ())})
        derived = replanned.budget_bound(self.instance, self.network, self.layers, self._slots, lawful, current)
        within = record.max_moves is not None and replanned.count_moves(current, placement) <= record.max_moves
        if within:  # else the bound is not about this placement
            derived = self._believed(derived, total_z, self.layers, "its sum of busiest links")
        sent = self._sent(*self.layers)
        self.violations.extend(records.check_budget_bound(record.bound, derived, total_z, sent))
        return derived

    def _derive(self, layer: PlacedLayer, record: LayerRecord) -> float:
        if layer.replicas is None:
            return 0.0
        if record.proof == "hot-experts" and record.hot is not None:
            expert, replica = record.hot
            return hot_expert_bound(self.network, layer, self._slots, int(layer.replicas[:expert].sum()) + replica)
        if record.proof == "hot-replicas":
            return hot_replicas_bound(self.network, layer, self._slots, proofs.most_replicas(self.instance))
        weights = record.weights or {}
        if record.proof == "best-split" and record.split is not None:
            most = proofs.most_replicas(self.instance)
            return split_bound(self.network, layer, self._slots, most, self._lawful(weights), record.split)
        if record.companions is not None and record.proof in {"companions", "weighted-companions"}:
            row = self.instance.moe_layers.index(layer.layer)
            derivation = Companions(self.instance, self.network, self.traffic, row, layer.replicas)
            if record.proof == "companions" and record.hot is not None:
                return derivation.bound(record.hot, record.companions)
            return derivation.weighted_bound(weights, record.companions.guess)
        if record.mutual is not None and record.proof == "mutual-companions":
            row = self.instance.moe_layers.index(layer.layer)
            return mutual_bound(self.instance, self.network, self.traffic, row, weights, record.mutual)
        if record.proof == "threshold" and record.threshold is not None:
            return threshold_bound(self.network, layer, self._slots, weights, record.threshold)
        return self._weighted(layer, weights, record.any_copies)

    def _weighted(self, layer: PlacedLayer, weights: Mapping[str, float], any_replicas: bool | None) -> float:
        derive = any_replicas_bound if any_replicas else dual_bound
        return derive(self.network, layer, self._slots, self._lawful(weights))

    def _lawful(self, weights: Mapping[str, float]) -> Mapping[str, float]:
        return lawful_weights(self.instance, self.network.links, weights)

    def check_aggregate(self, record: AggregateRecord | None) -> float:
        """Derive the bound on the largest link total anew; compare what is stated of it, if every layer is whole."""
        if record is None:
            return 0.0
        lacking = [*proofs.check_aggregate_proof(self.instance, record, self.network.links)]
        self.violations.extend(lacking)
        if any(layer.replicas is None for layer in self.layers):
            return 0.0
        load = np.sum([layer.load for layer in self.layers], axis=0)
        totals = load * self.network.scale
        derived = None
        if self.bounds and record.proof is not None and not lacking:
            terms = [self._weighted(layer, record.weights or {}, record.any_copies) for layer in self.layers]
            largest = float(totals.max(initial=0.0))
            derived = self._believed(sum_below(terms), largest, self.layers, "its busiest link over all layers")
        sent = self._sent(*self.layers)
        self.violations.extend(records.check_aggregate(record, self.network.links, totals, load, derived, sent))
        return derived or 0.0

    def check_memory(self, placement: Placement, total_z: float) -> float:
        """Derive the bound on the sum of z that counts memory over layers; compare what is stated of it."""
        record = placement.memory
        if record is None:
            return 0.0
        own = [layer.weights for layer in placement.layers]
        weights: Sequence[Mapping[str, float] | None] = own if record.weights is None else record.weights
        lacking = [*proofs.check_memory_proof(self.instance, record, weights, self.network.links)]
        unproved = any(violation.rule in {"weights", "proof"} for violation in self.violations)
        self.violations.extend(lacking)
        whole = len(weights) == len(self.layers) and all(layer.replicas is not None for layer in self.layers)
        if lacking or unproved or not whole or not self.bounds:
            return 0.0
        pairs = zip(self.layers, weights, strict=True)
        prices = [link_prices(self.network, layer, self._lawful(own or {})) for layer, own in pairs]
        beyond = [*proofs.check_memory_prices(record, max(float(one.max(initial=0.0)) for one in prices))]
        self.violations.extend(beyond)
        if beyond:
            return 0.0
        memory_prices = np.array(record.room_prices)
        derived = memory_bound(prices, self._slots, memory_prices, node_memory_slots(self.instance))
        derived = self._believed(derived, total_z, self.layers, "its sum of busiest links")
        self.violations.extend(records.check_memory_bound(record, derived, total_z, self._sent(*self.layers)))
        return derived


def _claimed(record: LayerRecord) -> float | None:
    """Return the highest bound that only the solver vouches for."""
    own = record.bound if record.proof == "solver" else 0.0
    return max(own, record.solver_bound or 0.0) or None
