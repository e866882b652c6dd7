#!/bin/sh
# Run a command whose Python loads modules that were compiled with gcc for the sanitizers.
set -eu
# CPython leaves memory of its own behind at exit, and so would every leak of ours be lost among
# its: what the modules own are descriptors, which the tests count. malloc shows each Python
# object to the sanitizer, and with its fake stack a pointer that outlives its function.
# Segmentation faults and bus errors are left to faulthandler, and to the programs that tests make
# die of one.
export ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=1:handle_segv=0:handle_sigbus=0
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export PYTHONMALLOC=malloc
LD_PRELOAD=$(gcc -print-file-name=libasan.so)
export LD_PRELOAD
exec "$@"
