# gla.c: make, make demo, make test. CC, CFLAGS and LDLIBS can be set from outside.
CC ?= cc
# -O3 vectorises the plain loops; fused multiply-add may be used where the processor has it. No -march=native: the
# kernels for newer instruction sets are compiled in and chosen at run time.
CFLAGS ?= -O3
WARN = -Wall -Wextra
STD = -std=c11 -ffp-contract=fast
LDLIBS ?= -lm
# OpenMP when the compiler has it: a program of one line tells.
OPENMP := $(shell echo 'int main(void){return 0;}' | $(CC) -fopenmp -x c -o /dev/null - 2>/dev/null && echo -fopenmp)
PYTHON ?= python3

all: run train_tiny

run: run.c
	$(CC) $(STD) $(CFLAGS) $(WARN) $(OPENMP) -o $@ $< $(LDLIBS)

train_tiny: train_tiny.c run.c
	$(CC) $(STD) $(CFLAGS) $(WARN) $(OPENMP) -o $@ $< $(LDLIBS)

.PHONY: all
