/* fuzz.c - any bytes as a model and as a vocabulary.
 *   clang -g -O1 -fsanitize=fuzzer,address,undefined -DLIBFUZZER -o fuzz tests/fuzz.c -lm && ./fuzz SEED_FOLDER
 *   cc -g -O1 -fsanitize=address,undefined -o fuzz tests/fuzz.c -lm && ./fuzz [-t SECONDS] [-s SEED] FILE ...
 * The second form changes the files by itself. On a crash the bytes are in crash.bin, for `./fuzz -1 crash.bin`. */
#define _DEFAULT_SOURCE
#include <stdint.h>
#include <stdlib.h>
static size_t taken; /* bytes asked for while one input is read */
static void *counted(size_t n) { taken += n; return calloc(1, n); }
#define GLA_CALLOC(n) counted(n)
#define GLA_FREE(p) free(p)
#define RUN_NO_MAIN
#include "../run.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
const char *__asan_default_options(void), *__ubsan_default_options(void); /* the sanitizers report, then abort */
const char *__asan_default_options(void) { return "allocator_may_return_null=1:allow_user_segv_handler=0:abort_on_error=1"; }
const char *__ubsan_default_options(void) { return "abort_on_error=1:print_stacktrace=1"; }

static void insist(int ok, const char *what, const char *err) {
    if (ok) return;
    fprintf(stderr, "%s: %s\n", what, err);
    abort();
}

/* Every token has a piece, and any text has ids. */
static void use_vocabulary(const Tokenizer *t) {
    static const char text[] = "Once upon \xE2\x82\xAC a<|im_end|><s>e\xCC\x81 12345\r\n  \xFF\xED\xA0\x80";
    char piece[16], err[GLA_ERR];
    int32_t ids[8];
    for (int32_t id = -1; id <= t->n && id < 500; id++) tokenizer_piece(t, id, id & 7, piece, sizeof piece), tokenizer_is_end(t, id);
    if (t->n) for (int flags = 0; flags < 4; flags++) tokenizer_encode(t, text, sizeof text - 1, flags, ids, 8, err);
}

static void use_model(GlaModel *m) {
    char err[GLA_ERR];
    GlaState *s, *copy;
    GlaSampler p;
    GlaInfo info;
    int32_t ids[5];
    gla_info(m, &info);
    if (info.state_bytes > 1 << 24 || info.token_weights > 1 << 22) return; /* honest, but slow */
    gla_sampler_init(&p, m, 1);
    if (gla_state_new(&s, m, &(GlaSettings){.ctx = 8, .batch = 3, .threads = 1}, err)) return;
    for (int i = 0; i < 5; i++) ids[i] = (int32_t)(next_random(&p.rng) % (uint64_t)info.vocab_size);
    insist(gla_eval(s, ids, 5, NULL, 0, err) == GLA_OK, "eval", err);
    if (!gla_state_clone(&copy, s, err)) {
        gla_generate(copy, &p, ids, 1, &(GlaGenerate){.steps = 3, .stops = (const char *const[]){"a"}, .n_stops = 1}, NULL, err);
        gla_state_free(copy);
    }
    int32_t id = gla_sample(&p, s);
    insist(id >= 0 && id < info.vocab_size, "sample", "an id outside the vocabulary");
    gla_state_free(s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    char err[GLA_ERR] = "";
    GlaModel *m;
    taken = 0;
    int code = gla_open_memory(&m, data, n, err);
    insist(taken < 400 * n + (1 << 20), "memory beyond what the file justifies", err);
    if (!code) use_vocabulary(m->vocab), use_model(m), gla_close(m);
    else insist(code < 0 && *err && !strchr(err, '\n'), "no sentence", err);
    Gguf g = {.map = {data, n, 0}};
    Tokenizer *t;
    taken = 0;
    code = gguf_read(&g, err);
    if (!code) code = tokenizer_new(&t, &g, err);
    insist(taken < 400 * n + (1 << 20), "memory beyond what the file justifies", err);
    if (!code) use_vocabulary(t), tokenizer_free(t);
    gguf_close(&g);
    return 0;
}

#ifndef LIBFUZZER
static uint64_t rng = 1;
static size_t below(size_t n) { return n ? (size_t)(next_random(&rng) % n) : 0; }

typedef struct { uint8_t *p; size_t n; } Sample;
static Sample slurp(const char *path) {
    Sample in = {NULL, 0};
    FILE *f = fopen(path, "rb");
    if (!f || fseek(f, 0, SEEK_END)) { fprintf(stderr, "%s: cannot read\n", path); exit(2); }
    in.n = (size_t)ftell(f), in.p = malloc(in.n + 1);
    rewind(f);
    if (!in.p || fread(in.p, 1, in.n, f) != in.n) { fprintf(stderr, "%s: cannot read\n", path); exit(2); }
    fclose(f);
    return in;
}

/* A few edits where they hurt most: numbers of the header set to extremes, bytes changed, stretches moved, the end cut off. */
static size_t change(uint8_t *p, size_t n, size_t header) {
    static const uint64_t extremes[] = {0, 1, 2, 3, 4, 7, 8, 31, 32, 63, 64, 127, 128, 255, 256, 65535, 65536, 0x7fffffff, 0x80000000, 0xffffffff,
                                        (uint64_t)1 << 32, ((uint64_t)1 << 61) + 1, ((uint64_t)1 << 62) - 1, INT64_MAX, (uint64_t)1 << 63, UINT64_MAX - 31, UINT64_MAX};
    for (size_t k = 1 + below(4); k && n; k--) {
        size_t at = below(below(8) ? (header < n ? header : n) : n), from, len;
        uint64_t v = extremes[below(sizeof extremes / sizeof *extremes)];
        switch (below(8)) {
        case 0: case 1: p[at] ^= (uint8_t)(1 << below(8)); break;
        case 2: p[at] = (uint8_t)next_random(&rng); break;
        case 3: if (n - at >= 4) memcpy(p + at, &v, 4); break;
        case 4: if (n - at >= 8) memcpy(p + at, &v, 8); break;
        case 5: p[at] = (uint8_t)(p[at] + (below(2) ? 1 : -1)); break;
        case 6: from = below(n), len = below(24); if (from + len < n && at + len < n) memmove(p + at, p + from, len); break;
        case 7: if (!below(20)) n = at; break;
        }
    }
    return n;
}

static uint8_t *current;
static size_t current_n;
static void save_input(int sig) { /* not strictly allowed in a handler, but the program is at its end anyway */
    FILE *f = fopen("crash.bin", "wb");
    if (f) fwrite(current, 1, current_n, f), fclose(f);
    signal(sig, SIG_DFL), raise(sig);
}

int main(int argc, char **argv) {
    enum { MAX = 64 };
    Sample seeds[MAX];
    int n = 0, once = 0;
    double seconds = 10, slowest = 0;
    long rounds = 0, opened = 0;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "-t") && i + 1 < argc) seconds = atof(argv[++i]);
        else if (!strcmp(argv[i], "-s") && i + 1 < argc) rng = strtoull(argv[++i], NULL, 10);
        else if (!strcmp(argv[i], "-1")) once = 1;
        else if (n < MAX) seeds[n++] = slurp(argv[i]);
    }
    if (!n) { fprintf(stderr, "usage: fuzz [-t SECONDS] [-s SEED] [-1] FILE ...\n"); return 2; }
    signal(SIGABRT, save_input), signal(SIGSEGV, save_input), signal(SIGALRM, save_input);
    for (double end = now_s() + seconds; now_s() < end && rounds < (once ? n : LONG_MAX); rounds++) {
        const Sample *seed = &seeds[once ? (size_t)rounds : below((size_t)n)];
        uint8_t *p = malloc(seed->n), *exact;
        memcpy(p, seed->p, seed->n);
        size_t len = once ? seed->n : change(p, seed->n, 12000);
        exact = malloc(len ? len : 1); /* its own block, so that one byte too far is seen */
        memcpy(exact, p, len);
        current = exact, current_n = len;
#ifdef HAVE_POSIX
        alarm(20); /* a hang is a crash */
#endif
        double start = now_s();
        LLVMFuzzerTestOneInput(exact, len);
        if (now_s() - start > slowest) slowest = now_s() - start;
        GlaModel *m;
        if (rounds % 16 == 0 && !gla_open_memory(&m, exact, len, NULL)) opened++, gla_close(m);
        free(p), free(exact);
    }
    printf("fuzz: %ld inputs, of every sixteenth %ld opened, the slowest took %.3f s\n", rounds, opened, slowest);
    for (int i = 0; i < n; i++) free(seeds[i].p);
    return 0;
}
#endif
