/* Does a text with drafts have every bit of the same text without? drafts [-q] MODEL ...
 *
 *   states   random ids, read with right and wrong drafts in front of them: logits of every
 *            position, and what a session would hold behind the last
 *   texts    gla_generate with drafts from the text itself, which are always read, against none:
 *            ids, text, what the listener sees of the state, sampler, session
 * Every type of keys and values, one and two threads, with and without fast. The controller is
 * tested by `make test` with times of its own (test.c). Ends with "N passed, M failed". */
#define RUN_NO_MAIN
#include "../run.c"
#include "ahead.h"

static int passed, failed, verbose;
static void check(int ok, const char *fmt, ...) PRINTF_LIKE(2, 3);
static void check(int ok, const char *fmt, ...) {
    va_list ap;
    if (ok) passed++;
    else failed++;
    if (ok) return;
    va_start(ap, fmt);
    fputs("FAILED: ", stdout), vprintf(fmt, ap), putchar('\n');
    va_end(ap);
}

/* A state with room for `draft` tokens ahead, and another without. */
static GlaState *state_of(const GlaModel *m, const GlaSettings *how, int draft) {
    char err[GLA_ERR] = "";
    GlaSettings h = *how;
    GlaState *s;
    h.draft = draft;
    if (gla_state_new(&s, m, &h, err)) printf("no state: %s\n", err), exit(1);
    s->pace.always = 1;
    return s;
}

enum { N = 150 };
static void test_states(const GlaModel *m, const char *name, const GlaSettings *how, int n) {
    char err[GLA_ERR] = "";
    const size_t vocab = (size_t)m->config.vocab_size;
    float *want = calloc((size_t)n * vocab, sizeof *want);
    int32_t ids[N];
    uint64_t seed = 11;
    for (int i = 0; i < n; i++) ids[i] = (int32_t)(next_random(&seed) % vocab);
    GlaState *plain = state_of(m, how, 0);
    check(!gla_eval(plain, ids, n, want, n, err), "%s: %s", name, err);
    for (int most = 1; most <= 13; most += 6) {
        GlaState *s = state_of(m, how, most);
        const int64_t at = read_drafting(s, ids, n, most, want, (uint64_t)most);
        check(at == n, "%s: other logits behind token %lld", name, (long long)at);
        check(hash_state(s) == hash_state(plain), "%s: another session", name);
        check(s->evaluated == plain->evaluated, "%s: %lld tokens were evaluated", name,
              (long long)s->evaluated);
        gla_state_free(s);
    }
    gla_state_free(plain);
    free(want);
}

/* What a listener hears and sees, as a hash value; after `end` tokens it ends the text, and every
 * seventh time it copies the state. */
typedef struct { GlaState *s; uint64_t sum; int64_t n, end; int looks; } Heard;
static int hear(void *user, int32_t id, const char *text, size_t n) {
    Heard *h = user;
    h->sum = hash_bytes(hash_bytes(h->sum, &id, sizeof id), text, n);
    h->sum = hash_bytes(h->sum, &h->s->pos, sizeof h->s->pos);
    h->sum = hash_bytes(h->sum, &h->s->evaluated, sizeof h->s->evaluated);
    const size_t logits = (size_t)h->s->m->config.vocab_size * sizeof(float);
    h->sum = hash_bytes(h->sum, gla_logits(h->s), logits);
    if (id >= 0 && ++h->n % 7 == 3 && h->looks) {
        const size_t bytes = gla_snapshot_bytes(h->s->m);
        void *snapshot = malloc(bytes);
        gla_snapshot(h->s, snapshot);
        h->sum = hash_bytes(h->sum, snapshot, bytes);
        free(snapshot);
    }
    return h->end && h->n >= h->end;
}

typedef struct { uint64_t heard, sampler, session; int64_t made; int done; } Outcome;
static Outcome outcome(GlaState *s, const GlaModel *m, const GlaSampler *setting,
                       const GlaGenerate *how, int64_t end, int looks) {
    char err[GLA_ERR] = "";
    Heard heard = {s, HASH_SEED, 0, end, looks};
    GlaGenerate g = *how;
    GlaSampler p = *setting;
    Outcome o = {0};
    int32_t ids[24];
    uint64_t seed = 3;
    gla_state_reset(s);
    s->evaluated = 0;
    for (int i = 0; i < 24; i++)
        ids[i] = (int32_t)(next_random(&seed) % (uint64_t)m->config.vocab_size);
    for (int i = 12; i < 24; i++) ids[i] = ids[i - 12];
    g.emit = hear, g.user = &heard;
    for (int part = 0; part < 2 && o.done >= 0; part++) { /* and it goes on from there */
        int64_t made = 0;
        o.done = gla_generate(s, &p, ids, part ? 3 : 24, &g, &made, err);
        o.made += made;
    }
    o.heard = o.done < 0 ? hash_bytes(heard.sum, err, strlen(err)) : heard.sum;
    o.sampler = hash_bytes(HASH_SEED, &p, sizeof p);
    o.session = hash_state(s);
    return o;
}
static void test_texts(const GlaModel *m, const char *name, const GlaSettings *how) {
    GlaState *plain = state_of(m, how, 0), *s = state_of(m, how, 8);
    for (int way = 0; way < 12; way++) {
        GlaSampler p;
        gla_sampler_init(&p, m, (uint64_t)(way % 3) + 1);
        p.temperature = way % 4 ? 0.4f * (float)(way % 4) : 0, p.top_p = 0.9f;
        if (way == 2) p.repeat_penalty = 1.2f, p.top_k = 5;
        GlaGenerate g = {.steps = way == 5 ? 1 : way == 8 ? 0 : 40, .ignore_end = way != 8,
                         .json = way == 9};
        const int64_t end = way == 8 ? 60 : way == 6 ? 9 : 0;
        const Outcome a = outcome(plain, m, &p, &g, end, way == 7);
        g.draft = GLA_DRAFT_LOOKUP;
        const Outcome b = outcome(s, m, &p, &g, end, way == 7);
        check(a.done == b.done && a.made == b.made, "%s, way %d: ends with %d behind %lld, not %d "
              "behind %lld", name, way, b.done, (long long)b.made, a.done, (long long)a.made);
        check(a.heard == b.heard, "%s, way %d: the listener hears something else", name, way);
        check(a.sampler == b.sampler, "%s, way %d: another sampler", name, way);
        check(a.session == b.session, "%s, way %d: another session", name, way);
    }
    int64_t proposed;
    const int64_t stayed = gla_state_drafted(s, &proposed);
    if (verbose)
        printf("%s: %lld of %lld drafts stayed\n", name, (long long)stayed, (long long)proposed);
    gla_state_free(plain), gla_state_free(s);
}

int main(int argc, char **argv) {
    char err[GLA_ERR], name[512];
    const int quick = argc > 1 && !strcmp(argv[1], "-q");
    verbose = !quick;
    for (int i = 1 + quick; i < argc; i++) {
        GlaModel *m;
        if (gla_open(&m, argv[i], err)) {
            check(0, "%s", err);
            continue;
        }
        for (int way = 0; way < (quick ? 2 : 8); way++) {
            const GlaSettings how = {.ctx = 170, .threads = 1 + way % 2, .fast = way / 2 % 2,
                                     .batch = way % 3 ? 0 : 40,
                                     .kv = way < 4 ? GLA_KV_F32 : way < 6 ? GLA_KV_F16 : GLA_KV_Q8_0};
            if (gla_state_bytes(m, &how) == 0) continue; /* its keys are kept as f32 only */
            snprintf(name, sizeof name, "%s, kv %d, fast %d, %d threads", base_name(argv[i]), how.kv,
                     how.fast, how.threads);
            test_states(m, name, &how, m->config.limit && m->config.limit < N ? m->config.limit : N);
            if (!*m->no_text) test_texts(m, name, &how);
        }
        gla_close(m);
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
