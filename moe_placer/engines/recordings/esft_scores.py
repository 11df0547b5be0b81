"""What ESFT's ``get_expert_scores.py`` logs: ``expert_weights_LAYER.txt``, a line for every sequence of text.

A line has the chosen experts of all of its tokens, an empty field, and the gate's weight of each choice, all separated
by tabs. How many experts a token chose is not in the files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from moe_placer.engines.recordings.import_options import Options
from moe_placer.engines.recordings.recorded import Found, Recorded, finish
from moe_placer.engines.recordings.tally import MOST_EXPERTS, Ints, Tally
from moe_placer.errors import InputError, Mistake
from moe_placer.files import read_bounded
from moe_placer.traffic.stored_choices import count_choices, draw_tokens

__all__ = ["is_expert_scores", "read_expert_scores", "scores_in"]

_NAME = re.compile(r"expert_weights_(\d{1,4})\.txt")
_KIND = "lines of ESFT's expert scores: experts, an empty field, as many weights, separated by tabs"
_MOST_BYTES = 500_000_000
_MOST_TOP_K = 256


def is_expert_scores(files: Sequence[Path]) -> bool:
    """Whether all of some files have the names that ESFT gives them."""
    return all(_NAME.fullmatch(file.name) for file in files)


def scores_in(folder: Path) -> list[Path]:
    """Return the files of a folder that have such a name."""
    return sorted(file for file in folder.iterdir() if _NAME.fullmatch(file.name))


def read_expert_scores(files: Sequence[Path], options: Options) -> Recorded:
    """Read every token's choices; a sequence is a step.

    Raises
    ------
    InputError
        A file is missing, damaged, or of other sequences than the first.
    """
    layers = {int(name[1]): file for file in files if (name := _NAME.fullmatch(file.name))}
    if len(layers) < len(files):
        raise options.wrong(files[0], "two files of one layer", "one recording: a file for each layer")
    order = sorted(layers)
    flat = [list(_sequences(layers[layer])) for layer in order]
    lengths = [len(ids) for ids in flat[0]]
    for layer, sequences in zip(order, flat, strict=True):
        if [len(ids) for ids in sequences] != lengths:
            expected = f"the sequences of {layers[order[0]].name}: as many, and each as long"
            raise options.wrong(layers[layer], "other sequences", expected)
    top_k = _choices_of_a_token(flat, lengths)
    largest = max(int(ids.max()) for sequences in flat for ids in sequences)
    experts = options.experts or largest + 1
    if largest >= experts:
        raise options.wrong(files[0], f"expert {largest}", f"ids from 0 to {experts - 1} (--experts)")
    total = sum(lengths) // top_k
    wanted = draw_tokens(total, options.keep_tokens)
    tally = Tally(len(order), experts, sources=0, steps=len(lengths), wanted=wanted)
    with options.progress(total, "tokens") as advance:
        for number, of_layers in enumerate(zip(*flat, strict=True)):
            ids = np.stack([of_layer.reshape(-1, top_k) for of_layer in of_layers], axis=1)
            tally.add_counts(count_choices(ids, experts), number)
            chosen = tally.next_tokens(len(ids))
            tally.keep(ids[chosen], number, None, np.full(len(chosen), number))
            advance(len(ids))
    return finish(tally, _found([layers[layer] for layer in order], order, top_k, options, experts))


def _found(files: Sequence[Path], layers: Sequence[int], top_k: int, options: Options, experts: int) -> Found:
    notes = [
        "which rank a token started on is not recorded",
        f"top-{top_k} is known from the choices: the largest number of experts that differ wherever sequences are cut",
    ]
    if not options.experts:
        notes.append(f"{experts} experts are known from the largest id; --experts says how many there are")
    return Found(
        "expert scores of ESFT",
        "",
        files,
        decoder_rows=False,
        experts_known=bool(options.experts),
        top_k=top_k,
        row_layers=tuple(layers),
        notes=notes,
    )


def _sequences(file: Path) -> Iterator[Ints]:
    """Yield the choices of every line, token after token."""
    try:
        text = read_bounded(file, _MOST_BYTES, _KIND).decode("ascii")
    except UnicodeDecodeError as error:
        raise InputError(Mistake(f"bytes that are no text (at byte {error.start})", _KIND, file=file)) from None
    lines = text.splitlines()
    if not lines:
        raise InputError(Mistake("an empty file", _KIND, file=file))
    for number, line in enumerate(lines, 1):
        experts, _, weights = line.partition("\t\t")
        words = experts.split("\t")
        if not all(word.isdigit() and len(word) < 5 for word in words):
            raise InputError(Mistake("what are no numbers of experts", _KIND, file=file, line=number))
        if len(words) != weights.count("\t") + 1:
            found = f"{len(words)} experts and {weights.count(chr(9)) + 1} weights"
            raise InputError(Mistake(found, f"{_KIND} (a line may have been cut off)", file=file, line=number))
        ids = np.array(words, np.int64)
        if ids.max() >= MOST_EXPERTS:
            raise InputError(Mistake(f"expert {ids.max()}", f"less than {MOST_EXPERTS:,}", file=file, line=number))
        yield ids


def _choices_of_a_token(flat: Sequence[Sequence[Ints]], lengths: Sequence[int]) -> int:
    """Return the largest number of choices into which all sequences can be cut without an expert twice in one token.

    Two tokens in a row that share no expert would have to be everywhere for it to be twice the true one.
    """
    common = math.gcd(*lengths)
    for size in range(min(common, _MOST_TOP_K), 1, -1):
        if common % size == 0 and all(_different(ids.reshape(-1, size)) for sequences in flat for ids in sequences):
            return size
    return 1


def _different(ids: Ints) -> bool:
    ordered = np.sort(ids, axis=1)
    return bool((ordered[:, 1:] != ordered[:, :-1]).all())
