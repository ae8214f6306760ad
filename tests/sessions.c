/* sessions.c - what a saved session costs: sessions MODEL FILE N ...    prints "N bytes save_s load_s resident_bytes" for each N, for tests/sessions_bench.py
 * The state is that of a text of 256 tokens at most; keys and values up to N are filled in (they cost the same, whatever they say), the recurrent part
 * has its size from the first token on. What was loaded has to say what the original says. */
#define main run_main /* for fill_cache, which belongs to the command line */
#include "../run.c"
#undef main

static int measure(const GlaModel *m, int n, const char *path, char *err) {
    enum { READ = 256 };
    GlaInfo info;
    GlaState *s = NULL, *t = NULL;
    GlaSampler p;
    uint64_t rng = 1;
    int32_t *ids = malloc((size_t)n * sizeof *ids);
    gla_info(m, &info);
    gla_sampler_init(&p, m, 1);
    if (!ids) return fail(err, GLA_MEMORY, "no memory");
    for (int i = 0; i < n; i++) ids[i] = (int32_t)(next_random(&rng) % (uint64_t)info.vocab_size);
    const GlaSettings how = {.ctx = n + 1};
    int code = gla_state_new(&s, m, &how, err), same = 0;
    if (!code) code = gla_state_new(&t, m, &how, err);
    if (!code) code = gla_eval(s, ids, n < READ ? n : READ, NULL, 0, err);
    if (!code && n > READ) fill_cache(s, n);
    double t0 = now_s();
    if (!code) code = gla_state_save(s, &p, ids, path, err);
    double t1 = now_s();
    if (!code) code = gla_state_load(t, &p, path, err);
    double t2 = now_s();
    if (!code) same = !memcmp(gla_logits(s), gla_logits(t), (size_t)info.vocab_size * sizeof(float));
    if (!code) code = gla_eval(s, ids, 1, NULL, 0, err);
    if (!code) code = gla_eval(t, ids, 1, NULL, 0, err);
    if (!code && !(same && !memcmp(gla_logits(s), gla_logits(t), (size_t)info.vocab_size * sizeof(float)))) code = fail(err, GLA_FORMAT, "%s: goes on differently", path);
    struct stat st = {0};
    if (!code && stat(path, &st)) code = fail(err, GLA_IO, "%s: %s", path, strerror(errno));
    if (!code) printf("%d %lld %.6f %.6f %llu\n", n, (long long)st.st_size, t1 - t0, t2 - t1, (unsigned long long)resident_bytes()), fflush(stdout);
    gla_state_free(s), gla_state_free(t), free(ids);
    return code;
}

int main(int argc, char **argv) {
    char err[GLA_ERR] = "";
    GlaModel *m = NULL;
    int code = argc < 4 ? fail(err, GLA_INPUT, "sessions MODEL FILE N ...") : gla_open(&m, argv[1], err);
    for (int i = 3; i < argc && !code; i++) code = measure(m, atoi(argv[i]), argv[2], err);
    gla_close(m);
    if (argc > 2) remove(argv[2]);
    if (code) fprintf(stderr, "sessions: %s\n", err);
    return code != 0;
}
