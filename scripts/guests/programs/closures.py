# Python: ctypes' callbacks are code that libffi writes when it makes them.
import ctypes
import hashlib
import random
import struct

libc = ctypes.CDLL(None)
libc.qsort.restype = None
COMPARE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))
random.seed(4)
for round in range(20):
    values = [random.randint(-10**6, 10**6) for _ in range(300)]
    array = (ctypes.c_int * len(values))(*values)
    sign = 1 if round % 2 else -1
    libc.qsort(array, len(values), ctypes.sizeof(ctypes.c_int), COMPARE(lambda a, b: sign * ((a[0] > b[0]) - (a[0] < b[0]))))
    assert list(array) == sorted(values, reverse=sign < 0)

# Many of them at once, called in any order, freed and made again.
ADD = ctypes.CFUNCTYPE(ctypes.c_longlong, ctypes.c_longlong, ctypes.c_double)
closures = {}
for i in range(6000):
    key = random.randrange(500)
    if key in closures and i % 3:
        number, closure = closures[key]
        assert closure(i, 0.5) == i + number
    else:
        closures[key] = (i, ADD(lambda x, y, number=i: x + number + int(y)))

# Strings, structures by value, callbacks that call callbacks.
NEST = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)
nest = NEST(lambda n: 1 if n == 0 else n + nest(n - 1))
for i in range(40):
    assert nest(i) == 1 + i * (i + 1) // 2

# A function in memory of our own, changed again and again.
import mmap
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
function = ctypes.CFUNCTYPE(ctypes.c_uint)(address)
for i in range(3000):
    page[0:6] = b"\xb8" + struct.pack("<I", i * 7919) + b"\xc3"
    assert function() == i * 7919
assert hashlib.sha256(b"a" * 1000000).hexdigest() == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"
print("done")
