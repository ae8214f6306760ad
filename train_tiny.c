/* train_tiny.c - trains a tiny gated linear attention language model on a CPU, in one file.
 *
 *   build   cc -O3 -o train_tiny train_tiny.c -lm   (-fopenmp uses every core)
 *   run     ./train_tiny                writes stories.bin; ./run stories.bin -i "Once upon a time"
 *           ./train_tiny book.txt       the same from a text of yours: book.bin
 *
 *    1 platform    2 kernels     3 matmul      4 the recurrence   5 pairs, forward and backward
 *    6 model       7 layers      8 one step    9 AdamW           10 stories   11 vocabulary
 *   12 data       13 files      14 training, command line
 *
 * Every operation is a pair, x_forward then x_backward; above a backward line stands, as //~, the
 * forward line that it undoes. A leading d is "gradient of the loss with respect to": dx has the
 * shape of x. A layer is written once, as the list of its operations: run from the first it
 * computes, run from the last it gives the gradients.
 *
 * Here to learn? 4 is how a memory learns what to keep: a recurrence run forward, and one from the
 * end (the loops themselves are kernels of 2, recurrence_forward and recurrence_backward). 7 has
 * the equation of each mixer and what stands around it, 8 runs the list, 14 is the loop around it
 * all. The long sections begin with a map of their rooms. */

#ifndef TARGET
/* ---- 1. platform ---------------------------------------------------------------------------
 * run.c, the number type, what an operation is, and the table of kernels that section 2 fills per
 * instruction set. The program uses much of run.c: its files, texts and tables (section 3), its
 * table of mixers, its GGUF reader, its tokenizer, the options of its command line, and its
 * inference for the sample at the end. */
#define RUN_NO_MAIN
#define RUN_OPTIONS
#define RUN_STATIC
#ifndef RUN_SCALAR
#define RUN_SCALAR /* the sample is short, and the other kernels take long to compile */
#endif
#include "run.c"
#include <ctype.h>
#include <stdbool.h>

#define PARALLEL PARALLEL_TASKS(ALL_THREADS)
/* The tests compile this file with -DREAL=double, so that finite differences mean something. */
#ifndef REAL
#define REAL float
#define FAST_EXP 1 /* e^x and its relatives as polynomials over vectors; 0: the library's */
#elif !defined(FAST_EXP)
#define FAST_EXP 0
#endif
typedef REAL real;

enum {
    CHUNK = 16,       /* tokens between two kept states of the recurrence */
    BLOCK = 64,       /* tokens of one unit of parallel work */
    DEPTH = 512,      /* terms of a matrix product added before the sum goes to memory */
    MAX_TILE = 12,    /* rows of the largest matmul tile */
    TILE_VECS = 2     /* vectors in a row of each */
};

/* Numbers of all tokens as they flow through the model, and the gradient of the loss beside them:
 * per token a row of `heads` vectors of n reals, hs apart; rows are ld apart. */
typedef struct { real *x, *dx; size_t ld, hs; int heads, n; } Var;

/* Vector h of row r, and its gradient. */
INLINE real *row(Var v, int r, int h) { return v.x + r * v.ld + h * v.hs; }
INLINE real *drow(Var v, int r, int h) { return v.dx + r * v.ld + h * v.hs; }

/* Numbers that all tokens share. dw: where their gradient is added; NULL: they are not learned.
 * slope: w was made of what is learned, `share` numbers of each; this is the derivative of that. */
typedef struct { real *w, *dw; const real *slope; int n, share; size_t at; } Param;

/* What the feature map of a key or query does, or the factor of a gate: x, silu(x), sigmoid(x),
 * elu(x) + 1. Of maps only: tanh(x), relu(x)^2, 1 - x, and the decays of RWKV-6 and -7,
 * exp(-e^x) and exp(-e^(-1/2) sigmoid(x)). */
typedef enum {
    F_ID, F_SILU, F_SIGMOID, F_ELU1, F_TANH, F_SQRELU, F_REST, F_DECAY6, F_DECAY7
} Act;
#define DECAY7 ((real)0.60653065971263342)  /* e^(-1/2) */

/* How the work of an operation is divided: blocks of BLOCK tokens, each for itself; sequences,
 * where a token sees others; heads of sequences; or not at all, for it divides it by itself. */
typedef enum { BY_ITSELF, BLOCKS, SEQUENCES, BY_HEAD } Units;

/* A piece of that work: tokens from .. to - 1, or the number of a head of a sequence. Gradients of
 * parameters that are sums over tokens go to a row of `sums`, where that of w[i] begins at w[i].at:
 * a row per unit of work, and the rows are added in their order, so the number of threads changes
 * no bit. */
typedef struct { int from, to; real *sums; } Work;

/* Vector h of every token r of a piece of work `at`. */
#define EACH_VECTOR(r, h, heads)             \
    for (int r = at.from; r < at.to; r++)    \
        for (int h = 0; h < (heads); h++)

/* An operation and its way back. assigns: bit i, if the gradient of x[i] is never added to what is
 * there. */
typedef struct Op Op;
typedef struct {
    void (*forward)(const Op *o, Work at);
    void (*backward)(const Op *o, Work at);
    Units units;
    unsigned assigns;
} Pair;

struct Op {
    Pair run;
    int B, T;                   /* sequences, and tokens of each */
    Act act;
    int mode, writes;           /* of a recurrence: SCAN_ERASES ..., writes per token */
    real scale;                 /* a factor, a sign, or an epsilon */
    unsigned add;               /* bit i: the gradient of x[i] is added to what is there */
    Var y[3], x[8];             /* out; in. The gradient of x[i] is wanted if it has room for one */
    Param w[2];
    real *keep[2];              /* what the way back needs besides */
    const real *angles;         /* of positions */
    int half;                   /* of a layer: see order_gradients */
};

/* The recurrence of one head over one sequence, and its gradients: the equations are those of
 * section 4. x: q, k, e, b (T, dk), v, c (T, dv), d (T, dk) or one per token, rho one per token. */
enum { SCAN_ERASES = 1, SCAN_WRITES_BACK = 2, SCAN_FADES_VALUES = 4, SCAN_READS_FIRST = 8 };
enum { X_Q, X_K, X_V, X_D, X_E, X_RHO, X_C, X_B, N_X };
typedef struct {
    int T, dk, dv;              /* tokens, key width, value width */
    bool vector_decay;          /* d holds one factor per key channel, else one per token */
    int mode;                   /* what it does besides: SCAN_ERASES ... */
    unsigned add;               /* as in Op */
    const real *x[N_X];         /* those that the mode has no use for are NULL */
    real *dx[N_X];
    size_t ld[N_X], ldv;        /* reals from a token to the next: in x, in o and w */
    real *w;                    /* (T, dv) what is written; with SCAN_WRITES_BACK: recalled */
    real *o, *d_o;              /* (T, dv) what is read, and its gradient */
    real *S;                    /* (ceil(T / CHUNK), dv, dk) the states kept for the way back */
    real *scratch;              /* recurrence_scratch(dk, dv) reals */
} Scan;

/* A tile of a matrix product: c (rows, cols) = or += a (rows, depth) b (depth, TILE_COLS), in rows
 * ldc apart. a(i,k) lies at a[i * ars + k * acs]; b is packed, TILE_COLS reals per k. */
typedef struct {
    real *c;
    const real *a, *b;
    size_t ldc, ars, acs;
    int rows, cols, depth;
    bool add;
} Tile;

/* Of a step of AdamW: rates, epsilon, what undoes the start of both means at zero, and the factor
 * of the gradient. */
typedef struct { real lr, b1, b2, eps, decay, c1, c2, shrink; } AdamStep;

/* What is compiled once per instruction set; what each does stands at its definition. */
typedef struct {
    const char *name;
    int lanes, tile_rows, tile_cols;        /* reals in a vector; rows and columns of a tile */
    void (*tile)(const Tile *t);
    void (*pack_rows)(real *to, const real *a, size_t acs, int rows, int depth);
    void (*pack_panel)(real *to, const real *b, size_t brs, size_t bcs, int depth, int cols);
    Pair rmsnorm, l2norm, map, glu, scale, gated_norm, conv, gate;
    void (*softmax_forward)(real *p, real *lse, int rows, int first, int n, real scale);
    void (*softmax_recompute)(real *p, const real *lse, int rows, int first, int n, real scale);
    void (*softmax_backward)(real *dp, const real *p, int rows, int keys, int n, real scale);
    double (*cross_entropy)(real *logits, const int *target, int rows, int n, real scale);
    void (*recurrence_forward)(const Scan *r);
    void (*recurrence_backward)(const Scan *r);
    void (*adamw)(real *p, const real *g, real *m, real *v, size_t n, const AdamStep *a);
} TinyKernels;

static TinyKernels kern;        /* chosen once, in choose_tiny_kernels */
#endif

#ifdef TARGET
/* ---- 2. kernels ----------------------------------------------------------------------------
 * This section is compiled once per instruction set: the file includes itself with TARGET (function
 * attribute), NAME (suffix of the functions), VECTOR_BYTES and TILE_ROWS set. Vectors
 * are the GNU ones that gcc and clang turn into whatever the target has; with another compiler a
 * vector is one number and the text stays the same. Vectors of a row hold a multiple of 16 reals,
 * but for gates. Nothing here starts a thread. Its rooms:
 *
 *   vectors             a vector of numbers, the sum and the largest of its lanes, e^x, square
 *                       root, ln sigmoid
 *   matrix product      one tile of it, and what lays its inputs side by side
 *   norms               rmsnorm, l2norm
 *   element by element  activations, feature maps, gates that multiply, the gated norm
 *   convolution         over the last few tokens, channel by channel
 *   decays              sigmoid(x)^rate and exp(-rate softplus(x)), which most mixers fade by
 *   softmax             of attention, and cross-entropy with its gradient
 *   the recurrence      forward and backward: the equations of section 4 in vectors
 *   AdamW               one step
 *   the table           of all of these, one per instruction set; and which one runs
 *
 * Start with the recurrence, after section 4. The other pairs are short, and each stands on its
 * own. A pair takes its arrays from an Op (section 1); its comment says what x, y, w and keep
 * are. */

/* -- vectors -- */

#ifdef __GNUC__
typedef real NAME(Vec)
    __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));
#define LANES ((int)(VECTOR_BYTES / sizeof(real)))
#else
typedef real NAME(Vec);
#define LANES 1
#endif
#define Vec NAME(Vec)
#define VEC(p) (*(Vec *)(p))              /* the vector at p, to read or write */
#define READ(p) (*(const Vec *)(p))
#define KERNEL static TARGET
#define HELPER INLINE TARGET

/* A gradient to where it goes: added to what is there, or assigned. */
HELPER void NAME(give)(real *to, Vec g, bool add) {
    if (add) g += READ(to);
    VEC(to) = g;
}

/* Sum of the lanes, halves first: one order, whatever the number of threads. */
HELPER real NAME(sum)(Vec x) {
#ifdef __GNUC__
    enum { N = 16 / sizeof(real) };
#define FOLD(y, x, bytes)                                                \
    typedef real y##_type __attribute__((vector_size(bytes)));           \
    y##_type y, y##_high;                                                \
    memcpy(&y, &x, bytes), memcpy(&y##_high, (char *)&x + bytes, bytes); \
    y += y##_high;
#if VECTOR_BYTES == 64
    FOLD(half, x, 32)
    FOLD(last, half, 16)
#elif VECTOR_BYTES == 32
    FOLD(last, x, 16)
#else
    Vec last = x;
#endif
#undef FOLD
    real s = last[0] + last[N / 2];
    return N == 4 ? s + (last[1] + last[N - 1]) : s;
#else
    return x;
#endif
}

/* The larger of a and b, lane by lane: a comparison of vectors gives all ones or all zeros, which
 * then picks the bits. */
HELPER Vec NAME(larger)(Vec a, Vec b) {
#ifdef __GNUC__
    __typeof__(a > b) more = a > b;
    return (Vec)((more & (__typeof__(more))a) | (~more & (__typeof__(more))b));
#else
    return a > b ? a : b;
#endif
}

/* The largest of n values; n >= 1, and not necessarily a multiple of the lanes. */
HELPER real NAME(largest)(const real *x, int n) {
    real most = x[0], b[LANES];
    int i = 0;
    if (n >= LANES) {
        Vec m = READ(x);
        for (; i + LANES <= n; i += LANES) m = NAME(larger)(m, READ(x + i));
        memcpy(b, &m, sizeof m);
        for (int l = 0; l < LANES; l++) most = b[l] > most ? b[l] : most;
    }
    for (; i < n; i++) most = x[i] > most ? x[i] : most;
    return most;
}

/* The library's function of each lane. */
HELPER Vec NAME(each)(Vec x, double (*f)(double)) {
    real b[LANES];
    memcpy(b, &x, sizeof x);
    for (int l = 0; l < LANES; l++) b[l] = (real)f(b[l]);
    memcpy(&x, b, sizeof x);
    return x;
}

#if FAST_EXP && defined(__GNUC__)
typedef int32_t NAME(IVec) __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));

/* e^x: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2], error about 1e-7; x is clamped to where the
 * result is a normal number. */
HELPER Vec NAME(exp)(Vec x) {
    x = NAME(larger)(x, (Vec){0} - 87.0f);
    x = -NAME(larger)(-x, (Vec){0} - 88.0f);
    Vec n = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: its low bits now hold round(x / ln 2) */
    NAME(IVec) shift = (NAME(IVec))n << 23;
    n -= 12582912.0f;
    Vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Vec p = r * 1.3981999e-3f + 8.3334519e-3f;
    p = p * r + 4.1665796e-2f;
    p = p * r + 1.6666666e-1f;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    return (Vec)((NAME(IVec))p + shift);
}

/* Square root: three Newton steps for 1 / sqrt(x) from a guess that halves the exponent. */
HELPER Vec NAME(sqrt)(Vec x) {
    Vec y = (Vec)(0x5f3759df - ((NAME(IVec))x >> 1));
    for (int i = 0; i < 3; i++) y *= 1.5f - 0.5f * x * y * y;
    return x * y;
}

/* ln sigmoid(x) = min(x, 0) - ln(1 + t), t = e^-|x|:  ln(1 + t) = 2 atanh(s), s = t / (t + 2), as a
 * series, since s <= 1/3. */
HELPER Vec NAME(logsigmoid)(Vec x) {
    Vec size = (Vec)((NAME(IVec))x & 0x7fffffff), t = NAME(exp)(-size), s = t / (t + 2);
    Vec s2 = s * s, p = s2 * (1.0f / 13) + 1.0f / 11;
    p = p * s2 + 1.0f / 9;
    p = p * s2 + 1.0f / 7;
    p = p * s2 + 1.0f / 5;
    p = p * s2 + 1.0f / 3;
    return (x - size) * 0.5f - 2 * (s + s * s2 * p);
}
#else
HELPER Vec NAME(exp)(Vec x) { return NAME(each)(x, exp); }
HELPER Vec NAME(sqrt)(Vec x) { return NAME(each)(x, sqrt); }
static double NAME(logsigmoid1)(double x) { return (x < 0 ? x : 0) - log1p(exp(-fabs(x))); }
HELPER Vec NAME(logsigmoid)(Vec x) { return NAME(each)(x, NAME(logsigmoid1)); }
#endif

HELPER Vec NAME(sigmoid)(Vec x) { return 1 / (1 + NAME(exp)(-x)); }

/* -- matrix product -- */

/* A tile of it, all of which is in registers meanwhile. rows and cols may fall short of the tile;
 * the missing rows are computed from the last one and not stored. */
#define TILE_COLS (TILE_VECS * LANES)
KERNEL void NAME(gemm_tile)(const Tile *t) {
    Vec s[TILE_ROWS][TILE_VECS];
    const real *row[TILE_ROWS], *b = t->b;
    const size_t acs = t->acs;
    const int depth = t->depth;
    for (int i = 0; i < TILE_ROWS; i++) {
        row[i] = t->a + (size_t)(i < t->rows ? i : t->rows - 1) * t->ars;
        for (int j = 0; j < TILE_VECS; j++) s[i][j] = (Vec){0};
    }
    for (int k = 0; k < depth; k++, b += TILE_COLS) {
        Vec bk[TILE_VECS];
        for (int j = 0; j < TILE_VECS; j++) bk[j] = READ(b + j * LANES);
        for (int i = 0; i < TILE_ROWS; i++) {
            real x = row[i][(size_t)k * acs];
            for (int j = 0; j < TILE_VECS; j++) s[i][j] += x * bk[j];
        }
    }
    real *c = t->c;
    for (int i = 0; i < t->rows; i++, c += t->ldc) {
        if (t->cols == TILE_COLS) {
            for (int j = 0; j < TILE_VECS; j++) NAME(give)(c + j * LANES, s[i][j], t->add);
        } else {
            real edge[TILE_COLS];
            memcpy(edge, s[i], sizeof edge);
            for (int j = 0; j < t->cols; j++) c[j] = t->add ? c[j] + edge[j] : edge[j];
        }
    }
}

/* Rows of a, whose columns lie acs apart, side by side for the tile above: one (depth, TILE_ROWS)
 * after the other, DEPTH TILE_ROWS apart. A last tile may be short: its missing rows are never
 * read. */
KERNEL void NAME(pack_rows)(real *to, const real *a, size_t acs, int rows, int depth) {
    for (int k = 0; k < depth; k++, to += TILE_ROWS, a += acs)
        for (int i = 0; i < rows; i += TILE_ROWS) {
            real *tile = to + (size_t)i * DEPTH;
            if (rows - i >= TILE_ROWS) memcpy(tile, a + i, TILE_ROWS * sizeof *to);
            else memcpy(tile, a + i, (size_t)(rows - i) * sizeof *to);
        }
}

/* cols columns of b as (depth, TILE_COLS), zeros where there are fewer; b(k,j) lies at
 * b[k * brs + j * bcs]. */
KERNEL void NAME(pack_panel)(real *to, const real *b, size_t brs, size_t bcs, int depth, int cols) {
    if (cols < TILE_COLS) memset(to, 0, (size_t)depth * TILE_COLS * sizeof *to);
    if (bcs == 1)
        for (int k = 0; k < depth; k++, to += TILE_COLS, b += brs) {
            if (cols == TILE_COLS) memcpy(to, b, TILE_COLS * sizeof *to);
            else memcpy(to, b, (size_t)cols * sizeof *to);
        }
    else
        for (int j = 0; j < cols; j++)
            for (int k = 0; k < depth; k++) to[(size_t)k * TILE_COLS + j] = b[k * brs + j * bcs];
}

/* -- norms -- */

HELPER real NAME(squares)(const real *x, int n) {
    Vec sum = {0};
    for (int i = 0; i < n; i += LANES) sum += READ(x + i) * READ(x + i);
    return NAME(sum)(sum);
}

/* y = x / sqrt(mean(x^2) + scale) * w;  w (n), or (heads, n) where each head has its own. Kept: the
 * factor of each vector, (tokens, heads). */
KERNEL void NAME(rmsnorm_forward)(const Op *o, Work at) {
    const Var x = o->x[0], y = o->y[0];
    const int n = x.n, own = o->w[0].n > n ? n : 0;
    EACH_VECTOR(r, h, x.heads) {
        const real *xr = row(x, r, h), *w = o->w[0].w + h * own;
        real *yr = row(y, r, h);
        real f = 1 / (real)sqrt(NAME(squares)(xr, n) / n + o->scale);
        for (int i = 0; i < n; i += LANES) VEC(yr + i) = READ(xr + i) * f * READ(w + i);
        o->keep[0][r * x.heads + h] = f;
    }
}

//~ y_i = x_i f w_i,  f = (mean(x^2) + scale)^-1/2, so df/dx_i = -f^3 x_i / n
KERNEL void NAME(rmsnorm_backward)(const Op *o, Work at) {
    const Var x = o->x[0], y = o->y[0];
    const int n = x.n, own = o->w[0].n > n ? n : 0, add = o->add & 1;
    EACH_VECTOR(r, h, x.heads) {
        const real *xr = row(x, r, h), *dy = drow(y, r, h), *w = o->w[0].w + h * own;
        real *dx = drow(x, r, h), *dw = at.sums + o->w[0].at + h * own;
        real f = o->keep[0][r * x.heads + h];
        Vec dot = {0};
        for (int i = 0; i < n; i += LANES) dot += READ(dy + i) * READ(w + i) * READ(xr + i);
        real c = NAME(sum)(dot) * f * f * f / n;
        for (int i = 0; i < n; i += LANES) {
            Vec g = READ(dy + i) * READ(w + i) * f - READ(xr + i) * c;
            VEC(dw + i) += READ(dy + i) * READ(xr + i) * f;
            NAME(give)(dx + i, g, add);
        }
    }
}

/* y = scale x / sqrt(sum(x^2) + 1e-6). A sum, not a mean. Kept: as above. */
KERNEL void NAME(l2norm_forward)(const Op *o, Work at) {
    const Var x = o->x[0], y = o->y[0];
    EACH_VECTOR(r, h, x.heads) {
        const real *xr = row(x, r, h);
        real *yr = row(y, r, h);
        real f = 1 / (real)sqrt(NAME(squares)(xr, x.n) + (real)1e-6), scaled = f * o->scale;
        for (int i = 0; i < x.n; i += LANES) VEC(yr + i) = READ(xr + i) * scaled;
        o->keep[0][r * x.heads + h] = f;
    }
}

//~ y_i = scale x_i f,  f = (sum(x^2) + 1e-6)^-1/2, so df/dx_i = -f^3 x_i
KERNEL void NAME(l2norm_backward)(const Op *o, Work at) {
    const Var x = o->x[0], y = o->y[0];
    const int add = o->add & 1;
    EACH_VECTOR(r, h, x.heads) {
        const real *xr = row(x, r, h), *dy = drow(y, r, h);
        real *dx = drow(x, r, h), f = o->keep[0][r * x.heads + h], scaled = f * o->scale;
        Vec dot = {0};
        for (int i = 0; i < x.n; i += LANES) dot += READ(dy + i) * READ(xr + i);
        real c = NAME(sum)(dot) * f * f;
        for (int i = 0; i < x.n; i += LANES)
            NAME(give)(dx + i, (READ(dy + i) - READ(xr + i) * c) * scaled, add);
    }
}

/* -- element by element -- */

/* act(x), and its derivative in *slope. */
HELPER Vec NAME(act_slope)(Act act, Vec x, Vec *slope) {
    const Vec zero = {0};
    if (act == F_SILU) {
        Vec s = NAME(sigmoid)(x);
        *slope = s * (1 + x * (1 - s));
        return x * s;
    }
    if (act == F_SIGMOID) {
        Vec s = NAME(sigmoid)(x);
        *slope = s * (1 - s);
        return s;
    }
    if (act == F_ELU1) {
        *slope = NAME(exp)(-NAME(larger)(-x, zero));        /* e^x below 0, 1 above */
        return *slope + NAME(larger)(x, zero);
    }
    if (act == F_TANH) {
        Vec t = 2 * NAME(sigmoid)(2 * x) - 1;
        *slope = 1 - t * t;
        return t;
    }
    if (act == F_SQRELU) {
        Vec p = NAME(larger)(x, zero);
        *slope = 2 * p;
        return p * p;
    }
    if (act == F_REST) {
        *slope = zero - 1;
        return 1 - x;
    }
    if (act == F_DECAY6) {
        Vec rate = NAME(exp)(x), d = NAME(exp)(-rate);
        *slope = -rate * d;
        return d;
    }
    if (act == F_DECAY7) {
        Vec s = NAME(sigmoid)(x), d = NAME(exp)(-DECAY7 * s);
        *slope = -DECAY7 * s * (1 - s) * d;
        return d;
    }
    *slope = zero + 1;
    return x;
}

HELPER Vec NAME(act)(Act act, Vec x) {
    Vec slope;
    return NAME(act_slope)(act, x, &slope);
}

/* Calls body(act, o, at) with act a constant, so that each compiles to a loop without a choice in
 * it. The body of kernel x is called x_. */
#define WITH_ACT(body)                                       \
    (o->act == F_SILU      ? NAME(body)(F_SILU, o, at)       \
     : o->act == F_SIGMOID ? NAME(body)(F_SIGMOID, o, at)    \
     : o->act == F_ELU1    ? NAME(body)(F_ELU1, o, at)       \
                           : NAME(body)(F_ID, o, at))
#define WITH_MAP(body)                                       \
    (o->act == F_TANH     ? NAME(body)(F_TANH, o, at)        \
     : o->act == F_SQRELU ? NAME(body)(F_SQRELU, o, at)      \
     : o->act == F_REST   ? NAME(body)(F_REST, o, at)        \
     : o->act == F_DECAY6 ? NAME(body)(F_DECAY6, o, at)      \
     : o->act == F_DECAY7 ? NAME(body)(F_DECAY7, o, at) : WITH_ACT(body))

/* y = scale act(x), a feature map of keys or queries; with F_ID a copy. */
HELPER void NAME(map_forward_)(const Act act, const Op *o, Work at) {
    const Var x = o->x[0], y = o->y[0];
    const real scale = o->scale;
    EACH_VECTOR(r, h, x.heads) {
        const real *xr = row(x, r, h);
        real *yr = row(y, r, h);
        for (int i = 0; i < x.n; i += LANES)
            VEC(yr + i) = NAME(act)(act, READ(xr + i)) * scale;
    }
}

KERNEL void NAME(map_forward)(const Op *o, Work at) { WITH_MAP(map_forward_); }

//~ y = scale act(x)
HELPER void NAME(map_backward_)(const Act act, const Op *o, Work at) {
    const Var x = o->x[0], y = o->y[0];
    const real scale = o->scale;
    const int add = o->add & 1;
    EACH_VECTOR(r, h, x.heads) {
        const real *xr = row(x, r, h), *dy = drow(y, r, h);
        real *dx = drow(x, r, h);
        for (int i = 0; i < x.n; i += LANES) {
            Vec slope;
            NAME(act_slope)(act, READ(xr + i), &slope);
            NAME(give)(dx + i, READ(dy + i) * slope * scale, add);
        }
    }
}

KERNEL void NAME(map_backward)(const Op *o, Work at) { WITH_MAP(map_backward_); }

/* y = x[0] act(x[1]), element by element: the feed-forward, output gates, gates per channel. */
HELPER void NAME(glu_forward_)(const Act act, const Op *o, Work at) {
    const Var x = o->x[0], z = o->x[1], y = o->y[0];
    EACH_VECTOR(r, h, x.heads) {
        const real *xr = row(x, r, h), *zr = row(z, r, h);
        real *yr = row(y, r, h);
        for (int i = 0; i < x.n; i += LANES)
            VEC(yr + i) = READ(xr + i) * NAME(act)(act, READ(zr + i));
    }
}

KERNEL void NAME(glu_forward)(const Op *o, Work at) { WITH_ACT(glu_forward_); }

//~ y = x act(z)
HELPER void NAME(glu_backward_)(const Act act, const Op *o, Work at) {
    const Var x = o->x[0], z = o->x[1], y = o->y[0];
    const int addx = o->add & 1, addz = o->add & 2;
    EACH_VECTOR(r, h, x.heads) {
        const real *xr = row(x, r, h), *zr = row(z, r, h), *dy = drow(y, r, h);
        real *dx = drow(x, r, h), *dz = drow(z, r, h);
        for (int i = 0; i < x.n; i += LANES) {
            Vec slope, value = NAME(act_slope)(act, READ(zr + i), &slope), g = READ(dy + i);
            Vec gz = g * READ(xr + i) * slope;
            NAME(give)(dx + i, g * value, addx);
            NAME(give)(dz + i, gz, addz);
        }
    }
}

KERNEL void NAME(glu_backward)(const Op *o, Work at) { WITH_ACT(glu_backward_); }

/* y = g x with one factor g = x[1] per head. */
KERNEL void NAME(scale_forward)(const Op *o, Work at) {
    const Var x = o->x[0], y = o->y[0];
    EACH_VECTOR(r, h, x.heads) {
        const real *xr = row(x, r, h), g = *row(o->x[1], r, h);
        real *yr = row(y, r, h);
        for (int i = 0; i < x.n; i += LANES) VEC(yr + i) = READ(xr + i) * g;
    }
}

//~ y = g x
KERNEL void NAME(scale_backward)(const Op *o, Work at) {
    const Var x = o->x[0], y = o->y[0];
    const int add = o->add & 1;
    EACH_VECTOR(r, h, x.heads) {
        const real *xr = row(x, r, h), *dy = drow(y, r, h), g = *row(o->x[1], r, h);
        real *dx = drow(x, r, h), *dg = drow(o->x[1], r, h);
        Vec dot = {0};
        for (int i = 0; i < x.n; i += LANES) {
            dot += READ(dy + i) * READ(xr + i);
            NAME(give)(dx + i, READ(dy + i) * g, add);
        }
        *dg = NAME(sum)(dot) + (o->add & 2 ? *dg : 0);
    }
}

/* y = rmsnorm(x[0]) * w * act(x[1]): norm first, then the gate. w (n) is shared by all heads. Kept:
 * as in rmsnorm. */
HELPER void NAME(gated_norm_forward_)(const Act act, const Op *o, Work at) {
    const Var x = o->x[0], z = o->x[1], y = o->y[0];
    const real *w = o->w[0].w;
    EACH_VECTOR(r, h, x.heads) {
        const real *xr = row(x, r, h), *zr = row(z, r, h);
        real *yr = row(y, r, h);
        real f = 1 / (real)sqrt(NAME(squares)(xr, x.n) / x.n + o->scale);
        for (int i = 0; i < x.n; i += LANES)
            VEC(yr + i) = READ(xr + i) * f * READ(w + i) * NAME(act)(act, READ(zr + i));
        o->keep[0][r * x.heads + h] = f;
    }
}

KERNEL void NAME(gated_norm_forward)(const Op *o, Work at) { WITH_ACT(gated_norm_forward_); }

//~ y_i = x_i f w_i act(z_i),  f = (mean(x^2) + scale)^-1/2, so df/dx_i = -f^3 x_i / n
HELPER void NAME(gated_norm_backward_)(const Act act, const Op *o, Work at) {
    const Var x = o->x[0], z = o->x[1], y = o->y[0];
    const int n = x.n, addz = o->add & 2;
    const real *w = o->w[0].w;
    real *dw = at.sums + o->w[0].at;
    EACH_VECTOR(r, h, x.heads) {
        const real *xr = row(x, r, h), *zr = row(z, r, h), *dy = drow(y, r, h);
        real *dx = drow(x, r, h), *dz = drow(z, r, h), f = o->keep[0][r * x.heads + h];
        Vec dot = {0};
        for (int i = 0; i < n; i += LANES) {
            Vec slope, value = NAME(act_slope)(act, READ(zr + i), &slope);
            Vec g = READ(dy + i), on = READ(xr + i) * f;
            NAME(give)(dz + i, g * on * READ(w + i) * slope, addz);
            g *= value;                     /* gradient of the normalised row times w */
            VEC(dw + i) += g * on;
            g *= READ(w + i);
            dot += g * READ(xr + i);
            VEC(dx + i) = g;
        }
        real c = NAME(sum)(dot) * f * f * f / n;
        for (int i = 0; i < n; i += LANES) VEC(dx + i) = READ(dx + i) * f - READ(xr + i) * c;
    }
}

KERNEL void NAME(gated_norm_backward)(const Op *o, Work at) { WITH_ACT(gated_norm_backward_); }

/* -- convolution -- */

/* Causal depthwise convolution of C channels over a sequence, then silu or nothing:
 *   y_t = act(w[1] + sum_j w[0]_j * x_{t - taps + 1 + j}), zeros before the start
 * w[0] (taps, C), the transpose of the file's: the last tap meets the current token. w[1], the
 * bias, may be missing. Here the sum of token t, channels c .. c + LANES. */
HELPER Vec NAME(conv_sum)(const Op *o, const real *x, int t, int c) {
    const int C = o->y[0].n, taps = o->w[0].n / C;
    const real *w = o->w[0].w + c;
    Vec s = {0};
    if (o->w[1].w) s = READ(o->w[1].w + c);
    for (int j = t < taps - 1 ? taps - 1 - t : 0; j < taps; j++)
        s += READ(w + (size_t)j * C) * READ(x + (size_t)(t - taps + 1 + j) * o->x[0].ld + c);
    return s;
}

KERNEL void NAME(conv_forward)(const Op *o, Work at) {
    const Op op = *o;
    const real *x = row(op.x[0], at.from, 0);
    for (int t = 0; t < at.to - at.from; t++)
        for (int c = 0; c < op.y[0].n; c += LANES) {
            Vec s = NAME(conv_sum)(&op, x, t, c);
            if (op.act == F_SILU) s *= NAME(sigmoid)(s);
            VEC(row(op.y[0], at.from + t, 0) + c) = s;
        }
}

/* One pass over the tokens for each vector of channels, with the last `taps` inputs xs and
 * gradients ds of the sum in registers (8 at most). The sum before silu is computed again instead
 * of kept. */
//~ y_t = act(s_t),  s_t = bias + sum_j w_j x_{t-taps+1+j}:  dx_t = sum_j w_j ds_{t+taps-1-j}
HELPER void NAME(conv_backward_)(const int taps, const Op *o, Work at) {
    const Var xv = o->x[0], yv = o->y[0];
    const int C = yv.n, T = at.to - at.from, silu = o->act == F_SILU, add = o->add & 1;
    const real *w = o->w[0].w, *bias = o->w[1].w;
    real *dw = at.sums + o->w[0].at, *dbias = at.sums + o->w[1].at;
    for (int c = 0; c < C; c += LANES) {
        const real *x = row(xv, at.from, 0) + c, *dy = drow(yv, at.from, 0) + c;
        real *dx = drow(xv, at.from, 0) + c;
        Vec wj[8], dwj[8] = {{0}}, xs[8] = {{0}}, ds[8] = {{0}}, db = {0}, b = {0};
        for (int j = 0; j < taps; j++) wj[j] = READ(w + (size_t)j * C + c);
        if (bias) b = READ(bias + c);
        for (int t = 0; t < T + taps - 1; t++) {
            for (int j = 0; j < taps - 1; j++) {
                xs[j] = xs[j + 1];
                ds[j] = ds[j + 1];
            }
            ds[taps - 1] = (Vec){0};
            if (t < T) {
                xs[taps - 1] = READ(x + (size_t)t * xv.ld);
                Vec d = READ(dy + (size_t)t * yv.ld);
                if (silu) {
                    //~ y = s sigmoid(s)
                    Vec s = b;
                    for (int j = 0; j < taps; j++) s += wj[j] * xs[j];
                    Vec g = NAME(sigmoid)(s);
                    d *= g * (1 + s * (1 - g));
                }
                //~ s_t = bias + sum_j w_j * x_{t - taps + 1 + j}
                db += d;
                for (int j = 0; j < taps; j++) dwj[j] += d * xs[j];
                ds[taps - 1] = d;
            }
            if (t < taps - 1) continue;
            Vec g = {0};                     /* x_{t-taps+1} was read by outputs t-taps+1 .. t */
            for (int j = taps - 1; j >= 0; j--) g += wj[j] * ds[taps - 1 - j];
            NAME(give)(dx + (size_t)(t - taps + 1) * xv.ld, g, add);
        }
        for (int j = 0; j < taps; j++) VEC(dw + (size_t)j * C + c) += dwj[j];
        if (bias) VEC(dbias + c) += db;
    }
}

/* Four taps, the usual number, as a constant. */
KERNEL void NAME(conv_backward)(const Op *o, Work at) {
    const int taps = o->w[0].n / o->y[0].n;
    if (taps == 4) NAME(conv_backward_)(4, o, at);
    else NAME(conv_backward_)(taps, o, at);
}

/* -- decays -- */

/* n values at p in a vector, zeros behind them; and back. Gates per head may be fewer than the
 * lanes. */
HELPER Vec NAME(part)(const real *p, int n) {
    if (n >= LANES) return READ(p);
    Vec x = {0};
    memcpy(&x, p, (size_t)n * sizeof(real));
    return x;
}
HELPER void NAME(put_part)(real *p, Vec x, int n) {
    memcpy(p, &x, (size_t)(n < LANES ? n : LANES) * sizeof(real));
}
HELPER void NAME(add_part)(real *p, Vec x, int n) { NAME(put_part)(p, NAME(part)(p, n) + x, n); }

/* Every gate between 0 and 1, per head or per channel:
 *   y = exp(w[1]_i ln sigmoid(scale (x + w[0]_i)));  w[0], the bias, and w[1] may be missing
 *   scale +1, w[1] 1      sigmoid(x)
 *   scale +1, w[1] 1/16   the decay of GLA
 *   scale -1, w[1] e^A    exp(-e^A softplus(x)), the decay of Mamba
 * Here the number that ln sigmoid is taken of. */
HELPER Vec NAME(gate_input)(const Op *o, int r, int i, int n) {
    Vec x = NAME(part)(row(o->x[0], r, 0) + i, n - i);
    if (o->w[0].w) x += NAME(part)(o->w[0].w + i, n - i);
    return x * o->scale;
}

KERNEL void NAME(gate_forward)(const Op *o, Work at) {
    const int n = o->y[0].n;
    const real *rate = o->w[1].w;
    for (int r = at.from; r < at.to; r++)
        for (int i = 0; i < n; i += LANES) {
            Vec log = NAME(logsigmoid)(NAME(gate_input)(o, r, i, n));
            if (rate) log *= NAME(part)(rate + i, n - i);
            NAME(put_part)(row(o->y[0], r, 0) + i, NAME(exp)(log), n - i);
        }
}

//~ y = exp(rate logsigmoid(s)),  s = scale (x + bias);  logsigmoid'(s) = sigmoid(-s)
KERNEL void NAME(gate_backward)(const Op *o, Work at) {
    const Var y = o->y[0];
    const int n = y.n;
    const real *rate = o->w[1].w;
    real *dbias = o->w[0].w ? at.sums + o->w[0].at : NULL;
    real *drate = o->w[1].dw ? at.sums + o->w[1].at : NULL;
    for (int r = at.from; r < at.to; r++)
        for (int i = 0; i < n; i += LANES) {
            Vec s = NAME(gate_input)(o, r, i, n);
            real *dx = drow(o->x[0], r, 0) + i;
            Vec g = NAME(part)(drow(y, r, 0) + i, n - i) * NAME(part)(row(y, r, 0) + i, n - i);
            if (drate) NAME(add_part)(drate + i, g * NAME(logsigmoid)(s), n - i);
            if (rate) g *= NAME(part)(rate + i, n - i); /* it was that of the logarithm of y */
            g *= NAME(sigmoid)(-s) * o->scale;
            if (dbias) NAME(add_part)(dbias + i, g, n - i);
            if (o->add & 1) NAME(add_part)(dx, g, n - i);
            else NAME(put_part)(dx, g, n - i);
        }
}

/* -- softmax -- */

/* Causal softmax of `rows` rows of scores, in place: row r is query first + r and sees keys
 * 0 .. first + r; a row holds n, a multiple of 16.
 *   p = exp(scale s - lse), lse = ln sum exp(scale s)
 * This one is for the way back, when lse is known. */
KERNEL void NAME(softmax_recompute)(real *p, const real *lse, int rows, int first, int n,
                                    real scale) {
    for (int r = 0; r < rows; r++, p += n) {
        int seen = first + r + 1;
        for (int i = 0; i < n; i += LANES) VEC(p + i) = NAME(exp)(READ(p + i) * scale - lse[r]);
        for (int i = seen; i < n; i++) p[i] = 0;
    }
}

/* The same for the first time: it finds lse (rows). The largest score is taken out first, so that
 * no e^x overflows. */
KERNEL void NAME(softmax_forward)(real *p, real *lse, int rows, int first, int n, real scale) {
    for (int r = 0; r < rows; r++, p += n) {
        int seen = first + r + 1;
        const real max = NAME(largest)(p, seen);
        Vec sum = {0};
        for (int i = seen; i < n; i++) p[i] = max;          /* finite; taken out of the sum below */
        for (int i = 0; i < n; i += LANES) {
            Vec e = NAME(exp)((READ(p + i) - max) * scale);
            VEC(p + i) = e;
            if (i + LANES <= seen) sum += e;
        }
        real total = NAME(sum)(sum);
        for (int i = seen - seen % LANES; i < seen; i++) total += p[i];
        for (int i = seen; i < n; i++) p[i] = 0;
        for (int i = 0; i < n; i += LANES) VEC(p + i) = READ(p + i) * (1 / total);
        lse[r] = max * scale + (real)log(total);
    }
}

//~ p_i = exp(scale s_i - lse), so ds_i = scale p_i (dp_i - sum_j p_j dp_j).  dp becomes ds
KERNEL void NAME(softmax_backward)(real *dp, const real *p, int rows, int keys, int n,
                                   real scale) {
    for (int r = 0; r < rows; r++, dp += n, p += n) {
        Vec dot = {0};
        for (int i = keys; i < n; i++) dp[i] = 0;
        for (int i = 0; i < n; i += LANES) dot += READ(p + i) * READ(dp + i);
        real c = NAME(sum)(dot);
        for (int i = 0; i < n; i += LANES) VEC(dp + i) = READ(p + i) * (READ(dp + i) - c) * scale;
    }
}

/* Sum over rows of -ln softmax(x)[target] (nats); rows whose target is negative do not count. The
 * logits x (rows, n) become their gradient times scale: softmax - onehot. n need not be a multiple
 * of the lanes. */
KERNEL double NAME(cross_entropy)(real *x, const int *target, int rows, int n, real scale) {
    double loss = 0;
    for (int r = 0; r < rows; r++, x += n) {
        if (target[r] < 0) {
            memset(x, 0, (size_t)n * sizeof *x);
            continue;
        }
        const real max = NAME(largest)(x, n), at = x[target[r]];
        Vec sum = {0};
        int i = 0;
        for (; i + LANES <= n; i += LANES) {
            VEC(x + i) = NAME(exp)(READ(x + i) - max);
            sum += READ(x + i);
        }
        real total = NAME(sum)(sum);
        for (; i < n; i++) total += x[i] = (real)exp(x[i] - max);
        loss += log(total) - (double)(at - max);
        const real f = scale / total;
        for (i = 0; i < n; i++) x[i] *= f;
        x[target[r]] -= scale;
    }
    return loss;
}

/* -- the recurrence -- */

/* Token t of an array of it; NULL where it has none. */
HELPER const real *NAME(in)(const Scan *r, int which, size_t t) {
    return r->x[which] + t * r->ld[which];
}

/* Forward: see section 4 for the equations. S is held as (dk, dv): the lanes are value columns, so
 * recall and readout need no sum across lanes. `wide` vectors of columns are kept in registers at a
 * time, and rows go in twos (0 and 1) into two sums. */
HELPER void NAME(recurrence_forward_)(const Scan *r, const int wide, const int mode) {
    const bool erase = mode & SCAN_ERASES, back = mode & SCAN_WRITES_BACK;
    const bool fade = mode & SCAN_FADES_VALUES, first = mode & SCAN_READS_FIRST;
    const int dk = r->dk, dv = r->dv;
    real *S = r->scratch;
    memset(S, 0, (size_t)dk * dv * sizeof *S);
    for (int t = 0; t < r->T; t++) {
        const real *q = NAME(in)(r, X_Q, t), *k = NAME(in)(r, X_K, t), *v = NAME(in)(r, X_V, t);
        const real *e = erase || back ? NAME(in)(r, X_E, t) : NULL, *d = NAME(in)(r, X_D, t);
        const real *b = back ? NAME(in)(r, X_B, t) : NULL, *c_ = fade ? NAME(in)(r, X_C, t) : NULL;
        const real rho = erase ? *NAME(in)(r, X_RHO, t) : 0;
        real *o = r->o + t * r->ldv, *w = erase || back ? r->w + t * r->ldv : NULL;
        if (t % CHUNK == 0) /* keep the state before this token, transposed */
            for (int j = 0; j < dv; j++)
                for (int i = 0; i < dk; i++)
                    r->S[((size_t)(t / CHUNK) * dv + j) * dk + i] = S[(size_t)i * dv + j];
        for (int j = 0; j < dv; j += wide * LANES) {
            Vec a[2][8] = {{{0}}}, rj[8], cj[8], wj[8]; /* two sums over rows; r, c, w */
            if (erase || back) // r = S'e
                for (int i = 0; i < dk; i += 2)
                    for (int c = 0; c < wide; c++) {
                        const real *s0 = S + (size_t)i * dv + j + c * LANES;
                        a[0][c] += e[i] * READ(s0);
                        a[1][c] += e[i + 1] * READ(s0 + dv);
                    }
            for (int c = 0; c < wide; c++) { // w = v - rho r
                wj[c] = READ(v + j + c * LANES);
                if (erase) {
                    wj[c] -= rho * (a[0][c] + a[1][c]);
                    VEC(w + j + c * LANES) = wj[c];
                }
                if (back) VEC(w + j + c * LANES) = rj[c] = a[0][c] + a[1][c];
                if (fade) cj[c] = READ(c_ + j + c * LANES);
                a[0][c] = a[1][c] = (Vec){0};
            }
            for (int i = 0; i < dk; i += 2) { // S = Diag(d) S Diag(c) + k w' + b r';  o = S'q
                real d0 = d[r->vector_decay ? i : 0], d1 = d[r->vector_decay ? i + 1 : 0];
                for (int c = 0; c < wide; c++) {
                    real *s0 = S + (size_t)i * dv + j + c * LANES, *s1 = s0 + dv;
                    if (first) {
                        a[0][c] += q[i] * READ(s0);
                        a[1][c] += q[i + 1] * READ(s1);
                    }
                    Vec n0 = d0 * READ(s0), n1 = d1 * READ(s1);
                    if (fade) {
                        n0 *= cj[c];
                        n1 *= cj[c];
                    }
                    n0 += k[i] * wj[c];
                    n1 += k[i + 1] * wj[c];
                    if (back) {
                        n0 += b[i] * rj[c];
                        n1 += b[i + 1] * rj[c];
                    }
                    if (!first) {
                        a[0][c] += q[i] * n0;
                        a[1][c] += q[i + 1] * n1;
                    }
                    VEC(s0) = n0;
                    VEC(s1) = n1;
                }
            }
            for (int c = 0; c < wide; c++) VEC(o + j + c * LANES) = a[0][c] + a[1][c];
        }
    }
}

/* Calls body(r, n, mode) with the mode a constant. */
#define WITH_MODE(body, n)                                          \
    (r->mode == SCAN_ERASES         ? body(r, n, SCAN_ERASES)       \
     : r->mode == SCAN_WRITES_BACK  ? body(r, n, SCAN_WRITES_BACK)  \
     : r->mode == SCAN_FADES_VALUES ? body(r, n, SCAN_FADES_VALUES) \
     : r->mode == SCAN_READS_FIRST  ? body(r, n, SCAN_READS_FIRST)  \
                                    : body(r, n, 0))

KERNEL void NAME(recurrence_forward)(const Scan *r) {
    if (r->dv % 32 == 0 && 32 / LANES <= 8) WITH_MODE(NAME(recurrence_forward_), 32 / LANES);
    else WITH_MODE(NAME(recurrence_forward_), 1);
}

/* Vector c of the decay of token t. */
HELPER Vec NAME(decay)(const Scan *r, size_t t, int c) {
    const real *d = NAME(in)(r, X_D, t);
    if (r->vector_decay) return READ(d + c * LANES);
    return (Vec){0} + *d;
}

/* Vector c of the gradient of an array of token t: to where it goes. */
HELPER void NAME(out)(const Scan *r, int which, size_t t, int c, Vec g) {
    NAME(give)(r->dx[which] + t * r->ld[which] + c * LANES, g, r->add >> which & 1);
}
/* The same of one number. */
HELPER void NAME(out1)(const Scan *r, int which, size_t t, real g) {
    real *to = r->dx[which] + t * r->ld[which];
    *to = r->add >> which & 1 ? *to + g : g;
}

enum { NAME(MOST) = 128 / (LANES < 4 ? 1 : LANES) };   /* vectors of the widest key, 128 */
#define MOST NAME(MOST)

/* The states of a chunk of n tokens again, from the one that was kept: states[s] is before token
 * s. */
HELPER void NAME(states_again)(const Scan *r, const int nv, const int mode, int begin, int n,
                               real *states) {
    const bool back = mode & SCAN_WRITES_BACK, fade = mode & SCAN_FADES_VALUES;
    const int dk = r->dk, dv = r->dv;
    const size_t size = (size_t)dk * dv;
    Vec k[MOST], d[MOST], b[MOST];
    memcpy(states, r->S + begin / CHUNK * size, size * sizeof *states);
    for (int s = 0; s < n; s++) {
        const size_t t = (size_t)begin + s;
        const real *recalled = r->w + t * r->ldv;
        const real *w = mode & SCAN_ERASES ? recalled : NAME(in)(r, X_V, t);
        const real *S0 = states + s * size, *c_ = fade ? NAME(in)(r, X_C, t) : NULL;
        real *S1 = states + (s + 1) * size;
        for (int c = 0; c < nv; c++) {
            k[c] = READ(NAME(in)(r, X_K, t) + c * LANES);
            d[c] = NAME(decay)(r, t, c);
            if (back) b[c] = READ(NAME(in)(r, X_B, t) + c * LANES);
        }
        for (int j = 0; j < dv; j++)
            for (int c = 0; c < nv; c++) {
                Vec kept = d[c] * READ(S0 + j * dk + c * LANES);
                if (fade) kept *= c_[j];
                if (back) kept += recalled[j] * b[c];
                VEC(S1 + j * dk + c * LANES) = kept + w[j] * k[c];
            }
    }
}

/* One token of the way back: states S0 before it and S1 behind it; dS is that of S1 and leaves as
 * that of S0. */
HELPER void NAME(token_back)(const Scan *r, const int nv, const int mode, size_t t, const real *S0,
                             real *dS) {
    const bool erase = mode & SCAN_ERASES, back = mode & SCAN_WRITES_BACK;
    const bool fade = mode & SCAN_FADES_VALUES, first = mode & SCAN_READS_FIRST;
    const int dk = r->dk, dv = r->dv;
    const real *recalled = r->w + t * r->ldv, *w = erase ? recalled : NAME(in)(r, X_V, t);
    const real *S1 = S0 + (size_t)dk * dv, *d_o = r->d_o + t * r->ldv;
    const real rho = erase ? *NAME(in)(r, X_RHO, t) : 0, *c_ = fade ? NAME(in)(r, X_C, t) : NULL;
    real *dval = r->dx[X_V] + t * r->ld[X_V], *dc = fade ? r->dx[X_C] + t * r->ld[X_C] : NULL;
    const bool add_v = r->add >> X_V & 1, add_c = r->add >> X_C & 1;
    Vec q[MOST], k[MOST], d[MOST], e[MOST], b[MOST];
    Vec dq[MOST], dk_[MOST], dd[MOST], db[MOST], y[MOST];
    for (int c = 0; c < nv; c++) {
        q[c] = READ(NAME(in)(r, X_Q, t) + c * LANES);
        k[c] = READ(NAME(in)(r, X_K, t) + c * LANES);
        d[c] = NAME(decay)(r, t, c);
        if (erase || back) e[c] = READ(NAME(in)(r, X_E, t) + c * LANES);
        if (back) b[c] = READ(NAME(in)(r, X_B, t) + c * LANES);
        dq[c] = dk_[c] = dd[c] = db[c] = y[c] = (Vec){0};
    }
    for (int j = 0; j < dv; j++) {
        Vec g[MOST], dot = {0}, along_b = {0}, along_d = {0};
        for (int c = 0; c < nv; c++) {
            const Vec before = READ(S0 + j * dk + c * LANES);
            //~ o = S'q, after the write or before it
            g[c] = READ(dS + j * dk + c * LANES);
            if (!first) g[c] += d_o[j] * q[c];
            dq[c] += d_o[j] * (first ? before : READ(S1 + j * dk + c * LANES));
            //~ S = ... + k w' + b r'
            dot += g[c] * k[c];
            dk_[c] += w[j] * g[c];
            if (back) {
                along_b += g[c] * b[c];
                db[c] += recalled[j] * g[c];
            }
            //~ S = Diag(d) S Diag(c)
            if (fade) {
                along_d += g[c] * before * d[c];
                dd[c] += c_[j] * g[c] * before;
            } else dd[c] += g[c] * before;
        }
        if (fade) dc[j] = (add_c ? dc[j] : 0) + NAME(sum)(along_d);
        //~ w = v - rho r
        real dw = NAME(sum)(dot), dr = back ? NAME(sum)(along_b) : -rho * dw;
        dval[j] = (add_v ? dval[j] : 0) + dw;
        for (int c = 0; c < nv; c++) {
            Vec gone = d[c] * g[c];                     /* gradient of the state before the token */
            if (fade) gone *= c_[j];
            if (first) gone += d_o[j] * q[c];
            if (erase || back) {
                //~ r = S'e;  y = S dw or S dr:  de = -rho y and drho = -r.dw = -e.y, or de = y
                y[c] += (back ? dr : dw) * READ(S0 + j * dk + c * LANES);
                gone += dr * e[c];
            }
            VEC(dS + j * dk + c * LANES) = gone;
        }
    }
    Vec dot = {0}, dsum = {0};
    for (int c = 0; c < nv; c++) {
        NAME(out)(r, X_Q, t, c, dq[c]);
        NAME(out)(r, X_K, t, c, dk_[c]);
        if (r->vector_decay) NAME(out)(r, X_D, t, c, dd[c]);
        else dsum += dd[c];
        if (erase) {
            NAME(out)(r, X_E, t, c, -rho * y[c]);
            dot += e[c] * y[c];
        }
        if (back) {
            NAME(out)(r, X_E, t, c, y[c]);
            NAME(out)(r, X_B, t, c, db[c]);
        }
    }
    if (!r->vector_decay) NAME(out1)(r, X_D, t, NAME(sum)(dsum));
    if (erase) NAME(out1)(r, X_RHO, t, -NAME(sum)(dot));
}

/* Backward, from the last token to the first: again the equations of section 4. Chunk by chunk the
 * states are computed again from the one that was kept; then dS, the gradient of the state behind a
 * token, walks back over them. States and dS are held transposed, (dv, dk): the lanes are key
 * channels, nv vectors of them make a row, which is one value column, and only dw, dr and dc, and
 * once per token drho and a decay per head, need a sum across lanes. */
HELPER void NAME(recurrence_backward_)(const Scan *r, const int nv, const int mode) {
    const size_t size = (size_t)r->dk * r->dv;
    real *states = r->scratch, *dS = states + (CHUNK + 1) * size;
    memset(dS, 0, size * sizeof *dS);
    for (int begin = (r->T - 1) / CHUNK * CHUNK; begin >= 0; begin -= CHUNK) {
        const int n = r->T - begin < CHUNK ? r->T - begin : CHUNK;
        NAME(states_again)(r, nv, mode, begin, n, states);
        for (int s = n - 1; s >= 0; s--)
            NAME(token_back)(r, nv, mode, (size_t)begin + s, states + s * size, dS);
    }
}

KERNEL void NAME(recurrence_backward)(const Scan *r) {
    if (r->dk == 32) WITH_MODE(NAME(recurrence_backward_), 32 / LANES);
    else WITH_MODE(NAME(recurrence_backward_), r->dk / LANES);
}

/* -- AdamW -- */

/* m, v: running means of the gradient g, shrunk, and of its square; the decay pulls the parameter
 * to zero on its own, outside the adaptive step (source: Loshchilov and Hutter 2019). All (n), n a
 * multiple of 16. */
KERNEL void NAME(adamw)(real *p, const real *g, real *m, real *v, size_t n, const AdamStep *step) {
    const AdamStep a = *step;
    for (size_t i = 0; i < n; i += LANES) {
        Vec gi = READ(g + i) * a.shrink;
        VEC(m + i) = a.b1 * READ(m + i) + (1 - a.b1) * gi;
        VEC(v + i) = a.b2 * READ(v + i) + (1 - a.b2) * gi * gi;
        Vec size = NAME(sqrt)(READ(v + i) * a.c2) + a.eps;
        VEC(p + i) -= a.lr * (READ(m + i) * a.c1 / size + a.decay * READ(p + i));
    }
}

/* -- the table -- */

#define PAIR(name, units, assigns) \
    .name = { NAME(name##_forward), NAME(name##_backward), units, assigns }
static const TinyKernels NAME(kernels) = {
    NAME_TEXT, LANES, TILE_ROWS, TILE_COLS,
    NAME(gemm_tile), NAME(pack_rows), NAME(pack_panel),
    PAIR(rmsnorm, BLOCKS, 0), PAIR(l2norm, BLOCKS, 0), PAIR(map, BLOCKS, 0), PAIR(glu, BLOCKS, 0),
    PAIR(scale, BLOCKS, 0), PAIR(gated_norm, BLOCKS, 1), PAIR(conv, SEQUENCES, 0), PAIR(gate, BLOCKS, 0),
    .softmax_forward = NAME(softmax_forward), .softmax_recompute = NAME(softmax_recompute),
    .softmax_backward = NAME(softmax_backward), .cross_entropy = NAME(cross_entropy),
    .recurrence_forward = NAME(recurrence_forward),
    .recurrence_backward = NAME(recurrence_backward),
    .adamw = NAME(adamw)
};
#undef LANES
#undef PAIR
#undef MOST
#undef TARGET
#undef NAME
#undef NAME_TEXT
#undef VECTOR_BYTES
#undef TILE_ROWS
#else

/* Tile sizes leave room for the accumulators in the registers of the instruction set: 32 of 64
 * bytes, 16 of 32, 16 of 16. */
#if defined(__GNUC__) && defined(__x86_64__)
#define TARGET __attribute__((target("avx512f")))
#define NAME(x) x##_tiny_avx512
#define NAME_TEXT "avx512"
#define VECTOR_BYTES 64
#define TILE_ROWS 12
#include "train_tiny.c"
#define TARGET __attribute__((target("avx2,fma")))
#define NAME(x) x##_tiny_avx2
#define NAME_TEXT "avx2"
#define VECTOR_BYTES 32
#define TILE_ROWS 6
#include "train_tiny.c"
#endif
#define TARGET
#define NAME(x) x##_tiny_plain
#define NAME_TEXT "plain"
#define VECTOR_BYTES 16
#define TILE_ROWS 4
#include "train_tiny.c"

/* The table of the widest instruction set that this processor has. */
static void choose_tiny_kernels(void) {
    kern = kernels_tiny_plain;
#if defined(__GNUC__) && defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) kern = kernels_tiny_avx2;
    if (__builtin_cpu_supports("avx512f")) kern = kernels_tiny_avx512;
#endif
}

/* ---- 3. matmul -----------------------------------------------------------------------------
 * Every product is c = or += a b, and each of the three has a stride of its rows and one of its
 * columns, so the three products of a layer, Y = X W', dX = dY W, dW = dY' X, are one function. b
 * is packed into panels of kern.tile_cols columns; a is packed only when its rows are not
 * contiguous. One thread owns an element of c and adds its terms in one order. */

/* Memory that the program cannot do without: returns p; exits if that is NULL. */
static void *checked(void *p) {
    if (!p) give_up("out of memory");
    return p;
}
static void put(Text *t, const void *data, size_t n) {
    text_put(t, data, n);
    if (t->bad) checked(NULL);
}

/* Work space of one thread (slot = its number) or shared by all (slot = -1), grown on demand, kept
 * for the next call. */
static real *space(int slot, size_t n) {
    static struct { real *at; size_t cap; } s[1025];
    if (s[slot + 1].cap < n) {
        free(s[slot + 1].at);
        s[slot + 1].at = checked(malloc(n * sizeof(real)));
        s[slot + 1].cap = n;
    }
    return s[slot + 1].at;
}

static int ceil_div(int a, int b) { return (a + b - 1) / b; }
static int least(int a, int b) { return a < b ? a : b; }
static real *zeroed(real *p, size_t n) { return memset(p, 0, n * sizeof *p); }

/* A matrix: element (i, j) lies at p[i * rs + j * cs]. */
typedef struct { real *p; size_t rs, cs; int rows, cols; } Mat;

static Mat mat(real *p, int rows, int cols, size_t rs) { return (Mat){ p, rs, 1, rows, cols }; }
static Mat turned(Mat a) { return (Mat){ a.p, a.cs, a.rs, a.cols, a.rows }; }

/* The rows of a variable; its gradient in its place. */
static Mat values(Var v, int rows) { return mat(v.x, rows, v.heads * v.n, v.ld); }
static Var gradient(Var v) {
    v.x = v.dx;
    return v;
}

/* Reals that b (K, N) takes in panels of whole tiles. */
static size_t packed_size(int K, int N) {
    return (size_t)K * ceil_div(N, kern.tile_cols) * kern.tile_cols;
}

/* The panel of b that begins at column j, to its place in `packed`. */
static void pack(real *packed, Mat b, int j) {
    kern.pack_panel(packed + (size_t)j * b.rows, b.p + j * b.cs, b.rs, b.cs, b.rows,
                    least(kern.tile_cols, b.cols - j));
}

/* Rows of c of one unit of parallel work; where a has to be packed, as many as there is room
 * for. */
static int chunk_rows(Mat a) { return kern.tile_rows * (a.cs == 1 ? 4 : 2); }

/* One unit of c, from row i0 on, from a and the packed b; apack holds 2 tiles of DEPTH columns of
 * a. */
static void gemm_chunk(Mat c, Mat a, const real *packed, int i0, bool add, real *apack) {
    const int mr = kern.tile_rows, nc = kern.tile_cols, K = a.cols;
    const int rows = least(chunk_rows(a), c.rows - i0), parts = ceil_div(K, DEPTH);
    const int most = ceil_div(K, parts);        /* of one size: each reads and writes all of c */
    for (int k0 = 0; k0 < K; k0 += most) {
        Tile t = { .ldc = c.rs, .ars = a.rs, .acs = 1, .depth = least(most, K - k0),
                   .add = add || k0 };
        if (a.cs != 1) {                        /* a transposed: its rows are next to each other */
            kern.pack_rows(apack, a.p + i0 + k0 * a.cs, a.cs, rows, t.depth);
            t.ars = 1;
            t.acs = (size_t)mr;
        }
        for (int j = 0; j < c.cols; j += nc)
            for (int i = 0; i < rows; i += mr) {
                t.c = c.p + (i0 + i) * c.rs + j;
                t.a = a.cs == 1 ? a.p + (i0 + i) * a.rs + k0 : apack + (size_t)i * DEPTH;
                t.b = packed + ((size_t)j * K + (size_t)k0 * nc);
                t.rows = least(mr, rows - i);
                t.cols = least(nc, c.cols - j);
                kern.tile(&t);
            }
    }
}

/* c = or += a b in the calling thread; buf holds packed_size(K, N) + 2 MAX_TILE DEPTH reals. */
static void gemm_serial(Mat c, Mat a, Mat b, bool add, real *buf) {
    for (int j = 0; j < b.cols; j += kern.tile_cols) pack(buf, b, j);
    for (int i = 0; i < c.rows; i += chunk_rows(a))
        gemm_chunk(c, a, buf, i, add, buf + packed_size(b.rows, b.cols));
}

/* The same with all threads. */
static void gemm(Mat c, Mat a, Mat b, bool add) {
    real *packed = space(-1, packed_size(b.rows, b.cols));
    const int panels = ceil_div(b.cols, kern.tile_cols), chunks = ceil_div(c.rows, chunk_rows(a));
    PARALLEL
    for (int p = 0; p < panels; p++) pack(packed, b, p * kern.tile_cols);
    PARALLEL
    for (int n = 0; n < chunks; n++)
        gemm_chunk(c, a, packed, n * chunk_rows(a), add, space(THREAD_ID, 2 * MAX_TILE * DEPTH));
}

/* ---- 4. the recurrence ---------------------------------------------------------------------
 * One head, one token; S (dk, dv) starts at zero; q, k, e, b (dk), v, w, r, o, c (dv), d (dk) or
 * one number:
 *
 *   r  = S'e                    what the memory holds under key e      (S' is S transposed)
 *   w  = v - rho r              the value to write, less what is there already
 *   S <- Diag(d) S + k w'       forget, then write
 *   o  = S'q                    read
 *
 * Every mixer of the family is a choice of d, e and rho. A gated delta rule passes e = d k, because
 * it recalls from the decayed memory: S'(d k) = (d S)'k. With no e nothing is erased (GLA, RetNet,
 * Mamba-2 ...). Some do one thing more:
 *
 *   SCAN_WRITES_BACK     S <- Diag(d) S + k v' + b r'    what was recalled goes back under another
 *                                                        key (RWKV-7; b is w in run.c)
 *   SCAN_FADES_VALUES    S <- Diag(d) S Diag(c) + k v'   columns fade, too (the keys of slots)
 *   SCAN_READS_FIRST     o is read before the write (RWKV-6)
 *
 * Backward, from the last token to the first, with dS the gradient of the state after the token:
 *
 *   dS += q do',   dq = S do      from o = S'q; when read first, dSold += q do', dq = Sold do
 *   dk  = dS w,    dw = dS'k      from the write
 *   db  = dS r,    dr = dS'b      from the write back
 *   dd_i = sum_j dS_ij Sold_ij c_j,  dc_j = sum_i d_i dS_ij Sold_ij,  dSold = Diag(d) dS Diag(c)
 *   dv  = dw,      drho = -r.dw,   dr = -rho dw
 *   de  = Sold dr, dSold += e dr'              from r = Sold'e
 *
 * Kept from the forward run: w (or r, where that is written back), and S before every CHUNK-th
 * token, T dk dv / CHUNK reals per head. Recomputed: the states within a chunk, (CHUNK + 1) dk dv
 * reals per thread.
 *
 * What computes this is recurrence_forward and recurrence_backward in section 2; here it is handed
 * out by heads. */

/* A pair by its name. */
#define PAIR(name, units, assigns) \
    static const Pair name##_pair = { name##_forward, name##_backward, units, assigns };

/* The states of a chunk, and dS. */
static size_t recurrence_scratch(int dk, int dv) { return (size_t)(CHUNK + 2) * dk * dv; }

/* Reals of the states that are kept. */
static size_t kept_states(int B, int T, int heads, int dk, int dv) {
    return (size_t)B * heads * ceil_div(T, CHUNK) * dk * dv;
}

/* An operation whose x are q, k, v, d, e, rho, c, b as in Scan, and y is o: head n % H of sequence
 * n / H. A row of a variable may hold several writes of a token, one after the other: T counts
 * writes. Kept: w, in rows as o, and S. */
static Scan one_head(const Op *o, int n) {
    const Var q = o->x[X_Q], v = o->x[X_V], y = o->y[0];
    const int H = q.heads / o->writes, h = n % H, from = n / H * o->T, T = o->T * o->writes;
    Scan r = { .T = T, .dk = q.n, .dv = v.n, .vector_decay = o->x[X_D].n > 1, .mode = o->mode,
               .add = o->add, .ldv = y.ld / o->writes, .o = row(y, from, h), .w = o->keep[0],
               .S = o->keep[1] + (size_t)n * ceil_div(T, CHUNK) * q.n * v.n,
               .scratch = space(THREAD_ID, recurrence_scratch(q.n, v.n)) };
    if (y.dx) r.d_o = drow(y, from, h);
    if (r.w) r.w += r.o - y.x;
    for (int i = 0; i < N_X; i++) {
        const Var x = o->x[i];
        if (!x.x) continue;
        r.x[i] = row(x, from, h);
        r.dx[i] = x.dx ? drow(x, from, h) : NULL;
        r.ld[i] = x.ld / o->writes;
    }
    return r;
}

static void recurrence_forward(const Op *o, Work at) {
    Scan r = one_head(o, at.from);
    kern.recurrence_forward(&r);
}

//~ o = the recurrence over q, k, v, d, e, rho, c, b
static void recurrence_backward(const Op *o, Work at) {
    Scan r = one_head(o, at.from);
    kern.recurrence_backward(&r);
}

PAIR(recurrence, BY_HEAD, 0)

/* ---- 5. pairs, forward and backward --------------------------------------------------------
 * How a list of operations is run, over all N = B T tokens, and the pairs that are too rare to be
 * kernels. A backward function takes the arguments of its forward one. Its rooms:
 *
 *   a list of operations     forward from the first, backward from the last
 *   what every layer has     the linear map, layernorm
 *   what RWKV adds           the shift to the token before, the bonus, the keys of RWKV-7, values
 *                            blended with the first layer's
 *   what other mixers add    softmax over slots, a decay that is a softmax over time, Comba's keys,
 *                            keys divided by a second moment, Mamba-2's step and skip
 *   order                    rotary positions
 *   softmax attention        in blocks of queries
 *   embedding */

/* -- a list of operations -- */

/* How many units of work an operation has, 0 if it divides it by itself. */
static int units_of(const Op *o) {
    switch (o->run.units) {
    case BLOCKS: return ceil_div(o->B * o->T, BLOCK);
    case SEQUENCES: return o->B;
    case BY_HEAD: return o->B * o->x[0].heads / o->writes;
    default: return 0;
    }
}

/* A unit of it. */
static Work unit(const Op *o, int u, real *sums) {
    const int N = o->B * o->T;
    const int n = o->run.units == BLOCKS ? BLOCK : o->run.units == SEQUENCES ? o->T : 1;
    return (Work){ u * n, o->run.units == BLOCKS ? least((u + 1) * n, N) : (u + 1) * n, sums };
}

/* Are two operations that follow each other divided alike? Then a unit of both is one piece of
 * work, whose numbers stay in the cache. */
static bool alike(const Op *a, const Op *b) {
    return a->run.units != BY_ITSELF && a->run.units == b->run.units;
}

static void run_forward(const Op *o, int n) {
    for (int i = 0, many; i < n; i += many, o += many) {
        for (many = 1; i + many < n && alike(o, o + many);) many++;
        const int units = units_of(o);
        if (!units) o->run.forward(o, (Work){ 0, o->B * o->T, NULL });
        PARALLEL
        for (int u = 0; u < units; u++)
            for (int k = 0; k < many; k++) o[k].run.forward(o + k, unit(o, u, NULL));
    }
}

/* The different parameters of operations that are divided alike get their places in a row of sums.
 * Returns how many they are; *width: the length of the row. */
enum { MOST_PARAMS = 64 };
static int place_sums(Op *o, int many, Param *params[MOST_PARAMS], int *width) {
    int n = 0;
    *width = 0;
    for (int i = 0; i < 2 * many; i++) {
        Param *p = &o[i / 2].w[i % 2];
        int k = 0;
        if (!p->dw) continue;
        while (k < n && params[k]->dw != p->dw) k++;
        p->at = k < n ? params[k]->at : (size_t)*width;
        if (k < n) continue;
        params[n++] = p;
        assert(n < MOST_PARAMS);
        *width += (p->n + 15) / 16 * 16;
    }
    return n;
}

/* The gradient of a parameter += what the units have summed, in their order. */
static void add_sums(const Param *p, const real *sums, int units, int width) {
    for (int u = 0; u < units; u++)
        for (int i = 0; i < p->n; i++) {
            const real g = sums[(size_t)u * width + p->at + i];
            p->dw[i / p->share] += p->slope ? g * p->slope[i] : g;
        }
}

static void run_backward(Op *ops, int n) {
    for (int many; n > 0; n -= many) {
        Op *o = ops + n - 1;
        for (many = 1; n > many && alike(o - 1, o); o--) many++;
        const int units = units_of(o);
        if (!units) {
            o->run.backward(o, (Work){ 0, o->B * o->T, NULL });
            continue;
        }
        Param *params[MOST_PARAMS];
        int width;
        const int n_params = place_sums(o, many, params, &width);
        real *sums = zeroed(space(-1, (size_t)units * width + 1), (size_t)units * width);
        PARALLEL
        for (int u = 0; u < units; u++)
            for (int k = many - 1; k >= 0; k--)
                o[k].run.backward(o + k, unit(o, u, sums + (size_t)u * width));
        for (int p = 0; p < n_params; p++) add_sums(params[p], sums, units, width);
    }
}

/* A gradient to where it goes: added to what is there, or assigned. */
INLINE void give(real *to, real g, bool add) { *to = add ? *to + g : g; }

/* -- what every layer has -- */

/* y = x[1] + w[1] + x[0] w[0]', w[0] (out, in); what is missing is no term. x[1] is the stream that
 * y goes on, and shares its gradient. */
static void linear_forward(const Op *o, Work at) {
    const Var x = o->x[0], y = o->y[0], stream = o->x[1];
    const Mat w = mat(o->w[0].w, y.heads * y.n, x.heads * x.n, x.heads * x.n);
    const bool add = stream.x || o->w[1].w;
    PARALLEL
    for (int r = 0; r < (add ? at.to : 0); r++)
        memcpy(row(y, r, 0), stream.x ? row(stream, r, 0) : o->w[1].w, w.rows * sizeof(real));
    gemm(values(y, at.to), values(x, at.to), turned(w), add);
}

//~ y = x w' + b:  dx = dy w,  dw += dy' x,  db += the rows of dy
static void linear_backward(const Op *o, Work at) {
    const Mat x = values(o->x[0], at.to), dy = values(gradient(o->y[0]), at.to);
    const Mat w = mat(o->w[0].w, dy.cols, x.cols, x.cols);
    const Mat dw = mat(o->w[0].dw, dy.cols, x.cols, x.cols);
    for (int r = 0; r < at.to && o->w[1].dw; r++)
        for (int i = 0; i < dy.cols; i++) o->w[1].dw[i] += dy.p[r * dy.rs + i];
    if (o->x[0].dx) gemm(values(gradient(o->x[0]), at.to), dy, w, o->add & 1);
    gemm(dw, turned(dy), x, true);
}

PAIR(linear, BY_ITSELF, 0)

/* y = (x - mean(x)) / sqrt(var(x) + scale) * w[0] + w[1], both (heads n). Kept: mean and factor. */
static void layernorm_forward(const Op *o, Work at) {
    const int heads = o->x[0].heads, n = o->x[0].n;
    EACH_VECTOR(r, h, heads) {
        const real *x = row(o->x[0], r, h), *w = o->w[0].w + h * n, *b = o->w[1].w + h * n;
        real *y = row(o->y[0], r, h), *stat = o->keep[0] + 2 * (r * heads + h);
        double mean = 0, var = 0;
        for (int i = 0; i < n; i++) mean += x[i];
        mean /= n;
        for (int i = 0; i < n; i++) var += (x[i] - mean) * (x[i] - mean);
        const real f = (real)(1 / sqrt(var / n + o->scale)), mu = (real)mean;
        for (int i = 0; i < n; i++) y[i] = (x[i] - mu) * f * w[i] + b[i];
        stat[0] = mu;
        stat[1] = f;
    }
}

//~ y = c w + b,  c = (x - mean) f:  dx = f (g - mean(g) - c mean(g c)),  g = dy w
static void layernorm_backward(const Op *o, Work at) {
    const int heads = o->x[0].heads, n = o->x[0].n;
    EACH_VECTOR(r, h, heads) {
        const real *x = row(o->x[0], r, h), *dy = drow(o->y[0], r, h), *w = o->w[0].w + h * n;
        const real *stat = o->keep[0] + 2 * (r * heads + h), mu = stat[0], f = stat[1];
        real *dx = drow(o->x[0], r, h);
        real *dw = at.sums + o->w[0].at + h * n, *db = at.sums + o->w[1].at + h * n;
        double mean = 0, along = 0;                         /* sums of g and of g c */
        for (int i = 0; i < n; i++) {
            const real g = dy[i] * w[i], c = (x[i] - mu) * f;
            mean += g;
            along += g * c;
            dw[i] += dy[i] * c;
            db[i] += dy[i];
        }
        const real m = (real)(mean / n), a = (real)(along / n);
        for (int i = 0; i < n; i++)
            give(dx + i, f * (dy[i] * w[i] - m - (x[i] - mu) * f * a), o->add & 1);
    }
}

PAIR(layernorm, BLOCKS, 0)

/* -- what RWKV adds -- */

/* Token shift: y_t = x_t + (x_(t-1) - x_t) share_t, zeros before the first. The share of a channel
 * is w[0] in every token, or x[1]. */
static void shift_forward(const Op *o, Work at) {
    for (int r = at.from; r < at.to; r++) {
        const real *x = row(o->x[0], r, 0), *share = o->w[0].w ? o->w[0].w : row(o->x[1], r, 0);
        const real *last = r > at.from ? row(o->x[0], r - 1, 0) : NULL;
        real *y = row(o->y[0], r, 0);
        for (int i = 0; i < o->y[0].n; i++) y[i] = x[i] + ((last ? last[i] : 0) - x[i]) * share[i];
    }
}

//~ y_t = x_t (1 - share_t) + x_(t-1) share_t
static void shift_backward(const Op *o, Work at) {
    const Var x = o->x[0], own = o->x[1];
    const int D = x.n;
    for (int r = at.from; r < at.to && !(o->add & 1); r++) zeroed(drow(x, r, 0), D);
    for (int r = at.from; r < at.to; r++) {
        const real *share = o->w[0].w ? o->w[0].w : row(own, r, 0), *dy = drow(o->y[0], r, 0);
        const real *now = row(x, r, 0), *last = r > at.from ? row(x, r - 1, 0) : NULL;
        real *dnow = drow(x, r, 0), *dlast = r > at.from ? drow(x, r - 1, 0) : NULL;
        real *dshare = o->w[0].w ? at.sums + o->w[0].at : drow(own, r, 0);
        for (int i = 0; i < D; i++) {
            const real g = dy[i], s = share[i], ds = g * ((last ? last[i] : 0) - now[i]);
            dnow[i] += g * (1 - s);
            if (dlast) dlast[i] += g * s;
            give(dshare + i, ds, o->w[0].w || o->add & 2);
        }
    }
}

PAIR(shift, SEQUENCES, 0)

/* The bonus of the token that is being read: y += (q . u k) v per head; x: q, k, v; u = w[0]. */
static void bonus_forward(const Op *o, Work at) {
    const int H = o->x[0].heads, dk = o->x[0].n, dv = o->x[2].n;
    EACH_VECTOR(r, h, H) {
        const real *q = row(o->x[0], r, h), *k = row(o->x[1], r, h), *v = row(o->x[2], r, h);
        const real *u = o->w[0].w + h * dk;
        real *y = row(o->y[0], r, h);
        double sum = 0;
        for (int i = 0; i < dk; i++) sum += q[i] * u[i] * k[i];
        for (int j = 0; j < dv; j++) y[j] += (real)sum * v[j];
    }
}

//~ y += s v,  s = q . u k
static void bonus_backward(const Op *o, Work at) {
    const int H = o->x[0].heads, dk = o->x[0].n, dv = o->x[2].n;
    EACH_VECTOR(r, h, H) {
        const real *q = row(o->x[0], r, h), *k = row(o->x[1], r, h), *v = row(o->x[2], r, h);
        const real *u = o->w[0].w + h * dk, *dy = drow(o->y[0], r, h);
        real *du = at.sums + o->w[0].at + h * dk;
        double sum = 0, ds = 0;
        for (int i = 0; i < dk; i++) sum += q[i] * u[i] * k[i];
        for (int j = 0; j < dv; j++) {
            ds += dy[j] * v[j];
            give(drow(o->x[2], r, h) + j, (real)sum * dy[j], o->add & 4);
        }
        for (int i = 0; i < dk; i++) {
            give(drow(o->x[0], r, h) + i, (real)ds * u[i] * k[i], o->add & 1);
            give(drow(o->x[1], r, h) + i, (real)ds * u[i] * q[i], o->add & 2);
            du[i] += (real)ds * q[i] * k[i];
        }
    }
}

PAIR(bonus, BLOCKS, 0)

/* y = x w, channel by channel. */
static void channels_forward(const Op *o, Work at) {
    for (int r = at.from; r < at.to; r++)
        for (int i = 0; i < o->w[0].n; i++)
            row(o->y[0], r, 0)[i] = row(o->x[0], r, 0)[i] * o->w[0].w[i];
}

//~ y = x w
static void channels_backward(const Op *o, Work at) {
    for (int r = at.from; r < at.to; r++)
        for (int i = 0; i < o->w[0].n; i++) {
            const real dy = drow(o->y[0], r, 0)[i];
            at.sums[o->w[0].at + i] += dy * row(o->x[0], r, 0)[i];
            give(drow(o->x[0], r, 0) + i, dy * o->w[0].w[i], o->add & 1);
        }
}

PAIR(channels, BLOCKS, 0)

/* What RWKV-7 makes of a key, x: key, a, e = the key that is recalled; with s = sigmoid(a):
 *   y[0] = key (1 + (s - 1) w[0])  is written;   y[1] = -s e  is where that goes back */
static void rwkv7_keys_forward(const Op *o, Work at) {
    for (int r = at.from; r < at.to; r++) {
        const real *key = row(o->x[0], r, 0), *a = row(o->x[1], r, 0), *e = row(o->x[2], r, 0);
        real *k = row(o->y[0], r, 0), *b = row(o->y[1], r, 0);
        for (int i = 0; i < o->w[0].n; i++) {
            const real s = 1 / (1 + (real)exp(-a[i]));
            k[i] = key[i] * (1 + (s - 1) * o->w[0].w[i]);
            b[i] = -s * e[i];
        }
    }
}

//~ k = key (1 + (s - 1) w),  b = -s e,  s = sigmoid(a)
static void rwkv7_keys_backward(const Op *o, Work at) {
    real *dw = at.sums + o->w[0].at;
    for (int r = at.from; r < at.to; r++) {
        const real *key = row(o->x[0], r, 0), *a = row(o->x[1], r, 0), *e = row(o->x[2], r, 0);
        const real *dk = drow(o->y[0], r, 0), *db = drow(o->y[1], r, 0), *w = o->w[0].w;
        for (int i = 0; i < o->w[0].n; i++) {
            const real s = 1 / (1 + (real)exp(-a[i])), ds = key[i] * w[i] * dk[i] - e[i] * db[i];
            give(drow(o->x[0], r, 0) + i, dk[i] * (1 + (s - 1) * w[i]), o->add & 1);
            give(drow(o->x[1], r, 0) + i, ds * s * (1 - s), o->add & 2);
            give(drow(o->x[2], r, 0) + i, -(s * db[i]), o->add & 4);
            dw[i] += dk[i] * key[i] * (s - 1);
        }
    }
}

PAIR(rwkv7_keys, BLOCKS, 0)

/* y = x + s (first - x), s = sigmoid(f); x: x, first, f. How much of the first layer's values a
 * layer of RWKV-7 takes. */
static void blend_forward(const Op *o, Work at) {
    for (int r = at.from; r < at.to; r++) {
        const real *x = row(o->x[0], r, 0), *first = row(o->x[1], r, 0), *f = row(o->x[2], r, 0);
        real *y = row(o->y[0], r, 0);
        for (int i = 0; i < o->y[0].n; i++)
            y[i] = x[i] + (first[i] - x[i]) / (1 + (real)exp(-f[i]));
    }
}

//~ y = x (1 - s) + first s
static void blend_backward(const Op *o, Work at) {
    for (int r = at.from; r < at.to; r++) {
        const real *x = row(o->x[0], r, 0), *first = row(o->x[1], r, 0), *f = row(o->x[2], r, 0);
        const real *dy = drow(o->y[0], r, 0);
        for (int i = 0; i < o->y[0].n; i++) {
            const real s = 1 / (1 + (real)exp(-f[i])), df = dy[i] * (first[i] - x[i]) * s * (1 - s);
            give(drow(o->x[0], r, 0) + i, dy[i] * (1 - s), o->add & 1);
            give(drow(o->x[1], r, 0) + i, dy[i] * s, o->add & 2);
            give(drow(o->x[2], r, 0) + i, df, o->add & 4);
        }
    }
}

PAIR(blend, BLOCKS, 0)

/* y = x[0] + x[1], which share the gradient of y. */
static void plus_forward(const Op *o, Work at) {
    for (int r = at.from; r < at.to; r++)
        for (int i = 0; i < o->y[0].n; i++)
            row(o->y[0], r, 0)[i] = row(o->x[0], r, 0)[i] + row(o->x[1], r, 0)[i];
}

static void plus_backward(const Op *o, Work at) { (void)o, (void)at; }

PAIR(plus, BLOCKS, 0)

/* -- what other mixers add -- */

/* y = softmax(x), head by head: which slots are read. */
static void slots_forward(const Op *o, Work at) {
    const int n = o->x[0].n;
    EACH_VECTOR(r, h, o->x[0].heads) {
        const real *x = row(o->x[0], r, h);
        real *p = row(o->y[0], r, h), top = x[0], sum = 0;
        for (int i = 1; i < n; i++) top = x[i] > top ? x[i] : top;
        for (int i = 0; i < n; i++) sum += p[i] = (real)exp(x[i] - top);
        for (int i = 0; i < n; i++) p[i] /= sum;
    }
}

//~ p = softmax(x):  dx_i = p_i (dp_i - sum_j p_j dp_j)
static void slots_backward(const Op *o, Work at) {
    const int n = o->x[0].n;
    EACH_VECTOR(r, h, o->x[0].heads) {
        const real *p = row(o->y[0], r, h), *dp = drow(o->y[0], r, h);
        real dot = 0;
        for (int i = 0; i < n; i++) dot += p[i] * dp[i];
        for (int i = 0; i < n; i++)
            give(drow(o->x[0], r, h) + i, p[i] * (dp[i] - dot), o->add & 1);
    }
}

PAIR(slots, BLOCKS, 0)

/* A decay that keeps the weights of all tokens so far a softmax (LightNet, ABC), channel by
 * channel: with z_t = ln sum_(s <= t) e^x_s
 *   y[1]_t = e^(x_t - z_t) = sigmoid(x_t - z_(t-1))  is written
 *   y[0]_t = e^(z_(t-1) - z_t) = 1 - y[1]_t          is kept
 * The first token has no z before it: y[1] is 1, y[0] is 0. */
static void sum_decay_forward(const Op *o, Work at) {
    const int n = o->x[0].heads * o->x[0].n;
    double *z = checked(malloc(n * sizeof *z));
    for (int r = at.from; r < at.to; r++)
        for (int i = 0; i < n; i++) {
            const double x = row(o->x[0], r, 0)[i], more = r > at.from ? exp(-fabs(x - z[i])) : 0;
            const double larger = 1 / (1 + more), smaller = more / (1 + more);
            const bool above = r == at.from || x > z[i];
            z[i] = (above ? x : z[i]) + log1p(more);
            row(o->y[0], r, 0)[i] = (real)(above ? smaller : larger);
            row(o->y[1], r, 0)[i] = (real)(above ? larger : smaller);
        }
    free(z);
}

//~ from the last token: with g = (drest - dd) rest d and c = dz_t,  dx_t = g + c rest,
//~ dz_(t-1) = c d - g
static void sum_decay_backward(const Op *o, Work at) {
    const int n = o->x[0].heads * o->x[0].n;
    real *c = checked(calloc((size_t)n, sizeof *c));
    for (int r = at.to - 1; r >= at.from; r--)
        for (int i = 0; i < n; i++) {
            const real d = row(o->y[0], r, 0)[i], rest = row(o->y[1], r, 0)[i];
            const real g = (drow(o->y[1], r, 0)[i] - drow(o->y[0], r, 0)[i]) * rest * d;
            give(drow(o->x[0], r, 0) + i, g + c[i] * rest, o->add & 1);
            c[i] = c[i] * d - g;
        }
    free(c);
}

PAIR(sum_decay, SEQUENCES, 0)

/* What Comba makes of its query and key, x: q, k:  y[0] = old k, along which is erased;
 * y[1] = q - skip y[0].  w: old, skip (heads). */
static void comba_forward(const Op *o, Work at) {
    EACH_VECTOR(r, h, o->x[0].heads)
        for (int i = 0; i < o->x[0].n; i++) {
            const real p = o->w[0].w[h] * row(o->x[1], r, h)[i];
            row(o->y[0], r, h)[i] = p;
            row(o->y[1], r, h)[i] = row(o->x[0], r, h)[i] - o->w[1].w[h] * p;
        }
}

//~ p = old k,  y = q - skip p
static void comba_backward(const Op *o, Work at) {
    real *dold = at.sums + o->w[0].at, *dskip = at.sums + o->w[1].at;
    EACH_VECTOR(r, h, o->x[0].heads)
        for (int i = 0; i < o->x[0].n; i++) {
            const real dy = drow(o->y[1], r, h)[i];
            const real dp = drow(o->y[0], r, h)[i] - o->w[1].w[h] * dy;
            give(drow(o->x[0], r, h) + i, dy, o->add & 1);
            give(drow(o->x[1], r, h) + i, o->w[0].w[h] * dp, o->add & 2);
            dskip[h] -= dy * row(o->y[0], r, h)[i];
            dold[h] += dp * row(o->x[1], r, h)[i];
        }
}

PAIR(comba, BLOCKS, 0)

/* The key that is written: y = k m, smaller where much was written, by a second moment A of each
 * channel, which is kept.                                                     (arXiv 2604.21100)
 *   A <- fade A + share k^2;   r = ln(A + eps) - scale;   m = SQUASH^(-r / (1 + |r|))
 * x: k, fade and share, one per head; scale = w[0], of each head. */
#define SQUASH ((real)0.40546510810816438)  /* ln 1.5 */
enum { MICRO = 1000000 };                   /* 1 / eps */
static void moment_forward(const Op *o, Work at) {
    const int H = o->x[0].heads, dk = o->x[0].n;
    for (int r = at.from; r < at.to; r++)
        for (int i = 0; i < H * dk; i++) {
            real *A = o->keep[0] + (size_t)r * H * dk + i;
            const real k = row(o->x[0], r, 0)[i], share = *row(o->x[2], r, i / dk);
            *A = (r > at.from ? *row(o->x[1], r, i / dk) * A[-H * dk] : 0) + share * k * k;
            const real x = (real)log(*A + (real)1 / MICRO) - o->w[0].w[i / dk];
            row(o->y[0], r, 0)[i] = k * (real)exp(-SQUASH * x / (1 + (real)fabs(x)));
        }
}

//~ as above, from the last token; c = dA from the tokens behind
static void moment_backward(const Op *o, Work at) {
    const int H = o->x[0].heads, dk = o->x[0].n;
    real *c = checked(calloc((size_t)H * dk, sizeof *c));
    for (int r = at.to - 1; r >= at.from; r--)
        for (int i = 0; i < H * dk; i++) {
            const real *A = o->keep[0] + (size_t)r * H * dk + i, total = *A + (real)1 / MICRO;
            const real k = row(o->x[0], r, 0)[i], dy = drow(o->y[0], r, 0)[i];
            const real x = (real)log(total) - o->w[0].w[i / dk], size = 1 + (real)fabs(x);
            const real f = (real)exp(-SQUASH * x / size);
            const real dx = -dy * k * f * SQUASH / (size * size), dA = c[i] + dx / total;
            real *dfade = drow(o->x[1], r, i / dk), *dshare = drow(o->x[2], r, i / dk);
            if (i % dk == 0) *dfade = *dshare = 0;
            at.sums[o->w[0].at + i / dk] -= dx;
            if (r > at.from) *dfade += dA * A[-H * dk];
            *dshare += dA * k * k;
            const real dk_ = dy * f + dA * *row(o->x[2], r, i / dk) * 2 * k;
            give(drow(o->x[0], r, 0) + i, dk_, o->add & 1);
            c[i] = dA * *row(o->x[1], r, i / dk);
        }
    free(c);
}

PAIR(moment, SEQUENCES, 6)

/* Of one number: sigmoid without overflow, softplus = ln(1 + e^x). */
static real sigmoid1(real x) {
    return x >= 0 ? 1 / (1 + (real)exp(-x)) : (real)exp(x) / (1 + (real)exp(x));
}
static real softplus1(real x) { return x > 20 ? x : (real)log1p(exp(x)); }

/* Mamba-2's step size: y = softplus(x + w[0]). */
static void step_forward(const Op *o, Work at) {
    EACH_VECTOR(r, h, o->w[0].n)
        row(o->y[0], r, 0)[h] = softplus1(row(o->x[0], r, 0)[h] + o->w[0].w[h]);
}

//~ y = softplus(x + w)
static void step_backward(const Op *o, Work at) {
    EACH_VECTOR(r, h, o->w[0].n) {
        const real s = sigmoid1(row(o->x[0], r, 0)[h] + o->w[0].w[h]);
        const real g = drow(o->y[0], r, 0)[h] * s;
        give(drow(o->x[0], r, 0) + h, g, o->add & 1);
        at.sums[o->w[0].at + h] += g;
    }
}

PAIR(step, BLOCKS, 0)

/* Mamba-2's way around the memory: y += w[0] x, one number per head. */
static void skip_forward(const Op *o, Work at) {
    const int n = o->x[0].n;
    PARALLEL
    for (int r = at.from; r < at.to; r++)
        for (int i = 0; i < o->x[0].heads * n; i++)
            row(o->y[0], r, 0)[i] += o->w[0].w[i / n] * row(o->x[0], r, 0)[i];
}

//~ y += w x
static void skip_backward(const Op *o, Work at) {
    PARALLEL
    for (int h = 0; h < o->x[0].heads; h++) {
        double sum = 0;
        for (int r = at.from; r < at.to; r++)
            for (int i = 0; i < o->x[0].n; i++) {
                const real dy = drow(o->y[0], r, h)[i];
                sum += (double)dy * row(o->x[0], r, h)[i];
                give(drow(o->x[0], r, h) + i, o->w[0].w[h] * dy, o->add & 1);
            }
        o->w[0].dw[h] += (real)sum;
    }
}

PAIR(skip, BY_ITSELF, 0)

/* Numbers that operations use instead of what is learned, w[0]: e^w, `share` of each, or
 * sigmoid(w). keep: they; of the latter, their gradient. */
static void made_forward(const Op *o, Work at) {
    (void)at;
    for (int i = 0; i < o->w[0].n; i++) {
        const real w = o->w[0].w[i / o->w[0].share];
        o->keep[0][i] = o->act == F_SIGMOID ? sigmoid1(w) : (real)exp(w);
    }
}

//~ y = sigmoid(w).  That of e^w is added where it is used: see slope in Param
static void made_backward(const Op *o, Work at) {
    (void)at;
    for (int i = 0; i < o->w[0].n && o->act == F_SIGMOID; i++) {
        const real y = o->keep[0][i];
        o->w[0].dw[i] += o->keep[1][i] * y * (1 - y);
        o->keep[1][i] = 0;
    }
}

PAIR(made, BY_ITSELF, 0)

/* -- order -- */

/* Rotary positions: the first `mode` numbers of each head of x turn in place, in pairs
 * (i, i + mode / 2), by position * base^(-2i / mode). sign -1 turns back. */
static void rotate(const Op *o, real *x, int t, int sign) {
    const real *angle = o->angles + (size_t)t * o->mode;
    for (int i = 0; i < o->mode / 2; i++) {
        const real c = angle[2 * i], s = sign * angle[2 * i + 1], u = x[i], v = x[i + o->mode / 2];
        x[i] = u * c - v * s;
        x[i + o->mode / 2] = v * c + u * s;
    }
}
static void rotate_forward(const Op *o, Work at) {
    EACH_VECTOR(r, h, o->x[0].heads) rotate(o, row(o->x[0], r, h), r % o->T, 1);
}

//~ a turn, which turning back undoes
static void rotate_backward(const Op *o, Work at) {
    EACH_VECTOR(r, h, o->x[0].heads) rotate(o, drow(o->x[0], r, h), r % o->T, -1);
}

PAIR(rotate, BLOCKS, 0)

/* -- softmax attention -- */

/* Causal; x: q, k, v; query head h reads kv head h / (H / Hkv).
 *   P = softmax(q k' / sqrt(n)),  y = P v
 * in blocks of BLOCK queries against the keys up to the block's end. Kept: lse (B, H, T).
 * Recomputed: P. A block of one head: its first row and how many, the columns of keys up to its
 * end, and room of this thread for P, its gradient, and gemm_serial. */
typedef struct { int from, rows, keys, ld; real *p, *dp, *buf; } Questions;

static Questions some_queries(const Op *o, int i) {
    const int T = o->T, wide = T > o->x[0].n ? T : o->x[0].n, most = BLOCK * (T + 15);
    Questions b = { .from = i, .rows = least(BLOCK, T - i) };
    b.p = space(THREAD_ID, 2 * (size_t)most + packed_size(wide, wide) + 2 * MAX_TILE * DEPTH);
    b.keys = i + b.rows;
    b.ld = (b.keys + 15) / 16 * 16;
    b.dp = b.p + most;
    b.buf = b.dp + most;
    return b;
}

/* Tokens from .. from + rows of head h of sequence b. */
static Mat head_of(const Op *o, Var v, int b, int h, int from, int rows) {
    return mat(row(v, b * o->T + from, h), rows, v.n, v.ld);
}

static void attention_forward(const Op *o, Work at) {
    const int H = o->x[0].heads, group = H / o->x[1].heads;
    const real scale = 1 / (real)sqrt(o->x[0].n);
    (void)at;
    PARALLEL
    for (int bh = 0; bh < o->B * H; bh++)
        for (int i = 0; i < o->T; i += BLOCK) {
            const int b = bh / H, h = bh % H;
            const Questions s = some_queries(o, i);
            const Mat p = mat(s.p, s.rows, s.keys, s.ld);
            const Mat q = head_of(o, o->x[0], b, h, i, s.rows);
            const Mat k = head_of(o, o->x[1], b, h / group, 0, s.keys);
            const Mat v = head_of(o, o->x[2], b, h / group, 0, s.keys);
            gemm_serial(p, q, turned(k), false, s.buf);
            kern.softmax_forward(p.p, o->keep[0] + (size_t)bh * o->T + i, s.rows, i, s.ld, scale);
            gemm_serial(head_of(o, o->y[0], b, h, i, s.rows), p, v, false, s.buf);
        }
}

/* The queries from i on of head h of sequence b, whose keys are those of head g. */
static void queries_backward(const Op *o, int b, int h, int g, int i) {
    const real scale = 1 / (real)sqrt(o->x[0].n);
    const Questions s = some_queries(o, i);
    const real *lse = o->keep[0] + ((size_t)b * o->x[0].heads + h) * o->T + i;
    const Mat p = mat(s.p, s.rows, s.keys, s.ld), dp = mat(s.dp, s.rows, s.keys, s.ld);
    const Mat q = head_of(o, o->x[0], b, h, i, s.rows);
    const Mat k = head_of(o, o->x[1], b, g, 0, s.keys), v = head_of(o, o->x[2], b, g, 0, s.keys);
    const Mat dy = head_of(o, gradient(o->y[0]), b, h, i, s.rows);
    gemm_serial(p, q, turned(k), false, s.buf);
    kern.softmax_recompute(p.p, lse, s.rows, i, s.ld, scale);
    //~ y = P v
    gemm_serial(dp, dy, turned(v), false, s.buf);
    gemm_serial(head_of(o, gradient(o->x[2]), b, g, 0, s.keys), turned(p), dy, true, s.buf);
    //~ P = softmax(s / sqrt(n))
    kern.softmax_backward(dp.p, p.p, s.rows, s.keys, s.ld, scale);
    //~ s = q k'
    gemm_serial(head_of(o, gradient(o->x[0]), b, h, i, s.rows), dp, k, false, s.buf);
    gemm_serial(head_of(o, gradient(o->x[1]), b, g, 0, s.keys), turned(dp), q, true, s.buf);
}

//~ y = softmax(q k' / sqrt(n)) v
static void attention_backward(const Op *o, Work at) {
    const int G = o->x[1].heads, group = o->x[0].heads / G, T = o->T, n = o->x[0].n;
    (void)at;
    PARALLEL
    for (int bg = 0; bg < o->B * G; bg++) {     /* a thread owns the keys and values of a head */
        const int b = bg / G, g = bg % G;
        for (int r = b * T; r < (b + 1) * T; r++) {
            zeroed(drow(o->x[1], r, g), n);
            zeroed(drow(o->x[2], r, g), n);
        }
        for (int h = g * group; h < (g + 1) * group; h++)
            for (int i = 0; i < T; i += BLOCK) queries_backward(o, b, h, g, i);
    }
}

PAIR(attention, BY_ITSELF, 7)

/* -- embedding -- */

/* x_r = row id_r of w (vocabulary, D). */
static void embedding_forward(Var x, const real *w, const int *id, int N) {
    for (int r = 0; r < N; r++)
        memcpy(row(x, r, 0), w + (size_t)id[r] * x.n, (size_t)x.n * sizeof *w);
}

//~ x_r = row id_r of w.  A thread owns BLOCK columns, and adds the tokens in order
static void embedding_backward(Var x, real *dw, const int *id, int N) {
    PARALLEL
    for (int c = 0; c < x.n; c += BLOCK)
        for (int r = 0; r < N; r++)
            for (int i = c; i < least(c + BLOCK, x.n); i++)
                dw[(size_t)id[r] * x.n + i] += drow(x, r, 0)[i];
}

/* ---- 6. model ------------------------------------------------------------------------------
 * Sizes, tensors, all memory, and the list of operations. Parameters, their gradients and the two
 * running means of AdamW are four arrays with one layout; a tensor is an offset into them. Its
 * rooms:
 *
 *   what a model is made of       TinyConfig (sizes), TinyTensor, Tiny (all of it)
 *   random numbers
 *   tensors                       each with its name, shape and first values
 *   memory                        of activations, of gradients inside one layer; parts of rows
 *   operations                    what section 7 puts on the list */
/* -- what a model is made of -- */

/* What --without leaves out, by bits in the order of parts_left_out. */
enum { NO_DECAY = 1, NO_MAP = 2, NO_ROTATION = 4, NO_GATE = 8 };

typedef struct {
    int mixer;                               /* row of mixer_kinds */
    int dim, hidden_dim, n_layers, vocab_size, seq_len;
    int n_heads, dk, dv, d_conv;             /* linear layers */
    int interval;                            /* every such layer is softmax attention, 0: none */
    int q_heads, kv_heads, head_dim, n_rot;  /* softmax layers */
    int gate_rank;                           /* width of the narrow middles */
    int mtp;                                 /* 1: a block for multi-token prediction behind them */
    float eps, rope_base, decay_divisor;
    unsigned without;                        /* NO_* */
    double half_life;                        /* tokens, of all decays at first; 0: as each mixer
                                                usually begins, and hgrn2 has no bias */
} TinyConfig;
enum { MAX_LAYERS = 256 };

enum {
    DECAYS = 1,                              /* a matrix, pulled to zero by AdamW */
    KEEP_F32 = 2,                            /* float32 in the file, whatever the matrices are */
    TRANSPOSED = 4,                          /* the file has it the other way round */
    NEGATIVE_EXP = 8,                        /* the file has -e^x of it */
    SIGMOID = 16,                            /* the file has sigmoid(x) of it */
    CONSTANT = 32                            /* is not learned: it has no gradient */
};

/* What a tensor begins with, from its two numbers a and b: a line from a to b, over `period`
 * numbers; normal numbers, a / b large; taps; rates 1 .. 1 + a; steps of time, a or (0) many;
 * decays, of rate a or (0) one per head. */
typedef enum { LINE, NORMAL, TAPS, RATES, STEPS, FADES } Start;

typedef struct {
    char name[48];                           /* as in the file */
    int rows, cols;                          /* rows 0: one dimension */
    int parts;                               /* matrices in the file, of rows / parts each */
    int flags;                               /* DECAYS ... */
    Start start;
    double a, b;
    int period;                              /* 0: all of it */
    size_t at;                               /* where it begins in params, grads, mean, square */
} TinyTensor;

/* N = B T tokens, D is dim. Lists are written by tiny_new, twice: first only to measure, when there
 * is no memory and every pointer is NULL. */
typedef struct {
    TinyConfig c;
    int B, N;                                /* sequences, and tokens, per step */
    TinyTensor *tensors;
    int n_tensors;
    size_t n_params, n_weights;              /* with and without padding of each to 16 reals */
    real *params, *grads, *mean, *square;    /* (n_params) each; the last two are AdamW's */
    Op *ops;
    int n_ops, half;                         /* operations; of what half of a layer is written */
    real *arena, *pool;                      /* activations; gradients inside half a layer */
    size_t used, pool_used, pool_cap;
    int layer;                               /* that is written; -1: the model itself */
    uint64_t rng;
    Param embed;                             /* (vocab_size, D) */
    Var x, h_out;                            /* (N, D) tokens; what the logits are made of */
    Var x_mtp, h_mtp;                        /* the same of multi-token prediction: see add_mtp */
    int n_layer_ops;                         /* operations in front of those */
    int *next, *after;                       /* (N) the next tokens, and those after next or -1 */
    double mtp_loss;                         /* of the last step: a sum over mtp_count tokens */
    int mtp_count;
    Var first;                               /* RWKV-7: the values of the first layer */
    real *rope, *rope_k;                     /* (T, n / 2, cos and sin): of n_rot, of dk */
} Tiny;

/* -- random numbers -- */

/* xorshift64*; the seed goes through one round of splitmix64, so that neighbouring seeds part at
 * once. Its state is never 0. */
static uint64_t mix_seed(uint64_t x) {
    const uint64_t z = next_random(&x);
    return z ? z : 1;
}

/* The next 64 bits. */
static uint64_t rng_next(uint64_t *s) {
    *s ^= *s >> 12;
    *s ^= *s << 25;
    *s ^= *s >> 27;
    return *s * 0x2545f4914f6cdd1du;
}

/* Between 0 and 1, never 0: its logarithm is taken. */
static double rng_uniform(uint64_t *s) {
    return ((double)(rng_next(s) >> 11) + 0.5) / 9007199254740992.0;
}

/* Mean 0, variance 1 (Box and Muller). */
static double rng_normal(uint64_t *s) {
    double u = rng_uniform(s), v = rng_uniform(s);
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

/* A counter, for wait_begin. */
static int64_t count_of(const void *counter) { return *(const volatile int64_t *)counter; }

/* -- tensors -- */

static size_t tensor_len(const TinyTensor *t) { return (size_t)t->cols * (t->rows ? t->rows : 1); }

/* First value i of a tensor: see Start. */
static real first_value(const TinyTensor *t, size_t i, size_t period, uint64_t *rng) {
    double x = t->a;
    switch (t->start) {
    case LINE: return (real)(t->a + (t->b - t->a) * (double)(i % period) / (double)period);
    case NORMAL: return (real)(rng_normal(rng) * t->a / t->b);
    case TAPS: return (real)(rng_uniform(rng) - 0.5);
    case RATES: return (real)log(1 + t->a * rng_uniform(rng));
    case FADES: return (real)(t->a > 0 ? exp(-t->a) : 1 - pow(2, -5 - (double)i));
    case STEPS: if (x <= 0) x = exp(log(0.001) + rng_uniform(rng) * log(100));
    }
    return (real)(x + log(-expm1(-x)));      /* the inverse of softplus */
}

/* One more tensor of the layer. */
static Param add_tensor(Tiny *m, const char *name, TinyTensor t) {
    const size_t n = tensor_len(&t);
    if (m->layer < 0) snprintf(t.name, sizeof t.name, "%s", name);
    else snprintf(t.name, sizeof t.name, "blk.%d.%s", m->layer, name);
    t.parts = t.parts ? t.parts : 1;
    t.at = m->n_params;
    m->n_weights += n;
    m->n_params += (n + 15) / 16 * 16;
    m->n_tensors++;
    if (!m->tensors) return (Param){ .n = (int)n, .share = 1 };
    m->tensors[m->n_tensors - 1] = t;
    const size_t period = t.period ? (size_t)t.period : n;
    for (size_t i = 0; i < n; i++) m->params[t.at + i] = first_value(&t, i, period, &m->rng);
    return (Param){ .w = m->params + t.at, .dw = t.flags & CONSTANT ? NULL : m->grads + t.at,
                    .n = (int)n, .share = 1 };
}

/* A matrix of normal numbers, of which a / b is the usual size. */
static TinyTensor normal(int rows, int cols, double a, double b) {
    return (TinyTensor){ .rows = rows, .cols = cols, .flags = DECAYS, .start = NORMAL,
                         .a = a, .b = b };
}
/* One that keeps the size of what it multiplies; and one that writes to the residual stream, a
 * share of it. */
static Param add_matrix(Tiny *m, const char *name, int rows, int cols) {
    return add_tensor(m, name, normal(rows, cols, 1 / sqrt((double)cols), 1));
}
static Param add_out_matrix(Tiny *m, const char *name, int rows, int cols) {
    return add_tensor(m, name, normal(rows, cols, 1 / sqrt((double)cols), sqrt(2.0 * m->c.n_layers)));
}
/* n numbers on a line from a to b. */
static Param add_vector(Tiny *m, const char *name, int n, double a, double b) {
    return add_tensor(m, name, (TinyTensor){ .cols = n, .flags = KEEP_F32, .a = a, .b = b });
}
/* n of another kind of start. */
static Param add_numbers(Tiny *m, const char *name, int n, Start start, double a, int flags) {
    return add_tensor(m, name, (TinyTensor){ .cols = n, .start = start, .a = a,
                                             .flags = KEEP_F32 | flags });
}
static Param taps_of(Tiny *m, const char *name, int C) {
    return add_tensor(m, name, (TinyTensor){ .rows = m->c.d_conv, .cols = C, .start = TAPS,
                                             .flags = KEEP_F32 | TRANSPOSED });
}

/* -- memory -- */

/* n reals that last from the way forward to the way back. */
static real *lay(Tiny *m, size_t n) {
    real *p = m->arena ? m->arena + m->used : NULL;
    m->used += (n + 15) / 16 * 16;
    return p;
}

/* n reals for a gradient, which are free again behind this half of the layer. */
static real *lend(Tiny *m, size_t n) {
    real *p = m->pool ? m->pool + m->pool_used : NULL;
    m->pool_used += (n + 15) / 16 * 16;
    m->pool_cap = m->pool_used > m->pool_cap ? m->pool_used : m->pool_cap;
    return p;
}
static void begin_half(Tiny *m) {
    m->pool_used = 0;
    m->half++;
}

/* A variable of all tokens, dense. */
static Var new_var(Tiny *m, int heads, int n) {
    const size_t ld = (size_t)heads * n;
    return (Var){ lay(m, m->N * ld), lend(m, m->N * ld), ld, (size_t)n, heads, n };
}

/* A variable (N, D) whose gradient outlasts a half of a layer. */
static Var lasting_var(Tiny *m) {
    const size_t D = (size_t)m->c.dim;
    return (Var){ lay(m, m->N * D), lay(m, m->N * D), D, D, 1, m->c.dim };
}

/* n numbers that never change. */
static Param constant(Tiny *m, int n, real value) {
    Param p = { .w = lay(m, (size_t)n), .n = n, .share = 1 };
    for (int i = 0; i < n && p.w; i++) p.w[i] = value;
    return p;
}

/* A variable that is `with` for all tokens. */
static Var all_tokens(Tiny *m, Param with) {
    Var v = new_var(m, with.n, 1);
    for (int r = 0; r < m->N && v.x; r++) memcpy(row(v, r, 0), with.w, (size_t)with.n * sizeof(real));
    return v;
}

/* n columns of a variable, from column `at` on, as vectors of `heads`. */
static Var columns(Var v, int at, int n, int heads) {
    v.x = v.x ? v.x + at : NULL;
    v.dx = v.dx ? v.dx + at : NULL;
    v.heads = heads;
    v.n = n / heads;
    v.hs = (size_t)v.n;
    return v;
}
static Var in_heads(Var v, int heads) { return columns(v, 0, v.heads * v.n, heads); }

/* -- operations -- */

/* Puts an operation on the list. */
static void push(Tiny *m, Op o) {
    o.B = m->B;
    o.T = m->c.seq_len;
    o.half = m->half;
    o.writes = o.writes ? o.writes : 1;
    if (m->ops) m->ops[m->n_ops] = o;
    m->n_ops++;
}

/* The same; returns y, which is a new variable like x[0] where it is missing. */
static Var add(Tiny *m, Op o) {
    if (!o.y[0].n) o.y[0] = new_var(m, o.x[0].heads, o.x[0].n);
    push(m, o);
    return o.y[0];
}

/* y = scale act(x), also in a place that is there. */
static Var add_map_to(Tiny *m, Var y, Act act, Var x, real scale) {
    return add(m, (Op){ .run = kern.map, .act = act, .scale = scale, .x = { x }, .y = { y } });
}
static Var add_map(Tiny *m, Act act, Var x) { return add_map_to(m, (Var){ .n = 0 }, act, x, 1); }

/* x act(z), and x times a number per head. */
static Var add_glu(Tiny *m, Act act, Var x, Var z) {
    return add(m, (Op){ .run = kern.glu, .act = act, .x = { x, z } });
}
static Var add_scale(Tiny *m, Var x, Var g) {
    return add(m, (Op){ .run = kern.scale, .x = { x, g } });
}

static Var add_l2norm_to(Tiny *m, Var y, Var x, real scale) {
    return add(m, (Op){ .run = kern.l2norm, .scale = scale, .x = { x }, .y = { y },
                        .keep = { lay(m, (size_t)m->N * x.heads) } });
}

/* A norm of x, whose kind, weights and epsilon o has. */
static Var add_norm(Tiny *m, Op o, Var x) {
    o.x[0] = x;
    o.keep[0] = lay(m, 2 * (size_t)m->N * x.heads);
    return add(m, o);
}
static Var add_rmsnorm(Tiny *m, Var x, Param w, real eps) {
    return add_norm(m, (Op){ .run = kern.rmsnorm, .scale = eps, .w = { w } }, x);
}

/* sigmoid(x). */
static Var add_sigmoid(Tiny *m, Var x) {
    return add(m, (Op){ .run = kern.gate, .scale = 1, .x = { x } });
}

/* x w' + bias, with `out` numbers. */
static Var add_linear(Tiny *m, Var x, Param w, Param bias, int out) {
    return add(m, (Op){ .run = linear_pair, .x = { x }, .w = { w, bias }, .y = { new_var(m, 1, out) } });
}

/* The stream after x w' is added to it: it has new values, but one gradient everywhere. */
static Var add_onto(Tiny *m, Var stream, Var x, Param w) {
    Var y = stream;
    y.x = lay(m, (size_t)m->N * y.ld);
    stream.dx = NULL;
    return add(m, (Op){ .run = linear_pair, .x = { x, stream }, .w = { w }, .y = { y } });
}

/* Turns the heads of x in place, n numbers of each. */
static void add_rotation(Tiny *m, Var x, const real *angles, int n) {
    push(m, (Op){ .run = rotate_pair, .mode = n, .angles = angles, .x = { x } });
}

/* The readout of a memory, and what it takes: see one_head. */
static Var add_recurrence(Tiny *m, int mode, int writes, const Var x[N_X]) {
    const Var q = x[X_Q], v = x[X_V];
    const int T = m->c.seq_len * writes, heads = q.heads / writes;
    Op o = { .run = recurrence_pair, .mode = mode, .writes = writes, .y = { new_var(m, q.heads, v.n) } };
    memcpy(o.x, x, sizeof o.x);
    /* only the last write of a token is read: the gradient of the others stays zero */
    if (writes > 1) o.y[0].dx = lay(m, m->N * o.y[0].ld);
    if (mode & (SCAN_ERASES | SCAN_WRITES_BACK)) o.keep[0] = lay(m, m->N * o.y[0].ld);
    o.keep[1] = lay(m, kept_states(m->B, T, heads, q.n, v.n));
    return add(m, o);
}

/* The convolution of the columns of x that follow column `at`, in the same columns of y. */
static int add_conv(Tiny *m, Var y, Var x, int at, Param w, Param bias, Act act) {
    const int C = w.n / m->c.d_conv;
    push(m, (Op){ .run = kern.conv, .act = act, .w = { w, bias },
                  .x = { columns(x, at, C, 1) }, .y = { columns(y, at, C, 1) } });
    return at + C;
}

/* Which gradients are added to what is there: all but the first, seen from the last operation, that
 * goes to a place; the head was at h_out before. Places in the pool are others in each half of a
 * layer. */
static void order_gradients(Tiny *m) {
    real **given = checked(malloc(((size_t)m->n_ops * N_X + 1) * sizeof *given));
    int n = 0;
    given[n++] = m->h_out.dx;
    for (int i = m->n_ops - 1; i >= 0; i--) {
        Op *o = &m->ops[i];
        for (int k = n; i + 1 < m->n_ops && o->half != o[1].half && k-- > 0;)
            if (given[k] >= m->pool && given[k] < m->pool + m->pool_cap) given[k] = given[--n];
        for (int j = 0; j < N_X; j++) {
            int k = 0;
            if (!o->x[j].dx) continue;
            while (k < n && given[k] != o->x[j].dx) k++;
            if (k < n) o->add |= 1u << j;
            else given[n++] = o->x[j].dx;
        }
        assert(!(o->add & o->run.assigns));
    }
    free(given);
}

/* ---- 7. layers -----------------------------------------------------------------------------
 * A layer is written as what it computes: every line puts operations on the list, and the way back
 * is that list from its end. x is the residual stream, to which the mixer adds; h is its norm. All
 * are of N = B T tokens. Its rooms:
 *
 *   what a law is made of      projections, decays, queries and keys
 *   the laws                   what the recurrence reads: the equation of each mixer
 *   the mixers to choose from  a table, and questions about its rows
 *   linear layers              around a law: projections, convolution; norm and gate, out
 *   softmax attention          the same with keys and values of all tokens instead of a memory
 *   RWKV                       its mixer, and its feed-forward
 *   a layer, a new model
 *
 * Local names: D dim, F hidden_dim, H heads, K = H dk and V = H dv, R the rank of narrow middles. */

/* -- what a law is made of -- */

typedef enum { FADE_NEVER, FADE_FIXED, FADE_SIGMOID, FADE_SOFTPLUS, FADE_FORGET, FADE_STEP,
               FADE_SUM } Fade;

/* The projections of h that a mixer may have besides q, k and v, in the order of the file, and by
 * the letters of its row in run.c. Output gates and decays may come from a narrow middle. */
enum { P_GATE, P_ERASE, P_WRITE, P_DECAY, P_MOMENT, P_SHARE, N_PROJECTIONS };
static const struct { char letter; const char *name, *narrow; } projections[N_PROJECTIONS] = {
    { 'z', "attn_gate.weight", "ssm_g_a.weight" },
    { 'b', "ssm_beta.weight", NULL },
    { 'w', "ssm_w.weight", NULL },
    { 'f', "ssm_alpha.weight", "ssm_f_a.weight" },
    { 'g', "ssm_m_alpha.weight", NULL },
    { 's', "ssm_m_beta.weight", NULL },
};

/* What a new model of a mixer begins with. */
typedef struct Mix Mix;
typedef struct {
    const char *name, *arch, *about;         /* of --mixer, of the file, for the reader */
    void (*law)(Mix *t);                     /* NULL: softmax attention or RWKV */
    Fade fade;
    int d_conv;                              /* taps unless --conv says otherwise */
    bool qwen;                               /* q, k, v in one tensor; softmax layers have a gate */
    bool elu;                                /* q and k go through elu + 1 */
    bool rope;                               /* q and k are rotated by their position */
    bool ungated;                            /* the output gate of its family is left out */
    bool unscaled;                           /* q is not divided by sqrt(dk) */
    float norm_eps;                          /* of the output norm; 0: the model's */
    int rwkv;                                /* 6 or 7: layers of their own */
    int writes;                              /* per token; 0: one */
} MixerKind;

/* A layer of the family while it is written. q, k, v are columns of the projections behind their
 * convolution, until a law makes of them what the recurrence reads. */
struct Mix {
    Tiny *m;
    const MixerKind *kind;
    int H, K, V, writes;
    Act map, gate;                           /* of q and k; of the output */
    bool unit;                               /* q and k are normed */
    Var in[N_PROJECTIONS];
    Var q, k, v, d, e, rho;
    Var rest;                                /* 1 - d, where it is written */
    Var step, straight;                      /* Mamba-2: D; v, as it goes around the memory */
};

/* Its row of `mixers` in run.c: shapes, and what stands around a law. */
static const Mixer *mixer_of(const MixerKind *k) {
    return mixer_row(k->qwen ? "gated_deltanet" : k->arch);
}

/* The shape of a projection in that row, as "f:Hk"; NULL: there is none. */
static const char *shape_in(const MixerKind *k, char letter) {
    const char *in = mixer_of(k)->in;
    while ((in = strchr(in, letter)) && in[1] != ':') in++;
    return in;
}
/* Has the shape a number for each channel of a key (k), value (v), slot (m), or write (N)? */
static bool is_per(const char *shape, char letter) {
    return shape && memchr(shape + 2, letter, strcspn(shape + 2, " "));
}
/* k = 1 - d, from the projection of the decay. */
static bool keys_from_decay(const MixerKind *k) { return !shape_in(k, 'k'); }
/* Does a projection go through a narrow middle? Decays per channel do, and what then gates. */
static bool is_narrow(const MixerKind *k, char letter) {
    const bool decays = is_per(shape_in(k, 'f'), 'k') && !keys_from_decay(k);
    return decays && (letter == 'f' || (letter == 'z' && shape_in(k, 'b')));
}

/* A variable for all writes of a token, and the part of one. */
static Var part_of(const Mix *t, Var all, int write) {
    return columns(all, write * all.heads / t->writes * all.n, all.heads / t->writes * all.n,
                   all.heads / t->writes);
}

/* q is read after the last write. */
static void query(Mix *t, Var from) {
    Tiny *m = t->m;
    const Var q = new_var(m, t->writes * t->H, m->c.dk), last = part_of(t, q, t->writes - 1);
    const bool plain = t->kind->unscaled || t->kind->fade == FADE_STEP;
    const real scale = plain ? 1 : 1 / (real)sqrt(m->c.dk);
    if (t->unit) add_l2norm_to(m, last, from, scale);
    else add_map_to(m, last, t->map, from, scale);
    t->q = q;
}

static void queries_and_keys(Mix *t) {
    Tiny *m = t->m;
    query(t, t->q);
    if (keys_from_decay(t->kind)) return;
    t->k = t->unit ? add_l2norm_to(m, (Var){ .n = 0 }, t->k, 1) : add_map(m, t->map, t->k);
    if (!t->kind->rope || m->c.without & NO_ROTATION) return;
    add_rotation(m, t->q, m->rope_k, m->c.dk);
    add_rotation(m, t->k, m->rope_k, m->c.dk);
}

/* Of a new decay, 0: as the mixer usually begins; e^-this is kept from token to token. */
static double first_rate(const TinyConfig *c) {
    return c->half_life > 0 ? log(2) / c->half_life : 0;
}

/* n numbers e^a_log, where a_log has one per head: as a matrix in files of Mamba-2. */
static Param rates_of(Tiny *m, const char *name, bool matrix, int n) {
    const int H = m->c.n_heads;
    Param a_log = add_tensor(m, name, (TinyTensor){
        .rows = matrix ? H : 0, .cols = matrix ? 1 : H, .start = RATES,
        .a = m->c.half_life > 0 ? 0 : 15, .flags = KEEP_F32 | NEGATIVE_EXP });
    Param rate = { .w = lay(m, (size_t)n), .dw = a_log.dw, .n = n, .share = n / a_log.n };
    rate.slope = rate.w;
    a_log.n = n;
    a_log.share = rate.share;
    push(m, (Op){ .run = made_pair, .w = { a_log }, .keep = { rate.w } });
    return rate;
}

/* d, from the projection of it, per head or channel. With half_life it begins at e^-f by way of its
 * bias: -f is the logarithm that softplus, logsigmoid / divisor and logsigmoid have to give. */
static void decays(Mix *t) {
    Tiny *m = t->m;
    const TinyConfig *c = &m->c;
    const Fade fade = t->kind->fade;
    const bool step = fade == FADE_STEP, kept = c->without & NO_DECAY;
    const Var a = keys_from_decay(t->kind) ? t->k : t->in[P_DECAY];
    const int n = a.heads * a.n, H = t->H;
    const double f = first_rate(c), log_f = f * (fade == FADE_SIGMOID ? c->decay_divisor : 1);
    const double at = f > 0 ? -log_f - log(-expm1(-log_f)) : 0;     /* the inverse of logsigmoid */
    Param bias = { .n = 0 }, rate = { .n = 0 };
    if (fade == FADE_NEVER || fade == FADE_FIXED) {
        Param d = constant(m, H, 1), fixed = d;
        if (fade == FADE_FIXED)
            fixed = add_numbers(m, "ssm_decay", H, FADES, f, CONSTANT);
        t->d = all_tokens(m, kept ? d : fixed);
        return;
    }
    if (fade == FADE_SUM) {
        t->rest = in_heads(new_var(m, 1, n), H);
        t->d = add(m, (Op){ .run = sum_decay_pair, .x = { a },
                            .y = { in_heads(new_var(m, 1, n), H), t->rest } });
        return;
    }
    if (fade == FADE_SIGMOID || (fade == FADE_FORGET && f > 0))
        bias = add_vector(m, is_narrow(t->kind, 'f') ? "ssm_f_b.bias" : "ssm_alpha.bias", n, at, at);
    if (fade == FADE_SIGMOID) rate = constant(m, n, 1 / (real)c->decay_divisor);
    if (fade == FADE_SOFTPLUS || step) {
        bias = add_numbers(m, "ssm_dt.bias", n, STEPS, f, 0);
        rate = rates_of(m, "ssm_a", step, n);
    }
    if (step) t->step = add(m, (Op){ .run = step_pair, .x = { a }, .w = { bias } });
    if (kept) rate = constant(m, n, 0);      /* d = 1 */
    Var d = t->writes > 1 ? all_tokens(m, constant(m, t->writes * n, 1)) : new_var(m, n, 1);
    const real sign = fade == FADE_SOFTPLUS || step ? -1 : 1;
    push(m, (Op){ .run = kern.gate, .scale = sign, .x = { a }, .w = { bias, rate },
                  .y = { columns(d, 0, n, 1) } });
    t->d = in_heads(d, t->writes * H);       /* a token fades before its first write */
}

/* e = d k: what is recalled with k from a memory that has faded. */
static Var faded(const Mix *t, Var k) {
    return t->d.n > 1 ? add_glu(t->m, F_ID, k, t->d) : add_scale(t->m, k, t->d);
}

/* rho = sigmoid(b), and v rho. */
static void strengths(Mix *t) {
    t->rho = in_heads(add_sigmoid(t->m, t->in[P_ERASE]), t->writes * t->H);
    t->v = add_scale(t->m, t->v, t->rho);
}

/* -- the laws -- */

/* S <- Diag(d) S + k v'  (linear attention, RetNet, GLA ...) */
static void add_law(Mix *t) {
    decays(t);
    queries_and_keys(t);
}

/* S <- Diag(d) S + (1 - d) v'  (HGRN2, LightNet) */
static void rest_law(Mix *t) {
    decays(t);
    queries_and_keys(t);
    t->k = t->rest.n ? t->rest : add_map(t->m, F_REST, t->d);
}

/* Two tables of slots, with keys and with values: what is read from the first says which slots of
 * the second are.  (GSA, ABC)
 *   A <- A Diag(d) + k (1 - d)',  p = softmax(A'q);   S <- Diag(d) S + (1 - d) v',  o = S'p */
static void slots_law(Mix *t) {
    decays(t);
    queries_and_keys(t);
    const Var rest = t->rest.n ? t->rest : add_map(t->m, F_REST, t->d);
    const Var one = all_tokens(t->m, constant(t->m, t->H, 1));
    const Var x[N_X] = { [X_Q] = t->q, [X_K] = t->k, [X_V] = rest, [X_D] = one, [X_C] = t->d };
    t->q = add(t->m, (Op){ .run = slots_pair, .x = { add_recurrence(t->m, SCAN_FADES_VALUES, 1, x) } });
    t->k = rest;
}

/* S <- Diag(d) S + k (b (v - (d S)'k))'  (DeltaNet, Gated DeltaNet, KDA, Qwen3.5; b in front of the
 * bracket is rho, in it v has it already) */
static void delta_law(Mix *t) {
    decays(t);
    queries_and_keys(t);
    strengths(t);
    t->e = faded(t, t->k);
}

/* The same, with the key that is written divided by the root of a second moment of keys. */
static void scaled_law(Mix *t) {
    Tiny *m = t->m;
    const int H = t->H;
    decays(t);
    queries_and_keys(t);
    const Param bias = add_numbers(m, "ssm_m_dt.bias", H, STEPS, first_rate(&m->c), 0);
    const Param scale = add_vector(m, "ssm_m_scale", H, 0, 0);
    const Param rate = rates_of(m, "ssm_m_a", false, H);
    strengths(t);
    const Var fade = add(m, (Op){ .run = kern.gate, .scale = -1, .x = { t->in[P_MOMENT] },
                                  .w = { bias, rate } });
    const Var share = add_sigmoid(m, t->in[P_SHARE]);
    t->e = faded(t, t->k);
    t->k = add(m, (Op){ .run = moment_pair, .x = { t->k, in_heads(fade, H), in_heads(share, H) },
                        .w = { scale }, .keep = { lay(m, (size_t)m->N * t->K) } });
}

/* S <- Diag(d) S + k (b v - b S'p)', p = old k along which is erased before S fades; and q loses
 * its share of p.  (Comba) */
static void comba_law(Mix *t) {
    Tiny *m = t->m;
    const int H = t->H;
    decays(t);
    Param old = add_numbers(m, "ssm_p", H, LINE, 0, SIGMOID);
    const Param skip = add_vector(m, "ssm_d", H, 1, 1);
    const Param share = { .w = lay(m, (size_t)H), .dw = lay(m, (size_t)H), .n = H, .share = 1 };
    push(m, (Op){ .run = made_pair, .act = F_SIGMOID, .w = { old }, .keep = { share.w, share.dw } });
    const Var p = new_var(m, H, m->c.dk), q = new_var(m, H, m->c.dk);
    push(m, (Op){ .run = comba_pair, .x = { t->q, t->k }, .w = { share, skip }, .y = { p, q } });
    query(t, q);
    t->e = add_l2norm_to(m, (Var){ .n = 0 }, p, 1);
    t->k = add_l2norm_to(m, (Var){ .n = 0 }, t->k, 1);
    strengths(t);
}

/* S <- Diag(d) S + k (w v - (d S)'(b k))', b and w per channel.  (GDN2) */
static void gated_law(Mix *t) {
    decays(t);
    queries_and_keys(t);
    t->v = add_glu(t->m, F_SIGMOID, t->v, in_heads(t->in[P_WRITE], t->H));
    t->e = faded(t, add_glu(t->m, F_SIGMOID, t->k, in_heads(t->in[P_ERASE], t->H)));
    t->rho = all_tokens(t->m, constant(t->m, t->H, 1));
}

/* S <- d S + k (D v)', D the step of time.  (Mamba-2) */
static void step_law(Mix *t) {
    decays(t);
    queries_and_keys(t);
    t->straight = t->v;
    t->v = add_scale(t->m, t->v, in_heads(t->step, t->H));
}

/* -- the mixers to choose from -- */

enum { GATED_DELTA, GLA, SOFTMAX };          /* rows of the table that others ask for by name */
static const MixerKind mixer_kinds[] = {
    { "gated-delta", "qwen35", "as Qwen3.5: 3 layers of gated-deltanet, then 1 of gated attention", delta_law, FADE_SOFTPLUS, .d_conv = 4, .qwen = true },
    { "gla", "gla", "a decay per key channel, nothing erased", add_law, FADE_SIGMOID, .d_conv = 0 },
    { "softmax", "qwen35", "gated softmax attention in every layer", .qwen = true },
    { "linear-attention", "linear_attn", "no decay: everything is added up", add_law, FADE_NEVER, .elu = true },
    { "retnet", "retnet", "a fixed decay per head", add_law, FADE_FIXED, .rope = true },
    { "lightning", "lightning_attn", "retnet behind a convolution instead of a rotation", add_law, FADE_FIXED, .d_conv = 4 },
    { "simple-gla", "simple_gla", "a decay per head and token", add_law, FADE_SIGMOID, .d_conv = 4 },
    { "hgrn2", "hgrn2", "what is not kept is written: key = 1 - decay", rest_law, FADE_FORGET, .norm_eps = 1e-5f },
    { "lightnet", "lightnet", "a decay that weighs all tokens so far by a softmax", rest_law, FADE_SUM, .d_conv = 0 },
    { "gsa", "gsa", "a table of slots, each with a decay, read by softmax", slots_law, FADE_SIGMOID, .norm_eps = 1e-5f, .unscaled = true },
    { "abc", "abc", "gsa with the decay of lightnet, and positions", slots_law, FADE_SUM, .rope = true },
    { "mamba2", "mamba2", "one step size per head is both decay and write strength", step_law, FADE_STEP, .d_conv = 4 },
    { "deltanet", "delta_net", "erases what is stored under the key before it writes", delta_law, FADE_NEVER, .d_conv = 4, .ungated = true },
    { "gated-deltanet", "gated_deltanet", "deltanet with a decay per head", delta_law, FADE_SOFTPLUS, .d_conv = 4 },
    { "gated-deltaproduct", "gated_deltaproduct", "gated-deltanet that erases and writes twice for each token", delta_law, FADE_SOFTPLUS, .d_conv = 4, .writes = 2 },
    { "comba", "comba", "gated-deltanet that erases along a key of its own", comba_law, FADE_SOFTPLUS, .d_conv = 4 },
    { "kda", "kda", "deltanet with a decay per key channel", delta_law, FADE_SOFTPLUS, .d_conv = 4 },
    { "precond-deltanet", "precond_gated_deltanet", "gated-deltanet that writes less to channels that were written much", scaled_law, FADE_SOFTPLUS, .d_conv = 4 },
    { "precond-kda", "precond_kda", "kda likewise", scaled_law, FADE_SOFTPLUS, .d_conv = 4 },
    { "gdn2", "gdn2", "kda with strengths of erase and write per channel", gated_law, FADE_SOFTPLUS, .d_conv = 4 },
    { "rwkv6", "rwkv6", "gla that reads before it writes, and sees the token before instead of a convolution", .norm_eps = 64e-5f, .rwkv = 6 },
    { "rwkv7", "rwkv7", "a decay per key channel; what is recalled under one key goes back under another", .norm_eps = 64e-5f, .rwkv = 7 },
};
enum { N_KINDS = sizeof mixer_kinds / sizeof *mixer_kinds };

/* Are they one word, but for capitals, - and _? */
static bool same_word(const char *a, const char *b) {
    for (;; a++, b++) {
        a += strspn(a, "-_");
        b += strspn(b, "-_");
        if (tolower((unsigned char)*a) != tolower((unsigned char)*b)) return false;
        if (!*a) return true;
    }
}

/* The row that a mixer has by its name here or, failing that, in files; N_KINDS: there is none. */
static int mixer_named(const char *name) {
    int by_name = 0, by_arch = 0;
    while (by_name < N_KINDS && !same_word(name, mixer_kinds[by_name].name)) by_name++;
    while (by_arch < N_KINDS && !same_word(name, mixer_kinds[by_arch].arch)) by_arch++;
    return by_name < N_KINDS ? by_name : by_arch;
}

static Act act_of(int act) {
    return act == ACT_SILU ? F_SILU : act == ACT_SIGMOID ? F_SIGMOID
           : act == ACT_ELU1 ? F_ELU1 : F_ID;
}
static Act gate_of(const MixerKind *k) {
    return k->ungated ? F_ID : act_of(mixer_of(k)->back.gate);
}
static Act map_of(const MixerKind *k) { return k->elu ? F_ELU1 : act_of(mixer_of(k)->front.map); }
static int writes_of(const MixerKind *k) { return k->writes ? k->writes : 1; }
/* Mamba-2: a skip, the gate before the norm, no feed-forward. */
static bool is_mamba(const MixerKind *k) { return k->fade == FADE_STEP; }
/* Softmax attention in the model's place l? */
static bool attends(const TinyConfig *c, int l) {
    return l >= c->n_layers || (c->interval && (l + 1) % c->interval == 0);
}

/* -- linear layers -- */

/* Projections of h are one matrix: tensors that follow each other. Returns the first column. */
typedef struct { Param w; int n; } Stack;
static int add_rows(Tiny *m, Stack *all, const char *name, int rows) {
    const Param w = add_matrix(m, name, rows, m->c.dim);
    if (!all->n) all->w = w;
    all->n += rows;
    return all->n - rows;
}

static const Param no_bias = { .n = 0 };

/* u behind its convolution: q, k and v side by side, which have one or one each. */
static Var convolved(Mix *t, Var u) {
    Tiny *m = t->m;
    const bool mamba = is_mamba(t->kind), f = keys_from_decay(t->kind);
    const Act act = mixer_of(t->kind)->front.silu != SILU_NEVER ? F_SILU : F_ID;
    const char *const names[] = { "ssm_conv1d_q.weight",
                                  f ? "ssm_conv1d_f.weight" : "ssm_conv1d_k.weight",
                                  "ssm_conv1d_v.weight" };
    const int widths[] = { t->K, t->writes * t->K, t->writes * t->V };
    const Var y = new_var(m, 1, u.n);
    if (t->kind->qwen || mamba) {
        const Param w = taps_of(m, "ssm_conv1d.weight", u.n);
        add_conv(m, y, u, 0, w, mamba ? add_vector(m, "ssm_conv1d.bias", u.n, 0, 0) : no_bias, act);
        return y;
    }
    for (int i = 0, at = 0; i < 3; i++)
        at = add_conv(m, y, u, at, taps_of(m, names[i], widths[i]), no_bias, act);
    return y;
}

/* The projections of h: q, k, v, perhaps behind a convolution, and what else the mixer has; from a
 * narrow middle, what is made of that. */
static void add_projections(Mix *t, Var h) {
    Tiny *m = t->m;
    const MixerKind *kind = t->kind;
    const int H = t->H, K = t->K, V = t->V, nK = t->writes * K, n_u = K + nK + t->writes * V;
    const bool mamba = is_mamba(kind);
    int at[N_PROJECTIONS] = { 0 }, width[N_PROJECTIONS] = { 0 };
    Stack w = { .n = 0 };
    if (mamba) {                             /* one tensor: z, v, k, q, and the step */
        add_rows(m, &w, "ssm_in.weight", V + n_u + H);
        width[P_GATE] = V;
        at[P_DECAY] = V + n_u;
        width[P_DECAY] = H;
    } else if (kind->qwen) add_rows(m, &w, "attn_qkv.weight", n_u);
    else {
        add_rows(m, &w, "attn_q.weight", K);
        add_rows(m, &w, keys_from_decay(kind) ? "ssm_alpha.weight" : "attn_k.weight", nK);
        add_rows(m, &w, "attn_v.weight", n_u - K - nK);
    }
    for (int i = 0; i < N_PROJECTIONS && !mamba; i++) {
        const char *shape = shape_in(kind, projections[i].letter);
        const bool narrow = is_narrow(kind, projections[i].letter);
        if (!shape || (i == P_GATE && t->gate == F_ID) || (i == P_DECAY && keys_from_decay(kind)))
            continue;
        width[i] = narrow ? m->c.gate_rank : is_per(shape, 'v') ? V
                   : is_per(shape, 'k') || is_per(shape, 'm') ? K
                   : is_per(shape, 'N') ? t->writes * H : H;
        at[i] = add_rows(m, &w, narrow ? projections[i].narrow : projections[i].name, width[i]);
    }
    const Var raw = add_linear(m, h, w.w, no_bias, w.n);
    for (int i = 0; i < N_PROJECTIONS; i++)
        if (width[i]) t->in[i] = columns(raw, at[i], width[i], 1);
    if (is_narrow(kind, 'f')) {
        const Param up = add_matrix(m, "ssm_f_b.weight", K, m->c.gate_rank);
        t->in[P_DECAY] = add_linear(m, t->in[P_DECAY], up, no_bias, K);
    }
    Var u = columns(raw, mamba ? V : 0, n_u, 1);
    if (m->c.d_conv) u = convolved(t, u);
    t->q = columns(u, mamba ? V + K : 0, K, H);
    t->k = columns(u, mamba ? V : K, nK, t->writes * H);
    t->v = columns(u, mamba ? 0 : K + nK, t->writes * V, t->writes * H);
}

/* From the readout o to the stream: its norm and gate, and W_o. Mamba-2 has the gate first, a norm
 * per head, and what goes around the memory. */
static Var way_out(Mix *t, Var o, Var x) {
    Tiny *m = t->m;
    const int H = t->H, V = t->V, dv = m->c.dv, out = mixer_of(t->kind)->back.out;
    const bool mamba = is_mamba(t->kind);
    const real eps = (real)(t->kind->norm_eps > 0 ? t->kind->norm_eps : m->c.eps);
    Var z = t->in[P_GATE], y = part_of(t, o, t->writes - 1);
    Param norm;
    if (mamba) {
        TinyTensor ones = { .rows = H, .cols = 1, .flags = KEEP_F32, .a = 1, .b = 1 };
        push(m, (Op){ .run = skip_pair, .x = { t->straight }, .y = { o },
                      .w = { add_tensor(m, "ssm_d", ones) } });
        ones.cols = dv;
        norm = add_tensor(m, "ssm_norm.weight", ones);
        y = add_rmsnorm(m, add_glu(m, F_SILU, o, in_heads(z, H)), norm, eps);
    } else {
        const int spans = out == OUT_HEAD ? H : 1;
        if (is_narrow(t->kind, 'z')) {
            const Param up = add_matrix(m, "ssm_g_b.weight", V, m->c.gate_rank);
            z = add_linear(m, z, up, add_vector(m, "ssm_g_b.bias", V, 0, 0), V);
        }
        norm = add_vector(m, "ssm_norm.weight", V / spans, 1, 1);
        if (out == OUT_SILU_ALL) y = add_map(m, F_SILU, y);
        y = in_heads(y, spans);
        Op o = { .run = z.n ? kern.gated_norm : kern.rmsnorm, .act = t->gate, .scale = eps,
                 .w = { norm } };
        if (z.n) o.x[1] = in_heads(z, spans);
        y = add_norm(m, o, y);
    }
    const bool ssm = t->kind->qwen || mamba;
    return add_onto(m, x, y, add_out_matrix(m, ssm ? "ssm_out.weight" : "attn_output.weight", m->c.dim, V));
}

/* raw = W_in h; q, k, v behind their convolution; what the law makes of them; the recurrence;
 * x + W_o (normed and gated o). */
static Var linear_layer(Tiny *m, const MixerKind *kind, Var x, Var h) {
    const TinyConfig *c = &m->c;
    Mix t = { .m = m, .kind = kind, .H = c->n_heads, .K = c->n_heads * c->dk,
              .V = c->n_heads * c->dv, .writes = writes_of(kind),
              .map = c->without & NO_MAP ? F_ID : map_of(kind),
              .gate = c->without & NO_GATE ? F_ID : gate_of(kind),
              .unit = mixer_of(kind)->front.norm == QK_L2 };
    add_projections(&t, h);
    if (mixer_of(kind)->back.out == OUT_SILU_ALL) t.v = add_map(m, F_SILU, t.v);
    kind->law(&t);
    const Var in[N_X] = { t.q, t.k, t.v, t.d, t.e, t.rho };
    return way_out(&t, add_recurrence(m, t.e.n ? SCAN_ERASES : 0, t.writes, in), x);
}

/* -- softmax attention -- */

/* raw = q | k | v, side by side; k and v perhaps behind a convolution; x + W_o attention(q, k, v).
 * With a gate (Qwen3.5) there are per head n columns of query, then n of gate, q and k are normed,
 * and sigmoid(gate) multiplies what is read. */
static Var attention_layer(Tiny *m, Var x, Var h, bool gated) {
    const TinyConfig *c = &m->c;
    const int n = c->head_dim, H = c->q_heads, G = c->kv_heads, Q = H * n, KV = G * n;
    Stack w = { .n = 0 };
    const int at = add_rows(m, &w, "attn_q.weight", gated ? 2 * Q : Q);
    const int at_k = add_rows(m, &w, "attn_k.weight", KV);
    add_rows(m, &w, "attn_v.weight", KV);
    const Var raw = add_linear(m, h, w.w, no_bias, w.n);
    Var q = columns(raw, at, gated ? 2 * Q : Q, H), kv = columns(raw, at_k, 2 * KV, 1), z = q;
    if (c->mixer == SOFTMAX && c->d_conv) {
        const Var y = new_var(m, 1, 2 * KV);
        add_conv(m, y, kv, 0, taps_of(m, "attn_conv1d.weight", 2 * KV), no_bias, F_ID);
        kv = y;
    }
    Var k = columns(kv, 0, KV, G);
    const Var v = columns(kv, KV, KV, G);
    if (gated) {
        z = columns(raw, n, 2 * Q, H);
        q.n = z.n = n;                       /* of every 2 n columns */
        q = add_rmsnorm(m, q, add_vector(m, "attn_q_norm.weight", n, 1, 1), (real)c->eps);
        k = add_rmsnorm(m, k, add_vector(m, "attn_k_norm.weight", n, 1, 1), (real)c->eps);
    } else {
        q = add_map(m, F_ID, q);
        k = add_map(m, F_ID, k);
    }
    add_rotation(m, q, m->rope, c->n_rot);
    add_rotation(m, k, m->rope, c->n_rot);
    Var y = add(m, (Op){ .run = attention_pair, .x = { q, k, v },
                         .keep = { lay(m, (size_t)m->N * H) } });
    if (gated) y = add_glu(m, F_SIGMOID, y, z);
    return add_onto(m, x, y, add_out_matrix(m, "attn_output.weight", c->dim, Q));
}

/* -- RWKV -- */

/* The projections r, w, k, v, a, g read h shifted by a share of the token before; w, a, g and blend
 * go through narrow middles.               (run.c: mix_rwkv, channel_mix; arXiv 2404.05892, 2503.14456)
 *   RWKV-6   share_j = lerp_j + up_j tanh(down_j (h shifted by lerp_x));  d = exp(-e^w)
 *            o = S'r + (r . u k) v, then S <- Diag(d) S + k v'
 *            x + W_o (norm(o) silu(g))
 *   RWKV-7   d = exp(-e^(-1/2) sigmoid(w));  e = the norm of key k_k;  k, b: rwkv7_keys_forward
 *            v: blended with the first layer's;  S <- Diag(d) S + k v' + b (S'e)', then o = S'r
 *            x + W_o ((norm(o) + (r . u k) v) g) */

/* y = up act(down x) + bias. */
typedef struct { Param down, up, bias; Act act; int out; } Narrow;

/* `letter` is w, a, g or v, and only g has no bias. */
static Narrow narrow_of(Tiny *m, char letter, int out, Act act, double a, double b) {
    char name[32];
    Narrow p = { .act = act, .out = out };
    snprintf(name, sizeof name, "time_mix_%c1.weight", letter);
    p.down = add_matrix(m, name, m->c.gate_rank, m->c.dim);
    snprintf(name, sizeof name, "time_mix_%c2.weight", letter);
    p.up = add_matrix(m, name, out, m->c.gate_rank);
    snprintf(name, sizeof name, "time_mix_%c0.weight", letter);
    if (letter != 'g') p.bias = add_vector(m, name, out, a, b);
    return p;
}
static Var add_narrow(Tiny *m, const Narrow *p, Var x) {
    Var middle = add_linear(m, x, p->down, no_bias, m->c.gate_rank);
    if (p->act != F_ID) middle = add_map(m, p->act, middle);
    return add_linear(m, middle, p->up, p->bias, p->out);
}

/* Number i of parts that are n numbers long each. */
static Param slice(Param p, int i, int n) {
    p.w = p.w ? p.w + (size_t)i * n : NULL;
    p.dw = p.dw ? p.dw + (size_t)i * n : NULL;
    p.n = n;
    return p;
}

/* n shares of D channels, each from 0 to 1. */
static Param shares(Tiny *m, const char *name, int n) {
    return add_tensor(m, name, (TinyTensor){ .cols = n * m->c.dim, .flags = KEEP_F32, .b = 1,
                                             .period = m->c.dim });
}
static Var add_shift(Tiny *m, Var x, Param share) {
    return add(m, (Op){ .run = shift_pair, .x = { x }, .w = { share } });
}

/* What both project h by, shifted by a share of n each. */
typedef struct { Param lerp, r, k, v; } RwkvIn;
static RwkvIn rwkv_in(Tiny *m, int n) {
    const int D = m->c.dim, K = m->c.n_heads * m->c.dk, V = m->c.n_heads * m->c.dv;
    RwkvIn w = { .lerp = shares(m, "time_mix_lerp_fused.weight", n) };
    w.r = add_matrix(m, "time_mix_receptance.weight", K, D);
    w.k = add_matrix(m, "time_mix_key.weight", K, D);
    w.v = add_matrix(m, "time_mix_value.weight", V, D);
    return w;
}

/* Norm, bonus and gate behind the memory of either: in RWKV-6 the bonus comes first. */
static Var rwkv_out(Tiny *m, const MixerKind *kind, Var x, const Var in[N_X], Param u, Var z) {
    const int seven = kind->rwkv == 7, V = m->c.n_heads * m->c.dv;
    const Var o = add_recurrence(m, seven ? SCAN_WRITES_BACK : SCAN_READS_FIRST, 1, in);
    Op op = { .run = bonus_pair, .x = { in[X_Q], in[X_K], in[X_V] }, .w = { u }, .y = { o } };
    if (!seven) push(m, op);
    const Param w = add_vector(m, "time_mix_ln.weight", V, 1, 1);
    const Param b = add_vector(m, "time_mix_ln.bias", V, 0, 0);
    op.y[0] = add_norm(m, (Op){ .run = layernorm_pair, .scale = kind->norm_eps, .w = { w, b } }, o);
    if (seven) push(m, op);
    const Var y = add_glu(m, seven ? F_ID : F_SILU, op.y[0], in_heads(z, o.heads));
    return add_onto(m, x, y, add_out_matrix(m, "time_mix_output.weight", m->c.dim, V));
}

static Var rwkv6_layer(Tiny *m, const MixerKind *kind, Var x, Var h) {
    const TinyConfig *c = &m->c;
    const int D = c->dim, H = c->n_heads, K = H * c->dk, V = H * c->dv, R = c->gate_rank;
    const double f = first_rate(c);
    enum { W_, K_, V_, R_, G_, N };
    // tensors
    const RwkvIn w = rwkv_in(m, N);
    const Param lerp_x = shares(m, "time_mix_lerp_x.weight", 1);
    const Param down = add_matrix(m, "time_mix_w1.weight", N * R, D);
    TinyTensor ups = normal(N * D, R, 1 / sqrt((double)R), 1);
    ups.parts = N;
    const Param up = add_tensor(m, "time_mix_w2.weight", ups);
    const Narrow fade = { .act = F_TANH, .out = K,
                          .bias = add_vector(m, "time_mix_decay.weight", K, f > 0 ? log(f) : -6,
                                         f > 0 ? log(f) : -1),
                          .down = add_matrix(m, "time_mix_decay_w1.weight", R, D),
                          .up = add_matrix(m, "time_mix_decay_w2.weight", K, R) };
    const Param w_g = add_matrix(m, "time_mix_gate.weight", V, D);
    const Param u = add_vector(m, "time_mix_first.weight", K, 1, 0);
    // what each projection reads
    Var read[N];
    const Var low = add_linear(m, add_shift(m, h, lerp_x), down, no_bias, N * R);
    const Var bent = add_map(m, F_TANH, low);
    for (int j = N - 1; j >= 0; j--) {
        const Var share = add_linear(m, columns(bent, j * R, R, 1), slice(up, j, D * R),
                                     slice(w.lerp, j, D), D);
        read[j] = add(m, (Op){ .run = shift_pair, .x = { h, share } });
    }
    // q, k, v, d
    const Var d = add_map(m, F_DECAY6, add_narrow(m, &fade, read[W_]));
    const Var in[N_X] = { in_heads(add_linear(m, read[R_], w.r, no_bias, K), H),
                          in_heads(add_linear(m, read[K_], w.k, no_bias, K), H),
                          in_heads(add_linear(m, read[V_], w.v, no_bias, V), H), in_heads(d, H) };
    return rwkv_out(m, kind, x, in, u, add_linear(m, read[G_], w_g, no_bias, V));
}

static Var rwkv7_layer(Tiny *m, const MixerKind *kind, Var x, Var h) {
    const TinyConfig *c = &m->c;
    const int D = c->dim, H = c->n_heads, K = H * c->dk, V = H * c->dv;
    const double f = first_rate(c), w0 = f > 0 ? -log(DECAY7 / fmin(f, 0.6) - 1) : 0;
    enum { R_, W_, K_, V_, A_, G_, N };
    // tensors; the first layer has no earlier values
    const RwkvIn w = rwkv_in(m, N);
    const Narrow fade = narrow_of(m, 'w', K, F_TANH, f > 0 ? w0 : -7, f > 0 ? w0 : -2);
    const Narrow strength = narrow_of(m, 'a', K, F_ID, 0, 0);
    const Narrow gate = narrow_of(m, 'g', V, F_SIGMOID, 0, 0);
    Narrow take = { .out = 0 };
    if (m->layer) take = narrow_of(m, 'v', V, F_ID, 1, 1);
    const Param k_k = add_vector(m, "time_mix_k_k.weight", K, 0.85, 0.85);
    const Param k_a = add_vector(m, "time_mix_k_a.weight", K, 1, 1);
    const Param u = add_vector(m, "time_mix_r_k.weight", K, 0, 0);
    // what each projection reads
    Var read[N];
    for (int j = N - 1; j >= 0; j--) read[j] = add_shift(m, h, slice(w.lerp, j, D));
    // q, v, d; k, e, b from a key
    const Var q = add_linear(m, read[R_], w.r, no_bias, K);
    const Var key = add_linear(m, read[K_], w.k, no_bias, K);
    Var v = new_var(m, 1, V);
    if (!m->layer) v.dx = lay(m, m->N * v.ld);  /* later layers have a share of it, too */
    push(m, (Op){ .run = linear_pair, .x = { read[V_] }, .w = { w.v }, .y = { v } });
    const Var d = add_map(m, F_DECAY7, add_narrow(m, &fade, read[W_]));
    const Var a = add_narrow(m, &strength, read[A_]), z = add_narrow(m, &gate, read[G_]);
    if (m->layer)
        v = add(m, (Op){ .run = blend_pair, .x = { v, m->first, add_narrow(m, &take, read[V_]) } });
    else {
        m->first = v;
        v = add_map(m, F_ID, v);
    }
    const Var scaled = add(m, (Op){ .run = channels_pair, .x = { key }, .w = { k_k } });
    const Var e = add_l2norm_to(m, (Var){ .n = 0 }, in_heads(scaled, H), 1);
    const Var k = new_var(m, H, c->dk), b = new_var(m, H, c->dk);
    push(m, (Op){ .run = rwkv7_keys_pair, .x = { key, a, e }, .w = { k_a }, .y = { k, b } });
    const Var in[N_X] = { in_heads(q, H), k, in_heads(v, H), in_heads(d, H), e, [X_B] = b };
    return rwkv_out(m, kind, x, in, u, z);
}

/* The feed-forward of RWKV, in its layers of softmax attention, too:
 *   x + W_down relu(W_key (h shifted by lerp_k))^2
 * in RWKV-6 times sigmoid(W_recept (h shifted by lerp_r)). */
static Var channel_mix_layer(Tiny *m, Var x, Var h, bool gated) {
    const int D = m->c.dim, F = m->c.hidden_dim;
    const Param lerp_k = shares(m, "channel_mix_lerp_k.weight", 1);
    const Param w_k = add_matrix(m, "channel_mix_key.weight", F, D);
    const Param w_v = add_out_matrix(m, "channel_mix_value.weight", D, F);
    const Var s = add_map(m, F_SQRELU, add_linear(m, add_shift(m, h, lerp_k), w_k, no_bias, F));
    if (!gated) return add_onto(m, x, s, w_v);
    const Param lerp_r = shares(m, "channel_mix_lerp_r.weight", 1);
    const Param w_r = add_matrix(m, "channel_mix_receptance.weight", D, D);
    const Var wide = add_linear(m, s, w_v, no_bias, D);
    const Var recept = add_linear(m, add_shift(m, h, lerp_r), w_r, no_bias, D);
    Var y = x, more = x;                     /* one gradient for all three */
    y.x = lay(m, m->N * y.ld);
    more.x = lay(m, m->N * y.ld);
    push(m, (Op){ .run = kern.glu, .act = F_SIGMOID, .x = { wide, recept }, .y = { more } });
    x.dx = more.dx = NULL;
    return add(m, (Op){ .run = plus_pair, .x = { x, more }, .y = { y } });
}

/* -- a layer, a new model -- */

/* The norm of the residual stream, its weights and bias: RMSNorm, in RWKV LayerNorm. */
static Op stream_norm(Tiny *m, const char *name) {
    const bool layer = mixer_kinds[m->c.mixer].rwkv;
    Op o = { .run = layer ? layernorm_pair : kern.rmsnorm, .scale = m->c.eps };
    for (int i = 0; i < 1 + layer; i++) {
        char full[48];
        snprintf(full, sizeof full, "%s.%s", name, i ? "bias" : "weight");
        o.w[i] = add_vector(m, full, m->c.dim, !i, !i);
    }
    return o;
}

/* x + mixer(norm(x)), then x + W_down (silu(W_gate h) * W_up h), h = norm(x). Mamba-2 has no second
 * half (F 0). */
static Var add_layer(Tiny *m, Var x) {
    const int D = m->c.dim, F = m->c.hidden_dim;
    const MixerKind *kind = &mixer_kinds[m->c.mixer];
    begin_half(m);
    Var h = add_norm(m, stream_norm(m, "attn_norm"), x);
    if (attends(&m->c, m->layer)) x = attention_layer(m, x, h, kind->qwen);
    else if (kind->rwkv) x = (kind->rwkv == 6 ? rwkv6_layer : rwkv7_layer)(m, kind, x, h);
    else x = linear_layer(m, kind, x, h);
    if (!F) return x;
    begin_half(m);
    h = add_norm(m, stream_norm(m, kind->rwkv ? "attn_norm_2"
                                   : kind->qwen ? "post_attention_norm" : "ffn_norm"), x);
    if (kind->rwkv) return channel_mix_layer(m, x, h, kind->rwkv == 6);
    const Param w = add_matrix(m, "ffn_gate.weight", F, D);
    add_matrix(m, "ffn_up.weight", F, D);        /* follows it: both are one matrix */
    const Var both = add_linear(m, h, w, no_bias, 2 * F);
    const Var s = add_glu(m, F_SILU, columns(both, F, F, 1), columns(both, 0, F, 1));
    return add_onto(m, x, s, add_out_matrix(m, "ffn_down.weight", D, F));
}

/* (T, n / 2, 2): cosine and sine of position * base^(-2i / n). */
static real *rope_angles(Tiny *m, int n) {
    const int T = m->c.seq_len;
    real *cs = lay(m, (size_t)T * n);
    for (int t = 0; t < T && cs; t++)
        for (int i = 0; i < n / 2; i++) {
            double angle = t * pow(m->c.rope_base, -2.0 * i / n);
            cs[(size_t)t * n + 2 * i] = (real)cos(angle);
            cs[(size_t)t * n + 2 * i + 1] = (real)sin(angle);
        }
    return cs;
}

/* The block for multi-token prediction, behind the layers and as one more of them, with softmax
 * attention. From what the head reads at a token, and from the next token, it makes what the head
 * needs to say the token after next:                                (arXiv 2412.19437, 2.2)
 *   x = W [norm(E next) ; norm(h_out)],  a layer,  h_mtp = norm(x) */
static void add_mtp(Tiny *m) {
    const int D = m->c.dim;
    begin_half(m);
    m->x_mtp = lasting_var(m);
    const Var pair = new_var(m, 1, 2 * D), halves[] = { m->x_mtp, m->h_out };
    for (int i = 0; i < 2; i++) {
        Op norm = stream_norm(m, i ? "nextn.hnorm" : "nextn.enorm");
        norm.y[0] = columns(pair, i * D, D, 1);
        add_norm(m, norm, halves[i]);
    }
    const Param w = add_matrix(m, "nextn.eh_proj.weight", D, 2 * D);
    const Var x = add(m, (Op){ .run = linear_pair, .x = { pair }, .w = { w }, .y = { lasting_var(m) } });
    Op norm = stream_norm(m, "nextn.shared_head_norm");
    norm.y[0] = lasting_var(m);
    m->h_mtp = add_norm(m, norm, add_layer(m, x));
}

/* Lists the tensors, in the order of the file (reference: the tables of llama.cpp; where it has
 * none, ours: doc/format.md), and the operations. */
static void write_model(Tiny *m, uint64_t seed) {
    const int D = m->c.dim, V = m->c.vocab_size;
    m->n_tensors = m->n_ops = m->half = 0;
    m->n_params = m->n_weights = m->used = 0;
    m->rng = mix_seed(seed);
    m->layer = -1;
    m->rope = rope_angles(m, m->c.n_rot);
    m->rope_k = rope_angles(m, m->c.dk);
    m->embed = add_tensor(m, "token_embd.weight", normal(V, D, 0.05, 1));
    Op norm = stream_norm(m, "output_norm");
    begin_half(m);
    Var x = m->x = lasting_var(m);
    norm.y[0] = lasting_var(m);
    for (m->layer = 0; m->layer < m->c.n_layers; m->layer++) x = add_layer(m, x);
    m->h_out = add_norm(m, norm, x);
    m->n_layer_ops = m->n_ops;
    if (m->c.mtp) add_mtp(m);
}

/* A model of these sizes that trains on B sequences at a time. */
static void tiny_new(Tiny *m, const TinyConfig *c, int B, uint64_t seed) {
    *m = (Tiny){ .c = *c, .B = B, .N = B * c->seq_len };
    write_model(m, seed);                    /* to measure */
    m->tensors = checked(calloc((size_t)m->n_tensors, sizeof *m->tensors));
    m->ops = checked(calloc((size_t)m->n_ops, sizeof *m->ops));
    m->params = checked(calloc(4 * m->n_params, sizeof(real)));
    m->grads = m->params + m->n_params;
    m->mean = m->grads + m->n_params;
    m->square = m->mean + m->n_params;
    m->arena = checked(calloc(m->used, sizeof(real)));
    m->pool = checked(calloc(m->pool_cap, sizeof(real)));
    m->next = checked(calloc(2 * (size_t)m->N, sizeof *m->next));
    m->after = m->next + m->N;
    write_model(m, seed);
    order_gradients(m);
}

static void tiny_free(Tiny *m) {
    free(m->tensors);
    free(m->ops);
    free(m->params);
    free(m->arena);
    free(m->pool);
    free(m->next);
}

/* ---- 8. one step ---------------------------------------------------------------------------
 * From ids to the loss, and back to all gradients. */

/* Tokens of h from `first` on, and their logits = h E'; the head shares the matrix E of the
 * embedding, (V, D). */
static Mat tokens_of(Var h, int first, int rows) {
    h.x = row(h, first, 0);
    return values(h, rows);
}
static Mat embedding(const Tiny *m, real *p) { return mat(p, m->c.vocab_size, m->c.dim, m->c.dim); }
static Mat logits_of(const Tiny *m, Var h, real *p, int first, int rows) {
    const Mat logits = mat(p, rows, m->c.vocab_size, m->c.vocab_size);
    gemm(logits, tokens_of(h, first, rows), turned(embedding(m, m->embed.w)), false);
    return logits;
}

/* Logits are made, turned into their gradient and used in blocks of tokens that a second-level
 * cache nearly holds; each block packs the matrix once more. Returns the sum of -ln p over the
 * tokens that count (target >= 0), in nats, and how many they are; the gradient is that of `share`
 * times the mean, none with 0. That of h is assigned. */
static double tiny_head(Tiny *m, Var h, const int *target, double share, int *count) {
    enum { ROWS_AT_ONCE = 8 * BLOCK };
    const int V = m->c.vocab_size;
    static real *room;
    static size_t cap;
    if (cap < (size_t)ROWS_AT_ONCE * V) {
        cap = (size_t)ROWS_AT_ONCE * V;
        room = checked(realloc(room, cap * sizeof(real)));
    }
    double loss = 0;
    *count = 0;
    for (int i = 0; i < m->N; i++) *count += target[i] >= 0;
    const real scale = (real)(share / (*count ? *count : 1));
    for (int i = 0; i < m->N; i += ROWS_AT_ONCE) {
        const int rows = least(ROWS_AT_ONCE, m->N - i);
        double part[ROWS_AT_ONCE / 16] = {0};
        const Mat logits = logits_of(m, h, room, i, rows);
        PARALLEL
        for (int r = 0; r < rows; r += 16)
            part[r / 16] = kern.cross_entropy(room + (size_t)r * V, target + i + r,
                                              least(16, rows - r), V, scale);
        for (int r = 0; r < ROWS_AT_ONCE / 16; r++) loss += part[r];
        if (share <= 0) continue;
        //~ logits = h E'
        gemm(mat(drow(h, i, 0), rows, m->c.dim, h.ld), logits, embedding(m, m->embed.w), false);
        gemm(embedding(m, m->embed.dw), turned(logits), tokens_of(h, i, rows), true);
    }
    return loss;
}

/* The block for multi-token prediction, behind the model: its loss is left in m, and the gradients
 * of MTP_SHARE times its mean are added. */
#define MTP_SHARE 0.3
static void mtp_step(Tiny *m, const int *id, const int *target, bool train) {
    const int T = m->c.seq_len, n = m->n_ops - m->n_layer_ops;
    Op *ops = m->ops + m->n_layer_ops;
    for (int r = 0; r < m->N; r++) {
        const bool last = (r + 1) % T == 0;      /* of a sequence: nothing is known of what follows */
        m->next[r] = last ? 0 : id[r + 1];
        m->after[r] = last ? -1 : target[r + 1];
    }
    embedding_forward(m->x_mtp, m->embed.w, m->next, m->N);
    run_forward(ops, n);
    m->mtp_loss = tiny_head(m, m->h_mtp, m->after, train ? MTP_SHARE : 0, &m->mtp_count);
    if (!train) return;
    //~ h_mtp, its layer, from x_mtp and h_out
    run_backward(ops, n);
    //~ x_mtp = E[next]
    embedding_backward(m->x_mtp, m->embed.dw, m->next, m->N);
}

/* id, target: (B, T), target -1: not counted. Returns the sum of the losses of `count` tokens. With
 * train, gradients of the mean loss are added to m->grads. */
static double tiny_step(Tiny *m, const int *id, const int *target, bool train, int *count) {
    embedding_forward(m->x, m->embed.w, id, m->N);
    run_forward(m->ops, m->n_layer_ops);
    double loss = tiny_head(m, m->h_out, target, train, count);
    if (m->c.mtp) mtp_step(m, id, target, train);
    if (!train) return loss;
    //~ h_out, all layers from x
    run_backward(m->ops, m->n_layer_ops);
    //~ x = E[id]
    embedding_backward(m->x, m->embed.dw, id, m->N);
    return loss;
}

/* ---- 9. AdamW ------------------------------------------------------------------------------
 * Decoupled weight decay on matrices only; the gradient is first scaled to a norm of at most `clip`
 * (0: of any norm). */
typedef struct { double lr, beta1, beta2, eps, decay, clip; } AdamW;

/* One step from m->grads; step counts from 1. Returns the norm that the gradient had. Squares are
 * added in parts of PART parameters and the parts in order, so the number of threads changes no
 * bit. */
static double adamw_step(Tiny *m, const AdamW *o, long step) {
    enum { PART = 1 << 14 };
    const int parts = (int)((m->n_params + PART - 1) / PART);
    double *sum = checked(calloc((size_t)parts, sizeof *sum)), norm = 0;
    PARALLEL
    for (int p = 0; p < parts; p++) {
        size_t end = (size_t)(p + 1) * PART < m->n_params ? (size_t)(p + 1) * PART : m->n_params;
        double s[8] = {0};
        for (size_t i = (size_t)p * PART; i < end; i += 8)
            for (int l = 0; l < 8; l++) s[l] += (double)m->grads[i + l] * m->grads[i + l];
        sum[p] = ((s[0] + s[4]) + (s[1] + s[5])) + ((s[2] + s[6]) + (s[3] + s[7]));
    }
    for (int p = 0; p < parts; p++) norm += sum[p];
    free(sum);
    norm = sqrt(norm);
    const double shrink = o->clip > 0 && norm > o->clip ? o->clip / norm : 1;
    const AdamStep with = {
        .lr = (real)o->lr, .b1 = (real)o->beta1, .b2 = (real)o->beta2, .eps = (real)o->eps,
        .decay = (real)o->decay, .c1 = (real)(1 / (1 - pow(o->beta1, (double)step))),
        .c2 = (real)(1 / (1 - pow(o->beta2, (double)step))), .shrink = (real)shrink
    };
    PARALLEL
    for (int n = 0; n < m->n_tensors; n++) {
        const TinyTensor *t = &m->tensors[n];
        AdamStep own = with;
        if (!(t->flags & DECAYS)) own.decay = 0;
        kern.adamw(m->params + t->at, m->grads + t->at, m->mean + t->at, m->square + t->at,
                   (tensor_len(t) + 15) / 16 * 16, &own);
    }
    return norm;
}

/* ---- 10. stories: a small world that tells itself ------------------------------------------
 * Training text without a download. story(seed) writes one short story in simple English, the same
 * for the same seed, and there are far more of them than a training run can read. They are made so
 * that a model of one or two million weights can learn them and a reader can see whether it did: a
 * name, a color, a hiding place or a promise from the first lines has to come back, unchanged, in
 * the last ones.
 *
 * A plot is one template. Everything in it is copied, except:
 *
 *   [a|b|c]       one of them by chance; they may nest, and [a|] is an optional part
 *   {key}         the text that was bound to key
 *   <table>       draws one row of a table and binds the columns of the table to it
 *   <k=a|b|c>     binds k to one of them;  <k,l=a|b|c> binds two different ones
 *   \n            a new paragraph
 *   ^             a capital for the next letter
 *
 * What is drawn or bound is expanded once and never changes, so {col} is the same color to the end
 * of the story. Templates are in lower case: story_tidy() sets the capitals, turns "a apple" into
 * "an apple" and removes the spaces that empty parts leave behind. After ?" and !" it leaves the
 * case alone ("Where?" she asked), so a new sentence there needs the ^. A row that begins with @h
 * is for human heroes only, with @a for animals.
 *
 * Bound for every plot:
 *   h he him his self kind  the hero            f fhe fhim fhis fkind  another child; {friend} is "her friend Tom"
 *   g ghe ghim ghis         "her mother"        gn, call  "mother", "Mama"
 *   p q                     two places indoors  r  a place outdoors     open day night  the first words
 *   hand others woods hideout judge rival       things of the hero's world
 * To add a plot: write its template into STORY_PLOTS and its tables, if any, into STORY_TABLES.
 * Its text begins with {open}. Texts must not use the characters of the notation, []{}<>|^ and in
 * tables ; and /.
 *
 * First come the tables, then the plots, then the engine that expands them: story(), at the end, is
 * what others call. */

enum { STORY_CAP = 4096 };                   /* bytes that any story fits in, with its final zero */

enum { MOST_BOUND = 96 };
typedef struct {
    uint64_t rng;
    char world;                              /* 'h' or 'a', see above */
    struct { Str key, value; } bound[MOST_BOUND];     /* the latest binding of a key counts */
    int n_bound;
    char text[STORY_CAP], memory[STORY_CAP]; /* the raw story; the values that are bound */
    size_t text_len, memory_len;
} StoryTeller;

/* -- the tables -- */

/* Rows are divided by /, columns by ; and a column is a template of its own. */
static const struct { const char *name, *columns, *rows; } STORY_TABLES[] = {
    { "names", "names",
      "@h <g1,g2=Lily|Mia|Anna|Emma|Lucy|Nina|Zoe|Ruby><b1,b2=Tom|Ben|Max|Sam|Leo|Tim|Finn|Jack> / @a <g1,g2=Hazel|Poppy|Coco|"
      "Dot><b1,b2=Pip|Bruno|Rusty|Benny><k1,k2=rabbit|mouse|fox|bear|squirrel|hedgehog>" },
    { "cast", "h; he; him; his; self; sex; f; fhe; fhim; fhis; fsex",
      "{g1}; she; her; her; herself; girl; {b1}; he; him; his; boy / "
      "{g1}; she; her; her; herself; girl; {b1}; he; him; his; boy / "
      "{g1}; she; her; her; herself; girl; {g2}; she; her; her; girl / "
      "{b1}; he; him; his; himself; boy; {g1}; she; her; her; girl / "
      "{b1}; he; him; his; himself; boy; {g1}; she; her; her; girl / "
      "{b1}; he; him; his; himself; boy; {b2}; he; him; his; boy" },
    { "grown", "g; gn; call; ghe; ghim; ghis",
      "{his} mother; mother; Mama; she; her; her / {his} father; father; Papa; he; him; his / "
      "{his} grandmother; grandmother; Grandma; she; her; her / "
      "{his} grandfather; grandfather; Grandpa; he; him; his" },
    { "world", "kind; fkind; friend; hand; others; woods; land; house; r; hideout; judge; rival",
      "@h {sex}; {fsex}; {his} [best |]friend {f}; hand; children; town; in a small village|near the sea|at the edge "
      "of a forest|on a quiet street|on a small farm|in a little town|at the foot of a hill|by a wide river; a "
      "[small|little|white|yellow] house [with a red roof|with a green door|near the river|near the woods|by the "
      "sea]; by the gate|under the apple tree|next to the well|by the river|behind the barn|near the bridge|on the "
      "hill|at the edge of the field; an old barn|a small hut|the old mill|an empty stable; the mayor|the teacher|"
      "the baker; a tall boy|a fast girl|a boy from the next village|a girl with long braids / "
      "@a {k1}; {k2}; {his} [best |]friend {f} the {k2}; paw; young animals; forest; in a green forest|near a clear "
      "stream|at the edge of a meadow|by a quiet pond|on a sunny hill|in a deep wood|in a quiet valley; a warm "
      "burrow under the hill|a small house between the roots of a tree|a dry den under the rocks|a hollow tree by "
      "the stream|a hut behind the bushes; under the old oak tree|by the stream|behind the big rock|near the bridge|"
      "next to the berry bush|on the hill|at the edge of the meadow|beside the hollow log; a dry cave|a hollow tree|"
      "an old barn|a hole under a rock; the old owl|the gray goose|the old turtle; a merry goat|a clever cat|a quick "
      "pony|a tall stork" },
    { "common", "adj; fine; love; p; q; day; night",
      "little|little|little|young|kind|happy|cheerful|curious|clever|gentle|small; sunny|fine|bright|quiet; sing|"
      "play outside|watch the clouds|listen to stories|count the stars|look for round stones|ask questions|run in "
      "the grass|smell the flowers|laugh; <p1,p2=under the bed|behind the door|under the table|behind the chair|"
      "under the pillow|behind the old chest|behind the curtain>{p1}; {p2}; one [day|day|morning|{fine} day|{fine} "
      "morning]; one night" },
    { "open", "open",
      "once upon a time, there was a {adj} {kind} named {h}. {he} loved to {love}. / "
      "once upon a time, there was a {adj} {kind} named {h} who loved to {love}. / "
      "once upon a time, there was a {adj} {kind} named {h}. {he} lived with {g} in {house}. / "
      "once upon a time, {land}, there lived a {adj} {kind} named {h}. [{he} loved to {love}.|] / "
      "once upon a time, a {adj} {kind} named {h} lived with {g} {land}. / "
      "there was once a {adj} {kind} named {h}. [{he} loved to {love}.|{he} lived with {g} in {house}.] / "
      "there was a {adj} {kind} named {h} who lived {land}. / "
      "{land}, there lived a {adj} {kind} named {h}. [{he} loved to {love}.|] / "
      "{h} was a {adj} {kind} who lived {land}. [{he} loved to {love}.|] / "
      "long ago, {land}, there lived a {adj} {kind} named {h}. / "
      "<day=that [day|morning]><night=that night>one {fine} [day|morning], a {adj} {kind} named {h} [woke up early|"
      "woke up with a smile|jumped out of bed|looked out and saw the sun]. / "
      "this is the story of a {adj} {kind} named {h}. {he} lived with {g} in {house}." },
    { "thing", "toy; col; use",
      "book; blue|green|thick old; read it under a tree|look at its pictures / "
      "scarf; red|yellow|purple|striped; wear it on cold days / hat; red|green|yellow|straw; wear it in the sun / "
      "flute; wooden|silver; play it in the evening / umbrella; yellow|blue|orange|striped; open it in the rain / "
      "music box; silver|pink|wooden; listen to it before bed" },
    { "toy", "toy; col; use",
      "ball; red|blue|green|yellow|orange; kick it across the grass|bounce it on the path / "
      "kite; red|blue|purple|orange; fly it on windy days / drum; red|blue|small brown; play it in the morning / "
      "boat; red|blue|white|little wooden; sail it on the pond / "
      "train; red|green|black|little wooden; push it along the floor / "
      "doll; little|pretty|soft; carry it everywhere|sing to it / teddy bear; brown|white|soft; hug it at night / "
      "top; red|green|striped; spin it on the floor / bucket; blue|red|yellow; fill it with sand / "
      "horse; white|brown|wooden|black; gallop with it through the grass" },
    { "food", "food; good",
      "apples; sweet|fresh / pears; sweet|ripe / cookies; warm|sweet / buns; warm|fresh / pancakes; warm|delicious / "
      "strawberries; sweet|ripe / nuts; fresh|good / carrots; fresh|crisp / cherries; sweet|ripe" },
    { "even", "many; half",
      "four; two / six; three / eight; four / ten; five" },
    { "load", "load; it",
      "a jar of honey; jar / a loaf of bread; loaf / a basket of eggs; basket / a bottle of milk; bottle / "
      "a bag of flour; bag / a box of candles; box / a letter; letter / a berry pie; pie" },
    { "elder", "elder; ehe",
      "@h the baker; he / @h the old fisherman; he / @h the teacher; she / @h the old gardener; he / "
      "@h the nurse; she / @h the shoemaker; he / @a the wise old owl; she / @a the old turtle; he / "
      "@a the gray goose; she / @a the old toad; he" },
    { "trouble", "pet; was; cry; do; later",
      "bird; had fallen out of its nest; cheeped sadly; lifted the bird back into the nest; was asleep in its nest / "
      "@h kitten; was stuck high up in a tree; meowed sadly; climbed up to get the kitten down; was playing with a "
      "leaf under the tree / beetle; was lying on its back; kicked its legs in the air; turned the beetle over with "
      "a blade of grass; was sitting on a flower in the sun / "
      "duckling; had lost its mother; peeped sadly; led the duckling to the pond where its mother was; was swimming "
      "behind its mother / lamb; was caught in a thorn bush; bleated sadly; pulled the thorns away one by one; was "
      "jumping in the meadow / butterfly; was caught in a spider web; could hardly move; set the butterfly free with "
      "a thin twig; was dancing above the flowers / snail; was lost in the middle of the road; hid in its shell; "
      "carried the snail to the cool grass; was eating a green leaf" },
    { "outing", "doing; full; it",
      "picking berries on the hill; a basket full of berries; berries / "
      "looking for mushrooms in the woods; a basket full of mushrooms; mushrooms / "
      "gathering nuts under the trees; a bag full of nuts; nuts / "
      "picking flowers in the meadow; a big bunch of flowers; flowers / "
      "@h looking for shells on the beach; a bucket full of shells; shells / "
      "@h picking apples behind the old mill; a bag full of apples; apples" },
    { "pastime", "idea; did; song",
      "let us sing a song; they sang {n} songs; song / let us tell stories; they told each other {n} stories; story "
      "/ let us play a guessing game; they played {n} guessing games; game" },
    { "skill", "skill; fail; fail2; tip; win",
      "@h ride a bike; the bike tipped over; it rolled into a bush; look ahead and keep pedaling; rode all the way "
      "to the gate and back / swim; the water got into {his} nose; {he} sank like a stone; kick your legs and "
      "breathe slowly; swam from one side of the pond to the other / "
      "whistle; only air came out; it sounded like a cough; make your lips round and blow softly; whistled a clear "
      "and happy tune / skate; {he} slipped on the ice; {his} legs went in two directions; bend your knees and take "
      "small steps; skated all the way around the frozen pond / "
      "jump rope; the rope caught {his} foot; {he} jumped too late; listen to the rope and jump when it sings; "
      "jumped twenty times in a row / bake bread; the loaf was as hard as a stone; it was black all over; let the "
      "dough rest and watch the oven; pulled a round golden loaf out of the oven / "
      "play the fiddle; it screeched like an angry cat; a string slipped; hold the bow lightly and move it slowly; "
      "played a whole song from beginning to end / paint; the colors ran together; the picture turned brown; let one "
      "color dry before you use the next; painted a beautiful picture of the sunset / "
      "dance; {he} stepped on {his} own feet; {he} turned the wrong way; listen to the music first and count to "
      "four; danced the whole dance without a mistake / @h read; the letters looked like ants; {he} lost the line; "
      "say each letter slowly and put them together; read a whole page out loud" },
    { "gift", "gift; gather; make; use",
      "crown; picked yellow flowers in the meadow; tied them into a crown; put it on {ghis} head / "
      "@h necklace; found small white shells on the beach; put them on a string to make a necklace; put it around "
      "{ghis} neck / pillow; gathered soft feathers by the pond; sewed them into a pillow; put it on {ghis} bed / "
      "basket; cut long reeds by the river; wove them into a basket; filled it with apples / "
      "scarf; found a ball of soft red wool; knitted it into a scarf; put it around {ghis} neck / "
      "bowl; dug some brown clay by the stream; shaped it into a bowl; filled it with berries / "
      "picture; found paper and some paint; painted a picture of their home; hung it on the wall" },
    { "build", "what; work; lack; fix; put; joy",
      "snowman; they rolled three big balls of snow; it has no nose; a long orange carrot; put the carrot in the "
      "middle of the face; danced around the snowman / @h sandcastle; they made four towers out of wet sand; it has "
      "no flag; a red leaf on a stick; stuck it into the highest tower; played king and queen / "
      "birdhouse; they nailed the boards together; it has no roof; a wide piece of bark; laid the bark on top; sat "
      "in the grass and watched the birds / scarecrow; they filled an old coat with straw; it has no hat; a blue pot "
      "from the kitchen; put the pot on its head; laughed at the frightened crows / "
      "raft; they tied six logs together with rope; it has no sail; a white sheet; tied the sheet to a tall stick; "
      "sailed around the pond / swing; they hung two ropes from a strong branch; it has no seat; a flat board; tied "
      "the board between the ropes; took turns and flew high up / "
      "tent; they put up four long sticks; it has no walls; a big green blanket; hung the blanket over the sticks; "
      "sat inside and told stories / kite; they glued paper to two thin sticks; it has no tail; three long ribbons; "
      "tied the ribbons to the end; watched it fly above the trees" },
    { "vase", "item; col; stood",
      "vase; blue|white|green; on the table / cup; blue|yellow|white; on the shelf / "
      "teapot; brown|white|yellow; on the table / lamp; green|red|yellow; by the window / "
      "flower pot; red|orange|brown; by the window" },
    { "goal", "goal; view",
      "the sea; the water was blue and went on forever / the waterfall; the water roared and shone in the sun / "
      "the top of the mountain; the whole world lay below / "
      "the oldest tree in the land; it was as tall as a tower and as wide as a house / "
      "the valley of flowers; there were red, yellow and white flowers everywhere / "
      "the old castle; its towers were made of white stone" },
    { "pack1", "pack1; need1; use1",
      "some bread; soon they were very hungry; they sat down on a log and ate the bread / "
      "an umbrella; soon it began to rain; they opened the umbrella and stayed dry / "
      "a map; soon the path split in two; they looked at the map and went left / "
      "a bottle of water; soon the sun was hot and they were thirsty; they drank the cool water" },
    { "pack2", "pack2; need2; use2",
      "a lantern; then they came to a dark wood; {h} lit the lantern, and they were not afraid / "
      "a blanket; then night came, and it was cold; they slept under the blanket until morning / "
      "a rope; then they came to a steep rock; they tied the rope to a tree and climbed up / "
      "a whistle; then a thick fog came, and they could hardly see; they blew the whistle until somebody came and "
      "showed them the way" },
    { "contest", "game; prep; start; trouble; help",
      "running race; ran around the pond; they ran past the trees, and {h} was in front; {f} tripped over a root and "
      "fell; ran back and helped {f} to stand up / cake contest; baked a cake; they mixed flour and milk, and {h} "
      "was almost done; {f} dropped all {fhis} eggs; gave {f} half of {his} own eggs / "
      "kite contest; practiced on the hill; the kites rose up, and {h}'s kite was the highest; {f}'s kite got stuck "
      "in a tree; climbed up and got it down / boat race; rowed across the lake; they rowed fast, and {h} was in "
      "front; {f}'s boat began to sink; turned around and pulled {f} out of the water / "
      "painting contest; painted a picture; they began to paint, and {h} was doing well; {f} broke {fhis} only "
      "brush; gave {f} {his} second brush / singing contest; sang in the garden; everyone clapped for {h}; {f} came "
      "next and forgot the words; stood next to {f} and sang along softly" },
    { "noise", "noise; from; it; see; do",
      "tap, tap, tap; at the window; a branch; a thin branch was knocking in the wind; tied it back with a piece of "
      "string / @h scratch, scratch; at the door; a kitten; a wet kitten looked up with big eyes; gave it a bowl of "
      "warm milk / @a scratch, scratch; at the door; a lost duckling; a lost duckling looked up with big eyes; gave "
      "it some bread and a warm bed / hoo, hoo; above the roof; an owl; an owl was sitting in the moonlight; waved, "
      "and the owl flew away without a sound / bang, bang; in the next room; the window; the window was open and "
      "moved in the wind; closed it and looked out at the stars / "
      "chirp, chirp; in the corner; a cricket; a tiny black cricket was sitting behind a cup; carried it out into "
      "the garden" },
    { "break", "item; col; snap; tool; fix; mark",
      "wagon; red|blue|green; a wheel came off the {item}; a hammer and a nail; put the wheel back on; a shiny nail "
      "/ kite; red|purple|yellow; the {item} tore on a branch; a needle and thread; closed the hole; a line of tiny "
      "stitches / doll; little|pretty; an arm came off the {item}; a needle and thread; sewed the arm back on; a "
      "line of tiny stitches / drum; red|blue; a stick went right through the {item}; leather and glue; covered the "
      "hole; a round patch / boat; white|blue|red; the mast of the {item} broke; a knife and some glue; carved a new "
      "mast; a mast of lighter wood / clock; golden|small brown; the {item} fell down and stopped; a tiny "
      "screwdriver; set the wheels straight; a little scratch / "
      "book; green|blue|thick old; three pages fell out of the {item}; paper and glue; put the pages back in; a "
      "strip of white paper" },
    { "fixer", "fixer",
      "@h the old carpenter / @h the clockmaker / @h the blacksmith / @a the old beaver / @a the clever crow / "
      "@a the wise old turtle" },
    { "plant", "plant; seed; grew; reap",
      "sunflower; a small striped seed; a sunflower as tall as a door; a bag of seeds / "
      "pumpkin; a flat white seed; a pumpkin as round as the moon; a pot of pumpkin soup / "
      "bean; a smooth brown bean; a bean plant as high as the roof; a bowl of green beans / "
      "rose; a tiny black seed; a bush full of red roses; the most beautiful rose / "
      "strawberry; a tiny yellow seed; a plant full of red strawberries; a bowl of strawberries" },
    { "when", "due; sign; just",
      "before the sun goes down; the sun was very low; the sun was just touching the hills / "
      "before dinner; there was a smell of soup in the air; dinner was just coming to the table / "
      "before the first star; the sky was turning pink; the first star was just coming out" },
    { "magic", "being; plight; free; leave",
      "golden fish; was caught in the weeds of the pond; pulled the weeds apart; dived into the deep water / "
      "fairy; was caught in a spider web; opened the web with one finger; flew up to the stars / "
      "silver bird; was caught in a thorn bush; bent the thorns back; flew over the trees / "
      "white frog; was stuck under a heavy stone; rolled the stone away; jumped into the green reeds" },
    { "wish", "need; wish; came",
      "was ill and had to stay in bed; please make my {gn} well again; {g} was standing in the kitchen and singing / "
      "had to carry water from the river every day; please give my {gn} a well; there was a round well full of clear "
      "water / had lost {ghis} ring and was very sad; please bring back my {gn}'s ring; the ring was shining on the "
      "table / could not sleep because the roof had a hole; please give my {gn} a new roof; there was a new roof "
      "without any hole / had a garden where nothing grew; please let my {gn}'s garden grow; the garden was green "
      "and full of flowers" },
};

/* -- the plots -- */

static const char *const STORY_PLOTS[] = {
    /* lost and found: what, its color, where it was left */
    "[<toy>|<thing>]{open} {he} had a {col} {toy}[, and {he} loved to {use}|. it was a gift from {g}, and {h} loved "
    "to {use}].\n{day}, the {toy} was gone. {h} looked {p}[, but it was not there.|. it was not there.] {he} looked "
    "{q}, but it was not there either. [{h} [felt very sad|began to cry].|\"where is my {toy}?\" {he} asked.]\n"
    "[soon|then] {friend} [came by|came to play]. \"what is wrong?\" asked {f}. \"I cannot find my {col} {toy},\" "
    "said {h}. \"where did you play yesterday?\" asked {f}. [{h} thought [about it|hard].|] \"I played {r},\" {he} "
    "said. \"[then let us look there|maybe you left it there],\" said {f}.\nthey [ran|went] there together, and "
    "there it was! the {col} {toy} was lying {r}. {h} [hugged {f}|jumped for joy]. \"thank you for helping me,\" "
    "{he} said. [\"that is what friends are for,\" said {f}.|] [from that day on, {h} always put the {toy} in a safe "
    "place.|that night, {h} put the {toy} next to {his} bed and fell asleep with a smile.|{h} learned that four eyes "
    "can see more than two.]",
    /* sharing: how many, of what, and the other one shares back */
    "<food><even><treat=a jar of honey|a big piece of pie|a bowl of berries|a warm loaf of bread>{open} {day}, {g} "
    "gave {him} a [basket|bag] with {many} {food}. [they were {good}, and {h} could not wait to eat them.|the {food} "
    "were {good}, and {h} went outside to eat them.]\n[on the way|a little later], {he} met {friend} {r}. {f} [was "
    "sitting alone and|] looked [sad|tired]. \"what is the matter?\" asked {h}. \"[I have not eaten all day|I lost "
    "my lunch, and I am hungry],\" said {f}.\n{h} looked at the {many} {food}. {he} wanted to eat them all, but {f} "
    "was {his} friend. \"let us share,\" said {h}. {he} gave {f} {half} {food} and kept {half} for {self}. they sat "
    "down {r} and ate together. \"these are the best {food} in the world,\" said {f}. [\"they taste better with a "
    "friend,\" said {h}.|]\nthe next day, {f} came to see {h} and brought {treat}. \"you shared your {food} with "
    "me,\" said {f}. \"now I want to share this with you.\" [{h} smiled from ear to ear.|when you share, you always "
    "get something back.|sharing made them both happy.|and they shared everything from that day on.]",
    /* helping on the way: what was carried to whom, and why it came late */
    "<load><elder><trouble>{open} {day}, {g} asked {him} to bring {load} to {elder}. \"[please hurry|come back "
    "before dark],\" said {g}. {h} took the {it} and went on {his} way.\n[near the bridge|behind a hedge|after a "
    "while], {he} heard a sound. a [small|little] {pet} {was}. it {cry}. {h} was in a hurry, but {he} [could not "
    "leave the {pet} there|felt sorry for the {pet}]. \"do not be afraid,\" {he} said softly. {he} put the {it} down "
    "and {do}. [the {pet} was safe.|]\nwhen {h} came to {elder}, it was [late|almost evening]. \"[what took you so "
    "long?|why are you so late?]\" asked {elder}. \"I am sorry,\" said {h}. \"a {pet} {was}, and I had to help it.\" "
    "{elder} took the {it} and smiled. [\"you have a kind heart,\" {ehe} said.|\"the {it} could wait, but the {pet} "
    "could not,\" {ehe} said.]\non the way home, {h} [saw the {pet} again|looked for the {pet}]. it {later}. [{h} "
    "felt warm inside.|{h} told {g} all about it, and {g} was proud of {him}.|{h} waved and went home with a happy "
    "heart.]",
    /* a storm: what they gathered, where they hid, how they passed the time */
    "<outing><n=three|four|five><pastime>{open} {day}, {h} and {friend} were {doing}. they [worked hard|talked and "
    "laughed], and soon they had {full}.\n[then|suddenly,] the sky turned [dark|gray|black]. [a cold wind blew.|big "
    "drops of rain began to fall.] there was a loud [boom|crash]. \"a storm!\" cried {h}. \"we must hide!\" ^they "
    "ran to {hideout} and went inside.\n{f} [was shaking|held {h}'s {hand}]. \"I am afraid of the thunder,\" said "
    "{f}. {h} had an idea. \"{idea},\" {he} said. so {did}. [with every {song}, the thunder was farther away.|after "
    "a while, they could not hear the thunder anymore.]\nat last, the rain stopped and the sun came out. [there was "
    "a rainbow over the {woods}.|a bright rainbow stood in the sky.] they went home with the {it}, and {h}'s {gn} "
    "was waiting at the door. \"were you afraid?\" asked {g}. \"[only|yes,] a little,\" said {h}, \"but [we were "
    "together|we had each other].\" [that evening, they ate hot soup and watched the stars.|then they all sat by the "
    "fire until they were warm and dry.|a storm is not so bad when you have a friend.]",
    /* learning: what, the advice, and the advice passed on */
    "<skill>{open} {he} wanted to learn how to {skill}. [{he} dreamed about it every night.|it looked so easy when "
    "others did it.|]\n{day}, {h} tried it, but {fail}. {he} tried again, but {fail2}. \"I will never learn to "
    "{skill},\" {he} [said sadly|cried]. {g} sat down next to {him}. \"[nobody can do it the first time|it is hard "
    "for everyone at first],\" {ghe} said. \"{tip}.\"\n[so {h} practiced every day.|every day after breakfast, {h} "
    "practiced.] [{he} thought of what {g} had said.|each day, it was a little easier.] after [one week|two weeks|"
    "ten days], {h} {win}! \"look, {call}! I can {skill}!\" {he} [shouted|called]. {g} clapped {ghis} {hand}s. \"I "
    "am so proud of you,\" {ghe} said.\n[the next day|soon after that], {friend} wanted to learn it too. \"it is so "
    "hard,\" said {f}. {h} smiled and said, \"{tip}.\" [and soon they could both {skill}.|{he} knew that {f} would "
    "learn it, one small step at a time.|nothing is too hard if you do not give up.]",
    /* a gift: made of what, hidden where */
    "<gift>{open} it was almost {g}'s birthday. {h} wanted to give {ghim} a present, but {he} had no money. [{he} "
    "thought and thought.|\"I will make something,\" {he} said.]\n{day}, {h} went out and {gather}. then {he} "
    "{make}. \"what are you doing?\" asked {g}. \"it is a secret,\" said {h} [with a smile|and laughed]. {he} hid "
    "the {gift} {p}, where nobody would look.\non the morning of the birthday, {h} took the {gift} from its place "
    "{p}. \"happy birthday, {call}!\" {he} [said|called]. \"a {gift}! did you make it all by yourself?\" asked {g}. "
    "[\"yes,\" said {h}. \"I made it for you.\"|\"yes, just for you,\" said {h}.]\n{g} {use} and [hugged {him}|gave "
    "{him} a big hug]. \"[this is the best {gift} I have ever had|I will keep this {gift} forever],\" {ghe} said. "
    "[{h} learned that the best presents come from the heart.|{h} was so happy that {he} danced around the room.|"
    "they ate cake together, and it was a wonderful day.]",
    /* making something: what is missing, and what takes its place */
    "<build>{open} {day}, {h} and {friend} wanted to make a {what}. {work}[. it was hard work.|, and they worked all "
    "morning.|.] soon the {what} was almost ready.\nbut then {f} [stopped|frowned]. \"something is wrong,\" said "
    "{f}. \"{lack}!\" {h} looked at the {what}. {f} was right. [they looked around, but they found nothing.|\"what "
    "can we do?\" asked {f}.|] {h} closed {his} eyes and thought. \"I have an idea,\" {he} said. {he} ran home and "
    "came back with {fix}. \"[will that work?|what is that for?]\" asked {f}. \"[wait and see|you will see],\" said "
    "{h}. {he} {put}.\nnow the {what} was [perfect|ready]. \"that was a clever idea,\" said {f}. they {joy} until "
    "[the sun went down|it was time for dinner]. [{h}'s {gn} came to look at the {what}. \"well done, you two,\" "
    "said {g}.|it was the best {what} they had ever seen.|] [they were tired, but very happy.|and they were already "
    "thinking of the next thing to make.|two heads are better than one.]",
    /* a mistake: what broke, where the pieces were hidden, the truth */
    "<vase><romp=dancing|jumping|spinning around|playing with a ball|running in circles>{open} {g} had a {col} "
    "{item} that stood {stood}. \"please do not play near the {item},\" {ghe} always said.\n{day}, {h} was {romp} "
    "inside. [crash!|bang!] the {col} {item} fell to the floor and broke[| into pieces]. nobody had seen it, so {h} "
    "hid the pieces {p}. [then {he} went outside, but {he} could not play.|{he} wanted to forget it, but {he} could "
    "not.] {his} heart felt heavy.\nin the evening, {g} asked, \"where is my {col} {item}?\" {h} [looked at the "
    "floor|took a deep breath]. \"I broke it,\" {he} said. \"then I hid the pieces {p}. I am so sorry.\" {g} was "
    "quiet for a moment. then {ghe} took {his} {hand}. \"I am sad about the {item},\" {ghe} said, \"but I am glad "
    "that you told me the truth.\"\nthey got the pieces from {p} and glued the {item} together. [it had many thin "
    "lines, but it was still pretty.|soon it stood {stood} again.] [{h} felt light and happy again.|after that, {h} "
    "always played outside.|{h} learned that telling the truth makes the heart light.]",
    /* a journey: two things packed, each needed once */
    "<goal><pack1><pack2>{open} {he} had always wanted to see {goal}. {day}, {he} asked {friend} to come along. "
    "\"[we must|let us] pack {pack1} and {pack2},\" said {f}. they put everything into a bag and [started early|set "
    "off].\nfirst they walked [through the fields|along the river|past a mill]. {need1}. \"[I am glad that we packed|"
    "it is good that we have] {pack1},\" said {h}. {use1}. {need2}. \"do not worry,\" said {h}. \"we have {pack2}.\" "
    "{use2}.\nat last, they came to {goal}. {view}. [\"it is even more beautiful than I thought,\" said {h}.|\"I "
    "will never forget this,\" said {h}.]\nwhen they were home again, {h}'s {gn} asked, \"[what did you see?|how was "
    "it?]\" \"we saw {goal}!\" said {h}. \"{view}!\" [^that night, {h} dreamed about it.|^{g} listened to the whole "
    "story and smiled.|^the next day, they began to plan another journey.]",
    /* a contest: the prize, the friend in trouble, the other prize */
    "<contest><prize=golden cup|silver medal|basket of sweets|big box of paints><extra=blue ribbon|small silver star|"
    "shiny coin>{open} every year, there was a {game}, and the prize was a {prize}. {h} wanted to win it[.| very "
    "much.] every day, {he} {prep}. {friend} wanted to win it too.\nthen the big day came. {start}. but then "
    "{trouble}. \"if I help, I will not win,\" thought {h}. but {f} was {his} friend, so {h} {help}. \"thank you,\" "
    "said {f}.\n[in the end|at last], {rival} won the {prize}. then {judge} called {h}. \"we have one more prize,\" "
    "said {judge}. \"it is for the kindest heart.\" {h} got a {extra}[, and everyone clapped|, and {f} clapped the "
    "loudest|].\n\"did you win?\" asked {g} that evening. \"no,\" said {h}, \"but [I helped {f}|{f} and I are even "
    "better friends now], and I got a {extra}.\" [{g} was very proud of {him}.|and {h} liked it more than the "
    "{prize}.|it is good to win, but it is better to be kind.]",
    /* a new friend: shy at first; a toy helps */
    "<toy><gift=a bag of marbles|a wooden puzzle|a long rope|a picture book|a box of crayons>{open} [{he} often "
    "played alone.|{he} had no one to play with.] {he} wished for a friend.\n{day}, {h} saw a {fkind} {r}. {he} had "
    "never seen {fhim} before. \"[hello, I am|hello! my name is] {h},\" said {h}. the {fkind} [did not answer|looked "
    "at the ground]. [\"maybe {fhe} is shy,\" thought {h}. {he}|{h} could see that {fhe} was shy, so {he}] went home "
    "and came back with {his} {col} {toy}. \"would you like to play with my {toy}?\" {he} asked.\n"
    "the {fkind} [looked up|came closer]. \"yes, please,\" {fhe} said softly. \"my name is {f}. we came here "
    "[yesterday|last week], and I do not know anyone.\" \"now you know me,\" said {h}. they played with the {col} "
    "{toy} [until dinner|all afternoon], and {f} laughed for the first time.\nthe next day, {f} was {r} again. this "
    "time {fhe} had brought {gift}. \"today we can play with this,\" said {f}. [after that, they met there every "
    "day.|from that day on, {h} was never alone.|and so {h} and {f} became the best of friends.]",
    /* brave: the noise, the place, what it was */
    "<noise><light=a candle|a lamp|a lantern>{open} {he} was afraid of the dark. [every night, {he} asked {g} to "
    "leave a light on.|every night, {he} hid under the blanket.]\n{night}, {h} woke up. {noise}! there was something "
    "{from}. \"is it a monster?\" {he} whispered. {noise}! {h} wanted to [hide|call {g}|run away]. {his} heart beat "
    "fast. but then {he} thought, \"[maybe somebody needs help|I want to know what it is].\" {he} took {light} and "
    "went to look, one step at a time.\n{see}. \"it was only {it}!\" said {h}, and {he} laughed. {he} {do}. then "
    "{he} went back to bed [and slept well|and fell asleep at once].\nin the morning, {h} told {g} about the noise. "
    "\"you were very brave,\" said {g}. \"but I was afraid,\" said {h}. \"[that is what being brave means|being "
    "brave means to be afraid and to go anyway],\" said {g}. [from then on, {h} was not afraid of the dark.|the next "
    "night, {h} slept without a light.|{h} smiled, and {he} felt very tall.]",
    /* broken and mended: what broke, who mends it, for what work, the mark that stays */
    "<break><fixer><chore=sweep my floor|wash my windows|water my flowers>{open} {he} had a {col} {item} and liked "
    "it more than anything else. [{g} had given it to {him}.|it was a present from {g}.]\n{day}, {snap}. {h} [cried "
    "and cried|could not believe it]. \"my {item} is broken forever,\" {he} said. \"[do not cry|do not be sad],\" "
    "said {g}. \"take it to {fixer}.\"\nso {h} [carried|brought] the {item} to {fixer}. \"can you mend it?\" {he} "
    "asked. \"yes,\" said {fixer}, \"but you must {chore}.\" {h} worked hard, and {fixer} took {tool} and {fix}.\n"
    "in the evening, the {col} {item} was whole again. you could only see {mark}. [\"do you mind that?\" asked "
    "{fixer}. \"no,\" said {h}.|\"is that all right?\" asked {fixer}. \"yes, thank you,\" said {h}.] \"now I like it "
    "even more.\" {he} went home [with the {item} in {his} arms|with a big smile]. [a thing that was mended with "
    "love is better than new.|{g} was happy too.|{h} took good care of the {item} from then on.]",
    /* patience: a seed, many days, the harvest shared */
    "<plant><n=six|seven|nine|ten|twelve>{open} {day}, {g} gave {him} {seed}. \"[plant it and take care of it|put it "
    "into the ground and give it water],\" said {g}. {h} made a hole {r} and put the seed into it.\n"
    "[every morning|day after day], {h} brought water, but there was nothing to see. [{friend} came by.|{friend} "
    "came to look.] \"nothing will grow there,\" said {f}. \"[come and play|forget it].\" {h} was sad. [\"maybe {f} "
    "is right,\" {he} said.|\"why does it not grow?\" {he} asked.] \"be patient,\" said {g}. \"good things need "
    "time.\" so {h} [did not give up|kept bringing water].\nafter {n} days, there was a tiny green leaf {r}! [it "
    "grew and grew, and at the end of the summer|it grew a little every day, and when the summer was over,] there "
    "was {grew}. \"I was wrong,\" said {f}. \"it is [wonderful|beautiful].\"\n{h} [gave {g} a big hug|thanked {g}]. "
    "then {he} gave {f} {reap}. [\"good things need time,\" {he} said.|they were both happy, and the next year they "
    "planted a {plant} together.|{h} was glad that {he} had waited.]",
    /* a promise: what was borrowed, by when it must be back */
    "<toy><when><fun=some {others} were playing hide and seek|there was music and dancing|some {others} were having "
    "a race|a puppet show was starting>{open} {friend} had a {col} {toy}. {h} [liked it very much|wished for one "
    "too].\n{day}, {h} asked, \"may I have your {toy} for [today|a while]?\" {f} thought about it. \"yes,\" said "
    "{f}, \"but bring it back {due}.\" \"[I promise|I promise I will],\" said {h}. {he} was so happy that {he} [ran "
    "home with it|danced all the way home].\nin the afternoon, {fun}. {h} [stayed and had a lot of fun|joined in and "
    "forgot the time]. then {he} noticed that {sign}. \"[oh no, ^my|my] promise!\" cried {h}. {he} took the {col} "
    "{toy} and ran [all the way|as fast as {he} could] to {f}'s home.\n{f} was [waiting at the door|looking out of "
    "the window]. {just}. \"here is your {toy},\" said {h}. \"I am not too late, am I?\" \"no,\" said {f} [with a "
    "smile|and laughed]. \"you kept your promise[.|. you may have it again tomorrow.]\" [a promise is a promise, and "
    "both of them knew it.|{h} went home and felt very proud.|they were even better friends after that.]",
    /* a wish: who gave it, what it was used for */
    "<magic><wish><self1,self2=mountain of candy|golden crown|room full of toys|flying horse|castle>{open} {his} "
    "{gn} {need}. [{h} wanted to help, but {he} did not know how.|{h} was worried.|]\n{day}, {h} heard a tiny "
    "voice[. \"help me!\" it called|].  a {being} {plight}. {h} {free}. \"you [saved me|were kind to me],\" said the "
    "{being}. \"now you may make one wish.\"\n{h} [thought for a long time|closed {his} eyes and thought]. {he} "
    "could wish for a {self1} or for a {self2}. but then {he} thought of {g}. \"{wish},\" said {h}. \"[that is a "
    "good wish|you have a good heart],\" said the {being}. then it {leave}.\n{h} ran home as fast as {he} could. "
    "{came}! [\"how did this happen?\" asked {g}.|\"look at this!\" said {g}.] {h} told {ghim} about the {being}[, "
    "and they both laughed with joy|, and {g} hugged {him} for a long time]. [{h} never needed a {self1}.|and they "
    "lived happily ever after.|{h} never saw the {being} again, but {he} never forgot it.]",
};

/* -- the engine -- */

/* The next number of the generator, below n. */
static size_t story_pick(StoryTeller *t, size_t n) {
    return (size_t)((next_random(&t->rng) >> 32) * n >> 32);
}

static bool same_str(Str a, Str b) { return a.n == b.n && !memcmp(a.s, b.s, a.n); }

/* Cuts the piece before the next stop character that is outside all brackets off the front of s,
 * and that character with it. */
static Str story_cut(Str *s, char stop) {
    Str piece = { s->s, 0 };
    for (int depth = 0; piece.n < s->n; piece.n++) {
        const char c = s->s[piece.n];
        if (depth == 0 && c == stop) break;
        depth += (c == '[' || c == '{' || c == '<') - (c == ']' || c == '}' || c == '>');
    }
    *s = str_part(*s, piece.n + (piece.n < s->n), s->n);
    return piece;
}

/* The same, without the spaces in front. */
static Str story_cell(Str *s, char stop) {
    const Str cell = story_cut(s, stop);
    size_t spaces = 0;
    while (spaces < cell.n && cell.s[spaces] == ' ') spaces++;
    return str_part(cell, spaces, cell.n);
}

/* How many parts the list has that are divided by sep, and the i-th of them, from 0. */
static size_t story_parts(Str list, char sep) {
    size_t n = 1;
    for (size_t left; left = list.n, story_cut(&list, sep).n < left;) n++;
    return n;
}
static Str story_part(Str list, char sep, size_t i) {
    while (i-- > 0) story_cut(&list, sep);
    return story_cut(&list, sep);
}

/* What key is bound to. */
static Str story_lookup(const StoryTeller *t, Str key) {
    for (int i = t->n_bound; i-- > 0;)
        if (same_str(t->bound[i].key, key)) return t->bound[i].value;
    assert(!"a story template uses a key that is not bound");
    return key;
}

/* Adds s to the raw text. */
static void story_append(StoryTeller *t, Str s) {
    assert(s.n <= sizeof t->text - t->text_len);
    memcpy(t->text + t->text_len, s.s, s.n);
    t->text_len += s.n;
}

static void story_expand(StoryTeller *t, Str s);

/* From now on {key} is the expansion of s, which is kept in memory: plain text. */
static void story_bind(StoryTeller *t, Str key, Str s) {
    const size_t start = t->text_len;
    story_expand(t, s);
    const Str value = { t->memory + t->memory_len, t->text_len - start };
    assert(t->memory_len + value.n <= sizeof t->memory && t->n_bound < MOST_BOUND);
    memcpy(t->memory + t->memory_len, t->text + start, value.n);
    t->memory_len += value.n;
    t->text_len = start;
    t->bound[t->n_bound].key = key;
    t->bound[t->n_bound++].value = value;
}

/* <table>: binds the columns of one row that suits this world. */
static void story_draw_row(StoryTeller *t, Str name) {
    size_t i = 0;
    while (!str_is(name, STORY_TABLES[i].name)) i++;
    Str columns = str_of(STORY_TABLES[i].columns), rows = str_of(STORY_TABLES[i].rows), row;
    const size_t n = story_parts(rows, '/');
    do {
        row = story_part(rows, '/', story_pick(t, n));
        row = story_cell(&row, '/');
    } while (row.s[0] == '@' && row.s[1] != t->world);
    if (row.s[0] == '@') row = str_part(row, 2, row.n);
    while (row.n > 0) {
        const Str key = story_cell(&columns, ';');
        story_bind(t, key, story_cell(&row, ';'));
    }
}

/* <k,l=a|b|c>: every key gets a different one of the alternatives. */
static void story_bind_options(StoryTeller *t, Str keys, Str list) {
    uint64_t taken = 0;
    const size_t n = story_parts(list, '|');
    while (keys.n > 0) {
        const Str key = story_cut(&keys, ',');
        size_t i;
        do i = story_pick(t, n);
        while (taken >> i & 1);
        taken |= (uint64_t)1 << i;
        story_bind(t, key, story_part(list, '|', i));
    }
}

/* Appends the expansion of a template to the text. */
static void story_expand(StoryTeller *t, Str s) {
    s = story_part(s, '|', story_pick(t, story_parts(s, '|')));
    while (s.n > 0) {
        const Str c = str_part(s, 0, 1);
        s = str_part(s, 1, s.n);
        if (*c.s == '[') story_expand(t, story_cut(&s, ']'));
        else if (*c.s == '{') story_append(t, story_lookup(t, story_cut(&s, '}')));
        else if (*c.s == '<') {
            Str body = story_cut(&s, '>');
            const Str keys = story_cut(&body, '=');
            if (body.n > 0) story_bind_options(t, keys, body);
            else story_draw_row(t, keys);
        } else story_append(t, c);
    }
}

/* Whether the word at s is spoken with a vowel first; the exceptions are those of this vocabulary. */
static bool story_vowel(Str s) {
    if (s.n >= 3 && memcmp(s.s, "one", 3) == 0) return false;
    return s.n > 0 && strchr("aeiouAEIOU", *s.s) != NULL;
}

/* Copies the raw text with capitals, "an", and neither double spaces nor spaces before punctuation.
 * Returns the length; what does not fit into cap - 1 bytes is cut off. unfinished: a sentence that
 * goes on behind what is said, "Yes," said Tom, "but bring it back." */
static size_t story_tidy(char *out, size_t cap, Str raw) {
    size_t n = 0;
    bool quoted = false, capital = true, unfinished = false;
    for (size_t i = 0; i < raw.n && n + 2 < cap; i++) {
        char c = raw.s[i];
        const char before = n > 0 ? out[n - 1] : '\n', next = i + 1 < raw.n ? raw.s[i + 1] : '\n';
        if (c == ' ' && (before == ' ' || before == '\n' || strchr(" \n.,!?", next))) continue;
        if (c == '"') {
            quoted = !quoted;
            if (quoted) capital = !unfinished;
            else if (before != '.') capital = false;  /* "Where?" she asked */
            if (!quoted) unfinished = before == ',';
        } else if (strchr(".!?\n^", c)) {
            capital = true;
            if (strchr(".!?", c)) unfinished = false;
        } else if (capital && isalpha((unsigned char)c)) {
            c = (char)toupper((unsigned char)c);
            capital = false;
        }
        if (c == '^') continue;
        if (c == '\n') out[n++] = c;
        out[n++] = c;
        if ((c == 'a' || c == 'A') && next == ' ' && strchr(" \"\n", before)
            && story_vowel(str_part(raw, i + 2, raw.n))) out[n++] = 'n';
    }
    out[n] = '\0';
    return n;
}

/* Writes the story of this seed: plain ASCII, paragraphs divided by an empty line, no newline at
 * the end. Returns its length without the final zero. STORY_CAP bytes are always enough; cap is at
 * least 1. */
static size_t story(uint64_t seed, char *buf, size_t cap) {
    StoryTeller t;
    t.rng = seed;
    t.n_bound = 0;
    t.text_len = t.memory_len = 0;
    t.world = story_pick(&t, 5) < 3 ? 'h' : 'a';
    story_expand(&t, str_of("<names><cast><grown><world><common><open>"));
    story_expand(&t, str_of(STORY_PLOTS[story_pick(&t, sizeof STORY_PLOTS / sizeof *STORY_PLOTS)]));
    return story_tidy(buf, cap, (Str){ t.text, t.text_len });
}

/* ---- 11. vocabulary: byte-level BPE, learning a vocabulary ---------------------------------
 * Tokens 0..255 are the single bytes, so any text can be encoded. Then, again and again, the pair
 * of neighboring tokens that occurs most often in the text becomes one token (Sennrich et al.
 * 2016; on bytes: Radford et al. 2019). Text is cut into pieces first, and pairs never reach
 * across the end of a piece; a natural text has few different pieces, so each is kept once with
 * its count.
 *
 * Ties go to the pair with the smaller left, then the smaller right id, so the result depends on
 * the text alone. "ab"+"c" and "a"+"bc" are never both learned: no merge has reached across the
 * ends of a token, so its bytes were joined as they would be if they stood alone, and that is one
 * way only. Every token is a different string. Its rooms:
 *
 *   what is kept             the vocabulary, and all that learning it needs
 *   pieces and pairs         how often each occurs, by hash tables; candidates, in a heap
 *   the vocabulary           bpe_train, which others call, and how a token is written
 *
 * Start with bpe_train: its three steps are the whole method. */

/* -- what is kept -- */

typedef struct { int left, right; } BpeMerge;

typedef struct {
    int n_tokens;                            /* 256 bytes, then one token for each merge */
    BpeMerge *merges;                        /* merge r makes token 256 + r; smaller r come first */
    Text bytes;                              /* of all tokens, one after the other */
    size_t *offset;                          /* token i is bytes[offset[i] .. offset[i + 1]) */
} BpeVocab;

enum {
    BPE_PIECE_MAX = 256,                     /* bytes; longer pieces are counted in parts of this size */
    BPE_ROOM = 1 << 25                       /* bytes of different pieces; then no new ones are taken */
};

typedef struct { Str text; uint32_t count, len, start; } BpePiece; /* len symbols, from start on */
/* key: left << 16 | right. places: where it may be found, a list. listed: in fresh or in the heap. */
typedef struct { uint32_t key, count, places; bool listed; } BpePair;

/* Numbers in lists and tables are those of elements, and 1: 0 is none. In the heap a candidate is
 * ~count << 32 | key, so that the best is the smallest; its count may be out of date, but never too
 * low. */
typedef struct {
    BpePiece *pieces;
    BpePair *pairs;
    struct { uint32_t piece, next; } *places;
    int *symbols;                            /* the pieces as tokens, shrinking in place */
    uint64_t *heap;
    uint32_t *fresh;                         /* pairs that the last merge has made */
    size_t n_pieces, n_pairs, n_places, n_symbols, n_heap, n_fresh;
    size_t pieces_cap, pairs_cap, places_cap, heap_cap, fresh_cap;
    Table piece_table, pair_table;
} BpeTrainer;

/* Room for one more element of an array. */
#define ROOM_FOR(t, name) \
    ((t)->name = checked(grow((t)->name, (t)->n_##name, 1, &(t)->name##_cap, sizeof *(t)->name)))

/* -- pieces and pairs -- */

/* Counts one more occurrence of a piece. */
static void bpe_count_piece(BpeTrainer *t, Str text) {
    const uint32_t hash = (uint32_t)hash_bytes(HASH_SEED, text.s, text.n);
    size_t step = 0;
    Slot *slot;
    checked(table_room(&t->piece_table, t->n_pieces + 1) ? t : NULL);
    while ((slot = checked(table_next(&t->piece_table, hash, &step)))->value) {
        BpePiece *p = &t->pieces[slot->value - 1];
        if (p->text.n != text.n || memcmp(p->text.s, text.s, text.n)) continue;
        p->count++;
        return;
    }
    if (t->n_symbols + text.n > BPE_ROOM) return;
    t->n_symbols += text.n;
    ROOM_FOR(t, pieces);
    t->pieces[t->n_pieces] = (BpePiece){ text, 1, (uint32_t)text.n, 0 };
    *slot = (Slot){ hash, (uint32_t)++t->n_pieces };
}

/* The entry of a pair, made if it is new. */
static BpePair *bpe_pair(BpeTrainer *t, uint32_t key) {
    size_t step = 0;
    checked(table_room(&t->pair_table, t->n_pairs + 1) ? t : NULL);
    Slot *slot = checked(table_next(&t->pair_table, key, &step));
    if (!slot->value) {
        ROOM_FOR(t, pairs);
        t->pairs[t->n_pairs] = (BpePair){ .key = key };
        *slot = (Slot){ key, (uint32_t)++t->n_pairs };
    }
    return &t->pairs[slot->value - 1];
}

static void bpe_push(BpeTrainer *t, const BpePair *pair) {
    ROOM_FOR(t, heap);
    heap_push(t->heap, &t->n_heap, (uint64_t)~pair->count << 32 | pair->key);
}

/* Adds sign * count of piece w to each pair of its symbols from .. to - 1. Pairs that contain token
 * id, the newest, or any pair if id is 0, are new: they remember the piece, and are listed once in
 * t->fresh to become candidates. */
static void bpe_count_pairs(BpeTrainer *t, uint32_t w, uint32_t from, uint32_t to, int sign, int id) {
    const BpePiece *p = &t->pieces[w];
    const int *s = t->symbols + p->start;
    for (uint32_t i = from; i + 1 < to; i++) {
        BpePair *pair = bpe_pair(t, (uint32_t)s[i] << 16 | (uint32_t)s[i + 1]);
        pair->count += (uint32_t)sign * p->count;
        if (sign < 0 || (id > 0 && s[i] != id && s[i + 1] != id)) continue;
        if (!pair->places || t->places[pair->places - 1].piece != w) {
            ROOM_FOR(t, places);
            t->places[t->n_places].piece = w;
            t->places[t->n_places].next = pair->places;
            pair->places = (uint32_t)++t->n_places;
        }
        if (pair->listed) continue;
        pair->listed = true;
        ROOM_FOR(t, fresh);
        t->fresh[t->n_fresh++] = pair->key;
    }
}

/* The pairs that are new become candidates, with their counts of now. */
static void bpe_push_fresh(BpeTrainer *t) {
    while (t->n_fresh) bpe_push(t, bpe_pair(t, t->fresh[--t->n_fresh]));
}

/* Replaces left right by token id in piece w, from left to right. Only the pairs from the symbol
 * before the first place to the one behind the last are counted anew. */
static void bpe_merge_in_piece(BpeTrainer *t, uint32_t w, BpeMerge m, int id) {
    BpePiece *p = &t->pieces[w];
    int *s = t->symbols + p->start;
    uint32_t n, i = 0, last = p->len - 1;
    while (i + 1 < p->len && (s[i] != m.left || s[i + 1] != m.right)) i++;
    if (i + 1 >= p->len) return;                 /* an earlier merge has taken it */
    while (s[last - 1] != m.left || s[last] != m.right) last--;
    const uint32_t from = i ? i - 1 : 0, behind = p->len - last > 2 ? p->len - last - 2 : 0;
    bpe_count_pairs(t, w, from, p->len - behind, -1, 0);
    for (n = i; i < p->len; n++) {
        const bool here = i + 1 < p->len && s[i] == m.left && s[i + 1] == m.right;
        s[n] = here ? id : s[i];
        i += here ? 2 : 1;
    }
    p->len = n;
    bpe_count_pairs(t, w, from, n - behind, +1, id);
}

/* -- the vocabulary -- */

/* The 256 bytes, with room for n tokens. */
static void bpe_bytes(BpeVocab *v, int n) {
    v->merges = checked(calloc((size_t)n, sizeof *v->merges));
    v->offset = checked(calloc((size_t)n + 1, sizeof *v->offset));
    for (int b = 0; b < 256; b++) {
        put(&v->bytes, &(uint8_t){ (uint8_t)b }, 1);
        v->offset[b + 1] = (size_t)b + 1;
    }
    v->n_tokens = 256;
}

static void bpe_free(BpeVocab *v) {
    free(v->merges);
    free(v->offset);
    text_free(&v->bytes);
}

/* The bytes of a token. */
static Str bpe_token(const BpeVocab *v, int id) {
    return (Str){ v->bytes.s + v->offset[id], v->offset[id + 1] - v->offset[id] };
}

/* Appends the token that merge number n_tokens - 256 makes. */
static void bpe_add_token(BpeVocab *v, BpeMerge m) {
    char both[2 * BPE_PIECE_MAX];
    const Str a = bpe_token(v, m.left), b = bpe_token(v, m.right);
    memcpy(both, a.s, a.n);
    memcpy(both + a.n, b.s, b.n);
    put(&v->bytes, both, a.n + b.n);
    v->merges[v->n_tokens - 256] = m;
    v->offset[++v->n_tokens] = v->bytes.n;
}

/* The different pieces of a text, as a tokenizer cuts it, and how often each occurs. */
static void bpe_cut(BpeTrainer *t, const Tokenizer *tokenizer, Str text) {
    int64_t pos = 0;
    wait_begin("counting words", count_of, &pos, (int64_t)text.n);
    for (size_t end; (size_t)pos < text.n; pos = (int64_t)end) {
        Futile futile = { 0, 0, 0 };
        end = match_end(&tokenizer->splits[0], &tokenizer->unicode, text, (size_t)pos, &futile);
        for (size_t at = (size_t)pos; at < end; at += BPE_PIECE_MAX)
            bpe_count_piece(t, str_part(text, at, end - at > BPE_PIECE_MAX ? at + BPE_PIECE_MAX : end));
    }
    wait_end();
}

/* Learns a vocabulary of n tokens, the 256 bytes included and special tokens not: v comes with room
 * for them. A text that is too small for n gives fewer, and a line says so. */
static void bpe_train(BpeVocab *v, const Tokenizer *tokenizer, Str text, int n) {
    BpeTrainer t = {0};
    int64_t done = v->n_tokens;

    // the different pieces and how often each occurs
    bpe_cut(&t, tokenizer, text);

    // their bytes as tokens, and the pairs of those
    t.symbols = checked(malloc((t.n_symbols + 1) * sizeof *t.symbols));
    t.n_symbols = 0;
    for (uint32_t w = 0; w < t.n_pieces; w++) {
        BpePiece *p = &t.pieces[w];
        p->start = (uint32_t)t.n_symbols;
        for (uint32_t i = 0; i < p->len; i++) t.symbols[t.n_symbols++] = (uint8_t)p->text.s[i];
        bpe_count_pairs(&t, w, 0, p->len, +1, 0);
    }
    bpe_push_fresh(&t);

    // the best pair becomes a token, and changes the pieces that have it
    wait_begin("learning a vocabulary", count_of, &done, n);
    while (v->n_tokens < n && t.n_heap > 0) {
        const uint64_t best = heap_pop(t.heap, &t.n_heap);
        const BpePair *pair = bpe_pair(&t, (uint32_t)best);
        if (pair->count < 2) continue;
        if (pair->count < ~(uint32_t)(best >> 32)) {
            bpe_push(&t, pair);                   /* other merges have taken some: it queues again */
            continue;
        }
        const BpeMerge m = { (int)(pair->key >> 16), (int)(pair->key & 0xFFFF) };
        bpe_add_token(v, m);
        for (uint32_t i = pair->places; i; i = t.places[i - 1].next)     /* pair itself may move */
            bpe_merge_in_piece(&t, t.places[i - 1].piece, m, v->n_tokens - 1);
        bpe_push_fresh(&t);
        done = v->n_tokens;
    }
    wait_end();
    if (v->n_tokens < n)
        fprintf(stderr, "train_tiny: the text has no more pairs that occur twice: "
                "%d tokens instead of %d\n", v->n_tokens, n);
    void *const all[] = { t.pieces, t.pairs, t.places, t.heap, t.fresh, t.piece_table.slots,
                          t.pair_table.slots };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) gla_free(all[i]);
    free(t.symbols);
}

/* Writes a token as files of the kind "gpt2" have it, see byte_char: UTF-8, at most 2 bytes per
 * byte of the token. Returns the length. */
static size_t bpe_token_text(const BpeVocab *v, int id, char *out) {
    const Str bytes = bpe_token(v, id);
    size_t n = 0;
    for (size_t i = 0; i < bytes.n; i++) n += utf8_write(out + n, byte_char((uint8_t)bytes.s[i]));
    return n;
}

/* ---- 12. data ------------------------------------------------------------------------------
 * Sequences of T + 1 ids: T inputs, and the same shifted by one as targets. Stories: sequence i
 * begins with <|endoftext|> and holds the stories of its own block of seeds, one after the other,
 * until it is full; held-out ones have the highest bit of the seed set. Text: a window at a random
 * place of the first 95 %; held out is the rest, window by window. So a step needs nothing but its
 * number, and training can go on from any of them. Its rooms:
 *
 *   sequences               of stories, of a text, of associative recall; a batch of them
 *   counting baselines      a bigram and a trigram, to compare the model with */

/* -- sequences -- */

typedef struct {
    Gguf vocab;                              /* the tokenizer.* keys, of a mapped file or one in memory */
    Tokenizer *tokenizer;
    int32_t end;                             /* <|endoftext|> */
    uint64_t seed;
    int32_t *ids;                            /* the text; NULL: stories */
    size_t n_ids, n_train;
    const int *pairs;                        /* associative recall, else NULL: how many pairs the
                                                sequences hold in turn, 0 ends the list; */
    int mqar_vocab;                          /* tokens; */
    bool rebind;                             /* half of the keys get a second value, which counts */
} Data;

/* Seeds of stories: one sequence's, and those from SAMPLE_SEED on, which are not trained on. */
enum { STORIES_PER_SEQUENCE = 1 << 10 };
#define SAMPLE_SEED ((uint64_t)1 << 62)

/* Sequence number i: n ids of a text or of stories. */
static void fill_sequence(const Data *d, bool held_out, uint64_t i, int32_t *out, int n) {
    if (d->ids) {
        uint64_t rng = mix_seed(d->seed ^ mix_seed(i));
        const size_t rest = d->n_ids - d->n_train;
        const size_t at = held_out ? d->n_train + (size_t)i * (n - 1) % (rest - n + 1)
                          : rng_next(&rng) % (d->n_train - n + 1);
        memcpy(out, d->ids + at, n * sizeof *out);
        return;
    }
    char text[STORY_CAP], err[GLA_ERR];
    int32_t ids[STORY_CAP];
    uint64_t seed = held_out ? (uint64_t)1 << 63 : (d->seed & 0xffff) << 46;
    seed += i * STORIES_PER_SEQUENCE;
    for (int at = 0; at < n;) {
        const size_t len = story(seed++, text, sizeof text);
        out[at++] = d->end;
        int64_t got = tokenizer_encode(d->tokenizer, text, len, 0, ids, STORY_CAP, err);
        if (got < 0) give_up("%s", err);
        for (int64_t k = 0; k < got && at < n; k++) out[at++] = ids[k];
    }
}

/* One of n places that are left, with a probability of 1 / distance. */
static int draw_place(const int *place, int n, uint64_t *rng) {
    double total = 0;
    int pick = 0;
    for (int p = 0; p < n; p++) total += 1.0 / (place[p] + 1);
    double at = total * rng_uniform(rng);
    while (pick < n - 1 && (at -= 1.0 / (place[pick] + 1)) > 0) pick++;
    return pick;
}

/* Multi-query associative recall (source: Zoology, Arora et al. 2023). First come `pairs` keys,
 * each with its value behind it; later each key comes once more, at a place drawn with a
 * probability of 1 / distance, and there its value is what has to be said. Everywhere else stands
 * token 0, and no answer counts. To rebind: between the pairs and the questions, half of the keys
 * come again, each with a new value, and the pairs stand in any order: old ones stay true, too.
 * Keys are ids 1 .. V/2 - 1, values V/2 .. V - 1; which belongs to which is drawn anew each time,
 * so that only a memory of this sequence can know it. id, target (T). */
static void mqar_sequence(const Data *d, bool held_out, uint64_t i, int pairs, int T, int *id,
                          int *target) {
    enum { MOST = 1 << 10 };
    uint64_t rng = mix_seed(d->seed ^ mix_seed(i * 2 + held_out));
    const uint64_t half = (uint64_t)(d->mqar_vocab / 2);
    const int again = d->rebind ? pairs / 2 : 0, asked = 2 * (pairs + again);
    int places = (T - asked) / 2;
    int deck[MOST];                      /* keys; those not drawn yet lie behind the others */
    int place[MOST];                     /* places for questions that are left, two tokens each */
    int pair[MOST];                      /* where the k-th key stands among the pairs */
    for (int t = 0; t < T; t++) id[t] = 0, target[t] = -1;
    for (int k = 0; k < pairs; k++) {
        const int other = d->rebind ? (int)(rng_next(&rng) % (uint64_t)(k + 1)) : k;
        if (other != k) pair[k] = pair[other];
        pair[other] = k;
    }
    for (int k = 0; k < (int)half - 1; k++) deck[k] = k + 1;
    for (int k = 0; k < places; k++) place[k] = k;
    for (int k = 0; k < pairs; k++, places--) {
        int pick = k + (int)(rng_next(&rng) % (half - 1 - (uint64_t)k)), key = deck[pick];
        int value = (int)(half + rng_next(&rng) % half);
        deck[pick] = deck[k];
        id[2 * pair[k]] = key;
        id[2 * pair[k] + 1] = value;
        if (k < again) {
            value = (int)(half + rng_next(&rng) % half);
            id[2 * (pairs + k)] = key;
            id[2 * (pairs + k) + 1] = value;
        }
        pick = draw_place(place, places, &rng);
        const int t = asked + 2 * place[pick];
        for (; pick < places - 1; pick++) place[pick] = place[pick + 1];
        id[t] = key;
        target[t] = value;
    }
}

/* Batch number `step` of B sequences. */
static void fill_batch(const Data *d, bool held_out, uint64_t step, int B, int T, int *id,
                       int *target) {
    int kinds = 0;
    while (d->pairs && d->pairs[kinds]) kinds++;
    PARALLEL
    for (int b = 0; b < B; b++) {
        int *const x = id + b * T, *const y = target + b * T;
        if (kinds) {
            mqar_sequence(d, held_out, step * B + b, d->pairs[b % kinds], T, x, y);
            continue;
        }
        int32_t *seq = checked(malloc((size_t)(T + 1) * sizeof *seq));
        fill_sequence(d, held_out, step * B + b, seq, T + 1);
        memcpy(x, seq, (size_t)T * sizeof *x);
        memcpy(y, seq + 1, (size_t)T * sizeof *y);
        free(seq);
    }
}

/* -- counting baselines -- */

/* An interpolated Kneser-Ney bigram and trigram, with one discount of 0.75 (source: Chen and
 * Goodman, 1999). Counts are taken from the sequences that the model was trained on, all in one
 * hash table. Of words u v w: how often TRI (u, v, w) and BI (v, w) were seen; how often
 * TRI_CONTEXT (u, v) and BI_CONTEXT v; how many different words, TRI_KINDS and BI_KINDS, followed
 * those; how many different u stood before (v, w), KINDS_BEFORE, and the sum of that over w. */
enum {
    TRI, BI, TRI_CONTEXT, BI_CONTEXT, TRI_KINDS, BI_KINDS, KINDS_BEFORE, KINDS_BEFORE_SUM, N_COUNTS
};
typedef struct { uint64_t key; uint32_t n; } Gram;              /* key 0: free */
typedef struct {
    uint64_t V;
    Gram *at;
    size_t slots, used;
    uint32_t *uni, uni_sum, uni_kinds;       /* different v before w, their sum; how many w */
} Counts;

static Counts counts_new(int V) {
    enum { SLOTS = 1 << 16 };
    return (Counts){ .V = (uint64_t)V, .slots = SLOTS, .at = checked(calloc(SLOTS, sizeof(Gram))),
                     .uni = checked(calloc((size_t)V, sizeof(uint32_t))) };
}
static void counts_free(Counts *c) {
    free(c->at);
    free(c->uni);
}

/* The place of a key, or a free one. */
static Gram *gram_at(const Counts *c, uint64_t key) {
    size_t s = mix_seed(key) & (c->slots - 1);
    while (c->at[s].key && c->at[s].key != key) s = (s + 1) & (c->slots - 1);
    return &c->at[s];
}
static uint64_t gram_key(const Counts *c, int which, uint64_t u, uint64_t v, uint64_t w) {
    return 1 + (uint64_t)which + N_COUNTS * (w + c->V * (v + c->V * u));
}

/* How often, as counted; words that a count has not are 0. */
static double counted(const Counts *c, int which, uint64_t u, uint64_t v, uint64_t w) {
    return gram_at(c, gram_key(c, which, u, v, w))->n;
}
/* Once more. Was it the first time? */
static bool count_one(Counts *c, int which, uint64_t u, uint64_t v, uint64_t w) {
    if (c->used * 2 >= c->slots) {
        const Counts old = *c;
        c->slots *= 2;
        c->at = checked(calloc(c->slots, sizeof *c->at));
        for (size_t i = 0; i < old.slots; i++)
            if (old.at[i].key) *gram_at(c, old.at[i].key) = old.at[i];
        free(old.at);
    }
    Gram *g = gram_at(c, gram_key(c, which, u, v, w));
    c->used += !g->key;
    g->key = gram_key(c, which, u, v, w);
    return g->n++ == 0;
}

/* Counts the n words of s. */
static void count_sequence(Counts *c, const int32_t *s, int n) {
    for (int t = 1; t < n; t++) {
        const uint64_t v = (uint64_t)s[t - 1], w = (uint64_t)s[t];
        if (count_one(c, BI, 0, v, w)) {
            count_one(c, BI_KINDS, 0, v, 0);
            c->uni_kinds += !c->uni[w]++;
            c->uni_sum++;
        }
        count_one(c, BI_CONTEXT, 0, v, 0);
        if (t < 2) continue;
        const uint64_t u = (uint64_t)s[t - 2];
        if (count_one(c, TRI, u, v, w)) {
            count_one(c, TRI_KINDS, u, v, 0);
            count_one(c, KINDS_BEFORE, 0, v, w);
            count_one(c, KINDS_BEFORE_SUM, 0, v, 0);
        }
        count_one(c, TRI_CONTEXT, u, v, 0);
    }
}

/* max(n - 0.75, 0) / total + 0.75 kinds / total * lower. */
static double discounted(double n, double kinds, double total, double lower) {
    return total > 0 ? (n > 0.75 ? n - 0.75 : 0) / total + 0.75 * kinds / total * lower : lower;
}

/* -ln p of the word s[t] after s[t - 1] (order 2), or after s[t - 2] s[t - 1] as well (order 3). */
static double count_nll(const Counts *c, const int32_t *s, int t, int order) {
    const uint64_t v = (uint64_t)s[t - 1], w = (uint64_t)s[t];
    const double kinds = counted(c, BI_KINDS, 0, v, 0);
    double p = discounted(c->uni[w], c->uni_kinds, c->uni_sum, 1.0 / (double)c->V);
    if (order == 2 || t < 2)
        return -log(discounted(counted(c, BI, 0, v, w), kinds, counted(c, BI_CONTEXT, 0, v, 0), p));
    const uint64_t u = (uint64_t)s[t - 2];
    p = discounted(counted(c, KINDS_BEFORE, 0, v, w), kinds, counted(c, KINDS_BEFORE_SUM, 0, v, 0), p);
    return -log(discounted(counted(c, TRI, u, v, w), counted(c, TRI_KINDS, u, v, 0),
                           counted(c, TRI_CONTEXT, u, v, 0), p));
}

/* ---- 13. files -----------------------------------------------------------------------------
 * GGUF version 3: keys, tensor table, data; all little-endian. A file is built in memory, written
 * under a temporary name, synced and renamed. Its rooms:
 *
 *   bytes and keys         put_.. appends to a file in memory, key_.. to the keys of one; how a
 *                          file begins
 *   the vocabulary         learned, as a file of its own, or copied from one
 *   tensors                in the types that a file may have
 *   the model              its keys, as a table, and the whole file
 *   checkpoints            what training needs to go on */

/* -- bytes and keys -- */

/* The low bytes of v, little-endian. */
static void put_int(Text *o, uint64_t v, int bytes) {
    for (int i = 0; i < bytes; i++) put(o, &(uint8_t){ (uint8_t)(v >> 8 * i) }, 1);
}
static void put_str(Text *o, const char *s, size_t n) {
    put_int(o, n, 8);
    put(o, s, n);
}
/* Zeros up to a multiple of `to` bytes. */
static void pad(Text *o, size_t to) {
    while (o->n % to) put(o, "", 1);
}

/* prefix: what the names of those that follow begin with. */
typedef struct { Text body; uint64_t n; char prefix[32]; } Keys;

/* The name and type of a key; its value is put behind them. */
static void key(Keys *k, const char *name, int type) {
    char full[96];
    snprintf(full, sizeof full, "%s%s", k->prefix, name);
    put_str(&k->body, full, strlen(full));
    put_int(&k->body, (uint64_t)type, 4);
    k->n++;
}
/* The head of an array; its n elements are put behind it. */
static void key_array(Keys *k, const char *name, int type, int n) {
    key(k, name, GGUF_ARR);
    put_int(&k->body, (uint64_t)type, 4);
    put_int(&k->body, (uint64_t)n, 8);
}

/* A key: whether it is in this file, and its value, a number n, the text at, or n ints there. */
typedef struct { bool here; const char *name; int type; double n; const void *at; } KeyRow;
static void put_keys(Keys *k, const KeyRow *row, size_t n_rows) {
    for (const KeyRow *end = row + n_rows; row < end; row++) {
        const int *ints = row->at, n = row->type == GGUF_ARR ? (int)row->n : 0;
        if (!row->here) continue;
        if (n) key_array(k, row->name, GGUF_I32, n);
        else key(k, row->name, row->type);
        for (int i = 0; i < n; i++) put_int(&k->body, (uint64_t)ints[i], 4);
        if (row->type == GGUF_STR) put_str(&k->body, row->at, strlen(row->at));
        if (row->type == GGUF_F32) put_int(&k->body, as_bits((float)row->n), 4);
        if (row->type == GGUF_U32) put_int(&k->body, (uint64_t)row->n, 4);
        if (row->type == GGUF_BOOL) put_int(&k->body, (uint64_t)row->n, 1);
    }
}
#define PUT_KEYS(k, rows) put_keys(k, rows, sizeof rows / sizeof *rows)

/* From now on names begin with this and a dot. */
static void keys_of(Keys *k, const char *prefix) {
    snprintf(k->prefix, sizeof k->prefix, "%s.", prefix);
}

/* How a file begins: the keys, which are freed; a tensor table of n_tensors rows has to follow. */
static void put_header(Text *o, Keys *k, uint64_t n_tensors) {
    put(o, "GGUF", 4);
    put_int(o, 3, 4);
    put_int(o, n_tensors, 8);
    put_int(o, k->n, 8);
    put(o, k->body.s, k->body.n);
    text_free(&k->body);
}

/* -- the vocabulary -- */

static void keys_of_vocabulary(Keys *k) {
    static const KeyRow rows[] = {
        { true, "architecture", GGUF_STR, 0, "tokenizer" }, { true, "type", GGUF_STR, 0, "vocab" }
    };
    keys_of(k, "general");
    PUT_KEYS(k, rows);
}

/* The tokenizer.* keys of another file, byte for byte. */
static void copy_vocabulary(Keys *k, const Gguf *g) {
    for (uint64_t i = 0; i < g->n_keys; i++) {
        const GgufKey *from = &g->keys[i];
        const char *begin = from->key.s + from->key.n, *end = (const char *)from->value.p;
        if (from->key.n < 10 || memcmp(from->key.s, "tokenizer.", 10)) continue;
        if (from->value.type != GGUF_STR) end += from->value.n * gguf_width[from->value.type];
        else
            for (uint64_t s = 0; s < from->value.n; s++) end += 8 + read_u64((const uint8_t *)end);
        put_str(&k->body, from->key.s, from->key.n);
        put(&k->body, begin, (size_t)(end - begin));
        k->n++;
    }
}

/* The vocabulary as a file: 256 bytes, what was learned, and <|endoftext|> as the last token, which
 * begins every text. Pieces are cut as Qwen's tokenizers do ("qwen2"). */
static Text vocabulary_file(const BpeVocab *v) {
    const char *end = "<|endoftext|>";
    const int n = v->n_tokens;
    char text[2 * BPE_PIECE_MAX + 1], right[2 * BPE_PIECE_MAX + 1];
    const KeyRow first[] = {
        { true, "model", GGUF_STR, 0, "gpt2" }, { true, "pre", GGUF_STR, 0, "qwen2" }
    }, last[] = {
        { true, "bos_token_id", GGUF_U32, n, NULL }, { true, "eos_token_id", GGUF_U32, n, NULL },
        { true, "padding_token_id", GGUF_U32, n, NULL }, { true, "add_bos_token", GGUF_BOOL, 1, NULL }
    };
    Text file = {0};
    Keys k = {0};
    keys_of_vocabulary(&k);
    keys_of(&k, "tokenizer.ggml");
    PUT_KEYS(&k, first);
    key_array(&k, "tokens", GGUF_STR, n + 1);
    for (int i = 0; i < n; i++) put_str(&k.body, text, bpe_token_text(v, i, text));
    put_str(&k.body, end, strlen(end));
    key_array(&k, "token_type", GGUF_I32, n + 1);
    for (int i = 0; i <= n; i++) put_int(&k.body, i < n ? 1 : 3, 4);          /* normal, control */
    key_array(&k, "merges", GGUF_STR, n - 256);
    for (int i = 0; i < n - 256; i++) {
        size_t a = bpe_token_text(v, v->merges[i].left, text);
        size_t b = bpe_token_text(v, v->merges[i].right, right);
        put_int(&k.body, a + 1 + b, 8);
        put(&k.body, text, a);
        put(&k.body, " ", 1);
        put(&k.body, right, b);
    }
    PUT_KEYS(&k, last);
    put_header(&file, &k, 0);
    return file;
}

/* A file in memory, to be read. */
static Mapping mapping_of(const Text *file) {
    return (Mapping){ (const uint8_t *)file->s, file->n, 0 };
}

/* A vocabulary of vocab_size tokens, <|endoftext|> among them, as a file in memory. One of bytes
 * alone lends its rules for cutting text into pieces. */
static int learn_vocabulary(Mapping *file, Str text, int vocab_size, char *err) {
    BpeVocab v = {0};
    Tokenizer *t = NULL;
    bpe_bytes(&v, vocab_size - 1);
    Text small = vocabulary_file(&v);
    Gguf g = { .map = mapping_of(&small) };
    int code = gguf_read(&g, err);
    if (!code) code = tokenizer_new(&t, &g, err);
    if (!code) {
        bpe_train(&v, t, text, vocab_size - 1);
        const Text learned = vocabulary_file(&v);
        *file = mapping_of(&learned);
    }
    bpe_free(&v);
    if (t) tokenizer_free(t);
    gguf_close(&g);
    text_free(&small);
    return code;
}

/* -- tensors -- */

/* float32 to float16 and bfloat16, nearest, ties to even; beyond 65504 a float16 is infinite. */
static uint16_t half_of(float f) {
    const uint32_t u = as_bits(f);
    if ((u & 0x7fffffff) >= 0x477ff000 && f == f) return (uint16_t)(0x7c00 | (u >> 16 & 0x8000));
    return to_f16(f);
}
static uint16_t bfloat_of(float f) {
    const uint32_t u = as_bits(f);
    return (uint16_t)(f != f ? u >> 16 | 0x40 : (u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* 32 numbers as Q8_0: a scale and a signed byte each; the largest becomes 127 or -127. */
static void put_q8_0(Text *o, const float *x) {
    float most = 0;
    for (int i = 0; i < 32; i++) most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    put_int(o, half_of(most / 127), 2);
    for (int i = 0; i < 32; i++)
        put_int(o, (uint8_t)(int8_t)(most > 0 ? roundf(x[i] * (1 / (most / 127))) : 0), 1);
}

/* 32 numbers as Q4_0: a scale and 4 bits q each, which stand for scale (q - 8). The one that is
 * farthest from zero becomes exactly -8, so the scale may be negative; its opposite, which would be
 * 8, becomes 7. Byte i has i in its low half, i + 16 in its high one. */
static void put_q4_0(Text *o, const float *x) {
    float most = 0;
    for (int i = 0; i < 32; i++) most = fabsf(x[i]) > fabsf(most) ? x[i] : most;
    const float scale = most / -8, inverse = scale != 0 ? 1 / scale : 0;
    uint8_t q[32];
    for (int i = 0; i < 32; i++) {
        const float steps = (float)((double)x[i] * (double)inverse);  /* rounded as the reference is: */
        const float at = (float)((double)steps + 8.5);                /* twice */
        q[i] = (uint8_t)(at < 15 ? at : 15);
    }
    put_int(o, half_of(scale), 2);
    for (int i = 0; i < 16; i++) put_int(o, (uint8_t)(q[i] | q[i + 16] << 4), 1);
}

/* n numbers, the row of a tensor, in the type of the file; for Q8_0 and Q4_0 n is a multiple of
 * 32. */
static void put_row(Text *o, const float *x, int n, int type) {
    for (int i = 0; i < n; i += types[type].elems)
        if (type == F32) put_int(o, as_bits(x[i]), 4);
        else if (type == Q8_0) put_q8_0(o, x + i);
        else if (type == Q4_0) put_q4_0(o, x + i);
        else put_int(o, type == F16 ? half_of(x[i]) : bfloat_of(x[i]), 2);
}

/* The type that a tensor has in a file whose matrices are of `type`. Rows that do not fill blocks
 * of 32 become float16. The embedding, which is also the output matrix, gets 8 bits in a q4_0 file:
 * its rounding is seen directly in the logits. */
static int type_of(const TinyTensor *t, int type) {
    const int row = t->flags & TRANSPOSED ? t->rows : t->cols;
    if (!t->rows || t->flags & KEEP_F32) return F32;
    if (row % types[type].elems) return F16;
    return type == Q4_0 && !strcmp(t->name, "token_embd.weight") ? Q8_0 : type;
}

/* A tensor as it lies in the file: TRANSPOSED ones are turned. */
static void put_tensor(Text *o, const Tiny *m, const TinyTensor *t, int type) {
    const bool turn = t->flags & TRANSPOSED;
    const int rows = turn ? t->cols : t->rows ? t->rows : 1, cols = turn ? t->rows : t->cols;
    float *row = checked(malloc((size_t)cols * sizeof *row));
    for (int i = 0; i < rows; i++) {
        for (int j = 0; j < cols; j++) {
            const size_t from = turn ? (size_t)j * rows + i : (size_t)i * cols + j;
            const real x = m->params[t->at + from];
            row[j] = (float)(t->flags & NEGATIVE_EXP ? -exp(x)
                             : t->flags & SIGMOID ? sigmoid1(x) : x);
        }
        put_row(o, row, cols, type);
    }
    pad(o, 32);
    free(row);
}

/* Its row of the tensor table. */
static void put_tensor_row(Text *o, const TinyTensor *t, int type, size_t offset) {
    const bool turn = t->flags & TRANSPOSED;
    const int rows = turn ? t->cols : t->rows, cols = turn ? t->rows : t->cols;
    const int sizes[] = { cols, rows / t->parts, t->parts }, n = t->rows ? 2 + (t->parts > 1) : 1;
    put_str(o, t->name, strlen(t->name));
    put_int(o, (uint64_t)n, 4);
    for (int i = 0; i < n; i++) put_int(o, (uint64_t)sizes[i], 8);
    put_int(o, (uint64_t)type, 4);
    put_int(o, offset, 8);
}

/* -- the model -- */

/* The keys of its architecture: a row each, with where it is. */
static void keys_of_model(Keys *k, const TinyConfig *c) {
    const MixerKind *kind = &mixer_kinds[c->mixer];
    const bool qwen = kind->qwen, ssm = qwen || is_mamba(kind), rwkv = kind->rwkv;
    const bool fla = !ssm && !rwkv;              /* as in flash-linear-attention */
    const bool between = !qwen && (c->interval || c->mtp);      /* softmax layers of --hybrid */
    const Act gate = fla ? gate_of(kind) : F_ID;
    const int L = c->n_layers + c->mtp, H = c->n_heads, third = ceil_div(c->n_rot / 2, 3);
    const int second = least(third, c->n_rot / 2 - third);
    const int sections[4] = { third, second, c->n_rot / 2 - third - second, 0 };
    int q_heads[MAX_LAYERS + 1], kv_heads[MAX_LAYERS + 1];      /* 0 marks a linear layer */
    for (int l = 0; l < L; l++) {
        q_heads[l] = attends(c, l) ? c->q_heads : 0;
        kv_heads[l] = attends(c, l) ? c->kv_heads : 0;
    }
    const KeyRow rows[] = {
        { true, "block_count", GGUF_U32, L, NULL },
        { true, "context_length", GGUF_U32, c->seq_len, NULL },
        { true, "embedding_length", GGUF_U32, c->dim, NULL },
        { true, "feed_forward_length", GGUF_U32, c->hidden_dim, NULL },
        { true, "vocab_size", GGUF_U32, c->vocab_size, NULL },
        { rwkv, "attention.layer_norm_epsilon", GGUF_F32, c->eps, NULL },
        { !rwkv, "attention.layer_norm_rms_epsilon", GGUF_F32, c->eps, NULL },
        { qwen, "attention.head_count", GGUF_U32, c->q_heads, NULL },
        { qwen, "attention.head_count_kv", GGUF_U32, c->kv_heads, NULL },
        { qwen, "attention.key_length", GGUF_U32, c->head_dim, NULL },
        { qwen, "attention.value_length", GGUF_U32, c->head_dim, NULL },
        { qwen, "rope.freq_base", GGUF_F32, c->rope_base, NULL },
        { qwen, "rope.dimension_count", GGUF_U32, c->n_rot, NULL },
        { qwen, "rope.dimension_sections", GGUF_ARR, 4, sections },
        { qwen, "full_attention_interval", GGUF_U32, c->interval ? c->interval : L + 1, NULL },
        { c->mtp, "nextn_predict_layers", GGUF_U32, 1, NULL },
        { ssm, "ssm.conv_kernel", GGUF_U32, c->d_conv, NULL },
        { ssm, "ssm.state_size", GGUF_U32, c->dk, NULL },
        { ssm, "ssm.group_count", GGUF_U32, H, NULL },
        { ssm, "ssm.time_step_rank", GGUF_U32, H, NULL },
        { ssm, "ssm.inner_size", GGUF_U32, H * c->dv, NULL },
        { rwkv, "wkv.head_size", GGUF_U32, c->dk, NULL },
        { !ssm, "mixer.head_count", GGUF_U32, H, NULL },
        { fla, "mixer.head_count_kv", GGUF_U32, H, NULL },
        { fla, "mixer.key_length", GGUF_U32, c->dk, NULL },
        { !ssm, "mixer.value_length", GGUF_U32, c->dv, NULL },
        { rwkv, "mixer.layer_norm_epsilon", GGUF_F32, kind->norm_eps, NULL },
        { kind->rwkv == 7, "mixer.l2_norm_epsilon", GGUF_F32, 1e-6f, NULL },
        { fla, "mixer.conv_kernel", GGUF_U32, c->d_conv, NULL },
        { gate != F_ID, "mixer.output_gate", GGUF_STR, 0, gate == F_SIGMOID ? "sigmoid" : "swish" },
        { fla && kind->writes, "mixer.writes_per_token", GGUF_U32, kind->writes, NULL },
        { kind->law == slots_law, "mixer.slot_count", GGUF_U32, c->dk, NULL },
        { kind->elu, "mixer.feature_map", GGUF_STR, 0, "elu_plus_one" },
        { kind->unscaled, "mixer.scale", GGUF_F32, 1, NULL },
        { kind->rope, "mixer.rope_dimension_count", GGUF_U32, c->dk, NULL },
        { kind->rope, "mixer.rope_freq_base", GGUF_F32, c->rope_base, NULL },
        { fla && kind->norm_eps > 0, "mixer.layer_norm_rms_epsilon", GGUF_F32, kind->norm_eps, NULL },
        { kind->fade == FADE_SIGMOID, "mixer.decay_divisor", GGUF_F32, c->decay_divisor, NULL },
        { fla, "feed_forward_activation", GGUF_STR, 0, "swish" },
        { between, "attention.head_count", GGUF_ARR, L, q_heads },
        { between, "attention.head_count_kv", GGUF_ARR, L, kv_heads },
        { between, "rope.freq_base", GGUF_F32, c->rope_base, NULL },
        { between, "attention.key_length", GGUF_U32, c->head_dim, NULL },
    };
    keys_of(k, kind->arch);
    PUT_KEYS(k, rows);
}

/* The whole model as a GGUF file in memory. */
static Text model_file(const Tiny *m, const Gguf *vocab, int type, const char *name) {
    const KeyRow general[] = {
        { true, "architecture", GGUF_STR, 0, mixer_kinds[m->c.mixer].arch },
        { true, "type", GGUF_STR, 0, "model" },
        { true, "name", GGUF_STR, 0, name },
        { true, "quantization_version", GGUF_U32, 2, NULL },
        { true, "file_type", GGUF_U32, type == BF16 ? 32 : type == Q8_0 ? 7 : type, NULL },
        { true, "sampling.temp", GGUF_F32, 0.6f, NULL },
        { true, "sampling.top_p", GGUF_F32, 0.95f, NULL },
    };
    Keys k = {0};
    Text data = {0}, file = {0};
    size_t *offset = checked(calloc((size_t)m->n_tensors, sizeof *offset));
    // keys
    keys_of(&k, "general");
    PUT_KEYS(&k, general);
    keys_of_model(&k, &m->c);
    if (vocab) copy_vocabulary(&k, vocab);
    // the tensors, each from a multiple of 32 bytes on
    for (int n = 0; n < m->n_tensors; n++) {
        offset[n] = data.n;
        put_tensor(&data, m, &m->tensors[n], type_of(&m->tensors[n], type));
    }
    // the file
    put_header(&file, &k, (uint64_t)m->n_tensors);
    for (int n = 0; n < m->n_tensors; n++)
        put_tensor_row(&file, &m->tensors[n], type_of(&m->tensors[n], type), offset[n]);
    pad(&file, 32);
    put(&file, data.s, data.n);
    text_free(&data);
    free(offset);
    return file;
}

typedef struct { const void *p; size_t n; } Part;

/* The parts of a file, one behind the other, to path or not at all. Without `replace` a file that
 * has the name stays as it is: the new one gets a free name, which is left in path (PATH_LEN
 * bytes). */
static int write_parts(char *path, bool replace, const Part *part, int n, char *err) {
    Temporary temporary;
    if (!replace && is_there(path) && free_name(path))
        return fail(err, GLA_IO, "%s: is there already", path);
    FILE *f = open_temporary(temporary, path, err);
    if (!f) return GLA_IO;
    for (int i = 0; i < n; i++)
        if (part[i].n) fwrite(part[i].p, 1, part[i].n, f);
    return replace ? commit_file(f, temporary, path, err) : commit_new(f, temporary, path, err);
}

/* The n bytes of a small file; NULL: it cannot be read, or has not n of them. Freed by the
 * caller. */
static uint8_t *read_bytes(const char *path, uint64_t n) {
    uint64_t size = 0;
    uint8_t *bytes = NULL;
    FILE *f = open_regular(path, 1, &size, NULL);
    if (f && size == n && n < SIZE_MAX / 2) {
        bytes = checked(malloc((size_t)n + 1));
        if (fread(bytes, 1, (size_t)n, f) != n || fgetc(f) != EOF) {
            free(bytes);
            bytes = NULL;
        }
    }
    if (f) fclose(f);
    return bytes;
}

/* -- checkpoints -- */

/* MODEL.ckpt: what training needs to go on as if it had not stopped. Only the program that wrote
 * it, on the same settings, text and vocabulary, takes it. Behind this head: params, mean, square.
 * */
typedef struct {
    char magic[8];
    uint64_t fingerprint, n_params;          /* of settings, text and vocabulary; reals of each */
    int64_t step, steps;                     /* steps done, and how many there were to be */
    double seconds, minutes;                 /* that they took; --minutes, or 0 */
    uint64_t model_bytes, model_sum;         /* of the model file that was left beside it; 0: none */
    uint64_t body_sum, head_sum;             /* of what follows, of what stands before */
} Checkpoint;

static uint64_t head_sum(const Checkpoint *c) {
    return hash_bytes(HASH_SEED, c, offsetof(Checkpoint, head_sum));
}

/* Sum of three arrays of n reals. */
static uint64_t body_sum(const real *params, const real *mean, const real *square, size_t n) {
    uint64_t h = hash_bytes(HASH_SEED, params, n * sizeof *params);
    h = hash_bytes(h, mean, n * sizeof *mean);
    return hash_bytes(h, square, n * sizeof *square);
}

/* c with its magic, size and sums, and the model behind it. replace, path: as in write_parts. */
static int save_checkpoint(char *path, bool replace, const Tiny *m, Checkpoint c, char *err) {
    const size_t n = m->n_params, bytes = n * sizeof(real);
    memcpy(c.magic, "GLATRN02", 8);
    c.n_params = n;
    c.body_sum = body_sum(m->params, m->mean, m->square, n);
    c.head_sum = head_sum(&c);
    if (bytes > (size_t)16 << 20) wait_begin("saving a checkpoint", NULL, NULL, 0);
    const Part part[] = {
        { &c, sizeof c }, { m->params, bytes }, { m->mean, bytes }, { m->square, bytes }
    };
    int code = write_parts(path, replace, part, 4, err);
    wait_end();
    return code;
}

/* Opens a checkpoint and reads its head, in which everything is in its range then; NULL with a
 * sentence in err. */
static FILE *open_checkpoint(const char *path, Checkpoint *c, char *err) {
    uint64_t size;
    FILE *f = open_regular(path, 1, &size, err);
    if (!f) return NULL;
    const bool head = fread(c, sizeof *c, 1, f) == 1;
    const bool times = head && c->seconds >= 0 && c->seconds < 1e12
                       && c->minutes >= 0 && c->minutes <= 1e6;
    int bad = 0;
    if (!head || memcmp(c->magic, "GLATRN", 6))
        bad = fail(err, GLA_FORMAT, "%s: not a checkpoint of train_tiny", path);
    else if (memcmp(c->magic, "GLATRN02", 8))
        bad = fail(err, GLA_UNSUPPORTED, "%s: a checkpoint of another version of train_tiny", path);
    else if (c->head_sum != head_sum(c))
        bad = fail(err, GLA_FORMAT, "%s: is damaged, its head has another sum", path);
    else if (!c->n_params || c->n_params > SIZE_MAX / 8 / sizeof(real)
             || size != sizeof *c + 3 * c->n_params * sizeof(real))
        bad = fail(err, GLA_FORMAT, "%s: %llu bytes are not what its head says; "
                   "it is cut short or too long", path, (unsigned long long)size);
    else if (c->step < 0 || c->step > (int64_t)1e15 || c->steps < 1 || c->steps > (int64_t)1e12
             || !times)
        bad = fail(err, GLA_FORMAT, "%s: is damaged, at step %lld of %lld after %g seconds",
                   path, (long long)c->step, (long long)c->steps, c->seconds);
    if (bad) fclose(f), f = NULL;
    return f;
}

/* Are all n finite, and none below least_value? */
static bool all_finite(const real *x, size_t n, real least_value) {
    for (size_t i = 0; i < n; i++)
        if (!(x[i] >= least_value && x[i] <= (real)3e38)) return false;
    return true;
}

/* Into m, and the head into c; m stays as it is when the file is damaged or not of this run. */
static int load_checkpoint(const char *path, Tiny *m, Checkpoint *c, uint64_t fingerprint,
                           char *err) {
    FILE *f = open_checkpoint(path, c, err);
    if (!f) return GLA_FORMAT;
    const size_t n = m->n_params;
    if (c->fingerprint != fingerprint || c->n_params != n) {
        fclose(f);
        return fail(err, GLA_INPUT, "%s: was left by a run with other options, text or vocabulary",
                    path);
    }
    real *room = checked(malloc(3 * n * sizeof *room));
    int code = GLA_OK;
    if (fread(room, sizeof *room, 3 * n, f) != 3 * n)
        code = fail(err, GLA_IO, "%s: cannot read", path);
    else if (c->body_sum != body_sum(room, room + n, room + 2 * n, n))
        code = fail(err, GLA_FORMAT, "%s: is damaged, its weights have another sum", path);
    else if (!all_finite(room, 2 * n, (real)-3e38) || !all_finite(room + 2 * n, n, 0))
        code = fail(err, GLA_FORMAT, "%s: is damaged, it has weights that are no finite numbers", path);
    else {
        memcpy(m->params, room, n * sizeof *room);
        memcpy(m->mean, room + n, 2 * n * sizeof *room);
    }
    fclose(f);
    free(room);
    return code;
}

/* Was the file left by the run of this checkpoint? */
static bool is_own_model(const char *path, const Checkpoint *c) {
    uint8_t *bytes = c->model_bytes ? read_bytes(path, c->model_bytes) : NULL;
    const bool own = bytes && c->model_sum == hash_bytes(HASH_SEED, bytes, (size_t)c->model_bytes);
    free(bytes);
    return own;
}

/* ---- 14. training, command line ------------------------------------------------------------
 * What the user sees. Progress goes to standard error, the result and a sample to standard output.
 * Its rooms:
 *
 *   options                  their rows, which run.c reads, and the sizes that follow from them
 *   text and vocabulary      read or made up, learned, encoded
 *   a sample                 from the finished file, by way of run.c
 *   training                 the held-out loss, and the loop: read train_steps first
 *   reports                  what was reached
 *   main                     from the options to the exit */

/* -- options -- */

/* A field for each option that has a value here: 0 or NULL where it was not given and has no usual
 * one. */
typedef struct {
    const char *text, *task, *out, *mixer, *hybrid, *vocabulary, *vocabulary_out, *prompt;
    const char *without;
    int dim, layers, heads, key_dim, value_dim, conv, hidden, vocab, context, batch, threads;
    int type, mtp, resume, force, quiet;     /* type: of tensors, in GGUF */
    int64_t steps;
    uint64_t seed;
    double lr, decay, clip, minutes, half_life;
    const Options *words;                    /* as they stand in argv */
} TrainOptions;

/* The second column: what it has an effect on. With the other it is misuse, rather than ignored. In
 * the order of the help page; %s there is what is usual. */
enum { TEXTS = 1, TASKS = 2, BOTH = 3 };
#define TRAIN_OPTIONS(X) \
    X(T_TEXT, 0, "text", BOTH, "FILE", NULL, A_FILE(INPUT), TO(text)) \
    X(T_OUT, 'o', "out", BOTH, "FILE", "the model (named after the text, in this folder: book.txt makes book.bin; without a text stories.bin)", A_FILE(OUTPUT), TO(out)) \
    X(T_FORCE, 0, "force", BOTH, NULL, "replace files that are there already", A_FLAG, TO(force)) \
    X(T_MIXER, 0, "mixer", BOTH, "NAME", "one of those below (%s)", A_TEXT("gated-delta"), TO(mixer)) \
    X(T_HYBRID, 0, "hybrid", BOTH, "N:1", "N layers of the mixer, then one of softmax attention, and so on (gated-delta 3:1, the others none)", A_TEXT(NULL), TO(hybrid)) \
    X(T_MTP, 0, "mtp", TEXTS, NULL, "with a block for multi-token prediction, from which run --draft mtp makes drafts: one more layer", A_FLAG, TO(mtp)) \
    X(T_TASK, 0, "task", TASKS, "NAME", \
      "learn and test associative recall instead of a text, with 1 layer of 64, 1 head of 16 x 64, 4 taps, batch 32, " \
      "1000 steps, lr 0.01, half-life 200; with rebind half of the keys get a second value", A_WORD("mqar rebind")) \
    X(T_HALF_LIFE, 0, "half-life", BOTH, "N", \
      "tokens after which a new model has half forgotten, for all decays but those of lightnet and abc; " \
      "0: as each mixer usually begins (0, with --task 200)", A_REAL(NULL, 0, 1e9), TO(half_life)) \
    X(T_WITHOUT, 0, "without", TASKS, "PART", \
      "with --task, to compare: leaves out decay (all are 1), map (of q and k), rotation or gate (of the output), " \
      "or several: map,gate", A_TEXT(NULL), TO(without)) \
    X(T_STEPS, 0, "steps", BOTH, "N", "optimiser steps (%s; 3000 with a text)", A_ROUND("12000", 1, 1e12), TO(steps)) \
    X(T_MINUTES, 0, "minutes", BOTH, "M", "stop after so many minutes instead, at the cost of repeatability; with --resume so many more", A_REAL(NULL, 0.01, 1e6), TO(minutes)) \
    X(T_DIM, 0, "dim", BOTH, "N", "model width, a multiple of 32 (%s)", A_ROUND("128", 32, 4096), TO(dim)) \
    X(T_LAYERS, 0, "layers", BOTH, "N", "layers (%s)", A_ROUND("4", 1, MAX_LAYERS), TO(layers)) \
    X(T_HEADS, 0, "heads", BOTH, "N", "heads of the linear layers (dim / value width)", A_ROUND(NULL, 1, 256), TO(heads)) \
    X(T_KEY_DIM, 0, "key-dim", BOTH, "N", "key width of such a head, and slots of gsa and abc, a multiple of 16 up to 128 (32)", A_ROUND(NULL, 16, 128), TO(key_dim)) \
    X(T_VALUE_DIM, 0, "value-dim", BOTH, "N", "value width of such a head, a multiple of 16 (32, gla 64)", A_ROUND(NULL, 16, 256), TO(value_dim)) \
    X(T_CONV, 0, "conv", BOTH, "N", "taps of the short convolution, 0: none (by mixer)", A_ROUND(NULL, 0, 8), TO(conv)) \
    X(T_HIDDEN, 0, "hidden", BOTH, "N", "width of the feed-forward, a multiple of 32 (8/3 dim)", A_ROUND(NULL, 32, 16384), TO(hidden)) \
    X(T_VOCAB, 0, "vocab", TEXTS, "N", "tokens to learn, 257 at least (%s)", A_ROUND("1536", 257, 65536), TO(vocab)) \
    X(T_CONTEXT, 0, "context", TEXTS, "N", "tokens per sequence (%s)", A_ROUND("256", 16, 8192), TO(context)) \
    X(T_BATCH, 0, "batch", BOTH, "N", "sequences per step (%s)", A_ROUND("8", 1, 4096), TO(batch)) \
    X(T_LR, 0, "lr", BOTH, "X", "highest learning rate, after the warm-up (%s)", A_REAL("0.008", 0, 1), TO(lr)) \
    X(T_DECAY, 0, "decay", BOTH, "X", "weight decay of the matrices (%s)", A_REAL("0.1", 0, 10), TO(decay)) \
    X(T_CLIP, 0, "clip", BOTH, "X", "largest norm of the gradient, 0 = any (%s)", A_REAL("1", 0, 1e9), TO(clip)) \
    X(T_SEED, 0, "seed", BOTH, "N", "same seed, same model, whatever the number of threads (%s)", A_SEED, .usual = "0", TO(seed)) \
    X(T_TYPE, 0, "type", BOTH, "NAME", "type of the matrices in the file; q4_0 keeps the embedding in q8_0 (%s)", A_WORD("f32 f16 bf16 q8_0 q4_0"), .usual = "q8_0") \
    X(T_VOCABULARY, 'z', "vocabulary", TEXTS, "FILE", "use this vocabulary instead of learning one (a GGUF file with tokenizer.* keys)", A_FILE(INPUT), TO(vocabulary)) \
    X(T_TOKENIZER, 0, "tokenizer", TEXTS, "FILE", "write the vocabulary there as well", A_FILE(OUTPUT), TO(vocabulary_out)) \
    X(T_PROMPT, 'i', "prompt", TEXTS, "TEXT", "beginning of the sample at the end (Once upon a time; none with a text)", A_TEXT(NULL), TO(prompt)) \
    X(T_RESUME, 0, "resume", BOTH, NULL, \
      "go on from FILE.ckpt, with the same options, to where that run was to end; " \
      "a larger --steps, or --minutes from now, goes further", A_FLAG, TO(resume)) \
    X(T_THREADS, 'j', "threads", BOTH, "N", "threads (all cores)", A_ROUND(NULL, 1, 1024), TO(threads)) \
    X(T_QUIET, 0, "quiet", BOTH, NULL, "no progress", A_FLAG, TO(quiet)) \
    X(T_HELP, 'h', "help", BOTH, NULL, "this page", A_FLAG)
#define TO(field) INTO(TrainOptions, field)
enum { TRAIN_OPTIONS(OPTION_ID) N_TRAIN_OPTIONS };
static const Option train_options[N_TRAIN_OPTIONS] = { TRAIN_OPTIONS(OPTION_ROW) };

/* What other programs call them. */
static const Alias train_aliases[] = {
    { "--output --outfile", LIKE, T_OUT, NULL },
    { "--outtype --dtype", LIKE, T_TYPE, NULL },
    { "--learning-rate --lr-decay", LIKE, T_LR, NULL },
    { "--lr-decay-iters --iters --iterations --epochs --epoch --train-epochs", LIKE, T_STEPS, NULL },
    { "--weight-decay --wd", LIKE, T_DECAY, NULL },
    { "--grad-clip --max-grad-norm", LIKE, T_CLIP, NULL },
    { "--ctx --ctx-size --seq-len --seq-length --length --block-size", LIKE, T_CONTEXT, NULL },
    { "--batch-size", LIKE, T_BATCH, NULL },
    { "--embd --d-model --hidden-size --width", LIKE, T_DIM, NULL },
    { "--depth --hidden-layers", LIKE, T_LAYERS, NULL },
    { "--attention-heads", LIKE, T_HEADS, NULL },
    { "--intermediate-size --d-ff --ffn-dim", LIKE, T_HIDDEN, NULL },
    { "--checkpoint --continue", LIKE, T_RESUME, NULL },
    { "--overwrite", LIKE, T_FORCE, NULL },
};

static const Syntax train_syntax = {
    .option = train_options, .n_options = N_TRAIN_OPTIONS,
    .alias = train_aliases, .n_aliases = sizeof train_aliases / sizeof *train_aliases,
    .modes = "", .plain = T_TEXT
};

/* What is usual with --task instead. */
static const struct { int option; const char *value; } usual_of_tasks[] = {
    { T_DIM, "64" }, { T_LAYERS, "1" }, { T_HEADS, "1" }, { T_KEY_DIM, "16" }, { T_VALUE_DIM, "64" },
    { T_BATCH, "32" }, { T_STEPS, "1000" }, { T_CONV, "4" }, { T_LR, "0.01" }, { T_HALF_LIFE, "200" },
};

static bool was_given(const TrainOptions *o, int option) { return given(o->words, option); }

/* The options that were given, and what is usual where they were not. */
static TrainOptions train_options_of(Options *words) {
    TrainOptions o = { .task = text_of(words, T_TASK), .conv = -1, .words = words };
    const size_t n = sizeof usual_of_tasks / sizeof *usual_of_tasks;
    for (size_t i = 0; i < n && o.task; i++) {
        const int option = usual_of_tasks[i].option;
        if (given(words, option)) continue;
        set_option(words, option, usual_of_tasks[i].value);
        words->value[option].given = 0;
    }
    fill_fields(&o, words);
    if (o.task) o.vocab = 128, o.context = 64;
    o.type = (int[]){ F32, F16, BF16, Q8_0, Q4_0 }[whole_of(words, T_TYPE)];
    return o;
}

static void print_train_help(void) {
    printf("usage: ./train_tiny [TEXT] [options]\n\n"
           "TEXT is a UTF-8 file, or - for standard input; without one, made-up stories.\n\n");
    print_options(&train_syntax, 24, 80);
    printf("\nmixers (--mixer takes their names in files, too):\n");
    for (const MixerKind *k = mixer_kinds; k < mixer_kinds + N_KINDS; k++) {
        char text[512];
        const bool other = strcmp(k->name, k->arch) && k == &mixer_kinds[mixer_named(k->arch)];
        snprintf(text, sizeof text, "%s%s%s", k->about, other ? "; in files " : "",
                 other ? k->arch : "");
        print_row(k->name, text, 24, 80);
    }
    printf("\nThe report and a sample go to standard output, progress to standard error.\n"
           "Exit: 0 done or stopped with a checkpoint, 1 failed, 2 misused.\n");
}

/* Whether the options go together, and each has an effect. */
static void check_train_options(const TrainOptions *o) {
    static const Rule rules[] = { { T_WITHOUT, EXCLUDES, T_OUT }, { T_VOCAB, EXCLUDES, T_VOCABULARY },
                                  { T_STEPS, EXCLUDES, T_MINUTES } };
    for (int i = 0; i < N_TRAIN_OPTIONS; i++)
        if (was_given(o, i) && !(train_options[i].modes & (o->task ? TASKS : TEXTS)))
            misuse("--%s %s", train_options[i].name,
                   o->task ? "does not go with --task, which makes its own sequences"
                           : "goes with --task only");
    if (o->task && o->text)
        misuse("--task makes its own sequences; it does not go with the text %s", o->text);
    if (was_given(o, T_TYPE) && o->task && !o->out)
        misuse("--type is of a file; with --task it goes with --out only");
    check_rules(o->words, rules, sizeof rules / sizeof *rules);
}

/* NO_* of a list "decay,gate", or -1. */
enum { N_PARTS = 4 };
#define PARTS "decay map rotation gate"
static int parts_left_out(const char *list) {
    int parts = 0;
    for (;; list++) {
        char name[16];
        const size_t n = strcspn(list, ",");
        snprintf(name, sizeof name, "%.*s", (int)n, list);
        const int part = find_word(PARTS, name);
        if (part < 0) return -1;
        parts |= 1 << part;
        list += n;
        if (!*list) return parts;
    }
}

/* The NO_* that make sense for a mixer. A decay that says what is written, too, has to stay, and so
 * have gates that are more than a factor. */
static int parts_of(const MixerKind *k) {
    if (!k->law) return 0;
    const bool writes_rest = k->law == rest_law || k->law == slots_law;
    return (k->fade != FADE_NEVER && !writes_rest ? NO_DECAY : 0)
           | (mixer_of(k)->front.norm != QK_L2 && map_of(k) != F_ID ? NO_MAP : 0)
           | (k->rope ? NO_ROTATION : 0)
           | (gate_of(k) != F_ID && !is_narrow(k, 'z') && !is_mamba(k) ? NO_GATE : 0);
}

/* The row of mixer_kinds that --mixer names. */
static int mixer_given(const TrainOptions *o) {
    const int mixer = mixer_named(o->mixer);
    if (mixer < N_KINDS) return mixer;
    Near near = { .what = o->mixer };
    char said[80];
    for (int i = 0; i < N_KINDS; i++) {
        near_word(&near, mixer_kinds[i].name, WORD_LEN, NULL);
        near_word(&near, mixer_kinds[i].arch, WORD_LEN, NULL);
    }
    misuse("--mixer is one of the names that --help lists, not %.100s%s", o->mixer,
           meant(said, &near, ""));
}

/* N of --hybrid N:1; 0: it was not given. */
static int hybrid_of(const TrainOptions *o) {
    int every = 0, one = 0;
    char end;
    if (o->hybrid && (sscanf(o->hybrid, "%d:%d%c", &every, &one, &end) != 2
                      || every < 1 || every > 255 || one != 1))
        misuse("--hybrid is N:1, N linear layers for each of softmax attention, not %s", o->hybrid);
    return every;
}

/* What cannot be: a row each, of which the first that is wrong is said. */
static void check_sizes(const TrainOptions *o, const MixerKind *k, int without) {
    const bool soft = k == &mixer_kinds[SOFTMAX], alone = is_mamba(k) && !o->hybrid;
    const bool half_life = was_given(o, T_HALF_LIFE);
    const int silu = k->law ? mixer_of(k)->front.silu : SILU_NEVER;
    const struct { bool wrong, of_mixer; const char *what; } rules[] = {
        { o->dim % 32, false, "--dim must be a multiple of 32" },
        { o->hidden % 32, false, "--hidden must be a multiple of 32" },
        { o->key_dim % 16 || o->value_dim % 16, false, "--key-dim and --value-dim must be multiples of 16" },
        { o->half_life > 0 && o->half_life < 1, false, "--half-life is 0, or one token at least" },
        { o->hybrid && soft, true, "--hybrid does not go" },
        { hybrid_of(o) >= o->layers, false, "--layers are too few for a layer of softmax attention with --hybrid" },
        /* in run's files only Mamba-2 has none */
        { o->task && o->out && !o->hidden && !alone, true, "--out needs a feed-forward network (--hidden)" },
        { !o->conv && silu != SILU_NEVER && silu != SILU_CONV, true, "--conv 0 does not go" },
        { o->half_life > 0 && o->conv > 0 && k->fade == FADE_FORGET && o->out, true,
          "--out needs --half-life 0 or --conv 0, since a file has no bias behind that convolution," },
        /* it sees the token before without one */
        { o->conv > 0 && k->rwkv && !o->task, true, "--conv does not go" },
        { o->hidden && alone, true, "--hidden does not go" },    /* a layer is its mixer alone */
        { soft && (was_given(o, T_HEADS) || was_given(o, T_KEY_DIM) || was_given(o, T_VALUE_DIM)), true,
          "--heads, --key-dim and --value-dim are of linear layers and do not go" },
        { half_life && !k->rwkv && (k->fade == FADE_NEVER || k->fade == FADE_SUM), true, "--half-life does not go" },
        { half_life && without & NO_DECAY, false, "--half-life does not go with --without decay" },
        { o->conv > 0 && soft && o->out, true, "--conv is not written to files" },
        { o->mtp && (k->rwkv || alone), true, "--mtp does not go" }, /* it has a layer of another kind */
    };
    if (without < 0)
        misuse("--without is %s, or several with commas between, not %s", PARTS, o->without);
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++)
        if (rules[i].wrong)
            misuse("%s%s%s", rules[i].what, rules[i].of_mixer ? " with --mixer " : "",
                   rules[i].of_mixer ? o->mixer : "");
    for (int i = 0, n; i < N_PARTS; i++) {
        const char *part;
        n = word_at(PARTS, i, &part);
        if (without & ~parts_of(k) & 1 << i)
            misuse("--without %.*s does not go with --mixer %s", n, part, o->mixer);
    }
}

/* The sizes that follow from the options. */
static TinyConfig configure(const TrainOptions *o) {
    const int mixer = mixer_given(o), without = o->without ? parts_left_out(o->without) : 0;
    const MixerKind *k = &mixer_kinds[mixer];
    const int heads = o->dim / 32;
    check_sizes(o, k, without);
    TinyConfig c = {
        .mixer = mixer,
        .dim = o->dim,
        .hidden_dim = (is_mamba(k) && !o->hybrid) || (o->task && !o->hidden) ? 0
                      : o->hidden ? o->hidden : (o->dim * 8 / 3 + 31) / 32 * 32,
        .n_layers = o->layers,
        .vocab_size = o->vocab,
        .seq_len = o->context,
        .d_conv = o->conv >= 0 ? o->conv : k->d_conv,
        .dk = o->key_dim ? o->key_dim : 32,
        .dv = o->value_dim ? o->value_dim : mixer == GLA && o->dim % 64 == 0 ? 64 : 32,
        .mtp = o->mtp,
        .interval = o->hybrid ? hybrid_of(o) + 1 : mixer == SOFTMAX ? 1 : mixer == GATED_DELTA ? 4 : 0,
        .q_heads = heads,
        .kv_heads = heads % 2 == 0 ? heads / 2 : heads % 3 == 0 ? heads / 3 : 1,
        .head_dim = 32,
        .n_rot = k->qwen ? 16 : 32,
        .gate_rank = 16,
        .eps = k->rwkv ? 1e-5f : 1e-6f,
        .rope_base = 10000,
        .decay_divisor = 16,
        .without = (unsigned)without,
        .half_life = o->half_life
    };
    c.n_heads = o->heads ? o->heads : o->dim / c.dv > 0 ? o->dim / c.dv : 1;
    if (k->law && is_narrow(k, 'z')) c.gate_rank = c.dv;
    return c;
}

/* -- text and vocabulary -- */

enum { MB = 1 << 20, FILE_MAX_MB = 1024, PIPE_MAX_MB = 256 };     /* of a text */

/* Begins with the byte order mark of UTF-16? */
static bool is_utf16(const Text *t) {
    return t->n > 1 && (!memcmp(t->s, "\xff\xfe", 2) || !memcmp(t->s, "\xfe\xff", 2));
}

/* The whole text; the program ends when it cannot be had. */
static Text read_text(const char *path) {
    char err[GLA_ERR];
    const bool piped = !strcmp(path, "-");
    FILE *f = piped ? stdin : open_text(path, err);
    if (!f) give_up("%s", err);
    const bool regular = !file_kind(piped ? "/dev/stdin" : path);
    const int64_t most = (int64_t)(regular ? FILE_MAX_MB : PIPE_MAX_MB) * MB;
    char *part = checked(malloc(MB));
    Text t = {0};
    int64_t size = 0;
    bool zeros = false;
    if (piped) path = "standard input";
    wait_begin("reading the text", count_of, &size, most);
    for (size_t got = 1; got && !zeros && size <= most; size += (int64_t)got) {
        got = fread(part, 1, MB, f);
        zeros = memchr(part, 0, got) != NULL;
        put(&t, part, got);
    }
    wait_end();
    if (ferror(f)) give_up("%s: cannot read: %s", path, strerror(errno));
    if (zeros && is_utf16(&t))
        give_up("%s: is UTF-16; iconv -f UTF-16 -t UTF-8 makes the text that is wanted", path);
    if (zeros) give_up("%s: has zero bytes; it is no text", path);
    if (size > most)
        give_up("%s: has more than %d MB, the most that is read from a %s; "
                "a part of it will do (head -c)", path, (int)(most / MB), regular ? "file" : "pipe");
    if (!t.n) give_up("%s: is empty", path);
    if (!piped) fclose(f);
    free(part);
    return t;
}

/* The text that the vocabulary of the stories is learned from: stories of seeds that no training
 * run uses. */
static Text story_sample(void) {
    Text t = {0};
    char text[STORY_CAP];
    for (uint64_t i = 0; t.n < (size_t)4 << 20; i++) {
        put(&t, text, story(SAMPLE_SEED + i, text, sizeof text));
        put(&t, "\n", 1);
    }
    return t;
}

/* Opens the vocabulary (-z), or learns one from the text. */
static int choose_vocabulary(Data *d, const TrainOptions *o, const Text *text, char *err) {
    const char *name = o->vocabulary ? o->vocabulary : "vocabulary";
    char why[GLA_ERR] = "";
    int code = o->vocabulary ? map_file(&d->vocab.map, o->vocabulary, err)
                             : learn_vocabulary(&d->vocab.map, (Str){ text->s, text->n }, o->vocab, err);
    if (code) return code;
    code = gguf_read(&d->vocab, why);
    if (!code) code = tokenizer_new(&d->tokenizer, &d->vocab, why);
    if (code) return fail(err, code, "%.100s: %.200s", name, why);
    if (!d->tokenizer->n) return fail(err, GLA_FORMAT, "%s: has no vocabulary", name);
    d->end = d->tokenizer->kind.eos >= 0 ? d->tokenizer->kind.eos : d->tokenizer->kind.bos;
    if (d->end < 0) return fail(err, GLA_UNSUPPORTED, "%s: has no end-of-text token", name);
    return GLA_OK;
}

/* The vocabulary as a file of its own (--tokenizer). The same file may be there already: a run that
 * goes on has left it. */
static int write_vocabulary(const TrainOptions *o, const Gguf *vocab, char *err) {
    char path[PATH_LEN];
    Keys k = {0};
    Text file = {0};
    keys_of_vocabulary(&k);
    copy_vocabulary(&k, vocab);
    put_header(&file, &k, 0);
    snprintf(path, sizeof path, "%s", o->vocabulary_out);
    uint8_t *old = read_bytes(path, file.n);
    const bool same = old && !memcmp(old, file.s, file.n);
    const int code = same ? GLA_OK
                          : write_parts(path, o->force, &(Part){ file.s, file.n }, 1, err);
    if (strcmp(path, o->vocabulary_out))
        fprintf(stderr, "train_tiny: %s is there; the vocabulary is %s\n", o->vocabulary_out, path);
    free(old);
    text_free(&file);
    return code;
}

static int compare_ints(const void *a, const void *b) {
    const int x = *(const int *)a, y = *(const int *)b;
    return (x > y) - (x < y);
}

/* The length in tokens that half of the texts have at least: those between <|endoftext|> tokens, or
 * some of the stories. 0: there is only one text. */
static int typical_length(const Data *d) {
    enum { MOST = 1 << 16, STORIES = 101 };
    int *length = checked(malloc(MOST * sizeof *length)), n = 0;
    char text[STORY_CAP], err[GLA_ERR];
    for (size_t i = 1, from = 1; i < d->n_ids && n < MOST; i++) {
        if (d->ids[i] != d->end) continue;
        if (i > from) length[n++] = (int)min64((int64_t)(i - from), INT32_MAX);
        from = i + 1;
    }
    for (; !d->ids && n < STORIES; n++) {
        const size_t len = story(SAMPLE_SEED + (uint64_t)n, text, sizeof text);
        length[n] = (int)tokenizer_encode(d->tokenizer, text, len, 0, NULL, 0, err);
    }
    qsort(length, (size_t)n, sizeof *length, compare_ints);
    const int middle = n > 1 ? length[n / 2] : 0;
    free(length);
    return middle;
}

/* Says so when a model would hardly ever see the end of a text together with its beginning. */
static void warn_of_context(const Data *d, int context) {
    const int typical = typical_length(d);
    if (typical < context) return;
    fprintf(stderr, "train_tiny: warning: half of the texts have %d tokens or more, "
            "and a sequence holds %d; ", typical, context);
    if (typical < 8192)
        fprintf(stderr, "--context %d would hold them\n", (typical / 64 + 1) * 64);
    else fprintf(stderr, "the model will not learn how a text as a whole is built\n");
}

/* The whole text as ids, <|endoftext|> before and after it; "<|endoftext|>" within it counts as the
 * token. */
static int encode_text_file(Data *d, const TinyConfig *c, const Text *text, char *err) {
    size_t cap = text->n / 2 + 16;   /* most texts have fewer tokens; others are encoded twice */
    int64_t got = 0;
    if (text->n > MB) wait_begin("encoding the text", NULL, NULL, 0);
    for (int round = 0; round < 2 && (size_t)got <= cap; round++) {
        free(d->ids);
        d->ids = checked(malloc((cap + 2) * sizeof *d->ids));
        got = tokenizer_encode(d->tokenizer, text->s, text->n, GLA_SPECIAL, d->ids + 1, cap, err);
        if (got < 0) return (int)got;
        if ((size_t)got <= cap) break;
        cap = (size_t)got;
    }
    wait_end();
    d->ids[0] = d->ids[got + 1] = d->end;
    d->n_ids = (size_t)got + 2;
    size_t rest = d->n_ids / 20, window = (size_t)c->seq_len + 1;
    d->n_train = d->n_ids - (rest > window ? rest : window);
    if (d->n_ids < 3 * window)
        return fail(err, GLA_INPUT,
                    "the text has %zu tokens; %zu are needed for a context of %d (--context)",
                    d->n_ids, 3 * window, c->seq_len);
    return GLA_OK;
}

/* -- a sample -- */

/* A GlaGenerate's emit: a piece of the sample to standard output. */
static int show_piece(void *user, int32_t id, const char *text, size_t n) {
    (void)user, (void)id;
    return write_text(stdout, text, n);
}

/* Prints a sample from the finished file, by way of run.c. */
static int print_sample(const Text *file, const TrainOptions *o, char *err) {
    enum { MOST = 1024 };
    GlaModel *m;
    GlaState *s;
    GlaSampler p;
    int32_t ids[MOST];
    int code = gla_open_memory(&m, file->s, file->n, err);
    if (code) return code;
    code = gla_state_new(&s, m, &(GlaSettings){ .threads = o->threads }, err);
    if (!code) {
        int64_t n = gla_encode(m, o->prompt, strlen(o->prompt), GLA_BOS, ids, MOST, err);
        if (n < 0) code = (int)n;
        else if (n > MOST)
            code = fail(err, GLA_INPUT, "a prompt of %lld tokens is too long", (long long)n);
        else {
            const GlaGenerate how = { .steps = 400, .emit = show_piece };
            if (!n) ids[n++] = m->vocab->kind.eos;
            gla_sampler_init(&p, m, o->seed);
            printf("\n%s", o->prompt);
            code = gla_generate(s, &p, ids, n, &how, NULL, err);
            printf("\n");
        }
        gla_state_free(s);
    }
    gla_close(m);
    return code < 0 ? code : GLA_OK;
}

/* -- training -- */

/* Where a run leaves its checkpoint. name: PATH_LEN bytes */
static void checkpoint_name(char *name, const TrainOptions *o) {
    snprintf(name, PATH_LEN, "%s.ckpt", o->out ? o->out : o->task);
}

typedef struct {
    TrainOptions o;
    const Data *d;
    Tiny m;
    Checkpoint at;                           /* where training stands */
    int *id, *target;                        /* (B, T) */
    char out[PATH_LEN], ckpt[PATH_LEN];      /* names of the model and the checkpoint */
    bool own_ckpt;                           /* that file is this run's, or may be replaced */
    int64_t first;                           /* steps done before this run, */
    double before;                           /* and the seconds they took */
    bool stopped;                            /* by Ctrl-C */
    bool done;                               /* the checkpoint is the end already */
    double loss, last, best;                 /* at the end: of the text, held out; the lowest */
    int64_t best_step;                       /* held out on the way, and after how many steps */
    double mtp_loss;                         /* held out, of tokens after next: a sum over */
    int64_t mtp_count;                       /* so many */
} Training;

/* Mean held-out loss (nats per token) over `batches` batches, and with counts what the two
 * baselines lose on the same tokens: of_counts, bigram and trigram. */
static double held_out(Training *r, int batches, Counts *counts, double of_counts[2]) {
    const int B = r->m.B, T = r->m.c.seq_len;
    double loss = 0, sum[2] = { 0 };
    int64_t n = 0, done = 0;
    r->mtp_loss = 0;
    r->mtp_count = 0;
    int32_t *seq = checked(malloc((size_t)(T + 1) * sizeof *seq));
    if (counts) wait_begin("evaluating", count_of, &done, batches);
    for (; done < batches; done++) {
        int count;
        fill_batch(r->d, true, (uint64_t)done, B, T, r->id, r->target);
        loss += tiny_step(&r->m, r->id, r->target, false, &count);
        n += count;
        r->mtp_loss += r->m.mtp_loss;
        r->mtp_count += r->m.mtp_count;
        for (int b = 0; counts && b < B; b++) {
            seq[0] = r->id[b * T];
            memcpy(seq + 1, r->target + b * T, (size_t)T * sizeof *seq);
            for (int t = 1; t <= T; t++)
                for (int k = 0; k < 2; k++) sum[k] += count_nll(counts, seq, t, 2 + k);
        }
    }
    free(seq);
    if (counts) wait_end();
    for (int k = 0; counts && k < 2; k++) of_counts[k] = sum[k] / n;
    return loss / n;
}

/* A checkpoint of now. The first one of a run that did not begin with it leaves a file of that name
 * alone. */
static int save_progress(Training *r, char *err) {
    int code = save_checkpoint(r->ckpt, r->own_ckpt, &r->m, r->at, err);
    if (!code) r->own_ckpt = true;
    return code;
}

static volatile sig_atomic_t stop_asked;
static void ask_to_stop(int sig) {
    if (stop_asked) end_by_signal(sig, NULL);   /* a second Ctrl-C ends at once */
    stop_asked = 1;
}

/* Of a text and of held-out text: the loss averaged over some 20 steps; when it was shown last. */
typedef struct { double smooth, weight, test, testing, shown, start; int part; } Progress;

/* After a step: a line; held out, every 20th part of the way. */
static void show_progress(Training *r, Progress *p, double loss, double lr) {
    const TrainOptions *o = &r->o;
    const bool terminal = waiting.watched;
    const int64_t step = r->at.step, steps = step - r->first;
    const int N = o->batch * r->m.c.seq_len;
    const double t = now_s(), spent = t - p->start, rate = (double)steps * N / (spent - p->testing);
    r->at.seconds = r->before + spent;
    const double minutes = r->at.seconds / 60;
    const double done = o->minutes > 0 ? minutes / o->minutes : (double)step / (double)o->steps;
    const double left = o->minutes > 0 ? o->minutes - minutes
                        : (double)(o->steps - step) * spent / (double)steps / 60;
    p->smooth = 0.95 * p->smooth + 0.05 * loss;
    p->weight = 0.95 * p->weight + 0.05;
    const bool milestone = (int)(done * 20) > p->part || r->stopped;
    if (milestone) {
        p->part = (int)(done * 20);
        p->test = held_out(r, ceil_div(8192, N), NULL, NULL);
        if (!r->best_step || p->test < r->best) r->best = p->test, r->best_step = step;
        p->testing += now_s() - t;
    }
    const bool over = r->stopped || done >= 1;
    if (o->quiet || !(terminal ? over || t - p->shown > 1 : milestone)) return;
    fprintf(stderr, "%sstep %lld %3.0f %%  loss %.3f  held-out %.3f  lr %.1e  %.0f tokens/s  "
            "%.1f min left%s", terminal ? "\r" : "", (long long)step, 100 * fmin(done, 1),
            p->smooth / p->weight, p->test, lr, rate, fmax(left, 0), terminal ? "\033[K" : "\n");
    p->shown = t;
}

/* Steps until the end or Ctrl-C: a batch, the gradients of its loss, AdamW. The learning rate
 * climbs over the first steps, then falls along half a cosine to a 50th. It depends on the step and
 * on how many there are to be: a run that goes on with a larger number is from there on where a run
 * of that many would be. */
static int train_steps(Training *r, char *err) {
    const TrainOptions *o = &r->o;
    const int B = o->batch, T = r->m.c.seq_len;
    const int64_t warmup = o->minutes <= 0 && o->steps / 10 < 100 ? o->steps / 10 + 1 : 100;
    AdamW opt = { .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .decay = o->decay, .clip = o->clip };
    Progress p = { .start = now_s(), .part = -1 };
    double saved = p.start;
    int count;
    for (int64_t step = r->first + 1; !r->stopped; step++) {
        // share: how much of the way is done
        const double share = o->minutes > 0 ? (r->before + now_s() - p.start) / (60 * o->minutes)
                             : (double)(step - 1) / (double)o->steps;
        if (share >= 1) break;
        opt.lr = o->lr * (0.51 + 0.49 * cos(3.14159265358979 * share))
                 * (step < warmup ? (double)step / (double)warmup : 1);
        fill_batch(r->d, false, (uint64_t)step - 1, B, T, r->id, r->target);
        zeroed(r->m.grads, r->m.n_params);
        const double loss = tiny_step(&r->m, r->id, r->target, true, &count) / count;
        const double norm = adamw_step(&r->m, &opt, (long)step);
        if (!(loss < 1e9) || !(norm < 1e30))
            return fail(err, GLA_INPUT, "the loss is no longer a number at step %lld; "
                        "a smaller --lr may help", (long long)step);
        r->at.step = step;
        r->stopped = stop_asked;
        show_progress(r, &p, loss, opt.lr);

        // a checkpoint every five minutes
        const double t = p.start + r->at.seconds - r->before;
        if (t - saved <= 300 || r->stopped) continue;
        saved = t;
        if (save_progress(r, err))
            fprintf(stderr, "train_tiny: %s; going on without a checkpoint\n", err);
    }
    if (o->minutes > 0 && !r->stopped) r->at.seconds = fmax(r->at.seconds, 60 * o->minutes);
    if (p.weight > 0) r->loss = p.smooth / p.weight;
    r->last = p.test;
    if (waiting.watched && p.shown > 0) fprintf(stderr, "\n");
    return GLA_OK;
}

/* -- reports -- */

/* Why a model is no better than it is, where that can be told: it has learned its text by heart,
 * which shows in a held-out loss that was lower before or lies far above that of the text, or it
 * has had too few steps. behind: counting three tokens predicts better. */
static void report_fit(const Training *r, bool behind) {
    const double RISE = 0.05, GAP = 0.5;     /* nats per token */
    const Data *d = r->d;
    const double tokens = (double)r->at.step * r->o.batch * r->m.c.seq_len;
    const double seen = d->ids ? tokens / (double)d->n_train : 0;
    const bool early = r->best_step < 0.9 * (double)r->at.step;
    const bool rose = early && seen > 1 && r->last > r->best + RISE;
    const bool by_heart = rose || (seen > 1 && behind && r->last > r->loss + GAP);
    const char *worse = behind ? "the model predicts worse than the trigram: " : "";
    if (rose) printf("the held-out loss was lowest after step %lld, %.3f, and %.3f at the end\n",
                     (long long)r->best_step, r->best, r->last);
    if (by_heart) {
        printf("%sthe text is too small for this model (%zu tokens, %zu parameters, "
               "each token seen %.0f times): ", worse, d->n_train, r->m.n_weights, seen);
        if (rose) printf("stop earlier (--steps %lld), ", (long long)r->best_step);
        printf("take a smaller model (--dim, --layers) or more text\n");
    } else if (behind)
        printf("%sit has had too few steps; --resume with a larger --steps than %lld, "
               "or with --minutes, goes on\n", worse, (long long)r->at.step);
}

/* Bigrams and trigrams of what the model was trained on. */
static Counts count_training(const Training *r) {
    enum { COUNTED = 1 << 23 };              /* tokens of a text at most, for the tables grow with them */
    const Data *d = r->d;
    const int n = r->m.c.seq_len + 1;
    const int64_t sequences = d->ids ? 0 : r->at.step * r->o.batch;
    Counts counts = counts_new(r->m.c.vocab_size);
    int32_t *seq = checked(malloc((size_t)n * sizeof *seq));
    int64_t i = 0;
    if (d->ids) count_sequence(&counts, d->ids, (int)(d->n_train < COUNTED ? d->n_train : COUNTED));
    else wait_begin("counting, to compare with", count_of, &i, sequences);
    for (; i < sequences; i++) {
        fill_sequence(d, false, (uint64_t)i, seq, n);
        count_sequence(&counts, seq, n);
    }
    wait_end();
    free(seq);
    return counts;
}

/* What was reached: size, speed, held-out perplexity next to the counting baselines, and a
 * sample. */
static int report(Training *r, const Text *file, char *err) {
    const Data *d = r->d;
    const int B = r->o.batch, T = r->m.c.seq_len, N = B * T;
    Counts counts = count_training(r);
    const size_t windows = d->ids ? (d->n_ids - d->n_train) / (size_t)T : SIZE_MAX;
    int batches = ceil_div(1 << 17, N);
    if ((size_t)batches * (size_t)B > windows) batches = (int)(windows / (size_t)B) + 1;
    double of_counts[2];
    const double model = held_out(r, batches, &counts, of_counts);
    const double seconds = r->at.seconds - r->before, new = (double)(r->at.step - r->first) * N;
    printf("%s: %zu bytes, %zu parameters; %lld tokens in %.1f minutes, %.0f per second\n",
           r->out, file->n, r->m.n_weights, (long long)r->at.step * N, r->at.seconds / 60,
           new / (seconds > 0 ? seconds : 1));
    printf("held-out perplexity per token, on %d tokens: model %.3f, trigram %.3f, bigram %.3f\n",
           batches * N, exp(model), exp(of_counts[1]), exp(of_counts[0]));
    if (r->m.c.mtp)
        printf("of the token after next, from the block for multi-token prediction: %.3f\n",
               exp(r->mtp_loss / r->mtp_count));
    report_fit(r, model > of_counts[1]);
    counts_free(&counts);
    return print_sample(file, &r->o, err);
}

/* Floats that the linear layers carry from token to token. */
static size_t state_floats(const Tiny *m) {
    size_t n = 0;
    for (const Op *o = m->ops; o < m->ops + m->n_ops; o++)
        if (o->run.units == BY_HEAD)
            n += (size_t)o->x[X_Q].heads / o->writes * o->x[X_Q].n * o->x[X_V].n;
    return n;
}

/* How many answers are right, in percent, by the number of pairs: on sequences that were not
 * trained on. */
static void report_recall(Training *r) {
    const TinyConfig *c = &r->m.c;
    const int B = r->m.B, T = c->seq_len, V = c->vocab_size, N = B * T;
    real *logits = checked(malloc((size_t)N * V * sizeof *logits));
    printf("%s", mixer_kinds[c->mixer].name);
    if (r->o.hybrid) printf(" %s", r->o.hybrid);
    printf(": %d layers, %d heads of %d x %d, %zu floats of state",
           c->n_layers, c->n_heads, c->dk, c->dv, state_floats(&r->m));
    for (const int *p = r->d->pairs; *p; p++) {
        Data d = *r->d;
        int count, right = 0, asked = 0;
        d.pairs = (int[]){ *p, 0 };
        for (int i = 0; i < 20; i++) {
            fill_batch(&d, true, (uint64_t)i, B, T, r->id, r->target);
            tiny_step(&r->m, r->id, r->target, false, &count);
            logits_of(&r->m, r->m.h_out, logits, 0, N);
            for (int t = 0; t < N; t++) {
                const real *of = logits + (size_t)t * V;
                int best = 0;
                for (int v = 1; v < V && r->target[t] >= 0; v++) best = of[v] > of[best] ? v : best;
                right += best == r->target[t];
                asked += r->target[t] >= 0;
            }
        }
        printf("; %d pairs %.1f %%", *p, 100.0 * right / asked);
    }
    printf("\n");
    free(logits);
}

/* -- main -- */

/* The finished model, under its name or, where another file has got that name meanwhile, a free
 * one; if its folder takes it no longer, in this folder or among the temporary files: what was
 * trained is not lost. */
static int save_model(Training *r, const Text *file, char *err) {
    const char *folder = getenv("TMPDIR"), *base = base_name(r->o.out);
    char why[GLA_ERR], elsewhere[PATH_LEN];
    if (!folder || !*folder) folder = "/tmp";
    if (snprintf(elsewhere, PATH_LEN, "%s/%s", folder, base) >= PATH_LEN) *elsewhere = 0;
    const char *places[] = { r->o.out, base, elsewhere };
    int code = GLA_IO;
    for (int i = 0; code && i < 3; i++) {
        const bool replace = i == 0 && (r->o.force || is_own_model(r->o.out, &r->at));
        snprintf(r->out, sizeof r->out, "%s", places[i]);
        code = write_parts(r->out, replace, &(Part){ file->s, file->n }, 1, i ? why : err);
    }
    if (code) return code;
    if (strcmp(r->out, r->o.out))
        fprintf(stderr, "train_tiny: %s could not be written or is another file by now; "
                "the model is %s\n", r->o.out, r->out);
    r->at.model_bytes = file->n;
    r->at.model_sum = hash_bytes(HASH_SEED, file->s, file->n);
    return GLA_OK;
}

/* After Ctrl-C: how to go on. kept: the model's file is another's, and was not replaced. */
static void say_stopped(const Training *r, bool kept) {
    char usual[PATH_LEN];
    checkpoint_name(usual, &r->o);
    fprintf(stderr, "stopped after step %lld; ", (long long)r->at.step);
    if (kept) fprintf(stderr, "%s is as it was; ", r->o.out);
    if (!strcmp(usual, r->ckpt)) fprintf(stderr, "--resume goes on from %s\n", usual);
    else fprintf(stderr, "the checkpoint is %s; --resume goes on from it under the name %s\n",
                 r->ckpt, usual);
}

/* What a run leaves behind. Ctrl-C: a checkpoint, and the model unless a file is there that is not
 * this run's, for a model that has hardly begun should not replace one that was finished. The end:
 * the model, the checkpoint, from which more steps can go on, and the report, unless no step was
 * left to do; a task that has no file leaves neither. */
static int leave(Training *r, Text *file, char *err) {
    const TrainOptions *o = &r->o;
    const Data *d = r->d;
    const bool kept = r->stopped && o->out && is_there(o->out) && !is_own_model(o->out, &r->at);
    const char *name = d->pairs  ? "Associative recall"
                       : o->text ? "A tiny model trained on a text" : "Tiny stories";
    char why[GLA_ERR];
    int code = GLA_OK;
    if (o->out && !kept) {
        *file = model_file(&r->m, d->pairs ? NULL : &d->vocab, o->type, name);
        code = save_model(r, file, err);
    }
    if (r->stopped || o->out) {
        const int bad = save_progress(r, why);
        if (bad && (r->stopped || code)) code = fail(err, bad, "%s", why);
        else if (bad)
            fprintf(stderr, "train_tiny: %s; the model is there, but no checkpoint\n", why);
    } else if (r->own_ckpt) remove(r->ckpt);
    if (code) return code;
    if (r->stopped) say_stopped(r, kept);
    else if (d->pairs) report_recall(r);
    else if (!r->done) return report(r, file, err);
    return GLA_OK;
}

/* Takes up the checkpoint. Its number of steps or minutes holds unless another is given: steps
 * count from the beginning, minutes from now. */
static int resume(Training *r, char *err) {
    TrainOptions *o = &r->o;
    int code = load_checkpoint(r->ckpt, &r->m, &r->at, r->at.fingerprint, err);
    if (code) return code;
    const long long step = r->at.step;
    if (was_given(o, T_MINUTES))
        o->minutes = fmin(o->minutes + r->at.seconds / 60, train_options[T_MINUTES].hi);
    else if (!was_given(o, T_STEPS)) o->steps = r->at.steps, o->minutes = r->at.minutes;
    if (o->minutes <= 0 && step > o->steps)
        return fail(err, GLA_INPUT, "%s: is at step %lld already; --steps %lld would go back",
                    r->ckpt, step, (long long)o->steps);
    r->done = o->minutes > 0 ? r->at.seconds >= 60 * o->minutes : step == o->steps;
    if (r->done)
        fprintf(stderr, "train_tiny: %s: nothing is left to do, for it has done its %lld steps; "
                "a larger --steps than %lld goes on, or --minutes M for M minutes more\n",
                r->ckpt, step, step);
    r->first = step;
    r->before = r->at.seconds;
    return GLA_OK;
}

/* A new model or a checkpoint, training, and what it leaves. */
static int train(const TrainOptions *o, const Data *d, const TinyConfig *c, uint64_t fingerprint,
                 char *err) {
    Training r = { .o = *o, .d = d, .at = { .fingerprint = fingerprint },
                   .own_ckpt = o->resume || o->force };
    Text file = {0};
    int code = GLA_OK;
    const size_t N = (size_t)o->batch * (size_t)c->seq_len;
    checkpoint_name(r.ckpt, o);
    tiny_new(&r.m, c, o->batch, o->seed);
    r.id = checked(malloc(N * sizeof *r.id));
    r.target = checked(malloc(N * sizeof *r.target));
    if (o->resume) code = resume(&r, err);
    r.at.steps = r.o.steps;
    r.at.minutes = r.o.minutes;
    if (!code && !o->quiet && !r.done)
        fprintf(stderr, "%s, %d layers of %d, %d tokens: %zu parameters; %d sequences of %d tokens "
                "per step; %s kernels, %d threads\n", mixer_kinds[c->mixer].name, c->n_layers,
                c->dim, c->vocab_size, r.m.n_weights, o->batch, c->seq_len, kern.name, ALL_THREADS);
    if (!code) {
        signal(SIGINT, ask_to_stop);
        signal(SIGTERM, ask_to_stop);
        code = train_steps(&r, err);
    }
    if (!code) code = leave(&r, &file, err);
    text_free(&file);
    free(r.id);
    free(r.target);
    tiny_free(&r.m);
    return code;
}

/* The name of the model when none was given: in this folder, that of the text with .bin. */
static void name_after_text(char *out, const char *text) {
    const char *base = text ? base_name(text) : "stories", *dot = strrchr(base, '.');
    const bool piped = text && (!strncmp(text, "/dev/", 5) || !strncmp(text, "/proc/", 6));
    if (!*base || !strcmp(base, "-") || piped) base = "text", dot = NULL;
    const int stem = (int)min64(dot && dot > base ? dot - base : (int64_t)strlen(base), 255);
    snprintf(out, PATH_LEN, "%s%.*s.bin", *base == '-' ? "./" : "", stem, base);
}

/* No file that is read may be written, no two outputs may be one, and none replaces a file without
 * --force, but for what the checkpoint to go on from has left. */
static void check_files(const TrainOptions *o) {
    char ckpt[PATH_LEN], err[GLA_ERR];
    Checkpoint head = {0};
    const bool fresh = !o->force && !o->resume;
    if (strlen(o->out ? o->out : "") + 8 > PATH_LEN) misuse("the name is too long: %s", o->out);
    checkpoint_name(ckpt, o);
    const char *read[] = { o->text, o->vocabulary, "/dev/stdin", "/dev/stdout" };
    const char *written[] = { o->out, o->vocabulary_out, ckpt };
    for (int i = 0; i < 12; i++)
        if (read[i % 4] && written[i / 4] && same_file(read[i % 4], written[i / 4]))
            misuse("a file that is in use here would be replaced: %s", written[i / 4]);
    for (int i = 0; i < 3; i++)
        if (written[i] && written[(i + 1) % 3] && same_target(written[i], written[(i + 1) % 3]))
            misuse("two files to write are the same one: %s", written[i]);
    if (o->resume) {
        FILE *f = open_checkpoint(ckpt, &head, err);
        if (!f) give_up("%s", err);
        fclose(f);
    }
    const bool own = o->resume && o->out && is_own_model(o->out, &head);
    if (!o->force && o->out && is_there(o->out) && !own)
        misuse("%s is there already; --force replaces it, -o FILE names another", o->out);
    if (fresh && o->out && is_there(ckpt))
        misuse("%s is there already; --resume goes on from it, --force begins anew", ckpt);
    if (fresh && o->vocabulary_out && is_there(o->vocabulary_out))
        misuse("%s is there already; --force replaces it", o->vocabulary_out);
    for (int i = 0; i < 3; i++)                  /* what is written at the end must be possible now */
        if (written[i] && (i < 2 || o->out)) must(can_write(written[i], err), err);
}

/* The file of the vocabulary has become shorter while it is read where it lies. */
static void lost_pages(int sig) {
    (void)sig;
    end_at_once("train_tiny: the file of the vocabulary became shorter while it was read\n", NULL,
                NULL);
}

/* Text and vocabulary. */
static int prepare_text(Data *d, TinyConfig *c, const TrainOptions *o, char *err) {
    Text text = {0};
    int code = GLA_OK;
    if (o->text) text = read_text(o->text);
    else if (!o->vocabulary) text = story_sample();
    if (o->text && text.n + 2 < 3 * ((size_t)c->seq_len + 1))
        code = fail(err, GLA_INPUT, "%s: has %zu bytes; a context of %d (--context) needs %d tokens",
                    o->text, text.n, c->seq_len, 3 * (c->seq_len + 1));
    if (!code) code = choose_vocabulary(d, o, &text, err);
    if (!code && o->vocabulary_out) code = write_vocabulary(o, &d->vocab, err);
    if (!code) c->vocab_size = d->tokenizer->n;
    if (!code && o->text) code = encode_text_file(d, c, &text, err);
    if (!code) warn_of_context(d, c->seq_len);
    text_free(&text);
    return code;
}

/* Of everything that shapes a step, but for how many there will be. */
static uint64_t fingerprint_of(const TrainOptions *o, const Data *d, const TinyConfig *c) {
    uint64_t mark = hash_bytes(HASH_SEED, c, sizeof *c);
    mark = hash_bytes(mark, &(int64_t[]){ o->batch, (int64_t)o->seed, d->rebind }, 24);
    mark = hash_bytes(mark, &(double[]){ o->lr, o->decay, o->clip }, 24);
    mark = hash_bytes(mark, d->vocab.map.data, d->vocab.map.n);
    return d->ids ? hash_bytes(mark, d->ids, d->n_ids * sizeof *d->ids) : mark;
}

int main(int argc, char **argv) {
    static const int pairs[] = { 4, 8, 16, 0 }, rebound[] = { 4, 8, 12, 0 };
    Options words = {0};
    char err[GLA_ERR] = "", own_name[PATH_LEN];

    // the options, and which of them do not go together
    parse_options(&words, &train_syntax, argc, argv);
    if (words.stray.n) misuse("one text at most; there is a second one: %s", words.stray.s);
    text_free(&words.stray);
    spin_briefly(argv);
    if (given(&words, T_HELP)) return print_train_help(), 0;
    TrainOptions o = train_options_of(&words);
    check_train_options(&o);
    TinyConfig c = configure(&o);
    Data d = { .seed = o.seed, .rebind = o.task && !strcmp(o.task, "rebind") };
    if (o.task) {
        d.pairs = d.rebind ? rebound : pairs;
        d.mqar_vocab = o.vocab;
    } else if (!o.out) {
        name_after_text(own_name, o.text);
        o.out = own_name;
    }
    /* a text of one megabyte has been read often enough by then */
    if (o.text && !was_given(&o, T_STEPS)) o.steps = 3000;
    if (!o.prompt) o.prompt = o.text ? "" : "Once upon a time";
    check_files(&o);
    waiting.watched = is_terminal(stderr) && !o.quiet;
    waiting.percent = 1;
    on_lost_pages(lost_pages);
#ifdef _OPENMP
    if (o.threads || ALL_THREADS > 1024) omp_set_num_threads(o.threads ? o.threads : 1024);
#endif
    choose_tiny_kernels();

    // a task makes its own sequences
    int code = o.task ? GLA_OK : prepare_text(&d, &c, &o, err);
    if (!code) code = train(&o, &d, &c, fingerprint_of(&o, &d, &c), err);
    if (d.tokenizer) tokenizer_free(d.tokenizer);
    if (!d.vocab.map.mapped) gla_free((void *)(uintptr_t)d.vocab.map.data);
    gguf_close(&d.vocab);
    free(d.ids);
    if (code) complain(err);
    return code != 0;
}
#endif /* TARGET: the part of the file that is compiled once */
