# gla.c: make, make demo, make test. CC, CFLAGS and LDLIBS can be set from outside.
CC ?= cc
# -O3 vectorises the plain loops. No -march=native: the kernels for newer instruction sets are compiled in and chosen at run
# time. gnu11 rather than c11, because it lets gcc fuse a multiplication and an addition where the processor can.
CFLAGS ?= -O3
WARN = -Wall -Wextra
STD = -std=gnu11
LDLIBS ?= -lm
# OpenMP when the compiler has it: a program of one line tells.
OPENMP := $(shell echo 'int main(void){return 0;}' | $(CC) -fopenmp -x c -o /dev/null - 2>/dev/null && echo -fopenmp)
PYTHON ?= python3

all: ## both programs (the default), at the same time unless -j says otherwise
	@$(MAKE) --no-print-directory $(if $(filter -j%,$(MAKEFLAGS)),,-j2) run train_tiny

run: run.c
	$(CC) $(STD) $(CFLAGS) $(WARN) $(OPENMP) -o $@ $< $(LDLIBS)

train_tiny: train_tiny.c run.c
	$(CC) $(STD) $(CFLAGS) $(WARN) $(OPENMP) -o $@ $< $(LDLIBS)

# ---- tests: everything below needs no download, except for parity ----
build/%: tests/%.c run.c $(wildcard train_tiny.c)
	@mkdir -p build
	$(CC) $(STD) $(CFLAGS) $(WARN) $(OPENMP) -pthread -o $@ $< $(LDLIBS)

# They try thousands of tiny files or runs: what -O3 would save is less than it takes.
build/bind build/drafts: build/%: tests/%.c tests/ahead.h run.c
	@mkdir -p build
	$(CC) $(STD) -O1 $(WARN) $(OPENMP) -o $@ $< $(LDLIBS)

test: ## all checks, under three minutes with compiling; ends with "N passed, M failed"
	@CC="$(CC)" $(PYTHON) tests/all.py $(MAKE)

# Undefined behaviour and every access outside of an object stop the program.
SANITIZE = -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined

debug: run.c ## build/run-debug, with the address and undefined-behaviour sanitizers
	@mkdir -p build
	$(CC) $(STD) $(SANITIZE) $(WARN) -o build/run-debug $< $(LDLIBS)

FUZZ_SECONDS ?= 60
SEEDS = $(wildcard tests/fixtures/*.gguf tests/fixtures/tokenizer/*.gguf)

# Where `make parity` has installed what export.py needs, a model of every architecture is a seed too.
build/seeds/ready: export.py .venv/ready
	@mkdir -p build/seeds
	for d in tests/golden/*/; do .venv/bin/python export.py $$d build/seeds/$$(basename $$d).gguf --type f32 >/dev/null || exit 1; done
	@touch $@

fuzz: $(if $(wildcard .venv/ready),build/seeds/ready) ## changed models, vocabularies, sessions and any texts, for FUZZ_SECONDS (60)
	@mkdir -p build
	$(CC) $(STD) $(SANITIZE) $(WARN) -o build/fuzz tests/fuzz.c $(LDLIBS)
	cd build && ./fuzz -t $(FUZZ_SECONDS) $(addprefix ../,$(SEEDS)) $$(ls seeds/*.gguf 2>/dev/null)

# torch goes first and alone, so that its own version of a wheel is settled before anything else asks for it. A download that breaks off is
# tried again: pip itself repeats requests, not files that stop in the middle.
PIP = pip install -q --disable-pip-version-check --retries 10 --timeout 180
again = for i in 1 2 3; do $(1) && exit 0; sleep 10; done; exit 1

.venv/ready: tests/requirements.txt doc/requirements-export.txt
	$(PYTHON) -m venv .venv
	$(call again,.venv/bin/$(PIP) "$$(grep '^torch==' $<)")
	$(call again,.venv/bin/$(PIP) -r $<)
	touch $@

PARITY ?= parity train_step pretokenizers real vocabularies templates

parity: run build/bind .venv/ready ## against PyTorch: logits, gradients, tokenizers, SmolLM2's own weights, chat templates (installs torch in .venv)
	@export OMP_WAIT_POLICY=passive; for t in $(PARITY); do .venv/bin/python tests/$$t.py || bad=1; done; exit $${bad:-0}

parity-real: run .venv/ready ## Gemma 3 270M and Qwen2.5-Coder-0.5B against transformers (downloads 750 MB)
	OMP_WAIT_POLICY=passive .venv/bin/python tests/real.py gemma3 qwen2
	.venv/bin/python tests/vocabularies.py --only large
	.venv/bin/python tests/templates.py --large --only gguf

.venv-llamacpp/ready: tests/requirements-llamacpp.txt tests/requirements.txt
	$(PYTHON) -m venv .venv-llamacpp
	$(call again,.venv-llamacpp/bin/$(PIP) "$$(grep '^torch==' tests/requirements.txt)")
	$(call again,CMAKE_ARGS=-DLLAVA_BUILD=OFF .venv-llamacpp/bin/$(PIP) -r $<)
	touch $@

parity-llamacpp: run .venv-llamacpp/ready ## against llama.cpp, which is compiled first (15 minutes)
	.venv-llamacpp/bin/python tests/llamacpp.py

mqar: train_tiny ## what memories of a fixed size can recall, by mixer: a table from small models (under half an hour on two cores)
	$(PYTHON) tests/mqar.py

bench-train: train_tiny .venv/ready ## tokens per second of train_tiny next to PyTorch, the same model and step
	.venv/bin/python tests/train_step.py --bench

MODEL ?= model.bin

bench: run build/limits ## speed beside the machine's limits: MODEL="a.gguf ..." PEER="path/to/llama-bench ..." BENCH="--rounds 5"
	@$(PYTHON) tests/bench.py $(BENCH) $(addprefix --peer ,$(PEER)) -- $(MODEL)

bench-sessions: run build/sessions ## saving and loading sessions, a chat of 20 turns: MODEL="a.gguf ..." BENCH="-z vocabulary.gguf"
	@$(PYTHON) tests/sessions_bench.py $(BENCH) $(MODEL)

demo: run ## a story from the model in this repository
	./run model.bin -i "Once upon a time" -t 0.8 --echo

# The interface is section 1 of run.c, cut out by its own guard. DESTDIR is where a package is put together, PREFIX where it will live.
PREFIX ?= /usr/local
INSTALL ?= install
VERSION := $(shell sed -n 's/^.define GLA_VERSION "\(.*\)"/\1/p' run.c)

build/gla.h: run.c
	@mkdir -p build
	awk '/^#ifndef GLA_H$$/ { inside = 1 } inside; /^#endif \/\* GLA_H \*\/$$/ { exit }' $< > $@

# One object for both libraries: where addresses are not fixed it is as fast, as nearly everything in it is static.
SONAME = libgla.so.0
build/gla.o: run.c
	@mkdir -p build
	$(CC) $(STD) $(CFLAGS) $(WARN) $(OPENMP) -fPIC -DRUN_NO_MAIN -c -o $@ $<

build/libgla.a: build/gla.o
	$(AR) rcs $@ $<

build/libgla.so: build/gla.o
	$(CC) $(OPENMP) -shared -Wl,$(if $(filter Darwin,$(shell uname)),-install_name,-soname),$(SONAME) -o $@ $< $(LDLIBS)

build/gla.pc: run.c Makefile
	@mkdir -p build
	printf 'prefix=%s\nName: gla\nDescription: gated linear attention language models\nVersion: %s\nCflags: -I$${prefix}/include\nLibs: -L$${prefix}/lib -lgla %s %s\n' '$(PREFIX)' '$(VERSION)' '$(LDLIBS)' '$(OPENMP)' > $@

install: run build/gla.h build/libgla.a build/libgla.so ## gla, its man page, gla.h, libgla.a, libgla.so, gla.pc, completions; PREFIX (/usr/local), DESTDIR
	@rm -f build/gla.pc && $(MAKE) -s build/gla.pc
	$(INSTALL) -d $(addprefix $(DESTDIR)$(PREFIX)/,bin include lib/pkgconfig share/man/man1 share/bash-completion/completions share/zsh/site-functions)
	$(INSTALL) -m 755 run $(DESTDIR)$(PREFIX)/bin/gla
	$(INSTALL) -m 644 build/gla.h $(DESTDIR)$(PREFIX)/include/gla.h
	$(INSTALL) -m 644 build/libgla.a $(DESTDIR)$(PREFIX)/lib/libgla.a
	$(INSTALL) -m 755 build/libgla.so $(DESTDIR)$(PREFIX)/lib/libgla.so.$(VERSION)
	ln -sf libgla.so.$(VERSION) $(DESTDIR)$(PREFIX)/lib/$(SONAME) && ln -sf $(SONAME) $(DESTDIR)$(PREFIX)/lib/libgla.so
	$(INSTALL) -m 644 build/gla.pc $(DESTDIR)$(PREFIX)/lib/pkgconfig/gla.pc
	$(INSTALL) -m 644 doc/gla.1 $(DESTDIR)$(PREFIX)/share/man/man1/gla.1
	$(INSTALL) -m 644 doc/completion.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/gla
	$(INSTALL) -m 644 doc/completion.zsh $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_gla
	@[ -n "$(DESTDIR)" ] || ldconfig 2>/dev/null || true # so that programs find libgla.so

pages: run ## doc/completion.* and the lists of doc/gla.1, from the options and commands that the program has
	@mkdir -p build
	./run --completion bash > doc/completion.bash
	./run --completion zsh > doc/completion.zsh
	./run --man > build/lists.1 && awk '/^.SH CHAT COMMANDS/ { while (getline line < "build/lists.1") print line; skip = 1 } \
		/^.SH EXIT STATUS/ { skip = 0 } !skip' doc/gla.1 > build/gla.1 && mv build/gla.1 doc/gla.1

clean: ## what make and the tests have built; .venv stays
	rm -rf run train_tiny build

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: all pages install test debug fuzz parity parity-real parity-llamacpp bench bench-sessions mqar bench-train demo clean help
