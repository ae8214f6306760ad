/* test.c - everything about run.c that needs no terminal.
 *   make test                              builds and runs it, with tests/cli.py behind
 *   build/test [-v] [-k SECTION] [FOLDER]  FOLDER: tests/fixtures; -v: margins and times; -k: the sections whose name holds this
 *
 *   1 checking   2 formats   3 kernels   4 layers    5 sampler        6 writing GGUF
 *   7 generate   8 tokenizer 9 models   10 sessions 11 chat           12 hostile files
 *  13 the list of sections */
#define _DEFAULT_SOURCE
#include <stddef.h>
static void *counted_calloc(size_t n);
static void counted_free(void *p);
#define GLA_CALLOC(n) counted_calloc(n)
#define GLA_FREE(p) counted_free(p)
#define RUN_NO_MAIN
#include "../run.c"
#ifdef HAVE_POSIX
#include <pthread.h>
#endif

/* Under the address sanitizer, memory that cannot be had is NULL here too. */
const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "allocator_may_return_null=1"; }

/* ---- 1. checking ------------------------------------------------------------------------------------ */

static int passed, failed, verbose;
static const char *section = "", *fixtures = "tests/fixtures";

static void check(int ok, const char *fmt, ...) PRINTF_LIKE(2, 3);
static void check(int ok, const char *fmt, ...) {
    va_list ap;
    if (ok) { passed++; return; }
    failed++;
    printf("FAIL %s: ", section);
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    printf("\n");
}

/* error must stay below bound. NaN fails. */
static void within(double error, double bound, const char *fmt, ...) PRINTF_LIKE(3, 4);
static void within(double error, double bound, const char *fmt, ...) {
    char what[160];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    check(error < bound, "%s: error %.3g, bound %.3g", what, error, bound);
    if (verbose) printf("     %s: %s: error %.2g, bound %.2g\n", section, what, error, bound);
}

/* Memory: every call counted; the n-th can be made to fail. */
static struct { long calls, live, fail_at; size_t bytes; } heap;
static void *counted_calloc(size_t n) {
    heap.calls++, heap.bytes += n;
    if (heap.fail_at && heap.calls == heap.fail_at) return NULL;
    void *p = calloc(1, n);
    heap.live += p != NULL;
    return p;
}
static void counted_free(void *p) { heap.live -= p != NULL; free(p); }

static void *must(void *p) { /* for the test's own memory */
    if (!p) { printf("no memory for the tests\n"); exit(1); }
    return p;
}
static void *block(size_t n) { return must(calloc(1, n ? n : 1)); } /* exactly n bytes, so that a sanitizer sees one more */

static uint64_t rng = 1;
static uint32_t rnd(void) { return (uint32_t)(next_random(&rng) >> 32); }
static double uniform(void) { return (double)rnd() * 0x1p-32; }
static float noise(void) { return (float)(uniform() + uniform() + uniform() + uniform() - 2) * 1.7f; } /* about normal, std 1 */
static float *noises(size_t n, float size) {
    float *x = block(n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = size * noise();
    return x;
}
static int same(const float *a, const float *b, size_t n) { return !memcmp(a, b, n * sizeof *a); }
static double largest(const float *a, const float *b, size_t n) { /* max |a - b| */
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - b[i]);
        if (!(d <= worst)) worst = d;
    }
    return worst;
}

static char *path_of(char out[512], const char *name) { snprintf(out, 512, "%s/%s", fixtures, name); return out; }
static uint8_t *slurp(const char *path, size_t *n) { /* NULL if it cannot be read */
    FILE *f = fopen(path, "rb");
    if (!f) return NULL;
    fseek(f, 0, SEEK_END);
    *n = (size_t)ftell(f);
    rewind(f);
    uint8_t *p = block(*n);
    if (fread(p, 1, *n, f) != *n) { free(p); p = NULL; }
    fclose(f);
    return p;
}
static uint8_t *fixture(const char *name, size_t *n) {
    char path[512];
    uint8_t *p = slurp(path_of(path, name), n);
    if (!p) { printf("cannot read %s; run this from the top of the repository\n", path); exit(1); }
    return p;
}
static void spill(const char *path, const void *p, size_t n) {
    FILE *f = fopen(path, "wb");
    check(f && fwrite(p, 1, n, f) == n, "%s: cannot write", path);
    if (f) fclose(f);
}
static const char *scratch(void) { /* a file name of this process */
    static char name[512];
    const char *folder = getenv("TMPDIR");
#ifdef HAVE_POSIX
    snprintf(name, sizeof name, "%s/gla_test_%ld", folder ? folder : "/tmp", (long)getpid());
#else
    snprintf(name, sizeof name, "%s/gla_test", folder ? folder : ".");
#endif
    return name;
}

/* One sentence: something printable (no bytes of a file that a terminal would obey), on one line, not cut off. */
static int is_sentence(const char *err) {
    size_t n = strlen(err);
    for (size_t i = 0; i < n; i++) if ((unsigned char)err[i] < 32 || (unsigned char)err[i] == 127) return 0;
    return n > 5 && n < GLA_ERR - 1;
}

/* ---- 2. formats ------------------------------------------------------------------------------------------- */

/* A block of bytes 37 i + 11, then the scale d = 0.25 and, where there is one, the minimum 0.125 as ggml-quants.c of llama.cpp unpacks it.
 * All values are exact in float. */
static const struct { int type, d, m; float first, second, before_mid, mid, last; double sum; } vectors[] = {
    {Q4_0, 0, -1, -0.75f, 0.5f, -2, -0.75f, 0, -5.25},           {Q4_1, 0, 2, 3.875f, 1.125f, 2.625f, 2.375f, 3.125f, 65.25},
    {Q5_0, 0, -1, 2.25f, -0.5f, -3, 3.5f, 0.25f, 3.75},          {Q5_1, 0, 2, 4.875f, 6.125f, 7.625f, 4.875f, 1.375f, 130.25},
    {Q8_0, 0, -1, 21.25f, 30.5f, -32, -22.75f, -12, -44},        {Q2_K, 80, 82, 8.25f, 0, 10.5f, 1.875f, 1.125f, 514.75},
    {Q3_K, 108, -1, 20.25f, -27, 18, 0.5f, 10.5f, 239.5},        {Q4_K, 0, 2, 78.875f, -6.375f, 20.25f, 105.75f, 12.125f, 13610},
    {Q5_K, 0, 2, 202.875f, -6.375f, -0.75f, 261.75f, 27.125f, 29054}, {Q6_K, 208, -1, -357.75f, 424, 375, -87.75f, -15, 1153},
    {IQ4_NL, 0, -1, -8.75f, 6.25f, -31.75f, -8.75f, 0.25f, -64.25}, {IQ4_XS, 0, -1, 16.25f, -0.25f, 49, -146.25f, -4, -2751.25},
    {MXFP4, -1, -1, 0, 3, -1.5f, 1.5f, 3, 12.5},
};
enum { N_VECTORS = sizeof vectors / sizeof *vectors };

static void set_scales(uint8_t *b, int v, uint16_t d, uint16_t m) { /* v: row of the table; MXFP4 has an exponent instead */
    if (vectors[v].d >= 0) memcpy(b + vectors[v].d, &d, 2);
    if (vectors[v].m >= 0) memcpy(b + vectors[v].m, &m, 2);
}

static double slow_f16(uint16_t h) {
    int e = h >> 10 & 31, f = h & 1023;
    double v = e == 31 ? (f ? NAN : INFINITY) : e ? ldexp(1024 + f, e - 25) : ldexp(f, -24);
    return h >> 15 ? -v : v;
}

static void test_formats(void) {
    for (int v = 0; v < N_VECTORS; v++) {
        int type = vectors[v].type, n = types[type].elems, bytes = types[type].bytes;
        uint8_t *b = block(2 * (size_t)bytes);
        float y[512];
        double sum = 0;
        for (int i = 0; i < bytes; i++) b[i] = (uint8_t)(37 * i + 11);
        set_scales(b, v, 0x3400, 0x3000);
        if (type == MXFP4) b[0] = 127;
        memcpy(b + bytes, b, (size_t)bytes);
        row_to_float(y, b, type, 2 * (size_t)n);
        for (int i = 0; i < n; i++) sum += y[i];
        check(y[0] == vectors[v].first && y[1] == vectors[v].second && y[n / 2 - 1] == vectors[v].before_mid && y[n / 2] == vectors[v].mid &&
              y[n - 1] == vectors[v].last && sum == vectors[v].sum,
              "%s: %g %g .. %g %g .. %g, sum %.10g", types[type].name, y[0], y[1], y[n / 2 - 1], y[n / 2], y[n - 1], sum);
        check(same(y, y + n, (size_t)n), "%s: the second block differs from the first", types[type].name);
        free(b);
    }
    int runs = 0;
    for (int t = 0; t < N_TYPES; t++) runs += types[t].group > 0;
    check(runs == N_VECTORS + 3, "%d types run, %d have a test vector (and F32, F16, BF16)", runs, N_VECTORS);
    for (int e = 0; e < 256; e++) { /* the scale of MXFP4 is 2^(e - 127); 0.5 is its smallest value */
        uint8_t b[32 * sizeof(float)] = {(uint8_t)e, 1}; /* 17 bytes would do, but gcc warns of what other types would read */
        float y[32];
        row_to_float(y, b, MXFP4, 32);
        check((double)y[0] == ldexp(0.5, e - 127) || e == 255, "MXFP4: exponent %d gives %g", e, y[0]);
    }
    for (int h = 0; h < 65536; h++) {
        float f = from_f16((uint16_t)h), g = from_bf16((uint16_t)h);
        double want = slow_f16((uint16_t)h);
        check(want != want ? f != f : (double)f == want && !signbit(f) == !(h >> 15), "f16 %04x is %g, expected %g", (unsigned)h, f, want);
        check(as_bits(g) == (uint32_t)h << 16, "bf16 %04x", (unsigned)h);
    }
    for (uint32_t h = 0; h < 0x7bff; h++) { /* to float16: itself, and what lies between goes to the nearer one, ties to even */
        float a = from_f16((uint16_t)h), b = from_f16((uint16_t)(h + 1)), middle = (a + b) / 2;
        check(to_f16(a) == h && to_f16(-a) == (h | 0x8000) && to_f16(middle) == h + (h & 1) && to_f16(nextafterf(middle, a)) == h && to_f16(nextafterf(middle, b)) == h + 1, "to_f16 near %g", a);
    }
    check(to_f16(65504) == 0x7bff && to_f16(1e30f) == 0x7bff && to_f16(-INFINITY) == 0xfbff && (to_f16(NAN) & 0x7fff) > 0x7c00, "to_f16 of what does not fit");
}

/* ---- 3. kernels ----------------------------------------------------------------------------------------------- */

/* widest: of the inputs; tokens: the longest run; buf_floats: scratch per thread beyond what a matmul needs. */
static Team team_of(const Kernels *k, int n_threads, size_t widest, size_t tokens, size_t buf_floats) {
    size_t floats = matmul_buf(widest, tokens) > buf_floats ? matmul_buf(widest, tokens) : buf_floats;
    Team team = {.kernels = k, .n_threads = n_threads, .buf_floats = round_up(floats, LANES)};
    size_t n_bytes = (size_t)n_threads * team.buf_floats * sizeof(float), input = round_up(input_bytes(tokens, widest) + tokens * widest * sizeof(uint16_t), ALIGN);
    team.buf = memset(aligned_alloc(ALIGN, n_bytes), 0, n_bytes); /* the arena aligns them so */
    team.input = memset(aligned_alloc(ALIGN, input), 0, input);
    return team;
}
static void free_team(Team team) { free(team.buf), free(team.input); }
static void product(const Team *team, float *out, const Tensor *w, const float *x, int T) {
    Input in = input_rows(x, T, w->n_in);
    matmul(team, &(Product){out, w}, 1, &in);
}

static uint16_t f16_power(int e) { return (uint16_t)(e >= -14 ? (e + 15) << 10 : 1 << (e + 24)); } /* 2^e, -24 <= e <= 15 */

/* A random matrix of any type, with weights of about 1/sqrt(n_in). Every bit of a block but the scales is random. */
/* n bytes that end where memory ends: what reads on is stopped. */
static uint8_t *at_the_edge(size_t n) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), whole = round_up(n, page);
    uint8_t *p = mmap(NULL, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED || mprotect(p + whole, page, PROT_NONE)) abort();
    return p + whole - n;
}
static void free_matrix(Tensor w) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), n = row_bytes(&w) * (size_t)w.n_out;
    munmap((void *)((uintptr_t)w.data & ~(uintptr_t)(page - 1)), round_up(n, page) + page);
}
static Tensor random_matrix(int type, int n_in, int n_out) {
    Tensor w = {NULL, type, n_in, n_out};
    size_t elems = (size_t)types[type].elems, bytes = (size_t)types[type].bytes, n = (size_t)n_in * (size_t)n_out / elems;
    uint8_t *p = at_the_edge(n * bytes);
    double size = 1 / sqrt(n_in);
    int v = 0, e = 0;
    while (v < N_VECTORS && vectors[v].type != type) v++;
    for (size_t i = 0; i < n; i++) {
        uint8_t *b = p + i * bytes;
        if (v == N_VECTORS) {
            float f = (float)size * noise();
            uint32_t u = as_bits(f);
            if (type == F32) memcpy(b, &f, 4);
            else if (type == BF16) b[0] = (uint8_t)(u >> 16), b[1] = (uint8_t)(u >> 24);
            else { uint16_t h = (uint16_t)((rnd() & 1) << 15 | (rnd() & 0x3ff)) | f16_power((int)floor(log2(size)) - (int)(rnd() % 3)); memcpy(b, &h, 2); }
            continue;
        }
        for (size_t j = 0; j < bytes; j++) b[j] = (uint8_t)rnd();
        if (i == 0) { /* how large are the integers of this type? */
            float y[256];
            double sum = 0;
            set_scales(b, v, 0x3c00, 0x3c00);
            if (type == MXFP4) b[0] = 127;
            row_to_float(y, b, type, elems);
            for (size_t j = 0; j < elems; j++) sum += (double)y[j] * y[j];
            e = (int)floor(log2(size / sqrt(sum / (double)elems) + 1e-9));
        }
        set_scales(b, v, f16_power(e - (int)(rnd() & 1)), f16_power(e));
        if (type == MXFP4) b[0] = (uint8_t)(127 + e - (int)(rnd() & 1));
    }
    w.data = p;
    return w;
}

static void test_fast_exp(void) {
    double worst = 0;
    for (float x = -87.0f; x <= 88.0f; x = nextafterf(x, INFINITY) + (float)uniform() * 4e-4f) {
        double want = exp((double)x), ulp = ldexp(1, (int)floor(log2(want)) - 23);
        double error = fabs((double)fast_exp(x) - want) / ulp;
        if (!(error <= worst)) worst = error;
    }
    within(worst, 2, "fast_exp, in units of the last place");
    float nan = fast_exp(NAN);
    check(nan != nan, "fast_exp(NaN) is %g", nan);
    check(fast_exp(0) == 1 && fast_exp(-INFINITY) >= 0 && fast_exp(-1e30f) < 1e-37f && fast_exp(1e30f) > 1e38f && fast_exp(1e30f) < INFINITY, "fast_exp at the ends");
    check(sigmoid(-200) >= 0 && sigmoid(-200) < 1e-37f && sigmoid(200) == 1 && fabsf(silu(-200)) < 1e-30f && silu(200) == 200, "sigmoid and silu far out");
    static const struct { const char *name; double got, want; } values[] = { /* computed in double */
        {"logsigmoid(2)", 0, -0.126928011}, {"logsigmoid(-1)", 0, -1.31326169}, {"softplus(-0.7)", 0, 0.403186049}, {"softplus(25)", 0, 25},
        {"silu(1)", 0, 0.731058579}, {"silu(-2)", 0, -0.238405844}, {"powlu(4)", 0, 3.92805516}, {"powlu(0.25)", 0, 0.0351360313}, {"powlu(-1)", 0, -0.268941421},
    };
    const double got[] = {logsigmoid(2), logsigmoid(-1), softplus(-0.7f), softplus(25), activate(ACT_SILU, 1), activate(ACT_SILU, -2),
                          activate(ACT_POWLU, 4), activate(ACT_POWLU, 0.25f), activate(ACT_POWLU, -1)};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) within(fabs(got[i] - values[i].want), 1e-6 * fmax(1, fabs(values[i].want)), "%s", values[i].name);
    for (float x = -120; x < 120; x += 0.37f) {
        check(fabs(logsigmoid(x) - (x < 0 ? x - log1p(exp(x)) : -log1p(exp(-(double)x)))) < 1e-6 * fmax(1, fabs(x)), "logsigmoid(%g)", x);
        check(fabs(softplus(x) - (x > 0 ? x + log1p(exp(-(double)x)) : log1p(exp(x)))) < 1e-6 * fmax(1, x), "softplus(%g)", x);
    }
}

/* One token times a block-quantised matrix, as the comment of Input has it: exact integers per group, then one order of floats. */
static void definition(float *out, const Tensor *w, const float *x, int fused, int fast) {
    int n = w->n_in, group = types[w->type].group;
    int *q = block((size_t)n * sizeof *q);
    float top = 0;
    for (int i = 0; i < n; i++) top = fmaxf(top, fabsf(x[i]));
    for (int i = 0; i < n; i++) { volatile float y = x[i] * (Q_TOP / top); q[i] = (int)rint((double)y); }
    for (int i = 0; i < n && fast; i += 32) { /* 7 bits and a sign for each 32: the nearest multiple of a power of two, a half upward */
        int most = 0, step = 1;
        for (int j = i; j < i + 32; j++) most = abs(q[j]) > most ? abs(q[j]) : most;
        while (most >= 128 * step) step *= 2;
        for (int j = i; j < i + 32 && step > 1; j++) q[j] = (int)fmax(-127, fmin(127, floor((double)q[j] / step + 0.5))) * step;
    }
    for (int r = 0; r < w->n_out; r++) {
        volatile float S = 0, product; /* volatile: nothing is fused but what says so */
        for (int at = 0; at < n; at += SEGMENT) {
            int8_t v[SEGMENT];
            float d[16], m[16];
            int len = n - at < SEGMENT ? n - at : SEGMENT;
            unpack(v, d, m, w->data + (size_t)r * row_bytes(w) + bytes_of(w->type, (size_t)at), w->type, len);
            for (int g = 0; g < len / group; g++) {
                int isum = 0, fsum = 0;
                for (int i = g * group; i < (g + 1) * group; i++) isum += v[i] * q[at + i], fsum += q[at + i];
                if (fused) S = fmaf((float)isum, d[g], S);
                else product = (float)isum * d[g], S = S + product;
                if (!types[w->type].min) continue;
                if (fused) S = fmaf(-m[g], (float)fsum, S);
                else product = m[g] * (float)fsum, S = S - product;
            }
        }
        out[r] = S * (top / Q_TOP);
    }
    free(q);
}

/* Every kernel and type against sums in double and, block-quantised ones, against the bits of the definition; T tokens at once against one by one. */
static void test_matmul(void) {
    enum { T_max = 40 };
    static const int lengths[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 13, T_max}, outs[] = {1, 3, 16, 37}, widths[] = {1, 7, 16, 40, 100}, blocks[] = {1, 3, 21};
    for (int type = 0; type < N_TYPES; type++)
        for (int fast = 0; fast < (types[type].group > 1 ? 2 : types[type].group); fast++) {
        int elems = types[type].elems, n_widths = elems == 1 ? 5 : elems == 32 ? 3 : 2;
        for (int i = 0; i < n_widths * 4; i++) {
            int n = elems == 1 ? widths[i / 4] : elems * blocks[i / 4], n_out = outs[i % 4];
            size_t padded = round_up((size_t)n, LANES);
            Tensor w = random_matrix(type, n, n_out);
            float *x = noises((size_t)(T_max * n), 1), *row = block((size_t)n * sizeof *row);
            float *one = block((size_t)(T_max * n_out) * sizeof *one), *y = block((size_t)(T_max * n_out) * sizeof *y);
            double *want = block((size_t)(T_max * n_out) * sizeof *want), *size = block((size_t)(T_max * n_out) * sizeof *size), *rounding = block((size_t)(T_max * n_out) * sizeof *rounding);
            for (int r = 0; r < n_out; r++) {
                row_to_float(row, w.data + (size_t)r * row_bytes(&w), type, (size_t)n);
                for (int t = 0; t < T_max; t++) {
                    double top = 0, near = 0; /* largest of the token; of these 32 */
                    for (int j = 0; j < n; j++) top = fmax(top, fabs(x[t * n + j]));
                    for (int j = 0; j < n; j++) {
                        double p = (double)row[j] * x[t * n + j];
                        if (fast && j % 32 == 0) { near = 0; for (int l = j; l < j + 32; l++) near = fmax(near, fabs(x[t * n + l])); }
                        want[t * n_out + r] += p, size[t * n_out + r] += fabs(p), rounding[t * n_out + r] += fabs(row[j]) * (top / Q_TOP * 0.501 + near / 64);
                    }
                }
            }
            float *defined[2] = {block((size_t)(T_max * n_out) * sizeof *one), block((size_t)(T_max * n_out) * sizeof *one)}; /* not fused, fused */
            for (int t = 0; t < T_max && types[type].group > 1; t++)
                for (int fused = 0; fused < 2; fused++) definition(defined[fused] + t * n_out, &w, x + t * n, fused, fast);
            for (int k = 0; k < N_KERNELS; k++) {
                if (!kernel_runs(&kernels[k])) continue;
                Team team = team_of(&kernels[k], 1, (size_t)n, T_max, 0);
                team.fast = fast;
                double worst = 0; /* 16 partial sums of n / 16 terms, folded in 4 steps; each addition may be off by half a unit */
                /* block-quantised weights meet x rounded to 16 bits: half of 1/Q_TOP of the token's largest, times the sum of |w|; fast ones to 8: a step of 1/64 of the 32's largest */
                for (int t = 0; t < T_max; t++) product(&team, one + t * n_out, &w, x + t * n, 1);
                for (int j = 0; j < T_max * n_out; j++) {
                    double bound = ((double)padded / 16 + 6) * 0x1p-24 * size[j] + 1e-37 + (types[type].group > 1 ? rounding[j] : 0), off = fabs(one[j] - want[j]) / bound;
                    if (!(off <= worst)) worst = off;
                }
                check(worst < 1, "matmul %s %s %d x %d: %.2f of the bound", kernels[k].name, types[type].name, n, n_out, worst);
                if (types[type].group > 1) { /* only these may be compiled for processors that do not fuse */
                    int either = !strcmp(kernels[k].name, "scalar") || !strcmp(kernels[k].name, "sse2") || !strcmp(kernels[k].name, "vector");
                    check(same(one, defined[1], (size_t)(T_max * n_out)) || (either && same(one, defined[0], (size_t)(T_max * n_out))), "matmul %s %s %d x %d: not the bits of the definition", kernels[k].name, types[type].name, n, n_out);
                }
                for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++) {
                    for (int j = 0; j < T_max * n_out; j++) y[j] = -1;
                    product(&team, y, &w, x, lengths[l]);
                    check(same(y, one, (size_t)(lengths[l] * n_out)), "matmul %s %s %d x %d: %d tokens at once are not the bits of one by one", kernels[k].name, types[type].name, n, n_out, lengths[l]);
                }
                free_team(team);
            }
            free_matrix(w), free(x), free(row), free(one), free(y), free(want), free(size), free(rounding), free(defined[0]), free(defined[1]);
        }
    }
    /* large enough for the threads to share it */
    Tensor w = random_matrix(Q8_0, 256, 203);
    float *x = noises(33 * 256, 1), *one = block(33 * 203 * sizeof *one), *y = block(33 * 203 * sizeof *y);
    for (int k = 0; k < N_KERNELS; k++)
        for (int threads = 1; threads <= 5 && kernel_runs(&kernels[k]); threads++) {
            Team team = team_of(&kernels[k], threads, 256, 33, 0);
            product(&team, threads == 1 ? one : y, &w, x, 33);
            check(threads == 1 || same(one, y, 33 * 203), "matmul %s: %d threads give other bits than one", kernels[k].name, threads);
            free_team(team);
        }
    free_matrix(w), free(x), free(one), free(y);
}

/* GLA and Gated DeltaNet, computed in double: memory and output after each token. */
static void test_recurrence_tables(void) {
    static const struct { const char *name; int d_width; float d[3][2], rho[3], q[3][2], k[3][2], v[3][2]; double S[3][4], o[3][2]; } tables[] = {
        {"GLA", 2, {{0.992098383f, 0.921199314f}, {0.970804848f, 0.987490572f}, {0.940936323f, 0.957603281f}}, {0, 0, 0},
         {{0.707106781f, -0.35355339f}, {-0.35355339f, 0.707106781f}, {0.176776695f, -0.707106781f}}, {{0.5f, -1}, {1, 0.25f}, {-0.75f, 0.5f}}, {{1, 2}, {-1, 0.5f}, {0.5f, -1.5f}},
         {{0.5, 1, -1, -2}, {-0.514597576, 1.47080485, -1.23749057, -1.84998114}, {-0.859203551, 2.5089337, -0.935025031, -2.52154801}},
         {{0.707106781, 1.41421356}, {-0.693100257, -1.82814225}, {0.509275376, 2.22652471}}},
        {"gated delta", 1, {{0.446474899f}, {0.590630343f}, {0.505449195f}}, {0.5f, 0.731058579f, 0.268941421f},
         {{0.632455279f, -0.31622764f}, {-0.31622764f, 0.632455279f}, {0.171498504f, -0.685994018f}},
         {{0.447213417f, -0.894426833f}, {0.970142044f, 0.242535511f}, {-0.832049782f, 0.554699855f}}, {{0.5f, 1}, {-0.731058579f, 0.36552929f}, {0.13447071f, -0.403412131f}},
         {{0.223606708, 0.447213417, -0.447213417, -0.894426833}, {-0.622597059, 0.527882542, -0.452804305, -0.462339445}, {-0.396393976, 0.523790932, -0.174401042, -0.405004518}},
         {{0.282842486, 0.565684972}, {-0.0894960748, -0.459340073}, {0.0516570978, 0.367660038}}},
    };
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) {
        float S[4] = {0}, o[2];
        for (int t = 0; t < 3; t++) {
            double worst = 0;
            Step step = {.d = tables[i].d[t], .d_step = tables[i].d_width > 1, .rho = tables[i].rho[t], .q = tables[i].q[t], .k = tables[i].k[t], .v = tables[i].v[t], .e = tables[i].k[t]};
            recurrence_step(S, 2, 2, &step, 0, o);
            for (int j = 0; j < 4; j++) worst = fmax(worst, fabs(S[j] - tables[i].S[t][j]));
            for (int j = 0; j < 2; j++) worst = fmax(worst, fabs(o[j] - tables[i].o[t][j]));
            within(worst, 1e-6, "%s, token %d", tables[i].name, t);
        }
    }
}

static void exact_recurrence(const Recurrence *a, double *S, double *o, int T) { /* recurrence_step in double */
    for (int t = 0; t < T; t++)
        for (int h = 0; h < a->H; h++) {
            Step s = step_of(a, t, h);
            for (int j = 0; j < a->dv; j++) {
                double recall = 0, y = 0, bonus = 0, *column = S + (size_t)h * (size_t)a->dk * (size_t)a->dv + (size_t)j;
                for (int i = 0; i < a->dk; i++) {
                    double *m = column + (size_t)i * (size_t)a->dv, d = s.d[i * s.d_step];
                    if (s.u) y += s.q[i] * *m, bonus += (double)s.q[i] * s.u[i] * s.k[i];
                    recall += (a->undecayed ? 1 : d * (s.c ? s.c[j] : 1)) * s.e[i] * *m;
                    *m *= d * (s.c ? s.c[j] : 1);
                }
                if (s.r) recall = s.r[j];
                for (int i = 0; i < a->dk; i++) {
                    double *m = column + (size_t)i * (size_t)a->dv;
                    *m += s.w ? s.k[i] * (double)s.v[j] + s.w[i] * recall : s.k[i] * (s.v[j] - s.rho * recall);
                    if (!s.u) y += s.q[i] * *m;
                }
                o[((size_t)t * (size_t)a->H + (size_t)h) * (size_t)a->dv + (size_t)j] = y + bonus * s.v[j];
            }
        }
}

static void test_recurrence(void) {
    static const struct { int dk, dv; } sizes[] = {{24, 40}, {17, 17}, {40, 24}, {1, 1}, {16, 32}, {8, 33}, {64, 64}, {5, 100}};
    enum { T = 33, H = 4, HK = 2, NORMAL = -1, NO_DECAY = 0, ERASE_KEY, ERASE_KEY_UNDECAYED, WRITE_BACK, WRITE_BACK_UNDECAYED, SUPPLIED, VALUE_DECAY, VALUE_DECAY_ERASE, BONUS, N_FORMS };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int variant = 0; variant < 8 + N_FORMS; variant++) { /* scalar or vector decay, with or without erasing, grouped or tiled heads; then the forms */
            int dk = sizes[i].dk, dv = sizes[i].dv, form = variant < 8 ? NORMAL : variant - 8, per_channel = variant & 1, erase = variant >> 1 & 1, tiled = variant >> 2 & 1, width = per_channel ? dk : 1;
            size_t n_S = (size_t)(H * dk * dv), n_o = (size_t)(T * H * dv), buf = (size_t)(PANEL + 2) * (size_t)dk;
            float *d = noises((size_t)(T * HK * width), 1), *q = noises((size_t)(T * H * dk), 1 / sqrtf((float)dk)), *k = noises((size_t)(T * HK * dk), 1 / sqrtf((float)dk));
            float *v = noises((size_t)(T * H * dv), 1), *rho = noises(T * H, 1), *S0 = noises(n_S, 1);
            float *e = noises((size_t)(T * H * dk), 1 / sqrtf((float)dk)), *w = noises((size_t)(T * HK * dk), 1 / sqrtf((float)dk)), *c = noises((size_t)(T * HK * dv), 1), *r = noises((size_t)(T * H * dv), 1);
            for (int j = 0; j < T * HK * width; j++) d[j] = expf(-0.1f * fabsf(d[j]) - 1e-4f);
            for (int j = 0; j < T * HK * dv; j++) c[j] = expf(-0.1f * fabsf(c[j]));
            for (int j = 0; j < T * H; j++) rho[j] = sigmoid(rho[j]);
            Recurrence a = {.H = H, .dk = dk, .dv = dv, .tiled = tiled, .d_width = width, .d = {d, (size_t)(HK * width), HK}, .q = {q, (size_t)(H * dk), H},
                            .k = {k, (size_t)(HK * dk), HK}, .v = {v, (size_t)(H * dv), H}, .rho = {erase ? rho : NULL, H, H}};
            Rows keys = {e, (size_t)(H * dk), H}, back = {w, (size_t)(HK * dk), HK};
            switch (form) {
            case NO_DECAY: a.d.p = NULL; break;
            case ERASE_KEY: case ERASE_KEY_UNDECAYED: a.e = keys, a.rho = (Rows){rho, H, H}, a.undecayed = form == ERASE_KEY_UNDECAYED; break;
            case WRITE_BACK: case WRITE_BACK_UNDECAYED: a.e = keys, a.w = back, a.undecayed = form == WRITE_BACK_UNDECAYED; break;
            case SUPPLIED: a.w = back, a.r = (Rows){r, (size_t)(H * dv), H}; break;
            case VALUE_DECAY: a.c = (Rows){c, (size_t)(HK * dv), HK}; break;
            case VALUE_DECAY_ERASE: a.c = (Rows){c, (size_t)(HK * dv), HK}, a.rho = (Rows){rho, H, H}; break;
            case BONUS: a.u = (Rows){w, 0, HK}, a.rho.p = NULL; break;
            }
            double *exact_S = block(n_S * sizeof *exact_S), *exact_o = block(n_o * sizeof *exact_o);
            for (size_t j = 0; j < n_S; j++) exact_S[j] = S0[j];
            exact_recurrence(&a, exact_S, exact_o, T);
            float *S = block(n_S * sizeof *S), *o = block(n_o * sizeof *o), *S2 = block(n_S * sizeof *S), *o2 = block(n_o * sizeof *o);
            for (int n = 0; n < N_KERNELS; n++) {
                if (!kernel_runs(&kernels[n])) continue;
                char what[96];
                snprintf(what, sizeof what, "%s dk %d dv %d form %d%s%s%s", kernels[n].name, dk, dv, form, per_channel ? ", decay per channel" : "", erase ? ", erasing" : "", tiled ? ", tiled" : "");
                Team team = team_of(&kernels[n], 1, 16, 1, buf);
                memcpy(S, S0, n_S * sizeof *S);
                recurrence(&team, &a, S, o, T);
                double worst = 0, size = 0;
                for (size_t j = 0; j < n_o; j++) worst = fmax(worst, fabs(o[j] - exact_o[j])), size = fmax(size, fabs(exact_o[j]));
                for (size_t j = 0; j < n_S; j++) worst = fmax(worst, fabs(S[j] - exact_S[j])), size = fmax(size, fabs(exact_S[j]));
                check(worst < 4e-6 * size, "%s: error %.2g of values up to %.2g", what, worst, size);
                free_team(team);
                for (int step = 1; step < T; step += 6) { /* 1, 7, 13 ... tokens at a time; and some threads */
                    Team other = team_of(&kernels[n], 1 + step % 5, 16, 1, buf);
                    memcpy(S2, S0, n_S * sizeof *S);
                    for (int t = 0; t < T; t += step) {
                        Recurrence part = a;
                        Rows *rows[] = {&part.d, &part.q, &part.k, &part.v, &part.rho, &part.e, &part.w, &part.r, &part.c, &part.u};
                        for (size_t j = 0; j < sizeof rows / sizeof *rows; j++)
                            if (rows[j]->p) rows[j]->p += (size_t)t * rows[j]->stride;
                        recurrence(&other, &part, S2, o2 + (size_t)t * H * (size_t)dv, t + step < T ? step : T - t);
                    }
                    check(same(S, S2, n_S) && same(o, o2, n_o), "%s: %d tokens at a time give other bits than %d", what, step, T);
                    free_team(other);
                }
            }
            free(d), free(q), free(k), free(v), free(rho), free(e), free(w), free(c), free(r), free(S0), free(exact_S), free(exact_o), free(S), free(o), free(S2), free(o2);
        }
    /* a memory that only decays: flushed to zero in the end, and the mode of the thread is left as it was */
    float S[2] = {1, 1}, d = 0.5f, zero[2] = {0}, o[2], buf[PANEL + 2];
    volatile float tiny = 1e-40f;
    Recurrence a = {.H = 1, .dk = 1, .dv = 2, .d_width = 1, .d = {&d, 0, 1}, .q = {zero, 0, 1}, .k = {zero, 0, 1}, .v = {zero, 0, 1}};
    for (int n = 0; n < N_KERNELS; n++) {
        if (!kernel_runs(&kernels[n])) continue;
        Team team = {.kernels = &kernels[n], .n_threads = 1, .buf = buf, .buf_floats = PANEL + 2};
        S[0] = S[1] = 1;
        for (int t = 0; t < 300; t++) recurrence(&team, &a, S, o, 1);
        check(S[0] < 1e-37f && o[0] == 0, "%s: after 300 halvings the memory holds %g", kernels[n].name, S[0]);
        check(tiny * 0.5f > 0, "%s: denormal numbers stay flushed after a call", kernels[n].name);
    }
}

/* Softmax attention in double, over what the cache holds. */
static void exact_attention(const Attend *a, double *o) {
    const Cache *c = a->cache;
    size_t n = (size_t)(a->pos + a->T);
    float *k = block((size_t)c->dk * sizeof *k), *v = block((size_t)c->dv * sizeof *v);
    double *p = block(n * sizeof *p);
    memset(o, 0, (size_t)(a->T * a->H * c->dv) * sizeof *o);
    for (int t = 0; t < a->T; t++)
        for (int h = 0; h < a->H; h++, o += c->dv) {
            int64_t i = a->pos + t, from = a->window && i >= a->window ? i - a->window + 1 : 0;
            int g = h / (a->H / c->heads);
            double top = -INFINITY, sum = 0;
            for (int64_t j = from; j <= i; j++) {
                p[j] = c->sums ? cache_sums(c, i / KEYS)[h * KEYS + i % KEYS] - cache_sums(c, j / KEYS)[h * KEYS + j % KEYS] : 0;
                cache_row(c, j, g, 0, k, 0);
                for (int d = 0; d < c->dk; d++) p[j] += (double)a->scale * a->q[(size_t)t * a->q_stride + (size_t)h * a->q_step + (size_t)d] * k[d];
                top = fmax(top, p[j]);
            }
            for (int64_t j = from; j <= i; j++) sum += p[j] = exp(p[j] - top);
            for (int64_t j = from; j <= i; j++) {
                cache_row(c, j, g, 1, v, 0);
                for (int d = 0; d < c->dv; d++) o[d] += p[j] / sum * v[d];
            }
        }
    free(k), free(v), free(p);
}

static void test_attend(void) {
    static const struct { int dk, dv, heads, group, T, pos, window, sums; } cases[] = {
        {24, 40, 2, 1, 1, 0, 0, 0},      {17, 17, 1, 2, 64, 0, 0, 0},      {64, 64, 2, 4, 70, 0, 0, 0},     {256, 256, 1, 4, 5, 1100, 0, 0},  {64, 33, 1, 8, 13, 130, 50, 0},
        {1, 5, 1, 1, 70, 58, 0, 0},      {96, 64, 2, 2, 20, 600, 7, 0},    {32, 32, 2, 4, 1, 1535, 0, 0},   {40, 1, 3, 1, 66, 450, 0, 1},     {64, 96, 2, 2, 66, 1000, 700, 1},
        {80, 130, 1, 4, 9, 520, 0, 0},   {24, 24, 1, 8, 40, 1000, 513, 0}, {64, 64, 1, 1, 7, 64, 64, 0},    {16, 16, 1, 4, 3, 510, 1, 1},     {128, 128, 1, 3, 2, 2047, 0, 1},
    };
    static const int kinds[3] = {F32, F16, Q8_0};
    for (size_t i = 0; i < 3 * sizeof cases / sizeof *cases; i++) {
        int dk = cases[i / 3].dk, dv = cases[i / 3].dv, heads = cases[i / 3].heads, G = cases[i / 3].group, H = heads * G, T = cases[i / 3].T, pos = cases[i / 3].pos;
        Cache c = {NULL, kinds[i % 3], heads, dk, dv, cases[i / 3].sums ? H : 0};
        size_t blocks = (size_t)(pos + T) / KEYS + 1, n_mem = blocks * cache_block_bytes(&c), n_o = (size_t)(T * H * dv), q_step = (size_t)dk + 3;
        c.mem = memset(aligned_alloc(ALIGN, round_up(n_mem, ALIGN)), 0xff, n_mem);
        float *q = noises((size_t)(T * H) * q_step, 3), *row = block((size_t)(heads * (dk + dv)) * sizeof *row), *o = block(n_o * sizeof *o), *o2 = block(n_o * sizeof *o);
        double *exact = block(n_o * sizeof *exact), *sums = block((size_t)H * sizeof *sums);
        for (int j = 0; j < (int)blocks * KEYS; j++) { /* what lies behind the text must not matter */
            for (int d = 0; d < heads * (dk + dv); d++) row[d] = j < pos + T ? noise() : NAN;
            for (int h = 0; h < H; h++) sums[h] -= uniform() * 0.02 * h;
            cache_append(&c, j, row, row + heads * dk, c.sums ? sums : NULL);
        }
        Attend a = {&c, q, (size_t)H * q_step, q_step, H, T, cases[i / 3].window, pos, 0.7f / sqrtf((float)dk)};
        exact_attention(&a, exact);
        size_t parts = attend_parts(H, &c, pos + T, T);
        for (int n = 0; n < N_KERNELS; n++) {
            if (!kernel_runs(&kernels[n])) continue;
            char what[128];
            snprintf(what, sizeof what, "%s %s dk %d dv %d heads %d x %d, %d tokens at %d, window %d%s", kernels[n].name, types[c.type].name, dk, dv, heads, G, T, pos, a.window, c.sums ? ", with sums" : "");
            static const struct { int step, threads, parts; } ways[] = {{1000, 1, 0}, {1000, 2, 1}, {1, 1, 0}, {1, 3, 1}, {1, 5, 0}, {7, 2, 1}, {33, 3, 0}};
            for (size_t w = 0; w < sizeof ways / sizeof *ways; w++) { /* the whole run; then other splits, threads, and with or without room for parts */
                Team team = team_of(&kernels[n], ways[w].threads, 16, 1, attend_buf(H, &c, T));
                float *to = w ? o2 : o;
                if (ways[w].parts) team.parts = block(parts * sizeof *team.parts), team.parts_floats = parts;
                for (int t = 0; t < T; t += ways[w].step) {
                    Attend run = a;
                    run.q += (size_t)t * a.q_stride, run.pos += t, run.T = T - t < ways[w].step ? T - t : ways[w].step;
                    attention(&team, &run, to + t * H * dv);
                }
                if (w) check(same(o, o2, n_o), "%s: %d tokens at a time, %d threads%s give other bits", what, ways[w].step, ways[w].threads, ways[w].parts ? ", by chunks," : "");
                free(team.parts), free_team(team);
            }
            double worst = 0;
            for (size_t j = 0; j < n_o; j++) { double d = fabs(o[j] - exact[j]); if (!(d <= worst)) worst = d; }
            within(worst, 5e-6, "%s", what);
        }
        free(c.mem), free(q), free(row), free(o), free(o2), free(exact), free(sums);
    }

    /* what goes into the cache comes out again, rounded */
    for (int kind = 0; kind < 3; kind++) {
        Cache c = {NULL, kinds[kind], 2, 72, 40, 0};
        c.mem = block(2 * cache_block_bytes(&c));
        for (int64_t j = 0; j < 2 * KEYS; j++) {
            float x[72], y[72];
            int value = (int)(j % 2), head = (int)(j / 2 % 2), n = value ? c.dv : c.dk;
            for (int d = 0; d < n; d++) x[d] = j == 5 ? 0 : noise() * (float)(1 + d / 32);
            cache_row(&c, j, head, value, x, 1), cache_row(&c, j, head, value, y, 0);
            for (int g = 0; g < n; g += 32) {
                float top = 0;
                for (int d = g; d < n && d < g + 32; d++) top = fmaxf(top, fabsf(x[d]));
                for (int d = g; d < n && d < g + 32; d++) {
                    float bound = c.type == F32 ? 0 : c.type == F16 ? fabsf(x[d]) * 0x1p-11f + 0x1p-25f : top * (0.5f / 127 + 0x1p-11f);
                    check(fabsf(x[d] - y[d]) <= bound, "%s: %g came back as %g", types[c.type].name, x[d], y[d]);
                }
            }
        }
        free(c.mem);
    }
}

/* ---- 4. layers (values computed in double) -------------------------------------------------------------- */

static void near(const char *what, const float *got, const double *want, int n, double bound) {
    double worst = 0;
    for (int i = 0; i < n; i++) { double d = fabs(got[i] - want[i]); if (!(d <= worst)) worst = d; }
    within(worst, bound, "%s", what);
}

/* Arrays of a row of the table of mixers; rows of the token begin with a letter and a colon. */
static int arrays(const char *shapes, int of_token) {
    int n = 0;
    for (; *shapes; shapes += strcspn(shapes, " "), shapes += strspn(shapes, " "))
        n += (shapes[1] == ':') == of_token;
    return n;
}
static void test_mixers(void) {
    for (size_t i = 0; i < sizeof mixers / sizeof *mixers; i++) {
        const Mixer *m = &mixers[i];
        check(arrays(m->keeps, 0) <= MAX_KEPT && !arrays(m->keeps, 1), "%s keeps %s", m->name, m->keeps);
        check(arrays(m->makes, 0) <= MAX_OWN, "%s makes %s", m->name, m->makes);
        check(!arrays(m->in, 0) && m->mix && mixer_row(m->name) == m, "%s reads %s", m->name, m->in);
    }
}

static void test_layers(void) {
    Team team = team_of(&kernels[0], 1, 16, 1, 4096);
    float x[4] = {1, -2, 0.5f, 3}, y[4], z[4] = {0.5f, -1, 2, 0};
    rmsnorm(y, x, NULL, 4, 1e-6f);
    near("rmsnorm", y, (double[]){0.529812868, -1.05962574, 0.264906434, 1.58943861}, 4, 1e-6);
    rmsnorm(y, x, (float[]){2, 2, 2, 2}, 4, 1e-6f);
    near("rmsnorm with a weight", y, (double[]){2 * 0.529812868, 2 * -1.05962574, 2 * 0.264906434, 2 * 1.58943861}, 4, 1e-6);
    const Back silu_behind = {.norm_width = 4, .norm_shared = 1, .act = ACT_NONE, .eps = 1e-6f, .gate = ACT_SILU};
    Layer gated = {.n_heads = 1, .dv = 4, .back = silu_behind};
    Run run = {.team = &team, .T = 1};
    memcpy(y, x, sizeof y);
    gated_norm(&run, y, &gated, z);
    near("norm, then silu of the gate", y, (double[]){0.164893482, 0.284977252, 0.466657626, 0}, 4, 1e-6);
    gated.back.gate = ACT_SIGMOID;
    memcpy(y, x, sizeof y);
    gated_norm(&run, y, &gated, z);
    near("norm, then sigmoid of the gate", y, (double[]){0.329786964, -0.284977252, 0.233328813, 0.794719303}, 4, 1e-6);
    float l2[2] = {3, 4};
    l2norm(l2, 2, 1);
    near("l2norm", l2, (double[]){0.599999988, 0.799999984}, 2, 1e-7);

    float table[4], halves[4] = {1, 2, 3, 4}, pairs[4] = {1, 2, 3, 4};
    for (int i = 0; i < 2; i++) table[2 * i] = (float)cos(3 * pow(10000, -i / 2.0)), table[2 * i + 1] = (float)sin(3 * pow(10000, -i / 2.0));
    rope(halves, table, 4, 0), rope(pairs, table, 4, 1);
    near("rope, halves", halves, (double[]){-1.41335252, 1.87911807, -2.82885748, 4.05819114}, 4, 1e-6);
    near("rope, adjacent pairs", pairs, (double[]){-1.27223251, -1.83886499, 2.8786681, 4.08818664}, 4, 1e-6);

    float in[5] = {1, -1, 2, 0.5f, -0.5f}, taps[4] = {0.1f, -0.2f, 0.3f, 0.4f}, last[3] = {0};
    Run five = {.team = &team, .T = 5};
    Conv four = {.taps = 4, .w = {taps}};
    short_conv(&five, &four, 0, in, last, 1, ACT_SILU);
    near("short_conv", in, (double[]){0.239475064, -0.0475020813, 0.172332755, 0.825286116, -0.201225425}, 5, 1e-6);
    check(last[0] == 2 && last[1] == 0.5f && last[2] == -0.5f, "short_conv remembers %g %g %g", last[0], last[1], last[2]);
    enum { C = 70, T = 23 };
    float *w = noises(C * 8, 0.5f), *whole = noises(C * T, 1), *pieces = block(C * T * sizeof *pieces), *before = noises(C * 7, 1), keep[C * 7], mem[C * 7];
    float *input = block(C * T * sizeof *input);
    memcpy(input, whole, C * T * sizeof *input);
    for (int K = 1; K <= 8; K++) {
        memcpy(whole, input, C * T * sizeof *input), memcpy(keep, before, sizeof keep);
        const Conv conv = {.taps = K, .w = {w}};
        const Run all = {.team = &team, .T = T};
        short_conv(&all, &conv, 0, whole, keep, C, ACT_SILU);
        for (int step = 1; step < T; step++) {
            memcpy(pieces, input, C * T * sizeof *input), memcpy(mem, before, sizeof mem);
            for (int t = 0; t < T; t += step) {
                const Run some = {.team = &team, .T = t + step < T ? step : T - t};
                short_conv(&some, &conv, 0, pieces + t * C, mem, C, ACT_SILU);
            }
            check(same(whole, pieces, C * T) && same(keep, mem, (size_t)(C * (K - 1))), "short_conv with %d taps, %d tokens at a time", K, step);
        }
    }
    free(w), free(whole), free(pieces), free(before), free(input);

    float sources[4] = {1, 2, 0.5f, -1}, mix[2];
    const Sources two = {sources, 2, 2, 2};
    mix_sources(mix, &two, (float[]){0.3f, -0.4f}, (float[]){1, 1}, 1e-6f, 1);
    near("residual attention", mix, (double[]){0.633301331, -0.200192013}, 2, 1e-6);

    /* C12: gated softmax attention; the projection holds query and gate of a token side by side */
    static const float rows[3][4] = {{1, -0.5f, 0, 1}, {-0.5f, 1, -1, 0.5f}, {0.25f, -1, 2, -2}};
    static const double plain[6] = {1, 2, -0.339523099, 0.995357676, 0.397604106, 1.0464797}, with_gate[6] = {0.5, 1.46211716, -0.0913118247, 0.619569673, 0.350208535, 0.124743438};
    static const double windowed[2] = {-0.428793596, -0.261608539};
    for (int variant = 0; variant < 3; variant++) {
        int gate = variant == 1, step = gate ? 4 : 2;
        Layer s = {.mixer = mixer_row("softmax"), .n_heads = 1, .n_k_heads = 1, .dk = 2, .dv = 2, .scale = 0.707106781f, .eps = 1e-6f};
        s.own.softmax.gated = gate, s.own.softmax.window = variant == 2 ? 2 : 0;
        float q[12], k[6] = {0.5f, -1, 1, 0.25f, -0.75f, 0.5f}, v[6] = {1, 2, -1, 0.5f, 0.5f, -1.5f}, cache[4 * KEYS], o[6];
        for (int t = 0; t < 3; t++) memcpy(q + t * step, rows[t], (size_t)step * sizeof *q);
        Cache keep = cache_shape(&s, GLA_KV_F32);
        check(cache_block_bytes(&keep) == sizeof cache, "a block of %zu bytes", cache_block_bytes(&keep));
        keep.mem = (uint8_t *)cache;
        mix_softmax(&(Run){.team = &team, .T = 3, .cache = keep, .in = {q, k, v}, .o = o}, &s);
        if (variant < 2) near(gate ? "gated softmax attention" : "softmax attention", o, gate ? with_gate : plain, 6, 1e-6);
        else near("softmax attention with a window of two", o + 4, windowed, 2, 1e-6);
    }
    /* C11: the same, where every key is forgotten a little with each token */
    Cache fox = {NULL, F32, 1, 2, 2, 1};
    double sum = 0;
    float q[6], k[6] = {0.5f, -1, 1, 0.25f, -0.75f, 0.5f}, v[6] = {1, 2, -1, 0.5f, 0.5f, -1.5f}, o[6];
    fox.mem = block(cache_block_bytes(&fox));
    for (int t = 0; t < 3; t++) {
        sum += logsigmoid((float[]){2, 1, -1}[t]);
        memcpy(q + 2 * t, rows[t], 2 * sizeof *q);
        cache_append(&fox, t, k + 2 * t, v + 2 * t, &sum);
    }
    attention(&team, &(Attend){&fox, q, 2, 2, 1, 3, 0, 0, 0.707106781f}, o);
    near("forgetting attention", o, (double[]){1, 2, -0.470088733, 0.89743345, 0.359336249, 0.0630338137}, 6, 1e-6);
    free(fox.mem);
    free_team(team);
}

/* ---- 5. sampler -------------------------------------------------------------------------------------------------------- */

static GlaSampler plain_sampler(float temperature, float top_p, int top_k, float min_p, uint64_t seed) {
    return (GlaSampler){.temperature = temperature, .top_p = top_p, .top_k = top_k, .min_p = min_p, .repeat_penalty = 1, .rng = seed};
}

static const float *sort_by; /* for qsort */
static int by_logit(const void *a, const void *b) {
    int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;
    return sort_by[i] != sort_by[j] ? (sort_by[i] > sort_by[j] ? -1 : 1) : i - j;
}

/* How many of the likeliest tokens the settings leave, by a full sort. order: their ids; weight: their probabilities. */
static int slow_candidates(const GlaSampler *p, const float *logits, int n, int32_t *order, double *weight) {
    double total = 0, mass = 0;
    int kept = 0, k = p->top_k && p->top_k < n ? p->top_k : n;
    for (int i = 0; i < n; i++) order[i] = i;
    sort_by = logits;
    qsort(order, (size_t)n, sizeof *order, by_logit);
    for (int i = 0; i < k; i++) total += weight[i] = exp(((double)logits[order[i]] - logits[order[0]]) / p->temperature);
    for (; kept < k && (kept == 0 || (weight[kept] >= p->min_p && mass < p->top_p * total)); kept++) mass += weight[kept];
    for (int i = 0; i < kept; i++) weight[i] /= mass;
    return kept;
}

static void test_sampler(void) {
    enum { N = 40, DRAWS = 40000 };
    float logits[N];
    Scored c[N];
    int32_t order[N];
    double weight[N];
    for (int i = 0; i < N; i++) logits[i] = 2 * noise();
    static const struct { const char *name; float temperature, top_p; int top_k; float min_p; } settings[] = {
        {"everything", 1, 1, 0, 0}, {"hot", 2.5f, 1, 0, 0}, {"cold", 0.4f, 1, 0, 0}, {"top-k 5", 1, 1, 5, 0}, {"top-p 0.9", 1, 0.9f, 0, 0}, {"top-p 0", 1, 0, 0, 0},
        {"min-p 0.1", 1, 1, 0, 0.1f}, {"min-p 1", 1, 1, 0, 1}, {"top-k 10, top-p 0.8", 1.5f, 0.8f, 10, 0}, {"all three", 1.2f, 0.95f, 20, 0.05f}, {"top-k beyond", 1, 1, 1000, 0},
    };
    for (size_t s = 0; s < sizeof settings / sizeof *settings; s++) {
        GlaSampler p = plain_sampler(settings[s].temperature, settings[s].top_p, settings[s].top_k, settings[s].min_p, 7 + s);
        int count[N] = {0}, kept = slow_candidates(&p, logits, N, order, weight), outside = DRAWS, unseen = 0;
        double chi2 = 0;
        for (int i = 0; i < DRAWS; i++) count[sample(&p, logits, N, c)]++;
        for (int i = 0; i < kept; i++) {
            double expected = weight[i] * DRAWS, d = count[order[i]] - expected;
            chi2 += d * d / expected, outside -= count[order[i]], unseen += count[order[i]] == 0 && expected > 20;
        }
        check(outside == 0 && unseen == 0, "%s: %d draws from outside, %d likely tokens never drawn", settings[s].name, outside, unseen);
        within(chi2, kept + 5 * sqrt(2.0 * kept) + 5, "%s: chi squared of %d tokens", settings[s].name, kept);
    }
    /* the same set for every combination, with ties among the logits */
    for (int i = 0; i < 300; i++) {
        GlaSampler p = plain_sampler(0.5f + (float)uniform() * 2, (float)uniform(), (int)(rnd() % 50), rnd() % 2 ? (float)uniform() * 0.3f : 0, rnd());
        for (int j = 0; j < N; j++) logits[j] = rnd() % 3 ? 2 * noise() : (float)(rnd() % 4);
        int kept = slow_candidates(&p, logits, N, order, weight), bad = 0;
        for (int d = 0; d < 100; d++) {
            int32_t id = sample(&p, logits, N, c);
            int at = 0;
            while (at < kept && order[at] != id) at++;
            bad += at == kept;
        }
        check(!bad, "setting %d (top-p %g, top-k %d, min-p %g): %d draws outside of %d candidates", i, p.top_p, p.top_k, p.min_p, bad, kept);
    }
    GlaSampler greedy = plain_sampler(0, 0.9f, 0, 0, 1), first = plain_sampler(1, 1, 1, 0, 1);
    float ties[4] = {1, 3, 3, 2};
    check(sample(&greedy, ties, 4, c) == 1 && sample(&first, ties, 4, c) == 1, "of equal logits the lowest id comes first");
    greedy.temperature = NAN;
    check(sample(&greedy, ties, 4, c) == 1, "a temperature that is no number is read as 0");

    /* determinism: a copy of the sampler repeats, seeds differ, 0 is a seed */
    for (int i = 0; i < N; i++) logits[i] = noise();
    int32_t draws[3][64];
    for (int s = 0; s < 3; s++) {
        GlaSampler p = plain_sampler(1, 1, 0, 0, (uint64_t)s / 2);
        for (int i = 0; i < 64; i++) draws[s][i] = sample(&p, logits, N, c);
    }
    check(!memcmp(draws[0], draws[1], sizeof draws[0]) && memcmp(draws[0], draws[2], sizeof draws[0]), "seed 0 repeats itself and differs from seed 1");

    /* penalties */
    GlaSampler p = plain_sampler(0, 1, 0, 0, 1);
    float scores[4] = {3, 2.9f, -1, -0.9f};
    p.repeat_penalty = 2;
    gla_sampler_note(&p, 0), gla_sampler_note(&p, 0), gla_sampler_note(&p, -5), gla_sampler_note(&p, 1000);
    check(sample(&p, scores, 4, c) == 1, "a recent token with a positive logit is divided");
    penalise(&p, (memcpy(c, (Scored[]){{{3, 0}}, {{2.9f, 1}}, {{-1, 2}}, {{-0.9f, 3}}}, 4 * sizeof *c), c), 4);
    check(c[0].score == 1.5f && c[1].score == 2.9f, "once per token: %g %g", c[0].score, c[1].score);
    gla_sampler_note(&p, 3);
    check(sample(&p, (float[]){-9, -9, -1, -0.9f}, 4, c) == 2, "a recent token with a negative logit is multiplied");
    p = plain_sampler(0, 1, 0, 0, 1), p.presence_penalty = 0.2f;
    gla_sampler_note(&p, 0);
    check(sample(&p, scores, 4, c) == 1, "the presence penalty is subtracted");
    for (int i = 0; i < GLA_RECENT; i++) gla_sampler_note(&p, 2);
    check(sample(&p, scores, 4, c) == 0, "tokens from before the last %d are forgotten", GLA_RECENT);
    p.n_recent = (1u << 31) - 1, gla_sampler_note(&p, 1), gla_sampler_note(&p, 1);
    check(p.n_recent > GLA_RECENT && sample(&p, scores, 4, c) == 0, "after 2^31 tokens");

    /* values that are no numbers */
    for (int k = 0; k < 2; k++) {
        GlaSampler hot = plain_sampler(k ? 1.0f : 0.0f, 0.9f, 0, 0, 3);
        int bad = 0;
        for (int i = 0; i < 200; i++) {
            bad += sample(&hot, (float[]){NAN, 1, NAN, 1}, 4, c) % 2 == 0;
            bad += sample(&hot, (float[]){0, INFINITY, 3, NAN}, 4, c) != 1;
            bad += sample(&hot, (float[]){-INFINITY, -INFINITY, 0, NAN}, 4, c) != 2;
            bad += (uint32_t)sample(&hot, (float[]){NAN, NAN, NAN, NAN}, 4, c) >= 4;
            bad += (uint32_t)sample(&hot, (float[]){-INFINITY, -INFINITY, -INFINITY, -INFINITY}, 4, c) >= 4;
            bad += sample(&hot, (float[]){5}, 1, c) != 0;
            bad += (uint32_t)sample(&hot, (float[]){3e38f, -3e38f, 3e38f, 0}, 4, c) % 2 != 0;
        }
        check(!bad, "logits that are no numbers, temperature %d: %d wrong draws", k, bad);
    }
    for (int i = 0; i < 1000; i++) { /* settings that are no numbers: an id all the same */
        GlaSampler odd = plain_sampler(i & 1 ? NAN : 1e-30f, i & 2 ? NAN : -1, i & 4 ? -7 : INT_MAX, i & 8 ? NAN : 5, rnd());
        odd.repeat_penalty = i & 16 ? NAN : 0, odd.presence_penalty = i & 32 ? INFINITY : NAN;
        gla_sampler_note(&odd, 1);
        check((uint32_t)sample(&odd, scores, 4, c) < 4, "odd settings %d", i);
    }
}

/* ---- 6. writing GGUF: small models that do exactly what a test needs ------------------------------------------------- */

typedef struct { uint8_t *p; size_t n, cap; } Bytes;
static void put(Bytes *b, const void *p, size_t n) {
    if (b->n + n > b->cap) b->p = must(realloc(b->p, b->cap = 2 * (b->n + n) + 64));
    if (n) memcpy(b->p + b->n, p, n);
    b->n += n;
}
static void put_u32(Bytes *b, uint32_t v) { put(b, &v, 4); }
static void put_u64(Bytes *b, uint64_t v) { put(b, &v, 8); }
static void put_str(Bytes *b, const char *s) { put_u64(b, strlen(s)), put(b, s, strlen(s)); }

typedef struct { Bytes keys, infos, data; uint64_t n_keys, n_tensors; } File;
static void key_head(File *f, const char *key, uint32_t type) { f->n_keys++, put_str(&f->keys, key), put_u32(&f->keys, type); }
static void key_u32(File *f, const char *key, uint32_t v) { key_head(f, key, GGUF_U32), put_u32(&f->keys, v); }
static void key_f32(File *f, const char *key, float v) {
    key_head(f, key, GGUF_F32);
    put(&f->keys, &v, 4);
}
static void key_str(File *f, const char *key, const char *s) { key_head(f, key, GGUF_STR), put_str(&f->keys, s); }
static void key_f32s(File *f, const char *key, const float *v, uint64_t n) {
    key_head(f, key, GGUF_ARR), put_u32(&f->keys, GGUF_F32), put_u64(&f->keys, n), put(&f->keys, v, n * sizeof *v);
}
static void key_u32s(File *f, const char *key, const uint32_t *v, uint64_t n) {
    key_head(f, key, GGUF_ARR), put_u32(&f->keys, GGUF_U32), put_u64(&f->keys, n), put(&f->keys, v, n * 4);
}
static void key_strs(File *f, const char *key, const char *const *s, uint64_t n) {
    key_head(f, key, GGUF_ARR), put_u32(&f->keys, GGUF_STR), put_u64(&f->keys, n);
    for (uint64_t i = 0; i < n; i++) put_str(&f->keys, s[i]);
}
static void add_tensor(File *f, const char *name, Tensor w) {
    static const uint8_t zeros[32];
    f->n_tensors++, put_str(&f->infos, name);
    put_u32(&f->infos, w.n_out ? 2 : 1), put_u64(&f->infos, (uint64_t)w.n_in);
    if (w.n_out) put_u64(&f->infos, (uint64_t)w.n_out);
    put_u32(&f->infos, (uint32_t)w.type), put_u64(&f->infos, f->data.n);
    put(&f->data, w.data, row_bytes(&w) * (size_t)(w.n_out ? w.n_out : 1));
    put(&f->data, zeros, (32 - f->data.n % 32) % 32);
}
static void add_floats(File *f, const char *name, const float *x, int n_in, int n_out) { add_tensor(f, name, (Tensor){(const uint8_t *)x, F32, n_in, n_out}); }
static uint8_t *file_bytes(File *f, size_t *n) { /* an exact block; f is emptied */
    static const uint8_t zeros[32];
    Bytes b = {0};
    put(&b, "GGUF", 4), put_u32(&b, 3), put_u64(&b, f->n_tensors), put_u64(&b, f->n_keys);
    put(&b, f->keys.p, f->keys.n), put(&b, f->infos.p, f->infos.n), put(&b, zeros, (32 - b.n % 32) % 32), put(&b, f->data.p, f->data.n);
    uint8_t *exact = block(*n = b.n);
    memcpy(exact, b.p, b.n);
    free(b.p), free(f->keys.p), free(f->infos.p), free(f->data.p);
    memset(f, 0, sizeof *f);
    return exact;
}

/* A model that says token next[i] after token i. Its only layer adds nothing; the embedding is the identity. Tokens are taken
 * byte for byte (type 4); those of type 3 are control tokens. */
static uint8_t *chain_model(const char *const *tokens, const int *next, const uint32_t *token_types, int n, uint32_t context, size_t *n_bytes) {
    File f = {0};
    key_str(&f, "general.architecture", "llama");
    key_u32(&f, "llama.block_count", 1), key_u32(&f, "llama.context_length", context), key_u32(&f, "llama.embedding_length", (uint32_t)n), key_u32(&f, "llama.feed_forward_length", 1);
    key_u32(&f, "llama.attention.head_count", 1), key_u32(&f, "llama.attention.key_length", 2), key_u32(&f, "llama.attention.value_length", 2);
    key_str(&f, "tokenizer.ggml.model", "gpt2"), key_strs(&f, "tokenizer.ggml.tokens", tokens, (uint64_t)n), key_strs(&f, "tokenizer.ggml.merges", NULL, 0);
    key_u32s(&f, "tokenizer.ggml.token_type", token_types, (uint64_t)n);
    float *eye = block((size_t)(n * n) * sizeof *eye), *head = block((size_t)(n * n) * sizeof *head), *zero = block((size_t)(n * n + 2 * n) * sizeof *zero), *one = block((size_t)n * sizeof *one);
    for (int i = 0; i < n; i++) eye[i * n + i] = 1, head[next[i] * n + i] = 20, one[i] = 1;
    add_floats(&f, "token_embd.weight", eye, n, n), add_floats(&f, "output.weight", head, n, n), add_floats(&f, "output_norm.weight", one, n, 0);
    add_floats(&f, "blk.0.attn_norm.weight", one, n, 0), add_floats(&f, "blk.0.ffn_norm.weight", one, n, 0);
    add_floats(&f, "blk.0.attn_q.weight", zero, n, 2), add_floats(&f, "blk.0.attn_k.weight", zero, n, 2), add_floats(&f, "blk.0.attn_v.weight", zero, n, 2);
    add_floats(&f, "blk.0.attn_output.weight", zero, 2, n);
    add_floats(&f, "blk.0.ffn_gate.weight", zero, n, 1), add_floats(&f, "blk.0.ffn_up.weight", zero, n, 1), add_floats(&f, "blk.0.ffn_down.weight", zero, 1, n);
    free(eye), free(head), free(zero), free(one);
    return file_bytes(&f, n_bytes);
}

/* A random hybrid of a GLA and a softmax layer with every matrix of one type (256 wide, so that every block fits), or with the
 * same values as float32. Without a vocabulary. res: residual attention with so many sub-layers per block, for each layer; NULL = none. */
static uint8_t *random_model(int type, int as_float32, const uint32_t *res, size_t *n_bytes) {
    enum { DIM = 256, VOCAB = 100 };
    static const char *const layer[2][12] = {
        {"attn_q", "attn_k", "attn_v", "attn_output", "attn_gate", "ssm_f_a", "ssm_f_b", "ffn_gate", "ffn_up", "ffn_down"},
        {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"},
    };
    File f = {0};
    char name[64];
    rng = 77;
    float *norm = noises(DIM, 0.1f), *bias = noises(DIM, 1), *query = noises(DIM, 0.3f);
    for (int i = 0; i < DIM; i++) norm[i] += 1;
    key_str(&f, "general.architecture", "gla");
    key_u32(&f, "gla.block_count", 2), key_u32(&f, "gla.context_length", 1000), key_u32(&f, "gla.embedding_length", DIM), key_u32(&f, "gla.feed_forward_length", DIM);
    key_u32s(&f, "gla.attention.head_count", (uint32_t[]){0, 4}, 2), key_u32(&f, "gla.attention.key_length", DIM / 4);
    key_u32(&f, "gla.mixer.head_count", 4), key_u32(&f, "gla.mixer.key_length", 64), key_u32(&f, "gla.mixer.value_length", 64), key_str(&f, "gla.mixer.output_gate", "swish");
    if (res && res[0] == res[1]) key_u32(&f, "gla.residual_attention.block_size", res[0]);
    else if (res) key_u32s(&f, "gla.residual_attention.block_size", res, 2);
    for (int i = -1; i < 2; i++)
        for (int j = 0; i < 0 ? j < 1 : j < 12 && layer[i][j] != NULL; j++) {
            Tensor w = random_matrix(type, DIM, i < 0 ? VOCAB : DIM);
            if (i < 0) snprintf(name, sizeof name, "token_embd.weight");
            else snprintf(name, sizeof name, "blk.%d.%s.weight", i, layer[i][j]);
            if (as_float32) {
                float *x = block((size_t)(w.n_in * w.n_out) * sizeof *x);
                row_to_float(x, w.data, type, (size_t)(w.n_in * w.n_out));
                add_floats(&f, name, x, w.n_in, w.n_out);
                free(x);
            } else add_tensor(&f, name, w);
            free_matrix(w);
        }
    add_floats(&f, "output_norm.weight", norm, DIM, 0), add_floats(&f, "blk.0.ssm_f_b.bias", bias, DIM, 0);
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < (res && res[i] ? 6 : 2); j++) {
            static const char *const vectors_of[] = {"attn_norm", "ffn_norm", "attn_res_norm", "ffn_res_norm", "attn_res_proj", "ffn_res_proj"};
            snprintf(name, sizeof name, "blk.%d.%s.weight", i, vectors_of[j]);
            add_floats(&f, name, j < 4 ? norm : query, DIM, 0);
        }
    if (res) add_floats(&f, "output_res_norm.weight", norm, DIM, 0), add_floats(&f, "output_res_proj.weight", query, DIM, 0);
    free(norm), free(bias), free(query);
    return file_bytes(&f, n_bytes);
}

/* A random model of PaTH attention: two layers, four query heads of 6 over two key heads, which turn what came before. */
static uint8_t *path_model(size_t *n_bytes) {
    enum { DIM = 24, VOCAB = 40, KV = 12 };
    static const struct { const char *name; int n_in, n_out; } tensors[] = {
        {"token_embd.weight", DIM, VOCAB}, {"output_norm.weight", DIM, 0}, {"attn_norm.weight", DIM, 0}, {"ffn_norm.weight", DIM, 0},
        {"attn_q.weight", DIM, DIM}, {"attn_k.weight", DIM, KV}, {"attn_v.weight", DIM, KV}, {"attn_output.weight", DIM, DIM}, {"ssm_w_a.weight", DIM, 8},
        {"ssm_w_b.weight", 8, KV}, {"ssm_conv1d_w.weight", 3, KV}, {"ssm_beta.weight", DIM, 2}, {"ssm_beta.bias", 2, 0}, {"ffn_gate.weight", DIM, 16}, {"ffn_up.weight", DIM, 16}, {"ffn_down.weight", 16, DIM},
    };
    File f = {0};
    rng = 78;
    key_str(&f, "general.architecture", "path_attn");
    key_u32(&f, "path_attn.block_count", 2), key_u32(&f, "path_attn.context_length", 1000), key_u32(&f, "path_attn.embedding_length", DIM), key_u32(&f, "path_attn.feed_forward_length", 16);
    key_u32(&f, "path_attn.attention.head_count", 4), key_u32(&f, "path_attn.attention.head_count_kv", 2), key_u32(&f, "path_attn.rope.dimension_count", 0);
    key_u32(&f, "path_attn.mixer.conv_kernel", 3), key_u32(&f, "path_attn.mixer.beta_scale", 2);
    for (size_t j = 0; j < sizeof tensors / sizeof *tensors; j++)
        for (int layer = 0; layer < (j < 2 ? 1 : 2); layer++) {
            char name[64];
            int n = tensors[j].n_in * (tensors[j].n_out ? tensors[j].n_out : 1);
            float *x = noises((size_t)n, 1);
            snprintf(name, sizeof name, "blk.%d.", layer);
            snprintf(name + (j < 2 ? 0 : strlen(name)), sizeof name - 8, "%s", tensors[j].name);
            add_floats(&f, name, x, tensors[j].n_in, tensors[j].n_out);
            free(x);
        }
    return file_bytes(&f, n_bytes);
}
/* Decoders with softmax attention in every layer, as their papers have them: in double, a token at a time,
 * each score from the beginning. A row says what a file holds and, apart from the table in run.c, what it
 * means. */
enum { D_DIM = 24, D_HEADS = 4, D_KV = 2, D_HEAD = 8, D_FFN = 20, D_VOCAB = 40, D_TOKENS = 40 };
enum { D_TENSORS = 1000 };
typedef struct {
    const char *arch;
    int layers, window;
    int period, listed;                      /* every period-th layer has no window; in a list */
    const char *scaling;                     /* rope.scaling.type */
    float factor, softcap, scale;            /* 0 = no key */
    int freqs;                               /* rope_freqs.weight: pair j turns 1 + j times slower */
    int biased, ffn_biased, tied;
    int adjacent, qk_norm, sandwich, gelu, scaled, wide; /* what the architecture means */
    double window_base;                      /* rotary base of layers with a window, 0 = as the others */
} DecoderCase;
typedef struct { char name[48]; float *x; } NamedFloats;
typedef struct { const DecoderCase *c; NamedFloats w[D_TENSORS]; int n; } DecoderModel;

/* NULL: there are none */
static const float *weights_named(const DecoderModel *m, int layer, const char *name) {
    char full[48];
    if (layer < 0) snprintf(full, sizeof full, "%s", name);
    else snprintf(full, sizeof full, "blk.%d.%s", layer, name);
    for (int i = 0; i < m->n; i++)
        if (!strcmp(m->w[i].name, full)) return m->w[i].x;
    return NULL;
}

static void decoder_tensor(File *f, DecoderModel *m, int layer, const char *name, int n_in, int n_out,
                           const char *without) {
    NamedFloats *w = &m->w[m->n];
    int norm = strstr(name, "norm") != NULL;
    if (layer < 0) snprintf(w->name, sizeof w->name, "%s", name);
    else snprintf(w->name, sizeof w->name, "blk.%d.%.28s", layer, name);
    if (without && !strcmp(without, w->name)) return;
    float size = n_out ? 1 / sqrtf((float)n_in) : norm ? 0.2f : 0.5f;
    w->x = noises((size_t)n_in * (size_t)(n_out ? n_out : 1), size);
    for (int i = 0; norm && i < n_in; i++) w->x[i] += 1;
    add_floats(f, w->name, w->x, n_in, n_out);
    m->n++;
}

/* without: a tensor that the file lacks, NULL = none */
static uint8_t *decoder_model(DecoderModel *m, const DecoderCase *c, const char *without,
                              size_t *n_bytes) {
    enum { Q = D_HEADS * D_HEAD, KV = D_KV * D_HEAD };
    File f = {0};
    char key[96];
    uint32_t pattern[64];
    #define KEY(name) (snprintf(key, sizeof key, "%s.%s", c->arch, name), key)
    rng = 79;
    m->c = c, m->n = 0;
    key_str(&f, "general.architecture", c->arch);
    key_u32(&f, KEY("block_count"), (uint32_t)c->layers), key_u32(&f, KEY("context_length"), 64);
    key_u32(&f, KEY("embedding_length"), D_DIM), key_u32(&f, KEY("feed_forward_length"), D_FFN);
    key_u32(&f, KEY("attention.head_count"), D_HEADS);
    key_u32(&f, KEY("attention.head_count_kv"), D_KV);
    key_u32(&f, KEY("attention.key_length"), D_HEAD);
    key_u32(&f, KEY("attention.value_length"), D_HEAD);
    key_f32(&f, KEY("rope.freq_base"), 500);
    if (c->window) key_u32(&f, KEY("attention.sliding_window"), (uint32_t)c->window);
    for (int i = 0; i < c->layers; i++) pattern[i] = !c->period || (i + 1) % c->period != 0;
    KEY("attention.sliding_window_pattern");
    if (c->listed) key_u32s(&f, key, pattern, (uint64_t)c->layers);
    else if (c->period && c->period != 6) key_u32(&f, key, (uint32_t)c->period);
    KEY("rope.freq_base_swa");
    if (c->window_base && c->window_base != 10000) key_f32(&f, key, (float)c->window_base);
    if (c->scaling) key_str(&f, KEY("rope.scaling.type"), c->scaling);
    if (c->factor) {
        key_f32(&f, KEY("rope.scaling.factor"), c->factor);
        key_u32(&f, KEY("rope.scaling.original_context_length"), 16);
    }
    if (c->softcap) key_f32(&f, KEY("final_logit_softcapping"), c->softcap);
    if (c->scale) key_f32(&f, KEY("attention.scale"), c->scale);
    #undef KEY
    const float freqs[D_HEAD / 2] = {1, 2, 3, 4};
    if (c->freqs) add_floats(&f, "rope_freqs.weight", freqs, D_HEAD / 2, 0);
    decoder_tensor(&f, m, -1, "token_embd.weight", D_DIM, D_VOCAB, without);
    decoder_tensor(&f, m, -1, "output_norm.weight", D_DIM, 0, without);
    if (!c->tied) decoder_tensor(&f, m, -1, "output.weight", D_DIM, D_VOCAB, without);
    for (int i = 0; i < c->layers; i++) {
        const struct { const char *name; int n_in, n_out, on; } tensors[] = {
            {"attn_norm.weight", D_DIM, 0, 1}, {"ffn_norm.weight", D_DIM, 0, 1}, {"attn_q.weight", D_DIM, Q, 1}, {"attn_k.weight", D_DIM, KV, 1},
            {"attn_v.weight", D_DIM, KV, 1}, {"attn_output.weight", Q, D_DIM, 1}, {"ffn_gate.weight", D_DIM, D_FFN, 1},
            {"ffn_up.weight", D_DIM, D_FFN, 1}, {"ffn_down.weight", D_FFN, D_DIM, 1}, {"attn_q.bias", Q, 0, c->biased},
            {"attn_k.bias", KV, 0, c->biased}, {"attn_v.bias", KV, 0, c->biased}, {"attn_output.bias", D_DIM, 0, c->ffn_biased},
            {"ffn_gate.bias", D_FFN, 0, c->ffn_biased}, {"ffn_up.bias", D_FFN, 0, c->ffn_biased},
            {"ffn_down.bias", D_DIM, 0, c->ffn_biased}, {"attn_q_norm.weight", D_HEAD, 0, c->qk_norm},
            {"attn_k_norm.weight", D_HEAD, 0, c->qk_norm}, {"post_attention_norm.weight", D_DIM, 0, c->sandwich},
            {"post_ffw_norm.weight", D_DIM, 0, c->sandwich},
        };
        for (size_t j = 0; j < sizeof tensors / sizeof *tensors; j++)
            if (tensors[j].on)
                decoder_tensor(&f, m, i, tensors[j].name, tensors[j].n_in, tensors[j].n_out, without);
    }
    return file_bytes(&f, n_bytes);
}
static uint8_t *model_named(const char *name, size_t *n) { return strcmp(name, "path") ? fixture(name, n) : path_model(n); }

static GlaModel *opened(const void *bytes, size_t n, const char *name) {
    char err[GLA_ERR] = "";
    GlaModel *m = NULL;
    int code = gla_open_memory(&m, bytes, n, err);
    check(code == GLA_OK, "%s does not open: %s", name, err);
    if (code) exit(printf("%d passed, %d failed\n", passed, failed) < 0 ? 2 : 1); /* nothing below makes sense without it */
    return m;
}
static int kv_tested, fast_tested; /* GLA_KV_* and fast of the states that the tests make */
static GlaState *state_of(const GlaModel *m, int ctx, int batch, int threads) {
    char err[GLA_ERR] = "";
    GlaState *s;
    check(gla_state_new(&s, m, &(GlaSettings){.ctx = ctx, .batch = batch, .threads = threads, .kv = kv_tested, .fast = fast_tested}, err) == GLA_OK, "no state: %s", err);
    return must(s);
}

/* ---- 7. generate --------------------------------------------------------------------------------------------------------- */

typedef struct { char text[4096]; size_t n; int calls, tokens, broken, stop_after; } Heard;
static int hear(void *user, int32_t id, const char *text, size_t n) {
    Heard *h = user;
    size_t len;
    for (size_t at = 0; at < n; at += len) /* whole characters? a byte that is no UTF-8 counts as one */
        if (utf8_read(text + at, n - at, &len) >= BAD_BYTE && utf8_open(text + at, n - at) == n - at) h->broken++;
    if (h->n + n < sizeof h->text) memcpy(h->text + h->n, text, n), h->n += n;
    h->calls++, h->tokens += id >= 0;
    return h->stop_after && h->tokens >= h->stop_after;
}

static int json_text(const char *text, size_t n) { /* 1: whole, 0: not yet, -1: cannot become one */
    Json j = {0};
    for (size_t i = 0; i < n; i++) if (!json_byte(&j, (uint8_t)text[i])) return -1;
    return j.at == J_END;
}
static void test_json(void) {
    static const char *const good[] = {"{}", "[]", " {\"a\":1}", "[1,-2.5e+3,0,-0,1E9,0.5e-1,10]", "{\"a\":{\"b\":[true,false,null]},\"c\":\"\\u00e9\\n\\\"\\/\"}", "[ [ ] , { } ]", "[1 , 2 ]",
        "[\"\xc3\xa9\xe2\x82\xac\xed\x9f\xbf\xf0\x9f\x98\x80\xf4\x8f\xbf\xbf\x7f\"]", "{\"\" : [[{\"x\":[]}],1 ] }"};
    static const char *const bad[] = {"1", "\"x\"", "true", "]", "{]", "[}", "{\"a\"}", "{1:2}", "[01]", "[1.]", "[.5]", "[+1]", "[1e]", "[1e+]", "[--1]", "[-]", "[1,]", "[,1]", "{\"a\":1,}", "{\"a\":}", "{,}", "[tru]", "[nul1]", "[True]", "[1.2.3]", "[1e2e3]",
        "[\"\n\"]", "[\"\\x\"]", "[\"\\u12g4\"]", "[\"\xff\"]", "[\"\x80\"]", "[\"\xc0\x80\"]", "[\"\xe0\x80\x80\"]", "[\"\xed\xa0\x80\"]", "[\"\xf4\x90\x80\x80\"]", "[\"\xc3\"]", "{}{}", "[] ", "[1 2]", "[\"a\" \"b\"]", "{\"a\" 1}", "{\"a\":1 \"b\":2}"};
    char deep[JSON_DEPTH + 2], blanks[JSON_BLANKS + 3] = "[";
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        for (size_t n = strlen(good[i]), k = 0; k <= n; k++) check(json_text(good[i], k) == (k == n), "%zu bytes of %s", k, good[i]);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) check(json_text(bad[i], strlen(bad[i])) < 0, "taken: %s", bad[i]);
    memset(deep, '[', sizeof deep);
    check(json_text(deep, JSON_DEPTH) == 0 && json_text(deep, JSON_DEPTH + 1) < 0, "at most %d brackets are open", JSON_DEPTH);
    memset(blanks + 1, ' ', JSON_BLANKS + 1);
    check(json_text(blanks, JSON_BLANKS + 1) == 0 && json_text(blanks, JSON_BLANKS + 2) < 0, "at most %d blanks in a row", JSON_BLANKS);
}

static void test_generate(void) {
    /* Each case is a text cut into tokens at the bars; the model says them one after the other, then "@" for ever. */
    static const struct { const char *what, *tokens, *stops[3]; int steps; const char *want; int done, made; } cases[] = {
        {"steps", "a|b|c|d", {0}, 3, "abc", GLA_DONE_STEPS, 3},
        {"an end token", "a|b|<end>|c", {0}, 10, "ab", GLA_DONE_END, 2},
        {"an empty token", "a||b", {0}, 3, "ab", GLA_DONE_STEPS, 3},
        {"stop inside a token", "one|t.wo|three", {".", 0}, 10, "onet", GLA_DONE_STOP, 2},
        {"stop that is a token", "one|.|three", {"."}, 10, "one", GLA_DONE_STOP, 2},
        {"stop at once", "END|x", {"END"}, 10, "", GLA_DONE_STOP, 1},
        {"stop across tokens", "on|e E|N|D two", {" END"}, 10, "one", GLA_DONE_STOP, 4},
        {"stop that almost comes", "x EN|E END|!", {"END"}, 10, "x ENE ", GLA_DONE_STOP, 2},
        {"stop that overlaps itself", "a|a|a|b|c", {"aab"}, 10, "a", GLA_DONE_STOP, 4},
        {"stop that overlaps itself, again", "ab|ab|ac|d", {"abac"}, 10, "ab", GLA_DONE_STOP, 3},
        {"the earlier of two stops", "x1|y2", {"2", "1"}, 10, "x", GLA_DONE_STOP, 1},
        {"two stops complete in one token", "xyz", {"z", "y"}, 10, "x", GLA_DONE_STOP, 1},
        {"a stop, while another one might begin earlier", "xxY|ab|c", {"ab", "Yabc"}, 10, "xxY", GLA_DONE_STOP, 2},
        {"the same in the other order", "xxY|ab|c", {"Yabc", "ab"}, 10, "xxY", GLA_DONE_STOP, 2},
        {"the begin of a stop at the end is text", "abc|E|N", {"END"}, 3, "abcEN", GLA_DONE_STEPS, 3},
        {"the begin of a stop before an end token is text", "abc|E|<end>", {"END"}, 9, "abcE", GLA_DONE_END, 2},
        {"a character in two tokens", "x\xE2\x82|\xAC.|y", {0}, 3, "x\xE2\x82\xAC.y", GLA_DONE_STEPS, 3},
        {"a character in four tokens", "\xF0|\x9F|\x98|\x80", {0}, 4, "\xF0\x9F\x98\x80", GLA_DONE_STEPS, 4},
        {"an unfinished character is text in the end", "x|\xE2\x82", {0}, 2, "x\xE2\x82", GLA_DONE_STEPS, 2},
        {"an unfinished character before another", "\xE2\x82|x|\xC3|\xA9", {0}, 4, "\xE2\x82x\xC3\xA9", GLA_DONE_STEPS, 4},
        {"bytes that are no text", "\xFF|\xFE|\x80|\xC0|a", {0}, 5, "\xFF\xFE\x80\xC0" "a", GLA_DONE_STEPS, 5},
        {"a stop behind an unfinished character", "\xE2\x82|X|y", {"X"}, 9, "\xE2\x82", GLA_DONE_STOP, 2},
        {"a stop made of a split character", "a|\xC3|\xA9|b", {"\xC3\xA9"}, 9, "a", GLA_DONE_STOP, 3},
        {"a full context", "a|b|c", {0}, 0, "abc@@@@", GLA_DONE_CONTEXT, 7},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        enum { MAX = 16 };
        char copy[256];
        const char *tokens[MAX] = {"^"};
        uint32_t token_types[MAX] = {TYPE_USER_DEFINED};
        int next[MAX] = {1}, n = 1;
        snprintf(copy, sizeof copy, "%s", cases[i].tokens);
        for (char *p = copy; p; n++) {
            char *bar = strchr(p, '|');
            if (bar) *bar++ = 0;
            tokens[n] = !strcmp(p, "<end>") ? "</s>" : p;
            token_types[n] = !strcmp(p, "<end>") ? TYPE_CONTROL : TYPE_USER_DEFINED;
            next[n] = n + 1;
            p = bar;
        }
        tokens[n] = "@", token_types[n] = TYPE_USER_DEFINED, next[n] = n, n++;
        size_t bytes;
        uint8_t *file = chain_model(tokens, next, token_types, n, 100, &bytes);
        GlaModel *m = opened(file, bytes, cases[i].what);
        GlaState *s = state_of(m, 8, 0, 1);
        GlaSampler p = plain_sampler(0, 1, 0, 0, 1);
        GlaGenerate how = {.steps = cases[i].steps, .stops = cases[i].stops, .emit = hear};
        while (how.n_stops < 3 && cases[i].stops[how.n_stops]) how.n_stops++;
        char err[GLA_ERR] = "";
        Heard h = {.n = 0};
        how.user = &h;
        int64_t made = -1;
        int done = gla_generate(s, &p, (int32_t[]){0}, 1, &how, &made, err);
        check(done == cases[i].done && made == cases[i].made && h.n == strlen(cases[i].want) && !memcmp(h.text, cases[i].want, h.n),
              "%s: \"%.*s\", expected \"%s\"; ended with %d after %d tokens, expected %d after %d %s", cases[i].what, (int)h.n, h.text, cases[i].want, done, (int)made, cases[i].done, cases[i].made, err);
        /* bytes that no character can begin with, and a character that another one cuts short, cannot come whole */
        int excused = strstr(cases[i].what, "unfinished") || strstr(cases[i].what, "no text");
        check(!h.broken || excused, "%s: %d broken characters", cases[i].what, h.broken);
        check(gla_state_pos(s) == 1 + made, "%s: the state has read %d tokens", cases[i].what, (int)gla_state_pos(s));
        gla_state_free(s), gla_close(m), free(file);
    }

    const char *tokens[] = {"a", "b", "</s>"};
    size_t bytes;
    uint8_t *file = chain_model(tokens, (int[]){1, 2, 0}, (uint32_t[]){4, 4, 3}, 3, 5000, &bytes);
    GlaModel *m = opened(file, bytes, "a chain of three");
    GlaState *s = state_of(m, 0, 0, 1), *one = state_of(m, 0, 0, 1);
    GlaSampler p = plain_sampler(0, 1, 0, 0, 1);
    char err[GLA_ERR] = "", long_stop[HELD];
    Heard h = {.n = 0};
    GlaGenerate how = {.steps = 7, .ignore_end = 1, .emit = hear, .user = &h};
    check(gla_generate(s, &p, NULL, 0, &how, NULL, err) == GLA_INPUT && is_sentence(err), "an empty prompt on an empty state: %s", err);
    check(gla_generate(s, &p, (int32_t[]){0}, 1, &how, NULL, err) == GLA_DONE_STEPS && h.n == 5 && !memcmp(h.text, "babab", 5), "past the end token: %.*s", (int)h.n, h.text);
    check(gla_generate(s, &p, NULL, 0, &how, NULL, err) == GLA_DONE_STEPS && h.n == 9 && !memcmp(h.text, "bababbaba", 5), "and on, without a prompt: %.*s", (int)h.n, h.text);
    h.n = 0, how.steps = 14;
    check(gla_generate(one, &p, (int32_t[]){0}, 1, &how, NULL, err) == GLA_DONE_STEPS && same(gla_logits(s), gla_logits(one), 3), "7 and 7 tokens are 14");
    Heard few = {.stop_after = 2};
    how.user = &few;
    int64_t made;
    check(gla_generate(one, &p, NULL, 0, &how, &made, err) == GLA_DONE_CALLER && made == 2, "the caller ends it after two tokens");
    how.emit = NULL, how.steps = 3;
    check(gla_generate(one, &p, NULL, 0, &how, &made, err) == GLA_DONE_STEPS && made == 3, "without a listener");
    memset(long_stop, 'x', sizeof long_stop), long_stop[sizeof long_stop - 1] = 0;
    how.stops = (const char *const[]){long_stop}, how.n_stops = 1;
    check(gla_generate(one, &p, NULL, 0, &how, NULL, err) == GLA_INPUT && is_sentence(err), "a stop text of 1023 bytes: %s", err);
    int32_t many[5000] = {0};
    gla_state_reset(one);
    check(gla_generate(one, &p, many, 5000, &(GlaGenerate){.steps = 1}, NULL, err) == GLA_CONTEXT && strstr(err, "5000") && strstr(err, "4096"), "a prompt that is too long names both numbers: %s", err);
    check(gla_state_pos(one) == 0, "and is not read");
    gla_state_free(s), gla_state_free(one), gla_close(m), free(file);
}

/* ---- 8. tokenizer --------------------------------------------------------------------------------------------------------- */

/* NAME.gguf, a vocabulary; NAME.ids, records of: u32 flags, u32 text bytes, u32 count, text, ids (make_tokenizer_fixtures.py). */
static void test_tokenizer(void) {
    static const char *const names[] = {"gpt-2", "qwen2", "qwen35", "llama-bpe", "llama", "llama-unk", "llama-first", "llama-always", "gemma4", "rwkv", "added"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[64], err[GLA_ERR] = "";
        size_t n, n_file;
        snprintf(path, sizeof path, "tokenizer/%s.gguf", names[i]);
        uint8_t *file = fixture(path, &n_file);
        snprintf(path, sizeof path, "tokenizer/%s.ids", names[i]);
        uint8_t *records = fixture(path, &n);
        Gguf g = {.map = {file, n_file, 0}};
        Tokenizer *t = NULL;
        int texts = 0;
        check(!gguf_read(&g, err) && !tokenizer_new(&t, &g, err), "%s: %s", names[i], err);
        for (uint8_t *p = records; t && p < records + n; texts++) {
            uint32_t flags = read_u32(p), len = read_u32(p + 4), count = read_u32(p + 8);
            char *text = block(len);
            int32_t *want = block(count * sizeof *want), *got = block(count * sizeof *got);
            memcpy(text, p + 12, len), memcpy(want, p + 12 + len, count * sizeof *want);
            p += 12 + len + 4 * count;
            int64_t k = tokenizer_encode(t, text, len, (int)flags, got, count, err);
            check(k == count && !memcmp(got, want, count * sizeof *want), "%s: text %d has %lld ids, expected %u (or they differ)", names[i], texts, (long long)k, count);
            check(tokenizer_encode(t, text, len, (int)flags, NULL, 0, err) == k, "%s: text %d, counting alone", names[i], texts);
            const int tells_words = t->tells_words;
            t->tells_words = 0; /* words that are not cut beforehand give the same ids */
            check(tokenizer_encode(t, text, len, (int)flags, got, count, err) == k && !memcmp(got, want, count * sizeof *want),
                  "%s: text %d, in one piece", names[i], texts);
            t->tells_words = tells_words;
            if (!t->kind.nfc) { /* decoding gives the bytes back */
                Bytes back = {0};
                int64_t first = flags & GLA_BOS && t->kind.add_bos;
                for (int64_t j = first; j < k; j++) {
                    char piece[300];
                    put(&back, piece, tokenizer_piece(t, got[j], GLA_SPECIAL | (j == first ? GLA_FIRST : 0), piece, sizeof piece));
                }
                /* "llama" puts a space before the text after every special token; only texts without one come back whole. Nor does
                 * what a vocabulary without all bytes could only call unknown. */
                const int kept = t->kind.space == SPACE_NEVER || t->kind.space == SPACE_PREPEND || !len || text[0] != ' ';
                int plain = t->kind.model != VOCAB_SPM || (!memchr(text, '<', len) && kept);
                for (int64_t j = 0; j < k; j++) plain = plain && (t->kind.model != VOCAB_SPM || got[j] != t->kind.unk);
                check(!plain || (back.n == len && !memcmp(back.p ? back.p : (uint8_t *)"", text, len)), "%s: text %d does not come back: \"%.*s\"", names[i], texts, (int)back.n, (char *)back.p);
                free(back.p);
            }
            free(text), free(want), free(got);
        }
        check(texts > 40, "%s: %d texts", names[i], texts);
        for (int32_t id = -3; t && id < t->n + 3; id++) { /* pieces: counted whole, written to the limit */
            char piece[300], little[2] = {'#', '#'};
            size_t len = tokenizer_piece(t, id, GLA_SPECIAL, piece, sizeof piece);
            check((id >= 0 && id < t->n) || len == 0, "%s: id %d has a piece", names[i], id);
            check(tokenizer_piece(t, id, GLA_SPECIAL, little, 1) == len && little[1] == '#' && (!len || little[0] == piece[0]), "%s: the piece of %d, cut to one byte", names[i], id);
        }
        tokenizer_free(t), gguf_close(&g), free(file), free(records);
    }
}

typedef struct { uint8_t *bytes; Gguf g; Tokenizer *t; char err[GLA_ERR]; } Vocabulary;
static Vocabulary vocabulary_of(File *f) { /* t is NULL where it is refused; f is emptied */
    Vocabulary v = {0};
    size_t n;
    v.bytes = file_bytes(f, &n);
    v.g.map = (Mapping){v.bytes, n, 0};
    if (!gguf_read(&v.g, v.err)) tokenizer_new(&v.t, &v.g, v.err);
    return v;
}
static void vocabulary_free(Vocabulary *v) { tokenizer_free(v->t), gguf_close(&v->g), free(v->bytes); }

/* tokenizer/pieces: how HuggingFace cuts texts, by every row of names (make_tokenizer_fixtures.py). A vocabulary whose tokens are the pieces
 * of a row, and that needs no merges for what is a token, has an id for each piece. */
static uint32_t take_u16(const uint8_t **p) { *p += 2; return (*p)[-2] | (uint32_t)(*p)[-1] << 8; }

static size_t spell(char *out, const uint8_t *piece, size_t n, int characters) { /* as "gpt2" files do; room for twice the bytes */
    size_t len = 0;
    for (size_t i = 0; i < n; i++) len += characters ? utf8_write(out + len, BAD_BYTE + piece[i]) : utf8_write(out + len, byte_char(piece[i]));
    return len;
}

static void pieces_as_tokens(File *f, const uint8_t *texts, uint32_t n_texts, int characters) {
    Bytes all = {0};
    uint64_t n = 0;
    char text[600];
    for (const uint8_t *p = texts; n_texts--;)
        for (uint32_t pieces = take_u16(&p), len; pieces--; p += len, n++) {
            len = take_u16(&p);
            size_t k = spell(text, p, len, characters);
            put_u64(&all, k), put(&all, text, k);
        }
    key_head(f, "tokenizer.ggml.tokens", GGUF_ARR), put_u32(&f->keys, GGUF_STR), put_u64(&f->keys, n), put(&f->keys, all.p, all.n);
    key_strs(f, "tokenizer.ggml.merges", NULL, 0), key_u32(f, "tokenizer.gla.ignore_merges", 1);
    free(all.p);
}

static const uint8_t *check_pieces(const Tokenizer *t, const uint8_t *p, int characters, const char *name, uint32_t i) { /* of one text */
    const uint8_t *from = p;
    uint32_t pieces = take_u16(&p), at = 0;
    Bytes text = {0};
    Ids ids = {NULL, 0, 0};
    char spelled[600], err[GLA_ERR] = "";
    for (uint32_t k = 0, len; k < pieces; k++, p += len) len = take_u16(&p), put(&text, p, len);
    size_t n = 0;
    for (size_t k = 0; k < text.n; k++) { /* spaces again */
        const int mark = characters && k + 3 <= text.n && !memcmp(text.p + k, "\xE2\x96\x81", 3);
        text.p[n++] = mark ? ' ' : text.p[k];
        k += mark ? 2 : 0;
    }
    check(!tokenizer_append(t, (char *)text.p, n, 0, &ids, err), "%s: text %u: %s", name, i, err);
    take_u16(&from);
    for (uint32_t k = 0, len; k < pieces; k++, from += len) {
        len = take_u16(&from);
        const size_t want = spell(spelled, from, len, characters);
        Str got = at < ids.n ? t->tokens[ids.id[at++]] : (Str){"", 0};
        check(got.n == want && !memcmp(got.s, spelled, want), "%s: text %u: piece %u is \"%.*s\", not \"%.*s\"", name, i, k, (int)got.n, got.s, (int)want, spelled);
    }
    check(at == ids.n, "%s: text %u has %lld pieces, not %u", name, i, (long long)ids.n, pieces);
    ids_free(&ids), free(text.p);
    return p;
}

static void test_pieces(void) {
    size_t n, names = 0;
    uint8_t *all = fixture("tokenizer/pieces", &n);
    for (const uint8_t *p = all; p < all + n;) {
        char list[400] = "", *name = list, err[GLA_ERR] = "";
        uint32_t len = take_u16(&p);
        memcpy(list, p, len), p += len;
        const int characters = *p++;
        const uint32_t n_texts = take_u16(&p);
        const PreTokenizer *row = NULL;
        for (char *next; name; name = next, names++) {
            if ((next = strchr(name, ' '))) *next++ = 0;
            const PreTokenizer *of = find_pre_tokenizer(str_of(name), err);
            check(of != NULL, "%s: %s", name, err);
            if (row || !of) { /* others of the row are cut in the same way */
                for (int i = 0; of && i <= MAX_SPLITS; i++) check(!row->splits[i] == !of->splits[i] && (!of->splits[i] || !strcmp(row->splits[i], of->splits[i])), "%s is cut in another way", name);
                continue;
            }
            row = of;
            File f = {0};
            key_str(&f, "tokenizer.ggml.model", "gpt2"), key_str(&f, "tokenizer.ggml.pre", name);
            pieces_as_tokens(&f, p, n_texts, characters);
            Vocabulary v = vocabulary_of(&f);
            check(v.t != NULL, "%s: %s", name, v.err);
            for (uint32_t i = 0; i < n_texts && v.t; i++) p = check_pieces(v.t, p, characters, name, i);
            vocabulary_free(&v);
        }
    }
    check(names == 87, "%zu names", names);
    free(all);
}

/* Vocabularies and texts that were made to take long: 150 KB in a few seconds, where each byte could cost as many steps. */
static void takes_seconds(const char *what, File *f, const char *unit, int last) {
    enum { LENGTH = 150000 };
    Vocabulary v = vocabulary_of(f);
    Ids ids = {NULL, 0, 0};
    char *text = block(LENGTH);
    const size_t len = strlen(unit);
    for (size_t i = 0; i < LENGTH; i++) text[i] = unit[i % len];
    if (last) text[LENGTH - 1] = (char)last;
    const size_t before = heap.bytes;
    const double start = now_s();
    check(v.t && !tokenizer_append(v.t, text, LENGTH, GLA_SPECIAL, &ids, v.err) && ids.n > 0, "%s: %s", what, v.err);
    check(now_s() - start < 10, "%s: %d bytes took %.1f s", what, (int)LENGTH, now_s() - start);
    check(heap.bytes - before < 150 * (size_t)LENGTH, "%s: %zu bytes of memory", what, heap.bytes - before);
    ids_free(&ids), vocabulary_free(&v), free(text);
}

static void check_ids(const Vocabulary *v, const char *text, const char *want) {
    char got[200] = "", err[GLA_ERR];
    int32_t ids[40];
    const int64_t n = v->t ? tokenizer_encode(v->t, text, strlen(text), GLA_SPECIAL, ids, 40, err) : 0;
    for (int64_t i = 0; i < n && i < 40; i++) sprintf(got + strlen(got), "%s%d", i ? " " : "", (int)ids[i]);
    check(!strcmp(got, want), "\"%s\" has the ids %s, not %s (%s)", text, got, want, v->err);
}

/* White space that two added tokens lay claim to: as HuggingFace tokenizers 0.23 reads it. */
static void test_added_blanks(void) {
    File f = {0};
    const char *tokens[] = {"a", "\xC4\xA0", "<A>", "<L>", "\n", "\t"};
    const uint32_t right[] = {2}, left[] = {3, 5};
    key_str(&f, "tokenizer.ggml.model", "gpt2");
    key_strs(&f, "tokenizer.ggml.tokens", tokens, 6);
    key_u32s(&f, "tokenizer.ggml.token_type", (uint32_t[]){1, 1, 3, 3, 3, 3}, 6);
    key_u32s(&f, "tokenizer.gla.rstrip", right, 1);
    key_u32s(&f, "tokenizer.gla.lstrip", left, 2);
    Vocabulary v = vocabulary_of(&f);
    check_ids(&v, "<A>  a", "2 0");
    check_ids(&v, "<A>  \n  a", "2 4 1 1 0");
    check_ids(&v, "<A> \n <L>", "2 4 3");
    check_ids(&v, "<A> \n \n a", "2 4 1 4 1 0");
    check_ids(&v, "<A>  <L> a", "2 3 1 0");
    check_ids(&v, "<A> \t a", "2 0");
    check_ids(&v, "<A> \ta", "2 0");
    check_ids(&v, "a \ta", "0 5 0");
    vocabulary_free(&v);
}

/* Keys of our own that hold something else. */
static void test_keys_refused(void) {
    static const char *const keys[] = {"tokenizer.gla.lstrip", "tokenizer.gla.added", "tokenizer.gla.space_prefix"};
    for (int i = 0; i < 6; i++) {
        File f = {0};
        key_str(&f, "tokenizer.ggml.model", "gpt2");
        key_strs(&f, "tokenizer.ggml.tokens", (const char *[]){"a"}, 1);
        if (i < 3) key_u32(&f, keys[i], 0);
        else key_f32s(&f, keys[i - 3], (float[]){0}, 1);
        Vocabulary v = vocabulary_of(&f);
        check(!v.t && is_sentence(v.err) && strstr(v.err, keys[i % 3]), "%s: %s", keys[i % 3], v.err);
        vocabulary_free(&v);
    }
}

/* A file that says that it has no vocabulary. */
static void test_no_vocabulary(void) {
    for (int i = 0; i < 2; i++) {
        File f = {0};
        key_str(&f, "tokenizer.ggml.model", i ? "none" : "no_vocab");
        Vocabulary v = vocabulary_of(&f);
        check(v.t && !v.t->n && v.t->kind.bos == -1 && v.t->kind.eos == -1 && v.t->kind.unk == -1,
              "no vocabulary, and a token that begins a text: %s", v.err);
        vocabulary_free(&v);
    }
}

/* Words are told apart only where no token has a space behind that byte, and the space is known. */
static void test_words(void) {
    const char *across[] = {"<unk>", "\xE2\x96\x81", "a", "b", "a\xE2\x96\x81" "b", "\xE2\x96\x81" "b", "\xE2\x96\x81" "a"};
    const float scores[] = {0, 0, 0, 0, 9, 1, 1};
    for (int known = 0; known < 2; known++) {
        File f = {0};
        key_str(&f, "tokenizer.ggml.model", "llama");
        key_strs(&f, "tokenizer.ggml.tokens", across, 7);
        key_u32s(&f, "tokenizer.ggml.token_type", (uint32_t[]){2, known ? 1 : 5, 1, 1, 1, 1, 1}, 7);
        key_f32s(&f, "tokenizer.ggml.scores", scores, 7);
        key_u32(&f, "tokenizer.ggml.add_space_prefix", 0);
        key_u32(&f, "tokenizer.ggml.unknown_token_id", 0);
        Vocabulary v = vocabulary_of(&f);
        check_ids(&v, "a b b a", known ? "4 5 6" : "2 0 3 0 3 0 2");
        check_ids(&v, "x x", known ? "0 1 0" : "0");
        vocabulary_free(&v);
    }
}

enum { RUNS = 400 };
static void runs_of_a(File *f, int merges, int scores, const char *end, uint32_t type) { /* tokens x, a and " ", and rows of a's of every length */
    Bytes tokens = {0}, lines = {0}, values = {0}, types = {0};
    char run[2 * RUNS + 4];
    for (int i = 0; i < RUNS + 2; i++) {
        const float score = (float)i;
        const int k = i < 3 ? 1 : i - 1;
        memset(run, 'a', sizeof run);
        if (i == 1 || i == 2) run[0] = i == 1 ? 'x' : ' ';
        strcpy(run + k, i < 3 ? "" : end);
        put_str(&tokens, run), put(&values, &score, 4), put_u32(&types, i < 3 ? 1 : type);
        if (i > 2) memmove(run + k, run + k - 1, 1), run[k - 1] = ' ', run[k + 1] = 0, put_str(&lines, run);
    }
    key_head(f, "tokenizer.ggml.tokens", GGUF_ARR), put_u32(&f->keys, GGUF_STR), put_u64(&f->keys, RUNS + 2), put(&f->keys, tokens.p, tokens.n);
    key_head(f, "tokenizer.ggml.token_type", GGUF_ARR), put_u32(&f->keys, GGUF_U32), put_u64(&f->keys, RUNS + 2), put(&f->keys, types.p, types.n);
    if (merges) key_head(f, "tokenizer.ggml.merges", GGUF_ARR), put_u32(&f->keys, GGUF_STR), put_u64(&f->keys, merges > 1 ? RUNS - 1 : 0), put(&f->keys, lines.p, merges > 1 ? lines.n : 0);
    if (scores) key_head(f, "tokenizer.ggml.scores", GGUF_ARR), put_u32(&f->keys, GGUF_F32), put_u64(&f->keys, RUNS + 2), put(&f->keys, values.p, values.n);
    free(tokens.p), free(lines.p), free(values.p), free(types.p);
}

static void test_tokenizer_time(void) {
    static const struct { const char *what, *model, *pre, *end; int merges, scores; uint32_t type; const char *unit; int last; } cases[] = {
        {"merges that lengthen a token by one", "gpt2", "gpt-2", "", 2, 0, 1, "a", 0},
        {"scores that rise with the length", "llama", "", "", 0, 1, 1, "a", 0},
        {"ids that rise with the length", "llama", "", "", 0, 0, 1, "a", 0},
        {"merges of characters", "gemma4", "", "", 2, 0, 1, "a", 0},
        {"rows of spaces in pieces of 512", "gpt2", "jais-2", "", 1, 0, 1, " ", 'x'},
        {"spaces at the end only", "gpt2", "deepseek-llm", "", 1, 0, 1, " ", 'x'},
        {"digits counted from the right", "gpt2", "tiny_aya", "", 1, 0, 1, "1", 'x'},
        {"capitals that wait for small letters", "gpt2", "gpt-4o", "", 1, 0, 1, "A", 0},
        {"brackets that do not close", "gpt2", "chameleon", "", 1, 0, 1, "<sentinel:1", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        File f = {0};
        key_str(&f, "tokenizer.ggml.model", cases[i].model);
        if (*cases[i].pre) key_str(&f, "tokenizer.ggml.pre", cases[i].pre);
        runs_of_a(&f, cases[i].merges, cases[i].scores, cases[i].end, cases[i].type), key_u32(&f, "tokenizer.ggml.unknown_token_id", 1);
        takes_seconds(cases[i].what, &f, cases[i].unit, cases[i].last);
    }
    File blanks = {0}; /* each of them could read all that follow */
    key_str(&blanks, "tokenizer.ggml.model", "gpt2");
    key_strs(&blanks, "tokenizer.ggml.tokens", (const char *[]){"a", " "}, 2);
    key_u32s(&blanks, "tokenizer.ggml.token_type", (uint32_t[]){1, 4}, 2);
    key_u32s(&blanks, "tokenizer.gla.rstrip", (uint32_t[]){1}, 1);
    takes_seconds("a space that takes all spaces behind it along", &blanks, " ", 'a');
    static const struct { const char *what, *model; } words[] = {{"special tokens that nearly fit", "gpt2"}, {"words that nearly fit", "rwkv"}};
    for (int i = 0; i < 2; i++) { /* all a's but the last letter, which the text never has */
        File f = {0};
        char *run = block(TRIE_DEPTH + 2);
        for (int more = 0; more < 2; more++) {
            memset(run, 'a', TRIE_DEPTH + 1);
            run[TRIE_DEPTH + more - 1] = 'b', run[TRIE_DEPTH + more] = 0;
            key_str(&f, "tokenizer.ggml.model", words[i].model), key_strs(&f, "tokenizer.ggml.tokens", (const char *[]){"<s>", "a", run}, 3);
            key_u32s(&f, "tokenizer.ggml.token_type", (uint32_t[]){3, 1, i ? 1 : 3}, 3);
            if (!more) { takes_seconds(words[i].what, &f, "a", 0); continue; }
            Vocabulary v = vocabulary_of(&f);
            check(!v.t && is_sentence(v.err) && strstr(v.err, "at most"), "%s: a longer one was not refused: %s", words[i].what, v.err);
            vocabulary_free(&v);
        }
        free(run);
    }
}

/* ---- 9. models: goldens and properties -------------------------------------------------------------------------------------- */

/* Logits of n ids, all positions, read in runs of `run` tokens (several calls) by a state with this batch and these threads. */
static float *logits_of(const GlaModel *m, const int32_t *ids, int n, int run, int batch, int threads) {
    char err[GLA_ERR] = "";
    size_t vocab = (size_t)m->config.vocab_size;
    float *logits = block((size_t)n * vocab * sizeof *logits);
    GlaState *s = state_of(m, n, batch, threads);
    for (int i = 0; i < n; i += run) {
        int k = n - i < run ? n - i : run;
        check(gla_eval(s, ids + i, k, logits + (size_t)i * vocab, k, err) == GLA_OK, "eval: %s", err);
    }
    check(same(gla_logits(s), logits + (size_t)(n - 1) * vocab, vocab), "the state keeps the last logits");
    gla_state_free(s);
    return logits;
}

static int32_t *random_ids(int n, int vocab) {
    int32_t *ids = block((size_t)n * sizeof *ids);
    for (int i = 0; i < n; i++) ids[i] = (int32_t)(rnd() % (uint32_t)vocab);
    return ids;
}

/* Promise 1: neither how a text is split nor the number of threads changes a bit. */
static void check_same_bits(const GlaModel *m, const char *name, int n) {
    enum { ALL = 1 << 20 };
    static const struct { int run, batch, threads; } ways[] = {{ALL, 0, 2}, {ALL, 0, 5}, {1, 0, 1}, {7, 0, 2}, {64, 0, 1}, {ALL, 1, 5}, {ALL, 7, 2}, {ALL, 64, 1}, {33, 16, 3}};
    int32_t *ids = random_ids(n, m->config.vocab_size);
    float *whole = logits_of(m, ids, n, n, 0, 1);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        float *other = logits_of(m, ids, n, ways[i].run < n ? ways[i].run : n, ways[i].batch, ways[i].threads);
        check(same(whole, other, (size_t)n * (size_t)m->config.vocab_size), "%s with %s: %d tokens per call, batch %d, %d threads give other bits", name, m->kernels->name, ways[i].run, ways[i].batch, ways[i].threads);
        free(other);
    }
    free(ids), free(whole);
}

static void test_goldens(void) {
    static const struct { const char *name; double largest, rms; } cases[] = {{"qwen35", 1e-3, 3e-5}, {"qwen3", 1e-4, 1e-4}, {"gla", 1e-4, 1e-4}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char path[64];
        size_t n_file, n_ref;
        snprintf(path, sizeof path, "%s.gguf", cases[i].name);
        uint8_t *file = fixture(path, &n_file);
        snprintf(path, sizeof path, "%s.ref", cases[i].name);
        uint8_t *ref = fixture(path, &n_ref);
        int T = (int)read_u32(ref), vocab = (int)read_u32(ref + 4);
        size_t n = (size_t)T * (size_t)vocab;
        check(n_ref == 8 + 4 * (size_t)T + 4 * n, "%s.ref has %zu bytes", cases[i].name, n_ref);
        int32_t *ids = block((size_t)T * 4);
        float *want = block(n * 4);
        memcpy(ids, ref + 8, (size_t)T * 4), memcpy(want, ref + 8 + 4 * T, n * 4);
        GlaModel *m = opened(file, n_file, cases[i].name);
        check(m->config.vocab_size == vocab, "%s: vocabulary of %d", cases[i].name, vocab);
        float *first = NULL;
        for (int k = 0; k < N_KERNELS; k++) {
            if (!kernel_runs(&kernels[k])) continue;
            m->kernels = &kernels[k];
            float *got = logits_of(m, ids, T, T, 0, 1);
            double squares = 0;
            for (size_t j = 0; j < n; j++) squares += ((double)got[j] - want[j]) * ((double)got[j] - want[j]);
            within(largest(got, want, n), cases[i].largest, "%s, %s", cases[i].name, kernels[k].name);
            within(sqrt(squares / (double)n), cases[i].rms, "%s, %s, rms", cases[i].name, kernels[k].name);
            if (first) within(largest(got, first, n), strcmp(cases[i].name, "qwen35") ? 1e-4 : 1e-3, "%s, %s against %s", cases[i].name, kernels[k].name, kernels[0].name);
            if (first) free(got); else first = got;
            for (kv_tested = 0; kv_tested < GLA_N_KV; kv_tested++)
                if (!kv_tested || (kv_tested > GLA_KV_F32 && m->kv_floats)) check_same_bits(m, cases[i].name, kv_tested ? 70 : 150);
            kv_tested = 0;
        }
        free(first), free(ids), free(want), gla_close(m), free(file), free(ref);
    }
}

/* y <- x / sqrt(mean(x^2) + 1e-6) w, n numbers; y may be x; w NULL: y <- x */
static void plain_norm(double *y, const double *x, const float *w, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += x[i] * x[i];
    for (int i = 0; i < n; i++) y[i] = w ? x[i] / sqrt(sum / n + 1e-6) * w[i] : x[i];
}
static void plain_product(double *y, const float *w, const float *bias, const double *x, int n_in,
                          int n_out) {
    for (int i = 0; i < n_out; i++) {
        y[i] = bias ? bias[i] : 0;
        for (int j = 0; j < n_in; j++) y[i] += (double)w[i * n_in + j] * x[j];
    }
}
/* One head at a position. Pair j turns by base^(-2j/n) per position, in windowed layers of some models with
 * another base and no scaling. */
static void plain_turn(double *x, const DecoderCase *c, int pos, int windowed) {
    const char *scaling = c->scaling ? c->scaling : "linear";
    int own = windowed && c->window_base != 0, yarn = !own && !strcmp(scaling, "yarn");
    double base = own ? c->window_base : 500;
    double factor = own || !c->factor || !strcmp(scaling, "none") ? 1 : c->factor;
    for (int j = 0; j < D_HEAD / 2; j++) {
        double speed = pow(base, -2.0 * j / D_HEAD) / (c->freqs && !own ? 1 + j : 1);
        double slow = speed / factor, m = 1;
        if (yarn) { /* 16 positions of training: from 32 turns on the speed stays, up to 1 it is divided */
            double low = floor(D_HEAD * log(16 / (32 * 2 * 3.14159265358979)) / (2 * log(base)));
            double high = ceil(D_HEAD * log(16 / (2 * 3.14159265358979)) / (2 * log(base)));
            if (low < 0) low = 0;
            double ramp = (j - low) / (high - low);
            ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
            slow = slow * ramp + speed * (1 - ramp), m = 0.1 * log(factor) + 1;
        }
        int ia = c->adjacent ? 2 * j : j, ib = c->adjacent ? 2 * j + 1 : j + D_HEAD / 2;
        double a = x[ia], b = x[ib], cs = m * cos(pos * slow), sn = m * sin(pos * slow);
        x[ia] = a * cs - b * sn, x[ib] = a * sn + b * cs;
    }
}

/* o of one token from its q and all k, v so far: grouped queries */
typedef double KvRow[D_KV * D_HEAD];
static void plain_attention(double *o, const double *q, KvRow *k, KvRow *v, int t, int first, double scale) {
    for (int h = 0; h < D_HEADS; h++) {
        int from = h / (D_HEADS / D_KV) * D_HEAD;
        double sum = 0, score[D_TOKENS];
        for (int j = first; j <= t; j++) {
            score[j] = 0;
            for (int d = 0; d < D_HEAD; d++) score[j] += q[h * D_HEAD + d] * k[j][from + d];
            sum += score[j] = exp(scale * score[j]);
        }
        for (int d = 0; d < D_HEAD; d++) {
            o[h * D_HEAD + d] = 0;
            for (int j = first; j <= t; j++) o[h * D_HEAD + d] += score[j] / sum * v[j][from + d];
        }
    }
}

/* x <- a layer of x, all tokens */
static void plain_layer(const DecoderModel *m, int i, double (*x)[D_DIM]) {
    const DecoderCase *c = m->c;
    static double k[D_TOKENS][D_KV * D_HEAD], v[D_TOKENS][D_KV * D_HEAD];
    int windowed = c->window && (!c->period || (i + 1) % c->period != 0);
    int wide = c->wide && c->layers == 62;
    double scale = c->scale ? c->scale : 1 / sqrt(wide ? D_DIM / D_HEADS : D_HEAD);
    #define W(name) weights_named(m, i, name)
    for (int t = 0; t < D_TOKENS; t++) {
        double n[D_DIM], q[D_HEADS * D_HEAD], o[D_HEADS * D_HEAD], y[D_DIM], gate[D_FFN], up[D_FFN];
        plain_norm(n, x[t], W("attn_norm.weight"), D_DIM);
        plain_product(q, W("attn_q.weight"), W("attn_q.bias"), n, D_DIM, D_HEADS * D_HEAD);
        plain_product(k[t], W("attn_k.weight"), W("attn_k.bias"), n, D_DIM, D_KV * D_HEAD);
        plain_product(v[t], W("attn_v.weight"), W("attn_v.bias"), n, D_DIM, D_KV * D_HEAD);
        for (int h = 0; h < D_HEADS + D_KV; h++) {
            double *head = h < D_HEADS ? q + h * D_HEAD : k[t] + (h - D_HEADS) * D_HEAD;
            const float *w = W(h < D_HEADS ? "attn_q_norm.weight" : "attn_k_norm.weight");
            plain_norm(head, head, w, D_HEAD);
            plain_turn(head, c, t, windowed);
        }
        plain_attention(o, q, k, v, t, windowed && t >= c->window ? t - c->window + 1 : 0, scale);
        const float *out = W("attn_output.weight"), *out_bias = W("attn_output.bias");
        plain_product(y, out, out_bias, o, D_HEADS * D_HEAD, D_DIM);
        plain_norm(y, y, W("post_attention_norm.weight"), D_DIM);
        for (int d = 0; d < D_DIM; d++) x[t][d] += y[d];
        plain_norm(n, x[t], W("ffn_norm.weight"), D_DIM);
        plain_product(gate, W("ffn_gate.weight"), W("ffn_gate.bias"), n, D_DIM, D_FFN);
        plain_product(up, W("ffn_up.weight"), W("ffn_up.bias"), n, D_DIM, D_FFN);
        for (int d = 0; d < D_FFN; d++) {
            double g = gate[d], bent = sqrt(2 / 3.14159265358979) * (g + 0.044715 * g * g * g);
            double gelu = g / 2 * (1 + tanh(bent));
            up[d] *= c->gelu ? gelu : g / (1 + exp(-g));
        }
        plain_product(y, W("ffn_down.weight"), W("ffn_down.bias"), up, D_FFN, D_DIM);
        plain_norm(y, y, W("post_ffw_norm.weight"), D_DIM);
        for (int d = 0; d < D_DIM; d++) x[t][d] += y[d];
    }
    #undef W
}

static float *plain_logits(const DecoderModel *m, const int32_t *ids) {
    static double x[D_TOKENS][D_DIM];
    const DecoderCase *c = m->c;
    const float *embed = weights_named(m, -1, "token_embd.weight");
    const float *head = weights_named(m, -1, "output.weight");
    float *logits = block((size_t)D_TOKENS * D_VOCAB * sizeof *logits);
    for (int t = 0; t < D_TOKENS; t++)
        for (int d = 0; d < D_DIM; d++)
            x[t][d] = embed[ids[t] * D_DIM + d] * (c->scaled ? sqrt(D_DIM) : 1);
    for (int i = 0; i < c->layers; i++) plain_layer(m, i, x);
    for (int t = 0; t < D_TOKENS; t++) {
        double n[D_DIM], y[D_VOCAB];
        plain_norm(n, x[t], weights_named(m, -1, "output_norm.weight"), D_DIM);
        plain_product(y, head ? head : embed, NULL, n, D_DIM, D_VOCAB);
        for (int j = 0; j < D_VOCAB; j++)
            logits[t * D_VOCAB + j] = (float)(c->softcap ? c->softcap * tanh(y[j] / c->softcap) : y[j]);
    }
    return logits;
}

static void test_decoders(void) {
    #define LLAMA .arch = "llama", .adjacent = 1
    #define GEMMA .arch = "gemma3", .qk_norm = 1, .sandwich = 1, .gelu = 1, .scaled = 1, .wide = 1
    #define USUAL .window_base = 10000, .period = 6
    static const DecoderCase cases[] = {
        {LLAMA, .layers = 2}, {LLAMA, .layers = 2, .window = 9, .biased = 1, .tied = 1}, {LLAMA, .layers = 2, .biased = 1, .ffn_biased = 1}, {LLAMA, .layers = 2, .scaling = "linear", .factor = 4},
        {LLAMA, .layers = 2, .factor = 4}, {LLAMA, .layers = 2, .scaling = "none", .factor = 4}, {LLAMA, .layers = 2, .scaling = "yarn", .factor = 4},
        {LLAMA, .layers = 2, .freqs = 1}, {GEMMA, .layers = 6, .window = 8, .period = 2, .window_base = 500, .freqs = 1},
        {LLAMA, .layers = 4, .window = 5, .period = 2, .softcap = 2}, {.arch = "qwen2", .layers = 2, .biased = 1, .tied = 1},
        {.arch = "qwen2", .layers = 3, .biased = 1, .window = 7, .period = 2, .listed = 1}, {.arch = "qwen3", .layers = 2, .qk_norm = 1},
        {GEMMA, USUAL, .layers = 7, .window = 8, .tied = 1}, {GEMMA, USUAL, .layers = 7, .window = 8, .scaling = "linear", .factor = 8, .softcap = 3, .tied = 1},
        {GEMMA, .layers = 4, .window = 8, .period = 3, .window_base = 300, .scale = 0.2f, .biased = 1}, {GEMMA, USUAL, .layers = 7, .tied = 1},
        {GEMMA, .layers = 3, .window = 8, .window_base = 10000, .period = 3, .listed = 1}, {GEMMA, USUAL, .layers = 62, .window = 11, .tied = 1},
    };
    static DecoderModel m;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t n;
        char name[64];
        snprintf(name, sizeof name, "decoder %zu, %s", i, cases[i].arch);
        uint8_t *file = decoder_model(&m, &cases[i], NULL, &n);
        GlaModel *model = opened(file, n, name);
        int32_t *ids = random_ids(D_TOKENS, D_VOCAB);
        float *want = plain_logits(&m, ids);
        for (int k = 0; k < N_KERNELS; k++) {
            if (!kernel_runs(&kernels[k])) continue;
            model->kernels = &kernels[k];
            float *got = logits_of(model, ids, D_TOKENS, D_TOKENS, 0, 1);
            double error = largest(got, want, (size_t)D_TOKENS * D_VOCAB);
            within(error, cases[i].layers > 10 ? 1e-4 : 2e-5, "%s, %s", name, kernels[k].name);
            free(got);
        }
        if (cases[i].layers < 10) check_same_bits(model, name, 50);
        gla_close(model), free(file), free(ids), free(want);
        for (int j = 0; j < m.n; j++) free(m.w[j].x);
    }
    #undef LLAMA
    #undef GEMMA
    #undef USUAL
}

/* What a decoder must have, and what is not implemented: one sentence. */
static void test_decoders_refused(void) {
    static const struct { DecoderCase c; const char *without, *said; } cases[] = {
        {{.arch = "qwen2", .layers = 1, .biased = 1}, "blk.0.attn_k.bias", "2 of attn_q, attn_k and attn_v have a bias, expected all three"},
        {{.arch = "qwen2", .layers = 1}, NULL, "0 of attn_q, attn_k and attn_v have a bias"},
        {{.arch = "llama", .layers = 1, .biased = 1}, "blk.0.attn_q.bias", "all or none"},
        {{.arch = "llama", .layers = 1, .ffn_biased = 1}, "blk.0.ffn_up.bias", "2 of ffn_gate, ffn_up and ffn_down have a bias"},
        {{.arch = "gemma3", .layers = 1, .qk_norm = 1, .sandwich = 1}, "blk.0.post_ffw_norm.weight", "blk.0.post_ffw_norm.weight is missing"},
        {{.arch = "gemma3", .layers = 1, .qk_norm = 1}, NULL, "post_attention_norm.weight is missing"},
        {{.arch = "llama", .layers = 1, .sandwich = 1}, NULL, "no place"},
        {{.arch = "llama", .layers = 1, .scaling = "longrope", .factor = 2}, NULL, "longrope"},
        {{.arch = "qwen3", .layers = 1, .qk_norm = 1, .factor = 1e-4f}, NULL, "rope.scaling.factor"},
    };
    static DecoderModel m;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char err[GLA_ERR] = "";
        size_t n;
        GlaModel *model = NULL;
        uint8_t *file = decoder_model(&m, &cases[i].c, cases[i].without, &n);
        int code = gla_open_memory(&model, file, n, err);
        int right = code && is_sentence(err) && strstr(err, cases[i].said);
        check(right, "decoder without %s: %d, %s", cases[i].said, code, err);
        if (!code) gla_close(model);
        free(file);
        for (int j = 0; j < m.n; j++) free(m.w[j].x);
    }
}

/* Mean Kullback-Leibler divergence of n rows of logits, in natural units. */
static double divergence(const float *p, const float *q, int n, int vocab) {
    double total = 0;
    for (int t = 0; t < n; t++, p += vocab, q += vocab) {
        double zp = 0, zq = 0;
        for (int i = 0; i < vocab; i++) zp += exp(p[i]), zq += exp(q[i]);
        for (int i = 0; i < vocab; i++) total += exp(p[i]) / zp * (p[i] - log(zp) - q[i] + log(zq));
    }
    return total / n;
}

/* Every weight type in every place: against the same values as float32. And residual attention, and keys that later tokens turn. */
static void test_types(void) {
    enum { N = 20, VOCAB = 100 };
    for (int type = 0; type < N_TYPES; type++) {
        if (!types[type].group) continue;
        size_t n_a, n_b;
        uint8_t *a = random_model(type, 0, NULL, &n_a), *b = random_model(type, 1, NULL, &n_b);
        GlaModel *m = opened(a, n_a, types[type].name), *plain = opened(b, n_b, "the same in F32");
        int32_t *ids = random_ids(N, VOCAB);
        for (int k = 0; k < N_KERNELS; k++) {
            if (!kernel_runs(&kernels[k])) continue;
            m->kernels = plain->kernels = &kernels[k];
            float *x = logits_of(m, ids, N, N, 0, 1), *y = logits_of(plain, ids, N, N, 0, 1);
            double size = 0;
            for (int i = 0; i < N * VOCAB; i++) size += (double)y[i] * y[i] / (N * VOCAB);
            check(size > 1e-6 && size < 1e6, "%s, %s: logits of size %g", types[type].name, kernels[k].name, sqrt(size));
            /* block-quantised weights meet activations of 16 bits: a few units of 2^-15 on the way to the logits */
            within(largest(x, y, N * VOCAB), (types[type].group > 1 ? 2e-3 : 1e-4) * fmax(1, sqrt(size)), "%s, %s against F32", types[type].name, kernels[k].name);
            within(divergence(y, x, N, VOCAB), 1e-6, "%s, %s: divergence from F32", types[type].name, kernels[k].name);
            if (types[type].group > 1 || type == BF16) { /* fast: something else, but not much */
                fast_tested = 1;
                float *z = logits_of(m, ids, N, N, 0, 1);
                fast_tested = 0;
                double far = divergence(y, z, N, VOCAB);
                check((far > 1e-9 || (type == BF16 && strcmp(kernels[k].name, "avx512bf16"))) && far < 1e-2, "%s, %s, fast: divergence %g", types[type].name, kernels[k].name, far);
                free(z);
            }
            free(x), free(y);
        }
        for (fast_tested = 0; fast_tested < (types[type].group > 1 || type == BF16 ? 2 : 1); fast_tested++) check_same_bits(m, types[type].name, 37);
        fast_tested = 0;
        gla_close(m), gla_close(plain), free(a), free(b), free(ids);
    }
    size_t n_path;
    uint8_t *path = path_model(&n_path);
    GlaModel *turning = opened(path, n_path, "path");
    for (int k = 0; k < N_KERNELS; k++)
        for (kv_tested = GLA_KV_F32; kv_tested < (k ? GLA_KV_F16 : GLA_N_KV) && kernel_runs(&kernels[k]); kv_tested++) {
            turning->kernels = &kernels[k];
            check_same_bits(turning, "path", 150);
        }
    kv_tested = 0, gla_close(turning), free(path);
    for (uint32_t sources = 1; sources <= 5; sources++) {
        size_t n;
        uint8_t *bytes = random_model(F32, 0, (uint32_t[]){sources, sources}, &n);
        GlaModel *m = opened(bytes, n, "residual attention");
        check(m->config.res_block == (int)sources, "residual attention in blocks of %u", sources);
        check_same_bits(m, "residual attention", 37);
        gla_close(m), free(bytes);
    }
}

#ifdef HAVE_POSIX
typedef struct { const GlaModel *m; GlaState *s; const int32_t *ids; int n; float *logits; int code; } Job;
static void *work(void *arg) {
    Job *j = arg;
    for (int i = 0; i < j->n && !j->code; i += 5) j->code = gla_eval(j->s, j->ids + i, 5, j->logits + (size_t)i * (size_t)j->m->config.vocab_size, 5, NULL);
    return NULL;
}
#endif

/* One model read by two states on two threads at once. */
static void test_two_threads(void) {
#ifdef HAVE_POSIX
    enum { N = 50 };
    static const char *const names[] = {"qwen35.gguf", "tiny.gguf"};
    for (int i = 0; i < 2; i++) {
        size_t n_file;
        uint8_t *file = fixture(names[i], &n_file);
        GlaModel *m = opened(file, n_file, names[i]);
        size_t n = N * (size_t)m->config.vocab_size;
        int32_t *ids[2] = {random_ids(N, m->config.vocab_size), random_ids(N, m->config.vocab_size)};
        Job jobs[2];
        pthread_t threads[2];
        for (int j = 0; j < 2; j++) jobs[j] = (Job){m, state_of(m, N, 0, j + 1), ids[j], N, block(n * sizeof(float)), 0};
        for (int j = 0; j < 2; j++) check(!pthread_create(&threads[j], NULL, work, &jobs[j]), "no thread");
        for (int j = 0; j < 2; j++) pthread_join(threads[j], NULL);
        for (int j = 0; j < 2; j++) {
            float *alone = logits_of(m, ids[j], N, N, 0, 1);
            check(!jobs[j].code && same(alone, jobs[j].logits, n), "%s: thread %d of two computes something else than alone", names[i], j);
            free(alone), free(ids[j]), free(jobs[j].logits), gla_state_free(jobs[j].s);
        }
        gla_close(m), free(file);
    }
#endif
}

/* A flag that a signal sets while a prompt is read, at any moment: what was read is whole runs of it, and going on gives the same
 * bits as if nothing had happened. */
#ifdef HAVE_POSIX
static volatile sig_atomic_t halt;
static void on_alarm(int sig) { (void)sig, halt = 1; }
#endif
static void test_stop(void) {
#ifdef HAVE_POSIX
    enum { N = 250, BATCH = 100, ROUNDS = 9 };
    static const char *const names[] = {"qwen35.gguf", "qwen3.gguf", "gla.gguf", "tiny.gguf", "path"};
    const GlaGenerate how = {.stop = &halt};
    char err[GLA_ERR] = "";
    signal(SIGALRM, on_alarm);
    for (int i = 0; i < 5; i++) {
        size_t n_file;
        uint8_t *file = model_named(names[i], &n_file);
        GlaModel *m = opened(file, n_file, names[i]);
        const size_t vocab = (size_t)m->config.vocab_size;
        int32_t *ids = random_ids(N, (int)vocab);
        GlaState *s = state_of(m, N, BATCH, 1), *straight = state_of(m, N, BATCH, 1);
        const double begin = now_s();
        int stops = 0, within = 0;
        check(!read_ids(straight, ids, N, &how, err), "%s: %s", names[i], err);
        const double took = now_s() - begin;
        halt = 1;
        check(read_ids(s, ids, N, &how, err) == GLA_DONE_CALLER && s->pos == 0 && gla_logits(s)[0] == 0, "%s: stopped before it began", names[i]);
        for (int k = 0; k < ROUNDS; k++) {
            for (gla_state_reset(s); s->pos < N;) {
                const int64_t from = s->pos;
                const int us = k < ROUNDS - 1 ? (int)(1e6 * took * (rnd() % 1000) / 1000) + 1 : 0; /* 0: no alarm */
                const struct itimerval once = {{0, 0}, {us / 1000000, us % 1000000}}, never = {{0, 0}, {0, 0}};
                halt = 0;
                if (stops < 30 && us) setitimer(ITIMER_REAL, &once, NULL);
                int code = read_ids(s, ids + from, N - from, &how, err);
                setitimer(ITIMER_REAL, &never, NULL);
                stops += code == GLA_DONE_CALLER;
                within += code == GLA_DONE_CALLER && s->pos == from;
                if (code < 0 || (s->pos - from) % BATCH % (N % BATCH)) { check(0, "%s: %d, at %d", names[i], code, (int)s->pos); break; }
            }
            if (!same(gla_logits(s), gla_logits(straight), vocab)) { check(0, "%s: stopped and gone on gives other bits", names[i]); break; }
        }
        check(stops > 2, "%s: stopped %d times, %d of them before the first run had ended", names[i], stops, within);
        free(ids), gla_state_free(s), gla_state_free(straight), gla_close(m), free(file);
    }
    signal(SIGALRM, SIG_DFL);
#endif
}

static void test_states(void) {
    enum { N = 60 };
    static const char *const names[] = {"qwen35.gguf", "qwen3.gguf", "gla.gguf", "tiny.gguf", "path"};
    char err[GLA_ERR] = "";
    for (int i = 0; i < 5; i++) {
        const char *name = names[i];
        size_t n_file;
        uint8_t *file = model_named(name, &n_file);
        GlaModel *m = opened(file, n_file, name);
        size_t vocab = (size_t)m->config.vocab_size, n = N * vocab;
        int32_t *ids = random_ids(N, (int)vocab);
        float *whole = logits_of(m, ids, N, N, 0, 1), *tail = block(n * sizeof *tail), *half = whole + 20 * vocab;
        GlaState *s = state_of(m, 200, 16, 1), *copy = NULL, *placed = NULL;
        GlaInfo info;
        gla_info(m, &info);
        check(info.n_layers == m->config.n_layers && info.file_bytes == n_file && (int)vocab == info.vocab_size, "%s: gla_info", name);
        size_t n_kv = m->kv_floats, *per_token = info.kv_bytes_per_token;
        check(per_token[GLA_KV_DEFAULT] == 4 * n_kv && per_token[GLA_KV_F32] == 4 * n_kv && per_token[GLA_KV_F16] == 2 * n_kv && per_token[GLA_KV_Q8_0] >= n_kv + n_kv / 16 && per_token[GLA_KV_Q8_0] <= n_kv + n_kv / 4, "%s: %zu, %zu, %zu bytes for %zu keys and values", name, per_token[GLA_KV_F32], per_token[GLA_KV_F16], per_token[GLA_KV_Q8_0], n_kv);
        check(gla_state_ctx(s) == (m->kv_floats ? 200 : 0), "%s: a context of %d", name, gla_state_ctx(s));

        fast_tested = 1;
        GlaState *rounding = state_of(m, 200, 0, 1);
        fast_tested = 0;
        check(!gla_state_clone(&copy, rounding, err) && copy->team.fast == 1, "%s: a clone rounds as its original", name);
        gla_state_free(rounding), gla_state_free(copy);
        check(!gla_eval(s, ids, 20, NULL, 0, err) && gla_state_pos(s) == 20 && same(gla_logits(s), whole + 19 * vocab, vocab), "%s: the first 20 without logits", name);
        check(!gla_state_clone(&copy, s, err), "%s: clone: %s", name, err);
        check(!gla_eval(s, ids + 20, N - 20, tail, 7, err) && same(tail, whole + (N - 7) * vocab, 7 * vocab), "%s: the logits of the last 7 only", name);
        gla_state_free(s); /* a clone outlives its parent */
        check(gla_state_pos(copy) == 20 && same(gla_logits(copy), whole + 19 * vocab, vocab), "%s: a clone begins with its parent's logits", name);
        check(!gla_eval(copy, ids + 20, N - 20, tail, N - 20, err) && same(tail, half, (N - 20) * vocab), "%s: a clone goes on like its parent", name);
        gla_state_reset(copy);
        check(gla_state_pos(copy) == 0 && !gla_eval(copy, ids, N, tail, N, err) && same(tail, whole, n), "%s: reset is not new", name);

        /* what cannot be done leaves the state as it was */
        int64_t pos = gla_state_pos(copy);
        static const int32_t bad_ids[3] = {1, -1, 2};
        check(gla_eval(copy, bad_ids, 3, NULL, 0, err) == GLA_INPUT && is_sentence(err), "%s: a negative id: %s", name, err);
        check(gla_eval(copy, (int32_t[]){(int32_t)vocab}, 1, NULL, 0, err) == GLA_INPUT && is_sentence(err), "%s: an id beyond the vocabulary: %s", name, err);
        check(gla_eval(copy, ids, 3, tail, 4, err) == GLA_INPUT && gla_eval(copy, ids, -1, NULL, 0, err) == GLA_INPUT && gla_eval(copy, ids, 3, tail, -1, err) == GLA_INPUT, "%s: counts that do not fit", name);
        check(gla_eval(copy, NULL, 0, NULL, 0, err) == GLA_OK, "%s: no tokens at all", name);
        if (m->kv_floats) {
            int32_t *many = random_ids(200, (int)vocab);
            check(gla_eval(copy, many, 141, NULL, 0, err) == GLA_CONTEXT && is_sentence(err), "%s: beyond the context: %s", name, err);
            free(many);
        }
        check(gla_state_pos(copy) == pos && same(gla_logits(copy), whole + (N - 1) * vocab, vocab), "%s: a refused call changed the state", name);

        /* the caller's memory, poisoned and not aligned */
        size_t need_bytes = gla_state_bytes(m, &(GlaSettings){.ctx = 100, .batch = 8, .threads = 2});
        char *mem = block(need_bytes + 3);
        memset(mem, 0xff, need_bytes + 3);
        long calls = heap.calls;
        check(gla_state_place(&placed, m, &(GlaSettings){.ctx = 100, .batch = 8, .threads = 2}, mem + 3, need_bytes, err) == GLA_OK && heap.calls == calls, "%s: place: %s", name, err);
        if (placed) check(!gla_eval(placed, ids, N, tail, N, err) && same(tail, whole, n), "%s: a state in the caller's memory computes something else", name);
        gla_state_free(placed);
        check(gla_state_place(&placed, m, &(GlaSettings){.ctx = 100, .batch = 8, .threads = 2}, mem + 3, need_bytes - 1, err) == GLA_MEMORY && !placed && is_sentence(err), "%s: one byte too few: %s", name, err);
        check(gla_state_new(&placed, m, &(GlaSettings){.ctx = -1}, err) == GLA_INPUT && gla_state_new(&placed, m, &(GlaSettings){.batch = -1}, err) == GLA_INPUT && gla_state_new(&placed, m, &(GlaSettings){.threads = 2000}, err) == GLA_INPUT && gla_state_new(&placed, m, &(GlaSettings){.kv = GLA_N_KV}, err) == GLA_INPUT && gla_state_new(&placed, m, &(GlaSettings){.fast = 2}, err) == GLA_INPUT, "%s: settings out of range", name);
        if (m->kv_floats && sizeof(size_t) == 8) check(gla_state_new(&placed, m, &(GlaSettings){.ctx = INT_MAX}, err) != GLA_OK ? is_sentence(err) : (gla_state_free(placed), 1), "%s: a context of 2^31: %s", name, err);

        /* the token loop takes no memory */
        GlaSampler p;
        gla_sampler_init(&p, m, 5);
        gla_state_reset(copy);
        calls = heap.calls;
        Heard h = {.n = 0};
        check(gla_generate(copy, &p, ids, 30, &(GlaGenerate){.steps = 100, .ignore_end = 1, .emit = hear, .user = &h}, NULL, err) == GLA_DONE_STEPS, "%s: generate: %s", name, err);
        check(heap.calls == calls, "%s: 130 tokens took memory %ld times", name, heap.calls - calls);
        gla_state_free(copy), gla_close(m);
        free(file), free(ids), free(whole), free(tail), free(mem);
    }
    check(heap.live == 0, "%ld blocks of memory were not given back", heap.live);
    /* two models in one process, taking turns */
    size_t n_a, n_b;
    uint8_t *a = fixture("qwen35.gguf", &n_a), *b = fixture("gla.gguf", &n_b);
    GlaModel *m[2] = {opened(a, n_a, "qwen35"), opened(b, n_b, "gla")};
    int32_t *ids = random_ids(N, 256);
    GlaState *s[2] = {state_of(m[0], 0, 0, 1), state_of(m[1], 0, 0, 1)};
    for (int t = 0; t < N; t++) for (int k = 0; k < 2; k++) check(!gla_eval(s[k], ids + t, 1, NULL, 0, err), "taking turns: %s", err);
    for (int k = 0; k < 2; k++) {
        float *alone = logits_of(m[k], ids, N, N, 0, 1);
        check(same(alone + (N - 1) * 256, gla_logits(s[k]), 256), "two models in one process: model %d differs", k);
        free(alone), gla_state_free(s[k]), gla_close(m[k]);
    }
    free(a), free(b), free(ids);
}

/* The block for multi-token prediction against its definition in float64 (make_fixtures.py). */
typedef struct {
    GlaModel *m;
    int T, dim, vocab;
    int32_t *ids;
    float *hidden, *rows, *logits; /* (T, dim), (T, dim), (T, vocab) */
    uint8_t *file;
} MtpCase;
static float *take_floats(const uint8_t **from, size_t n) {
    float *x = block(n * sizeof *x);
    memcpy(x, *from, n * sizeof *x), *from += n * sizeof *x;
    return x;
}
static MtpCase mtp_case(void) {
    size_t n_file, n_ref;
    MtpCase c = {.file = fixture("mtp.gguf", &n_file)};
    uint8_t *ref = fixture("mtp.ref", &n_ref);
    const uint8_t *from = ref + 12;
    c.T = (int)read_u32(ref), c.dim = (int)read_u32(ref + 4), c.vocab = (int)read_u32(ref + 8);
    const size_t T = (size_t)c.T, dim = (size_t)c.dim, vocab = (size_t)c.vocab;
    check(n_ref == 12 + 4 * T * (1 + 2 * dim + vocab), "mtp.ref has %zu bytes", n_ref);
    c.ids = block(T * sizeof *c.ids);
    memcpy(c.ids, from, T * sizeof *c.ids), from += T * sizeof *c.ids;
    c.hidden = take_floats(&from, T * dim), c.rows = take_floats(&from, T * dim);
    c.logits = take_floats(&from, T * vocab);
    c.m = opened(c.file, n_file, "mtp.gguf");
    free(ref);
    return c;
}
static void mtp_case_free(MtpCase *c) {
    gla_close(c->m);
    free(c->ids), free(c->hidden), free(c->rows), free(c->logits), free(c->file);
}
static GlaState *mtp_state(const GlaModel *m, int mtp, int batch) {
    char err[GLA_ERR] = "";
    GlaState *s;
    check(gla_state_new(&s, m, &(GlaSettings){.ctx = 100, .batch = batch, .threads = 2, .mtp = mtp}, err) == GLA_OK, "a state for drafts: %s", err);
    return s;
}

/* A file whose block is damaged is the model all the same, and says why it makes no drafts. */
static void test_mtp_refused(void) {
    static const struct { const char *tensor; int at; char to; const char *sentence; } cases[] = {
        {"blk.2.nextn.eh_proj.weight", 12, 'x', "no block for multi-token prediction"},
        {"blk.2.nextn.enorm.weight", 14, 'x', "blk.2.nextn.enorm.weight is missing"},
        {"blk.2.nextn.hnorm.weight", 14, 'x', "blk.2.nextn.hnorm.weight is missing"},
        {"blk.2.attn_k.weight", 6, 'x', "blk.2.attn_k.weight is missing"},
        {"blk.2.ffn_down.weight", 6, 'x', "blk.2.ffn_down.weight is missing"},
        {"blk.2.nextn.eh_proj.weight", 26 + 4, 95, "blk.2.nextn.eh_proj.weight is (95, 48"},
        {"blk.2.nextn.enorm.weight", 24 + 4, 47, "blk.2.nextn.enorm.weight has 47 elements"},
        {"blk.2.nextn.shared_head_norm.weight", 35 + 4, 47, "blk.2.nextn.shared_head_norm.weight has 47 elements"},
        {"blk.2.attn_q.weight", 19 + 4 + 8, 127, "blk.2.attn_q.weight is (48, 127"},
    };
    MtpCase c = mtp_case();
    float *want = logits_of(c.m, c.ids, c.T, c.T, 0, 1);
    size_t n;
    free(fixture("mtp.gguf", &n));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char err[GLA_ERR] = "";
        GlaState *s;
        uint8_t *file = block(n);
        memcpy(file, c.file, n);
        size_t at = 0, len = strlen(cases[i].tensor);
        while (at + len < n && memcmp(file + at, cases[i].tensor, len)) at++;
        file[at + (size_t)cases[i].at] = (uint8_t)cases[i].to;
        GlaModel *m = opened(file, n, cases[i].sentence);
        float *got = logits_of(m, c.ids, c.T, c.T, 0, 1);
        check(same(got, want, (size_t)c.T * (size_t)c.vocab), "%s: other logits", cases[i].sentence);
        const int code = gla_state_new(&s, m, &(GlaSettings){.mtp = 100}, err);
        check(code < 0 && !s && is_sentence(err) && strstr(err, cases[i].sentence), "%s: %d, %s", cases[i].sentence, code, err);
        gla_close(m), free(got), free(file);
    }
    free(want), mtp_case_free(&c);
}

static void test_mtp(void) {
    MtpCase c = mtp_case();
    const size_t dim = (size_t)c.dim;
    char err[GLA_ERR] = "";
    int32_t drafts[2];
    for (int k = 0; k < N_KERNELS; k++) {
        if (!kernel_runs(&kernels[k])) continue;
        c.m->kernels = &kernels[k];
        GlaState *s = mtp_state(c.m, 40, 16);
        for (int i = 0; i + 1 < c.T; i++) {
            const float *want = c.hidden + (size_t)i * dim;
            gla_eval(s, c.ids + i, 1, NULL, 0, err);
            within(largest(s->mtp.h, want, dim), 1e-3, "hidden row %d, %s", i, kernels[k].name);
            memcpy(s->mtp.h, want, dim * sizeof *want); /* errors of the layers are not those of the block */
            if (i + 2 < c.T) check(mtp_follow(s, c.ids[i + 1], 1) == 1, "no row for position %d", i);
            else check(mtp_draft(s, c.ids[i + 1], drafts, 2) == 2, "no drafts");
            within(largest(s->xb, c.rows + (size_t)(i + 2 < c.T ? i : i + 1) * dim, dim), 1e-5, "row %d of the block, %s", i, kernels[k].name);
        }
        /* a draft, and one behind it, whose logits are there */
        const float *last = c.logits + (size_t)(c.T - 2) * (size_t)c.vocab, *behind = last + c.vocab;
        int best[2] = {0, 0};
        for (int i = 1; i < c.vocab; i++) best[0] = last[i] > last[best[0]] ? i : best[0], best[1] = behind[i] > behind[best[1]] ? i : best[1];
        check(drafts[0] == best[0] && drafts[1] == best[1], "drafts %d %d, expected %d %d", drafts[0], drafts[1], best[0], best[1]);
        within(largest(s->mtp.logits, behind, (size_t)c.vocab), 1e-4, "logits of the block, %s", kernels[k].name);
        gla_state_free(s);
    }
    c.m->kernels = &kernels[0];
    /* however the text was split, the drafts are the same bits, and the text does not see them */
    GlaState *one = mtp_state(c.m, 100, 1), *plain = mtp_state(c.m, 0, 0);
    gla_eval(one, c.ids, c.T, NULL, 0, err), gla_eval(plain, c.ids, c.T, NULL, 0, err);
    check(same(one->logits, plain->logits, (size_t)c.vocab), "room for drafts changes the logits");
    check(!mtp_draft(plain, 1, drafts, 2), "drafts without room for them");
    check(mtp_draft(one, 1, drafts, 2) == 2, "no drafts");
    for (int run = 2; run < c.T; run += 5) {
        int32_t others[2];
        GlaState *s = mtp_state(c.m, 100, run % 3 ? 0 : 3), *copy;
        for (int i = 0; i < c.T; i += run) gla_eval(s, c.ids + i, min64(run, c.T - i), NULL, 0, err);
        check(gla_state_clone(&copy, s, err) == GLA_OK, "clone: %s", err);
        for (int i = 0; i < 2; i++) {
            GlaState *of = i ? copy : s;
            check(mtp_draft(of, 1, others, 2) == 2 && others[0] == drafts[0] && others[1] == drafts[1] && same(of->mtp.logits, one->mtp.logits, (size_t)c.vocab),
                  "runs of %d%s give other drafts", run, i ? ", cloned," : "");
        }
        gla_state_free(s), gla_state_free(copy);
    }
    /* a step back: what is known of the text before it stays; the rest is forgotten */
    void *place = block(gla_snapshot_bytes(c.m));
    GlaState *s = mtp_state(c.m, 100, 0);
    gla_eval(s, c.ids, 10, NULL, 0, err), gla_snapshot(s, place);
    gla_eval(s, c.ids + 10, 5, NULL, 0, err), gla_rewind(s, place);
    check(s->mtp.len == 9 && s->mtp.end == 9 && s->mtp.n == 0, "after a step back: %d entries to position %lld", s->mtp.len, (long long)s->mtp.end);
    gla_eval(s, c.ids + 10, 20, NULL, 0, err);
    check(same(s->logits, plain->logits, (size_t)c.vocab) && mtp_draft(s, 1, drafts, 2) == 2 && s->mtp.len == 29, "behind a step back there are %d entries", s->mtp.len);
    gla_state_reset(s);
    check(!s->mtp.len && !s->mtp.n && !mtp_draft(s, 1, drafts, 2), "drafts of an empty text");
    gla_state_free(s), free(place);
    /* a full cache begins anew; nothing takes memory on the way */
    s = mtp_state(c.m, 8, 5);
    const long calls = heap.calls;
    for (int i = 0; i < c.T; i += 3) mtp_draft(s, c.ids[i], drafts, 2), gla_eval(s, c.ids + i, min64(3, c.T - i), NULL, 0, err);
    check(heap.calls == calls, "%ld calls for memory", heap.calls - calls);
    check(mtp_draft(s, 1, drafts, 2) == 2 && s->mtp.len <= 8, "a small cache holds %d", s->mtp.len);
    gla_state_free(s), gla_state_free(one), gla_state_free(plain);
    mtp_case_free(&c);
}

/* ---- 10. sessions ------------------------------------------------------------------------------------------------------------- */

static void test_sessions(void) {
    enum { N = 40 };
    static const char *const names[] = {"qwen35.gguf", "gla.gguf", "tiny.gguf", "path"};
    char err[GLA_ERR] = "", path[520];
    snprintf(path, sizeof path, "%s.session", scratch());
    for (int i = 0; i < 4; i++) {
        const char *name = names[i];
        size_t n_file, n, n_other;
        uint8_t *file = model_named(name, &n_file), *other_file = model_named(names[(i + 1) % 4], &n_other);
        GlaModel *m = opened(file, n_file, name), *other = opened(other_file, n_other, "another model");
        size_t vocab = (size_t)m->config.vocab_size;
        int32_t *ids = random_ids(N, (int)vocab);
        float *whole = logits_of(m, ids, N, N, 0, 1), *tail = block(N * vocab * sizeof *tail);
        GlaState *s = state_of(m, 64, 0, 1), *back = state_of(m, 50, 7, 2), *small = state_of(m, 10, 0, 1), *wrong = state_of(other, 0, 0, 1);
        GlaSampler p, q;
        gla_sampler_init(&p, m, 9), gla_sampler_init(&q, m, 1);
        gla_sampler_note(&p, 3), next_random(&p.rng), p.temperature = 0.25f;
        check(!gla_eval(s, ids, 15, NULL, 0, err) && !gla_state_save(s, &p, NULL, path, err), "%s: save: %s", name, err);
        check(!gla_state_load(back, &q, path, err) && gla_state_pos(back) == 15 && same(gla_logits(back), gla_logits(s), vocab), "%s: load: %s", name, err);
        check(!memcmp(&p, &q, sizeof p), "%s: the sampler comes back", name);
        check(!gla_eval(back, ids + 15, N - 15, tail, N - 15, err) && same(tail, whole + 15 * vocab, (N - 15) * vocab), "%s: save and load are not the straight run", name);
        check(gla_state_load(wrong, NULL, path, err) == GLA_INPUT && is_sentence(err), "%s: a session of another model: %s", name, err);
        if (m->kv_floats) check(gla_state_load(small, NULL, path, err) == GLA_CONTEXT && strstr(err, "15") && strstr(err, "10"), "%s: a session longer than the context: %s", name, err);
        check(!gla_state_save(s, NULL, NULL, path, err) && !gla_state_load(back, &q, path, err) && !memcmp(&p, &q, sizeof p), "%s: without a sampler", name);
        int32_t stored[15], few[4] = {-7, -7, -7, -7};
        check(gla_session_ids(m, path, NULL, 0, err) == 0, "%s: a session without ids", name);
        check(!gla_state_save(s, NULL, ids, path, err) && gla_session_ids(m, path, stored, 15, err) == 15 && !memcmp(stored, ids, sizeof stored), "%s: a session with ids: %s", name, err);
        check(gla_session_ids(m, path, few, 3, err) == 15 && few[2] == ids[2] && few[3] == -7, "%s: three of its ids", name);
        check(gla_session_ids(other, path, NULL, 0, err) == GLA_INPUT && is_sentence(err), "%s: ids of another model: %s", name, err);
        check(!gla_state_load(back, NULL, path, err) && same(gla_logits(back), gla_logits(s), vocab), "%s: load with ids: %s", name, err);
        void *place = block(gla_snapshot_bytes(m)); /* on from a snapshot, twice */
        gla_snapshot(back, place);
        for (int k = 0; k < 2; k++) {
            check(!gla_eval(back, ids + 15, N - 15, tail, N - 15, err) && same(tail, whole + 15 * vocab, (N - 15) * vocab), "%s: on from a snapshot", name);
            gla_rewind(back, place);
            check(gla_state_pos(back) == 15 && same(gla_logits(back), gla_logits(s), vocab), "%s: rewound", name);
        }
        free(place);
        uint8_t *good = slurp(path, &n);
        check(good != NULL, "%s: the session file", name);

        /* damage: refused in one sentence, the sampler untouched, the state still usable */
        for (size_t k = 0; good && k < 700; k++) {
            size_t at = k < 300 ? k : k < 350 ? n - 1 - (k - 300) : rnd() % n, cut = k % 2 ? at : n;
            uint8_t *bad = block(n);
            memcpy(bad, good, n);
            if (cut == n) bad[at] ^= (uint8_t)(1 << rnd() % 8);
            spill(path, bad, cut);
            memset(&q, 0, sizeof q);
            int code = gla_state_load(back, &q, path, err);
            check(code < 0 && is_sentence(err) && q.rng == 0 && q.repeat_penalty == 0, "%s: %s at byte %zu of %zu: %s", name, cut == n ? "a flipped bit" : "cut", at, n, code ? err : "accepted");
            free(bad);
        }
        gla_state_reset(back);
        check(!gla_eval(back, ids, N, tail, N, err) && same(tail, whole, N * vocab), "%s: the state after failed loads", name);
        if (good && !m->kv_floats) { /* hostile, with a checksum that is right */
            static const int64_t positions[] = {-1, INT64_MIN, INT64_MAX, INT64_MAX - 3};
            for (size_t k = 0; k < sizeof positions / sizeof *positions; k++) {
                s->pos = positions[k];
                int code = gla_state_save(s, NULL, NULL, path, err);
                check(code == GLA_OK, "%s: %s", name, err);
                code = gla_state_load(back, NULL, path, err);
                check(code < 0 && is_sentence(err), "%s: a session at position %lld: %s", name, (long long)positions[k], code ? err : "accepted");
            }
        }
        spill(path, "GLASTATE", 8);
        check(gla_state_load(back, NULL, path, err) < 0 && is_sentence(err), "%s: eight bytes: %s", name, err);
        remove(path);
        check(gla_state_load(back, NULL, path, err) == GLA_IO && is_sentence(err), "%s: no file: %s", name, err);
        check(gla_state_save(s, NULL, NULL, "/nonexistent/folder/session", err) == GLA_IO && is_sentence(err), "%s: no folder: %s", name, err);
#ifdef HAVE_POSIX
        struct rlimit limit, low; /* a disk that is full after 1000 bytes: the old file stays, the temporary one goes */
        char temporary[530], old[8] = "";
        snprintf(temporary, sizeof temporary, "%s.tmp", path);
        spill(path, "thesis", 6); /* of another program: stays, on any disk */
        check(gla_state_save(s, NULL, NULL, path, err) == GLA_INPUT && is_sentence(err), "%s: a file that is no session: %s", name, err);
        spill(path, session_magic, 8);
        signal(SIGXFSZ, SIG_IGN);
        getrlimit(RLIMIT_FSIZE, &limit);
        low = limit, low.rlim_cur = 1000;
        setrlimit(RLIMIT_FSIZE, &low);
        check(gla_state_save(s, NULL, NULL, path, err) == GLA_IO && is_sentence(err), "%s: a full disk: %s", name, err);
        setrlimit(RLIMIT_FSIZE, &limit);
        FILE *f = fopen(path, "rb"), *left = fopen(temporary, "rb");
        check(f && fread(old, 1, 8, f) == 8 && !memcmp(old, session_magic, 8) && !left, "%s: after a failed write the old file is gone or the temporary one is left", name);
        if (f) fclose(f);
        if (left) fclose(left);
        remove(path);
#endif
        gla_state_free(s), gla_state_free(back), gla_state_free(small), gla_state_free(wrong), gla_close(m), gla_close(other);
        free(file), free(other_file), free(ids), free(whole), free(tail), free(good);
    }
}

/* ---- 11. chat ----------------------------------------------------------------------------------------------------------------- */

/* A copy of a model file with one more string, its chat template: blanks behind it keep the tensors aligned. */
static uint8_t *with_template(const uint8_t *file, size_t n, const char *text, size_t *n_bytes) {
    static const char key[] = "tokenizer.chat_template";
    uint64_t keys, len = strlen(text), key_len = sizeof key - 1;
    uint32_t type = GGUF_STR;
    while ((8 + key_len + 4 + 8 + len) % 64) len++;
    size_t more = (size_t)(8 + key_len + 4 + 8 + len);
    uint8_t *out = block(n + more), *p = out + 24;
    memcpy(out, file, 24), memcpy(&keys, out + 16, 8), keys++, memcpy(out + 16, &keys, 8);
    memcpy(p, &key_len, 8), memcpy(p + 8, key, key_len), memcpy(p + 8 + key_len, &type, 4), memcpy(p + 12 + key_len, &len, 8);
    memset(p + 20 + key_len, ' ', len), memcpy(p + 20 + key_len, text, strlen(text));
    memcpy(out + 24 + more, file + 24, n - 24);
    *n_bytes = n + more;
    return out;
}

static void text_of(char *out, size_t cap, const GlaModel *m, const int32_t *ids, int64_t from, int64_t to) { /* special tokens written out */
    size_t n = 0;
    for (int64_t i = from; i < to && n + 300 < cap; i++) n += gla_piece(m, ids[i], GLA_SPECIAL, out + n, 300);
    out[n] = 0;
}

/* Does the state hold what its ids leave behind in a straight run? */
static void check_straight(const GlaChat *c, const GlaState *s, const char *what) {
    char err[GLA_ERR] = "";
    GlaState *fresh = state_of(s->m, s->ctx, 64, 1);
    check(!gla_eval(fresh, gla_chat_ids(c), gla_state_pos(s), NULL, 0, err), "%s: %s", what, err);
    check(gla_state_pos(fresh) == gla_state_pos(s) && same(gla_logits(fresh), gla_logits(s), (size_t)s->m->config.vocab_size), "%s: the logits are not those of a straight run", what);
    check(same(fresh->fixed, s->fixed, s->m->fixed_floats), "%s: the recurrent state is not that of a straight run", what);
    gla_state_free(fresh);
}

static void test_chat_templates(void) {
    static const struct { const char *name, *marks, *want; } cases[] = { /* two turns after the system prompt; ~ is an answer. Only what a family has in common: no template is one that is known */
        {"ChatML", "{{'<|im_start|>'}}", "<|im_start|>system\nBe.<|im_end|>\n<|im_start|>user\n Hi\n<|im_end|>\n<|im_start|>assistant\n~<|im_end|>\n<|im_start|>user\nYo<|im_end|>\n<|im_start|>assistant\n~"},
        {"Llama 3", "<|start_header_id|>", "<|start_header_id|>system<|end_header_id|>\n\nBe.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n~"
            "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nYo<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n~"},
        {"Gemma", "<start_of_turn>", "<start_of_turn>user\nBe.\n\nHi<end_of_turn>\n<start_of_turn>model\n~<end_of_turn>\n<start_of_turn>user\nYo<end_of_turn>\n<start_of_turn>model\n~"},
        {"Kimi", "<|im_system|> <|im_middle|>", "<|im_system|>system<|im_middle|>Be.<|im_end|><|im_user|>user<|im_middle|> Hi\n<|im_end|><|im_assistant|>assistant<|im_middle|>~<|im_end|><|im_user|>user<|im_middle|>Yo<|im_end|><|im_assistant|>assistant<|im_middle|>~"},
        {"Granite 4.1", "<|start_of_role|>", "<|start_of_role|>system<|end_of_role|>Be.<|end_of_text|>\n<|start_of_role|>user<|end_of_role|> Hi\n<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>~<|end_of_text|>\n"
            "<|start_of_role|>user<|end_of_role|>Yo<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>~"},
        {"Phi-3", "<|user|> <|end|>", "<|system|>\nBe.<|end|>\n<|user|>\n Hi\n<|end|>\n<|assistant|>\n~<|end|>\n<|user|>\nYo<|end|>\n<|assistant|>\n~"},
        {"Phi-4", "<|im_start|> <|im_sep|>", "<|im_start|>system<|im_sep|>Be.<|im_end|><|im_start|>user<|im_sep|> Hi\n<|im_end|><|im_start|>assistant<|im_sep|>~<|im_end|><|im_start|>user<|im_sep|>Yo<|im_end|><|im_start|>assistant<|im_sep|>~"},
        {"Zephyr", "<|user|> eos_token", "<|system|>\nBe.<|endoftext|>\n<|user|>\n Hi\n<|endoftext|>\n<|assistant|>\n~<|endoftext|>\n<|user|>\nYo<|endoftext|>\n<|assistant|>\n~"},
        {"Mistral", "[INST]", "[INST] Be.\n\n Hi\n [/INST]~<|endoftext|>[INST] Yo [/INST]~"},
        {"plain", "{{ messages }}", "Be.\n\nUser: Hi\n\nAssistant:~\n\nUser: Yo\n\nAssistant:~"},
    };
    size_t n_tiny;
    uint8_t *tiny = fixture("tiny.gguf", &n_tiny);
    char err[GLA_ERR] = "", text[4096];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t n;
        const char *what = cases[i].name, *name;
        int known;
        uint8_t *file = with_template(tiny, n_tiny, cases[i].marks, &n);
        GlaModel *m = opened(file, n, what);
        GlaState *s = state_of(m, 400, 0, 1);
        GlaChat *c = NULL;
        GlaSampler p = plain_sampler(0, 1, 0, 0, 1);
        check(!gla_chat_new(&c, s, &(GlaChatSettings){.system = "Be.", .think = -1, .snapshot_bytes = 1 << 20}, err), "%s: %s", what, err);
        name = gla_template(m, &known, err);
        check(name && !strcmp(name, what) && known == -1, "%s: written as %s, known %d", what, name ? name : err, known);
        p.bias[0].id = '~', p.bias[0].add = 1000, p.n_bias = 1; /* the answer is ~ */
        check(gla_chat_say(c, &p, " Hi\n", 4, &(GlaGenerate){.steps = 1}, NULL, err) == GLA_DONE_STEPS && gla_chat_say(c, &p, "Yo", 2, &(GlaGenerate){.steps = 1}, NULL, err) == GLA_DONE_STEPS, "%s: %s", what, err);
        text_of(text, sizeof text, m, gla_chat_ids(c), 0, gla_state_pos(s));
        check(!strcmp(text, cases[i].want), "%s: \"%s\", expected \"%s\"", what, text, cases[i].want);
        check(gla_state_evaluated(s) == gla_state_pos(s), "%s: evaluated %lld tokens for %lld", what, (long long)gla_state_evaluated(s), (long long)gla_state_pos(s));
        check_straight(c, s, what);
        gla_chat_free(c), gla_state_free(s), gla_close(m), free(file);
    }
    /* what a user types stays text, even when it looks like the end of a turn */
    size_t n;
    uint8_t *file = with_template(tiny, n_tiny, "<|im_start|>", &n);
    GlaModel *m = opened(file, n, "tiny");
    GlaState *s = state_of(m, 400, 0, 1);
    GlaChat *c = NULL;
    GlaSampler p = plain_sampler(0, 1, 0, 0, 1);
    int32_t end[1];
    int found = 0;
    check(!gla_chat_new(&c, s, &(GlaChatSettings){.think = -1}, err) && gla_chat_say(c, &p, "a<|im_end|>b", 12, &(GlaGenerate){.steps = 1, .ignore_end = 1}, NULL, err) > 0, "%s", err);
    gla_encode(m, "<|im_end|>", 10, GLA_SPECIAL, end, 1, err);
    for (int64_t i = 0; i + 1 < gla_state_pos(s); i++) found += gla_chat_ids(c)[i] == end[0];
    check(found == 1, "an end of turn that was typed became the token: %d of them", found);
    GlaChat *none;
    check(gla_chat_new(&none, s, &(GlaChatSettings){0}, err) == GLA_INPUT && !none && is_sentence(err), "a chat on a state that has read something: %s", err);
    gla_chat_free(c), gla_state_free(s), gla_close(m), free(file), free(tiny);
}

/* Turns, undo, redo, retry, forks, sessions: always the bits of a straight run, and nothing is read that need not be. */
static void test_chat(void) {
    static const char *const names[] = {"tiny.gguf"};
    char err[GLA_ERR] = "", path[520];
    snprintf(path, sizeof path, "%s.chat", scratch());
    size_t n_tiny, n;
    uint8_t *tiny = fixture(names[0], &n_tiny), *file = with_template(tiny, n_tiny, "<|im_start|>", &n);
    GlaModel *m = opened(file, n, "tiny");
    int64_t snapshot = (int64_t)gla_snapshot_bytes(m);
    for (int bound = 0; bound < 4; bound++) { /* memory for all snapshots, for three, for one, for none */
        GlaState *s = state_of(m, 2000, 16, 1), *s2 = NULL;
        GlaChat *c = NULL, *d = NULL;
        GlaSampler p = plain_sampler(1, 0.95f, 0, 0, 5);
        GlaGenerate how = {.steps = 9, .ignore_end = 1};
        GlaTurn turn;
        int64_t ends[8] = {0}, before, kept_bytes = bound == 0 ? 1 << 20 : bound == 1 ? 3 * snapshot : bound == 2 ? snapshot : 0;
        uint64_t logits[8] = {0};
        check(!gla_chat_new(&c, s, &(GlaChatSettings){.system = "Once", .think = -1, .loop_tokens = 0, .snapshot_bytes = kept_bytes}, err), "%s", err);
        for (int t = 1; t < 8; t++) {
            before = gla_state_evaluated(s);
            check(gla_chat_say(c, &p, "upon the time", 13, &how, &turn, err) == GLA_DONE_STEPS && turn.made == 9 && turn.said && turn.done == GLA_DONE_STEPS, "say: %s", err);
            ends[t] = gla_state_pos(s), logits[t] = hash_bytes(HASH_SEED, gla_logits(s), (size_t)m->config.vocab_size * 4);
            check(gla_state_evaluated(s) - before == ends[t] - ends[t - 1] && turn.read + turn.made == ends[t] - ends[t - 1], "turn %d evaluated %lld tokens for %lld", t, (long long)(gla_state_evaluated(s) - before), (long long)(ends[t] - ends[t - 1]));
            check((int64_t)gla_chat_snapshot_bytes(c) <= kept_bytes, "snapshots of %zu bytes, the bound is %lld", gla_chat_snapshot_bytes(c), (long long)kept_bytes);
        }
        check_straight(c, s, "seven turns");
        int32_t *all = block((size_t)ends[7] * sizeof *all);
        memcpy(all, gla_chat_ids(c), (size_t)ends[7] * sizeof *all);
        int at = 7, undone = -1;
        for (int i = 0; i < 60; i++) { /* back and forth */
            int by = (int)(rnd() % 7) - 3, ok = at + by >= 0 && at + by <= 7;
            before = gla_state_evaluated(s);
            int code = gla_chat_go(c, &p, by, err);
            check(ok ? code == GLA_OK : code == GLA_INPUT && is_sentence(err), "from turn %d by %d: %s", at, by, err);
            if (ok) at += by;
            check(gla_chat_turns(c, &undone) == at && undone == 7 - at, "at turn %d", at);
            check(at == 0 || (gla_state_pos(s) == ends[at] && hash_bytes(HASH_SEED, gla_logits(s), (size_t)m->config.vocab_size * 4) == logits[at]), "turn %d after going back and forth has other logits", at);
            check(bound > 0 || gla_state_evaluated(s) == before, "going by %d read %lld tokens again", by, (long long)(gla_state_evaluated(s) - before));
        }
        check(!gla_chat_go(c, &p, 5 - at, err), "to turn 5: %s", err);
        check_straight(c, s, "five turns of seven");
        check(gla_chat_turns(c, NULL) == 5 && !memcmp(all, gla_chat_ids(c), (size_t)ends[5] * sizeof *all), "five turns");
        check(!gla_chat_clone(&d, &s2, c, err), "fork: %s", err);
        before = gla_state_evaluated(s);
        check(gla_chat_retry(c, &p, &how, &turn, err) == GLA_DONE_STEPS && turn.made == 9, "retry: %s", err);
        check(bound > 0 || gla_state_evaluated(s) - before <= 9 + ends[5] - ends[4], "retry evaluated %lld tokens", (long long)(gla_state_evaluated(s) - before));
        before = gla_state_evaluated(s);
        check(gla_chat_retry(c, &p, &how, &turn, err) == GLA_DONE_STEPS, "retry again: %s", err);
        check(bound == 3 || gla_state_evaluated(s) - before == 9, "the second retry evaluated %lld tokens", (long long)(gla_state_evaluated(s) - before));
        check(gla_state_pos(s) == ends[5] && memcmp(all, gla_chat_ids(c), (size_t)ends[5] * sizeof *all) && !memcmp(all, gla_chat_ids(c), (size_t)(ends[5] - 9) * sizeof *all), "another answer to the same message");
        check_straight(c, s, "retried");
        check(gla_chat_go(c, &p, 1, err) == GLA_INPUT, "after another answer nothing is left to redo");
        check(gla_chat_say(d, &p, "the end", 7, &how, NULL, err) > 0 && gla_chat_turns(d, NULL) == 6 && !memcmp(all, gla_chat_ids(d), (size_t)ends[5] * sizeof *all), "the fork goes on: %s", err);
        check_straight(d, s2, "the fork");
        check(!gla_chat_go(d, &p, -4, err) && gla_state_pos(s2) == ends[2], "the fork undoes turns from before it: %s", err);
        check_straight(d, s2, "the fork, undone");

        /* a session, loaded into another chat: its turns are found again */
        check(!gla_chat_save(c, &p, path, err), "save: %s", err);
        int64_t pos = gla_state_pos(s);
        check(gla_session_ids(m, path, NULL, 0, err) == pos, "the session holds %lld ids", (long long)gla_session_ids(m, path, NULL, 0, err));
        check(!gla_chat_load(d, &p, path, err) && gla_chat_turns(d, NULL) == 5 && gla_state_pos(s2) == pos && !memcmp(gla_chat_ids(d), gla_chat_ids(c), (size_t)pos * sizeof *all), "load: %s, %d turns", err, gla_chat_turns(d, NULL));
        check_straight(d, s2, "loaded");
        check(gla_chat_retry(d, &p, &how, &turn, err) > 0 && gla_state_pos(s2) == pos && !memcmp(all, gla_chat_ids(d), (size_t)(ends[5] - 9) * sizeof *all), "retry after loading: %s", err);
        check(!gla_chat_go(d, &p, -3, err) && gla_state_pos(s2) == ends[2], "undo after loading: %s, at %lld, expected %lld", err, (long long)gla_state_pos(s2), (long long)ends[2]);
        check_straight(d, s2, "loaded and undone");
        size_t n_file;
        uint8_t *good = slurp(path, &n_file);
        good[n_file - 20] ^= 1, spill(path, good, n_file), free(good);
        check(gla_chat_load(d, &p, path, err) == GLA_FORMAT && is_sentence(err) && gla_state_pos(s2) == ends[2], "a damaged session: %s", err);
        check_straight(d, s2, "after a damaged session");

        /* the oldest turns leave */
        check(gla_chat_forget(c, 60, NULL, err) > 0 && gla_state_pos(s) <= 60 && gla_chat_turns(c, NULL) >= 1, "forget: %s", err);
        char text[2048];
        text_of(text, sizeof text, m, gla_chat_ids(c), 0, gla_state_pos(s));
        check(!strncmp(text, "<|im_start|>system\nOnce<|im_end|>\n<|im_start|>user\nupon the time<|im_end|>", 70), "what remains: %s", text);
        check_straight(c, s, "after forgetting");
        check(gla_chat_say(c, &p, "x", 1, &how, NULL, err) > 0 && !gla_chat_go(c, &p, -1, err) && gla_chat_retry(c, &p, &how, NULL, err) > 0, "and on: %s", err);
        check_straight(c, s, "after forgetting and going on");
        gla_chat_free(c), gla_chat_free(d), gla_state_free(s), gla_state_free(s2), free(all);
    }
    remove(path);
    /* a full context */
    GlaState *s = state_of(m, 40, 16, 1);
    GlaChat *c = NULL;
    GlaSampler p = plain_sampler(0, 1, 0, 0, 5);
    GlaTurn turn;
    check(!gla_chat_new(&c, s, &(GlaChatSettings){.think = -1, .snapshot_bytes = 1 << 20}, err), "%s", err);
    check(gla_chat_say(c, &p, "x", 1, &(GlaGenerate){.ignore_end = 1, .steps = 5}, &turn, err) == GLA_DONE_STEPS, "a short answer: %s", err);
    int64_t pos = gla_state_pos(s);
    check(gla_chat_say(c, &p, "a message that is too long for it", 33, &(GlaGenerate){.steps = 1}, &turn, err) == GLA_CONTEXT && strstr(err, "40") && is_sentence(err) && gla_state_pos(s) == pos && !turn.said, "a message that does not fit: %s", err);
    check_straight(c, s, "after a message that did not fit");
    check(gla_chat_retry(c, &p, &(GlaGenerate){.ignore_end = 1}, &turn, err) == GLA_DONE_CONTEXT && gla_state_pos(s) == 40, "an answer up to the end of the context: %s", err);
    gla_chat_free(c), gla_state_free(s), gla_close(m), free(file), free(tiny);
}

typedef struct { char text[2][256]; const GlaChat *c; int stop_at_run; } Told; /* what was said, what was thought */
static int tell(void *user, int32_t id, const char *text, size_t n) {
    Told *t = user;
    strncat(t->text[gla_chat_thinking(t->c) != 0], text, n);
    return t->stop_at_run && id < 0 && !n && !--t->stop_at_run;
}

static void test_chat_thinking(void) {
    static const char *const tokens[] = {"<|im_start|>", "<|im_end|>", "<think>", "</think>", "k", "b", "c", "d", "x"};
    static const uint32_t token_types[] = {3, 3, 4, 4, 4, 4, 4, 4, 4};
    static const char qwen3[] = "<|im_start|> <think> {%- if add_generation_prompt %}<|im_start|>assistant\\n{%- if enable_thinking is false %}'<think>\\n\\n</think>\\n\\n'",
        qwen35[] = "<|im_start|> <think> {%- if add_generation_prompt %}{%- if enable_thinking is true %}'<think>\\n'{% else %}'<think>\\n\\n</think>\\n\\n'";
    static const struct { const char *what, *form; int think; int64_t budget; const char *said, *thought, *ids; int cut; } cases[] = {
        {"thinks by itself", qwen3, -1, 0, "cd", "kb", "<|im_start|>x<|im_end|><|im_start|><think>kb</think>cd", 0},
        {"asked not to think", qwen3, 0, 0, "cd", "", "<|im_start|>x<|im_end|><|im_start|><think></think>cd", 0},
        {"a budget of one token", qwen3, 1, 1, "cd", "k", "<|im_start|>x<|im_end|><|im_start|><think>k</think>cd", 1},
        {"a budget of three", qwen3, 1, 3, "cd", "kb", "<|im_start|>x<|im_end|><|im_start|><think>kb</think>cd", 0},
        {"does not think by itself", qwen35, -1, 0, "cd", "", "<|im_start|>x<|im_end|><|im_start|><think></think>cd", 0},
        {"asked to think", qwen35, 1, 0, "cd", "kb", "<|im_start|>x<|im_end|><|im_start|><think>kb</think>cd", 0},
        {"asked to think, with a budget", qwen35, 1, 1, "cd", "k", "<|im_start|>x<|im_end|><|im_start|><think>k</think>cd", 1},
    };
    char err[GLA_ERR] = "", text[512];
    size_t n_plain, n;
    uint8_t *plain = chain_model(tokens, (int[]){2, 0, 4, 6, 5, 3, 7, 1, 8}, token_types, 9, 1000, &n_plain);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint8_t *file = with_template(plain, n_plain, cases[i].form, &n);
        GlaModel *m = opened(file, n, cases[i].what);
        GlaState *s = state_of(m, 0, 2, 1);
        GlaChat *c = NULL;
        GlaSampler p = plain_sampler(0, 1, 0, 0, 1);
        GlaTurn turn;
        int64_t before = 0;
        check(!gla_chat_new(&c, s, &(GlaChatSettings){.think = cases[i].think, .think_budget = cases[i].budget, .snapshot_bytes = 1 << 20}, err) && gla_chat_may_think(c), "%s: %s", cases[i].what, err);
        for (int t = 0; t < 20; t++) { /* sampled ids are kept, thoughts too: nothing is ever read again */
            Told told = {.c = c};
            check(gla_chat_say(c, &p, "x", 1, &(GlaGenerate){.emit = tell, .user = &told}, &turn, err) == GLA_DONE_END, "%s: %s", cases[i].what, err);
            check(!strcmp(told.text[0], cases[i].said) && !strcmp(told.text[1], cases[i].thought) && turn.budget == cases[i].cut, "%s: said \"%s\", thought \"%s\"", cases[i].what, told.text[0], told.text[1]);
            text_of(text, sizeof text, m, gla_chat_ids(c), before + (t > 0), gla_state_pos(s));
            check(!strcmp(text, cases[i].ids), "%s: turn %d is %s", cases[i].what, t, text);
            before = gla_state_pos(s);
            check(gla_state_evaluated(s) == gla_state_pos(s), "%s: turn %d, evaluated %lld tokens for %lld", cases[i].what, t, (long long)gla_state_evaluated(s), (long long)gla_state_pos(s));
        }
        if (i == 0) { /* interrupted while the message is read: as if it had not been said */
            Told told = {.c = c, .stop_at_run = 1};
            int64_t pos = gla_state_pos(s);
            check(gla_chat_say(c, &p, "xxxxxxx", 7, &(GlaGenerate){.emit = tell, .user = &told}, &turn, err) == GLA_DONE_CALLER && !turn.said && gla_state_pos(s) == pos && gla_chat_turns(c, NULL) == 20, "interrupted: %s", err);
            check_straight(c, s, "interrupted while reading");
        }
        gla_chat_free(c), gla_state_free(s), gla_close(m), free(file);
    }
    free(plain);
    /* a text that repeats itself: the penalty is raised, then the answer ends; the caller's penalty comes back */
    plain = chain_model(tokens, (int[]){8, 0, 4, 6, 8, 3, 7, 1, 4}, token_types, 9, 1000, &n_plain);
    uint8_t *file = with_template(plain, n_plain, "<|im_start|>", &n);
    GlaModel *m = opened(file, n, "a loop");
    for (int guard = 0; guard < 2; guard++) {
        GlaState *s = state_of(m, 0, 0, 1);
        GlaChat *c = NULL;
        GlaSampler p = plain_sampler(0, 1, 0, 0, 1);
        GlaTurn turn;
        check(!gla_chat_new(&c, s, &(GlaChatSettings){.think = -1, .loop_tokens = guard ? 30 : 0}, err), "%s", err);
        int done = gla_chat_say(c, &p, "x", 1, &(GlaGenerate){.steps = 200}, &turn, err);
        check(guard ? done == GLA_DONE_LOOP && turn.loops == 2 && turn.made == 62 : done == GLA_DONE_STEPS && turn.loops == 0 && turn.made == 200, "a loop, guard %d: ended with %d after %lld tokens, %d loops", guard, done, (long long)turn.made, turn.loops);
        check(p.repeat_penalty == 1, "the repeat penalty stays %g", p.repeat_penalty);
        gla_chat_free(c), gla_state_free(s);
    }
    /* an answer that fails leaves its message read, in a copy as well */
    GlaState *s = state_of(m, 0, 2, 1), *s2 = NULL;
    GlaChat *c = NULL, *d = NULL;
    GlaSampler p = plain_sampler(0, 1, 0, 0, 1);
    check(!gla_chat_new(&c, s, &(GlaChatSettings){.think = -1}, err) && gla_chat_say(c, &p, "x", 1, &(GlaGenerate){.json = 1}, NULL, err) == GLA_INPUT && gla_state_pos(s) > 0, "no JSON: %s", err);
    check(!gla_chat_clone(&d, &s2, c, err) && gla_state_pos(s2) == gla_state_pos(s) && gla_chat_ids(d) && !memcmp(gla_chat_ids(d), gla_chat_ids(c), (size_t)gla_state_pos(s) * sizeof(int32_t)), "a copy after an answer that failed: %s", err);
    gla_chat_free(d), gla_state_free(s2), gla_chat_free(c), gla_state_reset(s);
    /* interrupted while messages that were given are read: there are no turns yet */
    const GlaMessage given[] = {{GLA_USER, "x", 1}, {GLA_ASSISTANT, "k", 1}, {GLA_USER, "x", 1}, {GLA_ASSISTANT, "b", 1}};
    check(!gla_chat_new(&c, s, &(GlaChatSettings){.think = -1, .messages = given, .n_messages = 4}, err), "%s", err);
    Told told = {.c = c, .stop_at_run = 2};
    check(gla_chat_say(c, &p, "x", 1, &(GlaGenerate){.emit = tell, .user = &told}, NULL, err) == GLA_DONE_CALLER && gla_state_pos(s) == 0 && gla_chat_turns(c, NULL) == 0, "interrupted at the first message: %d turns", gla_chat_turns(c, NULL));
    check(gla_chat_forget(c, 10, NULL, err) == GLA_INPUT && is_sentence(err), "nothing to forget: %s", err);
    gla_chat_free(c), gla_state_free(s);
    gla_close(m), free(file), free(plain);
}

/* The prompt cache: the longest stored beginning, a bound in bytes, damage. */
static void test_cache(void) {
#ifdef HAVE_POSIX
    enum { N = 60 };
    char folder[520], path[1200], err[GLA_ERR] = "", command[700];
    size_t n_file;
    uint8_t *file = fixture("qwen35.gguf", &n_file);
    GlaModel *m = opened(file, n_file, "qwen35");
    int32_t *ids = random_ids(N, m->config.vocab_size), *other = random_ids(N, m->config.vocab_size);
    memcpy(other, ids, 30 * sizeof *ids);
    snprintf(folder, sizeof folder, "%s.cache", scratch());
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    if (system(command)) check(0, "cannot remove %s", folder);
    float *whole = logits_of(m, ids, N, N, 0, 1);
    GlaState *s = state_of(m, 100, 0, 1), *back = state_of(m, 100, 0, 1), *small = state_of(m, 25, 0, 1);
    check(gla_cache_load(back, folder, ids, N, err) == 0, "a folder that is not there: %s", err);
    for (int i = 0; i < 4; i++) check(!gla_eval(s, ids + 10 * i, 10, NULL, 0, err) && !gla_cache_store(s, folder, ids, 1 << 30, err), "store %d: %s", i, err);
    check(gla_cache_load(back, folder, ids, N, err) == 40 && same(gla_logits(back), gla_logits(s), (size_t)m->config.vocab_size), "the longest of four: %s", err);
    check(!gla_eval(back, ids + 40, N - 40, NULL, 0, err) && same(gla_logits(back), whole + (size_t)(N - 1) * (size_t)m->config.vocab_size, (size_t)m->config.vocab_size), "from the cache on, the straight run's logits");
    check(gla_cache_load(back, folder, ids, N, err) == GLA_INPUT && is_sentence(err), "into a state that has read something: %s", err);
    static const struct { int n, other, want; } asks[] = {{40, 0, 40}, {39, 0, 30}, {10, 0, 10}, {9, 0, 0}, {0, 0, 0}, {N, 1, 30}};
    for (size_t i = 0; i < sizeof asks / sizeof *asks; i++) {
        gla_state_reset(back);
        check(gla_cache_load(back, folder, asks[i].other ? other : ids, asks[i].n, err) == asks[i].want && gla_state_pos(back) == asks[i].want, "asked for %d ids", asks[i].n);
    }
    check(gla_cache_load(small, folder, ids, N, err) == 20, "a context of 25 takes the one of 20");
    /* damage: the next one is taken. A cut file, then one with a wrong name */
    snprintf(path, sizeof path, "%s/%016llx-%016llx-40.gla", folder, (unsigned long long)fingerprint(m), (unsigned long long)hash_bytes(HASH_SEED, ids, 40 * sizeof *ids));
    size_t n;
    uint8_t *good = slurp(path, &n);
    check(good != NULL, "the name of a snapshot: %s", path);
    if (good) {
        for (int k = 0; k < 20; k++) {
            uint8_t *bad = block(n);
            memcpy(bad, good, n);
            if (k % 2) bad[rnd() % n] ^= 4;
            spill(path, bad, k % 2 ? n : rnd() % n), free(bad);
            gla_state_reset(back);
            check(gla_cache_load(back, folder, ids, N, err) == 30, "a damaged snapshot: the one before it, %lld", (long long)gla_state_pos(back));
        }
        snprintf(path, sizeof path, "%s/%016llx-%016llx-45.gla", folder, (unsigned long long)fingerprint(m), (unsigned long long)hash_bytes(HASH_SEED, ids, 45 * sizeof *ids));
        spill(path, good, n); /* says 45, holds 40 */
        gla_state_reset(back);
        check(gla_cache_load(back, folder, ids, N, err) == 30, "a snapshot under another's name");
        remove(path);
    }
    /* a bound: the oldest leave */
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    if (system(command)) check(0, "cannot remove %s", folder);
    gla_state_reset(s);
    uint64_t bound = 0;
    for (int i = 0; i < 6; i++) {
        struct timespec pause = {0, 20000000};
        nanosleep(&pause, NULL);
        gla_eval(s, ids + 10 * i, 10, NULL, 0, err);
        bound = 3 * session_bytes(s, s->pos);
        check(!gla_cache_store(s, folder, ids, bound, err), "store: %s", err);
        CacheOldest c = {0, 0, ""};
        read_folder(folder, cache_oldest, &c, err);
        check(c.total <= bound && c.total >= bound / 4, "%llu bytes of at most %llu", (unsigned long long)c.total, (unsigned long long)bound);
    }
    gla_state_reset(back);
    check(gla_cache_load(back, folder, ids, 30, err) == 0, "the oldest have left: %lld", (long long)gla_state_pos(back));
    check(gla_cache_load(back, folder, ids, N, err) == N, "the youngest is there");
    check(gla_cache_store(s, folder, ids, 1000, err) == GLA_INPUT && is_sentence(err), "a snapshot larger than the cache: %s", err);
    snprintf(path, sizeof path, "%s/file", folder);
    spill(path, "x", 1);
    gla_state_reset(back);
    check(gla_cache_load(back, path, ids, N, err) == GLA_IO && is_sentence(err) && gla_cache_store(s, path, ids, 1 << 30, err) < 0 && is_sentence(err), "a file instead of a folder: %s", err);
    if (system(command)) check(0, "cannot remove %s", folder);
    gla_state_free(s), gla_state_free(back), gla_state_free(small), gla_close(m), free(file), free(ids), free(other), free(whole), free(good);
#endif
}

/* Sessions of every type of keys and values: longer than a block, bit for bit, and not into a state of another type. */
static void test_kv_sessions(void) {
    enum { N = 150, SAVED = 70 };
    size_t n_file;
    char err[GLA_ERR] = "", path[520];
    snprintf(path, sizeof path, "%s.session", scratch());
    uint8_t *file = fixture("qwen35.gguf", &n_file);
    GlaModel *m = opened(file, n_file, "qwen35");
    size_t vocab = (size_t)m->config.vocab_size, sizes[GLA_N_KV] = {0};
    int32_t *ids = random_ids(N, (int)vocab);
    for (int kv = GLA_KV_F32; kv < GLA_N_KV; kv++) {
        GlaState *s, *back, *copy = NULL, *other;
        size_t n, n_copy;
        kv_tested = kv;
        float *whole = logits_of(m, ids, N, N, 0, 1), *tail = block(N * vocab * sizeof *tail);
        s = state_of(m, 200, 0, 1), back = state_of(m, 160, 16, 2);
        kv_tested = kv == GLA_KV_F32 ? GLA_KV_Q8_0 : kv - 1, other = state_of(m, 200, 0, 1), kv_tested = 0;
        check(!gla_eval(s, ids, SAVED, NULL, 0, err) && !gla_state_save(s, NULL, NULL, path, err), "save: %s", err);
        uint8_t *first = slurp(path, &n);
        check(gla_state_load(other, NULL, path, err) == GLA_INPUT && is_sentence(err) && strstr(err, kv_names[kv]) && strstr(err, "--kv"), "a session of another type: %s", err);
        check(!gla_eval(back, ids + 80, 40, NULL, 0, err) && !gla_state_load(back, NULL, path, err), "%s: load: %s", kv_names[kv], err);
        must(gla_state_clone(&copy, back, err) ? NULL : copy);
        check(!gla_eval(back, ids + SAVED, N - SAVED, tail, N - SAVED, err) && same(tail, whole + SAVED * vocab, (N - SAVED) * vocab), "%s: save and load are not the straight run", kv_names[kv]);
        check(!gla_state_save(copy, NULL, NULL, path, err), "save: %s", err);
        uint8_t *second = slurp(path, &n_copy);
        check(n == n_copy && !memcmp(first, second, n), "%s: the clone of a loaded session is saved differently", kv_names[kv]);
        check(!gla_eval(copy, ids + SAVED, N - SAVED, tail, N - SAVED, err) && same(tail, whole + SAVED * vocab, (N - SAVED) * vocab), "%s: the clone goes on differently", kv_names[kv]);
        sizes[kv] = n;
        gla_state_free(s), gla_state_free(back), gla_state_free(copy), gla_state_free(other), free(whole), free(tail), free(first), free(second);
    }
    check(sizes[GLA_KV_F32] > sizes[GLA_KV_F16] && sizes[GLA_KV_F16] > sizes[GLA_KV_Q8_0], "sessions of %zu, %zu, %zu bytes", sizes[GLA_KV_F32], sizes[GLA_KV_F16], sizes[GLA_KV_Q8_0]);
    remove(path), gla_close(m), free(file), free(ids);
}

/* Memory that runs out at any moment: an error, and nothing is lost. */
static void test_no_memory(void) {
    static const char *const names[] = {"qwen35.gguf", "tiny.gguf", "tokenizer/qwen2.gguf", "tokenizer/llama.gguf"};
    char err[GLA_ERR] = "", path[512], session[520];
    snprintf(session, sizeof session, "%s.session", scratch());
    for (int i = 0; i < 4; i++) {
        size_t n;
        uint8_t *file = fixture(names[i], &n);
        int whole = i < 2, code = -1;
        GlaModel *m = NULL, *base = NULL;
        GlaState *s = NULL, *copy = NULL;
        if (!whole) file = (free(file), fixture("tiny.gguf", &n)), base = opened(file, n, "tiny");
        long live = heap.live, k;
        for (k = 1; k < 10000 && code; k++) {
            m = base, s = copy = NULL, err[0] = 0;
            heap.calls = 0, heap.fail_at = k;
            code = whole ? gla_open_memory(&m, file, n, err) : gla_open_tokenizer(m, path_of(path, names[i]), err);
            if (!code && whole) code = gla_state_new(&s, m, &(GlaSettings){.ctx = 16, .batch = 4, .threads = 1}, err);
            if (!code && whole) code = gla_state_clone(&copy, s, err);
            if (!code && whole) code = gla_state_save(s, NULL, NULL, session, err);
            int64_t count = code ? 0 : gla_n_tokens(m) ? gla_encode(m, "on\xC3\xA9 e\xCC\x81 upon", 12, GLA_SPECIAL, NULL, 0, err) : 0;
            if (count < 0) code = (int)count;
            heap.fail_at = 0;
            check(!code || (code == GLA_MEMORY && is_sentence(err)), "%s: without the %ldth block: %d %s", names[i], k, code, err);
            gla_state_free(s), gla_state_free(copy);
            if (whole) gla_close(m);
            else if (gla_n_tokens(base) && !code) gla_open_tokenizer(base, path_of(path, "tiny.gguf"), err);
            if (whole) check(heap.live == live, "%s: %ld blocks lost after the %ldth failed", names[i], heap.live - live, k);
        }
        check(!code && k > 5, "%s: %ld allocations", names[i], k);
        gla_close(base), free(file);
    }
    remove(session);
    check(heap.live == 0, "%ld blocks of memory were not given back", heap.live);
}

/* ---- 12. hostile files ---------------------------------------------------------------------------------------------------------- */

/* Opens bytes as a model (or as a vocabulary) from a block of exactly their size; what opens is also run. Returns the code. */
static int attempt(const uint8_t *bytes, size_t n, int vocabulary, const char *what, char *err) {
    uint8_t *exact = block(n);
    memcpy(exact, bytes, n);
    long live = heap.live;
    size_t before = heap.bytes;
    GlaModel *m = NULL;
    Gguf g = {.map = {exact, n, 0}};
    Tokenizer *t = NULL;
    double start = now_s();
    int code;
    err[0] = 0;
    if (vocabulary) {
        code = gguf_read(&g, err);
        if (!code) code = tokenizer_new(&t, &g, err);
    } else {
        code = gla_open_memory(&m, exact, n, err);
        if (!code) t = m->vocab;
    }
    check(heap.bytes - before < 400 * n + (1 << 20), "%s: %zu bytes of memory for a file of %zu", what, heap.bytes - before, n);
    check(code ? code < 0 && is_sentence(err) : 1, "%s: the message is no sentence: \"%s\"", what, err);
    if (!code) {
        char piece[64];
        int32_t ids[64];
        for (int32_t id = -1; id <= t->n && id < 400; id++) tokenizer_piece(t, id, (int)(rnd() & 7), piece, sizeof piece);
        if (t->n) tokenizer_encode(t, "once upon \xE2\x82\xAC<|im_end|>e\xCC\x81 1\n\xFF", 27, 3, ids, 64, err);
    }
    if (!code && !vocabulary) {
        GlaState *s;
        int ok = gla_state_new(&s, m, &(GlaSettings){.ctx = 6, .batch = 4, .threads = 1}, err) == GLA_OK;
        if (ok) {
            int32_t some[6];
            GlaSampler p;
            for (int i = 0; i < 6; i++) some[i] = (int32_t)(rnd() % (uint32_t)m->config.vocab_size);
            gla_eval(s, some, 6, NULL, 0, err);
            gla_sampler_init(&p, m, 1);
            int32_t id = gla_sample(&p, s);
            check(id >= 0 && id < m->config.vocab_size, "%s: sampled %d", what, id);
            gla_state_free(s);
        }
    }
    if (vocabulary) tokenizer_free(t), gguf_close(&g);
    else if (!code && *m->no_text) code = (int)gla_encode(m, "a", 1, 0, NULL, 0, err); /* it runs; only text is refused */
    gla_close(m);
    free(exact);
    check(heap.live == live, "%s: %ld blocks lost", what, heap.live - live);
    check(now_s() - start < 5, "%s: took %.1f s", what, now_s() - start);
    return code;
}

/* One edit of a good file: `width` bytes at `offset` behind the end of the text `anchor` (or from the start of the file), and what
 * the message must hold; NULL: the file still opens. A string's length stands 8 bytes before it: offset - 8 - its length. */
typedef struct { const char *file, *what, *anchor; int offset, width; uint64_t value; const char *message; } Edit;
#define KEY(name) name, 4              /* the value of a key: its name, 4 bytes of type, the value */
#define ARRAY(name) name, 4 + 4 + 8    /* the first element of an array: ... type of elements, count */
#define DIMS(name) name, 4             /* of a tensor: its name, 4 bytes of dimension count, the dimensions; then */
#define TYPE2(name) name, 4 + 16       /* ... of two dimensions the type and the offset */
#define TYPE1(name) name, 4 + 8
#define TINY "tiny.gguf"
#define QWEN "qwen35.gguf"
#define GLAF "gla.gguf"

static const Edit edits[] = {
    {TINY, "magic", NULL, 0, 4, 0x4c4d4747, "does not begin with"},
    {TINY, "a git-lfs pointer", NULL, 0, 4, 0x73726576, "git-lfs"},
    {TINY, "a web page", NULL, 0, 4, 0x4f44213c, "text"},
    {TINY, "version 0", NULL, 4, 4, 0, "big-endian"},
    {TINY, "version 1", NULL, 4, 4, 1, "version 1"},
    {TINY, "version 2", NULL, 4, 4, 2, NULL},
    {TINY, "version 4", NULL, 4, 4, 4, "version 4"},
    {TINY, "big-endian version", NULL, 4, 4, 0x03000000, "big-endian"},
    {TINY, "no tensors", NULL, 8, 8, 0, "no weights"},
    {TINY, "too many tensors", NULL, 8, 8, 1000000, "more than"},
    {TINY, "a negative number of tensors", NULL, 8, 8, UINT64_MAX, "more than"},
    {TINY, "one tensor too many", NULL, 8, 8, 30, ""},
    {TINY, "no keys", NULL, 16, 8, 0, ""},
    {TINY, "too many keys", NULL, 16, 8, 1 << 20, "more than"},
    {TINY, "a negative number of keys", NULL, 16, 8, (uint64_t)1 << 63, "more than"},
    {TINY, "one key too many", NULL, 16, 8, 27, ""},
    {TINY, "an empty key", "general.architecture", -28, 8, 0, "0 bytes"},
    {TINY, "a key that is too long", "general.architecture", -28, 8, 70000, "70000 bytes"},
    {TINY, "a key beyond the file", "general.architecture", -28, 8, 1 << 30, "cut short"},
    {TINY, "a key of 2^64 - 1 bytes", "general.architecture", -28, 8, UINT64_MAX, "cut short"},
    {TINY, "a key that occurs twice", "tokenizer.ggml.bos", -3, 1, 'e', "occurs twice"},
    {TINY, "a string beyond the file", KEY("general.architecture"), 8, 1 << 30, "runs past"},
    {TINY, "a string of 2^64 - 8 bytes", KEY("general.architecture"), 8, UINT64_MAX - 7, "runs past"},
    {TINY, "value type 13", "general.name", 0, 4, 13, "value type 13"},
    {TINY, "value type -1", "general.name", 0, 4, 0xffffffff, "value type -1"},
    {TINY, "an array of arrays", "tokenizer.ggml.merges", 4, 4, 9, "malformed"},
    {TINY, "an array of type 13", "tokenizer.ggml.merges", 4, 4, 13, "malformed"},
    {TINY, "an array of 2^63 strings", "tokenizer.ggml.merges", 8, 8, (uint64_t)1 << 63, "malformed"},
    {TINY, "an array of 2^30 strings", "tokenizer.ggml.merges", 8, 8, 1 << 30, "malformed"},
    {TINY, "an array of 2^62 integers", "tokenizer.ggml.token_type", 8, 8, (uint64_t)1 << 62, "malformed"},
    {TINY, "a string in an array beyond the file", ARRAY("tokenizer.ggml.merges"), 8, 1 << 30, "malformed"},
    {TINY, "alignment 0", KEY("general.alignment"), 4, 0, "general.alignment"},
    {TINY, "alignment 24", KEY("general.alignment"), 4, 24, "general.alignment"},
    {TINY, "alignment 2^31", KEY("general.alignment"), 4, (uint64_t)1 << 31, "general.alignment"},
    {TINY, "alignment as a float", "general.alignment", 0, 4, GGUF_F32, "general.alignment"},
    {TINY, "alignment 64", KEY("general.alignment"), 4, 64, ""},
    {TINY, "a bool of 2", KEY("tokenizer.ggml.add_bos_token"), 1, 2, NULL},
    {TINY, "a tensor name of 64 bytes", "blk.0.attn_q.weight", -27, 8, 64, "malformed name"},
    {TINY, "a tensor without a name", "blk.0.attn_q.weight", -27, 8, 0, "malformed name"},
    {TINY, "a tensor name of 2^64 - 1 bytes", "blk.0.attn_q.weight", -27, 8, UINT64_MAX, "cut short"},
    {TINY, "a NUL in a tensor name", "blk.0.attn_q", 0, 1, 0, "malformed name"},
    {TINY, "a tensor that occurs twice", "blk.0.attn_q", -1, 1, 'k', "occurs twice"},
    {TINY, "5 dimensions", "blk.0.attn_q.weight", 0, 4, 5, "5 dimensions"},
    {TINY, "2^32 - 1 dimensions", "blk.0.attn_q.weight", 0, 4, 0xffffffff, "4294967295 dimensions"},
    {TINY, "no dimensions", "blk.1.ffn_down.weight", 0, 4, 0, ""},
    {TINY, "a dimension of 0", DIMS("blk.0.attn_q.weight"), 8, 0, "dimension 0 is 0"},
    {TINY, "a negative dimension", DIMS("blk.0.attn_q.weight"), 8, UINT64_MAX, "dimension 0 is -1"},
    {TINY, "dimensions of 2^63 together", DIMS("blk.0.attn_q.weight"), 8, (uint64_t)1 << 58, "dimension 1 is"},
    {TINY, "a tensor of 2^63 bytes", DIMS("blk.0.attn_q.weight"), 8, (uint64_t)1 << 57, "truncated"},
    {TINY, "tensor type -1", TYPE2("blk.0.attn_q.weight"), 4, 0xffffffff, "unknown tensor type"},
    {TINY, "tensor type 4, removed", TYPE2("blk.0.attn_q.weight"), 4, 4, "unknown tensor type 4"},
    {TINY, "tensor type 31, removed", TYPE2("blk.0.attn_q.weight"), 4, 31, "unknown tensor type 31"},
    {TINY, "tensor type 38, removed", TYPE2("blk.0.attn_q.weight"), 4, 38, "unknown tensor type 38"},
    {TINY, "tensor type 43", TYPE2("blk.0.attn_q.weight"), 4, 43, "unknown tensor type 43"},
    {TINY, "a type that is not implemented", TYPE2("blk.0.attn_q.weight"), 4, 24, "I8"},
    {TINY, "rows that do not divide into blocks", TYPE2("blk.0.attn_q.weight"), 4, Q4_K, "blocks of 256"},
    {TINY, "a norm that is quantised", TYPE1("blk.0.attn_norm.weight"), 4, Q8_0, "Q8_0"},
    {TINY, "an offset that is not aligned", "blk.0.attn_q.weight", 4 + 16 + 4, 8, 16, "offset 16"},
    {TINY, "an offset beyond the file", "blk.0.attn_q.weight", 4 + 16 + 4, 8, 1 << 20, "truncated"},
    {TINY, "an offset of 2^64 - 32", "blk.0.attn_q.weight", 4 + 16 + 4, 8, UINT64_MAX - 31, "truncated"},
    {TINY, "tensors that overlap", "blk.0.attn_q.weight", 4 + 16 + 4, 8, 0, NULL}, /* in bounds, so harmless */
    {TINY, "a tensor that is missing", "blk.0.attn_q", -6, 1, 'y', "blk.0.attn_q.weight is missing"},
    {TINY, "a tensor with other dimensions", DIMS("blk.0.attn_q.weight"), 8, 16, "expected (32, 32)"},
    {TINY, "a norm with other dimensions", DIMS("blk.0.attn_norm.weight"), 8, 31, "31 elements"},
    {TINY, "no architecture", "general.architecture", -1, 1, 'x', "general.architecture is missing"},
    {TINY, "another architecture", "general.architecture", 12, 1, 'x', "\"xla\""},
    {TINY, "an architecture that is no text", "general.architecture", 0, 4, GGUF_U64, ""},
    {TINY, "no layers", KEY("gla.block_count"), 4, 0, "gla.block_count is 0"},
    {TINY, "a million layers", KEY("gla.block_count"), 4, 1000000, "gla.block_count is 1000000"},
    {TINY, "as many layers as tensors", KEY("gla.block_count"), 4, 29, ""},
    {TINY, "one layer", KEY("gla.block_count"), 4, 1, NULL}, /* the others are taken for drafting blocks */
    {TINY, "a negative number of layers", KEY("gla.block_count"), 4, 0xffffffff, "gla.block_count is"},
    {TINY, "layers as a string", "gla.block_count", 0, 4, GGUF_STR, ""},
    {TINY, "layers as a float", "gla.block_count", 0, 4, GGUF_F32, "no integer"},
    {TINY, "width 0", KEY("gla.embedding_length"), 4, 0, "gla.embedding_length is 0"},
    {TINY, "another width", KEY("gla.embedding_length"), 4, 64, "expected (64"},
    {TINY, "context 0", KEY("gla.context_length"), 4, 0, "gla.context_length is 0"},
    {TINY, "hidden width 0", KEY("gla.feed_forward_length"), 4, 0, "gla.feed_forward_length is 0"},
    {TINY, "an epsilon that is no number", KEY("gla.attention.layer_norm_rms_epsilon"), 4, 0x7fc00000, "epsilon is nan"},
    {TINY, "a negative epsilon", KEY("gla.attention.layer_norm_rms_epsilon"), 4, 0xbf800000, "epsilon is -1"},
    {TINY, "heads beyond reason", ARRAY("gla.attention.head_count"), 4, 0x7fffffff, "head_count is 2147483647"},
    {TINY, "a softmax layer without its tensors", ARRAY("gla.attention.head_count"), 4, 2, ""},
    {TINY, "heads for one layer only", "gla.attention.head_count", 8, 8, 1, ""},
    {TINY, "key heads 3", "gla.attention.head_count_kv", 4 + 4 + 8 + 4, 4, 3, "cannot share"},
    {TINY, "key heads 0", "gla.attention.head_count_kv", 4 + 4 + 8 + 4, 4, 0, "head_count_kv is 0"},
    {TINY, "an odd number of rotated channels", KEY("gla.rope.dimension_count"), 4, 15, "odd"},
    {TINY, "more rotated channels than there are", KEY("gla.rope.dimension_count"), 4, 18, "dimension_count is 18"},
    {TINY, "a rotary base of 0", KEY("gla.rope.freq_base"), 4, 0, "freq_base is 0"},
    {TINY, "linear heads 0", KEY("gla.mixer.head_count"), 4, 0, "gla.mixer.head_count is 0"},
    {TINY, "key width 0", KEY("gla.mixer.key_length"), 4, 0, "gla.mixer.key_length is 0"},
    {TINY, "a key width beyond reason", KEY("gla.mixer.key_length"), 4, 1 << 30, "gla.mixer.key_length is"},
    {TINY, "a value width that does not fit", KEY("gla.mixer.value_length"), 4, 17, "expected ("},
    {TINY, "65 taps", KEY("gla.mixer.conv_kernel"), 4, 65, "conv_kernel is 65"},
    {TINY, "3 taps", KEY("gla.mixer.conv_kernel"), 4, 3, "expected (3, 32)"},
    {TINY, "no taps", KEY("gla.mixer.conv_kernel"), 4, 0, "has no place"},
    {TINY, "an activation that is not known", "gla.mixer.output_gate", 12, 1, 'X', "activation"},
    {TINY, "a decay divisor of 0", KEY("gla.mixer.decay_divisor"), 4, 0, "decay_divisor is 0"},
    {TINY, "another kind of vocabulary", "tokenizer.ggml.model", 12, 1, 'b', "tokenizer.ggml.model"},
    {TINY, "another pre-tokenizer", "tokenizer.ggml.pre", 12, 1, 'x', "tokenizer.ggml.pre"},
    {TINY, "a merge without a space", "tokenizer.ggml.merges", 4 + 4 + 8 + 8 + 1, 1, '_', "no space"},
    {TINY, "bos beyond the vocabulary", KEY("tokenizer.ggml.bos_token_id"), 4, 271, NULL},
    {TINY, "eos of 2^32 - 1", KEY("tokenizer.ggml.eos_token_id"), 4, 0xffffffff, NULL},
    {TINY, "token types of another kind", "tokenizer.ggml.token_type", 4, 4, GGUF_F32, "token_type"},
    {TINY, "a token type beyond the known", ARRAY("tokenizer.ggml.token_type"), 4, 0x80000001, NULL},
    {TINY, "a token that is no UTF-8", ARRAY("tokenizer.ggml.tokens"), 0, 0, NULL},
    {QWEN, "interval 0", KEY("qwen35.full_attention_interval"), 4, 0, "full_attention_interval is 0"},
    {QWEN, "another interval", KEY("qwen35.full_attention_interval"), 4, 3, "blk.2.attn_qkv.weight is"},
    {QWEN, "key groups that do not divide", KEY("qwen35.ssm.group_count"), 4, 3, "do not fit"},
    {QWEN, "no key groups", KEY("qwen35.ssm.group_count"), 4, 0, "group_count is 0"},
    {QWEN, "no value heads", KEY("qwen35.ssm.time_step_rank"), 4, 0, "time_step_rank is 0"},
    {QWEN, "value heads that do not divide", KEY("qwen35.ssm.time_step_rank"), 4, 6, "do not fit"},
    {QWEN, "taps 0", KEY("qwen35.ssm.conv_kernel"), 4, 0, "conv_kernel is 0"},
    {QWEN, "taps 65", KEY("qwen35.ssm.conv_kernel"), 4, 65, "conv_kernel is 65"},
    {QWEN, "a state of no width", KEY("qwen35.ssm.state_size"), 4, 0, "state_size is 0"},
    {QWEN, "a state beyond reason", KEY("qwen35.ssm.state_size"), 4, 1 << 20, "state_size is"},
    {QWEN, "an inner size of 2^31", KEY("qwen35.ssm.inner_size"), 4, (uint64_t)1 << 31, "inner_size is"},
    {QWEN, "heads 0", KEY("qwen35.attention.head_count"), 4, 0, "head_count is 0"},
    {QWEN, "heads that do not divide", KEY("qwen35.attention.head_count"), 4, 5, "cannot share"},
    {QWEN, "a head of width 0", KEY("qwen35.attention.key_length"), 4, 0, "key_length is 0"},
    {QWEN, "values of another width than keys", KEY("qwen35.attention.value_length"), 4, 16, "differs"},
    {QWEN, "all layers are drafting blocks", KEY("qwen35.block_count"), 4, 5, ""},
    {QWEN, "the last layer is a drafting block", KEY("qwen35.block_count"), 4, 3, NULL},
    {QWEN, "a file for another purpose", "general.type", 12, 5, 0x6b656e6b61, "general.type"},
    {GLAF, "a million heads", KEY("gla.mixer.head_count"), 4, 1000000, "head_count is 1000000"},
    {GLAF, "key heads that do not divide", KEY("gla.mixer.head_count_kv"), 4, 3, "cannot share"},
    {"path", "softmax layers without heads", KEY("path_attn.attention.head_count"), 4, 0, "head_count is 0"},
    {"path", "softmax layers that do not say how many heads", "path_attn.attention.head_count", -1, 1, 'x', "head_count is missing"},
    {"path", "positions that rotate", KEY("path_attn.rope.dimension_count"), 4, 2, "rotary"},
    {"path", "taps 65", KEY("path_attn.mixer.conv_kernel"), 4, 65, "conv_kernel is 65"},
    {"tokenizer/llama.gguf", "scores of another length", "tokenizer.ggml.scores", 8, 8, 3, ""},
    {"tokenizer/llama.gguf", "scores of another type", "tokenizer.ggml.scores", 4, 4, GGUF_I32, "scores"},
    {"tokenizer/llama.gguf", "a score that is no number", ARRAY("tokenizer.ggml.scores"), 4, 0x7fc00000, NULL},
    {"tokenizer/llama.gguf", "a byte token that is none", "<0x00", -2, 1, 'g', NULL},
    {"tokenizer/llama.gguf", "a negative byte token", "<0x00", -2, 1, '-', NULL},
    {"tokenizer/llama.gguf", "tokens of another type", "tokenizer.ggml.tokens", 4, 4, GGUF_U8, ""},
    {"tokenizer/llama.gguf", "an unknown token beyond the vocabulary", KEY("tokenizer.ggml.bos_token_id"), 4, 0x7fffffff, NULL},
    {"tokenizer/gpt-2.gguf", "as a model", NULL, 0, 0, 0, NULL},
    {"tokenizer/added.gguf", "a habit of no token", ARRAY("tokenizer.gla.lstrip"), 4, 0x7fffffff, "lstrip"},
    {"tokenizer/added.gguf", "a habit that is no number", "tokenizer.gla.rstrip", 4, 4, GGUF_F32, "rstrip"},
    {"tokenizer/llama-first.gguf", "spaces somewhere else", "tokenizer.gla.space_prefix", 12, 1, 'x', "space_prefix"},
    {"tokenizer/rwkv.gguf", "a byte that is none", "\\x0", -1, 1, 'q', NULL},
    {"tokenizer/rwkv.gguf", "another kind of vocabulary", "tokenizer.ggml.model", 12, 4, 0x74726562, "WordPiece"},
};

static uint8_t *find(uint8_t *p, size_t n, const char *text) { /* the byte behind the first occurrence */
    size_t len = strlen(text);
    for (size_t i = 0; i + len <= n; i++) if (p[i] == (uint8_t)text[0] && !memcmp(p + i, text, len)) return p + i + len;
    return NULL;
}

static void test_hostile_fields(void) {
    char err[GLA_ERR];
    for (size_t i = 0; i < sizeof edits / sizeof *edits; i++) {
        const Edit *e = &edits[i];
        size_t n;
        uint8_t *p = model_named(e->file, &n), *at = e->anchor ? find(p, n, e->anchor) : p;
        check(at != NULL, "%s: %s is not in %s", e->what ? e->what : "", e->anchor ? e->anchor : "", e->file);
        if (!at) { free(p); continue; }
        memcpy(at + e->offset, &e->value, (size_t)e->width); /* little-endian hosts, like run.c */
        int vocabulary = !strncmp(e->file, "tokenizer/", 10), code = attempt(p, n, vocabulary, e->what, err);
        if (e->message) check(code < 0 && strstr(err, e->message), "%s: expected \"%s\", got %s", e->what, e->message, code ? err : "a model");
        else check(code == GLA_OK, "%s: %s", e->what, err);
        if (verbose && code) printf("     %s: %s\n", e->what, err);
        free(p);
    }
    size_t n;
    uint8_t *p = fixture("tokenizer/gpt-2.gguf", &n);
    check(attempt(p, n, 0, "a vocabulary as a model", err) == GLA_UNSUPPORTED && strstr(err, "-z"), "a vocabulary as a model: %s", err);
    free(p);

    for (uint32_t first = 0; first < 4; first++) { /* residual attention that the layers do not agree on */
        p = random_model(F32, 0, (uint32_t[]){first, 3 - first}, &n);
        check(attempt(p, n, 0, "residual attention", err) < 0, "residual attention in blocks of %u in one layer and %u in the other was accepted", first, 3 - first);
        free(p);
    }
}

/* A model cut at every length of its header and at steps through its data; and bytes of the header changed. */
static void test_hostile_bytes(void) {
    static const struct { const char *name; int vocabulary; } files[] = {{"tiny.gguf", 0}, {"qwen35.gguf", 0}, {"gla.gguf", 0}, {"path", 0}, {"tokenizer/gpt-2.gguf", 1}, {"tokenizer/llama.gguf", 1},
        {"tokenizer/added.gguf", 1}, {"tokenizer/rwkv.gguf", 1}};
    char err[GLA_ERR], what[96];
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        size_t n;
        uint8_t *p = model_named(files[i].name, &n);
        Gguf g = {.map = {p, n, 0}};
        check(!gguf_read(&g, err), "%s: %s", files[i].name, err);
        size_t header = g.n_tensors ? g.data_at : n;
        gguf_close(&g);
        for (size_t cut = 0; cut < n; cut += cut < header ? files[i].vocabulary ? 7 : 1 : 1 + n / 100) {
            snprintf(what, sizeof what, "%s cut to %zu of %zu bytes", files[i].name, cut, n);
            int code = attempt(p, cut, files[i].vocabulary, what, err);
            /* a vocabulary has no tensors and nothing behind its keys, so each byte counts; padding at the end of a model does not */
            check(code < 0 || (!files[i].vocabulary && cut + 32 > n), "%s: opened", what);
        }
        uint8_t *q = block(n);
        for (size_t at = 0; at < header; at += files[i].vocabulary ? 11 : 2) {
            static const uint8_t values[] = {0, 1, 0x7f, 0x80, 0xff};
            memcpy(q, p, n);
            for (int k = 0; k < 2; k++) {
                uint8_t to = k ? (uint8_t)(p[at] ^ 1 << rnd() % 8) : values[rnd() % 5];
                q[at] = to;
                snprintf(what, sizeof what, "%s with byte %zu changed to %d", files[i].name, at, to);
                attempt(q, n, files[i].vocabulary, what, err);
            }
        }
        free(q), free(p);
    }
    /* from a path */
    GlaModel *m;
    char path[520];
    snprintf(path, sizeof path, "%s.gguf", scratch());
    static const struct { const char *what, *bytes; size_t n; } small[] = {{"an empty file", "", 0}, {"23 bytes", "GGUF3..................", 23}, {"a web page", "<!DOCTYPE html><html><body>not found", 36}};
    for (size_t i = 0; i < sizeof small / sizeof *small; i++) {
        spill(path, small[i].bytes, small[i].n);
        check(gla_open(&m, path, err) < 0 && !m && is_sentence(err), "%s: %s", small[i].what, err);
    }
    remove(path);
    check(gla_open(&m, path, err) == GLA_IO && !m && is_sentence(err), "no file: %s", err);
    check(gla_open(&m, "/", err) < 0 && !m && is_sentence(err), "a folder: %s", err);
    check(gla_open_memory(&m, "", 0, err) < 0 && !m && is_sentence(err), "no bytes: %s", err);
    check(gla_open_memory(&m, "", 0, NULL) < 0, "no room for a message");
}

/* ---- 13. the list of sections --------------------------------------------------------------------------------------------------------- */

static const struct { const char *name; void (*run)(void); } sections[] = {
    {"formats", test_formats}, {"fast_exp", test_fast_exp}, {"matmul", test_matmul}, {"recurrence tables", test_recurrence_tables}, {"recurrence", test_recurrence},
    {"attend", test_attend}, {"layers", test_layers}, {"mixers", test_mixers}, {"sampler", test_sampler}, {"json", test_json}, {"generate", test_generate}, {"tokenizer", test_tokenizer},
    {"pieces", test_pieces}, {"added blanks", test_added_blanks}, {"keys refused", test_keys_refused}, {"no vocabulary", test_no_vocabulary},
    {"words", test_words},
    {"tokenizer time", test_tokenizer_time},
    {"goldens", test_goldens}, {"decoders", test_decoders}, {"decoders refused", test_decoders_refused}, {"mtp", test_mtp}, {"mtp refused", test_mtp_refused},
    {"types", test_types}, {"states", test_states}, {"stop", test_stop}, {"two threads", test_two_threads}, {"sessions", test_sessions}, {"kv sessions", test_kv_sessions}, {"chat templates", test_chat_templates}, {"chat", test_chat},
    {"chat thinking", test_chat_thinking}, {"prompt cache", test_cache}, {"no memory", test_no_memory},
    {"hostile fields", test_hostile_fields}, {"hostile bytes", test_hostile_bytes},
};

int main(int argc, char **argv) {
    const char *only = "";
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "-v")) verbose = 1;
        else if (!strcmp(argv[i], "-k") && i + 1 < argc) only = argv[++i];
        else fixtures = argv[i];
    }
    setvbuf(stdout, NULL, _IOLBF, 1 << 16);
    for (size_t i = 0; i < sizeof sections / sizeof *sections; i++) {
        if (!strstr(sections[i].name, only)) continue;
        double start = now_s();
        int before = passed + failed;
        section = sections[i].name, rng = 1;
        sections[i].run();
        if (verbose) printf("%-18s %7d checks, %.2f s\n", section, passed + failed - before, now_s() - start);
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
