/* Is a state that has read ahead, and taken most of it back, the state of its text, in every bit?
 * For test programs that include run.c. */

/* All that a session would hold, as one hash value. */
static void hash_part(Stream *t, void *p, size_t n) { t->sum = hash_bytes(t->sum, p, n); }
static uint64_t hash_state(GlaState *s) {
    Stream t = {NULL, hash_bytes(HASH_SEED, &s->pos, sizeof s->pos), 0, 0};
    settle_ahead(s);
    session_body(s, &t, hash_part);
    return t.sum;
}

/* Reads n ids with drafts in front of the text: some right, then wrong ones, at most `most`.
 * Returns the position whose logits are others than those of `want` (n, vocab_size), or n. */
static int64_t read_drafting(GlaState *s, const int32_t *ids, int n, int most, const float *want,
                             uint64_t seed) {
    const size_t vocab = (size_t)s->m->config.vocab_size;
    char err[GLA_ERR];
    for (int i = 0, done; i < n; i = done) {
        int32_t run[DRAFT_MOST] = {ids[i]};
        const int limit = most < n - i - 1 ? most : n - i - 1;
        const int drafts = limit ? (int)(next_random(&seed) % (uint64_t)(limit + 1)) : 0;
        const int right = drafts ? (int)(next_random(&seed) % (uint64_t)(drafts + 1)) : 0;
        for (int k = 1; k <= drafts; k++) /* others than what comes, from one on */
            run[k] = k <= right ? ids[i + k] : (int32_t)(((size_t)ids[i + k] + (size_t)k) % vocab);
        if (drafts) read_ahead(s, run, drafts + 1);
        else if (gla_eval(s, &ids[i], 1, NULL, 0, err)) return i;
        for (done = i; done < n && (done == i || is_ahead(s, ids[done])); done++) {
            const float *row = want + (size_t)done * vocab;
            if (memcmp(gla_logits(s), row, vocab * sizeof *row)) return done;
        }
    }
    return n;
}
