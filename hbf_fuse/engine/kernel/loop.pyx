"""Reads and writes without the interpreter: requests in, deadlines, replies out. All other requests go to Python's threads.

Receivers take requests from the kernel. A read that is not due yet goes into a heap. One thread leads: it waits
until the earliest read is due and sends it. The sender on standby leads while the leader is busy sending and the
next read is nearly due. So the number of reads in flight does not depend on the number of threads, and no thread
here ever waits for the interpreter.

A reply may wait for the source: for its disk, or for memory. If that blocks all receivers, or every thread that
could lead, for some milliseconds, the watch starts another receiver, up to MOST_RECEIVERS. Extra receivers end
when they are not needed.
"""

from threading import get_native_id

from hbf_fuse.pacing.pacer cimport Pacer
from hbf_fuse.pacing.room cimport Room
from hbf_fuse.tier.heap cimport Heap

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport EAGAIN, EFBIG, EINTR, EIO, ENOENT, ENOMEM, ENOSPC, errno
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec


cdef extern from "<linux/fuse.h>" nogil:
    enum: FUSE_READ, FUSE_WRITE, FUSE_FORGET, FUSE_BATCH_FORGET, FUSE_NOTIFY_INVAL_INODE
    struct fuse_in_header:
        uint32_t len, opcode, pid
        uint64_t unique, nodeid
    struct fuse_read_in:
        uint64_t fh, offset
        uint32_t size, read_flags
    struct fuse_write_in:
        uint64_t fh, offset
        uint32_t size, write_flags
    struct fuse_write_out:
        uint32_t size, padding
    struct fuse_out_header:
        uint32_t len
        int32_t error
        uint64_t unique
    struct fuse_notify_inval_inode_out:
        uint64_t ino
        int64_t off, len

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t writev(int, const iovec *, int)

cdef extern from "<unistd.h>" nogil:
    ssize_t read(int, void *, size_t)
    ssize_t pread(int, void *, size_t, long long)
    ssize_t pwrite(int, const void *, size_t, long long)

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t, size_t)

cdef extern from "<sys/prctl.h>" nogil:
    enum: PR_SET_TIMERSLACK
    int prctl(int, unsigned long)

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    ctypedef struct pthread_condattr_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *, void *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)
    int pthread_condattr_init(pthread_condattr_t *)
    int pthread_condattr_setclock(pthread_condattr_t *, int)
    int pthread_cond_init(pthread_cond_t *, pthread_condattr_t *)
    int pthread_cond_wait(pthread_cond_t *, pthread_mutex_t *)
    int pthread_cond_timedwait(pthread_cond_t *, pthread_mutex_t *, const timespec *)
    int pthread_cond_signal(pthread_cond_t *)
    int pthread_cond_broadcast(pthread_cond_t *)
    ctypedef unsigned long pthread_t
    int pthread_create(pthread_t *, void *, void *(*)(void *) noexcept nogil, void *)
    int pthread_detach(pthread_t)

cdef extern from *:
    """
    #include <sys/stat.h>
    static inline long long size_of(int fd) { struct stat s; return fstat(fd, &s) ? -1 : (long long) s.st_size; }
    """
    long long size_of(int) nogil


cdef enum:
    MESSAGE = 1 << 20  # bytes of a buffer for requests and for reads of a disk; two pages more follow
    PAGE = 4096
    RECEIVERS = 4  # more would only wait for each other, unless some are blocked
    MOST_RECEIVERS = 256
    TICK_NS = 2000000  # how often the watch looks
    BLIND_NS = 5000000  # how long no thread may be receiving
    OVERDUE_NS = 1000000  # how long a due read may wait for a sender
    POOL = 16384  # reads that wait here at once; more wait in the kernel
    FILES = 65536  # handles known here; reads of others go to Python's threads
    LOCKOWNER = 2  # in read_flags and write_flags: set for what goes past the page cache, never for the rest
    DIRECT = 1  # as in observe/bounds.py
    WRITES = 2
    SENDING_NS = 20000  # about what a reply takes, without copying its data
    SENDING_BYTES_PER_NS = 4  # how fast data is copied; with SENDING_NS tells if another thread must lead meanwhile
    READ_BYTES = 80  # a header and the struct fuse_read_in, or fuse_write_in, behind it


cdef struct File:  # an open handle; 0 for none
    uint64_t fh
    const char *base  # NULL: read from the disk each time
    long long size, place, in_flight, base_address  # size -1: in kv/, ask the file
    int fd

cdef struct Read:  # one read in flight
    uint64_t unique
    long long offset, nbytes, reader, arrival_ns, due_ns
    int file, way

cdef struct Message:  # for Python's threads
    Message *following
    long long arrival_ns, length
    char content[0]


cdef inline long long now() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return t.tv_sec * 1000000000LL + t.tv_nsec


cdef class Loop:
    cdef Pacer pacer
    cdef Room kv_room
    cdef int fd, max_request
    cdef int receiving  # receivers that wait for a request
    cdef int extra  # receivers that the watch has started
    cdef long long blind_ns  # since when no receiver waits for a request
    cdef bint stands_by, rests  # whether the sender on standby (stands_by) and the watch (rests) have nothing to do
    cdef File *files
    cdef object owner  # keeps the descriptor open
    cdef readonly list threads  # ids of the threads that reads wait for: receivers and the sender on standby
    cdef dict kept  # by handle, the objects that must live while the loop knows it
    cdef Read *pool
    cdef int *spare
    cdef int spares
    cdef bint led, ended
    cdef Heap waiting  # places in the pool, by due time
    cdef Message *oldest
    cdef Message *newest
    cdef long long told_moments, told_readers
    cdef bint telling
    cdef pthread_mutex_t lock
    cdef pthread_cond_t leads, follows, room, messages, drops, watches, released_, ends

    def __cinit__(self, int fd, Pacer pacer, int max_request, owner=None, Room kv_room=None):
        cdef pthread_condattr_t monotonic
        self.fd, self.pacer, self.max_request, self.kv_room = fd, pacer, max_request, kv_room
        self.kept, self.owner, self.threads = {}, owner, []
        self.waiting = Heap(POOL)
        # calloc: memory is allocated when it is first used.
        self.files = <File *> calloc(FILES, sizeof(File))
        self.pool = <Read *> calloc(POOL, sizeof(Read))
        self.spare = <int *> calloc(POOL, sizeof(int))
        if not self.files or not self.pool or not self.spare:
            raise MemoryError
        for self.spares in range(POOL):
            self.spare[self.spares] = POOL - 1 - self.spares
        self.spares = POOL
        pthread_mutex_init(&self.lock, NULL)
        pthread_condattr_init(&monotonic)
        pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC)
        pthread_cond_init(&self.leads, &monotonic)
        pthread_cond_init(&self.follows, NULL)
        pthread_cond_init(&self.room, NULL)
        pthread_cond_init(&self.messages, NULL)
        pthread_cond_init(&self.drops, NULL)
        pthread_cond_init(&self.watches, &monotonic)
        pthread_cond_init(&self.released_, NULL)
        pthread_cond_init(&self.ends, NULL)

    def __dealloc__(self):
        """No thread runs here any more: each holds a reference, or a thread that does waits for it."""
        cdef Message *message
        while self.oldest:
            message = self.oldest
            self.oldest = message.following
            free(message)
        free(self.files)
        free(self.pool)
        free(self.spare)

    # For Python

    def work(self):
        """A function for each thread to run. They return when the mount has ended."""
        common = [self.receive] * RECEIVERS + [self.stand_by, self.watch]
        return common + [self.drop] * (self.pacer.resident is not None)

    def receive(self):
        self.threads.append(get_native_id())
        with nogil:
            self.receive_loop(False)
            self.end()
            pthread_mutex_lock(&self.lock)
            while self.extra:
                pthread_cond_wait(&self.ends, &self.lock)
            pthread_mutex_unlock(&self.lock)

    def stand_by(self):
        self.threads.append(get_native_id())
        with nogil:
            self.standby_loop()

    def watch(self):
        with nogil:
            self.watch_loop()

    def drop(self):
        with nogil:
            self.drop_loop()

    def next_message(self):
        """The next request that is not for the loop, and its arrival; None when the mount has ended. An empty one
        reports new readers, or progress of a first pass.
        """
        cdef Message *message
        with nogil:
            pthread_mutex_lock(&self.lock)
            while not self.oldest and not self.ended:
                pthread_cond_wait(&self.messages, &self.lock)
            message = self.oldest
            if message:
                self.oldest = message.following
                if not self.oldest:
                    self.newest = NULL
            pthread_mutex_unlock(&self.lock)
        if not message:
            return None
        if not message.length:
            self.telling = False
        try:
            return memoryview(message.content[: message.length]), message.arrival_ns
        finally:
            free(message)

    def opened(self, uint64_t handle, owner, memory, int fd, long long place, long long size, long long base=0):
        """Serve reads of this handle from now on: from memory, or from fd if memory is None. owner: keeps both
        valid. size -1: a file of kv/, whose addresses begin at base; serve its writes, too.
        """
        cdef Py_buffer buffer
        cdef File *file = &self.files[handle % FILES]
        cdef const char *data = NULL
        if memory is not None:
            PyObject_GetBuffer(memory, &buffer, PyBUF_SIMPLE)
            data = <const char *> buffer.buf
            PyBuffer_Release(&buffer)
        pthread_mutex_lock(&self.lock)
        if not file.fh and not file.in_flight:
            file.fh, file.base, file.fd, file.place, file.size = handle, data, fd, place, size
            file.base_address = base
        pthread_mutex_unlock(&self.lock)
        self.kept[handle] = owner, memory

    def released(self, uint64_t handle):
        """The kernel has forgotten this handle."""
        cdef File *file = &self.files[handle % FILES]
        cdef bint is_used = False
        with nogil:
            pthread_mutex_lock(&self.lock)
            if file.fh == handle:
                file.fh = 0
                # The thread that sent the last reply may still be recording it.
                while file.in_flight and not self.ended:
                    pthread_cond_wait(&self.released_, &self.lock)
                is_used = file.in_flight > 0
            pthread_mutex_unlock(&self.lock)
        if not is_used:
            self.kept.pop(handle, None)

    def reader_of(self, uint64_t unique):
        """The thread that waits for a read; 0 if the read does not wait."""
        cdef int place
        cdef long long reader = 0
        with nogil:
            pthread_mutex_lock(&self.lock)
            place = self.place_of(unique)
            if place >= 0:
                reader = self.pool[place].reader
            pthread_mutex_unlock(&self.lock)
        return reader

    def tell_dropper(self):
        """Pages may have to be dropped."""
        with nogil:
            self.tell()

    def cancel(self, uint64_t unique):
        """Answer a read with EINTR if it still waits."""
        cdef int place
        cdef Read r
        with nogil:
            pthread_mutex_lock(&self.lock)
            place = self.place_of(unique)
            if place >= 0:
                r = self.pool[place]
                self.waiting.remove(place)
                self.release_place(place)
            pthread_mutex_unlock(&self.lock)
            if place >= 0:
                self.refuse(&r, EINTR)

    # The path of a read. Nothing below may need the interpreter.

    cdef void receive_loop(self, bint is_extra) noexcept nogil:
        """Receive until the mount has ended, or an extra receiver is no longer needed."""
        cdef char *buffer = <char *> aligned_alloc(PAGE, MESSAGE + 2 * PAGE)
        cdef fuse_in_header *header = <fuse_in_header *> buffer
        cdef ssize_t length
        cdef long long arrival_ns
        cdef Read r
        prctl(PR_SET_TIMERSLACK, 1)
        if not buffer:
            return
        if is_extra:
            self.lead_while_needed(buffer)
        while self.may_receive(is_extra):
            while True:
                length = read(self.fd, buffer, MESSAGE + PAGE)
                if length >= 0 or (errno != EINTR and errno != EAGAIN and errno != ENOENT):
                    break
            arrival_ns = now()
            self.has_received(arrival_ns)
            # /dev/fuse never returns 0. A socket returns it for ever once the other end is closed.
            if length <= 0:
                break
            if length < <ssize_t> sizeof(fuse_in_header) or header.opcode == FUSE_FORGET or header.opcode == FUSE_BATCH_FORGET:
                continue
            if header.opcode == FUSE_READ and length >= READ_BYTES and self.takes(&r, buffer):
                r.arrival_ns = arrival_ns
                self.begin(&r, buffer)
            elif header.opcode == FUSE_WRITE and length >= READ_BYTES and self.stores(&r, buffer, length):
                r.arrival_ns = arrival_ns
                if r.nbytes >= 0:
                    self.begin(&r, buffer)
            else:
                self.pass_on(buffer, length, arrival_ns)
        free(buffer)

    cdef bint may_receive(self, bint is_extra) noexcept nogil:
        """Count as receiving. False if an extra receiver is not needed, or the mount has ended."""
        cdef bint may
        pthread_mutex_lock(&self.lock)
        may = not self.ended and not (is_extra and self.receiving >= RECEIVERS)
        if may:
            if not self.receiving and self.blind_ns:
                self.pacer.was_blind(self.blind_ns, now())
                self.blind_ns = 0
            self.receiving += 1
        pthread_mutex_unlock(&self.lock)
        return may

    cdef void has_received(self, long long arrival_ns) noexcept nogil:
        pthread_mutex_lock(&self.lock)
        self.receiving -= 1
        if not self.receiving:
            self.blind_ns = arrival_ns
            self.wake_watch()
        pthread_mutex_unlock(&self.lock)

    cdef bint takes(self, Read *r, const char *message) noexcept nogil:
        """Whether the loop serves this read; fills in r."""
        cdef fuse_in_header *header = <fuse_in_header *> message
        cdef fuse_read_in *body = <fuse_read_in *> (message + sizeof(fuse_in_header))
        cdef File *file = &self.files[body.fh % FILES]
        cdef long long size
        cdef bint is_ours
        pthread_mutex_lock(&self.lock)
        is_ours = body.fh and file.fh == body.fh and (file.size < 0 or body.offset <= <uint64_t> file.size)
        if is_ours:
            file.in_flight += 1
        pthread_mutex_unlock(&self.lock)
        if not is_ours:
            return False
        size = file.size if file.size >= 0 else size_of(file.fd)
        r.unique, r.reader, r.offset = header.unique, header.pid, body.offset
        r.nbytes = max(0, min(size - r.offset, min(<long long> body.size, <long long> self.max_request)))
        r.way = DIRECT if body.read_flags & LOCKOWNER else 0
        r.file = body.fh % FILES
        return True

    cdef bint stores(self, Read *r, const char *message, ssize_t length) noexcept nogil:
        """Whether the loop serves this write; stores its data and fills in r. Of one that fails, which is answered
        here, nbytes is -1.
        """
        cdef fuse_in_header *header = <fuse_in_header *> message
        cdef fuse_write_in *body = <fuse_write_in *> (message + sizeof(fuse_in_header))
        cdef File *file = &self.files[body.fh % FILES]
        cdef bint is_ours
        cdef long long before, after, stored = -1
        cdef int code = ENOSPC
        pthread_mutex_lock(&self.lock)
        is_ours = body.fh and file.fh == body.fh and file.size < 0
        if is_ours:
            file.in_flight += 1
        pthread_mutex_unlock(&self.lock)
        if not is_ours:
            return False
        r.unique, r.reader, r.offset = header.unique, header.pid, body.offset
        r.way = WRITES | (DIRECT if body.write_flags & LOCKOWNER else 0)
        r.file = body.fh % FILES
        before = size_of(file.fd)
        after = max(before, r.offset + <long long> body.size)
        if after >> 40:
            code = EFBIG
        elif self.kv_room.grow(before, after):
            stored = pwrite(file.fd, message + READ_BYTES, min(<long long> body.size, length - READ_BYTES), r.offset)
            if stored < 0:
                code = errno
            # A disk that is full takes less.
            self.kv_room.grow(after, max(before, size_of(file.fd)))
        r.nbytes = stored
        if stored < 0:
            self.fail(r, code)
            self.over(r)
        return True

    cdef void begin(self, Read *r, char *buffer) noexcept nogil:
        """Admit a read or a write; answer it if it is due, else let it wait."""
        cdef int place
        cdef File *file = &self.files[r.file]
        r.due_ns = self.pacer.admit(
            file.place, file.base_address + r.offset, r.nbytes, r.reader, r.way, r.arrival_ns
        )
        self.tell()
        if not self.pacer.throttled or r.due_ns <= r.arrival_ns:
            self.send(r, buffer)
            return
        pthread_mutex_lock(&self.lock)
        while not self.spares and not self.ended:
            pthread_cond_wait(&self.room, &self.lock)
        if not self.ended:
            self.spares -= 1
            place = self.spare[self.spares]
            self.pool[place] = r[0]
            self.waiting.push(r.due_ns, place)
            self.wake_watch()
            if self.led and self.waiting.item(0) == place:
                pthread_cond_signal(&self.leads)
        pthread_mutex_unlock(&self.lock)
        self.lead_while_needed(buffer)

    cdef void lead_while_needed(self, char *buffer) noexcept nogil:
        """Lead as long as reads wait and no other thread leads."""
        pthread_mutex_lock(&self.lock)
        while self.waiting.count and not self.led and not self.ended:
            self.lead(buffer)
        pthread_mutex_unlock(&self.lock)

    cdef void lead(self, char *buffer) noexcept nogil:
        """Wait for the earliest read and send it. The lock is held before and after. During the sending, any
        thread may lead.
        """
        cdef Read r
        cdef long long until_ns, t = now()
        cdef timespec until
        cdef int place
        self.led = True
        while self.waiting.count and not self.ended:
            until_ns = self.waiting.first_key()
            if until_ns <= t:
                break
            until.tv_sec, until.tv_nsec = until_ns // 1000000000, until_ns % 1000000000
            pthread_cond_timedwait(&self.leads, &self.lock, &until)
            t = now()
            if t > until_ns:
                self.pacer.counters.wakes += 1
                self.pacer.counters.woken_late_ns += t - until_ns
        self.led = False
        if not self.waiting.count or self.ended or self.waiting.first_key() > t:
            return
        place = self.waiting.pop()
        r = self.pool[place]
        self.release_place(place)
        # Wake another thread only if the next read is due during this sending.
        if self.waiting.count and self.waiting.first_key() < t + SENDING_NS + r.nbytes // SENDING_BYTES_PER_NS:
            pthread_cond_signal(&self.follows)
        pthread_mutex_unlock(&self.lock)
        self.send(&r, buffer)
        pthread_mutex_lock(&self.lock)

    cdef void standby_loop(self) noexcept nogil:
        """Lead when reads wait and no thread leads."""
        cdef char *buffer = <char *> aligned_alloc(PAGE, MESSAGE + 2 * PAGE)
        prctl(PR_SET_TIMERSLACK, 1)
        pthread_mutex_lock(&self.lock)
        while buffer and not self.ended:
            if self.led or not self.waiting.count:
                self.stands_by = True
                pthread_cond_wait(&self.follows, &self.lock)
                self.stands_by = False
            else:
                self.lead(buffer)
        pthread_mutex_unlock(&self.lock)
        free(buffer)

    cdef void wake_watch(self) noexcept nogil:
        """There is something to watch. With the lock held."""
        if self.rests:
            self.rests = False
            pthread_cond_signal(&self.watches)

    cdef void watch_loop(self) noexcept nogil:
        """Check every TICK_NS whether a receiver or a leader is missing, as long as reads wait or no thread
        receives. Always check whether the server stood still.
        """
        cdef timespec until
        cdef long long until_ns, t = now()
        cdef bint blind, overdue
        pthread_mutex_lock(&self.lock)
        while not self.ended:
            self.rests = not self.waiting.count and self.receiving
            until_ns = self.pacer.next_beat(t) if self.rests else t + TICK_NS
            until.tv_sec, until.tv_nsec = until_ns // 1000000000, until_ns % 1000000000
            pthread_cond_timedwait(&self.watches, &self.lock, &until)
            self.rests = False
            t = now()
            self.pacer.beat(until_ns, t)
            blind = not self.receiving and self.blind_ns and t - self.blind_ns > BLIND_NS
            overdue = not self.led and self.waiting.count and t - self.waiting.first_key() > OVERDUE_NS
            if overdue and self.stands_by:
                pthread_cond_signal(&self.follows)
            elif (blind or overdue) and self.extra < MOST_RECEIVERS - RECEIVERS and not self.ended:
                self.begin_receiver()
        pthread_mutex_unlock(&self.lock)

    cdef void begin_receiver(self) noexcept nogil:
        """With the lock held. If no thread can be started, the existing ones go on."""
        cdef pthread_t thread
        if not pthread_create(&thread, NULL, extra_receiver, <void *> self):
            pthread_detach(thread)
            self.extra += 1

    cdef void receive_besides(self) noexcept nogil:
        """What an extra receiver runs."""
        self.receive_loop(True)
        pthread_mutex_lock(&self.lock)
        self.extra -= 1
        pthread_cond_broadcast(&self.ends)
        pthread_mutex_unlock(&self.lock)

    cdef void send(self, Read *r, char *buffer) noexcept nogil:
        """Reply to a read or a write. Only the kernel touches the source's pages: if the source shrank or its disk fails, it
        returns EFAULT. The page with the new end of a shrunk source is filled with zeros, hence the size check.
        """
        cdef fuse_out_header header
        cdef fuse_write_out written
        cdef iovec parts[2]
        cdef File *file = &self.files[r.file]
        cdef const char *data = file.base
        cdef long long started_ns, length
        self.pacer.sending(r.reader, r.arrival_ns, r.due_ns)
        started_ns = now()
        if r.way & WRITES:
            written.size, written.padding = r.nbytes, 0
            data = <const char *> &written
        elif data:
            data = data + r.offset if size_of(file.fd) >= r.offset + r.nbytes else NULL
        else:
            data = self.from_disk(file, r, buffer)
        length = sizeof(written) if r.way & WRITES else r.nbytes
        header.len, header.error, header.unique = sizeof(header) + length, 0, r.unique
        parts[0].iov_base, parts[0].iov_len = &header, sizeof(header)
        parts[1].iov_base, parts[1].iov_len = <void *> data, length
        if not data or writev(self.fd, parts, 2) < 0:
            # If the data was lost during the sending, the kernel has already told the reader. A second error
            # reply then gets ENOENT and does no harm.
            self.refuse(r, EIO)
            return
        self.pacer.complete(
            file.place, file.base_address + r.offset, r.nbytes, r.reader, r.way, r.arrival_ns, r.due_ns, started_ns, now()
        )
        self.over(r)

    cdef const char *from_disk(self, File *file, Read *r, char *buffer) noexcept nogil:
        """A read's data, read past the page cache into the buffer; NULL if the disk fails or the source shrank."""
        cdef long long first = r.offset // PAGE * PAGE, end = r.offset + r.nbytes, have = 0
        cdef long long wanted = (end - first + PAGE - 1) // PAGE * PAGE
        cdef ssize_t count
        while first + have < end:
            count = pread(file.fd, buffer + have, wanted - have, first + have)
            if count == 0 and file.size < 0:
                # Somebody has truncated it meanwhile.
                r.nbytes = max(0, first + have - r.offset)
                break
            if count <= 0 or (count % PAGE and first + have + count < end and file.size >= 0):
                return NULL
            have += count
        return buffer + (r.offset - first)

    cdef void refuse(self, Read *r, int code) noexcept nogil:
        """Answer a read with an error."""
        self.fail(r, code)
        self.pacer.abandon(self.files[r.file].place, r.nbytes, r.reader, r.way, code == EINTR)
        self.over(r)

    cdef void fail(self, Read *r, int code) noexcept nogil:
        cdef fuse_out_header header
        cdef iovec part
        header.len, header.error, header.unique = sizeof(header), -code, r.unique
        part.iov_base, part.iov_len = &header, sizeof(header)
        writev(self.fd, &part, 1)

    cdef void over(self, Read *r) noexcept nogil:
        """A read has ended, with data or without."""
        cdef File *file = &self.files[r.file]
        pthread_mutex_lock(&self.lock)
        file.in_flight -= 1
        if not file.in_flight and not file.fh:
            pthread_cond_broadcast(&self.released_)
        pthread_mutex_unlock(&self.lock)
        self.tell()

    cdef void tell(self) noexcept nogil:
        """Wake the dropper if pages must be dropped, and Python's threads if a first pass has made progress or a
        thread has begun to read.
        """
        if self.pacer.resident is not None and self.pacer.resident.must_drop():
            pthread_mutex_lock(&self.lock)
            pthread_cond_signal(&self.drops)
            pthread_mutex_unlock(&self.lock)
        # Of new readers one message waits at a time: a crowd of thousands is no queue of thousands.
        if self.pacer.coverage.moments != self.told_moments or (
            self.pacer.readers.fresh != self.told_readers and not self.telling
        ):
            self.told_moments, self.told_readers = self.pacer.coverage.moments, self.pacer.readers.fresh
            self.telling = True
            self.pass_on(NULL, 0, 0)

    cdef void drop_loop(self) noexcept nogil:
        """Drop pages from the page cache as the budget wants it; see pacing/resident.py."""
        cdef fuse_out_header header
        cdef fuse_notify_inval_inode_out body
        cdef iovec parts[2]
        parts[0].iov_base, parts[0].iov_len = &header, sizeof(header)
        parts[1].iov_base, parts[1].iov_len = &body, sizeof(body)
        header.len, header.error, header.unique = sizeof(header) + sizeof(body), FUSE_NOTIFY_INVAL_INODE, 0
        while True:
            pthread_mutex_lock(&self.lock)
            while not self.ended and not self.pacer.resident.must_drop():
                pthread_cond_wait(&self.drops, &self.lock)
            pthread_mutex_unlock(&self.lock)
            if self.ended:
                return
            while self.pacer.next_drop():
                body.ino = self.pacer.inode(self.pacer.resident.drop_file)
                body.off = self.pacer.resident.drop_first * PAGE
                body.len = (self.pacer.resident.drop_end - self.pacer.resident.drop_first) * PAGE
                # Fails if the kernel has forgotten the inode with its pages.
                writev(self.fd, parts, 2)

    cdef void pass_on(self, const char *content, ssize_t length, long long arrival_ns) noexcept nogil:
        """Leave a request to Python's threads."""
        cdef Message *message = <Message *> malloc(sizeof(Message) + length)
        cdef fuse_out_header header
        cdef iovec part
        if not message:
            header.len, header.error = sizeof(header), -ENOMEM
            header.unique = (<const fuse_in_header *> content).unique if length else 0
            part.iov_base, part.iov_len = &header, sizeof(header)
            writev(self.fd, &part, 1)
            return
        message.following, message.arrival_ns, message.length = NULL, arrival_ns, length
        memcpy(message.content, content, length)
        pthread_mutex_lock(&self.lock)
        if self.newest:
            self.newest.following = message
        else:
            self.oldest = message
        self.newest = message
        pthread_cond_signal(&self.messages)
        pthread_mutex_unlock(&self.lock)

    cdef void end(self) noexcept nogil:
        """The mount has ended: end every thread. Waiting reads have no readers any more."""
        pthread_mutex_lock(&self.lock)
        self.ended = True
        pthread_cond_broadcast(&self.leads)
        pthread_cond_broadcast(&self.follows)
        pthread_cond_broadcast(&self.room)
        pthread_cond_broadcast(&self.messages)
        pthread_cond_broadcast(&self.drops)
        pthread_cond_broadcast(&self.watches)
        pthread_cond_broadcast(&self.released_)
        pthread_mutex_unlock(&self.lock)

    cdef int place_of(self, uint64_t unique) noexcept nogil:
        """The place of a waiting read in the pool; -1 if it does not wait. With the lock held."""
        cdef int at
        for at in range(self.waiting.count):
            if self.pool[self.waiting.item(at)].unique == unique:
                return <int> self.waiting.item(at)
        return -1

    cdef void release_place(self, int place) noexcept nogil:
        """With the lock held."""
        self.spare[self.spares] = place
        self.spares += 1
        pthread_cond_signal(&self.room)


cdef void *extra_receiver(void *loop) noexcept nogil:
    # A borrowed reference: the threads in `receive` hold one and wait for this one to end.
    (<Loop> loop).receive_besides()
    return NULL
