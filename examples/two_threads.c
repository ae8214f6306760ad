/* Two texts at once from one model: a model is read-only, each thread has a state of its own.
 *   cc -O3 -o two_threads two_threads.c $(pkg-config --cflags --libs gla) -pthread && ./two_threads model.bin "Once" "One day" */
#include <gla.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

typedef struct { GlaModel *m; const char *prompt; char text[2000], err[GLA_ERR]; int done; } Job;

static int keep(void *user, int32_t id, const char *text, size_t n) {
    Job *j = user;
    size_t used = strlen(j->text);
    (void)id;
    if (n < sizeof j->text - used) memcpy(j->text + used, text, n);
    return 0;
}

static void *tell(void *user) {
    Job *j = user;
    GlaState *s;
    GlaSampler p;
    int32_t ids[256];
    j->done = gla_state_new(&s, j->m, &(GlaSettings){.threads = 1}, j->err); /* one thread for each state */
    if (j->done) return NULL;
    gla_sampler_init(&p, j->m, 42);
    int64_t n = gla_encode(j->m, j->prompt, strlen(j->prompt), GLA_BOS, ids, 256, j->err);
    if (n > 256) n = -1, snprintf(j->err, sizeof j->err, "the prompt has more than 256 tokens");
    j->done = n < 0 ? -1 : gla_generate(s, &p, ids, n, &(GlaGenerate){.steps = 60, .emit = keep, .user = j}, NULL, j->err);
    gla_state_free(s);
    return NULL;
}

int main(int argc, char **argv) {
    static Job jobs[2];
    char err[GLA_ERR] = "";
    GlaModel *m;
    pthread_t threads[2];
    if (argc < 4) return fprintf(stderr, "usage: %s MODEL PROMPT PROMPT    (a GGUF file and two texts)\n", argv[0]), 2;
    if (gla_open(&m, argv[1], err)) return fprintf(stderr, "%s\n", err), 1;
    for (int i = 0; i < 2; i++) jobs[i].m = m, jobs[i].prompt = argv[2 + i], pthread_create(&threads[i], NULL, tell, &jobs[i]);
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL), printf("%s%s\n", argv[2 + i], jobs[i].text);
    for (int i = 0; i < 2; i++) if (jobs[i].done < 0) fprintf(stderr, "\"%s\": %s\n", argv[2 + i], jobs[i].err);
    gla_close(m);
    return jobs[0].done < 0 || jobs[1].done < 0;
}
