/* limits.c - what this machine can do at most, now: bytes read from memory, and multiply-adds on numbers that are in registers.
 *   limits [-j THREADS] [-m MEGABYTES]     prints "key value" lines; a multiply-add counts as two operations
 * Every speed of tests/bench.py is a share of one of these. Each figure is the best of several tries of a few hundredths of a second,
 * with the widest instructions that the processor has: a ceiling that is found too low flatters the program under it. */
#define _POSIX_C_SOURCE 200809L
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#ifdef _OPENMP
#include <omp.h>
#define PRAGMA(text) _Pragma(#text)
#else
#define PRAGMA(text)
#endif

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- arithmetic: twelve sums that do not wait for each other, more than any processor's latency times its units -------------- */
typedef void (*Burst)(long n); /* n times twelve instructions */
typedef uint64_t (*Reader)(const uint8_t *p, size_t n);
typedef struct { const char *name; Burst int8, bf16, f32; double int8_ops, bf16_ops, f32_ops; Reader read; } Machine; /* ops: per instruction */

#define TWELVE(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
/* REG: the assembler constraint of a vector register. The empty statements keep the compiler from seeing what is added, and how often. */
#define BURST(name, target, REG, V, zero, value, X) \
    target static void name(long n) { \
        V s0 = zero, s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0, s7 = s0, s8 = s0, s9 = s0, s10 = s0, s11 = s0, x = value, y = x; \
        for (long i = 0; i < n; i++) { \
            __asm__ volatile("" : "+" REG(x), "+" REG(y)); \
            TWELVE(X) \
            __asm__ volatile("" : "+" REG(s0), "+" REG(s1), "+" REG(s2), "+" REG(s3), "+" REG(s4), "+" REG(s5)); \
            __asm__ volatile("" : "+" REG(s6), "+" REG(s7), "+" REG(s8), "+" REG(s9), "+" REG(s10), "+" REG(s11)); \
        } \
    }
/* Adds up 64-byte lines, four at a time; V holds BYTES of them. */
#define READER(name, target, V, BYTES, zero, load, add) \
    target static uint64_t name(const uint8_t *p, size_t n) { \
        V s[4] = {zero, zero, zero, zero}; \
        uint64_t lanes[4 * BYTES / 8], sum = 0; \
        for (size_t i = 0; i + 4 * BYTES <= n; i += 4 * BYTES) \
            for (int j = 0; j < 4; j++) s[j] = add(s[j], load((const void *)(p + i + j * BYTES))); \
        memcpy(lanes, s, sizeof s); \
        for (size_t i = 0; i < sizeof lanes / sizeof *lanes; i++) sum += lanes[i]; \
        return sum; \
    }

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2,fma")))
#define VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))
#define BF16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))
#define FMA4(k) s##k = _mm_add_ps(s##k, _mm_mul_ps(x, y));
#define DOT4(k) s##k = _mm_add_epi32(s##k, _mm_madd_epi16(x, y));
#define FMA8(k) s##k = _mm256_fmadd_ps(x, y, s##k);
#define DOT8(k) { __m256i t = _mm256_maddubs_epi16(x, y); __asm__("" : "+x"(t)); s##k = _mm256_add_epi32(s##k, _mm256_madd_epi16(t, x)); }
#define FMA16(k) s##k = _mm512_fmadd_ps(x, y, s##k);
#define DOT16(k) s##k = _mm512_dpbusd_epi32(s##k, x, y);
#define DOTB(k) s##k = _mm512_dpbf16_ps(s##k, (__m512bh)x, (__m512bh)y);
BURST(f32_sse2, , "x", __m128, _mm_setzero_ps(), _mm_set1_ps(1e-9f), FMA4)
BURST(int8_sse2, , "x", __m128i, _mm_setzero_si128(), _mm_set1_epi32(3), DOT4)
READER(read_sse2, , __m128i, 16, _mm_setzero_si128(), _mm_load_si128, _mm_add_epi64)
BURST(f32_avx2, AVX2, "x", __m256, _mm256_setzero_ps(), _mm256_set1_ps(1e-9f), FMA8)
BURST(int8_avx2, AVX2, "x", __m256i, _mm256_setzero_si256(), _mm256_set1_epi32(3), DOT8)
READER(read_avx2, AVX2, __m256i, 32, _mm256_setzero_si256(), _mm256_load_si256, _mm256_add_epi64)
BURST(f32_avx512, VNNI, "v", __m512, _mm512_setzero_ps(), _mm512_set1_ps(1e-9f), FMA16)
BURST(int8_avx512, VNNI, "v", __m512i, _mm512_setzero_si512(), _mm512_set1_epi32(3), DOT16)
BURST(bf16_avx512, BF16, "v", __m512, _mm512_setzero_ps(), _mm512_set1_ps(1.0f), DOTB)
READER(read_avx512, VNNI, __m512i, 64, _mm512_setzero_si512(), _mm512_load_si512, _mm512_add_epi64)

static Machine machine(void) { /* without bf16 instructions its multiply-adds are those of f32 */
    Machine m = {"sse2", int8_sse2, f32_sse2, f32_sse2, 16, 8, 8, read_sse2};
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) m = (Machine){"avx2", int8_avx2, f32_avx2, f32_avx2, 64, 16, 16, read_avx2};
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni")) {
        m = (Machine){"avx512 vnni", int8_avx512, f32_avx512, f32_avx512, 128, 32, 32, read_avx512};
        if (__builtin_cpu_supports("avx512bf16")) m.name = "avx512 vnni bf16", m.bf16 = bf16_avx512, m.bf16_ops = 64;
    }
    return m;
}
#elif defined(__aarch64__) && defined(__GNUC__)
#include <arm_neon.h>
#ifdef __linux__
#include <sys/auxv.h>
#define HAS(word, bit) (int)(getauxval(word) >> (bit) & 1)
#define HAS_DOT HAS(AT_HWCAP, 20)    /* HWCAP_ASIMDDP */
#define HAS_I8MM HAS(AT_HWCAP2, 13)  /* HWCAP2_I8MM */
#define HAS_BF16 HAS(AT_HWCAP2, 14)  /* HWCAP2_BF16 */
#else
#define HAS_DOT 0
#define HAS_I8MM 0
#define HAS_BF16 0
#endif
/* The instructions by name, so that a compiler for an older processor takes them, too. */
#define FMA(k) s##k = vfmaq_f32(s##k, x, y);
#define MLAL(k) s##k = vpadalq_s16(s##k, vmull_s8(vget_low_s8(vreinterpretq_s8_s32(x)), vget_low_s8(vreinterpretq_s8_s32(y))));
#define ARM(instruction, k) __asm__ volatile(".arch armv8.6-a\n\t" instruction : "+w"(s##k) : "w"(x), "w"(y));
#define SDOT(k) ARM("sdot %0.4s, %1.16b, %2.16b", k)
#define SMMLA(k) ARM("smmla %0.4s, %1.16b, %2.16b", k)
#define BFMMLA(k) ARM("bfmmla %0.4s, %1.8h, %2.8h", k)
BURST(f32_neon, , "w", float32x4_t, vdupq_n_f32(0), vdupq_n_f32(1e-9f), FMA)
BURST(int8_neon, , "w", int32x4_t, vdupq_n_s32(0), vdupq_n_s32(3), MLAL)
BURST(int8_dot, , "w", int32x4_t, vdupq_n_s32(0), vdupq_n_s32(3), SDOT)
BURST(int8_i8mm, , "w", int32x4_t, vdupq_n_s32(0), vdupq_n_s32(3), SMMLA)
BURST(bf16_neon, , "w", float32x4_t, vdupq_n_f32(0), vdupq_n_f32(1.0f), BFMMLA)
#define LOAD_NEON(p) vld1q_u64((const uint64_t *)(p))
READER(read_neon, , uint64x2_t, 16, vdupq_n_u64(0), LOAD_NEON, vaddq_u64)

static Machine machine(void) {
    Machine m = {"neon", int8_neon, f32_neon, f32_neon, 16, 8, 8, read_neon};
    if (HAS_DOT) m.name = "neon dotprod", m.int8 = int8_dot, m.int8_ops = 32;
    if (HAS_I8MM) m.name = "neon i8mm", m.int8 = int8_i8mm, m.int8_ops = 64;
    if (HAS_BF16) m.bf16 = bf16_neon, m.bf16_ops = 32;
    return m;
}
#else
/* Whatever the compiler makes of plain loops. */
#define ADD_PLAIN(a, b) ((a) + (b))
#define LOAD_PLAIN(p) (*(const uint64_t *)(p))
READER(read_plain, , uint64_t, 8, 0, LOAD_PLAIN, ADD_PLAIN)
static volatile int8_t some_int8 = 3;
static volatile float some_f32 = 1e-9f;
static volatile int32_t sink_i32;
static volatile float sink_f32;
static void int8_plain(long n) {
    int32_t s[12] = {0};
    for (long i = 0; i < n; i++) { int8_t x = some_int8, y = some_int8; for (int j = 0; j < 12; j++) s[j] += x * y + j; }
    for (int j = 0; j < 12; j++) sink_i32 = s[j];
}
static void f32_plain(long n) {
    float s[12] = {0};
    for (long i = 0; i < n; i++) { float x = some_f32, y = some_f32; for (int j = 0; j < 12; j++) s[j] += x * y; }
    for (int j = 0; j < 12; j++) sink_f32 = s[j];
}
static Machine machine(void) { return (Machine){"plain", int8_plain, f32_plain, f32_plain, 2, 2, 2, read_plain}; }
#endif

/* ---- measuring ------------------------------------------------------------------------------------------------------ */
enum { TRIES = 8 };
#define AT_LEAST 0.02 /* seconds of one try */

static double burst_s(Burst f, long n, int n_threads) { /* from the first thread's start to the last one's end */
    double begin = now_s();
    (void)n_threads;
    PRAGMA(omp parallel num_threads(n_threads))
    f(n);
    return now_s() - begin;
}

static double peak(Burst f, double ops, int n_threads) { /* in 10^9 operations per second */
    long n = 1 << 19;
    double best = 0;
    do { /* the shortest of several: a thread may be made to wait by other programs; a millisecond's worth at least, as all of them may wait */
        n *= 2, best = 1e9;
        for (int i = 0; i < TRIES && best >= AT_LEAST; i++) {
            double s = burst_s(f, n, n_threads);
            if (s < best) best = s;
        }
    } while (best < AT_LEAST);
    return (double)n * 12 * ops * n_threads / 1e9 / best;
}

static volatile uint64_t sink; /* what is read has to go somewhere */

static double read_rate(Reader f, uint8_t *p, size_t n, int n_threads) { /* in 10^9 bytes per second */
    double best = 0;
    size_t part = n / (size_t)n_threads / 4096 * 4096;
    for (int i = 0; i < TRIES + 1; i++) {
        double begin = now_s();
        PRAGMA(omp parallel for schedule(static) num_threads(n_threads))
        for (int t = 0; t < n_threads; t++) sink = i ? f(p + part * (size_t)t, part) : (memset(p + part * (size_t)t, 1, part), (uint64_t)0);
        double rate = (double)part * n_threads / 1e9 / (now_s() - begin);
        if (i && rate > best) best = rate; /* the first one gives out the pages, to the threads that will read them */
    }
    return best;
}

int main(int argc, char **argv) {
    int n_threads = 1;
    size_t megabytes = 512; /* many times what caches hold */
#ifdef _OPENMP
    n_threads = omp_get_max_threads();
#endif
    for (int i = 1; i < argc; i += 2) {
        long v = i + 1 < argc ? strtol(argv[i + 1], NULL, 10) : 0;
        if (!strcmp(argv[i], "-j") && v >= 1 && v <= 1024) n_threads = (int)v;
        else if (!strcmp(argv[i], "-m") && v >= 1 && v <= 1 << 20) megabytes = (size_t)v;
        else return fprintf(stderr, "usage: limits [-j THREADS] [-m MEGABYTES]\n"), 2;
    }
#ifndef _OPENMP
    n_threads = 1;
#endif
    Machine m = machine();
    size_t n = megabytes << 20;
    uint8_t *p = aligned_alloc(4096, n);
    if (!p) return fprintf(stderr, "limits: no %zu MB of memory to read from\n", megabytes), 1;
    printf("threads %d\ninstructions %s\n", n_threads, m.name);
    printf("read_GB_s %.2f\n", read_rate(m.read, p, n, n_threads));
    printf("int8_Gop_s %.1f\nbf16_Gop_s %.1f\nf32_Gop_s %.1f\n", peak(m.int8, m.int8_ops, n_threads), peak(m.bf16, m.bf16_ops, n_threads), peak(m.f32, m.f32_ops, n_threads));
    free(p);
    return 0;
}
