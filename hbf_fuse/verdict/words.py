"""Codes of verdicts in plain words: what happened, and what to do."""

from collections.abc import Iterable

_WORDS = {
    "cpu-contention": "threads waited for a CPU: end other programs, or use fewer threads",
    "above-ceiling": "the tier is faster than this machine can serve: use a slower one, or a faster machine",
    "above-io-max": "faster than io.max: not all of it was read from the disk",
    "below-io-max": "slower than io.max: the disk is too slow, or llama-bench paused while it loaded",
    "compute-bound": "compute takes longer than the tier: readahead hides part of the tier",
    "decode-slower": "tokens/s are below what compute and the tier together allow",
    "decode-faster": "tokens/s are above what compute and the tier together allow",
    "head-start": "the kernel grants 0.1 s of reads in advance of io.max: use a larger model",
    "evidence-missing": "the mount reported too little for a verdict: measure again with this version",
    "first-read-owed": "the first reader was owed time from earlier reads: read the file first",
    "floor-unknown": "what this machine adds to a read could not be measured: mount again when it is quiet",
    "incomplete": "not every byte of the model was read",
    "late-replies": "replies came late: this machine is too slow or too busy for this tier",
    "memory-pressure": "tasks waited for memory: end other programs, or use a smaller model",
    "not-cold": "the cache was not cold: some of the model was resident before the first read",
    "nothing-arrived": "no whole page has arrived",
    "older-prediction": "hbf 0.1.0 did not judge tokens/s, and predicted them in another way: measure again",
    "over-budget": "more was resident than --resident allows: pages came faster than they could be dropped",
    "parts-of-pages": "reads began or ended within pages, and parts of pages are not counted",
    "reader-altered": "a reader wrote what contradicts the tier or the kernel: it was stopped, or altered",
    "reader-unproven": "a reader ended or hid before the kernel could confirm what it had mapped",
    "reader-paused": "the reader paused between reads, as llama.cpp does while it parses: not the tier",
    "readers-unnamed": "readers are in another PID namespace and cannot be told apart: mount where they run",
    "replies-unseen": "libfuse does not say when replies were sent: use --engine kernel",
    "server-stopped": "the server was stopped meanwhile (SIGSTOP): no figure counts the reads' wait for it",
    "short-reads": "what this machine adds to such short reads is not known: use longer latencies or reads",
    "source-slow": "the source was slow, or memory short: put the model on a faster disk or into /dev/shm",
    "tier-changed": "the tier was changed meanwhile",
    "too-fast": "faster than the tier's link: too much lateness was given back",
    "unseen-reads": "no thread was free to see reads arrive: use fewer readers, or a faster source",
    "window-bound": "too little was in flight for the latency: the readahead window or the reader's own",
}
CODES = frozenset(_WORDS)


def sentence(codes: Iterable[str]) -> str:
    """The meaning of several codes in one line."""
    return "; ".join(map(of, codes))


def of(code: str) -> str:
    """The meaning of a code. An unknown code, of another version, is returned as it is."""
    return _WORDS.get(code, code)
