/* run.c - gated linear attention language models on a CPU, in one file.
 *
 *   build   cc -O3 -o run run.c -lm              (-fopenmp uses every core)
 *   run     ./run model.gguf -i "Once upon a time"
 *   embed   #define RUN_NO_MAIN, then #include "run.c"; section 1 is the whole interface
 *
 *    1 interface   2 platform    3 text, errors  4 formats    5 kernels   6 GGUF     7 layers
 *    8 model       9 state      10 forward       11 tokenizer 12 sampler  13 generate 14 chat
 *   15 command line
 *
 * Here to learn? recurrence_step in section 5 is the one recurrence, a dozen lines. The laws in
 * section 7 say what each model fades, erases and writes; the table at its end, which model has
 * which. Section 9 is what is remembered, and 10 stacks the layers.
 * Here to add something? A mixer: its law and its row in section 7. An architecture: its row in
 * section 8. A sampler setting: its row in section 1, its law in 12. An option: its row in 15. */

/* ---- 1. interface: everything a program that embeds this file needs ---------------------- */
#ifndef GLA_H
#define GLA_H
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE /* mmap, fsync, sigaction; must precede the first system header */
#endif
#include <signal.h>
#include <stddef.h>
#include <stdint.h>

#define GLA_VERSION "0.1.0"

/* Switches for an including file or a compiler's command line:
 *   RUN_NO_MAIN       no command line (section 15)
 *   RUN_OPTIONS       with it: a command line of another program, by the tables of section 15
 *   RUN_STATIC        the interface is private to the including file
 *   RUN_HEADER_ONLY   stops after this section
 *   RUN_SCALAR        no kernels for vectors: half the program, several times slower; other bits, within rounding */
#if defined(RUN_STATIC) && defined(__GNUC__)
#define GLA_API __attribute__((unused)) static
#elif defined(RUN_STATIC)
#define GLA_API static
#else
#define GLA_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Functions that can fail return GLA_OK or one of these, and leave one sentence in err: what was expected,
 * what was found, what to try. err has room for GLA_ERR bytes, or is NULL. Nothing here prints or exits. */
enum {
    GLA_OK = 0,
    GLA_IO = -1,          /* the system said no: open, read, write */
    GLA_FORMAT = -2,      /* the bytes are not what they claim to be */
    GLA_UNSUPPORTED = -3, /* well-formed, but not implemented here */
    GLA_MEMORY = -4,
    GLA_INPUT = -5,       /* an argument is out of range */
    GLA_CONTEXT = -6,     /* no room left in the context of the softmax layers */
    GLA_ERR = 640
};

typedef struct GlaModel GlaModel; /* a mapped file: config, weights, vocabulary. Read-only after gla_open, share it freely */
typedef struct GlaState GlaState; /* what one conversation remembers. One thread at a time per state */

enum { GLA_KV_DEFAULT, GLA_KV_F32, GLA_KV_F16, GLA_KV_Q8_0, GLA_N_KV }; /* how softmax layers keep keys and values; the default is F32 */

typedef struct {
    const char *architecture, *name; /* general.architecture, general.name or "" ; live as long as the model */
    const char *kernel;              /* instruction set chosen for this processor */
    int n_layers, dim, vocab_size, seq_len; /* seq_len: the context the model was trained for */
    uint64_t parameters, file_bytes;
    uint64_t token_bytes, token_weights; /* bytes and count of the weights read for one generated token */
    uint64_t run_weights;                /* weights multiplied for a prompt token, which needs no logits */
    size_t state_bytes;                  /* recurrent state; does not grow with the text */
    size_t kv_bytes_per_token[GLA_N_KV]; /* what the softmax layers add for every token, by GLA_KV_*; 0 without such layers */
    const char *layer_kinds;             /* "gated_deltanet x 18, softmax x 6" */
} GlaInfo;

/* Model ---------------------------------------------------------------------------------- */
/* A vocabulary that is not understood does not keep a model from opening: the first call that needs text says what is wrong with it. */
GLA_API int gla_open(GlaModel **m, const char *path, char *err);
GLA_API int gla_open_memory(GlaModel **m, const void *data, size_t n_bytes, char *err); /* data must outlive the model */
GLA_API int gla_open_tokenizer(GlaModel *m, const char *path, char *err); /* replaces the vocabulary; before any sharing */
/* Reads text as the pre-tokenizer of this name does (tokenizer.ggml.pre: "qwen2", "llama-bpe" ...), whatever the file says, that of the model
 * and one opened later; before any sharing. A name that is not known is answered with those that are. */
GLA_API int gla_pre_tokenizer(GlaModel *m, const char *name, char *err);
GLA_API void gla_close(GlaModel *m);
GLA_API void gla_info(const GlaModel *m, GlaInfo *info);

/* State ---------------------------------------------------------------------------------- */
typedef struct {  /* zero means the default, everywhere. kv and fast change results, no other field changes a bit of them */
    int ctx;      /* positions of the softmax layers: min(4096, the model's) */
    int batch;    /* tokens per run while reading a prompt: 512 */
    int threads;  /* one per core */
    int kv;       /* GLA_KV_* */
    int fast;     /* 1: activations keep 8 bits (of 16 before quantised weights; of 24 before BF16, where the processor multiplies that) */
    int mtp;      /* positions that the file's block for multi-token prediction looks back to, for drafts by it; 0: it makes none */
    int draft;    /* tokens that may be read ahead as drafts of the text (GlaGenerate.draft), at most 63; 0: none */
} GlaSettings;
GLA_API int gla_state_new(GlaState **s, const GlaModel *m, const GlaSettings *how, char *err);  /* how may be NULL: all defaults */
GLA_API size_t gla_state_bytes(const GlaModel *m, const GlaSettings *how); /* memory for gla_state_place; 0: too large */
GLA_API int gla_state_place(GlaState **s, const GlaModel *m, const GlaSettings *how, void *mem, size_t n_bytes, char *err);
GLA_API void gla_state_free(GlaState *s);
GLA_API void gla_state_reset(GlaState *s);                                     /* back to an empty text */
GLA_API int gla_state_clone(GlaState **copy, const GlaState *s, char *err);
GLA_API int64_t gla_state_pos(const GlaState *s);                              /* tokens read so far */
GLA_API int64_t gla_state_evaluated(const GlaState *s); /* tokens computed in the life of s: rewinding and loading do not change it */
GLA_API int64_t gla_state_drafted(const GlaState *s, int64_t *proposed); /* tokens that were drafted and stayed; of so many (or NULL) */
GLA_API int gla_state_ctx(const GlaState *s);                                  /* positions the softmax layers have; 0: no limit */

/* Reads n ids. The last n_logits positions leave a row of vocab_size logits each in logits (NULL when n_logits is 0);
 * the last position's are kept in the state as well. On error the state is unchanged. */
GLA_API int gla_eval(GlaState *s, const int32_t *ids, int64_t n, float *logits, int64_t n_logits, char *err);
GLA_API const float *gla_logits(const GlaState *s);                            /* (vocab_size), of the last token read */

/* A recurrence cannot step back, so a place to come back to is copied when it is passed: the constant part, the last logits and the
 * position. Keys and values stay where they are, so a snapshot may be gone back to (or forward, to a later one) as long as the state has
 * not read another text over them in between: snapshots of one line of text, each valid for as long as the text before it is. */
GLA_API size_t gla_snapshot_bytes(const GlaModel *m);
GLA_API void gla_snapshot(const GlaState *s, void *snapshot);
GLA_API void gla_rewind(GlaState *s, const void *snapshot);

/* Text ----------------------------------------------------------------------------------- */
enum { GLA_BOS = 1, GLA_SPECIAL = 2, GLA_FIRST = 4 };
/* Ids of a text; returns how many there are (only cap are written) or an error. GLA_BOS adds the begin/end tokens that
 * the file asks for, GLA_SPECIAL reads "<|im_end|>" and the like as the token instead of as text. */
GLA_API int64_t gla_encode(const GlaModel *m, const char *text, size_t len, int flags, int32_t *ids, size_t cap, char *err);
/* Bytes of one token, possibly part of a UTF-8 character; returns the length (only cap are written). GLA_SPECIAL shows control
 * tokens, GLA_FIRST drops the leading space that some vocabularies put before the first word. */
GLA_API size_t gla_piece(const GlaModel *m, int32_t id, int flags, char *buf, size_t cap);
GLA_API int gla_is_end(const GlaModel *m, int32_t id); /* an end-of-text token? */
GLA_API int gla_n_tokens(const GlaModel *m);           /* tokens in the vocabulary; 0 = the file has none */

/* Sampling ------------------------------------------------------------------------------- */
enum { GLA_RECENT = 64,   /* the penalties look this many tokens back */
       GLA_BIAS = 32 };
/* The settings, a row each; a new one is a row here and its law in section 12.
 *   type, field, what it is when nobody says otherwise, least, most
 *   key in a model's file, or NULL; letter or 0, and name, on the command line; what it does
 * ROW(X, ...) is expanded for each; X is handed on. */
#define GLA_SETTINGS(ROW, X) \
    ROW(X, float, temperature, 1, 0, 100, "general.sampling.temp", 't', "temperature", "0 = always the likeliest token (1.0)") \
    ROW(X, float, top_p, 0.9, 0, 1, "general.sampling.top_p", 'p', "top-p", "draw from the likeliest share (0.9), 1 = off") \
    ROW(X, float, min_p, 0, 0, 1, "general.sampling.min_p", 0, "min-p", "drop what is less than X times the likeliest, 0 = off") \
    ROW(X, int, top_k, 0, 0, INT32_MAX, "general.sampling.top_k", 'k', "top-k", "draw from the N likeliest, 0 = off") \
    ROW(X, float, repeat_penalty, 1, 1e-3, 100, "general.sampling.penalty_repeat", 0, "repeat-penalty", "divide the scores of recent tokens, 1 = off") \
    ROW(X, float, presence_penalty, 0, -100, 100, NULL, 0, "presence-penalty", "subtract from them, 0 = off")
#define GLA_FIELD(X, type, field, ...) type field;

typedef struct {          /* a plain value: copy it to save it. Every field may be changed between tokens */
    GLA_SETTINGS(GLA_FIELD, )
    uint64_t rng;
    int32_t recent[GLA_RECENT];
    uint32_t n_recent;
    int n_bias;           /* added to the logits of some tokens before anything else; -INFINITY bans one */
    struct { int32_t id; float add; } bias[GLA_BIAS];
} GlaSampler;
GLA_API void gla_sampler_init(GlaSampler *p, const GlaModel *m, uint64_t seed); /* as the model's file says, else as above */
GLA_API void gla_sampler_note(GlaSampler *p, int32_t id);                       /* a token the penalties should know of */
GLA_API int32_t gla_sample(GlaSampler *p, GlaState *s);                         /* from the state's last logits */

/* Generation ----------------------------------------------------------------------------- */
/* Several tokens that a cheap source proposes are read in one run, which takes less time than a run for each; those that would have been
 * drawn anyway stay. OFF: there is no source. LOOKUP: the text's own past, what stood behind the longest earlier occurrence of its last
 * tokens. MTP: the file's block for multi-token prediction, in a state with room for it (GlaSettings.mtp). */
enum { GLA_DRAFT_OFF, GLA_DRAFT_LOOKUP, GLA_DRAFT_MTP };
/* Called after each token id, before the state reads it, with the whole UTF-8 characters that are ready (n may be 0); with id -1 after each
 * run of the prompt (n = 0), for the rest of a very long token, and at the end for what was held back, as it is. Not 0 ends the
 * generation after this token. */
typedef int (*GlaEmit)(void *user, int32_t id, const char *text, size_t n);
typedef struct {
    int64_t steps;             /* tokens to generate; 0 = until an end token or the context ends */
    const char *const *stops;  /* texts that end the generation; they are not emitted */
    int n_stops, ignore_end;
    int json;                  /* draw only what makes the text one JSON object or array, and end behind it */
    GlaEmit emit;
    void *user;
    const volatile sig_atomic_t *stop; /* NULL, or a flag that a signal handler or another thread sets, and that stays set until
                                  the call returns: not 0 ends the generation after this token, and at once while the prompt is
                                  read. The run of tokens that was being read is then taken back, as if it had not begun */
    int draft;                 /* GLA_DRAFT_*: who proposes tokens, in a state with room for drafts. It changes no bit of the text or the state */
} GlaGenerate;
enum { GLA_DONE_STEPS = 1, GLA_DONE_END, GLA_DONE_STOP, GLA_DONE_CONTEXT, GLA_DONE_CALLER, GLA_DONE_LOOP /* of a chat only */ };
/* Reads the prompt (may be empty if the state has read something), then generates. Returns GLA_DONE_* or an error;
 * n_out (or NULL) receives the number of tokens generated. The last token drawn is read by the state too, so going on is seamless. */
GLA_API int gla_generate(GlaState *s, GlaSampler *p, const int32_t *prompt, int64_t n, const GlaGenerate *how, int64_t *n_out, char *err);

/* Sessions: written to a temporary name, synced, renamed; a file that is no session is not replaced. p may be NULL. ids: all that the state has read, gla_state_pos(s) of them, or
 * NULL; the state itself does not keep them. A file of another model is refused and changes nothing; a damaged one leaves the
 * state as it was, or empty. */
GLA_API int gla_state_save(const GlaState *s, const GlaSampler *p, const int32_t *ids, const char *path, char *err);
GLA_API int gla_state_load(GlaState *s, GlaSampler *p, const char *path, char *err);
/* How many ids a session holds, or an error; the first cap are written. Only gla_state_load sees whether the file is damaged. */
GLA_API int64_t gla_session_ids(const GlaModel *m, const char *path, int32_t *ids, int64_t cap, char *err);

/* Prompt cache: a folder of sessions, one file each, that programs may share. load: goes on from the longest one whose ids are the first of
 * these n, into an empty state; returns how many they are, 0 = none fits. store: keeps the state under its ids; those that were not
 * used for the longest time leave, so that the folder stays within max_bytes. Files of others in it stay as they are, and do not count.
 * Without POSIX there are no folders: GLA_UNSUPPORTED. */
GLA_API int64_t gla_cache_load(GlaState *s, const char *folder, const int32_t *ids, int64_t n, char *err);
GLA_API int gla_cache_store(const GlaState *s, const char *folder, const int32_t *ids, uint64_t max_bytes, char *err);

/* Chat ----------------------------------------------------------------------------------- */
/* A conversation in the words of the model's chat template, kept as the ids that were read and drawn; nothing of it is read twice. The chat
 * owns the text of its state: use the state through it. One thread at a time for a chat and its clones. */
enum { GLA_SYSTEM, GLA_USER, GLA_ASSISTANT };
typedef struct { int role; const char *text; size_t n; } GlaMessage;
/* How messages are written: the name of the form. *known: 1 the file's template is this one; 0 the file has none; -1 its
 * template is not known here, and this form is used instead. NULL: an error. */
GLA_API const char *gla_template(const GlaModel *m, int *known, char *err);
/* The ids of a conversation whose last message is a user's, up to where the answer begins, as the template writes it:
 * returns how many they are, of which the first cap are written, or an error. Only the first message may be a system
 * message. think: as in GlaChatSettings. */
GLA_API int64_t gla_render(const GlaModel *m, const GlaMessage *messages, int n, int think, int32_t *ids, int64_t cap, char *err);
typedef struct GlaChat GlaChat;
typedef struct {
    const char *system;      /* system prompt, may be empty; NULL: none, a template may have one of its own */
    const GlaMessage *messages; /* what was said so far: gla_chat_new copies them. Their system message replaces `system` */
    int n_messages;
    int think;               /* 1 think before answering, 0 do not, -1 what the template does */
    int64_t think_budget;    /* tokens; then the thought is closed. 0 = no limit */
    int loop_tokens;         /* so many tokens of the same over and over are a loop: the first raises the repeat penalty, the second
                                ends the answer. 0 = off */
    int64_t snapshot_bytes;  /* memory for places to come back to, one per turn; the oldest leave, and are read again when needed */
    const char *cache;       /* prompt cache for the system prompt, or NULL */
    uint64_t cache_bytes;
} GlaChatSettings;
typedef struct {             /* what a turn cost and how it ended */
    int64_t read, made, thought; /* tokens evaluated up to the answer; tokens of the answer, those of them within a thought */
    int done, loops, budget, said; /* GLA_DONE_*; loops seen; was the thought cut; 0: interrupted before the answer,
                                      as if nothing was said */
    int uncached;                  /* the prompt cache could not be written: err says why, and the turn went on */
} GlaTurn;
GLA_API int gla_chat_new(GlaChat **c, GlaState *s, const GlaChatSettings *how, char *err);
GLA_API void gla_chat_free(GlaChat *c); /* the state stays */
/* A message and its answer: GLA_DONE_* or an error. Text of a thought comes while gla_chat_thinking. retry: another answer to the
 * last message. */
GLA_API int gla_chat_say(GlaChat *c, GlaSampler *p, const char *text, size_t n, const GlaGenerate *how, GlaTurn *turn, char *err);
GLA_API int gla_chat_retry(GlaChat *c, GlaSampler *p, const GlaGenerate *how, GlaTurn *turn, char *err);
GLA_API int gla_chat_thinking(const GlaChat *c);
GLA_API int gla_chat_may_think(const GlaChat *c);       /* has the model a way to think? */
GLA_API void gla_chat_think(GlaChat *c, int think);     /* from the next message on */
GLA_API int gla_chat_go(GlaChat *c, GlaSampler *p, int turns, char *err);   /* -1 undoes a turn, 1 brings it back until something is said */
GLA_API int gla_chat_turns(const GlaChat *c, int *undone); /* turns so far; those that can be brought back */
/* Drops the oldest turns until keep ids remain, and reads the others again; returns how many. */
GLA_API int gla_chat_forget(GlaChat *c, int64_t keep, const GlaGenerate *how, char *err);
GLA_API int gla_chat_clone(GlaChat **copy, GlaState **state, const GlaChat *c, char *err); /* both to be freed, the chat first */
GLA_API const int32_t *gla_chat_ids(const GlaChat *c);  /* gla_state_pos of them */
GLA_API size_t gla_chat_snapshot_bytes(const GlaChat *c);
GLA_API int gla_chat_save(const GlaChat *c, const GlaSampler *p, const char *path, char *err); /* sessions, as above */
GLA_API int gla_chat_load(GlaChat *c, GlaSampler *p, const char *path, char *err); /* a failure leaves the conversation as it was */

#ifdef __cplusplus
}
#endif

/* A complete program:
 *
 *   #define RUN_NO_MAIN
 *   #include "run.c"
 *   static int show(void *u, int32_t id, const char *text, size_t n) { (void)u, (void)id; fwrite(text, 1, n, stdout); return 0; }
 *   int main(int argc, char **argv) {
 *       char err[GLA_ERR] = ""; GlaModel *m; GlaState *s; GlaSampler p; int32_t ids[256];
 *       if (argc < 3) return fprintf(stderr, "usage: %s MODEL PROMPT\n", argv[0]), 2;
 *       if (gla_open(&m, argv[1], err) || gla_state_new(&s, m, NULL, err)) return fprintf(stderr, "%s\n", err), 1;
 *       gla_sampler_init(&p, m, 42);
 *       int64_t n = gla_encode(m, argv[2], strlen(argv[2]), GLA_BOS, ids, 256, err);
 *       if (n > 256) return fprintf(stderr, "the prompt has %lld tokens, at most 256 go in here\n", (long long)n), 1;
 *       if (n < 0 || gla_generate(s, &p, ids, n, &(GlaGenerate){.steps = 100, .emit = show}, NULL, err) < 0) return fprintf(stderr, "%s\n", err), 1;
 *       gla_state_free(s); gla_close(m);
 *       return 0;
 *   } */
#endif /* GLA_H */
#ifndef RUN_HEADER_ONLY
#ifndef LANES /* the file includes itself for the vectors of section 5 */

/* ---- 2. platform: no other section asks which operating system this is -----------------------
 * In order: headers, threads (OpenMP), what compilers call things, how threads wait and how many
 * there are, denormal numbers, ARM features, memory, clock; then two lists of the same functions,
 * for POSIX and for systems that have C and no more: files and folders, the terminal, signals.
 * Nothing here writes a sentence; a function that fails says why in errno. */
#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__unix__) || defined(__APPLE__)
#define HAVE_POSIX 1
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <termios.h>
#include <unistd.h>
#endif

/* PARALLEL_FOR(n) before a loop spreads its rounds over n threads in equal pieces. PARALLEL_TASKS
 * is for rounds of unequal length: a thread that is done takes the next one. Without OpenMP the
 * loop is an ordinary loop. */
#ifdef _OPENMP
#include <omp.h>
#define PRAGMA(text) _Pragma(#text)
#define PARALLEL_FOR(n_threads) \
    PRAGMA(omp parallel for schedule(static) num_threads(n_threads) if ((n_threads) > 1))
#define PARALLEL_TASKS(n_threads) \
    PRAGMA(omp parallel for schedule(dynamic) num_threads(n_threads) if ((n_threads) > 1))
#define THREAD_ID omp_get_thread_num()
#define ALL_THREADS omp_get_max_threads()
#else
#define PARALLEL_FOR(n_threads) (void)(n_threads);
#define PARALLEL_TASKS(n_threads) (void)(n_threads);
#define THREAD_ID 0
#define ALL_THREADS 1
#endif

/* Words that compilers spell differently. UNROLL, UNROLL8 and UNROLL16 before a loop of up to 4, 8
 * or 16 rounds ask for straight-line code, so that an array indexed by the loop's variable stays in
 * registers. */
#if defined(__GNUC__)
#define PRINTF_LIKE(fmt, args) __attribute__((format(printf, fmt, args)))
#define INLINE static inline __attribute__((always_inline))
#define LIKELY_UNUSED __attribute__((unused))
#define NOINLINE __attribute__((noinline))
#define PREFETCH(p) __builtin_prefetch(p)
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#define UNROLL8 _Pragma("unroll")
#define UNROLL16 _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 4")
#define UNROLL8 _Pragma("GCC unroll 8")
#define UNROLL16 _Pragma("GCC unroll 16")
#endif
#else
#define PRINTF_LIKE(fmt, args)
#define INLINE static inline
#define NOINLINE
#define LIKELY_UNUSED
#define PREFETCH(p) (void)0
#endif

/* Does a debugger, strace or valgrind follow this process? */
LIKELY_UNUSED static int is_watched(void) {
    const char *preload = getenv("LD_PRELOAD"); /* how valgrind gets in */
    char line[256];
    long tracer = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && !tracer && fgets(line, sizeof line, f))
        if (sscanf(line, "TracerPid: %ld", &tracer) != 1) tracer = 0;
    if (f) fclose(f);
    return tracer || (preload && strstr(preload, "vgpreload"));
}

/* OpenMP threads that wait for each other spin, and on a machine that has other work to do they
 * then take the processor from the very thread they wait for: everything takes ten times as long.
 * The runtime reads how long to spin before main begins, so the program sets it and starts itself
 * again, once; not while somebody watches, who would lose it. For programs, not for a library. */
LIKELY_UNUSED static void spin_briefly(char **argv) {
#if defined(_OPENMP) && defined(__linux__)
    if (getenv("GOMP_SPINCOUNT") || getenv("OMP_WAIT_POLICY") || getenv("KMP_BLOCKTIME")) return;
    if (is_watched()) return;
    if (!setenv("GOMP_SPINCOUNT", "2000", 1) && !setenv("KMP_BLOCKTIME", "0", 1))
        execv("/proc/self/exe", argv);
#endif
    (void)argv;
}

/* Threads, when nobody says how many: one per core and no more than OpenMP would start. Two threads
 * on one core share the units that multiply, which one keeps busy. A file lists the processors that
 * are threads of the same core ("0,4" or "0-1"); each core is counted at its first. */
static int default_threads(void) {
    int cores = 0, all = ALL_THREADS;
#if defined(_OPENMP) && defined(__linux__)
    const long end = getenv("OMP_NUM_THREADS") ? 0 : sysconf(_SC_NPROCESSORS_CONF);
    for (long cpu = 0; cpu < end; cpu++) {
        char path[96];
        long first = -1;
        snprintf(path, sizeof path,
                 "/sys/devices/system/cpu/cpu%ld/topology/thread_siblings_list", cpu);
        FILE *f = fopen(path, "r");
        if (f && fscanf(f, "%ld", &first) == 1) cores += first == cpu;
        if (f) fclose(f);
    }
#endif
    return cores && cores < all ? cores : all;
}

/* A state that only decays reaches denormal numbers, on which many processors crawl. The recurrence
 * (and nothing else) runs with them flushed to zero, on the thread that does the work; the host's
 * mode is put back right after. The bits set: 0x8040 is flush-to-zero and denormals-are-zero of
 * x86, bit 24 is flush-to-zero of ARM. */
#if defined(__SSE2__)
#include <xmmintrin.h>
#define FLUSH_DENORMALS unsigned csr_ = _mm_getcsr(); _mm_setcsr(csr_ | 0x8040)
#define RESTORE_DENORMALS _mm_setcsr(csr_)
#elif defined(__aarch64__) && defined(__GNUC__)
#define FLUSH_DENORMALS \
    uint64_t fpcr_, on_; \
    __asm__ volatile("mrs %0, fpcr" : "=r"(fpcr_)); \
    on_ = fpcr_ | 1u << 24; \
    __asm__ volatile("msr fpcr, %0" :: "r"(on_))
#define RESTORE_DENORMALS __asm__ volatile("msr fpcr, %0" :: "r"(fpcr_))
#else
#define FLUSH_DENORMALS (void)0
#define RESTORE_DENORMALS (void)0
#endif

#if defined(__GNUC__) && !defined(RUN_SCALAR)
#define HAVE_VECTORS /* of the compiler; section 5 is a few scalar functions otherwise */
#endif

/* What an ARM processor has beyond its baseline: sdot (products of bytes) and smmla (small matrices
 * of them). */
#if defined(__aarch64__) && defined(HAVE_VECTORS)
#if defined(__linux__)
#include <sys/auxv.h>
static int arm_has_dotprod(void) { return getauxval(AT_HWCAP) >> 20 & 1; }
static int arm_has_i8mm(void) { return getauxval(AT_HWCAP2) >> 13 & 1; }
#elif defined(__APPLE__)
#include <sys/sysctl.h>
static int arm_has(const char *feature) {
    int has = 0;
    size_t n = sizeof has;
    return !sysctlbyname(feature, &has, &n, NULL, 0) && has;
}
static int arm_has_dotprod(void) { return arm_has("hw.optional.arm.FEAT_DotProd"); }
static int arm_has_i8mm(void) { return arm_has("hw.optional.arm.FEAT_I8MM"); }
#else
static int arm_has_dotprod(void) { return 0; }
static int arm_has_i8mm(void) { return 0; }
#endif
#endif

/* The two macros through which the library's memory comes and goes; a host may define its own. (The
 * command line uses malloc.) */
#ifndef GLA_CALLOC
#define GLA_CALLOC(n) zero_pages(n)
#define GLA_FREE(p) free(p)
#endif

/* n zeroed bytes. Megabytes are asked for in large pages, where the system has such: to get them 4
 * KB at a time costs more than filling them. The request is a hint, for the whole pages of 4 KB
 * inside; a system whose pages are larger refuses it, which does no harm. */
LIKELY_UNUSED static void *zero_pages(size_t n) {
    char *p = calloc(1, n);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t page = 4096, from = ((uintptr_t)p + page - 1) & ~(page - 1);
    if (p && n >= (size_t)2 << 20)
        (void)madvise((void *)from, ((uintptr_t)p + n - from) & ~(page - 1), MADV_HUGEPAGE);
#endif
    return p;
}

LIKELY_UNUSED static double now_s(void) { /* seconds on a clock that never steps back */
    struct timespec t;
#ifdef CLOCK_MONOTONIC
    clock_gettime(CLOCK_MONOTONIC, &t);
#else
    timespec_get(&t, TIME_UTC);
#endif
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

LIKELY_UNUSED static uint64_t resident_bytes(void) { /* 0 when the system does not say */
#if defined(__linux__)
    unsigned long long total = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f) {
        if (fscanf(f, "%llu %llu", &total, &resident) != 2) resident = 0;
        fclose(f);
    }
    return resident * (uint64_t)sysconf(_SC_PAGESIZE);
#elif defined(HAVE_POSIX)
    struct rusage u;
    return getrusage(RUSAGE_SELF, &u) ? 0 : (uint64_t)u.ru_maxrss;
#else
    return 0;
#endif
}

/* What stands in a folder. is_file: a regular one, no link; changed: when, in seconds since 1970. */
typedef struct {
    const char *name, *path; /* without the folder, and with it */
    int is_file, is_folder;
    uint64_t bytes;
    double changed;
} Entry;
typedef int (*EachEntry)(void *user, const Entry *e); /* not 0: that was the last one */

enum { PATH_LEN = 4096 };

#ifdef HAVE_POSIX
enum { HAVE_FOLDERS = 1 };

/* -- files: NULL or something other than 0 is a failure -- */

static const char *kind_of_file(mode_t mode) { /* NULL: a regular one */
    if (S_ISREG(mode)) return NULL;
    if (S_ISDIR(mode)) return "a folder";
    if (S_ISFIFO(mode)) return "a pipe";
    if (S_ISSOCK(mode)) return "a socket";
    return S_ISLNK(mode) ? "a link" : "a device";
}
static const char *file_kind(const char *path) { /* NULL: a regular one, or none */
    struct stat st;
    return stat(path, &st) ? NULL : kind_of_file(st.st_mode);
}

/* Opens a file of which every byte is there, and says how many: a pipe, a device or a folder is
 * named in *kind, and never waited for. follow: the name may be a symbolic link. */
static FILE *open_to_read(const char *path, int follow, uint64_t *n, const char **kind) {
    const int flags = O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC | (follow ? 0 : O_NOFOLLOW);
    struct stat st;
    FILE *f = NULL;
    *kind = NULL;
    if ((follow ? stat : lstat)(path, &st)) return NULL; /* first: some devices act on being opened */
    if ((*kind = kind_of_file(st.st_mode))) return NULL;
    const int fd = open(path, flags);
    if (fd < 0) return NULL;
    if (!fstat(fd, &st) && !(*kind = kind_of_file(st.st_mode))) f = fdopen(fd, "rb");
    if (!f) close(fd);
    *n = (uint64_t)st.st_size;
    return f;
}

/* Opens a text, which may also come from a pipe. A pipe to which nobody writes is given two
 * seconds, in case its writer is starting; then errno is 0. */
LIKELY_UNUSED static FILE *open_to_read_on(const char *path) {
    struct stat st;
    if (stat(path, &st) || !S_ISFIFO(st.st_mode)) return fopen(path, "rb");
    const int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0) return NULL;
    unsigned char first = 0;
    ssize_t got = 0;
    for (int tries = 0; !got && tries < 40; tries++) {
        if (tries) poll(NULL, 0, 50);
        got = read(fd, &first, 1);
    }
    const int nothing = !got || (got < 0 && errno != EAGAIN);
    FILE *f = NULL;
    if (!nothing) {
        (void)!fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
        f = fdopen(fd, "rb");
    }
    if (f && got > 0) ungetc(first, f);
    if (!f) close(fd);
    if (nothing) errno = 0;
    return f;
}

/* The n bytes of a file in memory, which the system reads as they are touched. */
static const uint8_t *map_pages(FILE *f, size_t n) {
    void *p = mmap(NULL, n, PROT_READ, MAP_SHARED, fileno(f), 0);
    return p == MAP_FAILED ? NULL : p;
}
static void unmap_pages(const uint8_t *p, size_t n) { munmap((void *)(uintptr_t)p, n); }

/* A new file to write, which no other program opened, and locked. errno is EEXIST when the name is
 * taken. like: a file, perhaps, whose permissions it gets, so that what is private stays private. */
static FILE *create_file(const char *path, const char *like) {
    struct stat mine, old;
    FILE *f = NULL;
    const int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (fd < 0) return NULL;
    /* a program that cleans up may have been faster: then the file is locked, or gone */
    const int taken = (flock(fd, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK)
                      || fstat(fd, &mine) || !mine.st_nlink;
    if (!taken && !stat(like, &old)) (void)!fchmod(fd, old.st_mode & 0777);
    if (!taken) f = fdopen(fd, "wb");
    if (f) return f;
    const int why = taken ? EEXIST : errno;
    remove(path);
    close(fd);
    errno = why;
    return NULL;
}

/* Closes f, which takes the place of `path` if all of it reached the disk, and is removed if not. */
static int put_in_place(FILE *f, const char *name, const char *path) {
    const int bad = fflush(f) || ferror(f) || fsync(fileno(f)) || rename(name, path);
    const int why = errno;
    if (bad) remove(name);
    fclose(f); /* it was locked until now */
    errno = why;
    return bad;
}

static int is_there(const char *path) { /* anything of this name, a link that leads nowhere too */
    struct stat st;
    return !lstat(path, &st);
}
static int is_protected(const char *path) { return access(path, W_OK) && errno != ENOENT; }

/* Do both names lead to one file or folder that is there? */
static int same_place(const char *a, const char *b) {
    struct stat x, y;
    return !stat(a, &x) && !stat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* Removes f under this name, unless another file has the name by now. 0: it is gone. */
static int remove_open(FILE *f, const char *path) {
    struct stat x, y;
    if (fstat(fileno(f), &x) || lstat(path, &y)) return 0;
    if (x.st_dev != y.st_dev || x.st_ino != y.st_ino) return 0;
    return remove(path) && errno != ENOENT;
}

/* A temporary file without a lock was left by a program that was killed. */
static int is_abandoned(FILE *f) { return !flock(fileno(f), LOCK_EX | LOCK_NB); }
static void touch_file(FILE *f) { (void)!futimens(fileno(f), NULL); } /* changed now */
static int make_directory(const char *path) { return mkdir(path, 0777) && errno != EEXIST; }

static int each_entry(const char *folder, EachEntry each, void *user) {
    char path[PATH_LEN];
    DIR *d = opendir(folder);
    int end = 0;
    if (!d) return -1;
    for (struct dirent *e; !end && (e = readdir(d));) {
        struct stat st, to;
        if (snprintf(path, sizeof path, "%s/%s", folder, e->d_name) >= (int)sizeof path) continue;
        if (lstat(path, &st) || stat(path, &to)) continue;
#ifdef __APPLE__
        const struct timespec t = st.st_mtimespec;
#else
        const struct timespec t = st.st_mtim;
#endif
        end = each(user, &(Entry){e->d_name, path, S_ISREG(st.st_mode), S_ISDIR(to.st_mode),
                                  (uint64_t)st.st_size, (double)t.tv_sec + 1e-9 * (double)t.tv_nsec});
    }
    closedir(d);
    return 0;
}

static const struct tm *local_time(const time_t *now, struct tm *room) {
    return localtime_r(now, room);
}

/* -- the terminal -- */

/* While a line is edited every key arrives at once and by itself; in between (running) Ctrl-C is a
 * signal again, and what is typed waits unseen for the next line. Nothing that was typed is thrown
 * away at a change. */
typedef struct { struct termios normal; int changed; } Terminal;
LIKELY_UNUSED static int is_terminal(FILE *f) { return isatty(fileno(f)); }
LIKELY_UNUSED static int terminal_width(void) {
    struct winsize w;
    return !ioctl(STDERR_FILENO, TIOCGWINSZ, &w) && w.ws_col > 8 ? w.ws_col : 80;
}
LIKELY_UNUSED static int terminal_keys(Terminal *t, int running) { /* 0: done */
    if (!t->changed && tcgetattr(STDIN_FILENO, &t->normal)) return -1;
    struct termios now = t->normal;
    now.c_iflag &= ~(tcflag_t)(ICRNL | INLCR | IGNCR | IXON);
    now.c_lflag &= ~(tcflag_t)(ICANON | ECHO | IEXTEN);
    if (!running) now.c_lflag &= ~(tcflag_t)ISIG;
    now.c_lflag |= NOFLSH;
    now.c_cc[VMIN] = 1;
    now.c_cc[VTIME] = 0;
    t->changed = 1;
    /* pasted text comes marked as such, also while an answer is given */
    if (!running) (void)!write(STDERR_FILENO, "\033[?2004h", 8);
    return tcsetattr(STDIN_FILENO, TCSADRAIN, &now);
}
/* What was typed or pasted and not read was not meant for the shell. */
LIKELY_UNUSED static void terminal_normal(Terminal *t) {
    if (!t->changed) return;
    (void)!write(STDERR_FILENO, "\033[?2004l", 8);
    tcsetattr(STDIN_FILENO, TCSAFLUSH, &t->normal);
    t->changed = 0;
}
/* A byte; -1: the end, or a signal; -2: none in time. */
LIKELY_UNUSED static int read_key(int wait_ms) {
    unsigned char b;
    struct pollfd p = {STDIN_FILENO, POLLIN, 0};
    int ready = poll(&p, 1, wait_ms);
    if (ready <= 0) return ready ? -1 : -2;
    return read(STDIN_FILENO, &b, 1) == 1 ? b : -1;
}
/* Writes to the terminal from a signal handler. */
LIKELY_UNUSED static void write_now(const char *text, size_t n) {
    const int before = errno;
    (void)!write(STDERR_FILENO, text, n); /* when it fails, nobody is there to be told */
    errno = before;
}
/* Has the program that reads standard output gone away, as head does? */
LIKELY_UNUSED static int reader_left(void) {
    struct pollfd p = {STDOUT_FILENO, POLLOUT, 0};
    return poll(&p, 1, 0) == 1 && p.revents & (POLLERR | POLLHUP);
}
/* Is standard input a pipe or a redirected file? */
LIKELY_UNUSED static int stdin_is_pipe(void) {
    struct stat st;
    return !fstat(STDIN_FILENO, &st) && (S_ISFIFO(st.st_mode) || S_ISREG(st.st_mode));
}

/* -- signals: for programs, not for a library -- */

static void on_signal(int sig, void (*handler)(int), int flags) {
    struct sigaction a;
    memset(&a, 0, sizeof a);
    a.sa_handler = handler;
    a.sa_flags = flags;
    sigaction(sig, &a, NULL);
}
/* Ctrl-C, a polite end, and a terminal that is gone; nohup asks to go on then. */
LIKELY_UNUSED static void on_end_signals(void (*handler)(int)) {
    struct sigaction hup;
    on_signal(SIGINT, handler, 0);
    on_signal(SIGTERM, handler, 0);
    if (sigaction(SIGHUP, NULL, &hup) || hup.sa_handler != SIG_IGN) on_signal(SIGHUP, handler, 0);
}
/* A reader that went away and a file that may not grow are failed writes, and end no program. */
LIKELY_UNUSED static void failed_writes_only_fail(void) {
    on_signal(SIGPIPE, SIG_IGN, 0);
    on_signal(SIGXFSZ, SIG_IGN, 0);
}
/* A file that shrinks while it is mapped, or a disk that fails, is the signal SIGBUS where its
 * pages are touched. The handler ends the program with end_at_once. */
LIKELY_UNUSED static void on_lost_pages(void (*handler)(int)) { on_signal(SIGBUS, handler, 0); }

/* Calls tick every second from a signal handler; NULL ends that. */
LIKELY_UNUSED static void every_second(void (*tick)(int)) {
    const struct itimerval each = {{tick != NULL, 0}, {tick != NULL, 0}};
    if (!tick) setitimer(ITIMER_REAL, &each, NULL);
    on_signal(SIGALRM, tick ? tick : SIG_IGN, SA_RESTART);
    if (tick) setitimer(ITIMER_REAL, &each, NULL);
}
/* When its handler returns, the signal ends the program as if nobody had caught it. No unfinished
 * file (or NULL) is left. */
LIKELY_UNUSED static void end_by_signal(int sig, const char *unfinished) {
    if (unfinished && *unfinished) unlink(unfinished);
    signal(sig, SIG_DFL);
    raise(sig);
}
/* Ends the program within a signal handler: the sentence, the terminal as it was, no unfinished
 * file (or NULL). Of several threads that find pages missing, the first one ends it. */
LIKELY_UNUSED static void end_at_once(const char *sentence, const Terminal *t,
                                      const char *unfinished) {
    static atomic_flag ending = ATOMIC_FLAG_INIT;
    while (atomic_flag_test_and_set(&ending)) pause();
    if (t && t->changed) {
        (void)!write(STDERR_FILENO, "\033[0m\033[?2004l\r\n", 15);
        tcsetattr(STDIN_FILENO, TCSANOW, &t->normal);
    }
    (void)!write(STDERR_FILENO, sentence, strlen(sentence));
    if (unfinished && *unfinished) unlink(unfinished);
    _exit(1);
}

#else /* the same on a system that has C and no more */

enum { HAVE_FOLDERS = 0 };
static const char *file_kind(const char *path) { return (void)path, NULL; }
static FILE *open_to_read(const char *path, int follow, uint64_t *n, const char **kind) {
    FILE *f = fopen(path, "rb");
    const long size = f && !fseek(f, 0, SEEK_END) ? ftell(f) : -1;
    (void)follow;
    *kind = NULL;
    *n = (uint64_t)size;
    if (!f || (size >= 0 && !fseek(f, 0, SEEK_SET))) return f;
    fclose(f);
    return NULL;
}
LIKELY_UNUSED static FILE *open_to_read_on(const char *path) { return fopen(path, "rb"); }
static void unmap_pages(const uint8_t *p, size_t n) { (void)n, GLA_FREE((void *)(uintptr_t)p); }
static const uint8_t *map_pages(FILE *f, size_t n) {
    uint8_t *p = GLA_CALLOC(n);
    if (!p || fread(p, 1, n, f) == n) return p;
    unmap_pages(p, n);
    return NULL;
}
static FILE *create_file(const char *path, const char *like) { return (void)like, fopen(path, "wbx"); }
static int put_in_place(FILE *f, const char *name, const char *path) {
    const int bad = ferror(f);
    if (!fclose(f) && !bad && (remove(path), !rename(name, path))) return 0;
    return remove(name), -1;
}
static int is_there(const char *path) {
    FILE *f = fopen(path, "rb");
    if (f) fclose(f);
    return f != NULL;
}
static int is_protected(const char *path) { return (void)path, 0; }
static int same_place(const char *a, const char *b) { return !strcmp(a, b); }
static int remove_open(FILE *f, const char *path) { return (void)f, remove(path); }
static int is_abandoned(FILE *f) { return (void)f, 0; }
static void touch_file(FILE *f) { (void)f; }
static int make_directory(const char *path) { return (void)path, -1; }
static int each_entry(const char *folder, EachEntry each, void *user) {
    return (void)folder, (void)each, (void)user, -1;
}
static const struct tm *local_time(const time_t *now, struct tm *room) {
    return (void)room, localtime(now);
}

typedef struct { int changed; } Terminal;
LIKELY_UNUSED static int is_terminal(FILE *f) { return (void)f, 0; }
LIKELY_UNUSED static int terminal_width(void) { return 80; }
LIKELY_UNUSED static int terminal_keys(Terminal *t, int on) { return (void)t, (void)on, -1; }
LIKELY_UNUSED static void terminal_normal(Terminal *t) { (void)t; }
LIKELY_UNUSED static int read_key(int wait_ms) { return (void)wait_ms, -1; }
LIKELY_UNUSED static void write_now(const char *text, size_t n) { (void)text, (void)n; }
LIKELY_UNUSED static int reader_left(void) { return 0; }
LIKELY_UNUSED static int stdin_is_pipe(void) { return 0; }

LIKELY_UNUSED static void on_end_signals(void (*handler)(int)) { signal(SIGINT, handler); }
LIKELY_UNUSED static void failed_writes_only_fail(void) {}
LIKELY_UNUSED static void on_lost_pages(void (*handler)(int)) { (void)handler; }
LIKELY_UNUSED static void every_second(void (*tick)(int)) { (void)tick; }
LIKELY_UNUSED static void end_by_signal(int sig, const char *unfinished) {
    (void)unfinished;
    signal(sig, SIG_DFL);
    raise(sig);
}
LIKELY_UNUSED static void end_at_once(const char *sentence, const Terminal *t,
                                      const char *unfinished) {
    (void)sentence, (void)t, (void)unfinished;
}
#endif

/* ---- 3. characters, errors, files, arena: what is shown, said, kept and laid out ------------- */

/* Characters. A byte that is not UTF-8 reads as BAD_BYTE + byte, and is written as that byte. */
enum { BAD_BYTE = 0x110000 };

static uint32_t utf8_read(const char *text, size_t n, size_t *len) { /* n > 0; *len: bytes taken */
    const uint8_t *s = (const uint8_t *)text;
    int more = s[0] < 0x80 ? 0 : s[0] < 0xC2 ? -1 : s[0] < 0xE0 ? 1
             : s[0] < 0xF0 ? 2 : s[0] < 0xF5 ? 3 : -1;
    uint32_t c = more > 0 ? s[0] & (0x3F >> more) : s[0];
    *len = 1;
    if (more < 0 || (size_t)more >= n) return BAD_BYTE + s[0];
    for (int i = 1; i <= more; i++) {
        if ((s[i] & 0xC0) != 0x80) return BAD_BYTE + s[0];
        c = c << 6 | (s[i] & 0x3F);
    }
    /* longer than needed, half of a surrogate pair, or past the end */
    if ((more == 2 && (c < 0x800 || c - 0xD800 < 0x800))
        || (more == 3 && (c < 0x10000 || c >= BAD_BYTE))) return BAD_BYTE + s[0];
    *len = (size_t)more + 1;
    return c;
}

static size_t utf8_write(char *out, uint32_t c) { /* out: room for 4 bytes */
    if (c < 0x80 || c >= BAD_BYTE) { out[0] = (char)c; return 1; }
    int more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    out[0] = (char)(0xFF00 >> (more + 1) | c >> 6 * more);
    for (int i = 1; i <= more; i++) out[i] = (char)(0x80 | (c >> 6 * (more - i) & 0x3F));
    return (size_t)more + 1;
}

/* The character at s as any screen may have it, into out; returns its length there. *len: bytes
 * taken. What would command a terminal or end a line stands as ^[ or <U+009B>, a byte that is not
 * UTF-8 as <9B>. */
enum { VISIBLE = 12 };
static size_t visible(char out[VISIBLE], const char *s, size_t n, size_t *len) {
    const uint32_t c = utf8_read(s, n, len);
    if (c < 32 || c == 127) return (size_t)snprintf(out, VISIBLE, "^%c", (int)(c ^ 64));
    if (c >= BAD_BYTE) return (size_t)snprintf(out, VISIBLE, "<%02X>", (unsigned)(c - BAD_BYTE));
    if ((c >= 0x80 && c < 0xA0) || c == 0x2028 || c == 0x2029)
        return (size_t)snprintf(out, VISIBLE, "<U+%04X>", (unsigned)c);
    memcpy(out, s, *len);
    return *len;
}

/* Text that somebody else made: to a terminal as visible() has it, except for ends of lines and
 * tabs; to anything else as it is. 0: done. */
LIKELY_UNUSED static int write_text(FILE *f, const char *s, size_t n) {
    if (!is_terminal(f)) return fwrite(s, 1, n, f) != n;
    for (size_t at = 0, len = 1; at < n; at += len) {
        char out[VISIBLE];
        size_t width = visible(out, s + at, n - at, &len);
        if (s[at] == '\n' || s[at] == '\t') out[0] = s[at], width = 1;
        if (fwrite(out, 1, width, f) != width) return -1;
    }
    return 0;
}

static void *gla_alloc(size_t n) { return GLA_CALLOC(n ? n : 1); } /* zeroed; NULL: there is none */
static void gla_free(void *p) { GLA_FREE(p); }

/* A sentence too long for err loses its middle, which is part of a name. Names from files may hold
 * anything: a character that is no text stands as a question mark. */
PRINTF_LIKE(3, 4) static int fail(char *err, int code, const char *fmt, ...) {
    enum { HEAD = GLA_ERR / 2, TAIL = GLA_ERR - HEAD - 4 };
    char brief[2 * GLA_ERR], *whole = brief;
    va_list ap;
    if (!err) return code;
    va_start(ap, fmt);
    size_t n = (size_t)vsnprintf(brief, sizeof brief, fmt, ap);
    va_end(ap);
    if (n >= sizeof brief && (whole = gla_alloc(n + 1))) {
        va_start(ap, fmt);
        vsnprintf(whole, n + 1, fmt, ap);
        va_end(ap);
    }
    if (!whole) whole = brief, n = sizeof brief - 1;
    if (n >= GLA_ERR) {
        memcpy(whole + HEAD, "...", 3);
        memmove(whole + HEAD + 3, whole + n - TAIL, TAIL);
        n = HEAD + 3 + TAIL;
    }
    for (size_t at = 0, len, width; at < n; at += len, err += width) {
        char out[VISIBLE];
        width = visible(out, whole + at, n - at, &len);
        if (width != len || memcmp(out, whole + at, len)) out[0] = '?', width = 1;
        memcpy(err, out, width);
    }
    *err = 0;
    if (whole != brief) gla_free(whole);
    return code;
}

/* The date here and now, as strftime writes it; 0: a format that not every system knows. */
LIKELY_UNUSED static int local_date(char *out, size_t cap, const char *format, size_t n) {
    char f[64];
    const time_t now = time(NULL);
    struct tm here; /* of this thread */
    const struct tm *t = local_time(&now, &here);
    if (!t || !n || n >= sizeof f) return 0;
    for (size_t i = 0; i < n; i++)
        if (format[i] == '%' && (++i >= n || !strchr("aAbBdHIjmMpSyY%", format[i]))) return 0;
    memcpy(f, format, n);
    f[n] = 0;
    return strftime(out, cap, f, t) != 0;
}

/* -- files that are read -- */

static int cannot(const char *what, const char *path, char *err) {
    return fail(err, GLA_IO, "%s: cannot %s: %s", path, what, strerror(errno));
}

/* A file of which every byte is there, n of them. follow: the name may be a symbolic link. */
static FILE *open_regular(const char *path, int follow, uint64_t *n, char *err) {
    const char *kind;
    FILE *f = open_to_read(path, follow, n, &kind);
    if (kind) fail(err, GLA_IO, "%s: %s; expected a regular file", path, kind);
    else if (!f) cannot("open", path, err);
    return f;
}

LIKELY_UNUSED static FILE *open_text(const char *path, char *err) { /* may come from a pipe */
    FILE *f = open_to_read_on(path);
    if (f) return f;
    if (errno) cannot("open", path, err);
    else fail(err, GLA_IO, "%s: a pipe that is empty, or to which nothing writes", path);
    return NULL;
}

/* A file read-only in memory: the weights are used where they lie. mapped: not the caller's. */
typedef struct { const uint8_t *data; size_t n; int mapped; } Mapping;

static int map_file(Mapping *map, const char *path, char *err) {
    uint64_t n;
    FILE *f = open_regular(path, 1, &n, err);
    if (!f) return GLA_IO;
    const int fits = n >= 24 && n <= SIZE_MAX / 2;
    const uint8_t *p = fits ? map_pages(f, (size_t)n) : NULL;
    const int code = p || !fits ? GLA_OK : cannot("map", path, err);
    fclose(f);
    if (n < 24)
        return fail(err, GLA_FORMAT, "%s: %d bytes are too few for a GGUF file", path, (int)n);
    if (!fits) return fail(err, GLA_MEMORY, "%s: too large for this system", path);
    if (!code) *map = (Mapping){p, (size_t)n, 1};
    return code;
}

static void unmap_file(Mapping *map) {
    if (map->mapped) unmap_pages(map->data, map->n);
    *map = (Mapping){0};
}

/* -- files that are written --
 * A file is written under a temporary name beside it, and takes the real name when every byte has
 * reached the disk: the old file stays whole until then. This is how, for every file that is written:
 *     Temporary temporary;
 *     FILE *f = open_temporary(temporary, path, err);
 *     if (!f) return GLA_IO;
 *     fwrite(...);                                     failures are seen at the end
 *     return commit_file(f, temporary, path, err);     or drop_file(f, temporary, code)
 * The temporary name is PATH.DIGITS.tmp with 16 hexadecimal digits that nobody can guess; a file that
 * has the name already is another's and is not opened. It is locked while it is written: one that is
 * not locked was left by a program that was killed. */
typedef char Temporary[PATH_LEN + 32];

static uint64_t unguessable(void) { /* where there are no random numbers, create_file has to do */
    uint64_t r = (uint64_t)(now_s() * 1e9) ^ (uint64_t)(uintptr_t)&r << 20, bits;
    FILE *f = fopen("/dev/urandom", "rb");
    if (f && fread(&bits, sizeof bits, 1, f) == 1) r = bits;
    if (f) fclose(f);
    return r;
}

static const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* Is path new, or a file that may be replaced: no device, pipe or folder, and not
 * write-protected? */
static int may_replace(const char *path, char *err) {
    const char *kind;
    if (!*base_name(path)) return fail(err, GLA_INPUT, "\"%s\" is not the name of a file", path);
    if (strlen(path) >= PATH_LEN) return fail(err, GLA_INPUT, "%s: the name is too long", path);
    if ((kind = file_kind(path)))
        return fail(err, GLA_IO, "%s: %s; only a regular file is replaced", path, kind);
    return is_protected(path) ? cannot("write", path, err) : GLA_OK;
}

/* Opens a new file to take the place of path; its name is left in temporary. NULL on failure. */
static FILE *open_temporary(Temporary temporary, const char *path, char *err) {
    const char *base = base_name(path);
    int keep = strlen(base) < 100 ? (int)strlen(base) : 100; /* a system has a limit for names */
    FILE *f = NULL;
    *temporary = 0;
    if (may_replace(path, err)) return NULL;
    while (keep && ((unsigned char)base[keep] & 0xC0) == 0x80) keep--; /* no half of a character */
    for (int tries = 0; !f && tries < 100; tries++) {
        snprintf(temporary, sizeof(Temporary), "%.*s.%016llx.tmp", (int)(base - path) + keep, path,
                 (unsigned long long)unguessable());
        f = create_file(temporary, path);
        if (!f && errno != EEXIST) break;
    }
    if (!f) cannot("write", path, err);
    return f;
}

static int drop_file(FILE *f, const char *temporary, int code) { /* nothing is kept; returns code */
    remove(temporary);
    fclose(f);
    return code;
}

/* What was written to f takes the place of path. On failure the old file is untouched and the
 * temporary one is gone. */
static int commit_file(FILE *f, const char *temporary, const char *path, char *err) {
    return put_in_place(f, temporary, path) ? cannot("write", path, err) : GLA_OK;
}

/* A name that no file has, made from one that is taken: x-2.bin from x.bin. path: PATH_LEN bytes.
 * 0: done. */
LIKELY_UNUSED static int free_name(char *path) {
    char first[PATH_LEN];
    snprintf(first, sizeof first, "%s", path);
    const char *base = base_name(first), *dot = strrchr(base, '.');
    const size_t stem = dot && dot > base ? (size_t)(dot - first) : strlen(first);
    for (int n = 2; n < 10000; n++) {
        const int len = snprintf(path, PATH_LEN, "%.*s-%d%s", (int)stem, first, n, first + stem);
        if (len >= PATH_LEN) return -1;
        if (!is_there(path)) return 0;
    }
    return -1;
}

/* The same, but nothing is replaced: when path is taken, the file gets a free name, which is left
 * in path (PATH_LEN bytes). The name is taken by an empty file of ours first, which only one
 * program can make. */
LIKELY_UNUSED static int commit_new(FILE *f, const char *temporary, char *path, char *err) {
    FILE *ours;
    while (!(ours = create_file(path, path)))
        if (errno != EEXIST || free_name(path))
            return drop_file(f, temporary, cannot("write", path, err));
    fclose(ours);
    const int code = commit_file(f, temporary, path, err);
    if (code) remove(path);
    return code;
}

/* Asks before hours of work whether path can be written at their end. */
LIKELY_UNUSED static int can_write(const char *path, char *err) {
    Temporary temporary;
    FILE *f = open_temporary(temporary, path, err);
    return f ? drop_file(f, temporary, GLA_OK) : GLA_IO;
}

/* Do both names lead to one file? An output must not be written over what is read. */
LIKELY_UNUSED static int same_file(const char *a, const char *b) {
    return same_place(a, b) && !file_kind(a);
}

/* Would two outputs have one place, where there may be nothing yet? */
LIKELY_UNUSED static int same_target(const char *a, const char *b) {
    char folder[2][PATH_LEN];
    if (!strcmp(a, b) || same_place(a, b)) return 1;
    if (strcmp(base_name(a), base_name(b))) return 0;
    for (int i = 0; i < 2; i++) {
        const char *path = i ? b : a;
        const int n = (int)(base_name(path) - path);
        snprintf(folder[i], PATH_LEN, "%.*s", n ? n : 1, n ? path : ".");
    }
    return same_place(folder[0], folder[1]);
}

/* -- folders -- */

static int no_folders(const char *path, char *err) {
    return fail(err, GLA_UNSUPPORTED, "%s: folders are not supported on this system", path);
}
static int make_folder(const char *path, char *err) { /* fine if it is there */
    if (!HAVE_FOLDERS) return no_folders(path, err);
    return make_directory(path) ? cannot("make a folder", path, err) : GLA_OK;
}
/* Calls each for what stands in a folder. One that is not there has nothing. */
static int read_folder(const char *folder, EachEntry each, void *user, char *err) {
    if (!HAVE_FOLDERS) return no_folders(folder, err);
    if (!each_entry(folder, each, user) || errno == ENOENT) return GLA_OK;
    return cannot("read as a folder", folder, err);
}

/* One block of memory, laid out by a function that is run twice: with base NULL it measures, then
 * it hands out. used: bytes so far; overflow: the pieces together are larger than a size_t can
 * count, so none of this may be used. */
typedef struct { char *base; size_t used; int overflow; } Arena;

enum { ALIGN = 64 }; /* bytes: a cache line */

static void *take_bytes(Arena *a, size_t n, size_t width) { /* n elements of width bytes */
    size_t at = a->used;
    if (width && n > (SIZE_MAX / 4 - at) / width) {
        a->overflow = 1;
        return NULL;
    }
    a->used = (at + n * width + ALIGN - 1) / ALIGN * ALIGN;
    return a->base ? a->base + at : NULL;
}
static float *take(Arena *a, size_t n) { return take_bytes(a, n, sizeof(float)); } /* n floats */

static void raise_to(size_t *most, size_t n) { if (n > *most) *most = n; }
static size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }
static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

typedef struct { const char *s; size_t n; } Str; /* bytes in the mapped file, not terminated */
static Str str_of(const char *s) { return (Str){s, strlen(s)}; }
static Str str_part(Str a, size_t from, size_t to) { return (Str){a.s + from, to - from}; }
static uint32_t char_at(Str a, size_t at, size_t *len) { /* at < a.n; *len: bytes taken */
    return utf8_read(a.s + at, a.n - at, len);
}
static int str_is(Str a, const char *b) { return a.n == strlen(b) && !memcmp(a.s, b, a.n); }

/* FNV-1a over words of 8 bytes, then bytes. */
static uint64_t hash_bytes(uint64_t h, const void *data, size_t n) {
    const uint8_t *p = data;
    uint64_t w;
    for (; n >= 8; n -= 8, p += 8) {
        memcpy(&w, p, 8);
        h = (h ^ w) * 0x100000001b3u;
        h ^= h >> 29;
    }
    for (; n; n--, p++) h = (h ^ *p) * 0x100000001b3u;
    return h ^ h >> 32;
}
#define HASH_SEED 0xcbf29ce484222325u

/* -- tables; arrays and text that grow; heaps -- */

/* A hash table: what is looked for lies elsewhere, under a number. */
typedef struct { uint32_t hash, value; } Slot;      /* value 0: free */
typedef struct { Slot *slots; size_t mask; } Table; /* mask: slots - 1; slots are a power of two */
enum { PROBES = 512 }; /* a table that needs more steps than this was built to be slow */

/* At most two thirds full with n entries; 0: no memory. */
static int table_init(Table *t, uint64_t n) {
    size_t slots = 16;
    while (slots / 3 * 2 < n) slots *= 2;
    t->mask = slots - 1;
    return (t->slots = gla_alloc(slots * sizeof *t->slots)) != NULL;
}

static size_t first_slot(uint64_t h) { return (size_t)((h ^ h >> 32) * 0x9E3779B97F4A7C15u >> 32); }

/* The slots where something of hash h may be, one after the other; *step starts at 0. The last
 * is a free one, where it belongs if it was in none before; or NULL, when the search takes too
 * long, which only a hostile file brings about. */
static Slot *table_next(const Table *t, uint64_t h, size_t *step) {
    for (size_t at = first_slot(h); *step < PROBES;) {
        Slot *slot = &t->slots[(at + (*step)++) & t->mask];
        if (!slot->value || slot->hash == (uint32_t)h) return slot;
    }
    return NULL;
}

/* Room for n entries in a table whose hashes are numbers of 32 bits; 0: no memory. */
static int table_room(Table *t, size_t n) {
    Table more;
    if (t->slots && t->mask / 3 * 2 >= n) return 1;
    if (!table_init(&more, 2 * n)) return 0;
    for (size_t i = 0, step; t->slots && i <= t->mask; i++) {
        Slot *to = t->slots[i].value ? table_next(&more, t->slots[i].hash, (step = 0, &step)) : NULL;
        while (to && to->value) to = table_next(&more, to->hash, &step);
        if (to) *to = t->slots[i];
    }
    gla_free(t->slots);
    *t = more;
    return 1;
}

/* Room for n > 0 more elements of width bytes behind the `used` ones of an array that has room for
 * *cap: the array, which may have moved; or NULL, where there is no memory and it stays. */
static void *grow(void *array, size_t used, size_t n, size_t *cap, size_t width) {
    if (n <= *cap - used) return array;
    if (n > SIZE_MAX / 4 / width - used) return NULL;
    const size_t to = used + n + used / 2 + 64;
    void *more = gla_alloc(to * width);
    if (!more) return NULL;
    if (used) memcpy(more, array, used * width);
    gla_free(array);
    *cap = to;
    return more;
}

/* Text that grows, with a 0 behind it. Without memory it stays as it is, and says so in the end. */
typedef struct { char *s; size_t n, cap; int bad; } Text;

LIKELY_UNUSED static void text_put(Text *t, const char *s, size_t n) {
    char *more = grow(t->s, t->n, n + 1, &t->cap, 1);
    if (!more) {
        t->bad = 1;
        return;
    }
    t->s = more;
    if (n) memcpy(t->s + t->n, s, n);
    t->s[t->n += n] = 0;
}
LIKELY_UNUSED static void text_puts(Text *t, const char *s) { text_put(t, s, strlen(s)); }
LIKELY_UNUSED static void text_free(Text *t) { gla_free(t->s); }

/* A heap of numbers, the smallest on top. Four children each: half the levels of a heap of two, and
 * children lie together. */
static void heap_push(uint64_t *heap, size_t *n, uint64_t key) {
    size_t i = (*n)++;
    for (; i && key < heap[(i - 1) / 4]; i = (i - 1) / 4) heap[i] = heap[(i - 1) / 4];
    heap[i] = key;
}

static void heap_sink(uint64_t *heap, size_t n, size_t i, uint64_t key) { /* i is free */
    for (size_t k; (k = 4 * i + 1) < n; i = k) {
        const size_t end = k + 4 < n ? k + 4 : n;
        for (size_t other = k + 1; other < end; other++)
            if (heap[other] < heap[k]) k = other;
        if (heap[k] >= key) break;
        heap[i] = heap[k];
    }
    heap[i] = key;
}
static uint64_t heap_pop(uint64_t *heap, size_t *n) {
    const uint64_t top = heap[0];
    --*n;
    heap_sink(heap, *n, 0, heap[*n]);
    return top;
}

/* Floats as unsigned integers in the same order, for a heap; -0 is 0. And back. */
static uint32_t float_order(float x) {
    uint32_t bits;
    x += 0.0f;
    memcpy(&bits, &x, 4);
    return bits >> 31 ? ~bits : bits | 1u << 31;
}
static float ordered_float(uint32_t bits) {
    float x;
    bits = bits >> 31 ? bits & ~(1u << 31) : ~bits;
    memcpy(&x, &bits, 4);
    return x;
}

/* -- words that were meant -- */

enum { WORD_LEN = 48 }; /* longer words are like no other */

/* Letters that are missing, extra, wrong, or swapped with their neighbour: the fewest that turn a
 * into b (optimal string alignment). Upper and lower case are the same letter. Of row i of the
 * table are kept: this one, and two before it. */
static int letters_off(const char *a, const char *b) {
    int rows[3][WORD_LEN + 1] = {{0}};
    const int n = (int)strlen(a), m = (int)strlen(b);
    if (n > WORD_LEN || m > WORD_LEN) return WORD_LEN;
    for (int j = 0; j <= m; j++) rows[0][j] = j;
    for (int i = 1; i <= n; i++) {
        int *now = rows[i % 3];
        const int *last = rows[(i + 2) % 3], *before = rows[(i + 1) % 3];
        now[0] = i;
        for (int j = 1; j <= m; j++) {
            const int same = (a[i - 1] | 32) == (b[j - 1] | 32);
            int best = last[j - 1] + !same;
            if (last[j] + 1 < best) best = last[j] + 1;
            if (now[j - 1] + 1 < best) best = now[j - 1] + 1;
            const int swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if (swapped && before[j - 2] + 1 < best) best = before[j - 2] + 1;
            now[j] = best;
        }
    }
    return rows[n % 3][m];
}

/* The word of a list, which NULL ends, that was probably meant by name: the one with the fewest
 * letters off, a third of them at most, else the first that begins with what was typed, else the
 * longest that it begins with. NULL: none is near. */
LIKELY_UNUSED static const char *nearest(const char *name, const char *const *list) {
    const size_t n = strlen(name);
    const char *found = NULL, *longer = NULL, *shorter = NULL;
    int best = n < 6 ? 2 : (int)n / 3 + 1; /* fewer than this */
    if (n > WORD_LEN || n < 2) return NULL;
    for (; *list; list++) {
        const size_t len = strlen(*list);
        const int off = letters_off(name, *list);
        if (off < best) best = off, found = *list;
        if (!longer && n > 2 && !strncmp(name, *list, n)) longer = *list;
        if (len > 2 && !strncmp(name, *list, len) && (!shorter || len > strlen(shorter)))
            shorter = *list;
    }
    return found && (best < 2 || !longer) ? found : longer ? longer : shorter;
}

/* ---- 4. formats: how numbers lie in a file ---------------------------------------------------------------
 * F32, F16 and BF16 are plain. Everything else is block-quantised: a row is a sequence of blocks, a block a few scales and
 * small integers. Whatever the packing, it means y = d q - m, with d and m constant over groups of 16 or 32, and q in int8.
 * Layouts are GGUF's, byte for byte; blocks are not aligned, so fields wider than a byte are read by memcpy. Little-endian hosts.
 *
 * Read unpack_q8_0 and unpack_q4_0 first, then row_to_float at the end: the other unpackers differ in where the bits lie. */

/* -- numbers of 16, 32 and 64 bits -- */

INLINE uint16_t read_u16(const uint8_t *p) { uint16_t v; memcpy(&v, p, 2); return v; }
INLINE uint32_t read_u32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return v; }
INLINE uint64_t read_u64(const uint8_t *p) { uint64_t v; memcpy(&v, p, 8); return v; }
INLINE float as_float(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
INLINE uint32_t as_bits(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }

INLINE float from_bf16(uint16_t h) { return as_float((uint32_t)h << 16); }
/* A float16 has 1 sign bit, 5 of exponent (bias 15), 10 of fraction; a float 1, 8 (bias 127) and 23. A normal number moves up by 13 bits
 * and its exponent grows by 127 - 15 = 112 (0x38000000); infinity and NaN, whose exponent is all ones, grow by twice that. Subnormals go
 * by way of an integer: the same bits as a float would be a denormal, which processors multiply slowly. */
INLINE float from_f16(uint16_t h) {
    uint32_t u = h & 0x7fff, e = h & 0x7c00, normal = (u << 13) + (e == 0x7c00 ? 0x70000000u : 0x38000000u);
    return as_float((e ? normal : as_bits((float)u * 0x1p-24f)) | (uint32_t)(h & 0x8000) << 16);
}
/* The nearest float16, ties to even, without a branch, so that loops over it vectorise. What is too large becomes the largest, 65504. */
INLINE uint16_t to_f16(float f) {
    uint32_t u = as_bits(f), a = u & 0x7fffffff, big = a < 0x477fe000 ? a : 0x477fe000; /* a = |f|; big: at most 65504 */
    /* below 2^-14 (0x38800000) adding 0.5 rounds to multiples of 2^-24, the steps of a subnormal float16 */
    uint32_t small = as_bits(as_float(a < 0x38800000 ? a : 0) + 0.5f) - as_bits(0.5f);
    uint32_t normal = (big - 0x38000000 + 0xfff + (big >> 13 & 1)) >> 13;
    uint32_t h = a > 0x7f800000 ? 0x7e00 : a < 0x38800000 ? small : normal; /* NaN stays NaN */
    return (uint16_t)(h | (u >> 16 & 0x8000));
}
INLINE float f16_at(const uint8_t *p) { return from_f16(read_u16(p)); }

/* -- types -- */

enum { /* ggml type ids */
    F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q2_K = 10, Q3_K = 11, Q4_K = 12, Q5_K = 13, Q6_K = 14,
    IQ4_NL = 20, IQ4_XS = 23, BF16 = 30, MXFP4 = 39, N_TYPES = 43
};

/* Every type a file may name, so that tensors which nobody asks for can be stepped over. elems, bytes: weights in a block, and what it
 * takes in the file; group: weights per scale, 1 for the plain types, 0 for types without code; min: groups have a minimum m as well. */
static const struct { const char *name; int elems, bytes, group, min; } types[N_TYPES] = {
    [F32] = {"F32", 1, 4, 1, 0},       [F16] = {"F16", 1, 2, 1, 0},        [BF16] = {"BF16", 1, 2, 1, 0},
    [Q4_0] = {"Q4_0", 32, 18, 32, 0},  [Q4_1] = {"Q4_1", 32, 20, 32, 1},   [Q5_0] = {"Q5_0", 32, 22, 32, 0},   [Q5_1] = {"Q5_1", 32, 24, 32, 1},
    [Q8_0] = {"Q8_0", 32, 34, 32, 0},  [IQ4_NL] = {"IQ4_NL", 32, 18, 32, 0}, [MXFP4] = {"MXFP4", 32, 17, 32, 0},
    [Q2_K] = {"Q2_K", 256, 84, 16, 1}, [Q3_K] = {"Q3_K", 256, 110, 16, 0}, [Q4_K] = {"Q4_K", 256, 144, 32, 1}, [Q5_K] = {"Q5_K", 256, 176, 32, 1},
    [Q6_K] = {"Q6_K", 256, 210, 16, 0}, [IQ4_XS] = {"IQ4_XS", 256, 136, 32, 0},
    [9] = {"Q8_1", 32, 36, 0, 0},      [15] = {"Q8_K", 256, 292, 0, 0},    [16] = {"IQ2_XXS", 256, 66, 0, 0},  [17] = {"IQ2_XS", 256, 74, 0, 0},
    [18] = {"IQ3_XXS", 256, 98, 0, 0}, [19] = {"IQ1_S", 256, 50, 0, 0},    [21] = {"IQ3_S", 256, 110, 0, 0},   [22] = {"IQ2_S", 256, 82, 0, 0},
    [24] = {"I8", 1, 1, 0, 0},         [25] = {"I16", 1, 2, 0, 0},         [26] = {"I32", 1, 4, 0, 0},         [27] = {"I64", 1, 8, 0, 0},
    [28] = {"F64", 1, 8, 0, 0},        [29] = {"IQ1_M", 256, 56, 0, 0},    [34] = {"TQ1_0", 256, 54, 0, 0},    [35] = {"TQ2_0", 256, 66, 0, 0},
    [40] = {"NVFP4", 64, 36, 0, 0},    [41] = {"Q1_0", 128, 18, 0, 0},     [42] = {"Q2_0", 64, 18, 0, 0},
};

/* What the four bits of a weight mean where they are not the number itself. */
static const int8_t iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static const int8_t mxfp4_doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12}; /* E2M1 x 2 */

/* -- unpackers --
 * unpack_TYPE(q, d, m, b, n): n <= 8 blocks of 32 weights at b, or one block of 256 (n is then not looked at), become integers q, a scale d
 * per group and, where the type has minimums, an m per group: y = d q - m. */

enum { SEGMENT = 256 }; /* weights unpacked at once */

/* The f16 at the head of each of n <= 8 blocks, `step` bytes apart, to 8 floats (0 beyond n). In vectors, it is from_f16 with eight
 * numbers at once and masks in place of its two choices. */
#if defined(__GNUC__)
typedef uint16_t H8 __attribute__((vector_size(16)));
typedef uint32_t U8 __attribute__((vector_size(32)));
typedef int32_t I8 __attribute__((vector_size(32)));
typedef float F8 __attribute__((vector_size(32)));
INLINE void scales_f16(float *d, const uint8_t *b, size_t step, int n) {
    H8 h = {0};
    if (n == 8)
        h = (H8){read_u16(b), read_u16(b + step), read_u16(b + 2 * step), read_u16(b + 3 * step),
                 read_u16(b + 4 * step), read_u16(b + 5 * step), read_u16(b + 6 * step), read_u16(b + 7 * step)};
    else
        for (int i = 0; i < n; i++) h[i] = read_u16(b + (size_t)i * step);
    U8 w = __builtin_convertvector(h, U8), u = w & 0x7fff, e = w & 0x7c00;
    U8 normal = (u << 13) + 0x38000000u + ((U8)(e == 0x7c00) & 0x38000000u);
    U8 small = (U8)(e == 0);
    U8 r = (normal & ~small) | ((U8)(__builtin_convertvector((I8)u, F8) * 0x1p-24f) & small) | (w & 0x8000) << 16;
    memcpy(d, &r, sizeof r);
}
#else
INLINE void scales_f16(float *d, const uint8_t *b, size_t step, int n) {
    for (int i = 0; i < 8; i++) d[i] = i < n ? f16_at(b + (size_t)i * step) : 0;
}
#endif

/* bits: q[i] = (b[i] >> shift & mask) - offset. add_bits: q[i] += (b[i] >> shift & mask) << up. Both for n = 16 or 32 bytes. Written in
 * vectors of bytes where the compiler has them: it does not find them by itself. */
#if defined(__GNUC__)
typedef uint8_t B16 __attribute__((vector_size(16), aligned(1), may_alias));
typedef uint8_t B32 __attribute__((vector_size(32), aligned(1), may_alias));
#define EACH(B) *(B *)(void *)q = (*(const B *)(const void *)b >> (uint8_t)shift & (uint8_t)mask) - (uint8_t)offset
#define EACH_ADD(B) *(B *)(void *)q += (*(const B *)(const void *)b >> (uint8_t)shift & (uint8_t)mask) << (uint8_t)up
INLINE void bits(int8_t *q, const uint8_t *b, int n, int shift, int mask, int offset) {
    if (n == 16) EACH(B16);
    else EACH(B32);
}
INLINE void add_bits(int8_t *q, const uint8_t *b, int n, int shift, int mask, int up) {
    if (n == 16) EACH_ADD(B16);
    else EACH_ADD(B32);
}
#undef EACH
#undef EACH_ADD
#else
INLINE void bits(int8_t *q, const uint8_t *b, int n, int shift, int mask, int offset) {
    for (int i = 0; i < n; i++) q[i] = (int8_t)((b[i] >> shift & mask) - offset);
}
INLINE void add_bits(int8_t *q, const uint8_t *b, int n, int shift, int mask, int up) {
    for (int i = 0; i < n; i++) q[i] = (int8_t)(q[i] + ((b[i] >> shift & mask) << up));
}
#endif
/* 16 bytes to 32 weights: low nibbles (halves of a byte) are the first 16, high ones the other 16; offset is subtracted. */
INLINE void nibbles(int8_t *q, const uint8_t *b, int offset) {
    bits(q, b, 16, 0, 15, offset);
    bits(q + 16, b, 16, 4, 15, offset);
}
/* Bit i of the 32-bit word at b adds 16 to q[i], 0 <= q < 16, i < 32; then offset (0 or 16) is subtracted. Eight bytes at a time: a byte of
 * b is copied eight times, copy j keeps bit j alone, and + 127 carries that bit, wherever it is, to the top of its byte. */
INLINE void fifth_bits(int8_t *q, const uint8_t *b, int offset) {
    const uint64_t top = 0x8080808080808080u;
    for (int i = 0; i < 4; i++) {
        uint64_t w, set = ((b[i] * 0x0101010101010101u & 0x8040201008040201u) + 0x7f7f7f7f7f7f7f7fu) & top;
        memcpy(&w, q + 8 * i, 8);
        if (offset) { /* a clear bit: q - 16 = 0xf0 | q */
            set ^= top;
            w |= set | set >> 1 | set >> 2 | set >> 3;
        } else {
            w |= set >> 3;
        }
        memcpy(q + 8 * i, &w, 8);
    }
}

/* d, then m, which is stored to be added, at the head of blocks of `bytes`. */
INLINE void scales_mins_f16(float *restrict d, float *restrict m, const uint8_t *b, int bytes, int n) {
    scales_f16(d, b, bytes, n);
    scales_f16(m, b + 2, bytes, n);
    for (int i = 0; i < 8; i++) m[i] = -m[i];
}

INLINE void unpack_q4_0(int8_t *restrict q, float *restrict d, float *restrict m, const uint8_t *restrict b, int n) {
    (void)m;
    scales_f16(d, b, 18, n);
    for (int i = 0; i < n; i++) nibbles(q + 32 * i, b + 18 * i + 2, 8);
}
INLINE void unpack_q4_1(int8_t *restrict q, float *restrict d, float *restrict m, const uint8_t *restrict b, int n) {
    scales_mins_f16(d, m, b, 20, n);
    for (int i = 0; i < n; i++) nibbles(q + 32 * i, b + 20 * i + 4, 0);
}
INLINE void unpack_q5_0(int8_t *restrict q, float *restrict d, float *restrict m, const uint8_t *restrict b, int n) {
    (void)m;
    scales_f16(d, b, 22, n);
    for (int i = 0; i < n; i++) {
        nibbles(q + 32 * i, b + 22 * i + 6, 0);
        fifth_bits(q + 32 * i, b + 22 * i + 2, 16);
    }
}
INLINE void unpack_q5_1(int8_t *restrict q, float *restrict d, float *restrict m, const uint8_t *restrict b, int n) {
    scales_mins_f16(d, m, b, 24, n);
    for (int i = 0; i < n; i++) {
        nibbles(q + 32 * i, b + 24 * i + 8, 0);
        fifth_bits(q + 32 * i, b + 24 * i + 4, 0);
    }
}
INLINE void unpack_q8_0(int8_t *restrict q, float *restrict d, float *restrict m, const uint8_t *restrict b, int n) {
    (void)m;
    scales_f16(d, b, 34, n);
    for (int i = 0; i < n; i++) memcpy(q + 32 * i, b + 34 * i + 2, 32);
}
INLINE void look_up(int8_t *restrict q, const uint8_t *restrict b, const int8_t *restrict table) { /* as nibbles, through a table */
#if defined(__GNUC__) && !defined(__clang__)
    const B16 v = *(const B16 *)(const void *)b, t = *(const B16 *)(const void *)table;
    *(B16 *)(void *)q = __builtin_shuffle(t, v & 15);
    *(B16 *)(void *)(q + 16) = __builtin_shuffle(t, v >> 4);
#else
    for (int j = 0; j < 16; j++) {
        q[j] = table[b[j] & 15];
        q[j + 16] = table[b[j] >> 4];
    }
#endif
}
INLINE void unpack_iq4_nl(int8_t *restrict q, float *restrict d, float *restrict m, const uint8_t *restrict b, int n) {
    (void)m;
    scales_f16(d, b, 18, n);
    for (int i = 0; i < n; i++) look_up(q + 32 * i, b + 18 * i + 2, iq4_values);
}
INLINE void unpack_mxfp4(int8_t *restrict q, float *restrict d, float *restrict m, const uint8_t *restrict b, int n) {
    (void)m;
    for (int i = 0; i < n; i++) { /* the scale is a bare exponent e, 2^(e - 127), of which half is taken, as the values are doubled */
        d[i] = as_float(b[17 * i] < 2 ? 0x00200000u << b[17 * i] : (uint32_t)(b[17 * i] - 1) << 23);
        look_up(q + 32 * i, b + 17 * i + 1, mxfp4_doubled);
    }
}
INLINE void unpack_q2_k(int8_t *restrict q, float *restrict d, float *restrict m, const uint8_t *restrict b, int n) {
    float scale = f16_at(b + 80), min = f16_at(b + 82);
    (void)n;
    for (int g = 0; g < 16; g++) {
        d[g] = scale * (float)(b[g] & 15);
        m[g] = min * (float)(b[g] >> 4);
    }
    for (int k = 0; k < 8; k++) bits(q + 32 * k, b + 16 + 32 * (k / 4), 32, 2 * (k % 4), 3, 0); /* 32 bytes hold four rows of 32 */
}
INLINE void unpack_q3_k(int8_t *restrict q, float *restrict d, float *restrict m, const uint8_t *restrict b, int n) {
    float scale = f16_at(b + 108);
    const uint8_t *sc = b + 96; /* 12 bytes: 16 scales of 6 bits, the lower four first, then the upper two, minus 32 */
    (void)m, (void)n;
    for (int g = 0; g < 16; g++) {
        int low = g < 8 ? sc[g] & 15 : sc[g - 8] >> 4;
        d[g] = scale * (float)((low | (sc[8 + g % 4] >> (2 * (g / 4)) & 3) << 4) - 32);
    }
    for (int k = 0; k < 8; k++) { /* two bits as Q2_K, the third in a bit plane of 32 bytes at the head */
        bits(q + 32 * k, b + 32 + 32 * (k / 4), 32, 2 * (k % 4), 3, 4);
        add_bits(q + 32 * k, b, 32, k, 1, 2);
    }
}
/* Q4_K and Q5_K: eight 6-bit scales and minimums in 12 bytes, four at a time as bytes of a word. The first four lie in the low six bits of
 * w0 and w1; of the last four, four bits lie in w2 (scales low, minimums high) and two on top of w0 and w1. */
INLINE void scales_k4(float *restrict d, float *restrict m, const uint8_t *restrict b) {
    uint32_t w0 = read_u32(b + 4), w1 = read_u32(b + 8), w2 = read_u32(b + 12);
    uint32_t s[2] = {w0 & 0x3f3f3f3f, (w2 & 0x0f0f0f0f) | (w0 >> 2 & 0x30303030)};
    uint32_t t[2] = {w1 & 0x3f3f3f3f, (w2 >> 4 & 0x0f0f0f0f) | (w1 >> 2 & 0x30303030)};
    uint8_t scale[8], min[8];
    memcpy(scale, s, 8);
    memcpy(min, t, 8);
    float ds = f16_at(b), dm = f16_at(b + 2);
    for (int j = 0; j < 8; j++) d[j] = ds * (float)scale[j];
    for (int j = 0; j < 8; j++) m[j] = dm * (float)min[j];
}
INLINE void unpack_q4_k(int8_t *restrict q, float *restrict d, float *restrict m, const uint8_t *restrict b, int n) {
    (void)n;
    scales_k4(d, m, b);
    for (int k = 0; k < 8; k++) bits(q + 32 * k, b + 16 + 32 * (k / 2), 32, 4 * (k & 1), 15, 0);
}
INLINE void unpack_q5_k(int8_t *restrict q, float *restrict d, float *restrict m, const uint8_t *restrict b, int n) {
    (void)n;
    scales_k4(d, m, b);
    for (int k = 0; k < 8; k++) { /* four bits as Q4_K, the fifth in a bit plane of 32 bytes before them */
        bits(q + 32 * k, b + 48 + 32 * (k / 2), 32, 4 * (k & 1), 15, 0);
        add_bits(q + 32 * k, b + 16, 32, k, 1, 4);
    }
}
INLINE void unpack_q6_k(int8_t *restrict q, float *restrict d, float *restrict m, const uint8_t *restrict b, int n) {
    float scale = f16_at(b + 208); /* the last field; the group scales are signed */
    (void)m, (void)n;
    for (int g = 0; g < 16; g++) d[g] = scale * (float)(int8_t)b[192 + g];
    for (int k = 0; k < 8; k++) { /* two halves of 128: four rows of 32 share 32 bytes of high bits */
        int h = k / 4, i = k % 4;
        bits(q + 32 * k, b + 64 * h + 32 * (i & 1), 32, 4 * (i >> 1), 15, 32);
        add_bits(q + 32 * k, b + 128 + 32 * h, 32, 2 * i, 3, 4);
    }
}
INLINE void unpack_iq4_xs(int8_t *restrict q, float *restrict d, float *restrict m, const uint8_t *restrict b, int n) {
    float scale = f16_at(b);
    uint32_t high = read_u16(b + 2); /* the upper two bits of each of eight scales of 6 bits, minus 32 */
    (void)m, (void)n;
    for (int k = 0; k < 8; k++) {
        d[k] = scale * (float)(((b[4 + k / 2] >> (4 * (k & 1)) & 15) | (int)(high >> (2 * k) & 3) << 4) - 32);
        look_up(q + 32 * k, b + 8 + 16 * k, iq4_values);
    }
}

/* n <= SEGMENT weights of a block-quantised row, whole blocks. q has room for SEGMENT, d and m for 16. It is inlined into one function per
 * instruction set (unpack_plain, and unpack_avx2 of section 5, which keeps only its scales), and so compiled for each. */
INLINE void unpack(int8_t *restrict q, float *restrict d, float *restrict m, const uint8_t *restrict b, int type, int n) {
    switch (type) {
    case Q4_0: unpack_q4_0(q, d, m, b, n / 32); break;
    case Q4_1: unpack_q4_1(q, d, m, b, n / 32); break;
    case Q5_0: unpack_q5_0(q, d, m, b, n / 32); break;
    case Q5_1: unpack_q5_1(q, d, m, b, n / 32); break;
    case Q8_0: unpack_q8_0(q, d, m, b, n / 32); break;
    case IQ4_NL: unpack_iq4_nl(q, d, m, b, n / 32); break;
    case MXFP4: unpack_mxfp4(q, d, m, b, n / 32); break;
    case Q2_K: unpack_q2_k(q, d, m, b, 1); break;
    case Q3_K: unpack_q3_k(q, d, m, b, 1); break;
    case Q4_K: unpack_q4_k(q, d, m, b, 1); break;
    case Q5_K: unpack_q5_k(q, d, m, b, 1); break;
    case Q6_K: unpack_q6_k(q, d, m, b, 1); break;
    case IQ4_XS: unpack_iq4_xs(q, d, m, b, 1); break;
    }
}
static NOINLINE void unpack_plain(int8_t *q, float *d, float *m, const uint8_t *b, int type, int n) { unpack(q, d, m, b, type, n); }

/* -- whole rows -- */

INLINE size_t bytes_of(int type, size_t n) { return n / (size_t)types[type].elems * (size_t)types[type].bytes; } /* n weights in the file */

/* n weights of a row, in any type that has code, to float. n is a multiple of the block length. */
static void row_to_float(float *y, const uint8_t *b, int type, size_t n) {
    if (type == F32) {
        memcpy(y, b, n * 4);
    } else if (type == F16) {
        for (size_t i = 0; i < n; i++) y[i] = f16_at(b + 2 * i);
    } else if (type == BF16) {
        for (size_t i = 0; i < n; i++) y[i] = from_bf16(read_u16(b + 2 * i));
    } else {
        for (size_t at = 0; at < n; at += SEGMENT) {
            int8_t q[SEGMENT];
            float d[16], m[16];
            int len = n - at < SEGMENT ? (int)(n - at) : SEGMENT, group = types[type].group;
            unpack_plain(q, d, m, b + bytes_of(type, at), type, len);
            for (int i = 0; i < len; i++) y[at + (size_t)i] = d[i / group] * (float)q[i] - (types[type].min ? m[i / group] : 0.0f);
        }
    }
}

/* ---- 5. kernels: where the time goes ---------------------------------------------------------------
 * matmul over a run of tokens, the one recurrence, softmax attention. Plain scalar C is the definition that the tests hold
 * everything else against; vectors, one source compiled for several instruction sets, do the work; where a processor has
 * an instruction made for the job (integer dot products), a few functions use it. A table chosen once when a model is opened
 * holds the outcome.
 *
 * Same bits: an output element is summed by one thread in one order, whatever the number of tokens in the run or of threads.
 *
 * The rooms, in order. Read those with a star, recurrence_step first; the others do what the scalar definitions say, only faster:
 *
 *     sizes                   what is worked on at once, and why so much
 *   * input of a matmul       activations as floats and as integers; the order in which an output is summed
 *   * the one recurrence      recurrence_step: the dozen lines that all mixers with a matrix memory share
 *     the cache               where softmax attention keeps keys and values, and what it is asked for (Attend)
 *   * scalar definitions      dot product, exponential, activations, norms, short convolution; then matmul (quantize_token, few_body,
 *                             matmul_scalar); then recurrence_scalar and attend_scalar
 *     the same in vectors     matmul of plain types, recurrence, and the product that attention is made of, for 4, 8 and 16 lanes
 *     attention in tiles      attend_scalar for many queries at once
 *     weights on x86          where the bits of 32 weights of each type lie, for AVX2 and AVX-512
 *     few tokens              weights used as they are read, LANES rows side by side, for both
 *     per instruction set     the macros that compile all this for SSE2, AVX2, AVX-512, NEON or whatever vectors there are
 *     AVX-512                 quantised weights times many tokens (many512); BF16; which of these
 *     every other set         many tokens by panel (many_rows), for any way to multiply integers; then such ways: AVX2 and AVX-VNNI, and on
 *                             ARM, with few tokens by row (few_rows), NEON, dotprod, i8mm
 *     the choice              the table of kernels, and which row of it this processor takes
 *   * the work, spread        what the sections below call: matmul, recurrence, attention, each over the threads of a Team */

/* -- sizes: what is worked on at once -- */

typedef struct { const uint8_t *data; int type, n_in, n_out; } Tensor; /* n_out rows of n_in weights; data NULL: absent */
static size_t row_bytes(const Tensor *w) { return bytes_of(w->type, (size_t)w->n_in); }

enum {
    LANES = 16,   /* partial sums of a dot product; in the part for vectors, floats per vector */
    ROWS = 16,    /* rows of a matrix that are worked on together; twice as many at a call for floats and for AVX-512's panels */
    FEW = 8,      /* tokens, at most, that rows meet as they are read; see Kernels */
    TILE = 6,     /* tokens that meet a panel at once */
    WEIGHTS_AT_ONCE = 1024, /* of a row, as floats, that meet a tile of tokens at once: their inputs stay in the first-level cache */
    BLOCKS_AT_ONCE = 16, /* blocks of 32 weights turned into panels at once: they stay in the first-level cache */
    AHEAD = 8192, /* bytes of a row that are asked for before they are needed: the hardware's own guess is not enough */
    KEYS = 64,    /* keys per step of attention; also the channels in a tile of keys or values */
    KEY_CHUNK = 512, /* keys whose part of a softmax is summed on its own */
    QUERIES = 96, /* queries that meet the same keys */
    FEW_QUERY_TOKENS = 8, /* a run of up to so many is spread over the threads by chunks */
    PANEL = 64,   /* columns of the state that a thread takes at once */
    WALKERS = 16  /* queries that go back through the text together: see walk_back */
};

/* -- the input of a matmul -- */

/* T rows of n floats; for block-quantised weights also as 16-bit integers, x = q D with one D per token,
 * made when first needed. Sixteen bits, because eight would move the logits of hybrid models by more than the weights' own
 * rounding does; where bytes are multiplied, q is taken apart as 256 hi + lo. |q| <= Q_TOP, so that both fit when signed.
 * When speed matters more (fast), the q of 32 inputs keep their 7 leading bits and the sign: q = q8 2^shift. That is still a q, so every
 * kernel gives the same bits for it; the panels of AVX-512 multiply q8 alone and shift the sum.
 *
 * An output sums its groups in this order and no other, one rounding each where the kernel fuses, always in the same way in one build:
 *   S <- S + isum d;   S <- S - m fsum  where the type has minimums;   out = S D
 * isum = sum of q_w q over a group and fsum = sum of q are integers, exact in any order; fsum, below 2^24, is exact as a float, too, and
 * isum is rounded once, when it becomes one. q_w, d and m are the weights' (section 4). */
typedef struct {
    const float *x;       /* (T, n) */
    int T, n, fast, form; /* form: NOT_YET, or the one that the kernels asked for */
    int many;             /* more tokens than the kernels call few */
    float *D;             /* (T) */
    int32_t *fsum;        /* all but TILES: (T, n/16), per 16; a group of 32 adds two */
    int16_t *q;           /* INT16: (T, n); PAIRS: of each 32 the even ones, then the odd ones */
    int8_t *hi, *lo;      /* SIGNED: (T, n) */
    uint16_t *half;       /* NULL, or for BF16 weights, fast and kernels that multiply them (T, n) bfloat16 */
    uint8_t *tiles;       /* TILES: (T/TILE rounded up, n/32) pieces of tile_bytes_of(fast) bytes, see below */
} Input;
enum { NOT_YET, INT16, PAIRS, SIGNED, TILES };
enum { Q_TOP = 127 * 256 + 127 };
/* A piece of TILES: 32 inputs of TILE tokens. At these bytes lie
 *   0        uint8 (TILE, 32)   hi + 128, or when fast q8 + 128: unsigned
 *   T_SUM    float (TILE, 3)    the sum of q over all 32, over the first 16, over the other 16
 *   T_LO     uint8 (TILE, 32)   lo; when fast there is none, but at
 *   T_SHIFT  int32 (TILE)       the shift of q8 */
enum { T_SUM = 32 * TILE, T_LO = 44 * TILE, T_SHIFT = 44 * TILE, T_BYTES = 76 * TILE, T_FAST = 48 * TILE };
INLINE size_t tile_bytes_of(int fast) { return fast ? T_FAST : T_BYTES; }

static size_t input_bytes(size_t T, size_t n) { /* scratch for any form; behind it (T, n) bfloat16 */
    size_t blocks = n / 32 + 1;
    size_t rows = T * blocks * (64 + 8) + SEGMENT * 2 + 64; /* per block: q, or hi and lo; fsum */
    size_t tiles = round_up(T, TILE) / TILE * blocks * T_BYTES;
    return round_up((rows > tiles ? rows : tiles) + T * sizeof(float) + 8 * ALIGN, ALIGN);
}

/* -- the one recurrence -- */

/* Rows of T tokens holding `heads` heads side by side; stride floats from one token to the next. When a mixer has more heads
 * than these rows, head h of H reads row head h / (H / heads), or h % heads when tiled (how GGUF stores qwen35). */
typedef struct { const float *p; size_t stride; int heads; } Rows;
INLINE const float *row_of(const Rows *r, int t) { return r->p + (size_t)t * r->stride; }
INLINE const float *row_head(const Rows *r, int t, int h, int H, int tiled, int width) {
    int source = tiled ? h % r->heads : h / (H / r->heads);
    return row_of(r, t) + (size_t)source * (size_t)width;
}

/* What a mixer passes to the one recurrence (recurrence_step below). Rows with p NULL take the default; who sets what is
 * the laws (section 7), and most set the first half only. */
typedef struct {
    int H, dk, dv, tiled;
    int d_width;         /* decay d: 1 = a scalar per head, dk = one per key channel */
    Rows d, q, k, v;     /* d in (0, 1], default 1; q already scaled; v already times the write strength, where there is one */
    Rows rho;            /* erase strength, scalar per head; default 0, nothing is erased before the write */
    Rows e;              /* (dk) key of the erase, default k */
    int undecayed;       /* what is erased is read before the memory fades (Comba, RWKV-7), not after */
    Rows w;              /* (dk) direction in which what was read is written back; default -rho k */
    Rows r;              /* (dv) written back along w instead of what e reads */
    Rows c;              /* (dv) decay of the value channels, default 1 */
    Rows u;              /* (dk) bonus: the readout precedes the write and sees u times what is written (RWKV-6) */
} Recurrence;

/* The rows of one token and one head, as recurrence_step names them; NULL where there is none. d_step: 1 when d has a number per key
 * channel, 0 when the one number serves all. */
typedef struct { const float *d, *q, *k, *v, *e, *w, *r, *c, *u; float rho; int d_step; } Step;
INLINE Step step_of(const Recurrence *a, int t, int h) {
    static const float one = 1;
#define HEAD(row, width) (a->row.p ? row_head(&a->row, t, h, a->H, a->tiled, width) : NULL)
    Step s = {HEAD(d, a->d_width), HEAD(q, a->dk), HEAD(k, a->dk), HEAD(v, a->dv), HEAD(e, a->dk), HEAD(w, a->dk), HEAD(r, a->dv),
              HEAD(c, a->dv), HEAD(u, a->dk), a->rho.p ? *row_head(&a->rho, t, h, a->H, a->tiled, 1) : 0, a->d.p && a->d_width > 1};
#undef HEAD
    if (!s.d) s.d = &one;
    if (!s.e) s.e = s.k;
    return s;
}

/* The one recurrence: one head, one token.                                         (steps to it: doc/recurrence.md)
 *   S (dk, dv) memory, row-major, updated in place;  q, k, e, w (dk);  v, o (dv), o apart from v;  d scalar or (dk);  rho in [0, 2]
 *   S <- Diag(d) S Diag(c)   forget
 *   r  = S'e                 recall, along k unless e is given (Comba and RWKV-7 recall before they forget)
 *   S <- S + k (v - rho r)'  write what k should recall, minus what it does (the delta rule; rho = 0 just adds);
 *                            with w, S + k v' + w r' instead
 *   o  = S'q                 read                              (S' is S transposed)
 * With a bonus u the readout comes first:  o = S'q + (sum of q u k) v, S as it was. */
static void recurrence_step(float *S, int dk, int dv, const Step *a, int undecayed, float *o) {
    for (int j = 0; j < dv; j++) { /* columns of S do not meet */
        float recall = 0, y = 0;
        for (int i = 0; i < dk; i++) {
            float *s = &S[(size_t)i * (size_t)dv + j], old = *s;
            *s *= a->d[i * a->d_step] * (a->c ? a->c[j] : 1);
            recall += a->e[i] * (undecayed ? old : *s);
            if (a->u) y += a->q[i] * (old + a->u[i] * a->k[i] * a->v[j]);
        }
        float r = a->r ? a->r[j] : recall, u = a->w ? a->v[j] : a->v[j] - a->rho * r;
        for (int i = 0; i < dk; i++) {
            float *s = &S[(size_t)i * (size_t)dv + j];
            *s += a->k[i] * u + (a->w ? a->w[i] * r : 0);
            if (!a->u) y += a->q[i] * *s;
        }
        o[j] = y;
    }
}

/* -- the cache: keys and values of softmax attention, and what is asked of them -- */

/* What one softmax layer remembers: keys and values of every position, and (sums > 0) cumulative log decays, that is forget-gate
 * biases. Positions lie in blocks of KEYS, a block is read from its first byte to its last:
 *   for each key/value head   K' in tiles of (KEYS channels, KEYS positions), V in tiles of (KEYS positions, KEYS channels)
 *   then                      double c (sums, KEYS)
 * so that lanes of a vector are neighbouring positions of K' and neighbouring channels of V, and nothing is transposed when it is read.
 * The last tile of a head may be narrower. F32 and F16 are plain; a tile of Q8_0 is int8, then a float16 scale for each position
 * and 32 channels: (channels/32, KEYS) behind keys, (KEYS, channels/32) behind values. */
typedef struct { uint8_t *mem; int type, heads, dk, dv, sums; } Cache;

static size_t tile_bytes(int type, int width) { /* one tile, of `width` channels */
    size_t n = KEYS * (size_t)width;
    return type == F32 ? 4 * n : type == F16 ? 2 * n : n + KEYS * 2 * (((size_t)width + 31) / 32);
}
static size_t tiles_bytes(int type, int width) { /* the keys or the values of a head in a block */
    return (size_t)(width / KEYS) * tile_bytes(type, KEYS) + tile_bytes(type, width % KEYS);
}
static size_t cache_block_bytes(const Cache *c) {
    return (size_t)c->heads * (tiles_bytes(c->type, c->dk) + tiles_bytes(c->type, c->dv)) + (size_t)c->sums * KEYS * sizeof(double);
}

/* Tile i of the keys (value 0) or values (1) of a head. */
INLINE uint8_t *cache_tile(const Cache *c, int64_t block, int head, int value, int i) {
    size_t k = tiles_bytes(c->type, c->dk), v = tiles_bytes(c->type, c->dv);
    return c->mem + (size_t)block * cache_block_bytes(c) + (size_t)head * (k + v) + (value ? k : 0) + (size_t)i * tile_bytes(c->type, KEYS);
}
static double *cache_sums(const Cache *c, int64_t block) { /* (sums, KEYS) at the end of a block */
    return (double *)(void *)(c->mem + (size_t)(block + 1) * cache_block_bytes(c)) - (size_t)c->sums * KEYS;
}

/* One row x of a head, dk or dv numbers at position pos, into the cache (rounded to its type) or, with write 0, out of it: tile by tile
 * and, because a Q8_0 tile has a scale for each, 32 channels at a time. The scale is the largest magnitude / 127. */
static void cache_row(const Cache *c, int64_t pos, int head, int value, float *x, int write) {
    int width = value ? c->dv : c->dk, j = (int)(pos % KEYS);
    for (int at = 0; at < width; at += KEYS) {
        uint8_t *tile = cache_tile(c, pos / KEYS, head, value, at / KEYS);
        int w = width - at < KEYS ? width - at : KEYS, groups = (w + 31) / 32;
        int first = value ? j * w : j, step = value ? 1 : KEYS; /* of the row's numbers in the tile */
        float *f = (float *)(void *)tile + first; /* the same place as each type sees it */
        uint16_t *h = (uint16_t *)(void *)tile + first;
        uint16_t *scale = (uint16_t *)(void *)(tile + KEYS * w) + (value ? j * groups : j); /* Q8_0: of the first 32 channels */
        int8_t *q = (int8_t *)tile + first;
        for (int g = 0; g < groups; g++, scale += value ? 1 : KEYS) {
            int n = w - 32 * g < 32 ? w - 32 * g : 32;
            float d = 0, *y = x + at + 32 * g;
            if (c->type == Q8_0 && write) {
                float top = 0;
                for (int i = 0; i < n; i++) top = fabsf(y[i]) > top ? fabsf(y[i]) : top;
                *scale = to_f16(top / 127.0f);
            }
            if (c->type == Q8_0) d = from_f16(*scale);
            for (int i = 0; i < n; i++) {
                int at_i = (32 * g + i) * step;
                if (c->type == F32) {
                    if (write) f[at_i] = y[i];
                    else y[i] = f[at_i];
                } else if (c->type == F16) {
                    if (write) h[at_i] = to_f16(y[i]);
                    else y[i] = from_f16(h[at_i]);
                } else if (!write) {
                    y[i] = d * (float)q[at_i];
                } else {
                    float v = d > 0 ? y[i] / d : 0;
                    q[at_i] = (int8_t)lrintf(v > 127 ? 127 : v > -127 ? v : -127);
                }
            }
        }
    }
}

/* Values of a head at the positions last, last - 1 ..., n of them in one block, as rows (n, dv). */
static void cache_values(const Cache *c, int64_t last, int n, int head, float *rows) {
    if (c->type != F32) {
        for (int i = 0; i < n; i++) cache_row(c, last - i, head, 1, rows + (size_t)i * (size_t)c->dv, 0);
        return;
    }
    for (int at = 0; at < c->dv; at += KEYS) {
        const int w = c->dv - at < KEYS ? c->dv - at : KEYS;
        const float *from = (const float *)(const void *)cache_tile(c, last / KEYS, head, 1, at / KEYS) + last % KEYS * w;
        for (int i = 0; i < n; i++, from -= w) {
            float *to = rows + (size_t)i * (size_t)c->dv + at;
            int j = 0;
            for (; j + LANES <= w; j += LANES) /* pieces of a known size: gcc makes a slow instruction of others */
                memcpy(to + j, from + j, LANES * sizeof(float));
            for (; j < w; j++) to[j] = from[j];
        }
    }
}

/* k (heads, dk), v (heads, dv), sums (c->sums) or NULL of the next position, pos. A block begins as zeros, so that what a saved state
 * holds behind its last position is always the same. */
static void cache_append(const Cache *c, int64_t pos, const float *k, const float *v, const double *sums) {
    if (pos % KEYS == 0) memset(c->mem + (size_t)(pos / KEYS) * cache_block_bytes(c), 0, cache_block_bytes(c));
    for (int h = 0; h < c->heads; h++) {
        cache_row(c, pos, h, 0, (float *)(uintptr_t)(k + (size_t)h * (size_t)c->dk), 1);
        cache_row(c, pos, h, 1, (float *)(uintptr_t)(v + (size_t)h * (size_t)c->dv), 1);
    }
    for (int h = 0; h < c->sums && sums; h++) cache_sums(c, pos / KEYS)[h * KEYS + pos % KEYS] = sums[h];
}

/* Softmax attention of T tokens from position pos on, whose keys and values are in the cache already. Query head h of H reads key/value
 * head h / (H / heads); it sees the last `window` positions, 0 = all. A score is scale q.k_j, plus c_i - c_j of head h where the cache
 * has sums (forgetting attention, arXiv 2503.02130: the query's own sum minus the key's; doubles, because sums grow with the text).
 *
 * Same bits: positions are split into chunks of KEY_CHUNK, a query's part of every chunk is summed on its own in steps of KEYS, and the
 * parts are merged in order; chunks and steps begin at multiples of their length, whatever the run of tokens. */
typedef struct {
    const Cache *cache;
    const float *q;          /* query head h of token t, dk floats, at q + t q_stride + h q_step */
    size_t q_stride, q_step;
    int H, T, window;
    int64_t pos;
    float scale;
} Attend;
INLINE int64_t first_visible(const Attend *a, int64_t pos) { return a->window ? max64(0, pos - a->window + 1) : 0; }

/* A part of a query's softmax: o (dv, rounded up) = sum of e^(score - top) v over some of the keys, top the largest of their scores; then
 * top itself and the sum of the e^(score - top), which is 0 when nothing was visible. The answer is o / sum when all keys are in.
 * Queries of a key/value head are numbered t G + (head in the group), G = H / heads: "row" below. */
INLINE size_t part_o(int dv) { return round_up((size_t)dv, 32); }
INLINE size_t part_floats(int dv) { return part_o(dv) + LANES; }

/* -- the scalar definitions: sums, functions of one number, norms, short convolution -- */

/* 16 partial sums become one, folded as a tree: l and l + 8, then l and l + 4, ... Vectors of 16 lanes do the same; shorter ones
 * have fewer partial sums. */
static float fold16(const float *acc) {
    float s[LANES];
    memcpy(s, acc, sizeof s);
    for (int half = 8; half; half /= 2)
        for (int l = 0; l < half; l++) s[l] += s[l + half];
    return s[0];
}
/* Sum of a[i] b[i] over n floats: partial sum l takes every 16th product, from the l-th on. */
static float dot(const float *a, const float *b, size_t n) {
    float acc[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) acc[l] += a[i + l] * b[i + l];
    for (int l = 0; i < n; i++, l++) acc[l] += a[i] * b[i];
    return fold16(acc);
}

/* e^x within 2 units in the last place; loops over it vectorise, loops over expf do not. e^x = 2^n e^r with n = round(x / ln 2) and
 * r = x - n ln 2, for which ln 2 is taken in two parts, the first of which times n is exact. Beyond +-88 the result stays where it is. */
INLINE float fast_exp(float x) {
    x = x > 88.0f ? 88.0f : x < -87.0f ? -87.0f : x;         /* NaN stays NaN */
    float n = x * 1.44269504f + 12582912.0f;                 /* 1.5 * 2^23: the sum's low bits are round(x / ln 2) */
    uint32_t e = as_bits(n) << 23;
    n -= 12582912.0f;
    float r = x - n * 0.693359375f - n * -2.12194440e-4f;    /* |r| <= ln(2)/2 */
    float p = 1.3981999507e-3f + r * 1.9875691500e-4f;
    p = 5.0000001201e-1f + r * (1.6666665459e-1f + r * (4.1665795894e-2f + r * (8.3334519073e-3f + r * p)));
    p = 1.0f + (r + r * r * p);                              /* e^r */
    return as_float(as_bits(p) + e);                         /* p 2^n */
}
INLINE float sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-x)); }
INLINE float silu(float x) { return x / (1.0f + fast_exp(-x)); }
static float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }
static float logsigmoid(float x) { return (x < 0 ? x : 0) - log1pf(expf(-fabsf(x))); }

/* What is done to the numbers of a layer one by one. The functions that large models use (silu, sigmoid) go through fast_exp. */
enum { ACT_SILU, ACT_RELU, ACT_SIGMOID, ACT_GELU, ACT_GELU_TANH, ACT_SQRELU, ACT_POWLU, ACT_LOGSIGMOID, ACT_ELU1, ACT_TANH, ACT_NONE };
INLINE float activate(int act, float x) {
    switch (act) {
    case ACT_SILU: return silu(x);
    case ACT_RELU: return x > 0 ? x : 0;
    case ACT_SIGMOID: return sigmoid(x);
    case ACT_GELU: return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    case ACT_GELU_TANH: return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
    case ACT_SQRELU: return x > 0 ? x * x : 0;
    case ACT_POWLU: return (x > 0 ? powf(x, 3.0f / (sqrtf(x) + 1.0f)) : x) * sigmoid(x);
    case ACT_LOGSIGMOID: return logsigmoid(x);
    case ACT_ELU1: return x > 0 ? x + 1 : expf(x);
    case ACT_TANH: return tanhf(x);
    }
    return x;
}
/* x <- act(x), n floats. */
INLINE void activate_row(float *x, int act, size_t n) {
    if (act == ACT_SILU) { /* the common one has a loop of its own, so that it vectorises */
        for (size_t i = 0; i < n; i++) x[i] = silu(x[i]);
    } else if (act != ACT_NONE) {
        for (size_t i = 0; i < n; i++) x[i] = activate(act, x[i]);
    }
}

/* y <- y * act(z), n floats, apart. */
INLINE void gate_row(float *restrict y, const float *restrict z, int act, size_t n) {
    if (act == ACT_SILU) {
        for (size_t i = 0; i < n; i++) y[i] *= silu(z[i]);
    } else if (act == ACT_SIGMOID) {
        for (size_t i = 0; i < n; i++) y[i] *= sigmoid(z[i]);
    } else {
        for (size_t i = 0; i < n; i++) y[i] *= activate(act, z[i]);
    }
}

/* y = x / sqrt(mean(x^2) + eps) * w over n floats; w NULL = all ones; y may be x. */
INLINE void rmsnorm(float *y, const float *x, const float *w, size_t n, float eps) {
    double sum[8] = {0};
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int l = 0; l < 8; l++) sum[l] += (double)x[i + l] * x[i + l];
    for (; i < n; i++) sum[0] += (double)x[i] * x[i];
    double total = ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
    float scale = (float)(1.0 / sqrt(total / (double)n + eps));
    if (w) {
        for (i = 0; i < n; i++) y[i] = x[i] * scale * w[i];
    } else {
        for (i = 0; i < n; i++) y[i] = x[i] * scale;
    }
}

/* y = (x - mean(x)) / sqrt(variance(x) + eps) * w + b over n floats; b NULL = none; y may be x. */
static void layernorm(float *y, const float *x, const float *w, const float *b, size_t n, float eps) {
    double mean = 0, squares = 0;
    for (size_t i = 0; i < n; i++) mean += x[i];
    mean /= (double)n;
    for (size_t i = 0; i < n; i++) squares += (x[i] - mean) * (x[i] - mean);
    double scale = 1.0 / sqrt(squares / (double)n + eps);
    for (size_t i = 0; i < n; i++) y[i] = (float)((x[i] - mean) * scale) * w[i] + (b ? b[i] : 0);
}

/* Causal depthwise convolution over time, then act (ACT_SILU or none), in place.         (fla modules/conv)
 *   x (T, C);  w (C, K), the last tap meets the current token;  last (K-1, C) the K-1 inputs before, oldest first
 *   y_t = act( bias + sum_j w[j] x_{t-K+1+j} )      What is remembered are inputs, not outputs. bias (C) or NULL
 * Here for n <= STRIP channels from c on; n a constant where it is STRIP. */
enum { STRIP = 64, MAX_TAPS = 64 };
typedef struct { float *x; const float *w, *bias; float *last; int C, K, T, act; } ShortConv;
INLINE void conv_strip(const ShortConv *conv, int c, const int n) {
    float *x = conv->x, *last = conv->last;
    const float *w = conv->w, *bias = conv->bias;
    const int C = conv->C, K = conv->K, T = conv->T, act = conv->act;
    float taps[MAX_TAPS][STRIP], start[STRIP] = {0}; /* (K, n) the weights, transposed; (n) the bias */
    float past[MAX_TAPS][STRIP];                     /* (K-1, n) the inputs before, a ring */
    int oldest = 0;                                  /* its first row */
    for (int j = 0; j < K && T < 4; j++) /* with few tokens memory is the limit: fetch what the strip after the next will read */
        for (int i = 2 * n; i < 3 * n; i += 16) {
            PREFETCH(w + (size_t)(c + 2 * n) * (size_t)K + (size_t)(j * n + i - 2 * n));
            if (j < K - 1) PREFETCH(last + (size_t)j * (size_t)C + c + i);
        }
    for (int j = 0; j < K; j++)
        for (int i = 0; i < n; i++) taps[j][i] = w[(size_t)(c + i) * (size_t)K + (size_t)j];
    for (int j = 0; j < K - 1; j++) memcpy(past[j], last + (size_t)j * (size_t)C + c, (size_t)n * sizeof(float));
    if (bias) memcpy(start, bias + c, (size_t)n * sizeof(float));
    for (int t = 0; t < T; t++) {
        float *in = x + (size_t)t * (size_t)C + c, y[STRIP];
        for (int i = 0; i < n && t + 4 < T; i += 16) /* tokens lie too far apart for the hardware to guess */
            PREFETCH(in + 4 * (size_t)C + i);
        if (K == 4) { /* nearly all models; one pass over the channels */
            const float *a = past[oldest], *b = past[(oldest + 1) % 3], *d = past[(oldest + 2) % 3];
            for (int i = 0; i < n; i++)
                y[i] = start[i] + taps[0][i] * a[i] + taps[1][i] * b[i] + taps[2][i] * d[i] + taps[3][i] * in[i];
        } else {
            for (int i = 0; i < n; i++) y[i] = start[i];
            for (int j = 0; j < K; j++) {
                const float *from = j < K - 1 ? past[(oldest + j) % (K - 1)] : in;
                for (int i = 0; i < n; i++) y[i] += taps[j][i] * from[i];
            }
        }
        if (K > 1) {
            memcpy(past[oldest], in, (size_t)n * sizeof(float));
            oldest = (oldest + 1) % (K - 1);
        }
        if (act == ACT_SILU) {
            for (int i = 0; i < n; i++) in[i] = silu(y[i]);
        } else {
            memcpy(in, y, (size_t)n * sizeof(float));
        }
    }
    for (int j = 0; j < K - 1; j++)
        memcpy(last + (size_t)j * (size_t)C + c, past[(oldest + j) % (K - 1)], (size_t)n * sizeof(float));
}
/* The strip that begins at channel c: STRIP wide, or what is left of the row. */
INLINE void conv_body(const ShortConv *conv, int c) {
    if (conv->C - c >= STRIP) conv_strip(conv, c, STRIP);
    else conv_strip(conv, c, conv->C - c);
}

/* -- the scalar definitions: matmul -- */

/* 32 q keep 7 leading bits and the sign, rounded; returns the shift: q / 2^shift is a signed byte. */
INLINE int keep_8_bits(int16_t *restrict q) {
    unsigned all = 0;
    for (int i = 0; i < 32; i++) all |= (unsigned)(q[i] < 0 ? -q[i] : q[i]);
    int shift = (int)(as_bits((float)all) >> 23) - (127 + 6); /* the exponent is the place of the leading bit */
    if (shift <= 0) return 0;
    const int16_t half = (int16_t)(1 << shift >> 1);
    for (int i = 0; i < 32; i++) {
        int16_t v = (int16_t)((int16_t)(q[i] + half) >> shift);
        v = v > 127 ? 127 : v;
        v = v < -127 ? -127 : v;
        q[i] = (int16_t)((uint16_t)v << shift);
    }
    return shift;
}

/* sums (n/16) of 16 neighbours of q; quads: n/4 of scratch. Two steps of four, which compilers turn into vectors. */
INLINE void sums_of_16(int32_t *restrict sums, int32_t *restrict quads, const int16_t *restrict q, int n) {
    for (int i = 0; i < n / 4; i++) quads[i] = q[4 * i] + q[4 * i + 1] + q[4 * i + 2] + q[4 * i + 3];
    for (int i = 0; i < n / 16; i++) sums[i] = quads[4 * i] + quads[4 * i + 1] + quads[4 * i + 2] + quads[4 * i + 3];
}

/* Token t of the input in the form that is wanted (see Input): D = max |x| / Q_TOP, q = round(x / D), then sums of q, and q taken apart.
 * buf: n floats of scratch. */
INLINE void quantize_token(Input *in, int t, float *buf) {
    const int n = in->n, blocks = n / 32, form = in->form;
    const float *restrict x = in->x + (size_t)t * (size_t)n;
    int32_t *restrict shifts = (int32_t *)(void *)buf; /* fast: (n/32) */
    int32_t *restrict quads = shifts + n / 16;         /* (n/4) on the way to a sum */
    int32_t *restrict s = form == TILES ? quads + n / 4 : in->fsum + (size_t)t * (size_t)(n / 16); /* (n/16) sums of q */
    int16_t *restrict q = form == INT16 ? in->q + (size_t)t * (size_t)n : (int16_t *)(void *)(buf + 3 * (n / 8)); /* (n) */

    // D
    uint32_t top_bits = 0; /* magnitudes compare as integers, which vectorises */
    for (int i = 0; i < n; i++) {
        uint32_t u = as_bits(x[i]) & 0x7fffffff;
        top_bits = u > top_bits ? u : top_bits;
    }
    float top = as_float(top_bits);
    if (!(top > 1e-30f)) top = 1.0f; /* so little that it is nothing (or NaN, see D) */
    if (!(top < 1e30f)) top = 1e30f; /* a model gone wrong: infinity counts as 1e30 */
    float scale = Q_TOP / top;
    in->D[t] = top_bits > 0x7f800000 ? as_float(top_bits) : top / Q_TOP; /* NaN stays NaN */

    // q, and its sums
    for (int i = 0; i < n; i++) {
        float y = x[i] * scale;
        y = y < -Q_TOP ? -Q_TOP : y > Q_TOP ? Q_TOP : y;
        q[i] = (int16_t)(as_bits(y + 12582912.0f) & 0xffff); /* 1.5 * 2^23: the low bits are y to nearest even */
    }
    if (in->fast)
        for (int b = 0; b < blocks; b++) shifts[b] = keep_8_bits(q + 32 * b);
    sums_of_16(s, quads, q, n);
    for (int b = 0; b < blocks && form == TILES; b++) { /* this token's rows of a piece */
        const int32_t first = s[2 * b], second = s[2 * b + 1];
        const int i = t % TILE, shift = in->fast ? shifts[b] : 8;
        uint8_t *restrict p = in->tiles + ((size_t)(t / TILE) * (size_t)blocks + (size_t)b) * tile_bytes_of(in->fast);
        memcpy(p + T_SUM + 12 * i, (float[]){(float)(first + second), (float)first, (float)second}, 12);
        for (int k = 0; k < 32; k++) p[32 * i + k] = (uint8_t)((q[32 * b + k] >> shift) + 128);
        if (in->fast) {
            memcpy(p + T_SHIFT + 4 * i, &shift, 4);
        } else {
            for (int k = 0; k < 32; k++) p[T_LO + 32 * i + k] = (uint8_t)(q[32 * b + k] & 255);
        }
    }

    // the even ones of 32, then the odd ones
    if (form == PAIRS)
        for (int i = 0; i < n; i += 32) {
            int16_t *restrict to = in->q + (size_t)t * (size_t)n + i;
            for (int k = 0; k < 16; k++) {
                to[k] = q[i + 2 * k];
                to[k + 16] = q[i + 2 * k + 1];
            }
        }

    // q = 256 hi + lo; a lo of 128 and more is negative as a signed byte
    if (form == SIGNED) {
        int8_t *restrict hi = in->hi + (size_t)t * (size_t)n, *restrict lo = in->lo + (size_t)t * (size_t)n;
        for (int i = 0; i < n; i++) {
            hi[i] = (int8_t)((q[i] + 128) >> 8);
            lo[i] = (int8_t)(q[i] & 255);
        }
    }
}

/* fsum of group g. */
INLINE int32_t sum_of(const int32_t *fsum, int group, int g) { return group == 32 ? fsum[2 * g] + fsum[2 * g + 1] : fsum[g]; }

/* What a kernel of a matmul does at a time: rows [row, row + n_rows) of w times the tokens of in, to out
 * (T, n_out), its first element. buf: matmul_buf floats of this thread. */
typedef struct { float *out; const Tensor *w; int row, n_rows; const Input *in; float *buf; } SomeRows;

/* n_rows <= ROWS, block-quantised, times FEW tokens from t0 on, or as many as there are. The plain form: integer sums per group, then the
 * float sum in its fixed order (see Input).
 *   buf: isum (T, groups, ROWS), d and m (groups, ROWS) */
INLINE void few_body(const SomeRows *some, int t0) {
    const Tensor *w = some->w;
    const Input *in = some->in;
    const int row = some->row, n_rows = some->n_rows, T = in->T - t0 < FEW ? in->T - t0 : FEW;
    float *out = some->out + (size_t)t0 * (size_t)w->n_out + row, *buf = some->buf;
    int n = w->n_in, group = types[w->type].group, min = types[w->type].min, groups = n / group;
    float *d = buf + (size_t)T * (size_t)groups * ROWS, *m = d + (size_t)groups * ROWS;

    // isum, d and m of every row
    for (int r = 0; r < n_rows; r++) {
        const uint8_t *bytes = w->data + (size_t)(row + r) * row_bytes(w);
        for (int at = 0; at < n; at += SEGMENT) {
            int8_t q[SEGMENT];
            float ds[16], ms[16];
            int len = n - at < SEGMENT ? n - at : SEGMENT;
            unpack_plain(q, ds, ms, bytes + bytes_of(w->type, (size_t)at), w->type, len);
            for (int g = 0; g < len / group; g++) {
                d[(at / group + g) * ROWS + r] = ds[g];
                if (min) m[(at / group + g) * ROWS + r] = ms[g];
            }
            for (int t = 0; t < T; t++) {
                const int16_t *x = in->q + (size_t)(t0 + t) * (size_t)n + at;
                for (int g = 0; g < len / group; g++) {
                    int32_t sum = 0;
                    if (group == 32) { /* a loop for each length, known when it is compiled */
                        for (int i = 0; i < 32; i++) sum += q[32 * g + i] * x[32 * g + i];
                    } else {
                        for (int i = 0; i < 16; i++) sum += q[16 * g + i] * x[16 * g + i];
                    }
                    buf[((size_t)t * (size_t)groups + (size_t)(at / group + g)) * ROWS + r] = (float)sum;
                }
            }
        }
    }

    // S <- S + isum d;  S <- S - m fsum;  out = S D, one row per lane
    for (int t = 0; t < T; t++) {
        const int32_t *fsum = in->fsum + (size_t)(t0 + t) * (size_t)(n / 16);
        const float *f = buf + (size_t)t * (size_t)groups * ROWS;
        float s[ROWS] = {0};
        for (int g = 0; g < groups; g++) {
            float x = (float)sum_of(fsum, group, g);
            for (int r = 0; r < ROWS; r++) s[r] += f[g * ROWS + r] * d[g * ROWS + r];
            if (min)
                for (int r = 0; r < ROWS; r++) s[r] -= m[g * ROWS + r] * x;
        }
        for (int r = 0; r < n_rows; r++) out[(size_t)t * (size_t)w->n_out + r] = s[r] * in->D[t0 + t];
    }
}

/* Block-quantised weights by few_body; of the plain types a row becomes n_in floats in buf, and lanes run along it. */
static void matmul_scalar(const SomeRows *some) {
    const Tensor *w = some->w;
    const Input *in = some->in;
    if (types[w->type].group > 1) {
        for (int t = 0; t < in->T; t += FEW) few_body(some, t);
        return;
    }
    for (int r = some->row; r < some->row + some->n_rows; r++) {
        row_to_float(some->buf, w->data + (size_t)r * row_bytes(w), w->type, (size_t)w->n_in);
        for (int t = 0; t < in->T; t++)
            some->out[(size_t)t * (size_t)w->n_out + r] = dot(some->buf, in->x + (size_t)t * (size_t)w->n_in, (size_t)w->n_in);
    }
}

/* The functions that are one loop, compiled once more for each instruction set: the compiler finds its vectors by itself. */
#define LOOPS_FOR(isa, attribute) \
    attribute static void quantize_##isa(Input *in, int t, float *buf) { quantize_token(in, t, buf); } \
    attribute static void norm_##isa(float *y, const float *x, const float *w, size_t n, float eps) { rmsnorm(y, x, w, n, eps); } \
    attribute static void activate_##isa(float *x, int act, size_t n) { activate_row(x, act, n); } \
    attribute static void gate_##isa(float *y, const float *z, int act, size_t n) { gate_row(y, z, act, n); } \
    attribute static void conv_##isa(const ShortConv *conv, int c) { conv_body(conv, c); }
LOOPS_FOR(scalar, )

/* -- the scalar definitions: recurrence and softmax attention -- */

/* Head h, value columns [j0, j0 + PANEL), all T tokens. S (dk, dv): this head's memory; o (T, H, dv): all heads; buf: (PANEL + 2) dk floats
 * of this thread. */
static void recurrence_scalar(const Recurrence *a, int h, int j0, float *S, float *o, int T, float *buf) {
    (void)buf;
    if (j0) return; /* all columns at once */
    for (int t = 0; t < T; t++) {
        Step step = step_of(a, t, h);
        recurrence_step(S, a->dk, a->dv, &step, a->undecayed, o + ((size_t)t * (size_t)a->H + (size_t)h) * (size_t)a->dv);
    }
}

typedef struct { const Recurrence *a; int h, T; float *S, *o, *buf; } HeadRun; /* for the same in vectors */

/* Queries [row, row + n_rows) of key/value head g; q (n_rows, dk) comes scaled. */
typedef struct { int g, row, n_rows; const float *q; } Queries;

/* The parts (n_rows, part_floats) that `chunk`, keys [chunk KEY_CHUNK, (chunk + 1) KEY_CHUNK), gives to some queries. In steps of KEYS keys: the sums so far are rescaled when a larger score appears, so no row
 * of scores as long as the context is needed. buf: dk + dv floats. */
static void attend_scalar(const Attend *a, const Queries *some, int64_t chunk, float *part, float *buf) {
    const Cache *c = a->cache;
    const int g = some->g, row = some->row, n_rows = some->n_rows;
    const float *q = some->q;
    const int G = a->H / c->heads;
    float *k = buf, *v = k + c->dk, p[KEYS]; /* one key, one value, the scores of a step */
    for (int r = 0; r < n_rows; r++, q += c->dk, part += part_floats(c->dv)) {
        float *o = part, *top = o + part_o(c->dv), *sum = top + 1;
        int64_t i = a->pos + (row + r) / G; /* the query's position; it sees keys [from, end) of the chunk */
        int64_t from = max64(first_visible(a, i), chunk * KEY_CHUNK), end = min64(i + 1, (chunk + 1) * KEY_CHUNK);
        size_t h = (size_t)(g * G + (row + r) % G);
        memset(part, 0, part_floats(c->dv) * sizeof(float));
        *top = -INFINITY;
        for (int64_t j = from, next; j < end; j = next) {
            next = min64(end, (j / KEYS + 1) * KEYS);
            float best = *top;
            for (int64_t x = j; x < next; x++) {
                cache_row(c, x, g, 0, k, 0);
                p[x - j] = dot(q, k, (size_t)c->dk);
                if (c->sums)
                    p[x - j] += (float)(cache_sums(c, i / KEYS)[h * KEYS + (size_t)(i % KEYS)]
                                        - cache_sums(c, x / KEYS)[h * KEYS + (size_t)(x % KEYS)]);
                if (p[x - j] > best) best = p[x - j];
            }
            float keep = fast_exp(*top - best);
            *sum *= keep;
            *top = best;
            for (int d = 0; d < c->dv; d++) o[d] *= keep;
            for (int64_t x = j; x < next; x++) {
                float e = fast_exp(p[x - j] - best);
                cache_row(c, x, g, 1, v, 0);
                *sum += e;
                for (int d = 0; d < c->dv; d++) o[d] += e * v[d];
            }
        }
    }
}

/* Some rows of w, row_step bytes apart, times some rows of x, n numbers of the same type apart, over weights [from, to) of each row; the
 * sums go to out, whose tokens are out_stride floats apart. What is summed before the end of the rows (to < n) waits in part, as vectors:
 * (rows of w, rows of x). */
typedef struct {
    const uint8_t *w;
    size_t row_step;
    const void *x;
    size_t n, from, to;
    float *part, *out;
    size_t out_stride;
} PlainTile;

/* A product of matrices in attention, see gemm. */
typedef struct {
    float *C;
    const float *A, *B;
    size_t cs, as, bs;
    int rows, n, cols, add;
    const uint8_t *ahead;
    size_t ahead_bytes;
} Gemm;

#endif /* LANES */

/* -- the same in vectors, of as many floats as a register holds --
 * The part down to "end of vectors" is compiled for LANES 4, 8 and 16: the file includes itself and skips all the rest. NAME puts the
 * number behind the names of its types and functions: V, a vector of LANES floats, is V_8 for LANES 8. An operator on two V acts on every
 * lane. (Vectors wider than a register would do for clang; gcc keeps them in memory, 30 times slower on AVX2.)
 *
 * Arguments called constants are constant at every call: the functions are inlined, and what depends on them is decided by the compiler. */
#ifdef LANES
#define NAME(name) NAMED(name, LANES)
#define V NAME(V)
#define HALF NAME(HALF)
#define BITS NAME(BITS)
#define ANYWHERE NAME(ANYWHERE)
#define fold NAME(fold)
#define load_weights NAME(load_weights)
#define tile NAME(tile)
#define plain_body NAME(plain_body)
#define load_part NAME(load_part)
#define panel NAME(panel)
#define recurrence_body NAME(recurrence_body)
#define dot_body NAME(dot_body)
#define gemm_rows NAME(gemm_rows)
#define gemm NAME(gemm)

typedef float V __attribute__((vector_size(LANES * 4), aligned(4), may_alias)); /* loads and stores need no alignment */
typedef float ANYWHERE __attribute__((vector_size(LANES * 4), aligned(1), may_alias));
typedef uint16_t HALF __attribute__((vector_size(LANES * 2), aligned(1), may_alias)); /* rows in a file may lie anywhere */
typedef uint32_t BITS __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

/* The sum of the lanes: lane l takes lane l + half, again and again, as fold16. */
INLINE float fold(const V *v) {
    typedef float F8 __attribute__((vector_size(32), aligned(4), may_alias, unused));
    typedef float F4 __attribute__((vector_size(16), aligned(4), may_alias, unused));
    float s[LANES];
    memcpy(s, v, sizeof s);
#if LANES == 16
    *(F8 *)s += *(F8 *)(s + 8);
#endif
#if LANES >= 8
    *(F4 *)s += *(F4 *)(s + 4);
#endif
    return s[0] + s[2] + (s[1] + s[3]);
}

INLINE void load_part(V *v, const float *p, int n) { /* n <= LANES floats, the rest 0 */
    if (n == LANES) {
        *v = *(const V *)p;
    } else {
        *v = (V){0};
        memcpy(v, p, (size_t)n * sizeof(float));
    }
}

/* LANES weights of a plain row at p, to float. type: a constant. */
INLINE void load_weights(V *v, const uint8_t *p, int type) {
    if (type == F32) {
        *v = *(const ANYWHERE *)(const void *)p; /* not memcpy: gcc would make two moves of it, by way of memory */
#if LANES == 16
    } else if (type == BF16) {
        *v = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(LOAD32(p)), 16));
    } else {
        *v = _mm512_cvtph_ps(LOAD32(p));
#elif LANES == 8
    } else if (type == BF16) {
        *v = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(LOAD16(p)), 16));
    } else {
        *v = _mm256_cvtph_ps(LOAD16(p));
#else
    } else if (type == BF16) {
        BITS u = __builtin_convertvector(*(const HALF *)(const void *)p, BITS) << 16;
        memcpy(v, &u, sizeof u);
    } else {
        for (int l = 0; l < LANES; l++) (*v)[l] = f16_at(p + 2 * l);
#endif
    }
}

/* R rows of w (F32, F16 or BF16) times T tokens, as a PlainTile has them. R <= 4, T <= 6, type: constants, so that acc stays in registers. */
INLINE void tile(const PlainTile *at, int type, int R, int T) {
    const uint8_t *w = at->w;
    const float *x = at->x;
    const size_t row_step = at->row_step, n = at->n, from = at->from, to = at->to, out_stride = at->out_stride;
    float *part = at->part, *out = at->out;
    V acc[4][6] = {{{0}}};
    size_t i = from, width = type == F32 ? 4 : 2;
    if (from)
        UNROLL for (int r = 0; r < R; r++)
            UNROLL8 for (int t = 0; t < T; t++) acc[r][t] = ((V *)part)[r * T + t];
    for (; i + LANES <= to; i += LANES) {
        V xv[6], wv;
        UNROLL8 for (int t = 0; t < T; t++) xv[t] = *(const V *)(x + (size_t)t * n + i);
        UNROLL for (int r = 0; r < R; r++) {
            if (T == 1) PREFETCH(w + (size_t)r * row_step + i * width + AHEAD);
            load_weights(&wv, w + (size_t)r * row_step + i * width, type);
            UNROLL8 for (int t = 0; t < T; t++) acc[r][t] += wv * xv[t];
        }
    }
    if (i < to) { /* the last n - i < LANES weights, with zeros behind them */
        V xv[6] = {{0}}, wv;
        uint8_t last[LANES * 4];
        UNROLL8 for (int t = 0; t < T; t++) memcpy(&xv[t], x + (size_t)t * n + i, (n - i) * sizeof(float));
        UNROLL for (int r = 0; r < R; r++) {
            memset(last, 0, sizeof last);
            memcpy(last, w + (size_t)r * row_step + i * width, (n - i) * width);
            load_weights(&wv, last, type);
            UNROLL8 for (int t = 0; t < T; t++) acc[r][t] += wv * xv[t];
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL8 for (int t = 0; t < T; t++) {
            if (to < n) ((V *)part)[r * T + t] = acc[r][t];
            else out[(size_t)t * out_stride + r] = fold(&acc[r][t]);
        }
}

/* Rows of F32, F16 or BF16, 2 ROWS at most. T_TILE tokens meet the rows, R_TILE
 * at a time, over WEIGHTS_AT_ONCE weights of each, so that what these tokens bring stays in the first-level cache while the rows pass; the
 * tokens that are left over are taken one by one. For several tokens, F16 and BF16 become floats in buf (n_rows, n) first. */
INLINE void plain_body(const SomeRows *some, int R_TILE, int T_TILE) {
    const Tensor *w = some->w;
    const Input *in = some->in;
    const int row = some->row, n_rows = some->n_rows;
    size_t n = (size_t)w->n_in, n_out = (size_t)w->n_out, step = row_bytes(w);
    const uint8_t *rows = w->data + (size_t)row * step;
    float part[2 * ROWS * 6 * LANES] __attribute__((aligned(64)));
    int type = w->type, t = 0;
    if (type != F32 && in->T >= (type == F16 && LANES == 4 ? 2 : 4)) {
        for (int r = 0; r < n_rows; r++) {
            const uint8_t *bytes = rows + (size_t)r * step;
            float *to = some->buf + (size_t)r * n;
            size_t i = 0;
            for (; i + LANES <= n; i += LANES) {
                PREFETCH(bytes + (size_t)n_rows * step + 2 * i);
                if (type == F16) load_weights((V *)(to + i), bytes + 2 * i, F16);
                else load_weights((V *)(to + i), bytes + 2 * i, BF16);
            }
            row_to_float(to + i, bytes + 2 * i, type, n - i);
        }
        rows = (const uint8_t *)some->buf;
        step = n * sizeof(float);
        type = F32;
    }
#define TILES(TYPE, R, T, from, to) /* as many times R rows, from r on, as there are */ \
    for (; r + R <= n_rows; r += R) \
        tile(&(PlainTile){rows + (size_t)r * step, step, in->x + (size_t)t * n, n, from, to, \
                          part + (size_t)r * T * LANES, some->out + (size_t)t * n_out + row + r, n_out}, TYPE, R, T)
    for (; t + T_TILE <= in->T && type == F32; t += T_TILE)
        for (size_t at = 0; at < n; at += WEIGHTS_AT_ONCE) {
            size_t to = n - at > WEIGHTS_AT_ONCE ? at + WEIGHTS_AT_ONCE : n;
            int r = 0;
            TILES(F32, R_TILE, T_TILE, at, to);
            TILES(F32, 1, T_TILE, at, to);
        }
    for (; t < in->T; t++) {
        int r = 0;
        if (type == F32) {
            TILES(F32, 4, 1, 0, n);
            TILES(F32, 1, 1, 0, n);
        } else if (type == BF16) {
            TILES(BF16, 4, 1, 0, n);
            TILES(BF16, 1, 1, 0, n);
        } else {
            TILES(F16, 4, 1, 0, n);
            TILES(F16, 1, 1, 0, n);
        }
    }
#undef TILES
}

/* Sum of a[i] b[i] over n floats, in LANES partial sums. */
INLINE float dot_body(const float *a, const float *b, size_t n) {
    V acc = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) acc += *(const V *)(a + i) * *(const V *)(b + i);
    for (int l = 0; i < n; i++, l++) acc[l] += a[i] * b[i];
    return fold(&acc);
}

/* recurrence_step for n_cols value columns of head h from column j0 on, T tokens. A panel of N vectors of columns stays in the first-level
 * cache while all tokens pass over it. One sweep per token: the write of token t-1 is applied while token t reads, and what is read before
 * the write is completed with q.k:
 *     S'k and S'q over the decayed memory give  u = v - rho S'k  and  o = S'q + (q.k) u.
 * A single token works where the memory lies. N, erase, general: constants; without erase nothing is recalled, general adds w, r, c
 * and the bonus.
 *   S (dk, dv) of the head;  o (T, H, dv);  buf (PANEL + 2) dk floats */
INLINE void panel(const HeadRun *run, int j0, int n_cols, const int N, const int erase, const int general) {
    const Recurrence *a = run->a;
    const int h = run->h, T = run->T;
    float *S = run->S, *o = run->o, *buf = run->buf;
    const size_t o_stride = (size_t)a->H * (size_t)a->dv;
    const int dk = a->dk, dv = a->dv, copied = T > 1 || n_cols < N * LANES;
    const size_t step = copied ? (size_t)N * LANES : (size_t)dv; /* floats from one row of the panel to the next */
    float *P = copied ? buf : S + j0;                            /* the panel (dk, N vectors) */
    float *dq = buf + (size_t)dk * PANEL, *de = dq + dk;         /* (dk) each: d * q and d * e of this token */
    const float *k_prev = NULL, *d_prev = NULL, *w_prev = NULL;  /* (dk) k, d, w of the token before, whose write still waits: */
    const int channel = a->d.p && a->d_width > 1;                /* d has a number per key channel; else one for all */
    V u[4] = {{0}}, r[4] = {{0}}, c[4] = {{0}};                  /* S <- Diag(d) S Diag(c) + k u' + w r' */
    if (T < 1) return;
    if (copied && n_cols < N * LANES) memset(P, 0, (size_t)dk * step * sizeof(float));
    for (int i = 0; i < dk && copied; i++)
        memcpy(P + (size_t)i * step, S + (size_t)i * (size_t)dv + j0, (size_t)n_cols * sizeof(float));
#define ROW(i, n) (*(V *)(P + (size_t)(i) * step + (n) * LANES))
#define WRITE(s, n) (general ? (s) * (c[n] * dp) + kp * u[n] + wp * r[n] : (s) * dp + kp * u[n])
#define SWEEP(i, odd, write) { /* what is read through pointers is read before P is written, which could be the same for all C knows */ \
        const float kp = write ? k_prev[i] : 0, dp = write ? d_prev[channel ? (i) : 0] : 0, wp = general && write ? w_prev[i] : 0; \
        const float ke = erase ? de[i] : 0, qe = dq[i]; \
        UNROLL for (int n = 0; n < N; n++) { \
            V s = ROW(i, n); \
            if (write) ROW(i, n) = s = WRITE(s, n); \
            if (erase) recall[odd][n] += ke * s; \
            y[odd][n] += qe * s; \
        } \
    }
    for (int t = 0; t < T; t++) {
        Step now = step_of(a, t, h);
        if (general && !now.w) now.w = now.k; /* times r = 0 */
        const size_t ahead = t + 2 < T ? 2 : 0; /* rows of different tokens lie too far apart for the hardware to guess */
        for (int i = 0; i < dk; i += LANES) {
            __builtin_prefetch(now.q + ahead * a->q.stride + i);
            __builtin_prefetch(now.k + ahead * a->k.stride + i);
            if (channel) __builtin_prefetch(now.d + ahead * a->d.stride + i);
        }
        for (int n = 0; n < N; n++) __builtin_prefetch(now.v + ahead * a->v.stride + j0 + n * LANES);

        // what this token reads with: d q and d e over the memory before it fades
        for (int i = 0; i < dk; i++) {
            float d = now.d[channel ? i : 0];
            dq[i] = d * now.q[i];
            if (erase) de[i] = d * now.e[i];
        }
        if (general && a->undecayed) memcpy(de, now.e, (size_t)dk * sizeof(float));
        float qk = dot_body(now.q, now.k, (size_t)dk), qw = general && a->w.p ? dot_body(now.q, now.w, (size_t)dk) : 0;
        if (general && now.u) {
            memcpy(dq, now.q, (size_t)dk * sizeof(float));
            qk = 0;
            for (int i = 0; i < dk; i++) qk += now.q[i] * now.u[i] * now.k[i];
        }

        // the sweep: the write of the token before, if there is one, then recall = S'e and y = S'q
        V recall[2][4] = {{{0}}}, y[2][4] = {{{0}}}; /* few columns: even and odd i apart, for more additions in flight */
        int i = 0;
#define SWEEPS(write) \
        for (; i + 2 <= dk; i += 2) { \
            SWEEP(i, 0, write) \
            SWEEP(i + 1, N < 4, write) \
        } \
        if (i < dk) SWEEP(i, 0, write)
        if (t) {
            SWEEPS(1)
        } else {
            SWEEPS(0)
        }
#undef SWEEPS

        // what this token writes, u and r; and o, completed by what the write will add
        UNROLL for (int n = 0; n < N; n++) {
            const int at = j0 + n * LANES, left = n_cols - n * LANES, cols = left > LANES ? LANES : left > 0 ? left : 0;
            float *to = o + (size_t)t * o_stride + (size_t)h * (size_t)dv + at;
            V out = y[0][n] + y[1][n], read = recall[0][n] + recall[1][n], v;
            load_part(&v, now.v + at, cols);
            if (general) {
                if (now.c) load_part(&c[n], now.c + at, cols);
                else c[n] = (V){0} + 1.0f;
                if (!now.u) out *= c[n];
                if (!a->undecayed) read *= c[n];
                if (now.r) load_part(&r[n], now.r + at, cols);
                else r[n] = read;
                if (!a->w.p) { /* w = -rho k: written along k, with v */
                    u[n] = v - now.rho * r[n];
                    r[n] = (V){0};
                } else {
                    u[n] = v;
                }
                out += qk * u[n] + qw * r[n];
            } else {
                if (erase) v -= now.rho * read;
                u[n] = v;
                out += qk * u[n];
            }
            if (cols == LANES) *(V *)to = out;
            else memcpy(to, &out, (size_t)cols * sizeof(float));
        }
        k_prev = now.k;
        d_prev = now.d;
        w_prev = now.w;
    }

    // the last write
    for (int i = 0; i < dk; i++) {
        const float kp = k_prev[i], dp = d_prev[channel ? i : 0], wp = general ? w_prev[i] : 0;
        UNROLL for (int n = 0; n < N; n++) ROW(i, n) = WRITE(ROW(i, n), n);
        if (copied) memcpy(S + (size_t)i * (size_t)dv + j0, P + (size_t)i * step, (size_t)n_cols * sizeof(float));
    }
#undef ROW
#undef WRITE
#undef SWEEP
}

/* recurrence_scalar in panels: of four vectors, then of one. The plainest code that this recurrence allows is taken. */
INLINE void recurrence_body(const Recurrence *a, int h, int j0, float *S, float *o, int T, float *buf) {
    const HeadRun run = {a, h, T, S, o, buf};
    const int end = j0 + PANEL < a->dv ? j0 + PANEL : a->dv, general = a->undecayed || a->w.p || a->c.p || a->u.p;
#define PANELS(N) \
    if (general) panel(&run, j, n, N, 1, 1); \
    else if (a->rho.p) panel(&run, j, n, N, 1, 0); \
    else panel(&run, j, n, N, 0, 0)
    for (int j = j0, n; j < end; j += n) { /* what is left of four vectors, one by one */
        n = end - j >= 4 * LANES ? 4 * LANES : end - j < LANES ? end - j : LANES;
        if (n > LANES) {
            PANELS(4);
        } else {
            PANELS(1);
        }
    }
#undef PANELS
}

/* Softmax attention is two products of matrices, S = Q K' and O += P V, whose right sides are tiles of the cache. Both use this:
 *   C (rows, cols) = [C +] A (rows, n) B (n, cols), rows cs, as and bs floats apart; cols a multiple of 32
 * Every element is one chain of multiply-adds in the order of n, whatever the other rows and columns are. Six rows by two vectors are
 * in registers: 12 chains hide the latency, and 8 loads feed 12 multiply-adds. A few rows alone wait for memory: then `ahead_bytes` from
 * ahead on, which come next, are fetched on the way, in steps as even as the loop's.
 * gemm_rows: R of the rows, a constant, from `row` on. */
INLINE void gemm_rows(const Gemm *product, int row, const int R) {
    const size_t cs = product->cs, as = product->as, bs = product->bs;
    const float *A = product->A + (size_t)row * as, *B = product->B;
    float *C = product->C + (size_t)row * cs;
    const int n = product->n, cols = product->cols, add = product->add;
    const uint8_t *ahead = product->ahead;
    const size_t step = product->ahead_bytes / (size_t)(n * cols / (2 * LANES));
    for (int j = 0; j < cols; j += 2 * LANES) {
        V acc[6][2] = {{{0}}}, b0, b1;
        UNROLL8 for (int r = 0; r < R; r++)
            if (add) {
                acc[r][0] = *(V *)(C + (size_t)r * cs + j);
                acc[r][1] = *(V *)(C + (size_t)r * cs + j + LANES);
            }
        for (int i = 0; i < n; i++, ahead += step) {
            if (R < 6) {
                PREFETCH(ahead);
                PREFETCH(ahead + step / 2);
            }
            b0 = *(const V *)(B + (size_t)i * bs + j);
            b1 = *(const V *)(B + (size_t)i * bs + j + LANES);
            UNROLL8 for (int r = 0; r < R; r++) {
                float x = A[(size_t)r * as + (size_t)i];
                acc[r][0] += x * b0;
                acc[r][1] += x * b1;
            }
        }
        UNROLL8 for (int r = 0; r < R; r++) {
            *(V *)(C + (size_t)r * cs + j) = acc[r][0];
            *(V *)(C + (size_t)r * cs + j + LANES) = acc[r][1];
        }
    }
}
INLINE void gemm(const Gemm *product) {
    const int rows = product->rows, left = rows % 6, sixes = rows - left;
    for (int row = 0; row < sixes; row += 6) gemm_rows(product, row, 6);
    if (left & 4) gemm_rows(product, sixes, 4);
    if (left & 2) gemm_rows(product, sixes + (left & 4), 2);
    if (left & 1) gemm_rows(product, rows - 1, 1);
}

#undef NAME
#undef V
#undef HALF
#undef BITS
#undef ANYWHERE
#undef fold
#undef load_weights
#undef tile
#undef plain_body
#undef panel
#undef recurrence_body
#undef dot_body
#undef gemm_rows
#undef gemm
#endif /* LANES: end of vectors */
#ifndef LANES
#if defined(HAVE_VECTORS)
#define NAMED(name, lanes) NAMED_(name, lanes)
#define NAMED_(name, lanes) name##_##lanes
/* -- softmax attention in tiles: what an instruction set must bring, and the rest -- */

typedef struct {
    void (*gemm)(const Gemm *product);
    void (*half_row)(float *y, const uint8_t *x, int n); /* n float16 to float */
    void (*byte_tile)(float *y, size_t stride, const int8_t *q, const float *scale, int rows, int cols, int value);
} AttendOps;
INLINE void half_row(float *y, const uint8_t *x, int n) {
    for (int i = 0; i < n; i++) y[i] = f16_at(x + 2 * i);
}
/* A tile of Q8_0 to floats: q (rows, cols) to y, rows `stride` floats apart. BYTE_SCALE: the scale of row r, column i, for the two ways in
 * which the scales of values and of keys lie (see Cache). */
#define BYTE_SCALE(r, i) scale[value ? (r) * ((cols + 31) / 32) + (i) / 32 : (r) / 32 * KEYS + (i)]
INLINE void byte_tile(float *y, size_t stride, const int8_t *q, const float *scale, int rows, int cols, int value) {
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < cols; i++) y[(size_t)r * stride + (size_t)i] = BYTE_SCALE(r, i) * (float)q[r * cols + i];
}

/* A tile of the cache as floats: itself, or converted to `out`. Keys are (width, KEYS); values the first n of (KEYS, width), in rows of a
 * multiple of 32 floats, zeros behind the width. n: 0 for keys. */
INLINE const float *tile_floats(float *out, const uint8_t *tile, int type, int width, int n, const AttendOps *ops) {
    const int value = n > 0, groups = (width + 31) / 32;
    const size_t stride = value ? round_up((size_t)width, 32) : KEYS;
    int rows = value ? n : width, cols = value ? width : KEYS;
    if (type == F32 && (size_t)cols == stride) return (const float *)(const void *)tile;
    if (type == F16 && (size_t)cols == stride) {
        ops->half_row(out, tile, rows * cols);
        return out;
    }
    if (type == Q8_0) {
        float scale[2 * KEYS];
        ops->half_row(scale, tile + KEYS * width, KEYS * groups);
        ops->byte_tile(out, stride, (const int8_t *)tile, scale, rows, cols, value);
    }
    for (int r = 0; r < rows; r++) {
        float *y = out + (size_t)r * stride;
        if (type == F32) memcpy(y, tile + (size_t)(r * cols) * sizeof(float), (size_t)cols * sizeof(float));
        if (type == F16) ops->half_row(y, tile + r * cols * 2, cols);
        for (size_t i = (size_t)cols; i < stride; i++) y[i] = 0;
    }
    return out;
}

/* The largest of top and of the scores s (KEYS); those outside of [lo, hi) become -infinity. NaN is passed over, and found again by the
 * exponential. In halves, then in lanes, which compilers turn into vectors. */
INLINE float mask_and_max(float *restrict s, int lo, int hi, float top) {
    float m[KEYS / 2];
    if (lo > 0 || hi < KEYS)
        for (int i = 0; i < KEYS; i++) s[i] = i >= lo && i < hi ? s[i] : -INFINITY;
    for (int i = 0; i < KEYS / 2; i++) m[i] = s[i] > s[i + KEYS / 2] ? s[i] : s[i + KEYS / 2];
    for (int i = 0; i < LANES; i++) m[i] = m[i] > m[i + LANES] ? m[i] : m[i + LANES];
    for (int i = 0; i < LANES; i++) top = m[i] > top ? m[i] : top;
    return top;
}

/* s (KEYS) becomes e^(s - top), 0 outside of [lo, hi), and is added to the sum so far, lanes (LANES), of which the new top leaves `keep`. */
INLINE void softmax_step(float *restrict s, int lo, int hi, float top, float keep, float *restrict lanes) {
    for (int i = 0; i < KEYS; i++) s[i] = fast_exp(s[i] - top);
    if (lo > 0 || hi < KEYS)
        for (int i = 0; i < KEYS; i++) s[i] = i >= lo && i < hi ? s[i] : 0;
    for (int l = 0; l < LANES; l++) lanes[l] *= keep;
    for (int i = 0; i < KEYS; i += LANES)
        for (int l = 0; l < LANES; l++) lanes[l] += s[i + l];
}

/* attend_scalar in tiles: a tile of keys or values is converted once and serves all queries, six of which are in registers at once.
 * Where the six do not see the same keys, what only some of them see is added for each alone, before or after the common part.
 *   buf: S (n_rows, KEYS) scores of a step, later P; lanes (n_rows, LANES) sums of P; tile (KEYS, KEYS) keys or values as floats
 * `ahead` is the memory that will be read next: asked for at once for many queries, by gemm on the way for few. */
INLINE void attend_body(const Attend *a, const Queries *some, int64_t chunk, float *part, float *buf, const AttendOps *ops) {
    const Cache *c = a->cache;
    const int g = some->g, row = some->row, n_rows = some->n_rows;
    const float *q = some->q;
    const int dk = c->dk, dv = c->dv, G = a->H / c->heads;
    const size_t stride = part_floats(dv), n_o = part_o(dv);
    float *S = buf, *lanes = S + n_rows * KEYS, *tile = lanes + n_rows * LANES;
    int lo[QUERIES], hi[QUERIES]; /* visible keys of the step */
    float keep[QUERIES] = {0};    /* e^(top before - top after the step) */
    memset(lanes, 0, (size_t)n_rows * LANES * sizeof(float));
    memset(part, 0, (size_t)n_rows * stride * sizeof(float));
    for (int r = 0; r < n_rows; r++) part[(size_t)r * stride + n_o] = -INFINITY;
    int64_t from = max64(first_visible(a, a->pos + row / G), chunk * KEY_CHUNK); /* what any of the queries sees of the chunk */
    int64_t end = min64(a->pos + (row + n_rows - 1) / G + 1, (chunk + 1) * KEY_CHUNK);
    for (int64_t b = from / KEYS; b * KEYS < end; b++) {
        int n = (int)min64(KEYS, end - b * KEYS);
        for (int r = 0; r < n_rows; r++) {
            int64_t i = a->pos + (row + r) / G;
            lo[r] = (int)max64(0, min64(KEYS, first_visible(a, i) - b * KEYS));
            hi[r] = (int)max64(lo[r], min64(KEYS, i + 1 - b * KEYS));
        }

        // S = Q K', a tile of channels at a time
        for (int at = 0; at < dk; at += KEYS) {
            int w = dk - at < KEYS ? dk - at : KEYS;
            const uint8_t *K = cache_tile(c, b, g, 0, at / KEYS), *ahead = K + tile_bytes(c->type, w);
            const size_t next = tile_bytes(c->type, w);
            const float *B = tile_floats(tile, K, c->type, w, 0, ops);
            for (size_t i = 0; i < next && n_rows >= 6; i += ALIGN) PREFETCH(ahead + i);
            for (int r = 0, m; r < n_rows; r += m) {
                m = n_rows - r < 6 ? n_rows - r : 6;
                if (hi[r + m - 1] > 0 && lo[r] < KEYS)
                    ops->gemm(&(Gemm){S + r * KEYS, q + r * dk + at, B, KEYS, (size_t)dk, KEYS,
                                      m, w, (int)round_up((size_t)n, 32), at > 0, ahead, next});
            }
        }

        // P = e^(S - top)
        for (int r = 0; r < n_rows; r++) {
            float *s = S + r * KEYS;
            if (lo[r] == hi[r]) continue;
            if (c->sums) {
                int64_t i = a->pos + (row + r) / G;
                size_t h = (size_t)(g * G + (row + r) % G);
                const double own = cache_sums(c, i / KEYS)[h * KEYS + (size_t)(i % KEYS)], *cj = cache_sums(c, b) + h * KEYS;
                for (int j = 0; j < KEYS; j++) s[j] += (float)(own - cj[j]);
            }
            float *top = part + (size_t)r * stride + n_o, best = mask_and_max(s, lo[r], hi[r], *top);
            keep[r] = *top - best;
            *top = best;
        }
        for (int r = 0; r < n_rows; r++) keep[r] = fast_exp(keep[r]);
        for (int r = 0; r < n_rows; r++) {
            float *o = part + (size_t)r * stride;
            if (lo[r] == hi[r]) continue;
            softmax_step(S + r * KEYS, lo[r], hi[r], o[n_o], keep[r], lanes + r * LANES);
            for (size_t i = 0; i < n_o && keep[r] != 1; i++) o[i] *= keep[r];
        }

        // O += P V, a tile of channels at a time
        for (int at = 0; at < dv; at += KEYS) {
            int w = dv - at < KEYS ? dv - at : KEYS, ws = (int)round_up((size_t)w, 32);
            const uint8_t *V = cache_tile(c, b, g, 1, at / KEYS);
            const uint8_t *ahead = at + KEYS < dv ? V + tile_bytes(c->type, w) : cache_tile(c, b + 1, g, 0, 0);
            const size_t next = tile_bytes(c->type, w);
            const float *B = tile_floats(tile, V, c->type, w, n, ops);
            for (size_t i = 0; i < next && n_rows >= 6; i += ALIGN) PREFETCH(ahead + i);
            for (int r = 0, m; r < n_rows; r += m) {
                int first = 0, last = KEYS; /* keys [first, last) are seen by all of them */
                m = n_rows - r < 6 ? n_rows - r : 6;
                for (int i = r; i < r + m; i++) {
                    first = lo[i] > first ? lo[i] : first;
                    last = hi[i] < last ? hi[i] : last;
                }
                if (first >= last) first = last = KEYS;
                float *O = part + (size_t)r * stride + at, *P = S + r * KEYS;
                for (int i = 0; i < m; i++) { /* before them */
                    int stop = hi[r + i] < first ? hi[r + i] : first;
                    if (lo[r + i] < stop)
                        ops->gemm(&(Gemm){O + (size_t)i * stride, P + i * KEYS + lo[r + i], B + lo[r + i] * ws,
                                          stride, KEYS, (size_t)ws, 1, stop - lo[r + i], ws, 1, ahead, 0});
                }
                if (first < last)
                    ops->gemm(&(Gemm){O, P + first, B + first * ws, stride, KEYS, (size_t)ws, m, last - first, ws, 1, ahead, next});
                for (int i = 0; i < m; i++) /* after them */
                    if (hi[r + i] > last)
                        ops->gemm(&(Gemm){O + (size_t)i * stride, P + i * KEYS + last, B + last * ws,
                                          stride, KEYS, (size_t)ws, 1, hi[r + i] - last, ws, 1, ahead, 0});
            }
        }
    }
    for (int r = 0; r < n_rows; r++) part[(size_t)r * stride + n_o + 1] = fold16(lanes + r * LANES);
}

#if defined(__x86_64__)
/* -- block-quantised weights on AVX2 and AVX-512: from the file's bits to bytes --
 * One place for both says where the bits of 32 weights lie. The functions that use it are made for every type: with the type a constant,
 * memory is the limit and not the unpacking. */
#include <cpuid.h>
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2,fma,f16c")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")))
#define INLINE2 static inline __attribute__((always_inline)) AVX2
#define INLINE512 static inline __attribute__((always_inline)) AVX512
#define LOAD8(p) _mm_loadl_epi64((const void *)(p))
#define LOAD16(p) _mm_loadu_si128((const void *)(p))
#define LOAD32(p) _mm256_loadu_si256((const void *)(p))
#define EACH_TYPE(OF) \
    OF(Q8_0) OF(Q4_0) OF(Q4_1) OF(Q5_0) OF(Q5_1) OF(IQ4_NL) OF(MXFP4) OF(Q2_K) OF(Q3_K) OF(Q4_K) OF(Q5_K) OF(Q6_K) OF(IQ4_XS)

enum { SIGNED_BYTES = -1 };
/* Whether load32 gives q with its sign, or q + this, which is never negative. */
INLINE int offset_of(int type) {
    return type == Q4_0 ? 8 : type == Q5_0 ? 16 : type == Q3_K ? 4 : type == Q6_K ? 32
         : type == Q8_0 || type == IQ4_NL || type == IQ4_XS || type == MXFP4 ? SIGNED_BYTES : 0;
}

/* Weights 32 j to 32 j + 31 of the SEGMENT at b, as bytes (see offset_of); compare the unpackers of section 4. type: a constant.
 *   NIBBLES(p)             the low nibbles of 16 bytes, then the high ones
 *   FIELD(p, shift, mask)  (32 bytes >> shift) & mask
 *   BIT(p, from, to)       bit `from` of 32 bytes, moved to bit `to`
 *   TABLE(t, i)            each index through a table of 16
 *   FIFTH(p)               16 where the 32 bits at p are set */
INLINE2 __m256i load32(const uint8_t *b, const int j, const int type) {
#define ALL(x) _mm256_set1_epi8(x)
#define OR(x, y) _mm256_or_si256(x, y)
#define TWICE(p) _mm256_broadcastsi128_si256(LOAD16(p))
#define NIBBLES(p) _mm256_and_si256(_mm256_srlv_epi32(TWICE(p), _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4)), ALL(15))
#define FIELD(p, shift, mask) _mm256_and_si256(_mm256_srli_epi16(LOAD32(p), shift), ALL(mask))
#define MOVED(x, by) ((by) < 0 ? _mm256_srli_epi16(x, -(by)) : _mm256_slli_epi16(x, by))
#define BIT(p, from, to) _mm256_and_si256(MOVED(LOAD32(p), (to) - (from)), ALL(1 << (to)))
#define TABLE(t, i) _mm256_shuffle_epi8(TWICE(t), i)
#define FIFTH(p) \
    _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32((int)read_u32(p)), spread), bit), bit), ALL(16))
    const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201u);
    const __m256i spread = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const uint8_t *p = b + j * types[type].bytes; /* of the types with blocks of 32 */
    switch (type) {
    case Q8_0: return LOAD32(p + 2);
    case Q4_0: return NIBBLES(p + 2);
    case Q4_1: return NIBBLES(p + 4);
    case Q5_0: return OR(NIBBLES(p + 6), FIFTH(p + 2));
    case Q5_1: return OR(NIBBLES(p + 8), FIFTH(p + 4));
    case IQ4_NL: return TABLE(iq4_values, NIBBLES(p + 2));
    case MXFP4: return TABLE(mxfp4_doubled, NIBBLES(p + 1));
    case IQ4_XS: return TABLE(iq4_values, NIBBLES(b + 8 + 16 * j));
    case Q2_K: return FIELD(b + 16 + 32 * (j / 4), 2 * (j % 4), 3);
    case Q3_K: return OR(FIELD(b + 32 + 32 * (j / 4), 2 * (j % 4), 3), BIT(b, j, 2));
    case Q4_K: return FIELD(b + 16 + 32 * (j / 2), 4 * (j & 1), 15);
    case Q5_K: return OR(FIELD(b + 48 + 32 * (j / 2), 4 * (j & 1), 15), BIT(b + 16, j, 4));
    case Q6_K:
        return OR(FIELD(b + 64 * (j / 4) + 32 * (j & 1), j & 2 ? 4 : 0, 15),
                  _mm256_slli_epi16(FIELD(b + 128 + 32 * (j / 4), 2 * (j % 4), 3), 4));
    default: return _mm256_setzero_si256();
    }
#undef ALL
#undef OR
#undef TWICE
#undef NIBBLES
#undef FIELD
#undef MOVED
#undef BIT
#undef TABLE
#undef FIFTH
}

/* unpack, made for each type. */
#define UNPACK(TYPE) \
    AVX2 static void unpack_avx2_##TYPE(int8_t *q, float *d, float *m, const uint8_t *b) { \
        const int offset = offset_of(TYPE) > 0 ? offset_of(TYPE) : 0; \
        int8_t none[SEGMENT]; \
        unpack(none, d, m, b, TYPE, SEGMENT); /* the scales; the compiler leaves the weights out */ \
        UNROLL8 for (int j = 0; j < 8; j++) \
            _mm256_storeu_si256((void *)(q + 32 * j), _mm256_sub_epi8(load32(b, j, TYPE), _mm256_set1_epi8((char)offset))); \
    }
EACH_TYPE(UNPACK)
AVX2 static void unpack_avx2(int8_t *q, float *d, float *m, const uint8_t *b, int type, int n) {
#define OF(TYPE) [TYPE] = unpack_avx2_##TYPE,
    static void (*const of_type[N_TYPES])(int8_t *q, float *d, float *m, const uint8_t *b) = {EACH_TYPE(OF)};
#undef OF
    if (n == SEGMENT) of_type[type](q, d, m, b);
    else unpack(q, d, m, b, type, n);
}
#undef UNPACK

#endif /* __x86_64__ */
#endif /* HAVE_VECTORS */
#endif /* LANES */

/* -- few tokens times quantised weights, for LANES 8 (AVX2) and 16 (AVX-512) --
 * few_body with LANES rows side by side, one for each lane of a vector of floats, straight from their blocks. */
#if defined(LANES) && LANES >= 8
#define NAME(name) NAMED(name, LANES)
#define V NAME(V)
#define INTS NAME(INTS)
typedef int32_t INTS __attribute__((vector_size(LANES * 4), may_alias));
#if LANES == 8
/* 32 weights of a row become words by shifts alone, the even ones, then the odd ones; the input is in the form PAIRS, in the same order. The
 * products of a row are a vector of sums; those of eight rows are added up as a tree, which leaves row r in lane r. */
typedef struct { __m256i even[8], odd[8]; } Weights_8;
INLINE void weights_8(Weights_8 *w, const uint8_t *const b[8], const int j, const int type) {
    UNROLL8 for (int r = 0; r < 8; r++) {
        const __m256i q = load32(b[r], j, type);
        const int with_sign = offset_of(type) == SIGNED_BYTES;
        w->even[r] = with_sign ? _mm256_srai_epi16(_mm256_slli_epi16(q, 8), 8) : _mm256_and_si256(q, _mm256_set1_epi16(255));
        w->odd[r] = with_sign ? _mm256_srai_epi16(q, 8) : _mm256_srli_epi16(q, 8);
    }
}
INLINE void isums_8(INTS isum[2], const Weights_8 *w, const Input *in, size_t x, const int group) {
    const __m256i even = LOAD32(in->q + x), odd = LOAD32(in->q + x + 16);
    __m256i v[8], a[4], b[2];
    UNROLL8 for (int r = 0; r < 8; r++)
        v[r] = _mm256_add_epi32(_mm256_madd_epi16(w->even[r], even), _mm256_madd_epi16(w->odd[r], odd));
    UNROLL for (int i = 0; i < 4; i++)
        a[i] = _mm256_add_epi32(_mm256_unpacklo_epi32(v[2 * i], v[2 * i + 1]), _mm256_unpackhi_epi32(v[2 * i], v[2 * i + 1]));
    UNROLL for (int i = 0; i < 2; i++)
        b[i] = _mm256_add_epi32(_mm256_unpacklo_epi64(a[2 * i], a[2 * i + 1]), _mm256_unpackhi_epi64(a[2 * i], a[2 * i + 1]));
    isum[0] = (INTS)_mm256_permute2x128_si256(b[0], b[1], 0x20); /* the lower halves are the first 16 weights, the upper ones the others */
    isum[1] = (INTS)_mm256_permute2x128_si256(b[0], b[1], 0x31);
    if (group == 32) isum[0] += isum[1];
}
INLINE int added_8(int type) { return offset_of(type) == SIGNED_BYTES ? 0 : offset_of(type); }
INLINE __m128i halves_8(const uint8_t *const b[8], size_t at) { /* the 16 bits at each b + at */
    __m128i h = _mm_cvtsi32_si128(read_u16(b[0] + at));
#define HALF(r) h = _mm_insert_epi16(h, read_u16(b[r] + at), r)
    HALF(1), HALF(2), HALF(3), HALF(4), HALF(5), HALF(6), HALF(7);
#undef HALF
    return h;
}
INLINE V f16_8(const uint8_t *const b[8], size_t at) { return _mm256_cvtph_ps(halves_8(b, at)); }
INLINE INTS u16_8(const uint8_t *const b[8], size_t at) { return (INTS)_mm256_cvtepu16_epi32(halves_8(b, at)); }
INLINE void words_8(INTS w[4], const uint8_t *const b[8], size_t at) { /* w[k]: the 32 bits at each b + at + 4 k */
    __m256i v[4], a[4];
    UNROLL for (int r = 0; r < 4; r++) v[r] = _mm256_inserti128_si256(_mm256_castsi128_si256(LOAD16(b[r] + at)), LOAD16(b[r + 4] + at), 1);
    UNROLL for (int r = 0; r < 4; r += 2) {
        a[r] = _mm256_unpacklo_epi32(v[r], v[r + 1]);
        a[r + 1] = _mm256_unpackhi_epi32(v[r], v[r + 1]);
    }
    UNROLL for (int i = 0; i < 2; i++) {
        w[2 * i] = (INTS)_mm256_unpacklo_epi64(a[i], a[i + 2]);
        w[2 * i + 1] = (INTS)_mm256_unpackhi_epi64(a[i], a[i + 2]);
    }
}
INLINE V fma_8(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
#else
/* vpdpbusd adds four products of unsigned and signed bytes to each lane. The weights are the unsigned side, 128 more than they are if they
 * have a sign; four of a row lie in its lane, and four inputs, hi or lo, meet all rows at once. */
typedef struct { __m512i four[8]; } Weights_16;
INLINE void weights_16(Weights_16 *w, const uint8_t *const b[16], const int j, const int type) {
    __m512i a[8];
    UNROLL for (int i = 0; i < 4; i++) { /* rows 0 and 1 with 4 and 5; 2 and 3 with 6 and 7; then eight further on */
        __m512i z[2];
        const uint8_t *const *row = b + (i < 2 ? 2 * i : 2 * i + 4);
        UNROLL for (int k = 0; k < 2; k++) {
            z[k] = _mm512_inserti64x4(_mm512_castsi256_si512(load32(row[k], j, type)), load32(row[k + 4], j, type), 1);
            if (offset_of(type) == SIGNED_BYTES) z[k] = _mm512_xor_si512(z[k], _mm512_set1_epi8(-128));
        }
        a[2 * i] = _mm512_unpacklo_epi32(z[0], z[1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32(z[0], z[1]);
    }
    UNROLL for (int i = 0; i < 4; i++) { /* fours 0 and 4, 1 and 5 ... of four rows, then of the four after them */
        const int k = i / 2;
        __m512i x = i & 1 ? _mm512_unpackhi_epi64(a[k], a[k + 2]) : _mm512_unpacklo_epi64(a[k], a[k + 2]);
        __m512i y = i & 1 ? _mm512_unpackhi_epi64(a[k + 4], a[k + 6]) : _mm512_unpacklo_epi64(a[k + 4], a[k + 6]);
        w->four[i] = _mm512_shuffle_i32x4(x, y, 0x88);
        w->four[i + 4] = _mm512_shuffle_i32x4(x, y, 0xdd);
    }
}
INLINE void isums_16(INTS isum[2], const Weights_16 *w, const Input *in, size_t x, const int group) {
    const int halves = 32 / group;
    UNROLL for (int h = 0; h < halves; h++) {
        __m512i hi = _mm512_setzero_si512(), lo = hi;
        UNROLL8 for (int i = 0; i < group / 4; i++) {
            hi = _mm512_dpbusd_epi32(hi, w->four[4 * h + i], _mm512_set1_epi32((int)read_u32((const uint8_t *)in->hi + x + 16 * h + 4 * i)));
            lo = _mm512_dpbusd_epi32(lo, w->four[4 * h + i], _mm512_set1_epi32((int)read_u32((const uint8_t *)in->lo + x + 16 * h + 4 * i)));
        }
        isum[h] = ((INTS)hi << 8) + (INTS)lo;
    }
}
INLINE int added_16(int type) { return offset_of(type) == SIGNED_BYTES ? 128 : offset_of(type); }
INLINE __m256i halves_16(const uint8_t *const b[16], size_t at) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(halves_8(b, at)), halves_8(b + 8, at), 1);
}
INLINE V f16_16(const uint8_t *const b[16], size_t at) { return _mm512_cvtph_ps(halves_16(b, at)); }
INLINE INTS u16_16(const uint8_t *const b[16], size_t at) { return (INTS)_mm512_cvtepu16_epi32(halves_16(b, at)); }
INLINE void words_16(INTS w[4], const uint8_t *const b[16], size_t at) {
    INTS_8 low[4], high[4];
    words_8(low, b, at);
    words_8(high, b + 8, at);
    UNROLL for (int k = 0; k < 4; k++) w[k] = (INTS)_mm512_inserti64x4(_mm512_castsi256_si512((__m256i)low[k]), (__m256i)high[k], 1);
}
INLINE V fma_16(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
#endif
#define scales NAME(scales)
#define rows_at NAME(rows_at)
#define few NAME(few)

/* Scales and minimums of the SEGMENT at each b, a row per lane: d, m (groups, LANES); compare the unpackers of section 4. type: a constant. */
INLINE void scales(V *d, V *m, const uint8_t *const b[LANES], const int type) {
#define FLOATS(x) __builtin_convertvector(x, V)
    const size_t bytes = (size_t)types[type].bytes;
    INTS w[4];
    V scale, min = {0};
    if (types[type].elems == 32) { /* a float16, or two, at the head of each block */
        for (size_t j = 0; j < 8; j++) {
            if (type == MXFP4) {
                const INTS e = NAME(u16)(b, j * bytes) & 255, tiny = e < 2;
                const INTS bits = (((INTS){0} + 0x00200000) << (e & 1) & tiny) | ((e - 1) << 23 & ~tiny);
                memcpy(&d[j], &bits, sizeof bits);
            } else {
                d[j] = NAME(f16)(b, j * bytes);
            }
            if (types[type].min) m[j] = -NAME(f16)(b, j * bytes + 2);
        }
        return;
    }
    NAME(words)(w, b, type == Q3_K ? 94 : type == Q6_K ? 192 : 0);
    if (type == Q3_K) /* the words begin two bytes further on, but 16 bytes from there would leave the block */
        for (int i = 0; i < 3; i++) w[i] = (w[i] >> 16 & 0xffff) | w[i + 1] << 16;
    scale = NAME(f16)(b, type == Q2_K ? 80 : type == Q3_K ? 108 : type == Q6_K ? 208 : 0);
    if (types[type].min) min = NAME(f16)(b, type == Q2_K ? 82 : 2);
    UNROLL for (int k = 0; k < 4; k++) {
        const int byte = 8 * k;
        if (type == Q4_K || type == Q5_K) {
            d[k] = scale * FLOATS(w[1] >> byte & 63);
            m[k] = min * FLOATS(w[2] >> byte & 63);
            d[k + 4] = scale * FLOATS((w[3] >> byte & 15) | (w[1] >> (byte + 2) & 0x30));
            m[k + 4] = min * FLOATS((w[3] >> (byte + 4) & 15) | (w[2] >> (byte + 2) & 0x30));
        }
        if (type == IQ4_XS)
            UNROLL for (int h = 0; h < 2; h++)
                d[2 * k + h] = scale * FLOATS(((w[1] >> (byte + 4 * h) & 15) | (w[0] >> (16 + 4 * k + 2 * h) & 3) << 4) - 32);
        UNROLL for (int i = 0; i < 4; i++) { /* 16 groups, of which the byte k of w[i] is number 4 i + k */
            const int g = 4 * i + k;
            if (type == Q2_K) {
                d[g] = scale * FLOATS(w[i] >> byte & 15);
                m[g] = min * FLOATS(w[i] >> (byte + 4) & 15);
            }
            if (type == Q3_K) d[g] = scale * FLOATS(((w[i % 2] >> (byte + i / 2 * 4) & 15) | (w[2] >> (byte + 2 * i) & 3) << 4) - 32);
            if (type == Q6_K) d[g] = scale * FLOATS(w[i] << (24 - byte) >> 24);
        }
    }
#undef FLOATS
}

/* b: where weights `at` and on of the rows [row, row + LANES) begin; rows beyond the end are the last one again. What is left of a row at its
 * end, less than a SEGMENT, is copied to `padded` with zeros behind it. */
typedef uint8_t NAME(Padded)[LANES][SEGMENT + 64]; /* the largest, eight blocks of Q8_0, take 272 bytes */
INLINE void rows_at(const uint8_t *b[LANES], NAME(Padded) padded, const Tensor *w, int row, int at) {
    for (int r = 0; r < LANES; r++) {
        b[r] = w->data + (size_t)(row + r < w->n_out ? row + r : w->n_out - 1) * row_bytes(w) + bytes_of(w->type, (size_t)at);
        if (w->n_in - at >= SEGMENT) continue;
        memset(padded[r], 0, sizeof padded[r]);
        b[r] = memcpy(padded[r], b[r], bytes_of(w->type, (size_t)(w->n_in - at)));
    }
}

/* Rows [row, row + LANES) and at most FEW tokens. one: of a single token the sums stay in a register. type,
 * one: constants. */
INLINE void few(const SomeRows *some, const int type, const int one) {
    const Tensor *w = some->w;
    const Input *in = some->in;
    const int n = w->n_in, group = types[type].group, halves = 32 / group, added = NAME(added)(type), T = one ? 1 : in->T;
    const size_t segment = bytes_of(type, SEGMENT), step = row_bytes(w);
    const uint8_t *b[LANES];
    NAME(Padded) padded;
    V d[16], m[16]; /* of the groups */
    V S[FEW] = {{0}};
    for (int at = 0; at < n; at += SEGMENT) {
        rows_at(b, padded, w, some->row, at);
        scales(d, m, b, type);
        UNROLL8 for (int j = 0; j < 8; j++) {
            NAME(Weights) v;
            for (int r = j; r < LANES; r += 8) /* of a few rows, what comes after these LANES */
                for (size_t i = 0; i < segment; i += 64) PREFETCH(b[r] + LANES * step + i);
            NAME(weights)(&v, b, j, type);
            for (int t = 0; t < T; t++) {
                const int32_t *fsum = in->fsum + (size_t)t * (size_t)(n / 16) + at / 16 + 2 * j;
                INTS isum[2];
                NAME(isums)(isum, &v, in, (size_t)t * (size_t)n + (size_t)(at + 32 * j), group);
                UNROLL for (int h = 0; h < halves; h++) {
                    const int g = halves * j + h;
                    const int32_t own = sum_of(fsum, group, h);
                    if (added) isum[h] -= own * added;
                    S[t] = NAME(fma)(__builtin_convertvector(isum[h], V), d[g], S[t]);
                    if (types[type].min) S[t] = NAME(fma)(-m[g], (V){0} + (float)own, S[t]);
                }
            }
        }
    }
    for (int t = 0; t < T; t++) {
        const V y = S[t] * in->D[t];
        memcpy(some->out + (size_t)t * (size_t)w->n_out + some->row, &y, (size_t)(some->n_rows < LANES ? some->n_rows : LANES) * sizeof(float));
    }
}
#define FEW_OF(TYPE) \
    static void NAMED(one_##TYPE, LANES)(const SomeRows *some) { few(some, TYPE, 1); } \
    static void NAMED(few_##TYPE, LANES)(const SomeRows *some) { few(some, TYPE, 0); }
EACH_TYPE(FEW_OF)
#define OF(TYPE) [TYPE] = {NAMED(one_##TYPE, LANES), NAMED(few_##TYPE, LANES)},
static void (*const NAME(few_of)[N_TYPES][2])(const SomeRows *some) = {EACH_TYPE(OF)};
#undef OF
#undef FEW_OF
static void NAME(few_rows)(const SomeRows *some) { /* ROWS at most */
    for (SomeRows part = *some; part.n_rows > 0; part.row += LANES, part.n_rows -= LANES)
        NAME(few_of)[some->w->type][some->in->T > 1](&part);
}
#undef NAME
#undef V
#undef INTS
#undef scales
#undef rows_at
#undef few
#endif /* LANES: end of few tokens */

#ifndef LANES
#if defined(HAVE_VECTORS)
#ifndef THIS_FILE /* under another name, and compilers that do not know it: -DTHIS_FILE='"gla.h"' */
#ifdef __FILE_NAME__
#define THIS_FILE __FILE_NAME__
#else
#define THIS_FILE "run.c"
#endif
#endif
#define LANES 4
#include THIS_FILE
#undef LANES
#if defined(__x86_64__)
/* What is included may use these instructions everywhere, without an attribute for each function. */
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#define LANES 8
#include THIS_FILE
#undef LANES
#ifdef __clang__
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")
#endif
#define LANES 16
#include THIS_FILE
#undef LANES
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

/* -- kernels per instruction set, from the bodies above --
 * isa ends their names, attribute lets the compiler use its instructions, lanes is the number of floats in its registers. */

#define ATTEND_FOR(isa, attribute, lanes, half_row, byte_tile) \
    attribute NOINLINE static void gemm_##isa(const Gemm *product) { gemm_##lanes(product); } \
    attribute static void attend_##isa(const Attend *a, const Queries *some, int64_t chunk, float *part, float *buf) { \
        attend_body(a, some, chunk, part, buf, &(const AttendOps){gemm_##isa, half_row, byte_tile}); \
    }
#define KERNELS_FOR(isa, attribute, lanes) \
    LOOPS_FOR(isa, attribute) \
    attribute static void recurrence_##isa(const Recurrence *a, int h, int j0, float *S, float *o, int n_tokens, float *buf) { \
        recurrence_body_##lanes(a, h, j0, S, o, n_tokens, buf); \
    }
/* Where no better way to multiply integers is known: few_body as it is. tr x tt outputs of a plain matmul are in registers at once. */
#define MATMUL_FOR(isa, attribute, lanes, tr, tt) \
    attribute static void matmul_##isa(const SomeRows *some) { \
        if (types[some->w->type].group == 1) plain_body_##lanes(some, tr, tt); \
        else for (int t = 0; t < some->in->T; t += FEW) few_body(some, t); \
    }
#if defined(__x86_64__)
KERNELS_FOR(sse2, , 4)
ATTEND_FOR(sse2, , 4, half_row, byte_tile)
MATMUL_FOR(sse2, , 4, 4, 2)
/* f16 rows and q8_0 tiles of the cache to floats, as half_row and byte_tile. MM: the prefix of the instructions; halves(p), bytes(p): what
 * loads `lanes` of them at p. */
#define WIDEN_FOR(isa, attribute, MM, lanes, halves, bytes) \
    attribute static void half_row_##isa(float *y, const uint8_t *x, int n) { \
        int i = 0; \
        for (; i + lanes <= n; i += lanes) MM##_storeu_ps(y + i, MM##_cvtph_ps(halves(x + 2 * i))); \
        half_row(y + i, x + 2 * i, n - i); \
    } \
    attribute static void byte_tile_##isa(float *y, size_t stride, const int8_t *q, const float *scale, int rows, int cols, int value) { \
        for (int r = 0; value && r < rows; r++, q += cols) { \
            float *to = y + (size_t)r * stride; \
            int i = 0; \
            for (; i + lanes <= cols; i += lanes) \
                MM##_storeu_ps(to + i, MM##_mul_ps(MM##_set1_ps(BYTE_SCALE(r, i)), \
                                                   MM##_cvtepi32_ps(MM##_cvtepi8_epi32(bytes(q + i))))); \
            for (; i < cols; i++) to[i] = BYTE_SCALE(r, i) * (float)q[i]; \
        } \
        for (int r = 0; !value && r < rows; r += 32) \
            for (int i = 0; i < KEYS; i += lanes) { \
                const __typeof__(MM##_setzero_ps()) d = MM##_loadu_ps(scale + r / 32 * KEYS + i); \
                for (int j = r; j < rows && j < r + 32; j++) \
                    MM##_storeu_ps(y + (size_t)j * stride + i, \
                                   MM##_mul_ps(d, MM##_cvtepi32_ps(MM##_cvtepi8_epi32(bytes(q + j * KEYS + i))))); \
            } \
    }
KERNELS_FOR(avx2, AVX2, 8)
WIDEN_FOR(avx2, AVX2, _mm256, 8, LOAD16, LOAD8)
ATTEND_FOR(avx2, AVX2, 8, half_row_avx2, byte_tile_avx2)
KERNELS_FOR(avx512, AVX512, 16)
WIDEN_FOR(avx512, AVX512, _mm512, 16, LOAD32, LOAD16)
ATTEND_FOR(avx512, AVX512, 16, half_row_avx512, byte_tile_avx512)

/* -- AVX-512 with VNNI: vpdpbusd multiplies 64 unsigned by 64 signed bytes into 16 sums --
 * Weights become panels, the signed side, and the inputs in TILES are the unsigned one. Last comes what BF16 does. */

/* -- AVX-512: many tokens -- */

/* 16 rows x 32 weights: dword l of q[j] holds weights 4j..4j+3 of row l; per group (one of 32, or two of 16) the scale, the minimum, and
 * -128 times the sum of the weights, which takes back what hi + 128 adds too much. */
typedef struct { int8_t q[8][64]; float d[2][16], m[2][16]; int32_t bias[2][16]; } __attribute__((aligned(64))) Panel;

/* A SEGMENT of each of 16 rows to eight panels, made for each type. */
#define PANELS(TYPE) \
    AVX512 static void panels_##TYPE(Panel *p, const uint8_t *const b[16]) { \
        const int group = types[TYPE].group, halves = 32 / group; \
        V_16 d[16], m[16]; \
        scales_16(d, m, b, TYPE); \
        UNROLL8 for (int j = 0; j < 8; j++) { \
            Weights_16 w; \
            weights_16(&w, b, j, TYPE); \
            UNROLL for (int h = 0; h < halves; h++) { \
                __m512i sum = _mm512_setzero_si512(); \
                UNROLL8 for (int i = 0; i < group / 4; i++) { \
                    const __m512i q = _mm512_sub_epi8(w.four[4 * h + i], _mm512_set1_epi8((char)added_16(TYPE))); \
                    _mm512_store_si512(p[j].q[4 * h + i], q); \
                    sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), q); \
                } \
                _mm512_store_si512(p[j].bias[h], _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(sum, 7))); \
                _mm512_store_ps(p[j].d[h], d[halves * j + h]); \
                if (types[TYPE].min) _mm512_store_ps(p[j].m[h], m[halves * j + h]); \
            } \
        } \
    }
EACH_TYPE(PANELS)
#undef PANELS

/* Rows [row, row + 16) of w, n_blocks (BLOCKS_AT_ONCE, two segments, or what is left of the row) from block b0 on, to panels. */
AVX512 static void make_panels(Panel *p, const Tensor *w, int row, int b0, int n_blocks) {
#define OF(TYPE) [TYPE] = panels_##TYPE,
    static void (*const panels_of[N_TYPES])(Panel *p, const uint8_t *const b[16]) = {EACH_TYPE(OF)};
#undef OF
    const size_t segment = bytes_of(w->type, SEGMENT), ahead = 2 * ROWS * row_bytes(w);
    const uint8_t *b[16];
    Padded_16 padded;
    Panel last[8]; /* of a segment that the row does not fill */
    for (int at = 0; at < n_blocks; at += 8) {
        rows_at_16(b, padded, w, row, 32 * (b0 + at));
        for (int r = 0; r < ROWS; r++)
            for (size_t i = 0; i < segment; i += 64) __builtin_prefetch(b[r] + ahead + i, 0, 2);
        panels_of[w->type](n_blocks - at < 8 ? last : p + at, b);
        if (n_blocks - at < 8) memcpy(p + at, last, (size_t)(n_blocks - at) * sizeof *p);
    }
}

/* Two panels (32 rows; the second is BLOCKS_AT_ONCE behind the first) times T <= TILE tokens over n_blocks; x: their pieces of TILES (see
 * Input). S (T, 32) holds the float sums from one call to the next; first: they begin at zero. A broadcast of 4 bytes of x
 * serves both panels; 12 integer and 12 float sums, 2 weights and the broadcast are in registers. group, min, fast, T: constants. */
typedef struct { float *S; const Panel *p; const uint8_t *x; int n_blocks, first; } PanelTile;
INLINE512 void tile512(const PanelTile *at, const int group, const int min, const int fast, const int T) {
    float *S = at->S;
    const Panel *p = at->p;
    const uint8_t *x = at->x;
    const int n_blocks = at->n_blocks, first = at->first;
    __m512 s[2][TILE];
    UNROLL8 for (int t = 0; t < T; t++)
        UNROLL for (int r = 0; r < 2; r++) s[r][t] = first ? _mm512_setzero_ps() : _mm512_load_ps(S + 32 * t + 16 * r);
    for (int b = 0; b < n_blocks; b++, p++, x += tile_bytes_of(fast)) {
        __m512i acc[2][TILE];
        for (int h = 0; h < 32 / group; h++) {
            __m512i b0 = _mm512_load_si512(p->bias[h]), b1 = _mm512_load_si512(p[BLOCKS_AT_ONCE].bias[h]);
            UNROLL8 for (int t = 0; t < T; t++) {
                acc[0][t] = b0;
                acc[1][t] = b1;
            }
            for (int half = 0; half < 2 - fast; half++) { /* hi, then lo: acc = 256 sum(w hi) + sum(w lo) */
                UNROLL8 for (int j = 0; j < group / 4; j++) {
                    __m512i w0 = _mm512_load_si512(p->q[h * 4 + j]), w1 = _mm512_load_si512(p[BLOCKS_AT_ONCE].q[h * 4 + j]);
                    UNROLL8 for (int t = 0; t < T; t++) {
                        __m512i v = _mm512_set1_epi32(*(const int32_t *)(const void *)(x + half * T_LO + 32 * t + (h * 4 + j) * 4));
                        __asm__("" : "+v"(v)); /* one broadcast load, used twice: else the compiler loads it twice */
                        acc[0][t] = _mm512_dpbusd_epi32(acc[0][t], v, w0);
                        acc[1][t] = _mm512_dpbusd_epi32(acc[1][t], v, w1);
                    }
                }
                if (half == 0)
                    UNROLL8 for (int t = 0; t < T; t++) {
                        const int32_t *own = (const int32_t *)(const void *)(x + T_SHIFT + 4 * t);
                        const __m512i shift = fast ? _mm512_set1_epi32(*own) : _mm512_set1_epi32(8);
                        acc[0][t] = _mm512_sllv_epi32(acc[0][t], shift);
                        acc[1][t] = _mm512_sllv_epi32(acc[1][t], shift);
                    }
            }
            UNROLL for (int r = 0; r < 2; r++) {
                __m512 d = _mm512_load_ps(p[r * BLOCKS_AT_ONCE].d[h]);
                UNROLL8 for (int t = 0; t < T; t++) {
                    const float *fsum = (const float *)(const void *)(x + T_SUM + 12 * t + (group == 16 ? 4 + 4 * h : 0));
                    s[r][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[r][t]), d, s[r][t]);
                    if (min) s[r][t] = _mm512_fnmadd_ps(_mm512_load_ps(p[r * BLOCKS_AT_ONCE].m[h]), _mm512_set1_ps(*fsum), s[r][t]);
                }
            }
        }
    }
    UNROLL8 for (int t = 0; t < T; t++)
        UNROLL for (int r = 0; r < 2; r++) _mm512_store_ps(S + 32 * t + 16 * r, s[r][t]);
}
typedef void Tile512(const PanelTile *at);
#define TILE512(group, min, fast, T) \
    AVX512 static void tile512_##group##_##min##_##fast##_##T(const PanelTile *at) { tile512(at, group, min, fast, T); }
#define TILES512(group, min) \
    TILE512(group, min, 0, 2) TILE512(group, min, 0, 4) TILE512(group, min, 0, 6) \
    TILE512(group, min, 1, 2) TILE512(group, min, 1, 4) TILE512(group, min, 1, 6)
TILES512(32, 0) TILES512(32, 1) TILES512(16, 0) TILES512(16, 1)
#define OF(group, min, fast) \
    {tile512_##group##_##min##_##fast##_2, tile512_##group##_##min##_##fast##_4, tile512_##group##_##min##_##fast##_6}
static Tile512 *const tiles512[2][2][2][3] = { /* fast; groups of 16; minimums; pairs of tokens - 1 */
    {{OF(32, 0, 0), OF(32, 1, 0)}, {OF(16, 0, 0), OF(16, 1, 0)}},
    {{OF(32, 0, 1), OF(32, 1, 1)}, {OF(16, 0, 1), OF(16, 1, 1)}},
};
#undef TILE512
#undef TILES512
#undef OF

/* Rows [row, row + n_rows), n_rows <= 32, times all tokens of a tiled input.
 *   buf: 2 BLOCKS_AT_ONCE panels, S (tokens, rounded up to TILE; 32) */
AVX512 static void many512(const SomeRows *some) {
    const Tensor *w = some->w;
    const Input *in = some->in;
    const int row = some->row, n_rows = some->n_rows;
    const int blocks = w->n_in / 32;
    Tile512 *const *tile_of = tiles512[in->fast][types[w->type].group == 16][types[w->type].min];
    Panel *panels = (Panel *)(void *)some->buf;
    float *S = (float *)(void *)(panels + 2 * BLOCKS_AT_ONCE);
    for (int b = 0; b < blocks; b += BLOCKS_AT_ONCE) {
        int n = blocks - b < BLOCKS_AT_ONCE ? blocks - b : BLOCKS_AT_ONCE;
        make_panels(panels, w, row, b, n);
        make_panels(panels + BLOCKS_AT_ONCE, w, row + ROWS, b, n);
        for (int t = 0; t < in->T; t += TILE) {
            float *s = S + 32 * t;
            const uint8_t *x = in->tiles + ((size_t)(t / TILE) * (size_t)blocks + (size_t)b) * tile_bytes_of(in->fast);
            tile_of[in->T - t >= TILE ? 2 : (in->T - t - 1) / 2](&(PanelTile){s, panels, x, n, b == 0});
            if (b + n < blocks) continue;
            for (int i = 0; i < TILE && t + i < in->T; i++)
                for (int r = 0; r < n_rows; r += ROWS) {
                    __mmask16 live = n_rows - r >= ROWS ? 0xffff : (__mmask16)((1u << (n_rows - r)) - 1);
                    _mm512_mask_storeu_ps(some->out + (size_t)(t + i) * (size_t)w->n_out + row + r, live,
                                          _mm512_mul_ps(_mm512_load_ps(s + 32 * i + r), _mm512_set1_ps(in->D[t + i])));
                }
        }
    }
}

/* -- AVX-512: BF16 -- */

/* BF16 rows times tokens rounded to BF16 (fast), as `tile`: vdpbf16ps adds two products to each of 16 sums. R rows, T tokens: constants. */
#define AVX512BF16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,fma,f16c,avx2")))
static inline __attribute__((always_inline)) AVX512BF16
void tile512_bf16(const PlainTile *at, const int R, const int T) {
    const size_t n = at->n, step = at->row_step, from = at->from, to = at->to;
    const uint8_t *rows = at->w;
    const uint16_t *x = at->x;
    float *part = at->part, *out = at->out;
    __m512 acc[4][6];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL8 for (int j = 0; j < T; j++) acc[r][j] = from ? _mm512_load_ps(part + (r * T + j) * 16) : _mm512_setzero_ps();
    for (size_t i = from; i < to; i += 32) {
        const __mmask32 live = n - i >= 32 ? 0xffffffff : (1u << (n - i)) - 1;
        __m512bh v[6];
        UNROLL8 for (int j = 0; j < T; j++) v[j] = (__m512bh)_mm512_maskz_loadu_epi16(live, x + (size_t)j * n + i);
        UNROLL for (int r = 0; r < R; r++) {
            const uint8_t *p = rows + (size_t)r * step + 2 * i;
            if (T == 1) __builtin_prefetch(p + AHEAD);
            __m512bh u = (__m512bh)_mm512_maskz_loadu_epi16(live, p);
            UNROLL8 for (int j = 0; j < T; j++) acc[r][j] = _mm512_dpbf16_ps(acc[r][j], u, v[j]);
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL8 for (int j = 0; j < T; j++) {
            if (to < n) _mm512_store_ps(part + (r * T + j) * 16, acc[r][j]);
            else out[(size_t)j * at->out_stride + (size_t)r] = _mm512_reduce_add_ps(acc[r][j]);
        }
}
/* plain_body for BF16 rows and tokens. */
AVX512BF16 static void fast512_bf16(const SomeRows *some) {
    float part[2 * ROWS * TILE * 16] __attribute__((aligned(64)));
    const Input *in = some->in;
    const size_t n = (size_t)some->w->n_in, n_out = (size_t)some->w->n_out, step = row_bytes(some->w);
    const uint8_t *rows = some->w->data + (size_t)some->row * step;
    const int n_rows = some->n_rows;
    int t = 0;
#define TILES(R, T, from, to) \
    for (; r + R <= n_rows; r += R) \
        tile512_bf16(&(PlainTile){rows + (size_t)r * step, step, in->half + (size_t)t * n, n, from, to, \
                                  part + r * T * 16, some->out + (size_t)t * n_out + some->row + r, n_out}, R, T)
    for (; t + TILE <= in->T; t += TILE)
        for (size_t at = 0; at < n; at += 2 * WEIGHTS_AT_ONCE) {
            size_t to = n - at > 2 * WEIGHTS_AT_ONCE ? at + 2 * WEIGHTS_AT_ONCE : n;
            int r = 0;
            TILES(4, 6, at, to);
            TILES(1, 6, at, to);
        }
    for (; t < in->T; t++) {
        int r = 0;
        TILES(4, 1, 0, n);
        TILES(1, 1, 0, n);
    }
#undef TILES
}

/* -- AVX-512: which of these -- */

/* Rows of any type; ROWS at most, or 2 ROWS for plain types and TILES. */
AVX512 static void matmul_avx512(const SomeRows *some) {
    const int type = some->w->type;
    if (types[type].group == 1) plain_body_16(some, 4, 6);
    else if (some->in->form == TILES) many512(some);
    else few_rows_16(some);
}
AVX512 static void matmul_avx512bf16(const SomeRows *some) {
    if (some->w->type == BF16 && some->in->half) fast512_bf16(some);
    else matmul_avx512(some);
}
#endif

/* -- block-quantised weights times many tokens, on every other instruction set --
 * Panels of 16 rows (many_rows). An instruction set adds how it multiplies integers over a panel (Tile). */

/* S (TILE, 16) of tokens t .. t + TILE - 1 (the last one stands in for those beyond the end) goes on over weights [at, at + n) of 16 rows:
 * q the panel, d and m (groups, 16), m NULL without minimums. */
typedef struct { float *S; const int8_t *q; const float *d, *m; const Input *in; int t, at, n, group; } RowsTile;
typedef void Tile(const RowsTile *tile);
typedef void Unpack(int8_t *q, float *d, float *m, const uint8_t *b, int type, int n);

/* lo and hi: the units (of 1, 2, 4 or 8 bytes) of a and b in turn, a0 b0 a1 b1 ... */
INLINE void zip(B16 *lo, B16 *hi, B16 a, B16 b, const int unit) {
#if defined(__clang__)
#define ZIP(...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define ZIP(...) __builtin_shuffle(a, b, (B16){__VA_ARGS__})
#endif
    if (unit == 1) {
        *lo = ZIP(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        *hi = ZIP(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    }
    if (unit == 2) {
        *lo = ZIP(0, 1, 16, 17, 2, 3, 18, 19, 4, 5, 20, 21, 6, 7, 22, 23);
        *hi = ZIP(8, 9, 24, 25, 10, 11, 26, 27, 12, 13, 28, 29, 14, 15, 30, 31);
    }
    if (unit == 4) {
        *lo = ZIP(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
        *hi = ZIP(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    }
    if (unit == 8) {
        *lo = ZIP(0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
        *hi = ZIP(8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    }
#undef ZIP
}
/* 16 rows of 16 bytes, `step` bytes apart, to (16 / unit, 16, unit): unit bytes of each row side by side. unit: 1, 2, 4 or 8, a constant.
 * Squares of 16 / unit rows are transposed: zipping the upper half with the lower one rotates the index (row, column) by a bit, and after
 * as many turns as the index of a column has bits, row and column have changed places. */
INLINE void interleave(void *out, const void *in, size_t step, const int unit) {
    const int m = 16 / unit;
    for (int g = 0; g < ROWS; g += m) {
        B16 a[16], b[16];
        UNROLL16 for (int i = 0; i < m; i++) a[i] = *(const B16 *)(const void *)((const uint8_t *)in + (size_t)(g + i) * step);
        UNROLL for (int turn = 0; turn < 4; turn++) {
            if (m >> turn <= 1) break;
            UNROLL8 for (int i = 0; i < m / 2; i++) zip(&b[2 * i], &b[2 * i + 1], a[i], a[i + m / 2], unit);
            UNROLL16 for (int i = 0; i < m; i++) a[i] = b[i];
        }
        UNROLL16 for (int i = 0; i < m; i++) *(B16 *)(void *)((uint8_t *)out + (16 * i + g) * unit) = a[i];
    }
}

/* Many tokens: panels of 16 rows x BLOCKS_AT_ONCE blocks, unit weights of each row side by side, wide: as 16-bit integers. Rows beyond
 * the end repeat the last one. unit, wide: constants.
 *   buf: the panel's scales and minimums d, m (GROUPS, 16); those of 16 rows as they come, row_d, row_m (16, GROUPS); S (tokens, 16);
 *        the panel q (STEP / unit, 16, unit), room for 16-bit integers; and 16 rows as they come, row_q (16, STEP) */
INLINE void many_rows(const SomeRows *some, Unpack unpack_fn, Tile tile_fn, const int unit, const int wide) {
    enum { STEP = BLOCKS_AT_ONCE * 32, GROUPS = STEP / 16 }; /* weights of a row at once, and the most groups they can have */
    const Tensor *w = some->w;
    const Input *in = some->in;
    const int row = some->row, n_rows = some->n_rows;
    const int type = w->type, group = types[type].group, min = types[type].min;
    float *out = some->out, *d = some->buf, *m = d + GROUPS * ROWS, *row_d = m + GROUPS * ROWS, *row_m = row_d + ROWS * GROUPS, *S = row_m + ROWS * GROUPS;
    int8_t *q = (int8_t *)(void *)(S + round_up((size_t)in->T, TILE) * ROWS), *row_q = q + 2 * STEP * ROWS;
    memset(S, 0, round_up((size_t)in->T, TILE) * ROWS * sizeof(float));
    for (int at = 0; at < w->n_in; at += STEP) {
        int n = w->n_in - at < STEP ? w->n_in - at : STEP;

        // 16 rows as they come
        for (int r = 0; r < ROWS; r++) {
            const uint8_t *bytes = w->data + (size_t)(row + (r < n_rows ? r : n_rows - 1)) * row_bytes(w) + bytes_of(type, (size_t)at);
            for (size_t i = 0; i < bytes_of(type, STEP); i += 64) /* what comes after these rows */
                __builtin_prefetch(bytes + ROWS * row_bytes(w) + i);
            for (int i = 0; i < n; i += SEGMENT, bytes += bytes_of(type, SEGMENT))
                unpack_fn(row_q + r * STEP + i, row_d + r * GROUPS + i / group, row_m + r * GROUPS + i / group,
                          bytes, type, n - i < SEGMENT ? n - i : SEGMENT);
        }

        // turned into a panel
        for (int i = 0; i < n; i += 16) {
            int8_t part[16 * ROWS];
            interleave(wide ? part : q + i * ROWS, row_q + i, STEP, unit);
            if (wide)
                for (int k = 0; k < 16 * ROWS; k++) ((int16_t *)(void *)q)[i * ROWS + k] = part[k];
        }
        for (int g = 0; g < n / group; g += 4) {
            interleave(d + g * ROWS, row_d + g, GROUPS * sizeof(float), sizeof(float));
            if (min) interleave(m + g * ROWS, row_m + g, GROUPS * sizeof(float), sizeof(float));
        }

        // which all tokens meet
        for (int t = 0; t < in->T; t += TILE) tile_fn(&(RowsTile){S + t * ROWS, q, d, min ? m : NULL, in, t, at, n, group});
    }
    for (int t = 0; t < in->T; t++)
        for (int r = 0; r < n_rows; r++) out[(size_t)t * (size_t)w->n_out + row + r] = S[t * ROWS + r] * in->D[t];
}

#if defined(__x86_64__)
/* -- AVX2: vpmaddwd multiplies 16 pairs of 16-bit integers and adds neighbours; AVX-VNNI adds the sum so far in the same instruction -- */
#define AVXVNNI __attribute__((target("avx2,fma,f16c,avxvnni")))
/* sum + what vpmaddwd makes of a and b: the one thing in which the two differ. */
typedef __m256i Madd(__m256i sum, __m256i a, __m256i b);
AVX2 static inline __m256i madd_avx2(__m256i sum, __m256i a, __m256i b) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
    __asm__("" : "+x"(sum)); /* added here and now: gcc would collect the products in memory and add them in the end */
    return sum;
}
AVXVNNI static inline __m256i madd_avxvnni(__m256i sum, __m256i a, __m256i b) { return _mm256_dpwssd_avx_epi32(sum, a, b); }

/* Tile, of a panel (n / 2, 16, 2) of 16-bit integers. A pair of inputs, broadcast, meets a pair of weights of each of 16 rows: 12 integer
 * sums, 2 weights, a broadcast and a product in registers. */
INLINE2 void tile_256(const RowsTile *tile, Madd madd) {
    const __m256i *q = (const void *)tile->q;
    const Input *in = tile->in;
    const float *d = tile->d, *m = tile->m;
    const int t0 = tile->t, at = tile->at, n = tile->n, group = tile->group;
    float *S = tile->S;
    const int16_t *x[TILE];
    const int32_t *fsum[TILE];
    for (int t = 0; t < TILE; t++) {
        size_t token = (size_t)(t0 + t < in->T ? t0 + t : in->T - 1);
        x[t] = in->q + token * (size_t)in->n + at;
        fsum[t] = in->fsum + token * (size_t)(in->n / 16) + at / 16;
    }
    for (int i = 0; i < n; i += group, d += ROWS) {
        __m256i sum[TILE][2];
        UNROLL8 for (int t = 0; t < TILE; t++) sum[t][0] = sum[t][1] = _mm256_setzero_si256();
        for (int j = i; j < i + group; j += 16)
            UNROLL8 for (int k = 0; k < 16; k += 2, q += 2)
                UNROLL8 for (int t = 0; t < TILE; t++) {
                    int32_t pair;
                    memcpy(&pair, x[t] + j + k, sizeof pair);
                    __m256i v = _mm256_set1_epi32(pair);
                    sum[t][0] = madd(sum[t][0], v, _mm256_load_si256(q));
                    sum[t][1] = madd(sum[t][1], v, _mm256_load_si256(q + 1));
                }
        for (int r = 0; r < 2; r++) {
            __m256 scale = _mm256_load_ps(d + 8 * r);
            UNROLL8 for (int t = 0; t < TILE; t++) {
                float *to = S + ROWS * t + 8 * r;
                __m256 s = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[t][r]), scale, _mm256_load_ps(to));
                if (m) s = _mm256_fnmadd_ps(_mm256_load_ps(m + 8 * r), _mm256_set1_ps((float)sum_of(fsum[t], group, i / group)), s);
                _mm256_store_ps(to, s);
            }
        }
        if (m) m += ROWS;
    }
}

#define MATMUL_256(isa, attribute) \
    attribute static void panels_##isa(const RowsTile *tile) { tile_256(tile, madd_##isa); } \
    attribute static void matmul_##isa(const SomeRows *some) { \
        if (types[some->w->type].group == 1) plain_body_8(some, 2, 6); \
        else if (some->in->many) many_rows(some, unpack_avx2, panels_##isa, 2, 1); \
        else few_rows_8(some); \
    }
MATMUL_256(avx2, AVX2)
MATMUL_256(avxvnni, AVXVNNI)

#elif defined(__aarch64__)
/* -- ARM: NEON, dotprod, i8mm --
 * NEON multiplies 16-bit integers, four sums at once; dotprod (sdot) adds four products of signed bytes to each of four sums; i8mm (smmla)
 * adds eight to each sum of 2 rows x 2 tokens. The last two see the input as 256 hi + lo, both signed. Written as assembly, because older
 * headers hide the instructions when the whole file may not use them. */
#include <arm_neon.h>
KERNELS_FOR(neon, , 4)
ATTEND_FOR(neon, , 4, half_row, byte_tile)
#if defined(__clang__)
#define DOTPROD __attribute__((target("dotprod")))
#define I8MM __attribute__((target("dotprod,i8mm")))
#else
#define DOTPROD __attribute__((target("arch=armv8.2-a+dotprod")))
#define I8MM __attribute__((target("arch=armv8.2-a+dotprod+i8mm")))
#endif
/* SDOT: sum i takes bytes 4i to 4i + 3 of a and b. SDOT_LANE: of b the same four bytes, those from 4 lane on, for all
 * sums. SMMLA: a and b are two rows of 8 bytes each, and sum (2, 2) takes the product of each row of a with each row of b. */
#define SDOT(sum, a, b) __asm__("sdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(a), "w"(b))
#define SDOT_LANE(sum, a, b, lane) __asm__("sdot %0.4s, %1.16b, %2.4b[" #lane "]" : "+w"(sum) : "w"(a), "w"(b))
#define SMMLA(sum, a, b) __asm__("smmla %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(a), "w"(b))

/* 16 weights at q times 16 inputs from `at` on, in four sums. */
typedef int32x4_t Dot16(const int8_t *q, const Input *in, size_t at);
static inline int32x4_t dot16_neon(const int8_t *q, const Input *in, size_t at) {
    int8x16_t w = vld1q_s8(q);
    int16x8_t w0 = vmovl_s8(vget_low_s8(w)), w1 = vmovl_high_s8(w), x0 = vld1q_s16(in->q + at), x1 = vld1q_s16(in->q + at + 8);
    int32x4_t sum = vmull_s16(vget_low_s16(w0), vget_low_s16(x0));
    return vmlal_high_s16(vmlal_s16(vmlal_high_s16(sum, w0, x0), vget_low_s16(w1), vget_low_s16(x1)), w1, x1);
}
DOTPROD static inline int32x4_t dot16_dotprod(const int8_t *q, const Input *in, size_t at) {
    int8x16_t w = vld1q_s8(q), hi = vld1q_s8(in->hi + at), lo = vld1q_s8(in->lo + at);
    int32x4_t sum = vdupq_n_s32(0);
    SDOT(sum, w, hi);
    sum = vshlq_n_s32(sum, 8);
    SDOT(sum, w, lo);
    return sum;
}

/* The group sums of one row, as floats, for all tokens: f (T, f_step). q: the weights, padded with zeros to a multiple of SEGMENT. */
typedef void Sums(float *f, size_t f_step, const int8_t *q, const Input *in, int group);
/* few_body with rows read straight through, for all in->T <= FEW tokens. Their sums, scales and minimums are then turned to one row per
 * lane and meet in the fixed order.
 *   buf: F (T, 16, G) sums, D, M (16, G) scales and minimums; G groups, padded to 16; a row of weights */
INLINE void few_rows(const SomeRows *some, Unpack unpack_fn, Sums sums) {
    const Tensor *w = some->w;
    const Input *in = some->in;
    const int row = some->row, n_rows = some->n_rows;
    const int n = w->n_in, group = types[w->type].group, min = types[w->type].min, groups = n / group, T = in->T;
    const size_t G = round_up((size_t)groups, 16), segment = bytes_of(w->type, SEGMENT);
    float *F = some->buf, *D = F + (size_t)T * ROWS * G, *M = D + ROWS * G;
    int8_t *q = (int8_t *)(void *)(M + ROWS * G);
    if (n % SEGMENT) memset(q + n / SEGMENT * SEGMENT, 0, SEGMENT);

    // isum, d and m of every row
    for (int r = 0; r < n_rows; r++) {
        const uint8_t *bytes = w->data + (size_t)(row + r) * row_bytes(w);
        for (int at = 0; at < n; at += SEGMENT, bytes += segment) {
            size_t g = (size_t)r * G + (size_t)(at / group);
            for (size_t i = 0; i < segment; i += 64) __builtin_prefetch(bytes + AHEAD + i);
            unpack_fn(q + at, D + g, M + g, bytes, w->type, n - at < SEGMENT ? n - at : SEGMENT);
        }
        sums(F + (size_t)r * G, ROWS * G, q, in, group);
    }

    // S <- S + isum d;  S <- S - m fsum;  out = S D, one row per lane, four groups at a time
    float S[FEW][ROWS] = {{0}}, f[4][ROWS], d[4][ROWS], m[4][ROWS];
    for (int g = 0; g < groups; g += 4) {
        interleave(d, D + g, G * sizeof(float), sizeof(float));
        if (min) interleave(m, M + g, G * sizeof(float), sizeof(float));
        for (int t = 0; t < T; t++) {
            const int32_t *fsum = in->fsum + (size_t)t * (size_t)(n / 16);
            interleave(f, F + (size_t)t * ROWS * G + g, G * sizeof(float), sizeof(float));
            for (int j = 0; j < 4 && g + j < groups; j++) {
                float x = (float)sum_of(fsum, group, g + j);
                for (int r = 0; r < ROWS; r++) S[t][r] = fmaf(f[j][r], d[j][r], S[t][r]);
                if (min)
                    for (int r = 0; r < ROWS; r++) S[t][r] = fmaf(-m[j][r], x, S[t][r]);
            }
        }
    }
    for (int t = 0; t < T; t++)
        for (int r = 0; r < n_rows; r++) some->out[(size_t)t * (size_t)w->n_out + row + r] = S[t][r] * in->D[t];
}

/* Sums: four groups at a time. */
INLINE void sums_128(float *f, size_t f_step, const int8_t *q, const Input *in, int group, Dot16 dot16) {
    for (int t = 0; t < in->T; t++) {
        float *out = f + (size_t)t * f_step;
        for (int i = 0; i < in->n; i += 4 * group, out += 4) {
            size_t at = (size_t)t * (size_t)in->n + (size_t)i;
            int32x4_t v[4];
            UNROLL for (int j = 0; j < 4; j++) {
                v[j] = dot16(q + i + j * group, in, at + (size_t)(j * group));
                if (group == 32) v[j] = vaddq_s32(v[j], dot16(q + i + j * 32 + 16, in, at + (size_t)(j * 32 + 16)));
            }
            vst1q_f32(out, vcvtq_f32_s32(vpaddq_s32(vpaddq_s32(v[0], v[1]), vpaddq_s32(v[2], v[3]))));
        }
    }
}

/* One group of 8 rows of a panel (those at q) times TILE tokens, whose inputs begin at x[t] of in's arrays: sum[t] are the 8 rows. */
typedef void Dot8xTile(int32x4_t sum[TILE][2], const int8_t *q, const Input *in, const size_t *x, int group);

/* Tile, of a panel with `unit` weights of each row side by side, wide: as 16-bit integers. */
INLINE void tile_128(const RowsTile *tile, const int unit, const int wide, Dot8xTile dot) {
    float *S = tile->S;
    const int8_t *q = tile->q;
    const Input *in = tile->in;
    const float *d = tile->d, *m = tile->m;
    const int t0 = tile->t, at = tile->at, n = tile->n, group = tile->group;
    size_t x[TILE];
    for (int t = 0; t < TILE; t++) x[t] = (size_t)(t0 + t < in->T ? t0 + t : in->T - 1) * (size_t)in->n + (size_t)at;
    for (int i = 0; i < n; i += group, d += ROWS, q += group * ROWS << wide) {
        for (int r = 0; r < ROWS; r += 8) {
            int32x4_t sum[TILE][2];
            dot(sum, q + (r * unit << wide), in, x, group);
            UNROLL8 for (int t = 0; t < TILE; t++)
                UNROLL for (int h = 0; h < 2; h++) {
                    float *to = S + ROWS * t + r + 4 * h;
                    const int32_t *fsum = in->fsum + x[t] / 16;
                    float32x4_t s = vfmaq_f32(vld1q_f32(to), vcvtq_f32_s32(sum[t][h]), vld1q_f32(d + r + 4 * h));
                    if (m) s = vfmsq_f32(s, vld1q_f32(m + r + 4 * h), vdupq_n_f32((float)sum_of(fsum, group, 0)));
                    vst1q_f32(to, s);
                }
        }
        for (int t = 0; t < TILE; t++) x[t] += (size_t)group;
        if (m) m += ROWS;
    }
}

static inline void dot8_neon(int32x4_t sum[TILE][2], const int8_t *panel, const Input *in, const size_t *x, int group) {
    const int16_t *q = (const void *)panel; /* (group, 16) */
    UNROLL8 for (int t = 0; t < TILE; t++) sum[t][0] = sum[t][1] = vdupq_n_s32(0);
    for (int i = 0; i < group; i += 8) {
        int16x8_t v[TILE], w;
        UNROLL8 for (int t = 0; t < TILE; t++) v[t] = vld1q_s16(in->q + x[t] + i);
#define LANE(l) \
        w = vld1q_s16(q); \
        q += ROWS; \
        UNROLL8 for (int t = 0; t < TILE; t++) { \
            sum[t][0] = vmlal_laneq_s16(sum[t][0], vget_low_s16(w), v[t], l); \
            sum[t][1] = vmlal_high_laneq_s16(sum[t][1], w, v[t], l); \
        }
        LANE(0) LANE(1) LANE(2) LANE(3) LANE(4) LANE(5) LANE(6) LANE(7)
#undef LANE
    }
}

DOTPROD static inline void dot8_dotprod(int32x4_t sum[TILE][2], const int8_t *panel, const Input *in, const size_t *x, int group) {
    UNROLL8 for (int t = 0; t < TILE; t++) sum[t][0] = sum[t][1] = vdupq_n_s32(0);
    for (int part = 0; part < 2; part++) { /* hi, then lo: sum = 256 sum(w hi) + sum(w lo) */
        const int8_t *q = panel, *plane = part ? in->lo : in->hi; /* (group / 4, 16, 4) */
        if (part)
            UNROLL8 for (int t = 0; t < TILE; t++) {
                sum[t][0] = vshlq_n_s32(sum[t][0], 8);
                sum[t][1] = vshlq_n_s32(sum[t][1], 8);
            }
        for (int i = 0; i < group; i += 16) {
            int8x16_t v[TILE], w0, w1;
            UNROLL8 for (int t = 0; t < TILE; t++) v[t] = vld1q_s8(plane + x[t] + i);
#define LANE(l) \
            w0 = vld1q_s8(q); \
            w1 = vld1q_s8(q + 16); \
            q += 4 * ROWS; \
            UNROLL8 for (int t = 0; t < TILE; t++) { \
                SDOT_LANE(sum[t][0], w0, v[t], l); \
                SDOT_LANE(sum[t][1], w1, v[t], l); \
            }
            LANE(0) LANE(1) LANE(2) LANE(3)
#undef LANE
        }
    }
}

I8MM static inline void dot8_i8mm(int32x4_t sum[TILE][2], const int8_t *panel, const Input *in, const size_t *x, int group) {
    int32x4_t square[TILE / 2][4]; /* two tokens x two rows */
    UNROLL for (int t = 0; t < TILE / 2; t++)
        UNROLL for (int r = 0; r < 4; r++) square[t][r] = vdupq_n_s32(0);
    for (int part = 0; part < 2; part++) { /* hi, then lo, as above */
        const int8_t *q = panel, *plane = part ? in->lo : in->hi; /* (group / 8, 16, 8) */
        if (part)
            UNROLL for (int t = 0; t < TILE / 2; t++)
                UNROLL for (int r = 0; r < 4; r++) square[t][r] = vshlq_n_s32(square[t][r], 8);
        for (int i = 0; i < group; i += 16) {
            int64x2_t v[TILE / 2][2]; /* 8 inputs of a token, 8 of the next */
            UNROLL for (int t = 0; t < TILE / 2; t++) {
                int64x2_t a = vreinterpretq_s64_s8(vld1q_s8(plane + x[2 * t] + i));
                int64x2_t b = vreinterpretq_s64_s8(vld1q_s8(plane + x[2 * t + 1] + i));
                v[t][0] = vzip1q_s64(a, b);
                v[t][1] = vzip2q_s64(a, b);
            }
            UNROLL for (int h = 0; h < 2; h++, q += 8 * ROWS)
                UNROLL for (int r = 0; r < 4; r++) {
                    int8x16_t w = vld1q_s8(q + 16 * r);
                    UNROLL for (int t = 0; t < TILE / 2; t++) SMMLA(square[t][r], v[t][h], w);
                }
        }
    }
    UNROLL for (int t = 0; t < TILE / 2; t++) /* squares to rows of one token */
        UNROLL for (int h = 0; h < 2; h++) {
            int64x2_t a = vreinterpretq_s64_s32(square[t][2 * h]), b = vreinterpretq_s64_s32(square[t][2 * h + 1]);
            sum[2 * t][h] = vreinterpretq_s32_s64(vzip1q_s64(a, b));
            sum[2 * t + 1][h] = vreinterpretq_s32_s64(vzip2q_s64(a, b));
        }
}

#define MATMUL_128(isa, attribute, dot16, unit, wide) \
    attribute static void sums_##isa(float *f, size_t f_step, const int8_t *q, const Input *in, int group) { \
        sums_128(f, f_step, q, in, group, dot16); \
    } \
    attribute static void panels_##isa(const RowsTile *tile) { tile_128(tile, unit, wide, dot8_##isa); } \
    attribute static void matmul_##isa(const SomeRows *some) { \
        if (types[some->w->type].group == 1) plain_body_4(some, 4, 4); \
        else if (some->in->many) many_rows(some, unpack_plain, panels_##isa, unit, wide); \
        else few_rows(some, unpack_plain, sums_##isa); \
    }
MATMUL_128(neon, , dot16_neon, 1, 1)
MATMUL_128(dotprod, DOTPROD, dot16_dotprod, 4, 0)
MATMUL_128(i8mm, I8MM, dot16_dotprod, 8, 0)
#else
KERNELS_FOR(vector, , 4)
ATTEND_FOR(vector, , 4, half_row, byte_tile)
MATMUL_FOR(vector, , 4, 4, 4)
#endif
#endif

/* -- the choice --
 * Later entries are faster; the last one that this processor runs is taken, unless the environment's RUN_KERNEL names another. What each
 * function does is said at its scalar definition: quantize_token, rmsnorm, activate_row ... */
typedef struct {
    const char *name;
    int few;       /* up to so many tokens, FEW at most, weights are used as they are read; for more, they are turned into panels first */
    int form[2];   /* of the input for few tokens, and for more */
    int half;      /* multiplies bfloat16: fast rounds what meets BF16 weights */
    void (*quantize)(Input *in, int t, float *buf);
    void (*norm)(float *y, const float *x, const float *w, size_t n, float eps);
    void (*activate)(float *x, int act, size_t n);
    void (*gate)(float *y, const float *z, int act, size_t n);
    void (*conv)(const ShortConv *conv, int c);
    void (*matmul)(const SomeRows *some);
    void (*recurrence)(const Recurrence *a, int h, int j0, float *S, float *o, int T, float *buf);
    void (*attend)(const Attend *a, const Queries *some, int64_t chunk, float *part, float *buf);
} Kernels;
#define LOOPS(isa) quantize_##isa, norm_##isa, activate_##isa, gate_##isa, conv_##isa
static const Kernels kernels[] = {
    {"scalar", 8, {INT16, INT16}, 0, LOOPS(scalar), matmul_scalar, recurrence_scalar, attend_scalar},
#if !defined(HAVE_VECTORS)
#elif defined(__x86_64__)
    {"sse2", 8, {INT16, INT16}, 0, LOOPS(sse2), matmul_sse2, recurrence_sse2, attend_sse2},
    {"avx2", 8, {PAIRS, INT16}, 0, LOOPS(avx2), matmul_avx2, recurrence_avx2, attend_avx2},
    {"avxvnni", 8, {PAIRS, INT16}, 0, LOOPS(avx2), matmul_avxvnni, recurrence_avx2, attend_avx2},
    {"avx512", 8, {SIGNED, TILES}, 0, LOOPS(avx512), matmul_avx512, recurrence_avx512, attend_avx512},
    {"avx512bf16", 8, {SIGNED, TILES}, 1, LOOPS(avx512), matmul_avx512bf16, recurrence_avx512, attend_avx512},
#elif defined(__aarch64__)
    {"neon", 4, {INT16, INT16}, 0, LOOPS(neon), matmul_neon, recurrence_neon, attend_neon},
    {"dotprod", 4, {SIGNED, SIGNED}, 0, LOOPS(neon), matmul_dotprod, recurrence_neon, attend_neon},
    {"i8mm", 4, {SIGNED, SIGNED}, 0, LOOPS(neon), matmul_i8mm, recurrence_neon, attend_neon},
#else
    {"vector", 8, {INT16, INT16}, 0, LOOPS(vector), matmul_vector, recurrence_vector, attend_vector},
#endif
};
enum { N_KERNELS = sizeof kernels / sizeof kernels[0] };

static int kernel_runs(const Kernels *k) { /* on this processor? */
#if !defined(HAVE_VECTORS)
#elif defined(__x86_64__)
    unsigned a = 0, b, c = 0, d; /* older compilers have no names for f16c and avxvnni */
    if (!strcmp(k->name, "avx2") || !strcmp(k->name, "avxvnni"))
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C)
               && (!strcmp(k->name, "avx2") || (__get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4)));
    if (!strcmp(k->name, "avx512bf16") && (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & 1u << 5))) return 0;
    if (!strncmp(k->name, "avx512", 6))
        return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")
               && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
#elif defined(__aarch64__)
    if (!strcmp(k->name, "dotprod")) return arm_has_dotprod();
    if (!strcmp(k->name, "i8mm")) return arm_has_dotprod() && arm_has_i8mm();
#endif
    (void)k;
    return 1;
}

static int choose_kernels(const Kernels **chosen, char *err) {
    const char *wanted = getenv("RUN_KERNEL");
    for (int i = N_KERNELS - 1; i >= 0; i--)
        if (kernel_runs(&kernels[i]) && (!wanted || !strcmp(wanted, kernels[i].name))) {
            *chosen = &kernels[i];
            return GLA_OK;
        }
    char names[120] = "";
    for (int i = 0; i < N_KERNELS; i++)
        if (kernel_runs(&kernels[i])) strcat(strcat(names, " "), kernels[i].name);
    return fail(err, GLA_INPUT, "RUN_KERNEL=%.40s: no such kernels; here run:%s", wanted, names);
}

/* -- the work, spread over threads: what the sections below call -- */

/* Threads, and a piece of memory for each. Results do not depend on how many there are. */
typedef struct {
    const Kernels *kernels;
    int n_threads, fast;    /* fast: see Input */
    float *buf;             /* (n_threads, buf_floats) scratch of a thread */
    size_t buf_floats;
    uint8_t *input;         /* input_bytes() for the quantised form of a matmul's input, and (T, n) bfloat16 behind it */
    float *parts;           /* (parts_floats) parts of softmaxes, when the chunks of a context are spread over the threads */
    size_t parts_floats;
    const volatile sig_atomic_t *stop; /* NULL, or: not 0 leaves the work undone, and what it should have made is of no use */
} Team;

static int stopped(const Team *team) { return team->stop && *team->stop; }

#ifndef THREAD_WORK
#define THREAD_WORK 1e6 /* operations that cost about as much as waking a thread */
#endif
static int threads_for(const Team *team, double operations) { return operations < THREAD_WORK ? 1 : team->n_threads; }

/* Floats of scratch that a matmul needs per thread: rows of n_in weights, runs of T tokens. */
static size_t matmul_buf(size_t n_in, size_t T) {
    size_t few = (FEW + 2) * ROWS * round_up(n_in / 16 + 1, 16) + round_up(n_in, SEGMENT) / sizeof(float);
    size_t plain = 2 * ROWS * round_up(n_in, LANES);
    size_t many512 = 2 * BLOCKS_AT_ONCE * 224 + round_up(T, TILE) * 32 + 64;   /* Panels are 224 floats */
    size_t many_rows = ROWS * BLOCKS_AT_ONCE * (8 + 16 + 8) + round_up(T, TILE) * ROWS; /* d, m twice; q twice as wide; rows of q */
    size_t most = few > plain ? few : plain, many = many512 > many_rows ? many512 : many_rows;
    return most > many ? most : many;
}

/* The rows of x as a matmul's input. The quantised form is made in team->input when a weight needs it, and then serves all matrices
 * that read the same rows; the memory is taken over by the next input. */
static Input input_rows(const float *x, int T, int n) { return (Input){.x = x, .T = T, .n = n}; }

static void quantize(const Team *team, Input *in) {
    size_t T = (size_t)in->T, blocks = (size_t)in->n / 32;
    Arena a = {(char *)team->input, 0, 0};
    in->fast = team->fast;
    in->many = in->T > team->kernels->few;
    in->form = team->kernels->form[in->many];
    in->D = take(&a, T);
    if (in->form == TILES) in->tiles = take_bytes(&a, round_up(T, TILE) / TILE * blocks, tile_bytes_of(in->fast));
    else in->fsum = take_bytes(&a, T * blocks * 2 + 16, sizeof(int32_t));
    if (in->form == INT16 || in->form == PAIRS) {
        in->q = take_bytes(&a, T * blocks * 32 + SEGMENT, sizeof(int16_t));
    } else if (in->form != TILES) {
        in->hi = take_bytes(&a, T * blocks * 32 + SEGMENT, 1);
        in->lo = take_bytes(&a, T * blocks * 32 + SEGMENT, 1);
    }
    /* the last step of a row that is no multiple of SEGMENT reads on, where it meets weights that are nothing */
    if (in->fsum) memset(in->fsum + T * blocks * 2, 0, 16 * sizeof(int32_t));
    if (in->q) memset(in->q + T * blocks * 32, 0, SEGMENT * sizeof(int16_t));
    if (in->hi) memset(in->hi + T * blocks * 32, 0, SEGMENT);
    if (in->lo) memset(in->lo + T * blocks * 32, 0, SEGMENT);
    int n_threads = threads_for(team, 20.0 * in->T * in->n);
    PARALLEL_FOR(n_threads)
    for (int t = 0; t < in->T; t++) team->kernels->quantize(in, t, team->buf + (size_t)THREAD_ID * team->buf_floats);
}

/* The input rounded to bfloat16, to nearest even; NaN stays NaN. */
static void halve(const Team *team, Input *in) {
    size_t n = (size_t)in->T * (size_t)in->n;
    uint16_t *restrict to = (uint16_t *)(void *)(team->input + input_bytes((size_t)in->T, (size_t)in->n));
    for (size_t i = 0; i < n; i++) {
        uint32_t u = as_bits(in->x[i]), rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;
        to[i] = (uint16_t)((u & 0x7fffffff) > 0x7f800000 ? u >> 16 | 0x40 : rounded);
    }
    in->half = to;
}

/* out (T, n_out) = x (T, n_in) W' for n matrices that read the same input, W (n_out, n_in). The only place that reads large weights.
 * The matrices count as one tall one, cut into steps of 2 ROWS rows which the threads share; no step has rows of two matrices. */
typedef struct { float *out; const Tensor *w; } Product;
static void matmul(const Team *team, const Product *products, int n, Input *in) {
    double operations = 0;
    int steps = 0;
    for (int i = 0; i < n; i++) {
        const Tensor *w = products[i].w;
        operations += 2.0 * w->n_in * w->n_out * in->T;
        steps += (w->n_out + 2 * ROWS - 1) / (2 * ROWS);
        if (types[w->type].group > 1 && !in->form) quantize(team, in);
        if (w->type == BF16 && team->fast && team->kernels->half && !in->half) halve(team, in);
    }
    int n_threads = threads_for(team, operations);
    PARALLEL_FOR(n_threads)
    for (int i = 0; i < steps; i++) {
        int p = 0, at = i;
        if (stopped(team)) continue;
        for (int own; at >= (own = (products[p].w->n_out + 2 * ROWS - 1) / (2 * ROWS)); p++) at -= own;
        const Tensor *w = products[p].w;
        float *buf = team->buf + (size_t)THREAD_ID * team->buf_floats;
        for (int row = at * 2 * ROWS, end = row + 2 * ROWS < w->n_out ? row + 2 * ROWS : w->n_out; row < end;) {
            int step = types[w->type].group == 1 || in->form == TILES ? 2 * ROWS : ROWS; /* what one call takes */
            int n_rows = end - row < step ? end - row : step;
            team->kernels->matmul(&(SomeRows){products[p].out, w, row, n_rows, in, buf});
            row += n_rows;
        }
    }
}

/* T tokens of all heads: S (H, dk, dv) in and out, o (T, H * dv). Heads, and panels of a head's columns, are independent. */
static void recurrence(const Team *team, const Recurrence *a, float *S, float *o, int T) {
    int panels = (a->dv + PANEL - 1) / PANEL, n_threads = threads_for(team, 6.0 * a->H * a->dk * a->dv * T);
    PARALLEL_FOR(n_threads)
    for (int i = 0; i < a->H * panels; i++) {
        if (stopped(team)) continue;
        FLUSH_DENORMALS;
        int h = i / panels;
        team->kernels->recurrence(a, h, i % panels * PANEL, S + (size_t)h * (size_t)a->dk * (size_t)a->dv, o, T,
                                  team->buf + (size_t)THREAD_ID * team->buf_floats);
        RESTORE_DENORMALS;
    }
}

/* Part p of a softmax joins part `into` of the same query; both are brought to the larger top. */
static void merge_part(float *into, const float *p, int dv) {
    size_t n = part_o(dv);
    if (p[n + 1] == 0) return;
    if (into[n + 1] == 0) {
        memcpy(into, p, (n + 2) * sizeof(float));
        return;
    }
    float best = p[n] > into[n] ? p[n] : into[n], keep = fast_exp(into[n] - best), add = fast_exp(p[n] - best);
    for (size_t i = 0; i < n; i++) into[i] *= keep;
    for (size_t i = 0; i < n; i++) into[i] += add * p[i]; /* a loop of its own: which of two products is fused is the compiler's choice */
    into[n] = best;
    into[n + 1] *= keep;
    into[n + 1] += add * p[n + 1];
}

/* Queries of a key/value head that are worked on together: all of a run, or QUERIES. */
static int query_rows(int H, int heads, int T) {
    int64_t n = (int64_t)(H / heads) * T;
    return n < QUERIES ? (int)n : QUERIES;
}

/* Floats of scratch for attention. Per thread: attend_buf (the queries, two parts, what the kernel needs), or walk_buf for walk_back in
 * section 7. For all: attend_parts, so that few tokens can be spread over the threads by chunks of the context. */
static size_t attend_buf(int H, const Cache *c, int T) {
    size_t rows = (size_t)query_rows(H, c->heads, T), tiles = rows * (KEYS + LANES) + KEYS * KEYS, scalar = (size_t)c->dk + (size_t)c->dv;
    return rows * ((size_t)c->dk + 2 * part_floats(c->dv)) + (tiles > scalar ? tiles : scalar);
}
static size_t walk_buf(const Cache *c, int d) {
    return KEYS * (size_t)c->dv + (size_t)d * (WALKERS + PANEL + 3) + (KEYS + 1) * WALKERS;
}
static size_t attend_parts(int H, const Cache *c, int ctx, int T) {
    return ((size_t)ctx / KEY_CHUNK + 1) * (size_t)(T < FEW_QUERY_TOKENS ? T : FEW_QUERY_TOKENS) * (size_t)H * part_floats(c->dv);
}

/* o (T, H dv) of an Attend. A unit of work is a block of queries of one key/value head, which goes through all its chunks of keys and
 * merges their parts; a few tokens behind a long text make few such units, then (split) a unit is one chunk, and the parts, all kept, are
 * merged at the end. Both merge in the order of the chunks. */
static void attention(const Team *team, const Attend *a, float *o) {
    const Cache *c = a->cache;
    const int G = a->H / c->heads, rows = G * a->T, dk = c->dk, dv = c->dv;
    const size_t part = part_floats(dv);
    const int64_t c0 = first_visible(a, a->pos) / KEY_CHUNK, chunks = (a->pos + a->T - 1) / KEY_CHUNK - c0 + 1;
    int n_threads = threads_for(team, 2.0 * a->T * a->H * (dk + dv) * (double)min64(a->pos + a->T, chunks * KEY_CHUNK));
    int block = query_rows(a->H, c->heads, a->T);
    while (block > 12 && c->heads * ((rows + block - 1) / block) < 2 * n_threads) block = (block + 1) / 2;
    int blocks = (rows + block - 1) / block, units = c->heads * blocks;
    int split = n_threads > 1 && chunks > 1 && units < 4 * n_threads
                && (size_t)chunks * (size_t)a->T * (size_t)a->H * part <= team->parts_floats;
    if (split) units *= (int)chunks;
    PARALLEL_TASKS(n_threads)
    for (int u = 0; u < units; u++) {
        if (stopped(team)) continue;
        int chunk = split ? u % (int)chunks : 0, unit = split ? u / (int)chunks : u;
        int g = unit / blocks, row = (blocks - 1 - unit % blocks) * block; /* the last rows see the most keys, so they go first */
        int n = rows - row < block ? rows - row : block;
        float *q = team->buf + (size_t)THREAD_ID * team->buf_floats; /* (n, dk) the queries, scaled */
        float *sum = q + n * dk, *next = sum + (size_t)n * part;     /* (n, part) each: the parts so far, and of one chunk more */
        float *buf = next + (size_t)n * part;
        for (int r = 0; r < n; r++) {
            const float *from = a->q + (size_t)((row + r) / G) * a->q_stride + (size_t)(g * G + (row + r) % G) * a->q_step;
            for (int i = 0; i < dk; i++) q[r * dk + i] = a->scale * from[i];
        }
        if (split) sum = team->parts + ((size_t)(chunk * c->heads + g) * (size_t)rows + (size_t)row) * part;
        const Queries some = {g, row, n, q};
        team->kernels->attend(a, &some, c0 + chunk, sum, buf);
        if (split) continue;
        for (int64_t i = 1; i < chunks && i * KEY_CHUNK <= a->pos + (row + n - 1) / G - c0 * KEY_CHUNK; i++) {
            team->kernels->attend(a, &some, c0 + i, next, buf);
            for (int r = 0; r < n; r++) merge_part(sum + (size_t)r * part, next + (size_t)r * part, dv);
        }
        for (int r = 0; r < n; r++) {
            float *y = o + ((size_t)((row + r) / G) * (size_t)a->H + (size_t)(g * G + (row + r) % G)) * (size_t)dv;
            float *p = sum + (size_t)r * part;
            for (int i = 0; i < dv; i++) y[i] = p[i] / p[part_o(dv) + 1];
        }
    }
    if (!split) return;

    // the parts of all chunks are in team->parts (chunks, heads, rows, part)
    n_threads = threads_for(team, 4.0 * (double)chunks * c->heads * rows * dv);
    PARALLEL_FOR(n_threads)
    for (int u = 0; u < c->heads * rows; u++) {
        int g = u / rows, r = u % rows;
        float *y = o + ((size_t)(r / G) * (size_t)a->H + (size_t)(g * G + r % G)) * (size_t)dv, *p = team->parts + (size_t)u * part;
        for (int64_t i = 1; i < chunks; i++) merge_part(p, p + (size_t)i * (size_t)(c->heads * rows) * part, dv);
        for (int i = 0; i < dv; i++) y[i] = p[i] / p[part_o(dv) + 1];
    }
}

/* ---- 6. GGUF: the header of a file, checked once -----------------------------------------------
 * A cursor that knows its end walks it; every count, length, type, dimension, product and offset is
 * compared with the bytes that are left before it is used. Afterwards the places and lengths of keys
 * and tensors can be trusted; what they mean is checked by section 8, and in a vocabulary by 11.
 * Other bytes that are not trusted: sessions (9), chat templates (14), messages and ids (15).
 *
 * A file is, little-endian and without padding up to the data:
 *   "GGUF", u32 version, u64 n_tensors, u64 n_keys
 *   n_keys times      string name, u32 type, value        (a string is a u64 length and so many bytes; an array u32 type, u64 n, elements)
 *   n_tensors times   string name, u32 n_dims, n_dims times u64, u32 type, u64 offset from where the data begins
 *   the data, from the next multiple of general.alignment (32 if the file does not say) on
 *
 * gguf_read at the end reads it in this order; before it come the cursor, the tables of names, and how a value is asked for by its key. */

enum { /* value types */
    GGUF_U8, GGUF_I8, GGUF_U16, GGUF_I16, GGUF_U32, GGUF_I32, GGUF_F32, GGUF_BOOL, GGUF_STR, GGUF_ARR, GGUF_U64, GGUF_I64, GGUF_F64, N_GGUF
};
static const uint8_t gguf_width[N_GGUF] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8}; /* bytes; 0: a length or a type comes first */

typedef struct { int type; uint64_t n; const uint8_t *p; } GgufArray;     /* n packed elements; strings each with their length */
typedef struct { Str key; int type; GgufArray value; } GgufKey;           /* a scalar is an array of one */
typedef struct {
    Str name;
    int type, used;                     /* used: the model asked for it */
    uint64_t ne[4];                     /* elements along each dimension, the innermost first; 1 beyond the last */
    uint64_t offset, n_bytes;           /* offset: from Gguf.data_at */
    const uint8_t *data;
} GgufTensor;
typedef struct Gguf {
    Mapping map;
    size_t data_at;                     /* where the tensors begin */
    uint64_t n_keys, n_tensors;
    GgufKey *keys;
    GgufTensor *tensors;
    Table key_table, tensor_table; /* index + 1, by name */
} Gguf;

/* -- the cursor -- */

/* What is asked for beyond the end is 0 or empty, and so is everything after it: one look at `bad` after several reads is enough. */
typedef struct { const uint8_t *p, *end; int bad; } Cursor;

static const uint8_t *cursor_take(Cursor *c, uint64_t n) { /* n bytes, or NULL and bad for ever */
    if (c->bad || n > (uint64_t)(c->end - c->p)) {
        c->bad = 1;
        return NULL;
    }
    const uint8_t *at = c->p;
    c->p += n;
    return at;
}
static uint32_t cursor_u32(Cursor *c) {
    const uint8_t *p = cursor_take(c, 4);
    return p ? read_u32(p) : 0;
}
static uint64_t cursor_u64(Cursor *c) {
    const uint8_t *p = cursor_take(c, 8);
    return p ? read_u64(p) : 0;
}
static Str cursor_str(Cursor *c) {
    uint64_t n = cursor_u64(c);
    const uint8_t *p = cursor_take(c, n);
    return (Str){(const char *)p, p ? (size_t)n : 0};
}

/* A value of the given type. On a malformed one returns 0; the cursor then stands anywhere. Arrays of arrays are refused. */
static int cursor_value(Cursor *c, int type, GgufArray *v) {
    *v = (GgufArray){type, 1, c->p};
    if (type == GGUF_ARR) {
        v->type = (int)cursor_u32(c);
        v->n = cursor_u64(c);
        v->p = c->p;
        if (c->bad || v->type < 0 || v->type >= N_GGUF || v->type == GGUF_ARR) return 0;
    }
    if (v->type == GGUF_STR) {
        if (v->n > (uint64_t)(c->end - c->p) / 8) return 0;
        for (uint64_t i = 0; i < v->n && !c->bad; i++) cursor_str(c);
        return !c->bad;
    }
    uint64_t width = gguf_width[v->type];
    return v->n <= (uint64_t)(c->end - c->p) / width && cursor_take(c, v->n * width) != NULL;
}

/* -- tables of names -- */

/* Names in a table: record i, of `stride` bytes, begins with its name as a Str. name_slot is where
 * i + 1 is or belongs; NULL: names collide so much that someone must have made them to. */
static Slot *name_slot(const Table *t, const void *records, size_t stride, Str name) {
    const uint64_t h = hash_bytes(HASH_SEED, name.s, name.n);
    size_t step = 0;
    Slot *slot;
    while ((slot = table_next(t, h, &step)) && slot->value) {
        const Str *other = (const Str *)((const char *)records + (slot->value - 1) * stride);
        if (other->n == name.n && !memcmp(other->s, name.s, name.n)) break;
    }
    return slot;
}
static int64_t name_find(const Table *t, const void *records, size_t stride, Str name) { /* or -1 */
    const Slot *slot = t->slots ? name_slot(t, records, stride, name) : NULL;
    return slot ? (int64_t)slot->value - 1 : -1;
}
static int name_add(const Table *t, const void *records, size_t stride, uint64_t i) { /* 0: is there */
    const Str name = *(const Str *)((const char *)records + i * stride);
    Slot *slot = name_slot(t, records, stride, name);
    if (!slot || slot->value) return 0;
    *slot = (Slot){(uint32_t)hash_bytes(HASH_SEED, name.s, name.n), (uint32_t)i + 1};
    return 1;
}

static const char *printable(char out[64], Str s) { /* a name from a file, fit for a message: ASCII, at most 60 bytes of it */
    size_t n = s.n < 60 ? s.n : 60;
    for (size_t i = 0; i < n; i++) out[i] = s.s[i] >= 32 && s.s[i] < 127 ? s.s[i] : '?';
    strcpy(out + n, s.n > 60 ? "..." : "");
    return out;
}

static void gguf_close(Gguf *g) {
    gla_free(g->keys);
    gla_free(g->tensors);
    gla_free(g->key_table.slots);
    gla_free(g->tensor_table.slots);
    unmap_file(&g->map);
    memset(g, 0, sizeof *g);
}

/* -- values by key: each returns 0 when the key is not there or holds something else -- */

static int64_t gguf_key_index(const Gguf *g, const char *key) { /* below 0: not there */
    return name_find(&g->key_table, g->keys, sizeof *g->keys, (Str){key, strlen(key)});
}

/* Element i of an array as an integer (any integer type or bool) or as a float (any number); 0 when it is neither. */
static int array_int(const GgufArray *a, uint64_t i, int64_t *out) {
    if (i >= a->n) return 0;
    const uint8_t *p = a->p + i * gguf_width[a->type];
    switch (a->type) {
    case GGUF_U8: case GGUF_BOOL: *out = *p; return 1;
    case GGUF_I8: *out = (int8_t)*p; return 1;
    case GGUF_U16: *out = read_u16(p); return 1;
    case GGUF_I16: *out = (int16_t)read_u16(p); return 1;
    case GGUF_U32: *out = read_u32(p); return 1;
    case GGUF_I32: *out = (int32_t)read_u32(p); return 1;
    case GGUF_I64: *out = (int64_t)read_u64(p); return 1;
    case GGUF_U64: *out = (int64_t)read_u64(p); return *out >= 0;
    }
    return 0;
}
static int array_float(const GgufArray *a, uint64_t i, double *out) {
    int64_t whole;
    if (i >= a->n) return 0;
    if (a->type == GGUF_F32) {
        *out = as_float(read_u32(a->p + 4 * i));
        return 1;
    }
    if (a->type == GGUF_F64) {
        memcpy(out, a->p + 8 * i, 8);
        return 1;
    }
    if (!array_int(a, i, &whole)) return 0;
    *out = (double)whole;
    return 1;
}

static int gguf_array(const Gguf *g, const char *key, GgufArray *out) {
    int64_t i = gguf_key_index(g, key);
    if (i < 0 || g->keys[i].type != GGUF_ARR) return 0;
    *out = g->keys[i].value;
    return 1;
}
static int gguf_str(const Gguf *g, const char *key, Str *out) {
    int64_t i = gguf_key_index(g, key);
    if (i < 0 || g->keys[i].type != GGUF_STR) return 0;
    const uint8_t *p = g->keys[i].value.p;
    *out = (Str){(const char *)p + 8, (size_t)read_u64(p)};
    return 1;
}
static int gguf_int(const Gguf *g, const char *key, int64_t *out) {
    int64_t i = gguf_key_index(g, key);
    return i >= 0 && g->keys[i].type != GGUF_ARR && array_int(&g->keys[i].value, 0, out);
}
static int gguf_float(const Gguf *g, const char *key, double *out) {
    int64_t i = gguf_key_index(g, key);
    return i >= 0 && g->keys[i].type != GGUF_ARR && array_float(&g->keys[i].value, 0, out);
}

/* -- the header -- */

static int cut_short(const char *what, uint64_t i, uint64_t n, char *err) {
    return fail(err, GLA_FORMAT, "GGUF header is cut short at %s %llu of %llu; download the file again",
                what, (unsigned long long)i + 1, (unsigned long long)n);
}

static int gguf_read_keys(Gguf *g, Cursor *c, char *err) {
    char name[64];
    for (uint64_t i = 0; i < g->n_keys; i++) {
        GgufKey *k = &g->keys[i];
        k->key = cursor_str(c);
        k->type = (int)cursor_u32(c);
        if (c->bad) return cut_short("key", i, g->n_keys, err);
        printable(name, k->key);
        if (!k->key.n || k->key.n > 65535)
            return fail(err, GLA_FORMAT, "GGUF key %llu has a name of %zu bytes", (unsigned long long)i + 1, k->key.n);
        if (k->type < 0 || k->type >= N_GGUF)
            return fail(err, GLA_FORMAT, "GGUF key %s has value type %d, known are 0 to 12", name, k->type);
        if (!cursor_value(c, k->type, &k->value))
            return fail(err, GLA_FORMAT, "GGUF key %s: its value is malformed or runs past the end of the file", name);
        if (!name_add(&g->key_table, g->keys, sizeof *k, i))
            return fail(err, GLA_FORMAT, "GGUF key %s occurs twice", name);
    }
    return GLA_OK;
}

/* Where a tensor lies is checked in gguf_read, when it is known where the data begins. */
static int gguf_read_tensor(Gguf *g, Cursor *c, uint64_t i, char *err) {
    GgufTensor *t = &g->tensors[i];
    char name[64];
    t->name = cursor_str(c);
    uint32_t n_dims = cursor_u32(c);
    if (c->bad) return cut_short("tensor", i, g->n_tensors, err);
    printable(name, t->name);
    if (!t->name.n || t->name.n > 63 || memchr(t->name.s, 0, t->name.n))
        return fail(err, GLA_FORMAT, "tensor %llu has a malformed name", (unsigned long long)i + 1);
    if (n_dims > 4) return fail(err, GLA_FORMAT, "%s has %u dimensions, at most 4 are allowed", name, n_dims);
    uint64_t elements = 1;
    for (int d = 0; d < 4; d++) {
        t->ne[d] = (uint32_t)d < n_dims ? cursor_u64(c) : 1;
        if (!c->bad && (t->ne[d] == 0 || t->ne[d] > (uint64_t)INT64_MAX / elements))
            return fail(err, GLA_FORMAT, "%s: dimension %d is %lld", name, d, (long long)t->ne[d]);
        elements *= c->bad ? 1 : t->ne[d];
    }
    t->type = (int)cursor_u32(c);
    t->offset = cursor_u64(c);
    if (c->bad) return fail(err, GLA_FORMAT, "GGUF header is cut short at tensor %s; download the file again", name);
    if (t->type < 0 || t->type >= N_TYPES || !types[t->type].name)
        return fail(err, GLA_FORMAT, "%s has the unknown tensor type %d", name, t->type);
    uint64_t per_block = (uint64_t)types[t->type].elems, block = (uint64_t)types[t->type].bytes;
    if (t->ne[0] % per_block)
        return fail(err, GLA_FORMAT, "%s: rows of %llu elements do not divide into %s blocks of %llu", name,
                    (unsigned long long)t->ne[0], types[t->type].name, (unsigned long long)per_block);
    if (elements / per_block > UINT64_MAX / block) return fail(err, GLA_FORMAT, "%s is larger than any file", name);
    t->n_bytes = elements / per_block * block;
    if (!name_add(&g->tensor_table, g->tensors, sizeof *t, i))
        return fail(err, GLA_FORMAT, "tensor %s occurs twice", name);
    return GLA_OK;
}

/* Reads the header of a mapped file. g->map is set; on failure the caller still closes g. */
static int gguf_read(Gguf *g, char *err) {
    Cursor c = {g->map.data, g->map.data + g->map.n, 0};

    // the letters, the version, how many keys and tensors
    const uint8_t *magic = cursor_take(&c, 4);
    if (!magic || memcmp(magic, "GGUF", 4)) {
        if (magic && !memcmp(magic, "vers", 4))
            return fail(err, GLA_FORMAT, "not a model but a git-lfs pointer; fetch the file itself (git lfs pull)");
        if (magic && (magic[0] == '<' || magic[0] == '{')) return fail(err, GLA_FORMAT, "not a GGUF file but text (a web page?)");
        return fail(err, GLA_FORMAT, "not a GGUF file: it does not begin with the letters GGUF");
    }
    uint32_t version = cursor_u32(&c);
    if (!c.bad && !(version & 0xffff)) return fail(err, GLA_UNSUPPORTED, "a big-endian GGUF file; only little-endian ones are read");
    if (!c.bad && version != 2 && version != 3) return fail(err, GLA_UNSUPPORTED, "GGUF version %u; versions 2 and 3 are read", version);
    g->n_tensors = cursor_u64(&c);
    g->n_keys = cursor_u64(&c);
    uint64_t left = c.bad ? 0 : (uint64_t)(c.end - c.p);
    /* a key takes at least 13 bytes (length, type, a value of one byte), a tensor 24 (length, n_dims, type, offset) */
    if (c.bad || g->n_keys > left / 13 || g->n_tensors > left / 24 || g->n_keys > UINT32_MAX / 2 || g->n_tensors > UINT32_MAX / 2
        || g->n_keys > SIZE_MAX / sizeof *g->keys || g->n_tensors > SIZE_MAX / sizeof *g->tensors)
        return fail(err, GLA_FORMAT, "GGUF header claims %llu keys and %llu tensors, more than %zu bytes or this program can hold; "
                    "download the file again", (unsigned long long)g->n_keys, (unsigned long long)g->n_tensors, g->map.n);

    // the records
    g->keys = gla_alloc((size_t)g->n_keys * sizeof *g->keys);
    g->tensors = gla_alloc((size_t)g->n_tensors * sizeof *g->tensors);
    const int tables = table_init(&g->key_table, g->n_keys)
                    && table_init(&g->tensor_table, g->n_tensors);
    if (!g->keys || !g->tensors || !tables)
        return fail(err, GLA_MEMORY, "no memory for the GGUF header");
    int code = gguf_read_keys(g, &c, err);
    for (uint64_t i = 0; i < g->n_tensors && !code; i++) code = gguf_read_tensor(g, &c, i, err);
    if (code) return code;

    // where the data begins
    int64_t alignment = 32, parts = 0, part = 0, at = gguf_key_index(g, "general.alignment");
    if (at >= 0 && (g->keys[at].type != GGUF_U32 || !gguf_int(g, "general.alignment", &alignment) || alignment <= 0
                    || (alignment & (alignment - 1)) || (uint64_t)alignment > g->map.n))
        return fail(err, GLA_FORMAT, "general.alignment is %lld, expected a power of two within the file", (long long)alignment);
    gguf_int(g, "split.count", &parts);
    gguf_int(g, "split.no", &part);
    if (parts > 1)
        return fail(err, GLA_UNSUPPORTED, "part %lld of a model split into %lld files; merge them first (llama-gguf-split --merge)",
                    (long long)part + 1, (long long)parts);
    g->data_at = round_up((size_t)(c.p - g->map.data), (size_t)alignment);
    if (g->n_tensors && g->data_at > g->map.n) return fail(err, GLA_FORMAT, "the file ends before its tensors; download it again");

    // every tensor within it
    uint64_t space = g->n_tensors ? g->map.n - g->data_at : 0;
    char name[64];
    for (uint64_t i = 0; i < g->n_tensors; i++) {
        GgufTensor *t = &g->tensors[i];
        uint64_t offset = t->offset;
        printable(name, t->name);
        if (offset % (uint64_t)alignment)
            return fail(err, GLA_FORMAT, "%s lies at offset %llu, not a multiple of %lld", name,
                        (unsigned long long)offset, (long long)alignment);
        if (offset > space || t->n_bytes > space - offset)
            return fail(err, GLA_FORMAT, "%s needs %llu bytes at offset %llu, the file has %llu there: truncated? download it again", name,
                        (unsigned long long)t->n_bytes, (unsigned long long)offset,
                        (unsigned long long)(offset > space ? 0 : space - offset));
        t->data = g->map.data + g->data_at + offset;
    }
    return GLA_OK;
}

/* ---- 7. layers: a run of T tokens through one layer --------------------------------------------
 * Plain float arrays in and out. No files, no allocation, no globals. Shapes are beside each.
 * The rooms, in order:
 *
 *   the parts of a layer   what a file says about one layer, after its names have become pointers
 *   shapes                 "Hkv" is n_heads dk dv: what mixers read, make and keep is written so
 *   the laws               what fades, what is erased, what is written: an equation per function
 *   pieces                 norms, gates, projections, convolution
 *   the one recurrence     prepare, mix_linear, finish: most models need no other mixer
 *   one idea more          the mixers that do
 *   softmax attention      keys and values of every position
 *   the table of mixers    all of them, a row each
 *
 * A mixer is a function mix_*(run, y): from the rows of the layer's projections run->in and from
 * what the layer remembers, run->keeps, to the rows run->o (T, n_heads dv). Read mix_linear first:
 * it is four lines. Then what it calls: prepare (convolution, law), recurrence_step (section 5),
 * and finish (skip, norm, gate). Then a row of the table, and the law that it names. */

/* -- the parts of a layer: pointers that are NULL stand for what a model goes without -- */

/* Feature maps that are no function of one number: see map_head. They follow the activations. */
enum { MAP_HADAMARD = ACT_NONE + 1, MAP_T2R, MAP_HEDGEHOG, MAP_DPFP };

/* What a mixer reads for a token: Query, Key, Value, Forget (decay), Beta (strength), Z (output
 * gate), Write gate, Gauge (decay of a second moment) and its Strength; and what laws make of
 * these: what is Erased along, what is written (Up) into the memory, where they are not k and v. */
enum { IN_Q, IN_K, IN_V, IN_F, IN_B, IN_Z, IN_W, IN_G, IN_S, IN_E, IN_U, MAX_IN };
#define IN_LETTERS "qkvfbzwgseu"
enum { MAX_ROPE = 512, MAX_LEVELS = 15 }; /* rotated channels; levels of log-linear attention */
enum { MAX_KEPT = 4, MAX_OWN = 8 };       /* arrays of one mixer */

/* A projection y = W x + bias, or through a narrow middle: y = up act(W x) + bias. Without w.data
 * it is absent. */
typedef struct { Tensor w, up; const float *bias; int act; } Proj;
static int proj_out(const Proj *p) { return p->up.data ? p->up.n_out : p->w.n_out; }

/* (dim) RMSNorm; with Config.layer_norm LayerNorm, b */
typedef struct { const float *w, *b; } Norm;

/* The rows of the projections of a layer with a memory: heads and their width, by IN_*. */
typedef struct {
    int heads[MAX_IN], width[MAX_IN];
    int tiled;                      /* head h reads key head h % n_k_heads, not h / their share */
    int fused, at[3];               /* in[IN_Q] holds the rows of q, k, v; they begin at these */
} HeadRows;

/* q and k of a head, normalised before anything else is done with them. */
typedef struct {
    const float *q, *k;             /* (dk), or with a step of all heads; NULL = as they are */
    const float *q_bias, *k_bias;   /* Mamba-3: (n_heads, dk), behind the norm */
    int step;                       /* floats between the weights of two heads, 0 = one for all */
    float eps;
} QkNorm;

/* Rotary positions. */
typedef struct {
    int dims, adjacent;             /* rotated channels; pairs (2i, 2i+1), not (i, i + dims/2) */
    const double *freq;             /* (dims / 2) radians per position; positions reach a million */
    float scale;                    /* of cos and sin: 1, or YaRN's factor */
    size_t at;                      /* floats: where its cos and sin begin in a row of Run.turns */
} Rotary;

/* The short convolution behind the projections. */
typedef struct {
    int taps;                       /* 0 = none */
    const float *w[MAX_IN];         /* (channels, taps); the last tap is this token */
    const float *bias;              /* (channels) */
} Conv;

/* What becomes of q and k in front of the recurrence. */
enum { SILU_NEVER, SILU_CONV,       /* of q, k, v: never; behind a convolution only */
       SILU_ALWAYS, SILU_V };       /* always, with or without one; always on v alone */
enum { QK_PLAIN, QK_L2, QK_SUM };   /* x;  x / sqrt(sum x^2 + 1e-6);  x / (sum x + epsilon) */
typedef struct {
    int map, norms[2];              /* feature map of both; QK_* of q, of k */
    Proj map_in[2][2];              /* learned feature maps of q and of k: one or two matrices */
    float sum_eps;                  /* QK_SUM */
} Front;

/* The constants of the laws of decay. */
typedef struct {
    const float *a, *dt_bias;     /* softplus, steps: a < 0 per head, dt like f; constant: a is d */
    float bound;                    /* softplus: 0 = none */
    float step_min, step_max;       /* steps */
    float divisor, min;             /* sigmoid; the least logarithm of a decay */
    const float *low;               /* HGRN: like f, NULL = 0 */
    float score_min, score_max;     /* LightNet, ABC */
} Decay;

/* The constants of what is erased and written. */
typedef struct {
    float beta_scale;            /* strength = this times sigmoid(b), or this where there is no b */
    const float *old_key, *old_share; /* Comba, per head: p = this times k; what of it q loses */
    const float *m_a, *m_bias;      /* second moment of the keys: its decay, like g */
    const float *m_scale;           /* the logarithm of its scale */
    float squash, squash_eps;       /* m lies between 1 / squash and squash */
} Write;

/* What becomes of the readout o. */
enum { OUT_HEAD, OUT_ALL,           /* norm of each head; of all heads as one */
       OUT_SILU_ALL,                /* of silu(o), all heads as one */
       OUT_GATED };                 /* of act(z) o, in groups: the gate comes first */
typedef struct {
    const float *skip;              /* D: o += D v, per head or per channel */
    int skip_each;                  /* per channel */
    float normalizer;               /* epsilon of normalize(), 0 = no normaliser */
    int act;                        /* activation in front of the norm, or ACT_NONE */
    const float *norm, *norm_bias;  /* (norm_width) or (n_heads dv), NULL = weight one; the bias
                                       RWKV only */
    int norm_width, norm_shared;    /* channels that it spans, 0 = no norm; all spans have its
                                       weights */
    float eps;
    int gate, gate_first;           /* activation of the gate z, or ACT_NONE; the gate before the
                                       norm */
} Back;

/* Mamba: the time step, through a narrow middle, and the rows of k and q, both from v. */
typedef struct {
    Proj step_in, step_up, bc_in;
    int norm;                      /* RMSNorm without weights of the narrow middle, of k and of q */
    float eps;
} MambaParts;

/* RWKV: what in[j] reads is x + (x of the token before - x) lerp[j]. */
typedef struct {
    Proj lerp[MAX_IN];              /* a bias (dim), and in RWKV-6 a part projected from x with
                                       lerp_x */
    const float *lerp_x;            /* (dim), NULL in RWKV-7 */
    const float *bonus, *k_k, *k_a; /* (n_heads dk): u of RWKV-6, r_k of RWKV-7; RWKV-7 only */
    float k_eps;                    /* of the norm of the erase key */
} RwkvParts;

/* What one mixer alone has. */
typedef struct {
    struct { int window, gated; } softmax; /* visible positions, 0 = all; rows [query | gate] per
                                              head */
    int slots, writes;              /* of a table; per token */
    const float *levels;            /* log-linear: (n_heads, MAX_LEVELS), a level weighs
                                       softplus(this w) */
    struct { const float *ridge; int steps; } mesa; /* (n_heads, dk) added to the diagonal; of the
                                                       solver */
    float rate_min;                 /* Mamba-3: the slowest decay allowed */
    MambaParts mamba;
    RwkvParts rwkv;
} OwnParts;

/* The feed-forward. */
typedef struct {
    Norm norm, post_norm;           /* in front of it, behind it */
    Tensor gate, up, down;          /* without data: none; a channel mix has no gate, or the
                                       receptance */
    const float *bias[3];           /* of gate, up, down */
    int act;
    const float *lerp_k, *lerp_r;   /* (dim) RWKV's channel mix; r in RWKV-6 only */
} Ffn;

/* Where the state keeps what a layer remembers, and what its mixer needs while it works. */
typedef struct {
    size_t fixed_at, fixed;         /* floats: where its constant part begins, and its length */
    /* bytes of KEYS positions, by GLA_KV_*: where they begin */
    size_t kv_at[GLA_N_KV], kv[GLA_N_KV];
    size_t scratch;                 /* floats per token, behind the rows of the projections */
    size_t replay_at, replay;       /* floats per token that a replay needs: see put_aside */
} Extent;

/* One layer: x += out(mixer(in(norm x))), then x += down(act(gate(norm x)) * up(norm x)). */
typedef struct Mixer Mixer;
typedef struct {
    const Mixer *mixer;             /* a row of the table at the end of the section */
    int dim;
    int n_heads, n_k_heads;         /* output heads (query heads of softmax), key/value heads */
    int dk, dv;                     /* key and value width of one head */
    float eps;                     /* of the norms in the layer, where a part has none of its own */
    float scale;                    /* of q */
    Proj in[MAX_IN], out;           /* what the mixer reads; output projection */
    HeadRows rows;
    Norm norm, post_norm;           /* in front of the mixer, behind it */
    Conv conv;
    QkNorm qk;
    Rotary rope;
    Front front;
    Decay decay;
    Write write;
    Back back;
    OwnParts own;
    Ffn ffn;
    /* (dim) residual attention: scores of the sources in front of the mixer, of the feed-forward */
    struct { const float *proj[2], *norm[2]; } res;
    Extent mem;
} Layer;

typedef struct {
    int dim, vocab_size, n_layers, seq_len;
    float eps;
    float embed_scale;              /* of the embedding's rows */
    float softcap;                  /* logits <- softcap tanh(logits / softcap), 0 = as they are */
    int limit;                      /* positions that the mixers can count, 0 = any number */
    int layer_norm;                 /* the norms of the stream are LayerNorm, not RMSNorm */
    int rescale;                    /* the stream is halved after so many layers, 0 = never */
    int res_block;                  /* residual attention: sub-layers per source, 0 = the plain
                                       stream */
} Config;

/* What a layer works on while it reads a run of tokens. */
typedef struct {
    const Team *team;
    int T;                          /* tokens */
    int64_t pos;                    /* position of the first of them */
    const float *x;                 /* (T, dim) the normed input, for projections that read mixes */
    float *mid;                     /* scratch of project() */
    const float *turns;             /* (T, turn_floats) cos and sin, see Rotary.at */
    size_t turn_floats;
    float *v_first;                 /* (T, n_heads dv) RWKV-7: values of the first layer */
    Cache cache;                    /* the layer's keys and values */
    float *conv;                    /* the last inputs of the convolutions */
    float *keeps[MAX_KEPT];         /* what it remembers, array by array as in Mixer.keeps */
    float *in[MAX_IN];              /* (T, ...) rows of projections, and that laws make, or NULL */
    float *own[MAX_OWN];            /* (T, ...) scratch, array by array as in Mixer.makes */
    float *free_rows;               /* what is left of the scratch */
    float *o;                       /* (T, n_heads dv) */
} Run;

/* -- rows of what a file holds: a key or a tensor, where it goes in a Layer, and what it may be --
 * section 8 walks them. */

typedef struct {
    enum { END, INT_KEY, FLOAT_KEY, ACT_KEY, NORM_KEY, VECTOR, MATRIX, PROJECTION } what;
    const char *name;               /* of a tensor that a file may go without, "?name" */
    size_t at;                      /* of the member: int, float, const float *, Tensor or Proj */
    const char *shape;              /* tensor: "Hk" numbers, or "l H", H rows of l; matrix: "d Hk",
                                       n_in n_out. INT_KEY: the count that stands for it */
    double absent, lo, hi;          /* keys; absent: or REQUIRED, or AS_IS, the member's value */
} Bind;
#define AT(member) offsetof(Layer, member)
#define LAST_ROW {END, NULL, 0, NULL, 0, 0, 0}
#define REQUIRED (-1e300)
#define AS_IS (-2e300)

/* The rows of one token, which a law changes in place. */
typedef struct {
    float *q, *k, *v, *f, *b, *w;   /* its projections; NULL = absent */
    float *e, *u;                   /* what is erased along; what is written */
    float *first;                   /* RWKV-7: the value of the first layer */
    const float *turn;              /* cos and sin of its position */
} Token;

/* A row of the table of mixers, with its arrays as shapes: see shape_floats. */
struct Mixer {
    const char *name;
    void (*mix)(const Run *, const Layer *);        /* from run->in to run->o */
    void (*law)(const Layer *, const Token *);      /* of one token */
    const char *in;                 /* its projections of the normed input */
    const char *makes;              /* rows that the law fills; without a letter: scratch of mix */
    const char *keeps;              /* what it remembers, behind the convolutions' last inputs */
    const char *grows;              /* key and value of a position and head; NULL = none */
    const char *may;                /* projections that a file may go without, and o: the weight of
                                       the output norm; NULL: no architecture of this name */
    struct { int silu, map, norm; } front; /* SILU_*, ACT_* or MAP_*, QK_*: defaults */
    struct { int out, gate; } back; /* OUT_*; activation of the gate */
    int takes;                      /* keys of a file that not every row has arithmetic for */
    void (*along)(const Run *, const Layer *, Recurrence *); /* what runs along the text, too */
    const Bind *binds;              /* the constants of its law, or NULL */
};
enum { WIDE = 1,                    /* a feature map that widens the keys */
       TURN = 2, SUM = 4,           /* rotation of q and k by their position; a normaliser */
       WRITES = 8,                  /* several writes per token */
       SINGLE = 16,                 /* heads of one channel, and no others */
       BEFORE = 32,                 /* what is erased is read before the memory fades */
       PROJECTS = 64,               /* its projections read mixes of x: rwkv_project */
       EXACT = 128 };               /* its keys and values are kept as f32 only */

/* -- shapes: "Hkv" is n_heads dk dv --
 * A list of arrays, with blanks between them, each a product of letters and digits or a sum of such
 * products. Capitals count, small letters are widths. "k:Hk" is a row of the token, one of
 * IN_LETTERS, here the key of all heads; without a name in front an array is the mixer's own. */
static size_t letter_count(const Layer *y, char letter) {
    switch (letter) {
    case 'H': return (size_t)y->n_heads;
    case 'K': return (size_t)y->n_k_heads;
    case 'G': return (size_t)(y->n_heads / y->n_k_heads); /* query heads of a key head */
    case 'N': return (size_t)y->own.writes;               /* per token */
    case 'L': return MAX_LEVELS - 1;                      /* memories of log-linear attention */
    case 'Z': return y->back.normalizer > 0;              /* 1 with a normaliser, else 0 */
    case 'k': return (size_t)y->dk;
    case 'v': return (size_t)y->dv;
    case 'm': return (size_t)y->own.slots;
    case 'l': return MAX_LEVELS;
    case 'd': return (size_t)y->dim;
    case 'p': return (size_t)y->rope.dims / 2;            /* rotated pairs */
    case 'r': return (size_t)proj_out(&y->own.mamba.step_in); /* Mamba's narrow middle */
    case 'F': return (size_t)y->rows.heads[IN_F];         /* heads of f, and decays of each */
    case 'f': return (size_t)y->rows.width[IN_F];
    case 'S': return (size_t)y->rows.heads[IN_S];         /* heads of the second moment */
    }
    return (size_t)(letter - '0');
}

/* Floats of the array at *shape, which moves to the next. */
static size_t shape_floats(const Layer *y, const char **shape) {
    size_t sum = 0, product = 1;
    for (;; (*shape)++) {
        const char c = **shape;
        if (c && c != ' ' && c != '+') { product *= letter_count(y, c); continue; }
        sum += product, product = 1;
        if (c == '+') continue;
        *shape += c == ' ';
        return sum;
    }
}

/* One walk measures, and with `at` hands out: T rows of every array of a list, one behind the
 * other, each from a vector on. Floats, for T tokens. */
static size_t hand_out(const Layer *y, const char *shapes, int T, float *at, float **rows,
                       float **own) {
    size_t used = 0;
    while (*shapes) {
        float **to = shapes[1] == ':' ? &rows[strchr(IN_LETTERS, *shapes) - IN_LETTERS] : own++;
        if (shapes[1] == ':') shapes += 2;
        const size_t n = shape_floats(y, &shapes);
        if (at) *to = at + used;
        used += round_up((size_t)T * n, LANES);
    }
    return used;
}

/* The same for what is kept: all arrays close together. */
static size_t keep_floats(const Layer *y, const char *shapes, float *at, float **keeps) {
    size_t used = 0;
    for (int n = 0; *shapes; n++) {
        if (at) keeps[n] = at + used;
        used += shape_floats(y, &shapes);
    }
    return used;
}

/* Heads and width of the rows of a list: the capitals and the small letters of each. */
static void shape_rows(Layer *y, const char *shapes) {
    for (; *shapes; shapes += *shapes == ' ') {
        const int j = shapes[1] == ':' ? (int)(strchr(IN_LETTERS, *shapes) - IN_LETTERS) : -1;
        size_t heads = 1, width = 1;
        for (shapes += j < 0 ? 0 : 2; *shapes && *shapes != ' '; shapes++)
            if (*shapes <= 'Z') heads *= letter_count(y, *shapes);
            else width *= letter_count(y, *shapes);
        if (j >= 0) y->rows.heads[j] = (int)heads, y->rows.width[j] = (int)width;
    }
}
static int row_floats(const Layer *y, int j) { return y->rows.heads[j] * y->rows.width[j]; }

/* -- the laws: what fades, what is erased, what is written --
 * A law is what one token does to a memory S before o = S'q is read from it. It gets the rows of
 * the token and makes of them, in place, what the recurrence reads (recurrence_step, section 5):
 *   f -> d   what stays of S, (heads), or for each key channel (heads, dk); without f the constant
 *            decay.a of the head, or nothing fades
 *   b        the strength of the erase, rho; write_strength makes b v of v, for laws that write so
 *   e, u     what is erased along, where it is not k; what is written, where it is not v. A law
 *            that makes e for a memory that has faded (not BEFORE) puts the strength in it
 * Its constants in a file follow as rows. The order is that of doc/recurrence.md. sigmoid and
 * softplus are those of section 5. */

/* x <- x / sqrt(sum(x^2) + 1e-6) * scale: a sum, not a mean; the epsilon is the models', inside. */
static void l2norm(float *x, int n, float scale) {
    float r = scale / sqrtf(dot(x, x, (size_t)n) + 1e-6f);
    for (int i = 0; i < n; i++) x[i] *= r;
}

/* Rotary position embedding of one head in place: channels a, b of a pair turn by pos * freq
 * radians. table: cos and sin of the n/2 angles. Pairs are (i, i + n/2), or (2i, 2i+1) when
 * adjacent. */
static void rope(float *x, const float *table, int n, int adjacent) {
    for (int i = 0; i < n / 2; i++) {
        int ia = adjacent ? 2 * i : i, ib = adjacent ? 2 * i + 1 : i + n / 2;
        float c = table[2 * i], s = table[2 * i + 1], a = x[ia], b = x[ib];
        x[ia] = a * c - b * s;
        x[ib] = a * s + b * c;
    }
}

/* The feature map, norm and scale of the heads of q (which 0) or k (1); x (heads, y->dk) in place.
 * Only q is scaled. */
static void map_heads(const Layer *y, float *x, int heads, int which) {
    int n = y->dk;
    float scale = which ? 1.0f : y->scale;
    if (y->front.map < ACT_NONE) activate_row(x, y->front.map, (size_t)heads * (size_t)n);
    for (int h = 0; h < heads; h++) {
        float *p = x + h * n, sum = y->front.sum_eps;
        if (y->front.norms[which] == QK_L2) { l2norm(p, n, scale); continue; }
        for (int i = 0; i < n && y->front.norms[which] == QK_SUM; i++) sum += p[i];
        float by = y->front.norms[which] == QK_SUM ? scale / sum : scale;
        for (int i = 0; i < n && by != 1.0f; i++) p[i] *= by;
    }
}

/* q, k <- rope(scale norm(map(.))): every law begins with them. */
static void keys(const Layer *y, const Token *t) {
    const int n = y->rope.dims, projected = y->in[IN_K].w.data || y->rows.fused;
    float *const to[2] = {t->q, projected ? t->k : NULL};
    for (int which = 0; which < 2; which++) {
        const int heads = y->rows.heads[which ? IN_K : IN_Q];
        if (!to[which]) continue;
        map_heads(y, to[which], heads, which);
        for (int h = 0; h < heads && n; h++)
            rope(to[which] + h * y->dk, t->turn, n, y->rope.adjacent);
    }
}

/* d = sigmoid(f)^(1 / divisor), not below e^min                     (GLA, arXiv 2312.06635) */
static void fade_sigmoid(const Layer *y, const Token *t) {
    for (int i = 0; i < row_floats(y, IN_F); i++) {
        float log_d = logsigmoid(t->f[i]) / y->decay.divisor;
        t->f[i] = expf(log_d < y->decay.min ? y->decay.min : log_d);
    }
}
#define SIGMOID_KEYS \
    {FLOAT_KEY, "mixer.decay_divisor", AT(decay.divisor), NULL, 16, 1e-6, 1e6}, \
    {FLOAT_KEY, "mixer.decay_min", AT(decay.min), NULL, -INFINITY, -INFINITY, 0}
static const Bind sigmoid_rows[] = {SIGMOID_KEYS, LAST_ROW};

/* d = exp(a softplus(f + dt)), a < 0; with a bound exp(bound sigmoid(-a (f + dt)))
 *                                                          (Gated DeltaNet, arXiv 2412.06464) */
static void fade_softplus(const Layer *y, const Token *t) {
    for (int i = 0; i < row_floats(y, IN_F) && t->f; i++) {
        float a = y->decay.a[i / y->rows.width[IN_F]], x = t->f[i] + y->decay.dt_bias[i];
        float bound = y->decay.bound;
        t->f[i] = expf(bound < 0 ? bound * sigmoid(-a * x) : a * softplus(x));
    }
}
#define SOFTPLUS_ROWS \
    {VECTOR, "ssm_a", AT(decay.a), "F", 0, 0, 0}, \
    {VECTOR, "ssm_dt.bias", AT(decay.dt_bias), "Ff", 0, 0, 0}, \
    {FLOAT_KEY, "mixer.decay_bound", AT(decay.bound), NULL, 0, -1e6, 0}

/* b <- beta_scale sigmoid(b);  beta_scale where a file has no b */
static void strength(const Layer *y, const Token *t) {
    for (int i = 0; i < row_floats(y, IN_B) && t->b; i++)
        t->b[i] = y->write.beta_scale * sigmoid(t->b[i]);
}
#define STRENGTH_KEY {FLOAT_KEY, "mixer.beta_scale", AT(write.beta_scale), NULL, 1, 0, 2}

/* v <- b v, heads of v sharing those of b */
static void write_strength(const Layer *y, const Token *t) {
    const int heads = y->rows.heads[IN_V], dv = y->dv;
    for (int h = 0; h < heads; h++) {
        float b = t->b ? t->b[h / (heads / y->rows.heads[IN_B])] : y->write.beta_scale;
        for (int j = h * dv; j < (h + 1) * dv; j++) t->v[j] *= b;
    }
}

/* Linear attention       S <- S + k v'                               (arXiv 2006.16236)
 * RetNet, Lightning      S <- d S + k v', d a constant of the head   (arXiv 2307.08621, 2405.17381)
 * LightNet, ABC          what fades depends on the whole text: sum_decay */
static void law_plain(const Layer *y, const Token *t) { keys(y, t); }

/* GLA                    S <- Diag(d) S + k v'                       (arXiv 2312.06635)
 * Simple GLA             the same with one d for a head */
static void law_gla(const Layer *y, const Token *t) {
    keys(y, t);
    fade_sigmoid(y, t);
}
static const Bind constant_rows[] = {{VECTOR, "ssm_decay", AT(decay.a), "H", 0, 0, 0}, LAST_ROW};
static const Bind sum_rows[] = {
    {FLOAT_KEY, "mixer.score_min", AT(decay.score_min), NULL, -INFINITY, -INFINITY, INFINITY},
    {FLOAT_KEY, "mixer.score_max", AT(decay.score_max), NULL, INFINITY, -INFINITY, INFINITY},
    LAST_ROW,
};

/* GSA                    what fades makes room: w = 1 - d, per slot  (arXiv 2409.07146) */
static void law_gsa(const Layer *y, const Token *t) {
    law_gla(y, t);
    for (int i = 0; i < row_floats(y, IN_F); i++) t->w[i] = 1 - t->f[i];
}

/* HGRN, HGRN2            S <- Diag(d) S + (1 - d) v'                 (arXiv 2311.04823, 2404.07904)
 *                        d = low + (1 - low) sigmoid(f) */
static void law_hgrn(const Layer *y, const Token *t) {
    keys(y, t);
    for (int i = 0; i < row_floats(y, IN_F); i++) {
        float low = y->decay.low ? y->decay.low[i] : 0;
        t->f[i] = low + (1 - low) * sigmoid(t->f[i]);
        t->k[i] = 1 - t->f[i];
    }
}
static const Bind hgrn_rows[] = {{VECTOR, "?ssm_f_low", AT(decay.low), "Ff", 0, 0, 0}, LAST_ROW};

/* Mamba-2                S <- d S + k (D v)', d = exp(a D)           (arXiv 2405.21060)
 *                        D = softplus(f + dt) within bounds, the time step */
static void law_mamba2(const Layer *y, const Token *t) {
    const int dv = y->dv;
    keys(y, t);
    for (int h = 0; h < y->n_heads; h++) {
        float step = softplus(t->f[h] + y->decay.dt_bias[h]);
        step = step < y->decay.step_min ? y->decay.step_min : step;
        step = step > y->decay.step_max ? y->decay.step_max : step;
        t->f[h] = expf(y->decay.a[h] * step);
        for (int j = h * dv; j < (h + 1) * dv; j++) t->u[j] = step * t->v[j];
    }
}

/* DeltaNet               S <- S + k b (v - S'k)'                     (arXiv 2406.06484) */
static void law_delta(const Layer *y, const Token *t) {
    keys(y, t);
    strength(y, t);
    write_strength(y, t);
}
static const Bind delta_rows[] = {STRENGTH_KEY, LAST_ROW};

/* Gated DeltaNet         S <- d S, then as in DeltaNet               (arXiv 2412.06464)
 * KDA                    S <- Diag(d) S                              (arXiv 2510.26692)
 * Gated Delta Product    several writes per token                    (arXiv 2502.10297)
 * preconditioned         k is scaled by its second moment: scale_keys (arXiv 2604.21100) */
static void law_gated_delta(const Layer *y, const Token *t) {
    law_delta(y, t);
    fade_softplus(y, t);
}
static const Bind gated_delta_rows[] = {SOFTPLUS_ROWS, STRENGTH_KEY, LAST_ROW};
static const Bind preconditioned_rows[] = {
    SOFTPLUS_ROWS, STRENGTH_KEY,
    {VECTOR, "ssm_m_a", AT(write.m_a), "S", 0, 0, 0},
    {VECTOR, "ssm_m_dt.bias", AT(write.m_bias), "S", 0, 0, 0},
    {VECTOR, "ssm_m_scale", AT(write.m_scale), "S", 0, 0, 0},
    {FLOAT_KEY, "mixer.squash", AT(write.squash), NULL, 1.5, 1, 1e6},
    {FLOAT_KEY, "mixer.squash_epsilon", AT(write.squash_eps), NULL, 1e-6, 0, 1},
    LAST_ROW,
};

/* Comba                  S <- d S + k (b (v - S'p))', S'p before S fades  (arXiv 2506.02475)
 *                        p = old_key k, of length one;  q <- q - old_share p, before that */
static void law_comba(const Layer *y, const Token *t) {
    const int dk = y->dk;
    for (int h = 0; h < y->n_heads; h++) {
        for (int i = h * dk; i < (h + 1) * dk; i++) {
            t->e[i] = y->write.old_key[h] * t->k[i];
            t->q[i] -= y->write.old_share[h] * t->e[i];
        }
        l2norm(t->e + h * dk, dk, 1.0f);
    }
    law_gated_delta(y, t);
}
static const Bind comba_rows[] = {
    SOFTPLUS_ROWS, STRENGTH_KEY,
    {VECTOR, "ssm_p", AT(write.old_key), "H", 0, 0, 0},
    {VECTOR, "ssm_d", AT(write.old_share), "H", 0, 0, 0},
    LAST_ROW,
};

/* Gated DeltaNet-2       S <- Diag(d) S;  S <- S + k (sigmoid(w) v - S'(b k))'
 *                        b per key channel                           (arXiv 2605.22791) */
static void law_gdn2(const Layer *y, const Token *t) {
    keys(y, t);
    strength(y, t);
    for (int i = 0; i < row_floats(y, IN_B); i++) t->e[i] = t->b[i] * t->k[i];
    fade_softplus(y, t);
    for (int j = 0; j < row_floats(y, IN_V); j++) t->v[j] *= sigmoid(t->w[j]);
}

/* MesaNet                A <- d A + b k k';  S <- d S + b k v': mix_mesa (arXiv 2506.05233) */
static void law_mesa(const Layer *y, const Token *t) {
    law_gla(y, t);
    strength(y, t);
}
static const Bind mesa_rows[] = {
    SIGMOID_KEYS, STRENGTH_KEY,
    {VECTOR, "ssm_ridge", AT(own.mesa.ridge), "Hk", 0, 0, 0},
    {INT_KEY, "mixer.solver_steps", AT(own.mesa.steps), NULL, REQUIRED, 1, 10000},
    LAST_ROW,
};

/* RWKV-6                 o = S'r + (r . u k) v;  S <- Diag(d) S + k v'  (arXiv 2404.05892)
 *                        d = exp(-exp(f)) */
static void law_rwkv6(const Layer *y, const Token *t) {
    for (int i = 0; i < y->n_heads * y->dk; i++) t->f[i] = expf(-expf(t->f[i]));
}

/* RWKV-7                 S <- Diag(d) S - (a e)(e'S) + k v', e'S before S fades  (arXiv 2503.14456)
 *                        d = exp(-e^-1/2 sigmoid(f));  e = k k_k / |k k_k|;  a = sigmoid(b)
 *                        k <- k (1 + (a - 1) k_a);  v <- v + sigmoid(w) (first - v), where first is
 *                        the v of the first layer;  b becomes -a e */
static void law_rwkv7(const Layer *y, const Token *t) {
    const int keys = y->n_heads * y->dk, values = y->n_heads * y->dv, dk = y->dk;
    const RwkvParts *p = &y->own.rwkv;
    for (int i = 0; i < keys; i++) t->f[i] = expf(-0.60653066f * sigmoid(t->f[i]));
    for (int i = 0; i < keys; i++) t->e[i] = t->k[i] * p->k_k[i];
    for (float *head = t->e; head < t->e + keys; head += dk) {
        float length = sqrtf(dot(head, head, (size_t)dk) + p->k_eps);
        for (int i = 0; i < dk; i++) head[i] /= length > 1e-12f ? length : 1e-12f;
    }
    for (int i = 0; i < keys; i++) {
        float a = sigmoid(t->b[i]);
        t->k[i] *= 1 + (a - 1) * p->k_a[i];
        t->b[i] = -a * t->e[i];
    }
    if (!t->w) memcpy(t->first, t->v, (size_t)values * sizeof(float));
    for (int i = 0; i < values && t->w; i++)
        t->v[i] += sigmoid(t->w[i]) * (t->first[i] - t->v[i]);
}

/* PaTH                   k_j <- (I - u u') k_j for all j before      (arXiv 2505.16381)
 *                        u = sqrt(beta_scale sigmoid(b)) w / |w|, of each key/value head, in w */
static void law_path(const Layer *y, const Token *t) {
    for (int h = 0; h < y->n_k_heads; h++)
        l2norm(t->w + h * y->dk, y->dk, sqrtf(y->write.beta_scale * sigmoid(t->b[h])));
}
static const Bind path_rows[] = {
    {FLOAT_KEY, "mixer.beta_scale", AT(write.beta_scale), NULL, 1, 0, 2},
    {INT_KEY, "mixer.conv_kernel", AT(conv.taps), NULL, 0, 0, 64},
    {PROJECTION, "ssm_beta", AT(in[IN_B]), "d K", 0, 0, 0},
    LAST_ROW,
};

/* Wall attention         k_j <- Diag(fade) k_j, per query head       (fla layers/wall_attn.py)
 *                        fade = sigmoid(w), in w;  q and k are normalised */
static void law_wall(const Layer *y, const Token *t) {
    const int dk = y->dk;
    for (int h = 0; h < y->n_heads && y->qk.q; h++)
        rmsnorm(t->q + h * dk, t->q + h * dk, y->qk.q + h * dk, (size_t)dk, y->qk.eps);
    for (int h = 0; h < y->n_k_heads && y->qk.k; h++)
        rmsnorm(t->k + h * dk, t->k + h * dk, y->qk.k + h * dk, (size_t)dk, y->qk.eps);
    activate_row(t->w, ACT_SIGMOID, (size_t)(y->n_heads * dk));
}

/* -- pieces that many layers share: norms, gates, projections, convolution -- */

/* x <- softmax(x), in place. */
static void softmax_row(float *x, int n) {
    float top = x[0], sum = 0;
    for (int i = 1; i < n; i++)
        if (x[i] > top) top = x[i];
    for (int i = 0; i < n; i++) sum += x[i] = expf(x[i] - top);
    for (int i = 0; i < n; i++) x[i] /= sum;
}

/* y <- rmsnorm(x) * w, row by row; both (T, n), w (n). */
static void rmsnorm_rows(const Team *team, float *y, const float *x, const float *w, int n,
                         float eps, int T) {
    int n_threads = threads_for(team, 4.0 * n * T);
    size_t width = (size_t)n;
    PARALLEL_FOR(n_threads)
    for (int t = 0; t < T; t++)
        team->kernels->norm(y + (size_t)t * width, x + (size_t)t * width, w, width, eps);
}

/* The norm of the stream: RMSNorm, or LayerNorm where the model says so. */
static void norm_rows(const Team *team, const Config *c, float *y, const float *x, Norm f, int T) {
    size_t n = (size_t)c->dim;
    if (!c->layer_norm) { rmsnorm_rows(team, y, x, f.w, c->dim, c->eps, T); return; }
    int n_threads = threads_for(team, 8.0 * c->dim * T);
    PARALLEL_FOR(n_threads)
    for (int t = 0; t < T; t++)
        layernorm(y + (size_t)t * n, x + (size_t)t * n, f.w, f.b, n, c->eps);
}

/* y <- act(y), (T, n); or y <- y * act(z). */
static void activate_rows(const Team *team, float *y, int act, int n, int T) {
    int n_threads = threads_for(team, 8.0 * n * T);
    PARALLEL_FOR(n_threads)
    for (int t = 0; t < T; t++)
        team->kernels->activate(y + (size_t)t * (size_t)n, act, (size_t)n);
}
static void gate_rows(const Team *team, float *y, const float *z, int act, int n, int T) {
    int n_threads = threads_for(team, 8.0 * n * T);
    PARALLEL_FOR(n_threads)
    for (int t = 0; t < T; t++) {
        const size_t at = (size_t)t * (size_t)n;
        team->kernels->gate(y + at, z + at, act, (size_t)n);
    }
}

/* y (T, n) <- y + b, b (n); NULL = nothing. */
static void add_bias(float *y, const float *b, int T, size_t n) {
    for (int t = 0; t < T && b; t++)
        for (size_t i = 0; i < n; i++) y[(size_t)t * n + i] += b[i];
}

/* y (T, W->n_out) = W x, x (T, W->n_in) */
static void matmul_rows(const Team *team, float *y, const Tensor *W, const float *x, int T) {
    Input in = input_rows(x, T, W->n_in);
    matmul(team, &(Product){y, W}, 1, &in);
}

/* rows[j] (T, out_j) = up_j act_j(W_j x) + bias_j, or W_j x + bias_j, for n projections of the same
 * x (T, dim), absent ones left out. The matrices that read x go in one matmul.
 * mid: T * (all narrow middles) floats. */
static void project(const Team *team, float *const *rows, const Proj *p, int n, const float *x,
                    int T, float *mid) {
    Product first[MAX_IN] = {{NULL, NULL}};
    int n_first = 0, n_in = 0;
    float *at = mid;
    for (int j = 0; j < n; j++) {
        if (!p[j].w.data) continue;
        n_in = p[j].w.n_in;
        first[n_first++] = (Product){p[j].up.data ? at : rows[j], &p[j].w};
        if (p[j].up.data) at += (size_t)T * (size_t)p[j].w.n_out;
    }
    Input in = input_rows(x, T, n_in);
    matmul(team, first, n_first, &in);
    at = mid;
    for (int j = 0; j < n; j++) {
        if (p[j].up.data) {
            activate_row(at, p[j].act, (size_t)T * (size_t)p[j].w.n_out);
            matmul_rows(team, rows[j], &p[j].up, at, T);
            at += (size_t)T * (size_t)p[j].w.n_out;
        }
        add_bias(rows[j], p[j].bias, T, (size_t)proj_out(&p[j]));
    }
}

/* Short convolution of x (T, C) in place with the taps of row j, as in conv_strip, then act.
 * last: the taps - 1 inputs before x; moves on. */
static void short_conv(const Run *run, const Conv *f, int j, float *x, float *last, int C,
                       int act) {
    const ShortConv conv = {x, f->w[j], f->bias, last, C, f->taps, run->T, act};
    int n_threads = threads_for(run->team, 12.0 * C * run->T);
    PARALLEL_FOR(n_threads)
    for (int c = 0; c < C; c += STRIP) run->team->kernels->conv(&conv, c);
}

/* What follows the projections q, k, v: silu at once or behind a short convolution; f, and the w of
 * PaTH, may have a convolution, too. */
static void convolve(const Run *run, const Layer *y) {
    const int silu = y->mixer->front.silu;
    float *last = run->conv;
    for (int j = 0; j < MAX_IN; j++) {
        const int C = proj_out(&y->in[j]), has = y->conv.w[j] != NULL;
        const int wanted = silu == SILU_ALWAYS || (silu == SILU_CONV && has)
                        || (silu == SILU_V && j == IN_V);
        const int act = (j <= IN_V || j == IN_W) && wanted ? ACT_SILU : ACT_NONE;
        if (has) {
            short_conv(run, &y->conv, j, run->in[j], last, C, act);
            last += (size_t)(y->conv.taps - 1) * (size_t)C;
        } else if (j <= IN_V && y->in[j].w.data && act != ACT_NONE)
            activate_rows(run->team, run->in[j], act, C, run->T);
    }
}
static size_t conv_floats(const Layer *y) {
    size_t n = 0;
    for (int j = 0; j < MAX_IN; j++)
        if (y->conv.w[j]) n += (size_t)(y->conv.taps - 1) * (size_t)proj_out(&y->in[j]);
    return n;
}

/* o (T, H dv) <- norm(act(o)) * act(z): RMSNorm over norm_width channels at a time, then the gate
 * z, if there is one; the gate first when gate_first. Weights (norm_width), or one per channel, or
 * none. */
static void gated_norm(const Run *run, float *o, const Layer *y, const float *z) {
    const Back *b = &y->back;
    int all = y->n_heads * y->dv, width = b->norm_width ? b->norm_width : all;
    int spans = all / width, n = run->T * spans;
    const Kernels *f = run->team->kernels;
    int n_threads = threads_for(run->team, 16.0 * n * width);
    PARALLEL_FOR(n_threads)
    for (int i = 0; i < n; i++) {
        float *row = o + (size_t)i * (size_t)width;
        const float *gate = z ? z + (size_t)i * (size_t)width : NULL, *w = b->norm;
        if (w && !b->norm_shared) w += (size_t)(i % spans) * (size_t)width;
        if (b->act != ACT_NONE) f->activate(row, b->act, (size_t)width);
        if (b->norm_width && !b->gate_first) f->norm(row, row, w, (size_t)width, b->eps);
        if (gate) f->gate(row, gate, b->gate, (size_t)width);
        if (b->norm_width && b->gate_first) f->norm(row, row, w, (size_t)width, b->eps);
    }
}

/* -- the one recurrence: from projections to what it reads, and back -- */

/* Rows (T, heads, width), stride floats from one token to the next; p NULL: there are none. */
typedef struct { float *p; size_t stride; int heads; } Lane;
static Lane lane_of(const Run *run, const Layer *y, int j) {
    const HeadRows *r = &y->rows;
    if (!r->fused || j > IN_V) return (Lane){run->in[j], (size_t)row_floats(y, j), r->heads[j]};
    return (Lane){run->in[IN_Q] + r->at[j], (size_t)proj_out(&y->in[IN_Q]), r->heads[j]};
}
static float *row_at(const Lane *r, int t) { return r->p ? r->p + (size_t)t * r->stride : NULL; }
static Rows as_rows(Lane r) { return (Rows){r.p, r.stride, r.heads}; }
static Rows own_rows(float *p, int heads, int width) { /* of a mixer's scratch */
    return (Rows){p, (size_t)heads * (size_t)width, heads};
}

/* Feature map of one head: out (map_width) from x or its images a = A1 x + b1, b = A2 x + b2, n
 * long. (fla modules/feature_map.py) */
static void map_head(int map, float *out, const float *x, const float *a, const float *b, int n) {
    if (map == MAP_HADAMARD)
        for (int i = 0; i < n; i++) out[i] = a[i] * b[i];
    if (map == MAP_T2R)
        for (int i = 0; i < n; i++) out[i] = a[i] > 0 ? a[i] : 0;
    if (map == MAP_HEDGEHOG) { /* softmax of (2a, -2a) */
        float top = 0, sum = 0;
        for (int i = 0; i < n; i++)
            if (fabsf(a[i]) > top) top = fabsf(a[i]);
        for (int i = 0; i < n; i++) {
            out[i] = expf(2 * (a[i] - top)), out[n + i] = expf(2 * (-a[i] - top));
            sum += out[i] + out[n + i];
        }
        for (int i = 0; i < 2 * n; i++) out[i] /= sum;
    }
    if (map == MAP_DPFP) /* p = (relu x, -relu x); p_i times the p that lies 1, 2, 3, 4 places
                            before */
        for (int j = 0; j < 4; j++)
            for (int i = 0; i < 2 * n; i++) {
                int k = (i - j - 1 + 8 * n) % (2 * n);
                float p = x[i % n] > 0 ? x[i % n] : 0, r = x[k % n] > 0 ? x[k % n] : 0;
                out[j * 2 * n + i] = (i < n) == (k < n) ? p * r : -(p * r);
            }
}

/* Feature maps that are no function of one number, for all heads of q (which 0) or k (1):
 * x (T, heads, d) to new rows (T, heads, y->dk), which take the place of the projection's. */
static Lane map_lane(const Run *run, const Layer *y, Lane x, int which, float **free_rows) {
    const int map = y->front.map, d = y->rows.width[which], n_rows = run->T * x.heads;
    const size_t width = (size_t)d, wide = (size_t)y->dk, some = (size_t)run->T * width;
    float *images[2];
    for (int n = 0; n < 2; n++) {
        images[n] = *free_rows;
        *free_rows += round_up((size_t)n_rows * wide, LANES);
    }
    const Lane out = {images[0], (size_t)x.heads * wide, x.heads};
    /* T rows at a time, which is what the scratch of a matmul has room for */
    for (int n = 0; n < 2 && y->front.map_in[which][n].w.data; n++)
        for (int h = 0; h < x.heads; h++) {
            float *to = images[map == MAP_HEDGEHOG ? 1 : n] + (size_t)h * some;
            project(run->team, &to, &y->front.map_in[which][n], 1, x.p + (size_t)h * some, run->T,
                    run->mid);
        }
    int n_threads = threads_for(run->team, 20.0 * n_rows * y->dk);
    PARALLEL_FOR(n_threads)
    for (int i = 0; i < n_rows; i++) {
        size_t at = (size_t)i * width;
        map_head(map, images[0] + (size_t)i * wide, x.p + at,
                 images[map == MAP_HEDGEHOG ? 1 : 0] + at, images[1] + at, d);
    }
    return out;
}
static size_t map_floats(const Layer *y) { /* scratch of both, per token */
    if (y->front.map <= ACT_NONE) return 0;
    return 2 * (size_t)(y->rows.heads[IN_Q] + y->rows.heads[IN_K]) * (size_t)y->dk + 4 * LANES;
}

/* cos and sin of the angles of token t. */
static const float *turn_of(const Run *run, const Rotary *r, int t) {
    return r->dims ? run->turns + (size_t)t * run->turn_floats + r->at : NULL;
}

/* The law of the layer, token by token. */
static void apply_law(const Run *run, const Layer *y, const Lane lane[MAX_IN]) {
    const int n_f = row_floats(y, IN_F), H = y->n_heads;
    int n_threads = threads_for(run->team, 4.0 * run->T * (3 * H * y->dv + 2 * H * y->dk
                                                           + (n_f > H ? 10 : 1) * n_f));
    PARALLEL_FOR(n_threads)
    for (int t = 0; t < run->T; t++) {
        const Token token = {
            .q = row_at(&lane[IN_Q], t), .k = row_at(&lane[IN_K], t), .v = row_at(&lane[IN_V], t),
            .f = row_at(&lane[IN_F], t), .b = row_at(&lane[IN_B], t), .w = row_at(&lane[IN_W], t),
            .e = row_at(&lane[IN_E], t), .u = row_at(&lane[IN_U], t),
            .first = run->v_first ? run->v_first + (size_t)t * (size_t)(y->n_heads * y->dv) : NULL,
            .turn = turn_of(run, &y->rope, t),
        };
        y->mixer->law(y, &token);
    }
}

/* From the rows of the projections to what the recurrence reads.      (doc/recurrence.md)
 *   convolution; wide feature maps; the law; then who gets what */
static Recurrence prepare(const Run *run, const Layer *y) {
    static const float one = 1;
    const Mixer *m = y->mixer;
    float *free_rows = run->free_rows;
    Lane lane[MAX_IN];
    convolve(run, y);
    for (int j = 0; j < MAX_IN; j++) lane[j] = lane_of(run, y, j);
    for (int j = IN_Q; j <= IN_K && y->front.map > ACT_NONE; j++)
        lane[j] = map_lane(run, y, lane[j], j, &free_rows);
    apply_law(run, y, lane);

    Recurrence r = {.H = y->n_heads, .dk = y->dk, .dv = y->dv, .tiled = y->rows.tiled,
                    .d_width = lane[IN_F].p ? y->rows.width[IN_F] : 1, .d = as_rows(lane[IN_F]),
                    .q = as_rows(lane[IN_Q]), .k = as_rows(lane[IN_K]),
                    .v = as_rows(lane[lane[IN_U].p ? IN_U : IN_V]), .e = as_rows(lane[IN_E])};
    if (!lane[IN_F].p && y->decay.a) r.d = (Rows){y->decay.a, 0, y->n_heads};
    r.undecayed = (m->takes & BEFORE) != 0;
    if (r.e.p && !r.undecayed) r.rho = (Rows){&one, 0, 1}; /* the strength is in e */
    else if (lane[IN_B].p) r.rho = as_rows(lane[IN_B]);
    else if (y->rows.heads[IN_B]) r.rho = (Rows){&y->write.beta_scale, 0, 1};
    if (m->along) m->along(run, y, &r);
    return r;
}

/* preconditioned: the write key k m of all tokens; erased is along k.            (arXiv 2604.21100)
 *   A <- exp(g) A + s k^2, one per key channel of each head
 *   r = ln(A + eps) - scale;  m = squash^(-r / (1 + |r|)) */
static void scale_keys(const Run *run, const Layer *y, Recurrence *to) {
    const int H = y->rows.heads[IN_G], dk = y->dk;
    const Write *w = &y->write;
    const Rows k = to->k;
    const float squash = (float)log(w->squash);
    float *A = run->keeps[0], *g = run->in[IN_G], *s = run->in[IN_S], *scaled = run->own[0];
    int n_threads = threads_for(run->team, 60.0 * run->T * H * dk);
    PARALLEL_FOR(n_threads)
    for (int h = 0; h < H; h++)
        for (int t = 0; t < run->T; t++) {
            const float *key = row_head(&k, t, h, H, 0, dk);
            size_t at = (size_t)t * (size_t)H + (size_t)h;
            float fade = expf(w->m_a[h] * softplus(g[at] + w->m_bias[h]));
            float strength = sigmoid(s[at]);
            for (int i = 0; i < dk; i++) {
                float *a = &A[h * dk + i], r;
                *a = fade * *a + strength * key[i] * key[i];
                r = logf(*a + w->squash_eps) - w->m_scale[h];
                scaled[at * (size_t)dk + (size_t)i] = key[i] * expf(-squash * r / (1 + fabsf(r)));
            }
        }
    to->e = k;
    to->k = own_rows(scaled, H, dk);
}

/* LightNet, ABC: the decay d, in place of f, and what is written, e^(f - z): the same as 1 - d
 * without its rounding.                                             (arXiv 2405.21022, 2110.02488)
 *   z <- ln(e^z + e^f), f within bounds, against all f so far;  d = e^(z before - z after)
 *   z (n), at position 0 nothing comes before */
static void sum_decay(const Run *run, const Layer *y, Recurrence *to) {
    float *z = run->keeps[0], *d = run->in[IN_F];
    float *rest = run->in[y->rows.heads[IN_W] ? IN_W : IN_K];
    int n = row_floats(y, IN_F), n_threads = threads_for(run->team, 40.0 * run->T * n);
    (void)to;
    PARALLEL_FOR(n_threads)
    for (int i = 0; i < n; i++)
        for (int t = 0; t < run->T; t++) {
            size_t at = (size_t)t * (size_t)n + (size_t)i;
            float s = d[at], before = run->pos + t ? z[i] : -INFINITY;
            s = s < y->decay.score_min ? y->decay.score_min : s;
            s = s > y->decay.score_max ? y->decay.score_max : s;
            /* z = the larger + ln(1 + e^-difference) */
            float more = expf(-fabsf(before - s)), sum = 1 + more;
            z[i] = (s > before ? s : before) + log1pf(more);
            d[at] = (s > before ? more : 1) / sum;
            rest[at] = (s > before ? 1 : more) / sum;
        }
}

/* The other end, in place on run->o (T, H dv): the skip o += D v, the norm and the gate. */
static void finish(const Run *run, const Layer *y) {
    const Lane v = lane_of(run, y, IN_V);
    const float *D = y->back.skip;
    const size_t n = (size_t)(y->n_heads * y->dv), dv = (size_t)y->dv;
    for (int t = 0; t < run->T && D; t++)
        for (size_t j = 0; j < n; j++)
            run->o[(size_t)t * n + j] += D[y->back.skip_each ? j : j / dv] * row_at(&v, t)[j];
    gated_norm(run, run->o, y, run->in[IN_Z]);
}

/* o <- o / (q z + epsilon) with z the sum of all keys so far: weights that add up to one, as in
 * softmax.  z (H, dk) */
static void normalize(const Run *run, const Layer *y, const Recurrence *r, float *z) {
    int H = r->H, dk = r->dk, dv = r->dv;
    int n_threads = threads_for(run->team, 4.0 * run->T * H * (dk + dv));
    PARALLEL_FOR(n_threads)
    for (int h = 0; h < H; h++)
        for (int t = 0; t < run->T; t++) {
            const float *k = row_head(&r->k, t, h, H, r->tiled, dk);
            const float *q = row_head(&r->q, t, h, H, r->tiled, dk);
            float *out = run->o + ((size_t)t * (size_t)H + (size_t)h) * (size_t)dv;
            for (int i = 0; i < dk; i++) z[h * dk + i] += k[i];
            float by = 1.0f / (dot(q, z + h * dk, (size_t)dk) + y->back.normalizer);
            for (int j = 0; j < dv; j++) out[j] *= by;
        }
}

/* Any mixer that is the one recurrence and nothing else.
 *   keeps: what runs along the text, if anything; S (H, dk, dv); with a normaliser the sum of the
 *   keys (H, dk) */
static void mix_linear(const Run *run, const Layer *y) {
    Recurrence r = prepare(run, y);
    float *const *memory = run->keeps + (y->mixer->along != NULL);
    recurrence(run->team, &r, memory[0], run->o, run->T);
    if (y->back.normalizer > 0) normalize(run, y, &r, memory[1]);
    finish(run, y);
}

/* -- the same with one idea more -- */

/* HGRN: no matrix, each channel remembers one number.  h <- d h + (1 - d) v;  o = h
 *                                                                  (arXiv 2311.04823) */
static void mix_hgrn(const Run *run, const Layer *y) {
    float *h = run->keeps[0];
    const size_t n = (size_t)y->n_heads;
    (void)prepare(run, y);
    for (size_t t = 0; t < (size_t)run->T; t++) {
        const float *d = run->in[IN_F] + t * n, *rest = run->in[IN_K] + t * n;
        const float *v = run->in[IN_V] + t * n;
        for (size_t i = 0; i < n; i++) run->o[t * n + i] = h[i] = d[i] * h[i] + rest[i] * v[i];
    }
    finish(run, y);
}

/* Gated Delta Product: several writes per token, one decay before the first, one readout after the
 * last. The writes are tokens of their own to the recurrence; k, v and b hold them one after the
 * other.                                                            (arXiv 2502.10297) */
static Rows split_rows(Rows r, int n) {
    return (Rows){r.p, r.stride / (size_t)n, r.heads > n ? r.heads / n : 1};
}
static void mix_product(const Run *run, const Layer *y) {
    const int n = y->own.writes, T = run->T, H = y->n_heads;
    Recurrence r = prepare(run, y);
    const size_t q_row = r.q.stride, o_row = (size_t)(H * y->dv);
    float *q = run->own[0], *d = run->own[1], *out = run->own[2];
    for (int i = 0; i < T * n; i++) {
        const float *fade = r.d.p && i % n == 0 ? r.d.p + (size_t)(i / n) * r.d.stride : NULL;
        memcpy(q + (size_t)i * q_row, r.q.p + (size_t)(i / n) * q_row, q_row * sizeof(float));
        for (int h = 0; h < H; h++) d[i * H + h] = fade ? fade[h] : 1;
    }
    r.q.p = q, r.d = own_rows(d, H, 1);
    r.k = split_rows(r.k, n), r.v = split_rows(r.v, n), r.rho = split_rows(r.rho, n);
    recurrence(run->team, &r, run->keeps[0], out, T * n);
    for (int t = 0; t < T; t++)
        memcpy(run->o + (size_t)t * o_row, out + (size_t)(t * n + n - 1) * o_row,
               o_row * sizeof(float));
    finish(run, y);
}

/* The memory is a table of slots that is read by softmax: two passes of the recurrence, the first
 * over the keys of the slots, the second over their values.         (arXiv 2409.07146)
 *   d decay, w = 1 - d, per slot
 *   Hk <- Hk Diag(d) + k w';  p = softmax(Hk' q);  Hv <- Diag(d) Hv + w v';  o = Hv' p
 *   keeps: Hk (H, dk, slots), Hv (H, slots, dv), behind what runs along the text
 * gsa takes silu(v), as it does silu(o); abc has w from a running softmax. */
static void mix_slots(const Run *run, const Layer *y) {
    const int H = y->n_heads, M = y->own.slots, T = run->T;
    float *const *memory = run->keeps + (y->mixer->along != NULL), *scores = run->own[0];
    Recurrence r = prepare(run, y);
    const Rows rest = as_rows(lane_of(run, y, IN_W)), p = own_rows(scores, H, M);
    if (y->back.act == ACT_SILU)
        activate_row(run->in[IN_V], ACT_SILU, (size_t)T * (size_t)row_floats(y, IN_V));
    Recurrence first = {.H = H, .dk = r.dk, .dv = M, .q = r.q, .k = r.k, .v = rest, .c = r.d};
    recurrence(run->team, &first, memory[0], scores, T);
    for (int i = 0; i < T * H; i++) softmax_row(scores + (size_t)i * (size_t)M, M);
    Recurrence second = {.H = H, .dk = M, .dv = r.dv, .d_width = M, .d = r.d, .q = p, .k = rest,
                         .v = r.v};
    recurrence(run->team, &second, memory[1], run->o, T);
    finish(run, y);
}

/* Log-linear attention: a memory for every power of two, as in a Fenwick tree. (arXiv 2506.04761)
 *   position t reads level b + 1 for each bit b of t that is set, with weight lam, and itself as
 *   level 0; afterwards the memories of the trailing ones and token t merge into the next level
 *   lam = softplus(levels * w);  keeps: M (H, MAX_LEVELS - 1, dk, dv) */
static void log_linear_step(const Step *s, const Layer *y, float *M, const float *w, int h,
                            int64_t pos, float *out) {
    const int dk = y->dk, dv = y->dv;
    const size_t n = (size_t)dk * (size_t)dv;
    const float *scale = y->own.levels + h * MAX_LEVELS;
    float own = softplus(scale[0] * w[0]) * dot(s->q, s->k, (size_t)dk);
    for (int j = 0; j < dv; j++) out[j] = own * s->v[j];
    int top = 0; /* the level that takes the token in */
    while (pos >> top & 1) top++;
    if (top > MAX_LEVELS - 2) top = MAX_LEVELS - 2;
    for (int b = 0; b < MAX_LEVELS - 1; b++) {
        if (!(pos >> b & 1)) continue; /* empty */
        float *S = M + (size_t)b * n, lam = softplus(scale[b + 1] * w[b + 1]);
        for (int i = 0; i < dk; i++)
            for (int j = 0; j < dv; j++) {
                float m = S[i * dv + j] *= *s->d;
                out[j] += lam * s->q[i] * m;
            }
    }
    float *into = M + (size_t)top * n;
    for (int i = 0; i < dk; i++)
        for (int j = 0; j < dv; j++) into[i * dv + j] += s->k[i] * s->v[j];
    for (int b = 0; b < top; b++) {
        for (size_t i = 0; i < n; i++) into[i] += M[(size_t)b * n + i];
        memset(M + (size_t)b * n, 0, n * sizeof(float));
    }
}
static void mix_log_linear(const Run *run, const Layer *y) {
    Recurrence r = prepare(run, y);
    const int H = r.H, n_threads = threads_for(run->team, 20.0 * run->T * H * r.dk * r.dv);
    const size_t n = (MAX_LEVELS - 1) * (size_t)r.dk * (size_t)r.dv;
    PARALLEL_FOR(n_threads)
    for (int h = 0; h < H; h++) {
        FLUSH_DENORMALS;
        for (int t = 0; t < run->T; t++) {
            const size_t at = (size_t)t * (size_t)H + (size_t)h;
            const Step s = step_of(&r, t, h);
            log_linear_step(&s, y, run->keeps[0] + (size_t)h * n, run->in[IN_W] + at * MAX_LEVELS,
                            h, run->pos + t, run->o + at * (size_t)r.dv);
        }
        RESTORE_DENORMALS;
    }
    finish(run, y);
}

/* Mamba: channel i is a head of its own with a value of one number; what fades depends on the
 * channel and the state.                                            (arXiv 2312.00752)
 *   D = softplus(up step);  h_n <- exp(D a_in) h_n + D v_i B_n;  o_i = sum_n h_n C_n
 *   step, B (k), C (q) projections of v
 * Falcon Mamba divides each of these three by its root mean square. (arXiv 2410.05355)
 *   keeps: h (channels, states) */
static void mix_mamba(const Run *run, const Layer *y) {
    const MambaParts *p = &y->own.mamba;
    const int I = y->n_heads, N = y->dk, T = run->T, R = proj_out(&p->step_in);
    float *steps = run->own[0], *bc = run->own[1], *narrow = run->own[2], *rows[] = {narrow, bc};
    int n_threads = threads_for(run->team, 20.0 * T * I * N);
    convolve(run, y);
    project(run->team, rows, (const Proj[]){p->step_in, p->bc_in}, 2, run->in[IN_V], T, run->mid);
    if (p->norm) {
        rmsnorm_rows(run->team, narrow, narrow, NULL, R, p->eps, T);
        rmsnorm_rows(run->team, bc, bc, NULL, N, p->eps, 2 * T);
    }
    project(run->team, &steps, &p->step_up, 1, narrow, T, run->mid);
    PARALLEL_FOR(n_threads)
    for (int i = 0; i < I; i++) {
        float *h = run->keeps[0] + (size_t)i * (size_t)N;
        const float *a = y->decay.a + (size_t)i * (size_t)N;
        FLUSH_DENORMALS;
        for (int t = 0; t < T; t++) {
            size_t at = (size_t)t * (size_t)I + (size_t)i;
            const float *B = bc + (size_t)t * 2 * (size_t)N, *C = B + N;
            float D = softplus(steps[at]), v = D * run->in[IN_V][at], sum = 0;
            for (int n = 0; n < N; n++) h[n] = fast_exp(D * a[n]) * h[n] + v * B[n];
            for (int n = 0; n < N; n++) sum += h[n] * C[n];
            run->o[at] = sum;
        }
        RESTORE_DENORMALS;
    }
    finish(run, y);
}

/* Mamba-3: what arrived during a step is taken from both its ends, as in the trapezoidal rule.
 *                                                                   (arXiv 2603.15569)
 *   D = softplus(f + dt);  d = exp(-max(softplus(w), rate_min) D);  s = sigmoid(b)
 *   k, q <- rope(norm(k) + bias, angle), each head its own bias and angle <- angle + pi tanh(g) D,
 *   pairs (2i, 2i+1)
 *   S <- d S + d (1 - s) D k_(t-1) v_(t-1)' + s D k v';   o = S'q
 * Two writes per token to the recurrence, the first for the token before.
 *   keeps: k and v of the last token, angles (H, rope.dims / 2), S (H, dk, dv)
 * One head of one token; the rows of its two writes: q, k (dk), v (dv), d. */
typedef struct { float *q[2], *k[2], *v[2], *d[2]; } TwoWrites;
static void trapezoid_step(const Run *run, const Layer *y, int t, int h, const TwoWrites *to) {
    const int dk = y->dk, dv = y->dv, pairs = y->rope.dims / 2;
    const size_t at = (size_t)t * (size_t)y->n_heads + (size_t)h;
    const Rows key = as_rows(lane_of(run, y, IN_K)), query = as_rows(lane_of(run, y, IN_Q));
    const float *x = run->in[IN_V] + at * (size_t)dv;
    float *last_k = run->keeps[0] + h * dk, *last_v = run->keeps[1] + h * dv;
    float *angle = run->keeps[2] + h * pairs, *k = to->k[1], *q = to->q[1], table[MAX_ROPE];
    float D = softplus(run->in[IN_F][at] + y->decay.dt_bias[h]), s = sigmoid(run->in[IN_B][at]);
    float rate = softplus(run->in[IN_W][at]);
    float fade = expf(-(rate > y->own.rate_min ? rate : y->own.rate_min) * D);
    for (int i = 0; i < pairs; i++) {
        double turn = 3.14159265358979 * tanh(run->in[IN_G][t * pairs + i]) * D;
        angle[i] = (float)fmod(angle[i] + turn, 6.28318530717959);
        table[2 * i] = cosf(angle[i]), table[2 * i + 1] = sinf(angle[i]);
    }
    rmsnorm(k, row_head(&key, t, h, y->n_heads, 0, dk), y->qk.k, (size_t)dk, y->eps);
    rmsnorm(q, row_head(&query, t, h, y->n_heads, 0, dk), y->qk.q, (size_t)dk, y->eps);
    for (int i = 0; i < dk; i++) k[i] += y->qk.k_bias[h * dk + i], q[i] += y->qk.q_bias[h * dk + i];
    rope(k, table, y->rope.dims, 1), rope(q, table, y->rope.dims, 1);
    memcpy(to->k[0], last_k, (size_t)dk * sizeof(float));
    memcpy(last_k, k, (size_t)dk * sizeof(float));
    memcpy(to->q[0], q, (size_t)dk * sizeof(float)); /* what is read after the first write is
                                                        dropped */
    for (int j = 0; j < dv; j++) {
        to->v[0][j] = fade * (1 - s) * D * last_v[j];
        to->v[1][j] = s * D * x[j];
        last_v[j] = x[j];
    }
    *to->d[0] = fade, *to->d[1] = 1;
}
static void mix_trapezoid(const Run *run, const Layer *y) {
    const int H = y->n_heads, dk = y->dk, dv = y->dv, T = run->T;
    const size_t row = (size_t)(H * dv);
    float *q = run->own[0], *k = run->own[1], *v = run->own[2];
    float *d = run->own[3], *out = run->own[4];
    int n_threads = threads_for(run->team, 40.0 * T * H * (dk + dv + y->rope.dims));
    PARALLEL_FOR(n_threads)
    for (int h = 0; h < H; h++)
        for (int t = 0; t < T; t++) {
            TwoWrites to;
            for (int n = 0; n < 2; n++) {
                size_t at = (size_t)(2 * t + n) * (size_t)H + (size_t)h;
                to.q[n] = q + at * (size_t)dk, to.k[n] = k + at * (size_t)dk;
                to.v[n] = v + at * (size_t)dv, to.d[n] = d + at;
            }
            trapezoid_step(run, y, t, h, &to);
        }
    Recurrence r = {.H = H, .dk = dk, .dv = dv, .d_width = 1, .d = own_rows(d, H, 1),
                    .q = own_rows(q, H, dk), .k = own_rows(k, H, dk), .v = own_rows(v, H, dv)};
    recurrence(run->team, &r, run->keeps[3], out, 2 * T);
    for (int t = 0; t < T; t++)
        memcpy(run->o + (size_t)t * row, out + (size_t)(2 * t + 1) * row, row * sizeof(float));
    finish(run, y);
}

/* Token shift: delta_t = x_{t-1} - x_t, all (T, dim).               (arXiv 2404.05892)
 *   last (dim): x before the run, zero at the start; left behind is the last x of the run */
static void token_shift(float *delta, const float *x, float *last, int T, size_t dim) {
    for (int t = 0; t < T; t++) {
        const float *now = x + (size_t)t * dim, *before = t ? now - dim : last;
        for (size_t i = 0; i < dim; i++) delta[(size_t)t * dim + i] = before[i] - now[i];
    }
    memcpy(last, x + (size_t)(T - 1) * dim, dim * sizeof(float));
}

/* out = x + delta * share, all (T, dim); share `step` floats apart: 0 when it is the same for every
 * token. */
static void lerp_rows(float *out, const float *x, const float *delta, const float *share,
                      size_t step, int T, size_t dim) {
    for (size_t t = 0; t < (size_t)T; t++)
        for (size_t i = 0; i < dim; i++)
            out[t * dim + i] = x[t * dim + i] + delta[t * dim + i] * share[t * step + i];
}

/* The rows of RWKV's projections: each reads its own mix of x and the x before.
 *                                                                   (arXiv 2404.05892, 2503.14456)
 *   in[j] = W_j (x + delta lerp_j), delta = x before - x;  in RWKV-6 lerp_j depends on x, too, by a
 *   projection of x + delta lerp_x
 *   own: delta, what is read and up to five shares, (T, dim) each */
static void rwkv_project(const Run *run, const Layer *y) {
    const RwkvParts *p = &y->own.rwkv;
    const size_t dim = (size_t)y->dim;
    const int T = run->T;
    /* share[j] (T, dim) */
    float *delta = run->own[0], *read = run->own[1], *share[MAX_IN] = {NULL};
    token_shift(delta, run->x, run->keeps[0], T, dim);
    if (p->lerp_x) {
        for (int j = 0, n = 2; j < MAX_IN; j++)
            if (p->lerp[j].w.data) share[j] = run->own[n++];
        lerp_rows(read, run->x, delta, p->lerp_x, 0, T, dim);
        project(run->team, share, p->lerp, MAX_IN, read, T, run->mid);
    }
    for (int j = 0; j < MAX_IN; j++) {
        if (!y->in[j].w.data) continue;
        const float *lerp = share[j] ? share[j] : p->lerp[j].bias;
        lerp_rows(read, run->x, delta, lerp, share[j] ? dim : 0, T, dim);
        project(run->team, &run->in[j], &y->in[j], 1, read, T, run->mid);
    }
}

/* RWKV's time mixing: the laws above, with the receptance r as q, the decay w as f, the strength a
 * as b and the gate as z.                                           (arXiv 2404.05892, 2503.14456)
 *   o <- LayerNorm(o) per head, RWKV-7: + (r . r_k k) v, with the k and v that were written
 *   o <- o * silu(z), RWKV-7: o * z
 *   keeps: the last x (dim), S (H, dk, dv) */
static void mix_rwkv(const Run *run, const Layer *y) {
    const int H = y->n_heads, dk = y->dk, dv = y->dv, T = run->T, seven = y->own.rwkv.k_k != NULL;
    const float *bonus = y->own.rwkv.bonus;
    Recurrence r = prepare(run, y);
    if (seven) r.rho = (Rows){0}, r.w = as_rows(lane_of(run, y, IN_B));
    else r.u = (Rows){bonus, 0, H};
    recurrence(run->team, &r, run->keeps[1], run->o, T);

    int n_threads = threads_for(run->team, 16.0 * T * H * (dk + dv));
    PARALLEL_FOR(n_threads)
    for (int i = 0; i < T * H; i++) {
        size_t at = (size_t)i * (size_t)dk, v_at = (size_t)i * (size_t)dv, h = (size_t)(i % H);
        const float *q = run->in[IN_Q] + at, *k = run->in[IN_K] + at, *v = run->in[IN_V] + v_at;
        const float *w = y->back.norm + h * (size_t)dv, *b = y->back.norm_bias + h * (size_t)dv;
        float *out = run->o + v_at, own = 0;
        layernorm(out, out, w, b, (size_t)dv, y->back.eps);
        const float *u = bonus + h * (size_t)dk;
        for (int j = 0; j < dk && seven; j++) own += q[j] * u[j] * k[j];
        for (int j = 0; j < dv && seven; j++) out[j] += own * v[j];
        run->team->kernels->gate(out, run->in[IN_Z] + v_at, y->back.gate, (size_t)dv);
    }
}

/* RWKV's feed-forward, in place on the normed x (T, dim).           (arXiv 2404.05892, 2503.14456)
 *   x <- down(act(up xk)), in RWKV-6 times sigmoid(receptance xr)
 *   xk, xr mixes of x and the x before, which last (dim) keeps;  rows: scratch, 3 dim + hidden
 * act(z) is max(z, 0)^2 unless the file names another. */
static void channel_mix(const Team *team, const Ffn *f, float *x, float *last, float *rows, int T) {
    const int width = f->up.n_in, hidden = f->up.n_out;
    const size_t dim = (size_t)width, some = round_up((size_t)T * dim, LANES);
    float *delta = rows, *read = delta + some, *gate = read + some, *key = gate + some;
    token_shift(delta, x, last, T, dim);
    lerp_rows(read, x, delta, f->lerp_k, 0, T, dim);
    matmul_rows(team, key, &f->up, read, T);
    activate_row(key, f->act, (size_t)T * (size_t)hidden);
    if (f->lerp_r) {
        lerp_rows(read, x, delta, f->lerp_r, 0, T, dim);
        matmul_rows(team, gate, &f->gate, read, T);
    }
    matmul_rows(team, x, &f->down, key, T);
    if (f->lerp_r) gate_rows(team, x, gate, ACT_SIGMOID, width, T);
}

/* MesaNet: what is read is the least-squares answer to all that was written. (arXiv 2506.05233)
 *   A <- d A + b k k';  S <- d S + b k v';  (A + Diag(ridge)) x = q;  o = S'x
 *   keeps: A (H, dk, dk), S (H, dk, dv)
 * x comes from a fixed number of steps of conjugate gradient from 0. The epsilons in its divisions
 * keep it from converging entirely, and the norm behind it shows that: the steps are part of the
 * model. One head, one token; q and k are used up: q becomes q - (A + ridge) x, k (A + ridge) p. */
static void mesa_solve(const Layer *y, const float *A, int h, float *x, float *p, float *q,
                       float *k) {
    const int dk = y->dk;
    const float *ridge = y->own.mesa.ridge + h * dk;
    for (int i = 0; i < dk; i++) x[i] = 0, p[i] = q[i];
    float size = dot(q, q, (size_t)dk);
    for (int n = 0; n < y->own.mesa.steps; n++) {
        for (int i = 0; i < dk; i++) k[i] = dot(A + i * dk, p, (size_t)dk) + ridge[i] * p[i];
        float step = size / (dot(p, k, (size_t)dk) + 1e-5f);
        for (int i = 0; i < dk; i++) x[i] += step * p[i], q[i] -= step * k[i];
        float next = dot(q, q, (size_t)dk), keep = next / (size + 1e-5f);
        for (int i = 0; i < dk; i++) p[i] = q[i] + keep * p[i];
        size = next;
    }
}
static void mix_mesa(const Run *run, const Layer *y) {
    const int H = y->n_heads, dk = y->dk, dv = y->dv;
    const double work = 2.0 * run->T * H * dk * (dk * (y->own.mesa.steps + 2) + 2 * dv);
    int n_threads = threads_for(run->team, work);
    (void)prepare(run, y);
    PARALLEL_FOR(n_threads)
    for (int h = 0; h < H; h++) {
        float *A = run->keeps[0] + (size_t)h * (size_t)dk * (size_t)dk;
        float *S = run->keeps[1] + (size_t)h * (size_t)dk * (size_t)dv;
        FLUSH_DENORMALS;
        for (int t = 0; t < run->T; t++) {
            const size_t at = (size_t)t * (size_t)H + (size_t)h, k_at = at * (size_t)dk;
            const float d = run->in[IN_F][at], b = run->in[IN_B][at];
            const float *v = run->in[IN_V] + at * (size_t)dv;
            float *k = run->in[IN_K] + k_at, *x = run->own[0] + k_at, *p = run->own[1] + k_at;
            float *out = run->o + at * (size_t)dv;
            for (int i = 0; i < dk; i++) {
                float w = b * k[i];
                for (int j = 0; j < dk; j++) A[i * dk + j] = d * A[i * dk + j] + w * k[j];
                for (int j = 0; j < dv; j++) S[i * dv + j] = d * S[i * dv + j] + w * v[j];
            }
            mesa_solve(y, A, h, x, p, run->in[IN_Q] + k_at, k);
            for (int j = 0; j < dv; j++) out[j] = 0;
            for (int i = 0; i < dk; i++)
                for (int j = 0; j < dv; j++) out[j] += x[i] * S[i * dv + j];
        }
        RESTORE_DENORMALS;
    }
    finish(run, y);
}

/* -- softmax attention: keys and values of every position -- */

/* FoX: c_t = c_(t-1) + logsigmoid(f_t) of each query head into the cache of a model that forgets;
 * a score is then q'k_j + c_t - c_j.                                (arXiv 2503.02130) */
static void forget_sums(const Run *run, const Layer *y) {
    const Cache *c = &run->cache;
    const int H = y->n_heads;
    for (int t = 0; t < (c->sums ? run->T : 0); t++)
        for (int h = 0; h < H; h++) {
            int64_t pos = run->pos + t, before = pos - 1;
            double sum = pos ? cache_sums(c, before / KEYS)[h * KEYS + before % KEYS] : 0;
            sum += logsigmoid(run->in[IN_F][(size_t)t * (size_t)H + (size_t)h]);
            cache_sums(c, pos / KEYS)[h * KEYS + pos % KEYS] = sum;
        }
}

/* x <- rope(norm(x)), `heads` heads `step` floats apart; w NULL = no norm */
static void turn_heads(const Layer *y, float *x, int heads, int step, const float *w,
                       const float *turn) {
    for (int h = 0; h < heads; h++) {
        float *head = x + h * step;
        if (w) rmsnorm(head, head, w + h * y->qk.step, (size_t)y->dk, y->qk.eps);
        rope(head, turn, y->rope.dims, y->rope.adjacent);
    }
}

/* q, k <- rope(norm(.)); k and v, with c where the model forgets, go into the cache, of which one
 * thread owns a block. Without q (NULL): what later tokens will look back at, and no more. */
static void keep_keys(const Run *run, const Layer *y) {
    const int H = run->in[IN_Q] ? y->n_heads : 0, Hkv = y->n_k_heads, dk = y->dk, T = run->T;
    const int q_step = dk * (y->own.softmax.gated ? 2 : 1);
    const int64_t end = run->pos + T, first = run->pos / KEYS, last = (end - 1) / KEYS;
    int n_threads = threads_for(run->team, 40.0 * T * (y->rope.dims / 2 + (H + Hkv) * dk));
    PARALLEL_FOR(n_threads)
    for (int64_t block = first; block <= last; block++)
        for (int64_t pos = max64(run->pos, block * KEYS); pos < end && pos / KEYS == block; pos++) {
            const size_t t = (size_t)(pos - run->pos);
            const float *turn = turn_of(run, &y->rope, (int)t);
            const float *v = run->in[IN_V] + t * (size_t)(Hkv * y->dv);
            float *k = run->in[IN_K] + t * (size_t)(Hkv * dk);
            float *q = H ? run->in[IN_Q] + t * (size_t)(H * q_step) : NULL;
            turn_heads(y, q, H, q_step, y->qk.q, turn);
            turn_heads(y, k, Hkv, dk, y->qk.k, turn);
            cache_append(&run->cache, pos, k, v, NULL);
        }
    forget_sums(run, y);
}

/* Softmax attention with grouped queries.
 *   in: q (T, H [, 2] dk), k (T, Hkv dk), v (T, Hkv dv);  o (T, H dv)
 *   run->cache: keys and values of every position so far
 *   q, k <- rope(norm(q), pos), rope(norm(k), pos)
 *   o = softmax(scale q K' + c_i - c_j) V * sigmoid(gate), c in models that forget
 * The gate is a projection, or a head has its query rows and then its gate rows; the gate is
 * neither normalised nor rotated. */
static void mix_softmax(const Run *run, const Layer *y) {
    const int H = y->n_heads, dk = y->dk, dv = y->dv, T = run->T;
    const int q_step = dk * (y->own.softmax.gated ? 2 : 1), q_row = H * q_step;
    keep_keys(run, y);

    // o = softmax(scale q K' + c_i - c_j) V
    Attend attend = {.cache = &run->cache, .q = run->in[IN_Q], .q_stride = (size_t)q_row,
                     .q_step = (size_t)q_step, .H = H, .T = T, .window = y->own.softmax.window,
                     .pos = run->pos, .scale = y->scale};
    attention(run->team, &attend, run->o);

    // o <- o * sigmoid(gate)
    if (y->in[IN_Z].w.data) gate_rows(run->team, run->o, run->in[IN_Z], ACT_SIGMOID, H * dv, T);
    if (!y->own.softmax.gated) return;
    const int n_threads = threads_for(run->team, 20.0 * T * H * dv);
    PARALLEL_FOR(n_threads)
    for (int i = 0; i < T * H; i++) {
        const float *gate = run->in[IN_Q] + (size_t)i * (size_t)q_step + dk; /* behind the query */
        run->team->kernels->gate(run->o + (size_t)i * (size_t)dv, gate, ACT_SIGMOID, (size_t)dv);
    }
}

/* Softmax attention whose keys later tokens change: PaTH turns them, wall fades them (laws above).
 *   o = softmax(scale q'k_j + forget (c_t - c_j)) V, c as above
 * Here the keys stay as they were written, and the query is changed on its way back through the
 * text, which gives the same products:
 *   for j = t, t-1 ...:  score_j = q'k_j;  q <- q - u_j (u_j'q), or q <- Diag(fade_j) q
 * This is the one recurrence again, with a memory whose columns are queries: erase along u, or
 * decay, and read along k before that. The cache only grows, as with any attention, so a state can
 * go back to a snapshot. A column meets no other, there are always WALKERS of them, zero until
 * their token comes, and a block's scores join its softmax as in attend_scalar: the same bits in
 * any split.
 *   q (T, H, d), o (T, H, d);  the cache holds the rows [k | u or fades of the group's query heads
 *   | v]
 *   of each key/value head, as values
 * A unit of work is WALKERS queries whose keys change alike: for PaTH, of all query heads that
 * share a key/value head; for wall, of one query head. Row r of a group is token r / G, query head
 * r % G. */
typedef struct {
    int G, group, head;                 /* query heads of a group; this group; its key/value head */
    int first_row, n;                /* the queries: rows first_row to first_row + n of the group */
    int fades;
    float forget;                       /* weight of c_t - c_j */
    size_t width;                       /* of a row of the cache */
    float *block;                       /* (KEYS, width) rows of the cache, newest first */
    float *Q, *scores;                  /* (d, WALKERS) the queries, as they are by now; (KEYS,
                                           WALKERS) */
    float *zero, *buf;                  /* (d + WALKERS); of the recurrence */
    const float *change;                /* in the first row of block: u, or the fades */
    float top[WALKERS], sum[WALKERS];   /* the softmax so far: its maximum, its denominator */
    float *out[WALKERS];                /* its numerator (d), in o */
    int64_t at[WALKERS], from[WALKERS]; /* position of each query, and the oldest that it sees */
} Walk;

/* The scores of `steps` positions, the newest of them last: queries set out where they are; then up
 * to the next of them at once. */
static void walk_scores(const Run *run, const Layer *y, Walk *w, int64_t last, int steps) {
    static const float one = 1;
    const int d = y->dk;
    const Rows zero = {w->zero, 0, 1};
    Recurrence walk = {.H = 1, .dk = d, .dv = WALKERS, .k = zero, .v = zero, .u = zero};
    for (int i = 0, next; i < steps; i = next) {
        next = last - i > w->at[0] ? i + 1 : steps;
        for (int r = 0; r < w->n; r++) {
            const float *q = run->in[IN_Q] + (w->out[r] - run->o);
            for (int k = 0; k < d && w->at[r] == last - i; k++)
                w->Q[k * WALKERS + r] = y->scale * q[k];
        }
        const Rows change = {w->change + (size_t)i * w->width, w->width, 1};
        walk.q = (Rows){w->block + (size_t)i * w->width, w->width, 1};
        if (w->fades) walk.d = change, walk.d_width = d;
        else walk.k = change, walk.rho = (Rows){&one, 0, 1};
        run->team->kernels->recurrence(&walk, 0, 0, w->Q, w->scores + i * WALKERS,
                                       next - i, w->buf);
    }
}

/* These scores join the softmax: forget-gate biases, the maximum of each query, and then
 * out <- out + e^(score - top) v. first: the oldest of the positions. */
static void walk_join(const Cache *c, int d, Walk *w, int64_t first, int64_t last) {
    const int steps = (int)(last - first) + 1;
    int begin[WALKERS] = {0}, end[WALKERS] = {0}; /* the steps that each query takes part in */
    for (int r = 0; r < w->n; r++) {
        const int h = w->group * w->G + (w->first_row + r) % w->G;
        float best = w->top[r];
        begin[r] = (int)max64(0, last - w->at[r]);
        end[r] = (int)(last - max64(w->from[r], first)) + 1;
        for (int i = begin[r]; i < end[r]; i++) {
            float *s = &w->scores[i * WALKERS + r];
            if (c->sums) {
                const int64_t t = w->at[r], j = last - i;
                double c_t = cache_sums(c, t / KEYS)[h * KEYS + t % KEYS];
                double c_j = cache_sums(c, j / KEYS)[h * KEYS + j % KEYS];
                *s += w->forget * (float)(c_t - c_j);
            }
            if (*s > best) best = *s;
        }
        float keep = best > -INFINITY ? fast_exp(w->top[r] - best) : 1;
        w->top[r] = best, w->sum[r] *= keep;
        for (int k = 0; k < d; k++) w->out[r][k] *= keep;
    }
    for (int i = 0; i < steps; i++) {
        float *e = w->scores + i * WALKERS;
        const float *v = w->block + (size_t)i * w->width + w->width - d;
        for (int r = 0; r < WALKERS; r++) e[r] = fast_exp(e[r] - w->top[r]);
        for (int r = 0; r < w->n; r++) {
            if (i < begin[r] || i >= end[r]) continue;
            w->sum[r] += e[r];
            for (int k = 0; k < d; k++) w->out[r][k] += e[r] * v[k];
        }
    }
}

/* A unit, whose group, head, rows and scratch are set. */
static void walk_unit(const Run *run, const Layer *y, Walk *w) {
    const Cache *c = &run->cache;
    const int d = y->dk, window = y->own.softmax.window;
    const int64_t newest = run->pos + (w->first_row + w->n - 1) / w->G;
    memset(w->Q, 0, (size_t)(d * WALKERS) * sizeof(float));
    memset(w->zero, 0, (size_t)(d + WALKERS) * sizeof(float));
    for (int r = 0; r < w->n; r++) {
        const int t = (w->first_row + r) / w->G, h = w->group * w->G + (w->first_row + r) % w->G;
        w->at[r] = run->pos + t;
        w->from[r] = window ? max64(0, w->at[r] - window + 1) : 0;
        w->out[r] = run->o + ((size_t)t * (size_t)y->n_heads + (size_t)h) * (size_t)d;
        w->top[r] = -INFINITY, w->sum[r] = 0;
        memset(w->out[r], 0, (size_t)d * sizeof(float));
    }
    for (int64_t b = newest / KEYS; b >= w->from[0] / KEYS; b--) { /* the newest block first */
        const int64_t first = max64(w->from[0], b * KEYS);
        const int64_t last = min64(newest, b * KEYS + KEYS - 1);
        const int steps = (int)(last - first) + 1;
        cache_values(c, last, steps, w->head, w->block);
        walk_scores(run, y, w, last, steps);
        walk_join(c, d, w, first, last);
    }
    for (int r = 0; r < w->n; r++)
        for (int k = 0; k < d; k++) w->out[r][k] /= w->sum[r];
}

static void walk_back(const Run *run, const Layer *y, float forget) {
    const Cache *c = &run->cache;
    const int H = y->n_heads, d = y->dk, T = run->T, shared = H / y->n_k_heads;
    const int fades = y->mixer->law == law_wall, G = fades ? 1 : shared, groups = H / G;
    const int rows = G * T, units = (rows + WALKERS - 1) / WALKERS; /* of one group */
    int n_threads = threads_for(run->team, 8.0 * T * H * d * (double)(run->pos + T));
    PARALLEL_TASKS(n_threads)
    for (int unit = 0; unit < groups * units; unit++) {
        const int group = unit % groups;
        Walk w = {.G = G, .group = group, .head = group * G / shared, .fades = fades,
                  .forget = forget, .width = (size_t)c->dv};
        w.first_row = (units - 1 - unit / groups) * WALKERS; /* the longest way first */
        w.n = rows - w.first_row < WALKERS ? rows - w.first_row : WALKERS;
        w.block = run->team->buf + (size_t)THREAD_ID * run->team->buf_floats;
        w.Q = w.block + KEYS * w.width;
        w.scores = w.Q + d * WALKERS;
        w.zero = w.scores + KEYS * WALKERS, w.buf = w.zero + d + WALKERS;
        w.change = w.block + d + (fades ? group % shared * d : 0);
        FLUSH_DENORMALS; /* little may be left of a query */
        walk_unit(run, y, &w);
        RESTORE_DENORMALS;
    }
}

/* k, change and v into the cache, a row for each key/value head; own: scratch (T, such rows) */
static void append_rows(const Run *run, const Layer *y) {
    const Cache *c = &run->cache;
    const size_t heads = (size_t)c->heads, row = (size_t)c->dv;
    const size_t d = (size_t)y->dk, w = row - 2 * d;
    for (int t = 0; t < run->T; t++) {
        float *to = run->own[0] + (size_t)t * heads * row;
        for (size_t g = 0; g < heads; g++) {
            size_t at = (size_t)t * heads + g;
            memcpy(to + g * row, run->in[IN_K] + at * d, d * sizeof(float));
            memcpy(to + g * row + d, run->in[IN_W] + at * w, w * sizeof(float));
            memcpy(to + g * row + d + w, run->in[IN_V] + at * d, d * sizeof(float));
        }
        cache_append(c, run->pos + t, to, to, NULL);
    }
}

/* PaTH: what was said in between, not the distance, turns a key away from the query.  Wall: a key
 * fades channel by channel, as the memory of gated linear attention does, under a softmax. */
static void mix_walk(const Run *run, const Layer *y) {
    const int n = y->n_heads * y->dk;
    (void)prepare(run, y);
    append_rows(run, y);
    forget_sums(run, y);
    walk_back(run, y, y->mixer->law == law_wall ? 1 : y->scale);
    if (y->in[IN_Z].w.data) gate_rows(run->team, run->o, run->in[IN_Z], ACT_SIGMOID, n, run->T);
}

/* -- the table of mixers --
 *   in, makes, keeps, grows   shapes, as above
 *   may      projections that a file may go without, and o: the weight of the output norm
 * Then of q, k and v: silu, feature map, norm. Of the readout: norm, activation of the gate. A file
 * may switch parts off or replace them (doc/format.md): convolutions, map, gate, norms, strength,
 * bounds of the decay. */
static const Mixer mixers[] = {
    /* name, mix, law,  in, makes, keeps, grows, may, {silu, map, norm}, {norm, gate}, takes, along,
       binds */
    {"softmax", mix_softmax, NULL, "", "", "", "k v", NULL,
     {SILU_NEVER, ACT_NONE, QK_PLAIN}, {OUT_HEAD, ACT_NONE}, 0, NULL, NULL},
    {"path", mix_walk, law_path, "q:Hk k:Kk v:Kk b:K w:Kk", "3Kk", "", "0 3k", NULL,
     {SILU_CONV, ACT_NONE, QK_PLAIN}, {OUT_HEAD, ACT_NONE}, 0, NULL, path_rows},
    {"wall", mix_walk, law_wall, "q:Hk k:Kk v:Kk w:Hk", "2Kk+Hk", "", "0 2k+Gk", NULL,
     {SILU_NEVER, ACT_NONE, QK_PLAIN}, {OUT_HEAD, ACT_NONE}, EXACT, NULL, NULL},
    {"rwkv6", mix_rwkv, law_rwkv6, "q:Hk k:Hk v:Hv f:Hk z:Hv", "d d d d d d d", "d Hkv", NULL, NULL,
     {SILU_NEVER, ACT_NONE, QK_PLAIN}, {OUT_HEAD, ACT_SILU}, PROJECTS, NULL, NULL},
    {"rwkv7", mix_rwkv, law_rwkv7, "q:Hk k:Hk v:Hv f:Hk b:Hk z:Hv w:Hv", "e:Hk d d", "d Hkv", NULL,
     NULL, {SILU_NEVER, ACT_NONE, QK_PLAIN}, {OUT_HEAD, ACT_NONE}, PROJECTS | BEFORE, NULL, NULL},
    {"linear_attn", mix_linear, law_plain, "q:Hk k:Kk v:Kv", "", "Hkv ZHk", NULL, "o",
     {SILU_NEVER, MAP_HADAMARD, QK_PLAIN}, {OUT_HEAD, ACT_NONE}, WIDE | TURN | SUM, NULL, NULL},
    {"retnet", mix_linear, law_plain, "q:Hk k:Kk v:Kv z:Hv", "", "Hkv ZHk", NULL, "zo",
     {SILU_NEVER, ACT_NONE, QK_PLAIN}, {OUT_HEAD, ACT_SILU}, WIDE | TURN | SUM, NULL,
     constant_rows},
    {"lightning_attn", mix_linear, law_plain, "q:Hk k:Kk v:Kv z:Hv", "", "Hkv ZHk", NULL, "zo",
     {SILU_CONV, ACT_NONE, QK_PLAIN}, {OUT_HEAD, ACT_SILU}, WIDE | TURN | SUM, NULL, constant_rows},
    {"simple_gla", mix_linear, law_gla, "q:Hk k:Kk v:Kv f:H z:Hv", "", "Hkv ZHk", NULL, "zo",
     {SILU_CONV, ACT_NONE, QK_PLAIN}, {OUT_HEAD, ACT_SILU}, WIDE | TURN | SUM, NULL, sigmoid_rows},
    {"mamba", mix_mamba, NULL, "v:H z:H", "H 2k r", "Hk", NULL, "",
     {SILU_ALWAYS, ACT_NONE, QK_PLAIN}, {OUT_GATED, ACT_SILU}, 0, NULL, NULL},
    {"samba", mix_mamba, NULL, "v:H z:H", "H 2k r", "Hk", NULL, "",
     {SILU_ALWAYS, ACT_NONE, QK_PLAIN}, {OUT_GATED, ACT_SILU}, 0, NULL, NULL},
    {"mamba2", mix_linear, law_mamba2, "q:Kk k:Kk v:Hv f:H z:Hv", "u:Hv", "Hkv", NULL, "",
     {SILU_ALWAYS, ACT_NONE, QK_PLAIN}, {OUT_GATED, ACT_SILU}, 0, NULL, NULL},
    {"log_linear_mamba2", mix_log_linear, law_mamba2, "q:Kk k:Kk v:Hv f:H z:Hv w:Hl", "u:Hv",
     "HLkv", NULL, "", {SILU_ALWAYS, ACT_NONE, QK_PLAIN}, {OUT_GATED, ACT_SILU}, 0, NULL, NULL},
    {"mamba3", mix_trapezoid, NULL, "q:Kk k:Kk v:Hv f:H z:Hv w:H b:H g:p", "2Hk 2Hk 2Hv 2H 2Hv",
     "Hk Hv Hp Hkv", NULL, "", {SILU_NEVER, ACT_NONE, QK_PLAIN}, {OUT_GATED, ACT_SILU}, 0, NULL,
     NULL},
    {"gla", mix_linear, law_gla, "q:Hk k:Kk v:Kv f:Kk z:Hv", "", "Hkv ZHk", NULL, "zo",
     {SILU_CONV, ACT_NONE, QK_PLAIN}, {OUT_HEAD, ACT_SILU}, TURN | SUM, NULL, sigmoid_rows},
    {"hgrn", mix_hgrn, law_hgrn, "v:Hv f:Hk z:Hv", "k:Hk", "Hkv", NULL, "o",
     {SILU_V, ACT_NONE, QK_PLAIN}, {OUT_ALL, ACT_SILU}, SINGLE, NULL, hgrn_rows},
    {"hgrn2", mix_linear, law_hgrn, "q:Hk v:Hv f:Hk", "k:Hk", "Hkv", NULL, "o",
     {SILU_NEVER, ACT_SILU, QK_PLAIN}, {OUT_ALL, ACT_NONE}, 0, NULL, hgrn_rows},
    {"lightnet", mix_linear, law_plain, "q:Hk v:Hv f:Hk z:Hv", "k:Hk", "Ff Hkv", NULL, "o",
     {SILU_NEVER, ACT_SILU, QK_PLAIN}, {OUT_ALL, ACT_SILU}, 0, sum_decay, sum_rows},
    {"abc", mix_slots, law_plain, "q:Hk k:Hk v:Hv f:Hm z:Hv", "w:Hm Hm", "Ff Hkm Hmv", NULL, "o",
     {SILU_CONV, ACT_NONE, QK_PLAIN}, {OUT_HEAD, ACT_SILU}, TURN, sum_decay, sum_rows},
    {"gsa", mix_slots, law_gsa, "q:Hk k:Kk v:Kv f:Km", "w:Km Hm", "Hkm Hmv", NULL, "o",
     {SILU_CONV, ACT_SILU, QK_PLAIN}, {OUT_SILU_ALL, ACT_NONE}, TURN, NULL, sigmoid_rows},
    {"delta_net", mix_linear, law_delta, "q:Hk k:Hk v:Hv b:H z:Hv", "", "Hkv", NULL, "bz",
     {SILU_V, ACT_SILU, QK_L2}, {OUT_HEAD, ACT_SILU}, WIDE | TURN, NULL, delta_rows},
    {"gated_deltanet", mix_linear, law_gated_delta, "q:Kk k:Kk v:Hv f:H b:H z:Hv", "", "Hkv", NULL,
     "z", {SILU_ALWAYS, ACT_NONE, QK_L2}, {OUT_HEAD, ACT_SILU}, WIDE | TURN, NULL,
     gated_delta_rows},
    {"gated_deltaproduct", mix_product, law_gated_delta, "q:Kk k:NKk v:NHv f:H b:NH z:Hv",
     "NHk NH NHv", "Hkv", NULL, "fz",
     {SILU_ALWAYS, ACT_NONE, QK_L2}, {OUT_HEAD, ACT_SILU}, WIDE | TURN | WRITES, NULL,
     gated_delta_rows},
    {"mesa_net", mix_mesa, law_mesa, "q:Hk k:Hk v:Hv f:H b:H z:Hv", "Hk Hk", "Hkk Hkv", NULL, "z",
     {SILU_CONV, ACT_NONE, QK_L2}, {OUT_HEAD, ACT_SILU}, 0, NULL, mesa_rows},
    {"comba", mix_linear, law_comba, "q:Hk k:Hk v:Hv f:H b:H z:Hv", "e:Hk", "Hkv", NULL, "z",
     {SILU_ALWAYS, ACT_NONE, QK_L2}, {OUT_HEAD, ACT_SIGMOID}, BEFORE, NULL, comba_rows},
    {"kda", mix_linear, law_gated_delta, "q:Kk k:Kk v:Hv f:Hk b:H z:Hv", "", "Hkv", NULL, "",
     {SILU_ALWAYS, ACT_NONE, QK_L2}, {OUT_HEAD, ACT_SIGMOID}, TURN, NULL, gated_delta_rows},
    {"gdn2", mix_linear, law_gdn2, "q:Kk k:Kk v:Hv f:Kk b:Kk z:Hv w:Hv", "e:Kk", "Hkv", NULL, "",
     {SILU_ALWAYS, ACT_NONE, QK_L2}, {OUT_HEAD, ACT_SIGMOID}, TURN, NULL, gated_delta_rows},
    {"precond_gated_deltanet", mix_linear, law_gated_delta, "q:Kk k:Kk v:Hv f:H b:H z:Hv g:K s:K",
     "Sk", "Sk Hkv", NULL, "z",
     {SILU_ALWAYS, ACT_NONE, QK_L2}, {OUT_HEAD, ACT_SILU}, TURN, scale_keys, preconditioned_rows},
    {"precond_kda", mix_linear, law_gated_delta, "q:Kk k:Kk v:Hv f:Hk b:K z:Hv g:H s:H", "Sk",
     "Sk Hkv", NULL, "",
     {SILU_ALWAYS, ACT_NONE, QK_L2}, {OUT_HEAD, ACT_SIGMOID}, TURN, scale_keys,
     preconditioned_rows},
};
static const Mixer *mixer_row(const char *name) {
    for (size_t i = 0; i < sizeof mixers / sizeof *mixers; i++)
        if (!strcmp(mixers[i].name, name)) return &mixers[i];
    return NULL;
}

/* Keys and values of a position, as they are kept. */
static Cache cache_shape(const Layer *y, int kv) {
    static const int cache_types[GLA_N_KV] = {F32, F32, F16, Q8_0};
    const char *shape = y->mixer->grows;
    Cache c = {.type = cache_types[kv], .heads = y->n_k_heads};
    c.dk = (int)shape_floats(y, &shape), c.dv = (int)shape_floats(y, &shape);
    c.sums = y->in[IN_F].w.data ? y->n_heads : 0;
    return c;
}

/* ---- 8. model: config, weights, and which name means what --------------------------------------
 * Keys and tensors of a file become layers, and every shape is checked here, so that a file that
 * loads runs. Afterwards nobody looks a name up.
 *
 *   bind            walks rows of keys and tensors: place in a Layer, shape or range (section 7)
 *   bind_*          what one kind of mixer has beyond its rows
 *   architectures   what one decoder has and another has not, a row each; read_block reads them all
 *   load_model      the whole file */

typedef struct Tokenizer Tokenizer; /* section 11 */

/* The block behind the layers that predicts the token after next, see section 10. */
typedef struct {
    const Layer *layer;             /* NULL: the file has none, or one that cannot be used */
    Tensor join;                    /* (2 dim, dim) */
    Norm token, hidden, out;        /* of the two halves of what join reads; behind the layer */
    Tensor embed, head;             /* the model's, or its own; the head may be a short one */
    char why_not[GLA_ERR];          /* why there is none */
} Mtp;
/* Drafts are chosen among so many tokens: merges are numbered as they were learnt, the frequent ones
 * first, and of a large vocabulary the head is a third of what a small model reads for a token. */
enum { DRAFT_VOCAB = 32768 };

struct GlaModel {
    Gguf file, vocab_file;          /* vocab_file only with gla_open_tokenizer */
    char *architecture, *name, *kinds;
    Config config;
    Layer *layers;
    Tensor embed, head;             /* head is embed in tied models */
    Mtp mtp;
    Norm out_norm, embed_norm;
    const float *res_proj, *res_norm;
    const Kernels *kernels;
    Tokenizer *vocab;
    char pre[64];                   /* gla_pre_tokenizer, or "" */
    char no_text[GLA_ERR];      /* why the file's vocabulary cannot be used, "" = it can, or none */
    uint64_t parameters, token_bytes, token_weights, run_weights;
    size_t fixed_floats, kv_floats; /* of all layers; kv per position */
    size_t replay_floats, widest_kv; /* of all layers, per token; keys or values of one position */
    size_t kv_bytes[GLA_N_KV];      /* of KEYS positions of all layers */
    size_t row_floats, mid_floats;  /* scratch per token: widest set of projections; of narrow
                                       middles */
    size_t out_floats, hidden_floats; /* scratch per token: widest mixer output; feed-forward */
    size_t turn_floats;             /* scratch per token: cos and sin of every Rotary */
    size_t widest_in, widest_dk;    /* widest input of a matmul; rows of the tallest memory */
    size_t v_first_floats;          /* RWKV-7: values of the first layer, per token */
    struct Block { struct Block *next; } *owned; /* memory to free with the model */
};

/* -- what one decoder has and another has not --
 * Keys and tensors are llama.cpp's, where it knows the architecture; the others are those of the
 * fla library in the layout of doc/format.md. Every row of the table of mixers that says what a
 * file `may` leave out is an architecture, too: the last row. */
enum { NO, IF_THERE, YES };
typedef struct {
    const char *name;               /* NULL: any mixer's */
    const char *linear;             /* mixer of layers without attention.head_count, "" = of that
                                       name */
    const char *softmax;            /* of the others */
    int every;                      /* so many layers have one of softmax; 0 = as head_count says */
    int tiled;                      /* linear layers are laid out as those of Qwen3.5: bind_qwen35 */
    int rwkv;                       /* 6, 7: LayerNorms, and RWKV's channel mix */
    int adjacent;                   /* rotary pairs (2i, 2i+1), as the rows of q and k are stored */
    int biased;                     /* q, k and v must have a bias; elsewhere they may */
    int qk_norm;                    /* every head of q and of k is normalised */
    int gated;                      /* the rows of a query are followed by those of its gate */
    int sandwich;                  /* the mixer and the feed-forward have a norm behind them, too */
    const char *ffn_norm;           /* the name of the norm in front of the feed-forward */
    int act;                        /* of the feed-forward */
    int scaled;                     /* the embedding is multiplied by sqrt(dim) */
    int period;                     /* where the file has a window and no pattern: every so many
                                       layers one has none; 0 = all have it */
    double window_base;            /* rotary base of layers with a window, which no scaling touches;
                                       0 = like the others */
    int wide;                       /* the model of so many layers scales scores by
                                       (dim / heads)^-1/2, all others by (head width)^-1/2 */
} Architecture;
#define FFN "ffn_norm.weight"
#define POST "post_attention_norm.weight"
#define RWKV "attn_norm_2.weight"
static const Architecture architectures[] = {
    /* name                    linear            softmax    every tiled rwkv adj bias qk_norm   gated sand ffn   act            scaled period base   wide */
    {"llama",                  NULL,             "softmax", 0,    0,    0,   1,  0,   NO,       0,    0,   FFN,  ACT_SILU,      0,     0,     0,     0},
    {"qwen2",                  NULL,             "softmax", 0,    0,    0,   0,  1,   NO,       0,    0,   FFN,  ACT_SILU,      0,     0,     0,     0},
    {"qwen3",                  NULL,             "softmax", 0,    0,    0,   0,  0,   YES,      0,    0,   FFN,  ACT_SILU,      0,     0,     0,     0},
    {"gemma3",                 NULL,             "softmax", 0,    0,    0,   0,  0,   YES,      0,    1,   FFN,  ACT_GELU_TANH, 1,     6,     10000, 62},
    {"qwen35",                 "gated_deltanet", "softmax", 4,    1,    0,   0,  0,   YES,      1,    0,   POST, ACT_SILU,      0,     0,     0,     0},
    {"rwkv6",                  "rwkv6",          "softmax", 0,    0,    6,   0,  0,   NO,       0,    0,   RWKV, ACT_SQRELU,    0,     0,     0,     0},
    {"rwkv7",                  "rwkv7",          "softmax", 0,    0,    7,   0,  0,   NO,       0,    0,   RWKV, ACT_SQRELU,    0,     0,     0,     0},
    {"transformer",            NULL,             "softmax", 0,    0,    0,   0,  0,   IF_THERE, 0,    0,   FFN,  ACT_SILU,      0,     0,     0,     0},
    {"forgetting_transformer", NULL,             "softmax", 0,    0,    0,   0,  0,   IF_THERE, 0,    0,   FFN,  ACT_SILU,      0,     0,     0,     0},
    {"path_attn",              NULL,             "path",    0,    0,    0,   0,  0,   NO,       0,    0,   FFN,  ACT_SILU,      0,     0,     0,     0},
    {"wall_transformer",       NULL,             "wall",    0,    0,    0,   0,  0,   IF_THERE, 0,    0,   FFN,  ACT_SILU,      0,     0,     0,     0},
    {NULL,                     "",               "softmax", 0,    0,    0,   0,  0,   IF_THERE, 0,    0,   FFN,  ACT_SILU,      0,     0,     0,     0},
};
#undef FFN
#undef POST
#undef RWKV
static const Architecture *architecture_named(const char *name) {
    const Architecture *a = architectures;
    const Mixer *m = mixer_row(name);
    while (a->name && strcmp(a->name, name)) a++;
    return a->name || (m && m->may) ? a : NULL;
}

/* While loading: the first failure sticks, and everything after it is skipped, so a config reader
 * reads as a list. */
typedef struct {
    GlaModel *m;
    const Gguf *g;
    char arch[32];
    const Architecture *a;
    char *err;
    int code;
} Loader;
#define REFUSE(l, kind, ...) ((l)->code = (l)->code ? (l)->code : fail((l)->err, kind, __VA_ARGS__))

/* Zeroed memory that lives as long as the model. */
static void *keep(Loader *l, size_t n, size_t width) {
    if (l->code) return NULL;
    struct Block *b = width && n > SIZE_MAX / 4 / width ? NULL : gla_alloc(ALIGN + n * width);
    if (!b) { REFUSE(l, GLA_MEMORY, "no memory for the model's description"); return NULL; }
    b->next = l->m->owned, l->m->owned = b;
    return (char *)b + ALIGN;
}

static char *keep_str(Loader *l, Str s, const char *otherwise) {
    if (!s.s) s = (Str){otherwise, strlen(otherwise)};
    char *p = keep(l, s.n + 1, 1);
    if (p) memcpy(p, s.s, s.n);
    return p;
}

static const char *arch_key(char out[96], const Loader *l, const char *key) {
    snprintf(out, 96, "%s.%s", l->arch, key);
    return out;
}

/* An integer key of the architecture, one for all layers or an array with an element per layer.
 * absent: its default, or below lo when the key is required. */
static int int_key(Loader *l, const char *key, int layer, int64_t absent, int64_t lo, int64_t hi) {
    char full[96];
    int64_t v = absent, i = gguf_key_index(l->g, arch_key(full, l, key));
    if (l->code) return (int)max64(absent, lo);
    if (i < 0 && absent < lo) REFUSE(l, GLA_FORMAT, "%s is missing", full);
    else if (i >= 0) {
        const GgufKey *k = &l->g->keys[i];
        if (!array_int(&k->value, k->type == GGUF_ARR ? (uint64_t)layer : 0, &v))
            REFUSE(l, GLA_FORMAT, "%s holds no integer for layer %d", full, layer);
        else if (v < lo || v > hi)
            REFUSE(l, GLA_FORMAT, "%s is %lld, expected %lld to %lld", full, (long long)v,
                   (long long)lo, (long long)hi);
    }
    return (int)(l->code ? lo : v);
}

static double float_key(Loader *l, const char *key, int layer, double absent, double lo,
                        double hi) {
    char full[96];
    double v = absent;
    int64_t i = gguf_key_index(l->g, arch_key(full, l, key));
    if (l->code || i < 0) return absent;
    const GgufKey *k = &l->g->keys[i];
    if (!array_float(&k->value, k->type == GGUF_ARR ? (uint64_t)layer : 0, &v))
        REFUSE(l, GLA_FORMAT, "%s holds no number for layer %d", full, layer);
    else if (!(v >= lo && v <= hi)) /* NaN, too */
        REFUSE(l, GLA_FORMAT, "%s is %g, expected %g to %g", full, v, lo, hi);
    return l->code ? absent : v;
}

/* 0: it is not there; full: its whole name. */
static int str_key(Loader *l, const char *key, char full[96], Str *s) {
    int64_t i = gguf_key_index(l->g, arch_key(full, l, key));
    if (l->code || i < 0) return 0;
    if (!gguf_str(l->g, full, s)) REFUSE(l, GLA_FORMAT, "%s holds no word", full);
    return !l->code;
}

/* A word of a list, which begins with the words that are no feature maps. */
typedef struct { const char *name; int value; } Word;
static const Word act_words[] = {
    {"silu", ACT_SILU}, {"swish", ACT_SILU}, {"relu", ACT_RELU}, {"sigmoid", ACT_SIGMOID},
    {"gelu", ACT_GELU}, {"gelu_tanh", ACT_GELU_TANH}, {"sqrelu", ACT_SQRELU}, {"powlu", ACT_POWLU},
    {"logsigmoid", ACT_LOGSIGMOID}, {"elu_plus_one", ACT_ELU1}, {"tanh", ACT_TANH},
    {"identity", ACT_NONE}, {NULL, 0},
}, map_words[] = {
    {"elementwise_product", MAP_HADAMARD}, {"t2r", MAP_T2R}, {"hedgehog", MAP_HEDGEHOG},
    {"dpfp", MAP_DPFP}, {NULL, 0},
}, norm_words[] = {{"l2", QK_L2}, {"sum", QK_SUM}, {"none", QK_PLAIN}, {NULL, 0}};
static int word_key(Loader *l, const char *key, int absent, const Word *list, const Word *more,
                    const char *what) {
    char full[96], name[64];
    Str s = {NULL, 0};
    if (!str_key(l, key, full, &s)) return absent;
    for (; list; list = more, more = NULL)
        for (; list->name; list++)
            if (str_is(s, list->name)) return list->value;
    REFUSE(l, GLA_UNSUPPORTED, "%s is \"%s\", %s that is not implemented", full, printable(name, s),
           what);
    return absent;
}
static int act_key(Loader *l, const char *key, int absent) {
    return word_key(l, key, absent, act_words, NULL, "an activation");
}

static GgufTensor *tensor_named(Loader *l, char full[64], const char *name, int layer) {
    if (layer >= 0) snprintf(full, 64, "blk.%d.%s", layer, name);
    else snprintf(full, 64, "%s", name);
    int64_t i = name_find(&l->g->tensor_table, l->g->tensors, sizeof *l->g->tensors,
                          (Str){full, strlen(full)});
    return i < 0 ? NULL : &l->g->tensors[i];
}
static int has(Loader *l, const char *name, int layer) {
    char full[64];
    return tensor_named(l, full, name, layer) != NULL;
}

/* A tensor that has not the shape (n[0], n[1], n[2]); those of 1 at the end are not shown. */
static void refuse_shape(Loader *l, const char *full, const GgufTensor *t, const int64_t n[3]) {
    char third[24] = "";
    if (n[2] > 1) snprintf(third, sizeof third, ", %lld", (long long)n[2]);
    REFUSE(l, GLA_FORMAT, "%s is (%llu, %llu, %llu, %llu), expected (%lld, %lld%s); "
           "was it exported for another config?", full, (unsigned long long)t->ne[0],
           (unsigned long long)t->ne[1], (unsigned long long)t->ne[2], (unsigned long long)t->ne[3], (long long)n[0],
           (long long)n[1], third);
}

/* A type that nothing here reads, or not in this place; instead: what is expected. */
static void refuse_type(Loader *l, const char *full, const GgufTensor *t, const char *instead) {
    REFUSE(l, GLA_UNSUPPORTED, "%s has the type %s, %s", full, types[t->type].name, instead);
}

/* n matrices of n_out rows of n_in, one below the other; dimensions that are 0 are taken from the
 * file. layer < 0: not in a block. */
static Tensor matrices(Loader *l, const char *name, int layer, int64_t n_in, int64_t n_out,
                       int64_t n) {
    char full[64];
    const Tensor none = {NULL, 0, 0, 0};
    GgufTensor *t = l->code ? NULL : tensor_named(l, full, name, layer);
    if (l->code) return none;
    if (!t) { REFUSE(l, GLA_FORMAT, "the tensor %s is missing", full); return none; }
    if (!n_in) n_in = (int64_t)min64((int64_t)t->ne[0], INT32_MAX);
    if (!n_out) n_out = (int64_t)min64((int64_t)t->ne[1], INT32_MAX);
    if ((int64_t)t->ne[0] != n_in || (int64_t)t->ne[1] != n_out || (int64_t)t->ne[2] != n
        || t->ne[3] != 1)
        refuse_shape(l, full, t, (const int64_t[]){n_in, n_out, n});
    else if (t->ne[1] > (uint64_t)(INT32_MAX / 8 / n) || t->ne[0] > INT32_MAX / 8)
        REFUSE(l, GLA_UNSUPPORTED, "%s is too large: at most 2^28 rows and columns", full);
    else if (!types[t->type].group)
        refuse_type(l, full, t, "which is not implemented");
    if (l->code) return none;
    t->used = 1;
    return (Tensor){t->data, t->type, (int)n_in, (int)(n_out * n)};
}
static Tensor matrix(Loader *l, const char *name, int layer, int64_t n_in, int64_t n_out) {
    return matrices(l, name, layer, n_in, n_out, 1);
}


static int has_shape(const GgufTensor *t, const int64_t n[2]) { /* dimensions of 1 do not count */
    int at = 0;
    for (int d = 0; d < 4; d++) {
        while (at < 2 && n[at] == 1) at++;
        if (t->ne[d] == 1) continue;
        if (at == 2 || t->ne[d] != (uint64_t)n[at++]) return 0;
    }
    while (at < 2 && n[at] == 1) at++;
    return at == 2;
}

/* n floats: a norm weight, a bias, convolution taps. Used where they lie when they are aligned F32,
 * else converted. */
static const float *vector_or(Loader *l, const char *name, int layer, int64_t n, int required) {
    char full[64];
    GgufTensor *t = l->code ? NULL : tensor_named(l, full, name, layer);
    if (!t) {
        if (required) REFUSE(l, GLA_FORMAT, "the tensor %s is missing", full);
        return NULL;
    }
    uint64_t elements = t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3];
    if (elements != (uint64_t)n)
        REFUSE(l, GLA_FORMAT, "%s has %llu elements, expected %lld; "
               "was it exported for another config?", full, (unsigned long long)elements,
               (long long)n);
    else if (t->type != F32 && t->type != F16 && t->type != BF16)
        refuse_type(l, full, t, "expected F32, F16 or BF16");
    if (l->code) return NULL;
    t->used = 1;
    if (t->type == F32 && (uintptr_t)t->data % sizeof(float) == 0)
        return (const float *)(const void *)t->data;
    float *copy = keep(l, (size_t)n, sizeof(float)); /* few and small: norms, biases, taps */
    if (copy) row_to_float(copy, t->data, t->type, (size_t)n);
    return copy;
}
/* rows times n floats, the n of a row side by side: taps of channels, weights of groups. A tensor
 * of one dimension may hold them, too. */
static const float *rows_or(Loader *l, const char *name, int layer, int64_t n, int64_t rows,
                            int required) {
    char full[64];
    const GgufTensor *t = l->code ? NULL : tensor_named(l, full, name, layer);
    const int64_t shape[3] = {n, rows, 1}, all[2] = {n * rows, 1};
    if (t && !has_shape(t, shape) && !has_shape(t, all)) refuse_shape(l, full, t, shape);
    return vector_or(l, name, layer, n * rows, required);
}
static const float *vector(Loader *l, const char *name, int layer, int64_t n) {
    return vector_or(l, name, layer, n, 1);
}
static const float *vector_if(Loader *l, const char *name, int layer, int64_t n) {
    return vector_or(l, name, layer, n, 0);
}

/* name.weight with its bias, where there is one; or, where the file has low_a.weight, two matrices
 * with a narrow middle. */
static Proj projection(Loader *l, const char *name, const char *low, int layer, int64_t n_in,
                       int64_t n_out) {
    char text[40];
    Proj p = {{NULL, 0, 0, 0}, {NULL, 0, 0, 0}, NULL, ACT_NONE};
    snprintf(text, sizeof text, "%s_a.weight", low ? low : "");
    if (low && has(l, text, layer)) {
        p.w = matrix(l, text, layer, n_in, 0);
        snprintf(text, sizeof text, "%s_b.weight", name = low);
        p.up = matrix(l, text, layer, p.w.n_out, n_out);
        snprintf(text, sizeof text, "%s_b.bias", low);
    } else {
        snprintf(text, sizeof text, "%s.weight", name);
        p.w = matrix(l, text, layer, n_in, n_out);
        snprintf(text, sizeof text, "%s.bias", name);
    }
    p.bias = vector_if(l, text, layer, n_out);
    return p;
}

/* A matrix whose rows are those of several projections, one below the other; so is its bias. */
typedef struct { Tensor w; const float *bias; int64_t at; } Fused;
static Fused fused(Loader *l, const char *name, int layer, int64_t n_in, int64_t n_out) {
    char text[40];
    snprintf(text, sizeof text, "%s.weight", name);
    Fused f = {.w = matrix(l, text, layer, n_in, n_out)};
    snprintf(text, sizeof text, "%s.bias", name);
    f.bias = vector_if(l, text, layer, n_out);
    return f;
}
static Proj next_rows(Fused *f, int64_t n) { /* the next n of them */
    Proj p = {.w = f->w, .bias = f->bias ? f->bias + f->at : NULL, .act = ACT_NONE};
    p.w.n_out = (int)n;
    if (p.w.data) p.w.data += (size_t)f->at * row_bytes(&f->w);
    f->at += n;
    return p;
}

/* -- the walk over rows of what a file holds -- */

static const float *tensor_shaped(Loader *l, const Layer *y, int i, const char *name,
                                  const char *shape) {
    const int required = *name != '?';
    const int64_t n = (int64_t)shape_floats(y, &shape);
    if (!n) return NULL; /* of a row that the file goes without */
    if (!*shape) return vector_or(l, name + !required, i, n, required);
    return rows_or(l, name + !required, i, n, (int64_t)shape_floats(y, &shape), required);
}

static void bind_row(Loader *l, Layer *y, int i, const Bind *b) {
    void *to = (char *)y + b->at;
    const char *shape = b->shape;
    const int now = b->what == INT_KEY || b->what == ACT_KEY ? *(int *)to : 0;
    double absent = b->absent;
    size_t n;
    switch (b->what) {
    case INT_KEY:
        if (shape) absent = (double)shape_floats(y, &shape);
        if (absent == REQUIRED) absent = b->lo - 1;
        if (absent == AS_IS) absent = now;
        *(int *)to = int_key(l, b->name, i, (int64_t)absent, (int64_t)b->lo,
                             (int64_t)b->hi);
        break;
    case FLOAT_KEY:
        if (absent == AS_IS) absent = *(float *)to;
        *(float *)to = (float)float_key(l, b->name, i, absent, b->lo, b->hi);
        break;
    case ACT_KEY: *(int *)to = act_key(l, b->name, now); break;
    case NORM_KEY:
        *(int *)to = word_key(l, b->name, *(int *)to, norm_words, NULL, "a norm");
        break;
    case VECTOR: *(const float **)to = tensor_shaped(l, y, i, b->name, shape); break;
    case MATRIX:
        n = shape_floats(y, &shape);
        *(Tensor *)to = matrix(l, b->name, i, (int64_t)n, (int64_t)shape_floats(y, &shape));
        break;
    case PROJECTION:
        n = shape_floats(y, &shape);
        *(Proj *)to = projection(l, b->name, NULL, i, (int64_t)n, (int64_t)shape_floats(y, &shape));
        break;
    case END: break;
    }
}
static void bind(Loader *l, Layer *y, int i, const Bind *rows) {
    for (; rows->what != END && !l->code; rows++) bind_row(l, y, i, rows);
}

/* What a file says about the turning of a layer's keys and queries. */
typedef struct {
    double base, factor;            /* channel pair j turns by base^(-2j/n) / factor per position */
    const float *factors;           /* (n / 2) further divisors, or NULL */
    /* YaRN: pairs that turn often within the `context` of training keep their speed.
     *                                                               (arXiv 2309.00071)
     * More turns than `fast`: not divided; fewer than `slow`: divided; between them a
     * mix. */
    int yarn;
    double context, fast, slow;
    double scale;                   /* of cos and sin */
} Turning;

/* The angles per position of y's rotated channels, shared with an earlier layer that turns the same
 * way. */
static void set_rope(Loader *l, Layer *y, const Turning *r) {
    int n = y->rope.dims;
    double f[MAX_ROPE / 2];
    double low = 0, high = 0; /* pairs below low keep their speed, pairs above high do not */
    if (l->code) return;
    if (r->yarn) { /* pair j turns `fast` times when base^(2j/n) = context / (2 pi fast) */
        double per_log = n / (2 * log(r->base)), two_pi = 6.283185307179586;
        low = fmax(0, floor(per_log * log(r->context / (two_pi * r->fast))));
        high = fmin(n - 1, ceil(per_log * log(r->context / (two_pi * r->slow))));
    }
    for (int j = 0; j < n / 2; j++) {
        double turn = pow(r->base, -2.0 * j / n), share = 0; /* of the undivided speed */
        if (r->yarn) share = 1 - fmin(1, fmax(0, (j - low) / fmax(0.001, high - low)));
        f[j] = (turn / r->factor * (1 - share) + turn * share) / (r->factors ? r->factors[j] : 1.0);
    }
    y->rope.scale = (float)r->scale;
    size_t n_bytes = (size_t)(n / 2) * sizeof *f;
    for (Layer *x = l->m->layers; x < y; x++)
        if (x->rope.freq && x->rope.dims == n && x->rope.scale == y->rope.scale
            && !memcmp(x->rope.freq, f, n_bytes)) {
            y->rope.freq = x->rope.freq, y->rope.at = x->rope.at;
            return;
        }
    double *own = keep(l, (size_t)n / 2 + 1, sizeof *own);
    if (!own) return;
    y->rope.freq = memcpy(own, f, n_bytes);
    y->rope.at = l->m->turn_floats;
    l->m->turn_floats += (size_t)n;
}

/* The scaling of positions beyond the context of training. A factor without a type is linear, as in
 * llama.cpp. */
static void rope_scaling(Loader *l, Turning *r, int i) {
    char key[96], text[64];
    Str type = {"linear", 6};
    str_key(l, "rope.scaling.type", key, &type);
    if (str_is(type, "none")) return;
    r->yarn = str_is(type, "yarn");
    if (!r->yarn && !str_is(type, "linear"))
        REFUSE(l, GLA_UNSUPPORTED, "%s is \"%s\", which is not implemented; linear and yarn are",
               key, printable(text, type));
    r->factor = float_key(l, "rope.scale_linear", i, 1.0, 0, 1e6); /* the older name */
    r->factor = float_key(l, "rope.scaling.factor", i, r->factor, 0, 1e6);
    if (r->factor == 0) r->factor = 1;
    if (r->factor < 1e-3)
        REFUSE(l, GLA_FORMAT, "%s.rope.scaling.factor is %g, expected 0.001 or more", l->arch,
               r->factor);
    if (!r->yarn) return;
    int trained = l->m->config.seq_len;
    r->context = int_key(l, "rope.scaling.original_context_length", i, trained, 1, INT32_MAX);
    r->fast = float_key(l, "rope.scaling.yarn_beta_fast", i, 32, 1e-3, 1e6);
    r->slow = float_key(l, "rope.scaling.yarn_beta_slow", i, 1, 1e-3, 1e6);
    r->scale = float_key(l, "rope.scaling.attn_factor", i, 1, 1e-3, 1e3);
    if (r->factor > 1) r->scale *= 1 + 0.1 * log(r->factor);
}

/* The rotary positions of a softmax layer with heads of head_dim channels; its window is known. */
static void bind_rope(Loader *l, Layer *y, int i, int head_dim) {
    int most = head_dim < MAX_ROPE ? head_dim : MAX_ROPE;
    Turning r = {.factor = 1, .scale = 1};
    y->rope.dims = int_key(l, "rope.dimension_count", i, most, 0, most);
    if (y->rope.dims % 2) REFUSE(l, GLA_FORMAT, "%s.rope.dimension_count is odd", l->arch);
    if (y->own.softmax.window && l->a->window_base) {
        r.base = float_key(l, "rope.freq_base_swa", i, l->a->window_base, 1.0, 1e15);
    } else {
        r.base = float_key(l, "rope.freq_base", i, 10000.0, 1.0, 1e15);
        rope_scaling(l, &r, i);
        r.factors = vector_if(l, "rope_freqs.weight", -1, y->rope.dims / 2);
    }
    set_rope(l, y, &r);
}

/* The positions that layer i sees, 0 = all of them. A pattern that is a list says which layers have
 * the window, a number n that every n-th has none. */
static int window_key(Loader *l, int i) {
    char key[96];
    int window = int_key(l, "attention.sliding_window", i, 0, 0, INT32_MAX);
    int64_t at = gguf_key_index(l->g, arch_key(key, l, "attention.sliding_window_pattern"));
    if (at >= 0 && l->g->keys[at].type == GGUF_ARR)
        return int_key(l, "attention.sliding_window_pattern", i, 0, 0, 1) ? window : 0;
    int period = int_key(l, "attention.sliding_window_pattern", i, l->a->period, 0, INT32_MAX);
    return period && (i + 1) % period == 0 ? 0 : window;
}

/* Of the layers of the family that turn q and k. */
static void bind_turn(Loader *l, Layer *y, int i) {
    const int most = !(y->mixer->takes & TURN) ? 0 : y->dk < MAX_ROPE ? y->dk : MAX_ROPE;
    Turning r = {.factor = 1, .scale = 1};
    y->rope.dims = int_key(l, "mixer.rope_dimension_count", i, 0, 0, most) / 2 * 2;
    r.base = float_key(l, "mixer.rope_freq_base", i, 10000.0, 1.0, 1e15);
    if (y->rope.dims) set_rope(l, y, &r);
}

/* -- the mixers of softmax attention -- */

static const Bind softmax_sizes[] = {
    {INT_KEY, "attention.head_count", AT(n_heads), NULL, REQUIRED, 1, 65536},
    {INT_KEY, "attention.head_count_kv", AT(n_k_heads), "H", 0, 1, 65536},
    {INT_KEY, "attention.key_length", AT(dk), NULL, AS_IS, 1, 65536},
    {INT_KEY, "attention.value_length", AT(dv), "k", 0, 1, 65536},
    LAST_ROW,
};
/* Grouped-query softmax attention and its relatives; the projections are q (with gate when gated),
 * k, v, f where there are forget gates, w of PaTH and wall attention, z where there is an output
 * gate. A fused attn_qkv holds the rows of q, k, v in this order. */
static void bind_softmax_rows(Loader *l, Layer *y, int i) {
    const int64_t dim = y->dim, rows = (int64_t)y->n_heads * y->dk;
    const int64_t q_rows = rows * (y->own.softmax.gated ? 2 : 1);
    const int64_t kv_rows = (int64_t)y->n_k_heads * y->dk;
    if (has(l, "attn_qkv.weight", i)) {
        Fused w = fused(l, "attn_qkv", i, dim, q_rows + 2 * kv_rows);
        if (l->code) return;
        y->in[IN_Q] = next_rows(&w, q_rows);
        y->in[IN_K] = next_rows(&w, kv_rows), y->in[IN_V] = next_rows(&w, kv_rows);
    } else {
        y->in[IN_Q] = projection(l, "attn_q", NULL, i, dim, q_rows);
        y->in[IN_K] = projection(l, "attn_k", NULL, i, dim, kv_rows);
        y->in[IN_V] = projection(l, "attn_v", NULL, i, dim, kv_rows);
    }
    const int biased = l->a->biased;
    int found = !!y->in[IN_Q].bias + !!y->in[IN_K].bias + !!y->in[IN_V].bias;
    if (found % 3 || (!found && biased))
        REFUSE(l, GLA_FORMAT, "blk.%d: %d of attn_q, attn_k and attn_v have a bias, expected %s", i,
               found, biased ? "all three" : "all or none");
    y->out = projection(l, "attn_output", NULL, i, rows, dim);
    if (has(l, "attn_forget.weight", i))
        y->in[IN_F] = projection(l, "attn_forget", NULL, i, dim, y->n_heads);
    if (y->mixer->law == law_wall) y->in[IN_W] = projection(l, "attn_fade", NULL, i, dim, rows);
    if (y->mixer->law == law_path) {
        y->in[IN_W] = projection(l, "ssm_w", "ssm_w", i, dim, kv_rows);
        bind(l, y, i, y->mixer->binds);
        if (y->conv.taps)
            y->conv.w[IN_W] = rows_or(l, "ssm_conv1d_w.weight", i, y->conv.taps, kv_rows, 1);
    } else if ((y->in[IN_F].w.data || y->mixer->law == law_wall) && has(l, "attn_gate.weight", i))
        y->in[IN_Z] = projection(l, "attn_gate", NULL, i, dim, rows);
}

static void bind_softmax(Loader *l, Layer *y, int i) {
    const Architecture *a = l->a;
    y->mixer = mixer_row(a->softmax);
    y->own.softmax.gated = a->gated;
    y->rope.adjacent = a->adjacent;
    y->dk = y->dim / int_key(l, "attention.head_count", i, 0, 1, 65536);
    bind(l, y, i, softmax_sizes);
    if (l->code) return;
    if (y->n_heads % y->n_k_heads)
        REFUSE(l, GLA_FORMAT, "%d query heads cannot share %d key heads", y->n_heads, y->n_k_heads);
    if (y->dv != y->dk)
        REFUSE(l, GLA_UNSUPPORTED,
               "%s.attention.value_length differs from key_length, which is not implemented",
               l->arch);
    y->own.softmax.window = window_key(l, i);
    bind_rope(l, y, i, y->dk);
    if (y->rope.dims && y->mixer->law)
        REFUSE(l, GLA_UNSUPPORTED, "%s with rotary positions is not implemented", l->arch);
    int wide = a->wide && a->wide == l->m->config.n_layers;
    double scale = float_key(l, "attention.scale", i, 0.0, 0.0, 1e6);
    float width = (float)(wide ? y->dim / y->n_heads : y->dk);
    y->scale = scale != 0 ? (float)scale : 1.0f / sqrtf(width);
    if (l->code) return;
    shape_rows(y, y->mixer->in);
    bind_softmax_rows(l, y, i);

    /* a norm weight per channel of all heads, or one for all heads */
    int each = y->in[IN_F].w.data || y->mixer->law == law_wall;
    int gated = y->own.softmax.gated ? 2 : 1;
    y->qk.eps = (float)float_key(l, "attention.qk_norm_epsilon", i, y->eps, 0, 1);
    y->qk.step = each ? y->dk : 0;
    if (a->qk_norm == NO || (a->qk_norm == IF_THERE && !has(l, "attn_q_norm.weight", i))) return;
    y->qk.q = vector(l, "attn_q_norm.weight", i, (int64_t)(each ? y->n_heads * gated : 1) * y->dk);
    y->qk.k = vector(l, "attn_k_norm.weight", i, (int64_t)(each ? y->n_k_heads : 1) * y->dk);
}

/* -- the mixers with a memory -- */

static int map_width(int map, int n) {
    return map == MAP_HEDGEHOG ? 2 * n : map == MAP_DPFP ? 8 * n : n;
}

/* What a layer is before its file has a say: the shapes of its projections and the defaults of its
 * row of the table. The key width of the memory is y->dk now and, with a feature map that widens,
 * map_width of that at the end of binding. */
static void mixer_defaults(Layer *y, const char *name) {
    const Mixer *m = y->mixer = mixer_row(name);
    if (!y->own.writes) y->own.writes = 1;
    shape_rows(y, m->in);
    shape_rows(y, m->makes);
    y->front.map = m->front.map;
    y->front.norms[0] = y->front.norms[1] = m->front.norm;
    y->back.norm_shared = m->back.out == OUT_HEAD;
    y->back.norm_width = y->back.norm_shared ? y->dv : y->n_heads * y->dv;
    y->back.act = m->back.out == OUT_SILU_ALL ? ACT_SILU : ACT_NONE;
    y->back.gate = m->back.gate;
    y->back.gate_first = m->back.out == OUT_GATED;
    y->decay.divisor = 1, y->decay.min = -INFINITY, y->decay.step_max = INFINITY;
    y->write.beta_scale = 1;
    y->back.eps = y->eps;
    y->scale = 1.0f / sqrtf((float)y->dk);
}

/* mixer.*: the widths of a layer of the family, and what a file may choose within its row. */
static const Bind family_sizes[] = {
    {INT_KEY, "mixer.head_count", AT(n_heads), NULL, REQUIRED, 1, 65536},
    {INT_KEY, "mixer.head_count_kv", AT(n_k_heads), "H", 0, 1, 65536},
    {INT_KEY, "mixer.key_length", AT(dk), NULL, REQUIRED, 1, 4096},
    {INT_KEY, "mixer.value_length", AT(dv), NULL, REQUIRED, 1, 4096},
    {INT_KEY, "mixer.conv_kernel", AT(conv.taps), NULL, 0, 0, 64},
    LAST_ROW,
};
static const Bind family_choices[] = {
    {NORM_KEY, "mixer.q_norm", AT(front.norms[0]), NULL, AS_IS, 0, 0},
    {NORM_KEY, "mixer.k_norm", AT(front.norms[1]), NULL, AS_IS, 0, 0},
    {FLOAT_KEY, "mixer.sum_epsilon", AT(front.sum_eps), NULL, 0, 0, 1},
    {FLOAT_KEY, "mixer.layer_norm_rms_epsilon", AT(back.eps), NULL, AS_IS, 0, 1},
    LAST_ROW,
};

/* The projections of its row, with their convolutions. */
static void bind_projections(Loader *l, Layer *y, int i) {
    static const char *const names[MAX_IN] = {"attn_q", "attn_k", "attn_v", "ssm_alpha", "ssm_beta",
                                              "attn_gate", "ssm_w", "ssm_m_alpha", "ssm_m_beta"};
    static const char *const narrow_names[MAX_IN] = {[IN_F] = "ssm_f", [IN_Z] = "ssm_g"};
    const int with_v = y->mixer->law != law_mesa; /* MesaNet's v may go without a convolution */
    for (int j = 0; j <= IN_S; j++) {
        const char letter[3] = {IN_LETTERS[j], ':', 0};
        const int64_t rows = row_floats(y, j);
        char name[32];
        if (!strstr(y->mixer->in, letter) || (j == IN_Z && y->back.gate == ACT_NONE)) continue;
        snprintf(name, sizeof name, "%s.weight", names[j]);
        if (j != IN_Z && strchr(y->mixer->may, *letter) && !has(l, name, i)) {
            if (j == IN_F) y->rows.heads[j] = 0; /* nothing fades; without b it is beta_scale */
            continue;
        }
        y->in[j] = projection(l, names[j], narrow_names[j], i, y->dim, rows);
        snprintf(name, sizeof name, "ssm_conv1d_%c.weight", *letter);
        if (y->conv.taps && j <= IN_F)
            y->conv.w[j] = rows_or(l, name, i, y->conv.taps, rows, j < IN_V
                                   || (j == IN_V && with_v));
    }
}

/* Learned feature maps; q may use k's, or k q's. */
static void bind_maps(Loader *l, Layer *y, int i) {
    static const char *const maps[2][2] = {{"ssm_map_q", "ssm_map_q2"},
                                           {"ssm_map_k", "ssm_map_k2"}};
    const int map = y->front.map;
    for (int which = 0; which < 2 && map > ACT_NONE && map != MAP_DPFP; which++) {
        char first[32];
        snprintf(first, sizeof first, "%s.weight", maps[which][0]);
        int from = has(l, first, i) ? which : !which;
        for (int n = 0; n < (map == MAP_HADAMARD ? 2 : 1); n++)
            y->front.map_in[which][n] = projection(l, maps[from][n], NULL, i, y->dk, y->dk);
    }
}

/* A layer of the family in the layout of doc/format.md: mixer.* keys, one tensor per projection. */
static void bind_family(Loader *l, Layer *y, int i) {
    const Mixer *m = y->mixer;
    const int64_t most = 1 << 28;
    bind(l, y, i, family_sizes);
    y->own.slots = int_key(l, "mixer.slot_count", i, strchr(m->in, 'm') ? 0 : 1, 1, 4096);
    y->own.writes = int_key(l, "mixer.writes_per_token", i, 1, 1, m->takes & WRITES ? 64 : 1);
    if (l->code) return;
    if (m->takes & SINGLE && (y->dk > 1 || y->dv > 1))
        REFUSE(l, GLA_FORMAT, "%s: heads of %d x %d, expected 1 x 1", l->arch, y->dk, y->dv);
    if (y->n_heads % y->n_k_heads)
        REFUSE(l, GLA_FORMAT, "%s: %d heads cannot share %d key heads", l->arch, y->n_heads,
               y->n_k_heads);
    if ((int64_t)y->n_heads * y->own.writes * (y->dk > y->dv ? y->dk : y->dv) > most)
        REFUSE(l, GLA_UNSUPPORTED, "%s: %d heads of %d x %d are too many", l->arch, y->n_heads,
               y->dk, y->dv);
    mixer_defaults(y, m->name);

    const int gated = !strchr(m->may, 'z') || has(l, "attn_gate.weight", i)
        || has(l, "ssm_g_a.weight", i);
    y->front.map = word_key(l, "mixer.feature_map", m->front.map, act_words, map_words,
                            "an activation");
    bind(l, y, i, family_choices);
    bind_turn(l, y, i);
    const double most_eps = m->takes & SUM ? 1 : 0;
    y->back.normalizer = (float)float_key(l, "mixer.normalizer_epsilon", i, 0, 0, most_eps);
    y->back.gate = act_key(l, "mixer.output_gate", gated ? m->back.gate : ACT_NONE);
    if (y->front.map > ACT_NONE && !(m->takes & WIDE)
        && (map_width(y->front.map, 1) > 1 || !strstr(m->in, "k:"))) /* what fits keys would not */
        REFUSE(l, GLA_UNSUPPORTED, "%s.mixer.feature_map: %s has no arithmetic for this map",
               l->arch, l->arch);
    bind_projections(l, y, i);
    if (m->binds) bind(l, y, i, m->binds);
    bind_maps(l, y, i);

    y->dk = map_width(y->front.map, y->dk);
    y->scale = (float)float_key(l, "mixer.scale", i, 1.0 / sqrt(y->dk), 0, 1e6);
    const int64_t o_rows = (int64_t)y->n_heads * y->dv;
    const int64_t weights = y->back.norm_shared ? y->back.norm_width : o_rows;
    y->back.norm = vector_or(l, "ssm_norm.weight", i, weights, !strchr(m->may, 'o'));
    y->out = projection(l, "attn_output", NULL, i, o_rows, y->dim);
}

/* -- Mamba and its relatives, in the layout of llama.cpp. Keys under mixer.* and biases beyond
 *    llama.cpp's are ours. -- */

static const Bind ssm_sizes[] = {
    {INT_KEY, "ssm.time_step_rank", AT(n_heads), NULL, REQUIRED, 1, 65536},
    {INT_KEY, "ssm.group_count", AT(n_k_heads), NULL, 1, 1, 65536},
    {INT_KEY, "ssm.state_size", AT(dk), NULL, REQUIRED, 1, 4096},
    {INT_KEY, "ssm.conv_kernel", AT(conv.taps), NULL, 4, 1, 64},
    LAST_ROW,
};
static int ssm_inner(Loader *l, Layer *y, int i) { /* 0: refused */
    int inner = int_key(l, "ssm.inner_size", i, 0, 1, 1 << 26);
    bind(l, y, i, ssm_sizes);
    if (l->code) return 0;
    if (y->n_heads % y->n_k_heads || inner % y->n_heads || inner / y->n_heads > 4096
        || (int64_t)y->n_heads * y->dk > 1 << 26)
        REFUSE(l, GLA_FORMAT, "%s.ssm.*: %d groups, %d heads and an inner size of %d "
               "do not fit together", l->arch, y->n_k_heads, y->n_heads, inner);
    y->dv = inner / y->n_heads;
    return l->code ? 0 : inner;
}

/* mamba2: one matrix for z, v, k, q and the time step, one convolution.      (arXiv 2405.21060)
 * log_linear_mamba2 adds the weights of its levels. */
static const Bind mamba2_rows[] = {
    {VECTOR, "ssm_a", AT(decay.a), "H", 0, 0, 0},
    {VECTOR, "ssm_dt.bias", AT(decay.dt_bias), "H", 0, 0, 0},
    {INT_KEY, "mixer.skip_per_channel", AT(back.skip_each), NULL, 0, 0, 1},
    {FLOAT_KEY, "mixer.step_min", AT(decay.step_min), NULL, 0, 0, INFINITY},
    {FLOAT_KEY, "mixer.step_max", AT(decay.step_max), NULL, INFINITY, 0, INFINITY},
    {PROJECTION, "ssm_out", AT(out), "Hv d", 0, 0, 0},
    LAST_ROW,
};
static void bind_mamba2(Loader *l, Layer *y, int i) {
    const int inner = ssm_inner(l, y, i);
    if (!inner) return;
    y->rows.fused = 1;
    mixer_defaults(y, y->mixer->name);
    const int group = y->n_k_heads * y->dk, channels = inner + 2 * group;
    const int levels = row_floats(y, IN_W);
    y->rows.at[IN_V] = 0, y->rows.at[IN_K] = inner, y->rows.at[IN_Q] = inner + group;
    y->scale = 1;
    Fused w = fused(l, "ssm_in", i, y->dim, (int64_t)inner + channels + y->n_heads + levels);
    if (l->code) return;
    y->in[IN_Z] = next_rows(&w, inner);
    y->in[IN_Q] = next_rows(&w, channels); /* v, k, q in one matrix and one convolution */
    y->in[IN_F] = next_rows(&w, y->n_heads);
    if (levels) {
        y->in[IN_W] = next_rows(&w, levels);
        y->own.levels = rows_or(l, "ssm_levels", i, MAX_LEVELS, y->n_heads, 1);
        l->m->config.limit = 1 << (MAX_LEVELS - 1);
    }
    y->conv.w[IN_Q] = rows_or(l, "ssm_conv1d.weight", i, y->conv.taps, channels, 1);
    y->conv.bias = vector_if(l, "ssm_conv1d.bias", i, channels);
    bind(l, y, i, mamba2_rows);
    y->back.skip = vector(l, "ssm_d", i, y->back.skip_each ? inner : y->n_heads);
    const int each = inner / y->n_k_heads; /* a norm for each group of heads */
    y->back.norm = rows_or(l, "ssm_norm.weight", i, each, y->n_k_heads, 0);
    y->back.norm_width = y->back.norm ? each : 0;
    y->back.gate_first = !int_key(l, "mixer.norm_before_gate", i, 0, 0, 1);
}

/* mamba3: one matrix for z, v, k, q, the time step, the rate of decay, the share of the step that
 * is this token's, and angles.                                      (arXiv 2603.15569) */
static const Bind mamba3_rows[] = {
    {VECTOR, "ssm_b_norm.weight", AT(qk.k), "k", 0, 0, 0}, /* Mamba calls k B and q C */
    {VECTOR, "ssm_c_norm.weight", AT(qk.q), "k", 0, 0, 0},
    {VECTOR, "ssm_b.bias", AT(qk.k_bias), "Hk", 0, 0, 0},
    {VECTOR, "ssm_c.bias", AT(qk.q_bias), "Hk", 0, 0, 0},
    {VECTOR, "ssm_dt.bias", AT(decay.dt_bias), "H", 0, 0, 0},
    {VECTOR, "ssm_d", AT(back.skip), "H", 0, 0, 0},
    {FLOAT_KEY, "mixer.rate_min", AT(own.rate_min), NULL, 0, 0, 1e6},
    {VECTOR, "?ssm_norm.weight", AT(back.norm), "Hv", 0, 0, 0},
    {PROJECTION, "ssm_out", AT(out), "Hv d", 0, 0, 0},
    LAST_ROW,
};
static void bind_mamba3(Loader *l, Layer *y, int i) {
    static const int order[] = {IN_Z, IN_V, IN_K, IN_Q, IN_F, IN_W, IN_B, IN_G};
    if (!ssm_inner(l, y, i)) return;
    const int most = y->dk < MAX_ROPE ? y->dk : MAX_ROPE;
    y->rope.dims = int_key(l, "mixer.rope_dimension_count", i, 0, 2, most) / 2 * 2;
    y->conv.taps = 0;
    mixer_defaults(y, y->mixer->name);
    int64_t all = 0;
    for (int j = 0; j < 8; j++) all += row_floats(y, order[j]);
    Fused w = fused(l, "ssm_in", i, y->dim, all);
    for (int j = 0; j < 8 && !l->code; j++)
        y->in[order[j]] = next_rows(&w, row_floats(y, order[j]));
    bind(l, y, i, mamba3_rows);
    y->back.norm_width = y->back.norm ? y->dv : 0, y->back.norm_shared = 0;
    y->back.gate_first = 0;
}

/* mamba; samba is the same with a feed-forward and with softmax layers.
 *                                                                   (arXiv 2312.00752, 2406.07522)
 * Beyond llama.cpp's keys there is mixer.dt_b_c_rms_epsilon, of the norms that ssm.dt_b_c_rms asks
 * for. */
static const Bind mamba_sizes[] = {
    {INT_KEY, "ssm.inner_size", AT(n_heads), NULL, REQUIRED, 1, 1 << 24},
    {INT_KEY, "ssm.state_size", AT(dk), NULL, REQUIRED, 1, 4096},
    {INT_KEY, "ssm.conv_kernel", AT(conv.taps), NULL, 4, 1, 64},
    {INT_KEY, "ssm.dt_b_c_rms", AT(own.mamba.norm), NULL, 0, 0, 1},
    {FLOAT_KEY, "mixer.dt_b_c_rms_epsilon", AT(own.mamba.eps), NULL, 1e-6, 0, 1},
    LAST_ROW,
};
static const Bind mamba_rows[] = {
    {VECTOR, "ssm_a", AT(decay.a), "k H", 0, 0, 0},
    {VECTOR, "ssm_d", AT(back.skip), "H", 0, 0, 0},
    {VECTOR, "?ssm_conv1d.bias", AT(conv.bias), "H", 0, 0, 0},
    {VECTOR, "ssm_dt.bias", AT(own.mamba.step_up.bias), "H", 0, 0, 0},
    {PROJECTION, "ssm_out", AT(out), "H d", 0, 0, 0},
    LAST_ROW,
};
static void bind_mamba(Loader *l, Layer *y, int i) {
    const int rank = int_key(l, "ssm.time_step_rank", i, 0, 1, 1 << 20);
    MambaParts *p = &y->own.mamba;
    bind(l, y, i, mamba_sizes);
    if (l->code) return;
    const int inner = y->n_k_heads = y->n_heads, states = y->dk;
    y->dv = 1;
    mixer_defaults(y, y->mixer->name);
    Fused w = fused(l, "ssm_in", i, y->dim, 2 * (int64_t)inner);
    Fused x = {.w = matrix(l, "ssm_x.weight", i, inner, rank + 2 * (int64_t)states)};
    if (l->code) return;
    y->in[IN_V] = next_rows(&w, inner), y->in[IN_Z] = next_rows(&w, inner);
    p->step_in = next_rows(&x, rank), p->bc_in = next_rows(&x, 2 * states);
    p->step_up.w = matrix(l, "ssm_dt.weight", i, rank, inner);
    y->conv.w[IN_V] = rows_or(l, "ssm_conv1d.weight", i, y->conv.taps, inner, 1);
    bind(l, y, i, mamba_rows);
    y->back.skip_each = 1, y->back.norm_width = 0;
}

/* qwen35: value heads are stored tiled: head h reads key head h % n_k_heads.
 *                                                              (transformers models/qwen3_5) */
static const Bind qwen35_rows[] = {
    {MATRIX, "attn_gate.weight", AT(in[IN_Z].w), "d Hv", 0, 0, 0},
    {MATRIX, "ssm_alpha.weight", AT(in[IN_F].w), "d H", 0, 0, 0},
    {MATRIX, "ssm_beta.weight", AT(in[IN_B].w), "d H", 0, 0, 0},
    {VECTOR, "ssm_a", AT(decay.a), "H", 0, 0, 0},
    {VECTOR, "ssm_norm.weight", AT(back.norm), "v", 0, 0, 0},
    {PROJECTION, "ssm_out", AT(out), "Hv d", 0, 0, 0},
    LAST_ROW,
};
static void bind_qwen35(Loader *l, Layer *y, int i) {
    const int inner = ssm_inner(l, y, i);
    if (!inner) return;
    y->rows.tiled = y->rows.fused = 1;
    mixer_defaults(y, y->mixer->name);
    const int keys = y->n_k_heads * y->dk;
    const int64_t channels = 2 * (int64_t)keys + inner;
    y->rows.at[IN_K] = keys, y->rows.at[IN_V] = 2 * keys;
    y->in[IN_Q].w = matrix(l, "attn_qkv.weight", i, y->dim, channels);
    y->conv.w[IN_Q] = rows_or(l, "ssm_conv1d.weight", i, y->conv.taps, channels, 1);
    const char *dt = has(l, "ssm_dt.bias", i) ? "ssm_dt.bias" : "ssm_dt";
    y->decay.dt_bias = vector(l, dt, i, y->n_heads);
    bind(l, y, i, qwen35_rows);
}

/* -- RWKV, in llama.cpp's layout; mixer.* keys are ours, for other widths and epsilons -- */

/* y = up act(down x) + bias in RWKV's names: time_mix_<x>1, _<x>2, and _<x>0 for the bias. */
static Proj narrow(Loader *l, char x, int i, int act, int64_t n_out) {
    char name[32];
    Proj p = {.act = act};
    snprintf(name, sizeof name, "time_mix_%c1.weight", x);
    p.w = matrix(l, name, i, l->m->config.dim, 0);
    snprintf(name, sizeof name, "time_mix_%c2.weight", x);
    p.up = matrix(l, name, i, p.w.n_out, n_out);
    snprintf(name, sizeof name, "time_mix_%c0.weight", x);
    if (x != 'g') p.bias = vector(l, name, i, n_out);
    return p;
}

/* What RWKV-7 alone has: the narrow projections of w, a, g and v, and the constants of k. */
static const Bind rwkv7_rows[] = {
    {VECTOR, "time_mix_k_k.weight", AT(own.rwkv.k_k), "Hk", 0, 0, 0},
    {VECTOR, "time_mix_k_a.weight", AT(own.rwkv.k_a), "Hk", 0, 0, 0},
    {VECTOR, "time_mix_r_k.weight", AT(own.rwkv.bonus), "k H", 0, 0, 0},
    {FLOAT_KEY, "mixer.l2_norm_epsilon", AT(own.rwkv.k_eps), NULL, 0, 0, 1},
    LAST_ROW,
};
static void bind_rwkv7(Loader *l, Layer *y, int i) {
    static const int order[] = {IN_Q, IN_F, IN_K, IN_V, IN_B, IN_Z}; /* r, w, k, v, a, g */
    const int64_t keys = (int64_t)y->n_heads * y->dk, values = (int64_t)y->n_heads * y->dv;
    const float *lerp = rows_or(l, "time_mix_lerp_fused.weight", i, y->dim, 6, 1);
    y->in[IN_F] = narrow(l, 'w', i, ACT_TANH, keys);
    y->in[IN_B] = narrow(l, 'a', i, ACT_NONE, keys);
    y->in[IN_Z] = narrow(l, 'g', i, ACT_SIGMOID, values);
    /* in llama.cpp's files the first layer has it, too, and nobody uses it */
    const int mixed = i || has(l, "time_mix_v0.weight", i);
    const Proj v = mixed ? narrow(l, 'v', i, ACT_NONE, values) : (Proj){.act = ACT_NONE};
    if (i) y->in[IN_W] = v;
    Proj *to = y->own.rwkv.lerp;
    for (int j = 0; lerp && j < 6; j++) to[order[j]].bias = lerp + (size_t)j * (size_t)y->dim;
    to[IN_W] = to[IN_V];
    bind(l, y, i, rwkv7_rows);
    if (!l->code) l->m->v_first_floats = (size_t)values;
    if (y->in[IN_V].w.n_out != l->m->layers[0].in[IN_V].w.n_out)
        REFUSE(l, GLA_FORMAT, "%s: the values of all layers must have the width of the first",
               l->arch);
}

/* What RWKV-6 alone has: a mix of x and the x before that depends on both, the narrow projection of
 * w, and the bonus u. */
static const Bind rwkv6_rows[] = {
    {VECTOR, "time_mix_lerp_x.weight", AT(own.rwkv.lerp_x), "d", 0, 0, 0},
    {VECTOR, "time_mix_decay.weight", AT(in[IN_F].bias), "Hk", 0, 0, 0},
    {MATRIX, "time_mix_gate.weight", AT(in[IN_Z].w), "d Hv", 0, 0, 0},
    {VECTOR, "time_mix_first.weight", AT(own.rwkv.bonus), "k H", 0, 0, 0},
    LAST_ROW,
};
static void bind_rwkv6(Loader *l, Layer *y, int i) {
    static const int order[] = {IN_F, IN_K, IN_V, IN_Q, IN_Z}; /* w, k, v, r, g */
    const int dim = y->dim;
    const float *lerp = rows_or(l, "time_mix_lerp_fused.weight", i, dim, 5, 0);
    Fused w1 = {.w = matrix(l, "time_mix_w1.weight", i, dim, 0)};
    const int narrow = w1.w.n_out / 5;
    Fused w2 = {.w = matrices(l, "time_mix_w2.weight", i, narrow, dim, 5)};
    if (w1.w.n_out % 5)
        REFUSE(l, GLA_FORMAT, "blk.%d.time_mix_w1.weight has %d rows, expected five equal parts", i,
               w1.w.n_out);
    for (int j = 0; j < 5; j++) {
        char name[32];
        snprintf(name, sizeof name, "time_mix_lerp_%c.weight", "wkvrg"[j]);
        Proj *p = &y->own.rwkv.lerp[order[j]];
        *p = next_rows(&w1, narrow);
        p->up = next_rows(&w2, dim).w;
        p->act = ACT_TANH;
        p->bias = lerp ? lerp + (size_t)j * (size_t)dim : vector(l, name, i, dim);
    }
    Proj *decay = &y->in[IN_F];
    decay->w = matrix(l, "time_mix_decay_w1.weight", i, dim, 0);
    decay->up = matrix(l, "time_mix_decay_w2.weight", i, decay->w.n_out,
                       (int64_t)y->n_heads * y->dk);
    decay->act = ACT_TANH;
    bind(l, y, i, rwkv6_rows);
}

static const Bind rwkv_rows[] = {
    {MATRIX, "time_mix_receptance.weight", AT(in[IN_Q].w), "d Hk", 0, 0, 0},
    {MATRIX, "time_mix_key.weight", AT(in[IN_K].w), "d Hk", 0, 0, 0},
    {MATRIX, "time_mix_value.weight", AT(in[IN_V].w), "d Hv", 0, 0, 0},
    {MATRIX, "time_mix_output.weight", AT(out.w), "Hv d", 0, 0, 0},
    {VECTOR, "time_mix_ln.weight", AT(back.norm), "Hv", 0, 0, 0},
    {VECTOR, "time_mix_ln.bias", AT(back.norm_bias), "Hv", 0, 0, 0},
    {FLOAT_KEY, "mixer.layer_norm_epsilon", AT(back.eps), NULL, 64e-5, 0, 1},
    LAST_ROW,
};
static void bind_rwkv(Loader *l, Layer *y, int i) {
    y->dk = int_key(l, "wkv.head_size", i, 0, 1, 4096);
    y->dv = int_key(l, "mixer.value_length", i, y->dk, 1, 4096);
    y->n_heads = int_key(l, "mixer.head_count", i, max64(1, y->dim / y->dk), 1, 65536);
    y->n_k_heads = y->n_heads;
    if (l->code) return;
    mixer_defaults(y, y->mixer->name);
    bind(l, y, i, rwkv_rows);
    if (y->mixer->law == law_rwkv7) bind_rwkv7(l, y, i);
    else bind_rwkv6(l, y, i);
}

/* -- the decoder around the mixers -- */

/* A norm (its name differs) and a gated feed-forward. */
static void bind_feed_forward(Loader *l, Layer *y, int i) {
    static const char *const biases[] = {"ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"};
    const int dim = y->dim, hidden = int_key(l, "feed_forward_length", i, 0, 1, 1 << 28);
    Ffn *f = &y->ffn;
    int found = 0;
    f->norm.w = vector(l, l->a->ffn_norm, i, dim);
    f->gate = matrix(l, "ffn_gate.weight", i, dim, hidden);
    f->up = matrix(l, "ffn_up.weight", i, dim, hidden);
    f->down = matrix(l, "ffn_down.weight", i, hidden, dim);
    for (int j = 0; j < 3; j++) {
        f->bias[j] = vector_if(l, biases[j], i, j < 2 ? hidden : dim);
        found += f->bias[j] != NULL;
    }
    if (found % 3)
        REFUSE(l, GLA_FORMAT, "blk.%d: %d of ffn_gate, ffn_up and ffn_down have a bias, "
               "expected all or none", i, found);
}

/* RWKV's, see channel_mix; its norms are LayerNorms. */
static void bind_channel_mix(Loader *l, Layer *y, int i) {
    const int dim = y->dim, hidden = int_key(l, "feed_forward_length", i, 0, 1, 1 << 28);
    const int six = l->a->rwkv == 6;
    Config *c = &l->m->config;
    Ffn *f = &y->ffn;
    c->layer_norm = 1;
    c->rescale = six ? int_key(l, "rescale_every_n_layers", i, 0, 0, 1 << 20) : 0;
    y->norm.b = vector_if(l, "attn_norm.bias", i, dim);
    f->norm.w = vector(l, l->a->ffn_norm, i, dim);
    f->norm.b = vector_if(l, "attn_norm_2.bias", i, dim);
    f->lerp_k = vector(l, "channel_mix_lerp_k.weight", i, dim);
    f->up = matrix(l, "channel_mix_key.weight", i, dim, hidden);
    f->down = matrix(l, "channel_mix_value.weight", i, hidden, dim);
    if (!six) return;
    f->lerp_r = vector(l, "channel_mix_lerp_r.weight", i, dim);
    f->gate = matrix(l, "channel_mix_receptance.weight", i, dim, dim);
}

/* Residual attention: the scores of the sources, in front of the mixer and of the feed-forward. */
static void bind_sources(Loader *l, Layer *y, int i) {
    const int block = int_key(l, "residual_attention.block_size", i, 0, 0, 1 << 20);
    static const Bind rows[] = {
        {VECTOR, "attn_res_proj.weight", AT(res.proj[0]), "d", 0, 0, 0},
        {VECTOR, "attn_res_norm.weight", AT(res.norm[0]), "d", 0, 0, 0},
        {VECTOR, "ffn_res_proj.weight", AT(res.proj[1]), "d", 0, 0, 0},
        {VECTOR, "ffn_res_norm.weight", AT(res.norm[1]), "d", 0, 0, 0},
        LAST_ROW,
    };
    if (i == 0) l->m->config.res_block = block;
    else if (block != l->m->config.res_block)
        REFUSE(l, GLA_FORMAT, "%s.residual_attention.block_size differs between layers", l->arch);
    if (block && !y->ffn.down.data)
        REFUSE(l, GLA_UNSUPPORTED, "residual attention in layer %d, which has no feed-forward, "
               "is not implemented", i);
    if (block) bind(l, y, i, rows);
}

/* Does layer i have softmax attention? Those behind the main stack always do. */
static int is_softmax(Loader *l, int i) {
    const Architecture *a = l->a;
    char key[96];
    if (!a->linear || i >= l->m->config.n_layers) return 1;
    if (a->every) {
        const int every = int_key(l, "full_attention_interval", i, a->every, 1, 1 << 20);
        if (gguf_key_index(l->g, arch_key(key, l, "attention.recurrent_layers")) < 0)
            return (i + 1) % every == 0;
        return !int_key(l, "attention.recurrent_layers", i, 0, 0, 1);
    }
    /* RWKV-7 needs the values of its first layer */
    const int first = a->rwkv == 7 && !i;
    return int_key(l, "attention.head_count", i, 0, 0, first ? 0 : 65536) > 0;
}

/* Layer i, of any architecture. */
static void read_block(Loader *l, Layer *y, int i) {
    static const struct { void (*mix)(const Run *, const Layer *);
                         void (*bind)(Loader *, Layer *, int); }
        of_mix[] = {{mix_rwkv, bind_rwkv}, {mix_mamba, bind_mamba}, {mix_trapezoid, bind_mamba3}};
    const Architecture *a = l->a;
    Config *c = &l->m->config;
    c->embed_scale = a->scaled ? sqrtf((float)c->dim) : 1;
    c->softcap = (float)float_key(l, "final_logit_softcapping", 0, 0, 0, 1e6);
    if (int_key(l, "expert_count", i, 0, 0, 65536))
        REFUSE(l, GLA_UNSUPPORTED, "%s with experts is not implemented", l->arch);
    y->dim = c->dim, y->eps = c->eps;
    y->norm.w = vector(l, "attn_norm.weight", i, c->dim);
    if (is_softmax(l, i)) bind_softmax(l, y, i);
    else {
        y->mixer = mixer_row(*a->linear ? a->linear : l->arch);
        void (*bind_mixer)(Loader *, Layer *, int) = a->tiled ? bind_qwen35 : NULL;
        for (int n = 0; n < 3; n++)
            if (of_mix[n].mix == y->mixer->mix) bind_mixer = of_mix[n].bind;
        if (!bind_mixer) bind_mixer = y->mixer->back.out == OUT_GATED ? bind_mamba2 : bind_family;
        bind_mixer(l, y, i);
    }
    if (l->code) return;
    y->ffn.act = act_key(l, "feed_forward_activation", a->act);
    const int alone = y->mixer->back.out == OUT_GATED && !has(l, "ffn_norm.weight", i); /* mamba */
    if (a->rwkv) bind_channel_mix(l, y, i);
    else if (!alone) bind_feed_forward(l, y, i);
    if (!a->rwkv) bind_sources(l, y, i);
    if (!a->sandwich) return;
    y->post_norm.w = vector(l, "post_attention_norm.weight", i, c->dim);
    y->ffn.post_norm.w = vector(l, "post_ffw_norm.weight", i, c->dim);
}

/* Files that are GGUF and yet no text model. */
static int refuse_other_kinds(const Gguf *g, char *err) {
    Str type;
    char text[64];
    if (gguf_str(g, "general.type", &type) && str_is(type, "vocab"))
        return fail(err, GLA_UNSUPPORTED,
                    "this file holds a vocabulary, not a model; it goes with -z");
    if (gguf_str(g, "general.type", &type) && !str_is(type, "model"))
        return fail(err, GLA_UNSUPPORTED, "this file holds a %s (general.type), not a text model",
                    printable(text, type));
    if (gguf_str(g, "general.architecture", &type) && str_is(type, "clip"))
        return fail(err, GLA_UNSUPPORTED, "this file holds a vision projector, not a text model");
    if (!g->n_tensors) return fail(err, GLA_UNSUPPORTED,
                                   "this file holds no weights; as a vocabulary it goes with -z");
    return GLA_OK;
}

/* A tensor of the main blocks that nobody asked for would be arithmetic left out: better no answer
 * than a wrong one. */
static int refuse_unused(const Gguf *g, int n_layers, const char *arch, char *err) {
    char text[64];
    for (uint64_t i = 0; i < g->n_tensors; i++) {
        const GgufTensor *t = &g->tensors[i];
        int block = -1;
        char name[64];
        if (t->used || t->name.n > 63) continue;
        memcpy(name, t->name.s, t->name.n), name[t->name.n] = 0;
        int ignored = sscanf(name, "blk.%d.", &block) == 1 ? block >= n_layers /* multi-token
                                                                                  prediction */
                    : !strncmp(name, "mtp.", 4) || !strncmp(name, "v.", 2)
                        || !strncmp(name, "mm.", 3);
        const char *end = strrchr(name, '.');
        if (end && (!strcmp(end, ".input_scale") || !strcmp(end, ".inv_freq"))) ignored = 1;
        if (!ignored)
            return fail(err, GLA_UNSUPPORTED,
                        "the tensor %s has no place in %s as implemented here",
                            printable(text, t->name), arch);
    }
    return GLA_OK;
}

/* Scratch, per token, of a layer's projections, narrow middles and mixer. */
static void measure_scratch(GlaModel *m, Layer *y) {
    const Mixer *x = y->mixer;
    float *rows[MAX_IN], *own[MAX_OWN];
    size_t in = 0, mid = 0, lerp_mid = 0;
    for (int j = 0; j < MAX_IN; j++) {
        in += round_up((size_t)proj_out(&y->in[j]), LANES);
        if (y->in[j].up.data) mid += (size_t)y->in[j].w.n_out;
        if (y->own.rwkv.lerp[j].up.data) lerp_mid += (size_t)y->own.rwkv.lerp[j].w.n_out;
    }
    y->mem.scratch = hand_out(y, x->makes, 1, NULL, rows, own) + map_floats(y);
    in += y->mem.scratch + LANES;
    raise_to(&mid, lerp_mid);
    if (y->ffn.lerp_k) raise_to(&in, 3 * (size_t)y->dim + (size_t)y->ffn.up.n_out + 4 * LANES);
    const size_t o = (size_t)y->n_heads * (size_t)y->dv, hidden = (size_t)y->ffn.up.n_out;
    raise_to(&m->row_floats, in);
    raise_to(&m->mid_floats, mid), raise_to(&m->widest_in, mid);
    raise_to(&m->out_floats, o), raise_to(&m->widest_in, o);
    raise_to(&m->hidden_floats, hidden), raise_to(&m->widest_in, hidden);
    raise_to(&m->widest_in, (size_t)proj_out(&y->own.mamba.step_in));
    raise_to(&m->widest_dk, (size_t)(y->dk > y->own.slots ? y->dk : y->own.slots));
}

/* What a layer keeps, and where in the state. */
static void measure_state(GlaModel *m, Layer *y) {
    float *keeps[MAX_KEPT];
    Extent *e = &y->mem;
    e->fixed = conv_floats(y) + keep_floats(y, y->mixer->keeps, NULL, keeps);
    e->fixed += y->ffn.lerp_k ? (size_t)y->dim : 0;
    e->fixed_at = m->fixed_floats, m->fixed_floats += e->fixed;
    const size_t lasts = (size_t)(!!(y->mixer->takes & PROJECTS) + (y->ffn.lerp_k != NULL));
    e->replay = e->fixed ? lasts * (size_t)y->dim : 0;
    for (int j = 0; j < MAX_IN && e->fixed; j++) e->replay += (size_t)proj_out(&y->in[j]);
    e->replay_at = m->replay_floats, m->replay_floats += e->replay;
    for (int kv = 0; kv < GLA_N_KV && y->mixer->grows; kv++) {
        Cache c = cache_shape(y, kv);
        e->kv[kv] = cache_block_bytes(&c);
        e->kv_at[kv] = m->kv_bytes[kv], m->kv_bytes[kv] += e->kv[kv];
        raise_to(&m->widest_kv, (size_t)c.heads * (size_t)(c.dk > c.dv ? c.dk : c.dv));
        raise_to(&m->widest_kv, 2 * (size_t)c.sums);
        if (!kv) m->kv_floats += e->kv[kv] / sizeof(float) / KEYS;
    }
}

/* The line that names the layers: "gated_deltanet x 18, softmax x 6". */
static void name_kinds(const GlaModel *m, char *text, size_t cap) {
    const int n_layers = m->config.n_layers;
    for (int i = 0, n = 0; i < n_layers && n < (int)cap - 20; i++) {
        int before = 0, count = 0;
        for (int j = 0; j < n_layers; j++) {
            if (m->layers[j].mixer != m->layers[i].mixer) continue;
            before += j < i, count++;
        }
        if (before) continue;
        n += snprintf(text + n, cap - (size_t)n, "%s%.24s x %d", n ? ", " : "",
                      m->layers[i].mixer->name, count);
    }
}

/* Sizes of state and scratch, and the weights that a token reads. */
static void measure_model(GlaModel *m) {
    const Gguf *g = &m->file;
    for (uint64_t i = 0; i < g->n_tensors; i++) {
        const GgufTensor *t = &g->tensors[i];
        if (!t->used) continue;
        m->parameters += t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3];
        m->token_bytes += t->n_bytes;
    }
    m->token_weights = m->parameters;
    if (m->head.data != m->embed.data) { /* of the embedding, a token reads one row */
        m->token_bytes -= (uint64_t)m->embed.n_out * row_bytes(&m->embed);
        m->token_weights -= (uint64_t)m->embed.n_out * (uint64_t)m->embed.n_in;
    }
    m->run_weights = m->token_weights - (uint64_t)m->head.n_out * (uint64_t)m->head.n_in;
    m->widest_in = (size_t)m->config.dim;
    for (int i = 0; i < m->config.n_layers; i++) {
        measure_scratch(m, &m->layers[i]);
        measure_state(m, &m->layers[i]);
    }
    name_kinds(m, m->kinds, 160);
}

/* The block for multi-token prediction: the first one behind the main stack, with softmax
 * attention, and what surrounds it. A file that has none, or one that cannot be used, is a model
 * all the same; why_not says then why it makes no drafts. */
static void bind_mtp(const Loader *model, int there) {
    GlaModel *m = model->m;
    Mtp *d = &m->mtp;
    Loader loader = *model, *l = &loader;
    const int i = m->config.n_layers, dim = m->config.dim, vocab = m->config.vocab_size;
    Layer *y = &m->layers[i];
    l->err = d->why_not;
    if (!there || !has(l, "nextn.eh_proj.weight", i)) {
        REFUSE(l, GLA_UNSUPPORTED, "this file has no block for multi-token prediction");
        return;
    }
    read_block(l, y, i);
    d->join = matrix(l, "nextn.eh_proj.weight", i, 2 * (int64_t)dim, dim);
    d->token.w = vector(l, "nextn.enorm.weight", i, dim);
    d->hidden.w = vector(l, "nextn.hnorm.weight", i, dim);
    d->out.w = vector_if(l, "nextn.shared_head_norm.weight", i, dim);
    if (!d->out.w) d->out = m->out_norm;
    d->embed = m->embed, d->head = m->head;
    if (has(l, "nextn.embed_tokens.weight", i))
        d->embed = matrix(l, "nextn.embed_tokens.weight", i, dim, vocab);
    if (has(l, "nextn.shared_head_head.weight", i))
        d->head = matrix(l, "nextn.shared_head_head.weight", i, dim, 0);
    if (l->code) return;
    if (d->head.n_out > vocab)
        REFUSE(l, GLA_FORMAT, "blk.%d.nextn.shared_head_head.weight has %d rows for a vocabulary "
               "of %d", i, d->head.n_out, vocab);
    if (y->mixer->mix != mix_softmax || m->config.res_block || m->config.layer_norm
        || !y->ffn.gate.data)
        REFUSE(l, GLA_UNSUPPORTED, "the block for multi-token prediction of %s is not implemented",
               l->arch);
    const Cache c = cache_shape(y, GLA_KV_F32);
    if (cache_block_bytes(&c) / KEYS > l->g->map.n / 16 + (1 << 20))
        REFUSE(l, GLA_FORMAT, "the block for multi-token prediction keeps %zu bytes for each "
               "position, out of proportion to a file of %zu", cache_block_bytes(&c) / KEYS,
               l->g->map.n);
    if (l->code) return;
    d->layer = y;
    if (d->head.n_out > DRAFT_VOCAB) d->head.n_out = DRAFT_VOCAB;
    measure_scratch(m, y);
    raise_to(&m->row_floats, 2 * (size_t)dim + LANES), raise_to(&m->widest_in, 2 * (size_t)dim);
}

static int load_model(GlaModel *m, char *err) {
    const Gguf *g = &m->file;
    Loader loader = {.m = m, .g = g, .err = err}, *l = &loader;
    Str s = {NULL, 0};
    char text[64];
    int code = refuse_other_kinds(g, err);
    if (code) return code;
    if (!gguf_str(g, "general.architecture", &s))
        return fail(err, GLA_FORMAT, "the key general.architecture is missing");
    if (s.n < sizeof l->arch) memcpy(l->arch, s.s, s.n);
    if (!(l->a = architecture_named(l->arch)))
        return fail(err, GLA_UNSUPPORTED, "the architecture \"%s\" is not implemented",
                    printable(text, s));
    m->architecture = keep_str(l, s, "");
    s.s = NULL;
    gguf_str(g, "general.name", &s);
    m->name = keep_str(l, s, "");

    Config *c = &m->config;
    int blocks = int_key(l, "block_count", 0, 0, 1, 100000);
    int extra = int_key(l, "nextn_predict_layers", 0, 0, 0, 1000);
    c->n_layers = blocks - extra;
    if ((uint64_t)blocks > g->n_tensors)
        REFUSE(l, GLA_FORMAT, "%s.block_count is %d, but there are only %llu tensors", l->arch,
               blocks, (unsigned long long)g->n_tensors);
    if (c->n_layers < 1) REFUSE(l, GLA_UNSUPPORTED,
                                "this file holds only multi-token-prediction blocks, no model");
    c->dim = int_key(l, "embedding_length", 0, 0, 1, 1 << 24);
    c->seq_len = int_key(l, "context_length", 0, 4096, 1, INT32_MAX);
    double eps = float_key(l, "attention.layer_norm_epsilon", 0, 1e-6, 0, 1);
    c->eps = (float)float_key(l, "attention.layer_norm_rms_epsilon", 0, eps, 0, 1);
    m->embed = matrix(l, "token_embd.weight", -1, c->dim, 0);
    m->head = has(l, "output.weight", -1) ? matrix(l, "output.weight", -1, c->dim, m->embed.n_out)
        : m->embed;
    c->vocab_size = m->embed.n_out;
    m->out_norm.w = vector(l, "output_norm.weight", -1, c->dim);
    m->layers = keep(l, (size_t)c->n_layers + 1, sizeof *m->layers); /* and one for drafts */
    for (int i = 0; i < c->n_layers && !l->code; i++) read_block(l, &m->layers[i], i);
    if (c->layer_norm) {
        m->out_norm.b = vector_if(l, "output_norm.bias", -1, c->dim);
        m->embed_norm.w = vector_if(l, "token_embd_norm.weight", -1, c->dim);
        m->embed_norm.b = vector_if(l, "token_embd_norm.bias", -1, c->dim);
    }
    if (c->res_block) {
        m->res_proj = vector(l, "output_res_proj.weight", -1, c->dim);
        m->res_norm = vector(l, "output_res_norm.weight", -1, c->dim);
    }
    if (!l->code) l->code = refuse_unused(g, c->n_layers, l->arch, err);
    m->kinds = keep(l, 160, 1);
    if (l->code) return l->code;

    measure_model(m);
    bind_mtp(l, extra);
    /* Far beyond any real model, it is a hostile header; keys and values of one position are a
       sliver of the weights that make them. */
    const size_t fixed_bytes = m->fixed_floats * sizeof(float),
        position_bytes = m->kv_floats * sizeof(float);
    if (fixed_bytes / 16 > g->map.n + (4 << 20))
        return fail(err, GLA_FORMAT, "a state of %zu bytes is out of proportion to a file of %zu",
                    fixed_bytes, g->map.n);
    if (position_bytes > g->map.n / 16 + (1 << 20))
        return fail(err, GLA_FORMAT, "%zu bytes for each position are out of proportion to a file "
                    "of %zu", position_bytes, g->map.n);
    return choose_kernels(&m->kernels, err);
}

GLA_API void gla_info(const GlaModel *m, GlaInfo *i) {
    const Config *c = &m->config;
    *i = (GlaInfo){.architecture = m->architecture, .name = m->name, .kernel = m->kernels->name,
                   .n_layers = c->n_layers, .dim = c->dim, .vocab_size = c->vocab_size,
                   .seq_len = c->seq_len, .parameters = m->parameters, .file_bytes = m->file.map.n,
                   .token_bytes = m->token_bytes, .token_weights = m->token_weights,
                   .run_weights = m->run_weights,
                   .state_bytes = m->fixed_floats * sizeof(float), .layer_kinds = m->kinds};
    for (int kv = 0; kv < GLA_N_KV; kv++) i->kv_bytes_per_token[kv] = m->kv_bytes[kv] / KEYS;
}

/* ---- 9. state: what one text has left behind, and the room to work in -------------------------
 * The constant part holds, per layer, the convolution's last inputs and the memories S; the growing
 * part holds keys and values of the softmax layers, position by position. Zeroed memory is a fresh
 * state. With room for drafts there is what taking them back needs (Ahead), and what finds and times
 * them. Everything else is scratch. */

typedef union { struct { float score; int32_t id; }; uint64_t key; } Scored; /* key: in a heap */

/* What the block for multi-token prediction remembers, when there is room for it. An entry of its
 * cache is made of a position's hidden row and of the token behind it, so the hidden row of the last
 * position waits for that token. Nothing of this is part of a text: a session does not keep it, and
 * where some is missing the drafts are worse and the text is the same. */
typedef struct {
    float *h;                /* (batch, dim) hidden rows, what the head reads, of the last run */
    int32_t *ids;            /* (batch) its tokens */
    int64_t at;              /* position of its first */
    int n;                   /* its positions */
    uint8_t *kv;             /* keys and values, blocks of KEYS entries */
    int cap, len;            /* entries: room, in use */
    int64_t end;             /* the position behind that of the last entry */
    float *logits;           /* (mtp.head.n_out) */
} MtpState;

/* Tokens that were read ahead of the text, in one run with its last token: s->pos, the logits and
 * the ids are those of the text, while memories, keys and values are further. A token that is drawn
 * and is the next of them is part of the text from then on; where another one is drawn, what it was
 * read with is taken back (take_back in section 10). */
typedef struct {
    int cap;                 /* tokens of a run, the first is one of the text; 0: none is read ahead */
    int n, at;               /* tokens of the run that is under way; of these, in the text */
    int32_t *ids;            /* (cap) */
    float *logits;           /* (cap, vocab_size) */
    float *memory;           /* (m->fixed_floats) the constant part in front of the run */
    float *rows;             /* (cap, m->replay_floats) what the mixers read */
    float *zeros;            /* (m->widest_kv) a position without keys and values */
    void (*take_back)(GlaState *s);
} Ahead;

/* The last tokens of the text, and an index of them: positions whose last GRAM tokens are the same
 * (or collide) form a chain, from the newest to the oldest. */
enum { HISTORY = 1 << 16, GRAM = 3 };
typedef struct {
    int cap;                 /* a power of two, or 0 */
    int64_t from, end;       /* the positions that it knows, and of these the last cap only */
    int32_t *ids;            /* (cap) of position p: at p % cap */
    int32_t *back;           /* (cap) from there to the one before it in the chain; 0: the oldest */
    int64_t *newest;         /* (cap) of each chain, plus 1; 0: none */
} History;

/* What drafts have cost and brought so far. No bit of a text depends on it. */
enum { DRAFT_MOST = 64, TRUSTS = 16 };
typedef struct {
    double cost[DRAFT_MOST + 1];   /* seconds that a run of so many tokens takes; 0: not known */
    float hits[2][TRUSTS], seen[2][TRUSTS]; /* of drafts of a source, by how much they are trusted */
    double lost;                   /* seconds, of late, by runs with drafts; < 0: won */
    int since;                     /* runs with drafts since one without */
    int64_t proposed, stayed;      /* in the life of the state */
    int n, stay;                   /* tokens of the run that is under way; of these, in the text */
    double spent;                  /* seconds, on it */
    int32_t drafts[DRAFT_MOST];    /* what was proposed last, whether it was read or not */
    int always;                    /* whether it pays or not, for tests */
    int n_drafts, at, trust;       /* how many; those that were drawn so far; how much is thought of it */
} Pace;

struct GlaState {
    const GlaModel *m;
    int ctx, batch, kv_type; /* kv_type: GLA_KV_*, not the default */
    int64_t pos, evaluated;  /* tokens read; tokens computed, which only grows */
    float *fixed;            /* (m->fixed_floats) */
    uint8_t *kv;             /* layer after layer, blocks of KEYS positions (see Cache) */
    float *logits;           /* (vocab_size) of the last token read */
    /* scratch of a run of tokens */
    float *x;                /* (sources, batch, dim) the residual stream, or all its sources */
    float *xb;               /* (batch, dim) what a branch reads and leaves */
    float *rows;             /* (batch, m->row_floats) projections of a mixer, then its scratch;
                                or two rows of the feed-forward */
    float *turns;            /* (batch, m->turn_floats) cos and sin of the rotary positions */
    float *mid;              /* (batch, m->mid_floats) narrow middles of projections */
    float *o;                /* (batch, n_heads dv) output of a mixer */
    float *v_first;          /* RWKV-7: values of the first layer */
    Scored *candidates;      /* (vocab_size), for the sampler */
    MtpState mtp;            /* h NULL: no room for it was asked for */
    Ahead ahead;
    History history;
    Pace pace;
    int64_t within;          /* tokens' worth of the run that is being read, for somebody who
                                watches: nothing depends on it */
    Team team;
    void *block;             /* memory to free, NULL when the caller's */
};

/* The embedding, and one for every res_block sub-layers; 1 without residual attention. */
static int residual_sources(const Config *c) {
    return c->res_block ? (2 * c->n_layers + c->res_block - 1) / c->res_block + 1 : 1;
}

/* Blocks of KEYS positions in a context; those in use; where a layer's begin. */
static size_t kv_blocks(int64_t positions) { return ((size_t)positions + KEYS - 1) / KEYS; }
static uint8_t *kv_of(const GlaState *s, const Layer *y) {
    return s->kv + y->mem.kv_at[s->kv_type] * kv_blocks(s->ctx);
}
static size_t kv_used(const GlaState *s, const Layer *y) { /* bytes */
    return y->mem.kv[s->kv_type] * kv_blocks(s->pos);
}

/* Room for the drafts of the block for multi-token prediction, and what its attention needs. */
static void mtp_layout(Arena *a, const GlaModel *m, const GlaSettings *how, MtpState *d,
                       size_t *buf_floats, size_t *parts_floats) {
    const size_t T = (size_t)how->batch;
    if (!how->mtp) return;
    Cache c = cache_shape(m->mtp.layer, how->kv);
    d->cap = how->mtp;
    d->h = take_bytes(a, T, (size_t)m->config.dim * sizeof(float));
    d->ids = take_bytes(a, T, sizeof *d->ids);
    d->logits = take(a, (size_t)m->mtp.head.n_out);
    d->kv = take_bytes(a, kv_blocks(d->cap), cache_block_bytes(&c));
    raise_to(buf_floats, attend_buf(m->mtp.layer->n_heads, &c, how->batch));
    raise_to(parts_floats, attend_parts(m->mtp.layer->n_heads, &c, d->cap, how->batch));
}

/* Room for drafts of the text. */
static void ahead_layout(Arena *a, const GlaModel *m, const GlaSettings *how, GlaState *s) {
    const size_t cap = (size_t)(how->draft < how->batch ? how->draft + 1 : how->batch);
    if (!how->draft || cap < 2) return;
    s->ahead.cap = (int)cap;
    s->ahead.ids = take_bytes(a, cap, sizeof *s->ahead.ids);
    s->ahead.logits = take_bytes(a, cap, (size_t)m->config.vocab_size * sizeof(float));
    s->ahead.memory = take(a, m->fixed_floats);
    s->ahead.rows = take_bytes(a, cap, m->replay_floats * sizeof(float));
    s->ahead.zeros = take(a, m->widest_kv);
    History *h = &s->history;
    for (h->cap = 64; h->cap < HISTORY && (!how->ctx || h->cap < how->ctx);) h->cap *= 2;
    h->ids = take_bytes(a, (size_t)h->cap, sizeof *h->ids);
    h->back = take_bytes(a, (size_t)h->cap, sizeof *h->back);
    h->newest = take_bytes(a, (size_t)h->cap, sizeof *h->newest);
}

/* The one layout. With a->base NULL it only measures. */
static GlaState *state_layout(Arena *a, const GlaModel *m, const GlaSettings *how) {
    const Config *c = &m->config;
    const int ctx = how->ctx, batch = how->batch, threads = how->threads, kv = how->kv;
    size_t T = (size_t)batch, rows = 2 * m->hidden_floats;
    raise_to(&rows, m->row_floats);
    GlaState *self = take_bytes(a, 1, sizeof *self);
    GlaState s = {.m = m, .ctx = ctx, .batch = batch, .kv_type = kv};
    s.fixed = take(a, m->fixed_floats);
    s.kv = take_bytes(a, kv_blocks(ctx), m->kv_bytes[kv]);
    s.logits = take(a, (size_t)c->vocab_size);
    s.x = take_bytes(a, (size_t)residual_sources(c) * T, (size_t)c->dim * sizeof(float));
    s.xb = take_bytes(a, T, (size_t)c->dim * sizeof(float));
    s.rows = take_bytes(a, T, rows * sizeof(float));
    s.turns = take_bytes(a, T, m->turn_floats * sizeof(float));
    s.mid = take_bytes(a, T, m->mid_floats * sizeof(float));
    s.o = take_bytes(a, T, m->out_floats * sizeof(float));
    s.v_first = take_bytes(a, T, m->v_first_floats * sizeof(float));
    s.candidates = take_bytes(a, (size_t)c->vocab_size, sizeof(Scored));
    size_t buf_floats = matmul_buf(m->widest_in, T), parts_floats = 0;
    raise_to(&buf_floats, (PANEL + 2) * m->widest_dk);
    for (int i = 0; i < c->n_layers; i++) {
        const Layer *y = &m->layers[i];
        if (!y->mem.kv[kv]) continue;
        Cache cache = cache_shape(y, kv);
        raise_to(&buf_floats, cache.dk ? attend_buf(y->n_heads, &cache, batch)
                                       : walk_buf(&cache, y->dk));
        if (cache.dk) raise_to(&parts_floats, attend_parts(y->n_heads, &cache, ctx, batch));
    }
    mtp_layout(a, m, how, &s.mtp, &buf_floats, &parts_floats);
    ahead_layout(a, m, how, &s);
    s.team = (Team){.kernels = m->kernels, .n_threads = threads, .fast = how->fast,
                    .buf_floats = round_up(buf_floats, LANES), .parts_floats = parts_floats};
    s.team.parts = take(a, parts_floats);
    s.team.buf = take_bytes(a, (size_t)threads, s.team.buf_floats * sizeof(float));
    const size_t bfloats = how->fast ? T * m->widest_in : 0;
    s.team.input = take_bytes(a, input_bytes(T, m->widest_in) + bfloats * sizeof(uint16_t), 1);
    if (self) *self = s;
    return self;
}

/* Defaults, and a batch small enough that what grows with it stays near a quarter of a gigabyte: it
 * changes no result. */
static int state_settings(const GlaModel *m, const GlaSettings *given, GlaSettings *how,
                          char *err) {
    GlaSettings h = *how = given ? *given : (GlaSettings){0};
    if (h.ctx < 0 || h.batch < 0 || h.threads < 0 || h.threads > 1024)
        return fail(err, GLA_INPUT, "context %d, batch %d, threads %d: none may be negative, at "
                    "most 1024 threads", h.ctx, h.batch, h.threads);
    if (h.kv < 0 || h.kv >= GLA_N_KV)
        return fail(err, GLA_INPUT, "%d is not a type of keys and values", h.kv);
    if (h.fast != 0 && h.fast != 1) return fail(err, GLA_INPUT, "fast is 0 or 1, not %d", h.fast);
    if (h.mtp < 0)
        return fail(err, GLA_INPUT, "drafts that look back to %d positions", h.mtp);
    if (h.draft < 0 || h.draft >= DRAFT_MOST)
        return fail(err, GLA_INPUT, "drafts of %d tokens; at most %d", h.draft, DRAFT_MOST - 1);
    if (h.mtp && !m->mtp.layer) return fail(err, GLA_UNSUPPORTED, "%s", m->mtp.why_not);
    /* wall's fadings lie between 0.99 and 1, where a rounded one is another memory */
    for (int i = 0; i < m->config.n_layers && h.kv > GLA_KV_F32; i++)
        if (m->layers[i].mixer->takes & EXACT)
            return fail(err, GLA_INPUT, "%s keeps its keys and values as f32 only",
                        m->architecture);
    if (!h.ctx) h.ctx = m->config.seq_len < 4096 ? m->config.seq_len : 4096;
    if (!m->kv_floats) h.ctx = 0;
    if (!h.batch) h.batch = 512;
    if (!h.threads) h.threads = default_threads();
    if (h.threads > 1024) h.threads = 1024;
    if (!h.kv) h.kv = GLA_KV_F32;
    size_t floats = (size_t)m->config.dim * (size_t)(residual_sources(&m->config) + 1)
                  + m->row_floats + 2 * m->hidden_floats + m->mid_floats + m->out_floats
                  + m->turn_floats
                  + m->v_first_floats + 2 * m->widest_in; /* the last: quantised inputs */
    size_t per_token = floats * sizeof(float);
    while (h.batch > 1 && (size_t)h.batch > ((size_t)1 << 28) / per_token) h.batch /= 2;
    *how = h;
    return GLA_OK;
}

/* The settings of a state and its bytes. */
static int settle(const GlaModel *m, const GlaSettings *given, GlaSettings *how, size_t *need,
                  char *err) {
    Arena a = {NULL, 0, 0};
    int code = state_settings(m, given, how, err);
    if (code) return code;
    state_layout(&a, m, how);
    *need = a.used + ALIGN;
    if (!a.overflow) return GLA_OK;
    return fail(err, GLA_MEMORY, "a context of %d positions is larger than any memory; try a "
                "smaller one (-c)", how->ctx);
}
static GlaState *state_at(const GlaModel *m, const GlaSettings *how, void *mem) {
    Arena a = {(char *)mem + (ALIGN - (uintptr_t)mem % ALIGN) % ALIGN, 0, 0};
    return state_layout(&a, m, how);
}

GLA_API size_t gla_state_bytes(const GlaModel *m, const GlaSettings *given) {
    GlaSettings how;
    size_t need;
    return settle(m, given, &how, &need, NULL) ? 0 : need;
}

GLA_API int gla_state_place(GlaState **s, const GlaModel *m, const GlaSettings *given, void *mem,
                            size_t n_bytes, char *err) {
    GlaSettings how;
    size_t need;
    *s = NULL;
    int code = settle(m, given, &how, &need, err);
    if (code) return code;
    if (need > n_bytes)
        return fail(err, GLA_MEMORY, "a state needs %zu bytes, %zu were given", need, n_bytes);
    *s = state_at(m, &how, mem);
    gla_state_reset(*s);
    return GLA_OK;
}

GLA_API int gla_state_new(GlaState **s, const GlaModel *m, const GlaSettings *given, char *err) {
    GlaSettings how;
    size_t need;
    int code = settle(m, given, &how, &need, err);
    *s = NULL;
    /* zeroed and, on most systems, not taken from the machine before it is used */
    void *mem = code ? NULL : gla_alloc(need);
    if (!mem)
        return code ? code : fail(err, GLA_MEMORY, "no memory for a context of %d positions (%zu "
                                  "bytes); try a smaller one (-c)", how.ctx, need);
    *s = state_at(m, &how, mem);
    (*s)->block = mem;
    return GLA_OK;
}

/* What the block for multi-token prediction knows of the text behind `pos` is forgotten, entries of
 * positions whose next token is not part of the text, too. */
static void mtp_cut(MtpState *d, int64_t pos) {
    const int64_t over = d->end - max64(pos - 1, 0);
    if (over > 0) d->len = (int)max64(d->len - over, 0), d->end -= over;
    d->n = (int)max64(0, min64(d->n, pos - d->at));
}
static void mtp_copy(GlaState *to, const GlaState *s) {
    const MtpState *d = &s->mtp;
    if (!d->h) return;
    const Cache c = cache_shape(s->m->mtp.layer, s->kv_type);
    memcpy(to->mtp.h, d->h, (size_t)d->n * (size_t)s->m->config.dim * sizeof(float));
    memcpy(to->mtp.ids, d->ids, (size_t)d->n * sizeof *d->ids);
    memcpy(to->mtp.kv, d->kv, kv_blocks(d->len) * cache_block_bytes(&c));
    to->mtp.at = d->at, to->mtp.n = d->n, to->mtp.len = d->len, to->mtp.end = d->end;
}

/* The state is that of the text, and of no token behind it. */
static void settle_ahead(const GlaState *s) {
    if (s->ahead.n) s->ahead.take_back((GlaState *)(uintptr_t)s);
}

/* -- what was said before, to look up in -- */

static int64_t *history_chain(const History *h, int64_t pos) { /* of the tokens up to pos */
    uint64_t sum = 0;
    for (int64_t p = pos - GRAM + 1; p <= pos; p++)
        sum = (sum + (uint32_t)h->ids[p & (h->cap - 1)]) * 0x9e3779b97f4a7c15u;
    return &h->newest[sum >> 40 & (uint64_t)(h->cap - 1)];
}

static void history_clear(History *h, int64_t pos) {
    if (h->cap) memset(h->newest, 0, (size_t)h->cap * sizeof *h->newest);
    h->from = h->end = pos;
}

/* What is known of the text behind `pos` is forgotten, the newest first. */
static void history_cut(History *h, int64_t pos) {
    h->from = max64(h->from, h->end - h->cap + 1); /* what was there before is overwritten */
    if (pos == h->end) return;
    if (pos > h->end || pos < h->from || h->end - pos + GRAM >= h->cap) history_clear(h, pos);
    for (; h->end > pos; h->end--) {
        const int64_t p = h->end - 1;
        if (p - h->from < GRAM - 1) continue;
        int64_t *newest = history_chain(h, p);
        const int32_t back = h->back[p & (h->cap - 1)];
        if (*newest == p + 1) *newest = back ? p + 1 - back : 0;
    }
}

/* The n tokens from `pos` on. */
static void history_note(History *h, int64_t pos, const int32_t *ids, int n) {
    if (!h->cap) return;
    if (pos != h->end) history_cut(h, pos);
    for (int i = 0; i < n; i++) {
        const int64_t p = h->end++;
        h->ids[p & (h->cap - 1)] = ids[i];
        if (p - h->from < GRAM - 1) continue;
        int64_t *newest = history_chain(h, p);
        const int64_t back = *newest ? p + 1 - *newest : 0;
        h->back[p & (h->cap - 1)] = back < h->cap ? (int32_t)back : 0;
        *newest = p + 1;
    }
}

static void history_copy(History *to, const History *h) {
    if (!h->cap) return;
    memcpy(to->ids, h->ids, (size_t)h->cap * sizeof *h->ids);
    memcpy(to->back, h->back, (size_t)h->cap * sizeof *h->back);
    memcpy(to->newest, h->newest, (size_t)h->cap * sizeof *h->newest);
    to->from = h->from, to->end = h->end;
}

/* Up to max tokens that may follow `next`, which may follow the text: what stood behind the longest
 * of its earlier occurrences with the tokens before it, among the newest LOOKS; *length: of what is
 * the same, at most LOOK_BACK. An occurrence that reaches into what follows it goes on by itself. */
enum { LOOKS = 64, LOOK_BACK = 64 };
static int history_find(History *h, int32_t next, int32_t *out, int max, int *length) {
    const int64_t end = h->end, mask = h->cap - 1;
    int64_t best = -1;
    *length = 0;
    if (!h->cap || end - h->from < GRAM) return 0;
    const int64_t oldest = max64(h->from, end - h->cap + 1) + GRAM - 1;
    h->ids[end & mask] = next; /* the place of a token that is too old by now */
    int64_t p = *history_chain(h, end) - 1;
    for (int looks = LOOKS; looks-- && p >= oldest;) {
        int same = 0;
        while (same < LOOK_BACK && p - same >= oldest - GRAM + 1
               && h->ids[(p - same) & mask] == h->ids[(end - same) & mask]) same++;
        if (same > *length) *length = same, best = p;
        if (same == LOOK_BACK || !h->back[p & mask]) break;
        p -= h->back[p & mask];
    }
    if (*length < GRAM) return 0;
    for (int i = 0; i < max; i++) {
        const int64_t from = best + 1 + i;
        out[i] = from <= end ? h->ids[from & mask] : out[from - end - 1];
    }
    return max;
}

GLA_API void gla_state_free(GlaState *s) { if (s) gla_free(s->block); }

GLA_API void gla_state_reset(GlaState *s) {
    settle_ahead(s);
    history_clear(&s->history, 0);
    memset(s->fixed, 0, s->m->fixed_floats * sizeof(float));
    memset(s->logits, 0, (size_t)s->m->config.vocab_size * sizeof(float));
    s->pos = 0; /* what the growing part holds beyond pos is never read */
    mtp_cut(&s->mtp, 0);
}

GLA_API int gla_state_clone(GlaState **copy, const GlaState *s, char *err) {
    const GlaModel *m = s->m;
    const GlaSettings how = {s->ctx, s->batch, s->team.n_threads, s->kv_type, s->team.fast,
                             s->mtp.cap, s->ahead.cap ? s->ahead.cap - 1 : 0};
    settle_ahead(s);
    int code = gla_state_new(copy, m, &how, err);
    if (code) return code;
    memcpy((*copy)->fixed, s->fixed, m->fixed_floats * sizeof(float));
    memcpy((*copy)->logits, s->logits, (size_t)m->config.vocab_size * sizeof(float));
    for (int i = 0; i < m->config.n_layers; i++) {
        const Layer *y = &m->layers[i];
        memcpy(kv_of(*copy, y), kv_of(s, y), kv_used(s, y));
    }
    (*copy)->pos = s->pos;
    mtp_copy(*copy, s);
    history_copy(&(*copy)->history, &s->history);
    return GLA_OK;
}

GLA_API int64_t gla_state_pos(const GlaState *s) { return s->pos; }
GLA_API int64_t gla_state_evaluated(const GlaState *s) { return s->evaluated; }
GLA_API int64_t gla_state_drafted(const GlaState *s, int64_t *proposed) {
    if (proposed) *proposed = s->pace.proposed;
    return s->pace.stayed;
}
GLA_API int gla_state_ctx(const GlaState *s) { return s->ctx; }
GLA_API const float *gla_logits(const GlaState *s) { return s->logits; }

/* -- snapshots: position, logits, constant part -- */

GLA_API size_t gla_snapshot_bytes(const GlaModel *m) {
    return sizeof(int64_t) + ((size_t)m->config.vocab_size + m->fixed_floats) * sizeof(float);
}

GLA_API void gla_snapshot(const GlaState *s, void *snapshot) {
    size_t logits = (size_t)s->m->config.vocab_size * sizeof(float);
    char *to = snapshot;
    settle_ahead(s);
    memcpy(to, &s->pos, sizeof s->pos);
    memcpy(to + sizeof s->pos, s->logits, logits);
    memcpy(to + sizeof s->pos + logits, s->fixed, s->m->fixed_floats * sizeof(float));
}

GLA_API void gla_rewind(GlaState *s, const void *snapshot) {
    size_t logits = (size_t)s->m->config.vocab_size * sizeof(float);
    const char *from = snapshot;
    settle_ahead(s);
    memcpy(&s->pos, from, sizeof s->pos);
    memcpy(s->logits, from + sizeof s->pos, logits);
    memcpy(s->fixed, from + sizeof s->pos + logits, s->m->fixed_floats * sizeof(float));
    mtp_cut(&s->mtp, s->pos);
    history_cut(&s->history, s->pos);
}

/* -- sessions: head with the sampler, ids, logits, constant part, used growing part per layer,
 *    checksum of all before -- */

typedef struct {
    char magic[8];
    uint32_t version, has_sampler;
    uint64_t model;     /* fingerprint */
    int64_t pos;
    uint64_t fixed_floats, kv_bytes; /* kv_bytes: of KEYS positions */
    uint64_t vocab_size, n_ids;      /* n_ids: pos or 0 */
    uint32_t kv_type, n_keys;        /* GLA_KV_*, 0 without softmax layers; KEYS */
    GlaSampler sampler;
} SessionHead;
/* The head holds the sampler, so each setting more is another version;
    there were six in the third. */
#define ONE_MORE(...) + 1
enum { SESSION_VERSION = 3 - 6 GLA_SETTINGS(ONE_MORE, ) };
static const char session_magic[] = "GLASTATE";
static const char *const kv_names[GLA_N_KV] = {"f32", "f32", "f16", "q8_0"};

/* The header of the file and the first and last bytes of every tensor. */
static uint64_t fingerprint(const GlaModel *m) {
    const Gguf *g = &m->file;
    uint64_t h = hash_bytes(HASH_SEED, g->map.data, g->data_at);
    for (uint64_t i = 0; i < g->n_tensors; i++) {
        size_t n = (size_t)(g->tensors[i].n_bytes < 256 ? g->tensors[i].n_bytes : 256);
        h = hash_bytes(h, g->tensors[i].data, n);
        h = hash_bytes(h, g->tensors[i].data + g->tensors[i].n_bytes - n, n);
    }
    return h;
}

/* A session that is written or read: the checksum of all so far; whether a step failed; size: the
 * bytes of one that is read. */
typedef struct { FILE *f; uint64_t sum; int bad; uint64_t size; } Stream;
static void stream_write(Stream *t, void *p, size_t n) {
    t->bad |= fwrite(p, 1, n, t->f) != n;
    t->sum = hash_bytes(t->sum, p, n);
}
static void stream_read(Stream *t, void *p, size_t n) {
    if (fread(p, 1, n, t->f) != n) t->bad = 1, memset(p, 0, n);
    t->sum = hash_bytes(t->sum, p, n);
}

/* The ids, in pieces, which the checksum depends on. */
enum { ID_PIECE = 1024 };
static void session_write_ids(Stream *t, const int32_t *ids, uint64_t n) {
    int32_t piece[ID_PIECE];
    for (uint64_t i = 0, k; i < n; i += k) {
        k = n - i < ID_PIECE ? n - i : ID_PIECE;
        memcpy(piece, ids + i, (size_t)k * sizeof *piece);
        stream_write(t, piece, (size_t)k * sizeof *piece);
    }
}
/* ids NULL: they are only checked. */
static void session_read_ids(Stream *t, int32_t *ids, uint64_t n, int vocab_size) {
    int32_t piece[ID_PIECE];
    for (uint64_t i = 0, k; i < n && !t->bad; i += k) {
        k = n - i < ID_PIECE ? n - i : ID_PIECE;
        stream_read(t, piece, (size_t)k * sizeof *piece);
        for (uint64_t j = 0; j < k; j++) t->bad |= piece[j] < 0 || piece[j] >= vocab_size;
        if (ids) memcpy(ids + i, piece, (size_t)k * sizeof *piece);
    }
}

/* Every part behind the ids in order, with `step` reading or writing it. */
static void session_body(GlaState *s, Stream *t, void (*step)(Stream *, void *, size_t)) {
    const GlaModel *m = s->m;
    step(t, s->logits, (size_t)m->config.vocab_size * sizeof(float));
    step(t, s->fixed, m->fixed_floats * sizeof(float));
    for (int i = 0; i < m->config.n_layers; i++)
        step(t, kv_of(s, &m->layers[i]), kv_used(s, &m->layers[i]));
}

static void stream_count(Stream *t, void *p, size_t n) { (void)p, t->sum += n; }
static uint64_t session_bytes(const GlaState *s, int64_t n_ids) {
    Stream t = {NULL, sizeof(SessionHead) + (uint64_t)n_ids * sizeof(int32_t) + sizeof t.sum, 0, 0};
    session_body((GlaState *)(uintptr_t)s, &t, stream_count);
    return t.sum;
}

static int begins_well(FILE *f) {
    char magic[8];
    rewind(f);
    return fread(magic, 1, 8, f) == 8 && !memcmp(magic, session_magic, 8);
}
/* A session replaces another one or an empty file, nothing else. */
static int no_stranger(const char *path, char *err) {
    uint64_t n;
    FILE *f = open_regular(path, 1, &n, NULL);
    const int foreign = f && n && !begins_well(f);
    if (f) fclose(f);
    if (!foreign) return GLA_OK;
    return fail(err, GLA_INPUT, "%s is no session and would be replaced; give another name", path);
}
/* Will a session find its place there? Asked before there is one. */
LIKELY_UNUSED static int can_save(const char *path, char *err) {
    const int code = no_stranger(path, err);
    return code ? code : can_write(path, err);
}

GLA_API int gla_state_save(const GlaState *s, const GlaSampler *p, const int32_t *ids,
                           const char *path, char *err) {
    const GlaModel *m = s->m;
    Temporary temporary;
    SessionHead head;
    const int code = no_stranger(path, err);
    if (code) return code;
    settle_ahead(s);
    memset(&head, 0, sizeof head);
    memcpy(head.magic, session_magic, 8);
    head.version = SESSION_VERSION;
    head.has_sampler = p != NULL;
    head.model = fingerprint(m);
    head.pos = s->pos;
    head.n_ids = ids ? (uint64_t)s->pos : 0;
    head.fixed_floats = m->fixed_floats;
    head.kv_bytes = m->kv_bytes[s->kv_type];
    head.vocab_size = (uint64_t)m->config.vocab_size;
    head.kv_type = m->kv_floats ? (uint32_t)s->kv_type : 0;
    head.n_keys = KEYS;
    if (p) head.sampler = *p;
    /* from here on the model's file is not touched: if it has shrunk, no temporary file is left */
    Stream t = {open_temporary(temporary, path, err), HASH_SEED, 0, 0};
    if (!t.f) return GLA_IO;
    stream_write(&t, &head, sizeof head);
    session_write_ids(&t, ids, head.n_ids);
    session_body((GlaState *)(uintptr_t)s, &t, stream_write);
    uint64_t sum = t.sum;
    stream_write(&t, &sum, sizeof sum);
    return commit_file(t.f, temporary, path, err);
}

/* Opens a session and reads its head; the file is long enough for the ids that it promises. t->f is
 * to be closed in any case. */
static int session_open(Stream *t, SessionHead *head, const GlaModel *m, const char *path,
                        int follow, char *err) {
    *t = (Stream){NULL, HASH_SEED, 0, 0};
    if (!(t->f = open_regular(path, follow, &t->size, err))) return GLA_IO;
    stream_read(t, head, sizeof *head);
    if (t->bad || memcmp(head->magic, session_magic, 8))
        return fail(err, GLA_FORMAT, "%s: not a session file", path);
    if (head->version != SESSION_VERSION)
        return fail(err, GLA_UNSUPPORTED, "%s: session version %u, this program reads version %d",
                    path, head->version, SESSION_VERSION);
    if (head->model != fingerprint(m) || head->fixed_floats != m->fixed_floats
        || head->vocab_size != (uint64_t)m->config.vocab_size)
        return fail(err, GLA_INPUT, "%s: saved by another model than %s", path,
                    *m->name ? m->name : m->architecture);
    if (head->kv_type >= GLA_N_KV || head->kv_bytes != m->kv_bytes[head->kv_type]
        || !head->kv_type != !m->kv_floats || head->n_keys != KEYS)
        return fail(err, GLA_FORMAT,
                    "%s: damaged, or its keys and values lie in another way than here", path);
    if (head->pos < 0 || head->pos > (int64_t)1 << 53)
        return fail(err, GLA_FORMAT, "%s: damaged, at position %lld", path, (long long)head->pos);
    const uint64_t most = (t->size - sizeof *head) / sizeof(int32_t);
    if (head->n_ids && (head->n_ids != (uint64_t)head->pos || head->n_ids > most))
        return fail(err, GLA_FORMAT, "%s: damaged or cut short", path);
    return GLA_OK;
}

/* What is behind the head. ids: NULL, or where its ids go, to be freed; left alone when it has
 * none. */
static int session_read(GlaState *s, GlaSampler *p, Stream *t, const SessionHead *head,
                        int32_t **ids, const char *path, char *err) {
    const int64_t before = s->pos;
    settle_ahead(s);
    if (head->kv_type && head->kv_type != (uint32_t)s->kv_type)
        return fail(err, GLA_INPUT,
                    "%s: its keys and values are %s, this state keeps %s; give --kv %s",
                    path, kv_names[head->kv_type], kv_names[s->kv_type], kv_names[head->kv_type]);
    if (s->m->kv_floats && head->pos > s->ctx)
        return fail(err, GLA_CONTEXT,
                    "%s: holds %lld positions, the context has %d; give a larger one (-c)",
                    path, (long long)head->pos, s->ctx);
    s->pos = head->pos;
    if (session_bytes(s, (int64_t)head->n_ids) != t->size) {
        s->pos = before;
        return fail(err, GLA_FORMAT, "%s: damaged or cut short", path);
    }
    if (ids && head->n_ids && !(*ids = gla_alloc((size_t)head->n_ids * sizeof **ids))) {
        s->pos = before;
        return fail(err, GLA_MEMORY, "no memory for %lld token ids", (long long)head->n_ids);
    }
    uint64_t stored;
    session_read_ids(t, ids ? *ids : NULL, head->n_ids, s->m->config.vocab_size);
    session_body(s, t, stream_read);
    const uint64_t sum = t->sum;
    stream_read(t, &stored, sizeof stored);
    if (t->bad || sum != stored) {
        gla_state_reset(s);
        return fail(err, GLA_FORMAT, "%s: damaged or cut short", path);
    }
    mtp_cut(&s->mtp, 0); /* it holds nothing for the drafts */
    history_clear(&s->history, s->pos);
    if (ids && *ids) history_clear(&s->history, 0);
    for (int64_t i = 0; ids && *ids && i < s->pos; i += ID_PIECE)
        history_note(&s->history, i, *ids + i, (int)min64(ID_PIECE, s->pos - i));
    if (!head->pos) gla_state_reset(s); /* whatever it says: nothing has been read */
    if (p && head->has_sampler) *p = head->sampler;
    return GLA_OK;
}

/* The state and its ids, from one reading of the file; *ids is to be freed, NULL when there are
 * none. */
static int session_load(GlaState *s, GlaSampler *p, int32_t **ids, const char *path, char *err) {
    SessionHead head;
    Stream t;
    int code = session_open(&t, &head, s->m, path, 1, err);
    if (ids) *ids = NULL;
    if (!code) code = session_read(s, p, &t, &head, ids, path, err);
    if (code && ids) gla_free(*ids), *ids = NULL;
    if (t.f) fclose(t.f);
    return code;
}

GLA_API int gla_state_load(GlaState *s, GlaSampler *p, const char *path, char *err) {
    return session_load(s, p, NULL, path, err);
}

GLA_API int64_t gla_session_ids(const GlaModel *m, const char *path, int32_t *ids, int64_t cap,
                                char *err) {
    SessionHead head;
    Stream t;
    int code = session_open(&t, &head, m, path, 1, err);
    const int64_t n = code ? 0 : (int64_t)head.n_ids, wanted = min64(n, cap);
    if (!code && wanted > 0) session_read_ids(&t, ids, (uint64_t)wanted, m->config.vocab_size);
    if (!code && t.bad) code = fail(err, GLA_FORMAT, "%s: damaged or cut short", path);
    if (t.f) fclose(t.f);
    return code ? code : n;
}

/* -- prompt cache: a session is called MODEL-IDS-COUNT.gla, two hash values and how many ids;
 *    while it is written, MODEL-IDS-COUNT.gla.DIGITS.tmp. Nothing else in the folder is the
 *    cache's: no other name, no link, no file that begins in another way. A session that was cut
 *    or replaced is refused by its checksum; one that another program deletes while it is read
 *    stays readable. -- */

typedef struct { unsigned long long model, text; long long n; } CacheKey;
enum { CACHE_OTHER, CACHE_SESSION, CACHE_TEMPORARY };
static int cache_name(char *name, size_t cap, const CacheKey *k) {
    return snprintf(name, cap, "%016llx-%016llx-%lld.gla", k->model, k->text, k->n);
}
/* What the cache would write, to the letter. */
static int cache_kind(const char *name, CacheKey *k) {
    char again[128];
    unsigned long long digits;
    if (sscanf(name, "%16llx-%16llx-%lld.", &k->model, &k->text, &k->n) != 3 || k->n <= 0)
        return CACHE_OTHER;
    const size_t n = (size_t)cache_name(again, sizeof again, k);
    if (!strcmp(name, again)) return CACHE_SESSION;
    if (strlen(name) != n + 21 || sscanf(name + n, ".%16llx.tmp", &digits) != 1) return CACHE_OTHER;
    snprintf(again + n, sizeof again - n, ".%016llx.tmp", digits);
    return strcmp(name, again) ? CACHE_OTHER : CACHE_TEMPORARY;
}

/* A file that the cache made, or NULL. */
static FILE *cache_open(const char *path, int may_be_empty) {
    uint64_t n;
    FILE *f = open_regular(path, 0, &n, NULL);
    if (!f || (may_be_empty && !n) || begins_well(f)) return f;
    fclose(f);
    return NULL;
}

/* MODEL: states with another type of keys and values do not fit each other either. */
static uint64_t cache_model(const GlaState *s) {
    uint64_t kv = s->m->kv_bytes[s->kv_type] && s->kv_type > GLA_KV_F32 ? (uint64_t)s->kv_type : 0;
    return fingerprint(s->m) + kv + (s->team.fast ? 16 : 0);
}

typedef struct {
    uint64_t model;
    const int32_t *ids;
    int64_t n, best;
    char path[PATH_LEN];
} CacheSearch;
static int cache_fits(void *user, const Entry *e) {
    CacheSearch *c = user;
    CacheKey k;
    if (!e->is_file || cache_kind(e->name, &k) != CACHE_SESSION || k.model != c->model) return 0;
    if (k.n <= c->best || k.n > c->n) return 0;
    if (k.text != hash_bytes(HASH_SEED, c->ids, (size_t)k.n * sizeof *c->ids)) return 0;
    snprintf(c->path, sizeof c->path, "%s", e->path);
    c->best = k.n;
    return 0;
}

static int cache_read(GlaState *s, const CacheSearch *c) { /* 1: the state is the one found */
    SessionHead head;
    Stream t;
    int32_t *ids = NULL;
    int code = session_open(&t, &head, s->m, c->path, 0, NULL);
    if (!code) code = session_read(s, NULL, &t, &head, &ids, c->path, NULL);
    const int fits = !code && s->pos == c->best && ids;
    const int same = fits && !memcmp(ids, c->ids, (size_t)c->best * sizeof *ids);
    if (same) touch_file(t.f);
    else if (code == GLA_FORMAT && begins_well(t.f))
        (void)remove_open(t.f, c->path); /* damaged: it would keep a sound one from being stored */
    if (!same) gla_state_reset(s);
    if (t.f) fclose(t.f);
    gla_free(ids);
    return same;
}

GLA_API int64_t gla_cache_load(GlaState *s, const char *folder, const int32_t *ids, int64_t n,
                               char *err) {
    CacheSearch c = {cache_model(s), ids, n, 0, ""};
    int code;
    if (s->pos)
        return fail(err, GLA_INPUT, "the prompt cache is for a state that has read nothing");
    for (; !(code = read_folder(folder, cache_fits, &c, err)) && c.best; c.n = c.best - 1, c.best = 0)
        if (cache_read(s, &c)) return c.best; /* else damaged, or too long: the next one */
    return code;
}

typedef struct { uint64_t total; double oldest; char path[PATH_LEN]; } CacheOldest;
static int cache_oldest(void *user, const Entry *e) {
    CacheOldest *c = user;
    CacheKey k;
    const int kind = e->is_file ? cache_kind(e->name, &k) : CACHE_OTHER;
    FILE *f = kind == CACHE_OTHER ? NULL : cache_open(e->path, kind == CACHE_TEMPORARY);
    if (!f) return 0;
    if (kind == CACHE_TEMPORARY) {
        if (is_abandoned(f)) (void)remove_open(f, e->path);
    } else {
        c->total += e->bytes;
        if (!*c->path || e->changed < c->oldest) {
            c->oldest = e->changed;
            snprintf(c->path, sizeof c->path, "%s", e->path);
        }
    }
    fclose(f);
    return 0;
}
static int cache_trim(const char *folder, uint64_t max_bytes, char *err) {
    for (;;) {
        CacheOldest c = {0, 0, ""};
        int code = read_folder(folder, cache_oldest, &c, err);
        if (code || c.total <= max_bytes || !*c.path) return code;
        if (remove(c.path) && errno != ENOENT)
            return fail(err, GLA_IO, "%s: cannot remove: %s", c.path, strerror(errno));
    }
}

GLA_API int gla_cache_store(const GlaState *s, const char *folder, const int32_t *ids,
                            uint64_t max_bytes, char *err) {
    char name[128], path[PATH_LEN];
    uint64_t bytes = session_bytes(s, s->pos);
    if (!s->pos) return fail(err, GLA_INPUT, "nothing has been read that could be cached");
    int code = make_folder(folder, err);
    if (code) return code;
    if (bytes > max_bytes)
        return fail(err, GLA_INPUT, "%s: a snapshot of %llu bytes does not go into a cache of %llu",
                    folder, (unsigned long long)bytes, (unsigned long long)max_bytes);
    const uint64_t text = hash_bytes(HASH_SEED, ids, (size_t)s->pos * sizeof *ids);
    cache_name(name, sizeof name, &(CacheKey){cache_model(s), text, s->pos});
    if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path)
        return fail(err, GLA_INPUT, "%s: the name is too long", folder);
    for (int tries = 0; is_there(path); tries++) { /* others may make or remove it at any moment */
        FILE *there = cache_open(path, 0);
        if (there) return touch_file(there), fclose(there), GLA_OK;
        if (tries == 10)
            return fail(err, GLA_INPUT, "%s: is there, and was not made by the cache", path);
    }
    code = cache_trim(folder, max_bytes - bytes, err);
    if (!code) code = gla_state_save(s, NULL, ids, path, err);
    return code ? code : cache_trim(folder, max_bytes, err);
}

/* ---- 10. forward: a run of tokens through the whole model --------------------------------------
 * Embedding, layers, head: the figure of a paper. It knows nothing of weight types or threads, and does not care whether T
 * is one or many. */

/* Residual attention: a sub-layer reads a softmax mix of the residual sources instead of their sum.
 *                                                                   (arXiv 2603.15031)
 *   p_i = softmax_i( proj . rmsnorm(source_i, w) );   out = sum_i p_i source_i;   out (T, dim)
 * Sums so far are rescaled when a larger score appears. */
/* n times (T, dim), step apart */
typedef struct { const float *x; int n; size_t step, dim; } Sources;
static void mix_sources(float *out, const Sources *s, const float *proj, const float *w, float eps,
                        int T) {
    const size_t dim = s->dim;
    for (int t = 0; t < T; t++) {
        float *y = out + (size_t)t * dim, top = -INFINITY, sum = 0;
        memset(y, 0, dim * sizeof(float));
        for (int i = 0; i < s->n; i++) {
            const float *x = s->x + (size_t)i * s->step + (size_t)t * dim;
            double squares = 0, dots = 0;
            for (size_t d = 0; d < dim; d++) {
                squares += (double)x[d] * x[d];
                dots += (double)proj[d] * w[d] * x[d];
            }
            float score = (float)(dots / sqrt(squares / (double)dim + eps));
            float best = score > top ? score : top, keep = expf(top - best), p = expf(score - best);
            for (size_t d = 0; d < dim; d++) y[d] = y[d] * keep + p * x[d];
            sum = sum * keep + p, top = best;
        }
        for (size_t d = 0; d < dim; d++) y[d] /= sum;
    }
}

/* cos and sin of the angles of every rotary kind from pos on, once for all layers:
 * (T, turn_floats). */
static void rope_tables(const GlaState *s, int64_t pos, int T) {
    const GlaModel *m = s->m;
    const int n_layers = m->config.n_layers + (m->mtp.layer != NULL);
    const int n_threads = threads_for(&s->team, 40.0 * T * (double)m->turn_floats);
    PARALLEL_FOR(n_threads)
    for (int t = 0; t < T; t++) {
        float *row = s->turns + (size_t)t * m->turn_floats;
        size_t done = 0;
        for (int i = 0; i < n_layers && done < m->turn_floats; i++) {
            const Rotary *r = &m->layers[i].rope;
            if (!r->freq || r->at != done) continue; /* it turns like an earlier one */
            for (int j = 0; j < r->dims / 2; j++) {
                double angle = (double)(pos + t) * r->freq[j];
                row[done++] = r->scale * (float)cos(angle);
                row[done++] = r->scale * (float)sin(angle);
            }
        }
    }
}

/* x <- cap tanh(x / cap), n floats: they stay within cap of 0. */
static void cap_rows(const Team *team, float *x, float cap, size_t n) {
    enum { PIECE = 4096 };
    int n_threads = threads_for(team, 16.0 * (double)n);
    PARALLEL_FOR(n_threads)
    for (int64_t at = 0; at < (int64_t)n; at += PIECE) {
        size_t k = (size_t)min64(PIECE, (int64_t)n - at);
        for (size_t i = 0; i < k; i++) x[at + (int64_t)i] /= cap;
        team->kernels->activate(x + at, ACT_TANH, k);
        for (size_t i = 0; i < k; i++) x[at + (int64_t)i] *= cap;
    }
}

/* -- tokens that are read ahead, first part: what taking them back will need -- */

/* (cap, width) of the rows that a layer has put aside, `at` floats per token behind the first. */
static float *aside_of(const GlaState *s, const Layer *y, size_t at) {
    return s->ahead.rows + (size_t)s->ahead.cap * (y->mem.replay_at + at);
}
/* The memory as it is, the rows that the mixer is about to change, and what the next token's mixes
 * with the one before would read. */
static void put_aside(GlaState *s, const Layer *y, const Run *run) {
    const size_t T = (size_t)run->T;
    size_t at = 0;
    if (!y->mem.fixed) return;
    memcpy(s->ahead.memory + y->mem.fixed_at, s->fixed + y->mem.fixed_at,
           y->mem.fixed * sizeof(float));
    for (int j = 0; j < MAX_IN; j++) {
        const size_t width = (size_t)proj_out(&y->in[j]);
        if (!y->in[j].w.data) continue;
        memcpy(aside_of(s, y, at), run->in[j], T * width * sizeof(float));
        at += width;
    }
    if (y->mixer->takes & PROJECTS)
        memcpy(aside_of(s, y, at), run->x, T * (size_t)y->dim * sizeof(float));
}

/* What the mixer of a layer works on. kv: the keys and values of the T positions from pos on and of
 * those before them */
static Run layer_run(GlaState *s, const Layer *y, uint8_t *kv, int64_t pos, int T) {
    const Mixer *m = y->mixer;
    float *memory = s->fixed + y->mem.fixed_at, *free_rows = s->rows;
    Run run = {.team = &s->team, .T = T, .pos = pos, .x = s->xb, .mid = s->mid,
               .turns = s->turns,
               .turn_floats = s->m->turn_floats, .v_first = s->v_first, .conv = memory, .o = s->o};
    for (int j = 0; j < MAX_IN; j++) {
        if (!y->in[j].w.data) continue;
        run.in[j] = free_rows;
        free_rows += (size_t)T * round_up((size_t)proj_out(&y->in[j]), LANES);
    }
    run.free_rows = free_rows + hand_out(y, m->makes, T, free_rows, run.in, run.own);
    keep_floats(y, m->keeps, memory + conv_floats(y), run.keeps);
    if (m->grows) run.cache = cache_shape(y, s->kv_type), run.cache.mem = kv;
    return run;
}

/* rows = q, k, v, gates ... of xb;  o = mixer(rows, memory);  xb = W o */
static void mix(GlaState *s, const Layer *y, uint8_t *kv, int64_t pos, int T) {
    const Run run = layer_run(s, y, kv, pos, T);
    if (y->mixer->takes & PROJECTS) rwkv_project(&run, y);
    else project(&s->team, run.in, y->in, MAX_IN, s->xb, T, s->mid);
    if (s->ahead.n) put_aside(s, y, &run);
    y->mixer->mix(&run, y);
    project(&s->team, &s->xb, &y->out, 1, s->o, T, s->mid);
}

/* xb = channel_mix(xb), whose last x lies behind the mixer's memory */
static void mix_channels(GlaState *s, const Layer *y, int T) {
    const size_t dim = (size_t)y->dim;
    float *last = s->fixed + y->mem.fixed_at + y->mem.fixed - dim;
    if (s->ahead.n) memcpy(aside_of(s, y, y->mem.replay - dim), s->xb,
                           (size_t)T * dim * sizeof(float));
    channel_mix(&s->team, &y->ffn, s->xb, last, s->rows, T);
}

/* The memory of a layer goes on from where it was in front of a run that was read ahead, by the
 * first T of its tokens. No large matrix is read again. */
static void replay(GlaState *s, const Layer *y, int64_t pos, int T) {
    const Run run = layer_run(s, y, kv_of(s, y), pos, T);
    const size_t dim = (size_t)y->dim, last = (size_t)(T - 1) * dim;
    float *fixed = s->fixed + y->mem.fixed_at;
    size_t at = 0;
    memcpy(fixed, s->ahead.memory + y->mem.fixed_at, y->mem.fixed * sizeof *fixed);
    for (int j = 0; j < MAX_IN; j++) {
        const size_t width = (size_t)proj_out(&y->in[j]);
        if (!y->in[j].w.data) continue;
        memcpy(run.in[j], aside_of(s, y, at), (size_t)T * width * sizeof(float));
        at += width;
    }
    if (y->mixer->takes & PROJECTS)
        memcpy(run.keeps[0], aside_of(s, y, at) + last, dim * sizeof(float));
    y->mixer->mix(&run, y);
    if (y->ffn.lerp_k)
        memcpy(fixed + y->mem.fixed - dim, aside_of(s, y, y->mem.replay - dim) + last,
               dim * sizeof(float));
}

/* xb = down(up xb * act(gate xb)), with biases where there are some */
static void feed_forward(GlaState *s, const Layer *y, int T) {
    const Team *team = &s->team;
    const int dim = s->m->config.dim, hidden = y->ffn.gate.n_out;
    float *gate = s->rows, *up = gate + (size_t)T * (size_t)hidden;
    Input wide = input_rows(s->xb, T, dim);
    matmul(team, (Product[]){{gate, &y->ffn.gate}, {up, &y->ffn.up}}, 2, &wide);
    add_bias(gate, y->ffn.bias[0], T, (size_t)hidden);
    add_bias(up, y->ffn.bias[1], T, (size_t)hidden);
    gate_rows(team, up, gate, y->ffn.act, hidden, T);
    matmul_rows(team, s->xb, &y->ffn.down, up, T);
    add_bias(s->xb, y->ffn.bias[2], T, (size_t)dim);
}

/* x (T, dim) = scale times rows of the embedding */
static void embed(float *x, const Tensor *W, float scale, const int32_t *ids, int T) {
    const size_t dim = (size_t)W->n_in;
    for (int t = 0; t < T; t++) {
        const uint8_t *row = W->data + (size_t)ids[t] * row_bytes(W);
        row_to_float(x + (size_t)t * dim, row, W->type, dim);
    }
    for (size_t j = 0; j < (size_t)T * dim && scale != 1; j++) x[j] *= scale;
}

/* x += xb, or norm(xb) */
static void add_branch(GlaState *s, float *x, Norm post, int T) {
    const Config *c = &s->m->config;
    if (post.w) norm_rows(&s->team, c, s->xb, s->xb, post, T);
    for (size_t j = 0; j < (size_t)T * (size_t)c->dim; j++) x[j] += s->xb[j];
}

/* -- multi-token prediction: what the token after next may be, for drafts --
 * The hidden row h_p of a position, what the head reads, says what token p + 1 is. A block behind
 * the layers, with a cache of its own, makes of h_p and of token p + 1, which is known by then, a
 * row that stands for h_(p+1) and says what token p + 2 may be; and so on from its own rows.
 *                                                                   (arXiv 2412.19437, 2.2)
 *   x = W [norm(embed(token p + 1)) ; norm(h_p)];  x = layer(x);  out = norm(x)
 *
 * Positions are those of the cache, of which only differences count. */

/* x (n, dim) = W [norm(embed(token)) ; norm(h)] of the hidden rows h (n, dim), which xb may hold,
 * and of the tokens behind them. */
static void mtp_join(GlaState *s, const float *h, const int32_t *tokens, int n) {
    const Mtp *w = &s->m->mtp;
    const Config *c = &s->m->config;
    const size_t dim = (size_t)c->dim;
    float *halves[2] = {s->x, s->xb}, *pair = s->rows; /* pair: (n, 2 dim) */
    norm_rows(&s->team, c, halves[1], h, w->hidden, n);
    embed(halves[0], &w->embed, c->embed_scale, tokens, n);
    norm_rows(&s->team, c, halves[0], halves[0], w->token, n);
    for (size_t t = 0; t < (size_t)n; t++)
        for (size_t i = 0; i < 2; i++)
            memcpy(pair + (2 * t + i) * dim, halves[i] + t * dim, dim * sizeof *pair);
    matmul_rows(&s->team, s->x, &w->join, pair, n);
}

/* The entries of the first n rows of x, d->len .. of the cache: keys and values, and no more. */
static void mtp_keys(GlaState *s, int n) {
    const Layer *y = s->m->mtp.layer;
    float *to = s->rows;
    Run run = {.team = &s->team, .T = n, .pos = s->mtp.len, .turns = s->turns,
               .turn_floats = s->m->turn_floats, .cache = cache_shape(y, s->kv_type)};
    run.cache.mem = s->mtp.kv;
    for (int j = IN_K; j <= IN_F; j++) {
        if (!y->in[j].w.data) continue;
        run.in[j] = to, to += (size_t)n * round_up((size_t)proj_out(&y->in[j]), LANES);
    }
    rope_tables(s, s->mtp.len, n);
    norm_rows(&s->team, &s->m->config, s->xb, s->x, y->norm, n);
    project(&s->team, run.in + IN_K, y->in + IN_K, IN_F + 1 - IN_K, s->xb, n, s->mid);
    keep_keys(&run, y);
}

/* The row x (dim), whose entry is that at d->len, through the layer; xb (dim) = norm(x) */
static void mtp_row(GlaState *s, float *x) {
    const Mtp *w = &s->m->mtp;
    const Config *c = &s->m->config;
    const Layer *y = w->layer;
    rope_tables(s, s->mtp.len, 1);
    norm_rows(&s->team, c, s->xb, x, y->norm, 1);
    mix(s, y, s->mtp.kv, s->mtp.len, 1);
    add_branch(s, x, y->post_norm, 1);
    norm_rows(&s->team, c, s->xb, x, y->ffn.norm, 1);
    feed_forward(s, y, 1);
    add_branch(s, x, y->ffn.post_norm, 1);
    norm_rows(&s->team, c, s->xb, x, w->out, 1);
}

/* The positions that waited for the token behind them, `next` behind the last of them, get their
 * entries. want: the row that the block makes of the last one is left in xb. Returns how many there
 * were. */
static int mtp_follow(GlaState *s, int32_t next, int want) {
    MtpState *d = &s->mtp;
    const size_t dim = (size_t)s->m->config.dim;
    const int64_t from = max64(d->at, d->end);
    const int skip = (int)(from - d->at), n = d->n - skip;
    if (!d->h || n <= 0 || n > d->cap || d->at + d->n != s->pos) return 0;
    if (n > d->cap - d->len) d->len = 0; /* the cache is full: it begins anew */
    int32_t *ids = d->ids + skip; /* of the hidden rows; they move up by one */
    memmove(ids, ids + 1, (size_t)(n - 1) * sizeof *ids);
    ids[n - 1] = next;
    mtp_join(s, d->h + (size_t)skip * dim, ids, n);
    if (n > want) mtp_keys(s, n - want);
    d->len += n - want;
    if (want) mtp_row(s, s->x + (size_t)(n - 1) * dim), d->len++;
    d->end = s->pos;
    return n;
}

/* Up to max tokens that may follow `next`, which the state has not read yet; returns how many. */
static int mtp_draft(GlaState *s, int32_t next, int32_t *drafts, int max) {
    MtpState *d = &s->mtp;
    if (max < 1 || !mtp_follow(s, next, 1)) return 0;
    const int len = d->len;
    for (int n = 1;; n++) {
        int best = 0;
        matmul_rows(&s->team, d->logits, &s->m->mtp.head, s->xb, 1);
        for (int i = 1; i < s->m->mtp.head.n_out; i++) if (d->logits[i] > d->logits[best]) best = i;
        drafts[n - 1] = best;
        if (n == max || d->len == d->cap) {
            d->len = len; /* without the entries of rows that only stand for hidden ones */
            return n;
        }
        mtp_join(s, s->xb, &drafts[n - 1], 1);
        mtp_row(s, s->x), d->len++;
    }
}

/* The T positions from pos on, whose hidden rows are in d->h, wait. */
static void mtp_note(GlaState *s, const int32_t *ids, int T) {
    MtpState *d = &s->mtp;
    if (!d->h) return;
    memcpy(d->ids, ids, (size_t)T * sizeof *ids);
    d->at = s->pos, d->n = T;
}

/* Reads ids[0..T), T <= batch; the last n_logits positions leave rows of logits. When it was
 * stopped the position has not moved, and the memory is that of no text. */
static void forward(GlaState *s, const int32_t *ids, int T, float *logits, int n_logits) {
    const GlaModel *m = s->m;
    const Config *c = &m->config;
    const Team *team = &s->team;
    Sources sources = {s->x, 1, (size_t)s->batch * (size_t)c->dim, (size_t)c->dim};
    const size_t dim = (size_t)c->dim;
    float *x = s->x; /* the residual stream (T, dim); with residual attention the source being
                        summed */

    (void)mtp_follow(s, ids[0], 0);
    s->mtp.n = 0; /* their rows will be overwritten */
    // x = rows of the embedding
    embed(x, &m->embed, c->embed_scale, ids, T);
    if (m->embed_norm.w) norm_rows(team, c, x, x, m->embed_norm, T);

    rope_tables(s, s->pos, T);
    for (int i = 0; i < c->n_layers; i++) {
        const Layer *y = &m->layers[i];
        for (int ffn = 0; ffn <= (y->ffn.down.data != NULL); ffn++) { /* the mixer, then the
                                                                         feed-forward,
                                                                             if there is one */
            const float *in = x;
            if (c->res_block) {
                mix_sources(s->xb, &sources, y->res.proj[ffn], y->res.norm[ffn], y->eps, T);
                in = s->xb;
                if ((2 * i + ffn) % c->res_block == 0) { /* a new source begins */
                    x += sources.step, sources.n++;
                    memset(x, 0, (size_t)T * dim * sizeof(float));
                }
            }

            // xb = norm(x)
            norm_rows(team, c, s->xb, in, ffn ? y->ffn.norm : y->norm, T);

            if (!ffn) {
                mix(s, y, kv_of(s, y), s->pos, T);
            } else if (y->ffn.lerp_k) {
                mix_channels(s, y, T);
            } else {
                feed_forward(s, y, T);
            }

            // x += xb, or norm(xb)
            add_branch(s, x, ffn ? y->ffn.post_norm : y->post_norm, T);
            if (stopped(team)) { s->within = 0; return; }
        }
        if (c->rescale && (i + 1) % c->rescale == 0) /* RWKV-6 */
            for (size_t j = 0; j < (size_t)T * dim; j++) x[j] *= 0.5f;
        s->within = (int64_t)T * (i + 1) / c->n_layers;
    }

    // h = norm(x), logits = head(h), only where they are wanted; drafts want every h
    float *h = s->mtp.h ? s->mtp.h : s->xb;
    const int n_rows = s->mtp.h ? T : n_logits;
    const float *last = x + (size_t)(T - n_rows) * dim;
    if (n_rows && c->res_block) {
        sources.x = s->x + (size_t)(T - n_rows) * dim;
        mix_sources(s->xb, &sources, m->res_proj, m->res_norm, c->eps, n_rows);
        last = s->xb;
    }
    if (n_rows) norm_rows(team, c, h, last, m->out_norm, n_rows);
    if (n_logits) {
        matmul_rows(team, logits, &m->head, h + (size_t)(n_rows - n_logits) * dim, n_logits);
        size_t n = (size_t)n_logits * (size_t)c->vocab_size;
        if (c->softcap > 0) cap_rows(team, logits, c->softcap, n);
    }
    s->within = 0;
    if (stopped(team)) return;
    mtp_note(s, ids, T);
    s->pos += T, s->evaluated += T;
}

static int check_room(const GlaState *s, int64_t n, char *err) { /* for n more tokens */
    char behind[48] = "";
    if (s->pos) snprintf(behind, sizeof behind, " behind the %lld that were read",
                         (long long)s->pos);
    if (s->m->config.limit && n > s->m->config.limit - s->pos)
        return fail(err, GLA_CONTEXT,
                    "%lld tokens do not fit%s: this model counts no more than %d positions",
                    (long long)n, behind, s->m->config.limit);
    if (s->m->kv_floats && n > s->ctx - s->pos)
        return fail(err, GLA_CONTEXT, "%lld tokens do not fit%s in a context of %d; "
                    "give a larger one (-c)", (long long)n, behind, s->ctx);
    return GLA_OK;
}

GLA_API int gla_eval(GlaState *s, const int32_t *ids, int64_t n, float *logits, int64_t n_logits,
                     char *err) {
    int vocab = s->m->config.vocab_size;
    if (n < 0 || n_logits < 0 || n_logits > n)
        return fail(err, GLA_INPUT, "%lld tokens with logits of %lld", (long long)n,
                    (long long)n_logits);
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= vocab)
            return fail(err, GLA_INPUT, "token %lld is %d, the model has 0 to %d", (long long)i,
                        ids[i], vocab - 1);
    int code = check_room(s, n, err);
    if (code) return code;
    settle_ahead(s);
    const int64_t before = s->pos;
    for (int64_t i = 0; i < n; i += s->batch) {
        int T = (int)min64(s->batch, n - i);
        int64_t first = n - n_logits, rows = min64(T, i + T - first); /* positions of this run whose
                                                                         logits the caller wants */
        if (rows > 0) {
            forward(s, ids + i, T, logits + (size_t)(i + T - rows - first) * (size_t)vocab,
                    (int)rows);
            if (i + T == n) memcpy(s->logits, logits + (size_t)(n_logits - 1) * (size_t)vocab,
                                   (size_t)vocab * sizeof(float));
        } else forward(s, ids + i, T, s->logits, i + T == n);
        if (s->pos != before + i + T) return GLA_DONE_CALLER; /* stopped: only read_ids asks for
                                                                 that */
        history_note(&s->history, before + i, ids + i, T);
    }
    return GLA_OK;
}

/* -- tokens that are read ahead, second part -- */

/* Only what the text has of a run stays. A session's bytes, too, are as if no more had been read. */
static void take_back(GlaState *s) {
    const GlaModel *m = s->m;
    Ahead *a = &s->ahead;
    const int T = a->at;
    const int64_t begin = s->pos - T, end = begin + a->n;
    a->n = a->at = 0;
    memset(a->zeros, 0, m->widest_kv * sizeof *a->zeros);
    mtp_cut(&s->mtp, s->pos);
    if (m->fixed_floats) rope_tables(s, begin, T);
    for (int i = 0; i < m->config.n_layers; i++) {
        const Layer *y = &m->layers[i];
        if (y->mem.fixed) replay(s, y, begin, T);
        if (!y->mixer->grows) continue;
        Cache c = cache_shape(y, s->kv_type);
        c.mem = kv_of(s, y);
        for (int64_t pos = s->pos; pos < end && pos % KEYS; pos++)
            cache_append(&c, pos, a->zeros, a->zeros, (const double *)(const void *)a->zeros);
    }
}

/* The next token that was read ahead becomes one of the text. */
static void go_ahead(GlaState *s) {
    const size_t vocab = (size_t)s->m->config.vocab_size;
    Ahead *a = &s->ahead;
    memcpy(s->logits, a->logits + (size_t)a->at * vocab, vocab * sizeof(float));
    history_note(&s->history, s->pos, &a->ids[a->at], 1);
    s->pos++, s->evaluated++;
    if (++a->at == a->n) a->n = a->at = 0;
}

/* Is id what was read ahead? Then it is read. */
static int is_ahead(GlaState *s, int32_t id) {
    const Ahead *a = &s->ahead;
    if (a->at == a->n || a->ids[a->at] != id) return 0;
    go_ahead(s);
    return 1;
}

/* Reads ids[0], and ahead of the text the n - 1 tokens behind it; n <= cap, and there is room. */
static void read_ahead(GlaState *s, const int32_t *ids, int n) {
    Ahead *a = &s->ahead;
    settle_ahead(s);
    memcpy(a->ids, ids, (size_t)n * sizeof *ids);
    a->n = n, a->at = 0, a->take_back = take_back;
    forward(s, ids, n, a->logits, n);
    s->pos -= n, s->evaluated -= n;
    go_ahead(s);
}

/* ---- 11. tokenizer: text to ids and back -------------------------------------------------------
 * A GGUF file brings its vocabulary along. tokenizer.ggml.model says of which kind:
 *
 *   "gpt2"    byte-level BPE. Added tokens ("<|im_end|>") are cut out of the text; the rest is
 *             normalised (NFC) where the model has it so, and cut into pieces ("Hello", " world",
 *             "!"). A piece starts as single bytes; of all adjacent pairs the one that stands
 *             first in the file's list of merges is joined, until no pair is in the list.
 *   "llama"   SentencePiece BPE. No pieces; spaces become U+2581; the pair whose joined text is
 *             the token of the highest score goes first; characters without a token are spelled
 *             in byte tokens <0x00> .. <0xFF>.
 *   "gemma4"  both: characters and U+2581 as in "llama", merges and pieces (lines) as in "gpt2".
 *   "rwkv"    no merging: always the longest token that the rest of the text begins with.
 *
 * Ids are those of HuggingFace tokenizers (RWKV: of its own), which the models were trained with.
 * Any bytes are text: one that is not UTF-8 counts as a character of its own and comes back on
 * decoding. A Tokenizer is read-only once made, so threads may share one; token texts stay in the
 * mapped file. Time is linear in the text (n log n within a piece), whatever the vocabulary.
 * Encoding allocates scratch memory, 40 to 80 bytes for each of the longest piece; decoding none.
 *
 * In order: ids; Unicode; tries; expressions, which cut text into pieces, and the rows of all of
 * them by name; loading; merging; encoding; decoding; the Unicode tables; how a model and its
 * vocabulary are opened; the interface. */

/* Symbols are: bytes; characters; there are none. */
enum { VOCAB_NONE, VOCAB_BPE, VOCAB_SPM, VOCAB_LONGEST };
enum { BY_MERGES, BY_SCORE, BY_ID };                        /* which pair is joined first */
/* Where a space is added: nowhere; before a text; before each part of it that stands between added
 * tokens; before each that does in the raw text. */
enum { SPACE_NEVER, SPACE_FIRST, SPACE_ALWAYS, SPACE_PREPEND };
/* As in GGUF. */
enum { TYPE_NORMAL = 1, TYPE_UNKNOWN, TYPE_CONTROL, TYPE_USER_DEFINED, TYPE_UNUSED, TYPE_BYTE };
/* Habits of an added token; NORMAL: it has the type of words. */
enum { ADDED_LSTRIP = 1, ADDED_RSTRIP = 2, ADDED_WORD = 4, ADDED_NORMALIZED = 8,
       ADDED_NORMAL = 16 };
/* Bytes of the longest text in a trie: the most that is looked at for each byte. */
enum { TRIE_DEPTH = 256, TRIE_NODES = 1 << 24 };
enum { SPACE_MARK = 0x2581 };

/* The texts that are looked for in a text, letter by letter. Node 0 is the beginning. */
typedef struct {
    uint32_t root[256]; /* its children; the others' are in `edges`, under parent << 8 | byte */
    Table edges;
    int32_t *ids;               /* (n) per node: the token that ends here, or -1 */
    uint32_t n;
    size_t cap;
} Trie;

/* What is known of characters, unpacked from the strings at the end of this section: ascending
 * numbers, which begin with what is looked for. */
typedef struct {
    uint64_t *classes, *combining; /* runs: from here on << 8 | class; place of a mark, 0: none */
    uint64_t *parts;               /* c << 42 | a << 21 | b: c is a followed by b; b = 0: just a */
    uint64_t *pairs;               /* a << 42 | b << 21 | c, of those that compose again */
    size_t n_pairs;
    uint8_t low[0x800]; /* classes of one- and two-byte characters, without a search */
} Unicode;

/* An expression, ready for use: what kind a character is, and the automaton over kinds. See
 * "expressions" below. */
typedef struct {
    uint8_t low[0x800];                 /* kinds of one- and two-byte characters */
    /* (n_bounds) kinds change here, whatever the class; ascending, the first is 0x80. Owns what
     * next and kinds point to. */
    uint64_t *bounds;
    uint16_t *next; /* (states, n_kinds) next state << 1 | a match ends before this character */
    uint8_t *kinds;                     /* (n_bounds, 32) from each bound on, by class */
    int n_bounds, n_kinds;              /* the last kind is the end of the text */
    int threes;                         /* 0, *THREES or *BETWEEN */
} Splitter;
enum { MAX_SPLITS = 6 };

typedef struct PreTokenizer PreTokenizer;

/* What a vocabulary is like: its kind says, then the pre-tokenizer, then the keys of its file. */
typedef struct {
    const char *name, *what;            /* tokenizer.ggml.model; more about one that is not read */
    const char *pre; /* the pre-tokenizer, of "gpt2" where the file names none; NULL: has none */
    int model, space;                   /* VOCAB_..., SPACE_... */
    int32_t bos, eos, unk;              /* -1: none */
    int add_bos, add_eos;               /* what encoding puts around a text */
    int byte_fallback, fuse_unk; /* characters without a token: byte tokens; else one unk for a row */
    int nfc;                            /* text is normalised */
    /* a piece that is a token needs no merges; one of line ends only does not */
    int whole, whole_lines;
} VocabKind;

struct Tokenizer {
    int32_t n;                          /* tokens; 0: the file has no vocabulary */
    VocabKind kind;
    const PreTokenizer *pre;            /* NULL: text is not cut into pieces */
    Splitter *splits;                   /* (n_splits) each cuts the pieces of the one before */
    int n_splits;
    Str *tokens;                        /* (n) texts; "gpt2" spells bytes as byte_char does */
    char *unescaped;                    /* "rwkv": where they are */
    size_t longest;                     /* bytes of the longest token text */
    Table vocab;                        /* text -> id + 1 */
    GgufArray types;                    /* (n) TYPE_..., or empty: all normal */
    int order;                          /* BY_... */
    GgufArray scores, merges;           /* (n) floats; lines "left right" */
    Table lines;                        /* line -> where it lies in merges, + 1: its rank */
    int tells_words;                    /* words are pieces of their own */
    uint8_t binds[256];                 /* by byte, see load_binds */
    Trie added[2]; /* tokens that are found in the raw text; in the normalised one */
    Trie words;                         /* "rwkv" */
    uint8_t *habits;                    /* (n) ADDED_..., or NULL: none has any */
    int32_t byte_id[256];               /* the token of a single byte, or -1 */
    int32_t end[32];                    /* tokens that end a generation */
    int n_end;
    Unicode unicode;
};

/* -- ids -- */

typedef struct { int32_t *id; int64_t n; size_t cap; } Ids;

static int ids_add(Ids *a, const int32_t *ids, int64_t n, char *err) {
    if (n == 0) return GLA_OK;
    int32_t *id = grow(a->id, (size_t)a->n, (size_t)n, &a->cap, sizeof *id);
    if (!id) return fail(err, GLA_MEMORY, "no memory for %lld token ids", (long long)(a->n + n));
    a->id = id;
    memcpy(a->id + a->n, ids, (size_t)n * sizeof *ids);
    a->n += n;
    return GLA_OK;
}
static void ids_free(Ids *a) { gla_free(a->id); *a = (Ids){NULL, 0, 0}; }

/* -- Unicode: bytes as characters, classes of characters, NFC -- */

/* "gpt2" files write a byte as a visible character: Latin-1 where it is one, else U+0100, U+0101
 * ... in order, so that a space is U+0120. char_byte is the way back, or -1. */
static uint32_t byte_char(uint8_t b) {
    if (b == 0xAD) return 0x143;
    return b < 0x21 ? 0x100u + b : b < 0x7F ? b : b <= 0xA0 ? 0x121u + b - 0x7F : b;
}

static int char_byte(uint32_t c) {
    if (c == 0x143) return 0xAD;
    if (c >= 0x100 && c < 0x143) return (int)(c < 0x121 ? c - 0x100 : c - 0x121 + 0x7F);
    return c < 0x100 && byte_char((uint8_t)c) == c ? (int)c : -1;
}

/* Classes of characters; \w has letters, marks, digits and ..._WORD. In the tables only: CH_PAIRS, a
 * run of upper and lower in turn, and CH_UNSETTLED, NFC may change it or join it to the one before.
 * CH_HAN goes with any: a character of the Han script. */
enum { CH_OTHER, CH_UPPER, CH_LOWER, CH_TITLE, CH_MODIFIER, CH_LETTER, CH_MARK, CH_DIGIT, CH_NUMBER,
       CH_NUMBER_WORD, CH_PUNCT, CH_PUNCT_WORD, CH_SYMBOL, CH_SYMBOL_WORD, CH_SPACE, CH_PAIRS,
       CH_HAN = 16, CH_UNSETTLED = 32, N_CH = 32 };
#define CLASS(c) (1u << (c) | 1u << ((c) + CH_HAN))         /* sets of classes */
#define LETTERS \
    (CLASS(CH_UPPER) | CLASS(CH_LOWER) | CLASS(CH_TITLE) | CLASS(CH_MODIFIER) | CLASS(CH_LETTER))
#define WORD_CLASSES \
    (LETTERS | CLASS(CH_MARK) | CLASS(CH_DIGIT) | CLASS(CH_NUMBER_WORD) | CLASS(CH_PUNCT_WORD) \
     | CLASS(CH_SYMBOL_WORD))
enum { N_CLASSES = 2827, N_COMBINING = 667, N_COMPOSITES = 2060 };

/* The last of n numbers, which ascend, that is at most x; the first where none is. */
static size_t last_up_to(const uint64_t *numbers, size_t n, uint64_t x) {
    size_t lo = 0;
    for (size_t hi = n; hi - lo > 1;) {
        const size_t mid = lo + (hi - lo) / 2;
        if (numbers[mid] <= x) lo = mid;
        else hi = mid;
    }
    return lo;
}
/* Of numbers key << bits | value the last whose key is at most this one. */
static uint64_t find_fact(const uint64_t *facts, size_t n, uint64_t key, int bits) {
    return facts[last_up_to(facts, n, ((key + 1) << bits) - 1)];
}

static int run_class(const Unicode *u, uint32_t c) {
    const uint64_t run = find_fact(u->classes, N_CLASSES, c, 8);
    if ((run & 0xFF) != CH_PAIRS) return (int)(run & 0xFF);
    return (c - (run >> 8)) & 1 ? CH_LOWER : CH_UPPER;
}
static int char_class(const Unicode *u, uint32_t c) {       /* CH_..., with CH_UNSETTLED */
    return c < sizeof u->low ? u->low[c] : run_class(u, c);
}

/* Is the class of the character at s[at], or of the one that ends there, in this set? */
static int class_at(const Unicode *u, Str s, size_t at, uint32_t set, size_t *len) {
    return at < s.n && set >> (char_class(u, char_at(s, at, len)) & (N_CH - 1)) & 1;
}
static int class_before(const Unicode *u, Str s, size_t at, uint32_t set) {
    size_t from = at, len;
    if (!at) return 0;
    do from--; while (from && at - from < 4 && ((uint8_t)s.s[from] & 0xC0) == 0x80);
    const uint32_t c = utf8_read(s.s + from, at - from, &len);
    return set >> (char_class(u, from + len == at ? c : BAD_BYTE) & (N_CH - 1)) & 1;
}

/* Where the white space from `at` on ends; where that which ends at `at` begins, not before from. */
static size_t blanks_end(const Unicode *u, Str s, size_t at) {
    for (size_t len; class_at(u, s, at, CLASS(CH_SPACE), &len); at += len) {}
    return at;
}
static size_t blanks_begin(const Unicode *u, Str s, size_t from, size_t at) {
    while (at > from && class_before(u, s, at, CLASS(CH_SPACE)))
        do at--; while (at > from && ((uint8_t)s.s[at] & 0xC0) == 0x80);
    return at;
}

/* Canonical composition (NFC): "e" and U+0301 become U+00E9, marks on one letter get their
 * standard order. Korean syllables are composed by arithmetic: leading consonant L, vowel V,
 * perhaps a trailing consonant T. */
enum { HANGUL = 0xAC00, N_HANGUL = 11172, JAMO_L = 0x1100, N_L = 19, JAMO_V = 0x1161, N_V = 21,
       JAMO_T = 0x11A7, N_T = 28, A_CHAR = 0x1FFFFF };

static size_t decompose(const Unicode *u, uint32_t c, uint64_t *out) { /* into 1 to 4 characters */
    const uint32_t k = c - HANGUL;
    if (k < N_HANGUL) {
        out[0] = JAMO_L + k / (N_V * N_T);
        out[1] = JAMO_V + k / N_T % N_V;
        out[2] = JAMO_T + k % N_T;
        return k % N_T ? 3 : 2;
    }
    const uint64_t found = find_fact(u->parts, N_COMPOSITES, c, 42);
    out[0] = c;
    if (found >> 42 != c) return 1;
    const size_t n = decompose(u, found >> 21 & A_CHAR, out);
    return found & A_CHAR ? n + decompose(u, found & A_CHAR, out + n) : n;
}

/* What a followed by b is as one character, or 0. */
static uint32_t compose(const Unicode *u, uint32_t a, uint32_t b) {
    const uint32_t syllable = a - HANGUL, last = b - JAMO_T - 1;
    const uint64_t both = (uint64_t)a << 21 | b;
    if (a - JAMO_L < N_L && b - JAMO_V < N_V)
        return HANGUL + ((a - JAMO_L) * N_V + b - JAMO_V) * N_T;
    if (syllable < N_HANGUL && syllable % N_T == 0 && last < N_T - 1) return a + last + 1;
    const uint64_t found = find_fact(u->pairs, u->n_pairs, both, 21);
    return found >> 21 == both ? found & A_CHAR : 0;
}

static int by_value(const void *x, const void *y) {
    const uint64_t a = *(const uint64_t *)x, b = *(const uint64_t *)y;
    return a < b ? -1 : a > b;
}

/* Order and compose the m characters of q in place; returns how many remain. */
static size_t compose_run(const Unicode *u, uint64_t *q, size_t m) {
    size_t n = 0, base = SIZE_MAX, end;
    /* place << 56 | i << 24 | character: sorting leaves equals in their order */
    for (size_t i = 0; i < m; i++) {
        const uint64_t place = find_fact(u->combining, N_COMBINING, q[i], 8) & 0xFF;
        q[i] |= place << 56 | (uint64_t)i << 24;
    }
    for (size_t i = 0; i < m; i = end + 1) {
        for (end = i; end < m && q[end] >> 56; end++) {}
        if (end - i > 1) qsort(q + i, end - i, sizeof *q, by_value);
    }
    for (size_t i = 0; i < m; i++) {
        const uint32_t c = q[i] & A_CHAR, place = (uint32_t)(q[i] >> 56);
        /* c reaches the base letter if nothing stands between, or only marks of lower places. */
        const int reaches = base != SIZE_MAX && (base + 1 == n || q[n - 1] >> 56 < place);
        const uint32_t both = reaches ? compose(u, q[base] & A_CHAR, c) : 0;
        if (both) { q[base] = both; continue; }
        if (place == 0) base = n;
        q[n++] = (uint64_t)place << 56 | c;
    }
    return n;
}

/* s, or in *out what it is in NFC: a character and those behind it that NFC may change are a run that
 * no other touches; nearly every text has none. */
static Str nfc(const Unicode *u, Str s, Text *out) {
    uint64_t *q = NULL;                         /* characters of a run */
    size_t room = 0, done = 0, begin = 0, len;
    for (size_t at = 0, k = 0; at < s.n && !out->bad; k = 0) {
        const size_t from = at;
        while (at < s.n && char_class(u, char_at(s, at, &len)) & CH_UNSETTLED) at += len;
        if (at == from) {
            begin = at;
            at += len;
            continue;
        }
        uint64_t *more = grow(q, 0, 4 * (at - begin), &room, sizeof *q);
        text_put(out, s.s + done, begin - done);
        out->bad |= !more;
        if (!more) break;
        q = more;
        for (size_t i = begin; i < at; i += len) k += decompose(u, char_at(s, i, &len), q + k);
        k = compose_run(u, q, k);
        for (size_t i = 0; i < k; i++) {
            char c[4];
            text_put(out, c, utf8_write(c, q[i] & A_CHAR));
        }
        begin = done = at;
    }
    gla_free(q);
    if (!out->s) return s;
    text_put(out, s.s + done, s.n - done);
    return (Str){out->s, out->n};
}

/* -- tries: the longest of many texts -- */

static uint32_t trie_step(const Trie *t, uint32_t node, uint8_t byte) {     /* the child, or 0 */
    if (!node) return t->root[byte];
    const uint32_t key = node << 8 | byte;
    size_t step = 0;
    Slot *slot = table_next(&t->edges, key, &step);         /* equal hashes are equal keys here */
    return slot ? slot->value : 0;
}

static void trie_free(Trie *t) { gla_free(t->ids); gla_free(t->edges.slots); }

/* Of equal texts the first counts. what: a name for the texts. */
static int trie_add(Trie *t, Str s, int32_t id, const char *what, char *err) {
    int32_t *ids = grow(t->ids, t->n, s.n + 1, &t->cap, sizeof *ids);
    if (ids) t->ids = ids;
    if (!t->n) t->n = 1;
    if (!ids || !table_room(&t->edges, t->n + s.n))
        return fail(err, GLA_MEMORY, "no memory for %s", what);
    uint32_t node = 0;
    for (size_t i = 0; i < s.n; i++) {
        const uint8_t byte = (uint8_t)s.s[i];
        const uint32_t key = node << 8 | byte;
        uint32_t child = trie_step(t, node, byte);
        size_t step = 0;
        if (!child) {
            Slot *slot = node ? table_next(&t->edges, key, &step) : NULL;
            if (t->n == TRIE_NODES || (node && !slot))
                return fail(err, GLA_UNSUPPORTED, "%s: too many letters, or too many of them share "
                            "one hash value", what);
            child = t->n++;
            t->ids[child] = -1;
            if (slot) *slot = (Slot){key, child};
            else t->root[byte] = child;
        }
        node = child;
    }
    if (t->ids[node] < 0) t->ids[node] = id;
    return GLA_OK;
}

/* The longest text of the trie that s begins with: its id, or -1; *len: its bytes. */
static int32_t trie_longest(const Trie *t, Str s, size_t *len) {
    int32_t best = -1;
    uint32_t node = s.n ? t->root[(uint8_t)*s.s] : 0;
    for (size_t i = 1; node; i++) {
        if (t->ids[node] >= 0) best = t->ids[node], *len = i;
        node = i < s.n ? trie_step(t, node, (uint8_t)s.s[i]) : 0;
    }
    return best;
}

/* -- expressions: regular expressions that cut text into pieces --
 * One is read when a vocabulary is loaded, in three steps:
 *
 *   sets       Every set of characters in it ("\p{L}", "[^\s\p{N}]", "x") is asked about every
 *              character; those that all sets answer alike for are one kind. From then on a text
 *              is a row of kinds, ten or twenty of them.
 *   program    The expression as a list of steps: take a character of a set, look ahead at one,
 *              fork, done.
 *   automaton  All ways through the program at once: a state is the list of steps where a matcher
 *              may stand, the way it would try first at the front. Where one is done, those behind
 *              it are dropped. So the match is the one that a backtracking matcher finds, with
 *              alternatives in order and repeats as long as possible, in one look per character.
 *
 *   alternatives   sequence { '|' sequence }
 *   sequence       { item }
 *   item           atom [ '?' | '*' | '+' | '{' n '}' | '{' n ',' m '}' ] [ '+' ]
 *   atom           '(' [ '?:' | '?i:' ] alternatives ')' | set
 *                  | '(?=' set ')' | '(?!' set ')'
 *   set            member | '[' [ '^' ] { member } [ '&&' set ] ']'
 *   member         character [ '-' character ] | '\p{' property '}' | '\s' | '\S' | '\d' | '\w'
 *   character      itself | '\' itself | '\r' | '\n' | '\t' | '\x{' hexadecimal '}'
 *
 * The '+' behind a repeat keeps what was taken, which changes nothing in any expression here. What
 * an automaton cannot do, to count from the right, is said in front of an expression: */
#define THREES "\1"     /* a match is cut into threes that are counted from its end */
#define BETWEEN "\2"    /* likewise, and there only: it stays with what is around it */

static const struct { const char *name; uint32_t classes; } properties[] = {
    { "\\s", CLASS(CH_SPACE) }, { "\\S", ~CLASS(CH_SPACE) },
    { "\\d", CLASS(CH_DIGIT) }, { "\\w", WORD_CLASSES }, { "\\p{L}", LETTERS },
    { "\\p{Lu}", CLASS(CH_UPPER) }, { "\\p{Ll}", CLASS(CH_LOWER) }, { "\\p{Lt}", CLASS(CH_TITLE) },
    { "\\p{Lm}", CLASS(CH_MODIFIER) }, { "\\p{Lo}", CLASS(CH_LETTER) }, { "\\p{M}", CLASS(CH_MARK) },
    { "\\p{N}", CLASS(CH_DIGIT) | CLASS(CH_NUMBER) | CLASS(CH_NUMBER_WORD) },
    { "\\p{P}", CLASS(CH_PUNCT) | CLASS(CH_PUNCT_WORD) },
    { "\\p{S}", CLASS(CH_SYMBOL) | CLASS(CH_SYMBOL_WORD) }, { "\\p{Han}", 0xFFFF0000 },
};

enum { MAX_SETS = 64, MAX_MEMBERS = 512, MAX_KINDS = 40, MAX_BOUNDS = 512, MAX_STEPS = 2048,
       MAX_STATES = 2048, MAX_LISTS = 1 << 15, /* enough for all that are written below */
       NOWHERE = 0xFFFF };
typedef struct { uint32_t first, last, classes; } Member; /* a range of characters, or classes */
/* fold: in any case; also: the set that it has to be in, too, or NOWHERE */
typedef struct { const char *text; int length, fold, inverted, from, n; uint16_t also; } CharSet;
enum { STEP_TAKE, STEP_AHEAD, STEP_UNLESS, STEP_FORK, STEP_DONE };
/* UNLESS: (?!set), which is true at the end of the text as well; FORK: first to `to`, then to
 * `other` */
typedef struct { uint16_t what, set, to, other; } Move;
typedef struct {
    const char *at;                                 /* in the expression */
    CharSet sets[MAX_SETS];
    Member members[MAX_MEMBERS];                    /* of the sets, one behind the other */
    uint64_t bounds[MAX_BOUNDS];                    /* as in a Splitter */
    uint8_t kinds[MAX_BOUNDS * N_CH];
    uint64_t answers[MAX_KINDS];                    /* per kind: bit i for set i */
    Move steps[MAX_STEPS];
    /* of the states, one behind the other, and where each begins: 0, the empty list, when nothing
     * can match any more; 1, the beginning */
    uint16_t lists[MAX_LISTS];
    size_t lists_at[MAX_STATES + 1], used;
    Slot by_list[2 * MAX_STATES];                   /* states by the hash of their lists */
    uint16_t next[MAX_STATES * MAX_KINDS];
    uint32_t seen[MAX_STEPS], round;                /* steps that were come by in this round */
    int n_sets, n_members, n_bounds, n_kinds, n_steps, n_states;
} Regex;

static uint32_t read_char(Regex *r) {
    uint32_t c = (uint8_t)*r->at++;
    if (c != '\\') return c;
    c = (uint8_t)*r->at++;
    if (c != 'x') return c == 'r' ? '\r' : c == 'n' ? '\n' : c == 't' ? '\t' : c;
    char *close;
    c = (uint32_t)strtoul(r->at + 1, &close, 16);
    r->at = close + 1;
    return c;
}

static void add_bound(Regex *r, uint32_t c) {               /* sorted, each once */
    int i = r->n_bounds;
    while (i && r->bounds[i - 1] > c) i--;
    if (c < 0x80 || (i && r->bounds[i - 1] == c)) return;
    assert(r->n_bounds < MAX_BOUNDS);
    memmove(r->bounds + i + 1, r->bounds + i, (size_t)(r->n_bounds++ - i) * sizeof *r->bounds);
    r->bounds[i] = c;
}

static void read_member(Regex *r) {
    Member m = {1, 0, 0};
    for (size_t i = 0; *r->at == '\\' && i < sizeof properties / sizeof *properties; i++) {
        const size_t n = strlen(properties[i].name);
        if (strncmp(r->at, properties[i].name, n)) continue;
        m.classes = properties[i].classes;
        r->at += n;
        break;
    }
    if (!m.classes) {
        m.first = m.last = read_char(r);
        if (*r->at == '-') r->at++, m.last = read_char(r);
        add_bound(r, m.first);
        add_bound(r, m.last + 1);
    }
    assert(r->n_members < MAX_MEMBERS);
    r->members[r->n_members++] = m;
}

static uint16_t read_set(Regex *r, int fold) {              /* its number; equal sets are one */
    CharSet set = { .text = r->at, .fold = fold, .from = r->n_members, .also = NOWHERE };
    if (*r->at != '[') read_member(r), set.n = 1;
    else {
        set.inverted = *++r->at == '^';
        for (r->at += set.inverted; *r->at != ']';)
            if (!strncmp(r->at, "&&", 2)) r->at += 2, set.also = read_set(r, fold);
            else read_member(r), set.n++;
        r->at++;
    }
    set.length = (int)(r->at - set.text);
    for (int i = 0; i < r->n_sets; i++) {
        const CharSet *s = &r->sets[i];
        if (s->fold != fold || s->length != set.length) continue;
        if (memcmp(s->text, set.text, (size_t)set.length)) continue;
        r->n_members = set.from;
        return (uint16_t)i;
    }
    assert(r->n_sets < MAX_SETS);
    if (fold) add_bound(r, 0x17F), add_bound(r, 0x180), add_bound(r, 0x212A), add_bound(r, 0x212B);
    r->sets[r->n_sets] = set;
    return (uint16_t)r->n_sets++;
}

static int set_has(const Regex *r, const CharSet *s, uint32_t c, int class) {
    int found = 0;
    /* as far as our expressions need it: a long s is an s, the kelvin sign a k */
    if (s->fold) c = c - 'A' < 26 ? c + 32 : c == 0x17F ? 's' : c == 0x212A ? 'k' : c;
    for (const Member *m = r->members + s->from, *end = m + s->n; m < end && !found; m++)
        found = (c >= m->first && c <= m->last) || (m->classes >> class & 1);
    if (s->also != NOWHERE) found = found && set_has(r, &r->sets[s->also], c, class);
    return found != s->inverted;
}

/* The program. */
static uint16_t add_step(Regex *r, int what, uint16_t set, uint16_t to, uint16_t other) {
    assert(r->n_steps < MAX_STEPS);
    r->steps[r->n_steps] = (Move){(uint16_t)what, set, to, other};
    return (uint16_t)r->n_steps++;
}
static uint16_t fork_next(Regex *r, uint16_t other) {
    return add_step(r, STEP_FORK, 0, (uint16_t)(r->n_steps + 1), other);
}
/* The `other` of a fork, and of those chained to it, is the next step. */
static void arrive_here(Regex *r, uint16_t fork) {
    while (fork != NOWHERE) {
        const uint16_t chained = r->steps[fork].other;
        r->steps[fork].other = (uint16_t)r->n_steps;
        fork = chained;
    }
}

static void read_alternatives(Regex *r, int fold);

static void read_atom(Regex *r, int fold) {
    const int ahead = !strncmp(r->at, "(?=", 3), unless = !strncmp(r->at, "(?!", 3);
    if (*r->at != '(') add_step(r, STEP_TAKE, read_set(r, fold), 0, 0);
    else if (ahead || unless) {
        r->at += 3;
        add_step(r, ahead ? STEP_AHEAD : STEP_UNLESS, read_set(r, fold), 0, 0);
        r->at++;
    } else {
        fold |= !strncmp(r->at, "(?i:", 4);
        r->at += r->at[1] != '?' ? 1 : r->at[2] == 'i' ? 4 : 3;
        read_alternatives(r, fold);
        r->at++;
    }
}

static void read_item(Regex *r, int fold) {
    const char *atom = r->at;
    const int from = r->n_steps;
    long least = 1, most = 1;                       /* most 0: any number */
    uint16_t forks = NOWHERE;
    read_atom(r, fold);
    if (*r->at == '{') {
        char *close;
        least = most = strtol(r->at + 1, &close, 10);
        if (*close == ',') most = strtol(close + 1, &close, 10);
        r->at = close;
    } else if (*r->at && strchr("?*+", *r->at)) {
        least = *r->at == '+';
        most = *r->at == '?';
    } else return;
    const char *end = r->at + (r->at[1] == '+' ? 2 : 1);
    r->n_steps = from; /* written once more, as often as it is to be there */
    for (long i = 0; i < least || i < most || (!most && i == least); i++) {
        const uint16_t fork = (uint16_t)r->n_steps;
        if (i >= least) forks = fork_next(r, forks);
        r->at = atom;
        read_atom(r, fold);
        if (!most && i == least) add_step(r, STEP_FORK, 0, fork, NOWHERE);
    }
    arrive_here(r, forks);
    r->at = end;
}

static void read_alternatives(Regex *r, int fold) {
    uint16_t ends = NOWHERE;
    for (;; r->at++) {
        const uint16_t fork = fork_next(r, NOWHERE);
        while (*r->at && *r->at != '|' && *r->at != ')') read_item(r, fold);
        if (*r->at != '|') break;
        ends = add_step(r, STEP_FORK, 0, NOWHERE, ends);    /* to behind the last alternative */
        r->steps[fork].other = (uint16_t)r->n_steps;
    }
    arrive_here(r, ends);
}

/* Kinds. */
static uint8_t kind_for(Regex *r, uint32_t c, int class) {
    uint64_t answers = 0;
    int k = 0;
    for (int i = 0; i < r->n_sets; i++)
        answers |= (uint64_t)set_has(r, &r->sets[i], c, class & (N_CH - 1)) << i;
    while (k < r->n_kinds && r->answers[k] != answers) k++;
    assert(k < MAX_KINDS - 1);
    r->answers[k] = answers;
    r->n_kinds += k == r->n_kinds;
    return (uint8_t)k;
}

static unsigned char_kind(const Splitter *x, const Unicode *u, uint32_t c) { /* c >= 0x80 */
    const size_t bound = last_up_to(x->bounds, (size_t)x->n_bounds, c);
    return x->kinds[bound * N_CH + ((size_t)char_class(u, c) & (N_CH - 1))];
}

/* The automaton. A list of steps is filled with those that may come behind a character of this
 * kind; 1: a match ends before it. */
static int follow(Regex *r, uint16_t at, int kind) {
    if (at == NOWHERE || r->seen[at] == r->round) return 0;
    const Move *s = &r->steps[at];
    const int holds = (r->answers[kind] >> s->set & 1) != (s->what == STEP_UNLESS);
    r->seen[at] = r->round;
    switch (s->what) {
    case STEP_FORK: return follow(r, s->to, kind) || follow(r, s->other, kind);
    case STEP_DONE: return 1;
    case STEP_TAKE:
        if (holds) r->lists[r->used++] = (uint16_t)(at + 1);
        return 0;
    default: return holds && follow(r, (uint16_t)(at + 1), kind);
    }
}

static int state_for(Regex *r) { /* of the list that was written last */
    const Table by_list = {r->by_list, sizeof r->by_list / sizeof *r->by_list - 1};
    const size_t *at = r->lists_at, from = at[r->n_states], n = r->used - from;
    const uint64_t h = hash_bytes(HASH_SEED, r->lists + from, n * sizeof *r->lists);
    size_t step = 0;
    Slot *slot;
    while ((slot = table_next(&by_list, h, &step)) && slot->value) {
        const size_t i = slot->value - 1;
        if (at[i + 1] - at[i] != n) continue;
        if (memcmp(r->lists + at[i], r->lists + from, n * sizeof *r->lists)) continue;
        r->used = from;
        return (int)i;
    }
    assert(slot && r->n_states < MAX_STATES && r->used + MAX_STEPS <= MAX_LISTS);
    r->lists_at[++r->n_states] = r->used;
    *slot = (Slot){(uint32_t)h, (uint32_t)r->n_states};
    return r->n_states - 1;
}

static void find_states(Regex *r, int n_kinds) {
    state_for(r);
    r->lists[r->used++] = 0;
    state_for(r);
    for (int s = 1; s < r->n_states; s++)
        for (int kind = 0; kind < n_kinds; kind++) {
            int done = 0;
            r->round++;
            for (size_t i = r->lists_at[s]; i < r->lists_at[s + 1] && !done; i++)
                done = follow(r, r->lists[i], kind);
            r->next[s * n_kinds + kind] = (uint16_t)(state_for(r) << 1 | done);
        }
}

static int splitter_init(Splitter *x, const char *expression, const Unicode *u, char *err) {
    Regex *r = gla_alloc(sizeof *r);
    if (!r) return fail(err, GLA_MEMORY, "no memory for expressions");
    if (*expression <= *BETWEEN) x->threes = *expression++;
    r->at = expression;
    add_bound(r, 0x80);
    read_alternatives(r, 0);
    add_step(r, STEP_DONE, 0, 0, 0);
    for (uint32_t c = 0; c < 0x80; c++) x->low[c] = kind_for(r, c, u->low[c]);
    for (int i = 0; i < r->n_bounds * N_CH; i++)
        r->kinds[i] = kind_for(r, (uint32_t)r->bounds[i / N_CH], i % N_CH);
    find_states(r, r->n_kinds + 1);
    x->n_kinds = r->n_kinds + 1;
    x->n_bounds = r->n_bounds;
    const size_t n_bounds = (size_t)r->n_bounds, n_next = (size_t)(r->n_states * x->n_kinds);
    x->bounds = gla_alloc(n_bounds * (sizeof *x->bounds + N_CH) + n_next * sizeof *x->next);
    if (x->bounds) {
        x->next = memcpy(x->bounds + n_bounds, r->next, n_next * sizeof *x->next);
        x->kinds = memcpy(x->next + n_next, r->kinds, n_bounds * N_CH);
        memcpy(x->bounds, r->bounds, n_bounds * sizeof *x->bounds);
        for (uint32_t c = 0x80; c < sizeof x->low; c++) x->low[c] = (uint8_t)char_kind(x, u, c);
    }
    gla_free(r);
    return x->bounds ? GLA_OK : fail(err, GLA_MEMORY, "no memory for an expression");
}

/* Where the match that begins at s[at] ends; at: there is none. A way that goes on and on in one
 * state without a match, to fail in the end, is remembered: from none of these places does that
 * state lead to a match. Otherwise a long row of spaces could be read again for every piece of
 * it. */
typedef struct { unsigned state; size_t from, to; } Futile;

static size_t match_end(const Splitter *x, const Unicode *u, Str s, size_t at, Futile *futile) {
    const unsigned n_kinds = (unsigned)x->n_kinds;
    unsigned state = 1;
    size_t end = at, still = at; /* still: since when this state goes on without a match */
    while (state != futile->state || at < futile->from || at > futile->to) {
        size_t len = 1;
        unsigned kind = n_kinds - 1;
        if (at < s.n) {
            const uint8_t b = (uint8_t)s.s[at];
            const uint32_t c = b < 0x80 ? b : char_at(s, at, &len);
            kind = c < sizeof x->low ? x->low[c] : char_kind(x, u, c);
        }
        const unsigned next = x->next[state * n_kinds + kind];
        if (next & 1) end = at;
        if (next < 2) {
            if (!(next & 1) && at - still >= 16) *futile = (Futile){state, still, at};
            break;
        }
        at += len;
        if (next >> 1 != state || next & 1) still = at;
        state = next >> 1;
    }
    return end;
}

/* -- pre-tokenizers: the expressions by their names -- */

#define RE_TAILS "'s|'t|'re|'ve|'m|'ll|'d"
#define RE_ANY_TAILS "(?i:" RE_TAILS ")"
#define RE_SPACES "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define RE_GPT2 RE_TAILS "| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)"
#define RE_WORDS(letters, digits) "[^\\r\\n\\p{L}\\p{N}]?" letters "|" digits "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
#define RE_LLAMA3(digits) RE_ANY_TAILS "|" RE_WORDS("\\p{L}+", digits) RE_SPACES
#define RE_CAPITALS "\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}"
#define RE_SMALL "\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}"
#define RE_CASES(but, tail) "[^\\r\\n\\p{L}\\p{N}]?[" RE_CAPITALS but "]*[" RE_SMALL but "]+" tail \
    "|[^\\r\\n\\p{L}\\p{N}]?[" RE_CAPITALS but "]+[" RE_SMALL but "]*" tail
#define RE_GPT4O(digits) RE_CASES("", RE_ANY_TAILS "?") "|" digits "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*" RE_SPACES
#define RE_DEEPSEEK "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+"
#define RE_HAN_KANA "[\\x{4E00}-\\x{9FA5}\\x{3040}-\\x{309F}\\x{30A0}-\\x{30FF}]+"
#define RE_HAN_HANGUL "[\\x{4E00}-\\x{9FA5}\\x{800}-\\x{4E00}\\x{AC00}-\\x{D7FF}]+"
#define RE_BLOOM " ?[^(\\s|.,!?\\x{2026}\\x{3002}\\x{FF0C}\\x{3001}\\x{964}\\x{6D4}\\x{60C})]+"
/* letters with a case, without those that came later */
#define RE_CASED_OF_2018 "[\\p{Lu}\\p{Ll}\\p{Lt}&&[^\\x{560}-\\x{588}\\x{10C7}-\\x{10FF}\\x{1C80}-\\x{1C8A}\\x{2D00}-\\x{2D2D}" \
    "\\x{A790}-\\x{AB68}\\x{10570}-\\x{105BC}\\x{10D50}-\\x{10D85}\\x{16E40}-\\x{1DF2A}]]"
#define RE_LINES "[^\\n]+|[\\n]+"

enum { PRE_NFC = 1, PRE_WHOLE = 2, PRE_BOS = 4,
       PRE_CHARS = 8,                           /* symbols are characters, spaces U+2581 */
       PRE_RANKS = 16,                          /* ids are ranks: a file may leave its merges out */
       PRE_LINES = 32 };                        /* pieces of line ends are tokens as they stand */
struct PreTokenizer {
    const char *names;                          /* of tokenizer.ggml.pre */
    int flags;                                  /* what a file means that does not say */
    /* each cuts the pieces of the one before; what matches none is a piece, too */
    const char *splits[MAX_SPLITS + 1];
};
static const PreTokenizer pre_tokenizers[] = {
    { "gpt-2 phi-2 jais trillion granite-docling gigachat a.x-4.0 mellum exaone4 modern-bert jina-v1-en jina-v2-code jina-v2-es "
      "jina-v2-de roberta-bpe", 0, { RE_GPT2 } },
    { "olmo mpt", PRE_NFC, { RE_GPT2 } },
    { "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2", 0, { "\\p{N}", RE_GPT2 } },
    { "default", 0, { "[\\p{P}\\$\\+<=>\\^~\\|]+", RE_GPT2, "\\p{N}+", "[0-9][0-9][0-9]" } },
    { "falcon", 0, { "[\\p{P}\\$\\+<=>\\^~\\|`]+", RE_GPT2, "[0-9][0-9][0-9]" } },
    { "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano", PRE_WHOLE | PRE_BOS,
      { RE_LLAMA3("\\p{N}{1,3}") } },
    { "dbrx smaug-bpe chatglm-bpe glm4", 0, { RE_LLAMA3("\\p{N}{1,3}") } },
    { "minicpm5", PRE_WHOLE, { "\\p{N}{1,3}", RE_LLAMA3("\\p{N}+") } },
    { "qwen2 deepseek-r1-qwen megrez", PRE_NFC, { RE_LLAMA3("\\p{N}") } },
    { "stablelm2 kormo f2llmv2 hunyuan solar-open grok-2", 0, { RE_LLAMA3("\\p{N}") } },
    { "qwen35", PRE_NFC, { RE_ANY_TAILS "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*" RE_SPACES } },
    { "laguna", 0, { RE_LINES, RE_LLAMA3("\\p{N}") } },
    { "exaone-moe", 0, { RE_ANY_TAILS "|[^\\r\\n\\p{L}\\p{N}]?(?:\\p{L}\\p{M}*(?: \\p{L}\\p{M}*)*)+|\\p{N}"
                         "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]?|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+" } },
    { "bailingmoe bailingmoe2 llada-moe", 0, { "'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}"
                                               "| ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+" } },
    { "seed-coder", 0, { RE_ANY_TAILS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\\r\\n]+" RE_SPACES } },
    { "ufakzeka", 0, { RE_WORDS("\\p{L}+", "\\p{N}") RE_SPACES } },
    { "jais-2", 0, { RE_ANY_TAILS "|" RE_WORDS("\\p{L}+", "\\p{N}{1,3}") "|\\s*[\\r\\n]+|\\s{512}(?!\\S)|\\s{256}(?!\\S)|\\s{128}(?!\\S)"
                     "|\\s{64}(?!\\S)|\\s{32}(?!\\S)|\\s{16}(?!\\S)|\\s{8}(?!\\S)|\\s{4}(?!\\S)|\\s{1,2}(?!\\S)|\\s{1}" } },
    { "tekken", PRE_WHOLE | PRE_BOS, { RE_CASES("", "") "|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*" RE_SPACES } },
    { "gpt-4o llama4 kanana2 talkie minimax-m2 granite-embed-multi-97m", 0, { RE_GPT4O("\\p{N}{1,3}") } },
    { "tiny_aya cohere2moe", 0, { THREES "\\d+(?!\\w)", RE_GPT4O("\\p{N}{1,3}") } },
    { "kimi-k2", PRE_RANKS, { "[\\p{Han}]+|" RE_CASES("&&[^\\p{Han}]", RE_ANY_TAILS "?") "|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*" RE_SPACES } },
    { "youtu", PRE_WHOLE, { "[\\x{AC00}-\\x{D7A3}\\x{3131}-\\x{318E}]+|[\\x{FF01}\\x{2026}\\x{201C}\\x{201D}\\x{2018}\\x{2019}"
                            "\\x{2014}\\x{FF1A}\\x{FF1B}\\x{FF0C}\\x{3001}-\\x{303F}\\x{FE30}-\\x{FE4F}]+|[\\x{3105}-\\x{312F}]+|"
                            RE_HAN_KANA, RE_GPT4O("\\p{N}") } },
    { "superbpe", 0, { "\\p{N}+", BETWEEN "\\d+" } },
    { "deepseek-v3 hunyuan-dense joyai-llm hy_v4", 0, { "\\p{N}{1,3}", RE_HAN_KANA, RE_DEEPSEEK "[\\r\\n]*" RE_SPACES } },
    { "spark2.5", 0, { "\\p{N}{1,3}", RE_HAN_KANA, RE_DEEPSEEK "|[\\r\\n]|\\s+(?!\\S)|\\s+", "\\p{N}" } },
    { "afmoe", 0, { THREES "\\p{N}+",
                    "[\\x{4E00}-\\x{9FFF}\\x{3400}-\\x{4DBF}\\x{8C48}-\\x{FAFF}\\x{3040}-\\x{309F}\\x{30A0}-\\x{30FF}\\x{FF65}-\\x{FF9F}"
                    "\\x{2F00}-\\x{2FDF}\\x{E40}-\\x{E7F}\\x{E80}-\\x{EFF}\\x{1780}-\\x{17FF}\\x{1000}-\\x{109F}\\x{AA60}-\\x{AA7F}"
                    "\\x{A9E0}-\\x{A9FF}\\x{AC00}-\\x{D7AF}\\x{1100}-\\x{11FF}]+", RE_DEEPSEEK "[\\r\\n]*" RE_SPACES } },
    { "deepseek-coder", 0, { "[\\r\\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", RE_HAN_HANGUL, "\\p{N}" } },
    { "deepseek-llm", 0, { "[\\r\\n]", "\\s?" RE_CASED_OF_2018 "+",
                           "\\s?[!-/:-~\\x{FF01}-\\x{FF0F}\\x{FF1A}-\\x{FF5E}\\x{2018}-\\x{201F}\\x{3000}-\\x{3002}]+", "\\s+(?![\\s\\S])",
                           RE_HAN_HANGUL, "\\p{N}+" } },
    { "bloom poro-chat gpt3-finnish", 0, { RE_BLOOM } },
    { "viking", 0, { RE_BLOOM, "\\p{N}" } },
    { "chameleon", PRE_BOS, { "<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", "([\\t\\n]|    |  )", "\\p{N}",
                              "[\\p{P}!-/:-@\\[-`{-~]", RE_GPT2 } },
    { "gemma4 granite-embed-multi-311m", PRE_CHARS | PRE_LINES, { RE_LINES } },
    { "sarvam-moe", PRE_CHARS, { RE_LINES } },
};

/* The row of a name; or NULL, and the sentence lists a name of each. */
static const PreTokenizer *find_pre_tokenizer(Str name, char *err) {
    char known[GLA_ERR / 2] = "", shown[64];
    size_t used = 0;
    for (size_t i = 0; i < sizeof pre_tokenizers / sizeof *pre_tokenizers; i++) {
        const char *p = pre_tokenizers[i].names;
        const int first = (int)strcspn(p, " ");
        if (used < sizeof known)
            used += (size_t)snprintf(known + used, sizeof known - used, "%s%.*s", i ? ", " : "",
                                     first, p);
        for (size_t len; *p; p += len + (p[len] == ' ')) {
            len = strcspn(p, " ");
            if (len == name.n && !memcmp(p, name.s, len)) return &pre_tokenizers[i];
        }
    }
    fail(err, GLA_UNSUPPORTED, "the pre-tokenizer \"%s\" (tokenizer.ggml.pre) is not known; "
         "--pre NAME takes another: %s", printable(shown, name), known);
    return NULL;
}

static int unicode_init(Unicode *u, int with_nfc);

/* -- loading: that arrays lie in the file was checked before; their lengths, types and contents
 * are checked here -- */

static Str str_element(const uint8_t *p) { /* of an array of strings: u64 length, bytes */
    return (Str){ (const char *)p + 8, (size_t)read_u64(p) };
}
static Str next_str(const uint8_t **p) {
    const Str s = str_element(*p);
    *p += 8 + s.n;
    return s;
}

/* FNV-1a; h: the hash of what comes before s, or 0 */
static uint64_t hash_text(uint64_t h, Str s) {
    if (!h) h = 0xCBF29CE484222325u;
    for (size_t i = 0; i < s.n; i++) h = (h ^ (uint8_t)s.s[i]) * 0x100000001B3u;
    return h;
}

/* Tokens and lines of merges are found by their texts, which are made of n parts: the slot, or the
 * free one where it belongs, or NULL; in: t->vocab or t->lines; h: the hash of the whole. */
static Slot *text_slot(const Tokenizer *t, const Table *in, uint64_t h, const Str *part, int n) {
    size_t step = 0;
    Slot *slot;
    while ((slot = table_next(in, h, &step)) && slot->value) {
        Str s = in == &t->lines ? str_element(t->merges.p + slot->value - 1)
                                : t->tokens[slot->value - 1];
        int i = 0;
        for (; i < n && part[i].n <= s.n && !memcmp(s.s, part[i].s, part[i].n); i++)
            s.s += part[i].n, s.n -= part[i].n;
        if (i == n && !s.n) break;
    }
    return slot;
}
static uint32_t text_value(const Tokenizer *t, const Table *in, const Str *part, int n) { /* or 0 */
    uint64_t h = 0;
    for (int i = 0; i < n; i++) h = hash_text(h, part[i]);
    const Slot *slot = text_slot(t, in, h, part, n);
    return slot ? slot->value : 0;
}
static int32_t find_token(const Tokenizer *t, Str s) { /* the id of a text, or -1 */
    return s.n > t->longest ? -1 : (int32_t)text_value(t, &t->vocab, &s, 1) - 1;
}

static int token_type(const Tokenizer *t, int32_t id) {
    int32_t type = TYPE_NORMAL;
    if (t->types.n) memcpy(&type, t->types.p + 4 * (size_t)id, 4);
    return type >= TYPE_NORMAL && type <= TYPE_BYTE ? type : TYPE_NORMAL;
}

/* May text become this token by merging? Control tokens never, or a user could forge the end of
 * a turn. */
static int is_text(const Tokenizer *t, int32_t id) {
    return id >= 0 && (token_type(t, id) == TYPE_NORMAL || token_type(t, id) == TYPE_USER_DEFINED);
}

/* Is it cut out of the text before anything else? */
static int is_special(const Tokenizer *t, int32_t id) {
    return id >= 0 && token_type(t, id) >= TYPE_UNKNOWN && token_type(t, id) <= TYPE_USER_DEFINED;
}
static int habits_of(const Tokenizer *t, int32_t id) {
    return t->habits && id >= 0 ? t->habits[id] : 0;
}

static int no_room(const Tokenizer *t, char *err) {
    return fail(err, GLA_MEMORY, "no memory for a vocabulary of %d tokens", (int)t->n);
}

/* Fills t->vocab or t->lines. A line is "left right": it is split at the first space behind its
 * first byte, so a left part that has one there is in no line. Lines are put into the table as they
 * are; the ids are looked up when a text needs them. A slot is a place anywhere in megabytes, so
 * all slots of a block are asked for before the first is read. Large vocabularies are loaded in a
 * few milliseconds in this way. */
static int fill_table(Tokenizer *t, Table *in, uint32_t count, char *err) {
    enum { AHEAD = 32 };
    const int lines = in == &t->lines;
    const uint8_t *p = t->merges.p;
    if (!table_init(in, count)) return no_room(t, err);
    for (uint32_t i = 0, n; i < count; i += n) {
        uint64_t h[AHEAD];
        Str text[AHEAD];
        n = (uint32_t)min64(AHEAD, (int64_t)count - i);
        for (uint32_t k = 0; k < n; k++) {
            h[k] = hash_text(0, text[k] = lines ? next_str(&p) : t->tokens[i + k]);
            PREFETCH(&in->slots[first_slot(h[k]) & in->mask]);
        }
        for (uint32_t k = 0; k < n; k++) {
            const Str s = text[k];
            const size_t value = lines ? (size_t)((const uint8_t *)s.s - t->merges.p) - 8 : i + k;
            if (!lines && (!s.n || token_type(t, (int32_t)value) == TYPE_UNUSED)) continue;
            if (value >= UINT32_MAX)
                return fail(err, GLA_UNSUPPORTED, "tokenizer.ggml.merges: more than 4 GB of text");
            if (lines && (s.n < 2 || !memchr(s.s + 1, ' ', s.n - 1)))
                return fail(err, GLA_FORMAT, "tokenizer.ggml.merges: entry %u has no space between "
                            "its parts", i + k);
            Slot *slot = text_slot(t, in, h[k], &s, 1);
            if (!slot)
                return fail(err, GLA_FORMAT, "tokenizer.ggml.%s share one hash value",
                            lines ? "merges: too many lines" : "tokens: too many texts");
            /* of equal texts the first counts */
            if (!slot->value) *slot = (Slot){(uint32_t)h[k], (uint32_t)value + 1};
        }
    }
    return GLA_OK;
}

static const char space_mark[] = "\342\226\201"; /* U+2581 */
static int is_mark(const char *s, size_t n) { return n > 2 && !memcmp(s, space_mark, 3); }

/* Behind which bytes may a U+2581 belong to the same token? Where a character that has no token may
 * stand next to it, or a piece as a whole may be a token, words are not told apart. */
static void load_binds(Tokenizer *t) {
    t->tells_words = t->kind.model == VOCAB_SPM && !t->kind.whole
                  && is_text(t, find_token(t, str_of(space_mark)));
    for (int32_t id = 0; id < t->n && t->tells_words; id++) {
        const char *s = t->tokens[id].s, *end = s + t->tokens[id].n;
        for (const char *p = s; p < end && (p = memchr(p, '\342', (size_t)(end - p))); p++)
            if (p > s && is_mark(p, (size_t)(end - p))) t->binds[(uint8_t)p[-1]] = 1;
    }
}

/* The texts of "rwkv" are bytes in the spelling of Python: \n \r \t \\ \' \" \xFF; what is none
 * of these stands for itself. */
static size_t unescape(char *out, Str s) {
    static const char letters[] = "nrt\\'\"", meant[] = "\n\r\t\\'\"";
    size_t n = 0;
    for (size_t i = 0; i < s.n; i++) {
        const char next = i + 1 < s.n ? s.s[i + 1] : 0;
        const char *letter = next ? strchr(letters, next) : NULL;
        const char hex[3] = { i + 3 < s.n ? s.s[i + 2] : 0, i + 3 < s.n ? s.s[i + 3] : 0, 0 };
        out[n] = s.s[i];
        if (s.s[i] == '\\' && letter) {
            out[n] = meant[letter - letters];
            i++;
        } else if (s.s[i] == '\\' && next == 'x' && strspn(hex, "0123456789abcdefABCDEF") == 2) {
            out[n] = (char)strtol(hex, NULL, 16);
            i += 3;
        }
        n++;
    }
    return n;
}

static int too_long(char *err, const char *what, int32_t id, size_t n) {
    return fail(err, GLA_UNSUPPORTED, "%s %d has %zu bytes, at most %d are supported", what,
                (int)id, n, (int)TRIE_DEPTH);
}

static int read_texts(Tokenizer *t, const GgufArray *texts, char *err) {
    const uint8_t *p = texts->p;
    size_t n_bytes = 0;
    t->tokens = gla_alloc((size_t)t->n * sizeof *t->tokens);
    if (!t->tokens) return no_room(t, err);
    for (int32_t id = 0; id < t->n; id++) n_bytes += (t->tokens[id] = next_str(&p)).n;
    const int rwkv = t->kind.model == VOCAB_LONGEST;
    char *at = t->unescaped = rwkv ? gla_alloc(n_bytes) : NULL;
    if (rwkv && !at) return no_room(t, err);
    int code = GLA_OK;
    for (int32_t id = 0; id < t->n && !code; id++) {
        Str *s = &t->tokens[id];
        if (rwkv && !is_special(t, id)) *s = (Str){ at, unescape(at, *s) };
        raise_to(&t->longest, s->n);
        if (!rwkv) continue;
        at += s->n;
        if (s->n > TRIE_DEPTH) return too_long(err, "token", id, s->n);
        if (s->n && is_text(t, id))
            code = trie_add(&t->words, *s, id, "tokenizer.ggml.tokens", err);
    }
    return code;
}

static Str normalise(const Tokenizer *t, Str s, Text *out);

/* tokenizer.gla.NAME, arrays of token ids: tokens of that habit. */
static int load_habits(Tokenizer *t, const Gguf *g, char *err) {
    static const char *const names[] = { "lstrip", "rstrip", "single_word", "normalized", "added" };
    for (int k = 0; k < 5; k++) {
        char key[64];
        GgufArray ids;
        int64_t id;
        snprintf(key, sizeof key, "tokenizer.gla.%s", names[k]);
        if (gguf_key_index(g, key) < 0) continue;
        if (!gguf_array(g, key, &ids))
            return fail(err, GLA_FORMAT, "%s is not an array of ids", key);
        if (!t->habits && !(t->habits = gla_alloc((size_t)t->n))) return no_room(t, err);
        for (uint64_t i = 0; i < ids.n; i++) {
            if (!array_int(&ids, i, &id) || id < 0 || id >= t->n)
                return fail(err, GLA_FORMAT, "%s: entry %llu is not an id of the vocabulary", key,
                            (unsigned long long)i);
            t->habits[id] |= (uint8_t)(1 << k);
        }
    }
    return GLA_OK;
}

/* Two tries of the added tokens: those that are special, or have the type of words but not their
 * way. One that is found in the normalised text is itself normalised first. */
static int load_added(Tokenizer *t, const Gguf *g, char *err) {
    int code = load_habits(t, g, err);
    for (int32_t id = 0; id < t->n && !code; id++) {
        const int habits = habits_of(t, id), late = (habits & ADDED_NORMALIZED) != 0;
        Str text = t->tokens[id];
        Text copy = {0};
        if (!(is_special(t, id) || habits & ADDED_NORMAL) || !text.n) continue;
        if (text.n > TRIE_DEPTH) return too_long(err, "special token", id, text.n);
        if (late) text = normalise(t, text, &copy);
        code = copy.bad ? fail(err, GLA_MEMORY, "no memory for special tokens")
                        : trie_add(&t->added[late], text, id, "special tokens", err);
        text_free(&copy);
    }
    return code;
}

/* tokenizer.ggml.NAME_token_id, or `otherwise`; an id outside the vocabulary counts as absent. */
static int32_t id_key(const Tokenizer *t, const Gguf *g, const char *name, int32_t otherwise) {
    char key[64];
    int64_t id;
    snprintf(key, sizeof key, "tokenizer.ggml.%s_token_id", name);
    if (!gguf_int(g, key, &id) || id < 0 || id >= t->n) id = otherwise;
    return id < t->n ? (int32_t)id : -1;
}

static int flag_key(const Gguf *g, const char *key, int otherwise) {
    int64_t v;
    return gguf_int(g, key, &v) ? v != 0 : otherwise;
}

static void add_end(Tokenizer *t, int64_t id) {
    const int room = t->n_end < (int)(sizeof t->end / sizeof *t->end);
    if (id >= 0 && id < t->n && room) t->end[t->n_end++] = (int32_t)id;
}

static int32_t find_special(const Tokenizer *t, const char *text) {         /* or -1 */
    const int32_t id = find_token(t, str_of(text));
    return is_special(t, id) ? id : -1;
}

/* "</s>" may also be plain text, struck out in HTML. Where turns end with <|return|> and calls,
 * <|end|> ends only a part of one. */
static void load_ends(Tokenizer *t, const Gguf *g) {
    static const char *const keys[] = { "eot", "eom", "fim_pad", "fim_rep", "fim_sep" };
    static const char *const texts[] = {
        "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|end_of_text|>",
        "<end_of_turn>", "</s>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<eos>", "<|return|>",
        "<|call|>", "<|calls|>", "<|flush|>", "<turn|>", "<|tool_response>", "<end_of_utterance>",
        "[e~[", "<\357\275\234end\342\226\201of\342\226\201sentence\357\275\234>",
        "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>" };
    const int calls = find_special(t, "<|call|>") >= 0 || find_special(t, "<|calls|>") >= 0;
    const int returns = find_special(t, "<|return|>") >= 0 || find_special(t, "<|flush|>") >= 0;
    GgufArray more = {0, 0, NULL};
    int64_t id;
    add_end(t, t->kind.eos);
    if (gguf_array(g, "tokenizer.gla.end_token_ids", &more))
        for (uint64_t i = 0; i < more.n; i++)
            if (array_int(&more, i, &id)) add_end(t, id);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) add_end(t, id_key(t, g, keys[i], -1));
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (!(calls && returns) || strcmp(texts[i], "<|end|>"))
            add_end(t, find_special(t, texts[i]));
}

/* What kind of vocabulary it is. Where the file names no pre-tokenizer it is read as llama.cpp
 * reads it; where "gpt2" files name no bos or eos, llama.cpp takes id 11, which suits one old
 * model: here there is none. */
static const VocabKind vocab_kinds[] = {
    { "gpt2", "", "default", .model = VOCAB_BPE, .bos = -1, .eos = -1, .unk = -1 },
    { "llama", "", .model = VOCAB_SPM, .space = SPACE_PREPEND, .bos = 1, .eos = 2, .unk = 0, .add_bos = 1, .fuse_unk = 1 },
    { "gemma4", "", "gemma4", .model = VOCAB_SPM, .bos = -1, .eos = -1, .unk = -1, .fuse_unk = 1 },
    { "rwkv", "", .model = VOCAB_LONGEST, .bos = -1, .eos = 0, .unk = -1 },
    { "no_vocab", NULL, .model = VOCAB_NONE }, { "none", NULL, .model = VOCAB_NONE }, /* and says so */
    { "bert", " (WordPiece)", .model = VOCAB_NONE }, { "t5", " (a unigram model)", .model = VOCAB_NONE },
    { "plamo2", " (a unigram model)", .model = VOCAB_NONE },
};
enum { KIND_GPT2, KIND_LLAMA, KIND_GEMMA4, N_VOCABS = sizeof vocab_kinds / sizeof *vocab_kinds };

/* Where a space is added before a text: as the keys say, if the kind may have one. */
static int load_space(VocabKind *kind, const Gguf *g, char *err) {
    static const char *const names[] = { [SPACE_NEVER] = "never", [SPACE_FIRST] = "first",
                                         [SPACE_ALWAYS] = "always", [SPACE_PREPEND] = "prepend" };
    Str how = str_of("");
    if (!flag_key(g, "tokenizer.ggml.add_space_prefix", 1)) kind->space = SPACE_NEVER;
    if (gguf_key_index(g, "tokenizer.gla.space_prefix") >= 0) {
        gguf_str(g, "tokenizer.gla.space_prefix", &how);
        for (kind->space = 0; kind->space < 4 && !str_is(how, names[kind->space]);) kind->space++;
        if (kind->space == 4)
            return fail(err, GLA_UNSUPPORTED,
                        "tokenizer.gla.space_prefix is not never, first, always or prepend");
    }
    const int prepends = kind->model == VOCAB_BPE && kind->space == SPACE_PREPEND;
    if (kind->model == VOCAB_LONGEST || prepends) kind->space = SPACE_NEVER;
    return GLA_OK;
}

static int load_kind(Tokenizer *t, const Gguf *g, const char *pre_name, char *err) {
    VocabKind *kind = &t->kind;
    Str model;
    char shown[64];
    int k = 0;
    if (!gguf_str(g, "tokenizer.ggml.model", &model)) return GLA_OK;
    while (k < N_VOCABS && !str_is(model, vocab_kinds[k].name)) k++;
    if (k < N_VOCABS && !vocab_kinds[k].what) return GLA_OK;
    if (k == N_VOCABS || !vocab_kinds[k].model)
        return fail(err, GLA_UNSUPPORTED, "tokenizer.ggml.model is \"%s\"%s; gpt2, llama, gemma4 "
                    "and rwkv are known; another vocabulary: -z", printable(shown, model),
                    k < N_VOCABS ? vocab_kinds[k].what : "");
    if (pre_name && k != KIND_GPT2)
        return fail(err, GLA_INPUT, "--pre: a vocabulary of kind \"%s\" has no pre-tokenizer, only "
                    "gpt2 has", printable(shown, model));
    if (vocab_kinds[k].pre) {
        Str pre = str_of(pre_name ? pre_name : vocab_kinds[k].pre);
        if (!pre_name && k == KIND_GPT2) gguf_str(g, "tokenizer.ggml.pre", &pre);
        if (!(t->pre = find_pre_tokenizer(pre, err))) return GLA_UNSUPPORTED;
    }
    const int flags = t->pre ? t->pre->flags : 0;
    *kind = vocab_kinds[flags & PRE_CHARS ? KIND_GEMMA4 : k];
    kind->nfc = flag_key(g, "tokenizer.gla.nfc", flags & PRE_NFC);
    kind->whole = flag_key(g, "tokenizer.gla.ignore_merges", flags & PRE_WHOLE);
    kind->whole_lines = flags & PRE_LINES;
    kind->byte_fallback = flag_key(g, "tokenizer.gla.byte_fallback", 1);
    kind->fuse_unk = flag_key(g, "tokenizer.gla.fuse_unk", kind->fuse_unk);
    kind->add_bos = flag_key(g, "tokenizer.ggml.add_bos_token", kind->add_bos || flags & PRE_BOS);
    kind->add_eos = flag_key(g, "tokenizer.ggml.add_eos_token", 0);
    return load_space(kind, g, err);
}

/* The arrays of tokens, token types, merges and scores, and their tables. */
static int load_arrays(Tokenizer *t, const Gguf *g, char *err) {
    GgufArray texts;
    if (!gguf_array(g, "tokenizer.ggml.tokens", &texts) || texts.type != GGUF_STR || texts.n == 0)
        return fail(err, GLA_FORMAT,
                    "tokenizer.ggml.tokens is missing, empty or not an array of strings");
    if (texts.n > INT32_MAX || texts.n > SIZE_MAX / 64)
        return fail(err, GLA_FORMAT,
                    "tokenizer.ggml.tokens has %llu entries", (unsigned long long)texts.n);
    if (!gguf_array(g, "tokenizer.ggml.token_type", &t->types)) t->types.n = 0;
    else if ((t->types.type != GGUF_U32 && t->types.type != GGUF_I32) || t->types.n != texts.n)
        return fail(err, GLA_FORMAT,
                    "tokenizer.ggml.token_type is not one 32-bit integer for each of %llu tokens",
                    (unsigned long long)texts.n);
    const int merges = gguf_array(g, "tokenizer.ggml.merges", &t->merges);
    const int scores = gguf_array(g, "tokenizer.ggml.scores", &t->scores);
    const int by_score = t->kind.model == VOCAB_SPM && !t->pre && !merges;
    if (merges && (t->merges.type != GGUF_STR || t->merges.n > INT32_MAX
                   || t->merges.n > SIZE_MAX / 128))
        return fail(err, GLA_FORMAT,
                    "tokenizer.ggml.merges is too long or not an array of strings");
    if (by_score && scores && (t->scores.type != GGUF_F32 || t->scores.n != texts.n))
        return fail(err, GLA_FORMAT,
                    "tokenizer.ggml.scores is not one float for each of %llu tokens",
                    (unsigned long long)texts.n);
    /* Merges are exact, scores stand for them. Without either the ids are the order, in
     * vocabularies that are written as they were learnt; in others no merges are none. */
    const int learnt = t->pre ? t->pre->flags & PRE_RANKS : !scores;
    t->order = by_score && scores ? BY_SCORE : !merges && learnt ? BY_ID : BY_MERGES;
    if (!merges || t->order != BY_MERGES || t->kind.model == VOCAB_LONGEST) t->merges.n = 0;
    t->n = (int32_t)texts.n;
    int code = read_texts(t, &texts, err);
    if (!code) code = fill_table(t, &t->vocab, (uint32_t)t->n, err);
    if (!code) code = fill_table(t, &t->lines, (uint32_t)t->merges.n, err);
    if (!code) load_binds(t);
    return code;
}

static int load_pieces(Tokenizer *t, char *err) {
    if (!unicode_init(&t->unicode, t->kind.nfc))
        return fail(err, GLA_MEMORY, "no memory for the Unicode tables");
    if (!t->pre) return GLA_OK;
    if (!(t->splits = gla_alloc(MAX_SPLITS * sizeof *t->splits)))
        return fail(err, GLA_MEMORY, "no memory for expressions");
    int code = GLA_OK;
    for (const char *const *p = t->pre->splits; *p && !code; p++)
        code = splitter_init(&t->splits[t->n_splits++], *p, &t->unicode, err);
    return code;
}

static int load_vocabulary(Tokenizer *t, const Gguf *g, const char *pre, char *err) {
    VocabKind *kind = &t->kind;
    int code = load_kind(t, g, pre, err);
    if (code || !kind->model) return code;
    code = load_arrays(t, g, err);
    if (!code) code = load_pieces(t, err);
    if (!code) code = load_added(t, g, err);
    if (code) return code;
    for (int b = 0; b < 256; b++) {
        const int bytes = kind->model == VOCAB_BPE;
        char s[8];
        size_t n = (size_t)snprintf(s, sizeof s, "<0x%02X>", (unsigned)b);
        if (bytes) n = utf8_write(s, byte_char((uint8_t)b));
        const int32_t id = find_token(t, (Str){ s, n });
        t->byte_id[b] = !bytes || is_text(t, id) ? id : -1;
    }
    kind->bos = id_key(t, g, "bos", kind->bos);
    kind->eos = id_key(t, g, "eos", kind->eos);
    kind->unk = id_key(t, g, "unknown", kind->unk);
    /* files of this kind may say that there is none, and mean one (so llama.cpp) */
    if (kind->whole_lines && kind->bos >= 0) kind->add_bos = 1;
    load_ends(t, g);
    return GLA_OK;
}

static void tokenizer_free(Tokenizer *t) {
    if (!t) return;
    void *const owned[] = { t->tokens, t->unescaped, t->habits, t->vocab.slots, t->lines.slots,
                            t->unicode.classes };
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) gla_free(owned[i]);
    trie_free(&t->added[0]);
    trie_free(&t->added[1]);
    trie_free(&t->words);
    for (int i = 0; i < t->n_splits; i++) gla_free(t->splits[i].bounds);
    gla_free(t->splits);
    gla_free(t);
}

/* Reads the tokenizer.* keys of g, whose file has to stay mapped. A file without a vocabulary,
 * or none (NULL), gives n = 0. pre: the pre-tokenizer, NULL = the file's. */
static int tokenizer_open(Tokenizer **out, const Gguf *g, const char *pre, char *err) {
    Tokenizer *t = *out = gla_alloc(sizeof *t);
    if (!t) return fail(err, GLA_MEMORY, "no memory for the vocabulary");
    t->kind.bos = t->kind.eos = t->kind.unk = -1;
    const int code = g ? load_vocabulary(t, g, pre, err) : GLA_OK;
    if (code) {
        tokenizer_free(t);
        *out = NULL;
    }
    return code;
}
LIKELY_UNUSED static int tokenizer_new(Tokenizer **t, const Gguf *g, char *err) {
    return tokenizer_open(t, g, NULL, err);
}

/* Does this token end a generation? */
static int tokenizer_is_end(const Tokenizer *t, int32_t id) {
    for (int i = 0; i < t->n_end; i++)
        if (t->end[i] == id) return 1;
    return 0;
}

/* -- merging --
 * A piece is a linked list of symbols; a heap holds the pairs that can be joined, the one to be
 * joined first on top: rank << 32 | symbol, so that of equal ranks the leftmost is first. Entries
 * go stale when a neighbour was quicker, and are skipped when they come up. Time n log n. */
#define NO_SYMBOL UINT32_MAX
typedef struct {
    uint32_t at, prev, next;        /* where its bytes begin; it goes on to where the next does */
    int32_t id;                     /* -1: not a token */
    int32_t joined;                 /* the token of it and the next one, -1: none */
    uint32_t rank;                  /* of that join; lower ones are first */
} Symbol;
/* What two tokens join to; id -1: to nothing. */
typedef struct { int32_t left, right, id; uint32_t rank; } Join;
typedef struct {
    const Tokenizer *t;
    int flags;
    Ids *out;
    int64_t begin;                  /* ids in front of the text */
    int code;                       /* the first failure */
    char *scratch;
    size_t room;
    /* (1 << join_bits) pairs that were looked up, left + 1 for left: texts repeat themselves, and
     * tokens may be long */
    Join *joins;
    int join_bits;
} Encoder;

static void *encoder_scratch(Encoder *e, size_t bytes) { /* contents are not kept */
    char *scratch = grow(e->scratch, 0, bytes, &e->room, 1);
    if (scratch) e->scratch = scratch;
    else e->code = GLA_MEMORY;
    return scratch;
}

static void emit_id(Encoder *e, int32_t id) {
    if (!e->code) e->code = ids_add(e->out, &id, 1, NULL);
}

/* What the tokens left and right join to, by the vocabulary. */
static Join look_up_join(const Tokenizer *t, int32_t left, int32_t right) {
    const Str a = t->tokens[left], b = t->tokens[right], line[] = {a, str_of(" "), b};
    const Str both[] = {a, b};
    Join j = { left + 1, right, -1, 0 };
    if (a.n + b.n > t->longest) return j;
    if (t->order == BY_MERGES) {
        if (a.n > 1 && memchr(a.s + 1, ' ', a.n - 1)) return j;
        if (!(j.rank = text_value(t, &t->lines, line, 3))) return j;
    }
    const int32_t id = (int32_t)text_value(t, &t->vocab, both, 2) - 1;
    if (!is_text(t, id)) return j; /* a merge into what is no token cannot happen */
    j.id = id;
    if (t->order == BY_ID) j.rank = (uint32_t)id;
    if (t->order == BY_SCORE) {
        float score;
        memcpy(&score, t->scores.p + 4 * (size_t)id, 4);
        j.rank = float_order(0.0f - score); /* the highest score first */
    }
    return j;
}

/* Puts symbol i and its right neighbour on the heap, if there is a token for the two together. */
static void propose(Encoder *e, Symbol *sym, uint32_t i, uint64_t *heap, size_t *n) {
    if (i == NO_SYMBOL) return;
    Symbol *a = &sym[i];
    a->joined = -1;
    if (a->next == NO_SYMBOL || a->id < 0 || sym[a->next].id < 0) return;
    const int32_t left = a->id, right = sym[a->next].id;
    const uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9E3779B97F4A7C15u;
    Join *j = &e->joins[h >> (64 - e->join_bits)];
    if (j->left != left + 1 || j->right != right) *j = look_up_join(e->t, left, right);
    a->joined = j->id;
    a->rank = j->rank;
    if (j->id >= 0) heap_push(heap, n, (uint64_t)j->rank << 32 | i);
}

/* Symbols of a piece: bytes or characters. Returns how many. */
static size_t split_symbols(const Tokenizer *t, Str s, Symbol *sym) {
    size_t count = 0, len = 1;
    for (size_t at = 0; at < s.n; at += len) {
        int32_t id = t->byte_id[(uint8_t)s.s[at]];
        /* an incomplete vocabulary loses the byte, as in HF */
        if (t->kind.model == VOCAB_BPE && id < 0 && t->kind.unk < 0) continue;
        if (t->kind.model == VOCAB_SPM) {
            char_at(s, at, &len);
            id = find_token(t, str_part(s, at, at + len));
            if (!is_text(t, id)) id = -1;
        }
        const uint32_t i = (uint32_t)count++;
        sym[i] = (Symbol){ (uint32_t)at, i - 1, i + 1, id, -1, 0 };
    }
    if (count) sym[count - 1].next = NO_SYMBOL; /* and the first one's prev is, by wrapping */
    return count;
}

/* The token that a piece is as it stands, or -1; spelled: room for twice its bytes. */
static int32_t whole_piece(const Tokenizer *t, Str piece, char *spelled) {
    const int whole = t->kind.whole || (t->kind.whole_lines && *piece.s == '\n');
    if (!whole || piece.n > t->longest) return -1;
    if (t->kind.model == VOCAB_BPE) {
        size_t n = 0;
        for (size_t i = 0; i < piece.n; i++)
            n += utf8_write(spelled + n, byte_char((uint8_t)piece.s[i]));
        piece = (Str){ spelled, n };
    }
    const int32_t id = find_token(t, piece);
    return is_text(t, id) ? id : -1;
}

static void emit_symbols(Encoder *e, Str s, const Symbol *sym) {
    const Tokenizer *t = e->t;
    int unknown = 0;                                /* the last one was */
    for (uint32_t i = 0; i != NO_SYMBOL; i = sym[i].next) {
        if (sym[i].id >= 0) {
            emit_id(e, sym[i].id);
            unknown = 0;
            continue;
        }
        const size_t end = sym[i].next == NO_SYMBOL ? s.n : sym[sym[i].next].at;
        int spelled = t->kind.byte_fallback;
        for (size_t k = sym[i].at; k < end; k++) spelled &= t->byte_id[(uint8_t)s.s[k]] >= 0;
        for (size_t k = sym[i].at; k < end && spelled; k++)
            emit_id(e, t->byte_id[(uint8_t)s.s[k]]);
        if (!spelled && t->kind.unk >= 0 && !(unknown && t->kind.fuse_unk)) emit_id(e, t->kind.unk);
        unknown = !spelled;
    }
}

/* Append the ids of one piece. */
static void encode_piece(Encoder *e, Str s) {
    const Tokenizer *t = e->t;
    Symbol *sym = encoder_scratch(e, s.n * (sizeof *sym + 2 * sizeof(uint64_t)));
    if (!sym) return;
    uint64_t *heap = (uint64_t *)(sym + s.n); /* n - 1 at first; a join takes 1, adds 2 at most */
    size_t n_heap = 0;
    const int32_t whole = whole_piece(t, s, (char *)heap);
    if (whole >= 0) {
        emit_id(e, whole);
        return;
    }
    const size_t n_sym = split_symbols(t, s, sym);
    if (n_sym == 0) return;
    for (uint32_t i = 0; i < n_sym; i++) propose(e, sym, i, heap, &n_heap);
    while (n_heap) {
        const uint64_t top = heap_pop(heap, &n_heap);
        Symbol *a = &sym[(uint32_t)top];
        if (a->joined < 0 || a->rank != top >> 32) continue;
        Symbol *gone = &sym[a->next];
        a->id = a->joined;
        a->next = gone->next;
        gone->joined = -1;
        if (a->next != NO_SYMBOL) sym[a->next].prev = (uint32_t)top;
        propose(e, sym, a->prev, heap, &n_heap);
        propose(e, sym, (uint32_t)top, heap, &n_heap);
    }
    emit_symbols(e, s, sym);
}

/* The same; where no token goes on from one word into the next, words are pieces of their own,
 * which is quicker and changes no id. */
static void encode_words(Encoder *e, Str s) {
    const uint8_t *binds = e->t->binds;
    size_t from = 0;
    for (size_t at = 1; e->t->tells_words && at < s.n; at++) {
        if (binds[(uint8_t)s.s[at - 1]] || !is_mark(s.s + at, s.n - at)) continue;
        encode_piece(e, str_part(s, from, at));
        from = at;
    }
    encode_piece(e, str_part(s, from, s.n));
}

static void encode_longest(Encoder *e, Str s) {                             /* "rwkv" */
    size_t len;
    for (size_t at = 0; at < s.n; at += len) {
        int32_t id = trie_longest(&e->t->words, str_part(s, at, s.n), &len);
        if (id < 0) len = 1, id = e->t->kind.unk;   /* a vocabulary without this byte */
        if (id >= 0) emit_id(e, id);
    }
}

/* -- encoding: the way of a text --
 * Each stage cuts what it is given and hands the parts on to the next: at added tokens; normalised;
 * at added tokens of the normalised text; with a space in front; at the matches of each expression;
 * and what is left is merged. */
enum { STAGE_RAW, STAGE_NORMALISE, STAGE_NORMALISED, STAGE_SPACE, STAGE_SPLITS };

static void encode(Encoder *e, int stage, Str s);

/* s, or what it is normalised, in *out. */
static Str normalise(const Tokenizer *t, Str s, Text *out) {
    Text composed = {0};
    if (t->kind.nfc) s = nfc(&t->unicode, s, &composed);
    if (t->kind.model != VOCAB_SPM) {
        *out = composed;
        return s;
    }
    if (t->kind.space == SPACE_PREPEND) text_puts(out, space_mark);
    for (size_t from = 0, to; from < s.n; from = to + 1) {
        const char *space = memchr(s.s + from, ' ', s.n - from);
        to = space ? (size_t)(space - s.s) : s.n;
        text_put(out, s.s + from, to - from);
        if (space) text_puts(out, space_mark);
    }
    out->bad |= composed.bad;
    text_free(&composed);
    return (Str){out->s, out->n};
}

/* s, or with a space in front in *out, where there is to be one and is none. */
static Str add_space(const Encoder *e, Str s, Text *out) {
    const int space = e->t->kind.space;
    const Str mark = str_of(e->t->kind.model == VOCAB_SPM ? space_mark : " ");
    if (space != SPACE_ALWAYS && !(space == SPACE_FIRST && e->out->n == e->begin)) return s;
    if (s.n >= mark.n && !memcmp(s.s, mark.s, mark.n)) return s;
    text_put(out, mark.s, mark.n);
    text_put(out, s.s, s.n);
    return (Str){out->s, out->n};
}

/* An added token in a text: from .. start lies before it, and after the last one. blank: how far
 * to the right an earlier one took white space along; up to there it is not read again. */
typedef struct { size_t from, start, stop, blank; } Found;

/* Does token id hold there? Some are found only as words, some take the white space around them
 * along, to the left not beyond `from`; nothing is left of one that is all white space, when the
 * token before has taken that. */
static int added_fits(const Tokenizer *t, int32_t id, Str s, Found *f) {
    const int habits = habits_of(t, id);
    const Unicode *u = &t->unicode;
    size_t len;
    if (habits & ADDED_WORD && (class_before(u, s, f->start, WORD_CLASSES)
                                || class_at(u, s, f->stop, WORD_CLASSES, &len))) return 0;
    if (habits & ADDED_LSTRIP) f->start = blanks_begin(u, s, f->from, f->start);
    if (habits & ADDED_RSTRIP)
        f->blank = f->stop = blanks_end(u, s, f->stop < f->blank ? f->blank : f->stop);
    return !(habits & ADDED_LSTRIP) || f->from < f->stop;
}

/* The text between two added tokens, without the white space that they take along. -1: no token. */
static Str between_added(const Tokenizer *t, Str s, int32_t before, int32_t after) {
    size_t from = 0, to = s.n;
    if (habits_of(t, before) & ADDED_RSTRIP) from = blanks_end(&t->unicode, s, 0);
    if (habits_of(t, after) & ADDED_LSTRIP) to = blanks_begin(&t->unicode, s, from, s.n);
    return s.n ? (Str){s.s + from, to - from} : s;
}

/* Added tokens are found leftmost first, the longest of those that start together. Without
 * GLA_SPECIAL the control tokens among them stay plain text, so that "<|im_end|>" typed by a user
 * ends nothing; user-defined ones are always tokens. */
static void cut_added(Encoder *e, int stage, Str s) {
    const Tokenizer *t = e->t;
    const Trie *trie = &t->added[stage == STAGE_NORMALISED];
    Found f = { 0, 0, 0, 0 };
    size_t len = 0;
    for (size_t at = 0; !e->code;) {
        while (at < s.n && !trie->root[(uint8_t)s.s[at]]) at++;
        if (at == s.n) break;
        const int32_t id = trie_longest(trie, str_part(s, at, s.n), &len);
        if (id < 0) {
            at++;
            continue;
        }
        f.start = at;
        f.stop = at += len;
        const int control = is_special(t, id) && token_type(t, id) != TYPE_USER_DEFINED;
        if (control && !(e->flags & GLA_SPECIAL)) continue;
        if (!added_fits(t, id, s, &f)) continue;
        if (f.from < f.start) encode(e, stage + 1, str_part(s, f.from, f.start));
        emit_id(e, id);
        f.from = f.stop; /* even if that is white space which the token before took: so HF */
    }
    if (f.from < s.n) encode(e, stage + 1, str_part(s, f.from, s.n));
}

/* Cuts at the matches of an expression; each match, or each of its threes, and what lies between
 * two of them, is a piece. */
static void cut_matches(Encoder *e, int stage, Str s) {
    const Splitter *x = &e->t->splits[stage - STAGE_SPLITS];
    Futile futile = { 0, 0, 0 };
    size_t from = 0, len = 1;
    for (size_t at = 0; at < s.n && !e->code;) {
        const size_t begin = at, end = match_end(x, &e->t->unicode, s, at, &futile);
        size_t left = 0;                            /* characters up to the end, if it is counted */
        if (end == at) {
            char_at(s, at, &len);
            at += len;
            continue;
        }
        for (size_t i = at; x->threes && i < end; i += len, left++) char_at(s, i, &len);
        for (; at < end; at += len, left--) {
            len = end - at;
            if (x->threes) char_at(s, at, &len);
            if (left % 3 && (at > begin || x->threes == *BETWEEN)) continue;
            if (from < at) encode(e, stage + 1, str_part(s, from, at));
            from = at;
        }
        if (x->threes == *BETWEEN) continue;
        encode(e, stage + 1, str_part(s, from, end));
        from = end;
    }
    if (from < s.n) encode(e, stage + 1, str_part(s, from, s.n));
}

static void encode(Encoder *e, int stage, Str s) {                          /* s.n > 0 */
    const Tokenizer *t = e->t;
    Text copy = {0};
    if (e->code) return;
    if (stage == STAGE_RAW || stage == STAGE_NORMALISED) cut_added(e, stage, s);
    else if (stage < STAGE_SPLITS) {
        s = stage == STAGE_SPACE ? add_space(e, s, &copy) : normalise(t, s, &copy);
        if (copy.bad) e->code = GLA_MEMORY;
        encode(e, stage + 1, s);
        text_free(&copy);
    } else if (t->kind.model == VOCAB_LONGEST) encode_longest(e, s);
    else if (stage < STAGE_SPLITS + t->n_splits) cut_matches(e, stage, s);
    else encode_words(e, s);
}

/* Appends the ids of len bytes of text. GLA_BOS puts bos before and eos behind it if the file
 * says so; GOES_ON: it is not the beginning of the text. */
enum { GOES_ON = 1 << 16 };
static int tokenizer_append(const Tokenizer *t, const char *text, size_t len, int flags, Ids *out,
                            char *err) {
    const VocabKind *kind = &t->kind;
    Encoder e = { .t = t, .flags = flags, .out = out, .join_bits = 6 };
    if (len > (size_t)1 << 30 || len > SIZE_MAX / 256)
        return fail(err, GLA_INPUT,
                    "the text has %zu bytes, more than can be tokenized in one go", len);
    while (e.join_bits < 18 && len >> e.join_bits) e.join_bits++;
    if (!(e.joins = gla_alloc(((size_t)1 << e.join_bits) * sizeof *e.joins))) e.code = GLA_MEMORY;
    if (flags & GLA_BOS && kind->add_bos && kind->bos >= 0) emit_id(&e, kind->bos);
    e.begin = flags & GOES_ON ? -1 : out->n;
    if (len) encode(&e, STAGE_RAW, (Str){text, len});
    if (flags & GLA_BOS && kind->add_eos && kind->eos >= 0) emit_id(&e, kind->eos);
    gla_free(e.scratch), gla_free(e.joins);
    return e.code ? fail(err, e.code, "no memory to tokenize %zu bytes", len) : GLA_OK;
}

/* How many ids the text has, of which the first cap are written, or a negative code. */
static int64_t tokenizer_encode(const Tokenizer *t, const char *text, size_t len, int flags,
                                int32_t *ids, size_t cap, char *err) {
    Ids all = {NULL, 0, 0};
    const int code = tokenizer_append(t, text, len, flags, &all, err);
    const int64_t count = all.n;
    const size_t n = (size_t)count < cap ? (size_t)count : cap;
    if (!code && n) memcpy(ids, all.id, n * sizeof *ids);
    ids_free(&all);
    return code ? code : count;
}

/* The longest special token that s begins with, or -1; *len: its bytes. */
static int32_t special_at(const Tokenizer *t, const char *s, size_t n, size_t *len) {
    const int32_t id = trie_longest(&t->added[0], (Str){s, n}, len);
    return id >= 0 ? id : trie_longest(&t->added[1], (Str){s, n}, len);
}

/* -- decoding -- */

/* The bytes of one token: returns how many there are, of which the first cap are written. A
 * token may hold part of a character, so whoever prints collects whole ones. Control tokens are
 * silent without GLA_SPECIAL. GLA_FIRST goes with the first token of a text that is not a
 * control token: "llama" encoding put a space there. from: how many bytes to leave out. */
static size_t piece_part(const Tokenizer *t, int32_t id, int flags, size_t from, char *buf,
                         size_t cap) {
    if (id < 0 || id >= t->n) return 0;
    Str s = t->tokens[id];
    const int type = token_type(t, id), spm = t->kind.model == VOCAB_SPM;
    int spelled = type == TYPE_NORMAL && t->kind.model == VOCAB_BPE;
    size_t n = 0, len;
    if (type == TYPE_UNUSED) return 0;
    if ((type == TYPE_CONTROL || type == TYPE_UNKNOWN) && !(flags & GLA_SPECIAL)) return 0;
    for (int b = 0; spm && type == TYPE_BYTE && b < 256; b++)
        if (t->byte_id[b] == id) {
            if (cap && !from) buf[0] = (char)b;
            return 1;
        }
    /* a text that does not spell bytes is taken literally */
    for (size_t at = 0; spelled && at < s.n; at += len)
        spelled = char_byte(char_at(s, at, &len)) >= 0;
    for (size_t at = 0; at < s.n; at += len) {
        uint32_t c = char_at(s, at, &len);
        char raw[4];
        if (spelled) c = BAD_BYTE + (uint32_t)char_byte(c);
        else if (c == SPACE_MARK && spm && type == TYPE_NORMAL) c = ' ';
        if (at == 0 && c == ' ' && spm && flags & GLA_FIRST && t->kind.space) continue;
        for (size_t i = 0, k = utf8_write(raw, c); i < k; i++, n++)
            if (n >= from && n - from < cap) buf[n - from] = raw[i];
    }
    return n;
}
static size_t tokenizer_piece(const Tokenizer *t, int32_t id, int flags, char *buf, size_t cap) {
    return piece_part(t, id, flags, 0, buf, cap);
}

/* -- the Unicode tables -- */

/* The Unicode tables, written by tests/make_unicode.py, which asks HuggingFace tokenizers about
 * every code point: the classes are those of Unicode 16.0, the NFC that of Unicode 9.0 (marks added
 * later stay where they are).
 *   numbers          '#' to '>': base 28 digits, more follow; '@' to '[' and ']' to '~': the last
 *                    digit, base 62
 *   classes          64 x length + class (CH_...), run by run
 *   combining        gap, length, place: each run of marks
 *   decompositions   3 x step of c + kind, then steps of a and b; a counts from the a before, b
 *                    from U+0300, and steps are signed (0 1 2 3 4: 0 -1 1 -2 2). Kind 0: c is
 *                    another name of a, no b; 1: a b composes to c; 2: c is written a b and never
 *                    composed. */
static const char unicode_classes[] =
    ",R(X5e$P&P$N)V$N'R-[%N&R%N=v&P$N$M$N=w$L$N$L$N)L$P=u$P$L(V$L%P$G$L$N$B'T%M$N$D%N$N$K$G$L&O$L:p$N*O;s$N+R%%C$D3p$"
    "D$6n%E$D'W%F%E$D$C$D%E$D&G%F'I$D%E$D&G&H%E$D%E$D'W%E$D$C%F$C$D%E$D&G$D$C$D%E%F$G$C&H'M$C$E$D$C$E$D$C$E$D3p$D5t$D"
    "$C$E$D$C$D&G$D%'G)N%E$D%E%F$C$D'I$D+`%1N$G>y5i'T/]1i(N*Z$F$N$F4o%=J$H$(i'W$g$N$C$D%D$F&H$m$C'H%P$C$m&G$B$C$B%E$D"
    "4d$B,S$+J$C%F&G&H<A'J$C$D$N$C$D%E%F$;j$8e$*U$N(q%J$>~%E$D/h$D&2U$B$.O%D$F)V$1V%N%D&R$B$6D$L$i$L%k$L%k$L$i+P>|'H'"
    "M%N4c&R%N$N%N%P.}$L$B&P$(G$F-Y9R-['R%I$i&5Q$L$G*u$B$N)s%H%k$N'o%I-[&K%P$G1g%D$G$i$&C$#_%D&*|.]$G1]-[$)I,y%H$N&P$"
    "F%D$H%P9r'o$F,y$F&m$F(q%D2i$B<x&m%D$L$B.[(J;v$N)Q+P,X$1Y$F-Z2D$B$%c'N$>t%J$i$G2e$i%J$G'o&L+v%I%J%N-[$L$F2d&L$B+U"
    "%D%I%D9r$B*S$B$G&F'M%D$i$G$i)R%D%J%D%J$i$G+P$i'H%j$B$h%I%J%D-[%I%P)T%P$G$L$H%D&L$B)Q'H%I%D9r$B*S$B$G$h$B$G$h$B%I"
    "%D$i$B(P'H%J%D%J$i&F$H*N&l$G$B$h*N-[%J&K$H$L-T&L$B,W$B&K$B9r$B*S$B%I$B(O%D$i$G+V$B&L$B%J$i%D$G2_%I%J%D-[$L$N*N$G"
    ")R$B&L$B+U%D%I%D9r$B*S$B%I$B(O%D$i$G$i)R%D%J%D%J$i*N$H%k'H%j$B&K%J%D-[$N$G)T-T$H$G$B)Q&F&K$B'M&F%I$B$G$B%I&F%I&F"
    "&K&F/^'H$i'N&F&L$B&L$i%D$G)L$i1]-[&N+](J(P+U$B&K$B:t$B3f%D$H$G*T$B&L$B&L$i*N%k$B&K%D$G%D%I%J%D-[*N$L*V$N$G&L$L+U"
    "$B&K$B:t$B-Y$B(O%D$i$G'N$i%J$B&L$B&L$i*N%k)L%I$B%I%J%D-[$B%I$H/X'N,W$B&K$B$1Y%J$G$i)R$B&L$B&L$i$G$N'H&K$i*V&K%J%"
    "D-[,Z$N)Q$B&L$B5j&F;v$B,W$B$G%D*S&F$i'H$i(P$B$H$B*T$i)L-[%D%J$L/X$8h$H%I'N&m'H$N)Q$F$H'o&L$L-[%N$-L%I$B$G$B(O$B;"
    "v$B$G$B-Y$H%I'N%k&L$G%D(O$B$F$B'o&L$B-[%D'M$(B$G&R2i$N$L&R%k)X-[-]$N$i$N$i$N$i'R%J&K$h'M$B'M$h'M$h'M$h'M$h/^$h&K"
    "'H)s$H$i$H'o%J(q$L%k(O)R$i'N$B'N$i'N$i'N$i'N$i/_$i&L$B+]$i)X$B%P(T'T%N$-L$3^&L$i+V$i$H%k'N$G-[)V)Q'N'M&L$G&L%I*T"
    "&K'N0`.]$i$G$H-['N%P$.O$B$C(J$C%D$3Z$L$F&H&3M9Q$:l$#^'=Y$B'M%D*S$B$G$B'M%D$1Y$B'M%D$)I$B'M%D*S$B$G$B'M%D2d$B%%z$"
    "B'M%D%0O%D&m,]7q&F3f-a)L&'r%D)N%D$L9;E$N$L4h$P=z%N&F%8`&P&O+U*N5j%J$i$H,R6l%J$i%N,R5j%J/X0`$B&K$B%J/X$<p$&D$i$H&"
    "P$F&P$N$G$i%D-[)L-])L.a&L$B$H-[)L$+M$F$=r*N(O%J$*K$i$G(J%3U-T$'E$B/_'H,X&m'H$N&F%N-[$&C%D(O.V$4`'H=z)L-[$J&F$*R:"
    "t%k&L%D%N$=r-Z$B$i7o+w%D$i-[)L-[)L*X$F)V%D2D4i$9e(P$7f%k1c$i+U$B%N-[*X-a,y,_&P&L$&C,X%k%J%I-[$4`$i.]%k+P'R$,O6m$"
    "i&F(T-[&F&K-[$&C)P%N,T$C$D(J$3Y%D&G+Z+P&m$L1B$H*u'M$i)Q$i%I$H%k$G(J$4]%,F0]$F$*H$-P%#V(P(q(2E+R&4Y+R+Q)N%D)M%D+R"
    "+Q+R+Q)N%D)M%D+R$B$C$B$C$B$C$B$C+R+Q$D$e$D$e$D$e$D$e$D$e$D$e$D$e%D+R+S+R+S+R+S(L$B%F&G$d$E$N$e&R&H$B%F$C$d$C$d$E"
    "&R&H$e%D%F&G$d$B&R&H$e'J&G$d$C$N%q%D&H$B%F$C$d$C$d$E$o$N$B%s,a(J;{%R(J$P2i%O&P$N0e$N$L$M-_$P3a$J$F%D)T&R%N$F-]&R"
    "%N$B0_&F$)P2_1B'N$i&L0@2_%P$C'T$C%P$D&G%F&G$D$N$C&R(K)X$C$N$d$N$C$N%f%E$N$D'I$D'M$D%P%F%E(V$C'J'T$D$N3i$+Q$C$D'Q"
    "$J%P'H0;T'R$%H%o,.Z9m.c8k%)D>B$<x9u97D1g$&F$9q%N$'L-_1;L9w%,N'R$(N%N+(V$o(3D%D$(N$B&;e$8d$8e$C$D&G%F)['I$D$C%F$C"
    ")N%H&G$D&4Y$D)X'W&m$C$D(J'R$J%N$.P$B$D(J$D%D%$x*N$F$L1]$i:t,R*S$B*S$B*S$B*S$B*S$B*S$B*S$B*S$B$(i$7k$F$(L%P/c$*F>"
    "R$B&+T/X*<V=u3m$P&P$N$V$G$[-_%P/c$N,l)s$L(N%P&`$V$G$L%P$B&'v%D%k%P%H$G$L&+~$L&J$G(J$3^$B&0G$B%P'P-a$(G$.Z,R$N3f$"
    "'L$B-]$&J+X$N2g$(N-]$/]2g.9a+6#~%-P>4<`8p$F$1&|&F%#},R$0W)P%N,;n$F&P3f-[%I7i$6n$G$i&L$L-{$L$F$$I%H%k%3U-^%k)V+P:"
    "{,V%P1l%F%+O$F+R'W%E$D+`$F%P'W$G'W%F7x(K$D(K$D1l'I$D$C$D%E$D%D$C$D$B$D$B$D)[$C8k&J$C$D$G%H$D*S$H&K$i'M$H:t(P'T$H"
    "&F)T'T)L$<p'R+P%J$:l3g$i$H+P%N-[)L6L)Q&P$G$L%I$H-[$#~(P&m%N:t/_$i.V$L$%A&F'N$7f$i/_$i0e$B$F-['H%N(O$H$F,W-[(O$B$"
    "1Y1c,R&K$H+U%J%D-[%D'R3f$F)Q&R$G&L$:l$i$G&m%I%k(O%k$G$i$G;q%I$F%N.[(P%N$G%H$H$i-T)Q%D)Q%D)Q,R*S$B*S$B$3Z$N'L,T$F"
    "%P'H%=g$+M+V$L$H$i%D-[)L16;^/X:t'H$9j.&3i,>d%Y$x$W$x%Y.K$W$x$W$x%Y%z&[%2C%D&=Q$.N*P/X(L(J$h$i$h,W$N1A$B(p$B$h$B%"
    "j$B%j$B,x&5Q4o3a0-r%N3m%-I%D$>t*N$N$(B/^'T3g-_)L4H&P%O;{&Q&P$B1g$N$L&R$B$L$N%N'H(O$B'>['H&P$N)V$N'R-[%N&R%N=v&P$"
    "N$M$N=w$L$N$L$N*X-Y$F$5b%H$'E&F)Q%D)Q%D)Q%D&K&F*Z$B*Z0Z%P%D/^$B=z$B6l$B%I$B2d%D1b$*F'2C(J&P'H$5e&F,_$=v'P4o%L&R$"
    "B0g&F$N$7a$5i$i'9L$%A&F$9j2_$i$#@'H$(G'P,R7n$K+U$K(J$.S(q(J$&C$B$L$,O'H+U$L(S$2V$0S$0T%;f%D-[)L$,K'H$,L'H$0W+P$<"
    "p.V$L.W$B2`$B*O$B%E$B.X$B2a$B*P$B%F&F$<p/X.0G,R9r-T+U;q)P$B$2Z$B,V%2N)Q%D$G$B$4`$B%I&F$G%D:t$B$L+X:t%P*V$'E+P,Z$"
    "8c6l$B%I(J(R9r)T&F$L=z(J$L%-D%$x'H%L%I3i%D$6g$G&L$B%J(J$H$i$H$i'M$B&K$B$%A%D&m'H$i,Z*N,]*N$%A%L$L$%A&N$(B+U$N$#~"
    "%k'H(R*X,R$>t&F*X9r%D+X6l(J+X5j*N'R/X*V%=e%6[%#q$;j0Z$;k*N)T$,O'N+P-[)L-['M$F$G9n&F(P$L$F9o+P%P*5m$'H$B$2[$B%J$L"
    "%D%I3a&K%#q'N$%A-]$G+P9r.]'P(T9m5j'N'R$.N8p*V7i:t,R&L$=r1c$i*X'H7q-[$H%I%J$G,R$i&L$5b,X%k%N$B'R$H0Z<x*N-[)L&m$,O"
    "$i.]%k$B-['R$G%J$G+P$+M$i%N$G,R&L$8h0a$i'M'R$H$i%J$L%J-[$G$L$G&P$B7q.V5j$B<x,X%k$H)V$H%I$H%+@*S$B$G$B'M$B2d$B-Y$"
    "L)L$7f-Z%k(J-[)L'N$B+U%D%I%D9r$B*S$B%I$B(O$B$H$i$G$i)R%D%J%D%J$i%D$G)L$i(J(O%J%D*u&F(q.V-Y$B$G%D$G$B$.S$B$G,X$B$"
    "H%D$H$B'N$B(P$G$H$G%N$B%N+P%J$${$=r0a$i&L$i'M(T-[%N$B$L$H&K$%}$8h$i,X$i%J$i'N%k%I$L$G+P-[)&V$7f$i)R%D*T%k:y'M%J$"
    "*F$8h2e$i$H&P$G.V-[)L0e6g$3^.]%k$G$L)L-[)L7p$#y>|%D1c$i'H-[%L&P$N*S)9}$4`2e$L&6N$(C$(D-[,Z/X+U%D$G%D+U$B%I$B;v)R"
    "$B%J%D'N$G$H$G%J&P,R-[%3P+U%D$/U*T%D*T$G$L$G$H>w$G-Z$0W*T$G'N+Z$H+P$G.]$6d3g&P$G(T0Z%6[*N-_)6w$)I$L1]-[)L,W$B$-Q"
    "+V$B*T$i$G(T-T-[6o&F%N$&C%D9s$B1c%6V*S$B%I$B$.S)R&F$H$B%J$B*T$G$H+P-[)L)Q$B%I$B$(G(P$B%J$B(P$G*N-[./@6l'N%N*N%J$"
    "G$H0`$B$*K*T&F(P0e-[$H&&o$G2_8s$%H0Z$L$(>t&8R'%n$B(T.V*)Y&0(B&3M%N0Z$.1j3a$H)Q2e-T(**|(J80x,#(k$&C5k-[%*<{7>[*N$"
    "'E$B-['H%N%<h$B-[)L$&C%D(q$L-T$8h*u(T'T'L$L$N-T-[$B*V$B8p(J6l2<{&J$0W%H&P-[*+X$(C$(D:w'R&7P%8`'H$H$G%#w*N'N0_%-D"
    "%H$]$V$H.V%Z1]+%)A+P$45A$1T-Y.8.N'L$B*R$B%H$B-7^2_$G$${&K%D$G1]'M+P13v&$%]&=b(J0`&F,W*N-Y%D$N$H$i$L((%}+:{-[)L3%"
    "P%9]$6e%D:u,R'*{%({,%H-T$/]%D$=y*{(q&R)s+P+w%P*u$&J'o0g)y$2c8k%/T&m$N'0{7q/X7q/X&)@,R<{'>V=v=w=v*P$B5g=v=w$C$B%E"
    "%D$C%D%E%D'I$B+Q'J$B$D$B*P$B.X=v=w%E$B'I%D+Q$B*O$B=w%E$B'I$B(K$B$C&F*O$B=w=v=w=v=w=v=w=v=w=v=w=v$#{%D<t$N<u$N)N<"
    "t$N<u$N)N<t$N<u$N)N<t$N<u$N)N<t$N<u$N)N$C$D%D$:n5;m%#w'T$:m+]$H1i$H%P(T2_(P$B2e$/6g-V$G7k)L)N*:w*u$B5J%D*u$B%k$B"
    "(q(J%+D$)D$H'&g$5b&F*T*R%D-['H$G$N.9T$&C$H4c$4`'N-[(J$N4%}>|$F'N-[*;y$&C%J$G-['H$L46_*S$B'M$B%I$B2d$B**[%D,Z*u$1"
    "T$*G$*H*u$F'H-['H%N$#=T%(B$N&N$N'P%9]$5e$N2g*'P'M$B>|$B%I$B$G%D$G$B-Y$B'M$B$G$B$G)L$G'H$G$B$G$B$G$B&K$B%I$B$G%D$"
    "G$B$G$B$G$B$G$B$G$B%I$B$G%D'M$B*S$B'M$B'M$B$G$B-Y$B4h(J&K$B(O$B4h$<k%P,=m$4g'H&6Z/X2k%D2k$B2k$B$-X-T0c$+T>C)X>C)"
    "X>C$,V%$s$%H0Z$4g'H,_*N%P1])X(5}$+*{'H4o&F0g&F'.B'H&1P)L/e'H$N2_/e'H%%@+P-a)L$0_+P$&J%D/e'H%P%+@/2J/X1i%D0g&F-a("
    "J%%@*N2k%D.c)L,_*N(.{$B&.J-[$,>N%#)=Y$(B(0'U)L+(`%D*3/M1],:1Y2_9=Y&)<c7#U$>1e)1%j(J(12d$(00/P+:u,)(=L";
static const char unicode_combining[] =
    "/XU&m@A&o@D&c@A&o@A&_@E&c@B&P@D&c@B&P@K&c@EA@D&c@H&m@A&w@A&m@C&c@C&m@B&cAC&m@D&c@A&m@A&o@B&c@A&m@A&p@B&q@A&p@B&q"
    "@A&p@M&m'[E&m'QA&c@D&m@A&c@C&m@A&e@A&c@F&m@F&c@B&m@A&c@B&m@A&e@A&k@A&m@AJ@AK@AL@AM@AN@AO@AP@AQ@AR@BS@AT@AU@AVAAW"
    "AAX@AYAA&m@A&cAAR$JH&m@A_@A`@AaqA[@A]@A^@A_@A`@Aa@Ab@Ac@B&m@B&c@E&m@A&c@B&m@A&cPAd$hG&mBD&m@A&c@A&mBB&mAA&c@B&m@"
    "A&cdAe_A&m@A&c@B&m@A&c@B&m@C&c@A&m@B&c@A&m@A&c@C&m@A&c@A&m@A&c@A&m@A&c@A&m@A&c@B&m%eG&m@A&c@A&mcD&mAI&mAC&mAE&ml"
    "C&c${N&mAA&c@B&m@A&c@B&m@A&c@C&m@C&c@A[@A]@A^@C&m@A&c@B&m@B&c@E&m}AGPAICA&m@A&c@B&m$jAGPAI$qAGPAI$qAGPAI$qAGPAI%"
    "CAI%CAIGA$V@A$^$hAGPAI%CAI%@AI$pB$j@AIMD$n$oB$yND$}$NB&c[A&cAA&cAA&_xA%E@A%FAA%HED%FBA%FAB&m@AIAB&m$@A&c$sAGABI$"
    "TA&c.fC&m2RAI`AI%bAIJA&m&QA&k%SA&e@A&m@A&c&bA&m@A&c$IAITH&mBA&cqE&m@F&c@B&m@A&c$yAGOAIgA&m@A&c@G&mwBI{AGKBI$EAG%"
    "]C&mAAA@E&c@B&m@D&c@A&mAGADA&cFA&mCB&m&LB&m@A&c@G&m@A&c@B&m@A&q@A&]@A&c@A&P@f&mEA&m@A&p@A&c@A&m@A&c.gB&m@BA@D&m@"
    "CA@B&mDA&mCBA@A&m@A&c@A&m@BA@D&c@A&m$8aC&m%QAI$ca&m+{A&a@A&k@A&o@A&e@B&g$lBH4-aA&mDJ&maB&m$RB&m']AI&CAI[R&mzC&cf"
    "AI$bAGLAI&vA&mAB&m@A&cBB&mEB&mAA&muAI&}AI.5}AZ/YG&m@G&c@B&m2lA&c&iA&c%YE&m>HA&cAA&miA&m@AA@A&cDAI%jA&m@A&c9KAIyA"
    "IzAI@AG$GC&mqBI$@AG$NAIIAG$mAI@AG%wAG@AI$SAGPAIXG&mCE&m&SAICAG$~AI@AG'CAI@AG%BAI$yAI@AG$vAI7|AI.3yEA|G&m/#GAA&$q"
    "B&_@CACA&i@E&_HH&cBE&m@B&c_D&m%XC&m%#lG&mAQ&mBG&mAB&mAE&m$*lG&c$pF&m@AG";
static const char unicode_decompositions[] =
    ",S%F@D@BD@DD@FD@PD@TGD$PDD@D@BD@DD@PDH@D@BD@DD@PGJFDB@D@BD@DD@FD@PJL@D@BD@DD@PDHBJP@D@BD@DD@FD@PD@TGD$PDD@D@BD@D"
    "D@PDH@D@BD@DD@PGJFDB@D@BD@DD@FD@PJL@D@BD@DD@PDHBG@PD$rHD$BHD$ALD$BLD$A$RD$B$RD|BD$BBD$ADD$BDD$AND$BND$AXD$BXD~XD"
    "$BXJ~HD$BHD$ALD$BLD$AND$BND$A$RD$B$RD$AXD$BXD|DD$BDD$ALD$BLD$AND$BND$A$PD$B$PD~DD$BDJ~FD$BFD$AHD$BHD$ALD$BLD$A$R"
    "D$B$RD$ANMBDD$BDD~$PD$B$PG~BD$BBD$A$PD$B$PD$AXD$BXP|BD$BBD$A$PD$B$PD$AXD$BXM~HD$BHD$ALD$BLD$AVD$BVJzBD$BBD$A$PD$"
    "B$PD$AXD$BXD~BD$BBD$ADD$BDD$A$PD$B$PD$AXD$BXD~$PD$B$PD$AXD$BXJ~FD$BFD$AHD$BHD$ALD$BLD$ATD$BTD$AVD$BVD$A$RD$B$RD|"
    "DD$BDD|DD$BDD$APDBBD$BBD$AND$BND$AXD$BX$j$WwD$BwltwD$Bw$Z$jXD$BXDpXD$BXDtXD$BXDtXD$BXD&THD$BHD$ABD$BBD$AXD$BXD$A"
    "@D$B@G$rHD$BHD-XHDBHD.WHD$BHJ(GXD$BXDxXD$BXDx$RD$B$RD/NHDBHD$jXD*DXD4rXM$GBD$BBJr@D$B@D%sBD$BBD~BD$BBD[BD$BBD(x_"
    "D$B_D$AcD$BcDx_D$B_D$AcD$BcDx_D$B_D$AcD$BcDt_D$B_D$AcD$BcDz_D$B_D$AcD$BcDz_D$B_D$AcD$BcD$E$ND$B$ND~$ND$B$NJ$YXD$"
    "BXV$OND$BNDx$PD$B$PD&iHD$BHD$CHD$BHD(UND$BND1ZHDBHD2IHD$BH0A7wCBFeEUB%T%b_7dV&aBD;BBC:bD:kBDDBDDBGLBGLBDHBD$DB$Q"
    "$dPDXPDXBDHBDDBDDBDeB$QdPDXPDKBDLBDHBPRBD@P%I%J@D@PGCBMYPPiBDC@DVLcUL$d$BL$HE@D@PGCBM$HPPxBDC@DVL$K$e_DB_&f&CLD$"
    "BLl$MLD$BLD$APD$BPJvLD$BLJ(PPDBPD)QPD$BPD~PD$BPJ~HD$BHD$APD$BPDtPD$BPJ(_PDBPD)CPD$BPD$UHD$BHD$APD$BPD$AVD$BVDxPD"
    "$BPJxPD$BP1X2V>]D@>_D$D>_D$C>aD$H>_*^'_>_Gh>_uc>_$#|6R$:_YP$:_JF$:_$q|$:_EB$:_EB$:_EJ$:_EJ$:_EB$:_ER$:_EH$:_(O'y"
    "$>kD@%#_s$M$>gEB$>gHZ$>g'F'N%&oKL%&o$n$E%&oEB%&oEJ%&oK_%&o.U,J%/uJ@%/DD@%/ws$M%/@EB%/@%k&g%4@%h$k%3LDB%3LDA%4@)A"
    "'H%8F(t&y%<LVN%<LD@%<NG@%;eDH%<L)J'@&#eDB&#eDA&$X)x'o&(FG@&(PDF&(FDE&(q4S.i&8@aT&8@QJ&8@QJ&8@QJ&8@jv&7{a$e&5qH@&"
    "5uE%F&6NHB&6N^%G&6Ny$D&8@aT&8@QJ&8@QJ&8@QJ&8@jv&7{(R's&;u'9n&(s*&yGD*&yGD*&yGD*&yGD*&yMH*&y%@$T*&yGD*&yJD*&yDB*&"
    "yGF*&y$({*=~$LD$B$LD~ND$BND$A$HD$B$HD$A$eD$B$eD&PBD$BBD(OND$BND$A$HD$B$HD$A$eD$B$eD$A$PD$B$PD$A$]D$B$]D(g@DB@DAB"
    "DBBD)h$]D$B$]D$A$cD$B$cD1cLDBLD2dND$BND~HD$BHD~ND$BND$A$HD$B$HD$APD$BPD$A$PD$B$PD$A$_D$B$_D~$cD$B$cD&RBD$BBD(QBD"
    "$BBD$A$HD$B$HD$A$eD$B$eD~$HD$B$HD+9@HDBHD+:C$eD$B$eD$A$]D$B$]D~BD$BBD$AND$BND$A$HD$B$HD~ND$BND$A$HD$B$HD$A$eD$B$"
    "eD$A$]D$B$]D&TBD$BBD$APD$BPD%s@DB@DABDBBD+IBD$BBD$AND$BND|ND$BND$A$HD$B$HD+9}HDBHD+;A$eD$B$eD~ND$BND$A$HD$B$HD*]"
    "NDBNDJNDBND+2aNDBND+;MND$BND$A$HD$B$HD$A$eD$B$eD$A$]D$B$]D~$JD$B$JD$A$cD$B$cD$A$]D$B$]D*uBDBBDBPDBPD+zFD$BFD$A$H"
    "D$B$HD~@D$B@D$ABD$BBD$APD$BPD$AND$BND$A$HD$B$HD~ND$BND$APD$BPD~ND$BND~DD$BDD$A$HD$B$HD$A$eD$B$eDd$eDXPDFTDDTG+]N"
    "P-O$HD$B$HD$ARD$BRD&HBD$BBD$A@D$B@D$ARD$BRD$AFD$BFD+8gDDBDD+7fBDBBDA@DB@DARDBRDAFDBFD+7cLDBLD+=l$HD$B$HD$ARD$BRD"
    "$AFD$BFD&PBD$BBD$A@D$B@D$ARD$BRD$AFD$BFD+9HDDBDD+>URD$BRD$A$HD$B$HDt$HD$B$HD$ARD$BRD&PBD$BBD$A@D$B@D$ARD$BRD$AFD"
    "$BFD+9]DDBDD+3zBDBBDA@DB@DARDBRDAFDBFDA$HDB$HD-l$HD$B$HD$ARD$BRD-HBDBBDA@DB@DARDBRDAFDBFDA$HDB$HD.C@D$B@D$A$HD$B"
    "$HD$ARD$BRD$AFD$BFV=egD@iD+$a@DB@DABDBBDA%HDB%HD+%dgD@iD+%s@DB@DABDBBDA%HDB%HD+$jgD@iD+$y@DB@DABDBBJ+%|gD@iD+&L@"
    "DB@DABDBBJ+%GgD@iD+%V@DB@DABDBBDA%HDB%HD+&YgD@iD+&i@DB@DABDBBDA%HDB%HD+%dgD@iD+%s@DB@DABDBBDA%HDB%HD+&vgD@iD+'F@"
    "DB@DABDBBDA%HDB%HD+%xgD@iD+&H@DB@DABDBBJ+'KgD@iD+'Z@DB@DABDBBJ+&MgD@iD+&]@DB@DABDBBDA%HDB%HG+'`iG+'q@G@BG@%HD+&f"
    "gD@iD+&u@DB@DABDBBDA%HDB%HD+'xgD@iD+(H@DB@DABDBBDA%HDB%HD+'x@CIDR@CODT@CQDV@CSDa@CZDM@CPDG@CJJ+#e%NDB%NDB%NDB%ND"
    "B%NDB%NDB%NDB%NDB%NDB%NDB%NDB%NDB%NDB%NDB%NDB%NDc%NDB%NDB%NDB%NDB%NDB%NDB%NDB%NDB%NDB%NDB%NDB%NDB%NDB%NDB%NDB%ND"
    "$e%NDB%NDB%NDB%NDB%NDB%NDB%NDB%NDB%NDB%NDB%NDB%NDB%NDB%NDB%NDB%ND+(ELD@HD+(H%ND+(G%NDI%NGJ%HD+*X%ND++YLD@HD@@CUD"
    "V%NF$RJ<S%HD,%T%ND+(C%NDQ%NGR%HD+*m%ND++r@CYD_@C[D]%ND++a@D@BD@%HD+*YLD@HDc@C$vJ$T%HDc%HD$dLD@HD@@C^G+-}@D@BD@%H"
    "D+,CLD@HDL@CvDcgD@iDH%HDL%HD$MLD@HD@@CnDgiD;b@C:iC<|J,'y%ND+'n%NDJ%NGI%HD++k%ND+-A@CfD{@CtDu%NC;YI,)aCB1K+-GL>rC"
    "&{(X,5s$sDD$s{D$s$a${$sDH$sDC$s%e$e$sPJ$sJF$s$Kq$sGD$s$To$sJN$sJD$sGF$s$H-$G$sG-${$sch$sD-$S$sDD$sD-%@$sDB$sJZ$s"
    "DB$sJF$sDB$sVF$sDB$sJN$sDB$sJF$sDB$s$mw$sDL$sDB$sDD$s%X$`$sDB$sDi$sDB$sV$B$sDB$sDB$sDB$s%y&=BCB&.V$1l$s%.W$3u0/c"
    "GD0/cGD0/cGD0/cGD0/cGD0/cGD0/cGD0/cGD0/cGD0/cGD0/cGD0/cJF0/cGD0/cGD0/cVN0/cD@0/eGF0/cD@0/eGF0/cD@0/eGF0/cD@0/eGF"
    "0/cD@0/e$H$l0/c`%s0/cl]0/cGD0/cGD0/cGD0/cGD0/cGD0/cGD0/cGD0/cGD0/cGD0/cGD0/cGD0/cJF0/cGD0/cGD0/cVN0/cD@0/eGF0/cD"
    "@0/eGF0/cD@0/eGF0/cD@0/eGF0/cD@0/e$H$l0/cJ%V0/cDB0/cDB0/cDB0/cMV0/c&'0a=<yC.#OC.7}C3dC+:[C,4WC$6DC9,PC@C77^C35eC"
    "48vC$&@C%2kC)#wC%6NC$>cC/NC-PC%)kC.-UC<eC$%yC;{C':LC&;sC%1ZC9)zC$/wC)=cC%%cC(<oC*$mC6&IC(0iC)/mC$$iC.-rC,'_C$:uC"
    "/(SC%/cC$;NC$5@C+9PC6*EC5FC,aC(*sC$9BC%&qC$.}C%6JC$8mC%qC%)cC%7_C$*@C8@C.$EC*uC$)FC$9wC'0qC&-sC(9UC17fC$9oC+5]C$"
    ")@C''`C$;yC(;yC&#RC5+~C$$NC'$DC$&LC,}C''iC+aC*%uC6<KC00eC08`C`C.;yC$%@C$:LC(/yC&)^C/#AC%&]C,7XC4<tC'#}C$)ZC(7kC2"
    "qC-&hC.'yC/'`C'6ZC((YC,$yC%'`C)>ZC/(hC$-BC,$@C&<kC$;kC,&^C-3}C--SC%9pC,.]C,)MC()oC..lC9cC&FC)6gC)#]C$4kC%0PC%$mC"
    "52AC-oC$1wC$4LC%#cC&#ZC%6oC+.]C$.HC$)_C$qC90OC(=cC$-oC-3gC1/CC<kC&gC8_C&&@C4oC=uC$2XC$)XC7_C',aC&#WC&+cC=BC6)YC'"
    "aC4VC+*eC*%@C2oC/=UC,kC$$FC%.mC';qC%3bC-8|C%-oC$/mC2DC6kC(8oC(yC&+ZC(cC(+DC$.RC%iC)mC8.GC/.}C*%XC$0ZC2;fC(.dC6NC"
    "&*_C%gC%8NC$+ZC%+XC$+qC',gC&-}C'/ZC39vC1$_C6=fC)'}C&wC$2sC.LC$3sC-uC<VC$-VC+$_C7<tC'=VC2.sC77bC&9qC'=wC,9eC1$OC1"
    "NC%#VC&-]C-,@C7'bC2kC%/uC%:{C-JC.JC$*@C%%wC2VC%:LC%8FCeC%4iC$1@C6=bC+%{C*:pC+8PC9}C(&cC'<eC$6FC5uC3)[C$:NC(=FC%%"
    "nC%oC.{C%<EC4pC*;wC4;WC20NC1/`C$hC&7NC$)_C*5sC,:GC((TC$;|C.=kC%$OC'&iC&8UC/3pC'#EC$,JI8_F'']I)$~C,9}C$${C7LC$FCN"
    "C$VC+8yC*:fC;oF$;RF$/]I$2VC)VL%,gCZC$ZC$,cC&8~C$7RC7=fC-FC&RC/PCwC&aC5}C&XC&JC2NC&VC$%uCTC$)PC)uC$NC&NC>qC'oC(iC"
    "3HC$/uC(PC+aC5}C)FC3NC$+gC(eCVCACPCLCNC$cCBC(oC%FC-RC5LCkC$sC,uC'oC2oC'aC@C2ZC$.@C'TC.mC$sC0NC$mC9HC'LC$>DC,JC${"
    "C3/dC(%+RC'7-`I2+|C$$XC%^C2nC1gC$yC-cC$iC8qC%SC%LC%VC7XC%wC'kCaC+mC)XC$%PCNC'iC%LC,iC&sC%OC'TC$^C'mC%HC/yC%uC$oC"
    "+XC,NC(PCHC$yC$)JC%FC/gC0NC`C%sC+HC-uC$:XC$3|C&{C&}C-cC'sC$mC*RCDC(aCcCsC%qCSC/qC2iC+oC)BC*NC'{C-iC)ZC>PC(DC$$NC"
    "1mC%NCaC,eC$uC$[C$oCECbC%]C%gC/TC5DC-HC,aC*HC$(NC&TC&mC'RC$JCXC$cC:]C$,_C'&9qCKC&.aC(+6vC$,@C$DC(3,RC&%{C-#wC($/"
    "OC%Z&T$4,S9THs9ZdQ9oE@9qE%3-T9oE@9qE%3.G9ZE@9]E@9eEB9eEB9eEB9eEB9eEB9eEB9eHD9eEB9eEB9eEB9eEB9eHD9eHD9eEB9eHD9eEB"
    "9eHD9eEB9eEB9eEB9eEB9eEj9_EG9kET9kER9k,.t%95_%:2ZGD%:2ZoT%:2Z)V'a%:5{DB%:5{=I4L%;+LD@%;,@4q.{%;7]D@%;7HG@%;7c/M+"
    "N%<#VDB%<#V%>#S$>,V';-_EB';-_EN';-qE@';-sE@';-uE@';-wE@';-y'O%y';-_EB';-_EB';-qEB';-qEA';-sEB';-s'5'y'%*|CICRC'3"
    "*PC'2<~C%aCZC%RC&wC$@C%aCpC++rC'<,BC'3;ICNCaCgC'30eC';=zC+/uC$NC'31XC'31CCZC:^C:oCRC)$=@C)$:zC]C+3hC+5]CVC$ZCJC+"
    "5hC+8NCDCwCmCVCBCcC$gCPCRCsCTCDC@C@C'4-gC'+:fC+/dCkC'44cC'44ICLCkC'yC&QCaC$BC$wC%mCuC%JCaC$DC@CkCeCPC_C-}C+pC+sC"
    ")WC$HC$+bC%$@C,QC$NCsC'KC(XCAC&}C'6#XC'5=GCJC_CiCPC%DC'6,FC%HC'6)pC$aCXC%bC'eC-/xC]C-4kC$oC@C'66cC'62OCkC_CXC'6;"
    "cC'6;ICNC>PC=UC-9^C-;_C]C%iC$hC'71kC'7+rC'7+wC'7*^CECcC&PCBC.&SC.'LC$XCkC$ZC.)AC('*PC(')YC.*_CFCFCiC)&+HC)&)[C'8"
    "-RC@C'.$IC-*|C@C.+nC(,)FC0<NC(.7`CRC.-KC..mC$iCTC$FC'XC.3UC|C.4{C'8>NC'8<dC'JCHCDCCC$_CiC$JC[CVC$aCiCHCuCVC%HC%m"
    "C$HC'@C'9._C'9/EC%EC&_CwC&HC'91FC'9/EC%~CxC/)bC//oCkC$@C$MC/.KC/5JC{C':*RC':&[C+{C(hC/7hC/9}C/:`C$IC)6RCFC)+wC&M"
    "C*6PC4=SC-.BCHCLC$}CUC':9TC(+8~C0(DC&pC)gC$iC':4{C':4hC&dC*yC0.[C0/{C&HC%RC)HC':5cC':3xC09IC0;ZC';&RC';$hC0;SC0<"
    "RC$]CwCBC';1@C+6jC+:LC';/pC';>RC';:hC]C&QC(iC$RC$uC$nC$RC_CZC';7ZC';:AC+FC%BC11bC14cCGC';;DC'<%lC/BC';:NC$cC';8z"
    "C&mCvCEC1<KC1=mC$iCKC$oC'*+HC'*&MC'<'}C'<%IC'</oC'<+MCZCwC'<=]C'<;xCkC'=({C*LC'=(nCcC23fC24]C24CC@C29RCkCkCiC%NC"
    "2:SC2=NC'==HC'=<QC'>#PC'==hC'1*}C'1%rC'>5oCoC'aC(29dCXC3(cC'>9RCAC$PCuC'>9~CBC@C$XC3)nC3+uC3+YC%eC(38XC(#,OC%@C%"
    "DC30lC(4*mC(#4bC(#8RC$XC(#7tC%}C37`C3:PCTCJC($,DC,iC@C($0dC39CC(53BC($1~CFC3>zC(58mC($0MC4'dC4(RCIC{C(%+mC(%(`C4"
    ")GC4,VC$yC%JC4.pC(7&oC$@C(7&bC(7+PC(%2lC(%5}C(%5EC&PCVC(%>qC%VC(%>KC(&&_C(&%|C'3*mC()'KC4=gC%gC4>^C5$XC.-MC(1:BC"
    "]C2-`CRC'2;nCFC'#TC9'~C5,NCKCeC1&jC1'TCDCTC$TC('#mC('#nC$sC%PC%XC'[C'}C$VC&gC+WC&uCDCaC('#uC,}C'tC(96jC59iCDC$HC"
    "((<RC((9pC('/iC(:,WCHC(:0cC,TC(:9bC6&yCXCVCDC%DC$CC'TC$YC'wC%fC%JCwC6-YC60VC$BC60QC63VCFC((6gC((2vCNC65^C66XC;:l"
    "C)&$PC({C(<=[CRC7#RC%_C(DC)cC()-kC()*xCmC%yC%}C()9LC$*'EC&>2WC^C$kC&>8NC&>0vC&NC(+)aCwC(*;IC&@C$BC(+%_C(+%IC,LC("
    "HCBC%|C/RCyC(+4LC(+(GC9.QC9/mC(+3@C)%=EC95oC3:OC3=VC(,*kC)wC)'&~CPC9:RC(,;]C)'4rC)'9TC(,>dC@C}C(-*yC(-$zC9<`C9>s"
    "C'DCwC${C:$jC)).kC(.$EC,oC)FC:5IC$@C:7eC(/#NC)*7[C)*9NC+cC'NC(/&rC;#IC;%JCJCNCTCNC$LC(0#B";

static uint32_t table_number(const char **p) {
    uint32_t v = 0;
    int c;
    while ((c = *(*p)++) < '?') v = v * 28 + (uint32_t)(c - '#');
    return v * 62 + (uint32_t)(c < '\\' ? c - '@' : c - ']' + 28);
}

static uint32_t table_step(const char **p) {                /* signed, modulo 2^32 */
    uint32_t v = table_number(p);
    return v & 1 ? ~(v >> 1) : v >> 1;
}

static int unicode_init(Unicode *u, int with_nfc) {
    const char *p = unicode_classes;
    uint32_t c = 0, a = 0, v;
    u->classes = gla_alloc((N_CLASSES + N_COMBINING + 2 * N_COMPOSITES) * sizeof *u->classes);
    if (!u->classes) return 0;
    u->combining = u->classes + N_CLASSES; /* its first run is zero, below the first mark */
    u->parts = u->combining + N_COMBINING;
    u->pairs = u->parts + N_COMPOSITES;
    for (size_t i = 0; i < N_CLASSES; i++, c += v / 64) {
        v = table_number(&p);
        u->classes[i] = c << 8 | v % 64;
    }
    for (c = 0; c < sizeof u->low; c++) u->low[c] = (uint8_t)run_class(u, c);
    if (!with_nfc) return 1;
    p = unicode_combining;
    c = 0;
    for (size_t i = 1; i < N_COMBINING; i += 2) { /* a run of marks, and the gap behind it */
        c += table_number(&p);
        v = table_number(&p);
        u->combining[i] = c << 8 | table_number(&p);
        u->combining[i + 1] = (c += v) << 8;
    }
    p = unicode_decompositions;
    c = 0;
    for (size_t i = 0; i < N_COMPOSITES; i++) {
        v = table_number(&p);
        c += v / 3;
        a += table_step(&p);
        const uint64_t both = (uint64_t)a << 21 | (v % 3 ? 0x300 + table_step(&p) : 0);
        u->parts[i] = (uint64_t)c << 42 | both;
        if (v % 3 == 1) u->pairs[u->n_pairs++] = both << 21 | c;
    }
    qsort(u->pairs, u->n_pairs, sizeof *u->pairs, by_value);
    return 1;
}

/* -- a model and its vocabulary are opened -- */

/* A vocabulary that is not understood is a matter for whoever needs text: the model opens and the
 * reason is kept. */
static int open_vocabulary(GlaModel *m, const char *path, char *err) {
    const Gguf *g = m->vocab_file.map.data ? &m->vocab_file : &m->file;
    char why[GLA_ERR] = "";
    const int code = tokenizer_open(&m->vocab, g, *m->pre ? m->pre : NULL, why);
    m->no_text[0] = 0;
    if (!code || code == GLA_MEMORY) return fail(err, code, "%s", why);
    fail(m->no_text, code, "%s%s%s", path, *path ? ": " : "", why);
    return tokenizer_open(&m->vocab, NULL, NULL, err);
}

GLA_API void gla_close(GlaModel *m) {
    if (!m) return;
    tokenizer_free(m->vocab);
    gguf_close(&m->vocab_file);
    gguf_close(&m->file);
    while (m->owned) {
        struct Block *b = m->owned;
        m->owned = b->next;
        gla_free(b);
    }
    gla_free(m);
}

/* Takes over the mapping; path only for messages. */
static int open_mapping(GlaModel **out, Mapping map, const char *path, char *err) {
    char why[GLA_ERR] = "";
    GlaModel *m = gla_alloc(sizeof *m);
    if (!m) {
        unmap_file(&map);
        return fail(err, GLA_MEMORY, "no memory");
    }
    m->file.map = map;
    int code = gguf_read(&m->file, why);
    if (!code) code = load_model(m, why);
    if (!code) code = open_vocabulary(m, path, why);
    if (!code) {
        *out = m;
        return GLA_OK;
    }
    gla_close(m);
    return fail(err, code, "%s%s%s", path, *path ? ": " : "", why);
}

GLA_API int gla_open(GlaModel **m, const char *path, char *err) {
    Mapping map;
    *m = NULL;
    int code = map_file(&map, path, err);
    return code ? code : open_mapping(m, map, path, err);
}

GLA_API int gla_open_memory(GlaModel **m, const void *data, size_t n_bytes, char *err) {
    *m = NULL;
    return open_mapping(m, (Mapping){data, n_bytes, 0}, "", err);
}

GLA_API int gla_open_tokenizer(GlaModel *m, const char *path, char *err) {
    char why[GLA_ERR] = "";
    Gguf g = {0};
    Tokenizer *t = NULL;
    int code = map_file(&g.map, path, err);
    if (code) return code;
    code = gguf_read(&g, why);
    if (!code) code = tokenizer_open(&t, &g, *m->pre ? m->pre : NULL, why);
    if (!code && t->n < m->config.vocab_size) {
        /* what the model draws beyond them would have no text */
        code = fail(why, GLA_INPUT, "a vocabulary of %d tokens, the model has %d; it is another "
                    "model's", (int)t->n, m->config.vocab_size);
        tokenizer_free(t);
    }
    if (code) {
        gguf_close(&g);
        return fail(err, code, "%s: %s", path, why);
    }
    tokenizer_free(m->vocab);
    gguf_close(&m->vocab_file);
    m->vocab = t;
    m->vocab_file = g;
    m->no_text[0] = 0;
    return GLA_OK;
}

/* -- the interface -- */

/* For whatever needs text: is there a vocabulary that can be used? */
static int need_vocabulary(const GlaModel *m, char *err) {
    if (m->no_text[0]) return fail(err, GLA_UNSUPPORTED, "%s", m->no_text);
    if (m->vocab->n) return GLA_OK;
    return fail(err, GLA_INPUT, "the model has no vocabulary; name one with -z");
}

GLA_API int64_t gla_encode(const GlaModel *m, const char *text, size_t len, int flags,
                           int32_t *ids, size_t cap, char *err) {
    const int code = need_vocabulary(m, err);
    return code ? code : tokenizer_encode(m->vocab, text, len, flags, ids, cap, err);
}
GLA_API int gla_pre_tokenizer(GlaModel *m, const char *name, char *err) {
    if (!find_pre_tokenizer(str_of(name), err)) return GLA_UNSUPPORTED;     /* so it fits in m->pre */
    char before[sizeof m->pre];
    Tokenizer *old = m->vocab;
    strcpy(before, m->pre), strcpy(m->pre, name);
    const int code = open_vocabulary(m, "", err);
    if (code) m->vocab = old, strcpy(m->pre, before);
    else tokenizer_free(old);
    return code;
}
GLA_API size_t gla_piece(const GlaModel *m, int32_t id, int flags, char *buf, size_t cap) {
    return tokenizer_piece(m->vocab, id, flags, buf, cap);
}
GLA_API int gla_is_end(const GlaModel *m, int32_t id) { return tokenizer_is_end(m->vocab, id); }
GLA_API int gla_n_tokens(const GlaModel *m) { return m->vocab->n; }

/* ---- 12. sampler: logits to an id ---------------------------------------------------------------
 * Knows nothing of models. The settings are the rows of GLA_SETTINGS, in section 1. */
#define SAMPLER_ORDER "biases, penalties, temperature, top-k, top-p, min-p" /* then one is drawn */

static uint64_t next_random(uint64_t *rng) { /* splitmix64: every seed is as good as any other, 0 included */
    uint64_t z = *rng += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static double draw_below(GlaSampler *p, double total) { /* uniform in [0, total) */
    return (double)(next_random(&p->rng) >> 11) * 0x1p-53 * total;
}

static int likelier(Scored a, Scored b) {
    return a.score > b.score || (a.score == b.score && a.id < b.id);
}

static void heap_candidates(Scored *c, int n) { /* the likeliest on top */
    for (int i = 0; i < n; i++)
        c[i].key = (uint64_t)~float_order(c[i].score) << 32 | (uint32_t)c[i].id;
    for (size_t i = (size_t)n / 4 + 1; i--;) heap_sink(&c->key, (size_t)n, i, c[i].key);
}

/* The best of n leaves the heap for the place behind it, n - 1; returns its score. */
static float take_best(Scored *c, int n) {
    size_t left = (size_t)n;
    const uint64_t best = heap_pop(&c->key, &left);
    const float score = ordered_float(~(uint32_t)(best >> 32));
    c[left] = (Scored){{score, (int32_t)(uint32_t)best}};
    return score;
}

/* The recent tokens, each once: logits > 0 are divided by repeat_penalty, others multiplied;
 * presence_penalty is subtracted. */
static void penalise(const GlaSampler *p, Scored *c, int n) {
    int count = p->n_recent < GLA_RECENT ? (int)p->n_recent : GLA_RECENT;
    for (int i = 0; i < count; i++) {
        int32_t id = p->recent[i];
        int seen = id < 0 || id >= n;
        for (int j = 0; j < i && !seen; j++) seen = p->recent[j] == id;
        if (seen) continue;
        float *score = &c[id].score;
        *score = *score > 0 ? *score / p->repeat_penalty : *score * p->repeat_penalty;
        *score -= p->presence_penalty;
    }
}

/* How many of the likeliest stay, and *mass, the sum of their probabilities; they stand at the end
 * of c, the likeliest last. Top-p is a share of what top-k leaves. Most often a few are enough, so
 * candidates leave a heap from the likeliest down until there are. total: of all n. */
static int keep_likeliest(const GlaSampler *p, Scored *c, int n, double total, double *mass) {
    const int k = p->top_k > 0 && p->top_k < n ? p->top_k : n;
    int left = n, kept = 0; /* in the heap; of those that have left it */
    heap_candidates(c, n);
    if (k < n) for (total = 0; left > n - k; left--) total += take_best(c, left);
    for (*mass = 0; kept < k; kept++) {
        if (left == n - kept) take_best(c, left--);
        const float q = c[n - 1 - kept].score;
        if (kept && (q < p->min_p || *mass >= p->top_p * total)) break;
        *mass += q;
    }
    return kept;
}

/* An id from n logits; c: n candidates of scratch. Logits that are NaN are never drawn while
 * another is not. */
static int32_t sample(GlaSampler *p, const float *logits, int n, Scored *c) {
    for (int i = 0; i < n; i++) c[i] = (Scored){{isnan(logits[i]) ? -INFINITY : logits[i], i}};
    for (int i = 0; i < p->n_bias && i < GLA_BIAS; i++)
        if (p->bias[i].id >= 0 && p->bias[i].id < n) c[p->bias[i].id].score += p->bias[i].add;
    penalise(p, c, n);
    Scored best = c[0];
    for (int i = 1; i < n; i++) if (likelier(c[i], best)) best = c[i];
    if (!(p->temperature > 0) || p->top_k == 1 || isinf(best.score)) return best.id;

    double total = 0, mass; /* probabilities are relative to the best one's */
    for (int i = 0; i < n; i++)
        total += c[i].score = expf((c[i].score - best.score) / p->temperature);
    if (!(p->top_k > 0 && p->top_k < n) && !(p->top_p < 1) && !(p->min_p > 0)) { /* all of them */
        double r = draw_below(p, total);
        for (int i = 0; i < n; i++) if ((r -= c[i].score) < 0) return i;
        return best.id;
    }
    const int kept = keep_likeliest(p, c, n, total, &mass);
    double r = draw_below(p, mass);
    for (int i = n - 1; i > n - kept; i--) if ((r -= c[i].score) < 0) return c[i].id;
    return c[n - kept].id;
}

GLA_API int32_t gla_sample(GlaSampler *p, GlaState *s) {
    return sample(p, s->logits, s->m->config.vocab_size, s->candidates);
}

GLA_API void gla_sampler_note(GlaSampler *p, int32_t id) {
    p->recent[p->n_recent++ % GLA_RECENT] = id;
    /* the count never wraps, and keeps its place in the ring */
    if (p->n_recent == 1u << 31) p->n_recent -= 1u << 30;
}

/* What the file says, if it can be. */
static double file_setting(const GlaModel *m, const char *key, double usual, double lo, double hi) {
    double v;
    return key && gguf_float(&m->file, key, &v) && v >= lo && v <= hi ? v : usual;
}

GLA_API void gla_sampler_init(GlaSampler *p, const GlaModel *m, uint64_t seed) {
    memset(p, 0, sizeof *p);
    p->rng = seed;
#define SETTING_INIT(X, type, field, usual, lo, hi, key, ...) \
    p->field = (type)file_setting(m, key, usual, lo, hi);
    GLA_SETTINGS(SETTING_INIT, )
}

/* ---- 13. generate: prompt in, pieces of text out through a callback ------------------------------
 * A token is drawn, shown and read, until the text ends. Drafts (DraftSource) only change how many
 * are read at once: what was read ahead is drawn and shown like any other, or taken back. */

/* Bytes at the end of text that may be the beginning of a UTF-8 character (at most 3). */
static size_t utf8_open(const char *text, size_t n) {
    for (size_t back = 1; back <= 3 && back <= n; back++) {
        unsigned char b = (unsigned char)text[n - back];
        size_t whole = b >= 0xf0 && b < 0xf8 ? 4 : b >= 0xe0 ? 3 : b >= 0xc0 ? 2 : 1;
        if (b >= 0xf8) return 0;
        if (whole > 1) return whole > back ? back : 0;
        if (b < 0x80) return 0;
    }
    return 0;
}

/* Bytes kept back at most, an open character or the beginning of a stop text; those taken at once. */
enum { HELD = 1024, PIECE = 512 };

/* Bytes of held that can be shown now. *stop is set, and the text is cut there, when a stop text is
 * complete. */
static size_t showable(const GlaGenerate *how, const char *held, size_t n, int *stop) {
    size_t hold = n - utf8_open(held, n), cut = n;
    for (int i = 0; i < how->n_stops; i++) {
        size_t len = strlen(how->stops[i]);
        for (size_t at = 0; len && at < n; at++) {
            size_t overlap = n - at < len ? n - at : len;
            if (memcmp(held + at, how->stops[i], overlap)) continue;
            if (overlap == len) *stop = 1;
            size_t *end = overlap == len ? &cut : &hold;
            if (at < *end) *end = at;
            break;
        }
    }
    return *stop ? cut : hold;
}

/* -- JSON: what may follow, so that a text is one object or array (RFC 8259) --
 * An automaton over bytes whose stack is one bit for each bracket that is open. Before a token is
 * drawn, all those whose bytes it does not take are ruled out. White space has a limit in a row,
 * because a model may like it too much. */
enum { JSON_DEPTH = 64, JSON_BLANKS = 32 };
/* What is due ("first": or the closing bracket); within a string, or within true, false, null;
 * behind this part of a number. */
enum { J_BEGIN, J_VALUE, J_FIRST_VALUE, J_NAME, J_FIRST_NAME, J_COLON, J_NEXT, J_END,
       J_STRING, J_ESCAPE, J_HEX, J_UTF8, J_WORD,
       J_MINUS, J_ZERO, J_WHOLE, J_POINT, J_FRACTION, J_E, J_SIGN, J_EXPONENT };
typedef struct {
    uint64_t objects;               /* bit i: bracket i is a brace */
    const char *rest;               /* of a word */
    uint8_t depth, at, blanks;      /* brackets that are open; a J_ state; white space in a row */
    uint8_t name;                   /* the string is a name */
    uint8_t left, lo, hi;           /* digits of \u, or bytes of a character, to come; their bounds */
} Json;

static int json_byte(Json *j, uint8_t c) { /* 0: cannot stand here */
    const int digit = c >= '0' && c <= '9', object = j->depth && j->objects >> (j->depth - 1) & 1;
    switch (j->at) {
    case J_STRING:
        if (c == '"') j->at = j->name ? J_COLON : J_NEXT;
        else if (c == '\\') j->at = J_ESCAPE;
        else if (c >= 0x80) {
            /* UTF-8: nothing longer than needed, no surrogates, nothing above U+10FFFF */
            j->at = J_UTF8;
            j->left = c < 0xE0 ? 1 : c < 0xF0 ? 2 : 3;
            j->lo = c == 0xE0 ? 0xA0 : c == 0xF0 ? 0x90 : 0x80;
            j->hi = c == 0xED ? 0x9F : c == 0xF4 ? 0x8F : 0xBF;
            return c >= 0xC2 && c <= 0xF4;
        }
        return c >= 0x20;
    case J_UTF8:
        if (c < j->lo || c > j->hi) return 0;
        j->lo = 0x80, j->hi = 0xBF;
        if (!--j->left) j->at = J_STRING;
        return 1;
    case J_ESCAPE:
        j->at = c == 'u' ? J_HEX : J_STRING;
        j->left = 4;
        return c && strchr("\"\\/bfnrtu", c) != NULL;
    case J_HEX:
        if (!--j->left) j->at = J_STRING;
        return digit || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
    case J_WORD:
        if (c != (uint8_t)*j->rest) return 0;
        if (!*++j->rest) j->at = J_NEXT;
        return 1;
    case J_MINUS: j->at = c == '0' ? J_ZERO : J_WHOLE; return digit;
    case J_POINT: j->at = J_FRACTION; return digit;
    case J_E: j->at = c == '+' || c == '-' ? J_SIGN : J_EXPONENT; return digit || j->at == J_SIGN;
    case J_SIGN: j->at = J_EXPONENT; return digit;
    case J_ZERO: case J_WHOLE: case J_FRACTION: case J_EXPONENT:
        if (digit) return j->at != J_ZERO;
        if (c == '.' && (j->at == J_ZERO || j->at == J_WHOLE)) return j->at = J_POINT, 1;
        if ((c == 'e' || c == 'E') && j->at != J_EXPONENT) return j->at = J_E, 1;
        j->at = J_NEXT; /* the number ended before c */
    }
    if (j->at == J_END) return 0;
    if (c == ' ' || c == '\n' || c == '\r' || c == '\t') return ++j->blanks <= JSON_BLANKS;
    j->blanks = 0;
    const int at = j->at, name = at == J_NAME || at == J_FIRST_NAME;
    const int value = at == J_VALUE || at == J_FIRST_VALUE;
    if (c == ',' && at == J_NEXT) return j->at = object ? J_NAME : J_VALUE, 1;
    if (c == ':' && at == J_COLON) return j->at = J_VALUE, 1;
    if (c == '"' && (name || value)) return j->at = J_STRING, j->name = (uint8_t)name, 1;
    if (c == (object ? '}' : ']') && (at == J_NEXT || at == J_FIRST_NAME || at == J_FIRST_VALUE))
        return j->at = --j->depth ? J_NEXT : J_END, 1;
    if ((c == '{' || c == '[') && (value || at == J_BEGIN) && j->depth < JSON_DEPTH) {
        const uint64_t bit = (uint64_t)1 << j->depth++;
        j->objects = c == '{' ? j->objects | bit : j->objects & ~bit;
        return j->at = c == '{' ? J_FIRST_NAME : J_FIRST_VALUE, 1;
    }
    if (!value) return 0;
    if (c == '-' || digit) return j->at = c == '-' ? J_MINUS : c == '0' ? J_ZERO : J_WHOLE, 1;
    j->rest = c == 't' ? "rue" : c == 'f' ? "alse" : "ull";
    j->at = J_WORD;
    return c == 't' || c == 'f' || c == 'n';
}

/* The bytes of every token, side by side: token i has those from at[i] to at[i + 1]. Control tokens
 * have none, nor has what ends a text: it is no part of it. */
typedef struct { Json now; float *logits; size_t *at; char *bytes; } JsonTokens;

static int json_tokens(JsonTokens *j, const GlaModel *m, char *err) {
    const int n = m->config.vocab_size;
    size_t total = 0;
    memset(j, 0, sizeof *j);
    for (int i = 0; i < n; i++) if (!gla_is_end(m, i)) total += gla_piece(m, i, 0, NULL, 0);
    j->at = gla_alloc(((size_t)n + 1) * sizeof *j->at);
    j->bytes = gla_alloc(total);
    j->logits = gla_alloc((size_t)n * sizeof *j->logits);
    if (!j->at || !j->bytes || !j->logits)
        return fail(err, GLA_MEMORY, "no memory for the bytes of %d tokens", n);
    for (int i = 0; i < n; i++) {
        const size_t at = j->at[i];
        j->at[i + 1] = at + (gla_is_end(m, i) ? 0 : gla_piece(m, i, 0, j->bytes + at, total - at));
    }
    return GLA_OK;
}

static int json_takes(const JsonTokens *j, int32_t id, Json *after) {
    *after = j->now;
    for (size_t i = j->at[id]; i < j->at[id + 1]; i++)
        if (!json_byte(after, (uint8_t)j->bytes[i])) return 0;
    return j->at[id + 1] > j->at[id];
}

/* -1: no token can stand here */
static int32_t json_sample(JsonTokens *j, GlaSampler *p, GlaState *s) {
    Json after;
    int n = s->m->config.vocab_size, some = 0;
    for (int32_t i = 0; i < n; i++) {
        const int takes = json_takes(j, i, &after);
        j->logits[i] = takes ? s->logits[i] : -INFINITY;
        some |= takes;
    }
    const int32_t id = sample(p, j->logits, n, s->candidates);
    if (!some || !json_takes(j, id, &after)) return -1;
    j->now = after;
    return id;
}

static int ended(const GlaGenerate *how) { return how->stop && *how->stop; }

/* Reads n ids, a run at a time. Between two runs the listener may end it; its flag does so within
 * one, which is taken back: to wait for it can take a minute, and to make all of them short costs
 * speed. The copy that this needs is left out where it would cost a hundredth of the run: that is
 * short, then. how: NULL, nothing ends it. Returns GLA_DONE_CALLER when it was ended. */
static int read_ids(GlaState *s, const int32_t *ids, int64_t n, const GlaGenerate *how, char *err) {
    const size_t bytes = gla_snapshot_bytes(s->m);
    void *before = NULL;
    int code = GLA_OK;
    for (int64_t i = 0; i < n && !code; i += s->batch) {
        const int64_t T = min64(s->batch, n - i);
        const int worth = 100.0 * (double)bytes < (double)s->m->token_bytes * (double)T;
        if (worth && how && how->stop && (before || (before = gla_alloc(bytes)))) {
            gla_snapshot(s, before);
            s->team.stop = how->stop;
        }
        code = gla_eval(s, ids + i, T, NULL, 0, err);
        s->team.stop = NULL;
        if (code == GLA_DONE_CALLER) gla_rewind(s, before);
        if (code || !how) continue;
        if (how->emit && how->emit(how->user, -1, "", 0)) code = GLA_DONE_CALLER;
        if (ended(how)) code = GLA_DONE_CALLER;
    }
    gla_free(before);
    return code;
}

/* -- drafts: several tokens that may come are read in one run, see Ahead in section 9 --
 * A source proposes what may follow `next`, which the state has not read yet, at most max tokens;
 * returns how many. *trust: how likely the first of them is, as a class below TRUSTS; the class of
 * each one after it is one higher. How often each class was right, and how long runs take, is
 * measured; a run has as many drafts as pay. */
static int propose_lookup(GlaState *s, int32_t next, int32_t *drafts, int max, int *trust) {
    return history_find(&s->history, next, drafts, max, trust);
}
/* The classes of the block for multi-token prediction: how far behind the text. */
static int propose_mtp(GlaState *s, int32_t next, int32_t *drafts, int max, int *trust) {
    *trust = 0;
    return mtp_draft(s, next, drafts, max);
}
typedef struct {
    const char *name;
    int (*propose)(GlaState *s, int32_t next, int32_t *drafts, int max, int *trust);
    int slow; /* it takes time to propose, so it is asked only when that may pay */
} DraftSource;
static const DraftSource draft_sources[] = {
    [GLA_DRAFT_OFF] = {"off", NULL, 0},
    [GLA_DRAFT_LOOKUP] = {"lookup", propose_lookup, 0},
    [GLA_DRAFT_MTP] = {"mtp", propose_mtp, 1},
};
enum { N_DRAFT_SOURCES = sizeof draft_sources / sizeof *draft_sources };

/* How often drafts of this class are right: 0.6 until more is known, later ones count more. */
static double pace_right(const Pace *p, int source, int trust) {
    const int t = trust < TRUSTS ? trust : TRUSTS - 1;
    return (p->hits[source - 1][t] + 2 * 0.6) / (p->seen[source - 1][t] + 2.0);
}
static void pace_hear(Pace *p, int source, int32_t id) { /* id was drawn */
    const float keep = 1 - 1 / 32.0f;
    if (p->at >= p->n_drafts) return;
    const int t = p->trust + p->at < TRUSTS ? p->trust + p->at : TRUSTS - 1;
    const int hit = p->drafts[p->at++] == id;
    p->hits[source - 1][t] = keep * p->hits[source - 1][t] + (float)hit;
    p->seen[source - 1][t] = keep * p->seen[source - 1][t] + 1;
    if (!hit) p->n_drafts = 0;
}

/* What a run of T tokens will take: as measured, or by the nearest runs that were. Longer ones than
 * any so far are thought well of, or they would never be tried: a token more costs half of what it
 * has, at first a tenth of the first. */
static double pace_cost(const Pace *p, int T) {
    int below = T, above = T;
    while (below > 1 && !p->cost[below]) below--;
    while (above < DRAFT_MOST && !p->cost[above]) above++;
    if (below == T) return p->cost[T];
    double slope = p->cost[1] / 10;
    if (p->cost[above]) slope = (p->cost[above] - p->cost[below]) / (above - below);
    else if (below > 1) slope = (p->cost[below] - p->cost[1]) / (2 * (below - 1));
    return p->cost[below] + slope * (T - below);
}

/* The run that was under way is over. What waits for other programs takes longer, never shorter, so
 * a shorter time is believed sooner. A hundredth of the time may be lost. */
static void pace_end(Pace *p) {
    double *cost = &p->cost[p->n];
    if (p->n) {
        const double most = *cost ? 2 * *cost : p->spent;
        const double spent = p->spent < most ? p->spent : most;
        *cost += (spent - *cost) * (!*cost ? 1 : spent < *cost ? 0.5 : 0.125);
        p->lost -= 0.01 * spent;
        if (p->n > 1) p->lost += spent - p->stay * p->cost[1];
        const double least = -4 * p->cost[1];
        if (p->lost < least) p->lost = least;
        p->since = p->n > 1 ? p->since + 1 : 0;
    }
    p->n = p->stay = 0, p->spent = 0;
}

/* How many of n drafts are worth a run: tokens that will stay, by the time for it.
 *   1 + p_1 + p_1 p_2 + ...  /  cost(1 + k)   the largest, when it is 3 % more than 1 / cost(1)
 * None while more than two runs were lost of late. Where none pay, they are tried all the same now
 * and then, with the hundredth that may be lost: times change. */
static int pace_choose(const Pace *p, int source, int n, int trust) {
    const double plain = p->cost[1];
    double best = plain > 0 ? 1.03 / plain : 0, tokens = 1, all_right = 1;
    int k = 0, longest = DRAFT_MOST;
    if (p->always) return n;
    if (!(plain > 0) || p->since >= 32) return 0; /* how long a run without drafts takes, of late */
    while (longest > 1 && !p->cost[longest]) longest--;
    if (n > 2 * longest - 1) n = 2 * longest - 1; /* step by step to runs of unknown length */
    for (int i = 1; i <= n; i++) {
        all_right *= pace_right(p, source, trust + i - 1);
        tokens += all_right;
        const double rate = tokens / pace_cost(p, i + 1);
        if (rate > best) best = rate, k = i;
    }
    if (k && p->lost + pace_cost(p, k + 1) - plain > 2 * plain) k = 0;
    if (!k && n && p->lost + pace_cost(p, n + 1) - plain < 0
        && (draft_sources[source].slow || pace_right(p, source, trust) > 0.3)) /* a slow one learns by this alone */
        k = n;
    return k;
}

/* The drafts behind `next` that are worth it, at most `most`; returns how many. */
static int pace_draft(Pace *p, int which, GlaState *s, int32_t next, int32_t *drafts, int most) {
    const DraftSource *source = &draft_sources[which];
    p->n_drafts = p->at = p->trust = 0;
    if (source->slow) most = pace_choose(p, which, most, 0);
    if (!most) return 0;
    p->n_drafts = source->propose(s, next, drafts, most, &p->trust);
    memcpy(p->drafts, drafts, (size_t)p->n_drafts * sizeof *drafts);
    return source->slow ? p->n_drafts : pace_choose(p, which, p->n_drafts, p->trust);
}

/* A text that is being made. held: what was drawn and is not shown yet. */
typedef struct {
    GlaState *s;
    GlaSampler *p;
    const GlaGenerate *how;
    JsonTokens json;
    int64_t made;
    int first;     /* after a lone begin token: no leading space */
    size_t n_held;
    char held[HELD + PIECE];
} Writing;

/* Reads a token that was drawn, and with it, if that pays, those that may follow; last: none do. */
static int read_token(Writing *w, int32_t id, int last, char *err) {
    GlaState *s = w->s;
    const GlaGenerate *how = w->how;
    const DraftSource *source = &draft_sources[how->draft];
    Pace *p = &s->pace;
    int32_t ids[DRAFT_MOST + 1] = {id};
    int code = GLA_OK;
    if (!source->propose || !s->ahead.cap) return gla_eval(s, &id, 1, NULL, 0, err);
    double begin = now_s();
    pace_hear(p, how->draft, id);
    if (is_ahead(s, id)) {
        p->stayed++, p->stay++;
    } else {
        settle_ahead(s);
        const double settled = now_s();
        p->spent += settled - begin, begin = settled;
        pace_end(p);
        int64_t most = min64(s->ahead.cap - 1, how->steps ? how->steps - w->made : INT64_MAX);
        if (s->m->kv_floats) most = min64(most, s->ctx - s->pos - 1);
        if (s->m->config.limit) most = min64(most, s->m->config.limit - s->pos - 1);
        const int n = pace_draft(p, how->draft, s, id, ids + 1, last ? 0 : (int)max64(most, 0));
        if (n) read_ahead(s, ids, n + 1);
        else code = gla_eval(s, &id, 1, NULL, 0, err);
        p->n = n + 1, p->stay = 1, p->proposed += n;
    }
    p->spent += now_s() - begin;
    return code;
}

/* Why the text ends before another token; 0: it does not. */
static int done_before(const Writing *w) {
    const GlaState *s = w->s;
    if (w->how->steps && w->made >= w->how->steps) return GLA_DONE_STEPS;
    if (ended(w->how)) return GLA_DONE_CALLER;
    return s->m->kv_floats && s->pos >= s->ctx ? GLA_DONE_CONTEXT : 0;
}

static int draw(Writing *w, int32_t *id, char *err) {
    const GlaState *s = w->s;
    *id = w->how->json ? json_sample(&w->json, w->p, w->s) : gla_sample(w->p, w->s);
    if (*id < 0)
        return fail(err, GLA_INPUT, "no token of this vocabulary can go on with the JSON text");
    if (isfinite(s->logits[*id])) return GLA_OK;
    return fail(err, GLA_FORMAT,
                "what the model computes behind token %lld is not a number (%s); its file is "
                "damaged, or was converted wrongly",
                (long long)s->pos, isnan(s->logits[*id]) ? "NaN" : "infinity");
}

/* Shows the text of a token, as far as it can be shown: nearly always one round, more than PIECE
 * bytes come in parts. Returns why the text ends behind it, or 0. */
static int show_token(Writing *w, int32_t id) {
    const GlaGenerate *how = w->how;
    int stop = 0, done = 0;
    for (size_t from = 0, len = 1; !stop && (!from || from < len); from += PIECE) {
        len = piece_part(w->s->m->vocab, id, w->first ? GLA_FIRST : 0, from, w->held + w->n_held,
                         PIECE);
        w->n_held += len - from < PIECE ? len - from : PIECE;
        const size_t show = showable(how, w->held, w->n_held, &stop);
        if (how->emit && how->emit(how->user, from ? -1 : id, w->held, show))
            done = GLA_DONE_CALLER;
        w->n_held -= show;
        memmove(w->held, w->held + show, w->n_held);
    }
    w->first = 0;
    if (stop) {
        w->n_held = 0;
        return GLA_DONE_STOP;
    }
    return how->json && w->json.now.at == J_END && !done ? GLA_DONE_END : done;
}

static int write_tokens(Writing *w, char *err) { /* behind the prompt */
    const GlaGenerate *how = w->how;
    int done, code = GLA_OK;
    while (!(done = done_before(w))) {
        int32_t id;
        if ((code = draw(w, &id, err))) return code;
        if (!how->ignore_end && gla_is_end(w->s->m, id)) {
            done = GLA_DONE_END;
            break;
        }
        gla_sampler_note(w->p, id);
        w->made++;
        done = show_token(w, id);
        if ((code = read_token(w, id, done != 0, err))) return code;
        if (done) break;
    }
    // an unfinished character or stop text is text after all
    if (w->n_held && how->emit && done != GLA_DONE_CALLER)
        how->emit(how->user, -1, w->held, w->n_held);
    return done;
}

static int check_prompt(const GlaState *s, int64_t n, const GlaGenerate *how, char *err) {
    if (*s->m->no_text) return need_vocabulary(s->m, err);
    if (n < 0) return fail(err, GLA_INPUT, "a prompt of %lld tokens", (long long)n);
    if (s->pos == 0 && n == 0)
        return fail(err, GLA_INPUT, "nothing to go on: an empty prompt and a model without a "
                                    "begin-of-text token");
    if (how->draft < 0 || how->draft >= N_DRAFT_SOURCES)
        return fail(err, GLA_INPUT, "%d is no source of drafts", how->draft);
    for (int i = 0; i < how->n_stops; i++) {
        const size_t len = strlen(how->stops[i]);
        if (len >= HELD / 2)
            return fail(err, GLA_INPUT, "a stop text of %zu bytes; at most %d", len, HELD / 2 - 1);
    }
    return check_room(s, n, err);
}

GLA_API int gla_generate(GlaState *s, GlaSampler *p, const int32_t *prompt, int64_t n,
                         const GlaGenerate *how, int64_t *n_out, char *err) {
    Writing w;
    int code = check_prompt(s, n, how, err);
    if (n_out) *n_out = 0;
    if (code) return code;
    w.s = s, w.p = p, w.how = how;
    w.first = s->pos == 0 && n == 1 && !gla_piece(s->m, prompt[0], 0, NULL, 0);
    w.made = 0, w.n_held = 0;
    memset(&w.json, 0, sizeof w.json);
    if (how->json) code = json_tokens(&w.json, s->m, err);
    if (!code) code = read_ids(s, prompt, n, how, err);
    for (int64_t i = 0; i < n && !code; i++) gla_sampler_note(p, prompt[i]);
    if (!code) code = write_tokens(&w, err);
    settle_ahead(s);
    s->pace.n = s->pace.n_drafts = 0;
    if (n_out) *n_out = w.made;
    gla_free(w.json.at), gla_free(w.json.bytes), gla_free(w.json.logits);
    return code;
}

/* ---- 14. chat: a conversation that is never read twice ------------------------------------------
 * A recurrent state cannot drop its last tokens. A program that writes the conversation out anew
 * for every turn finds that the template drops earlier thinking, or that sampled text splits into
 * other tokens, and reads all of it again. Here the ids that were sampled are the conversation: a
 * turn adds its own tokens behind them, and nothing else is evaluated. Going back means a snapshot
 * from where the turn began; when it has left the memory that snapshots may take, the ids are read
 * again up to there, with the same bits. Messages that are given (gla_render, GlaChatSettings) are
 * written as the file's template writes them, earlier answers included. */

/* A file's chat template is a program in another language, Jinja. It is not run: it is recognised,
 * and a row of the table below says what it writes. The row is the first one whose marks are all
 * in the template. Marks are expressions of the template in one spelling, that of template_spell.
 *
 * In what a row writes, % is the text of the message. A text that the vocabulary has as one
 * special token becomes that token; text that somebody typed never does. Braces hold
 *   {bos} {eos}   the file's token
 *   {$name}       the value that the template gives to its variable `name`: texts and dates
 *   {@a%b}        the text in the template that begins with a and goes on to b, or nothing
 *   {+a} {-a}     a, if the answer is to begin with a thought, or not to; a may be @..., too
 *   {?a}          a, unless the message is empty
 *
 * trim is what happens to the text of a message first, a letter each:
 *   t l r   white space goes at both ends, on the left, on the right
 *   n N     line ends go on the left, at both ends
 *   d f     what stands behind the last </think> remains, behind the first
 *   ?       the rest of these is for texts with a </think>
 *   L       the rest is not for the last answer so far
 *   !       a thought: this row does not know what becomes of it */
enum { EMPTY_IS_NONE = 1, /* an empty system message is none: `missing` is written */
       EMPTY_IS_LEFT_OUT = 2, /* nothing is written for it */
       SYSTEM_ALWAYS = 4, /* without a system message, `system` is written with an empty one */
       SYSTEM_LATE = 8,   /* where system is NULL: the last message gets it, not the first */
       QUIET = 32,        /* no thought unless asked to think, though `open` is the same */
       TAKES_TURNS = 16, /* the template refuses anything but user, assistant, user ... */
       MARKS = 5 };
typedef struct {
    const char *name, *sign;       /* sign: a text that all templates of the family have */
    const char *marks[MARKS];          /* that are in the template, or behind a ! that are not */
    const char *head;              /* before everything; NULL: bos, where the template writes one */
    const char *system;            /* NULL: in front of the first message, an empty line between */
    const char *missing;           /* without a system message; NULL: nothing */
    const char *user, *end;        /* a message; what follows a whole answer */
    const char *answer;            /* what an answer begins behind */
    const char *given;             /* then the text of an earlier one, NULL is "%" */
    const char *open[3];           /* what ours goes on with: if nothing is said, to think, not to
                                      think; NULL: no such way */
    const char *trim[3];           /* of system, user, assistant */
    const char *tags[2];           /* around a thought; NULL: <think>, </think> */
    int facts;
    const char *stop;              /* a text that ends an answer when no token does */
} ChatTemplate;

#define CHATML_WITH(system_form, default_system) .sign = "<|im_start|>", .system = system_form, .missing = default_system, \
    .user = "<|im_start|>user\n%<|im_end|>\n", .answer = "<|im_start|>assistant\n", .end = "<|im_end|>\n"
#define CHATML(default_system) CHATML_WITH("<|im_start|>system\n%<|im_end|>\n", default_system)
#define CHAT_SMOLLM3 "<|im_start|>system\n## Metadata\n\nKnowledge Cutoff Date: June 2025\nReasoning Mode: {+/think}{-/no_think}\n\n## Custom Instructions\n\n"
#define CHAT_KIMI .sign = "<|im_middle|>", .system = "<|im_system|>system<|im_middle|>%<|im_end|>", \
    .missing = "{@<|im_system|>system<|im_middle|>%<|im_end|>}", .user = "<|im_user|>user<|im_middle|>%<|im_end|>", \
    .answer = "<|im_assistant|>assistant<|im_middle|>", .end = "<|im_end|>"
#define CHAT_K3(role, text) "<|open|>message role=\"" role "\"<|sep|>" text "<|close|>message<|sep|><|end_of_msg|>"
#define CHAT_LLAMA(before) .sign = "<|start_header_id|>", .system = "<|start_header_id|>system<|end_header_id|>\n\n" before "%<|eot_id|>", \
    .user = "<|start_header_id|>user<|end_header_id|>\n\n%<|eot_id|>", \
    .answer = "<|start_header_id|>assistant<|end_header_id|>\n\n", .end = "<|eot_id|>", .trim = {"t", "t", "t"}
#define CHAT_GEMMA .sign = "<start_of_turn>", .user = "<start_of_turn>user\n%<end_of_turn>\n", .answer = "<start_of_turn>model\n", \
    .end = "<end_of_turn>\n", .trim = {"", "t", "t"}, .facts = TAKES_TURNS
#define CHAT_GRANITE(default_system) .sign = "<|start_of_role|>", .system = "<|start_of_role|>system<|end_of_role|>%<|end_of_text|>\n", \
    .missing = default_system, .user = "<|start_of_role|>user<|end_of_role|>%<|end_of_text|>\n", \
    .answer = "<|start_of_role|>assistant<|end_of_role|>", .end = "<|end_of_text|>\n"
#define DS_BAR "\357\275\234"   /* U+FF5C, the bar of DeepSeek's tokens, and U+2581, their space */
#define DS_LOW "\342\226\201"
#define DS_START "<" DS_BAR "start" DS_LOW "of" DS_LOW "sentence" DS_BAR ">"
#define DS_END "<" DS_BAR "end" DS_LOW "of" DS_LOW "sentence" DS_BAR ">"
#define CHAT_DEEPSEEK_WITH(user_end) .sign = "<" DS_BAR "User" DS_BAR ">", .system = "%", .user = "<" DS_BAR "User" DS_BAR ">%" user_end, \
    .answer = "<" DS_BAR "Assistant" DS_BAR ">", .end = DS_END
#define CHAT_DEEPSEEK CHAT_DEEPSEEK_WITH("")
#define CHAT_MISTRAL(user_form) .sign = "[INST]", .user = user_form, .answer = "", .end = "{eos}"
#define CHAT_MISTRAL_SYSTEM CHAT_MISTRAL("[INST]%[/INST]"), .system = "[SYSTEM_PROMPT]%[/SYSTEM_PROMPT]"
#define CHAT_EOS_MARK "\343\200\210|EOS|\343\200\211"
#define CHAT_LAGUNA_XS(system_form, default_system) .sign = "<assistant>", .head = CHAT_EOS_MARK, .system = system_form, .missing = default_system, .user = "<user>\n%\n</user>\n", \
    .answer = "<assistant>\n", .given = "</think>\n%{?\n}", .end = "</assistant>\n", .open = {"</think>", "<think>", "</think>"}, .trim = {"r", "", "!t"}
#define EMPTY_THOUGHT "<think>\n\n</think>\n\n"
#define THOUGHT "<think>\n"
#define OWN_WAY {"", "", NULL} /* the model opens its thoughts itself */

static const ChatTemplate chat_templates[] = {
    {"Kimi K2 Thinking", CHAT_KIMI, .marks = {"hist_msgs", "set_roles(message)"}, .given = "<think></think>%", .open = OWN_WAY},
    {"Kimi", CHAT_KIMI, .marks = {"<|im_user|>", "{{'<|im_assistant|>assistant<|im_middle|>'}}{%endif%}", "!</think>"}},
    {"Kimi K3", .sign = "<|end_of_msg|>", .marks = {"{{open_tag('message',[('role','assistant')])+open_tag('think'ifthinkingelse'response')}}", "{%setthinking_effort='max'%}", "render_assistant(message,state)"},
     .head = "{+" CHAT_K3("system\" type=\"thinking-effort", "`thinking_effort` guides on how much to think in your thinking channel (not including the response channel), supported values include `low`, `medium`, `high`, and `max`.\n"
             "Now the system is invoked with `thinking_effort=max`.") "}", .system = CHAT_K3("system", "%"), .user = CHAT_K3("user", "%"), .answer = "<|open|>message role=\"assistant\"<|sep|>",
     .given = "{+<|open|>think<|sep|><|close|>think<|sep|>}<|open|>response<|sep|>%<|close|>response<|sep|>", .end = "<|close|>message<|sep|><|end_of_msg|>",
     .open = {"<|open|>think<|sep|>", "<|open|>think<|sep|>", "<|open|>response<|sep|>"}},
    {"Phi-4", .sign = "<|im_sep|>", .marks = {"'<|im_start|>user<|im_sep|>'+message.content+'<|im_end|>'}}", "add_generation_prompt%}{{'<|im_start|>assistant<|im_sep|>'}}"},
     .system = "<|im_start|>system<|im_sep|>%<|im_end|>", .user = "<|im_start|>user<|im_sep|>%<|im_end|>", .answer = "<|im_start|>assistant<|im_sep|>", .end = "<|im_end|>"},
    /* ChatML: the rows differ in what they trim, in earlier thoughts, and in how an answer begins */
    {"Qwen3.5", CHATML(NULL), .marks = {"render_content(message.content,true)|trim", "enable_thinkingisfalse%}{{'" EMPTY_THOUGHT "'}}{%else%}{{'" THOUGHT "'}}"},
     .open = {THOUGHT, THOUGHT, EMPTY_THOUGHT}, .trim = {"t", "t", "t?dn"}},
    {"Qwen3.5, quiet", CHATML(NULL), .marks = {"render_content(message.content,true)|trim", "enable_thinkingistrue%}{{'" THOUGHT "'}}{%else%}{{'" EMPTY_THOUGHT "'}}"},
     .open = {EMPTY_THOUGHT, THOUGHT, EMPTY_THOUGHT}, .trim = {"t", "t", "t?dn"}},
    {"Qwen3", CHATML(NULL), .marks = {"'<|im_start|>'+message.role+'\n'+content}}", "split('</think>')[-1].lstrip('\n')", "assistant\n'}}{%ifenable_thinkingisdefinedandenable_thinkingisfalse%}{{'" EMPTY_THOUGHT "'}}{%endif%}", "!trim"}, .open = {"", "", EMPTY_THOUGHT}, .trim = {"", "", "?dn"}},
    {"Qwen3 Thinking", CHATML(NULL), .marks = {"'<|im_start|>'+message.role+'\n'+content}}", "split('</think>')[-1].lstrip('\n')", "{{'<|im_start|>assistant\n" THOUGHT "'}}{%endif%}", "!trim"}, .open = {THOUGHT, THOUGHT, NULL}, .trim = {"", "", "?dn"}},
    {"Qwen3 Instruct", CHATML(NULL), .marks = {"'<|im_start|>'+message.role+'\n'+content}}", "split('</think>')[-1].lstrip('\n')", "{{'<|im_start|>assistant\n'}}{%endif%}", "!trim"}, .open = OWN_WAY, .trim = {"", "", "?dn"}},
    {"MiniCPM5", CHATML(NULL), .marks = {"'<|im_start|>'+message.role+'\n'+content}}", "split('</think>')[-1].lstrip('\n')", "{%ifenable_thinkingisfalse%}{{'" EMPTY_THOUGHT "'}}{%elifenable_thinkingistrue%}{{'" THOUGHT "'}}"},
     .open = {"", THOUGHT, EMPTY_THOUGHT}, .trim = {"", "", "?dn"}},
    {"QwQ", CHATML(NULL), .marks = {"message.content.split('</think>')[-1].lstrip('\n')", "'<|im_start|>'+message.role+'\n'+content+'<|im_end|>\n'", "{{'<|im_start|>assistant\n" THOUGHT "'}}{%endif%}"},
     .open = {THOUGHT, THOUGHT, NULL}, .trim = {"", "", "dn"}},
    {"QwQ, quiet", CHATML(NULL), .marks = {"message.content.split('</think>')[-1].lstrip('\n')", "'<|im_start|>'+message.role+'\n'+content+'<|im_end|>\n'", THOUGHT "'}}{%ifnotenable_thinking%}{{'</think>'}}"},
     .open = {"<think>\n</think>", THOUGHT, "<think>\n</think>"}, .trim = {"", "", "dn"}},
    {"LFM2.5 8B", CHATML(NULL), .marks = {"'<|im_start|>system\n'+ns.system_prompt+'<|im_end|>\n'", "ns.last_user_index", "content.split('</think>')[-1]|trim"},
     .open = OWN_WAY, .trim = {"", "", "?dt"}, .facts = EMPTY_IS_NONE},
    {"LFM2.5", CHATML(NULL), .marks = {"'<|im_start|>system\n'+ns.system_prompt+'<|im_end|>\n'", "loop.index0!=ns.last_assistant_index", "content.split('</think>')[-1]|trim"},
     .open = OWN_WAY, .trim = {"", "", "L?dt"}, .facts = EMPTY_IS_NONE},
    {"LFM2", CHATML(NULL), .marks = {"'<|im_start|>system\n'+ns.system_prompt+'<|im_end|>\n'", "{{content+'<|im_end|>\n'}}", "!</think>"}, .facts = EMPTY_IS_NONE},
    {"Nemotron 3", CHATML("<|im_start|>system\n<|im_end|>\n"), .marks = {"truncate_history_thinking", "'<think></think>'+c.split('</think>')[-1]", "{%ifenable_thinking%}{{'<|im_start|>assistant\n" THOUGHT "'}}"},
     .given = "<think></think>%", .open = {THOUGHT, THOUGHT, "<think></think>"}, .trim = {"", "", "dr"}},
    {"SmolLM3", CHATML_WITH(CHAT_SMOLLM3 "%\n\n<|im_end|>\n", CHAT_SMOLLM3 "{+@You are a helpful AI assistant named SmolLM, trained by Hugging Face. %}"
     "{-@You are a helpful AI assistant named SmolLM, trained by Hugging Face.\n%}<|im_end|>\n"),
     .marks = {"'## Metadata\n\nKnowledge Cutoff Date: June 2025\nReasoning Mode: '+reasoning_mode+'\n\n## Custom Instructions\n\n'", "content.lstrip('\n')", "custom_instructions.rstrip()"},
     .given = "{-<think>\n\n</think>\n}%", .open = {"", "", "<think>\n\n</think>\n"}, .trim = {"r", "", "n"}, .facts = EMPTY_IS_NONE},
    {"Bielik", CHATML_WITH("<|im_start|>system\n%{+@\n\nZanim %}<|im_end|>\n", NULL), .open = {"", THOUGHT, ""}, .marks = {"'<|im_start|>user\n'+message.content+'<|im_end|>\n'", "{{content.lstrip()}}"}, .trim = {"", "", "l!"}, .facts = EMPTY_IS_NONE},
    {"ChatML", CHATML("{@<|im_start|>system\n%<|im_end|>}"), .marks = {"'<|im_start|>'+message.role+'\n'+message.content+'<|im_end|>\n'", "add_generation_prompt%}{{'<|im_start|>assistant\n'}}{%endif%}", "!split(", "!function calling", "!strftime_now"}, .open = OWN_WAY},
    {"Llama 3.1", CHAT_LLAMA("Cutting Knowledge Date: December 2023\nToday Date: {$date_string}\n\n"), .marks = {"Cutting Knowledge Date: December 2023\nToday Date: '+date_string+'\n\n'", "messages[0].content|trim", "'<|end_header_id|>\n\n'+message.content|trim+'<|eot_id|>'"},
     .facts = SYSTEM_ALWAYS},
    {"Llama 3", CHAT_LLAMA(""), .marks = {"'<|start_header_id|>'+message.role+'<|end_header_id|>\n\n'+message.content|trim+'<|eot_id|>'", "!system_message"}},
    {"Gemma 3", CHAT_GEMMA, .marks = {"first_user_prefix=messages[0].content+'\n\n'", "message.content|trim"}},
    {"Gemma", CHAT_GEMMA, .marks = {"'<start_of_turn>'+role+'\n'+message.content|trim+'<end_of_turn>\n'"}},
    {"Gemma 4", .sign = "<|turn>", .marks = {"'<|turn>'+role+'\n'", "strip_thinking(message.content)", "messages[0].content|trim"},
     .system = "<|turn>system\n{+<|think|>\n}%<turn|>\n", .missing = "{+<|turn>system\n<|think|>\n<turn|>\n}", .user = "<|turn>user\n%<turn|>\n", .answer = "<|turn>model\n", .end = "<turn|>\n",
     .open = {"<|channel>thought\n<channel|>", "", "<|channel>thought\n<channel|>"}, .tags = {"<|channel>", "<channel|>"}, .trim = {"t", "t", "t"}},
    {"Granite 3", CHAT_GRANITE("<|start_of_role|>system<|end_of_role|>{$system_message} You are a helpful AI assistant.<|end_of_text|>\n"),
     .marks = {"'<|start_of_role|>'+message.role+'<|end_of_role|>'+message.content+'<|end_of_text|>\n'", "system_message=system_message+' You are a helpful AI assistant.'", "+strftime_now("}},
    {"Granite 4.0", CHAT_GRANITE("<|start_of_role|>system<|end_of_role|>{$g4_default_system_message}<|end_of_text|>\n"),
     .marks = {"'<|start_of_role|>'+message.role+'<|end_of_role|>'+content.val", "+ns.default_system_message+"}, .facts = EMPTY_IS_NONE},
    {"Granite 4.1", CHAT_GRANITE(NULL), .marks = {"'<|start_of_role|>'+message.role+'<|end_of_role|>'+content.val", "{%ifns.system_message%}", "!default_system_message"}, .facts = EMPTY_IS_NONE},
    {"DeepSeek R1", CHAT_DEEPSEEK, .marks = {"{{'<" DS_BAR "User" DS_BAR ">'+message.content}}", "content.split('</think>')[-1]", "{{'<" DS_BAR "Assistant" DS_BAR "><think>\n'}}{%endif%}"},
     .open = {THOUGHT, THOUGHT, NULL}, .trim = {"", "", "d"}},
    {"DeepSeek R1, quiet", CHAT_DEEPSEEK, .marks = {"{{'<" DS_BAR "User" DS_BAR ">'+message.content}}", "content.split('</think>')[-1]", "{{'<" DS_BAR "Assistant" DS_BAR "><think>\n'}}{%ifnotenable_thinking%}{{'</think>'}}"},
     .open = {"<think>\n</think>", THOUGHT, "<think>\n</think>"}, .trim = {"", "", "d"}},
    {"DeepSeek R1, closed", CHAT_DEEPSEEK_WITH(DS_END), .marks = {"'<" DS_BAR "User" DS_BAR ">'+message.content+'<" DS_BAR "end" DS_LOW "of" DS_LOW "sentence" DS_BAR ">'", "content.split('</think>')[-1]", "'<" DS_BAR "Assistant" DS_BAR "><think>\n'"},
     .open = {THOUGHT, THOUGHT, NULL}, .trim = {"", "", "d"}},
    {"DeepSeek V3.1", CHAT_DEEPSEEK, .marks = {"content.split('</think>',1)[1]", "{%ifnotthinking%}{{'<think></think>'}}{%else%}{{'<think>'}}"},
     .given = "<think></think>%", .open = {"<think></think>", "<think>", "<think></think>"}, .trim = {"", "", "f"}},
    {"DeepSeek V3.2", CHAT_DEEPSEEK, .marks = {"{{'<" DS_BAR "User" DS_BAR ">'+(message.contentor'')}}", "{%ifthinking%}{{thinking_start_token}}{%else%}{{thinking_start_token+thinking_end_token}}"},
     .given = "</think>%", .open = {"<think></think>", "<think>", "<think></think>"}},
    {"DeepSeek V4", CHAT_DEEPSEEK, .marks = {"{{message.contentor''}}", "{%ifthinking%}{{thinking_start_token}}{%else%}{{thinking_end_token}}"},
     .given = "</think>%", .open = {"</think>", "<think>", "</think>"}},
    {"DeepSeek V3", CHAT_DEEPSEEK, .marks = {"{{'<" DS_BAR "User" DS_BAR ">'+message.content}}", "content.split('</think>')[-1]", "{{'<" DS_BAR "Assistant" DS_BAR ">'}}{%endif%}"}, .open = OWN_WAY, .trim = {"", "", "d"}},
    {"DeepSeek", CHAT_DEEPSEEK, .marks = {"{{'<" DS_BAR "User" DS_BAR ">'+message.content}}", "{{'<" DS_BAR "Assistant" DS_BAR ">'}}{%endif%}", "!think"}},
    {"Nemotron 2", .sign = "<SPECIAL_11>", .marks = {"'<SPECIAL_10>System\n'+ns.non_tool_system_content", "replace('/no_think','').strip()+'\n'", "{{'<think>\n'}}"},
     .system = "<SPECIAL_10>System\n%\n\n", .user = "<SPECIAL_11>User\n%\n", .answer = "<SPECIAL_11>Assistant\n", .end = "\n<SPECIAL_12>\n",
     .open = {THOUGHT, THOUGHT, "<think></think>"}, .trim = {"t", "t", "dt"}, .facts = SYSTEM_ALWAYS},
    {"Ling 3", .sign = "<role>", .marks = {"'<role>HUMAN</role>'+message.content+'<|role_end|>'", "'<role>ASSISTANT</role>\n<think></think>'+content", "'detailed thinking '+thinking_option+'<|role_end|>'"},
     .system = "<role>SYSTEM</role>%\ndetailed thinking {+on}{-off}<|role_end|>", .missing = "<role>SYSTEM</role>detailed thinking {+on}{-off}<|role_end|>",
     .user = "<role>HUMAN</role>%<|role_end|>", .answer = "<role>ASSISTANT</role>\n", .given = "<think></think>%", .end = "<|role_end|>", .open = {"<think>", "<think>", "<think></think>"}, .trim = {"", "", "!"}},
    {"GLM 4.6", .sign = "[gMASK]<sop>", .marks = {"<|user|>\n'+visible_text(m.content)+'/nothink'", "'\n<think></think>'", "'\n'+content.strip()"}, .head = "[gMASK]<sop>",
     .system = "<|system|>\n%", .user = "<|user|>\n%{-/nothink}", .answer = "<|assistant|>", .given = "\n<think></think>{?\n}%", .end = "", .open = {"", "", "\n<think></think>"}, .trim = {"", "", "dt"}},
    {"GLM 4.7", .sign = "[gMASK]<sop>", .marks = {"'<|user|>'+visible_text(m.content)}}", "{{content.strip()}}", "'<|assistant|></think>'if(enable_thinkingisdefinedandnotenable_thinking)else'<think>'"}, .head = "[gMASK]<sop>",
     .system = "<|system|>%", .user = "<|user|>%", .answer = "<|assistant|>", .given = "</think>%", .end = "", .open = {"<think>", "<think>", "</think>"}, .trim = {"", "", "dt"}},
    {"MiniMax M1", .sign = "<beginning_of_sentence>", .marks = {"ns.system_prompt!=''", "{{message.content|trim}}", "'<beginning_of_sentence>ai name=assistant\n'}}{%endif%}"},
     .head = "<begin_of_document>", .system = "<beginning_of_sentence>system ai_setting=assistant\n%<end_of_sentence>\n",
     .missing = "<beginning_of_sentence>system ai_setting=assistant\n{$ns.system_prompt}<end_of_sentence>\n", .user = "<beginning_of_sentence>user name=user\n%<end_of_sentence>\n",
     .answer = "<beginning_of_sentence>ai name=assistant\n", .end = "<end_of_sentence>\n", .trim = {"t", "t", "t"}, .facts = EMPTY_IS_LEFT_OUT},
    {"MiniMax M2", .sign = "]~b]", .marks = {"'+visible_text(message.content)+'[e~[\n'", "content.split('</think>')[-1].strip('\n')", "ai\n<think>\n'}}"}, .head = "]~!b[", .system = "]~b]system\n%[e~[\n",
     .missing = "]~b]system\n{$model_identity}[e~[\n", .user = "]~b]user\n%[e~[\n", .answer = "]~b]ai\n", .end = "[e~[\n", .open = {THOUGHT, THOUGHT, NULL}, .trim = {"", "", "?dN"}, .facts = EMPTY_IS_NONE},
    {"Seed", .sign = "<seed:bos>", .marks = {"bos_token+message.role+'\n'+message.content+eos_token", "'\n'+message.content|trim+eos_token", "{{bos_token+'assistant\n'}}"}, .head = "",
     .system = "<seed:bos>system\n%<seed:eos>", .user = "<seed:bos>user\n%<seed:eos>", .answer = "<seed:bos>assistant\n", .end = "<seed:eos>", .trim = {"", "", "t"}},
    {"gpt-oss", .sign = "<|channel|>", .marks = {"'<|start|>user<|message|>'+message.content+'<|end|>'", "'<|start|>assistant<|channel|>final<|message|>'+message.content+'<|end|>'", "Knowledge cutoff: 2024-06\nCurrent date: '+strftime_now('%Y-%m-%d')"},
     .head = "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\nCurrent date: {$strftime_now('%Y-%m-%d')}\n\nReasoning: medium\n\n"
             "# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|>",
     .system = "<|start|>developer<|message|># Instructions\n\n%\n\n<|end|>", .user = "<|start|>user<|message|>%<|end|>", .answer = "<|start|>assistant", .given = "<|channel|>final<|message|>%", .end = "<|end|>",
     .facts = EMPTY_IS_NONE},
    {"Apertus", .sign = "<|assistant_start|>", .marks = {"{{developer_token+'Deliberation: '}}", "system_token+messages[0].content+end_system_token", "Current date: '+strftime_now('%Y-%m-%d')"},
     .system = "<|system_start|>%<|system_end|><|developer_start|>Deliberation: {+enabled}{-disabled}\nTool Capabilities: disabled<|developer_end|>",
     .missing = "<|system_start|>You are Apertus, a helpful assistant created by the SwissAI initiative.\nKnowledge cutoff: 2024-04\nCurrent date: {$strftime_now('%Y-%m-%d')}<|system_end|>"
                "<|developer_start|>Deliberation: {+enabled}{-disabled}\nTool Capabilities: disabled<|developer_end|>",
     .user = "<|user_start|>%<|user_end|>", .answer = "<|assistant_start|>", .end = "<|assistant_end|>",
     .open = {"", "", ""}, .tags = {"<|inner_prefix|>", "<|inner_suffix|>"}, .facts = QUIET},
    {"Spark", .sign = "<|Bot|>", .marks = {"'" DS_START "<|System|>\n'+default_system", "'" DS_START "<|User|>'+render_content(message.content,'user')+'" DS_END "'", "{{'" DS_START "<|Bot|>'}}{%ifreasoning_content%}"},
     .head = DS_START "<|System|>\n{$default_system}", .system = "\n\n%" DS_END, .missing = DS_END, .user = DS_START "<|User|>%" DS_END, .answer = DS_START "<|Bot|>", .given = "</think>%", .end = DS_END,
     .open = {"<think>", "<think>", "</think>"}, .facts = EMPTY_IS_NONE},
    {"Laguna", .sign = "<assistant>", .marks = {"{{'<user>'+content+'</user>\n'}}", "enable_thinking|default(true)", "{{'<think>'+reasoning_content+'</think>'}}"}, .head = CHAT_EOS_MARK,
     .system = "{+<system>}{-?<system>}%{+</system>\n}{-?</system>\n}", .missing = "<system>{$system_message}</system>\n", .user = "<user>%</user>\n", .answer = "<assistant>", .given = "{+<think></think>}{-</think>}%", .end = "</assistant>\n",
     .open = {"<think>", "<think>", "</think>"}, .trim = {"r", "", ""}},
    {"Laguna XS 2", CHAT_LAGUNA_XS("{?<system>\n\n}%{?\n</system>\n}", "<system>\n\n{$system_message}\n</system>\n"), .marks = {"{{'<user>\n'+content+'\n</user>\n'}}", "enable_thinking|default(false)", "{%setsystem_message='You"}},
    {"Laguna XS 2.1", CHAT_LAGUNA_XS("{?<system>\n\n}%{?\n</system>\n}", NULL), .marks = {"{{'<user>\n'+content+'\n</user>\n'}}", "enable_thinking|default(false)", "{%setsystem_message=''%}"}},
    {"Phi-3", .sign = "<|end|>", .marks = {"'<|user|>\n'+message.content+'<|end|>\n'", "'<|assistant|>\n'+message.content+'<|end|>\n'", "message.role=='system'andmessage.content"},
     .system = "<|system|>\n%<|end|>\n", .user = "<|user|>\n%<|end|>\n", .answer = "<|assistant|>\n", .end = "<|end|>\n", .facts = EMPTY_IS_NONE},
    {"Zephyr", .sign = "<|user|>", .marks = {"'<|user|>\n'+message.content+eos_token+'\n'", "'<|assistant|>\n'+message.content+eos_token+'\n'", "{{'<|assistant|>\n'}}"},
     .system = "<|system|>\n%{eos}\n", .user = "<|user|>\n%{eos}\n", .answer = "<|assistant|>\n", .end = "{eos}\n"},
    {"Mistral 7", CHAT_MISTRAL_SYSTEM, .missing = "[SYSTEM_PROMPT]{$default_system_message}[/SYSTEM_PROMPT]", .marks = {"'[SYSTEM_PROMPT]'+system_prompt+'[/SYSTEM_PROMPT]'", "message.content+eos_token"}, .facts = TAKES_TURNS},
    {"Mistral 7", CHAT_MISTRAL_SYSTEM, .missing = "[SYSTEM_PROMPT]{$default_system_message}[/SYSTEM_PROMPT]", .marks = {"{%setdefault_system_message='", "'[INST]'+message.content+'[/INST]'", "{{eos_token}}"}},
    {"Mistral 3", CHAT_MISTRAL("[INST]%[/INST]"), .marks = {"'[INST]'+system_message+'\n\n'+message.content+'[/INST]'"}, .facts = SYSTEM_LATE | TAKES_TURNS},
    {"Mistral", CHAT_MISTRAL("[INST] % [/INST]"), .marks = {"'[INST] '+message.content+' [/INST]'", "message.content+eos_token"}, .facts = TAKES_TURNS},
    {"RWKV", .sign = "'User: '", .marks = {"'User: '+message.content|trim+'\n\n'", "'Assistant: '+content|trim+'\n\n'", "'System: '+ns.system_prompt+'\n\n'"}, .system = "System: %\n\n", .user = "User: %\n\n",
     .answer = "Assistant:", .given = " %", .end = "\n\n", .open = {"", " <think>", " <think>\n</think>"}, .trim = {"", "t", "dt"}, .facts = EMPTY_IS_NONE, .stop = "\nUser:"},
    /* the last one: for files without a template, and for templates that resemble none of these */
    {"plain", .sign = "", .marks = {""}, .system = "%\n\n", .user = "User: %\n\n", .answer = "Assistant:", .given = " %", .end = "\n\n", .trim = {"", "t", "t"}, .stop = "\nUser:"},
};
enum { N_TEMPLATES = sizeof chat_templates / sizeof *chat_templates, LOOP_PERIODS = 64 };

/* -- the text of a template -- */

/* Where what begins in s, not before `from`; s.n: nowhere. */
static size_t str_find(Str s, const char *what, size_t from) {
    const size_t n = strlen(what);
    while (n && from + n <= s.n) {
        const char *p = memchr(s.s + from, what[0], s.n - n + 1 - from);
        if (!p) break;
        from = (size_t)(p - s.s);
        if (!memcmp(p, what, n)) return from;
        from++;
    }
    return n ? s.n : from;
}
static int str_has(Str s, const char *what) { return !*what || str_find(s, what, 0) < s.n; }
static int str_begins(Str s, const char *what) {
    return s.n >= strlen(what) && !memcmp(s.s, what, strlen(what));
}
static Str str_from(Str s, size_t at) { return at ? (Str){s.s + at, s.n - at} : s; }

static int is_word(char c) {
    return c == '_' || (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z');
}

/* White space as Python and Jinja take it. */
static int is_space(uint32_t c) {
    if (c < 0x80) return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20);
    return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028
           || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

/* Without the white space at these ends, or only its line ends. */
enum { LEFT = 1, RIGHT = 2, LINES = 4 };
static int strips(uint32_t c, int how) { return how & LINES ? c == '\n' : is_space(c); }
static Str strip(Str s, int how) {
    size_t k, len;
    while (how & LEFT && s.n && strips(utf8_read(s.s, s.n, &len), how)) s = str_from(s, len);
    for (; how & RIGHT && s.n; s.n -= k) {
        for (k = 1; k < s.n && k < 4 && ((uint8_t)s.s[s.n - k] & 0xC0) == 0x80; k++) {}
        if (!strips(utf8_read(s.s + s.n - k, k, &len), how) || len != k) break;
    }
    return s;
}

/* A template in one spelling, so that a mark is found however it is laid out: comments and white
 * space outside of texts are gone, plain text is {{'text'}}, neighbouring outputs are one, + joins
 * (never ~), 'a'+'b' is 'ab', texts stand in ' (one inside is \1) without escapes, and x['name'] is
 * x.name. White space around a tag goes as Jinja takes it, with trim_blocks and lstrip_blocks.
 * The result is at most three times as long. */
typedef struct { char *s; size_t n; } Spelling;

static void spell_as(Spelling *out, const char *s) { while (*s) out->s[out->n++] = *s++; }

/* Takes the end of what is there back, if it is this one: what follows goes on with it. */
static int spell_joins(Spelling *out, const char *end) {
    const size_t n = strlen(end);
    const int joins = out->n >= n && !memcmp(out->s + out->n - n, end, n);
    if (joins) out->n -= n;
    return joins;
}

static void spell_output(Spelling *out) { spell_as(out, spell_joins(out, "}}") ? "+" : "{{"); }

/* A text, up to the quote that ends it; with quote 0 it is plain, and all of t. Returns where it
 * has ended. */
static size_t spell_text(Spelling *out, Str t, size_t at, char quote) {
    if (!spell_joins(out, "'+")) spell_as(out, "'");
    for (; at < t.n && (!quote || t.s[at] != quote); at++) {
        char c = t.s[at];
        if (quote && c == '\\' && at + 1 < t.n) {
            c = t.s[++at];
            c = c == 'n' ? '\n' : c == 't' ? '\t' : c == 'r' ? '\r' : c;
        }
        out->s[out->n++] = c == '\'' ? '\1' : c;
    }
    spell_as(out, "'");
    return at + 1;
}

/* Of x['name'], before its last bracket: x.name. */
static int spell_member(Spelling *out) {
    size_t from = out->n - 1;
    while (is_word(out->s[from - 1])) from--;
    const size_t n = out->n - 1 - from;
    if (!n || out->s[out->n - 1] != '\'' || memcmp(out->s + from - 2, "['", 2)) return 0;
    out->s[from - 2] = '.';
    memmove(out->s + from - 1, out->s + from, n);
    out->n -= 2;
    return 1;
}

/* The inside of a tag; returns where `close` stands, perhaps behind a minus. */
static size_t spell_tag(Spelling *out, Str t, size_t at, const char *close) {
    while (at < t.n) {
        const char c = t.s[at];
        if (str_begins(str_from(t, at + (c == '-')), close)) break;
        if (c == '\'' || c == '"') {
            at = spell_text(out, t, at + 1, c);
            continue;
        }
        const int left_out = strchr(" \t\n\v\f\r", c) || (c == ']' && spell_member(out));
        if (!left_out) out->s[out->n++] = c == '~' ? '+' : c;
        at++;
    }
    return at;
}

static int is_tag(Str s) { return s.n > 1 && s.s[0] == '{' && s.s[1] && strchr("{%#", s.s[1]); }

static void template_spell(Spelling *out, Str t) { /* out has room for 3 * t.n + 64 */
    char before = 0; /* what the tag before does: '-' strips, '\n' takes a line end */
    out->n = 0;
    if (t.n && t.s[t.n - 1] == '\n') t.n--;
    for (size_t at = 0, tag = 0; at < t.n; tag = at) {
        while (tag < t.n && !is_tag(str_from(t, tag))) tag++;
        const char kind = tag < t.n ? t.s[tag + 1] : 0; /* 0: the end */
        const int minus = kind && tag + 2 < t.n && t.s[tag + 2] == '-';
        Str plain = {t.s + at, tag - at};
        if (before == '-') plain = strip(plain, LEFT);
        else if (before && str_begins(plain, "\n")) plain = str_from(plain, 1);
        size_t n = plain.n; /* blanks behind which a line begins go, too */
        while (n && (plain.s[n - 1] == ' ' || plain.s[n - 1] == '\t')) n--;
        const int alone = plain.s + n == t.s || plain.s[(ptrdiff_t)n - 1] == '\n';
        if (minus) plain = strip(plain, RIGHT);
        else if (alone && (kind == '%' || kind == '#')) plain.n = n;
        if (plain.n) {
            spell_output(out);
            spell_text(out, plain, 0, 0);
            spell_as(out, "}}");
        }
        if (!kind) break;
        const char *close = kind == '{' ? "}}" : kind == '%' ? "%}" : "#}";
        at = tag + 2 + (size_t)minus;
        if (kind == '{') spell_output(out);
        else if (kind == '%') spell_as(out, "{%");
        at = kind == '#' ? str_find(t, close, at) : spell_tag(out, t, at, close);
        if (kind != '#') spell_as(out, close);
        before = at < t.n && t.s[at - (kind == '#')] == '-' ? '-' : kind == '{' ? 0 : '\n';
        at += kind != '#' && before == '-' ? 3 : 2;
    }
}

/* The text between the quote at s[at] and the next, as it was. */
static Str spelled_text(Str s, size_t at) {
    size_t end = at + 1;
    while (end < s.n && s.s[end] != '\'') end++;
    return (Str){s.s + at + 1, end - at - 1};
}

/* The first text in the template that begins with a and goes on to b, and has more than these. */
static Str template_text(Str spelled, Str a, Str b) {
    for (size_t at = 0; at < spelled.n; at++) {
        const char *p = memchr(spelled.s + at, '\'', spelled.n - at);
        if (!p) break;
        const Str text = spelled_text(spelled, at = (size_t)(p - spelled.s));
        if (text.n > a.n + b.n && !memcmp(text.s, a.s, a.n))
            for (size_t i = a.n; i + b.n <= text.n; i++)
                if (!memcmp(text.s + i, b.s, b.n)) return text;
    }
    return (Str){NULL, 0};
}

/* -- what is written: ids -- */

/* Appends the ids of a text. */
static int ids_encode(Ids *a, const GlaModel *m, const char *text, size_t n, int flags, char *err) {
    const int64_t before = a->n;
    int code = need_vocabulary(m, err);
    if (!code) code = tokenizer_append(m->vocab, text, n, flags, a, err);
    for (int64_t i = before; i < a->n && !code; i++)
        if (a->id[i] >= m->config.vocab_size)
            code = fail(err, GLA_INPUT, "the vocabulary has the token %d, the model only %d; is it another model's (-z)?",
                        a->id[i], m->config.vocab_size);
    if (code) a->n = before;
    return code;
}

/* How the turns of a model's conversations are written: its row, and what the template adds to it. */
typedef struct {
    const GlaModel *m;
    const ChatTemplate *row;
    int known;              /* 1: the row is the template's; 0: there is none; -1: no row is */
    Spelling text;          /* the template; owned */
    const char *open[3], *tags[2]; /* as in the row */
    int32_t think_open, think_close;
    int may_think;          /* have the template and the vocabulary thoughts? */
} ChatForm;

typedef struct {
    const ChatForm *form;
    Ids *ids;
    int thinks;             /* is the answer to begin with a thought? */
    int goes_on;            /* ids stand before these */
    int answered;           /* an answer stands there that has not been ended */
    Str fold;               /* a system message that goes in front of a message */
    Text plain;             /* text since the last special token: it is tokenized as one */
    char *err;
    int code;
} ChatWriter;

static void write_plain(ChatWriter *w, Str s) {
    if (w->code || !s.n) return;
    text_put(&w->plain, s.s, s.n);
    if (w->plain.bad)
        w->code = fail(w->err, GLA_MEMORY, "no memory for a text of %zu bytes", w->plain.n + s.n);
}

/* What stands there becomes ids: the special token `next` follows, or -1, the end. */
static void write_flush(ChatWriter *w, int32_t next) {
    const int64_t n = w->ids->n;
    const int32_t before = n ? w->ids->id[n - 1] : -1;
    const Str text = between_added(w->form->m->vocab, (Str){w->plain.s, w->plain.n}, before, next);
    if (!w->code && text.n)
        w->code = ids_encode(w->ids, w->form->m, text.s, text.n, n || w->goes_on ? GOES_ON : 0,
                             w->err);
    w->plain.n = 0;
}

static void write_id(ChatWriter *w, int32_t id) {
    if (id < 0 || id >= w->form->m->config.vocab_size) return;
    write_flush(w, id);
    if (!w->code) w->code = ids_add(w->ids, &id, 1, w->err);
}

/* Text of a template, with special tokens in it. \1 is an apostrophe. */
static void write_marked(ChatWriter *w, Str s) {
    for (size_t at = 0, k = 1; at < s.n && !w->code; at += k) {
        const int32_t id = special_at(w->form->m->vocab, s.s + at, s.n - at, &k);
        if (id >= 0) { write_id(w, id); continue; }
        k = 1;
        write_plain(w, s.s[at] == '\1' ? str_of("'") : (Str){s.s + at, 1});
    }
}

/* Appends the value of an expression of the template to out: 'text', strftime_now('format') and
 * variables, joined by +. 0: it is something else. */
enum { VALUE_TERMS = 32, VALUE_DEPTH = 4 };
static int template_value(ChatWriter *out, Str e, int *terms, int depth) {
    const Str all = {out->form->text.s, out->form->text.n};
    const size_t before = out->plain.n;
    for (size_t n = 0; --*terms >= 0 && depth <= VALUE_DEPTH; n = 0, e = str_from(e, 1)) {
        char name[64], date[128];
        if (e.n && e.s[0] == '\'') {
            const Str text = spelled_text(e, 0);
            write_plain(out, text);
            n = text.n + 2;
        } else if (str_begins(e, "strftime_now('")) {
            const Str format = spelled_text(e, strlen("strftime_now("));
            if (!local_date(date, sizeof date, format.s, format.n)) break;
            write_plain(out, str_of(date));
            n = strlen("strftime_now('')") + format.n;
        } else {
            while (n < e.n && n < 40 && (is_word(e.s[n]) || e.s[n] == '.')) n++;
            const size_t len = (size_t)snprintf(name, sizeof name, "{%%set%.*s=", (int)n, e.s);
            size_t at = n ? str_find(all, name, 0) : all.n;
            /* the first value that can be told: not one that comes from a message */
            while (at < all.n && *terms > 0
                   && !template_value(out, str_from(all, at + len), terms, depth + 1))
                at = str_find(all, name, at + 1);
            if (at >= all.n || *terms <= 0) break;
        }
        e = str_from(e, n < e.n ? n : e.n);
        if (!e.n && !depth) return 1; /* the end of what a row asks for */
        if (str_begins(e, "%}")) return 1;
        if (!e.n || e.s[0] != '+') break;
    }
    out->plain.n = before;
    return 0;
}

static void write_braces(ChatWriter *w, Str what, Str text) { /* see ChatTemplate */
    const Str template = {w->form->text.s, w->form->text.n}, rest = str_from(what, what.n > 0);
    const Tokenizer *t = w->form->m->vocab;
    if (str_begins(what, "@")) {
        const size_t gap = str_find(rest, "%", 0);
        write_marked(w, template_text(template, (Str){rest.s, gap}, str_from(rest, gap + 1)));
    } else if (str_begins(what, "$")) {
        ChatWriter value = {.form = w->form, .err = w->err};
        int terms = VALUE_TERMS;
        template_value(&value, rest, &terms, 0);
        write_marked(w, (Str){value.plain.s, value.plain.n});
        text_free(&value.plain);
    } else if (str_is(what, "bos")) write_id(w, t->kind.bos);
    else if (str_is(what, "eos")) write_id(w, t->kind.eos);
    else if (!str_begins(what, "?")) write_marked(w, what);
    else if (text.n) write_marked(w, rest);
}

/* A form of the row, with the text of a message. */
static void write_form(ChatWriter *w, const char *form, Str text) {
    for (Str s = str_of(form); s.n && !w->code;) {
        const size_t plain = strcspn(s.s, "%{");
        write_marked(w, (Str){s.s, plain});
        s = str_from(s, plain);
        if (!s.n) break;
        if (s.s[0] == '%') {
            if (w->fold.s) write_plain(w, w->fold), write_plain(w, str_of("\n\n"));
            write_plain(w, text);
            s = str_from(s, 1);
            continue;
        }
        const size_t braces = strcspn(s.s, "}");
        const int asks = s.s[1] == '+' || s.s[1] == '-';
        const Str what = {s.s + 1 + asks, braces - 1 - (size_t)asks};
        if (!asks || (s.s[1] == '+') == w->thinks) write_braces(w, what, text);
        s = str_from(s, braces + 1);
    }
}

/* What is written of a text: see ChatTemplate. last: it is the last answer so far. */
static Str chat_trim(ChatWriter *w, Str s, const char *how, int last) {
    const char *close = "</think>";
    for (; how && *how; how++) {
        size_t at = str_find(s, close, 0);
        const int thought = at < s.n;
        if ((*how == '?' && !thought) || (*how == 'L' && last)) break;
        if (*how == '!' && thought && !w->code)
            w->code = fail(w->err, GLA_INPUT, "an earlier answer has a thought in it; what the chat "
                           "template of this file does with it is not known here: leave out what "
                           "stands before </think>");
        for (; at < s.n && strchr("df", *how); at = *how == 'f' ? s.n : str_find(s, close, 0))
            s = str_from(s, at + strlen(close));
        if (strchr("tl", *how)) s = strip(s, LEFT);
        if (strchr("tr", *how)) s = strip(s, RIGHT);
        if (strchr("nN", *how)) s = strip(s, *how == 'n' ? LEFT | LINES : LEFT | RIGHT | LINES);
    }
    return s;
}

static void write_end(ChatWriter *w) { /* of the answer before */
    if (w->answered) write_form(w, w->form->row->end, str_of(""));
    w->answered = 0;
}

/* What stands before the first message; system.s is NULL: no system message. */
static void write_system(ChatWriter *w, Str system) {
    const ChatForm *f = w->form;
    const ChatTemplate *row = f->row;
    const Tokenizer *t = f->m->vocab;
    const int bos = f->known == 1 ? 0 : t->kind.add_bos;
    if (row->head) write_form(w, row->head, str_of(""));
    else if (bos || str_has((Str){f->text.s, f->text.n}, "bos_token")) write_id(w, t->kind.bos);
    if (system.s) system = chat_trim(w, system, row->trim[0], 0);
    if (system.s && !system.n && row->facts & EMPTY_IS_LEFT_OUT) return;
    if (system.s && !system.n && row->facts & EMPTY_IS_NONE) system.s = NULL;
    if (!system.s && row->facts & SYSTEM_ALWAYS) system = str_of("");
    if (system.s && row->system) write_form(w, row->system, system);
    else if (system.s) w->fold = system;
    else if (row->missing) write_form(w, row->missing, system);
}

static Str write_turn(ChatWriter *w) { /* what there is to be folded into a message of the user */
    const Str fold = w->fold;
    write_end(w);
    return fold;
}

static void write_user(ChatWriter *w, Str text, int last) {
    const ChatTemplate *row = w->form->row;
    const Str fold = write_turn(w);
    if (!last && row->facts & SYSTEM_LATE) w->fold.s = NULL;
    write_form(w, row->user, chat_trim(w, text, row->trim[1], 0));
    w->fold = !last && row->facts & SYSTEM_LATE ? fold : (Str){NULL, 0};
}

static void write_answer(ChatWriter *w, Str text, int last) { /* an earlier one */
    const ChatTemplate *row = w->form->row;
    const Str fold = write_turn(w);
    w->fold.s = NULL;
    write_form(w, row->answer, str_of(""));
    write_form(w, row->given ? row->given : "%", chat_trim(w, text, row->trim[2], last));
    w->answered = 1;
    w->fold = fold;
}

static int form_thinks(const ChatForm *f, int think) { /* think: 1, 0, -1 as the template does */
    if (!f->open[1] || think >= 0) return f->open[1] && think;
    return !(f->row->facts & QUIET) && f->open[0] && !strcmp(f->open[0], f->open[1]);
}

/* What our answer goes on with, behind the row's `answer`. JSON begins behind a thought, which
 * then has to have a beginning. */
static const char *form_open(const ChatForm *f, int think, int json) {
    const char *open = f->open[think < 0 ? 0 : think ? 1 : 2];
    if (!f->open[1] || (!open && !f->may_think)) return f->open[0] ? f->open[0] : "";
    if (!open) open = EMPTY_THOUGHT; /* no way of the template's: as Qwen does it */
    const int begun = str_has(str_of(open), f->tags[0]);
    if (!json || !f->may_think || !form_thinks(f, think) || begun) return open;
    return f->row->tags[0] ? f->tags[0] : THOUGHT;
}

/* -- which row -- */

static int row_fits(const ChatTemplate *row, Str template) {
    int fits = str_has(template, row->sign);
    for (int i = 0; i < MARKS && row->marks[i]; i++) {
        const int lacks = row->marks[i][0] == '!';
        fits = fits && str_has(template, row->marks[i] + lacks) != lacks;
    }
    return fits;
}

/* The family that an unknown template resembles, or whose marks the vocabulary has where there is
 * no template: the last of its rows, which asks for the least. */
static const ChatTemplate *row_like(const GlaModel *m, Str template) {
    const ChatTemplate *row = &chat_templates[N_TEMPLATES - 1];
    for (int i = 0; i < N_TEMPLATES - 1; i++) {
        const ChatTemplate *r = &chat_templates[i];
        const int32_t id = template.n ? -1 : find_token(m->vocab, str_of(r->sign));
        const int control = id >= 0 && token_type(m->vocab, id) == TYPE_CONTROL;
        const int has = template.n ? str_has(template, r->sign) : control;
        if (has && (row->sign[0] == 0 || !strcmp(row->sign, r->sign))) row = r;
    }
    return row;
}

/* How answers begin, seen from what an unknown template writes behind the last message. */
static void form_guess_thoughts(ChatForm *f, Str template) {
    const char *prompt = "add_generation_prompt";
    size_t tail = 0;
    for (size_t at = 0; (at = str_find(template, prompt, at)) < template.n;) tail = ++at;
    const Str end = str_from(template, tail);
    const int opens = str_has(end, THOUGHT "'");
    const int asks = str_has(end, "enable_thinkingistrue") || str_has(end, "enable_thinking==true");
    f->open[1] = opens ? THOUGHT : "";
    f->open[2] = EMPTY_THOUGHT;
    f->open[0] = f->open[asks ? 2 : 1];
}

static void form_free(ChatForm *f) { gla_free(f->text.s); f->text.s = NULL; }

/* Reads the file's template. m stays the caller's, and has to outlive f. */
static int form_new(ChatForm *f, const GlaModel *m, char *err) {
    Str t = {"", 0};
    *f = (ChatForm){.m = m, .row = &chat_templates[N_TEMPLATES - 1]};
    if (!m->vocab_file.map.data || !gguf_str(&m->vocab_file, "tokenizer.chat_template", &t))
        gguf_str(&m->file, "tokenizer.chat_template", &t);
    if (!(f->text.s = gla_alloc(3 * t.n + 64)))
        return fail(err, GLA_MEMORY, "no memory for a chat template of %zu bytes", t.n);
    template_spell(&f->text, t);
    const Str template = {f->text.s, f->text.n};
    for (int i = 0; i < N_TEMPLATES - 1 && !f->known; i++)
        if (row_fits(&chat_templates[i], template)) f->known = 1, f->row = &chat_templates[i];
    if (!f->known) f->row = row_like(m, template);
    if (!f->known && t.n) f->known = -1;
    f->tags[0] = f->row->tags[0] ? f->row->tags[0] : "<think>";
    f->tags[1] = f->row->tags[1] ? f->row->tags[1] : "</think>";
    f->think_open = find_token(m->vocab, str_of(f->tags[0]));
    f->think_close = find_token(m->vocab, str_of(f->tags[1]));
    memcpy(f->open, f->row->open, sizeof f->open);
    f->may_think = f->think_open >= 0 && f->think_close >= 0;
    if (!f->row->tags[0]) f->may_think = f->may_think && str_has(template, "think");
    if (f->known != 1 && f->may_think) form_guess_thoughts(f, template);
    f->may_think = f->may_think && f->open[1];
    return GLA_OK;
}

GLA_API const char *gla_template(const GlaModel *m, int *known, char *err) {
    ChatForm form;
    const int code = form_new(&form, m, err);
    *known = form.known;
    form_free(&form);
    return code ? NULL : form.row->name;
}

static int out_of_turn(const ChatForm *f, int which, char *err) {
    return fail(err, GLA_INPUT, "message %d is out of turn: with the chat template %s, user and "
                "assistant alternate, and a user begins", which, f->row->name);
}

/* Can these be one conversation? */
static int check_messages(const ChatForm *f, const GlaMessage *messages, int n, char *err) {
    const int system = n && messages[0].role == GLA_SYSTEM;
    for (int i = system; i < n; i++) {
        const int role = messages[i].role;
        if (role == GLA_SYSTEM)
            return fail(err, GLA_INPUT, "message %d is a system message; only the first one may be",
                        i + 1);
        if (f->row->facts & TAKES_TURNS && role != ((i - system) % 2 ? GLA_ASSISTANT : GLA_USER))
            return out_of_turn(f, i + 1, err);
    }
    return GLA_OK;
}

static Str message_text(const GlaMessage *m) { return (Str){m->text, m->n}; }

/* Messages from..to - 1 of n, the last of which is not an answer's. */
static void write_messages(ChatWriter *w, const GlaMessage *messages, int from, int to) {
    int last = to - 1; /* the last answer */
    while (last > from && messages[last].role != GLA_ASSISTANT) last--;
    for (int i = from; i < to; i++) {
        const Str text = message_text(&messages[i]);
        if (messages[i].role == GLA_ASSISTANT) write_answer(w, text, i == last);
        else if (messages[i].role == GLA_USER) write_user(w, text, 0);
    }
}

/* Behind the last message: an answer begins. It is the end of the writer. */
static void write_prompt(ChatWriter *w, const char *open) {
    write_form(w, w->form->row->answer, str_of(""));
    write_marked(w, str_of(open));
    write_flush(w, -1);
    text_free(&w->plain);
}

GLA_API int64_t gla_render(const GlaModel *m, const GlaMessage *messages, int n, int think,
                           int32_t *ids, int64_t cap, char *err) {
    Ids all = {NULL, 0, 0};
    ChatForm form;
    if (!m->vocab->n)
        return fail(err, GLA_INPUT,
                    "messages need a vocabulary, the model's file has none; name one with -z");
    int code = form_new(&form, m, err);
    if (code) return code;
    const int system = n > 0 && messages[0].role == GLA_SYSTEM;
    if (n <= system || messages[n - 1].role != GLA_USER)
        code = fail(err, GLA_INPUT, "the last message has to be a user's: it is answered");
    if (!code) code = check_messages(&form, messages, n, err);
    ChatWriter w = {.form = &form, .ids = &all, .thinks = form_thinks(&form, think), .err = err};
    if (!code) {
        write_system(&w, system ? message_text(messages) : (Str){NULL, 0});
        write_messages(&w, messages, system, n - 1);
        write_user(&w, message_text(&messages[n - 1]), 1);
        write_prompt(&w, form_open(&form, think, 0));
        code = w.code;
    }
    for (int64_t i = 0; i < all.n && i < cap && !code; i++) ids[i] = all.id[i];
    const int64_t made = all.n;
    ids_free(&all), form_free(&form);
    return code ? code : made;
}

/* -- a conversation -- */

typedef struct { int refs; char data[]; } Snapshot; /* shared with the chats forked from this one */
/* A place between turns, or the beginning of the text behind the system prompt. */
typedef struct {
    int64_t pos, answer; /* ids before it; those before the answer that ends here, 0 = not known */
    int stopped;         /* the template's stop text ended it, the beginning of the next message */
    Snapshot *snap;      /* NULL: read again up to here */
} Mark;

struct GlaChat {
    GlaState *s;
    GlaChatSettings how;
    const char *system;   /* NULL: none was given */
    ChatForm form;
    GlaMessage *told;     /* messages that were given; their texts stand behind them */
    int n_told, n_written; /* the first of them are written before marks[told_at], the others */
    int told_at;           /* with the next message */
    Ids ids;
    Mark *marks;          /* 0 .. n_marks - 1; we are at marks[at], or within the turn behind it */
    int n_marks, at;
    size_t marks_cap;
    Snapshot *answer;     /* before the answer of the turn that ends at marks[at] */
    int64_t snapshot_bytes; /* held by marks and answer */
    /* the answer that is being given */
    GlaTurn *turn;
    const GlaGenerate *listener;
    GlaSampler *sampler;
    int thinking, leading, failed, uncached;
    int draws_json;       /* now */
    int close_thought, begin_json; /* next: a thought is to be closed; it was, JSON follows */
    int64_t period[LOOP_PERIODS + 1]; /* [k]: how many of the last tokens equal the one k before */
    int64_t from;         /* where the answer began */
};

static int chat_thinks(const GlaChat *c) { return form_thinks(&c->form, c->how.think); }

/* Appends the ids of a form of the row. */
static int chat_form_ids(GlaChat *c, Ids *out, const char *form, char *err) {
    ChatWriter w = {.form = &c->form, .ids = out, .goes_on = 1, .err = err};
    write_form(&w, form, str_of(""));
    write_flush(&w, -1);
    text_free(&w.plain);
    return w.code;
}

/* The ids of a message, and of what its answer begins with. json: the answer will be JSON. */
static int chat_turn_ids(GlaChat *c, Ids *out, Str text, int json, char *err) {
    const ChatTemplate *row = c->form.row;
    const int first = c->at == 0, stopped = c->marks[c->at].stopped;
    const int late = row->facts & SYSTEM_LATE && c->at == c->told_at;
    ChatWriter w = {.form = &c->form, .ids = out, .thinks = chat_thinks(c), .err = err};
    w.answered = !first && !stopped;
    if (c->system && !row->system && (first || late)) w.fold = str_of(c->system);
    if (c->at == c->told_at) write_messages(&w, c->told, c->n_written, c->n_told);
    if (stopped) /* the stop text was its beginning */
        write_form(&w, row->user + strlen(row->stop) - 1, chat_trim(&w, text, row->trim[1], 0));
    else write_user(&w, text, 1);
    write_prompt(&w, form_open(&c->form, c->how.think, json));
    return w.code;
}

/* -- places to come back to -- */

static void snapshot_drop(GlaChat *c, Snapshot **s) {
    if (!*s) return;
    c->snapshot_bytes -= (int64_t)gla_snapshot_bytes(c->s->m);
    if (!--(*s)->refs) gla_free(*s);
    *s = NULL;
}

/* Within the bound: the oldest leave. Without memory there is none. */
static void snapshot_take(GlaChat *c, Snapshot **s) {
    int64_t bytes = (int64_t)gla_snapshot_bytes(c->s->m), rest = c->how.snapshot_bytes - bytes;
    snapshot_drop(c, s);
    for (int i = 0; i < c->n_marks && c->snapshot_bytes > rest; i++)
        snapshot_drop(c, &c->marks[i].snap);
    if (c->snapshot_bytes > rest || !(*s = gla_alloc(sizeof **s + (size_t)bytes))) return;
    (*s)->refs = 1;
    c->snapshot_bytes += bytes;
    gla_snapshot(c->s, (*s)->data);
}

static void snapshot_share(GlaChat *c, Snapshot *s) { /* another chat's is c's as well */
    if (!s) return;
    s->refs++;
    c->snapshot_bytes += (int64_t)gla_snapshot_bytes(c->s->m);
}

static void chat_cut(GlaChat *c, int n_marks) { /* turns from here on are forgotten */
    while (c->n_marks > n_marks) snapshot_drop(c, &c->marks[--c->n_marks].snap);
    snapshot_drop(c, &c->answer);
}

static int chat_mark(GlaChat *c, int64_t pos, int64_t answer, char *err) { /* here a turn ends */
    Mark *more = grow(c->marks, (size_t)c->n_marks, 1, &c->marks_cap, sizeof *more);
    if (!more) return fail(err, GLA_MEMORY, "no memory for another turn");
    c->marks = more;
    c->at = c->n_marks;
    c->marks[c->n_marks++] = (Mark){pos, answer, 0, NULL};
    return GLA_OK;
}

/* Reads the ids of the conversation up to `to`. */
static int chat_read(GlaChat *c, int64_t to, const GlaGenerate *how, char *err) {
    const int32_t *from = c->ids.id ? c->ids.id + c->s->pos : NULL; /* NULL: there is nothing yet */
    return read_ids(c->s, from, to - c->s->pos, how, err);
}

/* Brings the state to marks[to], by its snapshot or from the nearest one before. */
static int chat_move(GlaChat *c, int to, char *err) {
    int from = to;
    while (from >= 0 && !c->marks[from].snap) from--;
    if (from >= 0) gla_rewind(c->s, c->marks[from].snap->data);
    else gla_state_reset(c->s);
    if (to != c->at) snapshot_drop(c, &c->answer);
    c->at = to;
    return chat_read(c, c->marks[to].pos, NULL, err);
}

/* Writes the messages that were given, up to the last answer, a turn each. Where the ids do not
 * tell the end of a turn, none of them: they all go with the next message. */
static int chat_write_told(GlaChat *c, ChatWriter *w) {
    const char *end = c->form.row->end;
    size_t k;
    if (!*end || special_at(c->form.m->vocab, end, strlen(end), &k) < 0) return w->code;
    for (int i = c->n_written; i < c->n_told && !w->code; i++) {
        if (c->told[i].role != GLA_ASSISTANT) continue;
        write_messages(w, c->told, c->n_written, i + 1);
        write_flush(w, -1);
        if (!w->code) w->code = chat_mark(c, c->ids.n, 0, w->err);
        c->n_written = i + 1;
    }
    return w->code;
}

/* The text before the first message, read when the first message comes. */
static int chat_begin(GlaChat *c, const GlaGenerate *how, char *err) {
    Ids *ids = &c->ids;
    if (c->n_marks) return GLA_OK;
    ids->n = 0;
    ChatWriter w = {.form = &c->form, .ids = ids, .thinks = chat_thinks(c), .err = err};
    write_system(&w, c->system ? str_of(c->system) : (Str){NULL, 0});
    write_flush(&w, -1);
    int code = w.code;
    const int cached = c->how.cache && ids->n;
    int64_t reused = 0;
    if (!code && cached) {
        reused = gla_cache_load(c->s, c->how.cache, ids->id, ids->n, err);
        code = reused < 0 ? (int)reused : GLA_OK;
    }
    if (!code) code = chat_read(c, ids->n, how, err);
    if (!code && cached && reused < ids->n && c->system) { /* if that fails, the chat goes on */
        const int stored = gla_cache_store(c->s, c->how.cache, ids->id, c->how.cache_bytes, err);
        c->uncached = stored != GLA_OK;
    }
    if (!code) code = chat_mark(c, c->s->pos, 0, err);
    c->n_written = c->n_told && c->told[0].role == GLA_SYSTEM;
    if (!code) code = chat_write_told(c, &w);
    if (!code) code = chat_read(c, ids->n, how, err);
    c->told_at = c->n_told ? c->at : -1;
    text_free(&w.plain);
    if (code) { /* the next message tries again */
        chat_cut(c, 0);
        c->at = 0;
        gla_state_reset(c->s);
    }
    return code;
}

/* -- answers -- */

/* Is the last of the ids, which is id, in a loop: the same at most LOOP_PERIODS tokens again and
 * again, for how.loop_tokens tokens and at least four times? */
static int chat_loops(GlaChat *c, int32_t id) {
    int64_t last = c->ids.n - 1;
    int looping = 0;
    for (int k = 1; k <= LOOP_PERIODS && k <= last - c->from; k++) {
        c->period[k] = c->ids.id[last - k] == id ? c->period[k] + 1 : 0;
        if (c->period[k] >= c->how.loop_tokens && c->period[k] >= 3 * k) looping = 1;
    }
    if (!looping || c->how.loop_tokens <= 0) return 0;
    memset(c->period, 0, sizeof c->period);
    return 1;
}

/* The text of an answer passes here: thinking is told apart, white space before the text goes, and
 * loops are noticed. */
static int chat_heard(void *user, int32_t id, const char *text, size_t n) {
    GlaChat *c = user;
    GlaTurn *turn = c->turn;
    const ChatForm *f = &c->form;
    const int opens = id == f->think_open, closes = id == f->think_close;
    const int tag = f->may_think && !c->draws_json && id >= 0 && (opens || closes);
    int stop = 0;
    if (id >= 0 && ids_add(&c->ids, &id, 1, NULL)) c->failed = stop = 1;
    else if (id >= 0 && chat_loops(c, id)) {
        if (turn->loops++) stop = 1;
        else if (c->sampler->repeat_penalty < 1.3f) c->sampler->repeat_penalty = 1.3f;
    }
    if (tag) { /* the tag itself is not shown */
        const size_t len = strlen(f->tags[!opens]);
        n = n > len ? n - len : 0;
    }
    while (c->leading && n && strchr(" \t\r\n", *text)) text++, n--;
    if (n) c->leading = 0;
    if (c->listener->emit && c->listener->emit(c->listener->user, id, text, n)) stop = 1;
    const int goes_on = !stop;
    if (tag) c->thinking = opens, c->leading = 1;
    else if (id >= 0 && c->thinking && ++turn->thought == c->how.think_budget)
        c->close_thought = goes_on, stop = 1;
    if (tag && !opens && c->listener->json) c->begin_json = goes_on, stop = 1;
    return stop;
}

/* Is a thought open at the end of what was read? The template has begun it, or nobody. */
static int chat_in_thought(const GlaChat *c) {
    const ChatForm *f = &c->form;
    for (int64_t i = c->s->pos; f->may_think && i-- > c->marks[c->at].pos;) {
        const int32_t id = c->ids.id[i];
        if (id == f->think_open || id == f->think_close) return id == f->think_open;
        if (token_type(f->m->vocab, id) == TYPE_CONTROL) break;
    }
    return 0;
}

/* The answer to what has been read, up to its end. */
static int chat_answer(GlaChat *c, GlaSampler *p, const GlaGenerate *how, GlaTurn *turn,
                       char *err) {
    const char *stops[17];
    float penalty = p->repeat_penalty;
    int64_t begin = c->s->pos, made = 0;
    int done = 0, code = GLA_OK, goes_on;
    GlaGenerate g = *how;
    g.emit = chat_heard, g.user = c;
    if (c->form.row->stop && how->n_stops < 17) { /* one more stop text */
        for (int i = 0; i < how->n_stops; i++) stops[i] = how->stops[i];
        stops[g.n_stops++] = c->form.row->stop, g.stops = stops;
    }
    c->turn = turn, c->listener = how, c->sampler = p;
    c->close_thought = c->failed = 0;
    c->thinking = chat_in_thought(c);
    c->leading = 1;
    c->from = begin;
    memset(c->period, 0, sizeof c->period);
    do {
        Ids forced = {NULL, 0, 0};
        if (c->close_thought) { /* the budget is spent: the thought's end is put into its mouth */
            const char *close = c->form.row->tags[1];
            code = chat_form_ids(c, &forced, close ? close : "\n</think>\n\n", err);
            if (!code) code = ids_add(&c->ids, forced.id, forced.n, err);
            c->close_thought = c->thinking = 0;
            c->leading = turn->budget = 1;
        }
        c->begin_json = 0;
        c->draws_json = g.json = how->json && !c->thinking; /* a thought comes before */
        if (how->steps) g.steps = how->steps - turn->made;
        if (!code) done = code = gla_generate(c->s, p, forced.id, forced.n, &g, &made, err);
        turn->made += made;
        ids_free(&forced);
        if (code == GLA_DONE_END && how->json && c->thinking) /* it forgot to close it */
            c->close_thought = 1, code = GLA_DONE_CALLER;
        goes_on = code == GLA_DONE_CALLER && (c->close_thought || c->begin_json);
    } while (goes_on && (!how->steps || turn->made < how->steps));
    if (goes_on) done = GLA_DONE_STEPS;
    if (turn->loops > 1) done = GLA_DONE_LOOP;
    p->repeat_penalty = penalty;
    c->ids.n = c->s->pos;
    if (c->failed && code >= 0) code = fail(err, GLA_MEMORY, "no memory for another token id");
    if (code >= 0) code = chat_mark(c, c->s->pos, begin, err);
    if (!code)
        c->marks[c->at].stopped = done == GLA_DONE_STOP && c->form.row->stop && !how->n_stops;
    turn->done = done;
    return code < 0 ? code : done;
}

GLA_API int gla_chat_say(GlaChat *c, GlaSampler *p, const char *text, size_t n,
                         const GlaGenerate *how, GlaTurn *turn, char *err) {
    GlaTurn nobody;
    int64_t before = c->s->evaluated;
    if (!turn) turn = &nobody;
    memset(turn, 0, sizeof *turn);
    Ids *ids = &c->ids;
    c->uncached = 0;
    int code = chat_begin(c, how, err);
    turn->uncached = c->uncached;
    if (!code && c->s->pos != c->marks[c->at].pos) /* an answer has failed */
        code = chat_move(c, c->at, err);
    if (code) return code;
    chat_cut(c, c->at + 1); /* whatever was undone is gone now */
    ids->n = c->marks[c->at].pos;
    if (!c->marks[c->at].snap) snapshot_take(c, &c->marks[c->at].snap);
    code = chat_turn_ids(c, ids, (Str){text, n}, how->json, err);
    if (!code && c->s->m->kv_floats && ids->n >= c->s->ctx)
        code = fail(err, GLA_CONTEXT,
                    "the context of %d positions has room for %lld more tokens, this message "
                    "needs %lld; forget the oldest turns (/forget, --forget) or give a larger "
                    "context (-c)",
                    c->s->ctx, (long long)(c->s->ctx - c->s->pos), (long long)(ids->n - c->s->pos));
    if (!code) code = chat_read(c, ids->n, how, err);
    turn->read = c->s->evaluated - before;
    if (code) { /* as if nothing had been said */
        char ignored[GLA_ERR];
        int moved = c->s->pos == c->marks[c->at].pos ? GLA_OK : chat_move(c, c->at, ignored);
        ids->n = c->s->pos;
        return moved ? moved : code;
    }
    for (int64_t i = c->marks[c->at].pos; i < ids->n; i++) gla_sampler_note(p, ids->id[i]);
    snapshot_take(c, &c->answer);
    turn->said = 1;
    return chat_answer(c, p, how, turn, err);
}

/* The penalties forget what was taken back. */
static void chat_recent(const GlaChat *c, GlaSampler *p) {
    int64_t n = c->s->pos;
    p->n_recent = 0;
    for (int64_t i = max64(0, n - GLA_RECENT); i < n; i++) gla_sampler_note(p, c->ids.id[i]);
}

GLA_API int gla_chat_retry(GlaChat *c, GlaSampler *p, const GlaGenerate *how, GlaTurn *turn,
                           char *err) {
    GlaTurn nobody;
    int code = GLA_OK;
    if (!turn) turn = &nobody;
    memset(turn, 0, sizeof *turn);
    if (c->at == 0) return fail(err, GLA_INPUT, "there is no answer to try again");
    int64_t answer = c->marks[c->at].answer, before = c->s->evaluated;
    if (!answer) return fail(err, GLA_INPUT, "where the last answer begins is not known");
    if (c->answer) {
        gla_rewind(c->s, c->answer->data);
        c->at--;
    } else {
        code = chat_move(c, c->at - 1, err);
        if (!code) code = chat_read(c, answer, how, err);
        if (code == GLA_DONE_CALLER) {
            chat_cut(c, c->at + 1);
            c->ids.n = c->marks[c->at].pos;
            if (chat_move(c, c->at, err)) return GLA_MEMORY;
        }
        if (code) return code;
        snapshot_take(c, &c->answer);
    }
    turn->read = c->s->evaluated - before;
    c->ids.n = answer;
    while (c->n_marks > c->at + 1) snapshot_drop(c, &c->marks[--c->n_marks].snap);
    chat_recent(c, p);
    return chat_answer(c, p, how, turn, err);
}

GLA_API int gla_chat_go(GlaChat *c, GlaSampler *p, int turns, char *err) {
    int to = c->at + turns;
    if (to < 0 || to >= c->n_marks)
        return fail(err, GLA_INPUT, "there is nothing to %s", turns < 0 ? "undo" : "redo");
    if (!c->marks[c->at].snap) snapshot_take(c, &c->marks[c->at].snap);
    int code = chat_move(c, to, err);
    chat_recent(c, p);
    return code;
}

static int ids_are(const Ids *in, int64_t at, const Ids *what, int64_t n) { /* the first n of it */
    return !n || !memcmp(in->id + at, what->id, (size_t)n * sizeof *in->id);
}

/* Drops the oldest turns until at most `keep` ids remain, and reads the rest again behind the
 * system prompt. The last turn stays. */
GLA_API int gla_chat_forget(GlaChat *c, int64_t keep, const GlaGenerate *how, char *err) {
    Ids end = {NULL, 0, 0}, rest = {NULL, 0, 0};
    int first = 1;
    if (c->at < 2) return fail(err, GLA_INPUT, "there are no earlier turns to forget");
    const int64_t head = c->marks[0].pos, to = c->marks[c->at].pos;
    while (first < c->at - 1 && head + to - c->marks[first].pos > keep) first++;
    int64_t from = c->marks[first].pos;
    int code = chat_form_ids(c, &end, c->form.row->end, err);
    if (!code && to - from >= end.n && ids_are(&c->ids, from, &end, end.n))
        from += end.n; /* it ended the turn before */
    if (!code) code = ids_add(&rest, c->ids.id, head, err);
    if (!code) code = ids_add(&rest, c->ids.id + from, to - from, err);
    ids_free(&end);
    if (code) { ids_free(&rest); return code; }
    int kept = c->at - first;
    chat_cut(c, c->at + 1);
    for (int i = 0; i <= c->at; i++) /* they know the turns that go */
        snapshot_drop(c, &c->marks[i].snap);
    for (int i = 1; i <= kept; i++) {
        Mark *mark = &c->marks[i];
        *mark = c->marks[first + i];
        mark->pos += head - from;
        if (mark->answer) mark->answer += head - from;
    }
    ids_free(&c->ids);
    c->ids = rest;
    c->at = kept;
    c->n_marks = kept + 1;
    gla_state_reset(c->s);
    code = chat_read(c, c->ids.n, how, err);
    if (code == GLA_DONE_CALLER) /* no way back from here */
        code = chat_read(c, c->ids.n, NULL, err);
    return code ? code : first;
}

/* -- the rest of the interface -- */

/* Copies the messages, and the system prompt: that of the messages, if they have one. */
static int chat_keep_told(GlaChat *c, const GlaMessage *messages, int n, char *err) {
    const int system = n && messages[0].role == GLA_SYSTEM, turns = n - system;
    const size_t given = c->how.system ? strlen(c->how.system) + 1 : 0;
    size_t bytes = (size_t)n * sizeof *messages + given;
    int code = check_messages(&c->form, messages, n, err);
    if (!code && c->form.row->facts & TAKES_TURNS && turns % 2)
        code = out_of_turn(&c->form, n + 1, err);
    for (int i = 0; i < n; i++) bytes += messages[i].n + 1;
    if (code || !bytes) return code;
    if (!(c->told = gla_alloc(bytes))) return fail(err, GLA_MEMORY, "no memory for %d messages", n);
    char *text = (char *)(c->told + n);
    for (int i = 0; i < n; i++) {
        c->told[i] = (GlaMessage){messages[i].role, text, messages[i].n};
        memcpy(text, messages[i].text, messages[i].n);
        text += messages[i].n;
        *text++ = 0;
    }
    if (given) memcpy(text, c->how.system, given);
    c->n_told = n;
    c->system = system ? c->told[0].text : given ? text : NULL;
    return GLA_OK;
}

GLA_API int gla_chat_new(GlaChat **chat, GlaState *s, const GlaChatSettings *how, char *err) {
    *chat = NULL;
    const int no_text = need_vocabulary(s->m, err);
    if (no_text) return no_text;
    if (s->pos) return fail(err, GLA_INPUT, "a chat begins with a state that has read nothing");
    GlaChat *c = gla_alloc(sizeof *c);
    if (!c) return fail(err, GLA_MEMORY, "no memory for a chat");
    c->s = s;
    c->how = *how;
    c->told_at = -1;
    int code = form_new(&c->form, s->m, err);
    if (!code) code = chat_keep_told(c, how->messages, how->n_messages, err);
    if (code) {
        gla_chat_free(c);
        return code;
    }
    *chat = c;
    return GLA_OK;
}

GLA_API void gla_chat_free(GlaChat *c) {
    if (!c) return;
    chat_cut(c, 0);
    ids_free(&c->ids), gla_free(c->marks), gla_free(c->told), form_free(&c->form), gla_free(c);
}

GLA_API int gla_chat_thinking(const GlaChat *c) { return c->thinking; }
GLA_API int gla_chat_may_think(const GlaChat *c) { return c->form.may_think; }
GLA_API void gla_chat_think(GlaChat *c, int think) { c->how.think = think; }
GLA_API const int32_t *gla_chat_ids(const GlaChat *c) { return c->ids.id; }
GLA_API size_t gla_chat_snapshot_bytes(const GlaChat *c) { return (size_t)c->snapshot_bytes; }

GLA_API int gla_chat_turns(const GlaChat *c, int *undone) {
    if (undone) *undone = c->n_marks ? c->n_marks - 1 - c->at : 0;
    return c->at;
}

GLA_API int gla_chat_save(const GlaChat *c, const GlaSampler *p, const char *path, char *err) {
    if (!c->s->pos) return fail(err, GLA_INPUT, "nothing has been said");
    return gla_state_save(c->s, p, c->ids.id, path, err);
}

/* Where the first n of `what` stand, from `from` on; -1: nowhere. */
static int64_t ids_find(const Ids *in, int64_t from, const Ids *what, int64_t n) {
    for (int64_t i = from; n > 0 && i + n <= in->n; i++) if (ids_are(in, i, what, n)) return i;
    return -1;
}

/* A session holds ids and no turns; where they begin and end is seen from the ids of the template.
 * The last id before a message may have merged with it. */
static int chat_find_turns(GlaChat *c, char *err) {
    Ids user = {NULL, 0, 0}, answer = {NULL, 0, 0}, end = {NULL, 0, 0};
    char head[64];
    snprintf(head, sizeof head, "%.*s", (int)strcspn(c->form.row->user, "%{"), c->form.row->user);
    int code = chat_form_ids(c, &user, head, err);
    if (!code) code = chat_form_ids(c, &answer, c->form.row->answer, err);
    if (!code) code = chat_form_ids(c, &end, c->form.row->end, err);
    const int64_t n_user = user.n > 1 ? user.n - 1 : user.n;
    int64_t last = c->ids.n, at = code ? -1 : ids_find(&c->ids, 0, &user, n_user);
    chat_cut(c, 0);
    if (!code) code = chat_mark(c, at < 0 ? last : at, 0, err);
    for (int64_t next; !code && at >= 0; at = next) { /* where a turn ends, its answer begins */
        int64_t begin = ids_find(&c->ids, at, &answer, answer.n);
        next = ids_find(&c->ids, at + 1, &user, n_user);
        int64_t turn_end = next < 0 ? last : next;
        if (next >= end.n && ids_are(&c->ids, next - end.n, &end, end.n)) turn_end -= end.n;
        begin = begin < 0 || begin + answer.n > turn_end ? 0 : begin + answer.n;
        const int thought = begin && begin < turn_end && c->form.may_think
            && c->ids.id[begin] == c->form.think_open;
        if (thought && *form_open(&c->form, c->how.think, 0)) {
            /* the template began it, and ended it where it is to stay empty */
            const int empty = !chat_thinks(c);
            int64_t close = begin;
            while (empty && close < turn_end && c->ids.id[close] != c->form.think_close) close++;
            if (close < turn_end) begin = min64(close + 2, turn_end); /* and the line end behind it */
        }
        code = chat_mark(c, turn_end, begin, err);
    }
    ids_free(&user), ids_free(&answer), ids_free(&end);
    return code;
}

GLA_API int gla_chat_load(GlaChat *c, GlaSampler *p, const char *path, char *err) {
    char why[GLA_ERR] = "";
    int32_t *ids;
    GlaSampler loaded = *p;
    int64_t before = c->s->pos;
    const int64_t has = gla_session_ids(c->s->m, path, NULL, 0, err);
    if (has < 0) return (int)has;
    if (!has)
        return fail(err, GLA_INPUT, "%s: holds a state without its token ids, which a chat needs",
                    path);
    int code = session_load(c->s, &loaded, &ids, path, why);
    if (!code && !ids) {
        code = fail(why, GLA_FORMAT, "%s: was replaced while it was read", path);
        gla_state_reset(c->s);
    }
    if (code) {
        if (c->s->pos != before) /* a damaged file has emptied the state: what was there again */
            chat_read(c, before, NULL, NULL);
        return fail(err, code, "%s", why);
    }
    ids_free(&c->ids);
    c->ids = (Ids){ids, c->s->pos, c->s->pos};
    memcpy(p->recent, loaded.recent, sizeof p->recent);
    p->n_recent = loaded.n_recent;
    p->rng = loaded.rng;
    return chat_find_turns(c, err);
}

GLA_API int gla_chat_clone(GlaChat **copy, GlaState **state, const GlaChat *c, char *err) {
    GlaChatSettings how = c->how;
    int code = gla_state_clone(state, c->s, err);
    *copy = NULL;
    how.system = c->system;
    how.messages = c->told;
    how.n_messages = c->n_told;
    if (code) return code;
    int64_t pos = (*state)->pos;
    (*state)->pos = 0;
    code = gla_chat_new(copy, *state, &how, err);
    (*state)->pos = pos;
    GlaChat *d = *copy;
    if (!code) code = ids_add(&d->ids, c->ids.id, c->s->pos, err);
    if (!code && c->n_marks) {
        d->marks = grow(NULL, 0, (size_t)c->at + 1, &d->marks_cap, sizeof *d->marks);
        if (!d->marks) code = fail(err, GLA_MEMORY, "no memory for the turns");
    }
    if (code) {
        gla_chat_free(d), gla_state_free(*state);
        *copy = NULL, *state = NULL;
        return code;
    }
    for (int i = 0; c->n_marks && i <= c->at; i++) {
        d->marks[d->n_marks++] = c->marks[i];
        snapshot_share(d, c->marks[i].snap);
    }
    d->at = c->at;
    d->n_written = c->n_written;
    d->told_at = c->told_at;
    d->answer = c->answer;
    snapshot_share(d, d->answer);
    return GLA_OK;
}

/* ---- 15. command line: options, modes, statistics; the only stdout, the only exit ------------
 * First what train_tiny has, too:
 *   waiting       a line a second, where somebody watches
 *   the end       of a program that is misused, or cannot go on
 *   options       what the tables of a program hold, and what was given
 *   words         in lists, of other programs, and those that are near
 *   argv          reading it, and the help page
 * Then this program:
 *   options       its tables, what they mean by a letter, and what goes together
 *   input         files, standard input, ids, messages in JSON
 *   signals       what Ctrl-C does
 *   line editor   a message typed on a terminal; knows nothing of models
 *   talking       what generate and chat share: showing text, JSON, the sampler, sessions
 *   generate, chat, logits and perplexity, tokenize, info, bench: a function mode_X for each
 *   pages         the help page, the man page, the completions of shells: from the rows
 *   main          which mode, with which model */
#if !defined(RUN_NO_MAIN) || defined(RUN_OPTIONS)

/* -- waiting: what takes longer than a second says so, once a second, where somebody watches -- */

/* Written while no signal is due. One that came just before the end may still be told on another
 * thread, so `what` stays what it was. */
static struct {
    int watched;       /* by somebody: a terminal, and no --quiet */
    const char *what;  /* "reading" */
    int64_t (*done)(const void *work); /* tokens, or a part of `of`; NULL: not known */
    const void *work;
    int64_t from, of;  /* what was done at first; all there is to do, 0 = not known */
    int percent;       /* of `of`, rather than tokens and their speed */
    volatile sig_atomic_t on, seconds;
} waiting;

typedef struct { char s[256]; size_t n; } Line;
/* Within a signal handler there is no printf. A # is the number. */
static void line_put(Line *l, const char *text, int64_t number) {
    for (; *text && l->n < sizeof l->s - 24; text++) {
        char digits[24];
        size_t n = 0;
        if (*text != '#') { l->s[l->n++] = *text; continue; }
        for (int64_t v = max64(number, 0); v || !n; v /= 10) digits[n++] = (char)('0' + v % 10);
        while (n) l->s[l->n++] = digits[--n];
    }
}

static void on_second(int sig) {
    Line l = {.n = 0};
    (void)sig;
    if (!waiting.on) return;
    const int64_t seconds = ++waiting.seconds;
    const int64_t done = waiting.done ? waiting.done(waiting.work) - waiting.from : 0;
    line_put(&l, "\r", 0);
    line_put(&l, waiting.what, 0);
    if (waiting.done && waiting.percent)
        line_put(&l, " # %", 100 * done / max64(waiting.of, 1));
    else if (waiting.done) {
        line_put(&l, " #", done);
        if (waiting.of) line_put(&l, " of #", waiting.of);
        line_put(&l, " tokens, # tok/s", done / seconds);
    }
    line_put(&l, ", # s\033[K", seconds);
    write_now(l.s, l.n);
}

static void wait_end(void) {
    if (!waiting.on) return;
    waiting.on = 0;
    every_second(NULL);
    if (waiting.seconds) fputs("\r\033[K", stderr);
}
LIKELY_UNUSED static void wait_begin(const char *what, int64_t (*done)(const void *),
                                     const void *work, int64_t of) {
    wait_end();
    if (!waiting.watched) return;
    waiting.what = what;
    waiting.done = done;
    waiting.work = work;
    waiting.from = done ? done(work) : 0;
    waiting.of = of;
    waiting.seconds = 0;
    waiting.on = 1;
    every_second(on_second);
}

/* -- the end of a program that cannot go on -- */

/* argv[0]: an installed program has another name. This, the unfinished file, and what signal
 * handlers need (interrupted, loose_ends, waiting) are the only variables outside functions. */
static const char *invoked = "./run";
static const char *program_name(void) { return base_name(invoked); }

/* Ends the program: the sentence, unless it is empty, since somebody knows already, and no
 * unfinished file. Memory is left to the system. Status 2: misuse of the command line. */
static const char *unfinished; /* a file that is being written under this name, or NULL */
_Noreturn static void end_program(int status, const char *fmt, ...) PRINTF_LIKE(2, 3);
_Noreturn static void end_program(int status, const char *fmt, ...) {
    char text[2 * PATH_LEN], out[VISIBLE];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    wait_end();
    if (unfinished && *unfinished) remove(unfinished);
    if (*text) fprintf(stderr, "%s: ", program_name());
    for (size_t at = 0, len, n = strlen(text); at < n; at += len)
        fwrite(out, 1, visible(out, text + at, n - at, &len), stderr);
    if (status == 2) fprintf(stderr, " (see %s --help)", invoked);
    if (*text) fputs("\n", stderr);
    fflush(stdout);
    _Exit(status);
}
#define misuse(...) end_program(2, __VA_ARGS__)
#define give_up(...) end_program(1, __VA_ARGS__)
LIKELY_UNUSED static void must(int code, const char *err) {
    if (code < 0) give_up("%s", err);
}
LIKELY_UNUSED static void complain(const char *err) { /* and goes on */
    if (*err) fprintf(stderr, "%s: %s\n", program_name(), err);
}

/* -- options: what a program understands, as rows -- */

/* An option is a row of a table and its use: text_of(o, O_NAME), whole_of(o, O_NAME), given(o,
 * O_NAME). Reading argv, what is said about mistakes, and --help come from the rows.
 *   letter, or 0, and name
 *   modes that have a use for it, a bit each: with any other it is misuse, rather than ignored
 *   its value and what it does (NULL: not shown); %s there is what it is by itself
 *   its type, with what it is by itself, or NULL, and its range
 *   the field of a struct that takes the value, if there is one */
enum Kind { IS_FLAG, IS_TEXT, IS_TEXTS, IS_WORD, IS_SEED, IS_WHOLE, IS_SIZE, IS_REAL, IS_ROUND };
typedef struct {
    char letter;
    const char *name;
    int modes;
    const char *value, *help;
    enum Kind kind;
    const char *usual, *words; /* words: the values there are */
    double lo, hi;
    const char *zero;          /* another way to write 0 */
    int file;                  /* a name of one */
    size_t at, width;          /* bytes */
} Option;
#define A_FLAG .kind = IS_FLAG
#define A_TEXT(usually) .kind = IS_TEXT, .usual = usually
#define A_FILE(how) .kind = IS_TEXT, .file = how
enum { INPUT = 1, OUTPUT = 2, FOLDER = 4, SESSION = 8 }; /* the last: that an output may replace */
#define UP_TO_TEXTS(most) .kind = IS_TEXTS, .hi = most /* may be repeated */
#define A_WORD(list) .kind = IS_WORD, .words = list
#define A_SEED .kind = IS_SEED, .hi = 0x1p64
#define A_WHOLE(usually, least, most) .kind = IS_WHOLE, .usual = usually, .lo = least, .hi = most
#define A_SIZE(usually) .kind = IS_SIZE, .usual = usually, .hi = 9e18 /* 64M */
#define A_REAL(usually, least, most) .kind = IS_REAL, .usual = usually, .lo = least, .hi = most
#define A_ROUND(usually, least, most) /* 1000, 1e3 */ \
    .kind = IS_ROUND, .usual = usually, .lo = least, .hi = most
#define INTO(type, field) .at = offsetof(type, field), .width = sizeof ((type *)0)->field
/* A list X(O_NAME, letter, name ...) as numbers, and as rows of a table. */
#define OPTION_ID(id, ...) id,
#define OPTION_ROW(id, ...) [id] = {__VA_ARGS__},

/* What other programs call things: a row for each meaning. SAME: an option here. SETS: an option
 * with this value. IDLE: what this program does anyway, or has no use for; a line says so, and all
 * goes on. SAYS: an answer, because to go on would not do what was asked for. LIKE: is asked
 * whether this option was meant. */
enum Meaning { SAME, SETS, IDLE, SAYS, LIKE };
enum { NOTHING, A_VALUE, A_SWITCH }; /* what stands behind an idle word; a switch may be left out */
typedef struct {
    const char *words;
    enum Meaning meaning;
    int option;        /* SAME, SETS, LIKE: which one; IDLE: what stands behind it */
    const char *value; /* SETS: the value; IDLE, SAYS: the sentence */
} Alias;

typedef struct Options Options;
typedef struct {
    const Option *option;
    int n_options;
    const Alias *alias;
    int n_aliases;
    const char *modes; /* word i: bit 1 << i of Option.modes */
    int plain;         /* the option that a plain word is */
    /* A letter that other programs may mean otherwise, with its value: the option that is meant.
     * NULL: letters mean what they say. */
    int (*letter)(const Options *o, int option, const char **value);
} Syntax;

/* whole: of a flag 1, of a word, which one it is */
typedef struct { const char *text; int64_t whole; double real; int given; } Value;
enum { MAX_OPTIONS = 64, MAX_REPEATED = 64, IDLE_WORD = -1 };
struct Options {
    const Syntax *syntax;
    Value value[MAX_OPTIONS];
    struct { int option; const char *text; } repeated[MAX_REPEATED]; /* or IDLE_WORD */
    int n_repeated;
    Text stray; /* plain words behind the first one */
    int mode;   /* a bit */
    int quiet;
};

static int given(const Options *o, int option) { return o->value[option].given; }
LIKELY_UNUSED static const char *text_of(const Options *o, int option) { /* NULL: not given */
    return o->value[option].text;
}
LIKELY_UNUSED static int64_t whole_of(const Options *o, int option) {
    return o->value[option].whole;
}
/* Value i of an option that may be repeated; NULL: there are fewer. */
static const char *repeated(const Options *o, int option, int i) {
    for (int k = 0; k < o->n_repeated; k++)
        if (o->repeated[k].option == option && !i--) return o->repeated[k].text;
    return NULL;
}

/* The values that were given, or are usual, into the fields of a struct that the rows name. */
LIKELY_UNUSED static void fill_fields(void *target, const Options *o) {
    for (int i = 0; i < o->syntax->n_options; i++) {
        const Option *p = &o->syntax->option[i];
        const Value *v = &o->value[i];
        void *field = (char *)target + p->at;
        if (!p->width || (!v->given && !v->text)) continue;
        if (p->kind == IS_TEXT) *(const char **)field = v->text;
        else if (p->kind == IS_REAL && p->width == sizeof(float)) *(float *)field = (float)v->real;
        else if (p->kind == IS_REAL) *(double *)field = v->real;
        else if (p->width == sizeof(int)) *(int *)field = (int)v->whole;
        else *(int64_t *)field = v->whole;
    }
}

/* A line for somebody who watches; --quiet leaves it out. */
LIKELY_UNUSED static void note(const Options *o, const char *fmt, ...) PRINTF_LIKE(2, 3);
static void note(const Options *o, const char *fmt, ...) {
    va_list ap;
    if (o->quiet) return;
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
}

/* -- words -- */

/* Word i of a list with blanks between: its length, 0 behind the last one. */
static int word_at(const char *list, int i, const char **word) {
    while (i-- > 0 && *list) {
        list += strcspn(list, " ");
        list += *list != 0;
    }
    *word = list;
    return (int)strcspn(list, " ");
}
static int find_word(const char *list, const char *what) { /* -1: not in it */
    const char *word;
    for (int i = 0, n; (n = word_at(list, i, &word)); i++)
        if (!strncmp(word, what, (size_t)n) && !what[n]) return i;
    return -1;
}
static const char *without_equals(char out[64], const char *arg) { /* --a_b=c: --a-b */
    snprintf(out, 64, "%.*s", (int)strcspn(arg, "="), arg);
    for (char *c = out + 2 * (*out != 0); *c; c++) if (*c == '_') *c = '-';
    return out;
}
static const Alias *find_alias(const Options *o, const char *arg, int like) {
    const Alias *const end = o->syntax->alias + o->syntax->n_aliases;
    char word[64];
    without_equals(word, arg);
    for (const Alias *a = o->syntax->alias; a < end; a++)
        if ((a->meaning == LIKE) == like && find_word(a->words, word) >= 0) return a;
    return NULL;
}

/* The word that was probably meant, so far. */
typedef struct { const char *what; int exact, off; char found[WORD_LEN + 1]; } Near;
/* here: what it is called here; NULL: the same */
static void near_word(Near *n, const char *word, int len, const char *here) {
    char copy[WORD_LEN + 1];
    snprintf(copy, sizeof copy, "%.*s", len, word);
    const int off = letters_off(n->what, copy);
    const char *const list[] = {copy, NULL};
    if (n->exact ? off > 0 : (*n->found && off >= n->off) || !nearest(n->what, list)) return;
    n->off = off;
    snprintf(n->found, sizeof n->found, "%s", here ? here : copy);
}
/* the end of a sentence */
static const char *meant(char out[80], const Near *n, const char *dashes) {
    *out = 0;
    if (*n->found) snprintf(out, 80, "; did you mean %s%s?", dashes, n->found);
    return out;
}
static const char *meant_word(char out[80], const char *what, const char *list) {
    Near near = {.what = what};
    const char *word;
    for (int i = 0, len; (len = word_at(list, i, &word)); i++) near_word(&near, word, len, NULL);
    return meant(out, &near, "");
}
/* If nothing is near, what is behind n-, num- or max- may be. */
static const char *meant_option(char out[80], const Options *o, const char *arg) {
    static const char *const before[] = {"", "n-", "num-", "max-"};
    const Syntax *s = o->syntax;
    char name[64];
    const char *word;
    without_equals(name, arg);
    Near near = {.what = name};
    for (int k = 0; k < 4 && !*near.found; k++) {
        near.what = name + strspn(name, "-");
        if (strncmp(near.what, before[k], strlen(before[k]))) continue;
        near.what += strlen(before[k]);
        near.exact = 0;
        for (int i = 0; i < s->n_options; i++)
            if (s->option[i].help) near_word(&near, s->option[i].name, WORD_LEN, NULL);
        for (const Alias *a = s->alias; a < s->alias + s->n_aliases; a++)
            for (int i = 0, len; (len = word_at(a->words, i, &word)); i++) {
                if (word[1] != '-' || (a->meaning != SAME && a->meaning != LIKE)) continue;
                near.exact = a->meaning == LIKE;
                near_word(&near, word + 2, len - 2, s->option[a->option].name);
            }
    }
    return meant(out, &near, "--");
}

/* -- argv -- */

/* A number, read whole and range-checked. */
static void set_number(Value *v, const Option *p, const char *text) {
    const int is_real = p->kind == IS_REAL || p->kind == IS_ROUND, is_seed = p->kind == IS_SEED;
    const char *const given = text, *const units = "KMGT", *unit;
    char *end = NULL;
    if (p->zero && !strcmp(text, p->zero)) text = "0";
    errno = 0;
    if (is_real) v->real = strtod(text, &end);
    else if (is_seed) v->whole = (int64_t)strtoull(text, &end, 10);
    else v->whole = strtoll(text, &end, 10);
    const int begun = end > text && !(is_seed && strchr(text, '-'));
    double x = is_real ? v->real : is_seed ? (double)(uint64_t)v->whole : (double)v->whole;
    if (p->kind == IS_SIZE && begun && *end && (unit = strchr(units, *end))) {
        const int64_t times = (int64_t)1024 << 10 * (unit - units);
        if ((x *= (double)times) <= p->hi && x >= p->lo) v->whole *= times;
        end++;
    }
    const int number = begun && !*end, large = number && x > p->hi;
    if (p->kind == IS_ROUND && x >= p->lo && x <= p->hi) v->whole = (int64_t)x;
    if (number && x >= p->lo && x <= p->hi && (is_real || !errno)
        && (p->kind != IS_ROUND || x == floor(x))) return;
    if (is_seed)
        misuse("--%s %s: expected a whole number from 0 to 2^64-1", p->name, given);
    if (is_real)
        misuse("--%s %s: expected a %snumber from %g to %g", p->name, given,
               p->kind == IS_ROUND ? "whole " : "", p->lo, p->hi);
    if (p->hi >= INT_MAX && !large)
        misuse("--%s %s: expected a whole number, %.0f or more%s", p->name, given, p->lo,
               p->kind == IS_SIZE ? ", perhaps with K, M, G or T behind it" : "");
    misuse("--%s %s: expected a whole number from %.0f to %.0f", p->name, given, p->lo, p->hi);
}

static void add_repeated(Options *o, int option, const char *value) {
    if (o->n_repeated == MAX_REPEATED) return;
    o->repeated[o->n_repeated].option = option;
    o->repeated[o->n_repeated++].text = value;
}

static void set_option(Options *o, int option, const char *value) {
    const Option *p = &o->syntax->option[option];
    Value *v = &o->value[option];
    char near[80];
    v->given = 1;
    v->text = value;
    if (p->kind == IS_FLAG) v->whole = 1;
    else if (p->kind == IS_TEXTS) {
        if (!*value) misuse("--%s with an empty text", p->name);
        if (repeated(o, option, (int)p->hi - 1))
            misuse("--%s: at most %.0f of them", p->name, p->hi);
        add_repeated(o, option, value);
    } else if (p->kind == IS_WORD) {
        v->whole = find_word(p->words, value);
        if (v->whole < 0)
            misuse("--%s %s: expected one of %s%s", p->name, value, p->words,
                   meant_word(near, value, p->words));
    } else if (p->kind != IS_TEXT) set_number(v, p, value);
}

/* The option that arg names, and the value that is written in the same word: --name=value, -nvalue.
 * -1: none; a long name behind one dash is none. */
static int find_option(const Options *o, const char *arg, const char **value) {
    char name[64], full[66];
    const int is_long = arg[1] == '-';
    const char *rest = is_long ? arg + strcspn(arg, "=") : arg + 2;
    const Option *const p = o->syntax->option;
    *value = !*rest ? NULL : is_long ? rest + 1 : rest;
    snprintf(full, sizeof full, "%s%s", is_long ? "" : "-", without_equals(name, arg));
    for (int i = 0; i < o->syntax->n_options; i++)
        if (!strcmp(p[i].name, full + 2)) return is_long ? i : -1;
    if (is_long || find_alias(o, full, 1)) return -1;
    for (int i = 0; i < o->syntax->n_options; i++) {
        if (p[i].letter != arg[1]) continue;
        if (*rest == '=' && p[i].kind != IS_TEXT) ++*value;
        /* several letters in one word are not understood */
        return *value && p[i].kind == IS_FLAG ? -1 : i;
    }
    return -1;
}

/* A word of another program; returns how many words behind it belong to it. next: the one behind
 * it, or NULL. */
static int other_word(Options *o, const Alias *alias, const char *arg, const char *next) {
    const char *equals = strchr(arg, '=');
    const int is_switch = next && find_word("on off auto 0 1", next) >= 0;
    const int is_flag = alias->meaning == SAME && o->syntax->option[alias->option].kind == IS_FLAG;
    switch (alias->meaning) {
    case SAYS:
        misuse("%.*s: %s", (int)strcspn(arg, "="), arg, alias->value);
    case SETS:
        set_option(o, alias->option, alias->value);
        return 0;
    case IDLE:
        add_repeated(o, IDLE_WORD, arg);
        return !equals && (alias->option == A_VALUE || (alias->option == A_SWITCH && is_switch));
    default:
        if (!equals && !is_flag && !next) misuse("%s needs a value", arg);
        set_option(o, alias->option, equals ? equals + 1 : next);
        return !equals && !is_flag;
    }
}

/* One option; returns how many words behind it belong to it. */
static int parse_option(Options *o, const char *arg, const char *next) {
    const char *value;
    char near[80];
    const Alias *alias = find_alias(o, arg, 0);
    if (alias) return other_word(o, alias, arg, next);
    int i = find_option(o, arg, &value);
    if (i < 0 && arg[1] == '-' && find_word(o->syntax->modes, arg + 2) >= 0)
        misuse("%s is a mode here: -m %s", arg, arg + 2);
    if (i < 0) misuse("unknown option %s%s", arg, meant_option(near, o, arg));
    const int flag = o->syntax->option[i].kind == IS_FLAG, apart = !flag && !value;
    if (flag && value) misuse("--%s takes no value", o->syntax->option[i].name);
    if (apart && !(value = next)) misuse("%s needs a value", arg);
    if (!flag && arg[1] != '-' && o->syntax->letter) i = o->syntax->letter(o, i, &value);
    set_option(o, i, value);
    return apart;
}

/* --name value, --name=value, -n value, -nvalue; the first plain word is an option, too, and the
 * others are strays; behind "--" all words are plain. */
LIKELY_UNUSED static void parse_options(Options *o, const Syntax *syntax, int argc, char **argv) {
    int plain = 0;
    if (argc > 0 && *argv[0]) invoked = argv[0];
    o->syntax = syntax;
    text_puts(&o->stray, "");
    for (int i = 0; i < syntax->n_options; i++) {
        if (syntax->option[i].usual) set_option(o, i, syntax->option[i].usual);
        o->value[i].given = 0;
    }
    for (int a = 1; a < argc; a++) {
        const char *arg = argv[a];
        if (!plain && !strcmp(arg, "--")) plain = 1;
        else if (!plain && arg[0] == '-' && arg[1]) a += parse_option(o, arg, argv[a + 1]);
        else if (!given(o, syntax->plain)) set_option(o, syntax->plain, arg);
        else {
            if (o->stray.n) text_puts(&o->stray, " ");
            text_puts(&o->stray, arg);
        }
    }
}

/* Has the mode a use for what was given? */
LIKELY_UNUSED static void check_mode(const Options *o) {
    const Syntax *s = o->syntax;
    for (int i = 0; i < s->n_options; i++) {
        const char *word;
        Text where = {0};
        if (!given(o, i) || s->option[i].modes & o->mode) continue;
        for (int k = 0, n; (n = word_at(s->modes, k, &word)); k++) {
            if (!(s->option[i].modes >> k & 1)) continue;
            text_puts(&where, where.n ? ", -m " : "-m ");
            text_put(&where, word, (size_t)n);
        }
        misuse("--%s goes with %s", s->option[i].name, where.s);
    }
}

/* What goes with what: an option needs the other, or excludes it. */
enum Relation { NEEDS, EXCLUDES };
typedef struct { int option; enum Relation relation; int other; } Rule;
LIKELY_UNUSED static void check_rules(const Options *o, const Rule *rule, int n) {
    for (const Rule *r = rule; r < rule + n; r++) {
        const Option *p = o->syntax->option;
        if (!given(o, r->option) || given(o, r->other) == (r->relation == NEEDS)) continue;
        misuse(r->relation == NEEDS ? "--%s goes with --%s" : "--%s and --%s do not go together",
               p[r->option].name, p[r->other].name);
    }
}

/* -- the help page -- */

/* What an option does: with what it is by itself, and the words that it knows. */
static const char *option_help(Text *t, const Option *p, int with_words) {
    const char *mark = strstr(p->help, "%s"), *word;
    t->n = 0;
    text_put(t, p->help, mark ? (size_t)(mark - p->help) : strlen(p->help));
    if (mark) text_puts(t, p->usual), text_puts(t, mark + 2);
    for (int i = 0, n; with_words && p->words && (n = word_at(p->words, i, &word)); i++) {
        text_puts(t, i ? ", " : ": ");
        text_put(t, word, (size_t)n);
    }
    return t->bad ? "" : t->s;
}

/* A row: left, and the text beside it from column `at` on, in lines of `columns`. */
LIKELY_UNUSED static void print_row(const char *left, const char *text, int at, int columns) {
    printf("  %-*s", at - 2, left);
    if ((int)strlen(left) + 2 >= at) printf("\n%*s", at, "");
    for (int more = 0; *text; more = 1) {
        int n = (int)strlen(text);
        if (n > columns - at)
            for (n = columns - at; n > 1 && text[n] != ' ';) n--;
        printf("%*s%.*s\n", more ? at : 0, "", n, text);
        text += n;
        text += strspn(text, " ");
    }
}

LIKELY_UNUSED static void print_options(const Syntax *s, int at, int columns) {
    Text help = {0};
    for (const Option *p = s->option; p < s->option + s->n_options; p++) {
        char letter[] = "    ", left[64];
        if (!p->help) continue;
        if (p->letter) letter[0] = '-', letter[1] = p->letter, letter[2] = ',';
        snprintf(left, sizeof left, "%s--%s %s", letter, p->name, p->value ? p->value : "");
        print_row(left, option_help(&help, p, 1), at, columns);
    }
    gla_free(help.s);
}
#endif /* RUN_OPTIONS */

#ifndef RUN_NO_MAIN

/* -- options: after a change, `make pages` writes the files in doc/ anew -- */

/* Modes: what changes no result, and how a model computes, goes with all. */
enum { GENERATE = 1, CHAT = 2, LOGITS = 4, PERPLEXITY = 8, TOKENIZE = 16, BENCH = 32, INFO = 64,
      TALK = GENERATE | CHAT, ANY = 127 };
#define MODE_WORDS "generate chat logits perplexity tokenize bench info" /* word i: bit 1 << i */
#define OPTIONS(X) \
    X(O_MODEL, 0, "model", ANY, "FILE", NULL, A_FILE(INPUT)) \
    X(O_PROMPT, 'i', "prompt", TALK | PERPLEXITY | TOKENIZE, "TEXT", "prompt; - or a pipe: standard input", A_TEXT(NULL)) \
    X(O_FILE, 'f', "file", TALK | PERPLEXITY | TOKENIZE, "FILE", "prompt from a file; - is standard input", A_FILE(INPUT)) \
    X(O_MESSAGES, 0, "messages", CHAT | TOKENIZE, "FILE", "a conversation to be answered: [{\"role\": ..., \"content\": ...}, ...]", A_FILE(INPUT)) \
    X(O_STEPS, 'n', "steps", TALK | BENCH, "N", "tokens to generate, 0 = until the end (%s)", A_WHOLE("256", 0, 9e15), .zero = "-1") \
    GLA_SETTINGS(SETTING_OPTION, X) \
    X(O_SEED, 's', "seed", TALK, "N", "same seed, same text (from the clock, printed)", A_SEED) \
    X(O_BIAS, 0, "logit-bias", TALK, "ID=X", "add X to the score of a token, -inf bans it; may be repeated", UP_TO_TEXTS(GLA_BIAS)) \
    X(O_STOP, 0, "stop", TALK, "TEXT", "end before this text; may be repeated", UP_TO_TEXTS(MAX_STOPS)) \
    X(O_IGNORE, 0, "ignore-eos", TALK, NULL, "go on past end-of-text tokens", A_FLAG) \
    X(O_ECHO, 0, "echo", GENERATE, NULL, "print the prompt before the text", A_FLAG) \
    X(O_JSON, 0, "json", TALK | PERPLEXITY | BENCH | INFO, NULL, "print a JSON object: text, ids, timing; or what was measured", A_FLAG) \
    X(O_JSON_ONLY, 0, "json-only", TALK, NULL, "the text itself is one JSON object or array, and ends behind it", A_FLAG) \
    X(O_LOGPROBS, 0, "logprobs", TALK, "N", "in it: log probabilities, and the N likeliest tokens each time", A_WHOLE("0", 0, 100)) \
    X(O_TOK, 'z', "tokenizer", ANY, "FILE", "vocabulary (the model's own)", A_FILE(INPUT)) \
    X(O_PRE, 0, "pre", ANY, "NAME", "pre-tokenizer of the vocabulary (what its file says)", A_TEXT(NULL)) \
    X(O_MODE, 'm', "mode", ANY, "NAME", "what to do", A_WORD(MODE_WORDS)) \
    X(O_SYSTEM, 'y', "system", CHAT, "TEXT", "system prompt, for a chat", A_TEXT(NULL)) \
    X(O_THINK, 0, "think", CHAT | TOKENIZE, NULL, "think before answering (as the model's template has it)", A_FLAG) \
    X(O_NO_THINK, 0, "no-think", CHAT | TOKENIZE, NULL, "answer at once", A_FLAG) \
    X(O_BUDGET, 0, "think-budget", CHAT, "N", "tokens of a thought before it is closed, 0 = no limit", A_WHOLE("0", 0, 9e15)) \
    X(O_HIDE, 0, "hide-thinking", CHAT, NULL, "do not show thoughts; only a terminal shows them at all", A_FLAG) \
    X(O_GUARD, 0, "loop-guard", CHAT, "N", "tokens of repetition that a chat takes for a loop, 0 = off (%s)", A_WHOLE("96", 0, 1 << 20)) \
    X(O_SNAPSHOTS, 0, "snapshot-bytes", CHAT, "N", "memory to undo turns without reading again (%s)", A_SIZE("256M")) \
    X(O_FORGET, 0, "forget", CHAT, NULL, "a full context drops the oldest turns instead of ending", A_FLAG) \
    X(O_THREADS, 'j', "threads", ANY, "N", "threads (one per core)", A_WHOLE(NULL, 1, 1024)) \
    X(O_CTX, 'c', "ctx", ANY, "N", "positions of softmax layers (4096 or the model's)", A_WHOLE(NULL, 1, INT_MAX)) \
    X(O_KV, 0, "kv", ANY, "TYPE", "keys and values of softmax layers (f32)", A_WORD("f32 f16 q8_0")) \
    X(O_FAST, 0, "fast", ANY, NULL, "activations of 8 bits, not 16 or 24: less exact, faster prompts", A_FLAG) \
    X(O_DRAFT, 0, "draft", TALK, "SOURCE", "tokens that may come are read together with the last: off, or lookup, from the text so far, or mtp, from the file's block for multi-token prediction (lookup)", A_WORD(DRAFT_WORDS)) \
    X(O_BATCH, 'b', "batch", ANY, "N", "prompt tokens per run (512)", A_WHOLE(NULL, 1, 1 << 20)) \
    X(O_LOAD, 0, "load-state", TALK | LOGITS, "FILE", "go on from a session", A_FILE(SESSION)) \
    X(O_SAVE, 0, "save-state", TALK | LOGITS, "FILE", "leave a session behind", A_FILE(OUTPUT)) \
    X(O_CACHE, 0, "prompt-cache", TALK, "DIR", "go on from, and leave, snapshots of prompts in a folder", A_FILE(OUTPUT | FOLDER)) \
    X(O_CACHE_BYTES, 0, "cache-bytes", TALK, "N", "its size; K, M, G are understood. The oldest leave (%s)", A_SIZE("1G")) \
    X(O_IDS, 0, "ids", LOGITS | TOKENIZE, "FILE", "token ids as text, for logits and tokenize; - is standard input", A_FILE(INPUT)) \
    X(O_OUT, 0, "out", LOGITS, "FILE", "where logits go: float32, a row per position", A_FILE(OUTPUT)) \
    X(O_PLEN, 0, "prompt-len", BENCH, "N", "prompt tokens of the benchmark (%s)", A_WHOLE("512", 1, 1 << 24)) \
    X(O_DEPTH, 0, "depth", BENCH, "N", "positions that the benchmark finds filled (%s)", A_WHOLE("0", 0, 1 << 30)) \
    X(O_QUIET, 0, "quiet", ANY, NULL, "nothing but errors on standard error", A_FLAG) \
    X(O_HELP, 'h', "help", ANY, NULL, "this page", A_FLAG) \
    X(O_VERSION, 0, "version", ANY, NULL, "version and kernels", A_FLAG) \
    X(O_MAN, 0, "man", ANY, NULL, NULL, A_FLAG) \
    X(O_COMPLETION, 0, "completion", ANY, "SHELL", NULL, A_WORD("bash zsh"))

/* The sampler's settings go into its fields. */
#define SETTING_OPTION(X, type, field, usual, least, most, key, letter, name, help) \
    X(O_##field, letter, name, TALK, VALUE_##type, help, KIND_##type(NULL, least, most), \
      INTO(GlaSampler, field))
#define VALUE_float "X"
#define VALUE_int "N"
#define KIND_float A_REAL
#define KIND_int A_WHOLE

/* In the order of the help page; O_THINK to O_HIDE are about thoughts. */
enum { OPTIONS(OPTION_ID) N_OPTIONS };
enum { MAX_STOPS = 16 };
#define DRAFT_WORDS "off lookup mtp" /* word i: GLA_DRAFT_* i */
static const Option options[N_OPTIONS] = {OPTIONS(OPTION_ROW)};
_Static_assert((int)N_OPTIONS <= MAX_OPTIONS, "Options has a value for each");

#define SETTING_WORD(X, type, field, usual, least, most, key, letter, name, ...) " --" name
static const Alias aliases[] = {
    {"--temp", SAME, O_temperature, NULL},
    {"--n-predict --predict --num-predict --max-tokens --max-new-tokens", SAME, O_STEPS, NULL},
    {"--ctx-size --num-ctx --context-size --max-seq-len", SAME, O_CTX, NULL},
    {"--batch-size --ubatch-size -ub", SAME, O_BATCH, NULL},
    {"--num-thread --num-threads", SAME, O_THREADS, NULL},
    {"--system-prompt -sys", SAME, O_SYSTEM, NULL},
    {"--repetition-penalty", SAME, O_repeat_penalty, NULL},
    {"--reverse-prompt -r", SAME, O_STOP, NULL},
    {"--binary-file -bf", SAME, O_FILE, NULL},
    {"--cache-type-k --cache-type-v -ctk -ctv", SAME, O_KV, NULL},
    {"-l", SAME, O_BIAS, NULL},
    {"--hidethinking", SAME, O_HIDE, NULL},
    {"--context-shift", SAME, O_FORGET, NULL},
    {"--usage", SAME, O_HELP, NULL},
    {"--conversation -cnv --interactive --interactive-first --chat", SETS, O_MODE, "chat"},
    {"--no-conversation -no-cnv", SETS, O_MODE, "generate"},
    {"--perplexity", SETS, O_MODE, "perplexity"},
    {"--gpu-layers --n-gpu-layers -ngl --device -dev --main-gpu -mg --split-mode -sm --tensor-split -ts --override-tensor -ot", IDLE, A_VALUE, "everything runs on the processor"},
    {"--no-kv-offload -nkvo --no-op-offload --cpu-moe -cmoe", IDLE, NOTHING, "everything runs on the processor"},
    {"--flash-attn -fa", IDLE, A_SWITCH, "attention has one way here, which keeps no table of all pairs"},
    {"--mlock --mmap --no-mmap", IDLE, NOTHING, "the file is always mapped, and the system keeps in memory what is used"},
    {"--warmup --no-warmup", IDLE, NOTHING, "nothing is warmed up"},
    {"--threads-batch -tb", IDLE, A_VALUE, "-j is for prompts, too"},
    {"--numa --prio --poll --cpu-mask --cpu-range", IDLE, A_VALUE, "the system places threads and memory"},
    {"--color -co", IDLE, A_SWITCH, "there are no colors"},
    {"--simple-io", IDLE, NOTHING, "what is no terminal gets plain text in any case"},
    {"--log-disable --no-perf --no-show-timings", IDLE, NOTHING, "--quiet leaves out all lines but errors"},
    {"--no-display-prompt", IDLE, NOTHING, "the prompt is printed with --echo only"},
    {"--verbose -v --perf --show-timings", IDLE, NOTHING, "the speed is printed in any case; --version tells the version"},
    {"--no-context-shift", IDLE, NOTHING, "a full context ends the text unless --forget is given"},
    {"--jinja --no-jinja", IDLE, NOTHING, "a chat follows the template in the model's file"},
    {"--nowordwrap", IDLE, NOTHING, "lines are not wrapped"},
    {"--no-escape", IDLE, NOTHING, "escapes are not read"},
    {"--multiline-input -mli", IDLE, NOTHING, "a line that ends with \\ goes on, and so does one that Alt-Enter ends"},
    {"--keepalive --keep", IDLE, A_VALUE, "nothing is kept between two runs; sessions are (--save-state, --prompt-cache)"},
    {"--escape -e", SAYS, 0, "escapes are not read here: the shell writes them, -i $'one\\ntwo', or a file, -f FILE"},
    {"--system-prompt-file -sysf", SAYS, 0, "a system prompt from a file is -y \"$(cat FILE)\""},
    {"--single-turn -st", SAYS, 0, "one message and its answer are -m chat -i TEXT"},
    {"--hf-repo --hf-file -hf -hfr -hff --model-url -mu --docker-repo -dr", SAYS, 0, "nothing is downloaded here: download the GGUF file first, then give its path"},
    {"--grammar --grammar-file --json-schema --json-schema-file -jf --format", SAYS, 0, "grammars and schemas are not understood; --json-only makes the text one JSON object or array"},
    {"--repeat-last-n", SAYS, 0, "the penalties always look back 64 tokens"},
    {"--frequency-penalty --typical --typical-p --mirostat --mirostat-lr --mirostat-ent --dynatemp-range --xtc-probability --xtc-threshold --dry-multiplier --dry-base --top-nsigma --tfs", SAYS, 0, "no such sampler is here, only" GLA_SETTINGS(SETTING_WORD, )},
    {"--samplers --sampler-seq", SAYS, 0, "the order is " SAMPLER_ORDER},
    {"--chat-template --chat-template-file", SAYS, 0, "a chat follows the template in the model's file"},
    {"--reasoning-budget --reasoning", SAYS, 0, "for thoughts there are --think, --no-think and --think-budget N"},
    {"--reasoning-format", SAYS, 0, "--hide-thinking does not show thoughts, --json has them apart from the answer"},
    {"--rope-freq-base --rope-freq-scale --rope-scaling --rope-scale --override-kv", SAYS, 0, "what the model's file says is used as it is"},
    {"--lora --lora-scaled --control-vector", SAYS, 0, "an adapter has to be merged before the model's file is made"},
    {"--model-draft -md --draft-max --draft-n", SAYS, 0, "there are no draft models here; --draft lookup drafts from the text so far"},
    {"--mmproj -mm --image --audio", SAYS, 0, "only text is understood here"},
    {"--embedding --embeddings", SAYS, 0, "there are no embeddings of texts here; -m logits writes logits"},
    {"--port --host", SAYS, 0, "there is no server here; other programs embed the library, libgla"},
};

/* in front of a model, in other programs */
#define VERBS "run serve pull push list show create help"

static int is_number(const char *s) {
    char *end;
    strtod(s, &end);
    return end > s && !*end;
}

/* A letter and its value, where other programs mean something else by them. */
static int letter_means(const Options *o, int option, const char **value) {
    const char *v = *value, *inner;
    const int number = is_number(v), share = number && atof(v) >= 0 && atof(v) <= 1;
    char near[80];
    if (option == O_MODE && find_word(MODE_WORDS, v) < 0) {
        if (same_file(v, v) || strpbrk(v, "./\\")) return O_MODEL;
        misuse("-m %s: no file, and none of the modes %s%s", v, MODE_WORDS,
               meant_word(near, v, MODE_WORDS));
    }
    if (option == O_top_p && !number) return O_PROMPT;
    if (option == O_top_p && !share)
        misuse("-p %s: a number is top-p here, from 0 to 1; -i is always the prompt", v);
    if (option == O_temperature && number && atof(v) >= 3)
        misuse("-t %s: -t is the temperature here, threads are -j %s", v, v);
    if (option == O_CTX && !strcmp(v, "0"))
        misuse("-c 0: without -c the context is 4096 positions or the model's");
    if (option == O_SEED && !strcmp(v, "-1"))
        misuse("-s -1: a seed from the clock is what there is without -s");
    if (option == O_THREADS && *v == '{')
        misuse("-j %.40s: -j is threads here; --json-only makes the text JSON", v);
    if (option == O_PROMPT && *v == '-' && v[1]
        && (find_alias(o, v, 0) || (find_option(o, v, &inner) >= 0 && !inner)))
        misuse("-i is the prompt here, and %s an option; a conversation is -m chat", v);
    return option;
}

static const Syntax syntax = {options, N_OPTIONS, aliases, sizeof aliases / sizeof *aliases,
                              MODE_WORDS, O_MODEL, letter_means};

/* The first of the words, or as many as name a file; *behind: the blank behind it, or NULL. */
static void first_file(char out[PATH_LEN], const char *words, const char **behind) {
    const char *end = words;
    do {
        end += *end == ' ';
        end += strcspn(end, " ");
        snprintf(out, PATH_LEN, "%.*s", (int)(end - words), words);
    } while (*end && !same_file(out, out));
    const char *first = words + strcspn(words, " ");
    if (!same_file(out, out)) {
        snprintf(out, PATH_LEN, "%.*s", (int)(first - words), words);
        end = first;
    }
    *behind = *end ? end : NULL;
}

/* Words that belong to no option, behind what was taken for the model; or it is no file. */
static void check_strays(const Options *o) {
    if (o->stray.bad || !given(o, O_MODEL)) return;
    const char *words = o->stray.s, *model = text_of(o, O_MODEL);
    const char *prompt = given(o, O_PROMPT) ? text_of(o, O_PROMPT) : "";
    /* a command in front: then the model, which may have blanks in its name, and a prompt */
    char file[PATH_LEN] = "MODEL";
    const char *behind = strchr(words, ' ');
    if (*words) first_file(file, words, &behind);
    const char *said = *prompt ? prompt : behind && behind[1] ? behind + 1 : "TEXT";
    const int there = same_file(model, model), has_text = strcmp(said, "TEXT") != 0;
    const char *quote = has_text ? "\"" : "", *blank = *prompt ? " " : "";
    if ((*words || !there) && find_word(MODE_WORDS, model) >= 0)
        misuse("\"%s\" is a mode: %s %s -m %s%s%.60s%s", model, invoked, file, model,
               has_text ? " -i \"" : "", has_text ? said : "", quote);
    if ((*words || !there) && find_word(VERBS, model) >= 0)
        misuse("no command \"%s\" is here: %s %s -i %s%.60s%s goes on with a text, "
               "%s %s -m chat is a conversation",
               model, invoked, file, quote, said, quote, invoked, file);
    if (find_word(MODE_WORDS, words) >= 0)
        misuse("\"%s\" is a mode: %s %s -m %s", words, invoked, model, words);
    if (*words && same_file(words, words)) misuse("two models: %s and %s", model, words);
    if (there || strpbrk(model, "./") || *prompt) {
        if (!*words) return;
        misuse("a prompt goes in quotes behind -i: %s %s -i \"%s%s%.60s\"", invoked, model, prompt,
               blank, words);
    }
    if (*words || strchr(model, ' '))
        misuse("the model goes first, then the prompt in quotes: %s MODEL -i \"%s%s%.60s\"",
               invoked, model, *words ? " " : "", words);
}

/* of models without one of their own, where its size fits */
#define DEFAULT_VOCABULARY "tokenizer.bin"

/* The file that is read, or that standard output goes to, under this name or another; NULL: none.
 * It must not be replaced. */
static const char *in_use(const Options *o, const char *path) {
    static const char *const others[] = {"/dev/stdin", "/dev/stdout", DEFAULT_VOCABULARY};
    for (int i = 0; i < N_OPTIONS; i++)
        if (options[i].file == INPUT && given(o, i) && same_file(text_of(o, i), path))
            return text_of(o, i);
    for (int i = 0; i < 3 - given(o, O_TOK); i++)
        if (same_file(others[i], path)) return others[i];
    return NULL;
}

static void check_outputs(const Options *o) { /* are they files of their own? */
    const char *load = text_of(o, O_LOAD);
    for (int i = 0; i < N_OPTIONS; i++) {
        const char *path = text_of(o, i);
        if (!given(o, i) || !(options[i].file & OUTPUT)) continue;
        const char *used = options[i].file & FOLDER ? NULL : in_use(o, path);
        if (!used && i != O_SAVE && load && same_file(path, load)) used = load;
        if (used)
            misuse("%s is in use here and would be replaced; give another file to write", used);
        for (int k = 0; k < i; k++)
            if (options[k].file & OUTPUT && given(o, k) && same_target(path, text_of(o, k)))
                misuse("--%s and --%s: both are %s", options[i].name, options[k].name, path);
    }
    if (same_file(text_of(o, O_MODEL), "/dev/stdout"))
        misuse("%s is read here, and standard output goes to it", text_of(o, O_MODEL));
}

/* The biases, ID=X; 15043-1 is llama.cpp's way. */
static void set_biases(GlaSampler *s, const Options *o) {
    const double most = 1000;
    const char *text;
    for (s->n_bias = 0; (text = repeated(o, O_BIAS, s->n_bias)); s->n_bias++) {
        char *end = NULL;
        errno = 0;
        const long long id = *text >= '0' && *text <= '9' ? strtoll(text, &end, 10) : -1;
        if (end) text = *end == '=' ? end + 1 : *end == '+' || *end == '-' ? end : "";
        const double v = id >= 0 ? strtod(text, &end) : NAN;
        if (id < 0 || id > INT32_MAX || errno || end == text || *end
            || !((v >= -most && v <= most) || v == -INFINITY))
            misuse("--logit-bias: expected ID=X, X from %g to %g or -inf", -most, most);
        s->bias[s->n_bias].id = (int32_t)id;
        s->bias[s->n_bias].add = (float)v;
    }
}

/* Whether the options go together, and with the mode. */
static void check_options(Options *o) {
    static const Rule rules[] = {
        {O_THINK, EXCLUDES, O_NO_THINK},
        {O_BUDGET, EXCLUDES, O_NO_THINK},
        {O_PROMPT, EXCLUDES, O_FILE},
        {O_PROMPT, EXCLUDES, O_IDS},
        {O_MESSAGES, EXCLUDES, O_PROMPT},
        {O_MESSAGES, EXCLUDES, O_FILE},
        {O_MESSAGES, EXCLUDES, O_IDS},
        {O_MESSAGES, EXCLUDES, O_LOAD},
        {O_FILE, EXCLUDES, O_IDS},
        {O_LOGPROBS, NEEDS, O_JSON},
        {O_CACHE_BYTES, NEEDS, O_CACHE},
    };
    GlaSampler unused;
    if (given(o, O_MESSAGES) && !given(o, O_MODE)) set_option(o, O_MODE, "chat");
    o->mode = 1 << whole_of(o, O_MODE);
    check_mode(o);
    check_rules(o, rules, sizeof rules / sizeof *rules);
    set_biases(&unused, o);
    if (o->mode == CHAT && !given(o, O_STEPS)) o->value[O_STEPS].whole = 0;
    if (o->mode == BENCH && !given(o, O_STEPS)) o->value[O_STEPS].whole = 64;
    if (!given(o, O_MODEL)) misuse("no model was named: %s MODEL [options]", invoked);
    if (o->mode == LOGITS && (!given(o, O_IDS) || !given(o, O_OUT)))
        misuse("-m logits needs --ids FILE and --out FILE");
    check_outputs(o);
}

/* -- signals -- */

/* The signal; outside a function because a handler has no other way. */
static volatile sig_atomic_t interrupted;

/* What a program that ends at once, in a signal handler, has to put right; does the second signal
 * end it? */
static struct {
    char sentence[GLA_ERR + 16];
    const Terminal *terminal;
    int at_second;
} loose_ends;

static void on_interrupt(int sig) {
    if (interrupted && loose_ends.at_second) end_by_signal(sig, unfinished);
    /* Ctrl-C takes no end back */
    else if (!interrupted || interrupted == SIGINT) interrupted = sig;
}

/* Ctrl-C has stopped what was going on. The other signals end the program: they stay. */
static void forget_ctrl_c(void) {
    if (interrupted == SIGINT) interrupted = 0;
}

static void on_missing_pages(int sig) {
    (void)sig;
    end_at_once(loose_ends.sentence, loose_ends.terminal, unfinished);
}

/* The exit status of what a signal has cut short, as a shell has it. */
static int by_signal(void) { return interrupted ? 128 + interrupted : 0; }

/* END_AT_SECOND: the first Ctrl-C ends after the current token, the second one at once. COUNT:
 * neither ends the program. HOLD: nor here, while a file is written. */
enum Interrupt { END_AT_SECOND, COUNT, HOLD };
static void catch_interrupt(enum Interrupt how) {
    loose_ends.at_second = how == END_AT_SECOND;
    on_end_signals(on_interrupt);
}

/* -- what is written: text, JSON, facts -- */

static void text_vprintf(Text *t, const char *fmt, va_list ap) { /* at most 511 bytes */
    char line[512];
    vsnprintf(line, sizeof line, fmt, ap);
    text_puts(t, line);
}
static void text_printf(Text *t, const char *fmt, ...) PRINTF_LIKE(2, 3);
static void text_printf(Text *t, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    text_vprintf(t, fmt, ap);
    va_end(ap);
}
/* as a JSON string; a byte that is no UTF-8 becomes U+FFFD */
static void text_json(Text *t, const char *s, size_t n) {
    text_puts(t, "\"");
    for (size_t at = 0, len; at < n; at += len) {
        uint32_t c = utf8_read(s + at, n - at, &len);
        if (c >= BAD_BYTE) text_puts(t, "\357\277\275");
        else if (c == '\n') text_puts(t, "\\n");
        else if (c < 32 || (c >= 127 && c < 160)) text_printf(t, "\\u%04x", (unsigned)c);
        else {
            if (c == '"' || c == '\\') text_puts(t, "\\");
            text_put(t, s + at, len);
        }
    }
    text_puts(t, "\"");
}

/* What a program is told about a model or a text: a line "key value" each, or one JSON object. */
typedef struct { Text t; int json; } Facts;
static void fact_key(Facts *f, const char *key) {
    if (!f->json) text_printf(&f->t, "%s%s ", f->t.n ? "\n" : "", key);
    else text_printf(&f->t, f->t.n ? ",\"%s\":" : "{\"%s\":", key);
}
static void fact(Facts *f, const char *key, const char *fmt, ...) PRINTF_LIKE(3, 4);
static void fact(Facts *f, const char *key, const char *fmt, ...) { /* a number, or what is JSON */
    va_list ap;
    va_start(ap, fmt);
    fact_key(f, key);
    text_vprintf(&f->t, fmt, ap);
    va_end(ap);
}
/* a line remains one, whatever the file says */
static void fact_bytes(Facts *f, const char *key, const char *s, size_t n) {
    fact_key(f, key);
    if (f->json) text_json(&f->t, s, n);
    for (size_t at = 0, len; at < n && !f->json; at += len) {
        char out[VISIBLE];
        text_put(&f->t, out, visible(out, s + at, n - at, &len));
    }
}
static void fact_text(Facts *f, const char *key, const char *s) {
    fact_bytes(f, key, s, strlen(s));
}
static void print_facts(Facts *f) {
    text_puts(&f->t, f->json ? "}\n" : "\n");
    if (f->t.bad) give_up("no memory for the answer");
    fwrite(f->t.s, 1, f->t.n, stdout);
    text_free(&f->t);
}

/* Standard output has failed. A reader that has gone away has what it wanted: nothing is said. */
static const char *output_error(void) {
    return reader_left() ? "" : "standard output: cannot write";
}

/* For sentences: "1 token", "2 tokens"; "12 MB". */
#define N_OF(n, what) counted((char[48]){""}, n, what)
#define BYTES(n) size_text((char[32]){""}, (double)(n))
static const char *counted(char out[48], int64_t n, const char *what) {
    snprintf(out, 48, "%lld %s%s", (long long)n, what, n == 1 ? "" : "s");
    return out;
}
static const char *size_text(char out[32], double n) {
    static const char *const unit[] = {"B", "KB", "MB", "GB", "TB"};
    int i = 0;
    for (; n >= 9999.5 && i < 4; i++) n /= 1000;
    snprintf(out, 32, "%.0f %s", n, unit[i]);
    return out;
}

/* -- input -- */

/* All of a text, which may come from a pipe; -: standard input. A source that never ends is not
 * followed for ever. */
enum { TEXT_MAX = 1 << 26 }; /* bytes */
static const char *input_name(const char *path) {
    return strcmp(path, "-") ? path : "standard input";
}
static Text read_file(const char *path) {
    char block[1 << 14], err[GLA_ERR];
    FILE *f = strcmp(path, "-") ? open_text(path, err) : stdin;
    Text t = {0};
    if (!f) give_up("%s", err);
    path = input_name(path);
    for (size_t got = 1; got;) {
        got = fread(block, 1, sizeof block, f);
        text_put(&t, block, got);
        if (t.bad) give_up("%s: no memory for more than %zu bytes", path, t.n);
        if (t.n > TEXT_MAX)
            give_up("%s: does not end within %d MB, the most that is read as text", path,
                    TEXT_MAX >> 20);
    }
    if (ferror(f)) give_up("%s: cannot read: %s", path, strerror(errno));
    if (f != stdin) fclose(f);
    return t;
}

/* The prompt, from wherever it comes. */
static Text get_text(const Options *o) {
    const char *prompt = text_of(o, O_PROMPT);
    Text t = {0};
    if (given(o, O_FILE)) return read_file(text_of(o, O_FILE));
    if (prompt ? !strcmp(prompt, "-") : stdin_is_pipe()) return read_file("-");
    text_puts(&t, prompt ? prompt : "");
    if (t.bad) give_up("no memory");
    return t;
}

/* decimal numbers separated by white space */
static void get_ids(Ids *ids, const char *path, const GlaModel *m) {
    static const char blanks[] = " \t\n\v\f\r";
    const Text t = read_file(path);
    const int last = m->config.vocab_size - 1;
    char *end = t.s, err[GLA_ERR];
    for (char *p = t.s + strspn(t.s, blanks); p < t.s + t.n; p = end + strspn(end, blanks)) {
        errno = 0;
        const long long v = *p >= '0' && *p <= '9' ? strtoll(p, &end, 10) : -1;
        if (v < 0 || errno || v > last || (end < t.s + t.n && !(*end && strchr(blanks, *end))))
            give_up("%s: number %lld is not an id from 0 to %d", path, (long long)ids->n + 1, last);
        must(ids_add(ids, &(int32_t){(int32_t)v}, 1, err), err);
    }
    gla_free(t.s);
}

/* -- messages: a conversation in JSON, [{"role": "user", "content": "..."}, ...] -- */

typedef struct {
    const char *name, *at; /* of the file; what is to be read, with a 0 behind it */
    int depth;             /* brackets that are open */
    GlaMessage *messages;
    int n;
    size_t cap;
    Text text;             /* of the messages, one behind the other */
} Messages;

#define IN_MESSAGE(j) (j)->name, (j)->n + 1
_Noreturn static void json_bad(const Messages *j, const char *expected) {
    const int c = *j->at;
    char found[] = "'?'";
    if (c > ' ' && c < 127) found[1] = (char)c;
    give_up("%s: message %d: expected %s, found %s", IN_MESSAGE(j), expected,
            c ? found : "the end");
}

static char json_next(Messages *j) { /* the next byte that is no white space; 0: the end */
    j->at += strspn(j->at, " \t\n\r");
    return *j->at;
}
static int json_take(Messages *j, char c) { return json_next(j) == c ? j->at++, 1 : 0; }

static uint32_t json_hex(Messages *j) { /* the four digits of \u */
    char digits[5] = "";
    if (strspn(j->at, "0123456789abcdefABCDEF") < 4) json_bad(j, "four hexadecimal digits");
    memcpy(digits, j->at, 4);
    j->at += 4;
    return (uint32_t)strtoul(digits, NULL, 16);
}

static void json_escape(Messages *j, Text *out) { /* behind the \ */
    static const char from[] = "\"\\/bfnrtu", to[] = "\"\\/\b\f\n\r\t";
    const char *known = *j->at ? strchr(from, *j->at) : NULL;
    char utf8[4];
    if (!known) json_bad(j, "an escape of JSON");
    if (*j->at++ != 'u') {
        text_put(out, &to[known - from], 1);
        return;
    }
    uint32_t c = json_hex(j);
    if (c >= 0xD800 && c < 0xDC00 && j->at[0] == '\\' && j->at[1] == 'u') {
        const char *again = j->at;
        j->at += 2;
        const uint32_t low = json_hex(j);
        if (low >= 0xDC00 && low < 0xE000) c = 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
        else j->at = again;
    }
    if (c >= 0xD800 && c < 0xE000) c = 0xFFFD; /* half of a pair */
    text_put(out, utf8, utf8_write(utf8, c));
}

static void json_text(Messages *j, Text *out) { /* a string; appended */
    if (!json_take(j, '"')) json_bad(j, "a text in quotes");
    text_puts(out, "");
    for (;;) {
        const char *from = j->at;
        while ((uint8_t)*j->at >= ' ' && *j->at != '"' && *j->at != '\\') j->at++;
        text_put(out, from, (size_t)(j->at - from));
        if (!*j->at) json_bad(j, "the end of a text");
        if ((uint8_t)*j->at < ' ') json_bad(j, "no control character in a text");
        if (*j->at++ == '"') return;
        json_escape(j, out);
    }
}

/* while (json_each(j, &e)) goes through a list or an object, which is what is expected; e.key is
 * the key in an object. The loop reads a value each time. */
typedef struct { const char *brackets, *what; int begun; Text key; } Each;
static int json_each(Messages *j, Each *e) {
    const char close = e->brackets[1];
    const int object = close == '}';
    if (!e->begun++) {
        if (!json_take(j, e->brackets[0])) json_bad(j, e->what);
        if (++j->depth > 64) json_bad(j, "at most 64 brackets in each other");
    } else if (json_take(j, ',') == (json_next(j) == close)) /* either a comma, or the end */
        json_bad(j, "a comma and what follows, or the end");
    if (json_take(j, close)) {
        j->depth--;
        text_free(&e->key);
        return 0;
    }
    e->key.n = 0;
    if (object) json_text(j, &e->key);
    if (object && !json_take(j, ':')) json_bad(j, "a colon");
    if (e->key.bad) give_up("no memory");
    return 1;
}

static void json_skip(Messages *j) { /* any value */
    Text unused = {0};
    const char c = json_next(j);
    const size_t n = strspn(j->at, "+-.0123456789abcdefghijklmnopqrstuvwxyzE");
    if (c == '{' || c == '[')
        for (Each e = {.brackets = c == '{' ? "{}" : "[]"}; json_each(j, &e);) json_skip(j);
    else if (c == '"') json_text(j, &unused);
    else if (n) j->at += n;
    else json_bad(j, "a value");
    text_free(&unused);
}

/* A text, or [{"type": "text", "text": ...}] with one part. */
static void json_content(Messages *j) {
    const int c = json_next(j);
    int texts = c == '"';
    if (texts) json_text(j, &j->text);
    for (Each list = {.brackets = "[]"}; c == '[' && json_each(j, &list);)
        for (Each part = {.brackets = "{}", .what = "a part of type text"}; json_each(j, &part);) {
            const int text = !strcmp(part.key.s, "text");
            texts += text;
            if (text) json_text(j, &j->text);
            else json_skip(j);
        }
    if (texts != 1)
        give_up("%s: message %d: its content has to be a text, or a list with one part of type "
                "text", IN_MESSAGE(j));
}

/* One {"role": ..., "content": ...}. */
static void json_message(Messages *j) {
    static const char roles[] = "system user assistant"; /* GLA_SYSTEM, GLA_USER, GLA_ASSISTANT */
    static const char refused[] = "tool_calls tool_call_id function_call reasoning_content "
                                  "reasoning thinking name";
    const size_t from = j->text.n;
    Text role = {0};
    int contents = 0;
    text_puts(&role, "");
    Each m = {.brackets = "{}", .what = "an object with role and content"};
    while (json_each(j, &m)) {
        const int nothing = json_next(j) == 'n';
        if (!strcmp(m.key.s, "role")) {
            role.n = 0;
            json_text(j, &role);
        } else if (!strcmp(m.key.s, "content") && !nothing) {
            contents++;
            json_content(j);
        } else if (nothing || find_word(refused, m.key.s) < 0) json_skip(j);
        else
            give_up("%s: message %d: \"%s\" is not understood here: only role and content are",
                    IN_MESSAGE(j), m.key.s);
    }
    GlaMessage *more = grow(j->messages, (size_t)j->n, 1, &j->cap, sizeof *more);
    if (!more || role.bad || j->text.bad) give_up("no memory for the messages");
    const int which = find_word(roles, role.s);
    if (which < 0)
        give_up("%s: message %d: the role \"%.40s\" is not understood here: system, user and "
                "assistant are", IN_MESSAGE(j), role.s);
    if (contents != 1) give_up("%s: message %d: has no content, or two", IN_MESSAGE(j));
    j->messages = more;
    more[j->n++] = (GlaMessage){which, NULL, j->text.n - from};
    text_free(&role);
}

static void free_messages(Messages *j) {
    gla_free(j->messages);
    text_free(&j->text);
}

static Messages get_messages(const char *path) {
    Text t = read_file(path);
    Messages j = {.name = input_name(path), .at = t.s};
    Each list = {.brackets = "[]",
                 .what = "a list of messages, [{\"role\": ..., \"content\": ...}, ...]"};
    while (json_each(&j, &list)) json_message(&j);
    if (json_next(&j) || j.at < t.s + t.n) json_bad(&j, "nothing behind the list");
    if (!j.n || j.messages[j.n - 1].role != GLA_USER)
        give_up("%s: the last message has to be a user's: it is answered", j.name);
    const char *text = j.text.s;
    for (int i = 0; i < j.n; text += j.messages[i++].n) j.messages[i].text = text;
    text_free(&t);
    return j;
}

/* A message from a pipe: a line; lines that end with a backslash, or stand between two lines of
 * """, go on. 0: the end. */
static int read_message(Text *t, FILE *f) {
    int quoted = 0, got = 0, c;
    size_t line = 0; /* where it begins */
    t->n = 0;
    while (t->n <= TEXT_MAX && !t->bad && (c = fgetc(f)) != EOF) {
        got = 1;
        if (c != '\n') { text_put(t, &(char){(char)c}, 1); continue; }
        if (t->n > line && t->s[t->n - 1] == '\r') t->n--;
        int fence = t->n - line == 3 && !memcmp(t->s + line, "\"\"\"", 3);
        if (fence) t->n = line;
        if (fence && quoted) {
            /* the end of the line before is not the message's */
            if (line && t->s[line - 1] == '\n') t->n--;
            break;
        }
        if (fence) quoted = 1;
        else if (quoted) text_put(t, "\n", 1);
        else if (t->n > line && t->s[t->n - 1] == '\\') t->s[t->n - 1] = '\n';
        else break;
        line = t->n;
    }
    text_put(t, "", 0);
    return got;
}

/* -- waiting -- */

static int64_t tokens_done(const void *state) {
    const GlaState *s = state;
    return s->evaluated + s->within;
}
static void wait_read(const char *what, const GlaState *s, int64_t of) {
    wait_begin(what, tokens_done, s, of);
}

/* -- line editor: a message typed on a terminal -- */

/* The text, a place in it (bytes), what was said before. Several lines are one text. */
typedef struct {
    Terminal terminal;
    Text text, draft, *history; /* draft: the new text, while an entry of the history is shown */
    size_t at;
    int n_history, shown;       /* shown: an entry, or n_history: the new text */
    size_t cap_history;
    int row;                    /* of the cursor, below the first row of the text */
    const Text *search;         /* what Ctrl-R looks for, shown below the text; or NULL */
    /* What Tab may put in the place of the end of text[0, n): a line of the list for each. Returns
     * where that end begins; NO_WORD: a Tab is four blanks here. */
    size_t (*suggest)(const char *text, size_t n, Text *list);
} Editor;
#define NO_WORD ((size_t)-1)

/* Columns of a character: the common cases, not all of Unicode. */
static int char_width(uint32_t c) {
    static const struct { uint32_t from, to; int width; } ranges[] = {
        {0x300, 0x36f, 0}, {0x1100, 0x115f, 2}, {0x200b, 0x200f, 0}, {0x2e80, 0xa4cf, 2},
        {0xac00, 0xd7a3, 2}, {0xf900, 0xfaff, 2}, {0xfe00, 0xfe0f, 0}, {0xfe30, 0xfe6f, 2},
        {0xff00, 0xff60, 2}, {0xffe0, 0xffe6, 2}, {0x1f3fb, 0x1f3ff, 0}, {0x1f300, 0x1f64f, 2},
        {0x1f680, 0x1f6ff, 2}, {0x1f900, 0x1f9ff, 2}, {0x20000, 0x3fffd, 2}};
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++)
        if (c >= ranges[i].from && c <= ranges[i].to) return ranges[i].width;
    return 1;
}

enum { INDENT = 2, LONG_ROWS = 10 };
/* The text as it is shown, and where the cursor stands in it; returns its last row. A tab is four
 * blanks, other controls are a question mark. */
typedef struct { int row, col; } Place;
static int edit_layout(const Text *t, size_t cursor, Place *at, Text *out) {
    const int width = terminal_width();
    int row = 0, col = INDENT;
    for (size_t i = 0, len = 1; i <= t->n; i += len) {
        const uint32_t c = i < t->n ? utf8_read(t->s + i, t->n - i, &len) : ' ';
        const int w = c == '\n' ? 0 : c == '\t' ? 4 : c < 32 ? 1 : char_width(c);
        if (col + w > width) {
            text_puts(out, "\r\n");
            row++;
            col = 0;
        }
        if (i == cursor) *at = (Place){row, col};
        if (i == t->n) break;
        if (c == '\n') {
            text_puts(out, "\r\n  ");
            row++;
            col = INDENT;
        } else if (c == '\t') text_puts(out, "    ");
        else if (c < 32 || c >= BAD_BYTE) text_puts(out, "?");
        else text_put(out, t->s + i, len);
        col += w;
    }
    return row;
}
/* Too long to be put into the editor again by itself? */
static int edit_is_long(const Text *t) {
    Text out = {0};
    Place at;
    const int rows = edit_layout(t, 0, &at, &out) + 1;
    text_free(&out);
    return rows > LONG_ROWS;
}

/* Draws the text anew, from the row where it began. */
static void edit_draw(Editor *e, size_t cursor) {
    Text out = {0};
    Place at = {0, INDENT};
    if (e->row) text_printf(&out, "\033[%dA", e->row);
    text_puts(&out, "\r\033[J> ");
    int row = edit_layout(&e->text, cursor, &at, &out);
    if (e->search) {
        text_printf(&out, "\r\n[search: %.60s]", e->search->s);
        row++;
    }
    if (row > at.row) text_printf(&out, "\033[%dA", row - at.row);
    text_puts(&out, "\r");
    if (at.col) text_printf(&out, "\033[%dC", at.col);
    e->row = at.row;
    fwrite(out.s, 1, out.n, stderr);
    fflush(stderr);
    text_free(&out);
}

/* bytes from .. to by s; the cursor behind it */
static void edit_replace(Editor *e, size_t from, size_t to, const char *s, size_t n) {
    Text t = {0};
    text_put(&t, e->text.s, from);
    text_put(&t, s, n);
    text_put(&t, e->text.s + to, e->text.n - to);
    if (t.bad) { text_free(&t); return; }
    text_free(&e->text);
    e->text = t;
    e->at = from + n;
}
static void edit_insert(Editor *e, const char *s, size_t n) { edit_replace(e, e->at, e->at, s, n); }
static void edit_erase(Editor *e, size_t from, size_t to) { edit_replace(e, from, to, "", 0); }

/* Places from `at`, forwards (by = 1) or backwards (-1). */
static int within_character(const Editor *e, size_t at) {
    return at > 0 && at < e->text.n && ((unsigned char)e->text.s[at] & 0xc0) == 0x80;
}
static size_t edit_step(const Editor *e, size_t at, int by) { /* the next character */
    if (by < 0 ? at == 0 : at == e->text.n) return at;
    do at += (size_t)by; while (within_character(e, at));
    return at;
}
/* over blanks, then over what is none */
static size_t edit_word(const Editor *e, size_t at, int by) {
    const size_t end = by < 0 ? 0 : e->text.n;
    for (int blanks = 1; blanks >= 0; blanks--)
        while (at != end && (strchr(" \n", e->text.s[by < 0 ? at - 1 : at]) != NULL) == blanks)
            at += (size_t)by;
    return at;
}
/* the end of the line, or its beginning */
static size_t edit_line(const Editor *e, size_t at, int by) {
    if (by < 0) while (at > 0 && e->text.s[at - 1] != '\n') at--;
    else while (at < e->text.n && e->text.s[at] != '\n') at++;
    return at;
}

static void edit_keep(Editor *e, const char *s, size_t n) { /* in the history */
    const size_t used = (size_t)e->n_history;
    Text *more = n ? grow(e->history, used, 1, &e->cap_history, sizeof *more) : NULL;
    if (!more) return;
    e->history = more;
    more[e->n_history] = (Text){0};
    text_put(&more[e->n_history++], s, n);
}

/* A line up (by = -1) or down; behind the first and the last one, through the history. */
static void edit_vertical(Editor *e, int by) {
    const size_t begin = edit_line(e, e->at, -1), end = edit_line(e, e->at, 1);
    if (by < 0 ? begin > 0 : end < e->text.n) {
        const size_t other = edit_line(e, by < 0 ? begin - 1 : end + 1, -1),
            other_end = edit_line(e, other, 1);
        const size_t at = other + (e->at - begin);
        e->at = at < other_end ? at : other_end;
        while (within_character(e, e->at)) e->at--;
    } else if (e->shown + by >= 0 && e->shown + by <= e->n_history) {
        if (e->shown == e->n_history) {
            e->draft.n = 0;
            text_put(&e->draft, e->text.s, e->text.n);
        }
        e->shown += by;
        const Text *entry = e->shown == e->n_history ? &e->draft : &e->history[e->shown];
        edit_replace(e, 0, e->text.n, entry->s, entry->n);
    }
}

#define CONTROL(letter) ((letter) & 31)
enum { KEY_NONE = 0, KEY_BACKSPACE = 127, KEY_DELETE = 256, KEY_WORD_LEFT, KEY_WORD_RIGHT,
      KEY_PASTE };

/* What comes behind ESC, as the control key that does the same: ESC [ number ~, ESC [ 1 ; number
 * letter (which is with Ctrl, Alt or Shift, and [;letter here), ESC O letter (the same as ESC [),
 * or ESC and a key, which is Alt. */
static int escape_key(void) {
    static const struct { const char *seq; int key; } keys[] = {
        {"\r", '\n'}, {"\n", '\n'}, {"b", KEY_WORD_LEFT}, {"f", KEY_WORD_RIGHT},
        {"\177", CONTROL('W')}, {"[A", CONTROL('P')}, {"[B", CONTROL('N')}, {"[C", CONTROL('F')},
        {"[D", CONTROL('B')}, {"[;C", KEY_WORD_RIGHT}, {"[;D", KEY_WORD_LEFT},
        {"[H", CONTROL('A')}, {"[1~", CONTROL('A')}, {"[7~", CONTROL('A')}, {"[F", CONTROL('E')},
        {"[4~", CONTROL('E')}, {"[8~", CONTROL('E')}, {"[3~", KEY_DELETE}, {"[200~", KEY_PASTE}};
    char seq[16] = "";
    int n = 0, key = read_key(50);
    if (key < 0) return KEY_NONE;
    seq[n++] = key == 'O' ? '[' : (char)key;
    while (*seq == '[' && n < 15 && (key = read_key(50)) >= 0) {
        seq[n++] = (char)key;
        if (key >= '@' && key <= '~') break;
    }
    if (strchr(seq, ';'))
        snprintf(seq, sizeof seq, key == 'C' || key == 'D' ? "[;%c" : "[%c", key);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (!strcmp(seq, keys[i].seq)) return keys[i].key;
    return KEY_NONE;
}

static int edit_key(void) { /* a byte, KEY_*, or negative: the end, or a signal */
    int key;
    /* a signal just before would not end a wait without limit */
    do key = read_key(300); while (key == -2 && !interrupted);
    if (key < 0 && interrupted == SIGINT) { /* sent by somebody else: the key sends none here */
        interrupted = 0;
        return CONTROL('C');
    }
    return key == 27 ? escape_key() : key;
}

static void edit_paste(Editor *e) { /* what comes before ESC [ 201 ~ */
    Text paste = {0};
    int key, whole = 0;
    while (!whole && (key = read_key(1000)) >= 0) {
        text_put(&paste, &(char){(char)(key == '\r' ? '\n' : key)}, 1);
        whole = paste.n >= 6 && !memcmp(paste.s + paste.n - 6, "\033[201~", 6);
    }
    edit_insert(e, paste.s, whole ? paste.n - 6 : paste.n);
    text_free(&paste);
}

/* The rest of a character whose first byte is key; how many bytes it has. */
static size_t read_character(char c[4], int key) {
    size_t n = 1, whole = key >= 0xf0 ? 4 : key >= 0xe0 ? 3 : key >= 0xc0 ? 2 : 1;
    c[0] = (char)key;
    while (n < whole && (key = read_key(50)) >= 0) c[n++] = (char)key;
    return n;
}

/* Tab: what all suggestions begin with; where that is there already, the suggestions. */
static void edit_complete(Editor *e) {
    Text list = {0};
    const size_t from = e->suggest ? e->suggest(e->text.s, e->at, &list) : NO_WORD;
    size_t same = list.n ? strcspn(list.s, "\n") : 0, n = 0;
    for (char *s = list.s; list.n && *s; s += strcspn(s, "\n") + 1, n++)
        for (size_t i = 0; i < same; i++) if (s[i] != list.s[i]) same = i;
    /* no half of a character */
    while (same && n > 1 && ((unsigned char)list.s[same] & 0xc0) == 0x80) same--;
    if (from == NO_WORD) edit_insert(e, "    ", 4);
    else if (n && (same > e->at - from || n == 1)) edit_replace(e, from, e->at, list.s, same);
    else if (n) {
        edit_draw(e, e->text.n);
        fprintf(stderr, "\r\n");
        for (char *s = list.s; *s; s += strcspn(s, "\n") + 1)
            fprintf(stderr, "%.*s  ", (int)strcspn(s, "\n"), s);
        fprintf(stderr, "\r\n");
        e->row = 0;
    }
    text_free(&list);
}

/* Ctrl-R: the newest message of the history that holds what is typed; again: an older one. Ends
 * with the key that is none of this, which is returned. ESC, Ctrl-C and Ctrl-G bring back what
 * stood there. */
static int edit_search(Editor *e) {
    Text what = {0}, before = {0};
    int key, at = e->n_history;
    char c[4];
    text_puts(&what, "");
    text_put(&before, e->text.s, e->text.n);
    for (e->search = &what;;) {
        edit_draw(e, e->at);
        key = edit_key();
        int from = at < e->n_history ? at : e->n_history - 1;
        if (key == CONTROL('R')) from = at - 1;
        else if ((key == KEY_BACKSPACE || key == CONTROL('H')) && what.n) {
            do what.n--; while (what.n && ((unsigned char)what.s[what.n] & 0xc0) == 0x80);
            text_puts(&what, "");
            from = e->n_history - 1;
        } else if (key >= 32 && key < KEY_DELETE && key != KEY_BACKSPACE)
            text_put(&what, c, read_character(c, key));
        else break;
        while (from >= 0 && !strstr(e->history[from].s, what.s)) from--;
        if (!what.n || from < 0 || what.bad) continue;
        at = from;
        edit_replace(e, 0, e->text.n, e->history[at].s, e->history[at].n);
    }
    e->search = NULL;
    if (key == KEY_NONE || key == CONTROL('C') || key == CONTROL('G')) {
        edit_replace(e, 0, e->text.n, before.s, before.n);
        key = KEY_NONE;
    } else if (at < e->n_history) e->shown = at;
    text_free(&what);
    text_free(&before);
    return key;
}

static void edit_do(Editor *e, int key) {
    switch (key) {
    case CONTROL('A'): e->at = edit_line(e, e->at, -1); break;
    case CONTROL('E'): e->at = edit_line(e, e->at, 1); break;
    case CONTROL('B'): e->at = edit_step(e, e->at, -1); break;
    case CONTROL('F'): e->at = edit_step(e, e->at, 1); break;
    case KEY_WORD_LEFT: e->at = edit_word(e, e->at, -1); break;
    case KEY_WORD_RIGHT: e->at = edit_word(e, e->at, 1); break;
    case CONTROL('P'): edit_vertical(e, -1); break;
    case CONTROL('N'): edit_vertical(e, 1); break;
    case CONTROL('H'): case KEY_BACKSPACE: edit_erase(e, edit_step(e, e->at, -1), e->at); break;
    case CONTROL('D'): case KEY_DELETE: edit_erase(e, e->at, edit_step(e, e->at, 1)); break;
    case CONTROL('K'): edit_erase(e, e->at, edit_line(e, e->at, 1)); break;
    case CONTROL('U'): edit_erase(e, edit_line(e, e->at, -1), e->at); break;
    case CONTROL('W'): edit_erase(e, edit_word(e, e->at, -1), e->at); break;
    case '\n': edit_insert(e, "\n", 1); break;
    case '\t': edit_complete(e); break;
    case KEY_PASTE: edit_paste(e); break;
    case CONTROL('L'):
        fputs("\033[H\033[2J", stderr);
        e->row = 0;
        break;
    case CONTROL('C'): /* nothing typed is lost: it is the last entry of the history */
        edit_draw(e, e->text.n);
        fprintf(stderr, e->text.n ? "\r\n" : "\r\n[Ctrl-D or /quit ends]\r\n");
        edit_keep(e, e->text.s, e->text.n);
        e->shown = e->n_history;
        e->row = 0;
        edit_erase(e, 0, e->text.n);
        break;
    default:
        if (key >= 32) { /* with the rest of its character, so that no half of one is shown */
            char c[4];
            edit_insert(e, c, read_character(c, key));
        }
    }
}

/* Reads a message. 1: it is in e->text; 0: the end (Ctrl-D on an empty line, a signal). What
 * e->text holds at first can be edited. */
static int edit(Editor *e) {
    int key;
    if (terminal_keys(&e->terminal, 0)) return 0;
    text_puts(&e->text, "");
    e->at = e->text.n;
    e->row = 0;
    e->shown = e->n_history;
    edit_draw(e, e->at);
    for (;;) {
        key = edit_key();
        if (key == CONTROL('R')) key = edit_search(e);
        /* Enter behind a backslash */
        const int goes_on = e->at && e->at == e->text.n && e->text.s[e->at - 1] == '\\';
        if (key < 0 || (key == CONTROL('D') && !e->text.n) || (key == '\r' && !goes_on)) break;
        if (key == '\r') edit_replace(e, e->at - 1, e->at, "\n", 1);
        else edit_do(e, key);
        edit_draw(e, e->at);
    }
    const int said = key == '\r';
    edit_draw(e, e->text.n);
    fputs("\r\n", stderr);
    fflush(stderr);
    terminal_keys(&e->terminal, 1);
    if (said) edit_keep(e, e->text.s, e->text.n);
    return said;
}

static void edit_free(Editor *e) {
    for (int i = 0; i < e->n_history; i++) text_free(&e->history[i]);
    gla_free(e->history);
    text_free(&e->text);
    text_free(&e->draft);
}

/* -- talking: what generate and chat share -- */

/* What a mode works with. */
typedef struct {
    const Options *o;
    GlaModel *m;
    GlaState *s;          /* NULL where none is needed */
    GlaInfo info;
    GlaSampler sampler;
    uint64_t seed;
    Ids ids;              /* that were given, or those of the text; not of a prompt */
    double begin, load_s; /* when the program began, and how long the model took */
    char *err;
} Job;

/* A session with its ids. Loaded ids are put into *ids (none when the file has none), saved ones
 * are those of the whole text. */
static void load_session(const Job *job, GlaSampler *p, Ids *ids) {
    wait_begin("loading the session", NULL, NULL, 0);
    must(session_load(job->s, p, &ids->id, text_of(job->o, O_LOAD), job->err), job->err);
    if (ids->id) ids->n = gla_state_pos(job->s);
    ids->cap = (size_t)ids->n;
    wait_end();
}
static void save_session(const Job *job, const GlaSampler *p, const Ids *ids) {
    const int32_t *whole = ids->n == gla_state_pos(job->s) ? ids->id : NULL;
    if (!given(job->o, O_SAVE)) return;
    catch_interrupt(HOLD);
    wait_begin("saving the session", NULL, NULL, 0);
    must(gla_state_save(job->s, p, whole, text_of(job->o, O_SAVE), job->err), job->err);
    wait_end();
}

/* One text or one turn: what is shown, what is collected for a JSON object, what it took. */
typedef struct {
    const Job *job;
    GlaState *s;
    GlaChat *chat;             /* NULL: generate */
    GlaTurn turn;
    const char *stops[MAX_STOPS + 1];
    Ids ids;                   /* generate: all that was read; chat: of this answer */
    Text text, thought, steps; /* --json: collected. steps: log probabilities */
    struct {
        double begin, first, end; /* seconds: of reading, of the first token */
        /* positions before and behind the prompt; tokens that the prompt cache had */
        int64_t from, goal, reused;
        int64_t read, made;       /* tokens */
    } took;
    int begun;    /* there is a text, or some of one: what is stopped before an answer is none */
    int done;     /* GLA_DONE_*, or an error */
    int bad;      /* output failed */
    int uncached; /* the prompt cache could not be written, which has been said */
    int dimmed;   /* text is, as thoughts are */
    int loops;    /* told so far */
    int last;     /* the last byte shown */
} Talk;

/* log sum_j exp(logits[j] - top), with top the largest of them: log softmax(logits)[i] is logits[i]
 * - top - this. What is NaN counts for nothing, as it is never drawn. */
static double log_sum(const float *logits, int64_t n, double *top) {
    double sum = 0;
    *top = -INFINITY;
    for (int64_t i = 0; i < n; i++) if (logits[i] > *top) *top = logits[i];
    for (int64_t i = 0; i < n; i++) if (!isnan(logits[i])) sum += exp(logits[i] - *top);
    return log(sum);
}

/* One token: its log probability, and the likeliest ones. A number of JSON is finite. */
static void step_json(Text *t, const GlaState *s, int32_t id, int top) {
    const float *logits = gla_logits(s);
    const int n = s->m->config.vocab_size;
    double largest, sum = log_sum(logits, n, &largest);
    Scored *c = s->candidates;
    for (int i = 0; i < n; i++) c[i] = (Scored){{isnan(logits[i]) ? -INFINITY : logits[i], i}};
    heap_candidates(c, n);
    if (t->n) text_puts(t, ",");
    for (int i = -1; i < top && i < n; i++) {
        if (i >= 0) take_best(c, n - i);
        char piece[PIECE], number[64];
        const int32_t which = i < 0 ? id : c[n - 1 - i].id;
        const double p = logits[which] - largest - sum;
        size_t len = gla_piece(s->m, which, GLA_SPECIAL, piece, sizeof piece);
        text_printf(t, "%s{\"id\":%d,\"text\":", i > 0 ? "," : "", which);
        text_json(t, piece, len < sizeof piece ? len : sizeof piece);
        snprintf(number, sizeof number, "%.6g", p);
        text_printf(t, ",\"logprob\":%s", isfinite(p) ? number : "null");
        text_puts(t, i < 0 ? ",\"top\":[" : "}");
    }
    text_puts(t, "]}");
}

static void dim(Talk *k, int on) {
    if (k->dimmed != on) fputs(on ? "\033[2m" : "\033[0m", stdout);
    k->dimmed = on;
}

static void say_uncached(const char *err) {
    fprintf(stderr, "%s: not cached: %s\n", program_name(), err);
}
/* Leaves what was read in the prompt cache, when there is one; if it has no room, the text goes on
 * all the same. */
static void keep_prompt(Talk *k) {
    const Options *o = k->job->o;
    const uint64_t room = (uint64_t)whole_of(o, O_CACHE_BYTES);
    const int known = k->ids.n == gla_state_pos(k->s);
    char err[GLA_ERR] = "the session that was loaded holds no ids";
    if (!given(o, O_CACHE)) return;
    if (known && !gla_cache_store(k->s, text_of(o, O_CACHE), k->ids.id, room, err)) return;
    if (!k->uncached++) say_uncached(err);
}

/* Ids and text, as they are made: a GlaEmit. */
static int show(void *user, int32_t id, const char *text, size_t n) {
    Talk *k = user;
    const Options *o = k->job->o;
    const int thinking = k->chat && gla_chat_thinking(k->chat), reading = id < 0 && !n;
    const int hidden = thinking && (given(o, O_HIDE) || !is_terminal(stdout));
    const int visible = n && !given(o, O_JSON) && !hidden;
    if (visible) wait_end();
    else if (id >= 0 && !k->took.first) wait_read(thinking ? "thinking" : "generating", k->s, 0);
    if (reading && !k->chat && gla_state_pos(k->s) == k->took.goal) {
        wait_end();
        keep_prompt(k);
    }
    if (id >= 0) {
        if (!k->took.first) k->took.first = now_s();
        if (given(o, O_LOGPROBS)) step_json(&k->steps, k->s, id, (int)whole_of(o, O_LOGPROBS));
        if (ids_add(&k->ids, &id, 1, NULL)) k->bad = 1;
    }
    if (k->turn.loops != k->loops) {
        k->loops = k->turn.loops;
        note(o, k->loops > 1 ? "\n[the text repeats itself again: stopped]\n"
                             : "\n[the text repeats itself: the repeat penalty is raised]\n");
    }
    if (given(o, O_JSON)) text_put(thinking ? &k->thought : &k->text, text, n);
    else if (visible) {
        /* between a thought and the answer */
        if (k->last && k->dimmed != thinking && k->chat) fputs("\n\n", stdout);
        dim(k, thinking);
        if (write_text(stdout, text, n) || fflush(stdout)) k->bad = 1;
        k->last = (unsigned char)text[n - 1];
    }
    return interrupted || k->bad;
}

static int draft_source(const Options *o) {
    return given(o, O_DRAFT) ? (int)whole_of(o, O_DRAFT) : GLA_DRAFT_LOOKUP;
}
static GlaGenerate talk_settings(Talk *k) {
    const Options *o = k->job->o;
    int n = 0;
    while ((k->stops[n] = repeated(o, O_STOP, n))) n++;
    return (GlaGenerate){whole_of(o, O_STEPS), k->stops, n, given(o, O_IGNORE),
                         given(o, O_JSON_ONLY), show, k, &interrupted, draft_source(o)};
}

/* One line of JSON for a text or an answer. */
static void print_json(Talk *k) {
    static const char *const ends[] = {
        [GLA_DONE_STEPS] = "length", [GLA_DONE_END] = "end", [GLA_DONE_STOP] = "stop",
        [GLA_DONE_CONTEXT] = "context", [GLA_DONE_CALLER] = "interrupted",
        [GLA_DONE_LOOP] = "loop"};
    const Job *job = k->job;
    Facts f = {.json = 1};
    fact_bytes(&f, "text", k->text.s, k->text.n);
    if (k->chat) fact_bytes(&f, "thinking", k->thought.s, k->thought.n);
    fact(&f, "ids", "[");
    for (int64_t i = k->ids.n - k->took.made; i < k->ids.n; i++)
        text_printf(&f.t, "%s%d", i > k->ids.n - k->took.made ? "," : "", k->ids.id[i]);
    text_puts(&f.t, "]");
    fact_text(&f, "finish", ends[k->done]);
    fact(&f, "prompt_tokens", "%lld", (long long)(k->took.read + k->took.reused));
    fact(&f, "reused_tokens", "%lld", (long long)k->took.reused);
    fact(&f, "generated_tokens", "%lld", (long long)k->took.made);
    fact(&f, "position", "%lld", (long long)gla_state_pos(k->s));
    fact(&f, "seed", "%llu", (unsigned long long)job->seed);
    fact(&f, "timing", "{\"load_s\":%.4f,\"prompt_s\":%.4f,\"generate_s\":%.4f}", job->load_s,
         k->took.first - k->took.begin, k->took.end - k->took.first);
    if (given(job->o, O_LOGPROBS)) {
        fact(&f, "logprobs", "[");
        text_put(&f.t, k->steps.s, k->steps.n);
        text_puts(&f.t, "]");
    }
    print_facts(&f);
    k->bad |= k->text.bad || k->thought.bad || k->steps.bad;
}

/* Behind the last token. */
static void talk_end(Talk *k) {
    const Options *o = k->job->o;
    k->took.end = now_s();
    if (!k->took.first) k->took.first = k->took.end;
    dim(k, 0);
    wait_end();
    if (k->done < 0 || !k->begun) return;
    if (given(o, O_JSON)) print_json(k);
    else if (k->chat || k->took.made || given(o, O_ECHO)) putchar('\n');
    if (fflush(stdout) || ferror(stdout)) k->bad = 1;
}
/* Was JSON asked for, and ended too early? */
static int is_cut(const Talk *k) {
    return k->done > 0 && given(k->job->o, O_JSON_ONLY) && k->done != GLA_DONE_END;
}

static void talk_free(Talk *k) {
    ids_free(&k->ids);
    text_free(&k->text);
    text_free(&k->thought);
    text_free(&k->steps);
}

static void print_state_size(const Job *job) {
    const size_t kv = job->info.kv_bytes_per_token[job->s->kv_type];
    note(job->o, "state %s", BYTES(job->info.state_bytes));
    if (!kv) note(job->o, ", whatever the length of the text\n");
    else note(job->o, ", and %s per token (%d tokens at most)\n", BYTES(kv), gla_state_ctx(job->s));
}

/* -- generate -- */

/* The ids of the prompt. An empty one begins where a text begins, unless it goes on from a
 * session. */
static void prompt_ids(const Job *job, Ids *ids, const Text *t) {
    const GlaModel *m = job->m;
    const int fresh = !gla_state_pos(job->s);
    if (t->n || !given(job->o, O_LOAD)) must(need_vocabulary(m, job->err), job->err);
    if (t->n || fresh)
        must(ids_encode(ids, m, t->s, t->n, GLA_SPECIAL | (fresh ? GLA_BOS : 0), job->err),
             job->err);
    if (ids->n || !fresh) return;
    int32_t start = m->vocab->kind.bos >= 0 ? m->vocab->kind.bos : m->vocab->kind.eos;
    if (start >= 0 && start < m->config.vocab_size)
        must(ids_add(ids, &start, 1, job->err), job->err);
}

/* What the prompt cache has of the prompt is read from there. */
static void reuse_prompt(Talk *k, const Ids *prompt, GlaSampler *p) {
    const Job *job = k->job;
    const char *folder = text_of(job->o, O_CACHE);
    if (!folder || prompt->n < 2 || gla_state_pos(k->s)) return;
    const int64_t n = gla_cache_load(k->s, folder, prompt->id, prompt->n, job->err);
    must((int)min64(n, 0), job->err);
    k->took.reused = n;
    note(job->o, "reused %lld of %s\n", (long long)n, N_OF(prompt->n, "token"));
    for (int64_t i = 0; i < n; i++) gla_sampler_note(p, prompt->id[i]);
}

static double per_second(int64_t n, double seconds) {
    return seconds > 0 ? (double)n / seconds : 0;
}

/* The line that ends a text. */
static void print_speed(const Talk *k) {
    const Job *job = k->job;
    const Options *o = job->o;
    const double made_s = per_second(k->took.made, k->took.end - k->took.first);
    const size_t kv = job->info.kv_bytes_per_token[k->s->kv_type];
    int64_t proposed;
    const int64_t stayed = gla_state_drafted(k->s, &proposed);
    note(o, "prompt %s, %.1f tok/s | ", N_OF(k->took.read, "token"),
         per_second(k->took.read, k->took.first - k->took.begin));
    note(o, "generated %s, %.1f tok/s, %.2f GB/s | ", N_OF(k->took.made, "token"), made_s,
         per_second(k->took.made - stayed, k->took.end - k->took.first)
             * (double)job->info.token_bytes / 1e9); /* a draft that stays is read with another */
    if (proposed) note(o, "%lld of %s stayed | ", (long long)stayed, N_OF(proposed, "draft"));
    note(o, "state %s | seed %llu",
         BYTES((double)job->info.state_bytes + (double)kv * (double)gla_state_pos(k->s)),
         (unsigned long long)job->seed);
    if (k->done == GLA_DONE_CONTEXT) note(o, " | the context is full; a larger one: -c");
    else if (k->took.from + k->took.read < k->took.goal)
        note(o, " | interrupted within the prompt");
    else if (interrupted) note(o, " | interrupted");
    if (given(o, O_LOAD) && !given(o, O_SEED))
        note(o, " (not used: the session's random numbers go on)");
    note(o, "\n");
}

/* A plain text for a model that expects messages: a word about it, to somebody who watches. */
static void suggest_chat(const Job *job, const Ids *ids) {
    const Options *o = job->o;
    const Tokenizer *v = job->m->vocab;
    char err[GLA_ERR];
    int known = 0;
    if (!given(o, O_PROMPT) || given(o, O_MODE) || given(o, O_LOAD) || !waiting.watched) return;
    for (int64_t i = 0; i < ids->n; i++) /* written as a template has it? */
        if (token_type(v, ids->id[i]) == TYPE_CONTROL && ids->id[i] != v->kind.bos) return;
    if (gla_template(job->m, &known, err) && known)
        note(o, "this model was trained to chat: -m chat answers, -i goes on with the text\n");
}

/* The session to go on from: its ids, its memory of recent tokens, and its place in the random
 * numbers unless a seed is given. */
static void resume_text(Job *job, Ids *ids) {
    GlaSampler *p = &job->sampler, saved = *p;
    if (!given(job->o, O_LOAD)) return;
    load_session(job, &saved, ids);
    memcpy(p->recent, saved.recent, sizeof p->recent);
    p->n_recent = saved.n_recent;
    if (!given(job->o, O_SEED)) p->rng = saved.rng;
}

static int mode_generate(Job *job) {
    const Options *o = job->o;
    GlaState *s = job->s;
    GlaSampler *p = &job->sampler;
    Ids prompt = {NULL, 0, 0};
    Talk k = {.job = job, .s = s, .begun = 1};
    const GlaGenerate how = talk_settings(&k);
    resume_text(job, &k.ids);
    const int known = k.ids.n == gla_state_pos(s); /* a session may have come without its ids */
    Text t = get_text(o);
    prompt_ids(job, &prompt, &t);
    must(ids_add(&k.ids, prompt.id, prompt.n, job->err), job->err);
    reuse_prompt(&k, &prompt, p);
    catch_interrupt(END_AT_SECOND);
    suggest_chat(job, &prompt);
    print_state_size(job);
    if (given(o, O_ECHO) && given(o, O_JSON)) text_put(&k.text, t.s, t.n);
    else if (given(o, O_ECHO) && write_text(stdout, t.s, t.n)) k.bad = 1;
    fflush(stdout);
    const int64_t n = prompt.n - k.took.reused;
    k.took.begin = now_s();
    k.took.from = gla_state_pos(s);
    k.took.goal = k.took.from + n;
    wait_read("reading", s, n);
    k.done = gla_generate(s, p, n ? prompt.id + k.took.reused : NULL, n, &how, &k.took.made,
                          job->err);
    /* fewer than the prompt has when it was interrupted */
    k.took.read = gla_state_pos(s) - k.took.from - k.took.made;
    talk_end(&k);
    must(k.done, job->err);
    print_speed(&k);
    if (is_cut(&k)) complain("the JSON is not complete");
    k.ids.n = known ? min64(k.ids.n, gla_state_pos(s)) : 0;
    save_session(job, p, &k.ids);
    if (k.took.made) keep_prompt(&k);
    if (k.bad) give_up("%s", output_error());
    const int failed = k.uncached || is_cut(&k);
    text_free(&t);
    ids_free(&prompt);
    talk_free(&k);
    return k.done == GLA_DONE_CALLER ? by_signal() : failed;
}

/* -- chat: one message (-i, -f), a line each from a pipe, or a terminal -- */

typedef struct { int64_t read, made, thought, evaluated; double first_s, total_s; } TurnCost;
typedef struct {
    GlaChat *chat;
    GlaState *s;
    int loaded; /* it began with a session, whose system prompt only its text knows */
    int64_t early; /* tokens read for a turn that was not said and kept: the system prompt */
} Branch;
enum { MAX_BRANCHES = 16 };
typedef struct {
    Job *job;
    const Options *o;
    char *err;
    Branch branch[MAX_BRANCHES], *b; /* where the conversation is */
    int n_branches;
    int interactive;  /* on a terminal; else a script */
    int failed;       /* in a script: a command did, or JSON was not completed */
    int bad;          /* standard output failed: nothing can go on */
    Text line;        /* the last command, behind its name */
    const char *rest; /* in it, without blanks around it */
    int by;           /* of its row */
    Editor editor;
    TurnCost *cost;
    size_t n_cost, cap_cost;
} Chat;

/* Is one message said, and the chat over? */
static int is_once(const Options *o) {
    return given(o, O_PROMPT) || given(o, O_FILE) || given(o, O_MESSAGES);
}
/* 1 think, 0 do not, -1 what the template does */
static int think_how(const Options *o) {
    return given(o, O_THINK) ? 1 : given(o, O_NO_THINK) ? 0 : -1;
}

static GlaChatSettings chat_settings(const Options *o, const char *system) {
    return (GlaChatSettings){
        .system = system,
        .think = think_how(o),
        .think_budget = whole_of(o, O_BUDGET),
        .loop_tokens = (int)whole_of(o, O_GUARD),
        .snapshot_bytes = is_once(o) ? 0 : whole_of(o, O_SNAPSHOTS), /* no place to come back to */
        .cache = text_of(o, O_CACHE),
        .cache_bytes = (uint64_t)whole_of(o, O_CACHE_BYTES)};
}

static int64_t room(const Chat *c) { /* positions left in the context */
    const GlaState *s = c->b->s;
    return gla_state_ctx(s) ? gla_state_ctx(s) - gla_state_pos(s) : INT64_MAX;
}

static int chat_forget(Chat *c) {
    const GlaState *s = c->b->s;
    const int64_t before = gla_state_evaluated(s);
    const int64_t of = gla_state_ctx(s) ? gla_state_ctx(s) : gla_state_pos(s);
    wait_read("reading again", s, 0);
    int n = gla_chat_forget(c->b->chat, of / 2, NULL, c->err);
    wait_end();
    if (n < 0) return n;
    const int64_t again = gla_state_evaluated(s) - before;
    note(c->o, "[the oldest %s %s forgotten, %s %s read again]\n", N_OF(n, "turn"),
         n == 1 ? "is" : "are", N_OF(again, "token"), again == 1 ? "was" : "were");
    return GLA_OK;
}

/* How a turn ended, where that is not the usual way. */
static void print_end(const Chat *c, const Talk *k) {
    const int ctx = gla_state_ctx(k->s);
    if (is_cut(k)) fprintf(stderr, "[the JSON is not complete]\n");
    if (k->turn.loops > k->loops) note(c->o, "[the text repeats itself again: stopped]\n");
    if (k->done == GLA_DONE_CALLER && !k->bad && (k->begun || !c->interactive))
        note(c->o, k->begun ? "[stopped]\n" : "[stopped before the answer]\n");
    if (k->done == GLA_DONE_CONTEXT)
        note(c->o, "[the context of %d positions is full: /forget drops the oldest turns, "
                   "/undo goes back, -c gives more]\n", ctx);
    else if (k->done > 0 && room(c) < ctx / 4)
        note(c->o, "[room for %lld of %d tokens: /forget drops the oldest turns, /undo goes back; "
                   "or go on until it is full]\n", (long long)room(c), ctx);
    if (k->done >= 0 && k->turn.uncached) say_uncached(c->err);
}

/* What a turn cost; what was stopped before the answer is no turn. */
static void chat_count(Chat *c, const Talk *k, int64_t evaluated) {
    Branch *b = c->b;
    if (!k->begun) b->early += gla_state_pos(b->s) - k->took.from;
    if (k->done <= 0 || !k->begun || (!k->turn.read && !k->turn.made)) return;
    TurnCost *more = grow(c->cost, c->n_cost, 1, &c->cap_cost, sizeof *more);
    if (!more) return;
    c->cost = more;
    more[c->n_cost++] = (TurnCost){k->turn.read, k->turn.made, k->turn.thought,
                                   evaluated + b->early, k->took.first - k->took.begin,
                                   k->took.end - k->took.begin};
    b->early = 0;
}

/* A turn: a message, or (text NULL) another answer to the last one. 1: the message was not said and
 * should be offered again. */
static int chat_turn(Chat *c, const Text *text) {
    Branch *b = c->b;
    Talk k = {.job = c->job, .s = b->s, .chat = b->chat};
    const GlaGenerate how = talk_settings(&k);
    const int64_t evaluated = gla_state_evaluated(b->s);
    if (c->interactive) forget_ctrl_c();
    catch_interrupt(c->interactive ? COUNT : END_AT_SECOND);
    if (text && given(c->o, O_FORGET) && gla_chat_turns(b->chat, NULL) > 1) {
        /* an answer and the message */
        const int64_t about = gla_state_ctx(b->s) / 4 + (int64_t)text->n / 2;
        if (room(c) < about && chat_forget(c)) return -1;
    }
    k.took.begin = now_s();
    k.took.from = gla_state_pos(b->s);
    wait_read("reading", b->s, 0);
    GlaSampler *p = &c->job->sampler;
    if (!text) k.done = gla_chat_retry(b->chat, p, &how, &k.turn, c->err);
    else k.done = gla_chat_say(b->chat, p, text->s ? text->s : "", text->n, &how, &k.turn, c->err);
    k.begun = k.turn.said || !text;
    k.took.read = k.turn.read;
    k.took.made = k.ids.n;
    talk_end(&k);
    print_end(c, &k);
    if (k.turn.uncached || is_cut(&k)) c->failed |= !c->interactive;
    chat_count(c, &k, gla_state_evaluated(b->s) - evaluated);
    talk_free(&k);
    c->bad |= k.bad;
    if (k.bad) return fail(c->err, GLA_IO, "%s", output_error());
    return k.done < 0 ? k.done : !k.begun;
}

/* What all turns evaluated, beside how long the conversation is. */
static void print_evaluated(const Chat *c) {
    int64_t evaluated = 0;
    for (size_t i = 0; i < c->n_cost; i++) evaluated += c->cost[i].evaluated;
    fprintf(stderr, "evaluated %s, the conversation has %lld", N_OF(evaluated, "token"),
            (long long)gla_state_pos(c->b->s));
}

/* Commands: a row each, for /help, the man page and Tab. They find what stands behind their name in
 * c->rest, and what makes two of one in c->by. 1: quit. */
static int chat_stats(Chat *c) {
    const Branch *b = c->b;
    fprintf(stderr, "turn  evaluated  message  answer  thought  first token s  total s\n");
    for (size_t i = 0; i < c->n_cost; i++) {
        const TurnCost *t = &c->cost[i];
        fprintf(stderr, "%4zu  %9lld  %7lld  %6lld  %7lld  %13.3f  %7.2f\n", i + 1,
                (long long)t->evaluated, (long long)t->read, (long long)t->made,
                (long long)t->thought, t->first_s, t->total_s);
    }
    print_evaluated(c);
    if (gla_state_ctx(b->s)) fprintf(stderr, ", room for %lld more", (long long)room(c));
    fprintf(stderr, "\nsnapshots %s | resident %s\n", BYTES(gla_chat_snapshot_bytes(b->chat)),
            BYTES(resident_bytes()));
    return GLA_OK;
}

static int chat_go(Chat *c) { /* by -1: /undo, 1: /redo */
    Branch *b = c->b;
    const int64_t before = gla_state_evaluated(b->s);
    wait_read("reading again", b->s, 0);
    int undone, code = gla_chat_go(b->chat, &c->job->sampler, c->by, c->err);
    wait_end();
    if (code) return code;
    const int turns = gla_chat_turns(b->chat, &undone);
    note(c->o, "[%s, %d undone; %s read again]\n", N_OF(turns, "turn"), undone,
         N_OF(gla_state_evaluated(b->s) - before, "token"));
    return GLA_OK;
}

static int chat_retry(Chat *c) { return chat_turn(c, NULL); }

static int chat_file(Chat *c) { /* by 1: /save, 0: /load */
    Branch *b = c->b;
    GlaSampler *p = &c->job->sampler;
    const char *path = c->rest;
    const int save = c->by;
    int code;
    if (!*path) return fail(c->err, GLA_INPUT, "/%s needs a file name", save ? "save" : "load");
    const char *used = save ? in_use(c->o, path) : NULL;
    if (used) return fail(c->err, GLA_INPUT, "%s is in use here; a session would replace it", used);
    if (save) catch_interrupt(HOLD);
    wait_begin(save ? "saving the session" : "loading the session", NULL, NULL, 0);
    if (save) code = gla_chat_save(b->chat, p, path, c->err);
    else code = gla_chat_load(b->chat, p, path, c->err);
    wait_end();
    if (code) return code;
    if (!save) b->loaded = 1;
    note(c->o, "[%s, %s %s %s]\n", N_OF(gla_state_pos(b->s), "token"),
         N_OF(gla_chat_turns(b->chat, NULL), "turn"), save ? "saved to" : "loaded from", path);
    return GLA_OK;
}

static int chat_fork(Chat *c) {
    const int n = atoi(c->rest);
    if (*c->rest && (n < 1 || n > c->n_branches))
        return fail(c->err, GLA_INPUT, "there are the branches 1 to %d", c->n_branches);
    if (!*c->rest) {
        Branch *copy = &c->branch[c->n_branches];
        if (c->n_branches == MAX_BRANCHES)
            return fail(c->err, GLA_INPUT, "%d branches are the limit", MAX_BRANCHES);
        int code = gla_chat_clone(&copy->chat, &copy->s, c->b->chat, c->err);
        if (code) return code;
        c->n_branches++;
    }
    c->b = &c->branch[*c->rest ? n - 1 : c->n_branches - 1];
    note(c->o, "[branch %d of %d, %s]\n", (int)(c->b - c->branch) + 1, c->n_branches,
         N_OF(gla_chat_turns(c->b->chat, NULL), "turn"));
    return GLA_OK;
}

/* the old conversation goes; /save or /fork keeps it */
static int chat_anew(Chat *c, const char *system) {
    Branch *b = c->b;
    const GlaChatSettings how = chat_settings(c->o, system);
    GlaChat *fresh = NULL;
    gla_state_reset(b->s);
    int code = gla_chat_new(&fresh, b->s, &how, c->err);
    if (code) return code;
    gla_chat_free(b->chat);
    *b = (Branch){.chat = fresh, .s = b->s};
    note(c->o, "[a new conversation]\n");
    return GLA_OK;
}
static int chat_new(Chat *c) { return chat_anew(c, c->b->chat->system); }
static int chat_system(Chat *c) {
    const char *system = c->b->chat->system;
    if (*c->rest) return chat_anew(c, c->rest);
    if (c->b->loaded)
        fprintf(stderr, "[the conversation goes on with the system prompt of its session; "
                        "/system TEXT begins anew with another]\n");
    else if (system) {
        fputs("[the system prompt: ", stderr);
        write_text(stderr, system, strlen(system));
        fputs("]\n", stderr);
    } else fprintf(stderr, "[no system prompt; /system TEXT begins anew with one]\n");
    return GLA_OK;
}

static int chat_think(Chat *c) {
    const int on = !strcmp(c->rest, "on");
    if (!gla_chat_may_think(c->b->chat))
        return fail(c->err, GLA_INPUT, "this model has no way to think");
    if (!on && strcmp(c->rest, "off"))
        return fail(c->err, GLA_INPUT, "/think on or /think off");
    gla_chat_think(c->b->chat, on);
    return GLA_OK;
}
static int chat_set(Chat *c) {
    return fail(c->err, GLA_INPUT, "no command /set is here: /system TEXT sets the system prompt, "
                "/think on|off thoughts, options of the command line the rest");
}
static int chat_help(Chat *c);
static int chat_quit(Chat *c) { return (void)c, 1; }

/* help NULL: as other programs call it */
static const struct { const char *name, *arg, *help; int (*run)(Chat *); int by; } commands[] = {
    {"undo", NULL, "take a turn back", chat_go, -1},
    {"redo", NULL, "bring it back", chat_go, 1},
    {"retry", NULL, "another answer to the last message", chat_retry, 0},
    {"save", "FILE", "the conversation as a session", chat_file, 1},
    {"load", "FILE", "go on with one", chat_file, 0},
    {"fork", "[N]", "go on in a copy; with N, back to branch N", chat_fork, 0},
    {"system", "[TEXT]", "show the system prompt; with TEXT, begin anew with this one", chat_system, 0},
    {"new", NULL, "begin anew with the same system prompt", chat_new, 0},
    {"think", "on|off", "think before answering", chat_think, 0},
    {"forget", NULL, "drop the oldest turns to make room", chat_forget, 0},
    {"stats", NULL, "what every turn cost", chat_stats, 0},
    {"help", NULL, "this list", chat_help, 0},
    {"quit", NULL, "or Ctrl-D", chat_quit, 0},
    {"exit", NULL, NULL, chat_quit, 0},
    {"bye", NULL, NULL, chat_quit, 0},
    {"clear", NULL, NULL, chat_new, 0},
    {"regen", NULL, NULL, chat_retry, 0},
    {"set", NULL, NULL, chat_set, 0},
    {"?", NULL, NULL, chat_help, 0},
};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

static int chat_help(Chat *c) {
    (void)c;
    for (int i = 0; i < N_COMMANDS; i++) {
        char left[32];
        if (!commands[i].help) continue;
        snprintf(left, sizeof left, "%s %s", commands[i].name,
                 commands[i].arg ? commands[i].arg : "");
        fprintf(stderr, "/%-16s %s\n", left, commands[i].help);
    }
    fprintf(stderr, "Several lines: end one with \\, or Alt-Enter, or paste.\n"
                    "// begins a message with /. Ctrl-R searches, Tab completes.\n"
                    "Ctrl-C stops an answer or gives up a line.\n");
    return GLA_OK;
}

/* Tab. Names that a terminal could not show are left out, and those that begin with a dot unless it
 * is typed. */
typedef struct { Text *list; const char *folder, *begin; } Files;
static int suggest_file(void *user, const Entry *e) {
    const Files *f = user;
    const char *name = e->name;
    const size_t n = strlen(f->begin);
    for (const char *c = name; *c; c++) if ((unsigned char)*c < 32 || *c == 127) return 0;
    if (strncmp(name, f->begin, n) || (*name == '.' && !n)) return 0;
    if (!strcmp(name, ".") || !strcmp(name, "..")) return 0;
    text_puts(f->list, f->folder);
    text_puts(f->list, name);
    text_puts(f->list, e->is_folder ? "/\n" : "\n");
    return 0;
}
static void suggest_files(const char *typed, Text *list) {
    char folder[PATH_LEN];
    const char *begin = base_name(typed);
    snprintf(folder, sizeof folder, "%.*s", (int)(begin - typed), typed);
    each_entry(*folder ? folder : ".", suggest_file, &(Files){list, folder, begin});
}
static size_t suggest(const char *text, size_t n, Text *list) {
    char typed[PATH_LEN];
    if (!n || n >= sizeof typed || *text != '/' || memchr(text, '\n', n)) return NO_WORD;
    snprintf(typed, sizeof typed, "%.*s", (int)n, text);
    const size_t name = strcspn(typed + 1, " "), from = 1 + name + strspn(typed + 1 + name, " ");
    for (int i = 0; i < N_COMMANDS; i++) {
        const char *const arg = commands[i].arg;
        const int whole = strlen(commands[i].name) == name;
        if (!commands[i].help || strncmp(commands[i].name, typed + 1, name)) continue;
        if (n == 1 + name)
            text_printf(list, "/%s%s\n", commands[i].name, arg && *arg != '[' ? " " : "");
        else if (whole && arg && !strcmp(arg, "FILE")) suggest_files(typed + from, list);
    }
    return n == 1 + name ? 0 : from;
}

/* A message that was not said. The editor shows it again, unless it would hide what was told
 * about it. */
static void chat_keep(Chat *c, int stopped) {
    Text *said = &c->editor.text;
    const int is_long = edit_is_long(said);
    note(c->o, "[%s%s]\n", stopped ? "stopped: " : "",
         is_long ? "your message is long: Up brings it back to be edited"
         : "your message is back to be edited, Ctrl-C drops it");
    if (is_long) said->n = 0;
}

static int chat_command(Chat *c, const char *line) { /* that begins with / */
    const size_t n = strcspn(++line, " \t\r\n");
    char end[80], typed[WORD_LEN + 1];
    Near near = {.what = typed};
    c->line.n = 0;
    text_puts(&c->line, line + n + strspn(line + n, " \t\r\n"));
    if (c->line.bad) return fail(c->err, GLA_MEMORY, "no memory for a command");
    for (char *s = c->line.s; c->line.n && strchr(" \t\r\n", s[c->line.n - 1]);) s[--c->line.n] = 0;
    c->rest = c->line.s;
    if (c->interactive) forget_ctrl_c();
    snprintf(typed, sizeof typed, "%.*s", (int)n, line);
    for (int i = 0; i < N_COMMANDS; i++) {
        c->by = commands[i].by;
        if (!strncmp(commands[i].name, line, n) && !commands[i].name[n]) return commands[i].run(c);
        if (commands[i].help) near_word(&near, commands[i].name, WORD_LEN, NULL);
    }
    return fail(c->err, GLA_INPUT, "no command /%s%s /help lists them, // begins a message with /",
                typed, *meant(end, &near, "/") ? end : ";");
}

/* Messages and commands, until the input or somebody ends it. A command that fails ends nothing,
 * nor does a message on a terminal, as long as there is somewhere to write. In a script one that
 * cannot be said ends it: what follows builds on it. */
static int chat_loop(Chat *c) {
    Text *said = &c->editor.text;
    int code = GLA_OK, end = 0;
    while (!end && !interrupted && !code) {
        if (c->interactive ? !edit(&c->editor) : !read_message(said, stdin) || interrupted) break;
        if (said->bad || said->n > TEXT_MAX)
            return fail(c->err, GLA_INPUT, "a message of more than %d MB", TEXT_MAX >> 20);
        if (!said->s || strspn(said->s, " \t\r\n") >= said->n) continue;
        const int command = said->s[0] == '/' && said->s[1] != '/', skip = said->s[0] == '/';
        if (command) code = chat_command(c, said->s);
        else code = chat_turn(c, &(Text){.s = said->s + skip, .n = said->n - (size_t)skip});
        const int kept = !command && c->interactive && code && !c->bad; /* not said */
        const int stopped = code > 0;
        end = command && code == 1;
        if (stopped) code = GLA_OK;
        if (code && (command || c->interactive) && !c->bad) {
            complain(c->err);
            c->failed |= !c->interactive;
            code = GLA_OK;
        }
        if (c->interactive) forget_ctrl_c(); /* it has stopped what was going on */
        if (kept && !interrupted) chat_keep(c, stopped);
        else said->n = 0;
    }
    return code;
}

static void print_template(const Options *o, const GlaModel *m) { /* how messages are written */
    int known;
    char err[GLA_ERR];
    const char *name = gla_template(m, &known, err);
    const char *what = !name ? "" : strcmp(name, "plain") ? name
        : "plain text, \"User: ... Assistant: ...\"";
    if (!name) complain(err);
    else if (known == 1) note(o, "chat template %s\n", name);
    else note(o, "%s: messages are written as %s\n",
              known ? "the chat template of this file is not known here"
              : "the file has no chat template", what);
}

/* How the turns are written, and what was asked for in vain. */
static void print_greeting(const Chat *c) {
    int in_vain = 0;
    print_state_size(c->job);
    print_template(c->o, c->job->m);
    for (int i = O_THINK; i <= O_HIDE && !gla_chat_may_think(c->b->chat); i++)
        if (given(c->o, i))
            note(c->o, "%s--%s", in_vain++ ? ", "
                 : "this model has no way to think; without effect: ", options[i].name);
    if (in_vain) note(c->o, "\n");
    if (c->interactive) note(c->o, "/help lists the commands\n");
}

/* A conversation, with what was said before: in messages, of which the last one is said below, or
 * in a session. */
static void chat_open(Chat *c, Messages *told) {
    const Options *o = c->o;
    Job *job = c->job;
    GlaChatSettings how = chat_settings(o, text_of(o, O_SYSTEM));
    if (given(o, O_MESSAGES)) *told = get_messages(text_of(o, O_MESSAGES));
    how.messages = told->messages;
    how.n_messages = told->n - (told->n > 0);
    must(gla_chat_new(&c->b->chat, job->s, &how, c->err), c->err);
    if (given(o, O_LOAD)) {
        must(gla_chat_load(c->b->chat, &job->sampler, text_of(o, O_LOAD), c->err), c->err);
        c->b->loaded = 1;
        if (given(o, O_SYSTEM))
            note(o, "the session goes on with its own system prompt; "
                    "/new begins one with that of -y\n");
    }
    if (given(o, O_SEED)) job->sampler.rng = (uint64_t)whole_of(o, O_SEED);
}

static int chat_once(Chat *c, const Messages *told) {
    const GlaMessage *last = told->n ? &told->messages[told->n - 1] : NULL;
    Text t = {0};
    if (last) text_put(&t, last->text, last->n);
    else t = get_text(c->o);
    const int failed = chat_turn(c, &t) < 0;
    text_free(&t);
    return failed;
}

static int mode_chat(Job *job) {
    const Options *o = job->o;
    Chat c = {.job = job, .o = o, .err = job->err, .n_branches = 1};
    Messages told = {0};
    c.b = c.branch;
    c.b->s = job->s;
    loose_ends.terminal = &c.editor.terminal;
    c.editor.suggest = suggest;
    c.interactive = !is_once(o) && is_terminal(stdin) && is_terminal(stderr);
    chat_open(&c, &told);
    print_greeting(&c);
    if (c.interactive) catch_interrupt(COUNT);
    int code = is_once(o) ? chat_once(&c, &told) : chat_loop(&c);
    terminal_normal(&c.editor.terminal);
    loose_ends.terminal = NULL;
    const int cut_short = by_signal();
    /* also after an error: what was said until then is not lost */
    if (given(o, O_SAVE)) {
        char why[GLA_ERR] = "";
        catch_interrupt(HOLD);
        int saved = gla_chat_save(c.b->chat, &job->sampler, text_of(o, O_SAVE), code ? why : c.err);
        if (code && saved) complain(why);
        if (!code) code = saved;
    }
    if (c.n_cost && !code && !o->quiet) {
        fprintf(stderr, "%s | seed %llu\n", N_OF((int64_t)c.n_cost, "answer"),
                (unsigned long long)job->seed);
        print_evaluated(&c);
        fputs("\n", stderr);
    }
    for (int i = 0; i < c.n_branches; i++) {
        gla_chat_free(c.branch[i].chat);
        if (i) gla_state_free(c.branch[i].s); /* the first one is the caller's */
    }
    edit_free(&c.editor);
    free_messages(&told);
    text_free(&c.line);
    gla_free(c.cost);
    if (code) complain(c.err);
    return code ? 1 : cut_short ? cut_short : c.failed;
}

/* -- logits, perplexity: every position's logits, a few rows at a time -- */

typedef void (*RowFn)(void *user, const float *logits, int64_t i);
static void each_logits(const Job *job, const int32_t *ids, int64_t n, RowFn row, void *user) {
    GlaState *s = job->s;
    char *err = job->err;
    const int64_t vocab = s->m->config.vocab_size, row_bytes = vocab * (int64_t)sizeof(float);
    const int64_t step = max64(1, min64(s->batch, (64 << 20) / row_bytes));
    float *logits = malloc((size_t)(step * row_bytes));
    must(check_room(s, n, err), err); /* the whole text, not the first run that does not fit */
    if (!logits) give_up("no memory for %lld rows of logits", (long long)step);
    s->team.stop = &interrupted; /* the state is of no use to anybody then */
    for (int64_t i = 0; i < n && !interrupted; i += step) {
        int64_t now = min64(step, n - i);
        const int code = gla_eval(s, ids + i, now, logits, now, err);
        must(code, err);
        for (int64_t j = 0; j < now && !code; j++) row(user, logits + j * vocab, i + j);
    }
    s->team.stop = NULL;
    free(logits);
    if (!interrupted) return;
    end_program(by_signal(), "interrupted at token %lld of %lld", (long long)gla_state_pos(s),
                (long long)n);
}

typedef struct { FILE *f; size_t vocab; } LogitsOut;
static void write_row(void *user, const float *logits, int64_t i) {
    LogitsOut *out = user;
    (void)i;
    /* failures are seen when the file is committed */
    fwrite(logits, sizeof(float), out->vocab, out->f);
}

static int mode_logits(Job *job) {
    const char *path = text_of(job->o, O_OUT);
    const Ids *ids = &job->ids;
    Temporary temporary = "";
    Ids all = {NULL, 0, 0}; /* for the session: what the loaded one holds, and these */
    LogitsOut out = {NULL, (size_t)job->m->config.vocab_size};
    if (given(job->o, O_LOAD)) load_session(job, NULL, &all);
    must(ids_add(&all, ids->id, ids->n, job->err), job->err);
    unfinished = temporary;
    catch_interrupt(END_AT_SECOND);
    if (!(out.f = open_temporary(temporary, path, job->err))) give_up("%s", job->err);
    wait_read("reading", job->s, ids->n);
    each_logits(job, ids->id, ids->n, write_row, &out);
    wait_end();
    unfinished = NULL;
    must(commit_file(out.f, temporary, path, job->err), job->err);
    save_session(job, NULL, &all);
    ids_free(&all);
    return 0;
}

/* -log softmax(logits)[next id], natural logarithm. Row i is that of window[i]; what was scored
 * before is not scored again. */
typedef struct { const int32_t *window; int64_t n, scored, vocab; double nll; } Loss;
static void add_loss(void *user, const float *logits, int64_t i) {
    Loss *l = user;
    if (i + 1 >= l->n || i + 1 < l->scored) return;
    double top, sum = log_sum(logits, l->vocab, &top);
    l->nll += top + sum - logits[l->window[i + 1]];
}

/* How a text is cut for its perplexity. Without softmax layers, or where their context holds the
 * text, it is one window, and a token is predicted from all before it. Else windows of that
 * context, each half of one behind the last: a token is predicted once, from half a context at
 * least. Every window begins as the text does, with the begin token if there is one. */
static int mode_perplexity(Job *job) {
    const Ids *ids = &job->ids;
    const Tokenizer *v = job->m->vocab;
    const int64_t n = ids->n, limit = job->m->config.limit, head = n && v->kind.add_bos
        && ids->id[0] == v->kind.bos;
    int64_t window = gla_state_ctx(job->s) ? min64(n, gla_state_ctx(job->s)) : n, at = 0, end = 0;
    Loss loss = {.vocab = job->m->config.vocab_size};
    Facts f = {.json = given(job->o, O_JSON)};
    if (n < 2) give_up("perplexity needs a text of at least two tokens (-f FILE)");
    if (limit) window = min64(window, limit);
    if (window < min64(n, 8)) give_up("perplexity needs a context of at least 8 (-c)");
    const int64_t stride = window < n ? (window - head) / 2 : window;
    int32_t *read = malloc((size_t)window * sizeof *read);
    if (!read) give_up("no memory for the token ids");
    if (window == n) note(job->o, "the text is one window of %lld tokens\n", (long long)n);
    else note(job->o, "windows of %lld tokens, each %lld behind the last: "
                      "no token is predicted from fewer than %lld before it\n",
              (long long)window, (long long)stride, (long long)(window - stride));
    catch_interrupt(END_AT_SECOND);
    wait_read("reading", job->s, n + (n - window + stride - 1) / stride * (window - stride));
    for (; end < n; at += stride) {
        /* more: the begin token, in front of what is from the text */
        const int64_t from = at ? at + head : 0, more = at ? head : 0;
        loss.window = read;
        loss.scored = end ? end - from + more : 1;
        loss.n = more + min64(window - more, n - from);
        end = from + loss.n - more;
        if (more) read[0] = ids->id[0];
        memcpy(read + more, ids->id + from, (size_t)(loss.n - more) * sizeof *read);
        gla_state_reset(job->s);
        each_logits(job, read, loss.n, add_loss, &loss);
    }
    wait_end();
    free(read);
    const double mean = loss.nll / (double)(n - 1);
    if (!isfinite(mean))
        give_up("what the model computes is not a number; its file is damaged, "
                "or was converted wrongly");
    fact(&f, "tokens", "%lld", (long long)n - 1);
    fact(&f, "nll", "%.6f", mean);
    fact(&f, "perplexity", "%.4f", exp(mean));
    fact(&f, "window", "%lld", (long long)window);
    fact(&f, "stride", "%lld", (long long)stride);
    print_facts(&f);
    return 0;
}

/* -- tokenize, info, bench -- */

/* as a chat begins with these */
static void get_message_ids(const Job *job, Ids *ids) {
    Messages told = get_messages(text_of(job->o, O_MESSAGES));
    for (int64_t n = 0, again = 0; again < 2; again++) { /* first, how many they are */
        n = gla_render(job->m, told.messages, told.n, think_how(job->o), ids->id, n, job->err);
        must((int)min64(n, 0), job->err);
        ids->id = ids->id ? ids->id : gla_alloc((size_t)n * sizeof *ids->id);
        if (!ids->id) give_up("no memory for the token ids");
        ids->n = n;
    }
    print_template(job->o, job->m);
    free_messages(&told);
}

/* What the ids say, a long token in pieces. */
static Text text_of_ids(const Ids *ids, const GlaModel *m) {
    Text t = {0};
    for (int64_t i = 0; i < ids->n; i++) {
        char piece[PIECE];
        const int flags = GLA_SPECIAL | (i ? 0 : GLA_FIRST);
        for (size_t from = 0, n = 1; from < n; from += PIECE) {
            n = piece_part(m->vocab, ids->id[i], flags, from, piece, PIECE);
            if (n > from) text_put(&t, piece, n - from < PIECE ? n - from : PIECE);
        }
    }
    if (t.bad) give_up("no memory for the text");
    return t;
}

static int mode_tokenize(Job *job) {
    const Options *o = job->o;
    const GlaModel *m = job->m;
    Text t = {0};
    Ids ids = {NULL, 0, 0};
    if (given(o, O_IDS)) get_ids(&ids, text_of(o, O_IDS), m);
    else if (!given(o, O_MESSAGES)) t = get_text(o);
    must(need_vocabulary(m, job->err), job->err);
    if (given(o, O_IDS)) {
        t = text_of_ids(&ids, m);
        if (t.n) write_text(stdout, t.s, t.n);
    } else {
        if (given(o, O_MESSAGES)) get_message_ids(job, &ids);
        else must(ids_encode(&ids, m, t.s, t.n, GLA_BOS | GLA_SPECIAL, job->err), job->err);
        for (int64_t i = 0; i < ids.n; i++) printf("%s%d", i ? " " : "", ids.id[i]);
    }
    putchar('\n');
    text_free(&t);
    ids_free(&ids);
    return 0;
}

static int kv_type(const Options *o) { /* the words are in the order of GLA_KV_F32 ... */
    return given(o, O_KV) ? GLA_KV_F32 + (int)whole_of(o, O_KV) : GLA_KV_DEFAULT;
}

static int mode_info(Job *job) {
    const GlaModel *m = job->m;
    const GlaInfo *i = &job->info;
    Facts f = {.json = given(job->o, O_JSON)};
    Text list = {0};
    int counts[N_TYPES] = {0};
    for (uint64_t t = 0; t < m->file.n_tensors; t++) counts[m->file.tensors[t].type]++;
    text_puts(&list, "");
    for (int t = 0; t < N_TYPES; t++)
        if (counts[t])
            text_printf(&list, "%s%s x %d", list.n ? ", " : "", types[t].name, counts[t]);
    fact_text(&f, "architecture", i->architecture);
    if (*i->name) fact_text(&f, "name", i->name);
    fact(&f, "parameters", "%llu", (unsigned long long)i->parameters);
    fact(&f, "file_bytes", "%llu", (unsigned long long)i->file_bytes);
    fact(&f, "layers", "%d", i->n_layers);
    fact_text(&f, "mixers", i->layer_kinds);
    fact(&f, "dim", "%d", i->dim);
    fact(&f, "vocabulary", "%d", i->vocab_size);
    fact(&f, "state_bytes", "%zu", i->state_bytes);
    fact(&f, "kv_bytes_per_token", "%zu", i->kv_bytes_per_token[kv_type(job->o)]);
    fact(&f, "context", "%d", i->seq_len);
    fact_text(&f, "tensor_types", list.bad ? "" : list.s);
    text_free(&list);
    print_facts(&f);
    return 0;
}

/* The first n positions, as if a text had been read: noise, since memory that nobody wrote is one
 * page of zeros, in the nearest cache. */
static void fill_cache(GlaState *s, int n) {
    uint64_t rng = 2;
    for (int i = 0; i < s->m->config.n_layers && n; i++) {
        const Layer *y = &s->m->layers[i];
        if (!y->mem.kv[0]) continue;
        Cache c = cache_shape(y, s->kv_type);
        c.mem = kv_of(s, y);
        size_t nk = (size_t)c.heads * (size_t)c.dk, nv = (size_t)c.heads * (size_t)c.dv;
        float *x = malloc((nk + nv + 1) * sizeof *x);
        double *sums = calloc((size_t)c.sums + 1, sizeof *sums);
        if (!x || !sums) give_up("no memory");
        for (size_t j = 0; j < nk + nv; j++)
            x[j] = (float)((double)(next_random(&rng) >> 40) * 0x1p-24 - 0.5);
        for (int pos = 0; pos < n; pos++) cache_append(&c, pos, x, x + nk, sums);
        free(x);
        free(sums);
    }
    s->pos = n;
}

/* The first run of tokens is cold: it maps every page of the weights and of the memory to work in.
 * Counted from opening the file it is first_token_s; the state is then emptied, and the other
 * figures are those of a program that has been running. */
static int mode_bench(Job *job) {
    const Options *o = job->o;
    const GlaInfo *i = &job->info;
    GlaState *s = job->s;
    char *err = job->err;
    Facts f = {.json = given(o, O_JSON)};
    const int n = (int)whole_of(o, O_PLEN), steps = (int)min64(whole_of(o, O_STEPS), 1 << 24);
    int32_t *ids = malloc(((size_t)n + 1) * sizeof *ids);
    uint64_t rng = 1;
    if (!ids) give_up("no memory");
    for (int j = 0; j < n; j++) ids[j] = (int32_t)(next_random(&rng) % (uint64_t)i->vocab_size);
    must(gla_eval(s, ids, min64(n, s->batch), NULL, 0, err), err);
    double first_s = now_s() - job->begin;
    gla_state_reset(s);
    fill_cache(s, (int)whole_of(o, O_DEPTH));
    double t0 = now_s();
    must(gla_eval(s, ids, n, NULL, 0, err), err);
    double t1 = now_s();
    for (int j = 0; j < steps; j++) { /* the ids do not matter to the speed */
        ids[0] = (int32_t)(next_random(&rng) % (uint64_t)i->vocab_size);
        must(gla_eval(s, ids, 1, NULL, 0, err), err);
    }
    const double prefill = per_second(n, t1 - t0), decode = per_second(steps, now_s() - t1);
    free(ids);
    fact(&f, "load_s", "%.4f", job->load_s);
    fact(&f, "first_token_s", "%.4f", first_s);
    fact(&f, "prefill_tok_s", "%.2f", prefill);
    fact(&f, "decode_tok_s", "%.2f", decode);
    fact(&f, "decode_GB_s", "%.3f", decode * (double)i->token_bytes / 1e9);
    fact(&f, "prefill_Gop_s", "%.2f", prefill * 2 * (double)i->run_weights / 1e9);
    fact(&f, "state_bytes", "%zu", i->state_bytes);
    fact(&f, "kv_bytes_per_token", "%zu", i->kv_bytes_per_token[s->kv_type]);
    fact(&f, "rss_bytes", "%llu", (unsigned long long)resident_bytes());
    fact(&f, "threads", "%d", s->team.n_threads);
    fact_text(&f, "kernel", i->kernel);
    fact_text(&f, "kv", kv_names[s->kv_type]);
    fact(&f, "fast", "%d", s->team.fast);
    print_facts(&f);
    return 0;
}

/* -- pages: from the rows of options and commands -- */

#define EACH_OPTION(p) /* that is shown */ \
    for (const Option *p = options; p < options + N_OPTIONS; p++) if (p->help)

/* for troff: a minus is none of its hyphens, a backslash none of its commands */
static void put_man(const char *s) {
    for (; *s; s++) {
        if (*s == '-' || *s == '\\') putchar('\\');
        putchar(*s == '\\' ? 'e' : *s);
    }
}
static void put_man_row(const char *arg, const char *help) { /* behind its name */
    printf("\\fR");
    if (arg) printf(" \\fI%s\\fR", arg);
    printf("\n");
    put_man(help);
    printf("\n");
}

/* The two lists of the man page; the rest of it is written by hand. */
static void print_man(void) {
    Text help = {0};
    printf(".SH CHAT COMMANDS\n");
    for (int i = 0; i < N_COMMANDS; i++) {
        if (!commands[i].help) continue;
        printf(".TP\n\\fB/%s", commands[i].name);
        put_man_row(commands[i].arg, commands[i].help);
    }
    printf(".SH OPTIONS\n"
           "An option that the mode has no use for is an error. Those that change no result "
           "(\\fB\\-j\\fR, \\fB\\-c\\fR, \\fB\\-b\\fR) and \\fB\\-z\\fR, \\fB\\-\\-pre\\fR, "
           "\\fB\\-\\-kv\\fR, \\fB\\-\\-fast\\fR, \\fB\\-\\-quiet\\fR go with every mode.\n");
    EACH_OPTION(p) {
        printf(".TP\n");
        if (p->letter) printf("\\fB\\-%c\\fR, ", p->letter);
        printf("\\fB\\-\\-");
        put_man(p->name);
        put_man_row(p->value, option_help(&help, p, 1));
    }
    text_free(&help);
}

static void put_names(const char *before, const Option *p) {
    if (p->letter) printf("%s-%c | --%s", before, p->letter, p->name);
    else printf("%s--%s", before, p->name);
}

static void print_bash(void) {
    const char *between = "        ";
    printf("# bash completion for gla, printed by gla --completion bash\n"
           "_gla() {\n"
           "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} "
           "words= kind=-f\n"
           "    case $prev in\n");
    EACH_OPTION(p) {
        if (!p->words && !(p->file & FOLDER)) continue;
        put_names("        ", p);
        if (p->words) printf(") words='%s' ;;\n", p->words);
        else printf(") kind=-d ;;\n");
    }
    EACH_OPTION(p) {
        if (!p->value || p->words || p->file) continue;
        put_names(between, p);
        between = " | ";
    }
    printf(") return ;; # texts and numbers\n"
           "        *) [[ $cur == -* ]] && words='");
    EACH_OPTION(p) printf(" --%s", p->name);
    printf("' ;;\n"
           "    esac\n"
           "    if [[ $words ]]; then mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$cur\")\n"
           "    else mapfile -t COMPREPLY < <(compgen $kind -- \"$cur\"); fi\n"
           "}\n"
           "complete -o filenames -F _gla gla\n");
}

static void print_zsh(void) {
    Text help = {0};
    printf("#compdef gla\n# printed by gla --completion zsh\n_arguments -s -S");
    EACH_OPTION(p) {
        const char *const many = p->kind == IS_TEXTS ? "*" : "", *const is = p->value ? "=" : "";
        if (p->letter)
            printf(" \\\n    '(-%c --%s)'{-%c%s,--%s%s}'[", p->letter, p->name, p->letter,
                   p->value ? "+" : "", p->name, is);
        else printf(" \\\n    '%s--%s%s[", many, p->name, is);
        for (const char *s = option_help(&help, p, 0); *s; s++)
            printf(*s == '\'' ? "'\\''" : strchr(":[]", *s) ? "\\%c" : "%c", *s);
        printf("]");
        if (p->value) printf(":%s:", p->value);
        if (p->words) printf("(%s)", p->words);
        else if (p->file) printf(p->file & FOLDER ? "_files -/" : "_files");
        else if (p->value) printf(" ");
        printf("'");
    }
    printf(" \\\n    '1:model:_files'\n");
    text_free(&help);
}

/* What is printed without a model; 0: nothing was asked for. */
static int print_page(const Options *o) {
    const Kernels *k = NULL;
    char err[GLA_ERR];
    if (given(o, O_HELP)) {
        printf("usage: %s MODEL [options]      MODEL: a GGUF file\n\n", invoked);
        print_options(&syntax, 30, 100);
        printf("\nThe result goes to standard output, everything else to standard error.\nExit: "
               "0 done, 1 failed, 2 misused, 128 + the signal that ended it (Ctrl-C: 130).\n");
    } else if (given(o, O_MAN)) print_man();
    else if (given(o, O_COMPLETION)) whole_of(o, O_COMPLETION) ? print_zsh() : print_bash();
    else if (given(o, O_VERSION)) {
        must(choose_kernels(&k, err), err);
        printf("gla.c %s, kernels %s, %s\n", GLA_VERSION, k->name,
               ALL_THREADS > 1 ? "OpenMP" : "one thread");
    } else return 0;
    return 1;
}

/* -- main -- */

/* A model without a vocabulary of its own gets ./tokenizer.bin, if there is one of exactly its
 * size. */
static void use_default_vocabulary(GlaModel *m) {
    Mapping map;
    Gguf g = {0};
    GgufArray tokens = {0, 0, NULL};
    if (map_file(&map, DEFAULT_VOCABULARY, NULL)) return;
    g.map = map;
    int fits = !gguf_read(&g, NULL) && gguf_array(&g, "tokenizer.ggml.tokens", &tokens)
        && tokens.n == (uint64_t)m->config.vocab_size;
    gguf_close(&g);
    if (fits) gla_open_tokenizer(m, DEFAULT_VOCABULARY, NULL);
}

static int (*const modes[])(Job *) = {
    /* in the order of MODE_WORDS */
    mode_generate, mode_chat, mode_logits, mode_perplexity, mode_tokenize, mode_bench, mode_info};

/* The ids that a mode reads as a whole, and the state, with room for them where they are known. */
static void prepare_mode(Job *job) {
    const Options *o = job->o;
    const GlaModel *m = job->m;
    const int64_t depth = whole_of(o, O_DEPTH);
    int64_t ctx = whole_of(o, O_CTX);
    if (o->mode == LOGITS) {
        get_ids(&job->ids, text_of(o, O_IDS), m);
        if (!job->ids.n)
            give_up("%s: holds no ids", text_of(o, O_IDS));
    }
    if (o->mode == PERPLEXITY) {
        Text t = get_text(o);
        must(ids_encode(&job->ids, m, t.s, t.n, GLA_BOS | GLA_SPECIAL, job->err), job->err);
        text_free(&t);
    }
    /* these know how much they will read, and read it in one piece */
    if (!ctx && o->mode & (BENCH | LOGITS)) {
        ctx = o->mode == BENCH ? depth + whole_of(o, O_PLEN) + whole_of(o, O_STEPS) : job->ids.n;
        if (given(o, O_LOAD) || ctx <= min64(4096, m->config.seq_len)) ctx = 0;
    }
    ctx = min64(ctx, INT_MAX);
    if (o->mode == BENCH && ctx && depth > ctx)
        give_up("a depth of %lld in a context of %lld", (long long)depth,
              (long long)ctx);
    const int source = o->mode & TALK ? draft_source(o) : GLA_DRAFT_OFF;
    const int64_t looks_back = ctx ? ctx : min64(4096, m->config.seq_len);
    const GlaSettings how = {(int)ctx, (int)whole_of(o, O_BATCH), (int)whole_of(o, O_THREADS),
                             kv_type(o), given(o, O_FAST),
                             source == GLA_DRAFT_MTP ? (int)looks_back : 0, source ? 8 : 0};
    must(gla_state_new(&job->s, m, &how, job->err), job->err);
    if (given(o, O_SAVE)) must(can_save(text_of(o, O_SAVE), job->err), job->err);
}

static int run_mode(Job *job) {
    const Options *o = job->o;
    GlaModel *m = job->m;
    const int last = m->config.vocab_size - 1;
    job->seed = given(o, O_SEED) ? (uint64_t)whole_of(o, O_SEED)
        : (uint64_t)time(NULL) * 1000003u + (uint64_t)(now_s() * 1e6);
    gla_info(m, &job->info);
    gla_sampler_init(&job->sampler, m, job->seed);
    fill_fields(&job->sampler, o);
    set_biases(&job->sampler, o);
    for (int i = 0; i < job->sampler.n_bias; i++)
        if (job->sampler.bias[i].id > last)
            misuse("--logit-bias: the model has tokens from 0 to %d, not %d", last,
                   job->sampler.bias[i].id);
    if (given(o, O_PRE)) must(gla_pre_tokenizer(m, text_of(o, O_PRE), job->err), job->err);
    if (given(o, O_TOK)) must(gla_open_tokenizer(m, text_of(o, O_TOK), job->err), job->err);
    else if (!gla_n_tokens(m) && !*m->no_text) use_default_vocabulary(m);
    if (!(o->mode & (INFO | TOKENIZE))) prepare_mode(job);
    const int status = modes[whole_of(o, O_MODE)](job);
    gla_state_free(job->s);
    ids_free(&job->ids);
    return status;
}

/* The model, and what is done with it. */
static int run_model(const Options *o) {
    char err[GLA_ERR];
    Job job = {.o = o, .err = err, .begin = now_s()};
    const char *model = text_of(o, O_MODEL);
    if (!is_there(model))
        give_up("%s: no such file; a model is a GGUF file on this computer", model);
    fail(err, GLA_IO, "%s: a file in use became shorter, or cannot be read any more", model);
    snprintf(loose_ends.sentence, sizeof loose_ends.sentence, "%s: %s\n", program_name(), err);
    on_lost_pages(on_missing_pages);
    must(gla_open(&job.m, model, err), err);
    job.load_s = now_s() - job.begin;
    const int status = run_mode(&job);
    gla_close(job.m);
    return status;
}

int main(int argc, char **argv) {
    Options o = {0};
    const char *idle;
    int status = 0;
    parse_options(&o, &syntax, argc, argv);
    check_strays(&o);
    text_free(&o.stray);
    o.quiet = given(&o, O_QUIET);
    waiting.watched = !o.quiet && is_terminal(stderr);
    spin_briefly(argv);
    failed_writes_only_fail();
    if (!print_page(&o)) {
        for (int i = 0; (idle = repeated(&o, IDLE_WORD, i)); i++)
            note(&o, "%s: %.*s is without effect: %s\n", program_name(), (int)strcspn(idle, "="),
                 idle, find_alias(&o, idle, 0)->value);
        check_options(&o);
        status = run_model(&o);
    }
    if (!status && (fflush(stdout) || ferror(stdout))) give_up("%s", output_error());
    return status;
}
#endif /* RUN_NO_MAIN */
#endif /* LANES */
#endif /* RUN_HEADER_ONLY */
