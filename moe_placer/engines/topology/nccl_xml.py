"""The topology that NCCL found in one node (``NCCL_TOPO_DUMP_FILE``): GPUs, NVLink, NICs and which is near which."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from moe_placer.engines.topology.topology import Topology
from moe_placer.errors import InputError, Mistake
from moe_placer.files import read_bounded

__all__ = ["read_nccl_xml"]

_KIND = "the XML of NCCL_TOPO_DUMP_FILE"
_MOST_BYTES = 20_000_000
_MOST_DEPTH = 64


@dataclass
class _Element:
    """An XML element, and where it stands."""

    tag: str
    attributes: dict[str, str]
    line: int
    inside: list[_Element] = field(default_factory=list)

    def find(self, tag: str) -> Iterator[_Element]:
        """Yield the elements of a tag inside, however deep, in order."""
        for element in self.inside:
            if element.tag == tag:
                yield element
            yield from element.find(tag)


@dataclass(frozen=True)
class _Near:
    """A GPU, its NVLinks, and the NICs below the closest PCI switch that has any."""

    name: str
    nvlinks: int
    nics: tuple[str, ...]


def read_nccl_xml(file: Path) -> Topology:
    """Read a node's GPUs and the bandwidth of its NICs together.

    Raises
    ------
    InputError
        The file is no such XML, has no GPU, or a number that is none.
    """
    root = _parse(file)
    hosts = {cpu.attributes.get("host_hash", "") for cpu in root.inside if cpu.tag == "cpu"}
    notes = []
    if len(hosts) > 1:
        first = next(cpu.attributes.get("host_hash", "") for cpu in root.inside if cpu.tag == "cpu")
        root.inside = [cpu for cpu in root.inside if cpu.attributes.get("host_hash", "") == first]
        notes.append(f"cluster: the file has {len(hosts)} hosts; the first is taken for all")
    gpus = [_near(file, root, path) for path in _paths(root, "gpu")]
    nets = {net.attributes.get("name", f"line {net.line}"): net for net in root.find("net")}
    if not gpus:
        raise InputError(Mistake("no GPU", f"{_KIND} of a node with GPUs", file=file))
    speed = sum(_number(file, net, "speed") for net in nets.values()) / 8000  # Mbit/s to GB/s
    alone = [gpu.name for gpu in gpus if not gpu.nvlinks]
    if alone and len(alone) < len(gpus):
        notes.append(f"cluster: NO NVLINK at GPU {', '.join(alone)}, while the others have it: broken?")
    elif alone:
        notes.append("cluster: the GPUs have no NVLink: set cluster.nvlink_gb_per_s to what joins them")
    affinity = "; ".join(f"GPU {gpu.name} near {', '.join(gpu.nics) or 'no NIC'}" for gpu in gpus)
    notes.append(f"cluster: {len(nets)} NICs are one pipe in an instance ({affinity})")
    return Topology("NCCL's topology", (), len(gpus), speed or None, notes=tuple(notes))


def _parse(file: Path) -> _Element:
    """Build the tree of elements; a document type, where entities are declared, is refused."""
    raw = read_bounded(file, _MOST_BYTES, _KIND)
    root = _Element("", {}, 0)
    open_elements = [root]
    parser = expat.ParserCreate()

    def start(tag: str, attributes: dict[str, str]) -> None:
        if len(open_elements) > _MOST_DEPTH:
            raise ValueError(f"elements deeper than {_MOST_DEPTH}")
        element = _Element(tag, attributes, parser.CurrentLineNumber)
        open_elements[-1].inside.append(element)
        open_elements.append(element)

    def end(_tag: str) -> None:
        open_elements.pop()

    def refuse(*_: object) -> None:
        raise ValueError("a document type, which NCCL never writes")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(raw, True)
    except (expat.ExpatError, ValueError) as error:
        found = f"text that is not such XML ({str(error)[:100]})"
        raise InputError(Mistake(found, _KIND, file=file, line=parser.CurrentLineNumber)) from None
    (system,) = root.inside  # XML has one root
    if system.tag != "system":
        raise InputError(Mistake(f"the element {system.tag[:40]}", "system", file=file, line=system.line))
    return system


def _paths(root: _Element, tag: str) -> Iterator[list[_Element]]:
    """Yield the way from the root to each element of a tag."""
    todo = [[root]]
    while todo:
        path = todo.pop()
        if path[-1].tag == tag:
            yield path
        todo += [[*path, element] for element in reversed(path[-1].inside)]


def _near(file: Path, root: _Element, path: list[_Element]) -> _Near:
    gpu = path[-1]
    _number(file, gpu, "dev")
    links = sum(_number(file, link, "count") for link in gpu.find("nvlink"))
    around = next((element for element in reversed(path[:-1]) if any(element.find("net"))), root)
    nics = () if around.tag == "system" else tuple(net.attributes.get("name", "?")[:40] for net in around.find("net"))
    bus = path[-2].attributes.get("busid", "?")[:40]
    return _Near(f"{gpu.attributes['dev'][:10]} ({bus})", int(links), nics)


def _number(file: Path, element: _Element, key: str) -> float:
    text = element.attributes.get(key)
    if text is None or not re.fullmatch(r"\d{1,9}", text):
        found = "nothing" if text is None else f"{text[:40]!r}"
        raise InputError(Mistake(found, "a whole number", f"{element.tag} {key}", file, element.line))
    return float(text)
