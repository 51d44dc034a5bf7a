"""Which tokens belong to train, val and test."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from gpt2core.errors import UserError

SPLITS = ("train", "val", "test")
# `auto` assigns whole documents unless a split's share of the tokens would differ by more than this.
TOLERATED_SHARE_ERROR = 0.05
# The first token of a split cannot be predicted.
FEWEST_TOKENS = 2
# With more documents the first pass is close enough, and there are too many pairs to try.
FEW_DOCUMENTS = 32


@dataclass(frozen=True)
class Split:
    """Which split each run of the stream belongs to."""

    by: str  # "documents" or "tokens"
    reason: str
    run_lengths: np.ndarray  # tokens of each run, int64; together the stream
    run_owners: np.ndarray  # index in SPLITS of each run's split, uint8
    document_lengths: dict[str, np.ndarray]  # tokens of each split's documents; a document cut in two counts in both


def choose_split(lengths: np.ndarray, shares: Mapping[str, float], split_by: str) -> Split:
    """Divide documents of `lengths` tokens by `shares`; `split_by` is documents, tokens or auto.

    auto takes whole documents where each split with a share can have one and no share is off by more than
    TOLERATED_SHARE_ERROR. Raises UserError where a split with a share gets too little.
    """
    if split_by == "tokens":
        return _by_tokens(lengths, shares, "as asked")
    wanted = [name for name in SPLITS if shares[name] > 0]
    documents = f"{len(lengths)} document{'s' if len(lengths) > 1 else ''}"
    if len(lengths) < len(wanted):
        if split_by == "documents":
            raise UserError(
                key="split_by",
                value=split_by,
                rule=": {wanted} need {needed} documents and the corpus has {found}",
                remedy="set it to tokens or auto",
                wanted=", ".join(wanted),
                needed=len(wanted),
                found=len(lengths),
            )
        return _by_tokens(lengths, shares, f"{documents} cannot fill {', '.join(wanted)}")
    owners = split_documents(lengths, shares)
    if split_by == "documents":
        _check_sizes(_sums(lengths, owners), shares)
        return _by_documents(lengths, owners, "as asked")
    error = share_error(lengths, owners, shares)
    if error > TOLERATED_SHARE_ERROR:
        return _by_tokens(lengths, shares, f"whole documents ({documents}) would miss a share by {error:.0%}")
    if any(shares[name] and size < FEWEST_TOKENS for name, size in zip(SPLITS, _sums(lengths, owners), strict=True)):
        return _by_tokens(lengths, shares, f"whole documents ({documents}) would leave a split too short")
    return _by_documents(lengths, owners, f"{documents} can fill {', '.join(wanted)}")


def _by_documents(lengths: np.ndarray, owners: np.ndarray, reason: str) -> Split:
    own = {name: lengths[owners == split] for split, name in enumerate(SPLITS)}
    return Split("documents", reason, lengths, owners, own)


def _by_tokens(lengths: np.ndarray, shares: Mapping[str, float], reason: str) -> Split:
    sizes = split_tokens(int(lengths.sum()), shares)
    ends = np.cumsum(lengths)
    own, start = {}, 0
    for name in SPLITS:
        stop = start + sizes[name]
        inner = ends[(ends > start) & (ends < stop)]
        own[name] = np.diff(np.concatenate([[start], inner, [stop]])) if stop > start else lengths[:0]
        start = stop
    owners = np.arange(len(SPLITS), dtype=np.uint8)
    return Split("tokens", reason, np.array([sizes[name] for name in SPLITS]), owners, own)


def split_tokens(total: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Sizes of three consecutive runs that make up `total`. Raises UserError where one with a share is too short."""
    # Shares that make up one but for rounding: of very many tokens that is a token too many.
    ends = np.rint(np.cumsum([shares[name] for name in SPLITS]) * total).astype(int)
    edges = [0, *np.minimum(ends[:-1], total).tolist(), total]
    sizes = np.diff(edges)
    _check_sizes(sizes, shares)
    return dict(zip(SPLITS, sizes.tolist(), strict=True))


def split_documents(lengths: np.ndarray, shares: Mapping[str, float]) -> np.ndarray:
    """The index in SPLITS of each document, uint8: in order, each to the split that lags most behind its share.

    Needs at least as many documents as splits with a share; each of those gets one. Few documents are then exchanged
    as long as that brings the shares nearer.
    """
    targets = [shares[name] for name in SPLITS]
    given = [0.0] * len(SPLITS)
    total = 0
    owners = np.empty(len(lengths), dtype=np.uint8)
    for i, length in enumerate(lengths.tolist()):
        total += length
        lags = [target * total - have if target else -np.inf for target, have in zip(targets, given, strict=True)]
        owner = lags.index(max(lags))
        given[owner] += length
        owners[i] = owner
    for split, target in enumerate(targets):
        if target and not (owners == split).any():
            richest = int(np.bincount(owners, minlength=len(SPLITS)).argmax())
            movable = np.flatnonzero(owners == richest)
            owners[movable[np.abs(lengths[movable] - target * total).argmin()]] = split
    if len(lengths) <= FEW_DOCUMENTS:
        _exchange(lengths, owners, shares)
    return owners


def share_error(lengths: np.ndarray, owners: np.ndarray, shares: Mapping[str, float]) -> float:
    """The largest distance of a split's share of the tokens from the one asked for."""
    asked = np.array([shares[name] for name in SPLITS])
    return float(np.abs(_sums(lengths, owners) / lengths.sum() - asked).max())


def _exchange(lengths: np.ndarray, owners: np.ndarray, shares: Mapping[str, float]) -> None:
    """Move one document, or swap two, in place, as long as the best such step lessens the error; empties no split."""
    while True:
        best, best_error = None, share_error(lengths, owners, shares)
        for step in _steps(owners, shares):
            trial = owners.copy()
            trial[list(step)] = list(step.values())
            if any(shares[name] and not (trial == split).any() for split, name in enumerate(SPLITS)):
                continue
            error = share_error(lengths, trial, shares)
            if error < best_error - 1e-12:
                best, best_error = trial, error
        if best is None:
            return
        owners[:] = best


def _steps(owners: np.ndarray, shares: Mapping[str, float]) -> Iterable[dict[int, int]]:
    for i in range(len(owners)):
        for split, name in enumerate(SPLITS):
            if shares[name] and split != owners[i]:
                yield {i: split}
        for j in range(i + 1, len(owners)):
            if owners[i] != owners[j]:
                yield {i: int(owners[j]), j: int(owners[i])}


def _sums(lengths: np.ndarray, owners: np.ndarray) -> np.ndarray:
    return np.array([lengths[owners == split].sum() for split in range(len(SPLITS))])


def _check_sizes(sizes: np.ndarray, shares: Mapping[str, float]) -> None:
    for name, size in zip(SPLITS, sizes.tolist(), strict=True):
        if shares[name] and size < FEWEST_TOKENS:
            raise UserError(
                key=f"shares.{name}",
                rule=f": the {name} share ({shares[name]:g}) of {int(sizes.sum())} tokens is {size}, too short for a "
                f"split (at least {FEWEST_TOKENS})",
                remedy="use a longer text or set the share to 0",
            )
