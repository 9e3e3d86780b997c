"""Many reads at once, each in a thread of its own, past the page cache. Run as a script:

crowd_reader.py FILE SOURCE READS [MILLISECONDS]

Prints "begun" when all threads have been started. At the end it prints a line of JSON: how many reads were
right, wrong, or met which error. MILLISECONDS: the period of a timer whose signal, SIGALRM, is handled.
"""

import _thread
import errno
import json
import mmap
import os
import signal
import sys
import threading
from collections import Counter

PAGE = 4096


def main() -> None:
    path, source, count, *period = sys.argv[1:]
    served, original = os.open(path, os.O_RDONLY | os.O_DIRECT), os.open(source, os.O_RDONLY)
    pages = os.fstat(original).st_size // PAGE
    memory = memoryview(mmap.mmap(-1, int(count) * PAGE))
    told: Counter[str] = Counter()
    lock = threading.RLock()

    def read(number: int) -> None:
        at = number * 7 % pages * PAGE
        mine = memory[number * PAGE : (number + 1) * PAGE]
        try:
            os.preadv(served, [mine], at)
            outcome = "right" if mine == os.pread(original, PAGE, at) else "wrong"
        except OSError as error:
            outcome = errno.errorcode[error.errno or 0]
        with lock:
            told[outcome] += 1

    if period:
        signal.signal(signal.SIGALRM, lambda *_: told.update(signals=1))
        signal.setitimer(signal.ITIMER_REAL, int(period[0]) / 1e3, int(period[0]) / 1e3)
    if int(count) == 1:
        # The main thread gets the signals.
        print("begun", flush=True)
        read(0)
    else:
        _thread.stack_size(64 << 10)
        ended = threading.Semaphore(0)

        def read_and_tell(number: int) -> None:
            read(number)
            ended.release()

        for number in range(int(count)):
            # Not a threading.Thread: its start() waits until the thread runs.
            _thread.start_new_thread(read_and_tell, (number,))
        print("begun", flush=True)
        for _ in range(int(count)):
            ended.acquire()
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
