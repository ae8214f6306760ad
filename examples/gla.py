#!/usr/bin/env python3
"""A story through libgla.so (make install), with ctypes:   python3 gla.py model.bin "Once upon a time"     LIBGLA=path/to/libgla.so names another"""
import os, sys
from ctypes import CDLL, byref, c_int32, c_int64, c_size_t, c_uint64, c_void_p, create_string_buffer

if len(sys.argv) < 3:
    sys.exit(f"usage: {sys.argv[0]} MODEL PROMPT    (a GGUF file and a text)")
try:
    gla, err, piece = CDLL(os.environ.get("LIBGLA", "libgla.so")), create_string_buffer(320), create_string_buffer(512)
except OSError as why:
    sys.exit(f"{why}; `make install` installs the library, or LIBGLA=path/to/libgla.so names it")
gla.gla_encode.restype, gla.gla_piece.restype = c_int64, c_size_t
model, state, ids, sampler = c_void_p(), c_void_p(), (c_int32 * 256)(), (c_uint64 * 256)()  # GlaSampler is smaller
if gla.gla_open(byref(model), sys.argv[1].encode(), err) or gla.gla_state_new(byref(state), model, None, err):
    sys.exit(err.value.decode())
gla.gla_sampler_init(sampler, model, c_uint64(42))
n = gla.gla_encode(model, sys.argv[2].encode(), c_size_t(len(sys.argv[2].encode())), 1, ids, c_size_t(256), err)
for _ in range(100):
    if not 0 < n <= 256 or gla.gla_eval(state, ids, c_int64(n), None, c_int64(0), err):
        sys.exit(err.value.decode() or "the prompt has no tokens, or more than 256")
    ids[0], n = gla.gla_sample(sampler, state), 1
    if gla.gla_is_end(model, ids[0]):
        break
    length = gla.gla_piece(model, ids[0], 0, piece, c_size_t(512))
    sys.stdout.buffer.write(piece.raw[:length])
print()
