"""From a YAML file to an `Instance`, or to a list of everything that is wrong with it."""

from __future__ import annotations

import contextlib
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from moe_placer.errors import InputError, Mistake
from moe_placer.instance.contradictions import find_contradictions
from moe_placer.instance.expert_tp import with_chosen_expert_tp, with_whole_experts
from moe_placer.instance.gpu_presets import with_preset
from moe_placer.instance.instance import Instance
from moe_placer.instance.wording import Loc, expected, found, real_path, shown
from moe_placer.instance.yaml_reader import Document, dotted, read_yaml

__all__ = ["load_instance", "make_instance"]


def load_instance(path: str | Path) -> Instance:
    """Read and check an instance file.

    Parameters
    ----------
    path : str or Path
        A YAML file; ``moe-placer schema`` prints its JSON Schema.

    Returns
    -------
    Instance
        With all defaults filled in; paths of traces are relative to the file's folder.

    Raises
    ------
    InputError
        Lists every mistake in the file, each with line, field, what was found and what is expected.
    """
    document = read_yaml(Path(path))
    instance = _checked(document)
    if document.file is not None:
        instance._directory = document.file.parent
    return instance


def make_instance(**sections: Any) -> Instance:
    """Build an instance in Python, without a file; every mistake is reported at once, as from a file.

    Parameters
    ----------
    **sections
        ``name`` and the sections of an instance file (``model``, ``cluster``, ``parallelism``, ``placement``,
        ``traffic``, ``objective``), each as a mapping of its fields or as an object of `moe_placer.instance.schema`.

    Raises
    ------
    InputError
        Lists every mistake, each with field, what was found and what is expected.

    Examples
    --------
    >>> instance = make_instance(
    ...     name="mine",
    ...     model=dict(layers=4, hidden_size=1024, attention_heads=8, head_dim=128, experts=16, top_k=2,
    ...                expert_hidden_size=512),
    ...     cluster=dict(nodes=4, gpus_per_node=8, gpu=dict(memory_gb=80),
    ...                  fabric=dict(kind="fat-tree", nodes_per_leaf=2, spines=2)),
    ...     parallelism=dict(dp=2),
    ...     traffic=dict(kind="synthetic", tokens_per_gpu=256),
    ... )
    >>> instance.gpus, instance.replicas_per_layer
    (32, 32)
    """
    return _checked(Document(None, dict(sections)))


def _checked(document: Document) -> Instance:
    """Validate a document's data; raise all mistakes at once."""
    if not isinstance(document.data, dict):
        what = f"{shown(document.data)} at the top level"
        fields = "a section of `field: value` lines"
        raise InputError([*document.mistakes, Mistake(what, fields, file=document.file, line=document.line(()))])
    schema = document.data.get("schema")
    if isinstance(schema, str) and schema.startswith("moe-placer/"):  # rather than a mistake for each of its fields
        mistake = Mistake(f"a file of {schema}", "an instance (it comes before a placement)", "schema", document.file)
        raise InputError(mistake)
    try:
        whole = Instance.model_validate(with_whole_experts(document.data))
        instance = with_chosen_expert_tp(document.data, whole)
    except ValidationError as error:
        mistakes = _wrong_fields(error, document)
    except InputError as error:
        mistakes = [_placed(m, document) for m in error.mistakes]
    else:
        mistakes = []
    if mistakes or document.mistakes:
        first = {(m.line, m.path): m for m in [*mistakes, *document.mistakes]}
        raise InputError(sorted(first.values(), key=lambda m: (m.line or 0, m.path)))
    return instance


def _wrong_fields(error: ValidationError, document: Document) -> list[Mistake]:
    """Every mistake: the wrong fields, and the contradictions among the sections that are right in themselves."""
    wrong: dict[tuple[int | None, str], Mistake] = {}
    for detail in error.errors(include_url=False):
        path = real_path(detail["loc"], document.data)
        should = expected(detail, path, document.data, Instance)
        mistake = Mistake(found(detail), should, dotted(path), document.file, document.line(path))
        wrong.setdefault((mistake.line, mistake.path), mistake)
    sections: dict[str, Any] = {}
    data = with_preset(with_whole_experts(document.data))
    for name, info in Instance.model_fields.items():
        with contextlib.suppress(ValidationError):
            value = data.get(name, info.get_default(call_default_factory=True))
            sections[name] = _adapters()[name].validate_python(value)
    contradictions = [_placed(m, document) for m in find_contradictions(sections)]
    return [*wrong.values(), *contradictions]


@cache
def _adapters() -> dict[str, TypeAdapter[Any]]:
    """Return what validates each section alone."""
    fields = Instance.model_fields.items()
    annotated: dict[str, Any] = {name: Annotated[info.annotation, info] for name, info in fields}
    return {name: TypeAdapter(annotation) for name, annotation in annotated.items()}


def _placed(mistake: Mistake, document: Document) -> Mistake:
    """Add file and line to a mistake that knows only its field."""
    line = document.line(_parse(mistake.path))
    return Mistake(mistake.found, mistake.expected, mistake.path, document.file, line)


def _parse(path: str) -> Loc:
    """Undo `dotted`."""
    words = (word for word in path.replace("[", ".[").split(".") if word)
    return tuple(int(word[1:-1]) if word.startswith("[") else word for word in words)
