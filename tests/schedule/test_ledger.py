"""What a program says of every operation against the edges of the graph, one by one."""

from __future__ import annotations

import numpy as np
import pytest
from dag_examples import VARIANTS, example

from moe_placer.dag.build import build_dag
from moe_placer.dag.operation import Dag, Operation
from moe_placer.schedule.program import SENDS, Program, compile_program

ANY = pytest.mark.parametrize("name", VARIANTS)


def forwarded(dag: Dag) -> dict[str, str]:
    """Receiver to the dispatch send of its node, on whose stream it forwards over NVLink."""
    return {
        op.id: op.id.replace("dispatch_receive", "dispatch_send")
        for op in dag.operations("dispatch_receive")
        if any(edge.travel == "nvlink" for edge in dag.outgoing(op.id))
    }


def tokens_of(op: Operation) -> float:
    if op.kind in SENDS:
        return sum(shape[0] for shape in op.outputs.values())
    return next(iter((op.inputs or op.outputs).values()))[0]


def moved(dag: Dag, travel: str) -> dict[str, float]:
    """Bytes over NVLink, or between nodes, that each operation accounts for."""
    by_op, forwards = dict.fromkeys(dag.graph, 0.0), forwarded(dag)
    for edge in dag.edges():
        source, copies = edge.source, 1
        if dag.operation(source).kind in SENDS:
            counts = edge.travel != "network" if travel == "nvlink" and not forwards else edge.travel == travel
        elif source in forwards:
            source, copies, counts = forwards[source], len(dag.operation(edge.target).gpus), travel == "nvlink"
        else:
            source, counts = edge.target, edge.travel == travel
        by_op[source] += edge.bytes * copies * counts
    return by_op


@ANY
def test_a_program_has_the_sums_of_the_graphs_edges(name: str) -> None:
    program, dag = compile_program(*example(name)), build_dag(*example(name))
    operations = list(dag.operations())
    assert program.names == tuple(dag.graph)
    assert [(op.kind, op.gpus, op.experts) for op in operations] == list(
        zip(program.kinds, program.gpus, program.experts, strict=True)
    )
    size = np.array([len(op.gpus) for op in operations])
    read, fed = (
        (program.weights + program.fed) * size,
        np.array([sum(e.bytes for e in dag.incoming(n)) for n in dag.graph]),
    )
    assert read == pytest.approx(np.array([op.bytes_read for op in operations]))
    assert program.flops * size == pytest.approx(np.array([op.flops for op in operations]))
    looked_up = np.array([op.kind == "embedding" for op in operations])
    assert (program.fed * size)[~looked_up] == pytest.approx(fed[~looked_up])
    assert not program.weights[looked_up].any()
    assert program.tokens == pytest.approx(np.array([tokens_of(op) for op in operations]))
    sends = np.isin(program.kinds, list(SENDS))
    assert program.nvlink == pytest.approx(np.array(list(moved(dag, "nvlink").values())))
    assert program.network[~sends] == pytest.approx(np.array(list(moved(dag, "network").values()))[~sends])


@ANY
def test_a_send_has_the_bytes_that_leave_its_node(name: str) -> None:
    program, dag = compile_program(*example(name)), build_dag(*example(name))
    nodes = program.instance.cluster.nodes
    for p, sent in program.sent.items():
        edges = [edge for edge in dag.outgoing(program.names[p]) if edge.travel == "network"]
        expected = np.zeros(nodes)
        for edge in edges:
            expected[edge.routes[0][1]] += edge.bytes
        assert sent == pytest.approx(expected)
    assert set(program.sent) == {p for p, kind in enumerate(program.kinds) if kind in SENDS}


@ANY
def test_operations_wait_for_those_with_their_tensors(name: str) -> None:
    program, dag = compile_program(*example(name)), build_dag(*example(name))
    assert waits(program) == {
        (before, after) for before, after, _ in dag.graph.edges
    } | {(send, receiver) for receiver, send in forwarded(dag).items()}  # fmt: skip


def waits(program: Program) -> set[tuple[str, str]]:
    return {(program.names[p], program.names[after]) for p, some in enumerate(program.after) for after in some}
