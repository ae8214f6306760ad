/* ids.c - the ids of texts by a vocabulary alone, without a model: for the scripts that compare tokenizers.
 *
 *   ids VOCAB.gguf PRE < texts      PRE: a pre-tokenizer, "-" is the file's. Texts end with a zero byte each
 *
 * Prints a line of ids for each text: all added tokens are read as tokens, nothing is put around it. */
#define RUN_NO_MAIN
#define RUN_STATIC
#include "../run.c"

int main(int argc, char **argv) {
    char err[GLA_ERR] = "";
    Gguf g = {0};
    Tokenizer *t = NULL;
    size_t n = 0, cap = 1 << 26;
    char *text = malloc(cap);
    if (argc != 3 || !text) return 2;
    if (map_file(&g.map, argv[1], err) || gguf_read(&g, err) || tokenizer_open(&t, &g, *argv[2] == '-' ? NULL : argv[2], err)) {
        fprintf(stderr, "%s\n", err);
        return 1;
    }
    n = fread(text, 1, cap, stdin);
    for (size_t from = 0, at = 0; at < n; at++) {
        if (text[at]) continue;
        Ids ids = {NULL, 0, 0};
        if (tokenizer_append(t, text + from, at - from, GLA_SPECIAL, &ids, err)) return 1;
        for (int64_t i = 0; i < ids.n; i++) printf("%s%d", i ? " " : "", ids.id[i]);
        putchar('\n');
        ids_free(&ids);
        from = at + 1;
    }
    tokenizer_free(t), gguf_close(&g), free(text);
    return 0;
}
