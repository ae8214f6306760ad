/* The program at the end of section 1 of run.c, word for word (tests/cli.py compares).   cc -I. -o embed tests/embed.c -lm */
#define RUN_NO_MAIN
#include "run.c"
static int show(void *u, int32_t id, const char *text, size_t n) { (void)u, (void)id; fwrite(text, 1, n, stdout); return 0; }
int main(int argc, char **argv) {
    char err[GLA_ERR] = ""; GlaModel *m; GlaState *s; GlaSampler p; int32_t ids[256];
    if (argc < 3) return fprintf(stderr, "usage: %s MODEL PROMPT\n", argv[0]), 2;
    if (gla_open(&m, argv[1], err) || gla_state_new(&s, m, NULL, err)) return fprintf(stderr, "%s\n", err), 1;
    gla_sampler_init(&p, m, 42);
    int64_t n = gla_encode(m, argv[2], strlen(argv[2]), GLA_BOS, ids, 256, err);
    if (n > 256) return fprintf(stderr, "the prompt has %lld tokens, at most 256 go in here\n", (long long)n), 1;
    if (n < 0 || gla_generate(s, &p, ids, n, &(GlaGenerate){.steps = 100, .emit = show}, NULL, err) < 0) return fprintf(stderr, "%s\n", err), 1;
    gla_state_free(s); gla_close(m);
    return 0;
}
