/* train_tiny.c - trains a tiny gated linear attention language model on a CPU, in one file.
 *
 *   build   cc -O3 -o train_tiny train_tiny.c -lm      (-fopenmp uses every core)
 *   run     ./train_tiny                               writes stories.bin; ./run stories.bin -i "Once upon a time"
 *           ./train_tiny book.txt                      the same from a text of yours: book.bin
 *
 *    1 platform    2 kernels     3 matmul      4 the recurrence   5 pairs, forward and backward
 *    6 model       7 layers      8 one step    9 AdamW           10 stories   11 vocabulary
 *   12 data       13 files      14 training, command line
 *
 * Every operation is a pair, x_forward then x_backward; above a backward line stands, as //~, the forward line
 * that it undoes. A leading d is "gradient of the loss with respect to": dx has the shape of x. Gradients of
 * parameters accumulate (+=); gradients of activations are assigned unless the comment says otherwise.
 *
 * Here to learn? 4 is how a memory learns what to keep: a recurrence run forward, and one run from the end (the loops themselves
 * are kernels of 2, recurrence_forward and recurrence_backward). 7 is what one layer does, 8 stacks the layers, 14 is the loop around
 * it all. The long sections begin with a map of their rooms. */

#ifndef TARGET
/* ---- 1. platform ---------------------------------------------------------------------------
 * Includes, the number type, OpenMP, and the table of kernels that section 2 fills per instruction set. */
#if !defined(_GNU_SOURCE) && !defined(_WIN32)
#define _GNU_SOURCE
#endif
#include <assert.h>
#include <ctype.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#define PARALLEL _Pragma("omp parallel for schedule(dynamic)")
#define THREAD omp_get_thread_num()
#define MAX_THREADS omp_get_max_threads()
#else
#define PARALLEL
#define THREAD 0
#define MAX_THREADS 1
#endif

/* The tests compile this file with -DREAL=double, so that finite differences mean something. */
#ifndef REAL
#define REAL float
#define FAST_EXP 1      /* e^x and its relatives as polynomials over vectors; 0: the library's, lane by lane */
#elif !defined(FAST_EXP)
#define FAST_EXP 0
#endif
typedef REAL real;

#ifdef __GNUC__
#define FORCE_INLINE inline __attribute__((always_inline))
#else
#define FORCE_INLINE inline
#endif

enum {
    CHUNK = 16,       /* tokens between two kept states of the recurrence */
    BLOCK = 64,       /* rows of one unit of parallel work; sums over rows are added block by block, so in one order */
    DEPTH = 512,      /* terms of a matrix product added before the sum goes to memory */
    MAX_TILE = 12     /* rows of the largest matmul tile */
};

/* The recurrence of one head over one sequence, and its gradients: the equations and the names are those of section 4. The letters
 * stay short there, so here dkey and dval are the gradients of k and v: dk and dv are the widths. */
enum { SCAN_ERASES = 1, SCAN_WRITES_BACK = 2, SCAN_FADES_VALUES = 4, SCAN_READS_FIRST = 8 };
typedef struct {
    int T, dk, dv;                          /* tokens, key width, value width */
    bool vector_decay;                      /* d holds one factor per key channel, else one per token */
    size_t ldk, ldv, ldd, ldr;              /* reals from a token to the next in q k e b, in v w o c, in d, in rho */
    int mode;                               /* what it does besides: SCAN_ERASES ... */
    const real *q, *k, *v, *d, *e, *rho, *c, *b; /* those that the mode has no use for are NULL */
    real *w;                                /* (T, dv) what is written; with SCAN_WRITES_BACK what was recalled */
    real *o;                                /* (T, dv) what is read */
    real *S;                                /* (ceil(T / CHUNK), dv, dk) the states that are kept for the way back */
    const real *d_o;                        /* gradient in */
    real *dq, *dkey, *dval, *dd, *de, *drho, *dc, *db; /* gradients out, assigned; strides as above */
    real *scratch;                          /* recurrence_scratch(dk, dv) reals */
} Scan;

/* Factors of a gate, and what the feature map of a key or query does: y = x, silu(x), sigmoid(x), elu(x) + 1. Of maps only: tanh(x),
 * relu(x)^2, and the decays of RWKV-6 and -7, exp(-e^x) and exp(-e^(-1/2) sigmoid(x)). */
typedef enum { F_ID, F_SILU, F_SIGMOID, F_ELU1, F_TANH, F_SQRELU, F_DECAY6, F_DECAY7 } Act;
#define DECAY7 ((real)0.60653065971263342)  /* e^(-1/2) */
enum { ADD_DX = 1, ADD_DZ = 2 };            /* these gradients are added to what is there, not assigned */

/* What is compiled once per instruction set; what each computes stands at its definition in section 2. A row is a token: `heads` vectors
 * of n reals, next to each other or hs apart. Rows of x are ldx reals apart, of z ldz ...; rows of an array whose stride is not given are
 * next to each other. A gradient has the stride of its array. */
typedef struct {
    const char *name;
    int lanes, tile_rows, tile_cols;        /* reals in a vector; rows and columns of gemm_tile */
    void (*tile)(real *c, size_t ldc, int rows, int cols, const real *a, size_t ars, size_t acs, const real *b, int depth, int add);
    void (*pack_rows)(real *to, const real *a, size_t acs, int rows, int depth);
    void (*pack_panel)(real *to, const real *b, size_t brs, size_t bcs, int depth, int cols);
    void (*rmsnorm_forward)(real *y, size_t ldy, size_t hsy, real *inv, const real *x, size_t ldx, size_t hsx,
                            const real *w, int rows, int heads, int n, real eps);
    void (*rmsnorm_backward)(real *dx, size_t ldx, size_t hsx, real *dw, const real *dy, size_t ldy, size_t hsy, const real *x,
                             const real *w, const real *inv, int rows, int heads, int n, int add);
    void (*l2norm_forward)(real *y, real *inv, const real *x, size_t ldx, int rows, int heads, int n, real scale);
    void (*l2norm_backward)(real *dx, size_t ldx, const real *dy, const real *x, const real *inv, int rows, int heads, int n, real scale);
    void (*map_forward)(Act act, real *y, const real *x, size_t ldx, int rows, int n, real scale);
    void (*map_backward)(Act act, real *dx, size_t ldx, const real *dy, const real *x, int rows, int n, real scale);
    void (*glu_forward)(Act act, real *y, const real *x, size_t ldx, const real *z, size_t ldz, size_t hsz, int rows, int heads, int n);
    void (*glu_backward)(Act act, real *dx, real *dz, const real *dy, const real *x, size_t ldx, const real *z, size_t ldz, size_t hsz,
                         int rows, int heads, int n, int add);
    void (*scale_forward)(real *y, const real *x, size_t ldx, const real *g, int rows, int heads, int n);
    void (*scale_backward)(real *dx, real *dg, const real *dy, const real *x, size_t ldx, const real *g,
                           int rows, int heads, int n, int add);
    void (*gated_norm_forward)(Act act, real *y, real *inv, const real *o, const real *z, size_t ldz, const real *w,
                               int rows, int heads, int n, real eps);
    void (*gated_norm_backward)(Act act, real *d_o, real *dz, real *dw, const real *dy, const real *o, const real *z, size_t ldz,
                                const real *w, const real *inv, int rows, int heads, int n);
    void (*conv_forward)(real *y, size_t ldy, const real *x, size_t ldx, const real *w, const real *bias, bool silu,
                         int T, int C, int taps);
    void (*conv_backward)(real *dx, real *dw, real *dbias, const real *dy, size_t ldy, const real *x, size_t ldx, const real *w,
                          const real *bias, bool silu, int T, int C, int taps);
    void (*gate_forward)(real *d, const real *a, size_t lda, const real *bias, const real *rate, real sign, int rows, int n);
    void (*gate_backward)(real *da, real *dbias, real *drate, const real *dd, const real *d, const real *a, size_t lda, const real *bias,
                          const real *rate, real sign, int rows, int n);
    void (*softmax_forward)(real *p, real *lse, int rows, int first, int n, real scale);
    void (*softmax_recompute)(real *p, const real *lse, int rows, int first, int n, real scale);
    void (*softmax_backward)(real *dp, const real *p, int rows, int keys, int n, real scale);
    double (*cross_entropy)(real *logits, const int *target, int rows, int n, real scale);
    void (*recurrence_forward)(const Scan *r);
    void (*recurrence_backward)(const Scan *r);
    void (*adamw)(real *p, const real *g, real *m, real *v, size_t n, real lr, real b1, real b2, real eps, real decay, real c1,
                  real c2, real gscale);
} TinyKernels;

static TinyKernels kern;   /* chosen once, in choose_tiny_kernels */
#endif

#ifdef TARGET
/* ---- 2. kernels ----------------------------------------------------------------------------
 * This section is compiled once per instruction set: the file includes itself with TARGET (function attribute),
 * NAME (suffix of the functions), VECTOR_BYTES, TILE_ROWS and TILE_VECS set. Vectors are the GNU ones that gcc and
 * clang turn into whatever the target has; with another compiler a vector is one number and the text stays the
 * same. Rows hold a multiple of 16 reals. Nothing here starts a thread. Its rooms:
 *
 *   vectors             a vector of numbers, the sum and the largest of its lanes, e^x, square root, ln sigmoid
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
 * Start with the recurrence, after section 4. The other pairs are short, and each stands on its own. */

/* -- vectors -- */

#ifdef __GNUC__
typedef real NAME(Vec) __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));
#define LANES ((int)(VECTOR_BYTES / sizeof(real)))
#else
typedef real NAME(Vec);
#define LANES 1
#endif
#define Vec NAME(Vec)
#define AT(p) (*(Vec *)(p))              /* the vector at p, to read or write */
#define READ(p) (*(const Vec *)(p))
#define KERNEL static TARGET
#define HELPER static FORCE_INLINE TARGET

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

/* The larger of a and b, lane by lane: a comparison of vectors gives all ones or all zeros, which then picks the bits. */
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

/* e^x. float: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2], error about 1e-7; x is clamped to where the result is
 * a normal number. double (tests): the library's, lane by lane. */
HELPER Vec NAME(exp)(Vec x) {
#if FAST_EXP && defined(__GNUC__)
    typedef int32_t IVec __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
    x = NAME(larger)(x, (Vec){0} - 87.0f);
    x = -NAME(larger)(-x, (Vec){0} - 88.0f);
    Vec n = x * 1.44269504f + 12582912.0f;          /* 1.5 * 2^23: the low bits of n now hold round(x / ln 2) */
    IVec shift = (IVec)n << 23;
    n -= 12582912.0f;
    Vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Vec p = r * 1.3981999e-3f + 8.3334519e-3f;
    p = p * r + 4.1665796e-2f;
    p = p * r + 1.6666666e-1f;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    return (Vec)((IVec)p + shift);
#else
    real b[LANES];
    memcpy(b, &x, sizeof x);
    for (int l = 0; l < LANES; l++) b[l] = (real)exp(b[l]);
    memcpy(&x, b, sizeof x);
    return x;
#endif
}

/* Square root. float: three Newton steps for 1 / sqrt(x) from a guess that halves the exponent; error about 1e-7. */
HELPER Vec NAME(sqrt)(Vec x) {
#if FAST_EXP && defined(__GNUC__)
    typedef int32_t IVec __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
    Vec y = (Vec)(0x5f3759df - ((IVec)x >> 1));
    for (int i = 0; i < 3; i++) y *= 1.5f - 0.5f * x * y * y;
    return x * y;
#else
    real b[LANES];
    memcpy(b, &x, sizeof x);
    for (int l = 0; l < LANES; l++) b[l] = (real)sqrt(b[l]);
    memcpy(&x, b, sizeof x);
    return x;
#endif
}

/* ln sigmoid(x) = min(x, 0) - ln(1 + t), t = e^-|x|. float: ln(1 + t) = 2 atanh(s), s = t / (t + 2) <= 1/3, as a series. */
HELPER Vec NAME(logsigmoid)(Vec x) {
#if FAST_EXP && defined(__GNUC__)
    typedef int32_t IVec __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
    Vec size = (Vec)((IVec)x & 0x7fffffff), t = NAME(exp)(-size), s = t / (t + 2), s2 = s * s;
    Vec p = s2 * (1.0f / 13) + 1.0f / 11;
    p = p * s2 + 1.0f / 9;
    p = p * s2 + 1.0f / 7;
    p = p * s2 + 1.0f / 5;
    p = p * s2 + 1.0f / 3;
    return (x - size) * 0.5f - 2 * (s + s * s2 * p);
#else
    real b[LANES];
    memcpy(b, &x, sizeof x);
    for (int l = 0; l < LANES; l++) b[l] = (real)((b[l] < 0 ? b[l] : 0) - log1p(exp(-fabs(b[l]))));
    memcpy(&x, b, sizeof x);
    return x;
#endif
}

HELPER Vec NAME(sigmoid)(Vec x) { return 1 / (1 + NAME(exp)(-x)); }

/* -- matrix product -- */

/* A tile of it: c (rows, cols) = or += a (rows, depth) b (depth, TILE_COLS), with the whole tile of c in registers.
 * a(i,k) lies at a[i * ars + k * acs]; b is packed, TILE_COLS reals per k. rows and cols may fall short of the tile;
 * the missing rows are computed from the last one and not stored. */
#define TILE_COLS (TILE_VECS * LANES)
KERNEL void NAME(gemm_tile)(real *c, size_t ldc, int rows, int cols, const real *a, size_t ars, size_t acs, const real *b,
                            int depth, int add) {
    Vec s[TILE_ROWS][TILE_VECS];
    const real *row[TILE_ROWS];
    for (int i = 0; i < TILE_ROWS; i++) {
        row[i] = a + (size_t)(i < rows ? i : rows - 1) * ars;
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
    for (int i = 0; i < rows; i++, c += ldc) {
        if (cols == TILE_COLS) {
            for (int j = 0; j < TILE_VECS; j++) {
                if (add) s[i][j] += READ(c + j * LANES);
                AT(c + j * LANES) = s[i][j];
            }
        } else {
            real edge[TILE_COLS];
            memcpy(edge, s[i], sizeof edge);
            for (int j = 0; j < cols; j++) c[j] = add ? c[j] + edge[j] : edge[j];
        }
    }
}

/* Rows of a, whose columns lie acs apart, side by side for the tile above: one (depth, TILE_ROWS) after the other, DEPTH TILE_ROWS apart.
 * A last tile may be short: its missing rows are never read. */
KERNEL void NAME(pack_rows)(real *to, const real *a, size_t acs, int rows, int depth) {
    for (int k = 0; k < depth; k++, to += TILE_ROWS, a += acs)
        for (int i = 0; i < rows; i += TILE_ROWS) {
            if (rows - i >= TILE_ROWS) memcpy(to + (size_t)i * DEPTH, a + i, TILE_ROWS * sizeof *to);
            else memcpy(to + (size_t)i * DEPTH, a + i, (size_t)(rows - i) * sizeof *to);
        }
}

/* cols columns of b as (depth, TILE_COLS), zeros where there are fewer; b(k,j) lies at b[k * brs + j * bcs]. */
KERNEL void NAME(pack_panel)(real *to, const real *b, size_t brs, size_t bcs, int depth, int cols) {
    if (cols < TILE_COLS) memset(to, 0, (size_t)depth * TILE_COLS * sizeof *to);
    if (bcs == 1)
        for (int k = 0; k < depth; k++) {
            if (cols == TILE_COLS) memcpy(to + (size_t)k * TILE_COLS, b + k * brs, TILE_COLS * sizeof *to);
            else memcpy(to + (size_t)k * TILE_COLS, b + k * brs, (size_t)cols * sizeof *to);
        }
    else
        for (int j = 0; j < cols; j++)
            for (int k = 0; k < depth; k++) to[(size_t)k * TILE_COLS + j] = b[k * brs + j * bcs];
}

/* -- norms -- */

/* y = x / sqrt(mean(x^2) + eps) * w; w (n), inv (rows, heads) keeps the factor of each vector. */
KERNEL void NAME(rmsnorm_forward)(real *y, size_t ldy, size_t hsy, real *inv, const real *x, size_t ldx, size_t hsx,
                                  const real *w, int rows, int heads, int n, real eps) {
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < heads; h++) {
            const real *xr = x + r * ldx + h * hsx;
            real *yr = y + r * ldy + h * hsy;
            Vec ss = {0};
            for (int i = 0; i < n; i += LANES) ss += READ(xr + i) * READ(xr + i);
            real f = inv[r * heads + h] = 1 / (real)sqrt(NAME(sum)(ss) / n + eps);
            for (int i = 0; i < n; i += LANES) AT(yr + i) = READ(xr + i) * f * READ(w + i);
        }
}

//~ y_i = x_i f w_i,  f = (mean(x^2) + eps)^-1/2, so df/dx_i = -f^3 x_i / n.  dw adds; dx does with `add`.
KERNEL void NAME(rmsnorm_backward)(real *dx, size_t ldx, size_t hsx, real *dw, const real *dy, size_t ldy, size_t hsy, const real *x,
                                   const real *w, const real *inv, int rows, int heads, int n, int add) {
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < heads; h++) {
            const real *xr = x + r * ldx + h * hsx, *dyr = dy + r * ldy + h * hsy;
            real *dxr = dx + r * ldx + h * hsx, f = inv[r * heads + h];
            Vec dot = {0};
            for (int i = 0; i < n; i += LANES) dot += READ(dyr + i) * READ(w + i) * READ(xr + i);
            real c = NAME(sum)(dot) * f * f * f / n;
            for (int i = 0; i < n; i += LANES) {
                Vec g = READ(dyr + i) * READ(w + i) * f - READ(xr + i) * c;
                AT(dw + i) += READ(dyr + i) * READ(xr + i) * f;
                if (add) g += READ(dxr + i);
                AT(dxr + i) = g;
            }
        }
}

/* y = scale x / sqrt(sum(x^2) + 1e-6), heads next to each other; y is (rows, heads, n). A sum, not a mean. */
KERNEL void NAME(l2norm_forward)(real *y, real *inv, const real *x, size_t ldx, int rows, int heads, int n, real scale) {
    for (int r = 0; r < rows; r++, x += ldx)
        for (int h = 0; h < heads; h++, y += n) {
            Vec ss = {0};
            for (int i = 0; i < n; i += LANES) ss += READ(x + h * n + i) * READ(x + h * n + i);
            real f = *inv++ = 1 / (real)sqrt(NAME(sum)(ss) + (real)1e-6);
            for (int i = 0; i < n; i += LANES) AT(y + i) = READ(x + h * n + i) * (f * scale);
        }
}

//~ y_i = scale x_i f,  f = (sum(x^2) + 1e-6)^-1/2, so df/dx_i = -f^3 x_i.  dx may be dy.
KERNEL void NAME(l2norm_backward)(real *dx, size_t ldx, const real *dy, const real *x, const real *inv,
                                  int rows, int heads, int n, real scale) {
    for (int r = 0; r < rows; r++, x += ldx, dx += ldx)
        for (int h = 0; h < heads; h++, dy += n) {
            real f = *inv++;
            Vec dot = {0};
            for (int i = 0; i < n; i += LANES) dot += READ(dy + i) * READ(x + h * n + i);
            real c = NAME(sum)(dot) * f * f;
            for (int i = 0; i < n; i += LANES) AT(dx + h * n + i) = (READ(dy + i) - READ(x + h * n + i) * c) * (f * scale);
        }
}

/* -- element by element -- */

/* y = act(x). */
HELPER Vec NAME(act)(Act act, Vec x) {
    if (act == F_SILU) return x * NAME(sigmoid)(x);
    if (act == F_SIGMOID) return NAME(sigmoid)(x);
    if (act == F_ELU1) return NAME(exp)(-NAME(larger)(-x, (Vec){0})) + NAME(larger)(x, (Vec){0}); /* e^x below 0, x + 1 above */
    if (act == F_TANH) return 2 * NAME(sigmoid)(2 * x) - 1;
    if (act == F_SQRELU) return NAME(larger)(x, (Vec){0}) * NAME(larger)(x, (Vec){0});
    if (act == F_DECAY6) return NAME(exp)(-NAME(exp)(x));
    if (act == F_DECAY7) return NAME(exp)(-DECAY7 * NAME(sigmoid)(x));
    return x;
}

/* The same, and its derivative in *slope. */
HELPER Vec NAME(act_slope)(Act act, Vec x, Vec *slope) {
    Vec one = (Vec){0} + 1;
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
        *slope = NAME(exp)(-NAME(larger)(-x, (Vec){0}));        /* 1 above 0 */
        return *slope + NAME(larger)(x, (Vec){0});
    }
    if (act == F_TANH) {
        Vec t = NAME(act)(F_TANH, x);
        *slope = 1 - t * t;
        return t;
    }
    if (act == F_SQRELU) {
        Vec p = NAME(larger)(x, (Vec){0});
        *slope = 2 * p;
        return p * p;
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
    *slope = one;
    return x;
}

/* Calls body(act, ...) with act a constant, so that each compiles to a loop without a choice in it. The body of kernel x is called x_. */
#define WITH_ACT(body, ...)                            \
    (act == F_SILU      ? body(F_SILU, __VA_ARGS__)    \
     : act == F_SIGMOID ? body(F_SIGMOID, __VA_ARGS__) \
     : act == F_ELU1    ? body(F_ELU1, __VA_ARGS__)    \
                        : body(F_ID, __VA_ARGS__))
#define WITH_MAP(body, ...)                          \
    (act == F_TANH     ? body(F_TANH, __VA_ARGS__)   \
     : act == F_SQRELU ? body(F_SQRELU, __VA_ARGS__) \
     : act == F_DECAY6 ? body(F_DECAY6, __VA_ARGS__) \
     : act == F_DECAY7 ? body(F_DECAY7, __VA_ARGS__) \
                       : WITH_ACT(body, __VA_ARGS__))

/* y = scale act(x), a feature map of keys or queries; with F_ID a copy. y (rows, n). */
HELPER void NAME(map_forward_)(const Act act, real *y, const real *x, size_t ldx, int rows, int n, real scale) {
    for (int r = 0; r < rows; r++, y += n, x += ldx)
        for (int i = 0; i < n; i += LANES) AT(y + i) = NAME(act)(act, READ(x + i)) * scale;
}

KERNEL void NAME(map_forward)(Act act, real *y, const real *x, size_t ldx, int rows, int n, real scale) {
    WITH_MAP(NAME(map_forward_), y, x, ldx, rows, n, scale);
}

//~ y = scale act(x).  dx may be dy where rows are next to each other.
HELPER void NAME(map_backward_)(const Act act, real *dx, size_t ldx, const real *dy, const real *x, int rows, int n, real scale) {
    for (int r = 0; r < rows; r++, dy += n, dx += ldx, x += ldx)
        for (int i = 0; i < n; i += LANES) {
            Vec slope;
            NAME(act_slope)(act, READ(x + i), &slope);
            AT(dx + i) = READ(dy + i) * slope * scale;
        }
}

KERNEL void NAME(map_backward)(Act act, real *dx, size_t ldx, const real *dy, const real *x, int rows, int n, real scale) {
    WITH_MAP(NAME(map_backward_), dx, ldx, dy, x, rows, n, scale);
}

/* y = x * act(z), element by element: the feed-forward, output gates, gates per channel. The vectors of z are hsz apart. */
HELPER void NAME(glu_forward_)(const Act act, real *y, const real *x, size_t ldx, const real *z, size_t ldz, size_t hsz,
                               int rows, int heads, int n) {
    for (int r = 0; r < rows; r++, x += ldx, z += ldz)
        for (int h = 0; h < heads; h++, y += n)
            for (int i = 0; i < n; i += LANES) AT(y + i) = READ(x + h * n + i) * NAME(act)(act, READ(z + h * hsz + i));
}

KERNEL void NAME(glu_forward)(Act act, real *y, const real *x, size_t ldx, const real *z, size_t ldz, size_t hsz,
                              int rows, int heads, int n) {
    WITH_ACT(NAME(glu_forward_), y, x, ldx, z, ldz, hsz, rows, heads, n);
}

//~ y = x * act(z).  dx may be dy where both have one stride.
HELPER void NAME(glu_backward_)(const Act act, real *dx, real *dz, const real *dy, const real *x, size_t ldx,
                                const real *z, size_t ldz, size_t hsz, int rows, int heads, int n, int add) {
    for (int r = 0; r < rows; r++, x += ldx, dx += ldx, z += ldz, dz += ldz)
        for (int h = 0; h < heads; h++, dy += n)
            for (int i = 0; i < n; i += LANES) {
                Vec slope, value = NAME(act_slope)(act, READ(z + h * hsz + i), &slope);
                Vec g = READ(dy + i), gx = g * value, gz = g * READ(x + h * n + i) * slope;
                if (add & ADD_DX) gx += READ(dx + h * n + i);
                if (add & ADD_DZ) gz += READ(dz + h * hsz + i);
                AT(dx + h * n + i) = gx;
                AT(dz + h * hsz + i) = gz;
            }
}

KERNEL void NAME(glu_backward)(Act act, real *dx, real *dz, const real *dy, const real *x, size_t ldx,
                               const real *z, size_t ldz, size_t hsz, int rows, int heads, int n, int add) {
    WITH_ACT(NAME(glu_backward_), dx, dz, dy, x, ldx, z, ldz, hsz, rows, heads, n, add);
}

/* y = g x with one factor per head: g (rows, heads). */
KERNEL void NAME(scale_forward)(real *y, const real *x, size_t ldx, const real *g, int rows, int heads, int n) {
    for (int r = 0; r < rows; r++, x += ldx)
        for (int h = 0; h < heads; h++, y += n, g++)
            for (int i = 0; i < n; i += LANES) AT(y + i) = READ(x + h * n + i) * *g;
}

//~ y = g x.  dg adds.
KERNEL void NAME(scale_backward)(real *dx, real *dg, const real *dy, const real *x, size_t ldx, const real *g,
                                 int rows, int heads, int n, int add) {
    for (int r = 0; r < rows; r++, x += ldx, dx += ldx)
        for (int h = 0; h < heads; h++, dy += n, g++, dg++) {
            Vec dot = {0};
            for (int i = 0; i < n; i += LANES) {
                Vec back = READ(dy + i) * *g;
                dot += READ(dy + i) * READ(x + h * n + i);
                if (add & ADD_DX) back += READ(dx + h * n + i);
                AT(dx + h * n + i) = back;
            }
            *dg += NAME(sum)(dot);
        }
}

/* y = rmsnorm(o) * w * act(z): norm first, then the gate. w (n) is shared by all heads. */
HELPER void NAME(gated_norm_forward_)(const Act act, real *y, real *inv, const real *o, const real *z, size_t ldz, const real *w,
                                      int rows, int heads, int n, real eps) {
    for (int r = 0; r < rows; r++, z += ldz)
        for (int h = 0; h < heads; h++, y += n, o += n) {
            Vec ss = {0};
            for (int i = 0; i < n; i += LANES) ss += READ(o + i) * READ(o + i);
            real f = *inv++ = 1 / (real)sqrt(NAME(sum)(ss) / n + eps);
            for (int i = 0; i < n; i += LANES)
                AT(y + i) = READ(o + i) * f * READ(w + i) * NAME(act)(act, READ(z + h * n + i));
        }
}

KERNEL void NAME(gated_norm_forward)(Act act, real *y, real *inv, const real *o, const real *z, size_t ldz, const real *w,
                                     int rows, int heads, int n, real eps) {
    WITH_ACT(NAME(gated_norm_forward_), y, inv, o, z, ldz, w, rows, heads, n, eps);
}

//~ y_i = o_i f w_i act(z_i),  f = (mean(o^2) + eps)^-1/2, so df/do_i = -f^3 o_i / n.  dw adds.
HELPER void NAME(gated_norm_backward_)(const Act act, real *d_o, real *dz, real *dw, const real *dy, const real *o,
                                       const real *z, size_t ldz, const real *w, const real *inv, int rows, int heads, int n) {
    for (int r = 0; r < rows; r++, z += ldz, dz += ldz)
        for (int h = 0; h < heads; h++, d_o += n, dy += n, o += n) {
            real f = *inv++;
            Vec dot = {0};
            for (int i = 0; i < n; i += LANES) {
                Vec slope, value = NAME(act_slope)(act, READ(z + h * n + i), &slope);
                Vec g = READ(dy + i), on = READ(o + i) * f;
                AT(dz + h * n + i) = g * on * READ(w + i) * slope;
                g *= value;                                     /* gradient of the normalised row times w */
                AT(dw + i) += g * on;
                g *= READ(w + i);
                dot += g * READ(o + i);
                AT(d_o + i) = g;
            }
            real c = NAME(sum)(dot) * f * f * f / n;
            for (int i = 0; i < n; i += LANES) AT(d_o + i) = READ(d_o + i) * f - READ(o + i) * c;
        }
}

KERNEL void NAME(gated_norm_backward)(Act act, real *d_o, real *dz, real *dw, const real *dy, const real *o, const real *z, size_t ldz,
                                      const real *w, const real *inv, int rows, int heads, int n) {
    WITH_ACT(NAME(gated_norm_backward_), d_o, dz, dw, dy, o, z, ldz, w, inv, rows, heads, n);
}

/* -- convolution -- */

/* Causal depthwise convolution, then silu or nothing: y_t = act(bias + sum_j w_j * x_{t - taps + 1 + j}), zeros before the start.
 * x, y (T, C), w (taps, C): the last tap meets the current token. bias may be NULL. Here the sum of token t, channels c .. c + LANES. */
HELPER Vec NAME(conv_sum)(const real *x, size_t ldx, const real *w, const real *bias, int t, int c, int C, int taps) {
    Vec s = {0};
    if (bias) s = READ(bias + c);
    for (int j = t < taps - 1 ? taps - 1 - t : 0; j < taps; j++)
        s += READ(w + (size_t)j * C + c) * READ(x + (size_t)(t - taps + 1 + j) * ldx + c);
    return s;
}

KERNEL void NAME(conv_forward)(real *y, size_t ldy, const real *x, size_t ldx, const real *w, const real *bias, bool silu,
                               int T, int C, int taps) {
    for (int t = 0; t < T; t++)
        for (int c = 0; c < C; c += LANES) {
            Vec s = NAME(conv_sum)(x, ldx, w, bias, t, c, C, taps);
            if (silu) s *= NAME(sigmoid)(s);
            AT(y + (size_t)t * ldy + c) = s;
        }
}

/* One pass over the tokens for each vector of channels, with the last `taps` inputs xs and gradients ds of the sum in registers (8 at
 * most). The sum before silu is computed again instead of kept. dw and dbias add. */
//~ y_t = act(s_t),  s_t = bias + sum_j w_j * x_{t - taps + 1 + j}:  dx_t = sum_j w_j ds_{t + taps - 1 - j}
HELPER void NAME(conv_backward_)(const int taps, real *dx, real *dw, real *dbias, const real *dy, size_t ldy,
                                 const real *x, size_t ldx, const real *w, const real *bias, bool silu, int T, int C) {
    for (int c = 0; c < C; c += LANES) {
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
                xs[taps - 1] = READ(x + (size_t)t * ldx + c);
                Vec d = READ(dy + (size_t)t * ldy + c);
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
            Vec g = {0};                     /* x_{t - taps + 1} was read by outputs t - taps + 1 .. t */
            for (int j = taps - 1; j >= 0; j--) g += wj[j] * ds[taps - 1 - j];
            AT(dx + (size_t)(t - taps + 1) * ldx + c) = g;
        }
        for (int j = 0; j < taps; j++) AT(dw + (size_t)j * C + c) += dwj[j];
        if (bias) AT(dbias + c) += db;
    }
}

/* Four taps, the usual number, as a constant. */
KERNEL void NAME(conv_backward)(real *dx, real *dw, real *dbias, const real *dy, size_t ldy, const real *x, size_t ldx,
                                const real *w, const real *bias, bool silu, int T, int C, int taps) {
    if (taps == 4) NAME(conv_backward_)(4, dx, dw, dbias, dy, ldy, x, ldx, w, bias, silu, T, C);
    else NAME(conv_backward_)(taps, dx, dw, dbias, dy, ldy, x, ldx, w, bias, silu, T, C);
}

/* -- decays -- */

/* n values at p in a vector, zeros behind them; and back. Gates per head may be fewer than the lanes. */
HELPER Vec NAME(part)(const real *p, int n) {
    if (n >= LANES) return READ(p);
    Vec x = {0};
    memcpy(&x, p, (size_t)n * sizeof(real));
    return x;
}
HELPER void NAME(put_part)(real *p, Vec x, int n) { memcpy(p, &x, (size_t)(n < LANES ? n : LANES) * sizeof(real)); }

/* Every gate between 0 and 1, per head or per channel: d = exp(rate_i ln sigmoid(sign (a_i + bias_i))).
 *   sign +1, rate 1      sigmoid(a)
 *   sign +1, rate 1/16   the decay of GLA
 *   sign -1, rate e^A    exp(-e^A softplus(a)), the decay of Mamba
 * bias (n) and rate (n) may be NULL: 0 and 1. d (rows, n). Here x = sign (a + bias), of which ln sigmoid is taken. */
HELPER Vec NAME(gate_input)(const real *a, const real *bias, real sign, int i, int n) {
    Vec x = NAME(part)(a + i, n - i);
    if (bias) x += NAME(part)(bias + i, n - i);
    return x * sign;
}

KERNEL void NAME(gate_forward)(real *d, const real *a, size_t lda, const real *bias, const real *rate, real sign, int rows, int n) {
    for (int r = 0; r < rows; r++, d += n, a += lda)
        for (int i = 0; i < n; i += LANES) {
            Vec log = NAME(logsigmoid)(NAME(gate_input)(a, bias, sign, i, n));
            if (rate) log *= NAME(part)(rate + i, n - i);
            NAME(put_part)(d + i, NAME(exp)(log), n - i);
        }
}

//~ d = exp(rate logsigmoid(x)),  x = sign (a + bias);  logsigmoid'(x) = sigmoid(-x).  dbias and drate add.
KERNEL void NAME(gate_backward)(real *da, real *dbias, real *drate, const real *dd, const real *d, const real *a, size_t lda,
                                const real *bias, const real *rate, real sign, int rows, int n) {
    for (int r = 0; r < rows; r++, da += lda, dd += n, d += n, a += lda)
        for (int i = 0; i < n; i += LANES) {
            Vec x = NAME(gate_input)(a, bias, sign, i, n);
            Vec g = NAME(part)(dd + i, n - i) * NAME(part)(d + i, n - i); /* gradient of the logarithm of d */
            if (drate) NAME(put_part)(drate + i, NAME(part)(drate + i, n - i) + g * NAME(logsigmoid)(x), n - i);
            if (rate) g *= NAME(part)(rate + i, n - i);
            g *= NAME(sigmoid)(-x) * sign;
            if (bias) NAME(put_part)(dbias + i, NAME(part)(dbias + i, n - i) + g, n - i);
            NAME(put_part)(da + i, g, n - i);
        }
}

/* -- softmax -- */

/* Causal softmax of `rows` rows of scores, in place: row r is query first + r and sees keys 0 .. first + r; a row
 * holds n, a multiple of 16.  p = exp(scale s - lse), lse = ln sum exp(scale s). This one is for the way back, when lse is known. */
KERNEL void NAME(softmax_recompute)(real *p, const real *lse, int rows, int first, int n, real scale) {
    for (int r = 0; r < rows; r++, p += n) {
        int seen = first + r + 1;
        for (int i = 0; i < n; i += LANES) AT(p + i) = NAME(exp)(READ(p + i) * scale - lse[r]);
        for (int i = seen; i < n; i++) p[i] = 0;
    }
}

/* The same for the first time: it finds lse (rows). The largest score is taken out first, so that no e^x overflows. */
KERNEL void NAME(softmax_forward)(real *p, real *lse, int rows, int first, int n, real scale) {
    for (int r = 0; r < rows; r++, p += n) {
        int seen = first + r + 1;
        const real max = NAME(largest)(p, seen);
        Vec sum = {0};
        for (int i = seen; i < n; i++) p[i] = max;              /* finite; taken out of the sum below */
        for (int i = 0; i < n; i += LANES) {
            Vec e = NAME(exp)((READ(p + i) - max) * scale);
            AT(p + i) = e;
            if (i + LANES <= seen) sum += e;
        }
        real total = NAME(sum)(sum);
        for (int i = seen - seen % LANES; i < seen; i++) total += p[i];
        for (int i = seen; i < n; i++) p[i] = 0;
        for (int i = 0; i < n; i += LANES) AT(p + i) = READ(p + i) * (1 / total);
        lse[r] = max * scale + (real)log(total);
    }
}

//~ p_i = exp(scale s_i - lse), so ds_i = scale p_i (dp_i - sum_j p_j dp_j).  In place: dp becomes ds.
KERNEL void NAME(softmax_backward)(real *dp, const real *p, int rows, int keys, int n, real scale) {
    for (int r = 0; r < rows; r++, dp += n, p += n) {
        Vec dot = {0};
        for (int i = keys; i < n; i++) dp[i] = 0;
        for (int i = 0; i < n; i += LANES) dot += READ(p + i) * READ(dp + i);
        real c = NAME(sum)(dot);
        for (int i = 0; i < n; i += LANES) AT(dp + i) = READ(p + i) * (READ(dp + i) - c) * scale;
    }
}

/* Sum over rows of -ln softmax(x)[target] (nats); rows whose target is negative do not count.
 * The logits x (rows, n) become their gradient times scale: softmax - onehot. n need not be a multiple of the lanes. */
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
            AT(x + i) = NAME(exp)(READ(x + i) - max);
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

/* Forward: see section 4 for the equations. S is held as (dk, dv): the lanes are value columns, so recall and readout need no
 * sum across lanes. `wide` vectors of columns are kept in registers at a time, and rows go in twos (0 and 1) into two sums. */
HELPER void NAME(recurrence_forward_)(const Scan *r, const int wide, const int mode) {
    const bool erase = mode & SCAN_ERASES, back = mode & SCAN_WRITES_BACK;
    const bool fade = mode & SCAN_FADES_VALUES, first = mode & SCAN_READS_FIRST;
    const int dk = r->dk, dv = r->dv;
    real *S = r->scratch;
    memset(S, 0, (size_t)dk * dv * sizeof *S);
    for (int t = 0; t < r->T; t++) {
        const real *q = r->q + t * r->ldk, *k = r->k + t * r->ldk, *v = r->v + t * r->ldv, *d = r->d + t * r->ldd;
        const real *e = erase || back ? r->e + t * r->ldk : NULL, *b = back ? r->b + t * r->ldk : NULL;
        const real rho = erase ? r->rho[t * r->ldr] : 0;
        real *o = r->o + t * r->ldv, *w = r->w + t * r->ldv;
        if (t % CHUNK == 0)                                     /* keep the state before this token, transposed */
            for (int j = 0; j < dv; j++)
                for (int i = 0; i < dk; i++) r->S[((size_t)(t / CHUNK) * dv + j) * dk + i] = S[(size_t)i * dv + j];
        for (int j = 0; j < dv; j += wide * LANES) {
            Vec a[2][8] = {{{0}}}, rj[8], cj[8];                /* two sums over rows; r and c of these columns */
            if (erase || back)                                  // r = S'e
                for (int i = 0; i < dk; i += 2)
                    for (int c = 0; c < wide; c++) {
                        a[0][c] += e[i] * READ(S + (size_t)i * dv + j + c * LANES);
                        a[1][c] += e[i + 1] * READ(S + (size_t)(i + 1) * dv + j + c * LANES);
                    }
            Vec wj[8];
            for (int c = 0; c < wide; c++) {                    // w = v - rho r
                wj[c] = READ(v + j + c * LANES);
                if (erase) {
                    wj[c] -= rho * (a[0][c] + a[1][c]);
                    AT(w + j + c * LANES) = wj[c];
                }
                if (back) AT(w + j + c * LANES) = rj[c] = a[0][c] + a[1][c];
                if (fade) cj[c] = READ(r->c + t * r->ldv + j + c * LANES);
                a[0][c] = a[1][c] = (Vec){0};
            }
            for (int i = 0; i < dk; i += 2) {                   // S = Diag(d) S Diag(c) + k w' + b r';  o = S'q
                real d0 = d[r->vector_decay ? i : 0], d1 = d[r->vector_decay ? i + 1 : 0];
                for (int c = 0; c < wide; c++) {
                    real *s0 = S + (size_t)i * dv + j + c * LANES, *s1 = s0 + dv;
                    if (first) a[0][c] += q[i] * READ(s0), a[1][c] += q[i + 1] * READ(s1);
                    Vec n0 = d0 * READ(s0), n1 = d1 * READ(s1);
                    if (fade) n0 *= cj[c], n1 *= cj[c];
                    n0 += k[i] * wj[c], n1 += k[i + 1] * wj[c];
                    if (back) n0 += b[i] * rj[c], n1 += b[i + 1] * rj[c];
                    if (!first) a[0][c] += q[i] * n0, a[1][c] += q[i + 1] * n1;
                    AT(s0) = n0, AT(s1) = n1;
                }
            }
            for (int c = 0; c < wide; c++) AT(o + j + c * LANES) = a[0][c] + a[1][c];
        }
    }
}

/* Calls body(r, n, mode) with the mode a constant. */
#define WITH_MODE(body, n)                                            \
    (r->mode == SCAN_ERASES         ? body(r, n, SCAN_ERASES)         \
     : r->mode == SCAN_WRITES_BACK  ? body(r, n, SCAN_WRITES_BACK)    \
     : r->mode == SCAN_FADES_VALUES ? body(r, n, SCAN_FADES_VALUES)   \
     : r->mode == SCAN_READS_FIRST  ? body(r, n, SCAN_READS_FIRST)    \
                                    : body(r, n, 0))

KERNEL void NAME(recurrence_forward)(const Scan *r) {
    if (r->dv % 32 == 0 && 32 / LANES <= 8) WITH_MODE(NAME(recurrence_forward_), 32 / LANES);
    else WITH_MODE(NAME(recurrence_forward_), 1);
}

/* Vector c of the decay of token t. */
HELPER Vec NAME(decay)(const Scan *r, size_t t, int c) {
    if (r->vector_decay) return READ(r->d + t * r->ldd + c * LANES);
    return (Vec){0} + r->d[t * r->ldd];
}

/* Backward, from the last token to the first: again the equations of section 4. Chunk by chunk the states are computed again from the
 * one that was kept; then dS, the gradient of the state behind a token, walks back over them. States and dS are held transposed,
 * (dv, dk): the lanes are key channels, nv vectors of them make a row, which is one value column, and only dw, dr and dc, and once per
 * token drho and a decay per head, need a sum across lanes. */
HELPER void NAME(recurrence_backward_)(const Scan *r, const int nv, const int mode) {
    enum { MOST = 128 / (LANES < 4 ? 1 : LANES) };                   /* vectors of the widest key, 128 */
    const bool erase = mode & SCAN_ERASES, back = mode & SCAN_WRITES_BACK;
    const bool fade = mode & SCAN_FADES_VALUES, first = mode & SCAN_READS_FIRST;
    const int dk = r->dk, dv = r->dv;
    const size_t size = (size_t)dk * dv;
    real *states = r->scratch, *dS = states + (CHUNK + 1) * size;    /* states[n]: before token n of the chunk */
    memset(dS, 0, size * sizeof *dS);
    for (int begin = (r->T - 1) / CHUNK * CHUNK; begin >= 0; begin -= CHUNK) {
        const int n = r->T - begin < CHUNK ? r->T - begin : CHUNK;
        Vec q[MOST], k[MOST], d[MOST], e[MOST], b[MOST], dq[MOST], dk_[MOST], dd[MOST], db[MOST], y[MOST];
        memcpy(states, r->S + begin / CHUNK * size, size * sizeof *states);
        for (int s = 0; s < n; s++) {                           /* the chunk's states again, from the kept one */
            const size_t t = (size_t)begin + s;
            const real *w = (erase ? r->w : r->v) + t * r->ldv, *recalled = r->w + t * r->ldv, *S0 = states + s * size;
            real *S1 = states + (s + 1) * size;
            for (int c = 0; c < nv; c++) {
                k[c] = READ(r->k + t * r->ldk + c * LANES);
                d[c] = NAME(decay)(r, t, c);
                if (back) b[c] = READ(r->b + t * r->ldk + c * LANES);
            }
            for (int j = 0; j < dv; j++)
                for (int c = 0; c < nv; c++) {
                    Vec kept = d[c] * READ(S0 + j * dk + c * LANES);
                    if (fade) kept *= r->c[t * r->ldv + j];
                    if (back) kept += recalled[j] * b[c];
                    AT(S1 + j * dk + c * LANES) = kept + w[j] * k[c];
                }
        }
        for (int s = n - 1; s >= 0; s--) {                      /* dS is that of S1; it leaves as that of S0 */
            const size_t t = (size_t)begin + s;
            const real *w = (erase ? r->w : r->v) + t * r->ldv, *recalled = r->w + t * r->ldv, *d_o = r->d_o + t * r->ldv;
            const real *S0 = states + s * size, *S1 = S0 + size, rho = erase ? r->rho[t * r->ldr] : 0;
            real *dv_ = r->dval + t * r->ldv;
            for (int c = 0; c < nv; c++) {
                q[c] = READ(r->q + t * r->ldk + c * LANES);
                k[c] = READ(r->k + t * r->ldk + c * LANES);
                d[c] = NAME(decay)(r, t, c);
                if (erase || back) e[c] = READ(r->e + t * r->ldk + c * LANES);
                if (back) b[c] = READ(r->b + t * r->ldk + c * LANES);
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
                        dd[c] += r->c[t * r->ldv + j] * g[c] * before;
                    } else dd[c] += g[c] * before;
                }
                if (fade) r->dc[t * r->ldv + j] = NAME(sum)(along_d);
                //~ w = v - rho r
                real dw = dv_[j] = NAME(sum)(dot);
                real dr = back ? NAME(sum)(along_b) : -rho * dw;
                for (int c = 0; c < nv; c++) {
                    Vec gone = d[c] * g[c];                     /* gradient of the state before the token */
                    if (fade) gone *= r->c[t * r->ldv + j];
                    if (first) gone += d_o[j] * q[c];
                    if (erase || back) {
                        //~ r = S'e;  y = S dw or S dr:  de = -rho y and drho = -r.dw = -e.y, or de = y
                        y[c] += (back ? dr : dw) * READ(S0 + j * dk + c * LANES);
                        gone += dr * e[c];
                    }
                    AT(dS + j * dk + c * LANES) = gone;
                }
            }
            Vec dot = {0}, dsum = {0};
            for (int c = 0; c < nv; c++) {
                AT(r->dq + t * r->ldk + c * LANES) = dq[c];
                AT(r->dkey + t * r->ldk + c * LANES) = dk_[c];
                if (r->vector_decay) AT(r->dd + t * r->ldd + c * LANES) = dd[c];
                else dsum += dd[c];
                if (erase) {
                    AT(r->de + t * r->ldk + c * LANES) = -rho * y[c];
                    dot += e[c] * y[c];
                }
                if (back) {
                    AT(r->de + t * r->ldk + c * LANES) = y[c];
                    AT(r->db + t * r->ldk + c * LANES) = db[c];
                }
            }
            if (!r->vector_decay) r->dd[t * r->ldd] = NAME(sum)(dsum);
            if (erase) r->drho[t * r->ldr] = -NAME(sum)(dot);
        }
    }
}

KERNEL void NAME(recurrence_backward)(const Scan *r) {
    if (r->dk == 32) WITH_MODE(NAME(recurrence_backward_), 32 / LANES);
    else WITH_MODE(NAME(recurrence_backward_), r->dk / LANES);
}

/* -- AdamW -- */

/* m, v: running means of the gradient, times gscale, and of its square; c1, c2 undo their start at zero; the decay pulls the
 * parameter to zero on its own, outside the adaptive step (source: Loshchilov and Hutter 2019). All (n), n a multiple of 16. */
KERNEL void NAME(adamw)(real *p, const real *g, real *m, real *v, size_t n, real lr, real b1, real b2, real eps, real decay,
                        real c1, real c2, real gscale) {
    for (size_t i = 0; i < n; i += LANES) {
        Vec gi = READ(g + i) * gscale;
        AT(m + i) = b1 * READ(m + i) + (1 - b1) * gi;
        AT(v + i) = b2 * READ(v + i) + (1 - b2) * gi * gi;
        AT(p + i) -= lr * (READ(m + i) * c1 / (NAME(sqrt)(READ(v + i) * c2) + eps) + decay * READ(p + i));
    }
}

/* -- the table -- */

static const TinyKernels NAME(kernels) = {
    NAME_TEXT, LANES, TILE_ROWS, TILE_COLS,
    NAME(gemm_tile), NAME(pack_rows), NAME(pack_panel),
    NAME(rmsnorm_forward), NAME(rmsnorm_backward),
    NAME(l2norm_forward), NAME(l2norm_backward),
    NAME(map_forward), NAME(map_backward),
    NAME(glu_forward), NAME(glu_backward),
    NAME(scale_forward), NAME(scale_backward),
    NAME(gated_norm_forward), NAME(gated_norm_backward),
    NAME(conv_forward), NAME(conv_backward),
    NAME(gate_forward), NAME(gate_backward),
    NAME(softmax_forward), NAME(softmax_recompute), NAME(softmax_backward),
    NAME(cross_entropy),
    NAME(recurrence_forward), NAME(recurrence_backward),
    NAME(adamw)
};
#undef LANES
#undef Vec
#undef AT
#undef READ
#undef KERNEL
#undef HELPER
#undef TILE_COLS
#undef WITH_ACT
#undef WITH_MAP
#undef WITH_MODE
#undef TARGET
#undef NAME
#undef NAME_TEXT
#undef VECTOR_BYTES
#undef TILE_ROWS
#undef TILE_VECS
#else

/* Tile sizes leave room for the accumulators in the registers of the instruction set: 32 of 64 bytes, 16 of 32, 16 of 16. */
#if defined(__GNUC__) && defined(__x86_64__)
#define TARGET __attribute__((target("avx512f")))
#define NAME(x) x##_tiny_avx512
#define NAME_TEXT "avx512"
#define VECTOR_BYTES 64
#define TILE_ROWS 12
#define TILE_VECS 2
#include "train_tiny.c"
#define TARGET __attribute__((target("avx2,fma")))
#define NAME(x) x##_tiny_avx2
#define NAME_TEXT "avx2"
#define VECTOR_BYTES 32
#define TILE_ROWS 6
#define TILE_VECS 2
#include "train_tiny.c"
#endif
#define TARGET
#define NAME(x) x##_tiny_plain
#define NAME_TEXT "plain"
#define VECTOR_BYTES 16
#define TILE_ROWS 4
#define TILE_VECS 2
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
 * Every product is c (M, N) = or += a (M, K) b (K, N), with a and b read through two strides, so the three products of
 * a layer, Y = X W', dX = dY W, dW = dY' X, are one function. b is packed into panels of kern.tile_cols columns; a is
 * packed only when its rows are not contiguous. One thread owns an element of c and adds its terms in one order. */

/* Memory that the program cannot do without: returns p; exits if that is NULL. */
static void *checked(void *p) {
    if (!p) fprintf(stderr, "train_tiny: out of memory\n"), exit(1);
    return p;
}

/* Work space of one thread (slot = its number) or shared by all (slot = -1), grown on demand, kept for the next call. */
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

/* Reals that b (K, N) takes in panels of whole tiles. */
static size_t packed_size(int K, int N) { return (size_t)K * ceil_div(N, kern.tile_cols) * kern.tile_cols; }

/* Rows of c of one unit of parallel work; where a has to be packed, as many as there is room for. */
static int chunk_rows(size_t acs) { return kern.tile_rows * (acs == 1 ? 4 : 2); }

/* Rows i0 .. i0 + rows of c (M, N), from a and the packed b; apack holds 2 tiles of DEPTH columns of a. */
static void gemm_chunk(real *c, size_t ldc, const real *a, size_t ars, size_t acs, const real *packed,
                       int i0, int rows, int N, int K, int add, real *apack) {
    const int mr = kern.tile_rows, nc = kern.tile_cols;
    const int most = ceil_div(K, ceil_div(K, DEPTH));                             /* parts of one size: each reads and writes all of c */
    for (int k0 = 0; k0 < K; k0 += most) {
        const int depth = least(most, K - k0);
        if (acs != 1) kern.pack_rows(apack, a + i0 + k0 * acs, acs, rows, depth); /* a transposed: ars is 1 */
        for (int j = 0; j < N; j += nc)
            for (int i = 0; i < rows; i += mr)
                kern.tile(c + (i0 + i) * ldc + j, ldc, least(mr, rows - i), least(nc, N - j),
                          acs == 1 ? a + (i0 + i) * ars + k0 : apack + (size_t)i * DEPTH,
                          acs == 1 ? ars : 1, acs == 1 ? 1 : (size_t)mr,
                          packed + ((size_t)j * K + (size_t)k0 * nc), depth, add || k0);
    }
}

/* c = or += a b in the calling thread; buf holds packed_size(K, N) + 2 MAX_TILE DEPTH reals. */
static void gemm_serial(real *c, size_t ldc, const real *a, size_t ars, size_t acs, const real *b, size_t brs, size_t bcs,
                        int M, int N, int K, int add, real *buf) {
    real *apack = buf + packed_size(K, N);
    for (int j = 0; j < N; j += kern.tile_cols)
        kern.pack_panel(buf + (size_t)j * K, b + j * bcs, brs, bcs, K, least(kern.tile_cols, N - j));
    for (int i = 0, step = chunk_rows(acs); i < M; i += step)
        gemm_chunk(c, ldc, a, ars, acs, buf, i, least(step, M - i), N, K, add, apack);
}

/* The same with all threads. */
static void gemm(real *c, size_t ldc, const real *a, size_t ars, size_t acs, const real *b, size_t brs, size_t bcs,
                 int M, int N, int K, int add) {
    real *packed = space(-1, packed_size(K, N));
    const int panels = ceil_div(N, kern.tile_cols), step = chunk_rows(acs), chunks = ceil_div(M, step);
    PARALLEL
    for (int p = 0; p < panels; p++) {
        int j = p * kern.tile_cols;
        kern.pack_panel(packed + (size_t)j * K, b + j * bcs, brs, bcs, K, least(kern.tile_cols, N - j));
    }
    PARALLEL
    for (int n = 0; n < chunks; n++)
        gemm_chunk(c, ldc, a, ars, acs, packed, n * step, least(step, M - n * step), N, K, add, space(THREAD, 2 * MAX_TILE * DEPTH));
}

/* y (n, out) = or += x (n, in) w' , w (out, in). Rows of x and y are ldx and ldy reals apart. */
static void matmul_forward(real *y, size_t ldy, const real *x, size_t ldx, const real *w, int n, int in, int out, int add) {
    gemm(y, ldy, x, ldx, 1, w, 1, in, n, out, in, add);
}

//~ y = x w'.  dx = or += dy w, or dx is NULL and not wanted;  dw += dy' x
static void matmul_backward(real *dx, real *dw, const real *dy, size_t ldy, const real *x, size_t ldx, const real *w,
                            int n, int in, int out, int add) {
    if (dx) gemm(dx, ldx, dy, ldy, 1, w, in, 1, n, in, out, add);
    gemm(dw, in, dy, 1, ldy, x, ldx, 1, out, in, n, 1);
}

/* ---- 4. the recurrence ---------------------------------------------------------------------
 * One head, one token; S (dk, dv) starts at zero; q, k, e, b (dk), v, w, r, o, c (dv), d (dk) or one number:
 *
 *   r  = S'e                    what the memory holds under key e      (S' is S transposed)
 *   w  = v - rho r              the value to write, less what is there already
 *   S <- Diag(d) S + k w'       forget, then write
 *   o  = S'q                    read
 *
 * Every mixer of the family is a choice of d, e and rho. A gated delta rule passes e = d k, because it recalls from
 * the decayed memory: S'(d k) = (d S)'k. With no e nothing is erased (GLA, RetNet, Mamba-2 ...). Some do one thing more:
 *
 *   SCAN_WRITES_BACK     S <- Diag(d) S + k v' + b r'      what was recalled goes back under another key (RWKV-7; b is w in run.c)
 *   SCAN_FADES_VALUES    S <- Diag(d) S Diag(c) + k v'     columns fade, too (the keys of GSA's slots)
 *   SCAN_READS_FIRST     o is read before the write (RWKV-6)
 *
 * Backward, from the last token to the first, with dS the gradient of the state after the token:
 *
 *   dS += q do',   dq = S do                   from o = S'q; when read first, dSold += q do', dq = Sold do
 *   dk  = dS w,    dw = dS'k                   from the write
 *   db  = dS r,    dr = dS'b                   from the write back
 *   dd_i = sum_j dS_ij Sold_ij c_j,  dc_j = sum_i d_i dS_ij Sold_ij,  dSold = Diag(d) dS Diag(c)
 *   dv  = dw,      drho = -r.dw,   dr = -rho dw
 *   de  = Sold dr, dSold += e dr'              from r = Sold'e
 *
 * Kept from the forward run: w (or r, where that is written back), and S before every CHUNK-th token, T dk dv / CHUNK
 * reals per head. Recomputed: the states within a chunk, (CHUNK + 1) dk dv reals per thread.
 *
 * What computes this is recurrence_forward and recurrence_backward in section 2; here it is handed out by heads. */

/* The states of a chunk, and dS. */
static size_t recurrence_scratch(int dk, int dv) { return (size_t)(CHUNK + 2) * dk * dv; }

/* All heads of B sequences; names as in Scan. Arrays are (B T, heads * width); d is (B T, heads * dk) or (B T, heads), rho (B T, heads). */
typedef struct {
    int B, T, heads, dk, dv;
    bool vector_decay;
    int mode;
    real *q, *k, *v, *d, *e, *rho, *c, *b, *w, *o, *S;
    real *d_o, *dq, *dkey, *dval, *dd, *de, *drho, *dc, *db;
} Memory;

/* Reals of the states that are kept. */
static size_t memory_states(int B, int T, int heads, int dk, int dv) {
    return (size_t)B * heads * ceil_div(T, CHUNK) * dk * dv;
}

static real *from(real *p, size_t at) { return p ? p + at : NULL; }

/* Head n % heads of sequence n / heads, with the scratch of the calling thread. */
static Scan one_head(const Memory *m, int n) {
    const size_t h = n % m->heads, row = (size_t)(n / m->heads) * m->T, ldd = m->heads * (m->vector_decay ? m->dk : 1);
    const size_t k = row * m->heads * m->dk + h * m->dk, v = row * m->heads * m->dv + h * m->dv;  /* where its arrays begin */
    const size_t d = row * ldd + h * (m->vector_decay ? m->dk : 1), rho = row * m->heads + h;
    return (Scan){
        .T = m->T, .dk = m->dk, .dv = m->dv, .vector_decay = m->vector_decay, .mode = m->mode,
        .ldk = (size_t)m->heads * m->dk, .ldv = (size_t)m->heads * m->dv, .ldd = ldd, .ldr = m->heads,
        .q = from(m->q, k), .k = from(m->k, k), .v = from(m->v, v), .d = from(m->d, d),
        .e = from(m->e, k), .rho = from(m->rho, rho), .c = from(m->c, v), .b = from(m->b, k),
        .w = from(m->w, v), .o = from(m->o, v), .S = m->S + (size_t)n * ceil_div(m->T, CHUNK) * m->dk * m->dv,
        .d_o = from(m->d_o, v), .dq = from(m->dq, k), .dkey = from(m->dkey, k), .dval = from(m->dval, v), .dd = from(m->dd, d),
        .de = from(m->de, k), .drho = from(m->drho, rho), .dc = from(m->dc, v), .db = from(m->db, k),
        .scratch = space(THREAD, recurrence_scratch(m->dk, m->dv))
    };
}

/* o, and what backward needs: w and S. */
static void memory_forward(const Memory *m) {
    PARALLEL
    for (int n = 0; n < m->B * m->heads; n++) {
        Scan r = one_head(m, n);
        kern.recurrence_forward(&r);
    }
}

//~ w, o, S = the recurrence over q, k, v, d, e, rho, c, b
static void memory_backward(const Memory *m) {
    PARALLEL
    for (int n = 0; n < m->B * m->heads; n++) {
        Scan r = one_head(m, n);
        kern.recurrence_backward(&r);
    }
}

/* ---- 5. pairs, forward and backward --------------------------------------------------------
 * The kernels of section 2 over all N = B T tokens, in blocks of BLOCK rows, and what is too rare to be a kernel. A gradient
 * that is summed over tokens goes to one row per block first; the rows are then added in order, so the number of threads
 * changes no bit. Backward functions take the arguments of their forward ones, with gradients in front. Its rooms:
 *
 *   norms, gates, biases     rmsnorm, gated norm, glu, activations, a bias, layernorm
 *   what RWKV adds           the shift to the token before, the bonus, the keys of RWKV-7, values blended with the first layer's
 *   what other mixers add    softmax over slots, a decay that is a softmax over time, Comba's keys, keys divided by a second moment
 *   order                    the short convolution, rotary positions
 *   softmax attention        in blocks of queries
 *   embedding */

/* dw (n) += the rows of part (blocks, n), in order. */
static void add_blocks(real *dw, const real *part, int blocks, int n) {
    for (int b = 0; b < blocks; b++)
        for (int i = 0; i < n; i++) dw[i] += part[(size_t)b * n + i];
}

static real *zeroed(real *p, size_t n) { return memset(p, 0, n * sizeof *p); }

/* -- norms, gates, biases -- */

/* y = rmsnorm(x) w for rows of `heads` vectors of n reals, hsx apart; a row of x is ldx from the next. w (n) is shared; inv (N, heads). */
static void rmsnorm_forward(real *y, size_t ldy, size_t hsy, real *inv, const real *x, size_t ldx, size_t hsx,
                            const real *w, int N, int heads, int n, real eps) {
    PARALLEL
    for (int r = 0; r < N; r += BLOCK)
        kern.rmsnorm_forward(y + r * ldy, ldy, hsy, inv + (size_t)r * heads, x + r * ldx, ldx, hsx, w,
                             least(BLOCK, N - r), heads, n, eps);
}

//~ y = x inv w.  dx is assigned, or added to with `add`.
static void rmsnorm_backward(real *dx, real *dw, const real *dy, size_t ldy, size_t hsy, const real *x, size_t ldx, size_t hsx,
                             const real *w, const real *inv, int N, int heads, int n, int add) {
    const int blocks = ceil_div(N, BLOCK);
    real *part = zeroed(space(-1, (size_t)blocks * n), (size_t)blocks * n);
    PARALLEL
    for (int r = 0; r < N; r += BLOCK)
        kern.rmsnorm_backward(dx + r * ldx, ldx, hsx, part + (size_t)(r / BLOCK) * n, dy + r * ldy, ldy, hsy, x + r * ldx, w,
                              inv + (size_t)r * heads, least(BLOCK, N - r), heads, n, add);
    add_blocks(dw, part, blocks, n);
}

/* y = rmsnorm(o) w act(z) per head, or without a gate (z NULL); y, o, z (N, heads n), of z in rows ldz apart; w (n), inv (N, heads). */
static void gated_norm_forward(Act act, real *y, real *inv, const real *o, const real *z, size_t ldz, const real *w,
                               int N, int heads, int n, real eps) {
    const size_t V = (size_t)heads * n;
    if (!z) { rmsnorm_forward(y, V, n, inv, o, V, n, w, N, heads, n, eps); return; }
    PARALLEL
    for (int r = 0; r < N; r += BLOCK)
        kern.gated_norm_forward(act, y + r * V, inv + (size_t)r * heads, o + r * V, z + r * ldz, ldz, w,
                                least(BLOCK, N - r), heads, n, eps);
}

//~ y = o inv w act(z)
static void gated_norm_backward(Act act, real *d_o, real *dz, real *dw, const real *dy, const real *o, const real *z, size_t ldz,
                                const real *w, const real *inv, int N, int heads, int n) {
    const size_t V = (size_t)heads * n;
    if (!z) { rmsnorm_backward(d_o, dw, dy, V, n, o, V, n, w, inv, N, heads, n, 0); return; }
    const int blocks = ceil_div(N, BLOCK);
    real *part = zeroed(space(-1, (size_t)blocks * n), (size_t)blocks * n);
    PARALLEL
    for (int r = 0; r < N; r += BLOCK)
        kern.gated_norm_backward(act, d_o + r * V, dz + r * ldz, part + (size_t)(r / BLOCK) * n, dy + r * V, o + r * V,
                                 z + r * ldz, ldz, w, inv + (size_t)r * heads, least(BLOCK, N - r), heads, n);
    add_blocks(dw, part, blocks, n);
}

/* y = x act(z), element by element; y (N, heads n), the vectors of z hsz apart. */
static void glu_forward(Act act, real *y, const real *x, size_t ldx, const real *z, size_t ldz, size_t hsz, int N, int heads, int n) {
    PARALLEL
    for (int r = 0; r < N; r += BLOCK)
        kern.glu_forward(act, y + (size_t)r * heads * n, x + r * ldx, ldx, z + r * ldz, ldz, hsz, least(BLOCK, N - r), heads, n);
}

//~ y = x act(z).  add: ADD_DX, ADD_DZ.
static void glu_backward(Act act, real *dx, real *dz, const real *dy, const real *x, size_t ldx, const real *z, size_t ldz, size_t hsz,
                         int N, int heads, int n, int add) {
    PARALLEL
    for (int r = 0; r < N; r += BLOCK)
        kern.glu_backward(act, dx + r * ldx, dz + r * ldz, dy + (size_t)r * heads * n, x + r * ldx, ldx, z + r * ldz, ldz, hsz,
                          least(BLOCK, N - r), heads, n, add);
}

/* y = act(x), x and y (N, n). */
static void act_forward(Act act, real *y, const real *x, int N, int n) {
    PARALLEL
    for (int r = 0; r < N; r += BLOCK) kern.map_forward(act, y + (size_t)r * n, x + (size_t)r * n, n, least(BLOCK, N - r), n, 1);
}

//~ y = act(x).  dx may be dy.
static void act_backward(Act act, real *dx, const real *dy, const real *x, int N, int n) {
    PARALLEL
    for (int r = 0; r < N; r += BLOCK)
        kern.map_backward(act, dx + (size_t)r * n, n, dy + (size_t)r * n, x + (size_t)r * n, least(BLOCK, N - r), n, 1);
}

/* Rows y (N, n) that begin as a bias b (n); a product is added to them afterwards. */
static void bias_forward(real *y, const real *b, int N, int n) {
    PARALLEL
    for (int r = 0; r < N; r++) memcpy(y + (size_t)r * n, b, n * sizeof *y);
}

//~ y_r = b + ...
static void bias_backward(real *db, const real *dy, int N, int n) {
    for (int r = 0; r < N; r++)
        for (int i = 0; i < n; i++) db[i] += dy[(size_t)r * n + i];
}

/* y = (x - mean(x)) / sqrt(var(x) + eps) * w + b for `heads` vectors of n per row, next to each other; w, b (heads n).
 * stat (N, heads, 2) keeps mean and factor. */
static void layernorm_forward(real *y, real *stat, const real *x, const real *w, const real *b, int N, int heads, int n, real eps) {
    PARALLEL
    for (int r = 0; r < N * heads; r++) {
        const real *xr = x + (size_t)r * n, *wr = w + (size_t)(r % heads) * n, *br = b + (size_t)(r % heads) * n;
        double mean = 0, var = 0;
        for (int i = 0; i < n; i++) mean += xr[i];
        mean /= n;
        for (int i = 0; i < n; i++) var += (xr[i] - mean) * (xr[i] - mean);
        const real f = (real)(1 / sqrt(var / n + eps)), mu = (real)mean;
        for (int i = 0; i < n; i++) y[(size_t)r * n + i] = (xr[i] - mu) * f * wr[i] + br[i];
        stat[2 * r] = mu;
        stat[2 * r + 1] = f;
    }
}

//~ y = c w + b,  c = (x - mean) f:  dx = f (g - mean(g) - c mean(g c)),  g = dy w.  dw, db add; dx does with `add`.
static void layernorm_backward(real *dx, real *dw, real *db, const real *dy, const real *x, const real *w, const real *stat,
                               int N, int heads, int n, int add) {
    const int blocks = ceil_div(N, BLOCK), all = heads * n;
    real *part = zeroed(space(-1, (size_t)blocks * 2 * all), (size_t)blocks * 2 * all);
    PARALLEL
    for (int block = 0; block < blocks; block++) {
        real *pw = part + (size_t)block * all, *pb = pw + (size_t)blocks * all;     /* of dw; of db */
        for (int r = block * BLOCK * heads; r < least((block + 1) * BLOCK, N) * heads; r++) {
            const real mu = stat[2 * r], f = stat[2 * r + 1];
            const real *xr = x + (size_t)r * n, *dyr = dy + (size_t)r * n, *wr = w + (size_t)(r % heads) * n;
            double mean = 0, along = 0;                         /* sums of g and of g c */
            for (int i = 0; i < n; i++) {
                const real g = dyr[i] * wr[i], c = (xr[i] - mu) * f;
                mean += g;
                along += g * c;
                pw[(r % heads) * n + i] += dyr[i] * c;
                pb[(r % heads) * n + i] += dyr[i];
            }
            for (int i = 0; i < n; i++) {
                const real g = f * (dyr[i] * wr[i] - (real)(mean / n) - (xr[i] - mu) * f * (real)(along / n));
                real *to = dx + (size_t)r * n + i;
                *to = add ? *to + g : g;
            }
        }
    }
    add_blocks(dw, part, blocks, all);
    add_blocks(db, part + (size_t)blocks * all, blocks, all);
}

/* -- what RWKV adds -- */

/* Token shift: y_t = x_t + (x_(t-1) - x_t) share_t, zeros before the first; x, y (B T, D). The shares (D) of a token are `step` reals
 * from those of the next: 0 when every token has the same. */
static void shift_forward(real *y, const real *x, const real *share, size_t step, int B, int T, int D) {
    PARALLEL
    for (int r = 0; r < B * T; r++)
        for (int i = 0; i < D; i++) {
            const real now = x[(size_t)r * D + i], before = r % T ? x[(size_t)(r - 1) * D + i] : 0;
            y[(size_t)r * D + i] = now + (before - now) * share[r * step + i];
        }
}

//~ y_t = x_t (1 - share_t) + x_(t-1) share_t.  dx adds; dshare adds with step 0, else it is assigned.
static void shift_backward(real *dx, real *dshare, const real *dy, const real *x, const real *share, size_t step, int B, int T, int D) {
    real *part = step ? NULL : zeroed(space(-1, (size_t)B * D), (size_t)B * D);
    PARALLEL
    for (int b = 0; b < B; b++)
        for (int t = 0; t < T; t++) {
            const size_t r = (size_t)b * T + t;
            for (int i = 0; i < D; i++) {
                const real g = dy[r * D + i], s = share[r * step + i];
                const real before = t ? x[(r - 1) * D + i] : 0, ds = g * (before - x[r * D + i]);
                dx[r * D + i] += g * (1 - s);
                if (t) dx[(r - 1) * D + i] += g * s;
                if (step) dshare[r * D + i] = ds;
                else part[(size_t)b * D + i] += ds;
            }
        }
    if (!step) add_blocks(dshare, part, B, D);
}

/* The bonus of the token that is being read: o += (q . u k) v per head; o, v (N, H dv), q, k (N, H dk), u (H dk). */
static void bonus_forward(real *o, const real *q, const real *k, const real *v, const real *u, int N, int H, int dk, int dv) {
    PARALLEL
    for (int r = 0; r < N * H; r++) {
        double sum = 0;
        for (int i = 0; i < dk; i++) sum += q[(size_t)r * dk + i] * u[r % H * dk + i] * k[(size_t)r * dk + i];
        for (int j = 0; j < dv; j++) o[(size_t)r * dv + j] += (real)sum * v[(size_t)r * dv + j];
    }
}

//~ o += s v,  s = q . u k.  All gradients add.
static void bonus_backward(real *dq, real *dk_, real *dv_, real *du, const real *d_o, const real *q, const real *k, const real *v,
                           const real *u, int N, int H, int dk, int dv) {
    const int blocks = ceil_div(N, BLOCK);
    real *part = zeroed(space(-1, (size_t)blocks * H * dk), (size_t)blocks * H * dk);
    PARALLEL
    for (int r0 = 0; r0 < N; r0 += BLOCK)
        for (int r = r0 * H; r < least(r0 + BLOCK, N) * H; r++) {
            const real *qr = q + (size_t)r * dk, *kr = k + (size_t)r * dk, *ur = u + r % H * dk;
            double sum = 0, ds = 0;
            for (int i = 0; i < dk; i++) sum += qr[i] * ur[i] * kr[i];
            for (int j = 0; j < dv; j++) {
                const size_t at = (size_t)r * dv + j;
                ds += d_o[at] * v[at];
                dv_[at] += (real)sum * d_o[at];
            }
            for (int i = 0; i < dk; i++) {
                dq[(size_t)r * dk + i] += (real)ds * ur[i] * kr[i];
                dk_[(size_t)r * dk + i] += (real)ds * ur[i] * qr[i];
                part[((size_t)(r0 / BLOCK) * H + r % H) * dk + i] += (real)ds * qr[i] * kr[i];
            }
        }
    add_blocks(du, part, blocks, H * dk);
}

/* What RWKV-7 makes of a key, all (N, H dk), with s = sigmoid(a):
 *   e = key k_k / |key k_k|   is recalled;   b = -s e   is where that goes back;   k = key (1 + (s - 1) k_a)   is written */
static void rwkv7_keys_forward(real *k, real *e, real *b, real *scaled, real *inv, const real *key, const real *a, const real *k_k,
                               const real *k_a, int N, int H, int dk) {
    const int K = H * dk;
    PARALLEL
    for (int r = 0; r < N; r++) {
        const size_t at = (size_t)r * K;
        for (int i = 0; i < K; i++) scaled[at + i] = key[at + i] * k_k[i];
        kern.l2norm_forward(e + at, inv + (size_t)r * H, scaled + at, K, 1, H, dk, 1);
        for (int i = 0; i < K; i++) {
            const real s = 1 / (1 + (real)exp(-a[at + i]));
            k[at + i] = key[at + i] * (1 + (s - 1) * k_a[i]);
            b[at + i] = -s * e[at + i];
        }
    }
}

//~ as above: k = key (1 + (s - 1) k_a),  b = -s e,  e = l2norm(key k_k),  s = sigmoid(a).  de is overwritten; dk_k and dk_a add.
static void rwkv7_keys_backward(real *dkey, real *da, real *dk_k, real *dk_a, const real *dk_, real *de, const real *db, const real *e,
                                const real *scaled, const real *inv, const real *key, const real *a, const real *k_k, const real *k_a,
                                int N, int H, int dk) {
    const int K = H * dk, blocks = ceil_div(N, BLOCK);
    real *part = zeroed(space(-1, (size_t)blocks * 2 * K), (size_t)blocks * 2 * K);
    PARALLEL
    for (int r0 = 0; r0 < N; r0 += BLOCK)
        for (int r = r0; r < least(r0 + BLOCK, N); r++) {
            const size_t at = (size_t)r * K;
            real *p_k = part + (size_t)(r0 / BLOCK) * K, *p_a = p_k + (size_t)blocks * K;
            for (int i = 0; i < K; i++) {
                const real s = 1 / (1 + (real)exp(-a[at + i]));
                const real ds = key[at + i] * k_a[i] * dk_[at + i] - e[at + i] * db[at + i];
                de[at + i] -= s * db[at + i];
                da[at + i] = ds * s * (1 - s);
                p_a[i] += dk_[at + i] * key[at + i] * (s - 1);
            }
            kern.l2norm_backward(dkey + at, K, de + at, scaled + at, inv + (size_t)r * H, 1, H, dk, 1);  /* of the scaled key, for now */
            for (int i = 0; i < K; i++) {
                const real s = 1 / (1 + (real)exp(-a[at + i])), dscaled = dkey[at + i];
                p_k[i] += dscaled * key[at + i];
                dkey[at + i] = dscaled * k_k[i] + dk_[at + i] * (1 + (s - 1) * k_a[i]);
            }
        }
    add_blocks(dk_k, part, blocks, K);
    add_blocks(dk_a, part + (size_t)blocks * K, blocks, K);
}

/* y = x + s (first - x), s = sigmoid(f): how much of the first layer's values a layer of RWKV-7 takes; all n long. */
static void blend_forward(real *y, const real *x, const real *first, const real *f, size_t n) {
    PARALLEL
    for (size_t i = 0; i < n; i++) y[i] = x[i] + (first[i] - x[i]) / (1 + (real)exp(-f[i]));
}

//~ y = x (1 - s) + first s.  dfirst adds.
static void blend_backward(real *dx, real *dfirst, real *df, const real *dy, const real *x, const real *first, const real *f, size_t n) {
    PARALLEL
    for (size_t i = 0; i < n; i++) {
        const real s = 1 / (1 + (real)exp(-f[i]));
        dx[i] = dy[i] * (1 - s);
        dfirst[i] += dy[i] * s;
        df[i] = dy[i] * (first[i] - x[i]) * s * (1 - s);
    }
}

/* -- what other mixers add -- */

/* p = softmax(x), N rows of n: which slots are read. */
static void softmax_forward(real *p, const real *x, int N, int n) {
    PARALLEL
    for (int r = 0; r < N; r++) {
        const real *xr = x + (size_t)r * n;
        real *pr = p + (size_t)r * n, top = xr[0], sum = 0;
        for (int i = 1; i < n; i++) top = xr[i] > top ? xr[i] : top;
        for (int i = 0; i < n; i++) sum += pr[i] = (real)exp(xr[i] - top);
        for (int i = 0; i < n; i++) pr[i] /= sum;
    }
}

//~ p = softmax(x):  dx_i = p_i (dp_i - sum_j p_j dp_j)
static void softmax_backward(real *dx, const real *dp, const real *p, int N, int n) {
    PARALLEL
    for (int r = 0; r < N; r++) {
        const size_t at = (size_t)r * n;
        real dot = 0;
        for (int i = 0; i < n; i++) dot += p[at + i] * dp[at + i];
        for (int i = 0; i < n; i++) dx[at + i] = p[at + i] * (dp[at + i] - dot);
    }
}

/* A decay that keeps the weights of all tokens so far a softmax (LightNet, ABC), channel by channel: with z_t = ln sum_(s <= t) e^f_s
 *   rest_t = e^(f_t - z_t) = sigmoid(f_t - z_(t-1))   is written,   d_t = e^(z_(t-1) - z_t) = 1 - rest_t   is kept
 * d, rest (B T, n), f (B T, n) in rows ldf apart. The first token has no z before it: rest 1, d 0. */
static void sum_decay_forward(real *d, real *rest, const real *f, size_t ldf, int B, int T, int n) {
    PARALLEL
    for (int b = 0; b < B; b++) {
        double *z = checked(malloc(n * sizeof *z));
        for (int r = b * T; r < (b + 1) * T; r++)
            for (int i = 0; i < n; i++) {
                const double x = f[r * ldf + i], more = r % T ? exp(-fabs(x - z[i])) : 0;
                const double larger = 1 / (1 + more), smaller = more / (1 + more);
                const bool above = r % T == 0 || x > z[i];
                z[i] = (above ? x : z[i]) + log1p(more);
                rest[(size_t)r * n + i] = (real)(above ? larger : smaller);
                d[(size_t)r * n + i] = (real)(above ? smaller : larger);
            }
        free(z);
    }
}

//~ from the last token: with g = drest - dd and c = dz_t,  df_t = g rest d + c rest;  dz_(t-1) = c d - g rest d
static void sum_decay_backward(real *df, size_t ldf, const real *dd, const real *drest, const real *d, const real *rest,
                               int B, int T, int n) {
    PARALLEL
    for (int b = 0; b < B; b++) {
        real *c = checked(calloc((size_t)n, sizeof *c));
        for (int r = (b + 1) * T - 1; r >= b * T; r--)
            for (int i = 0; i < n; i++) {
                const size_t at = (size_t)r * n + i;
                const real g = (drest[at] - dd[at]) * rest[at] * d[at];
                df[r * ldf + i] = g + c[i] * rest[at];
                c[i] = c[i] * d[at] - g;
            }
        free(c);
    }
}

/* What Comba makes of its q and k, uq and uk (N, H dk) in rows ldu apart:  p = old k is erased along;  q = uq - skip p.
 * p, q (N, H dk), old, skip (H). */
static void comba_forward(real *p, real *q, const real *uq, const real *uk, size_t ldu, const real *old, const real *skip,
                          int N, int H, int dk) {
    PARALLEL
    for (int r = 0; r < N; r++)
        for (int i = 0; i < H * dk; i++) {
            const size_t at = (size_t)r * H * dk + i;
            p[at] = old[i / dk] * uk[r * ldu + i];
            q[at] = uq[r * ldu + i] - skip[i / dk] * p[at];
        }
}

//~ p = old uk,  q = uq - skip p.  dp is overwritten; duk, dold and dskip add.
static void comba_backward(real *duq, real *duk, real *dold, real *dskip, real *dp, const real *dq, const real *p,
                           const real *uk, size_t ldu, const real *old, const real *skip, int N, int H, int dk) {
    const int blocks = ceil_div(N, BLOCK);
    real *part = zeroed(space(-1, (size_t)blocks * 2 * H), (size_t)blocks * 2 * H);
    PARALLEL
    for (int r0 = 0; r0 < N; r0 += BLOCK)
        for (int r = r0; r < least(r0 + BLOCK, N); r++)
            for (int i = 0; i < H * dk; i++) {
                const size_t at = (size_t)r * H * dk + i;
                real *sum = part + (size_t)(r0 / BLOCK) * H + i / dk;   /* of dold; that of dskip is blocks H further on */
                duq[r * ldu + i] = dq[at];
                sum[(size_t)blocks * H] -= dq[at] * p[at];
                dp[at] -= skip[i / dk] * dq[at];
                duk[r * ldu + i] += old[i / dk] * dp[at];
                *sum += dp[at] * uk[r * ldu + i];
            }
    add_blocks(dold, part, blocks, H);
    add_blocks(dskip, part + (size_t)blocks * H, blocks, H);
}

/* The key that is written: k m, smaller where much was written, by a second moment A of each channel.     (arXiv 2604.21100)
 *   A <- fade A + share k^2;   r = ln(A + eps) - scale;   m = SQUASH^(-r / (1 + |r|))
 * to = k m, A, k (B T, H dk), fade, share (B T, H), scale (H) */
#define SQUASH ((real)0.40546510810816438)  /* ln 1.5 */
enum { MICRO = 1000000 };                   /* 1 / eps */
static void moment_forward(real *to, real *A, const real *k, const real *fade, const real *share, const real *scale,
                           int B, int T, int H, int dk) {
    PARALLEL
    for (int b = 0; b < B; b++)
        for (int r = b * T; r < (b + 1) * T; r++)
            for (int i = 0; i < H * dk; i++) {
                const size_t at = (size_t)r * H * dk + i, h = (size_t)r * H + i / dk;
                A[at] = (r % T ? fade[h] * A[at - H * dk] : 0) + share[h] * k[at] * k[at];
                const real x = (real)log(A[at] + (real)1 / MICRO) - scale[i / dk];
                to[at] = k[at] * (real)exp(-SQUASH * x / (1 + (real)fabs(x)));
            }
}

//~ as above, from the last token; c = dA from the tokens behind.  In place: in dkey the gradient of `to` becomes that of k.
//  dfade and dshare are assigned, dscale adds.
static void moment_backward(real *dkey, real *dfade, real *dshare, real *dscale, const real *A, const real *k, const real *fade,
                            const real *share, const real *scale, int B, int T, int H, int dk) {
    real *part = zeroed(space(-1, (size_t)B * H), (size_t)B * H);
    PARALLEL
    for (int b = 0; b < B; b++) {
        real *c = checked(calloc((size_t)H * dk, sizeof *c));
        for (int r = (b + 1) * T - 1; r >= b * T; r--)
            for (int i = 0; i < H * dk; i++) {
                const size_t at = (size_t)r * H * dk + i, h = (size_t)r * H + i / dk;
                const real total = A[at] + (real)1 / MICRO, x = (real)log(total) - scale[i / dk];
                const real size = 1 + (real)fabs(x), f = (real)exp(-SQUASH * x / size);
                const real dx = -dkey[at] * k[at] * f * SQUASH / (size * size), dA = c[i] + dx / total;
                if (i % dk == 0) dfade[h] = dshare[h] = 0;
                part[(size_t)b * H + i / dk] -= dx;
                if (r % T) dfade[h] += dA * A[at - H * dk];
                dshare[h] += dA * k[at] * k[at];
                dkey[at] = dkey[at] * f + dA * share[h] * 2 * k[at];
                c[i] = dA * fade[h];
            }
        free(c);
    }
    add_blocks(dscale, part, B, H);
}

/* -- order -- */

/* y = act(conv(x) + bias): a convolution of C channels of rows that hold more; act is silu or nothing. w is kept as (taps, C), the
 * transpose of the file's (C, taps). */
static void conv_forward(real *y, size_t ldy, const real *x, size_t ldx, const real *w, const real *bias, bool silu,
                         int B, int T, int C, int taps) {
    PARALLEL
    for (int b = 0; b < B; b++) kern.conv_forward(y + (size_t)b * T * ldy, ldy, x + (size_t)b * T * ldx, ldx, w, bias, silu, T, C, taps);
}

//~ y = act(conv(x) + bias).  dx is assigned, dw and dbias add.
static void conv_backward(real *dx, real *dw, real *dbias, const real *dy, size_t ldy, const real *x, size_t ldx, const real *w,
                          const real *bias, bool silu, int B, int T, int C, int taps) {
    const size_t n = (size_t)(taps + 1) * C;                    /* taps, then bias */
    real *part = zeroed(space(-1, B * n), B * n);
    PARALLEL
    for (int b = 0; b < B; b++)
        kern.conv_backward(dx + (size_t)b * T * ldx, part + b * n, part + b * n + (size_t)taps * C, dy + (size_t)b * T * ldy, ldy,
                           x + (size_t)b * T * ldx, ldx, w, bias, silu, T, C, taps);
    for (int b = 0; b < B; b++) {
        for (int i = 0; i < taps * C; i++) dw[i] += part[b * n + i];
        for (int i = 0; bias && i < C; i++) dbias[i] += part[b * n + (size_t)taps * C + i];
    }
}

/* Rotary positions: the first n_rot dims of each head turn in pairs (i, i + n_rot / 2), by position * base^(-2i / n_rot).
 * x (B T, heads n) in place; cs: see rope_angles. sign -1 turns back, which is also the gradient. */
static void rotate(real *x, const real *cs, int B, int T, int heads, int n, int n_rot, int sign) {
    PARALLEL
    for (int b = 0; b < B; b++)
        for (int t = 0; t < T; t++)
            for (int h = 0; h < heads; h++) {
                real *p = x + (((size_t)b * T + t) * heads + h) * n;
                for (int i = 0; i < n_rot / 2; i++) {
                    real c = cs[(size_t)t * n_rot + 2 * i], s = sign * cs[(size_t)t * n_rot + 2 * i + 1];
                    real u = p[i], v = p[i + n_rot / 2];
                    p[i] = u * c - v * s;
                    p[i + n_rot / 2] = v * c + u * s;
                }
            }
}

/* -- softmax attention -- */

/* Causal; query head h reads kv head h / (H / Hkv).
 *   P = softmax(q k' / sqrt(n)),  o = P v
 * in blocks of BLOCK queries against the keys up to the block's end. Kept: lse (B, H, T). Recomputed: P. */
typedef struct {
    int B, T, H, Hkv, n;                        /* sequences, tokens, heads of queries, of keys and values, width of a head */
    const real *q, *k, *v;                      /* (B T, H n), (B T, Hkv n), (B T, Hkv n) */
    real *o, *lse;                              /* (B T, H n); ln of the sum of e^score of each query */
    const real *d_o;                            /* gradient in */
    real *dq, *dk, *dv;                         /* gradients out, assigned */
} Attention;

/* P, its gradient, and what gemm_serial needs. */
static size_t attention_scratch(const Attention *a) {
    int wide = a->T > a->n ? a->T : a->n;
    return 2 * (size_t)BLOCK * (a->T + 15) + packed_size(wide, wide) + 2 * MAX_TILE * DEPTH;
}

/* o and lse, head by head. */
static void attention_forward(const Attention *a) {
    const int T = a->T, n = a->n, group = a->H / a->Hkv;
    const size_t ldq = (size_t)a->H * n, ldk = (size_t)a->Hkv * n;
    const real scale = 1 / (real)sqrt(n);
    PARALLEL
    for (int bh = 0; bh < a->B * a->H; bh++) {
        const int b = bh / a->H, h = bh % a->H;
        const size_t atq = (size_t)b * T * ldq + (size_t)h * n, atk = (size_t)b * T * ldk + (size_t)(h / group) * n;
        real *p = space(THREAD, attention_scratch(a)), *buf = p + (size_t)BLOCK * (T + 15);
        for (int i = 0; i < T; i += BLOCK) {
            const int rows = least(BLOCK, T - i), keys = i + rows, ld = (keys + 15) / 16 * 16;
            gemm_serial(p, ld, a->q + atq + i * ldq, ldq, 1, a->k + atk, 1, ldk, rows, keys, n, 0, buf);
            kern.softmax_forward(p, a->lse + (size_t)bh * T + i, rows, i, ld, scale);
            gemm_serial(a->o + atq + i * ldq, ldq, p, ld, 1, a->v + atk, ldk, 1, rows, n, keys, 0, buf);
        }
    }
}

//~ s = q k',  P = softmax(s / sqrt(n)),  o = P v
static void attention_backward(const Attention *a) {
    const int T = a->T, n = a->n, group = a->H / a->Hkv;
    const size_t ldq = (size_t)a->H * n, ldk = (size_t)a->Hkv * n;
    const real scale = 1 / (real)sqrt(n);
    PARALLEL
    for (int bk = 0; bk < a->B * a->Hkv; bk++) {                /* one thread owns the keys and values of a kv head */
        const int b = bk / a->Hkv, hk = bk % a->Hkv;
        const size_t atk = (size_t)b * T * ldk + (size_t)hk * n;
        real *p = space(THREAD, attention_scratch(a)), *dp = p + (size_t)BLOCK * (T + 15), *buf = dp + (size_t)BLOCK * (T + 15);
        for (int t = 0; t < T; t++) {
            zeroed(a->dk + atk + t * ldk, n);
            zeroed(a->dv + atk + t * ldk, n);
        }
        for (int h = hk * group; h < (hk + 1) * group; h++) {
            const size_t atq = (size_t)b * T * ldq + (size_t)h * n;
            for (int i = 0; i < T; i += BLOCK) {
                const int rows = least(BLOCK, T - i), keys = i + rows, ld = (keys + 15) / 16 * 16;
                const real *q = a->q + atq + i * ldq, *d_o = a->d_o + atq + i * ldq;
                gemm_serial(p, ld, q, ldq, 1, a->k + atk, 1, ldk, rows, keys, n, 0, buf);
                kern.softmax_recompute(p, a->lse + ((size_t)b * a->H + h) * T + i, rows, i, ld, scale);
                //~ o = P v
                gemm_serial(dp, ld, d_o, ldq, 1, a->v + atk, 1, ldk, rows, keys, n, 0, buf);
                gemm_serial(a->dv + atk, ldk, p, 1, ld, d_o, ldq, 1, keys, n, rows, 1, buf);
                //~ P = softmax(s / sqrt(n))
                kern.softmax_backward(dp, p, rows, keys, ld, scale);
                //~ s = q k'
                gemm_serial(a->dq + atq + i * ldq, ldq, dp, ld, 1, a->k + atk, ldk, 1, rows, n, keys, 0, buf);
                gemm_serial(a->dk + atk, ldk, dp, 1, ld, q, ldq, 1, keys, n, rows, 1, buf);
            }
        }
    }
}

/* -- embedding -- */

/* x_r = row id_r of w;  x (N, D), w (vocabulary, D). */
static void embedding_forward(real *x, const real *w, const int *id, int N, int D) {
    for (int r = 0; r < N; r++) memcpy(x + (size_t)r * D, w + (size_t)id[r] * D, D * sizeof *x);
}

//~ x_r = row id_r of w.  A thread owns BLOCK columns, and adds the tokens in order.
static void embedding_backward(real *dw, const real *dx, const int *id, int N, int D) {
    PARALLEL
    for (int c = 0; c < D; c += BLOCK)
        for (int r = 0; r < N; r++)
            for (int i = c; i < least(c + BLOCK, D); i++) dw[(size_t)id[r] * D + i] += dx[(size_t)r * D + i];
}

/* ---- 6. model ------------------------------------------------------------------------------
 * The mixers, sizes, the list of tensors, and all memory. Parameters, their gradients and the two running means of AdamW are four
 * arrays with one layout; a tensor is an offset into them. Activations of one step are kept per layer. Its rooms:
 *
 *   the mixers to choose from     a table, and questions about its rows
 *   what a model is made of       TinyConfig (sizes), TinyTensor, TinyLayer (offsets and activations), Tiny (all of it)
 *   random numbers
 *   a line while one waits
 *   the list of tensors           names and shapes of each kind of layer, in the order of the file
 *   first values                  what each tensor begins with
 *   where activations lie         one arena, laid out twice: first to measure
 *   a new model
 *
 * From here on the program uses run.c: its table of mixers, its GGUF reader, its tokenizer, and its inference for the sample at
 * the end. */
#define RUN_NO_MAIN
#define RUN_STATIC
#ifndef RUN_SCALAR
#define RUN_SCALAR /* the sample is short, and the other kernels take long to compile */
#endif
#include "run.c"

/* -- the mixers to choose from -- */

/* Shapes, front and back of each are its row of `mixers` in run.c, section 7; here stands what a new
 * model of it begins with. */
typedef struct {
    const char *name, *arch, *about;         /* of --mixer, of the file (general.architecture), for the reader */
    int d_conv;                              /* taps unless --conv says otherwise */
    bool qwen;                               /* q, k, v in one tensor; softmax layers have a gate and normed q, k */
    bool elu;                                /* q and k go through elu + 1 */
    bool rope;                               /* q and k are rotated by their position */
    bool ungated;                            /* the output gate of its family is left out */
    bool unscaled;                           /* q is not divided by sqrt(dk) */
    float norm_eps;                          /* of the output norm; 0: the model's */
    int rwkv;                                /* 6 or 7: layers of their own, see section 7 */
    int writes;                              /* per token; 0: one */
} MixerKind;

enum { GATED_DELTA, GLA, SOFTMAX };          /* rows of the table that others ask for by name */
static const MixerKind mixer_kinds[] = {
    { "gated-delta", "qwen35", "as Qwen3.5: 3 layers of gated-deltanet, then 1 of gated attention", .d_conv = 4, .qwen = true },
    { "gla", "gla", "a decay per key channel, nothing erased", .d_conv = 0 },
    { "softmax", "qwen35", "gated softmax attention in every layer", .qwen = true },
    { "linear-attention", "linear_attn", "no decay: everything is added up", .elu = true },
    { "retnet", "retnet", "a fixed decay per head", .rope = true },
    { "lightning", "lightning_attn", "retnet behind a convolution instead of a rotation", .d_conv = 4 },
    { "simple-gla", "simple_gla", "a decay per head and token", .d_conv = 4 },
    { "hgrn2", "hgrn2", "what is not kept is written: key = 1 - decay", .norm_eps = 1e-5f },
    { "lightnet", "lightnet", "a decay that weighs all tokens so far by a softmax", .d_conv = 0 },
    { "gsa", "gsa", "a table of slots, each with a decay, read by softmax", .norm_eps = 1e-5f, .unscaled = true },
    { "abc", "abc", "gsa with the decay of lightnet, and positions", .rope = true },
    { "mamba2", "mamba2", "one step size per head is both decay and write strength", .d_conv = 4 },
    { "deltanet", "delta_net", "erases what is stored under the key before it writes", .d_conv = 4, .ungated = true },
    { "gated-deltanet", "gated_deltanet", "deltanet with a decay per head", .d_conv = 4 },
    { "gated-deltaproduct", "gated_deltaproduct", "gated-deltanet that erases and writes twice for each token", .d_conv = 4, .writes = 2 },
    { "comba", "comba", "gated-deltanet that erases along a key of its own", .d_conv = 4 },
    { "kda", "kda", "deltanet with a decay per key channel", .d_conv = 4 },
    { "precond-deltanet", "precond_gated_deltanet", "gated-deltanet that writes less to channels that were written much", .d_conv = 4 },
    { "precond-kda", "precond_kda", "kda likewise", .d_conv = 4 },
    { "gdn2", "gdn2", "kda with strengths of erase and write per channel", .d_conv = 4 },
    { "rwkv6", "rwkv6", "gla that reads before it writes, and sees the token before instead of a convolution",
      .norm_eps = 64e-5f, .rwkv = 6 },
    { "rwkv7", "rwkv7", "a decay per key channel; what is recalled under one key goes back under another",
      .norm_eps = 64e-5f, .rwkv = 7 },
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

/* The law of a mixer (run.c, section 7) in parts, each with a forward and a backward pass of its own:
 *   decay    d, from f: the constants are those of the law
 *   per      how many decays a token has: one for each head, each key channel of a head, or each slot
 *   erase    what is read before the write, with strength b
 *   write    what is written */
enum { DECAY_NONE, DECAY_FIXED, DECAY_SIGMOID, DECAY_SOFTPLUS, DECAY_FORGET, DECAY_STEP, DECAY_SUM };
enum { HEADS, CHANNELS, SLOTS };
enum { ERASE_NONE, ERASE_KEY,              /* -;  b k'S, from the faded S */
       ERASE_GATED,                        /* (b k)'S, b per key channel */
       ERASE_OLD };                        /* b p'S before S fades, p along k */
enum { WRITE_V, WRITE_BETA_V,              /* k v';  k (b v)' */
       WRITE_GATED_V, WRITE_STEP_V,        /* k (sigmoid(w) v)';  k (D v)', D the time step */
       WRITE_SCALED_K,                     /* (m k) (b v)', m from a running second moment of k */
       WRITE_REST };                       /* (1 - d) v' */
typedef struct { const char *name; int decay, per, erase, write; } Family;
static const Family families[] = {
    { "linear_attn", DECAY_NONE, HEADS, ERASE_NONE, WRITE_V },
    { "retnet", DECAY_FIXED, HEADS, ERASE_NONE, WRITE_V },
    { "lightning_attn", DECAY_FIXED, HEADS, ERASE_NONE, WRITE_V },
    { "simple_gla", DECAY_SIGMOID, HEADS, ERASE_NONE, WRITE_V },
    { "mamba2", DECAY_STEP, HEADS, ERASE_NONE, WRITE_STEP_V },
    { "gla", DECAY_SIGMOID, CHANNELS, ERASE_NONE, WRITE_V },
    { "hgrn2", DECAY_FORGET, CHANNELS, ERASE_NONE, WRITE_REST },
    { "lightnet", DECAY_SUM, CHANNELS, ERASE_NONE, WRITE_REST },
    { "abc", DECAY_SUM, SLOTS, ERASE_NONE, WRITE_REST },
    { "gsa", DECAY_SIGMOID, SLOTS, ERASE_NONE, WRITE_REST },
    { "delta_net", DECAY_NONE, HEADS, ERASE_KEY, WRITE_BETA_V },
    { "gated_deltanet", DECAY_SOFTPLUS, HEADS, ERASE_KEY, WRITE_BETA_V },
    { "gated_deltaproduct", DECAY_SOFTPLUS, HEADS, ERASE_KEY, WRITE_BETA_V },
    { "comba", DECAY_SOFTPLUS, HEADS, ERASE_OLD, WRITE_BETA_V },
    { "kda", DECAY_SOFTPLUS, CHANNELS, ERASE_KEY, WRITE_BETA_V },
    { "gdn2", DECAY_SOFTPLUS, CHANNELS, ERASE_GATED, WRITE_GATED_V },
    { "precond_gated_deltanet", DECAY_SOFTPLUS, HEADS, ERASE_KEY, WRITE_SCALED_K },
    { "precond_kda", DECAY_SOFTPLUS, CHANNELS, ERASE_KEY, WRITE_SCALED_K },
};

/* NULL: RWKV, which is no row of that table. */
static const Family *family_of(const MixerKind *k) {
    const char *name = k->qwen ? "gated_deltanet" : k->arch;
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        if (!strcmp(families[i].name, name)) return &families[i];
    return NULL;
}
static const Mixer *facts(const Family *f) { return mixer_row(f->name); }
/* The decay is exp(-rate softplus(a + bias)). */
static bool is_softplus(const Family *f) { return f->decay == DECAY_SOFTPLUS || f->decay == DECAY_STEP; }
static int writes_of(const MixerKind *k) { return k->writes ? k->writes : 1; }
/* The key that is written is k times a factor from a second moment. */
static bool is_scaled(const Family *f) { return f && f->write == WRITE_SCALED_K; }
/* k = 1 - d, from the projection of the decay. */
static bool keys_from_decay(const Family *f) { return f->write == WRITE_REST && f->per == CHANNELS; }
/* Mamba-2: a skip, the gate before the norm, no feed-forward. */
static bool is_mamba(const Family *f) { return f && f->write == WRITE_STEP_V; }
/* The output gate z goes through a narrow middle, with a bias. */
static bool narrow_gate(const Family *f) { return f && f->per == CHANNELS && f->erase; }
static Act act_of(int act) { return act == ACT_SILU ? F_SILU : act == ACT_SIGMOID ? F_SIGMOID : act == ACT_ELU1 ? F_ELU1 : F_ID; }

/* -- what a model is made of -- */

/* What --without leaves out, by bits in the order of parts_left_out. */
enum { NO_DECAY = 1, NO_MAP = 2, NO_ROTATION = 4, NO_GATE = 8 };

typedef struct {
    int mixer;                               /* row of mixer_kinds */
    int dim, hidden_dim, n_layers, vocab_size, seq_len;
    int n_heads, dk, dv, d_conv, interval;   /* linear layers; every interval-th layer is softmax attention, 0: none */
    int q_heads, kv_heads, head_dim, n_rot;  /* softmax layers */
    int gate_rank;                           /* width of the narrow middles */
    float eps, rope_base, decay_divisor;
    unsigned without;                        /* NO_* */
    double half_life;                        /* tokens, of all decays at first; 0: as each mixer usually begins, and hgrn2 has no bias */
} TinyConfig;

enum {
    DECAYS = 1,                              /* a matrix, pulled to zero by AdamW */
    KEEP_F32 = 2,                            /* float32 in the file, whatever the matrices are */
    TRANSPOSED = 4,                          /* the file has rows and columns the other way round */
    NEGATIVE_EXP = 8,                        /* the file has -e^x of it */
    SIGMOID = 16,                            /* the file has sigmoid(x) of it */
    CONSTANT = 32                            /* is not learned: it has no gradient, which the tests of gradients have to know */
};

typedef struct {
    char name[48];                           /* as in the file */
    int rows, cols, parts;                   /* rows 0: one dimension; the file has this many matrices of rows / parts */
    int flags;                               /* DECAYS ... */
    size_t at;                               /* where it begins in params, grads, mean, square */
} TinyTensor;

/* A projection through a narrow middle: y = up act(down x) + bias;  down (rank, dim), up (out, rank), bias (out). */
typedef struct {
    size_t down, up, bias;
    int rank;
    Act act;
    bool biased;
    real *middle, *bent;                     /* (N, rank): down x, and act of it */
} Narrow;

/* What a layer of RWKV has of its own: first the tensors, as offsets into the parameters, then what is kept of a step. Projections
 * read h shifted by a share each. In RWKV-6 the shares are lerp plus something projected from mixed, h shifted by lerp_x, through a
 * narrow middle of which each has a part. D is dim, R the rank of the narrow middles, K and V all heads' key and value widths. */
enum { R_R, R_W, R_K, R_V, R_A, R_G, N_READ }; /* receptance (q), decay, key, value, erase strength, output gate */
typedef struct {
    size_t norm_bias, ffn_norm_bias, o_bias; /* of the LayerNorms */
    size_t lerp, lerp_x, mix_down, mix_up;   /* (5 or 6, D), (D), (5 R, D), (5 D, R): the shares */
    size_t w_r, w_k, w_v, w_g;               /* (K, D), (K, D), (V, D), (V, D) */
    size_t bonus, k_k, k_a;                  /* (K) each */
    size_t ffn_lerp_k, ffn_lerp_r, w_recept; /* (D), (D), (D, D) of the feed-forward */
    Narrow decay, strength, gate, blend;
    real *read[N_READ], *share[N_READ];      /* (N, D) what each projection reads, and by what share it is shifted */
    real *mixed, *low, *bent;                /* (N, D), (N, 5 R), and tanh of that */
    real *key, *value;                       /* (N, K), (N, V) as projected */
    real *a, *scaled;                        /* (N, K) erase strength; key k_k, before its norm */
    real *take;                              /* (N, V) how much of the first layer's values */
    real *normed;                            /* (N, V) the output, normed */
    real *ffn_read[2], *recept, *wide;       /* (N, D) each: what the feed-forward reads, its gate, its output */
} Rwkv;

/* All projections of a layer's input stand one below the other and are one matrix w_in; a row of raw = h w_in' holds them side by
 * side, and at_ are columns of it. u is what the recurrence's q, k, v are made of: the convolution of those columns, or they themselves.
 * N = B T tokens, D is dim, F hidden_dim, H heads, K = H dk, V = H dv. */
typedef struct {
    const MixerKind *kind;                   /* NULL: softmax attention */
    const Family *family;                    /* NULL: softmax attention or RWKV */
    Act map, gate;                           /* of q, and of k where it has one; of the output */
    int n_in, at_z, at_a, at_b, at_w;        /* columns of raw: all, output gate, decay, erase strength, write strength */
    int at_g, at_s;                          /* of the second moment: decay, strength */
    int at_u, at_q, at_k, at_v, n_u;         /* column of raw where u begins; columns of u where q, k, v begin; all of u */
    int n_conv, conv_width[3];               /* convolutions, and the channels of each */
    /* tensors, as offsets into the parameters */
    size_t attn_norm, ffn_norm;              /* (D) */
    size_t w_in, w_ffn, w_down, w_o;         /* (n_in, D), (2 F, D): gate, then up, (D, F), (D, V) */
    size_t norm;                             /* (dv), (V) or (H, dv) */
    size_t conv[3], conv_bias;               /* (taps, conv_width), (n_u) */
    size_t decay, a_log, bias;               /* fixed decays (H); ln of the rate (H); (H) or (K), with a_log softplus(bias) is the step */
    size_t w_fb, w_gb, gb_bias;              /* from narrow middles: decay (K, rank), output gate (V, rank), (V) */
    size_t skip, old_key;                    /* (H) of Mamba-2 or Comba; (H) of Comba */
    size_t m_a, m_bias, m_scale;             /* (H) of the second moment */
    size_t q_norm, k_norm;                   /* (head_dim) of softmax attention */
    /* what is kept of a step */
    real *x, *inv, *h;                       /* (N, D) block input, the factors of its norm, and normed */
    real *mid, *inv2, *h2;                   /* (N, D) after the mixer, the factors, and normed */
    real *gu, *s;                            /* (N, 2 F) gate and up side by side; (N, F) silu(gate) up */
    real *raw, *conved;                      /* (N, n_in) projections; (N, n_u) behind their convolution */
    real *f, *z;                             /* (N, K) decay and (N, V) output gate, where they come from a narrow middle */
    real *rate;                              /* (H) or (K) of the decay */
    real *bk;                                /* (N, K) k that is erased per channel */
    real *step;                              /* (N, H) Mamba-2's step size */
    real *og;                                /* (N, V) o after the step that lies between recurrence and norm, where there is one */
    real *inv_q, *inv_k, *inv_o;             /* factors of norms */
    real *y;                                 /* (N, V) what w_o reads */
    real *lse;                               /* (B, heads, T) of softmax attention */
    real *one_q, *one_d, *d_one_q, *d_one_d; /* several writes: q and d by token, and their gradients */
    real *unit, *moment, *fade, *share;      /* WRITE_SCALED_K: the key before it is scaled, the second moment and what it is made with */
    real *old, *q_less, *inv_e;              /* Comba: the key of the erase and the query without its share, before their norms */
    real *per_head;                          /* (H) exp(m_a), or sigmoid(old_key) */
    Memory mem, keys;                        /* keys: of the table of slots, as many as a key is wide, whose values are in mem */
    Rwkv rwkv;
} TinyLayer;

typedef struct {
    TinyConfig c;
    int B;                                   /* sequences per step */
    TinyTensor *tensors;
    int n_tensors;
    size_t n_params, n_weights;              /* with and without padding of each tensor to 16 reals */
    real *params, *grads, *mean, *square;    /* (n_params) each; the last two are AdamW's */
    TinyLayer *layers;
    size_t embed, out_norm, out_norm_bias;   /* tensors: (vocab_size, D), (D), (D) in RWKV */
    real *x_out, *inv_out, *h_out;           /* after the last layer, and normed */
    real *rope;                              /* (T, n_rot / 2, cos and sin) */
    real *rope_k;                            /* the same over dk, for linear layers that rotate */
    real *d_res, *dh;                        /* gradient of the residual stream; of a normed copy */
    real *d_first;                           /* RWKV-7: gradient of the first layer's values, from all later ones */
    real *pool;                              /* gradients inside one layer */
    size_t pool_used, pool_cap;
    real *arena;                             /* activations */
} Tiny;

/* -- random numbers -- */

/* xorshift64*; the seed goes through one round of splitmix64, so that neighbouring seeds part at once. Its state is never 0. */
static uint64_t mix_seed(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    x ^= x >> 31;
    return x ? x : 1;
}

/* The next 64 bits. */
static uint64_t rng_next(uint64_t *s) {
    *s ^= *s >> 12;
    *s ^= *s << 25;
    *s ^= *s >> 27;
    return *s * 0x2545f4914f6cdd1du;
}

/* Between 0 and 1, never 0: its logarithm is taken. */
static double rng_uniform(uint64_t *s) { return ((double)(rng_next(s) >> 11) + 0.5) / 9007199254740992.0; }

/* Mean 0, variance 1 (Box and Muller). */
static double rng_normal(uint64_t *s) {
    double u = rng_uniform(s), v = rng_uniform(s);
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

/* -- a line while one waits -- */

static struct { bool on; double since, shown; } wait_line;  /* on: a terminal, and no --quiet */

/* What the program is busy with, and how much of it is done: a line, once a second at most and not
 * within the first. NULL: that is over, and the line goes. */
static void waiting(const char *what, double done, double all) {
    if (!wait_line.on) return;
    if (!what) {
        if (wait_line.shown > 0) fprintf(stderr, "\r\033[K");
        wait_line.since = wait_line.shown = 0;
        return;
    }
    const double t = now_s();
    if (wait_line.since <= 0) wait_line.since = t;
    if (t - (wait_line.shown > 0 ? wait_line.shown : wait_line.since) < 1) return;
    fprintf(stderr, "\r%s %.0f %%\033[K", what, 100 * done / (all > 0 ? all : 1));
    fflush(stderr);
    wait_line.shown = t;
}

/* The same for what cannot say how far it is: one line, at once. */
static void busy(const char *what) {
    if (!wait_line.on) return;
    fprintf(stderr, "\r%s ...\033[K", what);
    fflush(stderr);
    wait_line.shown = wait_line.since = now_s();
}

/* -- the list of tensors -- */

/* One more tensor, (rows, cols) or, with rows 0, (cols); returns where it begins. layer -1: of the model. */
static size_t add_tensor(Tiny *m, int layer, const char *name, int rows, int cols, int flags) {
    TinyTensor *t = &m->tensors[m->n_tensors++];
    *t = (TinyTensor){ .rows = rows, .cols = cols, .parts = 1, .flags = flags, .at = m->n_params };
    if (layer < 0) snprintf(t->name, sizeof t->name, "%s", name);
    else snprintf(t->name, sizeof t->name, "blk.%d.%s", layer, name);
    size_t n = (size_t)cols * (rows ? rows : 1);
    m->n_weights += n;
    m->n_params += (n + 15) / 16 * 16;
    return t->at;
}

static size_t tensor_len(const TinyTensor *t) { return (size_t)t->cols * (t->rows ? t->rows : 1); }

/* One more projection of the layer's input; returns its first column. */
static int add_in_rows(Tiny *m, TinyLayer *L, int l, const char *name, int rows) {
    size_t at = add_tensor(m, l, name, rows, m->c.dim, DECAYS);
    if (!L->n_in) L->w_in = at;
    L->n_in += rows;
    return L->n_in - rows;
}

/* A layer of softmax attention: q, k, v are one matrix. With a gate q has twice the rows, and q and k are normed. */
static void list_attention(Tiny *m, TinyLayer *L, int l, bool gated) {
    const TinyConfig *c = &m->c;
    const int Q = c->q_heads * c->head_dim, KV = c->kv_heads * c->head_dim;
    add_in_rows(m, L, l, "attn_q.weight", gated ? 2 * Q : Q);
    L->at_k = add_in_rows(m, L, l, "attn_k.weight", KV);
    L->at_v = add_in_rows(m, L, l, "attn_v.weight", KV);
    if (c->mixer == SOFTMAX && c->d_conv) {                         /* over k and v */
        L->n_conv = 1;
        L->at_u = L->at_k;
        L->n_u = L->conv_width[0] = 2 * KV;
        L->conv[0] = add_tensor(m, l, "attn_conv1d.weight", c->d_conv, 2 * KV, KEEP_F32 | TRANSPOSED);
    }
    if (gated) L->q_norm = add_tensor(m, l, "attn_q_norm.weight", 0, c->head_dim, KEEP_F32);
    if (gated) L->k_norm = add_tensor(m, l, "attn_k_norm.weight", 0, c->head_dim, KEEP_F32);
    L->w_o = add_tensor(m, l, "attn_output.weight", c->dim, Q, DECAYS);
}

/* A layer of the family: first all rows of w_in, which have to follow each other, then what is not a projection of the input. */
static void list_linear(Tiny *m, TinyLayer *L, int l) {
    const TinyConfig *c = &m->c;
    const Family *k = L->family;
    const int H = c->n_heads, K = H * c->dk, V = H * c->dv, taps = c->d_conv;
    const int wide = k->per == HEADS ? H : K;                       /* factors of a decay */
    const bool narrow = k->per == CHANNELS && !keys_from_decay(k);  /* the decay comes from a narrow middle */
    const bool slots = k->per == SLOTS;
    const int n = writes_of(L->kind), nK = n * K, nV = n * V;
    // q, k, v
    L->n_u = K + nK + nV;
    L->at_k = K;
    L->at_v = K + nK;
    if (is_mamba(k)) {                                              /* one matrix: z, x, B, C, dt; v, k, q are x, B, C */
        add_in_rows(m, L, l, "ssm_in.weight", V + L->n_u + H);
        L->at_u = V;
        L->at_v = 0;
        L->at_k = V;
        L->at_q = V + K;
        L->at_a = V + L->n_u;
    } else if (L->kind->qwen) {
        add_in_rows(m, L, l, "attn_qkv.weight", L->n_u);
    } else {
        add_in_rows(m, L, l, "attn_q.weight", K);
        add_in_rows(m, L, l, keys_from_decay(k) ? "ssm_alpha.weight" : "attn_k.weight", nK);
        add_in_rows(m, L, l, "attn_v.weight", nV);
    }
    // output gate, erase and write strengths, decay, second moment
    if (L->gate != F_ID && !is_mamba(k))
        L->at_z = narrow_gate(k) ? add_in_rows(m, L, l, "ssm_g_a.weight", c->gate_rank) : add_in_rows(m, L, l, "attn_gate.weight", V);
    if (k->erase) L->at_b = add_in_rows(m, L, l, "ssm_beta.weight", k->erase == ERASE_GATED ? K : n * H);
    if (k->erase == ERASE_GATED) L->at_w = add_in_rows(m, L, l, "ssm_w.weight", V);
    if ((k->decay == DECAY_SIGMOID || is_softplus(k) || slots) && !is_mamba(k))
        L->at_a = narrow ? add_in_rows(m, L, l, "ssm_f_a.weight", c->gate_rank) : add_in_rows(m, L, l, "ssm_alpha.weight", wide);
    if (is_scaled(k)) {
        L->at_g = add_in_rows(m, L, l, "ssm_m_alpha.weight", H);
        L->at_s = add_in_rows(m, L, l, "ssm_m_beta.weight", H);
    }
    // here w_in ends
    if (narrow) L->w_fb = add_tensor(m, l, "ssm_f_b.weight", K, c->gate_rank, DECAYS);
    // convolutions
    if (taps && (L->kind->qwen || is_mamba(k))) {
        L->n_conv = 1;
        L->conv_width[0] = L->n_u;
        L->conv[0] = add_tensor(m, l, "ssm_conv1d.weight", taps, L->n_u, KEEP_F32 | TRANSPOSED);
        if (is_mamba(k)) L->conv_bias = add_tensor(m, l, "ssm_conv1d.bias", 0, L->n_u, KEEP_F32);
    } else if (taps)
        for (int i = L->n_conv = 0; i < 3; i++, L->n_conv++)
            L->conv[i] = add_tensor(m, l,
                                    (const char *[]){ "ssm_conv1d_q.weight",
                                                      keys_from_decay(k) ? "ssm_conv1d_f.weight" : "ssm_conv1d_k.weight",
                                                      "ssm_conv1d_v.weight" }[i],
                                    taps, L->conv_width[i] = i == 0 ? K : i == 1 ? nK : nV, KEEP_F32 | TRANSPOSED);
    // decays, in the several ways there are
    if (k->decay == DECAY_FIXED) L->decay = add_tensor(m, l, "ssm_decay", 0, H, KEEP_F32 | CONSTANT);
    if (k->decay == DECAY_SIGMOID || (k->decay == DECAY_FORGET && c->half_life > 0))
        L->bias = add_tensor(m, l, narrow ? "ssm_f_b.bias" : "ssm_alpha.bias", 0, wide, KEEP_F32);
    if (is_softplus(k)) {
        L->bias = add_tensor(m, l, "ssm_dt.bias", 0, wide, KEEP_F32);
        L->a_log = add_tensor(m, l, "ssm_a", is_mamba(k) ? H : 0, is_mamba(k) ? 1 : H, KEEP_F32 | NEGATIVE_EXP);
    }
    if (is_scaled(k)) {
        L->m_bias = add_tensor(m, l, "ssm_m_dt.bias", 0, H, KEEP_F32);
        L->m_scale = add_tensor(m, l, "ssm_m_scale", 0, H, KEEP_F32);
        L->m_a = add_tensor(m, l, "ssm_m_a", 0, H, KEEP_F32 | NEGATIVE_EXP);
    }
    // what goes around the recurrence, the norm and the way out
    if (is_mamba(k)) L->skip = add_tensor(m, l, "ssm_d", H, 1, KEEP_F32);
    if (k->erase == ERASE_OLD) {
        L->old_key = add_tensor(m, l, "ssm_p", 0, H, KEEP_F32 | SIGMOID);
        L->skip = add_tensor(m, l, "ssm_d", 0, H, KEEP_F32);
    }
    if (narrow_gate(k)) {
        L->w_gb = add_tensor(m, l, "ssm_g_b.weight", V, c->gate_rank, DECAYS);
        L->gb_bias = add_tensor(m, l, "ssm_g_b.bias", 0, V, KEEP_F32);
    }
    L->norm = add_tensor(m, l, "ssm_norm.weight", is_mamba(k) ? H : 0, facts(k)->back.out == OUT_HEAD || is_mamba(k) ? c->dv : V, KEEP_F32);
    L->w_o = add_tensor(m, l, L->kind->qwen || is_mamba(k) ? "ssm_out.weight" : "attn_output.weight", c->dim, V, DECAYS);
}

/* A narrow projection of RWKV-7 to `out` channels; `letter` is w, a, g or v, and only g has no bias. */
static Narrow add_narrow(Tiny *m, int l, char letter, int out, Act act) {
    char name[32];
    Narrow p = { .rank = m->c.gate_rank, .act = act, .biased = letter != 'g' };
    snprintf(name, sizeof name, "time_mix_%c1.weight", letter);
    p.down = add_tensor(m, l, name, p.rank, m->c.dim, DECAYS);
    snprintf(name, sizeof name, "time_mix_%c2.weight", letter);
    p.up = add_tensor(m, l, name, out, p.rank, DECAYS);
    snprintf(name, sizeof name, "time_mix_%c0.weight", letter);
    if (p.biased) p.bias = add_tensor(m, l, name, 0, out, KEEP_F32);
    return p;
}

/* A layer of RWKV-6 or -7, without its feed-forward. */
static void list_rwkv(Tiny *m, TinyLayer *L, int l) {
    const TinyConfig *c = &m->c;
    const int D = c->dim, K = c->n_heads * c->dk, V = c->n_heads * c->dv, R = c->gate_rank, seven = L->kind->rwkv == 7;
    Rwkv *w = &L->rwkv;
    w->lerp = add_tensor(m, l, "time_mix_lerp_fused.weight", 0, (seven ? 6 : 5) * D, KEEP_F32);
    w->w_r = add_tensor(m, l, "time_mix_receptance.weight", K, D, DECAYS);
    w->w_k = add_tensor(m, l, "time_mix_key.weight", K, D, DECAYS);
    w->w_v = add_tensor(m, l, "time_mix_value.weight", V, D, DECAYS);
    if (seven) {
        w->decay = add_narrow(m, l, 'w', K, F_TANH);
        w->strength = add_narrow(m, l, 'a', K, F_ID);
        w->gate = add_narrow(m, l, 'g', V, F_SIGMOID);
        if (l) w->blend = add_narrow(m, l, 'v', V, F_ID);           /* the first layer has no earlier values */
        w->k_k = add_tensor(m, l, "time_mix_k_k.weight", 0, K, KEEP_F32);
        w->k_a = add_tensor(m, l, "time_mix_k_a.weight", 0, K, KEEP_F32);
        w->bonus = add_tensor(m, l, "time_mix_r_k.weight", 0, K, KEEP_F32);
    } else {
        w->lerp_x = add_tensor(m, l, "time_mix_lerp_x.weight", 0, D, KEEP_F32);
        w->mix_down = add_tensor(m, l, "time_mix_w1.weight", 5 * R, D, DECAYS);
        w->mix_up = add_tensor(m, l, "time_mix_w2.weight", 5 * D, R, DECAYS);
        m->tensors[m->n_tensors - 1].parts = 5;
        w->decay = (Narrow){ .rank = R, .act = F_TANH, .biased = true,
                             .bias = add_tensor(m, l, "time_mix_decay.weight", 0, K, KEEP_F32),
                             .down = add_tensor(m, l, "time_mix_decay_w1.weight", R, D, DECAYS),
                             .up = add_tensor(m, l, "time_mix_decay_w2.weight", K, R, DECAYS) };
        w->w_g = add_tensor(m, l, "time_mix_gate.weight", V, D, DECAYS);
        w->bonus = add_tensor(m, l, "time_mix_first.weight", 0, K, KEEP_F32);
    }
    L->norm = add_tensor(m, l, "time_mix_ln.weight", 0, V, KEEP_F32);
    w->o_bias = add_tensor(m, l, "time_mix_ln.bias", 0, V, KEEP_F32);
    L->w_o = add_tensor(m, l, "time_mix_output.weight", D, V, DECAYS);
}

/* The feed-forward of RWKV, in its layers of softmax attention, too; RWKV-6 has a gate behind it. */
static void list_channel_mix(Tiny *m, TinyLayer *L, int l, bool gated) {
    const int D = m->c.dim, F = m->c.hidden_dim;
    Rwkv *w = &L->rwkv;
    L->ffn_norm = add_tensor(m, l, "attn_norm_2.weight", 0, D, KEEP_F32);
    w->ffn_norm_bias = add_tensor(m, l, "attn_norm_2.bias", 0, D, KEEP_F32);
    w->ffn_lerp_k = add_tensor(m, l, "channel_mix_lerp_k.weight", 0, D, KEEP_F32);
    L->w_ffn = add_tensor(m, l, "channel_mix_key.weight", F, D, DECAYS);
    L->w_down = add_tensor(m, l, "channel_mix_value.weight", D, F, DECAYS);
    if (!gated) return;
    w->ffn_lerp_r = add_tensor(m, l, "channel_mix_lerp_r.weight", 0, D, KEEP_F32);
    w->w_recept = add_tensor(m, l, "channel_mix_receptance.weight", D, D, DECAYS);
}

/* The names and shapes of the file, in its order (reference: the tables of llama.cpp; where it has none, ours: doc/format.md). */
static void list_tensors(Tiny *m) {
    const TinyConfig *c = &m->c;
    const MixerKind *kind = &mixer_kinds[c->mixer];
    const int D = c->dim, F = c->hidden_dim;
    m->embed = add_tensor(m, -1, "token_embd.weight", c->vocab_size, D, DECAYS);
    m->out_norm = add_tensor(m, -1, "output_norm.weight", 0, D, KEEP_F32);
    if (kind->rwkv) m->out_norm_bias = add_tensor(m, -1, "output_norm.bias", 0, D, KEEP_F32);
    for (int l = 0; l < c->n_layers; l++) {
        TinyLayer *L = &m->layers[l];
        L->kind = c->interval && (l + 1) % c->interval == 0 ? NULL : kind;
        L->family = L->kind ? family_of(kind) : NULL;
        if (L->family) L->gate = kind->ungated || c->without & NO_GATE ? F_ID : act_of(facts(L->family)->back.gate);
        if (L->family) L->map = c->without & NO_MAP ? F_ID : kind->elu ? F_ELU1 : act_of(facts(L->family)->front.map);
        L->attn_norm = add_tensor(m, l, "attn_norm.weight", 0, D, KEEP_F32);
        if (kind->rwkv) L->rwkv.norm_bias = add_tensor(m, l, "attn_norm.bias", 0, D, KEEP_F32);
        if (L->family) list_linear(m, L, l);
        else if (L->kind) list_rwkv(m, L, l);
        else list_attention(m, L, l, kind->qwen);
        if (!F) continue;
        if (kind->rwkv) { list_channel_mix(m, L, l, kind->rwkv == 6); continue; }
        L->ffn_norm = add_tensor(m, l, kind->qwen ? "post_attention_norm.weight" : "ffn_norm.weight", 0, D, KEEP_F32);
        L->w_ffn = add_tensor(m, l, "ffn_gate.weight", F, D, DECAYS);
        add_tensor(m, l, "ffn_up.weight", F, D, DECAYS);
        L->w_down = add_tensor(m, l, "ffn_down.weight", D, F, DECAYS);
    }
}

/* -- first values -- */

/* Of RWKV: values that go from the first channel to the last, as in its own trainer. */
static const struct { const char *part; double first, last; } ramps[] = {
    { "_lerp_", 0, 1 }, { "time_mix_ln.weight", 1, 1 }, { "attn_norm_2.weight", 1, 1 },
    { "time_mix_decay", -6, -1 }, { "time_mix_w0", -7, -2 }, { "time_mix_first", 1, 0 },
    { "time_mix_k_k", 0.85, 0.85 }, { "time_mix_k_a", 1, 1 }, { "time_mix_v0", 1, 1 },
};
enum { N_RAMPS = sizeof ramps / sizeof *ramps };

/* Matrices: normal, 1 / sqrt(inputs), those that write into the residual stream divided by sqrt(2 L). Norms 1. Decay rates uniform in
 * [1, 16], their softplus(dt) log-uniform in [0.001, 0.1]: memories of one to a thousand tokens. With half_life every decay, learned or
 * fixed, begins at 2^(-1 / half_life) = e^-f, by way of its bias: -f is the logarithm that softplus, logsigmoid / divisor, logsigmoid,
 * and in RWKV -e^x and -e^(-1/2) sigmoid(x) have to give. A tensor is known by its name. */
static void init_params(Tiny *m, uint64_t seed) {
    uint64_t rng = mix_seed(seed);
    for (int n = 0; n < m->n_tensors; n++) {
        const TinyTensor *t = &m->tensors[n];
        const char *name = strrchr(t->name, '.') ? t->name : "";
        real *p = m->params + t->at;
        /* matrices keep the size of what they multiply, those that write to the residual stream a share of it;
         * the table of tokens starts small */
        double scale = strstr(t->name, "token_embd") ? 0.05 : 1 / sqrt((double)t->cols);
        const Family *k = m->layers[0].family;
        const double f = m->c.half_life > 0 ? log(2) / m->c.half_life : 0;
        const double undivided = f * (k && k->decay == DECAY_SIGMOID ? m->c.decay_divisor : 1); /* what logsigmoid has to give */
        bool out = strstr(name, "ssm_out") || strstr(name, "attn_output") || strstr(name, "ffn_down")
                   || strstr(name, "mix_output") || strstr(name, "channel_mix_value");
        bool rate = (strstr(name, "ssm_a") && !strstr(name, "ssm_alpha")) || (strstr(name, "ssm_m_a") && !t->rows);
        const size_t per = strstr(name, "lerp") ? (size_t)m->c.dim : tensor_len(t);     /* channels of a ramp */
        int ramp = 0;
        while (ramp < N_RAMPS && (t->rows || !strstr(name, ramps[ramp].part))) ramp++;
        for (size_t i = 0; i < tensor_len(t); i++) {
            // what RWKV has of its own
            if (f > 0 && !t->rows && strstr(name, "time_mix_decay")) p[i] = (real)log(f);
            else if (f > 0 && !t->rows && strstr(name, "time_mix_w0")) p[i] = (real)-log(DECAY7 / (f < 0.6 ? f : 0.6) - 1);
            else if (ramp < N_RAMPS)
                p[i] = (real)(ramps[ramp].first + (ramps[ramp].last - ramps[ramp].first) * (double)(i % per) / (double)per);
            // norms and skips, whose name ends in ssm_d
            else if (strstr(name, "norm.weight") || !strcmp(strchr(name, 0) - (strlen(name) < 5 ? 0 : 5), "ssm_d")) p[i] = 1;
            // decays
            else if (rate) p[i] = (real)log(1 + (f > 0 ? 0 : 15) * rng_uniform(&rng));
            else if (strstr(name, "ssm_decay")) p[i] = f > 0 ? (real)exp(-f) : 1 - (real)pow(2, -5 - (double)i);
            else if (strstr(name, "ssm_dt") || strstr(name, "ssm_m_dt")) {
                double dt = f > 0 ? f : exp(log(0.001) + rng_uniform(&rng) * log(100));
                p[i] = (real)(dt + log(-expm1(-dt)));           /* the inverse of softplus */
            } else if (f > 0 && (strstr(name, "ssm_alpha.bias") || strstr(name, "ssm_f_b.bias")))
                p[i] = (real)(-undivided - log(-expm1(-undivided)));    /* the inverse of logsigmoid */
            // convolutions, biases, matrices
            else if (strstr(name, "conv1d") && t->rows) p[i] = (real)(rng_uniform(&rng) - 0.5);
            else if (!t->rows) p[i] = 0;
            else p[i] = (real)(rng_normal(&rng) * scale / (out ? sqrt(2.0 * m->c.n_layers) : 1));
        }
    }
}

/* -- where activations lie -- */

/* The next n reals of an arena, of which *used are taken; without a base it only counts. */
static real *lay(real *base, size_t *used, size_t n) {
    real *p = base ? base + *used : NULL;
    *used += (n + 15) / 16 * 16;
    return p;
}

/* The middle of a narrow projection, if the layer has it. */
static void lay_narrow(Narrow *p, real *base, size_t *n, size_t N) {
    if (p->rank) {
        p->middle = lay(base, n, N * (size_t)p->rank);
        p->bent = p->act == F_ID ? p->middle : lay(base, n, N * (size_t)p->rank);
    }
}

/* A layer of RWKV. Returns the reals that its backward needs besides, from the pool. */
static size_t lay_out_rwkv(Tiny *m, TinyLayer *L, real *base, size_t *n) {
    const TinyConfig *c = &m->c;
    const size_t N = (size_t)m->B * c->seq_len, D = c->dim, H = c->n_heads, K = H * c->dk, V = H * c->dv, R = c->gate_rank;
    const size_t seven = L->kind->rwkv == 7;
    Memory *r = &L->mem;
    Rwkv *w = &L->rwkv;
    *r = (Memory){ .B = m->B, .T = c->seq_len, .heads = (int)H, .dk = c->dk, .dv = c->dv, .vector_decay = true,
                   .mode = seven ? SCAN_WRITES_BACK : SCAN_READS_FIRST };
    r->q = lay(base, n, N * K);
    r->k = lay(base, n, N * K);
    r->v = lay(base, n, N * V);
    r->d = lay(base, n, N * K);
    r->S = lay(base, n, memory_states(m->B, c->seq_len, c->n_heads, c->dk, c->dv));
    r->o = lay(base, n, N * V);
    r->w = seven ? lay(base, n, N * V) : r->v;
    for (int j = 0; j < N_READ; j++)
        if (seven || j != R_A) w->read[j] = lay(base, n, N * D);
    for (int j = 0; j < N_READ && !seven; j++)
        if (j != R_A) w->share[j] = lay(base, n, N * D);
    if (!seven) {
        w->mixed = lay(base, n, N * D);
        w->low = lay(base, n, N * 5 * R);
        w->bent = lay(base, n, N * 5 * R);
    } else {
        r->e = lay(base, n, N * K);
        r->b = lay(base, n, N * K);
        w->a = lay(base, n, N * K);
        w->scaled = lay(base, n, N * K);
        L->inv_k = lay(base, n, N * H);
    }
    w->key = seven ? lay(base, n, N * K) : r->k;
    w->value = w->blend.rank ? lay(base, n, N * V) : r->v;
    if (w->blend.rank) w->take = lay(base, n, N * V);
    lay_narrow(&w->decay, base, n, N);
    lay_narrow(&w->strength, base, n, N);
    lay_narrow(&w->gate, base, n, N);
    lay_narrow(&w->blend, base, n, N);
    L->f = lay(base, n, N * K);
    L->z = lay(base, n, N * V);
    w->normed = lay(base, n, N * V);
    L->inv_o = lay(base, n, 2 * N * H);
    L->y = lay(base, n, N * V);
    return N * (7 * V + 8 * K + 8 * D + 18 * R) + 16 * 8;
}

/* Lays the activations out; run twice, first with no base to measure. The pool holds the gradients inside one layer, as many as the
 * greediest layer takes. */
static size_t lay_out(Tiny *m, real *base) {
    const TinyConfig *c = &m->c;
    const size_t N = (size_t)m->B * c->seq_len, D = c->dim, F = c->hidden_dim, H = c->n_heads, K = H * c->dk, V = H * c->dv;
    const size_t Q = (size_t)c->q_heads * c->head_dim, KV = (size_t)c->kv_heads * c->head_dim;
    size_t n = 0, most = 3 * N * F + 6 * N * D;
    for (int l = 0; l < c->n_layers; l++) {
        TinyLayer *L = &m->layers[l];
        Memory *r = &L->mem;
        const Family *k = L->family;
        size_t pool;
        L->x = lay(base, &n, N * D);
        L->inv = lay(base, &n, 2 * N);
        L->h = lay(base, &n, N * D);
        L->raw = lay(base, &n, N * L->n_in);
        if (L->kind && L->kind->rwkv) pool = lay_out_rwkv(m, L, base, &n);
        else if (!k) {
            r->q = lay(base, &n, N * Q);
            r->k = lay(base, &n, N * KV);
            r->v = lay(base, &n, N * KV);
            L->inv_q = lay(base, &n, N * c->q_heads);
            L->inv_k = lay(base, &n, N * c->kv_heads);
            L->lse = lay(base, &n, N * c->q_heads);
            r->o = lay(base, &n, N * Q);
            L->y = lay(base, &n, N * Q);
            if (L->n_conv) L->conved = lay(base, &n, N * L->n_u);
            pool = N * (L->n_in + L->n_u + 2 * Q + 2 * KV);
        } else {
            const size_t wide = k->per == HEADS ? H : K, writes = writes_of(L->kind), M = N * writes;
            *r = (Memory){ .B = m->B, .T = c->seq_len * (int)writes, .heads = (int)H, .dk = c->dk, .dv = c->dv,
                           .vector_decay = k->per != HEADS };
            r->q = lay(base, &n, M * K);
            r->k = lay(base, &n, M * K);
            r->v = lay(base, &n, M * V);
            r->d = lay(base, &n, M * wide);
            r->S = lay(base, &n, memory_states(m->B, r->T, c->n_heads, c->dk, c->dv));
            r->o = lay(base, &n, M * V);
            r->w = r->v;
            if (k->erase) {
                r->rho = lay(base, &n, M * H);
                r->e = lay(base, &n, M * K);
                r->w = lay(base, &n, M * V);
            }
            if (writes > 1) {
                L->one_q = lay(base, &n, N * K);
                L->one_d = lay(base, &n, N * H);
                L->og = lay(base, &n, N * V);
            }
            if (is_scaled(k)) {
                L->unit = lay(base, &n, N * K);
                L->moment = lay(base, &n, N * K);
                L->per_head = lay(base, &n, H);
                L->fade = lay(base, &n, N * H);
                L->share = lay(base, &n, N * H);
            }
            if (k->erase == ERASE_GATED) L->bk = lay(base, &n, N * K);
            if (k->erase == ERASE_OLD) {
                L->per_head = lay(base, &n, H);
                L->inv_e = lay(base, &n, N * H);
                L->old = lay(base, &n, N * K);
                L->q_less = lay(base, &n, N * K);
            }
            if (k->per == SLOTS) {          /* S (dk, slots) <- S Diag(d) + k rest';  scores = S'q */
                L->keys = (Memory){ .B = m->B, .T = c->seq_len, .heads = (int)H, .dk = c->dk, .dv = c->dk, .mode = SCAN_FADES_VALUES,
                                    .v = r->k, .w = r->k, .c = r->d };
                L->keys.q = lay(base, &n, N * K);
                L->keys.k = lay(base, &n, N * K);
                L->keys.d = lay(base, &n, N * H);
                L->keys.o = lay(base, &n, N * K);
                L->keys.S = lay(base, &n, memory_states(m->B, c->seq_len, c->n_heads, c->dk, c->dk));
            }
            if (facts(k)->back.out == OUT_SILU_ALL) L->og = lay(base, &n, N * V);
            if (L->w_fb) L->f = lay(base, &n, N * K);
            if (narrow_gate(k)) L->z = lay(base, &n, N * V);
            if (is_mamba(k)) {
                L->step = lay(base, &n, N * H);
                L->og = lay(base, &n, N * V);
            }
            if (L->n_conv) L->conved = lay(base, &n, N * L->n_u);
            L->rate = lay(base, &n, wide);
            L->inv_q = lay(base, &n, N * H);
            L->inv_k = lay(base, &n, M * H);
            L->inv_o = lay(base, &n, N * H);
            L->y = lay(base, &n, N * V);
            pool = N * (L->n_in + L->n_u + 3 * V + 8 * K + 5 * H) + M * (2 * V + 4 * K + 3 * H) + 2 * H * writes + H;
        }
        L->mid = lay(base, &n, N * D);
        L->inv2 = lay(base, &n, 2 * N);
        L->h2 = lay(base, &n, N * D);
        L->gu = lay(base, &n, N * 2 * F);
        L->s = lay(base, &n, N * F);
        for (int i = 0; i < 2 && mixer_kinds[c->mixer].rwkv; i++) L->rwkv.ffn_read[i] = lay(base, &n, N * D);
        if (L->rwkv.w_recept) {
            L->rwkv.recept = lay(base, &n, N * D);
            L->rwkv.wide = lay(base, &n, N * D);
        }
        most = pool > most ? pool : most;
    }
    m->x_out = lay(base, &n, N * D);
    m->inv_out = lay(base, &n, 2 * N);
    m->h_out = lay(base, &n, N * D);
    m->d_res = lay(base, &n, N * D);
    m->dh = lay(base, &n, N * D);
    m->d_first = lay(base, &n, mixer_kinds[c->mixer].rwkv == 7 ? N * V : 0);
    m->rope = lay(base, &n, (size_t)c->seq_len * c->n_rot + 16);
    m->rope_k = lay(base, &n, (size_t)c->seq_len * c->dk);
    m->pool_cap = most + 16 * 32;                               /* each piece is rounded up to 16 */
    m->pool = lay(base, &n, m->pool_cap);
    return n;
}

/* -- a new model -- */

/* cs (T, n / 2, 2): cosine and sine of position * base^(-2i / n). */
static void rope_angles(real *cs, int T, int n, double base) {
    for (int t = 0; t < T; t++)
        for (int i = 0; i < n / 2; i++) {
            double angle = t * pow(base, -2.0 * i / n);
            cs[(size_t)t * n + 2 * i] = (real)cos(angle);
            cs[(size_t)t * n + 2 * i + 1] = (real)sin(angle);
        }
}

/* What does not change from step to step: decays and erase strengths that are constants. */
static void fill_constants(Tiny *m, TinyLayer *L) {
    const Family *k = L->family;
    const size_t N = (size_t)m->B * m->c.seq_len, H = m->c.n_heads;
    if (k && k->erase) L->mem.mode = SCAN_ERASES;
    for (size_t i = 0; k && L->kind->writes && i < (size_t)L->mem.B * L->mem.T * H; i++)
        L->mem.d[i] = 1;                                            /* between the writes of a token */
    for (size_t i = 0; k && i < N * H; i++) {
        if (k->decay == DECAY_NONE) L->mem.d[i] = 1;                /* these are per head */
        if (k->decay == DECAY_FIXED) L->mem.d[i] = m->c.without & NO_DECAY ? 1 : m->params[L->decay + i % H];
        if (k->erase == ERASE_GATED) L->mem.rho[i] = 1;
        if (k->per == SLOTS) L->keys.d[i] = 1;
    }
}

/* A model of these sizes that trains on B sequences at a time. */
static void tiny_new(Tiny *m, const TinyConfig *c, int B, uint64_t seed) {
    *m = (Tiny){ .c = *c, .B = B };
    m->layers = checked(calloc((size_t)c->n_layers, sizeof *m->layers));
    m->tensors = checked(calloc(3 + 32 * (size_t)c->n_layers, sizeof *m->tensors));
    list_tensors(m);
    m->params = checked(calloc(4 * m->n_params, sizeof(real)));
    m->grads = m->params + m->n_params;
    m->mean = m->grads + m->n_params;
    m->square = m->mean + m->n_params;
    init_params(m, seed);
    m->arena = checked(calloc(lay_out(m, NULL), sizeof(real)));
    lay_out(m, m->arena);
    rope_angles(m->rope, c->seq_len, c->n_rot, c->rope_base);
    rope_angles(m->rope_k, c->seq_len, c->dk, c->rope_base);
    for (int l = 0; l < c->n_layers; l++) fill_constants(m, &m->layers[l]);
}

static void tiny_free(Tiny *m) {
    free(m->layers);
    free(m->tensors);
    free(m->params);
    free(m->arena);
}

/* ---- 7. layers -----------------------------------------------------------------------------
 * h is the normed input of the mixer, (N, dim); L->mid holds the residual stream, to which the mixer adds. Backward: d_res (N, dim) is
 * the gradient of that sum, and dh (N, dim) is assigned. Read a layer, at the end, then linear_forward. Its rooms:
 *
 *   parameters, gradients, scratch  W(name), DW(name) and TMP(n)
 *   linear layers                   projections, convolution, what the recurrence reads, the recurrence, norm and gate, out
 *   softmax attention               the same with keys and values of all tokens instead of a memory
 *   RWKV                            its mixer, and its feed-forward, channel_mix
 *   a layer                         norm, mixer, norm, feed-forward, around the residual stream
 *
 * Local names: N = B T tokens, D dim, F hidden_dim, H heads, K = H dk and V = H dv, R the rank of the narrow middles. */

/* -- parameters, gradients, scratch -- */

/* The parameters of a tensor and their gradients: by where it begins (W_, DW_), or by its name in the layer L (W, DW). TMP(n) is scratch
 * for n reals until the layer is done: see layer_backward. */
#define W_(at) (m->params + (at))
#define DW_(at) (m->grads + (at))
#define W(name) W_(L->name)
#define DW(name) DW_(L->name)
#define TMP(n) tiny_tmp(m, (size_t)(n))

static real *tiny_tmp(Tiny *m, size_t n) {
    real *p = lay(m->pool, &m->pool_used, n);
    if (m->pool_used > m->pool_cap) fprintf(stderr, "train_tiny: the pool of gradients is too small\n"), abort();
    return p;
}

/* -- linear layers -- */

/* The short convolutions of a layer, one or one each for q, k, v, next to each other: conved (N, n_u) from columns of raw. */
static void convs_forward(Tiny *m, TinyLayer *L, bool silu) {
    for (int i = 0, at = 0; i < L->n_conv; at += L->conv_width[i++])
        conv_forward(L->conved + at, L->n_u, L->raw + L->at_u + at, L->n_in, W(conv[i]), L->conv_bias ? W(conv_bias) : NULL,
                     silu, m->B, m->c.seq_len, L->conv_width[i], m->c.d_conv);
}

//~ conved = act(conv(raw) + bias).  Without a convolution dconved is not looked at.
static void convs_backward(Tiny *m, TinyLayer *L, real *draw, real *dconved, bool silu) {
    for (int i = 0, at = 0; i < L->n_conv; at += L->conv_width[i++])
        conv_backward(draw + L->at_u + at, DW(conv[i]), L->conv_bias ? DW(conv_bias) : NULL, dconved + at, L->n_u,
                      L->raw + L->at_u + at, L->n_in, W(conv[i]), L->conv_bias ? W(conv_bias) : NULL,
                      silu, m->B, m->c.seq_len, L->conv_width[i], m->c.d_conv);
}

/* Of one number: sigmoid without overflow, softplus = ln(1 + e^x). */
static real sigmoid1(real x) { return x >= 0 ? 1 / (1 + (real)exp(-x)) : (real)exp(x) / (1 + (real)exp(x)); }
static real softplus1(real x) { return x > 20 ? x : (real)log1p(exp(x)); }

/* Where the q, k, v of a linear layer come from, the input of its decay and of its output gate, each with the stride of its rows. */
typedef struct { real *u, *a, *z; size_t ldu, lda, ldz; } Inputs;

/* Of the activations or, given their gradients, of the gradients. */
static Inputs inputs_of(const TinyLayer *L, int K, int V, real *raw, real *conved, real *f, real *z) {
    const Family *k = L->family;
    Inputs in = { raw + L->at_u, raw + L->at_a, L->gate == F_ID ? NULL : raw + L->at_z,
                  (size_t)L->n_in, (size_t)L->n_in, (size_t)L->n_in };
    if (L->n_conv) in.u = conved, in.ldu = (size_t)L->n_u;
    if (L->w_fb) in.a = f, in.lda = (size_t)K;
    if (keys_from_decay(k)) in.a = in.u + L->at_k, in.lda = in.ldu;
    if (narrow_gate(k)) in.z = z, in.ldz = (size_t)V;
    return in;
}

/* Mamba-2's step size: softplus(a + bias), (rows, H). */
static void step_forward(real *step, const real *a, size_t lda, const real *bias, int rows, int H) {
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < H; h++) step[r * H + h] = softplus1(a[r * lda + h] + bias[h]);
}

//~ step = softplus(a + bias).  da and dbias add.
static void step_backward(real *da, real *dbias, const real *dstep, const real *a, size_t lda, const real *bias, int rows, int H) {
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < H; h++) {
            real g = dstep[r * H + h] * sigmoid1(a[r * lda + h] + bias[h]);
            da[r * lda + h] += g;
            dbias[h] += g;
        }
}

/* d is made from a, token by token. */
static bool has_gate(const Family *f) { return f->decay >= DECAY_SIGMOID && f->decay != DECAY_SUM; }

/* Tokens r .. r + rows: from projections to what the recurrence reads, q, k, d, rho, v and e, as the row of `family` says. Token r
 * begins at atk in arrays (N, K), at atv in (N, V), at ath in (N, H), at atd in the decay. */
static void linear_inputs_forward(Tiny *m, TinyLayer *L, int r, int rows) {
    const TinyConfig *c = &m->c;
    const Family *k = L->family;
    const int H = c->n_heads, dk = c->dk, dv = c->dv, K = H * dk, V = H * dv;
    const real scale = is_mamba(k) || L->kind->unscaled ? 1 : 1 / (real)sqrt(dk);
    const size_t atk = (size_t)r * K, atv = (size_t)r * V, ath = (size_t)r * H, atd = (size_t)r * (k->per == HEADS ? H : K);
    const Inputs in = inputs_of(L, K, V, L->raw, L->conved, L->f, L->z);
    const real *u = in.u + r * in.ldu, *a = in.a + r * in.lda, *raw = L->raw + (size_t)r * L->n_in;
    const int n = writes_of(L->kind);        /* k, v and rho of each write, one after the other */
    Memory *t = &L->mem, *keys = k->per == SLOTS ? &L->keys : t;
    real *q = L->one_q ? L->one_q : keys->q; /* where q, d and k go, if something is still to happen to them */
    real *d = L->one_d ? L->one_d : t->d, *key = L->unit ? L->unit : keys->k;
    // q, k
    if (k->erase == ERASE_OLD) {
        comba_forward(L->old + atk, L->q_less + atk, u + L->at_q, u + L->at_k, in.ldu, L->per_head, W(skip), rows, H, dk);
        kern.l2norm_forward(t->q + atk, L->inv_q + ath, L->q_less + atk, K, rows, H, dk, scale);
        kern.l2norm_forward(t->e + atk, L->inv_e + ath, L->old + atk, K, rows, H, dk, 1);
    } else if (facts(k)->front.norm == QK_L2) kern.l2norm_forward(q + atk, L->inv_q + ath, u + L->at_q, in.ldu, rows, H, dk, scale);
    else kern.map_forward(L->map, q + atk, u + L->at_q, in.ldu, rows, K, scale);
    if (facts(k)->front.norm == QK_L2) kern.l2norm_forward(key + n * atk, L->inv_k + n * ath, u + L->at_k, in.ldu, rows, n * H, dk, 1);
    else if (!keys_from_decay(k)) kern.map_forward(L->map, key + atk, u + L->at_k, in.ldu, rows, K, 1);
    // d, and what it leaves to be written
    if (has_gate(k))
        kern.gate_forward(d + atd, a, in.lda, L->bias ? W(bias) : NULL, L->rate, is_softplus(k) ? -1 : 1, rows, k->per == HEADS ? H : K);
    if (has_gate(k) && k->write == WRITE_REST)
        for (size_t i = atk; i < atk + (size_t)rows * K; i++) t->k[i] = 1 - t->d[i];
    for (size_t i = atd; c->without & NO_DECAY && i < atd + (size_t)rows * (k->per == HEADS ? H : K); i++) d[i] = 1;
    for (int i = r; i < r + rows && n > 1; i++) { /* the memory fades before the first write and is read after the last */
        memcpy(t->d + (size_t)i * n * H, d + (size_t)i * H, H * sizeof *d);
        memcpy(t->q + ((size_t)i * n + n - 1) * K, q + (size_t)i * K, K * sizeof *q);
    }
    // rho, v
    const real *v = u + L->at_v;
    if (k->write == WRITE_BETA_V || is_scaled(k)) {
        kern.gate_forward(t->rho + n * ath, raw + L->at_b, L->n_in, NULL, NULL, 1, rows, n * H);
        kern.scale_forward(t->v + n * atv, v, in.ldu, t->rho + n * ath, rows, n * H, dv);
    } else if (k->erase == ERASE_GATED) kern.glu_forward(F_SIGMOID, t->v + atv, v, in.ldu, raw + L->at_w, L->n_in, 0, rows, 1, V);
    else if (is_mamba(k)) {
        step_forward(L->step + ath, a, in.lda, W(bias), rows, H);
        kern.scale_forward(t->v + atv, v, in.ldu, L->step + ath, rows, H, dv);
    } else kern.map_forward(facts(k)->back.out == OUT_SILU_ALL ? F_SILU : F_ID, t->v + atv, v, in.ldu, rows, V, 1);
    // what the second moment is made with
    const real *ek = key + n * atk;
    if (is_scaled(k)) {
        kern.gate_forward(L->fade + ath, raw + L->at_g, L->n_in, W(m_bias), L->per_head, -1, rows, H);
        kern.gate_forward(L->share + ath, raw + L->at_s, L->n_in, NULL, NULL, 1, rows, H);
    }
    // e = d k, or d times k of which each channel is erased by its own strength
    if (k->erase == ERASE_GATED) {
        kern.glu_forward(F_SIGMOID, L->bk + atk, t->k + atk, K, raw + L->at_b, L->n_in, 0, rows, 1, K);
        ek = L->bk + atk;
    }
    if (k->erase == ERASE_OLD) return;       /* from the memory that has not faded */
    if (k->erase && k->per == CHANNELS) kern.glu_forward(F_ID, t->e + atk, ek, K, t->d + atk, K, 0, rows, 1, K);
    else if (k->erase) kern.scale_forward(t->e + n * atk, ek, K, t->d + n * ath, n * rows, H, dk);
}

/* The way back, in the opposite order. In: the gradients that the recurrence gives, in L->mem. Out, assigned: draw (N, n_in), dconved
 * (N, n_u), df (N, K); dbias and drate (wide) add. dbk (N, K) and dstep (N, H) are room to work in; dfade and dshare (N, H) come from
 * the second moment, whose bias and rate (H) follow 2 wide behind dbias. */
static void linear_inputs_backward(Tiny *m, TinyLayer *L, int r, int rows, real *draw, real *dconved, real *df, real *dbk, real *dstep,
                                   real *dfade, real *dshare, real *dbias, real *drate) {
    const TinyConfig *c = &m->c;
    const Family *k = L->family;
    const int H = c->n_heads, dk = c->dk, dv = c->dv, K = H * dk, V = H * dv;
    const real scale = is_mamba(k) || L->kind->unscaled ? 1 : 1 / (real)sqrt(dk);
    const size_t atk = (size_t)r * K, atv = (size_t)r * V, ath = (size_t)r * H, atd = (size_t)r * (k->per == HEADS ? H : K);
    const size_t atr = (size_t)r * L->n_in;
    const Inputs in = inputs_of(L, K, V, L->raw, L->conved, L->f, L->z), d_in = inputs_of(L, K, V, draw, dconved, df, NULL);
    const real *u = in.u + r * in.ldu, *a = in.a + r * in.lda, *raw = L->raw + atr;
    real *du = d_in.u + r * in.ldu, *da = d_in.a + r * in.lda;
    const int n = writes_of(L->kind);
    Memory *t = &L->mem, *keys = k->per == SLOTS ? &L->keys : t;
    real *key = L->unit ? L->unit : t->k, *d = L->one_d ? L->one_d : t->d;
    real *dd = n > 1 ? L->d_one_d : t->dd, *dq = n > 1 ? L->d_one_q : keys->dq;
    //~ e = d k,  or d bk with bk = k sigmoid(b)
    if (k->erase == ERASE_GATED) {
        kern.glu_backward(F_ID, dbk + atk, t->dd + atk, t->de + atk, L->bk + atk, K, t->d + atk, K, 0, rows, 1, K, ADD_DZ);
        kern.glu_backward(F_SIGMOID, t->dkey + atk, draw + atr + L->at_b, dbk + atk, t->k + atk, K, raw + L->at_b, L->n_in, 0,
                          rows, 1, K, ADD_DX);
    } else if (k->erase == ERASE_KEY && k->per == CHANNELS)
        kern.glu_backward(F_ID, t->dkey + atk, t->dd + atk, t->de + atk, key + atk, K, t->d + atk, K, 0, rows, 1, K, ADD_DX | ADD_DZ);
    else if (k->erase == ERASE_KEY)
        kern.scale_backward(t->dkey + n * atk, t->dd + n * ath, t->de + n * atk, key + n * atk, K, t->d + n * ath, n * rows, H, dk, ADD_DX);
    //~ fade = gate(g),  share = sigmoid(s)
    if (is_scaled(k)) {
        const size_t wide = k->per == HEADS ? H : K;
        kern.gate_backward(draw + atr + L->at_g, dbias + 2 * wide, dbias + 2 * wide + H, dfade + ath, L->fade + ath, raw + L->at_g, L->n_in,
                           W(m_bias), L->per_head, -1, rows, H);
        kern.gate_backward(draw + atr + L->at_s, NULL, NULL, dshare + ath, L->share + ath, raw + L->at_s, L->n_in, NULL, NULL, 1, rows, H);
    }
    //~ v = rho act_v,  rho = sigmoid(b);  or v = act_v sigmoid(w);  or v = step act_v
    const real *v = u + L->at_v;
    real *dv_ = du + L->at_v;
    if (k->write == WRITE_BETA_V || is_scaled(k)) {
        kern.scale_backward(dv_, t->drho + n * ath, t->dval + n * atv, v, in.ldu, t->rho + n * ath, rows, n * H, dv, 0);
        kern.gate_backward(draw + atr + L->at_b, NULL, NULL, t->drho + n * ath, t->rho + n * ath, raw + L->at_b, L->n_in,
                           NULL, NULL, 1, rows, n * H);
    } else if (k->erase == ERASE_GATED)
        kern.glu_backward(F_SIGMOID, dv_, draw + atr + L->at_w, t->dval + atv, v, in.ldu, raw + L->at_w, L->n_in, 0, rows, 1, V, 0);
    else if (is_mamba(k)) {
        memset(dstep + ath, 0, (size_t)rows * H * sizeof(real));
        kern.scale_backward(dv_, dstep + ath, t->dval + atv, v, in.ldu, L->step + ath, rows, H, dv, 0);
    } else kern.map_backward(facts(k)->back.out == OUT_SILU_ALL ? F_SILU : F_ID, dv_, in.ldu, t->dval + atv, v, rows, V, 1);
    //~ d goes to the first write of a token, q to the last
    for (int i = r; i < r + rows && n > 1; i++) {
        memcpy(dd + (size_t)i * H, t->dd + (size_t)i * n * H, H * sizeof *dd);
        memcpy(dq + (size_t)i * K, t->dq + ((size_t)i * n + n - 1) * K, K * sizeof *dq);
    }
    //~ d = gate(a), or 1
    if (c->without & NO_DECAY) memset(dd + atd, 0, (size_t)rows * (k->per == HEADS ? H : K) * sizeof(real));
    if (has_gate(k) && k->write == WRITE_REST)      //~ k = 1 - d
        for (size_t i = atk; i < atk + (size_t)rows * K; i++) t->dd[i] -= t->dkey[i];
    if (has_gate(k))
        kern.gate_backward(da, dbias, is_softplus(k) ? drate : NULL, dd + atd, d + atd, a, in.lda, L->bias ? W(bias) : NULL, L->rate,
                           is_softplus(k) ? -1 : 1, rows, k->per == HEADS ? H : K);
    if (is_mamba(k)) step_backward(da, dbias, dstep + ath, a, in.lda, W(bias), rows, H);
    //~ q = scale map(u_q),  k = map(u_k)
    if (facts(k)->front.norm == QK_L2)
        kern.l2norm_backward(du + L->at_k, in.ldu, t->dkey + n * atk, u + L->at_k, L->inv_k + n * ath, rows, n * H, dk, 1);
    else if (!keys_from_decay(k)) kern.map_backward(L->map, du + L->at_k, in.ldu, keys->dkey + atk, u + L->at_k, rows, K, 1);
    if (k->erase == ERASE_OLD) {                    /* Comba's q and e go on in linear_backward; here to where their norms began */
        kern.l2norm_backward(t->dq + atk, K, t->dq + atk, L->q_less + atk, L->inv_q + ath, rows, H, dk, scale);
        kern.l2norm_backward(t->de + atk, K, t->de + atk, L->old + atk, L->inv_e + ath, rows, H, dk, 1);
    } else if (facts(k)->front.norm == QK_L2) kern.l2norm_backward(du + L->at_q, in.ldu, dq + atk, u + L->at_q, L->inv_q + ath, rows, H, dk, scale);
    else kern.map_backward(L->map, du + L->at_q, in.ldu, dq + atk, u + L->at_q, rows, K, scale);
}

/* Mamba-2 behind the recurrence: o += D u_v, og = o silu(z), y = rmsnorm(og) with a weight (H, dv) per channel: gate first, then norm. */
static void mamba_output_forward(Tiny *m, TinyLayer *L, Inputs in) {
    const TinyConfig *c = &m->c;
    const int N = m->B * c->seq_len, H = c->n_heads, dv = c->dv, V = H * dv;
    PARALLEL
    for (int r = 0; r < N; r++)
        for (int i = 0; i < V; i++) L->mem.o[(size_t)r * V + i] += W(skip)[i / dv] * in.u[r * in.ldu + L->at_v + i];
    glu_forward(F_SILU, L->og, L->mem.o, V, in.z, in.ldz, 0, N, 1, V);
    for (int h = 0; h < H; h++)
        rmsnorm_forward(L->y + h * dv, V, dv, L->inv_o + (size_t)h * N, L->og + h * dv, V, dv, W(norm) + h * dv, N, 1, dv, (real)c->eps);
}

/* d_o, dog (N, V), dz (in the rows of in.z). Of o += D u_v it does the gradient of D; that of u_v is linear_backward's. */
static void mamba_output_backward(Tiny *m, TinyLayer *L, Inputs in, real *d_o, real *dog, real *dz, const real *dy) {
    const TinyConfig *c = &m->c;
    const int N = m->B * c->seq_len, H = c->n_heads, dv = c->dv, V = H * dv;
    //~ y = rmsnorm(og) * norm
    for (int h = 0; h < H; h++)
        rmsnorm_backward(dog + h * dv, DW(norm) + h * dv, dy + h * dv, V, dv, L->og + h * dv, V, dv,
                         W(norm) + h * dv, L->inv_o + (size_t)h * N, N, 1, dv, 0);
    //~ og = o silu(z)
    glu_backward(F_SILU, d_o, dz, dog, L->mem.o, V, in.z, in.ldz, 0, N, 1, V, 0);
    //~ o += D u_v
    PARALLEL
    for (int i = 0; i < H; i++) {
        double sum = 0;
        for (int r = 0; r < N; r++)
            for (int j = i * dv; j < (i + 1) * dv; j++)
                sum += (double)d_o[(size_t)r * V + j] * in.u[r * in.ldu + L->at_v + j];
        DW(skip)[i] += (real)sum;
    }
}

/* A linear layer: raw = W_in h; q, k, v, gates; the recurrence; mid += W_o (normed and gated o). Most mixers take the plain way down;
 * each `if` is what one or a few of them do besides. */
static void linear_forward(Tiny *m, TinyLayer *L) {
    const TinyConfig *c = &m->c;
    const Family *k = L->family;
    const int T = c->seq_len, N = m->B * T, D = c->dim, H = c->n_heads, dk = c->dk, K = H * dk, V = H * c->dv, R = c->gate_rank;
    const Inputs in = inputs_of(L, K, V, L->raw, L->conved, L->f, L->z);
    const real eps = (real)(L->kind->norm_eps > 0 ? L->kind->norm_eps : c->eps);
    Memory *r = &L->mem;
    // projections, their convolution, what goes through a narrow middle
    matmul_forward(L->raw, L->n_in, L->h, D, W(w_in), N, D, L->n_in, 0);
    convs_forward(m, L, facts(k)->front.silu != SILU_NEVER);
    if (L->w_fb) matmul_forward(L->f, K, L->raw + L->at_a, L->n_in, W(w_fb), N, R, K, 0);
    if (narrow_gate(k)) {
        bias_forward(L->z, W(gb_bias), N, V);
        matmul_forward(L->z, V, L->raw + L->at_z, L->n_in, W(w_gb), N, R, V, 1);
    }
    // decays, and all that the recurrence reads
    if (k->decay == DECAY_SUM) sum_decay_forward(r->d, r->k, in.a, in.lda, m->B, T, K);
    for (int i = 0, wide = k->per == HEADS ? H : K; i < wide; i++)
        L->rate[i] = is_softplus(k)              ? (real)exp(W(a_log)[i / (wide / H)])
                     : k->decay == DECAY_SIGMOID ? 1 / (real)c->decay_divisor
                                                 : 1;
    for (int i = 0; i < H && L->per_head; i++) L->per_head[i] = is_scaled(k) ? (real)exp(W(m_a)[i]) : sigmoid1(W(old_key)[i]);
    PARALLEL
    for (int i = 0; i < N; i += BLOCK) linear_inputs_forward(m, L, i, least(BLOCK, N - i));
    // positions, slots, second moment
    const Memory *keys = k->per == SLOTS ? &L->keys : r;
    if (L->kind->rope && !(c->without & NO_ROTATION)) {
        rotate(keys->q, m->rope_k, m->B, T, H, dk, dk, 1);
        rotate(keys->k, m->rope_k, m->B, T, H, dk, dk, 1);
    }
    if (k->per == SLOTS) {                   /* which slots hold what is asked for */
        memory_forward(&L->keys);
        softmax_forward(r->q, L->keys.o, N * H, dk);
    }
    if (is_scaled(k)) moment_forward(r->k, L->moment, L->unit, L->fade, L->share, W(m_scale), m->B, T, H, dk);
    memory_forward(r);
    // norm and gate, then out
    for (int i = 0, n = writes_of(L->kind); i < N && n > 1; i++)    /* after the last write of a token */
        memcpy(L->og + (size_t)i * V, r->o + ((size_t)i * n + n - 1) * V, V * sizeof(real));
    if (facts(k)->back.out == OUT_SILU_ALL) act_forward(F_SILU, L->og, r->o, N, V);
    if (is_mamba(k)) mamba_output_forward(m, L, in);
    else {
        const int spans = facts(k)->back.out == OUT_HEAD ? H : 1;
        gated_norm_forward(L->gate, L->y, L->inv_o, L->og ? L->og : r->o, in.z, in.ldz, W(norm), N, spans, V / spans, eps);
    }
    matmul_forward(L->mid, D, L->y, V, W(w_o), N, V, D, 1);
}

/* The way back, in the opposite order. */
static void linear_backward(Tiny *m, TinyLayer *L, const real *d_res, real *dh) {
    const TinyConfig *c = &m->c;
    const Family *k = L->family;
    const int T = c->seq_len, N = m->B * T, D = c->dim, H = c->n_heads, dk = c->dk, K = H * dk, V = H * c->dv, R = c->gate_rank;
    const int wide = k->per == HEADS ? H : K, blocks = ceil_div(N, BLOCK);
    Memory *r = &L->mem;
    real *dy = TMP(N * V), *draw = TMP(N * L->n_in);
    real *dconved = L->n_conv ? TMP(N * L->n_u) : NULL, *df = L->w_fb ? TMP(N * K) : NULL;
    real *dbk = k->erase == ERASE_GATED ? TMP(N * K) : NULL, *dstep = is_mamba(k) ? TMP(N * H) : NULL;
    real *dz = narrow_gate(k) ? TMP(N * V) : NULL;
    const int n = writes_of(L->kind), M = N * n;
    r->d_o = TMP(M * V);
    r->dval = TMP(M * V);
    r->dq = TMP(M * K);
    r->dkey = TMP(M * K);
    r->dd = TMP(M * wide);
    if (k->erase) {
        r->de = TMP(M * K);
        r->drho = TMP(M * H);
    }
    if (n > 1) {
        L->d_one_q = TMP(N * K);
        L->d_one_d = TMP(N * H);
    }
    const Inputs in = inputs_of(L, K, V, L->raw, L->conved, L->f, L->z), d_in = inputs_of(L, K, V, draw, dconved, df, dz);
    //~ mid += y W_o'
    matmul_backward(dy, DW(w_o), d_res, D, L->y, V, W(w_o), N, V, D, 0);
    //~ y = rmsnorm(o) act(z)
    if (is_mamba(k)) mamba_output_backward(m, L, in, r->d_o, TMP(N * V), d_in.z, dy);
    else {
        const int spans = facts(k)->back.out == OUT_HEAD ? H : 1;
        gated_norm_backward(L->gate, r->d_o, d_in.z, DW(norm), dy, L->og ? L->og : r->o, in.z, in.ldz, W(norm), L->inv_o,
                            N, spans, V / spans);
    }
    if (facts(k)->back.out == OUT_SILU_ALL) act_backward(F_SILU, r->d_o, r->d_o, r->o, N, V);       //~ og = silu(o)
    //~ o is what is read after the last write; rows move from the end, into room that is free
    for (int i = N - 1; i >= 0 && n > 1; i--) {
        memmove(r->d_o + ((size_t)i * n + n - 1) * V, r->d_o + (size_t)i * V, V * sizeof(real));
        zeroed(r->d_o + (size_t)i * n * V, (size_t)(n - 1) * V);
    }
    //~ o = recurrence(q, k, v, d, e, rho)
    memory_backward(r);
    if (k->per == SLOTS) {
        //~ q = softmax(recurrence of the keys), which has d and 1 - d in common with the values
        Memory *t = &L->keys;
        t->d_o = TMP(N * K);
        t->dval = TMP(N * K);
        t->dq = TMP(N * K);
        t->dkey = TMP(N * K);
        t->dd = TMP(N * H);
        t->dc = TMP(N * K);
        softmax_backward(t->d_o, r->dq, r->q, N * H, dk);
        memory_backward(t);
        for (size_t i = 0; i < (size_t)N * K; i++) {
            r->dkey[i] += t->dval[i];
            r->dd[i] += t->dc[i];
        }
    }
    //~ q, k = rotate(q, k)
    const Memory *keys = k->per == SLOTS ? &L->keys : r;
    if (L->kind->rope && !(c->without & NO_ROTATION)) {
        rotate(keys->dq, m->rope_k, m->B, T, H, dk, dk, -1);
        rotate(keys->dkey, m->rope_k, m->B, T, H, dk, dk, -1);
    }
    //~ d, k = softmax over time
    if (k->decay == DECAY_SUM) sum_decay_backward(d_in.a, in.lda, r->dd, r->dkey, r->d, r->k, m->B, T, K);
    //~ k = unit key times a factor
    real *dfade = NULL, *dshare = NULL;
    if (is_scaled(k)) {
        dfade = TMP(N * H);
        dshare = TMP(N * H);
        moment_backward(r->dkey, dfade, dshare, DW(m_scale), L->moment, L->unit, L->fade, L->share, W(m_scale), m->B, T, H, dk);
    }
    //~ q, k, v, d, e, rho from u and raw.  Gradients of bias and rate: one row per block, added in order
    const size_t row = 2 * (size_t)wide + 2 * H;
    real *part = zeroed(space(-1, blocks * row), blocks * row);
    PARALLEL
    for (int i = 0; i < N; i += BLOCK) {
        real *sum = part + i / BLOCK * row;
        linear_inputs_backward(m, L, i, least(BLOCK, N - i), draw, dconved, df, dbk, dstep, dfade, dshare, sum, sum + wide);
    }
    for (int b = 0; b < blocks; b++) {
        const real *sum = part + b * row;
        for (int i = 0; i < wide; i++) {
            if (L->bias) DW(bias)[i] += sum[i];
            //~ rate = exp(a_log)
            if (L->a_log) DW(a_log)[i / (wide / H)] += sum[wide + i] * L->rate[i];
        }
        for (int i = 0; i < H && is_scaled(k); i++) {
            DW(m_bias)[i] += sum[2 * wide + i];
            DW(m_a)[i] += sum[2 * wide + H + i] * L->per_head[i];
        }
    }
    //~ e = old k,  q = u_q - skip e,  before their norms
    if (k->erase == ERASE_OLD) {
        real *dold = zeroed(TMP(H), H);
        comba_backward(d_in.u + L->at_q, d_in.u + L->at_k, dold, DW(skip), r->de, r->dq, L->old, in.u + L->at_k, in.ldu,
                       L->per_head, W(skip), N, H, dk);
        //~ old = sigmoid(old_key)
        for (int i = 0; i < H; i++) DW(old_key)[i] += dold[i] * L->per_head[i] * (1 - L->per_head[i]);
    }
    if (is_mamba(k))
        for (int i = 0; i < N; i++)         //~ o += D u_v
            for (int j = 0; j < V; j++) d_in.u[i * in.ldu + L->at_v + j] += W(skip)[j / c->dv] * r->d_o[(size_t)i * V + j];
    //~ f = raw_a W_fb',  z = raw_z W_gb' + bias
    if (L->w_fb) matmul_backward(draw + L->at_a, DW(w_fb), df, K, L->raw + L->at_a, L->n_in, W(w_fb), N, R, K, 0);
    if (narrow_gate(k)) {
        matmul_backward(draw + L->at_z, DW(w_gb), dz, V, L->raw + L->at_z, L->n_in, W(w_gb), N, R, V, 0);
        bias_backward(DW(gb_bias), dz, N, V);
    }
    //~ u = act(conv(raw))
    convs_backward(m, L, draw, dconved, facts(k)->front.silu != SILU_NEVER);
    //~ raw = h W_in'
    matmul_backward(dh, DW(w_in), draw, L->n_in, L->h, D, W(w_in), N, D, L->n_in, 0);
}

/* -- softmax attention -- */

/* raw = q | k | v, side by side. With a gate (Qwen3.5): per head n columns of query, then n of gate, and q and k are normed;
 *   mid += W_o (attention(q, k, v) * sigmoid(gate)) */
static Attention attention_of(const Tiny *m, TinyLayer *L) {
    return (Attention){ .B = m->B, .T = m->c.seq_len, .H = m->c.q_heads, .Hkv = m->c.kv_heads, .n = m->c.head_dim,
                        .q = L->mem.q, .k = L->mem.k, .v = L->mem.v, .o = L->mem.o, .lse = L->lse };
}

/* n columns of N wider rows, ld apart: copied out of them to dense (N, n), or back into them. */
static void columns(real *wide, size_t ld, real *dense, int N, int n, bool out) {
    PARALLEL
    for (int r = 0; r < N; r++)
        memcpy(out ? dense + (size_t)r * n : wide + r * ld, out ? wide + r * ld : dense + (size_t)r * n, n * sizeof(real));
}

/* Query, key, value; positions; attention; gate; out. */
static void attention_layer_forward(Tiny *m, TinyLayer *L) {
    const TinyConfig *c = &m->c;
    const int T = c->seq_len, N = m->B * T, D = c->dim, n = c->head_dim, H = c->q_heads, G = c->kv_heads;
    const int Q = H * n, KV = G * n, P = L->n_in;
    const bool gated = L->q_norm;
    Memory *r = &L->mem;                     /* here only for its q, k, v, o */
    real *kv = L->n_conv ? L->conved : L->raw + L->at_k;
    const size_t ldkv = L->n_conv ? L->n_u : P;
    matmul_forward(L->raw, P, L->h, D, W(w_in), N, D, P, 0);
    convs_forward(m, L, false);
    if (gated) {
        rmsnorm_forward(r->q, Q, n, L->inv_q, L->raw, P, 2 * n, W(q_norm), N, H, n, (real)c->eps);
        rmsnorm_forward(r->k, KV, n, L->inv_k, kv, ldkv, n, W(k_norm), N, G, n, (real)c->eps);
    } else {
        columns(L->raw, P, r->q, N, Q, true);
        columns(kv, ldkv, r->k, N, KV, true);
    }
    columns(kv + KV, ldkv, r->v, N, KV, true);
    rotate(r->q, m->rope, m->B, T, H, n, c->n_rot, 1);
    rotate(r->k, m->rope, m->B, T, G, n, c->n_rot, 1);
    Attention a = attention_of(m, L);
    attention_forward(&a);
    if (gated) glu_forward(F_SIGMOID, L->y, r->o, Q, L->raw + n, P, 2 * n, N, H, n);
    matmul_forward(L->mid, D, gated ? L->y : r->o, Q, W(w_o), N, Q, D, 1);
}

/* The way back, in the opposite order. */
static void attention_layer_backward(Tiny *m, TinyLayer *L, const real *d_res, real *dh) {
    const TinyConfig *c = &m->c;
    const int T = c->seq_len, N = m->B * T, D = c->dim, n = c->head_dim, H = c->q_heads, G = c->kv_heads;
    const int Q = H * n, KV = G * n, P = L->n_in;
    const bool gated = L->q_norm;
    Memory *r = &L->mem;
    real *dy = TMP(N * Q), *draw = TMP(N * P), *dq = TMP(N * Q), *dk = TMP(N * KV), *dv = TMP(N * KV);
    real *dconved = L->n_conv ? TMP(N * L->n_u) : NULL;
    real *kv = L->n_conv ? L->conved : L->raw + L->at_k, *dkv = L->n_conv ? dconved : draw + L->at_k;
    const size_t ldkv = L->n_conv ? L->n_u : P;
    //~ mid += y W_o'
    matmul_backward(dy, DW(w_o), d_res, D, gated ? L->y : r->o, Q, W(w_o), N, Q, D, 0);
    //~ y = o sigmoid(gate)
    if (gated) glu_backward(F_SIGMOID, dy, draw + n, dy, r->o, Q, L->raw + n, P, 2 * n, N, H, n, 0);
    //~ o = attention(q, k, v)
    Attention a = attention_of(m, L);
    a.d_o = dy;
    a.dq = dq;
    a.dk = dk;
    a.dv = dv;
    attention_backward(&a);
    //~ q, k = rotate(rmsnorm(raw))
    rotate(dq, m->rope, m->B, T, H, n, c->n_rot, -1);
    rotate(dk, m->rope, m->B, T, G, n, c->n_rot, -1);
    if (gated) {
        rmsnorm_backward(draw, DW(q_norm), dq, Q, n, L->raw, P, 2 * n, W(q_norm), L->inv_q, N, H, n, 0);
        rmsnorm_backward(dkv, DW(k_norm), dk, KV, n, kv, ldkv, n, W(k_norm), L->inv_k, N, G, n, 0);
    } else {
        columns(draw, P, dq, N, Q, false);
        columns(dkv, ldkv, dk, N, KV, false);
    }
    columns(dkv + KV, ldkv, dv, N, KV, false);
    //~ conved = conv(raw)
    convs_backward(m, L, draw, dconved, false);
    //~ raw = h W_in'
    matmul_backward(dh, DW(w_in), draw, P, L->h, D, W(w_in), N, D, P, 0);
}

/* -- RWKV -- */

/* The projections r, w, k, v, a, g read h shifted by a share of the token before; w, a, g and blend go through narrow middles.
 *                                                                  (run.c: mix_rwkv, channel_mix; arXiv 2404.05892, 2503.14456)
 *   RWKV-6   share_j = lerp_j + up_j tanh(down_j (h shifted by lerp_x));  d = exp(-e^w)
 *            o = S'r + (r . u k) v, then S <- Diag(d) S + k v'
 *            mid = x + W_o (norm(o) silu(g))
 *   RWKV-7   d = exp(-e^(-1/2) sigmoid(w));  k, e, b: rwkv7_keys_forward;  v: blended with the first layer's
 *            S <- Diag(d) S + k v' + b (S'e)', then o = S'r
 *            mid = x + W_o ((norm(o) + (r . u k) v) g) */

/* Which projection each row of lerp belongs to, in RWKV-6 and -7. */
static const int read_order[2][N_READ] = { { R_W, R_K, R_V, R_R, R_G }, { R_R, R_W, R_K, R_V, R_A, R_G } };

/* y = up act(down x) + bias;  y (N, out), x (N, D). */
static void narrow_forward(Tiny *m, const Narrow *p, real *y, const real *x, int N, int out) {
    const int D = m->c.dim;
    matmul_forward(p->middle, p->rank, x, D, W_(p->down), N, D, p->rank, 0);
    if (p->act != F_ID) act_forward(p->act, p->bent, p->middle, N, p->rank);
    if (p->biased) bias_forward(y, W_(p->bias), N, out);
    matmul_forward(y, out, p->bent, p->rank, W_(p->up), N, p->rank, out, p->biased);
}

//~ y = up bent + bias,  bent = act(middle),  middle = down x.  dx is added to or assigned.
static void narrow_backward(Tiny *m, const Narrow *p, real *dx, const real *dy, const real *x, int N, int out, int add) {
    const int D = m->c.dim;
    real *dbent = TMP(N * p->rank);
    if (p->biased) bias_backward(DW_(p->bias), dy, N, out);
    matmul_backward(dbent, DW_(p->up), dy, out, p->bent, p->rank, W_(p->up), N, p->rank, out, 0);
    if (p->act != F_ID) act_backward(p->act, dbent, dbent, p->middle, N, p->rank);
    matmul_backward(dx, DW_(p->down), dbent, p->rank, x, D, W_(p->down), N, D, p->rank, add);
}

static void rwkv_forward(Tiny *m, TinyLayer *L) {
    const TinyConfig *c = &m->c;
    const int T = c->seq_len, N = m->B * T, D = c->dim, H = c->n_heads, dk = c->dk, dv = c->dv, K = H * dk, V = H * dv, R = c->gate_rank;
    const int seven = L->kind->rwkv == 7;
    const int *order = read_order[seven];
    Rwkv *w = &L->rwkv;
    Memory *r = &L->mem;
    // what each projection reads
    if (!seven) {
        shift_forward(w->mixed, L->h, W(rwkv.lerp_x), 0, m->B, T, D);
        matmul_forward(w->low, 5 * R, w->mixed, D, W(rwkv.mix_down), N, D, 5 * R, 0);
        act_forward(F_TANH, w->bent, w->low, N, 5 * R);
        for (int j = 0; j < 5; j++) {
            bias_forward(w->share[order[j]], W(rwkv.lerp) + j * D, N, D);
            matmul_forward(w->share[order[j]], D, w->bent + j * R, 5 * R, W(rwkv.mix_up) + (size_t)j * D * R, N, R, D, 1);
        }
    }
    for (int j = 0; j < 5 + seven; j++)
        shift_forward(w->read[order[j]], L->h, seven ? W(rwkv.lerp) + j * D : w->share[order[j]], seven ? 0 : D, m->B, T, D);
    // q, key, value; d; in RWKV-7 k, e, b, v; z
    matmul_forward(r->q, K, w->read[R_R], D, W(rwkv.w_r), N, D, K, 0);
    matmul_forward(w->key, K, w->read[R_K], D, W(rwkv.w_k), N, D, K, 0);
    matmul_forward(w->value, V, w->read[R_V], D, W(rwkv.w_v), N, D, V, 0);
    narrow_forward(m, &w->decay, L->f, w->read[R_W], N, K);
    act_forward(seven ? F_DECAY7 : F_DECAY6, r->d, L->f, N, K);
    if (seven) {
        narrow_forward(m, &w->strength, w->a, w->read[R_A], N, K);
        narrow_forward(m, &w->gate, L->z, w->read[R_G], N, V);
        rwkv7_keys_forward(r->k, r->e, r->b, w->scaled, L->inv_k, w->key, w->a, W(rwkv.k_k), W(rwkv.k_a), N, H, dk);
        if (w->blend.rank) {
            narrow_forward(m, &w->blend, w->take, w->read[R_V], N, V);
            blend_forward(r->v, w->value, m->layers[0].rwkv.value, w->take, (size_t)N * V);
        }
    } else matmul_forward(L->z, V, w->read[R_G], D, W(rwkv.w_g), N, D, V, 0);
    // the recurrence, the bonus behind it or behind the norm, gate, out
    memory_forward(r);
    if (!seven) bonus_forward(r->o, r->q, r->k, r->v, W(rwkv.bonus), N, H, dk, dv);
    layernorm_forward(w->normed, L->inv_o, r->o, W(norm), W(rwkv.o_bias), N, H, dv, (real)L->kind->norm_eps);
    if (seven) bonus_forward(w->normed, r->q, r->k, r->v, W(rwkv.bonus), N, H, dk, dv);
    glu_forward(seven ? F_ID : F_SILU, L->y, w->normed, V, L->z, V, 0, N, 1, V);
    matmul_forward(L->mid, D, L->y, V, W(w_o), N, V, D, 1);
}

/* The way back, in the opposite order. */
static void rwkv_backward(Tiny *m, TinyLayer *L, const real *d_res, real *dh) {
    const TinyConfig *c = &m->c;
    const int T = c->seq_len, N = m->B * T, D = c->dim, H = c->n_heads, dk = c->dk, dv = c->dv, K = H * dk, V = H * dv, R = c->gate_rank;
    const int seven = L->kind->rwkv == 7;
    const int *order = read_order[seven];
    Rwkv *w = &L->rwkv;
    Memory *r = &L->mem;
    real *dy = TMP(N * V), *dz = TMP(N * V), *dnormed = TMP(N * V), *dkey = TMP(N * K), *da = NULL, *dread[N_READ];
    r->d_o = TMP(N * V);
    r->dval = TMP(N * V);
    r->dq = TMP(N * K);
    r->dkey = TMP(N * K);
    r->dd = TMP(N * K);
    if (seven) {
        r->de = TMP(N * K);
        r->db = TMP(N * K);
        da = TMP(N * K);
    }
    for (int j = 0; j < 5 + seven; j++) dread[order[j]] = TMP(N * D);
    //~ mid += y W_o'
    matmul_backward(dy, DW(w_o), d_res, D, L->y, V, W(w_o), N, V, D, 0);
    //~ y = normed act(z)
    glu_backward(seven ? F_ID : F_SILU, dnormed, dz, dy, w->normed, V, L->z, V, 0, N, 1, V, 0);
    //~ normed = layernorm(o),  o = recurrence;  the bonus behind one or the other
    layernorm_backward(r->d_o, DW(norm), DW(rwkv.o_bias), dnormed, r->o, W(norm), L->inv_o, N, H, dv, 0);
    memory_backward(r);
    bonus_backward(r->dq, r->dkey, r->dval, DW(rwkv.bonus), seven ? dnormed : r->d_o, r->q, r->k, r->v, W(rwkv.bonus), N, H, dk, dv);
    //~ d = decay(f),  f = narrow(read)
    act_backward(seven ? F_DECAY7 : F_DECAY6, r->dd, r->dd, L->f, N, K);
    narrow_backward(m, &w->decay, dread[R_W], r->dd, w->read[R_W], N, K, 0);
    //~ k, e, b, v, z
    real *dvalue = r->dval, *dkey_in = r->dkey;
    if (seven) {
        rwkv7_keys_backward(dkey, da, DW(rwkv.k_k), DW(rwkv.k_a), r->dkey, r->de, r->db, r->e, w->scaled, L->inv_k,
                            w->key, w->a, W(rwkv.k_k), W(rwkv.k_a), N, H, dk);
        dkey_in = dkey;
        narrow_backward(m, &w->strength, dread[R_A], da, w->read[R_A], N, K, 0);
        narrow_backward(m, &w->gate, dread[R_G], dz, w->read[R_G], N, V, 0);
        if (w->blend.rank) {
            real *dtake = TMP(N * V);
            dvalue = TMP(N * V);
            blend_backward(dvalue, m->d_first, dtake, r->dval, w->value, m->layers[0].rwkv.value, w->take, (size_t)N * V);
            narrow_backward(m, &w->blend, dread[R_V], dtake, w->read[R_V], N, V, 0);
        } else for (size_t i = 0; i < (size_t)N * V; i++) dvalue[i] += m->d_first[i];
    } else matmul_backward(dread[R_G], DW(rwkv.w_g), dz, V, w->read[R_G], D, W(rwkv.w_g), N, D, V, 0);
    //~ q, key, value
    matmul_backward(dread[R_R], DW(rwkv.w_r), r->dq, K, w->read[R_R], D, W(rwkv.w_r), N, D, K, 0);
    matmul_backward(dread[R_K], DW(rwkv.w_k), dkey_in, K, w->read[R_K], D, W(rwkv.w_k), N, D, K, 0);
    matmul_backward(dread[R_V], DW(rwkv.w_v), dvalue, V, w->read[R_V], D, W(rwkv.w_v), N, D, V, w->blend.rank > 0);
    //~ read_j = h shifted by share_j
    zeroed(dh, (size_t)N * D);
    if (seven) {
        for (int j = 0; j < 6; j++) shift_backward(dh, DW(rwkv.lerp) + j * D, dread[order[j]], L->h, W(rwkv.lerp) + j * D, 0, m->B, T, D);
        return;
    }
    real *dshare = TMP(N * D), *dbent = TMP(N * 5 * R);
    for (int j = 0; j < 5; j++) {
        shift_backward(dh, dshare, dread[order[j]], L->h, w->share[order[j]], D, m->B, T, D);
        //~ share_j = lerp_j + bent_j up_j'
        bias_backward(DW(rwkv.lerp) + j * D, dshare, N, D);
        matmul_backward(dbent + j * R, DW(rwkv.mix_up) + (size_t)j * D * R, dshare, D, w->bent + j * R, 5 * R,
                        W(rwkv.mix_up) + (size_t)j * D * R, N, R, D, 0);
    }
    //~ bent = tanh(mixed down'),  mixed = h shifted by lerp_x
    act_backward(F_TANH, dbent, dbent, w->low, N, 5 * R);
    matmul_backward(dshare, DW(rwkv.mix_down), dbent, 5 * R, w->mixed, D, W(rwkv.mix_down), N, D, 5 * R, 0);
    shift_backward(dh, DW(rwkv.lerp_x), dshare, L->h, W(rwkv.lerp_x), 0, m->B, T, D);
}

/* The feed-forward: next += W_down relu(W_key (h2 shifted by lerp_k))^2, in RWKV-6 times sigmoid(W_recept (h2 shifted by lerp_r)). */
static void channel_mix_forward(Tiny *m, TinyLayer *L, real *next) {
    const int T = m->c.seq_len, N = m->B * T, D = m->c.dim, F = m->c.hidden_dim;
    Rwkv *w = &L->rwkv;
    shift_forward(w->ffn_read[0], L->h2, W(rwkv.ffn_lerp_k), 0, m->B, T, D);
    matmul_forward(L->gu, F, w->ffn_read[0], D, W(w_ffn), N, D, F, 0);
    act_forward(F_SQRELU, L->s, L->gu, N, F);
    if (!w->w_recept) { matmul_forward(next, D, L->s, F, W(w_down), N, F, D, 1); return; }
    matmul_forward(w->wide, D, L->s, F, W(w_down), N, F, D, 0);
    shift_forward(w->ffn_read[1], L->h2, W(rwkv.ffn_lerp_r), 0, m->B, T, D);
    matmul_forward(w->recept, D, w->ffn_read[1], D, W(rwkv.w_recept), N, D, D, 0);
    real *gated = space(-1, (size_t)N * D);
    glu_forward(F_SIGMOID, gated, w->wide, D, w->recept, D, 0, N, 1, D);
    for (size_t i = 0; i < (size_t)N * D; i++) next[i] += gated[i];
}

/* The way back; dh (N, D) is assigned. */
static void channel_mix_backward(Tiny *m, TinyLayer *L, const real *d_res, real *dh) {
    const int T = m->c.seq_len, N = m->B * T, D = m->c.dim, F = m->c.hidden_dim;
    Rwkv *w = &L->rwkv;
    real *ds = TMP(N * F), *dread = TMP(N * D), *dwide = TMP(N * D), *drecept = TMP(N * D);
    const real *dout = d_res;
    zeroed(dh, (size_t)N * D);
    if (w->w_recept) {
        //~ next += wide sigmoid(recept),  recept = read W_recept'
        glu_backward(F_SIGMOID, dwide, drecept, d_res, w->wide, D, w->recept, D, 0, N, 1, D, 0);
        matmul_backward(dread, DW(rwkv.w_recept), drecept, D, w->ffn_read[1], D, W(rwkv.w_recept), N, D, D, 0);
        shift_backward(dh, DW(rwkv.ffn_lerp_r), dread, L->h2, W(rwkv.ffn_lerp_r), 0, m->B, T, D);
        dout = dwide;
    }
    //~ next += s W_down' (in RWKV-6 wide =),  s = relu(gu)^2,  gu = read W_key'
    matmul_backward(ds, DW(w_down), dout, D, L->s, F, W(w_down), N, F, D, 0);
    act_backward(F_SQRELU, ds, ds, L->gu, N, F);
    matmul_backward(dread, DW(w_ffn), ds, F, w->ffn_read[0], D, W(w_ffn), N, D, F, 0);
    shift_backward(dh, DW(rwkv.ffn_lerp_k), dread, L->h2, W(rwkv.ffn_lerp_k), 0, m->B, T, D);
}

/* -- a layer -- */

/* The norm of the residual stream: RMSNorm, in RWKV LayerNorm. w and b are offsets of tensors; b is 0 where there is no bias, since
 * the tensor at 0 is the embedding. */
static void stream_norm_forward(Tiny *m, real *y, real *inv, const real *x, size_t w, size_t b) {
    const int N = m->B * m->c.seq_len, D = m->c.dim;
    if (b) layernorm_forward(y, inv, x, W_(w), W_(b), N, 1, D, (real)m->c.eps);
    else rmsnorm_forward(y, D, D, inv, x, D, D, W_(w), N, 1, D, (real)m->c.eps);
}

//~ y = norm(x)
static void stream_norm_backward(Tiny *m, real *dx, const real *dy, const real *x, const real *inv, size_t w, size_t b, int add) {
    const int N = m->B * m->c.seq_len, D = m->c.dim;
    if (b) layernorm_backward(dx, DW_(w), DW_(b), dy, x, W_(w), inv, N, 1, D, add);
    else rmsnorm_backward(dx, DW_(w), dy, D, D, x, D, D, W_(w), inv, N, 1, D, add);
}

/* mid = x + mixer(norm(x));  next = mid + W_down (silu(W_gate h2) * W_up h2),  h2 = norm(mid). Mamba-2 has no second half (F 0). */
static void layer_forward(Tiny *m, TinyLayer *L, real *next) {
    const TinyConfig *c = &m->c;
    const int N = m->B * c->seq_len, D = c->dim, F = c->hidden_dim;
    stream_norm_forward(m, L->h, L->inv, L->x, L->attn_norm, L->rwkv.norm_bias);
    columns(L->x, D, L->mid, N, D, true);
    if (L->family) linear_forward(m, L);
    else if (L->kind) rwkv_forward(m, L);
    else attention_layer_forward(m, L);
    columns(L->mid, D, next, N, D, true);
    if (!F) return;
    stream_norm_forward(m, L->h2, L->inv2, L->mid, L->ffn_norm, L->rwkv.ffn_norm_bias);
    if (L->rwkv.ffn_lerp_k) { channel_mix_forward(m, L, next); return; }
    matmul_forward(L->gu, 2 * F, L->h2, D, W(w_ffn), N, D, 2 * F, 0);
    glu_forward(F_SILU, L->s, L->gu + F, 2 * F, L->gu, 2 * F, 0, N, 1, F);
    matmul_forward(next, D, L->s, F, W(w_down), N, F, D, 1);
}

/* d_res: the gradient of next on entry, of x on return. What TMP gave to one half is free for the other. */
static void layer_backward(Tiny *m, TinyLayer *L, real *d_res) {
    const TinyConfig *c = &m->c;
    const int N = m->B * c->seq_len, D = c->dim, F = c->hidden_dim;
    m->pool_used = 0;
    if (F) {
        if (L->rwkv.ffn_lerp_k) channel_mix_backward(m, L, d_res, m->dh);
        else {
            real *ds = TMP(N * F), *dgu = TMP(2 * N * F);
            //~ next = mid + s W_down'
            matmul_backward(ds, DW(w_down), d_res, D, L->s, F, W(w_down), N, F, D, 0);
            //~ s = silu(g) * u
            glu_backward(F_SILU, dgu + F, dgu, ds, L->gu + F, 2 * F, L->gu, 2 * F, 0, N, 1, F, 0);
            //~ g, u = h2 W'
            matmul_backward(m->dh, DW(w_ffn), dgu, 2 * F, L->h2, D, W(w_ffn), N, D, 2 * F, 0);
        }
        //~ h2 = norm(mid)
        stream_norm_backward(m, d_res, m->dh, L->mid, L->inv2, L->ffn_norm, L->rwkv.ffn_norm_bias, 1);
        m->pool_used = 0;
    }
    //~ mid = x + mixer(h)
    if (L->family) linear_backward(m, L, d_res, m->dh);
    else if (L->kind) rwkv_backward(m, L, d_res, m->dh);
    else attention_layer_backward(m, L, d_res, m->dh);
    //~ h = norm(x)
    stream_norm_backward(m, d_res, m->dh, L->x, L->inv, L->attn_norm, L->rwkv.norm_bias, 1);
}

/* ---- 8. one step ---------------------------------------------------------------------------
 * From ids to the loss, and back to all gradients. */

/* The head, logits = h_out E', shares the embedding's matrix E (V, D). Logits are made, turned into their gradient and used in
 * blocks of tokens that a second-level cache nearly holds; each block packs the matrix once more. Returns the sum of -ln p over
 * the tokens that count (target >= 0), in nats, and how many they are; the gradient is that of the mean. With train, m->dh (N, D)
 * is assigned. */
static double tiny_head(Tiny *m, const int *target, bool train, int *count) {
    enum { ROWS_AT_ONCE = 8 * BLOCK };
    const int N = m->B * m->c.seq_len, D = m->c.dim, V = m->c.vocab_size;
    const real *w = m->params + m->embed;
    static real *logits;
    static size_t cap;
    if (cap < (size_t)ROWS_AT_ONCE * V)
        logits = checked(realloc(logits, (cap = (size_t)ROWS_AT_ONCE * V) * sizeof(real)));
    double loss = 0;
    *count = 0;
    for (int i = 0; i < N; i++) *count += target[i] >= 0;
    const real scale = 1 / (real)(*count ? *count : 1);
    for (int i = 0; i < N; i += ROWS_AT_ONCE) {
        const int rows = least(ROWS_AT_ONCE, N - i);
        double part[ROWS_AT_ONCE / 16] = {0};
        matmul_forward(logits, V, m->h_out + (size_t)i * D, D, w, rows, D, V, 0);
        PARALLEL
        for (int r = 0; r < rows; r += 16)
            part[r / 16] = kern.cross_entropy(logits + (size_t)r * V, target + i + r, least(16, rows - r), V, scale);
        for (int r = 0; r < ROWS_AT_ONCE / 16; r++) loss += part[r];
        //~ logits = h_out E'
        if (train)
            matmul_backward(m->dh + (size_t)i * D, m->grads + m->embed, logits, V, m->h_out + (size_t)i * D, D, w, rows, D, V, 0);
    }
    return loss;
}

/* id, target: (B, T), target -1: not counted. Returns the sum of the losses of `count` tokens. With train, gradients of the mean loss
 * are added to m->grads. */
static double tiny_step(Tiny *m, const int *id, const int *target, bool train, int *count) {
    const TinyConfig *c = &m->c;
    const int N = m->B * c->seq_len, D = c->dim, n = c->n_layers;
    real *w = m->params, *dw = m->grads;
    embedding_forward(m->layers[0].x, w + m->embed, id, N, D);
    for (int l = 0; l < n; l++) layer_forward(m, &m->layers[l], l + 1 < n ? m->layers[l + 1].x : m->x_out);
    stream_norm_forward(m, m->h_out, m->inv_out, m->x_out, m->out_norm, m->out_norm_bias);
    double loss = tiny_head(m, target, train, count);
    if (!train) return loss;
    //~ logits = h_out E', in tiny_head
    //~ h_out = norm(x_out)
    stream_norm_backward(m, m->d_res, m->dh, m->x_out, m->inv_out, m->out_norm, m->out_norm_bias, 0);
    if (mixer_kinds[c->mixer].rwkv == 7) zeroed(m->d_first, (size_t)N * c->n_heads * c->dv);
    //~ x_(l+1) = layer(x_l)
    for (int l = n - 1; l >= 0; l--) layer_backward(m, &m->layers[l], m->d_res);
    //~ x = E[id]
    embedding_backward(dw + m->embed, m->d_res, id, N, D);
    return loss;
}

/* ---- 9. AdamW ------------------------------------------------------------------------------
 * Decoupled weight decay on matrices only; the gradient is first scaled to a norm of at most `clip` (0: of any norm). */
typedef struct { double lr, beta1, beta2, eps, decay, clip; } AdamW;

/* One step from m->grads; step counts from 1. Returns the norm that the gradient had. Squares are added in parts of PART parameters
 * and the parts in order, so the number of threads changes no bit. */
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
    const double c1 = 1 / (1 - pow(o->beta1, (double)step)), c2 = 1 / (1 - pow(o->beta2, (double)step));
    const double shrink = o->clip > 0 && norm > o->clip ? o->clip / norm : 1;
    PARALLEL
    for (int n = 0; n < m->n_tensors; n++) {
        const TinyTensor *t = &m->tensors[n];
        kern.adamw(m->params + t->at, m->grads + t->at, m->mean + t->at, m->square + t->at, (tensor_len(t) + 15) / 16 * 16,
                   (real)o->lr, (real)o->beta1, (real)o->beta2, (real)o->eps, t->flags & DECAYS ? (real)o->decay : 0,
                   (real)c1, (real)c2, (real)shrink);
    }
    return norm;
}

/* ---- 10. stories: a small world that tells itself ---------------------------------------------
 * Training text without a download. story(seed) writes one short story in simple English, the same for the same
 * seed, and there are far more of them than a training run can read. They are made so that a model of one or two
 * million weights can learn them and a reader can see whether it did: a name, a color, a hiding place or a promise
 * from the first lines has to come back, unchanged, in the last ones.
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
 * What is drawn or bound is expanded once and never changes, so {col} is the same color to the end of the story.
 * Templates are in lower case: story_tidy() sets the capitals, turns "a apple" into "an apple" and removes the
 * spaces that empty parts leave behind. After ?" and !" it leaves the case alone ("Where?" she asked), so a new
 * sentence there needs the ^. A row that begins with @h is for human heroes only, with @a for animals.
 *
 * Bound for every plot:
 *   h he him his self kind  the hero            f fhe fhim fhis fkind  another child; {friend} is "her friend Tom"
 *   g ghe ghim ghis         "her mother"        gn, call  "mother", "Mama"
 *   p q                     two places indoors  r  a place outdoors     open day night  the first words
 *   hand others woods hideout judge rival       things of the hero's world
 * To add a plot: write its template into STORY_PLOTS and its tables, if any, into STORY_TABLES. Its text begins with
 * {open}. Texts must not use the characters of the notation, []{}<>|^ and in tables ; and /.
 *
 * First come the tables, then the plots, then the engine that expands them: story(), at the end, is what others call. */

enum { STORY_CAP = 4096 };                            /* bytes that any story fits in, with its final zero */

typedef struct { const char *at; size_t len; } StorySpan;   /* a piece of text, without a final zero */

typedef struct {
    uint64_t rng;
    char world;                                       /* 'h' or 'a', see above */
    struct { StorySpan key, value; } bound[96];       /* the latest binding of a key counts */
    int n_bound;
    char text[STORY_CAP], memory[STORY_CAP];          /* the raw story; the values that are bound */
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

/* The next number of the generator (splitmix64), below n. */
static size_t story_pick(StoryTeller *t, size_t n) {
    uint64_t z = (t->rng += 0x9E3779B97F4A7C15u);
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return (size_t)(((z ^ z >> 31) >> 32) * n >> 32);
}

static StorySpan span_of(const char *s) { return (StorySpan){ s, strlen(s) }; }

static bool span_equal(StorySpan a, StorySpan b) { return a.len == b.len && memcmp(a.at, b.at, a.len) == 0; }

/* The length of s before the first stop character that is outside all brackets. */
static size_t span_until(StorySpan s, char stop) {
    size_t i = 0;
    for (int depth = 0; i < s.len; i++) {
        char c = s.at[i];
        if (depth == 0 && c == stop) break;
        depth += (c == '[' || c == '{' || c == '<') - (c == ']' || c == '}' || c == '>');
    }
    return i;
}

/* Cuts the piece before the next stop character off the front of s, and that character with it. */
static StorySpan span_cut(StorySpan *s, char stop) {
    StorySpan piece = { s->at, span_until(*s, stop) };
    size_t gone = piece.len + (piece.len < s->len);
    s->at += gone, s->len -= gone;
    return piece;
}

/* s without the spaces in front. */
static StorySpan span_trim(StorySpan s) {
    while (s.len > 0 && *s.at == ' ') s.at++, s.len--;
    return s;
}

/* How many parts the list has that are divided by sep, and the i-th of them, from 0. */
static size_t span_count_parts(StorySpan list, char sep) {
    size_t n = 1;
    while (span_until(list, sep) < list.len) span_cut(&list, sep), n++;
    return n;
}

static StorySpan span_part(StorySpan list, char sep, size_t i) {
    while (i-- > 0) span_cut(&list, sep);
    return span_cut(&list, sep);
}

/* From now on {key} is value. */
static void story_bind(StoryTeller *t, StorySpan key, StorySpan value) {
    assert(t->n_bound < (int)(sizeof t->bound / sizeof t->bound[0]));
    t->bound[t->n_bound].key = key;
    t->bound[t->n_bound++].value = value;
}

/* What key is bound to. */
static StorySpan story_lookup(const StoryTeller *t, StorySpan key) {
    for (int i = t->n_bound; i-- > 0; )
        if (span_equal(t->bound[i].key, key)) return t->bound[i].value;
    assert(!"a story template uses a key that is not bound");
    return key;
}

/* Adds s to the raw text. */
static void story_append(StoryTeller *t, StorySpan s) {
    assert(s.len <= sizeof t->text - t->text_len);
    memcpy(t->text + t->text_len, s.at, s.len);
    t->text_len += s.len;
}

static void story_expand(StoryTeller *t, StorySpan s);

/* The expansion of s, kept in memory: from now on it is plain text. */
static StorySpan story_expand_now(StoryTeller *t, StorySpan s) {
    size_t start = t->text_len;
    story_expand(t, s);
    StorySpan fixed = { t->memory + t->memory_len, t->text_len - start };
    assert(t->memory_len + fixed.len <= sizeof t->memory);
    memcpy(t->memory + t->memory_len, t->text + start, fixed.len);
    t->memory_len += fixed.len;
    t->text_len = start;
    return fixed;
}

/* <table>: binds the columns of one row that suits this world. */
static void story_draw_row(StoryTeller *t, StorySpan name) {
    size_t i = 0, n_tables = sizeof STORY_TABLES / sizeof STORY_TABLES[0];
    while (i < n_tables - 1 && !span_equal(span_of(STORY_TABLES[i].name), name)) i++;
    assert(span_equal(span_of(STORY_TABLES[i].name), name));
    StorySpan columns = span_of(STORY_TABLES[i].columns), rows = span_of(STORY_TABLES[i].rows), row;
    size_t n = span_count_parts(rows, '/');
    do row = span_trim(span_part(rows, '/', story_pick(t, n)));
    while (row.at[0] == '@' && row.at[1] != t->world);
    if (row.at[0] == '@') row.at += 2, row.len -= 2;
    while (row.len > 0) {
        StorySpan key = span_trim(span_cut(&columns, ';'));
        story_bind(t, key, story_expand_now(t, span_trim(span_cut(&row, ';'))));
    }
}

/* <k,l=a|b|c>: every key gets a different one of the alternatives. */
static void story_bind_options(StoryTeller *t, StorySpan keys, StorySpan list) {
    uint64_t taken = 0;
    size_t n = span_count_parts(list, '|'), i;
    while (keys.len > 0) {
        StorySpan key = span_cut(&keys, ',');
        do i = story_pick(t, n); while (taken >> i & 1);
        taken |= (uint64_t)1 << i;
        story_bind(t, key, story_expand_now(t, span_part(list, '|', i)));
    }
}

/* Appends the expansion of a template to the text. */
static void story_expand(StoryTeller *t, StorySpan s) {
    s = span_part(s, '|', story_pick(t, span_count_parts(s, '|')));
    while (s.len > 0) {
        char c = *s.at++;
        s.len--;
        if (c == '[') story_expand(t, span_cut(&s, ']'));
        else if (c == '{') story_append(t, story_lookup(t, span_cut(&s, '}')));
        else if (c == '<') {
            StorySpan body = span_cut(&s, '>'), keys = span_cut(&body, '=');
            if (body.len > 0) story_bind_options(t, keys, body);
            else story_draw_row(t, keys);
        } else story_append(t, (StorySpan){ s.at - 1, 1 });
    }
}

/* Whether the word at s is spoken with a vowel first; the exceptions are those of this vocabulary. */
static bool story_vowel(StorySpan s) {
    if (s.len >= 3 && memcmp(s.at, "one", 3) == 0) return false;
    return s.len > 0 && strchr("aeiouAEIOU", *s.at) != NULL;
}

/* Copies the raw text with capitals, "an", and neither double spaces nor spaces before punctuation.
 * Returns the length; what does not fit into cap - 1 bytes is cut off. */
static size_t story_tidy(char *out, size_t cap, StorySpan raw) {
    size_t n = 0;
    bool quoted = false, capital = true, unfinished = false;   /* unfinished: "Yes," said Tom, "but bring it back." */
    for (size_t i = 0; i < raw.len && n + 2 < cap; i++) {
        char c = raw.at[i], before = n > 0 ? out[n - 1] : '\n', next = i + 1 < raw.len ? raw.at[i + 1] : '\n';
        if (c == '^') { capital = true; continue; }
        if (c == ' ' && (before == ' ' || before == '\n' || strchr(" \n.,!?", next))) continue;
        if (c == '"') {
            quoted = !quoted;
            if (quoted) capital = !unfinished;
            else if (before != '.') capital = false;  /* "Where?" she asked */
            if (!quoted) unfinished = before == ',';
        } else if (c == '.' || c == '!' || c == '?') {
            capital = true;
            unfinished = false;
        } else if (c == '\n') {
            capital = true;
            out[n++] = '\n';
        } else if (capital && isalpha((unsigned char)c)) {
            c = (char)toupper((unsigned char)c);
            capital = false;
        }
        out[n++] = c;
        if ((c == 'a' || c == 'A') && next == ' ' && (before == ' ' || before == '"' || before == '\n')
            && story_vowel((StorySpan){ raw.at + i + 2, raw.len - i - 2 })) out[n++] = 'n';
    }
    out[n] = '\0';
    return n;
}

/* Writes the story of this seed: plain ASCII, paragraphs divided by an empty line, no newline at the end.
 * Returns its length without the final zero. STORY_CAP bytes are always enough; cap is at least 1. */
static size_t story(uint64_t seed, char *buf, size_t cap) {
    StoryTeller t;
    t.rng = seed;
    t.n_bound = 0;
    t.text_len = t.memory_len = 0;
    t.world = story_pick(&t, 5) < 3 ? 'h' : 'a';
    story_expand(&t, span_of("<names><cast><grown><world><common><open>"));
    story_expand(&t, span_of(STORY_PLOTS[story_pick(&t, sizeof STORY_PLOTS / sizeof STORY_PLOTS[0])]));
    return story_tidy(buf, cap, (StorySpan){ t.text, t.text_len });
}

/* ---- 11. vocabulary: byte-level BPE, learning a vocabulary -------------------------------------------------
 * Tokens 0..255 are the single bytes, so any text can be encoded. Then, again and again, the pair of neighboring
 * tokens that occurs most often in the text becomes one token (Sennrich et al. 2016; on bytes: Radford et al. 2019).
 * Text is cut into pieces first, and pairs never reach across the end of a piece; a natural text has few different
 * pieces, so each is kept once with its count.
 *
 * Ties go to the pair with the smaller left, then the smaller right id, so the result depends on the text alone.
 * "ab"+"c" and "a"+"bc" are never both learned: no merge has reached across the ends of a token, so its bytes were
 * joined as they would be if they stood alone, and that is one way only. Every token is a different string. Its rooms:
 *
 *   what is kept             the vocabulary, and all that learning it needs
 *   pieces and pairs         how often each occurs, in hash tables; the best pair, from a heap
 *   the vocabulary           bpe_train, which others call, and how a token is written
 *
 * Start with bpe_learn: its four steps are the whole method. */

/* -- what is kept -- */

typedef struct { int left, right; } BpeMerge;

typedef struct {
    int n_tokens;                                     /* 256 bytes, then one token for each merge */
    BpeMerge *merges;                                 /* merge r makes token 256 + r; smaller r are applied first */
    unsigned char *bytes;                             /* of all tokens, one after the other */
    size_t *offset;                                   /* token i is bytes[offset[i] .. offset[i + 1]) */
} BpeVocab;

/* The end of the piece of text[0..len) that begins at pos; more than pos. */
typedef size_t (*BpeSplit)(const void *ctx, const char *text, size_t len, size_t pos);

enum {
    BPE_ERR_CAP = 256,
    BPE_PIECE_MAX = 256,                              /* bytes; longer pieces are counted in parts of this size */
    BPE_ROOM = 1 << 25                                /* bytes of different pieces; when it is full, no new ones are taken */
};

typedef struct { const char *at; uint64_t count; uint32_t len, start; } BpePiece;   /* start: its first symbol */
typedef struct { uint64_t key; int64_t count; uint32_t places, state; } BpePair;     /* key = left << 32 | right */
typedef struct { uint64_t key; int64_t count; } BpeCandidate;

typedef struct {
    BpePiece *pieces;  size_t n_pieces, pieces_cap;
    uint32_t *piece_slots;  size_t n_piece_slots;     /* hash table: index + 1 into pieces, 0 is empty */
    int *symbols;  size_t n_symbols;                  /* the pieces as tokens, shrinking in place */
    BpePair *pairs;  size_t n_pairs, n_pair_slots;    /* hash table; state 0 empty, 1 new, 2 listed */
    struct { uint32_t piece, next; } *places;  size_t n_places, places_cap;   /* lists: where a pair may be found */
    BpeCandidate *heap;  size_t n_heap, heap_cap;     /* best first; a count may be out of date, but never too low */
    uint64_t *fresh;  size_t n_fresh, fresh_cap;      /* pairs that the last merge has made */
} BpeTrainer;

static void bpe_free(BpeVocab *v) {
    free(v->merges);
    free(v->bytes);
    free(v->offset);
    memset(v, 0, sizeof *v);
}

/* -- pieces and pairs -- */

/* Makes room in *array, n elements of `size` bytes long, for one more; returns false when memory is exhausted. */
static bool bpe_reserve(void *array, size_t n, size_t *cap, size_t size) {
    if (n < *cap) return true;
    size_t want = *cap ? 2 * *cap : 1024;
    void *old, *p;
    memcpy(&old, array, sizeof old);                  /* array points at a pointer of whatever type */
    if (want > SIZE_MAX / size || !(p = realloc(old, want * size))) return false;
    memcpy(array, &p, sizeof p);
    *cap = want;
    return true;
}

static uint64_t bpe_hash(const char *s, size_t n) {   /* FNV-1a, with its high bits folded into the low ones */
    uint64_t h = 0xCBF29CE484222325u;
    for (size_t i = 0; i < n; i++) h = (h ^ (unsigned char)s[i]) * 0x100000001B3u;
    return h ^ h >> 32;
}

/* Counts one more occurrence of the piece at[0..len). */
static bool bpe_count_piece(BpeTrainer *t, const char *at, size_t len) {
    if (t->n_piece_slots == 0 || t->n_pieces * 2 >= t->n_piece_slots) {
        size_t n = t->n_piece_slots ? 4 * t->n_piece_slots : 4096;
        uint32_t *slots = calloc(n, sizeof *slots);
        if (!slots || t->n_pieces >= UINT32_MAX / 2) { free(slots); return false; }
        for (size_t i = 0; i < t->n_pieces; i++) {
            size_t h = (size_t)bpe_hash(t->pieces[i].at, t->pieces[i].len) & (n - 1);
            while (slots[h]) h = (h + 1) & (n - 1);
            slots[h] = (uint32_t)i + 1;
        }
        free(t->piece_slots);
        t->piece_slots = slots;
        t->n_piece_slots = n;
    }
    size_t h = (size_t)bpe_hash(at, len) & (t->n_piece_slots - 1);
    for (; t->piece_slots[h]; h = (h + 1) & (t->n_piece_slots - 1)) {
        BpePiece *p = &t->pieces[t->piece_slots[h] - 1];
        if (p->len == len && memcmp(p->at, at, len) == 0) { p->count++; return true; }
    }
    if (t->n_symbols + len > BPE_ROOM) return true;
    t->n_symbols += len;
    if (!bpe_reserve(&t->pieces, t->n_pieces, &t->pieces_cap, sizeof *t->pieces)) return false;
    t->pieces[t->n_pieces] = (BpePiece){ at, 1, (uint32_t)len, 0 };
    t->piece_slots[h] = (uint32_t)++t->n_pieces;
    return true;
}

/* The entry of a pair, made if it is new; NULL when memory is exhausted. */
static BpePair *bpe_pair(BpeTrainer *t, uint64_t key) {
    if (t->n_pairs * 2 >= t->n_pair_slots) {
        size_t n = t->n_pair_slots ? 2 * t->n_pair_slots : 4096;
        BpePair *old = t->pairs, *new = calloc(n, sizeof *new);
        if (!new) return NULL;
        for (size_t i = 0; i < t->n_pair_slots; i++) {
            if (!old[i].state) continue;
            size_t h = bpe_hash((const char *)&old[i].key, sizeof old[i].key) & (n - 1);
            while (new[h].state) h = (h + 1) & (n - 1);
            new[h] = old[i];
        }
        free(old);
        t->pairs = new;
        t->n_pair_slots = n;
    }
    size_t h = bpe_hash((const char *)&key, sizeof key) & (t->n_pair_slots - 1);
    while (t->pairs[h].state && t->pairs[h].key != key) h = (h + 1) & (t->n_pair_slots - 1);
    if (!t->pairs[h].state) {
        t->pairs[h] = (BpePair){ key, 0, 0, 1 };
        t->n_pairs++;
    }
    return &t->pairs[h];
}

static uint64_t bpe_key(int left, int right) { return (uint64_t)left << 32 | (uint32_t)right; }

/* Whether a comes before b: more often, or as often and with smaller ids. */
static bool bpe_better(BpeCandidate a, BpeCandidate b) {
    return a.count != b.count ? a.count > b.count : a.key < b.key;
}

/* Into the heap, and the best out of it: every element is at least as good as its children, 2 i + 1 and 2 i + 2. */
static bool bpe_push(BpeTrainer *t, uint64_t key, int64_t count) {
    if (!bpe_reserve(&t->heap, t->n_heap, &t->heap_cap, sizeof *t->heap)) return false;
    BpeCandidate c = { key, count };
    size_t i = t->n_heap++;
    for (; i > 0 && bpe_better(c, t->heap[(i - 1) / 2]); i = (i - 1) / 2) t->heap[i] = t->heap[(i - 1) / 2];
    t->heap[i] = c;
    return true;
}

static BpeCandidate bpe_pop(BpeTrainer *t) {
    BpeCandidate top = t->heap[0], last = t->heap[--t->n_heap];
    size_t i = 0, child;
    while ((child = 2 * i + 1) < t->n_heap) {
        if (child + 1 < t->n_heap && bpe_better(t->heap[child + 1], t->heap[child])) child++;
        if (!bpe_better(t->heap[child], last)) break;
        t->heap[i] = t->heap[child], i = child;
    }
    t->heap[i] = last;
    return top;
}

/* Adds sign * count of piece w to each pair of its symbols from .. to - 1. Pairs that contain token
 * id, the newest, or any pair if id is 0, are new: they remember the piece, and are listed once in
 * t->fresh to become candidates. */
static bool bpe_count_pairs(BpeTrainer *t, size_t w, uint32_t from, uint32_t to, int sign, int id) {
    const BpePiece *p = &t->pieces[w];
    for (const int *s = t->symbols + p->start + from, *end = t->symbols + p->start + to; s + 1 < end; s++) {
        BpePair *pair = bpe_pair(t, bpe_key(s[0], s[1]));
        if (!pair) return false;
        pair->count += sign * (int64_t)p->count;
        if (sign < 0 || (id > 0 && s[0] != id && s[1] != id)) continue;
        if (!bpe_reserve(&t->places, t->n_places, &t->places_cap, sizeof *t->places)
            || !bpe_reserve(&t->fresh, t->n_fresh, &t->fresh_cap, sizeof *t->fresh)
            || t->n_places >= UINT32_MAX - 1) return false;
        if (pair->places == 0 || t->places[pair->places - 1].piece != w) {
            t->places[t->n_places].piece = (uint32_t)w;
            t->places[t->n_places].next = pair->places;
            pair->places = (uint32_t)++t->n_places;   /* index + 1; 0 ends a list */
        }
        if (pair->state == 1) {
            pair->state = 2;
            t->fresh[t->n_fresh++] = pair->key;
        }
    }
    return true;
}

/* The pairs that are new become candidates, with their counts of now. */
static bool bpe_push_fresh(BpeTrainer *t) {
    for (; t->n_fresh > 0; t->n_fresh--) {
        uint64_t key = t->fresh[t->n_fresh - 1];
        if (!bpe_push(t, key, bpe_pair(t, key)->count)) return false;
    }
    return true;
}

/* Replaces left right by token id in piece w, from left to right. Only the pairs from the symbol
 * before the first place to the one behind the last are counted anew. */
static bool bpe_merge_in_piece(BpeTrainer *t, size_t w, BpeMerge m, int id) {
    BpePiece *p = &t->pieces[w];
    int *s = t->symbols + p->start;
    uint32_t n, i = 0, last = p->len - 1;
    while (i + 1 < p->len && (s[i] != m.left || s[i + 1] != m.right)) i++;
    if (i + 1 >= p->len) return true;                 /* an earlier merge has taken it */
    while (s[last - 1] != m.left || s[last] != m.right) last--;
    const uint32_t from = i ? i - 1 : 0, behind = p->len - last > 2 ? p->len - last - 2 : 0;
    if (!bpe_count_pairs(t, w, from, p->len - behind, -1, 0)) return false;
    for (n = i; i < p->len; n++) {
        bool here = i + 1 < p->len && s[i] == m.left && s[i + 1] == m.right;
        s[n] = here ? id : s[i];
        i += here ? 2 : 1;
    }
    p->len = n;
    return bpe_count_pairs(t, w, from, n - behind, +1, id);
}

/* -- the vocabulary -- */

/* Appends the token that merge number n_tokens - 256 makes. */
static bool bpe_add_token(BpeVocab *v, size_t *bytes_cap, BpeMerge m) {
    size_t a = v->offset[m.left + 1] - v->offset[m.left], b = v->offset[m.right + 1] - v->offset[m.right];
    size_t end = v->offset[v->n_tokens];
    while (end + a + b > *bytes_cap)
        if (!bpe_reserve(&v->bytes, *bytes_cap, bytes_cap, 1)) return false;
    memcpy(v->bytes + end, v->bytes + v->offset[m.left], a);
    memcpy(v->bytes + end + a, v->bytes + v->offset[m.right], b);
    v->merges[v->n_tokens - 256] = m;
    v->offset[++v->n_tokens] = end + a + b;
    return true;
}

/* The method; bpe_train has checked what it is given, and frees what t holds. */
static int bpe_learn(BpeTrainer *t, const char *text, size_t len, int vocab_size, BpeSplit split, const void *ctx,
                     BpeVocab *v, char *err) {
    size_t bytes_cap = 0, n_cut = 0;

    // 256 byte tokens
    v->offset = malloc(((size_t)vocab_size + 1) * sizeof *v->offset);
    v->merges = malloc(((size_t)vocab_size - 255) * sizeof *v->merges);       /* one more than needed: never 0 */
    if (!v->offset || !v->merges || !bpe_reserve(&v->bytes, 0, &bytes_cap, 1)) goto memory;
    for (v->n_tokens = 0; v->n_tokens < 256; v->n_tokens++) {
        v->offset[v->n_tokens] = (size_t)v->n_tokens;
        v->bytes[v->n_tokens] = (unsigned char)v->n_tokens;
    }
    v->offset[256] = 256;

    // the different pieces and how often each occurs
    for (size_t pos = 0, end; pos < len; pos = end) {
        end = split(ctx, text, len, pos);
        if (end <= pos || end > len) {
            snprintf(err, BPE_ERR_CAP, "the splitter went from byte %zu to %zu of %zu", pos, end, len);
            return -1;
        }
        if ((++n_cut & 1023) == 0) waiting("counting words", (double)pos, (double)len);
        for (size_t part, at = pos; at < end; at += part) {
            part = end - at < BPE_PIECE_MAX ? end - at : BPE_PIECE_MAX;
            if (!bpe_count_piece(t, text + at, part)) goto memory;
        }
    }

    // their bytes as tokens, and the pairs of those
    if (!(t->symbols = malloc(t->n_symbols * sizeof *t->symbols))) goto memory;
    t->n_symbols = 0;
    for (size_t w = 0; w < t->n_pieces; w++) {
        BpePiece *p = &t->pieces[w];
        p->start = (uint32_t)t->n_symbols;
        for (uint32_t i = 0; i < p->len; i++) t->symbols[t->n_symbols++] = (unsigned char)p->at[i];
        if (!bpe_count_pairs(t, w, 0, p->len, +1, 0)) goto memory;
    }
    if (!bpe_push_fresh(t)) goto memory;

    // the best pair becomes a token, and changes the pieces that have it
    while (v->n_tokens < vocab_size && t->n_heap > 0) {
        BpeCandidate c = bpe_pop(t);
        const BpePair *pair = bpe_pair(t, c.key);
        if (!pair) goto memory;
        if (pair->count < 2) continue;
        if (pair->count < c.count) {                  /* other merges have taken some: it queues again */
            if (!bpe_push(t, c.key, pair->count)) goto memory;
            continue;
        }
        BpeMerge m = { (int)(c.key >> 32), (int)(c.key & 0xFFFFFFFF) };
        int id = v->n_tokens;
        waiting("learning a vocabulary", id, vocab_size);
        if (!bpe_add_token(v, &bytes_cap, m)) goto memory;
        for (uint32_t i = pair->places; i; i = t->places[i - 1].next)      /* pair itself may move in its table */
            if (!bpe_merge_in_piece(t, t->places[i - 1].piece, m, id)) goto memory;
        if (!bpe_push_fresh(t)) goto memory;
    }
    if (v->n_tokens < vocab_size)
        snprintf(err, BPE_ERR_CAP, "the text has no more pairs that occur twice: %d tokens instead of %d",
                 v->n_tokens, vocab_size);
    return 0;
memory:
    snprintf(err, BPE_ERR_CAP, "out of memory while learning the vocabulary; use a smaller part of the text");
    return -1;
}

/* Learns a vocabulary of vocab_size tokens, the 256 bytes included and special tokens not.
 * Returns 0, or -1 with a sentence in err (BPE_ERR_CAP bytes). A text that is too small for vocab_size gives fewer
 * tokens: then the result is 0 and err has a note; otherwise it is empty. The caller gives *out to bpe_free. */
static int bpe_train(const char *text, size_t len, int vocab_size, BpeSplit split, const void *ctx, BpeVocab *out,
                     char *err) {
    memset(out, 0, sizeof *out);
    err[0] = '\0';
    if (len == 0) {
        snprintf(err, BPE_ERR_CAP, "the text is empty, there is nothing to learn a vocabulary from");
        return -1;
    }
    if (vocab_size < 256 || vocab_size > 1 << 24) {
        snprintf(err, BPE_ERR_CAP, "a vocabulary of %d tokens is not possible, it takes 256 (the bytes) to 2^24",
                 vocab_size);
        return -1;
    }
    BpeTrainer t = {0};
    int rc = bpe_learn(&t, text, len, vocab_size, split, ctx, out, err);
    free(t.pieces);
    free(t.piece_slots);
    free(t.symbols);
    free(t.pairs);
    free(t.places);
    free(t.heap);
    free(t.fresh);
    waiting(NULL, 0, 0);
    if (rc != 0) bpe_free(out);
    return rc;
}

/* Writes a token in the form of GPT-2, which has a printable character for every byte: !..~, U+00A1..U+00AC and
 * U+00AE..U+00FF stand for themselves, the others are U+0100 and following. UTF-8, at most 2 bytes per byte of the
 * token and a final zero; out must have room for that. Returns the length. */
static size_t bpe_token_text(const BpeVocab *v, int id, char *out) {
    size_t n = 0;
    for (size_t i = v->offset[id]; i < v->offset[id + 1]; i++) {
        unsigned b = v->bytes[i], c;
        if (b <= ' ') c = 0x100 + b;
        else if (b >= 0x7F && b <= 0xA0) c = 0x121 + b - 0x7F;
        else c = b == 0xAD ? 0x143 : b;
        if (c < 0x80) out[n++] = (char)c;
        else {
            out[n++] = (char)(0xC0 | c >> 6);
            out[n++] = (char)(0x80 | (c & 0x3F));
        }
    }
    out[n] = '\0';
    return n;
}

/* ---- 12. data ------------------------------------------------------------------------------
 * Sequences of T + 1 ids: T inputs, and the same shifted by one as targets. Stories: sequence i begins with
 * <|endoftext|> and holds the stories of its own block of seeds, one after the other, until it is full; held-out ones
 * have the highest bit of the seed set. Text: a window at a random place of the first 95 %; held out is the rest,
 * window by window. So a step needs nothing but its number, and training can go on from any of them. Its rooms:
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
    const int *pairs;                        /* associative recall: how many pairs the sequences hold in turn, 0 ends the list */
    int mqar_vocab;                          /* tokens there; without associative recall pairs is NULL */
    bool rebind;                             /* half of the keys get a second value, and that one counts */
} Data;

enum { STORIES_PER_SEQUENCE = 1 << 10 };

/* Sequence number i: n ids of a text or of stories. */
static void fill_sequence(const Data *d, bool held_out, uint64_t i, int32_t *out, int n) {
    if (d->ids) {
        uint64_t rng = mix_seed(d->seed ^ mix_seed(i));
        size_t rest = d->n_ids - d->n_train;
        size_t at = held_out ? d->n_train + (size_t)i * (n - 1) % (rest - n + 1) : rng_next(&rng) % (d->n_train - n + 1);
        memcpy(out, d->ids + at, n * sizeof *out);
        return;
    }
    char text[STORY_CAP], err[GLA_ERR];
    int32_t ids[STORY_CAP];
    uint64_t seed = (held_out ? (uint64_t)1 << 63 : (d->seed & 0xffff) << 46) + i * STORIES_PER_SEQUENCE;
    for (int at = 0; at < n;) {
        out[at++] = d->end;
        int64_t got = tokenizer_encode(d->tokenizer, text, story(seed++, text, sizeof text), 0, ids, STORY_CAP, err);
        if (got < 0) fprintf(stderr, "train_tiny: %s\n", err), exit(1);
        for (int64_t k = 0; k < got && at < n; k++) out[at++] = ids[k];
    }
}

/* Multi-query associative recall (source: Zoology, Arora et al. 2023). First come `pairs` keys, each with its value behind it; later
 * each key comes once more, at a place drawn with a probability of 1 / distance, and there its value is what has to be said.
 * Everywhere else stands token 0, and no answer counts. To rebind: between the pairs and the questions, half of the keys come
 * again, each with a new value. Keys are ids 1 .. V/2 - 1, values V/2 .. V - 1; which belongs to which is drawn anew each time, so
 * that only a memory of this sequence can know it. id, target (T). */
static void mqar_sequence(const Data *d, bool held_out, uint64_t i, int pairs, int T, int *id, int *target) {
    uint64_t rng = mix_seed(d->seed ^ mix_seed(i * 2 + held_out));
    const int half = d->mqar_vocab / 2, again = d->rebind ? pairs / 2 : 0, places = (T - 2 * (pairs + again)) / 2;
    int deck[1 << 10];                                          /* keys; those not drawn yet lie behind the others */
    int place[1 << 10];                                         /* places for questions, two tokens each; those that are left */
    int pair[1 << 10];                                          /* where the k-th key stands among the pairs */
    for (int t = 0; t < T; t++) id[t] = 0, target[t] = -1;
    for (int k = 0; k < pairs; k++) {                           /* to rebind, the pairs stand in any order: old ones stay true, too */
        const int other = d->rebind ? (int)(rng_next(&rng) % (uint64_t)(k + 1)) : k;
        if (other != k) pair[k] = pair[other];
        pair[other] = k;
    }
    for (int k = 0; k < half - 1; k++) deck[k] = k + 1;
    for (int k = 0; k < places; k++) place[k] = k;
    for (int k = 0; k < pairs; k++) {
        int pick = k + (int)(rng_next(&rng) % (uint64_t)(half - 1 - k)), key = deck[pick];
        int value = half + (int)(rng_next(&rng) % (uint64_t)half);
        deck[pick] = deck[k];
        id[2 * pair[k]] = key;
        id[2 * pair[k] + 1] = value;
        if (k < again) {
            id[2 * (pairs + k)] = key;
            id[2 * (pairs + k) + 1] = value = half + (int)(rng_next(&rng) % (uint64_t)half);
        }
        double total = 0, at;                                   /* one of the places that are left */
        for (int p = 0; p < places - k; p++) total += 1.0 / (place[p] + 1);
        at = total * rng_uniform(&rng);
        pick = 0;
        while (pick < places - k - 1 && (at -= 1.0 / (place[pick] + 1)) > 0) pick++;
        const int t = 2 * (pairs + again + place[pick]);
        for (; pick < places - k - 1; pick++) place[pick] = place[pick + 1];
        id[t] = key;
        target[t] = value;
    }
}

/* Batch number `step` of B sequences. */
static void fill_batch(const Data *d, bool held_out, uint64_t step, int B, int T, int *id, int *target) {
    int kinds = 0;
    while (d->pairs && d->pairs[kinds]) kinds++;
    PARALLEL
    for (int b = 0; b < B; b++) {
        if (kinds) {
            mqar_sequence(d, held_out, step * B + b, d->pairs[b % kinds], T, id + b * T, target + b * T);
            continue;
        }
        int32_t *seq = checked(malloc((size_t)(T + 1) * sizeof *seq));
        fill_sequence(d, held_out, step * B + b, seq, T + 1);
        for (int t = 0; t < T; t++) id[b * T + t] = seq[t], target[b * T + t] = seq[t + 1];
        free(seq);
    }
}

/* -- counting baselines -- */

/* An interpolated Kneser-Ney bigram and trigram, with one discount of 0.75 (source: Chen and Goodman, 1999). Counts are taken from
 * the sequences that the model was trained on. */
typedef struct { uint64_t key; uint32_t n; } Gram;
typedef struct { Gram *at; size_t slots, used; } Grams;         /* a hash table */

/* The count of key; without `add` a key that is not there gives a slot that is free, with n 0. Stored is key + 1, 0 marks a free slot. */
static Gram *gram(Grams *g, uint64_t key, bool add) {
    if (add && g->used * 2 >= g->slots) {
        Grams old = *g;
        g->slots = old.slots ? old.slots * 2 : 1 << 16;
        g->at = checked(calloc(g->slots, sizeof *g->at));
        for (size_t i = 0; i < old.slots; i++)
            if (old.at[i].key) {
                size_t s = mix_seed(old.at[i].key) & (g->slots - 1);
                while (g->at[s].key) s = (s + 1) & (g->slots - 1);
                g->at[s] = old.at[i];
            }
        free(old.at);
    }
    size_t s = mix_seed(key + 1) & (g->slots - 1);
    while (g->at[s].key && g->at[s].key != key + 1) s = (s + 1) & (g->slots - 1);
    if (!g->at[s].key && add) {
        g->at[s].key = key + 1;
        g->used++;
    }
    return &g->at[s];
}

typedef struct {
    int V;
    Grams tri, bi;                           /* counts of (u, v, w) and (v, w) */
    Grams tri_context, bi_context;           /* of (u, v) and v: how often, n; ... */
    Grams tri_kinds, bi_kinds;               /* ... and how many different words follow */
    Grams before, before_sum;                /* different u in front of (v, w), summed over w for v */
    uint32_t *uni, uni_sum, uni_kinds;       /* different v in front of w, their sum, and how many w there are */
} Counts;

/* Counts the n words of s. */
static void count_sequence(Counts *c, const int32_t *s, int n) {
    const uint64_t V = (uint64_t)c->V;
    for (int t = 1; t < n; t++) {
        uint64_t v = (uint64_t)s[t - 1], w = (uint64_t)s[t], vw = v * V + w;
        if (gram(&c->bi, vw, true)->n++ == 0) {
            gram(&c->bi_kinds, v, true)->n++;
            c->uni_kinds += !c->uni[w]++;
            c->uni_sum++;
        }
        gram(&c->bi_context, v, true)->n++;
        if (t < 2) continue;
        uint64_t u = (uint64_t)s[t - 2], uv = u * V + v;
        if (gram(&c->tri, uv * V + w, true)->n++ == 0) {
            gram(&c->tri_kinds, uv, true)->n++;
            gram(&c->before, vw, true)->n++;
            gram(&c->before_sum, v, true)->n++;
        }
        gram(&c->tri_context, uv, true)->n++;
    }
}

static void counts_free(Counts *c) {
    free(c->tri.at);
    free(c->bi.at);
    free(c->tri_context.at);
    free(c->bi_context.at);
    free(c->tri_kinds.at);
    free(c->bi_kinds.at);
    free(c->before.at);
    free(c->before_sum.at);
    free(c->uni);
}

/* max(n - 0.75, 0) / total + 0.75 kinds / total * lower. */
static double discounted(double n, double kinds, double total, double lower) {
    return total > 0 ? (n > 0.75 ? n - 0.75 : 0) / total + 0.75 * kinds / total * lower : lower;
}

/* -ln p of the word s[t] after s[t - 1] (order 2), or after s[t - 2] s[t - 1] as well (order 3). */
static double count_nll(Counts *c, const int32_t *s, int t, int order) {
    const uint64_t V = (uint64_t)c->V, v = (uint64_t)s[t - 1], w = (uint64_t)s[t];
    double p = discounted(c->uni[w], c->uni_kinds, c->uni_sum, 1.0 / c->V);
    if (order == 2 || t < 2)
        return -log(discounted(gram(&c->bi, v * V + w, false)->n, gram(&c->bi_kinds, v, false)->n,
                               gram(&c->bi_context, v, false)->n, p));
    uint64_t uv = (uint64_t)s[t - 2] * V + v;
    p = discounted(gram(&c->before, v * V + w, false)->n, gram(&c->bi_kinds, v, false)->n, gram(&c->before_sum, v, false)->n, p);
    return -log(discounted(gram(&c->tri, uv * V + w, false)->n, gram(&c->tri_kinds, uv, false)->n,
                           gram(&c->tri_context, uv, false)->n, p));
}

/* ---- 13. files -----------------------------------------------------------------------------
 * GGUF version 3: keys, tensor table, data; all little-endian. A file is built in memory, written under a temporary name, synced
 * and renamed. Its rooms:
 *
 *   bytes and keys         put_.. appends to a file in memory, key_.. to the keys of one; how a file begins
 *   the vocabulary         learned, as a file of its own, or copied from one
 *   the model              types of tensors, and the whole file
 *   checkpoints            what training needs to go on */

/* -- bytes and keys -- */

typedef struct { uint8_t *p; size_t n, cap; } Out;

static void put(Out *o, const void *data, size_t n) {
    if (o->n + n > o->cap) o->p = checked(realloc(o->p, o->cap = (o->n + n) * 2));
    if (n) memcpy(o->p + o->n, data, n);
    o->n += n;
}
/* The low bytes of v, little-endian. */
static void put_int(Out *o, uint64_t v, int bytes) {
    for (int i = 0; i < bytes; i++) put(o, &(uint8_t){ (uint8_t)(v >> 8 * i) }, 1);
}
static void put_float(Out *o, float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    put_int(o, u, 4);
}
static void put_str(Out *o, const char *s, size_t n) {
    put_int(o, n, 8);
    put(o, s, n);
}
/* Zeros up to a multiple of `to` bytes. */
static void pad(Out *o, size_t to) {
    while (o->n % to) put(o, "", 1);
}

typedef struct { Out body; uint64_t n; } Keys;

/* The name, prefix and name together, and the type of a key; its value is put behind them. */
static void key(Keys *k, const char *prefix, const char *name, int type) {
    char full[96];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    put_str(&k->body, full, strlen(full));
    put_int(&k->body, (uint64_t)type, 4);
    k->n++;
}
static void key_str(Keys *k, const char *prefix, const char *name, const char *s) {
    key(k, prefix, name, GGUF_STR);
    put_str(&k->body, s, strlen(s));
}
static void key_u32(Keys *k, const char *prefix, const char *name, uint32_t v) {
    key(k, prefix, name, GGUF_U32);
    put_int(&k->body, v, 4);
}
static void key_f32(Keys *k, const char *prefix, const char *name, float v) {
    key(k, prefix, name, GGUF_F32);
    put_float(&k->body, v);
}
static void key_bool(Keys *k, const char *prefix, const char *name, bool v) {
    key(k, prefix, name, GGUF_BOOL);
    put_int(&k->body, v, 1);
}
/* The head of an array; its n elements are put behind it. */
static void key_array(Keys *k, const char *prefix, const char *name, int type, uint64_t n) {
    key(k, prefix, name, GGUF_ARR);
    put_int(&k->body, (uint64_t)type, 4);
    put_int(&k->body, n, 8);
}

/* -- the vocabulary -- */

/* The tokenizer.* keys of another file, byte for byte. */
static void copy_vocabulary(Keys *k, const Gguf *g) {
    for (uint64_t i = 0; i < g->n_keys; i++) {
        const GgufKey *from = &g->keys[i];
        const uint8_t *end = from->value.p;
        if (from->key.n < 10 || memcmp(from->key.s, "tokenizer.", 10)) continue;
        if (from->value.type == GGUF_STR)
            for (uint64_t s = 0; s < from->value.n; s++) end += 8 + read_u64(end);
        else end += from->value.n * gguf_width[from->value.type];
        put_str(&k->body, from->key.s, from->key.n);
        put(&k->body, from->key.s + from->key.n, (size_t)(end - (const uint8_t *)from->key.s) - from->key.n);
        k->n++;
    }
}

/* How a file begins: the keys; a tensor table of n_tensors rows has to follow. */
static void put_header(Out *o, const Keys *k, uint64_t n_tensors) {
    put(o, "GGUF", 4);
    put_int(o, 3, 4);
    put_int(o, n_tensors, 8);
    put_int(o, k->n, 8);
    put(o, k->body.p, k->body.n);
}

/* The vocabulary as a file: 256 bytes, what was learned, and <|endoftext|> as the last token, which begins every text. Pieces are
 * cut as Qwen's tokenizers do ("qwen2"). */
static void vocabulary_file(Out *file, const BpeVocab *v) {
    const char *T = "tokenizer.ggml.", *end = "<|endoftext|>";
    char text[2 * BPE_PIECE_MAX + 1], right[2 * BPE_PIECE_MAX + 1];
    Keys k = {0};
    key_str(&k, "general.", "architecture", "tokenizer");
    key_str(&k, "general.", "type", "vocab");
    key_str(&k, T, "model", "gpt2");
    key_str(&k, T, "pre", "qwen2");
    key_array(&k, T, "tokens", GGUF_STR, (uint64_t)v->n_tokens + 1);
    for (int i = 0; i < v->n_tokens; i++) put_str(&k.body, text, bpe_token_text(v, i, text));
    put_str(&k.body, end, strlen(end));
    key_array(&k, T, "token_type", GGUF_I32, (uint64_t)v->n_tokens + 1);
    for (int i = 0; i <= v->n_tokens; i++) put_int(&k.body, i < v->n_tokens ? 1 : 3, 4);           /* normal, control */
    key_array(&k, T, "merges", GGUF_STR, (uint64_t)v->n_tokens - 256);
    for (int i = 0; i < v->n_tokens - 256; i++) {
        size_t a = bpe_token_text(v, v->merges[i].left, text), b = bpe_token_text(v, v->merges[i].right, right);
        put_int(&k.body, a + 1 + b, 8);
        put(&k.body, text, a);
        put(&k.body, " ", 1);
        put(&k.body, right, b);
    }
    for (int i = 0; i < 3; i++)
        key_u32(&k, T, (const char *[]){ "bos_token_id", "eos_token_id", "padding_token_id" }[i], (uint32_t)v->n_tokens);
    key_bool(&k, T, "add_bos_token", true);
    put_header(file, &k, 0);
    free(k.body.p);
}

/* A BpeSplit: the rules of run.c's tokenizer. */
static size_t qwen_split(const void *tokenizer, const char *text, size_t n, size_t at) {
    const Tokenizer *t = tokenizer;
    Futile futile = { 0, 0, 0 };
    return match_end(&t->splits[0], &t->unicode, (Str){text, n}, at, &futile);
}

/* A vocabulary of vocab_size tokens, <|endoftext|> among them, as a file in memory. */
static int learn_vocabulary(Out *file, const char *text, size_t n, int vocab_size, char *err) {
    unsigned char bytes[256];
    size_t offset[257];
    for (int i = 0; i < 256; i++) {
        bytes[i] = (unsigned char)i;
        offset[i] = (size_t)i;
    }
    offset[256] = 256;
    Out small = {0};                            /* a vocabulary of bytes only lends its rules for cutting text into pieces */
    vocabulary_file(&small, &(BpeVocab){ .n_tokens = 256, .bytes = bytes, .offset = offset });
    Gguf g = { .map = { small.p, small.n, 0 } };
    Tokenizer *t = NULL;
    BpeVocab v;
    char note[BPE_ERR_CAP] = "";
    int code = gguf_read(&g, err);
    if (!code) code = tokenizer_new(&t, &g, err);
    if (!code && bpe_train(text, n, vocab_size - 1, qwen_split, t, &v, note)) code = fail(err, GLA_INPUT, "%s", note);
    if (!code) {
        if (note[0]) fprintf(stderr, "train_tiny: %s\n", note);
        vocabulary_file(file, &v);
        bpe_free(&v);
    }
    if (t) tokenizer_free(t);
    gguf_close(&g);
    free(small.p);
    return code;
}

/* -- the model -- */

/* float32 to float16 and bfloat16, nearest, ties to even. */
static uint16_t half_of(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    const uint32_t sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
    if (a > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (a >= 0x477ff000) return (uint16_t)(sign | 0x7c00);                  /* rounds beyond 65504 */
    if (a < 0x38800000) {                                                   /* below 2^-14: a multiple of 2^-24 */
        double steps = fabs((double)f) * 16777216.0, low = floor(steps), rest = steps - low;
        uint32_t n = (uint32_t)low;
        return (uint16_t)(sign | (n + (rest > 0.5 || (rest == 0.5 && n % 2))));
    }
    return (uint16_t)(sign | ((a - 0x38000000 + 0xfff + (a >> 13 & 1)) >> 13));
}
static uint16_t bfloat_of(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return (uint16_t)((u & 0x7fffffff) > 0x7f800000 ? u >> 16 | 0x40 : (u + 0x7fff + (u >> 16 & 1)) >> 16);
}

enum { AS_F32 = 0, AS_F16 = 1, AS_Q4_0 = 2, AS_Q8_0 = 8, AS_BF16 = 30 };   /* tensor types of GGUF */

/* 32 numbers as Q8_0: a scale and a signed byte each; the largest becomes 127 or -127. */
static void put_q8_0(Out *o, const float *x) {
    float most = 0;
    for (int i = 0; i < 32; i++) most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    put_int(o, half_of(most / 127), 2);
    for (int i = 0; i < 32; i++) put_int(o, (uint8_t)(int8_t)(most > 0 ? roundf(x[i] * (1 / (most / 127))) : 0), 1);
}

/* 32 numbers as Q4_0: a scale and 4 bits q each, which stand for scale (q - 8). The one that is
 * farthest from zero becomes exactly -8, so the scale may be negative; its opposite, which would be
 * 8, becomes 7. Byte i has i in its low half, i + 16 in its high one. */
static void put_q4_0(Out *o, const float *x) {
    float most = 0;
    for (int i = 0; i < 32; i++) most = fabsf(x[i]) > fabsf(most) ? x[i] : most;
    const float scale = most / -8, inverse = scale != 0 ? 1 / scale : 0;
    uint8_t q[32];
    for (int i = 0; i < 32; i++) {
        const float steps = (float)((double)x[i] * (double)inverse);         /* rounded twice, as the reference is */
        const float at = (float)((double)steps + 8.5);
        q[i] = (uint8_t)(at < 15 ? at : 15);
    }
    put_int(o, half_of(scale), 2);
    for (int i = 0; i < 16; i++) put_int(o, (uint8_t)(q[i] | q[i + 16] << 4), 1);
}

/* n numbers, the row of a tensor, in the type of the file; for Q8_0 and Q4_0 n is a multiple of
 * 32. */
static void put_row(Out *o, const float *x, int n, int type) {
    if (type == AS_F32) {
        for (int i = 0; i < n; i++) put_float(o, x[i]);
    } else if (type == AS_F16) {
        for (int i = 0; i < n; i++) put_int(o, half_of(x[i]), 2);
    } else if (type == AS_BF16) {
        for (int i = 0; i < n; i++) put_int(o, bfloat_of(x[i]), 2);
    } else {
        for (int b = 0; b < n; b += 32) (type == AS_Q4_0 ? put_q4_0 : put_q8_0)(o, x + b);
    }
}

/* The type that a tensor has in a file whose matrices are of `type`. Rows that do not fill blocks
 * of 32 become float16. The embedding, which is also the output matrix, gets 8 bits in a q4_0 file:
 * its rounding is seen directly in the logits. */
static int type_of(const TinyTensor *t, int type) {
    const bool blocks = type == AS_Q8_0 || type == AS_Q4_0;
    const int row = t->flags & TRANSPOSED ? t->rows : t->cols;
    if (!t->rows || t->flags & KEEP_F32) return AS_F32;
    if (blocks && row % 32) return AS_F16;
    return type == AS_Q4_0 && !strcmp(t->name, "token_embd.weight") ? AS_Q8_0 : type;
}

/* Weights in the longest row of any tensor, as it lies in the file. */
static size_t widest_row(const Tiny *m) {
    size_t n = 8;                                   /* the taps of a convolution lie in columns here, in rows in the file */
    for (int i = 0; i < m->n_tensors; i++) n = (size_t)m->tensors[i].cols > n ? (size_t)m->tensors[i].cols : n;
    return n;
}

/* The whole model as a GGUF file in memory. */
static Out model_file(const Tiny *m, const Gguf *vocab, int type, const char *name) {
    const TinyConfig *c = &m->c;
    const MixerKind *kind = &mixer_kinds[c->mixer];
    const char *G = "general.";
    char p[32];
    Keys k = {0};
    // keys of every model
    snprintf(p, sizeof p, "%s.", kind->arch);
    key_str(&k, G, "architecture", kind->arch);
    key_str(&k, G, "type", "model");
    key_str(&k, G, "name", name);
    key_u32(&k, G, "quantization_version", 2);
    key_u32(&k, G, "file_type", type == AS_BF16 ? 32 : type == AS_Q8_0 ? 7 : (uint32_t)type);
    key_f32(&k, G, "sampling.temp", 0.6f);
    key_f32(&k, G, "sampling.top_p", 0.95f);
    key_u32(&k, p, "block_count", (uint32_t)c->n_layers);
    key_u32(&k, p, "context_length", (uint32_t)c->seq_len);
    key_u32(&k, p, "embedding_length", (uint32_t)c->dim);
    key_u32(&k, p, "feed_forward_length", (uint32_t)c->hidden_dim);
    key_u32(&k, p, "vocab_size", (uint32_t)c->vocab_size);
    key_f32(&k, p, kind->rwkv ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon", c->eps);
    // of its softmax layers, where the architecture has them
    if (kind->qwen) {
        key_u32(&k, p, "attention.head_count", (uint32_t)c->q_heads);
        key_u32(&k, p, "attention.head_count_kv", (uint32_t)c->kv_heads);
        key_u32(&k, p, "attention.key_length", (uint32_t)c->head_dim);
        key_u32(&k, p, "attention.value_length", (uint32_t)c->head_dim);
        key_f32(&k, p, "rope.freq_base", c->rope_base);
        key_u32(&k, p, "rope.dimension_count", (uint32_t)c->n_rot);
        const int third = ceil_div(c->n_rot / 2, 3);
        const int sections[4] = { third, least(third, c->n_rot / 2 - third),
                                  c->n_rot / 2 - third - least(third, c->n_rot / 2 - third), 0 };
        key_array(&k, p, "rope.dimension_sections", GGUF_I32, 4);
        for (int i = 0; i < 4; i++) put_int(&k.body, (uint64_t)sections[i], 4);
        key_u32(&k, p, "full_attention_interval", (uint32_t)(c->interval ? c->interval : c->n_layers + 1));
    }
    // of its linear layers
    if (kind->qwen || is_mamba(family_of(kind))) {
        key_u32(&k, p, "ssm.conv_kernel", (uint32_t)c->d_conv);
        key_u32(&k, p, "ssm.state_size", (uint32_t)c->dk);
        key_u32(&k, p, "ssm.group_count", (uint32_t)c->n_heads);
        key_u32(&k, p, "ssm.time_step_rank", (uint32_t)c->n_heads);
        key_u32(&k, p, "ssm.inner_size", (uint32_t)(c->n_heads * c->dv));
    } else if (kind->rwkv) {
        key_u32(&k, p, "wkv.head_size", (uint32_t)c->dk);
        key_u32(&k, p, "mixer.head_count", (uint32_t)c->n_heads);
        key_u32(&k, p, "mixer.value_length", (uint32_t)c->dv);
        key_f32(&k, p, "mixer.layer_norm_epsilon", kind->norm_eps);
        if (kind->rwkv == 7) key_f32(&k, p, "mixer.l2_norm_epsilon", 1e-6f);
    } else {
        key_u32(&k, p, "mixer.head_count", (uint32_t)c->n_heads);
        key_u32(&k, p, "mixer.head_count_kv", (uint32_t)c->n_heads);
        key_u32(&k, p, "mixer.key_length", (uint32_t)c->dk);
        key_u32(&k, p, "mixer.value_length", (uint32_t)c->dv);
        key_u32(&k, p, "mixer.conv_kernel", (uint32_t)c->d_conv);
        if (!kind->ungated && facts(family_of(kind))->back.gate != ACT_NONE)
            key_str(&k, p, "mixer.output_gate", facts(family_of(kind))->back.gate == ACT_SIGMOID ? "sigmoid" : "swish");
        if (kind->writes) key_u32(&k, p, "mixer.writes_per_token", (uint32_t)kind->writes);
        if (family_of(kind)->per == SLOTS) key_u32(&k, p, "mixer.slot_count", (uint32_t)c->dk);
        if (kind->elu) key_str(&k, p, "mixer.feature_map", "elu_plus_one");
        if (kind->unscaled) key_f32(&k, p, "mixer.scale", 1);
        if (kind->rope) {
            key_u32(&k, p, "mixer.rope_dimension_count", (uint32_t)c->dk);
            key_f32(&k, p, "mixer.rope_freq_base", c->rope_base);
        }
        if (kind->norm_eps > 0) key_f32(&k, p, "mixer.layer_norm_rms_epsilon", kind->norm_eps);
        if (family_of(kind)->decay == DECAY_SIGMOID) key_f32(&k, p, "mixer.decay_divisor", c->decay_divisor);
        key_str(&k, p, "feed_forward_activation", "swish");
    }
    // of softmax layers between them (--hybrid)
    if (!kind->qwen) {
        for (int kv = 0; kv < 2 && c->interval; kv++) {         /* 0 marks a linear layer */
            key_array(&k, p, kv ? "attention.head_count_kv" : "attention.head_count", GGUF_I32, (uint64_t)c->n_layers);
            for (int l = 0; l < c->n_layers; l++)
                put_int(&k.body, m->layers[l].kind ? 0 : (uint64_t)(kv ? c->kv_heads : c->q_heads), 4);
        }
        if (c->interval) {
            key_f32(&k, p, "rope.freq_base", c->rope_base);
            key_u32(&k, p, "attention.key_length", (uint32_t)c->head_dim);
        }
    }
    if (vocab) copy_vocabulary(&k, vocab);

    // the tensors, each from a multiple of 32 bytes on
    Out data = {0}, o = {0};
    size_t *offset = checked(calloc((size_t)m->n_tensors, sizeof *offset));
    float *row = checked(malloc(widest_row(m) * sizeof *row));
    for (int n = 0; n < m->n_tensors; n++) {
        const TinyTensor *t = &m->tensors[n];
        const bool turn = t->flags & TRANSPOSED;
        const int rows = turn ? t->cols : t->rows ? t->rows : 1, cols = turn ? t->rows : t->cols;
        offset[n] = data.n;
        for (int i = 0; i < rows; i++) {
            for (int j = 0; j < cols; j++) {
                real x = m->params[t->at + (turn ? (size_t)j * rows + i : (size_t)i * cols + j)];
                row[j] = (float)(t->flags & NEGATIVE_EXP ? -exp(x) : t->flags & SIGMOID ? sigmoid1(x) : x);
            }
            put_row(&data, row, cols, type_of(t, type));
        }
        pad(&data, 32);
    }

    // the file: keys, tensor table, tensors
    put_header(&o, &k, (uint64_t)m->n_tensors);
    for (int n = 0; n < m->n_tensors; n++) {
        const TinyTensor *t = &m->tensors[n];
        const bool turn = t->flags & TRANSPOSED;
        put_str(&o, t->name, strlen(t->name));
        put_int(&o, t->rows ? 2 + (t->parts > 1) : 1, 4);
        put_int(&o, (uint64_t)(turn ? t->rows : t->cols), 8);
        if (t->rows) put_int(&o, (uint64_t)((turn ? t->cols : t->rows) / t->parts), 8);
        if (t->parts > 1) put_int(&o, (uint64_t)t->parts, 8);
        put_int(&o, (uint64_t)type_of(t, type), 4);
        put_int(&o, offset[n], 8);
    }
    pad(&o, 32);
    put(&o, data.p, data.n);
    free(row);
    free(offset);
    free(data.p);
    free(k.body.p);
    return o;
}

typedef struct { const void *p; size_t n; } Part;

/* The parts of a file, one behind the other, to path or not at all. Without `replace` a file that
 * has the name stays as it is: the new one gets a free name, which is left in path (PATH_LEN
 * bytes). */
static int write_parts(char *path, bool replace, const Part *part, int n, char *err) {
    Temporary temporary;
    if (!replace && is_there(path) && free_name(path)) return fail(err, GLA_IO, "%s: is there already", path);
    FILE *f = open_temporary(temporary, path, err);
    if (!f) return GLA_IO;
    for (int i = 0; i < n; i++)
        if (part[i].n) fwrite(part[i].p, 1, part[i].n, f);
    return replace ? commit_file(f, temporary, path, err) : commit_new(f, temporary, path, err);
}

/* The bytes of a small file; false: it cannot be read, or has not `n` of them. Freed by the
 * caller. */
static bool read_bytes(const char *path, uint64_t n, uint8_t **bytes) {
    uint64_t size = 0;
    FILE *f = open_regular(path, 1, &size, NULL);
    *bytes = NULL;
    if (!f) return false;
    bool whole = size == n && n < SIZE_MAX / 2;
    if (whole) {
        *bytes = checked(malloc((size_t)n + 1));
        whole = fread(*bytes, 1, (size_t)n, f) == n && fgetc(f) == EOF;
    }
    fclose(f);
    return whole;
}

/* -- checkpoints -- */

/* MODEL.ckpt: what training needs to go on as if it had not stopped. Only the program that wrote it, on the same settings, text and
 * vocabulary, takes it. Behind this head: params, mean, square. */
typedef struct {
    char magic[8];
    uint64_t fingerprint, n_params;          /* of the settings, text and vocabulary; reals of each of the three */
    int64_t step, steps;                     /* steps done, and how many there were to be */
    double seconds, minutes;                 /* that they took; --minutes, or 0 */
    uint64_t model_bytes, model_sum;         /* of the model file that was left beside it; 0: none */
    uint64_t body_sum, head_sum;             /* of what follows, of what stands before */
} Checkpoint;

static uint64_t head_sum(const Checkpoint *c) { return hash_bytes(HASH_SEED, c, offsetof(Checkpoint, head_sum)); }

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
    if (bytes > (size_t)16 << 20) busy("saving a checkpoint");
    const Part part[] = { { &c, sizeof c }, { m->params, bytes }, { m->mean, bytes }, { m->square, bytes } };
    int code = write_parts(path, replace, part, 4, err);
    waiting(NULL, 0, 0);
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
        bad = fail(err, GLA_FORMAT, "%s: %llu bytes are not what its head says; it is cut short or too long",
                   path, (unsigned long long)size);
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
static int load_checkpoint(const char *path, Tiny *m, Checkpoint *c, uint64_t fingerprint, char *err) {
    FILE *f = open_checkpoint(path, c, err);
    if (!f) return GLA_FORMAT;
    const size_t n = m->n_params;
    if (c->fingerprint != fingerprint || c->n_params != n) {
        fclose(f);
        return fail(err, GLA_INPUT, "%s: was left by a run with other options, text or vocabulary", path);
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
    uint8_t *bytes = NULL;
    const bool own = c->model_bytes && read_bytes(path, c->model_bytes, &bytes)
                     && c->model_sum == hash_bytes(HASH_SEED, bytes, (size_t)c->model_bytes);
    free(bytes);
    return own;
}

/* ---- 14. training, command line ------------------------------------------------------------
 * What the user sees. Progress goes to standard error, the result and a sample to standard output. Its rooms:
 *
 *   options                  what --help says, how they are read, and the sizes that follow from them
 *   text and vocabulary      read or made up, learned, encoded
 *   a sample                 from the finished file, by way of run.c
 *   training                 the held-out loss, and the loop: read train_steps first
 *   reports                  what was reached
 *   main                     from the options to the exit */
/* -- options -- */

typedef struct {
    const char *text, *task, *out, *mixer, *hybrid, *type, *tokenizer, *tokenizer_out, *prompt, *without;
    int dim, layers, heads, key_dim, value_dim, conv, hidden, vocab, context, batch, threads;
    int resume, force, quiet, help;
    int64_t steps;
    uint64_t seed;
    double lr, decay, clip, minutes, half_life;
    uint64_t given;                          /* bit i: option i of the table was named */
} TrainOptions;

/* In the order of the help page. */
enum {
    T_OUT, T_FORCE, T_MIXER, T_HYBRID, T_TASK, T_HALF_LIFE, T_WITHOUT, T_STEPS, T_MINUTES, T_DIM, T_LAYERS, T_HEADS, T_KEY_DIM,
    T_VALUE_DIM, T_CONV, T_HIDDEN, T_VOCAB, T_CONTEXT, T_BATCH, T_LR, T_DECAY, T_CLIP, T_SEED, T_TYPE, T_VOCABULARY, T_TOKENIZER,
    T_PROMPT, T_RESUME, T_THREADS, T_QUIET, T_HELP, N_TRAIN_OPTIONS
};
enum { WITH_TEXT = 1, WITH_TASK = 2, WITH_BOTH = 3 };

typedef struct {
    char letter;
    const char *name;
    char kind;                               /* s text, i int, l int64_t, u uint64_t, d double; f a flag, which takes no value */
    int with;                                /* what it has an effect on: with the other it is misuse, rather than ignored */
    size_t at;                               /* its field in TrainOptions */
    double lo, hi;
    const char *value, *help;                /* %s in the help is what the field holds by itself */
} TrainOption;

#define FIELD(name) offsetof(TrainOptions, name)
static const TrainOption train_options[N_TRAIN_OPTIONS] = {
    [T_OUT] = { 'o', "out", 's', WITH_BOTH, FIELD(out), 0, 0, "FILE",
                "the model (named after the text, in this folder: book.txt makes book.bin; without a text stories.bin)" },
    [T_FORCE] = { 0, "force", 'f', WITH_BOTH, FIELD(force), 0, 0, "",
                  "replace files that are there already" },
    [T_MIXER] = { 0, "mixer", 's', WITH_BOTH, FIELD(mixer), 0, 0, "NAME",
                  "one of those below (%s)" },
    [T_HYBRID] = { 0, "hybrid", 's', WITH_BOTH, FIELD(hybrid), 0, 0, "N:1",
                   "N layers of the mixer, then one of softmax attention, and so on (gated-delta 3:1, the others none)" },
    [T_TASK] = { 0, "task", 's', WITH_TASK, FIELD(task), 0, 0, "NAME",
                 "mqar: learn and test associative recall instead of a text; rebind: half of the keys get a second value. "
                 "1 layer of 64, 1 head of 16 x 64, 4 taps, batch 32, 1000 steps, lr 0.01, half-life 200" },
    [T_HALF_LIFE] = { 0, "half-life", 'd', WITH_BOTH, FIELD(half_life), 0, 1e9, "N",
                      "tokens after which a new model has half forgotten, for all decays but those of lightnet and abc; "
                      "0: as each mixer usually begins (0, with --task 200)" },
    [T_WITHOUT] = { 0, "without", 's', WITH_TASK, FIELD(without), 0, 0, "PART",
                    "with --task, to compare: leaves out decay (all are 1), map (of q and k), rotation or gate (of the output), "
                    "or several: map,gate" },
    [T_STEPS] = { 0, "steps", 'l', WITH_BOTH, FIELD(steps), 1, 1e12, "N",
                  "optimiser steps (%s; 3000 with a text)" },
    [T_MINUTES] = { 0, "minutes", 'd', WITH_BOTH, FIELD(minutes), 0.01, 1e6, "M",
                    "stop after so many minutes instead, at the cost of repeatability; "
                    "with --resume so many more" },
    [T_DIM] = { 0, "dim", 'i', WITH_BOTH, FIELD(dim), 32, 4096, "N",
                "model width, a multiple of 32 (%s)" },
    [T_LAYERS] = { 0, "layers", 'i', WITH_BOTH, FIELD(layers), 1, 256, "N", "layers (%s)" },
    [T_HEADS] = { 0, "heads", 'i', WITH_BOTH, FIELD(heads), 1, 256, "N",
                  "heads of the linear layers (dim / value width)" },
    [T_KEY_DIM] = { 0, "key-dim", 'i', WITH_BOTH, FIELD(key_dim), 16, 128, "N",
                    "key width of such a head, and slots of gsa and abc, a multiple of 16 up to 128 (32)" },
    [T_VALUE_DIM] = { 0, "value-dim", 'i', WITH_BOTH, FIELD(value_dim), 16, 256, "N",
                      "value width of such a head, a multiple of 16 (32, gla 64)" },
    [T_CONV] = { 0, "conv", 'i', WITH_BOTH, FIELD(conv), 0, 8, "N",
                 "taps of the short convolution, 0: none (by mixer)" },
    [T_HIDDEN] = { 0, "hidden", 'i', WITH_BOTH, FIELD(hidden), 32, 16384, "N",
                   "width of the feed-forward, a multiple of 32 (8/3 dim)" },
    [T_VOCAB] = { 0, "vocab", 'i', WITH_TEXT, FIELD(vocab), 257, 65536, "N",
                  "tokens to learn, 257 at least (%s)" },
    [T_CONTEXT] = { 0, "context", 'i', WITH_TEXT, FIELD(context), 16, 8192, "N",
                    "tokens per sequence (%s)" },
    [T_BATCH] = { 0, "batch", 'i', WITH_BOTH, FIELD(batch), 1, 4096, "N",
                  "sequences per step (%s)" },
    [T_LR] = { 0, "lr", 'd', WITH_BOTH, FIELD(lr), 0, 1, "X",
               "highest learning rate, after the warm-up (%s)" },
    [T_DECAY] = { 0, "decay", 'd', WITH_BOTH, FIELD(decay), 0, 10, "X",
                  "weight decay of the matrices (%s)" },
    [T_CLIP] = { 0, "clip", 'd', WITH_BOTH, FIELD(clip), 0, 1e9, "X",
                 "largest norm of the gradient, 0 = any (%s)" },
    [T_SEED] = { 0, "seed", 'u', WITH_BOTH, FIELD(seed), 0, 0, "N",
                 "same seed, same model, whatever the number of threads (%s)" },
    [T_TYPE] = { 0, "type", 's', WITH_BOTH, FIELD(type), 0, 0, "NAME",
                 "type of the matrices in the file: f32, f16, bf16, q8_0, q4_0, which keeps the embedding in q8_0 (%s)" },
    [T_VOCABULARY] = { 'z', "vocabulary", 's', WITH_TEXT, FIELD(tokenizer), 0, 0, "FILE",
                       "use this vocabulary instead of learning one (a GGUF file with tokenizer.* keys)" },
    [T_TOKENIZER] = { 0, "tokenizer", 's', WITH_TEXT, FIELD(tokenizer_out), 0, 0, "FILE",
                      "write the vocabulary there as well" },
    [T_PROMPT] = { 'i', "prompt", 's', WITH_TEXT, FIELD(prompt), 0, 0, "TEXT",
                   "beginning of the sample at the end (Once upon a time; none with a text)" },
    [T_RESUME] = { 0, "resume", 'f', WITH_BOTH, FIELD(resume), 0, 0, "",
                   "go on from FILE.ckpt, with the same options, to where that run was to end; "
                   "a larger --steps, or --minutes from now, goes further" },
    [T_THREADS] = { 'j', "threads", 'i', WITH_BOTH, FIELD(threads), 1, 1024, "N",
                    "threads (all cores)" },
    [T_QUIET] = { 0, "quiet", 'f', WITH_BOTH, FIELD(quiet), 0, 0, "", "no progress" },
    [T_HELP] = { 'h', "help", 'f', WITH_BOTH, FIELD(help), 0, 0, "", "this page" },
};

static bool was_given(const TrainOptions *o, int option) { return o->given >> option & 1; }

static volatile sig_atomic_t stop_asked;
static void ask_to_stop(int sig) { (void)sig, stop_asked = 1; }

/* The file of the vocabulary has become shorter while it is read where it lies. */
static void lost_pages(int sig) {
    (void)sig;
    end_at_once("train_tiny: the file of the vocabulary became shorter while it was read\n", NULL, NULL);
}

/* Says what is wrong with the options; returns the exit code. */
static int train_misuse(const char *what, const char *value) {
    fprintf(stderr, "train_tiny: %s%s%s (see ./train_tiny --help)\n", what, value ? " " : "", value ? value : "");
    return 2;
}

/* An option that there is not: names the one that was probably meant. */
static int unknown_option(const char *arg) {
    static const char *const elsewhere[][2] = {                  /* what other programs call it */
        { "output", "out" }, { "outfile", "out" }, { "outtype", "type" }, { "dtype", "type" },
        { "learning-rate", "lr" }, { "lr-decay", "lr" }, { "lr-decay-iters", "steps" },
        { "weight-decay", "decay" }, { "wd", "decay" }, { "grad-clip", "clip" },
        { "max-grad-norm", "clip" }, { "ctx", "context" }, { "ctx-size", "context" },
        { "seq-len", "context" }, { "seq-length", "context" }, { "length", "context" },
        { "block-size", "context" }, { "batch-size", "batch" }, { "iters", "steps" },
        { "iterations", "steps" }, { "epochs", "steps" }, { "epoch", "steps" },
        { "train-epochs", "steps" }, { "embd", "dim" }, { "d-model", "dim" },
        { "hidden-size", "dim" }, { "width", "dim" }, { "depth", "layers" },
        { "hidden-layers", "layers" }, { "attention-heads", "heads" },
        { "intermediate-size", "hidden" }, { "d-ff", "hidden" }, { "ffn-dim", "hidden" },
        { "checkpoint", "resume" }, { "continue", "resume" }, { "overwrite", "force" },
    }, *const counted[] = { "n-", "num-", "max-" };              /* as in n-layer, num-heads */
    const char *names[N_TRAIN_OPTIONS + 1] = { NULL }, *name = arg + strspn(arg, "-"), *meant = NULL;
    char word[WORD_LEN], what[256];
    for (int i = 0; i < N_TRAIN_OPTIONS; i++) names[i] = train_options[i].name;
    snprintf(word, sizeof word, "%.*s", (int)strcspn(name, "="), name);
    for (char *c = word; *c; c++) *c = *c == '_' ? '-' : *c;
    for (int pass = 0; pass < 2 && !meant; pass++) {
        const char *known = word;                /* the second time without n- */
        for (size_t i = 0; pass && i < sizeof counted / sizeof *counted; i++)
            if (!strncmp(word, counted[i], strlen(counted[i]))) known = word + strlen(counted[i]);
        for (size_t i = 0; i < sizeof elsewhere / sizeof *elsewhere; i++)
            if (same_word(known, elsewhere[i][0])) meant = elsewhere[i][1];
        if (!meant && strlen(name) < WORD_LEN) meant = nearest(known, names);
    }
    snprintf(what, sizeof what, meant ? "%.100s; did you mean --%s?" : "%.200s", arg, meant);
    return train_misuse("unknown option", what);
}

/* One option with its value; returns 0 or the exit code. */
static int set_train_option(TrainOptions *o, const TrainOption *p, const char *value) {
    char *end, what[96];
    void *field = (char *)o + p->at;
    o->given |= (uint64_t)1 << (p - train_options);
    errno = 0;
    if (p->kind == 'f') *(int *)field = 1;
    else if (p->kind == 's') *(const char **)field = value;
    else if (p->kind == 'u') {
        *(uint64_t *)field = strtoull(value, &end, 10);
        if (errno || *end || *value < '0' || *value > '9')
            return train_misuse("--seed wants a whole number from 0 to 2^64-1, not", value);
    } else {
        const double x = strtod(value, &end);
        if (errno || *end || end == value || !(x >= p->lo && x <= p->hi) || (p->kind != 'd' && x != floor(x))) {
            snprintf(what, sizeof what, "--%s wants %s from %g to %g, not", p->name,
                     p->kind == 'd' ? "a number" : "a whole number", p->lo, p->hi);
            return train_misuse(what, value);
        }
        if (p->kind == 'd') *(double *)field = x;
        else if (p->kind == 'l') *(int64_t *)field = (int64_t)x;
        else *(int *)field = (int)x;
    }
    return 0;
}

/* Fills o from the arguments; returns 0 or the exit code. A plain word is the text, "-" too; behind
 * "--" all words are plain. */
static int parse_options(TrainOptions *o, int argc, char **argv) {
    bool plain = false;
    for (int a = 1; a < argc; a++) {
        const char *arg = argv[a], *value = NULL;
        const TrainOption *p = train_options, *none = train_options + N_TRAIN_OPTIONS;
        if (plain || arg[0] != '-' || !arg[1]) {
            if (o->text) return train_misuse("one text at most; there is a second one:", arg);
            o->text = arg;
            continue;
        }
        if (!strcmp(arg, "--")) {
            plain = true;
            continue;
        }
        if (arg[1] == '-') {
            const size_t n = strcspn(arg + 2, "=");
            while (p < none && (strncmp(p->name, arg + 2, n) || p->name[n])) p++;
            if (arg[2 + n]) value = arg + 3 + n;
        } else {
            while (p < none && p->letter != arg[1]) p++;
            if (arg[2]) value = arg + 2;
            if (value && p < none && p->kind != 'i') p = none;  /* -j4, but no -outfile */
        }
        if (p == none) return unknown_option(arg);
        if (p->kind == 'f' && value) return train_misuse("no value goes with a flag:", arg);
        if (p->kind != 'f' && !value && !(value = argv[++a])) return train_misuse("a value is missing after", arg);
        const int code = set_train_option(o, p, value);
        if (code) return code;
    }
    return 0;
}

/* A row of the help page: left, and the text beside it in lines of 80 columns. */
static void print_help_row(const char *left, const char *text) {
    enum { AT_COLUMN = 24, COLUMNS = 80 };
    printf("  %-*s", AT_COLUMN - 2, left);
    if (strlen(left) + 2 >= AT_COLUMN) printf("\n%*s", AT_COLUMN, "");
    while (*text) {
        size_t n = strlen(text);
        if (n > COLUMNS - AT_COLUMN)
            for (n = COLUMNS - AT_COLUMN; n > 1 && text[n] != ' ';) n--;
        printf("%.*s\n", (int)n, text);
        text += n;
        text += strspn(text, " ");
        if (*text) printf("%*s", AT_COLUMN, "");
    }
}

/* d: the options as they are by themselves. */
static void print_train_help(const TrainOptions *d) {
    printf("usage: ./train_tiny [TEXT] [options]\n\n"
           "TEXT is a UTF-8 file, or - for standard input; without one, made-up stories.\n\n");
    for (const TrainOption *p = train_options; p < train_options + N_TRAIN_OPTIONS; p++) {
        char left[40], value[32] = "", text[512];
        const void *field = (const char *)d + p->at;
        if (p->kind == 's') snprintf(value, sizeof value, "%s", *(const char *const *)field ? *(const char *const *)field : "");
        if (p->kind == 'i') snprintf(value, sizeof value, "%d", *(const int *)field);
        if (p->kind == 'l') snprintf(value, sizeof value, "%lld", (long long)*(const int64_t *)field);
        if (p->kind == 'u') snprintf(value, sizeof value, "%llu", (unsigned long long)*(const uint64_t *)field);
        if (p->kind == 'd') snprintf(value, sizeof value, "%g", *(const double *)field);
        snprintf(left, sizeof left, "%c%c%s--%s %s", p->letter ? '-' : ' ', p->letter ? p->letter : ' ', p->letter ? ", " : "  ",
                 p->name, p->value);
        const char *mark = strstr(p->help, "%s");
        if (mark) snprintf(text, sizeof text, "%.*s%s%s", (int)(mark - p->help), p->help, value, mark + 2);
        else snprintf(text, sizeof text, "%s", p->help);
        print_help_row(left, text);
    }
    printf("\nmixers (--mixer takes their names in files, too):\n");
    for (const MixerKind *k = mixer_kinds; k < mixer_kinds + N_KINDS; k++) {
        char text[512];
        const bool other = strcmp(k->name, k->arch) && k == &mixer_kinds[mixer_named(k->arch)];
        snprintf(text, sizeof text, "%s%s%s", k->about, other ? "; in files " : "",
                 other ? k->arch : "");
        print_help_row(k->name, text);
    }
    printf("\nThe report and a sample go to standard output, progress to standard error.\n"
           "Exit: 0 done or stopped with a checkpoint, 1 failed, 2 misused.\n");
}

/* NO_* of a list "decay,gate", or -1. */
static int parts_left_out(const char *list) {
    static const char *const names[] = { "decay", "map", "rotation", "gate" };
    int parts = 0;
    for (;; list++) {
        const size_t n = strcspn(list, ",");
        int i = 0;
        while (i < 4 && (strlen(names[i]) != n || memcmp(names[i], list, n))) i++;
        if (i == 4) return -1;
        parts |= 1 << i;
        list += n;
        if (!*list) return parts;
    }
}

/* The NO_* that make sense for a mixer. A decay that says what is written, too, has to stay, and so have gates that are more than a factor. */
static int parts_of(const MixerKind *k) {
    const Family *f = k == &mixer_kinds[SOFTMAX] ? NULL : family_of(k);
    if (!f) return 0;
    return (f->decay != DECAY_NONE && f->write != WRITE_REST ? NO_DECAY : 0) | (facts(f)->front.norm != QK_L2 && (k->elu || act_of(facts(f)->front.map) != F_ID) ? NO_MAP : 0)
           | (k->rope ? NO_ROTATION : 0)
           | (act_of(facts(f)->back.gate) != F_ID && !k->ungated && !narrow_gate(f) && !is_mamba(f) ? NO_GATE : 0);
}

/* The sizes that follow from the options; returns NULL, or what is wrong with them, to which main adds the value. */
static const char *configure(TinyConfig *c, const TrainOptions *o, int vocab_size) {
    const int mixer = mixer_named(o->mixer);
    int every = 0, one = 0;
    char end;
    if (mixer == N_KINDS) return "--mixer is one of the names that --help lists, not";
    const MixerKind *k = &mixer_kinds[mixer];
    const Family *f = family_of(k);
    const int heads = o->dim / 32;
    if (o->dim % 32) return "--dim must be a multiple of 32";
    if (o->hidden % 32) return "--hidden must be a multiple of 32";
    if (o->key_dim % 16 || o->value_dim % 16) return "--key-dim and --value-dim must be multiples of 16";
    if (o->half_life > 0 && o->half_life < 1) return "--half-life is 0, or one token at least";
    if (o->hybrid && (sscanf(o->hybrid, "%d:%d%c", &every, &one, &end) != 2 || every < 1 || every > 255 || one != 1))
        return "--hybrid is N:1, N linear layers for each of softmax attention, not";
    if (o->hybrid && mixer == SOFTMAX) return "--hybrid does not go with --mixer";
    if (o->hybrid && every >= o->layers) return "--layers are too few for a layer of softmax attention with --hybrid";
    if (o->task && o->out && !o->hidden && !(is_mamba(f) && !o->hybrid)) /* in run's files only Mamba-2 has none */
        return "--out needs a feed-forward network (--hidden) with --mixer";
    if (!o->conv && f && mixer != SOFTMAX && facts(f)->front.silu != SILU_NEVER && facts(f)->front.silu != SILU_CONV)
        return "--conv 0 does not go with --mixer";
    if (o->half_life > 0 && o->conv > 0 && f && f->decay == DECAY_FORGET && o->out) /* files have no bias behind the convolution of f */
        return "--out needs --half-life 0 or --conv 0, since a file has no bias behind that convolution, with --mixer";
    if (o->conv > 0 && k->rwkv && !o->task) return "--conv does not go with --mixer"; /* it sees the token before without one */
    const int without = o->without ? parts_left_out(o->without) : 0;
    if (without < 0) return "--without is decay, map, rotation or gate, or several with commas between, not";
    static const char *const not_there[] = { "--without decay does not go with --mixer", "--without map does not go with --mixer",
                                             "--without rotation does not go with --mixer", "--without gate does not go with --mixer" };
    for (int i = 0; i < 4; i++)
        if (without & ~parts_of(k) & 1 << i) return not_there[i];
    if (o->hidden && is_mamba(f) && !o->hybrid) return "--hidden does not go with --mixer"; /* a layer is its mixer alone */
    if (mixer == SOFTMAX && (was_given(o, T_HEADS) || was_given(o, T_KEY_DIM) || was_given(o, T_VALUE_DIM)))
        return "--heads, --key-dim and --value-dim are of linear layers and do not go with --mixer";
    if (was_given(o, T_HALF_LIFE) && (mixer == SOFTMAX || (f && (f->decay == DECAY_NONE || f->decay == DECAY_SUM))))
        return "--half-life does not go with --mixer";
    if (was_given(o, T_HALF_LIFE) && without & NO_DECAY) return "--half-life does not go with --without decay";
    if (o->conv > 0 && mixer == SOFTMAX && o->out) return "--conv is not written to files with --mixer";
    *c = (TinyConfig){
        .mixer = mixer,
        .dim = o->dim,
        .hidden_dim = (is_mamba(f) && !o->hybrid) || (o->task && !o->hidden) ? 0
                      : o->hidden                                            ? o->hidden
                                                                             : (o->dim * 8 / 3 + 31) / 32 * 32,
        .n_layers = o->layers,
        .vocab_size = vocab_size,
        .seq_len = o->context,
        .d_conv = o->conv >= 0 ? o->conv : k->d_conv,
        .dk = o->key_dim ? o->key_dim : 32,
        .dv = o->value_dim ? o->value_dim : mixer == GLA && o->dim % 64 == 0 ? 64 : 32,
        .interval = o->hybrid ? every + 1 : mixer == SOFTMAX ? 1 : mixer == GATED_DELTA ? 4 : 0,
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
    c->n_heads = o->heads ? o->heads : o->dim / c->dv > 0 ? o->dim / c->dv : 1;
    if (narrow_gate(f)) c->gate_rank = c->dv;
    return NULL;
}

/* -- text and vocabulary -- */

enum { MB = 1 << 20, FILE_MAX_MB = 1024, PIPE_MAX_MB = 256 };     /* of a text */

/* Begins with the byte order mark of UTF-16? */
static bool is_utf16(const uint8_t *p, size_t n) {
    return n > 1 && ((p[0] == 0xff && p[1] == 0xfe) || (p[0] == 0xfe && p[1] == 0xff));
}

/* The whole text and a zero byte behind it, n without it; NULL with a sentence in err. */
static char *read_text(const char *path, size_t *n, char *err) {
    const bool piped = !strcmp(path, "-");
    FILE *f = piped ? stdin : open_text(path, err);
    if (!f) return NULL;
    if (piped) path = "standard input";
    Out o = {0};
    uint8_t *part = checked(malloc(MB));
    uint64_t size = 0, most = (uint64_t)PIPE_MAX_MB * MB;
#ifdef HAVE_POSIX
    struct stat st;
    const bool regular = !fstat(fileno(f), &st) && S_ISREG(st.st_mode);
#else
    const bool regular = !piped;
#endif
    if (regular) most = (uint64_t)FILE_MAX_MB * MB;
    bool zeros = false, bad = false;
    for (size_t got = 1; got && !zeros && size <= most; size += got) {
        got = fread(part, 1, MB, f);
        zeros = memchr(part, 0, got) != NULL;
        put(&o, part, got);
        waiting("reading the text", (double)size, (double)most);
    }
    waiting(NULL, 0, 0);
    if (ferror(f)) bad = fail(err, GLA_IO, "%s: cannot read: %s", path, strerror(errno));
    else if (zeros && is_utf16(o.p, o.n))
        bad = fail(err, GLA_INPUT, "%s: is UTF-16; iconv -f UTF-16 -t UTF-8 makes the text that is wanted",
                   path);
    else if (zeros) bad = fail(err, GLA_INPUT, "%s: has zero bytes; it is no text", path);
    else if (size > most)
        bad = fail(err, GLA_INPUT, "%s: has more than %d MB, the most that is read from a %s; a part of it will do (head -c)",
                   path, (int)(most / MB), regular ? "file" : "pipe");
    else if (!o.n) bad = fail(err, GLA_INPUT, "%s: is empty", path);
    if (!piped) fclose(f);
    free(part);
    put(&o, "", 1);
    *n = o.n - 1;
    if (bad) free(o.p);
    return bad ? NULL : (char *)o.p;
}

/* The text that the vocabulary of the stories is learned from: stories of seeds that no training run uses. */
static char *story_sample(size_t *n) {
    Out o = {0};
    char text[STORY_CAP];
    for (uint64_t i = 0; o.n < (size_t)4 << 20; i++) {
        size_t len = story(((uint64_t)1 << 62) + i, text, sizeof text);
        put(&o, text, len), put(&o, "\n", 1);
    }
    put(&o, "", 1);
    *n = o.n - 1;
    return (char *)o.p;
}

/* Opens the vocabulary (-z), or learns one from the text. */
static int choose_vocabulary(Data *d, const TrainOptions *o, const char *text, size_t n, char *err) {
    int code;
    if (o->tokenizer) code = map_file(&d->vocab.map, o->tokenizer, err);
    else {
        Out file = {0};
        code = learn_vocabulary(&file, text, n, o->vocab, err);
        d->vocab.map = (Mapping){ file.p, file.n, 0 };
    }
    char why[GLA_ERR] = "";
    if (!code && ((code = gguf_read(&d->vocab, why)) || (code = tokenizer_new(&d->tokenizer, &d->vocab, why))))
        fail(err, code, "%.100s: %.200s", o->tokenizer ? o->tokenizer : "vocabulary", why);
    if (code) return code;
    if (!d->tokenizer->n) return fail(err, GLA_FORMAT, "%s: has no vocabulary", o->tokenizer);
    d->end = d->tokenizer->kind.eos >= 0 ? d->tokenizer->kind.eos : d->tokenizer->kind.bos;
    if (d->end < 0) return fail(err, GLA_UNSUPPORTED, "%s: has no end-of-text token", o->tokenizer);
    return GLA_OK;
}

/* The vocabulary as a file of its own (--tokenizer). The same file may be there already: a run that
 * goes on has left it. */
static int write_vocabulary(const TrainOptions *o, const Gguf *vocab, char *err) {
    char path[PATH_LEN];
    uint8_t *old = NULL;
    Keys k = {0};
    Out file = {0};
    key_str(&k, "general.", "architecture", "tokenizer");
    key_str(&k, "general.", "type", "vocab");
    copy_vocabulary(&k, vocab);
    put_header(&file, &k, 0);
    snprintf(path, sizeof path, "%s", o->tokenizer_out);
    int code = GLA_OK;
    if (!read_bytes(path, file.n, &old) || memcmp(old, file.p, file.n))
        code = write_parts(path, o->force, &(Part){ file.p, file.n }, 1, err);
    if (strcmp(path, o->tokenizer_out)) fprintf(stderr, "train_tiny: %s is there; the vocabulary is %s\n", o->tokenizer_out, path);
    free(old);
    free(k.body.p);
    free(file.p);
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
    if (d->ids)
        for (size_t i = 1, from = 1; i < d->n_ids && n < MOST; i++) {
            if (d->ids[i] != d->end) continue;
            if (i > from) length[n++] = (int)(i - from < INT32_MAX ? i - from : INT32_MAX);
            from = i + 1;
        }
    else
        for (; n < STORIES; n++) {
            const size_t len = story(((uint64_t)1 << 62) + (uint64_t)n, text, sizeof text);
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
    fprintf(stderr, "train_tiny: warning: half of the texts have %d tokens or more, and a sequence holds %d; ", typical, context);
    if (typical < 8192) fprintf(stderr, "--context %d would hold them\n", (typical / 64 + 1) * 64);
    else fprintf(stderr, "the model will not learn how a text as a whole is built\n");
}

/* The whole text as ids, <|endoftext|> before and after it; "<|endoftext|>" within it counts as the token. */
static int encode_text_file(Data *d, const TinyConfig *c, const char *text, size_t n, char *err) {
    size_t cap = n / 2 + 16;                     /* most texts have fewer tokens than that; others are encoded twice */
    int64_t got = 0;
    if (n > MB) busy("encoding the text");
    for (int round = 0; round < 2 && (size_t)got <= cap; round++) {
        free(d->ids);
        d->ids = checked(malloc((cap + 2) * sizeof *d->ids));
        got = tokenizer_encode(d->tokenizer, text, n, GLA_SPECIAL, d->ids + 1, cap, err);
        if (got < 0) return (int)got;
        if ((size_t)got <= cap) break;
        cap = (size_t)got;
    }
    waiting(NULL, 0, 0);
    d->ids[0] = d->end;
    d->ids[got + 1] = d->end;
    d->n_ids = (size_t)got + 2;
    size_t rest = d->n_ids / 20, window = (size_t)c->seq_len + 1;
    d->n_train = d->n_ids - (rest > window ? rest : window);
    if (d->n_ids < 3 * window)
        return fail(err, GLA_INPUT, "the text has %zu tokens; %zu are needed for a context of %d (--context)",
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
static int print_sample(const Out *file, const TrainOptions *o, char *err) {
    GlaModel *m;
    GlaState *s;
    GlaSampler p;
    int32_t ids[1024];
    int code = gla_open_memory(&m, file->p, file->n, err);
    if (code) return code;
    if (!(code = gla_state_new(&s, m, &(GlaSettings){.threads = o->threads}, err))) {
        int64_t n = gla_encode(m, o->prompt, strlen(o->prompt), GLA_BOS, ids, 1024, err);
        if (n < 0 || n > 1024) code = n < 0 ? (int)n : fail(err, GLA_INPUT, "a prompt of %lld tokens is too long", (long long)n);
        else {
            if (!n) ids[n++] = m->vocab->kind.eos;
            gla_sampler_init(&p, m, o->seed);
            printf("\n%s", o->prompt);
            code = gla_generate(s, &p, ids, n, &(GlaGenerate){ .steps = 400, .emit = show_piece }, NULL, err);
            printf("\n");
        }
        gla_state_free(s);
    }
    gla_close(m);
    return code < 0 ? code : GLA_OK;
}

/* -- training -- */

/* Where a run leaves its checkpoint. name: PATH_LEN bytes */
static void checkpoint_name(char *name, const TrainOptions *o) { snprintf(name, PATH_LEN, "%s.ckpt", o->out ? o->out : o->task); }

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
} Training;

/* Mean held-out loss (nats per token) over `batches` batches, and with counts the two baselines on the same tokens. */
static double held_out(Training *r, int batches, Counts *counts, double *bigram, double *trigram) {
    const int B = r->m.B, T = r->m.c.seq_len;
    double loss = 0, two = 0, three = 0;
    int64_t n = 0;
    int32_t *seq = checked(malloc((size_t)(T + 1) * sizeof *seq));
    for (int i = 0; i < batches; i++) {
        int count;
        if (counts) waiting("evaluating", i, batches);
        fill_batch(r->d, true, (uint64_t)i, B, T, r->id, r->target);
        loss += tiny_step(&r->m, r->id, r->target, false, &count);
        n += count;
        for (int b = 0; counts && b < B; b++) {
            for (int t = 0; t < T; t++) seq[t] = r->id[b * T + t], seq[t + 1] = r->target[b * T + t];
            for (int t = 1; t <= T; t++) two += count_nll(counts, seq, t, 2), three += count_nll(counts, seq, t, 3);
        }
    }
    free(seq);
    if (counts) {
        waiting(NULL, 0, 0);
        *bigram = two / n;
        *trigram = three / n;
    }
    return loss / n;
}

/* A checkpoint of now. The first one of a run that did not begin with it leaves a file of that name
 * alone. */
static int save_progress(Training *r, char *err) {
    int code = save_checkpoint(r->ckpt, r->own_ckpt, &r->m, r->at, err);
    if (!code) r->own_ckpt = true;
    return code;
}

/* Steps until the end or Ctrl-C: a batch, the gradients of its loss, AdamW. The learning rate climbs over the first steps, then falls
 * along half a cosine to a 50th. It depends on the step and on how many there are to be: a run that
 * goes on with a larger number is from there on where a run of that many would be. */
static int train_steps(Training *r, char *err) {
    const TrainOptions *o = &r->o;
    const int N = o->batch * r->m.c.seq_len;
    const double start = now_s();
    const int64_t warmup = o->minutes <= 0 && o->steps / 10 < 100 ? o->steps / 10 + 1 : 100;
    AdamW opt = { .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .decay = o->decay, .clip = o->clip };
    double shown = 0, saved = start, smooth = 0, weight = 0, test = 0, testing = 0;
    int count, part = -1;
    const bool terminal = wait_line.on;
    for (int64_t step = r->first + 1; !r->stopped; step++) {
        // one step; share: how much of the way is done
        double share = o->minutes > 0 ? (r->before + now_s() - start) / (60 * o->minutes) : (double)(step - 1) / (double)o->steps;
        if (share >= 1) break;
        opt.lr = o->lr * (0.51 + 0.49 * cos(3.14159265358979 * share)) * (step < warmup ? (double)step / (double)warmup : 1);
        fill_batch(r->d, false, (uint64_t)step - 1, o->batch, r->m.c.seq_len, r->id, r->target);
        memset(r->m.grads, 0, r->m.n_params * sizeof(real));
        double loss = tiny_step(&r->m, r->id, r->target, true, &count) / count;
        double norm = adamw_step(&r->m, &opt, (long)step);
        if (!(loss < 1e9) || !(norm < 1e30))
            return fail(err, GLA_INPUT, "the loss is no longer a number at step %lld; a smaller --lr may help", (long long)step);
        r->at.step = step;
        r->stopped = stop_asked;

        // progress: the loss averaged over some 20 steps; held out, every 20th part of the way
        double t = now_s(), rate = (double)(step - r->first) * N / (t - start - testing);
        r->at.seconds = r->before + t - start;
        double done = o->minutes > 0 ? r->at.seconds / (60 * o->minutes) : (double)step / (double)o->steps;
        double left = o->minutes > 0 ? o->minutes - r->at.seconds / 60
                                     : (double)(o->steps - step) * (t - start) / (double)(step - r->first) / 60;
        smooth = 0.95 * smooth + 0.05 * loss;
        weight = 0.95 * weight + 0.05;
        bool milestone = (int)(done * 20) > part || r->stopped;
        if (milestone) {
            part = (int)(done * 20);
            test = held_out(r, ceil_div(8192, N), NULL, NULL, NULL);
            if (!r->best_step || test < r->best) r->best = test, r->best_step = step;
            testing += now_s() - t;
        }
        const bool over = r->stopped || done >= 1;
        if (!o->quiet && (terminal ? over || t - shown > 1 : milestone)) {
            fprintf(stderr, "%sstep %lld %3.0f %%  loss %.3f  held-out %.3f  lr %.1e  %.0f tokens/s  %.1f min left%s",
                    terminal ? "\r" : "", (long long)step, 100 * (done < 1 ? done : 1), smooth / weight, test, opt.lr, rate,
                    left > 0 ? left : 0, terminal ? "\033[K" : "\n");
            shown = t;
        }

        // a checkpoint every five minutes
        if (t - saved > 300 && !r->stopped) {
            saved = t;
            if (save_progress(r, err)) fprintf(stderr, "train_tiny: %s; going on without a checkpoint\n", err);
        }
    }
    if (o->minutes > 0 && !r->stopped) r->at.seconds = fmax(r->at.seconds, 60 * o->minutes);
    if (weight > 0) r->loss = smooth / weight;
    r->last = test;
    if (terminal && shown > 0) fprintf(stderr, "\n");
    return GLA_OK;
}

/* -- reports -- */

/* Why a model is no better than it is, where that can be told: it has learned its text by heart,
 * which shows in a held-out loss that was lower before or lies far above that of the text, or it has
 * had too few steps. behind: counting three tokens predicts better. */
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

/* What was reached: size, speed, held-out perplexity next to the counting baselines, and a sample. */
static int report(Training *r, const Out *file, char *err) {
    enum { COUNTED = 1 << 23 };              /* tokens of a text at most, for the tables grow with them */
    const Data *d = r->d;
    const TinyConfig *c = &r->m.c;
    const int B = r->o.batch, T = c->seq_len, N = B * T;
    Counts counts = { .V = c->vocab_size, .uni = checked(calloc((size_t)c->vocab_size, sizeof(uint32_t))) };
    int32_t *seq = checked(malloc((size_t)(T + 1) * sizeof *seq));
    if (d->ids) count_sequence(&counts, d->ids, (int)(d->n_train < COUNTED ? d->n_train : COUNTED));
    else
        for (int64_t i = 0; i < r->at.step * B; i++) {
            waiting("counting, to compare with", (double)i, (double)r->at.step * B);
            fill_sequence(d, false, (uint64_t)i, seq, T + 1);
            count_sequence(&counts, seq, T + 1);
        }
    size_t windows = d->ids ? (d->n_ids - d->n_train) / (size_t)T : SIZE_MAX;
    int batches = ceil_div(1 << 17, N);
    if ((size_t)batches * (size_t)B > windows) batches = (int)(windows / (size_t)B) + 1;
    double bigram, trigram, model = held_out(r, batches, &counts, &bigram, &trigram);
    double seconds = r->at.seconds - r->before;
    printf("%s: %zu bytes, %zu parameters; %lld tokens in %.1f minutes, %.0f per second\n", r->out, file->n, r->m.n_weights,
           (long long)r->at.step * N, r->at.seconds / 60, (double)(r->at.step - r->first) * N / (seconds > 0 ? seconds : 1));
    printf("held-out perplexity per token, on %d tokens: model %.3f, trigram %.3f, bigram %.3f\n",
           batches * N, exp(model), exp(trigram), exp(bigram));
    report_fit(r, model > trigram);
    free(seq);
    counts_free(&counts);
    return print_sample(file, &r->o, err);
}

/* Floats that the linear layers carry from token to token. */
static size_t state_floats(const Tiny *m) {
    size_t n = 0;
    for (int l = 0; l < m->c.n_layers; l++) {
        const TinyLayer *L = &m->layers[l];
        n += L->kind ? (size_t)m->c.n_heads * m->c.dk * (m->c.dv + (L->keys.heads ? m->c.dk : 0)) : 0;
    }
    return n;
}

/* How many answers are right, in percent, by the number of pairs: on sequences that were not trained on. */
static void report_recall(Training *r) {
    const int B = r->m.B, T = r->m.c.seq_len, V = r->m.c.vocab_size, N = B * T;
    real *logits = checked(malloc((size_t)N * V * sizeof *logits));
    printf("%s", mixer_kinds[r->m.c.mixer].name);
    if (r->o.hybrid) printf(" %s", r->o.hybrid);
    printf(": %d layers, %d heads of %d x %d, %zu floats of state",
           r->m.c.n_layers, r->m.c.n_heads, r->m.c.dk, r->m.c.dv, state_floats(&r->m));
    for (const int *p = r->d->pairs; *p; p++) {
        Data d = *r->d;
        int count, right = 0, asked = 0;
        d.pairs = (int[]){ *p, 0 };
        for (int i = 0; i < 20; i++) {
            fill_batch(&d, true, (uint64_t)i, B, T, r->id, r->target);
            tiny_step(&r->m, r->id, r->target, false, &count);
            matmul_forward(logits, V, r->m.h_out, r->m.c.dim, r->m.params + r->m.embed, N, r->m.c.dim, V, 0);
            for (int t = 0; t < N; t++) {
                int best = 0;
                for (int v = 1; v < V && r->target[t] >= 0; v++)
                    best = logits[(size_t)t * V + v] > logits[(size_t)t * V + best] ? v : best;
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
static int save_model(Training *r, const Out *file, char *err) {
    const char *folder = getenv("TMPDIR"), *base = base_name(r->o.out);
    char why[GLA_ERR];
    int code = GLA_IO;
    for (int place = 0; code && place < 3; place++) {
        const bool replace = place == 0 && (r->o.force || is_own_model(r->o.out, &r->at));
        if (place == 0) snprintf(r->out, sizeof r->out, "%s", r->o.out);
        else if (place == 1) snprintf(r->out, sizeof r->out, "%s", base);
        else if (snprintf(r->out, sizeof r->out, "%s/%s", folder && *folder ? folder : "/tmp", base) >= PATH_LEN) break;
        code = write_parts(r->out, replace, &(Part){ file->p, file->n }, 1, place ? why : err);
    }
    if (code) return code;
    if (strcmp(r->out, r->o.out))
        fprintf(stderr, "train_tiny: %s could not be written or is another file by now; the model is %s\n",
                r->o.out, r->out);
    r->at.model_bytes = file->n;
    r->at.model_sum = hash_bytes(HASH_SEED, file->p, file->n);
    return GLA_OK;
}

/* What a run leaves behind. Ctrl-C: a checkpoint, and the model unless a file is there that is not
 * this run's, for a model that has hardly begun should not replace one that was finished. The end:
 * the model, the checkpoint, from which more steps can go on, and the report, unless no step was
 * left to do; a task that has no file leaves neither. */
static int leave(Training *r, int type, Out *file, char *err) {
    const Data *d = r->d;
    const bool there = r->stopped && r->o.out && is_there(r->o.out) && !is_own_model(r->o.out, &r->at);
    const char *name = d->pairs ? "Associative recall" : r->o.text ? "A tiny model trained on a text" : "Tiny stories";
    int code = GLA_OK;
    if (r->o.out && !there) {
        *file = model_file(&r->m, d->pairs ? NULL : &d->vocab, type, name);
        code = save_model(r, file, err);
    }
    if (r->stopped || r->o.out) {
        char why[GLA_ERR];
        const int bad = save_progress(r, why);
        if (bad && (r->stopped || code)) code = fail(err, bad, "%s", why);
        else if (bad) fprintf(stderr, "train_tiny: %s; the model is there, but no checkpoint\n", why);
    } else if (r->own_ckpt) remove(r->ckpt);
    if (code) return code;
    if (r->stopped) {
        char usual[PATH_LEN + 8];
        fprintf(stderr, "stopped after step %lld; %s%s", (long long)r->at.step, there ? r->o.out : "", there ? " is as it was; " : "");
        snprintf(usual, sizeof usual, "%s.ckpt", r->o.out ? r->o.out : r->o.task);
        if (!strcmp(usual, r->ckpt)) fprintf(stderr, "--resume goes on from %s\n", r->ckpt);
        else fprintf(stderr, "the checkpoint is %s; --resume goes on from it under the name %s\n", r->ckpt, usual);
        return GLA_OK;
    }
    if (d->pairs) return report_recall(r), GLA_OK;
    return r->done ? GLA_OK : report(r, file, err);
}

/* Takes up the checkpoint. Its number of steps or minutes holds unless another is given: steps
 * count from the beginning, minutes from now. */
static int resume(Training *r, uint64_t fingerprint, char *err) {
    int code = load_checkpoint(r->ckpt, &r->m, &r->at, fingerprint, err);
    if (code) return code;
    const bool more = was_given(&r->o, T_MINUTES);
    if (more) r->o.minutes = fmin(r->o.minutes + r->at.seconds / 60, train_options[T_MINUTES].hi);
    else if (!was_given(&r->o, T_STEPS)) r->o.steps = r->at.steps, r->o.minutes = r->at.minutes;
    if (r->o.minutes <= 0 && r->at.step > r->o.steps)
        return fail(err, GLA_INPUT, "%s: is at step %lld already; --steps %lld would go back", r->ckpt,
                    (long long)r->at.step, (long long)r->o.steps);
    r->done = r->o.minutes > 0 ? r->at.seconds >= 60 * r->o.minutes : r->at.step == r->o.steps;
    if (r->done)
        fprintf(stderr, "train_tiny: %s: nothing is left to do, for it has done its %lld steps; "
                "a larger --steps than %lld goes on, or --minutes M for M minutes more\n",
                r->ckpt, (long long)r->at.step, (long long)r->at.step);
    r->first = r->at.step;
    r->before = r->at.seconds;
    return GLA_OK;
}

/* A new model or a checkpoint, training, and what it leaves. */
static int train(const TrainOptions *o, const Data *d, const TinyConfig *c, uint64_t fingerprint, int type, char *err) {
    Training r = { .o = *o, .d = d, .at = { .fingerprint = fingerprint }, .own_ckpt = o->resume || o->force };
    Out file = {0};
    int code = GLA_OK;
    const size_t N = (size_t)o->batch * (size_t)c->seq_len;
    checkpoint_name(r.ckpt, o);
    tiny_new(&r.m, c, o->batch, o->seed);
    r.id = checked(malloc(N * sizeof *r.id));
    r.target = checked(malloc(N * sizeof *r.target));
    if (o->resume) code = resume(&r, fingerprint, err);
    r.at.steps = r.o.steps;
    r.at.minutes = r.o.minutes;
    if (!code && !o->quiet && !r.done)
        fprintf(stderr, "%s, %d layers of %d, %d tokens: %zu parameters; %d sequences of %d tokens per step; %s kernels, %d threads\n",
                mixer_kinds[c->mixer].name, c->n_layers, c->dim, c->vocab_size, r.m.n_weights,
                o->batch, c->seq_len, kern.name, MAX_THREADS);
    if (!code) {
#ifdef HAVE_POSIX
        struct sigaction act, keep_int, keep_term;
        memset(&act, 0, sizeof act);
        act.sa_handler = ask_to_stop;
        act.sa_flags = (int)SA_RESETHAND;  /* a second Ctrl-C ends at once */
        sigaction(SIGINT, &act, &keep_int);
        sigaction(SIGTERM, &act, &keep_term);
#endif
        code = train_steps(&r, err);
        if (!code) code = leave(&r, type, &file, err);
#ifdef HAVE_POSIX
        sigaction(SIGINT, &keep_int, NULL);
        sigaction(SIGTERM, &keep_term, NULL);
#endif
    }
    free(file.p);
    free(r.id);
    free(r.target);
    tiny_free(&r.m);
    return code;
}

/* The tensor type of that name, or -1. */
static int type_named(const char *name) {
    static const struct { const char *name; int type; } known[] = {
        { "f32", AS_F32 }, { "f16", AS_F16 }, { "bf16", AS_BF16 }, { "q8_0", AS_Q8_0 }, { "q4_0", AS_Q4_0 }
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(name, known[i].name)) return known[i].type;
    return -1;
}

/* Whether the options go together, and each has an effect; returns 0 or the exit code. */
static int check_train_options(const TrainOptions *o) {
    char what[128];
    if (o->task && strcmp(o->task, "mqar") && strcmp(o->task, "rebind"))
        return train_misuse("--task is mqar or rebind (associative recall), not", o->task);
    for (int i = 0; i < N_TRAIN_OPTIONS; i++) {
        const TrainOption *p = &train_options[i];
        if (!was_given(o, i) || p->with & (o->task ? WITH_TASK : WITH_TEXT)) continue;
        snprintf(what, sizeof what, "--%s %s", p->name,
                 o->task ? "does not go with --task, which makes its own sequences" : "goes with --task only");
        return train_misuse(what, NULL);
    }
    if (o->task && o->text) return train_misuse("--task makes its own sequences; it does not go with the text", o->text);
    if (type_named(o->type) < 0) return train_misuse("--type is f32, f16, bf16, q8_0 or q4_0, not", o->type);
    if (was_given(o, T_TYPE) && o->task && !o->out)
        return train_misuse("--type is of a file; with --task it goes with --out only", NULL);
    if (o->without && o->out)
        return train_misuse("--without makes models that have no file format; it does not go with --out", o->out);
    if (was_given(o, T_VOCAB) && o->tokenizer)
        return train_misuse("--vocab is of a vocabulary that is learned; it does not go with -z", o->tokenizer);
    if (was_given(o, T_STEPS) && was_given(o, T_MINUTES))
        return train_misuse("--steps and --minutes both say when training ends; give one of them", NULL);
    return 0;
}

/* A mixer that there is not: names the one that was probably meant. */
static int unknown_mixer(const char *wrong, const char *name) {
    const char *names[2 * N_KINDS + 1] = { NULL }, *meant;
    char what[256];
    for (int i = 0; i < N_KINDS; i++) {
        names[i] = mixer_kinds[i].name;
        names[N_KINDS + i] = mixer_kinds[i].arch;
    }
    meant = nearest(name, names);
    snprintf(what, sizeof what, meant ? "%.100s; did you mean %s?" : "%.200s", name, meant);
    return train_misuse(wrong, what);
}

/* The sizes, or what is wrong with them; returns 0 or the exit code. */
static int check_sizes(TinyConfig *c, const TrainOptions *o) {
    const char *wrong = configure(c, o, o->vocab);
    if (!wrong) return 0;
    if (mixer_named(o->mixer) == N_KINDS) return unknown_mixer(wrong, o->mixer);
    return train_misuse(wrong, strstr(wrong, "--mixer") == wrong || strstr(wrong, "with --mixer") ? o->mixer
                               : strstr(wrong, "--hybrid")                                        ? o->hybrid
                               : strstr(wrong, "--without") == wrong                              ? o->without
                                                                                                  : NULL);
}

/* The name of the model when none was given: in this folder, that of the text with .bin. */
static void name_after_text(char *out, const char *text) {
    const char *base = text ? base_name(text) : "stories", *dot = strrchr(base, '.');
    const bool piped = text && (!strncmp(text, "/dev/", 5) || !strncmp(text, "/proc/", 6));
    if (!*base || !strcmp(base, "-") || piped) base = "text", dot = NULL;
    const size_t stem = dot && dot > base ? (size_t)(dot - base) : strlen(base);
    snprintf(out, PATH_LEN, "%s%.*s.bin", *base == '-' ? "./" : "", (int)(stem < 255 ? stem : 255), base);
}

/* No file that is read may be written, no two outputs may be one, and none replaces a file without
 * --force, but for what the checkpoint to go on from has left. Returns the exit code, with a
 * sentence in err when it is 1. */
static int check_files(const TrainOptions *o, char *err) {
    char ckpt[PATH_LEN];
    Checkpoint head = {0};
    if (strlen(o->out ? o->out : "") + 8 > PATH_LEN) return train_misuse("the name is too long:", o->out);
    checkpoint_name(ckpt, o);
    const char *read[] = { o->text, o->tokenizer, "/dev/stdin", "/dev/stdout" };
    const char *written[] = { o->out, o->tokenizer_out, ckpt };
    for (int i = 0; i < 12; i++)
        if (read[i % 4] && written[i / 4] && same_file(read[i % 4], written[i / 4]))
            return train_misuse("a file that is in use here would be replaced:", written[i / 4]);
    for (int i = 0; i < 3; i++)
        if (written[i] && written[(i + 1) % 3] && same_target(written[i], written[(i + 1) % 3]))
            return train_misuse("two files to write are the same one:", written[i]);
    if (o->resume) {
        FILE *f = open_checkpoint(ckpt, &head, err);
        if (!f) return 1;
        fclose(f);
    }
    char what[PATH_LEN + 100];
    if (!o->force && o->out && is_there(o->out) && !(o->resume && is_own_model(o->out, &head))) {
        snprintf(what, sizeof what, "%s is there already; --force replaces it, -o FILE names another", o->out);
        return train_misuse(what, NULL);
    }
    if (!o->force && !o->resume && o->out && is_there(ckpt)) {
        snprintf(what, sizeof what, "%s is there already; --resume goes on from it, --force begins anew", ckpt);
        return train_misuse(what, NULL);
    }
    if (!o->force && !o->resume && o->tokenizer_out && is_there(o->tokenizer_out)) {
        snprintf(what, sizeof what, "%s is there already; --force replaces it", o->tokenizer_out);
        return train_misuse(what, NULL);
    }
    for (int i = 0; i < 3; i++)                  /* what is written at the end must be possible now */
        if (written[i] && (i < 2 || o->out) && can_write(written[i], err)) return 1;
    return 0;
}

int main(int argc, char **argv) {
    TrainOptions o = { .mixer = "gated-delta", .type = "q8_0", .dim = 128, .layers = 4, .vocab = 1536, .context = 256, .batch = 8,
                       .steps = 12000, .conv = -1, .lr = 8e-3, .decay = 0.1, .clip = 1 };
    const TrainOptions defaults = o;
    const TrainOptions recall = { .mixer = o.mixer, .type = o.type, .dim = 64, .layers = 1, .heads = 1, .key_dim = 16, .value_dim = 64,
                                  .vocab = 128, .context = 64, .batch = 32, .steps = 1000, .conv = 4, .lr = 1e-2, .decay = 0.1,
                                  .clip = 1, .half_life = 200 };        /* with --task */
    o.steps = 0;                             /* not given: depends on the text, see below */
    char err[GLA_ERR] = "", own_name[PATH_LEN], *text = NULL;
    size_t n = 0;

    // the options, and which of them do not go together
    int code = parse_options(&o, argc, argv);
    TinyConfig c;
    Data d = { .seed = 0 };
    if (!code && o.task) {                   /* again, over the defaults of a task */
        o = recall;
        code = parse_options(&o, argc, argv);
    }
    if (code) return code;
    spin_briefly(argv);
    if (o.help) return print_train_help(&defaults), 0;
    if ((code = check_train_options(&o)) || (code = check_sizes(&c, &o))) return code;
    static const int pairs[] = { 4, 8, 16, 0 }, rebound[] = { 4, 8, 12, 0 };
    d.rebind = o.task && !strcmp(o.task, "rebind");
    d.seed = o.seed;
    if (o.task) {
        d.pairs = d.rebind ? rebound : pairs;
        d.mqar_vocab = o.vocab;
    } else if (!o.out) {
        name_after_text(own_name, o.text);
        o.out = own_name;
    }
    if (!o.steps) o.steps = o.text ? 3000 : defaults.steps; /* a text of one megabyte has been read often enough by then */
    if (!o.prompt) o.prompt = o.text ? "" : "Once upon a time";
#ifdef _OPENMP
    if (o.threads || omp_get_max_threads() > 1024) omp_set_num_threads(o.threads ? o.threads : 1024);
#endif
    choose_tiny_kernels();

    code = check_files(&o, err);
    if (code == 2) return code;
    wait_line.on = is_terminal(stderr) && !o.quiet;
    on_lost_pages(lost_pages);

    // text and vocabulary, which a task has no need of
    if (o.task) goto ready;
    if (!code && o.text) code = (text = read_text(o.text, &n, err)) ? GLA_OK : GLA_IO;
    else if (!code && !o.tokenizer) text = story_sample(&n);
    if (!code && o.text && n + 2 < 3 * ((size_t)c.seq_len + 1))
        code = fail(err, GLA_INPUT, "%s: has %zu bytes; a context of %d (--context) needs %d tokens",
                    o.text, n, c.seq_len, 3 * (c.seq_len + 1));
    if (!code) code = choose_vocabulary(&d, &o, text, n, err);
    if (!code && o.tokenizer_out) code = write_vocabulary(&o, &d.vocab, err);
    if (!code) c.vocab_size = d.tokenizer->n;
    if (!code && o.text) code = encode_text_file(&d, &c, text, n, err);
    if (!code) warn_of_context(&d, c.seq_len);

    // training; mark: the fingerprint of everything that shapes a step, but for how many there will be
ready:
    if (!code) {
        uint64_t mark = hash_bytes(HASH_SEED, &c, sizeof c);
        mark = hash_bytes(mark, &(int64_t[]){ o.batch, (int64_t)o.seed, d.rebind }, 24);
        mark = hash_bytes(mark, &(double[]){ o.lr, o.decay, o.clip }, 24);
        mark = hash_bytes(mark, d.vocab.map.data, d.vocab.map.n);
        if (d.ids) mark = hash_bytes(mark, d.ids, d.n_ids * sizeof *d.ids);
        code = train(&o, &d, &c, mark, type_named(o.type), err);
    }
    if (d.tokenizer) tokenizer_free(d.tokenizer);
    if (!d.vocab.map.mapped) free((void *)(uintptr_t)d.vocab.map.data);
    gguf_close(&d.vocab);
    free(text);
    free(d.ids);
    if (code) fprintf(stderr, "train_tiny: %s\n", err);
    return code != 0;
}
#endif /* TARGET: the part of the file that is compiled once */
