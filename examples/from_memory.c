/* A model that is already in memory (in flash, in the program itself), and a state in memory of one's own: nothing is opened.
 *   cc -O3 -o from_memory from_memory.c $(pkg-config --cflags --libs gla) && ./from_memory model.bin "Once upon a time" */
#include <gla.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int show(void *user, int32_t id, const char *text, size_t n) { (void)user, (void)id; fwrite(text, 1, n, stdout); return 0; }

int main(int argc, char **argv) {
    static unsigned char model[64 << 20]; /* stands for an array that was compiled in */
    char err[GLA_ERR] = "";
    FILE *f = argc > 2 ? fopen(argv[1], "rb") : NULL;
    size_t n_bytes = f ? fread(model, 1, sizeof model, f) : 0;
    GlaModel *m;
    GlaState *s;
    GlaSampler p;
    int32_t ids[256];
    if (argc < 3) return fprintf(stderr, "usage: %s MODEL PROMPT    (a GGUF file of at most %zu MB, and a text)\n", argv[0], sizeof model >> 20), 2;
    if (!f) return perror(argv[1]), 1;
    fclose(f);
    if (n_bytes == sizeof model) return fprintf(stderr, "%s: more than %zu MB\n", argv[1], sizeof model >> 20), 1;
    if (gla_open_memory(&m, model, n_bytes, err)) return fprintf(stderr, "%s\n", err), 1;
    const GlaSettings how = {.ctx = 256, .batch = 16, .threads = 1, .kv = GLA_KV_DEFAULT};
    size_t need = gla_state_bytes(m, &how); /* known before anything is reserved */
    void *room = malloc(need);
    if (!room || gla_state_place(&s, m, &how, room, need, err)) return fprintf(stderr, "%s\n", err), 1;
    gla_sampler_init(&p, m, 42);
    int64_t n = gla_encode(m, argv[2], strlen(argv[2]), GLA_BOS, ids, 256, err);
    if (n > 256) return fprintf(stderr, "the prompt has %lld tokens, at most 256 go in here\n", (long long)n), 1;
    if (n < 0 || gla_generate(s, &p, ids, n, &(GlaGenerate){.steps = 60, .emit = show}, NULL, err) < 0) return fprintf(stderr, "%s\n", err), 1;
    printf("\n");
    gla_state_free(s), gla_close(m), free(room);
    return 0;
}
