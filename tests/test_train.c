/* test_train.c - the trainer's gradients against central finite differences, in double.
 *   cc -O2 -o test_train tests/test_train.c -lm && ./test_train */
#ifndef REAL
#define REAL double
#endif
#define main train_main                     /* the command line, called by test_misuse */
#include "../train_tiny.c"
#undef main
#include <sys/wait.h>

enum { TRIES = 24, TRIES_OF_A_MODEL = 8 };   /* elements nudged per array, and per tensor of a whole model: train_step.py compares all of those with PyTorch */
static int passed, failed;
static uint64_t rng = 12345;
static size_t most = TRIES;

static void check(const char *what, double err, double bound) {
    bool ok = err < bound;
    ok ? passed++ : failed++;
    printf("%-4s %-44s %.1e  (bound %.0e)\n", ok ? "ok" : "FAIL", what, err, bound);
}

static real *noise(size_t n, double size) {
    real *p = checked(calloc(n + 64, sizeof *p));
    for (size_t i = 0; i < n; i++) p[i] = size * rng_normal(&rng);
    return p;
}

/* A scalar function of some arrays, and what its backward says. The function is sum(out * mask): mask is the gradient
 * that goes in. run() makes out from the arrays; the test nudges single elements of each. */
typedef struct { const char *name; real *x; const real *dx; size_t n; } Arg;
typedef struct { void (*run)(void *); void *ctx; const real *out, *mask; size_t n_out; } Func;

static double value(const Func *f) {
    f->run(f->ctx);
    double s = 0;
    for (size_t i = 0; i < f->n_out; i++) s += f->out[i] * f->mask[i];
    return s;
}

/* Largest |analytic - numeric| over the size of the largest gradient of that array. */
static void differences(const char *what, const Func *f, const Arg *args, int n_args) {
    for (int a = 0; a < n_args; a++) {
        size_t n = args[a].n, tries = n < most ? n : most;
        real *dx = checked(malloc(n * sizeof *dx));
        memcpy(dx, args[a].dx, n * sizeof *dx);
        double worst = 0, size = 1e-12;
        for (size_t i = 0; i < n; i++) size = fabs(dx[i]) > size ? fabs(dx[i]) : size;
        for (size_t k = 0; k < tries; k++) {
            size_t i = n <= most ? k : rng_next(&rng) % n;
            const real keep = args[a].x[i];
            double at[4], err = INFINITY;
            for (double h = 5e-5; h > 1e-6 && !(err < 1e-7); h /= 5) {     /* four points: the error of the formula is of order h^4; a smaller h where relu^2 bends in between */
                for (int j = 0; j < 4; j++) args[a].x[i] = keep + h * (j < 2 ? j - 2 : j - 1), at[j] = value(f);
                double now = fabs((8 * (at[2] - at[1]) - (at[3] - at[0])) / (12 * h) - dx[i]) / size;
                err = now < err || now != now ? now : err;
            }
            args[a].x[i] = keep;
            worst = err > worst || err != err ? err : worst;
        }
        char name[96];
        snprintf(name, sizeof name, "%s: d%s", what, args[a].name);
        check(name, worst, 1e-6);
        free(dx);
    }
}

/* ---- single pairs: an operation on noise, in rows that hold more than it reads ---- */

/* N rows of `heads` vectors, with `gap` reals behind each vector that are none of its business. */
static Var some_rows(int N, int heads, int n, int gap, double size) {
    const size_t hs = (size_t)n + (heads > 1 ? gap : 0), ld = heads * hs + (heads > 1 ? 0 : gap);
    return (Var){ noise(N * ld, size), noise(N * ld, 0), ld, hs, heads, n };
}

static Param some_weights(int n, double size) {
    return (Param){ .w = noise(n, size), .dw = noise(n, 0), .n = n, .share = 1 };
}

/* y is set to what was there before, for operations that add to it. */
typedef struct { Op *op; real *y, *before; size_t n; } Alone;

static void run_alone(void *p) {
    const Alone *a = p;
    memcpy(a->y, a->before, a->n * sizeof(real));
    run_forward(a->op, 1);
}

/* The gradients of all x and w of an operation: against differences, and added to what is there. y of any shape is made here. */
static void test_op(const char *what, Op op) {
    static const char *const letters[] = { "x", "z", "x2", "x3", "x4", "x5", "x6", "x7" };
    const int N = op.B * op.T;
    Arg args[10];
    int n_args = 0;
    size_t n = 0;
    if (!op.writes) op.writes = 1;
    if (!op.y[0].n) op.y[0] = op.x[0], op.y[0].ld = (size_t)op.y[0].heads * op.y[0].n, op.y[0].hs = op.y[0].n;
    for (int k = 0; k < 3; k++) n += N * op.y[k].ld;
    Alone alone = { &op, noise(n, 0), noise(n, 1), n };
    real *dy = noise(n, 1), *at = alone.y, *dat = dy;
    for (int k = 0; k < 3; at += N * op.y[k].ld, dat += N * op.y[k].ld, k++)
        if (op.y[k].n) op.y[k].x = at, op.y[k].dx = dat;
    for (int k = 0; k < 2; k++)
        if (!op.keep[k]) op.keep[k] = noise(4 * n + 64, 0);
    for (int k = 0; k < 8; k++)
        if (op.x[k].n) args[n_args++] = (Arg){ letters[k], op.x[k].x, op.x[k].dx, N * op.x[k].ld };
    run_alone(&alone);
    run_backward(&op, 1);
    for (int k = 0; k < 2; k++)
        if (op.w[k].dw) args[n_args++] = (Arg){ k ? "w1" : "w", op.w[k].w, op.w[k].dw, op.w[k].n };
    differences(what, &(Func){ run_alone, &alone, alone.y, dy, n }, args, n_args);
    real *once[10];
    for (int k = 0; k < n_args; k++) once[k] = memcpy(noise(args[k].n, 0), args[k].dx, args[k].n * sizeof(real));
    op.add = ~op.run.assigns;
    run_alone(&alone);
    run_backward(&op, 1);
    double worst = 0;
    for (int k = 0; k < n_args; k++)
        for (size_t i = 0; i < args[k].n; i++) {
            const bool assigned = k < 8 && op.x[k].n && op.run.assigns >> k & 1;
            const double off = fabs(args[k].dx[i] - once[k][i] * (assigned ? 1 : 2)) / (1 + fabs(once[k][i]));
            worst = off > worst || off != off ? off : worst;
        }
    char name[96];
    snprintf(name, sizeof name, "%s, added", what);
    check(name, worst, 1e-12);
}

static const char *const acts[] = { "none", "silu", "sigmoid", "elu + 1", "tanh", "relu^2", "1 - x", "exp(-e^x)", "exp(-e^-1/2 sigmoid(x))" };

/* The kernels of section 2. */
static void test_kernels(void) {
    enum { N = 70, H = 2, n = 32 };
    char name[64];
    test_op("rmsnorm", (Op){ .run = kern.rmsnorm, .B = 1, .T = N, .scale = 1e-6, .x = { some_rows(N, H, n, 16, 1) }, .w = { some_weights(n, 1) } });
    test_op("rmsnorm, weights per head", (Op){ .run = kern.rmsnorm, .B = 1, .T = N, .scale = 1e-6, .x = { some_rows(N, H, n, 0, 1) }, .w = { some_weights(H * n, 1) } });
    test_op("l2 norm", (Op){ .run = kern.l2norm, .B = 1, .T = N, .scale = 0.3, .x = { some_rows(N, H, n, 16, 1) } });
    for (Act act = F_ID; act <= F_ELU1; act++) {
        snprintf(name, sizeof name, "norm, gate %s", acts[act]);
        test_op(name, (Op){ .run = kern.gated_norm, .B = 1, .T = N, .act = act, .scale = 1e-6, .x = { some_rows(N, H, n, 0, 1), some_rows(N, H, n, 16, 1) }, .w = { some_weights(n, 1) } });
        snprintf(name, sizeof name, "x * %s(z)", acts[act]);
        test_op(name, (Op){ .run = kern.glu, .B = 1, .T = N, .act = act, .x = { some_rows(N, H, n, 16, 1), some_rows(N, H, n, 32, 1) } });
    }
    for (Act act = F_ID; act <= F_DECAY7; act++) {
        snprintf(name, sizeof name, "feature map %s", acts[act]);
        test_op(name, (Op){ .run = kern.map, .B = 1, .T = 9, .act = act, .scale = act > F_ELU1 ? 1 : 0.7, .x = { some_rows(9, act % 2 ? 1 : H, 64, 16, act > F_ELU1 ? 1 : 2) } });
    }
    test_op("one factor per head", (Op){ .run = kern.scale, .B = 1, .T = N, .x = { some_rows(N, H, n, 16, 1), some_rows(N, H, 1, 3, 1) } });
    for (int mode = 0; mode < 16; mode++) {
        const int T = mode & 1 ? 19 : 2, C = 32, taps = mode & 8 ? 3 : 4;
        snprintf(name, sizeof name, "conv of %d%s%s, T %d", taps, mode & 4 ? " + bias" : "", mode & 2 ? " + silu" : "", T);
        test_op(name, (Op){ .run = kern.conv, .B = 3, .T = T, .act = mode & 2 ? F_SILU : F_ID, .x = { some_rows(3 * T, 1, C, 16, 1) },
                            .w = { some_weights(taps * C, 1), mode & 4 ? some_weights(C, 1) : no_bias } });
    }
    for (int mode = 0; mode < 6; mode++) {                  /* 5 gates are fewer than the lanes, 48 several vectors */
        const int wide = mode & 1 ? 48 : 5;
        Param rate = mode & 2 ? some_weights(wide, 1) : no_bias;
        for (int i = 0; i < rate.n; i++) rate.w[i] = exp(rate.w[i]);
        snprintf(name, sizeof name, "gate, %d wide%s%s", wide, mode < 4 ? ", bias" : "", rate.n ? ", rate, sign -1" : "");
        test_op(name, (Op){ .run = kern.gate, .B = 1, .T = N, .scale = rate.n ? -1 : 1, .x = { some_rows(N, 1, wide, 3, 2) }, .w = { mode < 4 ? some_weights(wide, 1) : no_bias, rate } });
    }
}

/* The pairs of section 5. */
static void test_pairs(void) {
    enum { B = 3, T = 23, N = B * T, H = 2, dk = 16, dv = 32, K = H * dk };
    char name[64];
    for (int shape = 0; shape < 6; shape++) {
        const int rows = (int[]){ 5, 37, 150 }[shape % 3], in = (int[]){ 16, 48, 700 }[shape % 3], out = (int[]){ 3, 70, 33 }[shape % 3];
        Op o = { .run = linear_pair, .B = 1, .T = rows, .x = { some_rows(rows, 1, in, 7, 1) }, .w = { some_weights(out * in, 1), shape > 2 ? some_weights(out, 1) : no_bias } };
        o.y[0] = (Var){ NULL, NULL, out, out, 1, out };
        snprintf(name, sizeof name, "matmul %d x %d x %d%s", rows, in, out, shape > 2 ? ", bias" : "");
        test_op(name, o);
    }
    test_op("layer norm", (Op){ .run = layernorm_pair, .B = 1, .T = N, .scale = 1e-3, .x = { some_rows(N, H, 32, 5, 1) }, .w = { some_weights(64, 1), some_weights(64, 1) } });
    test_op("token shift", (Op){ .run = shift_pair, .B = B, .T = T, .x = { some_rows(N, 1, 32, 5, 1) }, .w = { some_weights(32, 1) } });
    test_op("token shift, a share per token", (Op){ .run = shift_pair, .B = B, .T = T, .x = { some_rows(N, 1, 32, 5, 1), some_rows(N, 1, 32, 2, 1) } });
    test_op("bonus", (Op){ .run = bonus_pair, .B = 1, .T = N, .x = { some_rows(N, H, dk, 3, 1), some_rows(N, H, dk, 1, 1), some_rows(N, H, dv, 0, 1) }, .w = { some_weights(K, 1) }, .y = { some_rows(N, H, dv, 0, 0) } });
    test_op("x times a number per channel", (Op){ .run = channels_pair, .B = 1, .T = N, .x = { some_rows(N, 1, K, 3, 1) }, .w = { some_weights(K, 1) } });
    test_op("keys of RWKV-7", (Op){ .run = rwkv7_keys_pair, .B = 1, .T = N, .x = { some_rows(N, 1, K, 3, 1), some_rows(N, 1, K, 1, 1), some_rows(N, 1, K, 0, 1) }, .w = { some_weights(K, 1) }, .y = { some_rows(N, 1, K, 0, 0), some_rows(N, 1, K, 0, 0) } });
    test_op("blended values", (Op){ .run = blend_pair, .B = 1, .T = N, .x = { some_rows(N, 1, 48, 3, 1), some_rows(N, 1, 48, 1, 1), some_rows(N, 1, 48, 0, 1) } });
    test_op("softmax over slots", (Op){ .run = slots_pair, .B = 1, .T = N, .x = { some_rows(N, H, dk, 3, 1) } });
    test_op("decay that is a softmax over time", (Op){ .run = sum_decay_pair, .B = B, .T = T, .x = { some_rows(N, 1, K, 3, 1) }, .y = { some_rows(N, 1, K, 0, 0), some_rows(N, 1, K, 0, 0) } });
    test_op("Comba's query and key", (Op){ .run = comba_pair, .B = 1, .T = N, .x = { some_rows(N, H, dk, 3, 1), some_rows(N, H, dk, 1, 1) }, .w = { some_weights(H, 1), some_weights(H, 1) }, .y = { some_rows(N, H, dk, 0, 0), some_rows(N, H, dk, 0, 0) } });
    Op m = { .run = moment_pair, .B = B, .T = T, .x = { some_rows(N, H, dk, 0, 1), some_rows(N, H, 1, 0, 1), some_rows(N, H, 1, 0, 1) }, .w = { some_weights(H, 1) } };
    for (int i = 0; i < N * H; i++) m.x[1].x[i] = 1 / (1 + exp(-m.x[1].x[i])), m.x[2].x[i] = 1 / (1 + exp(-m.x[2].x[i]));
    test_op("key over its second moment", m);
    test_op("step of Mamba-2", (Op){ .run = step_pair, .B = 1, .T = N, .x = { some_rows(N, 1, 3, 2, 2) }, .w = { some_weights(3, 1) } });
    test_op("skip of Mamba-2", (Op){ .run = skip_pair, .B = 1, .T = N, .x = { some_rows(N, H, dv, 0, 1) }, .w = { some_weights(H, 1) }, .y = { some_rows(N, H, dv, 0, 0) } });
}

/* ---- the recurrence, against its definition and against differences ---- */

static void plain_recurrence(const Op *o, real *out) {
    const Var q = o->x[X_Q], k = o->x[X_K], v = o->x[X_V], d = o->x[X_D], e = o->x[X_E], rho = o->x[X_RHO], c = o->x[X_C], b = o->x[X_B];
    const int T = o->T * o->writes, H = q.heads / o->writes, dk = q.n, dv = v.n;
    real *S = noise((size_t)dk * dv, 0);
    for (int n = 0; n < o->B * H; n++) {
        zeroed(S, (size_t)dk * dv);
        for (int t = 0; t < T; t++) {
            const int r = n / H * o->T + t / o->writes, h = t % o->writes * H + n % H;
            for (int j = 0; j < dv; j++) {
                double recalled = 0, before = 0, after = 0;
                for (int i = 0; i < dk && e.n; i++) recalled += S[i * dv + j] * row(e, r, h)[i];
                double w = row(v, r, h)[j] - (rho.n ? *row(rho, r, h) * recalled : 0);
                for (int i = 0; i < dk; i++) {
                    real *s = &S[i * dv + j];
                    before += *s * row(q, r, h)[i];
                    *s *= row(d, r, h)[d.n > 1 ? i : 0] * (c.n ? row(c, r, h)[j] : 1);
                    *s += row(k, r, h)[i] * w + (b.n ? row(b, r, h)[i] * recalled : 0);
                    after += *s * row(q, r, h)[i];
                }
                out[(((size_t)n / H * T + t) * H + n % H) * dv + j] = o->mode == SCAN_READS_FIRST ? before : after;
            }
        }
    }
    free(S);
}

static Var sigmoids(int N, int heads, int n, double shift) {
    Var v = some_rows(N, heads, n, 0, 1);
    for (size_t i = 0; i < N * v.ld; i++) v.x[i] = 1 / (1 + exp(-v.x[i] - shift));
    return v;
}

static void test_recurrence(void) {
    const int shapes[][3] = { { 5, 16, 16 }, { 33, 32, 32 }, { 20, 48, 64 }, { 48, 64, 16 } };    /* T, dk, dv */
    const struct { int mode; const char *name; } modes[] = { { 0, "" }, { SCAN_ERASES, " erases" }, { SCAN_WRITES_BACK, " writes back" }, { SCAN_FADES_VALUES, " fades values" }, { SCAN_READS_FIRST, " reads first" } };
    for (int run = 0; run < 48; run++) {                    /* the last ones write three times per token */
        const int *sh = shapes[run / 10 % 4], writes = run < 40 ? 1 : 3, T = sh[0], dk = sh[1], dv = sh[2], B = 2, H = 2, nH = writes * H, N = B * T;
        const int mode = modes[run / 2 % 5].mode;
        const bool vector = run & 1, erase = mode == SCAN_ERASES, back = mode == SCAN_WRITES_BACK, fade = mode == SCAN_FADES_VALUES;
        const size_t V = (size_t)N * nH * dv;
        Op o = { .run = recurrence_pair, .B = B, .T = T, .mode = mode, .writes = writes, .y = { some_rows(N, nH, dv, 0, 0) },
                 .keep = { erase || back ? noise(V, 0) : NULL, noise(kept_states(B, T * writes, H, dk, dv), 0) },
                 .x = { some_rows(N, nH, dk, 0, 0.3), some_rows(N, nH, dk, 0, 0.3), some_rows(N, nH, dv, 0, 1), sigmoids(N, nH, vector ? dk : 1, 1) } };
        if (erase || back) o.x[X_E] = some_rows(N, nH, dk, 0, 0.3);
        if (erase) o.x[X_RHO] = sigmoids(N, nH, 1, 0);
        if (fade) o.x[X_C] = sigmoids(N, nH, dv, 1);
        if (back) o.x[X_B] = some_rows(N, nH, dk, 0, 0.3);
        char name[96];
        snprintf(name, sizeof name, "recurrence %s%s T %d x %d dk %d dv %d", vector ? "vector" : "scalar", modes[run / 2 % 5].name, T, writes, dk, dv);
        run_forward(&o, 1);
        real *want = noise(V, 0);
        double worst = 0;
        plain_recurrence(&o, want);
        for (size_t i = 0; i < V; i++) worst = fabs(want[i] - o.y[0].x[i]) > worst ? fabs(want[i] - o.y[0].x[i]) : worst;
        check(name, worst, 1e-12);
        test_op(name, o);
    }
}

static void test_attention(void) {
    for (int shape = 0; shape < 3; shape++) {
        const int T = (int[]){ 6, 64, 150 }[shape], H = (int[]){ 1, 4, 4 }[shape], G = (int[]){ 1, 2, 1 }[shape], n = (int[]){ 16, 32, 16 }[shape], B = 2, N = B * T;
        char name[64];
        snprintf(name, sizeof name, "attention T %d, %d heads on %d", T, H, G);
        test_op(name, (Op){ .run = attention_pair, .B = B, .T = T, .x = { some_rows(N, H, n, 0, 1), some_rows(N, G, n, 3, 1), some_rows(N, G, n, 5, 1) } });
    }
    enum { B = 2, T = 7, H = 2, n = 16, S = B * T * H * n };     /* turning back is the transpose: <rope x, y> = <x, back y> */
    real cs[T * 8];
    for (int i = 0; i < T * 4; i++) cs[2 * i] = cos(i), cs[2 * i + 1] = sin(i);
    Op o = { .run = rotate_pair, .B = B, .T = T, .writes = 1, .mode = 8, .angles = cs, .x = { some_rows(B * T, H, n, 0, 1) } };
    real *x0 = memcpy(noise(S, 0), o.x[0].x, S * sizeof(real)), *y = o.x[0].dx = noise(S, 1);
    double left = 0, right = 0;
    run_forward(&o, 1);
    for (int i = 0; i < S; i++) left += o.x[0].x[i] * y[i];
    run_backward(&o, 1);
    for (int i = 0; i < S; i++) right += x0[i] * y[i];
    check("rope", fabs(left - right), 1e-10);
}

/* ---- cross-entropy ---- */
typedef struct { real *x, *copy; int *target; real out[1]; } Ce;

static void run_ce(void *p) {
    Ce *c = p;
    memcpy(c->copy, c->x, 5 * 37 * sizeof(real));
    c->out[0] = kern.cross_entropy(c->copy, c->target, 5, 37, 0.25) * 0.25;
}

static void test_cross_entropy(void) {
    int target[5] = { 3, -1, 36, 0, 17 };
    Ce c = { noise(5 * 37, 3), noise(5 * 37, 0), target, { 0 } };
    real one = 1;
    run_ce(&c);
    real *dx = noise(5 * 37, 0);
    memcpy(dx, c.copy, 5 * 37 * sizeof(real));
    differences("cross-entropy", &(Func){ run_ce, &c, c.out, &one, 1 }, (Arg[]){ { "x", c.x, dx, 5 * 37 } }, 1);
}

/* ---- a whole model: every tensor of both layouts ---- */
typedef struct { Tiny m; int *id, *target; real out[1]; } Whole;

static void run_whole(void *p) {
    Whole *w = p;
    int count;
    double loss = tiny_step(&w->m, w->id, w->target, false, &count);
    w->out[0] = loss / count;
    if (w->m.c.mtp) w->out[0] += MTP_SHARE * w->m.mtp_loss / w->m.mtp_count;
}

/* Three layers of any mixer, the last one softmax attention when hybrid. */
static TinyConfig small_config(int mixer, bool hybrid) {
    const MixerKind *k = &mixer_kinds[mixer];
    return (TinyConfig){ .mixer = mixer, .dim = 32, .hidden_dim = is_mamba(k) && !hybrid ? 0 : 48, .n_layers = 2 + hybrid, .vocab_size = 50, .seq_len = 21, .n_heads = 2,
                         .dk = 16, .dv = mixer == GLA ? 32 : 16, .d_conv = k->d_conv, .interval = mixer == SOFTMAX ? 1 : hybrid ? 3 : 0, .q_heads = 2,
                         .kv_heads = 1, .head_dim = 16, .n_rot = k->qwen ? 8 : 16, .gate_rank = 16, .eps = 0.01f, .rope_base = 10000, .decay_divisor = 16 };
}

static void test_whole(TinyConfig c, const char *what) {
    Whole w;
    tiny_new(&w.m, &c, 2, 7);
    for (int n = 0; n < w.m.n_tensors; n++) {                   /* no term at 0 or 1 only, and gates that matter */
        const TinyTensor *t = &w.m.tensors[n];
        bool gate = strstr(t->name, "ssm_a") || strstr(t->name, "ssm_m_") || strstr(t->name, "ssm_p") || strstr(t->name, "bias") || strstr(t->name, "time_mix_w0") || strstr(t->name, "time_mix_decay") || strstr(t->name, "_lerp_");
        for (size_t i = 0; i < tensor_len(t); i++) {
            real *p = &w.m.params[t->at + i];
            if (t->flags & CONSTANT) continue;
            *p = gate && !t->rows ? 0.7 * rng_normal(&rng) : *p * (n == 0 ? 10 : t->rows && t->flags & DECAYS ? 1.5 : 4) + 0.05 * rng_normal(&rng);
        }
    }
    int N = 2 * c.seq_len, id[2 * 21], target[2 * 21], count;
    for (int i = 0; i < N; i++) id[i] = (int)(rng_next(&rng) % 50), target[i] = i % 9 == 8 ? -1 : (int)(rng_next(&rng) % 50);
    w.id = id, w.target = target;
    tiny_step(&w.m, id, target, true, &count);
    real one = 1;
    for (int n = 0; n < w.m.n_tensors; n++) {
        const TinyTensor *t = &w.m.tensors[n];
        Arg arg = { t->name, w.m.params + t->at, w.m.grads + t->at, tensor_len(t) };
        differences(what, &(Func){ run_whole, &w, w.out, &one, 1 }, &arg, 1);
    }
    tiny_free(&w.m);
}

/* Every mixer alone and in a hybrid; those without a convolution with one, the others without. */
static void test_every_mixer(bool quick) {
    most = TRIES_OF_A_MODEL;
    rng = 12345;                     /* whatever ran before */
    for (int mixer = 0; mixer < N_KINDS; mixer++) {
        char name[64];
        const MixerKind *k = &mixer_kinds[mixer];
        test_whole(small_config(mixer, mixer == GATED_DELTA), k->name);
        if (mixer == GATED_DELTA || mixer == GLA || mixer == SOFTMAX) {
            TinyConfig c = small_config(mixer, mixer == GATED_DELTA);
            c.mtp = 1;
            snprintf(name, sizeof name, "%s, mtp", k->name);
            test_whole(c, name);
        }
        if (quick || mixer == SOFTMAX) continue;
        TinyConfig c = small_config(mixer, mixer != GATED_DELTA);
        c.d_conv = 4 - c.d_conv, c.half_life = 50;
        snprintf(name, sizeof name, "%s, %s conv%s", k->name, c.d_conv ? "with" : "no", c.interval ? ", hybrid" : "");
        test_whole(c, name);
    }
    most = TRIES;
}

/* ---- the program around the numbers ---- */

/* A vocabulary of 300 tokens from a few stories, which also is the text of these tests. */
static void small_data(Data *d) {
    char text[6 * STORY_CAP] = "", err[GLA_ERR] = "";
    size_t n = 0;
    for (int i = 0; i < 5; i++) n += story((uint64_t)i, text + n, STORY_CAP);
    *d = (Data){ .seed = 3 };
    int code = learn_vocabulary(&d->vocab.map, (Str){ text, n }, 300, err);
    if (code || gguf_read(&d->vocab, err) || tokenizer_new(&d->tokenizer, &d->vocab, err)) printf("FAIL vocabulary: %s\n", err), exit(1);
    d->end = d->tokenizer->kind.eos;
    int32_t ids[6 * STORY_CAP];
    int64_t got = tokenizer_encode(d->tokenizer, text, n, 0, ids, 6 * STORY_CAP, err);
    size_t back = 0;
    bool same = d->tokenizer->n == 300 && d->end == 299;
    for (int64_t i = 0; i < got; i++) {
        char piece[512];
        size_t len = tokenizer_piece(d->tokenizer, ids[i], 0, piece, sizeof piece);
        same = same && back + len <= n && !memcmp(text + back, piece, len), back += len;
    }
    check("vocabulary: encode, then decode", !(same && back == n && got < (int64_t)n), 0.5);
}

static TinyConfig file_config(int mixer, bool hybrid, bool recall, int vocab_size) {
    TinyConfig c = small_config(mixer, hybrid);
    c.dim = 64, c.hidden_dim *= 2, c.vocab_size = vocab_size, c.seq_len = 40, c.dk = 32, c.dv = mixer == GLA ? 64 : 32, c.head_dim = 32, c.n_rot *= 2;
    c.n_heads = mixer == GLA ? 1 : 2, c.eps = 1e-6f;
    if (recall) c.d_conv = 4, c.half_life = mixer_kinds[mixer].fade == FADE_FORGET ? 0 : 200;
    return c;
}

/* Weights of the tests' own: the bounds below are for these sizes, whatever a new model starts with. */
static void own_weights(Tiny *m) {
    for (int n = 0; n < m->n_tensors; n++) {
        const TinyTensor *t = &m->tensors[n];
        for (size_t i = 0; i < tensor_len(t) && !(t->flags & CONSTANT); i++) m->params[t->at + i] = (real)((t->flags & DECAYS ? 0 : m->params[t->at + i]) + 0.054 * rng_normal(&rng));
    }
}

/* The file that the trainer writes, run by run.c: the same logits. */
static void test_file(const Data *d, int mixer, bool hybrid, bool recall) {
    Tiny m;
    TinyConfig c = file_config(mixer, hybrid, recall, d->tokenizer->n);
    const int T = c.seq_len, V = c.vocab_size, types_[5] = { F32, BF16, F16, Q8_0, Q4_0 };
    const double bounds[5] = { 1e-4, 0.05, 0.01, 0.1, 0.4 };
    int id[40], target[40], count;
    rng = 1;                         /* whatever ran before */
    tiny_new(&m, &c, 1, 11);
    own_weights(&m);
    fill_batch(d, false, 5, 1, T, id, target);
    tiny_step(&m, id, target, false, &count);
    real *mine = noise((size_t)T * V, 0);
    logits_of(&m, m.h_out, mine, 0, T);
    float *theirs = checked(malloc((size_t)T * V * sizeof *theirs));
    for (int k = 0; k < 5; k++) {
        GlaModel *model;
        GlaState *state;
        char err[GLA_ERR] = "", name[64];
        double worst = 0;
        Text file = model_file(&m, &d->vocab, types_[k], "test");
        if (gla_open_memory(&model, file.s, file.n, err) || gla_state_new(&state, model, &(GlaSettings){.threads = 1}, err) || gla_eval(state, id, T, theirs, T, err)) {
            printf("FAIL %s\n", err), failed++;
            continue;
        }
        // The largest difference; where bytes are rounded, of mixers whose output norm may turn such a rounding into a sign, the root of the mean square.
        double square = 0;
        const bool mean = types_[k] == Q4_0 || (types_[k] != F32 && (mixer > GLA || (mixer == GLA && (hybrid || recall))));
        for (int i = 0; i < T * V; i++) {
            double off = fabs(mine[i] - theirs[i]);
            worst = off > worst || off != off ? off : worst, square += off * off;
        }
        if (mean && worst == worst) worst = sqrt(square / (T * V));
        snprintf(name, sizeof name, "logits of the %s file in run.c, %s%s%s", (const char *[]){ "F32", "BF16", "F16", "Q8_0", "Q4_0" }[k], mixer_kinds[mixer].name, hybrid ? ", hybrid" : "", recall ? ", recall" : "");
        check(name, worst, bounds[k]);
        gla_state_free(state), gla_close(model), text_free(&file);
    }
    free(mine), free(theirs), tiny_free(&m);
}

/* The block for multi-token prediction in such a file, run by run.c: the same logits of the token after next. */
static void test_mtp_file(const Data *d, int mixer) {
    Tiny m;
    TinyConfig c = file_config(mixer, mixer == GATED_DELTA, false, d->tokenizer->n);
    const int T = c.seq_len, V = c.vocab_size;
    int id[40], target[40], count;
    char err[GLA_ERR] = "", name[64];
    GlaModel *model = NULL;
    GlaState *s = NULL;
    double worst = 0;
    rng = 1, c.mtp = 1;
    tiny_new(&m, &c, 1, 11);
    own_weights(&m);
    fill_batch(d, false, 5, 1, T, id, target);
    tiny_step(&m, id, target, false, &count);
    real *mine = noise((size_t)T * V, 0);
    logits_of(&m, m.h_mtp, mine, 0, T);
    Text file = model_file(&m, &d->vocab, F32, "test");
    if (gla_open_memory(&model, file.s, file.n, err) || gla_state_new(&s, model, &(GlaSettings){.threads = 1, .mtp = T}, err)) worst = NAN, printf("%s\n", err);
    for (int t = 0; t + 1 < T && s; t++) {
        gla_eval(s, id + t, 1, NULL, 0, err);
        if (mtp_follow(s, id[t + 1], 1) != 1) worst = NAN;
        matmul_rows(&s->team, s->mtp.logits, &model->mtp.head, s->xb, 1);
        for (int v = 0; v < V; v++) {
            const double off = fabs(mine[(size_t)t * V + v] - s->mtp.logits[v]);
            worst = off > worst || off != off ? off : worst;
        }
    }
    snprintf(name, sizeof name, "the token after next in run.c, %s", mixer_kinds[mixer].name);
    check(name, worst, 1e-4);
    gla_state_free(s), gla_close(model), text_free(&file);
    free(mine), tiny_free(&m);
}

static void some_steps(Tiny *m, const Data *d, int first, int n) {
    AdamW opt = { .lr = 1e-3, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .decay = 0.1, .clip = 1 };
    const int N = m->B * m->c.seq_len;
    int *id = checked(malloc(2 * (size_t)N * sizeof *id)), count;
    for (int s = first; s < first + n; s++) {
        fill_batch(d, false, (uint64_t)s, m->B, m->c.seq_len, id, id + N);
        memset(m->grads, 0, m->n_params * sizeof(real));
        tiny_step(m, id, id + N, true, &count);
        adamw_step(m, &opt, s + 1);
    }
    free(id);
}

/* Same bits for any number of threads, and for a run that was stopped and taken up again. */
static void test_same_bits(const Data *d, int mixer) {
    TinyConfig c = file_config(mixer, true, false, d->tokenizer->n);
    Tiny m, other;
    char err[GLA_ERR] = "", name[64];
    char path[PATH_LEN] = "test_train.ckpt";
    c.seq_len = 100;
    tiny_new(&m, &c, 3, 1), some_steps(&m, d, 0, 4);
    for (int threads = 1; threads <= 7; threads += 3) {
#ifdef _OPENMP
        omp_set_num_threads(threads);
#endif
        tiny_new(&other, &c, 3, 1), some_steps(&other, d, 0, 4);
        snprintf(name, sizeof name, "1, 4, 7 threads: same bits, %s", mixer_kinds[mixer].name);
        check(name, memcmp(m.params, other.params, m.n_params * sizeof(real)) != 0, 0.5);
        tiny_free(&other);
    }
    tiny_new(&other, &c, 3, 1), some_steps(&other, d, 0, 2);
    int code = save_checkpoint(path, true, &other, (Checkpoint){ .fingerprint = 77, .step = 2, .steps = 9 }, err);
    tiny_free(&other), tiny_new(&other, &c, 3, 9);
    Checkpoint ck;
    code = code || load_checkpoint(path, &other, &ck, 77, err) || ck.step != 2;
    some_steps(&other, d, 2, 2);
    check("stopped and taken up again: same bits", code || memcmp(m.params, other.params, m.n_params * sizeof(real)), 0.5);
    check("a checkpoint of other settings is refused", load_checkpoint(path, &other, &ck, 78, err) != GLA_INPUT, 0.5);
    remove(path), tiny_free(&other), tiny_free(&m);
}

static void spill_bytes(const char *path, const void *data, size_t n) {
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, n, f) != n || fclose(f)) perror(path), exit(1);
}

/* A checkpoint cut at every length, with every byte changed, and forged: one sentence, and the model stays as it was. */
static void test_checkpoint_bytes(const Data *d) {
    TinyConfig c = file_config(GLA, false, false, d->tokenizer->n);
    char path[PATH_LEN] = "test_train.ckpt", err[GLA_ERR];
    uint8_t *whole = NULL;
    Checkpoint head = { .fingerprint = 7, .step = 3, .steps = 9, .seconds = 2 }, got;
    Tiny m;
    int accepted = 0, silent = 0;
    tiny_new(&m, &c, 1, 1);
    const size_t bytes = m.n_params * sizeof(real), n = sizeof head + 3 * bytes;
    bool ok = !save_checkpoint(path, true, &m, head, err) && (whole = read_bytes(path, n)) && !load_checkpoint(path, &m, &got, 7, err);
    check("a checkpoint comes back", !ok || got.step != 3 || got.steps != 9 || got.seconds != 2, 0.5);
    if (!ok) return;
    real *before = checked(malloc(bytes));
    memcpy(before, m.params, bytes);
    for (size_t cut = 0; cut < n; cut += cut < 2 * sizeof head ? 1 : n / 97) {
        spill_bytes(path, whole, cut);
        accepted += !load_checkpoint(path, &m, &got, 7, strcpy(err, "")), silent += !*err;
    }
    uint8_t *p = checked(malloc(n + 1));
    for (size_t at = 0; at < n; at += at < sizeof head ? 1 : n / 97)
        for (int bit = 0; bit < (at < sizeof head ? 8 : 1); bit++) {
            memcpy(p, whole, n);
            p[at] ^= (uint8_t)(1 << bit);
            spill_bytes(path, p, n);
            accepted += !load_checkpoint(path, &m, &got, 7, strcpy(err, "")), silent += !*err;
        }
    for (int forged = 0; forged < 16; forged++) {           /* with sums that are right */
        memcpy(p, whole, n);
        Checkpoint h;
        memcpy(&h, p, sizeof h);
        real *body = checked(malloc(3 * bytes));
        memcpy(body, p + sizeof h, 3 * bytes);
        const uint64_t sizes[] = { 0, 1, h.n_params + 1, (uint64_t)1 << 61, UINT64_MAX };
        const double times[] = { -1, NAN, INFINITY, 1e30 };
        if (forged < 5) h.n_params = sizes[forged];
        else if (forged == 5) h.step = -1;
        else if (forged == 6) h.step = INT64_MAX;
        else if (forged == 7) h.steps = 0;
        else if (forged == 8) h.steps = INT64_MAX;
        else if (forged < 13) *(forged % 2 ? &h.seconds : &h.minutes) = times[forged - 9];
        else if (forged == 13) body[5] = (real)NAN;
        else if (forged == 14) body[m.n_params + 5] = (real)INFINITY;
        else body[2 * m.n_params + 5] = -1;
        h.body_sum = body_sum(body, body + m.n_params, body + 2 * m.n_params, m.n_params);
        h.head_sum = head_sum(&h);
        memcpy(p, &h, sizeof h), memcpy(p + sizeof h, body, 3 * bytes);
        spill_bytes(path, p, n);
        accepted += !load_checkpoint(path, &m, &got, 7, strcpy(err, "")), silent += !*err;
        free(body);
    }
    memcpy(p, whole, n), p[n] = 0;
    spill_bytes(path, p, n + 1);
    accepted += !load_checkpoint(path, &m, &got, 7, err);
    check("cut, changed and forged checkpoints are refused", accepted + silent, 0.5);
    check("and leave the model as it was", memcmp(before, m.params, bytes) != 0, 0.5);
    remove(path), free(p), free(before), free(whole), tiny_free(&m);
}

/* The counting baselines are distributions: over all words they sum to one, after seen and unseen contexts. */
static void test_counts(void) {
    enum { V = 40 };
    Counts c = counts_new(V);
    int32_t s[300], probe[3];
    for (int i = 0; i < 300; i++) s[i] = (int32_t)(rng_next(&rng) % 7 * (rng_next(&rng) % 5));
    count_sequence(&c, s, 300);
    for (int order = 2; order <= 3; order++)
        for (int seen = 0; seen < 2; seen++) {
            double sum = 0;
            probe[0] = seen ? s[5] : 39, probe[1] = seen ? s[6] : 38;
            for (probe[2] = 0; probe[2] < V; probe[2]++) sum += exp(-count_nll(&c, probe, 2, order));
            check(order == 2 ? "bigram sums to one" : "trigram sums to one", fabs(sum - 1), 1e-12);
        }
    counts_free(&c);
}

static void test_halves(void) {
    int wrong = 0;
    for (uint32_t h = 0; h < 0x7c00; h++) {               /* every finite half, and the points half way to the next */
        uint32_t e = h >> 10, f = h & 1023;
        double v = e ? ldexp(1024 + f, (int)e - 25) : ldexp(f, -24), next = ldexp(1, e ? (int)e - 25 : -24);
        wrong += half_of((float)v) != h || half_of((float)-v) != (h | 0x8000);
        wrong += half_of((float)(v + next * 0.5)) != (h % 2 ? h + 1 : h) || half_of((float)(v + next * 0.499)) != h || half_of((float)(v + next * 0.501)) != h + 1;
    }
    check("float to half, all values", wrong, 0.5);
}

/* Blocks of Q8_0 and Q4_0, and what run.c reads from them: off by half a step at most, but for a number on the other side than the
 * largest of a Q4_0 block, which may be off by one. A block of zeros stays one, and the largest number of a block is kept. */
static void test_blocks(void) {
    double worst[2] = { 0, 0 };
    for (int block = 0; block < 2000; block++)
        for (int type = 0; type < 2; type++) {
            float x[32], y[32], most = 0, step;
            for (int i = 0; i < 32; i++) {
                x[i] = block ? (float)(rng_normal(&rng) * exp(2 * rng_normal(&rng))) : 0;
                if (fabsf(x[i]) > fabsf(most)) most = x[i];
            }
            Text o = { 0 };
            put_row(&o, x, 32, type ? Q4_0 : Q8_0);
            row_to_float(y, (const uint8_t *)o.s, type ? Q4_0 : Q8_0, 32);
            step = fabsf(most) / (type ? 8 : 127);
            for (int i = 0; i < 32; i++) {
                double off = fabs(x[i] - y[i]) - 0.001 * fabs(x[i]);     /* the scale itself is a half */
                if (type && x[i] * most < 0 && fabsf(x[i]) > 7.5f * step) off -= step / 2;
                off = step > 1e-4f ? off / step : off > 1e-4;
                worst[type] = off > worst[type] ? off : worst[type];
            }
            text_free(&o);
        }
    check("Q8_0 and back: half a step", worst[0], 0.501);
    check("Q4_0 and back: half a step", worst[1], 0.501);
}

/* Whether a mixer works both with a short convolution and without. */
static bool either_conv(const MixerKind *k) {
    if (!k->law || k->qwen) return k == &mixer_kinds[SOFTMAX];
    return mixer_of(k)->front.silu == SILU_NEVER || mixer_of(k)->front.silu == SILU_CONV;
}

/* One step of a small model: DIR/NAME.txt describes it, DIR/NAME.bin holds the parameters, their gradients, and the parameters afterwards. */
static void dump_step(const char *dir, const char *name, const TinyConfig *c) {
    enum { B = 2 };
    const int N = B * c->seq_len;
    int id[64], target[64], count;
    char path[4096];
    Tiny m;
    rng = 1;
    tiny_new(&m, c, B, 5);
    for (int n = 0; n < m.n_tensors; n++) {                     /* nothing at 0 or 1 only, decays from slow to fast, tokens of the size of what is added to them */
        const TinyTensor *t = &m.tensors[n];
        bool gate = strstr(t->name, "ssm_a") || strstr(t->name, "ssm_m_") || strstr(t->name, "ssm_p") || strstr(t->name, "bias");
        for (size_t i = 0; i < tensor_len(t) && !(t->flags & CONSTANT); i++) {
            real *p = &m.params[t->at + i];
            *p = (real)(gate && !(t->flags & DECAYS) ? 0.7 * rng_normal(&rng) : *p * (n == 0 ? 4 : 1) + 0.05 * rng_normal(&rng));
        }
    }
    for (int i = 0; i < N; i++) id[i] = (int)(rng_next(&rng) % (uint64_t)c->vocab_size), target[i] = i % 9 == 8 ? -1 : (int)(rng_next(&rng) % (uint64_t)c->vocab_size);
    real *before = checked(malloc(m.n_params * sizeof(real)));
    memcpy(before, m.params, m.n_params * sizeof(real));
    double loss = tiny_step(&m, id, target, true, &count) / count;
    double norm = adamw_step(&m, &(AdamW){ .lr = 1e-2, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .decay = 0.1, .clip = 0.5 }, 1);

    snprintf(path, sizeof path, "%s/%s.txt", dir, name);
    FILE *f = fopen(path, "w");
    if (!f) perror(path), exit(1);
    fprintf(f, "arch %s\nlayers %d\nseq_len %d\nbatch %d\nheads %d\ndk %d\ndv %d\nq_heads %d\nkv_heads %d\nhead_dim %d\nn_rot %d\neps %.17g\no_eps %.17g\ndivisor %.17g\nloss %.17g\nnorm %.17g\nids",
            mixer_kinds[c->mixer].arch, c->n_layers, c->seq_len, B, c->n_heads, c->dk, c->dv, c->q_heads, c->kv_heads, c->head_dim, c->n_rot, (double)(real)c->eps, (double)(real)(mixer_kinds[c->mixer].norm_eps > 0 ? mixer_kinds[c->mixer].norm_eps : c->eps), c->decay_divisor, loss, norm);
    for (int i = 0; i < N; i++) fprintf(f, " %d", id[i]);
    fprintf(f, "\ntargets");
    for (int i = 0; i < N; i++) fprintf(f, " %d", target[i]);
    for (int n = 0; n < m.n_tensors; n++) fprintf(f, "\ntensor %s %d %d", m.tensors[n].name, m.tensors[n].rows, m.tensors[n].cols);
    fprintf(f, "\n");
    fclose(f);
    snprintf(path, sizeof path, "%s/%s.bin", dir, name);
    if (!(f = fopen(path, "wb"))) perror(path), exit(1);
    const real *parts[3] = { before, m.grads, m.params };
    for (int k = 0; k < 3; k++)
        for (int n = 0; n < m.n_tensors; n++)
            for (size_t i = 0; i < tensor_len(&m.tensors[n]); i++) fwrite(&(double){ parts[k][m.tensors[n].at + i] }, sizeof(double), 1, f);
    fclose(f), free(before), tiny_free(&m);
}

/* For tests/train_step.py: every mixer, alone and as a hybrid, with and without a short convolution where it has the choice. */
static int dump(const char *dir) {
    for (int mixer = 0; mixer < N_KINDS; mixer++)
        for (int hybrid = 0; hybrid < 2 - (mixer == SOFTMAX); hybrid++)
            for (int other = 0; other < 1 + either_conv(&mixer_kinds[mixer]); other++) {
                char name[64];
                TinyConfig c = small_config(mixer, hybrid);
                c.dv = 32, c.eps = sizeof(real) > 4 ? 1e-6f : 1e-3f;   /* a norm magnifies the rounding of a readout that nearly vanishes: in float, 30 times less so */
                if (other) c.d_conv = 4 - c.d_conv;
                snprintf(name, sizeof name, "%02d %s%s%s", mixer, mixer_kinds[mixer].name, hybrid ? ", hybrid" : "", c.d_conv ? ", conv" : "");
                dump_step(dir, name, &c);
            }
    return 0;
}

/* A misspelled word finds the one that was meant, and a strange one finds none. */
static void test_nearest(void) {
    static const char *const list[] = { "temperature", "top-p", "top-k", "steps", "seed", "tokenizer", "mixer", "minutes", "o", NULL };
    static const char *const pairs[][2] = {
        { "stpes", "steps" }, { "step", "steps" }, { "sede", "seed" }, { "temprature", "temperature" }, { "temp", "temperature" },
        { "top_p", "top-p" }, { "TOP-K", "top-k" }, { "tokeniser", "tokenizer" }, { "token", "tokenizer" }, { "mixxer", "mixer" },
        { "minute", "minutes" }, { "seed-of-all", "seed" }, { "teperatrue", "temperature" }, { "x", NULL }, { "", NULL }, { "banana", NULL }, { "verbose", NULL },
        { "a-word-that-is-much-longer-than-any-option-of-any-program", NULL },
    };
    int wrong = 0;
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        const char *got = nearest(pairs[i][0], list), *want = pairs[i][1];
        if (want ? got && !strcmp(got, want) : !got) continue;
        printf("FAIL nearest: %s: %s instead of %s\n", pairs[i][0], got ? got : "none", want ? want : "none");
        wrong++;
    }
    check("the word that was meant", wrong, 0.5);
}

/* Options that do not go together: exit code 2 and one sentence, before anything is read or written. A row accepted by mistake
 * fails quickly: its file cannot be written, and a task ends after half a second. */
static void test_misuse(void) {
    static const char *const rows[] = {
        "--nope", "--steps", "--steps 0", "--steps 1.5", "--lr 2", "--seed x", "a b", "--mixer nope", "--type f64", "--dim 33", "--hidden 33", "--key-dim 20",
        "--half-life 0.5", "--half-life 10 --mixer deltanet", "--half-life 10 --mixer softmax", "--half-life 10 --mixer lightnet",
        "--hybrid 3", "--hybrid 3:2", "--hybrid 0:1", "--hybrid 3:1x", "--hybrid 4:1", "--hybrid 3:1 --mixer softmax", "--conv 0 --mixer mamba2", "--conv 4 --mixer rwkv7",
        "--conv 4 --mixer softmax", "--mixer softmax --heads 2", "--mixer softmax --key-dim 16", "--mixer mamba2 --hidden 64", "--without decay", "--tokenizer /nowhere/x -o /nowhere/x",
        "--task nope", "--task mqar a", "--task mqar --vocab 300", "--task mqar --context 32", "--task mqar -z a", "--task mqar --tokenizer a", "--task mqar -i a",
        "--task mqar --without", "--task mqar --without x", "--task mqar --without gate,", "--task mqar --without ,gate", "--task mqar --without gates", "--task mqar --without decay -o /nowhere/x",
        "--task mqar --mixer gla --without map", "--task mqar --mixer gla --without gate,rotation", "--task mqar --mixer hgrn2 --without decay", "--task mqar --mixer kda --without gate",
        "--task mqar --mixer softmax --without gate", "--task mqar --mixer rwkv7 --without decay", "--task mqar --mixer deltanet --without decay", "--task mqar --mixer deltanet --without map", "--task mqar -o /nowhere/x",
        "--task mqar -o /nowhere/x --hidden 64 --mixer hgrn2",
        "--stpes 3", "-steps 3", "--max_iters 3", "--resume=1", "--type q4_1", "--task mqar --type q4_0", "--task mqar --mixer deltanet --half-life 5",
        "--task mqar --mixer softmax --half-life 5", "--task mqar --mixer abc --half-life 5", "--task mqar --mixer gla --half-life 5 --without decay",
        "--task mqar --mixer softmax --key-dim 32", "--task mqar --mixer softmax --heads 2", "--steps 3", "--vocab 300 -z a", "--task mqar --context 64",
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char line[200], path[] = "/tmp/test_train.XXXXXX", *argv[24] = { "train_tiny" };
        int argc = 1, lines = 0;
        snprintf(line, sizeof line, "--minutes 0.01%s %s", strstr(rows[i], "--task") || strstr(rows[i], "/nowhere") ? "" : " -o /nowhere/x", rows[i]);
        for (char *word = strtok(line, " "); word; word = strtok(NULL, " ")) argv[argc++] = word;
        fflush(NULL);
        const int fd = mkstemp(path), old = dup(2);
        if (fd < 0 || dup2(fd, 2) < 0) perror(path), exit(1);
        int code = 0;
        const pid_t child = fork();
        if (!child) exit(train_main(argc, argv));
        if (child < 0 || waitpid(child, &code, 0) < 0) perror("train_tiny"), exit(1);
        code = WIFEXITED(code) ? WEXITSTATUS(code) : -1;
        dup2(old, 2), close(old);
        char said[2000];
        const ssize_t n = pread(fd, said, sizeof said - 1, 0);
        said[n > 0 ? n : 0] = 0;
        for (char *c = said; *c; c++) lines += *c == '\n';
        close(fd), unlink(path);
        const bool ok = code == 2 && lines == 1 && !strncmp(said, "train_tiny: ", 12);
        ok ? passed++ : failed++;
        if (!ok) printf("FAIL misuse: %s: exit %d, %s\n", rows[i], code, said);
    }
}

int main(int argc, char **argv) {
#ifdef _OPENMP
    spin_briefly(argv);
#endif
    choose_tiny_kernels();
    if (argc == 3 && !strcmp(argv[1], "--dump")) return dump(argv[2]);
#ifdef _OPENMP
    omp_set_num_threads(1);             /* the differences are thousands of tiny runs */
#endif
    const char *names[3] = { "plain", kern.name, NULL };
    TinyKernels best = kern;
    for (int i = 0; i < 2; i++) {
        kern = i ? best : kernels_tiny_plain;
        if (i && !strcmp(kern.name, "plain")) break;
        printf("ok kernels: %s\n", names[i]);
        test_kernels();
        test_pairs();
        test_recurrence();
        test_attention();
        test_cross_entropy();
        test_every_mixer(i == 0);
    }
    Data d;
    small_data(&d);
    for (int mixer = 0; mixer < N_KINDS; mixer++) {
        const MixerKind *k = &mixer_kinds[mixer];
        test_file(&d, mixer, mixer == GATED_DELTA, false);
        if (!k->qwen) test_file(&d, mixer, true, false), test_file(&d, mixer, false, true);
        if (mixer == GATED_DELTA || mixer == GLA || mixer == SOFTMAX) test_mtp_file(&d, mixer);
    }
    test_same_bits(&d, GATED_DELTA);
    test_same_bits(&d, GLA);
    test_same_bits(&d, N_KINDS - 1);
    test_checkpoint_bytes(&d);
    test_counts();
    test_halves();
    test_blocks();
    test_nearest();
    test_misuse();
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
