/* Does a text with drafts have every bit of the same text without?
 *
 *     drafts [-q] MODEL ...          -q: fewer kinds of states, no lines
 *     drafts -p PROMPTS N MODEL      texts of N tokens behind prompts of a file, see test_prompts
 *
 * The first tries random models:
 *   states   random ids, read with right and wrong drafts in front of them: logits of every
 *            position, and what a session would hold behind the last
 *   texts    gla_generate with drafts of every source, which are always read, against none: ids,
 *            text, what the listener sees of the state, sampler, session
 *   pace     what decides how many drafts are read, with times that are made up
 *   history  what looks up in the text against a plain search
 * Every type of keys and values, one and two threads, with and without fast. Ends with "N passed, M
 * failed". */
#define RUN_NO_MAIN
static int allocations;
#define GLA_CALLOC(n) (allocations++, calloc(1, n))
#define GLA_FREE(p) free(p)
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
    h.mtp = draft && m->mtp.layer ? 60 : 0; /* fewer than there are tokens: it begins anew */
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

typedef struct { uint64_t heard, sampler, session; int64_t made; int done, allocations; } Outcome;
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
    allocations = 0;
    for (int part = 0; part < 2 && o.done >= 0; part++) { /* and it goes on from there */
        int64_t made = 0;
        o.done = gla_generate(s, &p, ids, part ? 3 : 24, &g, &made, err);
        o.made += made;
    }
    o.allocations = allocations;
    o.heard = o.done < 0 ? hash_bytes(heard.sum, err, strlen(err)) : heard.sum;
    o.sampler = hash_bytes(HASH_SEED, &p, sizeof p);
    o.session = hash_state(s);
    return o;
}
static void test_texts(const GlaModel *m, const char *name, const GlaSettings *how, int source) {
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
        g.draft = source;
        const Outcome b = outcome(s, m, &p, &g, end, way == 7);
        check(a.done == b.done && a.made == b.made, "%s, way %d: ends with %d behind %lld, not %d "
              "behind %lld", name, way, b.done, (long long)b.made, a.done, (long long)a.made);
        check(a.allocations == b.allocations, "%s, way %d: drafts allocate", name, way);
        check(a.heard == b.heard, "%s, way %d: the listener hears something else", name, way);
        check(a.sampler == b.sampler, "%s, way %d: another sampler", name, way);
        check(a.session == b.session, "%s, way %d: another session", name, way);
    }
    int64_t proposed;
    const int64_t stayed = gla_state_drafted(s, &proposed);
    if (verbose)
        printf("%s, %s: %lld of %lld drafts stayed\n", name, draft_sources[source].name,
               (long long)stayed, (long long)proposed);
    gla_state_free(plain), gla_state_free(s);
}

/* Texts behind real prompts (separated by form feeds) of a real model, with the drafts that the
 * controller reads and with all of them, against none: the likeliest tokens, and three seeds, on
 * one thread and on two. */
static void test_prompts(const GlaModel *m, char *prompts, int64_t steps) {
    static int32_t ids[4096];
    char err[GLA_ERR] = "";
    int64_t proposed[2] = {0}, stayed[2] = {0};
    double seconds[3] = {0};
    int n_prompts = 0;
    for (char *p = strtok(prompts, "\f"); p; p = strtok(NULL, "\f"), n_prompts++) {
        const int64_t n = gla_encode(m, p, strlen(p), GLA_BOS | GLA_SPECIAL, ids, 4096, err);
        if (n < 1 || n > 4096) { check(0, "prompt %d: %s", n_prompts, err); continue; }
        for (int threads = 1; threads <= 2; threads++) {
            const GlaSettings how = {.ctx = (int)(n + steps), .threads = threads};
            GlaState *s[3] = {state_of(m, &how, 0), state_of(m, &how, 8), state_of(m, &how, 8)};
            s[1]->pace.always = 0;
            for (int k = 0; k < 3; k++) if (n > 1) gla_eval(s[k], ids, n - 1, NULL, 0, err);
            const size_t bytes = gla_snapshot_bytes(m);
            void *begin = malloc(bytes);
            gla_snapshot(s[0], begin);
            for (int seed = 0; seed < 4; seed++) {
                uint64_t heard[3], session[3];
                for (int k = 0; k < 3; k++) {
                    Heard h = {s[k], HASH_SEED, 0, 0, 0};
                    GlaSampler sampler;
                    gla_rewind(s[k], begin);
                    s[k]->evaluated = 0;
                    gla_sampler_init(&sampler, m, (uint64_t)seed);
                    sampler.temperature = seed ? 0.8f : 0, sampler.top_p = 0.9f;
                    const double from = now_s();
                    if (gla_generate(s[k], &sampler, ids + n - 1, 1, &(GlaGenerate){.steps = steps,
                        .emit = hear, .user = &h, .draft = k > 0}, NULL, err) < 0)
                        check(0, "prompt %d: %s", n_prompts, err);
                    seconds[k] += now_s() - from;
                    heard[k] = hash_bytes(h.sum, &sampler, sizeof sampler);
                    session[k] = hash_state(s[k]);
                }
                for (int k = 1; k < 3; k++)
                    check(heard[k] == heard[0] && session[k] == session[0], "prompt %d, seed %d, "
                          "%d threads: another text with drafts (%d)", n_prompts, seed, threads, k);
            }
            for (int k = 0; k < 2; k++) {
                int64_t all;
                stayed[k] += gla_state_drafted(s[k + 1], &all), proposed[k] += all;
            }
            for (int k = 0; k < 3; k++) gla_state_free(s[k]);
            free(begin);
        }
        printf("%d prompts: %.1f s without drafts; %.1f s, %lld of %lld stayed; all: %.1f s, "
               "%lld of %lld\n", n_prompts + 1, seconds[0], seconds[1], (long long)stayed[0],
               (long long)proposed[0], seconds[2], (long long)stayed[1], (long long)proposed[1]);
        fflush(stdout);
    }
}

/* Texts in which a draft is right with this probability, and a token more in a run costs `share` of
 * the first; tenths of the time are noise. Seconds per token, without drafts one. */
static double paced(double right, double share, uint64_t *seed, int tokens, Pace *p) {
    double seconds = 0;
    for (int made = 0; made < tokens;) {
        p->n_drafts = 8, p->at = 0, p->trust = 5;
        const int k = pace_choose(p, GLA_DRAFT_LOOKUP, 8, 5);
        int stay = 1;
        for (int i = 0, hit = 1; i < 8 && hit && p->n_drafts; i++) {
            hit = (double)(next_random(seed) >> 11) * 0x1p-53 < right;
            p->drafts[i] = 1;
            pace_hear(p, GLA_DRAFT_LOOKUP, hit);
            stay += hit && i < k;
            if (!k) break; /* only the next token is known */
        }
        p->n = k + 1, p->stay = stay;
        p->spent = (1 + share * k) * (0.95 + 0.1 * ((double)(next_random(seed) >> 11) * 0x1p-53));
        seconds += p->spent, made += stay;
        pace_end(p);
    }
    return seconds / tokens;
}
static void test_pace(void) {
    enum { TURNS = 40 };
    uint64_t seed = 1;
    for (int i = 0; i <= 10; i++)
        for (int j = 0; j <= 10; j++) {
            const double share = 0.02 + 0.15 * j, right = 0.1 * i;
            double most[2] = {0}, mean[2] = {0}, gain = 1, sum = 1, all = 1;
            for (int turn = 0; turn < TURNS; turn++) {
                Pace p = {0};
                for (int k = 0; k < 2; k++) { /* and then none is right any more */
                    const double t = paced(k ? 0 : right, share, &seed, k ? 1000 : 256, &p);
                    if (t > most[k]) most[k] = t;
                    mean[k] += t / TURNS;
                }
            }
            for (int k = 1; k <= 8; k++) { /* the best number of drafts */
                sum += all *= right;
                if (sum / (1 + share * k) > gain) gain = sum / (1 + share * k);
            }
            for (int k = 0; k < 2; k++)
                check(mean[k] < 1.02 && most[k] < 1.04, "right %.1f, then never; a token more "
                      "costs %.2f: %.3f, at most %.3f of the time without drafts", right, share,
                      mean[k], most[k]);
            check(mean[0] < 1.1 / gain + 0.04, "right %.1f, a token more costs %.2f: %.3f of the "
                  "time without drafts, %.3f was possible", right, share, mean[0], 1 / gain);
        }
}

static void test_history(void) {
    char err[GLA_ERR];
    GlaModel *m;
    GlaState *s;
    enum { ALL = 200000 };
    int32_t *ids = malloc(ALL * sizeof *ids), out[8];
    uint64_t seed = 7;
    if (gla_open(&m, "tests/fixtures/gla.gguf", err)
        || gla_state_new(&s, m, &(GlaSettings){.draft = 8}, err)) {
        check(0, "%s", err);
        return;
    }
    History *h = &s->history;
    for (int i = 0; i < ALL; i++) {
        ids[i] = (int32_t)(next_random(&seed) % 40);
        if (i > 1000 && next_random(&seed) % 8) ids[i] = ids[i - 700];
    }
    int64_t n = 1, round = 0;
    for (int64_t pos = 0; pos < ALL - 1000; pos += n, round++) {
        n = 1 + (int64_t)(next_random(&seed) % 90);
        if (round % 9 == 8) { /* another text from somewhere before on */
            const int64_t back = (int64_t)(next_random(&seed) % 300);
            pos = pos > back ? pos - back : 0;
            history_cut(h, pos);
            for (int64_t i = pos; i < pos + 400; i++) ids[i] = (int32_t)(next_random(&seed) % 40);
        }
        history_note(h, pos, ids + pos, (int)n);
        const int64_t end = pos + n;
        int length = 0, best = 0;
        for (int64_t p = end - 1; p >= 2 && p > end - 5000; p--) { /* the longest */
            int same = 0;
            while (same < LOOK_BACK && same <= p && ids[p - same] == ids[end - same]) same++;
            if (same > best) best = same;
        }
        const int drafts = history_find(h, ids[end], out, 8, &length);
        check(length <= LOOK_BACK && (best < 24 || length >= 24 || best - length < 24),
              "position %lld: %d tokens found, %d are there", (long long)end, length, best);
        int said = !drafts == (length < GRAM);
        for (int i = 0; i < drafts; i++) said &= out[i] >= 0 && out[i] < 40;
        check(said, "position %lld: drafts that were never said", (long long)end);
    }
    double from = now_s(); /* the same token all along: every position has the same chain */
    for (int i = 0; i < ALL; i++) ids[i] = 3;
    history_clear(h, 0);
    int found = 0;
    for (int i = 0, length; i < ALL; i++) {
        history_note(h, i, ids + i, 1);
        found += history_find(h, 3, out, 8, &length) == 8 && out[7] == 3;
    }
    check(found == ALL - GRAM + 1, "a text of one token is found %d times", found);
    check(now_s() - from < 5, "looking up in a long text takes %.1f s", now_s() - from);
    gla_state_free(s), gla_close(m), free(ids);
}

int main(int argc, char **argv) {
    char err[GLA_ERR], name[512];
    if (argc == 5 && !strcmp(argv[1], "-p")) {
        uint64_t n;
        GlaModel *m;
        FILE *f = open_regular(argv[2], 1, &n, err);
        char *prompts = f ? calloc(1, (size_t)n + 1) : NULL;
        if (!prompts || fread(prompts, 1, (size_t)n, f) != n || gla_open(&m, argv[4], err))
            return printf("%s\n", err), 1;
        test_prompts(m, prompts, atoi(argv[3]));
        printf("%d passed, %d failed\n", passed, failed);
        return failed != 0;
    }
    const int quick = argc > 1 && !strcmp(argv[1], "-q");
    verbose = !quick;
    test_pace(), test_history();
    for (int i = 1 + quick; i < argc; i++) {
        GlaModel *m;
        if (gla_open(&m, argv[i], err)) {
            check(0, "%s", err);
            continue;
        }
        for (int way = 0; way < (quick ? 2 : 8); way++) {
            const GlaSettings how = {.ctx = 170, .threads = 1 + way % 2, .fast = way / 2 % 2,
                                     .batch = way % 3 ? 0 : 40,
                                     .kv = way < 4 ? GLA_KV_F32 : way < 6 ? GLA_KV_F16
                                                                          : GLA_KV_Q8_0};
            if (gla_state_bytes(m, &how) == 0) continue; /* its keys are kept as f32 only */
            snprintf(name, sizeof name, "%s, kv %d, fast %d, %d threads", base_name(argv[i]),
                     how.kv, how.fast, how.threads);
            const int limit = m->config.limit ? m->config.limit : N;
            test_states(m, name, &how, limit < N ? limit : N);
            for (int source = 1; source < N_DRAFT_SOURCES && !*m->no_text; source++)
                if (source != GLA_DRAFT_MTP || m->mtp.layer) test_texts(m, name, &how, source);
        }
        gla_close(m);
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
