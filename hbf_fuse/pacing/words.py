"""A long array of words of which few are not zero. Compiled code uses it without the interpreter (words.pyx);
uncompiled it is a dict.
"""


class Words:
    """Words of 64 bits, at 0 up to `count`, all zero at first. Memory follows the words that are not zero.

    Not safe for concurrent callers.
    """

    def __init__(self, count: int) -> None:
        self._words: dict[int, int] = {}

    def get(self, at: int) -> int:
        """The word at a place."""
        return self._words.get(at, 0)

    def put(self, at: int, word: int) -> bool:
        """Set the word at a place. False if there is no memory for it: it stays zero."""
        if word:
            self._words[at] = word
        else:
            self._words.pop(at, None)
        return True
